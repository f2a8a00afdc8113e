"""Class counts, class weights and patches centred on rare classes, on masks whose every pixel is known."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare
from sklearn.utils.class_weight import compute_class_weight

from console import UserError
from data.augmentation import Augmentation
from data.loader import PatchSource, TrainingPatches, sample_window
from data.sampling import (
    CentredPatches,
    automatic_shares,
    balanced_weights,
    centred_patches,
    class_counts,
)
from data.tiles import IGNORE, ClassInfo, TileFile, TileWriter
from data.windows import Window

PATCH = 16
SIZES = [(16, 16), (40, 25), (7, 20), (48, 64)]  # as large as the patch, odd, smaller, larger
CLASSES = (ClassInfo("background"), ClassInfo("ice", glacier=True), ClassInfo("lake"), ClassInfo("firn"))
LAKE = 2
# Corners and edges among them; the third tile has none, and the tiles' numbers differ.
LAKES: list[list[tuple[int, int]]] = [
    [(0, 0)],
    [(39, 24), (20, 12), (0, 13)],
    [],
    [(47, 0), (0, 63), (24, 32), (24, 33), (25, 32), (40, 60), (8, 8), (7, 7)],
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> TileFile:
    """Tiles of background, ice and a few pixels of lake, lakes that do not count beside them; firn is nowhere."""
    path = tmp_path_factory.mktemp("tiles") / "train.hdf5"
    rng = np.random.default_rng(0)
    with TileWriter(path, CLASSES, {"dem": ["z", "slope"]}) as writer:
        for number, size in enumerate(SIZES):
            mask, valid = (rng.random(size) < 0.3).astype(np.uint8), rng.random(size) < 0.9
            mask[:, 3] = LAKE
            valid[:, 3] = False
            mask[2, 5:9] = IGNORE
            for place in LAKES[number]:
                mask[place], valid[place] = LAKE, True
            writer.add(f"t{number}", {"dem": rng.random((*size, 2))}, mask, valid)
    return TileFile(path)


def labels(file: TileFile) -> list[NDArray[np.uint8]]:
    return [np.where(file.valid(name), file.mask(name), IGNORE) for name in file.names]


def source(file: TileFile, shares: Sequence[float] | None = None) -> PatchSource:
    centred = None if shares is None else CentredPatches(tuple(shares), class_counts(file, file.names))
    return PatchSource(file, tuple(file.names), ("dem",), None, PATCH, centred=centred)


# Counts and weights


def test_counts_are_of_valid_labelled_pixels(file: TileFile) -> None:
    expected = [[int((mask == k).sum()) for k in range(len(CLASSES))] for mask in labels(file)]
    np.testing.assert_array_equal(class_counts(file, file.names), expected)
    np.testing.assert_array_equal(class_counts(file, ["t3", "t1"]), [expected[3], expected[1]])
    assert [row[LAKE] for row in expected] == [len(places) for places in LAKES] and not any(r[3] for r in expected)


def test_balanced_weights_are_those_of_scikit_learn_and_0_for_a_class_without_pixels(file: TileFile) -> None:
    pixels = np.concatenate([mask[mask != IGNORE] for mask in labels(file)])
    weights = balanced_weights(class_counts(file, file.names).sum(axis=0))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=pixels)
    np.testing.assert_allclose(weights[:3], expected)
    np.testing.assert_allclose(expected, [len(pixels) / (3 * (pixels == k).sum()) for k in range(3)])
    assert weights[3] == 0
    assert np.mean(np.array(weights)[pixels]) == pytest.approx(1)
    assert balanced_weights(np.zeros(2, np.int64)) == (0.0, 0.0)


# Centred patches


def test_patches_are_drawn_as_ever_without_centred_ones(file: TileFile) -> None:
    for index in range(50):
        random = np.random.default_rng([4, 2, index])
        tile = int(random.integers(len(SIZES)))
        top, left = (random.integers(max(1, length - PATCH + 1)) for length in SIZES[tile])
        received = sample_window(source(file), 4, 2, index)
        assert received[:2] == (tile, Window(int(top), int(left), PATCH, PATCH))
        assert received[2].random() == random.random()


def test_a_patch_depends_on_seed_epoch_and_index_alone(file: TileFile) -> None:
    patches = source(file, [0, 0.2, 0.3, 0])

    def drawn(index: int, seed: int = 0, epoch: int = 0, of: PatchSource = patches) -> tuple[int, Window, float]:
        tile, window, random = sample_window(of, seed, epoch, index)
        return tile, window, random.random()

    first = [drawn(index) for index in range(60)]
    assert [drawn(index) for index in reversed(range(60))][::-1] == first
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawn, range(60))) == first
    copy = pickle.loads(pickle.dumps(patches))
    assert [drawn(index, of=copy) for index in range(60)] == first
    for seed, epoch in ((1, 0), (0, 1)):
        assert len(set(first) & {drawn(index, seed, epoch) for index in range(60)}) < 5

    batches = TrainingPatches(patches, ["output"], 4, 3, 0, 0, Augmentation())
    for index in (7, 2):
        tile, window, _ = sample_window(patches, 0, 0, index)
        np.testing.assert_array_equal(batches[index // 4][1]["output"][index % 4], patches.cut(tile, window)[1])


def test_every_pixel_of_the_class_is_equally_likely(file: TileFile) -> None:
    centred = CentredPatches((0.0, 0.0, 1.0, 0.0), class_counts(file, file.names))
    drawn = Counter(centred.draw(np.random.default_rng([0, 0, index])) for index in range(3000))
    places = [(pixel.tile, *pixel.find(file, file.names[pixel.tile])) for pixel in drawn if pixel]
    assert sorted(places) == sorted((tile, *place) for tile, lakes in enumerate(LAKES) for place in lakes)
    assert chisquare(list(drawn.values())).pvalue > 1e-3


def test_the_window_lies_in_the_tile_and_around_the_pixel(file: TileFile) -> None:
    patches = source(file, [0, 0, 1, 0])
    half = PATCH // 2
    for index in range(200):
        tile, window, _ = sample_window(patches, 1, 0, index)
        lakes = LAKES[tile]
        rows, columns = window.slices
        inside = [p for p in lakes if rows.start <= p[0] < rows.stop and columns.start <= p[1] < columns.stop]
        assert inside, "a pixel of the class is in the patch"
        # Centred along each side, or pushed back by the edge that is nearer than half a patch.
        assert any(
            all(
                start == at - half or (start == 0 and at < half) or (start == length - PATCH and at > length - half)
                for at, start, length in zip(place, (window.top, window.left), SIZES[tile], strict=True)
            )
            for place in inside
        )
        for start, length in zip((window.top, window.left), SIZES[tile], strict=True):
            assert 0 <= start <= max(0, length - PATCH)


def test_a_tile_smaller_than_the_patch_has_its_pixel_in_the_patch(file: TileFile) -> None:
    patches = PatchSource(
        file, ("t2",), ("dem",), None, PATCH, centred=CentredPatches((0.0, 1.0, 0, 0), class_counts(file, ["t2"]))
    )
    for index in range(30):
        _, window, _ = sample_window(patches, 0, 0, index)
        assert window.top == 0 and 0 <= window.left <= 4


def test_the_centre_is_of_the_class_as_often_as_its_share_says(file: TileFile) -> None:
    shares = {1: 0.2, LAKE: 0.3}
    centred = CentredPatches((0.0, shares[1], shares[LAKE], 0.0), class_counts(file, file.names))
    count = 3000
    drawn: Counter[int | None] = Counter()
    masks = labels(file)
    for index in range(count):
        pixel = centred.draw(np.random.default_rng([5, 1, index]))
        if pixel is None:
            drawn[None] += 1
            continue
        drawn[pixel.class_id] += 1
        if index < 300:
            assert masks[pixel.tile][pixel.find(file, file.names[pixel.tile])] == pixel.class_id
    assert set(drawn) == {None, 1, LAKE}
    assert chisquare([drawn[1], drawn[LAKE], drawn[None]], [0.2 * count, 0.3 * count, 0.5 * count]).pvalue > 1e-3


def test_the_other_patches_are_uniform(file: TileFile) -> None:
    patches = source(file, [0, 0, 0.5, 0])
    drawn = [
        sample_window(patches, 0, 0, index)[:2]
        for index in range(2000)
        if patches.centred and patches.centred.draw(np.random.default_rng([0, 0, index])) is None
    ]
    assert 900 < len(drawn) < 1100
    tiles = Counter(tile for tile, _ in drawn)
    assert chisquare([tiles[tile] for tile in range(len(SIZES))]).pvalue > 1e-3
    tops = Counter(window.top for tile, window in drawn if tile == 1)
    assert set(tops) == set(range(40 - PATCH + 1))


# What a recipe says


def test_shares_are_given_by_name(file: TileFile) -> None:
    counts = class_counts(file, file.names)
    centred = centred_patches({"lake": 0.25, "ice": 0.5}, file, counts)
    assert centred is not None and centred.shares == (0.0, 0.5, 0.25, 0.0)
    np.testing.assert_array_equal(centred.counts, counts)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"lakes": 0.1}, r"train\.hdf5 has no class 'lakes', did you mean 'lake'\? .*background, ice, lake, firn"),
        ({"ice": 0.1, "sea": 0.1}, r"no class 'sea' \(its classes: background, ice, lake, firn\)"),
        ({"firn": 0.1}, r"no valid pixel .* 'firn', .*\(classes with pixels: background, ice, lake\)"),
    ],
)
def test_unknown_and_absent_classes_are_answered_with_the_known(
    file: TileFile, wanted: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        centred_patches(wanted, file, class_counts(file, file.names))


def test_automatic_shares_make_rare_classes_even_in_the_centres() -> None:
    rng = np.random.default_rng(0)
    for k in (2, 3, 4, 7):
        for _ in range(20):
            pixels = rng.integers(1, 10 ** rng.integers(1, 7, k))
            q, shares = pixels / pixels.sum(), np.array(automatic_shares(pixels))
            rare = q < 1 / k
            uniform = 1 - shares.sum()
            assert (shares >= 0).all() and 0 < uniform <= 1
            np.testing.assert_allclose((shares + uniform * q)[rare], 1 / k)
            np.testing.assert_array_equal(shares[~rare], 0)
    assert automatic_shares(np.array([30, 10])) == pytest.approx((0, 1 / 3))
    assert automatic_shares(np.array([30, 0, 10])) == pytest.approx((0, 0, 1 / 3)), "a class that is nowhere"


def test_auto_centres_nothing_where_no_class_is_rarer(file: TileFile) -> None:
    expected = automatic_shares(class_counts(file, file.names).sum(axis=0))
    centred = centred_patches("auto", file, class_counts(file, file.names))
    assert centred is not None and centred.shares == expected
    for pixels in ([[5, 5, 0, 0]], [[9, 0, 0, 0]], [[0, 0, 0, 0]]):
        assert centred_patches("auto", file, np.array(pixels)) is None


def test_no_pixels_travel_with_the_patches(tmp_path: Path) -> None:
    """A source holds a number for each tile and class, however large the tiles are."""
    path = tmp_path / "large.hdf5"
    with TileWriter(path, CLASSES[:2], {"dem": ["z"]}) as writer:
        writer.add("t", {"dem": np.zeros((400, 400, 1))}, np.eye(400), np.ones((400, 400)))
    large = TileFile(path)
    centred = CentredPatches((0.0, 1.0), class_counts(large, large.names))
    assert len(pickle.dumps(PatchSource(large, ("t",), ("dem",), None, PATCH, centred=centred))) < 5000


def test_masks_of_one_tile_are_read_for_a_patch(file: TileFile, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = source(file, [0, 0, 1, 0])
    read: list[str] = []
    mask = TileFile.mask

    def watched(self: TileFile, name: str, *arguments: Any) -> NDArray[np.uint8]:
        read.append(name)
        return mask(self, name, *arguments)

    monkeypatch.setattr(TileFile, "mask", watched)
    tile, _, _ = sample_window(patches, 0, 0, 0)
    assert read == [file.names[tile]]
