"""EfficientNet encoders.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
https://arxiv.org/abs/1905.11946, with the names and the padding of the PyTorch port in segmentation_models_pytorch.

    (N, H, W, C) ─ 3×3/2 32 ─ seven stages of blocks, widths 16, 24, 40, 80, 112, 192, 320 (B0) ─ idle head
    strides:           2            2   4   8  16   16   32   32

A block is [1×1 convolution to 6 times the width (not in the first stage) → depth-wise 3×3 or 5×5 convolution →
squeeze-and-excitation → 1×1 convolution], the convolutions without biases and each normalised, the first two followed
by swish; its input is added where the shape stays. B1 to B5 multiply widths and numbers of blocks.

What decides whether a checkpoint gives its output:

- The maps are the stem's and those at the ends of stages 2, 3, 5 and 7, but B0's third is that of its *first* block of
  stage 5.
- Squeeze-and-excitation narrows to a quarter of the block's *input*, not of the expanded width.
- Padding is that of the square image which a network was scaled for (224 to 456 pixels), whatever it is given: where
  that image has an even side, a strided convolution pads the far sides more, as Keras's "same"; where it is odd,
  alike on all sides.
- Normalisation has ε 1e-3 and momentum 0.99.
- The classifier's 1×1 convolution and normalisation remain in the encoder, although they feed nothing.

Kernels and biases start as PyTorch's convolutions do, uniform within ±1/√(inputs of an output value). In training, the
branch of block i of n is dropped with probability 0.2 i/n.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from architectures.blocks import register
from architectures.torch_layers import DropPath, layer_name, normalisation

# Kernel, stride of the first block, expansion, width and number of blocks of each stage of B0.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280
# Factors of the widths and of the numbers of blocks, and the side in pixels of the image that the network is made for.
SCALES = {
    "efficientnet-b0": (1.0, 1.0, 224),
    "efficientnet-b1": (1.0, 1.1, 240),
    "efficientnet-b2": (1.1, 1.2, 260),
    "efficientnet-b3": (1.2, 1.4, 300),
    "efficientnet-b4": (1.4, 1.8, 380),
    "efficientnet-b5": (1.6, 2.2, 456),
}
DROP_RATE = 0.2


class _Idle:
    """A layer that has its weights but returns its input: what a checkpoint carries and no output depends on.

    The state dict loads whole and the parameters count as the reference's. In training the weights are added times 0,
    so that they have a gradient, which is 0, and no optimiser warns of weights without one. They are added in float32
    under every policy: in half precision the gradient's sum over the map could overflow, and 0 · ∞ is no number.
    """

    trainable_weights: list[keras.Variable]

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return (N, H, W, C) as it is."""
        if not training:
            return x
        nothing = 0.0 * sum(ops.sum(ops.cast(weight, "float32")) for weight in self.trainable_weights)
        return ops.cast(ops.cast(x, "float32") + nothing, x.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape


@register
class IdleConvolution(_Idle, keras.layers.Conv2D):
    """A convolution that is not applied; its arguments are those of `Conv2D`."""


@register
class IdleNormalisation(_Idle, keras.layers.BatchNormalization):
    """A batch normalisation of `width` channels that is not applied, whatever its input's channels.

    Args:
        width: Channels that the weights are for.
        **kwargs: The arguments of `BatchNormalization`.
    """

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width

    def build(self, input_shape: Any) -> None:
        """Create the weights for `width` channels."""
        super().build((*input_shape[:-1], self.width))
        self.input_spec = None

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "width": self.width}


