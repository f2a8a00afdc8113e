"""Landsat products of collection 2: TM (4, 5), ETM+ (7), OLI and TIRS (8, 9), levels 1 and 2.

Level 1, reflectance at the top of the atmosphere: (M × DN + A) / sin(sun elevation), M and A from the product's
metadata (MTL), the sun's elevation in the scene's centre; brightness temperature: see `data.acquisitions.Thermal`.
Level 2: surface reflectance 2.75e-5 × DN - 0.2, surface temperature 0.00341802 × DN + 149 K. A level-2 MTL holds the
level-1 factors as well, under the same keys in other groups. Sources: Landsat 8-9 Data Users Handbook (USGS LSDS-1574);
Collection 2 Level-2 Science Product Guides (LSDS-1618 for 4-7, LSDS-1619 for 8-9), which also list QA_PIXEL's bits.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from console import UserError
from data.acquisitions import (
    OPTICAL,
    TOA,
    Acquisition,
    Affine,
    BandFile,
    Conversion,
    Hidden,
    Thermal,
    described,
    each,
    files_in,
    given_conversion,
)
from data.tiles import SURFACE

Gain = Literal["low", "high"]
Groups = Mapping[str, Mapping[str, str]]

_TM = {"blue": 1, "green": 2, "red": 3, "nir": 4, "swir1": 5, "swir2": 7}
_OLI = {"coastal": 1, "blue": 2, "green": 3, "red": 4, "nir": 5, "swir1": 6, "swir2": 7}
_SENSORS = {
    "LT04": "Landsat 4 TM",
    "LT05": "Landsat 5 TM",
    "LE07": "Landsat 7 ETM+",
    "LC08": "Landsat 8 OLI/TIRS",
    "LO08": "Landsat 8 OLI",
    "LT08": "Landsat 8 TIRS",
    "LC09": "Landsat 9 OLI/TIRS",
    "LO09": "Landsat 9 OLI",
    "LT09": "Landsat 9 TIRS",
}

THERMAL = "thermal"
"""The name to ask for the thermal band by; the acquisition calls it what it is at the product's level."""

HIDING = (0, 1, 2, 3, 4)
"""Bits of QA_PIXEL that hide the ground, unless the user says otherwise.

Fill, dilated cloud, cirrus (never set for TM and ETM+), cloud, cloud shadow. Snow (5), clear (6) and water (7) stay.
"""

NODATA = (0.0,)
"""The DN of fill. A saturated one (255 of TM and ETM+) is kept: it says that snow is at least as bright as that."""

_SURFACE = Affine(2.75e-5, -0.2)
_TEMPERATURE = Affine(0.00341802, 149.0)
_FILE = re.compile(
    r"(?P<product>(?P<sensor>L[COTE]0[4-9])_(?P<level>L1TP|L1GT|L1GS|L2SP|L2SR)_\d{6}_(?P<date>\d{8})_\d{8}"
    r"_(?P<collection>\d{2})_(?:T1|T2|RT))_(?P<part>B\d+(?:_VCID_[12])?|SR_B\d|ST_B\d+|QA_PIXEL|MTL)"
    r"\.(?P<ending>tiff?|txt|json)",
    re.I,
)


@dataclass(frozen=True)
class _Product:
    """The files of one product; `name` is any of theirs."""

    name: re.Match[str]
    files: dict[str, Path] = field(default_factory=dict)  # part of the name, e.g. SR_B4, MTL → file

    @property
    def id(self) -> str:
        return self.name["product"].upper()

    @property
    def level(self) -> str:
        return self.name["level"].upper()

    @property
    def sensor(self) -> str:
        return self.name["sensor"].upper()


