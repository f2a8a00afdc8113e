"""Synthetic scenes are repeatable, look like glaciers to a sensor, and are harder than a band ratio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from console import UserError
from data.synthetic import (
    BANDS,
    CLEAN_ICE,
    DEBRIS_ICE,
    REGIONS,
    SURFACE_CLASSES,
    WATER,
    Scene,
    make_scene,
    write_dataset,
)
from data.tiles import TileFile

SIZE = 128


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(region, seed, SIZE) for seed in range(5) for region in REGIONS]


def pooled(scenes: list[Scene], values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([value[scene.valid] for scene, value in zip(scenes, values, strict=True)])


def test_the_same_arguments_make_the_same_scene_and_other_seeds_another() -> None:
    first, again, other = (make_scene("ALP", seed, 96) for seed in (3, 3, 4))
    for name, array in first.modalities().items():
        np.testing.assert_array_equal(array, again.modalities()[name])
        assert not np.array_equal(array, other.modalities()[name], equal_nan=True)
    np.testing.assert_array_equal(first.surface, again.surface)
    assert (first.subregion, first.transform, first.crs) == (again.subregion, again.transform, again.crs)


@pytest.mark.parametrize("size", [64, 97, 128])
def test_arrays_have_the_size_asked_for_and_the_bands_promised(size: int) -> None:
    scene = make_scene("SA", 1, size)
    modalities = scene.modalities()
    assert list(modalities) == list(BANDS)
    for name, array in modalities.items():
        assert array.shape == (size, size, len(BANDS[name]))
        assert array.dtype == np.float32
    assert scene.mask.shape == scene.surface.shape == scene.valid.shape == (size, size)
    assert scene.mask.dtype == scene.surface.dtype == np.uint8
    assert scene.valid.dtype == bool


def test_values_are_in_the_range_of_their_unit(scenes: list[Scene]) -> None:
    for scene in scenes:
        optical = scene.optical[scene.valid]
        assert 0 <= optical.min() and optical.max() <= 1.3 and optical.mean() < 0.7
        assert -20 < scene.dem[..., 0].min() and scene.dem[..., 0].max() < 9000
        assert 0 <= scene.dem[..., 1].min() and scene.dem[..., 1].max() < 85
        assert 5 < scene.dem[..., 1].mean() < 50
        assert -50 < scene.sar.min() and scene.sar.max() < 20
        assert 240 < scene.thermal.min() and scene.thermal.max() < 320
        assert set(np.unique(scene.mask)) <= {0, 1}
        assert set(np.unique(scene.surface)) <= set(range(len(SURFACE_CLASSES)))


def test_slope_is_that_of_the_elevation(scenes: list[Scene]) -> None:
    for scene in scenes[:4]:
        rise = np.hypot(*np.gradient(scene.dem[..., 0].astype(float), 30.0))
        inner = np.s_[1:-1, 1:-1]
        np.testing.assert_allclose(scene.dem[..., 1][inner], np.rad2deg(np.arctan(rise))[inner], atol=0.05)


def test_optical_is_nan_exactly_where_invalid_and_the_rest_is_known_everywhere(scenes: list[Scene]) -> None:
    for scene in scenes:
        np.testing.assert_array_equal(np.isnan(scene.optical), np.repeat(~scene.valid[..., None], 6, axis=-1))
        assert scene.valid.mean() > 0.4
        assert all(np.isfinite(scene.modalities()[name]).all() for name in ("dem", "sar", "thermal"))
    shares = [scene.valid.mean() for scene in scenes]
    assert min(shares) < 1 and max(shares) == 1


def test_the_mask_is_the_union_of_the_ice_classes(scenes: list[Scene]) -> None:
    for scene in scenes:
        np.testing.assert_array_equal(scene.mask == 1, np.isin(scene.surface, (CLEAN_ICE, DEBRIS_ICE)))
    everything = np.stack([scene.surface for scene in scenes])
    assert all((everything == index).any() for index in range(len(SURFACE_CLASSES)))


def test_the_share_of_glacier_is_sensible(scenes: list[Scene]) -> None:
    shares = [scene.mask.mean() for scene in scenes]
    assert 0.1 < np.mean(shares) < 0.5
    assert max(shares) < 0.97
    assert np.median(shares) > 0.08


def test_regions_differ_in_height_debris_and_place(scenes: list[Scene]) -> None:
    by_region = {code: [scene for scene in scenes if scene.region == code] for code in REGIONS}
    height = {code: np.median([np.median(scene.dem[..., 0]) for scene in of]) for code, of in by_region.items()}
    assert height["SVAL"] < height["SA"] < height["ALP"] < height["HMA"]

    def debris(of: list[Scene]) -> float:
        return sum((s.surface == DEBRIS_ICE).sum() for s in of) / sum(s.mask.sum() for s in of)

    share = {code: debris(of) for code, of in by_region.items()}
    assert share["HMA"] > 1.5 * max(share["ALP"], share["SVAL"], share["SA"])
    assert len({scene.crs for scene in scenes}) == len(REGIONS)


def test_scenes_lie_in_their_region(scenes: list[Scene]) -> None:
    latitude = {"ALP": (45, 48), "HMA": (27, 29), "SVAL": (77, 81), "SA": (-51, -45)}
    for scene in scenes:
        crs = CRS.from_wkt(scene.crs)
        assert crs.to_epsg() == REGIONS[scene.region].epsg
        assert scene.transform[0] == -scene.transform[4] == 30
        north, _ = Transformer.from_crs(crs, "EPSG:4326").transform(scene.transform[2], scene.transform[5])
        assert latitude[scene.region][0] < north < latitude[scene.region][1]
        assert scene.subregion.startswith(f"{scene.region}-")


def test_debris_lies_low_on_the_ice(scenes: list[Scene]) -> None:
    lower = []
    for scene in scenes:
        ice = [scene.dem[..., 0][scene.surface == index] for index in (CLEAN_ICE, DEBRIS_ICE)]
        if min(map(len, ice)) > 50:
            lower.append(np.median(ice[1]) < np.median(ice[0]))
    assert len(lower) > 6
    assert np.mean(lower) > 0.9


def test_glaciers_are_gentler_than_the_rock_around_them(scenes: list[Scene]) -> None:
    slope = pooled(scenes, [scene.dem[..., 1] for scene in scenes])
    ice = pooled(scenes, [scene.mask for scene in scenes]) == 1
    assert np.median(slope[ice]) < 0.8 * np.median(slope[~ice])


def test_seasonal_snow_outside_glaciers_looks_like_snow_on_them(scenes: list[Scene]) -> None:
    def ratio(scene: Scene) -> NDArray[Any]:
        return scene.optical[..., 2] / np.maximum(scene.optical[..., 4], 1e-3)

    snow = [(ratio(scene) > 4) & (scene.optical[..., 2] > 0.45) for scene in scenes]
    outside = [of & (scene.surface == 0) for of, scene in zip(snow, scenes, strict=True)]
    assert 0.02 < np.mean([of.mean() for of in outside]) < 0.35
    on_ice = np.concatenate([s.optical[of & (s.mask == 1)] for of, s in zip(snow, scenes, strict=True)])
    off_ice = np.concatenate([s.optical[of] for of, s in zip(outside, scenes, strict=True)])
    np.testing.assert_allclose(np.median(off_ice, axis=0), np.median(on_ice, axis=0), rtol=0.3)


@pytest.mark.parametrize(("region", "sunward"), [("HMA", "south"), ("SA", "north")])
def test_slopes_away_from_the_sun_are_dark_and_keep_diffuse_light(region: str, sunward: str) -> None:
    scene = make_scene(region, 2, 192)
    bare = (scene.surface == 0) & scene.valid & (scene.optical[..., 2] < 0.4)
    rise = np.gradient(scene.dem[..., 0], axis=0)[bare] / 30 * (1 if sunward == "south" else -1)
    blue, nir = scene.optical[..., 0][bare], scene.optical[..., 3][bare]
    away, towards = rise > 0.5, rise < -0.5
    assert min(away.sum(), towards.sum()) > 100
    assert np.median(nir[away]) < 0.6 * np.median(nir[towards])
    assert np.median(blue[away]) / np.median(blue[towards]) > np.median(nir[away]) / np.median(nir[towards])


def test_water_is_flat_and_dark_for_the_radar(scenes: list[Scene]) -> None:
    surface = pooled(scenes, [scene.surface for scene in scenes])
    slope = pooled(scenes, [scene.dem[..., 1] for scene in scenes])
    radar = pooled(scenes, [scene.sar[..., 0] for scene in scenes])
    assert (surface == WATER).sum() > 200
    assert np.median(slope[surface == WATER]) < 1
    assert radar[surface == WATER].mean() < radar[surface != WATER].mean() - 5


def test_a_band_ratio_is_useful_but_far_from_enough(scenes: list[Scene]) -> None:
    red, swir = (pooled(scenes, [scene.optical[..., band] for scene in scenes]) for band in (2, 4))
    glacier = pooled(scenes, [scene.mask for scene in scenes]) == 1
    ratio = red / np.maximum(swir, 1e-3)
    iou = [
        (glacier & (ratio > least)).sum() / (glacier | (ratio > least)).sum()
        for least in np.quantile(ratio, np.linspace(0.02, 0.98, 49))
    ]
    assert 0.35 < max(iou) < 0.72


def test_debris_resembles_rock_in_each_band_but_terrain_and_radar_hint_at_it() -> None:
    scenes = [make_scene("HMA", seed, SIZE) for seed in range(10, 15)]
    surface = pooled(scenes, [scene.surface for scene in scenes])
    bands = {name: pooled(scenes, [scene.modalities()[name] for scene in scenes]) for name in BANDS}
    rock = (surface == 0) & (bands["optical"][:, 2] < 2 * bands["optical"][:, 4])  # neither snow nor shadow
    debris = surface == DEBRIS_ICE
    for band in range(6):
        values = bands["optical"][:, band]
        assert abs(np.median(values[debris]) - np.median(values[rock])) < values[rock].std()
    assert np.median(bands["dem"][debris, 1]) < np.median(bands["dem"][rock, 1]) - 5
    assert bands["sar"][debris, 0].mean() > bands["sar"][rock, 0].mean() + 0.5


@pytest.mark.parametrize(
    ("region", "seed", "size", "word"),
    [("XX", 0, 96, "ALP, HMA"), ("ALP", -1, 96, "positive"), ("ALP", 0, 32, "64")],
)
def test_impossible_scenes_are_answered_with_what_is_possible(region: str, seed: int, size: int, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make_scene(region, seed, size)


def test_lakes_are_as_many_as_asked_for() -> None:
    none, many = (make_scene("HMA", 1, 64, lakes=lakes) for lakes in (0, 20))
    assert (none.surface == WATER).sum() == 0
    assert (many.surface == WATER).mean() > 0.01


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_dataset(folder, seed=5, train=5, val=2, test=4, size=64, command="python prepare.py synthetic")
    return folder


def test_a_dataset_can_be_read_with_regions_classes_and_statistics(dataset: Path) -> None:
    files = {split: TileFile(dataset / f"{split}.hdf5") for split in ("train", "val", "test")}
    assert {split: len(file.names) for split, file in files.items()} == {"train": 5, "val": 2, "test": 4}
    for split, file in files.items():
        assert file.check(list(BANDS)) == []
        assert file.bands == dict(BANDS)
        assert [(info.name, info.glacier) for info in file.classes] == [("background", False), ("glacier", True)]
        assert file.statistics == files["train"].statistics
        assert file.provenance["split"] == split and file.provenance["seed"] == 5
        assert file.command == "python prepare.py synthetic"
    assert {files["test"].info(name).region for name in files["test"].names} == set(REGIONS)
    info = files["train"].info(files["train"].names[0])
    assert info.name.startswith(info.subregion.replace("-", "") + "-00-")
    assert info.crs and info.transform


def test_statistics_are_those_of_the_valid_training_pixels(dataset: Path) -> None:
    file = TileFile(dataset / "train.hdf5")
    statistics = file.statistics
    assert statistics is not None
    for modality in BANDS:
        pixels = np.concatenate([file.read(name, [modality])[modality][file.valid(name)] for name in file.names])
        np.testing.assert_allclose(statistics.shift[modality], pixels.mean(axis=0, dtype=float), rtol=1e-5)
        np.testing.assert_allclose(statistics.scale[modality], pixels.std(axis=0, dtype=float), rtol=1e-5)


def test_no_two_scenes_of_a_dataset_share_their_terrain(dataset: Path) -> None:
    heights = [
        file.read(name, ["dem"])["dem"][..., 0].tobytes()
        for file in (TileFile(dataset / f"{split}.hdf5") for split in ("train", "val", "test"))
        for name in file.names
    ]
    assert len(set(heights)) == 11


def test_a_scene_depends_on_seed_and_number_but_not_on_how_many_there_are(dataset: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 5), ("other", 6)):
        (tmp_path / name).mkdir()
        write_dataset(tmp_path / name, seed=seed, train=1, val=2, test=1, size=64)
    folders = (dataset, tmp_path / "again", tmp_path / "other")
    first, again, other = (TileFile(folder / "val.hdf5") for folder in folders)
    assert first.names == again.names
    heights = [[file.read(name, ["dem"])["dem"] for name in file.names] for file in (first, again, other)]
    np.testing.assert_array_equal(heights[0], heights[1])
    assert not np.array_equal(heights[0], heights[2])


def test_surface_classes_are_written_on_request(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, seed=5, train=2, val=1, test=1, size=64, surface_classes=True)
    surface, glacier = TileFile(tmp_path / "train.hdf5"), TileFile(dataset / "train.hdf5")
    assert surface.classes == SURFACE_CLASSES
    of_glacier = [index for index, info in enumerate(surface.classes) if info.glacier]
    for name in surface.names:
        np.testing.assert_array_equal(np.isin(surface.mask(name), of_glacier), glacier.mask(name) == 1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"val": 0}, "val split"),
        ({"seed": -1}, "seed"),
        ({"size": 8}, "64"),
        ({"regions": ["ALP", "XX"]}, "'XX'; known are ALP, HMA"),
        ({"lakes": -0.1}, "lakes"),
        ({"lakes": float("nan")}, "lakes"),
    ],
)
def test_impossible_datasets_are_refused_and_leave_nothing(
    arguments: dict[str, Any], word: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=word):
        write_dataset(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []
