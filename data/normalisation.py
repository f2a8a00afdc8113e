"""Scaling of raw values for a network: fitted once on the training split, stored, applied everywhere."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from console import UserError

Method = Literal["standardise", "minmax", "robust-standardise", "robust-minmax", "published"]

PUBLISHED_STATISTICS = Path(__file__).parent.parent / "recipes" / "published_statistics.json"

SAMPLE = 2**17
"""Values of a band from which percentiles are taken: those of bands with no more values are exact."""

_QUARTILES = 25.0, 75.0
_TAILS = 0.5, 99.5
_DEVIATIONS = {_QUARTILES: 1.349, _TAILS: 5.152}  # that a normal distribution has between these percentiles


@dataclass(frozen=True)
class Statistics:
    """How values are scaled: `(x - shift) / scale`, one pair per band of each modality.

    - `standardise`: shift = mean, scale = standard deviation (population).
    - `minmax`: shift = minimum, scale = maximum - minimum.
    - `robust-standardise`: shift = median, scale = interquartile range / 1.349, which is the standard deviation of
      normally distributed values whatever the outliers, up to a quarter of all, are.
    - `robust-minmax`: as `minmax` with the 0.5th and 99.5th percentile: outliers are beyond 0 and 1, not cut off.
    - `published`: the fixed minima and maxima of the published datasets, and `minmax` for other modalities.

    `fitted_on` says in words what the numbers were fitted on. `applied` is True in a tile file whose stored values
    have been scaled with them already.
    """

    method: Method
    shift: dict[str, tuple[float, ...]]
    scale: dict[str, tuple[float, ...]]
    fitted_on: str
    applied: bool = False

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        if self.method not in get_args(Method):
            raise ValueError(f"method is one of {', '.join(get_args(Method))}, got {self.method!r}")
        lengths = [{name: len(values) for name, values in pairs.items()} for pairs in (self.shift, self.scale)]
        if lengths[0] != lengths[1]:
            raise ValueError(f"shift and scale have differing modalities or band counts: {lengths[0]}, {lengths[1]}")
        for name, values in self.scale.items():
            if not all(np.isfinite(value) and value > 0 for value in values):
                raise ValueError(f"scale of {name!r} must be positive and finite, got {values}")

    def apply(self, modality: str, array: NDArray[Any]) -> NDArray[np.float32]:
        """Return `array` `(…, C)` scaled, as float32; NaN and infinite values become 0.

        With `applied` the values are taken as scaled already and only NaN is replaced.

        Raises:
            UserError: If the modality is unknown or has another number of bands.
        """
        shift, scale = self._of(modality)
        if array.shape[-1] != len(shift):
            raise UserError(
                f"modality {modality!r} has {array.shape[-1]} bands, its statistics (fitted on "
                f"{self.fitted_on}) have {len(shift)}: use data with the same bands"
            )
        if self.applied:
            scaled = np.array(array, dtype=np.float32)
        else:
            scaled = np.subtract(array, np.asarray(shift, np.float32), dtype=np.float32)
            scaled /= np.asarray(scale, np.float32)
        return np.nan_to_num(scaled, copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    def select(self, modalities: Sequence[str]) -> Statistics:
        """Return the statistics of these modalities only, in this order.

        Raises:
            UserError: If one of them is unknown.
        """
        pairs = {name: self._of(name) for name in modalities}
        return Statistics(
            self.method,
            {name: shift for name, (shift, _) in pairs.items()},
            {name: scale for name, (_, scale) in pairs.items()},
            self.fitted_on,
            self.applied,
        )

    def take(self, places: Mapping[str, Sequence[int]]) -> Statistics:
        """Return the statistics with the bands at `places` only, in this order, of the modalities that it names."""
        shift, scale = (
            {name: tuple(values[i] for i in places.get(name, range(len(values)))) for name, values in pairs.items()}
            for pairs in (self.shift, self.scale)
        )
        return Statistics(self.method, shift, scale, self.fitted_on, self.applied)

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as a JSON-able dict that `from_json` reads back exactly."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, stored: str | Mapping[str, Any]) -> Statistics:
        """Read what `to_json` returned, as a dict or as JSON text.

        Raises:
            ValueError: If keys are missing or unknown, or the numbers do not fit together.
        """
        fields = dict(json.loads(stored) if isinstance(stored, str) else stored)
        try:
            for key in ("shift", "scale"):
                fields[key] = {name: tuple(float(value) for value in values) for name, values in fields[key].items()}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the statistics of a tile file: {error}") from error

    def _of(self, modality: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if modality not in self.shift:
            raise UserError(f"no statistics for modality {modality!r}; there are some for {', '.join(self.shift)}")
        return self.shift[modality], self.scale[modality]


class _Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of each band, merged sample by sample.

    Merging after Chan, Golub and LeVeque 1979 (doi:10.1007/978-3-642-51461-6_3): one pass, no cancellation.
    """

    def __init__(self, bands: int) -> None:
        self.count = np.zeros(bands)
        self.mean = np.zeros(bands)
        self.squares = np.zeros(bands)
        self.minimum = np.full(bands, np.inf)
        self.maximum = np.full(bands, -np.inf)

    def add(self, pixels: NDArray[np.float64]) -> None:
        """Merge `pixels` `(N, C)`; values that are not finite are left out, band by band."""
        finite = np.isfinite(pixels)
        count = finite.sum(axis=0)
        mean = np.where(finite, pixels, 0.0).sum(axis=0) / np.maximum(count, 1)
        squares = np.where(finite, pixels - mean, 0.0)
        squares = (squares * squares).sum(axis=0)
        total = self.count + count
        delta = mean - self.mean
        share = count / np.maximum(total, 1)
        self.squares += squares + delta * delta * self.count * share
        self.mean += delta * share
        self.count = total
        self.minimum = np.minimum(self.minimum, np.where(finite, pixels, np.inf).min(axis=0, initial=np.inf))
        self.maximum = np.maximum(self.maximum, np.where(finite, pixels, -np.inf).max(axis=0, initial=-np.inf))


