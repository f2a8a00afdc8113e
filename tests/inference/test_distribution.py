"""Scenes predicted by workers of a cluster: the same bytes as in one process, whatever happens to the workers."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import pytest

import architectures
import predict
from console import UserError
from data.normalisation import Statistics
from data.tiles import TWO_CLASSES
from inference import distribution, scenes
from inference.distribution import connect
from inference.scenes import is_finished
from training.record import Best, ClassRecord, Modality, Record, save_record, weights_path

WriteRaster = Callable[..., Path]
PATCH = 16
OPTIONS = {"width": 4, "steps": 1, "dropout": 0.1}
BANDS = ("red", "nir", "swir1")
STATISTICS = Statistics("standardise", {"optical": (0.5,) * 3}, {"optical": (0.2,) * 3}, "test")


def save_run(name: str, seed: int = 1) -> None:
    keras.utils.set_random_seed(seed)
    model = architectures.build("unet", {"optical": 3}, 2, PATCH, **OPTIONS)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(weight + keras.random.uniform(weight.shape, -0.1, 0.1))
    weights_path(name).parent.mkdir(exist_ok=True)
    model.save_weights(weights_path(name))
    save_record(
        Record(
            name=name,
            architecture="unet",
            options=OPTIONS,
            modalities=(Modality(name="optical", channels=3, bands=BANDS),),
            classes=tuple(ClassRecord(name=c.name, glacier=c.glacier, color=c.color) for c in TWO_CLASSES),
            outputs="softmax",
            patch_size=PATCH,
            statistics=STATISTICS.to_json(),
            regions=("HMA",),
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
def cluster() -> Iterator[Any]:
    """A cluster of two workers, as a user's own: a client of it has the address."""
    with connect("local", 2) as client:
        yield client


@pytest.fixture
def here(tmp_path: Path, write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run `r` and two scenes of many strips."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "ROWS", 2)
    save_run("r")
    place = (30.0, 0.0, 500_000.0, 0.0, -30.0, 3_100_000.0)
    for seed, (name, height) in enumerate({"one": 120, "two": 70}.items()):
        values = np.random.default_rng(seed).random((height, 90, 3), dtype=np.float32)
        values[:9, :20] = np.nan
        write_raster(tmp_path / f"{name}.tif", values, "EPSG:32645", place)
    (tmp_path / "scenes.yaml").write_text(
        "scenes:\n  one: {modalities: {optical: one.tif}}\n  two: {modalities: {optical: two.tif}}\n"
    )
    return tmp_path


def rasters(here: Path) -> dict[str, bytes]:
    folder = here / "predictions"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tif"))}


def in_one_process(here: Path, *arguments: str) -> dict[str, bytes]:
    predict.main(["-n", "r", *arguments])
    found = rasters(here)
    (here / "predictions").rename(here / "alone")
    return found


def test_scenes_are_the_same_bytes_as_in_one_process(
    here: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    way = ["--mc", "2", "--probs"]
    expected = in_one_process(here, "scenes.yaml", *way)
    assert len(expected) == 6
    predict.main(["-n", "r", "scenes.yaml", *way, "--scheduler", cluster.scheduler.address])
    assert rasters(here) == expected
    printed = capsys.readouterr().out
    assert printed.count("one: 10,800 pixels") == 2 and printed.count("two: 6,300 pixels") == 2
    for scene in ("one", "two"):
        assert (here / "predictions" / "r" / scene / "outlines.gpkg").is_file()
        assert not (here / "predictions" / "r" / scene / ".unfinished").exists()


def test_a_worker_that_is_killed_midway_changes_nothing(
    here: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "ROWS", 1)
    engine = ["--engine", "openvino"]
    expected = in_one_process(here, "scenes.yaml", *engine)
    workers = set(cluster.run(os.getpid).values())
    killed: list[int] = []

    def kill() -> None:
        """End a worker by SIGKILL while it writes a strip, as soon as another is finished."""
        while not killed:
            works = list((here / "predictions").rglob(".unfinished"))
            names = [path.name for work in works for path in work.glob(".*.npy")]
            finished = sum(len(list(work.glob("0*.json"))) for work in works)
            pids = {int(found[1]) for name in names if (found := re.match(r"\.(\d+)-\d+\.\d+-labels", name))}
            if finished and pids & workers:
                os.kill((pids & workers).pop(), signal.SIGKILL)
                killed.append(finished)
            time.sleep(0.001)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    predict.main(["-n", "r", "scenes.yaml", *engine, "--scheduler", cluster.scheduler.address])
    killed = killed or [0]  # ends the thread
    assert 0 < killed[0] < 20 and rasters(here) == expected
    cluster.wait_for_workers(2, timeout=120)
    assert len(workers - set(cluster.run(os.getpid).values())) == 1


def test_an_interrupted_prediction_goes_on_on_a_cluster(
    here: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = in_one_process(here, "scenes.yaml")
    original, calls = scenes.predict_strip, 0

    def stopping(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(scenes, "predict_strip", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict.main(["-n", "r", "scenes.yaml"])
    work = here / "predictions" / "r" / "one" / ".unfinished"
    times = {number: (work / f"{number:05d}.json").stat().st_mtime_ns for number in range(3)}
    assert is_finished(work, 2) and not is_finished(work, 3)
    predict.main(["-n", "r", "scenes.yaml", "--scheduler", cluster.scheduler.address])
    assert len(times) == 3 and "3 strips of an earlier start" in capsys.readouterr().out
    assert rasters(here) == expected


def test_what_is_wrong_with_a_scene_is_one_message_from_a_worker(here: Path, cluster: Any) -> None:
    path = here / "one.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"one\.tif"):
        predict.main(["-n", "r", "scenes.yaml", "--scheduler", cluster.scheduler.address])
    assert "r/one/labels.tif" not in rasters(here)


def test_workers_that_see_other_files_are_told(here: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["-n", "r", "scenes.yaml", "--scheduler", cluster.scheduler.address]

    def other(work: Path) -> str:
        return "another folder's"

    with monkeypatch.context() as patched:
        patched.setattr(distribution, "plan_digest", other)
        patched.setattr(distribution, "PATIENCE_S", 0.0)
        with pytest.raises(
            UserError, match=r"does not see .*\.unfinished: workers need the folder .* that all machines"
        ):
            predict.main(command)
    with monkeypatch.context() as patched:
        patched.setattr("inference.mapping.weights_digests", lambda members: {"r": "0" * 64})
        with pytest.raises(UserError, match="finds other weights of r"):
            predict.main(command)
    assert not rasters(here)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers there"),
        (["--scheduler", "node1"], "is local or an address such as"),
        (["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "--workers is for --scheduler local"),
        (["--scheduler", "local", "--workers", "0"], "--workers must be at least 1, received 0"),
        (["--workers", "2"], "--workers is for --scheduler local"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_one_message(
    arguments: list[str], message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "CONNECT_S", 1)
    with pytest.raises(UserError, match=message):
        predict.main(["-n", "r", "scenes.yaml", *arguments])
    assert not rasters(here)


def test_a_strip_whose_workers_are_lost_again_and_again_is_one_message() -> None:
    from distributed import KilledWorker

    class Lost:
        status = "error"

        def exception(self) -> Exception:
            return KilledWorker("strip", None, 4)  # type: ignore[arg-type]  # which worker it was does not matter

    with pytest.raises(UserError, match=r"scene one, strip 3: worker after worker was lost .* --batch-size"):
        distribution._check(cast(Any, Lost()), "scene one, strip 3")
