from __future__ import annotations

import errno
import json
import multiprocessing
import pickle
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from console import UserError
from data import hdf5
from data.normalisation import Statistics, fit
from data.tiles import (
    IGNORE,
    TWO_CLASSES,
    ClassInfo,
    TileContents,
    TileFile,
    TileInfo,
    TileWriter,
    describe_absent,
    find_dataset,
    replacing_dataset,
    select,
    write_splits,
)
from data.windows import Window

Write = Callable[..., Path]
BANDS = {"optical": ["red", "green", "blue"], "dem": ["elevation", "slope"]}
CLASSES = (
    ClassInfo("background"),
    ClassInfo("clean_ice", True, "#00ffff"),
    ClassInfo("debris", True),
    ClassInfo("water"),
)
STATISTICS = Statistics(
    "standardise",
    {"optical": (0.1, 0.2, 0.3), "dem": (10.0, 1 / 3)},
    {"optical": (1.0, 2.0, 3.0), "dem": (1e3, 9.0)},
    "a test",
)
WKT = 'LOCAL_CS["a grid",UNIT["metre",1]]'


def arrays(seed: int = 0, size: tuple[int, int] = (6, 8)) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    modalities = {name: rng.random((*size, len(bands)), dtype=np.float32) for name, bands in BANDS.items()}
    modalities["optical"][0, 0] = np.nan
    mask = rng.integers(0, len(CLASSES), size).astype(np.uint8)
    mask[1, 1] = IGNORE
    return modalities, mask, rng.random(size) > 0.2


def write_ours(path: Path, order: tuple[str, ...] = ("b", "a"), seed: int = 0, command: str = "make it") -> Path:
    with TileWriter(path, CLASSES, BANDS, STATISTICS, {"from": ["x.tif"]}, command) as writer:
        for name in order:
            modalities, mask, valid = arrays(seed + ord(name))
            writer.add(
                name,
                modalities,
                mask,
                valid,
                "HMA",
                "HMA-W",
                WKT,
                (30, 0, 5e5, 0, -30, 4e6),
                padding_height=1,
                sensor="L8",
            )
    return path


# -- our format ----------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = TileFile(write_ours(tmp_path / "ours.hdf5"))
    assert file.names == ["a", "b"]
    assert file.classes == CLASSES
    assert file.bands == BANDS
    assert file.modalities == {"optical": 3, "dem": 2}
    assert file.statistics == STATISTICS
    assert not file.published
    assert file.provenance == {"from": ["x.tif"]}
    assert file.command == "make it"
    for name in "ab":
        modalities, mask, valid = arrays(ord(name))
        read = file.read(name, ["dem", "optical"])
        assert list(read) == ["dem", "optical"]
        for modality, expected in modalities.items():
            assert read[modality].dtype == np.float32
            np.testing.assert_array_equal(read[modality], expected)
        assert file.mask(name).dtype == np.uint8
        np.testing.assert_array_equal(file.mask(name), mask)
        assert file.valid(name).dtype == np.bool_
        np.testing.assert_array_equal(file.valid(name), valid)
    info = file.info("a")
    assert (info.height, info.width, info.region, info.subregion, info.crs) == (6, 8, "HMA", "HMA-W", WKT)
    assert info.transform == (30.0, 0.0, 5e5, 0.0, -30.0, 4e6)
    assert (info.padding, info.original) == ((1, 0), None)
    assert info.attributes["sensor"] == "L8"
    json.dumps(info.attributes)
    assert file.check(["optical", "dem"]) == []


