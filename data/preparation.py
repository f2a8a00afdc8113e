"""From scenes and outlines to tile files: tile by tile, by several processes, and on again after an interruption.

Every tile is prepared on its own (read, warped, masked) and kept in a working folder beside the dataset until all are
there. Then tiles are chosen and divided, and written split by split while the statistics are fitted. What is unfinished
stays in the working folder: the same command goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from console import UserError, progress, replacing
from data.dataset_file import NOT_GLACIER, DatasetFile, SplitEntry, class_names
from data.grids import describe_warp, tile_windows
from data.masks import class_list
from data.outlines import Outlines, date_warnings, rasterise, read_outlines
from data.scenes import OutlineLayer, Scene, hidden, read_source
from data.split_polygons import PolygonLayer
from data.splits import TILE_WORDS, Divided, Division, described, divide, keep_empty, left_out, separation
from data.tiles import IGNORE, ClassInfo, TileContents, TileFile, TileInfo, TileWriter, write_splits
from data.weak_masks import Rule
from data.windows import Window

_SAMPLES = 512  # pixels a side of the coarse copy of a scene that Otsu's threshold is found on


@dataclass(frozen=True)
class Job:
    """All that the tiles of one scene are prepared from.

    `layers`: outlines of a class and its id, in the order of painting; `rule`: of a weak mask, its thresholds known.
    """

    scene: Scene
    layers: tuple[tuple[Outlines, int], ...]
    rule: Rule | None


@dataclass(frozen=True)
class Settings:
    """What holds for all tiles of a dataset."""

    classes: tuple[ClassInfo, ...]
    bands: dict[str, tuple[str, ...]]
    all_touched: bool
    ignore_buffer_m: float


@dataclass(frozen=True)
class Outcome:
    """What is known of a prepared tile: valid pixels, of these those of each class, those hidden, and what it took."""

    valid: int
    counts: tuple[int, ...]
    hidden: int
    absent: tuple[str, ...]
    seconds: dict[str, float]


@dataclass
class Report:
    """What a user should read after preparation: sentences, warnings among them."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def prepare_tile(job: Job, settings: Settings, window: Window) -> tuple[TileContents, Outcome]:
    """Return the tile at a window of its scene's grid, and what is known of it.

    The mask is that of the outlines, or of the rule; it is 255 where the tile is invalid, where the ground is hidden,
    and within `ignore_buffer_m` of an outline. Invalid is what lacks every band of a required modality.

    Raises:
        UserError: If a raster can't be read.
    """
    scene = job.scene
    grid = scene.grid.window(window)
    shape = (grid.height, grid.width)
    seconds: dict[str, float] = {}
    modalities: dict[str, NDArray[np.float32]] = {}
    valid, clear = np.ones(shape, bool), ~hidden(scene, grid)
    for modality, source in scene.sources.items():
        began = time.perf_counter()
        values, seen = read_source(source, grid)
        if source.required:
            valid &= np.isfinite(values).any(axis=-1)
            clear &= seen
        if np.isfinite(values).any():
            modalities[modality] = values
        seconds[modality] = time.perf_counter() - began
    began = time.perf_counter()
    if job.rule is None:
        mask = rasterise(job.layers, grid, all_touched=settings.all_touched, ignore_buffer_m=settings.ignore_buffer_m)
    else:
        stacked, names = _stacked(modalities, scene)
        glacier, defined = job.rule.mask(stacked, names)
        mask = np.where(defined, glacier, IGNORE).astype(np.uint8)
    mask[~(valid & clear)] = IGNORE
    seconds["mask"] = time.perf_counter() - began
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(settings.classes)]
    tile = TileContents(
        f"{scene.name}_{window.top:05d}_{window.left:05d}",
        modalities,
        mask,
        valid,
        scene.region,
        scene.subregion,
        grid.crs,
        grid.transform,
        {
            "scene": scene.name,
            "scene_row": window.top,
            "scene_column": window.left,
            **({"date": scene.date.isoformat()} if scene.date else {}),
            **({"period": scene.period} if scene.period else {}),
        },
    )
    absent = tuple(modality for modality in settings.bands if modality not in modalities)
    outcome = Outcome(int(valid.sum()), tuple(map(int, counts)), int((valid & ~clear).sum()), absent, seconds)
    return tile, outcome


