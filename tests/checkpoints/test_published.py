"""The authors' weights files give the authors' outputs: full-size models against stored reference outputs.

Keras 2 files of the GlaViTU family, and PyTorch state dicts of the others.
"""

from __future__ import annotations

import gc
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy

import architectures
import checkpoints

pytestmark = pytest.mark.usefixtures("zero_start")  # all weights are loaded

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "glavitu": ("glavitu", {}),
    "resunet": ("resunet", {}),
    "transunet": ("transunet", {}),
    "setr": ("setr", {}),
    "glavitu2025": ("glavitu", {"variant": "2025"}),
    "glavitu2025_region": ("glavitu", {"variant": "2025", "location_size": 12}),
}
# Of the reference's state dict: our architecture and its options, and how files of it are written.
TORCH: dict[str, tuple[str, dict[str, Any], str]] = {
    "unet_resnet34": ("unet", {"encoder": "resnet34"}, "safetensors"),
    "unet_resnet50": ("unet", {"encoder": "resnet50"}, "npz"),
    "unet_efficientnet_b4": ("unet", {"encoder": "efficientnet-b4"}, "npz"),
    "unetplusplus_resnet34": ("unetplusplus", {"encoder": "resnet34"}, "npz"),
    "resunet_himalaya": ("resunet", {"variant": "himalaya"}, "npz"),
    "segformer_b0": ("segformer", {"variant": "b0"}, "safetensors"),
    "segformer_b4": ("segformer", {"variant": "b4"}, "npz"),
}


@pytest.fixture(scope="module")
def references(shared: Path) -> Path:
    """The folder of the reference models' tensors, outputs and the code that regenerates their weights."""
    return shared / "fixtures"


@pytest.fixture(scope="module")
def seeded(references: Path) -> ModuleType:
    """Return the module that regenerates the reference models' weights and inputs."""
    spec = importlib.util.spec_from_file_location("seeded_weights", references / "seeded_weights.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Give back a model of up to 100 million parameters after each test."""
    yield
    keras.utils.clear_session()
    gc.collect()


@pytest.mark.parametrize("name", MODELS)
def test_published_weights_give_the_published_output(
    name: str, references: Path, seeded: ModuleType, tmp_path: Path
) -> None:
    spec = json.loads((references / "keras2" / f"{name}.json").read_text())
    reference = np.load(references / "keras2" / f"{name}.npz")
    path = tmp_path / f"{name}.h5"
    seeded.write_keras2_h5(spec, path)
    assert checkpoints.inspect(path).parameters == spec["parameters"]

    inputs = {key: shape[-1] for key, shape in spec["inputs"].items() if key != "location"}
    architecture, options = MODELS[name]
    model = architectures.build(architecture, inputs, num_classes=2, patch_size=384, **options)
    checkpoints.load_weights(model, path)
    path.unlink()
    x = {
        key: reference["location"] if key == "location" else seeded.seeded_input(key, tuple(shape))
        for key, shape in spec["inputs"].items()
    }
    y = {key: keras.ops.convert_to_numpy(probs) for key, probs in model(x).items()}

    stride = int(reference["stride"])
    compared = [key for key in reference if key not in {"stride", "location"} and not key.endswith("_mean")]
    assert len(compared) == len(y)
    for key in compared:
        probs = y[key] if key in y else y["output"]  # single outputs bear the name of the reference's last layer
        np.testing.assert_allclose(probs[:, ::stride, ::stride], reference[key], rtol=0, atol=1e-4)
        np.testing.assert_allclose(probs.mean((0, 1, 2)), reference[f"{key}_mean"], rtol=0, atol=1e-4)


def test_inference_weights_without_deep_supervision_load(references: Path, seeded: ModuleType, tmp_path: Path) -> None:
    spec = json.loads((references / "keras2" / "glavitu2025.json").read_text())
    del spec["layers"]["deepsupervision"]
    seeded.write_keras2_h5(spec, tmp_path / "a.h5")
    assert checkpoints.inspect(tmp_path / "a.h5").parameters == spec["inference_parameters"]
    options = checkpoints.adapt_options("glavitu", {"variant": "2025"}, tmp_path / "a.h5")
    model = architectures.build("glavitu", {"optical": 6, "dem": 2}, **options)
    checkpoints.load_weights(model, tmp_path / "a.h5")
    kernel = model.get_layer("output").get_weights()[0]
    np.testing.assert_array_equal(kernel, seeded.seeded_tensor("output/output/kernel:0", kernel.shape, "keras"))


@pytest.mark.parametrize("name", TORCH)
def test_state_dict_gives_the_output_of_the_pytorch_model(
    name: str, references: Path, seeded: ModuleType, tmp_path: Path
) -> None:
    spec = json.loads((references / "torch" / f"{name}.json").read_text())
    reference = np.load(references / "torch" / f"{name}.npz")
    architecture, options, form = TORCH[name]
    path = tmp_path / f"{name}.weights"  # what a file is, its name does not say
    state_dict = seeded.torch_state_dict(spec)
    with path.open("wb") as file:
        if form == "npz":
            np.savez(file, **state_dict)
        else:
            file.write(safetensors.numpy.save(state_dict))

    _, channels, height, width = spec["input"]
    logits = reference["logits"].transpose(0, 2, 3, 1)
    model = architectures.build(architecture, {"optical": channels}, logits.shape[-1], (height, width), **options)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == spec["parameters"]
    checkpoints.load_weights(model, path)
    x = seeded.seeded_input("x", spec["input"]).transpose(0, 2, 3, 1)
    probs = keras.ops.convert_to_numpy(model({"optical": x})["output"])

    stride = int(reference["stride"])
    if architecture == "segformer":  # the reference's logits are of a quarter of the size
        logits = keras.layers.UpSampling2D(4, interpolation="bilinear")(logits)
        assert stride == 1
    expected = keras.ops.sigmoid(logits) if logits.shape[-1] == 1 else keras.ops.softmax(logits)
    np.testing.assert_allclose(probs[:, ::stride, ::stride], expected, rtol=0, atol=1e-4)
