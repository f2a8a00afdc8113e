"""Weights files, HDF5 of Keras 2 and Keras 3 and state dicts of PyTorch: what they list, and the values."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from checkpoints.state_dicts import StateDict, form_of, read_state_dict
from console import UserError

EXPECTED = (
    "expected a weights file of Keras 3 (`.weights.h5`), of Keras 2 (`.h5`) or of PyTorch (`.safetensors`, `.npz`, "
    "`.pt`, `.pth`)"
)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a weights file."""

    layer: str  # Keras 2: the layer's name; Keras 3: its group, `layers/fusion`; PyTorch: the module, `encoder.conv1`
    name: str  # Keras 2: the tensor's name; Keras 3: what follows the layer's group; PyTorch: `weight`, `bias`, …
    shape: tuple[int, ...]
    address: str  # of the dataset in the file; PyTorch: the whole name


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds, values left out."""

    path: Path
    kind: Literal["keras2", "keras3", "pytorch"]
    tensors: tuple[Tensor, ...]

    @property
    def layers(self) -> dict[str, list[Tensor]]:
        """The tensors by layer, in the file's order: the model's for Keras 2, the alphabet's for Keras 3."""
        layers: dict[str, list[Tensor]] = {}
        for tensor in self.tensors:
            layers.setdefault(tensor.layer, []).append(tensor)
        return layers

    @property
    def parameters(self) -> int:
        """How many numbers there are in all tensors, moving statistics included."""
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File | StateDict]:
    """Open `path` for reading, whatever kind of weights file it is.

    Raises:
        UserError: It is missing, a folder, not readable, empty, truncated, or no weights file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; {EXPECTED}: name the file in it")
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {EXPECTED}: check the path") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); {EXPECTED}") from None
    if not start:
        raise UserError(f"{path} is empty; {EXPECTED}: download or copy it again")
    if not h5py.is_hdf5(path):
        try:
            form = form_of(path)
        except zipfile.BadZipFile:
            raise UserError(
                f"{path} is a zip archive that is damaged, most likely cut off while it was copied; {EXPECTED}: "
                "download or copy it again"
            ) from None
        if form is None:
            raise UserError(f"{path} is {_disguise(start)}; {EXPECTED}")
        yield read_state_dict(path, form)
        return
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} is damaged, most likely cut off while it was copied ({error}): download or copy it again"
        ) from None
    with file:
        yield file


def _disguise(start: bytes) -> str:
    """Name what a file that holds no weights is, from its first bytes."""
    if start.startswith(b"PK"):
        return (
            "a zip archive without a state dict in it; of a `.keras` file, save the weights alone: "
            'model.save_weights("NAME.weights.h5")'
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page and no weights: open the link in a browser and download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer and not the file itself: fetch it with `git lfs pull`"
    return "neither an HDF5 file nor a PyTorch state dict"


def listing(file: h5py.File | StateDict, path: Path) -> Checkpoint:
    """Return what the opened weights file holds.

    Raises:
        UserError: It is damaged or holds no weights.
    """
    if isinstance(file, StateDict):
        named = ((*name.rpartition("."), values) for name, values in file.tensors.items())
        tensors = (Tensor(module, leaf, values.shape, f"{module}{dot}{leaf}") for module, dot, leaf, values in named)
        return Checkpoint(path, "pytorch", tuple(tensors))
    try:
        root = file["model_weights"] if isinstance(file.get("model_weights"), h5py.Group) else file
        if _names(root, "layer_names") is not None:
            return Checkpoint(path, "keras2", _keras2(root, path))
        if isinstance(file.get("layers"), h5py.Group):
            return Checkpoint(path, "keras3", _keras3(file["layers"]))
        found = ", ".join(list(file)[:5]) or "nothing"
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}): download or copy it again") from None
    raise UserError(f"{path} is an HDF5 file without Keras weights (at its top: {found}); {EXPECTED}")


def _names(group: h5py.Group, attribute: str) -> list[str] | None:
    """Return the names that Keras 2 stored as an attribute, cut into `attribute0`, `attribute1` when long."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    elif f"{attribute}0" in group.attrs:
        numbered = sorted(
            int(key.removeprefix(attribute))
            for key in group.attrs
            if key.startswith(attribute) and key.removeprefix(attribute).isdigit()
        )
        parts = [group.attrs[f"{attribute}{number}"] for number in numbered]
    else:
        return None
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _keras2(root: h5py.Group, path: Path) -> tuple[Tensor, ...]:
    tensors = []
    for layer in [*(_names(root, "layer_names") or []), "top_level_model_weights"]:
        group = root.get(layer)
        if group is None and layer == "top_level_model_weights":
            continue
        for name in (_names(group, "weight_names") if isinstance(group, h5py.Group) else None) or []:
            dataset = group.get(name)
            if not isinstance(dataset, h5py.Dataset):
                raise UserError(f"{path} is damaged: it lists the tensor {layer}/{name}, which it lacks")
            tensors.append(Tensor(layer, name, tuple(dataset.shape), dataset.name))
    return tuple(tensors)


def _keras3(layers: h5py.Group) -> tuple[Tensor, ...]:
    tensors = []

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            layer, _, rest = name.partition("/")
            tensors.append(Tensor(f"layers/{layer}", rest, tuple(item.shape), f"layers/{name}"))

    layers.visititems(collect)
    return tuple(tensors)


def read(file: h5py.File, tensor: Tensor, dtype: str, path: Path) -> np.ndarray:
    """Return the values of `tensor` as `dtype`.

    Raises:
        UserError: They can't be read, are no numbers, or are not all finite.
    """
    what = f"{path}: the tensor {tensor.layer}/{tensor.name}"
    try:
        values = file[tensor.address][()]
    except OSError as error:
        raise UserError(f"{what} is damaged ({error}): download or copy the file again") from None
    return checked(np.asarray(values), dtype, what)


def checked(values: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """Return `values` as `dtype`; `what` stands in front of messages.

    Raises:
        UserError: They are no real numbers, or not all finite.
    """
    if values.dtype.kind not in "fiu":
        raise UserError(f"{what} is of type {values.dtype}; expected real numbers")
    with np.errstate(over="ignore"):  # what is too large for `dtype` is told as infinity
        values = values.astype(dtype)
    if not np.isfinite(values).all():
        raise UserError(
            f"{what} holds values that are not finite (NaN or infinity), so every prediction would be NaN: "
            "take the weights of an earlier epoch, or download the file again"
        )
    return values
