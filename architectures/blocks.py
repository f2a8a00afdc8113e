"""Blocks that two or more architectures share: convolutions, fusion of modalities, transformer.

Shapes are (N, H, W, C) for maps and (N, T, C) for tokens. A layer that owns several sublayers of one kind keeps
them in a list that is assigned whole: the order of a layer's weights is the order of its attributes, and that order
is what files of published weights are read by.

A modality that a sample does not have is *absent*: NaN in every pixel and band. `Fusion` leaves it out; a network that
concatenates its modalities sees zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

PACKAGE = "glacier_mapping"
register = keras.saving.register_keras_serializable(package=PACKAGE)


Shape = tuple[int | None, ...]


class Block(keras.layers.Layer):
    """A layer of layers, which are built with it.

    A block says its output's shape, so that Keras need not run it to find out: networks are built several times faster.
    """

    def get_build_config(self) -> None:
        """Return nothing: a block read from a file is built by its first call."""


def _build_chain(layers: Sequence[Any], shape: Shape) -> Shape:
    """Build layers for inputs of `shape` that pass one after the other; return the shape of the last one's output."""
    for layer in layers:
        layer.build(shape)
        shape = tuple(layer.compute_output_shape(shape))
    return shape


@register
class PresentNormalization(keras.layers.BatchNormalization):
    """Batch normalisation that learns of some samples of a batch only: (N, H, W, C) → (N, H, W, C).

    In training, mean and variance are those of the samples that are `present`; where none is, the moving ones are used
    and stay as they are. All samples are normalised, the others to be left out of what follows.
    """

    def call(self, inputs: Any, training: bool | None = None, present: Any = None) -> Any:
        """Normalise (N, H, W, C), with statistics of the samples where `present` (N, 1, 1, 1) is true; None: of all."""
        if present is None or not (training and self.trainable):
            return super().call(inputs, training=training)
        x, weights = ops.cast(inputs, "float32"), ops.cast(present, "float32")
        owned = (self.moving_mean, self.moving_variance, self.gamma, self.beta)
        moving_mean, moving_variance, gamma, beta = (ops.cast(variable, "float32") for variable in owned)
        count = ops.sum(weights)
        # Keras's own `mask` needs several more maps of full size, and has moving statistics fall to 0 where count is 0.
        means, variances = ops.moments(x, axes=(1, 2), keepdims=True)
        mean = ops.sum(weights * means, axis=(0, 1, 2)) / ops.maximum(count, 1.0)
        variances = variances + ops.square(means - mean)
        variance = ops.sum(weights * variances, axis=(0, 1, 2)) / ops.maximum(count, 1.0)
        mean = ops.where(count > 0, mean, moving_mean)
        variance = ops.where(count > 0, variance, moving_variance)
        self.moving_mean.assign(moving_mean * self.momentum + mean * (1.0 - self.momentum))
        self.moving_variance.assign(moving_variance * self.momentum + variance * (1.0 - self.momentum))
        y = ops.batch_normalization(x, mean, variance, -1, offset=beta, scale=gamma, epsilon=self.epsilon)
        return ops.cast(y, self.compute_dtype)


