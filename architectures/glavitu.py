"""GlaViTU: SETR for the context, then ResU-Net for the detail, with deep supervision between them.

2023: Maslov et al., "GLAVITU: A Hybrid CNN-Transformer for Multi-Regional Glacier Mapping from Multi-Source Data",
IGARSS, https://doi.org/10.1109/IGARSS52108.2023.10281828. 2025: Maslov et al., "Globally scalable glacier mapping by
deep learning matches expert delineation accuracy", Nature Communications, https://doi.org/10.1038/s41467-024-54956-x.

    inputs ─ fusion ─ f (N, H, W, 64) ─ SETR, 64 linear outputs ─ + f = e₁ ─ linear, softmax = deepsupervision
                                                                    └ ResU-Net, 64 linear outputs = e₂
                                                                              e₁ + e₂ ─ linear, softmax = output

The 2025 variant has LeakyReLU slope 0.2 instead of 0.3 in the double convolutions, squeeze-and-excitation on each
fusion branch, and optionally a location (region one-hot, or sine and cosine of latitude and longitude) whose
encoding is added to the fused map.
"""

from __future__ import annotations

from typing import Any, Literal

import keras

from architectures.blocks import LocationEncoding, fuse, head, modality_inputs
from architectures.resunet import resunet_network
from architectures.setr import TOKEN, setr_network

Variant = Literal["2023", "2025"]
ONLY_WITH = {"location_size": {"variant": ("2025",)}}


def stride(steps: int = 3, **_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return max(TOKEN, 2**steps)


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    variant: Variant = "2023",
    location_size: int = 0,
    deep_supervision: bool = True,
    width: int = 64,
    mlp: int = 256,
    depth: int = 12,
    heads: int = 4,
    steps: int = 3,
    dropout: float = 0.1,
) -> keras.Model:
    """Return GlaViTU for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the outputs; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 16 and of 2**steps.
        variant: "2023" or "2025".
        location_size: Length of the input `location` of the 2025 variant; 0 leaves it out.
        deep_supervision: Whether there is an output `deepsupervision`; published inference weights can lack it.
        width: Channels of the fused map, the tokens, both networks' outputs and the first residual block; a multiple
            of `heads`.
        mlp: Hidden width of the transformer's MLPs.
        depth: Transformer blocks.
        heads: Attention heads.
        steps: How often the ResU-Net halves the map.
        dropout: Dropout of convolutions, MLPs and location, 0 to 1.
    """
    tensors = modality_inputs(inputs, size)
    slope = 0.2 if variant == "2025" else 0.3
    fused = fuse(tensors, width, dropout, slope=slope, excite=variant == "2025")
    if location_size:
        tensors["location"] = keras.Input((location_size,), name="location")
        encoding = LocationEncoding(width, dropout, name="location_encoding")(tensors["location"])
        fused = keras.layers.Add()([fused, keras.layers.Reshape((1, 1, width))(encoding)])

    shape = (*size, width)
    context = setr_network(shape, width, mlp, depth, heads, width, width, dropout)
    e1 = keras.layers.Add()([context(fused), fused])
    detail = resunet_network(shape, steps, width, width, dropout, slope)
    e2 = detail(e1)

    outputs = {"output": head(keras.layers.Add()([e1, e2]), num_classes, "output")}
    if deep_supervision:
        outputs["deepsupervision"] = head(e1, num_classes, "deepsupervision")
    return keras.Model(tensors, outputs, name="glavitu_model")
