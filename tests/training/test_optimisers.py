"""Optimisers held against their formulas, and accumulated gradients against those of the whole batch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from training.losses import LossTerms, SegmentationLoss
from training.optimisers import optimiser_of, values_per_parameter
from training.recipe import Training
from training.schedules import Rate, rate_of

ROOT = Path(__file__).parents[2]
STEPS = 3
# Clipping, decay of either kind, and an ε that keeps Adam from making much of the rounding of small gradients.
ADAM = {"learning_rate": 3e-3, "clip_norm": 0.05, "l2": 0.1, "epsilon": 1e-3}
ADAMW = {"name": "adamw", "learning_rate": 3e-3, "clip_norm": 0.05, "weight_decay": 0.5, "epsilon": 1e-3}


def training(**changes: Any) -> Training:
    """Return settings whose rate is another in each of `STEPS` steps."""
    schedule = {"name": "cosine", "warmup_epochs": 0.5}
    return Training.model_validate({"batch_size": 8, "epochs": 1, "schedule": schedule} | changes)


def rate_for(settings: Training) -> Rate:
    return rate_of(settings.schedule, settings.optimiser.learning_rate, STEPS, settings.epochs)


# One update


def by_formula(
    weights: list[NDArray[np.float64]], steps: list[list[NDArray[np.float64]]], rates: list[float], **options: Any
) -> list[NDArray[np.float64]]:
    """Return the weights after the gradients of `steps`, from the formulas of the papers, in PyTorch's order."""
    name, momentum = options["name"], options.get("momentum", 0.0)
    weights = [w.copy() for w in weights]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for t, (gradients, rate) in enumerate(zip(steps, rates, strict=True), start=1):
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        clip = min(1.0, options.get("clip_norm", math.inf) / norm)
        for i, gradient in enumerate(gradients):
            g = clip * gradient + options.get("l2", 0.0) * weights[i]
            weights[i] -= rate * options.get("weight_decay", 0.0) * weights[i]
            if name == "sgd":
                first[i] = momentum * first[i] - rate * g
                weights[i] += momentum * first[i] - rate * g if options.get("nesterov") else first[i]
            else:
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g**2
                corrected = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                weights[i] -= corrected * first[i] / (np.sqrt(second[i]) + options.get("epsilon", 1e-7))
    return weights


@pytest.mark.parametrize(
    "options",
    [
        {"name": "adam"},
        {"name": "adam", "epsilon": 0.1},
        {"name": "adam", "l2": 0.3, "epsilon": 0.1},
        {"name": "adam", "l2": 0.3, "clip_norm": 0.5},
        {"name": "adamw", "weight_decay": 0.5},
        {"name": "adamw", "weight_decay": 0.5, "clip_norm": 0.5, "epsilon": 0.1},
        {"name": "sgd"},
        {"name": "sgd", "momentum": 0.9, "l2": 0.3, "clip_norm": 0.5},
        {"name": "sgd", "momentum": 0.9, "nesterov": True, "clip_norm": 100.0},
    ],
    ids=str,
)
def test_an_optimiser_is_its_formula(options: dict[str, Any]) -> None:
    settings = training(optimiser={"learning_rate": 0.05} | options)
    rate, random = rate_for(settings), np.random.default_rng(0)
    weights = [random.normal(size=size) for size in ((3, 2), (2,))]  # a kernel and a bias: neither is spared
    steps = [[random.normal(size=w.shape) for w in weights] for _ in range(STEPS)]
    variables = [keras.Variable(w) for w in weights]
    optimiser = optimiser_of(settings, rate)
    for gradients in steps:
        optimiser.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients], variables)
    expected = by_formula(weights, steps, [float(rate(step)) for step in range(STEPS)], **options)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-5)
    assert int(optimiser.iterations) == STEPS


def test_without_options_the_optimisers_are_keras_own() -> None:
    kinds = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW, "sgd": keras.optimizers.SGD}
    for name, kind in kinds.items():
        settings = training(optimiser={"name": name})
        assert isinstance(optimiser_of(settings, rate_for(settings)), kind)


# The compiled step; some of this runs on a second backend as well: `test_jax_does_the_same`.


