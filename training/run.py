"""A training run: from a recipe and a dataset to weights, record and log."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
from tqdm import tqdm

import architectures
from console import UserError, progress, replacing, warn
from data.loader import PatchSource, TrainingPatches, WholePatches
from data.tiles import Dataset, TileFile, select
from training import precision as precisions
from training.losses import SegmentationLoss
from training.memory import training_memory
from training.metrics import ConfusionMatrix, epoch_scores, monitored
from training.optimisers import optimiser_of, values_per_parameter
from training.recipe import Plateau, Recipe
from training.record import (
    LOGS,
    WEIGHTS,
    Best,
    ClassRecord,
    Modality,
    Record,
    describe_dataset,
    now,
    package_versions,
    save_record,
    weights_path,
)
from training.schedules import Patience, rate_of

_SHOWN_PROBLEMS = 20
_LOGGED = {"iou", "precision", "recall", "accuracy"}  # with two classes, glacier's have columns of their own


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first step."""

    recipe: Recipe
    dataset: Dataset
    train: PatchSource
    val: PatchSource
    model: keras.Model
    options: dict[str, Any]
    precision: str
    seed: int
    regions: tuple[str, ...]
    steps: int
    memory: float

    @property
    def outputs(self) -> list[str]:
        """Names of the model's outputs."""
        return list(self.model.output)

    @property
    def glacier(self) -> set[int]:
        """Ids of the classes that count as glacier."""
        return {i for i, c in enumerate(self.train.file.classes) if c.glacier}

    @property
    def scored_classes(self) -> range:
        """Ids of the classes that the log has scores of: one sigmoid has a probability of class 1 alone."""
        return range(1 if self.recipe.outputs == "sigmoid" else 0, len(self.train.file.classes))

    def summary(self) -> str:
        """Return what a user wants to know before it starts."""
        training = self.recipe.training
        available = psutil.virtual_memory().available
        inputs = ", ".join(f"{m} {self.train.file.modalities[m]}" for m in self.recipe.inputs)
        return (
            f"{self.recipe.architecture.name}: {self.model.count_params():,} parameters; inputs {inputs}; "
            f"{len(self.train.file.classes)} classes; {keras.backend.backend()}, {self.precision}\n"
            f"train {len(self.train.names)} tiles, val {len(self.val.names)} tiles, patches of "
            f"{training.patch_size}×{training.patch_size}; {self.steps} steps of {training.batch_size} patches"
            f"{f', {training.part_size} at a time,' if training.accumulate > 1 else ''} an epoch, "
            f"at most {training.epochs} epochs\n"
            f"expected memory {self.memory / 2**30:.1f} GiB ({available / 2**30:.1f} GiB are free)"
        )


