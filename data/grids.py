"""Grids on earth, and rasters read on them: as they are where the grids agree, warped by GDAL where they do not.

What a warp gives does not depend on how the target is divided into windows, so that tiles of a scene fit together:

- places are transformed to a millionth of a pixel, GDAL's default is an eighth,
- the kernel's width and the choice between interpolation and average are made once for raster and target grid, not
  for each window as GDAL does,
- a native window reaches beyond what the kernel needs.

A raster's bands are warped as value × weight beside their weight, 1 where there is a value and 0 elsewhere, and then
divided: missing pixels take no part in their neighbours' values. A target pixel has a value where at least half of what
it is made of has one: the edge of the data neither shrinks nor grows.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.vrt
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.warp import calculate_default_transform

from console import UserError
from data.masks import equal
from data.rasters import unreadable
from data.windows import Window

Kind = Literal["continuous", "classes"]
Smooth = Literal["bilinear", "cubic"]
Values = NDArray[np.float32]

_SAME = 1e-3  # pixels: files written by different tools differ in the last digits
_COARSER = 1.5  # native pixels per target pixel, along a side, from which on the warp averages; see `read`
_MOST_VALUES = 2**24  # in memory at once, of a native window or of a piece of the target: 64 MB as float32
_MOST_OPEN = 32  # rasters that a thread keeps open
_BLOCK_CACHE = 256 * 2**20  # bytes; GDAL's own default, 5 % of the memory for each process, is too much for many jobs
_EXACT = 1e-6  # pixels: how exactly a place is transformed
_ASIDE = 1e-6  # pixels
_PLACES = 16  # along a side of a target pixel, at most, that a mean is taken of in the same CRS
_KNOTS = 21  # points along a side of a window that are transformed to find what it covers in another CRS
_WIDEST_DEG = 1.0
_NARROWEST_M = 0.01
_LONGEST = 1_000_000  # pixels along a side of a target grid: a resolution that makes more is a slip


@dataclass(frozen=True)
class Grid:
    """Pixels on earth: `height` × `width` of them.

    `crs` is WKT; `transform` the six numbers (a, b, c, d, e, f) of x = a·column + b·row + c, y = d·column + e·row + f,
    in units of the CRS (degrees, metres), where pixel (0, 0) reaches from row and column 0 to 1.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]
    height: int
    width: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top: of a rotated grid, those of the box around it."""
        x, y = self.xy(np.array([0, self.width, 0, self.width]), np.array([0, 0, self.height, self.height]))
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())

    @property
    def resolution(self) -> tuple[float, float]:
        """Width and height of a pixel, above 0, in units of the CRS."""
        a, b, _, d, e, _ = self.transform
        return math.hypot(a, d), math.hypot(b, e)

    @property
    def north_up(self) -> bool:
        """Whether rows run along the CRS's x axis and down its y axis."""
        a, b, _, d, e, _ = self.transform
        return a > 0 > e and b == d == 0

    @property
    def geographic(self) -> bool:
        """Whether the CRS is one of longitude and latitude."""
        return bool(_projection(self.crs).is_geographic)

    @property
    def crs_name(self) -> str:
        """The CRS's code, such as `EPSG:32645`; where it has none, its name."""
        return _name(self.crs)

    def window(self, window: Window) -> Grid:
        """Return the grid of a window, which may reach beyond this one."""
        a, b, c, d, e, f = self.transform
        x, y = a * window.left + b * window.top + c, d * window.left + e * window.top + f
        return Grid(self.crs, (a, b, x, d, e, y), window.height, window.width)

    def padded(self, pixels: int) -> Grid:
        """Return the grid with `pixels` more on each side."""
        return self.window(Window(-pixels, -pixels, self.height + 2 * pixels, self.width + 2 * pixels))

    def same_as(self, other: Grid) -> bool:
        """Whether the two are one grid: size and CRS equal, corners within a thousandth of a pixel."""
        return (self.height, self.width) == (other.height, other.width) and _offset(self, other) == (0, 0)

    def xy(self, columns: NDArray[Any], rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the coordinates x, y of places given in pixels from the upper left corner."""
        a, b, c, d, e, f = self.transform
        return a * columns + b * rows + c, d * columns + e * rows + f

    def pixels(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return columns and rows, in pixels from the upper left corner, of coordinates."""
        a, b, c, d, e, f = self.transform
        determinant = a * e - b * d
        return (e * (x - c) - b * (y - f)) / determinant, (a * (y - f) - d * (x - c)) / determinant


def read_grid(path: str | Path) -> Grid:
    """Return the grid of a raster; of a compound CRS (with heights), its horizontal part.

    Raises:
        UserError: If the raster can't be read, has no CRS or no transform, or reaches across ±180° of longitude.
    """
    return _source(path).grid


def target_grid(
    reference: Grid | str | Path, crs: str | None = None, resolution: float | tuple[float, float] | None = None
) -> Grid:
    """Return the north-up grid that tiles are to lie on.

    Args:
        reference: The raster that it is to cover, or its grid.
        crs: Any name of a CRS that PROJ knows, such as `EPSG:32645`; None: the reference's own. In another CRS the grid
            covers the reference's footprint, its edges on whole multiples of the resolution.
        resolution: Side of a pixel in units of the target's CRS, or width and height. None: the reference's own; in
            another CRS what keeps the number of pixels about as it is, rounded to two digits. With a resolution of its
            own the grid keeps the reference's upper left corner and covers it.

    Raises:
        UserError: What `read_grid` raises; a CRS that nobody knows; a resolution that is not above 0 or absurd in the
            CRS's unit; a reference that is rotated or south-up, without another CRS; a geographic grid across ±180°.
    """
    where = "" if isinstance(reference, Grid) else f"{reference}: "
    grid = reference if isinstance(reference, Grid) else read_grid(reference)
    wanted = grid.crs if crs is None else _parsed(crs)
    sides = (
        None if resolution is None else (resolution, resolution) if not isinstance(resolution, tuple) else resolution
    )
    if sides is not None:
        _check_resolution(sides, wanted, grid)
    if crs is not None and not _same_crs(wanted, grid.crs):
        return _checked(_reprojected(grid, wanted, sides, where), where)
    if not grid.north_up:
        raise UserError(
            f"{where}the raster is rotated or its rows run northwards, tiles are north-up: warp it first (gdalwarp "
            "-overwrite -r near IN.tif OUT.tif), or name another raster, or a CRS, for the target grid"
        )
    if sides is None or np.allclose(sides, grid.resolution, rtol=1e-9, atol=0):
        return _checked(Grid(wanted, grid.transform, grid.height, grid.width), where)
    left, bottom, right, top = grid.bounds
    return _checked(_covering(wanted, (left, top), (right, bottom), sides), where)


def tile_windows(grid: Grid, size: int) -> list[Window]:
    """Return windows of about `size`² pixels, row by row, such that every pixel lies in exactly one.

    A remainder narrower than half of `size` joins its neighbour: sides are at least half of `size` and less than three
    halves, or all of a grid that is smaller.
    """
    return [
        Window(top, left, height, width)
        for top, height in _parts(grid.height, size)
        for left, width in _parts(grid.width, size)
    ]


def read(
    path: str | Path,
    indexes: Sequence[int],
    target: Grid,
    kind: Kind = "continuous",
    nodata: Sequence[float] = (),
    smooth: Smooth = "bilinear",
    convert: Callable[[Values], Values] | None = None,
) -> Values:
    """Read bands of a raster on a grid: float32 (h, w, C), NaN where there is no value.

    Without a value is what the raster's nodata tag, its mask or alpha band or `nodata` says, what is NaN or infinite,
    and what lies beyond the raster. On the raster's own grid, or a part of it, values are read as they are. Elsewhere
    they are warped:

    - `classes`: that of the native pixel in which the target pixel's centre lies; never mixed. Also where the target is
      coarser: a drawn pixel keeps the shares of rare and narrow classes, which a majority would lose, and bit fields.
    - `continuous`, where a target pixel is more than 1.5 native pixels wide (the root of how many it covers), so that
      interpolation would use some pixels more than others, and soon leave some out: the mean over the target pixel, of
      interpolated places as dense as native pixels or, in another CRS, of four after the mean of native blocks half as
      wide as the target's pixels. Even ground stays even, and where grids fit, it is the mean of the pixels.
    - else interpolated, by `smooth`.

    Memory is bounded: where too many native pixels lie under the target, it is read in pieces.

    Args:
        path: The raster.
        indexes: Its bands, counted from 1.
        target: Where to; may reach beyond the raster.
        kind: What the values are.
        nodata: Values that mean nodata beside the raster's own tag.
        smooth: How to interpolate.
        convert: Changes native values (h, w, C) before a warp, such as dB to power; NaN stays without a value.

    Raises:
        UserError: What `read_grid` raises; a raster that is cut off or damaged where it is read, that has no such band
            or holds complex numbers.
    """

    def prepare(values: Values, _: Grid) -> Values:
        return values if convert is None else convert(values)

    return read_derived(path, indexes, target, prepare, 0, kind, nodata, smooth)


def read_derived(
    path: str | Path,
    indexes: Sequence[int],
    target: Grid,
    derive: Callable[[Values, Grid], Values],
    reach: int,
    kind: Kind = "continuous",
    nodata: Sequence[float] = (),
    smooth: Smooth = "bilinear",
) -> Values:
    """Read like `read` what is derived from native pixels and their neighbours: `derive(values, grid)` (h, w, C) → K.

    `reach` is how far, in pixels, `derive` looks; as many of its outermost results are not used.
    """
    source = _source(path)
    source.check(indexes)
    plan = _plan(source.grid, target, kind, smooth)

    def native(rows: tuple[int, int], columns: tuple[int, int]) -> Values:
        window = Window(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])
        wider = Window(window.top - reach, window.left - reach, window.height + 2 * reach, window.width + 2 * reach)
        values = derive(source.read(indexes, wider, nodata), source.grid.window(wider))
        values = np.asarray(values, np.float32)[reach : reach + window.height, reach : reach + window.width]
        # What is infinite, also from converting (the logarithm of 0), would spread in a warp.
        return np.where(np.isfinite(values), values, np.float32(np.nan))

    if plan is None:
        row, column = _offset(source.grid, target) or (0, 0)
        return native((row, row + target.height), (column, column + target.width))
    whole = np.empty((target.height, target.width, 0), np.float32)
    for piece, windows in _pieces(source.grid, target, plan, len(indexes)):
        part = _warped(native, source.grid, target.window(piece), plan, windows)
        if not whole.size:
            whole = np.empty((target.height, target.width, part.shape[-1]), np.float32)
        whole[piece.slices] = part
    return whole


