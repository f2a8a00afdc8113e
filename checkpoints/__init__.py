"""Reading weights: `checkpoints.load_weights(model, path)`, whole or not at all; `transfer`, what fits.

Three kinds of file are read, told apart by what they hold and never by their name:

- Keras 3, `model.save_weights("x.weights.h5")`: one group per layer, addressed by the model's structure;
- Keras 2, `model.save_weights("x.h5")` or `model.save("x.h5")`, as the authors of GlaViTU publish theirs:
  layers in topological order, each with one flat list of tensors, trainable ones first, under names that are
  automatic counters and mean nothing;
- state dicts of PyTorch, `.safetensors`, `.npz`, `.pt` and `.pth`: tensors by name, for those architectures whose
  checkpoints are PyTorch's. `load_encoder(model, path)` takes an encoder alone, as trained on ImageNet.

Every tensor is compared with the model before the first one is assigned. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path

import keras

from checkpoints import pytorch
from checkpoints.blueprint import Blueprint, adapt_options, blueprint_of
from checkpoints.files import Checkpoint, Tensor, listing, opened, read
from checkpoints.matching import match
from checkpoints.naming import named_layers, named_weights, part_of
from checkpoints.partial import Meaning, Transfer, transfer
from checkpoints.pytorch import EncoderWeights, load_encoder
from checkpoints.state_dicts import StateDict

__all__ = [
    "Blueprint",
    "Checkpoint",
    "EncoderWeights",
    "Meaning",
    "Tensor",
    "Transfer",
    "adapt_options",
    "blueprint_of",
    "inspect",
    "load_encoder",
    "load_weights",
    "named_layers",
    "named_weights",
    "part_of",
    "transfer",
]


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Give `model` the weights that the file `path` holds, all of them or none.

    Load before layers are frozen: a Keras 2 file lists what was trainable first.

    Raises:
        UserError: The file is missing, damaged, no weights file, made for another model (the message names
            the tensors that differ, of a Keras file the first of them, both shapes and, where the cause can be told,
            the option to set), or holds values that are not finite. The model then has the weights that it had before.
    """
    path = Path(path)
    with opened(path) as file:
        if isinstance(file, StateDict):
            values = pytorch.match(model, file)
        else:
            matched = match(model, listing(file, path))
            values = [(variable, read(file, tensor, variable.dtype, path)) for variable, tensor in matched]
    for variable, value in values:
        variable.assign(value)


def inspect(path: str | Path) -> Checkpoint:
    """Return the kind of the weights file `path` and its tensors, in the file's order, without their values.

    Raises:
        UserError: As `load_weights`, for a file that can't be read.
    """
    with opened(Path(path)) as file:
        return listing(file, Path(path))
