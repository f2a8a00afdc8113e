"""Terrain, means and neighbourhoods of regions, held against each region on its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data.grids import read_grid
from data.terrain import read_terrain
from data.windows import Window
from inference import zonal
from inference.zonal import means, owners, terrain
from tests.conftest import WriteRaster

SHAPE = (60, 70)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read rasters in blocks that are smaller than regions."""
    monkeypatch.setattr(zonal, "_BLOCK", 23)


def regions() -> zonal.Regions:
    """Return 12 regions, and unknown pixels."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 3)
    numbered = ndimage.label(field > 0)[0].astype(np.int32)
    numbered[:4, :9] = -1
    return numbered


def test_terrain_is_that_of_each_region_and_of_each_group(tmp_path: Path, write_raster: WriteRaster) -> None:
    numbered = regions()
    rng = np.random.default_rng(1)
    elevation = (4000 + 500 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 4)).astype(np.float32)
    elevation[30:34, 20:60] = -9999
    dem = write_raster(tmp_path / "dem.tif", elevation, nodata=-9999)
    grid = read_grid(dem)
    count = int(numbered.max())
    groups = np.arange(count + 1, dtype=np.int32) // 3
    z, slope, east, north = np.moveaxis(
        read_terrain(dem, grid, ("elevation", "slope", "aspect_sin", "aspect_cos")), -1, 0
    )
    lookups = np.arange(count + 1, dtype=np.int32), groups
    for made, lookup in zip(terrain(dem, grid, numbered, groups), lookups, strict=True):
        assert len(made.zmin_m) == lookup.max()
        for number in range(1, int(lookup.max()) + 1):
            mine = np.isin(numbered, np.flatnonzero(lookup == number)) & (numbered > 0)
            assert made.zmin_m[number - 1] == np.nanmin(z[mine])
            assert made.zmax_m[number - 1] == np.nanmax(z[mine])
            assert made.zmean_m[number - 1] == pytest.approx(np.nanmean(z[mine].astype(float)))
            assert made.zmed_m[number - 1] == pytest.approx(np.nanmedian(z[mine]), abs=0.011)
            assert made.slope_deg[number - 1] == pytest.approx(np.nanmean(slope[mine].astype(float)))
            aspect = np.degrees(np.arctan2(np.nansum(east[mine]), np.nansum(north[mine]))) % 360
            assert made.aspect_deg[number - 1] == pytest.approx(aspect, abs=1e-3)


def test_aspects_have_sectors_as_in_rgi_7(tmp_path: Path, write_raster: WriteRaster) -> None:
    rows, columns = np.indices((40, 40))
    sectors = {}
    for degrees in (0, 20, 25, 90, 181, 271, 337, 338, 359):
        east, north = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
        falling = 5000 - 10 * (east * columns - north * rows)
        dem = write_raster(
            tmp_path / "dem.tif", falling.astype(np.float32), "EPSG:32645", (30, 0, 500_000, 0, -30, 5e4)
        )
        made, _ = terrain(dem, read_grid(dem), np.ones((40, 40), np.int32))
        assert (made.aspect_deg[0] - degrees + 180) % 360 - 180 == pytest.approx(0, abs=0.1)
        sectors[degrees] = int(made.aspect_sec[0])
    assert sectors == {0: 1, 20: 1, 25: 2, 90: 3, 181: 5, 271: 7, 337: 8, 338: 1, 359: 1}


def test_level_ground_has_no_aspect_and_unknown_ground_no_terrain(tmp_path: Path, write_raster: WriteRaster) -> None:
    elevation = np.full((30, 30), 100.0, np.float32)
    elevation[:, 15:] = np.nan
    dem = write_raster(tmp_path / "dem.tif", elevation)
    numbered = np.ones((30, 30), np.int32)
    numbered[:, 20:] = 2
    made, _ = terrain(dem, read_grid(dem), numbered)
    assert made.slope_deg[0] == 0 and np.isnan(made.aspect_deg).all() and made.aspect_sec.tolist() == [9, 9]
    assert made.zmed_m[0] == 100 and np.isnan([made.zmin_m[1], made.zmax_m[1], made.zmed_m[1], made.zmean_m[1]]).all()


def test_means_leave_out_what_is_unknown() -> None:
    numbered = regions()
    values = np.random.default_rng(2).random(SHAPE)
    values[:, 30] = np.nan
    sums, numbers = means(numbered, lambda window: values[window.slices])
    for number in range(1, int(numbered.max()) + 1):
        mine = (numbered == number) & ~np.isnan(values)
        assert numbers[number] == mine.sum() and sums[number] == pytest.approx(values[mine].sum())


def test_pixels_belong_to_the_nearest_polygon_within_reach() -> None:
    numbered = regions()
    groups = np.where(np.arange(numbered.max() + 1) % 2, np.arange(numbered.max() + 1), 0).astype(np.int32)
    found = owners(numbered, groups, 95.0, (20.0, 30.0))
    lookup = np.append(groups, 0)
    distances = np.stack(
        [
            ndimage.distance_transform_edt(lookup[numbered] != group, sampling=(30.0, 20.0))
            for group in np.unique(groups[groups > 0])
        ]
    )
    nearest = distances.min(axis=0)
    np.testing.assert_array_equal(found > 0, nearest <= 95.0)
    for number, group in enumerate(np.unique(groups[groups > 0])):
        assert (distances[number][found == group] == nearest[found == group]).all()


def test_windows_cover_the_regions() -> None:
    assert zonal._windows(np.zeros((30, 50), np.int32))[0] == Window(0, 0, 30, 23)
