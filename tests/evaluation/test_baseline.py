"""The band-ratio baseline finds the best threshold that there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from console import UserError
from data.normalisation import Statistics
from data.predictions import PredictionFile, PredictionWriter
from data.tiles import TWO_CLASSES, TileFile, TileWriter
from evaluation.baseline import BANDS, RatioThreshold, Sample, evaluate, fit, fit_file
from evaluation.regions import score_tile
from evaluation.scores import Counts


def scene(seed: int = 0, size: int = 64) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Ice is dark in SWIR1, with much overlap; the other bands tell less."""
    random = np.random.default_rng(seed)
    ice = random.random((size, size)) < 0.3
    bands = {name: random.uniform(0.2, 0.8, ice.shape) for name in BANDS}
    bands["swir1"] = np.where(ice, random.uniform(0.02, 0.3, ice.shape), random.uniform(0.1, 0.6, ice.shape))
    return {name: values.astype(np.float32) for name, values in bands.items()}, ice


def samples(*seeds: int) -> Iterator[Sample]:
    for seed in seeds:
        bands, ice = scene(seed)
        yield bands, ice, np.ones(ice.shape, bool)


def test_equals_a_search_over_all_pairs_and_thresholds() -> None:
    rule = fit(samples(0))
    bands, ice = scene(0)
    best = 0.0
    for first in BANDS:
        for second in BANDS:
            if first == second:
                continue
            ratio = bands[first] / bands[second]
            for threshold in np.quantile(ratio, np.linspace(0, 1, 400)):
                found = ratio > threshold
                best = max(best, (found & ice).sum() / (found | ice).sum())
    assert rule.counts.iou == pytest.approx(best, abs=0.003)
    assert rule.counts.iou >= best - 1e-3
    assert "swir1" in (rule.first, rule.second)


def test_its_counts_are_those_of_its_predictions() -> None:
    rule = fit(samples(1, 2, 3))
    total = Counts()
    for bands, ice, _ in samples(1, 2, 3):
        found = rule.predict(bands)
        total += Counts(
            int((found & ice).sum()),
            int((found & ~ice).sum()),
            int((~found & ice).sum()),
            int((~found & ~ice).sum()),
        )
    assert total == rule.counts


def test_glacier_may_lie_below_the_threshold() -> None:
    ice = np.arange(100).reshape(10, 10) < 30
    bands = {"green": np.where(ice, 0.1, 0.5), "red": np.full(ice.shape, 0.3)}
    rule = fit([(bands, ice, np.ones(ice.shape, bool))], ["green", "red"])
    assert not rule.above and rule.counts.iou == 1.0
    np.testing.assert_array_equal(rule.predict(bands), ice)
    assert "≤" in str(rule)


def test_pixels_that_do_not_count_have_no_say() -> None:
    bands, ice = scene()
    counted = np.random.default_rng(1).random(ice.shape) < 0.5
    spoiled = {name: np.where(counted, values, np.float32(np.nan)) for name, values in bands.items()}
    assert fit([(spoiled, ice | ~counted, counted)]) == fit([(bands, ice & counted, counted)])


def test_no_glacier_to_fit_on_is_said() -> None:
    bands, ice = scene()
    with pytest.raises(UserError, match="training tiles with glacier"):
        fit([(bands, ice & False, np.ones(ice.shape, bool))])


def test_the_rule_names_the_ratio() -> None:
    text = str(RatioThreshold("green", "swir1", True, 0.4, Counts()))
    assert text == "(green - swir1)/(green + swir1) > 0.400, that is green/swir1 > 2.33"


