"""Runs that start from other runs and from files, how their inputs are scaled then, and what stays frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import yaml

import architectures
import checkpoints
from checkpoints.torch_names import parameters
from console import UserError
from data.normalisation import Statistics, fit, published, published_bands
from data.tiles import TWO_CLASSES, ClassInfo, TileFile, TileWriter, find_dataset
from train import main
from training.initial import continued, freeze, initialise, initialise_encoder
from training.recipe import parse_recipe
from training.record import load_record
from training.run import Plan, Run, plan

Mini = Callable[..., keras.Model]
Bands = Mapping[str, Sequence[str]]

PUBLISHED = published_bands()
BANDS: dict[str, list[str]] = {"dem": PUBLISHED["dem"], "optical": PUBLISHED["optical"], "sar": ["vv", "vh"]}
FOUR_CLASSES = (*TWO_CLASSES, ClassInfo("debris", glacier=True), ClassInfo("water"))
RECIPE: dict[str, Any] = {
    "architecture": {"name": "mini", "options": {}},
    "inputs": ["optical", "dem", "sar"],
    "loss": {"focal": {}},
    "training": {
        "patch_size": 32,
        "batch_size": 2,
        "epochs": 1,
        "steps_per_epoch": 2,
        "schedule": {"name": "cosine"},
        "optimiser": {"learning_rate": 0.1},
    },
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mini: Mini) -> Path:
    """An empty current directory, and the architecture `mini`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_dataset(
    name: str,
    bands: Bands = BANDS,
    shift: float = 0.0,
    classes: Sequence[ClassInfo] = TWO_CLASSES,
    scaled: bool = False,
    regions: tuple[str, str] = ("HMA", "ALP"),
) -> None:
    """Write two tiles a split; `scaled`: without statistics, as published ones."""
    for split, seed in (("train", 1), ("val", 2)):
        rng = np.random.default_rng(seed)
        tiles = [{key: rng.normal(shift, 2, (40, 40, len(names))) for key, names in bands.items()} for _ in range(2)]
        valid = np.ones((40, 40), bool)
        statistics = None if scaled else fit((arrays, valid) for arrays in tiles)
        path = Path("tiles") / name / f"{split}.hdf5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with TileWriter(path, classes, bands, statistics) as writer:
            for number, (arrays, region) in enumerate(zip(tiles, regions, strict=True)):
                mask = rng.integers(0, len(classes), (40, 40)).astype(np.uint8)
                writer.add(f"t{number}", {key: x.astype(np.float32) for key, x in arrays.items()}, mask, valid, region)


def planned(dataset: str, **changes: Any) -> Plan:
    """Return a plan; changes are `part__key=value` of the recipe."""
    content = json.loads(json.dumps({"name": "small", **RECIPE}))
    for key, value in changes.items():
        part, _, last = key.rpartition("__")
        (content[part] if part else content)[last] = value
    return plan(parse_recipe(content, "the test"), find_dataset(dataset))


def run_of(dataset: str, name: str, **changes: Any) -> Plan:
    """Leave the weights and the record of a run that was not trained; return its plan."""
    prepared = planned(dataset, **changes)
    rng = np.random.default_rng(3)
    prepared.model.set_weights([rng.uniform(0.2, 1, weight.shape) for weight in prepared.model.get_weights()])
    Run(prepared, name)._keep(1, 0.5, np.ones((2, 2), np.int64))
    return prepared


def statistics_of(dataset: str) -> Statistics:
    statistics = TileFile(Path(f"tiles/{dataset}/train.hdf5")).statistics
    assert statistics
    return statistics


def branches_of(model: keras.Model, modalities: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Return the weights of the branches by modality, given the model's order."""
    branches = model.get_layer("fusion").branches
    return {modality: branch.get_weights() for modality, branch in zip(modalities, branches, strict=True)}


def same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> list[bool]:
    return [np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)]


# From a run


