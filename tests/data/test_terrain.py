"""Slope, aspect and curvature: planes of known slope in many CRSs, the formula of gdaldem, gaps, tiles, a real DEM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import Geod, Proj, Transformer

from console import UserError
from data.grids import Grid, read, read_grid, target_grid, tile_windows
from data.terrain import TERRAIN, read_terrain, slope_deg, terrain
from tests.conftest import WriteRaster

PLACES = {
    "utm": ("EPSG:32645", (30, 0, 700_000, 0, -30, 6_650_000)),
    "degrees": ("EPSG:4326", (1 / 3600, 0, 87, 0, -1 / 3600, 60)),
    "web-mercator": ("EPSG:3857", (60, 0, 9e6, 0, -60, 8_400_000)),
    "polar-stereographic": ("EPSG:3413", (30, 0, 500_000, 0, -30, -2_500_000)),
    "polar-stereographic-beyond-the-pole": ("EPSG:3413", (30, 0, -500_000, 0, -30, 2_500_000)),
    "rotated": ("EPSG:32645", (20, 15, 700_000, 15, -20, 6_650_000)),
    "south-up": ("EPSG:32645", (30, 0, 700_000, 0, 30, 6_650_000)),
    "antarctic": ("EPSG:3031", (30, 0, 1_200_000, 0, -30, 1_200_000)),
}


def place(name: str, height: int = 40, width: int = 50) -> Grid:
    crs, transform = PLACES[name]
    return Grid(rasterio.crs.CRS.from_string(crs).to_wkt(), transform, height, width)


def centres(grid: Grid, crs: str = "EPSG:4326") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, columns = np.meshgrid(np.arange(grid.height) + 0.5, np.arange(grid.width) + 0.5, indexing="ij")
    return Transformer.from_crs(grid.crs, crs, always_xy=True).transform(*grid.xy(columns, rows))


def polar(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return azimuths (rad) and distances (m) on the ellipsoid of the pixels, seen from the grid's centre."""
    longitude, latitude = centres(grid)
    x, y = grid.xy(np.array(grid.width / 2), np.array(grid.height / 2))
    middle = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(float(x), float(y))
    azimuth, _, distance = Geod(ellps="WGS84").inv(
        np.full_like(longitude, middle[0]), np.full_like(latitude, middle[1]), longitude, latitude
    )
    return np.radians(azimuth), distance


def plane(grid: Grid, slope: float, aspect: float) -> NDArray[np.float64]:
    """Elevations of ground that falls by `slope` degrees towards `aspect`, degrees from true north."""
    azimuth, distance = polar(grid)
    return 3000 - np.tan(np.radians(slope)) * distance * np.cos(azimuth - np.radians(aspect))


