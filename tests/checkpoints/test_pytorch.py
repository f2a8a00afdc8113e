"""State dicts of PyTorch load by name, whole or not at all, whatever the file is called and whoever wrote it."""

from __future__ import annotations

import functools
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import architectures
import checkpoints
from architectures.encoders import encode
from architectures.torch_layers import module_path
from checkpoints.torch_names import encoder_of
from console import UserError

StateDict = dict[str, np.ndarray]

# Small versions that together have every kind of layer: convolutions, depth-wise and transposed ones, linear maps,
# normalisations of batches and of channels.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("unet", {"width": 4, "steps": 1}),
    "himalaya": ("resunet", {"variant": "himalaya", "width": 4, "steps": 1}),
    "segformer": ("segformer", {"variant": "b0", "width": 8, "decoder_width": 8}),
}


def seeded(model: keras.Model, seed: int) -> keras.Model:
    """Give every variable random values of a size that leaves the probabilities off 0 and 1."""
    rng = np.random.default_rng(seed)
    shapes = [weight.shape for weight in model.get_weights()]
    model.set_weights(
        [
            rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape) if len(shape) > 1 else rng.uniform(0.5, 1, shape)
            for shape in shapes
        ]
    )
    return model


@functools.cache
def pair(name: str) -> tuple[keras.Model, keras.Model]:
    """Return a source and a target, of one architecture and with other weights; tests set the target's anew."""
    architecture, options = SMALL[name]
    first, second = (architectures.build(architecture, {"optical": 3, "dem": 2}, 3, 32, **options) for _ in range(2))
    return seeded(first, 1), seeded(second, 2)


@functools.cache
def encoder(name: str, bands: int = 3, prefix: str = "encoder") -> keras.Model:
    """Return an encoder alone, its layers named as in a network."""
    x = keras.Input((32, 32, bands))
    return seeded(keras.Model(x, encode(name, x, prefix)[-1], name="encoder_model"), 1)


def state_dict_of(model: keras.Model) -> StateDict:
    """Return the state dict that the PyTorch counterpart of `model` would have."""
    tensors: StateDict = {}
    for layer in model.layers:
        for weight in layer.weights:
            values = keras.ops.convert_to_numpy(weight)
            if isinstance(layer, keras.layers.DepthwiseConv2D) and weight.name == "kernel":
                values = np.moveaxis(values, (2, 3), (0, 1))  # h w c 1 → c 1 h w
            elif values.ndim == 4:
                values = np.moveaxis(values, (3, 2), (0, 1))  # h w in out → out in h w; transposed: h w out in
            elif values.ndim == 2:
                values = values.T
            leaf = {"kernel": "weight", "gamma": "weight", "moving_mean": "running_mean"}.get(weight.name, "bias")
            leaf = "running_var" if weight.name == "moving_variance" else leaf
            tensors[f"{module_path(layer.name)}.{leaf}"] = np.ascontiguousarray(values)
            if leaf == "running_var":
                tensors[f"{module_path(layer.name)}.num_batches_tracked"] = np.asarray(7, np.int64)
    return tensors


def write_npz(tensors: StateDict, path: Path) -> Path:
    with path.open("wb") as file:
        np.savez(file, **tensors)  # type: ignore[arg-type]
    return path


def write_safetensors(tensors: StateDict, path: Path) -> Path:
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


def write_torch(tensors: StateDict, path: Path, **options: Any) -> Path:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    torch.save({name: torch.from_numpy(values.copy()) for name, values in tensors.items()}, path, **options)
    return path


WRITERS: dict[str, Callable[[StateDict, Path], Path]] = {
    "npz": write_npz,
    "safetensors": write_safetensors,
    "torch": write_torch,
    "torch of before 1.6": functools.partial(write_torch, _use_new_zipfile_serialization=False),
}


def predict(model: keras.Model) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = {key: rng.normal(size=(1, *tensor.shape[1:])).astype("float32") for key, tensor in model.input.items()}
    return keras.ops.convert_to_numpy(model(x, training=False)["output"])


