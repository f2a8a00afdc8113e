"""Whether data come fast enough, and where an epoch's time goes: Markdown tables for docs/performance.md.

    python -m benchmarks.pipeline

Both with the demo recipe on tiles as `make demo` makes them:

- the data pipeline alone against the training step alone. The pipeline is `fit` over an epoch's patches with a step
  that takes each batch and does nothing with it: batches come through the workers, the queue and the copies that `fit`
  uses. The step is the compiled training step on batches that were made before. They take turns, on the same cores;
  their ratio is to be 5 at least, so that faster models and processors still find their patches waiting.
- the profile of an epoch of `training.run.Run`, from the end of one epoch's last training step to the end of the
  next one's: validation, log and files of the one, training of the other. The first two epochs compile and are left
  out. Validation counts as its parts do: its steps as steps, the wait for its batches as waiting.

Written for the TensorFlow backend, whose compiled functions take an iterator of batches.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

import console
from benchmarks.report import machine, spread, table
from data import synthetic
from data.tiles import find_dataset
from training.recipe import load_recipe
from training.run import Run, plan

CompiledStep = Callable[[Iterator[Any]], dict[str, Any]]


class Stopwatch:
    """A function that notes when each of its calls began and ended."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls: list[tuple[float, float]] = []

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        began = time.perf_counter()
        result = self.function(*arguments)
        self.calls.append((began, time.perf_counter()))
        return result

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds of all calls within `start` and `end`."""
        return sum(max(0.0, min(ended, end) - max(began, start)) for began, ended in self.calls)


def watched(compiled: CompiledStep) -> tuple[CompiledStep, Stopwatch, Stopwatch]:
    """Return a stand-in for a model's `train_function` or `test_function`, and stopwatches of its wait and its step.

    `compiled` fetches its batch from the iterator itself. Here the batch is fetched first and then handed to it, so
    that the two can be told apart.
    """
    wait, step = Stopwatch(next), Stopwatch(lambda batch: _compute(compiled, batch))
    return lambda iterator: step(wait(iterator)), wait, step


def _compute(compiled: CompiledStep, batch: Any) -> dict[str, Any]:
    logs = compiled(iter([batch]))
    float(logs["loss"])  # a GPU computes in the background: wait for it
    return logs


def profile(run: Run) -> dict[str, float]:
    """Train `run`, of three epochs or more, and return what the seconds of an epoch went into."""
    model = run.plan.model
    model.make_train_function()
    model.make_test_function()
    compiled = model.train_function, model.test_function
    model.train_function, wait, step = watched(compiled[0])
    model.test_function, val_wait, val_step = watched(compiled[1])
    run.train()
    model.train_function, model.test_function = compiled
    epochs = run.plan.recipe.training.epochs
    ends = [ended for _, ended in step.calls][len(step.calls) // epochs - 1 :: len(step.calls) // epochs]
    start, end = ends[1], ends[-1]
    parts = {
        "training steps": step,
        "validation steps": val_step,
        "waiting for training batches": wait,
        "waiting for validation batches": val_wait,
    }
    seconds = {part: watch.seconds(start, end) for part, watch in parts.items()}
    seconds["the rest"] = end - start - sum(seconds.values())
    return {part: total / (epochs - 2) for part, total in seconds.items()}


def rates(run: Run, rounds: int, steps: int) -> tuple[list[float], list[float]]:
    """Return the patches a second of the pipeline alone and of the training step alone, one of each a round.

    The pipeline makes an epoch's batches in a round, start and end of the workers included; the step is done `steps`
    times.
    """
    planned, training = run.plan, run.plan.recipe.training
    model = planned.model
    model.make_train_function()
    compiled = model.train_function

    def take(iterator: Iterator[Any]) -> dict[str, Any]:
        next(iterator)
        return {"loss": 0.0}

    batch = keras.tree.map_structure(keras.ops.convert_to_tensor, planned.training_patches(0)[0])
    _compute(compiled, batch)
    pipeline, step = [], []
    for number in range(rounds):
        began = time.perf_counter()
        model.train_function = take
        model.fit(planned.training_patches(number), epochs=1, verbose=0, shuffle=False)
        model.train_function = compiled
        fed = time.perf_counter()
        for _ in range(steps):
            _compute(compiled, batch)
        pipeline.append(planned.steps * training.batch_size / (fed - began))
        step.append(steps * training.batch_size / (time.perf_counter() - fed))
    return pipeline, step


def main(arguments: list[str]) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=64, help="training tiles (default: %(default)s)")
    parser.add_argument("--val", type=int, default=16, help="validation tiles (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of a tile, pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="of the profile, 3 or more (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="pipeline and step in turns (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="training steps a round (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the recipe"
    )
    options = parser.parse_args(arguments)
    if options.epochs < 3:
        parser.error("--epochs takes 3 or more: the first two are not measured")
    recipe = load_recipe("demo", [*options.set, f"training.epochs={options.epochs}"])
    described = machine()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        synthetic.write_dataset(folder, train=options.train, val=options.val, test=1, size=options.size)
        run = Run(plan(recipe, find_dataset(folder)), "benchmark", weights=folder / "weights", logs=folder / "logs")
        parts = profile(run)
        pipeline, step = rates(run, options.rounds, options.steps)
    training = recipe.training
    print(
        f"The demo recipe, {options.train} training and {options.val} validation tiles of {options.size}×"
        f"{options.size}, {run.plan.steps} steps of {training.batch_size} patches of {training.patch_size}×"
        f"{training.patch_size} an epoch, {training.workers} workers, {run.plan.precision}.\n\n{described}\n"
    )
    ratios = [fed / used for fed, used in zip(pipeline, step, strict=True)]
    speeds = [
        ["data pipeline alone", spread(pipeline, 1)],
        ["training step alone", spread(step, 1)],
        ["ratio, in the same round (5 at least)", spread(ratios, 1)],
    ]
    print(table(["", f"patches/s, median (lowest–highest) of {options.rounds} rounds"], speeds), end="\n\n")
    total = sum(parts.values())
    shares = [[part, f"{seconds:.2f}", f"{seconds / total:.1%}"] for part, seconds in parts.items()]
    header = ["an epoch", f"seconds, mean of {options.epochs - 2} epochs", "share"]
    print(table(header, [*shares, ["in all", f"{total:.2f}", "100.0%"]]), end="\n\n", flush=True)


if __name__ == "__main__":
    console.run(main)
