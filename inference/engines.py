"""What runs a model in prediction: Keras itself, or an exported copy that is held against Keras before it is used.

On a CPU OpenVINO runs the same graph faster, and in bfloat16 where the processor computes in it. An export can be
silently wrong, so each is compared with Keras on windows of what is to be predicted, and left for Keras if they differ
by more than `TOLERANCES`.

An export is kept in `STEM.openvino/` beside the weights file, for the next prediction with the same weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from console import UserError, warn
from data.predictions import per_class
from data.windows import grid
from inference.sliding import Floats, Source, sample, stride_of

if TYPE_CHECKING:
    import keras

    from inference.confidence import Combination, Way
    from inference.predictor import Predictor

ENGINES = ("auto", "keras", "openvino")
FEW_PIXELS = 128 * 384**2  # in windows, below which an export takes longer than it saves
COMPARED = 4  # windows that an engine is compared with Keras on


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from Keras.

    `largest` and `mean`: difference of probabilities. `labels`: share of pixels that have the same label.
    """

    largest: float
    mean: float
    labels: float

    def allows(self, difference: Difference) -> bool:
        """Whether a difference is within it."""
        near = difference.largest <= self.largest and difference.mean <= self.mean
        return near and difference.labels >= self.labels


@dataclass(frozen=True)
class Difference:
    """How far an engine is from Keras on some windows; see `Tolerance`."""

    largest: float
    mean: float
    labels: float

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"probabilities differ by {self.largest:.1g} at most and {self.mean:.1g} on average, "
            f"{self.labels:.2%} of the labels agree"
        )


TOLERANCES = {
    # Sums in another order are 1e-6 to 1e-4 apart, more only where a network is far from any that was trained.
    "float32": Tolerance(largest=2e-3, mean=1e-4, labels=0.999),
    # 8 bits of mantissa: single pixels near a border of classes move far, the map as a whole does not.
    "bfloat16": Tolerance(largest=1.0, mean=1e-2, labels=0.995),
}
_ABANDONED_S = 3600
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Engine:
    """An engine as the command line names it, and the precision that it computes in; None: that of the processor."""

    name: str = "auto"
    precision: str | None = None

    def __post_init__(self) -> None:
        """Check that there is such an engine, and that it has the precision.

        Raises:
            UserError: If not.
        """
        if self.name not in ENGINES:
            raise UserError(f"--engine {self.name}: there are {', '.join(ENGINES)}")
        if self.name == "openvino":
            if self.precision == "float16":
                raise UserError("--engine openvino computes in float32 or bfloat16: --precision float16 is for Keras")
            if self.precision == "bfloat16" and not computes_in_bfloat16():
                raise UserError(
                    "--precision bfloat16: this processor does not compute in it, OpenVINO would in float32: leave "
                    "--precision out, or use --engine keras"
                )
            if not _installed():
                raise UserError("--engine openvino: OpenVINO is not installed; pip install openvino, or --engine keras")

    @property
    def of_keras(self) -> str:
        """The precision that the Keras model is to be built in: where it is exported, that of its weights."""
        if self.name == "keras" or (self.name == "auto" and self.precision in ("float16", "bfloat16")):
            return self.precision or "float32"
        return "float32"

    def candidates(self, pixels: int, dropout: bool) -> list[str]:
        """Return the precisions in which an export is tried, in this order; none: Keras is to predict.

        Args:
            pixels: How many the windows that there are to predict have.
            dropout: Whether dropout is left on, which exports do not have.

        Raises:
            UserError: If OpenVINO was asked for by name and can't do it.
        """
        if dropout and self.name == "openvino":
            raise UserError("--mc leaves dropout on, which an export does not have: leave --engine or --mc out")
        if self.name == "keras" or dropout:
            return []
        if self.name == "auto" and (pixels < FEW_PIXELS or self.of_keras != "float32" or not _suitable()):
            return []
        if self.precision:
            return [self.precision]
        return ["bfloat16", "float32"] if computes_in_bfloat16() and _bfloat16_is_faster() else ["float32"]


def choose_engines(
    members: Sequence[Predictor],
    model: Combination,
    sources: Sequence[Source],
    engine: Engine,
    *,
    way: Way,
    overlap: float,
    batch: int,
) -> list[Predictor]:
    """Return the runs, each with the engine that is to predict with it, after a comparison with Keras.

    Args:
        members: The runs.
        model: The same, put together for the tiles or the scene, by which windows are given to each.
        sources: What is to be predicted, or a part of it: some of its windows are compared on.
        engine: What was asked for.
        way: How each run predicts a patch.
        overlap: Share of a window that its neighbour has, too, 0 … 1 exclusive.
        batch: Windows predicted at once.

    Raises:
        UserError: If an engine that was asked for by name can't predict in this way, or `overlap` or `batch` is
            impossible.
    """
    patch = model.patch_size
    stride = stride_of(patch, overlap, batch)
    windows = sum(len(grid(source.height, source.width, patch, stride)) for source in sources)
    precisions = engine.candidates(windows * patch**2 * (len(way.tta) + 1), bool(way.mc))
    if not precisions:
        return list(members)
    found = sample(sources, patch, COMPARED)
    if found is None:  # there is nothing to predict either
        return list(members)
    batches = model.by_member(found)
    fastest = engine.name == "auto"
    return [_chosen(member, one, precisions, fastest) for member, one in zip(members, batches, strict=True)]


def _chosen(member: Predictor, batch: Mapping[str, Floats], precisions: Sequence[str], fastest: bool) -> Predictor:
    """Return a run with the first engine that is as right as Keras, and as fast if `fastest`; else Keras."""
    expected = member(batch)
    for precision in precisions:
        try:
            exported = _exported(member, precision)
            difference = compare(exported(batch), expected)
        # Whatever an export fails with, Keras still predicts; who uses it is told.
        except Exception as error:
            warn(f"{member.name} is predicted by Keras: OpenVINO does not take it ({_first_line(error)})")
            return member
        if TOLERANCES[precision].allows(difference):
            if fastest and (speed := exported.speed(member, batch)) < 1:
                print(f"{member.name}: Keras, as OpenVINO in {precision} is slower here ({speed:.2f} times its speed)")
                return member
            print(f"{member.name}: OpenVINO in {precision}; on {len(expected)} windows {difference} with Keras")
            return replace(member, engine=exported)
        warn(f"{member.name} is not predicted by OpenVINO in {precision}: on {len(expected)} windows {difference}")
    return member


def use(member: Predictor, described: str) -> Predictor:
    """Return a run with an engine that another process has chosen (`Predictor.engine_name`), without a comparison."""
    name, _, precision = described.partition(" ")
    return replace(member, engine=_exported(member, precision)) if name == "openvino" else member


def _exported(member: Predictor, precision: str) -> OpenVino:
    """Return a run's model in OpenVINO, that of the scene before if there was one."""
    if precision not in member.exports:
        member.exports[precision] = OpenVino(member, precision)
    return member.exports[precision]


def compare(probs: NDArray[np.floating], expected: NDArray[np.floating]) -> Difference:
    """Return how far probabilities `(…, K)` are from those expected; those that are not numbers are infinitely far."""
    apart = np.abs(probs - expected)
    apart = np.where(np.isfinite(apart), apart, np.inf)
    one, other = (per_class(np.asarray(values, np.float32)).argmax(axis=-1) for values in (probs, expected))
    return Difference(float(apart.max()), float(apart.mean()), float((one == other).mean()))


