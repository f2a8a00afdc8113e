"""Dividing tiles into training, validation and test: whole tiles, blocks, subregions, regions, or by polygons.

Tiles that overlap are never divided: what is drawn is a *group*, a tile, block, subregion or region with all that
overlaps it, directly or through others. Only places that the user names for different splits can be torn apart by that;
then the overlapping tiles are told and nothing is divided, unless a gap between the splits leaves one of them out.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from typing import Any, Literal

import numpy as np

from console import UserError
from data.places import BLOCK_SIDES, Footprints, blocks, overlaps, placed
from data.split_polygons import OUTSIDE, STRADDLES, PolygonLayer, splits_by_polygons
from data.tiles import SPLITS, TileInfo

SplitBy = Literal["tiles", "blocks", "subregions", "regions", "polygons"]
"""What stays together when tiles are divided; `polygons`: the user's say where each split is."""

NEAR = "near"
"""What a tile is that the gap between splits leaves out; see also `data.split_polygons`."""

_LISTED = 10
_PAIRS_LISTED = 5


@dataclass(frozen=True)
class Wording:
    """What messages call a tile, where it has its place from, and what the user writes for a field of `Division`.

    `assigned` stands between the name of an option and its value.
    """

    tile: str
    place: str
    options: Mapping[str, str]
    assigned: str = " "

    def option(self, name: str, *values: object) -> str:
        """Return what the user writes for field `name`, alone or with its values."""
        return self.options[name] + (self.assigned + " ".join(map(str, values)) if values else "")


_FIELDS = ("val", "test", "val_regions", "test_regions", "val_subregions", "test_subregions", "block_sides", "gap_m")

IMAGE_WORDS = Wording(
    "image",
    "its georeference or {row} and {column} in its name",
    {
        **{name: f"--{name.replace('_', '-')}" for name in _FIELDS},
        "by": "--split-by",
        "val": "--val-fraction",
        "test": "--test-fraction",
        "polygons": "--split-polygons",
    },
)
"""The words of commands whose tiles are the user's images."""

TILE_WORDS = Wording(
    "tile", "its georeference", {name: f"split.{name}" for name in ("by", "polygons", *_FIELDS)}, assigned=": "
)
"""The words of dataset files, whose section `split` has the fields of `Division`."""


@dataclass(frozen=True)
class Division:
    """How tiles are divided: named places first, then shares of the rest, drawn in whole groups by `seed`.

    `by` says what is drawn. `val` and `test` are shares of the tiles outside the named regions and subregions; they
    count for nothing where the split has named ones. `test` 0 without names: no test split. A subregion is named as it
    is called, or `REGION/SUBREGION` where two regions have one of that name. `block_sides` is the side of a block in
    sides of the largest tile. With `by="polygons"`, `polygons` says it all.

    `gap_m`: tiles nearer than these metres to another split are left out, of training rather than of validation, of
    validation rather than of test; any gap above 0 leaves out tiles that touch. 0 keeps all.
    """

    by: SplitBy = "tiles"
    val: float = 0.15
    test: float = 0.15
    val_regions: tuple[str, ...] = ()
    test_regions: tuple[str, ...] = ()
    seed: int = 42
    block_sides: float = BLOCK_SIDES
    val_subregions: tuple[str, ...] = ()
    test_subregions: tuple[str, ...] = ()
    polygons: PolygonLayer | None = None
    gap_m: float = 0.0
    words: Wording = IMAGE_WORDS

    def __post_init__(self) -> None:
        """Check the shares, the names, the block and the gap."""
        words = self.words
        names = {"val": (*self.val_regions, *self.val_subregions), "test": (*self.test_regions, *self.test_subregions)}
        val, test = 0.0 if names["val"] else self.val, 0.0 if names["test"] else self.test
        share = f"a share of the {words.tile}s between 0 and 1"
        if not (0 < val < 1 or names["val"]):
            raise UserError(f"{words.option('val')} is {share}, got {val:g}")
        if not 0 <= test < 1:
            raise UserError(f"{words.option('test')} is {share}, or 0 for none, got {test:g}")
        if val + test >= 1:
            raise UserError(
                f"{words.option('val', f'{val:g}')} and {words.option('test', f'{test:g}')} leave nothing to train on"
            )
        for kind in ("regions", "subregions"):
            both = sorted(set(getattr(self, f"val_{kind}")) & set(getattr(self, f"test_{kind}")))
            if both:
                raise UserError(
                    f"{words.option(f'val_{kind}')} and {words.option(f'test_{kind}')} both name {', '.join(both)}: a "
                    f"{kind[:-1]} has one split"
                )
        if not (math.isfinite(self.block_sides) and self.block_sides > 0):
            raise UserError(f"{words.option('block_sides')} takes a number above 0, got {self.block_sides:g}")
        if not (math.isfinite(self.gap_m) and self.gap_m >= 0):
            raise UserError(f"{words.option('gap_m')} takes metres, 0 for no gap, got {self.gap_m:g}")
        if (self.by == "polygons") != (self.polygons is not None):
            raise UserError(
                f"{words.option('polygons')} names the layer of {words.option('by', 'polygons')}: give both or neither"
            )
        if self.polygons is not None and (names["val"] or names["test"]):
            raise UserError(
                f"{words.option('by', 'polygons')}: the polygons say where each split is; leave out the names of "
                f"regions and subregions, received {', '.join(names['val'] + names['test'])}"
            )


