"""Regions of a grid as polygons whose common borders are one line: traced, smoothed and put together.

The borders between pixels of different regions are cut at the corners where three or more regions (or twice the same
two) meet. What lies between two such corners, or closes on itself, is an arc; each is smoothed once, with its ends
where they are, and polygons are made of arcs. So neighbours share their border exactly, whatever is done to it: no
gaps, no overlaps.

Coordinates are in pixels from the upper left corner, x along columns and y down the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Smoothing = Literal["none", "douglas-peucker", "chaikin"]
Geometries = NDArray[np.object_]
"""An array of shapely geometries."""

UNKNOWN = -1
"""Region of the pixels that nothing is known of; all around the grid as well."""
BACKGROUND = 0

_ROWS = 512  # that are traced at once
_CUTS = 3  # of corners by Chaikin's scheme: what a fourth would change is below a fiftieth of a pixel
_THIN = 0.02  # pixels by which points may be off that are left out of a smoothed arc
_HALVINGS = 4


@dataclass(frozen=True, eq=False)
class Arcs:
    """Borders between regions.

    Args:
        lines: Linestrings `(A,)`, closed where an arc meets no other.
        sides: Regions on the two sides of each, `(A, 2)`: at least one is a region proper, above 0.
        loops: Which close on themselves and have no end in common with others, `(A,)`.
        count: Number of regions; they are 1 … `count`.
    """

    lines: Geometries
    sides: NDArray[np.int32]
    loops: NDArray[np.bool_]
    count: int

    def groups(self, among: NDArray[np.integer], across: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
        """Number the regions that hang together.

        Args:
            among: Of each region, `(count + 1,)`, what it belongs to; regions of one number hang together where they
                have a border in common; 0 belongs to nothing.
            across: Which arcs, `(A,)`, may be crossed; None: all.

        Returns:
            Group of each region `(count + 1,)`, 1 … in the order of their first regions; 0 of those with number 0.
        """
        one, other = np.maximum(self.sides, BACKGROUND).T
        joined = (among[one] == among[other]) & (among[one] != 0)
        joined &= True if across is None else across
        links = coo_array((np.ones(joined.sum(), bool), (one[joined], other[joined])), shape=(self.count + 1,) * 2)
        found = connected_components(links, directed=False)[1]
        groups = np.zeros(self.count + 1, np.int32)
        kept = np.flatnonzero(among)
        _, first, inverse = np.unique(found[kept], return_index=True, return_inverse=True)
        order = np.empty(len(first), np.int32)
        order[np.argsort(first)] = np.arange(1, len(first) + 1)
        groups[kept] = order[inverse]
        return groups

    def at_unknown(self) -> NDArray[np.bool_]:
        """Return which regions, `(count + 1,)`, border on what is unknown: there may be more of them."""
        touching = np.zeros(self.count + 1, bool)
        touching[np.maximum(self.sides, BACKGROUND)[(self.sides == UNKNOWN).any(axis=1)]] = True
        touching[BACKGROUND] = False
        return touching


def trace(regions: NDArray[np.int32]) -> Arcs:
    """Return the arcs around and between regions `(H, W)`: pixels of 1 …, `BACKGROUND` or `UNKNOWN`.

    Arcs have points at their ends and where they turn.
    """
    count = max(int(regions.max(initial=0)), 0)
    starts, ends, sides = (np.concatenate(parts) for parts in zip(*_runs(regions), strict=True))
    if not len(sides):
        return Arcs(np.empty(0, object), np.empty((0, 2), np.int32), np.empty(0, bool), count)
    order, first, loop = _chained(starts, ends, regions.shape[1] + 1)
    last = np.append(first[1:], len(order))
    run, backwards = order >> 1, (order & 1).astype(bool)[:, None]
    begin, end = np.where(backwards, ends[run], starts[run]), np.where(backwards, starts[run], ends[run])
    kept = np.flatnonzero((sides[run[first]] > BACKGROUND).any(axis=1))
    parts = []
    for arc in kept:
        xy = begin[first[arc] : last[arc]]
        if loop[arc]:
            # They begin farthest from their middle: there a simplified line has a point as well.
            xy = np.roll(xy, -int(((xy - xy.mean(axis=0)) ** 2).sum(axis=1).argmax()), axis=0)
            parts.append(np.concatenate([xy, xy[:1]]))
        else:
            parts.append(np.concatenate([xy, end[last[arc] - 1 : last[arc]]]))
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    xy = np.concatenate([np.empty((0, 2)), *parts])
    lines = np.asarray(shapely.linestrings(xy, indices=owner), object) if len(parts) else np.empty(0, object)
    return Arcs(lines, sides[run[first[kept]]], loop[kept], count)


def polygons(arcs: Arcs, groups: NDArray[np.integer] | None = None) -> Geometries:
    """Return the polygon of each region, or of each group of regions.

    Args:
        arcs: All arcs.
        groups: Group of each region, `(count + 1,)`, 1 …; 0 of those that take no part. None: each is its own.

    Returns:
        Polygons `(G,)`; the first is that of group 1.
    """
    groups = np.arange(arcs.count + 1) if groups is None else groups
    number = int(groups.max(initial=0))
    around = groups[np.maximum(arcs.sides, BACKGROUND)]
    border = around[:, 0] != around[:, 1]
    group = around[border].ravel()
    lines = np.repeat(arcs.lines[border], 2)
    order = np.argsort(group, kind="stable")
    order = order[group[order] > 0]
    if not number:
        return np.empty(0, object)
    rings = shapely.multilinestrings(lines[order], indices=group[order] - 1)
    return np.asarray(shapely.build_area(rings), object)


def smoothed(arcs: Arcs, how: Smoothing, tolerance: float = 0.0, pixel: tuple[float, float] = (1.0, 1.0)) -> Arcs:
    """Return the arcs smoothed, such that their polygons remain valid and neither overlap nor lose a hole.

    What borders on unknown ground stays as it is: it is where the knowledge ends, not the glacier.

    - `douglas-peucker` leaves out points that are no farther than `tolerance` from the rest (Douglas and Peucker 1973,
      doi:10.3138/FM57-6770-U75U-7727). Where that would make arcs cross, or jump over one another, they are simplified
      by half of it, and so on, and at last stay as they are.
    - `chaikin` cuts corners (Chaikin 1974, doi:10.1016/0146-664X(74)90028-8) of arcs with a point at every corner of a
      pixel. The limit is the quadratic B-spline through the middles of the pixels' edges: it stays on its side of the
      pixels' centres, so that the polygons hold the same pixels as before. `tolerance` takes no part.

    Args:
        arcs: As traced.
        how: One of the two, or none.
        tolerance: In units of `pixel`.
        pixel: Width and height of a pixel.
    """
    movable = (arcs.sides != UNKNOWN).all(axis=1)
    if how == "none" or not movable.any() or (how == "douglas-peucker" and tolerance <= 0):
        return arcs
    if how == "chaikin":
        lines = arcs.lines.copy()
        lines[movable] = shapely.simplify(_cut(lines[movable], arcs.loops[movable]), _THIN, preserve_topology=False)
        return replace(arcs, lines=lines)
    return _simplified(arcs, np.where(movable, tolerance, 0.0), np.array(pixel))


def _simplified(arcs: Arcs, tolerances: NDArray[np.float64], pixel: NDArray[np.float64]) -> Arcs:
    """Return arcs simplified by no more than the tolerance of each, by less where the polygons ask for it."""
    scaled = shapely.transform(arcs.lines, lambda xy: xy * pixel)
    index = shapely.STRtree(scaled)
    holes = shapely.get_num_interior_rings(polygons(arcs))
    largest, least = float(tolerances.max()), float(tolerances.max()) / 2**_HALVINGS
    lines = scaled.copy()
    changed = tolerances > 0
    while changed.any():
        lines[changed] = shapely.simplify(scaled[changed], tolerances[changed], preserve_topology=False)
        changed = _guilty(replace(arcs, lines=lines), holes, index, largest) & (tolerances > 0)
        tolerances[changed] = np.where(tolerances[changed] / 2 < least, 0, tolerances[changed] / 2)
    return replace(arcs, lines=shapely.transform(lines, lambda xy: xy / pixel))


def _guilty(arcs: Arcs, holes: NDArray[np.integer], index: shapely.STRtree, reach: float) -> NDArray[np.bool_]:
    """Return which arcs may have made polygons invalid or overlap.

    That is arcs that meet others elsewhere than at a common end; all arcs of a polygon that is not whole any more; and,
    where no arc crosses another, those near an arc that came to lie within a polygon: one has jumped over the other.

    Args:
        arcs: As they are now.
        holes: How many holes each polygon is to have.
        index: The arcs as they were.
        reach: How far arcs may have moved.
    """
    guilty = _crossing(arcs.lines)
    shapes = polygons(arcs)
    whole = (shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(shapes)
    whole &= shapely.is_valid(shapes) & (shapely.get_num_interior_rings(shapes) == holes)
    guilty |= np.concatenate([[False], ~whole])[np.maximum(arcs.sides, BACKGROUND)].any(axis=1)
    if not guilty.any():
        middles = shapely.line_interpolate_point(arcs.lines, 0.5, normalized=True)
        inside, within = shapely.STRtree(middles).query(shapes, predicate="contains_properly")
        # Of the polygons beside it, an arc's middle is on the border, on either side of it by rounding.
        elsewhere = (arcs.sides[within] != inside[:, None] + 1).all(axis=1)
        inside, within = inside[elsewhere], within[elsewhere]
        guilty[within] = True
        near = index.query(middles[within], predicate="dwithin", distance=2 * reach)
        around = (arcs.sides[near[1]] == inside[near[0], None] + 1).any(axis=1)
        guilty[near[1][around]] = True
    return guilty


def _crossing(lines: Geometries) -> NDArray[np.bool_]:
    """Return which lines meet others, or themselves, elsewhere than where both have an end or the next segment."""
    xy, owner = shapely.get_coordinates(lines, return_index=True)
    same = owner[1:] == owner[:-1]
    owner = owner[:-1][same]
    ends = np.stack([xy[:-1][same], xy[1:][same]], axis=1)
    segments = shapely.linestrings(ends)
    one, other = shapely.STRtree(segments).query(segments, predicate="intersects")
    one, other = one[one < other], other[one < other]
    crossing = np.zeros(len(lines), bool)
    equal = (ends[one][:, :, None] == ends[other][:, None, :]).all(axis=-1)
    shared = equal.sum(axis=(1, 2))
    # From the shared end: two segments that go the same way lie on one another.
    mine = ends[one] - ends[one][np.arange(len(one)), equal.any(axis=2).argmax(axis=1)][:, None]
    its = ends[other] - ends[other][np.arange(len(one)), equal.any(axis=1).argmax(axis=1)][:, None]
    mine, its = mine.sum(axis=1), its.sum(axis=1)
    aligned = (mine[:, 0] * its[:, 1] == mine[:, 1] * its[:, 0]) & ((mine * its).sum(axis=1) > 0)
    bad = (shared != 1) | aligned
    crossing[owner[one[bad]]] = crossing[owner[other[bad]]] = True
    return crossing


# -- tracing -------------------------------------------------------------------------------------------------


def _runs(regions: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """Yield first and last points (x, y) of straight borders, cut where another begins, and regions on both sides."""
    for turned in (False, True):
        across = regions.T if turned else regions
        height, width = across.shape
        for top in range(0, height + 1, _ROWS):
            bottom = min(top + _ROWS, height + 1)
            # Lines of corners top … bottom - 1, with the pixels on both of their sides and one beyond each end.
            pixels = np.full((bottom - top + 1, width + 2), UNKNOWN, np.int32)
            first, last = max(top - 1, 0), min(bottom, height)
            pixels[first - top + 1 : last - top + 1, 1:-1] = across[first:last]
            above, below = pixels[:-1], pixels[1:]
            border = above[:, 1:-1] != below[:, 1:-1]
            crossed = (above[:, 1:] != above[:, :-1]) | (below[:, 1:] != below[:, :-1])
            row, start = np.nonzero(border & crossed[:, :-1])
            _, end = np.nonzero(border & crossed[:, 1:])
            points = [np.stack([along, row + top][:: -1 if turned else 1], axis=1) for along in (start, end + 1)]
            sides = np.stack([above[row, start + 1], below[row, start + 1]], axis=1)
            yield points[0].astype(np.int32), points[1].astype(np.int32), sides


def _chained(
    starts: NDArray[np.int32], ends: NDArray[np.int32], stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Put runs one after the other that meet where no third does.

    Returns:
        The runs in order, each as twice its number, plus 1 where it is passed backwards; where in it each chain
        begins; and which chains end where they began, with no branch.
    """
    corners = np.stack([starts, ends], axis=1).reshape(-1, 2).astype(np.int64) @ np.array([1, stride])
    by_corner = np.argsort(corners, kind="stable")
    found = corners[by_corner]
    new = np.flatnonzero(np.append(True, found[1:] != found[:-1]))
    pair = new[np.diff(np.append(new, len(found))) == 2]
    partner = np.full(len(corners), -1, np.int64)
    partner[by_corner[pair]], partner[by_corner[pair + 1]] = by_corner[pair + 1], by_corner[pair]
    order: list[int] = []
    first: list[int] = []
    following, passed = partner.tolist(), bytearray(len(starts))
    branching = np.flatnonzero(partner < 0).tolist()
    for at in (*branching, *range(0, len(corners), 2)):
        if passed[at >> 1]:
            continue
        first.append(len(order))
        while at >= 0 and not passed[at >> 1]:
            passed[at >> 1] = 1
            order.append(at)
            at = following[at ^ 1]
    begins = np.array(first)
    return np.array(order), begins, partner[np.array(order)[begins]] >= 0


