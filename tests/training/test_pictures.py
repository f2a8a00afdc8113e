"""Pictures show what is in the log and in the patches, legibly, and replace their files whole."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from data.tiles import IGNORE, TWO_CLASSES, ClassInfo
from evaluation.picture import FALSE, INVALID, MISSED
from evaluation.scores import confusion_matrix, counts
from training import pictures
from training.pictures import (
    Patch,
    choose_patches,
    cut_patches,
    draw_batch,
    draw_log,
    draw_patches,
    error_colors,
    error_kinds,
)
from training.record import Best

FOUR_CLASSES = (
    *TWO_CLASSES,
    ClassInfo("debris-covered ice", True, "#775533"),
    ClassInfo("water", color="#123456"),
)
NOTE = "reference: weak mask, ndsi > 0.4 — scores measure agreement with that rule, not with outlines"
BANDS = {"dem": ["elevation", "slope"], "optical": ["green", "red", "nir", "swir1"]}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Return every text that is to be seen, with its place in pixels."""
    found: list[Text] = list(figure.texts)
    for axes in figure.axes:
        if axes.axison:
            legend = axes.get_legend()
            found += [axes.title, *axes.texts, axes.xaxis.label, axes.yaxis.label]
            found += legend.get_texts() if legend else []
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    shown = [text for text in found if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


def assert_legible(figure: Figure) -> None:
    """Every text lies inside the figure, and none on another."""
    placed = texts(figure)
    for number, (text, box) in enumerate(placed):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, f"{text!r} leaves the figure"
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, f"{text!r} leaves the figure"
        for other, its_box in placed[:number]:
            assert not box.overlaps(its_box), f"{text!r} lies on {other!r}"


# The log


def write_log(path: Path, epochs: int, classes: Sequence[int] = (1,), **columns: Any) -> dict[str, NDArray[np.float64]]:
    """Write a log of curves that fall and rise; `columns` are functions of the epoch."""
    functions: dict[str, Any] = {
        "epoch": lambda epoch: epoch,
        "loss": lambda epoch: 0.5 / epoch,
        "val_loss": lambda epoch: 0.6 / epoch,
        "learning_rate": lambda epoch: 1e-3,
    }
    for k in classes:
        functions[f"output_iou_{k}"] = lambda epoch: 1 - 0.9 / epoch
        functions[f"val_output_iou_{k}"] = lambda epoch: 0.9 - 0.9 / epoch
    functions |= columns
    table = {name: np.array([float(f(epoch)) for epoch in range(1, epochs + 1)]) for name, f in functions.items()}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return table


def drawn(figure: Figure, panel: int) -> list[NDArray[np.float64]]:
    """Return the values of the panel's curves, the dots and the mark of the best epoch left out."""
    return [np.asarray(line.get_ydata()) for line in figure.axes[panel].lines if line.get_linestyle() in ("-", "--")]


@pytest.mark.parametrize("epochs", [1, 30, 1000])
def test_the_curves_are_the_log(tmp_path: Path, figures: list[Figure], epochs: int) -> None:
    table = write_log(tmp_path / "run.csv", epochs)
    kept, note = Best(epoch=epochs, monitor="iou", score=0.7), NOTE if epochs == 30 else ""
    draw_log(tmp_path / "run.csv", tmp_path / "run.png", best=kept, note=note)
    (figure,) = figures
    assert [text for text, _ in texts(figure)].count(NOTE) == (epochs == 30)
    for panel, names in enumerate((["loss", "val_loss"], ["output_iou_1", "val_output_iou_1"], ["learning_rate"])):
        for values, name in zip(drawn(figure, panel), names, strict=True):
            np.testing.assert_array_equal(values, table[name])
        best = [line for line in figure.axes[panel].lines if line.get_linestyle() == ":"]
        assert [list(np.asarray(line.get_xdata())) for line in best] == [[epochs, epochs]]
    assert figure.get_suptitle() == f"run: {epochs} epoch{'s' * (epochs > 1)}, the best is {epochs} (val iou 0.7000)"
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "IoU of glacier", "learning rate"]
    ticks = [tick for tick in figure.axes[2].get_xticks() if 1 <= tick <= epochs]
    assert ticks and all(tick == round(tick) for tick in ticks)
    assert_legible(figure)
    assert list(tmp_path.glob("*.png")) == [tmp_path / "run.png"]


@pytest.mark.parametrize(("last", "scale"), [(2e-4, "linear"), (1e-5, "log"), (0.0, "linear")])
def test_a_rate_that_spans_decades_is_on_a_log_scale(
    tmp_path: Path, figures: list[Figure], last: float, scale: str
) -> None:
    write_log(tmp_path / "run.csv", 20, learning_rate=lambda epoch: 1e-3 if epoch < 15 else last)
    draw_log(tmp_path / "run.csv", tmp_path / "run.png")
    assert figures[0].axes[2].get_yscale() == scale
    assert_legible(figures[0])


