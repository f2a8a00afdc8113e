"""Several predictions of a patch averaged: of its symmetries, with dropout left on, of several runs.

Each class here is called like a model, with a batch by input, and returns probabilities `(N, P, P, K)`: the mean over
what it wraps, summed into one buffer. So they stack, and go through the sliding window as a model does; `Combination`
puts runs together for the tiles of a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from console import UserError
from data.normalisation import Statistics
from data.predictions import per_class
from data.tiles import TileInfo
from inference.predictor import InputSet
from inference.sliding import Floats, Predict

if TYPE_CHECKING:
    import keras

    from inference.predictor import Offer, Predictor

SYMMETRIES: dict[str, tuple[bool, bool, bool]] = {
    "flip-h": (False, False, True),
    "flip-v": (False, True, False),
    "rot180": (False, True, True),
    "transpose": (True, False, False),
    "rot90": (True, True, False),
    "rot270": (True, False, True),
    "anti-transpose": (True, True, True),
}
"""The symmetries of a square beside the identity: whether rows and columns are exchanged, and after that the order of
the rows and that of the columns turned round. `rot90` is counter-clockwise, as in `np.rot90`."""

_ROWS = 4  # patches that a model with dropout sees at once: the samples of one patch


@dataclass(frozen=True)
class Way:
    """How often a patch is predicted; what a calibration is fitted for.

    Attributes:
        tta: Symmetries beside the identity, in the order of `SYMMETRIES`.
        mc: Passes with dropout left on; 0: one pass without.
        seed: Seed of the dropout.
    """

    tta: tuple[str, ...] = ()
    mc: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers and put the names into their order.

        Raises:
            UserError: If a symmetry is unknown or a number impossible.
        """
        if unknown := [name for name in self.tta if name not in SYMMETRIES]:
            raise UserError(
                f"--tta: no symmetry {', '.join(unknown)}; there are {', '.join(SYMMETRIES)}, and without a name all"
            )
        if self.mc < 0:
            raise UserError(f"--mc takes a number of passes from 1, received {self.mc}")
        object.__setattr__(self, "tta", tuple(name for name in SYMMETRIES if name in self.tta))

    def __str__(self) -> str:
        """Return the way in words, empty for the plain one."""
        count = len(self.tta) + 1
        parts = [f"{count} symmetries"] if self.tta else []
        return ", ".join(parts + ([f"{self.mc} passes with dropout"] if self.mc else []))

    def apply(self, predictor: Predictor, directions: Sequence[Direction] = ()) -> Predict:
        """Return `predictor` as it is called in this way.

        Raises:
            UserError: If there is to be dropout and the model has none.
        """
        predict: Predict = Dropout(predictor, self.mc, self.seed) if self.mc else predictor
        return Symmetries(predict, self.tta, directions) if self.tta else predict


@dataclass(frozen=True)
class Direction:
    """Two bands of an input that point somewhere on the map: sine and cosine of an angle clockwise from north.

    Their values are (x - shift) / scale, of (sine, cosine); a pixel where both are 0 has no value.
    """

    name: str
    sine: int
    cosine: int
    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    def turn(self, values: Floats, transposed: bool, rows: bool, columns: bool) -> Floats:
        """Return `(N, P, P, C)`, moved by a symmetry already, with the vectors turned as well, on a north-up grid."""
        shift, scale = np.array(self.shift, np.float32), np.array(self.scale, np.float32)
        scaled = values[..., [self.sine, self.cosine]]
        sine, cosine = (scaled * scale + shift).transpose(3, 0, 1, 2)
        if transposed:  # east becomes south, south east
            sine, cosine = -cosine, -sine
        turned = np.stack([-sine if columns else sine, -cosine if rows else cosine], axis=-1)
        turned = (turned - shift) / scale
        values = values.copy()
        values[..., [self.sine, self.cosine]] = np.where((scaled == 0).all(axis=-1, keepdims=True), 0, turned)
        return values


def directions(bands: Mapping[str, Sequence[str]], statistics: Statistics | None) -> tuple[Direction, ...]:
    """Return the directions among `bands` (modality → names): `…_sin` with the `…_cos` of the same name.

    Args:
        bands: Of the inputs, in the order of their channels.
        statistics: What the inputs are scaled with; None: not at all.

    Raises:
        UserError: If one of such a pair is missing: it can't be turned alone.
    """
    found = []
    for modality, names in bands.items():
        for stem in dict.fromkeys(name[:-4] for name in names if name.endswith(("_sin", "_cos"))):
            pair = [f"{stem}_sin", f"{stem}_cos"]
            if missing := [name for name in pair if name not in names]:
                raise UserError(
                    f"--tta turns directions with the patch, for which it needs {' and '.join(pair)}; `{modality}` has "
                    f"no {missing[0]}: leave --tta out"
                )
            sine, cosine = (list(names).index(name) for name in pair)
            if statistics is None:
                found.append(Direction(modality, sine, cosine))
            else:
                shift, scale = statistics.shift[modality], statistics.scale[modality]
                found.append(
                    Direction(modality, sine, cosine, (shift[sine], shift[cosine]), (scale[sine], scale[cosine]))
                )
    return tuple(found)


