"""Whole scenes: read window by window, predicted strip by strip, written as rasters of classes and of confidence.

A strip is some rows of windows. Each is predicted on its own and kept in a working folder beside the rasters, so that
an interrupted prediction goes on with the strips that are missing, and strips can be predicted in any order and place;
windows that reach into a strip from above are predicted with it once more, so that the seams can't be seen.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rasterio
import rasterio.errors
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.windows import Window as RasterWindow

from console import UserError, progress, remove_leftovers, replacing, warn
from data.grids import Grid
from data.location import place_of_grid
from data.normalisation import Statistics, scaled
from data.rasters import unwritable
from data.scenes import Scene, hidden, read_source
from data.tiles import IGNORE, ClassInfo, level_note
from data.windows import Window, starts
from inference.predictor import InputSet
from inference.sliding import Floats, Kernel, Piece, Predict, Source, blend_rows, pieces, stride_of

ROWS = 16
"""Rows of windows in a strip: one more is predicted for each, so that few are cheap and none is costly to lose."""

SCALE = 1e-4
"""Stored number × this = probability; rasters of probabilities are uint16."""

UNSEEN = 65535
"""The stored number that means nodata."""

_BLOCK = 256  # pixels a side of the rasters' blocks
_FORMAT = 2  # of the working folder: another one is not taken up


@dataclass(frozen=True)
class SceneSource:
    """A scene as the windows of what one run or several read.

    Args:
        scene: The scene.
        sets: The inputs.
    """

    scene: Scene
    sets: tuple[InputSet, ...]

    @property
    def height(self) -> int:
        """Rows."""
        return self.scene.grid.height

    @property
    def width(self) -> int:
        """Columns."""
        return self.scene.grid.width

    def read(self, window: Window) -> tuple[Mapping[str, Floats], NDArray[np.bool_]]:
        """Return the scaled inputs of a window and where the scene was seen; what lies beyond the scene is cut.

        A pixel is seen where the modalities that must be there have a value, and each set has one of its own. A
        modality without a value in the window is absent: NaN everywhere.
        """
        rows, columns = (
            range(*part.indices(side)) for part, side in zip(window.slices, (self.height, self.width), strict=True)
        )
        grid = self.scene.grid.window(Window(rows.start, columns.start, len(rows), len(columns)))
        seen = ~hidden(self.scene, grid)
        values: dict[str, Floats] = {}
        wanted = {modality for one in self.sets for modality in one.bands}
        for modality, source in self.scene.sources.items():
            if source.required or modality in wanted:
                values[modality], _ = read_source(source, grid)
            if source.required:
                seen &= np.isfinite(values[modality]).any(axis=-1)
        inputs: dict[str, Floats] = {}
        for one in self.sets:
            if one.location is not None:
                place = place_of_grid(self.scene.name, self.scene.region, grid)
                inputs[f"{one.prefix}location"] = one.location.encode(place)
            of_set = np.zeros_like(seen)
            for modality, bands in one.bands.items():
                read = np.full((grid.height, grid.width, len(bands)), np.nan, np.float32)
                if modality in values:
                    there = self.scene.sources[modality].bands
                    read = values[modality][..., [there.index(name) for name in bands]]
                known = np.isfinite(read).any(axis=-1)
                of_set |= known
                inputs[f"{one.prefix}{modality}"] = scaled(one.statistics, modality, read) if known.any() else read
            seen &= of_set
        return inputs, seen


@dataclass(frozen=True)
class SceneOffer:
    """A scene as what models are applied to; see `inference.predictor.Offer`.

    A modality that a run was trained on and the scene lacks is offered all the same, and is absent when it is read.

    Args:
        scene: The scene.
        trained: Modality → names of its bands, of the runs.
        classes: The class list.
        chosen: The bands that were chosen by name.
    """

    scene: Scene
    trained: Mapping[str, Sequence[str]]
    classes: tuple[ClassInfo, ...]
    chosen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    has_classes: bool = False
    digest: str = ""

    @property
    def path(self) -> Path:
        """The scene's name."""
        return Path(self.scene.name)

    @property
    def bands(self) -> dict[str, list[str]]:
        """Band names by modality: as chosen, else as trained, else the scene's."""
        there = {name: list(source.bands) for name, source in self.scene.sources.items()}
        return there | {name: list(bands) for name, bands in (dict(self.trained) | dict(self.chosen)).items()}

    @property
    def modalities(self) -> dict[str, int]:
        """Channel counts by modality."""
        return {name: len(bands) for name, bands in self.bands.items()}

    @property
    def statistics(self) -> Statistics | None:
        """None fitted: what a scene holds is scaled as a run's training tiles were."""
        return Statistics("standardise", {}, {}, f"nothing: {self.scene.name} is a scene")

    @property
    def level_note(self) -> str:
        """What who uses the published weights must know of its reflectance."""
        units = {name: (source.unit, source.level) for name, source in self.scene.sources.items()}
        return level_note(self.scene.name, units)

    def choose(
        self, bands: Mapping[str, int | Sequence[str]] | None = None, classes: Sequence[ClassInfo] | None = None
    ) -> SceneOffer:
        """Return the scene with certain bands and a class list."""
        named = {name: tuple(wanted) for name, wanted in (bands or {}).items() if not isinstance(wanted, int)}
        return replace(
            self,
            chosen={**self.chosen, **named},
            classes=self.classes if classes is None else tuple(classes),
        )

    def check(self, modalities: Sequence[str], *, labelled: bool = True) -> list[str]:
        """Say nothing: a scene is read when it is predicted."""
        return []


