"""From labels to a GeoPackage: the same mask back, fields, areas, styles, and messages for what can't be used."""

from __future__ import annotations

import datetime
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio import features
from rasterio.transform import Affine
from scipy import ndimage

from console import UserError
from data.grids import read_grid
from data.synthetic import SURFACE_CLASSES
from data.tiles import TWO_CLASSES, ClassInfo
from data.windows import Window
from inference.areas import PixelAreas, area_interval, pixel_size_m
from inference.outlines import Summary, write_outlines
from inference.topology import Smoothing
from tests.conftest import WriteRaster

SHAPE = (70, 80)
Labels = NDArray[np.uint8]


def surfaces(seed: int = 0) -> Labels:
    """Return labels of four surfaces, and unknown pixels in a corner."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 5)
    other = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 4)
    labels = np.where(field > 0, np.where(other > 0.02, 2, 1), np.where(other > 0.06, 3, 0)).astype(np.uint8)
    labels[-9:, :12] = 255
    return labels


def layers(path: Path) -> dict[str, geopandas.GeoDataFrame]:
    names = [str(name) for name, kind in pyogrio.list_layers(path) if kind]
    return {name: geopandas.read_file(path, layer=name) for name in names}


def mask_of(path: Path, like: Path, classes: Sequence[ClassInfo]) -> Labels:
    """Return the class layers as labels again, by the pixels' centres."""
    with rasterio.open(like) as dataset:
        labels, transform = np.zeros(dataset.shape, np.uint8), dataset.transform
    for number, frame in enumerate(list(layers(path).values())[: len(classes) - 1], start=1):
        if len(frame):
            shapes = ((shape, number) for shape in frame.geometry)
            features.rasterize(shapes, out=labels, transform=transform)
    return labels


# -- masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", ["none", "chaikin"])
@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32645", (30, 0, 500_000, 0, -30, 3_100_000)),
        ("EPSG:4326", (1 / 3600, 0, 87.3, 0, -1 / 3600, 28.1)),
        ("EPSG:32718", (20, 15, 700_000, 15, -20, 4_650_000)),
    ],
    ids=["projected", "degrees", "rotated"],
)
def test_outlines_have_the_mask_back(
    crs: str, transform: tuple[float, ...], smoothing: Smoothing, tmp_path: Path, write_raster: WriteRaster
) -> None:
    labels = surfaces()
    path = write_raster(tmp_path / "labels.tif", labels, crs, transform, nodata=255)
    target = tmp_path / "outlines.gpkg"
    write_outlines(path, target, SURFACE_CLASSES, smallest_km2=0, smallest_hole_km2=0, smoothing=smoothing)
    found = layers(target)
    assert list(found) == ["clean_ice", "debris_covered_ice", "water", "glacier"]
    np.testing.assert_array_equal(mask_of(target, path, SURFACE_CLASSES), np.where(labels == 255, 0, labels))
    parts = np.concatenate([frame.geometry.array for frame in list(found.values())[:3]])
    assert shapely.is_valid(parts).all() and shapely.coverage_is_valid(np.array(parts, object))
    ice = shapely.union_all(parts[: len(found["clean_ice"]) + len(found["debris_covered_ice"])])
    assert found["glacier"].union_all().symmetric_difference(ice).area < 1e-9 * ice.area
    assert [frame.crs for frame in found.values()] == [rasterio.open(path).crs] * 4


def test_reference_masks_of_a_real_scene_come_back_identical(
    tmp_path: Path, shared: Path, write_raster: WriteRaster
) -> None:
    masks = sorted((shared / "real" / "glacierhack").glob("*/label/*.tif"))
    assert len(masks) == 20
    for mask in masks:
        with rasterio.open(mask) as dataset:
            labels = (dataset.read(1) == 255).astype(np.uint8)
            path = write_raster(tmp_path / "labels.tif", labels, dataset.crs, dataset.transform)
        write_outlines(path, tmp_path / "outlines.gpkg", TWO_CLASSES, smallest_km2=0, smallest_hole_km2=0)
        np.testing.assert_array_equal(mask_of(tmp_path / "outlines.gpkg", path, TWO_CLASSES), labels)


