"""Tiles from pairs of an image and a mask, found by patterns of their names.

    images  scenes/{region}/images/patch_r{row}_c{column}.tif
    masks   scenes/{region}/masks/patch_r{row}_c{column}.tif

An image is a raster of many bands, a GeoTIFF or a NumPy array `(H, W, C)`. It goes with the mask that has the same
`{id}`, `{region}`, `{row}` and `{column}`, as far as both patterns have them. Rows and columns are the image's place
in its scene, which is what `{region}` and `{id}` name.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from console import UserError, progress
from data.masks import class_ids, meanings, unknown_values
from data.normalisation import Method
from data.rasters import Raster, differences, missing, read_raster, told
from data.splits import Division, described, divide
from data.tiles import RESERVED, ClassInfo, TileContents, TileInfo, write_splits

_FIELDS = ("region", "id", "row", "column")
_PIECE = re.compile(r"\{(\w*)\}|\*\*/|\*|\?|[{}]|[^{}*?]+")


class Pattern:
    """A pattern of file names: `{id}`, `{region}`, `{row}`, `{column}`, `*`, `?`, and `**/` for any folders.

    `{row}` and `{column}` are digits; `{id}` and `{region}` anything but a slash. A field that stands twice has the
    same text in both places.
    """

    def __init__(self, option: str, text: str) -> None:
        """Read the pattern; `option` is what messages call it.

        Raises:
            UserError: If a field is unknown, a brace stands alone, or only one of row and column is there.
        """
        self.option = option
        self.text = os.path.expanduser(text)
        regex = ""
        glob_parts: list[str] = []
        self.fields: list[str] = []
        for piece in _PIECE.finditer(self.text):
            name, raw = piece[1], piece[0]
            if name is not None:
                if name not in _FIELDS:
                    known = ", ".join(f"{{{field}}}" for field in _FIELDS)
                    raise UserError(f"{option} {text}: {raw} is no field of a pattern; there are {known}")
                kind = r"\d+" if name in ("row", "column") else "[^/]+?"
                regex += f"(?P={name})" if name in self.fields else f"(?P<{name}>{kind})"
                self.fields += [] if name in self.fields else [name]
                glob_parts.append("*")
            elif raw in "{}":
                raise UserError(f"{option} {text}: a lone {raw}; fields are written such as {{id}}")
            else:
                regex += {"*": "[^/]*", "?": "[^/]", "**/": "(?:[^/]+/)*"}.get(raw, re.escape(raw))
                glob_parts.append(raw if raw in ("*", "?", "**/") else glob.escape(raw))
        if ("row" in self.fields) != ("column" in self.fields):
            raise UserError(f"{option} {text}: give both {{row}} and {{column}}, or neither")
        self._regex, self._glob = re.compile(regex), "".join(glob_parts)
        self.literal = len(re.sub(r"\{\w*\}|[*?]", "", self.text))

    def find(self) -> dict[Path, dict[str, str]]:
        """Return the files that match, sorted, and what stands in their fields."""
        found = sorted({name.replace(os.sep, "/") for name in glob.glob(self._glob, recursive=True)})
        matches = {Path(name): self._regex.fullmatch(name) for name in found if os.path.isfile(name)}
        return {path: match.groupdict() for path, match in matches.items() if match is not None}

    def fill(self, fields: Mapping[str, str]) -> str:
        """Return the pattern with the fields that are known put in."""
        return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), self.text)

    def nothing(self) -> str:
        """Say that no file matches, and what there is instead."""
        folder = Path(re.split(r"[{*?]", self.text, maxsplit=1)[0] + "x").parent
        while not folder.is_dir():
            if folder.parent.is_dir():
                return f"{self.option} {self.text}: no file matches, there is no folder {folder}"
            folder = folder.parent
        names = sorted(path.name for path in folder.iterdir())
        more = ", …" if len(names) > 5 else ""
        return f"{self.option} {self.text}: no file matches; {folder} has {', '.join(names[:5]) or 'nothing'}{more}"


@dataclass(frozen=True)
class Layout:
    """How images and masks are found and what their values mean.

    `values`: mask value → class id, an index of `classes`, or 255 = ignore. `bands`: names of the images' bands in
    order; none: those that the files have. `modalities`: which bands, counted from 0, make up a modality; none: all.
    `nodata`: values that mean nodata in a band, beside NaN and the file's own nodata tag. `region`: of all images,
    unless a pattern has `{region}`. `stride`: pixels from one row or column number to the next.
    """

    images: Pattern
    masks: Pattern
    classes: tuple[ClassInfo, ...]
    values: dict[float, int]
    bands: tuple[str, ...] = ()
    modalities: Mapping[str, tuple[int, ...]] | None = None
    nodata: tuple[float, ...] = ()
    region: str = ""
    stride: int | None = None

    def __post_init__(self) -> None:
        """Check that the patterns go together and that every image gets one region."""
        fields = {*self.images.fields, *self.masks.fields}
        if self.images.text == self.masks.text:
            raise UserError(f"--images and --masks are one pattern, {self.images.text}: each image needs a mask")
        if not set(self.images.fields) & set(self.masks.fields):
            raise UserError(
                f"--images {self.images.text} and --masks {self.masks.text} have no field in common: write {{id}} "
                "where the names of an image and its mask are the same"
            )
        if bool(self.region) == ("region" in fields):
            raise UserError(
                f"--region {self.region} and {{region}} in a pattern: give one of the two"
                if self.region
                else "no region: give --region CODE, or write {region} where the names have it"
            )
        if self.stride is not None and (self.stride < 1 or "row" not in fields):
            raise UserError(
                f"--stride {self.stride} is the number of pixels, 1 or more, from one {{row}} or {{column}} of a "
                "pattern to the next"
            )
        if len(set(self.bands)) < len(self.bands):
            twice = [name for name, count in Counter(self.bands).items() if count > 1]
            raise UserError(f"--bands names {', '.join(twice)} twice")


def parse_modalities(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read `NAME=BANDS`, bands counted from 1, e.g. `optical=1-6 dem=7,8`: name → bands counted from 0.

    A single `NAME` is a modality of all bands: an empty tuple.

    Raises:
        UserError: If one is malformed, or a name or a band is given twice.
    """
    modalities: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, ranges = (part.strip() for part in text.partition("="))
        parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in ranges.split(",")] if equals else []
        limits = [(int(part[1]), int(part[2] or part[1])) for part in parts if part is not None]
        well_formed = len(limits) == len(parts) and all(1 <= first <= last for first, last in limits)
        if not name or "/" in name or not well_formed or (not equals and len(texts) > 1):
            raise UserError(
                "--modality takes NAME=BANDS with bands counted from 1, such as optical=1-6 dem=7,8, or one NAME alone "
                f"for all bands; got {text!r}"
            )
        if name in RESERVED:
            raise UserError(f"--modality {name}: tile files use this name themselves, choose another")
        if name in modalities:
            raise UserError(f"--modality names {name} twice")
        modalities[name] = tuple(band - 1 for first, last in limits for band in range(first, last + 1))
    twice = [
        band + 1 for band, count in Counter(b for bands in modalities.values() for b in bands).items() if count > 1
    ]
    if twice:
        raise UserError(f"--modality uses band {', '.join(map(str, twice))} twice")
    return modalities