@pytest.mark.parametrize(("size", "sides"), [((6, 8), (6, 8)), ((300, 128), (100, 128)), ((129, 512), (65, 128))])
def test_arrays_are_in_chunks_for_patches_and_labels_compressed(
    tmp_path: Path, size: tuple[int, int], sides: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    mask = np.indices(size).sum(axis=0, dtype=np.uint8) // 128
    with TileWriter(tmp_path / "t.hdf5", TWO_CLASSES, {"optical": ["b", "g", "r"]}) as writer:
        writer.add("a", {"optical": values}, np.minimum(mask, 1), np.ones(size))
    with h5py.File(tmp_path / "t.hdf5") as file:
        assert file["a/optical"].chunks == (*sides, 3)
        assert file["a/mask"].chunks == file["a/valid"].chunks == sides
        assert file["a/mask"].compression == file["a/valid"].compression == "gzip"
    window = Window(size[0] // 3, size[1] // 4, 40, 70)
    read = TileFile(tmp_path / "t.hdf5")
    np.testing.assert_array_equal(read.read("a", ["optical"], window)["optical"], values[window.slices])
    np.testing.assert_array_equal(read.labels("a", window), np.minimum(mask, 1)[window.slices])


def test_names_in_the_file_are_those_of_the_format(tmp_path: Path) -> None:
    with h5py.File(write_ours(tmp_path / "ours.hdf5")) as file:
        assert set(file["a"]) == {"optical", "dem", "mask", "valid"}
        assert file["a/optical"].dtype == np.float32
        assert file["a/optical"].compression is None, "patches of compressed floats take several times as long"
        assert file["a/mask"].dtype == file["a/valid"].dtype == np.uint8
        assert set(file.attrs) == {
            "classes",
            "bands",
            "statistics",
            "provenance",
            "command",
            "digest",
            "format",
        }
        assert json.loads(file.attrs["classes"])[1] == {
            "name": "clean_ice",
            "glacier": True,
            "color": "#00ffff",
        }
        assert file.attrs["format"] == "glacier-tiles 1"
        assert {"region", "subregion", "crs", "transform"} <= set(file["a"].attrs)


@pytest.mark.parametrize("window", [Window(1, 2, 3, 4), Window(0, 0, 6, 8), Window(4, 5, 16, 16), Window(5, 7, 1, 1)])
def test_a_window_is_that_part_of_the_tile(tmp_path: Path, write_published_2023: Write, window: Window) -> None:
    ours = TileFile(write_ours(tmp_path / "ours.hdf5"))
    theirs = TileFile(write_published_2023(tmp_path / "theirs.hdf5", {"SC-1-1": (6, 8)}, unlabelled=2))
    for file in (ours, theirs):
        name = file.names[0]
        for modality, whole in file.read(name, ["optical", "dem"]).items():
            np.testing.assert_array_equal(file.read(name, [modality], window)[modality], whole[window.slices])
        np.testing.assert_array_equal(file.mask(name, window), file.mask(name)[window.slices])
        np.testing.assert_array_equal(file.valid(name, window), file.valid(name)[window.slices])


def test_modalities_come_in_the_order_asked_for_and_not_swapped(tmp_path: Path, write_published_2023: Write) -> None:
    file = TileFile(write_published_2023(tmp_path / "t.hdf5"))
    name = file.names[0]
    one, other = file.read(name, ["dem", "sar"]), file.read(name, ["sar", "dem"])
    assert (list(one), list(other)) == (["dem", "sar"], ["sar", "dem"])
    np.testing.assert_array_equal(one["dem"], other["dem"])
    assert not np.array_equal(one["dem"], one["sar"])


def test_the_digest_depends_on_content_only(tmp_path: Path) -> None:
    digest = TileFile(write_ours(tmp_path / "one.hdf5")).digest
    assert TileFile(write_ours(tmp_path / "two.hdf5", order=("a", "b"), command="again")).digest == digest
    assert TileFile(write_ours(tmp_path / "three.hdf5", seed=1)).digest != digest
    assert TileFile(write_ours(tmp_path / "four.hdf5", order=("a",))).digest != digest
    with TileWriter(tmp_path / "five.hdf5", CLASSES, BANDS, None) as writer:
        for name in "ab":
            writer.add(name, *arrays(ord(name)))
    assert TileFile(tmp_path / "five.hdf5").digest != digest


def test_statistics_may_be_fitted_while_writing(tmp_path: Path) -> None:
    with TileWriter(tmp_path / "t.hdf5", CLASSES, BANDS) as writer:
        modalities, mask, valid = arrays()
        writer.add("a", modalities, mask, valid)
        writer.statistics = fit([(modalities, valid)])
    assert TileFile(tmp_path / "t.hdf5").statistics == fit([(modalities, valid)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, mask, valid: ({}, mask, valid), "one or more of"),
        (lambda m, mask, valid: ({**m, "sar": m["dem"]}, mask, valid), "has modalities .*'sar'.* expected"),
        (lambda m, mask, valid: ({**m, "dem": m["dem"][:, :, :1]}, mask, valid), "'dem' has shape"),
        (lambda m, mask, valid: ({**m, "dem": m["dem"][1:]}, mask, valid), "'dem' has shape"),
        (lambda m, mask, valid: (m, np.full_like(mask, 4), valid), "class ids"),
        (lambda m, mask, valid: (m, mask, valid[1:]), "valid"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path: Path, change: Callable, message: str) -> None:
    with (
        pytest.raises(ValueError, match=message),
        TileWriter(tmp_path / "t.hdf5", CLASSES, BANDS) as writer,
    ):
        writer.add("a", *change(*arrays()))
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_written_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already"):
        write_ours(tmp_path / "t.hdf5", order=("a", "a"))


# -- published formats ---------------------------------------------------------------------------------------


def test_the_format_of_2023_opens_unchanged(tmp_path: Path, write_published_2023: Write) -> None:
    path = write_published_2023(tmp_path / "test.hdf5", padding=(3, 5))
    file = TileFile(path)
    assert file.names == ["HMA-1-2", "SC2-59-84"]
    assert file.modalities == {"optical": 6, "dem": 2, "sar": 2}
    assert file.bands["optical"][3] == "nir"
    assert file.bands["sar"] == ["sar_1", "sar_2"]
    assert file.published
    assert file.statistics is None
    assert file.classes == TWO_CLASSES
    assert [(info.name, info.glacier) for info in file.classes] == [("background", False), ("glacier", True)]
    info = file.info("SC2-59-84")
    assert (info.region, info.subregion, info.padding, info.height, info.width) == ("SC", "", (1, 2), 40, 48)
    assert file.valid("SC2-59-84").all()
    with h5py.File(path) as raw:
        np.testing.assert_array_equal(file.mask("SC2-59-84"), raw["SC2-59-84/groundtruth"][..., 1])
        np.testing.assert_array_equal(file.read("SC2-59-84", ["sar"])["sar"], raw["SC2-59-84/sar"][:])
    assert file.check(["optical", "dem", "sar"]) == []


def test_the_format_of_2025_opens_unchanged(tmp_path: Path, write_published_2025: Write) -> None:
    file = TileFile(write_published_2025(tmp_path / "test.hdf5"))
    assert file.modalities["thermal"] == 1
    assert file.bands["in_sar"] == ["ascending", "descending"]
    assert file.published
    info = file.info("tile1")
    assert (info.region, info.subregion, info.padding) == ("SVAL", "SVAL-1", (2, 0))
    assert info.attributes["xmin"] == 10.0
    assert info.interior() == (slice(2, 38), slice(0, 48))
    with h5py.File(file.path) as raw:
        np.testing.assert_array_equal(file.mask("tile1"), raw["tile1/outlines"][..., 1])
    assert file.check(["optical", "dem", "thermal"]) == []


def test_all_zero_one_hot_pixels_are_ignored(tmp_path: Path, write_published_2023: Write) -> None:
    file = TileFile(write_published_2023(tmp_path / "t.hdf5", unlabelled=7))
    mask = file.mask("SC2-59-84")
    assert (mask[:7] == IGNORE).all()
    assert (mask[7:] != IGNORE).all()


def test_the_digest_of_a_published_file_is_that_of_its_bytes(tmp_path: Path, write_published_2023: Write) -> None:
    import hashlib

    path = write_published_2023(tmp_path / "t.hdf5")
    assert TileFile(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_tile_without_a_mask_is_ignored_everywhere(tmp_path: Path, write_tiles: Write) -> None:
    path = write_tiles(tmp_path / "t.hdf5", size=(6, 8))
    with h5py.File(path, "r+") as raw:
        del raw["t0/mask"]
    file = TileFile(path)
    assert (file.mask("t0", Window(4, 0, 4, 4)) == np.full((2, 4), IGNORE)).all()
    assert [problem for problem in file.check(["dem"]) if "no mask" in problem and "'t0'" in problem]
    assert file.check(["dem"], labelled=False) == []


@pytest.mark.parametrize(
    ("name", "region"),
    [("SC2-59-84", "SC"), ("HMA-1", "HMA"), ("SVAL10-3-4", "SVAL"), ("AN-SC-1", "AN"), ("1A2W3A-x", "AWA")],
)
def test_without_an_attribute_the_region_is_the_letters_before_the_dash(
    tmp_path: Path, write_published_2023: Write, name: str, region: str
) -> None:
    file = TileFile(write_published_2023(tmp_path / "t.hdf5", {name: (8, 8)}))
    assert file.info(name).region == region


def test_an_attribute_is_never_overruled_by_a_name(tmp_path: Path, write_published_2023: Write) -> None:
    path = write_published_2023(tmp_path / "t.hdf5", {"SC2-59-84": (8, 8)})
    with h5py.File(path, "r+") as raw:
        raw["SC2-59-84"].attrs["region"] = np.bytes_("NZ")
    assert TileFile(path).info("SC2-59-84").region == "NZ"


# -- padding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("original", [(10, 10), (9, 10), (7, 3), (1, 1), (10, 7)])
@pytest.mark.parametrize("known", [True, False])
def test_the_interior_is_what_was_padded(original: tuple[int, int], known: bool) -> None:
    total = [10 - length for length in original]
    front = (total[0] // 2, total[1] // 2)
    info = TileInfo("t", 10, 10, padding=front, original=original if known else None)
    rows, columns = info.interior()
    padded = np.full((10, 10), -1)
    padded[front[0] : front[0] + original[0], front[1] : front[1] + original[1]] = 1
    cut = padded[rows, columns]
    if known:
        assert cut.shape == original
        assert (cut == 1).all()
    else:
        # What comes behind may be one pixel more than in front: the file does not say.
        assert cut.shape == (10 - 2 * front[0], 10 - 2 * front[1])


def test_no_padding_cuts_nothing() -> None:
    assert TileInfo("t", 5, 7).interior() == (slice(0, 5), slice(0, 7))


@pytest.mark.parametrize(
    ("height", "width", "original"),
    [("padding_height", "padding_width", "original"), ("pad_height", "pad_width", "orig")],
)
def test_both_spellings_of_padding_are_read(tmp_path: Path, height: str, width: str, original: str) -> None:
    with h5py.File(tmp_path / "t.hdf5", "w") as file:
        group = file.create_group("SC-1")
        group.create_dataset("optical", data=np.zeros((9, 12, 2)))
        group.attrs.update({height: 2, width: 3, f"{original}_height": 4, f"{original}_width": 5})
    info = TileFile(tmp_path / "t.hdf5").info("SC-1")
    assert info.interior() == (slice(2, 6), slice(3, 8))


@pytest.mark.parametrize(("padding", "original"), [((5, 0), None), ((2, 0), (9, 10)), ((-1, 0), None)])
def test_padding_that_leaves_nothing_is_an_error(padding: tuple[int, int], original: tuple[int, int] | None) -> None:
    with pytest.raises(UserError, match="padding"):
        TileInfo("t", 10, 10, padding=padding, original=original).interior()


# -- processes and threads -----------------------------------------------------------------------------------


def test_an_opened_file_pickles_as_its_path(tmp_path: Path, write_tiles: Write) -> None:
    file = TileFile(write_tiles(tmp_path / "t.hdf5"))
    file.read("t0", ["optical"])
    pickled = pickle.dumps(file)
    assert len(pickled) < 500
    np.testing.assert_array_equal(pickle.loads(pickled).mask("t1"), file.mask("t1"))


def test_threads_read_the_same(tmp_path: Path, write_tiles: Write) -> None:
    file = TileFile(write_tiles(tmp_path / "t.hdf5", size=(64, 64)))
    windows = [Window(top, left, 16, 16) for top in range(0, 48, 5) for left in range(0, 48, 5)]
    expected = file.read("t1", ["optical"])["optical"]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda window: file.read("t1", ["optical"], window)["optical"], windows))
    for window, part in zip(windows, read, strict=True):
        np.testing.assert_array_equal(part, expected[window.slices])
    file.close()
    np.testing.assert_array_equal(file.read("t1", ["optical"])["optical"], expected)


def test_a_spawned_process_reads_the_same(tmp_path: Path, write_tiles: Write) -> None:
    file = TileFile(write_tiles(tmp_path / "t.hdf5"))
    expected = file.mask("t1")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(file.mask, "t1").result(timeout=60), expected)


# -- whole or absent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_exception_leaves_no_file_and_no_temporary(tmp_path: Path, error: BaseException, before: bool) -> None:
    path = tmp_path / "t.hdf5"
    if before:
        write_ours(path)
    digest = TileFile(path).digest if before else None
    with pytest.raises(type(error)), TileWriter(path, CLASSES, BANDS) as writer:
        writer.add("a", *arrays())
        raise error
    assert list(tmp_path.iterdir()) == ([path] if before else [])
    assert not before or TileFile(path).digest == digest


def test_the_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.hdf5"
    with TileWriter(path, CLASSES, BANDS) as writer:
        writer.add("a", *arrays())
        assert not path.exists()
    assert TileFile(path).names == ["a"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("side", "tiles"), [(256, 8), (2, 2000)])
def test_a_disk_that_refuses_is_one_error_and_leaves_nothing(tmp_path: Path, side: int, tiles: int) -> None:
    # Large arrays are refused while they are written, many small groups when HDF5 flushes its metadata.
    with (
        files_of_at_most(1_000_000),
        pytest.raises(OSError) as caught,
        TileWriter(tmp_path / "t.hdf5", CLASSES, BANDS) as writer,
    ):
        for index in range(tiles):
            writer.add(f"t{index}", *arrays(size=(side, side)))
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_that_shows_only_at_the_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(hdf5._Sink):
        def write(self, data: object) -> int:
            # The last writes are those of the metadata, when the file is closed.
            if writer_done:
                self.error = self.error or OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    writer_done = False
    monkeypatch.setattr(hdf5, "_Sink", Full)
    with pytest.raises(OSError) as caught, TileWriter(tmp_path / "t.hdf5", CLASSES, BANDS) as writer:
        writer.add("a", *arrays())
        writer_done = True
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


# -- bad files -----------------------------------------------------------------------------------------------


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such tile file"):
        TileFile(tmp_path / "t.hdf5").names  # noqa: B018


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_says_so(tmp_path: Path, write_tiles: Write, share: float) -> None:
    path = write_tiles(tmp_path / "t.hdf5")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="truncated or damaged") as caught:
        TileFile(path).check(["optical"])
    assert str(path) in str(caught.value)


def test_a_damaged_chunk_says_so(tmp_path: Path, write_published_2023: Write) -> None:
    path = write_published_2023(tmp_path / "t.hdf5", {"SC-1": (64, 64)})
    with h5py.File(path) as raw:
        chunk = raw["SC-1/optical"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\0" * chunk.size
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or damaged"):
        TileFile(path).check(["optical"])


def test_a_file_without_tiles_says_so(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.hdf5", "w") as raw:
        raw["array"] = np.zeros(3)
    with pytest.raises(UserError, match="no tile in it"):
        TileFile(tmp_path / "t.hdf5").check(["optical"])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, ""),
        ({"kind": "outlines", "rule": "pixel centre"}, ""),
        ({"kind": "weak", "rule": "red/swir1 > 2", "threshold": 2.0}, "weak mask, red/swir1 > 2 — "),
        ({"kind": "weak", "rule": "ndsi > otsu", "threshold": 0.4118}, "ndsi > otsu (Otsu's threshold 0.4118) — "),
        ({"kind": "weak", "rule": "ndsi > otsu", "threshold": {"a": 0.4, "b": 0.5}}, "weak mask, ndsi > otsu — "),
        ({"kind": "weak"}, "weak mask"),
        ("weak", ""),
    ],
)
def test_weak_masks_are_named_as_such(tmp_path: Path, mask: object, expected: str) -> None:
    values, labels, valid = arrays()
    with TileWriter(tmp_path / "t.hdf5", CLASSES, BANDS, provenance={"mask": mask}) as file:
        file.add("t", values, labels, valid)
    note = TileFile(tmp_path / "t.hdf5").mask_note
    assert expected in note and bool(expected) == bool(note)
    assert not note or note.endswith("scores measure agreement with that rule, not with outlines")


