"""Scaling of raw values for a network: fitted once on the training split, stored, applied everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from console import UserError

Method = Literal["standardise", "minmax"]

PUBLISHED_STATISTICS = Path(__file__).parent.parent / "recipes" / "published_statistics.json"


@dataclass(frozen=True)
class Statistics:
    """How values are scaled: `(x - shift) / scale`, one pair per band of each modality.

    `standardise`: shift = mean, scale = standard deviation (population). `minmax`: shift = minimum, scale =
    maximum - minimum. `fitted_on` says in words what the numbers were fitted on. `applied` is True in a tile
    file whose stored values have been scaled with them already.
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


def fit(
    samples: Iterable[tuple[Mapping[str, NDArray[Any]], NDArray[Any]]],
    method: Method = "standardise",
    fitted_on: str = "valid pixels of the training split",
) -> Statistics:
    """Fit statistics in one pass over `samples`: pairs of modalities `(H, W, C)` and `valid` `(H, W)`.

    Only pixels that are valid count, and of them only finite values: a modality that is absent from a sample, NaN or
    left out, takes no part there. Sums are float64. A constant band gets scale 1, so that it becomes 0.

    Raises:
        UserError: If there is no sample, or a band has no valid value at all.
        ValueError: If the number of bands of a modality changes.
    """
    moments: dict[str, _Moments] = {}
    for modalities, valid in samples:
        seen = np.asarray(valid, dtype=bool)
        for name, array in modalities.items():
            pixels = np.asarray(array)[seen].astype(np.float64)
            bands = moments.setdefault(name, _Moments(pixels.shape[-1]))
            if len(bands.count) != pixels.shape[-1]:
                raise ValueError(f"modality {name!r} has {pixels.shape[-1]} bands here, {len(bands.count)} before")
            bands.add(pixels)
    if not moments:
        raise UserError("statistics need at least one training tile, got none")
    shift: dict[str, tuple[float, ...]] = {}
    scale: dict[str, tuple[float, ...]] = {}
    for name, bands in moments.items():
        empty = [str(index + 1) for index in np.flatnonzero(bands.count == 0)]
        if empty:
            raise UserError(
                f"modality {name!r}, band {', '.join(empty)}: no valid value in the whole training split; "
                "check its nodata value, or leave the band out"
            )
        # Rounding makes the deviation of a constant band tiny instead of 0; its range is exactly 0.
        constant = bands.minimum == bands.maximum
        if method == "minmax":
            low, spread = bands.minimum, bands.maximum - bands.minimum
        else:
            low, spread = bands.mean, np.sqrt(bands.squares / bands.count)
        shift[name] = tuple(float(value) for value in low)
        scale[name] = tuple(float(value) for value in np.where(constant, 1.0, spread))
    return Statistics(method, shift, scale, fitted_on)


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


def published_bands() -> dict[str, list[str]]:
    """Return the band names of the modalities of the published datasets, as far as they are documented."""
    return {name: list(table["bands"]) for name, table in _published_tables().items()}


def _published_tables() -> dict[str, Any]:
    tables = json.loads(PUBLISHED_STATISTICS.read_text(encoding="utf-8"))
    return {name: table for name, table in tables.items() if not name.startswith("_")}