def write_dataset(
    folder: Path, layout: Layout, division: Division, method: Method = "standardise", command: str = ""
) -> None:
    """Write `folder/{train,val,test}.hdf5` from the images and masks, divided as `division` says.

    Values keep the images' type, unless a pixel of the modality is nodata: then integers become floats, and NaN says
    so. A pixel is invalid where all bands of a modality are nodata. Statistics are fitted on the valid pixels of the
    training tiles and stored in every file.

    Raises:
        UserError: If anything is wrong with the files or they can't be divided so; the message lists every problem,
        and nothing is written.
    """
    problems: list[str] = []
    pairs = _find(layout, problems)
    seen = _check(pairs, layout, problems)
    whole = len(seen) == len(pairs) > 0
    bands = _bands(seen, layout, problems) if seen else {}
    infos = _infos(seen, layout, problems)
    # Pairs that could not be read have no place: what they would say of the division is no news.
    divided = divide(infos, division, problems) if whole and not problems else None
    if divided is not None and divided.splits:
        problems += _never_seen([seen[index] for index in divided.splits["train"]], bands)
    if problems or divided is None:
        raise UserError(told(problems))

    channels = {name: [channel for channel, _ in members] for name, members in bands.items()}
    types = {name: _stored_type(seen, members) for name, members in channels.items()}
    splits = {
        split: [(seen[index].pair, infos[index]) for index in members] for split, members in divided.splits.items()
    }
    provenance = {
        "kind": "pairs of image and mask",
        "images": layout.images.text,
        "masks": layout.masks.text,
        "bands": {name: [channel + 1 for channel in members] for name, members in channels.items()},
        "mask values": meanings(layout.classes, layout.values),
        "nodata": list(layout.nodata),
        "split": described(division, divided),
    }

    def read(item: tuple[_Pair, TileInfo]) -> TileContents:
        pair, info = item
        image, mask = read_raster(pair.image), read_raster(pair.mask)
        absent = missing(image, layout.nodata)
        modalities = {name: image.values[..., members].astype(types[name]) for name, members in channels.items()}
        for name, members in channels.items():
            if types[name].kind == "f":
                modalities[name][absent[..., members]] = np.nan
        valid = np.logical_and.reduce([~absent[..., members].all(axis=-1) for members in channels.values()])
        return TileContents(
            info.name,
            modalities,
            class_ids(mask.values[..., 0], layout.values),
            valid,
            info.region,
            "",
            info.crs,
            info.transform,
            {**info.attributes, "sources": json.dumps({"image": str(pair.image), "mask": str(pair.mask)})},
        )

    names = {name: [band for _, band in members] for name, members in bands.items()}
    write_splits(folder, splits, read, layout.classes, names, provenance, method, command)


