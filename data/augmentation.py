"""Augmentation of one patch: pure functions of the patch and a random generator.

Inputs are interpolated, masks never: a mask's pixel keeps the class of the nearest pixel that it comes from. A modality
that is absent, NaN everywhere, stays so.

Sources: gamma, occlusion, shift and noise of Maslov et al. 2025 (doi:10.1038/s41467-024-54956-x) and its code; affine
maps, brightness and contrast as in Buslaev et al. 2020, Albumentations (doi:10.3390/info11020125).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.normalisation import is_absent
from data.tiles import IGNORE

Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Strength = Annotated[float, Field(ge=0)]
Array = NDArray[np.float32]
Inputs = dict[str, Array]


class Augmentation(BaseModel):
    """What is done to a training patch, each with its probability; every probability 0 leaves patches as they are.

    The whole patch moves, in this order:

    - `crop`: cut a square window of `crop_scale` (smallest, largest) times the side and rescale it to the full side.
    - `flip_vertical`, `flip_horizontal`: mirror rows or columns. `rotate`: a quarter, half or three-quarter turn.
    - `affine`: scale by `affine_scale` (smallest, largest), turn by up to ±`affine_rotation_deg`, shear rows and
      columns by up to ±`affine_shear_deg` each, about the centre (`affine_matrix`); what comes from beyond the patch
      is 0 in the inputs and `IGNORE` in the mask.

    Values change; the mask does not. Each is drawn for every modality on its own, strengths are in units of the scaled
    values and, where no other distribution is named, uniform, and pixels without data, 0 in every band of a modality,
    stay 0:

    - `jitter`: (of all modalities at once, before the crop) x · (1 + g) + s per band, with g and s drawn from normal
      distributions of standard deviations `jitter_gain` and `jitter_shift`.
    - `brightness_contrast`: x · (1 + c) + b, one c within ±`contrast_range` and one b within ±`brightness_range` for
      all bands.
    - `gamma`: sign(x) · |x| ** γ, a γ of `gamma_range` per band: the power of values from 0 to 1, kept odd so that
      standardised values have one too.
    - `occlusion`: a rectangle, each side of 0 to `occlusion_size` pixels, becomes 0 in every band.
    - `shift`: x + s, a normal s of standard deviation `shift_std` per band.
    - `noise`: x + n, a normal n of standard deviation `noise_std` per pixel and band.
    - `drop`: the modality becomes absent, NaN everywhere; of those that are there, one stays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    flip_vertical: Probability = 0.0
    flip_horizontal: Probability = 0.0
    rotate: Probability = 0.0
    crop: Probability = 0.0
    crop_scale: tuple[Share, Share] = (0.8, 1.0)
    jitter: Probability = 0.0
    jitter_gain: Strength = 0.1
    jitter_shift: Strength = 0.1
    affine: Probability = 0.0
    affine_scale: tuple[Positive, Positive] = (0.9, 1.1)
    affine_rotation_deg: Annotated[float, Field(ge=0, le=180)] = 15.0
    affine_shear_deg: Annotated[float, Field(ge=0, lt=45)] = 10.0
    brightness_contrast: Probability = 0.0
    brightness_range: Strength = 0.2
    contrast_range: Annotated[float, Field(ge=0, lt=1)] = 0.2
    gamma: Probability = 0.0
    gamma_range: tuple[Positive, Positive] = (0.8, 1.2)
    occlusion: Probability = 0.0
    occlusion_size: Annotated[int, Field(ge=0)] = 192
    shift: Probability = 0.0
    shift_std: Strength = 0.025
    noise: Probability = 0.0
    noise_std: Strength = 0.005
    drop: Probability = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> Augmentation:
        for name in ("crop_scale", "affine_scale", "gamma_range"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(f"{name} is (smallest, largest), received {(smallest, largest)}")
        return self


def augment(
    inputs: Inputs, mask: NDArray[np.uint8], settings: Augmentation, random: np.random.Generator
) -> tuple[Inputs, NDArray[np.uint8]]:
    """Return one augmented patch; all modalities and the mask move alike.

    Args:
        inputs: Modality → float32 (S, S, C), scaled; NaN everywhere in one that is absent, which not all are.
        mask: uint8 (S, S) class ids.
        settings: Probabilities and ranges.
        random: Source of every decision; the same generator state gives the same patch.
    """
    side = mask.shape[0]
    order, absent = list(inputs), {name: x for name, x in inputs.items() if is_absent(x)}
    inputs = {name: x for name, x in inputs.items() if name not in absent}
    # All numbers are drawn whether they are used or not, so that one setting does not change another's draws.
    vertical, horizontal, turned, cropped, jittered = random.random(5)
    turns = int(random.integers(1, 4))
    size = max(1, round(side * random.uniform(*settings.crop_scale)))
    top, left = random.integers(0, side - size + 1, size=2)
    # To the same end each of the others has a generator of its own; they go by place, so a new one goes last.
    affine, brightness_contrast, gamma, occlusion, shift, noise, drop = random.spawn(7)

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
    if affine.random() < settings.affine:
        scale = affine.uniform(*settings.affine_scale)
        limits_deg = [settings.affine_rotation_deg, settings.affine_shear_deg, settings.affine_shear_deg]
        inputs, mask = warp(inputs, mask, affine_matrix(scale, *(limits_deg * affine.uniform(-1, 1, 3))))

    inputs = _some(_brightness_contrast, settings.brightness_contrast, inputs, settings, brightness_contrast)
    inputs = _some(_gamma, settings.gamma, inputs, settings, gamma)
    inputs = _some(_occlusion, settings.occlusion, inputs, settings, occlusion)
    inputs = _some(_shift, settings.shift, inputs, settings, shift)
    inputs = _some(_noise, settings.noise, inputs, settings, noise)
    inputs = _drop(inputs, settings.drop, drop) | absent
    return {name: inputs[name] for name in order}, mask


# Moves


def affine_matrix(
    scale: float, rotation_deg: float, shear_rows_deg: float, shear_columns_deg: float
) -> NDArray[np.float64]:
    """Return the matrix (2, 2) that takes (row, column), counted from the centre, to where it is moved.

    Shear, then rotation, then scale: `shear_rows_deg` adds tan(shear) · column to the row, `shear_columns_deg`
    tan(shear) · row to the column; a positive rotation is counter-clockwise, as in `np.rot90`.
    """
    angle = np.deg2rad(rotation_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, np.tan(np.deg2rad(shear_rows_deg))], [np.tan(np.deg2rad(shear_columns_deg)), 1.0]])
    return scale * rotation @ shear


