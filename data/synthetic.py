"""Synthetic glacier scenes from a seed: terrain, ice, debris, lakes, snow, and what satellites would see of them.

A scene is grown, not drawn. Rivers carve ridges and valleys into rising ground (stream-power law, implicit scheme of
Braun & Willett 2013, doi:10.1016/j.geomorph.2012.10.008); snow above the equilibrium line feeds ice that flows by the
shallow-ice approximation (Mahaffy 1976, doi:10.1029/JC081i006p01059) until tongues fill the valleys; rock from the
walls rides down on the ice and comes out as debris where the ice melts; lakes fill the hollows in front; seasonal
snow lies where it is high and not steep. Optical bands then follow from reflectances of the mixed materials, the
sun's incidence angle, cast shadow, diffuse light, path radiance and noise. SAR backscatter and brightness temperature
are class means with terrain effects and noise.

What makes it a task rather than a drawing: a band ratio confuses seasonal snow, water and shadow with glacier, and
misses ice under debris; terrain, texture, SAR and temperature, each of them ambiguous alone, tell these apart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from skimage.morphology import reconstruction, remove_small_holes, remove_small_objects

from console import UserError, progress
from data.normalisation import Statistics, fit
from data.tiles import TWO_CLASSES, ClassInfo, TileWriter

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

PIXEL_M = 30.0
BANDS: Mapping[str, list[str]] = MappingProxyType(
    {
        "optical": ["blue", "green", "red", "nir", "swir1", "swir2"],
        "dem": ["elevation_m", "slope_deg"],
        "sar": ["co_pol_db", "cross_pol_db"],
        "thermal": ["brightness_temperature_k"],
    }
)
BACKGROUND, CLEAN_ICE, DEBRIS_ICE, WATER = range(4)
SURFACE_CLASSES = (
    TWO_CLASSES[0],
    ClassInfo("clean ice", glacier=True, color="#9fd8ff"),
    ClassInfo("debris-covered ice", glacier=True, color="#8a5a33"),
    ClassInfo("water", color="#1f4e9c"),
)

_COARSE = 4  # Terrain and ice are computed on cells of 4 x 4 pixels.
_MARGIN = 48  # Pixels around a scene in which rivers, ice and shadows begin; cut off at the end.


@dataclass(frozen=True)
class Region:
    """What makes the scenes of a region alike. Pairs are (lowest, highest); each scene draws its own value."""

    name: str
    epsg: int  # UTM zone of the scenes
    northing_m: tuple[float, float]  # in that zone
    relief_m: tuple[float, float]  # highest minus lowest of a scene 384 pixels wide; all heights shrink in smaller ones
    erosion: int  # steps of river erosion: few leave plateaus, many leave ridges
    erodibility: float  # of the rock by rivers, per step
    valley_depth_m: float  # how much deeper a valley is for ten times the catchment
    equilibrium_line_m: tuple[float, float]
    ice_free_share: tuple[float, float]  # share of the terrain below the equilibrium line
    balance_per_year: float  # gain of mass balance with height, 1/a: small in dry and cold, large in wet climates
    accumulation_m: float  # most snow, m ice equivalent a year
    shade_effect_m: float  # how much lower the equilibrium line is on slopes that turn away from the sun
    debris_share: tuple[float, float]  # of the ice below the equilibrium line
    rise_m: tuple[float, float]  # of the equilibrium line since the glaciers took their form: more bare ice and debris
    snow_line_m: tuple[float, float]  # of seasonal snow, relative to the equilibrium line
    vegetation_limit_m: tuple[float, float]  # relative to the equilibrium line
    vegetation_share: float
    lakes: float  # about how many hollows of the ground hold water
    turbidity: tuple[float, float]  # of lakes: 0 clear, 1 full of glacier flour
    rock_brightness: tuple[float, float]
    sun_elevation_deg: tuple[float, float]
    sun_azimuth_deg: tuple[float, float]  # clockwise from north
    zero_degree_m: tuple[float, float]  # height of the 0 °C isotherm relative to the equilibrium line

    def poleward(self, south: Array) -> Array:
        """Fall towards the nearer pole, away from the noon sun, of ground that rises by `south` towards the south."""
        return south if self.epsg < 32700 else -south


REGIONS: Mapping[str, Region] = MappingProxyType(
    {
        "ALP": Region(
            name="Alps", epsg=32632, northing_m=(5_080_000, 5_200_000),
            relief_m=(1700, 2300), erosion=60, erodibility=0.5,
            valley_depth_m=120,
            equilibrium_line_m=(2850, 3100), ice_free_share=(0.6, 0.93), balance_per_year=0.006,
            accumulation_m=2.0, shade_effect_m=120, debris_share=(0.15, 0.5), rise_m=(50, 150),
            snow_line_m=(-400, 50),
            vegetation_limit_m=(-650, -400), vegetation_share=0.8, lakes=5, turbidity=(0.1, 0.7),
            rock_brightness=(0.8, 1.15), sun_elevation_deg=(42, 56), sun_azimuth_deg=(138, 160),
            zero_degree_m=(600, 1300),
        ),
        "HMA": Region(
            name="High-Mountain Asia", epsg=32645, northing_m=(3_050_000, 3_150_000),
            relief_m=(1800, 2600), erosion=60, erodibility=0.4,
            valley_depth_m=200,
            equilibrium_line_m=(5350, 5800), ice_free_share=(0.45, 0.82), balance_per_year=0.004,
            accumulation_m=1.2, shade_effect_m=180, debris_share=(0.4, 0.85), rise_m=(150, 300),
            snow_line_m=(-350, 100),
            vegetation_limit_m=(-1500, -900), vegetation_share=0.35, lakes=8, turbidity=(0.3, 1.0),
            rock_brightness=(0.85, 1.35), sun_elevation_deg=(42, 55), sun_azimuth_deg=(140, 162),
            zero_degree_m=(300, 900),
        ),
        "SVAL": Region(
            name="Svalbard", epsg=32633, northing_m=(8_600_000, 8_850_000),
            relief_m=(600, 900), erosion=40, erodibility=0.5,
            valley_depth_m=50,
            equilibrium_line_m=(340, 520), ice_free_share=(0.66, 0.92), balance_per_year=0.004,
            accumulation_m=0.8, shade_effect_m=60, debris_share=(0.1, 0.3), rise_m=(20, 80),
            snow_line_m=(-150, 80),
            vegetation_limit_m=(-330, -180), vegetation_share=0.35, lakes=5, turbidity=(0.2, 0.9),
            rock_brightness=(0.6, 0.95), sun_elevation_deg=(24, 33), sun_azimuth_deg=(165, 205),
            zero_degree_m=(300, 800),
        ),
        "SA": Region(
            name="Southern Andes", epsg=32718, northing_m=(4_450_000, 4_900_000),
            relief_m=(1500, 2200), erosion=60, erodibility=0.5,
            valley_depth_m=130,
            equilibrium_line_m=(1050, 1450), ice_free_share=(0.6, 0.92), balance_per_year=0.008,
            accumulation_m=3.5, shade_effect_m=90, debris_share=(0.08, 0.35), rise_m=(30, 120),
            snow_line_m=(-400, 0),
            vegetation_limit_m=(-350, -100), vegetation_share=0.95, lakes=9, turbidity=(0.4, 1.0),
            rock_brightness=(0.7, 1.05), sun_elevation_deg=(36, 52), sun_azimuth_deg=(32, 62),
            zero_degree_m=(500, 1100),
        ),
    }
)  # fmt: skip

# Surface reflectance per band of BANDS["optical"], at the order of published field and library spectra.
_SPECTRA: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "fresh snow": (0.92, 0.92, 0.91, 0.84, 0.13, 0.11),
        "old snow": (0.70, 0.72, 0.70, 0.57, 0.06, 0.05),
        "ice": (0.50, 0.50, 0.45, 0.33, 0.035, 0.03),
        "dirty ice": (0.27, 0.28, 0.27, 0.22, 0.07, 0.06),
        "rock": (0.13, 0.15, 0.17, 0.20, 0.24, 0.22),
        "red rock": (0.12, 0.15, 0.20, 0.24, 0.30, 0.27),
        "vegetation": (0.035, 0.065, 0.045, 0.33, 0.17, 0.08),
        "clear water": (0.05, 0.045, 0.025, 0.01, 0.004, 0.003),
        "turbid water": (0.15, 0.18, 0.15, 0.06, 0.008, 0.005),
    }
)
_DIFFUSE = np.array([0.26, 0.19, 0.14, 0.09, 0.04, 0.03], np.float32)  # share of the light that comes from the sky
_PATH = np.array([0.070, 0.040, 0.022, 0.011, 0.003, 0.002], np.float32)  # reflectance of the air at sea level
_SENSOR_NOISE = np.array([0.003, 0.003, 0.003, 0.004, 0.003, 0.003], np.float32)
_SATURATION = 1.3

# Backscatter in dB (co-, cross-polarised) and temperature in K relative to the air.
_BACKSCATTER_DB = {
    "rock": (-9.0, -16.5), "vegetation": (-10.5, -15.0), "snow": (-13.0, -20.5), "ice": (-10.5, -16.5),
    "firn": (-8.5, -14.5), "debris": (-7.5, -13.8), "water": (-19.0, -27.0),
}  # fmt: skip
_WARMTH_K = {"rock": 9.0, "vegetation": 5.0, "debris": 5.0, "water": 1.0}
_LOOKS = 4


@dataclass(frozen=True)
class Scene:
    """One synthetic place and date on a grid of 30 m pixels; arrays are (H, W, C), float32 unless stated."""

    optical: Array  # top-of-atmosphere reflectance 0..1.3, the bands of BANDS["optical"]; NaN where not valid
    dem: Array  # elevation (m), slope (°, 0..90)
    sar: Array  # backscatter (dB): co-polarised, cross-polarised
    thermal: Array  # brightness temperature (K)
    mask: NDArray[np.uint8]  # (H, W): 0 background, 1 glacier
    surface: NDArray[np.uint8]  # (H, W): 0 background, 1 clean ice, 2 debris-covered ice, 3 water
    valid: Mask  # (H, W): where the optical sensor saw the ground
    region: str
    subregion: str
    transform: tuple[float, float, float, float, float, float]  # pixel -> UTM metres, as rasterio's Affine
    crs: str  # WKT

    def modalities(self) -> dict[str, Array]:
        """Return the arrays by name of modality, in the order optical, dem, sar, thermal."""
        return {"optical": self.optical, "dem": self.dem, "sar": self.sar, "thermal": self.thermal}


def make_scene(region: str, seed: int, size: int = 384, lakes: float = 1.0) -> Scene:
    """Make the scene of `size` x `size` pixels that belongs to this region and seed: a pure function of the four.

    `lakes` is how many lakes there are relative to what is usual in the region.

    Raises:
        UserError: If the region is unknown, the seed or `lakes` is negative or the size is below 64.
    """
    if seed < 0:
        raise UserError(f"the seed is {seed}; use 0 or a positive number")
    if size < 64:
        raise UserError(f"synthetic scenes of {size} pixels a side are too small for glaciers; use at least 64")
    traits = _traits(region, lakes)
    rng = np.random.default_rng([seed, int.from_bytes(region.encode()), size])
    subregion = int(rng.integers(1, 4))
    # Subregions differ by climate: the dry one has its ice higher up and under more debris.
    dryness = (subregion - 2) / 2 + float(rng.uniform(-0.2, 0.2))
    side = -(-(size + 2 * _MARGIN) // (2 * _COARSE)) * 2 * _COARSE

    ground = _Ground.grow(rng, traits, side, size, dryness)
    ice = _Ice.flow(rng, traits, ground)
    cover = _Cover.lay(rng, traits, ground, ice, dryness)
    inner = slice(_MARGIN, _MARGIN + size)
    light = _Light.shine(rng, traits, cover.elevation_m)
    cover, light = cover.cut(inner), light.cut(inner)

    valid = _swath(rng, size)
    optical = _see_optical(rng, traits, cover, light)
    optical[~valid] = np.nan
    west = float(np.round(rng.uniform(300_000, 700_000) / PIXEL_M) * PIXEL_M)
    north = float(np.round(_draw(rng, traits.northing_m) / PIXEL_M) * PIXEL_M)
    return Scene(
        optical=optical,
        dem=np.stack([cover.elevation_m, light.slope_deg], axis=-1).astype(np.float32),
        sar=_see_radar(rng, cover, light),
        thermal=_see_thermal(rng, traits, cover, light),
        mask=cover.glacier.astype(np.uint8),
        surface=cover.surface(),
        valid=valid,
        region=region,
        subregion=f"{region}-{subregion}",
        transform=(PIXEL_M, 0.0, west, 0.0, -PIXEL_M, north),
        crs=_crs_wkt(traits.epsg),
    )


def _traits(region: str, lakes: float) -> Region:
    """Return a region's traits with `lakes` times its lakes."""
    if region not in REGIONS:
        raise UserError(f"there are no synthetic scenes of region {region!r}; known are {', '.join(REGIONS)}")
    if not 0 <= lakes < math.inf:
        raise UserError(f"the number of lakes relative to the usual is {lakes}; use 0 or a positive number")
    return replace(REGIONS[region], lakes=lakes * REGIONS[region].lakes)