def write_file(path: Path, names: list[str], seed: int = 0) -> Path:
    unscaled = Statistics("minmax", {"optical": (0.0,) * len(names)}, {"optical": (1.0,) * len(names)}, "nothing")
    with TileWriter(path, TWO_CLASSES, {"optical": names}, unscaled) as writer:
        for index in range(2):
            bands, ice = scene(seed + index)
            stack = np.stack([bands.get(name, np.zeros(ice.shape, np.float32)) for name in names], axis=-1)
            valid = np.ones(ice.shape, bool)
            valid[:5] = False
            mask = ice.astype(np.uint8)
            mask[:, :5] = 255
            writer.add(f"t{index}", {"optical": stack}, mask, valid, region=f"R{index}")
    return path


def test_files_are_fitted_on_and_scored_in_their_counting_pixels(tmp_path: Path) -> None:
    train = write_file(tmp_path / "train.hdf5", ["blue", *BANDS])
    test = TileFile(write_file(tmp_path / "test.hdf5", ["blue", *BANDS], seed=5))
    rule = fit_file(TileFile(train), ["t0", "t1"])
    assert rule.counts.pixels == 2 * 59 * 59
    with PredictionWriter(tmp_path / "p.hdf5", TWO_CLASSES, {"run": "r", "source": str(test.path)}) as writer:
        for name in test.names:
            probs = np.zeros((64, 64, 2), np.float32)
            writer.add(test.info(name), probs, test.mask(name), test.valid(name))
    predictions = PredictionFile(tmp_path / "p.hdf5")
    valid, everywhere = evaluate(rule, predictions, ["t0", "t1"], ["valid", "all"])
    expected = np.zeros((2, 2), np.int64)
    for name, seed in (("t0", 5), ("t1", 6)):
        labels = rule.predict(scene(seed)[0]).astype(np.uint8)
        expected += score_tile(test.mask(name), labels, test.valid(name), 2, "valid")
    np.testing.assert_array_equal(valid.matrix, expected)
    assert list(valid.region_table["region"]) == ["R0", "R1"]
    assert everywhere.total.pixels == 2 * 59 * 64 > valid.total.pixels


def test_tiles_without_the_bands_teach_nothing_and_get_no_glacier(tmp_path: Path) -> None:
    bands, ice = scene()
    bright = {name: (0.5 if name == "green" else 0.1) * (1 + values) for name, values in bands.items()}
    arrays = {"optical": np.stack(list(bright.values()), axis=-1), "dem": np.ones((*ice.shape, 1))}
    layout = {"optical": list(bright), "dem": ["z"]}
    path = tmp_path / "t.hdf5"
    with TileWriter(path, TWO_CLASSES, layout) as writer:
        writer.add("t0", arrays, ice.astype(np.uint8), np.ones(ice.shape))
        writer.add("t1", {"dem": arrays["dem"]}, ice.astype(np.uint8), np.ones(ice.shape))
    file = TileFile(path)
    rule = fit_file(file, file.names)
    assert rule == fit_file(file, ["t0"])
    with PredictionWriter(tmp_path / "p.hdf5", TWO_CLASSES, {"run": "r", "source": str(path)}) as writer:
        for name in file.names:
            writer.add(file.info(name), np.zeros((*ice.shape, 2), np.float32), file.mask(name), file.valid(name))
    everywhere = RatioThreshold(rule.first, rule.second, False, 1.0, Counts())  # also of NaN
    (scored,) = evaluate(everywhere, PredictionFile(tmp_path / "p.hdf5"), file.names, ["valid"])
    assert [int(tile.matrix[:, 1].sum()) for tile in scored.tiles] == [ice.size, 0]


def test_two_of_the_bands_are_enough_and_fewer_are_refused(tmp_path: Path) -> None:
    rule = fit_file(TileFile(write_file(tmp_path / "a.hdf5", ["blue", "red", "swir1"])), ["t0", "t1"])
    assert {rule.first, rule.second} == {"red", "swir1"}
    with pytest.raises(UserError, match="two or more bands named green, red, nir, swir1.*optical: blue, red"):
        fit_file(TileFile(write_file(tmp_path / "b.hdf5", ["blue", "red"])), ["t0", "t1"])