def warp(inputs: Inputs, mask: NDArray[np.uint8], matrix: NDArray[np.float64]) -> tuple[Inputs, NDArray[np.uint8]]:
    """Return a patch with every pixel moved about the centre by `matrix`, (row, column) to (row, column).

    Inputs (S, S, C) are interpolated bilinearly with the edge repeated over the outer half of the edge's pixels and
    are 0 beyond; the mask (S, S) has the nearest pixel's class, `IGNORE` beyond.
    """
    side = mask.shape[0]
    offset = np.arange(side) - (side - 1) / 2
    to_row, to_column = np.linalg.inv(matrix)
    rows = to_row[0] * offset[:, None] + to_row[1] * offset + (side - 1) / 2
    columns = to_column[0] * offset[:, None] + to_column[1] * offset + (side - 1) / 2
    beyond = (np.minimum(rows, columns) < -0.5) | (np.maximum(rows, columns) >= side - 0.5)
    rows, columns = np.clip(rows, 0, side - 1), np.clip(columns, 0, side - 1)

    # All bands at once: what costs is to look a place up, not to copy what is there.
    values = _interpolate(np.concatenate(list(inputs.values()), axis=-1), rows, columns)
    values[beyond] = 0
    ends = np.cumsum([x.shape[-1] for x in inputs.values()])
    warped = dict(zip(inputs, np.split(values, ends[:-1], axis=-1), strict=True))
    nearest = mask[(rows + 0.5).astype(int), (columns + 0.5).astype(int)]
    nearest[beyond] = IGNORE
    return warped, nearest


