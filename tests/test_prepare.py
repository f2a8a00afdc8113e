from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
import rasterio
from rasterio import Affine

import prepare
from console import UserError
from data.normalisation import Method, published
from data.tiles import TileFile, find_dataset

SIZE = 16
SCRIPT = Path(prepare.__file__)
BANDS = ["--bands", "B1=blue", "B2=swir1", "--masks", "label", "--classes", "0=background", "255=glacier"]
OPTIONS = [*BANDS, "--region", "HMA", "--nodata", "0"]


def write_source(folder: Path, first: int, count: int) -> Path:
    rng = np.random.default_rng(first)
    for index in range(first, first + count):
        for name in ("B1", "B2", "label"):
            values = rng.integers(1, 200, (SIZE, SIZE)).astype(np.uint8)
            values[:4] = 0
            if name == "label":
                values = np.where(values > 100, 255, 0).astype(np.uint8)
            path = folder / name / f"x_{index:02}_07.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            transform = Affine(30, 0, index * SIZE * 30, 0, -30, 4e6)
            with rasterio.open(
                path, "w", driver="GTiff", count=1, height=SIZE, width=SIZE, dtype="uint8", crs="EPSG:32643",
                transform=transform,
            ) as dataset:  # fmt: skip
                dataset.write(values, 1)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with the sources train (4 tiles) and test (2 tiles)."""
    write_source(tmp_path / "train", 0, 4)
    write_source(tmp_path / "test", 10, 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> None:
    prepare.main(["bands", *arguments, *OPTIONS])


def run_script(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bands_writes_a_dataset_and_prints_what_it_holds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("karakoram", "--train", "train", "--test", "test", "--val-tiles", "01_07", "--subregion", "K2")
    dataset = find_dataset()
    assert dataset.name == "karakoram"
    assert {split: len(TileFile(path).names) for split, path in dataset.splits.items()} == {
        "train": 3,
        "val": 1,
        "test": 2,
    }
    file = TileFile(dataset.path("test"))
    assert file.command.startswith("python prepare.py bands karakoram --train train --test test --val-tiles 01_07")
    assert (file.info("10_07").region, file.info("10_07").subregion) == ("HMA", "K2")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    glacier = np.mean([file.mask(name)[file.valid(name)] for name in file.names])
    assert ["test", "2", "1", "75.0%", f"{glacier:.1%}"] in printed
    assert [path.name for path in Path("tiles").iterdir()] == ["karakoram"], "no temporary is left"


PAIRS = [
    "--images",
    "{region}/{id}.npy",
    "--masks",
    "{region}/{id}_mask.tif",
    "--classes",
    *"0=background 1=ice".split(),
]
PAIRS += ["--glacier", "ice"]


def write_pairs(count: int) -> None:
    """Write `count` arrays with masks for each of four regions into the current directory."""
    rng = np.random.default_rng(count)
    for region in ("ALP", "HMA", "NZ", "SC"):
        Path(region).mkdir()
        for index in range(count):
            np.save(f"{region}/{index}.npy", rng.integers(1, 200, (SIZE, SIZE, 3)).astype(np.uint8))
            with rasterio.open(
                f"{region}/{index}_mask.tif", "w", driver="GTiff", count=1, height=SIZE, width=SIZE, dtype="uint8",
                crs="EPSG:32643", transform=Affine(30, 0, index * SIZE * 15, 0, -30, 4e6 + 1e5 * len(region)),
            ) as dataset:  # fmt: skip
                dataset.write((rng.random((SIZE, SIZE)) < 0.3).astype(np.uint8), 1)


def test_pairs_writes_a_dataset_and_prints_what_it_holds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(2)
    options = ["--modality", "sar=3", "optical=1,2", "--bands", "green", "red", "vv", "--seed", "3"]
    # ALP and HMA lie at one place, as do NZ and SC: each two regions are one group.
    prepare.main(["pairs", "two", *PAIRS, *options, "--split-by", "regions", "--test-fraction", "0"])
    dataset = find_dataset("two")
    splits = {split: TileFile(path) for split, path in dataset.splits.items()}
    regions = {split: {file.info(name).region for name in file.names} for split, file in splits.items()}
    assert sorted(map(sorted, regions.values())) == [["ALP", "HMA"], ["NZ", "SC"]]
    assert splits["train"].command.startswith("python prepare.py pairs two --images '{region}/{id}.npy' --masks")
    printed = capsys.readouterr().out.splitlines()
    counts = np.mean([splits["val"].mask(name) for name in splits["val"].names])
    assert ["val", "4", "2", "100.0%", f"{counts:.1%}"] in [line.split() for line in printed]
    for line in (
        "sar: vv",
        "optical: green, red",
        "drawn with seed 3 from 2 groups: regions, joined where images overlap",
        "8 images overlap others, which are in the same split",
    ):
        assert line in printed
    assert printed[-1] == "wrote tiles/two/; next: python train.py -m glavitu --data two --set 'inputs=[sar,optical]'"


def test_published_statistics_are_stored_where_bands_are_the_published_ones(here: Path) -> None:
    write_pairs(1)
    options = ["--modality", "optical=1,2", "velocity=3", "--statistics", "published", "--test-fraction", "0"]
    with pytest.raises(
        UserError, match="`optical` has the bands B3, B4, the published datasets' has blue, green, red,"
    ):
        prepare.main(["pairs", "two", *PAIRS, *options, "--bands", "B3", "B4", "speed"])
    assert not Path("tiles/two").exists()
    prepare.main(["pairs", "two", *PAIRS, *options, "--bands", "green", "red", "speed"])
    known = published({"optical": ["green", "red"]})
    for path in find_dataset("two").splits.values():
        statistics = TileFile(path).statistics
        assert statistics is not None and statistics.method == "published"
        assert statistics.scale["optical"] == known.scale["optical"]
        assert statistics.fitted_on.startswith(
            "mixed: optical as the published GlaViTU datasets (2025); velocity: valid"
        )


@pytest.mark.parametrize("command", ["pairs", "bands"])
def test_every_method_of_scaling_can_be_chosen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prepare.main([command, "--help"])
    assert "{" + ",".join(get_args(Method)) + "}" in capsys.readouterr().out


def test_wrong_pairs_are_one_message_and_write_nothing(here: Path) -> None:
    write_pairs(1)
    Path("ALP/0_mask.tif").unlink()
    Path("NZ/0.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"^2 problems, nothing is written:\n") as raised:
        prepare.main(["pairs", "k", *PAIRS, "--test-regions", "HMA"])
    message = str(raised.value)
    assert len(message.splitlines()) == 3
    assert "no mask, expected ALP/0_mask.tif" in message and "NZ/0.npy: can't be read" in message
    assert not list(here.glob("tiles/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--block-sides", "2"], "--block-sides .* give both"),
        (["--val-regions", "ALP", "--test-regions", "ALP"], "both name ALP"),
        (["--region", "HMA"], "one of the two"),
        (["--glacier", "snow"], "--glacier"),
    ],
)
def test_impossible_options_of_pairs_write_nothing(here: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare.main(["pairs", "k", *PAIRS, *options])
    assert list(Path("tiles").iterdir()) == []


def test_synthetic_writes_a_dataset(here: Path) -> None:
    prepare.main(["synthetic", "--train", "3", "--val", "1", "--test", "2", "--size", "64", "--seed", "5"])
    dataset = find_dataset()
    assert dataset.name == "synthetic"
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        file = TileFile(dataset.path(split))
        assert len(file.names) == count
        assert file.check(list(file.modalities)) == []
        assert (file.info(file.names[0]).height, file.info(file.names[0]).width) == (64, 64)
        assert file.command == "python prepare.py synthetic --train 3 --val 1 --test 2 --size 64 --seed 5"
        assert file.statistics == TileFile(dataset.path("train")).statistics
    with pytest.raises(UserError, match="--overwrite"):
        prepare.main(["synthetic"])


def test_synthetic_writes_four_classes_of_some_regions_and_prints_their_shares(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--train", "1", "--val", "1", "--test", "1", "--size", "64"]
    prepare.main(["synthetic", "rare", *few, "--classes", "surface", "--regions", "HMA", "--lakes", "20"])
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    water = []
    for split, path in find_dataset("rare").splits.items():
        file = TileFile(path)
        assert [info.name for info in file.classes] == ["background", "clean ice", "debris-covered ice", "water"]
        assert [file.info(name).region for name in file.names] == ["HMA"]
        labels = file.mask(file.names[0])[file.valid(file.names[0])]
        shares = [(labels == index).mean() for index in range(4)]
        water.append(shares[3])
        assert [split, *(f"{share:.3%}" for share in shares)] in printed
    assert max(water) > 0.01, "lakes are as many as asked for"
    assert "next: python train.py -m glavitu --data rare" in " ".join(printed[-1])


def test_a_dataset_is_not_overwritten_unless_asked(here: Path) -> None:
    run("k", "--train", "train")
    before = TileFile("tiles/k/train.hdf5").digest
    with pytest.raises(UserError, match="--overwrite"):
        run("k", "--train", "train", "--val-tiles", "00_07")
    assert TileFile("tiles/k/train.hdf5").digest == before
    run("k", "--train", "train", "--val-tiles", "00_07", "--overwrite")
    assert TileFile("tiles/k/val.hdf5").names == ["00_07"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_wrong_rasters_write_nothing(here: Path, overwrite: bool) -> None:
    if overwrite:
        run("k", "--train", "train")
    (here / "train" / "B1" / "x_00_07.tif").unlink()
    (here / "train" / "label" / "x_01_07.tif").unlink()
    with pytest.raises(UserError, match=r"2 problems[^$]*no blue band[^$]*no mask"):
        run("k", "--train", "train", *(["--overwrite"] if overwrite else []))
    if overwrite:
        assert len(TileFile("tiles/k/train.hdf5").names) == 3, "the former dataset stays"
    assert [path.name for path in Path("tiles").iterdir()] == (["k"] if overwrite else [])


def test_a_full_disk_writes_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = h5py.Group.create_dataset
    written = []

    def full(self: h5py.Group, name: str, *args: object, **options: object) -> h5py.Dataset:
        written.append(name)
        if len(written) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(self, name, *args, **options)

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(OSError) as caught:
        run("k", "--train", "train")
    assert caught.value.errno == errno.ENOSPC
    assert list(Path("tiles").iterdir()) == []


def test_wrong_input_exits_with_2_and_one_message(here: Path) -> None:
    path = here / "train" / "B2" / "x_02_07.tif"
    path.write_bytes(path.read_bytes()[:300])
    (here / "train" / "label" / "x_01_07.tif").unlink()
    done = run_script(here, "bands", "k", "--train", "train", *OPTIONS)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 2 problems, nothing is written:\n")
    assert len(done.stderr.splitlines()) == 3
    assert "Traceback" not in done.stderr
    assert not list(here.glob("tiles/*"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".hidden"])
def test_a_dataset_stays_in_its_folder(here: Path, name: str) -> None:
    with pytest.raises(UserError, match="NAME is a folder's name"):
        run(name, "--train", "train")
    assert not Path("tiles").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--val", "test", "--val-tiles", "00_07"],
        ["--val-fraction", "much"],
        ["--statistics", "guess"],
        ["--seed", "x"],
        ["--seed", "-1"],
    ],
)
def test_impossible_options_of_bands_exit_with_2(
    here: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("k", "--train", "train", *arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--size", "63"], ["--train", "0"], ["--test", "-1"]])
def test_impossible_numbers_write_nothing(here: Path, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=arguments[1]):
        prepare.main(["synthetic", "--train", "1", "--val", "1", "--test", "1", "--size", "64", *arguments])
    assert list(Path("tiles").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "copy"),
    [
        ([], "python prepare.py synthetic"),
        (["synthetic"], "python prepare.py synthetic"),
        (["pairs"], "python prepare.py pairs langtang"),
        (["bands"], "python prepare.py bands karakoram"),
    ],
)
def test_help_opens_with_what_is_read_and_written_and_the_command(
    arguments: list[str], copy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare.main([*arguments, "--help"])
    assert caught.value.code == 0
    opening = "\n".join(capsys.readouterr().out.splitlines()[:10])
    for text in ("tiles/NAME/{train,val,test}.hdf5", "Reads ", "Writes ", f"Copy     {copy}"):
        assert text in opening


def test_check_writes_a_page_and_prints_the_findings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("here", "--train", "train", "--test", "test", "--val-tiles", "01_07")
    capsys.readouterr()
    prepare.main(["check", "here", "--out", "pages"])
    printed = capsys.readouterr().out
    assert "0 errors" in printed and "wrote pages/here-tiles.html" in printed
    page = (here / "pages" / "here-tiles.html").read_text(encoding="utf-8")
    assert "python prepare.py check here --out pages" in page
    assert "python prepare.py bands here" in page


def test_check_tells_errors_by_its_exit_code_only_if_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("here", "--train", "train", "--test", "test", "--val-tiles", "01_07")
    tiles = here / "tiles" / "here"
    (tiles / "test.hdf5").write_bytes((tiles / "train.hdf5").read_bytes())
    prepare.main(["check", "here"])
    printed = capsys.readouterr().out
    assert "error: the same tile more than once, in different splits" in printed
    assert "error: tiles overlap across splits" in printed
    assert (here / "reports" / "here-tiles.html").is_file()
    with pytest.raises(UserError, match="--strict: 2 errors"):
        prepare.main(["check", "here", "--strict"])


def test_check_takes_a_folder_or_a_single_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("here", "--train", "train", "--test", "test", "--val-tiles", "01_07")
    prepare.main(["check", "tiles/here/train.hdf5"])
    prepare.main(["check", "tiles/here"])
    assert "no val split" not in capsys.readouterr().out.split("wrote reports/here-train-tiles.html")[1]
    assert "here-train" in (here / "reports" / "here-train-tiles.html").read_text(encoding="utf-8")
    assert '<td class="n">3</td>' in (here / "reports" / "here-tiles.html").read_text(encoding="utf-8")


def test_check_of_nothing_and_of_damaged_files_is_one_message(here: Path) -> None:
    with pytest.raises(UserError, match="no dataset 'nowhere'"):
        prepare.main(["check", "nowhere"])
    run("here", "--train", "train", "--test", "test", "--val-tiles", "01_07")
    path = here / "tiles" / "here" / "val.hdf5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"val\.hdf5"):
        prepare.main(["check", "here"])
    assert not (here / "reports").exists()


def test_help_of_check_opens_with_what_is_read_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare.main(["check", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for text in (
        "Reads ",
        "Writes   reports/NAME-tiles.html",
        "Copy     python prepare.py check synthetic",
        "exit code",
    ):
        assert text in printed


def test_help_imports_nothing_heavy(here: Path) -> None:
    code = "import sys, prepare; print({'keras', 'tensorflow', 'rasterio', 'h5py', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
