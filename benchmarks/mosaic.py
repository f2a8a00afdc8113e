"""A dataset's tiles put together into a scene and mapped: `predict.py` from end to end, against the reference.

    python -m benchmarks.mosaic -n karakoram
    python -m benchmarks.mosaic -n karakoram --tta --picture docs/mapped-glacierhack.png

Reads    weights/NAME.*, tiles of its dataset that lie on one grid
Writes   predictions/NAME/: the tiles', and those of the scene SPLIT-mosaic; with --picture an image

The tiles lie where their georeference says; what no tile covers is nodata. Tiles and scene are predicted with the
commands that a user gives. Printed are three Markdown tables: scores of both from pooled counts, the area of the
outlines beside the reference's, and both tile by tile. What the map must keep to is checked: gaps and invalid pixels
are nodata in every raster, no outline reaches into them, and where all windows over a pixel are the same ones, so is
its label, but for rounding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import shapes

import console
from benchmarks.report import machine, table
from console import UserError, replacing
from data.grids import Grid
from data.predictions import PredictionFile, path_of
from data.tiles import IGNORE, TileFile, find_dataset, select
from data.windows import Window, starts
from data.windows import grid as windows
from evaluation import picture
from evaluation.regions import glacier_ids
from evaluation.scores import Counts, confusion_matrix, counts
from inference.areas import LEVEL, PixelAreas, pixel_size_m
from inference.predictor import find_run
from inference.sliding import stride_of

if TYPE_CHECKING:
    import geopandas

ROOT = Path(__file__).resolve().parent.parent
_OFF = 0.01  # of a pixel that tiles may lie beside the common grid
_ROUNDED = 1e-3  # of the labels: what other sums, and another engine, may turn over


@dataclass(frozen=True)
class Layout:
    """Where tiles lie in a scene: its grid, and name → window of each tile."""

    grid: Grid
    places: dict[str, Window]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Where there is a tile, `(H, W)`."""
        found = np.zeros((self.grid.height, self.grid.width), bool)
        for window in self.places.values():
            found[window.slices] = True
        return found


