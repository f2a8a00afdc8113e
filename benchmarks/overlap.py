"""Speed against agreement when a scene is mapped: a table for docs/performance.md and the plot docs/overlap.png.

    python -m benchmarks.overlap                    # trains the full GlaViTU for some epochs first, then maps 3072×3072
    python -m benchmarks.overlap --folder here      # keeps the run there and takes it up again
    python -m benchmarks.overlap --size 1536 --overlaps 0 0.5

The published way is the reference: float32 Keras, one window a call, windows half a patch apart. Beside it the same
windows by the engine of a CPU, and other overlaps, each blended by both kernels. All variants map the same synthetic
scene at once, in turns of a row of windows, so that all have the same machine; labels are compared pixel by pixel with
those of the published way. Tiles and scene are of different seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import console
from benchmarks.report import machine, table
from console import UserError, import_keras, progress
from data.normalisation import Statistics, scaled
from data.synthetic import make_scene
from inference.engines import OpenVino, computes_in_bfloat16
from inference.predictor import Predictor, find_run, from_run
from inference.sliding import ArraySource, Floats, Kernel, Predict, blend, blend_rows, stride_of, whole

ROOT = Path(__file__).resolve().parent.parent
NAME = "overlap"
PUBLISHED = "published way"
KERNELS: tuple[Kernel, ...] = ("gaussian", "cosine")
_TRAINING = ["training.batch_size=2", "training.epoch_factor=1", "training.schedule.warmup_epochs=0",
             "training.optimiser.learning_rate=1e-3"]  # fmt: skip


@dataclass
class Variant:
    """A way to map the scene, and what became of it."""

    engine: str
    overlap: float
    predict: Predict
    batch: int
    seconds: float = 0.0
    windows: list[float] = field(default_factory=list)  # seconds of a window, turn by turn
    kept: list[Floats] = field(default_factory=list)  # probabilities of the batches, in their order
    maps: dict[Kernel, Floats] = field(default_factory=dict)

    def __call__(self, batch: dict[str, Floats]) -> Floats:
        """Predict, and keep what is predicted for the other kernel."""
        found = np.asarray(self.predict(batch), np.float32)
        self.kept.append(found)
        return found

    def again(self) -> Predict:
        """Return what predicts the same batches in the same order without the model."""
        kept = iter(self.kept)
        return lambda _: next(kept)


@dataclass(frozen=True)
class Row:
    """What a variant blended by a kernel is, held against the published way."""

    variant: Variant
    kernel: Kernel
    speed: float  # published way = 1
    agreement: float  # share of pixels with the same label
    iou: float  # of glacier
    largest: float  # difference of a probability


def prepare(folder: Path, epochs: int) -> None:
    """Make tiles and train the full GlaViTU on them in `folder`, unless it was."""
    if (folder / "weights" / f"{NAME}.json").is_file():
        return
    size = ["--size", "384", "--train", "32", "--val", "4", "--test", "4"]
    settings = [word for setting in _TRAINING for word in ("--set", setting)]
    for command in (
        ["prepare.py", "synthetic", NAME, "--overwrite", *size],
        ["train.py", "-m", "glavitu", "-n", NAME, "--data", NAME, "--overwrite", "--epochs", str(epochs),
         "--precision", "float32", *settings],
    ):  # fmt: skip
        subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=folder, check=True)


def scene_inputs(modalities: Mapping[str, int], statistics: Statistics | None, size: int, seed: int) -> ArraySource:
    """Return a synthetic scene as a model's inputs, in memory.

    Raises:
        UserError: If there is so little or so much glacier that agreement says nothing.
    """
    scene = make_scene("HMA", seed, size)
    if not 0.2 <= (share := float((scene.mask == 1).mean())) <= 0.8:
        raise UserError(f"glacier covers {share:.0%} of scene {seed}, expected 20 to 80 %: give another --seed")
    arrays = scene.modalities()
    return ArraySource({name: scaled(statistics, name, arrays[name]) for name in modalities})


def take_turns(source: ArraySource, variants: list[Variant], patch: int, outputs: int) -> None:
    """Let all variants map the scene, a row of windows after another, whoever is behind first."""
    jobs: list[Iterator[tuple[int, Floats]]] = []
    totals = []
    for variant in variants:
        stride = stride_of(patch, variant.overlap, variant.batch)
        one = {name: array[:patch, :patch] for name, array in source.inputs.items()}
        blend(variant.predict, one, patch=patch, num_outputs=outputs, stride=stride, batch=variant.batch)  # laid out
        rows = blend_rows(
            variant, [whole(source, patch, stride)], patch=patch, num_outputs=outputs, stride=stride,
            batch=variant.batch,
        )  # fmt: skip
        jobs.append((found.top, found.probs) for found in rows)
        variant.maps["gaussian"] = np.empty((source.height, source.width, outputs), np.float32)
        totals.append(source.height)
    done = [0] * len(variants)
    bar = progress(range(sum(totals)), "map", total=sum(totals), unit="row")
    while any(at < total for at, total in zip(done, totals, strict=True)):
        number = min(range(len(variants)), key=lambda index: done[index] / totals[index])
        variant = variants[number]
        before, began = len(variant.kept), time.perf_counter()
        top, probs = next(jobs[number])
        seconds = time.perf_counter() - began
        variant.seconds += seconds
        if predicted := len(variant.kept) - before:
            variant.windows.append(seconds / (predicted * variant.batch))
        variant.maps["gaussian"][top : top + len(probs)] = probs
        bar.update(top + len(probs) - done[number])
        done[number] = top + len(probs)
    bar.close()
    for variant in variants:
        variant.maps["cosine"] = blend(
            variant.again(), source.inputs, patch=patch, num_outputs=outputs,
            stride=stride_of(patch, variant.overlap, variant.batch), batch=variant.batch, shape="cosine",
        )  # fmt: skip


def compared(variants: list[Variant]) -> list[Row]:
    """Return every variant by each kernel, held against the first by the Gaussian one."""
    reference = variants[0]
    expected = reference.maps["gaussian"]
    glacier = expected.argmax(axis=-1) == 1
    rows = []
    for variant in variants:
        for kernel in KERNELS:
            found = variant.maps[kernel]
            labels: NDArray[np.bool_] = found.argmax(axis=-1) == 1
            union = (labels | glacier).sum()
            rows.append(
                Row(
                    variant,
                    kernel,
                    reference.seconds / variant.seconds,
                    float((labels == glacier).mean()),
                    float((labels & glacier).sum() / union) if union else 1.0,
                    float(np.abs(found - expected).max()),
                )
            )
    return rows


def draw(rows: list[Row], path: Path, title: str) -> None:
    """Draw speed against the share of labels that differ."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    engines = list(dict.fromkeys(row.variant.engine for row in rows))
    for engine, colour in zip(engines, ("#444444", "#1f77b4", "#d95f02"), strict=False):
        for kernel, marker, line in (("gaussian", "o", "-"), ("cosine", "s", "--")):
            some = [row for row in rows if row.variant.engine == engine and row.kernel == kernel]
            some.sort(key=lambda row: row.variant.overlap)
            differ = [max(100 * (1 - row.agreement), 1e-3) for row in some]
            axes.plot(
                [row.speed for row in some],
                differ,
                line,
                marker=marker,
                color=colour,
                markerfacecolor=colour if kernel == "gaussian" else "white",
                label=f"{engine}, {kernel}",
            )
            if kernel == "gaussian":
                for row, value in zip(some, differ, strict=True):
                    axes.annotate(f"{row.variant.overlap:g}", (row.speed, value), (5, 5), textcoords="offset points")
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.text(axes.get_xlim()[0], 0.5, " 99.5 % of labels agree", va="bottom", fontsize=8, color="grey")
    axes.set(
        yscale="log",
        xlabel="speed, published way = 1",
        ylabel="labels that differ from the published way, % (0.001: none)",
    )
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(title="engine, kernel; number: overlap", fontsize=8)
    figure.savefig(path, dpi=120)


