"""Polygon layers of vector files: GeoPackage, shapefile (also in a .zip), GeoJSON, FlatGeobuf, GeoParquet."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from console import UserError

if TYPE_CHECKING:
    import geopandas
    from pyproj import CRS

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

_FORMATS = "a GeoPackage, shapefile (also in a .zip), GeoJSON, FlatGeobuf or GeoParquet"
_INSIDE_ARCHIVES = (".shp", ".gpkg", ".geojson", ".json", ".fgb")
_CLOSE_LINES = "make polygons of them first (in QGIS: Vector > Geometry Tools > Lines to Polygons)"


@dataclass(frozen=True)
class Layer:
    """A layer that can be read.

    Args:
        path: The file.
        dataset: Where GDAL finds it; for GeoParquet, which pyarrow reads, None.
        name: The layer's name, None for GeoParquet.
        crs: Its coordinate reference system, geographic or projected.
        fields: Names of its attributes.
        count: Number of features.
        bounds: What it spans in its CRS, None where unknown.
    """

    path: Path
    dataset: str | None
    name: str | None
    crs: CRS
    fields: tuple[str, ...]
    count: int
    bounds: Box | None

    def __str__(self) -> str:
        """Return what messages call it."""
        return str(self.path) if self.name in (None, self.path.stem) else f"{self.path}, layer {self.name!r}"

    def field(self, names: Sequence[str]) -> str | None:
        """Return the layer's field that is the first of `names` (lower case), whatever its capitals."""
        by_name = {field.casefold(): field for field in self.fields}
        return next((by_name[name] for name in names if name in by_name), None)

    def refuse_kinds(self, kinds: Sequence[str]) -> None:
        """Raise the `UserError` that its geometries are of these kinds, which are not polygons."""
        raise UserError(f"{self}: holds geometries of type {', '.join(kinds)}, expected polygons; {_CLOSE_LINES}")


