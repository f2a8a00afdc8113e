from __future__ import annotations

import numpy as np
import pytest

from data.windows import Window, grid, starts

# Lengths below, at, just above and at multiples of the patch, with strides that divide them and that do not.
CASES = [
    (length, patch, stride)
    for patch, stride in ((8, 8), (8, 4), (8, 3), (8, 1), (7, 5), (1, 1))
    for length in (1, 2, patch - 1, patch, patch + 1, 2 * patch - 1, 2 * patch, 2 * patch + 1, 5 * patch, 61)
    if length > 0
]


@pytest.mark.parametrize(("length", "patch", "stride"), CASES)
def test_starts_cover_every_pixel_and_stay_inside(length: int, patch: int, stride: int) -> None:
    found = starts(length, patch, stride)
    covered = np.zeros(length, int)
    for start in found:
        covered[start : start + patch] += 1
    assert covered.min() >= 1
    assert found == sorted(set(found))
    assert found[0] == 0
    if length > patch:
        assert found[-1] + patch == length
        assert all(start % stride == 0 for start in found[:-1])
    else:
        assert found == [0]


@pytest.mark.parametrize("multiple", [1, 2, 5])
def test_exact_multiples_are_covered_once(multiple: int) -> None:
    assert starts(multiple * 8, 8, 8) == [8 * index for index in range(multiple)]


@pytest.mark.parametrize(("height", "width"), [(20, 33), (5, 33), (20, 6), (5, 6), (16, 16)])
def test_grid_covers_every_pixel_with_square_windows_row_by_row(height: int, width: int) -> None:
    covered = np.zeros((height, width), int)
    windows = grid(height, width, 16, 8)
    for window in windows:
        assert (window.height, window.width) == (16, 16)
        covered[window.slices] += 1
    assert covered.min() >= 1
    assert [(window.top, window.left) for window in windows] == sorted(
        (top, left) for top in starts(height, 16, 8) for left in starts(width, 16, 8)
    )


def test_slices_index_rows_then_columns() -> None:
    array = np.arange(30).reshape(5, 6)
    np.testing.assert_array_equal(array[Window(1, 2, 2, 3).slices], [[8, 9, 10], [14, 15, 16]])


@pytest.mark.parametrize(("length", "patch", "stride"), [(0, 8, 8), (8, 0, 1), (8, 8, 0), (20, 8, 9)])
def test_gaps_and_empty_sizes_are_refused(length: int, patch: int, stride: int) -> None:
    with pytest.raises(ValueError, match=r"gaps|at least 1"):
        starts(length, patch, stride)
