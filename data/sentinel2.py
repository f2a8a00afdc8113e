"""Sentinel-2 MSI products, level 1C and 2A: `.SAFE` folders, or their band files as one finds them elsewhere.

Reflectance = (DN + offset) / quantification value. The offset is -1000 in products of processing baseline 04.00 and
later (from 25 January 2022, and everything reprocessed since) and 0 before: read without it, reflectance is 0.1 too
high. Sources: Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD, issue 14.9 and later),
`Radiometric_Offset_List`, `BOA_ADD_OFFSET_VALUES_LIST`, `Special_Values`; Sen2Cor's scene classification from the
Level-2A Algorithm Theoretical Basis Document (S2-PDGS-MPC-ATBD-L2A).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from console import UserError
from data.acquisitions import (
    OPTICAL,
    TOA,
    Acquisition,
    Affine,
    BandFile,
    Hidden,
    described,
    each,
    files_in,
    given_conversion,
)
from data.tiles import SURFACE

Level = Literal["L1C", "L2A"]

BANDS = {
    "coastal": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "red_edge1": "B05",
    "red_edge2": "B06",
    "red_edge3": "B07",
    "nir": "B08",
    "nir_narrow": "B8A",
    "water_vapour": "B09",
    "cirrus": "B10",
    "swir1": "B11",
    "swir2": "B12",
}
"""Name of a band → the sensor's, in the order of `band_id` in the metadata (B01 is 0, B8A 8, B12 12)."""

HIDING = (0, 1, 3, 8, 9, 10)
"""Classes of the scene classification that hide the ground, unless the user says otherwise.

No data, saturated or defective, cloud shadow, cloud of medium and of high probability, cirrus. What stays: dark areas
(2: slopes in shadow are ground, and glaciers lie in them), water (6), unclassified (7), snow and ice (11).
"""

NODATA = (0.0, 65535.0)
"""DNs that are codes, not measurements (`Special_Values`): no data; saturated, which would read as a reflectance
of 6.5.
"""

_BAND_IDS = tuple(BANDS.values())
_QUANTIFICATION = 10_000.0
_OFFSET = -1000.0  # since baseline 04.00
_CUSTOM = "9999"  # the baseline of what users make with Sen2Cor themselves: says nothing of the offset
_FILE = re.compile(
    r"(?:(?P<prefix>.+)_)?(?P<band>B0[1-9]|B8A|B1[0-2]|SCL)(?:_(?P<metres>[126]0)m)?\.(?:jp2|tiff?)", re.I
)
_GRANULE = re.compile(r"T(?P<tile>\d{2}[A-Z]{3})_(?P<time>\d{8}T\d{6})")
_PRODUCT = re.compile(
    r"S2[A-Z]_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})(?:_N(?P<baseline>\d{4}))?_R\d{3}_T(?P<tile>\d{2}[A-Z]{3})"
    r"_\d{8}T\d{6}"
)
_LEVEL = re.compile(r"(?<![A-Z0-9])(?:MSI)?(L1C|L2A)(?![A-Z0-9])")
_CLOUD_NAME = re.compile(r"S2[A-Z]_\d{1,2}[A-Z]{3}_(?P<day>\d{8})_\d+_L")  # as the Earth Search catalogue names them
_METADATA = re.compile(r".*MTD_(?:MSI|SAF)(?P<level>L1C|L2A).*\.xml")


@dataclass(frozen=True)
class _Product:
    """The files of one granule of one product."""

    root: Path
    prefix: str
    files: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)  # band → (metres or 0, file)

    @property
    def words(self) -> tuple[str, ...]:
        """Names that may say what this is, the nearest first."""
        return (self.prefix, *reversed(self.root.parts))

    @property
    def granule(self) -> re.Match[str] | None:
        return _GRANULE.search(self.prefix)

    @property
    def name(self) -> re.Match[str] | None:
        """The product's name as ESA gives it, unless it is another product's."""
        found = next((match for word in self.words if (match := _PRODUCT.search(word))), None)
        return found if found is not None and self.is_of(found) else None

    def is_of(self, product: re.Match[str]) -> bool:
        """Whether what a product's name says of tile and time is true of the files."""
        if self.granule is None:
            return True
        # Of one tile there may be several products a day, far north; inside a .SAFE nobody has mixed them.
        return self.granule["tile"] == product["tile"] and (
            self.root.name == "IMG_DATA" or self.granule["time"] == product["time"]
        )

    @property
    def label(self) -> str:
        if self.name is not None:
            return self.name.group()
        return self.prefix or self.root.name