def pixels_per_target(source: Grid, target: Grid) -> float:
    """Return how many pixels of `source` a pixel of `target` is wide: the square root of how many it covers.

    It is one number for two grids, taken in the middle of what the source and the target CRS's area of use share, and
    the same for every window of the target.
    """
    return _spread(source, target.crs, _linear(target))[2]


def overlaps(path: str | Path, target: Grid) -> bool:
    """Whether the raster's footprint, its edges bent as the target's CRS bends them, shares ground with the target."""
    from shapely import Polygon, box

    source = read_grid(path)
    theirs = _lattice(source, target.crs)
    if _within(source, *_lattice(target, source.crs)).any() or _within(target, *theirs).any():
        return True
    # Neither has one of the other's points: what is left are footprints that cross like bars.
    places = np.stack(target.pixels(*theirs), axis=-1)
    ring = np.concatenate([places[0], places[1:, -1], places[-1, -2::-1], places[-2:0:-1, 0]])
    if not np.isfinite(ring).all():
        return False
    shared = Polygon(ring).buffer(0).intersection(box(0, 0, target.width, target.height))
    return bool(shared.area > _SAME)


def describe_warp(path: str | Path, target: Grid, kind: Kind = "continuous", smooth: Smooth = "bilinear") -> str:
    """Return a sentence on how `read` gets the raster onto the target; nothing where it reads it as it is."""
    source = read_grid(path)
    plan = _plan(source, target, kind, smooth)
    if plan is None:
        return ""
    how = plan.resampling.name
    if plan.finer > 1:
        how = f"the mean of about {pixels_per_target(source, target) ** 2:.2g} pixels"
    elif plan.resampling is not Resampling.nearest:
        how = f"{how} interpolation"
    else:
        how = "the nearest pixel"
    return f"{path}: warped from {_described(source)} to {_described(target)} by {how}"


