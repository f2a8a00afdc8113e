"""Folds: whole tiles, every tile held out once, groups kept together, statistics of the fold's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import CRS

from console import UserError
from data.folds import Tile, pool, split, write_fold
from data.normalisation import Statistics, fit
from data.tiles import TWO_CLASSES, TileFile, TileInfo, TileWriter, find_dataset

SIDE = 20
BANDS = {"optical": ["green", "swir"]}
REGIONS = {"train": ["HMA"] * 4 + ["ALP"] * 3, "val": ["HMA", "ALP", "SC"], "test": ["NZ"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles whose values are their number, along a line from west to east; `t0` is a name of two splits."""
    folder = tmp_path_factory.mktemp("tiles") / "line"
    folder.mkdir()
    zone = CRS.from_epsg(32643).to_wkt()
    statistics = Statistics("standardise", {"optical": (0.0, 0.0)}, {"optical": (1.0, 1.0)}, "a test")
    number = 0
    for name, regions in REGIONS.items():
        with TileWriter(folder / f"{name}.hdf5", TWO_CLASSES, BANDS, statistics, command="pytest") as writer:
            for index, region in enumerate(regions):
                values = {"optical": np.full((SIDE, SIDE, 2), number, np.float32)}
                mask = np.full((SIDE, SIDE), number % 2, np.uint8)
                transform = (30.0, 0.0, 5e5 + number * SIDE * 30, 0.0, -30.0, 4e6)
                writer.add(f"t{index}", values, mask, np.ones((SIDE, SIDE)), region, crs=zone, transform=transform)
                number += 1
    return folder


@pytest.fixture
def tiles(folder: Path) -> list[Tile]:
    return pool(find_dataset(folder))


def value(tile: Tile) -> float:
    return float(tile.file.read(tile.info.name, ["optical"])["optical"][0, 0, 0])


def test_the_pool_is_training_and_validation_and_knows_two_tiles_of_one_name(tiles: list[Tile]) -> None:
    assert sorted(value(tile) for tile in tiles) == list(range(10))
    assert len({tile.name for tile in tiles}) == 10 and {"t0-train", "t0-val", "t6"} <= {tile.name for tile in tiles}


def test_the_pool_takes_regions_and_names_the_unknown(folder: Path) -> None:
    dataset = find_dataset(folder)
    assert {tile.info.region for tile in pool(dataset, ["SC", "ALP"])} == {"SC", "ALP"}
    with pytest.raises(UserError, match="no tile of region `NZ`"):
        pool(dataset, ["ALP", "NZ"])


@pytest.mark.parametrize(("count", "by"), [(2, "tiles"), (5, "tiles"), (10, "tiles"), (3, "blocks"), (2, "regions")])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_tile_is_held_out_once_and_groups_stay_together(
    tiles: list[Tile], count: int, by: str, seed: int
) -> None:
    folds = split(tiles, count, by, seed, 2 * SIDE * 30 if by == "blocks" else None)  # type: ignore[arg-type]
    assert len(folds) == count and all(folds)
    assert sorted(tile.name for fold in folds for tile in fold) == sorted(tile.name for tile in tiles)
    if by == "tiles":
        assert max(map(len, folds)) - min(map(len, folds)) <= 1
    if by == "regions":
        where = {
            region: {k for k, fold in enumerate(folds) if region in {t.info.region for t in fold}}
            for region in ("HMA", "ALP")
        }
        assert all(len(places) == 1 for places in where.values())
    assert folds == split(tiles, count, by, seed, 2 * SIDE * 30 if by == "blocks" else None)  # type: ignore[arg-type]


def test_another_seed_is_another_shuffle(tiles: list[Tile]) -> None:
    names = [[{tile.name for tile in fold} for fold in split(tiles, 5, "tiles", seed)] for seed in range(3)]
    assert names[0] != names[1] != names[2]


def test_regions_without_a_number_are_left_out_one_by_one(tiles: list[Tile]) -> None:
    folds = split(tiles, None, "regions")
    assert sorted({tile.info.region for tile in fold}.pop() for fold in folds) == ["ALP", "HMA", "SC"]
    assert all(len({tile.info.region for tile in fold}) == 1 for fold in folds)


def test_blocks_are_squares_on_the_ground(tiles: list[Tile]) -> None:
    """Tiles stand side by side in a row: blocks of two tiles' width hold neighbours of one region, two at most."""
    many = [Tile(tiles[0].file, info, str(k)) for k, info in enumerate(row_of(60))]
    folds = split(many, 30, "blocks", 0, 2 * SIDE * 30)
    held = sorted(sorted(int(tile.name) for tile in fold) for fold in folds)
    assert sum(len(fold) == 2 and fold[1] - fold[0] == 1 for fold in held) >= 28
    # Four tiles' width is the default.
    with pytest.raises(
        UserError, match=r"30 folds need as many blocks; the 60 tiles have 1[5-7]; make --block-m smaller"
    ):
        split(many, 30, "blocks")


def row_of(count: int) -> list[TileInfo]:
    """Return tiles in a row across the date line, placed in degrees as published files do."""
    step = SIDE * 30 / 111_195
    return [
        TileInfo(
            str(k), SIDE, SIDE, "FJ", attributes={"xmin": west, "xmax": west + step, "ymin": 0.1, "ymax": 0.1 + step}
        )
        for k in range(count)
        for west in [(180 - count / 2 * step + k * step + 180) % 360 - 180]
    ]


