"""Scenes: what a dataset file describes, found on the disk and ready to be read, window by window, on one grid."""

from __future__ import annotations

import datetime
import glob
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.warp import transform_bounds

from console import UserError
from data import grids
from data.acquisitions import Acquisition, Affine, BandFile, Decibels, read_acquisition
from data.composites import compose, label_of, periods
from data.dataset_file import (
    Composite,
    DatasetFile,
    ModalityEntry,
    OutlineEntry,
    SceneDescription,
    Type,
    filled,
    scenes_of,
    type_of,
)
from data.grids import Grid
from data.landsat import landsat
from data.normalisation import published_bands
from data.outlines import OutlineFile
from data.sentinel2 import sentinel2
from data.terrain import TERRAIN, read_terrain
from data.weak_masks import Rule
from data.windows import Window

CLEAR_COUNT = "clear_count"
"""The band of a composite that counts the clear acquisitions of each pixel."""

_OPTICAL = ("blue", "green", "red", "nir", "swir1", "swir2")
_UNITS: dict[Type, str] = {
    "reflectance": "reflectance",
    "dem": "elevation m, slope °, aspect as sine and cosine, curvature 1/m",
    "sar": "log10(sigma0 + 1e-6)",
    "coherence": "interferometric coherence",
    "thermal": "K",
    "bands": "",
}
_LANDSAT_LEVELS = {"L1": 1, "L2": 2}
_DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")


@dataclass(frozen=True)
class Source:
    """A modality of a scene.

    `acquisitions`: what it is read from; those of one date lie side by side, several dates become one by `composite`.
    `rasters`: of a DEM, instead. `bands`: names of what `read_source` returns. `required`: whether pixels without any
    of its bands are invalid.
    """

    modality: str
    type: Type
    bands: tuple[str, ...]
    entry: ModalityEntry
    acquisitions: tuple[Acquisition, ...] = ()
    rasters: tuple[Path, ...] = ()
    required: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """All rasters that its values come from."""
        found = [band.path for acquisition in self.acquisitions for band in acquisition.bands.values()]
        return tuple(dict.fromkeys([*self.rasters, *found]))

    @property
    def nodata(self) -> tuple[float, ...]:
        """Values that mean nodata, beside the rasters' own tags."""
        return _numbers(self.entry.nodata)

    @property
    def unit(self) -> str:
        """What the values are measured in."""
        return self.entry.unit or next((one.unit for one in self.acquisitions if one.unit), _UNITS.get(self.type, ""))

    @property
    def level(self) -> str:
        """How far the values were processed before; empty where unknown."""
        return ", ".join(dict.fromkeys(one.level for one in self.acquisitions if one.level)) or self.entry.level or ""


@dataclass(frozen=True)
class OutlineLayer:
    """Outlines of one class of a scene."""

    class_name: str
    source: OutlineFile
    entry: OutlineEntry


@dataclass(frozen=True)
class Scene:
    """A scene, or one period of it: a grid, the modalities on it, and where its mask comes from.

    `hidden`: rasters, and the values in them that mean that the ground is hidden. `rule`: of a weak mask, instead of
    outlines. `notes`: what was found on the way that a user should read.
    """

    name: str
    region: str
    subregion: str
    date: datetime.date | None
    grid: Grid
    sources: dict[str, Source]
    outlines: tuple[OutlineLayer, ...] = ()
    rule: Rule | None = None
    hidden: tuple[tuple[Path, ...], tuple[int, ...]] = ((), ())
    period: str = ""
    notes: tuple[str, ...] = ()


