"""What is compared of outlines and of what OGGM makes of them; OGGM itself is in the environment of `make parity`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import geopandas
import pytest

from benchmarks.oggm import COLUMNS, DATE, differences, write


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What OGGM should say of the outlines that are written for it."""
    frame = geopandas.read_file(write(Path(tmp_path_factory.mktemp("oggm"))), layer="glacier").drop(columns="geometry")
    written = {name: {str(row): value for row, value in frame[name].items()} for name in frame}
    taken = {theirs: dict(written[ours]) for ours, theirs in COLUMNS.items()}
    taken |= {"CenLon": written["cenlon"], "CenLat": written["cenlat"]}
    taken["RGIId"] = {row: f"RGI70-11.{int(row) + 1:05d}" for row in written["area_km2"]}
    taken["BgnDate"] = dict.fromkeys(taken["RGIId"], DATE.replace("-", ""))
    return {"written": written, "taken": taken, "crs": 4326, "valid": [True] * len(frame), "kinds": ["Polygon"]}


def test_outlines_for_oggm_have_all_that_it_is_given(answer: dict[str, Any]) -> None:
    assert len(answer["written"]["area_km2"]) > 1
    assert differences(answer) == []


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("Area", lambda a: a["taken"]["Area"].update({"0": 1.0})),
        ("CenLon", lambda a: a["taken"]["CenLon"].update({"0": None})),
        ("glaciers", lambda a: a["taken"]["RGIId"].update({"0": a["taken"]["RGIId"]["1"]})),
        ("EPSG", lambda a: a.update(crs=32632)),
        ("valid", lambda a: a["valid"].append(False)),
        ("dates", lambda a: a["taken"]["BgnDate"].update({"0": "20009999"})),
    ],
)
def test_what_is_not_as_written_is_said(what: str, change: Any, answer: dict[str, Any]) -> None:
    changed = copy.deepcopy(answer)
    change(changed)
    assert any(what in sentence for sentence in differences(changed))