def write_dataset(
    folder: Path,
    *,
    seed: int = 0,
    train: int = 60,
    val: int = 16,
    test: int = 24,
    size: int = 384,
    regions: Sequence[str] = tuple(REGIONS),
    lakes: float = 1.0,
    surface_classes: bool = False,
    command: str = "",
) -> None:
    """Write `train.hdf5`, `val.hdf5` and `test.hdf5` of synthetic scenes into an existing folder.

    The regions take turns. Every scene has terrain of its own, so that no split knows another. The statistics are
    fitted on the valid pixels of the training split and stored in all three files. One scene is in memory at a time.

    Args:
        folder: where to write; a file of the same name is replaced.
        seed: of the dataset, 0 or more.
        train: how many scenes for training, at least 1.
        val: how many scenes for validation, at least 1.
        test: how many scenes for the test, at least 1.
        size: pixels a side of each scene, at least 64.
        regions: codes of the regions that take turns.
        lakes: how many lakes there are relative to what is usual in each region.
        surface_classes: whether masks have the four classes background, clean ice, debris-covered ice and water
            instead of background and glacier.
        command: what the user typed, for the record.

    Raises:
        UserError: If seed, size or lakes is out of range, a region is unknown, or a split has no scene.
    """
    counts = {"train": train, "val": val, "test": test}
    for split, count in counts.items():
        if count < 1:
            raise UserError(f"the {split} split is to have {count} scenes; it needs at least 1")
    if seed < 0:
        raise UserError(f"the seed is {seed}; use 0 or a positive number")
    traits = {code: asdict(_traits(code, lakes)) for code in regions}
    statistics: Statistics | None = None
    for index, (split, count) in enumerate(counts.items()):
        provenance = {
            "source": "synthetic scenes, no satellite data",
            "generator": "data/synthetic.py",
            "seed": seed,
            "split": split,
            "size": size,
            "regions": traits,
        }
        classes = SURFACE_CLASSES if surface_classes else TWO_CLASSES
        with TileWriter(folder / f"{split}.hdf5", classes, BANDS, statistics, provenance, command) as writer:
            made = _scenes([seed, index], count, size, list(traits), lakes)
            scenes = progress(made, f"{split} scenes", total=count, unit="scene")
            written = (_write(writer, name, scene, surface_classes) for name, scene in scenes)
            if split == "train":
                writer.statistics = statistics = fit(written, fitted_on="valid pixels of the training split")
            else:
                deque(written, maxlen=0)