def find_scenes(
    dataset: DatasetFile, base: Path, *, labelled: bool = True, known: Mapping[str, Sequence[str]] | None = None
) -> list[Scene]:
    """Return the scenes of a dataset file, one for each period where acquisitions are composed.

    Args:
        dataset: The dataset file.
        base: The folder that its paths are relative to.
        labelled: Whether scenes need outlines or weak masks.
        known: Modality → names that its bands have where nothing says any, if their number is that.

    Raises:
        UserError: If files are missing, can't be read, do not fit together or do not meet their scene's grid.
    """
    found = [
        scene
        for description in scenes_of(dataset, base, labelled=labelled)
        for scene in _by_period(_resolved(description, base, known or {}))
    ]
    channels: dict[str, tuple[tuple[str, ...], str]] = {}
    for scene in found:
        for modality, source in scene.sources.items():
            bands, first = channels.setdefault(modality, (source.bands, scene.name))
            if bands != source.bands:
                raise UserError(
                    f"scene {scene.name!r}: {modality} has the bands {', '.join(source.bands)}; in scene {first!r} it "
                    f"has {', '.join(bands)}: all scenes of a dataset need the same, choose them with `bands`"
                )
    return found


def read_source(source: Source, target: Grid) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a modality on the target grid, float32 (H, W, C), NaN without a value, and where the ground is clear.

    Raises:
        UserError: If a raster can't be read.
    """
    smooth = source.entry.resampling
    if source.type == "dem":
        values = np.full((target.height, target.width, len(source.bands)), np.nan, np.float32)
        for path in source.rasters:
            if not np.isnan(values).all(axis=-1).any():
                break
            if grids.overlaps(path, target):
                values = _filled(values, read_terrain(path, target, source.bands, source.nodata, smooth))
        return values, np.ones(values.shape[:2], bool)
    composite = source.entry.composite
    bands = len(source.bands) - (composite is not None and composite.count)
    by_date: dict[datetime.date | None, list[Acquisition]] = defaultdict(list)
    for acquisition in source.acquisitions:
        by_date[acquisition.date].append(acquisition)
    if composite is None:
        return _mosaic([one for members in by_date.values() for one in members], target, bands, smooth)
    dates = sorted(by_date, key=lambda date: date or datetime.date.min)
    reads = (_mosaic(by_date[date], target, bands, smooth) for date in dates)
    values, count = compose(reads, composite.method)
    if composite.count:
        values = np.concatenate([values, count[..., None].astype(np.float32)], axis=-1)
        # A count of 0 is a value; it must not make a pixel valid that no acquisition saw.
        values[count == 0] = np.nan
    return values, np.asarray(np.isfinite(values).any(axis=-1))


def hidden(scene: Scene, target: Grid) -> NDArray[np.bool_]:
    """Return where the scene's own raster of hidden ground says so, bool (H, W).

    Raises:
        UserError: If it can't be read.
    """
    paths, values = scene.hidden
    found = np.zeros((target.height, target.width), bool)
    for path in paths:
        if grids.overlaps(path, target):
            found |= np.isin(grids.read(path, (1,), target, "classes")[..., 0], values)
    return found


def _mosaic(
    acquisitions: Sequence[Acquisition], target: Grid, bands: int, smooth: grids.Smooth
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return acquisitions that lie side by side as one: of each pixel the first that is clear, else the first."""
    values = np.full((target.height, target.width, bands), np.nan, np.float32)
    clear = np.zeros(values.shape[:2], bool)
    for acquisition in acquisitions:
        if not any(grids.overlaps(band.path, target) for band in acquisition.bands.values()):
            continue
        more, seen = read_acquisition(acquisition, target, smooth)
        better = seen & ~clear & np.isfinite(more).any(axis=-1)
        values[better] = more[better]
        values = _filled(values, more)
        clear |= better
    return values, clear


def _filled(values: NDArray[np.float32], more: NDArray[np.float32]) -> NDArray[np.float32]:
    empty = np.isnan(values).all(axis=-1, keepdims=True)
    return np.where(empty, more, values)


# -- from descriptions to scenes -----------------------------------------------------------------------------


