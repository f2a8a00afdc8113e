"""Dataset files: the YAML that says which scenes, outlines and grid become tiles, and how.

    tile_size: 512
    grid: {crs: EPSG:32643, resolution: 30}        # without it: each scene's optical raster's own
    modalities:                                    # what all scenes have in common
      optical: {type: landsat}
      dem: {files: dem/*.tif, bands: [elevation, slope]}
    outlines: {glacier: rgi.gpkg, water: lakes.gpkg}
    regions:
      HMA:
        scenes:
          hunza: {date: 2013-08-21, modalities: {optical: hunza/*}}

What stands in a region's block holds for its scenes, what stands with a scene for that scene alone: the nearest wins.
Paths are relative to the dataset file; `*`, `?` and `**` match as in a shell, `{region}` and `{scene}` are the names,
`{folder}` the folder of a scene that was found by a pattern, and `{date}` matches a date and says when.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from console import UserError
from console.schemas import explained
from data.tiles import RESERVED

Type = Literal["sentinel-2", "landsat", "reflectance", "dem", "sar", "coherence", "thermal", "bands"]
Files = str | list[str] | dict[str, str]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Numbers = float | list[float]

NOT_GLACIER = ("water", "lake", "lakes", "land", "rock", "snow", "vegetation", "sea", "ocean")
"""Names of classes that are no glacier unless the dataset file says otherwise."""

UNKNOWN_REGION = "REGION"
"""What stands for a region's code where it could not be guessed."""