def _scenes(
    seed: list[int], count: int, size: int, regions: Sequence[str], lakes: float
) -> Iterator[tuple[str, Scene]]:
    """Scenes of a split with the names of their tiles, such as ALP1-00-03: region, subregion, split, number."""
    for number, region in zip(range(count), cycle(regions), strict=False):
        scene_seed = int(np.random.SeedSequence([*seed, number]).generate_state(1)[0])
        scene = make_scene(region, scene_seed, size, lakes)
        yield f"{scene.subregion.replace('-', '')}-{seed[-1]:02d}-{number:02d}", scene


def _write(writer: TileWriter, name: str, scene: Scene, surface_classes: bool) -> tuple[dict[str, Array], Mask]:
    """Add a scene to a tile file and return what statistics are fitted on."""
    mask = scene.surface if surface_classes else scene.mask
    writer.add(
        name,
        scene.modalities(),
        mask,
        scene.valid,
        region=scene.region,
        subregion=scene.subregion,
        crs=scene.crs,
        transform=scene.transform,
    )
    return scene.modalities(), scene.valid


@cache
def _crs_wkt(epsg: int) -> str:
    from pyproj import CRS

    return str(CRS.from_epsg(epsg).to_wkt())


# --- noise and small helpers ------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, side: int, wavelength: float, roughness: float = 1.8) -> Array:
    """Random field of mean 0, deviation 1; amplitude falls with frequency^-roughness below `wavelength` pixels."""
    white = rng.standard_normal((side, side), dtype=np.float32)
    frequency = np.hypot(fft.fftfreq(side)[:, None], fft.rfftfreq(side)[None, :]).astype(np.float32)
    spectrum = fft.rfft2(white) * (1 + (frequency * wavelength) ** 2) ** (-roughness / 2)
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, s=(side, side))
    return (field / field.std()).astype(np.float32)