def _resolved(description: SceneDescription, base: Path, known: Mapping[str, Sequence[str]]) -> Scene:
    names = {"region": description.region, "scene": description.name, "folder": description.folder}
    reference = description.grid.modality or next(iter(description.modalities))
    if reference not in description.modalities:
        raise UserError(
            f"scene {description.name!r}: grid.modality is {reference!r}, expected one of "
            f"{', '.join(description.modalities)}"
        )
    sources = {
        modality: _source(modality, entry, description, names, base, modality == reference, known.get(modality, ()))
        for modality, entry in description.modalities.items()
    }
    grid = grids.target_grid(_union(sources[reference].paths), description.grid.crs, description.grid.resolution)
    for modality, source in sources.items():
        if not any(grids.overlaps(path, grid) for path in source.paths):
            raise UserError(
                f"scene {description.name!r}: {modality} does not meet the scene's grid: "
                f"{', '.join(map(str, source.paths[:3]))} lies elsewhere than {sources[reference].paths[0]}; use files "
                f"of the same place, or `{modality}: null` for a scene without it"
            )
    hidden: tuple[tuple[Path, ...], tuple[int, ...]] = ((), ())
    if description.hidden is not None:
        patterns = description.hidden.files
        found = [
            path
            for pattern in ([patterns] if isinstance(patterns, str) else patterns)
            for _, path in _find(pattern, names, base, f"scene {description.name!r}: hidden")
        ]
        hidden = (tuple(found), tuple(description.hidden.values))
    dates = {one.date for one in sources[reference].acquisitions if one.date is not None}
    return Scene(
        description.name,
        description.region,
        description.subregion,
        description.date or (dates.pop() if len(dates) == 1 else None),
        grid,
        sources,
        tuple(
            OutlineLayer(name, _outline_file(entry, names, base, description.name), entry)
            for name, entry in description.outlines.items()
        ),
        Rule.parse(description.mask_from) if description.mask_from else None,
        hidden,
    )


def _outline_file(entry: OutlineEntry, names: Mapping[str, str], base: Path, scene: str) -> OutlineFile:
    found = [path for _, path in _find(entry.file, names, base, f"scene {scene!r}: outlines")]
    if len(found) > 1:
        raise UserError(
            f"scene {scene!r}: outlines: {entry.file} matches {len(found)} ({found[0].name}, {found[1].name}, …): "
            "name one"
        )
    return OutlineFile(found[0], entry.layer, entry.where, entry.date_field, entry.date)


