"""Tiles from folders of single-band rasters: a folder per band and a folder of masks.

    SOURCE/Band1/B2_B2_masked_06_11.tif        the blue band of tile 06_11
    SOURCE/Band2/B3_B3_masked_06_11.tif        its green band
    SOURCE/label/Y_output_resized_06_11.tif    its mask

Files belong together when their names end in the same tile id, digits `_RR_CC`. What a value of the mask
means is the caller's to say, never a nodata tag's: published masks tag their background as nodata.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from console import UserError, progress
from data.normalisation import Method, fit
from data.tiles import IGNORE, ClassInfo, TileWriter

_TILE_ID = re.compile(r"(?:^|_)(\d+_\d+)$")
_SUFFIXES = (".tif", ".tiff")
_COLORS = ("#8c8579", "#4aa3df", "#b5763a", "#1f4e9c", "#d9c24c", "#5b8c3a", "#8e4ea8", "#d1495b")


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


def parse_classes(
    pairs: Sequence[str], glacier: Sequence[str] = ("glacier",)
) -> tuple[tuple[ClassInfo, ...], dict[float, int]]:
    """Read `VALUE=NAME` pairs, e.g. `0=background 255=glacier`: the class list, and mask value → class id.

    Class ids follow the order of the names; the first is the background. Several values may share a name; the
    name `ignore` means that the value's pixels count nowhere. `glacier` says which of the names are glacier.

    Raises:
        UserError: If a pair is malformed, a value is given twice, or a name in `glacier` is not among the
        classes.
    """
    values: dict[float, int] = {}
    names: list[str] = []
    for pair in pairs:
        value, _, name = (part.strip() for part in pair.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = None
        if number is None or not name:
            raise UserError(f"--classes takes VALUE=NAME, such as 255=glacier or 128=ignore, got {pair!r}")
        if any(_same(number, other) for other in values):
            raise UserError(f"--classes gives the mask value {value} twice")
        if name != "ignore" and name not in names:
            names.append(name)
        values[number] = IGNORE if name == "ignore" else names.index(name)
    if not 2 <= len(names) < IGNORE:
        raise UserError(f"--classes needs two classes at least, background first, got {', '.join(names) or 'none'}")
    unknown = [name for name in glacier if name not in names]
    if unknown or not glacier:
        raise UserError(
            f"--glacier says which classes are glacier: expected some of {', '.join(names)}, "
            f"got {', '.join(glacier) or 'none'}"
        )
    if names[0] in glacier:
        raise UserError(f"the first of --classes is the background, but {names[0]!r} is a glacier class: name it later")
    classes = tuple(
        ClassInfo(name, glacier=name in glacier, color=_COLORS[index % len(_COLORS)])
        for index, name in enumerate(names)
    )
    return classes, values


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
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{count} with the rasters, nothing is written:", *problems]))

    provenance = {
        "kind": "a folder per band",
        "sources": {split: str(source) for split, source in sources.items()},
        "folders": {**layout.bands, layout.masks: "mask"},
        "mask values": {f"{value:g}": _class_name(layout, index) for value, index in layout.values.items()},
        "nodata": list(layout.nodata),
        "val": None if "val" in sources else sorted(tile.id for tile in tiles["val"]),
    }
    bands = {layout.modality: list(layout.bands.values())}
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                TileWriter(folder / f"{split}.hdf5", layout.classes, bands, provenance=provenance, command=command)
            )
            for split in tiles
        }

        def written(split: str) -> Iterator[tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]]:
            for tile in progress(tiles[split], f"writing {split}", unit="tile"):
                pixels = _read(tile, layout)
                modalities = {layout.modality: pixels.bands}
                writers[split].add(
                    tile.id,
                    modalities,
                    pixels.mask,
                    pixels.valid,
                    region=layout.region,
                    subregion=layout.subregion,
                    crs=pixels.crs,
                    transform=pixels.transform,
                    sources=json.dumps({name: str(path.relative_to(tile.source)) for name, path in tile.files.items()}),
                )
                yield modalities, pixels.valid

        statistics = fit(written("train"), method, f"valid pixels of the {len(tiles['train'])} training tiles")
        for split in tiles:
            if split != "train":
                for _ in written(split):
                    pass
            writers[split].statistics = statistics


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


@dataclass(frozen=True)
class _Raster:
    """A raster of one band as stored, and where it lies."""

    values: NDArray[Any]  # (H, W)
    nodata: float | None
    crs: str | None  # WKT
    crs_name: str
    transform: tuple[float, float, float, float, float, float] | None


@dataclass(frozen=True)
class _Pixels:
    """A tile read: bands `(H, W, C)` float32 with NaN = nodata, mask `(H, W)` class ids, valid `(H, W)`."""

    bands: NDArray[np.float32]
    mask: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    crs: str | None
    transform: tuple[float, float, float, float, float, float] | None


def _open(path: Path) -> _Raster:
    """Read a raster of one band.

    Raises:
        UserError: If it can't be read or has several bands.
    """
    try:
        with warnings.catch_warnings():
            # Rasters without georeference are welcome; what they lack is simply not stored.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                if dataset.count != 1:
                    raise UserError(f"{path}: {dataset.count} bands, expected a raster of one band")
                t = dataset.transform
                placed = dataset.crs is not None or not t.is_identity
                return _Raster(
                    dataset.read(1),
                    dataset.nodata,
                    dataset.crs.to_wkt() if dataset.crs else None,
                    dataset.crs.to_string() if dataset.crs else "none",
                    (t.a, t.b, t.c, t.d, t.e, t.f) if placed else None,
                )
    except (RasterioError, OSError) as error:
        raise UserError(
            f"{path}: can't be read, it may be truncated or damaged ({error.__cause__ or error})"
        ) from error


def _read(tile: _Tile, layout: Layout) -> _Pixels:
    rasters = {name: _open(path) for name, path in tile.files.items()}
    first = rasters[next(iter(layout.bands))]
    bands = np.stack([_without_nodata(rasters[name], layout) for name in layout.bands], axis=-1)
    return _Pixels(
        bands,
        _class_ids(rasters[layout.masks].values, layout),
        np.asarray(np.isfinite(bands).any(axis=-1)),
        first.crs,
        first.transform,
    )


def _without_nodata(raster: _Raster, layout: Layout) -> NDArray[np.float32]:
    values = raster.values.astype(np.float32)
    for nodata in [*layout.nodata, *([] if raster.nodata is None else [raster.nodata])]:
        values[_equal(raster.values, nodata)] = np.nan
    values[~np.isfinite(values)] = np.nan
    return values


def _class_ids(values: NDArray[Any], layout: Layout) -> NDArray[np.uint8]:
    ids = np.full(values.shape, IGNORE, np.uint8)
    for value, index in layout.values.items():
        ids[_equal(values, value)] = index
    return ids


# -- checking ------------------------------------------------------------------------------------------------


def _check(tiles: Mapping[str, list[_Tile]], layout: Layout, problems: list[str]) -> None:
    """Read every raster once and append what is wrong with it."""
    places: dict[tuple[object, ...], tuple[str, _Tile]] = {}
    seen = dict.fromkeys(layout.bands, False)
    complete = True
    everything = [(split, tile) for split, members in tiles.items() for tile in members]
    for split, tile in progress(everything, "checking", unit="tile"):
        rasters: dict[str, _Raster] = {}
        for name, path in tile.files.items():
            try:
                rasters[name] = _open(path)
            except UserError as error:
                problems.append(str(error))
        complete &= len(rasters) == len(layout.bands) + 1
        problems += _misplaced(tile, rasters, layout)
        if layout.masks in rasters:
            problems += _unknown_values(tile.files[layout.masks], rasters[layout.masks].values, layout)
        finite = {name: np.isfinite(_without_nodata(rasters[name], layout)) for name in layout.bands if name in rasters}
        if len(finite) == len(layout.bands) and not any(band.any() for band in finite.values()):
            problems.append(f"{tile}: no valid pixel, all its bands are nodata everywhere")
        if split == "train":
            for name, band in finite.items():
                seen[name] |= bool(band.any())
        placed = next(iter(rasters.values()), None)
        if placed is not None and placed.crs and placed.transform:
            place = (placed.crs, placed.transform, placed.values.shape)
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


def _misplaced(tile: _Tile, rasters: Mapping[str, _Raster], layout: Layout) -> Iterator[str]:
    """Yield what differs from the tile's first raster in size, CRS or transform."""
    if not rasters:
        return
    reference, first = next(iter(rasters.items()))
    for name, raster in rasters.items():
        differs = [
            f"{what} {received}, expected {expected} as in {tile.files[reference]}"
            for what, received, expected, same in (
                ("size", _size(raster), _size(first), raster.values.shape == first.values.shape),
                ("CRS", raster.crs_name, first.crs_name, raster.crs == first.crs),
                ("transform", raster.transform, first.transform, _same_place(raster, first)),
            )
            if not same
        ]
        yield from (f"{tile.files[name]}: {difference}" for difference in differs)