def _ramp(values: Array, low: float | Array, high: float | Array) -> Array:
    """Rise smoothly from 0 at `low` to 1 at `high` (which may be the smaller one)."""
    share = np.clip((values - low) / (np.asarray(high) - low), 0, 1)
    return (share * share * (3 - 2 * share)).astype(np.float32)


def _mix(first: float | Array, second: float | Array, share: Array) -> Array:
    return first + (second - first) * share


def _upsample(coarse: Array, order: int = 3) -> Array:
    zoomed = ndimage.zoom(coarse, _COARSE, order=order, mode="nearest", grid_mode=True)
    return zoomed.astype(np.float32)


def _draw(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


# --- rivers -----------------------------------------------------------------------------------------------------------

_NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]


def _receivers(height: Array) -> NDArray[np.intp]:
    """Flat index of the lowest-lying way out of each cell: its steepest lower neighbour of eight, or itself."""
    rows, columns = height.shape
    padded = np.pad(height, 1, constant_values=np.inf)
    receiver = np.arange(height.size).reshape(height.shape)
    itself = receiver.copy()
    steepest = np.zeros_like(height)
    for row, column in _NEIGHBOURS:
        there = padded[1 + row : 1 + row + rows, 1 + column : 1 + column + columns]
        drop = (height - there) / np.float32(np.hypot(row, column))
        better = drop > steepest
        np.copyto(steepest, drop, where=better)
        np.copyto(receiver, itself + (row * columns + column), where=better)
    return receiver.ravel()


def _accumulate(receiver: NDArray[np.intp], weight: Array) -> Array:
    """Sum of `weight` over each cell and all that drains through it, by pointer doubling: log2(length) passes."""
    nowhere = receiver.size
    pointer = np.append(np.where(receiver == np.arange(nowhere), nowhere, receiver), nowhere)
    total = np.append(weight.ravel().astype(np.float64), 0.0)
    while (pointer != nowhere).any():
        total += np.bincount(pointer, total, minlength=nowhere + 1)
        total[nowhere] = 0
        pointer = pointer[pointer]
    return total[:nowhere].reshape(weight.shape)


def _carve(height: Array, erodibility: Array) -> Array:
    """One implicit step of dh/dt = -K sqrt(A) slope in units of cells; exact along rivers, also by pointer doubling."""
    pointer = _receivers(height)
    area = _accumulate(pointer, np.ones_like(height))
    step = np.abs(pointer - np.arange(pointer.size))
    distance = np.where((step == 1) | (step == height.shape[1]), 1.0, np.sqrt(2.0))
    rate = np.where(step == 0, 0.0, (erodibility * np.sqrt(area)).ravel() / distance)
    # h = offset + slope * h(receiver), composed along the way down until it reaches an outlet.
    offset, slope = height.ravel() / (1 + rate), rate / (1 + rate)
    while slope.max() > 1e-6:
        offset += slope * offset[pointer]
        slope *= slope[pointer]
        pointer = pointer[pointer]
    return offset.reshape(height.shape)


