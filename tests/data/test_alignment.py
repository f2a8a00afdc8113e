"""Shifted masks: found where they are, by how much, and not where masks lie right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.alignment import REACH, TOLERANCE, Read, align
from data.synthetic import Scene, make_scene

SHIFTS = [(5, 0), (0, -5), (4, 4), (-4, 3)]


def shifted(mask: NDArray[Any], rows: int, columns: int, fill: bool = False) -> NDArray[np.bool_]:
    """Move a mask down and to the right; `fill` comes in from the other side."""
    moved = np.full(mask.shape, fill)
    height, width = mask.shape
    moved[max(rows, 0) : height + min(rows, 0), max(columns, 0) : width + min(columns, 0)] = mask[
        max(-rows, 0) : height + min(-rows, 0), max(-columns, 0) : width + min(-columns, 0)
    ]
    return moved


def windows(
    bands: NDArray[Any], mask: NDArray[Any], valid: NDArray[Any], shift: tuple[int, int] = (0, 0), side: int = 256
) -> list[Read]:
    """Cut bands and a shifted mask into windows; what the shift brings in has no label."""
    bands = np.where(valid[..., None], bands, np.nan).astype(np.float32)
    glacier, labelled = shifted(mask, *shift), shifted(valid, *shift) & valid
    parts = [
        np.s_[top : top + side, left : left + side]
        for top in range(0, len(mask), side)
        for left in range(0, mask.shape[1], side)
    ]

    def read(part: tuple[slice, slice]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        return bands[part], glacier[part], labelled[part]

    return [partial(read, part) for part in parts]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(region, 3, 192) for region in ("ALP", "HMA", "SVAL")]


def of_scenes(scenes: Sequence[Scene], modality: str, shift: tuple[int, int]) -> list[Read]:
    return [
        read for scene in scenes for read in windows(scene.modalities()[modality], scene.mask == 1, scene.valid, shift)
    ]


@pytest.mark.parametrize("modality", ["optical", "dem", "sar", "thermal"])
def test_masks_of_synthetic_scenes_lie_where_they_are(scenes: list[Scene], modality: str) -> None:
    values = [modality != "dem"] + [True] * (scenes[0].modalities()[modality].shape[-1] - 1)
    alignment = align(of_scenes(scenes, modality, (0, 0)), values)
    assert alignment is not None
    assert alignment.distance < TOLERANCE
    assert not alignment.off


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("modality", ["optical", "dem", "sar"])
def test_a_shift_is_found_in_every_direction(scenes: list[Scene], modality: str, shift: tuple[int, int]) -> None:
    values = [modality != "dem"] + [True] * (scenes[0].modalities()[modality].shape[-1] - 1)
    alignment = align(of_scenes(scenes, modality, shift), values)
    assert alignment is not None
    assert alignment.off
    assert np.hypot(alignment.rows + shift[0], alignment.columns + shift[1]) <= TOLERANCE


def blocky(seed: int = 0, side: int = 200) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw bright rectangles in noise, and where they are."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side), bool)
    for top, left in rng.integers(5, side - 60, (6, 2)):
        mask[top : top + rng.integers(15, 50), left : left + rng.integers(15, 50)] = True
    return (mask + 0.3 * rng.standard_normal(mask.shape))[..., None].astype(np.float32), mask


def test_the_best_shift_of_an_exact_mask_undoes_its_shift() -> None:
    image, mask = blocky()
    seen = np.ones(mask.shape, bool)
    for shift in [(0, 0), (1, 0), (0, 2), (-7, 3), (10, -10)]:
        alignment = align(windows(image, mask, seen, shift), [True])
        assert alignment is not None
        assert (alignment.rows, alignment.columns) == (-shift[0], -shift[1])
        assert alignment.scores.shape == (2 * REACH + 1, 2 * REACH + 1)
        assert alignment.off == (np.hypot(*shift) >= TOLERANCE)


def test_units_and_order_of_bands_do_not_matter() -> None:
    image, mask = blocky()
    bands = np.concatenate([image, np.random.default_rng(1).random(image.shape)], axis=-1)
    seen = np.ones(mask.shape, bool)
    one = align(windows(bands, mask, seen, (4, 0)), [True, True])
    other = align(windows(1000 - 3 * bands[..., ::-1], mask, seen, (4, 0)), [True, True])
    assert one is not None and other is not None
    assert (one.rows, one.columns) == (other.rows, other.columns) == (-4, 0)
    # Gaussian smoothing and the discriminant are linear, roughness only has another offset: scores are the same.
    np.testing.assert_allclose(one.scores, other.scores, atol=2e-3)


def test_edges_of_what_was_seen_are_no_edges_of_the_mask() -> None:
    rng = np.random.default_rng(2)
    image, mask = blocky(3)
    # A strip that was not seen, and a mask that says background there, as published masks do.
    seen = np.ones(mask.shape, bool)
    seen[:, 80:110] = False
    image[:, 80:110] = rng.random((len(mask), 30, 1)) * 5
    alignment = align(windows(image, mask & seen, seen), [True])
    assert alignment is not None
    assert (alignment.rows, alignment.columns) == (0, 0)


def test_an_absent_modality_is_left_out() -> None:
    image, mask = blocky()
    bands = np.concatenate([image, np.full_like(image, np.nan)], axis=-1)
    alignment = align(windows(bands, mask, np.ones(mask.shape, bool), (0, 5)), [True, True])
    assert alignment is not None
    assert (alignment.rows, alignment.columns) == (0, -5)


@pytest.mark.parametrize("case", ["no glacier", "all glacier", "few edges", "no windows"])
def test_where_too_little_is_seen_nothing_is_said(case: str) -> None:
    image, mask = blocky()
    few = np.zeros_like(mask)
    few[50:60, 50:60] = True
    mask = {"no glacier": np.zeros_like(mask), "all glacier": np.ones_like(mask)}.get(case, few)
    reads = windows(image, mask, np.ones(mask.shape, bool))
    assert align([] if case == "no windows" else reads, [True]) is None


def test_an_image_of_noise_shows_no_shift() -> None:
    _, mask = blocky()
    seen = np.ones(mask.shape, bool)
    found = 0
    for seed in range(8):
        noise = np.random.default_rng(seed).random((*mask.shape, 3))
        alignment = align(windows(noise, mask, seen), [True] * 3)
        found += alignment is not None and alignment.off
    assert found <= 1


REAL = {
    "everest": ("LE71400412000304SGS00_RGB.tif", "15_rgi60_glacier_outlines.gpkg"),
    "exploradores": ("AST_L1A_00303182012144228_Z.tif", "17_rgi60_glacier_outlines.gpkg"),
}


def read_real(folder: Path, raster: str, outlines: str) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
    import pyogrio
    import rasterio
    from rasterio.features import rasterize
    from scipy import ndimage

    with rasterio.open(folder / raster) as dataset:
        bands = np.moveaxis(dataset.read(), 0, -1).astype(np.float32)
        shapes = pyogrio.read_dataframe(folder / outlines).to_crs(dataset.crs).geometry
        mask = rasterize([(shape, 1) for shape in shapes], dataset.shape, transform=dataset.transform) == 1
    if bands.shape[-1] == 3:
        part = np.s_[:400, 200:600]  # enough, and soon done
        return bands[part], mask[part], np.ones((400, 400), bool)
    elevation = np.where(bands[..., 0] == -9999, np.nan, bands[..., 0])
    slope = np.degrees(np.arctan(np.hypot(*np.gradient(elevation, 30.0))))
    return np.stack([elevation, slope], axis=-1), mask, ndimage.binary_erosion(np.isfinite(slope))


@pytest.mark.parametrize("place", REAL)
def test_real_outlines_are_quiet_and_found_when_shifted(shared: Path, place: str) -> None:
    bands, mask, valid = read_real(shared / "real" / place, *REAL[place])
    values = [place == "everest"] + [True] * (bands.shape[-1] - 1)
    for shift in [(0, 0), (5, 0), (0, 5), (5, 5)]:
        alignment = align(windows(bands, mask, valid, shift), values)
        assert alignment is not None
        assert alignment.off == (shift != (0, 0)), (shift, alignment.rows, alignment.columns, alignment.clearness)
        # Outlines and image are of other years: they lie up to two and a half pixels apart by themselves.
        assert np.hypot(alignment.rows + shift[0], alignment.columns + shift[1]) <= 2.5