def open_layer(path: Path, name: str | None = None, *, lines: bool = False) -> Layer:
    """Find a layer of polygons, or `lines` as well; refuse what can't be one before anything is read.

    Raises:
        UserError: If the file is missing, damaged or of another format, has no CRS or nothing but points or lines;
            there is no such layer, or several and none is named.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; expected {_FORMATS}")
    if path.suffix.lower() in (".parquet", ".geoparquet"):
        return _open_parquet(path, name, lines)
    import pyogrio

    dataset, inner = _inside_archive(path, name) if path.suffix.lower() == ".zip" else (str(path), name)
    with _reading(path):
        layers = [str(layer) for layer, kind in pyogrio.list_layers(dataset) if kind is not None]
    if not layers:
        raise UserError(f"{path}: no layer with geometries in it, it may be truncated or damaged; expected {_FORMATS}")
    if inner is None and len(layers) > 1:
        raise UserError(f"{path}: has several layers ({', '.join(layers)}): say which with `layer`")
    if inner is not None and inner not in layers:
        raise UserError(f"{path}: has no layer {inner!r}, it has {', '.join(layers)}")
    inner = layers[0] if inner is None else inner
    with _reading(path):
        info = pyogrio.read_info(dataset, layer=inner, force_feature_count=True, force_total_bounds=True)
    layer = Layer(
        path,
        dataset,
        inner,
        _crs(info["crs"], path),
        tuple(str(field) for field in info["fields"]),
        int(info["features"]),
        _finite_box(info["total_bounds"]),
    )
    kind = str(info["geometry_type"])
    if not _welcome(kind, lines):
        layer.refuse_kinds([kind])
    if layer.count and info["driver"] == "FlatGeobuf":
        _read_last(layer)
    return layer


def read_layer(
    layer: Layer, columns: Sequence[str] = (), where: str | None = None, box: Box | None = None
) -> geopandas.GeoDataFrame:
    """Read the features whose boxes meet `box`, each once; of a layer in degrees also what lies a whole turn away.

    Args:
        layer: What to read.
        columns: Attributes to read beside the geometries.
        where: A condition of SQL on the attributes.
        box: In the layer's CRS; None: all.

    Returns:
        The features; the index is a feature's number in the file, for GeoParquet the row among those that were read.

    Raises:
        UserError: If the file can't be read, the condition is wrong, or no feature is as it asks for.
    """
    import pandas as pd

    turns = (-360, 0, 360) if layer.crs.is_geographic else (0,)
    boxes = [] if box is None else [(box[0] + turn, box[1], box[2] + turn, box[3]) for turn in turns]
    if layer.bounds is not None and boxes:
        boxes = [one for one in boxes if _meet(one, layer.bounds)] or [boxes[len(turns) // 2]]
    if layer.dataset is None:
        frame = _read_parquet(layer, columns, where, boxes)
    else:
        parts = [_read_with_gdal(layer, columns, where, one) for one in boxes or (None,)]
        frame = pd.concat(parts) if len(parts) > 1 else parts[0]
    if not len(frame):
        _refuse_if_nothing_is_there(layer, where)
    return frame[~frame.index.duplicated()]


# -- opening -------------------------------------------------------------------------------------------------


def _open_parquet(path: Path, name: str | None, lines: bool) -> Layer:
    from pyarrow import parquet

    if name is not None:
        raise UserError(f"{path}: GeoParquet has no layers, received the layer {name!r}: leave it out")
    with _reading(path):
        with parquet.ParquetFile(path) as file:
            fields, count = tuple(file.schema_arrow.names), file.metadata.num_rows
        geo = _geo(path)
    if geo is None:
        raise UserError(f"{path}: a Parquet file without geometries, expected GeoParquet with polygons")
    with _reading(path):
        column = geo["columns"][geo["primary_column"]]
    # By the format's definition a missing CRS is longitude and latitude, while an explicit null is none.
    crs, box = _crs(column.get("crs", "OGC:CRS84"), path), column.get("bbox")
    bounds = _finite_box([*box[:2], *box[len(box) // 2 :][:2]] if box else None)
    fields = tuple(field for field in fields if field != geo["primary_column"])
    layer = Layer(path, None, None, crs, fields, count, bounds)
    kinds = column.get("geometry_types") or ["Unknown"]
    if not any(_welcome(kind, lines) for kind in kinds):
        layer.refuse_kinds(kinds)
    return layer


def _geo(path: Path) -> dict[str, Any] | None:
    """Return what a Parquet file says of its geometries."""
    from pyarrow import parquet

    stored = (parquet.read_schema(path).metadata or {}).get(b"geo")
    return None if stored is None else dict(json.loads(stored))


def _inside_archive(path: Path, name: str | None) -> tuple[str, str | None]:
    """Return where GDAL finds the dataset in a .zip, whatever the folder in it, and the layer to read of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member for member in archive.namelist() if Path(member).suffix.lower() in _INSIDE_ARCHIVES]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: can't be read, it may be truncated or damaged ({error}); get it again") from error
    by_stem = {Path(member).stem: member for member in names if not member.startswith("__MACOSX/")}
    if not by_stem:
        raise UserError(f"{path}: no outlines in it, expected a file ending in {', '.join(_INSIDE_ARCHIVES)}")
    if len(by_stem) == 1:
        (member,) = by_stem.values()
        return f"/vsizip/{path.resolve()}/{member}", name
    if name not in by_stem:
        received = "none is chosen" if name is None else f"{name!r} is not among them"
        raise UserError(f"{path}: has several layers ({', '.join(by_stem)}), {received}: say which with `layer`")
    return f"/vsizip/{path.resolve()}/{by_stem[name]}", name if by_stem[name].lower().endswith(".shp") else None


def _welcome(kind: str, lines: bool) -> bool:
    polygons = any(part in kind for part in ("Polygon", "Surface", "Unknown", "GeometryCollection"))
    return polygons or (lines and any(part in kind for part in ("Line", "Curve")))


def _crs(stored: object, path: Path) -> CRS:
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        crs = CRS.from_user_input(stored) if stored else None
    except CRSError:
        crs = None
    if crs is None or not (crs.is_geographic or crs.is_projected):
        lacking = " (a shapefile's is in its .prj file)" if path.suffix.lower() in (".shp", ".zip") else ""
        raise UserError(
            f"{path}: no coordinate reference system{lacking}, expected one such as EPSG:4326; assign the one that its "
            f"maker used: ogr2ogr -a_srs EPSG:4326 {path.stem}-4326.gpkg {path.name}"
        )
    return crs


def _finite_box(bounds: Sequence[float] | None) -> Box | None:
    if bounds is None or not np.isfinite(bounds).all():
        return None
    left, bottom, right, top = (float(value) for value in bounds)
    return left, bottom, right, top


