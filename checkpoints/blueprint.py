"""What a weights file without a record tells of the model that it was made for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import h5py
import keras

from architectures import build, options_of
from checkpoints.files import Checkpoint, Tensor, listing, opened
from checkpoints.matching import paired
from checkpoints.naming import named_weights
from checkpoints.partial import heads_of, readers_of
from checkpoints.state_dicts import StateDict
from checkpoints.torch_names import parameters, translated
from console import UserError


@dataclass(frozen=True)
class Blueprint:
    """Arguments of `architectures.build` that a file betrays by its shapes; names of inputs are in no file.

    Attributes:
        kind: The kind of the file.
        channels: Channels of the modalities, in the model's order; of a model that concatenates them, their sum.
        num_classes: Channels of the output.
        patch_size: Side of a patch in pixels.
        options: The options given, with `variant`, `location_size`, `deep_supervision` and `fusion` as the file has
            them.
        concatenated: Whether the model concatenates the modalities.
    """

    kind: str
    channels: tuple[int, ...]
    num_classes: int
    patch_size: int
    options: dict[str, Any]
    concatenated: bool = False


def blueprint_of(
    architecture: str, options: dict[str, Any], path: str | Path, num_classes: int = 2, patch_size: int = 384
) -> Blueprint:
    """Return how to build the model that the weights file `path` was made for, if it is of `architecture`.

    Args:
        architecture: Name of the architecture, which no file says.
        options: Its options; those that a file does not betray have to be right.
        path: The file, of any kind that `load_weights` reads.
        num_classes: Taken where the file's output layer is not found.
        patch_size: Taken where nothing in the file depends on it; one that the architecture can take.

    Raises:
        UserError: As `load_weights`, for a file that can't be read; the file does not begin as the architecture does;
            an unknown architecture or option.
    """
    path = Path(path)
    with opened(path) as file:
        checkpoint = listing(file, path)
    fusion = _fusion(checkpoint)
    # Of each branch two convolutions, the first of which reads the modality.
    channels = tuple(tensor.shape[2] for tensor in fusion if len(tensor.shape) == 4)[::2]
    known = options_of(architecture)
    found = adapt_options(architecture, options, path)
    if architecture == "glavitu":
        found["variant"] = "2025" if any(len(tensor.shape) == 2 for tensor in fusion) else "2023"
    if "location_size" in known:
        found["location_size"] = _location_size(checkpoint)
    if "fusion" in known and (architecture != "resunet" or found.get("variant") == "himalaya"):
        found["fusion"] = "branches" if fusion else "concatenate"
    elif not fusion:
        raise UserError(f"{path} does not begin with a fusion of modalities: it holds no weights of {architecture}")

    # A model like the file's but for what is read off where the two differ.
    inputs = {f"input_{number}": count for number, count in enumerate(channels or (3,))}
    model = build(architecture, inputs, num_classes, patch_size, **found)
    heads = {id(variable) for layer in heads_of(model) for variable in layer.weights}
    weights = named_weights(model)
    first = {id(weights[name]) for name in readers_of(model)}
    for variable, shape in _pairs(model, file, checkpoint):
        if len(variable.shape) != len(shape):
            continue
        if id(variable) in heads:
            num_classes = shape[-1]
        elif id(variable) in first and not fusion:
            channels = (shape[-2],)
        elif variable.name == "positions" and variable.shape[-1] == shape[-1]:
            side = isqrt(patch_size**2 * shape[0] // variable.shape[0])
            if side**2 * variable.shape[0] == patch_size**2 * shape[0]:
                patch_size = side
    if not channels:
        raise UserError(f"{path} holds no weights of {architecture} with these options")
    return Blueprint(checkpoint.kind, channels, num_classes, patch_size, found, concatenated=not fusion)


def _pairs(
    model: keras.Model, file: h5py.File | StateDict, checkpoint: Checkpoint
) -> Iterator[tuple[keras.Variable, tuple[int, ...]]]:
    """Yield the variables of `model` with the shapes that the file has for them, axes as in the model."""
    if isinstance(file, StateDict):
        stored = translated(file.tensors)
        for name, parameter in parameters(model).items():
            if name in stored and len(stored[name].shape) == len(parameter.shape):
                yield parameter.variable, parameter.of(stored[name].values).shape
        return
    for layer in paired(model, checkpoint):
        for variable, tensor in layer.pairs:
            if variable is not None and tensor is not None:
                yield variable, tensor.shape


def adapt_options(architecture: str, options: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return `options` with `deep_supervision` set to what the weights file `path` holds.

    That head serves training alone, and published files are without it or with it; no prediction depends on
    it. Every other option decides what is predicted and stays the caller's. Architectures without that option
    get `options` back as they are.

    Raises:
        UserError: As `load_weights`, for a file that can't be read; an unknown architecture.
    """
    if "deep_supervision" not in options_of(architecture):
        return dict(options)
    with opened(Path(path)) as file:
        checkpoint = listing(file, Path(path))
    if checkpoint.kind == "pytorch":
        return {**options, "deep_supervision": any(name.startswith("deepsupervision") for name in checkpoint.layers)}
    heads = sum([len(tensor.shape) for tensor in layer] == [2, 1] for layer in checkpoint.layers.values())
    return {**options, "deep_supervision": heads == 2} if heads in (1, 2) else dict(options)


def _fusion(checkpoint: Checkpoint) -> list[Tensor]:
    if checkpoint.kind == "keras3":
        return checkpoint.layers.get("layers/fusion", [])
    if checkpoint.kind == "pytorch":
        return []
    first = next((tensors for tensors in checkpoint.layers.values() if len(tensors[0].shape) == 4), [])
    # A single convolution reads concatenated modalities.
    return first if sum(len(tensor.shape) == 4 for tensor in first) > 1 else []


def _location_size(checkpoint: Checkpoint) -> int:
    """Return the length of the location input: of two linear maps with normalisations, the first's inputs."""
    for tensors in checkpoint.layers.values():
        if len(tensors) == 12 and len(tensors[0].shape) == 2:
            return tensors[0].shape[0]
    return 0
