"""Kill training runs at random moments and resume them: the weights and the log must be those of a run left alone.

    python -m benchmarks.kills --kills 100

Small networks with dropout are trained in child processes of their own, once left alone and once killed by SIGKILL
again and again: after a random time, or a random few milliseconds after a random file operation, so that saves are hit
too. The cases cover workers 0, 1 and 2, states after each epoch and after each batch, float32 and the float16 policy.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

NAME = "run"
_FILE_EVENTS = ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


@dataclass(frozen=True)
class Case:
    """One kind of run that is killed.

    `architecture`: of the zoo, made small. `save_every_s`: 0 saves a state after every batch.
    """

    architecture: str
    workers: int
    precision: str
    save_every_s: float


SMALL: dict[str, dict[str, Any]] = {
    "unet": {"width": 4, "steps": 1, "dropout": 0.2},
    "resunet": {"width": 4, "fusion_width": 4, "steps": 1, "dropout": 0.2},
    "glavitu": {"variant": "2025", "width": 8, "mlp": 8, "depth": 1, "heads": 2, "steps": 1, "dropout": 0.2},
    "transunet": {"width": 4, "mlp": 8, "depth": 1, "heads": 2, "steps": 1, "dropout": 0.2},
}
CASES = [
    Case("resunet", 0, "float32", 1e9),
    Case("glavitu", 2, "float32", 0.0),
    Case("resunet", 1, "float16", 0.0),
    Case("transunet", 2, "float32", 1e9),
    Case("glavitu", 1, "float16", 1e9),
    Case("transunet", 0, "float32", 0.0),
]


@dataclass(frozen=True)
class Kill:
    """When a child ends itself: `delay_s` after file event number `event`, or after its first step if that is None."""

    event: int | None
    delay_s: float


def write_tiles(folder: Path) -> None:
    """Write small tiles with a class to learn into `folder`."""
    from data.normalisation import fit
    from data.tiles import TWO_CLASSES, TileWriter

    rng = np.random.default_rng(0)
    bands = {"optical": ["green", "swir"], "dem": ["elevation"]}
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 3), ("val", 2)):
        tiles = []
        for _ in range(count):
            mask = (np.hypot(*(np.mgrid[:48, :48] - rng.integers(8, 40, (2, 1, 1)))) < 14).astype(np.uint8)
            arrays = {m: rng.normal(mask[..., None], 1, (48, 48, len(b))).astype(np.float32) for m, b in bands.items()}
            tiles.append((arrays, mask))
        statistics = fit((arrays, np.ones(mask.shape)) for arrays, mask in tiles)
        with TileWriter(folder / f"{split}.hdf5", TWO_CLASSES, bands, statistics) as writer:
            for number, (arrays, mask) in enumerate(tiles):
                writer.add(f"{split}{number}", arrays, mask, np.ones(mask.shape, bool), "HMA")


def train(tiles: Path, folder: Path, case: Case, resume: bool, kill: Kill | None) -> None:
    """Train, or go on with, the run of `case`; with `kill` the process ends itself at that moment."""
    from data.tiles import find_dataset
    from training.recipe import parse_recipe
    from training.run import Run, plan

    recipe = parse_recipe(
        {
            "name": "kills",
            "architecture": {"name": case.architecture, "options": SMALL[case.architecture]},
            "inputs": ["optical", "dem"],
            "loss": {"focal": {}, "dice": {}},
            "augmentation": {"flip_vertical": 0.5, "rotate": 0.75, "crop": 0.5},
            "training": {
                "patch_size": 32,
                "batch_size": 2,
                "epochs": 4,
                "steps_per_epoch": 4,
                "optimiser": {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.01},
                "schedule": {"name": "plateau", "warmup_epochs": 1, "patience": 1, "min_delta": 0.05},
                "precision": ["float16"],
                "workers": case.workers,
            },
        },
        "the trial",
    )
    planned = plan(recipe, find_dataset(tiles), seed=3, precision=case.precision)
    run = Run(
        planned,
        NAME,
        weights=folder / "weights",
        logs=folder / "logs",
        resume=resume,
        save_every_s=case.save_every_s,
    )
    if kill is not None:
        _arm(kill, folder)
    run.train()


def _arm(kill: Kill, folder: Path) -> None:
    """End this process without warning at the moment of `kill`."""

    def end() -> None:
        time.sleep(kill.delay_s)
        os.kill(os.getpid(), signal.SIGKILL)

    timer = threading.Thread(target=end, daemon=True)
    if kill.event is None:
        timer.start()
        return
    events = itertools.count()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in _FILE_EVENTS or writes) and str(folder) in str(arguments[0]) and next(events) == kill.event:
            timer.start()
            if kill.delay_s == 0:
                time.sleep(1)

    sys.addaudithook(count)


def _child(*arguments: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        train(*arguments)


def outcome(folder: Path) -> tuple[bytes, list[bytes], set[str]]:
    """Return the log, the best weights and the names of all files of a run's folder."""
    with h5py.File(folder / "weights" / f"{NAME}.weights.h5", "r") as file:
        weights: list[bytes] = []
        file.visititems(lambda _, item: weights.append(item[()].tobytes()) if isinstance(item, h5py.Dataset) else None)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return (folder / "logs" / f"{NAME}.csv").read_bytes(), weights, files


