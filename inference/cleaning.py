"""Small objects taken out of a label map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as connected


def remove_small(labels: NDArray[np.uint8], smallest_px: int) -> NDArray[np.uint8]:
    """Return `labels` `(H, W)` without objects of fewer than `smallest_px` pixels.

    An object is a set of pixels of one class, not background (class 0), that touch along their edges. Small ones that
    touch one another are taken out together and become the class that has the longest common edge with them, of equally
    long ones the first in the class list; where nothing is around them, which is so on maps of small objects alone,
    the class that most of their pixels have. What is left has no smaller object, but on maps that are smaller
    themselves; a map of one class stays as it is.
    """
    objects = connected(labels, background=-1, connectivity=1)
    small = (np.bincount(objects.ravel()) < smallest_px)[objects] & (labels != 0)
    if not small.any():
        return labels
    groups = connected(small, background=0, connectivity=1).astype(np.int64)
    classes = int(labels.max()) + 1
    cells = classes * (int(groups.max()) + 1)
    inside = np.bincount(groups[small] * classes + labels[small], minlength=cells)
    around = np.zeros_like(inside)
    for here, there in _neighbours():
        border = small[here] & ~small[there]
        around += np.bincount(groups[here][border] * classes + labels[there][border], minlength=cells)
    around, inside = around.reshape(-1, classes), inside.reshape(-1, classes)
    becomes = np.where(around.any(axis=1), around.argmax(axis=1), inside.argmax(axis=1)).astype(labels.dtype)
    return np.where(small, becomes[groups], labels)


def _neighbours() -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return pairs of windows such that a pixel of the first lies beside that of the second, one pair a direction."""
    every, but_last, but_first = slice(None), slice(None, -1), slice(1, None)
    pairs = [((but_last, every), (but_first, every)), ((every, but_last), (every, but_first))]
    return [*pairs, *((there, here) for here, there in pairs)]
