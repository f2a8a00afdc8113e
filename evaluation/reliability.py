"""How far probabilities can be believed: expected calibration error and reliability diagrams, from pooled pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from console import progress, replacing
from data.predictions import PredictionFile, label_probability, per_class
from evaluation.scores import IGNORE

BINS = 15

Probs = NDArray[np.floating]


@dataclass(frozen=True)
class Reliability:
    """Sums over pixels by probability, in `BINS` bins of equal width, each without its lower end and with its upper.

    `sums`: float64 `(1 + K, BINS, 3)`: pixels, sum of their probabilities, pixels for which it came true. The first of
    the 1 + K is of the label's probability, true where the label is right, the others of each class.

    Scores are nan without any pixel. `a + b` pools two sets of pixels.
    """

    sums: NDArray[np.float64]

    @classmethod
    def of(cls, probs: Probs, labels: NDArray[np.integer], reference: NDArray[np.integer]) -> Reliability:
        """Return the sums of the pixels that have a reference.

        Args:
            probs: Probabilities `(…, K)`, or `(…, 1)` of the second of two classes.
            labels: Class ids `(…)` that are predicted.
            reference: Class ids `(…)`; 255 is left out.
        """
        counted = reference != IGNORE
        of_classes, labels, reference = (
            per_class(probs[counted].astype(np.float64)),
            labels[counted],
            reference[counted],
        )
        rows = [(np.asarray(label_probability(of_classes, labels)), labels == reference)]
        rows += [(of_classes[:, k], reference == k) for k in range(of_classes.shape[-1])]
        return cls(np.stack([_bin(values, true) for values, true in rows]))

    def __add__(self, other: Reliability) -> Reliability:
        """Pool two sets of pixels."""
        return Reliability(self.sums + other.sums)

    @property
    def pixels(self) -> int:
        """All pixels counted."""
        return int(self.sums[0, :, 0].sum())

    @property
    def accuracy(self) -> float:
        """Share of the labels that are right."""
        return float(self.sums[0, :, 2].sum() / self.pixels) if self.pixels else math.nan

    @property
    def confidence(self) -> float:
        """Mean probability of the labels."""
        return float(self.sums[0, :, 1].sum() / self.pixels) if self.pixels else math.nan

    @property
    def ece(self) -> float:
        """Expected calibration error of the label's probability: Σ pixels · |right - probability| / pixels, over bins.

        Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
        """
        return float(self._errors[0]) if self.pixels else math.nan

    @property
    def classwise_ece(self) -> float:
        """Mean over the classes of the same error of their probabilities (Kull et al. 2019, arXiv:1910.12656)."""
        return float(self._errors[1:].mean()) if self.pixels else math.nan

    @property
    def table(self) -> NDArray[np.float64]:
        """Per bin, `(BINS, 3)`: share of the pixels, mean probability, share of right labels (nan if empty)."""
        pixels, probability, true = self.sums[0].T
        with np.errstate(invalid="ignore"):
            return np.stack([pixels / max(1, self.pixels), probability / pixels, true / pixels], axis=-1)

    def to_json(self) -> dict[str, Any]:
        """Return scores and bins; what is undefined is None."""
        scores = {name: getattr(self, name) for name in ("accuracy", "confidence", "ece", "classwise_ece")}
        bins = [[None if math.isnan(value) else value for value in row] for row in self.table.tolist()]
        return {"pixels": self.pixels} | {k: None if math.isnan(v) else v for k, v in scores.items()} | {"bins": bins}

    @property
    def _errors(self) -> NDArray[np.float64]:
        return np.abs(self.sums[..., 2] - self.sums[..., 1]).sum(axis=1) / self.pixels


def _bin(values: Probs, true: NDArray[np.bool_]) -> NDArray[np.float64]:
    bins = np.clip(np.ceil(values * BINS).astype(int) - 1, 0, BINS - 1)
    return np.stack([np.bincount(bins, weights, BINS) for weights in (np.ones_like(values), values, true)], axis=-1)


@dataclass(frozen=True)
class Confidence:
    """Reliability by region: of the model's probabilities, and of the calibrated ones where there are any."""

    model: dict[str, Reliability]
    calibrated: dict[str, Reliability] | None = None

    def total(self, regions: Mapping[str, Reliability]) -> Reliability:
        """Return the regions pooled."""
        return reduce(add, regions.values())

    @property
    def _columns(self) -> list[dict[str, Reliability]]:
        return [self.model] + ([self.calibrated] if self.calibrated else [])

    def text(self) -> str:
        """Return the table as printed: a line per region and the total."""
        lines = [["region", "pixels", "accuracy", "confidence", "ECE", "class-wise"]]
        if self.calibrated:
            lines[0] += ["calibrated", "ECE", "class-wise"]
        for region in [*sorted(self.model), None]:
            columns = [self.total(column) if region is None else column[region] for column in self._columns]
            line = [region or ("total" if region is None else "(none)"), f"{columns[0].pixels:,}"]
            line.append(_shown(columns[0].accuracy))
            for one in columns:
                line += [_shown(one.confidence), _shown(one.ece), _shown(one.classwise_ece)]
            lines.append(line)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        printed = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        rule = "-" * len(printed[0])
        return "\n".join([printed[0], rule, *printed[1:-1], rule, printed[-1]])

    def to_json(self) -> dict[str, Any]:
        """Return all numbers: `model` and `calibrated`, each with `total` and `regions`."""
        named = {"model": self.model} | ({"calibrated": self.calibrated} if self.calibrated else {})
        return {
            name: {
                "total": self.total(regions).to_json(),
                "regions": {region: one.to_json() for region, one in sorted(regions.items())},
            }
            for name, regions in named.items()
        }


