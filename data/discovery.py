"""A first dataset file, from looking at the rasters and outlines of a folder: guesses, for a person to correct."""

from __future__ import annotations

import datetime
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rasterio
import yaml
from rasterio.errors import NotGeoreferencedWarning

from console import UserError
from data import grids
from data.dataset_file import UNKNOWN_REGION
from data.grids import Grid

_RASTERS = (".tif", ".tiff", ".jp2", ".img", ".vrt")
_OUTLINES = (".gpkg", ".shp", ".geojson", ".fgb", ".parquet", ".geoparquet")
_SENTINEL2 = re.compile(r"S2[A-D]_MSIL[12][AC]_\d{8}T|^T\d{2}[A-Z]{3}_\d{8}T\d{6}_", re.I)
_LANDSAT = re.compile(r"^L[COTE]0[4-9]_L[12]\w{2}_\d{6}_\d{8}_", re.I)
_OLD_LANDSAT = re.compile(r"^L(?P<kind>[CET])(?P<number>[4-9])\d{6}(?P<year>\d{4})(?P<day>\d{3})", re.I)
_BANDS_OF_LANDSAT = {
    "TM": {"1": "blue", "2": "green", "3": "red", "4": "nir", "5": "swir1", "6": "thermal", "7": "swir2"},
    "OLI": {"2": "blue", "3": "green", "4": "red", "5": "nir", "6": "swir1", "7": "swir2", "10": "thermal"},
}
_WORDS = {
    "dem": ("dem", "dsm", "dtm", "srtm", "aster", "ast", "alos", "cop30", "copernicus", "elevation", "hgt", "z"),
    "coherence": ("coh", "coherence", "insar"),
    "sar": ("sar", "s1", "s1a", "s1b", "vv", "vh", "hh", "hv", "sigma0", "gamma0", "backscatter"),
    "thermal": ("thermal", "lst", "tir", "b10", "bt"),
}
_MODALITIES = {"dem": "dem", "coherence": "in_sar", "sar": "sar", "thermal": "thermal", "reflectance": "optical"}
_ORDER = ("reflectance", "dem", "sar", "coherence", "thermal")  # the first modality's grid is that of the tiles
_COLORS = {"rgb": ["red", "green", "blue"], "bgr": ["blue", "green", "red"], "bgrn": ["blue", "green", "red", "nir"]}
_BAND_WORDS = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
_OTHER_CLASSES = {"debris": ("debris",), "water": ("lake", "lakes", "water")}
# First-order regions of the RGI to region codes of the published datasets.
_RGI = {
    "01": "AWA", "02": "AWA", "05": "GR", "07": "SVAL", "08": "SC", "11": "ALP", "12": "CA", "13": "HMA", "14": "HMA",
    "15": "HMA", "16": "LL", "17": "SA", "18": "NZ", "19": "AN",
}  # fmt: skip


@dataclass
class _Found:
    """The rasters of one folder, and what could not be used of it."""

    grids: dict[Path, Grid] = field(default_factory=dict)
    products: dict[str, set[Path]] = field(default_factory=lambda: defaultdict(set))
    left_out: list[str] = field(default_factory=list)


def first_dataset_file(folder: Path, region: str = "") -> str:
    """Return the text of a dataset file for what lies in a folder: a scene for each folder with rasters in it.

    What a raster holds is guessed from its name and its bands; comments say what to look at.

    Args:
        folder: Where to look, in all folders below as well; paths in the text are relative to it.
        region: Region code; without it, the one that the outlines' name or number of the RGI tells.

    Raises:
        UserError: If there is no such folder, or no raster with a place on earth in it.
    """
    if not folder.is_dir():
        raise UserError(f"--init {folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    outlines = [path for path in files if path.suffix.lower() in _OUTLINES]
    by_folder: dict[Path, _Found] = defaultdict(_Found)
    for path in files:
        if path.suffix.lower() in _RASTERS and not path.name.lower().endswith(".ovr"):
            _sort(path, folder, by_folder)
    notes = [note for found in by_folder.values() for note in found.left_out]
    usable = {place: found for place, found in by_folder.items() if found.grids or found.products}
    if not usable:
        listed = "; ".join(notes) or f"there are {', '.join(path.name for path in files[:8]) or 'no files'}"
        raise UserError(f"--init {folder}: no raster with a place on earth in it: {listed}")
    scenes = {
        (place.name if place != folder else folder.resolve().name): _scene(place, found, folder, notes)
        for place, found in usable.items()
    }
    guessed = region or next((code for path in outlines if (code := _region_of(path))), "")
    if not guessed:
        notes.append("region: could not be guessed; give the code of yours, such as HMA")
    content: dict[str, Any] = {"region": guessed or UNKNOWN_REGION, "tile_size": _tile_size(usable), "scenes": scenes}
    named = _outlines(outlines, folder, notes)
    if named:
        content["outlines"] = named
    else:
        content["mask_from"] = "ndsi > 0.4"
        notes.append("no outlines were found: `mask_from` makes weak masks of an index; give `outlines: FILE` instead")
    content["split"] = {"by": "blocks", "val": 0.15, "test": 0.15}
    lines = [
        "# Written from the names and headers of the files: guesses. Read every line, correct it, then prepare.",
        *(f"# - {note}" for note in notes),
        "",
        yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110).rstrip(),
        "",
    ]
    return "\n".join(lines)