def write_dataset(
    folder: Path,
    work: Path,
    dataset: DatasetFile,
    scenes: Sequence[Scene],
    *,
    base: Path = Path(),
    jobs: int = 1,
    command: str = "",
    description: str = "",
) -> Report:
    """Write `folder/{train,val,test}.hdf5` of all scenes; return what the user should read.

    Args:
        folder: Where the tile files go; whole or not at all.
        work: The working folder of unfinished tiles; gone when all is done, taken up again when it is there.
        dataset: The dataset file.
        scenes: Its scenes, of `find_scenes`.
        base: The folder that the dataset file's paths are relative to.
        jobs: Processes.
        command: The command to note in the files.
        description: The dataset file's text, to note in the files.

    Raises:
        UserError: If a file is wrong, no outlines meet a scene, or what is left can't be divided.
    """
    report = Report()
    classes = _classes(dataset, scenes)
    bands = {modality: source.bands for scene in scenes for modality, source in scene.sources.items()}
    settings = Settings(classes, bands, dataset.all_touched, dataset.ignore_buffer_m)
    prepared = [_job(scene, classes, dataset, report) for scene in scenes]
    tasks = [
        (number, window)
        for number, job in enumerate(prepared)
        for window in tile_windows(job.scene.grid, dataset.tile_size)
    ]
    _open_work(work, dataset, prepared, report)
    outcomes = _prepare_all(work, prepared, settings, tasks, jobs)

    usable = _usable(tasks, outcomes, prepared, settings, dataset, report)
    infos = [_info(prepared[tasks[index][0]].scene, tasks[index][1]) for index in usable]
    division, divided = _divided(infos, dataset.split, base, report)
    splits = {split: [usable[index] for index in members] for split, members in divided.splits.items()}
    apart = separation(infos, divided.splits)
    report.lines += apart.lines()
    provenance = {
        "kind": "scenes",
        "dataset_file": description,
        "scenes": {job.scene.name: _described(job) for job in prepared},
        "bands": bands,
        "modalities": _modalities(scenes),
        "mask": _mask(prepared, settings),
        "split": described(division, divided) | {"separation": apart.lines()},
        "tile_size": dataset.tile_size,
    }

    def read(index: int) -> TileContents:
        return _read_shard(_shard(work, index), settings)

    write_splits(
        folder, splits, read, classes, {key: list(names) for key, names in bands.items()}, provenance,
        dataset.statistics, command,
    )  # fmt: skip
    if dataset.statistics == "published" and (note := TileFile(folder / "train.hdf5").level_note):
        report.warnings.append(note)
    _account(report, outcomes)
    return report


# -- what the tiles are prepared from ------------------------------------------------------------------------


def _classes(dataset: DatasetFile, scenes: Sequence[Scene]) -> tuple[ClassInfo, ...]:
    entries = {layer.class_name: layer.entry for scene in scenes for layer in scene.outlines}
    names = class_names(dataset, list(entries))
    glacier = [
        name
        for name in names[1:]
        if (flag := entries[name].glacier if name in entries else None) or (flag is None and name not in NOT_GLACIER)
    ]
    if not glacier:
        raise UserError(f"none of the classes {', '.join(names)} is glacier: give one `glacier: true` in `outlines`")
    infos = class_list(names, glacier)
    colors = {name: entry.color for name, entry in entries.items() if entry.color}
    return tuple(replace(info, color=colors.get(info.name, info.color)) for info in infos)


