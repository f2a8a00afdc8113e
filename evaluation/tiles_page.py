"""A page about tile files: findings, where the tiles lie, what their bands hold, and pictures with the masks' outlines.

It is one HTML file with its pictures inside, to be opened in a browser, printed, or sent to a colleague. The tiles are
read one by one; of charts a sample of pixels is drawn, of pictures as many pixels as can be seen.
"""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon, Rectangle
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from console import progress, replacing
from data.alignment import REACH, Alignment
from data.findings import SEVERITIES, Finding, direction
from data.survey import SplitFacts, Survey, TileFacts
from data.tiles import IGNORE, TileInfo
from evaluation.picture import Image, composite, outline, show, stretch

SPLIT_COLORS = {"train": "#3565a8", "val": "#e09a1a", "test": "#b3376a"}
OUTLINE_COLORS = ("#ffe100", "#ff7a00", "#e0218a", "#7dff4a")
_UNSEEN = "#c6b5e6"  # neither snow's colour nor that of a hillshade
_FITTING = "#ff2fc0"  # the mask where it fits: neither snow's colour nor that of the first outline

_PICTURES = 12
_SIDE = 1000  # pixels: of a picture, at most
_TILES_OF_A_PICTURE = 2000
_PICTURES_OF_FINDINGS = 10
_SINGLE_MAP = 0.46  # of the page's width
_INK: Any = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


def write(survey: Survey, findings: Sequence[Finding], path: Path, command: str = "") -> None:
    """Write the page of a survey and its findings to `path`, whole or not at all.

    Args:
        survey: What is in the tile files; they are read again for pictures.
        findings: What is wrong with them.
        path: The HTML file to write.
        command: The command that makes this page, for its foot.
    """
    from matplotlib import rc_context

    with rc_context(_INK):
        text = _environment().from_string(_TEMPLATE).render(**_contents(survey, findings), command=command)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _contents(survey: Survey, findings: Sequence[Finding]) -> dict[str, Any]:
    shown = _findings(survey, findings)
    provenance = survey.provenance
    mask = provenance.get("mask")
    split = provenance.get("split")
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    first = survey.splits[0]
    return {
        "name": survey.name,
        "tiles": sum(len(split.tiles) for split in survey.splits),
        "regions": len({tile.info.region for _, tile in survey.tiles()}),
        "bands": sum(map(len, first.bands.values())),
        "scenes": len({tile.info.attributes.get("scene") for _, tile in survey.tiles()} - {None, ""}),
        "counts": counts,
        "findings": shown,
        "weak": mask if isinstance(mask, Mapping) and mask.get("kind") == "weak" else None,
        "facts": list(_facts(survey)),
        "modalities": list(_modalities(survey)),
        "scene_rows": list(_scene_rows(provenance)),
        "separation": list(_separation(split.get("separation", []))) if isinstance(split, Mapping) else [],
        "class_names": [info.name for info in first.classes],
        "split_rows": [_split_row(split) for split in survey.splits],
        "shares": _shares(survey),
        "map": _map(survey),
        "unplaced": sum(_ground(tile.info) is None for _, tile in survey.tiles()),
        "histograms": [(modality, _histograms(survey, modality)) for modality in first.bands],
        "pictures": list(_pictures(survey)),
        "legend": _legend(survey),
    }


# -- words and tables ----------------------------------------------------------------------------------------


def _facts(survey: Survey) -> Iterator[tuple[str, str]]:
    """Yield what the files say of themselves, as (name, text)."""
    provenance, first = survey.provenance, survey.splits[0]
    commands = dict.fromkeys(split.command for split in survey.splits if split.command)
    yield "Made by", "\n".join(commands) or "not said: a file as published, or of another program"
    source = provenance.get("source") or provenance.get("images") or provenance.get("kind")
    if source and source != "scenes":
        yield "From", str(source)
    statistics = first.statistics
    if statistics is None:
        yield "Statistics", "none: values are taken as scaled already"
    else:
        what = {"standardise": "mean and standard deviation", "minmax": "minimum and maximum"}
        state = "applied to the stored values" if statistics.applied else "applied when tiles are read"
        yield "Statistics", f"{what.get(statistics.method, statistics.method)} of {statistics.fitted_on}; {state}"
    mask = provenance.get("mask")
    if isinstance(mask, Mapping):
        yield "Masks", "; ".join(_mask_facts(mask))
    size = sum(split.size for split in survey.splits)
    yield (
        "Files",
        ", ".join(f"{split.path.name} {_bytes(split.size)}" for split in survey.splits)
        + (f"; {_bytes(size)} in all" if len(survey.splits) > 1 else ""),
    )
    sizes = {(tile.info.height, tile.info.width) for _, tile in survey.tiles()}
    listed = ", ".join(f"{height} × {width}" for height, width in sorted(sizes)[:6]) + (", …" if len(sizes) > 6 else "")
    pixel = {place.pixel for _, tile in survey.tiles() if (place := _ground(tile.info)) and place.pixel}
    yield "Tiles", f"{listed} pixels" + (f" of {', '.join(sorted(pixel)[:4])}" if pixel else "")


def _mask_facts(mask: Mapping[str, Any]) -> Iterator[str]:
    if mask.get("kind") == "weak":
        yield f"WEAK MASKS, no outlines: {mask.get('rule')}"
        return
    yield str(mask.get("kind"))
    if "all_touched" in mask:
        touched = "that an outline touches" if mask["all_touched"] else "whose centre is inside"
        yield f"a class has the pixels {touched}"
    if buffer := mask.get("ignore_buffer_m"):
        yield f"pixels within {buffer:g} m of an outline count nowhere"