def test_labels_are_cleaned_first(tmp_path: Path, write_raster: WriteRaster) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:40, 10:40] = 1
    labels[20:22, 20:25] = 0  # a hole of 10 pixels
    labels[60:63, 60:63] = 1  # an object of 9
    path = write_raster(tmp_path / "labels.tif", labels)
    pixel_km2 = 9e-4

    def made(**how: Any) -> tuple[int, int]:
        summary = write_outlines(path, tmp_path / "outlines.gpkg", TWO_CLASSES, **how)
        frame = layers(tmp_path / "outlines.gpkg")["glacier"]
        return summary.layers[0].polygons, sum(len(shape.interiors) for shape in frame.geometry)

    assert made(smallest_km2=0, smallest_hole_km2=0) == (2, 1)
    assert made(smallest_km2=9.5 * pixel_km2, smallest_hole_km2=0) == (1, 1)
    assert made(smallest_km2=0, smallest_hole_km2=10.5 * pixel_km2) == (2, 0)
    assert made() == (1, 0)
    labels[60:63, 60:63] = 0
    labels[0, 0] = 1
    write_raster(path, labels)
    assert made(smallest_km2=0, smallest_hole_km2=0, median_px=3)[0] == 1


# -- fields --------------------------------------------------------------------------------------------------


def inputs(folder: Path, write_raster: WriteRaster, seed: int = 0) -> dict[str, Any]:
    """Write labels of two classes, with their confidence as bytes and probability as floats, and elevations."""
    probability = ndimage.gaussian_filter(np.random.default_rng(seed).random(SHAPE), 4)
    probability = 1 / (1 + np.exp(-(probability - np.median(probability)) * 80))
    confidence = np.maximum(probability, 1 - probability)
    nodata = np.zeros(SHAPE, bool)
    nodata[:6, :20] = True
    paths: dict[str, Any] = {
        "labels": write_raster(
            folder / "labels.tif", np.where(nodata, 255, probability > 0.5).astype(np.uint8), nodata=255
        ),
        "confidence": write_raster(
            folder / "confidence.tif", np.where(nodata, 255, np.rint(confidence * 250)).astype(np.uint8), nodata=255
        ),
        "probs": write_raster(folder / "probs.tif", np.where(nodata, np.nan, probability).astype(np.float32)),
    }
    with rasterio.open(paths["confidence"], "r+") as dataset:
        dataset.scales = (1 / 250,)
    heights = (5000 - 3 * np.indices(SHAPE)[1]).astype(np.float32)
    paths["dem"] = write_raster(folder / "copernicus.tif", heights)
    return paths


def test_fields_are_those_of_rgi_7_where_they_can_be_computed(tmp_path: Path, write_raster: WriteRaster) -> None:
    paths = inputs(tmp_path, write_raster)
    target = tmp_path / "outlines.gpkg"
    labels = paths.pop("labels")
    summary = write_outlines(
        labels, target, TWO_CLASSES, **paths, correlation_length_m=90, src_date=datetime.date(2020, 8, 31)
    )
    frame = layers(target)["glacier"]
    assert list(frame.columns[:-1]) == [
        *("src_date", "cenlon", "cenlat", "utm_zone", "area_km2", "area_min_km2", "area_max_km2", "area_prob_km2"),
        *("area_p05_km2", "area_p95_km2", "confidence_mean", "cut_off", "zmin_m", "zmax_m", "zmed_m", "zmean_m"),
        *("slope_deg", "aspect_deg", "aspect_sec", "dem_source"),
    ]
    assert set(frame["src_date"]) == {"2020-08-31"} and set(frame["dem_source"]) == {"copernicus"}
    assert set(frame["utm_zone"]) == {45} and set(frame["aspect_sec"]) == {3}
    np.testing.assert_allclose(frame["slope_deg"], np.degrees(np.arctan(0.1)), rtol=1e-3)
    points = geopandas.points_from_xy(frame["cenlon"], frame["cenlat"], crs="EPSG:4326").to_crs(frame.crs)
    assert all(shape.contains(point) for shape, point in zip(frame.geometry, points, strict=True))
    np.testing.assert_allclose(frame["area_km2"], frame.geometry.area / 1e6 / 0.9996**2, rtol=1e-4)
    assert (frame["area_min_km2"] < frame["area_km2"]).all() and (frame["area_km2"] < frame["area_max_km2"]).all()
    assert (frame["area_p05_km2"] < frame["area_prob_km2"]).all()
    assert (frame["area_prob_km2"] < frame["area_p95_km2"]).all()
    assert frame["confidence_mean"].between(0.5, 1).all()
    with rasterio.open(labels) as dataset:
        box = shapely.box(*dataset.bounds)
    at_edge = frame.geometry.intersects(box.exterior)
    assert (frame["cut_off"][at_edge] == 1).all() and not frame["cut_off"].all()
    (layer,) = summary.layers
    assert layer.polygons == len(frame) and layer.area_km2 == pytest.approx(frame["area_km2"].sum())
    assert layer.half_pixel.low_km2 == pytest.approx(frame["area_min_km2"].sum())
    assert Summary(target, summary.layers).to_json()[0]["name"] == "glacier"