def variants_of(member: Predictor, overlaps: list[float], batch: int, precisions: Sequence[str]) -> list[Variant]:
    """Return the published way and, by OpenVINO in each precision, each overlap."""
    found = [Variant(PUBLISHED, 0.5, member, 1)]
    for precision in precisions:
        engine = OpenVino(member, precision)
        assert replace(member, engine=engine).engine_name == engine.name
        found += [Variant(engine.name, overlap, engine, batch) for overlap in overlaps]
    return found


def main(arguments: list[str]) -> None:
    """Train if need be, map the scene in all ways, print the table and draw the plot."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__, formatter_class=raw)
    parser.add_argument("--folder", type=Path, help="where the run is kept [a temporary one]")
    parser.add_argument("--epochs", type=int, default=3, help="of the training [%(default)s]")
    parser.add_argument("--size", type=int, default=3072, help="side of the scene in pixels [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the scene [%(default)s]")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5], help="[%(default)s]")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=["float32", "bfloat16"],
        default=["float32", *(["bfloat16"] if computes_in_bfloat16() else [])],
        help="of OpenVINO [all that the processor has]",
    )
    parser.add_argument("--batch", type=int, default=4, help="windows at once, but for the published way [%(default)s]")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "overlap.png", help="[%(default)s]")
    options = parser.parse_args(arguments)
    described = machine()
    import_keras()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        plot = options.plot.absolute()
        stack.enter_context(contextlib.chdir(folder))
        prepare(Path.cwd(), options.epochs)
        member = from_run(find_run(NAME))
        source = scene_inputs(member.modalities, member.statistics, options.size, options.seed)
        variants = variants_of(member, options.overlaps, options.batch, options.precisions)
        take_turns(source, variants, member.patch_size, member.num_outputs)
    rows = compared(variants)
    share = float((variants[0].maps["gaussian"].argmax(axis=-1) == 1).mean())
    print(
        f"{described}\n\nGlaViTU, {options.size}×{options.size} pixels, of which {share:.0%} are mapped as glacier.\n"
    )
    header = ["engine", "overlap", "kernel", "windows", "seconds a window", "speed", "labels that agree",
              "IoU of glacier", "largest difference"]  # fmt: skip
    print(table(header, [_cells(row) for row in rows]))
    draw(rows, plot, f"GlaViTU over {options.size}×{options.size} pixels, {os.cpu_count()} cores")
    print(f"\ndrew {plot}", file=sys.stderr)


def _cells(row: Row) -> list[str]:
    variant = row.variant
    times = f"{statistics.median(variant.windows):.2f} ({min(variant.windows):.2f}–{max(variant.windows):.2f})"
    windows = len(variant.kept) * variant.batch
    return [variant.engine, f"{variant.overlap:g}", row.kernel, str(windows), times, f"{row.speed:.2f}",
            f"{row.agreement:.3%}", f"{row.iou:.4f}", f"{row.largest:.1g}"]  # fmt: skip


if __name__ == "__main__":
    console.run(main)
