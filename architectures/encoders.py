"""Encoders that a decoder can be put on: `encode(name, x)` gives the maps at strides 2, 4, 8, 16 and 32."""

from __future__ import annotations

from typing import Any, Literal

from architectures import efficientnet, mit, resnet

# Names as segmentation_models_pytorch has them, with a hyphen for its underscore: they are words of YAML files.
Encoder = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "efficientnet-b4",
    "efficientnet-b5",
    "mit-b0",
    "mit-b1",
    "mit-b2",
    "mit-b3",
    "mit-b4",
    "mit-b5",
]
STRIDE = 32


def encode(encoder: str, x: Any, prefix: str = "encoder") -> list[Any]:
    """Return the maps of `encoder` for (N, H, W, C) at strides 2, 4, 8, 16 and 32; None for a stride without a map.

    Args:
        encoder: One of `Encoder`.
        x: Input, H and W multiples of `STRIDE`.
        prefix: What the names of the layers begin with.
    """
    if encoder in efficientnet.SCALES:
        return efficientnet.encode(encoder, x, prefix)
    if encoder in mit.SIZES:
        return mit.encode(encoder, x, prefix)
    return resnet.encode(encoder, x, prefix)
