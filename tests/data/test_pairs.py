"""Pairs of image and mask: found by patterns, checked as a whole, stored as they are, every pixel once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio import Affine

from console import UserError
from data import bands as folders
from data.masks import parse_classes
from data.pairs import Layout, Pattern, parse_modalities, write_dataset
from data.splits import Division
from data.tiles import IGNORE, TileFile

SIZE = 16
CLASSES, VALUES = parse_classes(["0=background", "1=glacier"])
SURFACE = ["0=background", "85=clean_ice", "170=debris", "255=water"]

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write_raster(
    path: Path,
    values: NDArray[Any],
    place: int | None = 0,
    epsg: int = 32643,
    names: Sequence[str] = (),
    nodata: float | None = None,
) -> Path:
    """Write a GeoTIFF of `(H, W, C)` or `(H, W)`; `place` says how many images it lies to the east, None: nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values if values.ndim == 3 else values[..., None]
    placed = {"crs": f"EPSG:{epsg}", "transform": Affine(30, 0, 500_000 + (place or 0) * SIZE * 30, 0, -30, 3_700_000)}
    height, width, count = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, nodata=nodata,
        **(placed if place is not None else {}),
    ) as dataset:  # fmt: skip
        dataset.write(np.moveaxis(values, -1, 0))
        for band, name in enumerate(names, 1):
            dataset.set_band_description(band, name)
    return path


def save(path: Path, values: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return path


def image(seed: int, count: int = 3, kind: Any = np.uint16) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, 200, (SIZE, SIZE, count)).astype(kind)


def mask(seed: int, values: Sequence[int] = (0, 1)) -> NDArray[np.uint8]:
    return np.random.default_rng(1000 + seed).choice(np.array(values, np.uint8), (SIZE, SIZE))


def layout(root: Path, images: str = "img/{id}.tif", masks: str = "msk/{id}.tif", **options: Any) -> Layout:
    """Return a layout under `root`; a region is given unless a pattern or the options have one."""
    region = "" if "{region}" in images + masks else "HMA"
    patterns = Pattern("--images", f"{root}/{images}"), Pattern("--masks", f"{root}/{masks}")
    return Layout(*patterns, **{"classes": CLASSES, "values": VALUES, "region": region, **options})


def written(folder: Path) -> dict[str, tuple[TileFile, str]]:
    """Return the file of each tile of a dataset, and its split."""
    files = {split: TileFile(folder / f"{split}.hdf5") for split in ("train", "val", "test")}
    there = {split: file for split, file in files.items() if file.path.is_file()}
    tiles = [(name, (file, split)) for split, file in there.items() for name in file.names]
    assert len(dict(tiles)) == len(tiles), "a tile is in one split"
    return dict(tiles)


def write_pairs(root: Path, count: int, first: int = 0, **options: Any) -> Path:
    for index in range(first, first + count):
        write_raster(root / "img" / f"p{index:02}.tif", image(index), index, **options)
        write_raster(root / "msk" / f"p{index:02}.tif", mask(index), index)
    return root


# -- the layouts that other systems train on ------------------------------------------------------------------


