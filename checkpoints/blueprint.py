"""What a weights file without a record tells of the model that it was made for."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from architectures import build, options_of
from checkpoints.files import Checkpoint, Tensor, listing, opened
from checkpoints.matching import paired
from checkpoints.partial import heads_of
from console import UserError


@dataclass(frozen=True)
class Blueprint:
    """Arguments of `architectures.build` that a file betrays by its shapes; names of inputs are in no file.

    Attributes:
        kind: The kind of the file.
        channels: Channels of the modalities, in the model's order.
        num_classes: Channels of the output.
        patch_size: Side of a patch in pixels.
        options: The options given, with `variant`, `location_size` and `deep_supervision` as the file has them.
    """

    kind: str
    channels: tuple[int, ...]
    num_classes: int
    patch_size: int
    options: dict[str, Any]


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
        UserError: As `load_weights`, for a file that can't be read; the file does not begin with a fusion of
            modalities; an unknown architecture or option.
    """
    with opened(Path(path)) as file:
        checkpoint = listing(file, Path(path))
    fusion = _fusion(checkpoint)
    # Of each branch two convolutions, the first of which reads the modality.
    channels = tuple(tensor.shape[2] for tensor in fusion if len(tensor.shape) == 4)[::2]
    if not channels:
        raise UserError(f"{path} does not begin with a fusion of modalities: it holds no weights of {architecture}")
    known = options_of(architecture)
    found = adapt_options(architecture, options, path)
    if architecture == "glavitu":
        found["variant"] = "2025" if any(len(tensor.shape) == 2 for tensor in fusion) else "2023"
    if "location_size" in known:
        found["location_size"] = _location_size(checkpoint)

    # A model like the file's but for what is read off where the two differ.
    inputs = {f"input_{number}": count for number, count in enumerate(channels)}
    model = build(architecture, inputs, num_classes, patch_size, **found)
    heads = {id(variable) for layer in heads_of(model) for variable in layer.weights}
    for layer in paired(model, checkpoint):
        for variable, tensor in layer.pairs:
            if variable is None or tensor is None or len(variable.shape) != len(tensor.shape):
                continue
            if id(variable) in heads:
                num_classes = tensor.shape[-1]
            elif variable.name == "positions" and variable.shape[-1] == tensor.shape[-1]:
                patch_size = isqrt(patch_size**2 * tensor.shape[0] // variable.shape[0])
    return Blueprint(checkpoint.kind, channels, num_classes, patch_size, found)


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
        layers = listing(file, Path(path)).layers.values()
    heads = sum([len(tensor.shape) for tensor in layer] == [2, 1] for layer in layers)
    return {**options, "deep_supervision": heads == 2} if heads in (1, 2) else dict(options)


def _fusion(checkpoint: Checkpoint) -> list[Tensor]:
    if checkpoint.kind == "keras3":
        return checkpoint.layers.get("layers/fusion", [])
    return next((tensors for tensors in checkpoint.layers.values() if len(tensors[0].shape) == 4), [])


def _location_size(checkpoint: Checkpoint) -> int:
    """Return the length of the location input: of two linear maps with normalisations, the first's inputs."""
    for tensors in checkpoint.layers.values():
        if len(tensors) == 12 and len(tensors[0].shape) == 2:
            return tensors[0].shape[0]
    return 0
