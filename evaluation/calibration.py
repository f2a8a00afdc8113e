"""Calibration: probabilities mapped so that what is said with 0.9 is right nine times of ten.

Fitted on pixels of validation tiles in two ways, temperature scaling (Guo et al. 2017, arXiv:1706.04599) and isotonic
regression class by class (Zadrozny and Elkan 2002, doi:10.1145/775047.775151), and stored with the run. Labels are
those of the model whatever the calibration: it says how far to believe them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.optimize import brentq, isotonic_regression

from console import UserError, replacing
from data.predictions import PredictionFile, label, per_class
from evaluation.reliability import Probs, Reliability
from evaluation.scores import IGNORE

Method = Literal["none", "temperature", "isotonic"]

SAMPLE = 2**20
"""Pixels that a calibration is fitted on at most: a share of so many is known to 0.0005 and takes 20 MB, and it is the
tiles that are few, not the pixels of a tile."""

_FOLDS = 5
_SMALLEST = 1e-12  # of a probability whose logarithm is taken
_FLOOR = 1e-4  # isotonic regression says 0 where none was seen, and a single pixel would refute it
_TEMPERATURES = (0.05, 20.0)
_LOGITS = np.linspace(-16, 16, 161)  # edges of the bins that isotonic regression pools pixels in
_BLOCK = 2**18


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Curve(_Part):
    """A rising function from 0 … 1 to 0 … 1: linear between the points (x, y), constant beyond the outer ones."""

    x: tuple[float, ...]
    y: tuple[float, ...]


class Calibrator(_Part):
    """A map from probabilities to calibrated ones.

    temperature: softmax(log p / T); isotonic: a curve for each class, and what comes out divided by its sum. One
    probability is treated as those of the two classes.
    """

    method: Method = "none"
    temperature: float = 1.0
    curves: tuple[Curve, ...] = ()

    def __call__(self, probs: Probs) -> Probs:
        """Return calibrated probabilities of `probs` `(…, K)`, as float32 of the same shape."""
        if self.method == "none":
            return probs
        flat = probs.reshape(-1, probs.shape[-1])
        result = np.empty(flat.shape, np.float32)
        for start in range(0, len(flat), _BLOCK):
            block = self._of_classes(np.asarray(per_class(flat[start : start + _BLOCK]), np.float64))
            result[start : start + _BLOCK] = block[:, -flat.shape[-1] :]
        return result.reshape(probs.shape)

    def _of_classes(self, probs: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.method == "temperature":
            return _softmax(_logs(probs) / self.temperature)
        curves = zip(self.curves, probs.T, strict=True)
        mapped = np.stack([np.interp(values, curve.x, curve.y) for curve, values in curves], axis=-1)
        mapped = np.clip(mapped, _FLOOR, 1 - _FLOOR)
        return mapped / mapped.sum(axis=-1, keepdims=True)


class Scores(_Part):
    """Mean negative log-likelihood and expected calibration errors on validation pixels."""

    nll: float
    ece: float
    classwise_ece: float


class About(_Part):
    """What a calibration is of, and holds for.

    Attributes:
        weights: Run → SHA-256 of its weights file; several runs are an ensemble.
        tta: Symmetries that are averaged beside the identity.
        mc: Passes with dropout; 0: without.
        classes: Names of the classes.
        source: The tile file that it is fitted on.
        source_digest: Its digest.
        overlap: Share of a patch that windows have in common.
        kernel: That they are blended by.
        precision: Of the prediction.
    """

    weights: dict[str, str]
    tta: tuple[str, ...] = ()
    mc: int = 0
    classes: tuple[str, ...]
    source: str
    source_digest: str
    overlap: float
    kernel: str = "gaussian"
    precision: str


class Fit(_Part):
    """A calibration as it is stored.

    `scores` are by method, each fitted on other tiles than those that it is scored on (`folds` groups of whole tiles;
    1: there was a single tile, and it was both). `best` is the method with the lowest negative log-likelihood of these.
    `correlation_length_m` is that of the errors of the best map's probability of glacier, where tiles have a place.
    """

    about: About
    temperature: Calibrator
    isotonic: Calibrator
    best: Method
    scores: dict[Method, Scores]
    tiles: tuple[str, ...]
    pixels: int
    sampled: int
    folds: int
    written: str
    correlation_length_m: float | None = None

    def calibrator(self, method: Method | Literal["auto"] = "auto") -> Calibrator:
        """Return the map by `method`, or by the best."""
        chosen = self.best if method == "auto" else method
        return Calibrator() if chosen == "none" else getattr(self, chosen)

    def text(self) -> str:
        """Return what was fitted and how good it is, a line a method."""
        how = (
            f"each scored on other tiles than it was fitted on, in {self.folds} groups"
            if self.folds > 1
            else "scored on the one tile that it was fitted on: too low"
        )
        lines = [
            f"calibration on {self.pixels:,} pixels of {len(self.tiles)} tiles of {self.about.source}"
            f"{f', {self.sampled:,} of them drawn' if self.sampled < self.pixels else ''}; {how}:"
        ]
        for method, scores in self.scores.items():
            detail = f" (T = {self.temperature.temperature:.3f})" if method == "temperature" else ""
            lines.append(
                f"  {method + detail:23}  ECE {scores.ece:.4f}  class-wise {scores.classwise_ece:.4f}  "
                f"negative log-likelihood {scores.nll:.4f}{'  <- used' if method == self.best else ''}"
            )
        return "\n".join(lines)


class Sample:
    """A seeded uniform sample of labelled pixels, of at most `limit`, whatever the number and order of the tiles."""

    def __init__(self, limit: int = SAMPLE, seed: int = 0) -> None:
        self._limit, self._seed = limit, seed
        self._parts: list[tuple[NDArray[np.float64], Probs, NDArray[np.uint8], NDArray[np.int64]]] = []
        self._below = 1.0  # pixels of a higher key are out already
        self.tiles: list[str] = []
        self.pixels = 0

    def add(self, tile: str, probs: Probs, reference: NDArray[np.integer]) -> None:
        """Add a tile's `probs` `(H, W, K)` where its `reference` `(H, W)` is not 255."""
        random = np.random.default_rng([self._seed, zlib.crc32(tile.encode())])
        flat, classes = probs.reshape(-1, probs.shape[-1]), reference.reshape(-1)
        number = len(self.tiles)
        self.tiles.append(tile)
        for start in range(0, len(flat), _BLOCK):
            block = slice(start, start + _BLOCK)
            keys = random.random(len(classes[block]))
            counted = classes[block] != IGNORE
            self.pixels += int(counted.sum())
            kept = np.flatnonzero(counted & (keys < self._below))
            tiles = np.full(len(kept), number)
            self._parts.append((keys[kept], flat[block][kept], classes[block][kept].astype(np.uint8), tiles))
            if sum(len(part[0]) for part in self._parts) > 2 * self._limit:
                self._shrink()

    def _shrink(self) -> None:
        keys, *rest = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        if len(keys) > self._limit:
            order = np.argpartition(keys, self._limit)
            self._below = float(keys[order[self._limit]])
            keys, rest = keys[order[: self._limit]], [column[order[: self._limit]] for column in rest]
        self._parts = [(keys, rest[0], rest[1], rest[2])]

    def drawn(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Return probabilities `(n, K)` of every class, reference `(n,)` and number of the tile `(n,)`.

        Raises:
            UserError: If there is no pixel.
        """
        if not self.pixels:
            raise UserError(
                f"none of {len(self.tiles)} tiles has a pixel that is valid and labelled: calibration needs a reference"
            )
        self._shrink()
        ((_, probs, reference, tiles),) = self._parts
        return np.asarray(per_class(probs), np.float64), reference.astype(np.int64), tiles


def fit(tiles: Iterable[tuple[str, Probs, NDArray[np.integer]]], about: About) -> Fit:
    """Fit a calibration in one pass over tiles.

    Both methods are fitted on all pixels, and scored by cross-fitting: fitted on the tiles but a fifth, applied to that
    fifth, in turns, whole tiles together, because the pixels of a tile are much alike.

    Args:
        tiles: Name, probabilities `(H, W, K)` and reference class ids `(H, W)`, 255 where a pixel does not count.
        about: What it is of.

    Raises:
        UserError: If no pixel counts.
    """
    sample = Sample()
    for name, probs, reference in tiles:
        sample.add(name, probs, reference)
    probs, reference, numbers = sample.drawn()
    counted = np.unique(numbers)
    folds = min(_FOLDS, len(counted))
    places = np.empty(len(sample.tiles), np.int64)
    places[np.random.default_rng(0).permutation(counted)] = np.arange(len(counted)) % folds
    fold_of = places[numbers]
    scores: dict[Method, Scores] = {}
    for method in get_args(Method):
        mapped = np.empty_like(probs)
        for fold in range(folds):
            held_out = fold_of == fold
            fitted_on = ~held_out if folds > 1 else held_out
            mapped[held_out] = fit_method(method, probs[fitted_on], reference[fitted_on])(probs[held_out])
        scores[method] = score(mapped, probs, reference)
    return Fit(
        about=about,
        temperature=fit_method("temperature", probs, reference),
        isotonic=fit_method("isotonic", probs, reference),
        best=min(scores, key=lambda method: scores[method].nll),
        scores=scores,
        tiles=tuple(sample.tiles),
        pixels=sample.pixels,
        sampled=len(reference),
        folds=folds,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def fit_method(method: Method, probs: NDArray[np.float64], reference: NDArray[np.int64]) -> Calibrator:
    """Fit one method to probabilities `(n, K)` of every class and reference classes `(n,)`."""
    if method == "temperature":
        return Calibrator(method=method, temperature=_fit_temperature(probs, reference))
    if method == "isotonic":
        curves = tuple(_fit_curve(probs[:, k], reference == k) for k in range(probs.shape[1]))
        return Calibrator(method=method, curves=curves)
    return Calibrator()


def score(mapped: Probs, probs: Probs, reference: NDArray[np.integer]) -> Scores:
    """Score probabilities `mapped` `(n, K)` of the labels that the model's own, `probs`, give."""
    reliability = Reliability.of(mapped, label(probs[None])[0], reference)
    likelihood = np.take_along_axis(mapped, reference[:, None], axis=1)
    nll = -float(np.log(np.maximum(likelihood, _SMALLEST)).mean())
    return Scores(nll=nll, ece=reliability.ece, classwise_ece=reliability.classwise_ece)


def _fit_temperature(probs: NDArray[np.float64], reference: NDArray[np.int64]) -> float:
    """Return the T within `_TEMPERATURES` of the lowest negative log-likelihood, which is convex in 1/T."""
    logs = _logs(probs)
    right = np.take_along_axis(logs, reference[:, None], axis=1).mean()

    def slope(inverse: float) -> float:
        return float((_softmax(logs * inverse) * logs).sum(axis=1).mean() - right)

    lowest, highest = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    if slope(lowest) >= 0:
        return _TEMPERATURES[1]
    if slope(highest) <= 0:
        return _TEMPERATURES[0]
    return 1 / brentq(slope, lowest, highest, xtol=1e-5)


def _fit_curve(values: NDArray[np.float64], true: NDArray[np.bool_]) -> Curve:
    """Fit isotonic regression to bins of equal width in log-odds, at the mean probability of each."""
    clipped = np.clip(values, _SMALLEST, 1 - _SMALLEST)
    bins = np.clip(np.digitize(np.log(clipped / (1 - clipped)), _LOGITS), 1, len(_LOGITS) - 1) - 1
    pixels, sums, hits = (np.bincount(bins, weights, len(_LOGITS) - 1) for weights in (None, values, true))
    filled = pixels > 0
    weights = pixels[filled].astype(np.float64)
    x, y = sums[filled] / weights, isotonic_regression(hits[filled] / weights, weights=weights).x
    # Within a run of equal values the first and the last say it all.
    needed = np.r_[True, y[1:] != y[:-1]] | np.r_[y[1:] != y[:-1], True]
    return Curve(x=tuple(_rounded(x[needed])), y=tuple(_rounded(np.clip(y[needed], 0, 1))))


def _rounded(values: NDArray[np.float64]) -> Iterator[float]:
    return (float(f"{value:.6g}") for value in values)


def _logs(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(probs, _SMALLEST))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# Stored with the run


class _File(_Part):
    format: Literal["glacier-calibration 1"] = "glacier-calibration 1"
    fits: tuple[Fit, ...]


def calibration_path(name: str, root: Path = Path("weights")) -> Path:
    """Return where the calibrations of run `name` are kept; of an ensemble, names joined by `+`."""
    return root / f"{name}.calibration.json"


def save(name: str, fitted: Fit, root: Path = Path("weights")) -> Path:
    """Store a calibration beside those of other ways to predict with the same weights; return the file."""
    path = calibration_path(name, root)
    about = fitted.about
    try:
        former = _load(path)
    except UserError:
        former = ()  # a damaged file is no reason to keep it
    others = [
        one
        for one in former
        if one.about.weights == about.weights and (one.about.tta, one.about.mc) != (about.tta, about.mc)
    ]
    document = _File(fits=(*others, fitted))
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return path


def find(name: str, about: About, root: Path = Path("weights")) -> Fit:
    """Return the calibration of run `name` for these weights, classes and this way to predict.

    Raises:
        UserError: If there is none; the message says what there is.
    """
    path = calibration_path(name, root)
    fits = _load(path)
    if not fits:
        raise UserError(f"there is no calibration of {name!r} ({path})")
    for one in fits:
        if set(one.about.weights) != set(about.weights):
            runs = " and ".join(one.about.weights)
            raise UserError(f"{path} is the calibration of {runs}, not of {' and '.join(about.weights)}")
        if one.about.classes != about.classes:
            theirs, ours = ", ".join(one.about.classes), ", ".join(about.classes)
            raise UserError(f"{path} was fitted for the classes {theirs}; {name!r} predicts {ours}")
        if one.about.weights != about.weights:
            raise UserError(f"{path} was fitted to other weights of {name!r} than there are now")
    for one in fits:
        if (one.about.tta, one.about.mc) == (about.tta, about.mc):
            return one
    ways = "; ".join(_way(one.about) for one in fits)
    raise UserError(f"{path} was fitted for predicting with {ways}, not with {_way(about)}")


def of(predictions: PredictionFile) -> Calibrator | None:
    """Return what the confidence of a prediction file was made with; None if it is not calibrated."""
    if not predictions.is_calibrated:
        return None
    return Calibrator.model_validate_json(predictions.attributes["calibration"])


def _way(about: About) -> str:
    parts = [f"--tta {' '.join(about.tta)}"] if about.tta else []
    return " ".join([*parts, *([f"--mc {about.mc}"] if about.mc else [])]) or "neither --tta nor --mc"


def _load(path: Path) -> tuple[Fit, ...]:
    if not path.is_file():
        return ()
    try:
        return _File.model_validate_json(path.read_text(encoding="utf-8")).fits
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no calibration: {error}") from None
