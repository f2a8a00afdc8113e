from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio import Affine

from console import UserError
from data.bands import Layout, Validation, parse_bands, write_dataset
from data.masks import parse_classes
from data.normalisation import fit
from data.tiles import IGNORE, TileFile

SIZE = 24
BANDS = {"Band1": "blue", "Band2": "green", "Band3": "swir1"}
CLASSES, VALUES = parse_classes(["0=background", "255=glacier"])
LAYOUT = Layout(BANDS, "label", CLASSES, VALUES, nodata=(0.0,), region="HMA", subregion="HMA-1")


def write_raster(path: Path, values: NDArray[Any], tile: int = 0, epsg: int | None = 32643, **options: object) -> Path:
    """Write a GeoTIFF; `tile` says how many tiles it lies to the east."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values if values.ndim == 3 else values[None]
    profile = {
        "driver": "GTiff",
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": None if epsg is None else f"EPSG:{epsg}",
        "transform": Affine(30, 0, 500_000 + tile * SIZE * 30, 0, -30, 3_700_000),
        **options,
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(values)
    return path


def tile_arrays(seed: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Bands of 1..999, a mask of 0 and 255; rows 0 and 1 are nodata in all bands, row 2 in the first only."""
    rng = np.random.default_rng(seed)
    bands = {name: rng.integers(1, 1000, (SIZE, SIZE)).astype(np.float32) for name in BANDS}
    for band in bands.values():
        band[:2] = 0
    bands["Band1"][2] = 0
    mask = rng.choice(np.array([0, 255], np.float32), (SIZE, SIZE))
    mask[:2] = 0
    return bands, mask


def file_name(folder: str, tile_id: str) -> str:
    return f"{'Y_out' if folder == 'label' else folder[-1] + '_masked'}_{tile_id}.tif"


def write_source(folder: Path, count: int, first: int = 0) -> Path:
    """Write `count` tiles named 01_00, 01_01, …; the masks' nodata tag is 0, as in published data."""
    for index in range(first, first + count):
        bands, mask = tile_arrays(index)
        for name, values in bands.items():
            write_raster(folder / name / file_name(name, f"01_{index:02}"), values, index, nodata=0)
        write_raster(folder / "label" / file_name("label", f"01_{index:02}"), mask, index, nodata=0)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    return {
        "train": write_source(tmp_path / "train", 5),
        "test": write_source(tmp_path / "test", 2, first=50),
    }


def written(folder: Path, split: str) -> TileFile:
    return TileFile(folder / f"{split}.hdf5")


# -- what is written -----------------------------------------------------------------------------------------


def test_bands_masks_and_places_arrive_by_tile_id(tmp_path: Path, sources: dict[str, Path]) -> None:
    write_dataset(tmp_path / "out", LAYOUT, sources, Validation(("01_01", "01_03")), command="make tiles")
    assert written(tmp_path / "out", "train").names == ["01_00", "01_02", "01_04"]
    assert written(tmp_path / "out", "val").names == ["01_01", "01_03"]
    assert written(tmp_path / "out", "test").names == ["01_50", "01_51"]
    for split in ("train", "val", "test"):
        file = written(tmp_path / "out", split)
        assert file.check(["optical"]) == []
        assert file.classes == CLASSES
        assert file.bands == {"optical": ["blue", "green", "swir1"]}
        assert file.command == "make tiles"
        assert file.provenance["mask values"] == {"0": "background", "255": "glacier"}
        for name in file.names:
            index = int(name[-2:])
            bands, mask = tile_arrays(index)
            expected = np.stack(list(bands.values()), axis=-1)
            expected[expected == 0] = np.nan
            np.testing.assert_array_equal(file.read(name, ["optical"])["optical"], expected)
            np.testing.assert_array_equal(file.mask(name), mask == 255)
            info = file.info(name)
            assert (info.region, info.subregion) == ("HMA", "HMA-1")
            assert info.transform == (30.0, 0.0, 5e5 + index * SIZE * 30, 0.0, -30.0, 3.7e6)
            assert rasterio.crs.CRS.from_wkt(info.crs).to_epsg() == 32643
            assert f"Band2/2_masked_{name}.tif" in info.attributes["sources"]


