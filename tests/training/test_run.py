"""Training runs on small tiles, end to end."""

from __future__ import annotations

import csv
import errno
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

import architectures
import training.run as run_module
from console import UserError
from data.loader import WholePatches
from data.normalisation import Statistics, fit
from data.tiles import IGNORE, TWO_CLASSES, ClassInfo, TileFile, TileWriter, find_dataset
from data.windows import grid
from evaluation.scores import confusion_matrix, counts
from training.memory import training_memory
from training.recipe import parse_recipe
from training.record import Best, Record, load_record
from training.run import Plan, Run, plan

PATCH = 32
BANDS = {"dem": ["z", "slope"], "optical": ["green", "nir", "swir"], "sar": ["vv", "vh"]}
THREE_CLASSES = (TWO_CLASSES[0], ClassInfo("clean ice", glacier=True), ClassInfo("debris", glacier=True))
SMALL: dict[str, dict[str, Any]] = {
    "tiny": {},
    "twin": {},
    "unet": {"width": 4, "steps": 1, "dropout": 0.0},
}
COLUMNS = ["epoch", "loss", "val_loss", "learning_rate"]
SCORES = ["iou", "precision", "recall"]


@pytest.fixture(autouse=True)
def twin(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., keras.Model]) -> None:
    """Make `twin` one of the zoo's architectures, which gives one prediction under two names, beside `tiny`."""

    def build(inputs: dict[str, int], num_classes: int, size: tuple[int, int], *, location_size: int = 0) -> Any:
        model = tiny(inputs, num_classes, size, dropout=0.0, location_size=location_size)
        output = model.output["output"]
        return keras.Model(model.input, {"output": output, "deepsupervision": output})

    module: Any = SimpleNamespace(build=build, stride=lambda **_: 1)
    monkeypatch.setitem(architectures.REGISTRY, "twin", module)


def write_split(
    path: Path, regions: Sequence[str], seed: int, classes: Sequence[ClassInfo] = TWO_CLASSES, scale: bool = True
) -> None:
    """Write a disc of ice a tile, seen through noise; a corner is invalid, a strip ignored."""
    rng = np.random.default_rng(seed)
    tiles = []
    for number in range(len(regions)):
        size = ((48, 48), (64, 37), (32, 32), (50, 64))[number % 4]
        rows, columns = np.mgrid[: size[0], : size[1]]
        ice = np.hypot(rows - size[0] * rng.random(), columns - size[1] * rng.random()) < 20
        mask = (ice * (1 + (rows > size[0] / 2) * (len(classes) - 2))).astype(np.uint8)
        mask[-3:] = IGNORE
        arrays = {name: rng.normal(50, 10, (*size, len(bands))).astype(np.float32) for name, bands in BANDS.items()}
        arrays["optical"] += 20 * mask[..., None].clip(max=2)
        valid = np.ones(size, bool)
        valid[:5, :7] = False
        for array in arrays.values():
            array[~valid] = np.nan
        tiles.append((arrays, mask, valid))
    statistics = fit((arrays, valid) for arrays, _, valid in tiles) if scale else None
    with TileWriter(path, classes, BANDS, statistics) as writer:
        for number, (arrays, mask, valid) in enumerate(tiles):
            writer.add(f"t{number}", arrays, mask, valid, regions[number])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "discs"
    folder.mkdir()
    write_split(folder / "train.hdf5", ["HMA", "ALP"] * 4, seed=1)
    write_split(folder / "val.hdf5", ["ALP", "HMA", "ALP", "SC"], seed=2)
    return folder


def planned(folder: Path, architecture: str = "tiny", **changes: Any) -> Plan:
    """Return a plan of `architecture`; changes are `part__key=value` of the recipe, or arguments of `plan`."""
    content: dict[str, Any] = {
        "name": "small",
        "architecture": {"name": architecture, "options": SMALL[architecture]},
        "inputs": ["optical", "dem", "sar"],
        "loss": {"focal": {}},
        "augmentation": {"flip_vertical": 0.5, "rotate": 0.75},
        "training": {
            "patch_size": PATCH,
            "batch_size": 4,
            "epochs": 2,
            "steps_per_epoch": 3,
            "optimiser": {"learning_rate": 1e-2},
            "schedule": {"name": "plateau"},
        },
    }
    others = {key: changes.pop(key) for key in ("seed", "regions", "precision") if key in changes}
    for key, value in changes.items():
        part, _, last = key.rpartition("__")
        (content[part] if part else content)[last] = value
    return plan(parse_recipe(content, "the test"), find_dataset(folder), **others)


