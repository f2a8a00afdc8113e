"""SegFormer's decoder: maps fused at their own sizes, probabilities of logits at full size."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import architectures
from architectures.segformer import LinearFuse, bilinear

SHAPES = [(8, 16, 3), (4, 8, 4), (2, 4, 5), (1, 2, 6)]


@pytest.mark.parametrize("use_bias", [True, False])
def test_maps_are_fused_as_if_brought_up_and_concatenated_from_the_last_to_the_first(use_bias: bool) -> None:
    inputs = [keras.Input(shape) for shape in SHAPES]
    layer = LinearFuse(7, use_bias=use_bias, bias_initializer="ones")
    up = [keras.layers.UpSampling2D(8 // x.shape[1], interpolation="bilinear")(x) for x in inputs]
    convolution = keras.layers.Conv2D(7, 1, use_bias=use_bias)
    model = keras.Model(inputs, [layer(inputs), convolution(keras.layers.Concatenate()(up[::-1]))])
    convolution.set_weights(layer.get_weights())
    rng = np.random.default_rng(0)
    ours, reference = model([rng.normal(size=(2, *shape)).astype("float32") for shape in SHAPES])
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"kernel_size": 3}, {"strides": 2}])
def test_fuse_with_what_interpolation_does_not_commute_with_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="LinearFuse needs"):
        LinearFuse(7, **options)


@pytest.mark.parametrize("size, factor", [(1, 4), (2, 2), (5, 8)])
def test_interpolation_keeps_a_slope_between_the_outer_centres(size: int, factor: int) -> None:
    """A slope of 1 a pixel is read at pixels' centres; outside of the outer centres it is flat."""
    centres = (np.arange(size * factor) + 0.5) / factor
    np.testing.assert_allclose(
        bilinear(size, size * factor) @ (np.arange(size) + 0.5), np.clip(centres, 0.5, size - 0.5), rtol=1e-6
    )


@pytest.mark.parametrize("num_classes", [1, 3])
def test_probabilities_are_of_logits_brought_to_full_size(num_classes: int) -> None:
    model = architectures.build("segformer", {"optical": 3}, num_classes, (32, 64), width=4, decoder_width=4)
    classifier = model.get_layer("decode_head-classifier")
    classifier.set_weights([20 * w for w in classifier.get_weights()])  # so that softmax and interpolation differ
    x = {"optical": np.random.default_rng(0).normal(size=(1, 32, 64, 3)).astype("float32")}
    logits, probs = keras.Model(model.inputs, [classifier.output, model.output["output"]])(x)
    logits = np.einsum("yh,xw,nhwc->nyxc", bilinear(8, 32), bilinear(16, 64), keras.ops.convert_to_numpy(logits))
    powers = np.exp(logits)
    expected = powers / (1 + powers) if num_classes == 1 else powers / powers.sum(-1, keepdims=True)
    assert expected.std() > 0.01
    np.testing.assert_allclose(keras.ops.convert_to_numpy(probs), expected, rtol=0, atol=1e-5)