class OpenVino:
    """A run's model as OpenVINO runs it on the CPU; called like a `Predictor`.

    Args:
        member: The run; its model computes in float32.
        precision: What OpenVINO computes in, of `TOLERANCES`.
    """

    def __init__(self, member: Predictor, precision: str) -> None:
        import openvino

        self.name = f"openvino {precision}"
        self._core = openvino.Core()
        self._path = _export(member)
        if self._path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="openvino-")
            self._path = _write(member.model, Path(self._temporary.name))
        self._precision = precision
        self._shapes = {tensor.name: tuple(tensor.shape[1:]) for tensor in member.model.inputs}
        self._compiled: dict[int, Any] = {}

    def __call__(self, batch: Mapping[str, Floats]) -> Floats:
        """Return the probabilities `(N, P, P, K)` of a batch of patches by input."""
        count = len(next(iter(batch.values())))
        if count not in self._compiled:
            self._compiled[count] = self._compile(count)
        return np.asarray(self._compiled[count](dict(batch))[0], np.float32)

    def speed(self, member: Predictor, batch: Mapping[str, Floats]) -> float:
        """Return its speed on a batch that both have predicted before, Keras = 1.

        It is measured once for an export and kept beside it, so that the engine is the same one the next time, as an
        interrupted prediction needs it to go on.
        """
        assert self._path is not None
        kept = self._path.with_name(f"speed-{self._precision}.json")
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return float(json.loads(kept.read_text(encoding="utf-8"))["keras_is_1"])
        calls: tuple[Callable[[Mapping[str, Floats]], Floats], ...] = (member, self)
        seconds = [min(_seconds(call, batch) for _ in range(2)) for call in calls]
        speed = seconds[0] / seconds[1]
        with contextlib.suppress(OSError):
            kept.write_text(json.dumps({"keras_is_1": speed}), encoding="utf-8")
        return speed

    def _compile(self, count: int) -> Any:
        # A graph of known shapes, the number of windows included, is laid out once and not at each call.
        model = self._core.read_model(self._path)
        model.reshape({name: [count, *shape] for name, shape in self._shapes.items()})
        settings = {"INFERENCE_PRECISION_HINT": _HINTS[self._precision], "PERFORMANCE_HINT": "LATENCY"}
        return self._core.compile_model(model, "CPU", settings)


def _seconds(call: Callable[[Mapping[str, Floats]], Floats], batch: Mapping[str, Floats]) -> float:
    began = time.perf_counter()
    call(batch)
    return time.perf_counter() - began


def computes_in_bfloat16() -> bool:
    """Whether OpenVINO is installed and this processor computes in bfloat16."""
    if not _installed():
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _bfloat16_is_faster() -> bool:
    from training.precision import bfloat16_speed  # imports Keras

    return bfloat16_speed() > 1


def _installed() -> bool:
    import importlib.util

    return importlib.util.find_spec("openvino") is not None


def _suitable() -> bool:
    """Whether OpenVINO is installed, takes what Keras exports, and Keras has no accelerator, which would be faster."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return False
    return _installed() and not keras.distribution.list_devices("gpu") and not keras.distribution.list_devices("tpu")


def _export(member: Predictor) -> Path | None:
    """Return the exported graph of a run: a former one of the same weights, or write it.

    None: the folder of the weights can't be written to.
    """
    import keras
    import openvino

    weights = Path(member.described["weights"])
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    config = json.dumps(member.model.get_config(), default=str, sort_keys=True)
    about = {
        "weights": digest,
        "graph": hashlib.sha256(config.encode()).hexdigest(),
        "versions": [keras.version(), keras.backend.backend(), openvino.__version__],
    }
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    folder = weights.parent / f"{weights.name.removesuffix('.h5').removesuffix('.weights')}.openvino"
    path = folder / key / "model.xml"
    if path.is_file():
        return path
    try:
        folder.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    except OSError:
        return None
    try:
        _write(member.model, temporary)
        for former in folder.iterdir():  # but what another process may be writing
            if not former.name.startswith(".") or time.time() - former.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(former, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was faster
            temporary.rename(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _write(model: keras.Model, folder: Path) -> Path:
    """Export a model's `output` into a folder; return the file of its graph."""
    import keras

    inputs = {tensor.name: tensor for tensor in model.inputs}
    single = keras.Model(inputs, model.output["output"])
    path = folder / "model.xml"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), _without_telemetry():
        single.export(str(path), format="openvino", verbose=False)
    return path


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep OpenVINO's converter from reporting its use over the network: on build servers it does not."""
    former = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if former is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = former


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
