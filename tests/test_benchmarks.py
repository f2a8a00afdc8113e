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
from benchmarks import engines, overlap, pipeline, report, storage, zoo
from benchmarks import training as training_benchmark
from benchmarks.pipeline import Stopwatch
from benchmarks.training import Variant, measure, rows, train, variants, write_tiles
from benchmarks.turns import Measured, take_turns
from console import UserError
from data.loader import PatchSource
from data.tiles import TWO_CLASSES
from inference.predictor import Predictor
from inference.sliding import blend

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
    fed, used, ratio = (
        float(cells[row][0].split()[0])
        for row in ("data pipeline alone", "training step alone", "ratio, in the same round (5 at least)")
    )
    assert ratio == pytest.approx(fed / used, rel=0.5, abs=0.1)
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


# How tiles are stored


def test_storage_table_has_every_layout_and_sees_what_compression_saves(capsys: pytest.CaptureFixture[str]) -> None:
    storage.main(["--sides", "160", "--patch-sizes", "48", "--pixels", "0.05", "--rounds", "1", "--patches", "4"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    cells = {row[0]: row[1:] for row in lines if len(row) == len(storage.HEADER) and "---" not in row[0]}
    assert list(cells) == ["layout", storage.WRITTEN, *(layout.name for layout in storage.LAYOUTS)]
    for name, row in cells.items():
        if name != "layout":
            assert all(float(cell) > 0 for cell in row[:4]) and float(row[4].split()[0]) > 0
            optical, dem, labels = map(float, row[6].split(" + "))
            assert optical > dem > labels
    packed, plain = (float(cells[name][6].split()[0]) for name in ("chunks of 128, gzip 1", "contiguous"))
    assert packed < plain == float(cells[storage.WRITTEN][6].split()[0])


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


def test_speeds_are_compared_within_a_round_and_a_precision_two_processes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = variants(["training.steps_per_epoch=6", "training.batch_size=4"], ["float32", "bfloat16"], 2)
    seconds = {
        ("float32", False, 1): [Measured((2.0, 4.0, 6.0), 2.0**30), Measured((2.0, 2.0, 3.0), 3 * 2.0**29)],
        ("bfloat16", False, 1): [Measured((1.0, 1.0, 1.0), math.nan), Measured((2.0, 2.0, 2.0), math.nan)],
        ("float32", False, 2): [Measured((4.0, 4.0, 4.0), 2.0**30), Measured((8.0, 8.0, 8.0), 2.0**29)],
    }

    def turns(children: list[Variant], epochs: int) -> list[Measured]:
        plain, own = children
        assert plain.plain and plain.precision == own.precision and epochs == own.recipe.training.epochs
        return seconds[own.precision, own.plain, own.recipe.training.accumulate]

    monkeypatch.setattr(training_benchmark, "start", lambda function, variant, dataset: variant)
    monkeypatch.setattr(training_benchmark, "take_turns", turns)
    assert [row[1:] for row in rows(measure(found, SimpleNamespace()))] == [  # type: ignore[arg-type]
        ["float32", "6.000 (4.000–12.000)", "1.00 (1.00–1.00)", "1.0"],
        ["float32", "12.000 (8.000–12.000)", "2.00 (1.00–2.00)", "1.5"],
        ["bfloat16", "24.000 (24.000–24.000)", "1.00 (1.00–1.00)", "not known"],
        ["bfloat16", "12.000 (12.000–12.000)", "0.50 (0.50–0.50)", "not known"],
        ["float32", "3.000 (3.000–3.000)", "0.50 (0.50–0.50)", "0.5"],
    ]


# The gallery


def counted(layer: Any, *shapes: tuple[int, ...]) -> int:
    """Return the operations of a model that is `layer` alone, for one input of each of the shapes."""
    inputs = [keras.Input(shape, name=f"input_{number}") for number, shape in enumerate(shapes)]
    model = keras.Model({tensor.name: tensor for tensor in inputs}, layer(*inputs))
    return zoo.operations(zoo.predicting(model, 1).graph)


def test_operations_are_those_counted_by_hand() -> None:
    layers, h, w, c, n, k = keras.layers, 10, 12, 3, 5, 3
    assert counted(layers.Conv2D(n, k, padding="same"), (h, w, c)) == 2 * h * w * n * k * k * c
    assert counted(layers.Conv2D(n, k, strides=2), (h, w, c)) == 2 * 4 * 5 * n * k * k * c
    assert counted(layers.DepthwiseConv2D(k, padding="same"), (h, w, c)) == 2 * h * w * k * k * c
    assert counted(layers.Conv2DTranspose(n, 2, strides=2), (h, w, c)) == 2 * h * w * c * 2 * 2 * n
    assert counted(layers.Dense(n), (h, w, c)) == 2 * h * w * c * n
    q, t, heads = 6, 7, 2
    projections = 2 * c * 8 * (q + t + t) + 2 * 8 * c * q
    attention = layers.MultiHeadAttention(heads, 4)
    assert counted(attention, (q, c), (t, c)) == projections + 2 * (2 * heads * q * t * 4)
    product = layers.Lambda(lambda x: keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1))))
    assert counted(product, (q, c)) == 2 * q * q * c
    assert counted(layers.LeakyReLU(), (h, w, c)) == 0


def test_operations_that_are_not_known_are_not_taken_for_none() -> None:
    with pytest.raises(ValueError, match="Conv3D can't be counted"):
        counted(keras.layers.Conv3D(2, 3), (8, 8, 8, 1))
    # Keras compiles these into a graph of their own.
    with pytest.raises(ValueError, match="Call can't be counted"):
        counted(keras.layers.Conv2D(2, 3, groups=2), (8, 8, 4))


