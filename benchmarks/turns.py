"""Processes that measure in turns: one computes while the others wait, so that all have the same machine."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from console import UserError, progress


@dataclass(frozen=True)
class Measured:
    """Seconds of each measured turn of a process, and its peak memory in bytes (nan: not known)."""

    seconds: tuple[float, ...]
    peak: float


def start(function: Callable[..., None], *arguments: Any) -> Connection:
    """Run `function(*arguments, connection)` in a process of its own; return the other end when it waits for a turn.

    Raises:
        UserError: It ended before.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=function, args=(*arguments, theirs), daemon=True).start()
    theirs.close()
    answer(ours)
    return ours


def repeat(work: Callable[[], object], turns: int, connection: Connection) -> None:
    """Do `work` whenever something arrives through `connection`, `turns` times, as `take_turns` expects it."""
    connection.send((math.nan, peak_memory()))
    for _ in range(turns):
        connection.recv()
        began = time.perf_counter()
        work()
        connection.send((time.perf_counter() - began, peak_memory()))


def take_turns(children: Sequence[Connection], turns: int) -> list[Measured]:
    """Let each of the children, which wait, take one turn after the other, `turns` times; the first is left out.

    Raises:
        UserError: One of them ended.
    """
    answers: list[list[tuple[float, float]]] = [[] for _ in children]
    order = [number for _ in range(turns) for number in range(len(children))]
    for number in progress(order, "turns", unit="turn"):
        children[number].send(None)
        answers[number].append(answer(children[number]))
    return [Measured(tuple(seconds for seconds, _ in those[1:]), those[-1][1]) for those in answers]


def answer(child: Connection) -> Any:
    """Return what `child` sends next. Raises `UserError` if it has ended."""
    try:
        return child.recv()
    except EOFError:
        raise UserError(
            "a process of the measurement ended too early (what it printed stands above); "
            "if memory was short, give a smaller --batch"
        ) from None


def peak_memory(status: Path = Path("/proc/self/status")) -> float:
    """Return the process's largest resident memory in bytes, nan where the system does not tell it in this way."""
    if not status.is_file():
        return math.nan
    return next(float(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
