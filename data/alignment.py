"""Whether masks lie where the images show their edges: by cross-correlation of mask edges with image gradients.

The bands of the images are first made into one, the *likeness to glacier*: a linear discriminant (Fisher 1936,
doi:10.1111/j.1469-1809.1936.tb02137.x) of band values and local roughness, fitted on both sides of the mask's edges. It
knows nothing of where a pixel is, so that a shifted mask blurs it but does not shift it. Its gradient is then
correlated with the gradient of the mask, both as vectors, for every shift of the mask up to `REACH` pixels: an edge
counts for a shift if the image changes there the same way. Blocks of pixels are drawn again and again (bootstrap, Efron
1979, doi:10.1214/aos/1176344552) to learn how far the best shift is to be trusted.

Measured on synthetic tiles of 256 x 256 pixels that had no part in choosing the thresholds, with one modality a time:
a shift of 5 pixels is found in 33 of 36 single tiles, 15 of 16 pairs and 31 of 31 groups of four; masks that lie
right are called shifted in 0 of 35, 0 of 16 and 0 of 31. A mask that has nothing to do with its image may be called
shifted, too: some 20 % of single tiles with a mask turned by 180 degrees were (with the tiles that the thresholds
were chosen on). What a shift can't be found in: an image without edges where the mask has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

REACH = 12
"""The largest shift that is looked for, pixels."""

TOLERANCE = 2.0
"""Smaller shifts, pixels, are no finding: outlines drawn on other images, in other years, are off by as much."""

WINDOW = 256
"""Side of the windows that are looked at, at most, pixels."""

_SIDE = 2 * REACH + 1
_BLOCK = 64  # pixels: what is drawn again together; neighbouring edges are not independent
_NEAR = 12  # pixels from an edge in which the discriminant is fitted
_SAMPLES = 3000  # pixels a window and side of the edge
_EDGES = 4000  # edge pixels a window
_DRAWS = 400
_CLEAR, _SURELY_CLEAR = 0.95, 0.99  # from 1.5 times the tolerance on, and below: a little is easily off by chance
_AGREED = 0.4
_LEAST_EDGES = 300
_LEAST_BLOCKS = 4

Bands = NDArray[np.float32]
Mask = NDArray[np.bool_]
Read = Callable[[], tuple[Bands, Mask, Mask]]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where the mask fits best: `rows` down and `columns` to the right of where it lies, whole pixels.

    `clearness` is the share of the bootstrap's draws in which a shift near the best one correlates more than any near
    none; `agreement` the share whose own best shift is near the best of all; near is closer than `TOLERANCE`.
    `scores` is the correlation by shift, (2·REACH + 1, 2·REACH + 1), of which [REACH, REACH] is the mask as it lies;
    `edges` counts the edge pixels.
    """

    rows: int
    columns: int
    clearness: float
    agreement: float
    scores: NDArray[np.float64]
    edges: int

    @property
    def distance(self) -> float:
        """How far the mask is off, pixels."""
        return float(np.hypot(self.rows, self.columns))

    @property
    def off(self) -> bool:
        """Whether the mask is off by `TOLERANCE` or more, and clearly so."""
        clear = _CLEAR if self.distance >= 1.5 * TOLERANCE else _SURELY_CLEAR
        return self.distance >= TOLERANCE and self.clearness >= clear and self.agreement >= _AGREED


