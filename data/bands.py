"""Tiles from folders of single-band rasters: a folder per band and a folder of masks.

    SOURCE/Band1/B2_B2_masked_06_11.tif        the blue band of tile 06_11
    SOURCE/Band2/B3_B3_masked_06_11.tif        its green band
    SOURCE/label/Y_output_resized_06_11.tif    its mask

Files belong together when their names end in the same tile id, digits `_RR_CC`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from console import UserError, progress
from data.masks import class_ids, meanings, unknown_values
from data.normalisation import Method
from data.rasters import Raster, differences, missing, read_raster, told
from data.tiles import ClassInfo, TileContents, write_splits

_TILE_ID = re.compile(r"(?:^|_)(\d+_\d+)$")
_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Layout:
    """How the folders are laid out and what their values mean.

    `bands`: folder → band name, in the order of the modality's channels. `masks`: folder of the masks.
    `values`: mask value → class id, an index of `classes`, or 255 = ignore. `nodata`: values that mean nodata
    in a band, beside NaN and the band file's own nodata tag.
    """

    bands: dict[str, str]
    masks: str
    classes: tuple[ClassInfo, ...]
    values: dict[float, int]
    modality: str = "optical"
    nodata: tuple[float, ...] = ()
    region: str = ""
    subregion: str = ""


@dataclass(frozen=True)
class Validation:
    """Which training tiles are validated on instead: those named, else a share of them drawn by `seed`."""

    tiles: tuple[str, ...] = ()
    fraction: float = 0.15
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.fraction < 1:
            raise UserError(f"--val-fraction is a share of the training tiles between 0 and 1, got {self.fraction:g}")


def parse_bands(pairs: Sequence[str]) -> dict[str, str]:
    """Read `FOLDER=NAME` pairs, e.g. `Band1=blue`.

    Raises:
        UserError: If one is not such a pair, or a folder or name is given twice.
    """
    bands: dict[str, str] = {}
    for pair in pairs:
        folder, equals, name = (part.strip() for part in pair.partition("="))
        if not (folder and equals and name):
            raise UserError(f"--bands takes FOLDER=NAME, such as Band1=blue, got {pair!r}")
        if folder in bands or name in bands.values():
            raise UserError(f"--bands names a folder or a band twice: {pair!r}")
        bands[folder] = name
    return bands


def write_dataset(
    folder: Path,
    layout: Layout,
    sources: Mapping[str, Path],
    validation: Validation | None = None,
    method: Method = "standardise",
    command: str = "",
) -> None:
    """Write `folder/{train,val,test}.hdf5` from the source folders of the splits, `train` among them.

    Without a source for `val`, whole tiles of `train` become `val` as `validation` says. Statistics are
    fitted on the valid pixels of the training tiles and stored in every file. A pixel is invalid where all
    its bands are nodata; where only some are, those are NaN and the pixel stays valid.

    Raises:
        UserError: If anything is wrong with the rasters; the message lists every problem, and nothing is
        written.
    """
    problems: list[str] = []
    tiles = {split: _find(source, layout, problems) for split, source in sources.items()}
    if "val" not in tiles:
        tiles["train"], tiles["val"] = _divide(tiles["train"], validation or Validation(), problems)
    _check(tiles, layout, problems)
    if problems:
        raise UserError(told(problems))

    provenance = {
        "kind": "a folder per band",
        "sources": {split: str(source) for split, source in sources.items()},
        "folders": {**layout.bands, layout.masks: "mask"},
        "mask values": meanings(layout.classes, layout.values),
        "nodata": list(layout.nodata),
        "val": None if "val" in sources else sorted(tile.id for tile in tiles["val"]),
    }
    bands = {layout.modality: list(layout.bands.values())}
    write_splits(folder, tiles, lambda tile: _read(tile, layout), layout.classes, bands, provenance, method, command)


# -- finding files -------------------------------------------------------------------------------------------


@dataclass
class _Tile:
    """The files of one tile by folder; the masks' folder is one of them."""

    id: str
    source: Path
    files: dict[str, Path] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"tile {self.id} of {self.source}"


def _find(source: Path, layout: Layout, problems: list[str]) -> list[_Tile]:
    """Return the tiles of a source, sorted by id, and append what is missing or named wrongly."""
    if not source.is_dir():
        problems.append(f"{source}: no such folder")
        return []
    folders = [*layout.bands, layout.masks]
    absent = [name for name in folders if not (source / name).is_dir()]
    if absent:
        there = ", ".join(sorted(path.name for path in source.iterdir() if path.is_dir())) or "none"
        problems += [f"{source / name}: no such folder; there are {there}" for name in absent]
    tiles: dict[str, _Tile] = {}
    for name in folders:
        if name in absent:
            continue
        for path in sorted((source / name).iterdir()):
            if path.suffix.lower() not in _SUFFIXES:
                continue
            match = _TILE_ID.search(path.stem)
            if match is None:
                problems.append(f"{path}: its name does not end in a tile id such as _06_11")
                continue
            tile = tiles.setdefault(match[1], _Tile(match[1], source))
            if name in tile.files:
                problems.append(f"{path}: tile {tile.id} has a file in this folder already, {tile.files[name].name}")
            else:
                tile.files[name] = path
    if not tiles and not absent:
        problems.append(f"{source}: no raster (*.tif) in {', '.join(folders)}")
    found = sorted(tiles.values(), key=lambda tile: tile.id)
    for tile in found:
        for name in folders:
            if name not in tile.files and name not in absent:
                what = "mask" if name == layout.masks else f"{layout.bands[name]} band"
                problems.append(f"{tile}: no {what}, no file in {source / name} ends in _{tile.id}")
    return found


