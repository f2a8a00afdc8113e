"""Losses against the formulas of their sources in NumPy, and at their edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError
from skimage.metrics import structural_similarity
from sklearn.metrics import log_loss

from training.losses import IGNORE, LossTerms, SegmentationLoss, smoothing_labels

Array = NDArray[np.float64]
Labels = NDArray[np.int32]
SHAPE = (3, 12, 13)
TERMS: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {}),
    ("binary_cross_entropy", {}),
    ("focal", {"gamma": 2.0}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"gamma": 2.0, "alpha": 0.25}),
    ("dice", {"smoothing": 1.0, "per_image": False}),
    ("dice", {"smoothing": 1e-7, "per_image": False}),
    ("dice", {"smoothing": 1e-6, "per_image": True}),
    ("iou", {"smoothing": 1.0, "per_image": False}),
    ("iou", {"smoothing": 1e-6, "per_image": True}),
    ("tversky", {"smoothing": 1e-7, "per_image": False, "alpha": 0.7, "beta": 0.3}),
    ("tversky", {"smoothing": 1.0, "per_image": True, "alpha": 0.2, "beta": 0.6}),
    ("ssim", {}),
]
all_terms = pytest.mark.parametrize(
    ("term", "settings"), TERMS, ids=[f"{name}{list(settings.values())}" for name, settings in TERMS]
)


def loss(term: str, settings: dict[str, Any], **arguments: Any) -> SegmentationLoss:
    return SegmentationLoss(LossTerms.model_validate({term: settings}), **arguments)


def value(loss: SegmentationLoss, labels: NDArray[Any], probabilities: NDArray[Any]) -> float:
    return float(loss(tf.constant(labels), tf.constant(probabilities, tf.float32)))


def value_and_gradient(
    loss: Callable[[Any, Any], Any], labels: NDArray[Any], probabilities: NDArray[Any]
) -> tuple[float, NDArray[np.float32]]:
    variable = tf.Variable(probabilities, dtype=tf.float32)
    with tf.GradientTape() as tape:
        result = loss(tf.constant(labels), variable)
    return float(result), np.asarray(tape.gradient(result, variable))


def example(classes: int, seed: int = 0) -> tuple[Labels, Array]:
    """Draw labels, a quarter of them ignored and all of the last image, and probabilities of `classes`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, SHAPE).astype(np.int32)
    labels[rng.random(SHAPE) < 0.25] = IGNORE
    labels[-1] = IGNORE
    return labels, rng.dirichlet(np.ones(classes), SHAPE)


# The formulas, each over its pixels one by one


def counted(labels: Labels, p: Array) -> Iterator[tuple[int, Array]]:
    """Yield the class and the probabilities of each pixel that counts."""
    for place in np.ndindex(labels.shape):
        if labels[place] != IGNORE:
            yield int(labels[place]), p[place]


def cross_entropy(labels: Labels, p: Array) -> float:
    return float(np.mean([-np.log(q[k]) for k, q in counted(labels, p)]))


def binary_cross_entropy(labels: Labels, p: Array) -> float:
    pairs = [(q[k], k == reference) for reference, q in counted(labels, p) for k in range(1, len(q))]
    return float(np.mean([-np.log(q if there else 1 - q) for q, there in pairs]))


def focal(labels: Labels, p: Array, gamma: float, alpha: float | None = None) -> float:
    def balance(k: int) -> float:
        return 1.0 if alpha is None else alpha if k > 0 else 1 - alpha

    return float(np.mean([-balance(k) * (1 - q[k]) ** gamma * np.log(q[k]) for k, q in counted(labels, p)]))


def overlap(labels: Labels, p: Array, per_image: bool, score: Callable[[float, float, float], float]) -> float:
    """Return the mean of 1 - score(TP, FP, FN) over classes but background and over images that have pixels."""
    groups = [(one[None], q[None]) for one, q in zip(labels, p, strict=True)] if per_image else [(labels, p)]
    losses = []
    for one, q in groups:
        pixels = list(counted(one, q))
        for k in range(1, p.shape[-1]) if pixels else ():
            tp = sum(q[k] for reference, q in pixels if reference == k)
            fp = sum(q[k] for reference, q in pixels if reference != k)
            fn = sum(1 - q[k] for reference, q in pixels if reference == k)
            losses.append(1 - score(tp, fp, fn))
    return float(np.mean(losses))


