"""Comparison with PyTorch: what is compared, what counts as different, and what the speeds are ratios of."""

from __future__ import annotations

import math
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import architectures
from benchmarks import parity, pytorch
from benchmarks.cases import CASES, Case
from benchmarks.turns import Measured
from console import UserError
from training.losses import LossTerms

# What is compared


@pytest.mark.parametrize("architecture", ["unet", "unetplusplus", "segformer", "encoder"])
def test_an_architecture_is_compared_with_three_of_its_encoders(architecture: str) -> None:
    assert len({case.variant for case in CASES if case.architecture == architecture}) >= 3


@pytest.mark.parametrize("architecture", ["unet", "unetplusplus", "segformer", "resunet", "encoder"])
def test_comparisons_take_other_than_square_patches_and_one_and_many_bands_and_classes(architecture: str) -> None:
    cases = [case for case in CASES if case.architecture == architecture]
    assert any(case.size[0] != case.size[1] for case in cases)
    assert any(case.channels == 1 for case in cases) and any(case.channels > 3 for case in cases)
    if architecture != "encoder":
        assert any(case.classes == 1 for case in cases) and any(case.classes > 1 for case in cases)


def test_state_dicts_of_pytorchs_own_format_are_read_on_its_backend() -> None:
    assert any(case.file == "pt" for case in CASES)
    assert all(case.backend == "torch" for case in CASES if case.file == "pt")


@pytest.mark.parametrize("case", [case for case in CASES if case.classes], ids=lambda case: case.name)
def test_options_of_a_case_are_the_architectures(case: Case) -> None:
    assert case.options.keys() <= architectures.options_of(case.architecture).keys()


# What counts as different

CASE = Case("tiny", "", 2, 2, (4, 6), "safetensors")
MAPS = Case("encoder", "tiny", 2, 0, (4, 6), "torchvision")


def outputs() -> list[np.ndarray]:
    return [np.random.default_rng(0).random((2, 4, 6, 2), dtype=np.float32)]


@pytest.mark.parametrize(
    ("change", "parameters", "verdict"),
    [
        (lambda x: x + 9e-5, (3, 3), "equal"),
        (lambda x: x + 2e-4, (3, 3), "differs"),
        (lambda x: x[:, ::-1], (3, 3), "differs"),
        (lambda x: np.where(x > 0.99, np.nan, x), (3, 3), "differs"),
        (lambda x: x[..., :1], (3, 3), "shapes"),
        (lambda x: x, (3, 4), "parameters"),
    ],
    ids=["rounding", "off", "flipped", "NaN", "one class less", "one parameter less"],
)
def test_outputs_and_numbers_of_parameters_are_held_against_the_references(
    change: Callable[[np.ndarray], np.ndarray], parameters: tuple[int, int], verdict: str
) -> None:
    row = parity.compare(CASE, parameters, [change(outputs()[0])], outputs())
    assert verdict in row.verdict


def test_maps_of_an_encoder_are_compared_in_units_of_their_largest_value() -> None:
    large = [1000 * output for output in outputs()]
    off = [output + 0.05 for output in large]
    assert parity.compare(MAPS, (1, 1), off, large).verdict == "equal"
    assert parity.compare(CASE, (1, 1), off, large).verdict != "equal"
    assert parity.compare(MAPS, (1, 1), [*large, outputs()[0] + 2e-4], [*large, *outputs()]).verdict != "equal"


def test_a_reference_that_says_the_same_everywhere_proves_nothing() -> None:
    constant = [np.full((2, 4, 6, 2), 0.5, np.float32)]
    assert "nothing is compared" in parity.compare(CASE, (1, 1), constant, constant).verdict