class _Percentiles:
    """A sample of each band's values, the same whatever the order of what is added, to take percentiles from.

    Every value gets a random key, and each band keeps the values with the `SAMPLE` smallest: a uniform sample without
    replacement (bottom-k, Cohen and Kaplan 2007, doi:10.1145/1281100.1281133). The keys are drawn by what is added
    itself, and by how often it was added before, so that neither order nor copies of a tile matter.

    The p-th percentile of the sample is one of all values at a percentile p ± e, with a standard error of e of
    √(p·(100-p) / SAMPLE): 0.12 for the quartiles, 0.02 for the 0.5th. That holds for any distribution. Sketches with an
    error relative to the value itself (DDSketch) would lose the spread of elevations of 5000 ± 50 m.
    """

    def __init__(self, bands: int) -> None:
        self.values = [np.empty(0) for _ in range(bands)]
        self._keys = [np.empty(0) for _ in range(bands)]
        self._added: Counter[bytes] = Counter()

    def add(self, pixels: NDArray[np.float64]) -> None:
        """Add `pixels` `(N, C)`; values that are not finite are left out, band by band."""
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
        keys = np.random.default_rng([int.from_bytes(digest), self._added[digest]]).random(len(pixels))
        self._added[digest] += 1
        for band, (values, kept) in enumerate(zip(self.values, self._keys, strict=True)):
            wanted = np.isfinite(pixels[:, band])
            if len(kept) == SAMPLE:
                wanted &= keys < kept[-1]
            values, kept = np.append(values, pixels[wanted, band]), np.append(kept, keys[wanted])
            if len(kept) >= SAMPLE:
                smallest = np.argpartition(kept, SAMPLE - 1)[:SAMPLE]  # the largest of them last
                values, kept = values[smallest], kept[smallest]
            self.values[band], self._keys[band] = values, kept

    def at(self, percentiles: tuple[float, float]) -> NDArray[np.float64]:
        """Return two percentiles of each band, (2, C)."""
        return np.stack([np.percentile(values, percentiles) for values in self.values], axis=-1)


def fit(
    samples: Iterable[tuple[Mapping[str, NDArray[Any]], NDArray[Any]]],
    method: Method = "standardise",
    fitted_on: str = "valid pixels of the training split",
    bands: Mapping[str, Sequence[str]] | None = None,
) -> Statistics:
    """Fit statistics in one pass over `samples`: pairs of modalities `(H, W, C)` and `valid` `(H, W)`.

    Only pixels that are valid count, and of them only finite values: a modality that is absent from a sample, NaN or
    left out, takes no part there. Sums are float64. A constant band gets scale 1, so that it becomes 0. Memory does not
    grow with the pixels: the robust methods keep 2 MiB a band, and have percentiles that are exact up to `SAMPLE`
    values a band and right to a fraction of a percentile beyond. Where the interquartile range is 0, because most
    values are the same, they take the range between the tails for it, and then what the method that is not robust does.

    Args:
        samples: Tiles, one by one.
        method: See `Statistics`.
        fitted_on: What the tiles are, in words.
        bands: Names of the bands of each modality in their order, for the method `published`.

    Raises:
        UserError: If there is no sample, a band has no valid value at all, or `published` has nothing for `bands`.
        ValueError: If the number of bands of a modality changes.
    """
    known = published_for(bands or {}) if method == "published" else None
    robust = method.startswith("robust-")
    moments: dict[str, _Moments] = {}
    percentiles: dict[str, _Percentiles] = {}
    for modalities, valid in samples:
        seen = np.asarray(valid, dtype=bool)
        for name, array in modalities.items():
            pixels = np.asarray(array)[seen].astype(np.float64)
            merged = moments.setdefault(name, _Moments(pixels.shape[-1]))
            if len(merged.count) != pixels.shape[-1]:
                raise ValueError(f"modality {name!r} has {pixels.shape[-1]} bands here, {len(merged.count)} before")
            merged.add(pixels)
            if robust:
                percentiles.setdefault(name, _Percentiles(pixels.shape[-1])).add(pixels)
    if not moments:
        raise UserError("statistics need at least one training tile, got none")
    shift: dict[str, tuple[float, ...]] = {}
    scale: dict[str, tuple[float, ...]] = {}
    for name, merged in moments.items():
        empty = [str(index + 1) for index in np.flatnonzero(merged.count == 0)]
        if empty:
            raise UserError(
                f"modality {name!r}, band {', '.join(empty)}: no valid value in the whole training split; "
                "check its nodata value, or leave the band out"
            )
        if known is not None and name in known.shift:
            shift[name], scale[name] = known.shift[name], known.scale[name]
            continue
        low, spread = _level_and_spread(merged, percentiles.get(name), method)
        # Rounding makes the deviation of a constant band tiny instead of 0; its range is exactly 0.
        constant = merged.minimum == merged.maximum
        shift[name] = tuple(float(value) for value in low)
        scale[name] = tuple(float(value) for value in np.where(constant, 1.0, spread))
    if known is not None:
        own = [name for name in shift if name not in known.shift]
        fitted_on = (
            f"mixed: {', '.join(known.shift)} as {known.fitted_on}; {', '.join(own)}: {fitted_on}"
            if own
            else (known.fitted_on)
        )
    return Statistics(method, shift, scale, fitted_on)


