"""Predict whole scenes, or tiles, with a trained run or with a published weights file.

Reads    weights/NAME.weights.h5, weights/NAME.json and rasters (or a dataset file of scenes); or, without any, the test
         tiles of the run's dataset (or --data)
Writes   of scenes predictions/NAME/SCENE/: labels.tif, confidence.tif, outlines.gpkg, summary.json;
         of tiles predictions/NAME/predictions.hdf5: probabilities, labels, confidence, mask and valid, padding cut;
         with --calibrate weights/NAME.calibration.json instead
Copy     python predict.py -n glavitu scene/*.tif
         python predict.py -n glavitu --optical s2.tif --dem dem.tif
         python predict.py -n glavitu scenes.yaml
         python predict.py -n glavitu scenes.yaml --scheduler local --workers 2      (or tcp://HOST:PORT)
         python predict.py -n glavitu
         python predict.py -n glavitu --tta --mc 8
         python predict.py -n first second third      (an ensemble: predictions/first+second+third/)
         python predict.py -n glavitu --tta --calibrate
         python predict.py -m glavitu -w published.h5 --data test_ps384_igarss23.hdf5
         python predict.py -m unet-surface -w checkpoint.pth --data my_region

With -w no record is needed: inputs and their order are those of the recipe of -m, channel counts and classes
those of the tiles, and the predictions are named after the weights file. That is a Keras file, or of U-Net, U-Net++,
SegFormer and the Himalaya project's ResUNet a PyTorch state dict (.safetensors, .npz, .pt, .pth).

Confidence is the calibrated probability of the label. A calibration is fitted on validation tiles, for one way to
predict (--tta, --mc, the runs of an ensemble): train.py fits that of the plain way, --calibrate that of the command
that it is added to. Labels and `probs` are the same with and without. docs/confidence.md says more.

Scenes of any size: windows are read as they are needed, on grids of their own, and an interrupted prediction goes on
with the same command. A modality that the run was trained on and the scene lacks is left out. docs/mapping-scenes.md
says more.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import console
from console import UserError

if TYPE_CHECKING:
    from data.dataset_file import DatasetFile
    from data.tiles import Dataset, TileFile
    from inference.confidence import Way
    from inference.mapping import Calibration
    from inference.predictor import Offer, Predictor
    from training.record import Record


def main(arguments: list[str]) -> None:
    """Predict and say where the predictions are."""
    options = _parser().parse_args(arguments)
    # `-n a b c scene/*.tif`: what follows the names of runs are files.
    files = [one for one in options.name or () if _is_file(one)]
    options.name = [one for one in options.name or () if one not in files]
    options.scene = files + options.scene
    command = shlex.join(["python", "predict.py", *arguments])
    if options.weights and not options.model:
        raise UserError("-w FILE needs -m ARCHITECTURE, which says what the weights are of")
    if not (options.model or options.name):
        raise UserError("which model? -n NAME is a trained run, -m ARCHITECTURE the run named after it")
    if options.model and options.name and not options.weights:
        raise UserError("-m and -n without -w both name a run: give one of them (-m A means the run named A)")
    if options.weights and len(options.name or ()) > 1:
        raise UserError("-n with -w names the predictions: give one name")
    if options.calibrate and options.split == "test":
        raise UserError("--calibrate fits on the validation tiles, held-out ones are to test it: leave --split out")

    if options.workers is not None and not options.scheduler:
        raise UserError("--workers is for --scheduler local: name that as well, or leave both out for one process")

    scenes = bool(options.scene or options.optical or options.dem or options.modality)
    if options.overlap is None:
        options.overlap = OVERLAP if scenes else 0.5
    if scenes:
        _map(options, command)
        return
    if used := [flag for flag, value in _OF_SCENES.items() if getattr(options, value)]:
        raise UserError(f"{', '.join(used)} is for scenes: name rasters or a dataset file as well")

    from data.predictions import path_of
    from data.tiles import TileFile, describe_absent, select
    from inference.confidence import SYMMETRIES, Way
    from inference.engines import Engine
    from inference.predictor import find_run
    from inference.tiles import choose_engines_for, joined_name, predict_file

    started = time.monotonic()
    tta = SYMMETRIES if options.tta == [] else options.tta or ()
    way = Way(tuple(tta), options.mc)
    engine = Engine(options.engine, options.precision)
    records = [] if options.weights else [find_run(name) for name in options.name or [options.model]]
    dataset = _dataset(options.data, records)
    with TileFile(dataset.path(options.split or ("val" if options.calibrate else "test"))) as source:
        names = select(source, options.regions)
        members = _members(options, records, source, engine.of_keras)
        name = joined_name(members)
        print(
            f"{name}: {len(names)} tiles of {source.path}, patches of {members[0].patch_size} pixels, "
            f"{engine.of_keras}{f', {way}' if str(way) else ''}"
        )
        modalities = dict.fromkeys(modality for member in members for modality in member.modalities)
        if absent := describe_absent(source, names, list(modalities)):
            print(absent)
        members = choose_engines_for(
            members, source, names, engine, way=way, overlap=options.overlap, batch=options.batch_size
        )
        if options.calibrate:
            target = _calibrate(options, members, source, names, way)
        else:
            target = path_of(name)
            found = _calibrator(options, members, source, way)
            calibrator = found.map if found else None
            predict_file(
                members,
                source,
                target,
                names=names,
                overlap=options.overlap,
                batch=options.batch_size,
                command=command,
                way=way,
                calibrate=calibrator,
                noted={"calibration": calibrator and calibrator.model_dump(mode="json")},
                shape=options.kernel,
            )
    print(f"wrote {target} in {time.monotonic() - started:.0f} s")
    if options.calibrate:
        print("next: the same command without --calibrate")
    else:
        print(f"next: python evaluate.py -n {shlex.quote(name)}")


OVERLAP = 0.25  # of scenes: twice as fast as half a patch, and 99.5 % of the labels are the same (docs/performance.md)
_ENDINGS = (".tif", ".tiff", ".jp2", ".img", ".vrt", ".safe", ".yaml", ".yml")  # of rasters and dataset files


def _is_file(text: str) -> bool:
    """Whether what follows -n is a raster or a dataset file, not a run's name."""
    return Path(text).suffix.lower() in _ENDINGS or ("/" in text and Path(text).exists())


