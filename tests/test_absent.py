"""Modalities that some tiles lack, from tiles through training and prediction to the report and its pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import evaluate
import predict
import train
from console import UserError
from data.normalisation import fit
from data.predictions import PredictionFile, path_of
from data.tiles import TWO_CLASSES, TileFile, TileWriter
from inference.predictor import check_tiles, from_run
from inference.tiles import predict_file
from training.record import load_record

BANDS = {"optical": ["green", "nir", "swir1"], "sar": ["vv", "vh"]}
RECIPE: dict[str, Any] = {
    "architecture": {"name": "mini", "options": {"width": 4}},
    "inputs": ["optical", "sar"],
    "loss": {"focal": {}},
    "augmentation": {"flip_vertical": 0.5, "affine": 0.5, "occlusion": 0.5, "occlusion_size": 8, "noise": 0.5},
    "training": {
        "patch_size": 32,
        "batch_size": 4,
        "epochs": 1,
        "steps_per_epoch": 8,
        "workers": 0,
        "optimiser": {"learning_rate": 1e-2},
        "schedule": {"name": "constant"},
    },
}


def write(path: Path, seed: int, absent: dict[str, str]) -> Path:
    """Write four tiles with a disc of ice, seen by both modalities; `absent`: tile → the modality it lacks."""
    rng = np.random.default_rng(seed)
    tiles = {}
    for number, size in enumerate(((48, 48), (40, 24), (32, 32), (50, 64))):
        rows, columns = np.mgrid[: size[0], : size[1]]
        ice = np.hypot(rows - size[0] * rng.random(), columns - size[1] * rng.random()) < 20
        arrays = {name: rng.normal(5, 1, (*size, len(bands))).astype(np.float32) for name, bands in BANDS.items()}
        arrays["optical"][..., 0] += 3 * ice
        arrays["sar"] -= 3 * ice[..., None]
        valid = np.ones(size, bool)
        valid[:4, :5] = False
        arrays = {name: np.where(valid[..., None], array, np.nan) for name, array in arrays.items()}
        arrays.pop(absent.get(f"t{number}", ""), None)
        tiles[f"t{number}"] = arrays, ice.astype(np.uint8), valid
    statistics = fit((arrays, valid) for arrays, _, valid in tiles.values())
    with TileWriter(path, TWO_CLASSES, BANDS, statistics) as writer:
        for number, (name, tile) in enumerate(tiles.items()):
            writer.add(name, *tile, region=("ALP", "HMA")[number % 2])
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mini: object) -> Path:
    """The current directory, with the recipe `small.yaml` and a folder for the dataset `tiles/gaps`."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("tiles/gaps").mkdir(parents=True)
    return tmp_path


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_tiles_that_lack_a_modality_go_through_all_stages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("tiles/gaps/train.hdf5"), 0, {"t0": "sar", "t1": "sar"})
    write(Path("tiles/gaps/val.hdf5"), 1, {"t0": "optical", "t3": "sar"})
    write(Path("tiles/gaps/test.hdf5"), 2, {"t1": "sar", "t2": "optical"})
    train.main(["-r", "small.yaml", "--dry-run", "--draw-augmentations", "augmentation.png"])
    train.main(["-r", "small.yaml"])
    said = capsys.readouterr().out
    assert "train: sar absent in 2 of 4 tiles" in said
    assert "val: optical absent in 1 of 4 tiles, sar absent in 1 of 4 tiles" in said
    written = {path.name for path in Path("logs").iterdir()}
    assert {"small.csv", "small.png", "small-patches.png", "small-batch.png"} <= written

    predict.main(["-n", "small"])
    assert "optical absent in 1 of 4 tiles, sar absent in 1 of 4 tiles" in capsys.readouterr().out
    predictions = PredictionFile(path_of("small"))
    assert all(np.isfinite(predictions.probs(name)).all() for name in ("t0", "t1", "t2", "t3"))
    evaluate.main(["-n", "small", "--baseline", "--picture"])
    scores = json.loads(Path("reports/small/scores.json").read_text())
    assert scores["settings"]["valid"]["total"]["tiles"] == 4
    assert Path("reports/small/examples.png").is_file()

    other = write(Path("other.hdf5"), 2, dict.fromkeys(("t0", "t1", "t2", "t3"), "sar"))
    with pytest.raises(
        UserError, match=r"(?s)it needs: .*sar \(2 channels\).*the tiles have: optical \(3 channels\)\n"
    ):
        predict.main(["-n", "small", "--data", str(other)])


def test_a_model_trained_with_drop_predicts_tiles_without_a_modality_and_leaves_the_others_alone(place: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        write(Path(f"tiles/gaps/{split}.hdf5"), seed, {})
    train.main(["-r", "small.yaml", "--set", "augmentation.drop=0.5"])
    predictor = from_run(load_record("small"))
    results = []
    for number, absent in enumerate(({}, {"t1": "sar"})):
        source = TileFile(write(Path(f"{number}.hdf5"), 7, absent))
        check_tiles(source, "small", predictor.modalities, TWO_CLASSES)
        predict_file(predictor, source, Path("p.hdf5"), batch=3)  # batches run on from one tile into the next
        file = PredictionFile(Path("p.hdf5"))
        results.append({name: file.probs(name) for name in source.names})
    for name, probs in results[1].items():
        assert np.isfinite(probs).all()
        change = np.abs(probs - results[0][name]).max()
        assert change > 1e-3 if name == "t1" else change < 1e-6, name

    # Whatever the weights of the branch of the absent one are.
    fusion = predictor.model.get_layer("fusion")
    for weight in fusion.branches[1].weights:
        weight.assign(weight * 3 + 1)
    predict_file(predictor, source, Path("p.hdf5"), batch=3)
    np.testing.assert_array_equal(PredictionFile(Path("p.hdf5")).probs("t1"), results[1]["t1"])
    assert np.abs(PredictionFile(Path("p.hdf5")).probs("t0") - results[1]["t0"]).max() > 1e-3


def test_a_tile_of_which_nothing_is_left_is_refused(place: Path) -> None:
    for split in ("train", "val"):
        write(Path(f"tiles/gaps/{split}.hdf5"), 0, {"t0": "sar"})
    with pytest.raises(UserError, match=r"tile 't0': no modality of `sar`, it has `optical`"):
        train.main(["-r", "small.yaml", "--set", "inputs=[sar]"])
