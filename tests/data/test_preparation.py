"""Scenes become tiles: every pixel once, the same whatever the jobs and interruptions, and nothing hidden."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from rasterio.warp import transform_bounds
from shapely.geometry import MultiPolygon, Polygon, box

from console import UserError
from data import preparation
from data.dataset_file import parse
from data.preparation import Report, write_dataset
from data.scenes import find_scenes, read_source
from data.tiles import IGNORE, TileFile

WriteRaster = Callable[..., Path]
CRS = "EPSG:32645"
LEFT, TOP, PIXEL = 500_000.0, 3_100_000.0, 30.0
HEIGHT, WIDTH = 100, 140
BOUNDS = (LEFT, TOP - HEIGHT * PIXEL, LEFT + WIDTH * PIXEL, TOP)
GLACIER = box(LEFT + 600, TOP - 2100, LEFT + 2400, TOP - 600)  # columns 20 to 79, rows 20 to 69


@pytest.fixture
def optical() -> NDArray[np.uint16]:
    """Digital numbers of reflectance, another at every pixel."""
    numbers = np.arange(1, HEIGHT * WIDTH * 2 + 1).reshape(HEIGHT, WIDTH, 2)
    return numbers.astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path, write_raster: WriteRaster, optical: NDArray[np.uint16]) -> Path:
    """A scene of two bands, a DEM in degrees that covers its western half alone, and outlines."""
    write_raster(
        tmp_path / "optical.tif", optical, CRS, (PIXEL, 0, LEFT, 0, -PIXEL, TOP), descriptions=("red", "swir1")
    )
    west, south, east, north = transform_bounds(CRS, "EPSG:4326", *BOUNDS)
    step = 0.0005
    rows, columns = int((north - south) / step) + 8, int((east - west) / 2 / step) + 4
    heights = 4000 + np.add.outer(np.arange(rows), np.arange(columns)).astype(np.float32)
    write_raster(tmp_path / "dem.tif", heights, "EPSG:4326", (step, 0, west - 4 * step, 0, -step, north + 4 * step))
    write_outlines(tmp_path / "rgi.gpkg", GLACIER)
    return tmp_path


def write_outlines(path: Path, *shapes: Any, crs: str | None = "EPSG:4326", **fields: Any) -> Path:
    """Write polygons of the scene's CRS into a file of another one."""
    frame = geopandas.GeoDataFrame(fields, geometry=list(shapes), crs=CRS if crs else None)
    (frame.to_crs(crs) if crs else frame).to_file(path)
    return path


def content(**changes: Any) -> dict[str, Any]:
    """A dataset file of that scene."""
    scene = {"modalities": {"optical": {"files": "optical.tif", "scale": 1e-4, "level": "L1C"}}, "date": "2019-08-02"}
    return {
        "region": "HMA",
        "tile_size": 32,
        "scenes": {"hunza": scene},
        "outlines": "rgi.gpkg",
        "split": {"by": "tiles"},
    } | changes


def prepare(folder: Path, described: dict[str, Any], name: str = "tiles", **options: Any) -> tuple[Path, Report]:
    dataset = parse(described, "dataset.yaml")
    target = folder / name
    target.mkdir(exist_ok=True)
    report = write_dataset(
        target, folder / f".{name}.unfinished", dataset, find_scenes(dataset, folder), base=folder, **options
    )
    return target, report


def digests(target: Path) -> list[str]:
    return [TileFile(target / f"{split}.hdf5").digest for split in ("train", "val", "test")]


def tiles(target: Path) -> list[tuple[TileFile, str]]:
    files = [TileFile(path) for path in sorted(target.glob("*.hdf5"))]
    return [(file, name) for file in files for name in file.names]


def mosaic(target: Path, layer: Callable[[TileFile, str], NDArray[Any]]) -> NDArray[Any]:
    """Lay the tiles back on the scene's grid, and check that no pixel comes twice."""
    seen = np.zeros((HEIGHT, WIDTH), int)
    first = layer(*tiles(target)[0])
    whole = np.zeros((HEIGHT, WIDTH, *first.shape[2:]), first.dtype)
    for file, name in tiles(target):
        values = layer(file, name)
        attributes = file.info(name).attributes
        top, left = int(attributes["scene_row"]), int(attributes["scene_column"])
        place = np.s_[top : top + values.shape[0], left : left + values.shape[1]]
        whole[place] = values
        seen[place] += 1
    assert (seen == 1).all()
    return whole


