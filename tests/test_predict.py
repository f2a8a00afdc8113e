"""`predict.py` from the command line: a run, a weights file, and everything that can be wrong."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import architectures
import checkpoints
import predict
from checkpoints.torch_names import parameters
from console import UserError
from data.predictions import PredictionFile, path_of
from data.tiles import TWO_CLASSES, TileFile
from evaluation.calibration import Calibrator
from inference.sliding import blend
from training.record import Best, ClassRecord, Modality, Record, load_record, record_path, save_record, weights_path

WriteTiles = Callable[..., Path]
PATCH = 16
OPTIONS = {"width": 4, "steps": 1, "dropout": 0.1}
RECIPE = """
architecture: {name: unet, options: {width: 4, steps: 1, dropout: 0.1}}
inputs: [optical, dem, sar]
loss: {focal: {gamma: 2.0}}
training: {patch_size: 16, schedule: {name: cosine}}
"""


def build(inputs: dict[str, int], outputs: int) -> keras.Model:
    """A small network with random weights, always the same."""
    keras.utils.set_random_seed(1)
    model = architectures.build("unet", inputs, outputs, PATCH, **OPTIONS)
    for weight in model.weights:  # moving statistics and biases, too, so that none can be left out unseen
        weight.assign(weight + keras.random.uniform(weight.shape, -0.1, 0.1))
    return model


def describe_run(name: str, inputs: dict[str, int], outputs: int) -> None:
    """Write the record of a run on the dataset `small`."""
    statistics = TileFile("tiles/small/train.hdf5").statistics
    assert statistics is not None
    save_record(
        Record(
            name=name,
            architecture="unet",
            options=OPTIONS,
            modalities=tuple(Modality(name=key, channels=count, bands=()) for key, count in inputs.items()),
            classes=tuple(ClassRecord(name=c.name, glacier=c.glacier, color=c.color) for c in TWO_CLASSES),
            outputs="sigmoid" if outputs == 1 else "softmax",
            patch_size=PATCH,
            statistics=statistics.to_json(),
            regions=("ALP", "HMA"),
            location="none",
            dataset={"name": "small", "folder": "tiles/small", "files": {}},
            recipe={},
            command="python train.py",
            versions={},
            backend=keras.backend.backend(),
            precision="float32",
            seed=0,
            parameters=0,
            best=Best(epoch=1, monitor="iou", score=0.5),
            epochs=1,
            stopped="finished",
            written="2020-01-01T00:00:00+00:00",
        )
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the run `r`, made once."""
    path = tmp_path_factory.mktemp("r") / "r.weights.h5"
    build({"dem": 2, "optical": 6}, 2).save_weights(path)
    return path


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tiles: WriteTiles, weights: Path) -> Path:
    """A folder with the dataset `small` (train, val, test) and the run `r` trained on it."""
    monkeypatch.chdir(tmp_path)
    tiles = Path("tiles/small")
    tiles.mkdir(parents=True)
    for seed, split in enumerate(("train", "val", "test")):
        write_tiles(tiles / f"{split}.hdf5", regions=("HMA", "ALP"), seed=seed)
    weights_path("r").parent.mkdir()
    shutil.copy(weights, weights_path("r"))
    describe_run("r", {"dem": 2, "optical": 6}, 2)
    return tmp_path


