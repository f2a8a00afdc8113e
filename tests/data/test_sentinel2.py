from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from console import UserError
from data.acquisitions import OPTICAL, TOA, Acquisition, Affine, Hidden, read_acquisition
from data.grids import read_grid
from data.sentinel2 import HIDING, sentinel2
from data.tiles import SURFACE

Write = Callable[..., Path]

OLD_L1C = "S2A_MSIL1C_20190812T045701_N0208_R119_T45RVL_20190812T081500"
NEW_L1C = "S2A_MSIL1C_20220813T045701_N0400_R119_T45RVL_20220813T081500"
OLD_L2A = OLD_L1C.replace("L1C", "L2A").replace("N0208", "N0213")
NEW_L2A = NEW_L1C.replace("L1C", "L2A")
BANDS = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B11": 20, "B12": 20}
DN = np.array([[1, 1000, 1001], [2500, 11000, 28000]], np.uint16)


def metadata(product: str, offsets: Mapping[int, int] | None = None, quantification: str = "10000") -> str:
    """What the reader needs of the user product's metadata, at the places where ESA has it."""
    level, baseline = product[7:10], product.split("_N")[1][:4]
    start = f"{product[11:15]}-{product[15:17]}-{product[17:19]}T04:57:01.024Z"
    tag = {"L1C": "RADIO_ADD_OFFSET", "L2A": "BOA_ADD_OFFSET"}[level]
    group = {"L1C": "Radiometric_Offset_List", "L2A": "BOA_ADD_OFFSET_VALUES_LIST"}[level]
    listed = "".join(f'<{tag} band_id="{band}">{offset}</{tag}>' for band, offset in (offsets or {}).items())
    scale = {
        "L1C": f'<QUANTIFICATION_VALUE unit="none">{quantification}</QUANTIFICATION_VALUE>',
        "L2A": "<QUANTIFICATION_VALUES_LIST>"
        f'<BOA_QUANTIFICATION_VALUE unit="none">{quantification}</BOA_QUANTIFICATION_VALUE>'
        '<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>'
        '<WVP_QUANTIFICATION_VALUE unit="cm">1000.0</WVP_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>',
    }[level]
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level[1:]}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level[1:]}.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{start}</PRODUCT_START_TIME>
      <PRODUCT_URI>{product}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-{level[1:]}</PROCESSING_LEVEL>
      <PROCESSING_BASELINE>{baseline[:2]}.{baseline[2:]}</PROCESSING_BASELINE>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>
        <SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
      {scale}
      {f"<{group}>{listed}</{group}>" if listed else ""}
    </Product_Image_Characteristics>
  </n1:General_Info>
</n1:Level-{level[1:]}_User_Product>
"""


def granule(product: str) -> str:
    """The beginning of the names of a product's band files."""
    return f"{product.split('_')[5]}_{product.split('_')[2]}"


def band_file(folder: Path, product: str, band: str, metres: int, ending: str = "tif") -> Path:
    """Where a `.SAFE` has a band: 2A in folders by resolution."""
    data = folder / f"{product}.SAFE" / "GRANULE" / f"{product[7:10]}_T45RVL_A021620_20190812T045653" / "IMG_DATA"
    if "L2A" in product:
        return data / f"R{metres}m" / f"{granule(product)}_{band}_{metres}m.{ending}"
    return data / f"{granule(product)}_{band}.{ending}"


@pytest.fixture
def safe(tmp_path: Path, write_raster: Write) -> Write:
    """Write a product's folder: `safe(product, offsets=None, dn=DN, described=True)`."""

    def write(
        product: str, offsets: Mapping[int, int] | None = None, dn: NDArray[Any] = DN, described: bool = True
    ) -> Path:
        for band, metres in BANDS.items():
            transform = (metres, 0.0, 500_000.0, 0.0, -metres, 3_100_000.0)
            write_raster(band_file(tmp_path, product, band, metres), dn, transform=transform)
        folder = tmp_path / f"{product}.SAFE"
        quality = folder / "GRANULE" / "L1C_T45RVL_A021620_20190812T045653" / "QI_DATA"
        write_raster(quality / "MSK_DETFOO_B02.tif", np.ones((2, 3), np.uint8))
        if described:
            (folder / f"MTD_MSI{product[7:10]}.xml").write_text(metadata(product, offsets))
        return folder

    return write


