"""From a label raster to outlines: polygons of each class with areas, their intervals and terrain, in a GeoPackage.

Small objects and holes are taken out, connected ice is split by divides or basins, and regions become polygons whose
common borders are one line (`inference.topology`). Fields have the names of the Randolph Glacier Inventory 7
(https://www.glims.org/rgi_user_guide) where they mean the same; what can't be known from a raster, as who is who
(`rgi_id`, `glac_name`), how a glacier ends (`term_type`) or its length (`lmax_m`), is left out.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from console import UserError, warn
from data.grids import Grid, overlaps, read, read_grid, transformer
from data.rasters import unreadable
from data.tiles import IGNORE, ClassInfo
from data.windows import Window
from inference import topology
from inference.areas import (
    Interval,
    PixelAreas,
    Read,
    area_interval,
    areas_km2,
    half_pixel_areas_km2,
    pixel_size_m,
)
from inference.cleaning import fill_small_holes, majority, remove_small
from inference.divides import read_divides, split
from inference.geopackage import VectorLayer, layer_name, write_geopackage
from inference.topology import UNKNOWN, Arcs, Smoothing
from inference.zonal import Terrain, means, owners, terrain

if TYPE_CHECKING:
    import geopandas

SMALLEST_KM2 = 0.01
"""Area below which objects and holes are taken out, unless the user says otherwise: the smallest that inventories keep
(Paul et al. 2009, doi:10.3189/172756410790595778)."""

_DEGREES = "EPSG:4326"
_NEAR = 2.0  # correlation lengths around a polygon within which what is probable counts as its own
_LEAST_NEAR = 2.0  # pixels
_HELD = 2**22  # pixels up to which the box around a polygon is held in memory

Field = NDArray[Any]


@dataclass(frozen=True)
class LayerSummary:
    """What a layer holds.

    Args:
        name: Of the layer.
        title: The class's name.
        polygons: How many there are.
        area_km2: Of all.
        half_pixel: The same with the areas of all outlines moved inwards and outwards by half a pixel.
        probable: The area that is to be expected from the probabilities of the whole scene, and the interval that has
            the true one in 90 % of cases; None without probabilities or correlation length.
    """

    name: str
    title: str
    polygons: int
    area_km2: float
    half_pixel: Interval
    probable: Interval | None


@dataclass(frozen=True)
class Summary:
    """What was written, layer by layer."""

    path: Path
    layers: tuple[LayerSummary, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the layers as JSON knows them."""
        return [asdict(layer) for layer in self.layers]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer to be: which classes it has, and the number of the polygon of each region, 0 of those not in it."""

    name: str
    title: str
    color: str
    classes: tuple[int, ...]
    groups: NDArray[np.int32]
    whole: bool  # whether its polygons are all of a glacier, whatever its surface


def write_outlines(
    labels: Path,
    target: Path,
    classes: Sequence[ClassInfo],
    *,
    confidence: Path | None = None,
    probs: Path | None = None,
    dem: Path | None = None,
    divides: Path | None = None,
    smallest_km2: float = SMALLEST_KM2,
    smallest_hole_km2: float = SMALLEST_KM2,
    median_px: int = 0,
    smoothing: Smoothing = "none",
    tolerance_m: float | None = None,
    correlation_length_m: float | None = None,
    src_date: datetime.date | str | None = None,
    dem_source: str | None = None,
    described: str = "",
) -> Summary:
    """Write a GeoPackage with a layer of polygons for each class but the first, which is the background.

    Where several classes are glacier, a layer more, `glacier`, has their union: with clean ice and debris apart, that
    is what inventories and models call a glacier. All layers share their borders.

    Fields: `cenlon`, `cenlat` (degrees, WGS 84: a point inside, as in RGI), `utm_zone`, `area_km2` (on the ellipsoid),
    `area_min_km2`, `area_max_km2` (outline moved by half a pixel), `cut_off` (1: reaches the end of what was seen, so
    there may be more of it); with probabilities `area_prob_km2` (expected), and with a correlation length
    `area_p05_km2` and `area_p95_km2` (the interval that has 90 % of true areas); with `confidence` `confidence_mean`;
    with `dem` `zmin_m zmax_m zmed_m zmean_m slope_deg aspect_deg aspect_sec dem_source`; `src_date`; with basins
    `basin_id`.

    Args:
        labels: Raster of class ids, 255 where nothing is known.
        target: The GeoPackage.
        classes: The class list.
        confidence: Raster of the label's probability on the same grid, 0..1 after its scale tag. With two classes it
            stands in for `probs`.
        probs: Raster of each class's probability on the same grid, or with two classes of the second alone.
        dem: Elevations in metres, on any grid.
        divides: Ice divides (lines) or basins (polygons), see `inference.divides`.
        smallest_km2: Objects below it become what is around them.
        smallest_hole_km2: The same for holes in what is not background.
        median_px: Side of the window of a median filter on the labels before that, odd; 0: none.
        smoothing: Of the outlines, see `inference.topology.smoothed`.
        tolerance_m: Of Douglas and Peucker's; None: the diagonal of half a pixel.
        correlation_length_m: Of the errors of the classes, see `inference.areas`; None: no interval from probabilities.
        src_date: Date of the scene, ISO 8601.
        dem_source: Name of the elevation model; None: that of its file.
        described: What the outlines are and where they come from, for the layers' description.

    Raises:
        UserError: A raster can't be read, is not georeferenced, or does not fit the labels; labels are no class ids;
            the elevation model or the divides lie elsewhere; the target can't be written.
    """
    _check_writable(target)
    check_sizes(smallest_km2, smallest_hole_km2, median_px, correlation_length_m)
    date = None if src_date is None else _iso(src_date)
    grid = read_grid(labels)
    values = _read_labels(labels, grid, classes)
    probability = _probabilities(labels, grid, classes, confidence, probs)
    certainty = None if confidence is None else _band(confidence, 1, grid)
    if dem is not None and not overlaps(dem, grid):
        raise UserError(
            f"{dem}: the elevation model does not reach the scene of {labels}: name one that covers it, or none"
        )
    divided = None if divides is None else read_divides(divides, grid)

    pixels = PixelAreas(grid)
    if median_px:
        values = majority(values, median_px)
    if smallest_km2:
        values = remove_small(values, smallest_km2, pixels.of_rows())
    if smallest_hole_km2:
        values = fill_small_holes(values, smallest_hole_km2, pixels.of_rows())
    glacier = np.array([entry.glacier for entry in classes])
    bodies, basins = None, None
    if divided is not None:
        bodies, names = split(_bodies(values, glacier), divided, smallest_km2 / float(pixels.of_rows().mean()))
        basins = names if divided.ids else None
    regions, class_of, body_of = _regions(values, glacier, bodies)
    del values, bodies
    if len(class_of) == 1:
        warn(f"{labels}: no pixel is of a class other than {classes[0].name}: the outlines in {target} are empty")

    pixel_m = pixel_size_m(grid)
    traced = topology.trace(regions)
    if divided is None:
        body_of = traced.groups(glacier[class_of])
    tolerance = math.hypot(*pixel_m) / 2 if tolerance_m is None else tolerance_m
    arcs = topology.smoothed(traced, smoothing, tolerance, pixel_m)
    layers = _layers(classes, class_of, body_of)
    united = body_of if any(layer.whole for layer in layers) else None
    confidences = None if certainty is None else means(regions, certainty)
    heights = None if dem is None else terrain(dem, grid, regions, united)
    cut_off = arcs.at_unknown()

    written, summaries = [], []
    for layer in layers:
        polygons = topology.polygons(arcs, layer.groups)
        areas = areas_km2(polygons, grid)
        fields = _places(polygons, grid)
        fields["area_km2"] = areas
        fields["area_min_km2"], fields["area_max_km2"] = half_pixel_areas_km2(polygons, areas, pixel_m).T
        probable = None
        if probability is not None:
            chances = _of_classes(probability, layer.classes)
            near_m = max(_NEAR * (correlation_length_m or 0.0), _LEAST_NEAR * max(pixel_m))
            own = owners(regions, layer.groups, near_m, pixel_m)
            fields |= _probable_fields(own, len(polygons), chances, pixels, correlation_length_m, pixel_m)
            if correlation_length_m is not None:
                shape = grid.height, grid.width
                probable = area_interval(chances, pixels.of, shape, correlation_length_m, pixel_m)
        if confidences is not None:
            sums, numbers = (np.bincount(layer.groups, each, len(polygons) + 1)[1:] for each in confidences)
            fields["confidence_mean"] = sums / np.where(numbers > 0, numbers, np.nan)
        fields["cut_off"] = np.bincount(layer.groups, cut_off, len(polygons) + 1)[1:].astype(bool).astype(np.int32)
        if heights is not None and dem is not None:
            fields |= _terrain_fields(heights[layer.whole], layer, dem_source or dem.stem)
        if date is not None:
            fields["src_date"] = np.full(len(polygons), date, object)
        if basins is not None:
            fields["basin_id"] = _per_group(layer, np.array([None, *basins], object)[body_of])
        frame = _frame(polygons, fields, grid)
        written.append(VectorLayer(layer.name, layer.title, layer.color, frame, described))
        half = _half_pixel_total(arcs, layer, areas, pixel_m, fields)
        summaries.append(LayerSummary(layer.name, layer.title, len(polygons), float(areas.sum()), half, probable))
    write_geopackage(target, written)
    return Summary(target, tuple(summaries))


# -- what is read --------------------------------------------------------------------------------------------


def _check_writable(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(target.parent, os.W_OK) and not target.is_dir()
    except OSError:
        writable = False
    if not writable or target.suffix.lower() != ".gpkg":
        raise UserError(
            f"{target}: outlines can't be written there; expected a file ending in .gpkg in a folder that you may "
            "write to"
        )


def check_sizes(smallest: float, hole: float, median: int, correlation: float | None) -> None:
    """Raise `UserError` where a size or the median's window is impossible."""
    for what, value in (("smallest object", smallest), ("smallest hole", hole), ("correlation length", correlation)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UserError(f"the {what} is {value}; expected 0 or a positive number")
    if median < 0 or (median and median % 2 == 0):
        raise UserError(
            f"the window of the median has {median} pixels along a side; expected an odd number, or 0: none"
        )


def _read_labels(path: Path, grid: Grid, classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    try:
        with rasterio.open(path) as dataset:
            kind, bands = dataset.dtypes[0], dataset.count
            values = dataset.read(1) if kind == "uint8" else np.zeros((0, 0), np.uint8)
    except (rasterio.errors.RasterioError, OSError) as error:
        raise unreadable(path, error) from error
    if kind != "uint8" or bands != 1:
        raise UserError(f"{path}: {bands} bands of type {kind}, expected labels: one band of class ids as uint8")
    highest = max((int(row[row != IGNORE].max(initial=0)) for row in values), default=0)
    if highest >= len(classes):
        raise UserError(
            f"{path}: has the class id {highest}, but there are {len(classes)} classes, from 0 on: "
            f"{', '.join(entry.name for entry in classes)}; expected ids of these, and 255 where nothing is known"
        )
    return np.asarray(values)


def _band(path: Path, band: int, grid: Grid) -> Read:
    """Return what reads a band of a raster on the labels' own grid, after its scale tag, NaN where unknown."""
    found = read_grid(path)
    if not found.same_as(grid):
        raise UserError(
            f"{path}: lies on another grid than the labels ({found.height}×{found.width} pixels, {found.crs_name}; the "
            f"labels' {grid.height}×{grid.width}, {grid.crs_name}): give the raster that was written with them"
        )
    with rasterio.open(path) as dataset:
        scale, offset = dataset.scales[band - 1], dataset.offsets[band - 1]

    def read_window(window: Window) -> NDArray[np.floating]:
        values = read(path, [band], grid.window(window))[..., 0] * np.float32(scale) + np.float32(offset)
        if (np.nanmin(values, initial=0) < -1e-3) or (np.nanmax(values, initial=0) > 1 + 1e-3):
            raise UserError(
                f"{path}: has values beyond 0 to 1, expected probabilities, with a scale tag if not stored so"
            )
        return np.clip(values, 0, 1)

    return read_window


def _probabilities(
    labels: Path, grid: Grid, classes: Sequence[ClassInfo], confidence: Path | None, probs: Path | None
) -> list[Read | None] | None:
    """Return what reads the probability of each class; None where there is none for them."""
    if probs is not None:
        read_grid(probs)
        with rasterio.open(probs) as dataset:
            bands = dataset.count
        if bands == len(classes):
            return [_band(probs, band, grid) for band in range(1, bands + 1)]
        if bands == 1 and len(classes) == 2:
            return [None, _band(probs, 1, grid)]
        raise UserError(
            f"{probs}: has {bands} bands, expected one for each of the {len(classes)} classes: "
            f"{', '.join(entry.name for entry in classes)}"
        )
    if confidence is None or len(classes) != 2:
        return None
    certainty = _band(confidence, 1, grid)

    def of_second(window: Window) -> NDArray[np.floating]:
        label = read(labels, [1], grid.window(window), "classes", (IGNORE,))[..., 0]
        certain = certainty(window)
        return np.where(np.isnan(label), np.float32(np.nan), np.where(label == 1, certain, 1 - certain))

    return [None, of_second]


def _of_classes(probability: list[Read | None], classes: tuple[int, ...]) -> Read:
    """Return what reads the probability that a pixel is of one of some classes."""
    readers = [reader for class_id in classes if (reader := probability[class_id]) is not None]

    def read_window(window: Window) -> NDArray[np.floating]:
        return np.minimum(np.sum([reader(window) for reader in readers], axis=0, dtype=np.float32), 1)

    return read_window


# -- regions -------------------------------------------------------------------------------------------------


def _bodies(labels: NDArray[np.uint8], glacier: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the bodies of connected ice, whatever its surface."""
    return np.asarray(ndimage.label(np.isin(labels, np.flatnonzero(glacier)))[0], np.int32)


def _regions(
    labels: NDArray[np.uint8], glacier: NDArray[np.bool_], bodies: NDArray[np.int32] | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Number the connected pixels of one class, and of one body where bodies of ice are given.

    Returns:
        Regions `(H, W)` as `inference.topology` knows them; class and body of each, 0 first, for the background; bodies
        are 0 where none are given.
    """
    regions = np.zeros(labels.shape, np.int32)
    class_of, body_of = [0], [0]
    for class_id in range(1, len(glacier)):
        if (glacier[class_id] and bodies is not None) or not (mask := labels == class_id).any():
            continue
        if len(class_of) == 1:  # of two classes, no other map is needed
            count = ndimage.label(mask, output=regions)
        else:
            found, count = ndimage.label(mask)
            np.add(found, len(class_of) - 1, out=regions, where=mask)
        class_of += [class_id] * count
        body_of += [0] * count
    if bodies is not None:
        for body, window in enumerate(ndimage.find_objects(bodies), start=1):
            mine = bodies[window] == body
            surface = labels[window]
            for class_id in np.unique(surface[mine]):
                found, count = ndimage.label(mine & (surface == class_id))
                np.add(found, len(class_of) - 1, out=regions[window], where=found > 0)
                class_of += [int(class_id)] * count
                body_of += [body] * count
    regions[labels == IGNORE] = UNKNOWN
    return regions, np.array(class_of, np.int32), np.array(body_of, np.int32)


def _layers(classes: Sequence[ClassInfo], class_of: NDArray[np.int32], body_of: NDArray[np.int32]) -> list[_Layer]:
    glaciers = tuple(number for number, entry in enumerate(classes) if entry.glacier and number > 0)
    layers: list[_Layer] = []
    for number, entry in list(enumerate(classes))[1:]:
        mine = class_of == number
        groups = np.where(mine, np.cumsum(mine), 0).astype(np.int32)
        name = layer_name(entry.name, [layer.name for layer in layers])
        layers.append(_Layer(name, entry.name, entry.color, (number,), groups, False))
    if len(glaciers) > 1:
        name = layer_name("glacier", [layer.name for layer in layers])
        layers.append(_Layer(name, "glacier", classes[glaciers[0]].color, glaciers, body_of, True))
    return layers


# -- fields --------------------------------------------------------------------------------------------------


def _places(polygons: NDArray[np.object_], grid: Grid) -> dict[str, Field]:
    inside = shapely.get_coordinates(shapely.point_on_surface(polygons)).reshape(-1, 2)
    lon, lat = (np.asarray(each, float) for each in transformer(grid.crs, _DEGREES).transform(*grid.xy(*inside.T)))
    zone = np.clip(np.floor((lon + 180) / 6) + 1, 1, 60).astype(np.int32)
    return {"cenlon": lon, "cenlat": lat, "utm_zone": zone}


def _probable_fields(
    own: NDArray[np.integer],
    count: int,
    chances: Read,
    pixels: PixelAreas,
    correlation_length_m: float | None,
    pixel_m: tuple[float, float],
) -> dict[str, Field]:
    """Return the expected area of each polygon, and its interval, of the pixels that are its own."""
    expected, low, high = np.zeros(count), np.zeros(count), np.zeros(count)
    for number, (rows, columns) in enumerate(ndimage.find_objects(own, count)):
        box = Window(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        chance, area = _own(own, number + 1, box, chances, pixels)
        found = area_interval(chance, area, (box.height, box.width), correlation_length_m, pixel_m)
        expected[number], low[number], high[number] = found.area_km2, found.low_km2, found.high_km2
    fields = {"area_prob_km2": expected}
    return fields if correlation_length_m is None else {**fields, "area_p05_km2": low, "area_p95_km2": high}


def _own(own: NDArray[np.integer], number: int, box: Window, chances: Read, pixels: PixelAreas) -> tuple[Read, Read]:
    """Return what reads, of windows of the box around a polygon, probabilities of its own pixels, and all areas."""
    held = chances(box) if box.height * box.width <= _HELD else None

    def there(window: Window) -> Window:
        return Window(window.top + box.top, window.left + box.left, window.height, window.width)

    def chance(window: Window) -> NDArray[np.floating]:
        values = chances(there(window)) if held is None else held[window.slices]
        return np.where(own[there(window).slices] == number, values, np.float32(np.nan))

    return chance, lambda window: pixels.of(there(window))


def _half_pixel_total(
    arcs: Arcs,
    layer: _Layer,
    areas: NDArray[np.float64],
    pixel_m: tuple[float, float],
    fields: dict[str, Field],
) -> Interval:
    """Return the area of all polygons, moved by half a pixel where they do not border on one another."""
    whole = arcs.groups((layer.groups > 0).astype(np.int32))
    if whole.max(initial=0) == len(areas):
        low, high = fields["area_min_km2"].sum(), fields["area_max_km2"].sum()
    else:
        of_whole = np.bincount(_per_group(layer, whole), areas).astype(float)
        moved = half_pixel_areas_km2(topology.polygons(arcs, whole), of_whole[1:], pixel_m)
        low, high = moved.sum(axis=0)
    return Interval(float(areas.sum()), float(low), float(high))


def _terrain_fields(heights: Terrain, layer: _Layer, source: str) -> dict[str, Field]:
    """Return the terrain of a layer's polygons; those of one class are regions, glaciers are bodies."""
    mine = np.arange(len(heights.zmin_m)) if layer.whole else np.flatnonzero(layer.groups) - 1
    names = ("zmin_m", "zmax_m", "zmed_m", "zmean_m", "slope_deg", "aspect_deg", "aspect_sec")
    fields: dict[str, Field] = {name: getattr(heights, name)[mine] for name in names}
    return {**fields, "dem_source": np.full(len(mine), source, object)}


def _per_group(layer: _Layer, of_region: Field) -> Field:
    groups, first = np.unique(layer.groups, return_index=True)
    return of_region[first[groups > 0]]


def _iso(date: datetime.date | str) -> str:
    try:
        return (datetime.datetime.fromisoformat(date) if isinstance(date, str) else date).isoformat()
    except ValueError as error:
        raise UserError(f"the scene's date is {date!r}; expected ISO 8601, such as 2020-08-31") from error


def _frame(polygons: NDArray[np.object_], fields: dict[str, Field], grid: Grid) -> geopandas.GeoDataFrame:
    import geopandas

    placed = shapely.transform(polygons, lambda xy: np.stack(grid.xy(*xy.T), axis=1))
    order = [
        *("src_date", "cenlon", "cenlat", "utm_zone", "area_km2", "area_min_km2", "area_max_km2", "area_prob_km2"),
        *("area_p05_km2", "area_p95_km2", "confidence_mean", "cut_off", "zmin_m", "zmax_m", "zmed_m", "zmean_m"),
        *("slope_deg", "aspect_deg", "aspect_sec", "dem_source", "basin_id"),
    ]
    return geopandas.GeoDataFrame(
        {name: fields[name] for name in order if name in fields}, geometry=placed, crs=grid.crs
    )
