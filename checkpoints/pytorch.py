"""Giving a model the tensors of a PyTorch state dict: all of a whole network's, or those of its encoder."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from architectures.encoders import Encoder
from checkpoints.files import checked, opened
from checkpoints.matching import shown
from checkpoints.state_dicts import StateDict
from checkpoints.torch_names import (
    ENCODERS,
    Parameter,
    Shape,
    Stored,
    encoder_of,
    encoder_part,
    parameters,
    translated,
)
from console import UserError

_SHOWN = 6  # names in a list; of more, the number
# The classifiers that encoders were trained with on ImageNet: torchvision's, efficientnet_pytorch's, MiT's.
CLASSIFIERS = ("fc.", "_fc.", "head.", "classifier.")
RGB = 3

Assignment = tuple[keras.Variable, NDArray[np.floating]]


@dataclass(frozen=True)
class EncoderWeights:
    """What a model took from an encoder's file.

    Attributes:
        encoder: The encoder, a name of `architectures.encoders.Encoder`.
        taken: Names of the model's weights that were taken, as in a state dict of the whole network.
        ignored: Names of those in the file that are not the encoder's, such as a classifier.
        first_convolution: In words, how the filters of the first convolution were made.
    """

    encoder: str
    taken: tuple[str, ...]
    ignored: tuple[str, ...]
    first_convolution: str

    def __str__(self) -> str:
        """Return one line."""
        ignored = f"; {len(self.ignored)} of the file ignored ({_some(self.ignored, 2)})" if self.ignored else ""
        return (
            f"{len(self.taken)} tensors of {self.encoder} taken{ignored}; first convolution: {self.first_convolution}"
        )


def match(model: keras.Model, state_dict: StateDict) -> list[Assignment]:
    """Return each variable of `model` with the value that `state_dict` has for it.

    Raises:
        UserError: The model has no counterpart in PyTorch, or tensors are missing, of another shape, without a place
            in the model, or not finite; the message lists them.
    """
    try:
        expected = parameters(model)
    except UserError as error:
        raise UserError(f"{state_dict.path} is a PyTorch state dict: {error}. Nothing was loaded.") from None
    stored = translated(state_dict.tensors)
    if differences := _differences(expected, stored):
        ours, theirs = encoder_of(_shapes(encoder_part(expected))), encoder_of(_shapes(encoder_part(stored)))
        if ours != theirs and theirs is not None:
            raise UserError(_other_encoder(model, state_dict.path, ours, theirs))
        advice = _advice(model, expected, stored)
        raise UserError(_refusal(model, state_dict.path, differences, advice))
    return _values(expected, stored, state_dict.path)


def load_encoder(model: keras.Model, path: str | Path) -> EncoderWeights:
    """Give the encoder of `model` the weights that the PyTorch file `path` holds, all of them or none.

    The file is an encoder alone, as torchvision, efficientnet_pytorch, transformers, the code of SegFormer's paper and
    segmentation_models_pytorch have them, with a classifier or without, or a whole network with such an encoder.
    Filters of three bands become such of N bands as in segmentation_models_pytorch: for one band their sum, else filter
    i is that of band i mod 3, times 3/N, which keeps the size of the sum.

    Raises:
        UserError: The file can't be read or is no PyTorch file, the model has no encoder of a classification network,
            the file holds another or none, or tensors are missing, of another shape or not finite.
    """
    path = Path(path)
    whole = parameters(model, ENCODERS)
    expected = encoder_part(whole)
    encoder = encoder_of(_shapes(expected))
    if encoder is None:
        raise UserError(
            f"{path}: the model {model.name} has no encoder of a classification network that its weights could be "
            "given to: use segformer, or unet or unetplusplus with the option encoder, such as encoder=resnet34"
        )
    with opened(path) as state_dict:
        if not isinstance(state_dict, StateDict):
            raise UserError(f"{path} is a Keras file; the weights of an encoder are expected as a PyTorch state dict")
    everything = translated(state_dict.tensors)
    stored = {name: one for name, one in encoder_part(everything).items() if not name.startswith(CLASSIFIERS)}
    theirs = encoder_of(_shapes(stored))
    if theirs is None:
        raise UserError(f"{path} holds no encoder that is known, but {_some(list(state_dict.tensors))}")
    if theirs != encoder:
        raise UserError(_other_encoder(model, path, encoder, theirs))
    first = next(name for name, parameter in expected.items() if len(parameter.shape) == 4)
    words = "missing"
    if first in stored:
        values, words = _adapted(stored[first].values, expected[first].shape)
        stored[first] = Stored(stored[first].original, values)
    if differences := _differences(expected, stored):
        raise UserError(_refusal(model, path, differences, ""))
    for variable, value in _values(expected, stored, path):
        variable.assign(value)
    used = {one.original for one in stored.values()}
    ignored = tuple(name for name in state_dict.tensors if name not in used)
    return EncoderWeights(encoder, tuple(whole), ignored, words)


def _adapted(filters: NDArray[np.floating], shape: Shape) -> tuple[NDArray[np.floating], str]:
    """Return the first convolution's filters (out, bands, h, w) for as many bands as `shape` says, and how."""
    count, stored = shape[1], filters.shape[1]
    if stored != RGB or count == RGB:
        return filters, "as in the file"
    if count == 1:
        return filters.sum(axis=1, keepdims=True), f"the sum of the file's {RGB} filters, for 1 band"
    chosen = filters[:, np.arange(count) % RGB] * np.asarray(RGB / count, filters.dtype)
    return chosen, f"the file's {RGB} filters in turn, times {RGB}/{count}, for {count} bands"