def rough(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Mountains: noise over a few lengths."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    ground = np.full((height, width), 4000.0)
    for length in (7, 15, 31, 63):
        phase = rng.random(4) * 6
        ground += 6 * length * np.sin(rows / length * 2 + phase[0]) * np.sin(columns / length * 1.6 + phase[1])
    return ground


def aspect_deg(bands: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.degrees(np.arctan2(bands[..., 0], bands[..., 1])) % 360


# -- what is derived -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(("slope", "aspect"), [(5, 10), (30, 130), (60, 275)])
def test_planes_have_their_slope_and_aspect_in_true_metres_from_true_north(
    name: str, slope: float, aspect: float
) -> None:
    grid = place(name)
    bands = terrain(plane(grid, slope, aspect), grid)
    np.testing.assert_allclose(bands[..., 1], slope, atol=0.003)
    np.testing.assert_allclose(aspect_deg(bands[..., 2:4]), aspect, atol=0.04)
    np.testing.assert_allclose(np.hypot(bands[..., 2], bands[..., 3]), 1, atol=1e-6)
    np.testing.assert_allclose(bands[1:-1, 1:-1, 4], 0, atol=0.002)


@pytest.mark.parametrize("name", PLACES)
def test_a_dome_is_convex_by_its_radius(name: str) -> None:
    grid, radius_m = place(name), 5000
    dome = terrain(4000 - polar(grid)[1] ** 2 / 2 / radius_m, grid, ["curvature"])[1:-1, 1:-1, 0]
    np.testing.assert_allclose(dome, 2 * 100 / radius_m, rtol=0.01)


def test_slope_and_aspect_are_those_of_gdaldem() -> None:
    z = rough(np.random.default_rng(0), 50, 60)
    grid = Grid(place("utm").crs, (30, 0, 500_000 - 900, 0, -30, 3_100_000), 50, 60)
    a, b, c, d, _, f, g, h, i = (z[row : row + 48, column : column + 58] for row in range(3) for column in range(3))
    east = ((c + 2 * f + i) - (a + 2 * d + g)) / 8 / 30
    north = ((a + 2 * b + c) - (g + 2 * h + i)) / 8 / 30
    # gdaldem takes the grid's metres: 0.9996 of them are one on the ground, at UTM's central meridian.
    scale = Proj("EPSG:32645").get_factors(87, 28).meridional_scale
    bands = terrain(z, grid)[1:-1, 1:-1]
    assert bands[..., 1].max() > 35
    np.testing.assert_allclose(bands[..., 1], np.degrees(np.arctan(scale * np.hypot(east, north))), atol=1e-3)
    turned = aspect_deg(bands[..., 2:4]) - np.degrees(np.arctan2(-east, -north)) % 360
    assert np.abs((turned + 180) % 360 - 180).max() < 0.02


def test_level_ground_has_no_direction() -> None:
    grid = place("utm")
    bands = terrain(np.full((40, 50), 7.0), grid)
    np.testing.assert_array_equal(bands[..., :4], np.broadcast_to([7, 0, 0, 0], (40, 50, 4)))


@pytest.mark.parametrize("name", ["utm", "degrees"])
def test_gaps_make_no_cliffs_and_erase_nothing_but_themselves(name: str) -> None:
    grid = place(name)
    z = plane(grid, 25, 200)
    rng = np.random.default_rng(0)
    z[rng.random(z.shape) < 0.2] = np.nan
    z[10:20, 10:30] = np.nan
    bands = terrain(z, grid)
    known = ~np.isnan(bands[..., 1])
    np.testing.assert_allclose(bands[known][:, 1], 25, atol=0.003)
    np.testing.assert_allclose(aspect_deg(bands[known][:, 2:4]), 200, atol=0.03)
    neighbours = sum(
        ~np.isnan(np.pad(z, 1, constant_values=np.nan)[1 + row : 41 + row, 1 + column : 51 + column])
        for row in (-1, 0, 1)
        for column in (-1, 0, 1)
    )
    assert not known[np.isnan(z)].any()
    assert known[~np.isnan(z) & (np.asarray(neighbours) >= 4)].all()
    assert known.sum() > 0.99 * (~np.isnan(z)).sum()


def test_a_pixel_that_stands_alone_has_no_slope() -> None:
    grid = place("utm", 7, 7)
    z = np.full((7, 7), np.nan)
    z[3, 3] = 3000
    assert terrain(z, grid, ["elevation"])[3, 3, 0] == 3000
    assert np.isnan(slope_deg(z, grid)).all()
    z[3, 4] = 3010  # one direction is known, not how steep the ground is
    assert np.isnan(slope_deg(z, grid)).all()
    z[2, 3] = 3000
    assert slope_deg(z, grid)[3, 3] == pytest.approx(np.degrees(np.arctan(10 / 30)), abs=0.03)


# -- read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["utm", "degrees", "polar-stereographic", "south-up"])
@pytest.mark.parametrize("side", [7.0, 30.0, 95.0])
def test_planes_keep_their_slope_whatever_the_resolution(
    write_raster: WriteRaster, tmp_path: Path, source: str, side: float
) -> None:
    grid = place(source, 100, 120)
    path = write_raster(tmp_path / "a.tif", plane(grid, 20, 70).astype(np.float32), grid.crs, grid.transform)
    crs = rasterio.crs.CRS.from_epsg(32624 if source == "polar-stereographic" else 32645).to_wkt()
    x, y = (part[50, 60] for part in centres(grid, crs))
    target = Grid(crs, (side, 0, x - 5 * side, 0, -side, y + 5 * side), 10, 10)
    bands = read_terrain(path, target, TERRAIN)
    np.testing.assert_allclose(bands[..., 1], 20, atol=0.05)
    np.testing.assert_allclose(aspect_deg(bands[..., 2:4]), 70, atol=0.2)
    np.testing.assert_allclose(bands[..., 4], 0, atol=0.02)
    np.testing.assert_array_equal(bands[..., 0], read(path, [1], target)[..., 0])


def test_a_coarse_model_gives_no_terraces(write_raster: WriteRaster, tmp_path: Path) -> None:
    # A parabola: its slope changes evenly, that of linear pieces jumps at the model's pixels.
    grid = Grid(place("utm").crs, (90, 0, 500_000, 0, -90, 3_100_000), 40, 40)
    rows = np.broadcast_to((np.arange(40)[:, None] + 0.5) * 90, (40, 40))
    path = write_raster(tmp_path / "a.tif", (rows**2 / 10_000).astype(np.float32), grid.crs, grid.transform)
    target = Grid(grid.crs, (10, 0, 500_900, 0, -10, 3_099_100), 180, 180)
    slope = read_terrain(path, target, ["slope"])[..., 0]
    from_top = (np.arange(180) + 0.5) * 10 + 900
    expected = np.degrees(np.arctan(from_top / 5000))
    np.testing.assert_allclose(slope, np.broadcast_to(expected[:, None], slope.shape), atol=0.05)


@pytest.mark.parametrize("source", ["utm", "degrees"])
@pytest.mark.parametrize("side", [11.0, 30.0, 100.0])
def test_tiles_have_no_seams(write_raster: WriteRaster, tmp_path: Path, source: str, side: float) -> None:
    grid = place(source, 70, 90)
    z = rough(np.random.default_rng(1), 70, 90).astype(np.float32)
    z[30:40, 20:33] = -9999
    path = write_raster(tmp_path / "a.tif", z, grid.crs, grid.transform, nodata=-9999)
    crs = "EPSG:32645" if source == "degrees" else None
    target = target_grid(grid, crs, side)
    whole = read_terrain(path, target, TERRAIN)
    assert np.isfinite(whole).mean() > 0.6
    mosaic = np.zeros_like(whole)
    for window in tile_windows(target, max(10, round(1000 / side))):
        mosaic[window.slices] = read_terrain(path, target.window(window), TERRAIN)
    np.testing.assert_allclose(mosaic, whole, atol=2e-4)


@pytest.mark.parametrize("bands", [[], ["slope", "roughness"]])
def test_bands_that_nobody_derives_are_refused(write_raster: WriteRaster, tmp_path: Path, bands: Sequence[str]) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((5, 5), np.float32))
    with pytest.raises(UserError, match="expected some of elevation, slope"):
        read_terrain(path, read_grid(path), bands)


def test_a_real_model_has_plausible_slopes_also_beside_its_gaps(shared: Path) -> None:
    path = shared / "real" / "exploradores" / "AST_L1A_00303182012144228_Z.tif"
    own = read_grid(path)
    for target in (
        own,
        target_grid(own, resolution=15),
        target_grid(own, resolution=100),
        target_grid(own, "EPSG:32719"),
    ):
        bands = read_terrain(path, target, TERRAIN)
        missing = np.isnan(bands[..., 0])
        assert 0.01 < missing.mean() < 0.2
        known = bands[~missing]
        assert 0 < known[:, 0].min() < known[:, 0].max() < 4000
        assert np.isfinite(known[:, 1]).mean() > 0.999
        assert 10 < np.nanmedian(known[:, 1]) < 40
        assert np.nanpercentile(known[:, 1], 99.9) < 80
        # -9999 taken for an elevation would be a cliff of 89°; what the model itself has at its gaps is up to 86°.
        assert known[:, 0].min() > 300
        assert np.nanmax(known[:, 1]) < 87
        assert np.abs(np.nanmean(known[:, 4])) < 0.5
