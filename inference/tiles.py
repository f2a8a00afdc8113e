"""Predicting a tile file: every tile through overlapping windows, into one prediction file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from console import UserError, progress
from data.grids import Grid
from data.predictions import PredictionWriter, per_class
from data.tiles import IGNORE, TileFile, TileInfo
from data.windows import Window, grid
from evaluation import calibration
from inference.areas import correlation_length_m, pixel_size_m
from inference.cleaning import remove_small
from inference.confidence import Combination, Way, weights_digests
from inference.engines import Engine, choose_engines
from inference.predictor import Offer, Predictor
from inference.sliding import ArraySource, Kernel, blend_all, stride_of

PLAIN = Way()


def predict_file(
    members: Predictor | Sequence[Predictor],
    source: TileFile,
    target: Path,
    *,
    names: Sequence[str] | None = None,
    overlap: float = 0.5,
    batch: int = 4,
    command: str = "",
    way: Way = PLAIN,
    calibrate: Callable[[NDArray[np.float32]], NDArray[np.floating]] | None = None,
    noted: Mapping[str, Any] | None = None,
    shape: Kernel = "gaussian",
) -> None:
    """Predict the tiles `names` of `source` (all by default) into the prediction file `target`.

    The file takes its place when all is done; until then, and after an error, a former one stays.

    Args:
        members: The model; several are an ensemble, whose label maps are cleaned as the first's.
        source: The tiles; `check_tiles` has been asked before.
        target: Usually `predictions/NAME/predictions.hdf5`.
        names: Tiles to predict.
        overlap: Share of a patch that neighbouring windows have in common, 0 … 1 exclusive.
        batch: Windows predicted at once.
        command: The command to note in the file.
        way: How a patch is predicted.
        calibrate: What makes the probabilities that the file's confidence is of.
        noted: More attributes of the file, such as what `calibrate` is.
        shape: Of the kernel that windows are blended by.

    Raises:
        UserError: If `overlap` or `batch` is impossible, the values are scaled in a way that does not suit
            a model, models do not go together, or one returns anything but numbers.
    """
    members = [members] if isinstance(members, Predictor) else list(members)
    infos = [source.info(name) for name in (source.names if names is None else names)]
    model, blended = _blended(members, source, infos, way, overlap, batch, shape)
    attributes = {
        "run": joined_name(members),
        "source": str(source.path),
        "source_digest": source.digest,
        "mask_note": source.mask_note,
        "command": command,
        "patch_size": model.patch_size,
        "overlap": overlap,
        "kernel": shape,
        "smallest_px": members[0].smallest_px,
        "tta": way.tta,
        "mc": way.mc,
        "mc_seed": way.seed,
        "calibration": None,
        **(noted or {}),
    }
    described = [
        {
            **member.described,
            "engine": member.engine_name,
            "modalities": member.modalities,
            "statistics": statistics.to_json() if statistics else None,
        }
        for member, statistics in zip(members, model.statistics, strict=True)
    ]
    if len(members) == 1:
        attributes |= described[0]
    else:
        attributes["members"] = [{"run": member.name, **one} for member, one in zip(members, described, strict=True)]
    smallest = members[0].smallest_px
    clean = (lambda labels: remove_small(labels, smallest)) if smallest else None
    with PredictionWriter(target, members[0].classes, attributes) as writer:
        tiles = zip(infos, blended, strict=True)
        for info, probs in progress(tiles, "predict", total=len(infos), unit="tile"):
            writer.add(info, probs, source.mask(info.name), source.valid(info.name), clean, calibrate)


def choose_engines_for(
    members: Sequence[Predictor],
    source: TileFile,
    names: Sequence[str],
    engine: Engine,
    *,
    way: Way = PLAIN,
    overlap: float = 0.5,
    batch: int = 4,
) -> list[Predictor]:
    """Return the runs with what is to predict the tiles `names`; see `inference.engines.choose_engines`."""
    model = Combination(members, source, way)

    @dataclass(frozen=True)
    class Tile:
        info: TileInfo

        @property
        def height(self) -> int:
            return self.info.height

        @property
        def width(self) -> int:
            return self.info.width

        def read(self, window: Window) -> tuple[Mapping[str, NDArray[np.float32]], NDArray[np.bool_]]:
            cut, _ = ArraySource(model.inputs(self.info)).read(window)
            return cut, source.valid(self.info.name)[window.slices].astype(bool)

    tiles = [Tile(source.info(name)) for name in names]
    return choose_engines(members, model, tiles, engine, way=way, overlap=overlap, batch=batch)


def labelled_maps(
    members: Sequence[Predictor],
    source: TileFile,
    names: Sequence[str],
    *,
    way: Way = PLAIN,
    overlap: float = 0.5,
    batch: int = 4,
    shape: Kernel = "gaussian",
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.uint8]]]:
    """Predict tiles and yield name, probabilities `(h, w, K)` and reference `(h, w)` of each, padding cut.

    The reference is 255 where a pixel is invalid or unlabelled. Arguments and errors are those of `predict_file`.
    """
    infos = [source.info(name) for name in names]
    _, blended = _blended(members, source, infos, way, overlap, batch, shape)
    tiles = zip(infos, blended, strict=True)
    for info, probs in progress(tiles, "calibrate", total=len(infos), unit="tile"):
        inside = info.interior()
        yield info.name, probs[inside], source.labels(info.name)[inside]


def fit_calibration(
    members: Sequence[Predictor],
    source: TileFile,
    names: Sequence[str],
    *,
    way: Way = PLAIN,
    overlap: float = 0.5,
    batch: int = 4,
    shape: Kernel = "gaussian",
) -> calibration.Fit:
    """Predict tiles and fit a calibration to them, and the correlation length of the errors that it leaves.

    Arguments and errors are those of `predict_file`; that the tiles have a reference is asked of them.
    """
    glacier = [index for index, info in enumerate(members[0].classes) if info.glacier]
    drawn = np.linspace(0, len(names) - 1, min(len(names), _CORRELATED)).astype(int)
    kept: list[tuple[TileInfo, NDArray[np.float32], NDArray[np.uint8]]] = []
    looked_at = {names[index] for index in drawn}

    def maps() -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.uint8]]]:
        found = labelled_maps(members, source, names, way=way, overlap=overlap, batch=batch, shape=shape)
        for name, probs, reference in found:
            if name in looked_at:
                kept.append((source.info(name), probs.astype(np.float16), reference))
            yield name, probs, reference

    fitted = calibration.fit(maps(), calibration.About(**about(members, source, way, overlap, shape)))
    placed = [info for info, _, _ in kept if info.crs and info.transform]
    if len(placed) < len(kept):
        return fitted
    mapped = fitted.calibrator()

    def errors() -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
        for _, probs, reference in kept:
            calibrated = per_class(np.asarray(mapped(probs.astype(np.float32)), np.float32))
            truth = np.where(reference == IGNORE, IGNORE, np.isin(reference, glacier)).astype(np.uint8)
            yield calibrated[..., glacier].sum(axis=-1), truth

    first = placed[0]
    assert first.crs is not None and first.transform is not None
    place = Grid(first.crs, first.transform, first.height, first.width)
    try:
        length = correlation_length_m(errors(), pixel_size_m(place))
    except UserError:
        return fitted
    return fitted.model_copy(update={"correlation_length_m": round(length, 1)})


_CORRELATED = 24  # tiles at most that the correlation of errors is found on: they are kept in memory


def about(
    members: Sequence[Predictor], source: Offer, way: Way, overlap: float = 0.5, shape: Kernel = "gaussian"
) -> dict[str, Any]:
    """Return what a calibration on `source` is of (the fields of `evaluation.calibration.About`)."""
    return {
        "weights": weights_digests(members),
        "tta": way.tta,
        "mc": way.mc,
        "classes": tuple(info.name for info in members[0].classes),
        "source": str(source.path),
        "source_digest": source.digest,
        "overlap": overlap,
        "kernel": shape,
        "precision": members[0].described["precision"],
    }


def joined_name(members: Sequence[Predictor]) -> str:
    """Return the name of what several runs predict: theirs, joined by `+`."""
    return "+".join(member.name for member in members)


def _blended(
    members: Sequence[Predictor],
    source: TileFile,
    infos: Sequence[TileInfo],
    way: Way,
    overlap: float,
    batch: int,
    shape: Kernel,
) -> tuple[Combination, Iterator[NDArray[np.float32]]]:
    """Return the models put together, and the probabilities `(H, W, K)` of the tiles in their order, checked."""
    model = Combination(members, source, way)
    stride = stride_of(model.patch_size, overlap, batch)
    windows = sum(len(grid(info.height, info.width, model.patch_size, stride)) for info in infos)
    blended = blend_all(
        model,
        (model.inputs(info) for info in infos),
        patch=model.patch_size,
        num_outputs=model.num_outputs,
        stride=stride,
        batch=min(batch, windows),
        shape=shape,
    )

    def checked() -> Iterator[NDArray[np.float32]]:
        for info, probs in zip(infos, blended, strict=True):
            if not np.isfinite(probs).all():
                raise UserError(
                    f"the model returned values that are not numbers for tile {info.name!r}: its weights are "
                    "damaged, or the precision is too low for them (try --precision float32)"
                )
            yield probs

    return model, checked()
