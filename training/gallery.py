"""A picture of every augmentation: one training patch, what each makes of it alone, and all of them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from console import UserError, replacing
from data.augmentation import Augmentation, Inputs, augment
from data.loader import PatchSource, sample_window
from data.tiles import IGNORE
from evaluation.picture import INVALID, composite, outline, show, stretch
from evaluation.regions import glacier_ids

Mask = NDArray[np.uint8]

_DEFAULT = Augmentation()
_AUGMENTATIONS = {
    "flip_vertical": "rows mirrored",
    "flip_horizontal": "columns mirrored",
    "rotate": "by 90°, 180° or 270°",
    "crop": f"{_DEFAULT.crop_scale[0]:g} to {_DEFAULT.crop_scale[1]:g} of the side, rescaled",
    "affine": f"scale {_DEFAULT.affine_scale[0]:g} to {_DEFAULT.affine_scale[1]:g}, "
    + f"±{_DEFAULT.affine_rotation_deg:g}°, shear ±{_DEFAULT.affine_shear_deg:g}°",
    "jitter": f"gain and shift, std {_DEFAULT.jitter_gain:g} and {_DEFAULT.jitter_shift:g}",
    "brightness_contrast": f"±{_DEFAULT.brightness_range:g} and ±{_DEFAULT.contrast_range:g}, all bands alike",
    "gamma": f"power of {_DEFAULT.gamma_range[0]:g} to {_DEFAULT.gamma_range[1]:g} per band",
    "occlusion": f"rectangles of up to {_DEFAULT.occlusion_size} pixels",
    "shift": f"std {_DEFAULT.shift_std:g} per band",
    "noise": f"std {_DEFAULT.noise_std:g} per pixel and band",
    "drop": "modalities left out, never all",
}
_SUBTLE = ("gamma", "shift", "noise")  # seen only when the change is magnified
_CANDIDATES = 32  # patches of which the one that shows most is drawn
_DRAWS = 8  # of an augmentation; the strongest is shown
_COLUMNS = 4
_OUTLINE = "#ffe14d"
_BLANK = "#000000"
_BADGE = {
    "ha": "right",
    "va": "bottom",
    "fontsize": 8,
    "bbox": {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
}


def draw_augmentations(source: PatchSource, path: Path, seed: int) -> None:
    """Draw a training patch and what each augmentation makes of it, at its default strength, into the PNG `path`.

    The first modality that has a false colour is drawn large, beside it the first band of each other one.

    Raises:
        UserError: If `path` does not end in .png, no class is flagged as glacier, or the tiles can't be read.
    """
    if path.suffix != ".png":
        raise UserError(f"the picture of augmentations is a PNG: expected a name that ends in .png, received {path}")
    inputs, mask = _patch(source, seed)
    panels = {"original": ("no augmentation", inputs, mask)}
    for name, caption in _AUGMENTATIONS.items():
        panels[name] = (caption, *_strongest(inputs, mask, {name: 1.0}, seed))
    everything = dict.fromkeys(_AUGMENTATIONS, 1.0) | {"drop": 0.0}
    panels["all of them"] = ("but drop", *_strongest(inputs, mask, everything, seed))

    bands, large, shown = composite({name: source.file.bands[name] for name in source.modalities})
    small = [name for name in source.modalities if name != large]
    figure, cells = _cells(len(panels) + 1, len(small))
    glacier = glacier_ids(source.file.classes)
    for (title, (caption, changed, moved)), (axis, *beside) in zip(panels.items(), cells, strict=False):
        original, image = (_image(inputs[large][..., bands], x[large][..., bands], mask) for x in (inputs, changed))
        if title in _SUBTLE:
            magnified = f"change ×{_magnify_right_half(image, original):g}"
            axis.text(0.97, 0.03, magnified, transform=axis.transAxes, **_BADGE)
        show(axis, image, moved != IGNORE)
        outline(axis, np.isin(moved, glacier), _OUTLINE)
        for other, name in zip(beside, small, strict=True):
            show(other, _image(inputs[name][..., [0] * 3], changed[name][..., [0] * 3], mask), moved != IGNORE)
        axis.set_title(title, fontsize=12, fontweight="bold", loc="left", pad=17)
        axis.text(0, 1.025, caption, transform=axis.transAxes, fontsize=8, va="bottom")
    beside_it = [f"{name} ({source.file.bands[name][0]})" for name in small]
    _legend(cells[len(panels)], "\n".join([f"large: {large} ({shown})", *(["small:", *beside_it] if small else [])]))
    with replacing(path) as temporary:
        figure.savefig(temporary, facecolor="white")


def _patch(source: PatchSource, seed: int) -> tuple[Inputs, Mask]:
    """Return the training patch, of the first ones of the run, that is nearest to a third of glacier and all seen."""
    glacier = glacier_ids(source.file.classes)
    patches = (source.cut(*sample_window(source, seed, 0, index)[:2]) for index in range(_CANDIDATES))
    return min(patches, key=lambda patch: abs(np.isin(patch[1], glacier).mean() - 0.33) + (patch[1] == IGNORE).mean())


def _strongest(inputs: Inputs, mask: Mask, settings: dict[str, Any], seed: int) -> tuple[Inputs, Mask]:
    """Return the patch that differs most from its source, of some that `settings` make of it."""
    augmentation = Augmentation(**settings)
    draws = (augment(inputs, mask, augmentation, np.random.default_rng([seed, draw])) for draw in range(_DRAWS))

    def change(name: str, changed: Inputs) -> float:
        before, after = np.nan_to_num(inputs[name]), np.nan_to_num(changed[name])  # absent is as good as 0 here
        return float(np.abs(after - before).mean())

    return max(draws, key=lambda patch: sum(change(name, patch[0]) for name in inputs))


def _image(source: NDArray[np.float32], changed: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Return the changed bands (H, W, 3) in 0..1, black where they have no data.

    They are stretched as the source's are, whose mask is `mask`, so that a change of brightness is seen.
    """
    seen = mask != IGNORE
    both = stretch(np.concatenate([source, changed]), np.concatenate([seen, np.zeros_like(seen)]))
    image = both[len(source) :]
    image[~np.nan_to_num(changed).any(axis=-1)] = to_rgb(_BLANK)
    return image


def _magnify_right_half(image: NDArray[np.float32], source: NDArray[np.float32]) -> float:
    """Put the change from `source` around grey into the right half of `image`, in place; return its magnification."""
    half = np.s_[:, image.shape[1] // 2 :]
    change = image[half] - source[half]
    largest = 0.4 / max(float(np.percentile(np.abs(change), 95)), 1e-6)
    factor = max(
        step * 10.0**power for power in range(6) for step in (1, 2, 5) if step * 10.0**power <= max(1, largest)
    )
    image[half] = np.clip(0.5 + factor * change, 0, 1)
    return factor


def _cells(count: int, beside: int) -> tuple[Figure, list[list[Any]]]:
    """Return a figure of `count` cells, each a large square and `beside` small ones in a column to its right."""
    side, gap, head = 2.2, 0.04, 0.45  # inches
    small = min(side / 2, (side + gap) / beside - gap) if beside else 0.0
    cell = side + (gap + small if beside else 0.0) + 0.2
    rows = -(-count // _COLUMNS)
    width, height = _COLUMNS * cell, rows * (side + head)
    figure = Figure(figsize=(width + 0.1, height + 0.1), dpi=80)
    size = figure.get_size_inches()

    def square(left: float, top: float, length: float) -> Any:
        bottom = size[1] - top - length
        return figure.add_axes((left / size[0], bottom / size[1], length / size[0], length / size[1]))

    cells = []
    for index in range(count):
        row, column = divmod(index, _COLUMNS)
        left, top = 0.1 + column * cell, head + row * (side + head)
        smalls = [square(left + side + gap, top + place * (small + gap), small) for place in range(beside)]
        cells.append([square(left, top, side), *smalls])
    return figure, cells


def _legend(axes: list[Any], text: str) -> None:
    for axis in axes:
        axis.set_axis_off()
    handles = [
        Line2D([], [], color=_OUTLINE, label="mask: outline of glacier"),
        Patch(facecolor=INVALID, label="mask: ignored"),
        Patch(facecolor=_BLANK, label="input: no data"),
    ]
    axes[0].text(0, 1, text, transform=axes[0].transAxes, fontsize=9, va="top", linespacing=1.5)
    axes[0].legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.03, 0), frameon=False, fontsize=9)