_TYPES: dict[str, Type] = {"optical": "reflectance", "dem": "dem", "in_sar": "coherence", "thermal": "thermal"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GridEntry(_Part):
    """The grid of the tiles: that of the first raster of `modality`, in another CRS or resolution if asked for.

    `modality`: default the first. `crs`: anything that PROJ knows, e.g. EPSG:32643. `resolution`: a pixel's side in
    the units of the CRS.
    """

    modality: str | None = None
    crs: str | None = None
    resolution: Positive | None = None


class Composite(_Part):
    """How several acquisitions of a modality become one: per period, the median or the latest clear pixel.

    `count`: whether the number of clear acquisitions of each pixel is a band, `clear_count`.
    """

    period: Literal["month", "season", "year", "all"] = "month"
    method: Literal["median", "latest"] = "median"
    count: bool = False


class HiddenEntry(_Part):
    """A raster that says where the ground is hidden: a mask of clouds, of shadows, of what a user distrusts.

    `files`: one band each, or several that lie side by side. `values`: those that mean hidden.
    """

    files: str | list[str]
    values: Annotated[list[int], Field(min_length=1)]


class ModalityEntry(_Part):
    """A modality: its files and what their values mean.

    - `type`: what they are; without it, the modality's name says so (`optical`: reflectance, `dem`, `…sar`: sar,
      `in_sar`: coherence, `thermal`; any other: bands).
    - `files`: rasters of all bands, several of one date lie side by side; or band → `FILE` or `FILE#NUMBER` of a band
      in it. Of Sentinel-2 and Landsat: products' folders or their files.
    - `bands`: names, in order. Of a DEM: of elevation, slope, aspect_sin, aspect_cos, curvature.
    - `scale`, `offset`: value · scale + offset, one number or one a band; `nodata`: values that mean nodata.
    - `given`: in what backscatter comes, `linear` (power, sigma0) or `db`.
    - `unit`, `level`: what is recorded of them. Of products, `level` is the only one to take where there are several:
      L1C or L2A; L1 or L2 of Landsat.
    - `resampling`: between pixels, `bilinear` or `cubic`.
    - `required`: whether a pixel without it is invalid (default: that of the grid's modality alone).
    - `hiding`: of Landsat bits of QA_PIXEL, of Sentinel-2 classes of SCL that hide the ground, instead of the usual.
    - `composite`: how acquisitions of several dates become one.
    """

    type: Type | None = None
    files: Files | None = None
    bands: Annotated[list[str], Field(min_length=1)] | None = None
    scale: Numbers | None = None
    offset: Numbers | None = None
    nodata: Numbers = []
    given: Literal["linear", "db"] | None = None
    unit: str | None = None
    level: str | None = None
    resampling: Literal["bilinear", "cubic"] = "bilinear"
    required: bool | None = None
    hiding: list[int] | None = None
    composite: Composite | None = None

    @field_validator("bands")
    @classmethod
    def _bands_differ(cls, bands: list[str] | None) -> list[str] | None:
        if bands is not None and len(set(bands)) < len(bands):
            raise ValueError("names a band twice")
        return bands


class OutlineEntry(_Part):
    """Outlines of a class: a vector file, a layer in it, which of its features; `date` or the field that has it.

    `glacier`: whether the class counts as glacier; without it, by its name. `color`: of the class in pictures.
    """

    file: str
    layer: str | None = None
    where: str | None = None
    date: datetime.date | None = None
    date_field: str | None = None
    glacier: bool | None = None
    color: Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")] | None = None


class PolygonsEntry(_Part):
    """A polygon layer whose text field says train, val or test; see `data.split_polygons.PolygonLayer`."""

    file: str
    layer: str | None = None
    field: str | None = None


class SplitEntry(_Part):
    """Which tiles are for training, validation and test: the fields of `data.splits.Division`.

    `block_sides`: without it, the largest of 4, 3, 2 and 1 tile's sides at which there are blocks enough.
    """

    by: Literal["tiles", "blocks", "regions", "subregions", "polygons"] = "blocks"
    val: Share = 0.15
    test: Share = 0.15
    val_regions: list[str] = []
    test_regions: list[str] = []
    val_subregions: list[str] = []
    test_subregions: list[str] = []
    seed: Annotated[int, Field(ge=0)] = 42
    block_sides: Positive | None = None
    polygons: PolygonsEntry | None = None
    gap_m: NotNegative = 0.0


def _with_files(value: Any) -> Any:
    return {"files": value} if isinstance(value, str | list) else value


def _with_file(value: Any) -> Any:
    if isinstance(value, str):
        value = {"glacier": value}
    if isinstance(value, dict):
        value = {name: {"file": entry} if isinstance(entry, str) else entry for name, entry in value.items()}
    return value


class _Block(_Part):
    """What a dataset, a region and a scene may all say; the nearest to the scene wins."""

    grid: GridEntry | None = None
    modalities: dict[str, ModalityEntry | None] = {}
    outlines: dict[str, OutlineEntry | None] | None = None
    mask_from: str | None = None
    hidden: HiddenEntry | None = None
    date: datetime.date | None = None
    subregion: str | None = None

    @field_validator("modalities", mode="before")
    @classmethod
    def _short_modalities(cls, value: Any) -> Any:
        return {key: _with_files(one) for key, one in value.items()} if isinstance(value, dict) else value

    @field_validator("outlines", mode="before")
    @classmethod
    def _short_outlines(cls, value: Any) -> Any:
        return _with_file(value)

    @field_validator("modalities")
    @classmethod
    def _modality_names(cls, value: dict[str, ModalityEntry | None]) -> dict[str, ModalityEntry | None]:
        for name in value:
            if not name.isidentifier() or name in (*RESERVED, "location"):
                raise ValueError(
                    f"{name!r} can't be a modality's name: letters, digits and _, and none of the words "
                    f"{', '.join((*RESERVED, 'location'))}"
                )
        return value


class SceneEntry(_Block):
    """A scene; what it says itself. `region` where it stands outside a region's block. `split`: train, val or test."""

    region: str | None = None


class RegionEntry(_Block):
    """A region's scenes, by name or by a pattern of folders, and what they have in common."""

    scenes: dict[str, SceneEntry | None] | str


class DatasetFile(_Block):
    """The whole of a dataset file; see the module."""

    scenes: dict[str, SceneEntry | None] | str = {}
    regions: dict[str, RegionEntry] = {}
    region: str | None = None
    classes: list[str] | None = None
    tile_size: Annotated[int, Field(ge=16)] = 512
    split: SplitEntry = SplitEntry()
    empty_tiles: Share = 1.0
    smallest_valid_share: Share = 0.0
    statistics: Literal["standardise", "minmax", "robust-standardise", "robust-minmax", "published"] = "standardise"
    all_touched: bool = False
    ignore_buffer_m: NotNegative = 0.0
    max_years: NotNegative = 5.0

    @model_validator(mode="after")
    def _has_scenes(self) -> DatasetFile:
        if not self.scenes and not self.regions:
            raise ValueError("names no scene: give `scenes`, or `regions` with scenes")
        return self


@dataclass(frozen=True)
class SceneDescription:
    """A scene as a dataset file describes it, with what it takes over from its region and the dataset."""

    name: str
    region: str
    subregion: str
    date: datetime.date | None
    folder: str
    grid: GridEntry
    modalities: dict[str, ModalityEntry]
    outlines: dict[str, OutlineEntry]
    mask_from: str | None
    hidden: HiddenEntry | None


def read(path: Path) -> Any:
    """Return what a dataset file holds, to be validated by `parse`.

    Raises:
        UserError: If it can't be read or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such dataset file; `python prepare.py scenes --init FOLDER` writes a first one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from None


def parse(content: Any, source: str) -> DatasetFile:
    """Validate what a dataset file holds; `source` stands in front of messages.

    Raises:
        UserError: Names every wrong key.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected a mapping with `scenes` or `regions`, got a {type(content).__name__}")
    try:
        return DatasetFile.model_validate(copy.deepcopy(content))
    except ValidationError as error:
        raise UserError(explained(error, DatasetFile, source, "the dataset file")) from None


def scenes_of(dataset: DatasetFile, base: Path, *, labelled: bool = True) -> list[SceneDescription]:
    """Return all scenes of a dataset, each with what it takes over, in their order in the file.

    Args:
        dataset: The dataset file.
        base: The folder that its paths are relative to.
        labelled: Whether scenes need outlines or weak masks.

    Raises:
        UserError: If a pattern finds no folder, two scenes have one name, or a scene has no region, no modality or no
            outlines.
    """
    found: list[SceneDescription] = []
    for region, entry in dataset.regions.items():
        for name, folder, scene in _entries(entry.scenes, base, {"region": region}):
            found.append(_described(name, region, folder, [dataset, entry, scene], labelled))
    for name, folder, scene in _entries(dataset.scenes, base, {}):
        owner = scene.region or dataset.region or ""
        if labelled and owner in ("", UNKNOWN_REGION):
            raise UserError(
                f"scene {name!r} has no region: give the code of yours, such as `region: HMA`, or list it under "
                "`regions`"
            )
        found.append(_described(name, owner, folder, [dataset, scene], labelled))
    names = [scene.name for scene in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two scenes are called {twice[0]!r}: tiles are named after their scene, rename one")
    return found


def class_names(dataset: DatasetFile, outlined: Sequence[str]) -> list[str]:
    """Return the classes' names, background first, then in the order in which later ones paint over earlier ones.

    Args:
        dataset: The dataset file.
        outlined: The classes that its scenes have outlines of.

    Raises:
        UserError: If `classes` of the dataset lacks one of these.
    """
    named = list(dict.fromkeys(outlined))
    if dataset.classes is None:
        return ["background", *(named or ["glacier"])]
    missing = [name for name in named if name not in dataset.classes[1:]]
    if missing:
        raise UserError(
            f"classes: there are outlines of {', '.join(missing)}, expected them in the list after the background, "
            f"which is first; received {', '.join(dataset.classes)}"
        )
    return list(dataset.classes)


def from_flags(
    optical: Sequence[str] = (), dem: Sequence[str] = (), modalities: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """Return the `modalities` of a dataset file that the flags `--optical`, `--dem` and `--modality` say.

    Args:
        optical: Files, or `BAND=FILE`.
        dem: Likewise.
        modalities: For each further modality its name and then its files.
    """
    found: dict[str, Any] = {}
    for name, *files in (["optical", *optical], ["dem", *dem], *modalities):
        if files:
            pairs = [file.partition("=") for file in files]
            named = all(equals for _, equals, _ in pairs)
            found[name] = {"files": {band: file for band, _, file in pairs} if named else files}
    return found


def type_of(modality: str, entry: ModalityEntry) -> Type:
    """Return what a modality's files are: what its entry says, else what its name does."""
    return entry.type or _TYPES.get(modality) or ("sar" if modality.split("_")[-1] == "sar" else "bands")


def _entries(
    scenes: Mapping[str, SceneEntry | None] | str, base: Path, names: Mapping[str, str]
) -> Iterator[tuple[str, str, SceneEntry]]:
    """Yield name, folder and entry of each scene that is listed, or found by a pattern of folders."""
    if isinstance(scenes, str):
        pattern = filled(scenes, names)
        folders = sorted(path for path in _glob(pattern, base) if path.is_dir())
        if not folders:
            raise UserError(f"scenes: no folder matches {pattern} in {base}")
        yield from ((folder.name, str(folder.absolute()), SceneEntry()) for folder in folders)
    else:
        yield from ((name, str(base.absolute()), entry or SceneEntry()) for name, entry in scenes.items())


def _described(name: str, region: str, folder: str, blocks: Sequence[_Block], labelled: bool) -> SceneDescription:
    def nearest(key: str) -> Any:
        return next((value for block in reversed(blocks) if (value := getattr(block, key)) is not None), None)

    grid: dict[str, Any] = {}
    modalities: dict[str, dict[str, Any]] = {}
    outlines: dict[str, dict[str, Any]] = {}
    for block in blocks:
        grid |= _given(block.grid)
        for merged, entries in ((modalities, block.modalities), (outlines, block.outlines or {})):
            for key, entry in entries.items():
                if entry is None:
                    merged.pop(key, None)
                else:
                    merged[key] = merged.get(key, {}) | _given(entry)
    if not modalities:
        raise UserError(f"scene {name!r} has no modality: give it `modalities: {{optical: FILES}}`")
    without = [key for key, entry in modalities.items() if entry.get("files") is None]
    if without:
        raise UserError(
            f"scene {name!r}: {', '.join(without)} has no files: give `files`, or `{without[0]}: null` for none"
        )
    if name.startswith(".") or "/" in name or not name:
        raise UserError(f"scene {name!r}: tiles are named after it, a name without slashes or a leading dot is needed")
    mask_from = nearest("mask_from")
    if labelled and mask_from is None and not outlines:
        raise UserError(
            f"scene {name!r} has no outlines: give `outlines: FILE`, or weak masks from an index, such as "
            "`mask_from: ndsi > 0.4`"
        )
    return SceneDescription(
        name,
        region,
        nearest("subregion") or "",
        nearest("date"),
        folder,
        GridEntry(**grid),
        {key: ModalityEntry(**entry) for key, entry in modalities.items()},
        {} if mask_from else {key: OutlineEntry(**entry) for key, entry in outlines.items()},
        mask_from,
        nearest("hidden"),
    )


def _given(entry: BaseModel | None) -> dict[str, Any]:
    """Return what the user wrote of an entry, defaults left out."""
    return {} if entry is None else {key: getattr(entry, key) for key in entry.model_fields_set}


def filled(pattern: str, names: Mapping[str, str]) -> str:
    """Return a pattern with `{region}`, `{scene}` and `{folder}` replaced by what `names` has of them."""
    for key, value in names.items():
        pattern = pattern.replace("{" + key + "}", value)
    return pattern


def _glob(pattern: str, base: Path) -> list[Path]:
    import glob

    return [base / name for name in glob.glob(pattern, root_dir=base, recursive=True)]