_OF_SCENES = {"--set": "set", "--region": "region", "--date": "date", "--probs": "probs", "--divides": "divides",
              "--scheduler": "scheduler", "--workers": "workers"}  # fmt: skip


def _map(options: argparse.Namespace, command: str) -> None:
    """Predict scenes and say what they are and where their maps are."""
    if options.data or options.split or options.regions or options.calibrate:
        raise UserError("--data, --split, --regions and --calibrate are for tiles: leave them out with rasters")
    from data.scenes import find_scenes
    from data.tiles import TWO_CLASSES
    from inference.confidence import SYMMETRIES, Way
    from inference.distribution import Models, connect, predict_scenes
    from inference.engines import Engine
    from inference.mapping import Outlining, finish_map, plan_map, predict_map
    from inference.predictor import find_run, free_models
    from inference.scenes import offer

    tta = SYMMETRIES if options.tta == [] else options.tta or ()
    way = Way(tuple(tta), options.mc)
    names = options.name or [_stem(options.weights) if options.weights else options.model]
    engine = Engine(options.engine, options.precision)
    models = Models(tuple(names), options.model or "", options.weights, engine.of_keras)
    records = [] if options.weights else [find_run(name) for name in names]
    trained = {modality.name: tuple(modality.bands) for record in records for modality in record.modalities}
    dataset, base = _scenes(options)
    scenes = find_scenes(dataset, base, labelled=False, known=trained)
    members: list[Predictor] = []
    name = "+".join(names)
    outlining = Outlining(
        smallest_km2=options.smallest_km2,
        median_px=options.median,
        smoothing=options.smoothing,
        divides=options.divides,
        correlation_length_m=options.correlation_length_m,
    )
    plans = []
    for scene in scenes:
        offered = offer(scene, trained, records[0].class_list if records else TWO_CLASSES, name)
        if options.weights or not members:
            members = models.load(offered)
        planned = plan_map(
            members,
            offered,
            Path("predictions") / name / scene.name,
            way=way,
            calibration=_calibrator(options, members, offered, way),
            outlining=outlining,
            overlap=options.overlap,
            batch=options.batch_size,
            keep_probs=options.probs,
            engine=engine,
            shape=options.kernel,
        )
        if options.scheduler:
            plans.append(planned)
        else:
            rasters = predict_map(planned)
            if scene is scenes[-1]:  # outlines need the memory
                members, planned = [], replace(planned, members=())
                free_models()
            print(finish_map(planned, rasters, command).text())
    if options.scheduler:
        strips = sum(len(planned.strips.missing()) for planned in plans)
        if strips == 1:
            print("one strip of 16 rows of windows: more than one worker makes it no faster")
        with connect(options.scheduler, options.workers) as client:
            for planned, rasters in predict_scenes(client, plans, models):
                print(finish_map(planned, rasters, command).text())