@dataclass(frozen=True)
class Divided:
    """Tiles by split, as indices, and what was found on the way.

    `groups` counts what could be drawn from; `overlapping` the tiles that overlap others, `unplaced` those without a
    place, of which nobody knows. `left_out`: the tiles in no split, by the reason: `OUTSIDE`, `STRADDLES` or `NEAR`.
    """

    splits: dict[str, list[int]]
    groups: int
    overlapping: int
    unplaced: int
    left_out: dict[str, list[int]] = field(default_factory=dict)


def divide(tiles: Sequence[TileInfo], division: Division, problems: list[str]) -> Divided:
    """Divide the tiles into `train`, `val` and, if asked for, `test`, and append what stands against it.

    Every tile is in one split, or left out for a reason that `Division` gives. The same tiles, in the same order, and
    the same division give the same splits.
    """
    words = division.words
    left_out_by_reason: dict[str, list[int]] = {}
    if division.polygons is None:
        named = _named(tiles, division, problems)
    else:
        named = _by_polygons(tiles, division, problems)
        found = {reason: [index for index, name in enumerate(named) if name == reason] for reason in _POLYGON_REASONS}
        left_out_by_reason |= {reason: members for reason, members in found.items() if members}
    pairs = overlaps(tiles)
    if division.gap_m == 0:
        problems += _torn(tiles, named, pairs, division)

    unplaced = [index for index, tile in enumerate(tiles) if not placed(tile)]
    if division.by == "blocks" and unplaced:
        problems.append(
            f"{words.option('by', 'blocks')} needs the place of every {words.tile}, {words.place}: "
            f"{_listed(tiles, unplaced)} have none"
        )
    nameless = [index for index, tile in enumerate(tiles) if not tile.subregion]
    if division.by == "subregions" and nameless:
        problems.append(
            f"{words.option('by', 'subregions')} needs the subregion of every {words.tile}: {_listed(tiles, nameless)} "
            "have none"
        )
    if problems:
        return Divided({}, 0, 0, len(unplaced))

    free = [index for index, name in enumerate(named) if not name]
    groups = _groups(tiles, free, division, pairs)
    splits = {split: [index for index, name in enumerate(named) if name == split] for split in SPLITS}
    if division.polygons is None:
        wanted = {
            split: round(share * len(free))
            for split, share in (("test", division.test), ("val", division.val))
            if share > 0 and not splits[split]
        }
        if not free:
            problems.append(
                f"{words.option('val_regions')} and {words.option('test_regions')} name all regions: no {words.tile} "
                "is left to train on"
            )
        elif len(groups) <= len(wanted):
            problems.append(_too_few(tiles, groups, list(wanted), division, bool(pairs)))
        else:
            splits |= _drawn(groups, wanted, division.seed)
    if not problems and division.gap_m > 0:
        near = _near_another_split(tiles, splits, division, problems)
        splits = {split: [index for index in members if index not in near] for split, members in splits.items()}
        left_out_by_reason |= {NEAR: sorted(near)} if near else {}
    if not splits["test"] and (division.polygons is not None or division.test == 0):
        del splits["test"]
    divided = Divided(
        splits, len(groups), len({index for pair in pairs for index in pair}), len(unplaced), left_out_by_reason
    )
    empty = [split for split, members in splits.items() if not members]
    if not problems and empty:
        problems.append(_nothing_left(tiles, empty, division, divided))
    return Divided({}, len(groups), 0, len(unplaced)) if problems else divided


