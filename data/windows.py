"""Square windows over a tile or a scene, such that every pixel lies in at least one of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: rows `top : top + height`, columns `left : left + width`."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns to index an array `(H, W, …)` with; indexing cuts what lies beyond it."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def starts(length: int, patch: int, stride: int) -> list[int]:
    """Return where windows of `patch` pixels start along a side of `length` pixels, in ascending order.

    Every pixel is covered: the last window is moved back to the edge instead of reaching beyond it. A side
    that is not longer than the patch has one window, at 0.

    Raises:
        ValueError: If a number is below 1, or the stride is larger than the patch and would leave gaps.
    """
    if length < 1 or patch < 1 or stride < 1:
        raise ValueError(f"length, patch and stride are at least 1, got {length}, {patch}, {stride}")
    if stride > patch:
        raise ValueError(f"a stride of {stride} leaves gaps between windows of {patch} pixels; use at most {patch}")
    if length <= patch:
        return [0]
    last = length - patch
    return [*range(0, last, stride), last]


def grid(height: int, width: int, patch: int, stride: int) -> list[Window]:
    """Return the windows of `patch`×`patch` pixels that cover `(height, width)`, row by row.

    Where a side is shorter than the patch the window reaches beyond the array; the caller pads what it reads.
    """
    return [
        Window(top, left, patch, patch)
        for top in starts(height, patch, stride)
        for left in starts(width, patch, stride)
    ]
