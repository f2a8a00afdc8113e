"""A rare class: plain training against class weights and patches centred on rare classes, in paired runs.

    python -m benchmarks.imbalance

The tiles are synthetic with four classes: background, clean ice, debris-covered ice, and lakes, which are about 0.05 %
of the pixels. For every seed a small ResU-Net is trained from the same first weights for the same number of steps,
plainly and with both measures; every other setting is the same. Printed are scores of water over all valid pixels of
the test tiles, from pooled counts, and the paired differences of its IoU. The tiles depend on none of these seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import checkpoints
import console
from console import UserError
from data import synthetic
from data.tiles import TileFile, find_dataset
from evaluation.scores import Counts, confusion_matrix, counts

RARE = synthetic.WATER
TILES: dict[str, Any] = {"train": 60, "val": 4, "test": 24, "size": 384, "regions": ["ALP", "HMA"], "lakes": 0.15}
RECIPE: dict[str, Any] = {
    "name": "imbalance",
    "architecture": {"name": "resunet", "options": {"fusion_width": 8, "width": 8, "steps": 3, "dropout": 0.0}},
    "inputs": ["optical", "dem", "sar"],
    "loss": {"cross_entropy": {}, "dice": {}},
    "augmentation": {"flip_vertical": 0.5, "flip_horizontal": 0.5, "rotate": 0.75},
    "training": {
        "patch_size": 32,
        "batch_size": 16,
        "epochs": 2,
        "steps_per_epoch": 150,
        "optimiser": {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.01},
        "schedule": {"name": "cosine", "warmup_epochs": 0.1},
        "monitor": "multiclass_mcc",  # a score of glacier alone would take any epoch for lakes
        "validation_batch_size": 144,
        "workers": 1,
    },
}
PLAIN = "plain"
MEASURES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "weights, patches": {"class_weights": "balanced", "sampling": {"centred": "auto"}},
}


def train_and_score(folder: Path, seed: int, changes: dict[str, Any]) -> np.ndarray:
    """Train on the tiles in `folder` and return the confusion matrix (K, K) over the valid pixels of its test split."""
    from data.loader import PatchSource, WholePatches
    from training.recipe import parse_recipe
    from training.record import weights_path
    from training.run import Run, plan

    planned = plan(parse_recipe(RECIPE | changes, "the benchmark"), find_dataset(folder), seed=seed)
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        written = Path(temporary)
        Run(planned, "run", weights=written, logs=written).train()
        checkpoints.load_weights(planned.model, weights_path("run", written))
    file = TileFile(folder / "test.hdf5")
    train = planned.train
    source = PatchSource(file, tuple(file.names), train.modalities, train.statistics, train.patch)
    matrix = np.zeros((len(file.classes),) * 2, np.int64)
    for inputs, labels in WholePatches(source, ["output"], 144):
        predicted = np.asarray(planned.model.predict_on_batch(inputs)["output"]).argmax(axis=-1)
        matrix += confusion_matrix(labels["output"], predicted, len(matrix))
    return matrix


def describe(name: str, seed: int, rare: Counts, matrix: np.ndarray, seconds: float) -> str:
    """Return the line of a run: scores of the rare class, IoU of the others, time."""
    others = ", ".join(f"{counts(matrix, {k}).iou:.3f}" for k in range(len(matrix)) if k != RARE)
    return (
        f"seed {seed}  {name:<18} water: IoU {rare.iou:.3f}, precision {rare.precision:.3f}, recall {rare.recall:.3f}; "
        f"IoU of the others {others}; {seconds:.0f} s"
    )


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation (of a sample)."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main(arguments: list[str]) -> None:
    """Make tiles, train in pairs, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imbalance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many pairs, at least 2 [%(default)s]")
    parser.add_argument("--tiles", type=Path, help="folder for the tiles, used again if it has some [a temporary one]")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        raise UserError(f"--seeds {options.seeds}: a spread needs at least 2")
    console.import_keras()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.tiles or Path(temporary)
        if not (folder / "test.hdf5").exists():
            folder.mkdir(parents=True, exist_ok=True)
            synthetic.write_dataset(folder, surface_classes=True, command="python -m benchmarks.imbalance", **TILES)
        compare(folder, options.seeds)


def compare(folder: Path, seeds: int) -> None:
    """Train every measure with every seed on the tiles in `folder` and print the scores."""
    from data.sampling import class_counts

    for split in ("train", "test"):
        file = TileFile(folder / f"{split}.hdf5")
        pixels = class_counts(file, file.names).sum(axis=0)
        shares = ", ".join(f"{c.name} {n / pixels.sum():.3%}" for c, n in zip(file.classes, pixels, strict=True))
        print(f"{split}: {len(file.names)} tiles; {shares}", flush=True)
    ious: dict[str, list[float]] = {name: [] for name in MEASURES}
    for seed in range(seeds):
        for name, changes in MEASURES.items():
            started = time.monotonic()
            matrix = train_and_score(folder, seed, changes)
            rare = counts(matrix, {RARE})
            ious[name].append(rare.iou)
            print(describe(name, seed, rare, matrix, time.monotonic() - started), flush=True)
    for name, values in ious.items():
        print(f"{name:<18} IoU of water {spread(values)}")
        if name != PLAIN:
            gains = [value - plain for value, plain in zip(values, ious[PLAIN], strict=True)]
            print(f"{'':<18} gain over plain {spread(gains)}: {', '.join(f'{gain:+.3f}' for gain in gains)}")


if __name__ == "__main__":
    console.run(main)
