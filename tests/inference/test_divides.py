"""Ice split by divides and by basins, along pixels' edges, without slivers."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from console import UserError
from data.grids import Grid
from inference.divides import Divides, read_divides, split

GRID = Grid("EPSG:32645", (30, 0, 500_000, 0, -30, 3_100_000), 40, 60)


def placed(*shapes: shapely.Geometry) -> list[shapely.Geometry]:
    """Return shapes given in pixels where they lie on earth."""
    return [shapely.transform(shape, lambda xy: np.stack(GRID.xy(*xy.T), axis=1)) for shape in shapes]


def written(path: Path, shapes: list[shapely.Geometry], crs: str = "EPSG:4326", **fields: list[str]) -> Path:
    geopandas.GeoDataFrame(fields, geometry=shapes, crs=GRID.crs).to_crs(crs).to_file(path)
    return path


def ice() -> NDArray[np.int32]:
    """Return two bodies: a large one, 20 × 50 pixels, and a small one."""
    bodies = np.zeros((40, 60), np.int32)
    bodies[5:25, 5:55] = 1
    bodies[30:36, 10:20] = 2
    return bodies


def test_a_line_from_edge_to_edge_splits_and_one_that_ends_on_the_ice_does_not(tmp_path: Path) -> None:
    across, half = shapely.LineString([(30, 0), (33, 30)]), shapely.LineString([(45, 0), (45, 15)])
    divides = read_divides(written(tmp_path / "divides.gpkg", placed(across, half)), GRID)
    bodies, ids = split(ice(), divides, 5)
    assert ids == [None, None, None] and bodies.max() == 3
    np.testing.assert_array_equal(bodies > 0, ice() > 0)
    np.testing.assert_array_equal(bodies == 2, ice() == 2)
    west, east = (bodies == number for number in sorted({1, 3}, key=lambda n: np.nonzero(bodies == n)[1].mean()))
    for row in range(5, 25):
        divide = 30 + 3 * (row + 0.5) / 30
        assert np.flatnonzero(west[row]).max() + 1 == pytest.approx(divide, abs=1)
        assert np.flatnonzero(west[row]).max() + 1 == np.flatnonzero(east[row]).min()


def test_basins_split_and_what_is_in_none_goes_to_the_nearest_on_the_ice(tmp_path: Path) -> None:
    # An older inventory: its glaciers ended earlier, and one of its edges runs through the ice's margin.
    west, east = shapely.box(8, 7, 30, 24.4), shapely.box(30, 7, 52, 27)
    path = written(tmp_path / "rgi.gpkg", placed(west, east), rgi_id=["W", "E"])
    bodies, ids = split(ice(), read_divides(path, GRID), 5)
    assert ids == ["W", None, "E"]
    # Below the western basin's end, the pixels at the divide are as near to the one as to the other.
    assert (bodies[5:25, 5:29] == 1).all() and (bodies[5:25, 30:55] == 3).all() and (bodies[30:36, 10:20] == 2).all()
    assert (bodies[5:24, 29] == 1).all()


def test_slivers_join_their_neighbours(tmp_path: Path) -> None:
    west, sliver = shapely.box(0, 0, 54, 40), shapely.box(54, 0, 60, 40)
    divides = read_divides(written(tmp_path / "basins.gpkg", placed(west, sliver)), GRID)
    assert split(ice(), divides, 21)[0].max() == 2
    assert split(ice(), divides, 20)[0].max() == 3


def test_parts_hang_together_and_every_pixel_stays_ice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        bodies = ndimage.label(ndimage.gaussian_filter(rng.standard_normal((40, 60)), 2) > -0.05)[0].astype(np.int32)
        basins = ndimage.gaussian_filter(rng.standard_normal((40, 60)), 4)
        zones = np.digitize(basins, np.quantile(basins, [0.2, 0.5, 0.8])).astype(np.int32)
        parts, ids = split(bodies, Divides(zones, ("a", "b", "c")), 10)
        np.testing.assert_array_equal(parts > 0, bodies > 0)
        assert len(ids) == parts.max() == len(np.unique(parts)) - (parts == 0).any()
        for number in range(1, len(ids) + 1):
            assert ndimage.label(parts == number)[1] == 1
            assert len(np.unique(bodies[parts == number])) == 1


def test_divides_elsewhere_or_without_a_crs_are_refused(tmp_path: Path) -> None:
    line, beside = shapely.LineString([(-500, -500), (-400, -500)]), shapely.LineString([(-50, 30), (30, -50)])
    for far in (line, beside):
        with pytest.raises(UserError, match="no ice divide meets the scene"):
            read_divides(written(tmp_path / "far.gpkg", placed(far)), GRID)
    with pytest.raises(UserError, match="none of its polygons|scene"):
        read_divides(written(tmp_path / "basin.gpkg", placed(line.buffer(1))), GRID)
    geopandas.GeoDataFrame(geometry=placed(line)).to_file(tmp_path / "bare.gpkg")
    with pytest.raises(UserError, match="no coordinate reference system"):
        read_divides(tmp_path / "bare.gpkg", GRID)
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=GRID.crs)
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(UserError, match="geometries of type Point"):
        read_divides(tmp_path / "points.gpkg", GRID)
