"""Label maps cleaned: small objects and small holes taken out, edges smoothed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.tiles import IGNORE

Labels = NDArray[np.uint8]

_ROWS = 512  # that are worked on at once: NumPy takes eight bytes more a pixel where an array is an index


def remove_small(labels: Labels, smallest: float, pixel_areas: NDArray[np.floating] | None = None) -> Labels:
    """Return `labels` `(H, W)` without objects that are smaller than `smallest`.

    An object is a set of pixels of one class, not background (class 0), that touch along their edges. Small ones that
    touch one another are taken out together and become the class that has the longest common edge with them, of equally
    long ones the first in the class list; where nothing is around them, which is so on maps of small objects alone,
    the class that most of their pixels have. What is left has no smaller object, but on maps that are smaller
    themselves; a map of one class stays as it is. Ignored pixels (255) stay; amid them, objects become background.

    Args:
        labels: Class ids.
        smallest: In pixels, or in the unit of `pixel_areas`.
        pixel_areas: Area of a pixel of each row, `(H,)`.
    """
    small = np.zeros(labels.shape, bool)
    for class_id in _present(labels):
        small |= _small_objects(labels == class_id, smallest, pixel_areas)
    return _replaced(labels, small)


def fill_small_holes(labels: Labels, smallest: float, pixel_areas: NDArray[np.floating] | None = None) -> Labels:
    """Return `labels` `(H, W)` without holes that are smaller than `smallest`.

    A hole is a set of background pixels (class 0) that touch along their edges, with none at the map's edge or beside
    ignored pixels (255), where it may be the end of something larger. It becomes the class with the longest common
    edge.

    Args:
        labels: Class ids.
        smallest: In pixels, or in the unit of `pixel_areas`.
        pixel_areas: Area of a pixel of each row, `(H,)`.
    """
    beside = np.empty(labels.shape, bool)
    for top in range(0, len(labels), _ROWS):
        rows = labels[max(top - 1, 0) : top + _ROWS + 1] == IGNORE
        ends = int(top == 0), int(top + _ROWS >= len(labels))
        end = np.pad(rows, (ends, (1, 1)), constant_values=True)
        beside[top : top + _ROWS] = end[:-2, 1:-1] | end[2:, 1:-1] | end[1:-1, :-2] | end[1:-1, 2:]
    return _replaced(labels, _small_objects(labels == 0, smallest, pixel_areas, beside))


def majority(labels: Labels, side: int) -> Labels:
    """Return `labels` `(H, W)` with each pixel's class replaced by the most frequent one of `side` × `side` pixels.

    With two classes that is the median. The pixel's own class stays where it is among the most frequent ones, else the
    first in the class list is taken. Ignored pixels (255) stay, and count for nothing.

    Raises:
        ValueError: `side` is not odd.
    """
    if side < 1 or side % 2 == 0:
        raise ValueError(f"a window has an odd number of pixels along a side, got {side}")
    smooth, reach = labels.copy(), side // 2
    classes = [0, *_present(labels)]
    for top in range(0, len(labels), _ROWS):
        first = max(top - reach, 0)
        rows = labels[first : top + _ROWS + reach]
        here = slice(top - first, top - first + len(labels[top : top + _ROWS]))
        own = rows[here]
        counts = np.stack([_counts(rows == class_id, side)[here] for class_id in classes])
        most = counts.max(axis=0)
        most_frequent = np.array(classes, np.uint8)[counts.argmax(axis=0)]
        mine = np.zeros_like(most)
        for class_id, count in zip(classes, counts, strict=True):
            mine[own == class_id] = count[own == class_id]
        smooth[top : top + _ROWS] = np.where((mine == most) | (own == IGNORE), own, most_frequent)
    return smooth


def _present(labels: Labels) -> list[int]:
    """Return the class ids on the map but the background's."""
    return [int(value) for value in np.flatnonzero(_histogram(labels)) if value not in (0, IGNORE)]


def _histogram(labels: Labels) -> NDArray[np.int64]:
    counts = np.zeros(256, np.int64)
    for top in range(0, len(labels), _ROWS):
        counts += np.bincount(labels[top : top + _ROWS].ravel(), minlength=256)
    return counts


def _counts(mask: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """Return how many pixels of the mask lie in the window around each pixel."""
    window = np.ones(side, np.int32)
    along = ndimage.convolve1d(mask.astype(np.int32), window, axis=0, mode="constant")
    return np.asarray(ndimage.convolve1d(along, window, axis=1, mode="constant"), np.int32)


def _small_objects(
    mask: NDArray[np.bool_],
    smallest: float,
    pixel_areas: NDArray[np.floating] | None,
    excluding: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Return the pixels of the mask's objects below a size, but of those that have a pixel in `excluding`."""
    objects, count = ndimage.label(mask)  # int32, four neighbours
    areas = np.zeros(count + 1)
    for top in range(0, len(mask), _ROWS):
        rows = objects[top : top + _ROWS]
        weights = None if pixel_areas is None else np.repeat(pixel_areas[top : top + _ROWS], mask.shape[1])
        areas += np.bincount(rows.ravel(), weights, minlength=count + 1)
    small = areas < smallest
    small[0] = False
    if excluding is not None:
        small[objects[excluding]] = False
    found = np.empty(mask.shape, bool)
    for top in range(0, len(mask), _ROWS):
        found[top : top + _ROWS] = small[objects[top : top + _ROWS]]
    return found


def _replaced(labels: Labels, small: NDArray[np.bool_]) -> Labels:
    """Return the labels with what is small replaced by what is around it."""
    if not small.any():
        return labels
    groups, count = ndimage.label(small)
    ignored = max(_present(labels), default=0) + 1
    classes = ignored + 1

    def cells(groups: NDArray[np.int32], labels: Labels) -> NDArray[np.int64]:
        return groups.astype(np.int64) * classes + np.minimum(labels, ignored)

    inside = np.zeros(classes * (count + 1), np.int64)
    around = np.zeros_like(inside)
    for top in range(0, len(labels), _ROWS):
        own = slice(top, top + _ROWS)
        inside += np.bincount(cells(groups[own][small[own]], labels[own][small[own]]), minlength=len(inside))
        # Below each row of the strip lies another one, the last one's in the next strip.
        for rows, (here, there) in zip((slice(top, top + _ROWS + 1), own) * 2, _neighbours(), strict=True):
            border = small[rows][here] & ~small[rows][there]
            found = cells(groups[rows][here][border], labels[rows][there][border])
            around += np.bincount(found, minlength=len(around))
    around, inside = around.reshape(-1, classes), inside.reshape(-1, classes)
    # Amid ignored pixels alone it is background.
    around[:, 0] += (around[:, ignored] > 0) & ~around[:, :ignored].any(axis=1)
    around[:, ignored] = 0
    becomes = np.where(around.any(axis=1), around.argmax(axis=1), inside.argmax(axis=1)).astype(labels.dtype)
    replaced = labels.copy()
    for top in range(0, len(labels), _ROWS):
        rows = slice(top, top + _ROWS)
        replaced[rows][small[rows]] = becomes[groups[rows][small[rows]]]
    return replaced


def _neighbours() -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return pairs of windows such that a pixel of the first lies beside that of the second, one pair a direction."""
    every, but_last, but_first = slice(None), slice(None, -1), slice(1, None)
    pairs = [((but_last, every), (but_first, every)), ((every, but_last), (every, but_first))]
    return [*pairs, *((there, here) for here, there in pairs)]
