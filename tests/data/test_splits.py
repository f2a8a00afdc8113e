"""Dividing tiles: every tile once, the same again, nothing that overlaps or belongs together torn apart."""

from __future__ import annotations

from collections import defaultdict

import pytest

from console import UserError
from data.places import blocks, overlaps
from data.splits import Divided, Division, divide
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
