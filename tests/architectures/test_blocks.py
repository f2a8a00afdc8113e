"""The blocks against their formulas in numpy, and through their configurations."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from scipy.special import erf

from architectures import blocks

# Every layer that the architectures are made of, with arguments that differ from the defaults, and its input's shape.
LAYERS: dict[str, tuple[dict[str, Any], Any]] = {
    "AbsentToZero": ({}, (2, 8, 8, 3)),
    "PresentNormalization": ({"epsilon": 1e-2}, (2, 8, 8, 3)),
    "DoubleConvolution": ({"width": 4, "slope": 0.2, "dropout": 0.3}, (2, 8, 8, 3)),
    "Fusion": (
        {"modalities": 2, "width": 4, "slope": 0.2, "dropout": 0.3, "excite": True},
        [(2, 8, 8, 3), (2, 8, 8, 2)],
    ),
    "ResidualBlock": ({"width": 4, "slope": 0.2, "dropout": 0.3}, (2, 8, 8, 3)),
    "UpConvolution": ({"width": 4}, (2, 8, 8, 3)),
    "PatchEmbedding": ({"patch": 4, "width": 6}, (2, 8, 12, 3)),
    "PositionEmbedding": ({}, (2, 6, 4)),
    "TransformerBlock": ({"width": 8, "mlp": 12, "heads": 2, "dropout": 0.3}, (2, 6, 8)),
    "LocationEncoding": ({"width": 4, "dropout": 0.3}, (2, 5)),
}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def call(layer: keras.layers.Layer, x: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(layer(x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)


def leaky(x: np.ndarray, slope: float) -> np.ndarray:
    return np.where(x > 0, x, slope * x)


def test_the_table_has_every_layer() -> None:
    layers = {
        name
        for name, value in vars(blocks).items()
        if isinstance(value, type) and issubclass(value, keras.layers.Layer) and value is not blocks.Block
    }
    assert set(LAYERS) == layers


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_round_trips_through_its_config(name: str) -> None:
    arguments, shapes = LAYERS[name]
    x = [random(*shape) for shape in shapes] if isinstance(shapes, list) else random(*shapes)
    layer = getattr(blocks, name)(**arguments, name="a", dtype="mixed_bfloat16")
    expected = call(layer, x)
    other = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(other) is type(layer)
    assert other.get_config() == layer.get_config()
    assert {key: other.get_config()[key] for key in arguments} == arguments
    other(x)
    other.set_weights(layer.get_weights())
    np.testing.assert_array_equal(call(other, x), expected)


@pytest.mark.parametrize("slope", [0.2, 0.3])
def test_double_convolution_normalises_with_epsilon_1e_3_and_leaks_with_its_slope(slope: float) -> None:
    layer = blocks.DoubleConvolution(3, slope)
    x = random(2, 5, 5, 3)
    layer(x)
    identity = np.zeros((3, 3, 3, 3), "float32")
    identity[1, 1] = np.eye(3)
    for convolution in (layer.convolution_1, layer.convolution_2):
        convolution.kernel.assign(identity)
    expected = x
    for _ in range(2):
        expected = leaky(expected / np.sqrt(1 + 1e-3), slope)
    np.testing.assert_allclose(call(layer, x), expected, atol=1e-6)


def test_excitation_scales_each_branch_by_a_gate_of_its_mean() -> None:
    plain, excited = (blocks.Fusion(2, 4, excite=excite) for excite in (False, True))
    x = [random(2, 6, 6, 3), random(2, 6, 6, 2, seed=1)]
    plain(x)
    excited(x)
    expected = np.zeros((2, 6, 6, 4))
    for i, (branch, twin) in enumerate(zip(excited.branches, plain.branches, strict=True)):
        twin.set_weights(branch.get_weights())
        y = call(branch, x[i])
        first, bias = excited.squeezes[i].get_weights()
        second, bias_2 = excited.excitations[i].get_weights()
        hidden = leaky(y.mean((1, 2), keepdims=True) @ first + bias, 0.2)
        expected += y / (1 + np.exp(-(hidden @ second + bias_2)))
    np.testing.assert_allclose(call(excited, x), expected, atol=1e-5)
    assert np.abs(call(plain, x) - expected).max() > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("excite", [False, True])
def test_an_absent_modality_is_left_out_sample_by_sample(excite: bool, dtype: str) -> None:
    """The sum is that of the branches of what is there, and the absent one's weights do not count."""
    layer = blocks.Fusion(3, 4, excite=excite, dtype=dtype)
    x = [random(4, 6, 6, 3), random(4, 6, 6, 2, seed=1), random(4, 6, 6, 1, seed=2)]
    layer(x)
    for i, weight in enumerate(layer.weights):
        weight.assign(weight + 0.3 * random(*weight.shape, seed=i) ** 2)
    absent = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]], bool)  # samples × modalities
    given = [np.where(absent[:, i, None, None, None], np.nan, one).astype("float32") for i, one in enumerate(x)]
    maps = []
    for i, one in enumerate(x):
        y = layer.branches[i](one)
        if excite:
            gate = layer.squeezes[i](keras.ops.mean(y, axis=(1, 2), keepdims=True))
            y = y * layer.excitations[i](keras.ops.leaky_relu(gate, negative_slope=0.2))
        maps.append(keras.ops.convert_to_numpy(y))
    fused = call(layer, given)
    np.testing.assert_array_equal(fused[0], maps[0][0] + maps[1][0] + maps[2][0])
    np.testing.assert_array_equal(fused[1], maps[0][1] + maps[2][1])
    np.testing.assert_array_equal(fused[2], maps[1][2])
    assert not fused[3].any()
    of_the_second = [part[1] for part in (layer.branches, layer.squeezes, layer.excitations) if part]
    for weight in (weight for one in of_the_second for weight in one.weights):
        weight.assign(weight * 2 + 1)
    changed = call(layer, given)
    np.testing.assert_array_equal(changed[1], fused[1])
    assert np.abs(changed[0] - fused[0]).max() > 1e-2 and np.abs(changed[2] - fused[2]).max() > 1e-2