def _by_period(scene: Scene) -> Iterator[Scene]:
    """Yield a scene once, or once for each period of the acquisitions of the modality that its grid is of."""
    reference = next(iter(scene.sources))
    reference = next((name for name, source in scene.sources.items() if source.required), reference)
    composite = scene.sources[reference].entry.composite
    for modality, source in scene.sources.items():
        dates = sorted({one.date for one in source.acquisitions if one.date is not None})
        if len(dates) > 1 and source.entry.composite is None:
            raise UserError(
                f"scene {scene.name!r}: {modality} has acquisitions of {len(dates)} dates, {dates[0]} to {dates[-1]}: "
                "say how they become one, such as `composite: {period: month, method: median}`, or choose one date"
            )
    if composite is None:
        yield _within(scene, "", scene.date)
        return
    for label, members in periods(scene.sources[reference].acquisitions, composite.period).items():
        dates = sorted(one.date for one in members if one.date is not None)
        date = dates[len(dates) // 2] if dates else scene.date
        name = scene.name if composite.period == "all" else f"{scene.name}-{label}"
        sources = scene.sources | {reference: replace(scene.sources[reference], acquisitions=tuple(members))}
        yield _within(replace(scene, name=name, date=date, period=label, sources=sources), reference, date)


def _within(scene: Scene, reference: str, date: datetime.date | None) -> Scene:
    """Return the scene with the acquisitions of its period in all other modalities that are composed."""
    sources: dict[str, Source] = {}
    notes: list[str] = []
    for modality, source in scene.sources.items():
        composite = source.entry.composite
        if composite is not None and modality != reference and composite.period != "all":
            if date is None:
                raise UserError(
                    f"scene {scene.name!r}: {modality} is composed by {composite.period}, but the scene has no date to "
                    "say which: give it `date`, or compose with `period: all`"
                )
            label = label_of(date, composite.period)
            members = periods(source.acquisitions, composite.period).get(label, [])
            if not members:
                notes.append(f"scene {scene.name}: no acquisition of {modality} in {label}; it is absent")
                continue
            source = replace(source, acquisitions=tuple(members))
        sources[modality] = source
    return replace(scene, sources=sources, notes=(*scene.notes, *notes))


def _source(
    modality: str,
    entry: ModalityEntry,
    scene: SceneDescription,
    names: Mapping[str, str],
    base: Path,
    reference: bool,
    known: Sequence[str],
) -> Source:
    where = f"scene {scene.name!r}: {modality}"
    kind = type_of(modality, entry)
    _check_meaning(where, kind, entry)
    required = reference if entry.required is None else entry.required
    if kind in ("sentinel-2", "landsat"):
        files = entry.files
        if isinstance(files, dict):
            raise UserError(f"{where}: files of {kind} are products' folders or their files, without names of bands")
        paths = [path for pattern in _listed(files) for _, path in _find(pattern, names, base, where)]
        wanted = tuple(entry.bands or (("thermal",) if modality == "thermal" else _OPTICAL))
        if isinstance(entry.scale, list) or isinstance(entry.offset, list):
            raise UserError(f"{where}: `scale` and `offset` of {kind} are one number each, received a list")
        more: dict[str, Any] = {} if entry.hiding is None else {"hiding": tuple(entry.hiding)}
        find: Any = landsat
        if kind == "sentinel-2":
            find, more["level"] = sentinel2, entry.level
        elif entry.level is not None:
            if entry.level not in _LANDSAT_LEVELS:
                raise UserError(
                    f"{where}: `level` of landsat is {' or '.join(_LANDSAT_LEVELS)}; received {entry.level!r}"
                )
            more["level"] = _LANDSAT_LEVELS[entry.level]
        acquisitions = find(paths, wanted, scale=entry.scale, offset=entry.offset, **more)
        bands = tuple(acquisitions[0].bands)
        return _finished(Source(modality, kind, bands, entry, tuple(acquisitions), required=required))
    by_date = _rasters(entry, names, base, where)
    if kind == "dem":
        bands = tuple(entry.bands or ("elevation", "slope"))
        if unknown := [name for name in bands if name not in TERRAIN]:
            raise UserError(f"{where}: bands of a DEM are {', '.join(TERRAIN)}; received {', '.join(unknown)}")
        rasters = tuple(path for files in by_date.values() for path, _ in _members(files))
        for path in rasters:
            if (count := _count(path)[0]) != 1:
                raise UserError(f"{where}: {path} has {count} bands, expected one, the elevation in metres")
        return _finished(Source(modality, kind, bands, entry, rasters=rasters, required=required))
    acquisitions = [
        one
        for date, files in by_date.items()
        for one in _ready(where, modality, kind, entry, files, date or scene.date, known)
    ]
    return _finished(
        Source(modality, kind, tuple(acquisitions[0].bands), entry, tuple(acquisitions), required=required)
    )


def _finished(source: Source) -> Source:
    counted = source.entry.composite is not None and source.entry.composite.count
    return replace(source, bands=(*source.bands, CLEAR_COUNT)) if counted else source


_MEANS: dict[str, tuple[Type, ...]] = {
    "given": ("sar",),
    "hiding": ("sentinel-2", "landsat"),
    "scale": ("sentinel-2", "landsat", "reflectance", "coherence", "thermal", "bands"),
    "offset": ("sentinel-2", "landsat", "reflectance", "coherence", "thermal", "bands"),
    "composite": ("sentinel-2", "landsat", "reflectance", "sar", "coherence", "thermal", "bands"),
}


def _check_meaning(where: str, kind: Type, entry: ModalityEntry) -> None:
    """Raise `UserError` for settings that mean nothing for files of this type."""
    for key, kinds in _MEANS.items():
        if getattr(entry, key) is not None and kind not in kinds:
            raise UserError(f"{where}: `{key}` has no meaning for {kind}: it is for {', '.join(kinds)}")
    if kind == "sar" and entry.given is None:
        raise UserError(
            f"{where}: say in what its backscatter is given, `given: linear` (power, sigma0) or `given: db`: it "
            "becomes log10(sigma0 + 1e-6)"
        )


# -- files ---------------------------------------------------------------------------------------------------

_Bands = dict[str, tuple[Path, int]]


def _ready(
    where: str,
    modality: str,
    kind: Type,
    entry: ModalityEntry,
    files: list[Path] | _Bands,
    date: datetime.date | None,
    known: Sequence[str],
) -> Iterator[Acquisition]:
    """Yield an acquisition of each raster with all bands, or the one of single bands."""
    if isinstance(files, dict):
        groups = [files]
    else:
        groups = []
        for path in files:
            count, described = _count(path)
            published = () if kind == "reflectance" else published_bands().get(modality, ())
            assumed = next((list(some) for some in (known, published) if len(some) == count), [])
            names = entry.bands or described or assumed or [f"band_{number}" for number in range(1, count + 1)]
            if len(names) != count:
                raise UserError(
                    f"{where}: {path} has {count} bands, `bands` names {len(names)} ({', '.join(names)}); name all, or "
                    f"choose with `files: {{{names[0]}: {path.name}#1}}`"
                )
            groups.append({name: (path, number) for number, name in enumerate(names, 1)})
    for members in groups:
        scales, offsets = (
            [*_numbers(value)] if value is not None else [default]
            for value, default in ((entry.scale, 1.0), (entry.offset, 0.0))
        )
        for key, numbers in (("scale", scales), ("offset", offsets)):
            if len(numbers) not in (1, len(members)):
                raise UserError(
                    f"{where}: `{key}` has {len(numbers)} numbers, expected one or {len(members)}, one a band"
                )
        scales, offsets = (numbers if len(numbers) > 1 else numbers * len(members) for numbers in (scales, offsets))
        bands: dict[str, BandFile] = {}
        for (name, (path, number)), scale, offset in zip(members.items(), scales, offsets, strict=True):
            if number > (count := _count(path)[0]):
                raise UserError(f"{where}: {path} has {count} bands, asked for is number {number}")
            conversion: Affine | Decibels | None = None if (scale, offset) == (1.0, 0.0) else Affine(scale, offset)
            if entry.given == "db":
                conversion = Decibels()
            bands[name] = BandFile(path, number, conversion, _numbers(entry.nodata))
        yield Acquisition(
            next(iter(members.values()))[0].stem,
            date,
            bands,
            entry.unit or _unit(kind, scales, members),
            entry.level or "",
            logarithmic=kind == "sar",
            described={"given": entry.given} if kind == "sar" else {"scale": scales, "offset": offsets},
        )


def _unit(kind: Type, scales: Sequence[float], members: Mapping[str, tuple[Path, int]]) -> str:
    """Return the unit of a type's values; whole numbers as they are stored are nobody's reflectance."""
    if kind == "reflectance" and set(scales) == {1.0} and all(_integer(path) for path, _ in members.values()):
        return "digital numbers"
    return _UNITS.get(kind, "")


def _integer(path: Path) -> bool:
    with rasterio.open(path) as dataset:
        return all("int" in kind for kind in dataset.dtypes)


def _rasters(
    entry: ModalityEntry, names: Mapping[str, str], base: Path, where: str
) -> dict[datetime.date | None, list[Path] | _Bands]:
    """Return the rasters of a modality by date: those of all bands, or band → raster and number in it."""
    found: dict[datetime.date | None, Any] = {}
    if isinstance(entry.files, dict):
        for band, text in entry.files.items():
            pattern, number = _numbered(text, f"{where}.files.{band}")
            for date, path in _find(pattern, names, base, f"{where}.files.{band}"):
                members = found.setdefault(date, {})
                if band in members:
                    raise UserError(
                        f"{where}: {pattern} matches two files for {band}, {members[band][0].name} and {path.name}; "
                        "name one, or put {date} where their names differ by date"
                    )
                members[band] = (path, number)
        for date, members in found.items():
            if missing := [band for band in entry.files if band not in members]:
                raise UserError(f"{where}: no file of {', '.join(missing)} on {date}, of {', '.join(members)} there is")
        if entry.bands is not None:
            if set(entry.bands) != set(entry.files):
                raise UserError(
                    f"{where}: `bands` names {', '.join(entry.bands)}, `files` has {', '.join(entry.files)}: name the "
                    "same, or leave `bands` out"
                )
            found = {date: {band: members[band] for band in entry.bands} for date, members in found.items()}
        else:
            found = {date: {band: members[band] for band in entry.files} for date, members in found.items()}
        return found
    for pattern in _listed(entry.files):
        for date, path in _find(pattern, names, base, where):
            found.setdefault(date, []).append(path)
    counts = {path: _count(path)[0] for paths in found.values() for path in paths}
    if len(set(counts.values())) > 1:
        first, *others = counts
        other = next(path for path in others if counts[path] != counts[first])
        raise UserError(
            f"{where}: {other} has {counts[other]} bands, {first} has {counts[first]}: files of one modality need the "
            "same bands; give band → file if each has other ones"
        )
    return found


def _members(files: list[Path] | _Bands) -> list[tuple[Path, int]]:
    return list(files.values()) if isinstance(files, dict) else [(path, 1) for path in files]


def _numbered(text: str, where: str) -> tuple[str, int]:
    """Read `FILE` or `FILE#NUMBER`."""
    pattern, mark, number = text.rpartition("#")
    if not mark:
        return text, 1
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"{where}: expected FILE or FILE#NUMBER with a number from 1, received {text!r}")
    return pattern, int(number)