def test_unknown_names_are_answered_with_the_known(tmp_path: Path, write_tiles: Write) -> None:
    file = TileFile(write_tiles(tmp_path / "t.hdf5"))
    with pytest.raises(UserError, match=r"no tile 'x'.*`t0`, `t1`"):
        file.info("x")
    with pytest.raises(UserError, match=r"no `sar`.*`dem`, `optical`"):
        file.read("t0", ["optical", "sar"])


@pytest.mark.parametrize("attribute", ["classes", "bands", "statistics", "provenance"])
@pytest.mark.parametrize("value", ["{", '[{"a": 1}]'])
def test_unreadable_attributes_say_which(tmp_path: Path, write_tiles: Write, attribute: str, value: str) -> None:
    path = write_tiles(tmp_path / "t.hdf5")
    with h5py.File(path, "r+") as raw:
        raw.attrs[attribute] = value
    with pytest.raises(UserError, match=attribute):
        getattr(TileFile(path), attribute)


# -- check ---------------------------------------------------------------------------------------------------


def replace(group: h5py.Group, key: str, array: np.ndarray) -> None:
    del group[key]
    group[key] = array


def one_wrong_class(group: h5py.Group) -> None:
    group["mask"][3, 2:5] = 7


def all_nan(group: h5py.Group) -> None:
    group["optical"][:] = np.nan


