"""Losses on probabilities, with ignored pixels left out.

A loss is a weighted sum of terms, as a recipe writes it: `loss: {focal: {gamma: 2}, dice: {weight: 0.5}}`. Labels are
(N, H, W), probabilities (N, H, W, K); K = 1 means one sigmoid probability of class 1 and is treated as the pair
(1 - p, p). There are three kinds of terms:

- pixel-wise (cross-entropies, focal): a mean over the pixels that count. Class weights and label smoothing are theirs
  alone.
- overlap (Dice, IoU, Tversky): a score of each class but background, from sums over the batch or over each image.
- structure (SSIM): the similarity of each class's probabilities, but background's, to its mask.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops
from pydantic import BaseModel, ConfigDict, Field, model_validator

IGNORE = 255
EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 (float32: one step below 1)
SSIM_WINDOW = 11  # pixels

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Pixels:
    """A batch as the terms see it; all float32, K ≥ 2.

    Args:
        one_hot: (N, H, W, K), reference classes, each 0 or 1.
        targets: (N, H, W, K), `one_hot`, in training with smoothed labels.
        probabilities: (N, H, W, K).
        counted: (N, H, W), 1 where the pixel counts, else 0.
        weights: (N, H, W), `counted` times the weight of the pixel's reference class.
    """

    one_hot: Any
    targets: Any
    probabilities: Any
    counted: Any
    weights: Any


class _Term(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: Positive = 1.0

    @abstractmethod
    def value(self, pixels: Pixels) -> Any:
        """Return the unweighted loss of a batch; 0 where no pixel counts."""


class _PixelTerm(_Term):
    """The mean over the pixels that count, by their weights: Σ wᵢ lᵢ / Σ wᵢ, as PyTorch's weighted cross-entropy.

    Divided by the weights, not by the number of pixels, the loss stays on one scale whatever the unit of the weights
    and however rare the classes in a batch.
    """

    def value(self, pixels: Pixels) -> Any:
        """Return the weighted mean over pixels."""
        # At 0 and 1, logarithm and powers have no finite slope.
        p = ops.clip(pixels.probabilities, EPSILON, 1.0 - EPSILON)
        return _mean(self.of_pixels(pixels.targets, p), pixels.weights)

    @abstractmethod
    def of_pixels(self, targets: Any, p: Any) -> Any:
        """Return the loss (N, H, W) of targets and probabilities (N, H, W, K), these inside 0..1."""


class CrossEntropy(_PixelTerm):
    """Cross-entropy -Σ tₖ log pₖ over all classes: -log p of the reference class."""

    def of_pixels(self, targets: Any, p: Any) -> Any:
        """Return the loss of each pixel."""
        return ops.sum(targets * -ops.log(p), axis=-1)


class BinaryCrossEntropy(_PixelTerm):
    """Binary cross-entropy -(t log p + (1 - t) log(1 - p)), mean over the classes but background.

    With two classes, or one sigmoid, it is the cross-entropy; with more, each class stands against all others.
    """

    def of_pixels(self, targets: Any, p: Any) -> Any:
        """Return the loss of each pixel."""
        t, p = targets[..., 1:], p[..., 1:]
        return -ops.mean(t * ops.log(p) + (1.0 - t) * ops.log(1.0 - p), axis=-1)


class Focal(_PixelTerm):
    """Focal loss -Σ αₖ tₖ (1 - pₖ)^γ log pₖ over all classes (Lin et al. 2017, arXiv:1708.02002).

    αₖ is 1 - `alpha` for background and `alpha` for every other class; without `alpha` all are 1.
    """

    gamma: Annotated[float, Field(ge=0)] = 2.0
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None

    def of_pixels(self, targets: Any, p: Any) -> Any:
        """Return the loss of each pixel."""
        losses = targets * (-ops.power(1.0 - p, self.gamma) * ops.log(p))
        if self.alpha is not None:
            alphas = [1.0 - self.alpha] + [self.alpha] * (p.shape[-1] - 1)
            losses = losses * ops.convert_to_tensor(alphas, "float32")
        return ops.sum(losses, axis=-1)


class _OverlapTerm(_Term):
    """1 - score, mean over the classes but background; the score comes from sums over the pixels that count.

    The sums run over the batch or, with `per_image`, over each image, and then the mean also runs over the images in
    which a pixel counts. `smoothing` is added to numerator and denominator, so that a class that is neither there nor
    predicted scores 1.
    """

    smoothing: Positive = 1.0
    per_image: bool = False

    def value(self, pixels: Pixels) -> Any:
        """Return the mean over classes, and images."""
        axes = (1, 2) if self.per_image else (0, 1, 2)
        y = (pixels.one_hot * pixels.counted[..., None])[..., 1:]
        p = (pixels.probabilities * pixels.counted[..., None])[..., 1:]
        both = ops.sum(p * y, axis=axes)
        losses = ops.mean(1.0 - self.score(both, ops.sum(p, axis=axes), ops.sum(y, axis=axes)), axis=-1)
        return _mean(losses, ops.max(pixels.counted, axis=(1, 2))) if self.per_image else losses

    @abstractmethod
    def score(self, both: Any, predicted: Any, there: Any) -> Any:
        """Return the score of Σ p y, Σ p and Σ y, each (K - 1) or (N, K - 1)."""


class Dice(_OverlapTerm):
    """1 - (2 Σ p y + s) / (Σ p + Σ y + s); s is `smoothing`.

    Milletari et al. 2016 (arXiv:1606.04797) with plain sums in the denominator, as Sudre et al. 2017
    (arXiv:1707.03237).
    """

    def score(self, both: Any, predicted: Any, there: Any) -> Any:
        """Return the Dice coefficient."""
        return (2.0 * both + self.smoothing) / (predicted + there + self.smoothing)


class Iou(_OverlapTerm):
    """1 - (Σ p y + s) / (Σ p + Σ y - Σ p y + s); s is `smoothing`.

    Rahman and Wang 2016 (https://doi.org/10.1007/978-3-319-50835-1_22).
    """

    def score(self, both: Any, predicted: Any, there: Any) -> Any:
        """Return intersection over union."""
        return (both + self.smoothing) / (predicted + there - both + self.smoothing)


class Tversky(_OverlapTerm):
    """1 - (Σ p y + s) / (Σ p y + α Σ p (1 - y) + β Σ (1 - p) y + s); s is `smoothing`.

    `alpha` weighs false positives, `beta` false negatives (Salehi et al. 2017, arXiv:1706.05721).
    """

    alpha: Positive
    beta: Positive

    def score(self, both: Any, predicted: Any, there: Any) -> Any:
        """Return the Tversky index."""
        wrong = self.alpha * (predicted - both) + self.beta * (there - both)
        return (both + self.smoothing) / (both + wrong + self.smoothing)


class Ssim(_Term):
    """1 - SSIM of probabilities and masks, mean over the classes but background and over the pixels that count.

    Structural similarity as Wang et al. 2004 define it (https://doi.org/10.1109/TIP.2003.819861): around each pixel, a
    Gaussian window of 11×11 pixels and standard deviation 1.5, K₁ = 0.01, K₂ = 0.03, range 1. Of a window only the
    pixels that count enter its means, variances and covariance, the window's weights over them scaled to a sum of 1:
    setting ignored pixels equal in both images instead would call them similar. At the image's border pixels are
    mirrored (the outermost not twice), so that those near it count like all others; the authors' own code leaves out
    the windows that reach over the border.
    """

    def value(self, pixels: Pixels) -> Any:
        """Return the mean over classes and pixels."""
        # With d = x - y: 2 μx μy = μx² + μy² - μd² and 2 σxy = σx² + σy² - σd², so that SSIM = (1 - a)(1 - b) below. As
        # it is written usually, the rounding of a perfect prediction's variances counts: K₂² is small.
        counted = pixels.counted[..., None]
        x, y = pixels.probabilities[..., 1:] * counted, pixels.one_hot[..., 1:] * counted
        sums = _gaussian(ops.concatenate([counted, x, y, x * x, (x - y) * (x - y)], axis=-1))
        share = sums[..., :1]
        means = sums[..., 1:] / ops.where(share > 0, share, 1.0)
        mean_x, mean_y, mean_xx, mean_dd = ops.split(means, 4, axis=-1)
        squares = mean_x * mean_x + mean_y * mean_y
        mean_d = mean_x - mean_y
        # y is 0 or 1, so that the mean of its squares is its mean.
        variances = mean_xx + mean_y - squares
        a = mean_d * mean_d / (squares + 0.01**2)
        b = (mean_dd - mean_d * mean_d) / (variances + 0.03**2)
        return _mean(ops.mean(a + b - a * b, axis=-1), pixels.counted)


class LossTerms(BaseModel):
    """The terms of a loss by name, summed with their weights; at least one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cross_entropy: CrossEntropy | None = None
    binary_cross_entropy: BinaryCrossEntropy | None = None
    focal: Focal | None = None
    dice: Dice | None = None
    iou: Iou | None = None
    tversky: Tversky | None = None
    ssim: Ssim | None = None

    @model_validator(mode="after")
    def _some(self) -> LossTerms:
        if not self.terms:
            raise ValueError(f"expected one or more of {', '.join(type(self).model_fields)}")
        return self

    @property
    def terms(self) -> list[_Term]:
        """The terms that are there."""
        return [term for name in type(self).model_fields if (term := getattr(self, name)) is not None]

    @property
    def has_pixel_terms(self) -> bool:
        """Whether one of the terms is pixel-wise: the others know neither class weights nor label smoothing."""
        return any(isinstance(term, _PixelTerm) for term in self.terms)


class SegmentationLoss(keras.losses.Loss):
    """A weighted sum of terms over one output; pixels labelled 255 are left out of every sum.

    Class weights and label smoothing act on the pixel-wise terms alone.

    Args:
        terms: What is summed.
        class_weights: Weight of a pixel by its reference class, one number ≥ 0 for each class (two for one sigmoid).
        label_smoothing: ε in 0..1: targets are (1 - ε) y + ε / K, but only inside `smoothing_labels`: what is not
            training sees the labels as they are.

    Raises:
        ValueError: A class weight is negative or not finite; when called, there are not as many as classes.
    """

    def __init__(
        self, terms: LossTerms, class_weights: tuple[float, ...] | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(name="segmentation", reduction="none")
        if class_weights is not None and not all(math.isfinite(weight) and weight >= 0 for weight in class_weights):
            raise ValueError(f"class weights are finite and not negative; received {class_weights}")
        self.terms, self.class_weights, self.label_smoothing = terms, class_weights, label_smoothing
        # A variable, because a compiled step keeps for good what a Python number was when it was traced.
        self.smoothing_now = keras.Variable(0.0, trainable=False, dtype="float32") if label_smoothing else None

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the scalar loss of labels (N, H, W) and probabilities (N, H, W, K)."""
        if y_pred.shape[-1] == 1:
            y_pred = ops.concatenate([1.0 - y_pred, y_pred], axis=-1)
        classes = y_pred.shape[-1]
        counted = ops.cast(ops.not_equal(y_true, IGNORE), "float32")
        labels = ops.cast(ops.where(ops.equal(y_true, IGNORE), 0, y_true), "int32")
        one_hot = targets = ops.one_hot(labels, classes, dtype="float32")
        if self.smoothing_now is not None:
            targets = (1.0 - self.smoothing_now) * one_hot + self.smoothing_now / classes
        weights = counted
        if self.class_weights is not None:
            if len(self.class_weights) != classes:
                raise ValueError(f"{len(self.class_weights)} class weights for {classes} classes")
            weights = counted * ops.sum(one_hot * ops.convert_to_tensor(self.class_weights, "float32"), axis=-1)
        pixels = Pixels(one_hot, targets, y_pred, counted, weights)
        return sum(term.weight * term.value(pixels) for term in self.terms.terms)


@contextmanager
def smoothing_labels(losses: Iterable[SegmentationLoss]) -> Iterator[None]:
    """Smooth the labels of `losses` inside this context: it stands around training, and around nothing else."""
    smoothed = [(loss.smoothing_now, loss.label_smoothing) for loss in losses if loss.smoothing_now is not None]
    try:
        for variable, smoothing in smoothed:
            variable.assign(smoothing)
        yield
    finally:
        for variable, _ in smoothed:
            variable.assign(0.0)


def _mean(values: Any, weights: Any) -> Any:
    """Mean of `values` by `weights` of the same shape; 0 where all weights are."""
    total = ops.sum(weights)
    return ops.sum(values * weights) / ops.where(total > 0, total, 1.0)


def _gaussian(maps: Any) -> Any:
    """Weighted means of (N, H, W, C) in a Gaussian window around each pixel, mirrored at the border.

    Sums of shifted maps: convolutions may compute in TensorFloat-32, whose rounding is as large as the variances that
    the similarity compares.
    """
    reach = SSIM_WINDOW // 2
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    rows, columns = [(0, 0), (reach, reach), (0, 0), (0, 0)], [(0, 0), (0, 0), (reach, reach), (0, 0)]
    stops = [i - 2 * reach or None for i in range(SSIM_WINDOW)]
    maps = ops.pad(maps, rows, mode="reflect")
    maps = sum(float(weight) * maps[:, i : stops[i]] for i, weight in enumerate(weights))
    maps = ops.pad(maps, columns, mode="reflect")
    return sum(float(weight) * maps[:, :, i : stops[i]] for i, weight in enumerate(weights))