def network(precision: str = "float32") -> keras.Model:
    """Three convolutions without normalisation and dropout, the same weights each time."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3, activation="tanh", dtype=precision)(inputs)
    output = keras.layers.Conv2D(2, 1, activation="softmax", dtype="float32", name="output")(x)
    model = keras.Model(inputs, {"output": output})
    if precision == "mixed_float16":
        model.dtype_policy = keras.DTypePolicy(precision)
    return model


def fitted(settings: Training, precision: str = "float32", x: NDArray[np.float32] | None = None) -> keras.Model:
    """Return the network after one pass over patches, `STEPS` batches of them unless `x` is others."""
    random = np.random.default_rng(1)
    if x is None:
        x = random.normal(size=(STEPS * settings.batch_size, 8, 8, 3)).astype(np.float32)
    labels = (x[:, 1:-1, 1:-1, 0] > 0.3).astype(np.int32)
    model = network(precision)
    loss = SegmentationLoss(LossTerms.model_validate({"focal": {}}))
    model.compile(optimiser_of(settings, rate_for(settings)), {"output": loss})
    model.fit(x, {"output": labels}, batch_size=settings.part_size, shuffle=False, verbose=0)
    return model


def differences(a: keras.Model, b: keras.Model) -> list[float]:
    return [float(np.abs(x - y).max()) for x, y in zip(a.get_weights(), b.get_weights(), strict=True)]


@pytest.mark.parametrize(
    ("optimiser", "precision"),
    [
        ({"learning_rate": 3e-3}, "float32"),
        (ADAM, "float32"),
        (ADAMW, "mixed_float16"),
    ],
    ids=["adam", "adam, l2, clip_norm", "adamw, clip_norm, float16"],
)
def test_the_parts_of_a_batch_update_as_the_batch_does(optimiser: dict[str, Any], precision: str) -> None:
    whole = fitted(training(optimiser=optimiser), precision)
    parts = fitted(training(optimiser=optimiser, accumulate=4), precision)
    assert max(differences(whole, parts)) < 1e-5
    assert min(differences(whole, network())) > 1e-3
    assert int(whole.optimizer.iterations) == int(parts.optimizer.iterations) == STEPS
    assert isinstance(parts.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")


def test_a_part_that_overflows_is_left_out() -> None:
    settings = training(optimiser=ADAM, accumulate=4)
    x = np.random.default_rng(2).normal(size=(STEPS * 8, 8, 8, 3)).astype(np.float32)
    overflowing = np.full((2, 8, 8, 3), 1e6, np.float32)
    expected = fitted(settings, "mixed_float16", x)
    found = fitted(settings, "mixed_float16", np.concatenate([x[:4], overflowing, x[4:]]))
    assert max(differences(expected, found)) < 1e-5
    scales = [float(model.optimizer.dynamic_scale) for model in (expected, found)]
    assert scales[1] == scales[0] / 2 and int(found.optimizer.iterations) == STEPS


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_compiled_step_follows_the_factor(accumulate: int) -> None:
    settings = training(schedule={"name": "constant"}, accumulate=accumulate)
    rate, model = rate_for(settings), network()
    x, labels = np.ones((8, 8, 8, 3), np.float32), {"output": np.ones((8, 6, 6), np.int32)}
    model.compile(optimiser_of(settings, rate), {"output": SegmentationLoss(LossTerms.model_validate({"focal": {}}))})
    updates = []
    for rate.factor in (1.0, 0.0, 0.5):
        before = model.get_weights()
        model.fit(x, labels, batch_size=settings.part_size, verbose=0)
        updates.append(max(float(np.abs(a - b).max()) for a, b in zip(before, model.get_weights(), strict=True)))
        assert float(model.optimizer.learning_rate) == pytest.approx(5e-4 * rate.factor)
    assert updates[0] > 1e-4 and updates[1] == 0 and 1e-4 < updates[2] < updates[0]


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="this is JAX")
def test_jax_does_the_same() -> None:
    chosen = "float16 or follows_the_factor[2]"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, __file__]
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiling takes longer than computing here
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "2 passed" in done.stdout


# Memory


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4),
        ({"accumulate": 2}, 5),
        ({"optimiser": {"name": "sgd"}}, 2),
        ({"optimiser": {"name": "sgd", "momentum": 0.9, "l2": 0.1}, "accumulate": 8}, 4),
    ],
)
def test_the_numbers_kept_for_a_weight_are_those_that_the_optimiser_holds(
    changes: dict[str, Any], expected: int
) -> None:
    settings = training(**changes)
    assert values_per_parameter(settings) == expected
    optimiser = optimiser_of(settings, rate_for(settings))
    optimiser.build([keras.Variable(np.zeros(1000))])
    held = sum(math.prod(variable.shape) for variable in optimiser.variables) // 1000
    assert expected == 2 + held  # beside the weight and its gradient
