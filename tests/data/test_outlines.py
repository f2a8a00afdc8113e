"""Outlines on grids: pixel by pixel against shapely, distances against geodesics, whatever CRS, format and damage."""

from __future__ import annotations

import datetime
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio.features
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from rasterio import Affine

from console import UserError
from data.grids import Grid, read_grid
from data.outlines import OutlineFile, Outlines, date_warnings, parse_date, rasterise, read_outlines
from data.tiles import IGNORE
from data.windows import Window


def make_grid(
    crs: str = "EPSG:32645",
    corner: tuple[float, float] = (500_000.0, 3_100_000.0),
    pixel: float = 30.0,
    size: tuple[int, int] = (60, 80),
) -> Grid:
    wkt = CRS.from_user_input(crs).to_wkt()
    return Grid(wkt, (pixel, 0.0, corner[0], 0.0, -pixel, corner[1]), *size)


GRID = make_grid()


def write(path: Path, shapes: Sequence[Any], crs: str | None = "EPSG:32645", **columns: Sequence[Any]) -> Path:
    geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs).to_file(path)
    return path


def read(path: Path, shapes: Sequence[Any], grid: Grid = GRID, crs: str = "EPSG:32645", **options: Any) -> Outlines:
    return read_outlines(OutlineFile(write(path, shapes, crs)), grid, **options)


def centres(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return grid.xy(*np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5))