def described(division: Division, divided: Divided) -> dict[str, Any]:
    """Return, JSON-able, how tiles were divided, for the tile files' provenance."""
    polygons = division.polygons
    drawn = polygons is None
    return {
        "by": division.by,
        "of": f"{division.words.tile}s",
        "seed": division.seed if drawn else None,
        "val": ([*division.val_regions, *division.val_subregions] or division.val) if drawn else None,
        "test": ([*division.test_regions, *division.test_subregions] or division.test) if drawn else None,
        "block_sides": division.block_sides if division.by == "blocks" else None,
        "polygons": polygons and {"path": str(polygons.path), "layer": polygons.layer, "field": polygons.field},
        "gap_m": division.gap_m,
        "groups": divided.groups,
        "overlapping": divided.overlapping,
        "unplaced": divided.unplaced,
        "left_out": {reason: len(members) for reason, members in divided.left_out.items()},
    }


def left_out(tiles: Sequence[TileInfo], division: Division, divided: Divided) -> list[str]:
    """Return a sentence for each reason for which tiles are in no split, with their number and names."""
    why = {
        OUTSIDE: "their centres lie in no polygon",
        STRADDLES: "their areas meet polygons of different splits",
        NEAR: f"they are nearer than {_metres(division.gap_m)} to another split",
    }
    return [
        f"{len(members)} {division.words.tile}s are left out, because {why[reason]}: {_listed(tiles, members)}"
        for reason, members in divided.left_out.items()
    ]


# -- how far apart splits are --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Between:
    """How far apart two splits are.

    `distance_m`: the smallest distance between tiles of the two, 0 where some touch, None where no tile has a place.
    `pairs`: (tile of the first, tile of the second, metres) that touch (0 metres), or are nearer than was asked for.
    """

    splits: tuple[str, str]
    distance_m: float | None
    pairs: tuple[tuple[str, str, float], ...]

    @property
    def touching(self) -> int:
        """How many pairs of tiles touch: share an edge, a corner, or ground."""
        return sum(metres == 0 for *_, metres in self.pairs)