def measure(
    predictions: PredictionFile, names: Sequence[str], calibrate: Callable[[Probs], Probs] | None = None
) -> Confidence:
    """Return the reliability of the tiles `names`, by region, at the pixels that are valid and have a reference."""
    tables: list[dict[str, Reliability]] = [{} for _ in range(2 if calibrate else 1)]
    for name in progress(names, "confidence", unit="tile"):
        tile = predictions.read(name)
        reference = np.where(tile.valid, tile.mask, IGNORE)
        probs: Probs = predictions.probs(name)
        for table in tables:
            found = Reliability.of(probs, tile.labels, reference)
            table[tile.region] = table[tile.region] + found if tile.region in table else found
            probs = calibrate(probs) if calibrate else probs
    return Confidence(tables[0], tables[1] if calibrate else None)


def save(confidence: Confidence, folder: Path, described: Mapping[str, Any]) -> None:
    """Write `calibration.json` and `reliability.png` into `folder`, each whole or not at all."""
    document = {**described, "bin_edges": [k / BINS for k in range(BINS + 1)], **confidence.to_json()}
    with replacing(folder / "calibration.json") as path:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with replacing(folder / "reliability.png") as path:
        draw(confidence, path)


def draw(confidence: Confidence, path: Path) -> None:
    """Draw reliability diagrams, of all pixels and of each region, into the image `path`."""
    from matplotlib.figure import Figure

    regions = sorted(confidence.model)
    shown = [None, *(regions if len(regions) > 1 else [])]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.5, 3.1 * rows + 1.2), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    series = [("as predicted", "#e8590c", confidence.model), ("calibrated", "#1f4e9d", confidence.calibrated)]
    for axis, region in zip(axes, shown, strict=False):
        axis.plot([0, 1], [0, 1], color="#b0b0b0", linewidth=1, zorder=1)
        lines = []
        for name, color, by_region in series:
            if by_region is None:
                continue
            one = confidence.total(by_region) if region is None else by_region[region]
            share, probability, true = one.table.T
            axis.plot(probability, true, color=color, linewidth=1.2, label=name, zorder=2)
            axis.scatter(probability, true, s=6 + 200 * share, color=color, alpha=0.6, linewidth=0, zorder=3)
            lines.append(f"{name}: ECE {_shown(one.ece)}")
        axis.set_title("all pixels" if region is None else region or "(none)", fontsize=11, fontweight="bold")
        axis.text(0.04, 0.96, "\n".join(lines), transform=axis.transAxes, va="top", fontsize=9)
        axis.set(xlim=(0, 1.05), ylim=(0, 1.05), aspect="equal")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    for axis in axes[max(0, len(shown) - columns) :]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel("confidence: probability of the label (a dot's area: its share of the pixels)", fontsize=10)
    figure.supylabel("share of labels that are right", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(path, facecolor="white")


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
