"""The run's record: what `weights/NAME.json` says about `weights/NAME.weights.h5`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from console import UserError, replacing
from data.normalisation import Statistics
from data.tiles import ClassInfo, Dataset, TileFile

WEIGHTS, LOGS = Path("weights"), Path("logs")
_PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "numpy", "h5py")


class Modality(BaseModel):
    """A modality as the model was trained on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    channels: int
    bands: tuple[str, ...]


class ClassRecord(BaseModel):
    """A class of the output; its id is its place in the list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    glacier: bool
    color: str


class Best(BaseModel):
    """The epoch (from 1) whose weights were kept, its score and its confusion counts on the validation split.

    `confusion`: pixels by reference class (rows) and predicted class (columns).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    monitor: str
    score: float | None
    confusion: tuple[tuple[int, ...], ...] | None = None


class Record(BaseModel):
    """Everything that prediction and a later reader need to know about a run.

    `modalities` is in the model's order. `statistics` is null where values are used as they are. `regions` is the
    alphabetical region index of the training split. `stopped` says how the run ended, `init` which weights it started
    from (`training.initial.Start`), `class_weights` what pixels weighed in the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    options: dict[str, Any]
    modalities: tuple[Modality, ...]
    classes: tuple[ClassRecord, ...]
    outputs: Literal["softmax", "sigmoid"]
    patch_size: int
    statistics: dict[str, Any] | None
    regions: tuple[str, ...]
    location: Literal["none", "region", "coordinates"]
    dataset: dict[str, Any]
    recipe: dict[str, Any]
    command: str
    versions: dict[str, str]
    backend: str
    precision: str
    seed: int
    parameters: int
    best: Best
    epochs: int
    stopped: Literal["running", "finished", "early", "interrupted", "loss not finite"]
    written: str
    init: dict[str, Any] | None = None
    class_weights: tuple[float, ...] | None = None

    @property
    def inputs(self) -> dict[str, int]:
        """Modality → channels in the model's order, as `architectures.build` takes it."""
        return {modality.name: modality.channels for modality in self.modalities}

    @property
    def num_outputs(self) -> int:
        """Channels of the model's output."""
        return 1 if self.outputs == "sigmoid" else len(self.classes)

    @property
    def class_list(self) -> tuple[ClassInfo, ...]:
        """The classes as tile files know them."""
        return tuple(ClassInfo(c.name, c.glacier, c.color) for c in self.classes)

    @property
    def chosen_bands(self) -> dict[str, tuple[str, ...]]:
        """Modality → names of its bands, where the recipe chose them by name; the others' were taken as they came."""
        by_name = {modality for modality, wanted in self.recipe.get("bands", {}).items() if not isinstance(wanted, int)}
        return {modality.name: modality.bands for modality in self.modalities if modality.name in by_name}

    @property
    def smallest_px(self) -> int | None:
        """Pixels of the smallest object that the run's label maps keep; None keeps all."""
        cleaning = self.recipe.get("cleaning")
        return cleaning["smallest_px"] if cleaning else None

    def scaling(self) -> Statistics | None:
        """Return the statistics to scale inputs with, or None for values used as they are."""
        return None if self.statistics is None else Statistics.from_json(self.statistics)


def weights_path(name: str, root: Path = WEIGHTS) -> Path:
    """Return where the weights of run `name` are kept."""
    return root / f"{name}.weights.h5"


def record_path(name: str, root: Path = WEIGHTS) -> Path:
    """Return where the record of run `name` is kept."""
    return root / f"{name}.json"


def run_names(root: Path = WEIGHTS) -> list[str]:
    """Return the runs that have both weights and a record."""
    return sorted(p.stem for p in root.glob("*.json") if weights_path(p.stem, root).is_file())


def load_record(name: str, root: Path = WEIGHTS) -> Record:
    """Read the record of run `name`.

    Raises:
        UserError: If there is no such run (the message lists the known), or its record can't be read.
    """
    path = record_path(name, root)
    if not path.is_file() or not weights_path(name, root).is_file():
        known = ", ".join(run_names(root))
        have = f"the runs in {root}/ are: {known}" if known else f"{root}/ holds no run: train one with train.py"
        raise UserError(f"no run named {name!r}; {have}")
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no record of a run: {error}") from None


def save_record(record: Record, root: Path = WEIGHTS) -> None:
    """Write `record` whole or not at all; the order of modalities is that of a JSON list."""
    with replacing(record_path(record.name, root)) as path:
        path.write_text(json.dumps(record.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a model computes."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_dataset(dataset: Dataset, splits: Sequence[str]) -> dict[str, Any]:
    """Return name, folder and per file path, size in bytes, time of change, digest, and whether its masks are weak."""
    files = {}
    for split in splits:
        path = dataset.splits[split]
        status = path.stat()
        files[split] = {
            "path": str(path),
            "size": status.st_size,
            "modified": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds"),
            "digest": TileFile(path).digest,
        }
        if note := TileFile(path).mask_note:
            files[split]["reference"] = note
    return {"name": dataset.name, "folder": str(dataset.folder), "files": files}


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
