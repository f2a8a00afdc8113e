"""Outlines of glaciers, debris and lakes: polygons read onto a scene's grid, repaired, clipped, and made masks of.

What meets the scene is read in the file's own CRS, repaired there, and clipped to a little more than the scene before
it is reprojected, so that a polygon of half a continent costs no more than its part in the scene. Longitudes are
brought next to the scene's, whatever side of the antimeridian, and whichever of −180 … 180 and 0 … 360, they come in.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Geod

from console import UserError
from data.grids import Grid, transformer
from data.tiles import IGNORE
from data.vectors import Box, Layer, open_layer, read_layer

if TYPE_CHECKING:
    import geopandas

Geometries = NDArray[np.object_]
"""An array `(N,)` of shapely geometries."""

_DATE_FIELDS = ("bgndate", "src_date")  # RGI up to 6; RGI 7 and GLIMS
_ID_FIELDS = ("rgi_id", "rgiid", "glims_id", "glac_id", "glimsid")
_DEGREES = "EPSG:4326"
_DEGREE_M = 111_195.0  # of latitude, on a sphere of 6371 km
_RADIUS_M = 6_371_000.0
_LATTICE = 33  # points along a side at which a grid is looked at
_WIDER = 0.05  # of its sides: how much larger than the scene what is read is, for edges that are bent elsewhere
_OFF_PIXELS = 0.05  # how far an edge may be off that is straight in another CRS
_TOLD_REPAIRS = 10  # in provenance, which HDF5 wants below 64 KB
_CELL_M = 10_000.0  # within which one projection serves for true distances
_SEGMENT_M = 1_000.0  # up to which an edge may be taken as straight in any CRS: it is off by centimetres


@dataclass(frozen=True)
class OutlineFile:
    """Polygons of one class, and how old they are.

    Args:
        path: GeoPackage, shapefile (also in a .zip), GeoJSON, FlatGeobuf or GeoParquet.
        layer: Which layer, where there are several.
        where: Which polygons, as the WHERE clause of SQL: `Area > 0.1`. None: all.
        date_field: The field with each polygon's date; None: `BgnDate` (RGI 6) or `src_date` (RGI 7) if it is there.
        date: One date for all polygons, instead of a field.
    """

    path: Path
    layer: str | None = None
    where: str | None = None
    date_field: str | None = None
    date: datetime.date | None = None


@dataclass(frozen=True)
class Repair:
    """A polygon that was invalid: its id (or number in the file, where known), why, and what its repair changed."""

    id: str | None
    why: str
    area_change_km2: float


@dataclass(frozen=True)
class OutlineReport:
    """What became of a file's features; `read` are those near the scene, `kept` those in it.

    `not_polygons` and `empty` were read and dropped. `area_km2` is the true area of the kept polygons inside the
    scene; where polygons overlap, it counts twice. `first_date`, `last_date` are ISO dates of the kept ones.
    """

    path: str
    layer: str | None
    where: str | None
    crs: str
    read: int
    kept: int
    not_polygons: int
    empty: int
    repaired: tuple[Repair, ...]
    area_km2: float
    date_field: str | None
    first_date: str | None
    last_date: str | None
    undated: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON knows it; of the repairs their number, sum, and those that changed most."""
        most = sorted(self.repaired, key=lambda repair: -abs(repair.area_change_km2))[:_TOLD_REPAIRS]
        repaired = {
            "count": len(self.repaired),
            "area_change_km2": sum(repair.area_change_km2 for repair in self.repaired),
            "largest": [asdict(repair) for repair in most],
        }
        return {**asdict(self), "repaired": repaired}