def test_every_pixel_is_in_one_tile_with_its_value_and_its_class(folder: Path, optical: NDArray[np.uint16]) -> None:
    target, _ = prepare(folder, content())
    values = mosaic(target, lambda file, name: file.read(name, ["optical"])["optical"])
    np.testing.assert_allclose(values, optical * 1e-4, rtol=1e-6)
    mask = mosaic(target, lambda file, name: file.mask(name))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[20:70, 20:80] = 1
    np.testing.assert_array_equal(mask, expected)
    assert mosaic(target, lambda file, name: file.valid(name)).all()


def test_tiles_know_their_place_and_their_scene(folder: Path) -> None:
    target, _ = prepare(folder, content())
    for file, name in tiles(target):
        info = file.info(name)
        row, column = int(info.attributes["scene_row"]), int(info.attributes["scene_column"])
        assert list(info.transform or ()) == [PIXEL, 0, LEFT + column * PIXEL, 0, -PIXEL, TOP - row * PIXEL]
        assert (info.region, info.attributes["scene"], info.attributes["date"]) == ("HMA", "hunza", "2019-08-02")
        assert file.level_note == ""
        assert file.bands == {"optical": ["red", "swir1"]}
        entry = file.provenance["modalities"]["optical"]
        assert (entry["unit"], entry["level"]) == ("reflectance", "L1C")
        assert file.provenance["kind"] == "scenes" and file.provenance["mask"]["kind"] == "outlines"


def test_two_processes_make_the_same_tiles_as_one(folder: Path) -> None:
    one, _ = prepare(folder, content(), "one")
    two, _ = prepare(folder, content(), "two", jobs=2)
    assert digests(one) == digests(two)


def test_an_interrupted_run_goes_on_to_the_same_tiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = prepare(folder, content(), "whole")
    prepared: list[str] = []
    real = preparation.prepare_tile

    def stopping(job: Any, settings: Any, window: Any) -> Any:
        if len(prepared) == 3:
            raise KeyboardInterrupt
        prepared.append(str(window))
        return real(job, settings, window)

    monkeypatch.setattr(preparation, "prepare_tile", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, content(), "resumed")
    assert not list((folder / "resumed").glob("*"))

    def counting(job: Any, settings: Any, window: Any) -> Any:
        prepared.append(str(window))
        return real(job, settings, window)

    monkeypatch.setattr(preparation, "prepare_tile", counting)
    resumed, report = prepare(folder, content(), "resumed")
    assert digests(whole) == digests(resumed)
    assert len(prepared) == len(set(prepared)) == len(tiles(whole))
    assert any("goes on with 3 tiles" in line for line in report.lines)


def test_a_half_written_tile_is_made_again(folder: Path) -> None:
    whole, _ = prepare(folder, content(), "whole")
    resumed, _ = prepare(folder, content(), "resumed")
    work = folder / ".resumed.unfinished"
    (work / "000002.json").unlink()
    (work / "000002.hdf5").write_bytes(b"torn")
    (work / "000003.json").unlink()
    resumed, _ = prepare(folder, content(), "resumed")
    assert digests(whole) == digests(resumed)


def test_other_settings_or_rasters_begin_anew_and_another_split_does_not(
    folder: Path, write_raster: WriteRaster, optical: NDArray[np.uint16]
) -> None:
    prepare(folder, content())
    _, report = prepare(folder, content(split={"by": "tiles", "seed": 7}))
    assert any("goes on with" in line for line in report.lines)
    _, report = prepare(folder, content(ignore_buffer_m=60))
    assert any("of other files or settings" in line for line in report.lines)
    write_raster(
        folder / "optical.tif", optical + 1, CRS, (PIXEL, 0, LEFT, 0, -PIXEL, TOP), descriptions=("red", "swir1")
    )
    target, report = prepare(folder, content(ignore_buffer_m=60))
    assert any("of other files or settings" in line for line in report.lines)
    values = mosaic(target, lambda file, name: file.read(name, ["optical"])["optical"])
    np.testing.assert_allclose(values, (optical + 1) * 1e-4, rtol=1e-6)


def test_a_modality_that_does_not_meet_a_tile_is_absent_from_it(folder: Path) -> None:
    described = content()
    described["scenes"]["hunza"]["modalities"]["dem"] = "dem.tif"
    target, report = prepare(folder, described)
    present = {name: file.present(name) for file, name in tiles(target)}
    assert {len(modalities) for modalities in present.values()} == {1, 2}
    for file, name in tiles(target):
        values = file.read(name, ["dem"])["dem"]
        assert values.shape[-1] == 2
        assert np.isfinite(values).any() == ("dem" in present[name])
        assert file.valid(name).all()  # the DEM is not required
    assert any("dem.tif: warped from EPSG:4326" in line for line in report.lines)
    assert any("dem is absent in" in line for line in report.lines)


