"""ResU-Net: a U-Net of residual blocks, in the form of the GlaViTU study.

Zhang, Liu and Wang 2018, "Road Extraction by Deep Residual U-Net", IEEE GRSL,
https://doi.org/10.1109/LGRS.2018.2802944; Maslov et al. 2023, https://doi.org/10.1109/IGARSS52108.2023.10281828.

    inputs ─ fusion ─ (N, H, W, 64) ─ residual 64 ─────────────────────────────── concatenate, residual 64 ─ softmax
                                        └ pool ─ residual 128 ─────── concatenate, residual 128 ─ up ┘
                                                   └ pool ─  …  ─ residual 1024 ─ up ┘

Deviations from the paper, all the study's: post-activation blocks with LeakyReLU, spatial dropout, a projection in
every residual, nearest upsampling with a 2×2 convolution, one double convolution per modality in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from architectures.blocks import ResidualBlock, UpConvolution, activation_of, fuse, modality_inputs


def stride(steps: int = 4, **_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return 2**steps


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    fusion_width: int = 64,
    width: int = 64,
    steps: int = 4,
    dropout: float = 0.1,
) -> keras.Model:
    """Return ResU-Net for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the output; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 2**steps.
        fusion_width: Channels of the fused map.
        width: Channels of the first residual block, doubled at each step down.
        steps: How often the map is halved.
        dropout: Spatial dropout of every double convolution, 0 to 1.
    """
    tensors = modality_inputs(inputs, size)
    fused = fuse(tensors, fusion_width, dropout)
    network = resunet_network(
        (*size, fusion_width), steps, width, num_classes, dropout, activation=activation_of(num_classes)
    )
    return keras.Model(tensors, {"output": network(fused)}, name="resunet_model")


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