def offer(scene: Scene, trained: Mapping[str, Sequence[str]], classes: Sequence[ClassInfo], name: str) -> SceneOffer:
    """Return a scene as what a model is applied to, or say what keeps the model from it.

    A modality that the scene lacks is absent, with a warning, as long as the scene has another.

    Args:
        scene: The scene.
        trained: Modality → names of the bands that the model reads, in its order.
        classes: The class list.
        name: What messages call the model.

    Raises:
        UserError: If the scene has none of the modalities, or bands of one are missing.
    """
    missing = [modality for modality in trained if modality not in scene.sources]
    if trained and len(missing) == len(trained):
        raise UserError(
            f"scene {scene.name!r} has {', '.join(scene.sources)}; {name!r} was trained on {', '.join(trained)}: "
            "give at least one of these"
        )
    for modality, bands in trained.items():
        source = scene.sources.get(modality)
        if source is not None and (lacking := [band for band in bands if band not in source.bands]):
            raise UserError(
                f"scene {scene.name!r}: {modality} has the bands {', '.join(source.bands)}; {name!r} was trained on "
                f"{', '.join(bands)}: {', '.join(lacking)} is missing; name the bands of the files with "
                f"--set modalities.{modality}.bands=[{','.join(bands)}]"
            )
    if missing:
        warn(
            f"scene {scene.name}: {', '.join(missing)} is absent; {name!r} was trained with it, and is right without "
            "it as far as it was trained with augmentation.drop"
        )
    return SceneOffer(scene, {key: tuple(bands) for key, bands in trained.items()}, tuple(classes))


@dataclass(frozen=True)
class ScenePrediction:
    """Where a scene's rasters are, and how it went.

    `labels`: class ids, uint8, 255 = not seen. `confidence`: probability of the label, uint16 · `SCALE`. `probs`: of
    each output, likewise, if asked for. `windows` counts what was predicted in this run, without those in which nothing
    was seen, `seconds` what that took.
    """

    labels: Path
    confidence: Path
    probs: Path | None
    windows: int
    seconds: float
    resumed: int


@dataclass(frozen=True)
class StripSettings:
    """What the strips of a scene have in common; see `predict_scene`. `stride`: distance of windows in pixels."""

    num_outputs: int
    patch: int
    stride: int
    batch: int
    keep_probs: bool
    shape: Kernel = "gaussian"


@dataclass(frozen=True)
class ScenePlan:
    """A scene that is to be predicted strip by strip.

    `parts`: the strips. `work`: the folder that they are kept in. `folder`: where the rasters go. `facts`: what those
    say of their making.
    """

    scene: Scene
    parts: tuple[Piece, ...]
    work: Path
    folder: Path
    classes: tuple[ClassInfo, ...]
    settings: StripSettings
    facts: Mapping[str, Any]

    def missing(self) -> list[int]:
        """Return the numbers of the strips that are not finished."""
        return [number for number in range(len(self.parts)) if not is_finished(self.work, number)]

    def windows(self, number: int) -> int:
        """Return how many windows a strip is blended of, seen or not."""
        columns = starts(self.scene.grid.width, self.settings.patch, self.settings.stride)
        return len(self.parts[number].tops) * len(columns)

    def clear(self) -> None:
        """Remove the working folder: from then on, a prediction of the scene begins anew."""
        shutil.rmtree(self.work)


