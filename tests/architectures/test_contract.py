"""What every architecture of the registry promises, on small versions of the real graphs."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import architectures
from architectures import REGISTRY, blocks, options_of, unet, unetplusplus
from architectures.segformer import LinearFuse
from console import UserError

REPOSITORY = Path(__file__).parents[2]
INPUTS = {"optical": 3, "dem": 2}
SMALL = {
    "width": 8,
    "fusion_width": 8,
    "vit_width": 8,
    "decoder_width": 8,
    "mlp": 16,
    "depth": 1,
    "heads": 2,
    "steps": 2,
}
# Every architecture as it is by default, but with the smallest of encoders, and variants that differ in their graph.
# Where dropout is off by default it is on here; before a layer of few channels it must be strong to be sure to show.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in REGISTRY},
    "glavitu 2025": ("glavitu", {"variant": "2025", "location_size": 4}),
    "resunet himalaya": ("resunet", {"variant": "himalaya", "dropout": 0.5}),
    # A block that is dropped for all of a small batch leaves its weights without a gradient.
    "segformer": ("segformer", {"drop_path": 0.0, "dropout": 0.5}),
    "unet": ("unet", {"dropout": 0.5}),
    "unet resnet18": ("unet", {"encoder": "resnet18", "fusion": "branches", "fusion_width": 8, "dropout": 0.5}),
    "unetplusplus": ("unetplusplus", {"encoder": "resnet18", "deep_supervision": True, "dropout": 0.5}),
}
CONCATENATED = ("resunet himalaya", "segformer", "unet", "unetplusplus")
OUTPUTS = {
    "glavitu": {"output", "deepsupervision"},
    "unetplusplus": {"output", "deepsupervision_1", "deepsupervision_2", "deepsupervision_3"},
}
Patch = int | tuple[int, int]
NORMALISATION = keras.layers.BatchNormalization
# Layers that make constants of constants.
LINEAR = (keras.layers.UpSampling2D, keras.layers.Concatenate, keras.layers.Add, keras.layers.Dense, LinearFuse)


def arguments(case: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of an architecture and the options of its small version."""
    name, own = CASES[case]
    chosen = {**options_of(name), **own, **options}
    needs = getattr(REGISTRY[name], "ONLY_WITH", {})
    small = {
        key: value
        for key, value in SMALL.items()
        if key in chosen and (key not in needs or any(chosen[other] in v for other, v in needs[key].items()))
    }
    return name, {**small, **own, **options}


def small(case: str, num_classes: int = 2, patch_size: Patch | None = None, **options: Any) -> keras.Model:
    """Build the small version with weights that leave no layer without effect."""
    name, options = arguments(case, **options)
    model = architectures.build(name, INPUTS, num_classes, patch_size or patch_of(case), **options)
    scatter(model)
    return model


def patch_of(case: str) -> int:
    """Return a patch of which a map's last 2×2 pixels at least are left: one a patch are 0 once normalised."""
    name, options = arguments(case)
    return max(32, 2 * REGISTRY[name].stride(**options))


@functools.cache
def standard(case: str, num_classes: int = 2) -> keras.Model:
    """Return one small version for all tests that leave it as it is."""
    return small(case, num_classes)


def scatter(model: keras.Model, seed: int = 0) -> None:
    """Give every variable random values of a useful size."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if variable.name == "moving_variance":
            variable.assign(rng.uniform(0.7, 1.3, shape))
        elif variable.name in {"gamma", "beta", "bias", "moving_mean"}:
            variable.assign(rng.normal(float(variable.name == "gamma"), 0.2, shape))
        else:
            fan_in = np.prod(shape[:-1]) if len(shape) != 3 else shape[0]
            variable.assign(rng.standard_normal(shape, np.float32) / np.sqrt(fan_in))


def examples(model: keras.Model, seed: int = 1, batch: int = 2) -> dict[str, np.ndarray]:
    """Return random inputs for `model`."""
    rng = np.random.default_rng(seed)
    return {tensor.name: rng.normal(size=(batch, *tensor.shape[1:])).astype("float32") for tensor in model.inputs}


def outputs(model: keras.Model, inputs: dict[str, np.ndarray], training: bool = False) -> dict[str, np.ndarray]:
    """Return the model's outputs as arrays."""
    return {key: keras.ops.convert_to_numpy(value) for key, value in model(inputs, training=training).items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    """Compare two dicts of outputs."""
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=0, atol=tolerance, err_msg=key)