def test_a_run_starts_another_which_scales_its_inputs_as_it_did() -> None:
    """`optical` is as it was; `dem` has a band more, in another order; of `sar` the bands are others."""
    write_dataset("first")
    source = run_of("first", "first", location="region").model
    others = {**BANDS, "dem": ["aspect", "slope", "elevation"], "sar": ["hh", "hv"]}
    write_dataset("second", others, shift=50, classes=FOUR_CLASSES, regions=("SC", "HMA"))
    order = ["sar", "dem", "optical"]
    prepared = planned("second", inputs=order, location="region")
    new_rows = prepared.model.get_layer("location_encoding").linear_1.get_weights()[0]
    # The record lies beside the file, which is as good as the run's name.
    after, start = initialise(prepared, "weights/first.weights.h5")

    ours, theirs = branches_of(after.model, order), branches_of(source, RECIPE["inputs"])
    assert all(same(ours["optical"], theirs["optical"]))
    assert same(ours["sar"], theirs["sar"]) == [False, False] + [True] * 10
    assert same(ours["dem"][1:], theirs["dem"][1:]) == [True] * 11
    np.testing.assert_array_equal(ours["dem"][0][:, :, [2, 1]], theirs["dem"][0])
    rows, stored = (one.get_layer("location_encoding").linear_1.get_weights()[0] for one in (after.model, source))
    np.testing.assert_array_equal(rows, [stored[1], new_rows[1], stored[2]])  # (HMA, SC, unknown), (ALP, HMA, unknown)

    first, second, statistics = statistics_of("first"), statistics_of("second"), after.train.statistics
    assert statistics and statistics == after.val.statistics and list(statistics.shift) == order
    for made, old, new in (
        (statistics.shift, first.shift, second.shift),
        (statistics.scale, first.scale, second.scale),
    ):
        assert made == {"sar": new["sar"], "dem": (new["dem"][0], *old["dem"][::-1]), "optical": old["optical"]}

    text = str(start)
    for part in (
        "start from weights/first.weights.h5: ",
        "output/kernel 4×4 from 4×2: the classes are background, glacier, debris, water here",
        "slope, elevation by name, aspect initial",
        "HMA, unknown by name, SC initial",
        "no channel of sar in common: hh, hv here, vv, vh in the source",
        "scaling: dem, optical as the source (",
        "; sar, dem as the dataset (",
        "in dem, channel by channel",
    ):
        assert part in text
    digest = hashlib.sha256(Path("weights/first.weights.h5").read_bytes()).hexdigest()
    assert after.init == start.to_json() and prepared.init is None
    assert {key: after.init[key] for key in ("digest", "adapted", "left")} == {
        "digest": digest,
        "adapted": 2,
        "left": 4,
    }


def test_tiles_that_are_scaled_already_are_used_as_they_are() -> None:
    write_dataset("first")
    write_dataset("scaled", scaled=True)
    raw = run_of("first", "first", inputs=["dem"], architecture__options={"gated": True})
    scaled = run_of("scaled", "scaled", inputs=["dem"])
    after, start = initialise(scaled, "first")
    assert after.train.statistics is None and "scaled already, but NOT as the source's were" in start.scaling
    assert "options that differ: gated False here, True in the source\n" in str(start)
    after, start = initialise(scaled, "scaled")
    assert after.train.statistics is None and "scaled already, as the source's were" in start.scaling
    # A run on published tiles expects values that are scaled as those are.
    after, start = initialise(raw, "scaled")
    assert after.train.statistics and after.train.statistics.shift["dem"] == published().shift["dem"]


# From a file


def test_a_published_file_starts_a_run_that_scales_as_the_published_data(
    mini: Mini, write_keras2: Callable[[keras.Model, Path], Path]
) -> None:
    """Its branches are optical, dem and sar in this order, whatever the recipe's order is."""
    source = mini({"optical": 6, "dem": 2, "sar": 2})
    write_keras2(source, Path("published.h5"))
    write_dataset("mine", {"optical": PUBLISHED["optical"][::-1], "sar": ["vv", "vh"]}, classes=FOUR_CLASSES)
    after, start = initialise(planned("mine", inputs=["sar", "optical"]), "published.h5")
    ours = branches_of(after.model, ["sar", "optical"])
    theirs = branches_of(source, ["optical", "dem", "sar"])
    assert all(same(ours["sar"], theirs["sar"]))
    np.testing.assert_array_equal(ours["optical"][0], theirs["optical"][0][:, :, ::-1])
    assert {one.name for one in start.transfer.left} == {"output/kernel", "output/bias"}
    statistics = after.train.statistics
    assert statistics and statistics.shift["optical"] == published().shift["optical"][::-1]
    assert statistics.shift["sar"] == statistics_of("mine").shift["sar"]  # what theirs holds is not documented


def test_a_file_that_does_not_say_its_modalities_is_asked_for(mini: Mini) -> None:
    write_dataset("mine")
    prepared = planned("mine", inputs=["dem", "sar"])
    source = mini({"sar": 2, "dem": 2})
    source.save_weights("own.weights.h5")
    with pytest.raises(UserError, match=r"modalities of 2, 2 channels and does not say which.*--init-inputs"):
        initialise(prepared, "own.weights.h5")
    with pytest.raises(UserError, match="channels: name each once"):
        initialise(prepared, "own.weights.h5", ["dem"])
    after, start = initialise(prepared, "own.weights.h5", ["sar", "dem"])
    ours, theirs = branches_of(after.model, ["dem", "sar"]), branches_of(source, ["sar", "dem"])
    assert all(same(ours["dem"], theirs["dem"])) and not start.transfer.left
    assert after.train.statistics == prepared.train.statistics
    assert "how the source's were scaled is not known" in start.scaling


