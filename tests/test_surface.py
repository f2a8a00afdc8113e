"""Bands by name, four surface classes and cleaned labels, from tiles through training and prediction to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.colors import to_rgb
from skimage.io import imread

import evaluate
import predict
import train
from console import UserError
from data.normalisation import Statistics
from data.predictions import PredictionFile, label, path_of
from data.tiles import TileWriter
from inference.cleaning import remove_small
from training.recipe import load_recipe
from training.record import load_record

BANDS = ["blue", "green", "red", "nir", "swir1"]
COLORS = ("#102030", "#9fd8fe", "#8a5a32", "#1f4e9d")  # told apart from all others in the pictures
NAMES = ("background", "clean ice", "debris-covered ice", "water")
RECIPE: dict[str, Any] = {
    "architecture": {"name": "unet", "options": {"width": 4, "steps": 1, "dropout": 0.0}},
    "inputs": ["optical"],
    "bands": {"optical": ["nir", "red", "green"]},
    "classes": [
        {"name": name, "glacier": "ice" in name, "color": color} for name, color in zip(NAMES, COLORS, strict=True)
    ],
    "loss": {"cross_entropy": {}, "dice": {}},
    "class_weights": "balanced",
    "sampling": {"centred": {"water": 0.3}},
    "cleaning": {"smallest_px": 9},
    "training": {
        "patch_size": 32,
        "batch_size": 4,
        "epochs": 2,
        "steps_per_epoch": 30,
        "workers": 0,
        "optimiser": {"learning_rate": 1e-2},
        "schedule": {"name": "cosine"},
        "monitor": "multiclass_mcc",
    },
}


def write_surfaces(path: Path, seed: int, bands: list[str] = BANDS, listed: bool = False) -> Path:
    """Write tiles of four stripes, a class each, with a band of its own level for each class; without a class list."""
    rng = np.random.default_rng(seed)
    levels = np.array([[0, 0, 0, 0], [9, 9, 9, 9], [0, 3, 0, 0], [0, 3, 3, 0], [5, 5, 5, 5]], np.float32)
    places = [BANDS.index(name) if name in BANDS else 0 for name in bands]
    statistics = Statistics("standardise", {"optical": (0.0,) * len(bands)}, {"optical": (1.0,) * len(bands)}, "none")
    classes = load_recipe("unet-surface").class_list
    assert classes is not None
    with TileWriter(path, classes, {"optical": bands}, statistics) as writer:
        for number, region in enumerate(("ALP", "HMA")):
            mask = np.repeat(np.arange(4, dtype=np.uint8), 10)[None].repeat(36, axis=0)
            mask = np.roll(mask, int(rng.integers(40)), axis=1)
            optical = levels[:, mask].transpose(1, 2, 0) + rng.normal(0, 1, (36, 40, 5)).astype(np.float32)
            writer.add(f"t{number}", {"optical": optical[..., places]}, mask, np.ones(mask.shape, bool), region)
    if not listed:
        with h5py.File(path, "r+") as file:
            del file.attrs["classes"]
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the recipe `small.yaml` and the dataset `tiles/stripes`."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("tiles/stripes").mkdir(parents=True)
    for seed, split in enumerate(("train", "val", "test")):
        write_surfaces(Path(f"tiles/stripes/{split}.hdf5"), seed)
    return tmp_path


def test_surfaces_go_from_the_recipe_through_all_stages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["-r", "small.yaml"])
    record = load_record("small")
    assert [(c.name, c.glacier, c.color) for c in record.classes] == [
        (name, "ice" in name, color) for name, color in zip(NAMES, COLORS, strict=True)
    ]
    assert record.inputs == {"optical": 3} and record.modalities[0].bands == ("nir", "red", "green")
    assert "patches centred: 30.0% on water" in capsys.readouterr().out
    assert {f"val_output_iou_{k}" for k in range(4)} < set(pd.read_csv("logs/small.csv").columns)

    predict.main(["-n", "small"])
    predictions = PredictionFile(path_of("small"))
    assert [info.color for info in predictions.classes] == list(COLORS)
    assert predictions.attributes["smallest_px"] == "9"
    for name in ("t0", "t1"):
        raw = label(predictions.probs(name))
        np.testing.assert_array_equal(predictions.read(name).labels, remove_small(raw, 9))

    evaluate.main(["-n", "small", "--picture"])
    printed = capsys.readouterr().out
    regions = pd.read_csv("reports/small/regions.csv")
    by_class = [f"iou_{name}" for name in NAMES]
    assert set(by_class) < set(regions.columns) and all(f"IoU {name}" in printed for name in NAMES)
    assert (regions[by_class] > 0).all(axis=None), "the network has not learned what it is shown"
    assert json.loads(Path("reports/small/scores.json").read_text())["glacier_classes"] == list(NAMES[1:3])
    for picture in ("logs/small-patches.png", "reports/small/examples.png"):
        pixels = {tuple(int(v) for v in pixel) for pixel in imread(picture)[..., :3].reshape(-1, 3)}
        drawn = {color: tuple(round(255 * v) for v in to_rgb(color)) in pixels for color in COLORS}
        assert all(drawn.values()), (picture, drawn)

    # The bands that the run reads are found by name, wherever they stand; tiles without them are refused.
    write_surfaces(Path("other.hdf5"), 2, ["red", "swir1", "nir", "green"], listed=True)
    predict.main(["-n", "small", "--data", "other.hdf5"])
    for name in ("t0", "t1"):
        np.testing.assert_array_equal(PredictionFile(path_of("small")).probs(name), predictions.probs(name))
    write_surfaces(Path("lacking.hdf5"), 2, ["red", "swir1", "blue", "green"])
    with pytest.raises(UserError, match="`optical` has no band `nir`; its bands are `red`, `swir1`, `blue`, `green`"):
        predict.main(["-n", "small", "--data", "lacking.hdf5"])


def test_a_recipe_for_other_tiles_is_refused_with_one_message(place: Path) -> None:
    for changes, message in (
        (["bands={optical: 18}"], r"`optical` has 5 bands \(blue, green, red, nir, swir1\), 18 are needed"),
        (["bands={optical: [nir, thermal]}"], r"`optical` has no band `thermal`; its bands are `blue`, `green`"),
        (["bands={dem: 2}"], r"bands are given of dem, inputs are optical"),
    ):
        with pytest.raises(UserError, match=message):
            train.main(["-r", "small.yaml", *(part for change in changes for part in ("--set", change))])
    assert not list(Path().glob("weights/*")) and not list(Path().glob("logs/*"))


def test_a_source_that_started_from_imagenet_is_told_of(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["-r", "small.yaml", "--dry-run"])
    assert "ImageNet" not in capsys.readouterr().out
    train.main(["-r", "small.yaml", "--dry-run", "--set", "encoder_weights=imagenet"])
    assert "--encoder-weights FILE" in capsys.readouterr().out