def close() -> None:
    """Close the rasters that this thread keeps open; reading opens them again."""
    kept = _open.of_this_process()
    while kept:
        kept.popitem()[1].dataset.close()


@lru_cache(maxsize=256)
def transformer(source: str, target: str) -> Transformer:
    """Return the transformation between two CRSs, x (longitude) before y, kept for the next call.

    Raises:
        UserError: If there is none, as between two planets.
    """
    try:
        return Transformer.from_crs(_projection(source), _projection(target), always_xy=True)
    except ProjError as error:
        raise UserError(f"nothing leads from the CRS {_name(source)} to {_name(target)} ({error})") from error


# -- rasters, opened -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """An open raster, its grid, and what its file looked like when it was opened."""

    path: str
    dataset: Any
    grid: Grid
    stamp: tuple[int, ...]

    def check(self, indexes: Sequence[int]) -> None:
        """Raise `UserError` unless the raster has these bands, of real numbers."""
        count = self.dataset.count
        if not indexes or not all(1 <= index <= count for index in indexes):
            raise UserError(
                f"{self.path}: has bands 1 to {count}, asked for {', '.join(map(str, indexes)) or 'none'}: correct the "
                "bands' numbers or the file"
            )
        if any("complex" in self.dataset.dtypes[index - 1] for index in indexes):
            raise UserError(
                f"{self.path}: complex numbers, expected real ones: save intensity or amplitude, such as a calibrated "
                "backscatter, as floats"
            )

    def read(self, indexes: Sequence[int], window: Window, nodata: Sequence[float]) -> Values:
        """Read native pixels as float32 (h, w, C); NaN without a value, also beyond the raster."""
        values = np.full((window.height, window.width, len(indexes)), np.nan, np.float32)
        top, left = max(window.top, 0), max(window.left, 0)
        height = min(window.top + window.height, self.grid.height) - top
        width = min(window.left + window.width, self.grid.width) - left
        if height <= 0 or width <= 0:
            return values
        part = rasterio.windows.Window(left, top, width, height)
        try:
            with rasterio.Env(GDAL_CACHEMAX=_BLOCK_CACHE):
                stored = self.dataset.read(list(indexes), window=part)
                masks = {index: self.dataset.read_masks(index, window=part) for index in indexes if self._masked(index)}
        except (RasterioError, OSError) as error:
            raise unreadable(self.path, error) from error
        inner = values[top - window.top :, left - window.left :][:height, :width]
        for band, index in enumerate(indexes):
            absent = ~np.isfinite(stored[band])
            for value in (*nodata, self.dataset.nodatavals[index - 1]):
                if value is not None:
                    absent |= equal(stored[band], value)
            if index in masks:
                absent |= masks[index] == 0
            inner[..., band] = np.where(absent, np.float32(np.nan), stored[band])
        return values

    def _masked(self, index: int) -> bool:
        """Whether a mask or alpha band speaks for the band: what nodata says is compared here."""
        flags = self.dataset.mask_flag_enums[index - 1]
        return MaskFlags.per_dataset in flags or MaskFlags.alpha in flags


