"""train.py: what it asks for, what it says, and that it leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

import training.run as run_module
from console import UserError
from evaluation.calibration import About
from train import main
from training.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "train.py"
ABOUT = About(weights={}, classes=(), source="", source_digest="", overlap=0.5, precision="float32")
RECIPE: dict[str, Any] = {
    "architecture": {"name": "tiny", "options": {}},
    "inputs": ["optical", "dem"],
    "loss": {"focal": {}},
    "training": {
        "patch_size": 16,
        "batch_size": 2,
        "epochs": 2,
        "steps_per_epoch": 2,
        "schedule": {"name": "plateau", "warmup_epochs": 1},
    },
}
# For a process of its own, which knows the zoo's architectures alone; and for what depends on the architecture.
UNET: dict[str, Any] = RECIPE | {"architecture": {"name": "unet", "options": {"width": 2, "steps": 1}}}
PICTURES = {"logs/small.png", "logs/small-patches.png"}
EPOCH_FILES = {"weights/small.weights.h5", "weights/small.json", "logs/small.csv"} | PICTURES
RUN_FILES = EPOCH_FILES | {"weights/small.calibration.json"}
STATE = "weights/small.resume/state.h5"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tiles: Any, tiny: Any) -> Path:
    """The current directory, with a recipe `small.yaml` and the dataset `tiles/mine`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    folder = tmp_path / "tiles" / "mine"
    folder.mkdir(parents=True)
    for split, seed in (("train", 1), ("val", 2)):
        write_tiles(folder / f"{split}.hdf5", regions=("HMA", "ALP", "HMA"), size=(24, 20), seed=seed)
    return tmp_path


def written() -> set[str]:
    """Return the files of the rooms that training writes to, hidden ones included."""
    return {str(path) for room in ("weights", "logs") for path in Path(room).rglob("*") if path.is_file()}


def refused(*arguments: str) -> str:
    before = {name: Path(name).read_bytes() for name in written()}
    with pytest.raises(UserError) as raised:
        main(list(arguments))
    assert {name: Path(name).read_bytes() for name in written()} == before
    return str(raised.value)


# From the command to the run


def test_a_run_says_what_it_does_and_is_not_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.yaml").write_text(yaml.safe_dump(UNET))
    arguments = [
        "-r",
        "small.yaml",
        "--set",
        "training.batch_size=3",
        "--epochs",
        "1",
        "--regions",
        "ALP",
        "--seed",
        "4",
    ]
    main(arguments)
    assert written() == RUN_FILES
    output = capsys.readouterr().out
    printed, _, rest = output.partition("unet:")
    assert yaml.safe_load(printed)["training"]["batch_size"] == 3
    for part in ("parameters", "2 steps of 3 patches", "expected memory", "epoch 1/1", "best epoch 1: val iou"):
        assert part in rest
    assert "python predict.py -n small" in rest and "wrote weights/small.calibration.json" in rest
    calibrated = json.loads(Path("weights/small.calibration.json").read_text())["fits"]
    assert [fit["tiles"] for fit in calibrated] == [["t1"]] and calibrated[0]["about"]["source"].endswith("val.hdf5")

    record = json.loads(Path("weights/small.json").read_text())
    assert (record["epochs"], record["seed"], record["regions"]) == (1, 4, ["ALP"])
    assert parse_recipe(yaml.safe_load(printed), "printed") == parse_recipe(record["recipe"], "recorded")
    assert record["command"] == " ".join(["python train.py", *arguments])
    assert record["dataset"]["name"] == "mine"

    message = refused(*arguments)
    assert "'small' exists (weights/small.weights.h5)" in message and "-n" in message and "--overwrite" in message
    weights = calibrated[0]["about"]["weights"]
    Path("small.yaml").write_text(yaml.safe_dump(RECIPE))
    main([*arguments[:-1], "5", "--overwrite", "--tensorboard", "--no-calibration"])
    assert json.loads(Path("weights/small.calibration.json").read_text())["fits"][0]["about"]["weights"] == weights
    assert "tensorboard --logdir logs/small.tensorboard" in capsys.readouterr().out
    assert json.loads(Path("weights/small.json").read_text())["seed"] == 5
    events = written() - RUN_FILES
    assert RUN_FILES < written() and {str(Path(name).parent) for name in events} == {
        "logs/small.tensorboard/train",
        "logs/small.tensorboard/val",
    }