def _values(expected: Mapping[str, Parameter], stored: Mapping[str, Stored], path: Path) -> list[Assignment]:
    return [
        (
            parameter.variable,
            parameter.of(checked(stored[name].values, parameter.variable.dtype, _tensor(path, stored[name].original))),
        )
        for name, parameter in expected.items()
    ]


def _tensor(path: Path, name: str) -> str:
    return f"{path}: the tensor {name}"


def _shapes(tensors: Mapping[str, Parameter | Stored]) -> dict[str, Shape]:
    return {name: one.shape for name, one in tensors.items()}


def _differences(expected: Mapping[str, Parameter], stored: Mapping[str, Stored]) -> list[str]:
    """Return a line for each kind of tensor that keeps `stored` from being what is `expected`."""
    missing = [name for name in expected if name not in stored]
    unexpected = [one.original for name, one in stored.items() if name not in expected]
    misshapen = [
        f"{stored[name].original} {shown(stored[name].shape)} in the file, {shown(parameter.shape)} here"
        for name, parameter in expected.items()
        if name in stored and stored[name].shape != parameter.shape
    ]
    return [
        f"{title} ({len(names)}): {_some(names, separator=separator)}"
        for title, names, separator in (
            ("missing in the file", missing, ", "),
            ("without a place in the model", unexpected, ", "),
            ("of another shape", misshapen, "; "),
        )
        if names
    ]


def _refusal(model: keras.Model, path: Path, differences: Sequence[str], advice: str) -> str:
    first = f"{path}, a PyTorch state dict, does not fit the model {model.name}:"
    last = advice or "Name the architecture and the options that the file was trained with."
    return "\n  ".join([first, *differences]) + f"\n{last} Nothing was loaded."


def _other_encoder(model: keras.Model, path: Path, ours: str | None, theirs: str) -> str:
    here = f"{model.name} has {ours}" if ours else f"{model.name} has none of a classification network"
    option = "variant" if model.name.startswith("segformer") else "encoder"
    value = theirs.removeprefix("mit-") if option == "variant" else theirs
    known = theirs in typing.get_args(Encoder)
    advice = f"set the architecture's option {option}={value}" if known else "the zoo can't load it"
    return f"{path} seems to hold the encoder {theirs}; the model {here}: {advice}. Nothing was loaded."


def _advice(model: keras.Model, expected: Mapping[str, Parameter], stored: Mapping[str, Stored]) -> str:
    """Name what to set where the shapes betray it."""
    common = [name for name in expected if name in stored]
    if not common:
        if encoder_of(_shapes(encoder_part(stored))):
            return "It seems to be an encoder alone: start a training from it with train.py --encoder-weights FILE."
        return ""
    if len(common) < len(expected) or len(common) < len(stored):
        return ""
    advice = []
    inputs = {name: tensor for name, tensor in model.input.items() if len(tensor.shape) == 4}
    for name in common:
        here, there = expected[name].shape, stored[name].shape
        if len(here) == 4 == len(there) and here != there and here[:1] + here[2:] == there[:1] + there[2:]:
            names = ", ".join(f"{key} {tensor.shape[-1]}" for key, tensor in inputs.items())
            advice.append(
                f"The file's model reads {there[1]} channels, this one {here[1]} ({names}): use the inputs that the "
                "file was trained with, in that order."
            )
        if name.endswith(".weight") and len(here) == len(there) and here[1:] == there[1:] and here[0] != there[0]:
            advice.append(f"The file's model tells {there[0]} classes apart, this one {here[0]}: use its classes.")
    return " ".join(advice[:2])


def _some(names: Sequence[str], most: int = _SHOWN, separator: str = ", ") -> str:
    return separator.join(names[:most]) + (f"{separator}… {len(names) - most} more" if len(names) > most else "")
