from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import yaml
from shapely.geometry import box

from console import UserError
from data.dataset_file import parse
from data.discovery import first_dataset_file

WriteRaster = Callable[..., Path]


def written(folder: Path, **options: Any) -> tuple[dict[str, Any], str]:
    text = first_dataset_file(folder, **options)
    content = yaml.safe_load(text)
    parse(content, "written")
    return content, text


def outlines(path: Path) -> None:
    geopandas.GeoDataFrame(geometry=[box(500_000, 3_090_000, 501_000, 3_091_000)], crs="EPSG:32645").to_file(path)


@pytest.mark.parametrize(
    ("name", "bands", "modality", "entry"),
    [
        ("image_RGB.tif", 3, "optical", {"files": "image_RGB.tif", "bands": ["red", "green", "blue"]}),
        ("stack.tif", 2, "optical", {"files": "stack.tif", "bands": ["band_1", "band_2"]}),
        ("SRTM_30m.tif", 1, "dem", {"files": "SRTM_30m.tif"}),
        ("AST_L1A_0030_Z.tif", 1, "dem", {"files": "AST_L1A_0030_Z.tif"}),
        ("s1_coh_asc.tif", 1, "in_sar", {"files": "s1_coh_asc.tif", "bands": ["asc"]}),
        ("lst_20200801.tif", 1, "thermal", {"files": "lst_20200801.tif", "bands": ["20200801"]}),
    ],
)
def test_names_and_bands_say_what_a_raster_holds(
    name: str, bands: int, modality: str, entry: dict[str, Any], tmp_path: Path, write_raster: WriteRaster
) -> None:
    write_raster(tmp_path / name, np.ones((300, 300, bands), np.float32))
    content, _ = written(tmp_path, region="HMA")
    assert content["scenes"][tmp_path.name]["modalities"] == {modality: entry}


def test_the_values_say_in_what_backscatter_is_given(tmp_path: Path, write_raster: WriteRaster) -> None:
    write_raster(tmp_path / "a" / "s1_vv.tif", np.full((64, 64), -12.0, np.float32))
    write_raster(tmp_path / "b" / "s1_vv.tif", np.full((64, 64), 0.06, np.float32))
    content, text = written(tmp_path, region="HMA")
    given = {name: scene["modalities"]["sar"]["given"] for name, scene in content["scenes"].items()}
    assert given == {"a": "db", "b": "linear"} and "sar: taken to be db" in text


def test_single_bands_are_put_together_in_the_order_of_the_spectrum(tmp_path: Path, write_raster: WriteRaster) -> None:
    for band in ("swir1", "green", "blue", "nir"):
        write_raster(tmp_path / f"hunza_{band}.tif", np.ones((64, 64), np.float32))
    content, _ = written(tmp_path, region="HMA")
    files = content["scenes"][tmp_path.name]["modalities"]["optical"]["files"]
    assert list(files) == ["blue", "green", "nir", "swir1"] and files["nir"] == "hunza_nir.tif"


def test_old_landsat_names_say_date_and_band(tmp_path: Path, write_raster: WriteRaster) -> None:
    for band in (3, 4):
        write_raster(tmp_path / f"LE71400412000304SGS00_B{band}.tif", np.ones((64, 64), np.uint8))
    content, text = written(tmp_path, region="HMA")
    (scene,) = content["scenes"].values()
    assert str(scene["date"]) == "2000-10-30" and list(scene["modalities"]["optical"]["files"]) == ["red", "nir"]
    assert "whole numbers, taken as they are" in text


def test_products_are_named_by_their_folders(tmp_path: Path, write_raster: WriteRaster) -> None:
    safe = "S2A_MSIL2A_20200801T053651_N0500_R005_T43SET_20230401T000000.SAFE"
    write_raster(tmp_path / "hunza" / safe / "GRANULE" / "L2A" / "T43SET_B02_10m.tif", np.ones((64, 64), np.uint16))
    write_raster(
        tmp_path / "batura" / "LC08_L2SP_150035_20200801_20200906_02_T1_SR_B4.TIF", np.ones((64, 64), np.uint16)
    )
    write_raster(
        tmp_path / "batura" / "LC08_L2SP_150035_20200801_20200906_02_T1_ST_B10.TIF", np.ones((64, 64), np.uint16)
    )
    content, _ = written(tmp_path, region="HMA")
    assert content["scenes"]["hunza"]["modalities"] == {"optical": {"type": "sentinel-2", "files": f"hunza/{safe}"}}
    assert content["scenes"]["batura"]["modalities"] == {
        "optical": {"type": "landsat", "files": "batura/L*"},
        "thermal": {"type": "landsat", "files": "batura/L*"},
    }


def test_outlines_are_found_and_the_region_is_theirs(tmp_path: Path, write_raster: WriteRaster) -> None:
    write_raster(tmp_path / "a_RGB.tif", np.ones((64, 64, 3), np.uint8))
    for name in ("15_rgi60_outlines.gpkg", "lakes.gpkg", "debris_cover.gpkg"):
        outlines(tmp_path / name)
    content, _ = written(tmp_path)
    assert content["region"] == "HMA"
    assert list(content["outlines"]) == ["glacier", "debris", "water"]


def test_what_can_not_be_guessed_is_said(tmp_path: Path, write_raster: WriteRaster) -> None:
    write_raster(tmp_path / "a_RGB.tif", np.ones((64, 64, 3), np.uint8))
    write_raster(tmp_path / "plain.tif", np.ones((64, 64), np.uint8), None, None)
    content, text = written(tmp_path)
    assert content["region"] == "REGION" and "region: could not be guessed" in text
    assert content["mask_from"] and "no outlines were found" in text
    assert "left out" in text and "plain.tif" in text


def test_a_folder_without_rasters_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        first_dataset_file(tmp_path / "none")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no raster with a place on earth in it: there are notes\.txt"):
        first_dataset_file(tmp_path)