def test_what_is_required_decides_what_is_valid(folder: Path) -> None:
    described = content()
    described["scenes"]["hunza"]["modalities"]["dem"] = {"files": "dem.tif", "required": True}
    target, report = prepare(folder, described)
    for file, name in tiles(target):
        known = np.isfinite(file.read(name, ["dem"])["dem"]).any(axis=-1)
        np.testing.assert_array_equal(file.valid(name), known)
        assert (file.mask(name)[~known] == IGNORE).all()
    assert any("no (or too few) valid pixels: left out" in line for line in report.lines)


def test_nan_infinite_and_nodata_values_are_invalid_and_count_in_no_class(
    folder: Path, write_raster: WriteRaster
) -> None:
    values = np.ones((HEIGHT, WIDTH, 1), np.float32)
    values[:10], values[10:20, :5], values[20:30, :5] = np.nan, np.inf, -9999
    write_raster(folder / "optical.tif", values, CRS, (PIXEL, 0, LEFT, 0, -PIXEL, TOP))
    described = content()
    described["scenes"]["hunza"]["modalities"]["optical"] = {"files": "optical.tif", "nodata": -9999, "bands": ["red"]}
    target, _ = prepare(folder, described)
    valid = mosaic(target, lambda file, name: file.valid(name))
    np.testing.assert_array_equal(valid, values[..., 0] == 1)
    mask = mosaic(target, lambda file, name: file.mask(name))
    assert (mask[~valid] == IGNORE).all() and not (mask[valid] == IGNORE).any()


def test_hidden_ground_and_the_buffer_count_in_no_class_but_stay_valid(folder: Path, write_raster: WriteRaster) -> None:
    clouds = np.zeros((HEIGHT, WIDTH), np.uint8)
    clouds[:, 100:] = 3
    write_raster(folder / "clouds.tif", clouds, CRS, (PIXEL, 0, LEFT, 0, -PIXEL, TOP))
    target, _ = prepare(folder, content(hidden={"files": "clouds.tif", "values": [3]}, ignore_buffer_m=31))
    mask = mosaic(target, lambda file, name: file.mask(name))
    assert (mask[:, 100:] == IGNORE).all()
    assert (mask[20, 20:80] == IGNORE).all() and (mask[19, 20:80] == IGNORE).all()
    assert (mask[25, 25:75] == 1).all() and (mask[10, :100] == 0).all()
    assert mosaic(target, lambda file, name: file.valid(name)).all()


def test_later_classes_paint_over_earlier_ones_and_holes_stay_background(folder: Path) -> None:
    holed = Polygon(GLACIER.exterior.coords, [box(LEFT + 1200, TOP - 1500, LEFT + 1500, TOP - 1200).exterior.coords])
    bow_tie = Polygon(
        [(LEFT + 3000, TOP - 600), (LEFT + 3300, TOP - 900), (LEFT + 3300, TOP - 600), (LEFT + 3000, TOP - 900)]
    )
    write_outlines(folder / "rgi.gpkg", MultiPolygon([holed]), bow_tie)
    write_outlines(folder / "lakes.gpkg", box(LEFT + 600, TOP - 900, LEFT + 900, TOP - 600))
    target, report = prepare(folder, content(outlines={"glacier": "rgi.gpkg", "water": "lakes.gpkg"}))
    mask = mosaic(target, lambda file, name: file.mask(name))
    assert (mask[20:30, 20:30] == 2).all() and (mask[40:50, 40:50] == 0).all() and (mask[55, 20:80] == 1).all()
    assert (mask[20:30, 100:110] == 1).sum() == pytest.approx(50, abs=10)
    assert any("repaired 1 invalid" in line for line in report.lines)
    file, _ = tiles(target)[0]
    assert [(info.name, info.glacier) for info in file.classes] == [
        ("background", False),
        ("glacier", True),
        ("water", False),
    ]


def test_rasters_side_by_side_are_one_scene(
    folder: Path, write_raster: WriteRaster, optical: NDArray[np.uint16]
) -> None:
    for name, left in (("west", 0), ("east", 70)):
        part = optical[:, left : left + 70]
        write_raster(folder / f"{name}.tif", part, CRS, (PIXEL, 0, LEFT + left * PIXEL, 0, -PIXEL, TOP))
    described = content()
    described["scenes"]["hunza"]["modalities"]["optical"] = {
        "files": ["east.tif", "west.tif"],
        "bands": ["red", "swir1"],
    }
    target, _ = prepare(folder, described)
    values = mosaic(target, lambda file, name: file.read(name, ["optical"])["optical"])
    np.testing.assert_array_equal(values, optical)


