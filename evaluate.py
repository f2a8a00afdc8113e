"""Score a run's predictions by region.

Reads    predictions/NAME/predictions.hdf5; with --baseline and --picture also the tiles they were made of
Writes   reports/NAME/scores.json, regions.csv, tiles.csv, calibration.json and reliability.png; with --picture
         examples.png
Copy     python evaluate.py -n glavitu

Scores are of glacier (all classes flagged as glacier together) against the rest, from counts pooled over a
region's pixels: those that are valid and have a reference. `mean IoU ± std` is over the regions that have
glacier. The table of confidence compares the probability of the label with the share of labels that are right, over
all classes and at the valid pixels: their expected calibration error (ECE, 15 bins), of the model's probabilities and,
where the run is calibrated (`python predict.py -n NAME --calibrate`), of the calibrated ones.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import console
from console import UserError

if TYPE_CHECKING:
    from data.predictions import PredictionFile
    from evaluation.regions import Evaluation, Setting

REPORTS = Path("reports")


def main(arguments: list[str]) -> None:
    """Print the region table and write the report."""
    options = _parser().parse_args(arguments)
    if options.data and not options.baseline:
        raise UserError("--data says where --baseline finds training tiles: give --baseline, too, or leave it out")

    from data.predictions import PredictionFile, path_of
    from evaluation import calibration, regions, reliability

    predictions = PredictionFile(path_of(options.name))
    if not predictions.path.is_file():
        _explain_missing(options.name)
    names = predictions.select(options.regions)
    settings: list[Setting] = ["all", "valid"] if options.all_pixels else ["valid", "all"]
    evaluations = regions.evaluate(predictions, names, settings)
    counted = "all pixels, invalid ones as predicted background" if options.all_pixels else "valid pixels"
    print(f"{options.name} on {predictions.source}, {counted}\n\n{evaluations[0].text()}")
    if predictions.mask_note:
        print(f"\n{predictions.mask_note}")

    described: dict[str, Any] = {
        "run": options.name,
        "source": str(predictions.source),
        "command": shlex.join(["python", "evaluate.py", *arguments]),
    }
    if predictions.mask_note:
        described["reference"] = predictions.mask_note
    if options.baseline:
        described["baseline"] = _baseline(options, predictions, evaluations)
    folder = REPORTS / options.name
    calibrator = calibration.of(predictions)
    confidence = reliability.measure(predictions, names, calibrator)
    how = f"calibrated by {calibrator.method}" if calibrator else "not calibrated"
    print(f"\nconfidence, the probability of the label, {how}\n\n{confidence.text()}")
    regions.save(evaluations, folder, described)
    reliability.save(confidence, folder, described | {"calibration": calibrator and calibrator.model_dump()})
    written = ["scores.json", "regions.csv", "tiles.csv", "calibration.json", "reliability.png"]
    if options.picture:
        from evaluation.picture import choose, draw

        draw(predictions, choose(evaluations[0]), folder / "examples.png")
        written.append("examples.png")
    print(f"\nwrote {', '.join(written)} to {folder}/")


def _baseline(
    options: argparse.Namespace, predictions: PredictionFile, evaluations: list[Evaluation]
) -> dict[str, Any]:
    """Fit the band-ratio threshold, print it beside the model, return what the report says of it."""
    from data.tiles import TileFile, find_dataset
    from evaluation import baseline
    from training.record import load_record, run_names

    if not options.data and predictions.run not in run_names():
        raise UserError(f"{predictions.run!r} has no record of its training tiles: name some with --data DATASET")
    dataset = find_dataset(options.data or load_record(predictions.run).dataset["folder"])
    with TileFile(dataset.path("train")) as train:
        # A class list of the run's recipe is in its predictions, not in the tiles.
        described = train if train.has_classes else train.choose(classes=predictions.classes)
        rule = baseline.fit_file(described, train.names)
    names = [tile.tile for tile in evaluations[0].tiles]
    scored = baseline.evaluate(rule, predictions, names, [evaluation.setting for evaluation in evaluations])
    print(f"\nbaseline: glacier where {rule}\n          fitted on the training tiles of {dataset.folder}")
    width = max(len(options.name), len("baseline"))
    print(f"\n{'':{width}}  mean IoU  total IoU")
    for name, evaluation in ((options.name, evaluations[0]), ("baseline", scored[0])):
        print(f"{name:{width}}  {evaluation.mean_iou:8.3f}  {evaluation.total.iou:9.3f}")
    return {
        "rule": str(rule),
        "fitted_on": str(train.path),
        "settings": {evaluation.setting: evaluation.to_json() for evaluation in scored},
    }


def _explain_missing(name: str) -> None:
    """Raise what a user without these predictions has to do first."""
    from data.predictions import known
    from inference.predictor import find_run

    others = known()
    hint = f" (there are predictions of {', '.join(others)})" if others else ""
    runs = name.split("+")  # those of an ensemble
    try:
        for run in runs:
            find_run(run)
    except UserError as error:
        raise UserError(f"no predictions of {name!r}{hint}: {error}") from None
    raise UserError(f"no predictions of {name!r}{hint}; make them: python predict.py -n {shlex.join(runs)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", dest="name", metavar="NAME", required=True, help="name of the run, or predictions (a+b)")
    parser.add_argument("--regions", nargs="+", metavar="REGION", help="only tiles of these regions")
    parser.add_argument(
        "--all-pixels",
        action="store_true",
        help="count invalid pixels, too, as predicted background (as competitions do)",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="compare with the best band-ratio threshold, fitted on the run's training tiles",
    )
    parser.add_argument(
        "--data", metavar="DATASET", help="dataset with the baseline's training tiles; default: the run's own"
    )
    parser.add_argument("--picture", action="store_true", help="draw a few tiles: reports/NAME/examples.png")
    return parser


if __name__ == "__main__":
    console.run(main)
