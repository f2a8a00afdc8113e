"""SETR: a vision transformer as encoder, progressive upsampling as decoder.

Zheng et al. 2021, "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers",
CVPR, https://doi.org/10.1109/CVPR46437.2021.00681 (SETR-PUP), in the form of the GlaViTU study
(Maslov et al. 2023, https://doi.org/10.1109/IGARSS52108.2023.10281828).

    inputs ─ fusion ─ (N, H, W, 64) ─ ViT, tokens of 16×16 pixels ─ (N, H/16, W/16, 768)
      ─ 3 × [convolution, normalisation, bilinear ×2] ─ (N, H/2, W/2, 256)
      ─ convolution, normalisation, 1×1 convolution, softmax ─ bilinear ×2 ─ (N, H, W, classes)

Deviations from the paper, all the study's: a fusion block instead of RGB, no activation between the decoder's
convolutions, GELU after both linear maps of the MLP, softmax before the last upsampling.
"""

from __future__ import annotations

from typing import Any

import keras

from architectures.blocks import activation_of, fuse, modality_inputs, network, vit_encoder

TOKEN = 16  # pixels; the decoder doubles four times


def stride(**_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return TOKEN


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    fusion_width: int = 64,
    width: int = 768,
    mlp: int = 3072,
    depth: int = 12,
    heads: int = 12,
    decoder_width: int = 256,
    dropout: float = 0.1,
) -> keras.Model:
    """Return SETR for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the output; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 16.
        fusion_width: Channels of the fused map.
        width: Channels of a token, a multiple of `heads`.
        mlp: Hidden width of the transformer's MLPs.
        depth: Transformer blocks.
        heads: Attention heads.
        decoder_width: Channels of the decoder.
        dropout: Dropout of convolutions and MLPs, 0 to 1.
    """
    tensors = modality_inputs(inputs, size)
    fused = fuse(tensors, fusion_width, dropout)
    setr = setr_network(
        (*size, fusion_width),
        width,
        mlp,
        depth,
        heads,
        decoder_width,
        num_classes,
        dropout,
        activation_of(num_classes),
    )
    return keras.Model(tensors, {"output": setr(fused)}, name="setr_model")


def setr_network(
    shape: tuple[int, int, int],
    width: int,
    mlp: int,
    depth: int,
    heads: int,
    decoder_width: int,
    outputs: int,
    dropout: float,
    activation: str | None = None,
) -> keras.Model:
    """Return encoder and decoder for maps of `shape` (H, W, C) → (N, H, W, outputs).

    With an `activation` the last convolution is the model's head and computes in float32.
    """
    head_dtype = "float32" if activation else None
    layers = vit_encoder(shape, TOKEN, width, mlp, depth, heads, dropout)
    for doubles in (True, True, True, False):
        layers += [
            keras.layers.Conv2D(decoder_width, 3, padding="same"),
            keras.layers.BatchNormalization(epsilon=1e-3),
        ]
        if doubles:
            layers.append(keras.layers.UpSampling2D(2, interpolation="bilinear"))
    layers += [
        keras.layers.Conv2D(outputs, 1, activation=activation, dtype=head_dtype),
        keras.layers.UpSampling2D(2, interpolation="bilinear", dtype=head_dtype),
    ]
    return network("setr", shape, layers)
