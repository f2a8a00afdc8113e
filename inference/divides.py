"""Connected ice split into glaciers: by ice divides, given as lines, or by basins, given as polygons.

The split follows the pixels' edges nearest to the divide, so that outlines keep to the mask's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import features
from rasterio.transform import Affine
from scipy import ndimage
from skimage.segmentation import watershed

from console import UserError
from data.grids import Grid, transformer
from data.outlines import OutlineFile, read_outlines
from data.vectors import open_layer, read_layer

Mask = NDArray[np.bool_]
Geometries = NDArray[np.object_]
Bodies = NDArray[np.int32]
"""`(H, W)`: 1 … for each body of connected ice, 0 elsewhere."""


@dataclass(frozen=True, eq=False)
class Divides:
    """What splits ice on a grid.

    Args:
        zones: `(H, W)` int32. Of basins: the number of the basin in which a pixel's centre lies, 0 outside. Of lines:
            -1 on pixels that one touches, else 0.
        ids: Of basin 1, 2, …: RGI's or GLIMS's where the file has them; empty for lines.
    """

    zones: NDArray[np.int32]
    ids: tuple[str | None, ...] = ()


def read_divides(path: Path, grid: Grid) -> Divides:
    """Read divides (lines) or basins (polygons, as the outlines of an inventory).

    Raises:
        UserError: The file can't be read, has no CRS, several layers, or nothing that meets the grid.
    """
    layer = open_layer(path, lines=True)
    target = grid.crs
    wkt = layer.crs.to_wkt()
    box = transformer(target, wkt).transform_bounds(*grid.bounds, densify_pts=21)
    shapes = np.asarray(read_layer(layer, box=box).geometry.array, object)
    if (shapely.get_dimensions(shapes) == 2).any():
        basins = read_outlines(OutlineFile(path), grid, margin_m=0)
        return Divides(_burned(basins.geometries, np.arange(1, len(basins.geometries) + 1), grid), basins.ids)
    lines = shapely.transform(
        shapely.force_2d(shapes), lambda xy: np.stack(transformer(wkt, target).transform(*xy.T), axis=1)
    )
    zones = _burned(lines, np.full(len(lines), -1), grid, all_touched=True)
    if not zones.any():
        raise UserError(f"{path}: no ice divide meets the scene; expected lines, or basins as polygons, that do")
    return Divides(zones)


def split(bodies: Bodies, divides: Divides, smallest_px: float) -> tuple[Bodies, list[str | None]]:
    """Return bodies of connected ice split, and for each, from 1 on, the basin's id.

    - Basins: a body is split where it lies in several. What lies in none goes to the basin that is nearest on the ice,
      and so do parts below `smallest_px`: outlines of an older inventory serve as basins, and their edges that are not
      divides split nothing. A body that lies in no basin remains one.
    - Lines: a body is split where they lead from edge to edge; a line that ends on the ice splits nothing. Pixels on
      a line, and parts below `smallest_px`, go to the part that is nearest on the ice.
    """
    bodies = bodies.copy()
    ids: list[str | None] = [None] * int(bodies.max(initial=0))
    for number, window in enumerate(ndimage.find_objects(bodies), start=1):
        mine = bodies[window] == number
        zones = np.where(mine, divides.zones[window], 0)
        if divides.ids:
            parts, basins = _in_basins(mine, zones, smallest_px)
        else:
            parts, basins = _between_lines(mine, zones, smallest_px)
        names = [divides.ids[basin - 1] if basin else None for basin in basins]
        ids[number - 1] = names[0]
        moved = parts > 1
        bodies[window][moved] = len(ids) - 1 + parts[moved]
        ids += names[1:]
    return bodies, ids


def _in_basins(mine: Mask, zones: NDArray[np.int32], smallest_px: float) -> tuple[NDArray[np.int32], list[int]]:
    """Return the parts of a body, 1 …, and the basin of each, 0 where there is none."""
    present = np.unique(zones[zones > 0])
    if len(present) < 2:
        return mine.astype(np.int32), [int(present[0]) if len(present) else 0]
    seeds = np.zeros_like(zones)
    for basin in present:
        seeds[_large(zones == basin, smallest_px) > 0] = basin
    if not seeds.any():
        return mine.astype(np.int32), [int(np.bincount(zones[zones > 0]).argmax())]
    grown = _grown(seeds, mine)
    parts = np.zeros_like(zones)
    basins: list[int] = []
    for basin in np.unique(seeds[seeds > 0]):
        found, count = ndimage.label(grown == basin)
        parts[found > 0] = found[found > 0] + len(basins)
        basins += [int(basin)] * count
    return parts, basins


def _between_lines(mine: Mask, zones: NDArray[np.int32], smallest_px: float) -> tuple[NDArray[np.int32], list[int]]:
    seeds = _large(mine & (zones == 0), smallest_px) if zones.any() else np.zeros_like(zones)
    count = int(seeds.max(initial=0))
    return (mine.astype(np.int32), [0]) if count < 2 else (_grown(seeds, mine), [0] * count)


def _large(mask: Mask, smallest_px: float) -> NDArray[np.int32]:
    """Number the objects of at least so many pixels; 0 elsewhere."""
    objects, count = ndimage.label(mask)
    large = np.bincount(objects.ravel(), minlength=count + 1) >= smallest_px
    large[0] = False
    return np.asarray(np.where(large, np.cumsum(large), 0).astype(np.int32)[objects])


def _grown(seeds: NDArray[np.int32], mine: Mask) -> NDArray[np.int32]:
    """Return the body's pixels, each with the seed from which the way over the body is shortest."""
    level = np.zeros(mine.shape, np.uint8)
    return np.asarray(watershed(level, seeds, mask=mine, connectivity=1), np.int32)


def _burned(shapes: Geometries, values: NDArray[np.integer], grid: Grid, all_touched: bool = False) -> Bodies:
    kept = [(shape, int(value)) for shape, value in zip(shapes, values, strict=True) if not shape.is_empty]
    return np.asarray(
        features.rasterize(
            kept,
            out_shape=(grid.height, grid.width),
            transform=Affine(*grid.transform),
            all_touched=all_touched,
            dtype="int32",
        ),
        np.int32,
    )
