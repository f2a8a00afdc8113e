"""Patches for training and validation, held against tiles whose values are their own coordinates."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import data.tiles
from data.augmentation import Augmentation
from data.loader import PatchSource, TrainingPatches, WholePatches, sample_window
from data.location import Coordinates, Regions
from data.normalisation import Statistics
from data.tiles import IGNORE, TWO_CLASSES, TileFile, TileWriter
from data.windows import Window

PATCH = 16
SIZES = [(16, 16), (17, 35), (40, 16), (7, 20), (48, 64)]  # as large as the patch, odd, smaller, a multiple
REGIONS = ["HMA", "ALP", "HMA", "SC", "ALP"]
AUGMENTED = Augmentation(flip_vertical=0.5, rotate=0.75, crop=0.5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles with `place` (tile, row, column), `dem` and `sar`; fully labelled, valid everywhere."""
    path = tmp_path_factory.mktemp("tiles") / "train.hdf5"
    bands = {"place": ["tile", "row", "column"], "dem": ["z", "slope"], "sar": ["vv", "vh"]}
    with TileWriter(path, TWO_CLASSES, bands) as writer:
        for number, size in enumerate(SIZES):
            rows, columns = np.mgrid[: size[0], : size[1]]
            place = np.stack([np.full(size, number), rows, columns], axis=-1)
            modalities = {"place": place, "dem": place[..., 1:] + 100, "sar": place[..., 1:] - 100}
            writer.add(f"t{number}", modalities, (rows + columns) % 2, np.ones(size), REGIONS[number])
    return path


def source(path: Path, **changes: Any) -> PatchSource:
    file = TileFile(path)
    arguments: dict[str, Any] = {"modalities": ("place", "dem"), "statistics": None, "patch": PATCH}
    return PatchSource(file, tuple(file.names), **(arguments | changes))


def training(path: Path, *, seed: int = 0, epoch: int = 0, **changes: Any) -> TrainingPatches:
    arguments: dict[str, Any] = {"batch": 4, "steps": 6, "augmentation": AUGMENTED} | changes
    return TrainingPatches(source(path), ["output"], seed=seed, epoch=epoch, **arguments)


def assert_equal(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> None:
    keras.tree.map_structure(np.testing.assert_array_equal, list(first), list(second))


# Modalities that some tiles lack


@pytest.mark.parametrize("scaled", [False, True])
def test_an_absent_modality_is_nan_and_gaps_are_zero(tmp_path: Path, scaled: bool) -> None:
    bands = {"optical": ["a"], "sar": ["vv", "vh"]}
    with TileWriter(tmp_path / "t.hdf5", TWO_CLASSES, bands) as writer:
        for number, size in enumerate(((7, 20), (40, 16))):
            gap = np.ones((*size, 1), np.float32)
            gap[2:4, 3] = np.nan
            more = {} if number == 0 else {"sar": np.full((*size, 2), 3.0)}
            writer.add(f"t{number}", {"optical": gap} | more, np.ones(size), np.ones(size))
    statistics = Statistics("minmax", {"optical": (0,), "sar": (1, 1)}, {"optical": (1,), "sar": (2, 2)}, "a test")
    cut = source(tmp_path / "t.hdf5", modalities=("sar", "optical"), statistics=statistics if scaled else None)
    assert cut.present_of_tiles == (("optical",), ("sar", "optical"))
    inputs, labels = cut.cut(0, Window(0, 4, PATCH, PATCH))
    assert list(inputs) == ["sar", "optical"] and inputs["sar"].dtype == np.float32
    assert inputs["sar"].shape == (PATCH, PATCH, 2) and np.isnan(inputs["sar"]).all()
    assert (inputs["optical"][:7] == 1).all() and not inputs["optical"][7:].any() and (labels[7:] == IGNORE).all()
    inputs, _ = cut.cut(1, Window(0, 0, PATCH, PATCH))
    assert (inputs["sar"] == (1 if scaled else 3)).all()
    assert not inputs["optical"][2:4, 3].any() and inputs["optical"].sum() == PATCH**2 - 2
    batch, _ = WholePatches(cut, ["output"], 2)[0]
    assert np.isnan(batch["sar"]).all() and not np.isnan(batch["optical"]).any()


# Training patches


def test_a_patch_depends_on_seed_epoch_and_index_alone(path: Path) -> None:
    batches = list(training(path))
    other = training(path)
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(other.__getitem__, range(6)))
    backwards = [other[index] for index in reversed(range(6))][::-1]
    split = training(path, batch=2, steps=12)  # the patch's index counts, not the batch's
    for again in (threaded, backwards):
        for batch, same in zip(batches, again, strict=True):
            assert_equal(batch, same)
    assert_equal([split[1][0]], [{name: values[2:] for name, values in batches[0][0].items()}])
    drawn = {batch[0]["place"].tobytes() for batch in batches}
    assert len(drawn) == 6
    for changed in (training(path, seed=1), training(path, epoch=1)):
        assert not drawn & {batch[0]["place"].tobytes() for batch in changed}


