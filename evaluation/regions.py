"""The region table: scores of glacier against the rest, from counts pooled over each region's pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from console import UserError, progress, replacing
from data.predictions import PredictionFile
from data.tiles import ClassInfo
from evaluation.scores import IGNORE, Counts, confusion_matrix, counts, kappa, multiclass_mcc

Setting = Literal["valid", "all"]
"""Which pixels count: those that are valid and have a reference, or all that have a reference, where the
invalid ones are taken as predicted background."""

SCORES = ("iou", "precision", "recall", "f1", "accuracy", "mcc")
_COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True)
class TileScore:
    """The confusion matrix `(K, K)` of one tile."""

    tile: str
    region: str
    matrix: NDArray[np.int64]


def score_tile(
    reference: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    num_classes: int,
    setting: Setting,
) -> NDArray[np.int64]:
    """Return the confusion matrix `(K, K)` of one tile's pixels, those that count under `setting`.

    Args:
        reference: Class ids `(H, W)`; 255 is always left out.
        labels: Predicted class ids `(H, W)`.
        valid: Where the scene was seen, `(H, W)`.
        num_classes: Number K of classes; class 0 is the background.
        setting: What becomes of the invalid pixels.

    Raises:
        ValueError: If there are ids beyond the classes.
    """
    if setting == "all":
        return confusion_matrix(reference, np.where(valid, labels, 0), num_classes)
    return confusion_matrix(np.where(valid, reference, IGNORE), labels, num_classes)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of tiles under one setting.

    `glacier` are the class ids that count as glacier together; a confusion among them is no error in any
    score but those by class.
    """

    tiles: tuple[TileScore, ...]
    classes: tuple[str, ...]
    glacier: tuple[int, ...]
    setting: Setting

    @cached_property
    def matrix(self) -> NDArray[np.int64]:
        """The confusion matrix `(K, K)` of all tiles."""
        return _pool(self.tiles, len(self.classes))

    @cached_property
    def total(self) -> Counts:
        """Counts of glacier over all tiles."""
        return counts(self.matrix, self.glacier)

    @cached_property
    def region_table(self) -> pd.DataFrame:
        """One row per region, in alphabetical order; `iou` is nan where the reference has no glacier."""
        regions = sorted({tile.region for tile in self.tiles})
        rows = []
        for region in regions:
            members = [tile for tile in self.tiles if tile.region == region]
            rows.append({"region": region, "tiles": len(members), **self._row(_pool(members, len(self.classes)))})
        return pd.DataFrame(rows)

    @cached_property
    def tile_table(self) -> pd.DataFrame:
        """One row per tile; `iou` is nan where the reference has no glacier."""
        rows = [{"tile": tile.tile, "region": tile.region, **self._row(tile.matrix)} for tile in self.tiles]
        return pd.DataFrame(rows)

    @property
    def mean_iou(self) -> float:
        """Mean over the regions that have glacier of the IoU of glacier; nan if none has."""
        ious = self.region_table["iou"].dropna()
        return float(ious.mean()) if len(ious) else math.nan

    @property
    def std_iou(self) -> float:
        """Standard deviation (of the population) over the regions that have glacier."""
        ious = self.region_table["iou"].dropna()
        return float(ious.std(ddof=0)) if len(ious) else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return all but the tiles; counts are in the order tp, fp, fn, tn, undefined scores are None."""
        return {
            "mean_iou": _or_none(self.mean_iou),
            "std_iou": _or_none(self.std_iou),
            "total": {"tiles": len(self.tiles), **_json_row(self._row(self.matrix))},
            "regions": {row.pop("region"): _json_row(row) for row in _records(self.region_table)},
            "confusion": self.matrix.tolist(),
        }

    def text(self) -> str:
        """Return the region table as printed: a line per region, the total, mean ± std of regions' IoU."""
        table = self.region_table
        columns = dict(zip(SCORES, ("IoU", "precision", "recall", "F1", "accuracy", "MCC"), strict=True))
        columns["kappa"] = "kappa"
        if len(self.classes) > 2:
            columns |= {f"iou_{name}": f"IoU {name}" for name in self.classes}
            columns |= {"mcc_all_classes": "MCC of all", "kappa_all_classes": "kappa of all"}
        total = {"region": "total", "tiles": len(self.tiles), **self._row(self.matrix)}
        lines = [["region", "tiles", "pixels", "glacier", *columns.values()]]
        for row in [*_records(table), total]:
            lines.append(
                [
                    str(row["region"]) or "(none)",
                    f"{row['tiles']}",
                    f"{row['pixels']:,}",
                    "–" if math.isnan(row["glacier_share"]) else f"{row['glacier_share']:.1%}",
                    *("–" if math.isnan(row[score]) else f"{row[score]:.3f}" for score in columns),
                ]
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        printed = [
            "  ".join(
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        rule = "-" * len(printed[0])
        with_glacier = int(table["iou"].notna().sum())
        mean = (
            f"mean IoU {self.mean_iou:.3f} ± {self.std_iou:.3f} over {with_glacier} "
            f"region{'s' if with_glacier > 1 else ''}"
            if with_glacier
            else "mean IoU –: no region has glacier in its reference"
        )
        return "\n".join([printed[0], rule, *printed[1:-1], rule, printed[-1], "", mean])

    def _row(self, matrix: NDArray[np.int64]) -> dict[str, Any]:
        pooled = counts(matrix, self.glacier)
        row: dict[str, Any] = {"pixels": pooled.pixels, "glacier_share": pooled.share}
        row |= {name: getattr(pooled, name) for name in (*_COUNTS, *SCORES)}
        if pooled.tp + pooled.fn == 0:
            row["iou"] = math.nan  # Without glacier to find, IoU is 0 or undefined, whatever the model's merit.
        if len(self.classes) > 2:
            row |= {f"iou_{name}": counts(matrix, [index]).iou for index, name in enumerate(self.classes)}
            row["mcc_all_classes"] = multiclass_mcc(matrix)
        row["kappa"] = pooled.kappa
        if len(self.classes) > 2:
            row["kappa_all_classes"] = kappa(matrix)
        return row


def evaluate(predictions: PredictionFile, names: Sequence[str], settings: Sequence[Setting]) -> list[Evaluation]:
    """Score the tiles `names` of a prediction file under each of `settings`, reading every tile once.

    Raises:
        UserError: If the file is damaged or no class is flagged as glacier.
    """
    glacier = glacier_ids(predictions.classes)
    tiles: dict[Setting, list[TileScore]] = {setting: [] for setting in settings}
    for name in progress(names, "evaluate", unit="tile"):
        tile = predictions.read(name)
        for setting, scored in tiles.items():
            matrix = score_tile(tile.mask, tile.labels, tile.valid, len(predictions.classes), setting)
            scored.append(TileScore(name, tile.region, matrix))
    classes = tuple(info.name for info in predictions.classes)
    return [Evaluation(tuple(scored), classes, glacier, setting) for setting, scored in tiles.items()]


def save(
    evaluations: Sequence[Evaluation],
    folder: Path,
    described: Mapping[str, Any],
) -> None:
    """Write `scores.json`, `regions.csv` and `tiles.csv` into `folder`, each whole or not at all.

    Args:
        evaluations: The same tiles under different settings. The tables are of the first;
            `scores.json` has all.
        folder: Made if missing.
        described: What `scores.json` says beside the scores (run, source, baseline …). Its `reference`, where the
            masks are weak, is a column of the tables, too.
    """
    first = evaluations[0]
    document = {
        **described,
        "classes": list(first.classes),
        "glacier_classes": [first.classes[index] for index in first.glacier],
        "setting": first.setting,
        "settings": {evaluation.setting: evaluation.to_json() for evaluation in evaluations},
    }
    with replacing(folder / "scores.json") as path:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    told = {"setting": first.setting} | {key: described[key] for key in ("reference",) if key in described}
    for name, table in (("regions.csv", first.region_table), ("tiles.csv", first.tile_table)):
        with replacing(folder / name) as path:
            table.assign(**told).to_csv(path, index=False)


def glacier_ids(classes: Sequence[ClassInfo]) -> tuple[int, ...]:
    """Return the ids of the classes that are flagged as glacier.

    Raises:
        UserError: If none is.
    """
    ids = tuple(index for index, info in enumerate(classes) if info.glacier)
    if not ids:
        named = ", ".join(info.name for info in classes)
        raise UserError(f"no class is flagged as glacier among {named}: prepare the tiles with classes of which one is")
    return ids


def _pool(tiles: Iterable[TileScore], num_classes: int) -> NDArray[np.int64]:
    return sum((tile.matrix for tile in tiles), start=np.zeros((num_classes, num_classes), np.int64))


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict(orient="records")]


def _or_none(value: Any) -> Any:  # noqa: ANN401 - numbers as they come
    return None if isinstance(value, float) and math.isnan(value) else value


def _json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _or_none(value) for key, value in row.items()}
