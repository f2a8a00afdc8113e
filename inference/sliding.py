"""Overlapping windows blended into one map of probabilities: the only place where that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from console import UserError
from data.normalisation import is_absent
from data.windows import Window, grid, starts

Floats = NDArray[np.float32]
Kernel = Literal["gaussian", "cosine"]
Predict = Callable[[dict[str, Floats]], NDArray[np.floating]]
"""Probabilities `(N, P, P, K)` of a batch by input: patches `(N, P, P, C)`, and vectors `(N, L)`."""


class Source(Protocol):
    """What windows are cut from: a tile in memory, or a scene on the disk."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    def read(self, window: Window) -> tuple[Mapping[str, Floats], NDArray[np.bool_]]:
        """Return the inputs of a window, scaled: what lies inside of it `(h, w, C)`, vectors `(L,)`; and where seen.

        An input that is NaN everywhere is absent.
        """


@dataclass(frozen=True)
class ArraySource:
    """Inputs in memory, `(H, W, C)` and `(L,)`, as a source; all of it is seen."""

    inputs: Mapping[str, Floats]

    @property
    def height(self) -> int:
        """Rows."""
        return next(array.shape[0] for array in self.inputs.values() if array.ndim == 3)

    @property
    def width(self) -> int:
        """Columns."""
        return next(array.shape[1] for array in self.inputs.values() if array.ndim == 3)

    def read(self, window: Window) -> tuple[Mapping[str, Floats], NDArray[np.bool_]]:
        """Return what lies in a window."""
        cut = {name: array[window.slices] if array.ndim == 3 else array for name, array in self.inputs.items()}
        shape = next(array.shape[:2] for array in cut.values() if array.ndim == 3)
        return cut, np.ones(shape, bool)


@dataclass(frozen=True)
class Piece:
    """Rows `top` to `bottom` of a source, and where the rows of windows begin that they are blended of."""

    source: Source
    tops: tuple[int, ...]
    top: int
    bottom: int


@dataclass(frozen=True)
class Rows:
    """Finished rows of piece number `piece`, from row `top` of its source on: `probs` `(h, W, K)`, `seen` `(h, W)`.

    `windows`: how many were predicted for them, since the rows above.
    """

    piece: int
    top: int
    probs: Floats
    seen: NDArray[np.bool_]
    windows: int


def kernel(patch: int, shape: Kernel = "gaussian") -> Floats:
    """Return the weight `(P, P)` of each pixel of a window, above 0 everywhere.

    Args:
        patch: Side P of a window in pixels.
        shape: `gaussian`, as published: exp(-(x² + y²) / 2), x and y from -1 to 1 at the outermost pixels, which weigh
            a third of the centre; or `cosine`: cos²(πx / 2) · cos²(πy / 2), -1 and 1 at the window's edges, by which
            a window fades out before it ends.
    """
    if shape == "gaussian":
        axis = np.exp(-(np.linspace(-1, 1, patch) ** 2) / 2)
    else:
        axis = np.cos(np.pi / 2 * (2 * np.arange(patch) + 1 - patch) / patch) ** 2
    return np.outer(axis, axis).astype(np.float32)


