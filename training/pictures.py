"""What a training run looks like: its log as curves, validation patches with their errors, a batch of training data.

Matplotlib takes a second to import: only what draws imports it.
"""

from __future__ import annotations

import csv
import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from console import replacing
from data.tiles import IGNORE, TWO_CLASSES, ClassInfo
from data.windows import Window, grid
from evaluation.regions import Evaluation, TileScore, glacier_ids
from evaluation.scores import confusion_matrix, counts
from training.record import Best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from data.loader import PatchSource

# Okabe and Ito 2008, "Color Universal Design": told apart by colour-blind people, too.
_TRAINING, _VALIDATION = "#0072b2", "#d55e00"
_CLASS_COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
_MARK = "#555555"
_FEW = 40  # epochs, of which each gets a dot
_DECADES = 4  # that an axis shows at most: a rate that falls to 0 would leave the rest no room

_RIGHT, _RIGHT_GLACIER, _WRONG_CLASS = "#fffdf5", "#a9d3f0", "#222222"
_OUTLINES = ("#ffe119", "#ff7fbf", "#ffffff", "#4c8dff")  # seen on snow, ice and rock in false colour
_SCANNED = 200  # tiles that patches are chosen from, at most
_SHOWN = 64  # patches of a batch, at most
_NAME = 24  # characters of a tile's name over its patch
_WRAP = 20  # characters of a class name beside the curves


@dataclass(frozen=True)
class Patch:
    """A patch as the network gets it.

    `inputs`: modality → float32 `(S, S, C)`, scaled. `labels`: uint8 `(S, S)`, 255 where nothing is scored.
    `location`: `(L,)`, of models that take one.
    """

    tile: str
    region: str
    inputs: dict[str, NDArray[np.float32]]
    labels: NDArray[np.uint8]
    location: NDArray[np.float32] | None = None

    @property
    def title(self) -> str:
        """Where it is from: region and tile."""
        name = self.tile if len(self.tile) <= _NAME else f"{self.tile[: _NAME // 2]}…{self.tile[1 - _NAME // 2 :]}"
        return f"{self.region or 'no region'} · {name}"

    def seen(self, modality: str) -> NDArray[np.bool_]:
        """Return where `modality` has data, `(S, S)`: without, all its bands are 0, or NaN where it is absent."""
        return np.asarray(np.nan_to_num(self.inputs[modality]).any(axis=-1))


def _save(figure: Figure, path: Path) -> None:
    # The default compression would take a third of the whole time, to save a tenth of the size.
    with replacing(path) as temporary:
        figure.savefig(temporary, facecolor="white", pil_kwargs={"compress_level": 1})


# -- the log ---------------------------------------------------------------------------------------------------


def draw_log(
    log: Path, path: Path, *, best: Best | None = None, classes: Sequence[ClassInfo] = TWO_CLASSES, note: str = ""
) -> None:
    """Draw a run's log `logs/NAME.csv` into the image `path`: loss, IoU of glacier and learning rate by epoch.

    Args:
        log: The log; columns that it lacks and values that are nan are left out.
        path: The image, replaced whole.
        best: The epoch whose weights are kept, to be marked.
        classes: The class list; those flagged as glacier are drawn.
        note: What to know of the reference, see `TileFile.mask_note`.
    """
    _save(_log_figure(_columns(log), log.stem, best, classes, note), path)