@pytest.fixture
def policy() -> Iterator[Any]:
    """Return the function that sets the precision policy, which is put back afterwards."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("case", CASES)
class TestContract:
    """The promises of `architectures.build`."""

    @pytest.mark.parametrize("num_classes", [1, 4])
    def test_outputs_are_probabilities_of_the_inputs_size(self, case: str, num_classes: int) -> None:
        model = standard(case, 1) if num_classes == 1 else small(case, num_classes, (32, 64))
        height, width = (patch_of(case), patch_of(case)) if num_classes == 1 else (32, 64)
        y = outputs(model, examples(model))
        assert set(y) == OUTPUTS.get(CASES[case][0], {"output"})
        for probs in y.values():
            assert probs.shape == (2, height, width, num_classes)
            assert probs.dtype == np.float32
            assert (probs >= 0).all() and (probs <= 1).all()
            if num_classes > 1:
                np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-5)
            else:
                assert probs.std() > 1e-3  # a softmax over one class is 1 everywhere

    def test_every_weight_has_a_gradient(self, case: str) -> None:
        model = standard(case)
        rng = np.random.default_rng(2)
        with tf.GradientTape() as tape:
            y = model(examples(model), training=True)
            # Random weights in the sum: probabilities alone sum to a constant.
            loss = sum(tf.reduce_sum(probs * rng.normal(size=probs.shape)) for probs in y.values())
        weights = model.trainable_weights
        gradients = tape.gradient(loss, [variable.value for variable in weights])
        without = {id(variable) for variable in without_effect(model)}
        for variable, gradient in zip(weights, gradients, strict=True):
            assert gradient is not None, variable.path
            size = float(tf.reduce_max(tf.abs(gradient)))
            assert np.isfinite(size), variable.path
            assert (size < 1e-3) if id(variable) in without else (size > 1e-3), (variable.path, size)
        scatter(model)  # the call in training moved the moving statistics

    def test_a_modality_may_be_absent_from_a_sample(self, case: str) -> None:
        model = standard(case)
        x = examples(model)
        present = outputs(model, x)
        x["dem"][1] = np.nan
        mixed = outputs(model, x)
        zeros = outputs(model, {**x, "dem": np.nan_to_num(x["dem"])})
        for key, probs in mixed.items():
            assert np.isfinite(probs).all()
            np.testing.assert_allclose(probs[0], present[key][0], atol=1e-6)
            assert np.abs(probs[1] - present[key][1]).max() > 1e-3
            left_out = case not in CONCATENATED  # else it is 0
            assert (np.abs(probs[1] - zeros[key][1]).max() > 1e-4) == left_out
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(y[..., 0]) for y in model(x, training=True).values())
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_weights])
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert all(np.isfinite(weight).all() for weight in model.get_weights())
        scatter(model)  # the call in training moved the moving statistics

    def test_dropout_is_on_in_training_only(self, case: str) -> None:
        model = standard(case)
        x = examples(model)
        for key, first in outputs(model, x, training=True).items():
            assert np.abs(first - outputs(model, x, training=True)[key]).max() > 1e-3
        scatter(model)
        assert_same(outputs(model, x), outputs(model, x), tolerance=0)

    def test_saved_weights_predict_the_same(self, case: str, tmp_path: Path) -> None:
        model = standard(case)
        model.save_weights(tmp_path / "a.weights.h5")
        name, options = arguments(case)
        other = architectures.build(name, INPUTS, 2, patch_of(case), **options)
        other.load_weights(tmp_path / "a.weights.h5")
        assert_same(outputs(other, examples(model)), outputs(model, examples(model)))

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_saved_model_predicts_the_same(self, case: str, tmp_path: Path) -> None:
        model = standard(case)
        model.save(tmp_path / "a.keras")
        other = keras.models.load_model(tmp_path / "a.keras")
        assert_same(outputs(other, examples(model)), outputs(model, examples(model)))

    def test_model_from_config_predicts_the_same_with_the_same_weights(self, case: str) -> None:
        model = standard(case)
        other = keras.Model.from_config(model.get_config())
        assert other.get_config() == model.get_config()
        other.set_weights(model.get_weights())
        assert_same(outputs(other, examples(model)), outputs(model, examples(model)))

    def test_names_of_weights_have_no_dots(self, case: str) -> None:
        """Keras's PyTorch backend keeps weights by their path in a dict that takes none."""
        assert not [weight.path for weight in standard(case).weights if "." in weight.path]

    def test_inputs_go_by_name(self, case: str) -> None:
        model = standard(case)
        x = examples(model)
        assert_same(outputs(model, dict(reversed(x.items()))), outputs(model, x), tolerance=0)


