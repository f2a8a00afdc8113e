"""How tile files are stored: what random patches cost to read, and what files weigh. Tables for docs/performance.md.

    python -m benchmarks.storage

Tiles as `prepare.py synthetic` makes them, optical in steps of 1e-4 as products of satellites are, are written again in
each layout: whole arrays one after the other (contiguous), or in square chunks of all bands of their pixels, plain or
compressed. Then random patches are read as training reads them, the layouts in turns:

- optical, DEM, labels (mask and valid): processor time of reading one kind of a patch from tiles that are in memory,
  and of the labels of a whole tile, in which a pixel of a rare class is looked up;
- loader: patches a second of the training loader with two workers, all three kinds, scaled, not augmented;
- from the disk: what the system reads for a patch whose tile is not in memory, its read-ahead included (on Linux, where
  no other process holds the file).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import console
from benchmarks.report import machine, spread, table
from console import progress
from data.augmentation import Augmentation
from data.loader import PatchSource, TrainingPatches, sample_window
from data.normalisation import fit
from data.synthetic import BANDS, REGIONS, make_scene
from data.tiles import TWO_CLASSES, TileFile, TileWriter

MODALITIES = ("optical", "dem")
BATCH = 8


@dataclass(frozen=True)
class Layout:
    """How arrays are stored; `side` of a chunk in pixels, None: contiguous; `options` are h5py's for compression."""

    name: str
    side: int | None
    options: Mapping[str, Any]


LAYOUTS = (
    Layout("contiguous", None, {}),
    Layout("chunks of 64", 64, {}),
    Layout("chunks of 128", 128, {}),
    Layout("chunks of 256", 256, {}),
    Layout("chunks of 128, lzf", 128, {"compression": "lzf", "shuffle": True}),
    Layout("chunks of 128, gzip 1", 128, {"compression": "gzip", "compression_opts": 1, "shuffle": True}),
)
WRITTEN = "as prepare.py writes"


@dataclass
class Cost:
    """What a layout costs: seconds by kind, patches a second, bytes read from the disk a patch, bytes there by kind."""

    seconds: dict[str, list[float]]
    rates: list[float]
    fetched: float
    stored: dict[str, int]


def write_source(path: Path, tiles: int, side: int) -> None:
    """Write synthetic tiles with the modalities that are measured."""
    bands = {name: BANDS[name] for name in MODALITIES}
    with TileWriter(path, TWO_CLASSES, bands) as writer:
        for number, region in zip(range(tiles), list(REGIONS) * tiles, strict=False):
            scene = make_scene(region, number, side)
            arrays = {"optical": np.round(scene.optical, 4), "dem": scene.dem}
            writer.add(f"t{number}", arrays, scene.mask, scene.valid, region)
            writer.statistics = writer.statistics or fit([(arrays, scene.valid)])


def write_again(source: Path, path: Path, layout: Layout) -> None:
    """Copy a tile file with its arrays in another layout."""
    with h5py.File(source) as old, h5py.File(path, "w") as new:
        new.attrs.update(old.attrs)
        for name, group in old.items():
            copied = new.create_group(name)
            copied.attrs.update(group.attrs)
            for key, array in group.items():
                chunks = layout.side and (*(min(layout.side, length) for length in array.shape[:2]), *array.shape[2:])
                copied.create_dataset(key, data=array[()], chunks=chunks or None, **layout.options)


def stored_bytes(path: Path) -> dict[str, int]:
    """Return the bytes on the disk of each kind of array."""
    found: dict[str, int] = defaultdict(int)
    with h5py.File(path) as file:
        for group in file.values():
            for key, array in group.items():
                found[key if key in MODALITIES else "labels"] += array.id.get_storage_size()
    return dict(found)


def read_seconds(source: PatchSource, kind: str, count: int, seed: int) -> float:
    """Return the seconds of processor time that one of `count` random patches of a kind takes to read."""
    drawn = [sample_window(source, seed, 0, index)[:2] for index in range(count)]
    began = time.process_time()
    for tile, window in drawn:
        name = source.names[tile]
        if kind in MODALITIES:
            source.file.read(name, [kind], window)
        else:
            source.file.labels(name, window if kind == "labels" else None)
    return (time.process_time() - began) / count