def blue(acquisition: Acquisition) -> NDArray[np.float32]:
    """The first band on its own grid."""
    band = next(iter(acquisition.bands.values()))
    return read_acquisition(acquisition, read_grid(band.path))[0][..., 0]


@pytest.mark.parametrize(
    ("product", "unit", "level"), [(OLD_L1C, TOA, "L1C"), (OLD_L2A, SURFACE, "L2A")], ids=["L1C", "L2A"]
)
@pytest.mark.parametrize("described", [True, False], ids=["metadata", "name"])
def test_before_baseline_04_reflectance_is_dn_over_10000(
    safe: Write, product: str, unit: str, level: str, described: bool
) -> None:
    (acquisition,) = sentinel2([safe(product, described=described)])
    assert (acquisition.name, acquisition.unit, acquisition.level) == (product, unit, level)
    assert acquisition.date == datetime.date(2019, 8, 12)
    assert tuple(acquisition.bands) == OPTICAL
    assert_allclose(blue(acquisition), DN / 10000, atol=1e-6)


@pytest.mark.parametrize("product", [NEW_L1C, NEW_L2A], ids=["L1C", "L2A"])
@pytest.mark.parametrize("described", [True, False], ids=["metadata", "name"])
def test_since_baseline_04_reflectance_has_an_offset(safe: Write, product: str, described: bool) -> None:
    (acquisition,) = sentinel2([safe(product, dict.fromkeys(range(13), -1000), described=described)])
    assert_allclose(blue(acquisition), (DN.astype(float) - 1000) / 10000, atol=1e-6)
    assert json.loads(json.dumps(acquisition.described))["baseline"] == "04.00"


def test_offsets_are_those_of_the_band(safe: Write) -> None:
    (acquisition,) = sentinel2([safe(NEW_L1C, {band: -1000 - band for band in range(13)})], ("blue", "nir", "swir1"))
    found = [band.conversion for band in acquisition.bands.values()]
    assert found == [Affine(1e-4, -offset / 10000) for offset in (1001, 1007, 1011)]  # band_id 1, 7, 11: B8A is 8


def test_given_scale_and_offset_win_over_metadata_and_name(safe: Write) -> None:
    folder = safe(NEW_L1C, dict.fromkeys(range(13), -1000))
    (acquisition,) = sentinel2([folder], scale=2e-4, offset=0.5)
    assert_allclose(blue(acquisition), DN * 2e-4 + 0.5, atol=1e-5)
    with pytest.raises(UserError, match="expected both or neither"):
        sentinel2([folder], scale=1e-4)


def test_nothing_to_tell_the_offset_by_is_asked_for(tmp_path: Path, write_raster: Write) -> None:
    folder = tmp_path / "S2A_45RVL_20220813_0_L2A"
    paths = [write_raster(folder / f"{band}.tif", DN) for band in BANDS]
    with pytest.raises(UserError, match="give scale and offset"):
        sentinel2(paths)
    (acquisition,) = sentinel2(paths, scale=1e-4, offset=0)
    assert (acquisition.name, acquisition.date, acquisition.level) == (folder.name, datetime.date(2022, 8, 13), "L2A")


def test_baseline_of_ones_own_sen2cor_says_nothing(safe: Write) -> None:
    product = NEW_L2A.replace("N0400", "N9999")
    with pytest.raises(UserError, match="give scale and offset"):
        sentinel2([safe(product, described=False)])
    (acquisition,) = sentinel2([safe(product)])
    assert_allclose(blue(acquisition), DN / 10000, atol=1e-6)