# bfloat16 has float32's range, so that float16 is the harder: of the other, one network of each kind of layers.
@pytest.mark.parametrize(
    ("case", "precision"),
    [
        *((case, "mixed_float16") for case in CASES),
        *((case, "mixed_bfloat16") for case in ("resunet", "segformer", "unet")),
    ],
)
def test_probabilities_are_float32_under_mixed_precision(case: str, precision: str, policy: Any) -> None:
    expected = outputs(standard(case), examples(standard(case)))
    policy(precision)
    model = small(case)
    assert next(layer for layer in model.layers if layer.weights).compute_dtype == precision.removeprefix("mixed_")
    assert {variable.dtype for variable in model.weights} == {"float32"}
    for key, probs in outputs(model, examples(model)).items():
        assert probs.dtype == np.float32
        np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-5)
        assert 0 < np.abs(probs - expected[key]).mean() < 0.05


@pytest.mark.parametrize("case", [*sorted(REGISTRY.keys() - set(CONCATENATED)), "unet resnet18"])
def test_order_of_branches_is_the_callers(case: str) -> None:
    name, options = arguments(case)
    for inputs in (INPUTS, dict(sorted(INPUTS.items()))):
        model = standard(case) if inputs is INPUTS else architectures.build(name, inputs, 2, 32, **options)
        kernels = [w for w in model.get_layer("fusion").trainable_weights if len(w.shape) == 4]
        assert [kernel.shape[2] for kernel in kernels[::2]] == list(inputs.values())


@pytest.mark.parametrize("case", CONCATENATED)
def test_order_of_concatenated_modalities_is_the_callers(case: str) -> None:
    name, options = arguments(case)
    model = standard(case)
    swapped = architectures.build(name, dict(reversed(INPUTS.items())), 2, patch_of(case), **options)
    first, *others = model.get_weights()
    x, (channels, _) = examples(model), INPUTS.values()
    swapped.set_weights([first, *others])
    assert np.abs(outputs(swapped, x)["output"] - outputs(model, x)["output"]).max() > 1e-2
    swapped.set_weights([np.concatenate([first[:, :, channels:], first[:, :, :channels]], axis=2), *others])
    assert_same(outputs(swapped, x), outputs(model, x), tolerance=1e-5)


@pytest.mark.parametrize("channels", [1, 18])
@pytest.mark.parametrize("case", ["resunet himalaya", "unet", "unet resnet18"])
def test_one_modality_may_have_any_number_of_channels(case: str, channels: int) -> None:
    name, options = arguments(case)
    model = architectures.build(name, {"optical": channels}, 1, 32, **options)
    assert outputs(model, examples(model))["output"].shape == (2, 32, 32, 1)


@pytest.mark.parametrize("case", [*REGISTRY, "unet resnet18"])
def test_patch_size_is_answered_with_the_nearest_that_works(case: str) -> None:
    name, options = arguments(case)
    stride = REGISTRY[name].stride(**options)
    for patch in (3, 37, 58, (32, 41)):
        with pytest.raises(UserError, match="nearest") as refusal:
            architectures.build(name, INPUTS, 2, patch, **options)
        advised = [int(side) for side in re.findall(r"\d+", str(refusal.value).split("nearest")[1])]
        height, width = advised[0], advised[-1]
        for side, nearest in zip((patch, patch) if isinstance(patch, int) else patch, (height, width), strict=True):
            assert nearest == stride or abs(side - nearest) <= stride / 2
    model = architectures.build(name, INPUTS, 2, (height, width), **options)
    assert model.output["output"].shape[1:3] == (height, width)


def test_glavitu_without_deep_supervision_has_one_output() -> None:
    model, bare = standard("glavitu"), small("glavitu", deep_supervision=False)
    assert set(bare.output) == {"output"}
    assert bare.count_params() == keras.Model(model.input, {"output": model.output["output"]}).count_params()


def test_deep_supervision_of_unetplusplus_leaves_its_output_as_it_is() -> None:
    model, plain = standard("unetplusplus"), small("unetplusplus", deep_supervision=False)
    assert set(plain.output) == {"output"}
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights() if layer.weights else [])
    x = examples(model)
    assert_same(outputs(plain, x), {"output": outputs(model, x)["output"]})


def maps_without_stride_2(encoder: str, x: Any) -> list[Any]:
    """Encode (N, H, W, C) by pooling and a convolution each, of widths that no other encoder has."""
    pooled = [keras.layers.AveragePooling2D(step)(x) for step in (4, 8, 16, 32)]
    return [None, *(keras.layers.Conv2D(3 + 2 * i, 1)(y) for i, y in enumerate(pooled))]