class _Open(threading.local):
    """The rasters that a thread has open, the last used last: GDAL's datasets belong to one thread of one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.sources: OrderedDict[str, _Source] = OrderedDict()
        self.inherited: list[Any] = []

    def of_this_process(self) -> OrderedDict[str, _Source]:
        """Return them without those of the process that this one was forked from."""
        if self.process != os.getpid():
            self.inherited.append(self.sources)  # kept, as dropping would close them under a lock that may be held
            self.process, self.sources = os.getpid(), OrderedDict()
        return self.sources


_open = _Open()


def _source(path: str | Path) -> _Source:
    key = str(path)
    try:
        status = os.stat(key)
        stamp: tuple[int, ...] = (status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError:
        stamp = ()  # not there, which opening says, or one of GDAL's own paths, such as /vsizip/…
    kept = _open.of_this_process()
    source = kept.pop(key, None)
    if source is not None and source.stamp != stamp:
        source.dataset.close()
        source = None
    if source is None:
        source = _opened(key, stamp)
    kept[key] = source
    while len(kept) > _MOST_OPEN:
        kept.popitem(last=False)[1].dataset.close()
    return source


def _opened(path: str, stamp: tuple[int, ...]) -> _Source:
    try:
        with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_BLOCK_CACHE):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said below, as an error
            dataset = rasterio.open(path)
    except (RasterioError, OSError) as error:
        raise unreadable(path, error) from error
    try:
        return _Source(path, dataset, _grid_of(dataset, path), stamp)
    except BaseException:
        dataset.close()
        raise


def _grid_of(dataset: Any, path: str) -> Grid:
    t = dataset.transform
    if dataset.crs is None or t.is_identity or not t.determinant:
        if dataset.gcps[0] or dataset.rpcs:
            raise UserError(
                f"{path}: placed by control points or a sensor model, expected a CRS and a transform: warp it first "
                f"(gdalwarp -t_srs EPSG:… {path} OUT.tif)"
            )
        lacking = "no CRS" if dataset.crs is None else "no transform"
        raise UserError(
            f"{path}: {lacking}, so nobody knows where on earth it lies: take the file as it was delivered, or write "
            "down what you know of it (gdal_edit.py -a_srs EPSG:… -a_ullr LEFT TOP RIGHT BOTTOM FILE)"
        )
    grid = Grid(_horizontal(dataset.crs.to_wkt(), path), (t.a, t.b, t.c, t.d, t.e, t.f), dataset.height, dataset.width)
    left, _, right, _ = grid.bounds
    # Tiles of global elevation models reach half a pixel beyond.
    if grid.geographic and (left < -180 - grid.resolution[0] or right > 180 + grid.resolution[0]):
        raise UserError(
            f"{path}: from {left:g}° to {right:g}° of longitude, expected -180° to 180°: it lies across the "
            "antimeridian, or counts to 360°. Split it at 180° (gdal_translate -projwin), or warp it to a projected "
            f"CRS (gdalwarp -t_srs EPSG:… {path} OUT.tif); tiles there need one, too: `grid: {{crs: EPSG:…}}`"
        )
    return grid


# -- CRSs ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _projection(crs: str) -> CRS:
    return CRS.from_user_input(crs)


@lru_cache(maxsize=256)
def _for_gdal(crs: str) -> Any:
    return rasterio.crs.CRS.from_wkt(crs)


@lru_cache(maxsize=256)
def _name(crs: str) -> str:
    projection = _projection(crs)
    code = projection.to_epsg()
    return f"EPSG:{code}" if code else projection.name


@lru_cache(maxsize=256)
def _same_crs(one: str, other: str) -> bool:
    """Whether two CRSs are one, whatever they are called; the order of axes is x, y here in any case."""
    return one == other or _projection(one).equals(_projection(other), ignore_axis_order=True)


def _horizontal(wkt: str, path: str) -> str:
    """Return a CRS without its heights, which no warp shall change."""
    try:
        projection = _projection(wkt)
        if projection.is_compound:
            wkt = projection.sub_crs_list[0].to_wkt()
        elif len(projection.axis_info) > 2:
            wkt = projection.to_2d().to_wkt()
        projection = _projection(wkt)
    except CRSError as error:
        raise UserError(f"{path}: its CRS can't be understood ({error}); write it anew: gdal_edit.py -a_srs") from error
    if not (projection.is_geographic or projection.is_projected):
        raise UserError(
            f"{path}: its CRS, {projection.name}, is neither geographic nor projected, so nobody knows where on earth "
            "it lies: write the one it has (gdal_edit.py -a_srs EPSG:… FILE)"
        )
    return wkt


def _parsed(crs: str) -> str:
    try:
        projection = CRS.from_user_input(crs)
    except CRSError as error:
        raise UserError(
            f"{crs!r} is no CRS that PROJ knows: give its code, such as EPSG:32645, or WKT ({error})"
        ) from error
    if projection.is_compound or not (projection.is_geographic or projection.is_projected):
        raise UserError(f"{crs!r} is {projection.type_name}, expected a projected CRS of x and y, such as EPSG:32645")
    # In GDAL's words, so that grids of one CRS from a raster and from a name read the same.
    return str(rasterio.crs.CRS.from_wkt(projection.to_wkt()).to_wkt())


def _metres(crs: str) -> float:
    """Return a unit of a CRS in metres: of degrees, those of latitude."""
    axis = _projection(crs).axis_info[0]
    return float(axis.unit_conversion_factor) * (6_371_000.0 if _projection(crs).is_geographic else 1.0)


def _unit(grid: Grid) -> str:
    unit = _projection(grid.crs).axis_info[0].unit_name
    return {"metre": " m", "degree": "°"}.get(unit, f" {unit}")


def _described(grid: Grid) -> str:
    width, height = (f"{side:.4g}" for side in grid.resolution)
    return f"{grid.crs_name} at {width if width == height else f'{width} × {height}'}{_unit(grid)}"


# -- target grids --------------------------------------------------------------------------------------------


def _check_resolution(sides: tuple[float, float], crs: str, reference: Grid) -> None:
    said = f"{sides[0]:g}" if sides[0] == sides[1] else f"{sides[0]:g} × {sides[1]:g}"
    if not all(math.isfinite(side) and side > 0 for side in sides):
        raise UserError(f"a resolution of {said}: expected a number above 0, in units of {_name(crs)}")
    if _projection(crs).is_geographic and max(sides) > _WIDEST_DEG:
        raise UserError(
            f"a resolution of {said} in {_name(crs)} is {said} degrees; metres need a projected CRS"
            f"{_utm_advice(reference)}"
        )
    if not _projection(crs).is_geographic and min(sides) * _metres(crs) < _NARROWEST_M:
        unit = _projection(crs).axis_info[0].unit_name
        raise UserError(f"a resolution of {said} in {_name(crs)} is {said} {unit}s; degrees need a geographic CRS")


def _utm_advice(reference: Grid) -> str:
    longitude, latitude = _centre(reference)
    if not (math.isfinite(longitude) and -80 <= latitude <= 84):
        return ""
    zone = int((longitude + 180) // 6) % 60 + 1
    return f": here, for example, `grid: {{crs: EPSG:{(32600 if latitude >= 0 else 32700) + zone}}}`"


def _reprojected(grid: Grid, crs: str, sides: tuple[float, float] | None, where: str) -> Grid:
    x, _ = _lattice(grid, crs)
    if _projection(crs).is_geographic and (not np.isfinite(x).all() or np.ptp(x) > 180):
        raise _across(where)
    bounds = grid.bounds
    box = [max(1, round((bounds[2 + axis] - bounds[axis]) / grid.resolution[axis])) for axis in (0, 1)]
    try:
        suggested, columns, rows = calculate_default_transform(_for_gdal(grid.crs), _for_gdal(crs), *box, *bounds)
    except Exception as error:  # of several kinds, GDAL's own among them, which rasterio does not export
        raise UserError(
            f"{where}{grid.crs_name} can't be transformed to {_name(crs)} there ({error}): name a CRS that is made for "
            "the region"
        ) from error
    sides = sides or (float(f"{suggested.a:.1e}"), float(f"{-suggested.e:.1e}"))
    left, top = suggested.c, suggested.f
    right, bottom = left + suggested.a * columns, top + suggested.e * rows
    snapped = math.floor(left / sides[0] + _SAME) * sides[0], math.ceil(top / sides[1] - _SAME) * sides[1]
    return _covering(crs, snapped, (right, bottom), sides)


def _covering(crs: str, corner: tuple[float, float], other: tuple[float, float], sides: tuple[float, float]) -> Grid:
    """Return the grid with upper left `corner` that covers what reaches to the lower right corner `other`."""
    columns, rows = (math.ceil(abs(other[axis] - corner[axis]) / sides[axis] - _SAME) for axis in (0, 1))
    return Grid(crs, (sides[0], 0.0, corner[0], 0.0, -sides[1], corner[1]), max(rows, 1), max(columns, 1))


def _checked(grid: Grid, where: str) -> Grid:
    if grid.geographic and grid.bounds[2] - grid.bounds[0] > 180:
        raise _across(where)
    if max(grid.height, grid.width) > _LONGEST:
        raise UserError(
            f"{where}at {_described(grid).split(' at ')[1]} the target grid has {grid.height:,} × {grid.width:,} "
            f"pixels, expected {_LONGEST:,} at most along a side: give a coarser resolution"
        )
    return grid


def _across(where: str) -> UserError:
    return UserError(
        f"{where}the target grid would be wider than 180° of longitude: it lies across the antimeridian. Give it a "
        "projected CRS, `grid: {crs: EPSG:…}`, and split a geographic raster at 180° (gdal_translate -projwin) or warp "
        "it to that CRS (gdalwarp -t_srs EPSG:… IN.tif OUT.tif)"
    )


def _parts(length: int, size: int) -> list[tuple[int, int]]:
    """Return start and length of the parts of a side."""
    count, rest = divmod(length, size)
    if 2 * rest >= size or not count:
        count += 1
    return [(index * size, size if index < count - 1 else length - index * size) for index in range(count)]


# -- two grids -----------------------------------------------------------------------------------------------


def _offset(source: Grid, target: Grid) -> tuple[int, int] | None:
    """Return row and column of the target's corner, where its pixels are pixels of the source; None where not."""
    if not _same_crs(source.crs, target.crs):
        return None
    corners = np.array([0, target.width, 0, target.width]), np.array([0, 0, target.height, target.height])
    columns, rows = source.pixels(*target.xy(*corners))
    row, column = round(rows[0]), round(columns[0])
    away = max(np.abs(columns - corners[0] - column).max(), np.abs(rows - corners[1] - row).max())
    return (row, column) if away <= _SAME else None


