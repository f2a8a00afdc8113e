from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from console import UserError
from data.acquisitions import (
    Affine,
    Hidden,
    Thermal,
    backscatter,
    log_backscatter,
    read_acquisition,
    ready,
)
from data.grids import read_grid

Write = Callable[..., Path]
COARSE = (60.0, 0.0, 500_000.0, 0.0, -60.0, 3_100_000.0)


def test_one_raster_with_all_bands_and_one_for_each_are_the_same(tmp_path: Path, write_raster: Write) -> None:
    stored = np.random.default_rng(0).integers(1, 9000, (5, 4, 3)).astype(np.uint16)
    stored[0, 0, 1] = 7
    stack = write_raster(tmp_path / "stack.tif", stored, nodata=0)
    single = [write_raster(tmp_path / f"{band}.tif", stored[..., band]) for band in range(3)]
    for files, indexes in (([stack], None), (single, None), ([stack], (1, 2, 3))):
        acquisition = ready(files, ("a", "b", "c"), 1e-4, -0.1, (7,), indexes=indexes)
        values, clear = read_acquisition(acquisition, read_grid(stack))
        assert_allclose(values, np.where(stored == 7, np.nan, stored * 1e-4 - 0.1), atol=1e-6)
        assert clear.all() and clear.shape == (5, 4)
        json.dumps(acquisition.described)
    chosen, _ = read_acquisition(ready([stack], ("c", "a"), indexes=(3, 1)), read_grid(stack))
    assert_array_equal(chosen, stored[..., [2, 0]])


@pytest.mark.parametrize(
    ("files", "bands", "indexes", "message"),
    [
        (["three"], ["a", "b"], None, "3 bands, expected 2"),
        (["three"], ["a", "b"], (1, 4), "bands 1, 4 .* expected one number of 1 to 3"),
        (["three", "one"], ["a", "b"], None, "three.tif: 3 bands, expected one"),
        (["one", "one", "one"], ["a", "b"], None, "3 files for 2 bands"),
        (["one"], [], None, "no files or no bands"),
        (["three"], ["a", "b", "a"], None, "name one of them twice"),
        (["text"], ["a"], None, "can't be read"),
    ],
)
def test_numbers_of_bands_that_differ_are_refused(
    tmp_path: Path,
    write_raster: Write,
    files: Sequence[str],
    bands: Sequence[str],
    indexes: Sequence[int] | None,
    message: str,
) -> None:
    write_raster(tmp_path / "one.tif", np.ones((2, 2), np.float32))
    write_raster(tmp_path / "three.tif", np.ones((2, 2, 3), np.float32))
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(UserError, match=message):
        ready([tmp_path / f"{name}.tif" for name in files], bands, indexes=indexes)


def test_nodata_has_no_share_in_its_neighbours(tmp_path: Path, write_raster: Write) -> None:
    stored = np.full((8, 8), 5000, np.uint16)
    stored[2, 2], stored[4:6, 4:6] = 0, 0
    path = write_raster(tmp_path / "dn.tif", stored)
    target = read_grid(write_raster(tmp_path / "coarse.tif", np.zeros((4, 4), np.uint8), transform=COARSE))
    values, _ = read_acquisition(ready([path], ["b"], 1e-4, -0.1, nodata=(0,)), target)
    expected = np.full((4, 4, 1), 0.4, np.float32)
    expected[2, 2] = np.nan
    assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("given", ["linear", "db"])
def test_backscatter_is_averaged_as_power(tmp_path: Path, write_raster: Write, given: str) -> None:
    power = np.array([[0.001, 1.0], [0.001, 1.0]])
    stored = (power if given == "linear" else 10 * np.log10(power)).astype(np.float32)
    path = write_raster(tmp_path / "sar.tif", stored)
    target = read_grid(write_raster(tmp_path / "coarse.tif", np.zeros((1, 1), np.uint8), transform=COARSE))
    acquisition = backscatter([path], ["ascending"], given)  # type: ignore[arg-type]
    values, _ = read_acquisition(acquisition, target)
    assert_allclose(values, np.log10(0.5005 + 1e-6), rtol=1e-5)  # the mean of the dB would be -1.5


