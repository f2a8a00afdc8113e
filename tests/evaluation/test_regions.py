"""The region table pools pixels, compares regions for equality and knows regions without glacier."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from console import UserError
from data.tiles import ClassInfo
from evaluation.regions import Evaluation, TileScore, glacier_ids, save, score_tile


def evaluation(matrices: dict[str, list[list[list[int]]]], classes: int = 2) -> Evaluation:
    """An evaluation of tiles with these confusion matrices by region."""
    tiles = [
        TileScore(f"{region}-{index}", region, np.array(matrix))
        for region, of_region in matrices.items()
        for index, matrix in enumerate(of_region)
    ]
    return Evaluation(tuple(tiles), ("background", "ice", "debris", "water")[:classes], (1, 2)[: classes - 1], "valid")


TWO = evaluation(
    {
        "SC": [[[50, 10], [0, 40]], [[100, 0], [0, 0]]],
        "ALP": [[[70, 0], [20, 10]]],
        "SCX": [[[95, 5], [0, 0]]],
    }
)


def test_a_regions_iou_is_that_of_its_pooled_pixels() -> None:
    table = TWO.region_table.set_index("region")
    assert list(table.index) == ["ALP", "SC", "SCX"]
    assert table.loc["SC", "iou"] == pytest.approx(40 / 50)
    assert table.loc["ALP", "iou"] == pytest.approx(10 / 30)
    assert list(table.loc["SC", ["tiles", "pixels", "tp", "fp", "fn", "tn"]]) == [2, 200, 40, 10, 0, 150]
    assert TWO.total.iou == pytest.approx(50 / 85)


def test_regions_without_glacier_are_listed_and_left_out_of_the_mean() -> None:
    table = TWO.region_table.set_index("region")
    assert table["iou"].isna()["SCX"] and table.loc["SCX", "fp"] == 5
    assert TWO.mean_iou == pytest.approx(np.mean([0.8, 1 / 3]))
    assert TWO.std_iou == pytest.approx(np.std([0.8, 1 / 3]))  # numpy's is the population's
    text = TWO.text()
    assert "mean IoU 0.567 ± 0.233 over 2 regions" in text
    (line,) = [line for line in text.splitlines() if line.startswith("SCX")]
    assert line.split()[:5] == ["SCX", "1", "100", "0.0%", "–"]
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["ALP", "SC", "SCX"]


def test_no_glacier_at_all_is_said() -> None:
    none = evaluation({"A": [[[10, 0], [0, 0]]]})
    assert math.isnan(none.mean_iou) and math.isnan(none.std_iou)
    assert "no region has glacier" in none.text()


def test_confusion_among_glacier_classes_is_no_error_but_by_class() -> None:
    matrix = [[80, 0, 0, 1], [0, 10, 5, 0], [0, 0, 5, 2], [1, 0, 0, 9]]
    four = evaluation({"A": [matrix]}, classes=4)
    row = four.region_table.iloc[0]
    assert row["iou"] == pytest.approx(20 / 22)
    assert row["iou_debris"] == pytest.approx(5 / 12)
    truth, guess = (np.repeat(ids.ravel(), np.ravel(matrix)) for ids in np.indices((4, 4)))
    assert row["mcc_all_classes"] == pytest.approx(metrics.matthews_corrcoef(truth, guess))
    assert row["kappa_all_classes"] == pytest.approx(metrics.cohen_kappa_score(truth, guess))
    is_true, is_found = np.isin(truth, (1, 2)), np.isin(guess, (1, 2))
    assert row["kappa"] == pytest.approx(metrics.cohen_kappa_score(is_true, is_found))
    assert all(name in four.text() for name in ("IoU debris", "MCC of all", "kappa of all"))
    assert "IoU debris" not in TWO.text() and "of all" not in TWO.text()


def test_settings_differ_by_the_invalid_pixels_only() -> None:
    reference = np.array([[1, 1, 0, 0, 255, 255]], np.uint8)
    labels = np.array([[1, 1, 1, 0, 1, 1]], np.uint8)
    valid = np.array([[1, 0, 0, 1, 1, 0]], bool)
    np.testing.assert_array_equal(score_tile(reference, labels, valid, 2, "valid"), [[1, 0], [0, 1]])
    # Invalid: a glacier pixel becomes a miss, a background pixel is right; without reference none counts.
    np.testing.assert_array_equal(score_tile(reference, labels, valid, 2, "all"), [[2, 0], [1, 1]])


def test_reports_are_complete_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "r"
    save([TWO, evaluation({"SC": [[[1, 0], [0, 1]]]})], folder, {"run": "r"})
    assert sorted(path.name for path in folder.iterdir()) == ["regions.csv", "scores.json", "tiles.csv"]
    regions, tiles = pd.read_csv(folder / "regions.csv"), pd.read_csv(folder / "tiles.csv")
    assert list(regions["region"]) == ["ALP", "SC", "SCX"] and list(tiles["tile"])[0] == "SC-0"
    assert list(regions.columns)[4:8] == ["tp", "fp", "fn", "tn"]
    assert list(regions.columns)[8:] == ["iou", "precision", "recall", "f1", "accuracy", "mcc", "kappa", "setting"]
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["run"] == "r" and scores["classes"] == ["background", "ice"] and scores["setting"] == "valid"
    assert scores["glacier_classes"] == ["ice"]


def test_scores_json_has_every_setting_and_no_nan(tmp_path: Path) -> None:
    everywhere = Evaluation(TWO.tiles[:1], TWO.classes, TWO.glacier, "all")
    save([TWO, everywhere], tmp_path, {})
    text = (tmp_path / "scores.json").read_text()
    assert "NaN" not in text
    settings = json.loads(text)["settings"]
    assert list(settings) == ["valid", "all"]
    assert settings["valid"]["regions"]["SCX"]["iou"] is None
    total = settings["valid"]["total"]
    assert [total[key] for key in ("tp", "fp", "fn", "tn")] == [50, 15, 20, 315]
    assert total["iou"] == pytest.approx(TWO.total.iou)
    assert settings["all"]["confusion"] == [[50, 10], [0, 40]]


def test_a_class_list_without_glacier_is_refused() -> None:
    assert glacier_ids([ClassInfo("rock"), ClassInfo("ice", True), ClassInfo("debris", True)]) == (1, 2)
    with pytest.raises(UserError, match="no class is flagged as glacier among rock, water"):
        glacier_ids([ClassInfo("rock"), ClassInfo("water")])
