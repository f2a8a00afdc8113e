"""U-Net: plain, or with the encoder of a classification network.

Ronneberger, Fischer and Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
https://doi.org/10.1007/978-3-319-24574-4_28; with encoders as in segmentation_models_pytorch (Iakubovskii 2019).

    plain: inputs ─ double 32 ──────────────────────────────────────────── concatenate, double 32 ─ 1×1 ─ softmax
                      └ pool ─ double 64 ─────────── concatenate, double 64 ─ up ┘
                                 └ pool ─  …  ─ double 512 ─ up ┘

    with an encoder: inputs ─ encoder ─ maps at strides 2, 4, 8, 16, 32 ─ five times [nearest ×2, concatenate the map
                     of that size, double], widths 256, 128, 64, 32, 16 ─ 3×3 convolution ─ softmax

A double convolution is twice [3×3 convolution → batch normalisation → ReLU], padded to keep its size, the convolutions
without bias; ε is 1e-5, 0.9 of the moving statistics stays. In the plain form pooling takes the maximum of 2×2 pixels,
up is a transposed 2×2 convolution with bias to half the width, and the 1×1 head has a bias: 7,763,716 trainable weights
for five bands and four classes, 7,769,604 with the moving statistics. Deviations of the plain form from the paper: half
its widths, normalisation, padding instead of cropping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras

from architectures.blocks import merge, modality_inputs
from architectures.encoders import STRIDE, Encoder, encode
from architectures.torch_layers import HE_UNIFORM, convolution, convolution_head, normalisation, relu, up_convolution

DECODER = (256, 128, 64, 32, 16)
ONLY_WITH = {
    "width": {"encoder": ("none",)},
    "steps": {"encoder": ("none",)},
    "fusion_width": {"fusion": ("branches",)},
}


def stride(encoder: str = "none", steps: int = 4, **_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return 2**steps if encoder == "none" else STRIDE


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    encoder: Literal["none", Encoder] = "none",
    width: int = 32,
    steps: int = 4,
    fusion: Literal["concatenate", "branches"] = "concatenate",
    fusion_width: int = 64,
    dropout: float = 0.0,
) -> keras.Model:
    """Return U-Net for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the output; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 32 with an encoder, of 2**steps without.
        encoder: The encoder; `none` gives the plain form.
        width: Plain form only: channels of the first double convolution, doubled at each step down.
        steps: Plain form only: how often the map is halved.
        fusion: `concatenate` the modalities, or a `branches` double convolution each, summed.
        fusion_width: Channels of the branches, where there are any.
        dropout: Spatial dropout before the last convolution, and in the branches, 0 to 1.
    """
    tensors = modality_inputs(inputs, size)
    x = merge(tensors, fusion, fusion_width, dropout)
    if encoder == "none":
        x, kernel = _plain(x, width, steps), 1
    else:
        x, kernel = _decode(encode(encoder, x)), 3
    x = keras.layers.SpatialDropout2D(dropout)(x)
    output = convolution_head(x, num_classes, "segmentation_head.0", kernel)
    return keras.Model(tensors, {"output": output}, name="unet_model")


def double_convolution(x: Any, width: int, name: str) -> Any:
    """Apply twice [3×3 convolution → normalisation → ReLU] to (N, H, W, C), as segmentation_models_pytorch does."""
    for step in ("conv1", "conv2"):
        x = convolution(x, width, 3, f"{name}.{step}.0", initializer=HE_UNIFORM)
        x = relu(normalisation(x, f"{name}.{step}.1"))
    return x


def up_and_join(x: Any, skips: Sequence[Any]) -> Any:
    """Repeat the pixels of (N, H, W, C) and append `skips`, in their order: (N, 2H, 2W, C + …)."""
    x = keras.layers.UpSampling2D(2, interpolation="nearest")(x)
    return keras.layers.Concatenate()([x, *skips]) if skips else x


def _plain(x: Any, width: int, steps: int) -> Any:
    """Return the plain U-Net's last map of (N, H, W, C): (N, H, W, width)."""
    skips = []
    for step in range(steps):
        x = double_convolution(x, width * 2**step, f"encoder.blocks.{step}")
        skips.append(x)
        x = keras.layers.MaxPooling2D(2)(x)
    x = double_convolution(x, width * 2**steps, f"encoder.blocks.{steps}")
    for number, skip in enumerate(reversed(skips)):
        x = up_convolution(x, skip.shape[-1], f"decoder.upsamplings.{number}")
        x = keras.layers.Concatenate()([x, skip])
        x = double_convolution(x, skip.shape[-1], f"decoder.blocks.{number}")
    return x


def _decode(maps: Sequence[Any]) -> Any:
    """Bring an encoder's maps at strides 2 to 32, None for one that it lacks, up to (N, H, W, 16)."""
    *skips, x = maps
    for number, (width, skip) in enumerate(zip(DECODER, [*reversed(skips), None], strict=True)):
        x = up_and_join(x, [] if skip is None else [skip])
        x = double_convolution(x, width, f"decoder.blocks.{number}")
    return x
