"""Files of both kinds load whole or not at all, whatever they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import architectures
import checkpoints
from architectures import REGISTRY, options_of
from checkpoints.matching import addresses
from console import UserError

INPUTS = {"optical": 3, "dem": 2, "sar": 2}
CONCATENATING = ("unet", "unetplusplus", "segformer")  # what reads all modalities at once; its fusion has no width
SMALL = {
    "width": 8,
    "fusion_width": 8,
    "vit_width": 8,
    "decoder_width": 8,
    "mlp": 16,
    "depth": 1,
    "heads": 2,
    "steps": 1,
}


@functools.cache
def build(
    name: str, inputs: tuple[tuple[str, int], ...], num_classes: int, patch_size: int, seed: int | None, **options: Any
) -> keras.Model:
    """Build a small version, once for each `seed`."""
    unused = {"fusion_width"} if name in CONCATENATING else set()
    options = {key: value for key, value in SMALL.items() if key in set(options_of(name)) - unused} | options
    return architectures.build(name, dict(inputs), num_classes, patch_size, **options)


def small(
    name: str = "glavitu",
    inputs: dict[str, int] | None = None,
    num_classes: int = 2,
    patch_size: int = 32,
    seed: int | None = None,
    **options: Any,
) -> keras.Model:
    """Return a small version, the same one each time; with a `seed`, every variable of it has random values anew."""
    model = build(name, tuple((inputs or INPUTS).items()), num_classes, patch_size, seed, **options)
    if seed is not None:
        rng = np.random.default_rng(seed)
        shapes = [weight.shape for weight in model.get_weights()]
        model.set_weights(
            [
                rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape) if len(shape) > 1 else rng.uniform(0.5, 1, shape)
                for shape in shapes
            ]
        )
    return model


def assert_same_weights(weights: list[np.ndarray], model: keras.Model) -> None:
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def predict(model: keras.Model) -> np.ndarray:
    """Return the model's probabilities for fixed random inputs."""
    x = {
        key: np.random.default_rng(ord(key[0])).normal(size=(1, *tensor.shape[1:])).astype("float32")
        for key, tensor in model.input.items()
    }
    return keras.ops.convert_to_numpy(model(x, training=False)["output"])


def write_keras2(model: keras.Model, path: Path, whole: bool = False, parts: bool = False) -> Path:
    """Write `model` as Keras 2 does, under names that tell nothing.

    Args:
        model: What to write.
        path: Where to.
        whole: Whether to write what saving a whole model gives.
        parts: Whether to cut the lists of names into parts, as Keras 2 does with long ones.
    """

    def name_list(group: h5py.Group, key: str, names: list[str]) -> None:
        encoded = np.array([name.encode() for name in names], dtype="S64")
        if parts:
            for number, part in enumerate(np.array_split(encoded, 12)):
                group.attrs[f"{key}{number}"] = part
        else:
            group.attrs[key] = encoded

    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.10.0"
        root = file.create_group("model_weights") if whole else file
        if whole:
            file.attrs["model_config"] = b"{}"
            file.create_dataset("optimizer_weights/Adam/iter:0", data=7)
        name_list(root, "layer_names", [f"z{99 - number}" for number, _ in enumerate(model.layers)])
        for number, layer in enumerate(model.layers):
            statistics = [weight for weight in layer.weights if weight.name.startswith("moving_")]
            rest = [weight for weight in layer.weights if not weight.name.startswith("moving_")]
            group = root.create_group(f"z{99 - number}")
            names = [f"sublayer_{i % 7}/tensor_{50 - i}:0" for i in range(len(rest + statistics))]
            name_list(group, "weight_names", names)
            for name, weight in zip(names, rest + statistics, strict=True):
                group[name] = keras.ops.convert_to_numpy(weight)
        root.create_group("top_level_model_weights").attrs["weight_names"] = np.array([], dtype="S1")
    return path


def write_keras3(model: keras.Model, path: Path) -> Path:
    """Write `model` with Keras, which insists on the ending, under the name `path`."""
    model.save_weights(path.with_name("keras3.weights.h5"))
    return path.with_name("keras3.weights.h5").rename(path)


Writer = Callable[[keras.Model, Path], Path]
WRITERS: dict[str, Writer] = {"keras2": write_keras2, "keras3": write_keras3}
both_kinds = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