def _modalities(survey: Survey) -> Iterator[dict[str, str]]:
    described = survey.provenance.get("modalities")
    described = described if isinstance(described, Mapping) else {}
    for modality, names in survey.splits[0].bands.items():
        entry = described.get(modality)
        entry = entry if isinstance(entry, Mapping) else {}
        absent = {split.split: sum(modality in tile.absent for tile in split.tiles) for split in survey.splits}
        yield {
            "name": modality,
            "bands": ", ".join(names),
            "unit": ", ".join(dict.fromkeys(filter(None, (_unit(entry, name) for name in names)))) or "not said",
            "level": str(entry.get("level") or "–"),
            "sensor": str(entry.get("sensor") or "–"),
            "absent": ", ".join(f"{split} {count}" for split, count in absent.items() if count) or "none",
        }


def _unit(entry: Mapping[str, Any], band: str) -> str:
    """Return the unit of a band; that of a modality may list those of its bands, "elevation m, slope °, …"."""
    unit = str(entry.get("unit") or "")
    if entry.get("type") != "dem":
        return unit
    quantity = band.split("_")[0]
    return next((part[len(quantity) + 1 :] for part in unit.split(", ") if part.startswith(f"{quantity} ")), "")


def _scene_rows(provenance: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    scenes = provenance.get("scenes")
    for name, entry in list(scenes.items())[:60] if isinstance(scenes, Mapping) else []:
        entry = entry if isinstance(entry, Mapping) else {}
        files, outlines = entry.get("files"), entry.get("outlines")
        yield {
            "name": str(name),
            "region": str(entry.get("region") or "–"),
            "date": str(entry.get("date") or entry.get("period") or "–"),
            "modalities": ", ".join(files) if isinstance(files, Mapping) else "–",
            "outlines": "; ".join(_outline_facts(outlines)) if isinstance(outlines, Mapping) and outlines else "–",
        }


def _outline_facts(outlines: Mapping[str, Any]) -> Iterator[str]:
    for name, facts in outlines.items():
        first, last = facts.get("first_date"), facts.get("last_date")
        dates = f", of {first if first == last else f'{first} to {last}'}" if first else ", without dates"
        yield f"{facts.get('kept')} of {name} in {Path(str(facts.get('path'))).name}{dates}"


def _separation(lines: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the two splits, how far apart they are, and the names of the tiles that are near."""
    for line in lines:
        pair, _, rest = line.partition(": ")
        distance, _, names = rest.partition(": ")
        yield pair, distance, names


def _split_row(split: SplitFacts) -> dict[str, Any]:
    labelled = int(split.counts.sum())
    regions: dict[str, int] = defaultdict(int)
    for tile in split.tiles:
        regions[tile.info.region or "none"] += 1
    return {
        "name": split.split,
        "color": SPLIT_COLORS.get(split.split, "#555555"),
        "tiles": len(split.tiles),
        "pixels": f"{split.pixels:,}",
        "valid": f"{split.valid / max(split.pixels, 1):.1%}",
        "labelled": f"{labelled / max(split.valid, 1):.1%}",
        "shares": [_percent(count / max(labelled, 1)) for count in split.counts],
        "regions": ", ".join(f"{region} {count}" for region, count in sorted(regions.items())),
    }


def _percent(share: float) -> str:
    return "0" if not share else f"{share:.1%}" if share >= 0.01 else f"{share:.3%}"


def _bytes(size: int) -> str:
    for unit, step in (("GB", 1e9), ("MB", 1e6)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


@dataclass(frozen=True, eq=False)
class _Ground:
    """The corners of a tile, (4, 2) in a circle: longitude and latitude (°), or column and row of a scene.

    `frame` tells places apart that can't be compared; `pixel` is the size of a pixel in words.
    """

    corners: NDArray[np.float64]
    on_earth: bool
    frame: str = ""
    pixel: str = ""


def _ground(info: TileInfo) -> _Ground | None:
    """Return where a tile lies; None where it does not say."""
    height, width = info.height, info.width
    if info.crs and info.transform:
        a, b, c, d, e, f = info.transform
        pixels = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
        to_degrees, unit = _to_degrees(info.crs)
        corners = np.stack(to_degrees.transform(*(pixels @ np.array([[a, d], [b, e]]) + (c, f)).T), axis=-1)
        size = math.hypot(a, d)
        return _Ground(corners, True, pixel=f"{size:.4g} {unit}") if np.isfinite(corners).all() else None
    attributes = info.attributes
    if all(key in attributes for key in ("xmin", "xmax", "ymin", "ymax")):
        west, east, south, north = (float(attributes[key]) for key in ("xmin", "xmax", "ymin", "ymax"))
        return _Ground(np.array([(west, north), (east, north), (east, south), (west, south)]), True)
    if "scene_row" in attributes and "scene_column" in attributes:
        top, left = float(attributes["scene_row"]), float(attributes["scene_column"])
        box = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
        return _Ground(np.array(box), False, str(attributes.get("scene") or ""))
    return None


@cache
def _to_degrees(crs: str) -> tuple[Transformer, str]:
    known = CRS.from_user_input(crs)
    unit = "°" if known.is_geographic else "m" if known.axis_info[0].unit_name == "metre" else "units"
    return Transformer.from_crs(known, "EPSG:4326", always_xy=True), unit


# -- charts --------------------------------------------------------------------------------------------------


def _shares(survey: Survey) -> str:
    classes = survey.splits[0].classes
    figure = Figure(figsize=(9.4, 0.5 + 0.36 * len(survey.splits)), layout="constrained")
    axis = figure.subplots()
    for row, split in enumerate(survey.splits):
        shares = split.counts / max(split.counts.sum(), 1)
        left = 0.0
        for info, share in zip(split.classes, shares, strict=True):
            axis.barh(row, share, left=left, color=info.color, height=0.72, edgecolor="white", linewidth=0.5)
            if share > 0.06:
                axis.text(
                    left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=8, color=_on(info.color)
                )
            left += share
    axis.set_yticks(range(len(survey.splits)), [split.split for split in survey.splits])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xticks([])
    axis.spines[["bottom", "left"]].set_visible(False)
    axis.tick_params(left=False)
    figure.legend(
        handles=[Patch(color=info.color, label=info.name) for info in classes],
        loc="outside lower left", ncols=min(len(classes), 6), frameon=False, fontsize=8.5, handlelength=1.1,
    )  # fmt: skip
    return _png(figure)


def _on(color: str) -> str:
    """Return black or white, whichever can be read on a colour."""
    red, green, blue = (
        (int(color[place : place + 2], 16) for place in (1, 3, 5)) if len(color) == 7 else (128, 128, 128)
    )
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _histograms(survey: Survey, modality: str) -> str:
    names = survey.splits[0].bands[modality]
    described = survey.provenance.get("modalities")
    entry = described.get(modality) if isinstance(described, Mapping) else None
    columns = min(len(names), 3 if len(names) in (3, 5, 6) else 4)
    rows = math.ceil(len(names) / columns)
    width = 9.4 if len(names) > 2 else 4.7 * len(names)
    figure = Figure(figsize=(width, 0.3 + 1.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, (name, axis) in enumerate(zip(names, grid, strict=False)):
        unit = _unit(entry, name) if isinstance(entry, Mapping) else ""
        values = {
            split.split: finite
            for split in survey.splits
            if modality in split.sample and len(finite := _finite(split.sample[modality][:, index]))
        }
        axis.set_title(name, loc="left", pad=3)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.tick_params(labelsize=8, length=2)
        if not values:
            axis.text(0.5, 0.5, "no value", ha="center", transform=axis.transAxes)
            axis.set_xticks([])
            continue
        together = np.concatenate(list(values.values()))
        low, high = np.percentile(together, [0.2, 99.8])
        if high <= low:
            low, high = low - 0.5, high + 0.5
        bins = np.linspace(low, high, 61)
        if (together == np.rint(together)).all():  # as many whole numbers in each bin, or it would look like a comb
            step = math.ceil((high - low) / 60)
            bins = np.arange(math.floor(low) - 0.5, high + step, step)
        tops = []
        for split, some in values.items():
            color = SPLIT_COLORS.get(split, "#555555")
            heights, _ = np.histogram(np.clip(some, bins[0], bins[-1]), bins)
            heights = heights / len(some)
            tops.append(float(heights[1:-1].max()))
            axis.stairs(heights, bins, color=color, linewidth=1.3, baseline=0)
            if split == "train" or len(values) == 1:
                axis.stairs(heights, bins, color=color, fill=True, alpha=0.12, baseline=0)
        axis.set_xlim(bins[0], bins[-1])
        axis.set_xlabel(unit, fontsize=8, labelpad=1)
        axis.set_ylim(0, 1.1 * max(max(tops), 1e-9))  # what piles up at the ends may leave the picture
        axis.locator_params(axis="x", nbins=5)
    for axis in grid[len(names) :]:
        axis.set_visible(False)
    return _png(figure)


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values[np.isfinite(values)]


def _map(survey: Survey) -> tuple[str, str, str] | None:
    """Return a panel of each region, in kilometres around its centre (or pixels of its scene), its width, and a key."""
    panels: dict[tuple[str, str], list[tuple[str, _Ground]]] = defaultdict(list)
    for split, tile in survey.tiles():
        place = _ground(tile.info)
        if place is not None:
            panels[tile.info.region or "no region", place.frame].append((split.split, place))
    if not panels:
        return None
    largest = sorted(panels, key=lambda key: (-len(panels[key]), key))[:_PICTURES]
    columns = 4 if len(largest) == 4 or len(largest) > 6 else min(3, len(largest))
    rows = math.ceil(len(largest) / columns)
    side = 9.4 / columns if columns > 1 else _SINGLE_MAP * 9.4
    figure = Figure(figsize=(side * columns, 1.02 * side * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    drawn = [_draw_region(axis, key[0], panels[key]) for key, axis in zip(sorted(largest), grid, strict=False)]
    for axis in grid[len(largest) :]:
        axis.set_visible(False)
    units = {
        "km": "kilometres from the middle of each region's tiles, north up",
        "px": "pixels of the scene, where no place on earth is known",
    }
    told = "; ".join(text for unit, text in units.items() if unit in dict(drawn))
    told = f"{told[0].upper()}{told[1:]}" + ("; a dot where a tile is too small to be seen." if any(
        dots for _, dots in drawn) else ".")  # fmt: skip
    return _png(figure), f"{100 if columns > 1 else 100 * _SINGLE_MAP:.0f}%", told


def _draw_region(axis: Axes, region: str, members: Sequence[tuple[str, _Ground]]) -> tuple[str, bool]:
    """Draw the tiles of a region; return the unit of the axes, and whether some tiles are dots."""
    corners, unit, title = _local([place for _, place in members])
    everything = np.concatenate(corners)
    low, high = everything.min(axis=0), everything.max(axis=0)
    extent = float(max(high - low))
    dots = False
    for (split, _), points in zip(members, corners, strict=True):
        color = SPLIT_COLORS.get(split, "#555555")
        axis.add_patch(Polygon(points, facecolor=color, edgecolor="white", linewidth=0.5, alpha=0.85))
        if np.ptp(points, axis=0).max() < extent / 50:
            dots = True
            axis.plot(
                *points.mean(axis=0), "o", color=color, markersize=4, markeredgecolor="white", markeredgewidth=0.4
            )
    middle, half = (low + high) / 2, extent * 0.54
    axis.set_xlim(middle[0] - half, middle[0] + half)
    axis.set_ylim(middle[1] - half, middle[1] + half)
    if unit == "px":
        axis.invert_yaxis()
    axis.set_aspect("equal")
    axis.set_title(f"{region}{title}", loc="left", fontsize=9.5)
    axis.set_xlabel(unit, fontsize=8, labelpad=1)
    axis.set_ylabel(unit, fontsize=8, labelpad=1)
    axis.tick_params(labelsize=7.5, length=2)
    axis.locator_params(nbins=5)
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["left", "bottom"]].set_color("#bbbbbb")
    return unit, dots


def _local(places: Sequence[_Ground]) -> tuple[list[NDArray[np.float64]], str, str]:
    """Return corners (4, 2) around the middle of the places, in km or pixels, their unit, and where that is."""
    if not places[0].on_earth:
        return [place.corners for place in places], "px", f" · {places[0].frame}" if places[0].frame else ""
    middles = np.stack([place.corners.mean(axis=0) for place in places])
    angles = np.radians(middles[:, 0])
    longitude = float(np.degrees(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())))
    latitude = float(middles[:, 1].mean())
    local = Transformer.from_crs(
        "EPSG:4326", f"+proj=laea +lon_0={longitude} +lat_0={latitude} +units=km", always_xy=True
    )
    corners = [np.stack(local.transform(*place.corners.T), axis=-1) for place in places]
    east, north = "E" if longitude >= 0 else "W", "N" if latitude >= 0 else "S"
    return corners, "km", f" · {abs(latitude):.1f}° {north}, {abs(longitude):.1f}° {east}"


# -- pictures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    split: SplitFacts
    tile: TileFacts
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class _Picture:
    title: str
    pieces: tuple[_Piece, ...]
    height: int
    width: int
    notes: tuple[str, ...] = ()


def _pictures(survey: Survey) -> Iterator[dict[str, str]]:
    chosen = _choose(survey)
    mosaics = sum(len(picture.pieces) > 1 for picture in chosen)
    for picture in progress(chosen, "pictures", unit="picture"):
        wide = len(chosen) < 3 or (mosaics < 3 and len(picture.pieces) > 1)
        width = 7.0 if wide else 4.6
        figure = Figure(figsize=(width, width * picture.height / picture.width))
        axis = figure.add_axes((0, 0, 1, 1))
        glacier = _draw(axis, picture, 1.0 if wide else 1.8)
        splits = dict.fromkeys(piece.split.split for piece in picture.pieces)
        count = len(picture.pieces)
        yield {
            "source": _jpeg(figure),
            "title": picture.title,
            "kind": "wide" if wide else "",
            "edges": "tiles" if count > 1 else "",
            "text": " · ".join(
                [
                    (f"{count} tiles, " if count > 1 else "") + ", ".join(splits),
                    f"{picture.width} × {picture.height} px{_extent(picture)}",
                    f"{glacier:.0%} glacier",
                    *picture.notes,
                ]
            ),
        }


def _extent(picture: _Picture) -> str:
    """Return how wide and high a picture is, ", 5.8 × 5.8 km"; nothing where that is not known."""
    info = picture.pieces[0].tile.info
    place = _ground(info)
    if place is None or not place.pixel.endswith(" m") or info.transform is None:
        return ""
    a, b, _, d, e, _ = info.transform
    width, height = picture.width * math.hypot(a, d) / 1e3, picture.height * math.hypot(b, e) / 1e3
    return f", {width:.1f} × {height:.1f} km"


def _choose(survey: Survey) -> list[_Picture]:
    """Return up to `_PICTURES` mosaics of tiles that share a grid, regions taking turns; else single tiles."""
    groups: dict[tuple[Any, ...], list[_Piece]] = defaultdict(list)
    for split, tile in survey.tiles():
        if tile.problems or not tile.valid:
            continue
        groups[_grid_key(tile)].append(_Piece(split, tile))
    pictures: list[tuple[str, int, _Picture]] = []
    for pieces in groups.values():
        for picture in _mosaics(pieces):
            region = picture.pieces[0].tile.info.region
            glacier = sum(piece.tile.glacier for piece in picture.pieces)
            pictures.append((region, glacier, picture))
    by_region: dict[str, list[_Picture]] = defaultdict(list)
    for region, _, picture in sorted(pictures, key=lambda item: (item[0], -item[1])):
        by_region[region].append(picture)
    ranked = [(rank, region, picture) for region, some in by_region.items() for rank, picture in enumerate(some)]
    first = sorted(ranked, key=lambda item: item[:2])[:_PICTURES]
    chosen = [picture for _, _, picture in sorted(first, key=lambda item: (item[1], item[0]))]
    # Of pictures that are shown coarsely, single tiles as well, as far as there is room.
    coarse = [picture for picture in chosen if len(picture.pieces) > 1 and _step(picture) > 1]
    details = [detail for rank in range(3) for picture in coarse for detail in _detail(picture, rank)]
    return chosen + details[: _PICTURES - len(chosen)]


def _step(picture: _Picture) -> int:
    """Return of how many pixels, in a row, one is shown."""
    return max(1, math.ceil(max(picture.height, picture.width) / _SIDE))


def _detail(picture: _Picture, rank: int) -> Iterator[_Picture]:
    """Yield the tile of a picture that is the number `rank` in having about as much glacier as anything else."""

    def lacking(piece: _Piece) -> float:
        return abs(piece.tile.glacier - 0.4 * piece.tile.pixels) + piece.tile.pixels - piece.tile.valid

    for piece in sorted(picture.pieces, key=lacking)[rank : rank + 1]:
        height, width = _inside(piece.tile)
        title = f"{piece.tile.info.region or 'no region'} · {piece.tile.info.name}"
        yield _Picture(title, (replace(piece, top=0, left=0),), height, width)


def _grid_key(tile: TileFacts) -> tuple[Any, ...]:
    info = tile.info
    scene = str(info.attributes.get("scene") or "")
    if info.transform is not None:
        a, b, c, d, e, f = info.transform
        if b == 0 and d == 0:
            # Tiles share a grid where they are whole pixels apart, up to a hundredth.
            return (info.region, scene, info.crs, a, e, round(c / a % 1, 2) % 1, round(f / e % 1, 2) % 1)
    if "scene_row" in info.attributes and "scene_column" in info.attributes:
        return (info.region, scene, "rows and columns")
    return (info.region, info.name, tile.digest)


def _mosaics(pieces: Sequence[_Piece]) -> Iterator[_Picture]:
    """Yield pictures of tiles of one grid: those near one another in one, what is far apart in several."""
    placed = []
    for piece in pieces:
        info = piece.tile.info
        rows, columns = info.interior()
        top = left = 0
        if len(pieces) > 1 and info.transform is not None:
            a, _, c, _, e, f = info.transform
            top, left = round(f / e) + rows.start, round(c / a) + columns.start
        elif len(pieces) > 1:
            top, left = int(info.attributes["scene_row"]), int(info.attributes["scene_column"])
        placed.append(replace(piece, top=top, left=left))
    # A scene is one picture though tiles of it were left out; of tiles without a scene, only neighbours are.
    for whole in _clusters(placed, 3.0 if pieces[0].tile.info.attributes.get("scene") else 1.05):
        cluster = whole[:_TILES_OF_A_PICTURE]
        top, left = min(piece.top for piece in cluster), min(piece.left for piece in cluster)
        moved = tuple(replace(piece, top=piece.top - top, left=piece.left - left) for piece in cluster)
        sizes = [_inside(piece.tile) for piece in moved]
        info = moved[0].tile.info
        scene = str(info.attributes.get("scene") or "")
        name = scene or (info.name if len(moved) == 1 else "")
        yield _Picture(
            " · ".join(
                part for part in (info.region or "no region", name, str(info.attributes.get("date") or "")) if part
            ),
            moved,
            max(piece.top + size[0] for piece, size in zip(moved, sizes, strict=True)),
            max(piece.left + size[1] for piece, size in zip(moved, sizes, strict=True)),
            (f"{len(cluster)} of its {len(whole)} tiles",) if len(cluster) < len(whole) else (),
        )


def _inside(tile: TileFacts) -> tuple[int, int]:
    rows, columns = tile.info.interior()
    return rows.stop - rows.start, columns.stop - columns.start


def _clusters(pieces: Sequence[_Piece], reach: float) -> Iterator[list[_Piece]]:
    """Yield groups of pieces whose upper left corners are within `reach` sides of the largest of another's."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    side = max(max(_inside(piece.tile)) for piece in pieces)
    tree = cKDTree([(piece.top, piece.left) for piece in pieces])
    pairs = tree.query_pairs(reach * side, p=np.inf, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(pieces), len(pieces)))
    count, labels = connected_components(graph, directed=False)
    for label in range(count):
        yield [piece for piece, own in zip(pieces, labels, strict=True) if own == label]


def _draw(axis: Axes, picture: _Picture, lines: float = 1.0) -> float:
    """Draw a picture, with outlines (`lines` times as wide as usual) and tiles' edges; return the share of glacier."""
    step = _step(picture)
    shape = (math.ceil(picture.height / step), math.ceil(picture.width / step))
    values = np.full((*shape, 3), np.nan, np.float32)
    ids = np.full(shape, IGNORE, np.uint8)
    seen = np.zeros(shape, bool)
    for piece in picture.pieces:
        image, mask, valid = _read(piece.split, piece.tile)
        rows, columns = -piece.top % step, -piece.left % step
        part = image[rows::step, columns::step]
        top, left = (piece.top + rows) // step, (piece.left + columns) // step
        place = np.s_[top : top + part.shape[0], left : left + part.shape[1]]
        values[place], ids[place], seen[place] = part, mask[rows::step, columns::step], valid[rows::step, columns::step]
    known = seen & np.isfinite(values).all(axis=-1)
    show(axis, _dimmed(stretch(values, known), ids), known, _UNSEEN)
    _outlines(axis, ids, picture.pieces[0].split, lines * (0.9 if step < 3 else 0.5))
    for piece in picture.pieces if len(picture.pieces) > 1 else ():
        height, width = (length / step for length in _inside(piece.tile))
        color = SPLIT_COLORS.get(piece.split.split, "#555555")
        inset = 1.5  # so that neighbours' edges stand side by side
        corner = (piece.left / step - 0.5 + inset, piece.top / step - 0.5 + inset)
        size = (width - 2 * inset, height - 2 * inset)
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=1.1))
    labelled = seen & (ids != IGNORE)
    return float(np.isin(ids[labelled], picture.pieces[0].split.glacier_ids).mean()) if labelled.any() else 0.0