def _job(scene: Scene, classes: Sequence[ClassInfo], dataset: DatasetFile, report: Report) -> Job:
    report.lines += scene.notes
    for source in scene.sources.values():
        for path in source.paths:
            if sentence := describe_warp(path, scene.grid, "continuous", source.entry.resampling):
                report.lines.append(sentence)
    if scene.rule is not None:
        rule = scene.rule if scene.rule.resolved else scene.rule.resolve(_samples(scene))
        if not scene.rule.resolved:
            report.lines.append(f"scene {scene.name}: {scene.rule} is {rule}, by Otsu's method")
        return Job(scene, (), rule)
    ids = {info.name: index for index, info in enumerate(classes)}
    layers: list[tuple[Outlines, int]] = []
    margin_m = dataset.ignore_buffer_m
    for layer in scene.outlines:
        outlines = read_outlines(layer.source, scene.grid, margin_m=margin_m, required=len(scene.outlines) == 1)
        layers.append((outlines, ids[layer.class_name]))
        report.lines += _outline_lines(scene, layer, outlines)
        if scene.date is not None:
            report.warnings += [
                f"scene {scene.name}: {text}" for text in date_warnings(outlines, scene.date, dataset.max_years)
            ]
    if not any(len(outlines.geometries) for outlines, _ in layers):
        files = ", ".join(str(layer.source.path) for layer in scene.outlines)
        raise UserError(f"scene {scene.name!r}: none of its outlines meets it ({files}): give outlines of that place")
    lacking = [info.name for info in classes[1:] if info.name not in {layer.class_name for layer in scene.outlines}]
    if lacking:
        report.warnings.append(
            f"scene {scene.name}: no outlines of {', '.join(lacking)} are given, so that these pixels are what is "
            "outlined there otherwise, or background"
        )
    return Job(scene, tuple(layers), None)


def _outline_lines(scene: Scene, layer: OutlineLayer, outlines: Outlines) -> Iterator[str]:
    found = outlines.report
    yield (
        f"scene {scene.name}: {found.kept} outlines of {layer.class_name} ({found.area_km2:.1f} km²), of {found.read} "
        f"near it in {layer.source.path.name} ({found.crs})"
    )
    if found.repaired:
        told = (f"{one.id or 'without id'}: {one.why} ({one.area_change_km2:+.3f} km²)" for one in found.repaired[:5])
        listed = ", ".join(told)
        more = f" and {len(found.repaired) - 5} more" if len(found.repaired) > 5 else ""
        yield f"  repaired {len(found.repaired)} invalid polygons: {listed}{more}"
    if found.not_polygons or found.empty:
        yield f"  left out {found.not_polygons} features that are no polygons and {found.empty} empty ones"


def _samples(scene: Scene) -> dict[str, NDArray[np.float32]]:
    """Return the pixels of a coarse copy of the scene by band."""
    grid = scene.grid
    step = max(1.0, max(grid.height, grid.width) / _SAMPLES)
    a, b, c, d, e, f = grid.transform
    height, width = (max(1, int(side / step)) for side in (grid.height, grid.width))
    coarse = replace(grid, transform=(a * step, b * step, c, d * step, e * step, f), height=height, width=width)
    modalities = {name: read_source(source, coarse)[0] for name, source in scene.sources.items()}
    stacked, names = _stacked(modalities, scene)
    return {name: stacked[..., channel].ravel() for channel, name in enumerate(names)}


def _stacked(modalities: dict[str, NDArray[np.float32]], scene: Scene) -> tuple[NDArray[np.float32], list[str]]:
    """Return the bands of all modalities side by side, and their names; of a name that stands twice, the first."""
    names: list[str] = []
    arrays: list[NDArray[np.float32]] = []
    shape = next(iter(modalities.values())).shape[:2] if modalities else (0, 0)
    for modality, source in scene.sources.items():
        values = modalities.get(modality)
        for channel, name in enumerate(source.bands):
            if name not in names:
                names.append(name)
                arrays.append(np.full(shape, np.nan, np.float32) if values is None else values[..., channel])
    return np.stack(arrays, axis=-1), names


