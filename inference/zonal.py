"""What rasters say of the regions of a grid: means of one band, and the terrain, read block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.grids import Grid, tile_windows
from data.terrain import read_terrain
from data.windows import Window

Regions = NDArray[np.int32]
Lookup = NDArray[np.int32]
"""Group of each region, `(count + 1,)`, 0 of those that take no part."""
Values = NDArray[np.float64]

_BLOCK = 1024  # pixels along a side
_BITS = 22  # of an elevation in centimetres above `_LOWEST_M`: up to 41 km
_LOWEST_M = -500.0


@dataclass(frozen=True, eq=False)
class Terrain:
    """The terrain of regions, `(count,)` each, the first that of region 1; NaN where no elevation is known.

    Args:
        zmin_m: Lowest elevation.
        zmax_m: Highest one.
        zmed_m: Median, to the centimetre.
        zmean_m: Mean.
        slope_deg: Mean slope, 0 to 90.
        aspect_deg: Direction in which the ground falls, 0 to 360 clockwise from north: that of the sum of all pixels'
            directions of length 1; NaN where the ground is level.
    """

    zmin_m: Values
    zmax_m: Values
    zmed_m: Values
    zmean_m: Values
    slope_deg: Values
    aspect_deg: Values

    @property
    def aspect_sec(self) -> NDArray[np.int32]:
        """Sector of the aspect as RGI 7 numbers them: 1 north, 2 north-east … 8 north-west, 9 not assigned."""
        known = np.isfinite(self.aspect_deg)
        sector = np.where(known, ((np.where(known, self.aspect_deg, 0) + 22.5) % 360) // 45 + 1, 9)
        return sector.astype(np.int32)


def means(regions: Regions, read: Callable[[Window], NDArray[np.floating]]) -> tuple[Values, Values]:
    """Return sums and numbers of the known values of each region, `(count + 1,)`.

    Args:
        regions: `(H, W)`.
        read: Returns the values of a window, NaN where unknown.
    """
    count = max(int(regions.max(initial=0)), 0)
    sums, numbers = np.zeros(count + 1), np.zeros(count + 1)
    for window in _windows(regions):
        here = regions[window.slices]
        values = read(window)
        known = (here > 0) & ~np.isnan(values)
        sums += np.bincount(here[known], values[known], count + 1)
        numbers += np.bincount(here[known], minlength=count + 1)
    return sums, numbers


def terrain(dem: Path, grid: Grid, regions: Regions, groups: Lookup | None = None) -> tuple[Terrain, Terrain]:
    """Return the terrain of each region, and of each group of regions, from an elevation model on any grid.

    Args:
        dem: Elevations in metres.
        grid: That of the regions.
        regions: `(H, W)`.
        groups: None: the regions themselves.

    Raises:
        UserError: What `data.terrain.read_terrain` raises.
    """
    count = max(int(regions.max(initial=0)), 0)
    sums = np.zeros((4, count + 1))  # of elevation, slope, east and north of the aspect
    known, sloping = np.zeros(count + 1), np.zeros(count + 1)
    extremes = np.full((2, count + 1), np.inf)
    total = sum(int((regions[window.slices] > 0).sum()) for window in _windows(regions))
    # Regions and elevations as one number each, so that sorting them sorts each region's elevations.
    keys, filled = np.empty(total, np.int64), 0
    for window in _windows(regions):
        here = regions[window.slices]
        if not (here > 0).any():
            continue
        values = read_terrain(dem, grid.window(window), ("elevation", "slope", "aspect_sin", "aspect_cos"))
        for number, band in enumerate(np.moveaxis(values, -1, 0)):
            there = (here > 0) & ~np.isnan(band)
            sums[number] += np.bincount(here[there], band[there], count + 1)
            if number == 0:
                ids, elevation = here[there], band[there].astype(np.float64)
                known += np.bincount(ids, minlength=count + 1)
                np.minimum.at(extremes[0], ids, elevation)
                np.minimum.at(extremes[1], ids, -elevation)
                level = np.clip(np.rint((elevation - _LOWEST_M) * 100), 0, 2**_BITS - 1).astype(np.int64)
                keys[filled : filled + len(ids)] = (ids.astype(np.int64) << _BITS) | level
                filled += len(ids)
            elif number == 1:
                sloping += np.bincount(here[there], minlength=count + 1)
    keys = keys[:filled]
    own = np.arange(count + 1, dtype=np.int32)
    every = _terrain(own, sums, known, sloping, extremes, keys)
    if groups is None:
        return every, every
    for first in range(0, filled, 2**22):
        part = keys[first : first + 2**22]
        part[:] = (groups[part >> _BITS].astype(np.int64) << _BITS) | (part & (2**_BITS - 1))
    return every, _terrain(groups, sums, known, sloping, extremes, keys)


def _terrain(
    groups: Lookup, sums: Values, known: Values, sloping: Values, extremes: Values, keys: NDArray[np.int64]
) -> Terrain:
    count = int(groups.max(initial=0))
    sums = np.stack([np.bincount(groups, each, count + 1) for each in sums])[:, 1:].astype(float)
    known, sloping = (np.bincount(groups, each, count + 1)[1:].astype(float) for each in (known, sloping))
    lowest = np.full((2, count + 1), np.inf)
    for number in (0, 1):
        np.minimum.at(lowest[number], groups, extremes[number])
    keys.sort()
    start = np.searchsorted(keys, np.arange(1, count + 2, dtype=np.int64) << _BITS)
    first, last = start[:-1], np.maximum(start[1:] - 1, start[:-1])
    middle = np.full(count, np.nan)
    some = known > 0
    pair = [
        (keys[at[some]] & (2**_BITS - 1)) / 100 + _LOWEST_M for at in ((first + last) // 2, (first + last + 1) // 2)
    ]
    middle[some] = (pair[0] + pair[1]) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        level = np.hypot(sums[2], sums[3]) <= 1e-9 * np.maximum(sloping, 1)
        return Terrain(
            np.where(some, lowest[0, 1:], np.nan),
            np.where(some, -lowest[1, 1:], np.nan),
            middle,
            sums[0] / np.where(some, known, np.nan),
            sums[1] / np.where(sloping > 0, sloping, np.nan),
            np.where(level, np.nan, np.degrees(np.arctan2(sums[2], sums[3])) % 360),
        )


def owners(
    regions: Regions, groups: Lookup, reach_m: float, pixel_m: tuple[float, float]
) -> NDArray[np.unsignedinteger]:
    """Return the group nearest to each pixel `(H, W)`, 0 where none is nearer than `reach_m`.

    Args:
        regions: `(H, W)`.
        groups: Which regions take part, and for which group.
        reach_m: In metres.
        pixel_m: Width and height of a pixel.
    """
    kind = np.min_scalar_type(int(groups.max(initial=0)))  # a map of larger numbers takes the memory of several
    lookup = np.append(groups, 0).astype(kind)  # the last for unknown pixels, -1
    nearest = np.zeros(regions.shape, kind)
    reach = [int(np.ceil(reach_m / side)) for side in pixel_m[::-1]]
    for window in _windows(regions):
        top, left = max(window.top - reach[0], 0), max(window.left - reach[1], 0)
        wide = lookup[
            regions[top : window.top + window.height + reach[0], left : window.left + window.width + reach[1]]
        ]
        if not wide.any():
            continue
        distance, (rows, columns) = ndimage.distance_transform_edt(
            wide == 0, sampling=pixel_m[::-1], return_indices=True
        )
        inner = (
            slice(window.top - top, window.top - top + window.height),
            slice(window.left - left, window.left - left + window.width),
        )
        nearest[window.slices] = np.where(distance <= reach_m, wide[rows, columns], 0)[inner]
    return nearest


def _windows(regions: Regions) -> list[Window]:
    grid = Grid("", (1, 0, 0, 0, -1, 0), *regions.shape)
    return tile_windows(grid, _BLOCK)
