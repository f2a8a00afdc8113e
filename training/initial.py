"""Where a run starts from: another run, or a file of weights; and the parts of its network that are not trained."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

import architectures
import checkpoints
from architectures.torch_layers import module_path
from checkpoints import Blueprint, EncoderWeights, Meaning, Transfer
from console import UserError, warn
from data.location import Coordinates, Regions, location_of
from data.normalisation import Statistics, published, published_bands
from data.tiles import PUBLISHED_REGIONS
from training.record import WEIGHTS, Record, load_record, record_path, run_names, weights_path

if TYPE_CHECKING:
    from training.run import Plan

# What the published files read, by GlaViTU's variant and the counts of channels, where these tell it.
_PUBLISHED_INPUTS = {
    ("2023", (6, 2, 2)): ("optical", "dem", "sar"),
    ("2025", (6, 2)): ("optical", "dem"),
    ("2025", (6, 2, 1)): ("optical", "dem", "thermal"),
}
_PUBLISHED_LOCATION = {
    len(location.channels): location.channels for location in (Regions(PUBLISHED_REGIONS), Coordinates())
}


@dataclass(frozen=True)
class Start:
    """What a run started from, and what it took.

    Attributes:
        source: What the user named: a run or a file.
        path: The file of weights.
        digest: SHA-256 of that file's bytes.
        transfer: What became of each weight.
        options: Options of the architecture in which the source differs: (here, in the source).
        scaling: In words, what values are scaled with.
    """

    source: str
    path: Path
    digest: str
    transfer: Transfer
    options: dict[str, tuple[Any, Any]]
    scaling: str

    def __str__(self) -> str:
        """Return the report that is printed before training."""
        file = "" if self.source == str(self.path) else f" ({self.path})"
        lines = [f"start from {self.source}{file}: {self.transfer}"]
        if self.options:
            pairs = (f"{key} {here} here, {there} in the source" for key, (here, there) in self.options.items())
            lines.append(f"  options that differ: {'; '.join(pairs)}")
        return "\n".join([*lines, f"  scaling: {self.scaling}"])

    def to_json(self) -> dict[str, Any]:
        """Return what the run's record says about it."""
        counts = {key: len(getattr(self.transfer, key)) for key in ("taken", "adapted", "left", "unused")}
        return {"source": self.source, "file": str(self.path), "digest": self.digest, **counts, "scaling": self.scaling}


@dataclass(frozen=True)
class EncoderStart:
    """The weights of an encoder that a run started from; all others are random.

    Attributes:
        path: The file of weights.
        digest: SHA-256 of that file's bytes.
        weights: What was taken.
        left: How many weights of the model are not the encoder's.
    """

    path: Path
    digest: str
    weights: EncoderWeights
    left: int

    def __str__(self) -> str:
        """Return the report that is printed before training."""
        return f"start from {self.path}: {self.weights}; {self.left} weights left at their initial values"

    def to_json(self) -> dict[str, Any]:
        """Return what the run's record says about it."""
        return {
            "source": str(self.path),
            "file": str(self.path),
            "digest": self.digest,
            "encoder": self.weights.encoder,
            "taken": len(self.weights.taken),
            "left": self.left,
            "unused": len(self.weights.ignored),
            "first_convolution": self.weights.first_convolution,
        }


@dataclass(frozen=True)
class _Source:
    """A model with its weights, and what it was made for; `statistics` scale raw values as it expects them."""

    model: keras.Model
    options: dict[str, Any]
    meaning: Meaning
    statistics: Statistics | None