def test_only_pixels_without_any_band_are_invalid(tmp_path: Path, sources: dict[str, Path]) -> None:
    write_dataset(tmp_path / "out", LAYOUT, sources)
    file = written(tmp_path / "out", "test")
    valid = file.valid("01_50")
    assert not valid[:2].any()
    assert valid[2:].all()
    optical = file.read("01_50", ["optical"])["optical"]
    assert np.isnan(optical[2, :, 0]).all()
    assert np.isfinite(optical[2, :, 1:]).all()
    assert file.statistics is not None
    assert (file.statistics.apply("optical", optical)[2, :, 0] == 0).all()


@pytest.mark.parametrize("method", ["standardise", "minmax", "robust-standardise", "robust-minmax"])
def test_statistics_are_those_of_valid_training_pixels_in_every_file(
    tmp_path: Path, sources: dict[str, Path], method: Any
) -> None:
    write_dataset(tmp_path / "out", LAYOUT, sources, Validation(("01_00",)), method)
    samples = []
    for index in (1, 2, 3, 4):
        stacked = np.stack(list(tile_arrays(index)[0].values()), axis=-1)
        samples.append(({"optical": np.where(stacked == 0, np.nan, stacked)}, np.ones((SIZE, SIZE), bool)))
    expected = fit(samples, method)
    for split in ("train", "val", "test"):
        statistics = written(tmp_path / "out", split).statistics
        assert statistics is not None
        assert statistics.method == method
        np.testing.assert_allclose(statistics.shift["optical"], expected.shift["optical"], rtol=1e-12)
        np.testing.assert_allclose(statistics.scale["optical"], expected.scale["optical"], rtol=1e-12)
        assert not statistics.applied


def test_the_bands_own_nodata_tag_and_nan_are_nodata(tmp_path: Path) -> None:
    source = write_source(tmp_path / "train", 3)
    for index in range(3):
        for name in BANDS:
            values, _ = tile_arrays(index)
            band = values[name]
            band[:2], band[3, 3], band[4, 4] = 17, -3.4028235e38, np.nan
            path = source / name / file_name(name, f"01_{index:02}")
            write_raster(path, band, index, nodata=-3.4028235e38)
    layout = Layout(BANDS, "label", CLASSES, VALUES)
    write_dataset(tmp_path / "out", layout, {"train": source})
    file = written(tmp_path / "out", "val")
    expected = np.ones((SIZE, SIZE), bool)
    expected[3, 3] = expected[4, 4] = False
    np.testing.assert_array_equal(file.valid(file.names[0]), expected)


def test_the_masks_nodata_tag_says_nothing(tmp_path: Path, sources: dict[str, Path]) -> None:
    # The files tag 255 as nodata here; it is glacier all the same.
    for index in range(5):
        path = sources["train"] / "label" / file_name("label", f"01_{index:02}")
        write_raster(path, tile_arrays(index)[1], index, nodata=255)
    write_dataset(tmp_path / "out", LAYOUT, sources, Validation(("01_00",)))
    np.testing.assert_array_equal(written(tmp_path / "out", "val").mask("01_00"), tile_arrays(0)[1] == 255)


def test_mask_values_mean_what_the_user_says(tmp_path: Path) -> None:
    source = write_source(tmp_path / "train", 2)
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[3], values[4], values[5], values[6] = 85, 170, 255, 99
    for index in range(2):
        write_raster(source / "label" / file_name("label", f"01_{index:02}"), values, index)
    classes, meaning = parse_classes(
        ["0=background", "85=clean_ice", "170=debris", "255=background", "99=ignore"], ["clean_ice", "debris"]
    )
    layout = Layout(BANDS, "label", classes, meaning, modality="landsat", nodata=(0.0,))
    write_dataset(tmp_path / "out", layout, {"train": source})
    file = written(tmp_path / "out", "train")
    mask = file.mask(file.names[0])
    assert [mask[row, 0] for row in range(2, 7)] == [0, 1, 2, 0, IGNORE]
    assert [(info.name, info.glacier) for info in file.classes] == [
        ("background", False),
        ("clean_ice", True),
        ("debris", True),
    ]
    assert file.modalities == {"landsat": 3}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("epsg", [None, 32643])
def test_tiles_without_georeference_are_welcome(tmp_path: Path, epsg: int | None) -> None:
    for index in range(2):
        bands, mask = tile_arrays(index)
        for name, values in {**bands, "label": mask}.items():
            path = tmp_path / "train" / name / file_name(name, f"01_{index:02}")
            if epsg is None:
                write_raster(path, values, epsg=None, transform=Affine.identity())
            else:
                write_raster(path, values, index)
    write_dataset(tmp_path / "out", LAYOUT, {"train": tmp_path / "train"})
    file = written(tmp_path / "out", "train")
    assert (file.info(file.names[0]).crs is None) == (file.info(file.names[0]).transform is None) == (epsg is None)