def test_fit_learns_the_same_with_any_number_of_workers(path: Path) -> None:
    def weights(workers: int) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        inputs = {
            name: keras.Input((PATCH, PATCH, channels), name=name) for name, channels in (("place", 3), ("dem", 2))
        }
        x = keras.layers.Concatenate()([x / 64.0 for x in inputs.values()])
        model = keras.Model(inputs, {"output": keras.layers.Conv2D(2, 3, padding="same", activation="softmax")(x)})
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=IGNORE)
        model.compile(keras.optimizers.SGD(0.5), {"output": loss})
        for epoch in range(2):
            model.fit(training(path, epoch=epoch, workers=workers), shuffle=False, verbose=0)
        return model.get_weights()

    alone = weights(0)
    for workers in (1, 2):
        for expected, received in zip(alone, weights(workers), strict=True):
            np.testing.assert_array_equal(received, expected)


def test_offsets_are_all_that_keep_the_window_inside_the_last_one_included(path: Path) -> None:
    patches = source(path)
    seen: dict[int, list[set[int]]] = {tile: [set(), set()] for tile in range(len(SIZES))}
    for index in range(6000):
        tile, window, _ = sample_window(patches, 0, 0, index)
        seen[tile][0].add(window.top)
        seen[tile][1].add(window.left)
    for tile, sides in seen.items():
        assert sides == [set(range(max(1, side - PATCH + 1))) for side in SIZES[tile]]


def test_tiles_are_drawn_uniformly_whatever_their_size(path: Path) -> None:
    patches = source(path)
    drawn = Counter(sample_window(patches, 3, 1, index)[0] for index in range(5000))
    expected = 5000 / len(SIZES)
    assert sum((drawn[tile] - expected) ** 2 / expected for tile in range(len(SIZES))) < 25  # χ², 4 degrees: p < 1e-4


