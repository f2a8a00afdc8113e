"""What is compared with PyTorch: models of the zoo with a reference, and encoders alone. Data, read on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODALITY = "optical"  # the models' one input
_OPTION = {"unet": "encoder", "unetplusplus": "encoder", "segformer": "variant", "resunet": "variant"}


@dataclass(frozen=True)
class Case:
    """A model of the zoo whose reference is in PyTorch, or the encoder of one.

    Attributes:
        architecture: Of the zoo, or `encoder`.
        variant: Its encoder or variant.
        channels: Bands of the input.
        classes: Of the output; 0 for an encoder.
        size: (height, width) of the input.
        file: How the weights come: a whole state dict as `safetensors` or `pt`; for an encoder, the names of
            `torchvision`, `efficientnet_pytorch`, the `original` MiT, or `transformers`, for three bands.
        backend: Of Keras.
    """

    architecture: str
    variant: str
    channels: int
    classes: int
    size: tuple[int, int]
    file: Literal["safetensors", "pt", "torchvision", "efficientnet_pytorch", "original", "transformers"]
    backend: Literal["tensorflow", "torch"] = "tensorflow"

    @property
    def name(self) -> str:
        """Architecture and variant."""
        return f"{self.architecture} {self.variant}"

    @property
    def options(self) -> dict[str, str]:
        """Options of the architecture."""
        return {_OPTION[self.architecture]: self.variant}


CASES = (
    Case("unet", "resnet34", 6, 2, (96, 160), "safetensors"),
    Case("unet", "resnet50", 3, 1, (64, 96), "safetensors"),
    Case("unet", "resnet101", 1, 3, (64, 64), "safetensors"),
    Case("unet", "efficientnet-b0", 1, 4, (96, 64), "safetensors"),
    Case("unet", "efficientnet-b4", 18, 1, (96, 160), "safetensors"),
    Case("unet", "mit-b0", 1, 1, (64, 96), "safetensors"),
    Case("unet", "mit-b2", 18, 4, (96, 64), "safetensors"),
    Case("unetplusplus", "resnet34", 5, 1, (96, 64), "safetensors"),
    Case("unetplusplus", "resnet50", 1, 3, (64, 64), "safetensors"),
    Case("unetplusplus", "efficientnet-b5", 18, 1, (64, 96), "safetensors"),
    Case("segformer", "b0", 6, 2, (96, 160), "safetensors"),
    Case("segformer", "b2", 1, 4, (64, 96), "safetensors"),
    Case("segformer", "b4", 18, 1, (96, 64), "safetensors"),
    Case("resunet", "himalaya", 18, 1, (64, 96), "safetensors"),
    Case("resunet", "himalaya", 1, 3, (80, 48), "safetensors"),
    Case("encoder", "resnet34", 3, 0, (96, 160), "torchvision"),
    Case("encoder", "resnet50", 6, 0, (64, 96), "torchvision"),
    Case("encoder", "efficientnet-b0", 1, 0, (96, 64), "efficientnet_pytorch"),
    Case("encoder", "efficientnet-b4", 18, 0, (64, 96), "efficientnet_pytorch"),
    Case("encoder", "mit-b0", 3, 0, (96, 160), "transformers"),
    Case("encoder", "mit-b2", 6, 0, (64, 96), "original"),
    Case("unet", "resnet34", 5, 4, (64, 96), "pt", "torch"),
    Case("unetplusplus", "efficientnet-b0", 18, 2, (64, 64), "pt", "torch"),
    Case("segformer", "b0", 1, 1, (64, 96), "pt", "torch"),
    Case("encoder", "resnet18", 1, 0, (64, 96), "torchvision", "torch"),
)
