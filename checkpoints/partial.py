"""Starting a model from another's weights: what fits is taken, what does not is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import keras
import numpy as np
from keras import ops

from architectures.blocks import Fusion, LocationEncoding, PositionEmbedding
from checkpoints.matching import shown
from checkpoints.naming import modalities_of, named_layers, named_weights, part_of

_LISTED = 3  # weights with one reason, each on a line of its own; more are one line with the place they share


@dataclass(frozen=True)
class Meaning:
    """What the numbers that enter and leave a model stand for, as far as it is known.

    Attributes:
        channels: Input (a modality, or `location`) → names of its channels; an input whose channels have no known
            names is left out.
        classes: Names of the classes; empty where they are unknown.
    """

    channels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Difference:
    """A weight that was not simply taken.

    Attributes:
        name: As `named_weights` calls it.
        shape: Its shape in the model; None where the model has no such weight.
        stored: Its shape in the source; None where the source has none.
        why: The reason, or how the value was made.
        partial: Whether it keeps initial values, all or some.
    """

    name: str
    shape: tuple[int, ...] | None
    stored: tuple[int, ...] | None
    why: str
    partial: bool = False

    def __str__(self) -> str:
        """Return name and shapes."""
        if self.shape is None or self.stored is None:
            return f"{self.name} {shown(self.shape or self.stored or ())}"
        return f"{self.name} {shown(self.shape)} from {shown(self.stored)}"


@dataclass(frozen=True)
class Transfer:
    """What became of the weights of a model and of its source.

    Attributes:
        taken: Weights that are the source's as they are.
        adapted: Weights made of the source's: channels put in order by name, positions resampled.
        left: Weights of the model that keep their initial values.
        unused: Weights of the source that are nowhere in the model.
        channels: Input of the model → for each of its channels the number of the source's channel that its first
            weights were taken from, None where they were not.
    """

    taken: tuple[str, ...]
    adapted: tuple[Difference, ...]
    left: tuple[Difference, ...]
    unused: tuple[Difference, ...]
    channels: dict[str, tuple[int | None, ...]]

    def __str__(self) -> str:
        """Return the counts, and all that was not simply taken, with reasons."""
        total = len(self.taken) + len(self.adapted) + len(self.left)
        lines = [
            f"{len(self.taken)} of {total} weights taken, {len(self.adapted)} adapted, {len(self.left)} left at their "
            f"initial values; {len(self.unused)} of the source unused"
        ]
        there = {difference.name for difference in self.left}
        for title, differences in (
            ("adapted", self.adapted),
            ("left", self.left),
            ("unused", [difference for difference in self.unused if difference.name not in there]),
        ):
            if differences:
                lines += [f"  {title}:", *(f"    {line}" for line in _listed(differences))]
        return "\n".join(lines)


def transfer(
    model: keras.Model, source: keras.Model, meaning: Meaning | None = None, source_meaning: Meaning | None = None
) -> Transfer:
    """Give `model` those weights of `source`, a model of the same architecture, that mean the same in both.

    Weights belong together by name (`named_weights`), the branches of modalities by the modality's name. A layer's
    weights are taken all or none, and a part (`setr`, `encoder`, …) only where both are made of the same layers.
    Besides:

    - the first weights that read an input are taken channel by channel by name where both know the names, as they
      are where one does not and the counts agree, else not; those that read a location only by name; weights that read
      several modalities, one behind the other, modality by modality;
    - output layers are taken where the lists of classes are the same, or one is unknown and the counts agree;
    - learned positions of another grid are interpolated bilinearly over the patch (Dosovitskiy et al. 2021,
      arXiv:2010.11929, section 3.2).

    Args:
        model: What to start; in `float32` or any mixed policy, before it is compiled.
        source: Where from, with its weights loaded.
        meaning: What inputs and outputs of `model` stand for.
        source_meaning: What those of `source` stand for.
    """
    ours, theirs = named_weights(model), named_weights(source)
    rules = _Rules(model, source, meaning or Meaning(), source_meaning or Meaning())
    taken: list[str] = []
    adapted: list[Difference] = []
    left: list[Difference] = []
    values: dict[str, np.ndarray] = {}
    for members in _by_layer(ours):
        made = {name: rules.apply(name, ours[name], theirs.get(name)) for name in members}
        refusal = next((why for value, why in made.values() if value is None), None)
        for name, (value, why) in made.items():
            stored = tuple(theirs[name].shape) if name in theirs else None
            if refusal is not None:
                left.append(Difference(name, tuple(ours[name].shape), stored, refusal, partial=True))
                continue
            values[name] = value
            if why:
                new = None in rules.numbers(name)
                adapted.append(Difference(name, tuple(ours[name].shape), stored, why, partial=new))
            else:
                taken.append(name)
    for name, value in values.items():
        ours[name].assign(value)
    unused = tuple(
        Difference(name, None, tuple(variable.shape), "nothing of that name here")
        for name, variable in theirs.items()
        if name not in values
    )
    channels = {
        key: rules.channels(key) if name in values else (None,) * rules.sizes[0][key]
        for name, keys in rules.readers.items()
        for key in keys
    }
    return Transfer(tuple(taken), tuple(adapted), tuple(left), unused, channels)


class _Rules:
    """What a weight of `model` is to become, given its counterpart in `source`."""

    def __init__(self, model: keras.Model, source: keras.Model, meaning: Meaning, source_meaning: Meaning) -> None:
        self.model, self.source = model, source
        self.meaning, self.source_meaning = meaning, source_meaning
        self.readers, self.source_readers = readers_of(model), readers_of(source)
        self.heads = {id(variable) for layer in heads_of(model) for variable in layer.weights}
        self.positions = {
            f"{name}/positions" for name, layer in named_layers(model).items() if isinstance(layer, PositionEmbedding)
        }
        self.sizes = [{key: int(x.shape[-1]) for key, x in one.input.items()} for one in (model, source)]
        # Branches are matched by modality: they may differ in number.
        named = {part_of(name) for name, layer in named_layers(model).items() if isinstance(layer, Fusion)}
        parts = [_parts(one) for one in (model, source)]
        self.rebuilt = {part for part in set(parts[0]) - named if part in parts[1] and parts[0][part] != parts[1][part]}

    def apply(self, name: str, variable: keras.Variable, stored: keras.Variable | None) -> tuple[Any, str]:
        """Return the value and, where it isn't the source's as it is, how it was made; or None and why not."""
        if stored is None:
            return None, "the source has none"
        part = part_of(name)
        if part in self.rebuilt:
            return None, f"{part} is made of other layers in the source"
        value = ops.convert_to_numpy(stored)
        a, b = tuple(variable.shape), value.shape
        if (name in self.readers) != (name in self.source_readers):
            return None, "of the two, one reads the inputs here and the other their fusion"
        if name in self.readers and a[:-2] + a[-1:] == b[:-2] + b[-1:]:
            return self._read(name, ops.convert_to_numpy(variable), value)
        if id(variable) in self.heads and (why := self._other_classes(a[-1], b[-1])):
            return None, why
        if name in self.positions and a[-1] == b[-1]:
            return self._positions(a[0], value)
        return (value, "") if a == b else (None, "another shape")

    def channels(self, key: str) -> tuple[int | None, ...]:
        """Return for each channel of input `key` the number of the source's that means the same, or None."""
        here, there = self.meaning.channels.get(key), self.source_meaning.channels.get(key)
        count, stored = (sizes.get(key, 0) for sizes in self.sizes)
        if here and there:
            return tuple(list(there).index(name) if name in there else None for name in here)
        if count == stored and key != "location":
            return tuple(range(count))
        return (None,) * count

    def numbers(self, name: str) -> tuple[int | None, ...]:
        """Return for each channel that the weight `name` reads the number of the source's channel, or None.

        A weight that reads no input has none.
        """
        first, offset = {}, 0
        for key in self.source_readers.get(name, ()):
            first[key] = offset
            offset += self.sizes[1][key]
        numbers = [(key, number) for key in self.readers.get(name, ()) for number in self.channels(key)]
        return tuple(None if number is None else first[key] + number for key, number in numbers)

    def _read(self, name: str, initial: np.ndarray, stored: np.ndarray) -> tuple[Any, str]:
        numbers, keys = self.numbers(name), self.readers[name]
        if all(number is None for number in numbers):
            return None, "; ".join(map(self._nothing_in_common, keys))
        if numbers == tuple(range(stored.shape[-2])):
            return stored, ""
        value = initial.copy()
        for channel, number in enumerate(numbers):
            if number is not None:
                value[..., channel, :] = stored[..., number, :]
        names = [
            channel
            for key in keys
            for channel in self.meaning.channels.get(key) or map(str, range(1, self.sizes[0][key] + 1))
        ]
        new = [name for name, number in zip(names, numbers, strict=True) if number is None]
        same = [name for name, number in zip(names, numbers, strict=True) if number is not None]
        return value, f"{_some(same)} by name" + (f", {_some(new)} initial" if new else "")

    def _nothing_in_common(self, key: str) -> str:
        here, there = self.meaning.channels.get(key), self.source_meaning.channels.get(key)
        if key not in self.sizes[1]:
            return f"the source has no {key}"
        if here and there:
            return f"no channel of {key} in common: {_some(here)} here, {_some(there)} in the source"
        return f"{self.sizes[0][key]} and {self.sizes[1][key]} channels of {key} whose names are not known"

    def _other_classes(self, count: int, stored: int) -> str:
        here, there = self.meaning.classes, self.source_meaning.classes
        if here and there and list(here) != list(there):
            return f"the classes are {_some(here)} here, {_some(there)} in the source"
        return f"{count} outputs here, {stored} in the source" if count != stored else ""

    def _positions(self, tokens: int, stored: np.ndarray) -> tuple[np.ndarray, str]:
        here, there = _grid(self.model, tokens), _grid(self.source, len(stored))
        if here == there:
            return stored, ""
        table = stored.reshape(*there, -1)
        resized = ops.image.resize(table, here, interpolation="bilinear", data_format="channels_last")
        value = ops.convert_to_numpy(resized).reshape(tokens, -1)
        return value, f"resampled from {shown(there)} to {shown(here)} tokens"


