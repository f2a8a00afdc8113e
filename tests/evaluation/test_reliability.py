"""Expected calibration error against its formula, by region and pooled."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.predictions import PredictionFile, PredictionWriter, label
from data.tiles import TWO_CLASSES, TileInfo
from evaluation import reliability
from evaluation.calibration import Calibrator
from evaluation.reliability import BINS, Reliability
from evaluation.scores import IGNORE


def brute_force(values: NDArray[np.float64], true: NDArray[np.bool_]) -> float:
    """Σ over the bins (k/15, (k+1)/15] of |B|/n · |mean of true - mean of values|; 0 belongs to the first."""
    total = 0.0
    for k in range(BINS):
        members = [
            (v, t) for v, t in zip(values, true, strict=True) if k / BINS < v <= (k + 1) / BINS or (k == 0 and v == 0)
        ]
        if members:
            v, t = np.array(members, float).T
            total += len(members) / len(values) * abs(t.mean() - v.mean())
    return total


def pixels(classes: int, count: int = 500, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(classes, 0.4), count), rng.integers(classes, size=count)


@pytest.mark.parametrize("classes", [2, 4])
def test_errors_are_those_of_the_formula(classes: int) -> None:
    probs, reference = pixels(classes)
    labels = probs.argmax(axis=1)
    found = Reliability.of(probs, labels, reference)
    assert found.ece == pytest.approx(brute_force(probs.max(axis=1), labels == reference))
    by_class = [brute_force(probs[:, k], reference == k) for k in range(classes)]
    assert found.classwise_ece == pytest.approx(np.mean(by_class))
    assert found.accuracy == pytest.approx((labels == reference).mean())
    assert found.confidence == pytest.approx(probs.max(axis=1).mean()) and found.pixels == 500
    assert np.nansum(found.table[:, 0] * found.table[:, 2]) == pytest.approx(found.accuracy)


def test_one_probability_is_that_of_the_second_class() -> None:
    probs, reference = pixels(2)
    one, labels = probs[:, 1:], (probs[:, 1] > 0.5).astype(int)
    np.testing.assert_allclose(
        Reliability.of(one, labels, reference).sums, Reliability.of(probs, labels, reference).sums
    )


def test_ignored_pixels_do_not_count_and_pools_are_sums() -> None:
    probs, reference = pixels(3)
    labels = probs.argmax(axis=1)
    masked = np.where(np.arange(500) < 200, reference, IGNORE)
    first, second = (
        Reliability.of(probs[part], labels[part], reference[part]) for part in (slice(200), slice(200, None))
    )
    np.testing.assert_array_equal(Reliability.of(probs, labels, masked).sums, first.sums)
    np.testing.assert_allclose((first + second).sums, Reliability.of(probs, labels, reference).sums)
    nothing = Reliability.of(probs, labels, np.full(500, IGNORE))
    assert nothing.pixels == 0 and math.isnan(nothing.ece) and nothing.to_json()["ece"] is None


def test_a_prediction_file_is_measured_by_region(tmp_path: Path) -> None:
    """The label's confidence is that of the label as it is stored, cleaned ones included."""
    rng = np.random.default_rng(0)
    calibrator = Calibrator(method="temperature", temperature=2.0)
    expected: dict[str, list[Reliability]] = {"ALP": [], "HMA": []}
    note = {"run": "r", "source": "t.hdf5", "calibration": calibrator.model_dump(mode="json")}
    with PredictionWriter(tmp_path / "p.hdf5", TWO_CLASSES, note) as writer:
        for number, region in enumerate(("HMA", "ALP", "HMA")):
            glacier = rng.random((20, 30)).astype(np.float32)
            probs = np.stack([1 - glacier, glacier], axis=-1)
            mask, valid = rng.integers(2, size=(20, 30)).astype(np.uint8), rng.random((20, 30)) < 0.9
            mask[0] = IGNORE
            info = TileInfo(f"t{number}", 20, 30, region)
            writer.add(info, probs, mask, valid, lambda labels: np.maximum(labels, labels[::-1]), calibrator)
            labels = np.maximum(label(probs), label(probs)[::-1])
            expected[region].append(Reliability.of(calibrator(probs), labels, np.where(valid, mask, IGNORE)))
    file = PredictionFile(tmp_path / "p.hdf5")
    confidence = reliability.measure(file, file.select(), calibrator)
    assert confidence.calibrated is not None
    for region, parts in expected.items():
        np.testing.assert_allclose(confidence.calibrated[region].sums, sum(part.sums for part in parts), rtol=1e-6)
    stored, labels = file.confidence("t0"), file.read("t0").labels
    probs = calibrator(file.probs("t0"))
    np.testing.assert_allclose(stored, np.where(labels == 1, probs[..., 1], probs[..., 0]), atol=1e-6)
    assert stored.min() < 0.5 < stored.max()

    lines = confidence.text().splitlines()
    assert [line.split()[0] for line in lines if line[0] != "-"] == ["region", "ALP", "HMA", "total"]
    assert f"{confidence.total(confidence.calibrated).ece:.4f}" in lines[-1]
    reliability.save(confidence, tmp_path / "report", {"run": "r"})
    report = json.loads((tmp_path / "report" / "calibration.json").read_text())
    assert report["calibrated"]["regions"]["ALP"]["ece"] == pytest.approx(expected["ALP"][0].ece)
    assert len(report["bin_edges"]) == BINS + 1 and len(report["model"]["total"]["bins"]) == BINS
    assert (tmp_path / "report" / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_a_bin_has_its_upper_end_and_not_its_lower() -> None:
    glacier = np.array([0.0, 1 / BINS, 0.1, 0.2, 1.0])
    found = Reliability.of(glacier[:, None], np.zeros(5, int), np.zeros(5, int))
    np.testing.assert_array_equal(np.flatnonzero(found.sums[2, :, 0]), [0, 1, 2, BINS - 1])
    assert found.sums[2, 0, 0] == 2
