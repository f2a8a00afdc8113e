"""Make a dataset of tiles: tiles/NAME/{train,val,test}.hdf5.

Reads    satellite scenes and outlines (scenes); nothing (synthetic); pairs of an image of many bands and a mask,
         GeoTIFFs or .npy (pairs); or GeoTIFFs in a folder per band and a folder of masks (bands)
Writes   tiles/NAME/, whole or not at all
Copy     python prepare.py synthetic

`python prepare.py COMMAND --help` says what each command takes. `prepare.py check` looks at tiles: a page of what is in
them, and of what is wrong with them.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

import console
from console import UserError

TILES = Path("tiles")

SYNTHETIC = """Make synthetic scenes of glaciers: tiles/NAME/{train,val,test}.hdf5.

Reads    nothing: the scenes are a function of the seed
Writes   tiles/NAME/ with the modalities optical, dem, sar and thermal and a mask of glaciers
Copy     python prepare.py synthetic
"""

SYNTHETIC_NOTES = """
Masks with background, clean ice, debris-covered ice and water, and so few lakes that water is about 0.06 % of the
training pixels (Svalbard and the southern Andes have a coast, too):

    python prepare.py synthetic rare --classes surface --regions ALP HMA --lakes 0.15
"""

SCENES = """Make tiles of satellite scenes and glacier outlines: tiles/NAME/{train,val,test}.hdf5.

Reads    a dataset file (YAML) that names scenes, their rasters by modality, and outlines; or one scene from the flags.
         Rasters may lie on different grids; outlines may be GeoPackage, shapefile, GeoJSON, FlatGeobuf or GeoParquet.
Writes   tiles/NAME/, whole or not at all. Interrupted, the same command goes on where it stopped.
Copy     python prepare.py scenes --init scenes/hunza          (writes scenes/hunza/dataset.yaml: read and correct it)
         python prepare.py scenes hunza scenes/hunza/dataset.yaml --jobs 2
"""

SCENES_NOTES = """
One scene without a dataset file; BAND=FILE#NUMBER where bands lie in several files:

    python prepare.py scenes everest --optical red=rgb.tif#1 green=rgb.tif#2 blue=rgb.tif#3 nir=b4.tif \\
        --dem dem.tif --outlines rgi.gpkg --region HMA --date 2000-10-30 --tile-size 256

Everything that a dataset file can say, --set says, too: --set split.by=subregions --set 'grid={crs: EPSG:32645}'.
docs/preparing-data.md has all keys, and what becomes of Sentinel-2, Landsat, DEMs and radar.
"""

PAIRS = """Make tiles of pairs of an image and a mask: tiles/NAME/{train,val,test}.hdf5.

Reads    images of one or more bands and masks of one band, GeoTIFFs (or what else GDAL reads) or .npy arrays of
         height × width × bands, found by patterns of their names: an image and a mask are a pair if they have the
         same {id}, {region}, {row} and {column}, as far as both patterns have these. * and ? match as in a shell,
         **/ any folders. Put the patterns into quotes.
Writes   tiles/NAME/, if everything is right; else it lists all that is wrong and writes nothing
Copy     python prepare.py pairs langtang --images 'scenes/*/img_{id}.tif' --masks 'masks/{id}_label.tif' \\
             --classes 0=background 1=glacier --region HMA
"""

PAIRS_NOTES = """
Arrays whose masks are GeoTIFFs (the tiles lie where the masks do), and several kinds of surface:

    python prepare.py pairs surface --images 'data/masked_{id}.npy' --masks 'data/{id}.tif' --region ALP --nodata 0 \\
        --classes 0=background 85=clean_ice 170=debris 255=water --glacier clean_ice debris

Patches of 18 bands in folders by region, in blocks of neighbours; the numbers count patches of 128 pixels side by
side, which --stride says where the files have no georeference:

    python prepare.py pairs himalaya --images '{region}/images/patch_r{row}_c{column}.tif' \\
        --masks '{region}/masks/patch_r{row}_c{column}.tif' --classes 0=background 1=glacier \\
        --modality optical=1-12 dem=13-16 sar=17,18 --split-by blocks --stride 128

Masks: what a value means is for you to say, its nodata tag is not looked at. Several values may have one name; the
name `ignore` leaves a value's pixels out of training and scores. The first class is the background.

