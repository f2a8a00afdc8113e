"""`benchmarks.mosaic`: tiles become one scene where they lie, and what it says of a map is so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import rasterio
from pyproj import CRS

import predict
from benchmarks import mosaic
from console import UserError
from data.normalisation import Statistics
from data.tiles import IGNORE, TWO_CLASSES, TileFile, TileWriter
from data.windows import Window
from training.record import Best, ClassRecord, Modality, Record, save_record, weights_path

BANDS = ("red", "green", "swir1")
SIZE, PATCH = 64, 32
PLACES = {"a": (0, 0), "b": (64, 64), "c": (0, 128)}  # rows and columns in the scene
UTM = CRS.from_epsg(32643).to_wkt()


def write_dataset(folder: Path, places: Mapping[str, tuple[float, float]], pixel: float = 30.0) -> Path:
    """Write test tiles of noise, bright where there is glacier, whose first four rows were not seen."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    statistics = Statistics("standardise", {"optical": (0.5,) * 3}, {"optical": (0.3,) * 3}, "test")
    path = folder / "test.hdf5"
    with TileWriter(path, TWO_CLASSES, {"optical": list(BANDS)}, statistics, {"kind": "test"}, "pytest") as writer:
        for name, (row, column) in places.items():
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[20:50, 10:40] = 1
            values = (0.6 * mask[..., None] + 0.3 * random.random((SIZE, SIZE, 3))).astype(np.float32)
            valid = np.ones((SIZE, SIZE), bool)
            valid[:4] = False
            values[~valid] = np.nan
            transform = (pixel, 0.0, 500_000 + 30.0 * column, 0.0, -pixel, 3_900_000 - 30.0 * row)
            writer.add(name, {"optical": values}, mask, valid, "HMA", crs=UTM, transform=transform)
    return path


