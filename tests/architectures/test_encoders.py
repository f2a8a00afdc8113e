"""The encoders, against what segmentation_models_pytorch's are, and the layers that encoders alone have."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from architectures import encoders
from architectures.efficientnet import IdleConvolution, IdleNormalisation
from architectures.torch_layers import DropPath, convolution

SIZE = (64, 96)


class Row(NamedTuple):
    """What the reference of segmentation_models_pytorch has for inputs of three channels."""

    trainable: int
    widths: tuple[int | None, ...]  # of the maps at strides 2, 4, 8, 16, 32
    # EfficientNet alone: the last block before each map from stride 4 on, and the strides to which a convolution goes
    # that is padded alike on all sides.
    blocks: tuple[int, ...] = ()
    alike: tuple[int, ...] = ()


TABLE = {
    "resnet18": Row(11_176_512, (64, 64, 128, 256, 512)),
    "resnet34": Row(21_284_672, (64, 64, 128, 256, 512)),
    "resnet50": Row(23_508_032, (64, 256, 512, 1024, 2048)),
    "resnet101": Row(42_500_160, (64, 256, 512, 1024, 2048)),
    "efficientnet-b0": Row(4_007_548, (32, 24, 40, 112, 320), (2, 4, 8, 15), ()),
    "efficientnet-b1": Row(6_513_184, (32, 24, 40, 112, 320), (4, 7, 15, 22), (32,)),
    "efficientnet-b2": Row(7_700_994, (32, 24, 48, 120, 352), (4, 7, 15, 22), (8, 16, 32)),
    "efficientnet-b3": Row(10_696_232, (40, 32, 48, 136, 384), (4, 7, 17, 25), (8, 32)),
    "efficientnet-b4": Row(17_548_616, (48, 32, 56, 160, 448), (5, 9, 21, 31), (8,)),
    "efficientnet-b5": Row(28_340_784, (48, 40, 64, 176, 512), (7, 12, 26, 38), (16, 32)),
    "mit-b0": Row(3_319_392, (None, 32, 64, 160, 256)),
    "mit-b1": Row(13_151_424, (None, 64, 128, 320, 512)),
    "mit-b2": Row(24_196_288, (None, 64, 128, 320, 512)),
    "mit-b3": Row(44_072_128, (None, 64, 128, 320, 512)),
    "mit-b4": Row(60_842_688, (None, 64, 128, 320, 512)),
    "mit-b5": Row(81_443_008, (None, 64, 128, 320, 512)),
}


class Built(NamedTuple):
    """An encoder as a model of its maps, None for a stride without one."""

    name: str
    row: Row
    inputs: Any
    maps: list[Any]
    model: keras.Model


@pytest.fixture(scope="module", params=TABLE)
def built(request: pytest.FixtureRequest) -> Iterator[Built]:
    """Build one encoder of the table for the tests that look at it, then let go of it."""
    inputs = keras.Input((*SIZE, 3))
    maps = encoders.encode(request.param, inputs)
    model = keras.Model(inputs, [m for m in maps if m is not None])
    yield Built(request.param, TABLE[request.param], inputs, maps, model)
    keras.utils.clear_session()


def test_the_table_has_every_encoder() -> None:
    assert set(TABLE) == set(typing.get_args(encoders.Encoder))


class TestEncoders:
    """What holds for each encoder of the table."""

    def test_parameters_are_the_references(self, built: Built) -> None:
        assert sum(int(np.prod(variable.shape)) for variable in built.model.trainable_weights) == built.row.trainable

    def test_maps_have_the_references_widths_and_halve_the_input_each(self, built: Built) -> None:
        expected = [
            (None, SIZE[0] // stride, SIZE[1] // stride, width) if width else None
            for stride, width in zip((2, 4, 8, 16, 32), built.row.widths, strict=True)
        ]
        assert [m if m is None else tuple(m.shape) for m in built.maps] == expected

    def test_names_of_layers_with_weights_begin_with_the_prefix(self, built: Built) -> None:
        assert all(layer.name.startswith("encoder-") for layer in built.model.layers if layer.weights)


@pytest.mark.parametrize("built", [name for name, row in TABLE.items() if row.blocks], indirect=True)
class TestEfficientNet:
    """What an EfficientNet's graph must have for a checkpoint to give its output, and for a fresh start."""

    def test_maps_come_after_the_references_blocks(self, built: Built) -> None:
        for m, last in zip(built.maps[1:], built.row.blocks, strict=True):
            names = [layer.name.split("-") for layer in keras.Model(built.inputs, m).layers]
            assert {int(name[2]) for name in names if name[1:2] == ["_blocks"]} == set(range(last + 1))

    def test_strided_convolutions_pad_as_the_references_image_needs(self, built: Built) -> None:
        """A window of ones over ones counts the pixels that it covers: the fewer, the more padding there is."""
        layers = {layer.name: layer for layer in built.model.layers}
        strided = [layer for layer in layers.values() if getattr(layer, "strides", None) == (2, 2)]
        alike = []
        for stride, layer in zip((2, 4, 8, 16, 32), strided, strict=True):
            window, side = layer.kernel_size[0], 16
            kernel = layer.get_weights()
            layer.set_weights([np.ones_like(kernel[0])])
            x = np.ones((1, side, side, kernel[0].shape[2]), "float32")
            padding = layers.get(f"{layer.name}-padding")
            counts = keras.ops.convert_to_numpy(layer(padding(x) if padding else x))[0, :, :, 0]
            layer.set_weights(kernel)
            assert counts.shape == (side // 2, side // 2)
            np.testing.assert_array_equal(counts, counts.T)
            near, far = (round(window - counts[row, side // 4] / counts.max() * window) for row in (0, -1))
            # Where the padding is alike, windows that step by two over an even number of pixels leave its last unused.
            assert (near, far) in {(window // 2, window // 2 - 1), (window // 2 - 1, window // 2)}
            alike += [stride] if near > far else []
        assert tuple(alike) == built.row.alike

    def test_blocks_are_dropped_the_more_the_deeper_they_are(self, built: Built) -> None:
        count = built.row.blocks[-1] + 1
        rates = {int(x.name.split("-")[2]): x.rate for x in built.model.layers if isinstance(x, DropPath)}
        assert len(rates) == count - 7  # each stage's first block has no shortcut
        assert rates == pytest.approx({number: 0.2 * number / count for number in rates})

    def test_weights_start_as_pytorchs(self, built: Built) -> None:
        for layer in built.model.layers:
            if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D) and "_conv_head" not in layer.name:
                fan_in = np.prod(layer.kernel.shape[:2])
                fan_in *= 1 if isinstance(layer, keras.layers.DepthwiseConv2D) else layer.kernel.shape[2]
                for values in layer.get_weights():
                    assert 0.7 < np.abs(values).max() * np.sqrt(fan_in) <= 1 + 1e-6 or values.size < 20, layer.name


@pytest.mark.parametrize("built", ["efficientnet-b0"], indirect=True)
def test_every_weight_of_an_efficientnet_has_a_gradient_and_the_idle_ones_0(built: Built) -> None:
    rng = np.random.default_rng(0)
    with tf.GradientTape() as tape:
        maps = built.model(rng.normal(size=(2, *SIZE, 3)).astype("float32"), training=True)
        # Random weights in the sum: what a batch normalisation returns sums to a constant.
        loss = sum(tf.reduce_sum(m * rng.normal(size=m.shape)) for m in maps)
    weights = built.model.trainable_weights
    for variable, gradient in zip(weights, tape.gradient(loss, [v.value for v in weights]), strict=True):
        assert gradient is not None, variable.path
        idle = variable.path.split("/")[0] in {"encoder-_conv_head", "encoder-_bn1"}
        size = np.abs(gradient.numpy()).max()
        assert np.isfinite(size) and (size == 0) == idle, variable.path


class TestIdleLayers:
    """Layers that have weights and do nothing."""

    @pytest.fixture(params=["float32", "mixed_float16"])
    def model(self, request: pytest.FixtureRequest) -> keras.Model:
        """Two idle layers under a policy, with weights that would change any output."""
        x = keras.Input((64, 64, 3))
        y = IdleConvolution(5, 1, use_bias=False, dtype=request.param, name="convolution")(x)
        y = IdleNormalisation(5, dtype=request.param, name="normalisation")(y)
        model = keras.Model(x, y)
        model.set_weights([np.full_like(w, 2.0) for w in model.get_weights()])
        return model

    def test_output_is_the_input_in_inference_and_in_training(self, model: keras.Model) -> None:
        x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float16").astype("float32")
        for training in (False, True):
            y = model(x, training=training)
            assert keras.backend.standardize_dtype(y.dtype) == model.layers[-1].compute_dtype
            np.testing.assert_array_equal(y, x)
        assert all((w == 2.0).all() for w in model.get_weights())

    def test_weights_are_those_of_the_layers_that_they_stand_for(self, model: keras.Model) -> None:
        shapes = {variable.path: tuple(variable.shape) for variable in model.weights}
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        assert shapes == {"convolution/kernel": (1, 1, 3, 5)} | {f"normalisation/{name}": (5,) for name in names}

    def test_gradients_are_0_where_their_sum_in_half_precision_overflows(self, model: keras.Model) -> None:
        with tf.GradientTape() as tape:
            y = model(np.ones((2, 64, 64, 3), "float32"), training=True)
            loss = 1e4 * tf.reduce_sum(tf.cast(y, "float32"))
        for gradient in tape.gradient(loss, [variable.value for variable in model.trainable_weights]):
            np.testing.assert_array_equal(gradient, 0.0)

    def test_saved_model_has_the_same_weights(self, model: keras.Model, tmp_path: Path) -> None:
        model.save(tmp_path / "a.keras")
        other = keras.models.load_model(tmp_path / "a.keras")
        for layer in model.layers:
            assert other.get_layer(layer.name).get_config() == layer.get_config()
        for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


class TestDropPath:
    """Stochastic depth."""

    @pytest.mark.parametrize("shape", [(5, 3), (2, 2, 3)])
    def test_samples_are_dropped_whole_and_the_mean_stays(self, shape: tuple[int, ...]) -> None:
        keras.utils.set_random_seed(0)
        count, rate = 20_000, 0.3
        y = keras.ops.convert_to_numpy(DropPath(rate)(np.ones((count, *shape), "float32"), training=True))
        samples = y.reshape(count, -1)
        np.testing.assert_array_equal(samples, np.broadcast_to(samples[:, :1], samples.shape))
        np.testing.assert_allclose(np.unique(samples), [0, 1 / (1 - rate)], rtol=1e-6)
        error = np.sqrt(rate / (1 - rate) / count)
        assert abs(samples[:, 0].mean() - 1) < 4 * error

    def test_each_call_in_training_drops_others(self) -> None:
        layer, x = DropPath(0.5), np.ones((64, 1, 1, 1), "float32")
        first, second = (keras.ops.convert_to_numpy(layer(x, training=True)) for _ in range(2))
        assert (first != second).any()

    @pytest.mark.parametrize("rate, training", [(0.9, False), (0.0, True)])
    def test_inference_and_rate_0_leave_the_input(self, rate: float, training: bool) -> None:
        x = np.random.default_rng(0).normal(size=(64, 2, 2, 3)).astype("float32")
        np.testing.assert_array_equal(DropPath(rate)(x, training=training), x)

    def test_layer_from_config_drops_at_the_same_rate(self) -> None:
        layer = DropPath(0.25, name="a")
        assert DropPath.from_config(layer.get_config()).get_config() == layer.get_config()

    @pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
    def test_impossible_rate_is_named(self, rate: float) -> None:
        with pytest.raises(ValueError, match=str(rate)):
            DropPath(rate)


def test_convolutions_of_one_shape_start_with_values_of_their_own() -> None:
    x = keras.Input((4, 4, 2))
    model = keras.Model(x, [convolution(x, 8, 3, "a"), convolution(x, 8, 3, "b")])
    first, second = (model.get_layer(name).get_weights()[0] for name in "ab")
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.5
