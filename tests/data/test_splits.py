"""Dividing tiles: every tile once, the same again, nothing that overlaps or belongs together torn apart."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely

from console import UserError
from data.places import Footprints, blocks, overlaps
from data.split_polygons import OUTSIDE, STRADDLES, PolygonLayer
from data.splits import (
    NEAR,
    TILE_WORDS,
    Divided,
    Division,
    described,
    divide,
    keep_empty,
    left_out,
    separation,
)
from data.tiles import TileInfo

SIZE = 10


def grid(rows: int, columns: int, region: str = "HMA", stride: int = SIZE) -> list[TileInfo]:
    return [
        TileInfo(
            f"{region}_{row}_{column}",
            SIZE,
            SIZE,
            region,
            attributes={"scene": "", "scene_row": row * stride, "scene_column": column * stride},
        )
        for row in range(rows)
        for column in range(columns)
    ]


# Three regions side by side, one of them in patches that overlap in pairs: columns 0 and 1, 2 and 3, …
TILES = [
    *grid(6, 6),
    *grid(4, 5, "ALP"),
    *(
        TileInfo(
            f"SC_{column}",
            SIZE,
            SIZE,
            "SC",
            attributes={"scene": "", "scene_row": 0, "scene_column": column * SIZE - 4 * (column % 2)},
        )
        for column in range(8)
    ),
]


def divided(tiles: list[TileInfo], division: Division) -> Divided:
    problems: list[str] = []
    result = divide(tiles, division, problems)
    assert problems == []
    return result


def told(tiles: list[TileInfo], division: Division) -> list[str]:
    problems: list[str] = []
    assert divide(tiles, division, problems).splits == {}
    return problems


DIVISIONS = [
    Division(),
    Division("tiles", 0.3, 0.0),
    Division("blocks", 0.2, 0.2, block_sides=2),
    Division("blocks", test_regions=("ALP",), block_sides=2),
    Division("regions", 0.2, 0.2),
    Division("tiles", val_regions=("SC",), test_regions=("ALP",)),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("division", DIVISIONS, ids=lambda division: f"{division.by}-{division.val}-{division.test}")
def test_every_tile_is_in_one_split_and_what_belongs_together_stays_together(division: Division, seed: int) -> None:
    division = Division(**{**vars(division), "seed": seed})
    result = divided(TILES, division)
    splits = result.splits
    assert list(splits) == (["train", "val"] if division.test == 0 else ["train", "val", "test"])
    assert all(splits.values())
    assert sorted(index for members in splits.values() for index in members) == list(range(len(TILES)))
    assert result == divided(TILES, division)

    split_of = {index: split for split, members in splits.items() for index in members}
    pairs = overlaps(TILES)
    assert len(pairs) == 4 and result.overlapping == 8
    assert all(split_of[one] == split_of[other] for one, other in pairs)
    together: dict[object, set[str]] = defaultdict(set)
    for index, tile in enumerate(TILES):
        if division.by == "regions" or tile.region in (*division.val_regions, *division.test_regions):
            together[tile.region].add(split_of[index])
    if division.by == "blocks":
        free = [index for index, tile in enumerate(TILES) if tile.region not in division.test_regions]
        for index, key in zip(free, blocks([TILES[index] for index in free], sides=2), strict=True):
            together[key].add(split_of[index])
    assert all(len(members) == 1 for members in together.values())
    for split, regions in (("val", division.val_regions), ("test", division.test_regions)):
        if regions:
            assert {TILES[index].region for index in splits[split]} == set(regions)


def test_the_shares_are_those_asked_for() -> None:
    tiles = grid(10, 10)
    splits = divided(tiles, Division(val=0.2, test=0.1)).splits
    assert {split: len(members) for split, members in splits.items()} == {"train": 70, "val": 20, "test": 10}
    few = divided(grid(1, 3), Division(val=0.01, test=0.01)).splits
    assert {split: len(members) for split, members in few.items()} == {"train": 1, "val": 1, "test": 1}
    most = divided(grid(1, 3), Division(val=0.98, test=0.0)).splits
    assert {split: len(members) for split, members in most.items()} == {"train": 1, "val": 2}
    # Shares are of what the named regions leave.
    rest = divided([*tiles, *grid(5, 20, "ALP")], Division(val=0.2, test_regions=("ALP",))).splits
    assert len(rest["val"]) == 20


def test_another_seed_draws_other_tiles() -> None:
    assert len({tuple(divided(TILES, Division(seed=seed)).splits["val"]) for seed in range(5)}) == 5


def test_patches_that_overlap_in_a_chain_are_one_group() -> None:
    (problem,) = told(grid(4, 4, stride=SIZE // 2), Division())
    assert "test, val, train need 3 groups of images that do not overlap" in problem
    assert "the 16 images have 1, the largest with HMA_0_0, HMA_0_1, HMA_0_2, …" in problem
    assert "cut them without overlap" in problem
    chains = [tile for region in ("A", "B", "C") for tile in grid(2, 4, region, SIZE - 1)]
    splits = divided(chains, Division("blocks", block_sides=1)).splits
    assert sorted({chains[index].region for index in members}.pop() for members in splits.values()) == ["A", "B", "C"]
    assert all(len(members) == 8 for members in splits.values())


def test_named_regions_that_overlap_are_told_with_their_images() -> None:
    wkt = "EPSG:32643"
    tiles = [
        TileInfo(name, SIZE, SIZE, region, crs=wkt, transform=(30.0, 0.0, x, 0.0, -30.0, 4e6))
        for name, region, x in (("a", "ALP", 0.0), ("b", "HMA", 299.0), ("c", "HMA", 600.0), ("d", "SC", 9000.0))
    ]
    (problem,) = told(tiles, Division(test_regions=("ALP",), val_regions=("SC",)))
    assert "image a (ALP) and image b (HMA) overlap" in problem
    splits = divided([*tiles, *grid(1, 2, "NZ")], Division(test_regions=("ALP", "HMA"), val_regions=("SC",))).splits
    assert splits == {"train": [4, 5], "val": [3], "test": [0, 1, 2]}


def test_what_can_not_be_divided_is_told() -> None:
    tiles = grid(3, 3)
    (problem,) = told(tiles, Division("regions"))
    assert "test, val, train need 3 regions" in problem and "the 9 images have 1" in problem
    (problem,) = told(tiles, Division("blocks"))
    assert "need 3 blocks" in problem and "make --block-sides smaller" in problem and "overlap" not in problem
    assert len(told(tiles, Division(val_regions=("XX",), test_regions=("YY", "HMA")))) == 2
    (problem,) = told(tiles, Division(test_regions=("HMA",)))
    assert "no image is left to train on" in problem
    nowhere = [TileInfo(f"t{k}", SIZE, SIZE, "HMA") for k in range(12)]
    (problem,) = told([*tiles, *nowhere], Division("blocks"))
    assert "t0, t1" in problem and "and 2 more have none" in problem
    assert divided([*tiles, *nowhere], Division()).unplaced == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 0.0}, "--val-fraction .* between 0 and 1"),
        ({"val": 1.0}, "--val-fraction .* between 0 and 1"),
        ({"test": -0.1}, "--test-fraction"),
        ({"val": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"val_regions": ("A", "B"), "test_regions": ("B",)}, "both name B"),
        ({"block_sides": 0.0}, "--block-sides"),
    ],
)
def test_impossible_divisions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Division(**options)  # type: ignore[arg-type]


def on_earth(rows: int, columns: int, region: str = "HMA", x: float = 5e5, crs: str = "EPSG:32643") -> list[TileInfo]:
    """Tiles of 300 m side by side; a subregion is two columns wide."""
    return [
        TileInfo(
            f"{region}_{row}_{column}",
            SIZE,
            SIZE,
            region,
            str(column // 2),
            crs,
            (30.0, 0.0, x + 300 * column, 0.0, -30.0, 4e6 - 300 * row),
        )
        for row in range(rows)
        for column in range(columns)
    ]


EARTH = [*on_earth(4, 10), *on_earth(4, 6, "ALP", 6e5)]


@pytest.mark.parametrize("seed", range(3))
def test_subregions_stay_together_and_can_be_named(seed: int) -> None:
    keys = [(tile.region, tile.subregion) for tile in EARTH]
    for options, fixed in (
        ({}, {}),
        (
            {"val_subregions": ("4",), "test_subregions": ("ALP/1", "HMA/0")},
            {("HMA", "4"): "val", ("ALP", "1"): "test"},
        ),
        ({"test_subregions": ("HMA/2",), "test_regions": ("ALP",)}, {("HMA", "2"): "test", ("ALP", "0"): "test"}),
    ):
        result = divided(EARTH, Division("subregions", 0.3, 0.2, seed=seed, **options))
        split_of = {index: split for split, members in result.splits.items() for index in members}
        assert sorted(split_of) == list(range(len(EARTH)))
        together: dict[object, set[str]] = defaultdict(set)
        for index, key in enumerate(keys):
            together[key].add(split_of[index])
        assert all(len(splits) == 1 for splits in together.values())
        assert all(together[key] == {split} for key, split in fixed.items())
    assert len({tuple(divided(EARTH, Division("subregions", seed=s)).splits["val"]) for s in range(8)}) > 3


def test_subregions_that_are_not_there_or_not_clear_are_told() -> None:
    (problem,) = told(EARTH, Division("subregions", val_subregions=("9",)))
    assert "--val-subregions 9: no such subregion; there are ALP/0 ALP/1 ALP/2 HMA/0" in problem
    (problem,) = told(EARTH, Division("subregions", test_subregions=("0",)))
    assert "--test-subregions 0: several regions have one; write ALP/0 or HMA/0" in problem
    (problem,) = told(EARTH, Division(val_regions=("ALP",), test_subregions=("ALP/0",)))
    assert "ALP/0 named for val as a region and for test as a subregion" in problem
    (problem,) = told([*EARTH, TileInfo("plain", SIZE, SIZE, "HMA")], Division("subregions"))
    assert "--split-by subregions needs the subregion of every image: plain have none" in problem
    (problem,) = told(on_earth(3, 2), Division("subregions"))
    assert "need 3 subregions" in problem and "have 1" in problem
    with pytest.raises(UserError, match="--val-subregions and --test-subregions both name 1"):
        Division(val_subregions=("1",), test_subregions=("1",))


def polygons(path: Path, *areas: tuple[float, float, str]) -> PolygonLayer:
    """Write polygons from one column of tiles to another, and four rows high."""
    shapes = [shapely.box(5e5 + 300 * west, 4e6 - 1200, 5e5 + 300 * east, 4e6) for west, east, _ in areas]
    frame = geopandas.GeoDataFrame({"split": [split for *_, split in areas]}, geometry=shapes, crs=32643)
    frame.to_file(path)
    return PolygonLayer(path)


def test_polygons_say_the_split_and_what_they_leave_out_is_told(tmp_path: Path) -> None:
    tiles = on_earth(4, 10)
    layer = polygons(tmp_path / "a.gpkg", (0, 4, "train"), (4, 6.5, "val"), (6.5, 9, "test"))
    division = Division("polygons", polygons=layer, words=TILE_WORDS)
    result = divided(tiles, division)
    columns = {key: {index % 10 for index in indices} for key, indices in (result.splits | result.left_out).items()}
    assert columns == {"train": {0, 1, 2, 3}, "val": {4, 5}, "test": {7, 8}, STRADDLES: {6}, OUTSIDE: {9}}
    lines = left_out(tiles, division, result)
    assert any(
        "4 tiles are left out" in line and "polygons of different splits: HMA_0_6, HMA_1_6" in line for line in lines
    )
    assert any("4 tiles are left out" in line and "in no polygon: HMA_0_9" in line for line in lines)
    stored = json.loads(json.dumps(described(division, result)))
    assert stored["polygons"]["path"] == str(layer.path) and stored["left_out"] == {OUTSIDE: 4, STRADDLES: 4}

    two = polygons(tmp_path / "b.gpkg", (0, 5, "train"), (5, 10, "val"))
    assert list(divided(tiles, Division("polygons", polygons=two)).splits) == ["train", "val"]
    (problem,) = told(tiles, Division("polygons", polygons=polygons(tmp_path / "c.gpkg", (0, 9, "val"))))
    assert "no image is left for train: draw the polygons around whole tiles; 4 images are left out" in problem
    (problem,) = told(tiles, Division("polygons", polygons=PolygonLayer(tmp_path / "none.gpkg")))
    assert "none.gpkg: no such file" in problem
    (problem,) = told([*tiles, *grid(1, 1)], Division("polygons", polygons=layer))
    assert "needs the place on earth of every image: HMA_0_0 have none" in problem


def test_tiles_that_overlap_where_no_polygon_is_are_told(tmp_path: Path) -> None:
    tiles = on_earth(1, 3) + [
        TileInfo(f"x{k}", SIZE, SIZE, "HMA", crs="EPSG:32643", transform=(30.0, 0.0, x, 0.0, -30.0, 4e6))
        for k, x in enumerate((5e5 + 1200, 5e5 + 1470))
    ]
    layer = polygons(tmp_path / "a.gpkg", (0, 4.8, "train"), (5, 9, "val"))
    (problem,) = told(tiles, Division("polygons", polygons=layer))
    assert "image x0 (HMA) and image x1 (HMA) overlap, but the polygons of" in problem
    assert divided(tiles, Division("polygons", polygons=layer, gap_m=1.0)).left_out == {NEAR: [3]}


@pytest.mark.parametrize("gap_m", [1.0, 300.5, 650.0])
@pytest.mark.parametrize("by", ["tiles", "blocks", "subregions"])
def test_a_gap_keeps_splits_apart_and_leaves_out_no_more_than_that(by: str, gap_m: float) -> None:
    tiles = on_earth(20, 20)
    seed = 3
    plain = divided(tiles, Division(by, 0.04, 0.04, seed=seed))  # type: ignore[arg-type]
    division = Division(by, 0.04, 0.04, seed=seed, gap_m=gap_m)  # type: ignore[arg-type]
    result = divided(tiles, division)
    near = result.left_out[NEAR]
    members = sorted([*near, *(index for split in result.splits.values() for index in split)])
    assert members == list(range(len(tiles)))
    assert result.splits["test"] == plain.splits["test"], "the test split is kept whole"
    for item in separation(tiles, result.splits).between:
        assert item.distance_m is not None and item.distance_m >= gap_m and not item.pairs
    footprints = Footprints(tiles)
    for index in near:
        others = [*result.splits["test"], *(result.splits["val"] if index in plain.splits["train"] else [])]
        assert footprints.nearer([index], others, gap_m), "each tile that was left out was too near"
    assert left_out(tiles, division, result)[0].startswith(f"{len(near)} images are left out, because they are nearer")


def test_a_gap_that_leaves_nothing_or_can_not_be_measured_is_told() -> None:
    (problem,) = told(on_earth(3, 3), Division(gap_m=5000.0))
    assert "no image is left for train, val: make the gap smaller; 8 images are left out" in problem
    (problem,) = told(grid(6, 6), Division(gap_m=100.0))
    assert "--gap-m 100 needs the place on earth of every image" in problem and "and 26 more have none" in problem
    for gap_m in (-1.0, float("nan")):
        with pytest.raises(UserError, match="--gap-m takes metres"):
            Division(gap_m=gap_m)


def test_messages_call_tiles_and_options_what_the_user_does() -> None:
    with pytest.raises(UserError, match=r"split\.val is a share of the tiles between 0 and 1, got 2"):
        Division(val=2.0, words=TILE_WORDS)
    for division in (Division("regions", words=TILE_WORDS), Division("blocks", words=TILE_WORDS)):
        for tiles in (grid(3, 3), [TileInfo(f"t{k}", SIZE, SIZE, "HMA") for k in range(12)]):
            for problem in told(tiles, division):
                assert "image" not in problem and "--" not in problem and "tile" in problem
    (problem,) = told(grid(3, 3), Division("regions", words=TILE_WORDS))
    assert problem.endswith("the 9 tiles have 1, the largest with HMA_0_0, HMA_0_1, HMA_0_2, …: divide with "
                            "split.by: blocks or tiles")  # fmt: skip


def test_polygons_come_with_their_layer_and_without_names() -> None:
    with pytest.raises(UserError, match="--split-polygons names the layer of --split-by polygons: give both"):
        Division("polygons")
    with pytest.raises(UserError, match="give both or neither"):
        Division("tiles", polygons=PolygonLayer(Path("a.gpkg")))
    with pytest.raises(UserError, match="leave out the names of regions and subregions, received ALP"):
        Division("polygons", test_regions=("ALP",), polygons=PolygonLayer(Path("a.gpkg")))


# How far apart splits are


def test_separation_tells_what_touches_what_is_near_and_how_far_the_rest_is() -> None:
    tiles = [*on_earth(3, 10), *on_earth(1, 2, "ALP", 5e5, "EPSG:32644"), *grid(1, 2, "SC")]
    columns = {name: [index for index in range(30) if index % 10 in chosen] for name, chosen in (
        ("train", (0, 1, 2)), ("val", (3, 6)), ("test", (8,)),
    )}  # fmt: skip
    found = separation(tiles, {**columns, "far": [30, 31], "nowhere": [32, 33]}, near_m=301.0)
    by_pair = {item.splits: item for item in found.between}
    assert len(by_pair) == 10 and found.unplaced == 2
    # Column 2 and column 3 share their edges and, diagonally, their corners; 6 and 8 have a tile between them.
    assert by_pair["train", "val"].distance_m == 0 and by_pair["train", "val"].touching == 7
    near = by_pair["val", "test"]
    assert near.distance_m == pytest.approx(300, rel=1e-3) and near.touching == 0 and len(near.pairs) == 3 + 4
    assert by_pair["train", "test"].distance_m == pytest.approx(1500, rel=1e-3)
    assert by_pair["train", "nowhere"].distance_m is None
    lines = found.lines()
    assert str(found) == "\n".join(lines) and len(lines) == 11
    assert lines[0] == (
        "train–val: 0 m, 7 pairs of tiles touch and 9 more are nearer than 301 m: HMA_0_2, HMA_0_3; HMA_0_2, HMA_1_3; "
        "HMA_1_2, HMA_0_3; HMA_1_2, HMA_1_3; HMA_1_2, HMA_2_3; …"
    )
    assert lines[1] == "train–test: 1.5 km"
    assert any(
        line.startswith("val–test: 300 m, 7 pairs of tiles are nearer than 301 m: HMA_0_6, HMA_0_8; ") for line in lines
    )
    assert any(line.startswith("train–far: 5") and line.endswith(" km") for line in lines)
    assert "train–nowhere: not known" in lines
    assert lines[-1] == "2 tiles have no place on earth: how far from others is not known"


# Tiles without glacier


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])
def test_empty_tiles_are_at_most_their_share_and_as_many_as_that_allows(share: float) -> None:
    for seed, (full, empty) in enumerate([(9, 40), (0, 5), (7, 0), (30, 2), (1, 1), (0, 0)]):
        pixels = np.random.default_rng(seed).permutation([*range(1, full + 1), *[0] * empty]).tolist()
        kept = keep_empty(pixels, share, seed)
        assert kept == sorted(set(kept)) == keep_empty(pixels, share, seed)
        assert {index for index, count in enumerate(pixels) if count} <= set(kept)
        drawn = len(kept) - full
        assert drawn <= share * len(kept) + 1e-9
        assert drawn == empty or drawn + 1 > share * (len(kept) + 1) - 1e-9
    assert len(keep_empty([1] * 3 + [0] * 9, 0.7, 0)) == 10, "7 of 10, whatever binary fractions make of it"


def test_which_empty_tiles_are_kept_is_up_to_seed_and_name_alone() -> None:
    names = [f"t{k}" for k in range(40)]
    pixels = [k % 4 == 0 for k in range(40)]
    kept = {names[index] for index in keep_empty(pixels, 0.5, 1, names)}
    assert len(kept) == 20
    order = np.random.default_rng(0).permutation(40)
    again = keep_empty([pixels[k] for k in order], 0.5, 1, [names[k] for k in order])
    assert {names[order[index]] for index in again} == kept
    # More tiles with glacier let more of the others in, and push none out.
    more = keep_empty([*pixels, 5, 5], 0.5, 1, [*names, "a", "b"])
    assert {([*names, "a", "b"])[index] for index in more} > kept
    assert len({tuple(keep_empty(pixels, 0.5, seed, names)) for seed in range(5)}) == 5
    drawn = np.bincount(np.concatenate([keep_empty(pixels, 0.5, seed) for seed in range(300)]), minlength=40)
    assert all(60 < drawn[k] < 140 for k in range(40) if not pixels[k]), "each as often as another"
    with pytest.raises(UserError, match="from 0 to 1, got 1.5"):
        keep_empty(pixels, 1.5, 0)