@pytest.fixture
def here(tmp_path: Path, mini: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dataset of three tiles and the run `r`."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "tiles" / "noise", PLACES)
    keras.utils.set_random_seed(3)
    model = mini({"optical": 3}, 2, PATCH)
    weights_path("r").parent.mkdir()
    model.save_weights(weights_path("r"))
    save_record(
        Record(
            name="r",
            architecture="mini",
            options={},
            modalities=(Modality(name="optical", channels=3, bands=BANDS),),
            classes=tuple(ClassRecord(name=c.name, glacier=c.glacier, color=c.color) for c in TWO_CLASSES),
            outputs="softmax",
            patch_size=PATCH,
            statistics=Statistics("standardise", {"optical": (0.5,) * 3}, {"optical": (0.3,) * 3}, "test").to_json(),
            regions=(),
            location="none",
            dataset={"name": "noise", "folder": "tiles/noise", "files": {}},
            recipe={},
            command="pytest",
            versions={},
            backend=keras.backend.backend(),
            precision="float32",
            seed=0,
            parameters=0,
            best=Best(epoch=1, monitor="iou", score=0.0),
            epochs=1,
            stopped="finished",
            written="",
        )
    )
    monkeypatch.setattr(mosaic, "run", lambda script, *arguments: predict.main(list(arguments)))
    return tmp_path


def test_tiles_become_a_map(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mosaic.main(["-n", "r", "--folder", "scene", "--picture", "map.png"])
    out = capsys.readouterr().out
    assert "the 12,288 pixels of the gaps and 768 invalid ones" in out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    # 3 tiles of 64×64 pixels less 4 rows each.
    assert [row[2] for row in rows if row[0] in ("scene", "tiles, one by one") and row[1] == "valid"] == ["11,520"] * 2
    assert [row[2] for row in rows if row[1] == "all"] == ["12,288"] * 2
    reference = float(next(row[1] for row in rows if row[0].startswith("reference")))
    # 2,700 pixels of 900 m², on the ellipsoid some 0.08 % larger: UTM shrinks lengths by 0.9996 on its meridian.
    assert reference == pytest.approx(2.4, abs=0.1)
    by_tile = {row[0]: row for row in rows if row[0] in PLACES}
    assert list(by_tile) == list(PLACES) and {row[1] for row in by_tile.values()} == {"94%"}
    assert sum(float(row[3]) for row in by_tile.values()) == pytest.approx(reference, abs=0.2)
    with rasterio.open("scene/optical.tif") as dataset:
        assert dataset.descriptions == BANDS and dataset.transform[:6] == (30, 0, 500_000, 0, -30, 3_900_000)
        values = dataset.read()
    with TileFile("tiles/noise/test.hdf5") as file:
        np.testing.assert_array_equal(
            values[:, 64:, 64:128], np.moveaxis(file.read("b", ["optical"])["optical"], -1, 0)
        )
    assert np.isnan(values[:, :64, 64:128]).all()
    with rasterio.open("map.png") as picture:
        assert picture.width == 1200


def test_what_is_wrong_with_a_map_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mosaic.main(["-n", "r", "--folder", "scene"])
    with TileFile("tiles/noise/test.hdf5") as file:
        mapped = mosaic.read_mapped(file, mosaic.place(file, file.names), "r", Path("predictions/r/test-mosaic"))
    assert len(mosaic.check(mapped)) == 4
    in_gap = mapped.labels.copy()
    in_gap[10, 70] = 1
    with pytest.raises(UserError, match=r"labels\.tif: 1 pixels"):
        mosaic.check(replace(mapped, labels=in_gap))
    confidence = mapped.confidence.copy()
    confidence[30, 30] = np.nan
    with pytest.raises(UserError, match=r"confidence\.tif: 1 pixels"):
        mosaic.check(replace(mapped, confidence=confidence))
    with pytest.raises(UserError, match="outlines lie where nothing was seen"):
        mosaic.check(replace(mapped, outlines=mapped.outlines.translate(0, 30 * 30).to_frame("geometry")))
    other = mapped.labels.copy()
    other[75:120, 75:120] = 1 - other[75:120, 75:120]
    # Windows of the scene that reach across a tile's edge are none of the tile's: 16 pixels along inner edges are left
    # out, which leaves 44 × 48 of each outer tile that were seen, 48 × 32 of the middle one, and 40 × 32 of the square.
    with pytest.raises(UserError, match="1,280 of 5,760 labels differ"):
        mosaic.check(replace(mapped, labels=other))


def test_same_windows() -> None:
    """A tile whose neighbours abut has windows of its own where the scene's reach across its edge."""
    grid = mosaic.Grid(UTM, (30.0, 0.0, 5e5, 0.0, -30.0, 3.9e6), 64, 128)
    layout = mosaic.Layout(grid, {"a": Window(0, 0, 64, 64), "b": Window(0, 64, 64, 64)})
    empty: Any = np.zeros((64, 128))
    mapped = mosaic.Mapped(layout, empty, empty, empty, empty, empty, empty, {}, (1,), 2, False, PATCH, PATCH // 2)
    # The window from column 48 to 80 lies in both tiles; all others in one.
    expected = np.ones((64, 128), bool)
    expected[:, 48:80] = False
    np.testing.assert_array_equal(mapped.same_windows(), expected)
    # With windows side by side, none reaches across.
    assert replace(mapped, stride=PATCH).same_windows().all()


def test_invalid_pixels_are_background_where_all_count() -> None:
    grid = mosaic.Grid(UTM, (30.0, 0.0, 5e5, 0.0, -30.0, 3.9e6), 1, 4)
    row: Any = np.array([[1, 1, 0, IGNORE]], np.uint8)
    seen = np.array([[True, False, True, False]])
    layout = mosaic.Layout(grid, {"a": Window(0, 0, 1, 3)})
    mapped = mosaic.Mapped(layout, row, row, row, seen, row, row, {}, (1,), 2, False, 1, 1)
    assert mapped.counts(row, everything=False) == mosaic.Counts(tp=1, fp=0, fn=0, tn=1)
    assert mapped.counts(row, everything=True) == mosaic.Counts(tp=1, fp=0, fn=1, tn=1)


@pytest.mark.parametrize(
    ("places", "pixel", "says"),
    [
        ({"a": (0, 0), "b": (0, 64.5)}, 30.0, "lie on different grids"),
        ({"a": (0, 0), "b": (0, 60)}, 30.0, "tiles overlap"),
    ],
)
def test_tiles_that_are_no_scene(
    tmp_path: Path, places: Mapping[str, tuple[float, float]], pixel: float, says: str
) -> None:
    with TileFile(write_dataset(tmp_path / "d", places, pixel)) as file, pytest.raises(UserError, match=says):
        mosaic.place(file, file.names)


def test_tiles_without_a_place(tmp_path: Path, write_tiles: Callable[..., Path]) -> None:
    with TileFile(write_tiles(tmp_path / "t.hdf5")) as file, pytest.raises(UserError, match="no place on earth"):
        mosaic.place(file, file.names)