def _unknown_values(path: Path, values: NDArray[Any], layout: Layout) -> Iterator[str]:
    known = np.zeros(values.shape, bool)
    for value in layout.values:
        known |= _equal(values, value)
    if known.all():
        return
    found, counts = np.unique(values[~known], return_counts=True)
    common = np.argsort(-counts, kind="stable")[:10]
    listed = ", ".join(f"{found[index]:g} ({counts[index]} pixels)" for index in common)
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    yield (
        f"{path}: mask values without a class: {listed}{more}; --classes has "
        + ", ".join(f"{value:g}={_class_name(layout, index)}" for value, index in layout.values.items())
    )


def _size(raster: _Raster) -> str:
    return "{}×{}".format(*raster.values.shape)


def _same_place(raster: _Raster, first: _Raster) -> bool:
    if raster.transform is None or first.transform is None:
        return raster.transform is first.transform
    # A thousandth of a pixel: files written by different tools differ in the last digits.
    tolerance = 1e-3 * max(abs(first.transform[0]), abs(first.transform[1]))
    corners = [(0, 0), first.values.shape]
    return all(
        abs(one - other) <= tolerance
        for corner in corners
        for one, other in zip(_at(raster.transform, corner), _at(first.transform, corner), strict=True)
    )


def _at(transform: tuple[float, ...], corner: tuple[int, ...]) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    row, column = corner
    return a * column + b * row + c, d * column + e * row + f


def _class_name(layout: Layout, index: int) -> str:
    return "ignore" if index == IGNORE else layout.classes[index].name


def _equal(values: NDArray[Any], value: float) -> NDArray[np.bool_]:
    return np.isnan(values) if np.isnan(value) else values == value


def _same(one: float, other: float) -> bool:
    return one == other or (np.isnan(one) and np.isnan(other))
