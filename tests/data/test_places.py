"""Places: blocks by georeference or by row and column, and which tiles share ground."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pyproj import CRS, Transformer
from rasterio import Affine

from console import UserError
from data.places import blocks, overlaps, placed
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
