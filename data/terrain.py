"""What elevations say of the ground: slope, aspect and curvature in true metres, on any grid, with gaps.

Gradients are those of Horn (1981, doi:10.1109/PROC.1981.11918): of the differences across a pixel along rows, columns
and the two diagonals the plane that fits best, with weights 2, 2, 1, 1. Written so, the formula needs no full
neighbourhood: where one neighbour of a pair is missing the difference is taken to the pixel itself, where both are the
pair is left out, and a plane keeps its slope up to the edge of the data.

Pixels become metres by the derivative of the grid's CRS on its ellipsoid: metres to the east and north for a step along
columns and rows. So slopes are right in degrees, in Web Mercator and where grid north is not north.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from console import UserError
from data.grids import Grid, Smooth, Values, pixels_per_target, read, read_derived, read_grid, transformer

TERRAIN = ("elevation", "slope", "aspect_sin", "aspect_cos", "curvature")

_KNOT = 16  # pixels between places where metres are measured: between them they change almost linearly
_PAIRS = ((0, 1, 2), (1, 0, 2), (1, 1, 1), (1, -1, 1))  # of opposite neighbours: rows, columns, weight

Field = NDArray[np.float64]


def read_terrain(
    path: str | Path,
    target: Grid,
    bands: Sequence[str] = ("elevation", "slope"),
    nodata: Sequence[float] = (),
    smooth: Smooth = "bilinear",
) -> Values:
    """Read the first band of an elevation model, in metres, and what follows from it, on a grid: float32 (h, w, C).

    The bands are described at `terrain`. They are derived at the coarser of the two resolutions: where the elevation
    model is coarser, on its own pixels, and the gradient is interpolated (interpolated elevations have terraces); else
    on the target's, with neighbours beyond its edge. So they do not depend on how the target is divided into windows.

    Raises:
        UserError: What `grids.read` raises, or a band that is not of `TERRAIN`.
    """
    unknown = [band for band in bands if band not in TERRAIN]
    if unknown or not bands:
        raise UserError(
            f"{path}: bands {', '.join(unknown) or 'none'} of a terrain, expected some of {', '.join(TERRAIN)}"
        )
    if pixels_per_target(read_grid(path), target) < 1:
        surface = read_derived(path, [1], target, _surface, 1, nodata=nodata, smooth=smooth)
    else:
        wider = target.padded(1)
        surface = _surface(read(path, [1], wider, nodata=nodata, smooth=smooth), wider)[1:-1, 1:-1]
    return _bands(surface, bands)


def terrain(elevation: NDArray[np.floating], grid: Grid, bands: Sequence[str] = TERRAIN) -> Values:
    """Derive bands of `TERRAIN` from elevations (h, w) in metres on a grid: float32 (h, w, C).

    - `elevation`: as it is,
    - `slope`: in degrees, 0 to 90,
    - `aspect_sin`, `aspect_cos`: east and north of the direction of length 1 in which the ground falls, from true
      north; both 0 where it is level. An angle could be neither averaged nor interpolated across north.
    - `curvature`: per 100 m, above 0 where the ground is convex: -100 times the Laplacian, the total curvature of
      Zevenbergen and Thorne (1987, doi:10.1002/esp.3290120107).

    NaN where there is no elevation, where the neighbours that have one do not tell the slope in two directions, and for
    the curvature where one of the four at the sides is missing.
    """
    return _bands(_surface(np.asarray(elevation)[..., None], grid), bands)


def slope_deg(elevation: NDArray[np.floating], grid: Grid) -> Values:
    """Return slopes in degrees (h, w) of elevations in metres; see `terrain`."""
    return terrain(elevation, grid, ["slope"])[..., 0]


def _bands(surface: NDArray[np.floating], bands: Sequence[str]) -> Values:
    """Return bands of elevation, gradient to the east and north, and curvature."""
    elevation, east, north, curvature = np.moveaxis(surface, -1, 0)
    steepness = np.hypot(east, north)
    level = np.where(steepness == 0, 1, steepness)
    values = {
        "elevation": elevation,
        "slope": np.degrees(np.arctan(steepness)),
        "aspect_sin": -east / level,
        "aspect_cos": -north / level,
        "curvature": curvature,
    }
    return np.stack([values[band] for band in bands], axis=-1, dtype=np.float32)


def _surface(values: NDArray[np.floating], grid: Grid) -> Values:
    """Return elevation, its gradient to the east and north (m/m) and curvature (per 100 m), of (h, w, 1): (h, w, 4)."""
    elevation = values[..., 0].astype(np.float64)
    padded = np.pad(elevation, 1, constant_values=np.nan)
    height, width = elevation.shape
    columns, rows, mixed, right, down = (np.zeros((height, width)) for _ in range(5))
    second = []
    for row, column, weight in _PAIRS:
        ahead = padded[1 + row : 1 + row + height, 1 + column : 1 + column + width] - elevation
        behind = elevation - padded[1 - row : 1 - row + height, 1 - column : 1 - column + width]
        second.append(ahead - behind)
        one = np.where(np.isnan(ahead), behind, ahead)
        difference = (one + np.where(np.isnan(behind), one, behind)) / 2
        known = weight * ~np.isnan(difference)
        difference = np.where(known, difference, 0)
        # Normal equations of the plane: difference = rise per column · column + rise per row · row.
        columns += known * column**2
        rows += known * row**2
        mixed += known * row * column
        right += known * column * difference
        down += known * row * difference
    with np.errstate(invalid="ignore", divide="ignore"):
        determinant = columns * rows - mixed**2
        determinant = np.where(determinant > 0, determinant, np.nan)
        per_column = (rows * right - mixed * down) / determinant
        per_row = (columns * down - mixed * right) / determinant
    (east_c, east_r), (north_c, north_r) = _metres(grid)
    area = east_c * north_r - north_c * east_r
    east = (per_column * north_r - per_row * north_c) / area
    north = (per_row * east_c - per_column * east_r) / area
    # The diagonals count only where rows and columns are not at right angles on the ground.
    twist = np.nan_to_num((second[2] - second[3]) / 4)
    squares = east_c**2 + north_c**2, east_c * east_r + north_c * north_r, east_r**2 + north_r**2
    laplacian = (squares[2] * second[0] - 2 * squares[1] * twist + squares[0] * second[1]) / area**2
    return np.stack([elevation, east, north, -100 * laplacian], axis=-1, dtype=np.float32)


def _metres(grid: Grid) -> tuple[tuple[Field, Field], tuple[Field, Field]]:
    """Return metres to the east, and to the north, for a step along columns and along rows, at pixel centres (h, w)."""
    knots = [max(2, math.ceil(side / _KNOT) + 1) for side in (grid.height, grid.width)]
    rows, columns = np.meshgrid(
        np.linspace(0, grid.height, knots[0]), np.linspace(0, grid.width, knots[1]), indexing="ij"
    )
    east_c, north_c = _step(grid, rows, columns, 0, 0.5)
    east_r, north_r = _step(grid, rows, columns, 0.5, 0)
    return (east_c, east_r), (north_c, north_r)


def _step(grid: Grid, rows: Field, columns: Field, row: float, column: float) -> tuple[Field, Field]:
    """Return metres to the east and north of twice a step, at pixel centres (h, w), from measures at knots."""
    projection = CRS.from_wkt(grid.crs)
    globe, ellipsoid = projection.geodetic_crs, projection.get_geod()
    if globe is None or ellipsoid is None:
        raise UserError(f"{projection.name}: a CRS without an ellipsoid, slopes need one that lies on earth")
    to_degrees = transformer(grid.crs, globe.to_wkt())
    unit_deg = math.degrees(globe.axis_info[0].unit_conversion_factor)
    behind = to_degrees.transform(*grid.xy(columns - column, rows - row))
    ahead = to_degrees.transform(*grid.xy(columns + column, rows + row))
    longitudes, latitudes = np.array([behind, ahead]).swapaxes(0, 1) * unit_deg
    there, back, length = ellipsoid.inv(longitudes[0], latitudes[0], longitudes[1], latitudes[1])
    # The azimuth in the middle: both ends' mean, as vectors.
    east = (np.sin(np.radians(there)) - np.sin(np.radians(back))) / 2 * length
    north = (np.cos(np.radians(there)) - np.cos(np.radians(back))) / 2 * length
    return _between(east, grid), _between(north, grid)


def _between(knots: Field, grid: Grid) -> Field:
    """Interpolate values at knots from edge to edge of a grid to its pixels' centres, linearly: (h, w)."""
    places = [
        (np.arange(length) + 0.5) / length * (count - 1)
        for length, count in zip((grid.height, grid.width), knots.shape, strict=True)
    ]
    (top, left), (down, right) = zip(*((place.astype(int), place % 1) for place in places), strict=True)
    down = down[:, None]
    upper = knots[top][:, left] * (1 - right) + knots[top][:, left + 1] * right
    lower = knots[top + 1][:, left] * (1 - right) + knots[top + 1][:, left + 1] * right
    return upper * (1 - down) + lower * down