@dataclass(frozen=True)
class Separation:
    """How far apart splits are; `unplaced` tiles have no place on earth and are not compared."""

    between: tuple[Between, ...]
    near_m: float
    unplaced: int

    def lines(self) -> list[str]:
        """Return a sentence for each pair of splits, and one for tiles without a place."""
        lines = []
        for item in self.between:
            text = "not known" if item.distance_m is None else _metres(item.distance_m)
            nearer = len(item.pairs) - item.touching
            counts = []
            if item.touching:
                counts.append(
                    "1 pair of tiles touches" if item.touching == 1 else f"{item.touching} pairs of tiles touch"
                )
            if nearer:
                what = " more" if item.touching else " pair of tiles" if nearer == 1 else " pairs of tiles"
                counts.append(f"{nearer}{what} {'is' if nearer == 1 else 'are'} nearer than {_metres(self.near_m)}")
            if counts:
                closest = sorted(item.pairs, key=lambda pair: round(pair[2], 1))[:_PAIRS_LISTED]
                more = "; …" if len(item.pairs) > _PAIRS_LISTED else ""
                text += f", {' and '.join(counts)}: {'; '.join(f'{one}, {other}' for one, other, _ in closest)}{more}"
            lines.append(f"{'–'.join(item.splits)}: {text}")
        if self.unplaced:
            tiles = "1 tile has" if self.unplaced == 1 else f"{self.unplaced} tiles have"
            lines.append(f"{tiles} no place on earth: how far from others is not known")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def separation(tiles: Sequence[TileInfo], splits: Mapping[str, Sequence[int]], near_m: float = 0.0) -> Separation:
    """Return how far apart the splits are on the ground, and the pairs of their tiles that touch.

    Args:
        tiles: What tile files say of the tiles; they may have different CRSs.
        splits: Indices of `tiles` by split.
        near_m: Pairs of tiles nearer than these metres are listed, beside those that touch.
    """
    footprints = Footprints(tiles)
    between = []
    for one, other in combinations(splits, 2):
        pairs = footprints.nearer(splits[one], splits[other], near_m)
        closest = min(pairs, key=lambda pair: pair[2]) if pairs else footprints.nearest(splits[one], splits[other])
        named = tuple((tiles[first].name, tiles[second].name, metres) for first, second, metres in pairs)
        between.append(Between((one, other), None if closest is None else closest[2], named))
    members = {index for indices in splits.values() for index in indices}
    return Separation(tuple(between), near_m, len(members & set(footprints.unplaced)))


# -- tiles without glacier -----------------------------------------------------------------------------------


def keep_empty(glacier_pixels: Sequence[int], share: float, seed: int, names: Sequence[str] | None = None) -> list[int]:
    """Return the indices of the tiles to keep, ascending: all with glacier, and of the others as many as `share` lets.

    Tiles without glacier are then at most `share` of what is kept, and as many as that allows. Which of them is drawn
    by `seed` from the names alone (without names: from the places in the list): neither the order of the tiles nor
    other tiles have a part in who comes first.

    Args:
        glacier_pixels: Pixels of glacier in each tile.
        share: 0 keeps no tile without glacier, 1 all of them.
        seed: Seed of the draw.
        names: Names of the tiles, each one once.

    Raises:
        UserError: If the share is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of tiles without glacier is from 0 to 1, got {share:g}")
    kept = [index for index, pixels in enumerate(glacier_pixels) if pixels > 0]
    empty = [index for index, pixels in enumerate(glacier_pixels) if pixels == 0]
    if share < 1:
        exact = Fraction(repr(float(share)))  # as the user wrote it: 0.1 is a tenth
        called = [names[index] if names is not None else str(index) for index in range(len(glacier_pixels))]
        empty.sort(key=lambda index: hashlib.sha256(f"{seed} {called[index]}".encode()).digest())
        empty = empty[: int(exact * len(kept) / (1 - exact))]
    return sorted([*kept, *empty])


# -- parts of a division -------------------------------------------------------------------------------------

_POLYGON_REASONS = (OUTSIDE, STRADDLES)


def _named(tiles: Sequence[TileInfo], division: Division, problems: list[str]) -> list[str]:
    """Return the split that each tile's region or subregion is named for, "" for none."""
    words = division.words
    regions = sorted({tile.region for tile in tiles})
    subregions = sorted({(tile.region, tile.subregion) for tile in tiles if tile.subregion})
    chosen: list[set[str]] = [set() for _ in tiles]
    for split in ("val", "test"):
        wanted: list[str] = getattr(division, f"{split}_regions")
        if unknown := [region for region in wanted if region not in regions]:
            option = words.option(f"{split}_regions", *unknown)
            problems.append(f"{option}: no such region; there are {' '.join(regions)}")
        places: set[tuple[str, str]] = set()
        for name in getattr(division, f"{split}_subregions"):
            found = [key for key in subregions if name in (key[1], "/".join(key))]
            option = words.option(f"{split}_subregions", name)
            if not found:
                there = " ".join("/".join(key) for key in subregions) or "none"
                problems.append(f"{option}: no such subregion; there are {there}")
            elif len(found) > 1:
                problems.append(f"{option}: several regions have one; write {' or '.join(map('/'.join, found))}")
            else:
                places.add(found[0])
        for index, tile in enumerate(tiles):
            if tile.region in wanted or (tile.region, tile.subregion) in places:
                chosen[index].add(split)
    torn = sorted(
        {f"{tile.region}/{tile.subregion}" for tile, found in zip(tiles, chosen, strict=True) if len(found) > 1}
    )
    if torn:
        problems.append(
            f"{', '.join(torn)} named for val as a region and for test as a subregion, or the other way round: name "
            "the region's subregions one by one"
        )
    return [next(iter(found), "") for found in chosen]