def test_noise_below_zero_is_averaged_with_its_sign_and_then_cut_off(tmp_path: Path, write_raster: Write) -> None:
    path = write_raster(tmp_path / "sar.tif", np.array([[0.02, -0.02, -0.01, -0.01]] * 2, np.float32))
    target = read_grid(write_raster(tmp_path / "coarse.tif", np.zeros((1, 2), np.uint8), transform=COARSE))
    values, _ = read_acquisition(backscatter([path], ["ascending"], "linear"), target)
    assert_allclose(values[0, :, 0], [-6, -6], atol=1e-5)


def test_backscatter_has_the_published_unit_and_least_value(tmp_path: Path, write_raster: Write, shared: Path) -> None:
    statistics = json.loads((shared / "PUBLISHED_STATISTICS.json").read_text())["co_pol_sar"]
    path = write_raster(tmp_path / "sar.tif", np.zeros((2, 2, 2), np.float32))
    acquisition = backscatter([path], statistics["bands"], "linear")
    assert acquisition.unit == statistics["unit"]
    assert_allclose(log_backscatter(np.zeros(1, np.float32)), statistics["min"][0])
    assert np.isnan(log_backscatter(np.full(1, np.nan, np.float32)))


def test_radiance_at_or_below_zero_has_no_temperature() -> None:
    found = Thermal(ml=1.0, al=-2.0, k1=774.8853, k2=1321.0789)(np.array([0, 1, 2, 3], np.uint16))
    assert np.isnan(found[:3]).all() and found[3] > 0


def test_conversions_do_not_change_what_they_are_given() -> None:
    stored = np.array([0, 1, 65535], np.uint16)
    for conversion in (Affine(2.0, 1.0), Thermal(1.0, -2.0, 700.0, 1300.0)):
        conversion(stored)
        assert stored.tolist() == [0, 1, 65535]


@pytest.mark.parametrize("tag", [None, 0, 1])
def test_what_hides_is_said_by_the_values_and_never_by_the_nodata_tag(
    tmp_path: Path, write_raster: Write, tag: int | None
) -> None:
    clouds = np.array([[0, 1, 2], [0, 0, 1]], np.uint8)
    path = write_raster(tmp_path / "image.tif", np.ones((2, 3), np.float32))
    mask = write_raster(tmp_path / "clouds.tif", clouds, nodata=tag)
    acquisition = ready([path], ["b"], hidden=Hidden(mask, 1, "values", (1,)))
    assert read_acquisition(acquisition, read_grid(path))[1].tolist() == (clouds != 1).tolist()


@pytest.mark.parametrize(("kind", "outside"), [("values", True), ("scl", False), ("qa_pixel", False)])
def test_where_a_producers_raster_ends_nothing_was_seen(
    tmp_path: Path, write_raster: Write, kind: str, outside: bool
) -> None:
    path = write_raster(tmp_path / "image.tif", np.ones((2, 4), np.float32))
    mask = write_raster(tmp_path / "mask.tif", np.full((2, 2), 64, np.uint16))
    acquisition = ready([path], ["b"], hidden=Hidden(mask, 1, kind, (3,)))  # type: ignore[arg-type]
    _, clear = read_acquisition(acquisition, read_grid(path))
    assert clear.tolist() == [[True, True, outside, outside]] * 2


def test_acquisitions_sort_by_date_and_name(tmp_path: Path, write_raster: Write) -> None:
    one = ready([write_raster(tmp_path / "a.tif", np.ones((1, 1), np.float32))], ["b"])
    days = [datetime.date(2019, 8, 12), datetime.date(2018, 1, 1), None]
    ordered = sorted((replace(one, date=day) for day in days), key=lambda acquisition: acquisition.when)
    assert [acquisition.date for acquisition in ordered] == [None, days[1], days[0]]