def _scenes(options: argparse.Namespace) -> tuple[DatasetFile, Path]:
    """Return the scenes that were asked for as a dataset file, and the folder that its paths are relative to."""
    from console.schemas import set_value
    from data import dataset_file
    from data.discovery import scene_of

    base, source, content = Path(), "the command line", {}
    flags = dataset_file.from_flags(options.optical or (), options.dem or (), options.modality)
    first = Path(options.scene[0]) if options.scene else None
    if first is not None and first.suffix in (".yaml", ".yml"):
        if len(options.scene) > 1:
            raise UserError(f"one dataset file, or rasters: received {' '.join(options.scene)}")
        base, source, content = first.parent, str(first), dataset_file.read(first)
        if isinstance(content, dict) and flags:
            raise UserError("--optical, --dem and --modality say what a dataset file says: give one or the others")
    else:
        name = options.scene_name or "scene"
        if options.scene:
            guessed, modalities, notes = scene_of([Path(one) for one in options.scene])
            name = options.scene_name or guessed
            flags = modalities | flags
            for modality, entry in modalities.items():
                files = entry["files"]
                listed = files.values() if isinstance(files, dict) else [files] if isinstance(files, str) else files
                print(f"{modality}: {', '.join(listed)}")
            for note in notes:
                print(f"  {note}")
        elif not options.scene_name:
            name = _stem_of_first(flags)
        content = {"scenes": {name: {"modalities": flags}}}
    if isinstance(content, dict):
        content |= {key: value for key, value in (("region", options.region), ("date", options.date)) if value}
        for change in options.set:
            set_value(content, change)
    return dataset_file.parse(content, source), base


def _stem_of_first(modalities: Mapping[str, Any]) -> str:
    """Return the name of the first file, without its ending, to call the scene by."""
    files = next(iter(modalities.values()))["files"]
    first = next(iter(files.values() if isinstance(files, dict) else files))
    return Path(first.partition("#")[0]).stem


def _dataset(data: str | None, records: Sequence[Record]) -> Dataset:
    """Return the dataset that was asked for, or that of the runs."""
    folders = {record.name: record.dataset["folder"] for record in records}
    if not data and len(set(folders.values())) > 1:
        listed = ", ".join(f"{name} on {folder}" for name, folder in folders.items())
        raise UserError(f"the runs were trained on several datasets ({listed}): say which tiles to predict with --data")
    from data.tiles import find_dataset

    return find_dataset(data or next(iter(folders.values()), None))


def _members(
    options: argparse.Namespace, records: Sequence[Record], source: TileFile, precision: str
) -> list[Predictor]:
    """Return the models, ready to predict `source`."""
    from inference.predictor import check_tiles, from_run, from_weights

    for record in records:
        check_tiles(source.choose(record.chosen_bands), record.name, record.inputs, record.class_list)
    if records:
        return [from_run(record, precision) for record in records]
    name = options.name[0] if options.name else _stem(options.weights)
    if Path(name).name != name:
        raise UserError(f"-n is the name of a folder in predictions/, without slashes, received {name!r}")
    return [from_weights(options.model, options.weights, source, name, precision)]


def _calibrate(
    options: argparse.Namespace, members: Sequence[Predictor], source: TileFile, names: Sequence[str], way: Way
) -> Path:
    """Fit and store the calibration of this way to predict, and print it; return its file."""
    from evaluation import calibration
    from inference.tiles import fit_calibration, joined_name

    fitted = fit_calibration(
        members, source, names, way=way, overlap=options.overlap, batch=options.batch_size, shape=options.kernel
    )
    print(fitted.text())
    return calibration.save(joined_name(members), fitted)


def _calibrator(
    options: argparse.Namespace, members: Sequence[Predictor], source: Offer, way: Way
) -> Calibration | None:
    """Return the calibration that was asked for; say why there is none if it was not."""
    from evaluation import calibration
    from inference.mapping import Calibration
    from inference.tiles import about, joined_name

    if options.calibration == "none":
        return None
    try:
        fitted = calibration.find(
            joined_name(members), calibration.About(**about(members, source, way, options.overlap, options.kernel))
        )
    except UserError as error:
        model = ["-n", *(options.name or [options.model])]
        if options.weights:
            model = ["-m", options.model, "-w", str(options.weights), *(model if options.name else [])]
        given = ["--data", options.data] if options.data else []
        given += (["--tta", *options.tta] if options.tta is not None else []) + (
            ["--mc", str(way.mc)] if way.mc else []
        )
        make = f"to make one: {shlex.join(['python', 'predict.py', *model, *given, '--calibrate'])}"
        if options.calibration != "auto":
            raise UserError(f"{error}; {make}") from None
        print(f"not calibrated: {error}; {make}")
        return None
    calibrator = fitted.calibrator(options.calibration)
    print(f"confidence calibrated by {calibrator.method}, fitted on {len(fitted.tiles)} tiles of {fitted.about.source}")
    return Calibration(calibrator, fitted.correlation_length_m)


