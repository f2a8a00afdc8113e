"""Fixtures that rooms share: tile files and rasters made on the fly, the folder of reference data if it is there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from data.normalisation import Statistics, fit
from data.tiles import TWO_CLASSES, ClassInfo, TileWriter

WriteTiles = Callable[..., Path]
WriteRaster = Callable[..., Path]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; without it the tests that need it are skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference data in {folder}")
    return folder


def random_tile(
    rng: np.random.Generator, size: tuple[int, int], modalities: Mapping[str, int], classes: int = 2
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    """Draw modalities `(H, W, C)` in 0..1 and a mask `(H, W)`."""
    arrays = {name: rng.random((*size, count), dtype=np.float32) for name, count in modalities.items()}
    return arrays, rng.integers(0, classes, size).astype(np.uint8)


@pytest.fixture
def write_tiles() -> WriteTiles:
    """Write a tile file in our format: `write_tiles(path, regions=("HMA", "ALP"), size=(32, 40), …)`.

    Tile `t0` has the first region, `t1` the second and so on; the lower left corner of each is invalid.
    """

    def write(
        path: Path,
        regions: Sequence[str] = ("HMA", "ALP"),
        size: tuple[int, int] = (32, 40),
        modalities: Mapping[str, int] | None = None,
        classes: Sequence[ClassInfo] = TWO_CLASSES,
        statistics: Statistics | None = None,
        seed: int = 0,
    ) -> Path:
        rng = np.random.default_rng(seed)
        modalities = modalities or {"optical": 6, "dem": 2}
        bands = {name: [f"{name}{index}" for index in range(count)] for name, count in modalities.items()}
        tiles = [random_tile(rng, size, modalities, len(classes)) for _ in regions]
        valid = np.ones(size, bool)
        valid[-(size[0] // 8 or 1) :, : size[1] // 8 or 1] = False
        for arrays, _ in tiles:
            for array in arrays.values():
                array[~valid] = np.nan
        statistics = statistics or fit((arrays, valid) for arrays, _ in tiles)
        with TileWriter(path, classes, bands, statistics, {"kind": "test"}, "pytest") as writer:
            for index, (region, (arrays, mask)) in enumerate(zip(regions, tiles, strict=True)):
                writer.add(f"t{index}", arrays, mask, valid, region, f"{region}-1")
        return path

    return write


@pytest.fixture
def weaken() -> Callable[..., str]:
    """Make the masks of tile files weak, as their provenance says: `weaken(path, …)`; return the rule."""

    def mark(*paths: Path) -> str:
        for path in paths:
            with h5py.File(path, "a") as file:
                described = {"mask": {"kind": "weak", "rule": "ndsi > 0.4", "threshold": 0.4}}
                file.attrs["provenance"] = json.dumps(described)
        return "ndsi > 0.4"

    return mark


@pytest.fixture
def write_raster() -> WriteRaster:
    """Write a GeoTIFF: `write_raster(path, values, crs, transform, nodata=None, descriptions=None, **profile)`.

    `values` is (H, W) or (H, W, C) of any type that GDAL knows; `crs` whatever rasterio takes, None for none;
    `transform` the six numbers (a, b, c, d, e, f) or an `Affine`, None for none. Other keywords go to
    `rasterio.open` as they are, e.g. `compress="deflate", tiled=True, blockxsize=64, blockysize=64`.
    """

    def write(
        path: Path,
        values: NDArray[Any],
        crs: Any = "EPSG:32645",
        transform: Sequence[float] | None = (30.0, 0.0, 500_000.0, 0.0, -30.0, 3_100_000.0),
        nodata: float | None = None,
        descriptions: Sequence[str] | None = None,
        **profile: Any,
    ) -> Path:
        bands = np.moveaxis(values if values.ndim == 3 else values[..., None], -1, 0)
        profile = {
            "driver": "GTiff",
            "count": bands.shape[0],
            "height": bands.shape[1],
            "width": bands.shape[2],
            "dtype": bands.dtype,
            "crs": crs,
            "nodata": nodata,
            **({} if transform is None else {"transform": Affine(*tuple(transform)[:6])}),
            **profile,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # rasters without a place are made on purpose
            with rasterio.open(path, "w", **profile) as dataset:
                dataset.write(bands)
                for number, name in enumerate(descriptions or (), 1):
                    dataset.set_band_description(number, name)
        return path

    return write


@pytest.fixture
def write_published_2023() -> WriteTiles:
    """Write a tile file as published in 2023: padded, one-hot `groundtruth`, no region, no file attributes.

    `write_published_2023(path, tiles={"SC2-59-84": (40, 48)}, padding=(3, 5))`: sizes include the padding,
    which is the total added; the attributes hold the half of it in front, rounded down.
    """

    def write(
        path: Path,
        tiles: Mapping[str, tuple[int, int]] | None = None,
        padding: tuple[int, int] = (3, 5),
        unlabelled: int = 0,
        seed: int = 0,
    ) -> Path:
        rng = np.random.default_rng(seed)
        with h5py.File(path, "w") as file:
            for name, size in (tiles or {"SC2-59-84": (40, 48), "HMA-1-2": (48, 40)}).items():
                arrays, mask = random_tile(rng, size, {"optical": 6, "dem": 2, "sar": 2})
                one_hot = np.eye(2, dtype=np.uint8)[mask]
                one_hot[:unlabelled] = 0
                group = file.create_group(name)
                for key, array in {**arrays, "groundtruth": one_hot}.items():
                    group.create_dataset(key, data=array, compression="gzip")
                group.attrs["padding_height"], group.attrs["padding_width"] = padding[0] // 2, padding[1] // 2
        return path

    return write


@pytest.fixture
def write_published_2025() -> WriteTiles:
    """Write a tile file as published in 2025: one-hot `outlines`, region, subregion, size and degrees."""

    def write(
        path: Path, regions: Sequence[str] = ("ALP", "SVAL"), size: tuple[int, int] = (40, 48), seed: int = 0
    ) -> Path:
        rng = np.random.default_rng(seed)
        modalities = {"optical": 6, "dem": 2, "co_pol_sar": 2, "cross_pol_sar": 2, "in_sar": 2, "thermal": 1}
        with h5py.File(path, "w") as file:
            for index, region in enumerate(regions):
                arrays, mask = random_tile(rng, size, modalities)
                group = file.create_group(f"tile{index}")
                for key, array in {**arrays, "outlines": np.eye(2, dtype=np.float32)[mask]}.items():
                    group.create_dataset(key, data=array)
                group.attrs["region"], group.attrs["subregion"] = region, f"{region}-{index}"
                group.attrs["height"], group.attrs["width"] = size
                group.attrs["padding_height"], group.attrs["padding_width"] = 2, 0
                for key, degrees in (("xmin", 10.0), ("xmax", 10.2), ("ymin", 46.0), ("ymax", 46.2)):
                    group.attrs[key] = degrees
        return path

    return write


def build_mini(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    width: int = 4,
    gated: bool = False,
    location_size: int = 0,
    vit: bool = False,
    depth: int = 1,
) -> Any:
    """Build the zoo's fusion, location, transformer and head with nothing between, in a fraction of a second."""
    import keras

    from architectures.blocks import LocationEncoding, fuse, head, modality_inputs, network, vit_encoder

    tensors = modality_inputs(inputs, size)
    x = fuse(tensors, width, 0.0, excite=gated)
    if location_size:
        tensors["location"] = keras.Input((location_size,), name="location")
        encoding = LocationEncoding(width, 0.0, name="location_encoding")(tensors["location"])
        x = keras.layers.Add()([x, keras.layers.Reshape((1, 1, width))(encoding)])
    if vit:
        encoder = network("vit", x.shape[1:], vit_encoder(x.shape[1:], 16, width, 4, depth, 2, 0.0))
        x = keras.layers.Add()([x, keras.layers.UpSampling2D(16)(encoder(x))])
    return keras.Model(tensors, {"output": head(x, num_classes, "output")}, name="mini_model")


