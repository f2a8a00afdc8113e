"""Weak masks: glacier where an index, a band ratio or a band passes a threshold, for scenes without outlines.

A rule is text such as `ndsi > 0.4`, `red/swir1 > 2`, `thermal < 273`, `nir/swir1 > otsu`, or several joined by `and`.

    ndsi   (green - swir1)/(green + swir1)   snow and ice: Hall et al. 1995, doi:10.1016/0034-4257(95)00137-P
    ndwi   (green - nir)/(green + nir)       open water: McFeeters 1996, doi:10.1080/01431169608948714
    ndvi   (nir - red)/(nir + red)           vegetation: Tucker 1979, doi:10.1016/0034-4257(79)90013-0

Ratios red/swir1 and nir/swir1 and their thresholds: Paul et al. 2013, doi:10.3189/2013AoG63A296. All of them find
clean ice and snow, neither debris-covered ice nor ice in shadow, and take snow beside the glacier for it: scores
against such a mask measure agreement with the rule, not with outlines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from console import UserError

INDICES = {"ndsi": ("green", "swir1"), "ndwi": ("green", "nir"), "ndvi": ("nir", "red")}
"""Name of a normalised difference → its bands."""

_DARKEST = 1e-6
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<sign>[<>]=?|/))"
)
_COMPARE = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}
_TAILS = (0.5, 99.5)  # percentiles beyond which a sample says nothing about where two kinds of ground part
_EXPECTED = "expected such as `ndsi > 0.4`, `red/swir1 > 2`, `thermal < 273`, `ndsi > otsu`, joined by `and`"


def normalised_difference(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float32]:
    """Return (first - second)/(first + second), -1 … 1; values below a millionth, and NaN, count as that."""
    a, b = _lit(first), _lit(second)
    return (a - b) / (a + b)


@dataclass(frozen=True)
class Comparison:
    """One condition on a quantity: an index of `INDICES`, a ratio `first/second`, or a band.

    `value` is the threshold, None where it is to be Otsu's.
    """

    quantity: str
    sign: str
    value: float | None

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that it takes."""
        return INDICES.get(self.quantity) or tuple(self.quantity.split("/"))

    def __str__(self) -> str:
        """Return it as text that `Rule.parse` reads."""
        return f"{self.quantity} {self.sign} {'otsu' if self.value is None else _number(self.value)}"

    def compute(self, bands: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the quantity, and where it is defined: its bands are finite, and not both 0 or less."""
        used = [np.asarray(bands[name]) for name in self.bands]
        defined = np.asarray(np.isfinite(used).all(axis=0))
        first, *others = (np.where(defined, band, 0).astype(np.float32) for band in used)
        if not others:
            return first, defined
        defined &= np.maximum(first, others[0]) > 0
        if self.quantity in INDICES:
            return normalised_difference(first, others[0]), defined
        return _lit(first) / _lit(others[0]), defined


@dataclass(frozen=True)
class Rule:
    """Glacier is where all comparisons hold."""

    comparisons: tuple[Comparison, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a rule; see the module for what there is.

        Raises:
            UserError: If it can't be read.
        """
        parts = re.split(r"\band\b", text, flags=re.IGNORECASE)
        return cls(tuple(_parse_comparison(part, text) for part in parts))

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that it takes, each once."""
        return tuple(dict.fromkeys(name for comparison in self.comparisons for name in comparison.bands))

    @property
    def resolved(self) -> bool:
        """Whether all thresholds are numbers."""
        return all(comparison.value is not None for comparison in self.comparisons)

    def __str__(self) -> str:
        """Return the rule as text in one spelling, which `parse` reads."""
        return " and ".join(map(str, self.comparisons))

    def resolve(self, samples: Mapping[str, NDArray[Any]]) -> Self:
        """Return the rule with numbers, of four digits, for the thresholds that are to be Otsu's.

        Each is the value that parts a quantity's samples into two groups of least variance (Otsu 1979,
        doi:10.1109/TSMC.1979.4310076). Undefined samples are left out; those beyond the 0.5th and 99.5th percentile
        count as these, so that a ratio to a band near 0 does not stretch the histogram.

        Args:
            samples: Band → values `(N,)` of valid pixels.

        Raises:
            UserError: If a band is missing, or a quantity has not two values to tell apart.
        """
        from skimage.filters import threshold_otsu

        found = []
        columns = self._columns(list(samples))
        for comparison in self.comparisons:
            if comparison.value is None:
                taken = {name: np.asarray(list(samples.values())[columns[name]]) for name in comparison.bands}
                values, defined = comparison.compute(taken)
                values = values[defined].astype(np.float64)
                low, high = np.percentile(values, _TAILS) if len(values) else (0.0, 0.0)
                if not low < high:
                    raise UserError(
                        f"no threshold of Otsu's for `{comparison}`: {len(values)} valid pixels have "
                        f"{'one value' if len(values) else 'no value'} of {comparison.quantity}; give a number instead"
                    )
                threshold = threshold_otsu(np.clip(values, low, high))
                comparison = replace(comparison, value=float(f"{threshold:.4g}"))
            found.append(comparison)
        return replace(self, comparisons=tuple(found))

    def mask(self, values: NDArray[Any], band_names: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return where the rule holds and where it is defined, bool `(h, w)` each.

        It is defined where all of its quantities are: their bands are finite, and not both 0 or less in an index or a
        ratio. Where it is not, it does not hold.

        Args:
            values: Bands `(h, w, C)`, NaN where there is no value.
            band_names: Names of the C bands; capitals do not matter.

        Raises:
            UserError: If a band is missing.
            ValueError: If a threshold is Otsu's still, see `resolve`.
        """
        columns = self._columns(band_names)
        bands = {name: values[..., column] for name, column in columns.items()}
        holds = np.ones(values.shape[:-1], bool)
        defined = np.ones(values.shape[:-1], bool)
        for comparison in self.comparisons:
            if comparison.value is None:
                raise ValueError(f"the threshold of `{comparison}` is not known yet: resolve the rule first")
            quantity, known = comparison.compute(bands)
            holds &= _COMPARE[comparison.sign](quantity, np.float32(comparison.value))
            defined &= known
        return holds & defined, defined

    def _columns(self, band_names: Sequence[str]) -> dict[str, int]:
        """Return where each band that the rule takes stands in `band_names`: as it is written, or but for capitals."""
        places = {name.casefold(): index for index, name in reversed(list(enumerate(band_names)))}
        places |= {name: index for index, name in enumerate(band_names)}
        missing = [name for name in self.bands if name not in places and name.casefold() not in places]
        if missing:
            raise UserError(
                f"the rule `{self}` needs the bands {', '.join(self.bands)}, there is no {', '.join(missing)}; the "
                f"bands are {', '.join(band_names) or 'none'}; known indices are {_known_indices()}"
            )
        return {name: places[name] if name in places else places[name.casefold()] for name in self.bands}