# -- splits --------------------------------------------------------------------------------------------------


def test_a_share_of_whole_tiles_is_drawn_by_the_seed(tmp_path: Path) -> None:
    source = write_source(tmp_path / "train", 8)

    def drawn(fraction: float, seed: int) -> tuple[list[str], list[str]]:
        folder = tmp_path / f"out{fraction}-{seed}"
        if not folder.exists():
            write_dataset(folder, LAYOUT, {"train": source}, Validation(fraction=fraction, seed=seed))
        return written(folder, "train").names, written(folder, "val").names

    for fraction, count in ((0.25, 2), (0.01, 1), (0.5, 4)):
        train, val = drawn(fraction, 1)
        assert len(val) == count
        assert sorted(train + val) == [f"01_{index:02}" for index in range(8)]
    assert len({tuple(drawn(0.25, seed)[1]) for seed in range(5)}) > 1
    write_dataset(tmp_path / "again", LAYOUT, {"train": source}, Validation(fraction=0.25, seed=1))
    assert written(tmp_path / "again", "val").names == drawn(0.25, 1)[1]


def test_a_folder_for_validation_leaves_training_whole(tmp_path: Path, sources: dict[str, Path]) -> None:
    sources["val"] = sources.pop("test")
    write_dataset(tmp_path / "out", LAYOUT, sources)
    assert len(written(tmp_path / "out", "train").names) == 5
    assert written(tmp_path / "out", "val").names == ["01_50", "01_51"]
    assert not (tmp_path / "out" / "test.hdf5").exists()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 15.0])
