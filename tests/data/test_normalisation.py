from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from console import UserError
from data import normalisation
from data.normalisation import (
    PUBLISHED_STATISTICS,
    Method,
    Statistics,
    fit,
    published,
    published_bands,
    published_for,
)

ROBUST: tuple[Method, ...] = ("robust-standardise", "robust-minmax")
FITTED: tuple[Method, ...] = ("standardise", "minmax", *ROBUST)

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


@pytest.mark.parametrize("modality", ["optical", "dem"])
def test_robust_statistics_are_numpys_percentiles_over_valid_pixels(modality: str) -> None:
    first, median, third = np.nanpercentile(pixels(modality), (25, 50, 75), axis=0)
    low, high = np.nanpercentile(pixels(modality), (0.5, 99.5), axis=0)
    standardised, scaled = fit(samples(), "robust-standardise"), fit(samples(), "robust-minmax")
    np.testing.assert_array_equal(standardised.shift[modality], median)
    np.testing.assert_allclose(standardised.scale[modality], (third - first) / 1.349, rtol=1e-12)
    np.testing.assert_array_equal(scaled.shift[modality], low)
    np.testing.assert_array_equal(scaled.scale[modality], high - low)


def heavy_tailed(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Cauchy values, elevations of a small spread with outliers of 1e30, and half zeros: (count, 3)."""
    rng = np.random.default_rng(seed)
    elevation = rng.normal(5000, 50, count)
    elevation[rng.random(count) < 0.01] = 1e30
    return np.stack([rng.standard_cauchy(count), elevation, np.maximum(rng.normal(size=count), 0)], axis=-1)


@pytest.mark.parametrize("size", [1000, 4000])
def test_percentiles_of_more_values_than_are_kept_are_as_right_as_stated(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(normalisation, "SAMPLE", size)
    values = heavy_tailed(100_000)
    tiles = [({"x": part.reshape(50, 40, 3)}, np.ones((50, 40), bool)) for part in np.split(values, 50)]
    standardised, scaled = (fit(tiles, method) for method in ROBUST)

    def rank(band: int, value: float) -> tuple[float, float]:
        """Return the percentiles that a value is at: two for one of many the same."""
        column = values[:, band]
        return 100 * float((column < value).mean()), 100 * float((column <= value).mean())

    for band in range(3):
        for value, percentile in (
            (standardised.shift["x"][band], 50.0),
            (scaled.shift["x"][band], 0.5),
            (scaled.shift["x"][band] + scaled.scale["x"][band], 99.5),
        ):
            error = np.sqrt(percentile * (100 - percentile) / size)
            low, high = rank(band, value)
            assert low - 4 * error <= percentile <= high + 4 * error
    spreads = [(third - first) / 1.349 for first, third in np.percentile(values, (25, 75), axis=0).T]
    np.testing.assert_allclose(standardised.scale["x"], spreads, rtol=10 / np.sqrt(size))


def test_robust_statistics_do_not_depend_on_the_order_of_tiles_or_on_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "SAMPLE", 500)
    flat = np.zeros((50, 3))  # as tiles of open water are
    parts = [*np.split(heavy_tailed(10_000), 20), *[flat] * 200]
    tiles = [({"x": part[None]}, np.ones((1, len(part)), bool)) for part in parts]
    for method in ROBUST:
        fitted = fit(tiles, method)
        for seed in range(2):
            order = np.random.default_rng(seed).permutation(len(tiles))
            assert fit([tiles[index] for index in order], method) == fitted
    # Half of the first band is 0, the rest lies on both sides: keys that copies shared would let them all in, or none.
    sample = normalisation._Percentiles(3)
    for part in parts:
        sample.add(part)
    assert np.mean(sample.values[0] == 0) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(500))


def test_where_most_values_are_the_same_the_tails_say_the_spread() -> None:
    rng = np.random.default_rng(0)
    slope, rare = np.zeros((100, 100, 1)), np.zeros((100, 100, 1))
    slope[:20] = rng.random((20, 100, 1)) * 40
    rare[0, :7] = 3.0
    tile = [({"slope": slope, "rare": rare}, np.ones((100, 100), bool))]
    robust, plain = fit(tile, "robust-standardise"), fit(tile, "standardise")
    assert robust.shift["slope"] == (0.0,)
    low, high = np.percentile(slope, (0.5, 99.5))
    assert robust.scale["slope"] == pytest.approx(((high - low) / 5.152,))
    assert robust.shift["rare"] == (0.0,) and robust.scale["rare"] == plain.scale["rare"]
    assert fit(tile, "robust-minmax").scale["rare"] == (3.0,)


def test_outliers_leave_robust_statistics_where_they_were() -> None:
    values = np.random.default_rng(0).normal(300, 2, (100, 100, 1))
    spoilt = values.copy()
    spoilt[0, :30] = -3.4e38
    valid = np.ones((100, 100), bool)
    cases: list[tuple[Method, float]] = [("robust-standardise", 0.02), ("robust-minmax", 0.15)]
    for method, tolerance in cases:
        clean, dirty = (fit([({"x": array}, valid)], method) for array in (values, spoilt))
        assert abs(dirty.shift["x"][0] - clean.shift["x"][0]) < tolerance * clean.scale["x"][0]
        assert dirty.scale["x"][0] == pytest.approx(clean.scale["x"][0], rel=tolerance)


def test_fitting_reads_each_sample_once() -> None:
    def once() -> Iterator[Sample]:
        yield from samples()

    assert fit(once()) == fit(samples())
    assert fit(once(), "robust-minmax") == fit(samples(), "robust-minmax")


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


@pytest.mark.parametrize("method", FITTED)
def test_a_constant_band_becomes_0(method: Method) -> None:
    # 0.1 has no exact float: its mean over many pixels is a rounding error away from it.
    array = np.full((50, 50, 1), 0.1)
    statistics = fit([({"x": array}, np.ones((50, 50), bool))] * 3, method)
    assert statistics.scale["x"] == (1.0,)
    np.testing.assert_allclose(statistics.apply("x", array), 0, atol=1e-6)


def test_large_offsets_do_not_cancel() -> None:
    values = 1e9 + np.arange(1000.0).reshape(10, 100, 1)
    parts = [({"x": part[None]}, np.ones((1, 100), bool)) for part in values]
    np.testing.assert_allclose(fit(parts).scale["x"], values.std(), rtol=1e-9)


@pytest.mark.parametrize("method", FITTED)
def test_json_round_trip_is_exact(method: Method) -> None:
    statistics = fit(samples(), method, "a test")
    assert statistics.method == method and statistics.fitted_on == "a test"
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


@pytest.mark.parametrize("method", FITTED)
def test_a_band_without_any_valid_value_is_refused(method: Method) -> None:
    array = np.ones((4, 4, 3), np.float32)
    array[..., 1] = np.nan
    with pytest.raises(UserError, match="'x', band 2"):
        fit([({"x": array}, np.ones((4, 4), bool))], method)
    with pytest.raises(UserError, match="at least one"):
        fit([], method)


@pytest.mark.parametrize("method", FITTED)
def test_tiles_without_valid_pixels_change_nothing(method: Method) -> None:
    arrays = {"optical": np.full((3, 3, 3), 7, np.float32), "dem": np.zeros((3, 3, 2), np.float32)}
    empty = (arrays, np.zeros((3, 3), bool))
    assert fit([empty, *samples(), empty], method) == fit(samples(), method)


def test_published_minima_and_maxima_scale_to_0_and_1() -> None:
    statistics = published()
    assert list(statistics.shift) == ["optical", "dem", "co_pol_sar", "cross_pol_sar", "in_sar", "thermal"]
    low = np.array(statistics.shift["dem"])
    np.testing.assert_array_equal(statistics.apply("dem", low), [0, 0])
    np.testing.assert_allclose(low, [-103.29675627387357, 0.0])
    np.testing.assert_allclose(statistics.apply("dem", np.array([8349.427068840781, 88.97835244066131])), 1)
    assert published_bands()["optical"] == ["blue", "green", "red", "nir", "swir1", "swir2"]


def test_published_statistics_are_taken_where_there_are_some_and_the_rest_is_fitted() -> None:
    names = {"optical": ["nir", "blue"], "dem": ["elevation", "slope"], "velocity": ["speed"]}
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((9, 9, len(bands))) for name, bands in names.items()}
    tile = [(arrays, np.ones((9, 9), bool))]
    statistics = fit(tile, "published", "a test", names)
    known = published({"optical": ["nir", "blue"]})
    for name in ("optical", "dem"):
        assert (statistics.shift[name], statistics.scale[name]) == (known.shift[name], known.scale[name])
    assert statistics.scale["optical"][0] == pytest.approx(2.6781 + 0.02698884)
    own = fit([({"velocity": arrays["velocity"]}, tile[0][1])], "minmax")
    assert (
        statistics.shift["velocity"] == own.shift["velocity"] and statistics.scale["velocity"] == own.scale["velocity"]
    )
    assert list(statistics.shift) == list(names) and statistics.method == "published"
    assert statistics.fitted_on == "mixed: optical, dem as the published GlaViTU datasets (2025); velocity: a test"
    assert Statistics.from_json(json.dumps(statistics.to_json())) == statistics
    del names["velocity"], arrays["velocity"]
    assert fit(tile, "published", "a test", names).fitted_on == "the published GlaViTU datasets (2025)"
    empty = [({**arrays, "dem": np.full((9, 9, 2), np.nan)}, tile[0][1])]
    with pytest.raises(UserError, match="'dem', band 1, 2: no valid value"):
        fit(empty, "published", "a test", names)


def test_published_statistics_are_for_published_bands_only() -> None:
    never: Iterator[Sample] = (pytest.fail("refused before anything is read") for _ in range(1))
    with pytest.raises(UserError, match="`optical` has the bands blue, B11, the published datasets' has blue, green"):
        fit(never, "published", bands={"optical": ["blue", "B11"], "dem": ["elevation"]})
    with pytest.raises(
        UserError, match="there are none for sar, only for optical: blue, green, .*; dem: elevation, slope"
    ):
        fit(never, "published", bands={"sar": ["vv", "vh"]})
    assert list(published_for({"other": ["a"], "thermal": published_bands()["thermal"]}).shift) == ["thermal"]


def test_the_copy_of_the_published_statistics_is_exact(shared: Path) -> None:
    assert json.loads(PUBLISHED_STATISTICS.read_text()) == json.loads(
        (shared / "PUBLISHED_STATISTICS.json").read_text()
    )
