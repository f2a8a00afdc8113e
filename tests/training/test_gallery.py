"""The picture of augmentations: what is in it, whatever bands and classes there are; and the page that explains it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml
from matplotlib.colors import to_rgb

from console import UserError
from data.augmentation import Augmentation
from data.loader import PatchSource
from data.tiles import TWO_CLASSES, ClassInfo, TileFile
from evaluation.picture import show
from training import gallery
from training.gallery import draw_augmentations

WriteTiles = Callable[..., Path]
PAGE = Path(__file__).parents[2] / "docs" / "augmentation.md"
PROBABILITIES = {name for name, field in Augmentation.model_fields.items() if field.default == 0.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_CANDIDATES", 2)
    monkeypatch.setattr(gallery, "_DRAWS", 2)


def source(path: Path) -> PatchSource:
    file = TileFile(path)
    return PatchSource(file, tuple(file.names), tuple(file.modalities), file.statistics, 16)


def test_every_augmentation_is_drawn_and_explained() -> None:
    assert set(gallery._AUGMENTATIONS) == PROBABILITIES
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in Augmentation.model_fields)


def test_what_the_page_says_to_write_into_a_recipe_is_understood() -> None:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)]
    published = [Augmentation.model_validate(block["augmentation"]) for block in blocks]
    default = Augmentation()
    assert len(published) == 2
    for settings in published:
        strengths = settings.model_fields_set - PROBABILITIES
        assert strengths and all(getattr(settings, name) == getattr(default, name) for name in strengths)


@pytest.mark.parametrize(
    ("modalities", "classes"),
    [({"dem": 2}, TWO_CLASSES), ({"sar": 2, "optical": 6, "dem": 1}, (*TWO_CLASSES, ClassInfo("debris", True)))],
)
def test_each_panel_shows_its_augmentation_of_any_modalities(
    tmp_path: Path, write_tiles: WriteTiles, monkeypatch: pytest.MonkeyPatch, modalities: dict[str, int], classes: Any
) -> None:
    shown: list[tuple[np.ndarray, np.ndarray]] = []

    def noting(axis: Any, image: np.ndarray, seen: np.ndarray) -> None:
        shown.append((image, seen))
        show(axis, image, seen)

    monkeypatch.setattr(gallery, "show", noting)
    path = write_tiles(tmp_path / "t.hdf5", modalities=modalities, classes=classes)
    draw_augmentations(source(path), tmp_path / "a.png", 0)
    assert {one.name for one in tmp_path.iterdir()} == {"t.hdf5", "a.png"}
    picture = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    assert picture.shape[0] > 600 and picture.shape[1] > 700
    assert (np.abs(picture - to_rgb(gallery._OUTLINE)).max(axis=-1) < 0.02).any()

    titles = ["original", *gallery._AUGMENTATIONS, "all of them"]
    assert len(shown) == len(titles) * len(modalities)
    panels = {title: shown[at * len(modalities) :][: len(modalities)] for at, title in enumerate(titles)}
    for (original, _), (mirrored, _) in zip(panels["original"], panels["flip_vertical"], strict=True):
        np.testing.assert_array_equal(mirrored, original[::-1])
    assert all((~seen).any() for _, seen in panels["affine"])
    assert sum(not image.any() for image, _ in panels["drop"]) == len(modalities) - 1
    for title in titles[1:]:
        differs = [(a != b).any() for (a, _), (b, _) in zip(panels[title], panels["original"], strict=True)]
        assert any(differs) or (title == "drop" and len(modalities) == 1), title
    black = {title: sum(int((~image.any(axis=-1)).sum()) for image, _ in panels[title]) for title in titles}
    assert black["occlusion"] > black["original"] + 4


def test_a_change_that_is_too_small_to_see_is_magnified() -> None:
    random = np.random.default_rng(0)
    before = random.random((8, 8, 3), dtype=np.float32)
    change = random.choice([-0.003, 0.003], (8, 8, 3)).astype(np.float32)
    image = before + change
    assert gallery._magnify_right_half(image, before) == 100
    np.testing.assert_array_equal(image[:, :4], (before + change)[:, :4])
    np.testing.assert_allclose(image[:, 4:], 0.5 + 100 * change[:, 4:], atol=1e-4)
    assert gallery._magnify_right_half(before.copy(), before) > 0  # no change at all


def test_another_format_is_refused(tmp_path: Path, write_tiles: WriteTiles) -> None:
    with pytest.raises(UserError, match=r"ends in \.png, received .*a\.jpg"):
        draw_augmentations(source(write_tiles(tmp_path / "t.hdf5")), tmp_path / "a.jpg", 0)
    assert not (tmp_path / "a.jpg").exists()
