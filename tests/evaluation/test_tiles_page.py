"""The page about tile files: one file, whole, with what was found and pictures of what is there."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyproj import CRS

from data.alignment import REACH, Alignment
from data.findings import Finding, find
from data.normalisation import fit
from data.survey import Survey, survey
from data.tiles import TWO_CLASSES, ClassInfo, TileInfo, TileWriter, find_dataset
from evaluation import tiles_page
from evaluation.tiles_page import _choose, _draw, _ground, _local, _pictures, _unit

WriteTiles = Callable[..., Path]
UTM = CRS.from_epsg(32645).to_wkt()


class Page(HTMLParser):
    """What a page is made of: its text, its pictures, and whatever it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.images: list[str] = []
        self.links: list[str | None] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect pictures and links."""
        values = dict(attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(values["src"] or "")
        self.links += [values[key] for key in ("href", "src") if key in values]

    def handle_endtag(self, tag: str) -> None:
        """Check that every tag is closed in turn."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        if "style" not in self.open:
            self.text += f" {data}"


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    page.text = re.sub(r"\s+", " ", page.text)
    return page


def pixels(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))


@pytest.fixture
def dataset(write_tiles: WriteTiles, tmp_path: Path) -> Survey:
    for seed, split in enumerate(("train", "val", "test")):
        write_tiles(tmp_path / "some" / f"{split}.hdf5", seed=seed)
    return survey(find_dataset(tmp_path / "some"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()


def scene(path: Path, tiles: list[tuple[int, int]], scene_name: str = "", size: int = 24) -> Survey:
    """Write tiles of one grid at these rows and columns; the band rises to the right, and twice as fast down."""
    rows, columns = np.mgrid[: 12 * size, : 12 * size]
    full = (2 * rows + columns).astype(np.float32)
    mask = (full % 50 < 20).astype(np.uint8)
    statistics = fit([({"optical": full[..., None]}, full >= 0)])
    with TileWriter(path, TWO_CLASSES, {"optical": ["red"]}, statistics) as writer:
        for row, column in tiles:
            part = np.s_[row * size : (row + 1) * size, column * size : (column + 1) * size]
            place = (30.0, 0.0, 5e5 + 30 * column * size, 0.0, -30.0, 3e6 - 30 * row * size)
            more = {"scene": scene_name} if scene_name else {}
            writer.add(
                f"t{row}-{column}", {"optical": full[part][..., None]}, mask[part], full[part] >= 0, "HMA", "", UTM,
                place, **more,
            )  # fmt: skip
    return survey(find_dataset(path))


def test_a_page_is_one_file_that_fetches_nothing(dataset: Survey, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    tiles_page.write(dataset, [], path, "python prepare.py check some")
    page = read(path)
    assert page.links and all(str(link).startswith("data:image/") for link in page.links)
    assert "url(" not in path.read_text(encoding="utf-8") and page.open == []
    assert [pixels(source).width > 100 for source in page.images] == [True] * len(page.images)
    assert "Nothing was found" in page.text and "python prepare.py check some" in page.text
    for text in ("6 tiles in 2 regions, 8 bands", "HMA 1", "ALP 1", "optical0, optical1", "pytest"):
        assert text in page.text
    assert sorted(tmp_path.iterdir()) == [tmp_path / "page.html", tmp_path / "some"]


def test_findings_are_told_and_shown(dataset: Survey, tmp_path: Path) -> None:
    finding = Finding("error", "masks <are> off", "by 5 & more", "look", (("train", "t0"),))
    note = Finding("note", "a note", "evidence", "remedy", (("train", "t0"),))
    tiles_page.write(dataset, [], tmp_path / "without.html")
    tiles_page.write(dataset, [finding, note], tmp_path / "with.html")
    page = read(tmp_path / "with.html")
    assert "masks <are> off" in page.text and "by 5 & more" in page.text and "1 error, 0 warnings, 1 note" in page.text
    assert "masks &lt;are&gt; off" in (tmp_path / "with.html").read_text(encoding="utf-8")
    assert len(page.images) == len(read(tmp_path / "without.html").images) + 1  # a note needs no picture


def test_a_shift_is_shown_with_the_mask_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed = scene(tmp_path / "some" / "test.hdf5", [(0, 0)], size=96)
    tile = surveyed.splits[0].tiles[0]
    (key,) = [(split.split, one.info.name) for split, one in surveyed.tiles()]
    scores = np.zeros((2 * REACH + 1,) * 2)
    alignment = Alignment(rows=0, columns=-5, clearness=1.0, agreement=1.0, scores=scores, edges=tile.windows[0][1])
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(tiles_page, "outline", lambda axis, area, *_, **__: drawn.append(area))
    finding = Finding("error", "shifted", "evidence", "remedy", (key,), alignment)
    (shown,) = tiles_page._findings(surveyed, [finding])
    assert shown["picture"].startswith("data:image/png") and "96 × 96 pixels of tile t0-0" in shown["caption"]
    lies, fits = drawn
    assert np.array_equal(fits[:, :-5], lies[:, 5:])
    assert np.array_equal(fits[:, -5:], np.repeat(lies[:, -1:], 5, axis=1))  # no outline where the tile ends


def test_bands_have_their_own_unit() -> None:
    dem = {"type": "dem", "unit": "elevation m, slope °, aspect as sine and cosine, curvature 1/m"}
    assert [_unit(dem, band) for band in ("elevation", "slope_deg", "curvature")] == ["m", "°", "1/m"]
    assert _unit({"type": "reflectance", "unit": "digital numbers"}, "red") == "digital numbers"
    assert _unit({}, "red") == ""


def test_names_of_users_are_text(tmp_path: Path) -> None:
    path = tmp_path / "some" / "test.hdf5"
    classes = (ClassInfo("<b>rock</b>"), ClassInfo("ice", glacier=True))
    values = {"<i>x": np.random.default_rng(0).random((20, 20, 1), np.float32)}
    mask = np.zeros((20, 20), np.uint8)
    mask[5:9, 5:9] = 1
    with TileWriter(path, classes, {"<i>x": ["<u>band"]}, fit([(values, mask >= 0)])) as writer:
        writer.add("<script>", values, mask, mask >= 0, "<em>")
    tiles_page.write(survey(find_dataset(path)), [], tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    for name in ("<b>rock</b>", "<i>x", "<u>band", "<script>", "<em>"):
        assert name in page.text


def test_weak_masks_are_named_loudly(dataset: Survey, tmp_path: Path) -> None:
    for split in dataset.splits:
        split.provenance["mask"] = {"kind": "weak", "rule": "ndsi > 0.4"}  # type: ignore[index]
    tiles_page.write(dataset, [], tmp_path / "page.html")
    text = read(tmp_path / "page.html").text
    assert "Weak masks: nobody drew these outlines. They are ndsi > 0.4." in text
    assert "WEAK MASKS, no outlines: ndsi > 0.4" in text


def test_what_scenes_say_of_themselves_is_told(dataset: Survey, tmp_path: Path) -> None:
    for split in dataset.splits:
        split.provenance.update(  # type: ignore[attr-defined]
            modalities={"optical": {"unit": "reflectance", "level": "L1C", "sensor": "MSI"}},
            scenes={
                "hunza": {
                    "region": "HMA",
                    "date": "2020-08-01",
                    "files": {"optical": ["a.tif"]},
                    "outlines": {
                        "ice": {"path": "x/rgi.gpkg", "kept": 7, "first_date": "2000-07-01", "last_date": "2001-11-03"}
                    },
                }
            },
            split={
                "by": "blocks",
                "separation": ["train–val: 3.2 km", "train–test: 0 m, 1 pair of tiles touches: a, b"],
            },
            mask={"kind": "outlines", "ignore_buffer_m": 30},
        )
    tiles_page.write(dataset, [], tmp_path / "page.html")
    text = read(tmp_path / "page.html").text
    for part in (
        "L1C",
        "MSI",
        "7 of ice in rgi.gpkg, of 2000-07-01 to 2001-11-03",
        "hunza",
        "2020-08-01",
        "train–val 3.2 km",
        "train–test 0 m, 1 pair of tiles touches which a, b",
        "outlines; pixels within 30 m of an outline count nowhere",
    ):
        assert part in text


def test_published_files_have_a_page(
    write_published_2023: WriteTiles, write_published_2025: WriteTiles, tmp_path: Path
) -> None:
    for number, write in enumerate((write_published_2023, write_published_2025)):
        path = write(tmp_path / f"{number}.hdf5")
        surveyed = survey(find_dataset(path))
        tiles_page.write(surveyed, find(surveyed), tmp_path / f"{number}.html")
        assert "not said: a file as published" in read(tmp_path / f"{number}.html").text


def test_an_interrupted_page_leaves_nothing(dataset: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "page.html").write_text("former")
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match="No space"):
        tiles_page.write(dataset, [], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == b"former"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "some"]


def test_tiles_of_one_grid_become_one_picture(tmp_path: Path) -> None:
    surveyed = scene(tmp_path / "some" / "test.hdf5", [(0, 0), (0, 1), (1, 1)])
    (picture,) = _choose(surveyed)
    assert (picture.height, picture.width) == (48, 48)
    assert {(piece.tile.info.name, piece.top, piece.left) for piece in picture.pieces} == {
        ("t0-0", 0, 0), ("t0-1", 0, 24), ("t1-1", 24, 24),
    }  # fmt: skip


def test_a_mosaic_shows_each_pixel_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed = scene(tmp_path / "some" / "test.hdf5", [(0, 0), (0, 1), (1, 0), (1, 1)])
    (picture,) = _choose(surveyed)
    shown: list[np.ndarray] = []
    monkeypatch.setattr(tiles_page, "show", lambda axis, image, *_: shown.append(image))
    from matplotlib.figure import Figure

    for side in (1000, 20):
        monkeypatch.setattr(tiles_page, "_SIDE", side)
        _draw(Figure().subplots(), picture)
        image = shown.pop()[..., 0]
        step = 1 if side == 1000 else 3
        expected = np.add.outer(2 * np.arange(0, 48, step), np.arange(0, 48, step)).astype(np.float32)
        low, high = np.percentile(expected, [2, 98])
        np.testing.assert_allclose(image, np.clip((expected - low) / (high - low), 0, 1), atol=1e-5)


def test_what_lies_apart_is_several_pictures_unless_it_is_a_scene(tmp_path: Path) -> None:
    far = [(0, 0), (0, 1), (0, 3)]
    apart = _choose(scene(tmp_path / "some" / "test.hdf5", far))
    assert sorted(len(picture.pieces) for picture in apart) == [1, 2]
    (whole,) = _choose(scene(tmp_path / "some" / "test.hdf5", far, "hunza"))
    assert (len(whole.pieces), whole.width, whole.title) == (3, 96, "HMA · hunza")


def test_coarse_pictures_come_with_single_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_page, "_SIDE", 30)
    pictures = _choose(scene(tmp_path / "some" / "test.hdf5", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]))
    assert [len(picture.pieces) for picture in pictures] == [5, 1, 1, 1]


def test_a_scene_has_the_width_of_the_page_and_says_its_own(tmp_path: Path) -> None:
    (picture,) = _pictures(scene(tmp_path / "some" / "test.hdf5", [(0, 0), (0, 1)], "hunza", size=100))
    assert (picture["kind"], picture["edges"]) == ("wide", "tiles")
    assert "200 × 100 px, 6.0 × 3.0 km" in picture["text"]


def test_footprints_are_in_kilometres_north_up() -> None:
    tiles = [
        TileInfo("a", 100, 200, crs=UTM, transform=(30.0, 0.0, 5e5, 0.0, -30.0, 3e6)),
        TileInfo("b", 100, 200, crs=UTM, transform=(30.0, 0.0, 5e5 + 6000, 0.0, -30.0, 3e6)),
    ]
    places = [place for tile in tiles if (place := _ground(tile)) is not None]
    corners, unit, title = _local(places)
    assert unit == "km" and title.endswith("27.1° N, 87.1° E")
    for box in corners:
        np.testing.assert_allclose(np.ptp(box, axis=0), (6, 3), rtol=2e-3)
        assert box[0, 1] > box[3, 1]  # the upper left corner is north of the lower left one
    np.testing.assert_allclose(corners[1] - corners[0], np.broadcast_to((6, 0), (4, 2)), atol=0.02)
    assert places[0].pixel == "30 m"
    assert _ground(TileInfo("c", 4, 4)) is None
    in_scene = _ground(TileInfo("d", 4, 6, attributes={"scene_row": 8, "scene_column": 12}))
    assert in_scene is not None and in_scene.corners.tolist() == [[12, 8], [18, 8], [18, 12], [12, 12]]


def test_the_date_line_does_not_tear_a_region_apart() -> None:
    wrangel = CRS.from_epsg(32601).to_wkt()
    tiles = [TileInfo("a", 10, 10, crs=wrangel, transform=(1e3, 0, x, 0, -1e3, 7.9e6)) for x in (2.95e5, 3.15e5)]
    corners, _, _ = _local([place for tile in tiles if (place := _ground(tile)) is not None])
    assert np.abs(np.concatenate(corners)).max() < 30


def test_eighteen_bands_stay_on_few_pages(write_tiles: WriteTiles, tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "some" / "test.hdf5", modalities={"optical": 12, "dem": 4, "sar": 2})
    tiles_page.write(survey(find_dataset(path)), [], tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    heights = [image.height / image.width for image in map(pixels, page.images) if image.format == "PNG"]
    assert sum(heights) < 3  # page widths


def test_regions_take_turns_and_pictures_are_few(write_tiles: WriteTiles, tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "some" / "test.hdf5", regions=["HMA"] * 14 + ["ALP"] * 14 + ["SC"], size=(16, 16))
    pictures = _choose(survey(find_dataset(path)))
    regions = [picture.pieces[0].tile.info.region for picture in pictures]
    assert len(pictures) == 12 and regions == sorted(regions)
    assert {region: regions.count(region) for region in set(regions)} == {"ALP": 6, "HMA": 5, "SC": 1}
