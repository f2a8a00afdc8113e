"""Where tiles lie: on earth by their georeference, or in their scene by rows and columns; blocks, overlaps, distances.

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
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from scipy.spatial import cKDTree

from console import UserError
from data.tiles import TileInfo

By = Literal["tiles", "blocks", "regions"]
"""What stays together when tiles are divided."""

Block = tuple[object, ...]

BLOCK_SIDES = 4.0
"""Side of a block, in sides of the largest tile, unless the user says otherwise."""

_INSET = 0.01  # of a pixel: neighbours that share an edge do not overlap, whatever the rounding of their corners
_TOUCHING = 0.05  # of a pixel: what is nearer than that touches
_SEGMENTS = 16  # of an edge: straight in one CRS, it is curved in another
_PAIRS_AT_ONCE = 4096


def blocks(tiles: Sequence[TileInfo], block_m: float | None = None, sides: float = BLOCK_SIDES) -> list[Block]:
    """Return each tile's block: a cell of a square grid that has the tile's centre; regions never share a block.

    On earth the grid is in metres from the edge of the region's tiles, in a scene in pixels from its corner.

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


class Footprints:
    """The ground that tiles cover, wherever on earth and in whatever CRSs, and how far apart it lies.

    Footprints are rings of vectors from the earth's centre (WGS 84), where there is no date line and no pole. The
    tiles of a pair are compared in the azimuthal equidistant projection around the middle between them: distances are
    right to 0.01 % where tiles are neighbours, and to 0.5 % across half the earth. Tiles nearer than a twentieth of a
    pixel touch: their distance is 0, as that of tiles that overlap.

    Attributes:
        unplaced: Indices of the tiles without a place on earth; they are in no pair.
    """

    def __init__(self, tiles: Sequence[TileInfo]) -> None:
        """Find where the tiles lie."""
        outlines = {index: found for index, tile in enumerate(tiles) if (found := outline(tile)) is not None}
        by_crs: dict[str, list[int]] = defaultdict(list)
        for index, (crs, _) in outlines.items():
            by_crs[crs].append(index)
        self._rings = np.full((len(tiles), 4 * _SEGMENTS, 3), np.nan)
        for crs, members in by_crs.items():
            points = np.stack([outlines[index][1] for index in members])
            try:
                longitude, latitude = _transformer(crs, "EPSG:4326").transform(points[..., 0], points[..., 1])
            except ProjError:
                continue
            self._rings[members] = _geocentric(longitude, latitude)
        self._rings[~np.isfinite(self._rings).all(axis=(1, 2))] = np.nan
        self._centres = self._rings.mean(axis=1)
        self._radii = np.linalg.norm(self._rings - self._centres[:, None], axis=-1).max(axis=-1)
        diagonals = np.array([math.hypot(tile.height, tile.width) for tile in tiles])
        self._tolerances_m = _TOUCHING * 2 * self._radii / diagonals if tiles else self._radii
        self.unplaced = [int(index) for index in np.flatnonzero(np.isnan(self._radii))]

    def nearer(self, ones: Sequence[int], others: Sequence[int], distance_m: float) -> list[tuple[int, int, float]]:
        """Return the pairs, one of `ones` and one of `others`, that touch or are nearer than `distance_m` metres.

        A pair is (one, other, metres), sorted; 0 metres: the two touch or overlap.
        """
        first, second = self._placed(ones), self._placed(others)
        if not (len(first) and len(second)):
            return []
        # No two footprints are nearer than their centres without the circles around them.
        reach = distance_m + self._radii[first] + self._radii[second].max() + self._tolerances_m[first]
        found = cKDTree(self._centres[second]).query_ball_point(self._centres[first], reach * (1 + 1e-6))
        one = np.repeat(first, [len(members) for members in found])
        other = second[np.concatenate([np.asarray(members, int) for members in found])]
        apart = np.linalg.norm(self._centres[one] - self._centres[other], axis=-1)
        slack = self._radii[one] + self._radii[other] + np.maximum(self._tolerances_m[one], self._tolerances_m[other])
        likely = (apart <= (distance_m + slack) * (1 + 1e-6)) & (one != other)
        one, other = one[likely], other[likely]
        metres = self._distances_m(one, other)
        near = (metres == 0) | (metres < distance_m)
        return sorted(zip(one[near].tolist(), other[near].tolist(), metres[near].tolist(), strict=True))

    def nearest(self, ones: Sequence[int], others: Sequence[int]) -> tuple[int, int, float] | None:
        """Return the pair, one of `ones` and one of `others`, with the smallest distance; None if there is no pair."""
        first, second = self._placed(ones), self._placed(others)
        if not (len(first) and len(second)):
            return None
        apart, at = cKDTree(self._centres[second]).query(self._centres[first])
        one, other = int(first[apart.argmin()]), int(second[at[apart.argmin()]])
        metres = float(self._distances_m(np.array([one]), np.array([other]))[0])
        pairs = [(one, other, metres), *self.nearer(ones, others, metres)]
        return min(pairs, key=lambda pair: pair[2])

    def _placed(self, indices: Sequence[int]) -> NDArray[np.intp]:
        chosen = np.asarray(indices, np.intp)
        return chosen[np.isfinite(self._radii[chosen])]

    def _distances_m(self, ones: NDArray[np.intp], others: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the smallest distance of the footprints of each pair, (P,) metres, 0 where they touch."""
        metres = np.empty(len(ones))
        for start in range(0, len(ones), _PAIRS_AT_ONCE):
            one, other = ones[start : start + _PAIRS_AT_ONCE], others[start : start + _PAIRS_AT_ONCE]
            middle = self._centres[one] + self._centres[other]
            length = np.linalg.norm(middle, axis=-1, keepdims=True)
            up = np.where(length > 1.0, middle, self._centres[one]) / np.maximum(length, 1.0)
            up /= np.linalg.norm(up, axis=-1, keepdims=True)
            radius = (np.linalg.norm(self._centres[one], axis=-1) + np.linalg.norm(self._centres[other], axis=-1)) / 2
            shapes = [
                shapely.polygons(_equidistant(self._rings[members], up, radius[:, None])) for members in (one, other)
            ]
            apart = shapely.distance(*shapes)
            tolerance = np.maximum(self._tolerances_m[one], self._tolerances_m[other])
            metres[start : start + _PAIRS_AT_ONCE] = np.where(apart <= tolerance, 0.0, apart)
        return metres


def outline(tile: TileInfo) -> tuple[str, NDArray[np.float64]] | None:
    """Return the CRS of a tile's place on earth and points along its edges there, in a circle from the upper left.

    Edges have a point every sixteenth, so that they keep their shape in another CRS; (64, 2) in all. None without crs
    and transform, or degrees (`xmin`, `xmax`, `ymin`, `ymax`).
    """
    steps = np.arange(_SEGMENTS) / _SEGMENTS
    zeros, ones = np.zeros(_SEGMENTS), np.ones(_SEGMENTS)
    across = np.concatenate([steps, ones, 1 - steps, zeros])
    down = np.concatenate([zeros, steps, ones, 1 - steps])
    if tile.crs and tile.transform:
        pixels = np.stack([across * tile.width, down * tile.height], axis=-1)
        return tile.crs, _on_grid(tile.transform, pixels)
    try:
        west, east, south, north = (float(tile.attributes[key]) for key in ("xmin", "xmax", "ymin", "ymax"))
    except (KeyError, TypeError, ValueError):
        return None
    return "EPSG:4326", np.stack([west + across * (east - west), north - down * (north - south)], axis=-1)


# -- distances -----------------------------------------------------------------------------------------------


def _geocentric(longitude_deg: NDArray[np.float64], latitude_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the vectors (…, 3) from the earth's centre to places on the WGS 84 ellipsoid, metres."""
    equator_m, flattening = 6_378_137.0, 1 / 298.257223563
    squared = flattening * (2 - flattening)  # first eccentricity
    with np.errstate(invalid="ignore"):  # what has no place is infinite
        longitude, latitude = np.radians(longitude_deg), np.radians(latitude_deg)
        normal = equator_m / np.sqrt(1 - squared * np.sin(latitude) ** 2)
        horizontal = normal * np.cos(latitude)
        z = (1 - squared) * normal * np.sin(latitude)
        return np.stack([horizontal * np.cos(longitude), horizontal * np.sin(longitude), z], axis=-1)


def _equidistant(
    rings: NDArray[np.float64], up: NDArray[np.float64], radius_m: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the rings (P, N, 3) in azimuthal equidistant projections (P, N, 2), metres, around the directions `up`.

    The way to a point is the arc over its straight distance from the middle, on a sphere of `radius_m`; Snyder 1987,
    doi:10.3133/pp1395, p. 191, has the projection.
    """
    # Any two horizontal axes do: only distances are wanted.
    helper = np.where(np.abs(up[:, 2:]) < 0.9, (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
    first = np.cross(helper, up)
    first /= np.linalg.norm(first, axis=-1, keepdims=True)
    away = rings - (up * radius_m)[:, None]
    plane = np.einsum("pnk,pak->pna", away, np.stack([first, np.cross(up, first)], axis=1))
    straight = np.linalg.norm(away, axis=-1)
    arc = 2 * radius_m * np.arcsin(np.minimum(straight / (2 * radius_m), 1.0))
    length = np.linalg.norm(plane, axis=-1)
    return np.asarray(plane * (arc / np.maximum(length, 1e-9))[..., None])


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
        x, y = np.transpose([to_local.transform(*places[index][:2]) for index in members])
        sides = np.array([places[index][2] for index in members])
        # From the edge of the tiles on: centres of tiles side by side are then never on the border of two blocks.
        columns, rows = (np.floor((axis - (axis - sides / 2).min()) / block_m) for axis in (x, y))
        for index, column, row in zip(members, columns, rows, strict=True):
            yield index, (region, int(column), int(row))


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
        corners = _on_grid(tile.transform, pixels)
        # Coordinates without a CRS compare within their region at most.
        return (("earth", tile.crs) if tile.crs else ("unknown CRS", tile.region)), corners
    in_scene = _place_in_scene(tile)
    if in_scene is None:
        return None
    scene, row, column = in_scene
    return ("scene", tile.region, scene), pixels + (column, row)


def _on_grid(
    transform: tuple[float, float, float, float, float, float], pixels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the coordinates (N, 2) of places (N, 2), column and row, on a tile's grid."""
    a, b, c, d, e, f = transform
    return np.asarray(pixels @ np.array([[a, d], [b, e]]) + (c, f))


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