def test_what_is_undefined_is_left_out_and_what_stands_alone_is_a_dot(tmp_path: Path, figures: list[Figure]) -> None:
    columns = {f"val_output_iou_{k}": lambda epoch: 0.5 if epoch % 7 == 3 else math.nan for k in (1, 2)}
    write_log(tmp_path / "run.csv", 100, classes=(1, 2, 3), **columns)
    draw_log(tmp_path / "run.csv", tmp_path / "run.png", classes=FOUR_CLASSES)
    iou = figures[0].axes[1]
    assert len(drawn(figures[0], 1)) == 4  # of glacier alone: not of water
    dots = [list(np.asarray(line.get_xdata())) for line in iou.lines if line.get_marker() == "o"]
    assert dots == [[], list(range(3, 101, 7))] * 2
    legend = iou.get_legend()
    assert legend
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["glacier", "debris-covered ice", "training", "validation"]
    assert_legible(figures[0])


def test_a_run_without_any_score_is_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    write_log(tmp_path / "run.csv", 2, output_iou_1=lambda _: math.nan, val_output_iou_1=lambda _: math.nan)
    draw_log(tmp_path / "run.csv", tmp_path / "run.png", best=Best(epoch=1, monitor="mcc", score=None))
    assert [text.get_text() for text in figures[0].axes[1].texts] == ["no value in any epoch"]
    assert "val mcc undefined" in figures[0].get_suptitle()
    assert_legible(figures[0])


def test_a_picture_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "run.csv", 2)
    (tmp_path / "run.png").write_text("before")

    def half(self: Figure, path: Path, **_: Any) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        draw_log(tmp_path / "run.csv", tmp_path / "run.png")
    assert (tmp_path / "run.png").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.csv", "run.png"]


# Patches


def source_of(tiles: Sequence[tuple[str, float]], size: int = 32, patch: int = 16) -> Any:
    """Return tiles of (region, share of glacier in the left half of each); the right half has none."""
    names = tuple(f"t{number}" for number in range(len(tiles)))
    masks = {}
    for name, (_, share) in zip(names, tiles, strict=True):
        masks[name] = np.zeros((size, size), np.uint8)
        masks[name][:, : round(share * size / 2)] = 1

    def cut(tile: int, window: Any) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
        return {}, masks[names[tile]][window.slices]

    file = SimpleNamespace(mask=lambda name: masks[name], valid=lambda name: np.ones((size, size), bool))
    regions = tuple(region for region, _ in tiles)
    return SimpleNamespace(
        names=names, regions_of_tiles=regions, patch=patch, file=file, cut=cut, vector=lambda tile, window: None
    )


@pytest.mark.parametrize(
    ("tiles", "expected", "with_glacier"),
    [
        ([("A", 0.0), ("A", 0.3), ("A", 0.6), ("B", 0.9), ("C", 0.5), ("D", 0.1)], [1, 3, 4, 5], 4),
        ([("A", 0.5), ("A", 0.3), ("A", 0.9), ("B", 0.4), ("C", 0.0)], [1, 0, 2, 3], 4),
        ([("A", 0.5), ("B", 0.0), ("C", 0.0), ("D", 0.0)], [0, 1, 2, 3], 1),
        ([("A", 0.5)], [0, 0, 0, 0], 2),
    ],
)
def test_patches_are_of_different_regions_and_tiles_and_show_glacier(
    tiles: list[tuple[str, float]], expected: list[int], with_glacier: int
) -> None:
    source = source_of(tiles)
    places = choose_patches(source, TWO_CLASSES)
    assert [tile for tile, _ in places] == expected
    assert len(set(places)) == 4 and places == choose_patches(source, TWO_CLASSES)
    patches = cut_patches(source, places)
    assert [patch.region for patch in patches] == [tiles[tile][0] for tile in expected]
    assert sum((patch.labels == 1).any() for patch in patches) == with_glacier


def random_patch(rng: np.random.Generator, classes: int, tile: str = "a-tile-with-a-very-long-name-0001") -> Patch:
    inputs = {name: rng.random((16, 16, len(bands)), dtype=np.float32) for name, bands in BANDS.items()}
    inputs["optical"][:4] = 0
    labels = rng.integers(0, classes, (16, 16)).astype(np.uint8)
    labels[:6] = IGNORE
    return Patch(tile, "HMA", inputs, labels)


