"""What a planned run looks like before it starts: parameters, memory, a batch of its training data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import keras
import psutil

from training import pictures
from training.memory import memory_parts
from training.optimisers import values_per_parameter
from training.run import Plan


def tables(plan: Plan) -> str:
    """Return the parameter table and the memory table, as printed."""
    return f"\n{parameter_table(plan.model)}\n\n{memory_table(plan)}\n"


def parameter_table(model: keras.Model) -> str:
    """Return a line per input and per block of `model` that has parameters, and the total.

    The counts are Keras's: those that are not trainable are moving statistics, and what is frozen.
    """
    rows = [("block", "kind", "output", "parameters", "trainable", "not trainable")]
    for layer in model.layers:
        shapes = " ".join("×".join(map(str, tensor.shape[1:])) for tensor in keras.tree.flatten(layer.output))
        if isinstance(layer, keras.layers.InputLayer):
            rows.append((layer.name, "input", shapes, "", "", ""))
        elif layer.count_params():
            kind = "network" if isinstance(layer, keras.Model) else type(layer).__name__
            rows.append((layer.name, kind, shapes, *_counts(layer)))
    rows.append(("total", "", "", *_counts(model)))
    return _aligned(rows, left=3)


def memory_table(plan: Plan) -> str:
    """Return what a training step is expected to need memory for, part by part, the sum, and what is free."""
    training = plan.recipe.training
    batch = training.part_size
    details = {
        "optimiser": training.optimiser.name,
        "activations": f"{batch} patches, {plan.precision}",
        "framework": keras.backend.backend(),
    }
    parts = memory_parts(plan.model, batch, plan.precision, values_per_parameter(training))
    rows = [("memory of a step", "", "MiB")]
    rows += [(part, details.get(part, ""), _mib(size)) for part, size in parts.items()]
    rows += [("sum", "", _mib(sum(parts.values()))), ("free here", "", _mib(psutil.virtual_memory().available))]
    return _aligned(rows, left=2)


def draw_first_batch(plan: Plan, path: Path) -> None:
    """Draw the first batch of the first epoch, as augmented, into the image `path`."""
    batches = plan.training_patches(0)
    inputs, labels = batches[0]
    reference = labels[plan.outputs[0]].astype("uint8")
    tiles = [batches.sample(index)[0] for index in range(len(reference))]
    patches = [
        pictures.Patch(
            plan.train.names[tile],
            plan.train.regions_of_tiles[tile],
            {modality: inputs[modality][index] for modality in plan.recipe.inputs},
            reference[index],
        )
        for index, tile in enumerate(tiles)
    ]
    pictures.draw_batch(
        patches,
        path,
        bands={modality: plan.train.file.bands[modality] for modality in plan.recipe.inputs},
        classes=plan.train.file.classes,
        title=f"{plan.recipe.name}: first training batch (seed {plan.seed}), augmented",
        note=plan.train.file.mask_note,
    )


def _counts(layer: keras.layers.Layer) -> tuple[str, str, str]:
    trainable, fixed = (
        sum(math.prod(variable.shape) for variable in variables)
        for variables in (layer.trainable_weights, layer.non_trainable_weights)
    )
    return f"{trainable + fixed:,}", f"{trainable:,}", f"{fixed:,}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def _aligned(rows: Iterable[Sequence[str]], left: int) -> str:
    """Return the rows as a table, the first `left` columns aligned to the left, a rule under the heading."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
