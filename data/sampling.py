"""How often the classes of a split occur, and what follows from it: class weights, patches centred on rare classes.

The counts of a split come from one pass over its masks. They are all that is kept of them: which pixel is the n-th of
a class is looked up in one tile's mask when a patch is drawn.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from console import UserError, progress
from data.tiles import IGNORE, TileFile


def class_counts(file: TileFile, names: Sequence[str]) -> NDArray[np.int64]:
    """Count the valid, labelled pixels of each class in tiles `names` of `file`: int64 (tiles, K), one tile at a time.

    K is the length of the file's class list.
    """
    classes = len(file.classes)
    counts = np.zeros((len(names), classes), np.int64)
    for row, name in enumerate(progress(names, "class counts", total=len(names), unit="tile")):
        counts[row] = np.bincount(file.labels(name).ravel(), minlength=IGNORE + 1)[:classes]
    return counts


def balanced_weights(pixels: NDArray[np.int64]) -> tuple[float, ...]:
    """Return the class weights n / (K·n_k) of `pixels` (n_0, n_1, …), n their sum: scikit-learn's "balanced".

    The rule goes back to King and Zeng 2001, doi:10.1093/oxfordjournals.pan.a004868. Every class has the same part in
    the sum over pixels, and the mean weight of a pixel is 1. A class without pixels gets 0 and is not in K: no
    training pixel asks for its weight, and in a validation loss an infinite one would drown everything else.
    """
    present = pixels > 0
    weights = pixels.sum() / (max(1, present.sum()) * np.maximum(pixels, 1))
    return tuple(float(weight) for weight in np.where(present, weights, 0.0))


def automatic_shares(pixels: NDArray[np.int64]) -> tuple[float, ...]:
    """Return the share of patches to centre on each class so that the patches' centres see rare classes as often.

    Class-aware sampling (Shen, Lin and Huang 2016, arXiv:1512.05830), applied to the pixel in a patch's centre. With
    q_k the share of class k in all `pixels` (n_0, n_1, …), the centre of a uniformly drawn patch is of class k with a
    probability of about q_k. The K classes that occur would be even at 1/K; rare are those with q_k < 1/K, R of them.
    Each rare class gets the share c_k = 1/K - u·q_k, with u = 1 - Σ c_k the share of patches that stay uniform: then
    c_k + u·q_k = 1/K, and u = (1 - R/K) / (1 - Σ q_k over the rare). The other classes keep their proportions.
    """
    present = pixels > 0
    if not present.any():
        return (0.0,) * len(pixels)
    even = 1.0 / present.sum()
    q = pixels / pixels.sum()
    rare = present & (q < even)
    uniform = (1.0 - rare.sum() * even) / (1.0 - q[rare].sum())
    return tuple(float(share) for share in np.where(rare, even - uniform * q, 0.0))


@dataclass(frozen=True)
class Pixel:
    """The pixel number `rank` (from 0, row by row) of class `class_id` in tile number `tile`."""

    tile: int
    class_id: int
    rank: int

    def find(self, file: TileFile, name: str) -> tuple[int, int]:
        """Return row and column of the pixel; `name` is the tile's."""
        labels = file.labels(name)
        row, column = divmod(int(np.flatnonzero(labels == self.class_id)[self.rank]), labels.shape[1])
        return row, column


@dataclass(frozen=True, eq=False)
class CentredPatches:
    """Which of the training patches are centred on a pixel of a class.

    Args:
        shares: Share of the patches by class id, each 0 to 1, at most 1 in sum; the rest is not centred.
        counts: Pixels of each class in each tile (tiles, K), as `class_counts` returns them; a class with a share has
            some.
    """

    shares: tuple[float, ...]
    counts: NDArray[np.int64]

    def draw(self, random: np.random.Generator) -> Pixel | None:
        """Draw a class by its share, then one of its pixels in all tiles, each as likely; None for a uniform patch."""
        class_id = int(np.searchsorted(np.cumsum(self.shares), random.random(), side="right"))
        if class_id == len(self.shares):
            return None
        ends = np.cumsum(self.counts[:, class_id])
        number = int(random.integers(ends[-1]))
        tile = int(np.searchsorted(ends, number, side="right"))
        return Pixel(tile, class_id, number - int(ends[tile] - self.counts[tile, class_id]))


def centred_patches(
    wanted: Mapping[str, float] | Literal["auto"], file: TileFile, counts: NDArray[np.int64]
) -> CentredPatches | None:
    """Return what a recipe's `sampling.centred` means for tiles of `file` with `counts` (tiles, K).

    None is returned where `auto` finds no class rarer than others.

    Raises:
        UserError: If a class is not in the file's class list, or no counted pixel is of it.
    """
    pixels = counts.sum(axis=0)
    if wanted == "auto":
        shares = automatic_shares(pixels)
        return CentredPatches(shares, counts) if any(shares) else None
    names = [info.name for info in file.classes]
    if unknown := [name for name in wanted if name not in names]:
        close = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"sampling.centred: {file.path} has no class {unknown[0]!r}{hint} (its classes: {', '.join(names)})"
        )
    if empty := [name for name in wanted if not pixels[names.index(name)]]:
        there = ", ".join(name for name, count in zip(names, pixels, strict=True) if count)
        raise UserError(
            f"sampling.centred: no valid pixel of the training tiles is of class {empty[0]!r}, so that no patch can be "
            f"centred on one (classes with pixels: {there or 'none'}); leave it out, or use more tiles"
        )
    return CentredPatches(tuple(wanted.get(name, 0.0) for name in names), counts)
