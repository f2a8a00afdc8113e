from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from console import UserError
from data.normalisation import PUBLISHED_STATISTICS, Statistics, fit, published, published_bands

Sample = tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]


def samples(seed: int = 0) -> list[Sample]:
    """Tiles of differing sizes and levels, with invalid pixels and single bands without data."""
    rng = np.random.default_rng(seed)
    made = []
    for index, size in enumerate([(7, 9), (30, 4), (1, 1), (12, 12)]):
        optical = (rng.normal(1000 * index, 3, (*size, 3)) + 1e4).astype(np.float32)
        dem = rng.random((*size, 2), dtype=np.float32)
        valid = rng.random(size) > 0.3
        valid[0, 0] = True
        optical[~valid] = -9999
        optical[rng.random(size) > 0.8, 1] = np.nan
        dem[rng.random(size) > 0.9, 0] = np.inf
        made.append(({"optical": optical, "dem": dem}, valid))
    return made


def pixels(modality: str) -> NDArray[np.float64]:
    pooled = np.concatenate([arrays[modality][valid] for arrays, valid in samples()]).astype(np.float64)
    return np.where(np.isfinite(pooled), pooled, np.nan)


@pytest.mark.parametrize("modality", ["optical", "dem"])
def test_standardise_is_numpys_mean_and_deviation_over_valid_pixels(modality: str) -> None:
    statistics = fit(samples())
    np.testing.assert_allclose(statistics.shift[modality], np.nanmean(pixels(modality), axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.scale[modality], np.nanstd(pixels(modality), axis=0), rtol=1e-10)


@pytest.mark.parametrize("modality", ["optical", "dem"])
def test_minmax_is_numpys_minimum_and_range_over_valid_pixels(modality: str) -> None:
    statistics = fit(samples(), "minmax")
    low, high = np.nanmin(pixels(modality), axis=0), np.nanmax(pixels(modality), axis=0)
    np.testing.assert_array_equal(statistics.shift[modality], low)
    np.testing.assert_array_equal(statistics.scale[modality], high - low)


def test_fitting_reads_each_sample_once() -> None:
    def once() -> Iterator[Sample]:
        yield from samples()

    assert fit(once()) == fit(samples())


def test_fitting_does_not_depend_on_how_pixels_are_cut_into_tiles() -> None:
    column = np.concatenate([arrays["dem"].reshape(-1, 1, 2) for arrays, _ in samples()])
    whole = [({"dem": column}, np.concatenate([valid.reshape(-1, 1) for _, valid in samples()]))]
    parts = [({"dem": arrays["dem"]}, valid) for arrays, valid in samples()]
    np.testing.assert_allclose(fit(whole).scale["dem"], fit(parts).scale["dem"], rtol=1e-12)


def test_scaled_training_pixels_have_mean_0_and_deviation_1() -> None:
    statistics = fit(samples())
    scaled = np.concatenate([statistics.apply("optical", arrays["optical"])[valid] for arrays, valid in samples()])
    assert scaled.dtype == np.float32
    seen = np.isfinite(pixels("optical"))
    for band in range(3):
        values = scaled[seen[:, band], band].astype(np.float64)
        assert abs(values.mean()) < 1e-4
        assert abs(values.std() - 1) < 1e-4


def test_nodata_becomes_0_in_its_band_only() -> None:
    statistics = Statistics("standardise", {"x": (1.0, 2.0)}, {"x": (2.0, 4.0)}, "test")
    array = np.array([[[np.nan, 6.0], [3.0, np.inf], [3.0, -np.inf]]], np.float64)
    np.testing.assert_array_equal(statistics.apply("x", array), [[[0, 1], [1, 0], [1, 0]]])
    assert np.isnan(array[0, 0, 0]), "the caller's array is left alone"


def test_applied_statistics_do_not_scale_twice() -> None:
    statistics = Statistics("minmax", {"x": (5.0,)}, {"x": (2.0,)}, "test", applied=True)
    stored = np.array([[[0.25], [np.nan]]], np.float32)
    np.testing.assert_array_equal(statistics.apply("x", stored), [[[0.25], [0.0]]])
    assert np.isnan(stored[0, 1, 0])


@pytest.mark.parametrize("method", ["standardise", "minmax"])
def test_a_constant_band_becomes_0(method: str) -> None:
    # 0.1 has no exact float: its mean over many pixels is a rounding error away from it.
    array = np.full((50, 50, 1), 0.1)
    statistics = fit([({"x": array}, np.ones((50, 50), bool))] * 3, method)  # type: ignore[arg-type]
    assert statistics.scale["x"] == (1.0,)
    np.testing.assert_allclose(statistics.apply("x", array), 0, atol=1e-6)


def test_large_offsets_do_not_cancel() -> None:
    values = 1e9 + np.arange(1000.0).reshape(10, 100, 1)
    parts = [({"x": part[None]}, np.ones((1, 100), bool)) for part in values]
    np.testing.assert_allclose(fit(parts).scale["x"], values.std(), rtol=1e-9)


def test_json_round_trip_is_exact() -> None:
    statistics = fit(samples(), fitted_on="a test")
    stored = json.dumps(statistics.to_json())
    assert Statistics.from_json(stored) == statistics
    assert Statistics.from_json(json.loads(stored)) == statistics


@pytest.mark.parametrize("stored", ["{}", '{"method": "minmax"}', "[]", '{"shift": 1, "scale": 2}'])
def test_what_is_not_statistics_is_refused(stored: str) -> None:
    with pytest.raises(ValueError):
        Statistics.from_json(stored)


@pytest.mark.parametrize(
    ("shift", "scale"), [((0.0,), (0.0,)), ((0.0,), (float("nan"),)), ((0.0,), (-1.0,)), ((0.0, 1.0), (1.0,))]
)
def test_impossible_numbers_are_refused(shift: tuple[float, ...], scale: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scale"):
        Statistics("minmax", {"x": shift}, {"x": scale}, "test")


def test_select_keeps_the_order_asked_for() -> None:
    statistics = fit(samples())
    selected = statistics.select(["dem", "optical"])
    assert list(selected.shift) == list(selected.scale) == ["dem", "optical"]
    assert selected.shift["dem"] == statistics.shift["dem"]
    with pytest.raises(UserError, match=r"'sar'.*optical, dem"):
        statistics.select(["sar"])


def test_other_numbers_of_bands_are_refused() -> None:
    with pytest.raises(UserError, match=r"'optical' has 2 bands.*have 3"):
        fit(samples()).apply("optical", np.zeros((4, 4, 2)))


def test_a_band_without_any_valid_value_is_refused() -> None:
    array = np.ones((4, 4, 3), np.float32)
    array[..., 1] = np.nan
    with pytest.raises(UserError, match="'x', band 2"):
        fit([({"x": array}, np.ones((4, 4), bool))])
    with pytest.raises(UserError, match="at least one"):
        fit([])


def test_tiles_without_valid_pixels_change_nothing() -> None:
    arrays = {"optical": np.full((3, 3, 3), 7, np.float32), "dem": np.zeros((3, 3, 2), np.float32)}
    empty = (arrays, np.zeros((3, 3), bool))
    assert fit([empty, *samples(), empty]) == fit(samples())


def test_published_minima_and_maxima_scale_to_0_and_1() -> None:
    statistics = published()
    assert list(statistics.shift) == ["optical", "dem", "co_pol_sar", "cross_pol_sar", "in_sar", "thermal"]
    low = np.array(statistics.shift["dem"])
    np.testing.assert_array_equal(statistics.apply("dem", low), [0, 0])
    np.testing.assert_allclose(low, [-103.29675627387357, 0.0])
    np.testing.assert_allclose(statistics.apply("dem", np.array([8349.427068840781, 88.97835244066131])), 1)
    assert published_bands()["optical"] == ["blue", "green", "red", "nir", "swir1", "swir2"]


def test_the_copy_of_the_published_statistics_is_exact(shared: Path) -> None:
    assert json.loads(PUBLISHED_STATISTICS.read_text()) == json.loads(
        (shared / "PUBLISHED_STATISTICS.json").read_text()
    )
