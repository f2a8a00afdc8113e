"""Weak masks: rules are read, written and refused; indices, thresholds and Otsu's method against references."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from console import UserError
from data.weak_masks import Rule, normalised_difference

BANDS = ["blue", "green", "red", "nir", "swir1", "thermal"]


def scene(seed: int = 0, size: tuple[int, int] = (40, 50)) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    values = random.uniform(0.01, 0.9, (*size, len(BANDS))).astype(np.float32)
    values[..., 5] = random.uniform(250, 300, size)
    return values


@pytest.mark.parametrize(
    ("text", "canonical", "bands"),
    [
        ("ndsi > 0.4", "ndsi > 0.4", ("green", "swir1")),
        (" NDSI>.40 ", "ndsi > 0.4", ("green", "swir1")),
        ("ndwi >= -1e-2", "ndwi >= -0.01", ("green", "nir")),
        ("NdVi < 0.1", "ndvi < 0.1", ("nir", "red")),
        ("red / swir1>2", "red/swir1 > 2", ("red", "swir1")),
        ("nir/swir1 > OTSU", "nir/swir1 > otsu", ("nir", "swir1")),
        ("thermal <= 273.15", "thermal <= 273.15", ("thermal",)),
        ("Band_5 < 273", "Band_5 < 273", ("Band_5",)),
        ("ndsi > 0.4 AND nir > 0.11", "ndsi > 0.4 and nir > 0.11", ("green", "swir1", "nir")),
        ("elevation > 4321.123456789", "elevation > 4321.123456789", ("elevation",)),
    ],
)
def test_a_rule_has_one_spelling_that_reads_back(text: str, canonical: str, bands: tuple[str, ...]) -> None:
    rule = Rule.parse(text)
    assert str(rule) == canonical and Rule.parse(str(rule)) == rule
    assert rule.bands == bands


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ndsi",
        "ndsi > ",
        "> 0.4",
        "ndsi = 0.4",
        "ndsi > 0.4 and",
        "ndsi > 0.4 or nir > 0.1",
        "0.4 < ndsi",
        "0.2 < ndsi < 0.4",
        "ndsi > high",
        "ndsi > nan",
        "ndsi > 1e999",
        "ndsi/nir > 1",
        "red/red > 1",
        "red/swir1/nir > 1",
        "red - nir > 0",
        "(ndsi > 0.4)",
        "__import__('os').system('true') > 1",
        "ndsi > 0.4; nir > 0.1",
    ],
)
def test_what_is_no_rule_is_answered_with_what_is(text: str) -> None:
    with pytest.raises(UserError) as caught:
        Rule.parse(text)
    message = str(caught.value)
    assert f"`{text}`" in message and "`red/swir1 > 2`" in message and "ndwi (green, nir)" in message


def test_indices_ratios_and_bands_are_what_their_papers_say() -> None:
    values = scene()
    blue, green, red, nir, swir1, thermal = np.moveaxis(values.astype(np.float64), -1, 0)
    for text, expected in {
        "ndsi > 0.4": (green - swir1) / (green + swir1) > 0.4,
        "ndwi > 0.3": (green - nir) / (green + nir) > 0.3,
        "ndvi < 0.1": (nir - red) / (nir + red) < 0.1,
        "red/swir1 > 2": red / swir1 > 2,
        "nir/swir1 <= 1.8": nir / swir1 <= 1.8,
        "THERMAL < 273": thermal < 273,
        "ndsi > 0.2 and blue > 0.11": ((green - swir1) / (green + swir1) > 0.2) & (blue > 0.11),
    }.items():
        mask, defined = Rule.parse(text).mask(values, BANDS)
        assert mask.dtype == defined.dtype == bool and defined.all()
        np.testing.assert_array_equal(mask, expected, err_msg=text)
        assert 0.02 < mask.mean() < 0.98
    greater, at_least = (
        Rule.parse(f"blue {sign} 0.5").mask(np.full((1, 1, 1), 0.5), ["blue"])[0] for sign in (">", ">=")
    )
    assert not greater and at_least


def test_the_order_of_the_bands_is_theirs_to_say() -> None:
    values, order = scene(), [4, 2, 5, 0, 3, 1]
    rule = Rule.parse("ndsi > 0.1 and red/nir > 0.5")
    shuffled = rule.mask(values[..., order], [BANDS[index] for index in order])
    np.testing.assert_array_equal(shuffled, rule.mask(values, BANDS))


def test_a_pixel_without_a_value_that_the_rule_needs_is_undefined_and_not_ice() -> None:
    values = np.full((1, 6, 6), 0.5, np.float32)
    values[0, :, 4] = 0.05
    values[0, 1, 1] = np.nan  # green
    values[0, 2, 4] = np.inf  # swir1
    values[0, 3, 3] = np.nan  # nir, which the index does not need
    values[0, 4, [1, 4]] = 0.0
    values[0, 5, 4] = -0.01  # darker than black after atmospheric correction: as bright ice in the index
    mask, defined = Rule.parse("ndsi > 0.4").mask(values, BANDS)
    assert defined.tolist() == [[True, False, False, True, False, True]]
    assert mask.tolist() == defined.tolist()
    both, defined = Rule.parse("ndsi > 0.4 and nir > 0.1").mask(values, BANDS)
    assert defined.tolist() == [[True, False, False, False, False, True]] and both.tolist() == defined.tolist()


def test_a_missing_band_is_answered_with_those_that_there_are() -> None:
    for ask in (
        lambda rule: rule.mask(np.zeros((2, 2, 2)), ["green", "red"]),
        lambda rule: rule.resolve({"green": np.zeros(3), "red": np.zeros(3)}),
    ):
        with pytest.raises(UserError) as caught:
            ask(Rule.parse("ndsi > otsu"))
        assert "no swir1" in str(caught.value) and "green, red" in str(caught.value) and "ndvi" in str(caught.value)


def two_kinds(seed: int = 0, count: int = 4000) -> dict[str, NDArray[np.float64]]:
    """A third of the pixels is ice: dark in SWIR1."""
    random = np.random.default_rng(seed)
    ice = np.arange(count) % 3 == 0
    return {
        "red": random.normal(0.5, 0.02, count),
        "green": random.normal(0.5, 0.02, count),
        "swir1": np.where(ice, random.normal(0.1, 0.01, count), random.normal(0.45, 0.03, count)),
    }


def test_otsus_threshold_is_that_of_scikit_image() -> None:
    samples = two_kinds()
    rule = Rule.parse("ndsi > otsu and swir1 < 0.3").resolve(samples)
    index = normalised_difference(samples["green"], samples["swir1"]).astype(np.float64)
    found = rule.comparisons[0].value
    expected = threshold_otsu(np.clip(index, *np.percentile(index, (0.5, 99.5))))
    assert found == pytest.approx(expected, rel=1e-3)
    assert rule.comparisons[1].value == 0.3 and rule.resolved and Rule.parse(str(rule)) == rule
    mask, _ = rule.mask(np.stack(list(samples.values()), axis=-1)[None], list(samples))
    np.testing.assert_array_equal(mask[0], np.arange(4000) % 3 == 0)
    with pytest.raises(ValueError, match="resolve"):
        Rule.parse("ndsi > otsu").mask(np.ones((1, 1, 2)), ["green", "swir1"])


def test_values_that_are_missing_infinite_or_near_zero_do_not_move_otsus_threshold() -> None:
    clean, spoilt = two_kinds(), two_kinds()
    for at, value in enumerate((np.nan, np.inf, -np.inf, 0.0, 1e-30)):
        spoilt["swir1"][100 + at] = value
    spoilt["red"][200:203] = 1e20
    rule = Rule.parse("red/swir1 > otsu")
    found, expected = (rule.resolve(samples).comparisons[0].value for samples in (spoilt, clean))
    assert found == pytest.approx(expected, rel=0.02) and expected is not None and 1.3 < expected < 4


@pytest.mark.parametrize("values", [np.full(9, np.nan), np.full(9, 0.3), np.zeros(0)])
def test_otsu_without_two_values_is_refused(values: NDArray[np.float64]) -> None:
    with pytest.raises(UserError, match="give a number instead"):
        Rule.parse("swir1 < otsu").resolve({"swir1": values})


def test_dark_negative_and_missing_values_stay_in_range() -> None:
    values = normalised_difference(np.array([0.0, -1.0, np.nan, 0.5]), np.array([0.5, -2.0, 0.3, 0.0]))
    assert np.all(np.abs(values) <= 1) and np.isfinite(values).all()