class Symmetries:
    """The mean over symmetries of the patch (test-time augmentation): moved, predicted, and moved back.

    Inputs that are vectors `(N, L)`, such as a location, stay as they are.

    Args:
        predict: What predicts a batch.
        names: Of `SYMMETRIES`; the identity is always among what is averaged.
        directions: Bands that are turned with the patch.
    """

    def __init__(self, predict: Predict, names: Sequence[str], directions: Sequence[Direction] = ()) -> None:
        self._predict, self._directions = predict, tuple(directions)
        self._moves = [SYMMETRIES[name] for name in names]

    def __call__(self, batch: Mapping[str, Floats]) -> Floats:
        """Return the probabilities `(N, P, P, K)` of a batch of square patches."""
        total = np.array(self._predict(dict(batch)), np.float32)
        for move in self._moves:
            moved = {name: _move(x, *move) if x.ndim == 4 else x for name, x in batch.items()}
            for direction in self._directions:
                moved[direction.name] = direction.turn(moved[direction.name], *move)
            total += _move_back(np.asarray(self._predict(moved), np.float32), *move)
        total /= len(self._moves) + 1
        return total


def _move(x: Floats, transposed: bool, rows: bool, columns: bool) -> Floats:
    if transposed:
        x = x.swapaxes(1, 2)
    return np.ascontiguousarray(x[:, :: -1 if rows else 1, :: -1 if columns else 1])


def _move_back(x: Floats, transposed: bool, rows: bool, columns: bool) -> Floats:
    x = x[:, :: -1 if rows else 1, :: -1 if columns else 1]
    return x.swapaxes(1, 2) if transposed else x


