"""Augmentation, held against patches whose values are their own coordinates."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from data.augmentation import Augmentation, augment

SIDE = 12
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
PIXEL = (ROWS * SIDE + COLUMNS).astype(np.uint8)  # the mask: every pixel a class of its own
INPUTS = {
    "place": np.stack([ROWS, COLUMNS], axis=-1).astype(np.float32),
    "negative": -np.stack([ROWS, COLUMNS, ROWS], axis=-1).astype(np.float32),
}
SYMMETRIES = Augmentation(flip_vertical=0.5, flip_horizontal=0.5, rotate=0.75)
ALL = SYMMETRIES.model_copy(update={"crop": 0.5})


def augmented(settings: Augmentation, seed: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    return augment(INPUTS, PIXEL, settings, np.random.default_rng(seed))


def test_modalities_and_mask_see_the_same_transformation() -> None:
    for seed in range(200):
        inputs, mask = augmented(ALL, seed)
        place = np.stack(np.divmod(mask, SIDE), axis=-1)
        assert inputs["place"].shape == (SIDE, SIDE, 2)
        # The mask's pixel is the nearest to where the interpolated values come from.
        assert np.abs(inputs["place"] - place).max() <= 0.5
        np.testing.assert_array_equal(inputs["negative"], -inputs["place"][..., [0, 1, 0]])


def test_without_a_crop_nothing_is_interpolated() -> None:
    for seed in range(50):
        inputs, mask = augmented(SYMMETRIES, seed)
        np.testing.assert_array_equal(inputs["place"], np.stack(np.divmod(mask, SIDE), axis=-1))


def test_all_eight_symmetries_are_equally_likely() -> None:
    seen = Counter(augmented(SYMMETRIES, seed)[1].tobytes() for seed in range(1600))
    turned = [np.rot90(PIXEL, turns) for turns in range(4)]
    assert set(seen) == {array.tobytes() for one in turned for array in (one, one[::-1])}
    assert min(seen.values()) > 130 and max(seen.values()) < 270  # 200 each, five standard deviations


def test_jitter_changes_bands_each_by_a_line_and_leaves_pixels_without_data() -> None:
    data = INPUTS["place"].copy()
    data[3:6, 2:4] = 0.0
    settings = Augmentation(jitter=1.0, jitter_gain=0.3, jitter_shift=0.5)
    inputs, mask = augment({"place": data}, PIXEL, settings, np.random.default_rng(1))
    np.testing.assert_array_equal(mask, PIXEL)
    assert not inputs["place"][3:6, 2:4].any()
    seen = data.any(axis=-1)
    lines = [np.polyfit(data[seen][:, band], inputs["place"][seen][:, band], 1) for band in range(2)]
    for band, line in enumerate(lines):
        np.testing.assert_allclose(np.polyval(line, data[seen][:, band]), inputs["place"][seen][:, band], atol=1e-5)
    assert np.abs(lines[0] - lines[1]).min() > 1e-3  # each band has a line of its own


@pytest.mark.parametrize(
    ("field", "expected"),
    [("flip_vertical", [PIXEL[::-1]]), ("flip_horizontal", [PIXEL[:, ::-1]])]
    + [("rotate", [np.rot90(PIXEL, turns) for turns in (1, 2, 3)])],
)
def test_each_probability_is_of_its_own_transformation(field: str, expected: list[NDArray[np.uint8]]) -> None:
    seen = {augmented(Augmentation.model_validate({field: 1.0}), seed)[1].tobytes() for seed in range(40)}
    assert seen == {array.tobytes() for array in expected}
    changed = sum(
        bool((augmented(Augmentation.model_validate({field: 0.25}), seed)[1] != PIXEL).any()) for seed in range(800)
    )
    assert 140 < changed < 260


def test_probability_0_leaves_patches_untouched() -> None:
    for seed in range(20):
        inputs, mask = augmented(Augmentation(), seed)
        np.testing.assert_array_equal(mask, PIXEL)
        for name, values in INPUTS.items():
            np.testing.assert_array_equal(inputs[name], values)


def test_crops_keep_to_their_range_and_reach_every_corner() -> None:
    settings = Augmentation(crop=1.0, crop_scale=(0.5, 0.75))
    sizes, corners = set(), set()
    for seed in range(400):
        rows, columns = np.divmod(augmented(settings, seed)[1], SIDE)
        assert np.ptp(rows) == np.ptp(columns)
        sizes.add(int(np.ptp(rows)) + 1)
        corners.add((rows.min() == 0, rows.max() == SIDE - 1, columns.min() == 0, columns.max() == SIDE - 1))
    assert sizes == {6, 7, 8, 9}
    assert {(top, not top, left, not left) for top in (True, False) for left in (True, False)} <= corners


def test_a_crop_scales_linear_values_linearly_and_invents_none() -> None:
    settings = Augmentation(crop=1.0, crop_scale=(0.5, 0.5))
    for seed in range(20):
        inputs, mask = augmented(settings, seed)
        rows = inputs["place"][:, 0, 0]
        np.testing.assert_allclose(np.diff(rows)[1:-1], 0.5, atol=1e-5)  # half-pixel centres: the edge repeats
        assert rows.min() >= (mask // SIDE).min() and rows.max() <= (mask // SIDE).max()


def test_masks_only_hold_classes_of_their_source() -> None:
    mask = np.where(ROWS + COLUMNS < SIDE, 3, 255).astype(np.uint8)
    settings = ALL.model_copy(update={"crop": 1.0})
    for seed in range(100):
        result = augment(INPUTS, mask, settings, np.random.default_rng(seed))[1]
        assert result.dtype == np.uint8 and set(np.unique(result)) <= {3, 255}


def test_one_generator_state_makes_one_patch_and_sources_stay_as_they_are() -> None:
    before = {name: values.copy() for name, values in INPUTS.items()}
    for seed in range(20):
        (first, mask), (second, again) = augmented(ALL, seed), augmented(ALL, seed)
        np.testing.assert_array_equal(mask, again)
        for name in INPUTS:
            np.testing.assert_array_equal(first[name], second[name])
            assert np.isfinite(first[name]).all() and first[name].dtype == np.float32
            np.testing.assert_array_equal(INPUTS[name], before[name])


def test_one_setting_does_not_change_what_another_draws() -> None:
    crop = Augmentation(crop=1.0)
    flipped = Augmentation(crop=1.0, flip_vertical=1.0)
    for seed in range(20):
        np.testing.assert_array_equal(augmented(crop, seed)[1][::-1], augmented(flipped, seed)[1])


@pytest.mark.parametrize(
    "wrong",
    [{"rotate": 1.1}, {"crop": -0.1}, {"crop_scale": (0.9, 0.8)}, {"crop_scale": (0.0, 1.0)}, {"flip": 0.5}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augmentation.model_validate(wrong)