def at(grid: Grid, *places: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the coordinates of places given as column, row."""
    return list(zip(*(values.tolist() for values in grid.xy(*np.array(places).T)), strict=True))


def pixel_box(grid: Grid, left: float, top: float, right: float, bottom: float) -> Any:
    return shapely.Polygon(at(grid, (left, top), (right, top), (right, bottom), (left, bottom)))


def blob(grid: Grid, seed: int, column: float, row: float, radius: float, corners: int = 25) -> Any:
    """Return a star-shaped polygon around a place, in pixels."""
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    radii = radius * random.uniform(0.4, 1.0, corners)
    return shapely.Polygon(
        at(grid, *zip(column + radii * np.cos(angles), row + radii * np.sin(angles), strict=True))
    ).buffer(0)


def glaciers(grid: Grid) -> list[Any]:
    """Return polygons inside, with a hole, and over the edges of a grid of 60×80 pixels."""
    large = blob(grid, 0, 35, 30, 25).difference(blob(grid, 1, 35, 30, 8))
    return [large, blob(grid, 2, 78, 10, 12), blob(grid, 3, 5, 58, 10), blob(grid, 4, 70, 50, 6)]


def reference(shapes: Sequence[Any], grid: Grid) -> NDArray[np.bool_]:
    return np.asarray(shapely.contains_xy(shapely.union_all(list(shapes)), *centres(grid)))


def moved(shape: Any, source: str, target: str, step: float | None = None) -> Any:
    """Return a shape in another CRS, point by point, with points added every `step` units."""
    change = Transformer.from_crs(source, target, always_xy=True).transform
    shape = shape if step is None else shapely.segmentize(shape, step)
    return shapely.transform(shape, lambda xy: np.stack(change(xy[:, 0], xy[:, 1]), axis=-1))


# -- pixels --------------------------------------------------------------------------------------------------


def test_a_pixel_is_of_the_class_that_its_centre_is_in(tmp_path: Path) -> None:
    shapes = glaciers(GRID)
    outlines = read(tmp_path / "o.gpkg", shapes)
    mask = rasterise([(outlines, 1)], GRID)
    assert mask.shape == (60, 80) and mask.dtype == np.uint8
    np.testing.assert_array_equal(mask == 1, reference(shapes, GRID))
    assert mask[30, 35] == 0 and 0.1 < mask.mean() < 0.5
    assert outlines.report.kept == 4 == len(outlines.geometries)
    assert shapely.contains(shapely.box(*GRID.bounds).buffer(1e-6), outlines.geometries).all()
    pixels_km2 = mask.sum() * 30 * 30 / 1e6
    assert outlines.report.area_km2 == pytest.approx(pixels_km2, rel=0.02)
    clipped = shapely.intersection(shapely.union_all(shapes), shapely.box(*GRID.bounds))
    assert outlines.report.area_km2 == pytest.approx(clipped.area / 0.9996**2 / 1e6, rel=1e-3)


def test_later_layers_paint_over_earlier_ones(tmp_path: Path) -> None:
    ice = [pixel_box(GRID, 5, 5, 50, 50)]
    debris = [pixel_box(GRID, 5, 30, 50, 50)]
    lakes = [pixel_box(GRID, 45, 40, 60, 45)]
    layers = [
        (read(tmp_path / f"{index}.gpkg", shapes), index) for index, shapes in enumerate((ice, debris, lakes), start=1)
    ]
    mask = rasterise(layers, GRID, background=7)
    expected = np.full((60, 80), 7)
    expected[5:50, 5:50] = 1
    expected[30:50, 5:50] = 2
    expected[40:45, 45:60] = 3
    np.testing.assert_array_equal(mask, expected)
    mask = rasterise(layers[::-1], GRID)
    assert mask[42, 47] == 1 and mask[42, 55] == 3


def test_all_touched_takes_every_pixel_that_a_polygon_meets(tmp_path: Path) -> None:
    shapes = [pixel_box(GRID, 10.6, 10.6, 10.9, 20.2), blob(GRID, 5, 50, 30, 15)]
    outlines = read(tmp_path / "o.gpkg", shapes)
    touched = rasterise([(outlines, 1)], GRID, all_touched=True) == 1
    inside = rasterise([(outlines, 1)], GRID) == 1
    assert touched[10:21, 10].all() and touched[:, :12].sum() == 11
    assert inside[:, :12].sum() == 0  # a slit between two columns of centres has none
    x, y = centres(GRID)
    meets = shapely.intersects(shapely.union_all(shapes), shapely.box(x - 15, y - 15, x + 15, y + 15))
    np.testing.assert_array_equal(touched, meets)


@pytest.mark.parametrize("angle", [20.0, 200.0])
def test_a_rotated_grid_has_its_own_pixels(tmp_path: Path, angle: float) -> None:
    cosine, sine = 30 * math.cos(math.radians(angle)), 30 * math.sin(math.radians(angle))
    grid = Grid(GRID.crs, (cosine, sine, 500_000.0, sine, -cosine, 3_100_000.0), 60, 80)
    shapes = glaciers(grid)
    outlines = read(tmp_path / "o.gpkg", shapes, grid)
    mask = rasterise([(outlines, 1)], grid, ignore_buffer_m=0)
    np.testing.assert_array_equal(mask == 1, reference(shapes, grid))
    near = rasterise([(outlines, 1)], grid, ignore_buffer_m=50) == IGNORE
    distance = shapely.distance(shapely.union_all(shapes).boundary, shapely.points(*centres(grid))) / 0.9996
    np.testing.assert_array_equal(near, distance <= 50)


def test_what_can_not_be_a_mask_is_refused(tmp_path: Path) -> None:
    outlines = read(tmp_path / "o.gpkg", glaciers(GRID), margin_m=100)
    with pytest.raises(ValueError, match="class ids are 0 … 254, got 255"):
        rasterise([(outlines, 255)], GRID)
    with pytest.raises(ValueError, match="expected 0 … 100"):
        rasterise([(outlines, 1)], GRID, ignore_buffer_m=101)
    with pytest.raises(ValueError, match="ignore_buffer_m"):
        rasterise([(outlines, 1)], GRID, ignore_buffer_m=-1)
    assert not rasterise([], GRID, ignore_buffer_m=10).any()


# -- windows -------------------------------------------------------------------------------------------------

WINDOWS = [Window(0, 0, 60, 80), Window(0, 0, 20, 30), Window(17, 23, 31, 29), Window(40, 50, 20, 30)]


@pytest.mark.parametrize("options", [{}, {"all_touched": True}, {"ignore_buffer_m": 40.0}])
@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:4326"])
def test_the_mask_of_a_window_is_the_window_of_the_mask(tmp_path: Path, crs: str, options: dict[str, Any]) -> None:
    grid = GRID if crs == "EPSG:32645" else make_grid(crs, (25.0, 78.5), 0.0004)
    path = write(tmp_path / "o.gpkg", glaciers(grid), crs)
    lake = read(tmp_path / "lake.gpkg", [blob(grid, 6, 40, 40, 9)], grid, crs)
    outlines = read_outlines(OutlineFile(path), grid)
    whole = rasterise([(outlines, 1), (lake, 2)], grid, **options)
    assert len(np.unique(whole)) == 3 + bool(options.get("ignore_buffer_m"))
    for window in WINDOWS:
        part = grid.window(window)
        np.testing.assert_array_equal(rasterise([(outlines, 1), (lake, 2)], part, **options), whole[window.slices])
        anew = [
            (read_outlines(OutlineFile(source), part, required=False), index)
            for index, source in enumerate((path, tmp_path / "lake.gpkg"), start=1)
        ]
        np.testing.assert_array_equal(rasterise(anew, part, **options), whole[window.slices])


# -- the ignore buffer ---------------------------------------------------------------------------------------


def geodesic_distances(boundary: Any, grid: Grid, crs: str) -> NDArray[np.float64]:
    """Return the true distance in metres from each pixel's centre to a boundary, by points a metre apart on it."""
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    points = shapely.get_coordinates(boundary)
    steps = np.linspace(0, 1, 200, endpoint=False)[:, None]
    dense = np.concatenate([a + steps * (b - a) for a, b in zip(points[:-1], points[1:], strict=True)])
    there = np.stack(to_degrees.transform(*dense.T), axis=-1)
    x, y = (values.ravel() for values in centres(grid))
    here = np.stack(to_degrees.transform(x, y), axis=-1)
    geod = Geod(ellps="WGS84")
    result = np.empty(len(here))
    for index, (longitude, latitude) in enumerate(here):
        far = (there - (longitude, latitude)) * (math.cos(math.radians(latitude)), 1.0)
        nearest = there[np.argsort((far**2).sum(axis=1))[:3]]
        start = np.broadcast_to((longitude, latitude), nearest.shape)
        result[index] = geod.inv(*start.T, *nearest.T)[2].min()
    return result.reshape(grid.height, grid.width)


@pytest.mark.parametrize(
    ("crs", "corner", "pixel"),
    [
        ("EPSG:32645", (640_000.0, 3_100_000.0), 30.0),
        ("EPSG:4326", (86.9, 28.0), 0.0003),
        ("EPSG:4326", (15.0, 78.3), 0.0006),
        ("EPSG:3857", (1_000_000.0, 8_400_000.0), 70.0),  # a metre on the map is 0.5 m on the ground
        ("EPSG:2263", (1_000_000.0, 200_000.0), 100.0),  # in US feet
    ],
)
def test_the_buffer_is_in_true_metres(tmp_path: Path, crs: str, corner: tuple[float, float], pixel: float) -> None:
    grid = make_grid(crs, corner, pixel, (40, 44))
    lake = shapely.Polygon(at(grid, (10, 8), (33, 12), (30, 30), (14, 28)))
    outlines = read(tmp_path / "o.gpkg", [lake], grid, crs)
    distances = geodesic_distances(lake.boundary, grid, crs)
    for buffer_m in (40.0, 120.0):
        mask = rasterise([(outlines, 1)], grid, ignore_buffer_m=buffer_m)
        certain = np.abs(distances - buffer_m) > 0.5
        assert (~certain).sum() < 0.05 * certain.sum()
        np.testing.assert_array_equal((mask == IGNORE)[certain], (distances <= buffer_m)[certain])
        outside = mask != IGNORE
        np.testing.assert_array_equal((mask == 1)[outside], reference([lake], grid)[outside])
        assert (mask == IGNORE).sum() > 30


def test_clipping_at_the_grids_edge_makes_no_boundary(tmp_path: Path) -> None:
    everywhere = pixel_box(GRID, -500, -500, 580, 560)
    outlines = read(tmp_path / "o.gpkg", [everywhere])
    assert (rasterise([(outlines, 1)], GRID, ignore_buffer_m=1000) == 1).all()
    # As large as the grid, while the outline itself ends there.
    outlines = read(tmp_path / "p.gpkg", [pixel_box(GRID, 0, 0, 80, 60)])
    mask = rasterise([(outlines, 1)], GRID, ignore_buffer_m=40)
    assert (mask[1:-1, 1:-1] == 1).all() and (mask[0] == IGNORE).all() and (mask[:, -1] == IGNORE).all()


def test_boundaries_beyond_the_grid_reach_into_it(tmp_path: Path) -> None:
    beyond = [pixel_box(GRID, 82, 10, 100, 20), pixel_box(GRID, -9, -9, 90, -3)]
    outlines = read(tmp_path / "o.gpkg", [*beyond, pixel_box(GRID, 10, 30, 20, 40)])
    assert outlines.report.kept == 1 and outlines.report.read == 3
    mask = rasterise([(outlines, 1)], GRID, ignore_buffer_m=100)  # 3.33 pixels
    assert (mask[10:20, 79] == IGNORE).all() and (mask[10:20, 78] == 0).all() and (mask[0, :75] == IGNORE).sum() == 0
    mask = rasterise([(outlines, 1)], GRID, ignore_buffer_m=110)
    assert (mask[0] == IGNORE).all() and (mask[1, :75] == 0).all()


def test_without_a_margin_there_are_no_boundaries_and_the_same_mask(tmp_path: Path) -> None:
    outlines = read(tmp_path / "o.gpkg", glaciers(GRID))
    plain = read(tmp_path / "o.gpkg", glaciers(GRID), margin_m=0)
    assert len(outlines.boundaries) and not len(plain.boundaries)
    np.testing.assert_array_equal(rasterise([(plain, 1)], GRID), rasterise([(outlines, 1)], GRID))
    with pytest.raises(ValueError, match="expected 0 … 0"):
        rasterise([(plain, 1)], GRID, ignore_buffer_m=1)


@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:4326"])
def test_ice_divides_are_no_boundaries(tmp_path: Path, crs: str) -> None:
    whole = blob(GRID, 0, 40, 30, 25)
    divide = shapely.LineString(at(GRID, (0, 5), (38, 29), (80, 55)))
    parts = list(shapely.get_parts(shapely.ops.split(whole, divide)))
    assert len(parts) == 2
    one, two = (
        read(tmp_path / f"{len(shapes)}.gpkg", [moved(shape, "EPSG:32645", crs) for shape in shapes], crs=crs)
        for shapes in ([whole], parts)
    )
    masks = [rasterise([(outlines, 1)], GRID, ignore_buffer_m=60) for outlines in (one, two)]
    assert two.report.kept == 2 and (masks[0] == IGNORE).sum() > 100
    assert (masks[0] != masks[1]).sum() <= 2
    debris = read(tmp_path / "debris.gpkg", [parts[0]])
    between = rasterise([(one, 1), (debris, 2)], GRID, ignore_buffer_m=60)
    near = shapely.distance(divide.intersection(whole), shapely.points(*centres(GRID))) < 59
    assert (between[near] == IGNORE).all()


# -- reprojected ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32644", "EPSG:3857", "EPSG:4269", "ESRI:102025"])
def test_outlines_are_reprojected_to_the_grid(tmp_path: Path, crs: str) -> None:
    shapes = glaciers(GRID)
    outlines = read(tmp_path / "o.gpkg", [moved(shape, "EPSG:32645", crs) for shape in shapes], crs=crs)
    differing = rasterise([(outlines, 1)], GRID) != reference(shapes, GRID)
    assert differing.sum() <= 3  # edges that are straight here are a hair's breadth bent there
    straight = read(tmp_path / "s.gpkg", shapes)
    assert outlines.report.area_km2 == pytest.approx(straight.report.area_km2, rel=1e-3)
    buffered = [rasterise([(one, 1)], GRID, ignore_buffer_m=60) for one in (outlines, straight)]
    assert (buffered[0] != buffered[1]).sum() <= 6


def test_on_a_geographic_grid_areas_are_true(tmp_path: Path) -> None:
    grid = make_grid("EPSG:4326", (15.0, 79.0), 0.002, (100, 300))
    whole = shapely.box(*grid.bounds)
    outlines = read(tmp_path / "o.gpkg", [whole], grid, "EPSG:4326")
    dense = shapely.segmentize(whole, 0.001)
    expected = abs(Geod(ellps="WGS84").geometry_area_perimeter(dense)[0]) / 1e6
    assert outlines.report.area_km2 == pytest.approx(expected, rel=1e-4)


def test_long_edges_do_not_cut_corners(tmp_path: Path) -> None:
    grid = make_grid(corner=(450_000.0, 6_705_000.0), size=(300, 3300))
    rectangle = shapely.box(86.0, 60.4, 88.0, 60.45)  # its parallels are arcs in UTM, and rise 300 m
    outlines = read(tmp_path / "o.gpkg", [rectangle], grid, "EPSG:4326")
    expected = reference([moved(rectangle, "EPSG:4326", "EPSG:32645", 0.001)], grid)
    found = rasterise([(outlines, 1)], grid) == 1
    straight = reference([moved(rectangle, "EPSG:4326", "EPSG:32645")], grid)
    assert 0.2 < expected.mean() < 0.8
    assert (straight != expected).sum() > 5000 and (found != expected).sum() < 300


def test_a_polygon_of_half_the_world_costs_what_is_in_the_scene(tmp_path: Path) -> None:
    ring = shapely.segmentize(shapely.box(-20, -80, 150, 80), 5)
    outlines = read(tmp_path / "o.gpkg", [ring.difference(shapely.box(86.9, 27.9, 87.01, 28.1))], crs="EPSG:4326")
    hole = moved(shapely.box(86.9, 27.9, 87.01, 28.1), "EPSG:4326", "EPSG:32645")
    mask = rasterise([(outlines, 1)], GRID)
    np.testing.assert_array_equal(mask == 0, reference([hole], GRID))
    assert 0.1 < mask.mean() < 0.9 and shapely.get_num_coordinates(outlines.geometries).sum() < 20


# -- across the antimeridian ---------------------------------------------------------------------------------


@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32660"])
def test_outlines_across_the_antimeridian_are_one_ground_however_they_are_written(tmp_path: Path, crs: str) -> None:
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(180.0, 68.0)
    grid = make_grid(crs, (x - 4500, y + 3000), 30.0, (200, 300))
    left, right = shapely.box(179.92, 67.98, 180.0, 68.01), shapely.box(-180.0, 67.98, -179.93, 68.01)
    apart = shapely.box(-179.92, 68.0, -179.91, 68.02)
    written = {
        "split": [shapely.MultiPolygon([left, right]), apart],
        "two": [left, right, apart],
        "beyond 180": [shapely.box(179.92, 67.98, 180.07, 68.01), apart],
        "0 to 360": [shapely.box(179.92, 67.98, 180.07, 68.01), shapely.transform(apart, lambda xy: xy + (360, 0))],
        "the wrong way": [
            shapely.Polygon([(179.92, 67.98), (-179.93, 67.98), (-179.93, 68.01), (179.92, 68.01)]),
            apart,
        ],
    }
    dense = shapely.segmentize(shapely.union(shapely.box(179.92, 67.98, 180.07, 68.01), apart), 0.001)
    whole = [moved(shape, "EPSG:4326", crs) for shape in (shapely.box(179.92, 67.98, 180.07, 68.01), apart)]
    assert dense.area > 0
    expected = reference(whole, grid)
    distances = shapely.distance(
        shapely.MultiLineString([shape.boundary for shape in whole]), shapely.points(*centres(grid))
    )
    assert 0.2 < expected.mean() < 0.8
    for name, shapes in written.items():
        outlines = read(tmp_path / f"{name.replace(' ', '_')}.gpkg", shapes, grid, "EPSG:4326")
        assert outlines.report.kept == len(shapes), name
        mask = rasterise([(outlines, 1)], grid)
        assert ((mask == 1) != expected).sum() <= 20, name
        buffered = rasterise([(outlines, 1)], grid, ignore_buffer_m=90) == IGNORE
        assert buffered[distances < 80].all() and not buffered[distances > 100].any(), name


def test_a_scene_elsewhere_at_the_latitude_of_outlines_across_the_antimeridian_has_none(tmp_path: Path) -> None:
    across = shapely.Polygon([(179.9, 27.9), (-179.9, 27.9), (-179.9, 28.1), (179.9, 28.1)])
    with pytest.raises(UserError, match="no polygon meets the scene"):
        read(tmp_path / "o.gpkg", [across], crs="EPSG:4326")


def test_around_the_pole(tmp_path: Path) -> None:
    grid = make_grid("EPSG:3413", (-30_000.0, 30_000.0), 300.0, (200, 200))
    cap = shapely.segmentize(shapely.box(-180, 89.9, 180, 90), 1.0)
    band = shapely.segmentize(shapely.box(100, 89.8, 180, 89.85), 1.0)
    on = shapely.segmentize(shapely.box(-180, 89.8, -120, 89.85), 1.0)
    outlines = read(tmp_path / "o.gpkg", [cap, shapely.MultiPolygon([band, on])], grid, "EPSG:4326")
    x, y = centres(grid)
    longitude, latitude = Transformer.from_crs("EPSG:3413", "EPSG:4326", always_xy=True).transform(x, y)
    east = longitude % 360
    expected = (latitude > 89.9) | ((latitude > 89.8) & (latitude < 89.85) & (east > 100) & (east < 240))
    mask = rasterise([(outlines, 1)], grid)
    assert ((mask == 1) != expected).sum() < 0.01 * expected.sum()
    buffered = rasterise([(outlines, 1)], grid, ignore_buffer_m=600)
    assert (buffered[latitude > 89.92] == 1).all()  # neither the pole nor the date line is a boundary
    inside = (latitude > 89.815) & (latitude < 89.835) & (east > 120) & (east < 220)
    assert inside.sum() > 50 and (buffered[inside] == 1).all()


# -- repaired ------------------------------------------------------------------------------------------------


def spoilt() -> dict[str, tuple[Any, Any, str]]:
    """Return kind → an invalid polygon, what it means, and a part of what is said of it."""

    def box(*sides: float) -> Any:
        return pixel_box(GRID, *sides)

    left, right = (((10.2, 10.1), (20.2, 20.1), (10.2, 30.1)), ((30.2, 10.1), (30.2, 30.1), (20.2, 20.1)))
    bow = shapely.Polygon(at(GRID, left[0], right[1], right[0], left[2]))
    halves = [shapely.Polygon(at(GRID, *corners)) for corners in (left, right)]
    outer, inner = box(10, 10, 40, 40), box(15, 15, 25, 25)
    return {
        "bow-tie": (bow, shapely.union_all(halves), "Self-intersection"),
        "nested shells": (shapely.MultiPolygon([outer, inner]), outer, "Nested shells"),
        "duplicate shells": (shapely.MultiPolygon([outer, outer]), outer, "Self-intersection"),
        "duplicate holes": (
            shapely.Polygon(outer.exterior.coords, [inner.exterior.coords] * 2),
            outer.difference(inner),
            "Self-intersection",
        ),
        "hole over the edge": (
            shapely.Polygon(outer.exterior.coords, [box(30, 30, 50, 50).exterior.coords]),
            outer.difference(box(30, 30, 50, 50)),
            "Self-intersection",
        ),
        "spike": (
            shapely.Polygon(at(GRID, (10, 10), (40, 10), (40, 40), (70, 40), (40, 40), (10, 40))),
            outer,
            "Self-intersection",
        ),
    }


@pytest.mark.parametrize("kind", list(spoilt()))
@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:4326"])
def test_invalid_polygons_are_repaired_and_reported(tmp_path: Path, kind: str, crs: str) -> None:
    shape, meant, why = spoilt()[kind]
    good = pixel_box(GRID, 60, 5, 70, 12)
    shapes = [moved(one, "EPSG:32645", crs) for one in (good, shape)]
    path = write(tmp_path / "o.gpkg", shapes, crs, RGIId=["RGI60-15.00001", "RGI60-15.00002"])
    outlines = read_outlines(OutlineFile(path), GRID)
    differing = (rasterise([(outlines, 1)], GRID) == 1) != reference([good, meant], GRID)
    assert differing.sum() == 0
    (repair,) = outlines.report.repaired
    assert repair.id == "RGI60-15.00002" and why in repair.why
    change = (meant.area - shape.area) / 0.9996**2 / 1e6
    assert repair.area_change_km2 == pytest.approx(change, rel=2e-3, abs=1e-5)
    assert outlines.report.area_km2 == pytest.approx((good.area + meant.area) / 0.9996**2 / 1e6, rel=2e-3)
    assert shapely.is_valid(outlines.geometries).all()
    told = outlines.report.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["repaired"]["count"] == 1 and told["repaired"]["largest"][0]["id"] == "RGI60-15.00002"


def test_what_is_no_polygon_is_counted_and_dropped(tmp_path: Path) -> None:
    good = pixel_box(GRID, 10, 10, 30, 30)
    line, point = shapely.LineString(at(GRID, (1, 1), (9, 9))), shapely.Point(at(GRID, (50, 50))[0])
    flat = shapely.Polygon(at(GRID, (1, 1), (9, 9), (1, 1)))
    mixed = shapely.GeometryCollection([pixel_box(GRID, 40, 40, 50, 50), line])
    raised = shapely.force_3d(pixel_box(GRID, 60, 40, 70, 50), 5000.0)
    path = write(tmp_path / "o.gpkg", [good, line, point, None, shapely.Polygon(), flat, mixed, raised])
    report = read_outlines(OutlineFile(path), GRID).report
    assert (report.kept, report.not_polygons) == (3, 2)
    assert report.read == 8 - 2 and report.empty == 1 or report.read == 8 and report.empty == 3
    mask = rasterise([(read_outlines(OutlineFile(path), GRID), 1)], GRID)
    assert mask.sum() == 400 + 100 + 100


def test_a_report_with_many_repairs_stays_small(tmp_path: Path) -> None:
    ties = [
        shapely.Polygon(at(GRID, (c, r), (c + 1, r + 1), (c + 1, r), (c, r + 1))) for c in range(70) for r in range(20)
    ]
    report = read(tmp_path / "o.gpkg", ties).report
    assert len(report.repaired) == 1400 == report.to_json()["repaired"]["count"]
    assert len(json.dumps(report.to_json())) < 5000


# -- dates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("20101212", "2010-12-12"),
        (20101212, "2010-12-12"),
        (20101212.0, "2010-12-12"),
        ("20009999", "2000-07-01"),
        ("20000699", "2000-06-15"),
        ("-9999999", None),
        (-9999999, None),
        ("19xx9999", None),
        ("2000-09-20T00:00:00", "2000-09-20"),
        ("2000-09-20", "2000-09-20"),
        ("2000/09/20", "2000-09-20"),
        ("1999", "1999-07-01"),
        (1999, "1999-07-01"),
        (datetime.date(2001, 2, 3), "2001-02-03"),
        (pd.Timestamp("2001-02-03T12:00"), "2001-02-03"),
        (pd.NaT, None),
        (None, None),
        (float("nan"), None),
        ("", None),
        ("99999999", None),
        ("20001345", None),
        ("unknown", None),
    ],
)
def test_dates_of_inventories_are_understood(value: object, expected: str | None) -> None:
    found = parse_date(value)
    assert (found and found.isoformat()) == expected
    assert type(found) in (datetime.date, type(None))


