"""Grids, windows, and rasters read on grids: as they are, interpolated, averaged, and the same however divided."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from console import UserError
from data import grids
from data.grids import (
    Grid,
    Values,
    close,
    describe_warp,
    overlaps,
    pixels_per_target,
    read,
    read_derived,
    read_grid,
    target_grid,
    tile_windows,
)
from data.windows import Window
from tests.conftest import WriteRaster

UTM = rasterio.crs.CRS.from_epsg(32645).to_wkt()
DEGREES = rasterio.crs.CRS.from_epsg(4326).to_wkt()


def utm(left: float, top: float, height: int, width: int, side: float = 30.0, crs: str = UTM) -> Grid:
    return Grid(crs, (side, 0.0, left, 0.0, -side, top), height, width)


def pixel_centres(grid: Grid, crs: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, columns = np.meshgrid(np.arange(grid.height) + 0.5, np.arange(grid.width) + 0.5, indexing="ij")
    x, y = grid.xy(columns, rows)
    return Transformer.from_crs(grid.crs, crs, always_xy=True).transform(x, y)


def speckled(rng: np.random.Generator, height: int, width: int, bands: int = 2) -> NDArray[np.float32]:
    """White noise with holes, large and small, that differ between the bands."""
    values = rng.random((height, width, bands), dtype=np.float32)
    values[rng.random((height, width)) < 0.02] = np.nan
    values[height // 3 : height // 2, width // 4 : width // 3, 0] = np.nan
    return values


# -- grids ---------------------------------------------------------------------------------------------------


def test_grid_knows_bounds_resolution_and_crs() -> None:
    grid = utm(500_000, 3_100_000, 20, 40)
    assert grid.bounds == pytest.approx((500_000, 3_099_400, 501_200, 3_100_000))
    assert grid.resolution == pytest.approx((30, 30))
    assert grid.crs_name == "EPSG:32645"
    assert grid.north_up
    assert not grid.geographic
    assert Grid(DEGREES, (0.01, 0, 87, 0, -0.02, 28), 5, 5).geographic
    rotated = Grid(UTM, (3, 4, 0, 4, -3, 0), 10, 10)
    assert rotated.resolution == pytest.approx((5, 5))
    assert rotated.bounds == pytest.approx((0, -30, 70, 40))
    assert not rotated.north_up


def test_windows_of_a_grid_may_reach_beyond_it() -> None:
    grid = utm(500_000, 3_100_000, 20, 40)
    assert grid.window(Window(2, -3, 5, 6)) == utm(500_000 - 90, 3_100_000 - 60, 5, 6)
    assert grid.padded(2) == utm(500_000 - 60, 3_100_000 + 60, 24, 44)


def test_same_as_forgives_last_digits_and_names_of_a_crs() -> None:
    grid = utm(500_000, 3_100_000, 20, 40)
    assert grid.same_as(utm(500_000.01, 3_100_000, 20, 40))
    assert not grid.same_as(utm(500_000.1, 3_100_000, 20, 40))
    assert not grid.same_as(utm(500_000, 3_100_000, 20, 41))
    assert not grid.same_as(utm(500_000, 3_100_000, 20, 40, side=30.01))
    assert not grid.same_as(utm(500_000, 3_100_000, 20, 40, crs=rasterio.crs.CRS.from_epsg(32644).to_wkt()))
    esri = CRS.from_epsg(32645).to_wkt("WKT1_ESRI")
    assert esri != UTM
    assert grid.same_as(utm(500_000, 3_100_000, 20, 40, crs=esri))


@pytest.mark.parametrize("length", [1, 5, 9, 10, 14, 15, 16, 24, 25, 26, 103])
def test_tile_windows_cover_every_pixel_once_in_sides_of_half_to_three_halves(length: int) -> None:
    grid, size = utm(0, 0, length, 37), 10
    seen = np.zeros((length, 37), int)
    for window in tile_windows(grid, size):
        seen[window.slices] += 1
        assert window.top + window.height <= length
        assert (size / 2 <= window.height < 1.5 * size) or window.height == length < size
    assert (seen == 1).all()


def test_read_grid_takes_the_horizontal_part_of_a_compound_crs(write_raster: WriteRaster, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((4, 5), np.float32), "EPSG:32645+5773")
    assert read_grid(path).crs_name == "EPSG:32645"
    assert (read_grid(path).height, read_grid(path).width) == (4, 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crs": None}, "no CRS"),
        ({"transform": None}, "no transform"),
        ({"crs": "EPSG:4326", "transform": (0.1, 0, 179.5, 0, -0.1, 60)}, "antimeridian"),
        ({"crs": "EPSG:4326", "transform": (0.1, 0, -180.5, 0, -0.1, 60)}, "antimeridian"),
        ({"crs": 'LOCAL_CS["somewhere",UNIT["metre",1]]'}, "neither geographic nor projected"),
    ],
)
def test_rasters_without_a_place_are_refused(
    write_raster: WriteRaster, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((8, 9), np.float32), **options)
    with pytest.raises(UserError, match=said) as caught:
        read_grid(path)
    assert str(path) in str(caught.value)


def test_a_global_mosaic_that_reaches_half_a_pixel_beyond_is_welcome(write_raster: WriteRaster, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((18, 36), np.float32), "EPSG:4326", (10, 0, -185, 0, -10, 90))
    assert read_grid(path).bounds[0] == -185


def test_unreadable_rasters_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("not a raster")
    for name in ("text.tif", "missing.tif"):
        with pytest.raises(UserError, match=name):
            read_grid(tmp_path / name)


# -- target grids --------------------------------------------------------------------------------------------


def test_target_grid_is_the_references_own_or_keeps_its_corner() -> None:
    grid = utm(500_010, 3_100_020, 20, 41)
    assert target_grid(grid) == grid
    assert target_grid(grid, "EPSG:32645").same_as(grid)
    coarse = target_grid(grid, resolution=100)
    assert coarse == utm(500_010, 3_100_020, 6, 13, side=100)
    assert target_grid(grid, resolution=30) == grid
    assert target_grid(grid, resolution=15) == utm(500_010, 3_100_020, 40, 82, side=15)


@pytest.mark.parametrize(("crs", "resolution"), [("EPSG:32644", None), ("EPSG:32644", 25), ("EPSG:4326", 0.0005)])
def test_target_grid_in_another_crs_covers_the_reference_on_multiples_of_the_resolution(
    crs: str, resolution: float | None
) -> None:
    reference = utm(500_010, 3_100_020, 200, 410)
    grid = target_grid(reference, crs, resolution)
    side = grid.resolution[0]
    assert grid.resolution == (resolution or 30, resolution or 30)
    for edge in (grid.transform[2], grid.transform[5]):
        assert edge / side == pytest.approx(round(edge / side), abs=1e-6)
    columns, rows = grid.pixels(*pixel_centres(reference, grid.crs))
    assert 0 <= columns.min() < 2
    assert 0 <= rows.min() < 2
    assert grid.width - 2 < columns.max() <= grid.width
    assert grid.height - 2 < rows.max() <= grid.height
    assert grid.north_up


def test_a_target_grid_is_north_up(write_raster: WriteRaster, tmp_path: Path) -> None:
    for number, transform in enumerate([(20, 20, 5e5, 20, -20, 3e6), (30, 0, 5e5, 0, 30, 3e6)]):
        path = write_raster(tmp_path / f"{number}.tif", np.zeros((8, 9), np.float32), transform=transform)
        with pytest.raises(UserError, match=f"{number}.tif.*gdalwarp"):
            target_grid(path)
        assert target_grid(path, "EPSG:32644").north_up


@pytest.mark.parametrize(
    ("crs", "resolution", "said"),
    [
        ("EPSG:4326", 30, "30 degrees; metres need a projected CRS.*EPSG:32645"),
        ("EPSG:32644", 0.0003, "0.0003 metres; degrees need a geographic CRS"),
        (None, 0, "above 0"),
        (None, float("nan"), "above 0"),
        (None, 0.02, "coarser"),
        ("EPSG:nonsense", None, "no CRS that PROJ knows"),
        ("EPSG:5773", None, "expected a projected CRS"),
    ],
)
def test_absurd_targets_are_refused(crs: str | None, resolution: float | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        target_grid(utm(500_000, 3_100_000, 2000, 2000), crs, resolution)


def test_a_geographic_target_across_the_antimeridian_is_refused() -> None:
    chukotka = utm(350_000, 7_500_000, 2000, 2000, crs=rasterio.crs.CRS.from_epsg(32601).to_wkt())
    with pytest.raises(UserError, match="antimeridian.*projected"):
        target_grid(chukotka, "EPSG:4326")
    with pytest.raises(UserError, match="antimeridian.*projected"):
        target_grid(Grid(DEGREES, (1, 0, -180, 0, -1, 60), 5, 360))


# -- read: the raster's own grid -------------------------------------------------------------------------------


def test_windows_of_the_own_grid_are_read_as_they_are(write_raster: WriteRaster, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 60_000, (30, 40, 3)).astype(np.uint16)
    path = write_raster(tmp_path / "a.tif", values, nodata=0, tiled=True, blockxsize=16, blockysize=16)
    grid = read_grid(path)
    expected = np.where(values == 0, np.nan, values).astype(np.float32)
    np.testing.assert_array_equal(read(path, [1, 2, 3], grid), expected)
    np.testing.assert_array_equal(read(path, [3, 1], grid.window(Window(5, 7, 9, 11))), expected[5:14, 7:18, [2, 0]])
    assert describe_warp(path, grid.window(Window(5, 7, 9, 11))) == ""
    padded = read(path, [2], grid.padded(3), convert=lambda values: values * 2)
    np.testing.assert_array_equal(padded[3:-3, 3:-3, 0], expected[..., 1] * 2)
    assert np.isnan(padded[:3]).all()
    assert np.isnan(padded[..., -3:, :]).all()


def test_everything_that_means_nothing_becomes_nan(write_raster: WriteRaster, tmp_path: Path) -> None:
    values = np.ones((4, 5), np.float32)
    values[0, :4] = (np.nan, np.inf, -9999, 7)
    path = write_raster(tmp_path / "a.tif", values, nodata=-9999)
    read_values = read(path, [1], read_grid(path), nodata=[7])[..., 0]
    np.testing.assert_array_equal(np.isnan(read_values[0]), [True, True, True, True, False])
    with np.errstate(divide="ignore"):
        logarithms = read(path, [1], read_grid(path), convert=lambda values: np.log(values - 1))
    assert np.isnan(logarithms[1:]).all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("kind", ["mask", "alpha"])
def test_mask_and_alpha_bands_are_respected(write_raster: WriteRaster, tmp_path: Path, kind: str) -> None:
    values = np.full((20, 20, 4), 9, np.uint8)
    hidden = np.zeros((20, 20), bool)
    hidden[4:9, 3:11] = True
    if kind == "alpha":
        values[..., 3] = np.where(hidden, 0, 255)
    options = {"photometric": "RGB", **({"alpha": "yes"} if kind == "alpha" else {})}
    path = write_raster(tmp_path / "a.tif", values if kind == "alpha" else values[..., :3], **options)
    if kind == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(~hidden)
    np.testing.assert_array_equal(np.isnan(read(path, [1, 2], read_grid(path))[..., 1]), hidden)


def test_bands_that_are_not_there_and_complex_numbers_are_refused(write_raster: WriteRaster, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((4, 5, 2), np.float32))
    for indexes in ([0], [1, 3], []):
        with pytest.raises(UserError, match="has bands 1 to 2"):
            read(path, indexes, read_grid(path))
    path = write_raster(tmp_path / "c.tif", np.ones((4, 5), np.complex64))
    with pytest.raises(UserError, match="complex"):
        read(path, [1], read_grid(path))


@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_a_raster_cut_off_in_the_middle_is_named(write_raster: WriteRaster, tmp_path: Path, compress: str) -> None:
    noise = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    path = write_raster(
        tmp_path / "cut.tif",
        noise,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress=compress,
        copy_src_overviews=True,
    )
    os.truncate(path, path.stat().st_size * 2 // 3)
    grid = read_grid(path)
    read(path, [1], grid.window(Window(0, 0, 64, 64)))
    for target in (grid, target_grid(grid, resolution=45), target_grid(grid, "EPSG:32644")):
        with pytest.raises(UserError, match="cut.tif.*truncated"):
            read(path, [1], target)


# -- read: warps -----------------------------------------------------------------------------------------------


def test_interpolation_puts_values_where_they_belong(write_raster: WriteRaster, tmp_path: Path) -> None:
    source = Grid(DEGREES, (1 / 3600, 0, 86.9, 0, -1 / 3600, 28.05), 300, 300)
    rows, columns = np.meshgrid(np.arange(300) + 0.5, np.arange(300) + 0.5, indexing="ij")
    path = write_raster(tmp_path / "a.tif", np.dstack([columns, rows]).astype(np.float32), DEGREES, source.transform)
    target = utm(493_000, 3_101_000, 150, 200)
    places = np.stack(source.pixels(*pixel_centres(target, DEGREES)), axis=-1)
    inside = ((places > 3) & (places < 297)).all(axis=-1)
    assert inside.mean() > 0.7
    for smooth in ("bilinear", "cubic"):
        values = read(path, [1, 2], target, smooth=smooth)
        np.testing.assert_allclose(values[inside], places[inside], atol=2e-4)
    values = read(path, [1, 2], target, kind="classes")
    np.testing.assert_allclose(values[inside], np.floor(places[inside]) + 0.5)


def test_a_value_is_where_at_least_half_of_its_pixels_have_one(write_raster: WriteRaster, tmp_path: Path) -> None:
    source = Grid(DEGREES, (1 / 3600, 0, 86.9, 0, -1 / 3600, 28.05), 300, 300)
    values = np.full((300, 300, 2), 500, np.float32)
    values[:, 120:, 0] = -9999  # the edge of a scene
    values[40:43, 50:53, 1] = -9999
    path = write_raster(tmp_path / "a.tif", values, DEGREES, source.transform, nodata=-9999)
    target = utm(493_000, 3_101_000, 150, 200)
    columns, rows = source.pixels(*pixel_centres(target, DEGREES))
    inside = (columns > 0) & (columns < 300) & (rows > 0) & (rows < 300)
    for smooth in ("bilinear", "cubic"):
        read_values = read(path, [1, 2], target, smooth=smooth)
        known = read_values[~np.isnan(read_values)]
        np.testing.assert_allclose(known, 500, rtol=1e-5)
        near = np.abs(columns - 120) < 0.01
        np.testing.assert_array_equal(~np.isnan(read_values[..., 0])[~near], (inside & (columns < 120))[~near])
        holes = np.isnan(read_values[..., 1]) & inside
        hole = (np.abs(columns - 51.5) < 1.5) & (np.abs(rows - 41.5) < 1.5)
        assert holes.sum() == pytest.approx(hole.sum(), abs=3)
        assert not (holes & ~hole).any()


def test_the_mean_of_what_a_coarser_pixel_covers(write_raster: WriteRaster, tmp_path: Path) -> None:
    values = speckled(np.random.default_rng(0), 90, 120)
    path = write_raster(tmp_path / "a.tif", values)
    target = target_grid(path, resolution=90)
    blocks = values.reshape(30, 3, 40, 3, 2).swapaxes(1, 2).reshape(30, 40, 9, 2)
    here = (~np.isnan(blocks)).sum(axis=2)
    with np.errstate(invalid="ignore"):
        expected = np.where(here >= 5, np.nansum(blocks, axis=2) / here, np.nan)
    np.testing.assert_allclose(read(path, [1, 2], target), expected, rtol=1e-4)
    assert describe_warp(path, target) == (
        f"{path}: warped from EPSG:32645 at 30 m to EPSG:32645 at 90 m by the mean of about 9 pixels"
    )


@pytest.mark.parametrize("turned", [0, 15, 42])
def test_the_mean_is_one_of_all_pixels_where_grids_are_turned(
    write_raster: WriteRaster, tmp_path: Path, turned: float
) -> None:
    # White noise: the mean of n pixels has the n-th part of its variance, of a box between two corners far more.
    crs = rasterio.crs.CRS.from_string(f"+proj=stere +lat_0=90 +lon_0={87 - turned} +lat_ts=70 +datum=WGS84").to_wkt()
    x, y = Transformer.from_crs(UTM, crs, always_xy=True).transform(500_000, 8_500_000)
    noise = np.random.default_rng(0).random((600, 600), dtype=np.float32)
    path = write_raster(tmp_path / "a.tif", noise, crs, (5, 0, x - 1500, 0, -5, y + 1500))
    target = utm(499_200, 8_500_800, 32, 32, side=50)
    values = read(path, [1], target)
    share = pixels_per_target(read_grid(path), target) ** 2
    assert share == pytest.approx(100, rel=0.1)
    assert np.var(values) == pytest.approx(1 / 12 / share, rel=0.35)


def test_classes_are_never_mixed(write_raster: WriteRaster, tmp_path: Path) -> None:
    classes = np.random.default_rng(0).choice([3, 8, 200], (90, 120)).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", classes, nodata=3)
    for target in (
        target_grid(path, resolution=60),
        target_grid(path, resolution=17),
        target_grid(path, "EPSG:32644"),
        target_grid(path, "EPSG:32644", 100),
    ):
        values = read(path, [1], target, kind="classes")
        assert set(np.unique(values[~np.isnan(values)])) == {8, 200}
        assert "nearest" in describe_warp(path, target, "classes")


@pytest.mark.parametrize("crs", [UTM, DEGREES], ids=["utm", "degrees"])
@pytest.mark.parametrize("resolution", [20.0, 30.0, 47.0, 180.0])
@pytest.mark.parametrize(
    ("kind", "smooth"), [("continuous", "bilinear"), ("continuous", "cubic"), ("classes", "bilinear")]
)
def test_what_is_read_does_not_depend_on_how_the_target_is_divided(
    write_raster: WriteRaster, tmp_path: Path, crs: str, resolution: float, kind: Any, smooth: Any
) -> None:
    values = speckled(np.random.default_rng(0), 80, 90)
    transform = (1 / 3600, 0, 86.97, 0, -1 / 3600, 28.02) if crs == DEGREES else (30, 0, 495_000, 0, -30, 3_100_000)
    path = write_raster(tmp_path / "a.tif", values, crs, transform)
    target = target_grid(path, "EPSG:32645", resolution).padded(4)
    whole = read(path, [1, 2], target, kind, smooth=smooth)
    assert 0.3 < np.isfinite(whole).mean() < 0.97
    for size in (21, 60):
        mosaic = np.zeros_like(whole)
        for window in tile_windows(target, size):
            mosaic[window.slices] = read(path, [1, 2], target.window(window), kind, smooth=smooth)
        np.testing.assert_allclose(mosaic, whole, atol=1e-5)


def test_centres_on_a_border_between_pixels_fall_on_one_side_of_it(write_raster: WriteRaster, tmp_path: Path) -> None:
    left, top, side = 500_000.7, 7_654_321.3, 0.3
    rows, columns = np.meshgrid(np.arange(200) % 2, np.arange(200) % 2, indexing="ij")
    path = write_raster(tmp_path / "a.tif", (2 * rows + columns).astype(np.uint8), UTM, (side, 0, left, 0, -side, top))
    target = target_grid(path, resolution=2 * side)
    values = [
        read(path, [1], target.window(window), kind="classes").ravel()
        for size in (7, 100)
        for window in tile_windows(target, size)
    ]
    assert len(np.unique(np.concatenate(values))) == 1


@pytest.mark.parametrize("side", [30.0, 17.0])
def test_what_is_derived_from_neighbours_has_no_seams(write_raster: WriteRaster, tmp_path: Path, side: float) -> None:
    def gradient(values: Values, grid: Grid) -> Values:
        across = np.pad(values[:, 2:] - values[:, :-2], ((0, 0), (1, 1), (0, 0)), constant_values=1e6)
        return np.concatenate([values, across / grid.resolution[0]], axis=-1)

    path = write_raster(tmp_path / "a.tif", np.random.default_rng(0).random((60, 70), dtype=np.float32))
    target = target_grid(path, resolution=side)
    inner = target.padded(-6)
    whole = read_derived(path, [1], inner, gradient, 1)
    assert whole.shape == (inner.height, inner.width, 2)
    assert np.abs(whole).max() < 2
    for window in tile_windows(inner, 20):
        part = read_derived(path, [1], inner.window(window), gradient, 1)
        np.testing.assert_allclose(part, whole[window.slices], atol=1e-5)


def test_reading_in_pieces_gives_the_same_in_less_memory(
    write_raster: WriteRaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raster(tmp_path / "a.tif", speckled(np.random.default_rng(0), 150, 200))
    targets = target_grid(path, "EPSG:32644", 20), target_grid(path, "EPSG:32644", 200), target_grid(path, None, 200)
    whole = [read(path, [1, 2], target) for target in targets]
    monkeypatch.setattr(grids, "_MOST_VALUES", 10_000)
    most = 0
    original = grids._Source.read

    def watched(self: Any, indexes: Any, window: Window, nodata: Any) -> Values:
        nonlocal most
        most = max(most, window.height * window.width * len(indexes))
        return original(self, indexes, window, nodata)

    monkeypatch.setattr(grids._Source, "read", watched)
    for target, expected in zip(targets, whole, strict=True):
        np.testing.assert_allclose(read(path, [1, 2], target), expected, atol=1e-5)
    assert most <= 10_000


@pytest.mark.parametrize("transform", [(30, 0, 500_000, 0, 30, 3_000_000), (21, 21, 500_000, 21, -21, 3_000_000)])
def test_sources_may_be_south_up_or_rotated(
    write_raster: WriteRaster, tmp_path: Path, transform: tuple[float, ...]
) -> None:
    source = Grid(UTM, transform, 100, 100)  # type: ignore[arg-type]
    x, y = pixel_centres(source, UTM)
    path = write_raster(tmp_path / "a.tif", np.dstack([x - 500_000, y - 3_000_000]).astype(np.float32), UTM, transform)
    left, bottom, right, top = source.bounds
    target = utm(left, top, int((top - bottom) // 20), int((right - left) // 20), side=20)
    values = read(path, [1, 2], target)
    expected = np.stack(pixel_centres(target, UTM), axis=-1) - (500_000, 3_000_000)
    columns, rows = source.pixels(*pixel_centres(target, UTM))
    inside = (columns > 1) & (columns < 99) & (rows > 1) & (rows < 99)
    assert inside.sum() > 1000
    np.testing.assert_allclose(values[inside], expected[inside], atol=0.05)


def test_a_projected_target_across_the_antimeridian_reads_both_ends_of_a_mosaic_of_the_earth(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    columns = np.arange(3600, dtype=np.float32) + 0.5
    longitudes = np.broadcast_to(-180 + columns / 10, (1000, 3600))
    cosines = np.dstack([np.cos(np.radians(longitudes)), np.sin(np.radians(longitudes))]).astype(np.float32)
    path = write_raster(tmp_path / "a.tif", cosines, "EPSG:4326", (0.1, 0, -180, 0, -0.02, 90))
    wrangel = utm(250_000, 8_100_000, 50, 80, side=4000, crs=rasterio.crs.CRS.from_epsg(32601).to_wkt())
    # The pole is between the places where it is looked up what lies under the target.
    pole = utm(-210_000, 210_000, 40, 40, side=10_000, crs=rasterio.crs.CRS.from_epsg(3413).to_wkt())
    assert np.ptp(pixel_centres(wrangel, DEGREES)[0]) > 180
    for target in (wrangel, pole):
        longitude, latitude = pixel_centres(target, DEGREES)
        expected = np.stack([np.cos(np.radians(longitude)), np.sin(np.radians(longitude))], axis=-1)
        values = read(path, [1, 2], target)
        assert np.isfinite(values).all()
        near = latitude > 89.8
        assert near.sum() <= 16
        np.testing.assert_allclose(values[~near], expected[~near], atol=0.01)
        assert overlaps(path, target)


def test_beyond_the_raster_there_is_nothing(write_raster: WriteRaster, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((20, 20, 2), np.float32))
    for target in (utm(700_000, 3_100_000, 5, 6), utm(700_003, 3_100_000, 5, 6), utm(7e5, 3.1e6, 5, 6, side=300)):
        values = read(path, [1, 2], target)
        assert values.shape == (5, 6, 2)
        assert values.dtype == np.float32
        assert np.isnan(values).all()


# -- footprints ------------------------------------------------------------------------------------------------


def test_overlaps_follows_bent_edges(write_raster: WriteRaster, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((40, 40), np.float32), transform=(1000, 0, 4e5, 0, -1000, 7e6))
    grid = read_grid(path)
    assert overlaps(path, grid.window(Window(39, 39, 5, 5)))
    assert not overlaps(path, grid.window(Window(40, 0, 5, 5)))
    assert not overlaps(path, utm(1e6, 7e6, 5, 5))
    # A bar across the raster, with no corner inside, nor one of the raster's in it.
    assert overlaps(path, Grid(UTM, (1e6, 0, -1e6, 0, -10, 6.9901e6), 1, 4))
    # A parallel bends northwards of the straight line between its ends: 1 km over 40° of longitude and more.
    wide = write_raster(tmp_path / "b.tif", np.ones((10, 400), np.float32), "EPSG:4326", (0.1, 0, 67, 0, -0.1, 60))
    middle = Transformer.from_crs(DEGREES, UTM, always_xy=True).transform(87, 59.95)
    assert overlaps(wide, utm(middle[0], middle[1], 3, 3))
    assert not overlaps(wide, utm(middle[0], middle[1] + 20_000, 3, 3))


# -- open rasters ----------------------------------------------------------------------------------------------


def test_few_rasters_stay_open_and_a_replaced_one_is_read_anew(
    write_raster: WriteRaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grids, "_MOST_OPEN", 3)
    close()
    paths = [write_raster(tmp_path / f"{n}.tif", np.full((4, 5), n, np.float32)) for n in range(5)]
    for number, path in enumerate(paths):
        assert (read(path, [1], read_grid(path)) == number).all()
    assert list(grids._open.sources) == [str(path) for path in paths[2:]]
    kept = [source.dataset for source in grids._open.sources.values()]
    write_raster(paths[4], np.full((6, 5), 9, np.float32))
    assert (read(paths[4], [1], read_grid(paths[4])) == 9).all()
    assert kept[2].closed
    close()
    assert all(dataset.closed for dataset in kept)
    assert (read(paths[3], [1], read_grid(paths[3])) == 3).all()


def _mean_in_child(path: Path) -> float:
    return float(read(path, [1], read_grid(path)).mean())


def test_threads_and_forked_processes_open_their_own(write_raster: WriteRaster, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.full((64, 64), 4, np.float32), tiled=True, blockxsize=16, blockysize=16)
    read_grid(path)
    mine = grids._open.sources[str(path)].dataset
    theirs: list[Any] = []
    thread = threading.Thread(target=lambda: theirs.extend([_mean_in_child(path), *grids._open.sources.values()]))
    thread.start()
    thread.join()
    assert theirs[0] == 4
    assert theirs[1].dataset is not mine
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_mean_in_child, [path] * 4) == [4.0] * 4
    assert not mine.closed
    assert _mean_in_child(path) == 4
