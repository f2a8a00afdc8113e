"""Prediction files, `predictions/NAME/predictions.hdf5`: one group per tile, of the model and the reference.

A group holds `probs` `(H, W, K)` float32 (K = number of classes, or 1: the probability of the second class),
`labels` `(H, W)` uint8 class ids from the unrounded probabilities, without small objects where the model is to
leave these out (`smallest_px`), `mask` and `valid` of the tile, and the tile's attributes; where the predictions are
calibrated also `confidence` `(H, W)` float32, the calibrated probability of the label as it stands in `labels`.
`probs` and `labels` are the same with and without calibration. Padding is cut off: a stored
`transform` is moved to the corner that is left, and padding attributes tell where in the tile file the prediction lies.

File attributes: `run`, `classes` (JSON, as in tile files), `source` and `source_digest` (the tile file),
`mask_note` (what to know of a weak reference, else empty), `command`, and as JSON what the prediction was made
with: `modalities`, `statistics`, `precision`, `patch_size`, `overlap`, `smallest_px`, `tta`, `mc`, `calibration` (what
`confidence` was made with, or null), of an ensemble `members` instead of what is one run's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from console import UserError
from data.hdf5 import creating
from data.tiles import ClassInfo, TileInfo

FORMAT = "glacier-predictions 1"


def path_of(name: str, root: Path = Path("predictions")) -> Path:
    """Return where the predictions of run `name` lie."""
    return root / name / "predictions.hdf5"


def known(root: Path = Path("predictions")) -> list[str]:
    """Return the names of the runs that have predictions."""
    return sorted(path.parent.name for path in root.glob("*/predictions.hdf5"))


def label(probs: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the class ids `(H, W)` of `probs` `(H, W, K)`: the argmax, or with K = 1 whether p > 0.5."""
    ids = probs[..., 0] > 0.5 if probs.shape[-1] == 1 else probs.argmax(axis=-1)
    return ids.astype(np.uint8)