def assert_same_weights(weights: list[np.ndarray], model: keras.Model, tolerance: float = 0) -> None:
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance)


def refused(model: keras.Model, path: Path) -> str:
    """Return the message with which `path` is refused; the model keeps its weights."""
    before = model.get_weights()
    with pytest.raises(UserError) as refusal:
        checkpoints.load_weights(model, path)
    assert str(path) in str(refusal.value)
    assert_same_weights(before, model)
    return str(refusal.value)


# Whole networks


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_gives_the_prediction_of_the_model_that_it_is_of(name: str, tmp_path: Path) -> None:
    source, model = pair(name)
    checkpoints.load_weights(model, write_npz(state_dict_of(source), tmp_path / "a.h5"))
    assert_same_weights(source.get_weights(), model)
    np.testing.assert_array_equal(predict(source), predict(model))
    seeded(model, 2)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_files_are_told_apart_by_their_content(write: Callable[[StateDict, Path], Path], tmp_path: Path) -> None:
    source, model = pair("plain")
    for name in ("a", "a.npz", "a.safetensors", "a.pth", "a.weights.h5"):
        seeded(model, 2)
        path = write(state_dict_of(source), tmp_path / name)
        checkpoints.load_weights(model, path)
        assert_same_weights(source.get_weights(), model)
    checkpoint = checkpoints.inspect(path)
    assert (checkpoint.kind, checkpoint.parameters) == ("pytorch", source.count_params())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_numbers_of_other_precision_are_converted(dtype: Any, tmp_path: Path) -> None:
    source, model = pair("plain")
    tensors = {name: values.astype(dtype) for name, values in state_dict_of(source).items()}
    checkpoints.load_weights(model, write_safetensors(tensors, tmp_path / "a"))
    assert_same_weights(source.get_weights(), model, tolerance=2.0**-8)
    assert_same_weights([values.astype(dtype).astype("float32") for values in source.get_weights()], model)
    seeded(model, 2)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_left_out(prefix: str, tmp_path: Path) -> None:
    source, model = pair("plain")
    wrapped = {f"{prefix}{name}": values for name, values in state_dict_of(source).items()}
    checkpoints.load_weights(model, write_safetensors(wrapped, tmp_path / "a"))
    assert_same_weights(source.get_weights(), seeded(model, 1))
    seeded(model, 2)
    message = refused(model, write_safetensors({**wrapped, "mean": np.zeros(5, "f4")}, tmp_path / "a"))
    assert "without a place in the model (1): mean" in message and "missing" not in message


def test_all_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    source, model = pair("plain")
    tensors = state_dict_of(source)
    names = [name for name in tensors if name.endswith(".running_mean")]
    a, b = "encoder.blocks.0.conv1.0.weight", "encoder.blocks.1.conv2.0.weight"
    tensors[a], tensors[b] = tensors[b], tensors[a]
    for name in names:
        tensors[f"{name}2"] = tensors.pop(name)
    message = refused(model, write_npz(tensors, tmp_path / "a"))
    assert f"missing in the file ({len(names)}): {', '.join(names[:6])}" in message
    assert f"without a place in the model ({len(names)}): {names[0]}2" in message
    assert f"{a} 8×8×3×3 in the file, 4×5×3×3 here; {b} 4×5×3×3 in the file, 8×8×3×3 here" in message
    assert message.endswith("Nothing was loaded.")


def test_a_tensor_in_anothers_place_changes_the_prediction(tmp_path: Path) -> None:
    source, model = pair("plain")
    tensors = state_dict_of(source)
    a, b = (f"decoder.blocks.0.conv{number}.1.weight" for number in (1, 2))
    tensors[a], tensors[b] = tensors[b], tensors[a]
    checkpoints.load_weights(model, write_npz(tensors, tmp_path / "a"))
    assert np.abs(predict(model) - predict(source)).max() > 1e-3
    seeded(model, 2)


