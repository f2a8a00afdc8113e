"""Which variable of a model takes which tensor of a weights file, and what to say where they differ."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from math import isqrt
from typing import Any

import keras

from checkpoints.files import Checkpoint, Tensor
from console import UserError

Pair = tuple[keras.Variable | None, Tensor | None]


@dataclass(frozen=True)
class PairedLayer:
    """A layer of the model and the file's counterpart, either of which can be missing."""

    name: str | None  # the model's
    stored: str | None  # the file's
    pairs: list[Pair]

    @property
    def shapes(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The shapes of the model's tensors and of the file's."""
        return (
            [tuple(variable.shape) for variable, _ in self.pairs if variable is not None],
            [tensor.shape for _, tensor in self.pairs if tensor is not None],
        )


def match(model: keras.Model, checkpoint: Checkpoint) -> list[tuple[keras.Variable, Tensor]]:
    """Return each variable of `model` with the tensor of the same shape that is meant for it.

    Raises:
        UserError: A tensor differs in shape, is missing, or has no place in the model.
    """
    matched = []
    for layer in paired(model, checkpoint):
        for variable, tensor in layer.pairs:
            if variable is None or tensor is None or tuple(variable.shape) != tensor.shape:
                raise UserError(_refusal(model, checkpoint, layer, variable, tensor))
            matched.append((variable, tensor))
    return matched


def paired(model: keras.Model, checkpoint: Checkpoint) -> list[PairedLayer]:
    """Return the layers of `model` and of the file side by side, whether or not they fit."""
    return _by_order(model, checkpoint) if checkpoint.kind == "keras2" else _by_address(model, checkpoint)


def _by_order(model: keras.Model, checkpoint: Checkpoint) -> list[PairedLayer]:
    """Pair by position: layers in topological order, in each the trainable tensors first."""
    ours: list[tuple[str, list[keras.Variable]]] = [
        (layer.name, layer.trainable_weights + layer.non_trainable_weights) for layer in model.layers if layer.weights
    ]
    theirs = list(checkpoint.layers.items())
    a = [[tuple(v.shape) for v in variables] for _, variables in ours]
    b = [[t.shape for t in tensors] for _, tensors in theirs]
    # Where one side has just one layer more, that layer is the difference, not all that follow it.
    without = next((i for i in range(len(a)) if a[:i] + a[i + 1 :] == b), None)
    beyond = next((i for i in range(len(b)) if b[:i] + b[i + 1 :] == a), None)
    if without is not None:
        theirs.insert(without, ("", []))
    elif beyond is not None:
        ours.insert(beyond, ("", []))
    return [
        PairedLayer(name or None, stored or None, list(zip_longest(variables, tensors)))
        for (name, variables), (stored, tensors) in zip_longest(ours, theirs, fillvalue=("", []))
    ]


def _by_address(model: keras.Model, checkpoint: Checkpoint) -> list[PairedLayer]:
    """Pair by the address that Keras 3 gives each variable."""
    stored = checkpoint.layers
    tensors = {tensor.address: tensor for tensor in checkpoint.tensors}
    grouped: dict[str, list[Pair]] = {}
    for address, variable in addresses(model).items():
        grouped.setdefault("/".join(address.split("/")[:2]), []).append((variable, tensors.pop(address, None)))
    for tensor in tensors.values():
        grouped.setdefault(tensor.layer, []).append((None, tensor))
    names = {group: layer.name for group, layer in keyed("layers", model.layers)}
    return [
        PairedLayer(names.get(group), group if group in stored else None, pairs) for group, pairs in grouped.items()
    ]


def addresses(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the variables of a functional model by where a Keras 3 `.weights.h5` file keeps them.

    The address is that of the layer (`layers_of`) and the number of the variable in it:
    `layers/fusion/branches/double_convolution_1/convolution_1/vars/0`.

    Raises:
        ValueError: A layer keeps variables where Keras does not look for them, such as in a list of lists.
    """
    found: dict[str, keras.Variable] = {}
    for address, layer in layers_of(model).items():
        own: dict[str, keras.Variable] = {}
        layer.save_own_variables(own)
        found.update({f"{address}/vars/{key}": variable for key, variable in own.items()})
    if {id(v) for v in found.values()} != {id(v) for v in model.weights}:
        raise ValueError(f"{model.name} keeps variables in a place that Keras 3 weights files have no address for")
    return found


def layers_of(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Return all layers of a functional model, outer before inner, by where a Keras 3 file keeps what is theirs.

    That file follows the structure of the model: in a functional model the layers are in `layers`; in a layer the
    sublayers are under their attribute's name, public attributes first; in either, members of a list are called by
    their class, numbered from the second.
    """
    found: dict[str, keras.layers.Layer] = {}
    visited: set[int] = set()
    common = set(dir(keras.layers.Layer()))

    def visit(layer: keras.layers.Layer, path: str) -> None:
        if id(layer) in visited:
            return
        visited.add(id(layer))
        found[path] = layer
        if isinstance(layer, keras.Model):
            children: Iterable[tuple[str, Any]] = [("layers", layer.layers)]
        else:
            names = sorted(set(dir(layer)) - common, key=lambda name: (name.startswith("_"), name))
            children = [(name, getattr(layer, name, None)) for name in names]
        for name, child in children:
            if isinstance(child, keras.layers.Layer):
                visit(child, f"{path}/{name}")
            elif isinstance(child, list | tuple):
                for address, member in keyed(f"{path}/{name}", child):
                    visit(member, address)

    for address, layer in keyed("layers", model.layers):
        visit(layer, address)
    return found


def keyed(path: str, members: Iterable[Any]) -> list[tuple[str, keras.layers.Layer]]:
    """Return the layers among `members` with their addresses: `path/dense`, `path/dense_1` and so on."""
    counts: dict[str, int] = {}
    addressed = []
    for member in members:
        if isinstance(member, keras.layers.Layer):
            name = class_key(member)
            count = counts[name] = counts.get(name, -1) + 1
            addressed.append((f"{path}/{name}_{count}" if count else f"{path}/{name}", member))
    return addressed


def class_key(layer: keras.layers.Layer) -> str:
    """Return what Keras calls a layer that was given no name, the number left out: `double_convolution`."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _refusal(
    model: keras.Model,
    checkpoint: Checkpoint,
    layer: PairedLayer,
    variable: keras.Variable | None,
    tensor: Tensor | None,
) -> str:
    """Say what differs first, in the model's words and the file's, and what to do."""
    file = "Keras 2" if checkpoint.kind == "keras2" else "Keras 3"
    there = f"the file's layer {layer.stored}" if layer.stored else "the file"
    here = f"the model's layer {layer.name}" if layer.name else f"the model {model.name}"
    ours = f"the tensor {variable.path} of shape {shown(variable.shape)}" if variable is not None else "none"
    theirs = f"the tensor {tensor.name} of shape {shown(tensor.shape)}" if tensor is not None else "none"
    return (
        f"{checkpoint.path} holds the weights of another model ({file}, {checkpoint.parameters:,} parameters; "
        f"the model {model.name} has {model.count_params():,}). The first difference: {here} has {ours} "
        f"where {there} has {theirs}. {_advice(model, layer, variable, tensor)} Nothing was loaded."
    )


def shown(shape: Iterable[int]) -> str:
    """Return `3×3×6×64`."""
    return "×".join(map(str, shape))


def _advice(model: keras.Model, layer: PairedLayer, variable: keras.Variable | None, tensor: Tensor | None) -> str:
    """Name the option to set where the shapes betray it."""
    ours, theirs = layer.shapes
    # `model.inputs` is sorted by name; `model.input` has the model's order.
    maps = {name: tensor for name, tensor in model.input.items() if len(tensor.shape) == 4}
    a = tuple(variable.shape) if variable is not None else ()
    b = tensor.shape if tensor is not None else ()

    if not ours or not theirs:  # a whole layer that only one side has
        only = ours or theirs
        if [len(shape) for shape in only] == [2, 1]:
            return (
                f"The file {'lacks' if ours else 'has'} the head for deep supervision: set the option "
                f"deep_supervision={'false' if ours else 'true'}."
            )
        if layer.name == "location_encoding":
            return (
                "The file's model has no location input: `location: none` in the recipe, or the option location_size=0."
            )
        if layer.name is None and len(only) == 12 and len(only[0]) == 2:
            return _located(only[0][0])

    if layer.name == "location_encoding" and len(a) == len(b) == 2 and a[1] == b[1]:
        return _located(b[0])

    if layer.name == "fusion" and theirs:
        gated, stored_gated = (any(len(shape) == 2 for shape in shapes) for shapes in (ours, theirs))
        if gated != stored_gated:
            variant = 2025 if stored_gated else 2023
            return f"The file holds the {variant} variant of GlaViTU: set the option variant={variant}."
        reads, stored_reads = ([shape[2] for shape in shapes if len(shape) == 4][::2] for shapes in (ours, theirs))
        if reads != stored_reads:
            names = ", ".join(f"{name} {tensor.shape[-1]}" for name, tensor in maps.items())
            return (
                f"The file's model reads modalities of {', '.join(map(str, stored_reads))} channels, this one "
                f"{names}: use the modalities that the file was trained with, in that order."
            )

    if variable is not None and variable.name == "positions" and len(b) == 2 and a[1] == b[1]:
        height, width = next(iter(maps.values())).shape[1:3]
        side = isqrt(b[0] * height * width // a[0])
        square = side * side * a[0] == b[0] * height * width
        wanted = f"{side}×{side} pixels" if square else "another size"
        return f"The file is for patches of {wanted}, this model for {height}×{width}: set the patch size."

    classes = model.outputs[0].shape[-1]
    if len(a) == len(b) > 1 and a[:-1] == b[:-1] and a[-1] == classes:
        return f"The file's model tells {b[-1]} classes apart, this one {classes}: use its list of classes."

    return "Name the architecture and the options that the file was trained with."


def _located(size: int) -> str:
    kind = "coordinates" if size == 4 else "region"
    return (
        f"The file's model has a location input of {size} numbers: `location: {kind}` in the recipe, or the "
        f"option location_size={size}."
    )