@dataclass(frozen=True)
class _Ground:
    """The bed of rock without ice: fine on pixels, coarse on cells of `_COARSE` pixels."""

    fine_m: Array
    coarse_m: Array
    equilibrium_line_m: float
    small: float  # relief relative to that of a scene 384 pixels wide, 1 = the same

    @classmethod
    def grow(cls, rng: np.random.Generator, traits: Region, side: int, size: int, dryness: float) -> _Ground:
        """Raise the ground, let rivers cut it, put it at the height that the region's ice needs."""
        cells = side // _COARSE
        height = _river_land(rng, traits, cells // 2)
        # Valleys that follow the eight directions of the grid are bent on the way to the finer grid.
        at = (np.mgrid[:cells, :cells] + 0.5) / 2 - 0.5 + 0.9 * np.stack([_noise(rng, cells, 24, 4) for _ in range(2)])
        height = ndimage.map_coordinates(height, at, order=3, mode="nearest")
        small = (size / 384) ** 0.5
        relief = _draw(rng, traits.relief_m) * small
        height *= relief / np.ptp(height)
        height += 0.004 * relief * _noise(rng, cells, 20)
        # Ice of the past deepened the valleys and made them wide between steep walls and sharp ridges: each point is
        # at most a bowl above every lower one around it.
        drained = _accumulate(_receivers(height), np.ones_like(height))
        height -= traits.valley_depth_m * ndimage.gaussian_filter(np.clip(np.log10(drained / 4), 0, 2), 0.8)
        distance = np.hypot(*np.mgrid[-5:6, -5:6]) / 5
        bowl = np.where(distance < 1.1, 0.3 * relief * distance**3, 10 * relief)
        coarse = ndimage.gaussian_filter(ndimage.grey_erosion(height, structure=-bowl), 0.6)
        coarse = np.rot90(coarse, int(rng.integers(4))).astype(np.float32)
        inner = slice(_MARGIN // _COARSE, (_MARGIN + size) // _COARSE)
        low, high = np.percentile(coarse[inner, inner], [1, 99.5])
        coarse *= relief / (high - low)
        line = _draw(rng, traits.equilibrium_line_m) + 80 * dryness
        coarse += line - np.quantile(coarse[inner, inner], _draw(rng, traits.ice_free_share) * small**0.12)
        coarse = coarse.astype(np.float32)

        fine = _upsample(coarse)
        steepness = _ramp(_slope(fine), 0.1, 0.9)
        crags = 1 - np.abs(_noise(rng, side, 16, 2.0))
        fine += steepness * (24 * crags + 3 * _noise(rng, side, 6, 1.6)) + 0.6 * _noise(rng, side, 20)
        for _ in range(2):  # gullies
            fine = _carve(fine, np.float32(0.06) * steepness).astype(np.float32)
        fine = ndimage.gaussian_filter(fine, 0.5)
        return cls(fine, fine.reshape(cells, _COARSE, cells, _COARSE).mean(axis=(1, 3)), line, small)


def _river_land(rng: np.random.Generator, traits: Region, cells: int) -> Array:
    """Land that rises while rivers cut it and slopes creep; heights in no unit."""
    outlet = np.zeros((cells, cells), bool)
    outlet[[0, -1]] = True
    if rng.random() < 0.3:
        outlet[:, 0] = True
    uplift = np.where(outlet, 0.0, np.exp(0.3 * _noise(rng, cells, cells / 3)))
    erodibility = traits.erodibility * np.exp(0.5 * _noise(rng, cells, cells / 4)).astype(np.float64)
    height = 0.1 * ndimage.distance_transform_edt(~outlet)
    height += 0.5 * _noise(rng, cells, cells / 4) + 0.02 * rng.standard_normal(outlet.shape)
    for _ in range(traits.erosion):
        height = _carve(np.where(outlet, 0.0, height) + uplift, erodibility)
        height = ndimage.gaussian_filter(height, 0.85)
    return height.astype(np.float32)


def _gradient(height: Array, spacing_m: float = PIXEL_M) -> tuple[Array, Array]:
    """Rise towards the south (down the rows) and the east, m/m."""
    south, east = (np.gradient(height, np.float32(spacing_m), axis=axis) for axis in range(2))
    return south, east


def _slope(height: Array, spacing_m: float = PIXEL_M) -> Array:
    """Steepest rise, m/m."""
    return np.hypot(*_gradient(height, spacing_m))


# --- ice --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ice:
    """Glaciers on the pixels of the ground."""

    surface_m: Array  # of the ice where there is ice, of the ground elsewhere
    glacier: Mask
    equilibrium_line_m: Array  # with what shade and shape of the ground do to it
    rock_load: Array  # rock that the ice carries down from walls, relative to the ice

    @classmethod
    def flow(cls, rng: np.random.Generator, traits: Region, ground: _Ground) -> _Ice:
        """Let snow become ice and the ice flow until it melts; smaller patches than 0.05 km² are no glaciers."""
        bed = ground.coarse_m
        spacing = PIXEL_M * _COARSE
        south, _ = _gradient(ndimage.gaussian_filter(bed, 1.5), spacing)
        hollow = ndimage.gaussian_filter(bed, 5) - ndimage.gaussian_filter(bed, 1)
        shade = np.clip(1.5 * traits.poleward(south), -1, 1)
        line = ground.equilibrium_line_m - traits.shade_effect_m * ground.small * shade
        line = line - np.clip(1.2 * hollow, -150, 150)
        holds = 1 - _ramp(_slope(bed, spacing), np.tan(np.deg2rad(28)), np.tan(np.deg2rad(44)))

        climate = (traits.balance_per_year / ground.small, traits.accumulation_m)
        thickness = _flow_ice(bed, line.astype(np.float32), holds, climate, spacing, years=200)
        deep = _upsample(thickness)
        top = _upsample(bed) + deep
        surface = ndimage.gaussian_filter(top, 2) + 0.6 * _noise(rng, top.shape[0], 12)
        glacier = (deep + 4 * _noise(rng, top.shape[0], 16) > 9) & (surface > ground.fine_m) & (ground.fine_m > 0)
        glacier = ndimage.gaussian_filter(glacier.astype(np.float32), 1.2) > 0.5
        glacier = remove_small_objects(remove_small_holes(glacier, max_size=12), max_size=50)
        surface = np.where(glacier, np.maximum(surface, ground.fine_m + 1), np.maximum(ground.fine_m, 0))

        # Walls above the ice shed rock onto it; where ice melts away on its way down, the rock stays and gathers.
        wall = (_slope(bed, spacing) > np.tan(np.deg2rad(33))) & (thickness < 8)
        shed = ndimage.gaussian_filter(wall.astype(np.float32), 1.5) * np.exp(0.8 * _noise(rng, bed.shape[0], 20))
        icy = thickness > 8
        receiver = _receivers(ndimage.gaussian_filter(bed + thickness, 0.7))
        load = _accumulate(receiver, shed * icy) / np.maximum(_accumulate(receiver, icy.astype(np.float32)), 1)
        load = ndimage.gaussian_filter(np.where(icy, load, 0), 0.6).astype(np.float32)
        return cls(surface.astype(np.float32), glacier, _upsample(line.astype(np.float32), 1), _upsample(load, 1))


def _flow_ice(
    bed: Array, line: Array, holds: Array, climate: tuple[float, float], spacing_m: float, years: float
) -> Array:
    """Thickness (m) of the ice after `years`, by the shallow-ice approximation in explicit steps.

    Args:
        bed: height of the rock, m.
        line: height of the equilibrium line, m.
        holds: 1 where snow stays, 0 where it is too steep.
        climate: gain of mass balance with height, 1/a, and the most snow, m ice equivalent a year.
        spacing_m: side of a cell.
        years: time that the ice has on the grid of twice the spacing, where steps are four times as long; the
            last 30 are for this grid.

    Fluxes take the diffusivity of the upper cell, so that no ice leaves where there is none.
    """
    gradient, most = climate
    thickness = np.zeros_like(bed)
    if spacing_m <= PIXEL_M * _COARSE:
        half = [ndimage.zoom(field, 0.5, order=1, grid_mode=True, mode="nearest") for field in (bed, line, holds)]
        coarser = _flow_ice(half[0], half[1], half[2], climate, 2 * spacing_m, years)
        thickness, years = ndimage.zoom(coarser, 2, order=1, grid_mode=True, mode="nearest"), 30
    fastest = np.float32(50_000)  # m²/a: thicker ice than this allows is not worth its short steps
    step = np.float32(0.2 * spacing_m**2 / fastest)
    at_sea = bed < 0
    for _ in range(int(years / step)):
        surface = bed + thickness
        south, east = np.diff(surface, axis=0) / spacing_m, np.diff(surface, axis=1) / spacing_m
        rise = np.zeros_like(bed)
        rise[1:-1] = (0.5 * (south[1:] + south[:-1])) ** 2
        rise[:, 1:-1] += (0.5 * (east[:, 1:] + east[:, :-1])) ** 2
        cubed = thickness * thickness * thickness
        # Deformation (2 A (rho g)^3 / 5, temperate ice) and sliding, both proportional to the slope squared.
        diffusivity = np.minimum((2.2e-5 * thickness * thickness + 0.6) * cubed * rise, fastest)
        south *= np.where(south > 0, diffusivity[1:], diffusivity[:-1])
        east *= np.where(east > 0, diffusivity[:, 1:], diffusivity[:, :-1])
        gain = np.clip((surface - line) * np.float32(gradient), -12, most)
        gain *= np.where(gain > 0, holds, 1)
        gain[at_sea] = -60  # calving
        gain[:-1] += south / spacing_m
        gain[1:] -= south / spacing_m
        gain[:, :-1] += east / spacing_m
        gain[:, 1:] -= east / spacing_m
        thickness = np.maximum(thickness + step * gain, 0)
    return thickness.astype(np.float32)


# --- what lies on the ground ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layers:
    """Fields (H, W) of one grid."""

    def cut(self, inner: slice) -> Self:
        """Return the same layers on the square `inner`."""
        return type(self)(*(getattr(self, field.name)[inner, inner] for field in fields(self)))


@dataclass(frozen=True)
class _Cover(_Layers):
    """What covers each pixel; shares are 0..1."""

    elevation_m: Array
    above_line_m: Array  # height above the local equilibrium line
    glacier: Mask
    water: Mask
    debris: Array  # share, on glaciers only
    snow: Array  # share
    vegetation: Array  # share of what is neither ice, snow nor water

    @classmethod
    def lay(cls, rng: np.random.Generator, traits: Region, ground: _Ground, ice: _Ice, dryness: float) -> _Cover:
        """Put lakes, debris, seasonal snow and plants where they belong."""
        side = ground.fine_m.shape[0]
        glacier = ice.glacier
        elevation, lakes = _fill_lakes(rng, traits, ice)
        water = lakes | ((elevation <= 0) & ~glacier)
        rise = _draw(rng, traits.rise_m) * ground.small
        above = elevation - ice.equilibrium_line_m - rise
        share = np.clip(_draw(rng, traits.debris_share) * (1 + 0.35 * dryness), 0.02, 0.9)
        debris = _cover_with_debris(rng, glacier, -above, ice.rock_load, share)
        elevation = elevation + 1.5 * debris * _noise(rng, side, 5)

        smooth = ndimage.gaussian_filter(elevation, 2)
        south, east = _gradient(smooth)
        steep = np.hypot(south, east)
        poleward = traits.poleward(south)
        hollow = ndimage.gaussian_filter(elevation, 8) - smooth
        patches = 0.5 * _noise(rng, side, 24) + 0.4 * _noise(rng, side, 5)
        snow_line = ground.equilibrium_line_m + rise + _draw(rng, traits.snow_line_m) * ground.small
        cool = np.clip(1.5 * poleward, -1.2, 1.2) + np.where(glacier, 0.5, np.clip(hollow / 8, -6, 2) + patches)
        stays = np.where(glacier, 1, 1 - _ramp(steep, 0.65, 1.0)) * ~water
        snow = _ramp((elevation - snow_line) / 150 + cool, 0, 1) * stays
        tree_line = ground.equilibrium_line_m + _draw(rng, traits.vegetation_limit_m) * ground.small
        green = (tree_line - elevation) / 150
        green += 0.9 * _noise(rng, side, 20) + 0.3 * _noise(rng, side, 4) - np.clip(poleward, -0.5, 0.5)
        green = _ramp(green, -1, 2) * (1 - _ramp(steep, 0.7, 1.2)) * traits.vegetation_share
        return cls(elevation.astype(np.float32), above, glacier, water, debris, snow, green)

    def surface(self) -> NDArray[np.uint8]:
        """Class of each pixel: background, clean ice, debris-covered ice, water."""
        ice = np.where(self.debris > 0.5, DEBRIS_ICE, CLEAN_ICE)
        return np.where(self.glacier, ice, np.where(self.water, WATER, BACKGROUND)).astype(np.uint8)


def _fill_lakes(rng: np.random.Generator, traits: Region, ice: _Ice) -> tuple[Array, Mask]:
    """Scour hollows into gentle ground, most of them near ice, and fill them; return the surface and the lakes."""
    elevation, lakes = ice.surface_m.copy(), np.zeros_like(ice.glacier)
    steep = _slope(ndimage.gaussian_filter(elevation, 3))
    far = ndimage.distance_transform_edt(~ice.glacier)
    hollow = ndimage.gaussian_filter(elevation, 12) - elevation
    wish = np.exp(-steep / 0.07) * (np.exp(-far / 40) + 0.02) * (_ramp(hollow, -5, 25) + 1e-6)
    wish[ice.glacier | (elevation <= 2)] = 0
    uneven = 1 + 0.25 * _noise(rng, len(steep), 8, 2.5)
    total = np.cumsum(wish)
    if total[-1] < 1e-9:
        return elevation, lakes
    for place in np.searchsorted(total, rng.uniform(0, total[-1], rng.poisson(traits.lakes))):
        row, column = divmod(int(place), len(steep))
        radius = float(np.clip(rng.lognormal(1.6, 0.6), 2, 16))
        reach = int(3 * radius) + 3
        top, left = max(row - reach, 0), max(column - reach, 0)
        window = np.s_[top : row + reach + 1, left : column + reach + 1]
        floor, icy = elevation[window], ice.glacier[window]
        down, right = np.indices(floor.shape)
        down, right = down + top - row, right + left - column
        angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 2)
        along = down * np.cos(angle) + right * np.sin(angle)
        across = right * np.cos(angle) - down * np.sin(angle)
        bowl = np.exp(-((along / stretch) ** 2 + across**2) / radius**2)
        depth = 6 + 1.1 * radius * PIXEL_M * steep[row, column]
        floor -= np.where(icy, 0, depth * bowl * uneven[window])
        brim = np.pad(np.full_like(floor[1:-1, 1:-1], floor.max()), 1, constant_values=-np.inf)
        level = reconstruction(np.maximum(brim, floor), floor, method="erosion")
        wet = remove_small_objects((level - floor > 1.5) & ~icy, max_size=8)
        floor[wet] = level[wet]
        lakes[window] |= wet
    return elevation, lakes


def _cover_with_debris(
    rng: np.random.Generator, glacier: Mask, below_line_m: Array, rock_load: Array, share: float
) -> Array:
    """Share of debris on each pixel of ice: most where the ice has brought rock down and melted, near its end."""
    melting = glacier & (below_line_m > 0)
    if not melting.any():
        return np.zeros_like(below_line_m)
    labels, count = ndimage.label(glacier)
    lowest = ndimage.maximum(below_line_m, labels, np.arange(count + 1)).astype(np.float32)[labels]
    down = np.clip(below_line_m / np.maximum(lowest, 120), 0, 1)
    margin = np.exp(-ndimage.distance_transform_edt(glacier) / 4)
    load = np.clip(rock_load / max(float(np.quantile(rock_load[melting], 0.95)), 1e-3), 0, 1)
    amount = down * (1 + 0.8 * load + 0.4 * margin)
    amount += 0.1 * _noise(rng, len(down), 20) + 0.03 * _noise(rng, len(down), 4)
    least = np.quantile(amount[melting], 1 - share)
    return _ramp(amount, least - 0.08, least + 0.08) * (glacier & (below_line_m > -30))


# --- how it is seen ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Light(_Layers):
    """The sun on the terrain, relative to flat open ground."""

    slope_deg: Array
    direct: Array  # 0 in shadow, 1 on flat ground, more on slopes towards the sun
    sky: Array  # share of the sky that a slope sees
    radar_facing: Array  # rise towards the radar, m/m

    @classmethod
    def shine(cls, rng: np.random.Generator, traits: Region, elevation: Array) -> _Light:
        """Draw the sun's and the radar's place and light the terrain."""
        sun_elevation = np.deg2rad(_draw(rng, traits.sun_elevation_deg))
        azimuth = np.deg2rad(_draw(rng, traits.sun_azimuth_deg))
        south, east = _gradient(elevation)
        upright = 1 / np.sqrt(1 + south * south + east * east)
        towards_sun = np.cos(azimuth) * south - np.sin(azimuth) * east
        incidence = upright * (1 + towards_sun / np.tan(sun_elevation))
        lit = ndimage.gaussian_filter(1 - _cast_shadow(elevation, sun_elevation, azimuth).astype(np.float32), 0.6)
        return cls(
            slope_deg=np.rad2deg(np.arccos(upright)).astype(np.float32),
            direct=(np.maximum(incidence, 0) * lit).astype(np.float32),
            sky=((1 + upright) / 2).astype(np.float32),
            radar_facing=(east if rng.random() < 0.5 else -east).astype(np.float32),
        )


def _cast_shadow(elevation: Array, sun_elevation: float, azimuth: float) -> Mask:
    """True where ground towards the sun rises above the ray that would come in (angles in radians)."""
    shadow = np.zeros(elevation.shape, bool)
    rows, columns = elevation.shape
    rise = PIXEL_M * np.tan(sun_elevation)
    for step in range(1, min(int(np.ptp(elevation) / rise), max(rows, columns) - 1) + 1):
        down, right = round(-np.cos(azimuth) * step), round(np.sin(azimuth) * step)
        here = np.s_[max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)]
        there = np.s_[max(down, 0) : rows + min(down, 0), max(right, 0) : columns + min(right, 0)]
        shadow[here] |= elevation[there] - elevation[here] > rise * step
    return shadow