def dice(labels: Labels, p: Array, smoothing: float, per_image: bool) -> float:
    s = smoothing
    return overlap(labels, p, per_image, lambda tp, fp, fn: (2 * tp + s) / (2 * tp + fp + fn + s))


def iou(labels: Labels, p: Array, smoothing: float, per_image: bool) -> float:
    s = smoothing
    return overlap(labels, p, per_image, lambda tp, fp, fn: (tp + s) / (tp + fp + fn + s))


def tversky(labels: Labels, p: Array, smoothing: float, per_image: bool, alpha: float, beta: float) -> float:
    s = smoothing
    return overlap(labels, p, per_image, lambda tp, fp, fn: (tp + s) / (tp + alpha * fp + beta * fn + s))


def ssim(labels: Labels, p: Array) -> float:
    """Return 1 - SSIM, window by window: statistics over the pixels of the window that count."""
    rows, columns = np.mgrid[-5:6, -5:6]
    window = np.exp(-(rows**2 + columns**2) / (2 * 1.5**2))
    losses = []
    for one, q in zip(labels, p, strict=True):
        mirrored = np.pad(one, 5, mode="reflect")
        for i, j in zip(*np.nonzero(one != IGNORE), strict=True):
            part = mirrored[i : i + 11, j : j + 11]
            w = window * (part != IGNORE) / window[part != IGNORE].sum()
            for k in range(1, p.shape[-1]):
                x = np.pad(q[..., k], 5, mode="reflect")[i : i + 11, j : j + 11]
                y = (part == k).astype(float)
                mx, my = (w * x).sum(), (w * y).sum()
                vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
                both = (w * (x - mx) * (y - my)).sum()
                luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
                losses.append(1 - luminance * (2 * both + 9e-4) / (vx + vy + 9e-4))
    return float(np.mean(losses))


FORMULAS: dict[str, Callable[..., float]] = {
    function.__name__: function for function in (cross_entropy, binary_cross_entropy, focal, dice, iou, tversky, ssim)
}


@pytest.mark.parametrize("classes", [2, 4])
@all_terms
def test_a_term_is_its_formula(term: str, settings: dict[str, Any], classes: int) -> None:
    labels, p = example(classes)
    assert value(loss(term, settings), labels, p) == pytest.approx(FORMULAS[term](labels, p, **settings), rel=1e-5)


