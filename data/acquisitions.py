"""Acquisitions: what one pass of a sensor left behind, as files, and its bands in physical units on a grid.

A band's numbers become physical before they are warped (`Affine`, `Thermal`, `Decibels`), and what is nodata among the
numbers is taken out before that: a digital number of 0 never becomes a reflectance of -0.1, nor a neighbour's share.
"""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from console import UserError
from data.grids import Grid, Smooth, read
from data.rasters import told, unreadable

TOA = "top-of-atmosphere reflectance"
OPTICAL = ("blue", "green", "red", "nir", "swir1", "swir2")
"""The bands of the published `optical` modality, in their order."""

NOISE_FLOOR = 1e-6
"""Added to σ⁰ before the logarithm, as in the published datasets: no echo at all is -6."""

Source = TypeVar("Source")


@dataclass(frozen=True)
class Affine:
    """`scale` × value + `offset`."""

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return the physical values of stored numbers, of the same shape."""
        return (values.astype(np.float64) * self.scale + self.offset).astype(np.float32)


@dataclass(frozen=True)
class Thermal:
    """Brightness temperature (K) of a Landsat level-1 thermal band: K2 / ln(K1 / L + 1).

    L = `ml` × value + `al` is the spectral radiance at the sensor, W/(m² sr µm); NaN where it is not above 0.
    Landsat 8-9 Data Users Handbook (USGS LSDS-1574), "Conversion to Top of Atmosphere Brightness Temperature".
    """

    ml: float
    al: float
    k1: float
    k2: float

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return the physical values of stored numbers, of the same shape."""
        radiance = values.astype(np.float64) * self.ml + self.al
        radiance[~(radiance > 0)] = np.nan
        return (self.k2 / np.log(self.k1 / radiance + 1)).astype(np.float32)