def _divide(tiles: list[_Tile], validation: Validation, problems: list[str]) -> tuple[list[_Tile], list[_Tile]]:
    """Divide whole tiles into training and validation, at least one each."""
    ids = [tile.id for tile in tiles]
    if validation.tiles:
        unknown = [name for name in validation.tiles if name not in ids]
        if unknown and not problems:
            problems.append(f"--val-tiles {' '.join(unknown)}: no such training tile; there are {' '.join(ids)}")
        chosen = set(validation.tiles)
    else:
        count = max(1, round(validation.fraction * len(ids)))
        chosen = set(np.random.default_rng(validation.seed).permutation(ids)[:count].tolist())
    train, val = (
        [tile for tile in tiles if tile.id not in chosen],
        [tile for tile in tiles if tile.id in chosen],
    )
    if not problems and not (train and val):
        problems.append(
            f"{len(ids)} training tiles divided into {len(train)} for training, {len(val)} for validation: "
            "each needs one at least; change --val-tiles or --val-fraction, or give --val a folder of its own"
        )
    return train, val


# -- reading -------------------------------------------------------------------------------------------------


def _open(path: Path) -> Raster:
    """Read a raster of one band.

    Raises:
        UserError: If it can't be read or has several bands.
    """
    raster = read_raster(path)
    if raster.values.shape[-1] != 1:
        raise UserError(f"{path}: {raster.values.shape[-1]} bands, expected a raster of one band")
    return raster


def _read(tile: _Tile, layout: Layout) -> TileContents:
    rasters = {name: _open(path) for name, path in tile.files.items()}
    first = rasters[next(iter(layout.bands))]
    bands = np.concatenate([_without_nodata(rasters[name], layout) for name in layout.bands], axis=-1)
    return TileContents(
        tile.id,
        {layout.modality: bands},
        class_ids(rasters[layout.masks].values[..., 0], layout.values),
        np.asarray(np.isfinite(bands).any(axis=-1)),
        layout.region,
        layout.subregion,
        first.crs,
        first.transform,
        {"sources": json.dumps({name: str(path.relative_to(tile.source)) for name, path in tile.files.items()})},
    )


def _without_nodata(raster: Raster, layout: Layout) -> NDArray[np.float32]:
    values = raster.values.astype(np.float32)
    values[missing(raster, layout.nodata)] = np.nan
    values[~np.isfinite(values)] = np.nan
    return values


# -- checking ------------------------------------------------------------------------------------------------


def _check(tiles: Mapping[str, list[_Tile]], layout: Layout, problems: list[str]) -> None:
    """Read every raster once and append what is wrong with it."""
    places: dict[tuple[object, ...], tuple[str, _Tile]] = {}
    seen = dict.fromkeys(layout.bands, False)
    complete = True
    everything = [(split, tile) for split, members in tiles.items() for tile in members]
    for split, tile in progress(everything, "checking", unit="tile"):
        rasters: dict[str, Raster] = {}
        for name, path in tile.files.items():
            try:
                rasters[name] = _open(path)
            except UserError as error:
                problems.append(str(error))
        complete &= len(rasters) == len(layout.bands) + 1
        problems += _misplaced(tile, rasters)
        if layout.masks in rasters:
            mask = rasters[layout.masks].values[..., 0]
            problems += unknown_values(tile.files[layout.masks], mask, layout.classes, layout.values)
        finite = {name: np.isfinite(_without_nodata(rasters[name], layout)) for name in layout.bands if name in rasters}
        if len(finite) == len(layout.bands) and not any(band.any() for band in finite.values()):
            problems.append(f"{tile}: no valid pixel, all its bands are nodata everywhere")
        if split == "train":
            for name, band in finite.items():
                seen[name] |= bool(band.any())
        placed = next(iter(rasters.values()), None)
        if placed is not None and placed.crs and placed.transform:
            place = (placed.crs, placed.transform, placed.values.shape[:2])
            other_split, other = places.setdefault(place, (split, tile))
            if other_split != split:
                problems.append(f"{tile} ({split}): lies at the same place as {other} ({other_split})")
    if complete and any(seen.values()):
        sources = tiles["train"][0].source
        problems += [
            f"{sources / name}: the {layout.bands[name]} band is nodata in all training tiles"
            for name, found in seen.items()
            if not found
        ]


def _misplaced(tile: _Tile, rasters: Mapping[str, Raster]) -> Iterator[str]:
    """Yield what differs from the tile's first raster in size, CRS or transform."""
    if not rasters:
        return
    reference, first = next(iter(rasters.items()))
    for name, raster in rasters.items():
        yield from (f"{tile.files[name]}: {text}" for text in differences(raster, first, tile.files[reference]))
