"""One pass over the tile files of a dataset: what is in every tile, and a sample of its pixels.

One tile is in memory at a time; what is kept is some numbers a tile and at most `SAMPLE` pixels a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from console import UserError, progress
from data.normalisation import Statistics
from data.tiles import IGNORE, ClassInfo, Dataset, TileFile, TileInfo
from data.windows import Window

SAMPLE = 60_000
"""Pixels that are kept of a split, at most."""

FILLS = (0.0, 255.0, 65535.0, -1.0, -9999.0, -32768.0, -99999.0)
"""Values that rasters often have where there is nothing, besides NaN."""

_LEAST_OF_A_TILE = 20
_WINDOW = 256  # pixels: sides of the windows in which edges of the mask are counted


@dataclass(frozen=True, eq=False)
class BandFacts:
    """A band of a tile or of a split at valid pixels: how many finite values, the least and the largest of them.

    `at_low` and `at_high` count the pixels that have these two values.
    """

    count: int
    low: float
    high: float
    at_low: int
    at_high: int

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> BandFacts:
        """Return the facts of finite `values` `(N,)`."""
        if not len(values):
            return cls(0, np.inf, -np.inf, 0, 0)
        low, high = values.min(), values.max()
        return cls(len(values), float(low), float(high), int((values == low).sum()), int((values == high).sum()))

    def merged(self, other: BandFacts) -> BandFacts:
        """Return the facts of both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return BandFacts(
            self.count + other.count,
            low,
            high,
            self.at_low * (self.low == low) + other.at_low * (other.low == low),
            self.at_high * (self.high == high) + other.at_high * (other.high == high),
        )


