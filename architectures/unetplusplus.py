"""U-Net++: a U-Net whose skips pass through nodes that are decoders of their own.

Zhou, Siddiquee, Tajbakhsh and Liang 2018, "UNet++: A Nested U-Net Architecture for Medical Image Segmentation",
https://doi.org/10.1007/978-3-030-00889-5_1, and 2020, https://doi.org/10.1109/TMI.2019.2959609; with encoders and node
widths as in segmentation_models_pytorch (Iakubovskii 2019).

    stride 2   e₁ ── x_3_3 ── x_2_3 ── x_1_3 ── x_0_3 ── nearest ×2, double 16 = x_0_4 ─ 3×3 convolution ─ softmax
    stride 4   e₂ ── x_2_2 ── x_1_2 ── x_0_2 ┘
    stride 8   e₃ ── x_1_1 ── x_0_1 ┘             node = double [nearest ×2 of the node or map below it on the left,
    stride 16  e₄ ── x_0_0 ┘                              the nodes on its left, nearest first, the map e]
    stride 32  e₅ ┘

Deviations from the papers, all segmentation_models_pytorch's: the nodes begin at the encoder's stride 2, so that one
more block brings the last up to full size; the nodes of the outermost diagonal, x_0_i, have the widths of U-Net's
decoder, 256, 128, 64, 32, the others that of their row's map. The papers supervise the top row's four nodes: here the
last one is the way to `output`, and the other three, of half size, have heads of their own on demand, whose
probabilities are brought up bilinearly.
"""

from __future__ import annotations

from typing import Any, Literal

import keras

from architectures.blocks import merge, modality_inputs
from architectures.encoders import STRIDE, Encoder, encode
from architectures.torch_layers import convolution_head
from architectures.unet import DECODER, double_convolution, up_and_join
from console import UserError

ONLY_WITH = {"fusion_width": {"fusion": ("branches",)}}


def stride(**_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return STRIDE


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    encoder: Encoder = "resnet34",
    deep_supervision: bool = False,
    fusion: Literal["concatenate", "branches"] = "concatenate",
    fusion_width: int = 64,
    dropout: float = 0.0,
) -> keras.Model:
    """Return U-Net++ for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the outputs; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 32.
        encoder: The encoder, one with a map at stride 2.
        deep_supervision: Whether there are outputs `deepsupervision_1` to `deepsupervision_3`, of x_3_3, x_2_3, x_1_3.
        fusion: `concatenate` the modalities, or a `branches` double convolution each, summed.
        fusion_width: Channels of the branches, where there are any.
        dropout: Spatial dropout before each output's convolution, and in the branches, 0 to 1.

    Raises:
        UserError: The encoder has no map at stride 2.
    """
    tensors = modality_inputs(inputs, size)
    maps = encode(encoder, merge(tensors, fusion, fusion_width, dropout))
    if any(one is None for one in maps):
        raise UserError(
            f"unetplusplus needs an encoder with maps at strides 2 to 32; received {encoder}, which has none at stride "
            "2: take another encoder, or the architecture unet, which works without that map"
        )
    maps.reverse()
    last = len(maps) - 2
    nodes: dict[tuple[int, int], Any] = {}
    for span in range(last + 1):
        for first in range(last + 1 - span):
            row = first + span
            below = nodes[first, row - 1] if span else maps[first]
            left = [nodes[other, row] for other in range(first + 1, row + 1)]
            width = maps[row + 1].shape[-1] if first else DECODER[row]
            x = up_and_join(below, [*left, maps[row + 1]])
            nodes[first, row] = double_convolution(x, width, f"decoder.blocks.x_{first}_{row}")
    x = double_convolution(up_and_join(nodes[0, last], []), DECODER[-1], f"decoder.blocks.x_0_{last + 1}")

    outputs = {"output": _head(x, num_classes, dropout, "segmentation_head.0")}
    for number in range(1, last + 1 if deep_supervision else 1):
        name = f"deepsupervision_{number}"
        probs = _head(nodes[last + 1 - number, last], num_classes, dropout, f"{name}.0")
        outputs[name] = keras.layers.UpSampling2D(2, interpolation="bilinear", dtype="float32", name=name)(probs)
    return keras.Model(tensors, outputs, name="unetplusplus_model")


def _head(x: Any, num_classes: int, dropout: float, name: str) -> Any:
    return convolution_head(keras.layers.SpatialDropout2D(dropout)(x), num_classes, name)
