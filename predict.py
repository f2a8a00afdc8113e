"""Predict tiles with a trained run, or with a published weights file.

Reads    weights/NAME.weights.h5, weights/NAME.json and the test tiles of the run's dataset (or --data)
Writes   predictions/NAME/predictions.hdf5: probabilities, labels, mask and valid of each tile, padding cut
Copy     python predict.py -n glavitu
         python predict.py -m glavitu -w published.h5 --data test_ps384_igarss23.hdf5
         python predict.py -m unet-surface -w checkpoint.pth --data my_region

With -w no record is needed: inputs and their order are those of the recipe of -m, channel counts and classes
those of the tiles, and the predictions are named after the weights file. That is a Keras file, or of U-Net, U-Net++,
SegFormer and the Himalaya project's ResUNet a PyTorch state dict (.safetensors, .npz, .pt, .pth).
"""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

import console
from console import UserError


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

    from data.predictions import path_of
    from data.tiles import TileFile, describe_absent, find_dataset, select
    from inference.predictor import check_tiles, find_run, from_run, from_weights
    from inference.tiles import predict_file

    started = time.monotonic()
    record = None if options.weights else find_run(options.name or options.model)
    dataset = find_dataset(options.data or (record.dataset["folder"] if record else None))
    with TileFile(dataset.path(options.split)) as source:
        names = select(source, options.regions)
        if record:
            check_tiles(source.choose(record.chosen_bands), record.name, record.inputs, record.class_list)
            predictor = from_run(record, options.precision)
        else:
            name = options.name or _stem(options.weights)
            if Path(name).name != name:
                raise UserError(f"-n is the name of a folder in predictions/, without slashes, received {name!r}")
            predictor = from_weights(options.model, options.weights, source, name, options.precision)
        print(
            f"{predictor.name}: {len(names)} tiles of {source.path}, "
            f"patches of {predictor.patch_size} pixels, {options.precision}"
        )
        if absent := describe_absent(source, names, list(predictor.modalities)):
            print(absent)
        target = path_of(predictor.name)
        predict_file(
            predictor,
            source,
            target,
            names=names,
            overlap=options.overlap,
            batch=options.batch_size,
            command=command,
        )
    print(f"wrote {target} in {time.monotonic() - started:.0f} s")
    print(f"next: python evaluate.py -n {shlex.quote(predictor.name)}")


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
    run.add_argument("-n", dest="name", metavar="NAME", help="name of the run; with -w, of the predictions")
    run.add_argument("-w", dest="weights", metavar="FILE", type=Path, help="a weights file of ARCHITECTURE")
    data = parser.add_argument_group("the tiles")
    data.add_argument("--data", metavar="DATASET", help="a dataset's name, a folder or a tile file")
    data.add_argument("--split", choices=["test", "val"], default="test", help="default: test")
    data.add_argument("--regions", nargs="+", metavar="REGION", help="only tiles of these regions")
    way = parser.add_argument_group("the way")
    way.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows; default: 0.5")
    way.add_argument("--batch-size", type=int, default=4, help="windows predicted at once; default: 4")
    way.add_argument(
        "--precision", choices=["float32", "bfloat16", "float16"], default="float32", help="default: float32"
    )
    return parser


if __name__ == "__main__":
    console.run(main)
