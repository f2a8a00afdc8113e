"""How fast the zoo trains and predicts against PyTorch on this machine: a Markdown table for docs/performance.md.

    python -m benchmarks.pytorch
    python -m benchmarks.pytorch --models unet --precisions float32 --rounds 5

U-Net and U-Net++ with a ResNet-34 are held against segmentation_models_pytorch, SegFormer-B0 against transformers,
both in PyTorch as it comes: eager, channels first; bfloat16 is Keras's mixed policy here and `torch.autocast` there.

- Training: forward, cross entropy, backward, Adam. PyTorch takes one batch again and again; this project trains with
  `training.run.Run` on a tile file, and its time has the loader, augmentation and confusion counts in it.
- Prediction: `inference.predictor.Predictor` from an array of patches to one of probabilities, and the same in PyTorch.

The two are processes of their own, PyTorch's in .venv-parity (`make .venv-parity`), and take turns on the same cores,
one computing while the other waits. The first turn compiles and is left out; ratios are within a round.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import keras
import numpy as np

import architectures
import console
from benchmarks import training
from benchmarks.cases import MODALITY, Case
from benchmarks.parity import reference_process
from benchmarks.report import machine, spread, table
from benchmarks.turns import Measured, answer, repeat, start, take_turns
from console import UserError
from data.tiles import TWO_CLASSES, Dataset
from inference.predictor import Predictor
from training.precision import POLICIES, cpu_has_bfloat16, has_gpu
from training.recipe import Recipe, load_recipe

MODELS = {"unet": "resnet34", "unetplusplus": "resnet34", "segformer": "b0"}
TASKS = {"training": "train", "prediction": "predict"}
CHANNELS = 6


def recipe_of(case: Case, batch: int, steps: int, rounds: int) -> Recipe:
    """Return how this project trains `case`: `steps` steps an epoch, one epoch before the measured `rounds`."""
    options = ", ".join(f"{key}: {value}" for key, value in case.options.items())
    epochs = 1 + rounds
    changes = [
        f"architecture={{name: {case.architecture}, options: {{{options}}}}}",
        f"inputs=[{MODALITY}]",
        "loss={cross_entropy: {}}",
        f"training.patch_size={case.size[0]}",
        f"training.batch_size={batch}",
        f"training.steps_per_epoch={steps}",
        f"training.epochs={epochs}",
        f"training.schedule.patience={epochs}",  # a lower rate can mean to compile again
        "training.stop_patience=null",
    ]
    return load_recipe("resunet", changes)


def predict(case: Case, batch: int, precision: str, steps: int, turns: int, connection: Connection) -> None:
    """Predict `steps` batches a turn, as `predict.py` does."""
    keras.config.set_dtype_policy(POLICIES[precision])
    channels = {MODALITY: case.channels}
    model = architectures.build(case.architecture, channels, case.classes, case.size, **case.options)
    model.jit_compile = keras.backend.backend() == "jax"
    predictor = Predictor(case.name, model, channels, TWO_CLASSES, None, case.size[0])
    x = np.random.default_rng(0).random((batch, *case.size, case.channels), dtype=np.float32)
    repeat(lambda: [predictor({MODALITY: x}) for _ in range(steps)], turns, connection)


def measure(
    task: str, case: Case, dataset: Dataset, batch: int, precision: str, steps: int, rounds: int
) -> tuple[Measured, Measured]:
    """Return what this project and PyTorch needed, in turns of `steps` batches."""
    with reference_process() as references:
        references.send((TASKS[task], case, batch, precision, steps, 1 + rounds))
        answer(references)
        if task == "training":
            variant = training.Variant("this project", recipe_of(case, batch, steps, rounds), precision)
            own = start(training.train, variant, dataset)
        else:
            own = start(predict, case, batch, precision, steps, 1 + rounds)
        mine, its = take_turns([own, references], 1 + rounds)
    return mine, its


def row(task: str, case: Case, precision: str, patches: int, mine: Measured, its: Measured) -> list[str]:
    """Return a row of the table; `patches` are those of a turn."""
    ratios = [theirs / ours for ours, theirs in zip(mine.seconds, its.seconds, strict=True)]
    speeds = [spread([patches / seconds for seconds in measured.seconds]) for measured in (mine, its)]
    memory = [f"{measured.peak / 2**30:.1f}" for measured in (mine, its)]
    return [case.name, task, precision, *speeds, spread(ratios), " / ".join(memory)]


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.pytorch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="(default: all)")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="(default: both)")
    parser.add_argument("--patch", type=int, default=384, help="side of a patch, pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="patches a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured turns of each (default: %(default)s)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=["float32", "bfloat16"],
        default=["float32", *(["bfloat16"] if cpu_has_bfloat16() else [])],
        help="(default: float32, and bfloat16 where the processor computes in it)",
    )
    options = parser.parse_args(arguments)
    if has_gpu():
        raise UserError(
            "PyTorch's CPU build is measured, and Keras sees a GPU: hide it with CUDA_VISIBLE_DEVICES=-1, and try again"
        )
    with reference_process() as references:
        references.send(("versions",))
        described = f"{machine()} Against {answer(references)}."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = training.write_tiles(Path(folder), options.patch)
        for architecture in options.models:
            size = (options.patch, options.patch)
            case = Case(architecture, MODELS[architecture], CHANNELS, len(TWO_CLASSES), size, "safetensors")
            for task in options.tasks:
                for precision in options.precisions:
                    measured = measure(task, case, dataset, options.batch, precision, options.steps, options.rounds)
                    rows.append(row(task, case, precision, options.steps * options.batch, *measured))
    print(
        f"Patches of {options.patch}×{options.patch} with {CHANNELS} bands, batch {options.batch}; {options.rounds} "
        f"rounds of {options.steps} steps, in turns; median (lowest–highest).\n\n{described}\n"
    )
    header = ["model", "task", "precision", "this project, patches/s", "PyTorch, patches/s", "ratio"]
    print(table([*header, "peak memory, GiB, both"], rows), end="\n\n", flush=True)


if __name__ == "__main__":
    console.run(main)
