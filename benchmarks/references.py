"""The PyTorch references, in a process of their own: run by `reference_process`, in the environment .venv-parity.

U-Net and U-Net++ are those of segmentation_models_pytorch, SegFormer that of transformers. The Himalaya project's
ResUNet is in no library: it is written here. Nothing of the zoo is used but, where a comparison asks for it, its own
models on Keras's PyTorch backend.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from benchmarks.cases import Case
from benchmarks.turns import repeat
from console import UserError

# Torchvision as the registry has it looks for CUDA when it is imported; segmentation_models_pytorch needs none of
# what it does not find then, but that these two are known.
try:
    import torchvision
except RuntimeError:
    _operators = torch.library.Library("torchvision", "DEF")
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

import segmentation_models_pytorch as smp
import transformers

# Xie et al. 2021, arXiv:2105.15203, tables 6 and 7: widths, depths, width of the decoder.
SEGFORMER = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
IMAGENET_CLASSES = 1000


# Models


class Residual(torch.nn.Module):
    """Convolution → normalisation → ReLU → convolution → normalisation, plus the input, then ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        projection = [torch.nn.Conv2d(channels, width, 1, bias=False), torch.nn.BatchNorm2d(width)]
        self.shortcut = torch.nn.Sequential(*(projection if channels != width else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to (N, C, H, W)."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class HimalayaResUNet(torch.nn.Module):
    """The ResUNet of the Himalaya project, with the names of its checkpoints."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (64, 128, 256, 512)
        self.init_conv = torch.nn.Conv2d(channels, widths[0], 3, padding=1)
        for number, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False), 1):
            setattr(self, f"enc{number}", Residual(before, width))
        self.bottleneck = Residual(512, 1024)
        for number, width in enumerate(reversed(widths), 1):
            setattr(self, f"up{number}", torch.nn.ConvTranspose2d(2 * width, width, 2, stride=2))
            setattr(self, f"dec{number}", Residual(2 * width, width))
        self.final_conv = torch.nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K, H, W) of (N, C, H, W)."""
        x = torch.relu(self.init_conv(x))
        skips = []
        for number in range(1, 5):
            x = getattr(self, f"enc{number}")(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for number in range(1, 5):
            x = torch.cat([getattr(self, f"up{number}")(x), skips.pop()], dim=1)
            x = getattr(self, f"dec{number}")(x)
        return self.final_conv(x)


def model_of(case: Case) -> torch.nn.Module:
    """Return the reference of a whole model."""
    if case.architecture == "segformer":
        return transformers.SegformerForSemanticSegmentation(segformer(case.variant, case.channels, case.classes))
    if case.architecture == "resunet":
        return HimalayaResUNet(case.channels, case.classes)
    kind = {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus}[case.architecture]
    return kind(smp_name(case.variant), encoder_weights=None, in_channels=case.channels, classes=case.classes)


def segformer(variant: str, channels: int, classes: int) -> Any:
    """Return the configuration of SegFormer `variant`."""
    widths, depths, decoder = SEGFORMER[variant]
    return transformers.SegformerConfig(
        num_channels=channels, num_labels=classes, hidden_sizes=widths, depths=depths, decoder_hidden_size=decoder
    )


def smp_name(encoder: str) -> str:
    """Return what segmentation_models_pytorch calls the zoo's `encoder`."""
    return encoder.replace("mit-", "mit_")


def logits_of(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the model's logits, brought up to the size of its input."""
    logits = model(x)
    logits = getattr(logits, "logits", logits)
    if logits.shape[-2:] == x.shape[-2:]:
        return logits
    return functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def probabilities_of(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return probabilities (N, K, H, W), of one class by a sigmoid."""
    logits = logits_of(model, x)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


# Random weights


@torch.no_grad()
def randomise(model: torch.nn.Module, channels: int, generator: torch.Generator) -> None:
    """Give every parameter and every batch statistic of `model` a random value, under which signals keep their size.

    A batch normalisation takes the statistics of a random batch as it arrives there, disturbed. With values made up
    from nothing a deep network returns the same for every input, or is chaotic: then no two programs agree on it.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("weight"):
            parameter.uniform_(0.8, 1.2, generator=generator)
        else:
            parameter.normal_(0, 0.1, generator=generator)

    def measure(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(arguments[0], dim=(0, 2, 3))
        shift = 0.1 * torch.randn(mean.shape, generator=generator) * variance.sqrt()
        module.running_mean.copy_(mean + shift)
        factor = 0.7 + 0.6 * torch.rand(variance.shape, generator=generator)
        module.running_var.copy_(factor * (variance + 0.1 * variance.mean()))  # no channel is blown up from nothing

    normalisations = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    hooks = [module.register_forward_pre_hook(measure) for module in normalisations]
    model.eval()
    model(torch.randn(4, channels, 128, 128, generator=generator))
    for hook in hooks:
        hook.remove()


# What is asked


@torch.no_grad()
def write(case: Case, seed: int, folder: Path) -> tuple[Path, int, np.ndarray, list[np.ndarray]]:
    """Write random weights of the case's reference into `folder`.

    Returns:
        The file, the number of trainable parameters, an input (N, H, W, C), and what the reference returns for it: of
        a whole model the probabilities (N, H, W, K), of an encoder its maps. They are computed in float64, so that
        the difference of the zoo's is its own rounding and not twice that.
    """
    generator = torch.Generator().manual_seed(seed)
    if case.classes:
        model = model_of(case)
        randomise(model, case.channels, generator)
        state = model.state_dict()
    else:
        model, state = encoder_of(case, generator)
    path = folder / f"weights.{'pt' if case.file == 'pt' else 'safetensors'}"
    if case.file == "pt":
        torch.save(state, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    x = torch.randn(2, case.channels, *case.size, generator=generator)
    outputs = [probabilities_of(model.double(), x.double())] if case.classes else maps_of(model.double(), x.double())
    return path, count, last(x), [last(output) for output in outputs]


def last(x: torch.Tensor) -> np.ndarray:
    """Return (N, C, H, W) as a float32 array (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).float().numpy()


def encoder_of(case: Case, generator: torch.Generator) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return an encoder for the bands of `case`, and the whole state dict for three bands that it was made of."""
    if case.file == "transformers":
        configuration = segformer(f"b{case.variant[-1]}", 3, IMAGENET_CLASSES)
        whole = transformers.SegformerForImageClassification(configuration)
        randomise(whole, 3, generator)
        return whole.segformer, whole.state_dict()
    encoder = smp.encoders.get_encoder(smp_name(case.variant), in_channels=3, weights=None)
    if case.file == "torchvision":
        classifier = getattr(torchvision.models, case.variant)()
        randomise(classifier, 3, generator)
        state = classifier.state_dict()
        encoder.load_state_dict(dict(state))
    else:
        randomise(encoder, 3, generator)
        state = dict(encoder.state_dict())
        head = {"efficientnet_pytorch": "_fc", "original": "head"}[case.file]
        state[f"{head}.weight"] = torch.randn(IMAGENET_CLASSES, encoder.out_channels[-1], generator=generator)
        state[f"{head}.bias"] = torch.randn(IMAGENET_CLASSES, generator=generator)
    encoder.eval()
    encoder.set_in_channels(case.channels, pretrained=True)
    return encoder, state


def maps_of(encoder: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the encoder's maps of (N, C, H, W); a stride without one is left out."""
    if isinstance(encoder, transformers.SegformerModel):
        return list(encoder(x, output_hidden_states=True).hidden_states)
    return [output for output in encoder(x)[1:] if output.shape[1]]


def ours(case: Case, weights: Path, x: np.ndarray) -> Any:
    """Return what the zoo makes of the same weights on the PyTorch backend, or what it says against them."""
    from benchmarks import parity

    try:
        return parity.ours(case, weights, x)
    except UserError as error:
        return error


def train(case: Case, batch: int, precision: str, steps: int, turns: int, connection: Connection) -> None:
    """Do `steps` training steps a turn: forward, cross entropy, backward, Adam."""
    model = model_of(case).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)
    x = torch.rand(batch, case.channels, *case.size)
    labels = torch.randint(case.classes, (batch, *case.size))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with automatic(precision):
            logits = logits_of(model, x)
        loss = functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimiser.step()
        loss.item()

    def work() -> None:
        for _ in range(steps):
            step()

    repeat(work, turns, connection)


def predict(case: Case, batch: int, precision: str, steps: int, turns: int, connection: Connection) -> None:
    """Predict `steps` batches a turn: probabilities as an array."""
    model = model_of(case).eval()
    x = torch.rand(batch, case.channels, *case.size)

    @torch.inference_mode()
    def step() -> np.ndarray:
        with automatic(precision):
            probabilities = probabilities_of(model, x)
        return probabilities.numpy()

    repeat(lambda: [step() for _ in range(steps)], turns, connection)


def automatic(precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return PyTorch's own mixed precision, or for float32 none."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=getattr(torch, precision))


def versions() -> str:
    """Return the versions of what is compared with."""
    return ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, smp, transformers))


ANSWERS: dict[str, Callable[..., Any]] = {"write": write, "ours": ours, "versions": versions}
MEASUREMENTS: dict[str, Callable[..., None]] = {"train": train, "predict": predict}


def serve(connection: Connection) -> None:
    """Answer what comes through `connection`, a function's name and its arguments, until its other end is closed."""
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the other end is gone, or Ctrl-C
        while True:
            name, *arguments = connection.recv()
            if name in MEASUREMENTS:
                MEASUREMENTS[name](*arguments, connection)
            else:
                connection.send(ANSWERS[name](*arguments))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    serve(Connection(int(sys.argv[1])))
