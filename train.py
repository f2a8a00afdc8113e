"""Train a model of the zoo on a dataset of tiles.

reads   tiles/DATASET/train.hdf5 and val.hdf5, recipes/RECIPE.yaml
writes  weights/NAME.weights.h5 (the best epoch), weights/NAME.json (the run's record), logs/NAME.csv;
        while it trains, weights/NAME.resume/ (the state to resume from); at its end weights/NAME.calibration.json
        (what makes a confidence of a probability, fitted on the validation tiles);
        to look at: logs/NAME.png (the log), logs/NAME-patches.png (validation patches, prediction and error)
copy    python train.py -m glavitu --dry-run
        python train.py -m glavitu
        python train.py -m resunet -n mine --data synthetic --epochs 20 --set training.batch_size=2
        python train.py -n mine --resume      (after a kill or Ctrl-C: to the same weights and log)
        python train.py -m resunet --folds 5  (cross-validation: runs NAME-fold1 …, reports/NAME/folds.csv)
        python train.py -r glavitu-finetune -n mine --init glavitu_global_weights.h5
        python train.py -r unet-encoders -n mine --encoder-weights resnet34.pth   (an encoder trained on ImageNet)
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import console
from console import UserError

if TYPE_CHECKING:
    from data.tiles import Dataset
    from training.recipe import Recipe
    from training.record import Record
    from training.run import Plan


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", metavar="ARCHITECTURE", help="the recipe of this name: glavitu, resunet, …")
    parser.add_argument("-r", "--recipe", metavar="RECIPE", help="another recipe of recipes/, or a .yaml file")
    parser.add_argument("-n", "--name", help="name of the run (default: the recipe's, or -m's)")
    parser.add_argument(
        "--data", metavar="DATASET", help="name under tiles/, or a folder (default: the only one there)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the recipe"
    )
    parser.add_argument("--epochs", type=int, help="same as --set training.epochs=N")
    parser.add_argument("--regions", nargs="+", default=[], metavar="REGION", help="use tiles of these regions only")
    parser.add_argument(
        "--init", metavar="NAME_OR_FILE", help="start from the weights of a run, or of a file: what fits is taken"
    )
    parser.add_argument(
        "--init-inputs",
        nargs="+",
        default=[],
        metavar="MODALITY",
        help="what a file without a record was trained on, in its order (default: as published)",
    )
    parser.add_argument(
        "--encoder-weights",
        type=Path,
        metavar="FILE",
        help="start the encoder from a PyTorch file, such as torchvision's of ImageNet (.pth, .safetensors, .npz)",
    )
    parser.add_argument("--seed", type=int, help="seed of weights, sampling and dropout (default: 0)")
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="auto: the first that the recipe allows and the device computes in, else float32",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the weights of a run of this name")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run that was stopped, to the weights it would have had"
    )
    parser.add_argument(
        "--save-every", type=float, default=15.0, metavar="MINUTES", help="save a state this often within long epochs"
    )
    parser.add_argument(
        "--no-calibration",
        action="store_true",
        help="do not predict the validation tiles at the end to calibrate the confidence (folds never do)",
    )
    parser.add_argument("--folds", type=int, metavar="N", help="cross-validate over the train and val tiles in N folds")
    parser.add_argument(
        "--folds-by",
        choices=["tiles", "blocks", "regions"],
        help="what a fold holds out: shuffled tiles (default), spatial blocks, or regions (without --folds: each)",
    )
    parser.add_argument(
        "--block-m", type=float, metavar="METRES", help="side of a spatial block (default: 4 × the largest tile's side)"
    )
    parser.add_argument(
        "--draw-augmentations",
        type=Path,
        metavar="FILE.png",
        help="draw what each augmentation makes of a training patch (docs/augmentation.md), train nothing",
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="write the log for TensorBoard, too: logs/NAME.tensorboard/"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print recipe, parameters and memory, draw a training batch (logs/NAME-batch.png), train nothing",
    )
    return parser


def main(arguments: list[str]) -> None:
    """Parse, plan, train."""
    options = parser().parse_args(arguments)
    if options.resume and options.overwrite:
        raise UserError("--resume goes on with a run, --overwrite starts it anew: give one of them")
    if not options.save_every > 0:
        raise UserError(f"--save-every takes minutes above 0; received {options.save_every}")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise UserError(f"--seed takes a whole number from 0 to {2**32 - 1}; received {options.seed}")
    if options.block_m is not None and options.folds_by != "blocks":
        raise UserError("--block-m is the size of the blocks of --folds-by blocks: give both")
    if options.init_inputs and not options.init:
        raise UserError("--init-inputs says what the file of --init was trained on: give --init FILE")

    if options.encoder_weights and options.init:
        raise UserError("--encoder-weights starts the encoder from a file, --init the whole network: give one of them")

    from data.tiles import find_dataset

    console.import_keras()
    from training.recipe import load_recipe

    changes = options.set + ([f"training.epochs={options.epochs}"] if options.epochs is not None else [])
    recipe = load_recipe(options.recipe or options.model, changes) if options.recipe or options.model else None
    name = options.name or options.model or (recipe.name if recipe else None)
    if name is None:
        raise UserError("which model? Give -m ARCHITECTURE (such as -m glavitu) or -r RECIPE, or -n NAME --resume")
    if options.recipe and options.model and recipe and recipe.architecture.name != options.model:
        raise UserError(f"recipe {recipe.name} is for {recipe.architecture.name}, not {options.model}: leave -m out")
    if recipe and recipe.training.frozen and not (options.init or options.encoder_weights or options.resume):
        raise UserError(
            "training.frozen keeps weights as they start, which is random: give --init, or --encoder-weights for the "
            "encoder"
        )
    if name != Path(name).name or name.startswith("."):
        raise UserError(f"the run's name becomes a file name: no folder, no leading dot; received {name!r}")
    if name.endswith(".calibration"):
        raise UserError(f"weights/{name}.json would be taken for a calibration: give another name with -n")
    command = shlex.join(["python", "train.py", *arguments])
    if options.draw_augmentations or options.dry_run:
        if recipe is None:
            raise UserError("--dry-run and --draw-augmentations need -m ARCHITECTURE or -r RECIPE")
        _look(name, recipe, find_dataset(options.data), options)
    elif options.folds is None and options.folds_by is None:
        dataset = find_dataset(options.data) if options.data or not options.resume else None
        _train(name, recipe, dataset, options, changes, command)
    else:
        if recipe is None:
            raise UserError("--folds needs -m ARCHITECTURE or -r RECIPE, with --resume too")
        _cross_validate(name, recipe, find_dataset(options.data), options, changes, command)


def _train(
    name: str,
    recipe: Recipe | None,
    dataset: Dataset | None,
    options: argparse.Namespace,
    changes: list[str],
    command: str,
) -> Record:
    """Train run `name`, or go on with it as it was started in all that is not given; return its record."""
    import yaml

    from data.tiles import find_dataset
    from evaluation.calibration import calibration_path
    from training.initial import continued
    from training.recipe import parse_recipe
    from training.record import LOGS, load_record, record_path, run_names, weights_path
    from training.run import Run, plan
    from training.state import load_state, resume_path
    from training.watching import EventLog, Watcher

    state = None if options.overwrite else load_state(name)
    there = next((path for path in (weights_path(name), resume_path(name)) if path.exists()), None)
    if there and not options.overwrite and not options.resume:
        resume = ", or --resume to go on with it" if state else ""
        raise UserError(f"a run named {name!r} exists ({there}): give another name with -n, or --overwrite{resume}")
    if options.resume and state is None and name in run_names():
        record = load_record(name)
        if record.stopped not in ("finished", "early"):
            raise UserError(f"run {name!r} has weights but no state to resume from: start it anew with --overwrite")
        print(f"run {name!r} is done after {record.epochs} epochs: there is nothing to resume")
        if not options.no_calibration and not calibration_path(name).is_file():
            print(f"its confidence is not calibrated: python predict.py -n {name} --calibrate")
        return record
    before = state.origin if state else None
    if recipe is None:
        if before is None:
            raise UserError(f"there is no run {name!r} to resume: give -m ARCHITECTURE or -r RECIPE to start one")
        recipe = parse_recipe(before.recipe, f"the state of run {name!r}", changes)
    if dataset is None:
        dataset = find_dataset(before.dataset["folder"] if before else None)

    planned = plan(
        recipe,
        dataset,
        regions=options.regions or (before.regions if before else ()),
        seed=options.seed if options.seed is not None else before.seed if before else 0,
        precision=options.precision or (before.precision if before else "auto"),
    )
    print(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False), end="")
    print(planned.summary(), flush=True)
    if before:
        source = (before.init or {}).get("source", "random weights")
        for flag, given in (("--init", options.init), ("--encoder-weights", options.encoder_weights)):
            if given and str(given) != source:
                raise UserError(f"run {name!r} started from {source}, not from {given}: leave {flag} out")
        planned = continued(planned, before.init, before.statistics)
    else:
        planned = _started(planned, options)
    events = EventLog(LOGS / f"{name}.tensorboard") if options.tensorboard else None
    run = Run(
        planned,
        name,
        command=command,
        resume=options.resume,
        save_every_s=60 * options.save_every,
        watch=Watcher(planned, LOGS / f"{name}.csv", events),
    )
    if run.rows or run.step:
        print(f"resumes after epoch {len(run.rows)}" + (f" and {run.step} steps" if run.step else ""), flush=True)
    try:
        record = run.train()
    except KeyboardInterrupt:
        kept = f"the best weights are in {weights_path(name)}" if run.best.epoch else "no epoch was done"
        again = f"python train.py -n {name} --resume" if options.folds is None else "the same command and --resume"
        print(f"\nstopped by Ctrl-C: {kept}; go on with: {again}")
        raise SystemExit(130) from None
    score = "undefined" if record.best.score is None else f"{record.best.score:.4f}"
    print(f"best epoch {record.best.epoch}: val {record.best.monitor} {score}")
    print(f"wrote {weights_path(name)}, {record_path(name)}, logs/{name}.csv and its pictures beside it")
    if events:
        print(f"to see it: tensorboard --logdir {events.folder} (pip install tensorboard)")
    if not options.no_calibration and options.folds is None and options.folds_by is None:
        _calibrate(record, planned)
    print(f"next: python predict.py -n {name}")
    return record


def _calibrate(record: Record, planned: Plan) -> None:
    """Fit the calibration of the run's confidence on its validation tiles; the run is done whatever becomes of it."""
    from evaluation import calibration
    from inference.confidence import Way
    from inference.predictor import from_run
    from inference.tiles import fit_calibration

    later = f"python predict.py -n {record.name} --calibrate"
    members = [from_run(record)]
    val = planned.val
    batch = planned.recipe.training.validation_batch_size or planned.recipe.training.part_size
    try:
        fitted = fit_calibration(members, val.file, val.names, way=Way(), batch=batch)
    except UserError as error:
        console.warn(f"the confidence is not calibrated: {error}; {later} does it")
        return
    except KeyboardInterrupt:
        print(f"\nstopped by Ctrl-C: the run is done, but its confidence is not calibrated; {later} does it")
        raise SystemExit(130) from None
    print(fitted.text())
    print(f"wrote {calibration.save(record.name, fitted)}")