def plan_scene(
    source: SceneSource,
    folder: Path,
    *,
    classes: Sequence[ClassInfo],
    num_outputs: int,
    patch: int,
    overlap: float,
    batch: int,
    keep_probs: bool,
    described: Mapping[str, Any] | None = None,
    shape: Kernel = "gaussian",
) -> ScenePlan:
    """Divide a scene into strips, and make its working folder or take up the one of an earlier start.

    The arguments are those of `predict_scene`.

    Raises:
        UserError: If the overlap or the number of windows at once is impossible.
    """
    stride = stride_of(patch, overlap, batch)
    work = folder / ".unfinished"
    facts = dict(described or {}) | {"overlap": overlap, "batch": batch, "patch": patch, "probs": keep_probs}
    facts["kernel"] = shape
    _open_work(work, source.scene, facts)
    settings = StripSettings(num_outputs, patch, stride, batch, keep_probs, shape)
    parts = tuple(pieces(source, patch, stride, ROWS))
    return ScenePlan(source.scene, parts, work, folder, tuple(classes), settings, facts)


def finish_scene(planned: ScenePlan, predicted: Sequence[int], began: float) -> ScenePrediction:
    """Make the rasters of a scene's finished strips, which stay until `ScenePlan.clear`.

    Args:
        planned: The scene.
        predicted: The numbers of the strips that were predicted in this run.
        began: When, by `time.perf_counter`.
    """
    windows = sum(int(json.loads(_done(planned.work, number).read_text())["windows"]) for number in predicted)
    keep_probs = planned.settings.keep_probs
    result = assemble(
        planned.work, planned.parts, planned.scene, planned.folder, planned.classes, keep_probs, planned.facts
    )
    seconds = time.perf_counter() - began
    return ScenePrediction(*result, windows, seconds, len(planned.parts) - len(predicted))


def predict_scene(
    predict: Predict,
    source: SceneSource,
    folder: Path,
    *,
    classes: Sequence[ClassInfo],
    num_outputs: int,
    patch: int,
    overlap: float = 0.5,
    batch: int = 4,
    keep_probs: bool = False,
    described: Mapping[str, Any] | None = None,
    finish: Callable[[Floats], tuple[Floats, NDArray[np.uint8]]] | None = None,
    shape: Kernel = "gaussian",
) -> ScenePrediction:
    """Predict a scene into `folder/{labels,confidence}.tif`, in memory that does not grow with its height.

    Args:
        predict: The model, called with exactly `batch` patches.
        source: The scene.
        folder: Where the rasters go; each is there when it is whole.
        classes: The class list.
        num_outputs: Number K of probabilities of a pixel.
        patch: Side of a window in pixels.
        overlap: Share of a window that its neighbour has, too, 0 … 1 exclusive.
        batch: Windows predicted at once.
        keep_probs: Whether the probabilities of all outputs are kept, as `probs.tif`.
        described: What the rasters say of their making; with the scene's files it decides whether an unfinished
            prediction is taken up.
        finish: Turns probabilities `(h, w, K)` into calibrated ones of each class and labels; None: the probabilities
            themselves, and the most probable class.
        shape: Of the kernel that windows are blended by.

    Raises:
        UserError: If a raster can't be read, or the model returns anything but numbers.
    """
    planned = plan_scene(
        source, folder, classes=classes, num_outputs=num_outputs, patch=patch, overlap=overlap, batch=batch,
        keep_probs=keep_probs, described=described, shape=shape,
    )  # fmt: skip
    prediction = predict_planned(predict, planned, finish or plain)
    planned.clear()
    return prediction


def predict_planned(
    predict: Predict, planned: ScenePlan, finish: Callable[[Floats], tuple[Floats, NDArray[np.uint8]]]
) -> ScenePrediction:
    """Predict the missing strips of a scene one after another, and make its rasters; see `predict_scene`."""
    missing = planned.missing()
    windows = sum(planned.windows(number) for number in missing)
    began = time.perf_counter()
    bar = progress(range(windows), "predict", total=windows, unit="window")
    for number in missing:
        piece = planned.parts[number]
        watched = replace(piece, source=_Watched(piece.source, bar.update))
        predict_strip(predict, watched, planned.work, number, planned.settings, finish)
    bar.close()
    return finish_scene(planned, missing, began)