@register
class AbsentToZero(keras.layers.Layer):
    """Values that are not finite become 0: (N, H, W, C) → (N, H, W, C)."""

    def call(self, x: Any) -> Any:
        """Replace what is not finite in `x`."""
        return _zero_absent(x)[0]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape itself."""
        return input_shape


def _zero_absent(x: Any) -> tuple[Any, Any]:
    """Return (N, H, W, C) with 0 where it is not finite, and, bool (N, 1, 1, 1), which samples have a finite value."""
    finite = ops.isfinite(x)
    return ops.where(finite, x, ops.zeros_like(x)), ops.any(finite, axis=(1, 2, 3), keepdims=True)


@register
class DoubleConvolution(Block):
    """Twice [3×3 convolution → batch normalisation → LeakyReLU], then spatial dropout: (N, H, W, C) → (N, H, W, width).

    Args:
        width: Channels of both convolutions.
        slope: Slope of the LeakyReLU below zero.
        dropout: Share of the channels dropped in training, 0 to 1.
        **kwargs: Name and dtype, as every Keras layer takes them.
    """

    def __init__(self, width: int, slope: float = 0.3, dropout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.slope, self.dropout = width, slope, dropout
        dtype = self.dtype_policy
        self.convolution_1 = keras.layers.Conv2D(width, 3, padding="same", dtype=dtype)
        self.normalisation_1 = PresentNormalization(epsilon=1e-3, dtype=dtype)
        self.convolution_2 = keras.layers.Conv2D(width, 3, padding="same", dtype=dtype)
        self.normalisation_2 = PresentNormalization(epsilon=1e-3, dtype=dtype)
        self.activation = keras.layers.LeakyReLU(negative_slope=slope, dtype=dtype)
        self.spatial_dropout = keras.layers.SpatialDropout2D(dropout, dtype=dtype)

    def build(self, x_shape: Shape, present_shape: Shape | None = None) -> None:
        """Build for (N, H, W, C)."""
        layers = [self.convolution_1, self.normalisation_1, self.convolution_2, self.normalisation_2]
        _build_chain([*layers, self.activation, self.spatial_dropout], x_shape)

    def compute_output_shape(self, x_shape: Shape, present_shape: Shape | None = None) -> Shape:
        """Return (N, H, W, width)."""
        return (*x_shape[:-1], self.width)

    def call(self, x: Any, training: bool | None = None, present: Any = None) -> Any:
        """Apply the block to (N, H, W, C); `present` (N, 1, 1, 1): the samples that normalisation learns of."""
        x = self.activation(self.normalisation_1(self.convolution_1(x), training=training, present=present))
        x = self.activation(self.normalisation_2(self.convolution_2(x), training=training, present=present))
        return self.spatial_dropout(x, training=training)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "width": self.width, "slope": self.slope, "dropout": self.dropout}


@register
class Fusion(Block):
    """One double convolution per modality, summed: list of (N, H, W, Cₘ) → (N, H, W, width).

    With `excite`, each branch is first scaled channel by channel by squeeze-and-excitation (Hu et al. 2018,
    https://doi.org/10.1109/CVPR.2018.00745) without a reduction: mean over the map → linear → LeakyReLU 0.2 → linear
    → sigmoid.

    A modality that is absent from a sample, without one finite value there, is left out of it: the sum is that of the
    others, whatever the weights of its branch are. Single values that are not finite are 0. In training, the batch
    normalisations of a branch learn of the samples alone that have its modality (`PresentNormalization`). A single
    modality is taken as it is.

    Args:
        modalities: How many inputs there are.
        width: Channels of every branch.
        slope: Slope of the LeakyReLUs of the double convolutions.
        dropout: Spatial dropout of the branches, 0 to 1.
        excite: Whether squeeze-and-excitation scales the branches.
        **kwargs: Name and dtype, as every Keras layer takes them.
    """

    def __init__(
        self,
        modalities: int,
        width: int,
        slope: float = 0.3,
        dropout: float = 0.1,
        excite: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.modalities, self.width, self.slope = modalities, width, slope
        self.dropout, self.excite = dropout, excite
        dtype = self.dtype_policy
        self.branches = [DoubleConvolution(width, slope, dropout, dtype=dtype) for _ in range(modalities)]
        gates = range(modalities if excite else 0)
        self.squeezes = [keras.layers.Dense(width, dtype=dtype) for _ in gates]
        self.excitations = [keras.layers.Dense(width, activation="sigmoid", dtype=dtype) for _ in gates]

    def build(self, input_shape: Sequence[Shape]) -> None:
        """Build for the modalities' (N, H, W, Cₘ), in the order of construction."""
        if len(input_shape) != self.modalities:
            raise ValueError(f"Fusion of {self.modalities} modalities received {len(input_shape)} inputs")
        for branch, shape in zip(self.branches, input_shape, strict=True):
            branch.build(shape)
        for gate in (*self.squeezes, *self.excitations):
            gate.build((None, 1, 1, self.width))

    def compute_output_shape(self, input_shape: Sequence[Shape]) -> Shape:
        """Return (N, H, W, width)."""
        return (*input_shape[0][:-1], self.width)

    def call(self, inputs: Sequence[Any], training: bool | None = None) -> Any:
        """Fuse the modalities, given in the order of construction."""
        maps = []
        for i, (branch, x) in enumerate(zip(self.branches, inputs, strict=True)):
            x, present = _zero_absent(x) if self.modalities > 1 else (x, None)
            y = branch(x, training=training, present=present)
            if self.excite:
                gate = self.squeezes[i](ops.mean(y, axis=(1, 2), keepdims=True))
                y = y * self.excitations[i](ops.leaky_relu(gate, negative_slope=0.2))
            if present is not None:
                y = y * ops.cast(present, y.dtype)
            maps.append(y)
        fused = maps[0]
        for branch_map in maps[1:]:
            fused = fused + branch_map
        return fused

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {
            **super().get_config(),
            "modalities": self.modalities,
            "width": self.width,
            "slope": self.slope,
            "dropout": self.dropout,
            "excite": self.excite,
        }


@register
class ResidualBlock(Block):
    """Double convolution plus the input through a linear map without bias: (N, H, W, C) → (N, H, W, width).

    Args:
        width: Channels of the output.
        slope: Slope of the LeakyReLUs.
        dropout: Spatial dropout of the double convolution, 0 to 1.
        **kwargs: Name and dtype, as every Keras layer takes them.
    """

    def __init__(self, width: int, slope: float = 0.3, dropout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.slope, self.dropout = width, slope, dropout
        self.convolutions = DoubleConvolution(width, slope, dropout, dtype=self.dtype_policy)
        self.projection = keras.layers.Dense(width, use_bias=False, dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Build for (N, H, W, C)."""
        self.convolutions.build(input_shape)
        self.projection.build(input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (N, H, W, width)."""
        return (*input_shape[:-1], self.width)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Apply the block to (N, H, W, C)."""
        # As a convolution of 1×1 the same product keeps the layout of maps, which exported graphs would change twice.
        kernel = ops.cast(self.projection.kernel, x.dtype)[None, None]
        return self.convolutions(x, training=training) + ops.conv(x, kernel, padding="valid")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "width": self.width, "slope": self.slope, "dropout": self.dropout}


@register
class UpConvolution(Block):
    """Nearest ×2 → 2×2 convolution without bias → batch normalisation: (N, H, W, C) → (N, 2H, 2W, width).

    Args:
        width: Channels of the output.
        **kwargs: Name and dtype, as every Keras layer takes them.
    """

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        dtype = self.dtype_policy
        self.convolution = keras.layers.Conv2D(width, 2, padding="same", use_bias=False, dtype=dtype)
        self.normalisation = keras.layers.BatchNormalization(epsilon=1e-3, dtype=dtype)

    def build(self, input_shape: Shape) -> None:
        """Build for (N, H, W, C)."""
        upsampled = (*self.compute_output_shape(input_shape)[:-1], input_shape[-1])
        _build_chain([self.convolution, self.normalisation], upsampled)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (N, 2H, 2W, width)."""
        number, height, width, _ = input_shape
        assert height is not None and width is not None
        return (number, 2 * height, 2 * width, self.width)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Apply the block to (N, H, W, C)."""
        x = ops.image.resize(x, self.compute_output_shape(x.shape)[1:3], interpolation="nearest")
        return self.normalisation(self.convolution(x), training=training)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "width": self.width}


@register
class PatchEmbedding(Block):
    """Non-overlapping patches, flattened row, column, channel, through a linear map: (N, H, W, C) → (N, HW/p², width).

    Args:
        patch: Side p of a patch; H and W are multiples of it.
        width: Channels of a token.
        **kwargs: Name and dtype, as every Keras layer takes them.
    """

    def __init__(self, patch: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch, self.width = patch, width
        self.projection = keras.layers.Dense(width, dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Build for (N, H, W, C)."""
        channels = input_shape[-1]
        assert channels is not None
        self.projection.build((*self.compute_output_shape(input_shape)[:-1], self.patch**2 * channels))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (N, HW/p², width)."""
        _, height, width, _ = input_shape
        assert height is not None and width is not None
        return (input_shape[0], (height // self.patch) * (width // self.patch), self.width)

    def call(self, x: Any) -> Any:
        """Cut (N, H, W, C) into tokens."""
        _, height, width, channels = x.shape
        p = self.patch
        x = ops.reshape(x, (-1, height // p, p, width // p, p, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return self.projection(ops.reshape(x, (-1, (height // p) * (width // p), p * p * channels)))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "patch": self.patch, "width": self.width}


@register
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector to each token: (N, T, C) → (N, T, C)."""

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the (T, C) table."""
        self.positions = self.add_weight(
            shape=tuple(input_shape[1:]),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="positions",
        )

    def call(self, x: Any) -> Any:
        """Add the table to (N, T, C)."""
        return x + ops.cast(self.positions, x.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape itself."""
        return input_shape


@register
class TransformerBlock(Block):
    """Pre-normalised self-attention and MLP, each with a residual: (N, T, width) → (N, T, width).

    x + MHSA(LN(x)), then x + D(gelu(W₂ D(gelu(W₁ LN(x))))): the GELU is exact and stands after *both* linear maps,
    dropout D after both; that is the published GlaViTU code's MLP, not the ViT paper's.

    Args:
        width: Channels of a token, a multiple of `heads`.
        mlp: Hidden width of the MLP.
        heads: Attention heads.
        dropout: Dropout of the MLP, 0 to 1.
        **kwargs: Name and dtype, as every Keras layer takes them.
    """

    def __init__(self, width: int, mlp: int, heads: int, dropout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.mlp, self.heads, self.dropout = width, mlp, heads, dropout
        dtype = self.dtype_policy
        self.normalisation_1 = keras.layers.LayerNormalization(epsilon=1e-3, dtype=dtype)
        self.attention = keras.layers.MultiHeadAttention(heads, width // heads, dtype=dtype)
        self.normalisation_2 = keras.layers.LayerNormalization(epsilon=1e-3, dtype=dtype)
        self.linear_1 = keras.layers.Dense(mlp, dtype=dtype)
        self.linear_2 = keras.layers.Dense(width, dtype=dtype)
        self.dropout_1 = keras.layers.Dropout(dropout, dtype=dtype)
        self.dropout_2 = keras.layers.Dropout(dropout, dtype=dtype)

    def build(self, input_shape: Shape) -> None:
        """Build for (N, T, width)."""
        self.normalisation_1.build(input_shape)
        self.attention.build(input_shape, input_shape)
        layers = [self.normalisation_2, self.linear_1, self.dropout_1, self.linear_2, self.dropout_2]
        _build_chain(layers, input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape itself."""
        return input_shape

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Apply the block to (N, T, width)."""
        y = self.normalisation_1(x)
        x = x + self.attention(y, y, training=training)
        y = ops.gelu(self.linear_1(self.normalisation_2(x)), approximate=False)
        y = ops.gelu(self.linear_2(self.dropout_1(y, training=training)), approximate=False)
        return x + self.dropout_2(y, training=training)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {
            **super().get_config(),
            "width": self.width,
            "mlp": self.mlp,
            "heads": self.heads,
            "dropout": self.dropout,
        }


@register
class LocationEncoding(Block):
    """Twice [linear → batch normalisation → LeakyReLU 0.3], then dropout: (N, L) → (N, width).

    Args:
        width: Channels of the encoding.
        dropout: Dropout of the encoding, 0 to 1.
        **kwargs: Name and dtype, as every Keras layer takes them.
    """

    def __init__(self, width: int, dropout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.dropout = width, dropout
        dtype = self.dtype_policy
        self.linear_1 = keras.layers.Dense(width, dtype=dtype)
        self.normalisation_1 = keras.layers.BatchNormalization(epsilon=1e-3, dtype=dtype)
        self.linear_2 = keras.layers.Dense(width, dtype=dtype)
        self.normalisation_2 = keras.layers.BatchNormalization(epsilon=1e-3, dtype=dtype)
        self.activation = keras.layers.LeakyReLU(negative_slope=0.3, dtype=dtype)
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=dtype)

    def build(self, input_shape: Shape) -> None:
        """Build for (N, L)."""
        layers = [self.linear_1, self.normalisation_1, self.linear_2, self.normalisation_2]
        _build_chain([*layers, self.activation, self.dropout_layer], input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (N, width)."""
        return (input_shape[0], self.width)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Encode (N, L)."""
        x = self.activation(self.normalisation_1(self.linear_1(x), training=training))
        x = self.activation(self.normalisation_2(self.linear_2(x), training=training))
        return self.dropout_layer(x, training=training)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "width": self.width, "dropout": self.dropout}


def modality_inputs(inputs: dict[str, int], size: tuple[int, int]) -> dict[str, Any]:
    """Return one `keras.Input` of (height, width, channels) per modality, in the order given."""
    return {name: keras.Input((*size, channels), name=name) for name, channels in inputs.items()}


def fuse(tensors: dict[str, Any], width: int, dropout: float, slope: float = 0.3, excite: bool = False) -> Any:
    """Fuse the modalities' inputs, in their order, into one (N, H, W, width) map."""
    layer = Fusion(len(tensors), width, slope=slope, dropout=dropout, excite=excite, name="fusion")
    return layer(list(tensors.values()))


def merge(tensors: dict[str, Any], fusion: str, width: int, dropout: float) -> Any:
    """Return one map of the modalities' inputs, in their order, for a network that takes one input.

    Args:
        tensors: Modality name → (N, H, W, Cₘ).
        fusion: `concatenate` for (N, H, W, ΣCₘ), an absent modality 0 there, or `branches` for the sum of a double
            convolution each, without the absent ones.
        width: Channels of the branches.
        dropout: Spatial dropout of the branches, 0 to 1.
    """
    if fusion == "branches":
        return fuse(tensors, width, dropout)
    maps = list(tensors.values())
    return maps[0] if len(maps) == 1 else AbsentToZero()(keras.layers.Concatenate(name="inputs")(maps))


def activation_of(num_classes: int) -> str:
    """Return the last activation: sigmoid for one class, softmax over two or more."""
    return "sigmoid" if num_classes == 1 else "softmax"


def head(x: Any, num_classes: int, name: str) -> Any:
    """Map (N, H, W, C) to probabilities (N, H, W, num_classes), float32 under every precision policy."""
    return keras.layers.Dense(num_classes, activation=activation_of(num_classes), dtype="float32", name=name)(x)


def vit_encoder(
    shape: tuple[int, int, int], patch: int, width: int, mlp: int, depth: int, heads: int, dropout: float
) -> list[Any]:
    """Return the layers of a ViT encoder for maps of `shape` (H, W, C), to be applied in order.

    Patch embedding, position embedding, `depth` transformer blocks, no class token, no final normalisation, and the
    tokens laid back on their grid: (N, H, W, C) → (N, H/patch, W/patch, width).
    """
    return [
        PatchEmbedding(patch, width),
        PositionEmbedding(),
        *(TransformerBlock(width, mlp, heads, dropout) for _ in range(depth)),
        keras.layers.Reshape((shape[0] // patch, shape[1] // patch, width)),
    ]


def network(name: str, shape: tuple[int, ...], layers: Sequence[Any]) -> Any:
    """Return `layers` in a chain as one named functional model for inputs of `shape` (H, W, C)."""
    inputs = x = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=name)