def test_ssim_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((20, 30)), rng.integers(0, 2, (20, 30))
    # scikit-image scores the windows that lie inside: of the mirrored image, one around each pixel.
    expected = structural_similarity(
        *(np.pad(image.astype(float), 5, mode="reflect") for image in (x, y)),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert value(loss("ssim", {}), y[None], x[None, ..., None]) == pytest.approx(1 - expected, rel=1e-5)


@all_terms
def test_one_sigmoid_is_the_pair_of_a_softmax(term: str, settings: dict[str, Any]) -> None:
    labels, p = example(2)
    one = loss(term, settings)
    assert value(one, labels, p[..., 1:]) == pytest.approx(value(one, labels, p), rel=1e-5)
    of_pair, of_one = (value_and_gradient(one, labels, q)[1] for q in (p, p[..., 1:]))
    np.testing.assert_allclose(of_one[..., 0], of_pair[..., 1] - of_pair[..., 0], rtol=1e-3, atol=1e-6)


def weighted(labels: Labels, p: Array, weights: tuple[float, ...]) -> float:
    return log_loss(
        labels[labels != IGNORE],
        p[labels != IGNORE],
        sample_weight=np.array(weights)[labels[labels != IGNORE]],
        labels=range(p.shape[-1]),
    )


# What the systems in the sources are trained with, as their recipes write it
HIMALAYA = """
    focal: {gamma: 2, alpha: 0.25}
    dice: {smoothing: 1.0e-7, weight: 0.5}
    tversky: {alpha: 0.7, beta: 0.3, smoothing: 1.0e-7, weight: 0.5}
"""
PUBLISHED: dict[str, tuple[str, int, Callable[[Labels, Array], float]]] = {
    "glavitu, resunet, transunet, setr": ("focal: {gamma: 2}", 2, lambda y, p: focal(y, p, 2)),
    "resunet-himalaya": (
        HIMALAYA,
        2,
        lambda y, p: focal(y, p, 2, 0.25) + 0.5 * dice(y, p, 1e-7, False) + 0.5 * tversky(y, p, 1e-7, False, 0.7, 0.3),
    ),
    "resunet-himalaya, α as in the authors' code": (
        HIMALAYA.replace("alpha: 0.25", "weight: 0.25"),
        2,
        lambda y, p: (
            np.mean([-0.25 * (1 - q[k]) ** 2 * np.log(q[k]) for k, q in counted(y, p)])
            + 0.5 * dice(y, p, 1e-7, False)
            + 0.5 * tversky(y, p, 1e-7, False, 0.7, 0.3)
        ),
    ),
    "segformer-himalaya": (
        "{binary_cross_entropy: {weight: 0.5}, dice: {smoothing: 1, weight: 0.5}}",
        2,
        lambda y, p: 0.5 * binary_cross_entropy(y, p) + 0.5 * dice(y, p, 1, False),
    ),
    "both of the Himalaya, the third mix": (
        "{dice: {per_image: true, smoothing: 1.0e-6}, iou: {per_image: true, smoothing: 1.0e-6}, ssim: {}}",
        2,
        lambda y, p: dice(y, p, 1e-6, True) + iou(y, p, 1e-6, True) + ssim(y, p),
    ),
    "unetplusplus-mcc": (
        "{binary_cross_entropy: {weight: 0.7}, dice: {smoothing: 1.0e-6, weight: 0.3}}",
        2,
        lambda y, p: 0.7 * binary_cross_entropy(y, p) + 0.3 * dice(y, p, 1e-6, False),
    ),
    "unet-surface, without its class weights": (
        "{cross_entropy: {}, dice: {}}",
        4,
        lambda y, p: cross_entropy(y, p) + dice(y, p, 1, False),
    ),
    "demo": ("{focal: {gamma: 2.0}, dice: {weight: 0.5}}", 2, lambda y, p: focal(y, p, 2) + 0.5 * dice(y, p, 1, False)),
}


@pytest.mark.parametrize("system", PUBLISHED)
def test_a_system_trains_with_the_loss_of_its_source(system: str) -> None:
    text, classes, formula = PUBLISHED[system]
    terms = LossTerms.model_validate(yaml.safe_load(text))
    labels, p = example(classes)
    result = value(SegmentationLoss(terms), labels, p[..., 1:] if classes == 2 else p)
    assert result == pytest.approx(formula(labels, p), rel=1e-5)


# Pixels and classes


@all_terms
def test_ignored_pixels_do_not_matter(term: str, settings: dict[str, Any]) -> None:
    labels, p = example(3)
    changed = p.copy()
    changed[labels == IGNORE] = [1.0, 0.0, 0.0]
    one = loss(term, settings)
    assert value(one, labels, changed) == value(one, labels, p)
    # An image without a pixel that counts is as good as none.
    assert value(one, labels[:-1], p[:-1]) == pytest.approx(value(one, labels, p), rel=1e-6)
    _, slope = value_and_gradient(one, labels, p)
    assert (slope[labels == IGNORE] == 0).all() and (slope[labels != IGNORE] != 0).any(axis=-1).all()


WEIGHTS = (0.02, 1.5, 0.0, 7.0)


def test_class_weights_weigh_pixels_by_their_class() -> None:
    labels, p = example(4)
    p[labels == 3] = [0.4, 0.3, 0.2, 0.1]  # worse than the others, for the weights to tell
    expected = weighted(labels, p, WEIGHTS)
    assert expected != pytest.approx(cross_entropy(labels, p), rel=0.1)
    for factor in (1.0, 1e-4):  # divided by the weights, not by the pixels: their unit is no matter
        weights = tuple(factor * weight for weight in WEIGHTS)
        assert value(loss("cross_entropy", {}, class_weights=weights), labels, p) == pytest.approx(expected, rel=1e-5)


@all_terms
def test_class_weights_are_of_pixel_wise_terms_alone(term: str, settings: dict[str, Any]) -> None:
    labels, p = example(4)
    plain, with_weights = loss(term, settings), loss(term, settings, class_weights=WEIGHTS)
    if not plain.terms.has_pixel_terms:
        assert value(with_weights, labels, p) == value(plain, labels, p)
        return
    # What each class's pixels have, by their number and weight.
    of_class = [np.where(labels == k, labels, IGNORE) for k in range(4)]
    shares = np.array([weight * (labels == k).sum() for k, weight in enumerate(WEIGHTS)])
    values = [value(plain, only, p) for only in of_class]
    assert value(with_weights, labels, p) == pytest.approx(np.average(values, weights=shares), rel=1e-5)


def test_class_weights_of_one_sigmoid_are_two() -> None:
    labels, p = example(2)
    result = value(loss("binary_cross_entropy", {}, class_weights=(1.0, 3.0)), labels, p[..., 1:])
    assert result == pytest.approx(weighted(labels, p, (1.0, 3.0)), rel=1e-5)


def test_wrong_class_weights_are_refused() -> None:
    labels, p = example(3)
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        value(loss("dice", {}, class_weights=(1.0, 2.0)), labels, p)
    for weight in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="finite and not negative"):
            loss("dice", {}, class_weights=(1.0, weight))