def readers_of(model: keras.Model) -> dict[str, tuple[str, ...]]:
    """Return the weights that read inputs, channels on their last axis but one → the inputs' names, in order.

    A weight reads one modality in a fusion of branches, and all of them, one behind the other, where the model
    concatenates them.
    """
    layers = named_layers(model)
    modalities = modalities_of(model)
    readers: dict[str, tuple[str, ...]] = {}
    for name, layer in layers.items():
        if isinstance(layer, Fusion):
            readers |= {f"{name}/branches/{key}/convolution_1/kernel": (key,) for key in modalities}
        if isinstance(layer, LocationEncoding):
            readers[f"{name}/linear_1/kernel"] = ("location",)
    if not any(isinstance(layer, Fusion) for layer in layers.values()):
        first = next(name for name, layer in layers.items() if layer.weights)
        readers[f"{first}/kernel"] = tuple(modalities)
    return readers


def heads_of(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the last layer with weights before each output."""
    return [_maker(tensor) for tensor in model.output.values()]


def _maker(tensor: Any) -> keras.layers.Layer:
    layer, node, _ = tensor._keras_history
    if isinstance(layer, keras.Model):
        return _maker(layer.outputs[0])
    return layer if layer.weights else _maker(layer._inbound_nodes[node].input_tensors[0])


def _parts(model: keras.Model) -> dict[str, set[str]]:
    """Return the names of the weights of each of the outermost layers."""
    parts: dict[str, set[str]] = {}
    for name in named_weights(model):
        parts.setdefault(part_of(name), set()).add(name)
    return parts


def _grid(model: keras.Model, tokens: int) -> tuple[int, int]:
    """Return how `tokens` tokens lie over the patch: rows, columns."""
    height, width, _ = next(iter(modalities_of(model).values()))
    side = sqrt(height * width / tokens)
    return round(height / side), round(width / side)


def _by_layer(names: Mapping[str, Any]) -> Iterator[list[str]]:
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition("/")[0], []).append(name)
    yield from layers.values()


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _listed(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield a line for each difference, or one for many that lie together and have the same reason."""
    groups: dict[tuple[str, str], list[Difference]] = {}
    for difference in differences:
        groups.setdefault((_place(difference.name), difference.why), []).append(difference)
    for (place, why), members in groups.items():
        if len(members) > _LISTED:
            example = f", such as {members[0]}" if members[0].shape and members[0].stored else ""
            yield f"{place} ({len(members)} weights{example}): {why}"
        else:
            yield from (f"{member}: {why}" for member in members)


def _place(name: str) -> str:
    """Return the part that a weight is in: `setr`, or a branch, `fusion/branches/dem`."""
    parts = name.split("/")
    return "/".join(parts[:3]) if len(parts) > 3 and parts[0] == "fusion" else part_of(name)
