"""A tile file goes through a model: inputs in order and scaled, regions, classes, errors before the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from console import UserError
from data.location import Coordinates, Regions
from data.normalisation import Statistics, published
from data.predictions import PredictionFile
from data.tiles import TWO_CLASSES, ClassInfo, TileFile
from inference.predictor import PUBLISHED_REGIONS, Predictor, check_tiles
from inference.tiles import predict_file

WriteTiles = Callable[..., Path]
PATCH = 16


def linear_model(modalities: dict[str, int], weight: dict[str, float], outputs: int = 2) -> keras.Model:
    """A pixel's glacier score is a weighted sum of the first channels of its modalities."""
    inputs = {name: keras.Input((PATCH, PATCH, count), name=name) for name, count in modalities.items()}
    score = keras.layers.Add()(
        [keras.layers.Lambda(lambda x, w=weight[name]: x[..., :1] * w)(x) for name, x in inputs.items()]
    )
    score = keras.layers.Activation("sigmoid")(score)
    if outputs == 2:
        score = keras.layers.Concatenate()([1 - score, score])
    return keras.Model(inputs, {"output": score})


def predictor(model: keras.Model, modalities: dict[str, int], **changes: Any) -> Predictor:
    return Predictor("r", model, modalities, TWO_CLASSES, None, PATCH, **changes)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def as_published(path: Path) -> Path:
    """Make a file of ours look like a published one."""
    with h5py.File(path, "a") as file:
        for key in list(file.attrs):
            del file.attrs[key]
        for tile in file.values():
            for key in ("optical", "dem", "sar"):
                if key in tile:
                    tile[key][...] = np.nan_to_num(tile[key][...])
    return path


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_pixelwise_model_is_reproduced_pixel_by_pixel(
    tmp_path: Path, write_published_2023: WriteTiles, outputs: int
) -> None:
    source = TileFile(write_published_2023(tmp_path / "t.hdf5"))
    modalities = {"optical": 6, "dem": 2, "sar": 2}
    weight = {"optical": 3.0, "dem": -2.0, "sar": -1.0}
    model = predictor(linear_model(modalities, weight, outputs), modalities)
    check_tiles(source, "r", modalities, TWO_CLASSES)
    predict_file(model, source, tmp_path / "p.hdf5")
    result = PredictionFile(tmp_path / "p.hdf5")
    assert result.region_by_tile == {"HMA-1-2": "HMA", "SC2-59-84": "SC"}
    for name in source.names:
        inside = source.info(name).interior()
        raw = source.read(name, list(modalities))
        expected = sigmoid(sum(weight[key] * raw[key][..., 0] for key in modalities))[inside]
        probs = result.probs(name)
        assert probs.shape == (*expected.shape, outputs)
        np.testing.assert_allclose(probs[..., -1], expected, atol=1e-5)
        tile = result.read(name)
        np.testing.assert_array_equal(tile.mask, source.mask(name)[inside])
        np.testing.assert_array_equal(tile.labels, probs[..., -1] > 0.5)
    assert result.attributes["source"] == str(source.path)
    assert result.attributes["source_digest"] == source.digest
    assert result.attributes["statistics"] == "null"


def test_dem_and_sar_are_not_mixed_up(tmp_path: Path, write_published_2023: WriteTiles) -> None:
    source = TileFile(write_published_2023(tmp_path / "t.hdf5"))
    weight = {"optical": 3.0, "dem": -2.0, "sar": -1.0}
    results = []
    for modalities in ({"optical": 6, "dem": 2, "sar": 2}, {"sar": 2, "dem": 2, "optical": 6}):
        predict_file(predictor(linear_model(modalities, weight), modalities), source, tmp_path / "p.hdf5")
        results.append(PredictionFile(tmp_path / "p.hdf5").probs("SC2-59-84"))
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
    swapped = {"optical": 3.0, "dem": -1.0, "sar": -2.0}
    modalities = {"optical": 6, "dem": 2, "sar": 2}
    predict_file(predictor(linear_model(modalities, swapped), modalities), source, tmp_path / "p.hdf5")
    assert np.abs(PredictionFile(tmp_path / "p.hdf5").probs("SC2-59-84") - results[0]).max() > 0.1


