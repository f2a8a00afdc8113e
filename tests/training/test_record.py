"""The run's record: written whole, read back equal, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import pytest
from pydantic import ValidationError

from console import UserError
from data.normalisation import Statistics
from data.tiles import TWO_CLASSES, TileFile, find_dataset
from training.record import (
    Record,
    describe_dataset,
    load_record,
    package_versions,
    record_path,
    run_names,
    save_record,
    weights_path,
)

STATISTICS = Statistics("standardise", {"sar": (1.0,), "dem": (2.0,)}, {"sar": (3.0,), "dem": (4.0,)}, "a test")


def record(**changes: Any) -> Record:
    content: dict[str, Any] = {
        "name": "mine",
        "architecture": "glavitu",
        "options": {"width": 16, "variant": "2025"},
        "modalities": [{"name": "sar", "channels": 1, "bands": ["vv"]}, {"name": "dem", "channels": 1, "bands": ["z"]}],
        "classes": [{"name": c.name, "glacier": c.glacier, "color": c.color} for c in TWO_CLASSES],
        "outputs": "softmax",
        "patch_size": 64,
        "statistics": STATISTICS.to_json(),
        "regions": ["ALP", "HMA"],
        "location": "region",
        "dataset": {"name": "synthetic"},
        "recipe": {"name": "glavitu"},
        "command": "python train.py -m glavitu",
        "versions": package_versions(),
        "backend": "tensorflow",
        "precision": "float32",
        "seed": 3,
        "parameters": 12,
        "best": {"epoch": 2, "monitor": "iou", "score": 0.5},
        "epochs": 4,
        "stopped": "finished",
        "written": "2026-01-02T03:04:05+00:00",
    }
    return Record.model_validate(content | changes)


def save(record: Record, root: Path) -> None:
    save_record(record, root)
    weights_path(record.name, root).touch()


def test_a_record_is_read_back_equal(tmp_path: Path) -> None:
    save(record(), tmp_path)
    again = load_record("mine", tmp_path)
    assert again == record()
    assert list(again.inputs.items()) == [("sar", 1), ("dem", 1)]  # the model's order, not the alphabet's
    assert again.class_list == TWO_CLASSES
    assert again.scaling() == STATISTICS
    assert again.num_outputs == 2 and record(outputs="sigmoid").num_outputs == 1
    assert record(statistics=None).scaling() is None
    assert [path.name for path in tmp_path.glob("*.json")] == ["mine.json"]
    assert (record_path("mine", tmp_path), weights_path("mine", tmp_path)) == (
        tmp_path / "mine.json",
        tmp_path / "mine.weights.h5",
    )


def test_an_undefined_score_is_null(tmp_path: Path) -> None:
    save(record(best={"epoch": 1, "monitor": "iou", "score": None}), tmp_path)
    assert json.loads((tmp_path / "mine.json").read_text())["best"]["score"] is None


def test_an_unknown_run_is_answered_with_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run named 'x'.*holds no run.*train.py"):
        load_record("x", tmp_path)
    save(record(name="a"), tmp_path)
    save(record(name="b"), tmp_path)
    save_record(record(name="half"), tmp_path)
    assert run_names(tmp_path) == ["a", "b"]
    for name in ("x", "half"):
        with pytest.raises(UserError, match=f"no run named '{name}'.* a, b$"):
            load_record(name, tmp_path)


@pytest.mark.parametrize("content", [b"{", b'{"name": "mine"}', b"\xff", b"[]"])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    save(record(), tmp_path)
    record_path("mine", tmp_path).write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.json is no record of a run"):
        load_record("mine", tmp_path)


@pytest.mark.parametrize("wrong", [{"outputs": "linear"}, {"stopped": "maybe"}, {"colour": 1}, {"seed": "three"}])
def test_a_record_is_validated(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        record(**wrong)


def test_versions_name_what_computes() -> None:
    versions = package_versions()
    assert {"python", "keras", "numpy", "h5py"} <= set(versions) and versions["keras"] == keras.__version__


def test_the_dataset_is_described_with_size_time_and_digest(tmp_path: Path, write_tiles: Any) -> None:
    (tmp_path / "set").mkdir()
    path = write_tiles(tmp_path / "set" / "train.hdf5")
    described = describe_dataset(find_dataset(tmp_path / "set"), ["train"])
    assert described["name"] == "set" and described["folder"] == str(tmp_path / "set")
    assert set(described["files"]) == {"train"}
    assert described["files"]["train"]["digest"] == TileFile(path).digest
    assert described["files"]["train"]["size"] == path.stat().st_size
    assert described["files"]["train"]["modified"].endswith("+00:00")