def test_a_run_predicts_its_own_test_tiles_from_its_two_files(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main(["-n", "r"])
    result = PredictionFile(path_of("r"))
    assert result.source == Path("tiles/small/test.hdf5") and result.run == "r"
    assert result.region_by_tile == {"t0": "HMA", "t1": "ALP"}
    model = build({"dem": 2, "optical": 6}, 2)
    source = TileFile("tiles/small/test.hdf5")
    statistics = TileFile("tiles/small/train.hdf5").statistics
    assert statistics is not None
    raw = source.read("t1", ["dem", "optical"])
    inputs = {name: statistics.apply(name, values) for name, values in raw.items()}
    expected = blend(lambda x: model.predict_on_batch(x)["output"], inputs, patch=PATCH, num_outputs=2)
    np.testing.assert_allclose(result.probs("t1"), expected, atol=1e-5)
    assert result.probs("t1").std() > 0.01
    printed = capsys.readouterr().out
    assert "wrote predictions/r/predictions.hdf5" in printed and "python evaluate.py -n r" in printed


def test_the_architecture_names_the_run_that_has_no_other_name(workspace: Path) -> None:
    build({"optical": 6}, 1).save_weights(weights_path("unet"))
    describe_run("unet", {"optical": 6}, 1)
    predict.main(["-m", "unet", "--split", "val", "--regions", "ALP", "--overlap", "0.25", "--batch-size", "3"])
    result = PredictionFile(path_of("unet"))
    assert result.source == Path("tiles/small/val.hdf5") and result.region_by_tile == {"t1": "ALP"}
    assert result.probs("t1").shape == (32, 40, 1)
    np.testing.assert_array_equal(result.read("t1").labels, result.probs("t1")[..., 0] > 0.5)
    assert result.attributes["overlap"] == "0.25"


def test_predicting_again_replaces_the_predictions(workspace: Path) -> None:
    predict.main(["-n", "r", "--regions", "ALP"])
    predict.main(["-n", "r", "--data", "tiles/small/val.hdf5"])
    assert set(PredictionFile(path_of("r")).region_by_tile) == {"t0", "t1"}
    assert [path.name for path in Path("predictions/r").iterdir()] == ["predictions.hdf5"]


def test_bfloat16_is_close_to_float32_and_leaves_no_policy_behind(workspace: Path) -> None:
    predict.main(["-n", "r"])
    exact = PredictionFile(path_of("r")).probs("t0")
    predict.main(["-n", "r", "--precision", "bfloat16"])
    result = PredictionFile(path_of("r"))
    assert result.attributes["precision"] == "bfloat16"
    assert 0 < np.abs(result.probs("t0") - exact).max() < 0.1
    assert keras.config.dtype_policy().name == "float32"


def test_a_weights_file_needs_no_record(workspace: Path, write_published_2023: WriteTiles) -> None:
    Path("small.yaml").write_text(RECIPE)
    write_published_2023(Path("published.hdf5"))
    model = architectures.build("unet", {"optical": 6, "dem": 2, "sar": 2}, 2, PATCH, **OPTIONS)
    model.save_weights("theirs.weights.h5")
    Path("theirs.weights.h5").rename("theirs.h5")
    predict.main(["-m", "small.yaml", "-w", "theirs.h5", "--data", "published.hdf5"])
    result = PredictionFile(path_of("theirs"))
    source = TileFile("published.hdf5")
    assert result.region_by_tile == {"HMA-1-2": "HMA", "SC2-59-84": "SC"}
    raw = source.read("SC2-59-84", ["optical", "dem", "sar"])
    expected = blend(lambda x: model.predict_on_batch(x)["output"], raw, patch=PATCH, num_outputs=2)
    inside = source.info("SC2-59-84").interior()
    assert expected[inside].shape == (38, 44, 2)
    np.testing.assert_allclose(result.probs("SC2-59-84"), expected[inside], atol=1e-5)
    predict.main(["-m", "small.yaml", "-w", "theirs.h5", "-n", "mine", "--data", "published.hdf5"])
    assert path_of("mine").is_file()


def test_a_state_dict_needs_no_record_and_says_how_many_outputs_it_has(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe's softmax gives way to the one probability of the file; the tiles' statistics scale its inputs."""
    recipe = "architecture: {name: unet, options: {width: 4, steps: 1}}\ninputs: [dem, optical]\n"
    Path("unet.yaml").write_text(recipe + "\n".join(RECIPE.splitlines()[3:]))
    model = architectures.build("unet", {"dem": 2, "optical": 6}, 1, PATCH, width=4, steps=1)
    rng = np.random.default_rng(0)
    tensors = {name: rng.uniform(0.1, 0.3, one.shape).astype("f4") for name, one in parameters(model).items()}
    np.savez("theirs.npz", **tensors)  # type: ignore[arg-type]
    Path("theirs.npz").rename("theirs.pth")
    predict.main(["-m", "unet.yaml", "-w", "theirs.pth", "--data", "small"])
    checkpoints.load_weights(model, "theirs.pth")
    source = TileFile("tiles/small/test.hdf5")
    assert source.statistics and "is not known; these are scaled with the statistics of" in capsys.readouterr().err
    inputs = {key: source.statistics.apply(key, x) for key, x in source.read("t0", ["dem", "optical"]).items()}
    expected = blend(lambda x: model.predict_on_batch(x)["output"], inputs, patch=PATCH, num_outputs=1)
    np.testing.assert_allclose(PredictionFile(path_of("theirs")).probs("t0"), expected, atol=1e-5)
    shutil.rmtree("predictions")

    Path("unet.yaml").write_text(Path("unet.yaml").read_text().replace("dem, ", ""))
    assert "reads 8 channels; the recipe's inputs are optical (6 channels)" in refused(
        "-m", "unet.yaml", "-w", "theirs.pth", "--data", "small"
    )


def test_a_calibration_is_fitted_and_used_for_its_way_to_predict(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main(["-n", "r"])
    plain = PredictionFile(path_of("r"))
    assert not plain.is_calibrated and "python predict.py -n r --calibrate" in capsys.readouterr().out
    probs, labels = plain.probs("t0"), plain.read("t0").labels
    np.testing.assert_array_equal(plain.confidence("t0"), probs.max(axis=-1))
    shutil.rmtree("predictions")

    way = ["--tta", "rot90", "--mc", "2"]
    predict.main(["-n", "r", "--calibrate"])
    predict.main(["-n", "r", *way, "--calibrate", "--regions", "ALP"])
    printed = capsys.readouterr().out
    assert "tiles/small/val.hdf5" in printed and "<- used" in printed and "2 symmetries, 2 passes" in printed
    assert "wrote weights/r.calibration.json" in printed and not Path("predictions").exists()
    stored = json.loads(Path("weights/r.calibration.json").read_text())["fits"]
    assert [(fit["about"]["tta"], fit["about"]["mc"], fit["tiles"]) for fit in stored] == [
        ([], 0, ["t0", "t1"]),
        (["rot90"], 2, ["t1"]),
    ]

    predict.main(["-n", "r", "--calibration", "temperature"])
    result = PredictionFile(path_of("r"))
    calibrator = Calibrator.model_validate(stored[0]["temperature"])
    assert json.loads(result.attributes["calibration"])["method"] == "temperature"
    np.testing.assert_allclose(result.probs("t0"), probs, atol=1e-6)
    np.testing.assert_array_equal(result.read("t0").labels, labels)
    np.testing.assert_allclose(result.confidence("t0"), calibrator(probs).max(axis=-1), atol=1e-5)
    assert np.abs(result.confidence("t0") - probs.max(axis=-1)).max() > 0.01
    predict.main(["-n", "r", *way])
    assert "confidence calibrated by" in capsys.readouterr().out
    assert np.abs(PredictionFile(path_of("r")).probs("t0") - probs).max() > 1e-3
    predict.main(["-n", "r", "--calibration", "none"])
    assert not PredictionFile(path_of("r")).is_calibrated

    predict.main(["-n", "r", "--tta", "flip-h"])  # a way without a calibration
    assert "--tta flip-h --calibrate" in capsys.readouterr().out and not PredictionFile(path_of("r")).is_calibrated
    shutil.rmtree("predictions")
    assert "not with --mc 3; to make one" in refused("-n", "r", "--mc", "3", "--calibration", "isotonic")
    with h5py.File(weights_path("r"), "a") as file:
        file.attrs["other"] = 1
    assert "fitted to other weights" in refused("-n", "r", "--calibration", "temperature")


def test_several_runs_are_one_ensemble(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build({"optical": 6}, 2)
    model.save_weights(weights_path("s"))
    describe_run("s", {"optical": 6}, 2)
    alone = []
    for name in "rs":
        predict.main(["-n", name])
        alone.append(PredictionFile(path_of(name)).probs("t1"))
    predict.main(["-n", "r", "s", "--batch-size", "3"])
    result = PredictionFile(path_of("r+s"))
    np.testing.assert_allclose(result.probs("t1"), (alone[0] + alone[1]) / 2, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    predict.main(["-n", "r", "s", "--calibrate"])
    assert Path("weights/r+s.calibration.json").is_file() and "python evaluate.py -n r+s" in capsys.readouterr().out

    record = load_record("s")
    save_record(record.model_copy(update={"dataset": {"folder": "tiles/other"}}))
    shutil.rmtree("predictions")
    assert "r on tiles/small, s on tiles/other" in refused("-n", "r", "s")
    assert "names r more than once" in refused("-n", "r", "r")


def refused(*arguments: str) -> str:
    """The message that the script gives instead of predictions."""
    with pytest.raises(UserError) as caught:
        predict.main(list(arguments))
    assert not Path("predictions").exists() or not list(Path("predictions").rglob("*.hdf5"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["-n NAME", "-m ARCHITECTURE"]),
        (["-w", "x.h5"], ["-w FILE needs -m"]),
        (["-m", "a", "-n", "b"], ["give one of them"]),
        (
            ["-n", "unknown"],
            ["no run named 'unknown'", "there are: r", "train.py -m ARCHITECTURE -n unknown"],
        ),
        (["-m", "glavitu"], ["no run named 'glavitu'", "python train.py -m glavitu"]),
        (["-n", "r", "--data", "elsewhere"], ["no dataset 'elsewhere'", "small"]),
        (["-n", "r", "--data", "tiles/small/test.hdf5", "--split", "val"], ["no val split"]),
        (["-n", "r", "--regions", "ALPS"], ["`ALPS`", "`ALP`", "`HMA`"]),
        (["-n", "r", "--overlap", "1.5"], ["--overlap", "1.5"]),
        (["-n", "r", "--batch-size", "0"], ["--batch-size"]),
        (["-n", "r", "--calibration", "temperature"], ["no calibration of 'r'", "python predict.py -n r --calibrate"]),
        (["-n", "r", "--calibrate", "--split", "test"], ["leave --split out"]),
        (["-n", "r", "--tta", "flip"], ["no symmetry flip", "flip-h, flip-v"]),
        (["-n", "r", "--mc", "-2"], ["--mc", "-2"]),
        (["-m", "glavitu", "-w", "x.h5", "-n", "a", "b"], ["give one name"]),
        (["-m", "glavitu", "-w", "x.h5", "-n", "../up"], ["without slashes", "'../up'"]),
        (["-m", "nothing", "-w", "x.h5"], ["unknown recipe 'nothing'", "glavitu"]),
        (["-m", "glavitu", "-w", "missing.h5"], ["sar", "optical"]),
    ],
)
def test_wrong_input_is_answered_with_what_to_do(workspace: Path, arguments: list[str], words: list[str]) -> None:
    message = refused(*arguments)
    assert all(word in message for word in words), message


def test_other_tiles_weights_and_broken_files_are_refused(workspace: Path, write_tiles: WriteTiles) -> None:
    write_tiles(Path("other.hdf5"), modalities={"optical": 5, "thermal": 1})
    message = refused("-n", "r", "--data", "other.hdf5")
    assert "dem (2 channels), optical (6 channels)" in message and "optical (5 channels)" in message
    content = Path("tiles/small/test.hdf5").read_bytes()
    Path("cut.hdf5").write_bytes(content[: len(content) // 2])
    assert "truncated" in refused("-n", "r", "--data", "cut.hdf5")
    with h5py.File("tiles/small/val.hdf5", "a") as file:
        file["t0/mask"][3, 3] = 7
        file["t1/optical"][...] = np.nan
    message = refused("-n", "r", "--split", "val")
    assert all(word in message for word in ("class 7", "NaN at every valid pixel"))
    Path("small.yaml").write_text(RECIPE.replace(", dem, sar", ""))
    assert "'r'" not in (message := refused("-m", "small.yaml", "-w", str(weights_path("r")))), message


def test_without_tiles_the_message_says_what_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["-m", "glavitu"], ["-n", "mine"], ["-m", "glavitu", "-w", "x.h5"]):
        assert "python prepare.py synthetic" in refused(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(sink: Any, data: Any) -> int:
        sink.error = OSError(errno.ENOSPC, "No space left on device")
        return len(memoryview(data).cast("B"))

    monkeypatch.setattr("data.hdf5._Sink.write", full)
    with pytest.raises(OSError, match="No space left"):
        predict.main(["-n", "r"])
    assert not list(Path("predictions").rglob("*.*"))


def test_a_record_without_weights_is_no_run(workspace: Path) -> None:
    weights_path("r").unlink()
    assert record_path("r").is_file()
    assert "no run named 'r'" in refused("-n", "r")