def stride_of(patch: int, overlap: float, batch: int) -> int:
    """Return the distance of windows of `patch` pixels of which neighbours have the share `overlap` in common.

    Raises:
        UserError: If the overlap, or the number of windows predicted at once, is impossible.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap must lie in 0 ≤ overlap < 1, received {overlap}; half a patch is 0.5")
    if batch < 1:
        raise UserError(f"--batch-size must be at least 1, received {batch}")
    return max(1, round(patch * (1 - overlap)))


def whole(source: Source, patch: int, stride: int) -> Piece:
    """Return all rows of a source as one piece."""
    return Piece(source, tuple(starts(source.height, patch, stride)), 0, source.height)


def pieces(source: Source, patch: int, stride: int, rows: int) -> list[Piece]:
    """Divide a source into pieces of `rows` rows of windows each, which can be predicted apart from one another.

    Windows that reach into a piece from above are predicted with it once more, so that every pixel is blended of the
    same windows as in one piece.
    """
    tops = starts(source.height, patch, stride)
    firsts = range(0, len(tops), rows)
    found = []
    for first in firsts:
        last = min(first + rows, len(tops))
        top = tops[first]
        bottom = tops[last] if last < len(tops) else source.height
        found.append(Piece(source, tuple(one for one in tops[:last] if one + patch > top), top, bottom))
    return found


def stacked(windows: Sequence[Mapping[str, Floats]], patch: int, batch: int) -> dict[str, Floats]:
    """Return windows as a batch of `batch` patches by input: padded behind, and with zeros where there are fewer.

    Args:
        windows: At least one: what lies in it, `(h, w, C)` with sides of at most `patch`, and vectors `(L,)`.
        patch: Side of a patch in pixels.
        batch: Number of patches, at least that of the windows.
    """
    patches = {
        name: np.zeros((batch, *((patch, patch) if array.ndim == 3 else ()), array.shape[-1]), np.float32)
        for name, array in windows[0].items()
    }
    for row, inputs in enumerate(windows):
        for name, array in inputs.items():
            patches[name][row][tuple(map(slice, array.shape))] = array
            if array.ndim == 3 and is_absent(array):
                patches[name][row] = np.nan
    return patches


def sample(sources: Sequence[Source], patch: int, count: int) -> dict[str, Floats] | None:
    """Return at most `count` windows as a batch of patches by input: of some that are evenly spread, the most seen.

    Where none of these was seen, the first that was; None: nothing was.
    """
    places = [(source, window) for source in sources for window in grid(source.height, source.width, patch, patch)]
    drawn = np.unique(np.linspace(0, len(places) - 1, min(len(places), 3 * count)).astype(int))
    read = [source.read(window) for source, window in (places[index] for index in drawn)]
    kept = [one for one in sorted(read, key=lambda one: -int(one[1].sum()))[:count] if one[1].any()]
    if not kept:
        others = (source.read(window) for source, window in places)
        kept = [one for one in (next((one for one in others if one[1].any()), None),) if one]
    return stacked([inputs for inputs, _ in kept], patch, len(kept)) if kept else None


def blend(
    predict: Predict,
    inputs: Mapping[str, Floats],
    *,
    patch: int,
    num_outputs: int,
    stride: int | None = None,
    batch: int = 8,
    shape: Kernel = "gaussian",
) -> Floats:
    """Return the probabilities `(H, W, K)` of one array by modality; see `blend_all`."""
    (blended,) = blend_all(
        predict, [inputs], patch=patch, num_outputs=num_outputs, stride=stride, batch=batch, shape=shape
    )
    return blended


def blend_all(
    predict: Predict,
    arrays: Iterable[Mapping[str, Floats]],
    *,
    patch: int,
    num_outputs: int,
    stride: int | None = None,
    batch: int = 8,
    shape: Kernel = "gaussian",
) -> Iterator[Floats]:
    """Yield the probabilities float32 `(H, W, K)` of each of `arrays`, in their order; see `blend_rows`.

    Args:
        predict: The model; called with exactly `batch` patches.
        arrays: By modality `(H, W, C)`, scaled; height and width may differ from array to array. An input of
            one dimension `(L,)`, such as a location, goes with every window.
        patch: Side of a window in pixels.
        num_outputs: Number K of probabilities of a pixel.
        stride: Distance of windows in pixels, at most `patch`; half a patch by default.
        batch: Number of windows predicted at once; the result does not depend on it.
        shape: Of the `kernel`.
    """
    stride = max(1, patch // 2) if stride is None else stride
    parts: list[Floats] = []
    sources = (whole(ArraySource(inputs), patch, stride) for inputs in arrays)
    for rows in blend_rows(
        predict, sources, patch=patch, num_outputs=num_outputs, stride=stride, batch=batch, shape=shape
    ):
        if rows.top == 0 and parts:
            yield np.concatenate(parts)
            parts = []
        parts.append(rows.probs)
    if parts:
        yield np.concatenate(parts)


def blend_rows(
    predict: Predict,
    pieces: Iterable[Piece],
    *,
    patch: int,
    num_outputs: int,
    stride: int,
    batch: int = 8,
    shape: Kernel = "gaussian",
) -> Iterator[Rows]:
    """Predict overlapping windows of each piece and yield the weighted means, row by row, in the order of the pieces.

    Windows cover every pixel, the last of a row or column moved back to the edge; a pixel's probabilities are
    the mean over its windows, weighted by `kernel`. A source smaller than a patch is padded behind: with zeros, or with
    NaN where an input is absent. Batches run on from one row of windows into the next, and from one piece into the
    next, and are all of the same size, the very last padded with zeros: a compiled model is traced once, and pieces of
    a few windows fill whole batches. What is kept in memory is a strip: the rows that windows are still missing of.
    A window in which nothing was seen is not predicted; where no other window lies, outputs are 1/K, a single one 0.5.

    Args:
        predict: The model; called with exactly `batch` patches.
        pieces: What to predict.
        patch: Side of a window in pixels.
        num_outputs: Number K of probabilities of a pixel.
        stride: Distance of windows in pixels, at most `patch`.
        batch: Number of windows predicted at once.
        shape: Of the `kernel`.

    Yields:
        Rows that are finished; those of a piece from its top to its bottom, each once.
    """
    weights = kernel(patch, shape)[..., None]
    strips: list[_Strip] = []
    unseen = np.full((patch, patch, num_outputs), 1 / max(2, num_outputs), np.float32)
    # Strips take windows in their order: those that are not predicted, None, wait among those that are.
    waiting: list[tuple[_Strip, Window, Mapping[str, Floats] | None, NDArray[np.bool_]]] = []

    def run() -> None:
        asked = [inputs for _, _, inputs, _ in waiting if inputs is not None]
        predicted = iter(np.asarray(predict(stacked(asked, patch, batch)), np.float32) if asked else ())
        for strip, window, of_window, seen in waiting:
            strip.windows += of_window is not None
            strip.add(window, unseen if of_window is None else next(predicted), weights, seen)
        waiting.clear()

    def finished() -> Iterator[Rows]:
        while strips:
            yield from strips[0].take()
            if not strips[0].done:
                break
            strips.pop(0)

    asked = 0
    for number, piece in enumerate(pieces):
        columns = starts(piece.source.width, patch, stride)
        strips.append(_Strip(number, piece, len(columns), patch, num_outputs))
        for top in piece.tops:
            for left in columns:
                window = Window(top, left, patch, patch)
                inputs, seen = piece.source.read(window)
                if seen.any():
                    waiting.append((strips[-1], window, inputs, seen))
                    asked += 1
                else:
                    waiting.append((strips[-1], window, None, seen[:0, :0]))
                # However much there is that was not seen, no more than some rows of windows are kept waiting.
                if asked in (0, batch) or len(waiting) > batch + 2 * len(columns):
                    run()
                    asked = 0
                    yield from finished()
    if waiting:
        run()
    yield from finished()


class _Strip:
    """The weighted sums of the rows of a piece that are not finished yet."""

    def __init__(self, number: int, piece: Piece, columns: int, patch: int, num_outputs: int) -> None:
        self.number, self.piece, self.columns, self.patch = number, piece, columns, patch
        self.windows = 0  # predicted since rows were taken
        self._added = 0  # windows, in their order
        self._first = piece.tops[0]  # row of the source that the sums begin with
        width = max(piece.source.width, patch)
        self._total = np.zeros((patch, width, num_outputs), np.float32)
        self._weight = np.zeros((patch, width, 1), np.float32)
        self._seen = np.zeros((patch, width), bool)
        self._taken = piece.top

    @property
    def done(self) -> bool:
        """Whether all rows were taken."""
        return self._taken == self.piece.bottom

    def add(self, window: Window, probabilities: Floats, weights: Floats, seen: NDArray[np.bool_]) -> None:
        """Add a window; they come in the order of `tops`, and in a row of windows from the left."""
        top = window.top - self._first
        if missing := top + self.patch - len(self._total):
            if missing > 0:
                self._total, self._weight, self._seen = (
                    np.concatenate([one, np.zeros((missing, *one.shape[1:]), one.dtype)])
                    for one in (self._total, self._weight, self._seen)
                )
        place = slice(top, top + self.patch), slice(window.left, window.left + self.patch)
        self._total[place] += probabilities * weights
        self._weight[place] += weights
        height, width = seen.shape
        self._seen[top : top + height, window.left : window.left + width] |= seen
        self._added += 1

    def take(self) -> Iterator[Rows]:
        """Yield the rows that no window is missing of, if there are some that were not taken."""
        rows, tops = self._added // self.columns, self.piece.tops
        if rows == 0:
            return
        end = min(tops[rows], self.piece.bottom) if rows < len(tops) else self.piece.bottom
        if end > self._taken:
            place = slice(self._taken - self._first, end - self._first)
            width = self.piece.source.width
            probs = (self._total[place] / self._weight[place])[:, :width]
            windows, self.windows = self.windows, 0
            yield Rows(self.number, self._taken, probs, self._seen[place][:, :width].copy(), windows)
            self._taken = end
        if rows < len(tops) and (above := tops[rows] - self._first) > 0:
            self._total, self._weight, self._seen = (
                one[above:].copy() for one in (self._total, self._weight, self._seen)
            )
            self._first = tops[rows]