def initialise(plan: Plan, source: str, inputs: Sequence[str] = (), weights: Path = WEIGHTS) -> tuple[Plan, Start]:
    """Start the model of `plan` from `source`; return the plan as it is then, and the report.

    Where the first weights of a channel are the source's, its values are scaled as the source's were: the network
    expects them so. Every other channel is scaled with the dataset's own statistics, and tiles that are scaled
    already are used as they are.

    Args:
        plan: A plan whose run has not begun.
        source: Name of a run in `weights`, or a file of weights, with the run's record beside it or without.
        inputs: The modalities that a file without a record was trained on, in its order; () where the file is a
            published one whose channels tell.
        weights: Folder of weights and records.

    Raises:
        UserError: There is no such run or file, it is of another architecture or damaged, its inputs are not known,
            or nothing of it fits.
    """
    path, record = _find(source, weights)
    if record is None:
        found = _from_file(plan, path, tuple(inputs))
    elif inputs:
        raise UserError(f"--init-inputs is for files without a record; {path} has one: {', '.join(record.inputs)}")
    else:
        found = _from_run(plan, path, record)

    location = plan.train.location.channels if plan.train.location else None
    bands = {modality: plan.train.file.bands[modality] for modality in plan.recipe.inputs}
    meaning = _meaning(bands, [c.name for c in plan.train.file.classes], location)
    transfer = checkpoints.transfer(plan.model, found.model, meaning, found.meaning)
    if not transfer.taken and not transfer.adapted:
        raise UserError(
            f"--init {source}: nothing of it fits this run's {plan.recipe.architecture.name}, all shapes differ; set "
            "the options of the architecture (width, depth, …) as the source has them"
        )
    initial = [one.name for one in (*transfer.left, *transfer.adapted) if one.partial]
    if untrained := [name for name in initial if _within(name, plan.recipe.training.frozen)]:
        raise UserError(
            f"--init {source}: training.frozen would keep weights that are random, since the source has nothing for "
            f"them: {', '.join(untrained[:5])}{', …' if len(untrained) > 5 else ''}; freeze less\n{transfer}"
        )
    statistics, scaling = _scaling(plan, found.statistics, transfer.channels)
    ours = architectures.options_of(plan.recipe.architecture.name) | plan.options
    differing = {
        key: (value, found.options[key])
        for key, value in ours.items()
        if key not in ("location_size", "deep_supervision")  # those are seen in what is taken
        and str(found.options.get(key, value)) != str(value)
    }
    start = Start(source, path, _digest(path), transfer, differing, scaling)
    train, val = (dataclasses.replace(patches, statistics=statistics) for patches in (plan.train, plan.val))
    return dataclasses.replace(plan, train=train, val=val, init=start.to_json()), start


def initialise_encoder(plan: Plan, path: Path) -> tuple[Plan, EncoderStart]:
    """Give the encoder of the model of `plan` the weights in `path`; return the plan as it is then, and the report.

    Inputs are scaled with the dataset's statistics, as without.

    Raises:
        UserError: The file does not fit (`checkpoints.load_encoder`), or layers that are frozen would stay random.
    """
    weights = checkpoints.load_encoder(plan.model, path)
    layers = {name.rpartition(".")[0] for name in weights.taken}
    others = [name for layer in plan.model.layers if layer.weights and (name := module_path(layer.name)) not in layers]
    if random := [name for name in others if _within(name, plan.recipe.training.frozen)]:
        raise UserError(
            f"--encoder-weights {path}: training.frozen would keep weights that are random, since the file has the "
            f"encoder's alone: {', '.join(random[:5])}{', …' if len(random) > 5 else ''}; freeze less"
        )
    start = EncoderStart(path, _digest(path), weights, len(plan.model.weights) - len(weights.taken))
    return dataclasses.replace(plan, init=start.to_json()), start


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def continued(plan: Plan, init: dict[str, Any] | None, statistics: dict[str, Any] | None) -> Plan:
    """Return `plan` as the run was that is resumed: its inputs scaled and its start told as they were.

    Args:
        plan: A plan of the run's recipe and data; the state that is resumed has the weights.
        init: What the run's state says that it started from.
        statistics: What the run's state says that its inputs are scaled with.
    """
    if init is None:
        return plan
    scaling = None if statistics is None else Statistics.from_json(statistics)
    train, val = (dataclasses.replace(patches, statistics=scaling) for patches in (plan.train, plan.val))
    return dataclasses.replace(plan, train=train, val=val, init=init)