def landsat(
    paths: Iterable[Path],
    bands: Sequence[str] = OPTICAL,
    scale: float | None = None,
    offset: float | None = None,
    level: Literal[1, 2] | None = None,
    hiding: Sequence[int] = HIDING,
    gain: Gain = "low",
) -> list[Acquisition]:
    """Return the acquisitions among files and folders, oldest first: one for each product.

    Files are told by the names that the USGS gives them. Metadata (`…_MTL.txt`, `…_MTL.json`) and `…_QA_PIXEL.TIF` are
    looked for beside the bands if they are not among the files.

    Args:
        paths: Folders and files.
        bands: `blue`, `green`, `red`, `nir`, `swir1`, `swir2`, with OLI also `coastal`; or `thermal` alone, which is
            `brightness_temperature` of level-1 and `surface_temperature` of level-2 products, in K.
        scale: With `offset`: value = scale × DN + offset, whatever the metadata say; the sun's elevation is then
            not divided by.
        offset: See `scale`.
        level: The only level to take where there are both.
        hiding: Bits of QA_PIXEL that hide the ground; none: it is not looked at.
        gain: Which of ETM+'s two thermal bands of level 1: the low gain, of the wider range, or the high gain, of
            the finer steps.

    Raises:
        UserError: If there is no product of collection 2, one lacks a band, or its metadata are missing where they
            are needed, cut off or another product's.
    """
    given = given_conversion(scale, offset)
    thermal = tuple(bands) == (THERMAL,)
    unknown = [name for name in bands if name not in _OLI]
    if unknown and not thermal:
        raise UserError(
            f"Landsat bands {', '.join(unknown)}: expected some of {', '.join(_OLI)}, or {THERMAL} alone, because "
            "temperatures are an input of their own"
        )
    if not bands or len(set(bands)) < len(bands):
        raise UserError(f"Landsat bands {', '.join(bands) or 'none'}: expected every band once")
    paths = list(paths)
    products = _products(files_in(paths))
    if level is not None:
        products = [product for product in products if product.level.startswith(f"L{level}")]
    if not products:
        raise UserError(
            f"no Landsat product{'' if level is None else f' of level {level}'} in "
            f"{', '.join(map(str, paths)) or 'an empty list of files'}; expected files named like "
            "LC08_L1TP_140041_20190812_20200827_02_T1_B4.TIF"
        )

    def build(product: _Product) -> Acquisition:
        return _acquisition(product, tuple(bands), given, tuple(hiding), gain)

    return each(products, build)


# -- files -----------------------------------------------------------------------------------------------------


def _products(files: Iterable[Path]) -> list[_Product]:
    products: dict[str, _Product] = {}
    for path in files:
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        product = products.setdefault(match["product"].upper(), _Product(match))
        part = match["part"].upper()
        other = product.files.get(part)
        if other is not None and part != "MTL":
            raise UserError(f"{product.id}: two files of {part}, expected one: {other}, {path}")
        if other is None or match["ending"].lower() == "txt":  # the MTL as text and as JSON say the same
            product.files[part] = path
    with_bands = [product for product in products.values() if set(product.files) - {"MTL", "QA_PIXEL"}]
    for product in with_bands:
        _find_companions(product)
    return with_bands


def _find_companions(product: _Product) -> None:
    for folder in dict.fromkeys(path.parent for path in product.files.values()):
        for path in sorted(folder.iterdir(), reverse=True):  # the MTL as text before the JSON
            match = _FILE.fullmatch(path.name)
            if match is not None and match["product"].upper() == product.id:
                part = match["part"].upper()
                if part in ("MTL", "QA_PIXEL"):
                    product.files.setdefault(part, path)


def _parts(product: _Product, bands: tuple[str, ...], gain: Gain) -> dict[str, str]:
    """Return name → the part of the file name that has the band; "" where the sensor has no such band."""
    oli = product.sensor[2:] in ("08", "09")
    second = product.level.startswith("L2")
    if bands != (THERMAL,):
        numbers = _OLI if oli else _TM
        return {name: f"{'SR_' if second else ''}B{numbers[name]}" if name in numbers else "" for name in bands}
    if second:
        return {"surface_temperature": "ST_B10" if oli else "ST_B6"}
    if product.sensor == "LE07":
        return {"brightness_temperature": "B6_VCID_1" if gain == "low" else "B6_VCID_2"}
    # Band 11 of TIRS suffers more from stray light, and is not delivered at level 2.
    return {"brightness_temperature": "B10" if oli else "B6"}


# -- radiometry --------------------------------------------------------------------------------------------------


def _acquisition(
    product: _Product, bands: tuple[str, ...], given: Affine | None, hiding: tuple[int, ...], gain: Gain
) -> Acquisition:
    if product.name["collection"] != "02":
        raise UserError(
            f"{product.id}: collection {product.name['collection']}, expected collection 2; download it anew, or give "
            "its files as ready reflectance with their scale and offset"
        )
    parts = _parts(product, bands, gain)
    missing = [
        f"{name} ({part or 'not a band of this sensor'})" for name, part in parts.items() if part not in product.files
    ]
    if missing:
        raise UserError(
            f"{product.id}: no file of the bands {', '.join(missing)} among {', '.join(sorted(product.files))}"
        )
    metadata = _read_metadata(product)
    thermal = bands == (THERMAL,)
    stored = {
        name: BandFile(product.files[part], 1, given or _conversion(product, part, metadata, thermal), NODATA)
        for name, part in parts.items()
    }
    facts: dict[str, Any] = {"scale_from": "constants of level 2"}
    if given is not None:
        facts["scale_from"] = "given"
    elif metadata is not None:
        facts["scale_from"] = metadata.path.name
    if metadata is not None and "SUN_ELEVATION" in metadata.groups.get("IMAGE_ATTRIBUTES", {}):
        facts["sun_elevation_deg"] = metadata.number("IMAGE_ATTRIBUTES", "SUN_ELEVATION")
    quality = product.files.get("QA_PIXEL") if hiding else None
    reflectance = SURFACE if product.level.startswith("L2") else TOA
    return Acquisition(
        product.id,
        datetime.datetime.strptime(product.name["date"], "%Y%m%d").date(),
        stored,
        "K" if thermal else reflectance,
        product.level,
        _SENSORS.get(product.sensor, product.sensor),
        None if quality is None else Hidden(quality, 1, "qa_pixel", hiding),
        described={**facts, "conversions": described(stored)},
    )


