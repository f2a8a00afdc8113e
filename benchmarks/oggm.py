"""Outlines as written here, taken by OGGM: `oggm.utils.cook_rgidf` makes an inventory of them that OGGM can run on.

    python -m benchmarks.oggm

Synthetic labels become outlines; a process in .venv-parity (`make .venv-parity`), without a network, reads them with
geopandas, gives them to OGGM and says what it made of them. Exit code 1: something is not as it was written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import console
from console import UserError

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-parity" / "bin" / "python"
DATE = "2020-08-31"
COLUMNS = {
    "area_km2": "Area",
    "zmin_m": "Zmin",
    "zmax_m": "Zmax",
    "zmed_m": "Zmed",
    "slope_deg": "Slope",
    "aspect_deg": "Aspect",
}
"""Fields of RGI 7, and what they are called in RGI 6, which OGGM takes."""


def write(folder: Path) -> Path:
    """Write outlines of a synthetic scene of the Alps with four surfaces; return the GeoPackage."""
    import numpy as np
    import rasterio

    from data.synthetic import SURFACE_CLASSES, make_scene
    from inference.outlines import write_outlines

    scene = make_scene("ALP", seed=3, size=192)
    height, width = scene.surface.shape
    profile: dict[str, Any] = {"driver": "GTiff", "height": height, "width": width, "count": 1, "crs": scene.crs}
    profile["transform"] = rasterio.Affine(*scene.transform)
    with rasterio.open(folder / "labels.tif", "w", dtype="uint8", nodata=255, **profile) as file:
        file.write(np.where(scene.valid, scene.surface, 255).astype(np.uint8), 1)
    with rasterio.open(folder / "dem.tif", "w", dtype="float32", **profile) as file:
        file.write(scene.dem[..., 0].astype(np.float32), 1)
    target = folder / "outlines.gpkg"
    write_outlines(folder / "labels.tif", target, SURFACE_CLASSES, dem=folder / "dem.tif", src_date=DATE)
    return target


def take(path: Path) -> dict[str, Any]:
    """Have OGGM make an inventory of the glaciers in a GeoPackage; return what it says of them. Needs OGGM."""
    import geopandas
    from oggm import __version__, utils

    glaciers = geopandas.read_file(path, layer="glacier")
    dates = [date[:10].replace("-", "") for date in glaciers["src_date"]]
    cooked = utils.cook_rgidf(glaciers, "11", "01", version="70", bgndate=dates, assign_column_values=COLUMNS)
    table = json.loads(cooked.drop(columns="geometry").to_json())
    return {
        "version": __version__,
        "written": json.loads(glaciers.drop(columns="geometry").to_json()),
        "taken": table,
        "crs": cooked.crs.to_epsg(),
        "valid": [bool(valid) for valid in cooked.geometry.is_valid],
        "kinds": sorted(set(cooked.geometry.geom_type)),
    }


def differences(answer: dict[str, Any]) -> list[str]:
    """Return what is not as it should be in OGGM's inventory, a sentence each."""
    written, taken = answer["written"], answer["taken"]
    found = []
    if len(set(taken["RGIId"].values())) != len(written["area_km2"]) or not written["area_km2"]:
        found.append(f"{len(written['area_km2'])} glaciers, of which OGGM made {len(taken['RGIId'])}")
    if answer["crs"] != 4326 or not all(answer["valid"]) or answer["kinds"] != ["Polygon"]:
        found.append(f"geometries of type {answer['kinds']} in EPSG:{answer['crs']}, valid: {all(answer['valid'])}")
    for ours, theirs in (*COLUMNS.items(), ("cenlon", "CenLon"), ("cenlat", "CenLat")):
        # Its own centre is a point inside as well, but another one: outlines are rasterised by neither.
        tolerance = 0.2 if ours.startswith("cen") else 1e-6
        for one, other in zip(written[ours].values(), taken[theirs].values(), strict=True):
            if one is None or other is None or not abs(one - other) <= tolerance:
                found.append(f"{ours} {one}, but {theirs} {other}")
    if any(date != DATE.replace("-", "") for date in taken["BgnDate"].values()):
        found.append(f"dates {sorted(set(taken['BgnDate'].values()))}, expected {DATE}")
    return found


def main(arguments: list[str]) -> None:
    """Write, have OGGM take, and exit with 1 if something differs."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.oggm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--take", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.take:
        print(json.dumps(take(options.take)))
        return
    if not PYTHON.exists():
        raise UserError(f"{PYTHON} is missing, the Python with OGGM: make it with `make .venv-parity`, and try again")
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder))
        command = [str(PYTHON), "-m", "benchmarks.oggm", "--take", str(path)]
        # OGGM makes folders and a configuration in the home directory.
        said = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"HOME": folder}, check=True, capture_output=True, text=True
        )
    answer = json.loads(said.stdout.splitlines()[-1])
    if found := differences(answer):
        sys.exit("OGGM does not take the outlines as they were written:\n  " + "\n  ".join(found))
    print(f"OGGM {answer['version']} takes {len(answer['taken']['RGIId'])} glaciers as they were written.")


if __name__ == "__main__":
    console.run(main)
