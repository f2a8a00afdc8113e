"""Areas on the ellipsoid, and how far off they may be: by half a pixel of the outline, by what probabilities say.

Two intervals, of two kinds:

- *Half a pixel*: outlines are no better placed than by half a pixel, so the area lies between those of the outline
  moved inwards and outwards by that much (Granshaw and Fountain 2006, doi:10.3189/172756506781828782; Paul et al. 2017,
  doi:10.1016/j.rse.2017.08.038). It takes all errors along the outline for one, all outwards or all inwards, and says
  nothing of what was missed or taken for glacier elsewhere.
- *Probabilities*: where calibrated probabilities p say how often a pixel of area a is of the class, z = 1, the area
  A = Σ a z has the expectation Σ a p. Errors of neighbours are alike; with the standardised errors
  (z - p) / sqrt(p (1 - p)) correlated by exp(-d / L) over the distance d,

      Var A = Σ Σ f_i f_j exp(-d_ij / L),   f = a sqrt(p (1 - p)),

  and 90 % of areas lie within 1.645 standard deviations of it, if they are sums of many independent errors (normal).
  That holds as far as the probabilities are calibrated for the scene, and L is that of such scenes: on validation tiles
  `correlation_length_m` finds it. L is the length of the errors of classes, 0 or 1, which is shorter than that of a
  continuous field behind them: where the sign of a Gaussian field of correlation r decides, classes are correlated by
  (2/π) arcsin r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod
from scipy import fft, optimize

from console import UserError
from data.grids import Grid, transformer
from data.tiles import IGNORE
from data.windows import Window

Geometries = NDArray[np.object_]
Read = Callable[[Window], NDArray[np.floating]]
"""Returns what a window `(h, w)` of a raster holds."""

LEVEL = 0.90
"""Share of areas that the interval from probabilities is to hold."""
QUANTILE = 1.6448536269514722
"""Of the normal distribution: `LEVEL` lies within as many standard deviations of the mean."""

_CELL = 256  # pixels along a side of the cells in which pixels count as equally large
_BLOCK = 512  # pixels along a side that are convolved at once
_REACH = 8.0  # correlation lengths beyond which errors count as independent: 0.3 % of the kernel's volume
_FINE = 4.0  # blocks of pixels per correlation length at least
_PARTS = 8  # along a side, into which blocks are divided to find how alike two are
_FLOOR = 0.02  # correlation below which it is noise
_LONGEST_EDGE = 32.0  # pixels up to which an edge may be taken as a geodesic


@dataclass(frozen=True)
class Interval:
    """An area and the interval it lies in, km²."""

    area_km2: float
    low_km2: float
    high_km2: float


# -- areas ---------------------------------------------------------------------------------------------------


def pixel_size_m(grid: Grid) -> tuple[float, float]:
    """Return width and height of a pixel in the middle of the grid, in metres on the ellipsoid."""
    column, row = grid.width // 2, grid.height // 2
    corners = np.array([column, column + 1, column]), np.array([row, row, row + 1])
    lon, lat = _degrees(grid, *grid.xy(*corners))
    _, _, lengths = _ellipsoid(grid).inv(lon[[0, 0]], lat[[0, 0]], lon[[1, 2]], lat[[1, 2]])
    return float(lengths[0]), float(lengths[1])


class PixelAreas:
    """Areas of a grid's pixels on the ellipsoid, equal within cells of some hundred pixels along a side."""

    def __init__(self, grid: Grid) -> None:
        self._rows, self._columns = (
            np.append(np.arange(0, length, _CELL), length) for length in (grid.height, grid.width)
        )
        rings = [
            shapely.box(left, top, right, bottom)
            for top, bottom in zip(self._rows[:-1], self._rows[1:], strict=True)
            for left, right in zip(self._columns[:-1], self._columns[1:], strict=True)
        ]
        sizes = np.outer(np.diff(self._rows), np.diff(self._columns))
        self._km2 = areas_km2(np.array(rings, object), grid).reshape(sizes.shape) / sizes

    def of(self, window: Window) -> NDArray[np.float64]:
        """Return areas in km² of the pixels of a window `(h, w)`, which lies within the grid."""
        rows = np.searchsorted(self._rows, np.arange(window.top, window.top + window.height), side="right") - 1
        columns = np.searchsorted(self._columns, np.arange(window.left, window.left + window.width), side="right") - 1
        return np.asarray(self._km2[rows[:, None], columns[None, :]])

    def of_rows(self) -> NDArray[np.float64]:
        """Return the mean area in km² of a pixel of each row `(H,)`."""
        return np.repeat((self._km2 * np.diff(self._columns)).sum(axis=1) / self._columns[-1], np.diff(self._rows))