def _columns(log: Path) -> dict[str, NDArray[np.float64]]:
    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def _log_figure(
    columns: dict[str, NDArray[np.float64]], name: str, best: Best | None, classes: Sequence[ClassInfo], note: str = ""
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    epochs = columns["epoch"]
    figure = Figure(figsize=(10, 7), dpi=110)
    margins = {"left": 0.105, "right": 0.79, "top": 0.92 if note else 0.94, "bottom": 0.075, "hspace": 0.1}
    loss, iou, rate = figure.subplots(3, 1, sharex=True, gridspec_kw=margins | {"height_ratios": [3, 3, 2]})
    title = f"{name}: {len(epochs)} epoch{'s' if len(epochs) > 1 else ''}"
    if best:
        score = "undefined" if best.score is None else f"{best.score:.4f}"
        title += f", the best is {best.epoch} (val {best.monitor} {score})"
    figure.suptitle(title, x=margins["left"], ha="left", fontsize=12)
    figure.text(margins["left"], margins["top"] + 0.008, note, fontsize=8)

    _curve(loss, epochs, columns.get("loss"), _TRAINING, "--")
    _curve(loss, epochs, columns.get("val_loss"), _VALIDATION, "-")
    glacier = {k: info.name for k, info in enumerate(classes) if info.glacier}
    several = len(glacier) > 1
    colors = dict(zip(glacier, itertools.cycle(_CLASS_COLORS), strict=False)) if several else {}
    for k in glacier:
        _curve(iou, epochs, columns.get(f"output_iou_{k}"), colors.get(k, _TRAINING), "--")
        _curve(iou, epochs, columns.get(f"val_output_iou_{k}"), colors.get(k, _VALIDATION), "-")
    _curve(rate, epochs, columns.get("learning_rate"), "#000000", "-")

    for axis, label in ((loss, "loss"), (iou, "IoU of glacier"), (rate, "learning rate")):
        axis.set_ylabel(label)
        axis.yaxis.set_label_coords(-0.1, 0.5)
        axis.grid(color="#e3e3e3", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        if not axis.lines:
            axis.set_yticks([])
            axis.text(0.5, 0.5, "no value in any epoch", transform=axis.transAxes, ha="center", va="center")
    _log_if_decades(loss)
    low, high = iou.get_ylim()
    iou.set_ylim(max(low, -0.02), min(high, 1.02))
    if not _log_if_decades(rate):
        rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(FuncFormatter(_power))
    rate.set_xlim(0.5, max(epochs) + 0.5)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    rate.set_xlabel("epoch")

    def line(label: str, color: str, style: Literal["-", "--", ":"]) -> Line2D:
        dotted = len(epochs) <= _FEW and style != ":"
        return Line2D([], [], color=color, linestyle=style, marker="o" if dotted else "", markersize=3.5, label=label)

    losses = [line("training", _TRAINING, "--"), line("validation", _VALIDATION, "-")]
    scores = [line(textwrap.fill(glacier[k], _WRAP), color, "-") for k, color in colors.items()]
    scores += [line("training", _MARK, "--"), line("validation", _MARK, "-")] if several else losses
    if best:
        losses = [*losses, line("best epoch", _MARK, ":")]
        for axis in (loss, iou, rate):
            axis.axvline(best.epoch, color=_MARK, linewidth=1.2, linestyle=":", zorder=1)
    for axis, handles in ((loss, losses), (iou, scores)):
        axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, handlelength=2.4)
    return figure


def _curve(axis: Axes, epochs: NDArray[np.float64], values: NDArray[np.float64] | None, color: str, style: str) -> None:
    """Draw a line, with a dot where there is no neighbour to draw a line to, and everywhere if there are few."""
    if values is None or not np.isfinite(values).any():
        return
    finite = np.isfinite(values)
    around = np.pad(finite, 1)
    few = len(values) <= _FEW
    dots = finite & (~(around[:-2] | around[2:]) | few)
    axis.plot(epochs, np.where(finite, values, np.nan), style, color=color, linewidth=1.5 if few else 1.0)
    axis.plot(epochs[dots], values[dots], "o", color=color, markersize=3.5)


def _log_if_decades(axis: Axes) -> bool:
    """Make the axis of values logarithmic if they are positive and span more than a decade; return whether."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawn = [np.asarray(line.get_ydata(), float) for line in axis.lines]
    values = np.concatenate([y[np.isfinite(y)] for y in drawn]) if drawn else np.zeros(0)
    if not len(values) or values.min() <= 0 or values.max() <= 10 * values.min():
        return False
    low = max(values.min(), values.max() / 10**_DECADES)
    axis.set_yscale("log")
    axis.set_ylim(low / 1.3, values.max() * 1.3)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 100 * low else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    return True


def _power(value: float, _: int | None = None) -> str:
    """Return 5e-4 for 0.0005."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


# -- patches ---------------------------------------------------------------------------------------------------


def choose_patches(source: PatchSource, classes: Sequence[ClassInfo], count: int = 4) -> list[tuple[int, Window]]:
    """Return up to `count` places (tile number, window) that show most, the same ones each time.

    With glacier where there are enough, of different tiles where there are enough, of different regions first; of
    each, the patch that comes nearest to 30 % glacier with few pixels that are not scored.
    """
    glacier = glacier_ids(classes)
    by_region = sorted(range(len(source.names)), key=lambda tile: (source.regions_of_tiles[tile], tile))
    places: dict[str, tuple[int, Window]] = {}
    scores: list[TileScore] = []
    for tile in by_region[:: -(-len(by_region) // _SCANNED)]:
        name = source.names[tile]
        labels = np.where(source.file.valid(name), source.file.mask(name), IGNORE)
        height, width = labels.shape
        for window in grid(height, width, source.patch, source.patch):
            part = labels[window.slices]
            key = f"{tile:06d} {len(places):09d}"
            places[key] = (tile, window)
            # The reference against itself: its shares of glacier and of scored pixels.
            matrix = confusion_matrix(part, part, len(classes))
            scores.append(TileScore(key, source.regions_of_tiles[tile], matrix))

    from evaluation.picture import choose

    def chosen(among: Sequence[TileScore], rows: int) -> list[str]:
        return choose(Evaluation(tuple(among), tuple(info.name for info in classes), glacier, "valid"), rows)

    icy = [score for score in scores if counts(score.matrix, glacier).tp]
    scores = icy if len(icy) >= count else scores
    tiles = {score.tile.split()[0] for score in scores}
    if len(tiles) >= count:
        per_tile = [TileScore(score.tile, score.tile.split()[0], score.matrix) for score in scores]
        firsts = set(chosen(per_tile, len(tiles)))
        scores = [score for score in scores if score.tile in firsts]
    return [places[key] for key in chosen(scores, count)]


def cut_patches(source: PatchSource, places: Sequence[tuple[int, Window]]) -> list[Patch]:
    """Return the patches at `places` (tile number, window), as validation gives them to the network."""
    return [
        Patch(
            source.names[tile],
            source.regions_of_tiles[tile],
            *source.cut(tile, window),
            source.vector(tile, window),
        )
        for tile, window in places
    ]


def draw_patches(
    patches: Sequence[Patch],
    predicted: Sequence[NDArray[np.uint8]],
    path: Path,
    *,
    bands: dict[str, list[str]],
    classes: Sequence[ClassInfo],
    title: str,
    note: str = "",
) -> None:
    """Draw false colour, reference, prediction and error of each patch, a column each, into the image `path`.

    Args:
        patches: What was predicted.
        predicted: Class ids `(S, S)` of each patch.
        path: The image, replaced whole.
        bands: Modality → names of its bands, of the patches' inputs.
        classes: The class list.
        title: What stands over the figure.
        note: What to know of the reference, see `TileFile.mask_note`.
    """
    _save(_patches_figure(patches, predicted, bands, classes, _with_note(title, note)), path)


def _patches_figure(
    patches: Sequence[Patch],
    predicted: Sequence[NDArray[np.uint8]],
    bands: dict[str, list[str]],
    classes: Sequence[ClassInfo],
    title: str,
) -> Figure:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch as Swatch

    from evaluation import picture

    errors = error_colors(classes)
    colors = np.array([to_rgb(color) for color in errors.values()], np.float32)
    shown_bands, modality, composite = picture.composite(bands)
    figure, axes = picture.panels(4, len(patches), 2.4, left=0.45, top=0.95 + _line(title), bottom=0.1, right=2.6)
    for column, (patch, labels) in enumerate(zip(patches, predicted, strict=True)):
        seen, counted = patch.seen(modality), patch.labels != IGNORE
        picture.show(axes[0, column], picture.stretch(patch.inputs[modality][..., shown_bands], seen), seen)
        picture.show(axes[1, column], picture.paint(patch.labels, classes), counted)
        picture.show(axes[2, column], picture.paint(labels, classes), np.ones_like(seen))
        picture.show(axes[3, column], colors[error_kinds(patch.labels, labels, glacier_ids(classes))], counted)
        axes[3, column].spines[:].set(visible=True, color="#bbbbbb", linewidth=0.6)
        axes[0, column].set_title(picture.iou_text(patch.labels, labels, classes), fontweight="bold", pad=18)
        axes[0, column].text(0.5, 1.02, patch.title, transform=axes[0, column].transAxes, ha="center", fontsize=9)
    for row, heading in enumerate(("False colour", "Reference", "Prediction", "Error")):
        axes[row, 0].set_ylabel(heading, fontsize=12, fontweight="bold")
    axes[0, -1].text(1.04, 0.98, _bands_text(composite), transform=axes[0, -1].transAxes, va="top")
    no_reference = {"not seen, or no reference": picture.INVALID}
    legends = {1: {info.name: info.color for info in classes} | no_reference, 3: errors | no_reference}
    for row, legend in legends.items():
        handles = [Swatch(facecolor=color, edgecolor="#888888", linewidth=0.5, label=n) for n, color in legend.items()]
        axes[row, -1].legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, fontsize=10, handlelength=1.4
        )
    figure.suptitle(title, x=0.45 / figure.get_figwidth(), y=1 - 0.12 / figure.get_figheight(), ha="left", va="top")
    return figure


def _with_note(title: str, note: str) -> str:
    """Return the title with the note beneath it, in lines that a narrow figure has room for."""
    return "\n".join([title, *note.split(" — ")]) if note else title


def _line(title: str) -> float:
    """Return the inches that a title takes for its lines after the first."""
    return 0.2 * title.count("\n")


def _bands_text(composite: str) -> str:
    return f"red, green, blue:\n{composite}" if ", " in composite else composite


def error_colors(classes: Sequence[ClassInfo]) -> dict[str, str]:
    """Return name → colour of the kinds that `error_kinds` numbers, in its order."""
    from evaluation import picture

    kinds = {
        "right, not glacier": _RIGHT,
        "right, glacier": _RIGHT_GLACIER,
        "glacier missed": picture.MISSED,
        "glacier where there is none": picture.FALSE,
    }
    return kinds | ({"another wrong class": _WRONG_CLASS} if len(classes) > 2 else {})


def error_kinds(
    reference: NDArray[np.uint8], labels: NDArray[np.uint8], glacier: Sequence[int]
) -> NDArray[np.integer[Any]]:
    """Return what became of each pixel: 0 and 1 right (not glacier, glacier), 2 missed, 3 false, 4 another class.

    The last is a confusion among classes that are all glacier, or all not. What ignored pixels get means nothing.
    """
    truth, found = np.isin(reference, glacier), np.isin(labels, glacier)
    right = np.where(reference == labels, truth.astype(int), 4)
    return np.where(truth == found, np.where(reference == IGNORE, 0, right), np.where(truth, 2, 3))


def draw_batch(
    patches: Sequence[Patch],
    path: Path,
    *,
    bands: dict[str, list[str]],
    classes: Sequence[ClassInfo],
    title: str,
    note: str = "",
) -> None:
    """Draw the false colour of training patches, as augmented, with their masks' outlines, into the image `path`.

    Args:
        patches: The batch; of a large one the first 64 are drawn.
        path: The image, replaced whole.
        bands: Modality → names of its bands, of the patches' inputs.
        classes: The class list; every class but the first is outlined.
        title: What stands over the figure.
        note: What to know of the reference, see `TileFile.mask_note`.
    """
    _save(_batch_figure(patches, bands, classes, _with_note(title, note)), path)


def _batch_figure(
    patches: Sequence[Patch], bands: dict[str, list[str]], classes: Sequence[ClassInfo], title: str
) -> Figure:
    from matplotlib.colors import to_rgb
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch as Swatch
    from matplotlib.patheffects import Normal, Stroke

    from evaluation import picture

    patches = patches[:_SHOWN]
    shown_bands, modality, composite = picture.composite(bands)
    columns = int(np.ceil(np.sqrt(len(patches))))
    rows = -(-len(patches) // columns)
    figure, axes = picture.panels(
        rows, columns, 2.6, left=0.1, top=0.85 + _line(title), bottom=0.1, right=2.25, gap=0.42
    )
    invalid = np.array(to_rgb(picture.INVALID), np.float32)
    outlines = {k: _OUTLINES[(k - 1) % len(_OUTLINES)] for k in range(1, len(classes))}
    for axis in axes.flat[len(patches) :]:
        axis.set_axis_off()
    for axis, patch in zip(axes.flat, patches, strict=False):
        seen = patch.seen(modality)
        image = picture.stretch(patch.inputs[modality][..., shown_bands], seen)
        ignored = (patch.labels == IGNORE)[..., None]
        picture.show(axis, np.where(ignored, 0.3 * image + 0.7 * invalid, image), seen)
        for k, color in outlines.items():
            picture.outline(axis, patch.labels == k, "#000000", 2.4)
            picture.outline(axis, patch.labels == k, color, 1.1)
        matrix = confusion_matrix(patch.labels, patch.labels, len(classes))
        share = counts(matrix, glacier_ids(classes)).share
        ice = "no reference" if np.isnan(share) else f"{share:.0%} glacier"
        axis.set_title(f"{patch.title}\n{ice}", fontsize=9, pad=4)
    last = axes[0, -1]
    halo = [Stroke(linewidth=3, foreground="#000000"), Normal()]
    handles: list[Any] = [
        Line2D([], [], color=color, label=classes[k].name, path_effects=halo) for k, color in outlines.items()
    ]
    handles += [Swatch(color=picture.INVALID, label="not seen, or no reference")]
    last.text(1.04, 0.98, _bands_text(composite), transform=last.transAxes, va="top")
    last.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.0, 0.8), frameon=False, fontsize=10, handlelength=1.4
    )
    figure.suptitle(title, x=0.1 / figure.get_figwidth(), y=1 - 0.12 / figure.get_figheight(), ha="left", va="top")
    return figure