def test_the_area_of_a_scene_is_that_of_all_its_probabilities(tmp_path: Path, write_raster: WriteRaster) -> None:
    paths = inputs(tmp_path, write_raster)
    grid = read_grid(paths["probs"])
    with rasterio.open(paths["probs"]) as dataset:
        probability = dataset.read(1)

    def read(window: Window) -> NDArray[np.floating]:
        return probability[window.slices]

    expected = area_interval(read, PixelAreas(grid).of, SHAPE, 90, pixel_size_m(grid))
    target = tmp_path / "outlines.gpkg"
    by_probs = write_outlines(paths["labels"], target, TWO_CLASSES, probs=paths["probs"], correlation_length_m=90)
    found = by_probs.layers[0].probable
    assert found is not None and found.area_km2 == pytest.approx(expected.area_km2, rel=1e-6)
    assert found.low_km2 == pytest.approx(expected.low_km2, rel=1e-5)
    # With two classes, the confidence says the same, as far as a byte can.
    by_confidence = write_outlines(
        paths["labels"], target, TWO_CLASSES, confidence=paths["confidence"], correlation_length_m=90
    )
    same = by_confidence.layers[0].probable
    assert same is not None and same.area_km2 == pytest.approx(expected.area_km2, rel=2e-3)
    without = write_outlines(paths["labels"], target, TWO_CLASSES, probs=paths["probs"])
    assert without.layers[0].probable is None
    assert "area_prob_km2" in layers(target)["glacier"] and "area_p05_km2" not in layers(target)["glacier"]


def test_nine_of_ten_glaciers_have_their_true_area_in_the_interval(tmp_path: Path, write_raster: WriteRaster) -> None:
    rng = np.random.default_rng(5)
    paths = inputs(tmp_path, write_raster)
    with rasterio.open(paths["probs"]) as dataset:
        probability = np.nan_to_num(dataset.read(1))
    target = tmp_path / "outlines.gpkg"
    write_outlines(
        paths["labels"], target, TWO_CLASSES, probs=paths["probs"], correlation_length_m=0, smallest_km2=0.05
    )
    frame = layers(target)["glacier"]
    transform = read_grid(paths["labels"]).transform
    nearest = np.stack(
        [
            ndimage.distance_transform_edt(features.rasterize([shape], SHAPE, transform=Affine(*transform)) == 0)
            for shape in frame.geometry
        ]
    )
    own = np.where(nearest.min(axis=0) <= 2, nearest.argmin(axis=0), -1)
    held = []
    for _ in range(200):
        # Independent errors, of correlation length 0.
        truth = rng.random(SHAPE) < probability
        areas = np.array([truth[own == number].sum() for number in range(len(frame))]) * 9e-4 / 0.9996**2
        held.append((frame["area_p05_km2"] <= areas) & (areas <= frame["area_p95_km2"]))
    assert 0.85 <= np.mean(held) <= 0.95


