"""The choice of the arithmetic."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest

from console import UserError
from training import precision
from training.precision import POLICIES, choose, cpu_has_bfloat16, has_gpu

BOTH = ("float16", "bfloat16")


@pytest.mark.parametrize(
    ("asked", "allowed", "gpu", "bfloat16", "expected"),
    [
        # asked, allowed by the recipe, GPU, CPU with bfloat16 -> chosen
        (None, BOTH, True, False, "float16"),
        ("auto", BOTH, True, True, "float16"),
        ("auto", BOTH, False, True, "bfloat16"),
        ("auto", BOTH, False, False, "float32"),
        ("auto", ("float16",), False, True, "float32"),  # never float16 on a CPU unless asked for
        ("auto", ("bfloat16", "float16"), True, False, "bfloat16"),
        ("auto", ("bfloat16",), True, False, "bfloat16"),
        ("auto", (), True, True, "float32"),
        ("float32", BOTH, True, True, "float32"),
        ("float16", (), False, False, "float16"),
        ("bfloat16", (), False, False, "bfloat16"),
    ],
)
def test_choice(asked: str | None, allowed: tuple[str, ...], gpu: bool, bfloat16: bool, expected: str) -> None:
    chosen = choose(asked, allowed, gpu, bfloat16)
    assert chosen == expected and chosen in POLICIES


def test_unknown_precision_is_answered_with_the_known() -> None:
    with pytest.raises(UserError, match="'float64'.*auto, float32, bfloat16, float16"):
        choose("float64", BOTH, False, False)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16 fma", True),
        ("fpu amx_tile amx_bf16", True),
        ("fpu avx512f avx512_vnni", False),
        ("fpu avx512_bf16x", False),
    ],
)
def test_processor_flags(tmp_path: Path, flags: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: A processor\nflags\t\t: {flags}\n")
    assert cpu_has_bfloat16(cpuinfo) is expected


def test_an_unknown_processor_has_none(tmp_path: Path) -> None:
    assert not cpu_has_bfloat16(tmp_path / "nothing")


def test_bfloat16_is_chosen_where_it_is_faster_than_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.001 < precision.bfloat16_speed() < 1000 and precision.bfloat16_speed() == precision.bfloat16_speed()
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    for speed, expected in ((2.0, "bfloat16"), (0.6, "float32")):
        monkeypatch.setattr(precision, "bfloat16_speed", lambda speed=speed: speed)
        assert choose(None, BOTH, gpu=False) == expected
        assert choose("bfloat16", BOTH, gpu=False) == "bfloat16"
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "bfloat16_speed", lambda: 2.0)  # of a processor that has not the instructions
    assert choose(None, BOTH, gpu=False) == "float32"


@pytest.mark.parametrize(("devices", "expected"), [(["cpu:0"], False), (["cpu:0", "gpu:0"], True), ([], False)])
def test_a_gpu_is_seen_on_backends_that_refuse_to_list_what_they_lack(
    monkeypatch: pytest.MonkeyPatch, devices: list[str], expected: bool
) -> None:
    def list_devices(kind: str | None = None) -> list[str]:
        if kind is not None and not any(device.startswith(kind) for device in devices):
            raise RuntimeError(f"Unknown backend: {kind!r} requested")  # as JAX does
        return devices

    monkeypatch.setattr(keras.distribution, "list_devices", list_devices)
    assert has_gpu() is expected
