"""Learning rates by step, and patience by epoch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from training.recipe import Constant, Cosine, Plateau, Restarts
from training.schedules import Patience, Rate, rate_of


def rates(rate: Rate, steps: int) -> np.ndarray:
    return np.array([float(rate(step)) for step in range(steps)])


def test_warm_up_is_linear_and_reaches_the_rate() -> None:
    rate = rate_of(Plateau(name="plateau", warmup_epochs=1), 5e-4, steps=8, epochs=100)
    np.testing.assert_allclose(rates(rate, 12), 5e-4 * np.minimum(1, np.arange(1, 13) / 8), rtol=1e-6)


def test_without_warm_up_the_rate_is_constant() -> None:
    for schedule in (Plateau(name="plateau"), Constant(name="constant")):
        np.testing.assert_allclose(rates(rate_of(schedule, 1e-3, 8, 2), 30), 1e-3, rtol=1e-6)


def test_cosine_falls_from_the_rate_to_0() -> None:
    rate = rate_of(Cosine(name="cosine", warmup_epochs=0.5), 2e-3, steps=10, epochs=4)
    found = rates(rate, 41)
    np.testing.assert_allclose(found[:5], 2e-3 * np.arange(1, 6) / 5, rtol=1e-6)
    done = np.arange(36) / 35
    np.testing.assert_allclose(found[5:], 1e-3 * (1 + np.cos(math.pi * done)), rtol=1e-5, atol=1e-9)
    assert found.argmax() in (4, 5) and found[40] == pytest.approx(0, abs=1e-9)
    assert float(rate(1000)) == pytest.approx(0, abs=1e-9)


def test_a_run_of_warm_up_only_has_no_cosine() -> None:
    rate = rate_of(Cosine(name="cosine", warmup_epochs=1), 1e-3, steps=4, epochs=1)
    np.testing.assert_allclose(rates(rate, 4), 1e-3 * np.arange(1, 5) / 4, rtol=1e-6)


def test_each_cosine_falls_to_0_and_the_next_starts_at_the_full_rate() -> None:
    schedule = Restarts(name="restarts", epochs=(1, 3), warmup_epochs=0.5)
    found = rates(rate_of(schedule, 2e-3, steps=4, epochs=6), 25)
    expected = [0.5, 1]  # the warm-up, then cosines over 2, 8 and 12 steps
    for length in (2, 8, 12):
        expected += [0.5 * (1 + math.cos(math.pi * step / length)) for step in range(length)]
    assert expected[2] == expected[4] == expected[12] == 1
    np.testing.assert_allclose(found, 2e-3 * np.array([*expected, 0]), rtol=1e-5, atol=1e-9)


def test_a_run_without_restarts_is_one_cosine() -> None:
    one = rate_of(Cosine(name="cosine", warmup_epochs=1), 1e-3, steps=5, epochs=4)
    several = rate_of(Restarts(name="restarts", warmup_epochs=1, epochs=(4,)), 1e-3, steps=5, epochs=8)
    np.testing.assert_allclose(rates(several, 20), rates(one, 20), rtol=1e-6)


def test_a_plateau_lowers_the_rate_down_to_its_floor() -> None:
    rate, plateau = Rate(1e-4), Plateau(name="plateau", factor=0.5, floor=2e-5)
    found = []
    for _ in range(5):
        found.append(float(rate(0)))
        rate.lower(plateau)
    assert found == pytest.approx([1e-4, 5e-5, 2.5e-5, 2e-5, 2e-5])


def test_the_factor_multiplies_warm_up_and_cosine() -> None:
    rate = Rate(1e-3, warmup_steps=3, cosine_ends=(9,))
    before = rates(rate, 9)
    rate.factor = 0.1
    np.testing.assert_allclose(rates(rate, 9), before / 10, rtol=1e-5)


def test_a_schedule_is_made_again_from_its_config() -> None:
    rate = Rate(1e-3, warmup_steps=3, cosine_ends=(4, 9))
    np.testing.assert_array_equal(rates(Rate(**rate.get_config()), 9), rates(rate, 9))


SCORES = [
    [0.1, 0.2, 0.3, 0.4],
    [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
    [0.5, 0.50005, 0.5001, 0.50015, 0.5002, 0.6, 0.6, 0.60011, 0.6002, 0.6002],
    [0.3, 0.1, 0.2, 0.31, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1],
]


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("scores", SCORES)
def test_patience_drops_the_rate_when_keras_does(scores: list[float], patience: int) -> None:
    theirs = keras.callbacks.ReduceLROnPlateau("score", 0.5, patience, mode="max", min_delta=1e-4)
    optimizer = SimpleNamespace(learning_rate=keras.Variable(1.0))
    theirs.set_model(SimpleNamespace(optimizer=optimizer))
    theirs.on_train_begin()
    ours, rate = Patience(1e-4), 1.0
    for epoch, score in enumerate(scores):
        theirs.on_epoch_end(epoch, {"score": score})
        if ours.wait(score) >= patience:
            ours.waited, rate = 0, rate / 2
        assert rate == pytest.approx(float(optimizer.learning_rate)), (epoch, score)


@pytest.mark.parametrize("min_delta", [0.0, 1e-4])
@pytest.mark.parametrize("scores", SCORES)
def test_patience_with_a_loss_is_patience_with_its_negative(scores: list[float], min_delta: float) -> None:
    rising, falling = Patience(min_delta), Patience(min_delta, lower_is_better=True)
    for score in scores:
        assert falling.wait(-score) == rising.wait(score) and falling.best == -rising.best


def test_without_a_delta_any_rise_counts_and_nan_never_does() -> None:
    patience = Patience()
    waited = [patience.wait(score) for score in (0.1, 0.1, 0.1000001, math.nan, 0.05, 0.2)]
    assert waited == [0, 1, 0, 1, 2, 0] and patience.best == 0.2