class TestGallery:
    """docs/zoo.md against what it tells of."""

    @pytest.fixture(autouse=True)
    def only_the_zoo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(architectures.REGISTRY, "tiny")

    def test_has_every_architecture_and_the_texts_of_modules_and_recipes(self) -> None:
        text = zoo.PAGE.read_text(encoding="utf-8")
        costs, measured_on = zoo.read(text)
        assert {row.name for row in costs} == set(architectures.REGISTRY)
        assert set(costs) == set(zoo.rows()), "python -m benchmarks.zoo --keep-speeds"
        assert zoo.page(costs, measured_on) == text, "python -m benchmarks.zoo --keep-speeds"

    def test_has_the_numbers_of_the_model_that_is_built(self) -> None:
        """Of one that is quickly built; the command's --check has time for all."""
        costs, _ = zoo.read(zoo.PAGE.read_text(encoding="utf-8"))
        row = next(row for row in zoo.rows() if row.name == "unet")
        assert zoo.cost(row).counts == costs[row].counts


def test_gallery_is_written_checked_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny: Any = architectures.REGISTRY["tiny"]
    tiny.__name__, tiny.__doc__ = (
        "architectures.tiny",
        "Tiny: one convolution.\n\n    inputs ─ 1×1 convolution ─ softmax",
    )
    monkeypatch.setattr(architectures, "REGISTRY", {"tiny": tiny})
    monkeypatch.setattr(zoo, "PAGE", tmp_path / "zoo.md")

    zoo.main(["--seconds", "0.01"])
    (row,), (cost,) = (
        list(items) for items in zip(*zoo.read(zoo.PAGE.read_text(encoding="utf-8"))[0].items(), strict=True)
    )
    assert row == zoo.Row("tiny")
    # One convolution of 6 bands to 2 classes.
    assert (cost.trainable, cost.parameters) == (6 * 2 + 2, 6 * 2 + 2)
    assert cost.operations == round(2 * 384 * 384 * 6 * 2, -8)
    median, lowest = cost.speed.replace("(", "").split("–")[0].split()
    assert 0 < float(lowest) <= float(median)
    zoo.main(["--check"])

    # Another text: the speed stays. Another model: it was measured on what is no more.
    tiny.__doc__ = "Tiny: one convolution and its picture."
    with pytest.raises(UserError, match="and its picture"):
        zoo.main(["--check"])
    assert "and its picture" not in zoo.PAGE.read_text(encoding="utf-8")
    zoo.main(["--keep-speeds"])
    text = zoo.PAGE.read_text(encoding="utf-8")
    assert "and its picture" in text and cost.speed in text
    monkeypatch.setattr(zoo, "CLASSES", 3)
    zoo.main(["--keep-speeds"])
    assert zoo.read(zoo.PAGE.read_text(encoding="utf-8"))[0][row].speed == zoo.NOT_MEASURED


def test_header_of_a_recipe_is_its_title_and_its_fields(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text("# A: one,\n#   two.\n#\n# Source: some\n#   where: there\n# Cost: none\n\n# Other: no\na: 1\n")
    assert zoo.recipe_header(recipe) == ("A: one, two.", {"Source": "some where: there", "Cost": "none"})


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


def small_run(folder: Path) -> Predictor:
    keras.utils.set_random_seed(0)
    model = architectures.build("unet", {"optical": 6}, 2, 32, width=4, steps=2)
    model.save_weights(folder / "small.weights.h5")
    described = {"weights": str(folder / "small.weights.h5"), "precision": "float32"}
    return Predictor("small", model, {"optical": 6}, TWO_CLASSES, None, 32, described=described)


def test_ways_to_map_a_scene_are_held_against_the_published_one(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    member = small_run(tmp_path)
    source = overlap.scene_inputs({"optical": 6}, None, 80, seed=1)
    assert set(source.inputs) == {"optical"} and source.height == source.width == 80
    variants = overlap.variants_of(member, [0.0, 0.5], batch=2, precisions=["float32"])
    overlap.take_turns(source, variants, patch=32, outputs=2)
    rows = {(row.variant.engine, row.variant.overlap, row.kernel): row for row in overlap.compared(variants)}
    published = rows[overlap.PUBLISHED, 0.5, "gaussian"]
    assert published.speed == published.agreement == published.iou == 1 and published.largest == 0
    same, few = rows["openvino float32", 0.5, "gaussian"], rows["openvino float32", 0.0, "gaussian"]
    assert same.largest < 1e-4 < few.largest and same.agreement > few.agreement
    assert len(few.variant.kept) * 2 < len(same.variant.kept) * 2 == len(published.variant.kept) == 16
    expected = blend(member, source.inputs, patch=32, num_outputs=2, stride=16, shape="cosine")
    np.testing.assert_allclose(published.variant.maps["cosine"], expected, atol=1e-5)
    plot = tmp_path / "plot.png"
    overlap.draw(list(rows.values()), plot, "test")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_engines_are_compared_in_turns_and_their_share_of_the_rate_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(engines, "_SIDE", 8)
    monkeypatch.setattr(engines, "_MAPS", 4)
    rate = engines.rates(1)
    assert rate["float32"] > 0
    monkeypatch.setattr(zoo, "build", lambda row: architectures.build("tiny", {"optical": 6}, 2, 384))
    text = engines.measure([zoo.Row("tiny")], 2)
    lines = [line.split(" | ") for line in text.splitlines() if "openvino float32" in line or "keras float32" in line]
    assert len(lines) == 2 and lines[0][4] == "1.00 (1.00–1.00)"
    assert all(line[-1].startswith("100.00%") for line in lines)
    assert float(lines[1][-2]) < 1e-4
