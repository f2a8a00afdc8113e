"""The expected memory, held against the peak of a process that trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import architectures
from training.memory import memory_parts, training_memory

ROOT = Path(__file__).parents[2]
TRAIN = """
import keras, numpy as np
import architectures
from benchmarks.turns import peak_memory
from training.losses import LossTerms, SegmentationLoss
from training.memory import memory_parts

model = architectures.build("unet", {"optical": 6, "dem": 2}, 2, 256, width=16, steps=1)
model.compile(keras.optimizers.Adam(), {"output": SegmentationLoss(LossTerms.model_validate({"focal": {}}))})
inputs = {name: np.random.rand(8, 256, 256, c).astype("float32") for name, c in (("optical", 6), ("dem", 2))}
before = peak_memory()
model.train_on_batch(inputs, {"output": np.zeros((8, 256, 256), "int32")})
parts = memory_parts(model, 8, "float32")
print(sum(parts.values()), parts["activations"], before, peak_memory())
"""


# Not by getrusage: a process begins there with the peak of the one that it was started from.
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
def test_the_estimate_is_near_the_peak_of_a_training_process() -> None:
    # Freed memory goes back to the system at once, whatever the C library's habits and the number of threads are.
    habits = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment = os.environ | habits
    command = [sys.executable, "-c", TRAIN]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected, activations, before, peak = map(float, done.stdout.split())
    assert peak / 2 < expected < peak * 2
    assert activations > expected / 3  # what the step itself needs is little else
    assert (peak - before) / 3 < activations < (peak - before) * 2


@pytest.mark.parametrize(
    "name, options",
    [
        ("resunet", {"width": 4, "fusion_width": 4, "steps": 1}),
        ("unet", {"width": 4, "steps": 1}),  # of layers that tell the shape of their output without being called
    ],
)
def test_the_estimate_grows_with_batch_patch_and_precision(name: str, options: dict[str, int]) -> None:
    def model(patch: int) -> keras.Model:
        return architectures.build(name, {"dem": 2}, 2, patch, **options)

    small, large = model(32), model(64)

    def patches(number: int, precision: str = "float32", of: keras.Model = small) -> float:
        return training_memory(of, number, precision) - training_memory(of, 0, precision)

    one = patches(1)
    assert one > 0
    assert patches(8) == pytest.approx(8 * one)
    assert one / 2 < patches(1, "bfloat16") < one
    assert patches(1, of=large) == pytest.approx(4 * one)


def test_the_estimate_is_the_sum_of_its_parts_and_frozen_weights_have_no_gradient() -> None:
    model = architectures.build("resunet", {"dem": 2}, 2, 16, width=4, fusion_width=4, steps=1)
    parts = memory_parts(model, 2, "float32")
    assert sum(parts.values()) == training_memory(model, 2, "float32")
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert parts["weights"] == 4 * model.count_params() > 4 * trainable
    assert parts["optimiser"] == 2 * parts["gradients"] == 8 * trainable
    model.trainable = False
    frozen = memory_parts(model, 2, "float32")
    assert frozen == parts | {"gradients": 0, "optimiser": 0}


def test_every_output_counts_once() -> None:
    x = keras.Input((4, 4, 1), name="dem")
    y = keras.layers.Conv2D(3, 1)(x)
    model = keras.Model({"dem": x}, {"output": keras.layers.ReLU()(y)})
    values = 4 * 4 * (3 + 3)  # of the convolution and of its activation
    assert memory_parts(model, 1, "float32")["activations"] == 1.25 * values * 4


def test_the_model_is_as_before() -> None:
    model = architectures.build("resunet", {"dem": 2}, 2, 16, width=4, fusion_width=4, steps=1)
    calls = [type(layer).call for layer in model._flatten_layers()]
    first = training_memory(model, 2, "float32")
    assert training_memory(model, 2, "float32") == first
    assert [layer.call.__func__ for layer in model._flatten_layers()] == calls