def _interpolate(x: Array, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Array:
    """Read x (S, S, C) bilinearly at places (S, S) inside it; return (S, S, C)."""
    side = x.shape[0]
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    below, right = np.minimum(top + 1, side - 1), np.minimum(left + 1, side - 1)
    down = (rows - top).astype(np.float32)[..., None]
    across = (columns - left).astype(np.float32)[..., None]
    pixels = x.reshape(side * side, -1)

    def between(first: Array, second: Array, weight: Array) -> Array:
        second -= first
        second *= weight
        second += first
        return second

    upper = between(pixels.take(top * side + left, 0), pixels.take(top * side + right, 0), across)
    lower = between(pixels.take(below * side + left, 0), pixels.take(below * side + right, 0), across)
    return between(upper, lower, down)


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


# Values


def _jitter(x: Array, settings: Augmentation, random: np.random.Generator) -> Array:
    gain, shift = random.standard_normal((2, x.shape[-1])).astype(np.float32)
    return _keep_nodata(x, x * (1 + settings.jitter_gain * gain) + settings.jitter_shift * shift)


def _some(
    change: Callable[[Array, Augmentation, np.random.Generator], Array],
    probability: float,
    inputs: Inputs,
    settings: Augmentation,
    random: np.random.Generator,
) -> Inputs:
    """Return the inputs with `change` done to each with `probability`, by a generator of its own."""
    if not probability:
        return inputs
    return {
        name: change(x, settings, own) if own.random() < probability else x
        for (name, x), own in zip(inputs.items(), random.spawn(len(inputs)), strict=True)
    }


def _brightness_contrast(x: Array, settings: Augmentation, random: np.random.Generator) -> Array:
    brightness, contrast = random.uniform(-1, 1, 2).tolist()
    return _keep_nodata(x, x * (1 + settings.contrast_range * contrast) + settings.brightness_range * brightness)


def _gamma(x: Array, settings: Augmentation, random: np.random.Generator) -> Array:
    exponents = random.uniform(*settings.gamma_range, size=x.shape[-1:]).astype(np.float32)
    return np.copysign(np.abs(x) ** exponents, x)


def _occlusion(x: Array, settings: Augmentation, random: np.random.Generator) -> Array:
    side = x.shape[0]
    height, width = random.integers(0, min(settings.occlusion_size, side) + 1, 2)
    top, left = random.integers(0, side - height + 1), random.integers(0, side - width + 1)
    x = x.copy()
    x[top : top + height, left : left + width] = 0
    return x


def _shift(x: Array, settings: Augmentation, random: np.random.Generator) -> Array:
    return _keep_nodata(x, x + settings.shift_std * random.standard_normal(x.shape[-1:], np.float32))


def _noise(x: Array, settings: Augmentation, random: np.random.Generator) -> Array:
    noise = random.standard_normal(x.shape, np.float32)
    noise *= settings.noise_std
    noise += x
    return _keep_nodata(x, noise)


def _drop(inputs: Inputs, probability: float, random: np.random.Generator) -> Inputs:
    dropped = random.random(len(inputs)) < probability
    kept = random.integers(len(inputs))
    if dropped.all():
        dropped[kept] = False
    return {
        name: np.full_like(x, np.nan) if gone else x for (name, x), gone in zip(inputs.items(), dropped, strict=True)
    }


def _keep_nodata(x: Array, changed: Array) -> Array:
    """Set `changed` to 0, in place, where `x` is 0 in every band."""
    data = x[..., 0] != 0
    for band in range(1, x.shape[-1]):  # five times as fast as x.any(axis=-1)
        data |= x[..., band] != 0
    changed[~data] = 0
    return changed
