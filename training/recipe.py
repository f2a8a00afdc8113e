"""Recipes: YAML files that say how a system is trained, read into one frozen, validated object."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from console import UserError
from console.schemas import explained, set_value
from data.augmentation import Augmentation
from data.tiles import IGNORE, ClassInfo
from training.losses import SSIM_WINDOW, LossTerms

FOLDER = Path(__file__).resolve().parent.parent / "recipes"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
ReducedPrecision = Literal["float16", "bfloat16"]
Monitor = Literal["iou", "dice", "f1", "precision", "recall", "accuracy", "kappa", "mcc", "multiclass_mcc", "loss"]
_OPTIMISERS_WITH = {
    "weight_decay": ("adamw",),
    "l2": ("adam", "sgd"),
    "momentum": ("sgd",),
    "nesterov": ("sgd",),
    "epsilon": ("adam", "adamw"),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(_Part):
    """Which network: a name of the zoo and the options that differ from its defaults."""

    name: str
    options: dict[str, Any] = {}


class Optimiser(_Part):
    """Adam, AdamW or stochastic gradient descent (sgd), with all trainable variables treated alike, biases as well.

    A step clips the gradient, all variables as one vector, to the norm `clip_norm`, and then adds `l2` times the
    weights to it: PyTorch's order, and what its Adam and SGD call weight decay. AdamW's `weight_decay` is decoupled
    (Loshchilov and Hutter 2019, arXiv:1711.05101): each step takes rate × `weight_decay` of the weights off, whatever
    their gradient. `epsilon` is the ε̂ of Kingma and Ba 2015 (arXiv:1412.6980, end of section 2), null for Keras's;
    `momentum` is Polyak's, or with `nesterov` Nesterov's.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive = 5e-4
    weight_decay: NotNegative = 0.0
    l2: NotNegative = 0.0
    clip_norm: Positive | None = None
    epsilon: Positive | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _every_option_is_used(self) -> Optimiser:
        for option, names in _OPTIMISERS_WITH.items():
            if getattr(self, option) and self.name not in names:
                raise ValueError(f"{option} needs the optimiser {' or '.join(names)}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Constant(_Part):
    """The rate as it is, after the warm-up."""

    name: Literal["constant"]
    warmup_epochs: NotNegative = 0.0


class Plateau(_Part):
    """×`factor` after `patience` epochs in which the monitored score gained no more than `min_delta`, down to `floor`.

    A gain is a rise; of the loss it is a fall.
    """

    name: Literal["plateau"]
    warmup_epochs: NotNegative = 0.0
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Count = 10
    min_delta: NotNegative = 1e-4
    floor: NotNegative = 0.0


class Cosine(_Part):
    """Half a cosine from the rate to 0 over the run's epochs, after the warm-up."""

    name: Literal["cosine"]
    warmup_epochs: NotNegative = 0.0


class Restarts(_Part):
    """Half a cosine from the rate to 0 up to the end of each of `epochs` and of the run, then at once the full rate.

    Loshchilov and Hutter 2017 (arXiv:1608.03983). The warm-up is at the start alone, within the first cosine.
    """

    name: Literal["restarts"]
    warmup_epochs: NotNegative = 0.0
    epochs: Annotated[tuple[Count, ...], Field(min_length=1)]

    @field_validator("epochs")
    @classmethod
    def _rising(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if any(after <= before for before, after in pairwise(epochs)):
            raise ValueError("expected epochs each later than the one before")
        return epochs


class Sampling(_Part):
    """Training patches centred on pixels of rare classes; all others are drawn uniformly.

    `centred` is the share of the patches by class name of the tile file, or `auto`: every class with less than 1/K of
    the pixels is seen in the patches' centres as often as if all K classes were even
    (`data.sampling.automatic_shares`).
    """

    centred: Literal["auto"] | dict[str, float]

    @field_validator("centred", mode="before")
    @classmethod
    def _shares(cls, centred: Any) -> Any:
        if centred != "auto" and not (
            isinstance(centred, dict)
            and centred
            and all(isinstance(name, str) for name in centred)
            and all(isinstance(share, int | float) and 0 < share <= 1 for share in centred.values())
            and math.fsum(centred.values()) <= 1 + 1e-9
        ):
            raise ValueError("expected `auto`, or shares of the patches by class, each above 0, at most 1 in sum")
        return centred


class Training(_Part):
    """Sizes, optimiser, schedule and stopping; epochs count from 1 in what the user sees.

    A step is one update of the weights with the gradients of `batch_size` patches. With `accumulate` they come in so
    many parts, of which the network sees one at a time and the update takes the mean gradient: the memory is that of
    a part. Batch normalisation sees the part as well, and so do losses that pool over a batch (Dice); those that are
    means over pixels are the same where the parts have equally many pixels that count. Validation sees
    `validation_batch_size` patches at a time, null for as many as training, and its loss is the mean over these.

    `epoch_factor` × ⌊whole patches / batch⌋ steps make an epoch, at least 1, unless `steps_per_epoch` says otherwise.
    `monitor` is the validation score that selects the best epoch and that plateau and stopping watch: of glacier
    against the rest, but `multiclass_mcc` is of all classes, and `loss` is the validation loss, the lower the better.
    `stop_patience` epochs without any gain in it end the run; null never does. `precision` lists the reduced precisions
    that the recipe allows, in order of preference. `frozen` names layers whose weights stay as they start, with all
    that is in them: `fusion`, `setr/transformer_block`, `fusion/branches/dem`.
    """

    patch_size: Count = 384
    batch_size: Count = 8
    accumulate: Count = 1
    epochs: Count = 1000
    epoch_factor: Positive = 2.0
    steps_per_epoch: Count | None = None
    optimiser: Optimiser = Optimiser()
    schedule: Annotated[Constant | Plateau | Cosine | Restarts, Field(discriminator="name")]
    monitor: Monitor = "iou"
    stop_patience: Count | None = None
    precision: tuple[ReducedPrecision, ...] = ()
    validation_batch_size: Count | None = None
    workers: Annotated[int, Field(ge=0)] = 2
    frozen: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _numbers_fit(self) -> Training:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} can't be divided into accumulate {self.accumulate} equal parts"
            )
        if isinstance(self.schedule, Restarts) and self.schedule.epochs[-1] >= self.epochs:
            raise ValueError(
                f"a restart after epoch {self.schedule.epochs[-1]} needs more epochs than {self.epochs}: "
                "raise epochs, or leave it out of schedule.epochs (the last cosine ends with the run by itself)"
            )
        if isinstance(self.schedule, Plateau) and self.schedule.floor > self.optimiser.learning_rate:
            raise ValueError(
                f"schedule.floor {self.schedule.floor} is above optimiser.learning_rate {self.optimiser.learning_rate}"
            )
        return self

    @property
    def part_size(self) -> int:
        """Patches that the network sees at a time."""
        return self.batch_size // self.accumulate

    def steps(self, whole_patches: int) -> int:
        """Return the steps of an epoch over a split that holds `whole_patches`."""
        return self.steps_per_epoch or max(1, int(self.epoch_factor * (whole_patches // self.batch_size)))


class Class(_Part):
    """A class of the masks; its id is its place in the list. `color` is that of maps and pictures, `#rrggbb`."""

    name: Annotated[str, Field(min_length=1)]
    glacier: bool = False
    color: Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]


class Cleaning(_Part):
    """What prediction does to label maps when all is blended; probabilities stay as they are.

    Objects (connected pixels of one class, but background) of fewer than `smallest_px` pixels take the class around
    them (`inference.cleaning`).
    """

    smallest_px: Count


class Recipe(_Part):
    """A published system, or one of ours, as `train.py` runs it.

    `inputs` names the modalities in the model's order; channel counts come from the training file. `bands` says of some
    of them how many bands they must have, or chooses bands by name, in the model's order, out of those of the tiles.
    `outputs` is `softmax` over the classes, or `sigmoid` for one probability of the second of two classes. The classes
    are the tile file's; `classes` demands certain ones, names those of a file without a list, and colours them.
    `cleaning` is what prediction does to label maps. `encoder_weights` is what the source started its encoder from:
    weights of ImageNet are no part of a recipe, and a run without them is told so.
    `loss` sums its terms on every output but those that `output_losses` gives a loss of their own; `output_weights`
    weighs outputs other than 1. In pixel-wise terms alone, `label_smoothing` ε mixes the labels with ε / classes while
    training, and `class_weights` weigh pixels by their reference class: one number a class, or `balanced`, from the
    pixel counts of what is trained on (`training.imbalance`). `location` adds an input to architectures that
    take one: `region`, one-hot, withheld with probability `unknown_region`, or `coordinates`, latitude and longitude of
    the patch's centre.
    """

    name: str
    architecture: Architecture
    inputs: Annotated[tuple[str, ...], Field(min_length=1)]
    bands: dict[str, int | tuple[str, ...]] = {}
    classes: tuple[Class, ...] | None = None
    encoder_weights: Literal["imagenet"] | None = None
    outputs: Literal["softmax", "sigmoid"] = "softmax"
    location: Literal["none", "region", "coordinates"] = "none"
    unknown_region: Annotated[float, Field(ge=0, le=1)] = 0.1
    loss: LossTerms
    output_losses: dict[str, LossTerms] = {}
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    output_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    augmentation: Augmentation = Augmentation()
    sampling: Sampling | None = None
    training: Training
    cleaning: Cleaning | None = None
    reported: dict[str, float] = {}

    @property
    def class_list(self) -> tuple[ClassInfo, ...] | None:
        """`classes` as tile files know them."""
        if self.classes is None:
            return None
        return tuple(ClassInfo(one.name, one.glacier, one.color) for one in self.classes)

    @field_validator("inputs")
    @classmethod
    def _no_repeats(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(inputs)) < len(inputs):
            raise ValueError("a modality is named twice")
        return inputs

    @field_validator("bands", mode="before")
    @classmethod
    def _counts_or_names(cls, bands: Any) -> Any:
        if not isinstance(bands, dict):
            raise ValueError("expected `modality: number of its bands` or `modality: [names of bands]`")
        for modality, wanted in bands.items():
            count = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 0
            names = isinstance(wanted, list | tuple) and bool(wanted) and all(isinstance(name, str) for name in wanted)
            if not count and not (names and len(set(wanted)) == len(wanted)):
                raise ValueError(f"{modality}: expected a number of bands from 1, or names of bands, each once")
        return bands

    @field_validator("classes")
    @classmethod
    def _class_list(cls, classes: tuple[Class, ...] | None) -> tuple[Class, ...] | None:
        if classes is None:
            return None
        if not 2 <= len(classes) < IGNORE or len({one.name for one in classes}) < len(classes):
            raise ValueError(f"expected two classes at least and {IGNORE - 1} at most, each of its own name")
        if classes[0].glacier or not any(one.glacier for one in classes):
            raise ValueError("expected the background first, which is not glacier, and a class that is")
        return classes

    @model_validator(mode="after")
    def _bands_are_of_inputs(self) -> Recipe:
        if others := [modality for modality in self.bands if modality not in self.inputs]:
            raise ValueError(
                f"bands are given of {', '.join(others)}, inputs are {', '.join(self.inputs)}: set both alike, "
                "bands={} takes all bands that there are"
            )
        return self

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, weights: Any) -> Any:
        if weights not in (None, "balanced") and not (
            isinstance(weights, list | tuple)
            and all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights)
            and any(weights)
        ):
            raise ValueError("expected `balanced`, or a number from 0 for each class, one of them above 0")
        return weights

    @model_validator(mode="after")
    def _location_is_ours(self) -> Recipe:
        if "location_size" in self.architecture.options:
            raise ValueError("location_size follows from `location`: set that to region or coordinates instead")
        return self

    @model_validator(mode="after")
    def _losses_can_be_had(self) -> Recipe:
        losses = (self.loss, *self.output_losses.values())
        if self.label_smoothing and not any(terms.has_pixel_terms for terms in losses):
            raise ValueError("label_smoothing needs a cross_entropy, binary_cross_entropy or focal term in the loss")
        if self.class_weights and not any(terms.has_pixel_terms for terms in losses):
            raise ValueError("class_weights need a cross_entropy, binary_cross_entropy or focal term in the loss")
        if self.training.patch_size < SSIM_WINDOW and any(terms.ssim for terms in losses):
            raise ValueError(f"the loss term ssim needs a training.patch_size of {SSIM_WINDOW} or more")
        return self


def recipe_names() -> list[str]:
    """Return the names of the recipes in `recipes/`."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Read recipe `name`, or a YAML file at that path, with `key=value` changes such as `training.batch_size=4`.

    Raises:
        UserError: Unknown recipe, unreadable YAML, unknown key, impossible value; the message names the key.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"unknown recipe {name!r}; there are: {', '.join(recipe_names())}, or give a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, received {type(content).__name__}")
    content.setdefault("name", path.stem)
    return parse_recipe(content, str(path), changes)


def parse_recipe(content: dict[str, Any], source: str, changes: Sequence[str] = ()) -> Recipe:
    """Validate `content` with `key=value` changes; `source` stands in front of messages.

    Raises:
        UserError: Names every wrong key.
    """
    content = copy.deepcopy(content)
    for change in changes:
        set_value(content, change)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(explained(error, Recipe, source, "the recipe")) from None
