"""Overlapping windows blended into one map of probabilities: the only place where that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.normalisation import is_absent
from data.windows import Window, grid

Floats = NDArray[np.float32]
Predict = Callable[[dict[str, Floats]], NDArray[np.floating]]
"""Probabilities `(N, P, P, K)` of a batch by input: patches `(N, P, P, C)`, and vectors `(N, L)`."""


def kernel(patch: int) -> Floats:
    """Return the weight `(P, P)` of each pixel of a window: exp(-(x² + y²) / 2), x and y from -1 to 1."""
    axis = np.exp(-(np.linspace(-1, 1, patch) ** 2) / 2)
    return np.outer(axis, axis).astype(np.float32)


def blend(
    predict: Predict,
    inputs: Mapping[str, Floats],
    *,
    patch: int,
    num_outputs: int,
    stride: int | None = None,
    batch: int = 8,
) -> Floats:
    """Return the probabilities `(H, W, K)` of one array by modality; see `blend_all`."""
    (blended,) = blend_all(predict, [inputs], patch=patch, num_outputs=num_outputs, stride=stride, batch=batch)
    return blended


def blend_all(
    predict: Predict,
    arrays: Iterable[Mapping[str, Floats]],
    *,
    patch: int,
    num_outputs: int,
    stride: int | None = None,
    batch: int = 8,
) -> Iterator[Floats]:
    """Predict overlapping windows of each of `arrays` and yield their weighted means, in the same order.

    Windows cover every pixel, the last of a row or column moved back to the edge; a pixel's probabilities are
    the mean over its windows, weighted by `kernel`. An array smaller than a patch is padded behind: with zeros, or
    with NaN if it is absent, NaN everywhere. Batches run on from one array into the next and are all of the same
    size, the very last padded with zeros: a compiled model is traced once, and arrays of a few windows fill whole
    batches.

    Args:
        predict: The model; called with exactly `batch` patches.
        arrays: By modality `(H, W, C)`, scaled; height and width may differ from array to array. An input of
            one dimension `(L,)`, such as a location, goes with every window.
        patch: Side of a window in pixels.
        num_outputs: Number K of probabilities of a pixel.
        stride: Distance of windows in pixels, at most `patch`; half a patch by default.
        batch: Number of windows predicted at once; the result does not depend on it.

    Yields:
        float32 `(H, W, K)`.
    """
    weights = kernel(patch)[..., None]
    stride = max(1, patch // 2) if stride is None else stride
    open_maps: list[_Map] = []
    waiting: list[tuple[_Map, Window]] = []

    def run() -> None:
        stacked = {
            name: np.zeros((batch, *((patch, patch) if array.ndim == 3 else ()), array.shape[-1]), np.float32)
            for name, array in waiting[0][0].inputs.items()
        }
        for row, (target, window) in enumerate(waiting):
            for name, array in target.inputs.items():
                cut = array[window.slices] if array.ndim == 3 else array
                stacked[name][row][tuple(map(slice, cut.shape))] = cut
                if array.ndim == 3 and is_absent(cut):
                    stacked[name][row] = np.nan
        predicted = np.asarray(predict(stacked), np.float32)
        for (target, window), probabilities in zip(waiting, predicted, strict=False):
            target.add(window, probabilities, weights)
        waiting.clear()

    for inputs in arrays:
        height, width = next(array.shape[:2] for array in inputs.values() if array.ndim == 3)
        windows = grid(height, width, patch, stride)
        size = (max(height, patch), max(width, patch))
        open_maps.append(
            _Map(
                inputs=inputs,
                height=height,
                width=width,
                missing=len(windows),
                total=np.zeros((*size, num_outputs), np.float32),
                weight=np.zeros((*size, 1), np.float32),
            )
        )
        for window in windows:
            waiting.append((open_maps[-1], window))
            if len(waiting) == batch:
                run()
        while open_maps and not open_maps[0].missing:
            yield open_maps.pop(0).mean()
    if waiting:
        run()
    for finished in open_maps:
        yield finished.mean()


@dataclass
class _Map:
    """The weighted sums of one array's windows, padded to at least a patch."""

    inputs: Mapping[str, Floats]
    height: int
    width: int
    missing: int
    total: Floats
    weight: Floats

    def add(self, window: Window, probabilities: Floats, weights: Floats) -> None:
        self.total[window.slices] += probabilities * weights
        self.weight[window.slices] += weights
        self.missing -= 1

    def mean(self) -> Floats:
        """Return the sums over the weights, without the padding; the sums are used up."""
        self.total /= self.weight
        return self.total[: self.height, : self.width]