def test_divides_split_all_layers_alike_and_say_the_basin(tmp_path: Path, write_raster: WriteRaster) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:60, 10:70] = 1
    labels[40:60, 10:70] = 2
    path = write_raster(tmp_path / "labels.tif", labels)
    x, y = 500_000 + 40 * 30, 3_100_000
    basins = [shapely.box(500_000, y - 2100, x, y), shapely.box(x, y - 2100, x + 1200, y)]
    geopandas.GeoDataFrame({"rgi_id": ["A", "B"]}, geometry=basins, crs="EPSG:32645").to_file(tmp_path / "rgi.gpkg")
    target = tmp_path / "outlines.gpkg"
    summary = write_outlines(path, target, SURFACE_CLASSES, divides=tmp_path / "rgi.gpkg")
    found = layers(target)
    for name in ("clean_ice", "debris_covered_ice", "glacier"):
        assert sorted(found[name]["basin_id"]) == ["A", "B"]
        west, east = found[name].sort_values("basin_id").geometry
        assert west.bounds[2] == east.bounds[0] == x
    np.testing.assert_array_equal(mask_of(target, path, SURFACE_CLASSES), labels)
    # All glaciers together have no uncertain border between them.
    whole = write_outlines(path, tmp_path / "whole.gpkg", SURFACE_CLASSES).layers[3]
    assert summary.layers[3].half_pixel.high_km2 == pytest.approx(whole.half_pixel.high_km2)
    assert found["glacier"]["area_max_km2"].sum() > whole.half_pixel.high_km2


# -- the file ------------------------------------------------------------------------------------------------


def test_layers_carry_their_style_and_description(tmp_path: Path, write_raster: WriteRaster) -> None:
    path = write_raster(tmp_path / "labels.tif", surfaces(), nodata=255)
    target = tmp_path / "outlines.gpkg"
    write_outlines(path, target, SURFACE_CLASSES, described="Predicted by a test & checked")
    connection = sqlite3.connect(target)
    styles = connection.execute(
        "SELECT f_table_name, f_geometry_column, styleName, styleQML, styleSLD, useAsDefault FROM layer_styles"
    ).fetchall()
    columns = dict(connection.execute("SELECT table_name, column_name FROM gpkg_geometry_columns").fetchall())
    contents = {
        row[0]: row[1:] for row in connection.execute("SELECT table_name, data_type, description FROM gpkg_contents")
    }
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert [style[0] for style in styles] == ["clean_ice", "debris_covered_ice", "water", "glacier"]
    assert contents["layer_styles"][0] == "attributes"
    for (table, geometry, title, qml, sld, default), entry in zip(styles, SURFACE_CLASSES[1:], strict=False):
        assert geometry == columns[table] and title == entry.name and default == 1
        red, green, blue = (int(entry.color[at : at + 2], 16) for at in (1, 3, 5))
        assert f'value="{red},{green},{blue},110"' in qml and entry.color in sld
        assert contents[table] == ("features", "Predicted by a test & checked")


