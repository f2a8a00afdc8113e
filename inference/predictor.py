"""A model together with all that it takes to apply it: inputs in order, scaling, classes, patch size.

Rebuilt from what a run stored (`from_run`), or from a recipe and a weights file without a record
(`from_weights`).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from console import UserError, import_keras, warn
from data.location import Location, location_of, place_of_tile
from data.normalisation import Statistics, published, scaled
from data.tiles import PUBLISHED_REGIONS, ClassInfo, TileFile, TileInfo, find_dataset

if TYPE_CHECKING:
    import keras

    from checkpoints import Blueprint
    from inference.engines import OpenVino
    from training.record import Record

TILES = Path("tiles")
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class Offer(Protocol):
    """What a model may be applied to, a tile file or a scene, as far as it decides whether and how."""

    @property
    def path(self) -> Path:
        """What messages call it."""

    @property
    def bands(self) -> dict[str, list[str]]:
        """Band names by modality."""

    @property
    def modalities(self) -> dict[str, int]:
        """Channel counts by modality."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The class list."""

    @property
    def has_classes(self) -> bool:
        """Whether it has a class list of its own."""

    @property
    def statistics(self) -> Statistics | None:
        """What its values were, or are to be, scaled with; None: they are scaled as the published ones."""

    @property
    def digest(self) -> str:
        """What tells its content from another's; empty where there is nothing to tell."""

    @property
    def chosen(self) -> Mapping[str, Sequence[str]]:
        """The bands that were chosen by name, by modality."""

    @property
    def level_note(self) -> str:
        """What who uses the published weights must know of its reflectance."""

    def choose(
        self, bands: Mapping[str, int | Sequence[str]] | None = None, classes: Sequence[ClassInfo] | None = None
    ) -> Self:
        """Return it with certain bands and a class list."""

    def check(self, modalities: Sequence[str], *, labelled: bool = True) -> list[str]:
        """Return its problems in plain sentences."""


@dataclass(frozen=True)
class InputSet:
    """The inputs that one or more runs read alike: `prefix` stands in front of their names in a batch.

    `bands`: modality → names of its bands in the model's order. `statistics`: what they are scaled with; None: not.
    `location`: what their `location` input takes; None without that.
    """

    prefix: str
    bands: Mapping[str, tuple[str, ...]]
    statistics: Statistics | None
    location: Location | None = None