# -- tile by tile --------------------------------------------------------------------------------------------


def _open_work(work: Path, dataset: DatasetFile, jobs: Sequence[Job], report: Report) -> None:
    """Make the working folder, or take up the one that is there if it is of the same data."""
    files = sorted({path for job in jobs for source in job.scene.sources.values() for path in source.paths})
    files += sorted({layer.source.path for job in jobs for layer in job.scene.outlines})
    files += sorted({path for job in jobs for path in job.scene.hidden[0]})
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in dict.fromkeys(files)]
    # What is decided after the tiles are prepared may change between one start and the next.
    shaping = dataset.model_dump(mode="json", exclude={"split", "empty_tiles", "smallest_valid_share", "statistics"})
    plan = json.dumps([shaping, [asdict(job.scene.grid) for job in jobs], states, _FORMAT], sort_keys=True)
    digest = hashlib.sha256(plan.encode()).hexdigest()
    stored = work / "plan.txt"
    if work.is_dir():
        if stored.is_file() and stored.read_text() == digest:
            finished = len(list(work.glob("*.json")))
            report.lines.append(f"goes on with {finished} tiles that an earlier start has prepared")
            return
        report.lines.append("an earlier start was of other files or settings: its unfinished tiles are left out")
        shutil.rmtree(work)
    work.mkdir(parents=True)
    with replacing(stored) as temporary:
        temporary.write_text(digest)


_FORMAT = 1  # of the working folder: another one is not taken up

_worker: tuple[Path, Sequence[Job], Settings] | None = None


def _begin(work: Path, jobs: Sequence[Job], settings: Settings) -> None:
    global _worker
    _worker = (work, jobs, settings)


def _prepare_one(index: int, number: int, window: Window) -> None:
    assert _worker is not None
    work, jobs, settings = _worker
    tile, outcome = prepare_tile(jobs[number], settings, window)
    began = time.perf_counter()
    if outcome.valid:
        bands = {modality: list(settings.bands[modality]) for modality in settings.bands}
        with TileWriter(_shard(work, index), settings.classes, bands) as writer:
            writer.add(
                tile.name, tile.modalities, tile.mask, tile.valid, tile.region, tile.subregion, tile.crs,
                tile.transform, **tile.attributes,
            )  # fmt: skip
    outcome.seconds["writing"] = time.perf_counter() - began
    with replacing(_note(work, index)) as temporary:  # last: a tile with a note is finished
        temporary.write_text(json.dumps(asdict(outcome)))


def _prepare_all(
    work: Path, jobs: Sequence[Job], settings: Settings, tasks: Sequence[tuple[int, Window]], processes: int
) -> list[Outcome]:
    """Prepare what is not finished yet, and return what is known of every tile."""
    open_tasks = [index for index in range(len(tasks)) if not _note(work, index).is_file()]
    bar = progress(range(len(open_tasks)), "preparing", total=len(open_tasks), unit="tile")
    steps = iter(bar)
    if processes == 1 or len(open_tasks) <= 1:
        _begin(work, jobs, settings)
        for index in open_tasks:
            next(steps)
            _prepare_one(index, *tasks[index])
    else:
        # GDAL's threads do not survive a fork: workers start from nothing.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, _begin, (work, jobs, settings)) as pool:
            waiting: set[Future[None]] = set()
            todo = iter(open_tasks)
            try:
                while True:
                    for index in todo:
                        waiting.add(pool.submit(_prepare_one, index, *tasks[index]))
                        if len(waiting) >= 4 * processes:
                            break
                    if not waiting:
                        break
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        next(steps)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    next(steps, None)
    return [_read_note(_note(work, index)) for index in range(len(tasks))]


def _shard(work: Path, index: int) -> Path:
    return work / f"{index:06d}.hdf5"


def _note(work: Path, index: int) -> Path:
    return work / f"{index:06d}.json"


