"""Names of tensors in PyTorch state dicts: which weight of a model each is, older names, and whose encoder they are.

Architectures whose checkpoints are PyTorch's name their layers after the reference's modules
(`architectures.torch_layers`), so that a tensor's name is a layer's path and a leaf: `encoder.layer1.0.conv1.weight`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from architectures import efficientnet, mit, resnet
from architectures.torch_layers import module_path
from console import UserError

Shape = tuple[int, ...]
T = TypeVar("T")

# By kind of layer: the kernel's axes in Keras's order, as numbers of PyTorch's axes.
_KERNELS: tuple[tuple[type[layers.Layer], tuple[int, ...]], ...] = (
    (layers.Conv2D, (2, 3, 1, 0)),  # (out, in, h, w) → (h, w, in, out)
    (layers.Conv2DTranspose, (2, 3, 1, 0)),  # (in, out, h, w) → (h, w, out, in)
    (layers.DepthwiseConv2D, (2, 3, 0, 1)),  # (channels, 1, h, w) → (h, w, channels, 1)
    (layers.Dense, (1, 0)),  # (out, in) → (in, out)
    (layers.BatchNormalization, ()),
    (layers.LayerNormalization, ()),
)
_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
ENCODERS = ("encoder.", "segformer.")  # what the names of an encoder's layers begin with: in U-Nets, in SegFormer


@dataclass(frozen=True)
class Parameter:
    """A weight of a model, and how it lies in a state dict.

    Attributes:
        variable: The weight.
        axes: Its axes as numbers of PyTorch's; () where both are alike.
        shape: Its shape in a state dict.
    """

    variable: keras.Variable
    axes: tuple[int, ...]
    shape: Shape

    def of(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return `stored`, of `shape`, with the axes of the variable."""
        return stored.transpose(self.axes) if self.axes else stored


class Stored(NamedTuple):
    """A tensor of a state dict, or the part of one that has a name of its own in our models."""

    original: str  # its name in the file
    values: NDArray[Any]

    @property
    def shape(self) -> Shape:
        """The shape of the values."""
        return self.values.shape


def parameters(model: keras.Model, prefixes: tuple[str, ...] = ("",)) -> dict[str, Parameter]:
    """Return the weights of `model` by their names in a state dict, in the order of the layers.

    Args:
        model: A functional model.
        prefixes: What the names of the layers that count begin with.

    Raises:
        UserError: It has layers that no PyTorch reference has.
    """
    found: dict[str, Parameter] = {}
    for layer in model.layers:
        path = module_path(layer.name)
        if not layer.weights or not path.startswith(prefixes):
            continue
        axes = next((axes for kind, axes in _KERNELS if isinstance(layer, kind)), None)
        if axes is None:
            raise UserError(_without_counterpart(model, layer))
        for variable in layer.weights:
            order = axes if variable.name == "kernel" else ()
            shape = tuple(variable.shape)
            if order:
                shape = tuple(shape[order.index(axis)] for axis in range(len(order)))
            found[f"{path}.{_LEAVES[variable.name]}"] = Parameter(variable, order, shape)
    return found


def _without_counterpart(model: keras.Model, layer: layers.Layer) -> str:
    others = [one for one in model.layers if one.weights and not isinstance(one, tuple(kind for kind, _ in _KERNELS))]
    if [one.name for one in others] == ["fusion"]:
        return (
            "a PyTorch state dict has one input of all channels and no fusion of modalities, which this model begins "
            "with: set the option fusion=concatenate"
        )
    return (
        f"{model.name} is an architecture whose weights are Keras files; PyTorch state dicts are those of unet, "
        "unetplusplus, segformer and resunet with variant=himalaya (the layer "
        f"{module_path(layer.name)} is in none of them)"
    )


# Names of MiT, the encoder of SegFormer, in front of the rest of a name: pattern, ours, and what its stages count from.
_MIT_PARTS = (
    (r"patch_embed(\d)\.", "patch_embeddings.", 1),  # the paper's code and segmentation_models_pytorch
    (r"block(\d)\.(?=\d+\.)", "blocks.", 1),
    (r"norm(\d)\.", "layer_norm.", 1),
    (r"(?:encoder\.)?patch_embeddings\.(\d)\.", "patch_embeddings.", 0),  # transformers 4
    (r"(?:encoder\.)?block\.(\d)\.(?=\d+\.)", "blocks.", 0),
    (r"(?:encoder\.)?layer_norm\.(\d)\.", "layer_norm.", 0),
)
_MIT_MODULES = {
    "norm": "layer_norm",  # of patches
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "layer_norm_1": "layernorm_before",
    "layer_norm_2": "layernorm_after",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "attn.sr": "attention.sequence_reduction.sequence_reduction",
    "attn.norm": "attention.sequence_reduction.layer_norm",
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.self.sr": "attention.sequence_reduction.sequence_reduction",
    "attention.self.layer_norm": "attention.sequence_reduction.layer_norm",
    "attention.output.dense": "attention.o_proj",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
}


