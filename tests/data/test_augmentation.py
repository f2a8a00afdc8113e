"""Augmentation, held against patches whose values are their own coordinates."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from data.augmentation import Augmentation, affine_matrix, augment, warp
from data.tiles import IGNORE

SIDE = 12
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
PIXEL = (ROWS * SIDE + COLUMNS).astype(np.uint8)  # the mask: every pixel a class of its own
INPUTS = {
    "place": np.stack([ROWS, COLUMNS], axis=-1).astype(np.float32),
    "negative": -np.stack([ROWS, COLUMNS, ROWS], axis=-1).astype(np.float32),
}
SYMMETRIES = Augmentation(flip_vertical=0.5, flip_horizontal=0.5, rotate=0.75)
ALL = SYMMETRIES.model_copy(update={"crop": 0.5})
# Scaled values of both signs, with 5×4 pixels without data and one value of 0 among data.
VALUES = {
    name: np.random.default_rng(7).uniform(-2, 2, (32, 32, bands)).astype(np.float32)
    for name, bands in (("optical", 6), ("dem", 2), ("thermal", 1))
}
EMPTY = np.zeros((32, 32), bool)
EMPTY[3:8, 20:24] = True
for _values in VALUES.values():
    _values[EMPTY] = 0
VALUES["optical"][30, 30, 2] = 0
CLASSES = np.random.default_rng(8).choice([0, 1, 255], (32, 32), p=[0.5, 0.4, 0.1]).astype(np.uint8)
# Everything at work, and everything done that can be done without an effect.
AT_WORK: dict[str, Any] = dict.fromkeys(
    ("flip_vertical", "flip_horizontal", "rotate", "crop", "affine")
    + ("jitter", "brightness_contrast", "gamma", "occlusion", "shift", "noise"),
    1.0,
)
NO_EFFECT: dict[str, dict[str, Any]] = {
    "crop": {"crop": 1.0, "crop_scale": (1.0, 1.0)},
    "jitter": {"jitter": 1.0, "jitter_gain": 0.0, "jitter_shift": 0.0},
    "affine": {"affine": 1.0, "affine_scale": (1.0, 1.0), "affine_rotation_deg": 0.0, "affine_shear_deg": 0.0},
    "brightness_contrast": {"brightness_contrast": 1.0, "brightness_range": 0.0, "contrast_range": 0.0},
    "gamma": {"gamma": 1.0, "gamma_range": (1.0, 1.0)},
    "occlusion": {"occlusion": 1.0, "occlusion_size": 0},
    "shift": {"shift": 1.0, "shift_std": 0.0},
    "noise": {"noise": 1.0, "noise_std": 0.0},
}
OF_VALUES = ("jitter", "brightness_contrast", "gamma", "occlusion", "shift", "noise")


def augmented(settings: Augmentation, seed: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    return augment(INPUTS, PIXEL, settings, np.random.default_rng(seed))


def of_values(seed: int, **settings: Any) -> dict[str, NDArray[np.float32]]:
    """Return the augmented `VALUES`, of which every mask is the one it was."""
    inputs, mask = augment(VALUES, CLASSES, Augmentation(**settings), np.random.default_rng(seed))
    np.testing.assert_array_equal(mask, CLASSES)
    return inputs


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
    mask = np.where(ROWS + COLUMNS < SIDE, 3, 7).astype(np.uint8)
    for settings, classes in ((ALL.model_copy(update={"crop": 1.0}), {3, 7}), (Augmentation(**AT_WORK), {3, 7, 255})):
        seen: set[int] = set()
        for seed in range(100):
            result = augment(INPUTS, mask, settings, np.random.default_rng(seed))[1]
            assert result.dtype == np.uint8
            seen |= {*np.unique(result).tolist()}
        assert seen == classes


def test_one_generator_state_makes_one_patch_and_sources_stay_as_they_are() -> None:
    before = {name: values.copy() for name, values in INPUTS.items()}
    for seed in range(20):
        settings = ALL if seed % 2 else Augmentation(**AT_WORK, drop=0.3)
        (first, mask), (second, again) = augmented(settings, seed), augmented(settings, seed)
        np.testing.assert_array_equal(mask, again)
        for name in INPUTS:
            np.testing.assert_array_equal(first[name], second[name])
            gone = np.isnan(first[name])
            assert gone.all() or not gone.any()
            assert not np.isinf(first[name]).any() and first[name].dtype == np.float32
            np.testing.assert_array_equal(INPUTS[name], before[name])


def test_one_setting_does_not_change_what_another_draws() -> None:
    crop = Augmentation(crop=1.0)
    flipped = Augmentation(crop=1.0, flip_vertical=1.0)
    for seed in range(20):
        np.testing.assert_array_equal(augmented(crop, seed)[1][::-1], augmented(flipped, seed)[1])


@pytest.mark.parametrize("alone", NO_EFFECT)
def test_at_zero_strength_nothing_changes_nor_does_what_others_draw(alone: str) -> None:
    chosen: dict[str, Any] = {alone: 1.0}
    apart = {alone, "crop"} if alone == "jitter" else {alone}  # jitter draws on from where the crop's window ended
    others = {key: value for name, part in NO_EFFECT.items() if name not in apart for key, value in part.items()}
    for seed in range(5):
        one, mask = augment(VALUES, CLASSES, Augmentation(**chosen), np.random.default_rng(seed))
        with_others = augment(VALUES, CLASSES, Augmentation(**chosen, **others), np.random.default_rng(seed))
        np.testing.assert_array_equal(with_others[1], mask)
        for name, values in one.items():
            assert (values != VALUES[name]).any()
            np.testing.assert_allclose(with_others[0][name], values, rtol=1e-5, atol=1e-6)


def test_flips_turns_crops_and_jitter_of_a_seed_stay_what_they_are() -> None:
    """Runs are repeated by their seed: what it has drawn once it goes on to draw."""
    settings = ALL.model_copy(update={"jitter": 0.5})
    expected = {
        3: ([143, 132, 11], [4.589972, 9.290836], [-8.785921, -1.818196, -8.074219], 0.6962159966701554),
        5: ([10, 130, 0], [3.923697, 5.160797], [-7.594972, -9.530051, -8.491188], 0.676689351831066),
        6: ([13, 133, 23], [4.625, 6.458333], [-9.208333, -2.791667, -9.208333], 0.6799176611640223),
    }
    for seed, (corners, place, negative, then) in expected.items():
        random = np.random.default_rng(seed)
        inputs, mask = augment(INPUTS, PIXEL, settings, random)
        assert [mask[0, 0], mask[0, -1], mask[-1, 0]] == corners
        np.testing.assert_allclose(inputs["place"][6, 4], place, rtol=1e-5)
        np.testing.assert_allclose(inputs["negative"][2, 9], negative, rtol=1e-5)
        assert random.random() == then


# Values


@pytest.mark.parametrize("name", OF_VALUES)
def test_pixels_without_data_stay_without(name: str) -> None:
    for seed in range(20):
        for values in of_values(seed, **{name: 1.0}).values():
            assert values.dtype == np.float32 and not values[EMPTY].any()
    inputs, mask = augment(VALUES, CLASSES, Augmentation(**AT_WORK), np.random.default_rng(0))
    for values in inputs.values():
        assert (values == 0).all(axis=-1).sum() > 0 and (values[mask == IGNORE] == 0).any()


@pytest.mark.parametrize("name", [name for name in OF_VALUES if name != "jitter"])
def test_each_modality_is_changed_with_the_probability_on_its_own(name: str) -> None:
    changed = np.array(
        [[(x != VALUES[key]).any() for key, x in of_values(seed, **{name: 0.25}).items()] for seed in range(400)]
    )
    assert np.all((changed.mean(axis=0) > 0.17) & (changed.mean(axis=0) < 0.33))  # 3.7 standard deviations
    assert np.abs(np.corrcoef(changed.T) - np.eye(3)).max() < 0.2


def test_gamma_is_an_odd_power_per_band() -> None:
    seen = []
    for seed in range(40):
        for name, values in of_values(seed, gamma=1.0).items():
            source = VALUES[name]
            np.testing.assert_array_equal(np.sign(values), np.sign(source))
            for band in range(source.shape[-1]):
                x, y = source[..., band], values[..., band]
                steep = np.abs(np.log(np.abs(x), where=x != 0, out=np.zeros_like(x))) > 0.1
                exponents = np.log(np.abs(y[steep])) / np.log(np.abs(x[steep]))
                assert np.ptp(exponents) < 1e-3
                seen.append(exponents.mean())
    assert min(seen) > 0.799 and max(seen) < 1.201
    assert min(seen) < 0.81 and max(seen) > 1.19 and len({round(one, 4) for one in seen}) > 300


def test_brightness_and_contrast_are_one_line_for_all_bands() -> None:
    lines = []
    for seed in range(60):
        inputs = of_values(seed, brightness_contrast=1.0, brightness_range=0.3, contrast_range=0.1)
        for name, values in inputs.items():
            line = np.polyfit(VALUES[name][~EMPTY].ravel(), values[~EMPTY].ravel(), 1)
            np.testing.assert_allclose(np.polyval(line, VALUES[name][~EMPTY]), values[~EMPTY], atol=1e-5)
            lines.append(line - [1, 0])
    strongest = np.abs(lines).max(axis=0)
    assert np.all(strongest <= [0.10001, 0.30001]) and np.all(strongest > [0.09, 0.27])
    assert np.all(np.ptp(lines, axis=0) > [0.18, 0.54])
    assert np.abs(np.corrcoef(np.transpose(lines)) - np.eye(2)).max() < 0.3


def test_occlusion_blanks_a_rectangle_of_each_modality() -> None:
    differing, reached = 0, np.zeros((32, 32), bool)
    for seed in range(100):
        rectangles = []
        for name, values in of_values(seed, occlusion=1.0, occlusion_size=9).items():
            blank = ~values.any(axis=-1) & ~EMPTY
            np.testing.assert_array_equal(values[~blank], VALUES[name][~blank])
            rectangles.append(blank)
            reached |= blank
            if blank.any():
                box = np.ix_(*(np.arange(at.min(), at.max() + 1) for at in np.nonzero(blank)))
                assert max(blank[box].shape) <= 9 and (blank | EMPTY)[box].all()
        differing += sum((one != other).any() for one, other in itertools.combinations(rectangles, 2))
    assert differing > 250  # of 300
    assert all(edge.any() for edge in (reached[0], reached[-1], reached[:, 0], reached[:, -1]))
    hidden = [~of_values(seed, occlusion=1.0)["dem"].any(axis=-1) for seed in range(20)]
    assert max(one.mean() for one in hidden) > 0.5  # of a patch of less than 192 pixels, all can be hidden


def test_shift_is_one_normal_number_per_band() -> None:
    shifts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in VALUES}
    for seed in range(100):
        for name, values in of_values(seed, shift=1.0).items():
            difference = (values - VALUES[name])[~EMPTY]
            assert np.ptp(difference, axis=0).max() < 1e-6
            shifts[name].append(difference.mean(axis=0))
    every = np.concatenate([np.concatenate(one) for one in shifts.values()])
    assert abs(every.mean()) < 0.004 and abs(every.std() / 0.025 - 1) < 0.1  # of 900: 4.2 standard deviations
    assert abs((np.abs(every) < 0.025).mean() - 0.6827) < 0.06
    assert np.abs(np.corrcoef(np.transpose(shifts["optical"])) - np.eye(6)).max() < 0.5


def test_noise_is_normal_and_new_in_every_pixel_and_band() -> None:
    random = np.random.default_rng(0)
    flat = {"optical": np.full((64, 64, 6), 0.5, np.float32), "dem": np.full((64, 64, 2), -0.5, np.float32)}
    inputs, _ = augment(flat, np.zeros((64, 64), np.uint8), Augmentation(noise=1.0), random)
    noise = np.concatenate([inputs[name] - flat[name] for name in flat], axis=-1) / 0.005
    count = noise.size
    assert abs(noise.mean()) < 5 / count**0.5 and abs(noise.std() - 1) < 5 / (2 * count) ** 0.5
    assert abs((np.abs(noise) < 1).mean() - 0.6827) < 0.015
    assert np.abs(np.corrcoef(noise.reshape(-1, 8).T) - np.eye(8)).max() < 0.08
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.04


def test_some_modality_always_stays() -> None:
    def left(seed: int, probability: float) -> tuple[str, ...]:
        inputs = of_values(seed, drop=probability)
        assert all(np.isnan(x).all() or x is VALUES[name] for name, x in inputs.items())
        return tuple(name for name, x in inputs.items() if not np.isnan(x).any())

    assert {left(seed, 1.0) for seed in range(40)} == {("optical",), ("dem",), ("thermal",)}
    halves = Counter(left(seed, 0.5) for seed in range(800))
    assert len(halves) == 7 and () not in halves
    assert 60 < halves["optical", "dem", "thermal"] < 145 and 90 < halves["dem",] < 180  # 1/8; 1/8 + 1/3 of 1/8
    inputs, _ = augment({"dem": VALUES["dem"]}, CLASSES, Augmentation(drop=1.0), np.random.default_rng(0))
    assert inputs["dem"] is VALUES["dem"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_an_absent_modality_stays_absent_and_leaves_the_others_as_they_are(drop: float) -> None:
    absent = {name: np.full_like(x, np.nan) if name == "dem" else x for name, x in VALUES.items()}
    kept = set()
    for seed in range(30):
        settings = Augmentation(**AT_WORK, drop=drop)
        inputs, mask = augment(absent, CLASSES, settings, np.random.default_rng(seed))
        again, _ = augment(absent, CLASSES, settings, np.random.default_rng(seed))
        assert list(inputs) == list(VALUES) and np.isnan(inputs["dem"]).all()
        assert {name: x.shape for name, x in inputs.items()} == {name: x.shape for name, x in VALUES.items()}
        _, expected = augment(VALUES, CLASSES, settings, np.random.default_rng(seed))
        np.testing.assert_array_equal(mask, expected)
        there = {name for name, x in inputs.items() if np.isfinite(x).all()}
        assert there and all(np.isnan(inputs[name]).all() for name in inputs.keys() - there)
        kept |= {tuple(sorted(there))}
        for name, x in inputs.items():
            np.testing.assert_array_equal(x, again[name])
    both = {("optical", "thermal")}
    ones = {("optical",), ("thermal",)}
    assert kept == (both if drop == 0 else ones if drop == 1 else both | ones)


# Affine maps


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("side", [SIDE, SIDE - 1])
def test_right_angles_are_rot90(turns: int, side: int) -> None:
    patch = {name: values[:side, :side] for name, values in INPUTS.items()}
    inputs, mask = warp(patch, PIXEL[:side, :side], affine_matrix(1.0, 90.0 * turns, 0.0, 0.0))
    np.testing.assert_array_equal(mask, np.rot90(PIXEL[:side, :side], turns))
    for name, values in patch.items():
        np.testing.assert_allclose(inputs[name], np.rot90(values, turns), atol=1e-5)


def test_affine_maps_keep_inputs_and_mask_together_and_blank_what_comes_from_beyond() -> None:
    places = {"place": INPUTS["place"] + 1, "negative": INPUTS["negative"] - 1}  # 0 only where there is nothing
    beyond = 0
    for seed in range(100):
        settings = Augmentation(affine=1.0, affine_scale=(0.7, 1.3), affine_rotation_deg=180.0, flip_vertical=0.5)
        inputs, mask = augment(places, PIXEL, settings, np.random.default_rng(seed))
        inside = mask != IGNORE
        beyond += int((~inside).sum())
        assert mask.dtype == np.uint8 and inputs["place"].dtype == np.float32
        np.testing.assert_array_equal(inputs["place"].all(axis=-1), inside)
        np.testing.assert_array_equal(inputs["place"].any(axis=-1), inside)
        place = np.stack(np.divmod(mask, SIDE), axis=-1) + 1
        assert np.abs(inputs["place"] - place)[inside].max() <= 0.5 + 1e-5
        np.testing.assert_array_equal(inputs["negative"], -inputs["place"][..., [0, 1, 0]])
    assert beyond > 1000


@pytest.mark.parametrize(
    ("settings", "numbers", "form", "limits"),
    [
        ({"affine_scale": (0.9, 1.1)}, lambda m: m[0, :1], lambda n: affine_matrix(n, 0, 0, 0), (0.9, 1.1)),
        (
            {"affine_rotation_deg": 15.0},
            lambda m: np.rad2deg([np.arctan2(m[1, 0], m[0, 0])]),
            lambda n: affine_matrix(1, n, 0, 0),
            (-15, 15),
        ),
        (
            {"affine_shear_deg": 10.0},
            lambda m: np.rad2deg(np.arctan([m[0, 1], m[1, 0]])),
            lambda *n: affine_matrix(1, 0, *n),
            (-10, 10),
        ),
    ],
    ids=["scale", "rotation", "shear"],
)
def test_affine_maps_keep_to_their_ranges(
    settings: dict[str, Any], numbers: Any, form: Any, limits: tuple[float, float]
) -> None:
    at = np.mgrid[:31, :31] - 15.0
    places = {"place": at.transpose(1, 2, 0).astype(np.float32)}
    drawn = []
    for seed in range(150):
        moved = Augmentation(**(NO_EFFECT["affine"] | settings))
        inputs, mask = augment(places, np.zeros((31, 31), np.uint8), moved, np.random.default_rng(seed))
        inner = (mask == 0) & (np.abs(inputs["place"]).max(axis=-1) < 14.5)  # the edge is repeated, not continued
        matrix = np.linalg.lstsq(inputs["place"][inner], at[:, inner].T, rcond=None)[0].T
        np.testing.assert_allclose(matrix, form(*numbers(matrix)), atol=1e-5)
        drawn.append(numbers(matrix))
    tenth = (limits[1] - limits[0]) / 10
    assert np.all((np.min(drawn, axis=0) >= limits[0] - 1e-4) & (np.min(drawn, axis=0) < limits[0] + tenth))
    assert np.all((np.max(drawn, axis=0) <= limits[1] + 1e-4) & (np.max(drawn, axis=0) > limits[1] - tenth))
    assert np.abs(np.atleast_2d(np.corrcoef(np.transpose(drawn))) - np.eye(len(drawn[0]))).max() < 0.3


# Settings


@pytest.mark.parametrize(
    "wrong",
    [{"rotate": 1.1}, {"crop": -0.1}, {"crop_scale": (0.9, 0.8)}, {"crop_scale": (0.0, 1.0)}, {"flip": 0.5}]
    + [{"gamma_range": (1.2, 0.8)}, {"gamma_range": (0.0, 1.0)}, {"affine_scale": (1.1, 0.9)}, {"noise_std": -0.1}]
    + [{"affine_shear_deg": 45.0}, {"affine_rotation_deg": -5.0}, {"occlusion_size": 1.5}, {"contrast_range": 1.0}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augmentation.model_validate(wrong)
