"""Augmentation of one patch: pure functions of the patch and a random generator.

Inputs are interpolated, masks never: a mask's pixel keeps the class of the nearest pixel that it comes from.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Inputs = dict[str, NDArray[np.float32]]


class Augmentation(BaseModel):
    """What is done to a training patch, each with its probability; every field 0 leaves patches as they are.

    `flip_vertical`, `flip_horizontal`: mirror rows or columns. `rotate`: a quarter, half or three-quarter turn.
    `crop`: cut a square window of `crop_scale` (smallest, largest) times the side and rescale it to the full side.
    `jitter`: every band x becomes x · (1 + g) + s with g and s drawn from normal distributions of standard deviations
    `jitter_gain` and `jitter_shift`, in units of the scaled values; pixels without data, 0 in every band, stay 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    flip_vertical: Probability = 0.0
    flip_horizontal: Probability = 0.0
    rotate: Probability = 0.0
    crop: Probability = 0.0
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.8, 1.0)
    jitter: Probability = 0.0
    jitter_gain: Annotated[float, Field(ge=0)] = 0.1
    jitter_shift: Annotated[float, Field(ge=0)] = 0.1

    @model_validator(mode="after")
    def _ordered(self) -> Augmentation:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale is (smallest, largest), received {self.crop_scale}")
        return self


def augment(
    inputs: Inputs, mask: NDArray[np.uint8], settings: Augmentation, random: np.random.Generator
) -> tuple[Inputs, NDArray[np.uint8]]:
    """Return one augmented patch; all modalities and the mask move alike.

    Args:
        inputs: Modality → float32 (S, S, C), scaled.
        mask: uint8 (S, S) class ids.
        settings: Probabilities and ranges.
        random: Source of every decision; the same generator state gives the same patch.
    """
    side = mask.shape[0]
    # All numbers are drawn whether they are used or not, so that one setting does not change another's draws.
    vertical, horizontal, turned, cropped, jittered = random.random(5)
    turns = int(random.integers(1, 4))
    size = max(1, round(side * random.uniform(*settings.crop_scale)))
    top, left = random.integers(0, side - size + 1, size=2)

    # Before the crop, whose interpolation blurs the edge between data and nodata.
    if jittered < settings.jitter:
        inputs = {name: _jitter(x, settings, random) for name, x in inputs.items()}
    if cropped < settings.crop and size < side:
        inputs = {name: _rescale(x[top : top + size, left : left + size], side) for name, x in inputs.items()}
        nearest = ((np.arange(side) + 0.5) * size / side).astype(int)  # the pixel under each target's centre
        mask = mask[top + nearest][:, left + nearest]
    if vertical < settings.flip_vertical:
        inputs, mask = {name: x[::-1] for name, x in inputs.items()}, mask[::-1]
    if horizontal < settings.flip_horizontal:
        inputs, mask = {name: x[:, ::-1] for name, x in inputs.items()}, mask[:, ::-1]
    if turned < settings.rotate:
        inputs, mask = {name: np.rot90(x, turns) for name, x in inputs.items()}, np.rot90(mask, turns)
    return inputs, mask


def _jitter(x: NDArray[np.float32], settings: Augmentation, random: np.random.Generator) -> NDArray[np.float32]:
    gain, shift = random.standard_normal((2, x.shape[-1])).astype(np.float32)
    changed = x * (1 + settings.jitter_gain * gain) + settings.jitter_shift * shift
    return np.where(x.any(axis=-1, keepdims=True), changed, 0)


def _rescale(x: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Bring (S, S, C) to (side, side, C) bilinearly with half-pixel centres, the edge repeated outwards."""
    size = x.shape[0]
    position = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    low = position.astype(int)
    high = np.minimum(low + 1, size - 1)
    weight = (position - low).astype(np.float32)[:, None, None]
    x = x[low] * (1 - weight) + x[high] * weight
    weight = weight.transpose(1, 0, 2)
    return x[:, low] * (1 - weight) + x[:, high] * weight