@dataclass(frozen=True)
class _Watched:
    """A source that tells of every window that is read of it, predicted or not."""

    source: Source
    tell: Callable[[], Any]

    @property
    def height(self) -> int:
        return self.source.height

    @property
    def width(self) -> int:
        return self.source.width

    def read(self, window: Window) -> tuple[Mapping[str, Floats], NDArray[np.bool_]]:
        found = self.source.read(window)
        self.tell()
        return found


def plain(probs: Floats) -> tuple[Floats, NDArray[np.uint8]]:
    """Return the probability of every class `(h, w, K)` and the most probable one `(h, w)`."""
    if probs.shape[-1] == 1:
        probs = np.concatenate([1 - probs, probs], axis=-1)
        return probs, (probs[..., 1] > 0.5).astype(np.uint8)
    return probs, probs.argmax(axis=-1).astype(np.uint8)


def predict_strip(
    predict: Predict,
    piece: Piece,
    work: Path,
    number: int,
    settings: StripSettings,
    finish: Callable[[Floats], tuple[Floats, NDArray[np.uint8]]],
) -> None:
    """Predict one strip of a scene into the working folder; a strip with its note is finished.

    Raises:
        UserError: If a raster can't be read, or the model returns anything but numbers.
    """
    shape = (piece.bottom - piece.top, piece.source.width)
    layers: dict[str, BinaryIO] = {}
    windows = 0
    remove_leftovers(*(_layer(work, number, name) for name in ("labels", "confidence", "probs")))
    with ExitStack() as whole:  # a worker that is given up, but goes on, must not write into another's strip
        for rows in blend_rows(
            predict,
            [piece],
            patch=settings.patch,
            num_outputs=settings.num_outputs,
            stride=settings.stride,
            batch=settings.batch,
            shape=settings.shape,
        ):
            if not np.isfinite(rows.probs).all():
                raise UserError(
                    "the model returned values that are not numbers: its weights are damaged, or the precision is too "
                    "low for them (try --precision float32)"
                )
            probs, labels = finish(rows.probs)
            of_label = np.take_along_axis(probs, labels[..., None].astype(np.intp), axis=-1)[..., 0]
            found: dict[str, NDArray[Any]] = {
                "labels": np.where(rows.seen, labels, np.uint8(IGNORE)),
                "confidence": _stored(of_label, rows.seen),
            }
            if settings.keep_probs:
                found["probs"] = _stored(probs, rows.seen[..., None])
            windows += rows.windows
            for name, values in found.items():
                if name not in layers:
                    path = whole.enter_context(replacing(_layer(work, number, name)))
                    layers[name] = whole.enter_context(path.open("wb"))
                    _write_header(layers[name], values.dtype, (*shape, *values.shape[2:]))
                # Not through a memory map, by which a full disk ends the process without a word.
                layers[name].write(values.tobytes())
    with replacing(_done(work, number)) as temporary:
        temporary.write_text(json.dumps({"top": piece.top, "bottom": piece.bottom, "windows": windows}))


def assemble(
    work: Path,
    parts: Sequence[Piece],
    scene: Scene,
    folder: Path,
    classes: Sequence[ClassInfo],
    keep_probs: bool,
    facts: Mapping[str, Any],
) -> tuple[Path, Path, Path | None]:
    """Write the rasters of a scene from its finished strips, block by block; return where they are.

    Raises:
        UserError: If they can't be written.
    """
    tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    tags["classes"] = json.dumps([asdict(info) for info in classes])
    names = ["labels", "confidence", *(["probs"] if keep_probs else [])]
    paths: dict[str, Path] = {}
    for name in names:
        paths[name] = folder / f"{name}.tif"
        remove_leftovers(paths[name])
        with _raster_errors(paths[name]), replacing(paths[name]) as temporary:
            first = np.load(_layer(work, 0, name), mmap_mode="r")
            bands = first.shape[2] if first.ndim == 3 else 1
            with rasterio.open(temporary, "w", **_profile(scene.grid, name, bands)) as dataset:
                for number, piece in enumerate(parts):
                    values = np.load(_layer(work, number, name), mmap_mode="r")
                    for top in range(0, len(values), _BLOCK):
                        block = np.asarray(values[top : top + _BLOCK])
                        window = RasterWindow(0, piece.top + top, block.shape[1], len(block))
                        dataset.write(np.moveaxis(np.atleast_3d(block), -1, 0), window=window)
                dataset.update_tags(**tags)
                _describe(dataset, name, classes)
            _build_overviews(temporary)
            _check_whole(temporary)
    return paths["labels"], paths["confidence"], paths.get("probs")


