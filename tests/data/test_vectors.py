"""Vector files: every format gives the same polygons, only those near are read, and what is wrong is said."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely

from console import UserError
from data.vectors import open_layer, read_layer

ENDINGS = (".gpkg", ".shp", ".geojson", ".fgb", ".parquet")
BOX = (2.5, 2.5, 5.0, 4.0)


def frame(crs: str | None = "EPSG:4326") -> geopandas.GeoDataFrame:
    """Return 100 squares, ten by ten, numbered from the lower left."""
    numbers = np.arange(100)
    columns = {"name": [f"g{number}" for number in numbers], "Area": numbers / 10.0}
    shapes = [shapely.box(number % 10, number // 10, number % 10 + 0.8, number // 10 + 0.8) for number in numbers]
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs)


def write(path: Path, content: geopandas.GeoDataFrame | None = None, covering: bool = True) -> Path:
    content = frame() if content is None else content
    if path.suffix == ".parquet":
        content.to_parquet(path, write_covering_bbox=covering)
    else:
        content.to_file(path)
    return path


def zipped(folder: Path, archive: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, f"{inside}{path.name}")
    return archive


def names(path: Path, layer: str | None = None, **options: object) -> list[str]:
    read = read_layer(open_layer(path, layer), ["name"], **options)  # type: ignore[arg-type]
    assert list(read.geometry.geom_type.unique()) in (["Polygon"], [])
    return sorted(read["name"])


def refused(path: Path, layer: str | None = None, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        names(path, layer, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_what_meets_the_box_is_read(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"o{ending}")
    layer = open_layer(path)
    assert layer.crs.to_epsg() == 4326 or layer.crs.to_string() == "OGC:CRS84"
    assert layer.count == 100 and layer.fields[:2] == ("name", "Area")
    assert layer.bounds == pytest.approx((0, 0, 9.8, 9.8))
    near = [f"g{row * 10 + column}" for row in (2, 3, 4) for column in (2, 3, 4, 5)]
    assert names(path, box=BOX) == sorted(near)
    assert len(names(path)) == 100
    assert names(path, box=(20.0, 0.0, 21.0, 1.0)) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_condition_chooses_features(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"o{ending}")
    assert names(path, where="Area >= 9.8") == ["g98", "g99"]
    assert names(path, where="name = 'g33' OR name LIKE 'g4%'", box=BOX) == ["g33", "g42", "g43", "g44", "g45"]
    assert "no feature is as `Area > 99` asks for" in refused(path, where="Area > 99")
    for wrong in ("Size > 3", "Area >", "Area > 'x' AND ("):
        message = refused(path, where=wrong)
        assert f"`{wrong}` can't be used" in message and "name, Area" in message


def test_geoparquet_without_an_index_is_read_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "o.parquet", covering=False)
    assert names(path, box=BOX) == names(write(tmp_path / "o.gpkg"), box=BOX)


@pytest.mark.parametrize("inside", ["", "RGI2000-v7.0/", "a/b/"])
def test_a_zipped_shapefile_is_read_where_it_lies(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "shp"
    folder.mkdir()
    write(folder / "o.shp")
    archive = zipped(folder, tmp_path / "o.zip", inside)
    assert len(names(archive, box=BOX)) == 12 == len(names(archive, "o", box=BOX))
    write(folder / "debris.shp", frame().iloc[:3])
    archive = zipped(folder, tmp_path / "two.zip", inside)
    assert names(archive, "debris") == ["g0", "g1", "g2"]
    message = refused(archive)
    assert "debris, o" in message and "`layer`" in message
    assert "'ice' is not among them" in refused(archive, "ice")


def test_a_layer_is_chosen_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "o.gpkg"
    frame().to_file(path, layer="glaciers")
    assert len(names(path)) == 100
    frame().iloc[:5].to_file(path, layer="lakes")
    assert len(names(path, "lakes")) == 5
    assert "several layers (glaciers, lakes)" in refused(path)
    assert "no layer 'debris', it has glaciers, lakes" in refused(path, "debris")
    assert "has no layers" in refused(write(tmp_path / "o.parquet"), "glaciers")


def test_what_lies_a_turn_away_is_read_once(tmp_path: Path) -> None:
    for ending in ENDINGS:
        content = frame()
        content["geometry"] = shapely.transform(content.geometry.array, lambda xy: xy + (175.0, 0.0))
        content.loc[0, "geometry"] = shapely.MultiPolygon([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)])
        path = write(tmp_path / f"o{ending}", content)
        layer = open_layer(path)
        read = read_layer(layer, ["name"], box=(178.5, 0.2, 181.5, 0.6))
        assert sorted(read["name"]) == ["g0", "g3", "g4", "g5", "g6"], ending
        read = read_layer(layer, ["name"], box=(-181.5, 0.2, -178.5, 0.6))
        assert sorted(read["name"]) == ["g0", "g3", "g4", "g5", "g6"], ending


@pytest.mark.parametrize("ending", [".gpkg", ".shp", ".fgb", ".parquet"])
def test_without_a_reference_system_it_says_how_to_assign_one(tmp_path: Path, ending: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        path = write(tmp_path / f"o{ending}", frame(None))
    message = refused(path)
    assert "no coordinate reference system" in message and "ogr2ogr -a_srs" in message
    assert (".prj" in message) == (ending == ".shp")


def test_a_shapefile_that_lost_its_prj_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "o.shp")
    path.with_suffix(".prj").unlink()
    assert ".prj" in refused(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_lines_and_points_are_no_outlines(tmp_path: Path, ending: str) -> None:
    content = frame("EPSG:32645")
    content["geometry"] = content.boundary
    assert "LineString" in refused(write(tmp_path / f"lines{ending}", content))
    content["geometry"] = content.centroid
    message = refused(write(tmp_path / f"points{ending}", content))
    assert "Point" in message and "expected polygons" in message and "Lines to Polygons" in message


def test_an_empty_layer_and_a_table_are_no_outlines(tmp_path: Path) -> None:
    assert "no feature at all" in refused(write(tmp_path / "o.gpkg", frame().iloc[:0]))
    frame().drop(columns="geometry").to_parquet(tmp_path / "t.parquet")
    assert "without geometries" in refused(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("name,Area\na,1\n")
    assert "no layer with geometries" in refused(tmp_path / "t.csv")
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as file:
        file.write(tmp_path / "t.csv", "t.csv")
    assert "no outlines in it" in refused(tmp_path / "t.zip")


@pytest.mark.parametrize("ending", [*ENDINGS, ".zip"])
def test_files_that_are_missing_or_something_else_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"o{ending}"
    assert "no such file" in refused(path)
    path.write_bytes(b"")
    assert "can't be read" in refused(path)
    path.write_text("This is a page that a server sent instead of the file.\n" * 40)
    assert "can't be read" in refused(path)


@pytest.mark.parametrize("ending", [*ENDINGS, ".zip"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_file_cut_off_in_the_middle_is_refused_or_read_rightly(tmp_path: Path, ending: str, share: float) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    if ending == ".zip":
        write(whole / "o.shp")
        path = zipped(whole, tmp_path / "o.zip")
    else:
        path = write(whole / f"o{ending}")
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        path = tmp_path / path.name
    expected = names(path, box=BOX)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    try:
        assert names(path, box=BOX) == expected and share > 0.3
    except UserError as error:
        assert str(path) in str(error) and "truncated" in str(error)


@pytest.mark.parametrize("part", [".shx", ".dbf"])
def test_a_shapefile_without_one_of_its_files_is_refused(tmp_path: Path, part: str) -> None:
    path = write(tmp_path / "o.shp")
    path.with_suffix(part).unlink()
    with pytest.raises(UserError, match=r"can't be read|can't be used"):
        read_layer(open_layer(path), ["name"], where="Area > 1")


@pytest.mark.parametrize("part", [".shx", ".dbf"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_shapefile_with_one_of_its_files_cut_off_is_refused(tmp_path: Path, part: str, share: float) -> None:
    path = write(tmp_path / "o.shp")
    content = path.with_suffix(part).read_bytes()
    path.with_suffix(part).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"can't be read|can't be used"):
        read_layer(open_layer(path), ["name"], where="Area > 1")


def test_capitals_of_a_name_do_not_matter(tmp_path: Path) -> None:
    shutil.copy(write(tmp_path / "o.gpkg"), tmp_path / "OUTLINES.GPKG")
    assert len(names(tmp_path / "OUTLINES.GPKG")) == 100
    layer = open_layer(tmp_path / "OUTLINES.GPKG")
    assert layer.field(["size", "area"]) == "Area" and layer.field(["size"]) is None
