"""A training run: from a recipe and a dataset to weights, record and log."""

from __future__ import annotations

import csv
import io
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import keras
import numpy as np
import psutil
from keras import ops
from numpy.typing import NDArray
from tqdm import tqdm

import architectures
from console import UserError, progress, remove_leftovers, replacing, warn
from data.loader import PatchSource, TrainingPatches, WholePatches
from data.location import location_of, place_of_tile, unplaced
from data.tiles import Dataset, TileFile, describe_absent, select
from training import imbalance
from training import precision as precisions
from training.allocator import keep_freed_memory
from training.initial import freeze
from training.losses import SegmentationLoss, smoothing_labels
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
    record_path,
    save_record,
    weights_path,
)
from training.schedules import Patience, rate_of
from training.state import (
    Origin,
    State,
    Waiting,
    changing_variables,
    differences,
    load_state,
    remove_state,
    restore,
    save_state,
    state_path,
)

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
    asked_regions: tuple[str, ...]
    steps: int
    memory: float
    class_weights: tuple[float, ...] | None
    init: dict[str, Any] | None = None  # what the weights started from, `training.initial.Start`

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

    def training_patches(self, epoch: int, first: int = 0) -> TrainingPatches:
        """Return the training batches of an epoch (from 0), from those of step `first` on."""
        training = self.recipe.training
        return TrainingPatches(
            self.train,
            self.outputs,
            training.part_size,
            self.steps * training.accumulate,
            self.seed,
            epoch,
            self.recipe.augmentation,
            training.workers,
            self.recipe.unknown_region,
            first=first * training.accumulate,
        )

    def summary(self) -> str:
        """Return what a user wants to know before it starts."""
        training = self.recipe.training
        available = psutil.virtual_memory().available
        inputs = ", ".join(f"{m} {self.train.file.modalities[m]}" for m in self.recipe.inputs)
        count = self.model.count_params()
        trained = sum(math.prod(weight.shape) for weight in self.model.trainable_weights)
        frozen = f" ({trained:,} trained, frozen: {', '.join(training.frozen)})" if training.frozen else ""
        masks = {"train": self.train.file.mask_note, "val": self.val.file.mask_note}
        notes = [
            f"{split}: {absent}"
            for split, source in (("train", self.train), ("val", self.val))
            if (absent := describe_absent(source.file, source.names, source.modalities))
        ]
        if self.precision == "float32" and "bfloat16" in training.precision and not precisions.has_gpu():
            if precisions.cpu_has_bfloat16() and not precisions.bfloat16_pays():
                speed = precisions.bfloat16_speed()
                notes.append(f"float32: this processor computes in bfloat16, but at {speed:.2f} times the rate")
        notes += imbalance.describe(self.train.file.classes, self.class_weights, self.train.centred)
        if len(set(masks.values())) == 1:
            notes += [masks["val"]] if masks["val"] else []
        else:
            notes += [f"{split} tiles: {note}" for split, note in masks.items() if note]
        return (
            f"{self.recipe.architecture.name}: {count:,} parameters{frozen}; inputs {inputs}; "
            f"{len(self.train.file.classes)} classes; {keras.backend.backend()}, {self.precision}\n"
            f"train {len(self.train.names)} tiles, val {len(self.val.names)} tiles, patches of "
            f"{training.patch_size}×{training.patch_size}; {self.steps} steps of {training.batch_size} patches"
            f"{f', {training.part_size} at a time,' if training.accumulate > 1 else ''} an epoch, "
            f"at most {training.epochs} epochs\n"
            f"expected memory {self.memory / 2**30:.1f} GiB ({available / 2**30:.1f} GiB are free)"
            + "".join(f"\n{line}" for line in notes)
        )


