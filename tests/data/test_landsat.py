from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from console import UserError
from data.acquisitions import OPTICAL, TOA, Acquisition, Affine, read_acquisition
from data.grids import read_grid
from data.landsat import landsat
from data.tiles import SURFACE

Write = Callable[..., Path]

OLI_1 = "LC08_L1TP_140041_20190812_20200827_02_T1"
OLI_2 = "LC08_L2SP_140041_20190812_20200827_02_T1"
OLI_9 = "LC09_L1TP_140041_20220813_20230403_02_T1"
ETM_1 = "LE07_L1TP_140041_20001030_20200917_02_T1"
TM_1 = "LT05_L1TP_140041_19951107_20200911_02_T1"
TM_2 = "LT05_L2SP_140041_19951107_20200911_02_T1"
PARTS = {
    OLI_1: ("B2", "B3", "B4", "B5", "B6", "B7", "B10"),
    OLI_9: ("B2", "B3", "B4", "B5", "B6", "B7", "B10"),
    OLI_2: ("SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7", "ST_B10"),
    ETM_1: ("B1", "B2", "B3", "B4", "B5", "B6_VCID_1", "B6_VCID_2", "B7"),
    TM_1: ("B1", "B2", "B3", "B4", "B5", "B6", "B7"),
    TM_2: ("SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "ST_B6", "SR_B7"),
}
DN = np.array([[0, 1, 100], [200, 254, 255]], np.uint16)
SUN_ELEVATION = 34.56789


def groups(product: str) -> dict[str, dict[str, str]]:
    """What the reader needs of an MTL, in the groups of collection 2; a level-2 MTL has the level-1 factors as well."""
    numbers = [part.removeprefix("SR_").removeprefix("ST_").removeprefix("B") for part in PARTS[product]]
    thermal = {"LC": ["10"], "LE": ["6_VCID_1", "6_VCID_2"], "LT": ["6"]}[product[:2]]
    reflective = [number for number in numbers if number not in thermal]
    level_1 = {
        "LEVEL1_RADIOMETRIC_RESCALING": {
            **{f"RADIANCE_MULT_BAND_{number}": "3.3420E-04" for number in thermal},
            **{f"RADIANCE_ADD_BAND_{number}": "0.10000" for number in thermal},
            **{f"REFLECTANCE_MULT_BAND_{number}": f"2.0{number}00E-03" for number in reflective},
            **{f"REFLECTANCE_ADD_BAND_{number}": f"-0.10{number}000" for number in reflective},
        },
        "LEVEL1_THERMAL_CONSTANTS": {
            **{f"K1_CONSTANT_BAND_{number}": "774.8853" for number in thermal},
            **{f"K2_CONSTANT_BAND_{number}": "1321.0789" for number in thermal},
        },
    }
    level_2 = {
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {
            **{f"REFLECTANCE_MULT_BAND_{number}": "2.75e-05" for number in reflective},
            **{f"REFLECTANCE_ADD_BAND_{number}": "-0.2" for number in reflective},
        },
        "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS": {
            **{f"TEMPERATURE_MULT_BAND_ST_B{number}": "0.00341802" for number in thermal},
            **{f"TEMPERATURE_ADD_BAND_ST_B{number}": "149.0" for number in thermal},
        },
    }
    second = "_L2SP_" in product
    return {
        "PRODUCT_CONTENTS": {"LANDSAT_PRODUCT_ID": product, "COLLECTION_NUMBER": "02"},
        "IMAGE_ATTRIBUTES": {"DATE_ACQUIRED": "2019-08-12", "SUN_ELEVATION": f"{SUN_ELEVATION:.8f}"},
        **(level_2 if second else {}),
        **({"LEVEL1_PROCESSING_RECORD": {"LANDSAT_PRODUCT_ID": product.replace("L2SP", "L1TP")}} if second else {}),
        **level_1,
    }


def as_text(contents: dict[str, dict[str, str]]) -> str:
    """An MTL as text."""
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for name, group in contents.items():
        lines.append(f"  GROUP = {name}")
        for key, value in group.items():
            lines.append(f'    {key} = "{value}"' if "_ID" in key else f"    {key} = {value}")
        lines.append(f"  END_GROUP = {name}")
    return "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END", ""])