def _started(planned: Plan, options: argparse.Namespace) -> Plan:
    """Return `planned` with the first weights that were asked for; say what they are."""
    from training.initial import initialise, initialise_encoder

    start: Any = None
    if options.init:
        planned, start = initialise(planned, options.init, options.init_inputs)
    elif options.encoder_weights:
        planned, start = initialise_encoder(planned, options.encoder_weights)
    elif planned.recipe.encoder_weights == "imagenet":
        start = (
            "the encoder starts from random weights, that of the recipe's source from ImageNet's: "
            "--encoder-weights FILE starts from a file of these (docs/published-weights.md)"
        )
    if start:
        print(start, flush=True)
    return planned


def _look(name: str, recipe: Recipe, dataset: Dataset, options: argparse.Namespace) -> None:
    """Print and draw what was asked for; train nothing."""
    import yaml

    from training.gallery import draw_augmentations
    from training.preview import draw_first_batch, tables
    from training.record import LOGS
    from training.run import plan

    seed = options.seed or 0
    planned = plan(recipe, dataset, regions=options.regions, seed=seed, precision=options.precision)
    if options.draw_augmentations:
        draw_augmentations(planned.train, options.draw_augmentations, seed)
        print(f"wrote {options.draw_augmentations}")
    if options.dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False), end="")
        print(planned.summary())
        planned = _started(planned, options)
        print(tables(planned))
        batch = LOGS / f"{name}-batch.png"
        draw_first_batch(planned, batch)
        print(f"wrote {batch} and nothing else: without --dry-run it is trained")