def _read_note(path: Path) -> Outcome:
    stored = json.loads(path.read_text())
    counts, absent = tuple(stored["counts"]), tuple(stored["absent"])
    return Outcome(stored["valid"], counts, stored["hidden"], absent, stored["seconds"])


def _read_shard(path: Path, settings: Settings) -> TileContents:
    with TileFile(path) as file:
        (name,) = file.names
        info = file.info(name)
        present = file.present(name)
        attributes = {
            key: value
            for key, value in info.attributes.items()
            if key not in ("region", "subregion", "crs", "transform")
        }
        return TileContents(
            name,
            dict(file.read(name, present)),
            file.mask(name),
            file.valid(name),
            info.region,
            info.subregion,
            info.crs,
            info.transform,
            attributes,
        )


# -- which tiles, and where they go --------------------------------------------------------------------------


def _usable(
    tasks: Sequence[tuple[int, Window]],
    outcomes: Sequence[Outcome],
    jobs: Sequence[Job],
    settings: Settings,
    dataset: DatasetFile,
    report: Report,
) -> list[int]:
    """Return the tiles to keep: seen, labelled, and of those without glacier as many as asked for."""
    pixels = [window.height * window.width for _, window in tasks]
    least = dataset.smallest_valid_share
    seen = [
        index
        for index, outcome in enumerate(outcomes)
        if outcome.valid and sum(outcome.counts) and outcome.valid >= least * pixels[index]
    ]
    for number, job in enumerate(jobs):
        members = [outcome for (owner, _), outcome in zip(tasks, outcomes, strict=True) if owner == number]
        if not any(sum(outcome.counts) for outcome in members):
            why = (
                "no clear pixel" if any(outcome.hidden for outcome in members) or job.scene.period else "no valid pixel"
            )
            report.warnings.append(f"scene {job.scene.name}: {why}; it is skipped")
    if not seen:
        raise UserError(
            f"none of the {len(tasks)} tiles has a valid, labelled pixel"
            + (f" on {least:.0%} of its area (smallest_valid_share)" if least else "")
            + ": check nodata values, and that outlines and rasters are of one place"
        )
    if len(seen) < len(tasks):
        report.lines.append(
            f"{len(tasks) - len(seen)} of {len(tasks)} tiles have no (or too few) valid pixels: left out"
        )
    glacier = [
        sum(count for count, info in zip(outcomes[index].counts, settings.classes, strict=True) if info.glacier)
        for index in seen
    ]
    names = [f"{jobs[tasks[index][0]].scene.name} {tasks[index][1].top} {tasks[index][1].left}" for index in seen]
    kept = [seen[place] for place in keep_empty(glacier, dataset.empty_tiles, dataset.split.seed, names)]
    if len(kept) < len(seen):
        report.lines.append(
            f"{len(seen) - len(kept)} of {len(seen)} tiles have no glacier and are left out (empty_tiles: "
            f"{dataset.empty_tiles:g})"
        )
    return kept


def _info(scene: Scene, window: Window) -> TileInfo:
    grid = scene.grid.window(window)
    return TileInfo(
        f"{scene.name}_{window.top:05d}_{window.left:05d}",
        grid.height,
        grid.width,
        scene.region,
        scene.subregion,
        grid.crs,
        grid.transform,
    )


def _divided(infos: Sequence[TileInfo], split: SplitEntry, base: Path, report: Report) -> tuple[Division, Divided]:
    """Divide the tiles; blocks without a size are the largest that leave enough of them to draw from."""
    given: dict[str, Any] = split.model_dump(exclude={"polygons", "block_sides"})
    given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    if split.polygons is not None:
        entry = split.polygons
        given["polygons"] = PolygonLayer(base / entry.file, entry.layer, entry.field)
    division = Division(**given, words=TILE_WORDS)
    automatic = split.by == "blocks" and split.block_sides is None
    for side in _BLOCK_SIDES if automatic else (split.block_sides or division.block_sides,):
        division = replace(division, block_sides=side)
        problems: list[str] = []
        divided = divide(infos, division, problems)
        if not problems and (divided.groups >= _FEWEST_BLOCKS or not automatic):
            break
    if problems:
        raise UserError("\n  ".join(["the tiles can't be divided:", *problems]))
    if split.by == "blocks":
        report.lines.append(f"divided by blocks of {division.block_sides:g} × {division.block_sides:g} tiles")
    report.lines += left_out(infos, division, divided)
    return division, divided


