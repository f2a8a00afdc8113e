"""GeoPackages with a layer for each class, and the style in which QGIS shows it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import console
from data.rasters import unwritable

if TYPE_CHECKING:
    import geopandas


@dataclass(frozen=True, eq=False)
class VectorLayer:
    """A layer of polygons to be written.

    Args:
        name: Of the table: letters, digits and underscores.
        title: Its name for people.
        color: `#rrggbb`, in which QGIS fills it.
        frame: Polygons with their fields; may be empty.
        description: What they are and where they come from.
        metadata: More of that, by name.
    """

    name: str
    title: str
    color: str
    frame: geopandas.GeoDataFrame
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def layer_name(title: str, taken: Sequence[str] = ()) -> str:
    """Return a name for a table: lower case, letters, digits and underscores; not one of those that are taken."""
    name = re.sub(r"\W+", "_", title.casefold()).strip("_") or "layer"
    name = f"layer_{name}" if name[0].isdigit() or name.startswith(("gpkg_", "rtree_", "sqlite_")) else name
    unique, number = name, 2
    while unique in (*taken, "layer_styles"):
        unique, number = f"{name}_{number}", number + 1
    return unique


def write_geopackage(path: Path, layers: Sequence[VectorLayer]) -> None:
    """Write layers with their styles; the file is there as a whole or not at all.

    Layers have a spatial index, but where TensorFlow was imported before: then GDAL finds TensorFlow's own SQLite,
    which can't make one.

    Raises:
        UserError: The file can't be written.
    """
    import pyogrio

    with writing(path), console.replacing(path) as temporary:
        for layer in layers:
            pyogrio.write_dataframe(
                layer.frame,
                temporary,
                layer=layer.name,
                driver="GPKG",
                geometry_type="Polygon",
                layer_options={"IDENTIFIER": layer.title, "DESCRIPTION": layer.description, "GEOMETRY_NAME": "geom"},
                layer_metadata=dict(layer.metadata) or None,
                dataset_options={"VERSION": "1.2"},  # that QGIS and GDAL of before 2023 know as well
            )
        _write_styles(temporary, layers)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the libraries say of a file that they can't write becomes a `UserError`."""
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        yield
    except (DataSourceError, DataLayerError, sqlite3.Error, OSError) as error:
        raise unwritable(path, error) from error


# As QGIS makes it when it saves a style with its layer; it reads the style that is marked as default.
_STYLE_TABLE = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256),
    f_table_schema TEXT(256),
    f_table_name TEXT(256),
    f_geometry_column TEXT(256),
    styleName TEXT(30),
    styleQML TEXT,
    styleSLD TEXT,
    useAsDefault BOOLEAN,
    description TEXT,
    owner TEXT(30),
    ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now'))
)"""
_STYLE_CONTENTS = """
INSERT INTO gpkg_contents (table_name, data_type, identifier, description, srs_id)
VALUES ('layer_styles', 'attributes', 'layer_styles', 'styles of QGIS', 0)"""
_STYLE = """
INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML,
                          styleSLD, useAsDefault, description, owner)
VALUES ('', '', ?, 'geom', ?, ?, ?, 1, ?, '')"""


def _write_styles(path: Path, layers: Sequence[VectorLayer]) -> None:
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute(_STYLE_TABLE)
            connection.execute(_STYLE_CONTENTS)
            for layer in layers:
                connection.execute(
                    _STYLE,
                    (
                        layer.name,
                        layer.title[:30],
                        _qml(layer.color),
                        _sld(layer.title, layer.color),
                        layer.description,
                    ),
                )
    finally:
        connection.close()


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _darker(color: str) -> tuple[int, int, int]:
    red, green, blue = (int(value * 0.6) for value in _rgb(color))
    return red, green, blue


def _qml(color: str) -> str:
    """Return QGIS's own description of a half transparent fill with an opaque edge."""
    options = {
        "color": ",".join(map(str, (*_rgb(color), 110))),
        "style": "solid",
        "outline_color": ",".join(map(str, (*_darker(color), 255))),
        "outline_style": "solid",
        "outline_width": "0.4",
        "outline_width_unit": "MM",
        "joinstyle": "round",
    }
    lines = [f'<Option name="{name}" type="QString" value="{value}"/>' for name, value in options.items()]
    # Versions before 3.28 read the properties, later ones the options.
    lines = ['<Option type="Map">', *lines, "</Option>"]
    lines += [f'<prop k="{name}" v="{value}"/>' for name, value in options.items()]
    body = "\n          ".join(lines)
    return f"""<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22.0" styleCategories="Symbology">
  <renderer-v2 type="singleSymbol" symbollevels="0" enableorderby="0" forceraster="0">
    <symbols>
      <symbol type="fill" name="0" alpha="1" clip_to_extent="1" force_rhr="0">
        <layer class="SimpleFill" enabled="1" locked="0" pass="0">
          {body}
        </layer>
      </symbol>
    </symbols>
  </renderer-v2>
  <layerGeometryType>2</layerGeometryType>
</qgis>
"""


def _sld(title: str, color: str) -> str:
    """Return the same for other programs (OGC Styled Layer Descriptor 1.1)."""
    edge = "#{:02x}{:02x}{:02x}".format(*_darker(color))
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<StyledLayerDescriptor xmlns="http://www.opengis.net/sld" xmlns:se="http://www.opengis.net/se" version="1.1.0">
  <NamedLayer>
    <se:Name>{escape(title)}</se:Name>
    <UserStyle>
      <se:Name>{escape(title)}</se:Name>
      <se:FeatureTypeStyle>
        <se:Rule>
          <se:PolygonSymbolizer>
            <se:Fill>
              <se:SvgParameter name="fill">{color}</se:SvgParameter>
              <se:SvgParameter name="fill-opacity">0.43</se:SvgParameter>
            </se:Fill>
            <se:Stroke>
              <se:SvgParameter name="stroke">{edge}</se:SvgParameter>
              <se:SvgParameter name="stroke-width">1</se:SvgParameter>
            </se:Stroke>
          </se:PolygonSymbolizer>
        </se:Rule>
      </se:FeatureTypeStyle>
    </UserStyle>
  </NamedLayer>
</StyledLayerDescriptor>
"""