Nodata is --nodata, NaN, or the image's own nodata tag. Pixels where all bands of a modality are nodata are invalid:
neither trained on nor scored. Where only some bands are nodata the pixel counts, and those bands are 0 after scaling.

Splits: every image is in one split, whole. Images that overlap, by their georeference or by row, column and
--stride, stay together, also when that joins blocks or regions; if regions that you name for different splits
overlap, the images are listed and nothing is written. Images without a place can't be checked; the report counts
them. Images drawn one by one (--split-by tiles, the default) have neighbours in other splits, so that scores lean
high: with --split-by blocks or regions they have few or none.
"""

CHECK = """Look at tiles: a page of what is in them, and what a careful person would find wrong.

Reads    TILES: a dataset's name, a folder with train.hdf5, val.hdf5 or test.hdf5, or one tile file; published files too
Writes   reports/NAME-tiles.html, one file with its pictures inside, to open in a browser or to send to someone
Copy     python prepare.py check synthetic
"""

CHECK_NOTES = """
Found are masks that do not lie on their images, bands that are exchanged, saturated, constant or empty, nodata inside
outlines, tiles twice or on the same ground, across splits above all, statistics that do not fit, classes and regions
that are missing, weak masks. An `error` makes a model or its scores wrong, a `warning` probably does, a `note` is good
to know.

The exit code is 0 whatever is found: findings are for a person to judge. With --strict it is 2 if one is an error.
"""

BANDS = """Make tiles of folders of GeoTIFFs: tiles/NAME/{train,val,test}.hdf5.

