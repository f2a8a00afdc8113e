"""Dividing tiles into training, validation and test: whole tiles, spatial blocks or regions, by share or by name.

Tiles that overlap are never divided: what is drawn is a *group*, a tile, block or region with all that overlaps it,
directly or through others. Only regions that are named for different splits can be torn apart by that; then the
overlapping tiles are told and nothing is divided.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from console import UserError
from data.places import BLOCK_SIDES, By, blocks, overlaps, placed
from data.tiles import TileInfo

_LISTED = 10


@dataclass(frozen=True)
class Division:
    """How tiles are divided: named regions first, then shares of the rest, drawn in whole groups by `seed`.

    `by` says what is drawn. `val` and `test` are shares of the tiles outside the named regions; they count for
    nothing where the split has named regions. `test` 0 without regions: no test split. `block_sides` is the side of a
    block in sides of the largest tile.
    """

    by: By = "tiles"
    val: float = 0.15
    test: float = 0.15
    val_regions: tuple[str, ...] = ()
    test_regions: tuple[str, ...] = ()
    seed: int = 42
    block_sides: float = BLOCK_SIDES

    def __post_init__(self) -> None:
        """Check the shares, the regions and the block."""
        val, test = 0.0 if self.val_regions else self.val, 0.0 if self.test_regions else self.test
        if not (0 < val < 1 or self.val_regions):
            raise UserError(f"--val-fraction is a share of the images between 0 and 1, got {val:g}")
        if not 0 <= test < 1:
            raise UserError(f"--test-fraction is a share of the images between 0 and 1, or 0 for none, got {test:g}")
        if val + test >= 1:
            raise UserError(f"--val-fraction {val:g} and --test-fraction {test:g} leave nothing to train on")
        both = sorted(set(self.val_regions) & set(self.test_regions))
        if both:
            raise UserError(f"--val-regions and --test-regions both name {', '.join(both)}: a region has one split")
        if not (math.isfinite(self.block_sides) and self.block_sides > 0):
            raise UserError(f"--block-sides takes a number above 0, got {self.block_sides:g}")


@dataclass(frozen=True)
class Divided:
    """Tiles by split, as indices, and what was found on the way.

    `groups` counts what could be drawn from; `overlapping` the tiles that overlap others, `unplaced` those without a
    place, of which nobody knows.
    """

    splits: dict[str, list[int]]
    groups: int
    overlapping: int
    unplaced: int


def divide(tiles: Sequence[TileInfo], division: Division, problems: list[str]) -> Divided:
    """Divide the tiles into `train`, `val` and, if asked for, `test`, and append what stands against it.

    Every tile is in one split. The same tiles, in the same order, and the same division give the same splits.
    """
    known = sorted({tile.region for tile in tiles})
    for option, regions in (("--val-regions", division.val_regions), ("--test-regions", division.test_regions)):
        unknown = [region for region in regions if region not in known]
        if unknown:
            problems.append(f"{option} {' '.join(unknown)}: no such region; there are {' '.join(known)}")
    split_of_region = dict.fromkeys(division.val_regions, "val") | dict.fromkeys(division.test_regions, "test")
    named = [split_of_region.get(tile.region, "") for tile in tiles]
    pairs = overlaps(tiles)
    torn = [(one, other) for one, other in pairs if named[one] != named[other]]
    problems += [
        f"image {tiles[one].name} ({tiles[one].region}) and image {tiles[other].name} ({tiles[other].region}) overlap, "
        "but --val-regions and --test-regions tear them apart: name both regions for one split, or leave one image out"
        for one, other in torn[:_LISTED]
    ]
    if len(torn) > _LISTED:
        problems.append(f"{len(torn) - _LISTED} more pairs of overlapping images are torn apart")

    unplaced = [index for index, tile in enumerate(tiles) if not placed(tile)]
    if division.by == "blocks" and unplaced:
        listed = ", ".join(tiles[index].name for index in unplaced[:_LISTED])
        more = f" and {len(unplaced) - _LISTED} more" if len(unplaced) > _LISTED else ""
        problems.append(
            f"--split-by blocks needs the place of every image, its georeference or {{row}} and {{column}} in its "
            f"name: {listed}{more} have none"
        )
    if problems:
        return Divided({}, 0, 0, len(unplaced))

    free = [index for index, split in enumerate(named) if not split]
    groups = _groups(tiles, free, division, pairs)
    wanted = {
        split: round(share * len(free))
        for split, share, regions in (
            ("test", division.test, division.test_regions),
            ("val", division.val, division.val_regions),
        )
        if share > 0 and not regions
    }
    splits = {
        split: [index for index, name in enumerate(named) if name == split]
        for split in ("train", "val", "test")
        if split != "test" or division.test_regions or division.test > 0
    }
    if not free:
        problems.append("--val-regions and --test-regions name all regions: no image is left to train on")
        return Divided({}, 0, 0, len(unplaced))
    if len(groups) <= len(wanted):
        problems.append(_too_few(tiles, groups, list(wanted), division, bool(pairs)))
        return Divided({}, len(groups), 0, len(unplaced))
    rest = [groups[position] for position in np.random.default_rng(division.seed).permutation(len(groups))]
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
    return Divided(splits, len(groups), len({index for pair in pairs for index in pair}), len(unplaced))


def described(division: Division, divided: Divided) -> dict[str, Any]:
    """Return, JSON-able, how tiles were divided, for the tile files' provenance."""
    return {
        "by": division.by,
        "seed": division.seed,
        "val": list(division.val_regions) or division.val,
        "test": list(division.test_regions) or division.test,
        "block_sides": division.block_sides if division.by == "blocks" else None,
        "groups": divided.groups,
        "overlapping": divided.overlapping,
        "unplaced": divided.unplaced,
    }


def _groups(
    tiles: Sequence[TileInfo], free: Sequence[int], division: Division, pairs: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """Return what can be drawn: tiles, blocks or regions of `free`, joined where tiles of two of them overlap."""
    keys: list[Any] = list(range(len(free)))
    if division.by == "regions":
        keys = [tiles[index].region for index in free]
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


def _too_few(
    tiles: Sequence[TileInfo],
    groups: Sequence[Sequence[int]],
    wanted: Sequence[str],
    division: Division,
    overlapping: bool,
) -> str:
    what = "groups of images that do not overlap" if division.by == "tiles" else division.by
    remedy = {
        "tiles": "add images, or name regions with --val-regions and --test-regions",
        "blocks": "make --block-sides smaller, or name regions with --val-regions and --test-regions",
        "regions": "divide with --split-by blocks or tiles",
    }[division.by]
    if overlapping:
        remedy += "; images that overlap stay together: cut them without overlap"
    names = [tiles[index].name for index in max(groups, key=len)]
    largest = f", the largest with {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
    return (
        f"{', '.join([*wanted, 'train'])} need {len(wanted) + 1} {what}, one each at least; the "
        f"{sum(map(len, groups))} images have {len(groups)}{largest}: {remedy}"
    )
