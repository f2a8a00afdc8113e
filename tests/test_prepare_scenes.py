"""`prepare.py scenes` as a user runs it: one command for real data, and one message for what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import yaml
from shapely.geometry import LineString, box

import prepare
from console import UserError
from data.tiles import TileFile, find_dataset

WriteRaster = Callable[..., Path]
SCRIPT = Path(prepare.__file__)
CRS = "EPSG:32645"
PLACE = (30.0, 0.0, 500_000.0, 0.0, -30.0, 3_100_000.0)
GLACIER = box(500_600, 3_097_900, 502_400, 3_099_400)
FLAGS = ["--region", "HMA", "--tile-size", "32", "--set", "split.by=tiles"]


@pytest.fixture
def here(tmp_path: Path, write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a scene of 100×140 pixels, its DEM and outlines."""
    numbers = np.random.default_rng(0).integers(1, 9000, (100, 140, 3)).astype(np.uint16)
    write_raster(tmp_path / "optical.tif", numbers, CRS, PLACE, nodata=0, descriptions=("green", "red", "swir1"))
    write_raster(
        tmp_path / "dem.tif", numbers[::2, ::2, 0].astype(np.float32), CRS, (60, 0, *PLACE[2:4], -60, PLACE[5])
    )
    write_outlines(tmp_path / "rgi.gpkg", GLACIER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_outlines(path: Path, *shapes: Any, crs: str | None = CRS) -> Path:
    geopandas.GeoDataFrame(geometry=list(shapes), crs=crs).to_file(path)
    return path


def run(*arguments: str, optical: str = "optical.tif", outlines: str = "rgi.gpkg", name: str = "hunza") -> None:
    prepare.main(["scenes", name, "--optical", optical, "--outlines", outlines, *FLAGS, *arguments])


def left_behind(here: Path) -> list[str]:
    """What lies in tiles/ but a working folder that a later start takes up."""
    return sorted(path.name for path in (here / "tiles").glob("*") if not path.name.endswith(".unfinished"))


def test_one_command_makes_a_dataset_of_one_scene(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--dem", "dem.tif", "--date", "2019-08-02")
    dataset = find_dataset("hunza")
    assert set(dataset.splits) == {"train", "val", "test"} and left_behind(here) == ["hunza"]
    assert not list((here / "tiles").glob(".*"))
    file = TileFile(dataset.path("train"))
    assert file.bands == {"optical": ["green", "red", "swir1"], "dem": ["elevation", "slope"]}
    assert file.command.startswith("python prepare.py scenes hunza --optical optical.tif")
    printed = capsys.readouterr().out
    for text in (
        "dem.tif: warped",
        "1 outlines of glacier (2.7 km²), of 1 near it in rgi.gpkg",
        "train–test: 0 m",
        "inputs=[optical,dem]",
    ):
        assert text in printed


def test_a_dataset_file_can_be_changed_on_the_command_line(here: Path) -> None:
    (here / "data.yaml").write_text(
        yaml.safe_dump(
            {"region": "HMA", "outlines": "rgi.gpkg", "scenes": {"a": {"modalities": {"optical": "optical.tif"}}}}
        )
    )
    prepare.main(["scenes", "data.yaml", *FLAGS, "--set", "statistics=minmax", "--dem", "dem.tif"])
    file = TileFile(find_dataset("data").path("train"))
    assert file.statistics is not None and file.statistics.method == "minmax"
    assert list(file.provenance["bands"]) == ["dem", "optical"] or list(file.provenance["bands"]) == ["optical", "dem"]


def test_a_first_dataset_file_is_one_that_works(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.main(["scenes", "--init", ".", "--region", "HMA"])
    assert "wrote dataset.yaml" in capsys.readouterr().out
    prepare.main(["scenes", "first", "dataset.yaml", "--tile-size", "32"])
    file = TileFile(find_dataset("first").path("train"))
    assert file.bands == {"optical": ["green", "red", "swir1"], "dem": ["elevation", "slope"]}
    with pytest.raises(UserError, match="exists: correct it by hand"):
        prepare.main(["scenes", "--init", "."])


def cut_off(here: Path, write_raster: WriteRaster) -> None:
    path = here / "optical.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_georeference(here: Path, write_raster: WriteRaster) -> None:
    write_raster(here / "optical.tif", np.ones((100, 140)), None, None)


def without_crs(here: Path, write_raster: WriteRaster) -> None:
    write_raster(here / "optical.tif", np.ones((100, 140)), None, PLACE)


def outlines_without_crs(here: Path, write_raster: WriteRaster) -> None:
    write_outlines(here / "rgi.gpkg", GLACIER, crs=None)


def outlines_elsewhere(here: Path, write_raster: WriteRaster) -> None:
    write_outlines(here / "rgi.gpkg", box(600_000, 3_000_000, 600_900, 3_000_900))


def lines_for_outlines(here: Path, write_raster: WriteRaster) -> None:
    write_outlines(here / "rgi.gpkg", LineString([(500_000, 3_098_000), (501_000, 3_099_000)]))


def across_the_antimeridian(here: Path, write_raster: WriteRaster) -> None:
    write_raster(here / "optical.tif", np.ones((100, 140)), "EPSG:4326", (0.01, 0, 179.5, 0, -0.01, 66))


def all_nodata(here: Path, write_raster: WriteRaster) -> None:
    write_raster(here / "optical.tif", np.full((100, 140), np.nan, np.float32), CRS, PLACE)


def not_a_raster(here: Path, write_raster: WriteRaster) -> None:
    (here / "optical.tif").write_text("no raster")


WRONG = {
    cut_off: r"optical\.tif",
    without_georeference: r"optical\.tif.*(CRS|georeference)",
    without_crs: r"optical\.tif.*CRS",
    outlines_without_crs: r"rgi\.gpkg: no coordinate reference system",
    outlines_elsewhere: r"rgi\.gpkg.*",
    lines_for_outlines: r"rgi\.gpkg.*polygon",
    across_the_antimeridian: r"optical\.tif.*antimeridian",
    all_nodata: "valid, labelled pixel",
    not_a_raster: r"optical\.tif",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda function: function.__name__)
def test_what_is_wrong_with_the_data_is_one_message_and_no_tile_file(
    wrong: Callable[..., None], here: Path, write_raster: WriteRaster
) -> None:
    wrong(here, write_raster)
    with pytest.raises(UserError, match=WRONG[wrong]):
        run()
    assert left_behind(here) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dem", "nowhere.tif"], "dem: no file matches nowhere.tif.*there is"),
        (["--modality", "thermal", "optical.tif", "dem.tif"], r"dem\.tif has 1 bands, .*optical\.tif has 3"),
        (["--modality", "sar", "optical.tif"], "given: linear"),
        (["--set", "modalities.optical.bands=[red]"], "optical.tif has 3 bands, `bands` names 1"),
        (["--set", "grid.crs=EPSG:4326", "--set", "grid.resolution=30"], "30 degrees|metres"),
        (["--mask-from", "ndsy > 0.4"], "ndsy"),
        (["--mask-from", "thermal < 270"], "thermal"),
        (["--date", "yesterday"], "date: "),
        (["--jobs", "0"], "--jobs is a number of processes from 1, got 0"),
        (["--set", "split.val=0.9"], "leave nothing to train on"),
        (["--set", "tile_size=2000"], "can't be divided"),
        (["--optical", "red=optical.tif#7"], "has 3 bands, asked for is number 7"),
        (["--region", ""], "has no region"),
    ],
)
def test_what_is_wrong_with_the_request_is_one_message_and_no_tile_file(
    arguments: list[str], message: str, here: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert left_behind(here) == []


def test_files_that_do_not_meet_are_told(here: Path, write_raster: WriteRaster) -> None:
    write_raster(here / "dem.tif", np.ones((50, 50), np.float32), CRS, (30, 0, 700_000, 0, -30, 3_100_000))
    with pytest.raises(UserError, match=r"dem does not meet the scene's grid: .*dem\.tif"):
        run("--dem", "dem.tif")


def test_a_former_dataset_stays_when_something_goes_wrong(here: Path, write_raster: WriteRaster) -> None:
    run()
    before = TileFile(here / "tiles" / "hunza" / "train.hdf5").digest
    cut_off(here, write_raster)
    with pytest.raises(UserError, match=r"optical\.tif"):
        run("--overwrite")
    assert TileFile(here / "tiles" / "hunza" / "train.hdf5").digest == before


def test_the_script_answers_an_unwritable_folder_and_a_wrong_file_with_one_message(here: Path) -> None:
    (here / "tiles").write_text("a file where the folder should be")
    command = [sys.executable, str(SCRIPT), "scenes", "hunza", "--optical", "optical.tif", "--outlines", "rgi.gpkg"]
    answer = subprocess.run([*command, *FLAGS], cwd=here, capture_output=True, text=True, timeout=120, check=False)
    assert (answer.returncode, answer.stderr.count("error: "), "Traceback" in answer.stderr) == (2, 1, False)
    (here / "tiles").unlink()
    with pytest.raises(UserError, match=r"dem\.tif"):
        run(outlines="dem.tif")


def test_a_killed_run_goes_on_to_the_same_tiles(here: Path, write_raster: WriteRaster) -> None:
    numbers = np.random.default_rng(1).random((416, 416, 4), dtype=np.float32)
    write_raster(here / "optical.tif", numbers, CRS, PLACE)
    run(name="whole")
    command = [sys.executable, str(SCRIPT), "scenes", "killed", "--optical", "optical.tif", "--outlines", "rgi.gpkg"]
    process = subprocess.Popen([*command, *FLAGS], cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = here / "tiles" / ".killed.unfinished"
    deadline = time.monotonic() + 60
    while len(list(work.glob("*.json"))) < 10 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("*.json")}
    assert 10 <= len(finished) < 169 and "killed" not in left_behind(here)
    run(name="killed")
    assert left_behind(here) == ["killed", "whole"]
    for split in ("train", "val", "test"):
        one, other = (TileFile(here / "tiles" / name / f"{split}.hdf5") for name in ("whole", "killed"))
        assert one.names and [n.partition("_")[2] for n in one.names] == [n.partition("_")[2] for n in other.names]
        for first, second in zip(one.names, other.names, strict=True):
            np.testing.assert_array_equal(
                one.read(first, ["optical"])["optical"], other.read(second, ["optical"])["optical"]
            )
            np.testing.assert_array_equal(one.mask(first), other.mask(second))


@pytest.mark.parametrize(
    ("place", "tile_size", "region", "bands"),
    [
        ("everest", 128, "HMA", {"optical": ["blue", "green", "red", "nir"]}),
        ("exploradores", 128, "SA", {"dem": ["elevation", "slope"]}),
    ],
)
def test_real_scenes_with_one_command_each(
    place: str, tile_size: int, region: str, bands: dict[str, list[str]], here: Path, shared: Path
) -> None:
    folder = here / place
    folder.mkdir()
    for path in (shared / "real" / place).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    prepare.main(["scenes", "--init", place])
    prepare.main(["scenes", place, f"{place}/dataset.yaml", "--tile-size", str(tile_size)])
    files = [TileFile(path) for path in find_dataset(place).splits.values()]
    assert files[0].bands == bands
    assert {file.info(name).region for file in files for name in file.names} == {region}
    outlines = geopandas.read_file(next(folder.glob("*.gpkg")))
    raster = next(folder.glob("*.tif"))
    with rasterio.open(raster) as dataset:
        bounds, crs = dataset.bounds, dataset.crs
    clipped = outlines.to_crs(crs).make_valid().clip(box(*bounds)).union_all().area
    pixels = sum(int((file.mask(name) == 1).sum()) for file in files for name in file.names)
    unseen = sum(int((~file.valid(name)).sum()) for file in files for name in file.names)
    assert abs(pixels * 900 - clipped) <= 0.01 * clipped + unseen * 900