def test_terms_are_summed_with_their_weights() -> None:
    labels, p = example(3)
    content = {term: settings | {"weight": 0.3 * (i + 1)} for i, (term, settings) in enumerate(dict(TERMS).items())}
    assert set(content) == set(LossTerms.model_fields)
    expected = sum(content[term]["weight"] * value(loss(term, dict(TERMS)[term]), labels, p) for term in content)
    assert value(SegmentationLoss(LossTerms.model_validate(content)), labels, p) == pytest.approx(expected, rel=1e-5)


# Edges

CASES = {
    "mixed": lambda classes: np.resize(np.arange(classes), SHAPE),
    "one class is nowhere": lambda classes: np.resize(np.arange(classes - 1), SHAPE),
    "only background": lambda _: np.zeros(SHAPE),
    "only class 1": lambda _: np.ones(SHAPE),
    "one pixel": lambda _: np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) == 70, 1, IGNORE),
    "all ignored": lambda _: np.full(SHAPE, IGNORE),
}


@pytest.mark.parametrize("classes", [1, 3])
@all_terms
def test_edges(term: str, settings: dict[str, Any], classes: int) -> None:
    one, kinds = tf.function(loss(term, settings)), max(2, classes)
    for case, make in CASES.items():
        labels = make(kinds).astype(np.int32)
        right = np.where(labels == IGNORE, 0, labels)
        predictions = {
            "perfect": np.eye(kinds)[right],
            "undecided": np.full((*SHAPE, kinds), 1 / kinds),
            "inverted": np.eye(kinds)[(right + 1) % kinds],
        }
        results = {}
        for name, p in predictions.items():
            results[name], slope = value_and_gradient(one, labels, p if classes > 1 else p[..., 1:])
            assert np.isfinite(results[name]) and np.isfinite(slope).all(), (case, name)
        if case == "all ignored":
            assert set(results.values()) == {0.0}
        else:
            assert abs(results["perfect"]) < 1e-6, (case, results)
            assert results["perfect"] < min(results["undecided"], results["inverted"]), (case, results)
            assert results["inverted"] < 18, (case, results)


