"""Patches for training and validation, as `keras.utils.PyDataset`s that workers can share.

A training patch is a pure function of (seed, epoch, index): which worker makes it, and when, does not matter.
A modality that is absent from a tile is NaN in its patches, all of it; in others, nodata is 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from console import UserError
from data.augmentation import Augmentation, augment
from data.location import Location, place_of_tile
from data.normalisation import Statistics, scaled
from data.sampling import CentredPatches
from data.tiles import IGNORE, TileFile
from data.windows import Window, grid

Patch = tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8], NDArray[np.float32] | None]
"""Inputs `(S, S, C)` by modality, labels `(S, S)`, and the location `(L,)` of models that take one."""


@dataclass(frozen=True)
class PatchSource:
    """The tiles that patches are cut from and how they are scaled.

    Args:
        file: The tile file; opened in the worker that reads.
        names: Tiles to use, of `file`.
        modalities: Modalities in the model's order.
        statistics: What values are scaled with; None uses them as they are (published files).
        patch: Side of a patch in pixels.
        location: What the model's `location` input takes; None for models without.
        centred: Which of the training patches are centred on rare classes; None draws all uniformly.
    """

    file: TileFile
    names: tuple[str, ...]
    modalities: tuple[str, ...]
    statistics: Statistics | None
    patch: int
    location: Location | None = None
    centred: CentredPatches | None = None
    sizes: tuple[tuple[int, int], ...] = field(init=False)
    regions_of_tiles: tuple[str, ...] = field(init=False)
    present_of_tiles: tuple[tuple[str, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Read the sizes, regions and modalities of the tiles once."""
        infos = [self.file.info(name) for name in self.names]
        object.__setattr__(self, "sizes", tuple((info.height, info.width) for info in infos))
        object.__setattr__(self, "regions_of_tiles", tuple(info.region for info in infos))
        present = [self.file.present(name) for name in self.names]
        object.__setattr__(
            self, "present_of_tiles", tuple(tuple(m for m in self.modalities if m in there) for there in present)
        )

    @property
    def whole_patches(self) -> int:
        """Whole non-overlapping patches that the tiles hold; a tile smaller than a patch counts as one."""
        return sum(max(1, h // self.patch) * max(1, w // self.patch) for h, w in self.sizes)

    def vector(self, tile: int, window: Window, withheld: bool = False) -> NDArray[np.float32] | None:
        """Return what the `location` input is given for a window of tile number `tile`; None without that input.

        Args:
            tile: Number of the tile.
            window: The window, whose centre counts.
            withheld: Whether the region is not to be told.
        """
        if self.location is None:
            return None
        place = place_of_tile(self.file.info(self.names[tile]), window)
        return self.location.encode(replace(place, region="") if withheld else place)

    def cut(self, tile: int, window: Window) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
        """Return scaled inputs (patch, patch, C) and labels (patch, patch) of a window of tile number `tile`.

        Labels are `IGNORE` where the tile is invalid, unlabelled, or ends before the window does; there, inputs
        beyond the tile are 0. A modality that is absent from the tile is NaN everywhere.
        """
        name = self.names[tile]
        present = self.present_of_tiles[tile]
        raw = self.file.read(name, self.modalities, window)
        labels = self.file.labels(name, window)
        inputs = {key: scaled(self.statistics, key, x) if key in present else x for key, x in raw.items()}
        below, right = self.patch - labels.shape[0], self.patch - labels.shape[1]
        if below or right:
            beyond = ((0, below), (0, right), (0, 0))
            inputs = {
                key: np.pad(x, beyond, constant_values=0.0 if key in present else np.nan) for key, x in inputs.items()
            }
            labels = np.pad(labels, ((0, below), (0, right)), constant_values=IGNORE)
        return inputs, labels


def sample_window(source: PatchSource, seed: int, epoch: int, index: int) -> tuple[int, Window, np.random.Generator]:
    """Return tile number, window and generator of training patch `index` of `epoch`: a pure function.

    A tile is drawn uniformly whatever its size, then an offset uniformly among all that keep the window inside; of the
    patches that `source.centred` sets aside for a class, one of all its pixels, and the window around it that lies in
    the tile.
    """
    random = np.random.default_rng([seed, epoch, index])
    pixel = source.centred.draw(random) if source.centred else None
    if pixel is None:
        tile = int(random.integers(len(source.names)))
        top, left = (int(random.integers(max(1, length - source.patch + 1))) for length in source.sizes[tile])
    else:
        tile = pixel.tile
        place = pixel.find(source.file, source.names[tile])
        top, left = (
            min(max(0, at - source.patch // 2), max(0, length - source.patch))
            for at, length in zip(place, source.sizes[tile], strict=True)
        )
    return tile, Window(top, left, source.patch, source.patch), random


class _Batches(keras.utils.PyDataset, ABC):
    """Batches of patches as (inputs by modality, labels by output): what `fit` and `evaluate` take.

    `error`: what the user can mend and a worker ran into; backends wrap such an exception in one of their own.
    """

    error: UserError | None = None

    def __init__(self, source: PatchSource, outputs: Sequence[str], workers: int) -> None:
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=8)
        self.source, self.outputs = source, tuple(outputs)

    @abstractmethod
    def _patch(self, index: int) -> Patch:
        """Return inputs, labels and location of patch `index`."""

    def _batch(self, indices: range) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            patches = [self._patch(index) for index in indices]
        except UserError as error:
            self.error = error
            raise
        inputs = {m: np.stack([patch[0][m] for patch in patches]) for m in self.source.modalities}
        if self.source.location is not None:
            inputs["location"] = np.stack([patch[2] for patch in patches if patch[2] is not None])
        labels = np.stack([patch[1] for patch in patches]).astype(np.int32)
        return inputs, dict.fromkeys(self.outputs, labels)


class TrainingPatches(_Batches):
    """The training batches of one epoch.

    Args:
        source: Where patches are cut.
        outputs: Names of the model's outputs; each gets the labels.
        batch: Patches a batch.
        steps: Batches in the epoch.
        seed: Seed of the run.
        epoch: The epoch; another epoch is another dataset, so that no worker can be an epoch behind.
        augmentation: What is done to patches.
        workers: Threads that cut and augment.
        unknown_region: Probability that a patch's region is withheld from a `location` input of regions.
        first: Batches to leave out at the start, for an epoch that goes on in its middle.
    """

    def __init__(
        self,
        source: PatchSource,
        outputs: Sequence[str],
        batch: int,
        steps: int,
        seed: int,
        epoch: int,
        augmentation: Augmentation,
        workers: int = 1,
        unknown_region: float = 0.0,
        first: int = 0,
    ) -> None:
        super().__init__(source, outputs, workers)
        self.batch, self.steps, self.seed, self.epoch = batch, steps, seed, epoch
        self.augmentation, self.unknown_region, self.first = augmentation, unknown_region, first

    def __len__(self) -> int:
        """Return the batches in the epoch, from the first on."""
        return self.steps - self.first

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return batch `index` after the first."""
        index += self.first
        return self._batch(range(index * self.batch, (index + 1) * self.batch))

    def sample(self, index: int) -> tuple[int, Window, np.random.Generator]:
        """Return tile number, window and generator of patch `index` of the epoch."""
        return sample_window(self.source, self.seed, self.epoch, index)

    def _patch(self, index: int) -> Patch:
        tile, window, random = self.sample(index)
        inputs, labels = augment(*self.source.cut(tile, window), self.augmentation, random)
        withheld = random.random() < self.unknown_region
        return inputs, labels, self.source.vector(tile, window, withheld)


class WholePatches(_Batches):
    """All of the tiles once, in patches side by side, for validation.

    The last patch of a row or column is moved back to the edge; what an earlier patch covered is ignored in it, so
    that every pixel counts exactly once.

    Args:
        source: Where patches are cut.
        outputs: Names of the model's outputs; each gets the labels.
        batch: Patches a batch.
        workers: Threads that cut.
    """

    def __init__(self, source: PatchSource, outputs: Sequence[str], batch: int, workers: int = 1) -> None:
        super().__init__(source, outputs, workers)
        self.batch = batch
        self.patches = [
            (tile, window)
            for tile, size in enumerate(source.sizes)
            for window in grid(*size, source.patch, source.patch)
        ]

    def __len__(self) -> int:
        """Return the number of batches; the last can be smaller."""
        return -(-len(self.patches) // self.batch)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return batch `index`."""
        return self._batch(range(index * self.batch, min((index + 1) * self.batch, len(self.patches))))

    def _patch(self, index: int) -> Patch:
        tile, window = self.patches[index]
        inputs, labels = self.source.cut(tile, window)
        patch = self.source.patch
        labels[: -window.top % patch] = IGNORE
        labels[:, : -window.left % patch] = IGNORE
        return inputs, labels, self.source.vector(tile, window)
