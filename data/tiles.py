"""Tile files: HDF5 with one group per tile, its modalities, its mask and its place on earth.

A group holds

- one dataset `(H, W, C)` per modality, of any numeric type; a tile without one that others of the file have is read
  as NaN there: the modality is absent from it,
- the mask: `mask` `(H, W)` uint8 class ids with 255 = ignore, or one-hot `groundtruth` / `outlines`
  `(H, W, K)` as in the two published GlaViTU datasets, where an all-zero pixel is ignored,
- `valid` `(H, W)`: 1 where the scene was seen (without it: everywhere),
- attributes: region, subregion, crs, transform, padding and whatever else its maker knew.

File attributes have the class list, band names, statistics, provenance, the preparing command and a digest; a
file without statistics is a published one: its values are scaled already and used as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import h5py
import numpy as np
import psutil
from numpy.typing import NDArray

from console import UserError, progress
from data.hdf5 import creating
from data.normalisation import Method, Statistics, fit, published_bands
from data.windows import Window

IGNORE = 255
SURFACE = "surface reflectance"
"""The unit of reflectance from which the atmosphere was taken out."""
FORMAT = "glacier-tiles 1"
SPLITS = ("train", "val", "test")

Item = TypeVar("Item")
Stored = TypeVar("Stored")

CHUNK = 128
"""Largest side of what is stored together of a tile, in pixels."""

_ONE_HOT = ("groundtruth", "outlines")
RESERVED = ("mask", "valid", *_ONE_HOT)


@dataclass(frozen=True)
class ClassInfo:
    """A class of the mask; its id is its place in the class list. `glacier`: region tables count it."""

    name: str
    glacier: bool = False
    color: str = "#808080"


TWO_CLASSES = (ClassInfo("background", color="#8c8579"), ClassInfo("glacier", glacier=True, color="#4aa3df"))

PUBLISHED_REGIONS = ("ALP", "AN", "AWA", "CA", "GR", "HMA", "LL", "NZ", "SA", "SC", "SVAL")
"""The regions of the published datasets, in the order of the published models' location input."""


@dataclass(frozen=True)
class TileInfo:
    """What a tile file says about a tile, without its pixels.

    `height`, `width` are the stored size, padding included. `padding` is what was added in front (top, left),
    `original` the size `(height, width)` before padding where the file knows it. `crs` is WKT, `transform`
    the six numbers (a, b, c, d, e, f) of x = a·column + b·row + c, y = d·column + e·row + f. `attributes` has
    all attributes as stored, JSON-able.
    """

    name: str
    height: int
    width: int
    region: str = ""
    subregion: str = ""
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    padding: tuple[int, int] = (0, 0)
    original: tuple[int, int] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def interior(self) -> tuple[slice, slice]:
        """Return the rows and columns without padding: `[pad : pad + original]`, or `[pad : size - pad]`.

        Raises:
            UserError: If the padding leaves nothing of the tile.
        """
        size = (self.height, self.width)
        stops = (
            [pad + length for pad, length in zip(self.padding, self.original, strict=True)]
            if self.original
            else [length - pad for pad, length in zip(self.padding, size, strict=True)]
        )
        for pad, stop, length in zip(self.padding, stops, size, strict=True):
            if not 0 <= pad < stop <= length:
                raise UserError(
                    f"tile {self.name!r}: padding {self.padding} and original size {self.original} do not "
                    f"fit into its {self.height}×{self.width} pixels; correct its padding attributes"
                )
        return slice(self.padding[0], stops[0]), slice(self.padding[1], stops[1])