@all_terms
def test_a_reduced_precision_changes_nothing(term: str, settings: dict[str, Any]) -> None:
    """Sums over many pixels pass float16's largest number, and its steps are wider than the smoothing."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, (2, 300, 250))
    p = rng.random((2, 300, 250, 1)).astype(np.float16)
    expected = value(loss(term, settings), labels, p.astype(np.float32))
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        result = loss(term, settings)(tf.constant(labels), tf.constant(p))
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert result.dtype == tf.float32 and float(result) == pytest.approx(expected, rel=1e-6)


# Label smoothing


def smoothed(labels: Labels, p: Array, smoothing: float, gamma: float) -> float:
    """Return the focal loss of targets mixed with ε / K; γ = 0 is the cross-entropy."""
    k = p.shape[-1]
    mixed = {reference: (1 - smoothing) * np.eye(k)[reference] + smoothing / k for reference in range(k)}
    return float(np.mean([-(mixed[r] * (1 - q) ** gamma * np.log(q)).sum() for r, q in counted(labels, p)]))


@pytest.mark.parametrize("classes", [2, 4])
def test_label_smoothing_mixes_the_labels(classes: int) -> None:
    labels, p = example(classes)
    losses = {0.0: loss("cross_entropy", {}, label_smoothing=0.1), 2.0: loss("focal", {}, label_smoothing=0.1)}
    with smoothing_labels(losses.values()):
        for gamma, one in losses.items():
            assert value(one, labels, p) == pytest.approx(smoothed(labels, p, 0.1, gamma), rel=1e-5)
    for gamma, one in losses.items():
        assert value(one, labels, p) == pytest.approx(smoothed(labels, p, 0.0, gamma), rel=1e-5)


def test_label_smoothing_of_one_sigmoid_is_of_two_classes() -> None:
    labels, p = example(2)
    one = loss("binary_cross_entropy", {}, label_smoothing=0.1)
    with smoothing_labels([one]):
        assert value(one, labels, p[..., 1:]) == pytest.approx(smoothed(labels, p, 0.1, 0.0), rel=1e-5)


@all_terms
def test_label_smoothing_is_of_pixel_wise_terms_alone(term: str, settings: dict[str, Any]) -> None:
    labels, p = example(3)
    one = loss(term, settings, label_smoothing=0.3)
    with smoothing_labels([one]):
        result = value(one, labels, p)
    assert (result == value(loss(term, settings), labels, p)) != one.terms.has_pixel_terms


def test_labels_are_smoothed_in_training_and_never_in_validation() -> None:
    labels, p = example(3)
    inputs = keras.Input((*SHAPE[1:], 3))
    model = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="identity")(inputs))
    one = loss("cross_entropy", {}, label_smoothing=0.2)
    model.compile(keras.optimizers.SGD(0.0), one)
    data: dict[str, Any] = {"x": p, "y": labels, "batch_size": SHAPE[0], "verbose": 0}
    training, validation = smoothed(labels, p, 0.2, 0.0), smoothed(labels, p, 0.0, 0.0)

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            raise KeyboardInterrupt

    for _ in range(2):  # the steps are compiled once, before and after the other
        assert model.evaluate(**data) == pytest.approx(validation, rel=1e-5)
        with smoothing_labels([one]):
            assert model.fit(**data).history["loss"] == pytest.approx([training], rel=1e-5)
    with pytest.raises(KeyboardInterrupt), smoothing_labels([one]):
        model.fit(**data, callbacks=[Interrupt()])
    assert model.evaluate(**data) == pytest.approx(validation, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"focal": {"gamma": -1}},
        {"focal": {"gamma": float("inf")}},
        {"focal": {"alpha": 0}},
        {"focal": {"alpha": 1}},
        {"focal": {"weight": 0}},
        {"dice": {"smoothing": 0}},
        {"cross_entropy": {"smoothing": 1}},
        {"tversky": {}},
        {"tversky": {"alpha": 0.7, "beta": -0.3}},
        {"ssim": {"per_image": True}},
        {"lovasz": {}},
    ],
)
def test_impossible_losses_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LossTerms.model_validate(wrong)