@dataclass(frozen=True)
class Predictor:
    """A model and its surroundings.

    Attributes:
        name: Name of the run.
        model: Takes a dict by modality, returns a dict with `output`, `(N, P, P, K)`.
        modalities: Channel counts, in the model's order.
        classes: The class list; with one probability (K = 1) the two classes it tells apart.
        statistics: What values are scaled with; None where the model takes those of published files
            as they are.
        patch_size: Side of a patch in pixels.
        location: What the model's `location` input takes; None for models without.
        bands: Modality → names of the bands that are read of it, in the model's order; of the others, all.
        band_names: Modality → names that its bands had in training, as far as they are known.
        smallest_px: Objects of fewer pixels are cleaned away from label maps (`inference.cleaning`); None: none.
        described: What else a prediction file says of its making.
        engine: What predicts instead of the Keras model, see `inference.engines`; None: that model itself.
        exports: Copies of the model for other engines that were made already, by the engine's name.
    """

    name: str
    model: keras.Model
    modalities: dict[str, int]
    classes: tuple[ClassInfo, ...]
    statistics: Statistics | None
    patch_size: int
    location: Location | None = None
    bands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    band_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    smallest_px: int | None = None
    described: dict[str, Any] = field(default_factory=dict)
    engine: OpenVino | None = None
    exports: dict[str, OpenVino] = field(default_factory=dict, compare=False, repr=False)

    @property
    def engine_name(self) -> str:
        """What predicts: `keras`, or another engine and its precision."""
        return self.engine.name if self.engine else "keras"

    @property
    def num_outputs(self) -> int:
        """Number K of probabilities of a pixel."""
        return int(self.model.output["output"].shape[-1])

    def __call__(self, batch: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the probabilities `(N, P, P, K)` of a batch of patches by modality."""
        if self.engine:
            return self.engine(batch)
        return np.asarray(self.model.predict_on_batch(dict(batch))["output"], np.float32)

    def inputs(self, source: TileFile, info: TileInfo, statistics: Statistics | None) -> dict[str, NDArray[np.float32]]:
        """Read a tile; return the model's inputs: scaled `(H, W, C)` by modality, and `location` `(L,)`.

        A modality that is absent from the tile is NaN everywhere; in others, nodata is 0. The location is that of the
        tile's centre, as in the published predictions.
        """
        present = source.present(info.name)
        inputs = {
            name: scaled(statistics, name, values) if name in present else values
            for name, values in source.read(info.name, list(self.modalities)).items()
        }
        if self.location is not None:
            inputs["location"] = self.location.encode(place_of_tile(info))
        return inputs

    def scaling(self, source: Offer) -> Statistics | None:
        """Return what the values of `source` are to be scaled with for this model; None: only NaN becomes 0.

        Raises:
            UserError: If its values are scaled already in another way than those the model was trained on.
        """
        stored, modalities = source.statistics, list(self.modalities)
        if self.statistics is None:
            return None if stored is None or stored.applied else _like_published(source, stored, modalities)
        if stored is None:
            raise UserError(
                f"{source.path}: its values are scaled already (a published file, without statistics), "
                f"{self.name!r} was trained on values scaled with statistics of {self.statistics.fitted_on}; "
                "predict tiles made by prepare.py, or train on the published ones"
            )
        if stored.applied or self.statistics.applied:
            known = stored.applied and set(modalities) <= set(stored.shift)
            if not known or stored.select(modalities) != self.statistics.select(modalities):
                raise UserError(
                    f"{source.path}: its values are not scaled as those that {self.name!r} was trained on "
                    f"({self.statistics.fitted_on}); prepare the tiles as those of the run"
                )
        return self.statistics


def check_tiles(source: Offer, name: str, modalities: Mapping[str, int], classes: Sequence[ClassInfo]) -> None:
    """Raise one `UserError` with everything that keeps a model from predicting the tiles of `source`.

    The bands of `source` are those that the model takes (`TileFile.choose`). Masks without a class list are taken to be
    of the model's classes, if they can be.

    Args:
        source: The tiles; all of them are read once.
        name: What the message calls the model.
        modalities: Channel counts of the model's inputs.
        classes: What the model predicts.
    """
    if modalities.items() - source.modalities.items():
        raise UserError(
            f"{source.path}: these tiles do not have what {name!r} takes.\n"
            f"  it needs:       {_listed(modalities)}\n"
            f"  the tiles have: {_listed(source.modalities)}\n"
            "prepare tiles with these modalities, or use a model of the ones that there are"
        )
    if not source.has_classes and len(source.classes) in (2, len(classes)):
        source = source.choose(classes=classes)
    if [info.glacier for info in source.classes] != [info.glacier for info in classes]:
        theirs, ours = (
            ", ".join(info.name + (" (glacier)" if info.glacier else "") for info in listed)
            for listed in (source.classes, classes)
        )
        raise UserError(
            f"{source.path}: its classes are {theirs}; {name!r} predicts {ours}: "
            "prepare the tiles with the classes of the run"
        )
    if problems := source.check(list(modalities), labelled=False):
        raise UserError("these tiles can't be predicted:\n  " + "\n  ".join(problems))


def find_run(name: str) -> Record:
    """Return the record of run `name`.

    Raises:
        UserError: If there is none: the message lists the known runs and says what makes this one, beginning
            with the tiles where there are none either.
    """
    from training.record import load_record, run_names

    known = run_names()
    if name not in known:
        if not any(TILES.glob("*/*.hdf5")):
            find_dataset(root=TILES)
        runs = f"there are: {', '.join(known)}" if known else "there is none yet"
        train = f"-m {name}" if (RECIPES / f"{name}.yaml").is_file() else f"-m ARCHITECTURE -n {name}"
        raise UserError(f"no run named {name!r} in weights/, {runs}; train it: python train.py {train}")
    return load_record(name)


def from_run(record: Record, precision: str = "float32") -> Predictor:
    """Rebuild a run from its record and `weights/NAME.weights.h5`.

    Raises:
        UserError: If its weights do not fit its record.
    """
    from training.record import weights_path

    weights = weights_path(record.name)
    model = _build(
        record.architecture,
        record.inputs,
        record.num_outputs,
        record.patch_size,
        record.options,
        weights,
        precision,
    )
    return Predictor(
        name=record.name,
        model=model,
        modalities=record.inputs,
        classes=record.class_list,
        statistics=record.scaling(),
        patch_size=record.patch_size,
        location=location_of(record.location, record.regions),
        bands=record.chosen_bands,
        band_names={modality.name: tuple(modality.bands) for modality in record.modalities},
        smallest_px=record.smallest_px,
        described={"architecture": record.architecture, "weights": str(weights), "precision": precision},
    )


def from_weights(recipe_name: str, weights: Path, source: Offer, name: str, precision: str = "float32") -> Predictor:
    """Build the architecture of a recipe for the tiles of `source`, and load a weights file into it.

    Inputs, their order, patch size and options are the recipe's, channel counts and classes those of the
    tiles. The values are taken to be scaled as those of the published datasets, and regions to be theirs. Of
    architectures that concatenate their inputs, the file tells whether its output is a sigmoid or a softmax; what
    values a PyTorch file expects is not known, and the tiles' own statistics scale them.

    Raises:
        UserError: If the tiles lack an input of the recipe or are damaged, or the weights are of another model.
    """
    import_keras()
    import architectures
    import checkpoints
    from training.recipe import load_recipe

    recipe = load_recipe(recipe_name)
    missing = [modality for modality in recipe.inputs if modality not in source.modalities]
    if missing:
        raise UserError(
            f"{source.path}: these tiles have {_listed(source.modalities)}; the recipe {recipe_name!r} takes "
            f"{', '.join(recipe.inputs)}: predict tiles that have {', '.join(missing)}, too"
        )
    source = source.choose(recipe.bands, recipe.class_list)
    modalities = {modality: source.modalities[modality] for modality in recipe.inputs}
    architecture = recipe.architecture.name
    options = checkpoints.adapt_options(architecture, recipe.architecture.options, weights)
    check_tiles(source, recipe.name, modalities, source.classes)
    location = location_of(recipe.location, PUBLISHED_REGIONS)
    if location is not None:
        options["location_size"] = len(location.channels)
    patch_size = recipe.training.patch_size
    num_outputs = 1 if recipe.outputs == "sigmoid" else len(source.classes)
    kind = checkpoints.inspect(weights).kind
    if "fusion" in architectures.options_of(architecture) and kind != "keras2":
        blueprint = checkpoints.blueprint_of(architecture, options, weights, num_outputs, patch_size)
        _check_fit(blueprint, weights, modalities, source)
        num_outputs, options = blueprint.num_classes, blueprint.options
    statistics = None
    if kind == "pytorch" and source.statistics is not None and not source.statistics.applied:
        statistics = source.statistics.select(list(modalities))
        warn(
            f"how the values that {weights} was trained on were scaled is not known; these are scaled with the "
            f"statistics of {source.path} ({statistics.fitted_on}), which the weights may not expect"
        )
    model = _build(architecture, modalities, num_outputs, patch_size, options, weights, precision)
    return Predictor(
        name=name,
        model=model,
        modalities=modalities,
        classes=source.classes,
        statistics=statistics,
        patch_size=patch_size,
        location=location,
        bands={modality: tuple(names) for modality, names in source.chosen.items()},
        band_names={modality: tuple(source.bands[modality]) for modality in modalities},
        smallest_px=recipe.cleaning.smallest_px if recipe.cleaning else None,
        described={"architecture": architecture, "weights": str(weights), "precision": precision},
    )


def free_models() -> None:
    """Give the memory of models that nothing refers to any more back to the system, as far as backends do."""
    import keras

    keras.backend.clear_session()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's alone
    if trim is not None:
        trim(0)


def _check_fit(blueprint: Blueprint, weights: Path, modalities: Mapping[str, int], source: Offer) -> None:
    """Raise `UserError` where the model of a weights file has other inputs or outputs than the tiles of `source`."""
    reads = sum(modalities.values()) if blueprint.concatenated else tuple(modalities.values())
    stored = blueprint.channels[0] if blueprint.concatenated else blueprint.channels
    if reads != stored:
        raise UserError(
            f"{weights}: its model reads {stored} channels; the recipe's inputs are {_listed(modalities)} in "
            f"{source.path}: list those that the weights were trained with under `inputs`, in their order"
        )
    count, classes = blueprint.num_classes, source.classes
    if count != len(classes) and (count, len(classes)) != (1, 2):
        names = ", ".join(info.name for info in classes)
        raise UserError(
            f"{weights}: its model has {count} output{'s' if count > 1 else ''}; {source.path} has {len(classes)} "
            f"classes ({names}): predict tiles with the classes that the weights were trained for"
        )


def _build(
    architecture: str,
    modalities: dict[str, int],
    num_outputs: int,
    patch_size: int,
    options: Mapping[str, Any],
    weights: Path,
    precision: str,
) -> keras.Model:
    import_keras()
    import keras

    import architectures
    import checkpoints
    from training.precision import POLICIES

    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        model = architectures.build(architecture, modalities, num_outputs, patch_size, **options)
    finally:
        keras.config.set_dtype_policy(former)
    checkpoints.load_weights(model, weights)
    # A graph is enough, and on CPUs faster than XLA; JAX knows no other way than to compile.
    model.jit_compile = keras.backend.backend() == "jax"
    return model


def _like_published(source: Offer, stored: Statistics, modalities: list[str]) -> Statistics:
    """Return the published datasets' scaling, and the file's own for modalities that those do not have."""
    if source.level_note:
        warn(source.level_note)
    known = published(source.chosen)
    own = [name for name in modalities if name not in known.shift]
    if own:
        warn(
            f"{', '.join(own)}: how the published data were scaled is not known; scaled with the statistics "
            f"of {source.path} ({stored.fitted_on}), which the weights may not expect"
        )
    rest = stored.select(own)
    fitted_on = known.fitted_on + (f"; {', '.join(own)}: {stored.fitted_on}" if own else "")
    mixed = Statistics(known.method, known.shift | rest.shift, known.scale | rest.scale, fitted_on)
    return mixed.select(modalities)


def _listed(modalities: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count} channel{'s' if count > 1 else ''})" for name, count in modalities.items())