def test_metadata_that_contradict_themselves_are_refused(safe: Write) -> None:
    with pytest.raises(UserError, match="baseline 04.00 and no RADIO_ADD_OFFSET"):
        sentinel2([safe(NEW_L1C)])
    with pytest.raises(UserError, match=r"none of B12 \(band_id 12\)"):
        sentinel2([safe(NEW_L2A, dict.fromkeys(range(12), -1000))])
    folder = safe(OLD_L1C)
    (folder / "MTD_MSIL1C.xml").write_text(metadata(OLD_L1C)[:700])
    with pytest.raises(UserError, match="truncated or damaged"):
        sentinel2([folder])


def test_nodata_and_saturated_never_become_a_reflectance(safe: Write) -> None:
    dn = np.array([[0, 5000, 65535], [5000, 5000, 5000]], np.uint16)
    (acquisition,) = sentinel2([safe(NEW_L1C, dict.fromkeys(range(13), -1000), dn=dn)])
    assert_allclose(blue(acquisition), np.where((dn == 0) | (dn == 65535), np.nan, 0.4), atol=1e-6)
    # Swir is coarser: what it is warped to is made of measurements alone.
    values, _ = read_acquisition(acquisition, read_grid(acquisition.bands["blue"].path))
    assert_allclose(values[..., 4][np.isfinite(values[..., 4])], 0.4, atol=1e-6)


def test_the_finest_resolution_of_a_band_is_read(safe: Write, tmp_path: Path, write_raster: Write) -> None:
    folder = safe(OLD_L2A)
    for metres in (20, 60):
        write_raster(band_file(tmp_path, OLD_L2A, "B02", metres), DN)
    (acquisition,) = sentinel2([folder])
    assert acquisition.bands["blue"].path.name == "T45RVL_20190812T045701_B02_10m.tif"
    assert acquisition.bands["swir1"].path.name == "T45RVL_20190812T045701_B11_20m.tif"


