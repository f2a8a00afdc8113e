"""What a run shows while it trains: pictures beside its log, and on request TensorBoard's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from console import UserError, warn
from training import pictures
from training.record import Best

if TYPE_CHECKING:
    from training.run import Plan

Rows = Sequence[dict[str, Any]]


class Watcher:
    """Draws a run at the end of every epoch: `Run`'s `watch`.

    `logs/NAME.png` is the log; `logs/NAME-patches.png` shows validation patches as the best epoch's weights predict
    them. What goes wrong in here (a full disk, say) is warned of once and never stops the run.

    Args:
        plan: What is trained.
        log: The run's `logs/NAME.csv`; the pictures are written beside it.
        events: Where TensorBoard's scalars go, or None.
    """

    def __init__(self, plan: Plan, log: Path, events: EventLog | None = None) -> None:
        self.plan, self.log, self.events = plan, log, events
        self._patches: list[pictures.Patch] | None = None
        self._warned: set[str] = set()

    def __call__(self, rows: Rows, best: Best) -> None:
        """Draw the epoch of the last of `rows`; its weights are in the model."""
        self._try("the log's picture", self._draw_log, best)
        if best.epoch == rows[-1]["epoch"]:
            self._try("the picture of patches", self._draw_patches, best)
        if self.events:
            self._try("TensorBoard's files", self.events.write, rows)

    def _try(self, what: str, draw: Callable[[Any], None], argument: Any) -> None:
        try:
            draw(argument)
        except Exception as error:  # whatever it is, days of training are worth more than a picture
            if what not in self._warned:
                self._warned.add(what)
                warn(f"{what} can't be written, training goes on ({type(error).__name__}: {error})")

    def _draw_log(self, best: Best) -> None:
        classes = self.plan.train.file.classes
        note = self.plan.val.file.mask_note
        pictures.draw_log(self.log, self.log.with_suffix(".png"), best=best, classes=classes, note=note)

    def _draw_patches(self, best: Best) -> None:
        source, classes = self.plan.val, self.plan.train.file.classes
        if self._patches is None:
            self._patches = pictures.cut_patches(source, pictures.choose_patches(source, classes))
        score = "undefined" if best.score is None else f"{best.score:.4f}"
        pictures.draw_patches(
            self._patches,
            [self._predict(patch) for patch in self._patches],
            self.log.with_name(f"{self.log.stem}-patches.png"),
            bands={modality: source.file.bands[modality] for modality in source.modalities},
            classes=classes,
            title=f"{self.log.stem}, epoch {best.epoch}: {best.monitor} {score} on the whole validation split",
            note=source.file.mask_note,
        )

    def _predict(self, patch: pictures.Patch) -> NDArray[np.uint8]:
        """Return the class ids `(S, S)`; patch by patch, so that it needs less memory than the training step."""
        batch = {modality: x[None] for modality, x in patch.inputs.items()}
        if patch.location is not None:
            batch["location"] = patch.location[None]
        probs = np.asarray(self.plan.model.predict_on_batch(batch)["output"])[0]
        labels = probs[..., 0] > 0.5 if probs.shape[-1] == 1 else probs.argmax(axis=-1)
        return labels.astype(np.uint8)


class EventLog:
    """The log's values as scalars for TensorBoard: a run `train` and a run `val`, steps are epochs.

    TensorFlow writes them; to look at them takes the package `tensorboard`. A run that is resumed appends its epochs;
    a run that begins anew in the same folder removes what was there.

    Args:
        folder: `logs/NAME.tensorboard`.

    Raises:
        UserError: If the backend is not TensorFlow.
    """

    def __init__(self, folder: Path) -> None:
        if keras.backend.backend() != "tensorflow":
            raise UserError(
                f"--tensorboard writes with TensorFlow, the backend is {keras.backend.backend()}: leave it out "
                "(logs/NAME.csv has the same values) or set KERAS_BACKEND=tensorflow"
            )
        self.folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, rows: Rows) -> None:
        """Append the last of the log's `rows`, all of them where the folder has none yet."""
        import tensorflow as tf

        if not self._writers:
            there = sorted(self.folder.glob("*/events.out.tfevents.*"))
            if len(rows) == 1:
                for path in there:
                    path.unlink()
            rows = rows[-1:] if there else rows
            self._writers = {run: tf.summary.create_file_writer(str(self.folder / run)) for run in ("train", "val")}
        else:
            rows = rows[-1:]
        # tf.summary.scalar would do the same with the package tensorboard, which training does not need.
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
        for row in rows:
            for name, value in row.items():
                run = "val" if name.startswith("val_") else "train"
                if name != "epoch":
                    with self._writers[run].as_default(step=row["epoch"]):
                        tf.summary.write(name.removeprefix("val_"), tf.constant(value, tf.float32), metadata=metadata)
        for writer in self._writers.values():
            writer.flush()
