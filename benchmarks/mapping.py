"""Memory and time of `predict.py` on scenes of several heights: a Markdown table for docs/performance.md.

    python -m benchmarks.mapping                        # 2,048 pixels wide, 2k to 11k high, and 10980×10980
    python -m benchmarks.mapping --heights 1024 2048 --square 0

A small U-Net with random weights maps synthetic scenes of six bands, each with the command that a user gives, in a
process of its own: rasters, outlines and summary. The peak is that of the process's memory, looked at ten times a
second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import psutil
import rasterio
from rasterio import Affine
from rasterio.windows import Window

import architectures
import console
from benchmarks.report import machine, table
from data.normalisation import Statistics
from data.tiles import TWO_CLASSES
from training.record import Best, ClassRecord, Modality, Record, save_record, weights_path

ROOT = Path(__file__).resolve().parent.parent
_BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
_PATCH = 384
_OPTIONS = {"width": 8}
_BLOCK = 512


def save_run(folder: Path) -> None:
    """Save a small U-Net with random weights as the run `small` of `folder`."""
    keras.utils.set_random_seed(0)
    model = architectures.build("unet", {"optical": len(_BANDS)}, 2, _PATCH, **_OPTIONS)
    root = folder / "weights"
    root.mkdir()
    model.save_weights(weights_path("small", root))
    statistics = Statistics("standardise", {"optical": (0.5,) * 6}, {"optical": (0.3,) * 6}, "nothing")
    record = Record(
        name="small",
        architecture="unet",
        options=_OPTIONS,
        modalities=(Modality(name="optical", channels=len(_BANDS), bands=_BANDS),),
        classes=tuple(ClassRecord(name=c.name, glacier=c.glacier, color=c.color) for c in TWO_CLASSES),
        outputs="softmax",
        patch_size=_PATCH,
        statistics=statistics.to_json(),
        regions=(),
        location="none",
        dataset={"name": "none", "folder": "none", "files": {}},
        recipe={},
        command="python -m benchmarks.mapping",
        versions={},
        backend=keras.backend.backend(),
        precision="float32",
        seed=0,
        parameters=model.count_params(),
        best=Best(epoch=1, monitor="iou", score=0.0),
        epochs=1,
        stopped="finished",
        written="",
    )
    save_record(record, root)


def write_scene(path: Path, height: int, width: int) -> None:
    """Write a raster of six bands, block by block."""
    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate",
               "zlevel": 1, "crs": "EPSG:32643", "transform": Affine(10, 0, 5e5, 0, -10, 4e6), "height": height,
               "width": width, "count": len(_BANDS), "dtype": "uint16", "nodata": 0}  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        for number, name in enumerate(_BANDS, 1):
            dataset.set_band_description(number, name)
        for top in range(0, height, _BLOCK):
            for left in range(0, width, _BLOCK):
                window = Window(left, top, min(_BLOCK, width - left), min(_BLOCK, height - top))
                y, x = np.mgrid[top : top + window.height, left : left + window.width]
                waves = np.sin(x / 90) + np.cos(y / 70)
                bands = [waves * (1 - 0.1 * band) + random.normal(0, 0.1, waves.shape) for band in range(len(_BANDS))]
                dataset.write((3000 + 700 * np.stack(bands)).astype(np.uint16), window=window)


def measure(folder: Path, scene: Path, overlap: float) -> tuple[float, float]:
    """Map a scene as a user does; return the seconds and the peak of memory in GiB."""
    command = [sys.executable, str(ROOT / "predict.py"), "-n", "small", str(scene), "--overlap", str(overlap)]
    command += ["--set", "modalities.optical.scale=1e-4"]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        except psutil.Error:
            pass
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return time.perf_counter() - began, peak / 2**30


def main(arguments: list[str]) -> None:
    """Measure and print the table."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mapping", description=__doc__, formatter_class=raw)
    parser.add_argument("--heights", type=int, nargs="+", default=[2048, 4096, 8192, 10980], help="[%(default)s]")
    parser.add_argument("--width", type=int, default=2048, help="of these scenes [%(default)s]")
    parser.add_argument("--square", type=int, default=10980, help="side of one more scene; 0: none [%(default)s]")
    parser.add_argument("--overlap", type=float, default=0.1, help="of windows [%(default)s]")
    options = parser.parse_args(arguments)
    described = machine()
    sizes = [(height, options.width) for height in options.heights]
    sizes += [(options.square, options.square)] if options.square else []
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_run(folder)
        for height, width in sizes:
            scene = folder / f"scene{height}x{width}.tif"
            write_scene(scene, height, width)
            seconds, peak = measure(folder, scene, options.overlap)
            scene.unlink()
            speed = height * width / seconds / 1e6
            rows.append([f"{height}×{width}", f"{seconds:.0f}", f"{speed:.2f}", f"{peak:.2f}"])
            print(rows[-1], file=sys.stderr)
    print(described + "\n")
    print(table(["height × width", "seconds", "million pixels a second", "peak memory, GiB"], rows))


if __name__ == "__main__":
    console.run(main)
