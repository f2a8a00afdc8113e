"""What measurements are reported with: the machine, tables, medians with their spread."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import keras
import psutil

from training.record import package_versions

_FLAGS = {"AVX2": {"avx2"}, "AVX-512": {"avx512f"}, "bfloat16": {"avx512_bf16", "amx_bf16"}}


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return processor, memory, load and versions in one paragraph.

    Where the system has no such `cpuinfo`, nothing is said about the processor's instructions. The load is the mean
    number of processes that wanted to compute during the last minute: above 0 the machine is shared.
    """
    name, instructions = platform.processor() or platform.machine(), "instructions not known"
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
        entries = {key.strip(): value.strip() for key, _, value in lines}
        name = entries.get("model name", name)
        flags = set(entries.get("flags", "").split())
        instructions = ", ".join(f"{'' if flags & any_of else 'no '}{what}" for what, any_of in _FLAGS.items())
    gpus = sum(not device.startswith("cpu") for device in keras.distribution.list_devices())
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
    return (
        f"{psutil.cpu_count()} cores ({name}; {instructions}), {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{gpus or 'no'} GPU, load {psutil.getloadavg()[0]:.1f} before the start; {versions}."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return `median (lowest–highest)`."""
    shown = [f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]}–{shown[2]})"