def translated(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Stored]:
    """Return `tensors` by the names that our models have.

    Names of MiT as transformers 4, the paper's code and segmentation_models_pytorch have them become those of
    transformers 5, and the last two's joint tensor of keys and values becomes two. All other names stay.
    """
    if not any(re.search(r"(?:^|\.)patch_embed(?:dings\.)?\d\.", name) for name in tensors):
        return {name: Stored(name, values) for name, values in tensors.items()}
    found: dict[str, Stored] = {}
    for name, values in tensors.items():
        prefix = next((one for one in ENCODERS if name.startswith(one)), "")
        name_of_ours = _mit_name(name.removeprefix(prefix))
        # In transformers 4 a bare encoder's names begin with `encoder.`, as those of an encoder in a U-Net do.
        ours = f"{prefix}{name_of_ours}" if name_of_ours else name
        ours = ours.replace("decode_head.linear_c.", "decode_head.linear_projections.")
        if ".attn.kv." in ours:
            for part, half in zip(("k_proj", "v_proj"), np.array_split(values, 2), strict=True):
                found[ours.replace(".attn.kv.", f".attention.{part}.")] = Stored(name, half)
        else:
            found[ours] = Stored(name, values)
    return found


def _mit_name(name: str) -> str | None:
    """Return the name in transformers 5 of a tensor of MiT, prefix left out; None for any other name."""
    for pattern, ours, first in _MIT_PARTS:
        if match := re.match(pattern, name):
            module, _, leaf = name[match.end() :].rpartition(".")
            number = re.match(r"\d+\.", module) if ours == "blocks." else None
            block = number[0] if number else ""
            module = module.removeprefix(block)
            module = _MIT_MODULES.get(module, module)
            return f"stages.{int(match[1]) - first}.{ours}{block}{module}{'.' if module else ''}{leaf}"
    return None


def encoder_part(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return what is the encoder's of `tensors` by name, `ENCODERS` left out of the names.

    Without names that begin so, all are taken to be the encoder's: a file can hold an encoder alone.
    """
    prefix = next((one for one in ENCODERS if any(name.startswith(one) for name in tensors)), "")
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def encoder_of(shapes: Mapping[str, Shape]) -> str | None:
    """Return which encoder the names and shapes of its tensors are of, `ENCODERS` left out of the names.

    A name of `architectures.encoders.Encoder`, or in words what an encoder is made of that the zoo lacks; None where
    they are of no such family.
    """
    if "layer1.0.conv1.weight" in shapes:
        blocks = tuple(_blocks(shapes, rf"layer{stage}\.") for stage in (1, 2, 3, 4))
        bottleneck = "layer1.0.conv3.weight" in shapes
        plain = shapes.get("layer1.0.conv2.weight", ())[:2] == (64, 64)
        for name, counts in resnet.BLOCKS.items():
            if plain and counts == blocks and bottleneck == (name in resnet.BOTTLENECK):
                return name
        return f"a ResNet of {_listed(blocks)} {'bottleneck' if bottleneck else 'basic'} blocks, which the zoo lacks"
    if "_conv_stem.weight" in shapes:
        count, head = _blocks(shapes, r"_blocks\."), shapes.get("_conv_head.weight", (0,))[0]
        for name, (wide, deep, _) in efficientnet.SCALES.items():
            if (sum(math.ceil(stage[4] * deep) for stage in efficientnet.STAGES), round(efficientnet.HEAD * wide)) == (
                count,
                head,
            ):
                return name
        return f"an EfficientNet of {count} blocks, which the zoo lacks"
    if "stages.0.patch_embeddings.proj.weight" in shapes:
        width = shapes["stages.0.patch_embeddings.proj.weight"][0]
        depths = tuple(_blocks(shapes, rf"stages\.{stage}\.blocks\.") for stage in range(4))
        names = {tuple(size): name for name, size in mit.SIZES.items()}
        return names.get((width, depths), f"a MiT of width {width} and {_listed(depths)} blocks, which the zoo lacks")
    return None


def _blocks(shapes: Mapping[str, Shape], pattern: str) -> int:
    """Return how many different numbers follow `pattern` at the beginning of the names."""
    return len({match[1] for name in shapes if (match := re.match(rf"{pattern}(\d+)\.", name))})


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