def _cross_validate(
    name: str, recipe: Recipe, dataset: Dataset, options: argparse.Namespace, changes: list[str], command: str
) -> None:
    """Train a run for each fold and print the report."""
    from data.folds import pool, split
    from training.cross_validation import cross_validate, fold_name, report
    from training.record import weights_path
    from training.state import load_state

    tiles = pool(dataset, options.regions)
    folds = split(tiles, options.folds, options.folds_by or "tiles", options.seed or 0, options.block_m)
    taken = [run for k in range(len(folds)) if weights_path(run := fold_name(name, k + 1)).exists() or load_state(run)]
    if taken and not options.overwrite and not options.resume:
        raise UserError(f"runs named {', '.join(taken)} exist: give another name with -n, --overwrite, or --resume")

    def train(run: str, fold: Dataset) -> Record:
        print(f"\n{run}: {len(folds)} folds by {options.folds_by or 'tiles'}", flush=True)
        # The fold has the tiles of the regions asked for, and none beside them.
        chosen = argparse.Namespace(**{**vars(options), "regions": []})
        return _train(run, recipe, fold, chosen, changes, command)

    folder = Path("reports") / name
    table = cross_validate(name, tiles, folds, train, dataset.splits.get("test"))
    print(f"\n{report(table, folder)}")
    print("\nscores of glacier on each fold's held-out tiles, which also chose its epoch: they lean high")
    print(f"wrote {folder / 'folds.csv'}")


if __name__ == "__main__":
    console.run(main)