def test_arrays_go_with_the_masks_of_their_names_and_lie_where_these_do(tmp_path: Path) -> None:
    classes, values = parse_classes(SURFACE, ["clean_ice", "debris"])
    for index in range(4):
        save(tmp_path / f"masked_t{index}.npy", image(index, 5, ">f4"))
        write_raster(tmp_path / f"t{index}.tif", mask(index, (0, 85, 170, 255)), index)
    pairs = layout(tmp_path, "masked_{id}.npy", "{id}.tif", classes=classes, values=values, region="ALP")
    write_dataset(tmp_path / "out", pairs, Division(), command="make pairs")
    tiles = written(tmp_path / "out")
    assert sorted(tiles) == ["t0", "t1", "t2", "t3"]
    assert {split for _, split in tiles.values()} == {"train", "val", "test"}
    for name, (file, _) in tiles.items():
        index = int(name[1:])
        assert file.check(["optical"]) == []
        np.testing.assert_array_equal(file.read(name, ["optical"])["optical"], image(index, 5, np.float32))
        np.testing.assert_array_equal(file.mask(name), mask(index, (0, 85, 170, 255)) // 85)
        info = file.info(name)
        assert info.region == "ALP" and info.transform == (30.0, 0.0, 5e5 + index * SIZE * 30, 0.0, -30.0, 3.7e6)
        assert rasterio.crs.CRS.from_wkt(info.crs).to_epsg() == 32643
        assert f"masked_{name}.npy" in info.attributes["sources"]
    assert [(info.name, info.glacier) for info in file.classes] == [
        ("background", False), ("clean_ice", True), ("debris", True), ("water", False),
    ]  # fmt: skip
    assert file.bands == {"optical": ["band_1", "band_2", "band_3", "band_4", "band_5"]}
    assert file.command == "make pairs" and file.provenance["mask values"]["170"] == "debris"
    assert file.statistics is not None and "training tiles" in file.statistics.fitted_on


def patches(root: Path, georeferenced: bool) -> dict[str, tuple[int, str]]:
    """Write patches of 18 bands of two regions, 6 × 4 patches each; return the number and region of each tile."""
    tiles = {}
    names = [f"b{band}" for band in range(1, 19)]
    for number, (region, row, column) in enumerate(
        (region, row, column) for region in ("Sikkim", "Kashmir") for row in range(6) for column in range(4)
    ):
        name = f"patch_r{row:03}_c{column:03}.tif"
        place = number * 3 if georeferenced else None
        write_raster(root / region / "images" / name, image(number, 18), place, names=names)
        write_raster(root / region / "masks" / name, mask(number), place)
        tiles[f"{region}_r{row:03}_c{column:03}"] = number, region
    return tiles


PATCHES = ("{region}/images/patch_r{row}_c{column}.tif", "{region}/masks/patch_r{row}_c{column}.tif")


def test_patches_of_18_bands_are_divided_in_blocks_by_their_rows_and_columns(tmp_path: Path) -> None:
    expected = patches(tmp_path, georeferenced=False)
    modalities = parse_modalities(["optical=1-6,9", "dem=7,8"])
    pairs = layout(tmp_path, *PATCHES, modalities=modalities, stride=SIZE)
    write_dataset(tmp_path / "out", pairs, Division("blocks", block_sides=2))
    tiles = written(tmp_path / "out")
    assert tiles.keys() == expected.keys()
    of_block: dict[tuple[str, int, int], set[str]] = {}
    for name, (file, split) in tiles.items():
        number, region = expected[name]
        read = file.read(name, ["optical", "dem"])
        bands = image(number, 18)
        np.testing.assert_array_equal(read["optical"], bands[..., [0, 1, 2, 3, 4, 5, 8]])
        np.testing.assert_array_equal(read["dem"], bands[..., [6, 7]])
        info = file.info(name)
        assert info.region == region and info.crs is None and info.transform is None
        row, column = int(name[-8:-5]), int(name[-3:])
        assert (info.attributes["scene_row"], info.attributes["scene_column"]) == (row * SIZE, column * SIZE)
        of_block.setdefault((region, row // 2, column // 2), set()).add(split)
    assert len(of_block) == 12 and all(len(splits) == 1 for splits in of_block.values())
    assert file.bands == {"optical": ["b1", "b2", "b3", "b4", "b5", "b6", "b9"], "dem": ["b7", "b8"]}
    assert list(file.provenance["bands"]) == ["optical", "dem"]
    assert file.provenance["split"] | {"groups": 12, "overlapping": 0} == file.provenance["split"]


def test_overlapping_patches_share_a_split_by_stride_and_by_georeference(tmp_path: Path) -> None:
    # Two strips of four patches that overlap by half; where there is a georeference the strips are the columns.
    for number in range(8):
        name = f"r{number % 4}_c{number // 4 * 8}.npy"
        save(tmp_path / "img" / name, image(number))
        save(tmp_path / "msk" / name, mask(number))
        write_raster(tmp_path / "img" / f"p{number}.tif", image(number), number // 2)
        write_raster(tmp_path / "msk" / f"p{number}.tif", mask(number), None)
    strips = layout(tmp_path, "img/r{row}_c{column}.npy", "msk/r{row}_c{column}.npy", stride=SIZE // 2)
    for seed in range(4):
        write_dataset(tmp_path / f"strips{seed}", strips, Division(val=0.5, test=0.0, seed=seed))
        splits = {name: split for name, (_, split) in written(tmp_path / f"strips{seed}").items()}
        assert {splits[f"r{row}_c0"] for row in range(4)} ^ {splits[f"r{row}_c8"] for row in range(4)} == {
            "train",
            "val",
        }
    write_dataset(tmp_path / "twins", layout(tmp_path), Division())
    twins = {name: split for name, (_, split) in written(tmp_path / "twins").items()}
    assert all(twins[f"p{number}"] == twins[f"p{number + 1}"] for number in (0, 2, 4, 6))
    assert set(twins.values()) == {"train", "val", "test"}


def test_every_pixel_of_the_images_is_in_one_split_once(tmp_path: Path) -> None:
    for index in range(9):
        height = SIZE + index
        numbers = np.arange(height * SIZE, dtype=np.int32).reshape(height, SIZE, 1) + index * 10_000
        write_raster(tmp_path / "img" / f"{index}.tif", numbers, None)
        write_raster(tmp_path / "msk" / f"{index}.tif", (numbers[..., 0] % 2).astype(np.uint8), None)
    splits = []
    for number, division in enumerate((Division(), Division(seed=1, val=0.4), Division())):
        out = tmp_path / f"out{number}"
        write_dataset(out, layout(tmp_path), division)
        splits.append({name: (file.digest, split) for name, (file, split) in written(out).items()})
        pixels = np.concatenate([f.read(n, ["optical"])["optical"].ravel() for n, (f, _) in written(out).items()])
        expected = [k * 10_000 + pixel for k in range(9) for pixel in range((SIZE + k) * SIZE)]
        np.testing.assert_array_equal(np.sort(pixels), expected)
    assert splits[0] == splits[2] != splits[1]


# -- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float16, np.float32, np.float64])
def test_values_keep_their_type(tmp_path: Path, kind: Any) -> None:
    for index in range(3):
        save(tmp_path / "img" / f"{index}.npy", image(index, 2, kind))
        save(tmp_path / "msk" / f"{index}.npy", mask(index)[..., None])
    write_dataset(tmp_path / "out", layout(tmp_path, "img/{id}.npy", "msk/{id}.npy"), Division())
    for name, (file, _) in written(tmp_path / "out").items():
        with file._reading() as stored:
            assert stored[name]["optical"].dtype == kind
        np.testing.assert_array_equal(file.read(name, ["optical"])["optical"], image(int(name), 2, kind))


def test_nodata_is_nan_and_invalid_where_a_modality_has_none_of_its_bands(tmp_path: Path) -> None:
    for index in range(3):
        values = image(index)
        values[0], values[1, :, 0], values[2, :, 2], values[3, :, :2] = 0, 0, 255, 0
        write_raster(tmp_path / "img" / f"{index}.tif", values, index, nodata=255)
        write_raster(tmp_path / "msk" / f"{index}.tif", mask(index), index)
    modalities = parse_modalities(["optical=1,2", "dem=3"])
    write_dataset(tmp_path / "out", layout(tmp_path, modalities=modalities, nodata=(0.0,)), Division())
    (name, (file, _)), *_ = written(tmp_path / "out").items()
    read = file.read(name, ["optical", "dem"])
    missing = np.zeros((SIZE, SIZE, 3), bool)
    missing[0], missing[1, :, 0], missing[2, :, 2], missing[3, :, :2] = True, True, True, True
    np.testing.assert_array_equal(np.isnan(np.concatenate([read["optical"], read["dem"]], axis=-1)), missing)
    assert (file.valid(name) == ~np.isin(np.arange(SIZE), (0, 2, 3))[:, None]).all()
    np.testing.assert_array_equal(read["dem"][4:], image(int(name))[4:, :, 2:])


def test_band_names_are_the_users_or_the_files(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3, names=["green", "", "nir"])
    for names, expected in (((), ["green", "band_2", "nir"]), (("a", "b", "c"), ["a", "b", "c"])):
        out = tmp_path / f"out{len(names)}"
        write_dataset(out, layout(tmp_path, bands=names), Division())
        assert TileFile(out / "train.hdf5").bands == {"optical": expected}


def test_a_mask_value_may_be_ignored(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    classes, values = parse_classes(["1=background", "7=glacier", "0=ignore"])
    write_dataset(tmp_path / "out", layout(tmp_path, classes=classes, values=values), Division())
    for name, (file, _) in written(tmp_path / "out").items():
        np.testing.assert_array_equal(file.mask(name), np.where(mask(int(name[1:])) == 1, 0, IGNORE))


# -- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/{id}.tif", {"a/x.tif": ("x",), "a/x_mask.tif": ("x_mask",), "a/y_1.tif": ("y_1",)}),
        ("a/{id}_{row}{column}.tif", {}),
        ("*/{id}_mask.tif", {"a/x_mask.tif": ("x",)}),
        ("?/y_{id}.tif", {"a/y_1.tif": ("1",)}),
        ("**/{id}_mask.tif", {"a/x_mask.tif": ("x",), "b/c/c_z_mask.tif": ("c_z",)}),
        ("b/{region}/{region}_{id}_mask.tif", {"b/c/c_z_mask.tif": ("c", "z")}),
        ("b/[c]/{id}.tif", {}),
        ("nowhere/{id}.tif", {}),
    ],
)
def test_patterns_find_files_and_their_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: dict[str, tuple[str, ...]]
) -> None:
    for name in ("a/x.tif", "a/x_mask.tif", "a/y_1.tif", "a/.hidden.tif", "b/c/c_z_mask.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "folder.tif").mkdir()
    monkeypatch.chdir(tmp_path)
    found = Pattern("--images", pattern).find()
    assert {str(path): tuple(fields.values()) for path, fields in found.items()} == expected


def test_a_file_that_both_patterns_match_is_what_the_more_precise_one_says(tmp_path: Path) -> None:
    for index in range(3):
        write_raster(tmp_path / f"{index}.tif", image(index), index)
        write_raster(tmp_path / f"{index}_label.tif", mask(index), index)
    write_dataset(tmp_path / "out", layout(tmp_path, "{id}.tif", "{id}_label.tif"), Division())
    assert sorted(written(tmp_path / "out")) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("images", "masks", "options", "message"),
    [
        ("{name}.tif", "{id}.png", {}, r"{name} is no field .* {region}, {id}, {row}, {column}"),
        ("{id.tif", "{id}.png", {}, "lone {"),
        ("{row}.tif", "{id}.png", {}, "both {row} and {column}"),
        ("{id}.tif", "{id}.tif", {}, "one pattern"),
        ("{id}.tif", "r{row}_c{column}.tif", {}, "no field in common"),
        ("*.tif", "*.png", {}, "no field in common"),
        ("{id}.tif", "{id}.png", {"region": ""}, "--region CODE"),
        ("{region}/{id}.tif", "{id}.png", {"region": "HMA"}, "one of the two"),
        ("{id}.tif", "{id}.png", {"stride": 8}, "--stride 8"),
        ("{row}{column}.tif", "{row}{column}.png", {"stride": 0}, "--stride 0"),
        ("{id}.tif", "{id}.png", {"bands": ("a", "b", "a")}, "names a twice"),
    ],
)
def test_layouts_that_make_no_sense_are_refused(
    tmp_path: Path, images: str, masks: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        layout(tmp_path, images, masks, **options)


def test_modalities_are_read_in_order() -> None:
    assert list(parse_modalities(["optical=1-3, 9", "dem=7"]).items()) == [("optical", (0, 1, 2, 8)), ("dem", (6,))]
    assert parse_modalities(["sar"]) == {"sar": ()}


@pytest.mark.parametrize(
    "texts",
    [["a=0"], ["a=3-1"], ["a="], ["a=x"], ["=1"], ["a=1", "a=2"], ["a=1-3", "b=3"], ["a", "b=1"], ["mask=1"], ["a/b"]],
)
def test_malformed_modalities_are_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="--modality"):
        parse_modalities(texts)


# -- wrong files ----------------------------------------------------------------------------------------------
# Each fault is made in pair NN of a folder and is told with the file that has it.


def fault_no_mask(root: Path, index: int) -> list[str]:
    (root / "msk" / f"p{index:02}.tif").unlink()
    return [str(root / "img" / f"p{index:02}.tif"), "no mask, expected", str(root / "msk" / f"p{index:02}.tif")]


def fault_no_image(root: Path, index: int) -> list[str]:
    (root / "img" / f"p{index:02}.tif").unlink()
    return [str(root / "msk" / f"p{index:02}.tif"), "no image, expected", str(root / "img" / f"p{index:02}.tif")]


def fault_size(root: Path, index: int) -> list[str]:
    path = write_raster(root / "msk" / f"p{index:02}.tif", mask(index)[:-1], index)
    return [str(path), f"size {SIZE - 1}×{SIZE}, expected {SIZE}×{SIZE} as in {root / 'img'}"]


def fault_band_count(root: Path, index: int) -> list[str]:
    return [str(write_raster(root / "img" / f"p{index:02}.tif", image(index, 2), index)), "2 bands, expected 3 as in"]


def fault_mask_bands(root: Path, index: int) -> list[str]:
    path = write_raster(root / "msk" / f"p{index:02}.tif", image(index, 3, np.uint8), index)
    return [str(path), "3 bands, expected a mask of one band"]


def fault_crs(root: Path, index: int) -> list[str]:
    path = write_raster(root / "msk" / f"p{index:02}.tif", mask(index), index, epsg=32644)
    return [str(path), "CRS EPSG:32644, expected EPSG:32643"]


def fault_transform(root: Path, index: int) -> list[str]:
    path = write_raster(root / "msk" / f"p{index:02}.tif", mask(index), index + 50)
    return [str(path), "transform", "expected (30.0, 0.0,"]


def fault_mask_values(root: Path, index: int) -> list[str]:
    values = mask(index)
    values[0, :3], values[1, :2] = 85, 7
    path = write_raster(root / "msk" / f"p{index:02}.tif", values, index)
    return [str(path), "85 (3 pixels), 7 (2 pixels); --classes has 0=background, 1=glacier"]


def fault_truncated(root: Path, index: int) -> list[str]:
    path = root / "img" / f"p{index:02}.tif"
    path.write_bytes(path.read_bytes()[:700])
    return [str(path), "truncated or damaged"]


def fault_all_nodata(root: Path, index: int) -> list[str]:
    path = write_raster(root / "img" / f"p{index:02}.tif", np.zeros((SIZE, SIZE, 3), np.uint16), index)
    return [str(path), "no valid pixel"]


def fault_band_names(root: Path, index: int) -> list[str]:
    path = write_raster(root / "img" / f"p{index:02}.tif", image(index), index, names=["b", "c", "a"])
    return [str(path), "called b, c, a, those of", "a, b, c: give the names with --bands"]


FAULTS = {name.removeprefix("fault_"): fault for name, fault in dict(globals()).items() if name.startswith("fault_")}


def problems_of(folder: Path, pairs: Layout, division: Division | None = None) -> list[str]:
    with pytest.raises(UserError, match=r"problems?, nothing is written:") as caught:
        write_dataset(folder, pairs, division or Division())
    assert not folder.exists()
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    write_pairs(tmp_path, len(FAULTS) + 3, names=["a", "b", "c"])
    # The first pairs have no fault: what differs, differs from them.
    expected = [fault(tmp_path, 3 + index) for index, fault in enumerate(FAULTS.values())]
    found = problems_of(tmp_path / "out", layout(tmp_path, nodata=(0.0,)))
    assert len(found) == len(expected)
    for texts in expected:
        assert [problem for problem in found if all(text in problem for text in texts)], texts


def test_arrays_that_are_not_plain_numbers_are_refused(tmp_path: Path) -> None:
    for index in range(9):
        save(tmp_path / f"{index}.npy", image(index))
        write_raster(tmp_path / f"{index}.tif", mask(index), index)
    trace = tmp_path / "unpickled"

    class Pickled:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trace),)

    np.save(tmp_path / "0.npy", np.array([Pickled()], dtype=object), allow_pickle=True)
    whole = (tmp_path / "1.npy").read_bytes()
    (tmp_path / "1.npy").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.npy").write_bytes(b"")
    (tmp_path / "3.npy").write_text("no array")
    save(tmp_path / "4.npy", np.ones((2, SIZE, SIZE, 3), np.float32))
    save(tmp_path / "5.npy", np.full((SIZE, SIZE, 3), "x"))
    save(tmp_path / "6.npy", np.moveaxis(image(6), -1, 0))
    found = problems_of(tmp_path / "out", layout(tmp_path, "{id}.npy", "{id}.tif"))
    expected = [
        ("0.npy", "pickled Python objects, which are never loaded"),
        ("1.npy", "truncated"),
        ("2.npy", "truncated"),
        ("3.npy", "can't be read as an array"),
        ("4.npy", f"shape 2×{SIZE}×{SIZE}×3, expected height × width × bands"),
        ("5.npy", "values of type <U1"),
        ("6.tif", f"size {SIZE}×{SIZE}, expected 3×{SIZE} as in"),
        ("6.npy", f"{SIZE} bands, expected 3"),
    ]
    assert not trace.exists()
    assert len(found) == len(expected)
    for name, text in expected:
        assert [problem for problem in found if f"{tmp_path / name}:" in problem and text in problem], text


def test_names_that_do_not_pair_are_told(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    (problem,) = problems_of(tmp_path / "out", layout(tmp_path, "img/p{id}.tif", "msk/{id}.tif"))
    assert "none of 2 images has its mask among the 2 masks" in problem
    assert f"{tmp_path}/img/p00.tif asks for {tmp_path}/msk/00.tif, but there are {tmp_path}/msk/p00.tif" in problem
    missing, empty = problems_of(tmp_path / "out", layout(tmp_path, "image/{id}.tif", "msk/{id}.png"))
    assert f"no file matches, there is no folder {tmp_path}/image" in missing
    assert "no file matches" in empty and "has p00.tif, p01.tif" in empty
    write_raster(tmp_path / "b" / "img" / "p00.tif", image(5), 0)
    (twice,) = problems_of(tmp_path / "out", layout(tmp_path, "**/img/{id}.tif"))
    assert "id p00 has an image already" in twice and "tell them apart with {region} in both patterns" in twice


def test_modalities_bands_and_places_that_the_images_lack_are_told(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    (problem,) = problems_of(tmp_path / "out", layout(tmp_path, modalities={"optical": (0,), "dem": (1, 4)}))
    assert "--modality dem takes band 5, but the images have 3" in problem
    assert len(problems_of(tmp_path / "out", layout(tmp_path, bands=("a", "b")))) == 3
    rows = layout(tmp_path, "img/p{row}{column}.tif", "msk/p{row}{column}.tif", stride=4)
    (problem,) = problems_of(tmp_path / "out", rows)
    assert "--stride is for images without georeference" in problem
    for index in range(3):
        write_raster(tmp_path / "img" / f"p{index:02}.tif", image(index), None)
        write_raster(tmp_path / "msk" / f"p{index:02}.tif", mask(index), None)
    (problem,) = problems_of(tmp_path / "out", replace(rows, stride=None))
    assert "give --stride, the pixels from one number to the next" in problem
    (problem,) = problems_of(tmp_path / "out", layout(tmp_path), Division("blocks"))
    assert "p00, p01, p02 have none" in problem


def test_a_band_that_training_never_sees_is_told(tmp_path: Path) -> None:
    write_pairs(tmp_path, 4)
    for index in range(4):
        values = image(index)
        values[..., 1] = 0
        write_raster(tmp_path / "img" / f"p{index:02}.tif", values, index, names=["a", "dark", "c"])
    (problem,) = problems_of(tmp_path / "out", layout(tmp_path, nodata=(0.0,)))
    assert problem == "the dark band is nodata in all training images"


# -- real tiles -----------------------------------------------------------------------------------------------


def test_stacked_bands_make_the_same_tiles_as_folders_of_bands(tmp_path: Path, shared: Path) -> None:
    source = shared / "real" / "glacierhack" / "train"
    if not source.is_dir():
        pytest.skip(f"needs {source}")
    names = {"Band1": "blue", "Band2": "green", "Band3": "red", "Band4": "swir1", "Band5": "thermal"}
    classes, values = parse_classes(["0=background", "255=glacier"])
    for mask_path in sorted((source / "label").glob("*_06_*.tif"))[:3]:
        tile = mask_path.stem[-5:]
        stack = []
        for folder in (*names, "label"):
            (path,) = (source / folder).glob(f"*_{tile}.tif")
            (tmp_path / "folders" / folder).mkdir(parents=True, exist_ok=True)
            os.symlink(path, tmp_path / "folders" / folder / path.name)
            with rasterio.open(path) as dataset:
                stack.append(dataset.read(1))
                profile = dataset.profile
        (tmp_path / "img").mkdir(exist_ok=True)
        with rasterio.open(tmp_path / "img" / f"{tile}.tif", "w", **{**profile, "count": len(names)}) as dataset:
            dataset.write(np.stack(stack[:-1]))
        save(tmp_path / "msk" / f"{tile}.npy", stack[-1])
    pairs = layout(
        tmp_path, masks="msk/{id}.npy", bands=tuple(names.values()), classes=classes, values=values, nodata=(0.0,)
    )
    write_dataset(tmp_path / "pairs", pairs, Division(test=0.0))
    val = tuple(TileFile(tmp_path / "pairs" / "val.hdf5").names)
    layers = folders.Layout(names, "label", classes, values, nodata=(0.0,), region="HMA")
    folders.write_dataset(tmp_path / "bands", layers, {"train": tmp_path / "folders"}, folders.Validation(val))
    for split, count in (("train", 2), ("val", 1)):
        one, other = (TileFile(tmp_path / kind / f"{split}.hdf5") for kind in ("pairs", "bands"))
        assert one.names == other.names and len(one.names) == count
        assert (one.bands, one.classes, one.statistics) == (other.bands, other.classes, other.statistics)
        for name in one.names:
            for read in (TileFile.mask, TileFile.valid, lambda file, name: file.read(name, ["optical"])["optical"]):
                np.testing.assert_array_equal(read(one, name), read(other, name))
            first, second = one.info(name), other.info(name)
            assert (first.crs, first.transform, first.region) == (second.crs, second.transform, second.region)