def areas_km2(shapes: Geometries, grid: Grid) -> NDArray[np.float64]:
    """Return areas on the ellipsoid, less their holes, of polygons given in a grid's pixels `(N,)`."""
    fine = shapely.segmentize(shapes, _LONGEST_EDGE)
    placed = shapely.transform(fine, lambda xy: np.stack(_degrees(grid, *grid.xy(*xy.T)), axis=1))
    geod = _ellipsoid(grid)
    areas = np.zeros(len(placed))
    for at, shape in enumerate(placed):
        for part in shapely.get_parts(shape):
            for number, ring in enumerate(shapely.get_rings(part)):
                lon, lat = shapely.get_coordinates(ring).T
                area = abs(geod.polygon_area_perimeter(lon, lat)[0])
                areas[at] += area if number == 0 else -area
    return areas / 1e6


def half_pixel_areas_km2(
    shapes: Geometries, areas: NDArray[np.float64], pixel_m: tuple[float, float]
) -> NDArray[np.float64]:
    """Return areas in km², `(N, 2)`, of polygons moved inwards and outwards by half a pixel.

    Args:
        shapes: Polygons in pixels, `(N,)`.
        areas: Their areas, km².
        pixel_m: Width and height of a pixel.
    """
    scaled = shapely.transform(shapes, lambda xy: xy * np.array(pixel_m))
    half = math.sqrt(pixel_m[0] * pixel_m[1]) / 2
    plain = shapely.area(scaled)
    moved = [shapely.area(shapely.buffer(scaled, distance, quad_segs=4)) for distance in (-half, half)]
    return np.stack(moved, axis=1) * (areas / np.where(plain > 0, plain, 1))[:, None]


def _ellipsoid(grid: Grid) -> Geod:
    ellipsoid = CRS.from_user_input(grid.crs).get_geod()
    assert ellipsoid is not None  # what is geographic or projected has one
    return ellipsoid


