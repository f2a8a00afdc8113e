"""Watching a run: pictures at the right epochs, TensorBoard's files, and nothing of it can stop the training."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from console import UserError
from data.loader import PatchSource
from data.location import Regions
from data.tiles import TileFile
from training import pictures
from training.record import Best
from training.watching import EventLog, Watcher


def rows_of(epochs: int) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "loss": 1 / epoch, "val_loss": 2 / epoch, "val_output_iou_1": float("nan")}
        for epoch in range(1, epochs + 1)
    ]


def best(epoch: int) -> Best:
    return Best(epoch=epoch, monitor="iou", score=0.5)


def write_log(path: Path, epochs: int) -> list[dict[str, Any]]:
    rows = rows_of(epochs)
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


@pytest.fixture
def plan(tmp_path: Path, write_tiles: Any) -> Any:
    """A plan whose model says glacier where the first band is positive, and where a region is named after it."""
    file = TileFile(write_tiles(tmp_path / "val.hdf5", regions=("ALP", "HMA"), size=(24, 24)))
    source = PatchSource(file, ("t0", "t1"), ("optical", "dem"), file.statistics, 16, Regions(("ALP", "SC")))

    def predict(batch: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        assert {name: x.shape for name, x in batch.items()} == {
            "optical": (1, 16, 16, 6),
            "dem": (1, 16, 16, 2),
            "location": (1, 3),
        }
        known = batch["location"][0, 0]
        ice = (batch["optical"][..., :1] > 0) * known
        return {"output": np.concatenate([1 - ice, ice], axis=-1)}

    model = SimpleNamespace(predict_on_batch=predict)
    return SimpleNamespace(val=source, train=source, model=model)


def test_the_log_is_drawn_each_epoch_and_the_patches_at_each_best(
    tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "run.csv"
    watcher = Watcher(plan, log)
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "draw_log", lambda *places, **_: drawn.append(places))
    monkeypatch.setattr(pictures, "draw_patches", lambda *given, **named: drawn.append((*given, named)))
    for epoch, number in ((1, 1), (2, 1), (3, 3)):
        watcher(rows_of(epoch), best(number))
    assert not capsys.readouterr().err
    assert [len(call) for call in drawn] == [2, 4, 2, 2, 4]
    assert drawn[0] == (log, tmp_path / "logs" / "run.png")
    patches, predicted, path, named = drawn[-1]
    assert path == tmp_path / "logs" / "run-patches.png" and "run, epoch 3: iou 0.5000" in named["title"]
    assert named["note"] == ""
    assert len(patches) == 4 and {patch.region for patch in patches} == {"ALP", "HMA"}
    for patch, labels in zip(patches, predicted, strict=True):
        # The model knows the region ALP alone; HMA is encoded as unknown.
        np.testing.assert_array_equal(labels, (patch.inputs["optical"][..., 0] > 0) * (patch.region == "ALP"))


def test_both_pictures_say_that_the_masks_are_weak(
    tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch, weaken: Any
) -> None:
    plan.val.file.close()
    rule = weaken(plan.val.file.path)
    source = replace(plan.val, file=TileFile(plan.val.file.path))
    notes: list[str] = []
    for name in ("draw_log", "draw_patches"):
        monkeypatch.setattr(pictures, name, lambda *_, **named: notes.append(named["note"]))
    plan.val = plan.train = source
    Watcher(plan, tmp_path / "run.csv")(rows_of(1), best(1))
    assert len(notes) == 2 and all(f"weak mask, {rule}" in note for note in notes)


def test_one_sigmoid_is_a_prediction_as_well(tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan.model.predict_on_batch = lambda batch: {"output": (batch["optical"][..., :1] > 0) * 0.2 + 0.4}
    given: list[Any] = []
    monkeypatch.setattr(pictures, "draw_patches", lambda *arguments, **_: given.extend(arguments))
    Watcher(plan, tmp_path / "run.csv")(write_log(tmp_path / "run.csv", 1), best(1))
    for patch, labels in zip(given[0], given[1], strict=True):
        np.testing.assert_array_equal(labels, patch.inputs["optical"][..., 0] > 0)


def test_what_can_not_be_drawn_is_warned_of_once_and_tried_again(
    tmp_path: Path, plan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def write(self, rows: Any) -> None:
            raise RuntimeError("no TensorFlow")

    events: Any = Broken()
    (tmp_path / "logs").write_text("a file where the folder should be")
    watcher = Watcher(plan, tmp_path / "logs" / "run.csv", events)
    for epoch in (1, 2):
        watcher(rows_of(epoch), best(epoch))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3 and all("training goes on" in line for line in warnings)
    for part, warning in zip(("the log's picture", "picture of patches", "TensorBoard"), warnings, strict=True):
        assert warning.startswith("warning: ") and part in warning

    (tmp_path / "logs").unlink()
    watcher(write_log(tmp_path / "logs" / "run.csv", 3), best(3))
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"run.csv", "run.png", "run-patches.png"}


def test_ctrl_c_is_not_swallowed(tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "draw_log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Watcher(plan, tmp_path / "run.csv")(rows_of(1), best(1))


# TensorBoard

tensorflow_only = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow writes the files")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return `run/tag` → (step, value) as stored."""
    import tensorflow as tf

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("*/*"), key=lambda path: path.stat().st_mtime_ns):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                number = float(tf.make_ndarray(value.tensor))
                found.setdefault(f"{path.parent.name}/{value.tag}", []).append((event.step, number))
    return found


@tensorflow_only
def test_scalars_are_the_rows_of_the_log_and_a_resumed_run_appends(tmp_path: Path) -> None:
    folder = tmp_path / "run.tensorboard"
    rows = rows_of(4)
    first = EventLog(folder)
    first.write(rows[:1])
    first.write(rows[:2])
    EventLog(folder).write(rows[:3])
    found = scalars(folder)
    assert sorted(found) == ["train/loss", "val/loss", "val/output_iou_1"]
    for name, column in (("train/loss", "loss"), ("val/loss", "val_loss"), ("val/output_iou_1", "val_output_iou_1")):
        expected = [(row["epoch"], row[column]) for row in rows[:3]]
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)

    # A run that begins anew does not mix with the one before; one that is watched late is written from its start.
    EventLog(folder).write(rows[:1])
    assert [step for step, _ in scalars(folder)["train/loss"]] == [1]
    EventLog(tmp_path / "late").write(rows)
    assert [step for step, _ in scalars(tmp_path / "late")["val/loss"]] == [1, 2, 3, 4]


def test_another_backend_gets_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"writes with TensorFlow, the backend is jax: .*KERAS_BACKEND=tensorflow"):
        EventLog(tmp_path / "run.tensorboard")
    assert not list(tmp_path.iterdir())