def test_training_patches_are_cut_where_the_window_lies_and_augmented(path: Path) -> None:
    plain = training(path, augmentation=Augmentation())
    for index in range(24):
        tile, window, _ = sample_window(plain.source, 0, 0, index)
        inputs, labels = (part[index % 4] for part in _one(plain[index // 4]))
        inside = inputs[labels != IGNORE]
        assert set(inside[:, 0]) == {tile}
        np.testing.assert_array_equal(inside.min(axis=0)[1:], [window.top, window.left])
    cut, changed = plain[0][0]["place"], training(path)[0][0]["place"]
    assert (cut != changed).any()


def _one(batch: tuple[dict[str, Any], dict[str, Any]]) -> tuple[Any, Any]:
    return batch[0]["place"], batch[1]["output"]


def test_a_tile_smaller_than_the_patch_is_padded_with_ignored_pixels(path: Path) -> None:
    file = TileFile(path)
    patches = PatchSource(file, ("t3",), ("dem",), None, PATCH)
    for batches in (
        TrainingPatches(patches, ["output"], 1, 3, 0, 0, Augmentation()),
        WholePatches(patches, ["output"], 1),
    ):
        for inputs, labels in batches:
            height = SIZES[3][0]
            assert inputs["dem"].shape == (1, PATCH, PATCH, 2)
            assert (labels["output"][0, height:] == IGNORE).all() and (inputs["dem"][0, height:] == 0).all()
            assert (inputs["dem"][0, :height] >= 100).all()
            assert (labels["output"][0, :height, -4:] != IGNORE).all()


# Whole patches


def test_whole_patches_cover_every_pixel_exactly_once(path: Path) -> None:
    counted = [np.zeros(size, int) for size in SIZES]
    patches = WholePatches(source(path), ["output"], 3)
    number = 0
    for inputs, labels in patches:
        number += len(labels["output"])
        place = inputs["place"][labels["output"] != IGNORE].astype(int)
        for tile, count in enumerate(counted):
            _, rows, columns = place[place[:, 0] == tile].T
            np.add.at(count, (rows, columns), 1)
        np.testing.assert_array_equal(labels["output"][labels["output"] != IGNORE], place[:, 1:].sum(axis=1) % 2)
    assert all((count == 1).all() for count in counted)
    assert number == len(patches.patches) and len(patches) == -(-number // 3)


def test_steps_count_whole_patches_and_a_small_tile_as_one(path: Path) -> None:
    assert source(path).whole_patches == 1 + 2 + 2 + 1 + 12


# What a patch holds


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tile with NaN and infinite values, invalid and ignored pixels."""
    path = tmp_path_factory.mktemp("holes") / "train.hdf5"
    values = np.arange(PATCH * PATCH * 2, dtype=np.float32).reshape(PATCH, PATCH, 2)
    mask, valid = np.ones((PATCH, PATCH), np.uint8), np.ones((PATCH, PATCH), bool)
    valid[0], mask[1] = False, IGNORE
    values[0], values[2, 0, 0], values[3, 0, 1], values[4, 0, 1] = np.nan, np.nan, np.inf, -np.inf
    with TileWriter(path, TWO_CLASSES, {"dem": ["z", "slope"]}) as writer:
        writer.add("hole", {"dem": values}, mask, valid, "HMA")
    return path


STATISTICS = Statistics("standardise", {"dem": (10.0, 20.0)}, {"dem": (2.0, 4.0)}, "a test")


@pytest.mark.parametrize("statistics", [None, STATISTICS])
def test_values_are_scaled_and_what_is_no_number_becomes_0(holes: Path, statistics: Statistics | None) -> None:
    ((inputs, labels),) = WholePatches(
        source(holes, modalities=("dem",), statistics=statistics), ["output", "deepsupervision"], 1
    )
    raw = TileFile(holes).read("hole", ["dem"])["dem"]
    scaled = (raw - np.array([10, 20], np.float32)) / np.array([2, 4], np.float32) if statistics else raw
    expected = np.where(np.isfinite(raw), scaled, 0)
    np.testing.assert_array_equal(inputs["dem"][0], expected)
    assert inputs["dem"].dtype == np.float32
    assert set(labels) == {"output", "deepsupervision"}
    for label in labels.values():
        assert label.dtype == np.int32
        assert (label[0, :2] == IGNORE).all() and (label[0, 2:] == 1).all()


def test_inputs_come_by_name_in_the_order_asked_for(path: Path) -> None:
    for order in (("dem", "sar"), ("sar", "dem")):
        for batches in (
            TrainingPatches(source(path, modalities=order), ["output"], 2, 1, 0, 0, Augmentation()),
            WholePatches(source(path, modalities=order), ["output"], 2),
        ):
            inputs, labels = batches[0]
            seen = labels["output"] != IGNORE
            assert tuple(inputs) == order
            assert (inputs["dem"][seen] >= 100).all() and (inputs["sar"][seen] < 0).all()


def test_regions_are_one_hot_with_a_last_slot_for_the_unknown(path: Path) -> None:
    regions = source(path, location=Regions(("ALP", "HMA")))
    number = {"ALP": 0, "HMA": 1, "SC": 2}

    def slots(batches: Any) -> Iterator[tuple[int, int]]:
        for inputs, _ in batches:
            for tile, location in zip(inputs["place"][..., 0].max(axis=(1, 2)), inputs["location"], strict=True):
                assert location.sum() == 1
                yield int(location.argmax()), number[REGIONS[int(tile)]]

    def drawn(unknown: float) -> list[tuple[int, int]]:
        return list(slots(TrainingPatches(regions, ["output"], 8, 20, 0, 0, AUGMENTED, unknown_region=unknown)))

    assert all(slot == region for slot, region in slots(WholePatches(regions, ["output"], 4)))
    assert all(slot == region for slot, region in drawn(0.0))
    assert all(slot == 2 for slot, _ in drawn(1.0))
    withheld = sum(slot != region for slot, region in drawn(0.5))
    assert 30 < withheld < 100  # of the 128 or so in a known region


def test_coordinates_are_those_of_the_centre_of_a_patch(tmp_path: Path) -> None:
    with TileWriter(tmp_path / "t.hdf5", TWO_CLASSES, {"place": ["row", "column"]}) as writer:
        rows, columns = np.mgrid[:40, :64]
        values = {"place": np.stack([rows, columns], axis=-1).astype(np.float32)}
        writer.add("t0", values, rows % 2, np.ones((40, 64)), crs="EPSG:4326", transform=(0.5, 0, 10, 0, -0.25, 80))
    placed = source(tmp_path / "t.hdf5", modalities=("place",), location=Coordinates())
    plain = Augmentation()
    for batches in (
        TrainingPatches(placed, ["output"], 4, 5, 0, 0, plain, unknown_region=1.0),
        WholePatches(placed, ["output"], 2),
    ):
        for inputs, _ in batches:
            assert inputs["location"].dtype == np.float32
            for patch, location in zip(inputs["place"], inputs["location"], strict=True):
                row, column = patch[0, 0] + PATCH / 2
                north, east = np.radians([80 - 0.25 * row, 10 + 0.5 * column])
                expected = [np.sin(north), np.cos(north), np.sin(east), np.cos(east)]
                np.testing.assert_allclose(location, expected, atol=1e-6)


# Workers


def test_files_are_opened_by_the_thread_that_reads_and_not_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    class Watched(h5py.File):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            opened.append(threading.get_ident())
            super().__init__(*args, **kwargs)

    batches = training(path)
    expected = batches[1]
    stored = pickle.dumps(batches)
    assert len(stored) < 5000  # a path and numbers, no pixels
    monkeypatch.setattr(data.tiles.h5py, "File", Watched)
    copy = pickle.loads(stored)
    assert not opened
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(copy.__getitem__, 1).result()
        thread = pool.submit(threading.get_ident).result()
    assert set(opened) == {thread} != {threading.get_ident()}
    assert_equal(received, expected)
