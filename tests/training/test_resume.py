"""Runs that are killed and resumed end with the weights, the log and the files of a run left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kills
from console import UserError
from data.tiles import find_dataset
from training.recipe import parse_recipe
from training.record import Best
from training.run import Run, plan
from training.state import Origin, State, Waiting, differences, load_state, save_state, state_path

# Of the smallest network with normalisation and dropout: each kill compiles it anew.
# A share of the run's time, and file operations of a save: just before one, and within the save.
CASES = [
    (kills.Case("unet", 2, "float32", 0.0), 1 / 8, [kills.Kill(4, 0.001)]),
    (kills.Case("unet", 0, "float16", 1e9), None, [kills.Kill(9, 0.0)]),
]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    kills.write_tiles(folder)
    return folder


@pytest.mark.parametrize(("case", "share", "moments"), CASES, ids=["unet-2-float32", "unet-0-float16"])
def test_a_killed_run_ends_like_one_left_alone(
    tiles: Path, tmp_path: Path, case: kills.Case, share: float | None, moments: list[kills.Kill]
) -> None:
    seconds = kills.left_alone(tiles, tmp_path / "alone", case)
    moments = moments if share is None else [kills.Kill(None, seconds * share), *moments]
    assert kills.killed(tiles, tmp_path / "killed", case, iter(moments)) >= 1
    expected = kills.outcome(tmp_path / "alone")
    assert kills.outcome(tmp_path / "killed") == expected
    assert expected[2] == {"weights/run.weights.h5", "weights/run.json", "logs/run.csv"}


def test_random_kills_are_what_was_asked_for() -> None:
    moments = list(kills.random_kills(random.Random(0), 2.0, 40))
    assert len(moments) == 40
    assert {kill.event is None for kill in moments} == {True, False}
    assert all(0 <= kill.delay_s <= 1 for kill in moments)


class _Stop(BaseException):
    """Stands for the kill where the test stays in one process."""


def small_run(tiles: Path, folder: Path, *, resume: bool, **changes: Any) -> Run:
    content: dict[str, Any] = {
        "name": "small",
        "architecture": {"name": "unet", "options": kills.SMALL["unet"]},
        "inputs": ["optical", "dem"],
        "loss": {"focal": {}},
        "training": {
            "patch_size": 32,
            "batch_size": 2,
            "epochs": 3,
            "steps_per_epoch": 2,
            "schedule": {"name": "plateau", "patience": 1},
            "workers": 0,
        },
    }
    others = {key: changes.pop(key) for key in ("seed", "regions") if key in changes}
    content["training"] |= changes
    planned = plan(parse_recipe(content, "the test"), find_dataset(tiles), **others)
    return Run(planned, "mine", weights=folder / "weights", logs=folder / "logs", resume=resume)


def stopped_before(epoch: int, tiles: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run stopped before its epoch number `epoch` (from 0)."""
    whole: Callable[[Run, int], None] = Run._whole_epoch

    def stop(self: Run, number: int) -> None:
        if number == epoch:
            raise _Stop
        whole(self, number)

    with monkeypatch.context() as patch, pytest.raises(_Stop):
        patch.setattr(Run, "_whole_epoch", stop)
        small_run(tiles, folder, resume=False).train()


def test_a_resumed_run_is_refused_with_the_difference(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_before(1, tiles, tmp_path, monkeypatch)
    before = state_path("mine", tmp_path / "weights").read_bytes()
    with pytest.raises(UserError, match=r"training\.batch_size: 2 in the run, 1 now") as raised:
        small_run(tiles, tmp_path, resume=True, batch_size=1, seed=5)
    assert "seed: 0 in the run, 5 now" in str(raised.value) and "epochs" not in str(raised.value)
    assert state_path("mine", tmp_path / "weights").read_bytes() == before

    other = tmp_path / "other"
    kills.write_tiles(other)
    (other / "val.hdf5").write_bytes((other / "train.hdf5").read_bytes())
    with pytest.raises(UserError, match=r"val tiles: .*val\.hdf5 .* in the run, other contents now"):
        small_run(other, tmp_path, resume=True)


def test_rows_that_the_state_does_not_know_are_cut_from_the_log(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_before(1, tiles, tmp_path, monkeypatch)
    log = tmp_path / "logs" / "mine.csv"
    expected = log.read_text()
    log.write_text(expected + expected.splitlines()[1].replace("1,", "2,", 1) + "\n")
    leftover = tmp_path / "weights" / ".123-456.mine.weights.h5"
    leftover.write_text("half")
    run = small_run(tiles, tmp_path, resume=True)
    seen = []

    def epoch(self: Run, number: int) -> None:
        seen.append(log.read_text())
        self.rows.append(self.rows[0])

    monkeypatch.setattr(Run, "_whole_epoch", epoch)
    run.train()
    assert seen[0] == expected and not leftover.exists()


def test_a_state_says_the_same_after_a_round_through_its_file(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_before(1, tiles, tmp_path, monkeypatch)
    state = load_state("mine", tmp_path / "weights")
    assert state is not None and state.epoch == 1
    odd = state.model_copy(
        update={
            "rows": ({"epoch": 1, "loss": 0.1 + 0.2, "val_loss": float("nan"), "learning_rate": 1e-300},),
            "plateau": Waiting(best=float("-inf"), waited=3),
            "best": Best(epoch=1, monitor="iou", score=None, confusion=((1, 2), (3, 2**60))),
        }
    )
    save_state(odd, [], "mine", tmp_path / "weights")
    again = load_state("mine", tmp_path / "weights")
    assert again is not None and repr(again) == repr(odd)
    assert list(map(type, again.rows[0].values())) == [int, float, float, float]


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    assert load_state("mine", tmp_path) is None
    state_path("mine", tmp_path).parent.mkdir()
    state_path("mine", tmp_path).write_bytes(b"\x89HDF and no more")
    with pytest.raises(UserError, match=r"state\.h5 is no state of a run"):
        load_state("mine", tmp_path)


def test_versions_are_no_difference_but_every_other_thing_is() -> None:
    file = {"path": "t.hdf5", "size": 1, "digest": "a", "modified": "today"}
    origin = Origin(
        recipe={"training": {"epochs": 1}},
        dataset={"files": {"train": file}},
        init=None,
        statistics=None,
        regions=(),
        seed=0,
        precision="float32",
        backend="tensorflow",
        versions={"keras": "3"},
    )
    assert State.model_fields["origin"].annotation is Origin
    assert differences(origin, origin.model_copy(update={"versions": {}})) == []
    moved = {"files": {"train": {**file, "path": "elsewhere", "modified": "tomorrow"}}}
    assert differences(origin, origin.model_copy(update={"dataset": moved})) == []
    for change in (
        {"recipe": {"training": {"epochs": 2}}},
        {"recipe": {"training": {"epochs": 1, "more": 0}}},
        {"dataset": {"files": {"train": {**file, "digest": "b"}}}},
        {"regions": ("HMA",)},
        {"init": {"source": "other"}},
        {"statistics": {"method": "minmax"}},
        {"seed": 1},
        {"precision": "bfloat16"},
        {"backend": "jax"},
    ):
        assert len(differences(origin, origin.model_copy(update=change))) == 1, change
