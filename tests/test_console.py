"""What scripts share: exit codes, messages, files that are whole or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

import console
from console import UserError, progress, replacing, run, warn

ROOT = Path(__file__).resolve().parent.parent


def code_of(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Run a script that ends with `error` and return its exit code."""

    def main(arguments: list[str]) -> None:
        assert arguments == ["-m", "glavitu"]
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "glavitu"])
    with pytest.raises(SystemExit) as raised:
        run(main)
    return raised.value.code


def test_a_script_that_is_done_exits_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(None, monkeypatch) == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("a.hdf5: no such tile file"), "a.hdf5: no such tile file"),
        (OSError(errno.ENOSPC, "No space left", "weights/x"), "weights/x: the disk is full: free some space"),
        (OSError(errno.ENOSPC, "No space left"), "the disk is full: free some space"),
        (OSError(errno.EDQUOT, "Quota"), "quota"),
        (OSError(errno.EFBIG, "File too large"), "larger than"),
        (PermissionError(errno.EACCES, "Permission denied", "weights"), "weights: permission denied"),
        (OSError(errno.EROFS, "Read-only", "logs"), "logs: the file system is read-only"),
        (OSError("Can't write (file write failed: errno = 28, error message = 'No space')"), "the disk is full"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_2(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(error, monkeypatch) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and message in output.err and output.err.count("\n") == 1
    assert not output.out and "Traceback" not in output.err


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_nobody_reads_ends_a_script_without_a_traceback(lines: int) -> None:
    script = f"import console; console.run(lambda _: print({lines} * 'a line\\n'))"
    gone, output = os.pipe()
    os.close(gone)
    with os.fdopen(output, "w") as stdout:
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(KeyboardInterrupt(), monkeypatch) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


def test_an_exit_code_of_the_script_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(SystemExit(130), monkeypatch) == 130


@pytest.mark.parametrize("error", [ValueError("a mistake of ours"), OSError(errno.ECONNRESET, "Reset"), KeyError("x")])
def test_mistakes_of_ours_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def main(_: list[str]) -> None:
        raise error

    with pytest.raises(type(error)):
        run(main)


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    warn("look here")
    assert capsys.readouterr() == ("", "warning: look here\n")


# Files


def write_text(path: Path) -> None:
    path.write_text("whole")


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2]


@pytest.mark.parametrize(("name", "write"), [("a.json", write_text), ("a.weights.h5", write_hdf5)])
def test_a_file_appears_when_it_is_whole(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    path = tmp_path / "room" / name
    for _ in range(2):  # at first it is not there, then it is replaced
        before = path.read_bytes() if path.exists() else None
        with replacing(path) as temporary:
            assert temporary.parent == path.parent and temporary.name.endswith(name) and temporary != path
            write(temporary)
            assert (path.read_bytes() if path.exists() else None) == before
        assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("former", [None, "former"])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException], former: str | None) -> None:
    path = tmp_path / "a.json"
    if former:
        path.write_text(former)
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ([former] if former else [])


def test_a_replacement_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("former")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(console.os, "replace", full)
    with pytest.raises(OSError, match="No space"), replacing(path) as temporary:
        temporary.write_text("whole")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"a.json": "former"}


def test_one_file_can_be_written_twice_at_once(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")


# Progress


def test_progress_passes_everything_on_and_is_quiet_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(5), "tiles")) == [0, 1, 2, 3, 4]
    bar: Any = progress((), "steps", total=3)
    with bar:
        bar.update(2)
        assert (bar.n, bar.total) == (2, 3)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_the_time_left_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar: Any = progress((), "tiles", total=4, unit="tile")
    with bar:
        bar.update(2)
        bar.refresh()
    shown = capsys.readouterr().err
    assert "tiles" in shown and "2/4" in shown and "<" in shown  # elapsed < left