# The whole comparison, with a reference that is made here


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a convolution for the zoo, and the same in NumPy for its reference; what is set here is its mistake."""
    mistake: dict[str, Any] = {"bias": 0.0}

    def tiny(inputs: dict[str, int], num_classes: int, size: tuple[int, int]) -> keras.Model:
        tensors = {name: keras.Input((*size, channels), name=name) for name, channels in inputs.items()}
        layer = keras.layers.Conv2D(num_classes, 1, activation="softmax", name="head")
        return keras.Model(tensors, {"output": layer(*tensors.values())})

    def serve(connection: Connection) -> None:
        _, case, seed, folder = connection.recv()
        rng = np.random.default_rng(seed)
        weight, bias = rng.normal(size=(case.classes, case.channels, 1, 1)), rng.normal(size=case.classes)
        state = {"head.weight": weight.astype(np.float32), "head.bias": bias.astype(np.float32)}
        np.savez(folder / "weights.npz", **state)
        x = rng.normal(size=(2, *case.size, case.channels)).astype(np.float32)
        logits = x @ weight[:, :, 0, 0].T + bias + [mistake["bias"], 0.0]
        exponentials = np.exp(logits)
        probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
        connection.send((folder / "weights.npz", weight.size + bias.size, x, [probabilities]))

    @contextmanager
    def process() -> Iterator[Connection]:
        ours, theirs = multiprocessing.Pipe()
        thread = threading.Thread(target=serve, args=(theirs,))
        thread.start()
        yield ours
        thread.join()

    module: Any = SimpleNamespace(build=tiny, stride=lambda **_: 1)
    monkeypatch.setitem(architectures.REGISTRY, "tiny", module)
    monkeypatch.setattr(Case, "options", {})
    monkeypatch.setattr(parity, "CASES", (CASE,))
    monkeypatch.setattr(parity, "reference_process", process)
    return mistake


def test_models_that_agree_are_all_listed(reference: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    parity.main(["--seed", "7"])
    out = capsys.readouterr().out
    assert "seed 7" in out
    assert "| tiny " in out and "| 2×4×6 |" in out and "| 6 |" in out and "| equal |" in out


def test_the_worst_difference_is_named_and_the_exit_code_is_one(
    reference: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    reference["bias"] = 0.01
    with pytest.raises(SystemExit) as stopped:
        parity.main([])
    assert isinstance(stopped.value.code, str)  # Python prints it and exits with 1
    assert "the worst is tiny" in stopped.value.code
    seed = capsys.readouterr().out.partition("seed ")[2].partition(";")[0]
    assert f"--seed {seed}" in stopped.value.code


def test_without_its_environment_the_comparison_says_how_to_make_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parity, "PYTHON", tmp_path / "python")
    with pytest.raises(UserError, match="make .venv-parity"):
        parity.main([])


def test_an_unknown_case_is_answered_with_the_known() -> None:
    with pytest.raises(UserError, match="segformer b0"):
        parity.main(["--only", "alexnet"])


# Speed


def test_a_recipe_trains_the_case_with_the_references_loss_on_its_bands_alone() -> None:
    recipe = pytorch.recipe_of(Case("segformer", "b0", 6, 2, (64, 64), "safetensors"), batch=3, steps=5, rounds=2)
    assert (recipe.architecture.name, recipe.architecture.options) == ("segformer", {"variant": "b0"})
    assert recipe.inputs == ("optical",)
    assert recipe.loss == LossTerms.model_validate({"cross_entropy": {}})
    training = recipe.training
    assert (training.batch_size, training.steps_per_epoch, training.epochs, training.patch_size) == (3, 5, 3, 64)
    assert training.optimiser.name == "adam"


def test_ratios_are_pytorchs_time_over_ours_in_the_same_round() -> None:
    mine, its = Measured((1.0, 2.0, 4.0), 2.0**30), Measured((2.0, 6.0, 4.0), math.nan)
    cells = pytorch.row("training", CASE, "float32", 8, mine, its)
    assert cells[1:] == [
        "training",
        "float32",
        "4.00 (2.00–8.00)",
        "2.00 (1.33–4.00)",
        "2.00 (1.00–3.00)",
        "1.0 / nan",
    ]