def test_acquisitions_become_one_by_period_and_a_period_without_clear_pixels_is_skipped(
    folder: Path, write_raster: WriteRaster
) -> None:
    place = (PIXEL, 0, LEFT, 0, -PIXEL, TOP)
    for date, value in (("20190705", 1), ("20190720", 2), ("20190731", 6), ("20190803", 5), ("20190901", np.nan)):
        write_raster(folder / f"s_{date}.tif", np.full((HEIGHT, WIDTH, 1), value, np.float32), CRS, place)
    described = content()
    optical = {"files": "s_{date}.tif", "bands": ["red"], "composite": {"period": "month", "count": True}}
    described["scenes"]["hunza"] = {"modalities": {"optical": optical}}
    target, report = prepare(folder, described)
    by_scene: dict[str, set[tuple[float, float]]] = {}
    for file, name in tiles(target):
        values = file.read(name, ["optical"])["optical"]
        assert file.bands["optical"] == ["red", "clear_count"]
        by_scene.setdefault(str(file.info(name).attributes["scene"]), set()).update(map(tuple, values.reshape(-1, 2)))
    assert by_scene == {"hunza-2019-07": {(2.0, 3.0)}, "hunza-2019-08": {(5.0, 1.0)}}
    assert [line for line in report.warnings if "skipped" in line] == [
        "scene hunza-2019-09: no clear pixel; it is skipped"
    ]


def test_several_dates_without_a_word_how_they_become_one_are_refused(folder: Path, write_raster: WriteRaster) -> None:
    for date in ("2019-07-05", "2019-08-05"):
        write_raster(folder / f"s_{date}.tif", np.ones((HEIGHT, WIDTH)), CRS, (PIXEL, 0, LEFT, 0, -PIXEL, TOP))
    described = content(scenes={"hunza": {"modalities": {"optical": "s_{date}.tif"}}})
    with pytest.raises(UserError, match="2 dates, 2019-07-05 to 2019-08-05.*composite"):
        find_scenes(parse(described, "a.yaml"), folder)


def test_weak_masks_follow_their_rule_and_say_so(folder: Path, optical: NDArray[np.uint16]) -> None:
    target, _ = prepare(folder, content(mask_from="red > 1.4"))
    mask = mosaic(target, lambda file, name: file.mask(name))
    np.testing.assert_array_equal(mask, optical[..., 0] * 1e-4 > 1.4)
    file, _ = tiles(target)[0]
    assert "weak mask, red > 1.4" in file.mask_note
    _, report = prepare(folder, content(mask_from="red > otsu"), "otsu")
    file, _ = tiles(folder / "otsu")[0]
    assert file.provenance["mask"]["rules"]["hunza"].startswith("red > 1.")
    assert any("by Otsu's method" in line for line in report.lines)


def test_tiles_without_glacier_are_kept_at_the_share_that_is_asked_for(folder: Path) -> None:
    def without(target: Path) -> tuple[int, int]:
        empty = [not (file.mask(name) == 1).any() for file, name in tiles(target)]
        return sum(empty), len(empty)

    none, count = without(prepare(folder, content(empty_tiles=0), "none")[0])
    assert none == 0 and count > 3
    some, count = without(prepare(folder, content(empty_tiles=0.2), "some")[0])
    assert 0 < some <= 0.2 * count


def test_outlines_far_from_the_scene_in_time_are_warned_about(folder: Path) -> None:
    write_outlines(folder / "rgi.gpkg", GLACIER, BgnDate=["20050801"])
    _, report = prepare(folder, content(max_years=10))
    assert any("1 of 1 outlines" in line and "more than 10 years" in line for line in report.warnings)
    _, report = prepare(folder, content(max_years=20), "later")
    assert not report.warnings


def test_polygons_of_the_user_divide(folder: Path) -> None:
    thirds = [box(LEFT + x * PIXEL, BOUNDS[1], LEFT + (x + 32) * PIXEL, TOP) for x in (0, 32, 64)]
    write_outlines(folder / "split.gpkg", *thirds, part=["train", "val", "test"])
    target, report = prepare(folder, content(split={"by": "polygons", "polygons": {"file": "split.gpkg"}}))
    columns = {
        split: {TileFile(target / f"{split}.hdf5").info(name).attributes["scene_column"] for name in file.names}
        for split in ("train", "val", "test")
        for file in [TileFile(target / f"{split}.hdf5")]
    }
    assert columns == {"train": {0}, "val": {32}, "test": {64}}
    assert any("in no polygon" in line for line in report.lines)


