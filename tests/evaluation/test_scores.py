"""Scores equal scikit-learn's, add up, and are nan where they are undefined."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from sklearn import metrics

from evaluation.scores import IGNORE, Counts, accuracy, confusion_matrix, counts, kappa, multiclass_mcc


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
def test_counts_are_of_the_pixels_that_have_a_reference(positive: set[int]) -> None:
    reference, predicted = maps(4)
    pooled = counts(confusion_matrix(reference, predicted, 4), positive)
    kept = reference != IGNORE
    truth, guess = np.isin(reference[kept], list(positive)), np.isin(predicted[kept], list(positive))
    np.testing.assert_array_equal(pooled.matrix, metrics.confusion_matrix(truth, guess))
    assert pooled.share == pytest.approx(truth.mean())
    assert pooled.pixels == kept.sum()


def random_matrices(num_classes: int) -> Iterator[np.ndarray]:
    """Yield matrices of few pixels: full ones, sparse ones, without some classes, of one class alone, of one pixel."""
    random = np.random.default_rng(num_classes)
    for number in range(8):
        matrix = random.integers(0, 9, (num_classes, num_classes)) * (random.random((num_classes,) * 2) < 0.6)
        if number % 4 == 1:
            matrix[random.integers(num_classes)] = 0
        elif number % 4 == 2:
            matrix[:, random.integers(num_classes)] = 0
        matrix[tuple(random.integers(num_classes, size=2))] += 1
        yield matrix
    for at in ((0, 0), (1, 1), (0, 1), (1, 0)):
        one = np.zeros((num_classes, num_classes), np.int64)
        one[at] = 7
        yield one


def value_or_nan(value: float, defined: bool | np.bool_) -> float:
    """What scikit-learn calls 0 where there is nothing to divide by."""
    assert defined or value == 0
    return value if defined else math.nan


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn's, where it has nothing to divide by
@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
def test_scores_equal_scikit_learn(num_classes: int) -> None:
    undefined = 0
    for matrix in random_matrices(num_classes):
        truth, guess = (np.repeat(ids.ravel(), matrix.ravel()) for ids in np.indices(matrix.shape))
        varied = [len(set(labels)) > 1 for labels in (truth, guess)]
        chance = truth[0] != guess[0] or any(varied)
        of_all = {
            accuracy: metrics.accuracy_score(truth, guess),
            multiclass_mcc: value_or_nan(metrics.matthews_corrcoef(truth, guess), all(varied)),
            kappa: metrics.cohen_kappa_score(truth, guess) if chance else math.nan,
        }
        for score, expected in of_all.items():
            assert score(matrix) == pytest.approx(expected, nan_ok=True), (score, matrix)
        for positive in ({1}, {0, num_classes - 1}):
            is_true, is_found = np.isin(truth, list(positive)), np.isin(guess, list(positive))
            either, both_vary = (is_true | is_found).any(), all(0 < x.mean() < 1 for x in (is_true, is_found))
            f1 = value_or_nan(metrics.f1_score(is_true, is_found), either)
            agreed = len({*is_true, *is_found}) == 1
            of_some = {
                "iou": value_or_nan(metrics.jaccard_score(is_true, is_found), either),
                "dice": f1,
                "f1": f1,
                "precision": value_or_nan(metrics.precision_score(is_true, is_found), is_found.any()),
                "recall": value_or_nan(metrics.recall_score(is_true, is_found), is_true.any()),
                "accuracy": metrics.accuracy_score(is_true, is_found),
                "kappa": math.nan if agreed else metrics.cohen_kappa_score(is_true, is_found),
                "mcc": value_or_nan(metrics.matthews_corrcoef(is_true, is_found), both_vary),
            }
            pooled = counts(matrix, positive)
            for name, expected in of_some.items():
                assert getattr(pooled, name) == pytest.approx(expected, nan_ok=True), (name, positive, matrix)
            undefined += sum(map(math.isnan, of_some.values()))
    assert undefined > 10  # the edges were among them


def test_two_classes_have_one_kappa_and_one_mcc() -> None:
    for matrix in random_matrices(2):
        pooled = counts(matrix, {1})
        for of_all, of_one in ((kappa(matrix), pooled.kappa), (multiclass_mcc(matrix), pooled.mcc)):
            assert of_all == pytest.approx(of_one, nan_ok=True)


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
    undefined = (none.iou, none.precision, none.recall, none.f1, none.dice, none.kappa, none.mcc)
    assert all(math.isnan(score) for score in undefined)
    assert none.accuracy == 1.0


def test_all_ignored_counts_nothing_and_every_score_is_nan() -> None:
    matrix = confusion_matrix(np.full((4, 4), IGNORE, np.uint8), np.ones((4, 4), np.uint8), 2)
    empty = counts(matrix, {1})
    assert empty == Counts()
    scores = ("iou", "dice", "precision", "recall", "f1", "accuracy", "kappa", "mcc", "share")
    assert all(math.isnan(getattr(empty, score)) for score in scores)
    assert all(math.isnan(score(matrix)) for score in (accuracy, kappa, multiclass_mcc))


def test_scores_of_huge_counts_do_not_overflow() -> None:
    small = np.array([[700, 50], [30, 220]], np.int64)
    huge = small * 10**13  # products of four such counts exceed 64 bits by far
    assert counts(huge, {1}).mcc == pytest.approx(counts(small, {1}).mcc)
    assert multiclass_mcc(huge) == pytest.approx(multiclass_mcc(small))
    assert kappa(huge) == pytest.approx(kappa(small))
    assert Counts(*(int(n) for n in huge[[1, 0, 1, 0], [1, 1, 0, 0]])).mcc == pytest.approx(counts(small, {1}).mcc)


def test_ids_beyond_the_classes_and_differing_shapes_are_refused() -> None:
    zeros = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="reference has class ids 7 to 7, expected 0 to 1"):
        confusion_matrix(zeros + 7, zeros, 2)
    with pytest.raises(ValueError, match="predicted has class ids 2 to 2"):
        confusion_matrix(zeros, zeros + 2, 2)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(zeros, zeros[:1], 2)
