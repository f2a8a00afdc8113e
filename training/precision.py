"""Which arithmetic a run uses: what the recipe allows and the device computes in."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path

import keras
from keras import ops

from console import UserError

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_ROUNDS = 7


def has_gpu() -> bool:
    """Return whether the backend of Keras sees a GPU."""
    if keras.backend.backend() == "torch":
        import torch

        return bool(torch.cuda.is_available())
    # JAX refuses to list devices of a kind that it has none of: list all.
    return any(device.startswith(("gpu", "cuda", "rocm")) for device in keras.distribution.list_devices())


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor multiplies in bfloat16 (AVX512-BF16 or AMX); unknown counts as no."""
    try:
        return bool(_CPU_FLAGS & set(cpuinfo.read_text(encoding="utf-8").split()))
    except OSError:
        return False


@functools.cache
def bfloat16_speed() -> float:
    """Return the rate of a convolution in bfloat16, that in float32 being 1: measured once a process, in 0.1 to 0.3 s.

    Instructions are no promise: with AVX512-BF16 alone some processors take twice as long as in float32.
    """
    seconds = {"float32": float("inf"), "bfloat16": float("inf")}
    tensors = {name: (ops.ones((4, 64, 64, 64), name), ops.ones((3, 3, 64, 64), name)) for name in seconds}
    for _ in range(_ROUNDS):  # in turns and the fastest of each, so that what else the machine does hits both alike
        for name, (maps, kernel) in tensors.items():
            began = time.perf_counter()
            found = ops.conv(maps, kernel, padding="same", data_format="channels_last")
            ops.convert_to_numpy(ops.cast(found[0, 0, 0], "float32"))  # backends return before they have computed
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds["float32"] / seconds["bfloat16"]


def bfloat16_pays() -> bool:
    """Return whether the processor multiplies in bfloat16, and faster than in float32."""
    return cpu_has_bfloat16() and bfloat16_speed() > 1


def choose(asked: str | None, allowed: Sequence[str], gpu: bool | None = None, bfloat16: bool | None = None) -> str:
    """Return `float32`, `bfloat16` or `float16`.

    Args:
        asked: What the user asked for; None or `auto` takes the first allowed precision that the device computes in,
            a CPU faster than in float32; else float32.
        allowed: Reduced precisions of the recipe, in order of preference.
        gpu: Whether there is a GPU; None asks the backend.
        bfloat16: Whether bfloat16 pays on the CPU; None asks the processor.

    Raises:
        UserError: An unknown name. What the user names is taken as it is, also float16 on a CPU, slow as that is.
    """
    gpu = has_gpu() if gpu is None else gpu
    if asked not in (None, "auto"):
        if asked not in POLICIES:
            raise UserError(f"unknown precision {asked!r}; there are: auto, {', '.join(POLICIES)}")
        return str(asked)
    supported = {"float16", "bfloat16"} if gpu else set()
    if not gpu and "bfloat16" in allowed and (bfloat16_pays() if bfloat16 is None else bfloat16):
        supported = {"bfloat16"}
    return next((name for name in allowed if name in supported), "float32")