def test_impossible_shares_are_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        Validation(fraction=fraction)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (Validation(("01_00", "09_09")), "09_09: no such training tile"),
        (Validation(tuple(f"01_{index:02}" for index in range(5))), "0 for training, 5 for validation"),
        (Validation(fraction=0.95), "0 for training, 5 for validation"),
    ],
)
def test_both_training_and_validation_keep_a_tile(
    tmp_path: Path, sources: dict[str, Path], validation: Validation, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_dataset(tmp_path / "out", LAYOUT, sources, validation)


# -- wrong rasters -------------------------------------------------------------------------------------------
# Each fault is made in tile 01_NN of a source and is told with the file that has it.


def fault_missing_band(source: Path, index: int) -> list[str]:
    path = source / "Band2" / file_name("Band2", f"01_{index:02}")
    path.unlink()
    return [f"tile 01_{index:02}", "no green band", str(path.parent)]


def fault_no_mask(source: Path, index: int) -> list[str]:
    path = source / "label" / file_name("label", f"01_{index:02}")
    path.unlink()
    return [f"tile 01_{index:02}", "no mask", str(path.parent)]


def fault_several_bands(source: Path, index: int) -> list[str]:
    path = source / "Band3" / file_name("Band3", f"01_{index:02}")
    write_raster(path, np.ones((3, SIZE, SIZE), np.float32), index)
    return [str(path), "3 bands", "one band"]


def fault_size(source: Path, index: int) -> list[str]:
    path = source / "Band2" / file_name("Band2", f"01_{index:02}")
    write_raster(path, np.ones((SIZE, SIZE - 1), np.float32), index)
    return [str(path), f"size {SIZE}×{SIZE - 1}", f"expected {SIZE}×{SIZE}"]


def fault_crs(source: Path, index: int) -> list[str]:
    path = source / "label" / file_name("label", f"01_{index:02}")
    write_raster(path, tile_arrays(index)[1], index, epsg=32644)
    return [str(path), "CRS EPSG:32644", "expected EPSG:32643"]


def fault_transform(source: Path, index: int) -> list[str]:
    path = source / "Band3" / file_name("Band3", f"01_{index:02}")
    write_raster(path, tile_arrays(index)[0]["Band3"], index, transform=Affine(30, 0, 7, 0, -30, 3_700_000))
    return [str(path), "transform", "(30.0, 0.0, 7.0", "expected"]


def fault_pixel_size(source: Path, index: int) -> list[str]:
    path = source / "label" / file_name("label", f"01_{index:02}")
    transform = Affine(30, 0, 500_000 + index * SIZE * 30, 0, -30.01, 3_700_000)
    write_raster(path, tile_arrays(index)[1], index, transform=transform)
    return [str(path), "transform", "30.01"]


def fault_mask_values(source: Path, index: int) -> list[str]:
    path = source / "label" / file_name("label", f"01_{index:02}")
    values = tile_arrays(index)[1]
    values[5, :3], values[6, :2], values[7, :4] = 85, 170, np.nan
    write_raster(path, values, index)
    return [str(path), "85 (3 pixels)", "170 (2 pixels)", "nan (4 pixels)", "0=background, 255=glacier"]


def fault_truncated(source: Path, index: int) -> list[str]:
    path = source / "Band1" / file_name("Band1", f"01_{index:02}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return [str(path), "truncated or damaged"]


def fault_not_a_raster(source: Path, index: int) -> list[str]:
    path = source / "label" / file_name("label", f"01_{index:02}")
    path.write_text("not a raster")
    return [str(path), "truncated or damaged"]


def fault_duplicate(source: Path, index: int) -> list[str]:
    path = write_raster(source / "Band1" / f"copy_01_{index:02}.tif", tile_arrays(index)[0]["Band1"], index)
    return [str(path), f"tile 01_{index:02}", "already"]


def fault_name(source: Path, index: int) -> list[str]:
    path = write_raster(source / "Band1" / f"overview{index}.tif", tile_arrays(index)[0]["Band1"], index)
    return [str(path), "tile id such as _06_11"]


def fault_all_invalid(source: Path, index: int) -> list[str]:
    for name in BANDS:
        write_raster(source / name / file_name(name, f"01_{index:02}"), np.zeros((SIZE, SIZE), np.float32), index)
    return [f"tile 01_{index:02}", str(source), "no valid pixel"]


FAULTS: Mapping[str, Callable[[Path, int], list[str]]] = {
    name.removeprefix("fault_"): fault for name, fault in dict(globals()).items() if name.startswith("fault_")
}


def problems_of(out: Path, sources: Mapping[str, Path], layout: Layout = LAYOUT) -> list[str]:
    """Return the problems that refuse a dataset, and check that nothing was written."""
    with pytest.raises(UserError) as caught:
        write_dataset(out, layout, sources)
    assert not out.exists()
    first, *problems = str(caught.value).split("\n  ")
    assert f"{len(problems)} problem" in first
    assert "nothing is written" in first
    return problems


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_raster_is_told_with_its_file(tmp_path: Path, sources: dict[str, Path], fault: str) -> None:
    expected = FAULTS[fault](sources["train"], 2)
    (problem,) = problems_of(tmp_path / "out", sources)
    for text in expected:
        assert text in problem


def test_all_problems_of_all_splits_are_told_at_once(tmp_path: Path) -> None:
    sources = {
        "train": write_source(tmp_path / "train", len(FAULTS)),
        "test": write_source(tmp_path / "test", len(FAULTS), first=len(FAULTS)),
    }
    expected = [
        fault(source, index + offset)
        for source, offset in ((sources["train"], 0), (sources["test"], len(FAULTS)))
        for index, fault in enumerate(FAULTS.values())
    ]
    found = problems_of(tmp_path / "out", sources)
    assert len(found) == len(expected)
    for texts in expected:
        assert [problem for problem in found if all(text in problem for text in texts)]


def test_missing_folders_are_told_beside_other_problems(tmp_path: Path, sources: dict[str, Path]) -> None:
    expected = fault_crs(sources["train"], 1)
    layout = Layout({**BANDS, "Band9": "nir"}, "label", CLASSES, VALUES, nodata=(0.0,))
    found = problems_of(tmp_path / "out", {**sources, "val": tmp_path / "nowhere"}, layout)
    assert len(found) == 4
    for split in ("train", "test"):
        (problem,) = [text for text in found if str(sources[split] / "Band9") in text]
        assert "there are Band1, Band2, Band3, label" in problem
    assert f"{tmp_path / 'nowhere'}: no such folder" in found
    assert [problem for problem in found if all(text in problem for text in expected)]


def test_a_band_that_training_never_sees_is_told(tmp_path: Path, sources: dict[str, Path]) -> None:
    for index in range(5):
        path = sources["train"] / "Band2" / file_name("Band2", f"01_{index:02}")
        write_raster(path, np.zeros((SIZE, SIZE), np.float32), index)
    (problem,) = problems_of(tmp_path / "out", sources)
    assert "the green band is nodata in all training tiles" in problem
    assert str(sources["train"] / "Band2") in problem


def test_a_place_belongs_to_one_split(tmp_path: Path, sources: dict[str, Path]) -> None:
    found = problems_of(tmp_path / "out", {"train": sources["train"], "test": sources["train"]})
    assert len(found) == 5
    assert all("lies at the same place as" in problem for problem in found)


def test_an_empty_source_is_told(tmp_path: Path, sources: dict[str, Path]) -> None:
    for name in (*BANDS, "label"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    (problem,) = problems_of(tmp_path / "out", {**sources, "test": tmp_path / "empty"})
    assert "no raster" in problem


def test_transforms_may_differ_by_rounding(tmp_path: Path, sources: dict[str, Path]) -> None:
    path = sources["train"] / "Band2" / file_name("Band2", "01_02")
    transform = Affine(30, 0, 500_000 + 2 * SIZE * 30 + 1e-6, 0, -30 - 1e-9, 3_700_000)
    write_raster(path, tile_arrays(2)[0]["Band2"], 2, transform=transform)
    write_dataset(tmp_path / "out", LAYOUT, sources)


# -- what the user says --------------------------------------------------------------------------------------


def test_pairs_are_read_in_order() -> None:
    assert list(parse_bands(["Band2=green", "Band1=blue"]).items()) == [("Band2", "green"), ("Band1", "blue")]
    classes, values = parse_classes(["0=background", "1.5=ice", "nan=ignore", "-1=background"], ["ice"])
    assert [info.name for info in classes] == ["background", "ice"]
    assert list(values.values()) == [0, 1, IGNORE, 0]


@pytest.mark.parametrize("pairs", [["Band1"], ["=blue"], ["Band1="], ["a=x", "b=x"], ["a=x", "a=y"]])
def test_malformed_bands_are_refused(pairs: list[str]) -> None:
    with pytest.raises(UserError, match="--bands"):
        parse_bands(pairs)


@pytest.mark.parametrize(
    ("pairs", "glacier", "message"),
    [
        (["0"], ["glacier"], "VALUE=NAME"),
        (["zero=background"], ["glacier"], "VALUE=NAME"),
        (["0=background", "0.0=glacier"], ["glacier"], "twice"),
        (["0=background", "nan=glacier", "nan=ignore"], ["glacier"], "twice"),
        (["0=background", "255=ignore"], ["glacier"], "two classes"),
        (["0=background", "255=ice"], ["glacier"], "--glacier .* some of background, ice"),
        (["0=background", "255=ice"], [], "--glacier"),
        (["255=glacier", "0=background"], ["glacier"], "background, but 'glacier'"),
    ],
)
def test_malformed_classes_are_refused(pairs: list[str], glacier: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_classes(pairs, glacier)


# -- real tiles ----------------------------------------------------------------------------------------------


def test_the_tiles_of_a_real_competition(tmp_path: Path, shared: Path) -> None:
    source = shared / "real" / "glacierhack"
    if not source.is_dir():
        pytest.skip(f"needs {source}")
    bands = {"Band1": "blue", "Band2": "green", "Band3": "red", "Band4": "swir1", "Band5": "thermal"}
    layout = Layout(bands, "label", CLASSES, VALUES, nodata=(0.0,), region="HMA")
    write_dataset(
        tmp_path / "out",
        layout,
        {"train": source / "train", "test": source / "val"},
        Validation(("06_11", "06_12")),
    )
    shares = {}
    for split, count in (("train", 12), ("val", 2), ("test", 6)):
        file = written(tmp_path / "out", split)
        assert len(file.names) == count
        assert file.check(["optical"]) == []
        masks = np.stack([file.mask(name) for name in file.names])
        valid = np.stack([file.valid(name) for name in file.names])
        assert not masks[~valid].any(), "the publisher labels masked pixels as background"
        shares[split] = (masks.mean(), 1 - valid.mean())
    train = (12 * np.array(shares["train"]) + 2 * np.array(shares["val"])) / 14
    np.testing.assert_allclose(train, (0.352, 0.209), atol=5e-4)
    np.testing.assert_allclose(shares["test"], (0.280, 0.311), atol=5e-4)
