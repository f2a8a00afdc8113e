"""Recipes: the published values, and the messages for wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from architectures import options_of
from console import UserError
from data.augmentation import Augmentation
from training.losses import LossTerms
from training.recipe import FOLDER, load_recipe, parse_recipe, recipe_names

PUBLISHED = ("glavitu", "resunet", "transunet", "setr")
# What the four systems of 2023 have in common; and their reported scores.
VALUES: dict[str, Any] = {
    "inputs": ("optical", "dem", "sar"),
    "outputs": "softmax",
    "location": "none",
    "loss": dict.fromkeys(LossTerms.model_fields) | {"focal": {"gamma": 2.0, "alpha": None, "weight": 1.0}},
    "output_losses": {},
    "label_smoothing": 0.0,
    "output_weights": {},
    "augmentation": {
        "flip_vertical": 0.5,
        "flip_horizontal": 0.5,
        "rotate": 0.75,
        "crop": 0.5,
        "crop_scale": (0.8, 1.0),
    },
    "training": {
        "patch_size": 384,
        "batch_size": 8,
        "epochs": 1000,
        "epoch_factor": 2.0,
        "steps_per_epoch": None,
        "accumulate": 1,
        "optimiser": {
            "name": "adam",
            "learning_rate": 5e-4,
            "weight_decay": 0.0,
            "l2": 0.0,
            "clip_norm": None,
            "epsilon": None,
            "momentum": 0.0,
            "nesterov": False,
        },
        "schedule": {
            "name": "plateau",
            "warmup_epochs": 1.0,
            "factor": 0.1,
            "patience": 10,
            "min_delta": 1e-4,
            "floor": 0.0,
        },
        "monitor": "iou",
        "stop_patience": 31,
    },
}
REPORTED = {
    "glavitu": {"test_iou": 0.875, "val_iou": 0.8244},
    "resunet": {"val_iou": 0.8279},
    "transunet": {"val_iou": 0.8169},
    "setr": {"val_iou": 0.7537},
}


def small(**changes: Any) -> dict[str, Any]:
    """Return the content of a recipe that is as short as one can be."""
    return {
        "name": "small",
        "architecture": {"name": "resunet"},
        "inputs": ["optical"],
        "loss": {"focal": {}},
        "training": {"schedule": {"name": "plateau"}},
    } | changes


# The recipes that there are


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe_holds_the_published_values(name: str) -> None:
    content = load_recipe(name).model_dump()
    options = {"variant": "2023", "dropout": 0.1} if name == "glavitu" else {"dropout": 0.1}
    assert content["architecture"] == {"name": name, "options": options}
    assert content["reported"] == REPORTED[name]
    for key, value in VALUES.items():
        if isinstance(value, dict) and value:
            content[key] = {part: content[key][part] for part in value}
        assert content[key] == value, key


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_opens_with_source_report_and_command(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert set(recipe.architecture.options) <= set(options_of(recipe.architecture.name))
    header = [line for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\n") if line[:1] == "#"]
    assert (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").startswith(header[0])
    for word in ("Source: ", "Command: "):
        assert any(line.startswith(f"# {word}") for line in header), word
    if recipe.reported:
        reported = " ".join(header).split("Reported: ")[1]
        assert all(f"{score:g}" in reported for score in recipe.reported.values())


def test_the_recipe_of_fine_tuning_holds_the_published_values() -> None:
    recipe = load_recipe("glavitu-finetune")
    training = recipe.training
    assert recipe.architecture.options["variant"] == "2025" and recipe.inputs == ("optical", "dem")
    assert recipe.loss.focal and recipe.loss.focal.gamma == 2 and recipe.output_weights == {"deepsupervision": 0.5}
    assert (training.optimiser.name, training.optimiser.learning_rate) == ("adam", 5e-5)
    assert (training.schedule.name, training.schedule.warmup_epochs) == ("cosine", 0)
    assert (training.epochs, training.epoch_factor, training.batch_size, training.patch_size) == (80, 4, 8, 384)
    assert training.stop_patience is None and training.frozen == ()


GLACIER_HACK = {"training.batch_size": 4, "bands": {"optical": 5}, "encoder_weights": "imagenet"}
HIMALAYA = {
    "bands": {"optical": 18},
    "outputs": "sigmoid",
    "training.optimiser.name": "adam",
    "training.optimiser.learning_rate": 1e-5,
    "training.optimiser.l2": 1e-5,
    "training.optimiser.clip_norm": 1.0,
    "training.schedule.factor": 0.5,
    "training.schedule.patience": 11,  # PyTorch's 10
    "training.schedule.floor": 1e-6,
    "training.monitor": "loss",
    "training.stop_patience": 25,
    "training.epochs": 500,
    "training.batch_size": 16,
    "training.patch_size": 128,
    "augmentation": Augmentation().model_dump(),
    "encoder_weights": None,
}
FOCAL_DICE_TVERSKY = {
    "loss.focal.gamma": 2.0,
    "loss.focal.alpha": None,
    "loss.focal.weight": 0.25,
    "loss.dice.weight": 0.5,
    "loss.dice.smoothing": 1e-7,
    "loss.tversky": {"alpha": 0.7, "beta": 0.3, "weight": 0.5, "smoothing": 1e-7, "per_image": False},
}
BCE_DICE = {"loss.binary_cross_entropy.weight": 0.5, "loss.dice.weight": 0.5, "loss.dice.smoothing": 1.0}
DICE_IOU_SSIM = {
    **{f"loss.{term}": {"weight": 1.0, "smoothing": 1e-6, "per_image": True} for term in ("dice", "iou")},
    "loss.ssim.weight": 1.0,
}
UNET_ENCODERS = {
    "bands": {"optical": ("nir", "red", "green")},
    "loss.dice.weight": 1.0,
    "training.optimiser.learning_rate": 1e-4,
    "training.batch_size": 8,
    "training.epochs": 30,
    "training.patch_size": 224,
    "encoder_weights": "imagenet",
}
OTHERS: dict[str, dict[str, Any]] = {
    "glavitu-global": {
        "architecture.options.variant": "2025",
        "loss.focal.gamma": 2.0,
        "output_weights": {"deepsupervision": 0.5},
        "label_smoothing": 0.1,
        "training.optimiser.learning_rate": 5e-4,
        "training.schedule.epochs": (10, 30, 70),
        "training.epochs": 150,
        "training.epoch_factor": 4.0,
        "training.stop_patience": None,
        "unknown_region": 0.1,
    },
    "resunet-himalaya": {**HIMALAYA, **FOCAL_DICE_TVERSKY, "architecture.options.variant": "himalaya"},
    "resunet-himalaya-bce-dice": {**HIMALAYA, **BCE_DICE, "architecture.options.variant": "himalaya"},
    "resunet-himalaya-dice-iou-ssim": {**HIMALAYA, **DICE_IOU_SSIM, "architecture.options.variant": "himalaya"},
    "segformer-himalaya": {**HIMALAYA, **BCE_DICE, "architecture.options.variant": "b4"},
    "segformer-himalaya-focal": {**HIMALAYA, **FOCAL_DICE_TVERSKY, "architecture.options.variant": "b4"},
    "segformer-himalaya-dice-iou-ssim": {**HIMALAYA, **DICE_IOU_SSIM, "architecture.options.variant": "b4"},
    **{
        name: {
            **GLACIER_HACK,
            "architecture": {"name": "unetplusplus", "options": {"encoder": encoder}},
            "loss.binary_cross_entropy.weight": 0.7,
            "loss.dice": {"weight": 0.3, "smoothing": 1e-6, "per_image": False},
            "training.optimiser.name": "adamw",
            "training.optimiser.learning_rate": 1e-4,
            "training.optimiser.weight_decay": 0.01,
            "training.schedule.factor": 0.5,
            "training.schedule.patience": 6,  # PyTorch's 5
            "training.monitor": "mcc",
            "training.epochs": 150,
            "augmentation.affine": 0.5,
            "augmentation.brightness_contrast": 0.5,
            "outputs": "sigmoid",
        }
        for name, encoder in (("unetplusplus-mcc", "resnet34"), ("unetplusplus-mcc-b5", "efficientnet-b5"))
    },
    "unet-binary": {
        "architecture": {"name": "unet", "options": {"encoder": "none"}},
        "bands": {"optical": 5},
        "loss.binary_cross_entropy.weight": 1.0,
        "training.optimiser.learning_rate": 1e-4,
        "training.batch_size": 8,
        "training.epochs": 40,
        "augmentation": Augmentation().model_dump(),
        "training.precision": ("float16", "bfloat16"),
    },
    "unet-surface": {
        **GLACIER_HACK,
        "architecture": {"name": "unet", "options": {"encoder": "resnet34"}},
        "loss.cross_entropy.weight": 1.0,
        "loss.dice.weight": 1.0,
        "class_weights": "balanced",
        "training.optimiser.learning_rate": 1e-4,
        "training.schedule.factor": 0.1,
        "training.epochs": 60,
        "training.monitor": "multiclass_mcc",
    },
    "unet-encoders": {**UNET_ENCODERS, "architecture.options.encoder": "resnet34"},
    "unet-encoders-resnet50": {**UNET_ENCODERS, "architecture.options.encoder": "resnet50"},
    "unet-encoders-efficientnet-b4": {**UNET_ENCODERS, "architecture.options.encoder": "efficientnet-b4"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_recipes_hold_their_sources_values(name: str) -> None:
    content = load_recipe(name).model_dump()
    for key, value in OTHERS[name].items():
        found: Any = content
        for part in key.split("."):
            found = found[part]
        assert found == value, key
    terms = {key.split(".")[1] for key in OTHERS[name] if key.startswith("loss.")}
    assert {term for term, settings in content["loss"].items() if settings} == terms


def test_all_recipes_are_known() -> None:
    assert {*PUBLISHED, *OTHERS, "demo", "unet", "unetplusplus", "segformer"} <= set(recipe_names())


def test_steps_of_an_epoch() -> None:
    training = load_recipe("glavitu").training
    assert [training.steps(whole) for whole in (0, 7, 8, 15, 16, 805)] == [1, 1, 2, 2, 4, 200]
    assert load_recipe("glavitu", ["training.steps_per_epoch=5"]).training.steps(805) == 5


def test_a_recipe_is_frozen_and_its_dump_is_the_same_recipe() -> None:
    recipe = load_recipe("demo")
    with pytest.raises(ValidationError):
        recipe.name = "other"
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    assert parse_recipe(yaml.safe_load(text), "the dump") == recipe


def test_weights_and_shares_survive_the_dump() -> None:
    whole = [f"sampling.centred.{name}={share}" for name, share in (("lake", 0.7), ("ice", 0.2), ("snow", 0.1))]
    for changes in (["class_weights=balanced", "sampling.centred=auto"], ["class_weights=[1, 0, 2.5]", *whole]):
        recipe = load_recipe("demo", changes)
        assert parse_recipe(recipe.model_dump(mode="json"), "the dump") == recipe
    assert recipe.class_weights == (1.0, 0.0, 2.5)
    assert recipe.sampling is not None and recipe.sampling.centred == {"lake": 0.7, "ice": 0.2, "snow": 0.1}


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in small().items() if key != "name"}))
    assert load_recipe(str(path)).name == "mine"


# Changes


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("training.batch_size=4", "training.batch_size", 4),
        ("training.optimiser.learning_rate=1e-4", "training.optimiser.learning_rate", 1e-4),
        ("training.schedule.patience=3", "training.schedule.patience", 3),
        ("training.schedule={name: cosine, warmup_epochs: 2}", "training.schedule.warmup_epochs", 2.0),
        ("training.schedule={name: restarts, epochs: [10, 30, 70]}", "training.schedule.epochs", (10, 30, 70)),
        ("training.schedule={name: constant}", "training.schedule.warmup_epochs", 0.0),
        ("training.schedule.floor=1e-6", "training.schedule.floor", 1e-6),
        ("training.optimiser={name: sgd, momentum: 0.9, nesterov: true}", "training.optimiser.momentum", 0.9),
        ("training.optimiser.l2=1e-5", "training.optimiser.l2", 1e-5),
        ("training.optimiser.clip_norm=1", "training.optimiser.clip_norm", 1.0),
        ("training.accumulate=4", "training.part_size", 2),
        ("training.monitor=loss", "training.monitor", "loss"),
        ("inputs=[dem, optical]", "inputs", ("dem", "optical")),
        ("augmentation.crop_scale=[0.5, 0.6]", "augmentation.crop_scale", (0.5, 0.6)),
        ("training.stop_patience=null", "training.stop_patience", None),
        ("architecture.options.width=16", "architecture.options", {"variant": "2023", "dropout": 0.1, "width": 16}),
        ("loss.dice.weight=0.5", "loss.dice.weight", 0.5),
        ("output_weights.deepsupervision=0.5", "output_weights", {"deepsupervision": 0.5}),
        (
            "output_losses.deepsupervision.cross_entropy.weight=2",
            "output_losses",
            {"deepsupervision": LossTerms.model_validate({"cross_entropy": {"weight": 2}})},
        ),
        ("label_smoothing=0.1", "label_smoothing", 0.1),
        ("training.precision=[]", "training.precision", ()),
        ("training.frozen=[fusion, setr]", "training.frozen", ("fusion", "setr")),
    ],
)
def test_a_change_changes_one_value(change: str, path: str, value: Any) -> None:
    recipe: Any = load_recipe("glavitu", [change])
    for part in path.split("."):
        recipe = getattr(recipe, part)
    assert recipe == value


def test_the_last_change_of_a_value_counts() -> None:
    assert load_recipe("setr", ["training.epochs=3", "training.epochs=5"]).training.epochs == 5


@pytest.mark.parametrize("change", ["training.batch_size", "=4", "training..epochs=4", ".=1", ""])
def test_a_change_of_another_form_is_answered_with_the_form(change: str) -> None:
    with pytest.raises(UserError, match="--set takes KEY=VALUE such as training.batch_size=4"):
        load_recipe("glavitu", [change])


def test_a_value_that_is_no_yaml_is_quoted() -> None:
    with pytest.raises(UserError, match=r"--set inputs=\[dem: .*YAML"):
        load_recipe("glavitu", ["inputs=[dem"])


# Wrong recipes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # unknown keys: the key, the near one, the known
        (
            "training.batchsize=4",
            r"unknown key training\.batchsize, did you mean 'batch_size'\? \(known here: accumulate, batch_",
        ),
        ("augmentation.flip=1", r"unknown key augmentation\.flip\b.*known here: affine, affine_rotation_deg"),
        ("learning_rate=1", r"unknown key learning_rate \(known here: architecture, augmentation,"),
        ("training.optimiser.lr=1", r"unknown key training\.optimiser\.lr .*learning_rate"),
        ("loss.focal.gama=1", r"unknown key loss\.focal\.gama, did you mean 'gamma'"),
        ("loss.lovasz.weight=1", r"unknown key loss\.lovasz .*cross_entropy, dice, focal, iou, ssim, tversky"),
        ("loss.tversky.alpha=1", r"loss\.tversky\.beta is missing"),
        (
            "output_losses.output.focal.gama=1",
            r"unknown key output_losses\.output\.focal\.gama, did you mean 'gamma'\? \(known here: alpha, gamma",
        ),
        ("output_losses.output={}", r"output_losses\.output: expected one or more of cross_entropy"),
        ("training.schedule.patiense=1", r"unknown key training\.schedule\.patiense, did you mean 'patience'"),
        (
            "training.schedule.name=cosine",
            r"unknown key training\.schedule\.factor \(known here: name, warmup_epochs",
        ),
        # impossible values: the key, what was expected, the value
        ("training.batch_size=0", r"training\.batch_size: .*greater than or equal to 1; received 0"),
        ("training.epochs=ten", r"training\.epochs: .*integer.*; received 'ten'"),
        ("training.optimiser.learning_rate=-1", r"training\.optimiser\.learning_rate: .*greater than 0; received -1"),
        ("training.optimiser.learning_rate=.inf", r"training\.optimiser\.learning_rate: .*finite.*; received inf"),
        ("training.optimiser.learning_rate=.nan", r"training\.optimiser\.learning_rate: .*; received nan"),
        ("training.optimiser.name=lion", r"training\.optimiser\.name: .*'adam', 'adamw' or 'sgd'; received 'lion'"),
        ("training.optimiser.weight_decay=0.1", r"training\.optimiser: weight_decay needs the optimiser adamw"),
        ("training.optimiser.momentum=0.9", r"training\.optimiser: momentum needs the optimiser sgd"),
        ("training.optimiser={name: adamw, l2: 0.1}", r"training\.optimiser: l2 needs the optimiser adam or sgd"),
        ("training.optimiser={name: sgd, epsilon: 0.1}", r"epsilon needs the optimiser adam or adamw"),
        ("training.optimiser={name: sgd, nesterov: true}", r"nesterov needs a momentum above 0"),
        ("training.optimiser.clip_norm=0", r"training\.optimiser\.clip_norm: .*greater than 0; received 0"),
        ("training.accumulate=3", r"training: batch_size 8 can't be divided into accumulate 3 equal parts"),
        ("training.schedule={name: restarts}", r"training\.schedule\.epochs is missing"),
        ("training.schedule={name: restarts, epochs: [9, 9]}", r"schedule\.epochs: .*each later .*received \[9, 9\]"),
        ("training.schedule={name: restarts, epochs: [1000]}", r"after epoch 1000 needs more epochs than 1000"),
        ("training.schedule.floor=0.1", r"schedule\.floor 0\.1 is above optimiser\.learning_rate 0\.0005"),
        ("training.schedule.factor=2", r"training\.schedule\.factor: .*less than 1; received 2"),
        (
            "training.schedule.name=linear",
            r"training\.schedule\.name: expected .*'cosine', 'restarts'; received 'linear'",
        ),
        ("training.schedule={factor: 0.5}", r"training\.schedule\.name is missing"),
        ("training.schedule=cosine", r"training\.schedule: .*; received 'cosine'"),
        ("training.monitor=auc", r"training\.monitor: .*'iou', .*'multiclass_mcc' or 'loss'; received 'auc'"),
        ("training.precision=[float64]", r"training\.precision\.0: .*; received 'float64'"),
        ("augmentation.rotate=1.5", r"augmentation\.rotate: .*less than or equal to 1; received 1\.5"),
        ("augmentation.crop_scale=[1, 0.5]", r"augmentation: crop_scale is \(smallest, largest\)"),
        ("inputs=[]", r"inputs: .*at least 1 item.*; received \[\]"),
        ("inputs=[dem, dem]", r"inputs: a modality is named twice; received \['dem', 'dem'\]"),
        ("loss={}", r"loss: expected one or more of cross_entropy, binary_cross_entropy, focal, dice"),
        ("label_smoothing=1", r"label_smoothing: .*less than 1; received 1"),
        ("outputs=linear", r"outputs: .*'softmax' or 'sigmoid'; received 'linear'"),
        (
            "architecture.options.location_size=3",
            r"location_size follows from `location`: set that to region or coordinates",
        ),
        ("architecture=glavitu", r"architecture: .*; received 'glavitu'"),
        ("class_weights=even", r"class_weights: expected `balanced`, or a number from 0 .*; received 'even'"),
        ("class_weights=[1, -1]", r"class_weights: expected .*; received \[1, -1\]"),
        ("class_weights=[0, 0]", r"class_weights: expected .* one of them above 0; received"),
        ("sampling.centred=[lake]", r"sampling\.centred: expected `auto`, or shares .*; received \['lake'\]"),
        ("sampling.centred={lake: 0.7, ice: 0.4}", r"sampling\.centred: .* at most 1 in sum; received {'lake': 0.7"),
        ("sampling.centred.lake=0", r"sampling\.centred: .* each above 0"),
        ("sampling.centred={}", r"sampling\.centred: expected `auto`"),
        ("sampling.share=1", r"unknown key sampling\.share"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_recipe("glavitu", [change])
    assert str(raised.value).startswith(str(FOLDER / "glavitu.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["loss={dice: {}}", "label_smoothing=0.1"], "label_smoothing needs a cross_entropy, binary_cross_entropy or"),
        (["loss.ssim={}", "training.patch_size=10"], "ssim needs a training.patch_size of 11 or more"),
        (["output_losses.output.ssim={}", "training.patch_size=10"], "ssim needs a training.patch_size of 11 or more"),
    ],
)
def test_losses_that_can_not_be_had_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("glavitu", changes)


def test_all_that_is_wrong_is_named_at_once() -> None:
    content = small(outputs="linear", colour=1)
    del content["inputs"]
    with pytest.raises(UserError) as raised:
        parse_recipe(content, "mine.yaml")
    for message in ("mine.yaml:", "inputs is missing", "outputs: ", "unknown key colour"):
        assert message in str(raised.value)


def test_an_unknown_recipe_is_answered_with_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'glavito'; there are: .*glavitu.*resunet.*, or give a"):
        load_recipe("glavito")
    with pytest.raises(UserError, match=r"unknown recipe 'nothing\.yaml'"):
        load_recipe("nothing.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "can't be read as YAML"),
        (b"- a\n", "expected keys and values, received list"),
        (b"\xff\xfe\x00", "YAML"),
    ]
    + [(b"", "expected keys and values")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_recipe(str(path))


# Bands, classes, cleaning


def test_bands_are_counts_or_names_and_survive_the_dump() -> None:
    recipe = load_recipe("glavitu", ["bands.optical=[nir, red]", "bands.dem=2", "cleaning.smallest_px=9"])
    assert recipe.bands == {"optical": ("nir", "red"), "dem": 2}
    assert recipe.cleaning is not None and recipe.cleaning.smallest_px == 9
    assert parse_recipe(recipe.model_dump(mode="json"), "the dump") == recipe


def test_a_class_list_is_read_whole() -> None:
    recipe = load_recipe("unet-surface")
    assert recipe.class_list is not None
    assert [(info.name, info.glacier) for info in recipe.class_list] == [
        ("background", False),
        ("clean ice", True),
        ("debris-covered ice", True),
        ("water", False),
    ]
    assert parse_recipe(recipe.model_dump(mode="json"), "the dump") == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bands={thermal: 1}", r"bands are given of thermal, inputs are optical, dem, sar"),
        ("bands=18", r"bands: expected `modality: number of its bands` or .*; received 18"),
        ("bands.optical=0", r"bands: optical: expected a number of bands from 1, or names"),
        ("bands.optical=[nir, nir]", r"bands: optical: expected .* each once"),
        ("bands.optical=true", r"bands: optical: expected"),
        ("classes=[{name: rock, color: '#000000'}]", r"classes: expected two classes at least"),
        ("classes=[{name: a, colour: '#000000'}]", r"unknown key classes\.0\.colour, did you mean 'color'"),
        ("classes=[{name: a, color: blue}]", r"classes\.0\.color: .*pattern.*; received 'blue'"),
        (
            "classes=[{name: ice, glacier: true, color: '#000000'}, {name: rock, color: '#000001'}]",
            r"classes: expected the background first, which is not glacier, and a class that is",
        ),
        ("cleaning.smallest_px=0", r"cleaning\.smallest_px: .*greater than or equal to 1; received 0"),
        ("encoder_weights=imagenet21k", r"encoder_weights: .*'imagenet'; received 'imagenet21k'"),
    ],
)
def test_bands_and_classes_that_can_not_be_are_named(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("glavitu", [change])
