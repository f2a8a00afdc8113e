"""How much memory a training step is expected to need, from the model's graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

# A value that is kept; half of a reduced precision's layers (normalisations, softmax) keep it in float32 as well.
_BYTES = {"float32": 4, "bfloat16": 3, "float16": 3}
# The framework itself with its compiled graph, and what the convolution library keeps beside the tensors.
_FRAMEWORK = 1.0e9


def training_memory(model: keras.Model, batch_size: int, precision: str, values_per_parameter: int = 4) -> float:
    """Return the bytes that a training step is expected to need at its peak.

    Weights, gradients and Adam's two moments take 16 bytes a parameter; every layer's output is kept for the backward
    pass, and half as much again stands for gradients that pass by and for convolutions and normalisations that copy
    their input. Measured peaks of the resident memory on CPUs, of all architectures, were 0.8 to 1.25 times this.

    Args:
        model: The network.
        batch_size: Patches that it sees at a time.
        precision: `float32`, `bfloat16` or `float16`.
        values_per_parameter: Numbers of 4 bytes that are kept for each parameter (`training.optimisers`).
    """
    activations = sum(_leaf_outputs(model)) * batch_size * _BYTES[precision]
    return _FRAMEWORK + 4.0 * values_per_parameter * model.count_params() + 1.5 * activations


def _leaf_outputs(model: keras.Model) -> list[int]:
    """Return the number of values in each output of a layer without sublayers, for one patch."""
    sizes: list[int] = []
    with _watching(model, sizes):
        inputs = {t.name: keras.KerasTensor((1, *t.shape[1:]), t.dtype) for t in model.inputs}
        model.compute_output_spec(inputs)
    return sizes


@contextmanager
def _watching(model: keras.Model, sizes: list[int]) -> Iterator[None]:
    """Record the output size of every leaf layer that is called meanwhile."""
    leaves = [layer for layer in model._flatten_layers(include_self=False) if not layer._layers]

    def watched(layer: keras.layers.Layer) -> Any:
        original = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = original(*args, **kwargs)
            sizes.extend(int(np.prod(t.shape)) for t in keras.tree.flatten(outputs))
            return outputs

        return call

    try:
        for layer in leaves:
            layer.call = watched(layer)
        yield
    finally:
        for layer in leaves:
            layer.__dict__.pop("call", None)
