"""Mix Transformer (MiT) encoders, the backbones of SegFormer.

Xie, Wang, Yu, Anandkumar, Alvarez and Luo 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers", https://arxiv.org/abs/2105.15203.

    (N, H, W, C) ─ four stages ─ maps at strides 4, 8, 16, 32 of width 1, 2, 5, 8 times that of the first

A stage is a strided convolution (7×7/4, then 3×3/2) and a layer normalisation, blocks, and a layer normalisation. A
block is x + A(LN(x)), then x + F(LN(x)), both branches dropped sample by sample in training. Attention A has 1, 2, 5, 8
heads; its keys and values come from the map reduced by an 8×8/8, 4×4/4, 2×2/2 convolution and a layer normalisation,
and in the last stage from the map itself. F is linear to four times the width → 3×3 convolution by channel → GELU
(exact) → linear. There is no position embedding: the convolutions' padding tells positions.

Maps stay (N, H, W, C) where the reference has tokens (N, HW, C): linear maps and normalisations are over channels.

Layers are named as in transformers 5. ε of the normalisations of patches and reduced maps is 1e-5, and of all others an
argument: 1e-6 in the paper's code and segmentation_models_pytorch, 1e-5 in transformers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from architectures.blocks import register
from architectures.torch_layers import HE_FAN_OUT, DropPath, convolution, layer_name

HEADS = (1, 2, 5, 8)  # in each stage as many as its width is multiples of the first stage's
REDUCTION = (8, 4, 2, 1)
MLP = 4


class Size(NamedTuple):
    """What tells the encoders apart: channels of the first stage, and blocks of each."""

    width: int
    depths: tuple[int, int, int, int]


SIZES = {
    "mit-b0": Size(32, (2, 2, 2, 2)),
    "mit-b1": Size(64, (2, 2, 2, 2)),
    "mit-b2": Size(64, (3, 4, 6, 3)),
    "mit-b3": Size(64, (3, 4, 18, 3)),
    "mit-b4": Size(64, (3, 8, 27, 3)),
    "mit-b5": Size(64, (3, 6, 40, 3)),
}


@register
class Attention(keras.layers.Layer):
    """Scaled dot-product attention: queries (N, H, W, C), keys and values (N, h, w, C) → (N, H, W, C).

    softmax(q·kᵀ / √(C / heads)) · v in each head (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762); a head is
    C / heads channels in a row. The softmax is of float32 under every policy.

    Args:
        heads: Attention heads, a divisor of C.
        **kwargs: Name and dtype, as every Keras layer takes them.
    """

    def __init__(self, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads
        self.built = True

    def call(self, query: Any, key: Any, value: Any) -> Any:
        """Return for each query the values' mean, weighted by how keys answer to it."""
        _, height, width, channels = query.shape
        size = channels // self.heads
        scores = ops.matmul(self._split(query * size**-0.5), self._split(key, transposed=True))
        weights = ops.cast(ops.softmax(ops.cast(scores, "float32")), self.compute_dtype)
        answers = ops.transpose(ops.matmul(weights, self._split(value)), (0, 2, 1, 3))
        return ops.reshape(answers, (-1, height, width, channels))

    def compute_output_shape(self, query_shape: Any, key_shape: Any, value_shape: Any) -> Any:
        """Return the shape of the queries."""
        return query_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "heads": self.heads}

    def _split(self, x: Any, transposed: bool = False) -> Any:
        """Turn (N, H, W, C) into (N, heads, HW, C / heads), the last two the other way round where `transposed`."""
        _, height, width, channels = x.shape
        x = ops.reshape(x, (-1, height * width, self.heads, channels // self.heads))
        return ops.transpose(x, (0, 2, 3, 1) if transposed else (0, 2, 1, 3))


def encode(
    encoder: str,
    x: Any,
    prefix: str = "encoder",
    epsilon: float = 1e-6,
    drop_path: float = 0.1,
    width: int | None = None,
) -> list[Any]:
    """Return the maps of MiT `encoder` for (N, H, W, C) at strides 4, 8, 16 and 32, after None for stride 2.

    Args:
        encoder: A key of `SIZES`.
        x: Input, H and W multiples of 32.
        prefix: What the names of the layers begin with.
        epsilon: ε of the normalisations in front of attention and MLP and at a stage's end.
        drop_path: Probability that the last block's branches are dropped; it rises linearly from 0 at the first.
        width: Channels of the first stage; None for the encoder's own.
    """
    size = SIZES[encoder]
    count = sum(size.depths)
    rates = iter([drop_path * block / (count - 1) for block in range(count)])
    maps = [None]
    for stage, (heads, reduction, depth) in enumerate(zip(HEADS, REDUCTION, size.depths, strict=True)):
        name = f"{prefix}.stages.{stage}"
        x = _patches(x, heads * (width or size.width), stage, f"{name}.patch_embeddings")
        for number in range(depth):
            x = _block(x, heads, reduction, next(rates), epsilon, f"{name}.blocks.{number}")
        x = _normalisation(x, f"{name}.layer_norm", epsilon)
        maps.append(x)
    return maps


def _patches(x: Any, width: int, stage: int, name: str) -> Any:
    kernel, stride = (3, 2) if stage else (7, 4)
    x = convolution(x, width, kernel, f"{name}.proj", stride, bias=True)
    return _normalisation(x, f"{name}.layer_norm")


def _block(x: Any, heads: int, reduction: int, rate: float, epsilon: float, name: str) -> Any:
    y = _attention(_normalisation(x, f"{name}.layernorm_before", epsilon), heads, reduction, f"{name}.attention")
    x = keras.layers.Add()([x, DropPath(rate)(y)])
    y = _mlp(_normalisation(x, f"{name}.layernorm_after", epsilon), f"{name}.mlp")
    return keras.layers.Add()([x, DropPath(rate)(y)])


def _attention(x: Any, heads: int, reduction: int, name: str) -> Any:
    width, reduced = x.shape[-1], x
    if reduction > 1:
        reduced = keras.layers.Conv2D(
            width,
            reduction,
            strides=reduction,
            kernel_initializer=HE_FAN_OUT.clone(),
            name=layer_name(f"{name}.sequence_reduction.sequence_reduction"),
        )(x)
        reduced = _normalisation(reduced, f"{name}.sequence_reduction.layer_norm")
    query = linear(x, width, f"{name}.q_proj")
    key, value = (linear(reduced, width, f"{name}.{part}_proj") for part in "kv")
    return linear(Attention(heads)(query, key, value), width, f"{name}.o_proj")


def _mlp(x: Any, name: str) -> Any:
    width = x.shape[-1]
    y = linear(x, MLP * width, f"{name}.fc1")
    y = keras.layers.DepthwiseConv2D(
        3, padding="same", depthwise_initializer=HE_FAN_OUT.clone(), name=layer_name(f"{name}.dwconv.dwconv")
    )(y)
    return linear(keras.layers.Activation("gelu")(y), width, f"{name}.fc2")


def linear(x: Any, width: int, name: str) -> Any:
    """Map the channels of (N, H, W, C) linearly to `width`, with bias."""
    initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Dense(width, kernel_initializer=initializer, name=layer_name(name))(x)


def _normalisation(x: Any, name: str, epsilon: float = 1e-5) -> Any:
    return keras.layers.LayerNormalization(epsilon=epsilon, name=layer_name(name))(x)
