"""Scores of a segmentation, all computed from pooled confusion counts.

Counts add up: those of a region are the sum over its pixels, whatever tile or batch they came in, and a score
is computed once, from the sum. No score is a mean over tiles or patches.
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
        """Harmonic mean of precision and recall (Dice coefficient)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float:
        """Share of all pixels that are right."""
        return _ratio(self.tp + self.tn, self.pixels)

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient, -1 … 1; nan where a row or column of the matrix is empty."""
        tp, fp, fn, tn = (int(count) for count in (self.tp, self.fp, self.fn, self.tn))  # unbounded integers
        return _ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


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


def multiclass_mcc(matrix: np.ndarray) -> float:
    """Matthews correlation of all classes, R_K (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006).

    Equal to `Counts.mcc` for two classes; nan where the reference or the prediction is of one class only.
    """
    rows: list[list[int]] = matrix.tolist()
    total = sum(map(sum, rows))
    correct = sum(row[k] for k, row in enumerate(rows))
    actual = [sum(row) for row in rows]
    predicted = [sum(column) for column in zip(*rows, strict=True)]
    numerator = correct * total - sum(a * p for a, p in zip(actual, predicted, strict=True))
    spread_actual = total**2 - sum(a * a for a in actual)
    spread_predicted = total**2 - sum(p * p for p in predicted)
    return _ratio(numerator, math.sqrt(spread_actual * spread_predicted))