def _degrees(
    grid: Grid, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return longitudes and latitudes on the grid's own ellipsoid."""
    if grid.geographic:
        return x, y
    geodetic = CRS.from_user_input(grid.crs).geodetic_crs
    assert geodetic is not None  # of a projection there is one
    lon, lat = transformer(grid.crs, geodetic.to_wkt()).transform(x, y)
    return np.asarray(lon), np.asarray(lat)


# -- what probabilities say ----------------------------------------------------------------------------------


def area_interval(
    probabilities: Read,
    pixel_areas: Read,
    shape: tuple[int, int],
    correlation_length_m: float | None,
    pixel_m: tuple[float, float],
) -> Interval:
    """Return the expected area and its interval, in memory that does not grow with the raster.

    Args:
        probabilities: Returns those of the class in a window, 0..1, `(h, w)`; NaN where nothing is known, which counts
            for nothing.
        pixel_areas: Returns the area of each pixel of a window, km².
        shape: Rows and columns of the raster.
        correlation_length_m: Of the errors, see the module. None: the interval is from nothing to all that is known.
        pixel_m: Width and height of a pixel.
    """
    expected, most = 0.0, 0.0
    for top in range(0, shape[0], _BLOCK):
        window = Window(top, 0, min(_BLOCK, shape[0] - top), shape[1])
        values, areas = probabilities(window), pixel_areas(window)
        expected += float(np.nansum(values * areas, dtype=np.float64))
        most += float(areas[~np.isnan(values)].sum(dtype=np.float64))
    if correlation_length_m is None:
        return Interval(expected, 0.0, most)

    def spread(window: Window) -> NDArray[np.floating]:
        values = probabilities(window)
        return np.nan_to_num(pixel_areas(window) * np.sqrt(values * (1 - values)))

    variance = error_variance(spread, shape, correlation_length_m, pixel_m)
    half = QUANTILE * math.sqrt(max(variance, 0.0))
    return Interval(expected, max(expected - half, 0.0), min(expected + half, most))


def error_variance(
    read: Read,
    shape: tuple[int, int],
    correlation_length_m: float,
    pixel_m: tuple[float, float],
) -> float:
    """Return Σ Σ f_i f_j exp(-d_ij / L), by convolution, block by block.

    Where L is many pixels long, f is summed over blocks of pixels first, at least 4 of them to a length, and the
    kernel is the mean over the pairs of pixels of two blocks: exact where f does not vary within a block.

    Args:
        read: Returns f of a window within the raster, `(h, w)`, 0 where nothing is known.
        shape: Rows and columns of the raster.
        correlation_length_m: L. 0: errors are independent.
        pixel_m: Width and height of a pixel.
    """
    factor = max(1, min(int(correlation_length_m / max(pixel_m) / _FINE), *shape))
    lags = [
        min(math.ceil(_REACH * correlation_length_m / side / factor), -(-length // factor))
        for side, length in zip(pixel_m[::-1], shape[:2], strict=True)
    ]
    kernel = _kernel(lags, factor, correlation_length_m, pixel_m)
    total = 0.0
    step = _BLOCK * factor
    for top in range(0, shape[0], step):
        for left in range(0, shape[1], step):
            first = max(top - lags[0] * factor, 0), max(left - lags[1] * factor, 0)
            last = min(top + step + lags[0] * factor, shape[0]), min(left + step + lags[1] * factor, shape[1])
            wide = _sums(read(Window(*first, last[0] - first[0], last[1] - first[1])), factor)
            inner = (
                slice((top - first[0]) // factor, (top - first[0]) // factor + _BLOCK),
                slice((left - first[1]) // factor, (left - first[1]) // factor + _BLOCK),
            )
            if not wide[inner].any():
                continue
            size = [fft.next_fast_len(length + lag, real=True) for length, lag in zip(wide.shape, lags, strict=True)]
            placed = np.zeros(size)
            rows, columns = (np.arange(-lag, lag + 1) for lag in lags)
            placed[np.ix_(rows, columns)] += kernel
            mixed = fft.irfft2(fft.rfft2(wide, size) * fft.rfft2(placed), size)
            total += float((wide[inner] * mixed[: wide.shape[0], : wide.shape[1]][inner]).sum())
    return total


def _kernel(
    lags: list[int], factor: int, correlation_length_m: float, pixel_m: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the mean correlation of pixels of two blocks of `factor`² so many blocks apart, `(2 r + 1, 2 c + 1)`."""
    parts = min(factor, _PARTS)
    apart = np.arange(1 - parts, parts)
    # As many pairs of parts of two blocks are, along a side, so much farther apart than the blocks.
    pairs = (parts - np.abs(apart)) / parts**2
    rows, columns = (np.arange(-lag, lag + 1) * float(factor) for lag in lags)
    kernel = np.zeros((len(rows), len(columns)))
    for down, weight in zip(apart * factor / parts, pairs, strict=True):
        for right, other in zip(apart * factor / parts, pairs, strict=True):
            distance = np.hypot((rows + down)[:, None] * pixel_m[1], (columns + right)[None, :] * pixel_m[0])
            alike = np.exp(-distance / correlation_length_m) if correlation_length_m > 0 else distance == 0
            kernel += weight * other * alike
    return kernel


def _sums(field: NDArray[np.floating], factor: int) -> NDArray[np.float64]:
    """Return sums over blocks of `factor`² pixels; those at the lower and right edge may be smaller."""
    if factor == 1:
        return field.astype(np.float64)
    height, width = (-(-length // factor) for length in field.shape)
    padded = np.zeros((height * factor, width * factor), np.float32)
    padded[: field.shape[0], : field.shape[1]] = field
    return padded.reshape(height, factor, width, factor).sum(axis=(1, 3), dtype=np.float64)


def correlation_length_m(
    tiles: Iterable[tuple[NDArray[np.floating], NDArray[np.integer]]], pixel_m: tuple[float, float]
) -> float:
    """Return the correlation length of the errors of calibrated probabilities, in metres.

    Of all pairs of pixels of a tile, the products of their errors z - p are summed by distance, and likewise what they
    would be were the errors all alike, sqrt(p (1 - p)) of the one times that of the other. L is the length for which
    exp(-d / L) explains the sum of the products up to the distance at which the correlation falls below 0.02. So it is
    right for sums over areas, whatever the form of the correlation, and pairs weigh as in the variance of an area.

    Args:
        tiles: Probability of the class, 0..1 or NaN, `(H, W)`, and where it is, 0 or 1; 255 ignored. Validation
            tiles: on those that a model was trained on, errors are smaller, and elsewhere.
        pixel_m: Width and height of a pixel.

    Returns:
        Metres; 0 where the errors are independent.

    Raises:
        UserError: No tile says anything: no pixel is known whose probability is neither 0 nor 1.
    """
    products: NDArray[np.float64] = np.zeros(0)
    alike: NDArray[np.float64] = np.zeros(0)
    distances: NDArray[np.float64] = np.zeros(0)
    for probabilities, truth in tiles:
        known = ~np.isnan(probabilities) & (truth != IGNORE)
        values = np.where(known, probabilities, 0.0)
        by_lag = [
            _by_distance(field, pixel_m)
            for field in (np.where(known, truth - values, 0.0), np.sqrt(values * (1 - values)))
        ]
        length = max(len(products), len(by_lag[0][0]))
        products, alike, distances = (
            np.pad(sums, (0, length - len(sums))) + np.pad(added, (0, length - len(added)))
            for sums, added in zip((products, alike, distances), (by_lag[0][0], *by_lag[1]), strict=True)
        )
    if not alike.size or alike[0] <= 0:
        raise UserError(
            "the correlation of errors can't be found: in no validation tile is there a pixel with a known class and a "
            "probability between 0 and 1; expected tiles with a reference, and probabilities that are not rounded"
        )
    correlation = products / np.where(alike > 0, alike, np.inf)
    below = np.flatnonzero(correlation < _FLOOR)
    end = int(below[0]) if len(below) else len(correlation)
    d = distances[:end] / np.where(alike[:end] > 0, alike[:end], 1)
    weights, target = alike[1:end], products[1:end].sum()
    if end < 2 or target <= 0:
        return 0.0

    def excess(length: float) -> float:
        return float((weights * np.exp(-d[1:] / length)).sum() - target)

    longest = 100 * float(d.max())
    return longest if excess(longest) < 0 else float(optimize.brentq(excess, min(pixel_m) / 100, longest))


def _by_distance(
    field: NDArray[np.float64], pixel_m: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sums of products of pairs by rings of distance one pixel wide, and the same times the distance."""
    size = [fft.next_fast_len(2 * length, real=True) for length in field.shape]
    products = fft.irfft2(np.abs(fft.rfft2(field, size)) ** 2, size)
    rows, columns = (fft.fftfreq(length, 1 / length) for length in size)
    distance = np.hypot(rows[:, None] * pixel_m[1], columns[None, :] * pixel_m[0])
    ring = np.rint(distance / min(pixel_m)).astype(np.int64).ravel()
    of_distance = np.bincount(ring, (products * distance).ravel())
    return np.bincount(ring, products.ravel()).astype(np.float64), of_distance.astype(np.float64)
