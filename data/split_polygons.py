"""Splits drawn on a map: a polygon layer whose attribute says train, val or test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from console import UserError
from data.places import outline
from data.tiles import SPLITS, TileInfo

if TYPE_CHECKING:
    import geopandas

OUTSIDE, STRADDLES = "outside", "straddles"
"""What a tile is that is in no split: its centre lies in no polygon, or polygons of several splits meet it."""

_INSET = 1e-3  # of a tile's side: polygons drawn along the edge of a tile do not meet it
_LISTED = 5


@dataclass(frozen=True)
class PolygonLayer:
    """Where the polygons are: a file of any format that geopandas reads, its layer, and the text field of the splits.

    `layer` may be left out of files with one layer, `field` where one text field has no values but train, val, test.
    """

    path: Path
    layer: str | None = None
    field: str | None = None


def splits_by_polygons(tiles: Sequence[TileInfo], source: PolygonLayer) -> list[str | None]:
    """Return each tile's split, `OUTSIDE`, or `STRADDLES`; None for tiles without a place on earth.

    A tile belongs to the polygon that contains its centre, unless its area meets a polygon of another split.

    Raises:
        UserError: If the layer can't be read, has no CRS, or does not say for every polygon which split it is.
    """
    layer, names = _read(source)
    tree = shapely.STRtree(layer.geometry.to_numpy())
    found: list[str | None] = [None] * len(tiles)
    by_crs: dict[str, list[tuple[int, NDArray[np.float64]]]] = defaultdict(list)
    for index, tile in enumerate(tiles):
        edge = outline(tile)
        if edge is not None:
            # The CRS's own middle of a tile is the middle of its edges, on every grid and in degrees.
            middle = edge[1].mean(axis=0)
            points = np.concatenate([middle + (edge[1] - middle) * (1 - 2 * _INSET), middle[None]])
            by_crs[edge[0]].append((index, points))
    for crs, members in by_crs.items():
        points = _in_crs(np.stack([points for _, points in members]), crs, layer.crs)
        for (index, _), ring in zip(members, points, strict=True):
            if not np.isfinite(ring).all():
                continue
            area, centre = shapely.multipolygons([shapely.polygons(part[:-1]) for part in ring]), ring[:, -1]
            met = {names[position] for position in tree.query(area, predicate="intersects")}
            inside = {
                names[position] for point in centre for position in tree.query(shapely.Point(point), "intersects")
            }
            found[index] = STRADDLES if len(met) > 1 else next(iter(inside), OUTSIDE)
    return found


def _in_crs(points: NDArray[np.float64], source: str, target: CRS) -> NDArray[np.float64]:
    """Return rings (T, N, 2) in the CRS of the layer, (T, parts, N, 2): on both sides of 180° where one crosses it."""
    try:
        transformer = Transformer.from_crs(CRS.from_user_input(source), target, always_xy=True)
        x, y = transformer.transform(points[..., 0], points[..., 1])
    except ProjError:
        return np.full((len(points), 1, *points.shape[1:]), np.nan)
    if not target.is_geographic:
        return np.stack([x, y], axis=-1)[:, None]
    crossing = np.ptp(x, axis=1, keepdims=True) > 180
    east = np.where(crossing & (x < 0), x + 360, x)
    west = np.where(crossing, east - 360, east)
    return np.stack([np.stack([east, y], axis=-1), np.stack([west, y], axis=-1)], axis=1)


def _read(source: PolygonLayer) -> tuple[geopandas.GeoDataFrame, list[str]]:
    """Return the layer, repaired, and the split of each of its polygons.

    Raises:
        UserError: See `splits_by_polygons`.
    """
    import geopandas
    import pyogrio

    path = source.path
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a polygon layer that says train, val or test")
    try:
        if path.suffix.lower() in (".parquet", ".geoparquet"):
            layer = geopandas.read_parquet(path)
        else:
            layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
            if source.layer is None and len(layers) > 1:
                raise UserError(f"{path}: several layers, {', '.join(layers)}: say which one has the splits")
            if source.layer is not None and source.layer not in layers:
                raise UserError(f"{path}: no layer {source.layer!r}; it has {', '.join(layers)}")
            layer = geopandas.read_file(path, layer=source.layer or layers[0])
    except UserError:
        raise
    except Exception as error:  # each format's reader has exceptions of its own
        raise UserError(f"{path}: can't be read as a layer of polygons: {error}") from error
    if not isinstance(layer, geopandas.GeoDataFrame):
        raise UserError(f"{path}: a table without geometries, expected a layer of polygons")
    if layer.crs is None:
        raise UserError(
            f"{path}: no CRS, so nobody knows where its polygons lie; assign the one that they were drawn in (QGIS: "
            "Layer, Set CRS; for a shapefile the .prj file is missing)"
        )
    layer = layer[layer.geometry.notna() & ~layer.geometry.is_empty]
    others = sorted(set(layer.geom_type) - {"Polygon", "MultiPolygon"})
    if others or layer.empty:
        raise UserError(f"{path}: {', '.join(others) or 'no geometry'} in it, expected polygons of the splits")
    layer = layer.set_geometry(layer.geometry.make_valid())
    return layer, _splits(layer, source)


def _splits(layer: geopandas.GeoDataFrame, source: PolygonLayer) -> list[str]:
    texts = {
        str(name): [value.strip().lower() if isinstance(value, str) else None for value in column]
        for name, column in layer.drop(columns=layer.geometry.name).items()
    }
    if source.field is not None and source.field not in texts:
        raise UserError(f"{source.path}: no field {source.field!r}; it has {', '.join(texts) or 'none'}")
    candidates = [
        name for name, values in texts.items() if any(values) and all(value in (None, *SPLITS) for value in values)
    ]
    if source.field is None and len(candidates) != 1:
        problem = f"several fields say the split, {', '.join(candidates)}" if candidates else "no field says the split"
        fields = "; ".join(f"{name}: {_listed(layer[name])}" for name in texts)
        raise UserError(
            f"{source.path}: {problem}; expected one text field with train, val or test for every "
            f"polygon, or its name; there are {fields or 'no fields'}"
        )
    field = source.field or candidates[0]
    unknown = [value for value, text in zip(layer[field], texts[field], strict=True) if text not in SPLITS]
    if unknown:
        raise UserError(
            f"{source.path}: field {field!r} has {_listed(unknown)} in {len(unknown)} of {len(layer)} polygons; "
            "expected train, val or test"
        )
    return [str(text) for text in texts[field]]


def _listed(values: Any) -> str:
    # What is missing is None, or NaN that differs from itself.
    found = list(dict.fromkeys("no value" if value is None or value != value else str(value) for value in values))
    return ", ".join(found[:_LISTED]) + (", …" if len(found) > _LISTED else "")
