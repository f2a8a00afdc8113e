"""Train a model of the zoo on a dataset of tiles.

reads   tiles/DATASET/train.hdf5 and val.hdf5, recipes/RECIPE.yaml
writes  weights/NAME.weights.h5 (the best epoch), weights/NAME.json (the run's record), logs/NAME.csv;
        while it trains, weights/NAME.resume/ (the state to resume from)
copy    python train.py -m glavitu
        python train.py -m resunet -n mine --data synthetic --epochs 20 --set training.batch_size=2
        python train.py -n mine --resume      (after a kill or Ctrl-C: to the same weights and log)
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import console
from console import UserError


def main(arguments: list[str]) -> None:
    """Parse, plan, train."""
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
    options = parser.parse_args(arguments)
    if options.resume and options.overwrite:
        raise UserError("--resume goes on with a run, --overwrite starts it anew: give one of them")
    if not options.save_every > 0:
        raise UserError(f"--save-every takes minutes above 0; received {options.save_every}")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise UserError(f"--seed takes a whole number from 0 to {2**32 - 1}; received {options.seed}")

    import yaml

    from data.tiles import find_dataset

    console.import_keras()
    from training.recipe import load_recipe, parse_recipe
    from training.record import load_record, record_path, run_names, weights_path
    from training.state import load_state, resume_path

    changes = options.set + ([f"training.epochs={options.epochs}"] if options.epochs is not None else [])
    asked = load_recipe(options.recipe or options.model, changes) if options.recipe or options.model else None
    name = options.name or options.model or (asked.name if asked else None)
    if name is None:
        raise UserError("which model? Give -m ARCHITECTURE (such as -m glavitu) or -r RECIPE, or -n NAME --resume")
    if options.recipe and options.model and asked and asked.architecture.name != options.model:
        raise UserError(f"recipe {asked.name} is for {asked.architecture.name}, not {options.model}: leave -m out")
    if name != Path(name).name or name.startswith("."):
        raise UserError(f"the run's name becomes a file name: no folder, no leading dot; received {name!r}")
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
        return
    before = state.origin if state and options.resume else None

    if asked:
        recipe = asked
    elif before:
        recipe = parse_recipe(before.recipe, f"the state of run {name!r}", changes)
    else:
        raise UserError(f"there is no run {name!r} to resume: give -m ARCHITECTURE or -r RECIPE to start one")
    if before and options.data is None:
        dataset = find_dataset(before.dataset["folder"])
    else:
        dataset = find_dataset(options.data)
    # What is not given is as the run was started.
    regions = options.regions or (list(before.regions) if before else [])
    seed = options.seed if options.seed is not None else before.seed if before else 0
    precision = options.precision or (before.precision if before else "auto")

    from training.run import Run, plan

    planned = plan(recipe, dataset, regions=regions, seed=seed, precision=precision)
    print(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False), end="")
    print(planned.summary(), flush=True)
    command = shlex.join(["python", "train.py", *arguments])
    run = Run(planned, name, command=command, resume=options.resume, save_every_s=60 * options.save_every)
    if run.rows or run.batch:
        print(f"resumes after epoch {len(run.rows)}" + (f" and {run.batch} batches" if run.batch else ""), flush=True)
    try:
        record = run.train()
    except KeyboardInterrupt:
        kept = f"the best weights are in {weights_path(name)}" if run.best.epoch else "no epoch was done"
        print(f"\nstopped by Ctrl-C: {kept}; go on with: python train.py -n {name} --resume")
        raise SystemExit(130) from None
    score = "undefined" if record.best.score is None else f"{record.best.score:.4f}"
    print(f"best epoch {record.best.epoch}: val {record.best.monitor} {score}")
    print(f"wrote {weights_path(name)}, {record_path(name)}, logs/{name}.csv")
    print(f"next: python predict.py -n {name}")


if __name__ == "__main__":
    console.run(main)
