"""The Mix Transformer: attention, and what neither shapes nor counts of weights tell."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from architectures import mit
from architectures.torch_layers import DropPath, module_path


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_the_mean_of_values_weighted_head_by_head(heads: int) -> None:
    rng = np.random.default_rng(heads)
    query = rng.normal(size=(2, 4, 6, 8))
    key, value = rng.normal(size=(2, 2, 2, 3, 8))
    answers = np.empty_like(query)
    for sample in range(2):
        for head in np.split(np.arange(8), heads):
            q, k, v = (x[sample, ..., head].reshape(len(head), -1).T for x in (query, key, value))
            weights = np.exp(q @ k.T / np.sqrt(len(head)))
            answers[sample, ..., head] = (weights @ v / weights.sum(-1, keepdims=True)).T.reshape(len(head), 4, 6)
    layer = mit.Attention(heads)
    ours = layer(*(x.astype("float32") for x in (query, key, value)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours), answers, rtol=0, atol=1e-5)
    assert mit.Attention.from_config(layer.get_config()).heads == heads


def test_attention_in_half_precision_sums_its_weights_in_float32() -> None:
    """Each of 4096 equal weights is too small for float16 to sum them to 1."""
    x = keras.Input((64, 64, 2))
    layer = mit.Attention(1, dtype="mixed_float16")
    model = keras.Model(x, layer(x, x, x))
    y = keras.ops.convert_to_numpy(model(np.ones((1, 64, 64, 2), "float32")))
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, 1.0, atol=2e-3)


@pytest.fixture(scope="module")
def encoder() -> keras.Model:
    """MiT-B0 of narrow maps as a U-Net has it."""
    x = keras.Input((32, 64, 3))
    return keras.Model(x, mit.encode("mit-b0", x, drop_path=0.3, width=4)[1:])


def test_epsilons_are_those_of_segmentation_models_pytorch(encoder: keras.Model) -> None:
    normalisations = [layer for layer in encoder.layers if isinstance(layer, keras.layers.LayerNormalization)]
    larger = {module_path(layer.name) for layer in normalisations if layer.epsilon == 1e-5}
    assert {layer.epsilon for layer in normalisations} == {1e-5, 1e-6}
    assert larger == {
        *(f"encoder.stages.{stage}.patch_embeddings.layer_norm" for stage in range(4)),
        *(
            f"encoder.stages.{stage}.blocks.{block}.attention.sequence_reduction.layer_norm"
            for stage in range(3)
            for block in range(2)
        ),
    }


def test_blocks_are_dropped_the_more_the_deeper_they_are(encoder: keras.Model) -> None:
    rates = [layer.rate for layer in encoder.layers if isinstance(layer, DropPath)]
    np.testing.assert_allclose(rates, np.repeat(np.linspace(0, 0.3, 8), 2))


def test_residuals_are_what_drop_path_drops(encoder: keras.Model) -> None:
    """Every branch ends in a linear map; with those at 0 each block returns its input, dropped or not."""
    weights = encoder.get_weights()
    for layer in encoder.layers:
        if layer.name.endswith(("-o_proj", "-fc2")):
            layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    x = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype("float32")
    for inferred, trained in zip(encoder(x), encoder(x, training=True), strict=True):
        np.testing.assert_array_equal(inferred, trained)
    encoder.set_weights(weights)