def place(file: TileFile, names: Sequence[str]) -> Layout:
    """Return the smallest scene that has the tiles, without their padding.

    Raises:
        UserError: If a tile does not say where it lies, or tiles lie on different grids or overlap.
    """
    corners: dict[str, tuple[float, float]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    first: Grid | None = None
    for name in names:
        info = file.info(name)
        if info.crs is None or info.transform is None:
            raise UserError(f"{file.path}: tile {name!r} has no place on earth: a scene can't be made of it")
        rows, columns = info.interior()
        stored = Grid(info.crs, info.transform, info.height, info.width)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        own = stored.window(Window(rows.start, columns.start, height, width))
        first = first or own
        x, y = own.xy(np.array([0.0]), np.array([0.0]))
        left, top = (float(each[0]) for each in first.pixels(x, y))
        pixel = [*own.transform[:2], *own.transform[3:5]]
        same = own.crs == first.crs and np.allclose(pixel, [*first.transform[:2], *first.transform[3:5]], rtol=1e-6)
        if not same or max(abs(left - round(left)), abs(top - round(top))) > _OFF:
            raise UserError(
                f"{file.path}: tiles {names[0]!r} ({first.crs_name}, {first.resolution}) and {name!r} ({own.crs_name}, "
                f"{own.resolution}) lie on different grids: choose tiles of one scene with --regions or --split"
            )
        corners[name], sizes[name] = (round(top), round(left)), (height, width)
    assert first is not None
    top, left = (min(corner[axis] for corner in corners.values()) for axis in (0, 1))
    places = {name: Window(int(a - top), int(b - left), *sizes[name]) for name, (a, b) in corners.items()}
    height = max(window.top + window.height for window in places.values())
    width = max(window.left + window.width for window in places.values())
    layout = Layout(first.window(Window(int(top), int(left), height, width)), places)
    if layout.covered.sum() != sum(window.height * window.width for window in places.values()):
        raise UserError(f"{file.path}: tiles overlap: which one is the scene can't be told")
    return layout


def gather(layout: Layout, parts: dict[str, NDArray[Any]], empty: float) -> NDArray[Any]:
    """Return tiles `(h, w, …)` in their places in the scene `(H, W, …)`, `empty` between them."""
    one = next(iter(parts.values()))
    whole = np.full((layout.grid.height, layout.grid.width, *one.shape[2:]), empty, one.dtype)
    for name, part in parts.items():
        whole[layout.places[name].slices] = part
    return whole


def write_scene(file: TileFile, layout: Layout, folder: Path) -> dict[str, Path]:
    """Write a GeoTIFF of each modality's stored values, NaN where nothing was seen; return modality → file."""
    paths = {}
    for modality, bands in file.bands.items():
        values = {
            name: np.where(file.valid(name)[..., None], file.read(name, [modality])[modality], np.float32(np.nan))[
                file.info(name).interior()
            ]
            for name in layout.places
        }
        scene = gather(layout, values, np.nan)
        paths[modality] = folder / f"{modality}.tif"
        profile = {"driver": "GTiff", "height": scene.shape[0], "width": scene.shape[1], "count": scene.shape[2],
                   "dtype": "float32", "nodata": np.nan, "crs": layout.grid.crs, "compress": "deflate", "tiled": True,
                   "transform": Affine(*layout.grid.transform)}  # fmt: skip
        with rasterio.open(paths[modality], "w", **profile) as dataset:
            dataset.write(np.moveaxis(scene, -1, 0))
            dataset.descriptions = tuple(bands)
    return paths


def run(script: str, *arguments: str) -> None:
    """Run a script as a user does.

    Raises:
        UserError: If it fails; what it says is on the screen by then.
    """
    command = [sys.executable, str(ROOT / script), *arguments]
    print(f"python {script} {' '.join(arguments)}", file=sys.stderr, flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"python {script} {' '.join(arguments)} failed")


@dataclass(frozen=True)
class Mapped:
    """The scene as it was mapped, and its reference; rasters are `(H, W)`.

    `labels`: class ids, 255 = nodata. `confidence`: of the label, NaN = nodata. `reference`: class ids, 255 where there
    is none. `seen`: the tiles' valid pixels. `of_tiles`: labels of the tiles predicted one by one, 255 in gaps.
    `outlines`: of all that is glacier. `summary`: their layer of summary.json.
    """

    layout: Layout
    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    reference: NDArray[np.uint8]
    seen: NDArray[np.bool_]
    of_tiles: NDArray[np.uint8]
    outlines: geopandas.GeoDataFrame
    summary: dict[str, Any]
    glacier: tuple[int, ...]
    classes: int
    calibrated: bool
    patch: int
    stride: int

    def counts(self, labels: NDArray[np.uint8], *, everything: bool) -> Counts:
        """Return glacier's counts over valid pixels, or all with a reference, the invalid ones as background."""
        labels = np.where(self.seen, labels, 0)
        reference = self.reference if everything else np.where(self.seen, self.reference, np.uint8(IGNORE))
        return counts(confusion_matrix(reference, labels, self.classes), self.glacier)

    def same_windows(self) -> NDArray[np.bool_]:
        """Return where the windows over a pixel are the same ones in the scene as in its tile, `(H, W)`."""
        size = self.layout.grid.height, self.layout.grid.width
        in_scene = [set(starts(length, self.patch, self.stride)) for length in size]
        found = np.zeros(size, bool)
        for window in self.layout.places.values():
            sides = []
            for begin, length, there in zip(
                (window.top, window.left), (window.height, window.width), in_scene, strict=True
            ):
                here = {begin + start for start in starts(length, self.patch, self.stride)}
                same = np.full(length, length >= self.patch)  # of a smaller tile the window is padded
                for start in here ^ there:
                    same[max(0, start - begin) : max(0, start - begin + self.patch)] = False
                sides.append(same)
            found[window.slices] = np.outer(*sides)
        return found

    def area_km2(self, ids: NDArray[np.uint8], window: Window | None = None) -> float:
        """Return the area on the ellipsoid of what is glacier in `ids` `(H, W)` and was seen, in all or in a window."""
        window = window or Window(0, 0, self.layout.grid.height, self.layout.grid.width)
        areas = PixelAreas(self.layout.grid).of(window)
        return float(areas[(np.isin(ids, self.glacier) & self.seen)[window.slices]].sum())


def read_mapped(file: TileFile, layout: Layout, name: str, folder: Path) -> Mapped:
    """Read what `predict.py` made of the tiles, and in `folder` of the scene, with the run `name`."""
    import geopandas

    tiles = PredictionFile(path_of(name))
    read = {tile: tiles.read(tile) for tile in layout.places}
    with rasterio.open(folder / "labels.tif") as dataset:
        labels = dataset.read(1)
    with rasterio.open(folder / "confidence.tif") as dataset:
        stored = dataset.read(1)
        confidence = np.where(stored == dataset.nodata, np.nan, stored * dataset.scales[0]).astype(np.float32)
    summary = json.loads((folder / "summary.json").read_text())
    titles = [entry.name for entry in file.classes[1:] if entry.glacier]
    layer = next(one for one in summary["layers"] if one["title"] == (titles[0] if len(titles) == 1 else "glacier"))
    patch = int(tiles.attributes["patch_size"])
    return Mapped(
        layout=layout,
        labels=labels,
        confidence=confidence,
        reference=gather(layout, {tile: one.mask for tile, one in read.items()}, IGNORE),
        seen=gather(layout, {tile: one.valid for tile, one in read.items()}, False),
        of_tiles=gather(layout, {tile: one.labels for tile, one in read.items()}, IGNORE),
        outlines=geopandas.read_file(folder / "outlines.gpkg", layer=layer["name"]),
        summary=layer,
        glacier=glacier_ids(file.classes),
        classes=len(file.classes),
        calibrated=bool(summary["calibration"]),
        patch=patch,
        stride=stride_of(patch, float(tiles.attributes["overlap"]), 1),
    )


def polygons(area: NDArray[np.bool_], transform: Affine) -> list[shapely.Geometry]:
    """Return the outlines of `area` `(H, W)` along the pixels' edges."""
    found = shapes(area.astype(np.uint8), mask=area, transform=transform)
    return [shapely.geometry.shape(shape) for shape, _ in found]


def check(mapped: Mapped) -> list[str]:
    """Return what the map must keep to, one line each.

    Raises:
        UserError: If it does not.
    """
    unseen = ~mapped.seen
    gaps = ~mapped.layout.covered
    lines = []
    for name, empty in (("labels.tif", mapped.labels == IGNORE), ("confidence.tif", np.isnan(mapped.confidence))):
        if (wrong := empty != unseen).any():
            raise UserError(f"{name}: {wrong.sum():,} pixels are nodata that were seen, or the other way round")
        lines.append(
            f"{name}: nodata are the {gaps.sum():,} pixels of the gaps and {(unseen & ~gaps).sum():,} invalid ones"
        )
    nowhere = shapely.union_all(polygons(unseen, Affine(*mapped.layout.grid.transform)))
    reached = float(shapely.area(shapely.intersection(mapped.outlines.geometry.values, nowhere)).sum())
    if reached > 1e-6 * float(mapped.outlines.area.sum()):
        raise UserError(f"outlines.gpkg: {reached / 1e6:.6f} km² of the outlines lie where nothing was seen")
    lines.append(f"outlines.gpkg: {len(mapped.outlines)} outlines, none of them where nothing was seen")
    same, other = mapped.same_windows() & mapped.seen, mapped.labels != mapped.of_tiles
    same_share = _share(~other, same)
    if same_share < 1 - _ROUNDED:
        raise UserError(
            f"{(same & other).sum():,} of {same.sum():,} labels differ from the tiles' where all windows are the same"
        )
    near = ~same & mapped.seen
    lines.append(
        f"the scene's label is the tile's at {same_share:.3%} of the {same.sum():,} pixels under the same windows, and "
        f"at {_share(~other, near):.2%} of the {near.sum():,} nearer to a tile's edge"
    )
    return lines


def _share(of: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    """Return the share of the pixels `among` that are in `of`; of none, all are."""
    return float(of[among].mean()) if among.any() else 1.0


def scores(mapped: Mapped) -> str:
    """Return the table of scores: of the scene and of the tiles predicted one by one."""
    rows = []
    for what, labels in (("scene", mapped.labels), ("tiles, one by one", mapped.of_tiles)):
        for counted, everything in (("valid", False), ("all", True)):
            found = mapped.counts(labels, everything=everything)
            shown = (found.iou, found.mcc, found.precision, found.recall)
            rows.append([what, counted, f"{found.pixels:,}", *(f"{value:.4f}" for value in shown)])
    return table(["predicted as", "pixels", "number", "IoU", "MCC", "precision", "recall"], rows)


def areas(mapped: Mapped) -> str:
    """Return the table of areas: the reference's, the outlines', and the intervals."""
    reference = mapped.area_km2(mapped.reference)

    def interval(of: dict[str, float] | None) -> list[str]:
        if of is None:
            return ["–", "not calibrated"]
        low, high = of["low_km2"], of["high_km2"]
        return [f"{low:.1f}–{high:.1f}", "yes" if low <= reference <= high else "no"]

    summary, probable = mapped.summary, mapped.summary["probable"]
    expected = "–" if probable is None else f"{probable['area_km2']:.1f}"
    rows = [
        ["reference, where seen", f"{reference:.1f}", "", ""],
        ["outlines, ± half a pixel", f"{summary['area_km2']:.1f}", *interval(summary["half_pixel"])],
        [f"by probability, {LEVEL:.0%} within", expected, *interval(probable)],
    ]
    return table(["area", "km²", "interval", "has the reference"], rows)


def tiles(mapped: Mapped) -> str:
    """Return the table of tiles, as the scene's map has them."""
    rows = []
    for name, window in mapped.layout.places.items():
        seen = mapped.seen[window.slices]
        matrix = confusion_matrix(
            np.where(seen, mapped.reference[window.slices], IGNORE), mapped.labels[window.slices], mapped.classes
        )
        areas = (f"{mapped.area_km2(ids, window):.1f}" for ids in (mapped.reference, mapped.labels))
        rows.append([name, f"{seen.mean():.0%}", f"{counts(matrix, mapped.glacier).iou:.3f}", *areas])
    return table(["tile", "valid", "IoU", "reference, km²", "mapped, km²"], rows)


# -- the picture ---------------------------------------------------------------------------------------------

_REFERENCE, _MAPPED = "#ffe119", "#f0027f"  # seen on snow, ice and rock in false colour
_CONFIDENCE = "YlGnBu_r"
_INCHES = 12.0  # across
_EDGE, _ROOM, _BETWEEN = 0.1, 0.42, 0.15  # inches: at the sides, above a panel, between two
_DETAIL = 256  # pixels a side
_SEEN = 0.7  # of a detail, at least
_SHARES = 0.2, 0.6  # of glacier that a detail has
_DARK = 0.6  # exponent: slopes in the shadow are to be seen beside snow in the sun
_COLORS = 192  # of the image: a false colour needs no more
_ON_IMAGE: dict[str, Any] = {
    "color": "white",
    "fontweight": "bold",
    "path_effects": [Stroke(linewidth=2, foreground="black"), Normal()],
}

_FRAME: dict[str, Any] = {"edgecolor": "white", "path_effects": [Stroke(linewidth=3, foreground="black"), Normal()]}


@dataclass(frozen=True)
class Canvas:
    """What panels are drawn on their images: rings in pixels, and the size of a pixel (width, height)."""

    truth: list[NDArray[np.float64]]
    found: list[NDArray[np.float64]]
    pixel_km: NDArray[np.float64]

    def panel(self, axes: Axes, image: NDArray[np.float32], box: Window, width: float) -> None:
        """Show the part in `box` of `image`, RGB `(H, W, 3)`, outlines of a `width` above 0, and a scale bar."""
        across, down = self.pixel_km
        rows, columns = image.shape[:2]
        axes.imshow(image, extent=(0, columns * across, rows * down, 0), interpolation="antialiased")
        # The wider line is below: where the two agree, both are seen.
        lines = ((self.truth, _REFERENCE, 2 * width), (self.found, _MAPPED, width))
        for rings, color, drawn in lines if width else ():
            axes.add_collection(
                LineCollection([ring * self.pixel_km for ring in rings], colors=color, linewidths=drawn)
            )
        left, top, right, bottom = np.array([box.left, box.top, box.left + box.width, box.top + box.height]) * np.tile(
            self.pixel_km, 2
        )
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        length = max(one for one in (1, 2, 5, 10, 20, 50, 100) if one <= max(1, (right - left) / 3.5))
        x, y = right - 0.03 * (right - left) - length, bottom - 0.05 * (bottom - top)
        halo = [Stroke(linewidth=5, foreground="black"), Normal()]
        axes.plot([x, x + length], [y, y], color="white", linewidth=3, path_effects=halo, solid_capstyle="butt")
        axes.text(
            x + length / 2, y - 0.02 * (bottom - top), f"{length} km", ha="center", va="bottom", fontsize=9, **_ON_IMAGE
        )


def details(mapped: Mapped) -> list[tuple[str, Window]]:
    """Return the parts that are mapped best and worst, of those with glacier and rock and few pixels unseen."""
    found: list[tuple[float, Window]] = []
    for tile in mapped.layout.places.values():
        side = min(_DETAIL, tile.height, tile.width)
        for window in windows(tile.height, tile.width, side, max(1, side // 2)):
            box = Window(tile.top + window.top, tile.left + window.left, side, side)
            seen, truth = mapped.seen[box.slices], np.isin(mapped.reference[box.slices], mapped.glacier)
            if seen.mean() > _SEEN and _SHARES[0] <= truth[seen].mean() <= _SHARES[1]:
                mine = np.isin(mapped.labels[box.slices], mapped.glacier)
                found.append((float((truth & mine)[seen].sum() / (truth | mine)[seen].sum()), box))
    found.sort(key=lambda one: one[0])
    best_first = [("mapped best", found[-1]), ("mapped worst", found[0])] if len(found) > 1 else []
    return [(f"{what}: IoU {iou:.2f}", box) for what, (iou, box) in best_first]


def draw(mapped: Mapped, paths: dict[str, Path], bands: dict[str, list[str]], path: Path, title: str) -> None:
    """Draw the scene in false colour with both outlines, its confidence, and two details, into the image `path`."""
    shown, modality, composite = picture.composite(bands)
    with rasterio.open(paths[modality]) as dataset:
        values = np.moveaxis(dataset.read([band + 1 for band in shown]), 0, -1)
    nowhere, grid = np.array(to_rgb(picture.INVALID), np.float32), mapped.layout.grid
    shades = Normalize(1 / mapped.classes, 1)
    shaded = colormaps[_CONFIDENCE](shades(np.nan_to_num(mapped.confidence)))[..., :3]
    image, shaded = (
        np.where(mapped.seen[..., None], one, nowhere).astype(np.float32)
        for one in (picture.stretch(values, mapped.seen) ** _DARK, shaded)
    )
    in_pixels = shapely.transform(
        mapped.outlines.geometry.values, lambda xy: np.stack(grid.pixels(xy[:, 0], xy[:, 1]), axis=1)
    )
    truth = polygons(np.isin(mapped.reference, mapped.glacier) & mapped.seen, Affine.identity())
    canvas = Canvas(rings(truth), rings(in_pixels), np.array(pixel_size_m(grid)) / 1e3)

    everything = Window(0, 0, grid.height, grid.width)
    shape = grid.height * canvas.pixel_km[1] / (grid.width * canvas.pixel_km[0])
    wide = _INCHES - 2 * _EDGE
    chosen = details(mapped)
    side = (wide - len(chosen) * _BETWEEN) / (len(chosen) + 1 / shape) if chosen else wide * shape
    side = min(side, wide / 4)
    half = wide - len(chosen) * (side + _BETWEEN)
    lower, upper = max(side, half * shape), wide * shape
    height = upper + lower + 2 * _ROOM + 0.9
    figure = Figure(figsize=(_INCHES, height), dpi=100)

    def axes(left: float, top: float, width: float, tall: float, text: str) -> Axes:
        made = figure.add_axes((left / _INCHES, 1 - (top + tall) / height, width / _INCHES, tall / height))
        made.set_title(text, fontsize=11, loc="left", pad=4)
        return made

    top = _ROOM + 0.35
    main = axes(_EDGE, top, wide, upper, f"False colour ({composite})")
    canvas.panel(main, image, everything, 0.4)
    for number, (_, box) in enumerate(chosen):
        x, y = (float(place) for place in np.array([box.left, box.top]) * canvas.pixel_km)
        across, down = (float(side) for side in np.array([box.width, box.height]) * canvas.pixel_km)
        main.add_patch(Rectangle((x, y), across, down, fill=False, linewidth=1.5, **_FRAME))
        main.text(x + 0.3, y + 0.3, "ab"[number], fontsize=12, va="top", **_ON_IMAGE)
    top += upper + _ROOM
    kind = "Confidence: " + ("calibrated " if mapped.calibrated else "") + "probability of the label"
    canvas.panel(axes(_EDGE, top, half, half * shape, kind), shaded, everything, 0)
    for number, (text, box) in enumerate(chosen):
        left = _EDGE + half + _BETWEEN + number * (side + _BETWEEN)
        canvas.panel(axes(left, top, side, side, f"{'ab'[number]}, {text}"), image, box, 1.0)
    below = figure.add_axes(
        (
            2 * _EDGE / _INCHES,
            (height - top - half * shape - 0.22) / height,
            (half - 2 * _EDGE) / _INCHES,
            0.12 / height,
        )
    )
    figure.colorbar(ScalarMappable(shades, _CONFIDENCE), cax=below, orientation="horizontal")
    below.tick_params(labelsize=9, length=2)
    handles: list[Any] = [Line2D([], [], color=_REFERENCE, linewidth=3, label="outlines of the reference")]
    handles += [Line2D([], [], color=_MAPPED, linewidth=3, label="outlines mapped")]
    handles += [Patch(color=picture.INVALID, label="nodata: between tiles, or masked in them")]
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(1 - _EDGE / _INCHES, 1 - 0.38 / height), ncols=3,
                  frameon=False, fontsize=10, borderaxespad=0)  # fmt: skip
    north = "; north is up" if grid.north_up else ""
    figure.text(_EDGE / _INCHES, 1 - 0.1 / height, f"{title} · {grid.crs_name}{north}", fontsize=13, va="top",
                fontweight="bold")  # fmt: skip
    save(figure, path)


def rings(areas: Iterable[shapely.Geometry]) -> list[NDArray[np.float64]]:
    """Return the borders of polygons and of their holes, each `(N, 2)`."""
    parts = shapely.get_parts(np.array(list(areas), object))
    return [shapely.get_coordinates(ring) for part in parts for ring in shapely.get_rings(part)]


def save(figure: Figure, path: Path) -> None:
    """Save a figure as an image of few colours, which is a third of the size."""
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    with replacing(path) as temporary:
        image.quantize(_COLORS, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)


def main(arguments: list[str]) -> None:
    """Make the scene, predict, check, print and draw."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mosaic", description=__doc__, formatter_class=raw)
    parser.add_argument("-n", dest="name", required=True, metavar="NAME", help="of the run")
    parser.add_argument("--data", metavar="DATASET", help="a dataset's name or folder [the run's]")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="[%(default)s]")
    parser.add_argument("--regions", nargs="+", metavar="REGION", help="only tiles of these regions")
    parser.add_argument("--tta", action="store_true", help="average over symmetries, as predict.py does")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the map into this .png")
    parser.add_argument("--folder", type=Path, help="where the scene's rasters go [a temporary one]")
    options = parser.parse_args(arguments)
    described = machine()
    record = find_run(options.name)
    dataset = find_dataset(options.data or record.dataset["folder"])
    with TileFile(dataset.path(options.split)) as file, tempfile.TemporaryDirectory() as temporary:
        layout = place(file, select(file, options.regions))
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = write_scene(file, layout, folder)
        way = ["--tta"] if options.tta else []
        scene = f"{options.split}-mosaic{'-tta' if options.tta else ''}"
        given = [word for name, path in paths.items() for word in ("--modality", name, str(path))]
        # Slopes, reflectance and decibels are in the tiles already.
        given += [word for name in paths for word in ("--set", f"modalities.{name}.type=bands")]
        regions = ["--regions", *options.regions] if options.regions else []
        run("predict.py", "-n", options.name, "--data", str(dataset.folder), "--split", options.split, *regions, *way)
        run("predict.py", "-n", options.name, *given, "--scene-name", scene, "--overlap", "0.5", *way)  # that of tiles
        mapped = read_mapped(file, layout, options.name, Path("predictions") / options.name / scene)
        size = f"{len(layout.places)} tiles in {layout.grid.height}×{layout.grid.width} pixels"
        print(f"{described}\n\n{size}\n")
        print("\n".join(f"- {line}" for line in check(mapped)))
        print(f"\n{scores(mapped)}\n\n{areas(mapped)}\n\n{tiles(mapped)}")
        if options.picture:
            draw(
                mapped, paths, file.bands, options.picture, f"{dataset.name}, {options.split}, mapped by {options.name}"
            )


if __name__ == "__main__":
    console.run(main)