def per_class(probs: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return a probability for every class, `(…, K)`: of one probability `(…, 1)` those of both classes."""
    return np.concatenate([1 - probs, probs], axis=-1) if probs.shape[-1] == 1 else probs


def label_probability(probs: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.floating]:
    """Return the probability `(…)` that `probs` `(…, K)` gives the class ids `labels` `(…)`."""
    one = np.take_along_axis(probs, np.minimum(labels, probs.shape[-1] - 1)[..., None].astype(np.intp), axis=-1)[..., 0]
    return np.where(labels == 1, one, 1 - one) if probs.shape[-1] == 1 else one


class PredictionWriter:
    """Writes a prediction file; use it in a `with` statement.

    The file takes its place, and that of a former one, when the block ends without an exception.
    """

    def __init__(self, path: Path, classes: Sequence[ClassInfo], attributes: Mapping[str, Any]) -> None:
        self._path = path
        self._attributes = {"format": FORMAT, "classes": json.dumps([asdict(info) for info in classes])}
        self._attributes |= {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in attributes.items()
        }
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open the file under a temporary name."""
        self._file = self._stack.enter_context(creating(self._path))
        self._file.attrs.update(self._attributes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the file into its place, or remove the temporary one after an exception."""
        self._stack.__exit__(kind, error, traceback)

    def add(
        self,
        info: TileInfo,
        probs: NDArray[np.float32],
        mask: NDArray[np.uint8],
        valid: NDArray[np.bool_],
        clean: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
        calibrate: Callable[[NDArray[np.float32]], NDArray[np.floating]] | None = None,
    ) -> None:
        """Add the tile `info` with arrays `(H, W, …)` of its stored size; its padding is cut off here.

        `clean` makes the label map `(h, w)` that is stored of the one without padding, `calibrate` the probabilities
        `(h, w, K)` that `confidence` is of.
        """
        inside = info.interior()
        attributes = {key: value for key, value in info.attributes.items() if value is not None}
        attributes |= {"region": info.region, "subregion": info.subregion}
        if info.transform is not None:
            a, b, c, d, e, f = info.transform
            top, left = inside[0].start, inside[1].start
            attributes["transform"] = [a, b, c + a * left + b * top, d, e, f + d * left + e * top]
        group = self._file.create_group(info.name)
        # Shuffling the bytes and the lightest gzip: smaller and faster than any level without shuffling.
        packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        cut = probs[inside]
        chunks = (min(256, cut.shape[0]), min(256, cut.shape[1]), cut.shape[2])
        group.create_dataset("probs", data=cut, dtype=np.float32, chunks=chunks, **packed)
        labels = clean(label(cut)) if clean else label(cut)
        group.create_dataset("labels", data=labels, **packed)
        if calibrate:
            confidence = label_probability(calibrate(cut), labels)
            group.create_dataset("confidence", data=confidence, dtype=np.float32, chunks=chunks[:2], **packed)
        group.create_dataset("mask", data=mask[inside], dtype=np.uint8, **packed)
        group.create_dataset("valid", data=valid[inside], dtype=np.uint8, **packed)
        group.attrs.update(attributes)
        self._file.raise_write_error()


@dataclass(frozen=True)
class Prediction:
    """One tile of a prediction file; arrays are `(H, W)`."""

    name: str
    region: str
    labels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    valid: NDArray[np.bool_]


class PredictionFile:
    """A prediction file, read; a missing, a damaged and a wrong kind of file raise `UserError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def attributes(self) -> dict[str, str]:
        """The file's attributes; all but the plain words are JSON."""
        with self._reading() as file:
            attributes = {key: str(value) for key, value in file.attrs.items()}
        if attributes.get("format") != FORMAT:
            raise UserError(f"{self.path}: not a prediction file ({FORMAT}); {self._remedy}")
        return attributes

    @cached_property
    def run(self) -> str:
        """Name of the run that predicted."""
        return self.attributes["run"]

    @cached_property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The class list; ids are places in it."""
        return tuple(ClassInfo(**entry) for entry in json.loads(self.attributes["classes"]))

    @property
    def mask_note(self) -> str:
        """What `TileFile.mask_note` says of the tiles that were predicted."""
        return self.attributes.get("mask_note", "")

    @cached_property
    def source(self) -> Path:
        """The tile file that was predicted."""
        return Path(self.attributes["source"])

    @property
    def is_calibrated(self) -> bool:
        """Whether the confidence is of calibrated probabilities."""
        return self.attributes.get("calibration", "null") != "null"

    @cached_property
    def region_by_tile(self) -> dict[str, str]:
        """The tiles, sorted by name, and the region of each."""
        _ = self.attributes
        with self._reading() as file:
            return {name: str(file[name].attrs["region"]) for name in sorted(file)}

    def select(self, regions: Sequence[str] | None = None) -> list[str]:
        """Return the tiles of these regions, compared for equality; None or none given: all.

        Raises:
            UserError: If no tile has one of the regions; the message lists the known ones.
        """
        present = sorted(set(self.region_by_tile.values()))
        if unknown := [region for region in regions or () if region not in present]:
            raise UserError(
                f"{self.path}: no predicted tile of region {', '.join(unknown)}; its regions are {', '.join(present)}"
            )
        return [name for name, region in self.region_by_tile.items() if not regions or region in regions]

    def read(self, name: str) -> Prediction:
        """Return tile `name`."""
        with self._reading() as file:
            group = file[name]
            return Prediction(
                name=name,
                region=str(group.attrs["region"]),
                labels=group["labels"][()],
                mask=group["mask"][()],
                valid=group["valid"][()] != 0,
            )

    def probs(self, name: str) -> NDArray[np.float32]:
        """Return the probabilities `(H, W, K)` of tile `name`."""
        with self._reading() as file:
            return file[name]["probs"][()]

    def confidence(self, name: str) -> NDArray[np.float32]:
        """Return the probability `(H, W)` of the label of tile `name`: calibrated if the predictions are."""
        with self._reading() as file:
            group = file[name]
            if "confidence" in group:
                return group["confidence"][()]
            return label_probability(group["probs"][()], group["labels"][()]).astype(np.float32)

    @property
    def _remedy(self) -> str:
        return f"predict again: python predict.py -n {self.path.parent.name.replace('+', ' ')}"

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        """Open the file for one read; what HDF5 says of a broken file becomes a `UserError`."""
        if not self.path.is_file():
            raise UserError(f"no predictions {self.path}: make them with python predict.py -n {self.path.parent.name}")
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(
                f"{self.path}: can't be read, it may be truncated or damaged ({error}); {self._remedy}"
            ) from error
