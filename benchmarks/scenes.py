"""Memory and time of `prepare.py scenes`: Markdown tables for docs/performance.md.

    python -m benchmarks.scenes                     # two sizes, some minutes and 20 GB of disk
    python -m benchmarks.scenes --sides 1024 2048   # smaller

A synthetic scene of each size: six optical bands at 10 m (uint16, reflectance · 10,000, EPSG:32643), a DEM at 30 m in
EPSG:4326, radar of two bands at 20 m, all compressed and in blocks, and outlines. Each is prepared by the command that
a user gives, in a process of its own: the peak of its memory is what the system counted for it (with several jobs, the
largest sum over all its processes, looked at ten times a second). The same run with one process inside this one tells
what the time goes into: reading (rasters opened and read), warping, writing (working folder and tile files), the rest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.windows import Window

import console
from benchmarks.report import machine, table
from data import dataset_file, grids, preparation, scenes

ROOT = Path(__file__).resolve().parent.parent
_CRS = "EPSG:32643"
_LEFT, _TOP = 500_000.0, 4_000_000.0
_BLOCK = 512


def write_scene(folder: Path, side: int, seed: int = 0) -> Path:
    """Write a scene of `side` × `side` pixels of 10 m and its dataset file; return the latter. Block by block."""
    folder.mkdir(parents=True)
    right, bottom = _LEFT + 10 * side, _TOP - 10 * side
    random = np.random.default_rng(seed)

    def optical(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        waves = np.sin(x / 900) + np.cos(y / 700) + np.sin((x + y) / 2300)
        bands = np.stack([waves * (1 - 0.1 * band) for band in range(6)])
        return (3000 + 700 * bands + random.normal(0, 60, bands.shape)).astype(np.uint16)

    def elevation(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        heights = 4000 + 600 * np.sin(x * 60) + 400 * np.cos(y * 80)
        return (heights + random.normal(0, 2, heights.shape))[None].astype(np.float32)

    def radar(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        power = 0.1 + 0.05 * np.sin(x / 500) * np.cos(y / 400)
        return (power * random.gamma(4, 0.25, (2, *power.shape))).astype(np.float32)

    _write(folder / "optical.tif", optical, _CRS, Affine(10, 0, _LEFT, 0, -10, _TOP), side, side, 6, "uint16")
    coarse = -(-side // 2) + 2
    _write(folder / "sar.tif", radar, _CRS, Affine(20, 0, _LEFT - 7, 0, -20, _TOP + 7), coarse, coarse, 2, "float32")
    west, south, east, north = rasterio.warp.transform_bounds(_CRS, "EPSG:4326", _LEFT, bottom, right, _TOP)
    step = 30 / 111_320
    rows, columns = int((north - south) / step) + 4, int((east - west) / step) + 4
    place = Affine(step, 0, west - step, 0, -step, north + step)
    _write(folder / "dem.tif", elevation, "EPSG:4326", place, rows, columns, 1, "float32")
    import geopandas
    from shapely.geometry import Point

    x, y = np.meshgrid(np.arange(_LEFT + 2000, right, 5000), np.arange(bottom + 2000, _TOP, 5000))
    circles = [Point(one).buffer(900) for one in zip(x.ravel(), y.ravel(), strict=True)]
    geopandas.GeoDataFrame(geometry=circles, crs=_CRS).to_file(folder / "outlines.gpkg")
    path = folder / "dataset.yaml"
    path.write_text(
        "region: HMA\ntile_size: 384\noutlines: outlines.gpkg\nscenes: {scene: {}}\nmodalities:\n"
        "  optical: {files: optical.tif, bands: [blue, green, red, nir, swir1, swir2], scale: 1.0e-4, nodata: 0}\n"
        "  dem: {files: dem.tif}\n"
        "  sar: {files: sar.tif, given: linear, bands: [co_pol, cross_pol]}\n"
    )
    return path


def _write(
    path: Path,
    values: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
    crs: str,
    transform: Affine,
    height: int,
    width: int,
    count: int,
    dtype: str,
) -> None:
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate",
               "zlevel": 1, "BIGTIFF": "IF_SAFER", "crs": crs, "transform": transform, "height": height,
               "width": width, "count": count, "dtype": dtype}  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        for top in range(0, height, _BLOCK):
            for left in range(0, width, _BLOCK):
                window = Window(left, top, min(_BLOCK, width - left), min(_BLOCK, height - top))
                x = transform.c + transform.a * (left + np.arange(window.width) + 0.5)
                y = transform.f + transform.e * (top + np.arange(window.height) + 0.5)
                dataset.write(values(*np.meshgrid(x, y)), window=window)


def measure(folder: Path, dataset: Path, jobs: int) -> tuple[float, float]:
    """Prepare a scene as a user does; return the seconds and the peak of memory in GiB."""
    command = [sys.executable, str(ROOT / "prepare.py"), "scenes", f"jobs{jobs}", str(dataset), "--jobs", str(jobs)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--overwrite"], cwd=folder, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            main = psutil.Process(process.pid)
            peak = max(peak, sum(one.memory_info().rss for one in [main, *main.children(recursive=True)]))
        except psutil.Error:
            pass
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return time.perf_counter() - began, peak / 2**30


def shares(folder: Path, dataset: Path) -> dict[str, float]:
    """Prepare a scene in this process; return the seconds of its parts."""
    seconds = {"reading": 0.0, "warping": 0.0, "writing": 0.0}

    def timed(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*arguments, **keywords)
            finally:
                seconds[part] += time.perf_counter() - began

        setattr(owner, name, call)

    timed(grids._Source, "read", "reading")
    timed(grids, "_warp", "warping")
    timed(preparation.TileWriter, "add", "writing")
    timed(preparation, "_read_shard", "writing")
    described = dataset_file.parse(dataset_file.read(dataset), str(dataset))
    target = folder / "shares"
    target.mkdir()
    began = time.perf_counter()
    found = scenes.find_scenes(described, dataset.parent)
    preparation.write_dataset(target, folder / "unfinished", described, found, base=dataset.parent)
    total = time.perf_counter() - began
    return seconds | {"the rest": total - sum(seconds.values()), "total": total}


def main(arguments: list[str]) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--sides", type=int, nargs="+", default=[5490, 10980], help="pixels of 10 m [%(default)s]")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="processes [%(default)s]")
    parser.add_argument(
        "--folder", type=Path, help="where the scenes go, some 2 GB, and their tiles, 10 GB [temporary]"
    )
    options = parser.parse_args(arguments)
    described = machine()
    rows: list[list[str]] = []
    parts: list[list[str]] = []
    for side in options.sides:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            dataset = write_scene(folder / "scene", side)
            for jobs in options.jobs:
                seconds, peak = measure(folder, dataset, jobs)
                rows.append(
                    [f"{side}×{side}", str(jobs), f"{seconds:.0f}", f"{side * side / seconds / 1e6:.2f}", f"{peak:.2f}"]
                )
                print(rows[-1], file=sys.stderr)
            if side == options.sides[0]:
                spent = shares(folder, dataset)
                total = spent.pop("total")
                parts = [[part, f"{value:.0f}", f"{value / total:.0%}"] for part, value in spent.items()]
    print(described + "\n")
    print(table(["pixels", "jobs", "seconds", "million pixels a second", "peak memory, GiB"], rows) + "\n")
    print(f"Of {options.sides[0]}×{options.sides[0]}, one process:\n")
    print(table(["part", "seconds", "share"], parts))


if __name__ == "__main__":
    console.run(main)
