"""Two local workers against one on the same scene: a Markdown table for docs/performance.md.

    python -m benchmarks.distribution                            # some minutes
    python -m benchmarks.distribution --side 4096 --workers 1 2 4

A synthetic scene (six optical bands, a DEM) is mapped by GlaViTU with random weights, by the command that a user gives:
once in one process, then on each number of local workers. Seconds are of the whole command, start of the workers and
outlines included; those of the prediction alone, from its summary, begin when the workers are there. The rasters must
be the same bytes every time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import console
from benchmarks.report import machine, table
from benchmarks.scenes import ROOT, write_scene

_RECIPE = "architecture: {{name: {0}}}\ninputs: [optical, dem]\nloss: {{focal: {{gamma: 2.0}}}}\n" \
    "training: {{patch_size: {1}, schedule: {{name: cosine}}}}\n"  # fmt: skip


def prepare(folder: Path, side: int, architecture: str, patch: int) -> None:
    """Write a scene of `side` × `side` pixels, a recipe and random weights for it."""
    console.import_keras()
    import keras

    import architectures

    write_scene(folder / "scene", side)
    keras.utils.set_random_seed(1)
    model = architectures.build(architecture, {"optical": 6, "dem": 2}, 2, patch)
    model.save_weights(folder / "random.weights.h5")
    (folder / "recipe.yaml").write_text(_RECIPE.format(architecture, patch))


def measure(folder: Path, workers: int) -> tuple[float, float, dict[str, bytes]]:
    """Map the scene, on local workers or with 0 in one process; return both times in seconds and the rasters."""
    bands = "blue green red nir swir1 swir2".split()
    command = [sys.executable, str(ROOT / "predict.py"), "-m", "recipe.yaml", "-w", "random.weights.h5", "--optical",
               *(f"{band}=scene/optical.tif#{number}" for number, band in enumerate(bands, 1)),
               "--dem", "scene/dem.tif", "--set", "modalities.optical.scale=1e-4", "--calibration", "none"]  # fmt: skip
    if workers:
        command += ["--scheduler", "local", "--workers", str(workers)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr}")
    (summary,) = (folder / "predictions").rglob("summary.json")
    found = {path.name: path.read_bytes() for path in summary.parent.glob("*.tif")}
    predicting = json.loads(summary.read_text())["seconds"]
    shutil.rmtree(folder / "predictions")
    return seconds, predicting, found


def main(arguments: list[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distribution", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--side", type=int, default=8192, help="pixels of 10 m [%(default)s]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers [%(default)s]")
    parser.add_argument("--architecture", default="glavitu", help="[%(default)s]")
    parser.add_argument("--patch", type=int, default=384, help="pixels a side of a window [%(default)s]")
    options = parser.parse_args(arguments)
    described = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.side, options.architecture, options.patch)
        runs = {workers: measure(folder, workers) for workers in (0, *options.workers)}
    expected = runs[0][2]
    first = runs[options.workers[0]]
    rows = []
    for workers, (seconds, predicting, found) in runs.items():
        ratio = f"{first[1] / predicting:.2f}" if workers else ""
        same = "yes" if found == expected else "NO"
        rows.append([str(workers or "one process"), f"{seconds:.0f}", f"{predicting:.0f}", ratio, same])
    print(described + f"\n\n{options.architecture}, {options.side}×{options.side} pixels:\n")
    print(table(["workers", "seconds", "of prediction", f"times {options.workers[0]} worker", "same bytes"], rows))


if __name__ == "__main__":
    console.run(main)
