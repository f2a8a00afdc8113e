"""Names of layers and weights that models of one architecture share, whatever their inputs and options are."""

from __future__ import annotations

import re

import keras

from architectures.blocks import Fusion
from architectures.torch_layers import module_path
from checkpoints.matching import addresses, class_key, keyed, layers_of

_BY_MODALITY = ("branches", "squeezes", "excitations")


def named_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Return all layers of a functional model, outer before inner, by names such as `setr/transformer_block_1`.

    A layer of a functional model is called by its given name, as a path where it stands for a module of PyTorch
    (`encoder.layer1.0.conv1`), or by its class and number among those of its class without a given name; a layer's
    sublayers by their attribute, `…/transformer_block_1/linear_1`; the branches of
    the fusion by their modality, `fusion/branches/dem`.
    """
    modalities = modalities_of(model)
    named: dict[str, keras.layers.Layer] = {}
    names = {"layers": ""}  # by address
    functional = {"layers"}
    automatic: dict[tuple[str, str], int] = {}

    def name_of(address: str) -> str:
        if address not in names:
            parent, _, key = address.rpartition("/")
            names[address] = f"{name_of(parent)}/{key}".removeprefix("/")
        return names[address]

    for address, layer in layers_of(model).items():
        parent, _, _ = address.rpartition("/")
        if parent in functional:
            key, kind = module_path(layer.name), class_key(layer)
            if re.fullmatch(rf"{kind}(_\d+)?", key):
                number = automatic[parent, kind] = automatic.get((parent, kind), -1) + 1
                key = f"{kind}_{number}" if number else kind
            names[address] = f"{names[parent]}/{key}".removeprefix("/")
        name = name_of(address)
        if isinstance(layer, keras.Model):
            names[f"{address}/layers"] = name
            functional.add(f"{address}/layers")
        if isinstance(layer, Fusion):
            for attribute in _BY_MODALITY:
                members = keyed(f"{address}/{attribute}", getattr(layer, attribute))
                names |= {
                    member: f"{name}/{attribute}/{modality}"
                    for modality, (member, _) in zip(modalities, members, strict=False)  # no gates in variant 2023
                }
        named[name] = layer
    return named


def named_weights(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the variables of a functional model by layer and own name: `fusion/branches/dem/convolution_1/kernel`.

    Raises:
        ValueError: Two variables of one layer have the same name.
    """
    names = dict(zip(layers_of(model), named_layers(model), strict=True))
    found: dict[str, keras.Variable] = {}
    for address, variable in addresses(model).items():
        name = f"{names[address.rpartition('/vars/')[0]]}/{variable.name}"
        if name in found:
            raise ValueError(f"{model.name} has two variables called {name}")
        found[name] = variable
    return found


def part_of(name: str) -> str:
    """Return the outermost part of a model that the layer or weight `name` is in: `setr`, `encoder`, `decoder`.

    Layers that are named as PyTorch's modules have the path in their own name, `encoder.layer1.0.conv1`.
    """
    return re.split("[/.]", name, maxsplit=1)[0]


def modalities_of(model: keras.Model) -> dict[str, tuple[int, int, int]]:
    """Return the modalities that a model takes, in its order, with (height, width, channels)."""
    # `model.inputs` is sorted by name; `model.input` has the model's order.
    return {name: tuple(tensor.shape[1:]) for name, tensor in model.input.items() if len(tensor.shape) == 4}