def loader_rate(source: PatchSource, pool: ThreadPoolExecutor, batches: int, seed: int) -> float:
    """Return the patches a second that two workers load."""
    patches = TrainingPatches(source, ["output"], BATCH, batches, seed, 0, Augmentation())
    began = time.perf_counter()
    list(pool.map(patches.__getitem__, range(batches)))
    return batches * BATCH / (time.perf_counter() - began)


def fetched_bytes(source: PatchSource, count: int, seed: int) -> float:
    """Return the bytes that come from the disk for one of `count` random patches whose tile is not in memory.

    They are nan where the system does not say, or has no way to forget a file.
    """
    counters = Path("/proc/self/io")
    if not counters.is_file() or not hasattr(os, "posix_fadvise"):
        return float("nan")

    def read() -> int:
        return next(int(line.split()[1]) for line in counters.read_text().splitlines() if line.startswith("read_bytes"))

    total = 0
    for index in range(count):
        source.file.close()
        with source.file.path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = read()
        source.cut(*sample_window(source, seed, 0, index)[:2])
        total += read() - before
    return total / count


def measure(paths: Mapping[str, Path], patch: int, rounds: int, patches: int) -> dict[str, Cost]:
    """Return what each layout costs, measured in turns; the first turn of each is left out."""
    kinds = (*MODALITIES, "labels", "whole labels")
    costs = {
        name: Cost({kind: [] for kind in kinds}, [], float("nan"), stored_bytes(path)) for name, path in paths.items()
    }
    sources = {}
    for name, path in paths.items():
        file = TileFile(path)
        sources[name] = PatchSource(file, tuple(file.names), MODALITIES, file.statistics, patch)
    turns = [(number, name) for number in range(rounds + 1) for name in paths]
    with ThreadPoolExecutor(2) as pool:
        for number, name in progress(turns, f"patches of {patch}", unit="turn"):
            source, cost = sources[name], costs[name]
            seconds = {kind: read_seconds(source, kind, patches, number) for kind in kinds}
            rate = loader_rate(source, pool, -(-patches // BATCH), number)
            if number:
                for kind, value in seconds.items():
                    cost.seconds[kind].append(value)
                cost.rates.append(rate)
    for name, source in sources.items():
        costs[name].fetched = fetched_bytes(source, patches, 0)
        source.file.close()
    return costs


def rows(costs: Mapping[str, Cost]) -> list[list[str]]:
    """Return a table's rows: layout, milliseconds by kind, patches a second, MiB a patch, MiB by kind."""
    return [
        [
            name,
            *(f"{1e3 * statistics.median(values):.2f}" for values in cost.seconds.values()),
            spread(cost.rates, 0),
            f"{cost.fetched / 2**20:.1f}",
            " + ".join(f"{cost.stored[kind] / 2**20:.1f}" for kind in (*MODALITIES, "labels")),
        ]
        for name, cost in costs.items()
    ]


HEADER = (
    "layout",
    "optical, ms",
    "DEM, ms",
    "labels, ms",
    "labels of a tile, ms",
    "loader, patches/s",
    "from the disk, MiB a patch",
    "MiB: optical + DEM + labels",
)


def main(arguments: Sequence[str]) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.storage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1500], help="of tiles, pixels %(default)s")
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[128, 384], help="pixels %(default)s")
    parser.add_argument(
        "--pixels", type=float, default=4.5, help="of all tiles of a side, millions (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="layouts in turns (default: %(default)s)")
    parser.add_argument("--patches", type=int, default=64, help="read a turn (default: %(default)s)")
    options = parser.parse_args(arguments)
    print(machine(), end="\n\n")
    for side in options.sides:
        tiles = max(1, round(options.pixels * 1e6 / side**2))
        with tempfile.TemporaryDirectory() as name:
            paths = {WRITTEN: Path(name) / "written.hdf5"}
            write_source(paths[WRITTEN], tiles, side)
            for layout in LAYOUTS:
                path = paths[layout.name] = Path(name) / f"{layout.name}.hdf5"
                write_again(paths[WRITTEN], path, layout)
            for patch in options.patch_sizes:
                costs = measure(paths, patch, options.rounds, options.patches)
                print(f"{tiles} tiles of {side}×{side}, patches of {patch}×{patch}, {options.rounds} rounds:\n")
                print(table(HEADER, rows(costs)), end="\n\n", flush=True)


if __name__ == "__main__":
    console.run(main)