@pytest.mark.parametrize(
    ("hiding", "expected"),
    [
        # 0 no data, 1 saturated, 2 dark, 3 shadow, 4-5 land, 6 water, 7 unclassified, 8-9 cloud, 10 cirrus, 11 snow
        (None, [2, 4, 5, 6, 7, 11]),
        ((0, 1), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_the_scene_classification_hides_the_ground(
    safe: Write, tmp_path: Path, write_raster: Write, hiding: tuple[int, ...] | None, expected: list[int]
) -> None:
    folder = safe(OLD_L2A, dn=np.full((3, 4), 2000, np.uint16))
    classes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_raster(band_file(tmp_path, OLD_L2A, "SCL", 20), classes, transform=(10.0, 0.0, 5e5, 0.0, -10.0, 3.1e6))
    (acquisition,) = sentinel2([folder]) if hiding is None else sentinel2([folder], hiding=hiding)
    values, clear = read_acquisition(acquisition, read_grid(acquisition.bands["blue"].path))
    assert classes[clear].tolist() == expected
    assert np.isfinite(values[..., 0]).all(), "values under clouds are the caller's to judge"
    assert sentinel2([folder], hiding=())[0].hidden is None


def test_level_1c_borrows_the_classification_of_its_level_2a(safe: Write, tmp_path: Path, write_raster: Write) -> None:
    first, second = safe(OLD_L1C), safe(OLD_L2A)
    path = write_raster(band_file(tmp_path, OLD_L2A, "SCL", 20), np.zeros((2, 3), np.uint8))
    (alone,) = sentinel2([first])
    assert alone.hidden is None
    (both,) = sentinel2([first, second], level="L1C")
    assert both.unit == TOA and both.hidden == Hidden(path, 1, "scl", HIDING)
    other = safe(NEW_L1C, dict.fromkeys(range(13), -1000))
    assert sentinel2([other, second], level="L1C")[0].hidden is None, "of another day"


def test_mixed_files_are_grouped_by_product(safe: Write, tmp_path: Path) -> None:
    folders = [safe(OLD_L1C), safe(NEW_L1C, dict.fromkeys(range(13), -1000)), safe(OLD_L2A)]
    files = sorted(tmp_path.rglob("*_B??*.tif"), key=lambda path: path.name[::-1])
    for paths in (folders, files, [tmp_path], [*folders, *files]):
        found = sentinel2(paths)
        assert [acquisition.name for acquisition in found] == [OLD_L1C, OLD_L2A, NEW_L1C]
        assert [acquisition.described["baseline"] for acquisition in found] == ["02.08", "02.13", "04.00"]


def test_both_levels_of_a_granule_in_one_folder_are_two_products(tmp_path: Path, write_raster: Write) -> None:
    for level, offset in (("L1C", -1000), ("L2A", -2000)):
        product = NEW_L1C.replace("L1C", level)
        for band, metres in BANDS.items():
            ending = f"_{metres}m" if level == "L2A" else ""
            write_raster(tmp_path / f"{granule(product)}_{band}{ending}.tif", DN)
        (tmp_path / f"MTD_MSI{level}.xml").write_text(metadata(product, dict.fromkeys(range(13), offset)))
    assert [acquisition.level for acquisition in sentinel2([tmp_path])] == ["L1C", "L2A"]
    for level, offset in (("L1C", 1000), ("L2A", 2000)):
        (acquisition,) = sentinel2([tmp_path], level=level)  # type: ignore[arg-type]
        assert_allclose(blue(acquisition), (DN.astype(float) - offset) / 10000, atol=1e-6)
    with pytest.raises(UserError, match="give the level"):  # one alone, and metadata of both beside it
        sentinel2(tmp_path.glob("*_B??.tif"))


def test_metadata_of_another_product_in_the_folder_are_not_used(tmp_path: Path, write_raster: Write) -> None:
    paths = [write_raster(tmp_path / f"{granule(OLD_L1C)}_{band}.tif", DN) for band in BANDS]
    beside = tmp_path / "MTD_MSIL1C.xml"
    beside.write_text(metadata(NEW_L1C, dict.fromkeys(range(13), -1000)))
    with pytest.raises(UserError, match="level 1C .* or 2A .*give the level"):
        sentinel2(paths)
    with pytest.raises(UserError, match="give scale and offset"):
        sentinel2(paths, level="L1C")
    beside.write_text(metadata(OLD_L1C))
    assert_allclose(blue(sentinel2(paths)[0]), DN / 10000, atol=1e-6)


def test_missing_bands_are_listed(safe: Write, tmp_path: Path) -> None:
    folder = safe(OLD_L1C)
    for band in ("B08", "B12"):
        band_file(tmp_path, OLD_L1C, band, 10).unlink()
    with pytest.raises(UserError, match=rf"{OLD_L1C}: no file of the bands nir \(B08\), swir2 \(B12\)"):
        sentinel2([folder])
    with pytest.raises(UserError, match="no band 'infrared'; known: coastal, blue"):
        sentinel2([folder], ("infrared",))


def test_products_twice_archives_and_nothing_at_all_are_refused(
    safe: Write, tmp_path: Path, write_raster: Write
) -> None:
    folder = safe(OLD_L1C)
    write_raster(band_file(tmp_path, OLD_L1C, "B02", 10, "tiff"), DN)
    with pytest.raises(UserError, match="two files of band B02"):
        sentinel2([folder])
    (tmp_path / "S2.zip").touch()
    with pytest.raises(UserError, match="unpack it first"):
        sentinel2([tmp_path / "S2.zip"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no Sentinel-2 product in .*empty; expected .SAFE folders"):
        sentinel2([tmp_path / "empty"])
    with pytest.raises(UserError, match="no such file or folder"):
        sentinel2([tmp_path / "absent"])


def test_jpeg_2000_is_read(tmp_path: Path, write_raster: Write) -> None:
    path = band_file(tmp_path, OLD_L1C, "B02", 10, "jp2")
    write_raster(path, DN, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    assert_allclose(blue(sentinel2([path], ("blue",))[0]), DN / 10000, atol=1e-6)
