"""What the values of a mask mean: the class list, and class ids of the values that a raster holds.

What a value means is the user's to say, never a nodata tag's: published masks tag their background as nodata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from console import UserError
from data.tiles import IGNORE, ClassInfo

_COLORS = ("#8c8579", "#4aa3df", "#b5763a", "#1f4e9c", "#d9c24c", "#5b8c3a", "#8e4ea8", "#d1495b")


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
    return class_list(names, glacier), values


def class_list(names: Sequence[str], glacier: Sequence[str]) -> tuple[ClassInfo, ...]:
    """Return the class list of these names, background first, with a color each; `glacier` says which are glacier.

    Raises:
        UserError: If a name in `glacier` is not among the classes, there is none, or it is the background.
    """
    unknown = [name for name in glacier if name not in names]
    if unknown or not glacier:
        raise UserError(
            f"--glacier says which classes are glacier: expected some of {', '.join(names)}, "
            f"got {', '.join(glacier) or 'none'}"
        )
    if names[0] in glacier:
        raise UserError(f"the first of --classes is the background, but {names[0]!r} is a glacier class: name it later")
    return tuple(
        ClassInfo(name, glacier=name in glacier, color=_COLORS[index % len(_COLORS)])
        for index, name in enumerate(names)
    )


def class_ids(array: NDArray[Any], values: Mapping[float, int]) -> NDArray[np.uint8]:
    """Return the class ids of a mask's values, uint8 of the same shape; a value without a class is ignored."""
    ids = np.full(array.shape, IGNORE, np.uint8)
    for value, index in values.items():
        ids[equal(array, value)] = index
    return ids


def unknown_values(
    path: Path, array: NDArray[Any], classes: Sequence[ClassInfo], values: Mapping[float, int]
) -> Iterator[str]:
    """Yield one sentence that lists the values of the mask at `path` that have no class, or nothing."""
    known = np.zeros(array.shape, bool)
    for value in values:
        known |= equal(array, value)
    if known.all():
        return
    found, counts = np.unique(array[~known], return_counts=True)
    common = np.argsort(-counts, kind="stable")[:10]
    listed = ", ".join(f"{found[index]:g} ({counts[index]} pixels)" for index in common)
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    yield (
        f"{path}: mask values without a class: {listed}{more}; --classes has "
        + ", ".join(f"{value}={name}" for value, name in meanings(classes, values).items())
    )


def meanings(classes: Sequence[ClassInfo], values: Mapping[float, int]) -> dict[str, str]:
    """Return mask value → name of its class or `ignore`, as text."""
    return {f"{value:g}": "ignore" if index == IGNORE else classes[index].name for value, index in values.items()}


def equal(array: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Return where `array` has `value`; NaN equals NaN."""
    return np.isnan(array) if np.isnan(value) else array == value


def _same(one: float, other: float) -> bool:
    return one == other or (np.isnan(one) and np.isnan(other))
