"""What --dry-run says and shows is what training will do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.tiles import find_dataset
from training import pictures, preview
from training.memory import training_memory
from training.recipe import parse_recipe
from training.run import Plan
from training.run import plan as plan_run

SMALL = {"variant": "2025", "width": 4, "mlp": 4, "depth": 1, "heads": 2, "steps": 1}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function of a folder's tiles that plans a small GlaViTU once."""
    plans: dict[str, Plan] = {}

    def make(write_tiles: Any) -> Plan:
        if not plans:
            folder = tmp_path_factory.mktemp("tiles") / "mine"
            folder.mkdir()
            for split in ("train", "val"):
                write_tiles(folder / f"{split}.hdf5", regions=("HMA", "ALP", "SC"), size=(24, 20))
            content = {
                "name": "small",
                "architecture": {"name": "glavitu", "options": SMALL},
                "inputs": ["optical", "dem"],
                "location": "region",
                "loss": {"focal": {}},
                "augmentation": {"flip_vertical": 0.5, "rotate": 0.75, "crop": 0.5},
                "training": {"patch_size": 16, "batch_size": 5, "schedule": {"name": "plateau"}},
            }
            plans["one"] = plan_run(parse_recipe(content, "the test"), find_dataset(folder), seed=3)
        return plans["one"]

    return make


def cells(table: str) -> dict[str, list[str]]:
    """Return first cell → the other cells, of a table whose cells are two spaces apart or more."""
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_the_parameter_table_adds_up(plan: Any, write_tiles: Any) -> None:
    model = plan(write_tiles).model
    table = cells(preview.parameter_table(model))
    assert table["optical"] == ["input", "16×16×6"] and table["location"] == ["input", "4"]
    assert table["resunet"][:2] == ["network", "16×16×4"] and table["fusion"][0] == "Fusion"
    blocks = [row for name, row in table.items() if len(row) == 5 and name != "block"]
    numbers = np.array([[int(cell.replace(",", "")) for cell in row[2:]] for row in blocks])
    total = [int(cell.replace(",", "")) for cell in table["total"]]
    assert total == [model.count_params(), *numbers.sum(axis=0)[1:]] and numbers.sum(axis=0)[0] == total[0]
    assert total[0] == total[1] + total[2] and total[2] > 0

    resunet = model.get_layer("resunet")
    resunet.trainable = False
    try:
        frozen = cells(preview.parameter_table(model))
    finally:
        resunet.trainable = True
    assert frozen["resunet"][3:] == ["0", f"{resunet.count_params():,}"]


def test_the_memory_table_adds_up_to_the_estimate(plan: Any, write_tiles: Any) -> None:
    planned = plan(write_tiles)
    table = cells(preview.memory_table(planned))
    assert table["activations"][0] == "5 patches, float32" and table["optimiser"][0] == "adam"
    assert planned.memory == training_memory(planned.model, 5, "float32")
    assert table["sum"] == [f"{planned.memory / 2**20:,.0f}"]
    parts = [float(table[part][-1].replace(",", "")) for part in preview.memory_parts(planned.model, 5, "float32")]
    assert sum(parts) == pytest.approx(planned.memory / 2**20, abs=3)


def test_the_batch_that_is_drawn_is_the_first_that_is_trained_on(
    plan: Any, write_tiles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(write_tiles)
    given: list[Any] = []
    monkeypatch.setattr(pictures, "draw_batch", lambda *arguments, **_: given.extend(arguments))
    preview.draw_first_batch(planned, tmp_path / "batch.png")
    patches, path = given
    assert path == tmp_path / "batch.png" and len(patches) == 5
    inputs, labels = planned.training_patches(0)[0]
    for index, patch in enumerate(patches):
        assert list(patch.inputs) == ["optical", "dem"]
        for modality, x in patch.inputs.items():
            np.testing.assert_array_equal(x, inputs[modality][index])
        np.testing.assert_array_equal(patch.labels, labels["output"][index])
        # The tile that is named is the one whose values are in the patch, wherever the augmentation moved them.
        region = planned.train.file.info(patch.tile).region
        assert region == patch.region
        whole = planned.train.file.read(patch.tile, ["dem"])["dem"]
        scaled = planned.train.statistics.apply("dem", whole)
        assert patch.inputs["dem"].min() >= scaled.min() and patch.inputs["dem"].max() <= scaled.max()