_BLOCK_SIDES = (4.0, 3.0, 2.0, 1.0)
_FEWEST_BLOCKS = 12


# -- what is written down ------------------------------------------------------------------------------------


def _described(job: Job) -> dict[str, Any]:
    scene = job.scene
    return {
        "region": scene.region,
        "subregion": scene.subregion,
        "date": scene.date.isoformat() if scene.date else None,
        "period": scene.period or None,
        "grid": asdict(scene.grid),
        "files": {modality: [str(path) for path in source.paths] for modality, source in scene.sources.items()},
        "acquisitions": {
            modality: [
                {
                    "name": one.name,
                    "date": one.date.isoformat() if one.date else None,
                    "sensor": one.sensor,
                    "level": one.level,
                    **one.described,
                }
                for one in source.acquisitions
            ]
            for modality, source in scene.sources.items()
            if source.acquisitions
        },
        "outlines": {
            layer.class_name: outlines.report.to_json()
            for layer, (outlines, _) in zip(scene.outlines, job.layers, strict=False)
        },
        "rule": str(job.rule) if job.rule else None,
    }


def _modalities(scenes: Sequence[Scene]) -> dict[str, dict[str, Any]]:
    """Return unit, level and the rest of what is known of each modality; what differs between scenes is joined."""
    found: dict[str, dict[str, Any]] = {}
    for scene in scenes:
        for modality, source in scene.sources.items():
            entry = {
                "type": source.type,
                "unit": source.unit,
                "level": source.level,
                "sensor": ", ".join(dict.fromkeys(one.sensor for one in source.acquisitions if one.sensor)),
                "resampling": source.entry.resampling,
                "composite": source.entry.composite.model_dump() if source.entry.composite else None,
                "required": source.required,
            }
            former = found.setdefault(modality, entry)
            for key in ("unit", "level", "sensor"):
                texts = [str(former[key]), str(entry[key])]
                former[key] = ", ".join(dict.fromkeys(filter(None, ", ".join(texts).split(", "))))
    return found


def _mask(jobs: Sequence[Job], settings: Settings) -> dict[str, Any]:
    rules = {job.scene.name: str(job.rule) for job in jobs if job.rule is not None}
    if rules:
        asked = dict.fromkeys(str(job.scene.rule) for job in jobs if job.scene.rule is not None)
        return {"kind": "weak", "rule": "; ".join(asked), "rules": rules}
    return {
        "kind": "outlines",
        "all_touched": settings.all_touched,
        "ignore_buffer_m": settings.ignore_buffer_m,
    }


def _account(report: Report, outcomes: Sequence[Outcome]) -> None:
    """Tell how the time of the tiles was spent, and how often a modality was absent."""
    seconds: dict[str, float] = {}
    absent: dict[str, int] = {}
    for outcome in outcomes:
        for key, value in outcome.seconds.items():
            seconds[key] = seconds.get(key, 0.0) + value
        for modality in outcome.absent if outcome.valid else ():
            absent[modality] = absent.get(modality, 0) + 1
    total = max(sum(seconds.values()), 1e-9)
    report.lines += [
        f"{modality} is absent in {count} tiles, which it does not meet" for modality, count in absent.items()
    ]
    shares = ", ".join(f"{key} {value / total:.0%}" for key, value in seconds.items())
    report.lines.append(f"{len(outcomes)} tiles took {total:.1f} s: {shares}")
