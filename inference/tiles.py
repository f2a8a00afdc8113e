"""Predicting a tile file: every tile through overlapping windows, into one prediction file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from console import UserError, progress
from data.predictions import PredictionWriter
from data.tiles import TileFile
from data.windows import grid
from inference.cleaning import remove_small
from inference.predictor import Predictor
from inference.sliding import blend_all


def predict_file(
    predictor: Predictor,
    source: TileFile,
    target: Path,
    *,
    names: Sequence[str] | None = None,
    overlap: float = 0.5,
    batch: int = 4,
    command: str = "",
) -> None:
    """Predict the tiles `names` of `source` (all by default) into the prediction file `target`.

    The file takes its place when all is done; until then, and after an error, a former one stays.

    Args:
        predictor: The model.
        source: The tiles; `check_tiles` has been asked before.
        target: Usually `predictions/NAME/predictions.hdf5`.
        names: Tiles to predict.
        overlap: Share of a patch that neighbouring windows have in common, 0 … 1 exclusive.
        batch: Windows predicted at once.
        command: The command to note in the file.

    Raises:
        UserError: If `overlap` or `batch` is impossible, the values are scaled in a way that does not suit
            the model, or the model returns anything but numbers.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap must lie in 0 ≤ overlap < 1, received {overlap}; half a patch is 0.5")
    if batch < 1:
        raise UserError(f"--batch-size must be at least 1, received {batch}")
    source = source.choose(predictor.bands)
    patch = predictor.patch_size
    stride = max(1, round(patch * (1 - overlap)))
    infos = [source.info(name) for name in (source.names if names is None else names)]
    windows = sum(len(grid(info.height, info.width, patch, stride)) for info in infos)
    statistics = predictor.scaling(source)

    def arrays() -> Iterator[dict[str, NDArray[np.float32]]]:
        for info in infos:
            yield predictor.inputs(source, info, statistics)

    blended = blend_all(
        predictor,
        arrays(),
        patch=patch,
        num_outputs=predictor.num_outputs,
        stride=stride,
        batch=min(batch, windows),
    )
    attributes = {
        "run": predictor.name,
        "source": str(source.path),
        "source_digest": source.digest,
        "mask_note": source.mask_note,
        "command": command,
        **predictor.described,
        "modalities": predictor.modalities,
        "statistics": statistics.to_json() if statistics else None,
        "patch_size": patch,
        "overlap": overlap,
        "smallest_px": predictor.smallest_px,
    }
    smallest = predictor.smallest_px
    clean = (lambda labels: remove_small(labels, smallest)) if smallest else None
    with PredictionWriter(target, predictor.classes, attributes) as writer:
        tiles = zip(infos, blended, strict=True)
        for info, probs in progress(tiles, "predict", total=len(infos), unit="tile"):
            if not np.isfinite(probs).all():
                raise UserError(
                    f"the model returned values that are not numbers for tile {info.name!r}: its weights are "
                    "damaged, or the precision is too low for them (try --precision float32)"
                )
            writer.add(info, probs, source.mask(info.name), source.valid(info.name), clean)
