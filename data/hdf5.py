"""Writing an HDF5 file that is whole or absent, on a full disk as well."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from console import replacing


class OutputFile(h5py.File):
    """An HDF5 file being written; `raise_write_error` says when the disk refused something."""

    def __init__(self, path: Path) -> None:
        self._sink = _Sink(path, "w+")
        super().__init__(self._sink, "w")

    def raise_write_error(self) -> None:
        """Raise the first `OSError` of writing, if there was one: call it after each large piece."""
        if self._sink.error is not None:
            raise self._sink.error

    def close(self) -> None:
        """Close the file without raising what the disk refused."""
        super().close()
        self._sink.close()


@contextmanager
def creating(path: Path) -> Iterator[OutputFile]:
    """Yield an HDF5 file that appears at `path` when the block ends well, and not at all otherwise.

    Raises:
        OSError: If the disk is full or refuses in another way, with its `errno`, at the latest when the block
        ends.
    """
    with replacing(path) as temporary:
        file = OutputFile(temporary)
        try:
            yield file
        except Exception:
            # HDF5 trips over what it could not write: the disk's refusal is the cause to report.
            file.raise_write_error()
            raise
        finally:
            file.close()
        file.raise_write_error()


class _Sink(io.FileIO):
    """A file that keeps its first error instead of raising it.

    HDF5 writes metadata whenever a handle is closed or its cache is full, and where that fails it cannot
    close the file any more: it prints an error for every object and may crash the process. So it never hears
    of the error.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:  # noqa: ANN401 - any object with a buffer
        """Write all of `data`, or drop it after an error."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view) and self.error is None:
            try:
                written += super().write(view[written:]) or 0
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's length, unless there was an error."""
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0