def sentinel2(
    paths: Iterable[Path],
    bands: Sequence[str] = OPTICAL,
    scale: float | None = None,
    offset: float | None = None,
    level: Level | None = None,
    hiding: Sequence[int] = HIDING,
) -> list[Acquisition]:
    """Return the acquisitions among files and folders, oldest first: one for each granule of each product.

    Band files are told by the ends of their names (`…_B02.jp2`, `…_B02_10m.jp2`, `B02.tif`); of several resolutions
    of a band the finest is taken. The product's metadata (`MTD_MSIL1C.xml`, `MTD_MSIL2A.xml`), beside the bands or at
    the top of their `.SAFE`, give quantification value and offset; without them the processing baseline in the
    product's name does.

    Level 1C has no scene classification: that of the level-2A product of the same tile and time is used if it is
    among the files. `paths` of both and `level="L1C"` is top-of-atmosphere reflectance with a mask of clouds.

    Args:
        paths: Folders, `.SAFE` or others, and files.
        bands: Names in `BANDS`, or the sensor's own (`B8A`), in the order of the channels.
        scale: With `offset`: reflectance = scale × DN + offset, whatever the metadata say.
        offset: See `scale`.
        level: The only level to take where there are both; also what files are whose names do not say.
        hiding: Classes of the scene classification that hide the ground; none: it is not looked at.

    Raises:
        UserError: If there is no product, one lacks a band, its level or its scale can't be told, or its metadata
            contradict themselves.
    """
    given = given_conversion(scale, offset)
    wanted = {name: _sensor_band(name) for name in bands}
    if not bands or len(set(wanted.values())) < len(bands):
        raise UserError(f"Sentinel-2 bands {', '.join(bands) or 'none'}: expected every band once")
    paths = list(paths)
    found = _products(files_in(paths))
    products = [(product, _level(product, found) or level) for product in found]
    classifications = dict(_classifications(product for product, _ in products))
    products = [
        (product, its_level)
        for product, its_level in products
        # Nothing but a scene classification is a mask of another product, not one with all bands missing.
        if set(product.files) != {"SCL"} and (level is None or its_level == level)
    ]
    if not products:
        raise UserError(
            f"no Sentinel-2 product{'' if level is None else f' of level {level}'} in "
            f"{', '.join(map(str, paths)) or 'an empty list of files'}; expected .SAFE folders, or band files whose "
            "names end like _B02.jp2, _B02_10m.jp2 or B02.tif"
        )

    def build(product: tuple[_Product, str | None]) -> Acquisition:
        return _acquisition(*product, wanted, given, tuple(hiding), classifications)

    return each(products, build)


# -- files -----------------------------------------------------------------------------------------------------


def _sensor_band(name: str) -> str:
    if name in BANDS:
        return BANDS[name]
    if name in BANDS.values():
        return name
    raise UserError(f"Sentinel-2 has no band {name!r}; known: {', '.join(BANDS)}, or {', '.join(BANDS.values())}")


def _products(files: Iterable[Path]) -> list[_Product]:
    products: dict[tuple[Path, str, bool], _Product] = {}
    for path in files:
        match = _FILE.fullmatch(path.name)
        # Masks of the product's quality report end like bands: MSK_DETFOO_B02.jp2.
        if match is None or path.name.startswith("MSK_") or "QI_DATA" in path.parts:
            continue
        folder = path.parent
        if re.fullmatch(r"R[126]0m", folder.name):
            folder = folder.parent
        prefix, metres = match["prefix"] or "", int(match["metres"] or 0)
        # Level 2A names the resolution, 1C does not: of one granule both may lie in one folder.
        key = folder, prefix, metres > 0
        product = products.setdefault(key, _Product(folder, prefix))
        product.files.setdefault(match["band"].upper(), []).append((metres, path))
    return list(products.values())


