"""The zoo's architectures: `architectures.build(name, inputs, num_classes, patch_size, **options)`."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

import keras

from architectures import glavitu, resunet, segformer, setr, transunet, unet, unetplusplus
from console import UserError

REGISTRY: dict[str, types.ModuleType] = {
    "glavitu": glavitu,
    "resunet": resunet,
    "segformer": segformer,
    "setr": setr,
    "transunet": transunet,
    "unet": unet,
    "unetplusplus": unetplusplus,
}

__all__ = ["REGISTRY", "build", "options_of"]


def build(
    name: str,
    inputs: dict[str, int],
    num_classes: int = 2,
    patch_size: int | tuple[int, int] = 384,
    **options: Any,
) -> keras.Model:
    """Return the architecture `name` as a functional model with fresh weights.

    The model takes a dict of float arrays (N, H, W, C) by modality (and `location` (N, L) where asked for) and
    returns a dict of float32 probabilities (N, H, W, num_classes): `output`, and one for each further output that
    GlaViTU (`deepsupervision`) and U-Net++ (`deepsupervision_1`, …) are supervised at.
    Under a mixed precision policy only the inside is of lower precision.

    Of several modalities a sample may lack some: NaN in every pixel and band says that one is absent. Architectures
    that fuse branches leave it out, those that concatenate see zeros.

    Args:
        name: One of `REGISTRY`.
        inputs: Modality name → number of channels. The order is the model's order, and matters for its weights.
        num_classes: Number of classes; 1 gives one sigmoid probability, more a softmax.
        patch_size: Side of a patch in pixels, or (height, width).
        **options: The architecture's own, each with a default: `options_of(name)` lists them.

    Raises:
        UserError: An unknown name or option, an impossible value, an option that has no meaning with the others, or a
            patch size that the graph can't take.
    """
    module = _module(name)
    known = options_of(name)
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"{name} has no option {', '.join(unknown)}; it has: {', '.join(sorted(known))}")
    hints = typing.get_type_hints(module.build)
    # A choice is a word; YAML and the command line read the variant 2025 as a number.
    options = {k: v if v is None else str(v) if _choices(hints[k]) else v for k, v in (known | options).items()}
    _check(name, inputs, num_classes, options, hints)
    _check_meaning(name, options, known)
    size = _size(name, patch_size, module.stride(**options))
    return module.build(dict(inputs), num_classes, size, **options)


def options_of(name: str) -> dict[str, Any]:
    """Return the options of architecture `name` with their defaults. Raises `UserError` for an unknown name."""
    parameters = inspect.signature(_module(name).build).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _module(name: str) -> types.ModuleType:
    if name not in REGISTRY:
        raise UserError(f"unknown architecture {name!r}; the zoo has: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def _size(name: str, patch_size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    sides = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    if any(side < stride or side % stride for side in sides):
        nearest = [max(stride, (side + stride // 2) // stride * stride) for side in sides]
        shown, advised = ("×".join(map(str, dict.fromkeys(pair))) for pair in (sides, nearest))
        raise UserError(
            f"{name} with these options takes patch sizes that are multiples of {stride}; received {shown}, "
            f"the nearest that it can take is {advised}"
        )
    return sides[0], sides[1]


def _check(name: str, inputs: dict[str, int], num_classes: int, options: dict[str, Any], hints: dict[str, Any]) -> None:
    """Raise `UserError` for the first value that no graph can be made of."""
    if not inputs or any(not isinstance(c, int) or c < 1 for c in inputs.values()):
        raise UserError(f"{name} needs one or more modalities with at least one channel each; received {inputs}")
    if "location" in inputs:
        raise UserError("`location` is no modality: ask for that input with the option location_size")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"{name}: num_classes must be a whole number from 1; received {num_classes!r}")
    for key, value in options.items():
        hint, choices = hints[key], _choices(hints[key])
        if types.NoneType in typing.get_args(hint):
            if value is None:  # the architecture's own choice
                continue
            hint = typing.get_args(hint)[0]
        if choices and value not in choices:
            raise UserError(f"{name}: {key} must be one of {', '.join(choices)}; received {value!r}")
        if hint is bool and not isinstance(value, bool):
            raise UserError(f"{name}: {key} must be true or false; received {value!r}")
        least = 0 if key == "location_size" else 1
        if hint is int and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UserError(f"{name}: {key} must be a whole number from {least}; received {value!r}")
        if hint is float and not (isinstance(value, int | float) and 0 <= value < 1):
            raise UserError(f"{name}: {key} must lie in 0 ≤ {key} < 1; received {value!r}")
    tokens = "vit_width" if "vit_width" in options else "width"
    if "heads" in options and options[tokens] % options["heads"]:
        raise UserError(
            f"{name}: {tokens} must be a multiple of heads; "
            f"received {tokens}={options[tokens]}, heads={options['heads']}"
        )


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the words of a `Literal`, also of one that None may stand for; of any other hint nothing."""
    members = typing.get_args(hint)
    if types.NoneType in members:
        return _choices(members[0])
    return members


def _check_meaning(name: str, options: dict[str, Any], known: dict[str, Any]) -> None:
    """Raise `UserError` for the first option given that would be ignored.

    A module's `ONLY_WITH` says of an option which values of which others give it a meaning, any of them.
    """
    for key, others in getattr(REGISTRY[name], "ONLY_WITH", {}).items():
        if options[key] != known[key] and all(options[other] not in values for other, values in others.items()):
            needed = " or ".join(f"{other} {' or '.join(values)}" for other, values in others.items())
            received = ", ".join(f"{other}={options[other]}" for other in (key, *others))
            raise UserError(f"{name}: {key} has a meaning only with {needed}; received {received}")