def test_zeros_are_values_and_a_gap_in_a_modality_is_zeros() -> None:
    layer = blocks.Fusion(2, 4)
    x = [random(1, 6, 6, 3), np.zeros((1, 6, 6, 2), "float32")]
    layer(x)
    for weight in layer.branches[1].weights:
        weight.assign(weight + 0.5)
    expected = call(layer, x)
    assert np.abs(expected - call(layer.branches[0], x[0])).max() > 1e-2
    gaps = [x[0], np.full_like(x[1], np.nan)]
    gaps[1][0, 2, 3, 1] = 0
    np.testing.assert_array_equal(call(layer, gaps), expected)
    single = blocks.Fusion(1, 4)
    assert np.isfinite(call(single, x[:1])).all() and np.isnan(call(single, [x[0] * np.nan])).all()


def test_normalisation_learns_of_the_samples_that_are_present() -> None:
    layer, reference = blocks.PresentNormalization(), keras.layers.BatchNormalization()
    x = 3 * random(5, 6, 7, 3) + np.arange(5, dtype="float32")[:, None, None, None]
    present = np.array([1, 0, 1, 1, 0], bool)
    y = keras.ops.convert_to_numpy(layer(x, training=True, present=present[:, None, None, None]))
    expected = keras.ops.convert_to_numpy(reference(x[present], training=True))
    np.testing.assert_allclose(y[present], expected, atol=1e-5)
    for ours, theirs in zip(layer.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    before = layer.get_weights()
    nobody = keras.ops.convert_to_numpy(layer(x, training=True, present=np.zeros((5, 1, 1, 1), bool)))
    for ours, theirs in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(nobody, call(layer, x), atol=1e-5)
    layer.trainable = False
    np.testing.assert_array_equal(layer(x, training=True, present=present[:, None, None, None]), call(layer, x))


def test_patches_are_flattened_row_column_channel() -> None:
    layer = blocks.PatchEmbedding(2, 12)
    x = random(1, 4, 6, 3)
    layer(x)
    layer.projection.set_weights([np.eye(12), np.zeros(12)])
    expected = [x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel() for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(call(layer, x)[0], expected)


def test_transformer_block_follows_its_formula() -> None:
    """Layer normalisation with epsilon 1e-3, the exact GELU after both linear maps of the MLP."""
    layer = blocks.TransformerBlock(8, 12, 2)
    x = 3 * random(2, 6, 8)
    layer(x)
    layer.set_weights([random(*w.shape, seed=i) * 0.7 for i, w in enumerate(layer.get_weights())])
    for normalisation in (layer.normalisation_1, layer.normalisation_2):
        normalisation.set_weights([np.ones(8), np.zeros(8)])
    y = normalised(x)
    q, k, v = (
        np.einsum("btc,chd->bthd", y, dense.kernel) + np.asarray(dense.bias)
        for dense in (layer.attention.query_dense, layer.attention.key_dense, layer.attention.value_dense)
    )
    scores = np.exp(np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(4))
    mixed = np.einsum("bhts,bshd->bthd", scores / scores.sum(-1, keepdims=True), v)
    kernel, bias = layer.attention.output_dense.get_weights()
    y = x + np.einsum("bthd,hdc->btc", mixed, kernel) + bias
    (w1, b1), (w2, b2) = layer.linear_1.get_weights(), layer.linear_2.get_weights()
    expected = y + gelu(gelu(normalised(y) @ w1 + b1) @ w2 + b2)
    np.testing.assert_allclose(call(layer, x), expected, rtol=1e-5, atol=1e-4)


def test_location_leaks_with_slope_0_3() -> None:
    layer = blocks.LocationEncoding(4)
    x = random(3, 4)
    layer(x)
    for linear in (layer.linear_1, layer.linear_2):
        linear.set_weights([np.eye(4), np.zeros(4)])
    expected = x
    for _ in range(2):
        expected = leaky(expected / np.sqrt(1 + 1e-3), 0.3)
    np.testing.assert_allclose(call(layer, x), expected, atol=1e-6)


def test_up_convolution_repeats_pixels_and_has_no_activation() -> None:
    layer = blocks.UpConvolution(2)
    x = random(1, 3, 3, 2)
    layer(x)
    kernel = np.zeros((2, 2, 2, 2), "float32")
    kernel[0, 0] = np.eye(2)  # even kernels are centred on their first pixel
    layer.convolution.kernel.assign(kernel)
    expected = x.repeat(2, 1).repeat(2, 2) / np.sqrt(1 + 1e-3)
    np.testing.assert_allclose(call(layer, x), expected, atol=1e-6)