# -- Chaikin's scheme ----------------------------------------------------------------------------------------


def _cut(lines: Geometries, closed: NDArray[np.bool_]) -> Geometries:
    """Return lines with a point at every corner of a pixel, their corners cut; of closed ones, the last as well."""
    xy, owner = shapely.get_coordinates(shapely.segmentize(lines, 1.0), return_index=True)
    xy = np.rint(xy)
    for _ in range(_CUTS):
        same = owner[1:] == owner[:-1]
        one, other = xy[:-1][same], xy[1:][same]
        line = owner[:-1][same]
        cut = np.stack([0.75 * one + 0.25 * other, 0.25 * one + 0.75 * other], axis=1).reshape(-1, 2)
        bounds = np.searchsorted(owner, np.arange(len(lines) + 1))
        first, last = xy[bounds[:-1]], xy[bounds[1:] - 1]
        owner = np.repeat(line, 2)
        bounds = np.searchsorted(owner, np.arange(len(lines) + 1))
        # An open line keeps its ends; a closed one ends on the first point of the cut line.
        first, last = first[~closed], np.where(closed[:, None], cut[bounds[:-1]], last)
        where = np.concatenate([bounds[:-1][~closed], bounds[1:]])
        new = np.concatenate([np.flatnonzero(~closed), np.arange(len(lines))])
        points = np.concatenate([first, last])
        order = np.lexsort((np.r_[np.zeros(len(first)), np.ones(len(last))] * -1, where))
        xy = np.insert(cut, where[order], points[order], axis=0)
        owner = np.insert(owner, where[order], new[order])
    return np.asarray(shapely.linestrings(xy, indices=owner), object)