def test_a_dry_run_shows_and_leaves_everything_as_it_was(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.yaml").write_text(yaml.safe_dump(UNET))
    for name in RUN_FILES:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("of a run before")
    before = {name: Path(name).read_bytes() for name in written()}
    main(["-r", "small.yaml", "--dry-run", "--set", "training.batch_size=3", "--tensorboard"])
    drawn = Path("logs/small-batch.png")
    assert {name: Path(name).read_bytes() for name in written() - {str(drawn)}} == before
    assert drawn.read_bytes().startswith(b"\x89PNG")
    printed, _, rest = capsys.readouterr().out.partition("unet:")
    assert yaml.safe_load(printed)["training"]["batch_size"] == 3
    for part in ("block", "decoder", "total", "activations", "3 patches, float32", "wrote logs/small-batch.png"):
        assert part in rest


def test_augmentations_are_drawn_and_nothing_is_trained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("weights").mkdir()
    Path("weights/small.weights.h5").write_bytes(b"of an earlier run")
    main(["-r", "small.yaml", "--draw-augmentations", "pictures/augmentation.png"])
    assert capsys.readouterr().out == "wrote pictures/augmentation.png\n"
    assert Path("pictures/augmentation.png").read_bytes().startswith(b"\x89PNG")
    assert written() == {"weights/small.weights.h5"}


def test_help_says_what_is_read_and_written_and_is_quick(tmp_path: Path) -> None:
    code = f"import runpy, sys; sys.argv = ['train.py', '--help']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    heavy = f"import atexit, sys; atexit.register(lambda: print('keras' in sys.modules)); {code}"
    done = subprocess.run(
        [sys.executable, "-c", heavy],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "False"
    text = done.stdout
    for part in ("reads", "writes", "python train.py -m glavitu", "--overwrite", "--precision", "--dry-run"):
        assert part in text


# Input that is wrong


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["which model?", "-m glavitu"]),
        (["-m", "glavito"], ["unknown recipe 'glavito'", "glavitu, ", "resunet, ", "setr, ", "transunet"]),
        (["-r", "nothing"], ["unknown recipe 'nothing'", "glavitu"]),
        (["-r", "demo", "-m", "resunet"], ["recipe demo is for glavitu, not resunet", "leave -m out"]),
        (["-m", "glavitu", "--set", "training.batchsize=4"], ["training.batchsize", "'batch_size'"]),
        (["-m", "glavitu", "--set", "training.batch_size=0"], ["training.batch_size", "received 0"]),
        (["-m", "glavitu", "--set", "batch_size"], ["KEY=VALUE", "'batch_size'"]),
        (["-m", "glavitu", "--epochs", "0"], ["training.epochs", "received 0"]),
        (["-m", "glavitu", "--seed", "-1"], ["--seed", "received -1"]),
        (["-m", "glavitu", "-n", "mine.calibration"], ["taken for a calibration", "-n"]),
        (["-m", "glavitu", "-n", "../mine"], ["name", "received '../mine'"]),
        (["-r", "small.yaml", "--data", "other"], ["no dataset 'other'", "mine"]),
        (["-r", "small.yaml", "--regions", "HMA", "XX"], ["no tile of region `XX`", "`ALP`, `HMA`"]),
        (["-r", "unet.yaml", "--set", "training.patch_size=15"], ["multiples of 2", "received 15", "is 16"]),
        (
            ["-r", "small.yaml", "--set", "architecture.name=unett"],
            ["unknown architecture 'unett'", "resunet, segformer"],
        ),
        (["-r", "unet.yaml", "--set", "architecture.options.depth=1"], ["no option depth", "width"]),
        (["-r", "small.yaml", "--set", "inputs=[optical, sar]"], ["no modality `sar`", "it has", "`dem`", "`optical`"]),
    ],
)
def test_wrong_arguments_are_answered(place: Path, arguments: list[str], parts: list[str]) -> None:
    Path("unet.yaml").write_text(yaml.safe_dump(UNET))
    message = refused(*arguments)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("argument", [["--precision", "float64"], ["--epochs", "ten"], ["--unknown"]])
