"""Predict tiles with a trained run, or with a published weights file.

Reads    weights/NAME.weights.h5, weights/NAME.json and the test tiles of the run's dataset (or --data)
Writes   predictions/NAME/predictions.hdf5: probabilities, labels, confidence, mask and valid of each tile, padding cut;
         with --calibrate weights/NAME.calibration.json instead
Copy     python predict.py -n glavitu
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
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import console
from console import UserError

if TYPE_CHECKING:
    from data.tiles import Dataset, TileFile
    from evaluation.calibration import Calibrator
    from inference.confidence import Way
    from inference.predictor import Predictor
    from training.record import Record


def main(arguments: list[str]) -> None:
    """Predict and say where the predictions are."""
    options = _parser().parse_args(arguments)
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

    from data.predictions import path_of
    from data.tiles import TileFile, describe_absent, select
    from inference.confidence import SYMMETRIES, Way
    from inference.predictor import find_run
    from inference.tiles import joined_name, predict_file

    started = time.monotonic()
    tta = SYMMETRIES if options.tta == [] else options.tta or ()
    way = Way(tuple(tta), options.mc)
    records = [] if options.weights else [find_run(name) for name in options.name or [options.model]]
    dataset = _dataset(options.data, records)
    with TileFile(dataset.path(options.split or ("val" if options.calibrate else "test"))) as source:
        names = select(source, options.regions)
        members = _members(options, records, source)
        name = joined_name(members)
        print(
            f"{name}: {len(names)} tiles of {source.path}, patches of {members[0].patch_size} pixels, "
            f"{options.precision}{f', {way}' if str(way) else ''}"
        )
        modalities = dict.fromkeys(modality for member in members for modality in member.modalities)
        if absent := describe_absent(source, names, list(modalities)):
            print(absent)
        if options.calibrate:
            target = _calibrate(options, members, source, names, way)
        else:
            target = path_of(name)
            calibrator = _calibrator(options, members, source, way)
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
            )
    print(f"wrote {target} in {time.monotonic() - started:.0f} s")
    if options.calibrate:
        print("next: the same command without --calibrate")
    else:
        print(f"next: python evaluate.py -n {shlex.quote(name)}")


def _dataset(data: str | None, records: Sequence[Record]) -> Dataset:
    """Return the dataset that was asked for, or that of the runs."""
    folders = {record.name: record.dataset["folder"] for record in records}
    if not data and len(set(folders.values())) > 1:
        listed = ", ".join(f"{name} on {folder}" for name, folder in folders.items())
        raise UserError(f"the runs were trained on several datasets ({listed}): say which tiles to predict with --data")
    from data.tiles import find_dataset

    return find_dataset(data or next(iter(folders.values()), None))


def _members(options: argparse.Namespace, records: Sequence[Record], source: TileFile) -> list[Predictor]:
    """Return the models, ready to predict `source`."""
    from inference.predictor import check_tiles, from_run, from_weights

    for record in records:
        check_tiles(source.choose(record.chosen_bands), record.name, record.inputs, record.class_list)
    if records:
        return [from_run(record, options.precision) for record in records]
    name = options.name[0] if options.name else _stem(options.weights)
    if Path(name).name != name:
        raise UserError(f"-n is the name of a folder in predictions/, without slashes, received {name!r}")
    return [from_weights(options.model, options.weights, source, name, options.precision)]


def _calibrate(
    options: argparse.Namespace, members: Sequence[Predictor], source: TileFile, names: Sequence[str], way: Way
) -> Path:
    """Fit and store the calibration of this way to predict, and print it; return its file."""
    from evaluation import calibration
    from inference.tiles import about, joined_name, labelled_maps

    maps = labelled_maps(members, source, names, way=way, overlap=options.overlap, batch=options.batch_size)
    fitted = calibration.fit(maps, calibration.About(**about(members, source, way, options.overlap)))
    print(fitted.text())
    return calibration.save(joined_name(members), fitted)


def _calibrator(
    options: argparse.Namespace, members: Sequence[Predictor], source: TileFile, way: Way
) -> Calibrator | None:
    """Return the calibration that was asked for; say why there is none if it was not."""
    from evaluation import calibration
    from inference.tiles import about, joined_name

    if options.calibration == "none":
        return None
    try:
        fitted = calibration.find(
            joined_name(members), calibration.About(**about(members, source, way, options.overlap))
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
    return calibrator


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
    data = parser.add_argument_group("the tiles")
    data.add_argument("--data", metavar="DATASET", help="a dataset's name, a folder or a tile file")
    data.add_argument("--split", choices=["test", "val"], help="default: test")
    data.add_argument("--regions", nargs="+", metavar="REGION", help="only tiles of these regions")
    way = parser.add_argument_group("the way")
    way.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows; default: 0.5")
    way.add_argument("--batch-size", type=int, default=4, help="windows predicted at once; default: 4")
    way.add_argument(
        "--precision", choices=["float32", "bfloat16", "float16"], default="float32", help="default: float32"
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
