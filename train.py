"""Train a model of the zoo on a dataset of tiles.

reads   tiles/DATASET/train.hdf5 and val.hdf5, recipes/RECIPE.yaml
writes  weights/NAME.weights.h5 (the best epoch), weights/NAME.json (the run's record), logs/NAME.csv;
        to look at: logs/NAME.png (the log), logs/NAME-patches.png (validation patches, prediction and error)
copy    python train.py -m glavitu --dry-run
        python train.py -m glavitu
        python train.py -m resunet -n mine --data synthetic --epochs 20 --set training.batch_size=2
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
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, sampling and dropout (default: 0)")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="auto: the first that the recipe allows and the device computes in, else float32",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the weights of a run of this name")
    parser.add_argument(
        "--tensorboard", action="store_true", help="write the log for TensorBoard, too: logs/NAME.tensorboard/"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print recipe, parameters and memory, draw a training batch (logs/NAME-batch.png), train nothing",
    )
    options = parser.parse_args(arguments)
    if options.model is None and options.recipe is None:
        raise UserError("which model? Give -m ARCHITECTURE (such as -m glavitu) or -r RECIPE")

    import yaml

    from data.tiles import find_dataset

    console.import_keras()
    from training.recipe import load_recipe
    from training.record import LOGS, record_path, weights_path

    changes = options.set + ([f"training.epochs={options.epochs}"] if options.epochs is not None else [])
    recipe = load_recipe(options.recipe or options.model, changes)
    if options.recipe and options.model and recipe.architecture.name != options.model:
        raise UserError(f"recipe {recipe.name} is for {recipe.architecture.name}, not {options.model}: leave -m out")
    name = options.name or options.model or recipe.name
    if name != Path(name).name or name.startswith("."):
        raise UserError(f"the run's name becomes a file name: no folder, no leading dot; received {name!r}")
    if weights_path(name).exists() and not (options.overwrite or options.dry_run):
        raise UserError(
            f"a run named {name!r} exists ({weights_path(name)}): give another name with -n, or --overwrite"
        )
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed takes a whole number from 0 to {2**32 - 1}; received {options.seed}")
    dataset = find_dataset(options.data)

    from training.run import Run, plan
    from training.watching import EventLog, Watcher

    events = EventLog(LOGS / f"{name}.tensorboard") if options.tensorboard else None

    planned = plan(recipe, dataset, regions=options.regions, seed=options.seed, precision=options.precision)
    print(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False), end="")
    print(planned.summary(), flush=True)
    if options.dry_run:
        from training.preview import draw_first_batch, tables

        print(tables(planned))
        batch = LOGS / f"{name}-batch.png"
        draw_first_batch(planned, batch)
        print(f"wrote {batch} and nothing else: without --dry-run it is trained")
        return
    command = shlex.join(["python", "train.py", *arguments])
    run = Run(planned, name, command=command, watch=Watcher(planned, LOGS / f"{name}.csv", events))
    try:
        record = run.train()
    except KeyboardInterrupt:
        kept = f"the best weights are in {weights_path(name)}" if run.best.epoch else "no epoch was done"
        print(f"\nstopped by Ctrl-C: {kept}")
        raise SystemExit(130) from None
    score = "undefined" if record.best.score is None else f"{record.best.score:.4f}"
    print(f"best epoch {record.best.epoch}: val {record.best.monitor} {score}")
    print(f"wrote {weights_path(name)}, {record_path(name)}, logs/{name}.csv and its pictures beside it")
    if events:
        print(f"to see it: tensorboard --logdir {events.folder} (pip install tensorboard)")
    print(f"next: python predict.py -n {name}")


if __name__ == "__main__":
    console.run(main)
