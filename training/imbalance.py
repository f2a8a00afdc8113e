"""What a recipe does about rare classes, resolved for the tiles of a training split."""

from __future__ import annotations

from collections.abc import Sequence

from console import UserError
from data.sampling import CentredPatches, balanced_weights, centred_patches, class_counts
from data.tiles import ClassInfo, TileFile
from training.recipe import Recipe


def resolve(
    recipe: Recipe, file: TileFile, names: Sequence[str]
) -> tuple[tuple[float, ...] | None, CentredPatches | None]:
    """Return the class weights and the centred patches that `recipe` means for tiles `names` of `file`.

    The masks are read once, for both, and only if one of the two follows from pixel counts.

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
    if weights == "balanced":
        weights = balanced_weights(counts.sum(axis=0))
    return weights, centred_patches(recipe.sampling.centred, file, counts) if recipe.sampling else None


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
