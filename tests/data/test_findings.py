"""Findings: every rule finds its own mistake, and good tiles have none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio

from data.findings import Finding, find, swapped_bands, values_of_bands
from data.normalisation import Statistics, fit, published
from data.survey import survey
from data.synthetic import BANDS, make_scene
from data.tiles import IGNORE, TWO_CLASSES, ClassInfo, TileContents, TileWriter, find_dataset

SIDE = 128


@dataclass
class Content:
    """What a dataset is written from; a test changes one thing in it."""

    splits: dict[str, list[TileContents]]
    bands: dict[str, list[str]]
    classes: tuple[ClassInfo, ...] = TWO_CLASSES
    statistics: dict[str, Statistics | None] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=lambda: {"kind": "scenes"})

    def write(self, folder: Path) -> list[Finding]:
        """Write the splits, and return the findings."""
        folder.mkdir(exist_ok=True)
        for split, tiles in self.splits.items():
            path = folder / f"{split}.hdf5"
            with TileWriter(path, self.classes, self.bands, self.statistics[split], self.provenance, "made") as writer:
                for tile in tiles:
                    writer.add(
                        tile.name, tile.modalities, tile.mask, tile.valid, tile.region, tile.subregion, tile.crs,
                        tile.transform, **tile.attributes,
                    )  # fmt: skip
        return find(survey(find_dataset(folder)))

    def tile(self, split: str = "train", number: int = 0) -> TileContents:
        """Return a tile, to be changed."""
        return self.splits[split][number]

    def all(self) -> list[TileContents]:
        """Return all tiles."""
        return [tile for tiles in self.splits.values() for tile in tiles]


@pytest.fixture(scope="module")
def good() -> Content:
    """Two scenes, cut into tiles side by side; the splits are whole columns."""
    tiles: dict[str, list[TileContents]] = {"train": [], "val": [], "test": []}
    for region, seed in (("ALP", 1), ("SVAL", 4)):
        scene = make_scene(region, seed, 3 * SIDE)
        a, b, c, d, e, f = scene.transform
        for row in range(2):
            for column, split in enumerate(tiles):
                part = np.s_[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
                modalities = {name: scene.modalities()[name][part] for name in ("optical", "dem")}
                place = (a, b, c + column * SIDE * a, d, e, f + row * SIDE * e)
                tiles[split].append(
                    TileContents(
                        f"{region}-{row}-{column}", modalities, scene.mask[part], scene.valid[part], region,
                        scene.subregion, scene.crs, place, {"scene": region},
                    )
                )  # fmt: skip
    bands = {name: list(BANDS[name]) for name in ("optical", "dem")}
    statistics = fit((tile.modalities, tile.valid) for tile in tiles["train"])
    return Content(tiles, bands, statistics=dict.fromkeys(tiles, statistics))


@pytest.fixture
def content(good: Content) -> Content:
    return copy.deepcopy(good)


def test_good_tiles_have_no_finding(content: Content, tmp_path: Path) -> None:
    assert content.write(tmp_path / "good") == []


def replaced(content: Content, split: str, number: int, **changes: Any) -> None:
    content.splits[split][number] = replace(content.splits[split][number], **changes)


def move_masks(content: Content) -> None:
    for tile in content.all():
        tile.mask[:] = np.roll(tile.mask, (5, 3), (0, 1))


def exchange(one: str, other: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        for modality, names in content.bands.items():
            if one in names:
                i, j = names.index(one), names.index(other)
                for tile in content.all():
                    tile.modalities[modality][..., [i, j]] = tile.modalities[modality][..., [j, i]]

    return change


def to_values(modality: str, change: Callable[[Any], Any], split: str | None = None) -> Callable[[Content], None]:
    def changed(content: Content) -> None:
        for tile in content.all() if split is None else content.splits[split]:
            tile.modalities[modality] = np.asarray(change(tile.modalities[modality]), np.float32)

    return changed


def with_band(band: int, value: float, share: float = 1.0) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[: round(share * len(values)), :, band] = value
        return values

    return change


def upper_half(value: float) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[: len(values) // 8] = value
        return values

    return change


def copied_across(content: Content) -> None:
    tile = content.tile("train")
    # Of the same pixels, but another name and place: only they can show it.
    replaced(content, "test", 0, modalities=tile.modalities, mask=tile.mask, valid=tile.valid)


def copied_within(content: Content) -> None:
    tile, other = content.tile("train", 0), content.tile("train", 1)
    replaced(content, "train", 1, modalities=tile.modalities, mask=tile.mask, valid=tile.valid, name=other.name)


def on_the_same_ground(content: Content) -> None:
    place = content.tile("train").transform
    assert place is not None
    replaced(content, "val", 0, transform=(*place[:2], place[2] + 300, *place[3:]))


def same_statistics(content: Content, statistics: Statistics) -> None:
    content.statistics = dict.fromkeys(content.splits, statistics)


def published_for_numbers(content: Content) -> None:
    to_values("optical", lambda values: values * 10_000)(content)
    same_statistics(content, replace(published(content.bands)))


def published_with_surface(content: Content) -> None:
    same_statistics(content, published(content.bands))
    content.provenance["modalities"] = {"optical": {"unit": "reflectance", "level": "L2A"}}


def other_statistics(content: Content) -> None:
    content.statistics["test"] = fit((tile.modalities, tile.valid) for tile in content.splits["test"])


def in_feet(content: Content) -> None:
    to_values("dem", lambda values: values * (30.0, 1.0))(content)
    same_statistics(content, fit((tile.modalities, tile.valid) for tile in content.splits["train"]))


def clouds_on_glaciers(content: Content) -> None:
    for tile in content.all():
        hidden = tile.mask == 1
        hidden[: SIDE // 2] = False
        tile.valid[hidden] = False


def no_glacier(content: Content) -> None:
    for tile in content.splits["val"]:
        tile.mask[:] = 0


def unlabelled(content: Content) -> None:
    for tile in content.splits["train"]:
        tile.mask[: 3 * SIDE // 4] = IGNORE


def mostly_invalid(content: Content) -> None:
    for tile in content.splits["val"]:
        tile.valid[: 3 * SIDE // 4] = False


def without_region(content: Content) -> None:
    for number in range(len(content.splits["test"])):
        replaced(content, "test", number, region="")


def new_region(content: Content) -> None:
    replaced(content, "test", 0, region="XYZ")


def all_invalid(content: Content) -> None:
    content.tile().valid[:] = False


def without_val(content: Content) -> None:
    del content.splits["val"]


def weak(content: Content) -> None:
    content.provenance["mask"] = {"kind": "weak", "rule": "ndsi > 0.4"}


MISTAKES: list[tuple[Callable[[Content], None], str, str]] = [
    (move_masks, "error", "the masks of scene ALP are shifted by about 6 pixels"),
    (exchange("swir1", "green"), "error", "seem to be exchanged"),
    (exchange("red", "swir1"), "error", "red and swir1 of optical seem to be exchanged"),
    (exchange("red", "swir2"), "error", "seem to be exchanged"),
    (exchange("nir", "blue"), "error", "blue and nir of optical seem to be exchanged"),
    (exchange("blue", "red"), "error", "blue and red of optical seem to be exchanged"),
    (exchange("elevation_m", "slope_deg"), "error", "elevation and slope seem to be exchanged"),
    (in_feet, "error", "elevation beyond what there is on earth"),
    (to_values("dem", lambda values: values * (1.0, np.pi / 180)), "warning", "slope seems to be in radians"),
    (to_values("dem", with_band(1, 120.0, 0.1)), "error", "slope is not in degrees"),
    (to_values("optical", with_band(2, 0.4)), "error", "red of optical is constant"),
    (to_values("optical", with_band(4, np.nan), "val"), "error", "val: swir1 of optical has no value at all"),
    (to_values("optical", with_band(4, np.inf, 0.1)), "error", "optical is infinite at"),
    (to_values("optical", with_band(3, np.nan, 0.2)), "warning", "some bands of optical lack values"),
    (to_values("optical", lambda values: np.minimum(values, 0.3)), "warning", "optical is saturated"),
    (to_values("optical", upper_half(-9999.0)), "warning", "all bands of optical are -9999"),
    (to_values("optical", lambda values: 10_000 * values, "test"), "warning", "values of optical of another size"),
    (copied_across, "error", "the same tile more than once, in different splits"),
    (copied_within, "warning", "the same tile more than once, in one split"),
    (on_the_same_ground, "error", "tiles overlap across splits"),
    (published_for_numbers, "error", "the statistics do not fit blue of optical"),
    (to_values("optical", lambda values: 100 * values), "error", "the statistics do not fit blue of optical"),
    (published_with_surface, "warning", "optical is of level L2A, with the published statistics"),
    (other_statistics, "error", "train and test are scaled with different statistics"),
    (clouds_on_glaciers, "warning", "the scene was not seen at"),
    (no_glacier, "error", "val: no glacier in the masks"),
    (unlabelled, "warning", "train: only"),
    (mostly_invalid, "warning", "val: only 2"),
    (all_invalid, "error", "train: 1 tile without a valid pixel"),
    (without_region, "warning", "tiles have no region"),
    (new_region, "note", "region XYZ is not one of the published ones"),
    (without_val, "warning", "there is no val split"),
    (weak, "warning", "weak masks: ndsi > 0.4"),
]


@pytest.mark.parametrize(("change", "severity", "what"), MISTAKES, ids=[what for *_, what in MISTAKES])
def test_a_mistake_is_found(
    change: Callable[[Content], None],
    severity: str,
    what: str,
    content: Content,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if change is not move_masks:  # the slowest rule, which good masks have nothing to say to
        monkeypatch.setattr("data.findings._GROUPS", 0)
    change(content)
    found = content.write(tmp_path / "bad")
    named = [finding for finding in found if what in finding.what]
    assert named, [finding.what for finding in found]
    assert named[0].severity == severity
    assert named[0].evidence and named[0].remedy


def test_findings_come_with_the_gravest_first(content: Content, tmp_path: Path) -> None:
    copied_across(content)
    new_region(content)
    weak(content)
    severities = [finding.severity for finding in content.write(tmp_path / "bad")]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert set(severities) == {"error", "warning", "note"}


def test_a_shifted_mask_says_where_it_belongs(content: Content, tmp_path: Path) -> None:
    move_masks(content)
    shifted = [finding for finding in content.write(tmp_path / "bad") if finding.alignment is not None]
    assert shifted
    for finding in shifted:
        assert finding.alignment is not None
        assert "up" in finding.evidence and "left" in finding.evidence
        assert np.hypot(finding.alignment.rows + 5, finding.alignment.columns + 3) <= 2


def test_exchanged_bands_are_told_once_and_doubted_where_splits_disagree(content: Content, tmp_path: Path) -> None:
    exchange("red", "swir1")(content)
    content.write(tmp_path / "all")
    (found,) = swapped_bands(survey(find_dataset(tmp_path / "all")))
    assert (found.severity, found.what) == ("error", "red and swir1 of optical seem to be exchanged")
    names = content.bands["optical"]
    i, j = names.index("red"), names.index("swir1")
    for tile in content.splits["train"]:
        tile.modalities["optical"][..., [i, j]] = tile.modalities["optical"][..., [j, i]]
    content.write(tmp_path / "some")
    (found,) = swapped_bands(survey(find_dataset(tmp_path / "some")))
    assert found.severity == "warning" and found.what.endswith("exchanged in val and test, not in train")


@pytest.mark.parametrize("count", [4, 6])
@pytest.mark.parametrize(("region", "seed"), [("ALP", 0), ("ALP", 13), ("SA", 19), ("SVAL", 2), ("HMA", 5)])
def test_a_single_scene_with_plants_or_without_is_not_doubted(
    count: int, region: str, seed: int, tmp_path: Path
) -> None:
    scene = make_scene(region, seed, 160)
    names = ["blue", "green", "red", "nir", "swir1", "swir2"]
    for order, expected in (((0, 1, 2, 3), None), ((3, 1, 2, 0), ("blue", "nir")), ((0, 3, 2, 1), ("green", "nir"))):
        bands = scene.modalities()["optical"][..., [*order, 4, 5][:count]]
        path = tmp_path / f"{order}.hdf5"
        with TileWriter(path, TWO_CLASSES, {"optical": names[:count]}) as writer:
            writer.add("t", {"optical": bands}, scene.mask == 1, np.ones(scene.mask.shape, bool), region)
        found = [finding.what for finding in swapped_bands(survey(find_dataset(path)))]
        # Another exchange than the one that was made may be named, but one is.
        assert bool(found) == (expected is not None), found


def test_saturation_is_told_by_band(content: Content, tmp_path: Path) -> None:
    to_values("optical", lambda values: np.minimum(values, 0.3))(content)
    content.write(tmp_path / "some")
    (found,) = [one for one in values_of_bands(survey(find_dataset(tmp_path / "some"))) if "saturated" in one.what]
    assert found.evidence.startswith("at 0.3 are ") and found.evidence.endswith(", by split")
    assert found.evidence.count(" of blue") == 1 and "train" not in found.evidence


def test_an_absent_modality_is_counted_not_compared(content: Content, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    content.write(folder)
    with h5py.File(folder / "train.hdf5", "a") as file:
        del file["ALP-0-0/dem"]
    found = find(survey(find_dataset(folder)))
    assert [(finding.severity, finding.what) for finding in found] == [
        ("note", "train: dem is absent from 1 of 4 tiles")
    ]


def test_a_tile_of_two_sizes_can_not_be_used(content: Content, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    content.write(folder)
    with h5py.File(folder / "train.hdf5", "a") as file:
        del file["ALP-0-0/mask"]
        file["ALP-0-0"].create_dataset("mask", data=np.zeros((8, 8), np.uint8))
    found = find(survey(find_dataset(folder)))
    assert found[0].what == "tile ALP-0-0 (train) can't be used"
    assert "mask 8×8" in found[0].evidence


def test_published_files_are_not_reproached_with_what_they_lack(
    write_published_2025: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for seed, split in enumerate(("train", "val", "test")):
        write_published_2025(folder / f"{split}.hdf5", seed=seed)
    # Random values in 0 … 1 have no spectrum and no DEM; what files do not say is no finding.
    found = [finding.what for finding in find(survey(find_dataset(folder)))]
    assert not [what for what in found if "statistics" in what or "slope" in what or "region" in what]


def test_what_is_sampled_does_not_grow_with_the_tiles(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.survey.SAMPLE", 400)
    content.write(tmp_path / "good")
    surveyed = survey(find_dataset(tmp_path / "good"))
    assert [len(split.sample_ids) for split in surveyed.splits] == [400] * 3
    for split in surveyed.splits:
        assert {len(values) for values in split.sample.values()} == {400}


def test_counts_of_a_survey_are_those_of_the_arrays(content: Content, tmp_path: Path) -> None:
    content.tile().mask[:5] = IGNORE
    content.tile().modalities["optical"][10, :7, 0] = np.nan
    content.write(tmp_path / "good")
    split = survey(find_dataset(tmp_path / "good")).splits[0]
    tiles = content.splits["train"]
    labels = np.concatenate([np.where(tile.valid, tile.mask, IGNORE).ravel() for tile in tiles])
    assert split.counts.tolist() == np.bincount(labels, minlength=256)[:2].tolist()
    assert split.valid == sum(int(tile.valid.sum()) for tile in tiles)
    assert split.tiles[0].ignored == int((tiles[0].valid & (tiles[0].mask == IGNORE)).sum())
    assert split.tiles[0].gaps["optical"] == int(tiles[0].valid[10, :7].sum())
    for modality, facts in split.band_facts.items():
        values = np.concatenate([tile.modalities[modality][tile.valid] for tile in tiles])
        for band, fact in zip(values.T, facts, strict=True):
            finite = band[np.isfinite(band)]
            assert (fact.count, fact.low, fact.high) == (len(finite), finite.min(), finite.max())
            assert (fact.at_low, fact.at_high) == ((finite == finite.min()).sum(), (finite == finite.max()).sum())


def test_exchanged_bands_of_a_real_image_are_found(shared: Path, tmp_path: Path) -> None:
    with rasterio.open(shared / "real/everest/LE71400412000304SGS00_RGB.tif") as rgb:
        red, green, blue = rgb.read()
    with rasterio.open(shared / "real/everest/LE71400412000304SGS00_B4.tif") as nir:
        bands, names = np.stack([blue, green, red, nir.read(1)], axis=-1), ["blue", "green", "red", "nir"]
    mask = np.zeros(bands.shape[:2], np.uint8)
    for order, expected in (([0, 1, 2, 3], False), ([2, 1, 0, 3], True), ([0, 3, 2, 1], True), ([3, 1, 2, 0], True)):
        statistics = fit([({"optical": bands[..., order]}, mask == 0)])
        path = tmp_path / f"{order}.hdf5"
        with TileWriter(path, TWO_CLASSES, {"optical": names}, statistics) as writer:
            writer.add("t", {"optical": bands[..., order]}, mask, mask == 0, "HMA")
        assert bool(list(swapped_bands(survey(find_dataset(path))))) == expected
