"""Strips of scenes predicted by the workers of a Dask cluster: of this machine, or of one that the user has started.

A strip is the unit of work, see `inference.scenes`: a worker rebuilds the model once from what the runs have stored,
predicts a strip in the same batches as one process does, and writes it into the scene's working folder, which all
machines share. Only what says what to do travels, never weights or pixels. What is in the working folder is finished,
whichever worker is lost then; the rasters are put together here, as after a prediction in one process.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import platform
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import UserError, import_keras, progress, warn
from inference.confidence import Combination, Way, weights_digests
from inference.engines import use
from inference.mapping import Finish, MapPlan
from inference.predictor import find_run, from_run, from_weights
from inference.scenes import (
    SceneOffer,
    ScenePrediction,
    StripSettings,
    finish_scene,
    is_finished,
    plan_digest,
    predict_strip,
)
from inference.sliding import Piece

if TYPE_CHECKING:
    from distributed import Client, Future

    from inference.predictor import Predictor

RETRIES = 2
"""How often a strip is tried again after an error that is not the user's; Dask counts lost workers apart from them."""

ROOT = Path(__file__).resolve().parent.parent
CONNECT_S = 10
PATIENCE_S = 10.0  # how long a shared file system may take to show a new folder to another machine
_LOOK_S = 30  # how often it is looked whether there are workers
_ADDRESS = re.compile(r"(tcp|tls|ws|wss)://.+:\d+")


@dataclass(frozen=True)
class Models:
    """Which runs predict, as the command line names them; what a worker rebuilds them from.

    `names`: runs; with `weights`, a file of the architecture of `recipe`, the name of the predictions.
    """

    names: tuple[str, ...]
    recipe: str = ""
    weights: Path | None = None
    precision: str = "float32"

    def load(self, offered: SceneOffer) -> list[Predictor]:
        """Return the models, ready to predict a scene.

        Raises:
            UserError: If a run or a file is missing, or does not suit the scene.
        """
        if self.weights:
            return [from_weights(self.recipe, self.weights, offered, self.names[0], self.precision)]
        return [from_run(find_run(name), self.precision) for name in self.names]


@dataclass(frozen=True)
class Task:
    """All that a worker needs to predict a strip.

    `folder`: the current directory of who asks, which paths are relative to. `digests`: SHA-256 of the weights by run.
    `engines`: what predicts, run by run (`Predictor.engine_name`). `plan`: what the working folder `work` is known by.
    `patience_s`: how long a file system may take to show it.
    """

    folder: Path
    backend: str
    models: Models
    digests: Mapping[str, str]
    engines: tuple[str, ...]
    offered: SceneOffer
    way: Way
    finish: Finish
    settings: StripSettings
    work: Path
    plan: str
    piece: Piece
    number: int
    patience_s: float


# -- where it is asked for -----------------------------------------------------------------------------------


@contextmanager
def connect(scheduler: str, workers: int | None = None) -> Iterator[Client]:
    """Yield a client of the cluster of a scheduler, or of `local` workers that end with it.

    Local workers have the threads that this process has: sums depend on their number in the last digits, and with as
    many the result is the same bytes. Each predicts one strip at a time.

    Args:
        scheduler: `local`, or the address of a scheduler, such as tcp://node1:8786.
        workers: Number of local workers; None: 2.

    Raises:
        UserError: If the address is none or nobody answers there, or the number of workers is impossible.
    """
    if scheduler != "local":
        if not _ADDRESS.fullmatch(scheduler):
            raise UserError(f"--scheduler is local or an address such as tcp://node1:8786, received {scheduler!r}")
        if workers is not None:
            raise UserError("--workers is for --scheduler local: a cluster of yours has the workers that you gave it")
    elif workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, received {workers}")
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what a user can mend is said here, in one message
    if scheduler == "local":
        # Dask would restrict libraries to one thread, and end workers that take more than their share of memory.
        environment = {"distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": 65536}}
        with (
            dask.config.set(environment),
            LocalCluster(
                n_workers=workers or 2,
                threads_per_worker=1,
                processes=True,
                memory_limit=None,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}): start one with `dask scheduler`, "
            "and give the address that it prints"
        ) from None
    with client:
        yield client


def predict_scenes(
    client: Client, plans: Sequence[MapPlan], models: Models
) -> Iterator[tuple[MapPlan, ScenePrediction]]:
    """Predict scenes on the workers of a cluster and yield each when its rasters are there, whichever is first.

    Strips that are finished already are not predicted again. A strip whose worker is lost, or that fails for no reason
    of the user's, is given to another.

    Args:
        client: Of `connect`.
        plans: The scenes.
        models: What predicts them.

    Raises:
        UserError: If a worker does not see the files, has other weights or none of the libraries; for what is wrong
            with a scene; or if workers are lost with the same strip again and again, or the scheduler is.
    """
    import keras

    folder, backend, run = Path.cwd(), keras.backend.backend(), uuid.uuid4().hex[:8]
    began = time.perf_counter()
    missing = [planned.strips.missing() for planned in plans]
    windows = sum(
        planned.strips.windows(number) for planned, numbers in zip(plans, missing, strict=True) for number in numbers
    )
    left = [len(numbers) for numbers in missing]
    where: dict[str, tuple[int, int]] = {}
    futures: list[Future] = []
    ended: queue.Queue[Future] = queue.Queue()
    strip = _travelling()
    bar = progress(range(windows), "predict", total=windows, unit="window")
    try:
        for index, (planned, numbers) in enumerate(zip(plans, missing, strict=True)):
            strips = planned.strips
            work = folder / strips.work
            for number in numbers:
                task = Task(
                    folder, backend, models, planned.facts["weights"], tuple(planned.facts["engine"]), planned.offered,
                    planned.way, planned.finish, strips.settings, work, plan_digest(work), strips.parts[number], number,
                    PATIENCE_S,
                )  # fmt: skip
                key = f"strip-{run}-{index}-{number}"
                where[key] = index, number
                future = client.submit(strip, str(ROOT), pickle.dumps(task), key=key, pure=False, retries=RETRIES)
                futures.append(future)
                future.add_done_callback(ended.put)
        for index, planned in enumerate(plans):
            if not left[index]:
                yield planned, finish_scene(planned.strips, (), began)
        for _ in range(len(futures)):
            future = _next(client, ended)
            index, number = where[str(future.key)]
            _check(future, f"scene {plans[index].offered.scene.name}, strip {number}")
            bar.update(plans[index].strips.windows(number))
            left[index] -= 1
            if not left[index]:
                yield plans[index], finish_scene(plans[index].strips, missing[index], began)
    finally:
        bar.close()
        if any(not future.done() for future in futures) and client.status == "running":
            client.cancel(futures)


def _next(client: Client, ended: queue.Queue[Future]) -> Future:
    """Wait for the next strip; say so if there is nobody to predict it."""
    told = False
    while True:
        try:
            return ended.get(timeout=_LOOK_S)
        except queue.Empty:
            if not told and client.status == "running" and not client.nthreads():
                warn(f"{client.scheduler_info()['address']} has no workers: waiting for them")
                told = True


def _check(future: Future, what: str) -> None:
    """Raise what a strip has failed with."""
    from distributed import KilledWorker

    if future.status == "error":
        error = future.exception()
        if isinstance(error, KilledWorker):
            raise UserError(
                f"{what}: worker after worker was lost while predicting it, as they are when memory does not suffice: "
                "give workers more of it, or predict fewer windows at once with --batch-size. Finished strips are "
                "kept, the same command goes on with the others"
            )
        raise error
    if future.status != "finished":
        raise UserError(
            f"{what}: {future.status}, the scheduler was lost or restarted. Finished strips are kept, the same command "
            "goes on with the others"
        )
    if message := future.result():
        raise UserError(message)


def _travelling() -> Callable[[str, bytes], str]:
    """Return what workers are called with.

    A nested function travels as code, and the task as bytes that are opened last: workers need not have been started
    where this repository is found.
    """

    def strip(root: str, task: bytes) -> str:
        import platform
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        try:
            from inference import distribution
        except ImportError as error:
            return (
                f"a worker on {platform.node()} can't import what it needs ({error}): start workers with this "
                f"environment and where {root} is seen; its Python is {sys.executable}"
            )
        return distribution.predict_task(task)

    return strip


# -- in a worker ---------------------------------------------------------------------------------------------

_one = threading.Lock()  # a strip at a time, whatever the threads: a model takes all processors
_members: tuple[Any, list[Predictor]] | None = None
_model: tuple[Any, Combination] | None = None


def predict_task(pickled: bytes) -> str:
    """Predict the strip of a pickled `Task` in this worker; return what the user can mend, empty if all went well."""
    task: Task = pickle.loads(pickled)
    with _one:
        try:
            _predict(task)
        except UserError as error:
            return str(error)
        except ImportError as error:
            return f"a worker on {platform.node()} can't import what it needs ({error}): its Python is {sys.executable}"
    return ""


def _predict(task: Task) -> None:
    until = time.monotonic() + task.patience_s
    while plan_digest(task.work) != task.plan or not task.folder.is_dir():
        if time.monotonic() > until:
            raise UserError(
                f"a worker on {platform.node()} does not see {task.work}: workers need the folder {task.folder} under "
                "the same name, on a file system that all machines share, and may write there"
            )
        time.sleep(0.5)
    if is_finished(task.work, task.number):
        return
    with contextlib.chdir(task.folder):
        model = _load(task)
        predict_strip(model, task.piece, task.work, task.number, task.settings, task.finish)


def _load(task: Task) -> Combination:
    """Return the model of a task: that of the strip before, if it is the same."""
    global _members, _model
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = task.backend
    import_keras()
    import keras

    if keras.backend.backend() != task.backend:
        raise UserError(
            f"a worker on {platform.node()} runs Keras on {keras.backend.backend()}, expected {task.backend}: start "
            f"workers with KERAS_BACKEND={task.backend}"
        )
    runs = (task.models, task.digests, task.folder, task.offered if task.models.weights else None)
    key = (runs, task.engines, task.offered, task.way)
    if _model is None or _model[0] != key:
        with contextlib.redirect_stderr(io.StringIO()):  # who asks has been warned
            if _members is None or _members[0] != runs:
                members = task.models.load(task.offered)
                if weights_digests(members) != dict(task.digests):
                    raise UserError(
                        f"a worker on {platform.node()} finds other weights of {', '.join(task.models.names)} in "
                        f"{task.folder}: all machines need the same files"
                    )
                _members = runs, members
            members = [use(member, engine) for member, engine in zip(_members[1], task.engines, strict=True)]
            _model = key, Combination(members, task.offered, task.way)
    return _model[1]