@pytest.mark.parametrize("ending", [".gpkg", ".shp", ".geojson", ".fgb", ".parquet"])
def test_each_polygon_has_its_date(tmp_path: Path, ending: str) -> None:
    shapes = [moved(pixel_box(GRID, c, 10, c + 8, 30), "EPSG:32645", "EPSG:4326") for c in (0, 10, 20, 300)]
    columns = {
        "BgnDate": ["20001030", "-9999999", "19759999", "18500101"],
        "taken": [datetime.date(2010, 1, 2)] * 4,
        "src_date": ["2000-01-01"] * 4,
    }
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs="EPSG:4326")
    path = tmp_path / f"o{ending}"
    if ending == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    outlines = read_outlines(OutlineFile(path), GRID)
    assert set(outlines.dates) == {datetime.date(2000, 10, 30), None, datetime.date(1975, 7, 1)}
    left = [shape.bounds[0] for shape in outlines.geometries]
    assert outlines.dates[int(np.argmin(left))] == datetime.date(2000, 10, 30)
    report = outlines.report
    assert (report.date_field, report.first_date, report.last_date) == ("BgnDate", "1975-07-01", "2000-10-30")
    assert report.undated == 1
    assert set(read_outlines(OutlineFile(path, date_field="taken"), GRID).dates) == {datetime.date(2010, 1, 2)}
    given = datetime.date(2020, 5, 6)
    assert read_outlines(OutlineFile(path, date=given), GRID).dates == (given,) * 3
    with pytest.raises(UserError, match="no field 'when'.*BgnDate"):
        read_outlines(OutlineFile(path, date_field="when"), GRID)


