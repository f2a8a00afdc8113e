"""Regions as polygons: the same pixels back, borders in common, valid whatever the smoothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from rasterio import features
from rasterio.transform import Affine
from scipy import ndimage

from inference.topology import UNKNOWN, Smoothing, polygons, smoothed, trace

Regions = NDArray[np.int32]


def numbered(labels: NDArray[np.integer]) -> Regions:
    """Number connected pixels of one value; 0 is background, 255 unknown."""
    regions = np.where(labels == 255, UNKNOWN, 0).astype(np.int32)
    for value in np.unique(labels[(labels > 0) & (labels < 255)]):
        found, _ = ndimage.label(labels == value)
        regions[found > 0] = found[found > 0] + max(int(regions.max()), 0)
    return regions


def maps(count: int = 60) -> Iterator[Regions]:
    """Yield maps of all kinds: noise and blocks, one to three classes, with and without unknown pixels."""
    rng = np.random.default_rng(0)
    for number in range(count):
        labels = rng.integers(0, rng.integers(2, 5), rng.integers(1, 36, 2))
        side = 1 + number % 3
        labels = np.repeat(np.repeat(labels, side, axis=0), side, axis=1)
        if number % 4 == 0:
            labels[rng.random(labels.shape) < 0.1] = 255
        yield numbered(labels)


def drawn(rows: str) -> Regions:
    """Return the regions of a drawing: a digit a class, `.` background, `?` unknown."""
    values = {".": 0, "?": 255, "1": 1, "2": 2, "3": 3}
    return numbered(np.array([[values[letter] for letter in row] for row in rows.split()]))


def burned(shapes: NDArray[np.object_], shape: tuple[int, ...]) -> Regions:
    """Return polygons on the grid again, by the pixels' centres."""
    pairs = [(polygon, number) for number, polygon in enumerate(shapes, 1)]
    if not pairs:
        return np.zeros(shape, np.int32)
    return np.asarray(features.rasterize(pairs, shape, transform=Affine.identity(), dtype="int32"))


def assert_sound(shapes: NDArray[np.object_], count: int) -> None:
    """Check that polygons are valid, each is one, and neighbours share all of their borders."""
    assert len(shapes) == count
    assert (shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON).all()
    assert shapely.is_valid(shapes).all() and not shapely.is_empty(shapes).any()
    assert shapely.coverage_is_valid(shapes)


@pytest.mark.parametrize("how", ["none", "chaikin"])
def test_polygons_have_the_pixels_of_their_regions_back_and_common_borders(how: Smoothing) -> None:
    for regions in maps():
        shapes = polygons(smoothed(trace(regions), how))
        assert_sound(shapes, max(int(regions.max()), 0))
        np.testing.assert_array_equal(burned(shapes, regions.shape), np.maximum(regions, 0))


def test_polygons_are_those_that_gdal_makes() -> None:
    for regions in maps(20):
        made = polygons(trace(regions))
        found = features.shapes(regions, mask=regions > 0, connectivity=4)
        theirs = {int(number): shapely.geometry.shape(geometry) for geometry, number in found}
        assert len(theirs) == len(made)
        for number, polygon in enumerate(made, 1):
            assert polygon.equals(theirs[number])
            assert polygon.area == (regions == number).sum()


@pytest.mark.parametrize("tolerance", [0.71, 1.5, 6.0])
def test_simplified_polygons_neither_overlap_nor_lose_a_hole(tolerance: float) -> None:
    fewer = 0
    for regions in maps():
        arcs = trace(regions)
        simple = smoothed(arcs, "douglas-peucker", tolerance)
        before, after = polygons(arcs), polygons(simple)
        assert_sound(after, len(before))
        np.testing.assert_array_equal(shapely.get_num_interior_rings(after), shapely.get_num_interior_rings(before))
        assert (shapely.hausdorff_distance(simple.lines, arcs.lines) <= tolerance + 1e-9).all()
        fewer += int(shapely.get_num_coordinates(arcs.lines).sum() - shapely.get_num_coordinates(simple.lines).sum())
    assert fewer > 500


def test_a_shore_is_not_simplified_across_an_island() -> None:
    island = np.zeros((30, 60), np.int32)
    island[2:28, 2:58] = 1
    island[2:6, 20:28] = 0  # a bay
    island[3:5, 23:25] = 2
    simple = smoothed(trace(island), "douglas-peucker", 5.0)
    shore, land = polygons(simple)
    assert not shore.intersects(land)
    alone = smoothed(trace(np.where(island == 1, island, 0).astype(np.int32)), "douglas-peucker", 5.0)
    assert polygons(alone)[0].contains_properly(land), "else there is nothing to avoid"


def test_tolerances_are_in_units_of_pixels_that_may_be_oblong() -> None:
    stairs = numbered(np.tri(12, dtype=int))
    metres = smoothed(trace(stairs), "douglas-peucker", 8.0, (30.0, 10.0))
    assert (
        shapely.get_num_coordinates(metres.lines).sum()
        > shapely.get_num_coordinates(smoothed(trace(stairs), "douglas-peucker", 11.0, (30.0, 10.0)).lines).sum()
    )


@pytest.mark.parametrize("how", ["chaikin", "douglas-peucker"])
def test_borders_to_unknown_ground_and_the_maps_edge_stay(how: Smoothing) -> None:
    regions = drawn("11111??. 1111??.. 111..... 11......")
    arcs = trace(regions)
    fixed = (arcs.sides == UNKNOWN).any(axis=1)
    smooth = smoothed(arcs, how, 1.0)
    assert fixed.any() and not fixed.all()
    assert shapely.equals_exact(smooth.lines[fixed], arcs.lines[fixed]).all()
    assert not shapely.equals_exact(smooth.lines[~fixed], arcs.lines[~fixed]).any()
    assert arcs.at_unknown().tolist() == [False, True]


def test_pixels_that_touch_at_corners_are_apart_and_holes_may_touch_the_edge() -> None:
    apart = polygons(trace(drawn("1. .1")))
    assert len(apart) == 2 and apart[0].touches(apart[1])
    hollow = polygons(trace(drawn("1111 1.11 1111")))
    assert len(hollow) == 1 and len(hollow[0].interiors) == 1
    touching = polygons(trace(drawn(".111 1.11 1111")))
    assert len(touching) == 1 and touching[0].is_valid and touching[0].area == 10


def test_groups_are_regions_that_border_on_one_another() -> None:
    regions = drawn("11.33 12.33 22...")
    arcs = trace(regions)
    groups = arcs.groups(np.array([0, 1, 1, 1]))
    assert groups.tolist() == [0, 1, 1, 2]
    first, second = polygons(arcs, groups)
    one, two, three = polygons(arcs)
    assert first.equals(one.union(two)) and second.equals(three)
    assert arcs.groups(np.array([0, 1, 2, 1])).tolist() == [0, 1, 2, 3]
    assert arcs.groups(np.array([0, 0, 1, 1])).tolist() == [0, 0, 1, 2]
    assert arcs.groups(np.array([0, 1, 1, 1]), np.zeros(len(arcs.lines), bool)).tolist() == [0, 1, 2, 3]


def test_a_map_without_regions_has_no_polygons() -> None:
    for value in (0, UNKNOWN):
        arcs = trace(np.full((3, 4), value, np.int32))
        assert not len(arcs.lines) and not len(polygons(arcs))
        assert not len(smoothed(arcs, "chaikin").lines)