def _finest(product: _Product, band: str) -> Path:
    found = sorted(product.files[band])
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise UserError(f"{product.label}: two files of band {band}, expected one: {found[0][1]}, {found[1][1]}")
    return found[0][1]


def _classifications(products: Iterable[_Product]) -> Iterator[tuple[tuple[str, str], Path]]:
    """Yield tile and time, and the scene classification, of the products that have one."""
    for product in products:
        if "SCL" in product.files and product.granule is not None:
            yield _key(product.granule), _finest(product, "SCL")


def _scene_classification(product: _Product, elsewhere: dict[tuple[str, str], Path]) -> Path | None:
    """Return the product's own, also if only its bands were given, or that of the same tile and time."""
    if "SCL" in product.files:
        return _finest(product, "SCL")
    for folder in (product.root, product.root / "R20m", product.root / "R60m"):
        beside = sorted(path for path in _siblings(folder) if _is_classification(path, product.prefix))
        if beside:
            return beside[0]
    return elsewhere.get(_key(product.granule)) if product.granule else None


def _is_classification(path: Path, prefix: str) -> bool:
    match = _FILE.fullmatch(path.name)
    return match is not None and match["band"].upper() == "SCL" and (match["prefix"] or "") == prefix


def _siblings(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


# -- what the product is -----------------------------------------------------------------------------------------


def _key(match: re.Match[str]) -> tuple[str, str]:
    return match["tile"], match["time"]


def _level(product: _Product, products: Sequence[_Product]) -> str | None:
    """Return what the product's name, its files or its metadata say of its level."""
    if product.name is not None:
        return product.name["level"]
    if any(metres for files in product.files.values() for metres, _ in files) or "SCL" in product.files:
        return "L2A"
    found = [match for word in product.words if (match := _LEVEL.search(word))]
    if found:
        return found[0][1]
    if any((product.root, product.prefix) == (other.root, other.prefix) for other in products if other is not product):
        return "L1C"  # the other's names have resolutions
    levels = {level for _, level in _metadata(product)}
    return levels.pop() if len(levels) == 1 else None


def _metadata(product: _Product) -> Iterator[tuple[Path, str]]:
    """Yield the metadata files that may be the product's, with their level, the nearest first."""
    above = product.root.parents[:3] if product.root.name == "IMG_DATA" else ()  # granule, GRANULE, the .SAFE itself
    for folder in (product.root, *above):
        for path in sorted(_siblings(folder)):
            match = _METADATA.fullmatch(path.name)
            if match is None:
                continue
            uri = _PRODUCT.search(_text(_tree(path), "PRODUCT_URI") or "")
            if uri is None or product.is_of(uri):
                yield path, match["level"]


def _tree(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: can't be read as XML, it may be truncated or damaged ({error}); download "
            "it anew, or remove it and give scale and offset"
        ) from error


def _elements(tree: ElementTree.Element, *tags: str) -> list[ElementTree.Element]:
    return [element for element in tree.iter() if element.tag.rpartition("}")[2] in tags]


def _text(tree: ElementTree.Element, *tags: str) -> str | None:
    found = _elements(tree, *tags)
    return (found[0].text or "").strip() if found else None


def _number(path: Path, tag: str, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise UserError(f"{path}: {tag} is {text or 'missing'}, expected a number; give scale and offset") from error


def _date(product: _Product, metadata: ElementTree.Element | None) -> datetime.date | None:
    for match in (product.granule, product.name):
        if match is not None:
            return _day(match["time"][:8])
    started = None if metadata is None else _text(metadata, "PRODUCT_START_TIME")
    if started:
        return _day(started[:10].replace("-", ""))
    named = next((match for word in product.words if (match := _CLOUD_NAME.search(word))), None)
    return _day(named["day"]) if named else None


def _day(digits: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None


# -- radiometry --------------------------------------------------------------------------------------------------


def _acquisition(
    product: _Product,
    level: str | None,
    wanted: dict[str, str],
    given: Affine | None,
    hiding: tuple[int, ...],
    classifications: dict[tuple[str, str], Path],
) -> Acquisition:
    if level is None:
        raise UserError(
            f"{product.root / product.prefix}: neither names nor metadata say whether this is level 1C "
            f"({TOA}) or 2A ({SURFACE}); give the level"
        )
    missing = [f"{name} ({band})" for name, band in wanted.items() if band not in product.files]
    if missing:
        raise UserError(
            f"{product.label}: no file of the bands {', '.join(missing)} among {', '.join(sorted(product.files))} in "
            f"{product.root}"
        )
    path = next((path for path, its_level in _metadata(product) if its_level == level), None)
    metadata = None if path is None else _tree(path)
    if given is not None:
        conversions = dict.fromkeys(wanted.values(), given)
        facts: dict[str, Any] = {"scale_from": "given"}
    elif path is not None and metadata is not None:
        conversions, facts = _from_metadata(path, metadata, level, tuple(wanted.values()))
    else:
        conversions, facts = _from_name(product, tuple(wanted.values()))
    bands = {name: BandFile(_finest(product, band), 1, conversions[band], NODATA) for name, band in wanted.items()}
    classification = _scene_classification(product, classifications) if hiding else None
    return Acquisition(
        product.label,
        _date(product, metadata),
        bands,
        TOA if level == "L1C" else SURFACE,
        level,
        "Sentinel-2 MSI",
        None if classification is None else Hidden(classification, 1, "scl", hiding),
        described={**facts, "conversions": described(bands)},
    )


def _from_metadata(
    path: Path, tree: ElementTree.Element, level: str, bands: Iterable[str]
) -> tuple[dict[str, Affine], dict[str, Any]]:
    if level == "L1C":
        quantification_tags: tuple[str, ...] = ("QUANTIFICATION_VALUE",)
        offset_tag = "RADIO_ADD_OFFSET"
    else:  # products made before 2018 have the longer name
        quantification_tags, offset_tag = ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"), "BOA_ADD_OFFSET"
    quantification = _number(path, quantification_tags[0], _text(tree, *quantification_tags))
    if quantification <= 0:
        raise UserError(f"{path}: {quantification_tags[0]} is {quantification:g}, expected a number above 0")
    baseline = _text(tree, "PROCESSING_BASELINE") or ""
    offsets = {
        element.get("band_id", ""): _number(path, offset_tag, element.text) for element in _elements(tree, offset_tag)
    }
    if not offsets and _has_offset(baseline.replace(".", "")):
        raise UserError(
            f"{path}: processing baseline {baseline} and no {offset_tag}, expected one for every band since baseline "
            "04.00; give scale and offset: 0.0001 and -0.1 as ESA delivers, 0.0001 and 0 where the offset was taken "
            "out already"
        )
    conversions: dict[str, Affine] = {}
    for band in bands:
        number = _BAND_IDS.index(band)
        if offsets and str(number) not in offsets:
            raise UserError(
                f"{path}: {offset_tag} of some bands, but none of {band} (band_id {number}); give scale and offset"
            )
        conversions[band] = _affine(quantification, offsets.get(str(number), 0.0))
    return conversions, {"scale_from": path.name, "baseline": baseline}


def _from_name(product: _Product, bands: Iterable[str]) -> tuple[dict[str, Affine], dict[str, Any]]:
    baseline = product.name["baseline"] if product.name else None
    if baseline is None or baseline == _CUSTOM:
        raise UserError(
            f"{product.root / product.prefix}: no metadata (MTD_MSIL1C.xml, MTD_MSIL2A.xml) and no processing "
            "baseline in the name, so the offset is not known; give scale and offset (reflectance = scale × DN + "
            "offset): 0.0001 and 0 before baseline 04.00 and where the offset was taken out already, 0.0001 and -0.1 "
            "since 04.00"
        )
    conversion = _affine(_QUANTIFICATION, _OFFSET if _has_offset(baseline) else 0.0)
    facts = {"scale_from": "baseline in the product's name", "baseline": f"{baseline[:2]}.{baseline[2:]}"}
    return dict.fromkeys(bands, conversion), facts


def _has_offset(baseline: str) -> bool:
    return baseline.isdigit() and baseline != _CUSTOM and int(baseline) >= 400


def _affine(quantification: float, offset: float) -> Affine:
    return Affine(1 / quantification, offset / quantification)