@dataclass(frozen=True, eq=False)
class Outlines:
    """Polygons on a grid.

    Args:
        geometries: Polygons and multipolygons in the grid's CRS, valid, clipped to the grid.
        dates: Of each polygon; None where unknown.
        report: What became of the file's features.
        boundaries: Lines in the grid's CRS between outside and inside of all the polygons together, up to `margin_m`
            beyond the grid: where polygons touch (ice divides) and where they are clipped there is none.
        margin_m: How far beyond the grid, in metres, boundaries are known.
        ids: Of each polygon: RGI's or GLIMS's, else its number in the file; None where unknown.
    """

    geometries: Geometries
    dates: tuple[datetime.date | None, ...]
    report: OutlineReport
    boundaries: Geometries
    margin_m: float
    ids: tuple[str | None, ...] = ()


def read_outlines(source: OutlineFile, grid: Grid, *, margin_m: float = 1000.0, required: bool = True) -> Outlines:
    """Read the polygons that meet a grid, repaired, in its CRS and clipped to it.

    Only what can meet the grid is read, where the format has an index. Invalid polygons are repaired with GEOS's
    "structure" method (rings are made valid, shells merged, holes cut out: nested or repeated shells count once, both
    halves of a bow-tie count).

    Args:
        source: The file.
        grid: The scene's grid.
        margin_m: Metres beyond the grid up to which boundaries are kept for `rasterise`: at least its ignore buffer. 0:
            there is to be none, and reading is faster.
        required: Whether it is an error that no polygon meets the grid; else the result is empty.

    Raises:
        UserError: If the file is missing, damaged, or of another format; has no CRS, no such layer, or several and
            none is named; if the where clause or the date field is wrong, or nothing in the file is a polygon; and, if
            `required`, when no polygon meets the grid.
    """
    import shapely

    layer = open_layer(source.path, source.layer)
    around = grid.padded(_pixels(grid, margin_m))
    extent = _extent(around, layer.crs)
    date_field = _date_field(source, layer)
    columns = [field for field in (layer.field(_ID_FIELDS), date_field) if field]
    frame = read_layer(layer, columns, source.where, extent)

    shapes: Geometries = shapely.force_2d(np.asarray(frame.geometry.array, object))
    ids = _ids(frame, layer)
    dates = _dates(frame, source, date_field)
    blank = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    polygons = _polygonal(shapes)
    other = ~blank & shapely.is_empty(polygons)
    if other.any() and (blank | other).all():
        layer.refuse_kinds(sorted({shape.geom_type for shape in shapes[other]}))
    if layer.crs.is_geographic:
        polygons = _unwrapped(polygons)
    polygons, repaired = _repaired(polygons, ids, layer.crs)
    lost = ~other & ~blank & shapely.is_empty(polygons)

    near = _clipped_to(polygons, extent, (-360.0, 0.0, 360.0) if layer.crs.is_geographic else (0.0,))
    there = np.flatnonzero(~shapely.is_empty(near))
    target = CRS.from_user_input(grid.crs)
    move = _mover(layer.crs, target, _longest_edge_m(grid))
    moved = move(near[there])
    moved = np.where(shapely.is_valid(moved), moved, _valid(moved))
    inside = _polygonal(shapely.intersection(moved, _footprint(grid)))
    met = ~shapely.is_empty(inside)
    there, inside = there[met], inside[met]
    if required and not len(inside):
        raise UserError(_told_no_overlap(layer, source, grid))

    around_pole = layer.crs.is_geographic and extent is not None and extent[2] - extent[0] >= 360
    edges = _outer_edges(near[~shapely.is_empty(near)], around_pole) if margin_m > 0 else np.zeros(0, object)
    lines = shapely.get_parts(shapely.intersection(move(edges), _footprint(around)))
    lines = lines[shapely.length(lines) > 0]

    kept_dates = tuple(dates[index] for index in there)
    known = sorted(date.isoformat() for date in kept_dates if date)
    report = OutlineReport(
        path=str(source.path),
        layer=layer.name,
        where=source.where,
        crs=layer.crs.to_string() if layer.crs.to_epsg() is None else f"EPSG:{layer.crs.to_epsg()}",
        read=len(frame),
        kept=len(there),
        not_polygons=int(other.sum()),
        empty=int((blank | lost).sum()),
        repaired=repaired,
        area_km2=float(_areas_km2(inside, target).sum()),
        date_field=date_field,
        first_date=known[0] if known else None,
        last_date=known[-1] if known else None,
        undated=len(kept_dates) - len(known),
    )
    return Outlines(inside, kept_dates, report, lines, margin_m, tuple(ids[index] for index in there))


