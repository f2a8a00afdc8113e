"""Losses on probabilities, with ignored pixels left out.

Every term takes labels (N, H, W), probabilities (N, H, W, K) and the class weights of pixels that count, and pools
over the batch. K = 1 means one sigmoid probability of class 1; it is treated as the pair (1 - p, p).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import keras
from keras import ops
from pydantic import BaseModel, ConfigDict, Field, model_validator

IGNORE = 255
EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 (float32: one step below 1)


class _Term(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pixelwise: ClassVar[bool] = True  # a mean over pixels, which class weights apply to

    weight: Annotated[float, Field(gt=0)] = 1.0

    @abstractmethod
    def value(self, one_hot: Any, probabilities: Any, counted: Any) -> Any:
        """Return the unweighted loss of a batch.

        Args:
            one_hot: (N, H, W, K) float32, reference classes.
            probabilities: (N, H, W, K) float32, K ≥ 2.
            counted: (N, H, W) float32, how much the pixel counts: 0 for ignored ones; the class weight, or 1.
        """


class CrossEntropy(_Term):
    """Cross-entropy -log pₜ, mean over the pixels that count; pₜ is the probability of the reference class."""

    def value(self, one_hot: Any, probabilities: Any, counted: Any) -> Any:
        """Return the mean over pixels."""
        return _mean(-ops.log(_of_reference(one_hot, probabilities)), counted)


class Focal(_Term):
    """Focal loss -(1 - pₜ)^γ log pₜ, mean over the pixels that count (Lin et al. 2017, arXiv:1708.02002, without α)."""

    gamma: Annotated[float, Field(ge=0)] = 2.0

    def value(self, one_hot: Any, probabilities: Any, counted: Any) -> Any:
        """Return the mean over pixels."""
        true = _of_reference(one_hot, probabilities)
        return _mean(-ops.power(1.0 - true, self.gamma) * ops.log(true), counted)


class Dice(_Term):
    """1 - (2 Σ p y + s) / (Σ p + Σ y + s), sums over the batch, mean over the classes but background.

    Milletari et al. 2016 (arXiv:1606.04797) with plain sums in the denominator; s is `smoothing`.
    """

    pixelwise: ClassVar[bool] = False

    smoothing: Annotated[float, Field(gt=0)] = 1.0

    def value(self, one_hot: Any, probabilities: Any, counted: Any) -> Any:
        """Return the mean over classes."""
        y = (one_hot * counted[..., None])[..., 1:]
        p = (probabilities * counted[..., None])[..., 1:]
        overlap = ops.sum(p * y, axis=(0, 1, 2))
        total = ops.sum(p, axis=(0, 1, 2)) + ops.sum(y, axis=(0, 1, 2))
        return ops.mean(1.0 - (2.0 * overlap + self.smoothing) / (total + self.smoothing))


class LossTerms(BaseModel):
    """The terms of a loss by name, summed with their weights; at least one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cross_entropy: CrossEntropy | None = None
    focal: Focal | None = None
    dice: Dice | None = None

    @model_validator(mode="after")
    def _some(self) -> LossTerms:
        if not self.terms:
            raise ValueError(f"expected one or more of {', '.join(type(self).model_fields)}")
        return self

    @property
    def terms(self) -> list[_Term]:
        """The terms that are there."""
        return [term for name in type(self).model_fields if (term := getattr(self, name)) is not None]


class SegmentationLoss(keras.losses.Loss):
    """A weighted sum of terms over one output; pixels labelled 255 are left out of every sum.

    Args:
        terms: The terms.
        class_weights: How much a pixel counts by its reference class, in terms that are means over pixels; they are
            divided by the sum of the weights. None: every pixel counts 1.
    """

    def __init__(self, terms: LossTerms, class_weights: tuple[float, ...] | None = None) -> None:
        super().__init__(name="segmentation", reduction="none")
        self.terms, self.class_weights = terms, class_weights

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the scalar loss of labels (N, H, W) and probabilities (N, H, W, K)."""
        if y_pred.shape[-1] == 1:
            y_pred = ops.concatenate([1.0 - y_pred, y_pred], axis=-1)
        counted = ops.cast(ops.not_equal(y_true, IGNORE), "float32")
        labels = ops.cast(ops.where(ops.equal(y_true, IGNORE), 0, y_true), "int32")
        one_hot = ops.one_hot(labels, y_pred.shape[-1], dtype="float32")
        weighted = counted
        if self.class_weights is not None:
            weighted *= ops.sum(one_hot * ops.convert_to_tensor(self.class_weights, "float32"), axis=-1)
        return sum(
            term.weight * term.value(one_hot, y_pred, weighted if term.pixelwise else counted)
            for term in self.terms.terms
        )


def _of_reference(one_hot: Any, probabilities: Any) -> Any:
    """Probability (N, H, W) of the reference class; at 0 and 1, logarithm and powers have no finite slope."""
    return ops.clip(ops.sum(one_hot * probabilities, axis=-1), EPSILON, 1.0 - EPSILON)


def _mean(values: Any, counted: Any) -> Any:
    """Mean of (N, H, W) over the pixels, each as much as it counts; 0 where none does."""
    return ops.sum(values * counted) / ops.maximum(ops.sum(counted), EPSILON)
