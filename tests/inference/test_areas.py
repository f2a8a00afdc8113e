"""Areas on the ellipsoid and their intervals: against brute force, pyproj, and 200 scenes of known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from scipy import fft, ndimage, special

from console import UserError
from data.grids import Grid
from data.windows import Window
from inference import areas
from inference.areas import (
    Interval,
    PixelAreas,
    area_interval,
    areas_km2,
    correlation_length_m,
    error_variance,
    half_pixel_areas_km2,
    pixel_size_m,
)

Array = NDArray[np.float64]
Scene = tuple[Array, NDArray[np.uint8]]

SIDE = 80
GRIDS = {
    "utm": Grid("EPSG:32645", (30, 0, 700_000, 0, -30, 6_650_000), 300, 700),
    "degrees": Grid("EPSG:4326", (1 / 1200, 0, 87, 0, -1 / 3600, 60), 700, 300),
    "polar": Grid("EPSG:3413", (30, 0, 500_000, 0, -30, -2_500_000), 300, 300),
    "rotated": Grid("EPSG:32645", (20, 15, 700_000, 15, -20, 6_650_000), 300, 300),
}


# -- areas ---------------------------------------------------------------------------------------------------


def geodesic_km2(shape: shapely.Polygon, grid: Grid) -> float:
    """Return the area of a polygon in pixels, all of its edges in steps of a pixel, as pyproj has it."""
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)

    def degrees(xy: Array) -> Array:
        return np.stack(to_degrees.transform(*grid.xy(*xy.T)), axis=1)

    fine = shapely.transform(shapely.segmentize(shape, 1.0), degrees)
    return abs(Geod(ellps="WGS84").geometry_area_perimeter(shapely.geometry.polygon.orient(fine))[0]) / 1e6


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_areas_are_geodesic_and_without_holes(grid: Grid) -> None:
    shell = shapely.box(3, 5, 290, 250)
    hollow = shell.difference(shapely.box(100, 100, 200, 160))
    one, other = areas_km2(np.array([shell, hollow], object), grid)
    assert one == pytest.approx(geodesic_km2(shell, grid), rel=1e-7)
    assert other == pytest.approx(geodesic_km2(hollow, grid), rel=1e-7)
    assert other < one
    flat = math.prod(pixel_size_m(grid)) / 1e6
    assert one == pytest.approx(287 * 245 * flat, rel=0.02)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_pixels_add_up_to_the_area_of_polygons(grid: Grid) -> None:
    pixels = PixelAreas(grid)
    whole = pixels.of(Window(0, 0, grid.height, grid.width))
    assert whole.sum() == pytest.approx(geodesic_km2(shapely.box(0, 0, grid.width, grid.height), grid), rel=1e-7)
    np.testing.assert_allclose(pixels.of_rows(), whole.mean(axis=1))
    part = Window(200, 100, 90, 150)
    np.testing.assert_array_equal(pixels.of(part), whole[part.slices])
    assert pixels.of(part).sum() == pytest.approx(geodesic_km2(shapely.box(100, 200, 250, 290), grid), rel=2e-3)


def test_pixel_sizes_are_metres_on_the_ellipsoid() -> None:
    width, height = pixel_size_m(GRIDS["degrees"])
    _, _, expected = Geod(ellps="WGS84").inv(87, 59.9, 87 + 1 / 1200, 59.9)
    assert width == pytest.approx(expected, rel=1e-3) and height == pytest.approx(111_412 / 3600, rel=1e-3)


def test_half_a_pixel_is_what_a_rectangle_gains_and_loses() -> None:
    rectangle = np.array([shapely.box(0, 0, 10, 20), shapely.box(0, 0, 1, 9)], object)
    moved = half_pixel_areas_km2(rectangle, shapely.area(rectangle) * 9e-4, (30.0, 30.0)) / 9e-4
    # Half a pixel at each side; outwards, corners are round.
    np.testing.assert_allclose(moved[0], [9 * 19, 11 * 21 - (1 - math.pi / 4)], rtol=2e-4)
    assert moved[1, 0] == 0


# -- the variance of an area ---------------------------------------------------------------------------------


def brute(spread: Array, length: float, pixel_m: tuple[float, float]) -> float:
    rows, columns = np.indices(spread.shape)
    y, x = rows.ravel() * pixel_m[1], columns.ravel() * pixel_m[0]
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    correlation = np.exp(-distance / length) if length else np.eye(spread.size)
    return float(spread.ravel() @ correlation @ spread.ravel())


@pytest.mark.parametrize("block", [7, 512])
@pytest.mark.parametrize(
    ("length", "pixel_m"), [(0.0, (30, 30)), (20, (30, 30)), (60, (30, 30)), (200, (10, 20)), (900, (30, 30))]
)
def test_the_variance_is_the_sum_over_all_pairs(
    length: float, pixel_m: tuple[float, float], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(areas, "_BLOCK", block)
    spread = ndimage.gaussian_filter(np.random.default_rng(0).random((40, 33)), 3)
    spread[:, :5] = 0
    found = error_variance(lambda window: spread[window.slices], spread.shape, length, pixel_m)
    assert found == pytest.approx(brute(spread, length, pixel_m), rel=0.02 if length > 500 else 2e-3)


def interval_of(probabilities: Array, length: float | None, pixel_m: float = 1.0) -> Interval:
    def read(window: Window) -> Array:
        return probabilities[window.slices]

    def ones(window: Window) -> Array:
        return np.full((window.height, window.width), pixel_m**2)

    return area_interval(read, ones, probabilities.shape, length, (pixel_m, pixel_m))


def test_the_expected_area_leaves_out_what_is_unknown_and_the_interval_what_can_not_be() -> None:
    probabilities = np.full((20, 30), 0.5)
    probabilities[:10] = np.nan
    probabilities[10:12] = 1.0
    found = interval_of(probabilities, 0.0)
    assert found.area_km2 == 60 + 240 * 0.5
    assert found.high_km2 - found.area_km2 == pytest.approx(areas.QUANTILE * math.sqrt(240 * 0.25))
    assert interval_of(probabilities, 1e6).high_km2 <= 300
    assert interval_of(np.full((5, 5), 0.01), 1e6).low_km2 == 0
    certain = interval_of(np.ones((5, 5)), 10.0)
    assert certain.low_km2 == certain.high_km2 == 25
    assert interval_of(probabilities, None) == Interval(180, 0, 300)


# -- scenes of known truth -----------------------------------------------------------------------------------


def gaussian(rng: np.random.Generator, side: int, length: float) -> Array:
    """Draw a standard normal field `(side, side)`, its correlation exp(-d / length)."""
    around = 2 * side
    lags = np.minimum(np.arange(around), around - np.arange(around))
    spectrum = np.maximum(fft.rfft2(np.exp(-np.hypot(lags[:, None], lags[None]) / length)).real, 0)
    drawn = fft.irfft2(fft.rfft2(rng.standard_normal((around, around))) * np.sqrt(spectrum), (around, around))
    return np.asarray(drawn[:side, :side])


def scene(rng: np.random.Generator, length: float, width: float) -> Scene:
    """Draw a glacier with an edge blurred over `width` pixels: its probability, and a truth that goes with it.

    The truth is where a Gaussian field, correlated over `length` pixels, is below the probability's quantile.
    """
    form = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), SIDE / 10)
    form /= form.std()
    slope = np.hypot(*np.gradient(form)).mean()
    probability = special.expit((form - rng.uniform(-0.5, 1)) / slope / width)
    truth = gaussian(rng, SIDE, length) < special.ndtri(probability)
    return probability, truth.astype(np.uint8)


def coverage(scenes: list[Scene], length: float) -> float:
    """Return in what share of scenes the interval has the true area."""
    held = 0
    for probability, truth in scenes:
        found = interval_of(probability, length)
        held += found.low_km2 <= truth.sum() <= found.high_km2
    return held / len(scenes)


@pytest.mark.parametrize(("length", "width"), [(3, 1.5), (8, 6)])
def test_nine_of_ten_intervals_have_the_true_area(length: float, width: float) -> None:
    rng = np.random.default_rng(1)
    found = correlation_length_m([scene(rng, length, width) for _ in range(40)], (1.0, 1.0))
    scenes = [scene(rng, length, width) for _ in range(200)]
    assert 0.85 <= coverage(scenes, found) <= 0.95
    # Errors are correlated, and less than the field behind them.
    assert coverage(scenes, 0.0) < 0.6
    assert 0 < found < length and coverage(scenes, length) > coverage(scenes, found)


def test_the_correlation_length_is_that_of_the_errors() -> None:
    rng = np.random.default_rng(2)
    tiles = []
    for _ in range(30):
        # So correlated that the signs are by exp(-d / 6): sin(π/2 exp(-d / 6)).
        around = 2 * SIDE
        lags = np.minimum(np.arange(around), around - np.arange(around))
        wanted = np.sin(np.pi / 2 * np.exp(-np.hypot(lags[:, None], lags[None]) / 6))
        spectrum = np.maximum(fft.rfft2(wanted).real, 0)
        field = fft.irfft2(fft.rfft2(rng.standard_normal((around, around))) * np.sqrt(spectrum), (around, around))
        truth = (field[:SIDE, :SIDE] > 0).astype(np.uint8)
        truth[:10] = 255
        probability = np.full((SIDE, SIDE), 0.5)
        probability[:, :10] = np.nan
        tiles.append((probability, truth))
    assert correlation_length_m(tiles, (30.0, 30.0)) == pytest.approx(180, rel=0.1)


def test_independent_errors_have_next_to_no_correlation_length() -> None:
    rng = np.random.default_rng(3)
    probability = rng.random((SIDE, SIDE))
    tiles = [(probability, (rng.random((SIDE, SIDE)) < probability).astype(np.uint8)) for _ in range(20)]
    assert correlation_length_m(tiles, (30.0, 30.0)) < 10


def test_without_doubt_there_is_no_correlation_of_errors() -> None:
    sure = np.ones((8, 8)), np.ones((8, 8), np.uint8)
    with pytest.raises(UserError, match="in no validation tile .* probability between 0 and 1"):
        correlation_length_m([sure], (30.0, 30.0))
    with pytest.raises(UserError, match="in no validation tile"):
        correlation_length_m([], (30.0, 30.0))
