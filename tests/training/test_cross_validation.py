"""Cross-validation through train.py: a run a fold, one report, resumed like runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import training.run as run_module
from benchmarks import kills
from console import UserError
from evaluation.scores import counts
from train import main
from training.cross_validation import report
from training.record import load_record

RECIPE: dict[str, Any] = {
    "architecture": {"name": "tiny", "options": {}},
    "inputs": ["optical", "dem"],
    "loss": {"focal": {}},
    "training": {
        "patch_size": 32,
        "batch_size": 2,
        "epochs": 1,
        "steps_per_epoch": 1,
        "schedule": {"name": "cosine"},
        "workers": 0,
    },
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    kills.write_tiles(Path("tiles/discs"))
    Path("small.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def test_folds_resume_like_runs_and_end_in_one_report(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-r", "small.yaml", "--folds", "2", "--seed", "4"]
    epoch = run_module.Run._epoch

    def interrupted(self: run_module.Run, number: int) -> Any:
        if self.name == "small-fold2":
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run_module.Run, "_epoch", interrupted)
        main(arguments)
    assert "go on with: the same command and --resume" in capsys.readouterr().out
    with pytest.raises(UserError, match="runs named small-fold1, small-fold2 exist"):
        main(arguments)
    first = Path("weights/small-fold1.weights.h5").stat().st_mtime_ns
    main([*arguments, "--resume"])
    said = capsys.readouterr().out
    assert "run 'small-fold1' is done" in said and "mean ± std" in said
    assert Path("weights/small-fold1.weights.h5").stat().st_mtime_ns == first

    table = pd.read_csv("reports/small/folds.csv")
    records = [load_record(f"small-fold{fold}") for fold in (1, 2)]
    assert list(table["tiles"].sort_values()) == [2, 3] and list(table["run"]) == ["small-fold1", "small-fold2"]
    for row, record in zip(table["iou"], records, strict=True):
        assert row == pytest.approx(counts(np.array(record.best.confusion), {1}).iou)
        assert row == pytest.approx(record.best.score)
    assert f"{table['iou'].mean():.3f} ± {table['iou'].std(ddof=0):.3f}" in said

    # A fold is what the same run on the fold's tiles is, in a process that trained nothing before.
    main(["-r", "small.yaml", "-n", "again", "--data", "tiles/small-folds/fold2", "--seed", "4"])
    assert Path("logs/again.csv").read_text() == Path("logs/small-fold2.csv").read_text()


def test_flags_that_say_nothing_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match="--block-m is the size of the blocks"):
        main(["-r", "small.yaml", "--folds", "2", "--block-m", "100"])
    with pytest.raises(UserError, match="--folds needs -m"):
        main(["-n", "small", "--folds", "2", "--resume"])
    with pytest.raises(UserError, match="how many folds"):
        main(["-r", "small.yaml", "--folds-by", "blocks"])


def test_the_report_leaves_undefined_scores_out(tmp_path: Path) -> None:
    table = pd.DataFrame(
        [
            {"fold": k, "run": f"a-fold{k}", "tiles": 1, "regions": "HMA", "best_epoch": 1, "iou": iou}
            for k, iou in ((1, 0.5), (2, float("nan")), (3, 0.7))
        ]
    )
    text = report(table, tmp_path)
    assert "0.600 ± 0.100" in text and "–" in text and "nan" not in text
    assert pd.read_csv(tmp_path / "folds.csv")["iou"].isna().sum() == 1


def test_the_report_says_that_the_masks_are_weak(tmp_path: Path) -> None:
    note = "reference: weak mask, ndsi > 0.4 — scores measure agreement with that rule, not with outlines"
    row = {"fold": 1, "run": "a-fold1", "tiles": 1, "regions": "HMA", "best_epoch": 1, "iou": 0.5, "reference": note}
    text = report(pd.DataFrame([row, {**row, "fold": 2}]), tmp_path)
    assert text.count(note) == 1 and text.endswith(note) and "0.500 ± 0.000" in text
    assert set(pd.read_csv(tmp_path / "folds.csv")["reference"]) == {note}
