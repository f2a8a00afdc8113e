"""Several acquisitions as one: the median, or the latest, of the clear pixels of a month, a season or a year."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from console import UserError
from data.acquisitions import Acquisition, read_acquisition
from data.grids import Grid, Smooth

Period = Literal["month", "season", "year", "all"]
Method = Literal["median", "latest"]

_SEASONS = ("DJF", "MAM", "JJA", "SON")


def periods(acquisitions: Iterable[Acquisition], period: Period) -> dict[str, list[Acquisition]]:
    """Return label → the acquisitions of that period, periods and acquisitions oldest first.

    Labels are `2019-08`, `2019-JJA`, `2019`, and `all`. Seasons are those of meteorology; a December belongs to the
    winter (DJF) of the next year.

    Raises:
        UserError: If acquisitions have no date where they need one, or differ in bands or unit.
    """
    ordered = sorted(acquisitions, key=lambda acquisition: acquisition.when)
    _check(ordered, dated=period != "all")
    groups: dict[str, list[Acquisition]] = {}
    for acquisition in ordered:
        label = "all" if acquisition.date is None else label_of(acquisition.date, period)
        groups.setdefault(label, []).append(acquisition)
    return groups


def compose(
    reads: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]], method: Method = "median"
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Make one image of several, pixel by pixel, of the clear pixels that have a value.

    `median` is that of each band by itself; of an even number it is the mean of the two in the middle. `latest` takes
    all bands of a pixel from one acquisition: of those with the most bands there, the latest.

    Args:
        reads: Values `(h, w, C)`, NaN where there are none, and where the ground is seen, bool `(h, w)`: as
            `read_acquisition` returns them. Oldest first where the latest is asked for.
        method: What becomes of several values.

    Returns:
        Values `(h, w, C)`, NaN where no acquisition has one, and the number of acquisitions that are clear and have a
        value in any band, uint16 `(h, w)`.

    Raises:
        ValueError: If there is nothing to compose, or the shapes differ.
    """
    return _median(reads) if method == "median" else _latest(reads)


def read_composite(
    acquisitions: Sequence[Acquisition],
    target: Grid,
    method: Method = "median",
    smooth: Smooth = "bilinear",
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Read acquisitions on a grid and compose them, whatever their order; see `compose`.

    Raises:
        UserError: If a file can't be read, acquisitions differ in bands or unit, or the latest is asked for and one has
            no date.
    """
    ordered = sorted(acquisitions, key=lambda acquisition: acquisition.when)
    _check(ordered, dated=method == "latest")
    return compose((read_acquisition(acquisition, target, smooth) for acquisition in ordered), method)


def _check(acquisitions: Sequence[Acquisition], dated: bool) -> None:
    undated = [acquisition.name for acquisition in acquisitions if acquisition.date is None]
    if dated and undated:
        raise UserError(
            f"no date of {', '.join(undated)}, which a period and the latest need; give the date, or compose "
            "the median of all"
        )
    for acquisition in acquisitions[1:]:
        first = acquisitions[0]
        for what, received, expected in (
            ("bands", ", ".join(acquisition.bands), ", ".join(first.bands)),
            ("unit", acquisition.unit, first.unit),
        ):
            if received != expected:
                raise UserError(
                    f"{acquisition.name}: {what} {received}, expected {expected} as in {first.name}, to become one "
                    "image; take products of one level"
                )


def label_of(date: datetime.date, period: Period) -> str:
    """Return the label of the period that a date lies in."""
    if period == "all":
        return "all"
    if period == "month":
        return f"{date:%Y-%m}"
    if period == "season":
        return f"{date.year + (date.month == 12)}-{_SEASONS[date.month % 12 // 3]}"
    return f"{date.year}"


def _median(
    reads: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]],
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    stack = np.stack([np.where(clear[..., None], values, np.float32(np.nan)) for values, clear in reads])
    count = (~np.isnan(stack)).any(axis=-1).sum(axis=0).astype(np.uint16)
    stack.sort(axis=0)  # NaN comes last; three times as fast as numpy.nanmedian
    known = (~np.isnan(stack)).sum(axis=0)[None]
    low, high = (
        np.take_along_axis(stack, index, 0)[0]
        for index in (np.maximum(known - 1, 0) // 2, np.minimum(known // 2, len(stack) - 1))
    )
    return (low + high) / np.float32(2), count


def _latest(
    reads: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]],
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    result: NDArray[np.float32] | None = None
    for values, clear in reads:
        bands = np.where(clear, (~np.isnan(values)).sum(axis=-1), 0)
        if result is None:
            result = np.full(values.shape, np.nan, np.float32)
            held = np.zeros(clear.shape, bands.dtype)
            count = np.zeros(clear.shape, np.uint16)
        elif values.shape != result.shape:
            raise ValueError(f"shapes {result.shape} and {values.shape} differ")
        better = (bands > 0) & (bands >= held)
        result[better] = values[better]
        held = np.where(better, bands, held)
        count += bands > 0
    if result is None:
        raise ValueError("nothing to compose")
    return result, count
