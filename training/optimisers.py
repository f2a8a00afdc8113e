"""Optimisers as recipes name them, on the rate of a schedule."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from training.recipe import Training
from training.schedules import Rate


def optimiser_of(training: Training, rate: Rate) -> keras.optimizers.Optimizer:
    """Return the optimiser of a recipe's training.

    With `accumulate` it takes the gradients of that many parts of a batch, one part a call, and at the last of them
    updates the weights with their mean: clipping, decay, moments, `iterations` and rate go by update. Under a loss
    scale, a part whose gradients overflow is left out and the next one stands in for it.
    """
    recipe, accumulate = training.optimiser, training.accumulate
    arguments: dict[str, Any] = {
        "learning_rate": _OfUpdates(rate, accumulate) if accumulate > 1 else rate,
        "global_clipnorm": recipe.clip_norm,
        "gradient_accumulation_steps": accumulate if accumulate > 1 else None,
    }
    if recipe.epsilon is not None:
        arguments["epsilon"] = recipe.epsilon
    if recipe.l2:
        arguments["l2"] = recipe.l2
    if recipe.name == "sgd":
        arguments |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        optimiser = (SGDWithL2 if recipe.l2 else keras.optimizers.SGD)(**arguments)
    elif recipe.name == "adamw":
        optimiser = keras.optimizers.AdamW(weight_decay=recipe.weight_decay, **arguments)
    else:
        optimiser = (AdamWithL2 if recipe.l2 else keras.optimizers.Adam)(**arguments)
    # An attribute that is a variable is one of the optimiser's own: on JAX, a compiled step reads only those anew.
    optimiser.rate_factor = rate.variable
    return optimiser


def values_per_parameter(training: Training) -> int:
    """Return the numbers that a step keeps for each weight: itself, its gradient, moments, the accumulated gradient."""
    moments = 2 if training.optimiser.name != "sgd" else int(training.optimiser.momentum > 0)
    return 2 + moments + int(training.accumulate > 1)


class _OfUpdates(keras.optimizers.schedules.LearningRateSchedule):
    """A rate by update, for an optimiser that accumulates: Keras gives schedules the number of parts seen."""

    def __init__(self, rate: Rate, parts: int) -> None:
        self.rate, self.parts = rate, parts

    def __call__(self, step: Any) -> Any:
        """Return the rate of the update that part `step`, counted from 0, belongs to."""
        return self.rate(ops.floor_divide(step, self.parts))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal schedule."""
        return {"rate": self.rate, "parts": self.parts}


class _WithL2(keras.optimizers.Optimizer):
    """Adds `l2` times the weights to the gradient, after it was averaged, unscaled and clipped."""

    def __init__(self, *, l2: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.l2 = l2

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update `variable` and its moments with the sum."""
        gradient = ops.add(ops.cast(gradient, variable.dtype), ops.multiply(variable, self.l2))
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimiser."""
        return super().get_config() | {"l2": self.l2}


# Their names begin variables' names, in which TensorFlow takes no leading underscore.
class AdamWithL2(_WithL2, keras.optimizers.Adam):
    """Adam on the gradient with the weights' share in it."""


class SGDWithL2(_WithL2, keras.optimizers.SGD):
    """Gradient descent on the gradient with the weights' share in it."""