def _by_polygons(tiles: Sequence[TileInfo], division: Division, problems: list[str]) -> list[str]:
    """Return each tile's split by the polygons, or the reason why it is in none."""
    words = division.words
    assert division.polygons is not None
    try:
        found = splits_by_polygons(tiles, division.polygons)
    except UserError as error:
        problems.append(str(error))
        return [OUTSIDE] * len(tiles)
    nowhere = [index for index, split in enumerate(found) if split is None]
    if nowhere:
        problems.append(
            f"{words.option('by', 'polygons')} needs the place on earth of every {words.tile}: "
            f"{_listed(tiles, nowhere)} have none"
        )
    return [split or OUTSIDE for split in found]


def _torn(
    tiles: Sequence[TileInfo], named: Sequence[str], pairs: Sequence[tuple[int, int]], division: Division
) -> Iterable[str]:
    """Yield the pairs of overlapping tiles that what the user named tears apart."""
    words = division.words
    if division.polygons is not None:
        who = f"the polygons of {division.polygons.path} tear them apart"
        remedy = "draw them so that both are in one split"
    else:
        kinds = [kind for kind in ("regions", "subregions") if getattr(division, f"val_{kind}")]
        kinds += [kind for kind in ("regions", "subregions") if getattr(division, f"test_{kind}") and kind not in kinds]
        options = [words.option(f"{split}_{kind}") for kind in kinds or ["regions"] for split in ("val", "test")]
        who = f"{' and '.join(options)} tear them apart"
        remedy = f"name both {' or '.join(kinds or ['regions'])} for one split"
    torn = [(a, b) for a, b in pairs if named[a] != named[b] and not {named[a], named[b]} & set(_POLYGON_REASONS)]
    for one, other in torn[:_LISTED]:
        first, second = (f"{words.tile} {tiles[index].name} ({tiles[index].region})" for index in (one, other))
        yield f"{first} and {second} overlap, but {who}: {remedy}, or leave one {words.tile} out"
    if len(torn) > _LISTED:
        yield f"{len(torn) - _LISTED} more pairs of overlapping {words.tile}s are torn apart"


