from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from console import UserError
from data.acquisitions import Acquisition, Hidden, ready
from data.composites import Method, Period, compose, periods, read_composite
from data.grids import read_grid

Write = Callable[..., Path]
Reads = list[tuple[NDArray[np.float32], NDArray[np.bool_]]]


def acquisition(date: str | None, name: str = "a", unit: str = "K", bands: tuple[str, ...] = ("b",)) -> Acquisition:
    """An acquisition without files."""
    return Acquisition(name, datetime.date.fromisoformat(date) if date else None, dict.fromkeys(bands), unit)  # type: ignore[arg-type]


def draw(seed: int, count: int, shape: tuple[int, int, int] = (6, 5, 3)) -> Reads:
    """Reads with clouds, and with bands missing here and there; nothing at all in the first row."""
    rng = np.random.default_rng(seed)
    reads = []
    for _ in range(count):
        values = rng.normal(size=shape).astype(np.float32)
        values[rng.random(shape) < 0.25] = np.nan
        values[0] = np.nan
        reads.append((values, rng.random(shape[:2]) < 0.7))
    return reads


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_the_median_is_numpys_of_the_clear_values(count: int) -> None:
    reads = draw(count, count)
    stack = np.stack([np.where(clear[..., None], values, np.nan) for values, clear in reads])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # pixels without any value
        expected = np.nanmedian(stack, axis=0)
    values, counted = compose(iter(reads), "median")
    assert values.dtype == np.float32 and counted.dtype == np.uint16
    assert_allclose(values, expected, rtol=1e-6)
    assert_array_equal(counted, np.isfinite(stack).any(axis=-1).sum(axis=0))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_latest_takes_all_bands_of_a_pixel_from_one_acquisition(count: int) -> None:
    reads = draw(count + 10, count)
    values, counted = compose(iter(reads), "latest")
    assert_array_equal(counted, compose(reads, "median")[1])
    for row, column in np.ndindex(*counted.shape):
        there = [
            read[row, column] for read, clear in reads if clear[row, column] and np.isfinite(read[row, column]).any()
        ]
        most = max((np.isfinite(pixel).sum() for pixel in there), default=0)
        complete = [pixel for pixel in there if np.isfinite(pixel).sum() == most]
        assert_array_equal(values[row, column], complete[-1] if complete else np.full(3, np.nan))


@pytest.mark.parametrize("method", ["median", "latest"])
def test_composing_leaves_what_it_is_given_alone(method: Method) -> None:
    reads = draw(3, 3)
    before = [(values.copy(), clear.copy()) for values, clear in reads]
    compose(reads, method)
    for (values, clear), (old_values, old_clear) in zip(reads, before, strict=True):
        assert_array_equal(values, old_values)
        assert_array_equal(clear, old_clear)


@pytest.mark.parametrize("method", ["median", "latest"])
def test_nothing_and_shapes_that_differ_are_refused(method: Method) -> None:
    with pytest.raises(ValueError):
        compose([], method)
    with pytest.raises(ValueError):
        compose([*draw(0, 1), *draw(0, 1, (6, 4, 3))], method)


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ("month", ["2018-11", "2018-12", "2019-01", "2019-02", "2019-08", "2019-12"]),
        ("season", ["2018-SON", "2019-DJF", "2019-JJA", "2020-DJF"]),
        ("year", ["2018", "2019"]),
        ("all", ["all"]),
    ],
)
def test_labels_of_periods_come_in_order(period: Period, expected: list[str]) -> None:
    days = ["2019-08-31", "2018-12-01", "2019-02-28", "2018-11-30", "2019-12-31", "2019-08-01", "2019-01-15"]
    found = periods([acquisition(day) for day in days], period)
    assert list(found) == expected
    listed = [one.date for group in found.values() for one in group]
    assert listed == sorted(datetime.date.fromisoformat(day) for day in days)
    if period == "season":
        assert [one.date.month for one in found["2019-DJF"] if one.date] == [12, 1, 2]


def test_every_month_has_its_season() -> None:
    months = [acquisition(f"2019-{month:02}-15") for month in range(1, 13)]
    labels = [label for one in months for label in periods([one], "season")]
    assert labels == [
        *["2019-DJF"] * 2, *["2019-MAM"] * 3, *["2019-JJA"] * 3, *["2019-SON"] * 3, "2020-DJF"
    ]  # fmt: skip


def test_acquisitions_without_a_date_are_refused_where_one_is_needed() -> None:
    undated = [acquisition("2019-08-01"), acquisition(None, "unknown.tif")]
    assert len(periods(undated, "all")["all"]) == 2
    with pytest.raises(UserError, match="no date of unknown.tif"):
        periods(undated, "month")
    with pytest.raises(UserError, match="no date of unknown.tif"):
        read_composite(undated, None, "latest")  # type: ignore[arg-type]


def test_levels_and_bands_are_not_mixed() -> None:
    first = acquisition("2019-08-01", "first", "surface reflectance")
    with pytest.raises(UserError, match="second: unit K, expected surface reflectance as in first"):
        periods([first, acquisition("2019-08-02", "second")], "month")
    with pytest.raises(UserError, match="second: bands c, expected b as in first"):
        periods([first, acquisition("2019-08-02", "second", "surface reflectance", ("c",))], "month")


@pytest.mark.parametrize("method", ["median", "latest"])
def test_the_order_of_acquisitions_does_not_matter(tmp_path: Path, write_raster: Write, method: Method) -> None:
    rng = np.random.default_rng(5)
    found = []
    for index, day in enumerate((12, 12, 3, 28)):  # two of one day, as two tiles of one pass are
        image = write_raster(tmp_path / f"{index}.tif", rng.random((4, 5, 2), dtype=np.float32))
        cloud = write_raster(tmp_path / f"{index}-cloud.tif", (rng.random((4, 5)) < 0.4).astype(np.uint8))
        date = datetime.date(2019, 8, day)
        found.append(ready([image], ("a", "b"), date=date, hidden=Hidden(cloud)))
    target = read_grid(tmp_path / "0.tif")
    expected = read_composite(found, target, method)
    assert 0 < expected[1].max() <= 4
    for order in ([1, 0, 3, 2], [3, 2, 1, 0], [2, 3, 0, 1]):
        shuffled = [found[index] for index in order]
        for one, other in zip(read_composite(shuffled, target, method), expected, strict=True):
            assert_array_equal(one, other)
        assert [one.name for one in periods(shuffled, "month")["2019-08"]] == ["2", "0", "1", "3"]


def test_clouds_are_seen_through(tmp_path: Path, write_raster: Write) -> None:
    days = []
    for day, value, cloud in ((1, 0.2, 0), (2, 0.9, 1), (3, 0.4, 0), (4, 0.8, 1)):
        image = write_raster(tmp_path / f"{day}.tif", np.full((1, 2), value, np.float32))
        mask = write_raster(tmp_path / f"{day}-cloud.tif", np.array([[cloud, 1]], np.uint8))
        days.append(ready([image], ("a",), date=datetime.date(2019, 8, day), hidden=Hidden(mask)))
    target = read_grid(tmp_path / "1.tif")
    for method, expected in (("median", 0.3), ("latest", 0.4)):
        values, count = read_composite(days, target, method)  # type: ignore[arg-type]
        assert_allclose(values[..., 0], [[expected, np.nan]], rtol=1e-6)
        assert count.tolist() == [[2, 0]]