def test_a_state_dict_of_concatenated_inputs_starts_a_run_of_other_classes() -> None:
    write_dataset("mine", classes=FOUR_CLASSES)
    network: dict[str, Any] = {"name": "unet", "options": {"width": 4, "steps": 1}}
    prepared = planned("mine", inputs=["dem", "optical"], architecture=network)
    two = architectures.build("unet", {"dem": 2, "optical": 6}, 2, 32, **network["options"])
    write_state_dict(two, Path("a.pth"))
    after, start = initialise(prepared, "a.pth")
    checkpoints.load_weights(two, "a.pth")
    ours, theirs = (model.get_layer("encoder-blocks-0-conv1-0").get_weights() for model in (after.model, two))
    assert all(same(ours, theirs))
    assert {one.name for one in start.transfer.left} == {"segmentation_head.0/kernel", "segmentation_head.0/bias"}
    # Named, the modalities are found wherever they are; a modality that this dataset lacks has the other channels.
    after, start = initialise(
        planned("mine", inputs=["optical"], architecture=network), "a.pth", ["thermal", "optical"]
    )
    np.testing.assert_array_equal(
        after.model.get_layer("encoder-blocks-0-conv1-0").get_weights()[0], theirs[0][:, :, 2:]
    )
    with pytest.raises(UserError, match="reads 8 channels in all, and these have dem 2 in this dataset"):
        initialise(prepared, "a.pth", ["dem"])


# An encoder


def write_state_dict(model: keras.Model, path: Path, prefix: str = "", bands: int | None = None) -> None:
    """Write random values for the layers whose names begin with `prefix`, left out; the first reads `bands`."""
    rng = np.random.default_rng(5)
    shapes = {name: one.shape for name, one in parameters(model, (prefix,)).items()}
    if bands:
        first = next(iter(shapes))
        shapes[first] = (shapes[first][0], bands, *shapes[first][2:])
    tensors = {name.removeprefix(prefix): rng.uniform(0.1, 0.3, shape) for name, shape in shapes.items()}
    with path.open("wb") as file:
        np.savez(file, **tensors)  # type: ignore[arg-type]