def test_statistics_are_those_of_the_training_tiles(folder: Path) -> None:
    target, _ = prepare(folder, content())
    train = TileFile(target / "train.hdf5")
    pixels = np.concatenate([train.read(name, ["optical"])["optical"].reshape(-1, 2) for name in train.names])
    assert train.statistics is not None
    np.testing.assert_allclose(train.statistics.shift["optical"], pixels.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(train.statistics.scale["optical"], pixels.std(axis=0), rtol=1e-5)
    assert TileFile(target / "test.hdf5").statistics == train.statistics


def test_a_sources_values_do_not_depend_on_the_windows_that_it_is_read_by(folder: Path) -> None:
    described = content()
    described["scenes"]["hunza"]["modalities"]["dem"] = "dem.tif"
    (scene,) = find_scenes(parse(described, "a.yaml"), folder)
    whole, _ = read_source(scene.sources["dem"], scene.grid)
    target, _ = prepare(folder, described)
    np.testing.assert_allclose(
        mosaic(target, lambda file, name: file.read(name, ["dem"])["dem"]), whole, rtol=1e-4, atol=1e-3
    )


def test_the_date_of_the_dataset_file_is_a_date(folder: Path) -> None:
    text = yaml.safe_dump(content())
    (scene,) = find_scenes(parse(yaml.safe_load(text.replace("'2019-08-02'", "2019-08-02")), "a.yaml"), folder)
    assert scene.date == datetime.date(2019, 8, 2)


def test_a_landsat_product_becomes_reflectance_with_clouds_in_no_class(
    folder: Path, write_raster: WriteRaster, optical: NDArray[np.uint16]
) -> None:
    place = (PIXEL, 0, LEFT, 0, -PIXEL, TOP)
    product = folder / "l" / "LC08_L2SP_140041_20190802_20200827_02_T1"
    numbers = optical[..., 0] % 20_000 + 8_000
    clouds = np.full((HEIGHT, WIDTH), 1 << 6, np.uint16)
    clouds[:30] = 1 << 3
    for band in (4, 6):
        write_raster(Path(f"{product}_SR_B{band}.TIF"), numbers.astype(np.uint16), CRS, place, nodata=0)
    write_raster(Path(f"{product}_QA_PIXEL.TIF"), clouds, CRS, place, nodata=1)
    described = content()
    entry = {"type": "landsat", "files": "l/*", "bands": ["red", "swir1"]}
    described["scenes"]["hunza"] = {"modalities": {"optical": entry}}
    target, _ = prepare(folder, described)
    values = mosaic(target, lambda file, name: file.read(name, ["optical"])["optical"])
    np.testing.assert_allclose(values[..., 0], numbers * 2.75e-5 - 0.2, atol=1e-6)
    mask = mosaic(target, lambda file, name: file.mask(name))
    assert (mask[:30] == IGNORE).all() and not (mask[30:] == IGNORE).any()
    file, name = tiles(target)[0]
    modality = file.provenance["modalities"]["optical"]
    assert (modality["unit"], modality["level"], modality["sensor"]) == (
        "surface reflectance",
        "L2SP",
        "Landsat 8 OLI/TIRS",
    )
    assert file.info(name).attributes["date"] == "2019-08-02"
    assert "`optical` (L2SP) is surface reflectance" in file.level_note
    entry["hiding"] = []
    target, report = prepare(folder, described | {"statistics": "published"}, "open")
    assert any("`optical` (L2SP) is surface reflectance" in line for line in report.warnings)
    assert not (mosaic(target, lambda file, name: file.mask(name)) == IGNORE).any()


def test_backscatter_in_decibels_becomes_what_the_published_statistics_expect(
    folder: Path, write_raster: WriteRaster
) -> None:
    decibels = np.linspace(-25, 5, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    write_raster(folder / "vv.tif", decibels, CRS, (PIXEL, 0, LEFT, 0, -PIXEL, TOP))
    described = content()
    described["scenes"]["hunza"]["modalities"]["sar"] = {"files": {"vv": "vv.tif"}, "given": "db"}
    target, _ = prepare(folder, described)
    values = mosaic(target, lambda file, name: file.read(name, ["sar"])["sar"])[..., 0]
    np.testing.assert_allclose(values, np.log10(10 ** (decibels / 10) + 1e-6), rtol=1e-4, atol=1e-6)
    file, _ = tiles(target)[0]
    assert file.provenance["modalities"]["sar"]["unit"] == "log10(sigma0 + 1e-6)"
