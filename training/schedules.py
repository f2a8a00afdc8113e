"""Learning rates: warm-up and cosine by step, plateau by epoch."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from training.recipe import Cosine, Plateau


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then constant, or half a cosine to 0; `factor` multiplies all of it.

    A step is baked into the compiled training step: whoever changes `factor` compiles that anew.

    Args:
        rate: Learning rate after the warm-up.
        warmup_steps: Steps of the warm-up; step n of it (from 0) uses (n + 1) / warmup_steps of the rate.
        cosine_steps: Total steps of the run for a cosine; 0 for a constant rate.
    """

    def __init__(self, rate: float, warmup_steps: int = 0, cosine_steps: int = 0) -> None:
        self.rate, self.warmup_steps, self.cosine_steps = rate, warmup_steps, cosine_steps
        self.factor = 1.0

    def __call__(self, step: Any) -> Any:
        """Return the rate at optimiser step `step`, counted from 0."""
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.rate * self.factor, "float32")
        if self.cosine_steps:
            span = max(1, self.cosine_steps - self.warmup_steps)
            done = ops.clip((step - self.warmup_steps) / span, 0.0, 1.0)
            rate = rate * 0.5 * (1.0 + ops.cos(math.pi * done))
        return rate * ops.minimum(1.0, (step + 1.0) / self.warmup_steps) if self.warmup_steps else rate

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal schedule."""
        return {"rate": self.rate, "warmup_steps": self.warmup_steps, "cosine_steps": self.cosine_steps}


def rate_of(schedule: Plateau | Cosine, learning_rate: float, steps: int, epochs: int) -> Rate:
    """Return the schedule's rate by step for epochs of `steps` steps."""
    warmup = round(schedule.warmup_epochs * steps)
    return Rate(learning_rate, warmup, steps * epochs if isinstance(schedule, Cosine) else 0)


class Patience:
    """Counts epochs in which a score did not rise by more than `min_delta` above its best."""

    def __init__(self, min_delta: float = 0.0) -> None:
        self.min_delta, self.best, self.waited = min_delta, -math.inf, 0

    def wait(self, score: float) -> int:
        """Take an epoch's score (nan never counts as a rise) and return the epochs waited since the last rise."""
        if score > self.best + self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        return self.waited
