"""Small objects taken out of label maps: what is left, what stays, and what they become."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label as connected

from data.tiles import IGNORE
from inference.cleaning import fill_small_holes, majority, remove_small


def maps(count: int = 200) -> list[NDArray[np.uint8]]:
    """Return random label maps of all kinds: noise and blocks, of one to five classes, narrow and wide."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        shape, classes = rng.integers(1, 20, 2), int(rng.integers(1, 6))
        labels = rng.integers(0, classes, shape).astype(np.uint8)
        side = 1 + number % 3
        made.append(np.repeat(np.repeat(labels, side, axis=0), side, axis=1))
    return made


def sizes(labels: NDArray[np.uint8]) -> list[int]:
    """Return the sizes of all objects but the background's, each class on its own."""
    return [
        int(size)
        for class_id in np.unique(labels[labels > 0])
        for size in np.bincount(connected(labels == class_id, connectivity=1).ravel())[1:]
    ]


@pytest.mark.parametrize("smallest", [2, 5, 30])
def test_no_object_is_smaller_than_asked_and_none_that_is_as_large_changes(smallest: int) -> None:
    for labels in maps():
        cleaned = remove_small(labels, smallest)
        assert cleaned.dtype == np.uint8 and cleaned.shape == labels.shape
        assert min(sizes(cleaned), default=smallest) >= min(smallest, labels.size)
        objects = connected(labels, background=-1, connectivity=1)
        stays = (np.bincount(objects.ravel()) >= smallest)[objects] | (labels == 0)
        np.testing.assert_array_equal(cleaned[stays], labels[stays])
        np.testing.assert_array_equal(remove_small(cleaned, smallest), cleaned)


def test_a_map_of_one_class_stays_as_it_is() -> None:
    for class_id in (0, 1, 3):
        labels = np.full((4, 5), class_id, np.uint8)
        np.testing.assert_array_equal(remove_small(labels, 1000), labels)


def test_small_objects_become_the_class_with_the_longest_common_edge() -> None:
    labels = np.ones((6, 8), np.uint8)
    labels[:, 4:] = 2
    labels[2, 3:5] = 3  # an edge of three with class 1 and of three with class 2: the first of them
    labels[4, 5:7] = 3  # within class 2
    labels[0, 1] = labels[0, 2] = 0  # background is never taken out
    expected = labels.copy()
    expected[2, 3:5], expected[4, 5:7] = 1, 2
    np.testing.assert_array_equal(remove_small(labels, 3), expected)
    np.testing.assert_array_equal(remove_small(labels, 2), labels)


def test_small_objects_that_touch_go_together() -> None:
    labels = np.zeros((7, 7), np.uint8)
    labels[2:5, 2:5] = 1
    labels[3, 3] = 2
    np.testing.assert_array_equal(remove_small(labels, 9), np.zeros_like(labels))
    assert set(np.unique(remove_small(labels, 8))) == {0, 1}


def test_sizes_may_be_areas_that_differ_from_row_to_row() -> None:
    labels = np.zeros((12, 12), np.uint8)
    labels[1:3, 1:3] = labels[8:10, 1:3] = 1
    areas = np.linspace(1, 2, 12)
    kept = remove_small(labels, 4 * 1.5, areas)
    assert not kept[:6].any() and (kept[6:] == labels[6:]).all()
    np.testing.assert_array_equal(remove_small(labels, 3, np.ones(12)), labels)


def test_ignored_pixels_stay_and_amid_them_objects_become_background() -> None:
    labels = np.full((9, 9), IGNORE, np.uint8)
    labels[2, 2] = labels[6, 6] = 1
    labels[6, 7] = 2
    expected = labels.copy()
    expected[2, 2] = expected[6, 6] = expected[6, 7] = 0
    np.testing.assert_array_equal(remove_small(labels, 3), expected)
    labels[4:, 4:] = 1
    labels[5, 5] = IGNORE
    np.testing.assert_array_equal(remove_small(labels, 25)[4:, 4:], np.where(labels == IGNORE, IGNORE, 0)[4:, 4:])


def test_small_holes_are_filled_with_what_is_around_but_not_at_the_end_of_what_is_known() -> None:
    labels = np.ones((12, 14), np.uint8)
    labels[2:4, 2:4] = 0  # a hole of 4 within class 1
    labels[:, 8:] = 2
    labels[5, 8:10] = 0  # of 2, beside class 1 and within class 2
    labels[11, 3] = 0  # at the map's edge
    labels[8, 3], labels[9, 3] = 0, IGNORE  # beside what is not known
    expected = labels.copy()
    expected[5, 8:10] = 2
    np.testing.assert_array_equal(fill_small_holes(labels, 4), expected)
    expected[2:4, 2:4] = 1
    np.testing.assert_array_equal(fill_small_holes(labels, 4.5), expected)
    for labels in maps(60):
        filled = fill_small_holes(labels, 6)
        holes = connected(np.pad(filled, 1) == 0, connectivity=1)
        assert min(np.bincount(holes.ravel())[2:], default=6) >= 6
        np.testing.assert_array_equal(filled[labels > 0], labels[labels > 0])


@pytest.mark.parametrize("side", [1, 3, 5])
def test_the_majority_of_two_classes_is_the_median(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.cleaning._ROWS", 7)
    labels = np.random.default_rng(0).integers(0, 2, (30, 25)).astype(np.uint8)
    smooth = majority(labels, side)
    inner = slice(side, -side)
    np.testing.assert_array_equal(smooth[inner, inner], ndimage.median_filter(labels, side)[inner, inner])


def test_the_majority_keeps_a_class_among_equals_and_leaves_ignored_pixels_out() -> None:
    labels = np.array([[1, 2, 2], [3, 3, 1], [0, 1, IGNORE]], np.uint8)
    assert majority(labels, 3)[1, 1] == 1
    labels[2, 1] = 0
    assert majority(labels, 3)[1, 1] == 3
    assert majority(labels, 3)[2, 2] == IGNORE
    with pytest.raises(ValueError, match="odd"):
        majority(labels, 2)
