"""Cross-validation: a run a fold, and one report with mean and spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from console import replacing
from data.folds import Tile, write_fold
from data.tiles import Dataset
from evaluation.scores import counts, multiclass_mcc
from training.record import Record

SCORES = ("iou", "f1", "precision", "recall", "accuracy", "mcc")


def fold_name(name: str, fold: int) -> str:
    """Return the name of the run of fold number `fold`, from 1."""
    return f"{name}-fold{fold}"


def cross_validate(
    name: str,
    tiles: Sequence[Tile],
    folds: Sequence[Sequence[Tile]],
    train: Callable[[str, Dataset], Record],
    test: Path | None = None,
    root: Path = Path("tiles"),
) -> pd.DataFrame:
    """Train a run for each fold and return the table of their scores, one row a fold.

    Args:
        name: Name of the whole; the runs are NAME-fold1, NAME-fold2, …, their tiles `tiles/NAME-folds/fold1` and so on.
        tiles: All tiles.
        folds: The held-out tiles of each fold.
        train: Trains, resumes or looks up the run of a name on a dataset.
        test: Test split of the dataset that the tiles are of.
        root: Folder of datasets.
    """
    rows = []
    for number, held_out in enumerate(folds, start=1):
        # A fold's network is made as in a process of its own.
        keras.backend.clear_session()
        dataset = write_fold(tiles, held_out, root / f"{name}-folds" / f"fold{number}", test)
        rows.append({"fold": number, **_row(train(fold_name(name, number), dataset), held_out)})
    notes = sorted({tile.file.mask_note for tile in tiles} - {""})
    return pd.DataFrame(rows).assign(**({"reference": "; ".join(notes)} if notes else {}))


def _row(record: Record, held_out: Sequence[Tile]) -> dict[str, Any]:
    matrix = np.array(record.best.confusion, np.int64)
    glacier = {index for index, one in enumerate(record.classes) if one.glacier}
    pooled = counts(matrix, glacier)
    row: dict[str, Any] = {
        "run": record.name,
        "tiles": len(held_out),
        "regions": " ".join(sorted({tile.info.region for tile in held_out})),
        "best_epoch": record.best.epoch,
        **{score: getattr(pooled, score) for score in SCORES},
    }
    if len(record.classes) > 2:
        row |= {f"iou_{one.name}": counts(matrix, {index}).iou for index, one in enumerate(record.classes)}
        row["multiclass_mcc"] = multiclass_mcc(matrix)
    return row


def report(table: pd.DataFrame, folder: Path) -> str:
    """Write `folds.csv` into `folder` and return the table as text, mean ± std (ddof 0) of the folds beneath it.

    A score that is undefined in a fold (no glacier there) is left out of mean and std.
    """
    with replacing(folder / "folds.csv") as path:
        table.to_csv(path, index=False)
    notes = list(table.get("reference", pd.Series(dtype=str)).unique())
    table = table.drop(columns="reference", errors="ignore")
    scores = [column for column in table.columns if column not in ("fold", "run", "tiles", "regions", "best_epoch")]
    shown = table.drop(columns="run").copy()
    for column in scores:
        shown[column] = [_three(value) for value in table[column]]
    summary = {
        "fold": "mean ± std",
        **{column: f"{_three(table[column].mean())} ± {_three(table[column].std(ddof=0))}" for column in scores},
    }
    lines = pd.concat([shown.astype(str), pd.DataFrame([summary])]).fillna("")
    return "\n\n".join([lines.to_string(index=False), *notes])


def _three(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
