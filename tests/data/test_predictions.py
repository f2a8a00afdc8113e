"""Prediction files hold what the model said, where it said it, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from console import UserError
from data.predictions import PredictionFile, PredictionWriter, known, label, path_of
from data.tiles import TWO_CLASSES, TileInfo

ATTRIBUTES = {"run": "r", "source": "tiles/a/test.hdf5", "command": "predict", "overlap": 0.5}


def probabilities(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Two classes that sum to 1."""
    second = np.random.default_rng(seed).random((height, width, 1), dtype=np.float32)
    return np.concatenate([1 - second, second], axis=-1)


def write(path: Path, *infos: TileInfo) -> None:
    with PredictionWriter(path, TWO_CLASSES, ATTRIBUTES) as writer:
        for info in infos:
            size = (info.height, info.width)
            writer.add(info, probabilities(*size), np.ones(size, np.uint8), np.ones(size, bool))


def test_labels_are_the_argmax_of_unrounded_values() -> None:
    close = np.array([[[0.49999997, 0.5], [0.5, 0.49999997]]], np.float32)
    np.testing.assert_array_equal(label(close), [[1, 0]])
    assert label(close).dtype == np.uint8


def test_one_probability_is_labelled_above_a_half() -> None:
    values = np.array([[[0.5], [np.nextafter(np.float32(0.5), np.float32(1))], [0.2]]], np.float32)
    np.testing.assert_array_equal(label(values), [[0, 1, 0]])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = path_of("r", tmp_path)
    info = TileInfo("t1", 30, 40, region="HMA", subregion="HMA-1", attributes={"clouds": 0.1, "date": "2020"})
    write(path, info, TileInfo("t0", 20, 20, region="ALP"))
    file = PredictionFile(path)
    assert file.run == "r" and file.source == Path("tiles/a/test.hdf5") and file.classes == TWO_CLASSES
    assert file.attributes["overlap"] == "0.5"
    assert file.region_by_tile == {"t0": "ALP", "t1": "HMA"}
    np.testing.assert_array_equal(file.probs("t1"), probabilities(30, 40))
    tile = file.read("t1")
    np.testing.assert_array_equal(tile.labels, label(probabilities(30, 40)))
    assert tile.valid.dtype == bool and tile.mask.dtype == np.uint8
    with h5py.File(path) as raw:
        assert raw["t1"].attrs["region"] == "HMA" and raw["t1"].attrs["subregion"] == "HMA-1"
        assert raw["t1"].attrs["clouds"] == 0.1 and raw["t1"].attrs["date"] == "2020"
        assert raw["t1/probs"].compression == "gzip" and raw["t1/probs"].dtype == np.float32
    assert known(tmp_path) == ["r"]


@pytest.mark.parametrize(
    ("padding", "original", "rows", "columns"),
    [
        ((0, 0), None, slice(0, 30), slice(0, 40)),
        ((2, 3), None, slice(2, 28), slice(3, 37)),
        ((2, 0), (25, 40), slice(2, 27), slice(0, 40)),
        ((1, 2), (27, 35), slice(1, 28), slice(2, 37)),
    ],
)
def test_padding_is_cut_and_the_transform_moved_along(
    tmp_path: Path, padding: tuple[int, int], original: tuple[int, int] | None, rows: slice, columns: slice
) -> None:
    transform = (30.0, 0.0, 500_000.0, 0.0, -30.0, 4_000_000.0)
    info = TileInfo("t", 30, 40, padding=padding, original=original, transform=transform)
    write(tmp_path / "p.hdf5", info)
    file = PredictionFile(tmp_path / "p.hdf5")
    np.testing.assert_array_equal(file.probs("t"), probabilities(30, 40)[rows, columns])
    shape = file.read("t").labels.shape
    assert shape == file.read("t").mask.shape == file.read("t").valid.shape == file.probs("t").shape[:2]
    with h5py.File(tmp_path / "p.hdf5") as raw:
        moved = raw["t"].attrs["transform"]
    expected = (30, 0, 500_000 + 30 * columns.start, 0, -30, 4_000_000 - 30 * rows.start)
    assert tuple(moved) == expected


def test_regions_are_selected_by_equality(tmp_path: Path) -> None:
    infos = [TileInfo(f"t{i}", 4, 4, region=region) for i, region in enumerate(["SC", "SCX", "SC"])]
    write(tmp_path / "p.hdf5", *infos)
    file = PredictionFile(tmp_path / "p.hdf5")
    assert file.select() == ["t0", "t1", "t2"]
    assert file.select(["SC"]) == ["t0", "t2"]
    with pytest.raises(UserError, match="region XY; its regions are SC, SCX"):
        file.select(["SC", "XY"])


def test_an_error_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r" / "predictions.hdf5"
    write(path, TileInfo("t", 4, 4))
    before = path.read_bytes()
    with pytest.raises(RuntimeError), PredictionWriter(path, TWO_CLASSES, ATTRIBUTES) as writer:
        writer.add(TileInfo("u", 4, 4), probabilities(4, 4), np.ones((4, 4), np.uint8), np.ones((4, 4), bool))
        raise RuntimeError
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_file_says_how_to_make_it_again(tmp_path: Path, keep: float) -> None:
    path = path_of("r", tmp_path)
    write(path, TileInfo("t", 64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"truncated or damaged.*python predict\.py -n r"):
        PredictionFile(path).select()


def test_missing_files_and_other_files_are_told_apart(tmp_path: Path) -> None:
    path = path_of("r", tmp_path)
    with pytest.raises(UserError, match=r"make them with python predict\.py -n r"):
        PredictionFile(path).select()
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file.create_group("t")
    with pytest.raises(UserError, match="not a prediction file"):
        PredictionFile(path).select()
