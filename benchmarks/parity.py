"""The zoo's models whose checkpoints are PyTorch's, held against their references on random weights.

    python -m benchmarks.parity
    python -m benchmarks.parity --seed 1 --only segformer efficientnet

For every case a process in .venv-parity (`make .venv-parity`) builds the reference, gives it random weights and batch
statistics, writes its state dict into a file and runs it. Here `architectures.build` makes the zoo's model,
`checkpoints` reads the file, and the model predicts the same input; some cases do so in the other process, on Keras's
PyTorch backend. Compared are the numbers of trainable parameters, exactly, and the outputs: probabilities, or of an
encoder alone its maps, in units of the largest value of each. Exit code 1: something differs, the worst is named.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keras
import numpy as np

import architectures
import checkpoints
import console
from architectures.encoders import encode
from benchmarks.cases import CASES, MODALITY, Case
from benchmarks.report import table
from benchmarks.turns import answer
from console import UserError, progress

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-parity" / "bin" / "python"
TOLERANCE = 1e-4
LEAST_SPREAD = 1e-2  # an output that hardly varies would agree with anything

Outputs = list[np.ndarray]


@dataclass(frozen=True)
class Row:
    """What came of a case.

    Attributes:
        case: The case.
        parameters: Trainable ones of the zoo's model and of the reference.
        difference: The largest one of the outputs; infinite where there is nothing to compare.
        spread: Standard deviation of the reference's output that varies least, in the same units.
        error: What the zoo says against the weights, if it does not take them.
    """

    case: Case
    parameters: tuple[int, int] = (0, 0)
    difference: float = math.inf
    spread: float = 0.0
    error: str = ""

    @property
    def verdict(self) -> str:
        """What is off, or "equal"."""
        if self.error:
            return self.error
        if self.spread < LEAST_SPREAD:
            return f"nothing is compared: the reference's output varies by {self.spread:.0e} alone"
        if not self.difference <= TOLERANCE:
            return f"differs by more than {TOLERANCE:.0e}"
        if self.parameters[0] != self.parameters[1]:
            return "the numbers of parameters differ"
        return "equal"


def ours(case: Case, weights: Path, x: np.ndarray) -> tuple[int, Outputs]:
    """Build the case's model of the zoo, load `weights` and run it on x (N, H, W, C).

    Returns:
        The number of trainable parameters, and the outputs (N, H, W, K).

    Raises:
        UserError: The weights do not fit the model.
    """
    keras.utils.clear_session()
    if case.classes:
        model = architectures.build(
            case.architecture, {MODALITY: case.channels}, case.classes, case.size, **case.options
        )
        checkpoints.load_weights(model, weights)
    else:
        inputs = keras.Input((*case.size, case.channels), name=MODALITY)
        maps = [output for output in encode(case.variant, inputs) if output is not None]
        model = keras.Model(inputs, maps)
        checkpoints.load_encoder(model, weights)
    model.jit_compile = False
    count = sum(math.prod(variable.shape) for variable in model.trainable_weights)
    if case.classes:
        return count, [np.asarray(model.predict_on_batch({MODALITY: x})["output"])]
    return count, [np.asarray(output) for output in model.predict_on_batch(x)]


def compare(case: Case, parameters: tuple[int, int], own: Outputs, reference: Outputs) -> Row:
    """Return the row of outputs (N, H, W, K) of the zoo's model and of the reference."""
    shapes = [[output.shape for output in outputs] for outputs in (own, reference)]
    if shapes[0] != shapes[1]:
        return Row(case, parameters, error=f"the outputs' shapes are {shapes[0]}, of the reference {shapes[1]}")
    units = [1.0 if case.classes else float(np.abs(output).max()) for output in reference]
    differences = [np.abs(mine - its).max() / u for mine, its, u in zip(own, reference, units, strict=True)]
    spreads = [its.std(axis=(0, 1, 2)).max() / u for its, u in zip(reference, units, strict=True)]
    # NaN is a difference as well, and `max` would lose it.
    worst = max(float(d) if d == d else math.inf for d in differences)
    return Row(case, parameters, worst, float(min(spreads)))


@contextmanager
def reference_process() -> Iterator[Connection]:
    """Start `benchmarks.references` in .venv-parity and yield the connection to it; it ends with the context.

    Raises:
        UserError: That environment is missing.
    """
    if not PYTHON.exists():
        raise UserError(
            f"{PYTHON} is missing, the Python with PyTorch: make it with `make .venv-parity`, and try again"
        )
    here, there = multiprocessing.Pipe()
    process = subprocess.Popen(
        [PYTHON, "-m", "benchmarks.references", str(there.fileno())],
        pass_fds=[there.fileno()],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": "torch"},
    )
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.terminate()
        process.wait()


def run(case: Case, references: Connection, seed: int) -> Row:
    """Have random weights written for `case` through `references`, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        references.send(("write", case, seed, Path(folder)))
        weights, count, x, reference = answer(references)
        try:
            if case.backend == "torch":
                references.send(("ours", case, weights, x))
                result: Any = answer(references)
                if isinstance(result, UserError):
                    raise result
            else:
                result = ours(case, weights, x)
        except UserError as error:
            return Row(case, (0, count), error=str(error).replace("\n", " "))
    parameters, own = result
    return compare(case, (parameters, count), own, reference)


HEADER = ["model", "input", "classes", "weights, backend", "parameters", "largest difference", "spread", "verdict"]


def cells(row: Row) -> list[str]:
    """Return the cells of `row` in the table."""
    case, (own, its) = row.case, row.parameters
    return [
        case.name,
        "×".join(map(str, (case.channels, *case.size))),
        str(case.classes or "maps"),
        f"{case.file}, {case.backend}",
        f"{own:,}" if own == its else f"{own:,} / {its:,}",
        f"{row.difference:.1e}",
        f"{row.spread:.2f}",
        row.verdict,
    ]


def main(arguments: list[str]) -> None:
    """Compare, print, and exit with 1 if something differs."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="of the random weights (default: another one each time)")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="only the cases with one of these in their names"
    )
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    cases = [case for case in CASES if any(word in case.name for word in options.only)]
    if not cases:
        names = ", ".join(dict.fromkeys(case.name for case in CASES))
        raise UserError(f"--only {' '.join(options.only)}: no case has that in its name; there are: {names}")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns that each model is traced
    rows = []
    with reference_process() as references:
        print(f"Random weights of seed {seed}; tolerance {TOLERANCE:.0e}.\n\n{table(HEADER, [])}", flush=True)
        bar = progress(cases, "models", unit="model")
        for case in bar:
            rows.append(run(case, references, seed))
            bar.write(f"| {' | '.join(cells(rows[-1]))} |")
    print()
    if off := [row for row in rows if row.verdict != "equal"]:
        worst = max(off, key=lambda row: row.difference)
        sys.exit(
            f"{len(off)} of {len(rows)} differ from PyTorch; the worst is {worst.case.name} ({worst.case.file}, "
            f"{worst.case.backend}): {worst.verdict}. Again: python -m benchmarks.parity --seed {seed}"
        )
    print(f"All {len(rows)} agree with PyTorch.")


if __name__ == "__main__":
    console.run(main)
