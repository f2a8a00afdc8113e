"""Every recipe of `recipes/`: what its header says, and one step of its training on small tiles."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import architectures
import train
from console import UserError
from data.normalisation import Statistics, published_bands
from data.tiles import TWO_CLASSES, Dataset, TileWriter
from training.recipe import FOLDER, Recipe, load_recipe, recipe_names
from training.run import Run, plan

PATCH = 32
# What makes each architecture small; all else is the recipe's.
SMALL: dict[str, dict[str, Any]] = {
    "glavitu": {"width": 8, "mlp": 8, "depth": 1, "heads": 2, "steps": 1},
    "resunet": {"width": 4, "fusion_width": 4, "steps": 1},
    "segformer": {"variant": "b0", "width": 8},
    "setr": {"fusion_width": 4, "width": 8, "mlp": 8, "depth": 1, "heads": 2, "decoder_width": 4},
    "transunet": {"width": 4, "steps": 1, "vit_width": 8, "mlp": 8, "depth": 1, "heads": 2},
    "unet": {"encoder": "resnet18"},
    "unetplusplus": {"encoder": "resnet18"},
}


def header(name: str) -> dict[str, str]:
    """Return the parts of a recipe's opening comment by the word they begin with; of the command, its line alone."""
    parts: dict[str, str] = {}
    word = ""
    for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\n"):
        if not line.startswith("#"):
            return parts
        if (label := line.removeprefix("# ").partition(": "))[0] in ("Source", "Reported", "Command", "Cost"):
            word = label[0]
            parts[word] = label[2]
        elif line.startswith("#   ") and word and word != "Command":
            parts[word] += f" {line.removeprefix('#   ')}"
    return parts


# What a recipe opens with


@pytest.mark.parametrize("name", recipe_names())
def test_the_header_says_source_report_cost_and_a_command_that_means_this_recipe(name: str) -> None:
    parts = header(name)
    assert all(parts.get(word) for word in ("Source", "Reported", "Command", "Cost")), parts
    command = parts["Command"].split("python train.py ")[1]
    options = train.parser().parse_args(shlex.split(command))
    assert (options.recipe or options.model) == name
    recipe = load_recipe(name, options.set)
    assert recipe.architecture.name == options.model or not options.model
    assert all(f"{score:g}" in parts["Reported"] for score in recipe.reported.values())


@pytest.mark.parametrize("name", recipe_names())
def test_the_options_and_the_patch_size_are_what_the_architecture_takes(name: str) -> None:
    recipe = load_recipe(name)
    architecture = recipe.architecture
    # A patch of one pixel is what is wrong last: nothing else is, then, and nothing is built.
    with pytest.raises(UserError, match="takes patch sizes that are multiples of") as raised:
        architectures.build(architecture.name, dict.fromkeys(recipe.inputs, 1), 2, 1, **architecture.options)
    stride = int(str(raised.value).split("multiples of ")[1].split(";")[0])
    assert recipe.training.patch_size % stride == 0


# One step of each


def channels(recipe: Recipe) -> dict[str, list[str]]:
    """Return modalities with band names that suit `recipe`; where it chooses bands, the published ones, of which it has
    to choose."""
    known = {**published_bands(), "sar": ["sar_1", "sar_2"]}
    wanted = {modality: recipe.bands.get(modality) for modality in recipe.inputs}
    return {
        modality: [f"{modality}_{i + 1}" for i in range(number)] if isinstance(number, int) else known[modality]
        for modality, number in wanted.items()
    }


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Make the dataset that suits a recipe, the same one for recipes that read alike: classes in the mask from the
    first band, so that there is something to learn."""
    made: dict[str, Dataset] = {}

    def dataset(recipe: Recipe) -> Dataset:
        bands, classes = channels(recipe), recipe.class_list or TWO_CLASSES
        key = f"{bands} {len(classes)}"
        if key not in made:
            folder = tmp_path_factory.mktemp("tiles")
            rng = np.random.default_rng(0)
            unscaled = {modality: (0.0,) * len(names) for modality, names in bands.items()}
            ones = {modality: (1.0,) * len(names) for modality, names in bands.items()}
            statistics = Statistics("standardise", unscaled, ones, "nothing")
            splits = {}
            for split, size in (("train", (2 * PATCH, PATCH)), ("val", (PATCH, PATCH))):
                splits[split] = folder / f"{split}.hdf5"
                with TileWriter(splits[split], classes, bands, statistics) as writer:
                    arrays = {
                        modality: rng.normal(size=(*size, len(names))).astype(np.float32)
                        for modality, names in bands.items()
                    }
                    first = arrays[recipe.inputs[0]][..., 0]
                    mask = np.digitize(first, np.linspace(-1, 1, len(classes) + 1)[1:-1]).astype(np.uint8)
                    writer.add("t", arrays, mask, np.ones(size, bool), "ALP")
            made[key] = Dataset(folder.name, folder, splits)
        return made[key]

    yield dataset
    keras.backend.clear_session()


@pytest.fixture(scope="module")
def done() -> dict[str, str]:
    """Reduced recipes that were trained before, by their content: those that differ in an encoder alone become one."""
    return {}


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # a small patch is one token at stride 32
@pytest.mark.parametrize("name", recipe_names())
def test_a_step_of_the_recipe_at_a_reduced_size_changes_the_weights(
    name: str, datasets: Any, done: dict[str, str], tmp_path: Path
) -> None:
    full = load_recipe(name)
    restarts = full.training.schedule.name == "restarts"
    small = {
        key: value
        for key, value in SMALL[full.architecture.name].items()
        if not (key == "fusion_width" and full.architecture.options.get("variant") == "himalaya")
        and not (key == "encoder" and full.architecture.options["encoder"] == "none")
    }
    recipe = load_recipe(
        name,
        [
            *(f"architecture.options.{key}={value}" for key, value in small.items()),
            f"training.patch_size={PATCH}",
            "training.batch_size=2",
            "training.steps_per_epoch=1",
            "training.workers=0",
            f"training.epochs={2 if restarts else 1}",
            *(["training.schedule.epochs=[1]"] if restarts else []),
        ],
    )
    content = recipe.model_dump_json(exclude={"name", "reported"})
    if done.setdefault(content, name) != name:
        return
    planned = plan(recipe, datasets(full), precision="float32")
    run = Run(planned, name, weights=tmp_path / "weights", logs=tmp_path / "logs")
    planned.model.run_eagerly = True  # a single step is sooner done than traced
    before = [keras.ops.convert_to_numpy(weight) for weight in planned.model.trainable_weights]
    record = run.train()
    assert record.epochs == recipe.training.epochs
    for row in run.rows:
        assert all(math.isfinite(row[key]) for key in ("loss", "val_loss")) and row["loss"] > 0
    changed = [
        bool(np.any(former != keras.ops.convert_to_numpy(weight)))
        for former, weight in zip(before, planned.model.trainable_weights, strict=True)
    ]
    assert np.mean(changed) > 0.9
    assert {m.name: len(m.bands) for m in record.modalities} == {
        m: len(names) if isinstance(names := recipe.bands.get(m), tuple) else len(channels(recipe)[m])
        for m in recipe.inputs
    }
