import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from console import UserError
from data.dataset_file import DatasetFile, SceneDescription, class_names, parse, read, scenes_of, type_of


def described(content: dict[str, Any], base: Path = Path()) -> list[SceneDescription]:
    return scenes_of(parse(content, "a.yaml"), base)


ONE = {"scenes": {"hunza": {"modalities": {"optical": "o.tif"}}}, "region": "HMA", "outlines": "rgi.gpkg"}


def test_the_smallest_dataset_file_has_one_scene_with_the_defaults() -> None:
    (scene,) = described(ONE)
    assert (scene.name, scene.region, scene.date) == ("hunza", "HMA", None)
    assert scene.modalities["optical"].files == "o.tif"
    assert scene.outlines["glacier"].file == "rgi.gpkg"
    assert scene.mask_from is None


def test_the_nearest_to_the_scene_wins_key_by_key() -> None:
    content = {
        "modalities": {"optical": {"scale": 1e-4, "nodata": 0}, "dem": "world.tif"},
        "grid": {"crs": "EPSG:32643", "resolution": 30},
        "outlines": {"glacier": "rgi.gpkg", "water": "lakes.gpkg"},
        "regions": {
            "HMA": {
                "modalities": {"optical": {"nodata": -1}},
                "grid": {"resolution": 20},
                "scenes": {
                    "a": {"modalities": {"optical": "a.tif", "dem": None}, "date": "2020-08-01"},
                    "b": {"modalities": {"optical": "b.tif"}, "outlines": {"water": None}, "grid": {"resolution": 10}},
                },
            },
            "ALP": {"outlines": {"glacier": "alps.gpkg"}, "scenes": {"c": {"modalities": {"optical": "c.tif"}}}},
        },
    }
    a, b, c = described(content)
    assert [scene.region for scene in (a, b, c)] == ["HMA", "HMA", "ALP"]
    assert (a.modalities["optical"].scale, a.modalities["optical"].nodata) == (1e-4, -1)
    assert c.modalities["optical"].nodata == 0
    assert list(a.modalities) == ["optical"] and list(b.modalities) == ["optical", "dem"]
    assert [scene.grid.resolution for scene in (a, b, c)] == [20, 10, 30]
    assert {scene.grid.crs for scene in (a, b, c)} == {"EPSG:32643"}
    assert a.date == datetime.date(2020, 8, 1)
    assert list(a.outlines) == ["glacier", "water"] and list(b.outlines) == ["glacier"]
    assert c.outlines["glacier"].file == "alps.gpkg"


def test_a_pattern_of_folders_makes_a_scene_of_each(tmp_path: Path) -> None:
    for name in ("hma/one", "hma/two", "alp/three"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "hma" / "notes.txt").touch()
    regions = {"HMA": {"scenes": "hma/*"}, "ALP": {"scenes": "alp/*"}}
    scenes = described(
        {"regions": regions, "modalities": {"optical": "{folder}/o.tif"}, "outlines": "rgi.gpkg"}, tmp_path
    )
    assert [(scene.name, scene.region) for scene in scenes] == [("one", "HMA"), ("two", "HMA"), ("three", "ALP")]
    assert Path(scenes[0].folder) == tmp_path / "hma" / "one"


def test_weak_masks_take_the_place_of_outlines() -> None:
    (scene,) = described(ONE | {"mask_from": "ndsi > 0.4"})
    assert scene.mask_from == "ndsi > 0.4" and not scene.outlines


def test_classes_are_the_background_and_what_is_outlined_in_order() -> None:
    dataset = parse(ONE, "a.yaml")
    assert class_names(dataset, ["glacier", "debris", "glacier"]) == ["background", "glacier", "debris"]
    assert class_names(dataset, []) == ["background", "glacier"]
    named = parse(ONE | {"classes": ["land", "ice", "glacier"]}, "a.yaml")
    assert class_names(named, ["glacier"]) == ["land", "ice", "glacier"]
    with pytest.raises(UserError, match="water"):
        class_names(named, ["glacier", "water"])


@pytest.mark.parametrize(
    ("modality", "entry", "kind"),
    [
        ("optical", {}, "reflectance"),
        ("dem", {}, "dem"),
        ("co_pol_sar", {}, "sar"),
        ("in_sar", {}, "coherence"),
        ("thermal", {}, "thermal"),
        ("ndvi", {}, "bands"),
        ("optical", {"type": "landsat"}, "landsat"),
    ],
)
def test_the_name_of_a_modality_says_what_it_is_unless_its_entry_does(
    modality: str, entry: dict[str, Any], kind: str
) -> None:
    dataset = parse(ONE | {"modalities": {modality: entry | {"files": "x.tif"}}}, "a.yaml")
    given = dataset.modalities[modality]
    assert given is not None and type_of(modality, given) == kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_sise": 256}, "unknown key tile_sise, did you mean 'tile_size'"),
        ({"tile_size": 4}, "tile_size: .*16.*; received 4"),
        ({"scenes": {}}, "names no scene"),
        ({"outlines": {"glacier": {"layer": "a"}}}, "outlines.glacier.file is missing"),
        ({"split": {"by": "block"}}, "split.by: .*blocks.*; received 'block'"),
        ({"split": {"val": 2}}, "split.val: .*received 2"),
        ({"modalities": {"mask": "m.tif"}}, "'mask' can't be a modality's name"),
        ({"modalities": {"optical": {"bands": ["red", "red"]}}}, "modalities.optical.bands: names a band twice"),
        ({"modalities": {"optical": {"type": "sentinel2"}}}, "modalities.optical.type: .*sentinel-2.*; received"),
        ({"statistics": "minimax"}, "statistics: .*robust-minmax"),
        ({"outlines": {"glacier": {"file": "a.gpkg", "color": "blue"}}}, "outlines.glacier.color"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(ONE | change, "a.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"scenes": {"a": {"modalities": {"optical": "a.tif"}}}, "outlines": "o.gpkg"}, "'a' has no region"),
        ({"scenes": {"a": None}, "region": "HMA", "outlines": "o.gpkg"}, "'a' has no modality"),
        (ONE | {"outlines": None}, "has no outlines: .*mask_from"),
        (ONE | {"modalities": {"dem": {"bands": ["elevation"]}}}, "dem has no files"),
        (
            ONE | {"regions": {"ALP": {"scenes": {"hunza": {}}}}, "modalities": {"dem": "d.tif"}},
            "two scenes are called",
        ),
        (ONE | {"scenes": {".a": {"modalities": {"optical": "a.tif"}}}}, "leading dot"),
        (ONE | {"scenes": "nowhere/*"}, "no folder matches nowhere"),
    ],
)
def test_scenes_that_lack_something_are_told(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        described(content, tmp_path)


def test_a_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset file.*--init"):
        read(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("scenes: [")
    with pytest.raises(UserError, match="broken.yaml: not YAML"):
        read(broken)
    with pytest.raises(UserError, match="expected a mapping"):
        parse(["a"], "list.yaml")


def test_a_dataset_file_survives_yaml() -> None:
    text = yaml.safe_dump(parse(ONE, "a.yaml").model_dump(mode="json", exclude_unset=True))
    assert isinstance(parse(yaml.safe_load(text), "a.yaml"), DatasetFile)