def freeze(model: keras.Model, parts: Sequence[str]) -> None:
    """Exclude `parts` of `model` from training.

    A part is a layer by its name (`checkpoints.named_layers`) with all that is in it: `fusion`, `setr`,
    `setr/transformer_block_3`, `fusion/branches/dem`; or, of names that are paths, their beginning: `encoder`,
    `encoder.layer1`. Batch normalisation in it uses and keeps its moving statistics.

    Raises:
        UserError: There is no such part (the message lists the outermost), or nothing is left to train.
    """
    layers = {name: layer for name, layer in checkpoints.named_layers(model).items() if layer.weights}
    for part in parts:
        chosen = [layer for name, layer in layers.items() if _within(name, [part])]
        if not chosen:
            outermost = ", ".join(dict.fromkeys(checkpoints.part_of(name) for name in layers))
            raise UserError(
                f"training.frozen: no layer {part!r}; the parts of this model are {outermost}, "
                "and parts of them such as fusion/branches or encoder.layer1"
            )
        for layer in chosen:
            layer.trainable = False
    if not model.trainable_weights:
        raise UserError(f"training.frozen: with {', '.join(parts)} frozen there is nothing left to train")


def _within(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith((f"{part}/", f"{part}.")) for part in parts)


def _find(source: str, weights: Path) -> tuple[Path, Record | None]:
    """Return the file of weights that `source` names, and the record beside it if there is one."""
    known = run_names(weights)
    if source in known:
        return weights_path(source, weights), load_record(source, weights)
    path = Path(source)
    if not path.exists():
        runs = f"the runs in {weights}/ are: {', '.join(known)}" if known else f"{weights}/ holds no run"
        raise UserError(f"--init {source}: no run of this name and no such file; {runs}")
    name = path.name.removesuffix(".weights.h5")
    if name != path.name and record_path(name, path.parent).is_file():
        return path, load_record(name, path.parent)
    return path, None


def _from_run(plan: Plan, path: Path, record: Record) -> _Source:
    architecture = plan.recipe.architecture.name
    if record.architecture != architecture:
        raise UserError(
            f"--init {record.name}: that run is of {record.architecture}, this recipe of {architecture}: start from a "
            f"run of {architecture}, or train with -m {record.architecture}"
        )
    model = architectures.build(architecture, record.inputs, record.num_outputs, record.patch_size, **record.options)
    checkpoints.load_weights(model, path)
    bands = {modality.name: modality.bands for modality in record.modalities}
    location = location_of(record.location, record.regions)
    # A run without statistics was trained on published tiles.
    statistics = record.scaling() or published(bands)
    meaning = _meaning(bands, [c.name for c in record.classes], location.channels if location else None)
    return _Source(model, architectures.options_of(architecture) | record.options, meaning, statistics)


def _from_file(plan: Plan, path: Path, inputs: tuple[str, ...]) -> _Source:
    architecture, patch_size = plan.recipe.architecture.name, plan.recipe.training.patch_size
    outputs = plan.model.output["output"].shape[-1]
    blueprint = checkpoints.blueprint_of(architecture, plan.options, path, outputs, patch_size)
    if blueprint.concatenated:
        channels = _concatenated_inputs(plan, blueprint.channels[0], path, inputs)
    else:
        channels = dict(zip(_inputs_of(blueprint, path, inputs), blueprint.channels, strict=True))
    try:
        model = architectures.build(
            architecture, channels, blueprint.num_classes, blueprint.patch_size, **blueprint.options
        )
        checkpoints.load_weights(model, path)
    except UserError as error:
        raise UserError(
            f"--init: {error} This run's recipe {plan.recipe.name!r} is of {architecture}; a file of another "
            "architecture needs the -m of that"
        ) from None
    if blueprint.kind != "keras2":
        return _Source(model, blueprint.options, Meaning(), None)
    known = {name: bands for name, bands in published_bands().items() if len(bands) == channels.get(name)}
    meaning = dict(known)
    size = blueprint.options.get("location_size", 0)
    if size in _PUBLISHED_LOCATION:
        meaning["location"] = list(_PUBLISHED_LOCATION[size])
    return _Source(model, blueprint.options, Meaning(meaning), published().select(list(known)))


def _concatenated_inputs(plan: Plan, count: int, path: Path, inputs: tuple[str, ...]) -> dict[str, int]:
    """Return modality → channels of a file whose model reads `count` channels, one modality behind the other.

    Without names they are this run's, where these have as many channels; else they are not known.
    """
    own = dict(plan.train.file.modalities)
    if not inputs:
        ours = {modality: own[modality] for modality in plan.recipe.inputs}
        return ours if sum(ours.values()) == count else {"inputs": count}
    unknown = [modality for modality in inputs if modality not in own]
    rest = count - sum(own[modality] for modality in inputs if modality in own)
    if len(set(inputs)) < len(inputs) or len(unknown) > 1 or (rest < 1 if unknown else rest):
        known = ", ".join(f"{modality} {own[modality]}" for modality in inputs if modality in own)
        raise UserError(
            f"--init-inputs {' '.join(inputs)}: {path} reads {count} channels in all, and these have {known or 'none'} "
            "in this dataset: name each modality once, at most one that the dataset lacks"
        )
    return {modality: own.get(modality, rest) for modality in inputs}


