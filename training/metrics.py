"""Pooled confusion counts as a Keras metric, and the scores of an epoch from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from evaluation.scores import accuracy, counts, multiclass_mcc
from training.losses import IGNORE

_CARRY = 2**20


class ConfusionMatrix(keras.metrics.Metric):
    """Counts (reference, predicted) pairs of classes over everything seen since the last reset.

    One float32 sum would stop counting at 2²⁴ pixels, and int64 is not to be had on every backend: the counts are
    kept as two int32 numbers, the higher in units of 2²⁰.

    Args:
        num_classes: Classes of the labels; 2 for an output with one sigmoid.
        name: Name in Keras's logs.
    """

    def __init__(self, num_classes: int, name: str = "accuracy") -> None:
        super().__init__(name=name, dtype="float32")
        self.num_classes = num_classes
        shape = (num_classes, num_classes)
        self.low = self.add_variable(shape, initializer="zeros", dtype="int32", name="low")
        self.high = self.add_variable(shape, initializer="zeros", dtype="int32", name="high")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: labels (N, H, W) with 255 = ignore, probabilities (N, H, W, K)."""
        k = self.num_classes
        y_true = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        if y_pred.shape[-1] == 1:
            predicted = ops.cast(ops.reshape(y_pred, (-1,)) > 0.5, "int32")
        else:
            predicted = ops.cast(ops.reshape(ops.argmax(y_pred, axis=-1), (-1,)), "int32")
        pairs = ops.where(ops.equal(y_true, IGNORE), -1, y_true * k + predicted)
        found = ops.stack([ops.sum(ops.cast(ops.equal(pairs, i), "int32")) for i in range(k * k)])
        total = self.low + ops.reshape(found, (k, k))
        carry = ops.floor_divide(total, _CARRY)
        self.low.assign(total - carry * _CARRY)
        self.high.assign(self.high + carry)

    def result(self) -> Any:
        """Return the accuracy (the whole matrix: `matrix`)."""
        matrix = ops.cast(self.high, "float32") * _CARRY + ops.cast(self.low, "float32")
        return ops.trace(matrix) / ops.maximum(ops.sum(matrix), 1.0)

    def matrix(self) -> NDArray[np.int64]:
        """Return the counts, int64 (K, K): rows are references, columns predictions."""
        high, low = (ops.convert_to_numpy(v).astype(np.int64) for v in (self.high, self.low))
        return high * _CARRY + low


def epoch_scores(matrix: NDArray[np.int64], prefix: str, classes: Iterable[int]) -> dict[str, float]:
    """Return accuracy and, for each of `classes`, IoU, precision and recall, named as in the log.

    The names are `{prefix}_accuracy`, `{prefix}_iou_1` and so on; a score that is undefined is nan.
    """
    scores = {f"{prefix}_accuracy": accuracy(matrix)}
    for k in classes:
        c = counts(matrix, {k})
        scores |= {f"{prefix}_iou_{k}": c.iou, f"{prefix}_precision_{k}": c.precision, f"{prefix}_recall_{k}": c.recall}
    return scores


def monitored(monitor: str, matrix: NDArray[np.int64], glacier: Collection[int], loss: float) -> float:
    """Return the score that a recipe names: of glacier against the rest, unless it is of all classes or the loss.

    Args:
        monitor: `multiclass_mcc`, `loss`, or a score of `evaluation.scores.Counts`.
        matrix: Counts (K, K) of the validation split.
        glacier: Ids of the classes that count as glacier.
        loss: The validation loss.

    Returns:
        The score; nan where it is undefined.
    """
    if monitor == "loss":
        return loss
    if monitor == "multiclass_mcc":
        return multiclass_mcc(matrix)
    return float(getattr(counts(matrix, glacier), monitor))
