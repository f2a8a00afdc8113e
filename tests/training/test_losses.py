"""Losses against their formulas in NumPy, and at their edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import ValidationError

from training.losses import IGNORE, LossTerms, SegmentationLoss

Array = NDArray[np.float64]
TERMS: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "focal": {"gamma": 2.0},
    "focal, gamma 0": {"gamma": 0.0},
    "focal, gamma 0.5": {"gamma": 0.5},
    "dice": {"smoothing": 1.0},
}
SHAPE = (2, 5, 6)


def loss(term: str, **changes: Any) -> SegmentationLoss:
    return SegmentationLoss(LossTerms.model_validate({term.split(",")[0]: TERMS[term] | changes}))


def value(loss: SegmentationLoss, labels: NDArray[Any], probabilities: NDArray[Any]) -> float:
    return float(loss(tf.constant(labels), tf.constant(probabilities, tf.float32)))


def gradient(loss: SegmentationLoss, labels: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[np.float32]:
    variable = tf.Variable(probabilities, dtype=tf.float32)
    with tf.GradientTape() as tape:
        result = loss(tf.constant(labels), variable)
    return np.asarray(tape.gradient(result, variable))


def example(classes: int, seed: int = 0) -> tuple[NDArray[np.int32], Array]:
    """Draw labels, a quarter of them ignored, and probabilities of `classes`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, SHAPE).astype(np.int32)
    labels[rng.random(SHAPE) < 0.25] = IGNORE
    return labels, rng.dirichlet(np.ones(classes), SHAPE)


def of_reference(labels: NDArray[Any], p: Array) -> Array:
    """Return the probability of the reference class of each pixel that counts."""
    return np.array([p[place][labels[place]] for place in np.ndindex(labels.shape) if labels[place] != IGNORE])


def dice(labels: NDArray[Any], p: Array) -> float:
    counted = labels != IGNORE
    scores = []
    for k in range(1, p.shape[-1]):
        y, q = (labels == k)[counted], p[..., k][counted]
        scores.append((2 * (q * y).sum() + 1) / (q.sum() + y.sum() + 1))
    return float(np.mean(1 - np.array(scores)))


FORMULAS: dict[str, Callable[[NDArray[Any], Array], float]] = {
    "cross_entropy": lambda y, p: float(np.mean(-np.log(of_reference(y, p)))),
    "focal": lambda y, p: float(np.mean(-((1 - of_reference(y, p)) ** 2) * np.log(of_reference(y, p)))),
    "focal, gamma 0": lambda y, p: float(np.mean(-np.log(of_reference(y, p)))),
    "focal, gamma 0.5": lambda y, p: float(np.mean(-((1 - of_reference(y, p)) ** 0.5) * np.log(of_reference(y, p)))),
    "dice": dice,
}


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("term", TERMS)
def test_term_is_its_formula(term: str, classes: int) -> None:
    labels, p = example(classes)
    assert value(loss(term), labels, p) == pytest.approx(FORMULAS[term](labels, p), rel=1e-5)


def test_dice_smoothing_is_a_setting() -> None:
    labels, p = example(2)
    counted = labels != IGNORE
    overlap, total = (p[..., 1] * (labels == 1))[counted].sum(), p[..., 1][counted].sum() + (labels == 1).sum()
    assert value(loss("dice", smoothing=9.0), labels, p) == pytest.approx(1 - (2 * overlap + 9) / (total + 9), rel=1e-5)


def test_terms_are_summed_with_their_weights() -> None:
    labels, p = example(2)
    both = SegmentationLoss(LossTerms.model_validate({"focal": {"weight": 0.3}, "dice": {"weight": 2.0}}))
    expected = 0.3 * FORMULAS["focal"](labels, p) + 2 * FORMULAS["dice"](labels, p)
    assert value(both, labels, p) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_ignored_pixels_do_not_matter(term: str) -> None:
    labels, p = example(3)
    changed = p.copy()
    changed[labels == IGNORE] = [1.0, 0.0, 0.0]
    assert value(loss(term), labels, changed) == value(loss(term), labels, p)
    slope = gradient(loss(term), labels, p)
    assert (slope[labels == IGNORE] == 0).all() and (slope[labels != IGNORE] != 0).any(axis=-1).all()


@pytest.mark.parametrize("term", TERMS)
def test_one_sigmoid_is_the_pair_of_a_softmax(term: str) -> None:
    labels, p = example(2)
    assert value(loss(term), labels, p[..., 1:]) == pytest.approx(value(loss(term), labels, p), rel=1e-5)
    pair, one = gradient(loss(term), labels, p), gradient(loss(term), labels, p[..., 1:])
    np.testing.assert_allclose(one[..., 0], pair[..., 1] - pair[..., 0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("term", TERMS)
def test_edges_are_finite(term: str, classes: int) -> None:
    least = max(2, classes)
    mixed = np.resize(np.arange(least), SHAPE).astype(np.int32)
    for case, labels, low, high in (
        ("perfect", mixed, 0.0, 1e-6),
        ("inverted", mixed, 0.5, 17.0),
        ("only background", np.zeros(SHAPE, np.int32), 0.0, 17.0),
        ("only class 1", np.ones(SHAPE, np.int32), 0.0, 17.0),
        ("all ignored", np.full(SHAPE, IGNORE, np.int32), 0.0, 0.0),
    ):
        certain = np.eye(least)[(np.where(labels == IGNORE, 0, labels) + (case == "inverted")) % least]
        certain = certain if classes > 1 else certain[..., 1:]
        for p in (certain, np.full_like(certain, 1 / least)) if low == 0 and case != "perfect" else (certain,):
            result = value(loss(term), labels, p)
            assert low <= result <= high, (case, result)
            assert np.isfinite(gradient(loss(term), labels, p)).all(), case


@pytest.mark.parametrize(
    "wrong",
    [{}, {"focal": {"gamma": -1}}, {"focal": {"gamma": float("inf")}}, {"dice": {"smoothing": 0}}, {"tversky": {}}]
    + [{"focal": {"weight": 0}}],
)
def test_impossible_losses_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LossTerms.model_validate(wrong)