def _groups(
    tiles: Sequence[TileInfo], free: Sequence[int], division: Division, pairs: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """Return what can be drawn: tiles, blocks, … of `free`, joined where tiles of two of them overlap."""
    keys: list[Any] = list(range(len(free)))
    if division.by == "regions":
        keys = [tiles[index].region for index in free]
    elif division.by == "subregions":
        keys = [(tiles[index].region, tiles[index].subregion) for index in free]
    elif division.by == "blocks":
        keys = blocks([tiles[index] for index in free], sides=division.block_sides)
    parent: dict[Any, Any] = {key: key for key in keys}

    def root(key: Any) -> Any:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    key_of = dict(zip(free, keys, strict=True))
    for one, other in pairs:
        if one in key_of and other in key_of:
            parent[root(key_of[other])] = root(key_of[one])
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, key in key_of.items():
        groups[root(key)].append(index)
    return list(groups.values())


def _drawn(groups: Sequence[list[int]], wanted: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Return the tiles of the wanted splits, in whole groups and not above their counts, and `train`, the rest."""
    splits: dict[str, list[int]] = {}
    rest = [groups[position] for position in np.random.default_rng(seed).permutation(len(groups))]
    for position, (split, count) in enumerate(wanted.items()):
        still = len(wanted) - position  # groups that must be left for later splits and training
        drawn: list[int] = []
        left: list[list[int]] = []
        for done, group in enumerate(rest):
            fits = len(drawn) + len(group) <= count and len(left) + len(rest) - done > still
            if fits:
                drawn += group
            else:
                left.append(group)
        if not drawn:
            drawn = min(rest, key=len)
            left.remove(drawn)
        rest, splits[split] = left, sorted(drawn)
    splits["train"] = sorted(index for group in rest for index in group)
    return splits


def _near_another_split(
    tiles: Sequence[TileInfo], splits: Mapping[str, Sequence[int]], division: Division, problems: list[str]
) -> set[int]:
    """Return the tiles to leave out so that no two splits are nearer than the gap; scores keep theirs longest."""
    words = division.words
    footprints = Footprints(tiles)
    nowhere = [index for members in splits.values() for index in members if index in set(footprints.unplaced)]
    if nowhere:
        problems.append(
            f"{words.option('gap_m', f'{division.gap_m:g}')} needs the place on earth of every {words.tile}: "
            f"{_listed(tiles, nowhere)} have none"
        )
        return set()
    near: set[int] = set()
    kept: list[int] = list(splits["test"])
    for split in ("val", "train"):
        near |= {one for one, *_ in footprints.nearer(splits[split], kept, division.gap_m)}
        kept += [index for index in splits[split] if index not in near]
    return near


def _nothing_left(tiles: Sequence[TileInfo], empty: Sequence[str], division: Division, divided: Divided) -> str:
    """Say that splits have no tile, and which were left out."""
    remedy = "draw the polygons around whole tiles" if division.polygons is not None else "make the gap smaller"
    none = f"no {division.words.tile} is left for {', '.join(empty)}: {remedy}"
    return "; ".join([none, *left_out(tiles, division, divided)])


def _too_few(
    tiles: Sequence[TileInfo],
    groups: Sequence[Sequence[int]],
    wanted: Sequence[str],
    division: Division,
    overlapping: bool,
) -> str:
    words = division.words
    what = f"groups of {words.tile}s that do not overlap" if division.by == "tiles" else division.by
    by_name = f"name regions with {words.option('val_regions')} and {words.option('test_regions')}"
    remedy = {
        "tiles": f"add {words.tile}s, or {by_name}",
        "blocks": f"make {words.option('block_sides')} smaller, or {by_name}",
        "subregions": f"divide with {words.option('by', 'blocks')} or tiles",
        "regions": f"divide with {words.option('by', 'blocks')} or tiles",
    }[division.by]
    if overlapping:
        remedy += f"; {words.tile}s that overlap stay together: cut them without overlap"
    names = [tiles[index].name for index in max(groups, key=len)]
    largest = f", the largest with {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
    return (
        f"{', '.join([*wanted, 'train'])} need {len(wanted) + 1} {what}, one each at least; the "
        f"{sum(map(len, groups))} {words.tile}s have {len(groups)}{largest}: {remedy}"
    )


def _listed(tiles: Sequence[TileInfo], indices: Sequence[int]) -> str:
    listed = ", ".join(tiles[index].name for index in indices[:_LISTED])
    return listed + (f" and {len(indices) - _LISTED} more" if len(indices) > _LISTED else "")


def _metres(distance_m: float) -> str:
    """Return a distance as text: `850 m`, `12.3 km`, `2,340 km`."""
    if distance_m < 1000:
        return f"{distance_m:.0f} m" if distance_m == 0 or distance_m >= 1 else f"{distance_m:.2g} m"
    return f"{distance_m / 1000:,.1f} km" if distance_m < 100_000 else f"{distance_m / 1000:,.0f} km"