@pytest.mark.filterwarnings("error")
def test_an_absent_modality_is_shown_as_not_seen(tmp_path: Path, figures: list[Figure]) -> None:
    patch = random_patch(np.random.default_rng(1), 2)
    patch.inputs["optical"][:] = np.nan
    assert not patch.seen("optical").any() and patch.seen("dem").all()
    draw_patches([patch], [patch.labels % 2], tmp_path / "p.png", bands=BANDS, classes=TWO_CLASSES, title="run")
    scene = np.asarray(figures[0].axes[0].images[0].get_array(), np.float64)
    np.testing.assert_allclose(scene, np.broadcast_to(to_rgb(INVALID), scene.shape), atol=1e-3)


def test_kinds_of_errors_are_the_counts() -> None:
    rng = np.random.default_rng(0)
    reference, labels = rng.integers(0, 4, (2, 64, 64)).astype(np.uint8)
    kinds = error_kinds(reference, labels, (1, 2))
    expected = counts(confusion_matrix(reference, labels, 4), {1, 2})
    found = np.bincount(kinds.ravel(), minlength=5)
    assert found[2] == expected.fn and found[3] == expected.fp
    assert found[:2].sum() == (reference == labels).sum()
    assert found[1] + ((kinds == 4) & (reference > 0) & (reference < 3)).sum() == expected.tp


@pytest.mark.parametrize(("columns", "classes"), [(4, TWO_CLASSES), (1, FOUR_CLASSES)])
def test_patches_are_shown_with_their_errors(
    tmp_path: Path, figures: list[Figure], columns: int, classes: Sequence[ClassInfo]
) -> None:
    rng = np.random.default_rng(1)
    patches = [random_patch(rng, len(classes)) for _ in range(columns)]
    predicted = [rng.integers(0, len(classes), (16, 16)).astype(np.uint8) for _ in patches]
    note = NOTE if columns == 1 else ""
    draw_patches(patches, predicted, tmp_path / "p.png", bands=BANDS, classes=classes, title="run, epoch 7", note=note)
    (figure,) = figures
    assert any("weak mask" in text for text, _ in texts(figure)) == bool(note)
    assert_legible(figure)
    axes = np.array(figure.axes).reshape(4, columns)
    glacier = [k for k, info in enumerate(classes) if info.glacier]
    for column, (patch, labels) in enumerate(zip(patches, predicted, strict=True)):
        matrix = confusion_matrix(patch.labels, labels, len(classes))
        assert axes[0, column].get_title() == f"IoU {counts(matrix, glacier).iou:.2f}"
        scene, reference, prediction, error = (
            np.asarray(axis.images[0].get_array(), np.float64) for axis in axes[:, column]
        )
        grey = np.array(to_rgb(INVALID))
        for image, rows in ((scene, 4), (reference, 6), (error, 6)):
            is_grey = np.isclose(image, grey, atol=1e-3).all(axis=-1)
            assert is_grey[:rows].all() and not is_grey[rows:].any()
        colors = np.array([to_rgb(info.color) for info in classes])
        np.testing.assert_allclose(prediction, colors[labels], atol=1e-3)
        truth, found = np.isin(patch.labels, glacier), np.isin(labels, glacier)
        for color, expected in ((MISSED, truth & ~found), (FALSE, found & ~truth)):
            shown = np.isclose(error, to_rgb(color), atol=1e-3).all(axis=-1)
            np.testing.assert_array_equal(shown, expected & (patch.labels != IGNORE))
    explained = [text.get_text() for text in axes[3, -1].get_legend().get_texts()]
    assert explained == [*error_colors(classes), "not seen, or no reference"]


@pytest.mark.parametrize(
    ("number", "shown_at_most", "classes"), [(1, 64, TWO_CLASSES), (5, 64, FOUR_CLASSES), (5, 3, TWO_CLASSES)]
)
def test_a_batch_is_shown_with_its_masks_outlines(
    tmp_path: Path,
    figures: list[Figure],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    shown_at_most: int,
    classes: Sequence[ClassInfo],
) -> None:
    monkeypatch.setattr(pictures, "_SHOWN", shown_at_most)
    rng = np.random.default_rng(2)
    patches = [random_patch(rng, len(classes), f"t{index}") for index in range(number)]
    for patch in patches:
        patch.labels[6:] = np.arange(16) // 4 % len(classes)
    patches[0].labels[:] = IGNORE
    note = NOTE if number == 1 else ""
    draw_batch(patches, tmp_path / "b.png", bands=BANDS, classes=classes, title="first batch", note=note)
    (figure,) = figures
    assert any("weak mask" in text for text, _ in texts(figure)) == bool(note)
    assert_legible(figure)
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == min(number, shown_at_most)
    for axes, patch in zip(shown, patches, strict=False):
        share = np.isin(patch.labels[6:], [k for k, info in enumerate(classes) if info.glacier]).mean()
        ice = "no reference" if patch is patches[0] else f"{share:.0%} glacier"
        assert axes.get_title() == f"HMA · {patch.tile}\n{ice}"
        assert len(axes.collections) == 2 * len({*patch.labels.flat} - {0, IGNORE})