def _stem(weights: Path) -> str:
    """Return the name of a weights file without the endings that such files have."""
    stem = weights.stem if weights.suffix in (".h5", ".safetensors", ".npz", ".pt", ".pth") else weights.name
    return stem.removesuffix(".weights")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = parser.add_argument_group("the model (one of -m and -n, or -m with -w)")
    run.add_argument(
        "-m", dest="model", metavar="ARCHITECTURE", help="the run named after an architecture; with -w, a recipe"
    )
    run.add_argument(
        "-n",
        dest="name",
        metavar="NAME",
        nargs="+",
        help="name of the run; several are averaged; with -w, of the predictions",
    )
    run.add_argument("-w", dest="weights", metavar="FILE", type=Path, help="a weights file of ARCHITECTURE")
    scenes = parser.add_argument_group("scenes")
    scenes.add_argument(
        "scene",
        nargs="*",
        metavar="RASTER",
        help="rasters of one scene, what they hold is told by their names and "
        "bands; or a dataset file (YAML) of scenes",
    )
    scenes.add_argument("--optical", metavar="FILE", nargs="+", help="a file of all bands, or BAND=FILE[#NUMBER] …")
    scenes.add_argument("--dem", metavar="FILE", nargs="+", help="elevation in metres; slope is derived")
    scenes.add_argument(
        "--modality",
        metavar=("NAME", "FILE"),
        nargs="+",
        action="append",
        default=[],
        help="another modality and its files; can be repeated",
    )
    scenes.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a key as in a dataset file, e.g. modalities.optical.scale=1e-4; can be repeated",
    )
    scenes.add_argument("--scene-name", metavar="NAME", default="", help="of one scene [from its files]")
    scenes.add_argument("--region", default="", help="region code, for models that take one")
    scenes.add_argument("--date", metavar="YYYY-MM-DD", help="of scenes that name none: the outlines' src_date")
    scenes.add_argument("--probs", action="store_true", help="keep the probability of every class, as probs.tif")
    outlines = parser.add_argument_group("outlines of scenes")
    outlines.add_argument(
        "--smallest-km2", type=float, default=0.01, metavar="AREA", help="smaller objects and holes go [%(default)s]"
    )
    outlines.add_argument("--median", type=int, default=0, metavar="PIXELS", help="side of a median filter, odd [none]")
    outlines.add_argument(
        "--smoothing", choices=["none", "douglas-peucker", "chaikin"], default="none", help="of borders [%(default)s]"
    )
    outlines.add_argument("--divides", metavar="FILE", type=Path, help="ice divides (lines) or basins (polygons)")
    outlines.add_argument(
        "--correlation-length-m",
        type=float,
        metavar="METRES",
        help="of the errors, for the interval of areas [that of the calibration]",
    )
    data = parser.add_argument_group("the tiles")
    data.add_argument("--data", metavar="DATASET", help="a dataset's name, a folder or a tile file")
    data.add_argument("--split", choices=["test", "val"], help="default: test")
    data.add_argument("--regions", nargs="+", metavar="REGION", help="only tiles of these regions")
    way = parser.add_argument_group("the way")
    way.add_argument(
        "--overlap", type=float, help="of neighbouring windows; default: 0.5 of tiles, as published, 0.25 of scenes"
    )
    way.add_argument(
        "--kernel",
        choices=["gaussian", "cosine"],
        default="gaussian",
        help="weight of a window's pixels where windows are blended [%(default)s, as published]",
    )
    way.add_argument("--batch-size", type=int, default=4, help="windows predicted at once; default: 4")
    way.add_argument(
        "--scheduler",
        metavar="local|tcp://HOST:PORT",
        help="predict strips of scenes on several workers: of this machine, or of a Dask cluster of yours",
    )
    way.add_argument("--workers", type=int, metavar="N", help="workers of --scheduler local; default: 2")
    way.add_argument(
        "--engine",
        choices=["auto", "keras", "openvino"],
        default="auto",
        help="what runs the model: Keras on its backend, or an exported copy, which is compared with Keras first; "
        "auto: on CPUs the copy where there is much to predict",
    )
    way.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        help="default: float32; of an exported copy, bfloat16 where the processor is faster in it",
    )
    confidence = parser.add_argument_group("confidence")
    confidence.add_argument(
        "--tta",
        nargs="*",
        metavar="SYMMETRY",
        help="average over symmetries of the patch: all 8, or the identity and those named (flip-h, flip-v, rot90, "
        "rot180, rot270, transpose, anti-transpose)",
    )
    confidence.add_argument(
        "--mc", type=int, default=0, metavar="N", help="average N passes with dropout left on (Monte Carlo dropout)"
    )
    confidence.add_argument(
        "--calibration",
        choices=["auto", "temperature", "isotonic", "none"],
        default="auto",
        help="auto: what was best on validation tiles, if there is a calibration",
    )
    confidence.add_argument(
        "--calibrate", action="store_true", help="fit the calibration of this command on the validation tiles instead"
    )
    return parser


if __name__ == "__main__":
    console.run(main)
