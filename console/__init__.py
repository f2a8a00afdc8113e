"""What every script shares: messages instead of tracebacks, progress, files that are whole or absent."""

from __future__ import annotations

import errno
import importlib
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full: free some space, or write to another disk",
    errno.EFBIG: "the file would be larger than the file system or `ulimit -f` allows: write to another disk",
    errno.EDQUOT: "your disk quota is used up: free some space, or write to another disk",
    errno.EACCES: "permission denied: choose a folder that you may write to",
    errno.EPERM: "permission denied: choose a folder that you may write to",
    errno.ENOTDIR: "a file is where a folder is needed: move it away, or write elsewhere",
    errno.EEXIST: "a file is where a folder is needed: move it away, or write elsewhere",
    errno.EROFS: "the file system is read-only: choose a folder that you may write to",
}


class UserError(Exception):
    """Something that the user can mend; the message says what, received, expected and what to do."""


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a script's `main` with the command line's arguments and exit as DESIGN promises.

    Exits with 0 when `main` returns, 2 with one message for what the user can mend (`UserError`, a full disk,
    missing permission), 130 after Ctrl-C, 141 where who reads the output has gone (`| head`). Any other exception is a
    programming error and keeps its traceback.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        sys.exit(141)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        code = error.errno if error.errno in _WRITE_ERRORS else _errno_in(str(error))
        if code not in _WRITE_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{_WRITE_ERRORS[code]}. Nothing half-written is left behind.")
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C; nothing half-written is left behind", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _nobody_reads() -> bool:
    """Whether standard output leads nowhere; what is left of it is dropped then, so that exiting raises no more."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), output)
    return True


def _errno_in(message: str) -> int | None:
    """HDF5 passes the system's error on as text (`errno = 28`), not as `OSError.errno`."""
    return next((code for code in _WRITE_ERRORS if f"errno = {code}," in message), None)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def warn(message: str) -> None:
    """Print a warning to the user on standard error."""
    print(f"warning: {message}", file=sys.stderr)


def import_keras() -> None:
    """Import Keras and its backend, without the start-up lines that TensorFlow's libraries print.

    They go to the process's standard error before any setting could silence them, and would stand in front of every
    message to the user. Python's own warnings and errors are raised as ever.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        importlib.import_module("keras")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "it") -> tqdm[Item]:
    """Iterate with a progress bar and the time left; where no terminal shows it, a line every 30 s instead."""
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=description,
        total=total,
        unit=unit,
        file=sys.stderr,
        leave=False,
        dynamic_ncols=terminal,
        ascii=None if terminal else True,
        mininterval=0.2 if terminal else 30.0,
        delay=0.0 if terminal else 30.0,
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that takes its place on success and is removed on any error.

    A reader of `path` therefore sees the former file or the whole of the next one, never a part.
    The temporary name keeps the ending of `path`: libraries choose a format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{time.monotonic_ns()}.{path.name}")  # `remove_leftovers` knows it
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(*paths: Path) -> None:
    """Delete the temporary siblings of `paths` that processes left which were killed while they were writing."""
    for path in paths:
        name = re.compile(rf"\.\d+-\d+\.{re.escape(path.name)}")
        for sibling in path.parent.glob(".*"):
            if name.fullmatch(sibling.name):
                sibling.unlink(missing_ok=True)