def test_an_encoder_starts_a_run_whose_record_says_so() -> None:
    write_dataset("mine")
    network = {"name": "unet", "options": {"encoder": "resnet18"}}
    Path("small.yaml").write_text(yaml.safe_dump({**RECIPE, "architecture": network}))
    prepared = planned("mine", architecture=network, training__frozen=["encoder"])
    assert {layer.name.partition("-")[0] for layer in prepared.model.layers if layer.trainable_weights} == {
        "decoder",
        "segmentation_head",
    }
    path = Path("resnet18.npz")
    write_state_dict(prepared.model, path, "encoder.", bands=3)
    before = prepared.model.get_layer("decoder-blocks-0-conv1-0").get_weights()
    after, start = initialise_encoder(prepared, path)
    stored = np.load(path)
    for band in range(10):  # of optical, dem and sar
        np.testing.assert_allclose(
            after.model.get_layer("encoder-conv1").get_weights()[0][:, :, band],
            stored["conv1.weight"][:, band % 3].transpose(1, 2, 0) * 3 / 10,
            rtol=1e-6,
        )
    assert all(same(after.model.get_layer("decoder-blocks-0-conv1-0").get_weights(), before))
    Run(after, "mine")._keep(1, 0.5, np.ones((2, 2), np.int64))
    init = load_record("mine").init
    assert init == start.to_json() == continued(prepared, init, None).init
    assert init and (init["source"], init["encoder"], init["unused"]) == ("resnet18.npz", "resnet18", 0)
    assert init["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert init["taken"] + init["left"] == len(prepared.model.weights)
    assert init["first_convolution"] == "the file's 3 filters in turn, times 3/10, for 10 bands"
    with pytest.raises(UserError, match="keep weights that are random, .*decoder.blocks.0.conv1.0"):
        initialise_encoder(planned("mine", architecture=network, training__frozen=["decoder"]), path)


def test_the_script_starts_an_encoder_or_a_network_and_never_both(capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset("mine")
    network = {"name": "unet", "options": {"encoder": "resnet18"}}
    Path("small.yaml").write_text(yaml.safe_dump({**RECIPE, "architecture": network}))
    write_state_dict(planned("mine", architecture=network).model, Path("a.pth"), "encoder.")
    command = ["-r", "small.yaml", "--data", "mine", "--encoder-weights", "a.pth"]
    with pytest.raises(UserError, match="--encoder-weights starts the encoder .*give one of them"):
        main([*command, "--init", "first"])
    main([*command, "--dry-run"])
    assert "start from a.pth: 100 tensors of resnet18 taken; first convolution: as in the file; " in (
        capsys.readouterr().out
    )
    write_state_dict(planned("mine", inputs=["dem"]).model, Path("a.pth"), "nothing")
    with pytest.raises(UserError, match="a.pth"):
        main([*command, "--dry-run"])


# Sources that can't be used


def test_sources_that_can_not_start_a_run_are_refused() -> None:
    write_dataset("first")
    prepared = run_of("first", "first", inputs=["dem"])
    with pytest.raises(UserError, match="no run of this name and no such file; the runs in weights/ are: first"):
        initialise(prepared, "frist")
    with pytest.raises(UserError, match="--init-inputs is for files without a record; .*has one: dem"):
        initialise(prepared, "first", ["optical"])
    with pytest.raises(UserError, match="nothing of it fits"):
        initialise(planned("first", inputs=["dem"], architecture__options={"width": 8}), "first")
    with pytest.raises(UserError, match="keep weights that are random, .*fusion/branches/sar"):
        initialise(planned("first", inputs=["dem", "sar"], training__frozen=["fusion"]), "first")
    record = Path("weights/first.json")
    record.write_text(record.read_text().replace('"architecture": "mini"', '"architecture": "setr"', 1))
    with pytest.raises(UserError, match="that run is of setr, this recipe of mini"):
        initialise(prepared, "first")


# Frozen parts


def test_frozen_parts_are_known_by_name(mini: Mini) -> None:
    model = mini({"optical": 3, "dem": 2}, vit=True, depth=2)
    with pytest.raises(UserError, match=r"no layer 'fusio'; the parts of this model are fusion, vit, output"):
        freeze(model, ["fusio"])
    freeze(model, ["fusion/branches/dem", "vit/transformer_block"])
    branches, blocks = model.get_layer("fusion").branches, model.get_layer("vit").layers[3:5]
    assert [bool(layer.trainable_weights) for layer in (*branches, *blocks)] == [True, False, False, True]
    with pytest.raises(UserError, match="nothing left to train"):
        freeze(model, ["fusion", "vit", "output"])


def test_a_run_through_the_script_keeps_what_is_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset("mine")
    source = run_of("mine", "first", inputs=["dem"]).model
    Path("small.yaml").write_text(yaml.safe_dump({**RECIPE, "inputs": ["dem"]}))
    command = ["-r", "small.yaml", "-n", "tuned", "--set", "training.frozen=[fusion]"]
    with pytest.raises(UserError, match="training.frozen .*--init"):
        main(command)
    with pytest.raises(UserError, match="give --init FILE"):
        main([*command, "--init-inputs", "optical"])
    main([*command, "--init", "first"])
    text, count = capsys.readouterr().out, len(source.weights)
    assert "(10 trained, frozen: fusion)" in text  # of the head, 4×2 and 2
    assert f"start from first (weights/first.weights.h5): {count} of {count} weights taken" in text
    assert text.index("start from first") < text.index("epoch 1/1")
    record = load_record("tuned")
    assert record.init and record.init["source"] == "first" and record.recipe["training"]["frozen"] == ["fusion"]
    tuned = planned("mine", inputs=["dem"]).model
    tuned.load_weights("weights/tuned.weights.h5")
    for part, kept in (("fusion", True), ("output", False)):
        assert all(same(tuned.get_layer(part).get_weights(), source.get_layer(part).get_weights())) == kept


def test_a_resumed_run_keeps_what_it_started_from_and_how_it_scales(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset("theirs", shift=5.0)
    run_of("theirs", "first", inputs=["dem"])
    write_dataset("mine")
    Path("small.yaml").write_text(yaml.safe_dump({**RECIPE, "inputs": ["dem"]}))
    command = ["-r", "small.yaml", "--data", "mine", "--epochs", "2", "--set", "training.frozen=[fusion]"]
    main([*command, "-n", "alone", "--init", "first"])
    epoch = Run._epoch

    def interrupted(self: Run, number: int) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "_epoch", interrupted)
        main([*command, "-n", "stopped", "--init", "first"])
    for file in Path("weights").glob("first*"):  # the state has all that is needed of it
        file.unlink()
    with pytest.raises(UserError, match="run 'stopped' started from first, not from other"):
        main(["-n", "stopped", "--resume", "--init", "other"])
    main(["-n", "stopped", "--resume"])
    alone, stopped = load_record("alone"), load_record("stopped")
    assert stopped.init == alone.init is not None and stopped.statistics == alone.statistics
    assert stopped.scaling() != statistics_of("mine")
    assert Path("logs/stopped.csv").read_text() == Path("logs/alone.csv").read_text()