def test_unet_works_with_an_encoder_that_has_no_map_at_stride_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "encode", maps_without_stride_2)
    model = architectures.build("unet", INPUTS, 2, 64, encoder="resnet18")
    kernels = [model.get_layer(f"decoder-blocks-{i}-conv1-0").kernel.shape[2:] for i in range(5)]
    assert kernels == [(9 + 7, 256), (256 + 5, 128), (128 + 3, 64), (64, 32), (32, 16)]
    assert model.output["output"].shape == (None, 64, 64, 2)


def test_unetplusplus_refuses_an_encoder_that_has_no_map_at_stride_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unetplusplus, "encode", maps_without_stride_2)
    with pytest.raises(UserError, match="stride 2.* unet"):
        architectures.build("unetplusplus", INPUTS, 2, 64, encoder="resnet18")


@pytest.mark.parametrize("variant, share", [("glavitu", 0.1), ("himalaya", 0.0)])
def test_dropout_of_resunet_is_its_variants_unless_given(variant: str, share: float) -> None:
    def shares(**options: Any) -> set[float]:
        model = architectures.build("resunet", INPUTS, 2, 2, variant=variant, width=2, steps=1, **options)
        return {layer.rate for layer in sublayers(model) if isinstance(layer, keras.layers.SpatialDropout2D)}

    assert (shares(), shares(dropout=None), shares(dropout=0.3)) == ({share}, {share}, {0.3})


