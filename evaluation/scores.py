"""Scores of a segmentation, all computed from pooled confusion counts.

Counts add up: those of a region are the sum over its pixels, whatever tile or batch they came in, and a score
is computed once, from the sum. No score is a mean over tiles or patches.

A score that has nothing to divide by is nan: it is left out of means and never selects an epoch. scikit-learn says
0 there (with a warning) for all but kappa, which is nan with it, too; it refuses empty input, where all is nan here.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

IGNORE = 255
"""Mask value of pixels without a reference; they are in no count."""


def confusion_matrix(reference: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of every pair of reference and predicted class.

    Args:
        reference: Class ids of any shape; `IGNORE` marks pixels to leave out.
        predicted: Class ids of the same shape.
        num_classes: Number K of classes; ids are 0 … K - 1.

    Returns:
        int64 `(K, K)`; rows are reference classes, columns predicted classes.

    Raises:
        ValueError: If the shapes differ or an id that counts is not below `num_classes`.
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"reference has shape {reference.shape}, predicted {predicted.shape}: they must be equal")
    counted = reference != IGNORE
    rows, columns = reference[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for name, ids in (("reference", rows), ("predicted", columns)):
        if ids.size and not 0 <= ids.min() <= ids.max() < num_classes:
            raise ValueError(f"{name} has class ids {ids.min()} to {ids.max()}, expected 0 to {num_classes - 1}")
    pairs = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


@dataclass(frozen=True)
class Counts:
    """Pixels by outcome for one class, or one union of classes, against the rest; always in this order.

    Scores are nan where they are undefined (nothing to divide by).
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Pool two sets of pixels."""
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def pixels(self) -> int:
        """All pixels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def share(self) -> float:
        """Share of the pixels that the reference calls positive."""
        return _ratio(self.tp + self.fn, self.pixels)

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard index); nan where there is no positive in either."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the predicted positives that are right."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the reference's positives that were found."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; nan where there is no positive in either."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def dice(self) -> float:
        """Dice coefficient: another name of `f1`."""
        return self.f1

    @property
    def accuracy(self) -> float:
        """Share of all pixels that are right."""
        return accuracy(self.matrix)

    @property
    def kappa(self) -> float:
        """Cohen's kappa of positive against the rest; nan where both maps are of one class, the same."""
        return kappa(self.matrix)

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient, -1 … 1; nan where a row or column of the matrix is empty."""
        return multiclass_mcc(self.matrix)  # of two classes, R_K is Matthews's coefficient

    @property
    def matrix(self) -> np.ndarray:
        """The confusion matrix `(2, 2)`: the rest, positive."""
        return np.array([[self.tn, self.fp], [self.fn, self.tp]])


def counts(matrix: np.ndarray, positive: Collection[int]) -> Counts:
    """Reduce a confusion matrix to the union of the `positive` classes against all others.

    Args:
        matrix: `(K, K)` counts from `confusion_matrix`.
        positive: Class ids; a confusion among them is no error.
    """
    is_positive = np.isin(np.arange(len(matrix)), list(positive))
    return Counts(
        tp=int(matrix[np.ix_(is_positive, is_positive)].sum()),
        fp=int(matrix[np.ix_(~is_positive, is_positive)].sum()),
        fn=int(matrix[np.ix_(is_positive, ~is_positive)].sum()),
        tn=int(matrix[np.ix_(~is_positive, ~is_positive)].sum()),
    )


def accuracy(matrix: np.ndarray) -> float:
    """Share of the pixels of a matrix `(K, K)` that are of their class; nan of no pixels."""
    correct, _, actual, _ = _margins(matrix)
    return _ratio(correct, sum(actual))


def kappa(matrix: np.ndarray) -> float:
    """Agreement of all classes beyond chance, -1 … 1 (Cohen 1960, doi:10.1177/001316446002000104).

    (p - e)/(1 - e) of the accuracy p and of the accuracy e that maps with the same shares of classes have by chance;
    nan where reference and prediction are of one class, the same.
    """
    correct, by_chance, actual, _ = _margins(matrix)
    total = sum(actual)
    return _ratio(correct * total - by_chance, total**2 - by_chance)


def multiclass_mcc(matrix: np.ndarray) -> float:
    """Matthews correlation of all classes, R_K (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006).

    Equal to `Counts.mcc` for two classes; nan where the reference or the prediction is of one class only.
    """
    correct, by_chance, actual, predicted = _margins(matrix)
    total = sum(actual)
    spread_actual = total**2 - sum(a * a for a in actual)
    spread_predicted = total**2 - sum(p * p for p in predicted)
    return _ratio(correct * total - by_chance, math.sqrt(spread_actual * spread_predicted))


def _margins(matrix: np.ndarray) -> tuple[int, int, list[int], list[int]]:
    """Return the trace, the sums of rows and columns multiplied and summed, and these sums: unbounded integers."""
    rows: list[list[int]] = matrix.tolist()
    actual, predicted = [sum(row) for row in rows], [sum(column) for column in zip(*rows, strict=True)]
    by_chance = sum(a * p for a, p in zip(actual, predicted, strict=True))
    return sum(row[k] for k, row in enumerate(rows)), by_chance, actual, predicted
