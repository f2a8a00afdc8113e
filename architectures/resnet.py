"""ResNet encoders.

He, Zhang, Ren and Sun 2016, "Deep Residual Learning for Image Recognition", https://doi.org/10.1109/CVPR.2016.90.

    (N, H, W, C) ─ 7×7/2 64 ─ pool/2 ─ blocks 64 ─ blocks/2 128 ─ blocks/2 256 ─ blocks/2 512
    maps at:           2                    4             8              16            32

The basic block is twice [3×3 convolution → normalisation] around a ReLU, the bottleneck 1×1 → 3×3 → 1×1 with four times
the width at its end; both add their input, through a 1×1 convolution and normalisation where the shape changes, and
end in a ReLU. As in torchvision, a bottleneck's stride is that of its 3×3 convolution (the paper: of its first 1×1).
"""

from __future__ import annotations

from typing import Any

import keras

from architectures.torch_layers import convolution, normalisation, relu

BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
BOTTLENECK = ("resnet50", "resnet101")


def encode(encoder: str, x: Any, prefix: str = "encoder") -> list[Any]:
    """Return the maps of ResNet `encoder` for (N, H, W, C), at strides 2, 4, 8, 16 and 32.

    Args:
        encoder: A key of `BLOCKS`.
        x: Input, H and W multiples of 32.
        prefix: What the names of the layers begin with.
    """
    block = _bottleneck if encoder in BOTTLENECK else basic_block
    x = relu(normalisation(convolution(x, 64, 7, f"{prefix}.conv1", stride=2), f"{prefix}.bn1"))
    maps = [x]
    x = keras.layers.ZeroPadding2D(1)(x)  # after a ReLU the same as PyTorch's padding with -∞
    x = keras.layers.MaxPooling2D(3, strides=2)(x)
    for stage, count in enumerate(BLOCKS[encoder]):
        for number in range(count):
            stride = 2 if stage and not number else 1
            x = block(x, 64 * 2**stage, stride, f"{prefix}.layer{stage + 1}.{number}")
        maps.append(x)
    return maps


def basic_block(x: Any, width: int, stride: int, name: str, shortcut: str = "downsample") -> Any:
    """Apply the basic block to (N, H, W, C): (N, H/stride, W/stride, width).

    Args:
        x: Its input.
        width: Channels of both convolutions.
        stride: Of the first convolution and of the shortcut.
        name: What the names of the layers begin with.
        shortcut: What those of the shortcut go on with.
    """
    y = convolution(x, width, 3, f"{name}.conv1", stride)
    y = relu(normalisation(y, f"{name}.bn1"))
    y = normalisation(convolution(y, width, 3, f"{name}.conv2"), f"{name}.bn2")
    return relu(keras.layers.Add()([y, _shortcut(x, width, stride, f"{name}.{shortcut}")]))


def _bottleneck(x: Any, width: int, stride: int, name: str) -> Any:
    y = relu(normalisation(convolution(x, width, 1, f"{name}.conv1"), f"{name}.bn1"))
    y = relu(normalisation(convolution(y, width, 3, f"{name}.conv2", stride), f"{name}.bn2"))
    y = normalisation(convolution(y, 4 * width, 1, f"{name}.conv3"), f"{name}.bn3")
    return relu(keras.layers.Add()([y, _shortcut(x, 4 * width, stride, f"{name}.downsample")]))


def _shortcut(x: Any, width: int, stride: int, name: str) -> Any:
    if stride == 1 and x.shape[-1] == width:
        return x
    return normalisation(convolution(x, width, 1, f"{name}.0", stride), f"{name}.1")