def _conversion(product: _Product, part: str, metadata: _Metadata | None, thermal: bool) -> Conversion:
    second = product.level.startswith("L2")
    if second and metadata is None:
        return _TEMPERATURE if thermal else _SURFACE
    if metadata is None:
        raise UserError(
            f"{product.id}: no metadata (…_MTL.txt or …_MTL.json) beside the bands, which level 1 needs for its "
            "factors and the sun's elevation; add the file, or give scale and offset"
        )
    band = part.removeprefix("SR_").removeprefix("B")
    if second and thermal:
        group = "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS"
        return Affine(
            metadata.number(group, f"TEMPERATURE_MULT_BAND_{part}"),
            metadata.number(group, f"TEMPERATURE_ADD_BAND_{part}"),
        )
    if second:
        group = "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"
        return Affine(
            metadata.number(group, f"REFLECTANCE_MULT_BAND_{band}"),
            metadata.number(group, f"REFLECTANCE_ADD_BAND_{band}"),
        )
    rescaling = "LEVEL1_RADIOMETRIC_RESCALING"
    if thermal:
        constants = "LEVEL1_THERMAL_CONSTANTS"
        return Thermal(
            metadata.number(rescaling, f"RADIANCE_MULT_BAND_{band}"),
            metadata.number(rescaling, f"RADIANCE_ADD_BAND_{band}"),
            metadata.number(constants, f"K1_CONSTANT_BAND_{band}"),
            metadata.number(constants, f"K2_CONSTANT_BAND_{band}"),
        )
    elevation = metadata.number("IMAGE_ATTRIBUTES", "SUN_ELEVATION")
    if not 0 < elevation <= 90:
        raise UserError(f"{metadata.path}: SUN_ELEVATION is {elevation:g}°, expected 0-90: a scene by day")
    height = math.sin(math.radians(elevation))
    return Affine(
        metadata.number(rescaling, f"REFLECTANCE_MULT_BAND_{band}") / height,
        metadata.number(rescaling, f"REFLECTANCE_ADD_BAND_{band}") / height,
    )


# -- metadata --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Metadata:
    path: Path
    groups: Groups

    def number(self, group: str, key: str) -> float:
        text = self.groups.get(group, {}).get(key)
        try:
            value = float(text or "")
        except ValueError as error:
            raise UserError(
                f"{self.path}: {key} of {group} is {text or 'missing'}, expected a number; download the file anew, or "
                "give scale and offset"
            ) from error
        return value


def _read_metadata(product: _Product) -> _Metadata | None:
    path = product.files.get("MTL")
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        groups = _from_json(text) if path.suffix.lower() == ".json" else _from_text(text)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: can't be read as Landsat metadata, it may be truncated or damaged ({error}); "
            "download it anew, or remove it and give scale and offset"
        ) from error
    named = groups.get("PRODUCT_CONTENTS", {}).get("LANDSAT_PRODUCT_ID", product.id)
    if named.upper() != product.id:
        raise UserError(f"{path}: metadata of {named}, expected those of {product.id}, which the file is named after")
    return _Metadata(path, groups)


def _from_text(text: str) -> Groups:
    groups: dict[str, dict[str, str]] = {}
    inside: list[str] = []
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            inside.append(value)
        elif key == "END_GROUP":
            if not inside or inside.pop() != value:
                raise ValueError(f"the group {value} ends and was not open")
        elif value and inside:
            groups.setdefault(inside[-1], {})[key] = value.strip('"')
    if inside or not groups:
        raise ValueError(f"the group {inside[-1]} has no end" if inside else "no group")
    return groups


def _from_json(text: str) -> Groups:
    stored = json.loads(text)
    groups = stored.get("LANDSAT_METADATA_FILE", stored) if isinstance(stored, dict) else {}
    return {
        name: {key: str(value) for key, value in group.items()}
        for name, group in groups.items()
        if isinstance(group, dict)
    }
