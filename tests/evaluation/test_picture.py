"""The picture shows tiles of different regions and is drawn whatever bands and classes there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from console import UserError
from data.predictions import PredictionFile, PredictionWriter
from data.tiles import TWO_CLASSES, ClassInfo, TileFile
from evaluation.picture import choose, draw
from evaluation.regions import Evaluation, TileScore

WriteTiles = Callable[..., Path]


def predictions(path: Path, source: TileFile, outputs: int) -> PredictionFile:
    """Random probabilities for every tile."""
    random = np.random.default_rng(0)
    with PredictionWriter(path, source.classes, {"run": "r", "source": str(source.path)}) as writer:
        for name in source.names:
            probs = random.random((*source.mask(name).shape, outputs), dtype=np.float32)
            probs = probs if outputs == 1 else probs / probs.sum(axis=-1, keepdims=True)
            writer.add(source.info(name), probs, source.mask(name), source.valid(name))
    return PredictionFile(path)


def test_tiles_of_different_regions_with_a_third_of_glacier_are_chosen() -> None:
    shares = {"a0": 0.0, "a1": 0.28, "a2": 0.35, "b0": 0.9, "c0": 0.3, "d0": 0.31, "d1": 0.5}
    tiles = [
        TileScore(name, name[0].upper(), np.array([[1000 - int(share * 1000), 0], [0, int(share * 1000)]]))
        for name, share in shares.items()
    ]
    evaluation = Evaluation(tuple(tiles), ("background", "glacier"), (1,), "valid")
    assert choose(evaluation, rows=4) == ["a1", "b0", "c0", "d0"]
    assert choose(evaluation, rows=5) == ["a1", "a2", "b0", "c0", "d0"]
    assert choose(evaluation, rows=2) == ["c0", "d0"]
    assert len(choose(evaluation, rows=50)) == 7


@pytest.mark.parametrize(("outputs", "modalities"), [(2, {"optical": 6}), (1, {"sar": 2}), (1, {"dem": 1})])
def test_it_is_drawn(tmp_path: Path, write_tiles: WriteTiles, outputs: int, modalities: dict[str, int]) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5", modalities=modalities))
    file = predictions(tmp_path / "p.hdf5", source, outputs)
    draw(file, ["t0", "t1"], tmp_path / "reports" / "examples.png")
    image = matplotlib.image.imread(tmp_path / "reports" / "examples.png")
    assert image.shape[1] > 1000 and image.std() > 0.1
    assert list((tmp_path / "reports").iterdir()) == [tmp_path / "reports" / "examples.png"]


def test_padding_and_more_classes_are_no_obstacle(tmp_path: Path, write_published_2023: WriteTiles) -> None:
    source = TileFile(write_published_2023(tmp_path / "t.hdf5"))
    draw(predictions(tmp_path / "p.hdf5", source, 2), source.names[:1], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_many_classes_are_in_the_legend(tmp_path: Path, write_tiles: WriteTiles) -> None:
    classes = (*TWO_CLASSES, ClassInfo("debris", True, "#775533"), ClassInfo("water", color="#123456"))
    source = TileFile(write_tiles(tmp_path / "t.hdf5", classes=classes))
    draw(predictions(tmp_path / "p.hdf5", source, 4), ["t0"], tmp_path / "a.png")
    image = (matplotlib.image.imread(tmp_path / "a.png")[..., :3] * 255).round().astype(int)
    legend = image[-90:, :900].reshape(-1, 3)
    for info in classes:
        color = [int(info.color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (legend == color).all(axis=-1).any(), info.name


def test_tiles_that_are_gone_are_named(tmp_path: Path, write_tiles: WriteTiles) -> None:
    source = TileFile(write_tiles(tmp_path / "t.hdf5"))
    file = predictions(tmp_path / "p.hdf5", source, 2)
    source.close()
    source.path.unlink()
    with pytest.raises(UserError, match=r"t\.hdf5: no such tile file"):
        draw(file, ["t0"], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