def run_of(plan: Plan, folder: Path, name: str = "mine") -> Run:
    return Run(plan, name, command="python train.py", weights=folder / "weights", logs=folder / "logs")


def log_of(folder: Path, name: str = "mine") -> list[dict[str, float]]:
    with (folder / "logs" / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def files_in(folder: Path) -> set[str]:
    """Return all files, hidden ones included: none is half-written, none temporary."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


RUN_FILES = {"weights/mine.weights.h5", "weights/mine.json", "logs/mine.csv"}
STATE_FILE = "weights/mine.resume/state.h5"


def restored(record: Record, folder: Path) -> keras.Model:
    """Build the model anew from what the run stored."""
    model = architectures.build(
        record.architecture, record.inputs, record.num_outputs, record.patch_size, **record.options
    )
    model.load_weights(folder / "weights" / f"{record.name}.weights.h5")
    return model


def matrix_over_all_pixels(model: keras.Model, record: Record, file: TileFile) -> NDArray[np.int64]:
    """Predict each tile on a canvas, windows side by side, and count its valid, labelled pixels."""
    matrix = np.zeros((len(record.classes),) * 2, np.int64)
    scaling = record.scaling()
    for name in file.names:
        info, arrays = file.info(name), file.read(name, list(record.inputs))
        inputs = {key: scaling.apply(key, x) if scaling else np.nan_to_num(x) for key, x in arrays.items()}
        canvas = np.full((info.height, info.width), -1)
        for window in grid(info.height, info.width, PATCH, PATCH):
            batch = {key: x[window.slices][None] for key, x in inputs.items()}
            if record.location == "region":
                index = record.regions.index(info.region) if info.region in record.regions else -1
                batch["location"] = np.eye(len(record.regions) + 1, dtype=np.float32)[[index]]
            p = np.asarray(model.predict_on_batch(batch)["output"])[0]
            labels = p.argmax(axis=-1) if p.shape[-1] > 1 else (p[..., 0] > 0.5).astype(int)
            part = canvas[window.slices]
            part[part < 0] = labels[part < 0]
        reference = np.where(file.valid(name), file.mask(name), IGNORE)
        matrix += confusion_matrix(reference, canvas, len(matrix))
    return matrix


# From tiles to weights, record and log


def test_coordinates_take_tiles_that_say_where_they_lie(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.hdf5: tile 't0': where it lies is not known") as caught:
        planned(folder, "twin", location="coordinates")
    assert "val.hdf5: tile 't3'" in str(caught.value)
    placed = Path(shutil.copytree(folder, tmp_path / "placed"))
    for path in placed.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            for number, tile in enumerate(file.values()):
                tile.attrs.update({"crs": "EPSG:32645", "transform": [30.0, 0, 5e5 + 1e4 * number, 0, -30, 3e6]})
    record = run_of(planned(placed, "twin", location="coordinates"), tmp_path).train()
    assert record.options["location_size"] == 4 and record.location == "coordinates"
    assert load_record("mine", tmp_path / "weights") == record


@pytest.mark.parametrize(
    ("architecture", "outputs", "changes"),
    [
        ("unet", ["output"], {"outputs": "sigmoid"}),
        (
            "twin",
            ["output", "deepsupervision"],
            {"location": "region", "unknown_region": 0.5, "output_weights": {"deepsupervision": 0.5}},
        ),
    ],
)
def test_a_run_writes_weights_record_and_log(
    folder: Path, tmp_path: Path, architecture: str, outputs: list[str], changes: dict[str, Any]
) -> None:
    # One batch of validation: Keras weighs batches by their size in the sum of losses, in those of outputs not.
    sizes = {"training__epochs": 3, "training__validation_batch_size": 13}
    prepared = planned(folder, architecture, seed=5, **sizes, **changes)
    record = run_of(prepared, tmp_path).train()
    assert files_in(tmp_path) == RUN_FILES
    assert load_record("mine", tmp_path / "weights") == record

    rows = log_of(tmp_path)
    classes = [1] if record.outputs == "sigmoid" else [0, 1]
    named = [f"{output}_{key}" for output in outputs for key in ("loss", "accuracy")]
    named += [f"{output}_{score}_{k}" for output in outputs for score in SCORES for k in classes]
    assert sorted(rows[0]) == sorted([*COLUMNS, *named, *(f"val_{name}" for name in named)])
    assert list(rows[0])[:4] == COLUMNS and [row["epoch"] for row in rows] == [1, 2, 3]
    weights = {"output": 1.0, "deepsupervision": 0.5}
    for row in rows:
        for prefix in ("", "val_"):
            total = sum(weights[output] * row[f"{prefix}{output}_loss"] for output in outputs)
            assert row[f"{prefix}loss"] == pytest.approx(total, rel=1e-4)

    assert list(record.inputs.items()) == [("optical", 3), ("dem", 2), ("sar", 2)]
    assert record.modalities[0].bands == ("green", "nir", "swir")
    assert record.class_list == TWO_CLASSES and record.regions == ("ALP", "HMA")
    assert record.options.get("location_size") == (3 if architecture == "twin" else None)
    statistics = TileFile(folder / "train.hdf5").statistics
    assert statistics is not None and record.scaling() == statistics.select(["optical", "dem", "sar"])
    assert (record.architecture, record.seed, record.epochs, record.stopped) == (architecture, 5, 3, "finished")
    assert record.parameters == prepared.model.count_params() and record.command == "python train.py"
    assert (record.backend, record.precision, record.patch_size) == (keras.backend.backend(), "float32", PATCH)
    assert record.recipe == prepared.recipe.model_dump(mode="json")
    assert record.versions["keras"] == keras.__version__
    digests = {split: described["digest"] for split, described in record.dataset["files"].items()}
    assert digests == {split: TileFile(folder / f"{split}.hdf5").digest for split in ("train", "val")}

    # The best epoch is the one with the best score, and its weights are what was kept: they score the same anew.
    ious = [row["val_output_iou_1"] for row in rows]
    assert record.best.monitor == "iou" and record.best.epoch == 1 + int(np.argmax(ious))
    assert record.best.score == pytest.approx(max(ious))
    matrix = matrix_over_all_pixels(restored(record, tmp_path), record, TileFile(folder / "val.hdf5"))
    assert counts(matrix, {1}).iou == pytest.approx(max(ious), abs=2e-3)
    best = rows[record.best.epoch - 1]
    assert np.trace(matrix) / matrix.sum() == pytest.approx(best["val_output_accuracy"], abs=2e-3)
    with h5py.File(tmp_path / "weights" / "mine.weights.h5") as stored:
        assert "optimizer" not in stored
    size = (tmp_path / "weights" / "mine.weights.h5").stat().st_size
    assert size <= run_module._weights_size(prepared.model) < 4 * size


def test_the_monitored_score_is_of_all_glacier_classes_together(tmp_path: Path) -> None:
    folder = tmp_path / "three"
    folder.mkdir()
    for split, seed in (("train", 1), ("val", 2)):
        write_split(folder / f"{split}.hdf5", ["ALP"] * 4, seed, THREE_CLASSES)
    prepared = planned(folder, training__epochs=1, training__steps_per_epoch=20)
    record = run_of(prepared, tmp_path).train()
    matrix = matrix_over_all_pixels(restored(record, tmp_path), record, TileFile(folder / "val.hdf5"))
    (row,) = log_of(tmp_path)
    assert record.best.score == pytest.approx(counts(matrix, {1, 2}).iou, abs=1e-3)
    assert row["val_iou"] == record.best.score
    for k in range(3):
        for score in SCORES:
            expected = getattr(counts(matrix, {k}), score)
            assert row[f"val_output_{score}_{k}"] == pytest.approx(expected, abs=1e-3, nan_ok=True)


def trained(folder: Path, tmp_path: Path, name: str, **changes: Any) -> list[NDArray[np.float32]]:
    prepared = planned(folder, **({"training__epochs": 1} | changes))
    run_of(prepared, tmp_path, name).train()
    return prepared.model.get_weights()


def test_one_seed_is_one_run(folder: Path, tmp_path: Path) -> None:
    first = trained(folder, tmp_path, "a", seed=1)

    def same(name: str, **changes: Any) -> bool:
        again = trained(folder, tmp_path, name, **changes)
        return all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    assert same("b", seed=1)
    assert same("c", seed=1, training__workers=0)
    assert not same("d", seed=2)
    assert not same("e", seed=1, augmentation={})  # what the recipe says of augmentation is done


def test_memory_is_kept_from_the_first_step_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(run_module, "keep_freed_memory", lambda: calls.append("kept"))
    run_of(planned(folder, training__epochs=1), tmp_path).train()
    assert calls == ["kept"]


def test_regions_restrict_training_and_validation(folder: Path) -> None:
    prepared = planned(folder, regions=["ALP"])
    for patches, expected in ((prepared.train, 4), (prepared.val, 2)):
        assert {patches.file.info(name).region for name in patches.names} == {"ALP"}
        assert len(patches.names) == expected
    assert prepared.regions == ("ALP",)
    with pytest.raises(UserError, match=r"no tile of region `XX`; its regions are `ALP`, `HMA`"):
        planned(folder, regions=["XX"])


def test_the_recipe_orders_the_inputs(folder: Path) -> None:
    def prediction(inputs: list[str]) -> NDArray[np.float32]:
        prepared = planned(folder, inputs=inputs, seed=3)
        assert list(prepared.model.input) == inputs == list(prepared.train.modalities)
        batch = {"dem": np.ones((1, PATCH, PATCH, 2)), "sar": -np.ones((1, PATCH, PATCH, 2))}
        return np.asarray(prepared.model.predict_on_batch(batch)["output"])

    # Both have two channels: the same weights fit either order and mean something else.
    assert np.abs(prediction(["dem", "sar"]) - prediction(["sar", "dem"])).max() > 1e-3


def test_a_plan_says_what_it_will_do(folder: Path) -> None:
    prepared = planned(folder, training__steps_per_epoch=None)
    whole = sum(max(1, h // PATCH) * max(1, w // PATCH) for h, w in prepared.train.sizes)
    assert prepared.steps == 2 * (whole // 4) == int(np.floor(whole / 4)) * 2
    summary = prepared.summary()
    for part in (
        f"{prepared.model.count_params():,} parameters",
        "optical 3, dem 2, sar 2",
        f"{prepared.steps} steps of 4 patches an epoch",
        f"expected memory {prepared.memory / 2**30:.1f} GiB",
        "float32",
    ):
        assert part in summary


def test_a_plan_says_that_the_masks_are_weak(folder: Path, tmp_path: Path, weaken: Callable[..., str]) -> None:
    assert "weak mask" not in planned(folder).summary()
    folder = shutil.copytree(folder, tmp_path / "discs")
    rule = weaken(folder / "val.hdf5")
    assert f"val tiles: reference: weak mask, {rule} — " in planned(folder).summary()
    folder = shutil.copytree(folder, tmp_path / "both")
    weaken(folder / "train.hdf5")
    assert f"\nreference: weak mask, {rule} — " in planned(folder).summary()


def test_rare_classes_are_weighed_and_seen_as_the_recipe_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    class Watched(run_module.SegmentationLoss):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            given.append(options["class_weights"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(run_module, "SegmentationLoss", Watched)
    prepared = planned(folder, class_weights="balanced", sampling={"centred": {"glacier": 0.4}}, regions=["ALP"])
    run_of(prepared, tmp_path)
    weights: Any = given[0]
    assert prepared.class_weights == weights and min(weights) < 1 < max(weights)
    assert prepared.train.centred is not None and prepared.train.centred.shares == (0.0, 0.4)
    assert prepared.val.centred is None
    assert "class weights: background 0." in prepared.summary() and "40.0% on glacier" in prepared.summary()

    plain = planned(folder)
    run_of(plain, tmp_path)
    assert plain.class_weights is None is given[1] and plain.train.centred is None
    assert "weights" not in plain.summary()


def test_reduced_precision_is_of_the_model_alone(folder: Path, tmp_path: Path) -> None:
    prepared = planned(folder, precision="float16")
    run = run_of(prepared, tmp_path)
    assert prepared.precision == "float16" and "float16" in prepared.summary()
    assert prepared.model.layers[-2].compute_dtype == "float16" and prepared.model.output["output"].dtype == "float32"
    assert isinstance(run.plan.model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert keras.mixed_precision.dtype_policy().name == "float32"
    assert run.train().precision == "float16"
    assert [row["learning_rate"] for row in log_of(tmp_path)] == pytest.approx([1e-2, 1e-2])


def test_the_recipe_chooses_the_optimiser(folder: Path, tmp_path: Path) -> None:
    adam = run_of(planned(folder), tmp_path).plan.model.optimizer
    assert type(adam) is keras.optimizers.Adam and adam.weight_decay is None
    settings = {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.02}
    adamw = run_of(planned(folder, training__optimiser=settings), tmp_path).plan.model.optimizer
    assert type(adamw) is keras.optimizers.AdamW and adamw.weight_decay == 0.02
    assert float(adamw.learning_rate) == pytest.approx(3e-3)


def test_an_output_can_have_a_loss_of_its_own(folder: Path, tmp_path: Path) -> None:
    own = {"deepsupervision": {"dice": {"weight": 3.0}}}
    weights = {"deepsupervision": 0.5}
    prepared = planned(folder, "twin", loss={"cross_entropy": {}}, output_losses=own, output_weights=weights)
    model = run_of(prepared, tmp_path).plan.model
    patches = WholePatches(prepared.val, prepared.outputs, 13)
    logs = model.evaluate(patches, verbose=0, return_dict=True)
    inputs, labels = patches[0]
    p = np.asarray(model.predict_on_batch(inputs)["output"])
    counted = labels["output"] != IGNORE
    y, q = (labels["output"] == 1)[counted], p[..., 1][counted]
    cross_entropy = -np.log(np.where(y, q, 1 - q)).mean()
    dice = 1 - (2 * (q * y).sum() + 1) / (q.sum() + y.sum() + 1)
    assert len(patches) == 1
    assert logs["output_loss"] == pytest.approx(cross_entropy, rel=1e-4)
    assert logs["deepsupervision_loss"] == pytest.approx(3 * dice, rel=1e-4)
    assert logs["loss"] == pytest.approx(cross_entropy + 1.5 * dice, rel=1e-4)


def test_labels_are_smoothed_in_training_alone(folder: Path, tmp_path: Path) -> None:
    # At no learning rate to speak of, training and validation see the same network with and without.
    changes: dict[str, Any] = {"loss": {"cross_entropy": {}}, "training__optimiser": {"learning_rate": 1e-30}}
    changes |= {"training__epochs": 1, "training__steps_per_epoch": 1, "training__workers": 0}
    for name, smoothing in (("without", 0.0), ("with", 0.5)):
        run_of(planned(folder, label_smoothing=smoothing, **changes), tmp_path, name).train()
    plain, smoothed = log_of(tmp_path, "without"), log_of(tmp_path, "with")
    for before, after in zip(plain, smoothed, strict=True):
        assert after["val_loss"] == pytest.approx(before["val_loss"], rel=1e-6)
        assert after["loss"] != pytest.approx(before["loss"], rel=1e-3)


@pytest.mark.parametrize("monitor", ["mcc", "loss"])
def test_the_recipe_names_the_score_that_selects(folder: Path, tmp_path: Path, monitor: str) -> None:
    prepared = planned(folder, training__monitor=monitor, training__epochs=1, training__steps_per_epoch=20)
    record = run_of(prepared, tmp_path).train()
    (row,) = log_of(tmp_path)
    assert record.best.monitor == monitor and record.best.score == row[f"val_{monitor}"]
    if monitor == "mcc":
        matrix = matrix_over_all_pixels(restored(record, tmp_path), record, TileFile(folder / "val.hdf5"))
        assert row["val_mcc"] == pytest.approx(counts(matrix, {1}).mcc, abs=1e-3)
    else:
        assert list(row)[-1] == "val_output_recall_1"  # the loss has a column already


def test_a_batch_in_parts_trains_as_the_whole_batch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "tiles"
    folder.mkdir()
    for split in ("train", "val"):  # every pixel counts, so that the parts have equally many of them
        with TileWriter(folder / f"{split}.hdf5", TWO_CLASSES, {"dem": ["z", "slope"]}, None) as writer:
            for number in range(3):
                dem = rng.normal(size=(40, 48, 2)).astype(np.float32)
                writer.add(f"t{number}", {"dem": dem}, dem[..., 0] > 0, np.ones((40, 48)), "ALP")
    bars = []
    progress = run_module.progress

    def watched(*arguments: Any, **options: Any) -> Any:
        bars.append(progress(*arguments, **options))
        return bars[-1]

    monkeypatch.setattr(run_module, "progress", watched)
    weights, logs = [], []
    for accumulate in (1, 4):
        prepared = planned(
            folder,
            inputs=["dem"],
            architecture__options={"dropout": 0.0},
            training__accumulate=accumulate,
            training__validation_batch_size=4,  # a batch's mean over pixels weighs by batch
            training__optimiser={"learning_rate": 1e-2, "epsilon": 1e-3},
            training__schedule={"name": "cosine", "warmup_epochs": 1},
        )
        assert ("3 steps of 4 patches, 1 at a time, an epoch" in prepared.summary()) == (accumulate == 4)
        run_of(prepared, tmp_path, f"by-{accumulate}").train()
        weights.append(prepared.model.get_weights())
        logs.append(log_of(tmp_path, f"by-{accumulate}"))
    for whole, parts in zip(*weights, strict=True):
        np.testing.assert_allclose(parts, whole, atol=1e-5)
    for whole, parts in zip(*logs, strict=True):
        assert parts["learning_rate"] == whole["learning_rate"]
        assert parts["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-4)
    assert [(bar.n, bar.total) for bar in bars] == [(3, 3)] * 4


def test_parts_of_a_batch_need_less_memory(folder: Path) -> None:
    whole, parts = planned(folder, "unet"), planned(folder, "unet", training__accumulate=4)
    accumulators = 4 * sum(weight.numpy().size for weight in whole.model.trainable_weights)
    activations = training_memory(whole.model, 4, "float32") - training_memory(whole.model, 1, "float32")
    assert whole.memory - parts.memory == pytest.approx(activations - accumulators)


# Schedule and stopping


def test_a_plateau_lowers_the_rate_of_the_compiled_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {"name": "plateau", "patience": 1, "factor": 0.01}
    prepared = planned(folder, training__epochs=4, training__schedule=schedule)
    weights = [prepared.model.get_weights()]
    epoch = Run._epoch

    def without_gain(self: Run, number: int) -> tuple[dict[str, Any], float, NDArray[np.int64]]:
        row, _, confusion = epoch(self, number)
        weights.append(prepared.model.get_weights())
        return row, 0.5, confusion

    monkeypatch.setattr(Run, "_epoch", without_gain)
    run_of(prepared, tmp_path).train()
    assert [row["learning_rate"] for row in log_of(tmp_path)] == pytest.approx([1e-2, 1e-2, 1e-4, 1e-6])
    updates = [
        max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
        for before, after in zip(weights, weights[1:], strict=False)
    ]
    assert updates[1] > 1e-3 > updates[2] > 1e-5 > updates[3] > 0


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> None:
    """Let epochs do nothing but set every weight to their number and return these scores."""

    def epoch(self: Run, number: int) -> tuple[dict[str, Any], float, NDArray[np.int64]]:
        for variable in self.plan.model.trainable_variables:
            variable.assign(np.full(variable.shape, number + 1))
        row = {"epoch": number + 1, "loss": 1.0, "val_loss": 1.0, "learning_rate": float(self.rate(10**6))}
        return row, scores[number], np.ones((2, 2), np.int64)

    monkeypatch.setattr(Run, "_epoch", epoch)


@pytest.mark.parametrize(
    ("scores", "patience", "best", "epochs", "stopped"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.25, 0.9], 3, 2, 5, "early"),
        ([0.1, 0.3, 0.2, 0.31, 0.3, 0.3], 3, 4, 6, "finished"),
        ([0.1, 0.3, 0.2, 0.1, 0.0, 0.4], None, 6, 6, "finished"),
        ([math.nan, math.nan, math.nan, 0.1, 0.2, 0.2], 3, 1, 3, "early"),
        ([math.nan, 0.0, math.nan, 0.1, 0.1, 0.1], 3, 4, 6, "finished"),
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends_the_run(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scores: list[float],
    patience: int | None,
    best: int,
    epochs: int,
    stopped: str,
) -> None:
    scripted(monkeypatch, scores)
    prepared = planned(folder, training__epochs=6, training__stop_patience=patience)
    record = run_of(prepared, tmp_path).train()
    assert (record.best.epoch, record.epochs, record.stopped) == (best, epochs, stopped)
    score = scores[best - 1]
    assert record.best.score == (None if math.isnan(score) else score)
    assert (restored(record, tmp_path).trainable_variables[0].numpy() == best).all()
    assert len(log_of(tmp_path)) == epochs
    output = capsys.readouterr()
    assert ("no glacier" in output.err) == math.isnan(scores[0])
    assert f"epoch {epochs}/6" in output.out


def test_of_a_loss_the_lowest_is_the_best(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.3, 0.4, 0.3, 0.35, 0.1])
    schedule = {"name": "plateau", "patience": 1, "factor": 0.1, "floor": 5e-4}
    prepared = planned(
        folder, training__epochs=6, training__stop_patience=3, training__monitor="loss", training__schedule=schedule
    )
    record = run_of(prepared, tmp_path).train()
    assert (record.best.epoch, record.best.score, record.epochs, record.stopped) == (2, 0.3, 5, "early")
    assert [row["learning_rate"] for row in log_of(tmp_path)] == pytest.approx([1e-2, 1e-2, 1e-2, 1e-3, 5e-4])


def test_who_watches_is_called_each_epoch_when_everything_is_on_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.1, 0.3, 0.2])
    seen = []

    def watch(rows: Sequence[dict[str, Any]], best: Best) -> None:
        assert rows[-1]["epoch"] == len(log_of(tmp_path)) and best == load_record("mine", tmp_path / "weights").best
        seen.append((len(rows), best.epoch))

    prepared = planned(folder, training__epochs=3)
    Run(prepared, "mine", weights=tmp_path / "weights", logs=tmp_path / "logs", watch=watch).train()
    assert seen == [(1, 1), (2, 2), (3, 2)]


# What ends a run before its time


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(folder: Path, tmp_path: Path, accumulate: int) -> None:
    prepared = planned(folder, training__optimiser={"learning_rate": 1e30}, training__accumulate=accumulate)
    with pytest.raises(
        UserError, match=r"not finite at step 2 of epoch 1; there are no weights yet\. Try a lower rate"
    ):
        run_of(prepared, tmp_path).train()
    assert files_in(tmp_path) == set()


def test_weights_that_validation_can_not_use_are_not_kept(folder: Path, tmp_path: Path) -> None:
    prepared = planned(folder, training__optimiser={"learning_rate": 1e30}, training__steps_per_epoch=1)
    with pytest.raises(
        UserError, match=r"validation loss was not finite after step 1 of epoch 1; there are no weights"
    ):
        run_of(prepared, tmp_path).train()
    assert files_in(tmp_path) == set()


def test_what_was_kept_before_a_loss_that_is_not_finite_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = planned(folder)
    report = Run._report

    def poison(self: Run, *arguments: Any) -> None:
        report(self, *arguments)
        bias = prepared.model.trainable_variables[-1]
        bias.assign(np.full(bias.shape, np.nan))

    monkeypatch.setattr(Run, "_report", poison)
    with pytest.raises(UserError, match=r"not finite at step 1 of epoch 2; the weights of epoch 1 are kept in .*mine"):
        run_of(prepared, tmp_path).train()
    assert files_in(tmp_path) == RUN_FILES
    record = load_record("mine", tmp_path / "weights")
    assert (record.stopped, record.epochs, record.best.epoch) == ("loss not finite", 1, 1)
    assert all(np.isfinite(weights).all() for weights in restored(record, tmp_path).get_weights())


@pytest.mark.parametrize("step", [2, 5])
def test_ctrl_c_keeps_the_best_weights_and_the_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    steps = iter(range(1, 100))

    def interrupted(*_: Any, **__: Any) -> None:
        if next(steps) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module._Steps, "on_train_batch_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_of(planned(folder), tmp_path).train()
    if step < 3:
        assert files_in(tmp_path) == {STATE_FILE}
    else:
        assert files_in(tmp_path) == RUN_FILES | {STATE_FILE}
        record = load_record("mine", tmp_path / "weights")
        assert (record.stopped, record.epochs, record.best.epoch) == ("interrupted", 1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tile_that_breaks_during_training_is_a_message(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise UserError("train.hdf5 is truncated")

    prepared = planned(folder, training__workers=workers)
    monkeypatch.setattr(TileFile, "read", broken)
    with pytest.raises(UserError, match=r"^train\.hdf5 is truncated$"):
        run_of(prepared, tmp_path).train()


@pytest.mark.parametrize("target", ["weights", "record", "replace"])
def test_a_full_disk_leaves_nothing_half_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """The second epoch can't be saved: of the first, weights and record stay as they were."""
    scripted(monkeypatch, [0.1, 0.2])
    prepared = planned(folder)
    keep, replace = Run._keep, os.replace

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def keep_on_a_full_disk(self: Run, epoch: int, score: float, confusion: NDArray[np.int64]) -> None:
        if epoch == 2:
            if target == "weights":
                monkeypatch.setattr(keras.saving, "save_weights", full)
            elif target == "record":
                monkeypatch.setattr(run_module, "save_record", full)
            else:
                monkeypatch.setattr(os, "replace", full)
        keep(self, epoch, score, confusion)

    monkeypatch.setattr(Run, "_keep", keep_on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        run_of(prepared, tmp_path).train()
    monkeypatch.setattr(os, "replace", replace)
    assert files_in(tmp_path) == RUN_FILES | {STATE_FILE}
    record = load_record("mine", tmp_path / "weights")
    assert record.best.epoch == 1
    assert (restored(record, tmp_path).trainable_variables[0].numpy() == 1).all()


# Tiles that can't be trained on


def write_small(path: Path, bands: dict[str, list[str]], classes: Sequence[ClassInfo], **changes: Any) -> None:
    shift = {name: (0.0,) * len(names) for name, names in bands.items()}
    scale = {name: (1.0,) * len(names) for name, names in bands.items()}
    statistics = Statistics("standardise", shift, scale, "a test", **changes)
    with TileWriter(path, classes, bands, statistics) as writer:
        arrays = {name: np.ones((PATCH, PATCH, len(names)), np.float32) for name, names in bands.items()}
        writer.add("t", arrays, np.ones((PATCH, PATCH)), np.ones((PATCH, PATCH)), "ALP")


NO_GLACIER = (ClassInfo("background"), ClassInfo("lake"))


@pytest.mark.parametrize(
    ("train", "val", "recipe", "message"),
    [
        ({}, {"bands": {**BANDS, "dem": ["z"]}}, {}, r"val.hdf5 has channels .*'dem': 1.*train.hdf5 has .*'dem': 2"),
        ({}, {"classes": THREE_CLASSES}, {}, r"have different classes"),
        ({}, {"applied": True}, {}, r"val.hdf5 and .*train.hdf5 the values of one only are scaled already"),
        (
            {},
            {"bands": {"dem": ["z", "slope"]}},
            {},
            r"val.hdf5: no modality `optical`, `sar` in any tile, it has `dem`",
        ),
        ({"classes": NO_GLACIER}, {"classes": NO_GLACIER}, {}, r"no class is flagged as glacier"),
        (
            {"classes": THREE_CLASSES},
            {"classes": THREE_CLASSES},
            {"outputs": "sigmoid"},
            r"one sigmoid output for two classes; .* has 3",
        ),
        ({}, {}, {"output_weights": {"deepsupervision": 0.5}}, r"no output deepsupervision; there are output"),
        ({}, {}, {"output_losses": {"outptu": {"dice": {}}}}, r"output_losses: no output outptu; there are output"),
        ({}, {}, {"inputs": ["optical", "thermal"]}, r"train.hdf5: no modality `thermal` in any tile"),
    ],
)
def test_what_does_not_fit_is_said_before_the_start(
    tmp_path: Path, train: dict[str, Any], val: dict[str, Any], recipe: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    for split, changes in (("train", train), ("val", val)):
        write_small(folder / f"{split}.hdf5", **{"bands": BANDS, "classes": TWO_CLASSES, **changes})
    with pytest.raises(UserError, match=message):
        planned(folder, **recipe)


def test_all_problems_of_the_tiles_are_listed_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    for split in ("train", "val"):
        write_small(folder / f"{split}.hdf5", {"optical": ["green"]}, TWO_CLASSES)
    with pytest.raises(UserError) as raised:
        planned(folder)
    assert str(raised.value).count("no modality `dem`, `sar`") == 2