def plan(
    recipe: Recipe, dataset: Dataset, *, regions: Sequence[str] = (), seed: int = 0, precision: str | None = None
) -> Plan:
    """Check the data, choose the precision and build the model.

    Raises:
        UserError: Everything that makes the run impossible, all problems of the tiles at once.
    """
    patch = recipe.training.patch_size
    files = {split: TileFile(dataset.path(split)).choose(recipe.bands, recipe.class_list) for split in ("train", "val")}
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
    if recipe.location == "coordinates":
        problems += [
            f"{file.path}: {unplaced(name)}"
            for split, file in files.items()
            for name in names[split]
            if place_of_tile(file.info(name)).centre_deg is None
        ]
    if problems:
        more = [f"and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
        raise UserError("\n  ".join(["the tiles can't be trained on:", *problems[:_SHOWN_PROBLEMS], *more]))
    if not any(c.glacier for c in train.classes):
        raise UserError(f"{train.path}: no class is flagged as glacier, so that there is no score to select by")
    if recipe.outputs == "sigmoid" and len(train.classes) != 2:
        raise UserError(f"{recipe.name} has one sigmoid output for two classes; {train.path} has {len(train.classes)}")

    class_weights, centred = imbalance.resolve(recipe, train, names["train"])
    known_regions = tuple(sorted({train.info(name).region for name in names["train"]}))
    statistics = train.statistics and train.statistics.select(recipe.inputs)
    options = dict(recipe.architecture.options)
    location = location_of(recipe.location, known_regions)
    if location is not None:
        options["location_size"] = len(location.channels)
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
    for key, named in (("output_weights", recipe.output_weights), ("output_losses", recipe.output_losses)):
        if unknown := set(named) - set(model.output):
            raise UserError(f"{key}: no output {', '.join(unknown)}; there are {', '.join(model.output)}")
    freeze(model, recipe.training.frozen)

    def source(split: str) -> PatchSource:
        of_split = centred if split == "train" else None
        return PatchSource(files[split], names[split], recipe.inputs, statistics, patch, location, of_split)

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
        asked_regions=tuple(sorted(regions)),
        steps=recipe.training.steps(sources["train"].whole_patches),
        memory=training_memory(model, recipe.training.part_size, chosen, values_per_parameter(recipe.training)),
        class_weights=class_weights,
    )


def _is_scaled(file: TileFile) -> bool:
    return file.statistics is None or file.statistics.applied


class _Steps(keras.callbacks.Callback):
    """What happens between the steps of an epoch: the bar, the watch over the loss, states to resume from.

    Args:
        bar: Shows the steps; its count starts at `first`.
        parts: Batches a step.
        first: Steps of the epoch that were done before.
        total: Steps of the whole epoch.
        restore: Called when metrics have been reset, to bring back the sums of an epoch that goes on in its middle.
        pause: Called after each step but the epoch's last, with the steps done.
    """

    def __init__(
        self,
        bar: tqdm[Any],
        parts: int,
        first: int,
        total: int,
        restore: Callable[[], None] | None,
        pause: Callable[[int], None],
    ) -> None:
        super().__init__()
        self.bar, self.parts, self.first, self.total = bar, parts, first, total
        self.restore, self.pause = restore, pause
        self.bad_step: int | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Bring back the sums of losses and metrics: `fit` has reset them just before."""
        if self.restore is not None:
            self.restore()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advance the bar, look at the loss, give the run its chance to save."""
        if batch == 0:
            keep_freed_memory()  # `fit` has just had it given back
        loss = float((logs or {})["loss"])
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if not math.isfinite(loss):
            self.bad_step = self.first + batch // self.parts + 1
            self.model.stop_training = True
        elif (batch + 1) % self.parts == 0:
            self.bar.update()
            done = self.first + (batch + 1) // self.parts
            if done < self.total:
                self.pause(done)


