"""Places: blocks by georeference or by row and column, which tiles share ground, and how far others are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pyproj import CRS, Geod, Transformer
from rasterio import Affine

from console import UserError
from data.places import Footprints, blocks, outline, overlaps, placed
from data.tiles import TileInfo

ZONE_43 = CRS.from_epsg(32643).to_wkt()


def on_earth(name: str, transform: Affine, size: tuple[int, int] = (10, 10), crs: str | None = ZONE_43) -> TileInfo:
    return TileInfo(name, *size, "HMA", crs=crs, transform=tuple(transform)[:6])


def in_scene(row: int, column: int, size: tuple[int, int] = (10, 10), region: str = "HMA", scene: str = "") -> TileInfo:
    place = {"scene": scene, "scene_row": row, "scene_column": column}
    return TileInfo(f"{region}{scene}_{row}_{column}", *size, region, attributes=place)


def rectangles(count: int, seed: int) -> list[tuple[int, int, int, int]]:
    """Draw rows, columns, heights and widths of rectangles, many of which touch and some of which overlap."""
    rng = np.random.default_rng(seed)
    corners, sizes = rng.integers(0, 12, (count, 2)) * 5, rng.integers(1, 4, (count, 2)) * 5
    return [(int(r), int(c), int(h), int(w)) for (r, c), (h, w) in zip(corners, sizes, strict=True)]


def sharing(areas: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    """Return the pairs of rectangles that have a pixel in common, by their sets of pixels."""
    pixels = [set(itertools.product(range(r, r + h), range(c, c + w))) for r, c, h, w in areas]
    return [(i, j) for i, j in itertools.combinations(range(len(areas)), 2) if pixels[i] & pixels[j]]


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_are_the_tiles_that_have_a_pixel_in_common(seed: int) -> None:
    areas = rectangles(40, seed)
    expected = sharing(areas)
    assert 0 < len(expected) < 40 * 39 / 4
    assert overlaps([in_scene(r, c, (h, w)) for r, c, h, w in areas]) == expected
    for grid in (
        Affine(30, 0, 500_015, 0, -30, 3_700_005),
        Affine(30.1, 0, 0.3, 0, 29.9, 7),
        Affine.translation(5e5, 4e6) @ Affine.rotation(33) @ Affine.scale(10.0, -10.0),
    ):
        tiles = [on_earth(str(k), grid @ Affine.translation(c, r), (h, w)) for k, (r, c, h, w) in enumerate(areas)]
        assert overlaps(tiles) == expected


def test_scenes_regions_and_what_has_no_place_do_not_overlap() -> None:
    tiles = [
        in_scene(0, 0),
        in_scene(0, 0, region="ALP"),
        in_scene(0, 0, scene="2013"),
        on_earth("e", Affine(1, 0, 0, 0, -1, 10)),
        TileInfo("nowhere", 10, 10, "HMA"),
        in_scene(9, 9),
    ]
    assert overlaps(tiles) == [(0, 5)]
    assert [placed(tile) for tile in tiles] == [True, True, True, True, False, True]


def test_overlaps_are_found_across_coordinate_systems() -> None:
    here = on_earth("zone 43", Affine(30, 0, 780_000, 0, -30, 3_700_000), (100, 100))
    x, y = Transformer.from_crs(32643, 32644, always_xy=True).transform(780_000, 3_700_000)
    other = CRS.from_epsg(32644).to_wkt()
    tiles = [here] + [
        on_earth(f"zone 44, {shift} m away", Affine(30, 0, x + shift, 0, -30, y), (100, 100), other)
        for shift in (0, 1500, 3500, -3500)
    ]
    assert overlaps(tiles) == [(0, 1), (0, 2), (1, 2), (2, 3)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_blocks_of_one_tiles_side_have_a_tile_each(count: int) -> None:
    origin = Affine.translation(437_210.0, 3_911_470.0) @ Affine.scale(30, -30)
    tiles = [
        on_earth(f"{row} {column}", origin @ Affine.translation(10 * column, 10 * row))
        for row in range(count)
        for column in range(count)
    ]
    assert len(set(blocks(tiles, sides=1))) == count**2
    assert len(set(blocks(tiles, sides=2))) == (-(-count // 2)) ** 2


def test_blocks_in_a_scene_are_squares_of_pixels() -> None:
    tiles = [in_scene(row * 10, column * 10) for row in range(8) for column in range(8)]
    keys = blocks(tiles)
    assert len(set(keys)) == 4
    for tile, key in zip(tiles, keys, strict=True):
        row, column = tile.attributes["scene_row"], tile.attributes["scene_column"]
        assert key == keys[8 * (row // 40 * 4) + column // 40 * 4]
    assert len(set(blocks(tiles, sides=2))) == 16
    assert len(set(blocks([*tiles, in_scene(0, 0, region="ALP"), in_scene(0, 0, scene="b")]))) == 6


def test_places_by_row_and_column_have_no_metres() -> None:
    with pytest.raises(UserError, match=r"--block-m: tile 'HMA_0_0' is placed by its row and column"):
        blocks([in_scene(0, 0)], 1000.0)


def geodesic_m(one: TileInfo, other: TileInfo) -> float:
    """Return the smallest geodesic between points close together along the edges of two tiles."""
    places = []
    for tile in (one, other):
        assert tile.crs and tile.transform
        step, flat = np.linspace(0, 1, 150), np.ones(150)
        columns = np.concatenate([step, flat, step, 0 * flat]) * tile.width
        rows = np.concatenate([0 * flat, step, flat, step]) * tile.height
        places.append(
            Transformer.from_crs(tile.crs, 4326, always_xy=True).transform(*(Affine(*tile.transform) @ (columns, rows)))
        )
    first, second = (index.ravel() for index in np.indices((600, 600)))
    (x, y), (to_x, to_y) = places
    return float(Geod(ellps="WGS84").inv(x[first], y[first], to_x[second], to_y[second])[2].min())


def square(crs: int, x: float, y: float, pixel: float = 10.0, size: int = 500) -> TileInfo:
    wkt = CRS.from_epsg(crs).to_wkt()
    return on_earth(f"{crs} {x:g} {y:g}", Affine(pixel, 0, x, 0, -pixel, y), (size, size), wkt)


@pytest.mark.parametrize(
    ("one", "other", "tolerance"),
    [
        (square(32643, 5e5, 4e6), square(32643, 506_000, 4e6), 1e-4),
        (square(32643, 5e5, 4e6), square(32643, 506_000, 4_007_000), 1e-4),
        (square(32643, 780_000, 3.7e6), square(32644, 240_000, 3.7e6), 1e-4),
        (square(32601, 420_000, 7.5e6), square(32660, 560_000, 7.5e6), 1e-4),  # across 180°
        (square(4326, 179.8, 70, 4e-4), square(4326, -179.9, 70.3, 4e-4), 1e-3),
        (square(3413, -2000, 3000), square(32643, 5e5, 9_900_000), 1e-4),  # by the pole
        (square(3857, 1e6, 9e6), square(3857, 1_005_500, 9e6), 1e-3),  # whose metres are 2 to 1 here
        (square(32643, 5e5, 4e6), square(32632, 5e5, 5e6), 1e-3),
        (square(32643, 5e5, 4e6), square(32719, 5e5, 4.5e6), 5e-3),  # another continent
    ],
    ids=lambda value: value.name if isinstance(value, TileInfo) else "",
)
def test_distances_are_geodesics_in_any_coordinate_system(one: TileInfo, other: TileInfo, tolerance: float) -> None:
    expected = geodesic_m(one, other)
    (first, second, metres) = Footprints([one, other]).nearest([0], [1]) or (0, 0, 0.0)
    assert (first, second) == (0, 1)
    # The reference has a point every 34 m: it is a little long, never short.
    assert metres == pytest.approx(expected, rel=tolerance, abs=0.5)
    assert expected > 10


@pytest.mark.parametrize(
    "grid",
    [
        Affine(30, 0, 500_000.3, 0, -30, 3_700_000.7),
        Affine.translation(7e5, 4e6) @ Affine.rotation(20) @ Affine.scale(10.0, -10.0),
        Affine(30, 0, 3e5, 0, -30, 8_900_000),
    ],
)
def test_tiles_that_share_an_edge_a_corner_or_ground_touch(grid: Affine) -> None:
    areas = [tuple(100 * value for value in area) for area in rectangles(40, 3)]
    tiles = [on_earth(str(k), grid @ Affine.translation(c, r), (h, w)) for k, (r, c, h, w) in enumerate(areas)]
    touching = {
        (i, j)
        for (i, (r, c, h, w)), (j, (row, column, height, width)) in itertools.permutations(enumerate(areas), 2)
        if r <= row + height and row <= r + h and c <= column + width and column <= c + w
    }
    everything = range(len(tiles))
    footprints = Footprints(tiles)
    found = footprints.nearer(everything, everything, 0.0)
    assert {(one, other) for one, other, _ in found} == touching and {metres for *_, metres in found} == {0.0}
    # A pixel between two tiles is told, and lies on the ground as it does on the grid.
    apart = [tiles[0], on_earth("b", grid @ Affine.translation(areas[0][1] + areas[0][3] + 1, areas[0][0]), (9, 9))]
    ((_, _, metres),) = Footprints(apart).nearer([0], [1], 100.0)
    assert metres == pytest.approx(np.hypot(grid.a, grid.d), rel=2e-3)


def test_tiles_along_a_parallel_touch_though_it_is_curved() -> None:
    big = square(4326, 20.0, 75.0, 0.002)  # 1° of longitude: its northern edge bends by 30 m
    small = [square(4326, 20.0 + k / 8, latitude, 0.00025) for k in range(8) for latitude in (75.125, 74.0)]
    found = Footprints([big, *small]).nearer([0], range(1, 17), 0.0)
    assert [other for _, other, _ in found] == list(range(1, 17))


def test_nearer_is_every_pair_below_the_distance_and_nearest_the_first_of_them() -> None:
    rng = np.random.default_rng(0)
    tiles = [
        square(int(crs), float(x), float(y), size=int(size))
        for crs, x, y, size in zip(
            rng.choice([32643, 32644], 30), rng.uniform(2e5, 8e5, 30), rng.uniform(4e6, 4.1e6, 30),
            rng.integers(50, 2000, 30), strict=True,
        )
    ]  # fmt: skip
    footprints = Footprints(tiles)
    ones, others = range(0, 15), range(15, 30)
    every = {(i, j): (footprints.nearest([i], [j]) or (0, 0, 0.0))[2] for i in ones for j in others}
    for limit in (0.0, 20_000.0, 100_000.0):
        expected = [(*pair, metres) for pair, metres in every.items() if metres == 0 or metres < limit]
        assert footprints.nearer(ones, others, limit) == sorted(expected)
    assert (footprints.nearest(ones, others) or (0, 0, 0.0))[2] == min(every.values())
    assert footprints.nearer([3], [3], 1e9) == [], "a tile is no pair with itself"


def test_degrees_are_a_place_and_what_has_none_is_in_no_pair() -> None:
    degrees = {"xmin": 10.0, "xmax": 10.1, "ymin": 46.0, "ymax": 46.1}
    tiles = [
        TileInfo("published", 10, 10, "ALP", attributes=degrees),
        TileInfo("beside it", 10, 10, "ALP", attributes={**degrees, "xmin": 10.1, "xmax": 10.2}),
        in_scene(0, 0),
        TileInfo("nowhere", 10, 10),
        square(32643, 1e30, 1e30),
    ]
    footprints = Footprints(tiles)
    assert footprints.unplaced == [2, 3, 4]
    assert footprints.nearer([0, 2], [1, 3, 4], 1e9) == [(0, 1, 0.0)]
    assert footprints.nearest([2], [0]) is None and footprints.nearer([], [0], 1.0) == []
    assert outline(tiles[2]) is None
    assert Footprints([]).unplaced == []