def scene_of(files: Sequence[Path]) -> tuple[str, dict[str, Any], list[str]]:
    """Return name, `modalities` and remarks of the scene that these rasters are, guessed from names and bands.

    Raises:
        UserError: If a file is not there, or none is a raster with a place on earth.
    """
    if missing := [path for path in files if not path.exists()]:
        raise UserError(f"{missing[0]}: no such file")
    found = _Found()
    for path in files:
        if path.suffix.upper() == ".SAFE" or _SENTINEL2.search(path.name):
            found.products["sentinel-2"].add(path)
        elif _LANDSAT.match(path.name):
            found.products["landsat"].add(path)
        elif path.is_file():
            try:
                found.grids[path] = grids.read_grid(path)
            except UserError as error:
                found.left_out.append(f"left out: {error}")
    if not found.grids and not found.products:
        raise UserError("; ".join(found.left_out) or f"no raster among {', '.join(map(str, files))}")
    notes = list(found.left_out)
    first = files[0].absolute()
    name = first.stem if len(files) == 1 else first.parent.name
    scene = _scene(first.parent, found, Path(), notes)
    for modality in scene["modalities"].values():
        if all(re.fullmatch(r"band_\d+", name) for name in modality.get("bands", ())):
            modality.pop("bands", None)  # who knows their names by another way may use it
        # The products' own files, not a pattern: what was named is what is meant.
        if modality.get("type") in found.products:
            modality["files"] = sorted(map(str, found.products[modality["type"]]))
    return name, scene["modalities"], notes


def _sort(path: Path, folder: Path, by_folder: dict[Path, _Found]) -> None:
    """Put a raster where it belongs: to its product, or to the other rasters of its folder."""
    product = next((parent for parent in path.parents if parent.suffix.upper() == ".SAFE"), None)
    if product is not None:
        # Its scene is the folder that holds the products: acquisitions of one place.
        place = product.parent if folder in product.parents else folder
        by_folder[place].products["sentinel-2"].add(product)
        return
    found = by_folder[path.parent]
    if _SENTINEL2.search(path.name):
        found.products["sentinel-2"].add(path)
    elif _LANDSAT.match(path.name):
        found.products["landsat"].add(path)
    else:
        try:
            found.grids[path] = grids.read_grid(path)
        except UserError as error:
            found.left_out.append(f"left out: {error}")


