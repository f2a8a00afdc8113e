"""How fast `resunet` trains on this machine, against plain Keras: a Markdown table for docs/performance.md.

    python -m benchmarks.training
    python -m benchmarks.training --precisions float32 bfloat16 --rounds 5

Every variant trains the same graph from the same start in batches of the same size:

- plain Keras: `compile` and `fit` on arrays in memory, with Keras's own focal loss and Adam, without metrics;
- this project: `training.run.Run` on a tile file, with its loader, augmentation, loss, confusion counts and bar.

Each has a process of its own. Plain Keras and another variant of the same precision take turns of one epoch, one
waiting for the other: what else the machine does hits both alike, and no more than two are in memory. An epoch's time
runs from the request of its first batch to the end of its last step with all that `fit` does between and after, so that
every batch of the epoch is made within it; validation and saving are not in it. The first epoch compiles and is left
out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keras
import numpy as np

import console
from benchmarks.report import machine, spread, table
from benchmarks.turns import Measured, peak_memory, start, take_turns
from data import synthetic
from data.tiles import Dataset
from training.precision import POLICIES, cpu_has_bfloat16, has_gpu
from training.recipe import Recipe, load_recipe
from training.run import Plan, Run, plan


@dataclass(frozen=True)
class Variant:
    """A way to train `recipe`; `plain`: with Keras alone."""

    label: str
    recipe: Recipe
    precision: str
    plain: bool = False


def variants(changes: Sequence[str], precisions: Sequence[str], parts: int) -> list[Variant]:
    """Return plain Keras and this project in each precision, and in the first one with batches in `parts` (1: none)."""
    recipe = load_recipe("resunet", changes)
    found = [
        variant
        for precision in precisions
        for variant in (Variant("plain Keras", recipe, precision, True), Variant("this project", recipe, precision))
    ]
    if parts > 1:
        accumulating = load_recipe("resunet", [*changes, f"training.accumulate={parts}"])
        found.append(Variant(f"this project, batches in {parts} parts", accumulating, precisions[0]))
    return found


def write_tiles(folder: Path, patch: int) -> Dataset:
    """Write synthetic tiles: for training larger than a patch, so that windows are cut, for validation of one patch."""
    sizes = {"train": max(64, patch * 5 // 4), "val": max(64, patch)}
    for split, size in sizes.items():
        (folder / split).mkdir()
        synthetic.write_dataset(folder / split, train=2, val=1, test=1, size=size)
    return Dataset("benchmark", folder, {split: folder / split / f"{split}.hdf5" for split in sizes})


def train(variant: Variant, dataset: Dataset, turns: Connection) -> None:
    """Train all epochs of `variant`, each when something arrives through `turns`.

    Sends a pair when it waits for its turn and at the end: seconds of the epoch before (nan before the first) and peak
    memory of the process in bytes.
    """
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the variants share the GPU
    planned = plan(variant.recipe, dataset, precision=variant.precision)
    clock = _Clock()
    fit = planned.model.fit

    def fit_in_turn(*arguments: Any, callbacks: Sequence[keras.callbacks.Callback] = (), **options: Any) -> Any:
        turns.send((clock.seconds, peak_memory()))
        turns.recv()
        return fit(*arguments, callbacks=[*callbacks, clock], **options)

    planned.model.fit = fit_in_turn
    if variant.plain:
        _train_plain(planned)
    else:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            Run(planned, "benchmark", weights=Path(folder), logs=Path(folder)).train()
    turns.send((clock.seconds, peak_memory()))


class _Clock(keras.callbacks.Callback):
    """Measures the last epoch from the request of its first batch to its end."""

    seconds = math.nan

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Start with the first batch: `fit` has started the workers just before."""
        if batch == 0:
            self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop: the last step's results are there, on a GPU as well."""
        self.seconds = time.perf_counter() - self.started