def build_tiny(
    inputs: dict[str, int],
    num_classes: int,
    size: tuple[int, int],
    *,
    width: int = 4,
    dropout: float = 0.1,
    location_size: int = 0,
) -> Any:
    """Build two convolutions, for what depends on no architecture: built, traced and trained in a moment."""
    import keras

    tensors = {name: keras.Input((*size, channels), name=name) for name, channels in inputs.items()}
    x = list(tensors.values())[0] if len(tensors) == 1 else keras.layers.Concatenate()(list(tensors.values()))
    x = keras.layers.Dropout(dropout)(keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x))
    if location_size:
        tensors["location"] = keras.Input((location_size,), name="location")
        x = keras.layers.Add()([x, keras.layers.Reshape((1, 1, width))(keras.layers.Dense(width)(tensors["location"]))])
    activation = "softmax" if num_classes > 1 else "sigmoid"
    output = keras.layers.Conv2D(num_classes, 1, activation=activation, dtype="float32", name="output")(x)
    return keras.Model(tensors, {"output": output})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make `tiny` one of the zoo's architectures; return the function that builds it."""
    import architectures

    module: Any = SimpleNamespace(build=build_tiny, stride=lambda **_: 1)
    monkeypatch.setitem(architectures.REGISTRY, "tiny", module)
    return build_tiny


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make `mini` one of the zoo's architectures; return the function that builds it."""
    import architectures

    module: Any = SimpleNamespace(build=build_mini, stride=lambda **_: 16)
    monkeypatch.setitem(architectures.REGISTRY, "mini", module)

    def build(inputs: dict[str, int], num_classes: int = 2, patch_size: int = 32, **options: Any) -> Any:
        return architectures.build("mini", inputs, num_classes, patch_size, **options)

    return build


@pytest.fixture
def zero_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks start from zeros: random values for millions of weights that are not looked at take seconds."""
    import keras

    def zeros(self: Any, shape: Any, dtype: Any = None, **_: Any) -> Any:
        return keras.ops.zeros(shape, dtype)

    kinds = [keras.initializers.Initializer]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind.__module__.endswith(".random_initializers") and "__call__" in vars(kind):
            monkeypatch.setattr(kind, "__call__", zeros)


@pytest.fixture
def write_keras2() -> Callable[[Any, Path], Path]:
    """Write a model's weights as Keras 2 does: layers in order, trainable tensors first, under meaningless names."""

    def write(model: Any, path: Path) -> Path:
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [f"layer_{number}".encode() for number in range(len(model.layers))]
            for number, layer in enumerate(model.layers):
                weights = sorted(layer.weights, key=lambda weight: weight.name.startswith("moving_"))
                group = file.create_group(f"layer_{number}")
                group.attrs["weight_names"] = np.array([f"w{i}:0" for i in range(len(weights))], dtype="S9")
                for i, weight in enumerate(weights):
                    group[f"w{i}:0"] = np.asarray(weight)
        return path

    return write