class Run:
    """A planned run being trained; `train` is the one method that others call.

    Args:
        plan: What to train, on what.
        name: Name of the run: `weights/NAME.weights.h5`, `weights/NAME.json`, `weights/NAME.resume/`, `logs/NAME.csv`.
        command: The command that asked for it, for the record.
        weights: Folder of weights and records.
        logs: Folder of logs.
        resume: Go on where the state of the run stands, if it has one; else from the start.
        save_every_s: Seconds between states in the middle of an epoch; every epoch's end saves one.
        watch: Called at the end of every epoch with the log's rows and the best epoch so far, when all is on disk; the
            weights are still those of the epoch.

    Raises:
        UserError: The state to resume is of a run with another recipe, data, seed, precision or backend.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        *,
        command: str = "",
        weights: Path = WEIGHTS,
        logs: Path = LOGS,
        resume: bool = False,
        save_every_s: float = 900.0,
        watch: Callable[[Sequence[dict[str, Any]], Best], None] = lambda rows, best: None,
    ) -> None:
        self.plan, self.name, self.command = plan, name, command
        self.weights, self.log, self.watch = weights, logs / f"{name}.csv", watch
        self.save_every_s = save_every_s
        training = plan.recipe.training
        schedule = training.schedule
        self.rate = rate_of(schedule, training.optimiser.learning_rate, plan.steps, training.epochs)
        falling = training.monitor == "loss"
        self.plateau = Patience(schedule.min_delta if isinstance(schedule, Plateau) else 0.0, lower_is_better=falling)
        self.stopping = Patience(lower_is_better=falling)
        self.confusions = {
            output: ConfusionMatrix(len(plan.train.file.classes), name=f"{output}_counts") for output in plan.outputs
        }
        self.rows: list[dict[str, Any]] = []
        self.best = Best(epoch=0, monitor=training.monitor, score=None)
        self.step = 0
        self.started = time.monotonic()
        self.saved = self.started
        self.interrupted = False
        self.origin = origin_of(plan)
        state = load_state(name, weights) if resume else None
        if state:
            self._continue(state)
        recipe = plan.recipe
        self.losses = {
            output: SegmentationLoss(
                recipe.output_losses.get(output, recipe.loss),
                class_weights=plan.class_weights,
                label_smoothing=recipe.label_smoothing,
            )
            for output in plan.outputs
        }
        plan.model.compile(
            optimizer=optimiser_of(training, self.rate),
            loss=self.losses,
            loss_weights={output: plan.recipe.output_weights.get(output, 1.0) for output in plan.outputs},
            metrics={output: [confusion] for output, confusion in self.confusions.items()},
        )
        plan.model.optimizer.build(plan.model.trainable_variables)
        if state:
            restore(changing_variables(plan.model, metrics=False), name, weights, more=state.step > 0)

    def _continue(self, state: State) -> None:
        """Take over what `state` says, but its variables."""
        if lines := differences(state.origin, self.origin):
            raise UserError(
                "\n  ".join([f"run {self.name!r} was started otherwise:", *lines])
                + f"\n`python train.py -n {self.name} --resume` goes on as it was started; "
                "another name (-n) or --overwrite starts anew"
            )
        if state.origin.versions != self.origin.versions:
            warn(f"run {self.name!r} was started with {state.origin.versions}: results can differ in the last bits")
        self.rate.factor = state.rate_factor
        for patience, waiting in ((self.plateau, state.plateau), (self.stopping, state.stopping)):
            patience.best, patience.waited = waiting.best, waiting.waited
        self.command = state.command
        self.rows, self.best, self.step = list(state.rows), state.best, state.step
        self.started = time.monotonic() - state.seconds

    def _save_state(self, step: int = 0) -> None:
        """Save where the run stands, `step` steps after its last whole epoch."""
        sync = getattr(self.plan.model, "jax_state_sync", None)  # on JAX, `fit` keeps the variables elsewhere
        if sync is not None:
            sync()
        state = State(
            origin=self.origin,
            command=self.command,
            epoch=len(self.rows),
            step=step,
            seconds=time.monotonic() - self.started,
            rate_factor=self.rate.factor,
            plateau=Waiting(best=self.plateau.best, waited=self.plateau.waited),
            stopping=Waiting(best=self.stopping.best, waited=self.stopping.waited),
            best=self.best,
            rows=tuple(self.rows),
        )
        save_state(state, changing_variables(self.plan.model, metrics=step > 0), self.name, self.weights)
        self.step, self.saved = step, time.monotonic()

    def _pause(self, step: int) -> None:
        """Save a state in the middle of an epoch if it is time; after Ctrl-C save one and stop."""
        if self.interrupted or time.monotonic() - self.saved >= self.save_every_s:
            self._save_state(step)
        if self.interrupted:
            raise KeyboardInterrupt

    def train(self) -> Record:
        """Train to the end of the schedule and return the record; the best weights are on disk at every moment.

        Ctrl-C ends the run after the step, with record and state saved, and is raised again; a second one ends it at
        once. A killed run goes on with `resume=True` to the same weights and the same log, on a CPU to the bit.

        Raises:
            UserError: The loss stopped being finite; weights, record and log of the epochs before are kept.
        """
        remove_leftovers(
            weights_path(self.name, self.weights),
            record_path(self.name, self.weights),
            state_path(self.name, self.weights),
            self.log,
        )
        training = self.plan.recipe.training
        if self.rows:
            self._write_log()  # a killed run can have logged an epoch that its state does not know
        if not self.rows and not self.step:
            self._save_state()
        stopped: Literal["finished", "early"] = "finished"
        try:
            with self._interruptible():
                while len(self.rows) < training.epochs:
                    if training.stop_patience and self.stopping.waited >= training.stop_patience:
                        stopped = "early"
                        break
                    if self.interrupted:
                        raise KeyboardInterrupt
                    self._whole_epoch(len(self.rows))
        except KeyboardInterrupt:
            if self.best.epoch:
                self._save_record("interrupted")
            raise
        except FloatingPointError as error:
            remove_state(self.name, self.weights)  # it would only lead here again
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
        record = self._save_record(stopped)
        remove_state(self.name, self.weights)
        return record

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C wait for the end of the step; signals reach the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            print("\nCtrl-C: stopping after this step (once more: at once)", file=sys.stderr, flush=True)

        former = signal.getsignal(signal.SIGINT)
        if former is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, former)

    def _whole_epoch(self, epoch: int) -> None:
        """Train and validate epoch `epoch` (from 0), then log it, keep it if it is the best, and save the state."""
        schedule = self.plan.recipe.training.schedule
        row, score, confusion = self._epoch(epoch)
        waited = self.stopping.wait(score)
        if isinstance(schedule, Plateau) and self.plateau.wait(score) >= schedule.patience:
            self.plateau.waited = 0
            self.rate.lower(schedule)
        self.rows.append(row)
        self._write_log()
        if waited == 0 or self.best.epoch == 0:
            self._keep(epoch + 1, score, confusion)
        self._save_state()
        self._report(epoch + 1, row, score, time.monotonic() - self.started)
        self.watch(self.rows, self.best)

    def _epoch(self, epoch: int) -> tuple[dict[str, Any], float, NDArray[np.int64]]:
        """Train and validate one epoch (from 0); return its row of the log, the monitored score, confusion counts."""
        plan, model = self.plan, self.plan.model
        training = plan.recipe.training
        patches = plan.training_patches(epoch, first=self.step)
        bar: tqdm[Any] = progress((), f"epoch {epoch + 1}/{training.epochs}", total=plan.steps, unit="step")
        bar.update(self.step)
        restore_sums = self._restore_sums if self.step else None
        steps = _Steps(bar, training.accumulate, self.step, plan.steps, restore_sums, self._pause)
        try:
            with _user_errors_of(patches), smoothing_labels(self.losses.values()):
                history = model.fit(patches, epochs=1, verbose=0, shuffle=False, callbacks=[steps])
        finally:
            bar.close()
        if steps.bad_step is not None:
            raise FloatingPointError(f"the loss was not finite at step {steps.bad_step} of epoch {epoch + 1}")
        train_logs = {key: values[0] for key, values in history.history.items()}
        train_matrices = {output: c.matrix() for output, c in self.confusions.items()}

        batch = training.validation_batch_size or training.part_size
        whole = WholePatches(plan.val, plan.outputs, batch, training.workers)
        with _user_errors_of(whole):
            val_logs = model.evaluate(whole, verbose=0, return_dict=True)
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
        confusion = val_matrices["output"]
        score = monitored(training.monitor, confusion, plan.glacier, val_logs["loss"])
        if len(confusion) > 2 or training.monitor not in _LOGGED:
            row.setdefault(f"val_{training.monitor}", score)
        return row, score, confusion

    def _restore_sums(self) -> None:
        """Bring back the variables of the state with the sums of losses and metrics.

        Keras makes those sums when it first sees labels and outputs: it is shown some, which are reset by `restore`.
        """
        model, patch = self.plan.model, self.plan.recipe.training.patch_size
        labels = {output: np.zeros((1, patch, patch), np.int32) for output in model.output}
        outputs = {output: np.full((1, *tensor.shape[1:]), 0.5, np.float32) for output, tensor in model.output.items()}
        labels, outputs = (keras.tree.map_structure(ops.convert_to_tensor, arrays) for arrays in (labels, outputs))
        model.compute_loss(y=labels, y_pred=outputs)
        model.compute_metrics(None, labels, outputs)
        restore(changing_variables(model, metrics=True), self.name, self.weights)

    def _keep(self, epoch: int, score: float, confusion: NDArray[np.int64]) -> None:
        """Save the weights of the best epoch so far with the record: both, or on any error neither."""
        best = Best(
            epoch=epoch,
            monitor=self.best.monitor,
            score=None if math.isnan(score) else score,
            confusion=tuple(tuple(map(int, row)) for row in confusion),
        )
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
            statistics=self.origin.statistics,
            regions=plan.regions,
            location=plan.recipe.location,
            dataset=self.origin.dataset,
            recipe=plan.recipe.model_dump(mode="json"),
            command=self.command,
            versions=self.origin.versions,
            backend=self.origin.backend,
            precision=plan.precision,
            seed=plan.seed,
            parameters=plan.model.count_params(),
            best=best or self.best,
            epochs=len(self.rows),
            stopped=stopped,
            written=now(),
            init=plan.init,
            class_weights=plan.class_weights,
        )
        save_record(record, self.weights)
        return record

    def _write_log(self) -> None:
        """Write the log anew, whole."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]))
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


@contextmanager
def _user_errors_of(batches: TrainingPatches | WholePatches) -> Iterator[None]:
    """Raise a worker's `UserError`, such as a tile file that has become unreadable, instead of the backend's error."""
    try:
        yield
    except Exception:
        if batches.error is not None:
            raise batches.error from None
        raise


def origin_of(plan: Plan) -> Origin:
    """Return what a run of `plan` is started with."""
    return Origin(
        recipe=plan.recipe.model_dump(mode="json"),
        dataset=describe_dataset(plan.dataset, ("train", "val")),
        init=plan.init,
        statistics=plan.train.statistics.to_json() if plan.train.statistics else None,
        regions=plan.asked_regions,
        seed=plan.seed,
        precision=plan.precision,
        backend=keras.backend.backend(),
        versions=package_versions(),
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