def rasterise(
    layers: Sequence[tuple[Outlines, int]],
    grid: Grid,
    *,
    background: int = 0,
    all_touched: bool = False,
    ignore_buffer_m: float = 0.0,
) -> NDArray[np.uint8]:
    """Return the mask `(H, W)` of class ids that outlines make on a grid.

    A pixel is of a class where its centre lies in one of the class's polygons; holes are not in a polygon. The mask
    of a window of a grid is the window of the grid's mask.

    Args:
        layers: Outlines, read for this grid or for one that this is a window of, and the class id of each; later ones
            paint over earlier ones.
        grid: The grid of the mask.
        background: The class id outside of all polygons.
        all_touched: Every pixel that a polygon touches is of its class, not only those whose centre is inside.
        ignore_buffer_m: Pixels whose centre lies within so many metres (true ones, in any CRS) of a boundary of a
            layer become 255. 0: none do.

    Raises:
        ValueError: If a class id is not in 0 … 254, or the buffer is below 0 or wider than what was read.
    """
    from rasterio.features import rasterize

    for number in (background, *(index for _, index in layers)):
        if not 0 <= number < IGNORE:
            raise ValueError(f"class ids are 0 … {IGNORE - 1}, got {number}")
    widest = min((outlines.margin_m for outlines, _ in layers), default=math.inf)
    if not 0 <= ignore_buffer_m <= widest:
        raise ValueError(
            f"ignore_buffer_m is {ignore_buffer_m}, expected 0 … {widest:g}, the margin_m that outlines were read with"
        )
    mask = np.full((grid.height, grid.width), background, np.uint8)
    for outlines, index in layers:
        shapes = outlines.geometries[_meets(outlines.geometries, grid.bounds)]
        if len(shapes):
            rasterize(((shape, index) for shape in shapes), out=mask, transform=_affine(grid), all_touched=all_touched)
    if ignore_buffer_m > 0:
        lines = [outlines.boundaries for outlines, _ in layers]
        if lines:
            mask[_within(np.concatenate(lines), grid, ignore_buffer_m)] = IGNORE
    return mask


def date_warnings(outlines: Outlines, scene_date: datetime.date, years: float) -> list[str]:
    """Return a sentence if outlines are more than `years` from the scene, and one if some have no date."""
    told = []
    path, count = outlines.report.path, len(outlines.dates)
    far = [date for date in outlines.dates if date and abs((date - scene_date).days) > years * 365.25]
    if far:
        first, last = min(far), max(far)
        when = f"{first}" if first == last else f"{first} to {last}"
        told.append(
            f"{path}: {len(far)} of {count} outlines in the scene are more than {years:g} years from its date, "
            f"{scene_date} (theirs: {when}): the ice may have changed since"
        )
    undated = outlines.dates.count(None)
    if undated:
        told.append(
            f"{path}: {undated} of {count} outlines in the scene have no date: whether they are as the scene saw them "
            "is not known"
        )
    return told