@dataclass(frozen=True, eq=False)
class TileFacts:
    """What is in a tile.

    `valid` counts its valid pixels, `counts` (K,) those of each class among them and `ignored` those without a class.
    `absent` are the modalities of the file that it lacks. `gaps` are the valid pixels at which some, `infinite` those
    at which any band of a modality is not finite, `filled` those at which all its bands have one value of `FILLS`.
    `glacier` counts the mask's glacier pixels, seen or not; `unseen_glacier` those of them without a value, by
    modality, and of not valid ones under "". `digest` is of its pixels. `windows` are those with edges of the glacier,
    and how many; `problems` say in words what can't be used.
    """

    info: TileInfo
    pixels: int
    valid: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    absent: tuple[str, ...] = ()
    bands: dict[str, tuple[BandFacts, ...]] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    infinite: dict[str, int] = field(default_factory=dict)
    filled: dict[str, tuple[float, int]] = field(default_factory=dict)
    glacier: int = 0
    unseen_glacier: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    windows: tuple[tuple[Window, int], ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SplitFacts:
    """What is in a tile file; `sample` has `(N, C)` values of each modality, all of the same N valid pixels.

    `sample_ids` are their class ids (`IGNORE`: none), `sample_tiles` their places in `tiles`.
    """

    split: str
    path: Path
    size: int
    tiles: tuple[TileFacts, ...]
    classes: tuple[ClassInfo, ...]
    bands: dict[str, list[str]]
    statistics: Statistics | None
    provenance: Mapping[str, Any]
    command: str
    sample: dict[str, NDArray[np.float32]]
    sample_ids: NDArray[np.uint8]
    sample_tiles: NDArray[np.int64]

    @cached_property
    def file(self) -> TileFile:
        """The tile file, to read more of it; opened when something is read, once."""
        return TileFile(self.path)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Valid pixels of each class, (K,)."""
        return np.sum([tile.counts for tile in self.tiles if len(tile.counts)], axis=0) + np.zeros(
            len(self.classes), np.int64
        )

    @property
    def pixels(self) -> int:
        """Pixels of all tiles."""
        return sum(tile.pixels for tile in self.tiles)

    @property
    def valid(self) -> int:
        """Valid pixels of all tiles."""
        return sum(tile.valid for tile in self.tiles)

    @cached_property
    def band_facts(self) -> dict[str, list[BandFacts]]:
        """The facts of each band over all tiles, by modality."""
        merged: dict[str, list[BandFacts]] = {}
        for modality, names in self.bands.items():
            facts = [BandFacts.of(np.zeros(0, np.float32))] * len(names)
            for tile in self.tiles:
                if modality in tile.bands:
                    facts = [one.merged(other) for one, other in zip(facts, tile.bands[modality], strict=True)]
            merged[modality] = facts
        return merged

    @property
    def glacier_ids(self) -> list[int]:
        """Ids of the classes that are glacier."""
        return [index for index, info in enumerate(self.classes) if info.glacier]


@dataclass(frozen=True, eq=False)
class Survey:
    """What is in a dataset, by split."""

    name: str
    splits: tuple[SplitFacts, ...]

    def tiles(self) -> Iterator[tuple[SplitFacts, TileFacts]]:
        """Yield every tile with its split."""
        for split in self.splits:
            for tile in split.tiles:
                yield split, tile

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the inputs came from, of the first split that says it."""
        return next((split.provenance for split in self.splits if split.provenance), {})


def survey(dataset: Dataset) -> Survey:
    """Read all tile files of a dataset once.

    Raises:
        UserError: If a file can't be read.
    """
    return Survey(dataset.name, tuple(_survey_split(split, path) for split, path in dataset.splits.items()))


def _read(file: TileFile, name: str, modality: str) -> NDArray[np.float32] | None:
    """Return a modality of a tile; None where the tile lacks it."""
    try:
        values = file.read(name, [modality])[modality]
    except UserError:
        return None
    # What a tile lacks may be read as NaN.
    return values if np.isfinite(values).any() else None


def _survey_split(split: str, path: Path) -> SplitFacts:
    with TileFile(path) as file:
        names, bands, classes = file.names, file.bands, file.classes
        share = max(_LEAST_OF_A_TILE, SAMPLE // len(names))
        rng = np.random.default_rng(0)
        tiles: list[TileFacts] = []
        samples: list[dict[str, NDArray[np.float32]]] = []
        ids: list[NDArray[np.uint8]] = []
        numbers: list[NDArray[np.int64]] = []
        for number, name in enumerate(progress(names, f"reading {split}", unit="tile")):
            facts, sample, sample_ids = _survey_tile(file, name, bands, classes, share, rng)
            tiles.append(facts)
            if len(sample_ids):
                samples.append(sample)
                ids.append(sample_ids)
                numbers.append(np.full(len(sample_ids), number, np.int64))
        return SplitFacts(
            split,
            path,
            path.stat().st_size,
            tuple(tiles),
            classes,
            {modality: list(names) for modality, names in bands.items()},
            file.statistics,
            file.provenance,
            file.command,
            {
                modality: np.concatenate(
                    [sample[modality] for sample in samples] or [np.zeros((0, len(names)), np.float32)]
                )
                for modality, names in bands.items()
            },
            np.concatenate(ids or [np.zeros(0, np.uint8)]),
            np.concatenate(numbers or [np.zeros(0, np.int64)]),
        )


def _survey_tile(
    file: TileFile,
    name: str,
    bands: Mapping[str, list[str]],
    classes: tuple[ClassInfo, ...],
    share: int,
    rng: np.random.Generator,
) -> tuple[TileFacts, dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    info = file.info(name)
    read = {modality: _read(file, name, modality) for modality in bands}
    arrays = {modality: array for modality, array in read.items() if array is not None}
    mask, valid = file.mask(name), file.valid(name)
    problems = list(_problems(info, arrays, mask, valid, bands, classes))
    absent = tuple(modality for modality in bands if modality not in arrays)
    if problems:
        return TileFacts(info, mask.size, absent=absent, problems=tuple(problems)), {}, np.zeros(0, np.uint8)

    digest = hashlib.blake2b(digest_size=16)
    for array in (*arrays.values(), mask):
        digest.update(np.ascontiguousarray(array).data)
    glacier = np.isin(mask, [index for index, entry in enumerate(classes) if entry.glacier])
    # Beyond its padding a tile shows nothing, whatever the padding holds.
    inside = np.zeros(mask.shape, bool)
    inside[info.interior()] = True
    valid &= inside
    facts: dict[str, Any] = {"bands": {}, "gaps": {}, "infinite": {}, "filled": {}}
    unseen = {"": int((glacier & inside & ~valid).sum())}
    for modality, array in arrays.items():
        seen = array[valid]
        columns = np.ascontiguousarray(seen.T)
        finite = np.isfinite(columns)
        whole = bool(finite.all())
        facts["bands"][modality] = tuple(
            BandFacts.of(band if whole else band[known]) for band, known in zip(columns, finite, strict=True)
        )
        facts["gaps"][modality] = 0 if whole else int((finite.any(axis=0) & ~finite.all(axis=0)).sum())
        facts["infinite"][modality] = 0 if whole else int(np.isinf(columns).any(axis=0).sum())
        facts["filled"][modality] = _fill(columns)
        unseen[modality] = 0 if whole else int((glacier[valid] & ~finite.any(axis=0)).sum())
    labels = np.where(valid, mask, np.uint8(IGNORE))
    places = rng.permutation(np.flatnonzero(valid))[:share]
    sample = {
        modality: arrays[modality].reshape(mask.size, -1)[places]
        if modality in arrays
        else np.full((len(places), len(names)), np.nan, np.float32)
        for modality, names in bands.items()
    }
    tile = TileFacts(
        info,
        int(inside.sum()),
        int(valid.sum()),
        np.bincount(labels.ravel(), minlength=IGNORE + 1)[: len(classes)].astype(np.int64),
        int((valid & (mask == IGNORE)).sum()),
        absent,
        glacier=int((glacier & inside).sum()),
        unseen_glacier=unseen,
        digest=digest.hexdigest(),
        windows=tuple(_windows(glacier, valid & (mask != IGNORE))),
        **facts,
    )
    return tile, sample, mask.ravel()[places]


def _problems(
    info: TileInfo,
    arrays: Mapping[str, NDArray[np.float32]],
    mask: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    bands: Mapping[str, list[str]],
    classes: tuple[ClassInfo, ...],
) -> Iterator[str]:
    sizes = {**{name: array.shape[:2] for name, array in arrays.items()}, "mask": mask.shape, "valid": valid.shape}
    if len(set(sizes.values())) > 1:
        yield "sizes differ: " + ", ".join(f"{key} {size[0]}×{size[1]}" for key, size in sizes.items())
    for modality, array in arrays.items():
        if array.shape[-1] != len(bands[modality]):
            yield f"{modality} has {array.shape[-1]} bands, in other tiles {len(bands[modality])}"
    unknown = sorted({int(value) for value in np.unique(mask)} - {*range(len(classes)), IGNORE})
    if unknown:
        yield f"its mask has class {', '.join(map(str, unknown))}, known are 0 to {len(classes) - 1} and 255"
    if not arrays:
        yield "it has no modality"
    try:
        info.interior()
    except UserError as error:
        yield str(error)


def _fill(columns: NDArray[np.float32]) -> tuple[float, int]:
    """Return which of `FILLS` most pixels of `(C, N)` have in all bands, and how many; one band shows nothing."""
    if len(columns) < 2:
        return 0.0, 0
    same = (columns[1:] == columns[0]).all(axis=0)
    values, counts = np.unique(columns[0][same & np.isin(columns[0], FILLS)], return_counts=True)
    return (float(values[counts.argmax()]), int(counts.max())) if len(values) else (0.0, 0)


def _windows(glacier: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> Iterator[tuple[Window, int]]:
    height, width = glacier.shape
    edge = np.zeros(glacier.shape, bool)
    edge[1:] = (glacier[1:] != glacier[:-1]) & labelled[1:] & labelled[:-1]
    edge[:, 1:] |= (glacier[:, 1:] != glacier[:, :-1]) & labelled[:, 1:] & labelled[:, :-1]
    for top in range(0, height, _WINDOW):
        for left in range(0, width, _WINDOW):
            window = Window(top, left, min(_WINDOW, height - top), min(_WINDOW, width - left))
            count = int(edge[window.slices].sum())
            if count:
                yield window, count