def _parse_comparison(part: str, whole: str) -> Comparison:
    tokens: list[tuple[str, str]] = []
    position, part = 0, part.strip()
    while position < len(part):
        found = _TOKEN.match(part, position)
        if found is None:
            raise _unreadable(whole, f"`{part[position:].strip()}` is not understood")
        tokens.append((str(found.lastgroup), found.group(str(found.lastgroup))))
        position = found.end()
    words = [word for _, word in tokens]
    shape = " ".join("/" if word == "/" else kind for kind, word in tokens)
    if shape not in ("name sign number", "name sign name", "name / name sign number", "name / name sign name"):
        raise _unreadable(whole, f"`{part}` is not a comparison" if part else "a comparison is missing")
    *quantity, sign, value = words
    if tokens[-1][0] == "name" and value.lower() != "otsu":
        raise _unreadable(whole, f"`{value}` is not a threshold, which is a number or `otsu`")
    if value.lower() != "otsu" and not math.isfinite(float(value)):
        raise _unreadable(whole, f"`{value}` is too large a number")
    names = [name.lower() if name.lower() in INDICES else name for name in quantity[::2]]
    if len(names) == 2 and (any(name in INDICES for name in names) or names[0] == names[1]):
        raise _unreadable(whole, f"`{'/'.join(names)}` is not a ratio of two bands")
    return Comparison("/".join(names), sign, None if tokens[-1][0] == "name" else float(value))


def _unreadable(whole: str, why: str) -> UserError:
    return UserError(
        f"the rule `{whole}` for masks can't be read: {why}; {_EXPECTED}; known indices are {_known_indices()}, other "
        "names are bands"
    )


def _known_indices() -> str:
    return ", ".join(f"{name} ({', '.join(bands)})" for name, bands in INDICES.items())


def _lit(band: NDArray[Any]) -> NDArray[np.float32]:
    return np.fmax(np.asarray(band, np.float32), np.float32(_DARKEST))


def _number(value: float) -> str:
    """Return the shortest text that is this number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