PROBLEMS: dict[str, tuple[Callable[[h5py.Group], object], list[str]]] = {
    "no modality": (
        lambda group: [group.pop(key) for key in BANDS],
        ["no modality of `optical`, `dem`", "it has none"],
    ),
    "other channel count": (
        lambda group: replace(group, "dem", np.zeros((32, 40, 3))),
        ["`dem` has 3 channels", "'t0' it has 2"],
    ),
    "unknown class": (one_wrong_class, ["class 7 ", "3 pixels", "0 background, 1 glacier"]),
    "all NaN": (all_nan, ["`optical` is NaN at every valid pixel"]),
    "all invalid": (lambda group: replace(group, "valid", np.zeros((32, 40))), ["no valid pixel"]),
    "other size": (
        lambda group: replace(group, "mask", np.zeros((32, 41))),
        ["sizes differ", "`mask` 32×41", "`optical` 32×40"],
    ),
    "no mask": (lambda group: group.pop("mask"), ["no mask"]),
    "padding": (lambda group: group.attrs.update(padding_width=20), ["padding (0, 20)"]),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_check_names_tile_and_problem(tmp_path: Path, write_tiles: Write, problem: str) -> None:
    spoil, expected = PROBLEMS[problem]
    path = write_tiles(tmp_path / "t.hdf5", regions=["HMA"] * 3)
    assert TileFile(path).check(["optical", "dem"]) == []
    with h5py.File(path, "r+") as raw:
        spoil(raw["t1"])
    (found,) = TileFile(path).check(["optical", "dem"])
    assert str(path) in found
    assert "'t1'" in found
    for text in expected:
        assert text in found


def test_check_lists_all_problems_at_once(tmp_path: Path, write_tiles: Write) -> None:
    path = write_tiles(tmp_path / "t.hdf5", regions=["HMA"] * (len(PROBLEMS) + 1))
    with h5py.File(path, "r+") as raw:
        for index, (spoil, _) in enumerate(PROBLEMS.values()):
            spoil(raw[f"t{index + 1}"])
    found = TileFile(path).check(["optical", "dem"])
    assert len(found) == len(PROBLEMS)
    for index, (_, expected) in enumerate(PROBLEMS.values()):
        (line,) = [line for line in found if f"tile 't{index + 1}'" in line]
        assert all(text in line for text in expected)


def test_check_says_which_modality_no_tile_has(tmp_path: Path, write_tiles: Write) -> None:
    path = write_tiles(tmp_path / "t.hdf5")
    expected = "no modality `sar`, `thermal` in any tile, it has `dem`, `optical`"
    assert TileFile(path).check(["optical", "sar", "thermal"]) == [f"{path}: {expected}"]
    assert TileFile(path).check(["sar", "thermal"]) == [f"{path}: {expected}"]


def test_check_leaves_other_modalities_alone(tmp_path: Path, write_tiles: Write) -> None:
    path = write_tiles(tmp_path / "t.hdf5")
    with h5py.File(path, "r+") as raw:
        raw["t1"].pop("dem")
    assert TileFile(path).check(["optical"]) == []


# -- modalities that some tiles lack -------------------------------------------------------------------------


def write_absent(path: Path) -> Path:
    """Write tiles `a` without optical, `b` with all, `c` without DEM where it counts, `d` without a valid pixel."""
    with TileWriter(path, CLASSES, BANDS, STATISTICS) as writer:
        for name in "abcd":
            modalities, mask, valid = arrays(ord(name))
            if name == "a":
                del modalities["optical"]
            if name == "c":
                modalities["dem"][valid] = np.nan
            writer.add(name, modalities, mask, valid & (name != "d"))
    return path


def test_a_tile_may_lack_modalities_that_others_have(tmp_path: Path) -> None:
    file = TileFile(write_absent(tmp_path / "t.hdf5"))
    assert [set(file.present(name)) for name in file.names] == [{"dem"}, {"dem", "optical"}, {"optical"}, set(BANDS)]
    assert file.bands == BANDS
    assert file.check(["optical", "dem"]) == [f"{file.path}: tile 'd': no valid pixel"]
    read = file.read("a", ["optical", "dem"], Window(2, 3, 16, 4))
    assert list(read) == ["optical", "dem"] and read["optical"].dtype == np.float32
    assert read["optical"].shape == (4, 4, 3) and np.isnan(read["optical"]).all()
    np.testing.assert_array_equal(read["dem"], arrays(ord("a"))[0]["dem"][2:, 3:7])
    np.testing.assert_array_equal(file.read("b", ["dem"])["dem"], arrays(ord("b"))[0]["dem"])
    chosen = file.choose({"optical": ["blue", "red"]})
    assert chosen.read("a", ["optical"])["optical"].shape == (6, 8, 2)
    assert chosen.read("b", ["optical"])["optical"].shape == (6, 8, 2)
    with pytest.raises(UserError, match=r"tile 'a' has no `sar`, it has `dem`"):
        file.read("a", ["optical", "sar"])
    assert (
        describe_absent(file, file.names, ["dem", "optical"])
        == "dem absent in 1 of 4 tiles, optical absent in 1 of 4 tiles"
    )
    assert describe_absent(file, ["b", "d"], ["dem", "optical"]) == ""


def test_bands_without_names_are_known_where_the_first_tile_lacks_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.hdf5", "w") as raw:
        raw["HMA-1/dem"] = np.ones((4, 5, 2))
        raw["HMA-2/dem"], raw["HMA-2/mine"] = np.ones((4, 5, 2)), np.ones((4, 5, 3))
    file = TileFile(tmp_path / "t.hdf5")
    assert file.bands["mine"] == ["mine_1", "mine_2", "mine_3"] and file.modalities == {"dem": 2, "mine": 3}
    assert np.isnan(file.read("HMA-1", ["mine"])["mine"]).all() and file.published
    assert file.check(["dem", "mine"], labelled=False) == []


def test_the_digest_tells_absent_from_there(tmp_path: Path) -> None:
    digests = set()
    changes: tuple[dict[str, float], ...] = ({}, {"optical": np.nan}, {"optical": 0})
    for number, absent in enumerate(changes):
        modalities, mask, valid = arrays()
        modalities |= {name: np.full_like(modalities[name], value) for name, value in absent.items()}
        for left_out in {False, number == 1}:
            path = tmp_path / f"{number}{left_out}.hdf5"
            with TileWriter(path, CLASSES, BANDS) as writer:
                writer.add("a", {"dem": modalities["dem"]} if left_out else modalities, mask, valid)
            digests.add(TileFile(path).digest)
    assert len(digests) == 3  # left out and all NaN are the same


def test_statistics_are_of_the_tiles_that_have_a_modality(tmp_path: Path) -> None:
    tiles = {}
    for name in "abc":
        modalities, mask, valid = arrays(ord(name))
        tiles[name] = TileContents(name, modalities, mask, valid)
    del tiles["a"].modalities["optical"]
    tiles["c"].modalities["optical"][:] = np.nan
    write_splits(tmp_path, {"train": "abc", "val": "b"}, tiles.__getitem__, CLASSES, BANDS, {})
    expected = fit([({"optical": tiles["b"].modalities["optical"]}, tiles["b"].valid)])
    for split in ("train", "val"):
        statistics = TileFile(tmp_path / f"{split}.hdf5").statistics
        assert statistics is not None and statistics.shift["optical"] == expected.shift["optical"]
    with pytest.raises(UserError, match="no training tile has `optical`"):
        write_splits(tmp_path / "none", {"train": "a", "val": "b"}, tiles.__getitem__, CLASSES, BANDS, {})
    assert not list((tmp_path / "none").glob("*"))


# -- datasets ------------------------------------------------------------------------------------------------


def make_dataset(folder: Path, write: Write, splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    folder.mkdir(parents=True)
    for split in splits:
        write(folder / f"{split}.hdf5", size=(4, 4), regions=["HMA"])
    return folder


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dataset_is_found_by_name_folder_file_or_alone(in_tmp: Path, write_tiles: Write) -> None:
    folder = make_dataset(Path("tiles/one"), write_tiles)
    expected = {split: folder / f"{split}.hdf5" for split in ("train", "val", "test")}
    for asked in ("one", None, folder, str(folder.resolve())):
        found = find_dataset(asked)
        assert found.name == "one"
        assert {split: path.resolve() for split, path in found.splits.items()} == {
            split: path.resolve() for split, path in expected.items()
        }
    single = find_dataset(folder / "val.hdf5")
    assert (single.name, single.splits) == ("val", {"test": folder / "val.hdf5"})


def test_without_any_dataset_the_message_says_which_command_makes_one(in_tmp: Path) -> None:
    for asked in (None, "one"):
        with pytest.raises(UserError, match=r"python prepare\.py synthetic"):
            find_dataset(asked)


def test_unknown_and_ambiguous_datasets_are_answered_with_the_known(in_tmp: Path, write_tiles: Write) -> None:
    make_dataset(Path("tiles/one"), write_tiles)
    make_dataset(Path("tiles/two"), write_tiles, ("train", "val"))
    Path("tiles/empty").mkdir()
    make_dataset(Path("tiles/.half-written"), write_tiles)
    with pytest.raises(UserError, match=r"one, two$"):
        find_dataset(None)
    with pytest.raises(UserError, match=r"'three'.*one, two"):
        find_dataset("three")
    with pytest.raises(UserError, match=r"expected train\.hdf5"):
        find_dataset("tiles/empty")
    with pytest.raises(UserError, match=r"no test split.*train, val"):
        find_dataset("two").path("test")
    assert find_dataset("two").path("val") == Path("tiles/two/val.hdf5")


def test_select_compares_regions_for_equality(tmp_path: Path, write_tiles: Write) -> None:
    file = TileFile(write_tiles(tmp_path / "t.hdf5", regions=["SA", "S", "HMA", "S"], size=(4, 4)))
    assert select(file, None) == select(file, []) == ["t0", "t1", "t2", "t3"]
    assert select(file, ["S"]) == ["t1", "t3"]
    assert select(file, ["HMA", "SA"]) == ["t0", "t2"]
    with pytest.raises(UserError, match=r"`ALP`; its regions are `HMA`, `S`, `SA`"):
        select(file, ["HMA", "ALP"])


def test_a_dataset_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "tiles" / "one"
    with replacing_dataset(folder) as part:
        (part / "train.hdf5").write_text("first")
        assert not folder.exists()
    with pytest.raises(UserError, match="--overwrite"), replacing_dataset(folder):
        pass
    with pytest.raises(RuntimeError), replacing_dataset(folder, overwrite=True) as part:
        (part / "train.hdf5").write_text("broken")
        raise RuntimeError
    assert (folder / "train.hdf5").read_text() == "first"
    with replacing_dataset(folder, overwrite=True) as part:
        (part / "val.hdf5").write_text("second")
    assert [path.name for path in folder.iterdir()] == ["val.hdf5"]
    assert [path.name for path in folder.parent.iterdir()] == ["one"], "no temporary is left"


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"thesis\.tex"), replacing_dataset(folder, overwrite=True):
        pass
    assert (folder / "thesis.tex").exists()


# What a model sees of a file

FOUR = (
    ClassInfo("background", color="#111111"),
    ClassInfo("clean ice", glacier=True, color="#222222"),
    ClassInfo("debris-covered ice", glacier=True, color="#333333"),
    ClassInfo("water", color="#444444"),
)


def test_chosen_bands_are_all_that_is_said_and_read(tmp_path: Path, write_tiles: Write) -> None:
    whole = TileFile(write_tiles(tmp_path / "train.hdf5"))
    chosen = whole.choose({"optical": ["optical4", "optical0", "optical2"], "dem": 2})
    assert chosen.bands == {**whole.bands, "optical": ["optical4", "optical0", "optical2"]}
    assert chosen.modalities == {"dem": 2, "optical": 3} and whole.modalities == {"dem": 2, "optical": 6}
    statistics = whole.statistics
    assert statistics is not None and chosen.statistics == statistics.take({"optical": [4, 0, 2]})
    for window in (None, Window(3, 5, 16, 16)):
        ours, theirs = (file.read("t1", ["dem", "optical"], window) for file in (chosen, whole))
        np.testing.assert_array_equal(ours["optical"], theirs["optical"][..., [4, 0, 2]])
        np.testing.assert_array_equal(ours["dem"], theirs["dem"])
    scaled = chosen.statistics.apply("optical", ours["optical"])
    np.testing.assert_array_equal(scaled, statistics.apply("optical", theirs["optical"])[..., [4, 0, 2]])
    assert chosen.check(["optical", "dem"]) == [] and chosen.choose({}).bands == chosen.bands
    again = pickle.loads(pickle.dumps(chosen.choose(classes=TWO_CLASSES)))
    assert (again.bands, again.classes) == (chosen.bands, TWO_CLASSES)


def test_bands_that_are_not_there_are_answered_with_those_that_are(tmp_path: Path, write_tiles: Write) -> None:
    file = TileFile(write_tiles(tmp_path / "train.hdf5", modalities={"optical": 5}))
    with pytest.raises(UserError, match=r"no band `nir`, `red`; its bands are `optical0`, .*`optical4`; needed"):
        file.choose({"optical": ["nir", "optical1", "red"]})
    with pytest.raises(UserError, match=r"has 5 bands \(optical0, .*\), 18 are needed: .*--set bands\.optical=5"):
        file.choose({"optical": 18})
    assert file.choose({"optical": 5, "dem": 2}).bands == file.bands  # a modality that is missing is told by `check`


def test_a_class_list_is_given_to_a_file_without_one(tmp_path: Path, write_tiles: Write) -> None:
    path = write_tiles(tmp_path / "train.hdf5", classes=FOUR)
    with h5py.File(path, "r+") as file:
        del file.attrs["classes"]
    bare = TileFile(path)
    assert not bare.has_classes and len(bare.classes) == 2 and bare.check(["optical"])
    described = bare.choose(classes=FOUR)
    assert described.classes == FOUR and described.check(["optical"]) == []
    np.testing.assert_array_equal(described.mask("t0"), bare.mask("t0"))


@pytest.mark.parametrize("stored", [{"name": "x"}, {"name": "x", "color": "#abcdef"}])
def test_names_alone_take_the_rest_from_the_list_that_is_given(
    tmp_path: Path, write_tiles: Write, stored: dict[str, Any]
) -> None:
    path = write_tiles(tmp_path / "train.hdf5", classes=FOUR)
    names = ["Background", "clean_ice", "debris covered ice", "WATER"]  # other spellings of the same
    with h5py.File(path, "r+") as file:
        file.attrs["classes"] = json.dumps([{**stored, "name": name} for name in names])
    assert TileFile(path).choose(classes=FOUR).classes == FOUR


def test_a_class_list_that_does_not_agree_is_refused(
    tmp_path: Path, write_tiles: Write, write_published_2023: Write
) -> None:
    four = TileFile(write_tiles(tmp_path / "four.hdf5", classes=FOUR))
    with pytest.raises(UserError, match=r"masks have 4 classes \(`background`, .*\), 2 are needed .*classes=null"):
        four.choose(classes=TWO_CLASSES)
    with pytest.raises(UserError, match=r"class 3 of its masks is `water`, needed is `lake`: .*classes=null"):
        four.choose(classes=[*FOUR[:3], ClassInfo("lake")])
    with pytest.raises(UserError, match=r"class 3, `water`, is not glacier there, but is glacier in the class list"):
        four.choose(classes=[*FOUR[:3], ClassInfo("water", glacier=True)])
    one_hot = TileFile(write_published_2023(tmp_path / "published.hdf5"))
    with pytest.raises(UserError, match=r"masks have 2 classes \(without names\), 4 are needed"):
        one_hot.choose(classes=FOUR)
    assert one_hot.choose(classes=FOUR[:2]).classes == FOUR[:2]