def test_outlines_far_from_the_scene_in_time_are_warned_about(tmp_path: Path) -> None:
    shapes = [pixel_box(GRID, c, 10, c + 8, 30) for c in (0, 10, 20, 30)]
    dates = ["2000-10-30", "1975-07-01", None, "1980-01-01"]
    path = write(tmp_path / "o.gpkg", shapes, src_date=dates)
    outlines = read_outlines(OutlineFile(path), GRID)
    far, undated = date_warnings(outlines, datetime.date(2001, 1, 1), 10)
    assert "2 of 4 outlines" in far and "10 years" in far and "1975-07-01 to 1980-01-01" in far and "2001-01-01" in far
    assert "1 of 4 outlines" in undated and "no date" in undated
    assert len(date_warnings(outlines, datetime.date(2001, 1, 1), 30)) == 1
    (far, _) = date_warnings(outlines, datetime.date(2001, 1, 1), 21.1)
    assert "1 of 4" in far and "(theirs: 1975-07-01)" in far
    sure = read_outlines(OutlineFile(path, date=datetime.date(2001, 1, 1)), GRID)
    assert date_warnings(sure, datetime.date(2001, 1, 1), 0) == []


# -- no overlap ----------------------------------------------------------------------------------------------


def test_outlines_elsewhere_are_refused_with_both_places(tmp_path: Path) -> None:
    path = write(tmp_path / "o.gpkg", [shapely.box(7.0, 45.0, 8.0, 46.0)], "EPSG:4326")
    with pytest.raises(UserError) as caught:
        read_outlines(OutlineFile(path), GRID)
    message = str(caught.value)
    assert "no polygon meets the scene" in message and "EPSG:32645" in message
    assert "longitude 87.000° to 87.024°, latitude 28.009° to 28.025°" in message
    assert "longitude 7.000° to 8.000°, latitude 45.000° to 46.000°" in message
    nothing = read_outlines(OutlineFile(path), GRID, required=False)
    assert len(nothing.geometries) == 0 == nothing.report.kept and nothing.report.area_km2 == 0
    assert not rasterise([(nothing, 1)], GRID, ignore_buffer_m=50).any()
    assert date_warnings(nothing, datetime.date(2000, 1, 1), 5) == []
    assert json.dumps(nothing.report.to_json())