def _linear(grid: Grid) -> tuple[float, float, float, float]:
    a, b, _, d, e, _ = grid.transform
    return a, b, d, e


@lru_cache(maxsize=1024)
def _spread(source: Grid, crs: str, linear: tuple[float, float, float, float]) -> tuple[float, float, float]:
    """Return how many columns and rows of `source` a target pixel spans, and the root of how many it covers."""
    a, b, d, e = linear
    x = y = np.zeros(1)
    if not _same_crs(source.crs, crs):
        longitude, latitude = _anchor(source, crs)
        x, y = transformer("EPSG:4326", crs).transform(np.array([longitude]), np.array([latitude]))
    ends = np.array([-a, a, -b, b]) / 2, np.array([-d, d, -e, e]) / 2
    there = x + ends[0], y + ends[1]
    if not _same_crs(source.crs, crs):
        there = transformer(crs, source.crs).transform(*there)
    columns, rows = source.pixels(*there)
    jacobian = np.array([[columns[1] - columns[0], columns[3] - columns[2]], [rows[1] - rows[0], rows[3] - rows[2]]])
    if not np.isfinite(jacobian).all() or not np.linalg.det(jacobian):
        # Nowhere that both CRSs know: by the units alone.
        metres = _metres(crs) / _metres(source.crs)
        jacobian = np.diag([math.hypot(a, d) * metres, math.hypot(b, e) * metres] / np.array(source.resolution))
    return (
        float(np.hypot(*jacobian[0])),
        float(np.hypot(*jacobian[1])),
        math.sqrt(abs(float(np.linalg.det(jacobian)))),
    )