def test_options_that_can_not_be_parsed_exit_with_2(argument: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["-m", "glavitu", *argument])
    assert raised.value.code == 2 and argument[0] in capsys.readouterr().err


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_a_modality(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for tile in file.values():
            del tile["dem"]


def without_all_modalities(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["t1/dem"], file["t1/optical"]


def all_nan(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["t2/dem"][:] = np.nan


def with_class_7(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["t0/mask"][3, 4] = 7


def empty(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in list(file):
            del file[name]


def missing(path: Path) -> None:
    path.unlink()


def text(path: Path) -> None:
    path.write_text("glacier")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (truncate, ["can't be read as HDF5", "truncated"]),
        (text, ["can't be read as HDF5"]),
        (without_a_modality, ["no modality `dem` in any tile", "it has `optical`"]),
        (without_all_modalities, ["tile 't1'", "no modality of `optical`, `dem`", "it has none"]),
        (all_nan, ["tile 't2'", "`dem` is NaN"]),
        (with_class_7, ["tile 't0'", "class 7", "(1 pixels)", "0 background, 1 glacier, 255 ignore"]),
        (empty, ["no tile in it"]),
        (missing, ["has no train split", "train.hdf5 is missing"]),
    ],
)
def test_tiles_that_can_not_be_trained_on_are_named(place: Path, spoil: Any, parts: list[str]) -> None:
    spoil(place / "tiles" / "mine" / "train.hdf5")
    message = refused("-r", "small.yaml")
    for part in ["train.hdf5", *parts]:
        assert part in message


def test_without_tiles_the_message_says_which_command_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("-m", "glavitu", "--epochs", "1", "--set", "training.batch_size=2")
    assert "python prepare.py synthetic" in message
    assert not capsys.readouterr().out and not list(tmp_path.iterdir())


def test_several_datasets_are_listed(place: Path) -> None:
    (place / "tiles" / "mine").rename(place / "tiles" / "b")
    (place / "tiles" / "a").mkdir()
    (place / "tiles" / "a" / "train.hdf5").touch()
    assert "a, b" in refused("-r", "small.yaml")


# What ends a run before its time


def test_a_loss_that_is_not_finite_is_an_error_of_the_settings(place: Path) -> None:
    message = refused("-r", "small.yaml", "--set", "training.optimiser.learning_rate=1e38")
    assert "not finite" in message and "there are no weights yet" in message and "learning_rate=" in message


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_ctrl_c_says_what_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], epochs_before: int
) -> None:
    Path("weights").mkdir()
    Path("weights/small.weights.h5").write_text("of a run before")
    epoch = run_module.Run._epoch

    def interrupted(self: run_module.Run, number: int) -> Any:
        if number == epochs_before:
            raise KeyboardInterrupt
        return epoch(self, number)

    monkeypatch.setattr(run_module.Run, "_epoch", interrupted)
    with pytest.raises(SystemExit) as raised:
        main(["-r", "small.yaml", "--overwrite"])
    assert raised.value.code == 130
    said = capsys.readouterr().out
    if epochs_before:
        assert "the best weights are in weights/small.weights.h5" in said and written() == EPOCH_FILES | {STATE}
        assert json.loads(Path("weights/small.json").read_text())["stopped"] == "interrupted"
    else:
        assert "no epoch was done" in said and written() == {"weights/small.weights.h5", STATE}
        assert Path("weights/small.weights.h5").read_text() == "of a run before"


def test_resume_goes_on_as_the_run_was_started(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = run_module.Run._epoch

    def interrupted(self: run_module.Run, number: int) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run_module.Run, "_epoch", interrupted)
        main(["-r", "small.yaml", "--seed", "5"])
    assert "python train.py -n small --resume" in capsys.readouterr().out
    assert "--resume to go on with it" in refused("-r", "small.yaml")
    assert "batch_size: 2 in the run, 1 now" in refused("-n", "small", "--resume", "--set", "training.batch_size=1")
    assert "seed: 5 in the run, 0 now" in refused("-r", "small.yaml", "--resume", "--seed", "0")
    assert "no run 'other' to resume" in refused("-n", "other", "--resume")
    assert "give one of them" in refused("-n", "small", "--resume", "--overwrite")

    main(["-n", "small", "--resume"])
    assert "resumes after epoch 1" in capsys.readouterr().out
    record = json.loads(Path("weights/small.json").read_text())
    assert (record["seed"], record["stopped"], record["epochs"]) == (5, "finished", 2)
    assert record["command"] == "python train.py -r small.yaml --seed 5" and written() == RUN_FILES

    main(["-n", "small", "--resume"])
    assert "done after 2 epochs: there is nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize("problem", [UserError("no pixel"), KeyboardInterrupt()])
def test_a_run_is_done_whatever_becomes_of_its_calibration(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: BaseException
) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise problem

    monkeypatch.setattr("inference.tiles.fit_calibration", fails)
    monkeypatch.setattr("inference.predictor.from_run", lambda record: None)
    if isinstance(problem, UserError):
        main(["-r", "small.yaml", "--epochs", "1"])
    else:
        with pytest.raises(SystemExit) as raised:
            main(["-r", "small.yaml", "--epochs", "1"])
        assert raised.value.code == 130
    said = capsys.readouterr()
    assert "python predict.py -n small --calibrate does it" in said.out + said.err
    assert written() == EPOCH_FILES and json.loads(Path("weights/small.json").read_text())["stopped"] == "finished"
    main(["-n", "small", "--resume"])
    assert "not calibrated: python predict.py -n small --calibrate" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_a_signal_stops_the_process_cleanly(place: Path) -> None:
    Path("small.yaml").write_text(yaml.safe_dump(UNET))
    command = [sys.executable, str(SCRIPT), "-r", "small.yaml", "--epochs", "100000"]
    # A shell that starts the tests in the background makes its children ignore the signal: undo that.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 240
        while not all(map(os.path.exists, EPOCH_FILES)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 130, errors
    assert "stopped by Ctrl-C: the best weights are in weights/small.weights.h5" in output
    assert "Traceback" not in errors and written() == EPOCH_FILES | {STATE}
    assert json.loads(Path("weights/small.json").read_text())["stopped"] == "interrupted"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of a file's size")
def test_a_disk_that_takes_no_more_ends_the_run_with_a_message(place: Path) -> None:
    """A limit of the size of files stands for the full disk: HDF5 alone would end the process with a signal."""
    Path("small.yaml").write_text(yaml.safe_dump(UNET))
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); "
    limited += f"sys.argv = ['train.py', '-r', 'small.yaml']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", limited], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
    assert written() == set()


@pytest.mark.parametrize("room", ["weights", "logs"])
def test_a_full_disk_is_an_operating_system_error(place: Path, monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    def epoch(self: run_module.Run, number: int) -> tuple[dict[str, Any], float, NDArray[np.int64]]:
        return {"epoch": 1, "loss": 1.0, "val_loss": 1.0, "learning_rate": 1.0}, 0.5, np.ones((2, 2), np.int64)

    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.parent.name == room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(run_module.Run, "_epoch", epoch)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        main(["-r", "small.yaml"])
    assert written() == ({"logs/small.csv", STATE} if room == "weights" else {STATE})
