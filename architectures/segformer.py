"""SegFormer.

Xie, Wang, Yu, Anandkumar, Alvarez and Luo 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers", https://arxiv.org/abs/2105.15203; layers, names and ε as in transformers 5.

    inputs ─ MiT ─ maps at strides 4, 8, 16, 32 ─ a linear map each, to one width ─ bilinear to stride 4 ─ concatenate
             ─ 1×1 convolution → normalisation → ReLU ─ dropout ─ 1×1 convolution ─ bilinear ×4 ─ softmax

B0 to B5 differ in their encoder (`mit`) and in the decoder's width: 256 in B0 and B1, 768 from B2 on. Probabilities are
of the logits at full size, where transformers leaves logits at a quarter of it. Fresh weights are drawn as in the
paper's code, but for the last two convolutions, which it leaves to its framework: He et al. and Glorot and Bengio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from architectures.blocks import activation_of, merge, modality_inputs, register
from architectures.encoders import STRIDE
from architectures.mit import encode, linear
from architectures.torch_layers import HE_FAN_OUT, layer_name, normalisation, relu

DECODER = {"b0": 256, "b1": 256, "b2": 768, "b3": 768, "b4": 768, "b5": 768}
EPSILON = 1e-5
ONLY_WITH = {"fusion_width": {"fusion": ("branches",)}}


def stride(**_: Any) -> int:
    """Return the number that height and width must be multiples of."""
    return STRIDE


def build(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = "b0",
    width: int | None = None,
    decoder_width: int | None = None,
    fusion: Literal["concatenate", "branches"] = "concatenate",
    fusion_width: int = 64,
    dropout: float = 0.1,
    drop_path: float = 0.1,
) -> keras.Model:
    """Return SegFormer for the modalities `inputs`; see `architectures.build`.

    Args:
        inputs: Modality name → channels, in the model's order.
        num_classes: Classes of the output; 1 gives a sigmoid.
        size: (height, width) of a patch, multiples of 32.
        variant: Which of the paper's networks.
        width: Channels of the encoder's first stage, the others 2, 5 and 8 times as wide; None for the variant's own.
        decoder_width: Channels of the decoder; None for the variant's own.
        fusion: `concatenate` the modalities, or a `branches` double convolution each, summed.
        fusion_width: Channels of the branches, where there are any.
        dropout: Dropout before the last convolution, and spatial dropout in the branches, 0 to 1.
        drop_path: Probability that the branches of the encoder's last block are dropped, 0 to 1.
    """
    tensors = modality_inputs(inputs, size)
    x = merge(tensors, fusion, fusion_width, dropout)
    maps = encode(f"mit-{variant}", x, "segformer", EPSILON, drop_path, width)[1:]
    decoder_width = decoder_width or DECODER[variant]
    maps = [linear(x, decoder_width, f"decode_head.linear_projections.{i}.proj") for i, x in enumerate(maps)]
    x = LinearFuse(
        decoder_width, use_bias=False, kernel_initializer=HE_FAN_OUT.clone(), name=layer_name("decode_head.linear_fuse")
    )(maps)
    x = relu(normalisation(x, "decode_head.batch_norm"))
    x = keras.layers.Dropout(dropout)(x)
    x = keras.layers.Conv2D(num_classes, 1, dtype="float32", name=layer_name("decode_head.classifier"))(x)
    x = keras.layers.UpSampling2D(4, interpolation="bilinear", dtype="float32")(x)
    x = keras.layers.Activation(activation_of(num_classes), dtype="float32")(x)
    return keras.Model(tensors, {"output": x}, name="segformer_model")


@register
class LinearFuse(keras.layers.Conv2D):
    """A 1×1 convolution of maps of several sizes: what comes of them brought up to the first's and concatenated.

    Maps (N, H, W, C), (N, H/2, W/2, C), … → (N, H, W, filters), the kernel's input channels from the *last* map's to
    the first's. A 1×1 convolution and bilinear interpolation are both linear, one in channels, the other in pixels, so
    that each map is convolved at its own size: in SegFormer a third of the multiplications, and nothing is concatenated
    at full size. Interpolation is a matrix for columns and one for rows; those for rows, side by side, also sum.

    Args:
        filters: Channels of the output.
        kernel_size: 1: no other commutes with the interpolation.
        **kwargs: What `keras.layers.Conv2D` takes.
    """

    def __init__(self, filters: int, kernel_size: int | Sequence[int] = 1, **kwargs: Any) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        if self.kernel_size != (1, 1) or self.strides != (1, 1):
            raise ValueError(f"LinearFuse needs kernels and strides of 1; received {kernel_size}, {self.strides}")
        self.input_spec = None  # a convolution's: one input

    def build(self, input_shape: Sequence[Sequence[int | None]]) -> None:
        """Create the (1, 1, ΣC, filters) kernel."""
        super().build((*input_shape[0][:-1], sum(shape[-1] or 0 for shape in input_shape)))
        self.input_spec = None

    def call(self, maps: Sequence[Any]) -> Any:
        """Fuse two or more maps, the first of them of the output's size."""
        parts = ops.split(self.kernel[0, 0], np.cumsum([x.shape[-1] for x in maps[:0:-1]]).tolist())
        first, *others = (ops.matmul(x, part) for x, part in zip(maps, reversed(parts), strict=True))
        height, width = first.shape[1:3]
        columns = [ops.matmul(self._constant(bilinear(x.shape[2], width)), x) for x in others]
        rows = self._constant(np.concatenate([bilinear(x.shape[1], height) for x in others], axis=1))
        flat = ops.reshape(ops.concatenate(columns, axis=1), (-1, rows.shape[1], width * self.filters))
        fused = first + ops.reshape(ops.matmul(rows, flat), (-1, height, width, self.filters))
        return self.activation(fused if self.bias is None else fused + self.bias)

    def compute_output_spec(self, maps: Sequence[Any]) -> keras.KerasTensor:
        """Return what the first map becomes."""
        return keras.KerasTensor((*maps[0].shape[:-1], self.filters), self.compute_dtype)

    def _constant(self, matrix: np.ndarray) -> Any:
        return ops.convert_to_tensor(matrix, self.compute_dtype)


def bilinear(size: int, target: int) -> np.ndarray:
    """Return the (target, size) matrix that interpolates a row of `size` pixels to `target`.

    Pixels have their centres at halves, and beyond the first and last centre those pixels' values hold: PyTorch's
    `align_corners=False`.
    """
    position = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(size)), 0).astype("float32")