# -- finding files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """An image, its mask, and the fields of their names."""

    image: Path
    mask: Path
    fields: dict[str, str]

    @property
    def name(self) -> str:
        """The tile's name: region, id, row and column, as far as there are any."""
        prefixes = {"row": "r", "column": "c"}
        return "_".join(prefixes.get(field, "") + self.fields[field] for field in _FIELDS if field in self.fields)


def _find(layout: Layout, problems: list[str]) -> list[_Pair]:
    """Return the pairs, sorted by name, and append what has no partner or several."""
    images, masks = layout.images.find(), layout.masks.find()
    # In one folder `{id}.tif` matches `a_mask.tif` as well: such a file is what the more precise pattern says.
    loser = images if layout.images.literal < layout.masks.literal else masks
    for path in images.keys() & masks.keys():
        del loser[path]
    empty = [pattern.nothing() for pattern, found in ((layout.images, images), (layout.masks, masks)) if not found]
    if empty:
        problems += empty
        return []
    shared = [field for field in _FIELDS if field in layout.images.fields and field in layout.masks.fields]
    by_key: list[dict[tuple[str, ...], tuple[Path, dict[str, str]]]] = []
    for what, found in (("an image", images), ("a mask", masks)):
        kept: dict[tuple[str, ...], tuple[Path, dict[str, str]]] = {}
        for path, fields in found.items():
            key = tuple(fields[field] for field in shared)
            if key in kept:
                apart = [f"{{{field}}}" for field in ("region", "id") if field not in shared]
                remedy = f"tell them apart with {' or '.join(apart)} in both patterns" if apart else "move one away"
                problems.append(f"{path}: {_named(shared, key)} has {what} already, {kept[key][0]}; {remedy}")
            else:
                kept[key] = path, fields
        by_key.append(kept)
    of_image, of_mask = by_key
    if not of_image.keys() & of_mask.keys():
        (image, fields), (mask, _) = next(iter(of_image.values())), next(iter(of_mask.values()))
        problems.append(
            f"none of {len(of_image)} images has its mask among the {len(of_mask)} masks: {image} asks for "
            f"{layout.masks.fill(fields)}, but there are {mask}, …"
        )
        return []
    for kept, other, pattern, what in (
        (of_image, of_mask, layout.masks, "mask"),
        (of_mask, of_image, layout.images, "image"),
    ):
        problems += [
            f"{path}: no {what}, expected {pattern.fill(fields)}"
            for key, (path, fields) in kept.items()
            if key not in other
        ]
    pairs = [
        _Pair(of_image[key][0], of_mask[key][0], of_mask[key][1] | of_image[key][1])
        for key in of_image
        if key in of_mask
    ]
    taken: dict[str, _Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.name, str(pair.image))):
        if pair.name in taken:
            problems.append(f"{pair.image}: would be tile {pair.name}, as would {taken[pair.name].image}; rename one")
        else:
            taken[pair.name] = pair
    return list(taken.values())


