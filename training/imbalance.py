"""What a recipe does about rare classes, resolved for the tiles of a training split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from console import UserError
from data.loader import PatchSource, sample_window
from data.sampling import CentredPatches, balanced_weights, centred_patches, class_counts
from data.tiles import IGNORE, ClassInfo, TileFile
from training.recipe import Recipe

_SAMPLED = 1024  # patches whose pixels are counted: the share of a class of 1 % is then known to a few percent of it


def resolve(
    recipe: Recipe, file: TileFile, names: Sequence[str]
) -> tuple[tuple[float, ...] | None, CentredPatches | None]:
    """Return the class weights and the centred patches that `recipe` means for tiles `names` of `file`.

    The masks are read once, for both, and only if one of the two follows from pixel counts. Weights that are
    `balanced` beside centred patches balance the pixels of the patches as they are drawn, counted in a sample of them:
    those of the tiles would make up a second time for what the drawing has made up for, and a class that is rare in
    the tiles would drown the others.

    Raises:
        UserError: If the weights are not one a class, or patches are to be centred on a class that is not there.
    """
    weights = recipe.class_weights
    if weights is not None and weights != "balanced" and len(weights) != len(file.classes):
        raise UserError(
            f"class_weights: {len(weights)} weights are given, {file.path} has {len(file.classes)} classes "
            f"({', '.join(info.name for info in file.classes)}); give one weight for each, in this order"
        )
    if weights != "balanced" and recipe.sampling is None:
        return weights, None
    counts = class_counts(file, names)
    centred = centred_patches(recipe.sampling.centred, file, counts) if recipe.sampling else None
    if weights == "balanced":
        pixels = counts.sum(axis=0)
        if centred is not None:
            patch = recipe.training.patch_size
            pixels = _drawn(PatchSource(file, tuple(names), recipe.inputs, None, patch, centred=centred), len(pixels))
        weights = balanced_weights(pixels)
    return weights, centred


def _drawn(source: PatchSource, classes: int) -> NDArray[np.int64]:
    """Count the pixels of each class in a sample of training patches; always the same sample."""
    pixels = np.zeros(classes, np.int64)
    for index in range(_SAMPLED):
        tile, window, _ = sample_window(source, 0, 0, index)
        labels = source.file.labels(source.names[tile], window)
        pixels += np.bincount(labels.ravel(), minlength=IGNORE + 1)[:classes]
    return pixels


def describe(
    classes: Sequence[ClassInfo], weights: tuple[float, ...] | None, centred: CentredPatches | None
) -> list[str]:
    """Return a line about each of the two that is in use."""
    lines = []
    if weights is not None:
        by_class = (f"{info.name} {weight:.4g}" for info, weight in zip(classes, weights, strict=True))
        lines.append(f"class weights: {', '.join(by_class)}")
    if centred is not None:
        shares = (f"{share:.1%} on {info.name}" for info, share in zip(classes, centred.shares, strict=True) if share)
        lines.append(f"patches centred: {', '.join(shares)}; the others drawn uniformly")
    return lines