def _level_and_spread(
    moments: _Moments, percentiles: _Percentiles | None, method: Method
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each band is shifted and scaled by, (C,) each; a spread of 0 is that of a constant band."""
    least, extent = moments.minimum, moments.maximum - moments.minimum
    deviation = np.sqrt(moments.squares / moments.count)
    if percentiles is None:
        return (moments.mean, deviation) if method == "standardise" else (least, extent)
    low, high = percentiles.at(_TAILS)
    if method == "robust-minmax":
        same = high == low
        return np.where(same, least, low), np.where(same, extent, high - low)
    first, third = percentiles.at(_QUARTILES)
    median = percentiles.at((50.0, 50.0))[0]
    between = np.where(third > first, (third - first) / _DEVIATIONS[_QUARTILES], (high - low) / _DEVIATIONS[_TAILS])
    return median, np.where(between > 0, between, deviation)


def scaled(statistics: Statistics | None, modality: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Return `array` `(…, C)` of `modality` as networks take it: scaled, or as it is without statistics.

    Values that are not finite become 0, so that this is not for a modality that is absent.
    """
    if statistics is not None:
        return statistics.apply(modality, array)
    return np.nan_to_num(np.asarray(array, np.float32), posinf=0.0, neginf=0.0)


def is_absent(array: NDArray[np.floating]) -> bool:
    """Return whether a modality `(H, W, C)` is absent: NaN everywhere."""
    return bool(np.isnan(array.flat[0]) and np.isnan(array).all())


def published(bands: Mapping[str, Sequence[str]] | None = None) -> Statistics:
    """Return the fixed minima and maxima that the published GlaViTU datasets of 2025 were scaled with.

    Args:
        bands: Modality → names of its bands, where it is certain published bands in a certain order; a modality with a
            band of another name is scaled whole.
    """
    tables = _published_tables()
    places = {
        name: [tables[name]["bands"].index(band) for band in names]
        for name, names in (bands or {}).items()
        if name in tables and set(names) <= set(tables[name]["bands"])
    }
    return Statistics(
        "minmax",
        {name: tuple(map(float, table["min"])) for name, table in tables.items()},
        {
            name: tuple(high - low for low, high in zip(table["min"], table["max"], strict=True))
            for name, table in tables.items()
        },
        "the published GlaViTU datasets (2025)",
    ).take(places)


def published_for(bands: Mapping[str, Sequence[str]]) -> Statistics:
    """Return the published statistics of those of the modalities that have some, for their bands in their order.

    Raises:
        UserError: If a modality of a published name has bands of other names, or none has a published name.
    """
    tables = published_bands()
    listed = "; ".join(f"{name}: {', '.join(names)}" for name, names in tables.items())
    problems = [
        f"`{name}` has the bands {', '.join(names)}, the published datasets' has {', '.join(tables[name])}"
        for name, names in bands.items()
        if name in tables and not set(names) <= set(tables[name])
    ]
    if problems:
        raise UserError(
            f"published statistics: {'; '.join(problems)}: name the bands as those that they are, or fit statistics"
        )
    known = [name for name in bands if name in tables]
    if not known:
        raise UserError(
            f"published statistics: there are none for {', '.join(bands) or 'modalities without names'}, only for "
            f"{listed}: name modalities and bands as those that they are, or fit statistics"
        )
    return published(bands).select(known)


def published_bands() -> dict[str, list[str]]:
    """Return the band names of the modalities of the published datasets, as far as they are documented."""
    return {name: list(table["bands"]) for name, table in _published_tables().items()}


def _published_tables() -> dict[str, Any]:
    tables = json.loads(PUBLISHED_STATISTICS.read_text(encoding="utf-8"))
    return {name: table for name, table in tables.items() if not name.startswith("_")}