class TileFile:
    """A tile file, read.

    Cheap to make and to pickle: the file is opened when something is read, once per process and thread, so
    that workers can share the object. Everything raises `UserError` where the file is missing, not HDF5 or
    truncated.

    Args:
        path: The file.
        chosen: Modality → names of the bands that are seen of it, in this order; of the others, all. Made by `choose`.
        given_classes: The class list, where it is not the file's to say. Made by `choose`.
    """

    def __init__(
        self,
        path: str | Path,
        chosen: Mapping[str, Sequence[str]] | None = None,
        given_classes: Sequence[ClassInfo] | None = None,
    ) -> None:
        self.path = Path(path)
        self.chosen = {modality: tuple(names) for modality, names in (chosen or {}).items()}
        self._given_classes = None if given_classes is None else tuple(given_classes)
        self._handles: dict[tuple[int, int], h5py.File] = {}

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        """Pickle what the object is made of: handles belong to a process."""
        return type(self), (self.path, self.chosen, self._given_classes)

    def __repr__(self) -> str:
        """Return the call that makes this object."""
        more = [repr(part) for part in (self.chosen or None, self._given_classes) if part is not None]
        return f"TileFile({', '.join([repr(str(self.path)), *more])})"

    def __enter__(self) -> Self:
        """Return the file itself; it is still opened when needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close what this process has opened, in all threads; reading again opens it again."""
        for key in [key for key in self._handles if key[0] == os.getpid()]:
            self._handles.pop(key).close()

    def choose(
        self, bands: Mapping[str, int | Sequence[str]] | None = None, classes: Sequence[ClassInfo] | None = None
    ) -> Self:
        """Return this file as a model sees it: certain bands of its modalities, and a class list.

        Everything that the result says and reads (bands, channel counts, statistics, values) is of the chosen bands.

        Args:
            bands: Modality → names of its bands in the order wanted, or the number of bands that it must have. Of a
                modality that is not named, all; of one that the file lacks, nothing is said here (`check` does).
            classes: The class list. The file's masks must have as many classes; what its own class list says of names
                and of glacier must agree, while the colours are those given. None keeps the file's.

        Raises:
            UserError: A band is missing (the message lists those there are), their number is another, or the class
                list does not agree with the file's.
        """
        chosen = dict(self.chosen)
        for modality, wanted in (bands or {}).items():
            there = self._stored_bands.get(modality)
            if there is None:
                continue
            if isinstance(wanted, int):
                if len(there) != wanted:
                    raise UserError(
                        f"{self.path}: `{modality}` has {len(there)} bands ({', '.join(there)}), {wanted} are needed: "
                        f"use tiles with these, or a recipe for what there is (--set bands.{modality}={len(there)}, or "
                        "names of bands in their order)"
                    )
            elif missing := [name for name in wanted if name not in there]:
                raise UserError(
                    f"{self.path}: `{modality}` has no band {_quoted(missing)}; its bands are {_quoted(there)}; needed "
                    f"are {_quoted(wanted)}"
                )
            else:
                chosen[modality] = tuple(wanted)
        given = self._given_classes if classes is None else self._agreed(classes)
        view = type(self)(self.path, chosen, given)
        view._handles = self._handles
        return view

    def _agreed(self, classes: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
        """Return `classes` if the file has nothing against them; see `choose`."""
        stored, layers = self._class_entries, self._one_hot_layers
        count = len(stored) if stored is not None else layers
        if count is not None and count != len(classes):
            theirs = _quoted([str(entry.get("name")) for entry in stored]) if stored is not None else "without names"
            raise UserError(
                f"{self.path}: its masks have {count} classes ({theirs}), {len(classes)} are needed "
                f"({_quoted([info.name for info in classes])}): use tiles with these, or leave `classes` to the tiles "
                "(--set classes=null)"
            )
        for number, (entry, info) in enumerate(zip(stored or (), classes, strict=bool(stored))):
            if _plain_name(str(entry.get("name", info.name))) != _plain_name(info.name):
                raise UserError(
                    f"{self.path}: class {number} of its masks is `{entry['name']}`, needed is `{info.name}`: prepare "
                    "the tiles with the classes of the recipe, or leave `classes` to the tiles (--set classes=null)"
                )
            if entry.get("glacier", info.glacier) != info.glacier:
                are = {True: "is glacier", False: "is not glacier"}
                raise UserError(
                    f"{self.path}: class {number}, `{info.name}`, {are[not info.glacier]} there, but "
                    f"{are[info.glacier]} in the class list that is asked for: make the two agree, or leave `classes` "
                    "to the tiles (--set classes=null)"
                )
        return tuple(classes)

    # -- what the file says ----------------------------------------------------------------------------------

    @cached_property
    def names(self) -> list[str]:
        """Names of the tiles, sorted."""
        with self._reading() as file:
            names = sorted(name for name in file if isinstance(file[name], h5py.Group))
        if not names:
            raise UserError(f"{self.path}: no tile in it, expected one HDF5 group per tile")
        return names

    @cached_property
    def modalities(self) -> dict[str, int]:
        """Channel counts of all modalities in the file; their order is the recipe's to say."""
        return {modality: len(names) for modality, names in self.bands.items()}

    @cached_property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The class list; without one, background and glacier, or an entry per layer of a one-hot mask."""
        if self._given_classes is not None:
            return self._given_classes
        if self._class_entries is not None:
            return self._stored("classes", lambda entries: tuple(ClassInfo(**entry) for entry in entries), ())
        layers = self._one_hot_layers or 2
        if layers <= 2:
            return TWO_CLASSES
        return (TWO_CLASSES[0], *(ClassInfo(f"class_{index}", glacier=True) for index in range(1, layers)))

    @property
    def has_classes(self) -> bool:
        """Whether the file itself has a class list."""
        return self._class_entries is not None

    @cached_property
    def _class_entries(self) -> list[dict[str, Any]] | None:
        return self._stored("classes", lambda entries: [dict(entry) for entry in entries], None)

    @cached_property
    def _one_hot_layers(self) -> int | None:
        with self._reading() as file:
            return next(
                (int(file[name][key].shape[-1]) for name in self.names for key in _ONE_HOT if key in file[name]), None
            )

    @cached_property
    def bands(self) -> dict[str, list[str]]:
        """Band names of each modality; without them, those documented for the published datasets."""
        return {name: list(self.chosen.get(name, there)) for name, there in self._stored_bands.items()}

    @cached_property
    def _stored_bands(self) -> dict[str, list[str]]:
        counts: dict[str, int] = {}
        with self._reading() as file:
            for name in self.names:
                for key, dataset in _modalities(file[name]).items():
                    counts.setdefault(key, int(dataset.shape[-1]))
        known = {**published_bands(), **self._stored("bands", lambda bands: dict(bands.items()), {})}
        return {
            name: list(known[name]) if len(known.get(name, ())) == count else [f"{name}_{i + 1}" for i in range(count)]
            for name, count in counts.items()
        }

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Where the chosen bands stand in the file, by modality."""
        there = self._stored_bands
        return {
            modality: [there[modality].index(name) for name in names]
            for modality, names in self.chosen.items()
            if modality in there
        }

    @cached_property
    def statistics(self) -> Statistics | None:
        """What the values are to be scaled with (or were, see `applied`); None: used as they are."""
        stored = self._stored("statistics", Statistics.from_json, None)
        return stored and stored.take(self._places)

    @property
    def published(self) -> bool:
        """Whether this is a file as the authors published it: scaled already, without statistics."""
        return self.statistics is None

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Where the inputs came from, as its maker wrote it down; empty for published files."""
        return self._stored("provenance", lambda sources: dict(sources.items()), {})

    @property
    def mask_note(self) -> str:
        """What a reader of scores must know of the reference: the rule of a weak mask; empty for other masks."""
        mask = self.provenance.get("mask")
        if not isinstance(mask, dict) or mask.get("kind") != "weak":
            return ""
        rule, threshold = str(mask.get("rule", "an index")), mask.get("threshold")
        found = f" (Otsu's threshold {threshold:g})" if "otsu" in rule and isinstance(threshold, int | float) else ""
        return f"reference: weak mask, {rule}{found} — scores measure agreement with that rule, not with outlines"

    @property
    def level_note(self) -> str:
        """What who uses the published weights or statistics must know of the reflectance; empty where it is theirs."""
        described = self.provenance.get("modalities")
        entries = described.items() if isinstance(described, dict) else ()
        units = {
            modality: (str(entry.get("unit", "")), str(entry.get("level", "")))
            for modality, entry in entries
            if isinstance(entry, dict)
        }
        return level_note(self.path, units)

    @cached_property
    def command(self) -> str:
        """The command that made the file; empty where unknown."""
        return str(self._file_attributes.get("command", ""))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's tiles as its writer computed it; of the file's bytes where it has none."""
        if "digest" in self._file_attributes:
            return str(self._file_attributes["digest"])
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def info(self, name: str) -> TileInfo:
        """Return what the file says about tile `name`."""
        with self._reading() as file:
            group = self._tile(file, name)
            attributes: dict[str, Any] = {key: _plain(value) for key, value in group.attrs.items()}
            shape = _shape(group)
        if shape is None:
            raise UserError(f"{self.path}: tile {name!r} holds no modality and no mask")

        def first(*keys: str) -> int | None:
            return next((int(attributes[key]) for key in keys if attributes.get(key) is not None), None)

        original = (first("original_height", "orig_height"), first("original_width", "orig_width"))
        transform = attributes.get("transform")
        return TileInfo(
            name=name,
            height=shape[0],
            width=shape[1],
            region=str(attributes["region"]) if "region" in attributes else region_of(name),
            subregion=str(attributes.get("subregion", "")),
            crs=attributes.get("crs") or None,
            transform=None if transform is None else _six(transform),
            padding=(first("padding_height", "pad_height") or 0, first("padding_width", "pad_width") or 0),
            original=None if original[0] is None or original[1] is None else (original[0], original[1]),
            attributes=attributes,
        )

    def present(self, name: str) -> tuple[str, ...]:
        """Return the modalities that tile `name` has; the others of the file are absent from it."""
        with self._reading() as file:
            group = self._tile(file, name)
            return tuple(modality for modality in self._stored_bands if modality in group)

    # -- pixels ----------------------------------------------------------------------------------------------

    def read(
        self, name: str, modalities: Sequence[str], window: Window | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return the modalities of tile `name`, in the order asked for, as raw float32 `(h, w, C)`.

        Of a window that reaches beyond the tile, the part inside is returned. A modality that is absent from the tile
        is NaN everywhere.

        Raises:
            UserError: If the tile is missing, or a modality is in no tile of the file.
        """
        with self._reading() as file:
            group = self._tile(file, name)
            absent = [modality for modality in modalities if modality not in group]
            if missing := [modality for modality in absent if modality not in self._stored_bands]:
                raise UserError(
                    f"{self.path}: tile {name!r} has no {_quoted(missing)}, "
                    f"it has {_quoted(_modalities(group)) or 'no modality'}"
                )
            # All bands are read even where some are chosen: in a tile, the bands of a pixel lie side by side.
            values = {
                modality: np.full(
                    (*self._window_shape(group, window), len(self._stored_bands[modality])), np.nan, np.float32
                )
                if modality in absent
                else np.asarray(group[modality][_index(window)], np.float32)
                for modality in modalities
            }
        return {
            modality: array[..., self._places[modality]] if modality in self._places else array
            for modality, array in values.items()
        }

    def mask(self, name: str, window: Window | None = None) -> NDArray[np.uint8]:
        """Return the class ids of tile `name`, uint8 `(h, w)`, 255 = ignore (everywhere without a mask)."""
        with self._reading() as file:
            group = self._tile(file, name)
            if "mask" in group:
                return np.asarray(group["mask"][_index(window)], np.uint8)
            one_hot = next((group[key] for key in _ONE_HOT if key in group), None)
            if one_hot is None:
                return np.full(self._window_shape(group, window), IGNORE, np.uint8)
            layers = np.asarray(one_hot[_index(window)])
        return np.where(layers.max(axis=-1) > 0, layers.argmax(axis=-1), IGNORE).astype(np.uint8)

    def valid(self, name: str, window: Window | None = None) -> NDArray[np.bool_]:
        """Return where the scene was seen, bool `(h, w)`; True everywhere if the tile does not say."""
        with self._reading() as file:
            group = self._tile(file, name)
            if "valid" in group:
                return np.asarray(group["valid"][_index(window)]) != 0
            return np.ones(self._window_shape(group, window), bool)

    def labels(self, name: str, window: Window | None = None) -> NDArray[np.uint8]:
        """Return the class ids that count, uint8 `(h, w)`: the mask, and 255 where the tile is not valid."""
        return np.where(self.valid(name, window), self.mask(name, window), np.uint8(IGNORE))

    # -- checks ----------------------------------------------------------------------------------------------

    def check(self, modalities: Sequence[str], *, labelled: bool = True) -> list[str]:
        """Read the whole file once and return its problems in plain sentences; none means it can be used.

        A problem is: a modality that no tile has, a tile that has none of them, a number of channels that differs
        between tiles, sizes that differ within a tile, padding that does not fit, a class id beyond the class list, a
        tile without a valid pixel, a modality that a tile has but that is NaN at every valid pixel of it (in a patch,
        it would pass for one with a gap), and with `labelled` a tile without a mask.
        """
        problems: list[str] = []
        if missing := [modality for modality in modalities if modality not in self._stored_bands]:
            there = _quoted(self._stored_bands) or "none"
            problems.append(f"{self.path}: no modality {_quoted(missing)} in any tile, it has {there}")
        channels: dict[str, tuple[int, str]] = {}
        for name in self.names:
            found = list(self._check_tile(name, modalities, labelled, channels))
            problems += [f"{self.path}: tile {name!r}: {problem}" for problem in found]
        return problems

    def _check_tile(
        self, name: str, modalities: Sequence[str], labelled: bool, channels: dict[str, tuple[int, str]]
    ) -> Iterator[str]:
        with self._reading() as file:
            group = self._tile(file, name)
            stored = _modalities(group)
            present = [modality for modality in modalities if modality in stored]
            sizes = {modality: stored[modality].shape[:2] for modality in present}
            sizes |= {key: group[key].shape[:2] for key in RESERVED if key in group}
            one_hot = [(key, group[key].ndim) for key in _ONE_HOT if key in group]
            unlabelled = not any(key in group for key in ("mask", *_ONE_HOT))
            counts = {modality: stored[modality].shape[-1] for modality in present}
        if not present and any(modality in self._stored_bands for modality in modalities):
            yield f"no modality of {_quoted(modalities)}, it has {_quoted(stored) or 'none'}"
        if labelled and unlabelled:
            yield "no mask: expected `mask`, `groundtruth` or `outlines`"
        for modality, count in counts.items():
            expected, where = channels.setdefault(modality, (count, name))
            if count != expected:
                yield f"`{modality}` has {count} channels, in tile {where!r} it has {expected}"
        for key, dimensions in one_hot:
            if dimensions != 3:
                yield f"`{key}` has {dimensions} dimensions, expected height × width × classes"
                return
        if len(set(sizes.values())) > 1:
            yield "sizes differ: " + ", ".join(f"`{key}` {'×'.join(map(str, size))}" for key, size in sizes.items())
            return
        if not sizes:
            return
        try:
            self.info(name).interior()
        except UserError as error:
            yield str(error)
        mask = self.mask(name)
        unknown = [int(value) for value in np.unique(mask) if value != IGNORE and value >= len(self.classes)]
        if unknown:
            pixels = int(np.isin(mask, unknown).sum())
            known = ", ".join(f"{index} {info.name}" for index, info in enumerate(self.classes))
            ids = ", ".join(map(str, unknown))
            yield f"class {ids} in its mask ({pixels} pixels); known are {known}, 255 ignore"
        valid = self.valid(name)
        if not valid.any():
            yield "no valid pixel"
            return
        for modality in present:
            if not np.isfinite(self.read(name, [modality])[modality][valid]).any():
                yield f"`{modality}` is NaN at every valid pixel: leave it out of the tile, it is absent then"

    # -- the file --------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        """Yield this thread's handle; what HDF5 says of a broken file becomes a `UserError`."""
        try:
            yield self._handle()
        except UserError:
            raise
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(
                f"{self.path}: can't be read as HDF5, it may be truncated or damaged: get or prepare it again ({error})"
            ) from error

    def _handle(self) -> h5py.File:
        key = (os.getpid(), threading.get_ident())
        handle = self._handles.get(key)
        if handle is None:
            if not self.path.is_file():
                raise UserError(f"{self.path}: no such tile file")
            handle = self._handles[key] = h5py.File(self.path, "r")
        return handle

    def _tile(self, file: h5py.File, name: str) -> h5py.Group:
        if name not in file:
            raise UserError(f"{self.path}: no tile {name!r}; it has {_quoted(self.names[:10])}")
        return file[name]

    def _window_shape(self, group: h5py.Group, window: Window | None) -> tuple[int, int]:
        height, width = _shape(group) or (0, 0)
        if window is None:
            return height, width
        rows, columns = window.slices
        return len(range(*rows.indices(height))), len(range(*columns.indices(width)))

    @cached_property
    def _file_attributes(self) -> dict[str, Any]:
        with self._reading() as file:
            return {key: _plain(value) for key, value in file.attrs.items()}

    def _stored(self, key: str, read: Callable[[Any], Stored], default: Stored) -> Stored:
        """Return a JSON attribute of the file as `read` makes it of the JSON, or `default` without it."""
        if key not in self._file_attributes:
            return default
        try:
            return read(json.loads(self._file_attributes[key]))
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.path}: its attribute `{key}` can't be read ({error}); prepare the file again"
            ) from None