def test_outlines_whose_box_alone_meets_the_scene_do_not(tmp_path: Path) -> None:
    corner = shapely.Polygon(at(GRID, (-500, -500), (600, -500), (-500, 600))).difference(
        pixel_box(GRID, -100, -100, 200, 200)
    )
    with pytest.raises(UserError, match="no polygon meets the scene"):
        read(tmp_path / "o.gpkg", [corner])


# -- real data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "raster", "share", "last"),
    [
        ("everest/15_rgi60_glacier_outlines.gpkg", "everest/LE71400412000304SGS00_RGB.tif", 0.54, "2010-04-09"),
        ("exploradores/17_rgi60_glacier_outlines.gpkg", "exploradores/AST_L1A_00303182012144228_Z.tif", 0.50, None),
    ],
)
def test_real_outlines_lie_where_other_tools_put_them(
    shared: Path, vector: str, raster: str, share: float, last: str | None
) -> None:
    grid = read_grid(shared / "real" / raster)
    outlines = read_outlines(OutlineFile(shared / "real" / vector), grid)
    mask = rasterise([(outlines, 1)], grid)
    assert mask.mean() == pytest.approx(share, abs=0.01)
    frame = geopandas.read_file(shared / "real" / vector).to_crs(grid.crs)
    frame["geometry"] = frame.make_valid()
    theirs = rasterio.features.rasterize(frame.geometry, (grid.height, grid.width), transform=Affine(*grid.transform))
    np.testing.assert_array_equal(mask, theirs)
    clipped_km2 = frame.clip(shapely.box(*grid.bounds)).area.sum() / 1e6
    assert outlines.report.area_km2 == pytest.approx(clipped_km2, rel=2e-3)
    assert mask.sum() * 0.0009 == pytest.approx(clipped_km2, rel=0.01)
    assert last is None or outlines.report.last_date == last


def test_outlines_are_read_where_tensorflow_was_imported_first(tmp_path: Path) -> None:
    path = tmp_path / "rgi.gpkg"
    shapes = [shapely.box(500_000 + 9000 * x, 3_000_000, 501_000 + 9000 * x, 3_001_000) for x in range(3)]
    geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:32645").to_file(path)
    program = (
        "import sys, tensorflow; from pathlib import Path; from data.vectors import open_layer, read_layer;"
        "layer = open_layer(Path(sys.argv[1]));"
        "print(len(read_layer(layer, box=(508_000, 2_999_000, 512_000, 3_002_000))))"
    )
    command = [sys.executable, "-c", program, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert answer.stdout.split() == ["1"]
