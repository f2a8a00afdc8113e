"""Pooled counts in Keras, held against the counts of `evaluation`."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from evaluation.scores import confusion_matrix, counts, multiclass_mcc
from training.losses import IGNORE
from training.metrics import ConfusionMatrix, epoch_scores, monitored
from training.recipe import Monitor


def batch(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(2, classes), (3, 7, 5)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    return labels, rng.random((*labels.shape, classes), np.float32)


def predicted(p: np.ndarray) -> np.ndarray:
    return (p[..., 0] > 0.5).astype(int) if p.shape[-1] == 1 else p.argmax(axis=-1)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_counts_are_pooled_over_batches_and_reset(classes: int) -> None:
    metric = ConfusionMatrix(max(2, classes))
    for first in (0, 10):
        batches = [batch(classes, seed) for seed in range(first, first + 4)]
        for labels, p in batches:
            metric.update_state(labels, p)
        expected = np.sum([confusion_matrix(y, predicted(p), max(2, classes)) for y, p in batches], axis=0)
        np.testing.assert_array_equal(metric.matrix(), expected)
        assert float(metric.result()) == pytest.approx(np.trace(expected) / expected.sum())
        metric.reset_state()
        assert not metric.matrix().any() and float(metric.result()) == 0


def test_one_probability_is_class_1_above_one_half() -> None:
    metric = ConfusionMatrix(2)
    metric.update_state(np.ones((1, 1, 3), np.int32), np.array([0.5, 0.5000001, 0.4], np.float32).reshape(1, 1, 3, 1))
    assert metric.matrix().tolist() == [[0, 0], [2, 1]]


def test_counts_stay_exact_beyond_what_float32_and_int32_hold() -> None:
    metric = ConfusionMatrix(2)
    labels, p = np.zeros((1, 1, 3), np.int32), np.tile(np.array([1, 0], np.float32), (1, 1, 3, 1))
    metric.update_state(labels, p)
    metric.low.assign(np.full((2, 2), 2**20 - 2))
    metric.high.assign(np.full((2, 2), 2**14))  # more than 2³⁴ pixels
    for _ in range(2):
        metric.update_state(labels, p)
    start = 2**34 + 2**20 - 2
    assert metric.matrix().tolist() == [[start + 6, start], [start, start]]
    assert float(metric.result()) == pytest.approx(0.5)


def test_many_pixels_are_counted_one_by_one() -> None:
    metric = ConfusionMatrix(2)
    labels, p = np.zeros((1, 2048, 1024), np.int32), np.zeros((1, 2048, 1024, 1), np.float32)
    for _ in range(9):
        metric.update_state(labels, p)
    metric.update_state(labels[:, :1, :1], p[:, :1, :1])
    assert metric.matrix()[0, 0] == 9 * 2**21 + 1  # 2²⁴ + 2²¹ + 1, no float32


def test_the_log_has_scores_by_class_under_their_names() -> None:
    matrix = np.array([[50, 3, 2], [5, 30, 0], [0, 0, 0]])
    scores = epoch_scores(matrix, "val_output", range(3))
    assert list(scores) == ["val_output_accuracy"] + [
        f"val_output_{score}_{k}" for k in range(3) for score in ("iou", "precision", "recall")
    ]
    assert scores["val_output_accuracy"] == pytest.approx(80 / 90)
    for k in (0, 1):
        of_class = counts(matrix, {k})
        assert scores[f"val_output_iou_{k}"] == of_class.iou
        assert scores[f"val_output_precision_{k}"] == of_class.precision
        assert scores[f"val_output_recall_{k}"] == of_class.recall
    assert scores["val_output_iou_2"] == 0 and math.isnan(scores["val_output_recall_2"])
    alone = epoch_scores(matrix[:2, :2], "output", range(1, 2))
    assert list(alone) == ["output_accuracy", "output_iou_1", "output_precision_1", "output_recall_1"]


def test_without_a_pixel_no_score_is_defined() -> None:
    assert all(math.isnan(score) for score in epoch_scores(np.zeros((2, 2), np.int64), "output", range(2)).values())


def test_every_score_that_a_recipe_may_name_is_found() -> None:
    matrix, glacier = np.array([[50, 3, 2], [5, 30, 0], [1, 4, 9]]), {1, 2}
    found = {name: monitored(name, matrix, glacier, 0.7) for name in get_args(Monitor)}
    assert found.pop("loss") == 0.7
    assert found.pop("multiclass_mcc") == multiclass_mcc(matrix)
    pooled = counts(matrix, glacier)
    assert found == {name: getattr(pooled, name) for name in found} and len(found) == 8
    assert found["iou"] == found["dice"] / (2 - found["dice"]) == 43 / 54
