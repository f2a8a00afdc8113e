"""Class weights and centred patches of a recipe, resolved for the tiles of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from console import UserError
from data.loader import PatchSource, sample_window
from data.sampling import automatic_shares, balanced_weights, class_counts
from data.tiles import TWO_CLASSES, ClassInfo, TileFile, TileWriter
from training.imbalance import describe, resolve
from training.recipe import Recipe, parse_recipe

WriteTiles = Callable[..., Path]
CLASSES = (*TWO_CLASSES, ClassInfo("lake"))


@pytest.fixture
def file(write_tiles: WriteTiles, tmp_path: Path) -> TileFile:
    return TileFile(write_tiles(tmp_path / "train.hdf5", regions=("HMA", "ALP", "SC"), classes=CLASSES))


def recipe(**changes: Any) -> Recipe:
    content = {
        "name": "small",
        "architecture": {"name": "resunet"},
        "inputs": ["optical"],
        "loss": {"focal": {}},
        "training": {"schedule": {"name": "plateau"}},
    }
    return parse_recipe(content | changes, "the test")


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 0),
        ({"class_weights": [1, 2, 0]}, 0),
        ({"class_weights": "balanced"}, 1),
        ({"sampling": {"centred": "auto"}}, 1),
    ],
)
def test_masks_are_read_once_and_only_if_counts_are_needed(
    file: TileFile, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], passes: int
) -> None:
    read: list[str] = []
    mask = TileFile.mask

    def watched(self: TileFile, name: str, *arguments: Any) -> NDArray[np.uint8]:
        read.append(name)
        return mask(self, name, *arguments)

    monkeypatch.setattr(TileFile, "mask", watched)
    resolve(recipe(**changes), file, ["t0", "t2"])
    assert read == ["t0", "t2"] * passes


def test_both_follow_from_the_tiles_that_are_trained_on(file: TileFile) -> None:
    counts = class_counts(file, ["t0", "t2"])
    pixels = counts.sum(axis=0)
    assert (pixels != class_counts(file, file.names).sum(axis=0)).all()
    assert resolve(recipe(class_weights="balanced"), file, ["t0", "t2"]) == (balanced_weights(pixels), None)
    _, centred = resolve(recipe(sampling={"centred": "auto"}), file, ["t0", "t2"])
    assert centred is not None and centred.shares == automatic_shares(pixels)
    np.testing.assert_array_equal(centred.counts, counts)
    assert resolve(recipe(class_weights=[1, 2.5, 0]), file, file.names) == ((1.0, 2.5, 0.0), None)
    assert resolve(recipe(), file, file.names) == (None, None)


def test_beside_centred_patches_the_weights_balance_what_is_drawn(tmp_path: Path) -> None:
    rng, valid = np.random.default_rng(0), np.ones((64, 64), bool)
    masks = []
    with TileWriter(tmp_path / "train.hdf5", CLASSES, {"optical": ["red"]}) as writer:
        for name in ("t0", "t1"):
            mask = rng.integers(0, 2, (64, 64)).astype(np.uint8)
            mask[20:22, 30:32] = 2  # 0.1 % of the pixels
            masks.append(mask)
            writer.add(name, {"optical": rng.random((64, 64, 1))}, mask, valid)
    file = TileFile(tmp_path / "train.hdf5")
    settings = recipe(
        class_weights="balanced",
        sampling={"centred": {"lake": 0.5}},
        training={"schedule": {"name": "plateau"}, "patch_size": 8},
    )
    weights, centred = resolve(settings, file, file.names)
    source = PatchSource(file, tuple(file.names), ("optical",), None, 8, centred=centred)
    drawn = np.zeros(3, np.int64)
    for index in range(4000):
        tile, window, _ = sample_window(source, 5, 1, index)
        drawn += np.bincount(masks[tile][window.slices].ravel(), minlength=3)
    assert weights == pytest.approx(drawn.sum() / (3 * drawn), rel=0.1)
    alone, _ = resolve(recipe(class_weights="balanced"), file, file.names)
    assert alone is not None and weights is not None and weights[2] < alone[2] / 10
    assert resolve(settings, file, file.names)[0] == weights


def test_what_does_not_fit_the_classes_is_said(file: TileFile) -> None:
    for weights in ([1, 2], [1, 2, 3, 4]):
        with pytest.raises(UserError, match=rf"{len(weights)} weights .* has 3 classes \(background, glacier, lake\)"):
            resolve(recipe(class_weights=weights), file, file.names)
    with pytest.raises(UserError, match=r"no class 'water'"):
        resolve(recipe(sampling={"centred": {"water": 0.1}}), file, file.names)


def test_what_is_in_use_is_described(file: TileFile) -> None:
    resolved = resolve(recipe(class_weights=[1, 2.5, 0], sampling={"centred": {"lake": 0.1}}), file, file.names)
    assert describe(CLASSES, *resolved) == [
        "class weights: background 1, glacier 2.5, lake 0",
        "patches centred: 10.0% on lake; the others drawn uniformly",
    ]
    assert describe(CLASSES, None, None) == []
