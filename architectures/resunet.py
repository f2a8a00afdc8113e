"""ResU-Net: a U-Net of residual blocks, in the forms of the GlaViTU study and of the Himalaya project.

Zhang, Liu and Wang 2018, "Road Extraction by Deep Residual U-Net", IEEE GRSL,
https://doi.org/10.1109/LGRS.2018.2802944; Maslov et al. 2023, https://doi.org/10.1109/IGARSS52108.2023.10281828.

    glavitu: inputs ─ fusion ─ residual 64 ─────────────────────────────── concatenate, residual 64 ─ linear ─ softmax
                                 └ pool ─ residual 128 ─────── concatenate, residual 128 ─ up ┘
                                            └ pool ─  …  ─ residual 1024 ─ up ┘

    himalaya: the same with inputs ─ 3×3 convolution 64, ReLU in front

Deviations from the paper, all the study's (variant glavitu): post-activation blocks with LeakyReLU, spatial dropout, a
projection in every residual, nearest upsampling with a 2×2 convolution, one double convolution per modality in front.

The Himalaya project's (variant himalaya, published in PyTorch): blocks as in He et al. 2016,
https://doi.org/10.1109/CVPR.2016.90, which is [3×3 convolution → normalisation → ReLU → 3×3 convolution →
normalisation] + the input, through a 1×1 convolution and normalisation where the width changes, then ReLU;
convolutions of blocks without bias, ε 1e-5; a transposed 2×2 convolution with bias on the way up; a 1×1 convolution at
the end. 32,481,601 trainable weights for 18 bands and one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras

from architectures.blocks import ResidualBlock, UpConvolution, activation_of, fuse, merge, modality_inputs
from architectures.resnet import basic_block
from architectures.torch_layers import HE_UNIFORM, convolution, convolution_head, relu, up_convolution

ONLY_WITH = {
    "fusion": {"variant": ("himalaya",)},
    "fusion_width": {"variant": ("glavitu",), "fusion": ("branches",)},
}


def stride(steps: int = 4, **_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return 2**steps


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    variant: Literal["glavitu", "himalaya"] = "glavitu",
    fusion: Literal["concatenate", "branches"] | None = None,
    fusion_width: int = 64,
    width: int = 64,
    steps: int = 4,
    dropout: float | None = None,
) -> keras.Model:
    """Return ResU-Net for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the output; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 2**steps.
        variant: Whose form.
        fusion: himalaya only: `concatenate` the modalities (the default), or a `branches` double convolution each,
            summed. The other variant always has branches.
        fusion_width: Channels of the branches, where there are any.
        width: Channels of the first residual block, doubled at each step down.
        steps: How often the map is halved.
        dropout: Spatial dropout, 0 to 1: of every double convolution in glavitu (by default 0.1), before the last
            convolution and in the branches in himalaya (by default 0).
    """
    tensors = modality_inputs(inputs, size)
    if variant == "himalaya":
        dropout = dropout or 0.0
        output = _himalaya(
            merge(tensors, fusion or "concatenate", fusion_width, dropout), steps, width, num_classes, dropout
        )
    else:
        dropout = 0.1 if dropout is None else dropout
        network = resunet_network(
            (*size, fusion_width), steps, width, num_classes, dropout, activation=activation_of(num_classes)
        )
        output = network(fuse(tensors, fusion_width, dropout))
    return keras.Model(tensors, {"output": output}, name="resunet_model")


def residual_encoder(x: Any, steps: int, width: int, dropout: float, slope: float = 0.3) -> list[Any]:
    """Return the maps of a residual encoder of (N, H, W, C): `steps` skips, the bottom last, width doubling."""
    maps = []
    for step in range(steps + 1):
        x = ResidualBlock(width * 2**step, slope, dropout)(x)
        maps.append(x)
        if step < steps:
            x = keras.layers.MaxPooling2D(2)(x)
    return maps


def residual_decoder(x: Any, skips: Sequence[Any], width: int, dropout: float, slope: float = 0.3) -> Any:
    """Bring (N, h, w, C) up through `skips`, the deepest last, to (N, H, W, width)."""
    for step in reversed(range(len(skips))):
        x = UpConvolution(width * 2**step)(x)
        x = keras.layers.Concatenate()([x, skips[step]])
        x = ResidualBlock(width * 2**step, slope, dropout)(x)
    return x


def resunet_network(
    shape: tuple[int, int, int],
    steps: int,
    width: int,
    outputs: int,
    dropout: float,
    slope: float = 0.3,
    activation: str | None = None,
) -> keras.Model:
    """Return encoder, decoder and linear map for maps of `shape` (H, W, C) → (N, H, W, outputs).

    With an `activation` the linear map is the model's head and computes in float32.
    """
    x = keras.Input(shape)
    *skips, bottom = residual_encoder(x, steps, width, dropout, slope)
    y = residual_decoder(bottom, skips, width, dropout, slope)
    y = keras.layers.Dense(outputs, activation=activation, dtype="float32" if activation else None)(y)
    return keras.Model(x, y, name="resunet")


def _himalaya(x: Any, steps: int, width: int, num_classes: int, dropout: float) -> Any:
    """Map (N, H, W, C) to the probabilities of the Himalaya project's ResUNet: (N, H, W, num_classes)."""
    x = relu(convolution(x, width, 3, "init_conv", bias=True, initializer=HE_UNIFORM))
    skips = []
    for step in range(steps):
        x = basic_block(x, width * 2**step, 1, f"enc{step + 1}", "shortcut")
        skips.append(x)
        x = keras.layers.MaxPooling2D(2)(x)
    x = basic_block(x, width * 2**steps, 1, "bottleneck", "shortcut")
    for number, skip in enumerate(reversed(skips), 1):
        x = up_convolution(x, skip.shape[-1], f"up{number}")
        x = keras.layers.Concatenate()([x, skip])
        x = basic_block(x, skip.shape[-1], 1, f"dec{number}", "shortcut")
    return convolution_head(keras.layers.SpatialDropout2D(dropout)(x), num_classes, "final_conv", kernel=1)