def _dimmed(image: Image, ids: NDArray[np.uint8]) -> Image:
    """Return the image paler where the mask says nothing."""
    return np.where((ids == IGNORE)[..., None], 0.55 + 0.45 * image, image).astype(np.float32)


def _outlines(axis: Axes, ids: NDArray[np.uint8], split: SplitFacts, width: float = 0.9) -> None:
    for number in range(1, len(split.classes)):
        outline(axis, ids == number, OUTLINE_COLORS[(number - 1) % len(OUTLINE_COLORS)], width, halo=True)


def _read(split: SplitFacts, tile: TileFacts) -> tuple[Image, NDArray[np.uint8], NDArray[np.bool_]]:
    """Return false colour (raw, NaN: nothing), mask and valid of a tile, without its padding."""
    file, inside = split.file, tile.info.interior()
    there = {modality: names for modality, names in split.bands.items() if modality in tile.bands}
    bands, modality, shown = composite(there)
    values = file.read(tile.info.name, [modality])[modality][inside]
    mask, valid = file.mask(tile.info.name)[inside], file.valid(tile.info.name)[inside]
    if shown.startswith("elevation"):
        return _shaded(values[..., bands[0]]), mask, valid
    return values[..., bands], mask, valid


def _shaded(elevation: NDArray[np.float32]) -> Image:
    """Return a hillshade with light from the north-west, `(h, w, 3)`."""
    down, right = np.gradient(elevation)
    scale = max(float(np.nanstd(np.hypot(down, right))), 1e-6) * 2
    normal = np.sqrt(1 + (down / scale) ** 2 + (right / scale) ** 2)
    light = (0.7 + 0.5 * right / scale + 0.5 * down / scale) / normal
    return np.repeat(light[..., None], 3, axis=-1).astype(np.float32)


