"""Averages of predictions: symmetries, dropout left on, several runs; what a patch gets depends on the patch alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from console import UserError
from data.normalisation import Statistics
from data.predictions import PredictionFile
from data.tiles import TWO_CLASSES, ClassInfo, TileFile
from inference.confidence import (
    SYMMETRIES,
    Direction,
    Dropout,
    Ensemble,
    Symmetries,
    Way,
    check_members,
    directions,
)
from inference.predictor import Predictor
from inference.tiles import predict_file

WriteTiles = Callable[..., Path]
ROOT = Path(__file__).parents[2]
PATCH = 8
ALL = tuple(SYMMETRIES)
SHAPES = {"optical": (PATCH, PATCH, 3), "location": (2,)}


def batch_of(count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(count, *shape)).astype(np.float32) for name, shape in SHAPES.items()}


def pointwise(batch: Any) -> Any:
    """Equivariant: what a pixel gets depends on the pixel and the location."""
    score = 1 / (1 + np.exp(-batch["optical"].sum(axis=-1) - batch["location"].sum(axis=-1)[:, None, None]))
    return np.stack([1 - score, score], axis=-1).astype(np.float32)


def sloping(batch: Any) -> Any:
    """Not equivariant: rows and columns count differently."""
    rows, columns = np.mgrid[:PATCH, :PATCH]
    score = 1 / (1 + np.exp(-batch["optical"][..., 0] * (rows - 0.3 * columns)))
    return np.stack([1 - score, score], axis=-1).astype(np.float32)


def moves(x: Any, name: str) -> Any:
    """The symmetries by NumPy's own names for them, `(N, P, P, C)`."""
    turned = {"rot90": 1, "rot180": 2, "rot270": 3}
    if name in turned:
        return np.rot90(x, turned[name], axes=(1, 2))
    if name == "anti-transpose":
        return np.rot90(x, 2, axes=(1, 2)).swapaxes(1, 2)
    return {"flip-h": lambda: x[:, :, ::-1], "flip-v": lambda: x[:, ::-1], "transpose": lambda: x.swapaxes(1, 2)}[
        name
    ]()


BACK = {name: name for name in ALL} | {"rot90": "rot270", "rot270": "rot90"}


# Symmetries


def test_symmetries_of_an_equivariant_predictor_are_the_predictor() -> None:
    batch = batch_of(3)
    np.testing.assert_allclose(Symmetries(pointwise, ALL)(batch), pointwise(batch), atol=1e-6)


@pytest.mark.parametrize("names", [("flip-h",), ("rot90",), ("rot270", "transpose"), ALL])
def test_symmetries_are_the_mean_of_moved_predictions_moved_back(names: tuple[str, ...]) -> None:
    batch = batch_of(2)
    expected = [sloping(batch)]
    expected += [moves(sloping(batch | {"optical": moves(batch["optical"], name)}), BACK[name]) for name in names]
    np.testing.assert_allclose(Symmetries(sloping, names)(batch), np.mean(expected, axis=0), atol=1e-6)


def test_all_symmetries_make_any_predictor_equivariant() -> None:
    batch, predict = batch_of(1), Symmetries(sloping, ALL)
    for name in ALL:
        moved = batch | {"optical": moves(batch["optical"], name)}
        np.testing.assert_allclose(predict(moved), moves(predict(batch), name), atol=1e-6)


def downslope(elevation: Any) -> Any:
    """Sine and cosine of the aspect, clockwise from north, of `(N, P, P)`; rows go south, columns east."""
    south, east = np.gradient(elevation, axis=(1, 2))
    length = np.hypot(south, east)
    return np.stack([-east / length, south / length], axis=-1).astype(np.float32)


@pytest.mark.parametrize("name", ALL)
def test_directions_turn_with_the_terrain(name: str) -> None:
    elevation = np.random.default_rng(1).normal(size=(2, PATCH, PATCH))
    shift, scale = np.array([0.2, -0.1], np.float32), np.array([0.5, 2.0], np.float32)
    aspect = (downslope(elevation) - shift) / scale
    direction = Direction("dem", 0, 1, tuple(shift.tolist()), tuple(scale.tolist()))
    turned = direction.turn(moves(aspect, name), *SYMMETRIES[name])
    np.testing.assert_allclose(turned, (downslope(moves(elevation, name)) - shift) / scale, atol=1e-5)
    empty = np.zeros((1, PATCH, PATCH, 2), np.float32)
    np.testing.assert_array_equal(direction.turn(empty, *SYMMETRIES[name]), empty)


