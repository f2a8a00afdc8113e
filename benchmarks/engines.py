"""How right and how fast every architecture is in each engine: a table for docs/performance.md.

    python -m benchmarks.engines                                     # all variants of docs/zoo.md
    python -m benchmarks.engines --only unet unetplusplus glavitu    # some of them

The models are those of docs/zoo.md: full size, six bands of 384×384, fresh weights but for normalisations, which are
drawn. Engines take turns, a call each. The processor's rate is that of a chain of convolutions of 3×3 over 128 maps,
the best of the engines in a precision; the share of it that a model reaches counts all products of the model's graph,
as docs/zoo.md does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import console
from benchmarks import zoo
from benchmarks.report import machine, spread, table
from console import progress
from data.tiles import TWO_CLASSES
from inference.engines import OpenVino, compare, computes_in_bfloat16
from inference.predictor import Predictor
from inference.sliding import Floats

BATCH = 4
_CHAIN, _MAPS, _SIDE = 8, 128, 128
Call = Callable[[Mapping[str, Floats]], Any]


def engines_of(model: keras.Model, folder: Path) -> dict[str, Call]:
    """Return what predicts with a model: Keras, and OpenVINO in each precision that the processor has."""
    path = folder / "model.weights.h5"
    model.save_weights(path)
    model.jit_compile = keras.backend.backend() == "jax"
    side = model.inputs[0].shape[1]
    inputs = {tensor.name: tensor.shape[-1] for tensor in model.inputs}
    member = Predictor("model", model, inputs, TWO_CLASSES, None, side, described={"weights": str(path)})
    found: dict[str, Call] = {"keras float32": member}
    for precision in ("float32", "bfloat16") if computes_in_bfloat16() else ("float32",):
        found[f"openvino {precision}"] = OpenVino(member, precision)
    return found


def seconds(calls: Mapping[str, Call], batch: Mapping[str, Floats], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in `rounds` rounds, in turns; a first round is left out."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call(batch)
            taken[name].append(time.perf_counter() - began)
    return {name: values[1:] for name, values in taken.items()}


def chain() -> keras.Model:
    """Return convolutions one after another, and nothing else."""
    inputs = x = keras.Input((_SIDE, _SIDE, _MAPS), name="maps")
    for _ in range(_CHAIN):
        x = keras.layers.Conv2D(_MAPS, 3, padding="same", use_bias=False)(x)
    return keras.Model({"maps": inputs}, {"output": x})


def draw_normalisations(model: keras.Model, seed: int = 0) -> None:
    """Give normalisations statistics, scales and shifts that are not those of no training."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable, low, high in (
                (layer.gamma, 0.8, 1.2),
                (layer.beta, -0.1, 0.1),
                (layer.moving_mean, -0.1, 0.1),
                (layer.moving_variance, 0.8, 1.2),
            ):
                variable.assign(rng.uniform(low, high, variable.shape))


def rates(rounds: int) -> dict[str, float]:
    """Return the operations a second of the convolutions alone, by precision, in the fastest engine."""
    keras.utils.clear_session()
    model = chain()
    count = 2 * BATCH * _SIDE**2 * 9 * _MAPS**2 * _CHAIN
    batch = {"maps": np.random.default_rng(0).random((BATCH, _SIDE, _SIDE, _MAPS), np.float32)}
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        taken = seconds(engines_of(model, Path(folder)), batch, rounds)
    for name, values in taken.items():
        precision = name.split()[-1]
        found[precision] = max(found.get(precision, 0.0), count / float(np.median(values)))
    return found


def row(variant: zoo.Row, peak: Mapping[str, float], rounds: int) -> list[list[str]]:
    """Measure a variant in every engine; return its rows of the table."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = zoo.build(variant)
    draw_normalisations(model)
    operations = zoo.operations(zoo.predicting(model, 1).graph)
    rng = np.random.default_rng(0)
    batch = {t.name: rng.normal(0, 1, (BATCH, *t.shape[1:])).astype(np.float32) for t in model.inputs}
    with tempfile.TemporaryDirectory() as folder:
        calls = engines_of(model, Path(folder))
        expected = calls["keras float32"](batch)
        apart = {name: compare(call(batch), expected) for name, call in calls.items()}
        taken = seconds(calls, batch, rounds)
    cells = []
    for name, values in taken.items():
        ratios = [first / own for first, own in zip(taken["keras float32"], values, strict=True)]
        share = operations * BATCH / float(np.median(values)) / peak[name.split()[-1]]
        cells.append(
            [
                *variant.cells,
                name,
                spread([BATCH / value for value in values]),
                spread(ratios),
                f"{share:.0%}",
                f"{apart[name].largest:.1g}",
                f"{apart[name].labels:.2%}",
            ]  # fmt: skip
        )
    return cells


def measure(variants: Sequence[zoo.Row], rounds: int) -> str:
    """Return the table and the processor's rates."""
    peak = rates(rounds)
    said = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {precision}" for precision, rate in peak.items())
    header = ["architecture", "option", "engine", "windows a second", "speed, Keras = 1", "share of the rate",
              "largest difference", "labels that agree"]  # fmt: skip
    rows = [cells for one in progress(variants, "measure", unit="model") for cells in row(one, peak, rounds)]
    return f"Convolutions alone: {said}.\n\n{table(header, rows)}"


def main(arguments: list[str]) -> None:
    """Measure and print the table."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__, formatter_class=raw)
    parser.add_argument("--only", nargs="+", metavar="ARCHITECTURE", help="[all]")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each engine [%(default)s]")
    options = parser.parse_args(arguments)
    described = machine()
    variants = [one for one in zoo.rows() if not options.only or one.name in options.only]
    print(f"{described}\n\n{measure(variants, options.rounds)}")


if __name__ == "__main__":
    console.run(main)
