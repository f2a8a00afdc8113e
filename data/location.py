"""Where on earth a patch lies, as the vector that a model's `location` input takes.

Source: the strategies of Maslov et al. 2025 (doi:10.1038/s41467-024-54956-x) that encode the location.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from console import UserError
from data.tiles import TileInfo
from data.windows import Window

if TYPE_CHECKING:
    from data.grids import Grid

_BOUNDS = ("xmin", "xmax", "ymin", "ymax")  # of a published tile, degrees


@dataclass(frozen=True)
class Place:
    """A tile, a patch or a window: its region, and latitude and longitude (°) of its centre where they are known."""

    name: str
    region: str
    centre_deg: tuple[float, float] | None


@dataclass(frozen=True)
class Regions:
    """The region, one-hot over `names`, and a last slot for one that is not among them."""

    names: tuple[str, ...]

    @property
    def channels(self) -> tuple[str, ...]:
        """What the numbers of the vector mean."""
        return (*self.names, "unknown")

    def encode(self, place: Place) -> NDArray[np.float32]:
        """Return the vector `(L,)` of a place; its region may be withheld as an empty name."""
        vector = np.zeros(len(self.names) + 1, np.float32)
        vector[self.names.index(place.region) if place.region in self.names else -1] = 1.0
        return vector


@dataclass(frozen=True)
class Coordinates:
    """Sine and cosine of latitude and of longitude, both in radians."""

    @property
    def channels(self) -> tuple[str, ...]:
        """What the numbers of the vector mean."""
        return ("sin latitude", "cos latitude", "sin longitude", "cos longitude")

    def encode(self, place: Place) -> NDArray[np.float32]:
        """Return the vector `(4,)` of a place.

        Raises:
            UserError: If it is not known where the place lies.
        """
        if place.centre_deg is None:
            raise UserError(unplaced(place.name))
        latitude, longitude = np.radians(place.centre_deg)
        return np.array([np.sin(latitude), np.cos(latitude), np.sin(longitude), np.cos(longitude)], np.float32)


Location = Regions | Coordinates


def location_of(kind: str, regions: Sequence[str]) -> Location | None:
    """Return what a model takes whose recipe has `location: kind` and which knows `regions`; None for `none`."""
    known: dict[str, Location] = {"region": Regions(tuple(regions)), "coordinates": Coordinates()}
    return known.get(kind)


def unplaced(tile: str) -> str:
    """Return what to say of a tile whose place a model with `location: coordinates` needs."""
    return (
        f"tile {tile!r}: where it lies is not known, which `location: coordinates` takes: it needs the attributes crs "
        f"and transform (as prepare.py writes them), or {', '.join(_BOUNDS)} in degrees"
    )


def place_of_tile(info: TileInfo, window: Window | None = None) -> Place:
    """Return the place of a tile, or of a window in it: by `crs` and `transform`, else by its bounds in degrees."""
    window = window or Window(0, 0, info.height, info.width)
    row, column = window.top + window.height / 2, window.left + window.width / 2
    centre = None
    if info.crs is not None and info.transform is not None:
        a, b, c, d, e, f = info.transform
        centre = _degrees(info.crs, a * column + b * row + c, d * column + e * row + f)
    elif all(isinstance(info.attributes.get(key), int | float) for key in _BOUNDS):
        west, east, south, north = (float(info.attributes[key]) for key in _BOUNDS)
        centre = north + (south - north) * row / info.height, west + (east - west) * column / info.width
    return Place(info.name, info.region, centre)


def place_of_grid(name: str, region: str, grid: Grid) -> Place:
    """Return the place of a grid's centre."""
    x, y = grid.xy(np.array([grid.width / 2]), np.array([grid.height / 2]))
    return Place(name, region, _degrees(grid.crs, float(x[0]), float(y[0])))


def _degrees(crs: str, x: float, y: float) -> tuple[float, float]:
    """Return latitude and longitude of a place in a CRS."""
    from data.grids import transformer  # brings rasterio, which models without coordinates do not need

    longitude, latitude = transformer(crs, "EPSG:4326").transform(x, y)
    return float(latitude), float(longitude)