def without_effect(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that no output depends on, so that their gradient is 0.

    A batch normalisation takes away any constant that a layer before it adds; the softmax over the keys takes away
    what a bias of the keys adds to all of them.
    """

    def lost(layer: keras.layers.Layer) -> bool:
        """Return whether all that is made of the layer's map is normalised before a constant in it changes."""
        readers = [node.operation for node in layer._outbound_nodes]
        return bool(readers) and all(
            isinstance(r, NORMALISATION) or (isinstance(r, LINEAR) and lost(r)) for r in readers
        )

    found = []
    for layer in sublayers(model):
        if isinstance(layer, blocks.DoubleConvolution):
            found += [layer.convolution_1.bias, layer.convolution_2.bias]
        elif isinstance(layer, blocks.LocationEncoding):
            found += [layer.linear_1.bias, layer.linear_2.bias]
        elif isinstance(layer, keras.layers.MultiHeadAttention):
            found += [w for w in layer.weights if w.path.endswith("/key/bias")]
        elif layer.name.endswith("-k_proj"):
            found.append(layer.bias)
        elif getattr(layer, "bias", None) is not None and lost(layer):
            found.append(layer.bias)
        elif isinstance(layer, keras.layers.LayerNormalization) and lost(layer):
            found.append(layer.beta)
    return found


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return `layer` and all layers in it."""
    if isinstance(layer, keras.Model):
        members = list(layer.layers)
    else:
        values = [vars(layer)[key] for key in vars(layer) if not key.startswith("_")]
        members = [m for v in values for m in (v if isinstance(v, list) else [v])]
    inner = [sublayers(member) for member in members if isinstance(member, keras.layers.Layer)]
    return [layer, *(member for group in inner for member in group)]


IMPOSSIBLE = [
    ("num_classes", 0),
    ("num_classes", 2.0),
    ("dropout", 1.0),
    ("dropout", -0.1),
    ("dropout", float("nan")),
    ("width", 0),
    ("width", 8.5),
    ("decoder_width", 0),
    ("drop_path", 1.0),
    ("depth", 0),
    ("heads", 5),
    ("steps", 0),
    ("variant", "2024"),
    ("encoder", "resnet35"),
    ("fusion", "sum"),
    ("deep_supervision", "no"),
    ("location_size", -1),
]


class TestRefusals:
    """What can't be built is answered with what can."""

    def test_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(UserError) as refusal:
            architectures.build("glavito", INPUTS)
        assert all(name in str(refusal.value) for name in ["glavito", *REGISTRY])

    @pytest.mark.parametrize("name", REGISTRY)
    def test_unknown_option_lists_the_known(self, name: str) -> None:
        with pytest.raises(UserError) as refusal:
            architectures.build(name, INPUTS, widht=8)
        assert all(option in str(refusal.value) for option in ["widht", *options_of(name)])

    @pytest.mark.parametrize(
        "name, key, value",
        [
            (name, key, value)
            for name in REGISTRY
            for key, value in IMPOSSIBLE
            if key == "num_classes" or key in options_of(name)
        ],
    )
    def test_impossible_value_is_named(self, name: str, key: str, value: Any) -> None:
        with pytest.raises(UserError) as refusal:
            architectures.build(name, INPUTS, patch_size=32, **{key: value})
        assert key in str(refusal.value) and str(value) in str(refusal.value)

    @pytest.mark.parametrize("name", REGISTRY)
    @pytest.mark.parametrize("inputs", [{}, {"optical": 0}, {"optical": 6, "location": 12}])
    def test_impossible_inputs_are_named(self, name: str, inputs: dict[str, int]) -> None:
        with pytest.raises(UserError, match="modalit"):
            architectures.build(name, inputs, patch_size=32)

    @pytest.mark.parametrize(
        "name, options, message",
        [
            ("glavitu", {"location_size": 4}, "location_size has a meaning only with variant 2025"),
            ("resunet", {"fusion": "branches"}, "fusion has a meaning only with variant himalaya"),
            ("resunet", {"variant": "himalaya", "fusion_width": 8}, "only with variant glavitu or fusion branches"),
            ("unet", {"encoder": "resnet18", "width": 16}, "width has a meaning only with encoder none"),
            ("unet", {"encoder": "resnet18", "steps": 5}, "steps has a meaning only with encoder none"),
            ("unet", {"fusion_width": 8}, "fusion_width has a meaning only with fusion branches"),
            ("segformer", {"fusion_width": 8}, "fusion_width has a meaning only with fusion branches"),
            ("unetplusplus", {"fusion_width": 8}, "fusion_width has a meaning only with fusion branches"),
        ],
    )
    def test_option_that_would_be_ignored_is_named(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            architectures.build(name, INPUTS, patch_size=32, **options)

    def test_variant_may_come_as_a_number(self) -> None:
        """YAML and the command line read 2025 as a number."""
        name, options = arguments("glavitu", variant=2025, location_size=4)
        assert "location" in architectures.build(name, INPUTS, patch_size=32, **options).input


JAX = """
import sys
import keras, numpy as np
import architectures, checkpoints
from architectures import blocks
assert keras.backend.backend() == "jax"

def kinds(kind):
    for sub in kind.__subclasses__():
        yield sub
        yield from kinds(sub)

# All weights are loaded: random ones before would cost more than the rest, a compiled program for each of their shapes.
for kind in kinds(keras.initializers.Initializer):
    kind.__call__ = lambda self, shape, dtype=None, **_: np.zeros(shape, dtype or "float32")
folder, cases, inputs = sys.argv[1], *map(eval, sys.argv[2:])
for number, (name, options, patch) in enumerate(cases):
    model = architectures.build(name, inputs, 2, patch, **options)
    checkpoints.load_weights(model, f"{folder}/{number}.weights.h5")
    y = model.predict_on_batch(dict(np.load(f"{folder}/{number}.x.npz")))
    np.savez(f"{folder}/{number}.y.npz", **y)
# A training step of the fusion alone: of a whole network, it takes minutes to compile.
tensors = blocks.modality_inputs(inputs, (8, 8))
model = keras.Model(tensors, blocks.fuse(tensors, 2, 0.1))
model.compile("sgd", "mse")
x = {name: np.ones((2, 8, 8, count), "float32") for name, count in inputs.items()}
x["dem"][1] = np.nan
assert np.isfinite(model.train_on_batch(x, np.zeros((2, 8, 8, 2), "float32")))
assert all(np.isfinite(weight).all() for weight in model.get_weights())
"""


def test_same_weights_predict_the_same_on_jax(tmp_path: Path) -> None:
    cases = [case for case in CASES if case != "unet resnet18"]  # each of its layers is in another case
    expected = {}
    for number, case in enumerate(cases):
        model = standard(case)
        x: dict[str, Any] = examples(model)
        x["dem"][1] = np.nan  # absent
        model.save_weights(tmp_path / f"{number}.weights.h5")
        np.savez(tmp_path / f"{number}.x.npz", **x)
        expected[number] = outputs(model, x)
    subprocess.run(
        [sys.executable, "-c", JAX, str(tmp_path), repr([(*arguments(c), patch_of(c)) for c in cases]), repr(INPUTS)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(REPOSITORY),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiling takes longer than computing here
        },
        check=True,
        timeout=900,
    )
    for number, y in expected.items():
        assert_same(dict(np.load(tmp_path / f"{number}.y.npz")), y, tolerance=1e-4)
