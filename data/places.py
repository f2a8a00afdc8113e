"""Where tiles lie: on earth by their georeference, or in their scene by rows and columns; blocks, and overlaps.

A tile without georeference that was cut out of a scene may say where: the attributes `scene`, `scene_row` and
`scene_column` (pixels from the scene's upper left corner).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from console import UserError
from data.tiles import TileInfo

By = Literal["tiles", "blocks", "regions"]
"""What stays together when tiles are divided."""

Block = tuple[object, ...]

BLOCK_SIDES = 4.0
"""Side of a block, in sides of the largest tile, unless the user says otherwise."""

_INSET = 0.01  # of a pixel: neighbours that share an edge do not overlap, whatever the rounding of their corners


def blocks(tiles: Sequence[TileInfo], block_m: float | None = None, sides: float = BLOCK_SIDES) -> list[Block]:
    """Return each tile's block: a cell of a square grid that has the tile's centre; regions never share a block.

    On earth the grid is in metres around the centre of the region's tiles, in a scene in pixels from its corner.

    Args:
        tiles: Tiles that `placed` knows a place of.
        block_m: Side of a block in metres; None: `sides` times the largest tile's side.
        sides: Side of a block, in sides of the largest tile.

    Raises:
        UserError: If a size is not above 0, or `block_m` is given where a tile's place has no metres.
    """
    if block_m is not None and not (math.isfinite(block_m) and block_m > 0):
        raise UserError(f"--block-m takes metres above 0; received {block_m}")
    on_earth = {index: place for index, tile in enumerate(tiles) if (place := _place(tile)) is not None}
    in_scene = [index for index in range(len(tiles)) if index not in on_earth]
    if in_scene and block_m is not None:
        raise UserError(
            f"--block-m: tile {tiles[in_scene[0]].name!r} is placed by its row and column in a scene, which have no "
            "metres; leave it out for blocks of four tiles' sides"
        )
    keys: dict[int, Block] = {}
    if on_earth:
        side_m = sides * max(side for *_, side in on_earth.values()) if block_m is None else block_m
        keys |= _blocks_on_earth(tiles, on_earth, side_m)
    side = sides * max((max(tiles[index].height, tiles[index].width) for index in in_scene), default=0)
    for index in in_scene:
        tile = tiles[index]
        scene, top, left = _place_in_scene(tile) or ("", 0, 0)
        row, column = (top + tile.height / 2) // side, (left + tile.width / 2) // side
        keys[index] = (tile.region, scene, int(row), int(column))
    return [keys[index] for index in range(len(tiles))]


def placed(tile: TileInfo) -> bool:
    """Whether the tile says where it lies: by crs and transform, by degrees, or by row and column of a scene."""
    return _place(tile) is not None or _place_in_scene(tile) is not None


def overlaps(tiles: Sequence[TileInfo]) -> list[tuple[int, int]]:
    """Return the pairs of tiles that share ground, as indices (smaller, larger), sorted.

    Tiles of different CRSs are compared in the CRS of one of them, those of a scene by its rows and columns. What
    has no place is not compared.
    """
    frames: dict[tuple[str, ...], list[int]] = defaultdict(list)
    corners: dict[int, NDArray[np.float64]] = {}
    for index, tile in enumerate(tiles):
        found = _footprint(tile)
        if found is not None:
            frame, corners[index] = found
            frames[frame].append(index)
    pairs: set[tuple[int, int]] = set()
    keys = list(frames)
    for position, frame in enumerate(keys):
        members = frames[frame]
        pairs |= set(_meeting({index: corners[index] for index in members}))
        for other in keys[position + 1 :]:
            if frame[0] != "earth" or other[0] != "earth":
                continue
            mixed = {index: corners[index] for index in members}
            mixed |= _transformed({index: corners[index] for index in frames[other]}, other[1], frame[1])
            there = set(frames[other])
            pairs |= {pair for pair in _meeting(mixed) if (pair[0] in there) != (pair[1] in there)}
    return sorted(pairs)


# -- blocks --------------------------------------------------------------------------------------------------


def _blocks_on_earth(
    tiles: Sequence[TileInfo], places: dict[int, tuple[float, float, float]], block_m: float
) -> Iterator[tuple[int, Block]]:
    by_region: dict[str, list[int]] = defaultdict(list)
    for index in places:
        by_region[tiles[index].region].append(index)
    for region, members in by_region.items():
        x, y, z = np.mean([_vector(*places[index][:2]) for index in members], axis=0)
        longitude, latitude = math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))
        local = CRS.from_proj4(f"+proj=laea +lon_0={longitude} +lat_0={latitude} +units=m")
        to_local = Transformer.from_crs("EPSG:4326", local, always_xy=True)
        for index in members:
            x, y = to_local.transform(*places[index][:2])
            yield index, (region, round(x / block_m), round(y / block_m))  # the middle block has the centre


def _vector(longitude_deg: float, latitude_deg: float) -> tuple[float, float, float]:
    """Return the unit vector of a place: means of these, unlike means of degrees, know no date line."""
    longitude, latitude = math.radians(longitude_deg), math.radians(latitude_deg)
    return math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude)


def _place(tile: TileInfo) -> tuple[float, float, float] | None:
    """Return longitude and latitude (°) of a tile's centre and its longer side (m); None without a georeference."""
    metres_per_degree = 111_195.0  # of latitude, on a sphere of 6371 km
    try:
        if tile.crs and tile.transform:
            a, b, c, d, e, f = tile.transform
            to_degrees = _transformer(tile.crs, "EPSG:4326")
            corners = [
                to_degrees.transform(a * column + b * row + c, d * column + e * row + f)
                for column, row in ((0, 0), (tile.width, tile.height), (tile.width / 2, tile.height / 2))
            ]
            west, east = sorted(corner[0] for corner in corners[:2])
            south, north = sorted(corner[1] for corner in corners[:2])
            longitude, latitude = corners[2]
        else:
            west, east, south, north = (float(tile.attributes[key]) for key in ("xmin", "xmax", "ymin", "ymax"))
            longitude, latitude = (west + east) / 2, (south + north) / 2
    except (KeyError, TypeError, ValueError, ProjError):
        return None
    width_m = (east - west) * math.cos(math.radians(latitude)) * metres_per_degree
    return longitude, latitude, max(width_m, (north - south) * metres_per_degree)