def left_alone(tiles: Path, folder: Path, case: Case) -> float:
    """Train the run of `case` without a kill, in a child; return its seconds."""
    started = time.monotonic()
    process = _context().Process(target=_child, args=(tiles, folder, case, False, None))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{case}: the run left alone ended with {process.exitcode}")
    return time.monotonic() - started


def killed(tiles: Path, folder: Path, case: Case, kills: Iterator[Kill]) -> int:
    """Train the run of `case`, killed as long as `kills` lasts and then left alone; return the kills that hit."""
    hits = 0
    resume = False
    while True:
        process = _context().Process(target=_child, args=(tiles, folder, case, resume, next(kills, None)))
        process.start()
        process.join()
        if process.exitcode == 0:
            return hits
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"{case}: ended with {process.exitcode} instead of being killed, after {hits} kills")
        hits += 1
        resume = True


def random_kills(rng: random.Random, seconds: float, count: int) -> Iterator[Kill]:
    """Yield `count` kills: half within half of the `seconds` that a run takes, half around a file operation."""
    for _ in range(count):
        if rng.random() < 0.5:
            yield Kill(None, rng.uniform(0, seconds / 2))
        else:
            yield Kill(rng.randrange(10), rng.choice([0.0, rng.uniform(0, 0.02)]))


def _context() -> Any:
    """Children start from a process that has imported Keras and run nothing: that saves seconds each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.run"])
    return context


def main() -> None:
    """Run the trial and print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills in all (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    rng = random.Random(options.seed)
    total = failures = 0
    folder = Path(tempfile.mkdtemp())
    try:
        write_tiles(folder / "tiles")
        references: dict[Case, tuple[float, Any]] = {}
        for case in itertools.cycle(CASES):
            if total >= options.kills:
                break
            if case not in references:
                alone = folder / f"alone{len(references)}"
                seconds = left_alone(folder / "tiles", alone, case)
                references[case] = seconds, outcome(alone)
            seconds, expected = references[case]
            run = folder / "killed"
            hits = killed(folder / "tiles", run, case, random_kills(rng, seconds, min(8, options.kills - total)))
            same = outcome(run) == expected
            total, failures = total + hits, failures + (not same)
            print(f"{case}: {hits} kills, {'the same' if same else 'DIFFERENT'}; {total} in all", flush=True)
            shutil.rmtree(run)
    finally:
        shutil.rmtree(folder)
    print(f"{total} kills, {failures} runs with other weights, log or files than the run left alone")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