def parse_date(value: object) -> datetime.date | None:
    """Return the date that an inventory means: RGI 6's `20001030` or `20009999`, RGI 7's ISO date, or a date.

    Where the day or the month is unknown (99), the middle of the month or of the year stands for it; None where the
    year is.
    """
    if isinstance(value, datetime.datetime):
        return None if value != value else value.date()  # pandas' missing date is a datetime unlike itself
    if isinstance(value, datetime.date):
        return value
    if isinstance(value, float | np.floating):
        value = int(value) if np.isfinite(value) else ""
    found = re.match(r"(\d{4})(?:[-/]?(\d\d)(?:[-/]?(\d\d))?)?(?!\d)", str(value).strip())
    if not found or not 1800 <= int(found[1]) <= 2200:
        return None
    year, month, day = (int(part or 99) for part in found.groups())
    try:
        return datetime.date(year, 7 if month == 99 else month, 1 if month == 99 else 15 if day == 99 else day)
    except ValueError:
        return None


# -- attributes ----------------------------------------------------------------------------------------------


def _date_field(source: OutlineFile, layer: Layer) -> str | None:
    if source.date is not None:
        return None
    if source.date_field is None:
        return layer.field(_DATE_FIELDS)
    if source.date_field not in layer.fields:
        raise UserError(
            f"{layer}: no field {source.date_field!r} for the outlines' dates; its fields are "
            f"{', '.join(layer.fields) or 'none'}"
        )
    return source.date_field


def _dates(frame: geopandas.GeoDataFrame, source: OutlineFile, field: str | None) -> list[datetime.date | None]:
    if field is None:
        return [source.date] * len(frame)
    return [parse_date(value) for value in frame[field]]


def _ids(frame: geopandas.GeoDataFrame, layer: Layer) -> list[str | None]:
    field = layer.field(_ID_FIELDS)
    if field is not None:
        return [str(value) for value in frame[field]]
    return [None] * len(frame) if layer.dataset is None else [str(number) for number in frame.index]


# -- messages ------------------------------------------------------------------------------------------------


def _told_no_overlap(layer: Layer, source: OutlineFile, grid: Grid) -> str:
    scene = _extent(grid, CRS.from_user_input(_DEGREES), wider=0.0)
    theirs = layer.bounds and transformer(layer.crs.to_wkt(), _DEGREES).transform_bounds(*layer.bounds)
    chosen = f" where {source.where}" if source.where else ""
    return (
        f"{layer}: no polygon{chosen} meets the scene: the scene lies at {_told_box(scene)}, the layer at "
        f"{_told_box(theirs)}; expected outlines of the scene's place: check the coordinate reference systems "
        f"({grid.crs_name} and {layer.crs.name}), and that this is the right region's file"
    )


def _told_box(box: Box | None) -> str:
    if box is None or not np.isfinite(box).all():
        return "an unknown place"
    left, bottom, right, top = box
    return f"longitude {left:.3f}° to {right:.3f}°, latitude {bottom:.3f}° to {top:.3f}°"


# -- geometries ----------------------------------------------------------------------------------------------


def _polygonal(shapes: Geometries) -> Geometries:
    """Return the polygons in each geometry, as polygon or multipolygon; an empty polygon where there is none."""
    import shapely

    result = np.full(len(shapes), shapely.Polygon(), object)
    kinds = shapely.get_type_id(shapes)
    plain = np.isin(kinds, (3, 6))
    result[plain] = shapes[plain]
    for index in np.flatnonzero(kinds == 7):
        parts = [part for part in _leaves(shapes[index]) if part.geom_type == "Polygon" and not part.is_empty]
        result[index] = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return result


def _leaves(shape: Any) -> Iterator[Any]:
    for part in getattr(shape, "geoms", [shape]):
        if part is shape:
            yield part
        else:
            yield from _leaves(part)


def _valid(shapes: Geometries) -> Geometries:
    import shapely

    return _polygonal(shapely.make_valid(shapes, method="structure", keep_collapsed=False))