Reads    TRAIN/BAND/*_RR_CC.tif, a folder per band, and TRAIN/MASKS/*_RR_CC.tif; the same in TEST and VAL.
         Files whose names end in the same two numbers _RR_CC are one tile, of one size, CRS and transform.
Writes   tiles/NAME/, if everything is right; else it lists all that is wrong and writes nothing
Copy     python prepare.py bands karakoram --train scenes/train --test scenes/test \\
             --bands Band1=blue Band2=green Band3=red Band4=swir1 Band5=thermal --masks label \\
             --classes 0=background 255=glacier --region HMA --nodata 0
"""

BANDS_NOTES = """
What a value of the mask means is for you to say: its nodata tag is not looked at. Several values may have one
name; the name `ignore` leaves a value's pixels out of training and scores. The first class is the background.
Several kinds of ice, with lakes that are not glacier:

    --classes 0=background 85=clean_ice 170=debris 255=water --glacier clean_ice debris

Nodata is --nodata, NaN, or the band file's own nodata tag. Pixels that are nodata in all bands are invalid:
neither trained on nor scored. Where only some bands are nodata the pixel counts, and those bands are 0 after
scaling.
"""


def main(arguments: list[str]) -> None:
    """Run the command and print what the dataset holds."""
    options = _parser().parse_args(arguments)
    if options.command == "scenes":
        if options.init is not None:
            _first_dataset_file(options)
            return
        if options.name and options.dataset is None and Path(options.name).suffix in (".yaml", ".yml"):
            options.dataset, options.name = Path(options.name), Path(options.name).stem
    if options.command == "check":
        _check(options, shlex.join(["python", "prepare.py", *arguments]))
        return
    if not options.name or Path(options.name).name != options.name or options.name.startswith("."):
        raise UserError(f"NAME is a folder's name in {TILES}/, without slashes or a leading dot, got {options.name!r}")
    command = shlex.join(["python", "prepare.py", *arguments])

    from data.tiles import find_dataset, replacing_dataset

    with replacing_dataset(TILES / options.name, overwrite=options.overwrite) as folder:
        {"synthetic": _synthetic, "scenes": _scenes, "pairs": _pairs, "bands": _bands}[options.command](
            folder, options, command
        )
    if options.command == "scenes":
        shutil.rmtree(_unfinished(options.name))  # only now: a full disk at the last step loses no tile
    dataset = find_dataset(options.name, TILES)
    _summarise(dataset.splits)
    next_command = ["python", "train.py", "-m", "glavitu", "--data", options.name]
    if options.command != "synthetic":
        next_command += ["--set", f"inputs=[{','.join(_describe_input(dataset.path('train')))}]"]
    print(f"\nwrote {TILES / options.name}/; next: {shlex.join(next_command)}")


def _synthetic(folder: Path, options: argparse.Namespace, command: str) -> None:
    from data import synthetic

    synthetic.write_dataset(
        folder,
        seed=options.seed,
        train=options.train,
        val=options.val,
        test=options.test,
        size=options.size,
        regions=options.regions or list(synthetic.REGIONS),
        lakes=options.lakes,
        surface_classes=options.classes == "surface",
        command=command,
    )


def _scenes(folder: Path, options: argparse.Namespace, command: str) -> None:
    import yaml

    from console.schemas import set_value
    from data import dataset_file, preparation
    from data.scenes import find_scenes

    if options.jobs < 1:
        raise UserError(f"--jobs is a number of processes from 1, got {options.jobs}")
    base, source = Path(), "the command line"
    content: object = {"scenes": {options.name: {}}}
    if options.dataset is not None:
        base, source = options.dataset.parent, str(options.dataset)
        content = dataset_file.read(options.dataset)
    if isinstance(content, dict):
        content.update(_flags(options))
        for change in options.set:
            set_value(content, change)
    dataset = dataset_file.parse(content, source)
    work = _unfinished(options.name)
    report = preparation.write_dataset(
        folder, work, dataset, find_scenes(dataset, base), base=base, jobs=options.jobs, command=command,
        description=yaml.safe_dump(content, sort_keys=False),
    )  # fmt: skip
    print("\n".join(report.lines))
    for warning in report.warnings:
        console.warn(warning)


def _unfinished(name: str) -> Path:
    """Return the working folder of a dataset's tiles."""
    return TILES / f".{name}.unfinished"


def _flags(options: argparse.Namespace) -> dict[str, object]:
    """Return what the flags say, as a dataset file would."""
    from data.dataset_file import from_flags

    modalities = from_flags(options.optical or (), options.dem or (), options.modality)
    outlines: dict[str, object] = {}
    for text in options.outlines:
        name, equals, file = text.rpartition("=")
        outlines[name if equals else "glacier"] = {"file": file}
    given = {
        "modalities": modalities,
        "outlines": outlines,
        "region": options.region,
        "date": options.date,
        "mask_from": options.mask_from,
        "tile_size": options.tile_size,
    }
    return {key: value for key, value in given.items() if value}


def _first_dataset_file(options: argparse.Namespace) -> None:
    from data.discovery import first_dataset_file

    path = options.init / "dataset.yaml" if options.init.is_dir() else options.init
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} exists: correct it by hand, or replace it with --overwrite")
    text = first_dataset_file(options.init, options.region)
    with console.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    name = options.init.resolve().name
    print(f"wrote {path}: read it, correct it, then: {shlex.join(['python', 'prepare.py', 'scenes', name, str(path)])}")


def _bands(folder: Path, options: argparse.Namespace, command: str) -> None:
    from data import bands
    from data.masks import parse_classes

    classes, values = parse_classes(options.classes, options.glacier)
    layout = bands.Layout(
        bands=bands.parse_bands(options.bands),
        masks=options.masks,
        classes=classes,
        values=values,
        modality=options.modality,
        nodata=tuple(options.nodata),
        region=options.region,
        subregion=options.subregion,
    )
    sources = {split: getattr(options, split) for split in ("train", "val", "test") if getattr(options, split)}
    validation = bands.Validation(tuple(options.val_tiles), options.val_fraction, options.seed)
    bands.write_dataset(folder, layout, sources, validation, options.statistics, command)


def _pairs(folder: Path, options: argparse.Namespace, command: str) -> None:
    from data import pairs
    from data.masks import parse_classes
    from data.places import BLOCK_SIDES
    from data.splits import Division

    if options.block_sides is not None and options.split_by != "blocks":
        raise UserError("--block-sides is the size of the blocks of --split-by blocks: give both")
    classes, values = parse_classes(options.classes, options.glacier)
    layout = pairs.Layout(
        pairs.Pattern("--images", options.images),
        pairs.Pattern("--masks", options.masks),
        classes,
        values,
        bands=tuple(options.bands),
        modalities=pairs.parse_modalities(options.modality),
        nodata=tuple(options.nodata),
        region=options.region,
        stride=options.stride,
    )
    division = Division(
        options.split_by,
        options.val_fraction,
        options.test_fraction,
        tuple(options.val_regions),
        tuple(options.test_regions),
        options.seed,
        BLOCK_SIDES if options.block_sides is None else options.block_sides,
    )
    pairs.write_dataset(folder, layout, division, options.statistics, command)


def _check(options: argparse.Namespace, command: str) -> None:
    from data.findings import SEVERITIES, find
    from data.survey import survey
    from data.tiles import SPLITS, Dataset, find_dataset
    from evaluation import tiles_page

    dataset = find_dataset(options.tiles, TILES)
    path = Path(options.tiles)
    if path.is_file() and path.stem in SPLITS:
        dataset = Dataset(f"{path.resolve().parent.name}-{path.stem}", path.parent, {path.stem: path})
    surveyed = survey(dataset)
    findings = find(surveyed)
    page = options.out / f"{dataset.name}-tiles.html"
    tiles_page.write(surveyed, findings, page, command)
    for finding in findings:
        print(f"{finding.severity}: {finding.what}\n    {finding.evidence}\n    -> {finding.remedy}")
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    told = ", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for severity, count in counts.items())
    print(f"{told}\nwrote {page}")
    if options.strict and counts["error"]:
        raise UserError(f"--strict: {told} in {options.tiles}; they are listed above and in {page}")


def _describe_input(path: Path) -> list[str]:
    """Print modalities and bands of a tile file, and how its tiles were divided; return the modalities."""
    from data.tiles import TileFile

    with TileFile(path) as file:
        bands, split = file.bands, file.provenance.get("split")
        order = list(file.provenance.get("bands", bands))
    print()
    for modality in order:
        print(f"{modality}: {', '.join(bands[modality])}")
    if split:
        tiles = split.get("of", "images")
        if split["by"] == "polygons":
            print(f"divided by the polygons of {split['polygons']['path']}")
        elif not (isinstance(split["val"], list) and (isinstance(split["test"], list) or split["test"] == 0)):
            of = tiles if split["by"] == "tiles" else split["by"]
            print(f"drawn with seed {split['seed']} from {split['groups']} groups: {of}, joined where {tiles} overlap")
        if split["overlapping"]:
            print(f"{split['overlapping']} {tiles} overlap others, which are in the same split")
        if split["unplaced"]:
            print(f"{split['unplaced']} {tiles} have no place: whether they overlap is not known")
    return order


def _summarise(splits: dict[str, Path]) -> None:
    """Print tiles, valid share and glacier share of every split; of more than two classes, the share of each."""
    from data.sampling import class_counts
    from data.tiles import TileFile

    print(f"{'split':<8}{'tiles':>7}{'regions':>9}{'valid':>9}{'glacier':>9}  (of valid pixels with a label)")
    shares_by_split: dict[str, dict[str, float]] = {}
    for split, path in splits.items():
        with TileFile(path) as file:
            infos = [file.info(name) for name in file.names]
            valid = sum(int(file.valid(name).sum()) for name in file.names)
            counts = class_counts(file, file.names).sum(axis=0)
            labelled = max(int(counts.sum()), 1)
            glacier = sum(int(count) for count, info in zip(counts, file.classes, strict=True) if info.glacier)
            shares = f"{valid / sum(i.height * i.width for i in infos):>9.1%}{glacier / labelled:>9.1%}"
            print(f"{split:<8}{len(infos):>7}{len({info.region for info in infos}):>9}{shares}")
            shares_by_split[split] = {
                info.name: int(count) / labelled for info, count in zip(file.classes, counts, strict=True)
            }
    names = list(next(iter(shares_by_split.values())))
    if len(names) > 2:
        print(f"\n{'split':<8}" + "".join(f"{name:>{len(name) + 4}}" for name in names))
        for split, by_name in shares_by_split.items():
            print(f"{split:<8}" + "".join(f"{by_name[name]:>{len(name) + 4}.3%}" for name in names))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="prepare.py", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    synthetic = commands.add_parser(
        "synthetic",
        usage="prepare.py synthetic [NAME] [options]",
        help="synthetic scenes",
        description=SYNTHETIC,
        epilog=SYNTHETIC_NOTES,
        formatter_class=raw,
    )
    synthetic.add_argument("name", metavar="NAME", nargs="?", default="synthetic", help="of the dataset [%(default)s]")
    for split, count in (("train", 60), ("val", 16), ("test", 24)):
        synthetic.add_argument(f"--{split}", metavar="N", type=int, default=count, help=f"{split} tiles [%(default)s]")
    synthetic.add_argument(
        "--size",
        type=int,
        default=384,
        help="height and width of a tile, pixels, at least 64 [%(default)s]",
    )
    synthetic.add_argument(
        "--classes",
        choices=("glacier", "surface"),
        default="glacier",
        help="of the mask: background, glacier; or background, clean ice, debris-covered ice, water [%(default)s]",
    )
    synthetic.add_argument(
        "--regions",
        metavar="REGION",
        nargs="+",
        help="codes of the regions that take turns: of ALP, HMA, SVAL, SA [all]",
    )
    synthetic.add_argument(
        "--lakes", metavar="FACTOR", type=float, default=1.0, help="lakes relative to the usual number [%(default)s]"
    )
    synthetic.add_argument("--seed", type=_seed, default=0, help="which scenes [%(default)s]")

    scenes = commands.add_parser(
        "scenes",
        usage="prepare.py scenes [NAME] [DATASET.yaml] [options]",
        help="satellite scenes on their grids, and outlines",
        description=SCENES,
        epilog=SCENES_NOTES,
        formatter_class=raw,
    )
    scenes.add_argument("name", metavar="NAME", nargs="?", default="", help="of the dataset [that of DATASET.yaml]")
    scenes.add_argument("dataset", metavar="DATASET.yaml", nargs="?", type=Path, help="scenes, outlines, grid, splits")
    scenes.add_argument(
        "--init", metavar="FOLDER", type=Path, help="write FOLDER/dataset.yaml from the files in FOLDER"
    )
    scenes.add_argument(
        "--optical", metavar="FILE", nargs="+", help="reflectance: a file of all bands, or BAND=FILE[#NUMBER] …"
    )
    scenes.add_argument("--dem", metavar="FILE", nargs="+", help="elevation in metres; slope is derived")
    scenes.add_argument(
        "--modality",
        metavar=("NAME", "FILE"),
        nargs="+",
        action="append",
        default=[],
        help="another modality and its files, e.g. --modality thermal st.tif; can be repeated",
    )
    scenes.add_argument(
        "--outlines",
        metavar="[CLASS=]FILE",
        nargs="+",
        default=[],
        help="outlines of glaciers, and of further classes, e.g. rgi.gpkg debris=debris.gpkg water=lakes.gpkg",
    )
    scenes.add_argument("--mask-from", metavar="RULE", help="weak masks instead of outlines, e.g. 'ndsi > 0.4'")
    scenes.add_argument("--region", default="", help="region code of scenes that name none, e.g. HMA")
    scenes.add_argument("--date", metavar="YYYY-MM-DD", help="of scenes that name none")
    scenes.add_argument("--tile-size", metavar="PIXELS", type=int, help="side of a tile [512]")
    scenes.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a key of the dataset file; repeatable"
    )
    scenes.add_argument("--jobs", metavar="N", type=int, default=1, help="processes [%(default)s]")

    check = commands.add_parser(
        "check",
        usage="prepare.py check TILES [options]",
        help="what is in tiles, and what is wrong with them, as a page",
        description=CHECK,
        epilog=CHECK_NOTES,
        formatter_class=raw,
    )
    check.add_argument("tiles", metavar="TILES", help="dataset, folder or tile file")
    check.add_argument(
        "--out", metavar="FOLDER", type=Path, default=Path("reports"), help="where the page goes [%(default)s]"
    )
    check.add_argument("--strict", action="store_true", help="exit with 2 if a finding is an error")

    pairs = commands.add_parser(
        "pairs",
        usage="prepare.py pairs NAME [options]",
        help="an image and a mask for each tile, found by patterns",
        description=PAIRS,
        epilog=PAIRS_NOTES,
        formatter_class=raw,
    )
    pairs.add_argument("name", metavar="NAME", help="of the dataset")
    pairs.add_argument("--images", metavar="PATTERN", required=True, help="names of the images")
    pairs.add_argument("--masks", metavar="PATTERN", required=True, help="names of the masks")
    pairs.add_argument("--region", default="", help="region code of all images, unless a pattern has {region}")
    pairs.add_argument(
        "--bands", metavar="BAND", nargs="+", default=[], help="names of the images' bands, in order [the files' own]"
    )
    pairs.add_argument(
        "--modality",
        metavar="NAME=BANDS",
        nargs="+",
        default=["optical"],
        help="which bands, counted from 1, make up a modality, e.g. optical=1-6 dem=7,8; a NAME alone takes all; bands "
        "that none takes are left out [optical]",
    )
    pairs.add_argument(
        "--stride",
        metavar="PIXELS",
        type=int,
        help="pixels from one {row} or {column} number to the next, for images without georeference: 1 where the "
        "numbers count pixels, the images' size where they count images side by side, less where these overlap",
    )
    pairs.add_argument(
        "--split-by",
        choices=("tiles", "blocks", "regions"),
        default="tiles",
        help="what is drawn for validation and test: images, blocks of neighbours, or regions [%(default)s]",
    )
    pairs.add_argument(
        "--block-sides", metavar="N", type=float, help="side of a block, in sides of the largest image [4]"
    )
    for split, word in (("val", "validate"), ("test", "test")):
        part = pairs.add_mutually_exclusive_group()
        none = "; 0: no test split" if split == "test" else ""
        part.add_argument(
            f"--{split}-fraction",
            metavar="SHARE",
            type=float,
            default=0.15,
            help=f"share of the images to {word} on, of those outside named regions{none} [%(default)s]",
        )
        part.add_argument(
            f"--{split}-regions", metavar="REGION", nargs="+", default=[], help=f"regions to {word} on instead"
        )
    pairs.add_argument("--seed", type=_seed, default=42, help="of what is drawn [%(default)s]")

    bands = commands.add_parser(
        "bands",
        usage="prepare.py bands NAME [options]",
        help="a folder per band and a folder of masks",
        description=BANDS,
        epilog=BANDS_NOTES,
        formatter_class=raw,
    )
    bands.add_argument("name", metavar="NAME", help="of the dataset")
    bands.add_argument("--train", metavar="FOLDER", type=Path, required=True, help="training tiles")
    bands.add_argument("--test", metavar="FOLDER", type=Path, help="test tiles; without it there is no test split")
    validation = bands.add_mutually_exclusive_group()
    validation.add_argument(
        "--val", metavar="FOLDER", type=Path, help="validation tiles, if they have their own folder"
    )
    validation.add_argument(
        "--val-tiles",
        metavar="ID",
        nargs="+",
        default=[],
        help="ids of the training tiles to validate on, e.g. 06_11",
    )
    validation.add_argument(
        "--val-fraction",
        metavar="SHARE",
        type=float,
        default=0.15,
        help="share of the training tiles to validate on, whole tiles drawn by --seed [%(default)s]",
    )
    bands.add_argument("--seed", type=_seed, default=42, help="of the draw for --val-fraction [%(default)s]")
    bands.add_argument(
        "--bands",
        metavar="FOLDER=NAME",
        nargs="+",
        required=True,
        help="folders of bands and the bands' names, in order",
    )
    bands.add_argument("--masks", metavar="FOLDER", required=True, help="folder of the masks")
    bands.add_argument("--region", required=True, help="region code of all tiles, e.g. HMA")
    bands.add_argument("--subregion", default="", help="subregion of all tiles")
    bands.add_argument("--modality", default="optical", help="name of the modality the bands make up [%(default)s]")

    for command in (pairs, bands):
        command.add_argument(
            "--classes",
            metavar="VALUE=NAME",
            nargs="+",
            required=True,
            help="what the mask's values mean, background first",
        )
        command.add_argument(
            "--glacier",
            metavar="NAME",
            nargs="+",
            default=["glacier"],
            help="which classes are glacier [glacier]",
        )
        command.add_argument(
            "--nodata",
            metavar="VALUE",
            type=float,
            nargs="+",
            default=[],
            help="values that mean nodata in a band",
        )
        command.add_argument(
            "--statistics",
            choices=("standardise", "minmax", "robust-standardise", "robust-minmax", "published"),
            default="standardise",
            help="how values are scaled: by mean and deviation, or minimum and maximum, of the valid training pixels; "
            "robust against outliers by median and quartiles, or percentiles 0.5 and 99.5; or by the minima and maxima "
            "of the published datasets, for modalities and bands that are called as there [%(default)s]",
        )
    for command in (synthetic, scenes, pairs, bands):
        command.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0 or a positive whole number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    console.run(main)