def _scene(place: Path, found: _Found, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return a scene's entry."""
    scene: dict[str, Any] = {}
    modalities: dict[str, Any] = {}
    for kind, members in found.products.items():
        if kind == "sentinel-2":
            patterns = sorted(_relative(path, folder) for path in members if path.suffix.upper() == ".SAFE")
            patterns += [_relative(place / "*", folder)] if any(path.is_file() for path in members) else []
        else:
            patterns = [_relative(place / "L*", folder)]
        modalities["optical"] = {"type": kind, "files": patterns if len(patterns) > 1 else patterns[0]}
        if kind == "landsat" and any(re.search(r"_(ST_)?B(6|10)\b|_B6_VCID", path.stem, re.I) for path in members):
            modalities["thermal"] = {"type": "landsat", "files": patterns[0]}
        notes.append(
            f"{place.name}: several dates of {kind} need `composite: {{period: month, method: median}}` under `optical`"
        )
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in found.grids:
        kinds[_kind(path)].append(path)
    for kind, paths in sorted(kinds.items(), key=lambda pair: _ORDER.index(pair[0])):
        entry = _entry(kind, paths, folder, notes)
        if _MODALITIES[kind] not in modalities:
            modalities[_MODALITIES[kind]] = entry
    dates = sorted({date for path in found.grids if (date := _date(path.name)) is not None})
    if len(dates) == 1:
        scene["date"] = dates[0]
    scene["modalities"] = modalities
    return scene


def _entry(kind: str, paths: Sequence[Path], folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return a modality's entry: band → file where the files have different bands, else the files."""
    names = {path: _band_names(path) for path in paths}
    relative = {path: _relative(path, folder) for path in paths}
    if kind == "dem":
        return {"files": list(relative.values()) if len(paths) > 1 else relative[paths[0]]}
    entry: dict[str, Any] = {}
    flat = [name for bands in names.values() for name in bands]
    if len(paths) > 1 and len(set(flat)) == len(flat):
        places = {
            name: f"{relative[path]}#{number}" if len(bands) > 1 else relative[path]
            for path, bands in names.items()
            for number, name in enumerate(bands, 1)
        }
        known = [name for name in _BAND_WORDS if name in places]
        entry["files"] = {name: places[name] for name in dict.fromkeys([*known, *places])}
    else:
        entry["files"] = list(relative.values()) if len(paths) > 1 else relative[paths[0]]
        entry["bands"] = names[paths[0]]
    if any(re.fullmatch(r"band_\d+|.*\d{3,}.*", name) for name in flat):
        notes.append(
            f"{_MODALITIES[kind]}: names of bands could not be guessed: name them (blue, green, red, nir, swir1, …)"
        )
    if kind == "sar":
        entry["given"] = "db" if any(_has_negative(path) for path in paths) else "linear"
        notes.append(f"sar: taken to be {entry['given']}, from its values")
    if kind == "reflectance" and any(_is_integer(path) for path in paths):
        notes.append(
            "optical: whole numbers, taken as they are; give `scale` and `offset` if these make reflectance of them, "
            "and `nodata` if a value means nodata"
        )
    return entry


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _kind(path: Path) -> str:
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    bands = len(_band_names(path))
    for kind, known in _WORDS.items():
        if any(word in known for word in words) and (kind != "dem" or bands == 1):
            return kind
    return "thermal" if _band_names(path) == ["thermal"] else "reflectance"


def _band_names(path: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            count, described = dataset.count, [name for name in dataset.descriptions if name]
    if len(set(described)) == count:
        return described
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    for word in words:
        if len(_COLORS.get(word, [])) == count:
            return _COLORS[word]
    if count == 1:
        number = next((match[1] for word in words if (match := re.fullmatch(r"b0?(\d+)", word))), None)
        old = _OLD_LANDSAT.match(path.name)
        if number is not None:
            bands = _BANDS_OF_LANDSAT["OLI" if old and int(old["number"]) > 7 else "TM"] if old else {}
            return [bands.get(number, f"b{number}")]
        return [next((word for word in words if word in _BAND_WORDS), words[-1] or "band_1")]
    return [f"band_{number}" for number in range(1, count + 1)]


def _date(name: str) -> datetime.date | None:
    """Return the date in a file's name: year and day of an old Landsat name, or the only eight digits that are one."""
    if old := _OLD_LANDSAT.match(name):
        return datetime.date(int(old["year"]), 1, 1) + datetime.timedelta(int(old["day"]) - 1)
    found: set[datetime.date] = set()
    for digits in re.findall(r"(?<!\d)((?:19|20)\d{6})(?!\d)", name):
        try:
            found.add(datetime.datetime.strptime(digits, "%Y%m%d").date())
        except ValueError:
            continue
    return found.pop() if len(found) == 1 else None


def _outlines(paths: Sequence[Path], folder: Path, notes: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for path in paths:
        words = re.split(r"[^a-z0-9]+", path.stem.lower())
        name = next((key for key, known in _OTHER_CLASSES.items() if any(w in known for w in words)), "glacier")
        if name in named:
            notes.append(f"outlines: {path.relative_to(folder)} left out, {named[name]} is taken for {name}")
        else:
            named[name] = str(path.relative_to(folder))
    # Later ones paint over earlier ones: debris and water lie on glaciers.
    return {key: named[key] for key in ("glacier", "debris", "water") if key in named}


def _region_of(path: Path) -> str:
    numbers = re.match(r"(?:rgi\D*\d*\D+?)?(\d{2})(?:_rgi|_|\D)", path.stem.lower()) or re.search(
        r"[-_](\d{2})[-_]", path.stem.lower()
    )
    return _RGI.get(numbers[1], "") if numbers and "rgi" in path.stem.lower() else ""


def _tile_size(found: dict[Path, _Found]) -> int:
    """Return the largest usual size of which the smallest scene has some nine."""
    sides = [min(grid.height, grid.width) for one in found.values() for grid in one.grids.values()]
    shortest = min(sides, default=10_000)
    return next((size for size in (512, 384, 256, 128) if size * 2.5 <= shortest), 128)


def _has_negative(path: Path) -> bool:
    with rasterio.open(path) as dataset:
        step = max(1, max(dataset.shape) // 512)
        shape = (max(1, dataset.height // step), max(1, dataset.width // step))
        sample = dataset.read(1, out_shape=shape, masked=True)
        return bool((sample < 0).mean() > 0.1) if sample.count() else False


def _is_integer(path: Path) -> bool:
    with rasterio.open(path) as dataset:
        return all(kind.startswith(("int", "uint")) for kind in dataset.dtypes)