def _named(fields: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{field} {value}" for field, value in zip(fields, values, strict=True))


# -- checking ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What a pair of files holds, without its pixels; `present` and `whole` say of each band: any value, all values."""

    pair: _Pair
    shape: tuple[int, ...]
    type: np.dtype[Any]
    present: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    names: tuple[str | None, ...]
    crs: str | None
    transform: tuple[float, float, float, float, float, float] | None


def _check(pairs: Sequence[_Pair], layout: Layout, problems: list[str]) -> list[_Seen]:
    """Read every file once, append what is wrong with it, and return what the readable pairs hold."""
    seen: list[_Seen] = []
    for pair in progress(pairs, "checking", unit="image"):
        rasters: list[Raster] = []
        for path in (pair.image, pair.mask):
            try:
                rasters.append(read_raster(path))
            except UserError as error:
                problems.append(str(error))
        if len(rasters) < 2:
            continue
        image, mask = rasters
        if mask.values.shape[-1] != 1:
            problems.append(f"{pair.mask}: {mask.values.shape[-1]} bands, expected a mask of one band")
        else:
            problems += unknown_values(pair.mask, mask.values[..., 0], layout.classes, layout.values)
        # Where only one of the two has a georeference, it is that of both.
        if mask.crs is None or image.crs is None:
            mask = replace(mask, crs=image.crs or mask.crs, crs_name=image.crs_name if image.crs else mask.crs_name)
            image = replace(image, crs=mask.crs, crs_name=mask.crs_name)
        if mask.transform is None or image.transform is None:
            mask = replace(mask, transform=image.transform or mask.transform)
            image = replace(image, transform=mask.transform)
        problems += [f"{pair.mask}: {text}" for text in differences(mask, image, pair.image)]
        absent = missing(image, layout.nodata)
        problems += _invalid(pair, absent, layout)
        seen.append(
            _Seen(
                pair,
                image.values.shape,
                image.values.dtype,
                np.logical_not(absent.all(axis=(0, 1))),
                np.logical_not(absent.any(axis=(0, 1))),
                image.names,
                image.crs,
                image.transform,
            )
        )
    return seen


def _invalid(pair: _Pair, absent: NDArray[np.bool_], layout: Layout) -> Iterator[str]:
    """Yield that a pair has no pixel at which every modality has a value."""
    count = absent.shape[-1]
    members = [[band for band in bands if band < count] for bands in (layout.modalities or {}).values()]
    chosen = [bands for bands in members if bands] or [list(range(count))]
    if np.logical_or.reduce([absent[..., bands].all(axis=-1) for bands in chosen]).all():
        yield f"{pair.image}: no valid pixel, none at which every modality has a band that is not nodata"


def _bands(seen: Sequence[_Seen], layout: Layout, problems: list[str]) -> dict[str, list[tuple[int, str]]]:
    """Return modality → its bands, each the place in the image and the name, and append images that have others."""
    counts = Counter(item.shape[-1] for item in seen)
    count = len(layout.bands) or counts.most_common(1)[0][0]
    example = next((item for item in seen if item.shape[-1] == count), None)
    reference = "as --bands names" if layout.bands or example is None else f"as in {example.pair.image}"
    problems += [
        f"{item.pair.image}: {item.shape[-1]} bands, expected {count} {reference}"
        for item in seen
        if item.shape[-1] != count
    ]
    names = layout.bands
    if not names:
        described = [item for item in seen if item.shape[-1] == count and any(item.names)]
        stored = described[0].names if described else (None,) * count
        problems += [
            f"{item.pair.image}: its bands are called {_listed(item.names)}, those of {described[0].pair.image} "
            f"{_listed(stored)}: give the names with --bands, if the bands are the same"
            for item in described
            if item.names != stored
        ]
        names = tuple(name or f"band_{band + 1}" for band, name in enumerate(stored))
        if len(set(names)) < count:
            problems.append(f"{described[0].pair.image}: several bands have one name, {_listed(stored)}: give --bands")
    modalities = layout.modalities or {"optical": ()}
    beyond = {name: max(bands) + 1 for name, bands in modalities.items() if bands and max(bands) >= count}
    problems += [f"--modality {name} takes band {band}, but the images have {count}" for name, band in beyond.items()]
    if beyond:
        return {}
    return {name: [(band, names[band]) for band in bands or range(count)] for name, bands in modalities.items()}


def _listed(names: Sequence[str | None]) -> str:
    return ", ".join(name or "(no name)" for name in names)


def _infos(seen: Sequence[_Seen], layout: Layout, problems: list[str]) -> list[TileInfo]:
    """Return what a tile file will say of the tiles; where the names say the place, in pixels of their scene."""
    by_name = [item for item in seen if "row" in item.pair.fields and not (item.crs and item.transform)]
    if by_name and layout.stride is None:
        problems.append(
            f"{len(by_name)} images, such as {by_name[0].pair.image}, have {{row}} and {{column}} but no georeference: "
            "give --stride, the pixels from one number to the next (1 where the names count pixels; the images' size "
            "where they count images side by side)"
        )
    elif layout.stride is not None and seen and not by_name:
        problems.append("--stride is for images without georeference, but all of these have one: leave it out")
    placed_by_name = {id(item) for item in by_name}
    infos = []
    for item in seen:
        fields = item.pair.fields
        attributes: dict[str, Any] = {}
        if id(item) in placed_by_name and layout.stride is not None:
            row, column = (int(fields[field]) * layout.stride for field in ("row", "column"))
            attributes = {"scene": fields.get("id", ""), "scene_row": row, "scene_column": column}
        infos.append(
            TileInfo(
                item.pair.name,
                item.shape[0],
                item.shape[1],
                fields.get("region", layout.region),
                crs=item.crs,
                transform=item.transform,
                attributes=attributes,
            )
        )
    return infos


def _never_seen(train: Sequence[_Seen], bands: Mapping[str, Sequence[tuple[int, str]]]) -> Iterator[str]:
    present = np.any([item.present for item in train], axis=0)
    for members in bands.values():
        yield from (f"the {name} band is nodata in all training images" for band, name in members if not present[band])


def _stored_type(seen: Sequence[_Seen], bands: Sequence[int]) -> np.dtype[Any]:
    """Return the type of a modality's values: the images' own; a float type if some value is nodata."""
    common = np.result_type(*{item.type for item in seen})
    if common.kind == "f" or all(item.whole[bands].all() for item in seen):
        return common
    return np.result_type(common, np.float32)