class Dropout:
    """The mean over passes with dropout left on, batch normalisation as in inference.

    Gal and Ghahramani 2016, "Dropout as a Bayesian Approximation" (arXiv:1506.02142): a pass is a draw of the network.
    The draws are the same for every patch, as if so many networks were applied to the whole map: the rows of a batch
    are the passes of one patch, and the seeds of all dropout are set before each. So the result depends on neither the
    other patches of a batch nor its size; it does on the backend, whose random numbers are its own. Stochastic depth
    counts as dropout.

    Args:
        predictor: The run; its batch normalisation stays in inference mode from then on.
        samples: Passes, at least 1.
        seed: Which draws.

    Raises:
        UserError: If the model has no dropout.
    """

    def __init__(self, predictor: Predictor, samples: int, seed: int = 0) -> None:
        import keras

        layers = list(predictor.model._flatten_layers())
        self._generators = [
            layer.seed_generator for layer in layers if getattr(layer, "rate", 1) and hasattr(layer, "seed_generator")
        ]
        if not self._generators:
            raise UserError(
                f"--mc leaves dropout on, and {predictor.name!r} was built without: leave --mc out, or train with "
                "--set architecture.options.dropout=0.1"
            )
        for layer in layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False  # by which `training=True` leaves its statistics alone
        self._model = _in_training_mode(predictor.model)
        self._samples = samples
        passes = -(-samples // _ROWS)
        self._rows = -(-samples // passes)
        random = np.random.default_rng(seed)
        self._seeds = random.integers(2**31, size=(passes, len(self._generators)), dtype=np.int64)

    def __call__(self, batch: Mapping[str, Floats]) -> Floats:
        """Return the probabilities `(N, P, P, K)` of a batch of patches."""
        count = len(next(iter(batch.values())))
        return np.stack([self._mean({name: x[row] for name, x in batch.items()}) for row in range(count)])

    def _mean(self, patch: Mapping[str, Floats]) -> Floats:
        rows = {name: np.repeat(x[None], self._rows, axis=0) for name, x in patch.items()}
        total = np.float32(0)
        for number, seeds in enumerate(self._seeds):
            for generator, seed in zip(self._generators, seeds, strict=True):
                generator.state.assign(np.array([seed, 0]))
            left = self._samples - number * self._rows
            total = total + np.asarray(self._model.predict_on_batch(rows), np.float32)[:left].sum(axis=0)
        return np.asarray(total / np.float32(self._samples))


def _in_training_mode(model: keras.Model) -> keras.Model:
    """Return a model of the same inputs whose output is that of `model` in training, on every backend."""
    import keras

    class TrainingMode(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def call(self, inputs: Any) -> Any:
            return self.model(inputs, training=True)["output"]

    inputs = {tensor.name: keras.Input(tensor.shape[1:], name=tensor.name) for tensor in model.inputs}
    stochastic = keras.Model(inputs, TrainingMode()(inputs))
    stochastic.jit_compile = model.jit_compile
    return stochastic


class Ensemble:
    """The mean over several predictors, each with inputs of its own.

    Args:
        predicts: What predicts a batch, each. One probability and two of the same two classes go together.
        shared: Of each, whose inputs it reads: `NUMBER/NAME` of the batch; by default its own.
    """

    def __init__(self, predicts: Sequence[Predict], shared: Sequence[int] | None = None) -> None:
        self._predicts = list(predicts)
        self._shared = list(range(len(predicts)) if shared is None else shared)

    def __call__(self, batch: Mapping[str, Floats]) -> Floats:
        """Return the probabilities `(N, P, P, K)` of a batch, as many as the predictor with most has."""
        total: Floats | None = None
        for predict, number in zip(self._predicts, self._shared, strict=True):
            probs = np.asarray(predict(_own(batch, number)), np.float32)
            if total is None:
                total = np.array(probs)
                continue
            if total.shape[-1] != probs.shape[-1]:
                total, probs = per_class(total), per_class(probs)
            total += probs
        assert total is not None
        total /= len(self._predicts)
        return total


def _own(batch: Mapping[str, Floats], number: int) -> dict[str, Floats]:
    """Return what the batch of an ensemble holds for the runs that read as number `number` does."""
    prefix = f"{number}/"
    return {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}


class Combination:
    """One run, or several as an ensemble, as they predict the tiles of one file.

    Args:
        members: The runs.
        source: The tiles, `check_tiles` has been asked before; or a scene.
        way: How each run predicts a patch.

    Attributes:
        patch_size: Side of a patch in pixels.
        num_outputs: Number K of probabilities of a pixel.
        statistics: What the values are scaled with, run by run.

    Raises:
        UserError: If runs do not go together, the values are scaled in a way that does not suit one, or a model can't
            be predicted with in this `way`.
    """

    def __init__(self, members: Sequence[Predictor], source: Offer, way: Way) -> None:
        check_members(members)
        self._members = list(members)
        self._sources: list[Any] = [source.choose(member.bands) for member in members]
        self.statistics = [member.scaling(chosen) for member, chosen in zip(members, self._sources, strict=True)]
        self.patch_size = members[0].patch_size
        self.num_outputs = max(member.num_outputs for member in members)
        predicts, read = [], []
        for member, chosen, statistics in zip(members, self._sources, self.statistics, strict=True):
            bands = {name: chosen.bands[name] for name in member.modalities}
            predicts.append(way.apply(member, directions(bands, statistics) if way.tta else ()))
            read.append((bands, statistics, member.location))
        self._shared = [read.index(one) for one in read]
        self._read = read
        self._predict = predicts[0] if len(members) == 1 else Ensemble(predicts, self._shared)

    def __call__(self, batch: Mapping[str, Floats]) -> NDArray[np.floating]:
        """Return the probabilities `(N, P, P, K)` of a batch of patches."""
        return self._predict(dict(batch))

    def by_member(self, batch: Mapping[str, Floats]) -> list[dict[str, Floats]]:
        """Return what each run is given of a batch."""
        return [dict(batch)] if len(self._members) == 1 else [_own(batch, number) for number in self._shared]

    def inputs(self, info: TileInfo) -> dict[str, Floats]:
        """Read a tile; return scaled `(H, W, C)` and vectors `(L,)`, what runs read alike once."""
        read = {
            number: self._members[number].inputs(self._sources[number], info, self.statistics[number])
            for number in sorted(set(self._shared))
        }
        if len(self._members) == 1:
            return read[0]
        return {f"{number}/{name}": x for number, inputs in read.items() for name, x in inputs.items()}

    def input_sets(self) -> tuple[InputSet, ...]:
        """Return what the runs read of a scene, what they read alike once."""
        sets = []
        for number in sorted(set(self._shared)):
            bands, statistics, location = self._read[number]
            prefix = "" if len(self._members) == 1 else f"{number}/"
            named = {modality: tuple(names) for modality, names in bands.items()}
            sets.append(InputSet(prefix, named, statistics, location))
        return tuple(sets)


def check_members(members: Sequence[Predictor]) -> None:
    """Raise `UserError` if the maps of these runs can't be averaged: other classes, or patches of another size."""
    first = members[0]
    for member in members[1:]:
        if [(one.name, one.glacier) for one in member.classes] != [(one.name, one.glacier) for one in first.classes]:
            theirs, ours = (", ".join(one.name for one in run.classes) for run in (member, first))
            raise UserError(
                f"runs of an ensemble predict the same classes; {first.name!r} predicts {ours}, {member.name!r} "
                f"{theirs}: predict with each on its own"
            )
        if member.patch_size != first.patch_size:
            raise UserError(
                f"runs of an ensemble share their windows; {first.name!r} takes patches of {first.patch_size} pixels, "
                f"{member.name!r} of {member.patch_size}: predict with each on its own"
            )
    names = [member.name for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"-n names {', '.join(twice)} more than once: name each run of an ensemble once")


def weights_digests(members: Sequence[Predictor]) -> dict[str, str]:
    """Return the SHA-256 of each run's weights file, by name."""
    digests = {}
    for member in members:
        with Path(member.described["weights"]).open("rb") as stream:
            digests[member.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests
