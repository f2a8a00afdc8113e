"""One figure of a prediction: false colour, reference, labels with their errors outlined, confidence.

Its parts (panels, false colour, class colours, outlines) are public: other figures of patches are made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from console import replacing
from data.predictions import Prediction, PredictionFile
from data.tiles import ClassInfo, TileFile
from evaluation.regions import Evaluation, glacier_ids
from evaluation.scores import IGNORE, confusion_matrix, counts

Image = NDArray[np.float32]

INVALID = "#d9d9d9"
MISSED = "#e8590c"
FALSE = "#c2187a"
_COMPOSITES = (
    ("swir1", "nir", "red"),
    ("nir", "red", "green"),
    ("swir1", "red", "green"),
    ("red", "green", "blue"),
)
_SHARE = 0.3
_CONFIDENCE_COLORS = "YlGnBu_r"


def choose(evaluation: Evaluation, rows: int = 4) -> list[str]:
    """Return up to `rows` tiles that show most: of different regions, about 30 % glacier, few invalid pixels.

    The best tile of each region comes first, then second ones; at the end they are ordered by region.
    """
    table = evaluation.tile_table
    lacking = 1 - table["pixels"] / max(1, table["pixels"].max())
    table["distance"] = (table["glacier_share"].fillna(0) - _SHARE).abs() + lacking
    table = table.sort_values(["distance", "tile"])
    table["rank"] = table.groupby("region").cumcount()
    chosen = table.sort_values(["rank", "distance", "tile"]).head(rows)
    return list(chosen.sort_values(["region", "rank"])["tile"])


def draw(predictions: PredictionFile, names: Sequence[str], path: Path) -> None:
    """Draw the tiles `names` of a prediction file, a row each, into the image `path`.

    Raises:
        UserError: If the predictions, or the tile file that they were made of, can't be read.
    """
    classes = predictions.classes
    glacier = glacier_ids(classes)
    bottom = 0.75
    figure, grid = panels(len(names), 4, 2.9, left=0.35, top=0.62, bottom=bottom)
    height = figure.get_figheight()
    shades = Normalize(1 / len(classes), 1)
    shown = ""
    with TileFile(predictions.source) as source:
        for axes, name in zip(grid, names, strict=True):
            tile = predictions.read(name)
            bands, modality, shown = composite(source.bands)
            inside = source.info(name).interior()
            values = source.read(name, [modality])[modality][inside][..., bands]
            shaded = colormaps[_CONFIDENCE_COLORS](shades(predictions.confidence(name)))
            confidence = shaded[..., :3].astype(np.float32)
            show(axes[0], stretch(values, tile.valid), tile.valid & np.isfinite(values).any(axis=-1))
            show(axes[1], paint(tile.mask, classes), tile.valid & (tile.mask != IGNORE))
            show(axes[2], paint(tile.labels, classes), tile.valid)
            _outline_errors(axes[2], tile, glacier)
            show(axes[3], confidence, tile.valid)
            axes[0].set_ylabel(f"{tile.region or 'no region'}  ·  {name}", fontsize=10, labelpad=6)
            score = iou_text(np.where(tile.valid, tile.mask, IGNORE), tile.labels, classes)
            axes[2].text(0.97, 0.03, score, transform=axes[2].transAxes, **_BADGE)
    headings = {
        "False colour": shown,
        "Reference": predictions.mask_note.split(" — ")[0].removeprefix("reference: "),
        "Prediction": "errors outlined",
        "Confidence": f"{'calibrated ' if predictions.is_calibrated else ''}probability of the label",
    }
    for axis, (heading, detail) in zip(grid[0], headings.items(), strict=True):
        axis.set_title(heading, fontsize=13, fontweight="bold", pad=20)
        axis.text(0.5, 1.015, detail, transform=axis.transAxes, ha="center", va="bottom", fontsize=9)
    _legend(figure, classes, bottom / height)
    last = grid[-1, 3].get_position()
    bar = figure.add_axes((last.x0, 0.4 / height, last.width, 0.13 / height))
    figure.colorbar(ScalarMappable(shades, _CONFIDENCE_COLORS), cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=9, length=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, facecolor="white")


_BADGE = {
    "ha": "right",
    "va": "bottom",
    "fontsize": 10,
    "fontweight": "bold",
    "bbox": {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
}


def panels(
    rows: int,
    columns: int,
    side: float,
    *,
    left: float,
    top: float,
    bottom: float,
    right: float = 0.1,
    gap: float = 0.1,
) -> tuple[Figure, Any]:
    """Return a figure and its `(rows, columns)` array of square axes, with room around them; lengths in inches."""
    width = left + columns * side + (columns - 1) * gap + right
    height = top + rows * side + (rows - 1) * gap + bottom
    figure = Figure(figsize=(width, height), dpi=110)
    margins = {
        "left": left / width,
        "right": 1 - right / width,
        "top": 1 - top / height,
        "bottom": bottom / height,
    }
    spaces = {"wspace": gap / side, "hspace": gap / side}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins | spaces)


def composite(bands: Mapping[str, Sequence[str]]) -> tuple[list[int], str, str]:
    """Return three bands to show as red, green and blue, their modality, and their names.

    Args:
        bands: Modality → names of its bands; those that show snow, ice and rock apart are preferred.
    """
    for names in _COMPOSITES:
        for modality, present in bands.items():
            if set(names) <= set(present):
                shown = ", ".join(name.upper() if name in ("nir", "swir1") else name for name in names)
                return [present.index(name) for name in names], modality, shown
    modality = max(bands, key=lambda name: len(bands[name]))
    present = bands[modality]
    indices = [0, 1, 2] if len(present) > 2 else [0, 0, 0]
    return indices, modality, ", ".join(dict.fromkeys(present[index] for index in indices))


def stretch(values: Image, valid: NDArray[np.bool_]) -> Image:
    """Return `(H, W, 3)` in 0 … 1, each band stretched between its 2nd and 98th percentile."""
    seen = valid & np.isfinite(values).all(axis=-1)
    if not seen.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[seen], [2, 98], axis=0)
    return np.clip(np.nan_to_num((values - low) / np.maximum(high - low, 1e-6)), 0, 1).astype(np.float32)


def paint(ids: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> Image:
    """Return class ids `(H, W)` in their classes' colours, `(H, W, 3)` in 0 … 1; `INVALID` where there is no class."""
    colors = np.array([to_rgb(info.color) for info in classes] + [to_rgb(INVALID)], np.float32)
    return colors[np.minimum(ids, len(classes))]


def show(axis: Axes, image: Image, seen: NDArray[np.bool_], unseen: str = INVALID) -> None:
    """Show `image` `(H, W, 3)`, in the colour `unseen` where it was not `seen`, without ticks and frame."""
    axis.imshow(np.where(seen[..., None], image, np.array(to_rgb(unseen), np.float32)), interpolation="antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def outline(axis: Axes, area: NDArray[np.bool_], color: str, width: float = 0.9, halo: bool = False) -> None:
    """Draw the outline of `area` `(H, W)` over the image of `axis`, along the image's edges as well.

    Args:
        axis: Where an image of the same shape is shown.
        area: What is outlined.
        color: Of the line.
        width: Of the line, points.
        halo: Whether the line is dark on both sides, so that it is seen on snow as well as on rock.
    """
    if area.any():
        rows, columns = area.shape
        lines = axis.contour(np.pad(area, 1).astype(np.float32), [0.5], colors=color, linewidths=width,
                             extent=(-1.5, columns + 0.5, -1.5, rows + 0.5))  # fmt: skip
        if halo:
            lines.set(path_effects=[withStroke(linewidth=width + 1.0, foreground="#202020", alpha=0.7)])
        axis.set_xlim(-0.5, columns - 0.5)
        axis.set_ylim(rows - 0.5, -0.5)


def iou_text(reference: NDArray[np.uint8], labels: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> str:
    """Return what is written over a patch: the IoU of glacier, or that the reference `(H, W)` has none."""
    pooled = counts(confusion_matrix(reference, labels, len(classes)), glacier_ids(classes))
    return f"IoU {pooled.iou:.2f}" if pooled.tp + pooled.fn else "no glacier"


def _outline_errors(axis: Axes, tile: Prediction, glacier: Sequence[int]) -> None:
    counted = tile.valid & (tile.mask != IGNORE)
    truth, found = np.isin(tile.mask, glacier), np.isin(tile.labels, glacier)
    outline(axis, counted & truth & ~found, MISSED)
    outline(axis, counted & found & ~truth, FALSE)


def _legend(figure: Figure, classes: Sequence[ClassInfo], bottom: float) -> None:
    handles: list[Patch | Line2D] = [Patch(color=info.color, label=info.name) for info in classes]
    handles += [
        Patch(color=INVALID, label="not seen, or no reference"),
        Line2D([], [], color=MISSED, label="glacier missed"),
        Line2D([], [], color=FALSE, label="glacier where there is none"),
    ]
    figure.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(0.02, bottom / 2),
        ncols=3 if len(handles) > 5 else len(handles),
        frameon=False,
        fontsize=10,
        columnspacing=1.4,
        handlelength=1.4,
    )
