"""Small objects taken out of label maps: what is left, what stays, and what they become."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import label as connected

from inference.cleaning import remove_small


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