# U-Net++ has the kinds of layers that U-Net has, and far more of them.
@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"unetplusplus"}))
@both_kinds
def test_file_loads_under_any_name(name: str, write: Writer, tmp_path: Path) -> None:
    model, other = small(name, seed=1), small(name, seed=2)
    before = other.get_weights()
    for filename in ("a.weights.h5", "a.h5", "a"):
        other.set_weights(before)
        checkpoints.load_weights(other, write(model, tmp_path / filename))
        assert_same_weights(model.get_weights(), other)
    np.testing.assert_array_equal(predict(model), predict(other))


@pytest.mark.parametrize("form", [{"whole": True}, {"parts": True}], ids=["whole model", "names in parts"])
def test_forms_of_keras2_files_load(form: dict[str, bool], tmp_path: Path) -> None:
    model, other = small(seed=1), small(seed=2)
    checkpoints.load_weights(other, write_keras2(model, tmp_path / "a.h5", **form))
    assert_same_weights(model.get_weights(), other)


@pytest.mark.parametrize(
    "name, options",
    [*((name, {}) for name in REGISTRY), ("glavitu", {"variant": "2025", "location_size": 4})],
)
def test_addresses_are_those_of_keras(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = small(name, seed=1, **options)
    found = addresses(model)
    with h5py.File(write_keras3(model, tmp_path / "a.h5")) as file:
        stored: list[str] = []
        file.visititems(lambda key, item: stored.append(key) if isinstance(item, h5py.Dataset) else None)
        assert set(found) == set(stored)
        for address, variable in found.items():
            np.testing.assert_array_equal(file[address], keras.ops.convert_to_numpy(variable))


def test_weights_of_a_compiled_model_load_without_its_optimizer(tmp_path: Path) -> None:
    model, other = small("unet", seed=3), small("unet", seed=2)  # no other test has this model, which is compiled
    model.compile("adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    path = write_keras3(model, tmp_path / "a.weights.h5")
    with h5py.File(path) as file:
        assert "optimizer" in file
    checkpoints.load_weights(other, path)
    assert_same_weights(model.get_weights(), other)


@both_kinds
def test_swapped_modalities_of_equal_width_change_the_output(write: Writer, tmp_path: Path) -> None:
    model = small(seed=1)
    path = write(model, tmp_path / "a.h5")
    swapped = small(inputs={"optical": 3, "sar": 2, "dem": 2})
    checkpoints.load_weights(swapped, path)
    assert np.abs(predict(swapped) - predict(model)).max() > 1e-3


# Case: (what the file holds, what the model is, what the message has to tell).
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "architecture": ({"name": "resunet"}, {}, ["setr"]),
    "classes": ({"num_classes": 3}, {}, ["8×3", "8×2", "tells 3 classes apart, this one 2"]),
    "classes of setr": (
        {"name": "setr", "num_classes": 3},
        {"name": "setr"},
        ["1×1×8×3", "1×1×8×2", "tells 3 classes apart, this one 2"],
    ),
    "channels": (
        {"inputs": {"optical": 3, "dem": 2, "sar": 4}},
        {},
        ["3×3×4×8", "3×3×2×8", "3, 2, 4 channels", "optical 3, dem 2, sar 2"],
    ),
    "a modality less": (
        {"inputs": {"optical": 3, "dem": 2}},
        {},
        ["of 3, 2 channels", "optical 3, dem 2, sar 2"],
    ),
    "a modality more": (
        {"inputs": {**INPUTS, "thermal": 1}},
        {},
        ["3, 2, 2, 1 channels", "optical 3, dem 2, sar 2"],
    ),
    "variant 2025": ({"variant": "2025"}, {}, ["variant=2025"]),
    "variant 2023": ({}, {"variant": "2025"}, ["variant=2023"]),
    "a location more": (
        {"variant": "2025", "location_size": 4},
        {"variant": "2025"},
        ["4×8", "location_size=4"],
    ),
    "a location less": (
        {"variant": "2025"},
        {"variant": "2025", "location_size": 4},
        ["4×8", "location_size=0"],
    ),
    "another location": (
        {"variant": "2025", "location_size": 12},
        {"variant": "2025", "location_size": 4},
        ["12×8", "4×8", "location_size=12"],
    ),
    "a head less": ({"deep_supervision": False}, {}, ["8×2", "deep_supervision=false"]),
    "a head more": ({}, {"deep_supervision": False}, ["8×2", "deep_supervision=true"]),
    "patch size": ({"patch_size": 64}, {}, ["16×8", "4×8", "patches of 64×64 pixels, this model for 32×32"]),
    "depth": ({"depth": 2}, {}, ["setr", "the options that the file was trained with"]),
    "width": ({"width": 16}, {}, ["3×3×3×16", "3×3×3×8", "the options that the file was trained with"]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_file_of_another_model_is_refused_and_nothing_is_loaded(case: str, tmp_path: Path) -> None:
    stored, wanted, told = OTHERS[case]
    source, model = small(**stored, seed=1), small(**wanted, seed=2)
    before = model.get_weights()
    for write in WRITERS.values():
        path = write(source, tmp_path / "a.h5")
        with pytest.raises(UserError) as refusal:
            checkpoints.load_weights(model, path)
        message = str(refusal.value)
        for words in [str(path), "another model", "first difference", model.name, "Nothing was loaded", *told]:
            assert words in message, message
        assert_same_weights(before, model)


@both_kinds
def test_values_that_are_not_finite_are_refused(write: Writer, tmp_path: Path) -> None:
    model = small(seed=2)
    before = model.get_weights()
    for value in (np.nan, np.inf):
        weights = [weight.copy() for weight in before]
        weights[-1][0] = value
        model.set_weights(weights)
        path = write(model, tmp_path / "a.h5")
        model.set_weights(before)
        with pytest.raises(UserError, match="not finite"):
            checkpoints.load_weights(model, path)
        assert_same_weights(before, model)


class TestDamage:
    """Files that are no weights files are told by what they are."""

    @both_kinds
    def test_truncated_file(self, write: Writer, tmp_path: Path) -> None:
        model = small("resunet")
        path = write(model, tmp_path / "a.h5")
        content = path.read_bytes()
        for length in (100, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(UserError, match="damaged, most likely cut off"):
                checkpoints.load_weights(model, path)

    @pytest.mark.parametrize(
        "content, told",
        [
            (b"", "is empty"),
            (b"epoch,loss\n1,0.5\n", "neither an HDF5 file nor a PyTorch state dict"),
            (b"PK\x03\x04" + b"\0" * 100, "zip archive"),
            (b"\n<!DOCTYPE html><html></html>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ],
    )
    def test_not_hdf5(self, content: bytes, told: str, tmp_path: Path) -> None:
        path = tmp_path / "a.weights.h5"
        path.write_bytes(content)
        with pytest.raises(UserError, match=told) as refusal:
            checkpoints.inspect(path)
        assert str(path) in str(refusal.value) and "expected a weights file" in str(refusal.value)

    def test_hdf5_of_another_purpose(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["ALP-1/optical"] = np.zeros((4, 4, 6))
        with pytest.raises(UserError, match="without Keras weights .*ALP-1"):
            checkpoints.inspect(tmp_path / "a.h5")

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="does not exist"):
            checkpoints.inspect(tmp_path / "a.h5")
        with pytest.raises(UserError, match="is a folder"):
            checkpoints.inspect(tmp_path)

    def test_listed_tensor_that_is_missing(self, tmp_path: Path) -> None:
        path = write_keras2(small(), tmp_path / "a.h5")
        with h5py.File(path, "a") as file:
            group = file["z90"]  # the tenth of ten layers, the head
            del group[group.attrs["weight_names"][0].decode()]
        with pytest.raises(UserError, match="damaged"):
            checkpoints.inspect(path)

    def test_text_in_place_of_numbers(self, tmp_path: Path) -> None:
        model = small()
        path = write_keras3(model, tmp_path / "a.h5")
        with h5py.File(path, "a") as file:
            del file["layers/dense/vars/1"]
            file["layers/dense/vars/1"] = np.array([b"a", b"b"])
        with pytest.raises(UserError, match="expected real numbers"):
            checkpoints.load_weights(model, path)


@both_kinds
def test_options_are_adapted_to_the_heads_of_the_file(write: Writer, tmp_path: Path) -> None:
    for deep in (True, False):
        path = write(small(deep_supervision=deep), tmp_path / "a.h5")
        for given in ({}, {"deep_supervision": True}, {"deep_supervision": False, "depth": 1}):
            expected = {**given, "deep_supervision": deep}
            assert checkpoints.adapt_options("glavitu", given, path) == expected
    assert checkpoints.adapt_options("setr", {"depth": 1}, path) == {"depth": 1}


def test_inspection_tells_kind_and_parameters(tmp_path: Path) -> None:
    model = small()
    for kind, write in WRITERS.items():
        checkpoint = checkpoints.inspect(write(model, tmp_path / "a.h5"))
        assert (checkpoint.kind, checkpoint.parameters) == (kind, model.count_params())
        assert len(checkpoint.tensors) == len(model.weights)