def _legend(survey: Survey) -> dict[str, Any]:
    first = survey.splits[0]
    _, modality, shown = composite(first.bands)
    return {
        "shown": "Hillshade of the elevation"
        if shown.startswith("elevation")
        else f"{shown} of {modality} as red, green, blue, stretched from the 2nd to the 98th percentile of each",
        "outlines": [
            (info.name, OUTLINE_COLORS[(number - 1) % len(OUTLINE_COLORS)])
            for number, info in enumerate(first.classes)
            if number
        ],
        "splits": [(split.split, SPLIT_COLORS.get(split.split, "#555555")) for split in survey.splits],
        "unseen": _UNSEEN if any(tile.valid < tile.pixels for _, tile in survey.tiles()) else "",
        "pale": any(tile.ignored for _, tile in survey.tiles()),
    }


# -- pictures of findings ------------------------------------------------------------------------------------


def _findings(survey: Survey, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    left = _PICTURES_OF_FINDINGS
    shown = []
    by_name = {(split.split, tile.info.name): (split, tile) for split, tile in survey.tiles()}
    for finding in findings:
        picture, caption = None, ""
        tiles = [by_name[key] for key in finding.tiles if key in by_name and not by_name[key][1].problems]
        if left and finding.alignment is not None:
            picture, caption = _picture_of_shift(finding.alignment, tiles)
        elif left and finding.severity != "note" and 0 < len(tiles):
            picture = _picture_of_tiles(tiles[:4])
        left -= picture is not None
        shown.append({"finding": finding, "picture": picture, "caption": caption})
    return shown


def _picture_of_shift(alignment: Alignment, tiles: Sequence[tuple[SplitFacts, TileFacts]]) -> tuple[str | None, str]:
    """Return a picture of the mask as it lies, where it fits, and of the fit by shift; and what to see in it."""
    if not tiles:
        return None, ""
    split, tile = max(tiles, key=lambda item: sum(count for _, count in item[1].windows))
    window, _ = max(tile.windows, key=lambda item: item[1])
    image, mask, valid = _read(split, tile)
    side = 160
    rows, columns = tile.info.interior()
    top = min(max(window.top + window.height // 2 - side // 2 - rows.start, 0), max(mask.shape[0] - side, 0))
    left = min(max(window.left + window.width // 2 - side // 2 - columns.start, 0), max(mask.shape[1] - side, 0))
    part = np.s_[top : top + side, left : left + side]
    # Beyond the tile's edge the mask goes on as it is there: what is moved in from outside has no outline of its own.
    whole = np.pad(np.isin(mask, split.glacier_ids), REACH, mode="edge")
    image, valid = image[part], valid[part]
    height, width = valid.shape

    def moved(down: int, right: int) -> NDArray[np.bool_]:
        first, start = top + REACH - down, left + REACH - right
        return whole[first : first + height, start : start + width]

    down, right = alignment.rows, alignment.columns
    figure = Figure(figsize=(9.4, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    pictured = stretch(image, valid)
    for axis, shift, color, title in (
        (axes[0], (0, 0), OUTLINE_COLORS[0], "the mask as it lies"),
        (axes[1], (down, right), _FITTING, f"moved {direction(alignment)}"),
    ):
        show(axis, pictured, valid, _UNSEEN)
        outline(axis, moved(*shift), color, 1.1, halo=True)
        axis.set_title(title, fontsize=9, loc="left")
    scores = np.where(np.isfinite(alignment.scores), alignment.scores, np.nan)
    axes[2].imshow(scores, cmap="Greys", extent=(-REACH - 0.5, REACH + 0.5, REACH + 0.5, -REACH - 0.5))
    for place, color in (((0, 0), OUTLINE_COLORS[0]), ((right, down), _FITTING)):
        axes[2].plot(*place, "o", color=color, markersize=7, markeredgecolor="black")
    axes[2].set_title("fit of the edges, by shift", fontsize=9, loc="left")
    axes[2].set_xlabel("pixels to the right", fontsize=8, labelpad=1)
    axes[2].set_ylabel("pixels down", fontsize=8, labelpad=1)
    axes[2].tick_params(labelsize=8, length=2)
    return _png(figure), (
        f"{width} × {height} pixels of tile {tile.info.name}. Right: how well edges of mask and image fit (their "
        "correlation) for every shift of the mask, the darker the better; dots are the two masks on the left."
    )


def _picture_of_tiles(tiles: Sequence[tuple[SplitFacts, TileFacts]]) -> str:
    figure = Figure(figsize=(2.35 * len(tiles), 2.6), layout="constrained")
    for axis, (split, tile) in zip(np.atleast_1d(figure.subplots(1, len(tiles))), tiles, strict=True):
        image, mask, valid = _read(split, tile)
        step = max(1, max(mask.shape) // 300)
        image, mask, valid = image[::step, ::step], mask[::step, ::step], valid[::step, ::step]
        known = valid & np.isfinite(image).all(axis=-1)
        show(axis, _dimmed(stretch(image, known), mask), known, _UNSEEN)
        _outlines(axis, mask, split)
        axis.set_title(f"{split.split} · {tile.info.name}", fontsize=8, loc="left")
    return _png(figure)


# -- the page ------------------------------------------------------------------------------------------------


def _png(figure: Figure) -> str:
    return _embedded(figure, "png", dpi=150)


def _jpeg(figure: Figure) -> str:
    return _embedded(figure, "jpeg", dpi=150, pil_kwargs={"quality": 88})


def _embedded(figure: Figure, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, facecolor="white", **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


_TEMPLATE = """{% macro item(label, color, kind="") -%}
<span class="item"><span class="swatch {{ kind }}" style="{{ "border-color" if kind else "background" }}:{{ color }}">
</span>{{ label }}</span>
{%- endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tiles: {{ name }}</title>
<style>
  body { font: 15px/1.5 "DejaVu Sans", "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1f2933;
         max-width: 1040px; margin: 2rem auto 4rem; padding: 0 1.2rem; background: #fff; }
  h1 { font-size: 1.7rem; margin: 0; } h1 small { color: #6b7785; font-weight: normal; font-size: 1rem; }
  h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem; border-bottom: 1px solid #d8dee4; }
  .lead { color: #4a5662; margin: .3rem 0 1.2rem; }
  img { max-width: 100%; height: auto; }
  table { border-collapse: collapse; width: 100%; font-size: .87rem; }
  th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid #e6eaee; vertical-align: top; }
  th { color: #6b7785; font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
  td.n + td:not(.n), th.n + th:not(.n) { padding-left: 1.2rem; }
  dl { display: grid; grid-template-columns: 6.5rem 1fr; gap: .3rem 1rem; font-size: .9rem; margin: 0; }
  dt { color: #6b7785; } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
  .finding { border-left: 4px solid; padding: .55rem .9rem; margin: .7rem 0; background: #f8f9fb; break-inside: avoid; }
  .finding h3 { font-size: .98rem; margin: 0; } .finding p { margin: .2rem 0 0; font-size: .87rem; }
  .finding .evidence { color: #4a5662; overflow-wrap: anywhere; } .finding img { margin-top: .7rem; display: block; }
  .error { border-color: #c62f2f; } .warning { border-color: #e09a1a; } .note { border-color: #8fa1b3; }
  .tag { font-size: .72rem; font-weight: 700; text-transform: uppercase; letter-spacing: .04em; margin-right: .5rem; }
  .error .tag { color: #c62f2f; } .warning .tag { color: #a66b00; } .note .tag { color: #5b6b7b; }
  .good { border-left: 4px solid #3f8f4f; background: #f2f8f3; padding: .55rem .9rem; }
  .weak { border: 2px solid #e09a1a; background: #fff8e8; padding: .7rem 1rem; font-weight: 600; margin: 1rem 0; }
  .pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1.1rem; }
  .wide { grid-column: 1 / -1; } .wide img { max-height: 860px; display: block; }
  .beside { display: flex; flex-wrap: wrap; gap: 2rem; } summary { color: #6b7785; cursor: pointer; }
  figure { margin: 0; break-inside: avoid; } figcaption { font-size: .83rem; } figcaption span { color: #6b7785; }
  .swatch { display: inline-block; width: .85em; height: .85em; margin-right: .35em; vertical-align: -.06em; }
  .line { background: none; border: 2.5px solid; width: .5em; height: .5em; outline: 1px solid #8a949e; }
  .item { display: inline-block; margin-right: 1.1em; }
  .key { font-size: .85rem; color: #4a5662; margin: .2rem 0 .8rem; } .band { margin: 1rem 0 .2rem; font-weight: 600; }
  footer { margin-top: 3rem; color: #6b7785; font-size: .8rem; overflow-wrap: anywhere; }
  @media print { body { margin: 0; max-width: none; font-size: 11pt; }
                 .pictures { grid-template-columns: repeat(3, 1fr); } h2 { break-after: avoid; } }
</style>
</head>
<body>
<h1>{{ name }} <small>what is in these tiles</small></h1>
<p class="lead">{{ tiles }} tile{{ "" if tiles == 1 else "s" }}
{% if scenes %}of {{ scenes }} scene{{ "" if scenes == 1 else "s" }}{% endif %} in {{ regions }}
region{{ "" if regions == 1 else "s" }}, {{ bands }} band{{ "" if bands == 1 else "s" }} ·
{{ counts.error }} error{{ "" if counts.error == 1 else "s" }},
{{ counts.warning }} warning{{ "" if counts.warning == 1 else "s" }},
{{ counts.note }} note{{ "" if counts.note == 1 else "s" }}</p>
{% if weak %}
<div class="weak">Weak masks: nobody drew these outlines. They are {{ weak.rule }}. Scores against them say how well
that rule is copied.</div>
{% endif %}

<h2>Findings</h2>
{% if not findings %}
<p class="good">Nothing was found: as far as a program can tell, masks lie on their images, and no band, tile or split
stands out. Look at the pictures all the same.</p>
{% endif %}
{% for entry in findings %}
<div class="finding {{ entry.finding.severity }}">
  <h3><span class="tag">{{ entry.finding.severity }}</span>{{ entry.finding.what }}</h3>
  <p class="evidence">{{ entry.finding.evidence }}</p>
  <p><b>What to do:</b> {{ entry.finding.remedy }}</p>
  {% if entry.picture %}<img alt="" src="{{ entry.picture }}">{% endif %}
  {% if entry.caption %}<p class="evidence">{{ entry.caption }}</p>{% endif %}
</div>
{% endfor %}

<h2>Splits</h2>
<table>
<tr><th>split</th><th class="n">tiles</th><th class="n">pixels</th><th class="n">valid</th>
<th class="n">with a class</th>
{% for class in class_names %}<th class="n">{{ class }}</th>{% endfor %}<th>regions (tiles)</th></tr>
{% for row in split_rows %}
<tr><td><span class="swatch" style="background:{{ row.color }}"></span>{{ row.name }}</td>
<td class="n">{{ row.tiles }}</td><td class="n">{{ row.pixels }}</td><td class="n">{{ row.valid }}</td>
<td class="n">{{ row.labelled }}</td>
{% for share in row.shares %}<td class="n">{{ share }}</td>{% endfor %}<td>{{ row.regions }}</td></tr>
{% endfor %}
</table>
<p class="key">Shares of classes are of the valid pixels with a class.</p>
<img alt="Shares of classes by split" src="{{ shares }}">
<h2>Pictures</h2>
<p class="key">{{ legend.shown }}.<br>
<span class="item">Outlines of the mask:</span>
{% for label, color in legend.outlines %}{{ item(label, color, "line") }}{% endfor %}
{% if pictures | selectattr("edges") | list %}
<span class="item">Edges of tiles:</span>
{% for label, color in legend.splits %}{{ item(label, color, "line") }}{% endfor %}
{% endif %}
{% if legend.unseen %}{{ item("not seen", legend.unseen) }}{% endif %}
{% if legend.pale %}<span class="item">paler than the rest: seen, but without a class</span>{% endif %}</p>
<div class="pictures">
{% for picture in pictures %}
<figure class="{{ picture.kind }}"><img alt="{{ picture.title }}" src="{{ picture.source }}">
<figcaption>{{ picture.title }}<br><span>{{ picture.text }}</span></figcaption></figure>
{% endfor %}
</div>

<h2>Where they lie</h2>
<div class="beside">
{% if map %}
<div style="flex:0 0 {{ map[1] }}"><p class="key">
{% for label, color in legend.splits %}{{ item(label, color) }}{% endfor %}<br>
{{ map[2] }}{% if unplaced %} {{ unplaced }} tiles have no place.{% endif %}</p>
<img alt="Footprints of the tiles" src="{{ map[0] }}"></div>
{% else %}
<p>The tiles say nothing of their place: whether they overlap is not known.</p>
{% endif %}
{% if separation %}
<div style="flex:1 1 20rem"><p class="band">How far apart the splits are</p>
<table>
{% for pair, distance, names in separation %}
<tr><td style="white-space:nowrap">{{ pair }}</td><td>{{ distance }}
{% if names %}<details><summary>which</summary>{{ names }}</details>{% endif %}</td></tr>
{% endfor %}
</table>
<p class="key">Tiles side by side look alike: the nearer the splits, the better scores look than they would elsewhere.
Divide by regions, or leave a gap between splits, if that matters.</p></div>
{% endif %}
</div>

<h2>Values</h2>
<p class="key">How often each value is there, of the valid pixels as stored, as shares of each split.
The first and last bin hold what lies beyond, and may be cut off at the top.<br>
{% for label, color in legend.splits %}{{ item(label, color) }}{% endfor %}</p>
{% for modality, chart in histograms %}
<p class="band">{{ modality }}</p>
<img alt="Histograms of {{ modality }}" src="{{ chart }}">
{% endfor %}

<h2>Where they come from</h2>
<dl>
{% for key, text in facts %}<dt>{{ key }}</dt><dd>{{ text }}</dd>{% endfor %}
</dl>
<table style="margin-top:1rem">
<tr><th>modality</th><th>bands</th><th>unit</th><th>level</th><th>sensor</th><th>absent from tiles</th></tr>
{% for row in modalities %}
<tr><td>{{ row.name }}</td><td>{{ row.bands }}</td><td>{{ row.unit }}</td><td>{{ row.level }}</td>
<td>{{ row.sensor }}</td><td>{{ row.absent }}</td></tr>
{% endfor %}
</table>
{% if scene_rows %}
<table style="margin-top:1rem">
<tr><th>scene</th><th>region</th><th>date or period</th><th>modalities</th><th>outlines</th></tr>
{% for row in scene_rows %}
<tr><td>{{ row.name }}</td><td>{{ row.region }}</td><td>{{ row.date }}</td><td>{{ row.modalities }}</td>
<td>{{ row.outlines }}</td></tr>
{% endfor %}
</table>
{% endif %}
<footer>{{ command }}</footer>
</body>
</html>
"""
