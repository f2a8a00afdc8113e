"""U-Net: plain, or with the encoder of a classification network.

Ronneberger, Fischer and Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
https://doi.org/10.1007/978-3-319-24574-4_28; with encoders as in segmentation_models_pytorch (Iakubovskii 2019).

    inputs ─ encoder ─ maps at strides 2, 4, 8, 16, 32 ─ five times [nearest ×2, concatenate the map of that size,
             twice 3×3 convolution → normalisation → ReLU], widths 256, 128, 64, 32, 16 ─ 3×3 convolution ─ softmax
"""

from __future__ import annotations

from typing import Any, Literal

import keras

from architectures.blocks import merge, modality_inputs
from architectures.encoders import STRIDE, Encoder, encode
from architectures.torch_layers import HE_UNIFORM, convolution, convolution_head, normalisation, relu

DECODER = (256, 128, 64, 32, 16)


def stride(**_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return STRIDE


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    encoder: Encoder = "resnet34",
    fusion: Literal["concatenate", "branches"] = "concatenate",
    fusion_width: int = 64,
    dropout: float = 0.0,
) -> keras.Model:
    """Return U-Net for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the output; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 32.
        encoder: The encoder.
        fusion: `concatenate` the modalities, or a `branches` double convolution each, summed.
        fusion_width: Channels of the branches.
        dropout: Spatial dropout before the output, and in the branches, 0 to 1.
    """
    tensors = modality_inputs(inputs, size)
    *skips, x = encode(encoder, merge(tensors, fusion, fusion_width, dropout))
    for number, (width, skip) in enumerate(zip(DECODER, [*reversed(skips), None], strict=True)):
        x = keras.layers.UpSampling2D(2, interpolation="nearest")(x)
        if skip is not None:
            x = keras.layers.Concatenate()([x, skip])
        x = double_convolution(x, width, f"decoder.blocks.{number}")
    x = keras.layers.SpatialDropout2D(dropout)(x)
    return keras.Model(tensors, {"output": convolution_head(x, num_classes, "segmentation_head.0")}, name="unet_model")


def double_convolution(x: Any, width: int, name: str) -> Any:
    """Apply twice [3×3 convolution → normalisation → ReLU] to (N, H, W, C), as segmentation_models_pytorch does."""
    for step in ("conv1", "conv2"):
        x = convolution(x, width, 3, f"{name}.{step}.0", initializer=HE_UNIFORM)
        x = relu(normalisation(x, f"{name}.{step}.1"))
    return x