def plan(
    recipe: Recipe, dataset: Dataset, *, regions: Sequence[str] = (), seed: int = 0, precision: str | None = None
) -> Plan:
    """Check the data, choose the precision and build the model.

    Raises:
        UserError: Everything that makes the run impossible, all problems of the tiles at once.
    """
    patch = recipe.training.patch_size
    files = {split: TileFile(dataset.path(split)) for split in ("train", "val")}
    names = {split: tuple(select(file, regions)) for split, file in files.items()}
    problems = [problem for file in files.values() for problem in file.check(recipe.inputs)]
    train, val = files["train"], files["val"]
    channels = {m: train.modalities.get(m, 0) for m in recipe.inputs}
    if not problems:
        if (other := {m: val.modalities[m] for m in recipe.inputs}) != channels:
            problems.append(f"{val.path} has channels {other}, {train.path} has {channels}")
        if val.classes != train.classes:
            problems.append(f"{val.path} and {train.path} have different classes")
        if _is_scaled(val) != _is_scaled(train):
            problems.append(f"of {val.path} and {train.path} the values of one only are scaled already")
    if problems:
        more = [f"and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
        raise UserError("\n  ".join(["the tiles can't be trained on:", *problems[:_SHOWN_PROBLEMS], *more]))
    if not any(c.glacier for c in train.classes):
        raise UserError(f"{train.path}: no class is flagged as glacier, so that there is no score to select by")
    if recipe.outputs == "sigmoid" and len(train.classes) != 2:
        raise UserError(f"{recipe.name} has one sigmoid output for two classes; {train.path} has {len(train.classes)}")

    known_regions = tuple(sorted({train.info(name).region for name in names["train"]}))
    statistics = train.statistics and train.statistics.select(recipe.inputs)
    options = dict(recipe.architecture.options)
    if recipe.location == "region":
        options["location_size"] = len(known_regions) + 1
    chosen = precisions.choose(precision, recipe.training.precision)
    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_dtype_policy(precisions.POLICIES[chosen])
    try:
        model = architectures.build(
            recipe.architecture.name,
            channels,
            1 if recipe.outputs == "sigmoid" else len(train.classes),
            patch,
            **options,
        )
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    if unknown := set(recipe.output_weights) - set(model.output):
        raise UserError(f"output_weights: no output {', '.join(unknown)}; there are {', '.join(model.output)}")

    def source(split: str) -> PatchSource:
        location = known_regions if recipe.location == "region" else None
        return PatchSource(files[split], names[split], recipe.inputs, statistics, patch, location)

    sources = {split: source(split) for split in files}
    return Plan(
        recipe=recipe,
        dataset=dataset,
        train=sources["train"],
        val=sources["val"],
        model=model,
        options=options,
        precision=chosen,
        seed=seed,
        regions=known_regions,
        steps=recipe.training.steps(sources["train"].whole_patches),
        memory=training_memory(model, recipe.training.part_size, chosen, values_per_parameter(recipe.training)),
    )


def _is_scaled(file: TileFile) -> bool:
    return file.statistics is None or file.statistics.applied


class _Steps(keras.callbacks.Callback):
    """Shows the steps of an epoch, each of `parts` batches, and stops it when the loss is no longer finite."""

    def __init__(self, bar: tqdm[Any], parts: int) -> None:
        super().__init__()
        self.bar, self.parts = bar, parts
        self.bad_step: int | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advance the bar."""
        loss = float((logs or {})["loss"])
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if (batch + 1) % self.parts == 0:
            self.bar.update()
        if not math.isfinite(loss):
            self.bad_step = batch // self.parts + 1
            self.model.stop_training = True


class Run:
    """A planned run being trained; `train` is the one method that others call.

    Args:
        plan: What to train, on what.
        name: Name of the run: `weights/NAME.weights.h5`, `weights/NAME.json`, `logs/NAME.csv`.
        command: The command that asked for it, for the record.
        weights: Folder of weights and records.
        logs: Folder of logs.
    """

    def __init__(self, plan: Plan, name: str, *, command: str = "", weights: Path = WEIGHTS, logs: Path = LOGS) -> None:
        self.plan, self.name, self.command = plan, name, command
        self.weights, self.log = weights, logs / f"{name}.csv"
        training = plan.recipe.training
        self.rate = rate_of(training.schedule, training.optimiser.learning_rate, plan.steps, training.epochs)
        self.confusions = {
            output: ConfusionMatrix(len(plan.train.file.classes), name=f"{output}_counts") for output in plan.outputs
        }
        self.rows: list[dict[str, Any]] = []
        self.best = Best(epoch=0, monitor=training.monitor, score=None)
        self.dataset = describe_dataset(plan.dataset, ("train", "val"))
        loss = SegmentationLoss(plan.recipe.loss)
        plan.model.compile(
            optimizer=optimiser_of(training, self.rate),
            loss=dict.fromkeys(plan.outputs, loss),
            loss_weights={output: plan.recipe.output_weights.get(output, 1.0) for output in plan.outputs},
            metrics={output: [confusion] for output, confusion in self.confusions.items()},
        )

    def train(self) -> Record:
        """Train to the end of the schedule and return the record; the best weights are on disk at every moment.

        Ctrl-C ends the run after saving the record and is raised again.

        Raises:
            UserError: The loss stopped being finite; weights, record and log of the epochs before are kept.
        """
        training = self.plan.recipe.training
        schedule = training.schedule
        falling = training.monitor == "loss"
        plateau = Patience(schedule.min_delta if isinstance(schedule, Plateau) else 0.0, lower_is_better=falling)
        stopping = Patience(lower_is_better=falling)
        started = time.monotonic()
        try:
            for epoch in range(training.epochs):
                row, score = self._epoch(epoch)
                waited = stopping.wait(score)
                self._log(row)
                if waited == 0 or self.best.epoch == 0:
                    self._keep(epoch + 1, score)
                self._report(epoch + 1, row, score, time.monotonic() - started)
                if isinstance(schedule, Plateau) and plateau.wait(score) >= schedule.patience:
                    plateau.waited = 0
                    self.rate.lower(schedule)
                if training.stop_patience and waited >= training.stop_patience:
                    return self._save_record("early")
        except KeyboardInterrupt:
            if self.best.epoch:
                self._save_record("interrupted")
            raise
        except FloatingPointError as error:
            if self.best.epoch:
                self._save_record("loss not finite")
            kept = (
                f"the weights of epoch {self.best.epoch} are kept in {weights_path(self.name, self.weights)}"
                if self.best.epoch
                else "there are no weights yet"
            )
            raise UserError(
                f"{error}; {kept}. Try a lower rate (--set training.optimiser.learning_rate=…) or --precision float32"
            ) from None
        return self._save_record("finished")

    def _epoch(self, epoch: int) -> tuple[dict[str, Any], float]:
        """Train and validate one epoch (from 0); return its row of the log and the monitored score."""
        plan, model = self.plan, self.plan.model
        training = plan.recipe.training
        patches = TrainingPatches(
            plan.train,
            plan.outputs,
            training.part_size,
            plan.steps * training.accumulate,
            plan.seed,
            epoch,
            plan.recipe.augmentation,
            training.workers,
            plan.recipe.unknown_region,
        )
        bar: tqdm[Any] = progress((), f"epoch {epoch + 1}/{training.epochs}", total=plan.steps, unit="step")
        steps = _Steps(bar, training.accumulate)
        try:
            history = model.fit(patches, epochs=1, verbose=0, shuffle=False, callbacks=[steps])
        finally:
            bar.close()
        if steps.bad_step is not None:
            raise FloatingPointError(f"the loss was not finite at step {steps.bad_step} of epoch {epoch + 1}")
        train_logs = {key: values[0] for key, values in history.history.items()}
        train_matrices = {output: c.matrix() for output, c in self.confusions.items()}

        batch = training.validation_batch_size or training.part_size
        val_logs = model.evaluate(
            WholePatches(plan.val, plan.outputs, batch, training.workers), verbose=0, return_dict=True
        )
        if not math.isfinite(val_logs["loss"]):
            raise FloatingPointError(f"the validation loss was not finite after step {plan.steps} of epoch {epoch + 1}")
        val_matrices = {output: c.matrix() for output, c in self.confusions.items()}

        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": train_logs["loss"],
            "val_loss": val_logs["loss"],
            "learning_rate": float(self.rate(max(0, int(model.optimizer.iterations) - 1))),
        }
        for prefix, logs, matrices in (("", train_logs, train_matrices), ("val_", val_logs, val_matrices)):
            for output, matrix in matrices.items():
                row[f"{prefix}{output}_loss"] = logs.get(f"{output}_loss", logs["loss"])
                row |= epoch_scores(matrix, f"{prefix}{output}", plan.scored_classes)
        matrix = val_matrices["output"]
        score = monitored(training.monitor, matrix, plan.glacier, val_logs["loss"])
        if len(matrix) > 2 or training.monitor not in _LOGGED:
            row.setdefault(f"val_{training.monitor}", score)
        return row, score

    def _keep(self, epoch: int, score: float) -> None:
        """Save the weights of the best epoch so far with the record: both, or on any error neither."""
        best = Best(epoch=epoch, monitor=self.best.monitor, score=None if math.isnan(score) else score)
        with replacing(weights_path(self.name, self.weights)) as path:
            _claim(path, _weights_size(self.plan.model))
            keras.saving.save_weights(self.plan.model, path, objects_to_skip=[self.plan.model.optimizer])
            self._save_record("running", best)
        self.best = best

    def _save_record(self, stopped: Any, best: Best | None = None) -> Record:
        plan = self.plan
        file = plan.train.file
        record = Record(
            name=self.name,
            architecture=plan.recipe.architecture.name,
            options=plan.options,
            modalities=tuple(
                Modality(name=m, channels=file.modalities[m], bands=tuple(file.bands[m])) for m in plan.recipe.inputs
            ),
            classes=tuple(ClassRecord(name=c.name, glacier=c.glacier, color=c.color) for c in file.classes),
            outputs=plan.recipe.outputs,
            patch_size=plan.recipe.training.patch_size,
            statistics=plan.train.statistics.to_json() if plan.train.statistics else None,
            regions=plan.regions,
            location=plan.recipe.location,
            dataset=self.dataset,
            recipe=plan.recipe.model_dump(mode="json"),
            command=self.command,
            versions=package_versions(),
            backend=keras.backend.backend(),
            precision=plan.precision,
            seed=plan.seed,
            parameters=plan.model.count_params(),
            best=best or self.best,
            epochs=len(self.rows),
            stopped=stopped,
            written=now(),
        )
        save_record(record, self.weights)
        return record

    def _log(self, row: dict[str, Any]) -> None:
        """Add `row` and write the log anew, whole."""
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row))
        writer.writeheader()
        writer.writerows(self.rows)
        with replacing(self.log) as path:
            path.write_text(text.getvalue(), encoding="utf-8")

    def _report(self, epoch: int, row: dict[str, Any], score: float, seconds: float) -> None:
        """Print one line about the epoch, with the time left if no early stop comes."""
        training = self.plan.recipe.training
        if epoch == 1 and math.isnan(score):
            warn(
                f"the validation {training.monitor} is undefined: the split has no glacier, or none is predicted yet; "
                "the first epoch is kept until there is a score"
            )
        left = seconds / epoch * (training.epochs - epoch)
        print(
            f"epoch {epoch}/{training.epochs}  loss {row['loss']:.4f}  val loss {row['val_loss']:.4f}  "
            f"val {training.monitor} {score:.4f} (best {np.nan if self.best.score is None else self.best.score:.4f} "
            f"in epoch {self.best.epoch})  rate {row['learning_rate']:.1e}  "
            f"{_duration(seconds)}, at most {_duration(left)} left",
            flush=True,
        )


def _weights_size(model: keras.Model) -> int:
    """Return no less than the bytes of a weights file: the values, and what HDF5 adds to each variable."""
    return 2**16 + sum(4 * math.prod(variable.shape) + 2**12 for variable in model.variables)


def _claim(path: Path, size: int) -> None:
    """Fill `path` with `size` bytes: on a full disk this raises `OSError`, where HDF5 would end the process."""
    with path.open("wb") as file:
        for start in range(0, size, 2**20):
            file.write(bytes(min(2**20, size - start)))


def _duration(seconds: float) -> str:
    """Return `1:02:03` or `2:03`."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
