"""The benchmarks at toy size, and what they would say of a run whose time goes where the test puts it."""

from __future__ import annotations

import math
import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import architectures
import training.run
from benchmarks import pipeline, report
from benchmarks.pipeline import Stopwatch
from benchmarks.training import Variant, rows, train, variants, write_tiles
from benchmarks.turns import Measured, take_turns
from data.loader import PatchSource

PARTS = (
    "training steps",
    "validation steps",
    "waiting for training batches",
    "waiting for validation batches",
    "the rest",
)


@pytest.fixture(autouse=True)
def tiny_is_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """One convolution, compiled in a moment."""

    def tiny(inputs: dict[str, int], num_classes: int, size: tuple[int, int]) -> keras.Model:
        tensors = {name: keras.Input((*size, channels), name=name) for name, channels in inputs.items()}
        x = keras.layers.Concatenate()(list(tensors.values()))
        output = keras.layers.Conv2D(num_classes, 1, activation="softmax", dtype="float32", name="output")(x)
        return keras.Model(tensors, {"output": output})

    module: Any = SimpleNamespace(build=tiny, stride=lambda **_: 1)
    monkeypatch.setitem(architectures.REGISTRY, "tiny", module)


# Where the time of an epoch goes


def test_pipeline_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Cutting a patch is made to take 0.05 s, the start of an epoch 0.3 s: the tables show both where they belong."""
    cut, progress = PatchSource.cut, training.run.progress

    def slow_cut(*arguments: Any) -> Any:
        time.sleep(0.05)
        return cut(*arguments)

    def slow_progress(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.3)
        return progress(*arguments, **options)

    monkeypatch.setattr(PatchSource, "cut", slow_cut)
    monkeypatch.setattr(training.run, "progress", slow_progress)
    changes = [
        "architecture={name: tiny}",
        "training.patch_size=32",
        "training.batch_size=3",
        "training.steps_per_epoch=4",
    ]
    sizes = ["--train", "1", "--val", "1", "--size", "64", "--epochs", "3", "--rounds", "2", "--steps", "1"]
    pipeline.main([*sizes, *(word for change in changes for word in ("--set", change))])
    out = capsys.readouterr().out
    cells = {
        row[1]: row[2:-1] for line in out.splitlines() if len(row := [cell.strip() for cell in line.split("|")]) > 3
    }

    assert "epoch 3/3" not in out
    # Two workers that need 0.05 s a patch.
    assert 0 < float(cells["data pipeline alone"][0].split()[0]) <= 40
    # The first 3 patches of an epoch can't be made during a step, in training and in validation.
    assert float(cells["waiting for training batches"][0]) >= 0.05
    assert float(cells["waiting for validation batches"][0]) >= 0.05
    assert float(cells["the rest"][0]) >= 0.3
    seconds, shares = zip(*((float(cells[part][0]), float(cells[part][1].rstrip("%"))) for part in PARTS), strict=True)
    assert min(seconds) >= 0
    assert sum(seconds) == pytest.approx(float(cells["in all"][0]), abs=0.03)
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_stopwatch_counts_what_lies_between_two_moments() -> None:
    watch = Stopwatch(lambda x: 2 * x)
    assert watch(4) == 8
    ((began, ended),) = watch.calls
    assert began < ended
    watch.calls = [(0.0, 1.0), (2.0, 4.0), (6.0, 7.0)]
    assert watch.seconds(0.25, 3.0) == 0.75 + 1.0
    assert watch.seconds(4.5, 5.5) == 0.0


# Training, in turns


class _Alone:
    """The other end of a variant that trains alone: its turn comes at once."""

    def __init__(self) -> None:
        self.received: list[tuple[float, float]] = []

    def send(self, answer: tuple[float, float]) -> None:
        self.received.append(answer)

    def recv(self) -> None:
        return None


def test_plain_keras_and_this_project_train_in_turns(tmp_path: Path) -> None:
    epochs, patch = 2, 32
    changes = [
        "architecture={name: tiny}",
        f"training.patch_size={patch}",
        "training.batch_size=2",
        "training.steps_per_epoch=1",
        f"training.epochs={epochs}",
    ]
    dataset = write_tiles(tmp_path, patch)
    found = variants(changes, ["float32"], 1)
    assert [variant.plain for variant in found] == [True, False]
    for variant in found:
        turns: Any = _Alone()
        train(variant, dataset, turns)
        (first, _), *others = turns.received
        assert math.isnan(first)
        assert len(others) == epochs
        assert all(seconds > 0 for seconds, _ in others)


def test_one_child_trains_at_a_time_and_the_first_epoch_is_left_out() -> None:
    busy = threading.Lock()
    epochs = 3

    def child(number: int, turns: Connection) -> None:
        for epoch in range(epochs):
            turns.recv()
            assert busy.acquire(blocking=False)
            time.sleep(0.002)
            busy.release()
            turns.send((10.0 * number + epoch, 2.0**30))

    children, threads = [], []
    for number in range(3):
        ours, theirs = multiprocessing.Pipe()
        threads.append(threading.Thread(target=child, args=(number, theirs)))
        children.append(ours)
    for thread in threads:
        thread.start()
    measured = take_turns(children, epochs)
    for thread in threads:
        thread.join()
    assert measured == [Measured((10.0 * n + 1, 10.0 * n + 2), 2.0**30) for n in range(3)]


def test_speeds_are_compared_within_a_round_and_a_precision() -> None:
    (plain, _) = variants(["training.steps_per_epoch=6", "training.batch_size=4"], ["float32"], 1)
    found = [
        plain,
        Variant("ours", plain.recipe, "float32"),
        Variant("plain", plain.recipe, "bfloat16", plain=True),
        Variant("ours", plain.recipe, "bfloat16"),
    ]
    measured = [
        Measured((2.0, 4.0, 6.0), 2.0**30),
        Measured((2.0, 2.0, 3.0), 3 * 2.0**29),
        Measured((1.0, 1.0, 1.0), math.nan),
        Measured((2.0, 2.0, 2.0), math.nan),
    ]
    assert [row[1:] for row in rows(found, measured)] == [
        ["float32", "6.000 (4.000–12.000)", "1.00 (1.00–1.00)", "1.0"],
        ["float32", "12.000 (8.000–12.000)", "2.00 (1.00–2.00)", "1.5"],
        ["bfloat16", "24.000 (24.000–24.000)", "1.00 (1.00–1.00)", "not known"],
        ["bfloat16", "12.000 (12.000–12.000)", "0.50 (0.50–0.50)", "not known"],
    ]


# The machine


def test_machine_says_which_instructions_there_are(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Fast One\nflags\t\t: fpu avx2 avx512f\n\nmodel name\t: Fast One\n")
    assert "(Fast One; AVX2, AVX-512, no bfloat16)" in report.machine(cpuinfo)
    assert "instructions not known" in report.machine(tmp_path / "none")
    assert "keras" in report.machine(cpuinfo)


def test_table_and_spread() -> None:
    assert report.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert report.spread(list(np.array([3.0, 1.0, 2.0])), 1) == "2.0 (1.0–3.0)"