def encode(encoder: str, x: Any, prefix: str = "encoder") -> list[Any]:
    """Return the maps of EfficientNet `encoder` for (N, H, W, C), at strides 2, 4, 8, 16 and 32.

    Args:
        encoder: A key of `SCALES`.
        x: Input, H and W multiples of 32.
        prefix: What the names of the layers begin with.
    """
    wide, deep, side = SCALES[encoder]
    x = _convolution(x, 3, f"{prefix}._conv_stem", _width(STEM, wide), stride=2, side=side)
    x = _swish(_normalisation(x, f"{prefix}._bn0"))
    maps = [x]
    side = math.ceil(side / 2)
    counts = [math.ceil(deep * count) for *_, count in STAGES]
    number = 0
    for stage, ((kernel, stride, expansion, width, _), count) in enumerate(zip(STAGES, counts, strict=True)):
        mapped = 0 if encoder == "efficientnet-b0" and stage == 4 else count - 1
        for step in range(count):
            name, rate = f"{prefix}._blocks.{number}", DROP_RATE * number / sum(counts)
            x = _block(x, _width(width, wide), kernel, stride if step == 0 else 1, expansion, side, rate, name)
            number += 1
            if stage in (1, 2, 4, 6) and step == mapped:
                maps.append(x)
        side = math.ceil(side / stride)
    width = _width(HEAD, wide)
    x = IdleConvolution(width, 1, use_bias=False, name=layer_name(f"{prefix}._conv_head"))(x)
    maps[-1] = IdleNormalisation(width, name=layer_name(f"{prefix}._bn1"))(x)
    return maps


def _block(x: Any, width: int, kernel: int, stride: int, expansion: int, side: int, drop_rate: float, name: str) -> Any:
    """Apply an inverted residual block, (N, H, W, C) → (N, H/stride, W/stride, width)."""
    channels = x.shape[-1]
    y = x
    if expansion > 1:
        y = _convolution(y, 1, f"{name}._expand_conv", channels * expansion)
        y = _swish(_normalisation(y, f"{name}._bn0"))
    y = _convolution(y, kernel, f"{name}._depthwise_conv", stride=stride, side=side)
    y = _swish(_normalisation(y, f"{name}._bn1"))
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = _swish(_convolution(gate, 1, f"{name}._se_reduce", max(1, channels // 4), bias=True))
    gate = _convolution(gate, 1, f"{name}._se_expand", y.shape[-1], bias=True)
    y = keras.layers.Multiply()([y, keras.layers.Activation("sigmoid")(gate)])
    y = _normalisation(_convolution(y, 1, f"{name}._project_conv", width), f"{name}._bn2")
    if stride > 1 or width != channels:
        return y
    return keras.layers.Add()([DropPath(drop_rate, name=layer_name(f"{name}.drop_path"))(y), x])


def _convolution(
    x: Any, kernel: int, name: str, width: int | None = None, stride: int = 1, side: int = 0, bias: bool = False
) -> Any:
    """Convolve (N, H, W, C) to (N, H/stride, W/stride, width), depth-wise where there is no `width`.

    A strided convolution is padded as for an image of `side` pixels: ⌈side/stride⌉ outputs with the padding halved, the
    odd pixel behind.
    """
    padding = "same"
    if side % stride:
        x = keras.layers.ZeroPadding2D(kernel // 2, name=layer_name(f"{name}.padding"))(x)
        padding = "valid"
    bound = 1 / math.sqrt(kernel**2 * (x.shape[-1] if width else 1))
    options = {"strides": stride, "padding": padding, "use_bias": bias, "name": layer_name(name)}
    options["bias_initializer"] = keras.initializers.RandomUniform(-bound, bound)
    start = keras.initializers.RandomUniform(-bound, bound)
    if width:
        return keras.layers.Conv2D(width, kernel, kernel_initializer=start, **options)(x)
    return keras.layers.DepthwiseConv2D(kernel, depthwise_initializer=start, **options)(x)


def _normalisation(x: Any, name: str) -> Any:
    return normalisation(x, name, epsilon=1e-3, momentum=0.99)


def _swish(x: Any) -> Any:
    return keras.layers.Activation("silu")(x)


def _width(width: int, factor: float) -> int:
    """Return `width` times `factor`, rounded to a multiple of 8 that is not less than 0.9 of it."""
    scaled = width * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8