def _swath(rng: np.random.Generator, size: int) -> Mask:
    """Where the sensor saw: everywhere in most scenes, else without what lies beyond an edge or behind a mask."""
    down, right = np.mgrid[:size, :size] / size - 0.5
    kind = rng.random()
    if kind < 0.12:
        angle = rng.choice([10, 100, 190, 280]) * np.pi / 180
        return down * np.sin(angle) + right * np.cos(angle) < rng.uniform(0.2, 0.45)
    if kind < 0.22:
        return _noise(rng, size, size / 4, 2.5) < rng.uniform(1.2, 2.2)
    return np.ones((size, size), bool)


def _see_optical(rng: np.random.Generator, traits: Region, cover: _Cover, light: _Light) -> Array:
    """Top-of-atmosphere reflectance (H, W, 6) of the mixed materials under sun, sky and air."""
    side = len(cover.snow)
    colour = {name: np.array(values, np.float32) for name, values in _SPECTRA.items()}

    def field(low: float, high: float, wavelength: float) -> Array:
        return np.clip((low + high) / 2 + (high - low) / 2 * _noise(rng, side, wavelength), 0, 1)[..., None]

    def grain(amount: float) -> Array:
        return np.exp(amount * _noise(rng, side, 3, 1.2))[..., None].astype(np.float32)

    brightness = _draw(rng, traits.rock_brightness)
    rock = _mix(colour["rock"], colour["red rock"], field(0, 0.7, 60)) * brightness * grain(0.13)
    rock = rock * np.exp(0.18 * _noise(rng, side, 30))[..., None]
    land = _mix(rock, colour["vegetation"] * grain(0.12), cover.vegetation[..., None])
    old = np.clip(0.6 - cover.above_line_m[..., None] / 600 + field(-0.25, 0.25, 30), 0, 1)
    snow = _mix(colour["fresh snow"], colour["old snow"], old) * grain(0.03)
    ice = _mix(colour["ice"], colour["dirty ice"], field(0, 0.9, 25)) * grain(0.10)
    rubble = _mix(colour["rock"], colour["red rock"], field(0, 0.7, 60)) * (0.95 * brightness) * grain(0.16)
    glacier = _mix(_mix(ice, snow, cover.snow[..., None]), rubble, cover.debris[..., None])
    murk = np.clip(_draw(rng, traits.turbidity) + field(-0.15, 0.15, 60) - 0.5, 0, 1)
    water = _mix(colour["clear water"], colour["turbid water"], murk) * grain(0.04)

    reflectance = _mix(land, snow, cover.snow[..., None])
    reflectance = np.where(cover.glacier[..., None], glacier, reflectance)
    reflectance = np.where(cover.water[..., None], water, reflectance)
    light_by_band = (1 - _DIFFUSE) * light.direct[..., None] + _DIFFUSE * light.sky[..., None]
    air = _PATH * np.exp(-cover.elevation_m / 8000)[..., None] * rng.uniform(0.7, 1.4)
    seen = ndimage.gaussian_filter(reflectance * light_by_band, (0.45, 0.45, 0)) + air
    seen += _SENSOR_NOISE * rng.standard_normal(seen.shape, dtype=np.float32)
    return np.clip(seen, 0, _SATURATION).astype(np.float32)