def _find(pattern: str, names: Mapping[str, str], base: Path, where: str) -> list[tuple[datetime.date | None, Path]]:
    """Return the files that match, sorted, each with the date that stands at `{date}`.

    Raises:
        UserError: If there is none, or what stands at `{date}` is no date.
    """
    text = str(Path(filled(pattern, names)).expanduser())
    paths = sorted(glob.glob(text.replace("{date}", "*"), root_dir=base, recursive=True))
    if "{date}" not in text:
        found: list[tuple[datetime.date | None, Path]] = [(None, base / path) for path in paths]
    else:
        parts = (
            _GLOB.get(part) or (r"(\d{4}-?\d{2}-?\d{2})" if part == "{date}" else re.escape(part))
            for part in re.split(r"(\{date\}|\*\*/|\*|\?)", text)
        )
        regex = re.compile("".join(parts))
        found = [(_date(match[1], path, where), base / path) for path in paths if (match := regex.fullmatch(path))]
    if not found:
        folder = base / text
        while not folder.is_dir():
            folder = folder.parent
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{where}: no file matches {text} in {base}; in {folder} there is {there}")
    return found


_GLOB = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}


def _date(text: str, path: str, where: str) -> datetime.date:
    match = _DATE.fullmatch(text)
    try:
        return datetime.date(*map(int, match.groups())) if match else datetime.date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{where}: {path}: {text} stands at {{date}} and is no date") from None