def _train_plain(planned: Plan) -> None:
    """Train the model as a user of Keras would who has random arrays of the recipe's sizes in memory."""
    training, classes = planned.recipe.training, len(planned.train.file.classes)
    rng = np.random.default_rng(0)
    size = (planned.steps * training.batch_size, training.patch_size, training.patch_size)
    channels = planned.train.file.modalities
    inputs = {m: rng.random((*size, channels[m]), dtype=np.float32) for m in planned.recipe.inputs}
    labels = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, size)]
    planned.model.compile(
        optimizer=keras.optimizers.Adam(training.optimiser.learning_rate),
        loss={"output": keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=2.0)},
    )
    for _ in range(training.epochs):
        planned.model.fit(inputs, {"output": labels}, batch_size=training.batch_size, shuffle=False, verbose=0)


@dataclass(frozen=True)
class Compared:
    """A variant, and what it needed in turns with plain Keras of the same precision."""

    variant: Variant
    own: Measured
    plain: Measured


def measure(found: Sequence[Variant], dataset: Dataset) -> list[Compared]:
    """Train each variant in turns with plain Keras, both in processes of their own; plain Keras is compared once."""
    plain = {variant.precision: variant for variant in found if variant.plain}
    compared: list[Compared] = []
    for variant in found:
        if not variant.plain:
            baseline = plain[variant.precision]
            children = [start(train, one, dataset) for one in (baseline, variant)]
            its, own = take_turns(children, variant.recipe.training.epochs)
            if all(one.variant != baseline for one in compared):
                compared.append(Compared(baseline, its, its))
            compared.append(Compared(variant, own, its))
    return compared


def rows(compared: Sequence[Compared]) -> list[list[str]]:
    """Return the table's rows; ratios are to plain Keras in the same round."""
    cells = []
    for variant, own, plain in ((one.variant, one.own, one.plain) for one in compared):
        training = variant.recipe.training
        patches = training.batch_size * (training.steps_per_epoch or 0)
        ratios = [other / mine for other, mine in zip(plain.seconds, own.seconds, strict=True)]
        memory = "not known" if math.isnan(own.peak) else f"{own.peak / 2**30:.1f}"
        speed = spread([patches / seconds for seconds in own.seconds], 3)
        cells.append([variant.label, variant.precision, speed, spread(ratios), memory])
    return cells


def main(arguments: list[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patch", type=int, default=384, help="side of a patch, pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="patches a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps an epoch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="measured epochs of each variant (default: %(default)s)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=list(POLICIES),
        help="the first is accumulated in as well (default: float32, and bfloat16 where the device computes in it)",
    )
    parser.add_argument(
        "--parts", type=int, default=4, help="parts of a batch in gradient accumulation, 1: none (default: %(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the recipe"
    )
    options = parser.parse_args(arguments)
    epochs = 1 + options.rounds
    changes = [
        f"training.patch_size={options.patch}",
        f"training.batch_size={options.batch}",
        f"training.steps_per_epoch={options.steps}",
        f"training.epochs={epochs}",
        f"training.schedule.patience={epochs}",  # a lower rate can mean to compile again
        "training.stop_patience=null",
        *options.set,
    ]
    bfloat16 = ["bfloat16"] if has_gpu() or cpu_has_bfloat16() else []
    found = variants(changes, options.precisions or ["float32", *bfloat16], options.parts)
    described = machine()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(found, write_tiles(Path(folder), options.patch))
    print(
        f"Training `resunet`, patches of {options.patch}×{options.patch} with optical 6, dem 2, sar 2, batch "
        f"{options.batch}; {options.rounds} rounds of {options.steps} steps, in turns with plain Keras; "
        f"median (lowest–highest).\n\n{described}\n"
    )
    header = ["variant", "precision", "patches/s", "speed, plain Keras = 1", "peak memory, GiB"]
    print(table(header, rows(measured)), end="\n\n", flush=True)


if __name__ == "__main__":
    console.run(main)