def align(windows: Sequence[Read], values: Sequence[bool]) -> Alignment | None:
    """Return by which shift the masks of these windows fit their images best; None where too little can be seen.

    Args:
        windows: Each reads bands `(h, w, C)` (NaN: no value), where the mask is glacier, bool `(h, w)`, and where it
            says anything, bool `(h, w)`; called twice, so that one window is in memory at a time.
        values: Of each band, whether its value says something about glaciers (elevation does not: only its roughness
            is used).
    """
    fitted = _Discriminant.fit(windows, values)
    if fitted is None:
        return None
    pairs = [_correlate(fitted, read) for read in windows]
    sums = np.concatenate([sums for sums, _, _ in pairs])
    weights = np.concatenate([weights for _, weights, _ in pairs])
    edges = sum(count for *_, count in pairs)
    if edges < _LEAST_EDGES or len(sums) < _LEAST_BLOCKS:
        return None
    scores = _scores(sums.sum(axis=0), weights.sum(axis=0))
    shifts = np.moveaxis(np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1], 0, -1)
    best = shifts.reshape(-1, 2)[scores.argmax()]
    draws = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_DRAWS)
    flat = _scores(np.tensordot(draws, sums, 1), np.tensordot(draws, weights, 1)).reshape(_DRAWS, -1)
    drawn_best = shifts.reshape(-1, 2)[flat.argmax(axis=1)]
    zero, peak = (np.hypot(shifts[..., 0] - row, shifts[..., 1] - column) < TOLERANCE for row, column in ((0, 0), best))
    clearness = (flat[:, peak.ravel()].max(axis=1) > flat[:, zero.ravel()].max(axis=1)).mean()
    agreement = (np.hypot(*(drawn_best - best).T) <= TOLERANCE).mean()
    return Alignment(int(best[0]), int(best[1]), float(clearness), float(agreement), scores, edges)