def test_other_classes_and_channels_are_told(tmp_path: Path) -> None:
    path = write_npz(state_dict_of(pair("plain")[0]), tmp_path / "a")
    build = functools.partial(architectures.build, "unet", patch_size=32, width=4, steps=1)
    classes = refused(build({"optical": 3, "dem": 2}, 2), path)
    assert "segmentation_head.0.weight 3×4×1×1 in the file, 2×4×1×1 here" in classes
    assert "tells 3 classes apart, this one 2" in classes
    assert "reads 5 channels, this one 6 (optical 6)" in refused(build({"optical": 6}, 3), path)
    assert "fusion=concatenate" in refused(build({"optical": 3, "dem": 2}, 3, fusion="branches", fusion_width=4), path)
    glavitu = architectures.build("resunet", {"optical": 5}, 3, 32, width=4, steps=1, fusion_width=4)
    assert "whose weights are Keras files" in refused(glavitu, path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    source, model = pair("plain")
    tensors = state_dict_of(source)
    tensors["segmentation_head.0.bias"][1] = value
    assert "segmentation_head.0.bias holds values that are not finite" in refused(
        model, write_npz(tensors, tmp_path / "a")
    )


def test_names_of_transformers_4_are_translated(tmp_path: Path) -> None:
    source, model = pair("segformer")
    tensors = renamed(state_dict_of(source), TRANSFORMERS_4)
    assert "segformer.encoder.block.0.1.attention.self.query.weight" in tensors
    checkpoints.load_weights(model, write_npz(tensors, tmp_path / "a"))
    assert_same_weights(source.get_weights(), model)
    seeded(model, 2)
    del tensors["segformer.encoder.block.0.1.attention.self.query.weight"]
    tensors["segformer.encoder.block.0.1.attention.self.key.weight"] = np.zeros((3, 3))
    message = refused(model, write_npz(tensors, tmp_path / "a"))
    assert "segformer.stages.0.blocks.1.attention.q_proj.weight" in message
    assert "segformer.encoder.block.0.1.attention.self.key.weight 3×3 in the file, 8×8 here" in message


# Files that are no state dict


class Booby:
    """An object that leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


class TestDamage:
    """Nothing is unpickled, and what a file is instead of a state dict is told."""

    def test_pickled_objects_are_refused_unread(self, tmp_path: Path) -> None:
        model, trap = pair("plain")[1], tmp_path / "trap"
        (tmp_path / "a").write_bytes(pickle.dumps({"weight": Booby(trap)}))
        assert "never unpickled" in refused(model, tmp_path / "a")
        with (tmp_path / "b").open("wb") as file:
            np.savez(file, a=np.zeros(2), b=np.array([Booby(trap)], dtype=object))
        assert "never unpickled" in refused(model, tmp_path / "b")
        assert not trap.exists()

    def test_a_file_of_torch_without_pytorch_is_answered_with_the_command_that_converts_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        model, path, trap = pair("plain")[1], tmp_path / "my file.pth", tmp_path / "trap"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(OrderedDict(), protocol=2))
            archive.writestr("archive/data/0", b"")
        for _ in range(2):
            message = refused(model, path)
            assert "PyTorch is not installed" in message and "pip install torch" in message
            command = next(line for line in message.splitlines() if line.strip().startswith("python -c"))
            assert f"'{path}' '{tmp_path / 'my file.safetensors'}'" in command and "weights_only=True" in command
            path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + pickle.dumps(Booby(trap)))  # before 1.6
        assert not trap.exists()

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_a_file_of_torch_that_holds_code_is_told_without_pytorch(
        self, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        path, trap = tmp_path / "a.pth", tmp_path / "trap"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps({"weight": Booby(trap)}, protocol=protocol))
        message = refused(pair("plain")[1], path)
        assert "holds more than tensors" in message and "open" in message and "never unpickled" in message
        assert not trap.exists()

    def test_programs_and_other_archives_are_told(self, tmp_path: Path) -> None:
        for names, told in (
            (["a/data.pkl", "a/constants.pkl", "a/code/m.py"], "TorchScript archive, which holds a program"),
            (["config.json", "model.weights.h5"], "zip archive without a state dict"),
        ):
            with zipfile.ZipFile(tmp_path / "a", "w") as archive:
                for name in names:
                    archive.writestr(name, b"{}")
            assert told in refused(pair("plain")[1], tmp_path / "a")

    @pytest.mark.parametrize("write", list(WRITERS.values())[:3], ids=list(WRITERS)[:3])
    def test_truncated_files(self, write: Callable[[StateDict, Path], Path], tmp_path: Path) -> None:
        source, model = pair("plain")
        path = write(state_dict_of(source), tmp_path / "a")
        content = path.read_bytes()
        for length in (100, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            assert "damaged, most likely cut off" in refused(model, path)

    def test_numbers_of_no_use_are_told(self, tmp_path: Path) -> None:
        source, model = pair("plain")
        tensors = state_dict_of(source)
        tensors["segmentation_head.0.bias"] = np.array(["a", "b", "c"])
        assert "expected real numbers" in refused(model, write_npz(tensors, tmp_path / "a"))
        assert "holds no tensors" in refused(model, write_npz({"a.num_batches_tracked": np.zeros(1)}, tmp_path / "a"))


def test_checkpoints_of_training_loops_are_opened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    source, model = pair("plain")
    tensors = {f"module.{name}": torch.from_numpy(values) for name, values in state_dict_of(source).items()}
    for container in ("state_dict", "model_state_dict", "model"):
        seeded(model, 2)
        torch.save({"epoch": 3, container: tensors, "optimizer": {"state": {}}}, tmp_path / "a")
        checkpoints.load_weights(model, tmp_path / "a")
        assert_same_weights(source.get_weights(), model)
    torch.save({"epoch": 3}, tmp_path / "a")
    assert "holds no tensors by name (at its top: epoch)" in refused(model, tmp_path / "a")
    torch.save(torch.nn.Conv2d(3, 4, 3), tmp_path / "a")
    assert "never unpickled" in refused(model, tmp_path / "a")


# Encoders alone

TRANSFORMERS_4 = (
    (r"stages\.(\d)\.patch_embeddings", r"encoder.patch_embeddings.\1"),
    (r"stages\.(\d)\.blocks\.(\d)", r"encoder.block.\1.\2"),
    (r"stages\.(\d)\.layer_norm", r"encoder.layer_norm.\1"),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
    (r"mlp\.fc", "mlp.dense"),
    (r"layernorm_before", "layer_norm_1"),
    (r"layernorm_after", "layer_norm_2"),
    (r"linear_projections", "linear_c"),
)
# The paper's code and segmentation_models_pytorch; stages count from 1, which `_original` sees to.
ORIGINAL = (
    (r"stages\.(\d)\.patch_embeddings\.layer_norm", r"patch_embed\1.norm"),
    (r"stages\.(\d)\.patch_embeddings", r"patch_embed\1"),
    (r"stages\.(\d)\.blocks\.(\d)", r"block\1.\2"),
    (r"stages\.(\d)\.layer_norm", r"norm\1"),
    (r"attention\.q_proj", "attn.q"),
    (r"attention\.o_proj", "attn.proj"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attn.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attn.norm"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
)


def renamed(tensors: StateDict, rules: tuple[tuple[str, str], ...]) -> StateDict:
    def name_of(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return {name_of(name): values for name, values in tensors.items()}


def original(tensors: StateDict) -> StateDict:
    """Return a MiT's state dict as the paper's code names it, keys and values in one tensor."""
    tensors = {re.sub(r"stages\.(\d)", lambda m: f"stages.{int(m[1]) + 1}", name): x for name, x in tensors.items()}
    tensors = renamed(tensors, ORIGINAL)
    for name in [name for name in tensors if ".attention.k_proj." in name]:
        both = [tensors.pop(name), tensors.pop(name.replace("k_proj", "v_proj"))]
        tensors[name.replace("attention.k_proj", "attn.kv")] = np.concatenate(both)
    return tensors


def bare(tensors: StateDict, prefix: str) -> StateDict:
    return {name.removeprefix(prefix): values for name, values in tensors.items()}


@pytest.mark.parametrize("bands", [1, 5])
def test_an_encoder_of_rgb_starts_one_of_any_bands(bands: int, tmp_path: Path) -> None:
    source, model = encoder("resnet18"), seeded(encoder("resnet18", bands), 2)
    tensors = bare(state_dict_of(source), "encoder.")
    tensors |= {"fc.weight": np.zeros((1000, 512), "f4"), "fc.bias": np.zeros(1000, "f4")}
    start = checkpoints.load_encoder(model, write_safetensors(tensors, tmp_path / "resnet18.pth"))
    assert start.encoder == "resnet18" and set(start.ignored) == {"fc.weight", "fc.bias"}
    assert len(start.taken) == len(model.weights) and f"{bands} band" in f"{start} 3 bands"
    first = tensors["conv1.weight"]
    expected = np.stack([first[:, band % 3] * 3 / bands for band in range(bands)], axis=1)
    if bands == 1:
        expected = first[:, 0:1] + first[:, 1:2] + first[:, 2:3]
    np.testing.assert_allclose(state_dict_of(model)["encoder.conv1.weight"], expected, rtol=1e-6)
    for ours, theirs in zip(model.layers, source.layers, strict=True):
        if ours.name != "encoder-conv1":
            np.testing.assert_equal(ours.get_weights(), theirs.get_weights())
    seeded(model, 1)


@pytest.mark.parametrize("form", ["transformers 5", "transformers 4", "bare transformers 4", "original", "smp"])
def test_encoders_of_mix_transformers_load_under_all_their_names(form: str, tmp_path: Path) -> None:
    source, model = pair("segformer")
    tensors = {name: x for name, x in state_dict_of(source).items() if name.startswith("segformer.")}
    others: Mapping[str, np.ndarray] = {"head.weight": np.zeros((3, 4)), "head.bias": np.zeros(3)}
    if form == "transformers 5":
        others = {"classifier.weight": np.zeros((3, 4)), "decode_head.linear_fuse.weight": np.zeros(2)}
    elif form.endswith("transformers 4"):
        tensors = renamed(tensors, TRANSFORMERS_4)
        if form.startswith("bare"):
            tensors, others = bare(tensors, "segformer."), {}
    else:
        tensors = original(bare(tensors, "segformer."))
        assert "block2.1.attn.kv.weight" in tensors and "norm4.bias" in tensors
    if form == "smp":
        tensors = {f"encoder.{name}": x for name, x in tensors.items()}
        others = {"decoder.blocks.0.conv1.0.weight": np.zeros(2), "segmentation_head.0.bias": np.zeros(2)}
    before = {layer.name: layer.get_weights() for layer in model.layers}
    start = checkpoints.load_encoder(model, write_npz({**tensors, **others}, tmp_path / "a"))
    assert set(start.ignored) == set(others)
    for ours, theirs in zip(model.layers, source.layers, strict=True):
        expected = theirs.get_weights() if ours.name.startswith("segformer-") else before[ours.name]
        np.testing.assert_equal(ours.get_weights(), expected)
    seeded(model, 2)


def test_an_efficientnet_loads_without_its_classifier(tmp_path: Path) -> None:
    source = encoder("efficientnet-b0")
    weights = source.get_weights()
    tensors = bare(state_dict_of(source), "encoder.") | {
        "_fc.weight": np.zeros((1000, 1280)),
        "_fc.bias": np.zeros(1000),
    }
    start = checkpoints.load_encoder(seeded(source, 2), write_npz(tensors, tmp_path / "a"))
    assert start.encoder == "efficientnet-b0" and set(start.ignored) == {"_fc.weight", "_fc.bias"}
    assert_same_weights(weights, source)


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "efficientnet-b2", "mit-b2"])
def test_encoders_are_recognised_by_names_and_shapes(name: str) -> None:
    x = keras.Input((64, 64, 5))
    model = keras.Model(x, encode(name, x)[-1])
    shapes = {key: tuple(values.shape) for key, values in checkpoints.torch_names.parameters(model).items()}
    assert encoder_of({key.removeprefix("encoder."): shape for key, shape in shapes.items()}) == name


def test_another_encoder_is_told_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = encoder("resnet18")
    tensors = bare(state_dict_of(model), "encoder.")
    # A third block in the second stage, as in a ResNet of other depth; four of them are those of a known one.
    deeper = tensors | {f"layer2.{block}.conv1.weight": np.zeros((128, 128, 3, 3), "f4") for block in (2, 3)}
    resnet34 = deeper | {
        f"layer{stage}.{block}.conv1.weight": np.zeros(1, "f4")
        for stage, blocks in ((1, 3), (3, 6), (4, 3))
        for block in range(2, blocks)
    }
    for stored, told in (
        (deeper, "a ResNet of 2, 4, 2, 2 basic blocks, which the zoo lacks"),
        (resnet34, "the encoder resnet34; the model encoder_model has resnet18: set the architecture's option"),
        ({"anything.weight": np.zeros(2)}, "no encoder that is known, but anything.weight"),
        ({name: x for name, x in tensors.items() if name != "bn1.bias"}, "missing in the file (1): bn1.bias"),
        (tensors | {"conv1.weight": np.zeros((64, 4, 7, 7))}, "conv1.weight 64×4×7×7 in the file, 64×3×7×7 here"),
    ):
        before = model.get_weights()
        with pytest.raises(UserError, match=re.escape(told)):
            checkpoints.load_encoder(model, write_npz(stored, tmp_path / "a"))
        assert_same_weights(before, model)
    whole = write_npz({f"encoder.{name}": x for name, x in resnet34.items()}, tmp_path / "a")
    assert "seems to hold the encoder resnet34" in refused(model, whole)


def test_models_without_such_an_encoder_and_keras_files_are_refused(tmp_path: Path) -> None:
    path = write_npz(bare(state_dict_of(encoder("resnet18")), "encoder."), tmp_path / "a")
    for name in ("plain", "himalaya"):
        with pytest.raises(UserError, match="has no encoder of a classification network"):
            checkpoints.load_encoder(pair(name)[1], path)
    assert "an encoder alone" in refused(encoder("resnet18"), path)
    encoder("resnet18").save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(UserError, match="is a Keras file"):
        checkpoints.load_encoder(encoder("resnet18"), tmp_path / "a.weights.h5")


# What a file tells of its model


@pytest.mark.parametrize("fusion", ["concatenate", "branches"])
def test_channels_classes_and_fusion_are_read_off_the_file(fusion: str, tmp_path: Path) -> None:
    options = {"width": 4, "steps": 1, "fusion": fusion} | ({"fusion_width": 4} if fusion == "branches" else {})
    source = architectures.build("unet", {"optical": 4, "dem": 2}, 3, 32, **options)
    source.save_weights(tmp_path / "a.weights.h5")
    given = {**options, "fusion": "branches"}
    paths = [tmp_path / "a.weights.h5"]
    if fusion == "concatenate":
        paths.append(write_npz(state_dict_of(source), tmp_path / "a"))
        del given["fusion"]
    for path in paths:
        blueprint = checkpoints.blueprint_of("unet", given, path, 1, 64)
        assert (blueprint.num_classes, blueprint.options["fusion"]) == (3, fusion)
        assert blueprint.channels == ((6,) if fusion == "concatenate" else (4, 2))
        assert blueprint.concatenated == (fusion == "concatenate") and blueprint.patch_size == 64
