"""The state of a run, `weights/NAME.resume/state.h5`: what a killed run needs to go on to the same weights and log.

One HDF5 file, replaced atomically: a kill at any moment leaves the former state or the next one. It holds every
variable that training changes (weights, moving statistics, the seeds of dropout, the optimiser with its moments, step
counter and loss scale; in the middle of an epoch the sums of losses and metrics too) and, as JSON, a `State`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
from keras import ops
from pydantic import BaseModel, ConfigDict, ValidationError

from console import UserError
from data.hdf5 import creating
from training.record import WEIGHTS, Best

_SHOWN_DIFFERENCES = 20


class Waiting(BaseModel):
    """A `Patience`: the best score so far and the epochs since."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    best: float
    waited: int


class Origin(BaseModel):
    """What a run was started with; a resumed run has the same or is refused.

    `dataset` is the record's description of the tile files, `regions` are as asked for, `init` is which weights it
    started from and `statistics` what its inputs are scaled with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: dict[str, Any]
    dataset: dict[str, Any]
    init: dict[str, Any] | None
    statistics: dict[str, Any] | None
    regions: tuple[str, ...]
    seed: int
    precision: str
    backend: str
    versions: dict[str, str]


class State(BaseModel):
    """Where a run stands, beside its variables.

    `command`: the command that started it. `epoch`: epochs done. `step`: steps done of the epoch after them.
    `seconds`: time spent so far. `rows`: the log.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    origin: Origin
    command: str
    epoch: int
    step: int
    seconds: float
    rate_factor: float
    plateau: Waiting
    stopping: Waiting
    best: Best
    rows: tuple[dict[str, int | float], ...]


def resume_path(name: str, root: Path = WEIGHTS) -> Path:
    """Return the folder of the state of run `name`."""
    return root / f"{name}.resume"


def state_path(name: str, root: Path = WEIGHTS) -> Path:
    """Return the file of the state of run `name`."""
    return resume_path(name, root) / "state.h5"


def changing_variables(model: keras.Model, metrics: bool) -> list[Any]:
    """Return every variable of a compiled model that training changes, in an order that only the model decides.

    Args:
        model: The model, its optimiser built.
        metrics: Whether to include the running sums of losses and metrics.
    """
    variables = [*model.variables, *model.optimizer.variables, *(model.metrics_variables if metrics else ())]
    return list({id(variable): variable for variable in variables}.values())


def save_state(state: State, variables: Sequence[Any], name: str, root: Path = WEIGHTS) -> None:
    """Replace the state of run `name`, whole.

    Raises:
        OSError: The disk is full; the former state is still there.
    """
    with creating(state_path(name, root)) as file:
        file["state"] = state.model_dump_json()
        group = file.create_group("variables")
        for index, variable in enumerate(variables):
            group[f"{index:05d}"] = ops.convert_to_numpy(variable)


def load_state(name: str, root: Path = WEIGHTS) -> State | None:
    """Return the state of run `name`, or None if it has none.

    Raises:
        UserError: The file can't be read.
    """
    path = state_path(name, root)
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            return State.model_validate_json(file["state"][()])
    except (OSError, KeyError, ValidationError) as error:
        raise UserError(f"{path} is no state of a run that this version can resume: {error}") from None


def restore(variables: Sequence[Any], name: str, root: Path = WEIGHTS, *, more: bool = False) -> None:
    """Set the variables of the state of run `name` into `variables`, which have the same order.

    Args:
        variables: What to set.
        name: Name of the run.
        root: Folder of its state.
        more: Whether the state holds more than these, behind them.

    Raises:
        UserError: Number, shape or type differ; nothing is set then.
    """
    path = state_path(name, root)
    with h5py.File(path, "r") as file:
        stored = [file["variables"][key][()] for key in sorted(file["variables"])]
    if len(stored) < len(variables) or (len(stored) > len(variables) and not more):
        raise UserError(f"{path} holds {len(stored)} variables, the run has {len(variables)}: start with --overwrite")
    for variable, value in zip(variables, stored, strict=False):
        if tuple(variable.shape) != value.shape or keras.backend.standardize_dtype(variable.dtype) != value.dtype.name:
            raise UserError(
                f"{path}: {variable.path} is {variable.dtype} {tuple(variable.shape)} in the run and "
                f"{value.dtype.name} {value.shape} in the state: start with --overwrite"
            )
    for variable, value in zip(variables, stored, strict=False):
        variable.assign(value)


def remove_state(name: str, root: Path = WEIGHTS) -> None:
    """Delete the state of run `name`."""
    shutil.rmtree(resume_path(name, root), ignore_errors=True)


def differences(stored: Origin, given: Origin) -> list[str]:
    """Return what a run was started with and what it is to be resumed with, one line a difference.

    Versions of packages are left out: they make results differ in the last bits, not in meaning.
    """
    before, after = (
        _flat(origin.model_dump(mode="json", exclude={"versions", "dataset"})) for origin in (stored, given)
    )
    lines = [
        f"{key.removeprefix('recipe.')}: {before.get(key, 'not set')} in the run, {after.get(key, 'not set')} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    for split, file in stored.dataset["files"].items():
        other = given.dataset["files"].get(split, {})
        if (file["size"], file["digest"]) != (other.get("size"), other.get("digest")):
            lines.append(f"{split} tiles: {file['path']} of {file['modified']} in the run, other contents now")
    return lines


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return {'a.b': value} of nested dicts."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, part in tree.items():
        flat |= _flat(part, f"{prefix}.{name}" if prefix else name)
    return flat