@pytest.fixture
def product(tmp_path: Path, write_raster: Write) -> Write:
    """Write a product's folder: `product(name, metadata="txt", dn=DN, qa=None)`."""

    def write(name: str, metadata: str = "txt", dn: NDArray[Any] = DN, qa: NDArray[Any] | None = None) -> Path:
        folder = tmp_path / name
        for part in PARTS[name]:
            # Level 1 need not tag its fill.
            write_raster(folder / f"{name}_{part}.TIF", dn, nodata=0 if "L2SP" in name else None)
        if qa is not None:
            write_raster(folder / f"{name}_QA_PIXEL.TIF", qa.astype(np.uint16), nodata=1)
        if metadata == "txt":
            (folder / f"{name}_MTL.txt").write_text(as_text(groups(name)))
        elif metadata == "json":
            (folder / f"{name}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups(name)}))
        return folder

    return write


def read(acquisition: Acquisition) -> NDArray[np.float32]:
    """All bands on the first one's grid."""
    return read_acquisition(acquisition, read_grid(next(iter(acquisition.bands.values())).path))[0]


def seen(values: NDArray[Any]) -> NDArray[Any]:
    """`values`, NaN where the DN is fill."""
    return np.where(DN == 0, np.nan, values)


@pytest.mark.parametrize("metadata", ["txt", "json"])
@pytest.mark.parametrize(
    ("name", "numbers", "sensor"),
    [
        (OLI_1, (2, 3, 4, 5, 6, 7), "Landsat 8 OLI/TIRS"),
        (OLI_9, (2, 3, 4, 5, 6, 7), "Landsat 9 OLI/TIRS"),
        (ETM_1, (1, 2, 3, 4, 5, 7), "Landsat 7 ETM+"),
        (TM_1, (1, 2, 3, 4, 5, 7), "Landsat 5 TM"),
    ],
    ids=["OLI", "OLI-2", "ETM+", "TM"],
)
def test_level_1_becomes_reflectance_at_the_top_of_the_atmosphere(
    product: Write, metadata: str, name: str, numbers: Sequence[int], sensor: str
) -> None:
    (acquisition,) = landsat([product(name, metadata)])
    assert (acquisition.name, acquisition.level) == (name, "L1TP")
    assert (acquisition.unit, acquisition.sensor) == (TOA, sensor)
    assert acquisition.date == datetime.datetime.strptime(name[17:25], "%Y%m%d").date()
    assert tuple(acquisition.bands) == OPTICAL
    assert json.loads(json.dumps(acquisition.described))["sun_elevation_deg"] == SUN_ELEVATION
    values = read(acquisition)
    for channel, number in enumerate(numbers):
        # M and A of every band are their own, so that a band with another's would show.
        multiplied = float(f"2.0{number}00E-03") * DN + float(f"-0.10{number}000")
        expected = multiplied / math.sin(math.radians(SUN_ELEVATION))
        assert_allclose(values[..., channel], seen(expected), atol=1e-6)


@pytest.mark.parametrize("metadata", ["txt", "json", "none"])
@pytest.mark.parametrize("name", [OLI_2, TM_2], ids=["OLI", "TM"])
def test_level_2_is_surface_reflectance_and_temperature(product: Write, metadata: str, name: str) -> None:
    folder = product(name, metadata)
    (optical,), (thermal,) = landsat([folder]), landsat([folder], ("thermal",))
    assert (optical.unit, optical.level) == (SURFACE, "L2SP")
    assert_allclose(read(optical), np.repeat(seen(DN * 2.75e-5 - 0.2)[..., None], 6, -1), atol=1e-6)
    assert (tuple(thermal.bands), thermal.unit) == (("surface_temperature",), "K")
    assert_allclose(read(thermal)[..., 0], seen(DN * 0.00341802 + 149.0), rtol=1e-6)


@pytest.mark.parametrize("name", [OLI_1, TM_1, ETM_1], ids=["TIRS", "TM", "ETM+"])
def test_level_1_thermal_is_brightness_temperature(product: Write, name: str) -> None:
    (acquisition,) = landsat([product(name)], ("thermal",))
    assert (tuple(acquisition.bands), acquisition.unit) == (("brightness_temperature",), "K")
    expected = 1321.0789 / np.log(774.8853 / (DN * 3.342e-4 + 0.1) + 1)
    assert_allclose(read(acquisition)[..., 0], seen(expected), rtol=1e-6)


def test_brightness_temperature_inverts_plancks_law(product: Write) -> None:
    # DN 28127 is a radiance of 9.5 W/(m² sr µm); a black body of the temperature found sends as much at 10.9 µm.
    (acquisition,) = landsat([product(OLI_1, dn=np.full((2, 3), 28127, np.uint16))], ("thermal",))
    temperature = float(read(acquisition)[0, 0, 0])
    wavelength, h, c, k = 10.895e-6, 6.62607015e-34, 2.99792458e8, 1.380649e-23
    planck = 2 * h * c**2 / wavelength**5 / math.expm1(h * c / (wavelength * k * temperature)) * 1e-6
    assert planck == pytest.approx(9.5, rel=0.02)


def test_gain_chooses_between_the_thermal_bands_of_etm(product: Write) -> None:
    folder = product(ETM_1)
    for gain, part in (("low", "B6_VCID_1"), ("high", "B6_VCID_2")):
        (acquisition,) = landsat([folder], ("thermal",), gain=gain)  # type: ignore[arg-type]
        assert acquisition.bands["brightness_temperature"].path.name == f"{ETM_1}_{part}.TIF"


@pytest.mark.parametrize(
    ("hiding", "hidden"), [(None, {0, 1, 2, 3, 4}), ((0, 3), {0, 3}), ((5,), {5})], ids=["default", "fewer", "snow"]
)
def test_bits_of_qa_pixel_hide_the_ground(product: Write, hiding: tuple[int, ...] | None, hidden: set[int]) -> None:
    bits = np.arange(8)
    # A bit on its own, and beside others that never hide: clear or water, and the confidences from bit 8 on.
    qa = np.stack([1 << bits, (1 << bits) | (1 << 7) | (0b01010101 << 8)])
    dn = np.full(qa.shape, 100, np.uint16)
    options = {} if hiding is None else {"hiding": hiding}
    (acquisition,) = landsat([product(OLI_1, dn=dn, qa=qa)], **options)  # type: ignore[arg-type]
    target = read_grid(acquisition.bands["blue"].path)
    values, clear = read_acquisition(acquisition, target)
    expected = np.array([[bit not in hidden for bit in bits]] * 2)
    expected[0, 0] = False  # fill alone is the raster's nodata tag
    assert clear.tolist() == expected.tolist()
    assert np.isfinite(values).all()


def test_without_qa_pixel_nothing_is_known_of_clouds(product: Write) -> None:
    folder = product(OLI_1, qa=np.full(DN.shape, 8))
    assert landsat([folder], hiding=())[0].hidden is None
    (folder / f"{OLI_1}_QA_PIXEL.TIF").unlink()
    (acquisition,) = landsat([folder])
    assert acquisition.hidden is None
    assert read_acquisition(acquisition, read_grid(acquisition.bands["blue"].path))[1].all()


def test_mixed_files_are_grouped_by_product(product: Write, tmp_path: Path) -> None:
    for name in PARTS:
        product(name, qa=np.full(DN.shape, 64))
    bands = sorted(tmp_path.rglob("*B*.TIF"), key=lambda path: path.name[::-1])
    for paths in ([tmp_path], bands, sorted(tmp_path.iterdir())):
        found = landsat(paths)
        assert [acquisition.name for acquisition in found] == [TM_1, TM_2, ETM_1, OLI_1, OLI_2, OLI_9]
        assert all(acquisition.hidden is not None for acquisition in found), "QA_PIXEL lies beside the bands"
        for acquisition in found:
            assert all(acquisition.name in band.path.name for band in acquisition.bands.values())
    assert [acquisition.name for acquisition in landsat([tmp_path], level=2)] == [TM_2, OLI_2]


def test_missing_bands_of_all_products_are_listed(product: Write, tmp_path: Path) -> None:
    first, second = product(OLI_1), product(TM_1)
    (first / f"{OLI_1}_B5.TIF").unlink()
    (first / f"{OLI_1}_B7.TIF").unlink()
    (second / f"{TM_1}_B4.TIF").unlink()
    with pytest.raises(UserError) as raised:
        landsat([tmp_path])
    assert f"{OLI_1}: no file of the bands nir (B5), swir2 (B7) among" in str(raised.value)
    assert f"{TM_1}: no file of the bands nir (B4) among" in str(raised.value)
    with pytest.raises(UserError, match=r"coastal \(not a band of this sensor\)"):
        landsat([product(ETM_1)], ("coastal",))
    with pytest.raises(UserError, match="temperatures are an input of their own"):
        landsat([first], ("blue", "thermal"))


def test_level_1_without_metadata_asks_for_them_or_for_a_scale(product: Write) -> None:
    folder = product(OLI_1, "none")
    for bands in (OPTICAL, ("thermal",)):
        with pytest.raises(UserError, match="add the file, or give scale and offset"):
            landsat([folder], bands)
    (acquisition,) = landsat([folder], ("thermal",), scale=0.01, offset=273.15)
    assert_allclose(read(acquisition)[..., 0], seen(DN * 0.01 + 273.15), rtol=1e-6)


def test_given_scale_and_offset_win_over_metadata(product: Write) -> None:
    (acquisition,) = landsat([product(OLI_1)], scale=1e-3, offset=0.25)
    assert {band.conversion for band in acquisition.bands.values()} == {Affine(1e-3, 0.25)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated or damaged"),
        (lambda text: text.replace(OLI_1, OLI_9), f"metadata of {OLI_9}, expected those of {OLI_1}"),
        (lambda text: text.replace("SUN_ELEVATION", "SUN_AZIMUTH"), "SUN_ELEVATION of IMAGE_ATTRIBUTES is missing"),
        (lambda text: text.replace(f"= {SUN_ELEVATION}", "= -3.2 #"), "expected a number"),
        (lambda text: text.replace("SUN_ELEVATION = 34", "SUN_ELEVATION = -4"), "a scene by day"),
        (lambda text: text.replace("REFLECTANCE_ADD_BAND_5", "X"), "REFLECTANCE_ADD_BAND_5 of LEVEL1_RAD.* is missing"),
    ],
    ids=["cut off", "another product's", "no sun", "no number", "by night", "no factor"],
)
def test_metadata_that_can_not_be_right_are_refused(product: Write, spoil: Callable[[str], str], message: str) -> None:
    folder = product(OLI_1)
    path = folder / f"{OLI_1}_MTL.txt"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UserError, match=message):
        landsat([folder])


def test_collection_1_and_folders_without_products_are_refused(
    product: Write, tmp_path: Path, write_raster: Write
) -> None:
    old = tmp_path / "old" / "LC08_L1TP_140041_20190812_20190820_01_T1_B2.TIF"
    write_raster(old, DN)
    with pytest.raises(UserError, match="collection 01, expected collection 2"):
        landsat([old], ("blue",))
    write_raster(tmp_path / "other" / "B2.TIF", DN)
    with pytest.raises(UserError, match="no Landsat product in .*other; expected files named like LC08"):
        landsat([tmp_path / "other"])
    copy = tmp_path / "copy" / f"{OLI_1}_B2.TIF"
    write_raster(copy, DN)
    with pytest.raises(UserError, match="two files of B2"):
        landsat([product(OLI_1), copy.parent])