class TileWriter:
    """Writes a tile file; use it in a `with` statement.

    The file appears under its name when the `with` block ends without an exception; before, and after an
    exception, nothing does. `statistics` may be set until the block ends, so that they can be fitted on what
    is being written.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[ClassInfo],
        bands: Mapping[str, Sequence[str]],
        statistics: Statistics | None = None,
        provenance: Mapping[str, Any] | None = None,
        command: str | None = None,
    ) -> None:
        self.path = Path(path)
        self._bands = {name: list(names) for name, names in bands.items()}
        self._classes = [asdict(info) for info in classes]
        self.statistics = statistics
        self._provenance = dict(provenance or {})
        self._command = command or ""
        self._digests: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Open a temporary file beside the path."""
        self._creating = creating(self.path)
        self._file = self._creating.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put the file into its place, or remove the temporary one after an exception."""
        if error is None:
            try:
                self._describe()
            except BaseException:
                self._creating.__exit__(*sys.exc_info())
                raise
        self._creating.__exit__(kind, error, traceback)

    def _describe(self) -> None:
        attributes = {"classes": json.dumps(self._classes), "bands": json.dumps(self._bands)}
        if self.statistics is not None:
            attributes["statistics"] = json.dumps(self.statistics.to_json())
        described = json.dumps([attributes, sorted(self._digests.items())])
        self._file.attrs.update(
            {
                **attributes,
                "format": FORMAT,
                "provenance": json.dumps(self._provenance),
                "command": self._command,
                "digest": hashlib.sha256(described.encode()).hexdigest(),
            }
        )

    def add(
        self,
        name: str,
        modalities: Mapping[str, NDArray[Any]],
        mask: NDArray[Any],
        valid: NDArray[Any],
        region: str = "",
        subregion: str = "",
        crs: str | None = None,
        transform: Sequence[float] | None = None,
        **attributes: str | float,
    ) -> None:
        """Add a tile: modalities `(H, W, C)`, mask `(H, W)` of class ids or 255, valid `(H, W)`.

        Modalities of the file may be left out, but not all: they are absent from the tile. So is one without a finite
        value at any valid pixel (in a tile without valid pixels: at any), whose array is not stored.

        Nodata is NaN in the modality and 0 in `valid`. Values are stored in the type that they come in, unscaled
        unless the statistics say `applied`. `crs` is WKT, `transform` six numbers. Padding, if any, is told by the
        attributes `padding_height`, `padding_width`, `original_height`, `original_width`.

        Raises:
            ValueError: If names, sizes, types, band counts or class ids do not fit together.
        """
        if name in self._digests:
            raise ValueError(f"tile {name!r} is in {self.path} already")
        if not modalities or not set(modalities) <= set(self._bands):
            raise ValueError(
                f"tile {name!r} has modalities {sorted(modalities)}; expected one or more of {sorted(self._bands)}"
            )
        arrays: dict[str, NDArray[Any]] = {}
        for modality, array in modalities.items():
            expected = (*mask.shape, len(self._bands[modality]))
            if array.shape != expected:
                raise ValueError(f"tile {name!r}: {modality!r} has shape {array.shape}, expected {expected}")
            if array.dtype.kind not in "iuf":
                raise ValueError(f"tile {name!r}: {modality!r} has values of type {array.dtype}, expected numbers")
            arrays[modality] = np.ascontiguousarray(array)
        if mask.ndim != 2 or valid.shape != mask.shape:
            raise ValueError(f"tile {name!r}: mask {mask.shape} and valid {valid.shape} must be one (H, W)")
        known = [*range(len(self._classes)), IGNORE]
        if not np.isin(mask, known).all():
            raise ValueError(f"tile {name!r}: class ids {np.setdiff1d(mask, known)} are not in the class list")
        seen = np.asarray(valid) != 0
        counted = seen if seen.any() else np.ones_like(seen)
        arrays = {modality: array for modality, array in arrays.items() if np.isfinite(array[counted]).any()}
        arrays["mask"] = np.ascontiguousarray(mask, np.uint8)
        arrays["valid"] = np.ascontiguousarray(seen, np.uint8)
        described: dict[str, Any] = {"region": region, "subregion": subregion, **attributes}
        if crs is not None:
            described["crs"] = crs
        if transform is not None:
            described["transform"] = [float(value) for value in tuple(transform)[:6]]
        digest = hashlib.sha256(json.dumps([name, described], sort_keys=True, default=_plain).encode())
        group = self._file.create_group(name)
        for key in sorted(arrays):
            digest.update(f"{key} {arrays[key].shape} {arrays[key].dtype.str}".encode())
            digest.update(arrays[key].data)
            group.create_dataset(key, data=arrays[key], **_storage(key, arrays[key].shape))
        group.attrs.update(described)
        self._file.raise_write_error()
        self._digests[name] = digest.hexdigest()


@dataclass(frozen=True)
class TileContents:
    """A tile to be written; see `TileWriter.add` for its fields: modalities may be left out."""

    name: str
    modalities: dict[str, NDArray[Any]]
    mask: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    region: str = ""
    subregion: str = ""
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    attributes: dict[str, str | float] = field(default_factory=dict)


def write_splits(
    folder: Path,
    splits: Mapping[str, Sequence[Item]],
    read: Callable[[Item], TileContents],
    classes: Sequence[ClassInfo],
    bands: Mapping[str, Sequence[str]],
    provenance: Mapping[str, Any],
    method: Method = "standardise",
    command: str = "",
) -> None:
    """Write `folder/SPLIT.hdf5` of each split, `train` among them, from tiles that `read` reads one by one.

    Statistics are fitted on the valid pixels of the training tiles, or are the published ones, and stored in every
    file.

    Raises:
        UserError: If a band has no valid value in the whole training split, a modality is in none of its tiles, or
            `method` is `published` and the bands are not.
    """
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                TileWriter(folder / f"{split}.hdf5", classes, bands, provenance=provenance, command=command)
            )
            for split in splits
        }

        def written(split: str) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]]:
            for item in progress(splits[split], f"writing {split}", unit="tile"):
                tile = read(item)
                writers[split].add(
                    tile.name,
                    tile.modalities,
                    tile.mask,
                    tile.valid,
                    tile.region,
                    tile.subregion,
                    tile.crs,
                    tile.transform,
                    **tile.attributes,
                )
                yield tile.modalities, tile.valid

        statistics = fit(written("train"), method, f"valid pixels of the {len(splits['train'])} training tiles", bands)
        if missing := [modality for modality in bands if modality not in statistics.shift]:
            raise UserError(
                f"no training tile has {_quoted(missing)}, so that its scaling is not known: divide the tiles "
                "otherwise, or leave it out"
            )
        for split in splits:
            if split != "train":
                for _ in written(split):
                    pass
            writers[split].statistics = statistics


@dataclass(frozen=True)
class Dataset:
    """The tile files of a dataset by split; `folder` holds them."""

    name: str
    folder: Path
    splits: dict[str, Path]

    def path(self, split: str) -> Path:
        """Return the file of a split.

        Raises:
            UserError: If the dataset lacks it.
        """
        if split not in self.splits:
            raise UserError(
                f"dataset {self.name!r} has no {split} split: {self.folder / split}.hdf5 is missing; "
                f"it has {', '.join(self.splits)}"
            )
        return self.splits[split]


def find_dataset(name_or_path: str | Path | None = None, root: Path = Path("tiles")) -> Dataset:
    """Return a dataset by its name under `root`, its folder, or one tile file, which is its `test` split.

    None means the only dataset under `root`.

    Raises:
        UserError: If there is none, or None was asked for and there are several; the message lists them.
    """
    found = sorted(root.iterdir()) if root.is_dir() else []
    known = {path.name: path for path in found if _splits(path) and not path.name.startswith(".")}
    if name_or_path is None:
        if not known:
            raise UserError(f"no tiles in {root}/: make some with `python prepare.py synthetic`")
        if len(known) > 1:
            raise UserError(f"several datasets in {root}/: choose one with --data: {', '.join(known)}")
        (name,) = known
        return Dataset(name, known[name], _splits(known[name]))
    if str(name_or_path) in known:
        folder = known[str(name_or_path)]
        return Dataset(folder.name, folder, _splits(folder))
    path = Path(name_or_path)
    if path.is_file():
        return Dataset(path.stem, path.parent, {"test": path})
    if _splits(path):
        return Dataset(path.resolve().name, path, _splits(path))
    choice = f"known datasets are {', '.join(known)}" if known else "make one with `python prepare.py synthetic`"
    if path.is_dir():
        raise UserError(f"{path}: expected train.hdf5, val.hdf5 or test.hdf5 in it, found none of them; {choice}")
    raise UserError(f"no dataset {str(name_or_path)!r}: no such name under {root}/, folder or tile file; {choice}")


@contextmanager
def replacing_dataset(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty sibling folder that takes the place of `folder` on success and is removed on any error.

    Raises:
        UserError: If `folder` exists and `overwrite` is False, or it holds anything but tile files.
    """
    if folder.exists():
        if not overwrite:
            raise UserError(f"{folder} exists: choose another name, or replace it with --overwrite")
        others = [path.name for path in folder.iterdir() if path.name not in {f"{split}.hdf5" for split in SPLITS}]
        if others:
            raise UserError(
                f"{folder} is not replaced: beside tile files it holds {_quoted(sorted(others))}; move that away"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-{os.getpid()}-", dir=folder.parent))
    try:
        written, former = temporary / "written", temporary / "former"
        written.mkdir()
        yield written
        if folder.exists():
            folder.rename(former)
        try:
            written.rename(folder)
        except OSError:
            if former.exists():
                former.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_orphans(folder: Path) -> None:
    """Delete the temporary folders that processes left which were killed while they were writing `folder`."""
    name = re.compile(rf"\.{re.escape(folder.name)}-(\d+)-\w+")
    for sibling in folder.parent.glob(".*"):
        match = name.fullmatch(sibling.name)
        if match and not psutil.pid_exists(int(match[1])):
            shutil.rmtree(sibling, ignore_errors=True)


def select(file: TileFile, regions: Sequence[str] | None = None) -> list[str]:
    """Return the names of the tiles of these regions, compared for equality; None or none given: all tiles.

    Raises:
        UserError: If no tile has one of the regions; the message lists the known ones.
    """
    if not regions:
        return list(file.names)
    region_by_tile = {name: file.info(name).region for name in file.names}
    known = sorted(set(region_by_tile.values()))
    unknown = [region for region in regions if region not in known]
    if unknown:
        raise UserError(f"{file.path}: no tile of region {_quoted(unknown)}; its regions are {_quoted(known)}")
    return [name for name, region in region_by_tile.items() if region in regions]


def describe_absent(file: TileFile, names: Sequence[str], modalities: Sequence[str]) -> str:
    """Say in how many of the tiles `names` modalities are absent: `sar absent in 3 of 24 tiles`; "" where none is."""
    present = [file.present(name) for name in names]
    counts = {modality: sum(modality not in one for one in present) for modality in modalities}
    return ", ".join(
        f"{modality} absent in {count} of {len(names)} tiles" for modality, count in counts.items() if count
    )


def level_note(what: str | Path, units: Mapping[str, tuple[str, str]]) -> str:
    """Return what who uses the published weights or statistics must know of unit and level of `what`, by modality."""
    surface = [
        f"`{name}`" + (f" ({level})" if level else "") for name, (unit, level) in units.items() if SURFACE in unit
    ]
    if not surface:
        return ""
    return (
        f"{what}: {', '.join(surface)} is {SURFACE}, the published data are top-of-atmosphere reflectance, which is "
        "brighter in blue and in shadow: expect worse maps, or use Sentinel-2 L1C or Landsat level 1"
    )


def region_of(name: str) -> str:
    """Return the region in a published tile's name: the letters before its first `-`, `SC2-59-84` → `SC`."""
    return "".join(character for character in name.split("-", 1)[0] if character.isalpha())


def _splits(folder: Path) -> dict[str, Path]:
    return {split: path for split in SPLITS if (path := folder / f"{split}.hdf5").is_file()}


def _modalities(group: h5py.Group) -> dict[str, h5py.Dataset]:
    return {
        key: item
        for key, item in group.items()
        if key not in RESERVED and isinstance(item, h5py.Dataset) and item.ndim == 3
    }


def _shape(group: h5py.Group) -> tuple[int, int] | None:
    arrays = (item for item in group.values() if isinstance(item, h5py.Dataset) and item.ndim >= 2)
    return next(((int(item.shape[0]), int(item.shape[1])) for item in arrays), None)


def _storage(key: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return how HDF5 stores an array of a tile; docs/performance.md has what that was chosen by.

    Arrays are in chunks, equal parts of `CHUNK` pixels at most, with all bands of their pixels: of a large tile the
    disk is asked for the patch and little else. Labels are compressed to nearly nothing, at little cost; floats are
    not: reading them would take several times as long, to save a quarter.
    """
    sides = tuple(-(-length // -(-length // CHUNK)) for length in shape[:2])
    compressed = {"compression": "gzip", "compression_opts": 1} if key in RESERVED else {}
    return {"chunks": (*sides, *shape[2:]), **compressed}


def _index(window: Window | None) -> tuple[slice, ...]:
    return window.slices if window is not None else ()


def _quoted(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _plain_name(name: str) -> str:
    """Return a class name by which spellings are compared: `Clean_ice` is `clean ice`."""
    return " ".join("".join(c if c.isalnum() else " " for c in name.casefold()).split())


def _six(values: Sequence[float]) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = (float(value) for value in values[:6])
    return a, b, c, d, e, f


def _plain(value: object) -> object:
    """Return an HDF5 attribute as JSON-able Python."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return value
