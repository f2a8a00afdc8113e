"""Scores equal scikit-learn's, add up, and are nan where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from evaluation.scores import IGNORE, Counts, confusion_matrix, counts, multiclass_mcc


def maps(num_classes: int, seed: int = 0, ignored: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps that agree more often than chance, with some ignored reference pixels."""
    random = np.random.default_rng(seed)
    reference = random.integers(0, num_classes, (31, 47)).astype(np.uint8)
    predicted = np.where(random.random(reference.shape) < 0.6, reference, random.integers(0, num_classes, (31, 47)))
    reference[random.random(reference.shape) < ignored] = IGNORE
    return reference, predicted.astype(np.uint8)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_matrix_equals_scikit_learn(num_classes: int) -> None:
    reference, predicted = maps(num_classes)
    kept = reference != IGNORE
    expected = metrics.confusion_matrix(reference[kept], predicted[kept], labels=range(num_classes))
    np.testing.assert_array_equal(confusion_matrix(reference, predicted, num_classes), expected)


@pytest.mark.parametrize("positive", [{1}, {1, 2}, {0}])
def test_scores_equal_scikit_learn(positive: set[int]) -> None:
    reference, predicted = maps(4)
    pooled = counts(confusion_matrix(reference, predicted, 4), positive)
    kept = reference != IGNORE
    truth, guess = np.isin(reference[kept], list(positive)), np.isin(predicted[kept], list(positive))
    assert pooled.iou == pytest.approx(metrics.jaccard_score(truth, guess))
    assert pooled.precision == pytest.approx(metrics.precision_score(truth, guess))
    assert pooled.recall == pytest.approx(metrics.recall_score(truth, guess))
    assert pooled.f1 == pytest.approx(metrics.f1_score(truth, guess))
    assert pooled.accuracy == pytest.approx(metrics.accuracy_score(truth, guess))
    assert pooled.mcc == pytest.approx(metrics.matthews_corrcoef(truth, guess))
    assert pooled.share == pytest.approx(truth.mean())
    assert pooled.pixels == kept.sum()


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_multiclass_mcc_equals_scikit_learn(num_classes: int) -> None:
    reference, predicted = maps(num_classes, seed=num_classes)
    kept = reference != IGNORE
    matrix = confusion_matrix(reference, predicted, num_classes)
    assert multiclass_mcc(matrix) == pytest.approx(metrics.matthews_corrcoef(reference[kept], predicted[kept]))
    if num_classes == 2:
        assert multiclass_mcc(matrix) == pytest.approx(counts(matrix, {1}).mcc)


def test_counts_of_parts_add_up_to_the_counts_of_the_whole() -> None:
    reference, predicted = maps(2)
    whole = counts(confusion_matrix(reference, predicted, 2), {1})
    top = counts(confusion_matrix(reference[:10], predicted[:10], 2), {1})
    rest = counts(confusion_matrix(reference[10:], predicted[10:], 2), {1})
    assert top + rest == whole
    assert sum([top, rest], start=Counts()) == whole


def test_no_positive_in_either_has_no_iou_but_an_accuracy() -> None:
    none = counts(confusion_matrix(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), 2), {1})
    assert none == Counts(tn=16)
    assert all(math.isnan(score) for score in (none.iou, none.precision, none.recall, none.f1, none.mcc))
    assert none.accuracy == 1.0


def test_all_ignored_counts_nothing_and_every_score_is_nan() -> None:
    matrix = confusion_matrix(np.full((4, 4), IGNORE, np.uint8), np.ones((4, 4), np.uint8), 2)
    empty = counts(matrix, {1})
    assert empty == Counts()
    scores = (empty.iou, empty.precision, empty.recall, empty.f1, empty.accuracy, empty.mcc, empty.share)
    assert all(math.isnan(score) for score in scores)
    assert math.isnan(multiclass_mcc(matrix))


def test_mcc_of_huge_counts_does_not_overflow() -> None:
    small = np.array([[700, 50], [30, 220]], np.int64)
    huge = small * 10**13  # products of four such counts exceed 64 bits by far
    assert counts(huge, {1}).mcc == pytest.approx(counts(small, {1}).mcc)
    assert multiclass_mcc(huge) == pytest.approx(multiclass_mcc(small))
    assert Counts(*(int(n) for n in huge[[1, 0, 1, 0], [1, 1, 0, 0]])).mcc == pytest.approx(counts(small, {1}).mcc)


def test_ids_beyond_the_classes_and_differing_shapes_are_refused() -> None:
    zeros = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="reference has class ids 7 to 7, expected 0 to 1"):
        confusion_matrix(zeros + 7, zeros, 2)
    with pytest.raises(ValueError, match="predicted has class ids 2 to 2"):
        confusion_matrix(zeros, zeros + 2, 2)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(zeros, zeros[:1], 2)