def test_values_are_scaled_with_the_statistics_of_the_run(tmp_path: Path, write_tiles: WriteTiles) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5"))
    modalities = {"optical": 6}
    own = Statistics("standardise", {"optical": (0.5,) * 6}, {"optical": (0.25,) * 6}, "elsewhere")
    model = dataclasses.replace(predictor(linear_model(modalities, {"optical": 1.0}), modalities), statistics=own)
    predict_file(model, source, tmp_path / "p.hdf5")
    raw = source.read("t0", ["optical"])["optical"][..., 0]
    expected = sigmoid(np.nan_to_num((raw - 0.5) / 0.25))
    np.testing.assert_allclose(PredictionFile(tmp_path / "p.hdf5").probs("t0")[..., 1], expected, atol=1e-5)


def test_published_weights_see_our_values_as_published_ones(
    tmp_path: Path, write_tiles: WriteTiles, capsys: pytest.CaptureFixture[str]
) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5", modalities={"optical": 6, "sar": 2}))
    modalities = {"optical": 6, "sar": 2}
    model = predictor(linear_model(modalities, {"optical": 1.0, "sar": 1.0}), modalities)
    scaling = model.scaling(source)
    assert scaling is not None and source.statistics is not None
    assert scaling.shift["optical"] == published().shift["optical"]
    assert scaling.scale["optical"] == published().scale["optical"]
    assert scaling.shift["sar"] == source.statistics.shift["sar"]
    assert "warning: sar: how the published data were scaled is not known" in capsys.readouterr().err
    optical_only = predictor(linear_model({"optical": 6}, {"optical": 1.0}), {"optical": 6})
    optical_only.scaling(source)
    assert capsys.readouterr().err == ""


def test_a_run_of_ours_refuses_values_that_are_scaled_already(tmp_path: Path, write_tiles: WriteTiles) -> None:
    ours = write_tiles(tmp_path / "t.hdf5")
    statistics = TileFile(ours).statistics
    model = dataclasses.replace(
        predictor(linear_model({"optical": 6}, {"optical": 1.0}), {"optical": 6}), statistics=statistics
    )
    assert statistics is not None
    assert model.scaling(TileFile(ours)) == statistics
    applied = write_tiles(tmp_path / "u.hdf5", statistics=dataclasses.replace(statistics, applied=True))
    with pytest.raises(UserError, match="not scaled as those"):
        model.scaling(TileFile(applied))
    trained_on_applied = dataclasses.replace(model, statistics=TileFile(applied).statistics)
    assert trained_on_applied.scaling(TileFile(applied)) == TileFile(applied).statistics
    with pytest.raises(UserError, match="scaled already"):
        model.scaling(TileFile(as_published(ours)))


def test_the_location_input_is_the_region_or_unknown(tmp_path: Path, write_tiles: WriteTiles) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5", regions=("HMA", "NOWHERE")))
    optical = keras.Input((PATCH, PATCH, 6), name="optical")
    location = keras.Input((3,), name="location")
    spread = keras.layers.Reshape((1, 1, 3))(location)
    output = keras.layers.Lambda(lambda x: x[0] + 0 * x[1][..., :3])([spread, optical])
    model = keras.Model({"optical": optical, "location": location}, {"output": output})
    three = tuple(ClassInfo(name, name != "a") for name in "abc")
    run = Predictor("r", model, {"optical": 6}, three, None, PATCH, location=Regions(("ALP", "HMA")))
    predict_file(run, source, tmp_path / "p.hdf5", batch=3)
    result = PredictionFile(tmp_path / "p.hdf5")
    np.testing.assert_allclose(result.probs("t0"), np.tile([0.0, 1.0, 0.0], (32, 40, 1)), atol=1e-6)
    np.testing.assert_allclose(result.probs("t1"), np.tile([0.0, 0.0, 1.0], (32, 40, 1)), atol=1e-6)
    assert list(PUBLISHED_REGIONS) == sorted(PUBLISHED_REGIONS) and len(PUBLISHED_REGIONS) == 11