def _place_in_scene(tile: TileInfo) -> tuple[str, int, int] | None:
    """Return scene, row and column (pixels) of a tile's upper left corner; None where it does not say."""
    try:
        row, column = int(tile.attributes["scene_row"]), int(tile.attributes["scene_column"])
    except (KeyError, TypeError, ValueError):
        return None
    return str(tile.attributes.get("scene", "")), row, column


# -- overlaps ------------------------------------------------------------------------------------------------


def _footprint(tile: TileInfo) -> tuple[tuple[str, ...], NDArray[np.float64]] | None:
    """Return the frame of a tile's coordinates and its corners there, (4, 2) in a circle; None without a place."""
    low, right, bottom = _INSET, tile.width - _INSET, tile.height - _INSET
    pixels = np.array([(low, low), (right, low), (right, bottom), (low, bottom)])  # column, row
    if tile.transform is not None:
        a, b, c, d, e, f = tile.transform
        corners = pixels @ np.array([[a, d], [b, e]]) + (c, f)
        # Coordinates without a CRS compare within their region at most.
        return (("earth", tile.crs) if tile.crs else ("unknown CRS", tile.region)), corners
    in_scene = _place_in_scene(tile)
    if in_scene is None:
        return None
    scene, row, column = in_scene
    return ("scene", tile.region, scene), pixels + (column, row)


def _transformed(corners: dict[int, NDArray[np.float64]], source: str, target: str) -> dict[int, NDArray[np.float64]]:
    """Return the corners in another CRS, without those that have no place in it."""
    try:
        transformer = _transformer(source, target)
    except ProjError:
        return {}
    moved = {index: np.stack(transformer.transform(*points.T), axis=-1) for index, points in corners.items()}
    return {index: points for index, points in moved.items() if np.isfinite(points).all()}


@cache
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(CRS.from_user_input(source), CRS.from_user_input(target), always_xy=True)


def _meeting(corners: dict[int, NDArray[np.float64]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of quadrilaterals that meet: a sweep from west to east finds those whose boxes do."""
    boxes = {index: (*points.min(axis=0), *points.max(axis=0)) for index, points in corners.items()}
    active: list[int] = []
    for index in sorted(boxes, key=lambda index: boxes[index][0]):
        west, south, _, north = boxes[index]
        active = [other for other in active if boxes[other][2] >= west]
        for other in active:
            near = boxes[other][1] <= north and south <= boxes[other][3]
            if near and not _apart(corners[index], corners[other]):
                yield min(index, other), max(index, other)
        active.append(index)


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two convex quadrilaterals share no point: then one of their sides has them on its two sides."""
    sides = np.concatenate([np.roll(points, -1, axis=0) - points for points in (one, other)])
    normals = sides[:, ::-1] * (1, -1)
    first, second = one @ normals.T, other @ normals.T
    return bool(((first.max(axis=0) < second.min(axis=0)) | (second.max(axis=0) < first.min(axis=0))).any())