def test_a_scene_without_glaciers_gives_empty_layers_and_a_warning(
    tmp_path: Path, write_raster: WriteRaster, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = inputs(tmp_path, write_raster)
    empty = write_raster(tmp_path / "empty.tif", np.zeros(SHAPE, np.uint8))
    paths.pop("labels")
    summary = write_outlines(
        empty, tmp_path / "o.gpkg", TWO_CLASSES, **paths, correlation_length_m=50, src_date="2020-08-31"
    )
    assert "no pixel is of a class other than background" in capsys.readouterr().err
    frame = layers(tmp_path / "o.gpkg")["glacier"]
    assert len(frame) == 0 and "zmed_m" in frame and frame.crs == "EPSG:32645"
    assert summary.layers[0].area_km2 == 0 and summary.layers[0].half_pixel.high_km2 == 0


def test_outlines_are_written_where_tensorflow_was_imported_first(tmp_path: Path, write_raster: WriteRaster) -> None:
    path = write_raster(tmp_path / "labels.tif", surfaces(), nodata=255)
    program = (
        "import sys, tensorflow; from pathlib import Path; from data.synthetic import SURFACE_CLASSES;"
        "from inference.outlines import write_outlines; write_outlines(*map(Path, sys.argv[1:]), SURFACE_CLASSES)"
    )
    target = tmp_path / "outlines.gpkg"
    subprocess.run([sys.executable, "-c", program, path, target], check=True, cwd=Path(__file__).parents[2])
    write_outlines(path, tmp_path / "here.gpkg", SURFACE_CLASSES)
    for name, frame in layers(tmp_path / "here.gpkg").items():
        assert layers(target)[name].equals(frame)
        box = tuple(frame.total_bounds)
        assert len(pyogrio.read_dataframe(target, layer=name, bbox=box)) == len(frame)


# -- what can't be used --------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_and_nothing_is_written(tmp_path: Path, write_raster: WriteRaster) -> None:
    paths = inputs(tmp_path, write_raster)
    labels, target = paths["labels"], tmp_path / "new" / "outlines.gpkg"
    bare = write_raster(tmp_path / "bare.tif", np.zeros(SHAPE, np.uint8), crs=None)
    floats = write_raster(tmp_path / "floats.tif", np.zeros(SHAPE, np.float32))
    many = write_raster(tmp_path / "many.tif", np.full(SHAPE, 7, np.uint8))
    far = write_raster(tmp_path / "far.tif", np.zeros(SHAPE, np.float32), transform=(30, 0, 9e5, 0, -30, 5e6))
    shifted = write_raster(tmp_path / "s.tif", np.ones(SHAPE, np.float32), transform=(30, 0, 500_015, 0, -30, 3.1e6))
    percent = write_raster(tmp_path / "percent.tif", np.full(SHAPE, 90, np.uint8))
    bands = write_raster(tmp_path / "bands.tif", np.zeros((*SHAPE, 3), np.float32))
    (tmp_path / "file").write_text("")
    broken = tmp_path / "broken.tif"
    broken.write_bytes(labels.read_bytes()[:3000])
    cases: list[tuple[str, dict[str, Any]]] = [
        ("CRS", {"labels": bare}),
        ("1 bands of type float32, expected labels", {"labels": floats}),
        ("class id 7, but there are 2 classes", {"labels": many}),
        ("can't be read", {"labels": broken}),
        ("the elevation model does not reach the scene", {"dem": far}),
        ("another grid than the labels", {"confidence": shifted}),
        ("beyond 0 to 1", {"confidence": percent}),
        ("has 3 bands, expected one for each of the 2 classes", {"probs": bands}),
        ("can't be written there", {"target": tmp_path / "file" / "outlines.gpkg"}),
        ("ending in .gpkg", {"target": tmp_path / "outlines.shp"}),
        ("3 pixels|an odd number", {"median_px": 4}),
        ("smallest object is -1", {"smallest_km2": -1}),
        ("'yesterday'; expected ISO 8601", {"src_date": "yesterday"}),
        ("no such file", {"divides": tmp_path / "none.gpkg"}),
    ]
    for message, changed in cases:
        arguments: dict[str, Any] = {"labels": labels, "target": target, "classes": TWO_CLASSES} | changed
        with pytest.raises(UserError, match=message):
            write_outlines(**arguments)
    assert not list((tmp_path / "new").glob("*"))


def test_areas_are_right_where_pixels_are_degrees(tmp_path: Path, write_raster: WriteRaster) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:60, 10:70] = 1
    path = write_raster(tmp_path / "labels.tif", labels, "EPSG:4326", (1 / 3600, 0, 20, 0, -1 / 3600, 78))
    write_outlines(path, tmp_path / "o.gpkg", TWO_CLASSES)
    frame = layers(tmp_path / "o.gpkg")["glacier"]
    utm = shapely.transform(
        shapely.segmentize(frame.geometry.array[0], 1e-3),
        lambda xy: np.stack(Transformer.from_crs(4326, "ESRI:54034", always_xy=True).transform(*xy.T), axis=1),
    )
    assert frame["area_km2"][0] == pytest.approx(utm.area / 1e6, rel=1e-5)
