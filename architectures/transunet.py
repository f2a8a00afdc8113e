"""TransU-Net: a convolutional encoder, a transformer at its bottom, a U-Net decoder.

Chen et al. 2021, "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation",
https://arxiv.org/abs/2102.04306, in the form of the GlaViTU study
(Maslov et al. 2023, https://doi.org/10.1109/IGARSS52108.2023.10281828).

    inputs ─ fusion ─ (N, H, W, 64) ─ residual encoder: skips 64, 128, 256, bottom (N, H/8, W/8, 512)
      ─ max-pool ─ (N, H/16, W/16, 512) ─ ViT, one token a pixel ─ linear 512 ─ nearest ×2
      ─ residual decoder with the three skips ─ linear 64 ─ + fused ─ linear, softmax ─ (N, H, W, classes)

Deviations from the paper, all the study's: residual blocks instead of ResNet-50, a narrow transformer of width 64,
a residual around everything between fusion and head.
"""

from __future__ import annotations

from typing import Any

import keras

from architectures.blocks import fuse, head, modality_inputs, network, vit_encoder
from architectures.resunet import residual_decoder, residual_encoder


def stride(steps: int = 3, **_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return 2 ** (steps + 1)


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    width: int = 64,
    steps: int = 3,
    vit_width: int = 64,
    mlp: int = 256,
    depth: int = 12,
    heads: int = 4,
    dropout: float = 0.1,
) -> keras.Model:
    """Return TransU-Net for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the output; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 2**(steps + 1).
        width: Channels of the fused map and of the first residual block, doubled at each step down.
        steps: How often the residual encoder halves the map; the transformer works one step below.
        vit_width: Channels of a token, a multiple of `heads`.
        mlp: Hidden width of the transformer's MLPs.
        depth: Transformer blocks.
        heads: Attention heads.
        dropout: Dropout of convolutions and MLPs, 0 to 1.
    """
    tensors = modality_inputs(inputs, size)
    fused = fuse(tensors, width, dropout)

    # Encoder: skips and bottom.
    x = keras.Input((*size, width))
    encoder = keras.Model(x, residual_encoder(x, steps, width, dropout), name="encoder")
    *skips, bottom = encoder(fused)

    # Transformer on the pooled bottom, one token a pixel.
    pooled = keras.layers.MaxPooling2D(2)(bottom)
    shape = pooled.shape[1:]
    tokens = network("vit", shape, vit_encoder(shape, 1, vit_width, mlp, depth, heads, dropout))(pooled)
    deep = keras.layers.UpSampling2D(2, interpolation="nearest")(keras.layers.Dense(shape[-1])(tokens))

    # Decoder.
    decoder_inputs = [keras.Input(y.shape[1:]) for y in [deep, *skips]]
    y = residual_decoder(decoder_inputs[0], decoder_inputs[1:], width, dropout)
    decoder = keras.Model(decoder_inputs, keras.layers.Dense(width)(y), name="decoder")

    decoded = keras.layers.Add()([decoder([deep, *skips]), fused])
    return keras.Model(tensors, {"output": head(decoded, num_classes, "output")}, name="transunet_model")
