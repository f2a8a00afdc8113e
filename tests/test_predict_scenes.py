"""`predict.py` maps scenes: the rasters are what the model says, the outlines what the rasters are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import keras
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

import architectures
import predict
from console import UserError
from data.normalisation import Statistics, scaled
from data.tiles import IGNORE, TWO_CLASSES
from inference import mapping
from inference.scenes import SCALE, UNSEEN
from inference.sliding import blend
from training.record import Best, ClassRecord, Modality, Record, save_record, weights_path

WriteRaster = Callable[..., Path]
PATCH = 16
OPTIONS = {"width": 4, "steps": 1}
BANDS = {"optical": ("red", "nir", "swir1"), "dem": ("elevation", "slope")}
STATISTICS = Statistics(
    "standardise",
    {"optical": (0.5, 0.4, 0.3), "dem": (4000, 10)},
    {"optical": (0.2, 0.2, 0.2), "dem": (500, 8)},
    "test",
)
PLACE = (30.0, 0.0, 500_000.0, 0.0, -30.0, 3_100_000.0)
RECIPE = """
architecture: {name: unet, options: {width: 4, steps: 1}}
inputs: [optical, dem]
loss: {focal: {gamma: 2.0}}
training: {patch_size: 16, schedule: {name: cosine}}
"""


def build(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = architectures.build("unet", {key: len(names) for key, names in BANDS.items()}, 2, PATCH, **OPTIONS)
    for weight in model.weights:
        weight.assign(weight + keras.random.uniform(weight.shape, -0.1, 0.1))
    return model


def save_run(name: str, seed: int = 1) -> keras.Model:
    model = build(seed)
    weights_path(name).parent.mkdir(exist_ok=True)
    model.save_weights(weights_path(name))
    save_record(
        Record(
            name=name,
            architecture="unet",
            options=OPTIONS,
            modalities=tuple(Modality(name=key, channels=len(names), bands=names) for key, names in BANDS.items()),
            classes=tuple(ClassRecord(name=c.name, glacier=c.glacier, color=c.color) for c in TWO_CLASSES),
            outputs="softmax",
            patch_size=PATCH,
            statistics=STATISTICS.to_json(),
            regions=("HMA",),
            location="none",
            dataset={"name": "small", "folder": "tiles/small", "files": {}},
            recipe={},
            command="python train.py",
            versions={},
            backend=keras.backend.backend(),
            precision="float32",
            seed=0,
            parameters=0,
            best=Best(epoch=1, monitor="iou", score=0.5),
            epochs=1,
            stopped="finished",
            written="2020-01-01T00:00:00+00:00",
        )
    )
    return model


@pytest.fixture
def optical() -> NDArray[np.float32]:
    values = np.random.default_rng(0).random((70, 50, 3), dtype=np.float32)
    values[:9, :20] = np.nan
    return values


@pytest.fixture
def here(
    tmp_path: Path, write_raster: WriteRaster, optical: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with the run `r` and a scene of an optical raster and a DEM."""
    monkeypatch.chdir(tmp_path)
    heights = 4000 + 5 * np.add.outer(np.arange(70), np.arange(50)).astype(np.float32)
    write_raster(tmp_path / "hunza" / "optical.tif", optical, "EPSG:32645", PLACE)
    write_raster(tmp_path / "hunza" / "dem.tif", heights, "EPSG:32645", PLACE)
    return tmp_path