@dataclass(frozen=True)
class _Discriminant:
    values: tuple[bool, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    direction: NDArray[np.float32]
    offset: float

    @classmethod
    def fit(cls, windows: Sequence[Read], values: Sequence[bool]) -> _Discriminant | None:
        rng = np.random.default_rng(0)
        sides: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
        for read in windows:
            bands, glacier, labelled = read()
            if not (glacier & labelled).any() or not (~glacier & labelled).any():
                continue
            seen = labelled & np.isfinite(bands).any(axis=-1)
            features = _features(bands, values).reshape(-1, _width(values))
            for side, part in zip(sides, (~glacier, glacier), strict=True):
                near = ndimage.distance_transform_cdt(part, "chessboard") <= _NEAR
                places = np.flatnonzero(near & part & seen)
                side.append(features[rng.permutation(places)[:_SAMPLES]])
        outside, inside = (np.concatenate(side) if side else np.zeros((0, _width(values))) for side in sides)
        if min(len(outside), len(inside)) < _LEAST_EDGES:
            return None
        both = np.concatenate([outside, inside])
        known = np.isfinite(both)
        count = np.maximum(known.sum(axis=0), 1)
        low, high = np.nanpercentile(np.where(known.any(axis=0), both, 0), [1, 99], axis=0)
        clipped = np.clip(both, low, high)
        mean = np.where(known, clipped, 0).sum(axis=0) / count
        deviation = np.sqrt(np.square(np.where(known, clipped - mean, 0)).sum(axis=0) / count)
        deviation = np.where(deviation > 0, deviation, 1)
        scaled = [np.nan_to_num((np.clip(side, low, high) - mean) / deviation) for side in (outside, inside)]
        means = [side.mean(axis=0) for side in scaled]
        spread = np.atleast_2d(sum(np.cov(side.T) for side in scaled) / 2)
        # A little of the identity: bands that repeat each other must not cancel out in large weights.
        spread += np.eye(len(spread)) * 0.01 * np.trace(spread) / len(spread) + 1e-9 * np.eye(len(spread))
        direction = np.linalg.solve(spread, means[1] - means[0])
        offset = float(direction @ (means[0] + means[1]) / 2)
        low, high, mean, deviation, direction = (
            np.asarray(array, np.float32) for array in (low, high, mean, deviation, direction)
        )
        return cls(tuple(values), low, high, mean, deviation, direction, offset)

    def likeness(self, bands: Bands) -> NDArray[np.float32]:
        """Return the likeness to glacier, 0 … 1, `(h, w)`."""
        features = _features(bands, self.values)
        scaled = np.nan_to_num((np.clip(features, self.low, self.high) - self.mean) / self.deviation)
        return (1 / (1 + np.exp(-np.clip(scaled @ self.direction - self.offset, -20, 20)))).astype(np.float32)


def _width(values: Sequence[bool]) -> int:
    return len(values) + sum(values)


def _features(bands: Bands, values: Sequence[bool]) -> NDArray[np.float32]:
    """Return values, smoothed a little, and logarithms of local roughness, `(h, w, F)`."""
    features = []
    for index, valued in enumerate(values):
        band = bands[..., index]
        known = np.isfinite(band)
        smoothed = _smooth(band, known, 0.7)
        if valued:
            features.append(np.where(known, smoothed, np.nan))
        rest = (smoothed - _smooth(smoothed, known, 1.5)) ** 2
        level = float(np.median(rest[known])) if known.any() else 0.0
        rough = np.log(_smooth(rest, known, 1.5) + 0.01 * level + 1e-12)
        features.append(np.where(known, rough, np.nan))
    return np.stack(features, axis=-1).astype(np.float32)


def _smooth(band: NDArray[np.float32], known: Mask, sigma: float) -> NDArray[np.float32]:
    if known.all():
        return ndimage.gaussian_filter(band.astype(np.float32), sigma)
    filled = ndimage.gaussian_filter(np.where(known, band, 0).astype(np.float32), sigma)
    return filled / np.maximum(ndimage.gaussian_filter(known.astype(np.float32), sigma), 1e-3)


def _correlate(fitted: _Discriminant, read: Read) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return, by block and shift, the sum of mask edge · image gradient and the sum of edge lengths that met pixels."""
    bands, glacier, labelled = read()
    area = glacier.astype(np.float32)
    down, right = (ndimage.gaussian_filter(area, 1.0, order=order) for order in ((1, 0), (0, 1)))
    strength = np.hypot(down, right)
    # Where the mask ends with the tile or with what is labelled, it has no edge.
    rows, columns = np.nonzero((strength > 0.1) & ndimage.binary_erosion(labelled, iterations=3))
    count = len(rows)
    if not count:
        return np.zeros((0, _SIDE, _SIDE)), np.zeros((0, _SIDE, _SIDE)), 0
    chosen = np.random.default_rng(0).permutation(count)[:_EDGES]
    rows, columns = rows[chosen], columns[chosen]
    known = np.isfinite(bands).any(axis=-1)
    likeness = np.where(known, fitted.likeness(bands), np.float32(0.5))
    seen = ndimage.binary_erosion(known, iterations=3, border_value=1)
    image_down, image_right = (
        np.pad(np.where(seen, ndimage.gaussian_filter(likeness, 1.0, order=order), 0), REACH).ravel()
        for order in ((1, 0), (0, 1))
    )
    padded = np.pad(seen, REACH).astype(np.float32)
    _, block = np.unique(np.stack([rows // _BLOCK, columns // _BLOCK]), axis=1, return_inverse=True)
    blocks = int(block.max()) + 1
    down, right, strength = down[rows, columns], right[rows, columns], strength[rows, columns]
    sums, weights = np.zeros((blocks, _SIDE, _SIDE)), np.zeros((blocks, _SIDE, _SIDE))
    width = padded.shape[1]
    padded, places = padded.ravel(), rows * width + columns
    for row in range(_SIDE):
        for column in range(_SIDE):
            there = places + (row * width + column)
            products = down * image_down.take(there) + right * image_right.take(there)
            sums[:, row, column] = np.bincount(block, products, blocks)
            weights[:, row, column] = np.bincount(block, strength * padded.take(there), blocks)
    return sums, weights, count


def _scores(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean change across the edges by shift; -inf where fewer than half of them are seen."""
    most = weights.max(axis=(-2, -1), keepdims=True)
    return np.where(weights > 0.5 * most, sums / np.maximum(weights, 1e-12), -np.inf)
