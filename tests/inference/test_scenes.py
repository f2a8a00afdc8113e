"""Whole scenes: every pixel once, the same whatever the strips and interruptions, and nodata stays nodata."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer

from console import UserError
from data.acquisitions import Acquisition, BandFile
from data.dataset_file import ModalityEntry
from data.grids import read_grid
from data.location import Coordinates
from data.scenes import Scene, Source
from data.tiles import IGNORE, TWO_CLASSES
from inference import scenes
from inference.predictor import InputSet
from inference.scenes import SCALE, UNSEEN, SceneSource, offer, predict_scene
from inference.sliding import blend

WriteRaster = Callable[..., Path]
Floats = NDArray[np.float32]
PATCH = 16
PLACE = (30.0, 0.0, 500_000.0, 0.0, -30.0, 3_100_000.0)


def model(batch: dict[str, Floats]) -> Floats:
    """Probability of glacier: the first band, less so towards the edge of a window, as networks are."""
    edge = np.linspace(0.8, 1.0, PATCH, dtype=np.float32)
    glacier = np.clip(np.nan_to_num(batch["optical"][..., :1]) * edge[:, None], 0, 1)
    return np.concatenate([1 - glacier, glacier], axis=-1)


def make_scene(folder: Path, write_raster: WriteRaster, values: Floats, **more: Floats) -> Scene:
    sources: dict[str, Source] = {}
    for name, array in {"optical": values, **more}.items():
        path = write_raster(folder / f"{name}.tif", array, "EPSG:32645", PLACE, nodata=None)
        bands = tuple(f"b{number}" for number in range(1, array.shape[2] + 1))
        files = {band: BandFile(path, number) for number, band in enumerate(bands, 1)}
        acquisition = Acquisition(name, None, files, "")
        sources[name] = Source(name, "bands", bands, ModalityEntry(), (acquisition,), required=name == "optical")
    return Scene("hunza", "HMA", "", None, read_grid(folder / "optical.tif"), sources)


def predict(scene: Scene, folder: Path, **options: Any) -> scenes.ScenePrediction:
    source = SceneSource(scene, (InputSet("", {"optical": scene.sources["optical"].bands}, None),))
    settings: dict[str, Any] = {"classes": TWO_CLASSES, "num_outputs": 2, "patch": PATCH, "batch": 3} | options
    return predict_scene(settings.pop("predict", model), source, folder, **settings)


def read(path: Path | None) -> NDArray[Any]:
    assert path is not None
    with rasterio.open(path) as dataset:
        return dataset.read()


@pytest.fixture
def values() -> Floats:
    array = np.random.default_rng(0).random((90, 41, 2), dtype=np.float32)
    array[20:30, :10] = np.nan
    array[50, 7] = np.inf
    return array


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_a_scene_is_what_its_array_is_whatever_the_strips(
    rows: int,
    overlap: float,
    values: Floats,
    tmp_path: Path,
    write_raster: WriteRaster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scenes, "ROWS", rows)
    scene = make_scene(tmp_path, write_raster, values)
    found = predict(scene, tmp_path / "out", overlap=overlap, keep_probs=True)
    clean = np.nan_to_num(values, posinf=0.0)
    expected = blend(model, {"optical": clean}, patch=PATCH, num_outputs=2, stride=max(1, round(PATCH * (1 - overlap))))
    seen = np.isfinite(values).any(axis=-1)
    probs = np.moveaxis(read(found.probs), 0, -1)
    np.testing.assert_allclose(probs[seen] * SCALE, expected[seen], atol=SCALE)
    assert (probs[~seen] == UNSEEN).all()
    labels = read(found.labels)[0]
    np.testing.assert_array_equal(labels, np.where(seen, expected.argmax(axis=-1), IGNORE))
    confidence = read(found.confidence)[0]
    np.testing.assert_allclose(confidence[seen] * SCALE, expected.max(axis=-1)[seen], atol=SCALE)
    assert (confidence[~seen] == UNSEEN).all()
    assert not (tmp_path / "out" / ".unfinished").exists()


def test_rasters_lie_where_the_scene_does_and_say_what_they_are(
    values: Floats, tmp_path: Path, write_raster: WriteRaster
) -> None:
    scene = make_scene(tmp_path, write_raster, values)
    found = predict(scene, tmp_path / "out", described={"run": "glavitu"})
    for path in (found.labels, found.confidence):
        assert read_grid(path).same_as(scene.grid)
    with rasterio.open(found.labels) as dataset:
        assert (dataset.nodata, dataset.dtypes, dataset.tags()["run"]) == (IGNORE, ("uint8",), "glavitu")
        assert dataset.colormap(1)[1] == (0x4A, 0xA3, 0xDF, 255)
    with rasterio.open(found.confidence) as dataset:
        assert (dataset.nodata, dataset.scales, dataset.descriptions) == (
            UNSEEN,
            (SCALE,),
            ("probability of the label",),
        )


def test_an_interrupted_prediction_goes_on_without_redoing_finished_strips(
    values: Floats, tmp_path: Path, write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "ROWS", 2)
    scene = make_scene(tmp_path, write_raster, values)
    whole = predict(scene, tmp_path / "whole", keep_probs=True)
    calls = 0

    def stopping(batch: dict[str, Floats]) -> Floats:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt
        return model(batch)

    with pytest.raises(KeyboardInterrupt):
        predict(scene, tmp_path / "resumed", keep_probs=True, predict=stopping)
    assert not list((tmp_path / "resumed").glob("*.tif"))
    finished = len(list((tmp_path / "resumed" / ".unfinished").glob("*.json")))
    assert finished >= 2
    resumed = predict(scene, tmp_path / "resumed", keep_probs=True)
    assert resumed.resumed == finished and resumed.windows < whole.windows
    for one, other in ((whole.labels, resumed.labels), (whole.confidence, resumed.confidence)):
        assert one.read_bytes() == other.read_bytes()
    np.testing.assert_array_equal(read(whole.probs), read(resumed.probs))


def test_an_unfinished_prediction_of_another_model_is_not_taken_up(
    values: Floats, tmp_path: Path, write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "ROWS", 1)
    scene = make_scene(tmp_path, write_raster, values)

    def stopping(batch: dict[str, Floats]) -> Floats:
        if list((tmp_path / "out" / ".unfinished").glob("*.json")):
            raise KeyboardInterrupt
        return model(batch)

    with pytest.raises(KeyboardInterrupt):
        predict(scene, tmp_path / "out", predict=stopping, described={"weights": "one"})
    assert predict(scene, tmp_path / "out", described={"weights": "other"}).resumed == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 40), (40, 1), (16, 16), (17, 15)])
def test_scenes_smaller_than_a_patch_are_predicted(
    height: int, width: int, tmp_path: Path, write_raster: WriteRaster
) -> None:
    array = np.random.default_rng(1).random((height, width, 1), dtype=np.float32)
    found = predict(make_scene(tmp_path, write_raster, array), tmp_path / "out")
    expected = blend(model, {"optical": array}, patch=PATCH, num_outputs=2)
    np.testing.assert_array_equal(read(found.labels)[0], expected.argmax(axis=-1))


def test_a_scene_without_a_valid_pixel_is_nodata(tmp_path: Path, write_raster: WriteRaster) -> None:
    found = predict(make_scene(tmp_path, write_raster, np.full((40, 40, 1), np.nan, np.float32)), tmp_path / "out")
    assert (read(found.labels) == IGNORE).all() and (read(found.confidence) == UNSEEN).all()


def test_windows_in_which_nothing_was_seen_are_not_counted_as_predicted(
    values: Floats, tmp_path: Path, write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "ROWS", 1)
    whole = predict(make_scene(tmp_path, write_raster, values[:64]), tmp_path / "whole", overlap=0.0)
    values[32:64] = np.nan
    half = predict(make_scene(tmp_path, write_raster, values[:64]), tmp_path / "half", overlap=0.0)
    assert (half.windows, whole.windows) == (6, 12)


def test_every_run_must_have_something_to_see(values: Floats, tmp_path: Path, write_raster: WriteRaster) -> None:
    values[...] = 0.5
    dem = np.full((90, 41, 1), 100, np.float32)
    dem[:40] = np.nan
    scene = make_scene(tmp_path, write_raster, values, dem=dem)
    optical, both, alone = ({"optical": ("b1",)}, {"optical": ("b1",), "dem": ("b1",)}, {"dem": ("b1",)})
    sets = [InputSet(f"{number}:", bands, None) for number, bands in enumerate((optical, both))]
    window = scenes.Window(32, 0, PATCH, PATCH)
    inputs, seen = SceneSource(scene, tuple(sets)).read(window)
    assert seen.all() and np.isfinite(inputs["1:dem"]).all()
    inputs, seen = SceneSource(scene, (*sets, InputSet("2:", alone, None))).read(window)
    np.testing.assert_array_equal(seen, np.isfinite(dem[32:48, :16, 0]))


def test_the_location_input_is_the_centre_of_each_window(
    values: Floats, tmp_path: Path, write_raster: WriteRaster
) -> None:
    scene = make_scene(tmp_path, write_raster, values)
    source = SceneSource(scene, (InputSet("", {"optical": ("b1",)}, None, Coordinates()),))
    for window in (scenes.Window(0, 0, PATCH, PATCH), scenes.Window(64, 16, PATCH, PATCH)):
        inputs, _ = source.read(window)
        a, _, x, _, e, y = PLACE
        easting, northing = x + a * (window.left + PATCH / 2), y + e * (window.top + PATCH / 2)
        there = Transformer.from_crs("EPSG:32645", "EPSG:4326", always_xy=True).transform(easting, northing)
        longitude, latitude = np.radians(there)
        expected = [np.sin(latitude), np.cos(latitude), np.sin(longitude), np.cos(longitude)]
        np.testing.assert_allclose(inputs["location"], expected, atol=1e-7)


def test_what_a_killed_process_left_beside_the_rasters_is_removed(
    values: Floats, tmp_path: Path, write_raster: WriteRaster
) -> None:
    scene = make_scene(tmp_path, write_raster, values)
    left = [tmp_path / "out" / f".123-456.{name}.tif" for name in ("labels", "confidence")]
    left[0].parent.mkdir()
    for path in left:
        path.write_bytes(b"half of a raster")
    predict(scene, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["confidence.tif", "labels.tif"]


def test_a_modality_that_the_scene_lacks_is_absent_and_told(
    values: Floats, tmp_path: Path, write_raster: WriteRaster, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene(tmp_path, write_raster, values)
    bands = {"optical": ("b2", "b1"), "sar": ("vv",)}
    offered = offer(scene, bands, TWO_CLASSES, "run")
    assert "sar is absent" in capsys.readouterr().err and offered.modalities == {"optical": 2, "sar": 1}
    source = SceneSource(scene, (InputSet("", bands, None),))
    inputs, seen = source.read(scenes.Window(80, 30, PATCH, PATCH))
    assert inputs["optical"].shape == (10, 11, 2) and inputs["sar"].shape == (10, 11, 1)
    np.testing.assert_array_equal(inputs["optical"], values[80:, 30:, ::-1])
    assert np.isnan(inputs["sar"]).all() and seen.all()


def test_what_a_scene_can_not_give_is_told(values: Floats, tmp_path: Path, write_raster: WriteRaster) -> None:
    scene = make_scene(tmp_path, write_raster, values)
    with pytest.raises(UserError, match="has the bands b1, b2; 'run' was trained on b1, red: red is missing"):
        offer(scene, {"optical": ("b1", "red")}, TWO_CLASSES, "run")
    with pytest.raises(UserError, match="'hunza' has optical; 'run' was trained on dem"):
        offer(scene, {"dem": ("elevation",)}, TWO_CLASSES, "run")

    def broken(batch: dict[str, Floats]) -> Floats:
        return np.full((*batch["optical"].shape[:3], 2), np.nan, np.float32)

    with pytest.raises(UserError, match="not numbers"):
        predict(scene, tmp_path / "out", predict=broken)
    assert not list((tmp_path / "out").glob("*.tif"))


def test_a_raster_cut_off_in_the_middle_is_told_and_finished_strips_stay(
    tmp_path: Path, write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "ROWS", 1)
    scene = make_scene(tmp_path, write_raster, np.random.default_rng(0).random((400, 300, 1), dtype=np.float32))
    path = tmp_path / "optical.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"optical\.tif"):
        predict(scene, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tif"))


@pytest.mark.parametrize("bytes_a_pixel", [0.7, 1.7, 2.2])
def test_a_full_disk_is_told_and_leaves_no_half_of_a_raster(
    bytes_a_pixel: float, tmp_path: Path, write_raster: WriteRaster
) -> None:
    # The confidence of one of two strips takes one byte a pixel of the scene; the raster of noise nearly two, and a
    # third more with its overviews.
    scene = make_scene(tmp_path, write_raster, np.random.default_rng(0).random((512, 512, 1), dtype=np.float32))
    whole = predict(scene, tmp_path / "whole", overlap=0.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert whole.confidence.stat().st_size > 2.2 * 512**2
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(bytes_a_pixel * 512**2), limit[1]))
    try:
        with pytest.raises((UserError, OSError), match=r"can't be written|too large") as caught:
            predict(scene, tmp_path / "out", overlap=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert isinstance(caught.value, UserError) == (bytes_a_pixel > 1)
    assert not list((tmp_path / "out").rglob("*confidence.tif"))
    again = predict(scene, tmp_path / "out", overlap=0.0)
    assert (again.windows == 0) == (bytes_a_pixel > 1)  # strips that were finished are not predicted again
    assert again.confidence.read_bytes() == whole.confidence.read_bytes()