def _by_cover(cover: _Cover, values: Mapping[str, float | Array]) -> Array:
    """Blend one value per material by what covers each pixel."""
    glacier = _mix(_mix(values["ice"], values["firn"], cover.snow), values["debris"], cover.debris)
    land = _mix(_mix(values["rock"], values["vegetation"], cover.vegetation), values["snow"], cover.snow)
    return np.where(cover.water, values["water"], np.where(cover.glacier, glacier, land))


def _see_radar(rng: np.random.Generator, cover: _Cover, light: _Light) -> Array:
    """Backscatter in dB (H, W, 2): class means, brighter towards the radar, with speckle."""
    side = len(cover.snow)
    facing = np.clip(4.5 * light.radar_facing, -5, 6)
    channels = []
    for channel in range(2):
        means = {name: pair[channel] + rng.normal(0, 0.7) for name, pair in _BACKSCATTER_DB.items()}
        speckle = 10 * np.log10(rng.standard_gamma(_LOOKS, (side, side), dtype=np.float32) / _LOOKS + 1e-3)
        channels.append(_by_cover(cover, means) + facing + 0.9 * _noise(rng, side, 20) + speckle)
    return np.stack(channels, axis=-1).astype(np.float32)


def _see_thermal(rng: np.random.Generator, traits: Region, cover: _Cover, light: _Light) -> Array:
    """Brightness temperature in K (H, W, 1): air by height, ground warmed by the sun, snow and ice at most melting."""
    side = len(cover.snow)
    freezing = 273.15
    # `above_line_m` is local; the isotherm is not, but the difference is weather.
    air = freezing + 0.0065 * (_draw(rng, traits.zero_degree_m) - cover.above_line_m)
    sun = 0.35 + 0.65 * np.clip(light.direct, 0, 1.3)
    cold = np.minimum(air, freezing) - 0.6
    warm = {name: air + warmth * sun for name, warmth in _WARMTH_K.items()}
    kelvin = _by_cover(cover, warm | {"ice": cold, "firn": cold, "snow": cold + 0.8})
    kelvin = ndimage.gaussian_filter(kelvin + 1.2 * _noise(rng, side, 25), 1.2)
    kelvin += 0.6 * rng.standard_normal(kelvin.shape, dtype=np.float32)
    return kelvin[..., None].astype(np.float32)
