"""Rasters as stored: GeoTIFFs and whatever else GDAL reads, and NumPy arrays; what they hold and where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from console import UserError
from data.masks import equal


@dataclass(frozen=True)
class Raster:
    """A raster: values `(H, W, C)` as stored, nodata tag and name of each band where there is one, and its place.

    `crs` is WKT; `transform` the six numbers (a, b, c, d, e, f) of x = a·column + b·row + c,
    y = d·column + e·row + f, None where the file has none.
    """

    values: NDArray[Any]
    nodata: tuple[float | None, ...]
    names: tuple[str | None, ...]
    crs: str | None = None
    crs_name: str = "none"
    transform: tuple[float, float, float, float, float, float] | None = None

    @property
    def size(self) -> str:
        """Height × width, as text."""
        return "{}×{}".format(*self.values.shape[:2])


def read_raster(path: Path) -> Raster:
    """Read a raster with all its bands: a NumPy array `(H, W, C)` or `(H, W)` from `.npy`, else what GDAL reads.

    Raises:
        UserError: If it can't be read, or an array is not one of numbers with two or three dimensions.
    """
    return _read_array(path) if path.suffix.lower() == ".npy" else _read_with_gdal(path)


def missing(raster: Raster, nodata: Sequence[float]) -> NDArray[np.bool_]:
    """Return where a band has no value, bool `(H, W, C)`: NaN, infinite, its own nodata tag, or one of `nodata`."""
    absent = ~np.isfinite(raster.values)
    for value in nodata:
        absent |= equal(raster.values, value)
    for band, tag in enumerate(raster.nodata):
        if tag is not None:
            absent[..., band] |= equal(raster.values[..., band], tag)
    return absent


def differences(raster: Raster, first: Raster, first_path: Path) -> Iterator[str]:
    """Yield what differs from the first raster of the same tile in size, CRS or transform."""
    for what, received, expected, same in (
        ("size", raster.size, first.size, raster.values.shape[:2] == first.values.shape[:2]),
        ("CRS", raster.crs_name, first.crs_name, raster.crs == first.crs),
        ("transform", raster.transform, first.transform, _same_place(raster, first)),
    ):
        if not same:
            yield f"{what} {received}, expected {expected} as in {first_path}"


def unreadable(path: str | Path, error: Exception) -> UserError:
    """Return the error that says that GDAL can't read a raster."""
    return UserError(f"{path}: can't be read, it may be truncated or damaged ({error.__cause__ or error})")


def unwritable(path: str | Path, error: Exception) -> UserError:
    """Return the error that says that a library can't write a file."""
    return UserError(
        f"{path}: can't be written ({error.__cause__ or error}); choose a folder that you may write to, on a disk with "
        "space left"
    )


def told(problems: Sequence[str]) -> str:
    """Return the message that lists all problems, one a line."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{count}, nothing is written:", *problems])


def _read_with_gdal(path: Path) -> Raster:
    try:
        with warnings.catch_warnings():
            # Rasters without georeference are welcome; what they lack is simply not stored.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                t = dataset.transform
                placed = dataset.crs is not None or not t.is_identity
                return Raster(
                    np.moveaxis(dataset.read(), 0, -1),
                    tuple(dataset.nodatavals),
                    tuple(name or None for name in dataset.descriptions),
                    dataset.crs.to_wkt() if dataset.crs else None,
                    dataset.crs.to_string() if dataset.crs else "none",
                    (t.a, t.b, t.c, t.d, t.e, t.f) if placed else None,
                )
    except (RasterioError, OSError) as error:
        raise unreadable(path, error) from error


def _read_array(path: Path) -> Raster:
    try:
        # Mapped into memory first: a damaged header that claims too many pixels is refused before any are read.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: can't be read as an array of numbers, it may be truncated, damaged, or hold pickled Python "
            f"objects, which are never loaded: save plain numbers with numpy.save ({error})"
        ) from error
    if not isinstance(stored, np.ndarray):
        raise UserError(f"{path}: an archive of arrays (.npz), expected one array as numpy.save writes it")
    if stored.ndim not in (2, 3) or 0 in stored.shape:
        raise UserError(f"{path}: shape {'×'.join(map(str, stored.shape))}, expected height × width × bands")
    if stored.dtype.kind not in "biuf" or stored.dtype.itemsize > 8:
        raise UserError(f"{path}: values of type {stored.dtype}, expected integers or floats")
    kind = np.dtype(np.uint8) if stored.dtype.kind == "b" else stored.dtype.newbyteorder("=")
    values = np.array(stored if stored.ndim == 3 else stored[..., None], dtype=kind, order="C")
    return Raster(values, (None,) * values.shape[-1], (None,) * values.shape[-1])


def _same_place(raster: Raster, first: Raster) -> bool:
    if raster.transform is None or first.transform is None:
        return raster.transform is first.transform
    # A thousandth of a pixel: files written by different tools differ in the last digits.
    tolerance = 1e-3 * max(abs(first.transform[0]), abs(first.transform[1]))
    corners = [(0, 0), first.values.shape[:2]]
    return all(
        abs(one - other) <= tolerance
        for corner in corners
        for one, other in zip(_at(raster.transform, corner), _at(first.transform, corner), strict=True)
    )


def _at(transform: tuple[float, ...], corner: tuple[int, ...]) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    row, column = corner
    return a * column + b * row + c, d * column + e * row + f
