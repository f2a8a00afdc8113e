"""How much memory a training step is expected to need, from the model's graph."""

from __future__ import annotations

import math
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
    """Return the bytes that a training step is expected to need at its peak: the sum of `memory_parts`.

    Measured peaks of the resident memory on CPUs, of all architectures, were 0.8 to 1.6 times this.
    """
    return sum(memory_parts(model, batch_size, precision, values_per_parameter).values())


def memory_parts(
    model: keras.Model, batch_size: int, precision: str, values_per_parameter: int = 4
) -> dict[str, float]:
    """Return what a training step needs memory for → the bytes expected.

    Every weight takes 4 bytes, every trainable one 4 more for its gradient and as many as the optimiser keeps. Every
    layer's output is kept for the backward pass, and a quarter as much again stands for gradients that pass by and for
    convolutions and normalisations that copy their input.

    Args:
        model: The network.
        batch_size: Patches that it sees at a time.
        precision: `float32`, `bfloat16` or `float16`.
        values_per_parameter: Numbers kept for each trainable weight, itself and its gradient included
            (`training.optimisers`).
    """
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return {
        "weights": 4.0 * model.count_params(),
        "gradients": 4.0 * trainable,
        "optimiser": 4.0 * (values_per_parameter - 2) * trainable,
        "activations": 1.25 * sum(_leaf_outputs(model)) * batch_size * _BYTES[precision],
        "framework": _FRAMEWORK,
    }


def _leaf_outputs(model: keras.Model) -> list[int]:
    """Return the number of values in each output of a layer without sublayers, for one patch."""
    sizes: list[int] = []
    with _watching(model, sizes):
        inputs = {t.name: keras.KerasTensor((1, *t.shape[1:]), t.dtype) for t in model.inputs}
        model.compute_output_spec(inputs)
    return sizes


@contextmanager
def _watching(model: keras.Model, sizes: list[int]) -> Iterator[None]:
    """Record the output size of every leaf layer that is called meanwhile, or asked for its output instead.

    In a functional model Keras asks a layer that knows the shape of its output, and calls those that do not.
    """
    leaves = [layer for layer in model._flatten_layers(include_self=False) if not layer._layers]

    def watched(original: Any) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            before = len(sizes)
            outputs = original(*args, **kwargs)
            del sizes[before:]  # what one method recorded on behalf of the other
            sizes.extend(int(np.prod(t.shape)) for t in keras.tree.flatten(outputs))
            return outputs

        return method

    try:
        for layer in leaves:
            layer.call = watched(layer.call)
            layer.compute_output_spec = watched(layer.compute_output_spec)
        yield
    finally:
        for layer in leaves:
            layer.__dict__.pop("call", None)
            layer.__dict__.pop("compute_output_spec", None)