def _inputs_of(blueprint: Blueprint, path: Path, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the modalities that a file without a record was trained on."""
    listed = ", ".join(map(str, blueprint.channels))
    if inputs:
        if len(inputs) != len(blueprint.channels) or len(set(inputs)) < len(inputs):
            raise UserError(
                f"--init-inputs {' '.join(inputs)}: {path} reads modalities of {listed} channels: name each once"
            )
        return inputs
    key = (str(blueprint.options.get("variant", "2023")), blueprint.channels)
    if blueprint.kind == "keras2" and key in _PUBLISHED_INPUTS:
        return _PUBLISHED_INPUTS[key]
    raise UserError(
        f"--init {path}: it reads modalities of {listed} channels and does not say which: name them in the order of "
        "its training, such as --init-inputs optical dem (a run's own file needs its record NAME.json beside it)"
    )


def _meaning(bands: Mapping[str, Sequence[str]], classes: Sequence[str], location: Sequence[str] | None) -> Meaning:
    """Return what is known by name; `optical_1`, `optical_2`, … stand for bands without names."""
    named = {
        modality: tuple(names)
        for modality, names in bands.items()
        if list(names) != [f"{modality}_{number + 1}" for number in range(len(names))]
    }
    return Meaning(named if location is None else {**named, "location": tuple(location)}, tuple(classes))


def _scaling(
    plan: Plan, expected: Statistics | None, channels: Mapping[str, Sequence[int | None]]
) -> tuple[Statistics | None, str]:
    """Return what values are to be scaled with, and that in words.

    Args:
        plan: Has the dataset's statistics.
        expected: The source's; None where they are not known.
        channels: By modality, for each channel the number of the source's whose weights it took, or None.
    """
    own = plan.train.statistics
    if expected is not None and expected.fitted_on == published().fitted_on and plan.train.file.level_note:
        warn(plan.train.file.level_note)
    if own is None or own.applied:
        if expected is None:
            return own, "the tiles are scaled already and used as they are; how the source's were is not known"
        scaled, common = own or published(), set(plan.recipe.inputs) & set(expected.shift)
        alike = all(
            (scaled.shift.get(m), scaled.scale.get(m)) == (expected.shift[m], expected.scale[m]) for m in common
        )
        how = "as the source's were" if alike else f"but NOT as the source's were ({expected.fitted_on})"
        return own, f"the tiles are scaled already, {how}, and used as they are"
    if expected is None:
        return own, f"all as the dataset ({own.fitted_on}); how the source's were scaled is not known"
    shift, scale = dict(own.shift), dict(own.scale)
    as_source, as_dataset = [], []
    for modality in plan.recipe.inputs:
        numbers = channels.get(modality, ()) if modality in expected.shift else ()
        if any(number is not None for number in numbers):
            as_source.append(modality)
            shift[modality], scale[modality] = (
                tuple(mine if i is None else theirs[i] for i, mine in zip(numbers, ours, strict=True))
                for ours, theirs in (
                    (own.shift[modality], expected.shift[modality]),
                    (own.scale[modality], expected.scale[modality]),
                )
            )
        if any(number is None for number in numbers) or not numbers:
            as_dataset.append(modality)
    parts = [
        f"{', '.join(modalities)} as {whose} ({fitted_on})"
        for modalities, whose, fitted_on in (
            (as_source, "the source", expected.fitted_on),
            (as_dataset, "the dataset", own.fitted_on),
        )
        if modalities
    ]
    words = "; ".join(parts)
    both = ", ".join(sorted(set(as_source) & set(as_dataset)))
    if both:
        words += f"; in {both}, channel by channel"
    method = own.method if as_dataset else expected.method
    return Statistics(method, shift, scale, words if as_source else own.fitted_on).select(plan.recipe.inputs), words