@dataclass(frozen=True)
class Decibels:
    """The power that a level in dB stands for: 10^(value / 10)."""

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return the physical values of stored numbers, of the same shape."""
        return np.power(10.0, values.astype(np.float64) / 10).astype(np.float32)


Conversion = Affine | Thermal | Decibels


@dataclass(frozen=True)
class BandFile:
    """Where a band is stored, and what its numbers mean.

    Attributes:
        path: Raster.
        index: The band in it, from 1.
        conversion: Stored number → physical value; None: the same.
        nodata: Stored numbers that are no measurement, besides the raster's own nodata tag.
    """

    path: Path
    index: int = 1
    conversion: Conversion | None = None
    nodata: tuple[float, ...] = ()


@dataclass(frozen=True)
class Hidden:
    """A raster that says where something hides the ground.

    Attributes:
        path: Raster.
        index: The band in it, from 1.
        kind: `qa_pixel`: a set of bits (Landsat collection 2); `scl`: a class (Sentinel-2's scene classification);
            `values`: any raster of numbers.
        values: The bits, classes or numbers that hide the ground.
    """

    path: Path
    index: int = 1
    kind: Literal["qa_pixel", "scl", "values"] = "values"
    values: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Acquisition:
    """One pass of a sensor over one footprint.

    Attributes:
        name: The product's name, or the file's.
        date: Day of acquisition; None: unknown.
        bands: Name → file, in the order of the modality's channels.
        unit: What the values are once they are converted, e.g. `top-of-atmosphere reflectance`, `K`.
        level: Processing level as the producer calls it, e.g. `L1C`, `L2SP`; "" unknown.
        sensor: E.g. `Landsat 8 OLI/TIRS`; "" unknown.
        hidden: What hides the ground; None: not known.
        logarithmic: Values are backscatter: warped as power and then given as log10(σ⁰ + 1e-6).
        described: What else is worth keeping in a tile file; JSON.
    """

    name: str
    date: datetime.date | None
    bands: Mapping[str, BandFile]
    unit: str
    level: str = ""
    sensor: str = ""
    hidden: Hidden | None = None
    logarithmic: bool = False
    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def when(self) -> tuple[datetime.date, str]:
        """What acquisitions are sorted by: oldest first, those of a day by name, those without a date in front."""
        return self.date or datetime.date.min, self.name


def ready(
    files: Sequence[Path],
    bands: Sequence[str],
    scale: float = 1.0,
    offset: float = 0.0,
    nodata: Sequence[float] = (),
    date: datetime.date | None = None,
    unit: str = "",
    level: str = "",
    sensor: str = "",
    hidden: Hidden | None = None,
    indexes: Sequence[int] | None = None,
) -> Acquisition:
    """Return the acquisition that one raster with a band for each name holds, or one raster for each name.

    Values are `scale` × stored number + `offset`. `indexes` says which bands of the one raster the names belong to,
    from 1; without it the raster has exactly those bands, in that order.

    Raises:
        UserError: If a file can't be read, or the number of bands is not the number of names.
    """
    if not files or not bands:
        raise UserError(f"no files or no bands to read: files {_list(files)}; bands {_list(bands)}")
    if len(set(bands)) < len(bands):
        raise UserError(f"{files[0]}: bands {_list(bands)} name one of them twice; give each a name of its own")
    conversion = None if (scale, offset) == (1.0, 0.0) else Affine(scale, offset)
    if len(files) == 1:
        count = _count(files[0])
        if indexes is None and count != len(bands):
            raise UserError(
                f"{files[0]}: {count} bands, expected {len(bands)} ({_list(bands)}); name every band, or say which "
                "bands of the file the names belong to"
            )
        chosen = tuple(range(1, count + 1)) if indexes is None else tuple(indexes)
        if len(chosen) != len(bands) or not all(1 <= index <= count for index in chosen):
            raise UserError(
                f"{files[0]}: bands {_list(chosen)} for the names {_list(bands)}, expected one number of 1 to {count} "
                "for each name"
            )
        places = [(files[0], index) for index in chosen]
    else:
        if indexes is not None or len(files) != len(bands):
            raise UserError(
                f"{len(files)} files for {len(bands)} bands ({_list(bands)}), expected one file with all bands or one "
                f"file for each band: {_list(files)}"
            )
        for path in files:
            if (count := _count(path)) != 1:
                raise UserError(f"{path}: {count} bands, expected one, because each band has a file of its own here")
        places = [(path, 1) for path in files]
    return Acquisition(
        files[0].stem,
        date,
        {
            name: BandFile(path, index, conversion, tuple(nodata))
            for name, (path, index) in zip(bands, places, strict=True)
        },
        unit,
        level,
        sensor,
        hidden,
        described={"scale": scale, "offset": offset},
    )


def backscatter(
    files: Sequence[Path],
    bands: Sequence[str],
    given: Literal["linear", "db"],
    nodata: Sequence[float] = (),
    date: datetime.date | None = None,
    sensor: str = "",
    indexes: Sequence[int] | None = None,
) -> Acquisition:
    """Return radar backscatter as the published statistics expect it: log10(σ⁰ + 1e-6), warped as power.

    Args:
        files: One raster with a band for each name, or one raster for each name.
        bands: Names, e.g. `ascending`, `descending`.
        given: What the files hold: linear power, or dB.
        nodata: Stored numbers that are no measurement.
        date: Day of acquisition.
        sensor: Whose it is.
        indexes: As in `ready`.

    Raises:
        UserError: As `ready` does.
    """
    stored = ready(files, bands, nodata=nodata, date=date, sensor=sensor, indexes=indexes)
    conversion = Decibels() if given == "db" else None
    return replace(
        stored,
        bands={name: replace(band, conversion=conversion) for name, band in stored.bands.items()},
        unit="log10(sigma0 + 1e-6)",
        logarithmic=True,
        described={"given": given},
    )


def log_backscatter(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log10(σ⁰ + 1e-6) of linear power σ⁰, of the same shape; NaN stays NaN.

    Power below 0, which the subtraction of thermal noise leaves where the echo is weak, counts as 0. Averages are
    taken before, over power with its sign: they would lean high if it were cut off first.
    """
    return np.log10(np.maximum(power, 0) + np.float32(NOISE_FLOOR))


def read_acquisition(
    acquisition: Acquisition, target: Grid, smooth: Smooth = "bilinear"
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return an acquisition on a grid: values `(h, w, C)`, NaN where there are none, and where the ground is seen.

    Values under clouds are returned as they are. The second array, bool `(h, w)`, is all True where nothing is known
    of what hides the ground; it says nothing about values that are missing.

    Raises:
        UserError: If a file can't be read.
    """
    values = np.empty((target.height, target.width, len(acquisition.bands)), np.float32)
    together: dict[tuple[Path, Conversion | None, tuple[float, ...]], list[tuple[int, int]]] = {}
    for channel, band in enumerate(acquisition.bands.values()):
        together.setdefault((band.path, band.conversion, band.nodata), []).append((channel, band.index))
    for (path, conversion, nodata), places in together.items():
        channels, indexes = zip(*places, strict=True)
        values[..., list(channels)] = read(path, indexes, target, nodata=nodata, smooth=smooth, convert=conversion)
    if acquisition.logarithmic:
        values = log_backscatter(values)
    return values, _clear(acquisition.hidden, target)


def _clear(hidden: Hidden | None, target: Grid) -> NDArray[np.bool_]:
    if hidden is None:
        return np.ones((target.height, target.width), bool)
    found = read(hidden.path, (hidden.index,), target, kind="classes")[..., 0]
    known = np.isfinite(found)
    numbers = np.where(known, found, 0).astype(np.int64)
    if hidden.kind == "qa_pixel":
        hides = (numbers & sum(1 << bit for bit in set(hidden.values))) != 0
    else:
        hides = np.isin(numbers, hidden.values)
    # Where the producer's raster ends, nothing was seen. A mask of the user's own need not reach everywhere, and what
    # its nodata tag means is not the tag's to say: the value hides if it is among the values that do.
    unknown_hides = hidden.kind != "values" or _tag(hidden) in hidden.values
    return np.where(known, ~hides, not unknown_hides)


# -- for the readers of products -------------------------------------------------------------------------------


def files_in(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths` and in its folders, each once, sorted; hidden ones left out.

    Raises:
        UserError: If a path is not there, or an archive.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.is_file()]
        elif path.name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
            raise UserError(f"{path}: an archive, expected the folder or the files in it; unpack it first")
        elif path.exists():
            inside = [path]
        else:
            raise UserError(f"{path}: no such file or folder")
        found |= {os.path.abspath(file): file for file in inside if not file.name.startswith(".")}
    return [found[key] for key in sorted(found)]


def each(sources: Iterable[Source], build: Callable[[Source], Acquisition]) -> list[Acquisition]:
    """Return the acquisition of every source, oldest first.

    Raises:
        UserError: If any can't be built: one message that says what is wrong with each.
    """
    acquisitions: list[Acquisition] = []
    problems: list[str] = []
    for source in sources:
        try:
            acquisitions.append(build(source))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(problems[0] if len(problems) == 1 else told(problems))
    return sorted(acquisitions, key=lambda acquisition: acquisition.when)


def given_conversion(scale: float | None, offset: float | None) -> Affine | None:
    """Return the conversion that the user gives, if any.

    Raises:
        UserError: If only one of the two is given: the other is 0 or 1 less often than one thinks.
    """
    if scale is None and offset is None:
        return None
    if scale is None or offset is None:
        raise UserError(
            f"scale {scale}, offset {offset}: expected both or neither; value = scale × stored number + offset"
        )
    return Affine(scale, offset)


def described(bands: Mapping[str, BandFile]) -> dict[str, dict[str, float]]:
    """Return band → what its conversion is made of, as JSON."""
    return {name: asdict(band.conversion) for name, band in bands.items() if band.conversion is not None}


def _count(path: Path) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # an error as soon as it is read on a grid
            with rasterio.open(path) as dataset:
                return int(dataset.count)
    except (RasterioError, OSError) as error:
        raise unreadable(path, error) from error


def _tag(hidden: Hidden) -> float | None:
    with rasterio.open(hidden.path) as dataset:
        tag: float | None = dataset.nodatavals[hidden.index - 1]
        return tag


def _list(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "none"