def test_directions_are_found_by_name_with_their_scaling() -> None:
    bands = {"optical": ["red"], "dem": ["aspect_cos", "elevation", "aspect_sin"]}
    statistics = Statistics(
        "standardise", {"optical": (0.0,), "dem": (1.0, 2.0, 3.0)}, {"optical": (1.0,), "dem": (4.0, 5.0, 6.0)}, "x"
    )
    assert directions(bands, statistics) == (Direction("dem", 2, 0, (3.0, 1.0), (6.0, 4.0)),)
    assert directions(bands, None) == (Direction("dem", 2, 0),)
    with pytest.raises(UserError, match="`dem` has no aspect_cos: leave --tta out"):
        directions({"dem": ["aspect_sin"]}, None)
    seen = []

    def predict(batch: Any) -> Any:
        seen.append(batch["dem"][0, 0, 0])
        return batch["dem"][..., :1]

    Symmetries(predict, ["flip-h"], directions({"dem": ["aspect_sin", "aspect_cos"]}, None))(
        {"dem": np.full((1, PATCH, PATCH, 2), [0.6, 0.8], np.float32)}
    )
    np.testing.assert_allclose(seen, [[0.6, 0.8], [-0.6, 0.8]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tta": ("flip",)}, "no symmetry flip; there are flip-h, flip-v"), ({"mc": -1}, "--mc takes .* received -1")],
)
def test_impossible_ways_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Way(**arguments)


# Dropout


def network(rate: float, outputs: int = 2, patch: int = PATCH, block: bool = True) -> keras.Model:
    """Convolution, batch normalisation with statistics of its own, dropout, in a model within the model."""
    keras.utils.set_random_seed(3)
    inner = keras.Input((patch, patch, 4))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, padding="same")(inner))
    x = keras.layers.SpatialDropout2D(rate)(x) if block else x
    body = keras.Model(inner, keras.layers.Dropout(rate)(keras.layers.Activation("relu")(x)))
    tensors = {name: keras.Input(shape, name=name) for name, shape in SHAPES.items()}
    if patch != PATCH:
        tensors["optical"] = keras.Input((patch, patch, 3), name="optical")
    spread = keras.layers.Reshape((1, 1, 2))(tensors["location"])
    mapped = keras.layers.Conv2D(4, 1)(tensors["optical"]) + keras.layers.Dense(4)(spread)
    activation = "sigmoid" if outputs == 1 else "softmax"
    model = keras.Model(tensors, {"output": keras.layers.Dense(outputs, activation=activation)(body(mapped))})
    for weight in model.weights:
        if "moving" in weight.path:
            weight.assign(weight + 0.5)
    return model


def run_of(model: keras.Model, name: str = "r", **changes: Any) -> Predictor:
    arguments = {"classes": TWO_CLASSES, "statistics": None, "patch_size": PATCH} | changes
    return Predictor(name, model, {"optical": 3}, **arguments)


def test_dropout_that_drops_nothing_is_the_model_in_inference() -> None:
    run, batch = run_of(network(1e-9)), batch_of(3)
    expected = run(batch)
    before = [np.asarray(weight).copy() for weight in run.model.weights if "moving" in weight.path]
    np.testing.assert_allclose(Dropout(run, 3)(batch), expected, atol=1e-6)
    after = [np.asarray(weight) for weight in run.model.weights if "moving" in weight.path]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_dropout_depends_on_the_seed_and_the_patch_alone() -> None:
    run, batch = run_of(network(0.5)), batch_of(5)
    whole = Dropout(run, 6)(batch)
    again = Dropout(run, 6)
    backwards = {name: x[::-1].copy() for name, x in batch.items()}
    np.testing.assert_array_equal(again(backwards)[::-1], whole)
    np.testing.assert_array_equal(again({name: x[2:3] for name, x in batch.items()})[0], whole[2])
    np.testing.assert_allclose(whole.sum(axis=-1), 1, atol=1e-6)
    assert np.abs(Dropout(run, 6, seed=1)(batch) - whole).max() > 0.01
    assert np.abs(run(batch) - whole).max() > 0.01
    twice = {name: np.concatenate([x[:1], x[:1]]) for name, x in batch.items()}
    first, second = again(twice)
    np.testing.assert_array_equal(first, second)


def test_passes_differ_and_their_number_is_that_asked_for() -> None:
    """5 passes come in batches of 3: the mean of 5 draws, not of 6."""
    run, batch = run_of(network(0.5)), batch_of(1)
    dropout = Dropout(run, 5)
    draws: list[Any] = []
    predict = dropout._model.predict_on_batch

    def noted(rows: Any) -> Any:
        draws.append(np.asarray(predict(rows)))
        return draws[-1]

    dropout._model.predict_on_batch = noted
    mean = dropout(batch)[0]
    drawn = np.concatenate(draws)
    assert drawn.shape[0] == 6 and len(np.unique(drawn.reshape(6, -1).round(6), axis=0)) == 6
    np.testing.assert_allclose(mean, drawn[:5].mean(axis=0), atol=1e-6)


