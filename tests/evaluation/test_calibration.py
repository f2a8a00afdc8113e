"""Calibration recovers what is known to be wrong, leaves alone what is right, and is stored for one way to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from console import UserError
from data.predictions import label
from evaluation.calibration import (
    About,
    Calibrator,
    Sample,
    calibration_path,
    find,
    fit,
    fit_method,
    save,
    score,
)
from evaluation.reliability import Reliability
from evaluation.scores import IGNORE

Tiles = list[tuple[str, NDArray[np.float32], NDArray[np.int64]]]
ABOUT = About(
    weights={"r": "1"},
    classes=("background", "glacier"),
    source="val.hdf5",
    source_digest="d",
    overlap=0.5,
    precision="float32",
)


def true_pixels(classes: int, count: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities `(count, K)` and classes drawn with them: calibrated by construction."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(classes), count)
    drawn = (rng.random(count)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    return probs, np.minimum(drawn, classes - 1)


def powered(probs: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """p^γ, normalised: too sure of itself with γ above 1."""
    raised = probs**power
    return raised / raised.sum(axis=1, keepdims=True)


def tiles_of(probs: NDArray[np.float64], reference: NDArray[np.int64], count: int) -> Tiles:
    parts = zip(np.split(probs, count), np.split(reference, count), strict=True)
    return [
        (f"t{i}", p.reshape(20, -1, probs.shape[1]).astype(np.float32), r.reshape(20, -1))
        for i, (p, r) in enumerate(parts)
    ]


# Maps


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_a_temperature_of_1_changes_nothing_and_none_changes_labels(classes: int) -> None:
    probs = np.random.default_rng(0).dirichlet(np.full(max(2, classes), 0.5), (8, 9))[..., -classes:].astype(np.float32)
    np.testing.assert_allclose(Calibrator(method="temperature")(probs), probs, atol=1e-6)
    assert Calibrator()(probs) is probs
    for temperature in (0.3, 4.0):
        mapped = Calibrator(method="temperature", temperature=temperature)(probs)
        assert mapped.shape == probs.shape and mapped.dtype == np.float32
        np.testing.assert_array_equal(label(mapped), label(probs))


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_temperature_recovers_a_known_power(classes: int, power: float) -> None:
    probs, reference = true_pixels(classes, 60_000)
    fitted = fit_method("temperature", powered(probs, power), reference)
    assert fitted.temperature == pytest.approx(power, rel=0.03)
    np.testing.assert_allclose(fitted(powered(probs, fitted.temperature)), probs, atol=2e-3)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_what_is_calibrated_stays_and_what_is_not_becomes_so(method: Any) -> None:
    probs, reference = true_pixels(3, 100_000)
    fitted = fit_method(method, probs, reference)
    assert np.abs(fitted(probs) - probs).mean() < 0.01
    wrong = powered(probs, 2.5)
    fitted = fit_method(method, wrong, reference)
    unseen, their_reference = true_pixels(3, 100_000, seed=1)
    before = score(powered(unseen, 2.5), powered(unseen, 2.5), their_reference)
    after = score(fitted(powered(unseen, 2.5)), powered(unseen, 2.5), their_reference)
    assert before.ece > 0.1 and after.ece < 0.015 and after.nll < before.nll and after.classwise_ece < 0.01


def test_isotonic_is_that_of_scikit_learn() -> None:
    """At values that fill a bin of their own each, the pooling into bins changes nothing."""
    rng = np.random.default_rng(0)
    levels = 1 / (1 + np.exp(-np.arange(-6, 6.1, 0.4)))
    values = rng.choice(levels, 4000)
    true = rng.random(4000) < 0.2 + 0.6 * values**2
    curve = fit_method("isotonic", np.stack([1 - values, values], axis=1), true.astype(np.int64)).curves[1]
    reference = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(values, true)
    at = np.linspace(0, 1, 101)
    np.testing.assert_allclose(np.interp(at, curve.x, curve.y), reference.predict(at), atol=1e-5)
    assert list(curve.x) == sorted(curve.x) and list(curve.y) == sorted(curve.y)


def test_isotonic_corrects_a_bias_that_no_temperature_can() -> None:
    probs, reference = true_pixels(2, 100_000)
    biased = probs * [1, 4]
    biased /= biased.sum(axis=1, keepdims=True)
    errors = {
        method: score(fit_method(method, biased, reference)(biased), biased, reference).ece
        for method in ("none", "temperature", "isotonic")
    }
    assert errors["isotonic"] < 0.005 < 0.02 < min(errors["none"], errors["temperature"])


def test_probabilities_of_0_and_1_are_endured() -> None:
    probs = np.array([[1.0, 0.0]] * 50 + [[0.0, 1.0]] * 50)
    reference = np.r_[np.zeros(49, int), 1, np.ones(50, int)]
    for method in ("temperature", "isotonic"):
        mapped = fit_method(method, probs, reference)(probs)
        assert np.isfinite(mapped).all() and (mapped > 0).all() and (mapped < 1).all()
    perfect = fit_method("temperature", probs, probs.argmax(axis=1))
    assert perfect.temperature == 0.05


# The fit


def test_the_better_method_is_chosen_on_tiles_that_it_was_not_fitted_on() -> None:
    probs, reference = true_pixels(2, 100_000)
    fitted = fit(tiles_of(powered(probs, 2), reference, 10), ABOUT)
    assert fitted.best == "temperature" and fitted.folds == 5 and fitted.pixels == fitted.sampled == 100_000
    assert fitted.calibrator().temperature == pytest.approx(2, rel=0.03)
    assert fitted.calibrator("none") == Calibrator() and fitted.calibrator("isotonic").method == "isotonic"
    assert fitted.scores["none"].ece == pytest.approx(
        Reliability.of(powered(probs, 2), powered(probs, 2).argmax(axis=1), reference).ece, rel=1e-4
    )
    assert "<- used" in fitted.text() and "T = " in fitted.text()

    # Tiles that contradict one another: whatever is learned from some is wrong on the others.
    few = tiles_of(probs[:800], reference[:800], 2)
    flipped = [(name, p, r if name == "t0" else 1 - r) for name, p, r in few]
    scores = fit(flipped, ABOUT).scores
    assert scores["isotonic"].nll > scores["none"].nll
    assert fit(few[:1], ABOUT).folds == 1


def test_masked_pixels_do_not_count() -> None:
    probs, reference = true_pixels(2, 20_000)
    tiles = tiles_of(powered(probs, 2), reference, 4)
    masked, cut = [], []
    for name, p, r in tiles:
        ignored = r.copy()
        ignored[10:] = IGNORE
        masked.append((name, np.where((ignored == IGNORE)[..., None], np.float32(0.5), p), ignored))
        cut.append((name, p[:10], r[:10]))
    one, other = fit(masked, ABOUT), fit(cut, ABOUT)
    assert one.pixels == other.pixels == 10_000
    assert (one.temperature, one.isotonic, one.scores) == (other.temperature, other.isotonic, other.scores)
    nothing = [(name, p, np.full(p.shape[:2], IGNORE)) for name, p, _ in tiles]
    with pytest.raises(UserError, match="none of 4 tiles has a pixel"):
        fit(nothing, ABOUT)


def test_the_sample_is_bounded_uniform_and_the_same_in_any_order() -> None:
    tiles = tiles_of(*true_pixels(2, 40_000), 8)
    samples = []
    for order in (tiles, tiles[::-1]):
        sample = Sample(limit=1000)
        for name, p, r in order:
            sample.add(name, p, r)
            assert sum(len(part[0]) for part in sample._parts) <= 2 * 1000 + p[..., 0].size
        samples.append(sample.drawn())
        assert sample.pixels == 40_000
    probs, _, numbers = samples[0]
    assert len(probs) == 1000 and np.bincount(numbers, minlength=8).min() > 80
    np.testing.assert_array_equal(np.sort(probs[:, 0]), np.sort(samples[1][0][:, 0]))


# Stored


def test_what_is_stored_is_found_again_for_its_way_to_predict(tmp_path: Path) -> None:
    probs, reference = true_pixels(2, 4000)
    plain = fit(tiles_of(powered(probs, 2), reference, 4), ABOUT)
    turned = plain.model_copy(update={"about": ABOUT.model_copy(update={"tta": ("flip-h",), "mc": 3})})
    for one in (plain, turned, turned):
        assert save("r", one, tmp_path) == calibration_path("r", tmp_path) == tmp_path / "r.calibration.json"
    assert find("r", ABOUT, tmp_path) == plain and find("r", turned.about, tmp_path) == turned
    elsewhere = ABOUT.model_copy(update={"source": "test.hdf5", "source_digest": "e", "overlap": 0.25})
    assert find("r", elsewhere, tmp_path) == plain

    for changes, message in (
        ({"weights": {"s": "1"}}, "is the calibration of r, not of s"),
        ({"weights": {"r": "2"}}, "fitted to other weights of 'r'"),
        ({"classes": ("rock", "ice")}, "for the classes background, glacier; 'r' predicts rock, ice"),
        ({"mc": 8}, "with neither --tta nor --mc; --tta flip-h --mc 3, not with --mc 8"),
    ):
        with pytest.raises(UserError, match=message):
            find("r", ABOUT.model_copy(update=changes), tmp_path)
    with pytest.raises(UserError, match="no calibration of 's'"):
        find("s", ABOUT, tmp_path)

    # Those of former weights go when the first of new ones comes; a damaged file is replaced.
    again = plain.model_copy(update={"about": ABOUT.model_copy(update={"weights": {"r": "2"}})})
    save("r", again, tmp_path)
    with pytest.raises(UserError, match="not with --tta flip-h --mc 3"):
        find("r", turned.about.model_copy(update={"weights": {"r": "2"}}), tmp_path)
    calibration_path("r", tmp_path).write_text("{")
    with pytest.raises(UserError, match="is no calibration"):
        find("r", ABOUT, tmp_path)
    save("r", plain, tmp_path)
    assert find("r", ABOUT, tmp_path) == plain