def test_blocks_know_tiles_by_their_row_and_column_in_a_scene(tiles: list[Tile]) -> None:
    places = [{"scene_row": 0, "scene_column": SIDE * k} for k in range(16)]
    infos = [TileInfo(str(k), SIDE, SIDE, "HMA", attributes=place) for k, place in enumerate(places)]
    folds = split([Tile(tiles[0].file, info, info.name) for info in infos], 4, "blocks")
    held = sorted(sorted(int(tile.name) for tile in fold) for fold in folds)
    assert held == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


def test_what_can_not_be_split_is_refused(tiles: list[Tile]) -> None:
    with pytest.raises(UserError, match="11 folds need as many tiles; the 10 tiles have 10"):
        split(tiles, 11, "tiles")
    with pytest.raises(UserError, match="4 folds need as many regions; the 10 tiles have 3; leave --folds out"):
        split(tiles, 4, "regions")
    with pytest.raises(UserError, match="at least 2 folds; received 1"):
        split(tiles, 1, "tiles")
    with pytest.raises(UserError, match="how many folds"):
        split(tiles, None, "tiles")
    nowhere = [Tile(tiles[0].file, TileInfo(str(k), SIDE, SIDE), str(k)) for k in range(4)]
    with pytest.raises(UserError, match=r"tile '0' has no place .*: use --folds-by tiles or regions"):
        split(nowhere, 2, "blocks")
    with pytest.raises(UserError, match="metres above 0"):
        split(tiles, 2, "blocks", 0, -1.0)


def test_a_fold_is_a_dataset_with_statistics_of_its_own(folder: Path, tiles: list[Tile], tmp_path: Path) -> None:
    held_out = split(tiles, 5, "tiles", 3)[0]
    dataset = write_fold(tiles, held_out, tmp_path / "mine-folds" / "fold1", folder / "test.hdf5")
    train, val, test = (TileFile(find_dataset(dataset.folder).path(name)) for name in ("train", "val", "test"))
    assert val.names == sorted(tile.name for tile in held_out) and len(train.names) == 8 and test.names == ["t0"]
    inside = [value(tile) for tile in tiles if tile not in held_out]
    assert train.statistics is not None and train.statistics == val.statistics
    expected = fit([({"optical": np.repeat(np.array(inside)[:, None, None], 2, axis=2)}, np.ones((8, 1)))])
    np.testing.assert_allclose(train.statistics.shift["optical"], expected.shift["optical"])
    np.testing.assert_allclose(train.statistics.scale["optical"], expected.scale["optical"])
    assert "a fold" in train.statistics.fitted_on and train.classes == TWO_CLASSES and train.bands == BANDS
    for tile in held_out:
        assert (val.read(tile.name, ["optical"])["optical"] == value(tile)).all()
        assert val.info(tile.name).region == tile.info.region
    again = write_fold(tiles, held_out, tmp_path / "again" / "fold1")
    assert TileFile(again.path("train")).digest == train.digest != val.digest


def test_published_statistics_stay_those_in_a_fold(tmp_path: Path) -> None:
    bands = {"dem": ["elevation", "slope"], "velocity": ["speed"]}
    rng = np.random.default_rng(0)

    def sample() -> dict[str, NDArray[np.float64]]:
        return {name: rng.random((4, 4, len(names))) for name, names in bands.items()}

    mixed = fit([(sample(), np.ones((4, 4)))], "published", bands=bands)
    for split_name in ("train", "val"):
        with TileWriter(tmp_path / f"{split_name}.hdf5", TWO_CLASSES, bands, mixed) as writer:
            for index in range(3):
                writer.add(f"{split_name}{index}", sample(), np.zeros((4, 4), np.uint8), np.ones((4, 4)), "HMA")
    tiles = pool(find_dataset(tmp_path))
    own = TileFile(write_fold(tiles, tiles[:1], tmp_path / "folds" / "fold1").path("train")).statistics
    assert own is not None and own.method == "published" and own.shift["dem"] == mixed.shift["dem"]
    assert own.shift["velocity"] != mixed.shift["velocity"] and own.fitted_on.endswith("5 training tiles of a fold")


def test_links_are_relative_so_that_a_folder_can_move(folder: Path, tiles: list[Tile], tmp_path: Path) -> None:
    home = tmp_path / "tiles"
    shutil.copytree(folder, home / "line")
    moved = pool(find_dataset(home / "line"))
    write_fold(moved, moved[:2], home / "mine-folds" / "fold1")
    home.rename(tmp_path / "elsewhere")
    file = TileFile(tmp_path / "elsewhere" / "mine-folds" / "fold1" / "val.hdf5")
    assert file.names == sorted(tile.name for tile in moved[:2]) and file.info(file.names[0]).height == SIDE


def test_splits_that_do_not_go_together_are_not_pooled(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    statistics = Statistics("standardise", {"optical": (9.0, 0.0)}, {"optical": (1.0, 1.0)}, "a test", applied=True)
    with TileWriter(other / "val.hdf5", TWO_CLASSES, BANDS, statistics) as writer:
        writer.add("t", {"optical": np.ones((4, 4, 2))}, np.ones((4, 4), np.uint8), np.ones((4, 4)))
    with pytest.raises(UserError, match="different scaling"):
        pool(find_dataset(other))