def test_the_location_input_is_the_centre_of_the_tile(tmp_path: Path, write_tiles: WriteTiles) -> None:
    path = write_tiles(tmp_path / "t.hdf5")
    optical = keras.Input((PATCH, PATCH, 6), name="optical")
    location = keras.Input((4,), name="location")
    north = keras.layers.Reshape((1, 1, 1))(keras.layers.Lambda(lambda x: x[:, :1])(location))
    output = keras.layers.Lambda(lambda x: x[0] + 0 * x[1][..., :1])([north, optical])
    model = keras.Model({"optical": optical, "location": location}, {"output": output})
    run = Predictor("r", model, {"optical": 6}, TWO_CLASSES, None, PATCH, location=Coordinates())
    with h5py.File(path, "a") as file:
        file["t0"].attrs.update({"xmin": 7.0, "xmax": 8.0, "ymin": 46.0, "ymax": 48.0})
    with pytest.raises(UserError, match=r"tile 't1': where it lies is not known.*crs and transform.*xmin"):
        predict_file(run, TileFile(path), tmp_path / "p.hdf5", batch=3)
    with h5py.File(path, "a") as file:
        file["t1"].attrs.update({"crs": "EPSG:32632", "transform": [10.0, 0, 5e5, 0, -10, 0.0]})
    predict_file(run, TileFile(path), tmp_path / "p.hdf5", batch=3)
    result = PredictionFile(tmp_path / "p.hdf5")
    np.testing.assert_allclose(result.probs("t0"), np.sin(np.radians(47)), atol=1e-6)
    np.testing.assert_allclose(result.probs("t1"), 0, atol=1e-4)  # 160 m south of the equator


def test_tiles_that_do_not_fit_are_refused_with_what_both_have(tmp_path: Path, write_tiles: WriteTiles) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5"))
    with pytest.raises(UserError) as caught:
        check_tiles(source, "r", {"optical": 5, "thermal": 1}, TWO_CLASSES)
    message = str(caught.value)
    assert "optical (5 channels), thermal (1 channel)" in message
    assert "dem (2 channels), optical (6 channels)" in message
    classes = (*TWO_CLASSES, ClassInfo("water"))
    other = TileFile(write_tiles(tmp_path / "u.hdf5", classes=classes))
    check_tiles(source, "r", {"optical": 6}, TWO_CLASSES)
    with pytest.raises(UserError, match=r"its classes are background, glacier \(glacier\), water"):
        check_tiles(other, "r", {"optical": 6}, TWO_CLASSES)


def test_damaged_tiles_are_all_named_before_the_work(tmp_path: Path, write_tiles: WriteTiles) -> None:
    path = write_tiles(tmp_path / "t.hdf5", regions=("A", "B", "C"))
    with h5py.File(path, "a") as file:
        file["t0/optical"][...] = np.nan
        file["t1/mask"][0, 0] = 7
    with pytest.raises(UserError, match=r"(?s)'t0'.*NaN.*'t1'.*class 7"):
        check_tiles(TileFile(path), "r", {"optical": 6}, TWO_CLASSES)


def test_a_model_that_returns_no_numbers_leaves_no_file(tmp_path: Path, write_tiles: WriteTiles) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5"))
    model = predictor(linear_model({"optical": 6}, {"optical": float("nan")}), {"optical": 6})
    with pytest.raises(UserError, match="not numbers"):
        predict_file(model, source, tmp_path / "out" / "p.hdf5")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"overlap": 1.0}, "overlap"), ({"overlap": -0.1}, "overlap"), ({"batch": 0}, "batch")],
)
def test_impossible_values_are_refused(
    tmp_path: Path, write_tiles: WriteTiles, options: dict[str, Any], message: str
) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5"))
    model = predictor(linear_model({"optical": 6}, {"optical": 1.0}), {"optical": 6})
    with pytest.raises(UserError, match=message):
        predict_file(model, source, tmp_path / "p.hdf5", **options)


def test_predictions_say_that_their_reference_is_weak(
    tmp_path: Path, write_tiles: WriteTiles, weaken: Callable[..., str]
) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5"))
    model = predictor(linear_model({"optical": 6}, {"optical": 1.0}), {"optical": 6})
    predict_file(model, source, tmp_path / "p.hdf5")
    assert PredictionFile(tmp_path / "p.hdf5").mask_note == ""
    source.close()
    rule = weaken(source.path)
    weak = TileFile(source.path)
    predict_file(model, weak, tmp_path / "p.hdf5")
    note = PredictionFile(tmp_path / "p.hdf5").mask_note
    assert note == weak.mask_note and rule in note