def _count(path: Path) -> tuple[int, list[str]]:
    """Return the number of bands of a raster and their names, or none where some have none."""
    grids.read_grid(path)  # says what is wrong with a file that can't be used
    with rasterio.open(path) as dataset:
        described = [name for name in dataset.descriptions if name]
        return dataset.count, described if len(set(described)) == dataset.count else []


def _union(paths: Sequence[Path]) -> Grid:
    """Return the first raster's grid, enlarged by whole pixels until it holds all that lie beside it."""
    first = grids.read_grid(paths[0])
    left, bottom, right, top = first.bounds
    for path in paths[1:]:
        other = grids.read_grid(path)
        a, b, c, d = transform_bounds(other.crs, first.crs, *other.bounds)
        left, bottom, right, top = min(left, a), min(bottom, b), max(right, c), max(top, d)
    x, y = first.resolution
    before = _whole((top - first.bounds[3]) / y), _whole((first.bounds[0] - left) / x)  # rows, columns
    after = _whole((first.bounds[1] - bottom) / y), _whole((right - first.bounds[2]) / x)
    return first.window(
        Window(-before[0], -before[1], first.height + before[0] + after[0], first.width + before[1] + after[1])
    )


def _whole(pixels: float) -> int:
    """Round up; a thousandth of a pixel is rounding, not ground."""
    return math.ceil(pixels - 1e-3)


def _listed(files: str | list[str] | dict[str, str] | None) -> list[str]:
    return [files] if isinstance(files, str) else list(files or [])


def _numbers(value: float | list[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


__all__ = ["CLEAR_COUNT", "Composite", "OutlineLayer", "Scene", "Source", "find_scenes", "hidden", "read_source"]
