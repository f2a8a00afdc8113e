"""Splits by polygons: the one that has a tile's centre, unless several meet it; what can't say the split is told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from console import UserError
from data.split_polygons import OUTSIDE, STRADDLES, PolygonLayer, splits_by_polygons
from data.tiles import TileInfo

X, Y, SIDE = 300_000.0, 4_000_000.0, 5120.0
WEST, MIDDLE, EAST = (shapely.box(X + k * 5 * SIDE, Y - 5 * SIDE, X + (k + 1) * 5 * SIDE, Y) for k in range(3))


def square(column: float, row: float, crs: int = 32643, x: float = X, y: float = Y, pixel: float = 10.0) -> TileInfo:
    transform = (pixel, 0.0, x + column * 512 * pixel, 0.0, -pixel, y - row * 512 * pixel)
    return TileInfo(f"{column}_{row}", 512, 512, "HMA", crs=CRS.from_epsg(crs).to_wkt(), transform=transform)


def save(
    path: Path,
    shapes: Sequence[BaseGeometry],
    fields: Mapping[str, Sequence[Any]],
    crs: int | None = 32643,
    **options: Any,
) -> PolygonLayer:
    layer = geopandas.GeoDataFrame(dict(fields), geometry=list(shapes), crs=crs)
    if path.suffix == ".parquet":
        layer.to_parquet(path)
    else:
        layer.to_file(path, **options)
    return PolygonLayer(path)


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "geojson", "fgb", "parquet"])
@pytest.mark.parametrize("crs", [32643, 32644, 4326, 3857])
def test_tiles_belong_to_the_polygon_of_their_centre_whatever_its_crs_and_format(
    tmp_path: Path, suffix: str, crs: int
) -> None:
    if suffix == "geojson" and crs != 4326:
        pytest.skip("GeoJSON is in degrees")
    # Corners are as dense as in a layer that was drawn on the projected grid and then saved in another CRS.
    shapes = geopandas.GeoSeries([shapely.segmentize(shape, 500) for shape in (WEST, MIDDLE, EAST)], crs=32643)
    layer = save(
        tmp_path / f"splits.{suffix}",
        list(shapes.to_crs(crs)),
        {"name": ["a", "b", "c"], "part": ["train", "VAL ", "test"], "id": [1, 2, 3]},
        crs,
    )
    tiles = [square(column, row) for row in range(5) for column in range(15)]
    # In its own CRS the layer's edges are those of the tiles; elsewhere these are off by less than a tile's thousandth.
    assert splits_by_polygons(tiles, layer) == [
        ("train", "val", "test")[column // 5] for _ in range(5) for column in range(15)
    ]
    shifted = [square(column, 0) for column in (-1.5, -0.6, -0.4, 3.5, 4.5, 5.5, 9.9, 14.4, 14.6, 15.5)]
    expected = [OUTSIDE, OUTSIDE, "train", "train", STRADDLES, "val", STRADDLES, "test", OUTSIDE, OUTSIDE]
    assert splits_by_polygons(shifted, layer) == expected


def test_a_tile_with_its_centre_outside_that_meets_two_splits_straddles(tmp_path: Path) -> None:
    shapes = [shapely.box(X, Y - SIDE, X + 0.3 * SIDE, Y), shapely.box(X + 0.7 * SIDE, Y - SIDE, X + SIDE, Y)]
    tiles = [square(0, 0), square(0.6, 0), square(3, 0), TileInfo("nowhere", 9, 9)]
    layer = save(tmp_path / "a.gpkg", shapes, {"split": ["train", "val"]})
    assert splits_by_polygons(tiles, layer) == [STRADDLES, OUTSIDE, OUTSIDE, None]
    layer = save(tmp_path / "b.gpkg", shapes, {"split": ["train", "train"]})
    assert splits_by_polygons(tiles, layer) == [OUTSIDE, OUTSIDE, OUTSIDE, None]


def test_polygons_with_holes_and_self_intersections_are_areas(tmp_path: Path) -> None:
    hole = shapely.box(X, Y - 9 * SIDE, X + 9 * SIDE, Y).difference(
        shapely.box(X + 3 * SIDE, Y - 6 * SIDE, X + 6 * SIDE, Y - 3 * SIDE)
    )
    x, y, s = X + 20 * SIDE, Y, 4 * SIDE
    bow = shapely.Polygon([(x, y), (x + s, y - s), (x + s, y), (x, y - s)])  # two triangles: left and right
    layer = save(tmp_path / "a.gpkg", [hole, bow], {"split": ["train", "test"]})
    tiles = [square(1, 1), square(4, 4), square(20, 1.5), square(23, 1.5), square(21.5, 0)]
    assert splits_by_polygons(tiles, layer) == ["train", OUTSIDE, "test", "test", OUTSIDE]


def test_tiles_on_the_date_line_meet_polygons_on_both_of_its_sides(tmp_path: Path) -> None:
    # Longitude 180° lies at about 609 km in zone 60 at 71° north.
    tiles = [square(column, 0, 32660, 580_000, 7_900_000, 30.0) for column in range(12)]
    layer = save(
        tmp_path / "a.gpkg",
        [shapely.box(170, 60, 180, 80), shapely.box(-180, 60, -170, 80)],
        {"s": ["val", "train"]},
        4326,
    )
    found = splits_by_polygons(tiles, layer)
    assert found.count(STRADDLES) == 1
    at = found.index(STRADDLES)
    assert found == ["val"] * at + [STRADDLES] + ["train"] * (11 - at) and 0 < at < 11


def test_named_layer_and_field(tmp_path: Path) -> None:
    save(tmp_path / "a.gpkg", [WEST], {"split": ["val"]}, layer="one")
    save(tmp_path / "a.gpkg", [WEST], {"first": ["train"], "second": ["test"]}, layer="two")
    with pytest.raises(UserError, match="several layers, one, two: say which"):
        splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / "a.gpkg"))
    assert splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / "a.gpkg", "one")) == ["val"]
    assert splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / "a.gpkg", "two", "second")) == ["test"]
    with pytest.raises(UserError, match="several fields say the split, first, second"):
        splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / "a.gpkg", "two"))
    with pytest.raises(UserError, match="no layer 'three'; it has one, two"):
        splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / "a.gpkg", "three"))
    with pytest.raises(UserError, match="no field 'third'; it has first, second"):
        splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / "a.gpkg", "two", "third"))


@pytest.mark.parametrize(
    ("shapes", "fields", "crs", "message"),
    [
        ([WEST], {"split": ["train"]}, None, "no CRS"),
        ([WEST], {"name": ["north"], "id": [3]}, 32643, r"no field says the split; .*name: north; id: 3"),
        ([WEST, EAST], {"split": ["train", None]}, 32643, "field 'split' has no value in 1 of 2 polygons"),
        ([WEST.boundary], {"split": ["train"]}, 32643, "LineString in it, expected polygons"),
        ([None], {"split": ["train"]}, 32643, "no geometry in it"),
    ],
)
def test_layers_that_do_not_say_it_are_refused(
    tmp_path: Path, shapes: list[Any], fields: dict[str, list[Any]], crs: int | None, message: str
) -> None:
    layer = save(tmp_path / "a.parquet", shapes, fields, crs)
    with pytest.raises(UserError, match=message) as caught:
        splits_by_polygons([square(1, 1)], layer)
    assert str(caught.value).startswith(f"{layer.path}: ")
    with pytest.raises(UserError, match="field 'split' has|no field 'split'|no CRS|polygons"):
        splits_by_polygons([square(1, 1)], PolygonLayer(layer.path, None, "split"))  # naming it mends nothing


def test_other_values_of_a_named_field_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "a.gpkg", [WEST, EAST], {"split": ["train", "holdout"]})
    with pytest.raises(UserError, match="field 'split' has holdout in 1 of 2 polygons; expected train, val or test"):
        splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / "a.gpkg", field="split"))


def test_what_is_no_layer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gpkg").write_bytes(b"nothing")
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    np.savetxt(tmp_path / "a.csv", np.eye(2))
    for name, message in (("none.gpkg", "no such file"), ("a.gpkg", "can't be read"), ("a.parquet", "can't be read")):
        with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / name))}: {message}"):
            splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / name))
    with pytest.raises(UserError, match="can't be read|without geometries"):
        splits_by_polygons([square(1, 1)], PolygonLayer(tmp_path / "a.csv"))
