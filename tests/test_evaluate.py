"""`evaluate.py` from the command line: the report, the baseline, the picture, and what can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import evaluate
from console import UserError
from data.normalisation import Statistics
from data.predictions import PredictionFile, PredictionWriter, path_of
from data.tiles import TWO_CLASSES, TileFile, TileWriter
from evaluation.scores import IGNORE, confusion_matrix, counts

WriteTiles = Callable[..., Path]
BANDS = ["green", "red", "nir", "swir1"]
SIZE = (40, 48)


def write_split(path: Path, regions: list[str], seed: int) -> None:
    """Tiles on which ice is dark in SWIR1; the last region has no glacier; a corner is invalid."""
    random = np.random.default_rng(seed)
    statistics = Statistics("minmax", {"optical": (0.0,) * 4}, {"optical": (1.0,) * 4}, "nothing")
    with TileWriter(path, TWO_CLASSES, {"optical": BANDS}, statistics) as writer:
        for index, region in enumerate(regions):
            ice = np.zeros(SIZE, bool)
            ice[5:30, 4 + 3 * index : 30] = region != "LL"
            optical = random.uniform(0.3, 0.6, (*SIZE, 4)).astype(np.float32)
            optical[..., 3] = np.where(ice, 0.2, 0.45) + random.normal(0, 0.1, SIZE)
            valid = np.ones(SIZE, bool)
            valid[-8:] = False
            mask = ice.astype(np.uint8)
            mask[10, 10:14] = IGNORE
            writer.add(f"t{index}", {"optical": optical}, mask, valid, region)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The dataset `small`, and predictions of its test tiles by `r`, wrong at one pixel of ten."""
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(("train", "test")):
        write_split(Path(f"tiles/small/{split}.hdf5"), ["HMA", "ALP", "HMA", "LL"], seed)
    source = TileFile("tiles/small/test.hdf5")
    random = np.random.default_rng(9)
    with PredictionWriter(path_of("r"), TWO_CLASSES, {"run": "r", "source": str(source.path)}) as writer:
        for name in source.names:
            wrong = random.random(SIZE) < 0.1
            glacier = ((source.mask(name) == 1) ^ wrong).astype(np.float32) * 0.8 + 0.1
            writer.add(source.info(name), np.stack([1 - glacier, glacier], -1), source.mask(name), source.valid(name))
    return tmp_path


def pooled_iou(names: list[str], everywhere: bool = False) -> float:
    file = PredictionFile(path_of("r"))
    matrix = np.zeros((2, 2), np.int64)
    for name in names:
        tile = file.read(name)
        if everywhere:
            matrix += confusion_matrix(tile.mask, tile.labels * tile.valid, 2)
        else:
            matrix += confusion_matrix(np.where(tile.valid, tile.mask, IGNORE), tile.labels, 2)
    return counts(matrix, {1}).iou


def test_the_report_has_regions_tiles_and_scores(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["-n", "r"])
    regions = pd.read_csv("reports/r/regions.csv").set_index("region")
    assert list(regions.index) == ["ALP", "HMA", "LL"]
    assert regions.loc["HMA", "iou"] == pytest.approx(pooled_iou(["t0", "t2"]))
    assert regions["iou"].isna()["LL"] and regions.loc["HMA", "tiles"] == 2
    assert list(pd.read_csv("reports/r/tiles.csv")["tile"]) == ["t0", "t1", "t2", "t3"]
    scores = json.loads(Path("reports/r/scores.json").read_text())
    expected = [pooled_iou(["t1"]), pooled_iou(["t0", "t2"])]
    assert scores["settings"]["valid"]["mean_iou"] == pytest.approx(np.mean(expected))
    assert scores["settings"]["valid"]["std_iou"] == pytest.approx(np.std(expected))
    assert scores["settings"]["all"]["total"]["iou"] == pytest.approx(
        pooled_iou(["t0", "t1", "t2", "t3"], everywhere=True)
    )
    printed = capsys.readouterr().out
    assert f"mean IoU {np.mean(expected):.3f} ± {np.std(expected):.3f} over 2 regions" in printed
    assert "total" in printed and "reports/r/" in printed
    confidence = json.loads(Path("reports/r/calibration.json").read_text())
    assert confidence["calibration"] is None and "calibrated" not in confidence
    assert confidence["model"]["total"]["ece"] == pytest.approx(0.0, abs=0.02)  # said with 0.9, right 9 times of 10
    assert "not calibrated" in printed and Path("reports/r/reliability.png").is_file()


def test_all_pixels_counts_invalid_ones_as_background(workspace: Path) -> None:
    evaluate.main(["-n", "r", "--all-pixels", "--regions", "HMA"])
    regions = pd.read_csv("reports/r/regions.csv").set_index("region")
    assert list(regions.index) == ["HMA"] and set(regions["setting"]) == {"all"}
    assert regions.loc["HMA", "iou"] == pytest.approx(pooled_iou(["t0", "t2"], everywhere=True))
    assert regions.loc["HMA", "pixels"] == 2 * (40 * 48 - 4)


def test_the_baseline_and_the_picture_stand_beside_the_model(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(["-n", "r", "--baseline", "--data", "small", "--picture"])
    baseline = json.loads(Path("reports/r/scores.json").read_text())["baseline"]
    assert "swir1" in baseline["rule"] and baseline["fitted_on"] == "tiles/small/train.hdf5"
    assert 0.3 < baseline["settings"]["valid"]["mean_iou"] < 0.95
    printed = capsys.readouterr().out
    assert f"{baseline['settings']['valid']['total']['iou']:.3f}" in printed
    assert Path("reports/r/examples.png").stat().st_size > 10_000


def test_every_part_of_the_report_says_that_a_reference_is_weak(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(["-n", "r"])
    assert "weak" not in capsys.readouterr().out
    assert "reference" not in pd.read_csv("reports/r/regions.csv")
    assert "reference" not in json.loads(Path("reports/r/scores.json").read_text())
    note = "reference: weak mask, ndsi > 0.4 — scores measure agreement with that rule, not with outlines"
    with h5py.File(path_of("r"), "a") as file:
        file.attrs["mask_note"] = note
    evaluate.main(["-n", "r"])
    assert note in capsys.readouterr().out
    assert json.loads(Path("reports/r/scores.json").read_text())["reference"] == note
    for table in ("regions", "tiles"):
        assert set(pd.read_csv(f"reports/r/{table}.csv")["reference"]) == {note}


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        evaluate.main(list(arguments))
    assert not Path("reports").exists()
    return str(caught.value)


def test_wrong_input_is_answered_with_what_to_do(workspace: Path) -> None:
    assert "its regions are ALP, HMA, LL" in refused("-n", "r", "--regions", "ALPS")
    assert "--baseline" in refused("-n", "r", "--data", "small")
    assert "--data DATASET" in refused("-n", "r", "--baseline")
    message = refused("-n", "unknown")
    assert "no run named 'unknown'" in message and "predictions of r" in message
    Path("tiles/small/train.hdf5").unlink()
    assert "no train split" in refused("-n", "r", "--baseline", "--data", "small")
    content = path_of("r").read_bytes()
    path_of("r").write_bytes(content[:5000])
    assert "python predict.py -n r" in refused("-n", "r")


def test_what_is_missing_is_said_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "python prepare.py synthetic" in refused("-n", "glavitu")
    write_split(Path("tiles/small/train.hdf5"), ["HMA"], 0)
    assert "python train.py -m glavitu" in refused("-n", "glavitu")
    monkeypatch.setattr("inference.predictor.find_run", lambda name: None)
    assert "python predict.py -n glavitu" in refused("-n", "glavitu")
