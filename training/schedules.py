"""Learning rates: warm-up and cosines by step, plateau by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras
from keras import ops

from training.recipe import Constant, Cosine, Plateau, Restarts


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then constant, or half cosines to 0 one after another; `factor` multiplies all of it.

    The factor is a variable, which the optimiser counts among its own (`training.optimisers`): a compiled training
    step reads what it is at the time, on every backend.

    Args:
        rate: Learning rate after the warm-up.
        warmup_steps: Steps of the warm-up; step n of it (from 0) uses (n + 1) / warmup_steps of the rate.
        cosine_ends: The step (from 0) at which each cosine has fallen to 0 and the next one starts; the last is the
            number of steps of the run. Empty for a constant rate.
    """

    def __init__(self, rate: float, warmup_steps: int = 0, cosine_ends: Sequence[int] = ()) -> None:
        self.rate, self.warmup_steps, self.cosine_ends = rate, warmup_steps, tuple(cosine_ends)
        self.variable = keras.Variable(1.0, trainable=False, dtype="float32", name="rate_factor")

    @property
    def factor(self) -> float:
        """What the rate is multiplied with; 1 at the start."""
        return float(self.variable)

    @factor.setter
    def factor(self, factor: float) -> None:
        self.variable.assign(factor)

    def lower(self, plateau: Plateau) -> None:
        """Take one step down: the rate after the warm-up times the plateau's factor, but no lower than its floor."""
        self.factor = max(self.factor * plateau.factor, plateau.floor / self.rate)

    def __call__(self, step: Any) -> Any:
        """Return the rate at optimiser step `step`, counted from 0."""
        step = ops.cast(step, "float32")
        share = 1.0
        for start, end in pairwise((self.warmup_steps, *self.cosine_ends)):
            done = ops.clip((step - start) / max(1, end - start), 0.0, 1.0)
            share = ops.where(step >= start, 0.5 * (1.0 + ops.cos(math.pi * done)), share)
        rate = self.rate * self.variable * share
        return rate * ops.minimum(1.0, (step + 1.0) / self.warmup_steps) if self.warmup_steps else rate

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal schedule."""
        return {"rate": self.rate, "warmup_steps": self.warmup_steps, "cosine_ends": self.cosine_ends}


def rate_of(schedule: Constant | Plateau | Cosine | Restarts, learning_rate: float, steps: int, epochs: int) -> Rate:
    """Return the schedule's rate by step for epochs of `steps` steps."""
    restarts = schedule.epochs if isinstance(schedule, Restarts) else ()
    ends = [steps * epoch for epoch in (*restarts, epochs)] if isinstance(schedule, Cosine | Restarts) else []
    return Rate(learning_rate, round(schedule.warmup_epochs * steps), ends)


class Patience:
    """Counts epochs in which a score did not rise by more than `min_delta` above its best.

    Args:
        min_delta: What a rise has to exceed.
        lower_is_better: The score is a loss, and a fall counts in place of a rise.
    """

    def __init__(self, min_delta: float = 0.0, lower_is_better: bool = False) -> None:
        self.min_delta, self.sign = min_delta, -1.0 if lower_is_better else 1.0
        self.best, self.waited = -math.inf * self.sign, 0

    def wait(self, score: float) -> int:
        """Take an epoch's score (nan never counts as a rise) and return the epochs waited since the last rise."""
        if self.sign * score > self.sign * self.best + self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        return self.waited