def _repaired(polygons: Geometries, ids: Sequence[str | None], crs: CRS) -> tuple[Geometries, tuple[Repair, ...]]:
    """Return the polygons, valid ones for invalid ones, and what was repaired."""
    import shapely

    broken = np.flatnonzero(~shapely.is_valid(polygons))
    if not len(broken):
        return polygons, ()
    before, whys = polygons[broken], shapely.is_valid_reason(polygons[broken])
    after = _valid(before)
    planar, true_km2 = shapely.area(after), _areas_km2(after, crs)
    scale = np.divide(true_km2, planar, out=np.zeros(len(after)), where=planar > 0)
    changes = (planar - np.nan_to_num(shapely.area(before))) * scale
    polygons = polygons.copy()
    polygons[broken] = after
    return polygons, tuple(
        Repair(ids[int(index)], str(why), round(float(change), 6))
        for index, why, change in zip(broken, whys, changes, strict=True)
    )


def _unwrapped(polygons: Geometries) -> Geometries:
    """Return polygons in degrees, those that seem to go around the earth as ones across the antimeridian instead."""
    import shapely

    def wide(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
        return boxes[:, 2] - boxes[:, 0] > 180

    suspects = np.flatnonzero(wide(shapely.bounds(polygons)))
    if not len(suspects):
        return polygons
    polygons = polygons.copy()
    for index in suspects:
        parts = shapely.get_parts(polygons[index])
        eastern = shapely.transform(parts, lambda xy: np.where(xy[:, :1] < 0, xy + (360.0, 0.0), xy))
        parts = np.where(wide(shapely.bounds(parts)) & ~wide(shapely.bounds(eastern)), eastern, parts)
        polygons[index] = parts[0] if len(parts) == 1 else shapely.multipolygons(parts)
    return polygons


def _clipped_to(polygons: Geometries, extent: Box | None, turns: Sequence[float]) -> Geometries:
    """Return the parts of valid polygons inside the extent, brought there from so many units to the east of it, too."""
    import shapely

    if extent is None:
        return polygons
    frame = shapely.box(*extent)
    result = np.full(len(polygons), shapely.Polygon(), object)
    left, bottom, right, top = extent
    for turn in turns:
        found = np.flatnonzero(_meets(polygons, (left + turn, bottom, right + turn, top)))
        if not len(found):
            continue
        moved = shapely.transform(polygons[found], lambda xy, turn=turn: xy - (turn, 0.0)) if turn else polygons[found]
        result[found] = _polygonal(shapely.union(result[found], _polygonal(shapely.intersection(moved, frame))))
    return result


def _outer_edges(polygons: Geometries, around_pole: bool) -> Geometries:
    """Return the lines around all polygons together; around a pole, without those where the map of degrees ends."""
    import shapely

    edges = shapely.boundary(shapely.disjoint_subset_union_all(polygons))
    if around_pole:
        ends = shapely.multilinestrings([[(side, -90), (side, 90)] for side in (-180, 180)])
        edges = shapely.difference(edges, ends)
    return np.asarray(shapely.get_parts(edges))


def _meets(shapes: Geometries, box: Box) -> NDArray[np.bool_]:
    import shapely

    boxes = shapely.bounds(shapes)  # nan of empty geometries: they meet nothing
    left, bottom, right, top = box
    return (boxes[:, 0] <= right) & (boxes[:, 2] >= left) & (boxes[:, 1] <= top) & (boxes[:, 3] >= bottom)


def _areas_km2(polygons: Geometries, crs: CRS) -> NDArray[np.float64]:
    """Return true areas, by an equal-area projection around the polygons' middle."""
    import shapely

    if not len(polygons) or shapely.is_empty(polygons).all():
        return np.zeros(len(polygons))
    left, bottom, right, top = shapely.total_bounds(polygons)
    middle = transformer(crs.to_wkt(), _DEGREES).transform((left + right) / 2, (bottom + top) / 2)
    if not np.isfinite(middle).all():
        return np.zeros(len(polygons))
    local = CRS.from_proj4(f"+proj=laea +lon_0={middle[0]} +lat_0={middle[1]} +datum=WGS84 +units=m")
    areas = shapely.area(_mover(crs, local, 5 * _SEGMENT_M)(polygons))
    return np.asarray(np.nan_to_num(areas, posinf=0.0) / 1e6)


# -- distances -----------------------------------------------------------------------------------------------


def _within(lines: Geometries, grid: Grid, distance_m: float) -> NDArray[np.bool_]:
    """Return the pixels `(H, W)` whose centres lie within a true distance of a line.

    Distances are measured in azimuthal equidistant projections, each around the middle of one cell of a lattice that
    is fixed to the CRS: so that a window of a grid has the distances of the grid.
    """
    import shapely
    from rasterio.features import rasterize
    from scipy.ndimage import maximum_filter

    result = np.zeros((grid.height, grid.width), bool)
    pad = _pixels(grid, distance_m)
    around = grid.padded(pad)
    lines = lines[_meets(lines, around.bounds)]
    if not len(lines):
        return result
    unit_m = _unit_m(CRS.from_user_input(grid.crs))
    lines = np.asarray(shapely.segmentize(lines, _SEGMENT_M / unit_m), object)
    points, owner = shapely.get_coordinates(lines, return_index=True)
    edges = np.stack([points[:-1], points[1:]], axis=1)[owner[:-1] == owner[1:]]
    low, high = edges.min(axis=1), edges.max(axis=1)

    burned = rasterize(
        ((line, 1) for line in lines),
        (around.height, around.width),
        transform=_affine(around),
        all_touched=True,
        dtype=np.uint8,
    )
    near = maximum_filter(burned, size=2 * pad + 1)[pad : pad + grid.height, pad : pad + grid.width]
    if not near.any():
        return result
    rows, columns = np.nonzero(near)
    centres = np.stack(grid.xy(columns + 0.5, rows + 0.5), axis=-1)
    side = _CELL_M / unit_m
    reach = pad * max(grid.resolution)
    cells = np.floor(centres / side)
    order = np.lexsort(cells.T)
    for members in np.split(order, np.flatnonzero(np.diff(cells[order], axis=0).any(axis=1)) + 1):
        here = centres[members]
        close = ((high >= here.min(axis=0) - reach) & (low <= here.max(axis=0) + reach)).all(axis=1)
        if not close.any():
            continue
        middle = (cells[members[0]] + 0.5) * side
        longitude, latitude = transformer(grid.crs, _DEGREES).transform(*middle)
        local = f"+proj=aeqd +lon_0={longitude} +lat_0={min(max(latitude, -90), 90)} +datum=WGS84 +units=m"
        to_local = transformer(grid.crs, local)
        straight = np.stack(to_local.transform(*edges[close].reshape(-1, 2).T), axis=-1).reshape(-1, 2, 2)
        tree = shapely.STRtree(shapely.linestrings(straight[np.isfinite(straight).all(axis=(1, 2))]))
        places = shapely.points(np.stack(to_local.transform(*here.T), axis=-1))
        hit = tree.query(places, predicate="dwithin", distance=distance_m)[0]
        result[rows[members[hit]], columns[members[hit]]] = True
    return result


# -- between CRSs --------------------------------------------------------------------------------------------


def _mover(source: CRS, target: CRS, longest_m: float) -> Callable[[Geometries], Geometries]:
    """Return what reprojects geometries, with points added on edges longer than `longest_m`.

    Geometries that have no place in the target become empty.
    """
    import shapely

    if source.equals(target, ignore_axis_order=True):
        return lambda shapes: shapes
    to_target = transformer(source.to_wkt(), target.to_wkt())

    def move(shapes: Geometries) -> Geometries:
        shapes = np.array(shapely.segmentize(shapes, longest_m / _unit_m(source)), object)
        points, owner = shapely.get_coordinates(shapes, return_index=True)
        moved = np.stack(to_target.transform(*points.T), axis=-1)
        shapes = shapely.set_coordinates(shapes, moved)
        shapes[np.unique(owner[~np.isfinite(moved).all(axis=-1)])] = shapely.Polygon()
        return shapes

    return move


def _unit_m(crs: CRS) -> float:
    """Return the metres in a unit of the CRS's axes; of a degree, that of latitude."""
    if crs.is_geographic:
        return _DEGREE_M
    return float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0


def _longest_edge_m(grid: Grid) -> float:
    """Return how long an edge may be that is drawn straight in either CRS, and is off by `_OFF_PIXELS` at most.

    The arc of a great circle over an edge of length L rises L²/(8R)·tan(latitude) over the parallel.
    """
    extent = _extent(grid, CRS.from_user_input(_DEGREES), wider=0.0)
    latitude = 90.0 if extent is None else max(abs(extent[1]), abs(extent[3]))
    bend = max(math.tan(math.radians(min(latitude, 89.0))), 0.1)
    return math.sqrt(8 * _RADIUS_M * _OFF_PIXELS * min(_pixel_m(grid)) / bend)


def _lattice(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return columns and rows of places all over a grid, its corners among them."""
    columns, rows = np.meshgrid(np.linspace(0, grid.width, _LATTICE), np.linspace(0, grid.height, _LATTICE))
    return columns.ravel(), rows.ravel()


def _footprint(grid: Grid) -> Any:
    import shapely

    columns, rows = np.array([0, grid.width, grid.width, 0]), np.array([0, 0, grid.height, grid.height])
    return shapely.Polygon(np.stack(grid.xy(columns, rows), axis=-1))


def _affine(grid: Grid) -> Any:
    from rasterio import Affine

    return Affine(*grid.transform)


def _pixel_m(grid: Grid) -> tuple[float, float]:
    """Return the true lengths in metres of a pixel's two sides where they are shortest."""
    columns, rows = _lattice(grid)
    to_degrees = transformer(grid.crs, _DEGREES)
    here = to_degrees.transform(*grid.xy(columns, rows))
    sides = []
    for right, down in ((1.0, 0.0), (0.0, 1.0)):
        there = to_degrees.transform(*grid.xy(columns + right, rows + down))
        lengths = Geod(ellps="WGS84").inv(*here, *there)[2]
        sides.append(float(np.min(lengths, where=np.isfinite(lengths), initial=np.inf)))
    # At a pole the columns of a geographic grid meet: a hundredth keeps the number of them finite.
    width, height = sides
    return max(width, height / 100), max(height, width / 100)


def _pixels(grid: Grid, distance_m: float) -> int:
    """Return how many pixels a distance is at most, along either axis."""
    return math.ceil(1.1 * distance_m / min(_pixel_m(grid))) + 1


def _extent(grid: Grid, crs: CRS, wider: float = _WIDER) -> Box | None:
    """Return a box in another CRS that has the grid in it, None where there is none (but in degrees, always one).

    In degrees, its right side may lie beyond 180; around a pole it goes from −180 to 180.
    """
    points = np.stack(grid.xy(*_lattice(grid)), axis=-1)
    if not CRS.from_user_input(grid.crs).equals(crs, ignore_axis_order=True):
        points = np.stack(transformer(grid.crs, crs.to_wkt()).transform(*points.T), axis=-1)
    if not np.isfinite(points).all():
        return (-180.0, -90.0, 180.0, 90.0) if crs.is_geographic else None
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    if crs.is_geographic:
        if right - left >= 180:  # on both sides of the antimeridian, or around a pole
            eastern = np.where(points[:, 0] < 0, points[:, 0] + 360, points[:, 0])
            left, right = eastern.min(), eastern.max()
        if right - left >= 180 or max(abs(bottom), abs(top)) > 89:
            return (-180.0, -90.0 if bottom < 0 else bottom - 1, 180.0, 90.0 if top > 0 else top + 1)
    margin_x, margin_y = wider * (right - left), wider * (top - bottom)
    return (float(left - margin_x), float(bottom - margin_y), float(right + margin_x), float(top + margin_y))