def read(path: str | Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def expected(model: keras.Model, optical: NDArray[np.float32], dem: NDArray[np.float32] | None) -> NDArray[np.float32]:
    inputs = {"optical": scaled(STATISTICS, "optical", optical)}
    inputs["dem"] = np.full((70, 50, 2), np.nan, np.float32) if dem is None else scaled(STATISTICS, "dem", dem)

    def call(batch: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.asarray(model.predict_on_batch(batch)["output"])

    return blend(call, inputs, patch=PATCH, num_outputs=2, stride=PATCH * 3 // 4, batch=4)


def terrain(here: Path) -> NDArray[np.float32]:
    from data.grids import read_grid
    from data.terrain import read_terrain

    path = here / "hunza" / "dem.tif"
    return read_terrain(path, read_grid(path))


def test_a_scene_of_rasters_is_mapped(
    here: Path, optical: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_run("r")
    predict.main(["-n", "r", "hunza/optical.tif", "hunza/dem.tif", "--date", "2019-08-02", "--smallest-km2", "0"])
    folder = here / "predictions" / "r" / "hunza"
    assert sorted(path.name for path in folder.iterdir()) == [
        "confidence.tif",
        "labels.tif",
        "outlines.gpkg",
        "summary.json",
    ]
    probs = expected(model, optical, terrain(here))
    seen = np.isfinite(optical).any(axis=-1)
    labels, confidence = read(folder / "labels.tif"), read(folder / "confidence.tif")
    sure = np.abs(probs[..., 0] - 0.5) > 1e-3  # of windows of other batches, the last digits differ
    np.testing.assert_array_equal(labels[seen & sure], probs.argmax(axis=-1)[seen & sure])
    np.testing.assert_allclose(confidence[seen] * SCALE, probs.max(axis=-1)[seen], atol=1e-3)
    assert (labels[~seen] == IGNORE).all() and (confidence[~seen] == UNSEEN).all()
    outlines = geopandas.read_file(folder / "outlines.gpkg", layer="glacier")
    glacier_km2 = (labels == 1).sum() * 900 / 1e6
    assert outlines["area_km2"].sum() == pytest.approx(glacier_km2, rel=2e-3)
    assert set(outlines["src_date"].astype(str).str[:10]) == {"2019-08-02"}
    assert {"zmin_m", "slope_deg", "confidence_mean"} <= set(outlines.columns)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["layers"][0]["area_km2"] == pytest.approx(glacier_km2, rel=2e-3)
    printed = capsys.readouterr().out
    assert "hunza: 3,500 pixels" in printed and "glacier: " in printed and "predictions/r/hunza/" in printed


def test_outlines_that_were_interrupted_cost_no_second_prediction(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run("r")
    command = ["-n", "r", "hunza/optical.tif", "hunza/dem.tif", "--correlation-length-m", "120"]

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mapping, "write_outlines", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict.main(command)
    folder = here / "predictions" / "r" / "hunza"
    (folder / ".123-456.outlines.gpkg").write_bytes(b"half of a file")
    predict.main(command)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["windows"], summary["correlation_length_m"]) == (0, 120)
    assert {path.name for path in folder.iterdir()} == {"confidence.tif", "labels.tif", "outlines.gpkg", "summary.json"}


def test_flags_and_a_dataset_file_say_the_same(here: Path) -> None:
    save_run("r")
    predict.main(["-n", "r", "--optical", "hunza/optical.tif", "--dem", "hunza/dem.tif", "--scene-name", "flags"])
    (here / "scenes.yaml").write_text(
        "scenes:\n  one: {modalities: {optical: hunza/optical.tif, dem: hunza/dem.tif}}\n"
        "  two: {modalities: {optical: hunza/optical.tif}}\n"
    )
    predict.main(["-n", "r", "scenes.yaml"])
    folder = here / "predictions" / "r"
    assert sorted(path.name for path in folder.iterdir()) == ["flags", "one", "two"]
    np.testing.assert_array_equal(read(folder / "flags" / "labels.tif"), read(folder / "one" / "labels.tif"))
    assert (read(folder / "one" / "confidence.tif") != read(folder / "two" / "confidence.tif")).any()


def test_a_modality_that_the_scene_lacks_is_left_out(
    here: Path, optical: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_run("r")
    predict.main(["-n", "r", "hunza/optical.tif"])
    assert "dem is absent" in capsys.readouterr().err
    confidence = read(here / "predictions" / "r" / "optical" / "confidence.tif")
    seen = np.isfinite(optical).any(axis=-1)
    np.testing.assert_allclose(confidence[seen] * SCALE, expected(model, optical, None).max(axis=-1)[seen], atol=1e-3)


def test_an_ensemble_maps_the_mean(here: Path, optical: NDArray[np.float32]) -> None:
    models = [save_run("a", 1), save_run("b", 2)]
    predict.main(["-n", "a", "b", "hunza/optical.tif", "hunza/dem.tif", "--probs"])
    folder = here / "predictions" / "a+b" / "hunza"
    mean = np.mean([expected(model, optical, terrain(here)) for model in models], axis=0)
    with rasterio.open(folder / "probs.tif") as dataset:
        probs = np.moveaxis(dataset.read(), 0, -1)
        assert dataset.descriptions == ("background", "glacier")
    seen = np.isfinite(optical).any(axis=-1)
    np.testing.assert_allclose(probs[seen] * SCALE, mean[seen], atol=1e-3)


def test_symmetries_are_averaged_over_scenes(here: Path) -> None:
    save_run("r")
    predict.main(["-n", "r", "hunza/optical.tif", "--scene-name", "plain"])
    predict.main(["-n", "r", "hunza/optical.tif", "--scene-name", "turned", "--tta", "rot90", "flip-h"])
    plain, turned = (read(here / "predictions" / "r" / name / "confidence.tif") for name in ("plain", "turned"))
    assert (plain != turned).any()


def test_weights_without_a_record_map_scenes(here: Path, write_raster: WriteRaster) -> None:
    values = np.random.default_rng(1).random((40, 40, 6), dtype=np.float32)
    write_raster(
        here / "six.tif", values, "EPSG:32645", PLACE, descriptions=("blue", "green", "red", "nir", "swir1", "swir2")
    )
    (here / "small.yaml").write_text(RECIPE)
    keras.utils.set_random_seed(1)
    model = architectures.build("unet", {"optical": 6, "dem": 2}, 2, PATCH, **OPTIONS)
    model.save_weights(here / "published.weights.h5")
    predict.main(["-m", "small.yaml", "-w", "published.weights.h5", "--optical", "six.tif", "--dem", "hunza/dem.tif"])
    labels = read(here / "predictions" / "published" / "six" / "labels.tif")
    assert labels.shape == (40, 40) and set(np.unique(labels)) <= {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hunza/none.tif"], r"none\.tif: no such file"),
        (["hunza/optical.tif", "--data", "small"], "--data, --split, --regions and --calibrate are for tiles"),
        (["--set", "tile_size=64"], "--set is for scenes: name rasters"),
        (["--optical", "hunza/dem.tif"], "'r' was trained on red, nir, swir1: "),
        (["--modality", "thermal", "hunza/dem.tif"], "has thermal; 'r' was trained on optical, dem"),
        (["hunza/optical.tif", "--overlap", "1"], "overlap"),
        (["hunza/optical.tif", "--batch-size", "0"], "batch"),
        (["hunza/optical.tif", "--median", "2"], "median"),
        (["hunza/optical.tif", "--tta", "mirror"], "no symmetry mirror"),
    ],
)
def test_what_is_wrong_is_one_message(arguments: list[str], message: str, here: Path) -> None:
    save_run("r")
    with pytest.raises(UserError, match=message):
        predict.main(["-n", "r", *arguments])
    assert not list((here / "predictions").rglob("*.tif"))


def test_scenes_without_a_place_or_cut_off_are_told(here: Path, write_raster: WriteRaster) -> None:
    save_run("r")
    write_raster(here / "lost.tif", np.ones((40, 40, 3), np.float32), None, None)
    with pytest.raises(UserError, match=r"lost\.tif"):
        predict.main(["-n", "r", "--optical", "lost.tif"])
    path = here / "hunza" / "optical.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"optical\.tif"):
        predict.main(["-n", "r", "--optical", "hunza/optical.tif"])
    assert not list((here / "predictions").rglob("*.tif"))


def test_an_exported_model_maps_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    save_run("r")
    folder = here / "predictions" / "r" / "hunza"
    command = ["-n", "r", "hunza/optical.tif", "hunza/dem.tif", "--overlap", "0.5", "--kernel", "cosine"]
    predict.main([*command, "--engine", "keras"])
    confidence = read(folder / "confidence.tif")
    assert json.loads((folder / "summary.json").read_text())["engine"] == ["keras"]
    predict.main([*command, "--engine", "openvino", "--precision", "float32"])
    assert json.loads((folder / "summary.json").read_text())["engine"] == ["openvino float32"]
    assert "r: OpenVINO in float32; on 4 windows" in capsys.readouterr().out
    seen = confidence != UNSEEN
    apart = np.abs(read(folder / "confidence.tif")[seen].astype(float) - confidence[seen])
    assert apart.max() <= 2  # of 10,000