def _profile(grid: Grid, name: str, bands: int) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": bands,
        "dtype": "uint8" if name == "labels" else "uint16",
        "nodata": IGNORE if name == "labels" else UNSEEN,
        "crs": grid.crs,
        "transform": rasterio.Affine(*grid.transform),
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
        **({"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK} if min(grid.height, grid.width) >= 16 else {}),
    }


def _describe(dataset: Any, name: str, classes: Sequence[ClassInfo]) -> None:
    """Add what a GIS shows: colours and names of classes, scale and unit of probabilities."""
    if name == "labels":
        dataset.write_colormap(
            1,
            {
                index: (*(int(info.color[place : place + 2], 16) for place in (1, 3, 5)), 255)
                for index, info in enumerate(classes)
            },
        )
        dataset.set_band_description(1, "class")
        return
    dataset.scales = (SCALE,) * dataset.count
    dataset.offsets = (0.0,) * dataset.count
    described = ["probability of the label"] if name == "confidence" else [info.name for info in classes]
    for band, text in enumerate(described[: dataset.count], 1):
        dataset.set_band_description(band, text)


@contextmanager
def _raster_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (rasterio.errors.RasterioError, CPLE_BaseError) as error:
        raise unwritable(path, error) from error


def _check_whole(path: Path) -> None:
    """Raise an error where blocks of a raster are missing: what GDAL can't write as it closes a file, nobody is told.

    Raises:
        rasterio.errors.RasterioIOError: If a block, of the raster or its overviews, does not lie within the file.
    """
    size = path.stat().st_size
    with rasterio.open(path) as dataset:
        levels = [None, *range(len(dataset.overviews(1)))]
        for level in levels:
            with rasterio.open(path, **({} if level is None else {"overview_level": level})) as one:
                rows, columns = (-(-side // block) for side, block in zip(one.shape, one.block_shapes[0], strict=True))
            for band in dataset.indexes:
                for row in range(rows):
                    for column in range(columns):
                        first, length = (
                            int(dataset.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", band, level) or 0)
                            for what in ("OFFSET", "SIZE")
                        )
                        if not first or first + length > size:
                            raise rasterio.errors.RasterioIOError(f"block {row}, {column} is missing")


def _build_overviews(path: Path) -> None:
    """Add overviews to a raster, so that a GIS draws it at once: the nearest of classes, the mean of probabilities."""
    with rasterio.open(path, "r+") as dataset:
        factors = [factor for factor in (2, 4, 8, 16, 32) if min(dataset.shape) // factor >= 128]
        if factors:
            how = Resampling.nearest if dataset.dtypes[0] == "uint8" else Resampling.average
            dataset.build_overviews(factors, how)


def _stored(probs: NDArray[np.floating], seen: NDArray[np.bool_]) -> NDArray[np.uint16]:
    return np.where(seen, np.round(probs / SCALE), UNSEEN).astype(np.uint16)


def _open_work(work: Path, scene: Scene, facts: Mapping[str, Any]) -> None:
    """Make the working folder, or take up the one that is there if it is of the same scene, model and settings."""
    files = sorted({path for source in scene.sources.values() for path in source.paths} | set(scene.hidden[0]))
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    plan = json.dumps([_FORMAT, facts, asdict(scene.grid), states, ROWS], sort_keys=True, default=str)
    digest = hashlib.sha256(plan.encode()).hexdigest()
    stored = work / "plan.txt"
    if work.is_dir() and plan_digest(work) != digest:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    if not stored.is_file():
        with replacing(stored) as temporary:
            temporary.write_text(digest)


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


def _layer(work: Path, number: int, name: str) -> Path:
    return work / f"{number:05d}-{name}.npy"


def is_finished(work: Path, number: int) -> bool:
    """Return whether a strip is in the working folder."""
    return _done(work, number).is_file()


def plan_digest(work: Path) -> str:
    """Return what tells a working folder from another's; empty where there is none."""
    stored = work / "plan.txt"
    return stored.read_text() if stored.is_file() else ""


def _done(work: Path, number: int) -> Path:
    return work / f"{number:05d}.json"
