"""Cross-validation: folds of whole tiles, each a dataset of links to the tiles of another.

A tile is never split. Tiles that belong together stay together: what a *group* is (a tile, a spatial block, a region)
says how much a held-out tile can know of the others (Roberts et al. 2017, doi:10.1111/ecog.02881).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from console import UserError
from data.hdf5 import creating
from data.normalisation import fit
from data.places import Block, By, blocks, placed
from data.tiles import Dataset, TileFile, TileInfo, select


@dataclass(frozen=True)
class Tile:
    """A tile of the pool: the file that has it, its name there, and its name in the folds."""

    file: TileFile
    info: TileInfo
    name: str


def pool(dataset: Dataset, regions: Sequence[str] = ()) -> list[Tile]:
    """Return the tiles of the training and the validation split; the test split stays out of cross-validation.

    Raises:
        UserError: If a file is missing or can't be read, the two do not go together, or no tile has one of `regions`.
    """
    files = [TileFile(dataset.path(split)) for split in ("train", "val")]
    for what, kinds in (
        ("classes", {file.classes for file in files}),
        ("bands", {json.dumps(file.bands, sort_keys=True) for file in files}),
        ("scaling", {_scaling(file) for file in files}),
    ):
        if len(kinds) > 1:
            raise UserError(
                f"{files[0].path} and {files[1].path} have different {what}: they can't be pooled for folds"
            )
    wanted = [region for region in regions if any(region in _regions(file) for file in files)]
    if len(wanted) < len(regions):
        select(files[0], regions)  # says which region is unknown, and the known ones
    taken = Counter(name for file in files for name in file.names)
    tiles = []
    for file in files:
        for name in file.names:
            info = file.info(name)
            if not regions or info.region in wanted:
                tiles.append(Tile(file, info, name if taken[name] == 1 else f"{name}-{file.path.stem}"))
    return tiles


def split(
    tiles: Sequence[Tile], count: int | None, by: By, seed: int = 0, block_m: float | None = None
) -> list[list[Tile]]:
    """Return the held-out tiles of each fold; every tile is held out exactly once.

    Groups are shuffled by `seed`, then each, the largest first, goes to the fold that has the fewest tiles.

    Args:
        tiles: The pool.
        count: Number of folds; None with `by="regions"`: one fold a region (leave one out).
        by: What stays together: nothing beyond the tile, the tiles of a square block, or those of a region.
        seed: Seed of the shuffle.
        block_m: Side of a block in metres; None: four times the largest tile's side.

    Raises:
        UserError: Fewer groups than folds, fewer than two folds, or tiles without a place on earth for blocks.
    """
    if count is None and by != "regions":
        raise UserError("how many folds? Give --folds N; only --folds-by regions has a number of its own")
    if by == "tiles":
        keys: list[Block] = [(number,) for number in range(len(tiles))]
    elif by == "regions":
        keys = [(tile.info.region,) for tile in tiles]
    else:
        for tile in tiles:
            if not placed(tile.info):
                raise UserError(
                    f"{tile.file.path}: tile {tile.info.name!r} has no place (crs and transform, xmin, xmax, ymin, "
                    "ymax in degrees, or row and column in a scene), which blocks need: use --folds-by tiles or regions"
                )
        keys = blocks([tile.info for tile in tiles], block_m)
    groups: dict[Block, list[Tile]] = defaultdict(list)
    for key, tile in zip(keys, tiles, strict=True):
        groups[key].append(tile)
    count = len(groups) if count is None else count
    if count < 2:
        raise UserError(f"cross-validation needs at least 2 folds; received {count}")
    if len(groups) < count:
        hint = {
            "tiles": "",
            "regions": "; leave --folds out for one fold a region",
            "blocks": "; make --block-m smaller",
        }
        raise UserError(f"{count} folds need as many {by}; the {len(tiles)} tiles have {len(groups)}{hint[by]}")
    order = [list(groups.values())[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    folds: list[list[Tile]] = [[] for _ in range(count)]
    for group in sorted(order, key=len, reverse=True):
        min(folds, key=len).extend(group)
    return folds


def write_fold(tiles: Sequence[Tile], held_out: Sequence[Tile], folder: Path, test: Path | None = None) -> Dataset:
    """Write a fold's dataset of links: `val.hdf5` holds out `held_out`, `train.hdf5` has the other `tiles`.

    Statistics are fitted on the fold's own training tiles, unless the values are scaled already: the held-out tiles
    do not take part in anything that the network sees. `test` is linked whole, so that predictions of a fold's
    run find it.
    """
    out = {tile.name for tile in held_out}
    splits = {"train": [tile for tile in tiles if tile.name not in out], "val": list(held_out)}
    attributes = _attributes(tiles[0].file)
    statistics = tiles[0].file.statistics
    if statistics is not None and not statistics.applied:
        samples = (
            (tile.file.read(tile.info.name, list(statistics.shift)), tile.file.valid(tile.info.name))
            for tile in splits["train"]
        )
        fitted_on = f"valid pixels of the {len(splits['train'])} training tiles of a fold"
        own = fit(samples, statistics.method, fitted_on, tiles[0].file.bands)
        attributes["statistics"] = json.dumps(own.to_json())
    paths = {}
    for name, members in splits.items():
        paths[name] = folder / f"{name}.hdf5"
        _write_links(paths[name], members, attributes)
    if test is not None:
        file = TileFile(test)
        paths["test"] = folder / "test.hdf5"
        _write_links(paths["test"], [Tile(file, file.info(name), name) for name in file.names], attributes)
    return Dataset(f"{folder.parent.name}/{folder.name}", folder, paths)


def _write_links(path: Path, tiles: Sequence[Tile], attributes: Mapping[str, str]) -> None:
    contents = [[tile.name, tile.info.name, tile.file.digest] for tile in tiles]
    digest = hashlib.sha256(json.dumps([dict(attributes), contents], sort_keys=True).encode()).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    with creating(path) as file:
        for tile in tiles:
            source = os.path.relpath(tile.file.path.resolve(), path.parent.resolve())
            file[tile.name] = h5py.ExternalLink(source, tile.info.name)
        file.attrs.update(dict(attributes))
        file.attrs["digest"] = digest


def _attributes(file: TileFile) -> dict[str, str]:
    with h5py.File(file.path, "r") as stored:
        return {key: str(value) for key, value in stored.attrs.items() if key != "digest"}


def _scaling(file: TileFile) -> str:
    """Say how stored values were scaled; raw values are all the same, as each fold fits its own statistics."""
    return "raw" if file.statistics and not file.statistics.applied else repr(file.statistics)


def _regions(file: TileFile) -> set[str]:
    return {file.info(name).region for name in file.names}
