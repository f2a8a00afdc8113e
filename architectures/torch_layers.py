"""Layers that compute and are called as PyTorch's: the parts of architectures whose checkpoints are PyTorch's.

Every layer with weights in those architectures is one of Keras's own, directly in the functional model, and its name
stands for the path of its counterpart in the PyTorch reference, `encoder.layer1.0.conv1` (`layer_name`): a state dict
is read by name (`checkpoints`), and what a user freezes or reads about goes by names that the field knows.

What differs from Keras's defaults: a strided convolution is padded alike on all sides, where Keras's "same" pads the
far sides more; batch normalisation has ε 1e-5 and momentum 0.9 (0.1 in PyTorch's count).
"""

from __future__ import annotations

from typing import Any

import keras

from architectures.blocks import register

# PyTorch's own for convolutions in residual networks (He et al. 2015, https://doi.org/10.1109/ICCV.2015.123).
HE_FAN_OUT = keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")
HE_UNIFORM = keras.initializers.HeUniform()


def layer_name(path: str) -> str:
    """Return what the layer is called that stands for the PyTorch module at `path`: hyphens for its dots.

    Keras's PyTorch backend keeps weights in a dict by their layer's name, and its keys can't have dots.
    """
    return path.replace(".", "-")


def module_path(name: str) -> str:
    """Return the path of the PyTorch module that the layer called `name` stands for, `layer_name` undone."""
    return name.replace("-", ".")


def convolution(
    x: Any,
    width: int,
    kernel: int,
    name: str,
    stride: int = 1,
    bias: bool = False,
    initializer: keras.initializers.Initializer = HE_FAN_OUT,
) -> Any:
    """Convolve (N, H, W, C) with padding ⌊kernel / 2⌋ on every side: (N, ⌈H/stride⌉, ⌈W/stride⌉, width)."""
    same = stride == 1
    if not same and kernel > 1:
        x = keras.layers.ZeroPadding2D(kernel // 2, name=layer_name(f"{name}.padding"))(x)
    layer = keras.layers.Conv2D(
        width,
        kernel,
        strides=stride,
        padding="same" if same else "valid",
        use_bias=bias,
        kernel_initializer=initializer.clone(),  # one instance gives layers of one shape the same values
        name=layer_name(name),
    )
    return layer(x)


def up_convolution(x: Any, width: int, name: str) -> Any:
    """Apply a transposed 2×2 convolution with bias: (N, H, W, C) → (N, 2H, 2W, width)."""
    layer = keras.layers.Conv2DTranspose(
        width, 2, strides=2, kernel_initializer=HE_UNIFORM.clone(), name=layer_name(name)
    )
    return layer(x)


def normalisation(x: Any, name: str, epsilon: float = 1e-5, momentum: float = 0.9) -> Any:
    """Normalise over the batch; `momentum` is the share of the moving statistics that stays."""
    return keras.layers.BatchNormalization(epsilon=epsilon, momentum=momentum, name=layer_name(name))(x)


def relu(x: Any) -> Any:
    """Return max(x, 0)."""
    return keras.layers.ReLU()(x)


def convolution_head(x: Any, num_classes: int, name: str, kernel: int = 3) -> Any:
    """Map (N, H, W, C) to probabilities (N, H, W, num_classes) by a convolution, float32 under every policy."""
    layer = keras.layers.Conv2D(
        num_classes,
        kernel,
        padding="same",
        activation="sigmoid" if num_classes == 1 else "softmax",
        dtype="float32",
        name=layer_name(name),
    )
    return layer(x)


@register
class DropPath(keras.layers.Layer):
    """Drops the branch of a residual block, sample by sample, in training: (N, …, C) → (N, …, C).

    Stochastic depth (Huang et al. 2016, https://doi.org/10.1007/978-3-319-46493-0_39): a sample is 0 with probability
    `rate` and divided by 1 − `rate` otherwise, so that the mean stays. The identity in inference and at rate 0.

    Args:
        rate: Probability that a sample is dropped, 0 ≤ rate < 1.
        **kwargs: Name and dtype, as every Keras layer takes them.

    Raises:
        ValueError: A rate outside of 0 ≤ rate < 1.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"DropPath needs 0 ≤ rate < 1; received rate={rate}")
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator()
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Drop samples of (N, …, C)."""
        if not training or self.rate == 0:
            return x
        noise_shape = (None, *(1 for _ in x.shape[1:]))
        return keras.random.dropout(x, self.rate, noise_shape=noise_shape, seed=self.seed_generator)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "rate": self.rate}