def test_a_model_without_dropout_is_refused() -> None:
    with pytest.raises(UserError, match=r"'r' was built without: leave --mc out, or train with --set .*dropout=0\.1"):
        Dropout(run_of(network(0.0)), 2)


def test_dropout_is_the_same_promise_on_jax() -> None:
    code = """
import numpy as np
from tests.inference.test_confidence import batch_of, network, run_of
from inference.confidence import Dropout
run, batch = run_of(network(0.5)), batch_of(2)
moving = [weight for weight in run.model.weights if "moving" in weight.path]
before = [np.asarray(weight).copy() for weight in moving]
dropout = Dropout(run, 2)
whole = dropout(batch)
np.testing.assert_array_equal(dropout({name: x[1:] for name, x in batch.items()})[0], whole[1])
np.testing.assert_array_equal([np.asarray(weight) for weight in moving], before)
rows = {name: x[[0, 0]] for name, x in batch.items()}
assert np.abs(np.subtract(*dropout._model.predict_on_batch(rows))).max() > 0.01
"""
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiling takes longer than computing here
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Ensembles


def test_an_ensemble_of_one_is_its_member_and_of_several_their_mean() -> None:
    batch = batch_of(2)
    named = {f"0/{name}": x for name, x in batch.items()}
    np.testing.assert_array_equal(Ensemble([pointwise])(named), pointwise(batch))
    other = batch_of(2, seed=1)
    both = named | {f"1/{name}": x for name, x in other.items()}
    mean = (pointwise(batch) + sloping(other)) / 2
    np.testing.assert_allclose(Ensemble([pointwise, sloping])(both), mean, atol=1e-6)
    shared = Ensemble([pointwise, sloping], shared=[0, 0])(named)
    np.testing.assert_allclose(shared, (pointwise(batch) + sloping(batch)) / 2, atol=1e-6)
    one = Ensemble([lambda x: sloping(x)[..., 1:], pointwise], shared=[0, 0])(named)
    np.testing.assert_allclose(one, shared, atol=1e-6)


def test_runs_that_do_not_go_together_are_told_apart() -> None:
    model = network(0.0)
    three = tuple(ClassInfo(name, name != "a") for name in "abc")
    for other, message in (
        (run_of(model, "s", classes=three), "'r' predicts background, glacier, 's' a, b, c"),
        (run_of(model, "s", patch_size=16), "'r' takes patches of 8 pixels, 's' of 16"),
        (run_of(model), "-n names r more than once"),
    ):
        with pytest.raises(UserError, match=message):
            check_members([run_of(model), other])


def band_model(channels: int, band: int) -> keras.Model:
    """Probability of glacier: the sigmoid of one band."""
    optical = keras.Input((PATCH, PATCH, channels), name="optical")
    score = keras.layers.Lambda(lambda x: keras.ops.sigmoid(x[..., band : band + 1]))(optical)
    return keras.Model({"optical": optical}, {"output": keras.layers.Concatenate()([1 - score, score])})


def test_members_read_a_file_each_in_its_own_way(tmp_path: Path, write_tiles: WriteTiles) -> None:
    """Different bands, different scaling: averaged they are the mean of what each predicts alone."""
    source = TileFile(write_tiles(tmp_path / "t.hdf5"))
    names = source.bands["optical"]
    own = source.statistics
    assert own is not None
    doubled = Statistics("standardise", {"optical": (0.1,) * 6}, {"optical": (0.5,) * 6}, "elsewhere")
    whole = Predictor("whole", band_model(6, 2), {"optical": 6}, TWO_CLASSES, doubled, PATCH)
    chosen = Predictor(
        "chosen", band_model(2, 0), {"optical": 2}, TWO_CLASSES, doubled.take({"optical": [3, 1]}), PATCH,
        bands={"optical": (names[3], names[1])},
    )  # fmt: skip
    alone = []
    for run in (whole, chosen):
        predict_file(run, source, tmp_path / "p.hdf5")
        alone.append(PredictionFile(tmp_path / "p.hdf5").probs("t0"))
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    predict_file([whole, chosen], source, tmp_path / "p.hdf5", way=Way(("flip-v", "rot90")))
    result = PredictionFile(tmp_path / "p.hdf5")
    np.testing.assert_allclose(result.probs("t0"), (alone[0] + alone[1]) / 2, atol=1e-5)
    assert result.run == "whole+chosen" and result.attributes["tta"] == '["flip-v", "rot90"]'
    assert '"run": "chosen"' in result.attributes["members"] and not result.is_calibrated