def _meet(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


# -- reading -------------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the libraries say of a file that they can't read becomes a `UserError`."""
    import shapely

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # GDAL's remarks on rings, which are repaired anyway
            yield
    except (RuntimeError, ValueError, KeyError, OSError, shapely.GEOSException) as error:
        said = str(error).split("; It might help")[0].strip().rstrip(".")
        raise UserError(
            f"{path}: can't be read as outlines, it may be truncated, damaged, lack one of its files or be of another "
            f"format ({said}); expected {_FORMATS}"
        ) from error


def _read_with_gdal(
    layer: Layer, columns: Sequence[str], where: str | None, box: Box | None, **more: Any
) -> geopandas.GeoDataFrame:
    import pyogrio

    try:
        with _reading(layer.path):
            return pyogrio.read_dataframe(
                layer.dataset,
                layer=layer.name,
                columns=columns if where is None else None,  # a field that is not read is null to the condition
                where=where,
                bbox=box,
                fid_as_index=True,
                on_invalid="ignore",
                **more,
            )
    except UserError as error:
        if box is not None and "rtree" in str(error):
            # TensorFlow has a SQLite of its own, without R-trees, which GDAL takes where TensorFlow was imported first.
            frame = _read_with_gdal(layer, columns, where, None, **more)
            bounds = frame.geometry.bounds.to_numpy()
            return frame[[bool(_meet(tuple(one), box)) for one in bounds]]
        if where is not None and _reads_without_where(layer):
            raise _wrong_where(layer, where, error) from error.__cause__
        raise


def _read_last(layer: Layer) -> None:
    """Read the last feature: of a truncated FlatGeobuf, GDAL reads what is there and says nothing."""
    last = _read_with_gdal(layer, (), None, None, skip_features=layer.count - 1, max_features=1)
    if len(last) != 1:
        raise UserError(
            f"{layer}: can't be read, it may be truncated or damaged: the last of its {layer.count} features is not "
            "there; get it again"
        )


def _reads_without_where(layer: Layer) -> bool:
    """Whether a feature can be read at all: then it is the where clause that is wrong."""
    try:
        return len(_read_with_gdal(layer, (), None, None, max_features=1)) > 0
    except UserError:
        return False


def _read_parquet(
    layer: Layer, columns: Sequence[str], where: str | None, boxes: Sequence[Box]
) -> geopandas.GeoDataFrame:
    import geopandas

    with _reading(layer.path):
        if where is None:
            wanted = [*columns, (_geo(layer.path) or {})["primary_column"]]
            try:
                frame = geopandas.read_parquet(layer.path, columns=wanted, bbox=boxes[0] if len(boxes) == 1 else None)
            except ValueError as error:
                if "bbox" not in str(error):  # not every file says where its rows lie
                    raise
                frame = geopandas.read_parquet(layer.path, columns=wanted)
        else:
            frame = geopandas.read_parquet(layer.path)
    frame = frame.reset_index(drop=True)
    if where is not None:
        frame = frame.loc[_rows_where(layer, frame, where)]
    if not boxes:
        return frame
    left, bottom, right, top = frame.bounds.to_numpy().T
    near = [(left <= box[2]) & (right >= box[0]) & (bottom <= box[3]) & (top >= box[1]) for box in boxes]
    return frame[np.any(near, axis=0)]


def _rows_where(layer: Layer, frame: geopandas.GeoDataFrame, where: str) -> list[int]:
    """Return the rows of GeoParquet that a condition takes: GDAL evaluates it on a table in memory."""
    import pandas as pd
    import pyogrio

    plain = [name for name in layer.fields if name in frame and frame[name].dtype.kind in "biufOM"]
    table = pd.DataFrame(frame[plain])
    for name in plain:
        if table[name].dtype.kind == "O":
            table[name] = table[name].map(str, na_action="ignore")
    table["row_in_file"] = np.arange(len(table))
    memory = io.BytesIO()
    pyogrio.write_dataframe(table, memory, driver="GPKG", layer="attributes")
    try:
        with _reading(layer.path):
            found = pyogrio.read_dataframe(memory.getvalue(), where=where, columns=["row_in_file"])
    except UserError as error:
        raise _wrong_where(layer, where, error) from error.__cause__
    return [int(row) for row in found["row_in_file"]]


def _wrong_where(layer: Layer, where: str, error: UserError) -> UserError:
    return UserError(
        f"{layer}: the condition `{where}` can't be used ({str(error.__cause__).strip()}); expected one of SQL on its "
        f"fields, such as Area > 0.1; its fields are {', '.join(layer.fields) or 'none'}"
    )


def _refuse_if_nothing_is_there(layer: Layer, where: str | None) -> None:
    """Raise where nothing was read for another reason than that all of it lies elsewhere."""
    if layer.count == 0:
        raise UserError(f"{layer}: holds no feature at all, expected polygons")
    if where is not None:
        found = (
            _read_parquet(layer, (), where, ())
            if layer.dataset is None
            else _read_with_gdal(layer, (), where, None, max_features=1)
        )
        if not len(found):
            raise UserError(f"{layer}: no feature is as `{where}` asks for")