def _centre(grid: Grid) -> tuple[float, float]:
    """Return longitude and latitude (°) of a grid's centre."""
    place = grid.xy(np.array([grid.width / 2]), np.array([grid.height / 2]))
    longitude, latitude = transformer(grid.crs, "EPSG:4326").transform(*place)
    return float(longitude[0]), float(latitude[0])


def _anchor(source: Grid, crs: str) -> tuple[float, float]:
    """Return longitude and latitude of the middle of what the source and the CRS's area of use share.

    The source's own centre may lie far away: that of a mosaic of all the earth is off the coast of Africa.
    """
    longitude, latitude = _centre(source)
    area = _projection(crs).area_of_use
    longitudes, latitudes = _lattice(source, "EPSG:4326")
    known = np.isfinite(longitudes) & np.isfinite(latitudes)
    if area is None or area.west >= area.east or not known.any():
        return longitude, latitude
    west, east = max(area.west, longitudes[known].min()), min(area.east, longitudes[known].max())
    south, north = max(area.south, latitudes[known].min()), min(area.north, latitudes[known].max())
    if west > east or south > north:
        return longitude, latitude
    return (west + east) / 2, (south + north) / 2


def _lattice(grid: Grid, crs: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coordinates in `crs` of a lattice from edge to edge of a grid, (knots, knots); infinite where unknown."""
    rows, columns = np.meshgrid(np.linspace(0, grid.height, _KNOTS), np.linspace(0, grid.width, _KNOTS), indexing="ij")
    x, y = grid.xy(columns, rows)
    return (x, y) if _same_crs(grid.crs, crs) else transformer(grid.crs, crs).transform(x, y)


def _within(grid: Grid, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which places lie in a grid, and not just on its edge."""
    with np.errstate(invalid="ignore"):
        columns, rows = grid.pixels(x, y)
        beside = (columns < _SAME) | (columns > grid.width - _SAME) | (rows < _SAME) | (rows > grid.height - _SAME)
        return ~beside & np.isfinite(columns) & np.isfinite(rows)


# -- warps ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How a raster gets onto a target: the mean of native `blocks`, GDAL's resampling, the mean of `finer`² places.

    GDAL's own average is not used: it takes the box between two opposite corners of a target pixel, which is thin where
    the grids are turned, and means of whole pixels turn even ground into steps where their number is not whole.
    """

    resampling: Resampling
    reach: int  # of the kernel, in blocks
    blocks: tuple[int, int] = (1, 1)
    finer: int = 1


Span = tuple[int, int]
"""First row or column, and the one after the last."""


def _plan(source: Grid, target: Grid, kind: Kind, smooth: Smooth) -> _Plan | None:
    """Return how the warp goes; None where the target's pixels are the source's."""
    if _offset(source, target) is not None:
        return None
    if kind == "classes":
        return _Plan(Resampling.nearest, 1)
    columns, rows, side = _spread(source, target.crs, _linear(target))
    if side <= _COARSER:
        return _Plan(Resampling[smooth], 1 if smooth == "bilinear" else 2)
    most = _PLACES if _same_crs(source.crs, target.crs) else 2
    blocks = max(1, round(rows / most)), max(1, round(columns / most))
    return _Plan(Resampling.bilinear, 1, blocks, max(2, round(rows / blocks[0]), round(columns / blocks[1])))


def _pieces(source: Grid, target: Grid, plan: _Plan, bands: int) -> Iterator[tuple[Window, list[tuple[Span, Span]]]]:
    """Yield windows of the target, and the native rows and columns that each needs, small enough for memory."""
    todo = [Window(0, 0, target.height, target.width)]
    while todo:
        piece = todo.pop()
        windows = _native_windows(source, target.window(piece), plan)
        most = max([piece.height * piece.width * plan.finer**2, *(_area(window) for window in windows)]) * bands
        if most <= _MOST_VALUES or max(piece.height, piece.width) <= 8:
            yield piece, windows
            continue
        rows, columns = (
            [(0, length)] if length < 2 else [(0, length // 2), (length // 2, length - length // 2)]
            for length in (piece.height, piece.width)
        )
        todo += [
            Window(piece.top + top, piece.left + left, height, width) for top, height in rows for left, width in columns
        ]


def _area(window: tuple[Span, Span]) -> int:
    (top, bottom), (left, right) = window
    return (bottom - top) * (right - left)


def _native_windows(source: Grid, target: Grid, plan: _Plan) -> list[tuple[Span, Span]]:
    """Return native rows and columns under a target with what the kernel needs around, beyond the raster at most a bit.

    There are none where nothing of the raster lies there, and two where the target lies across the antimeridian and
    the raster is geographic: its pixels there are at both of its ends.
    """
    x, y = _lattice(target, source.crs)
    x, y = np.where(np.isfinite(x) & np.isfinite(y), (x, y), np.nan)
    if np.isnan(x).all():
        return []
    parts = [(float(np.nanmin(x)), float(np.nanmax(x)))]
    if source.geographic and parts[0][1] - parts[0][0] > 180:
        x = x % 360
        west, east = float(np.nanmin(x)), float(np.nanmax(x))
        pole = east - west > 180
        parts = [(-180.0, 180.0)] if pole else [(west, 180.0), (-180.0, east - 360)]
    columns, rows = source.pixels(x, y)
    sag = _sag(rows), _sag(columns)
    windows = []
    for west, east in parts:
        if len(parts) > 1 or east - west == 360:
            columns, rows = source.pixels(*np.meshgrid([west, east], [np.nanmin(y), np.nanmax(y)]))
        spans = []
        for axis, (places, length) in enumerate(((rows, source.height), (columns, source.width))):
            block, beyond = plan.blocks[axis], plan.reach + 2
            margin = beyond * block + sag[axis]
            low = math.floor((max(float(np.nanmin(places)), -1e9) - margin) / block)
            high = math.ceil((min(float(np.nanmax(places)), 1e9) + margin) / block)
            # As far beyond the raster as the kernel reaches is enough to know that there is nothing.
            spans.append((max(low, -beyond) * block, min(high, -(-length // block) + beyond) * block))
        if all(
            low < high and low < length and high > 0
            for (low, high), length in zip(spans, (source.height, source.width), strict=True)
        ):
            windows.append((spans[0], spans[1]))
    return windows


def _sag(places: NDArray[np.float64]) -> float:
    """Return how far a surface may reach beyond the knots that are known of it: half its largest second difference.

    Where knots have no place in the other CRS, their known neighbours may be as far off as the next ones are.
    """
    order = 1 if np.isnan(places).any() else 2
    bends = np.concatenate([np.abs(np.diff(places, order, axis=axis)).ravel() for axis in (0, 1)])
    bends = bends[np.isfinite(bends)]
    return float(bends.max(initial=0.0)) / order


def _warped(
    native: Callable[[Span, Span], Values], source: Grid, target: Grid, plan: _Plan, windows: list[tuple[Span, Span]]
) -> Values:
    """Return the values (h, w, C) of a piece of the target, from what each native window has of it."""
    channels, total = 0, None
    for rows, columns in windows or [((0, 0), (0, 0))]:
        window = Window(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])
        values = native(rows, columns)
        channels = values.shape[-1]
        if not np.isnan(values).all():
            part = _warp(values, source.window(window), target, plan)
            total = part if total is None else total + part
    if total is None:
        return np.full((target.height, target.width, channels), np.nan, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Just below a half: what halves a pixel is no matter of rounding.
        values = np.where(total[1] > 0.499, total[0] / total[1], np.float32(np.nan))
    return np.ascontiguousarray(np.moveaxis(values, 0, -1))


def _warp(values: Values, native: Grid, target: Grid, plan: _Plan) -> Values:
    """Return native values (h, w, C) on the target: value times weight, and weight, (2, C, h, w)."""
    channels = values.shape[-1]
    here = ~np.isnan(values)
    layers = np.moveaxis(values, -1, 0)
    if plan.resampling is Resampling.nearest or here.all():
        warped = _reproject(_block_means(layers, plan.blocks), native, target, plan, np.nan)
        known = np.isfinite(warped)
        return np.stack([np.where(known, warped, np.float32(0)), known.astype(np.float32)])
    weights: list[NDArray[np.bool_]] = []
    of_channel = []
    for channel in range(channels):
        same = [at for at, known in enumerate(weights) if np.array_equal(here[..., channel], known)]
        of_channel.append(same[0] if same else len(weights))
        if not same:
            weights.append(here[..., channel])
    layers = np.concatenate([np.where(np.isnan(layers), np.float32(0), layers), np.array(weights, np.float32)])
    warped = _reproject(_block_means(layers, plan.blocks), native, target, plan, 0)
    return np.stack([warped[:channels], warped[channels:][of_channel]])


def _reproject(layers: Values, native: Grid, target: Grid, plan: _Plan, outside: float) -> Values:
    """Return layers (C, h, w), whose blocks cover `native`, on the target; `outside` where there are none."""
    height, width = plan.blocks
    a, b, c, d, e, f = native.transform
    placed = Affine(a * width, b * height, c, d * width, e * height, f)
    a, b, c, d, e, f = target.transform
    a, b, d, e = (step / plan.finer for step in (a, b, d, e))
    # A little aside: centres on a border between pixels fall on one side of it, whatever the rounding.
    aside = Affine(a, b, c + _ASIDE * (a + b), d, e, f + _ASIDE * (d + e))
    shape = {"count": layers.shape[0], "height": layers.shape[1], "width": layers.shape[2]}
    crs = _for_gdal(native.crs)
    with rasterio.Env(GDAL_CACHEMAX=_BLOCK_CACHE), rasterio.io.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", dtype="float32", crs=crs, transform=placed, interleave="band", **shape
        ) as dataset:
            dataset.write(layers)
        # Not by `rasterio.warp.reproject`, which can't be told how exact to be: its eighths of a pixel are seams.
        with (
            memory.open() as dataset,
            rasterio.vrt.WarpedVRT(
                dataset,
                crs=crs if _same_crs(native.crs, target.crs) else _for_gdal(target.crs),
                transform=aside,
                height=target.height * plan.finer,
                width=target.width * plan.finer,
                resampling=plan.resampling,
                tolerance=_EXACT,
                **({"nodata": outside} if math.isnan(outside) else {"init_dest_nodata": False, "INIT_DEST": outside}),
                XSCALE=1,  # the kernel is as wide for every window
                YSCALE=1,
            ) as warped,
        ):
            values = warped.read()
    return _block_means(values, (plan.finer, plan.finer))


def _block_means(layers: Values, blocks: tuple[int, int]) -> Values:
    """Return the means of blocks of rows × columns of layers (C, h, w)."""
    if blocks == (1, 1):
        return layers
    count, height, width = layers.shape
    shape = count, height // blocks[0], blocks[0], width // blocks[1], blocks[1]
    return layers.reshape(shape).mean(axis=(2, 4), dtype=np.float32)
