"""The threshold on a band ratio, fitted on training tiles: what a model has to beat.

Ratios such as red/SWIR1, NIR/SWIR1 and NDSI = (green - SWIR1)/(green + SWIR1) tell clean ice and snow from
rock and vegetation (Paul et al. 2016, doi:10.1016/j.rse.2016.02.005). A ratio a/b and the normalised
difference (a - b)/(a + b) order pixels alike, so that one threshold on one of them is a threshold on the
other, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from console import UserError, progress
from data.predictions import PredictionFile
from data.tiles import TileFile
from data.weak_masks import normalised_difference
from evaluation.regions import Evaluation, Setting, TileScore, glacier_ids, score_tile
from evaluation.scores import IGNORE, Counts

Sample = tuple[Mapping[str, NDArray[np.floating]], NDArray[np.bool_], NDArray[np.bool_]]
BANDS = ("green", "red", "nir", "swir1")
_BINS = 4096


@dataclass(frozen=True)
class RatioThreshold:
    """Glacier is where the normalised difference of two bands exceeds `value` (`above`), or does not.

    `counts` are those of the pixels it was fitted on.
    """

    first: str
    second: str
    above: bool
    value: float
    counts: Counts

    def predict(self, bands: Mapping[str, NDArray[np.floating]]) -> NDArray[np.bool_]:
        """Return where glacier is, of arrays of any one shape by band name."""
        return (normalised_difference(bands[self.first], bands[self.second]) > self.value) == self.above

    def __str__(self) -> str:
        """Return the rule as a formula."""
        sign = ">" if self.above else "≤"
        ratio = (1 + self.value) / (1 - self.value) if self.value < 1 else np.inf
        return (
            f"({self.first} - {self.second})/({self.first} + {self.second}) {sign} {self.value:.3f}, "
            f"that is {self.first}/{self.second} {sign} {ratio:.2f}"
        )


def fit(
    samples: Iterable[Sample],
    names: Sequence[str] = BANDS,
) -> RatioThreshold:
    """Return the rule with the best IoU of glacier, of all pairs of bands and all thresholds.

    Reads the samples once: per pair of bands a histogram of glacier and one of the rest, of 4096 bins, has
    the pooled counts of every threshold in either direction.

    Args:
        samples: Bands by name `(H, W)`, where glacier is, and which pixels count.
        names: The bands to pair.

    Raises:
        UserError: If no pixel of glacier counts.
    """
    pairs = list(combinations(names, 2))
    histograms = np.zeros((len(pairs), 2, _BINS), np.int64)  # second axis: the rest, glacier
    for bands, glacier, counted in samples:
        truth = glacier[counted].astype(np.int64)
        pixels = {name: bands[name][counted] for name in names}
        for histogram, (first, second) in zip(histograms, pairs, strict=True):
            # In float64 the bins' edges and the rule's comparison agree to the last bit.
            index = normalised_difference(pixels[first], pixels[second]).astype(np.float64)
            bins = np.clip(np.ceil((index + 1) * (_BINS / 2)) - 1, 0, _BINS - 1).astype(np.int64)
            histogram += np.bincount(truth * _BINS + bins, minlength=2 * _BINS).reshape(2, _BINS)
    rest, positive = histograms[0].sum(axis=1)
    if not positive:
        raise UserError("the band-ratio baseline needs training tiles with glacier; these have none")
    best: tuple[float, RatioThreshold] | None = None
    for (first, second), histogram in zip(pairs, histograms, strict=True):
        up_to = histogram.cumsum(axis=1)  # counts at or below the upper edge of each bin
        for above in (True, False):
            false, true = (histogram.sum(axis=1, keepdims=True) - up_to) if above else up_to
            iou = true / (positive + false)
            at = int(iou.argmax())
            if best is None or iou[at] > best[0]:
                tp, fp = int(true[at]), int(false[at])
                found = Counts(tp=tp, fp=fp, fn=int(positive) - tp, tn=int(rest) - fp)
                best = float(iou[at]), RatioThreshold(first, second, above, 2 * (at + 1) / _BINS - 1, found)
    assert best is not None
    return best[1]


def fit_file(file: TileFile, names: Sequence[str]) -> RatioThreshold:
    """Fit the rule on the tiles `names` of a tile file: valid pixels that have a reference, in one pass.

    Raises:
        UserError: If the file has fewer than two of `BANDS`, or no glacier.
    """
    place = _find_bands(file)
    glacier = glacier_ids(file.classes)

    def samples() -> Iterator[Sample]:
        for name in progress(names, "baseline", unit="tile"):
            mask = file.mask(name)
            yield _bands(file, name, place), np.isin(mask, glacier), file.valid(name) & (mask != IGNORE)

    return fit(samples(), list(place[1]))


def evaluate(
    rule: RatioThreshold, predictions: PredictionFile, names: Sequence[str], settings: Sequence[Setting]
) -> list[Evaluation]:
    """Score the rule on the tiles `names` of a prediction file, from the bands of its tile file.

    Raises:
        UserError: If that file is gone or lacks the bands.
    """
    glacier = glacier_ids(predictions.classes)
    tiles: dict[Setting, list[TileScore]] = {setting: [] for setting in settings}
    with TileFile(predictions.source) as file:
        place = _find_bands(file)
        for name in names:
            tile = predictions.read(name)
            inside = file.info(name).interior()
            bands = {band: values[inside] for band, values in _bands(file, name, place).items()}
            labels = np.where(rule.predict(bands), glacier[0], 0).astype(np.uint8)
            for setting, scored in tiles.items():
                matrix = score_tile(tile.mask, labels, tile.valid, len(predictions.classes), setting)
                scored.append(TileScore(name, tile.region, matrix))
    classes = tuple(info.name for info in predictions.classes)
    return [Evaluation(tuple(scored), classes, glacier, setting) for setting, scored in tiles.items()]


def _find_bands(file: TileFile) -> tuple[str, dict[str, int]]:
    """Return the modality that has most of `BANDS`, and the place of each of them in it."""
    found = {
        modality: {name: list(present).index(name) for name in BANDS if name in present}
        for modality, present in file.bands.items()
    }
    modality = max(found, key=lambda name: len(found[name]))
    if len(found[modality]) < 2:
        held = "; ".join(f"{name}: {', '.join(present)}" for name, present in file.bands.items())
        raise UserError(
            f"{file.path}: the band-ratio baseline needs two or more bands named {', '.join(BANDS)} "
            f"in one modality, the tiles have {held}"
        )
    return modality, found[modality]


def _bands(file: TileFile, name: str, place: tuple[str, dict[str, int]]) -> dict[str, NDArray[np.float32]]:
    modality, index = place
    values = file.read(name, [modality])[modality]
    return {band: values[..., at] for band, at in index.items()}
