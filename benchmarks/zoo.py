"""The gallery docs/zoo.md: every architecture of the zoo with its graph, parameters, compute, speed and recipes.

    python -m benchmarks.zoo               measure everything on this machine and write the page
    python -m benchmarks.zoo --keep-speeds write the page with the speeds that it has, after a change of the rest
    python -m benchmarks.zoo --check       write nothing; fail if the page is not what the code says

The graph and the paper are the docstring of the architecture's module, parameters and operations are counted in the
model that `architectures.build` returns, recipes are those of `recipes/` that train the architecture.

Written for the TensorFlow backend, whose traced graph the operations are counted in.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import itertools
import math
import re
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import architectures
import console
from architectures import encoders
from benchmarks.report import machine, spread, table
from console import UserError, progress, replacing
from training.recipe import FOLDER, load_recipe, recipe_names

PAGE = Path(__file__).resolve().parent.parent / "docs" / "zoo.md"
INPUTS, CLASSES, SIZE, BATCH = {"optical": 6}, 2, 384, 4
# Each choice of the option `variant` is a row; of encoders, one of every family, or what recipes use.
ENCODERS = {"unet": ("none", "resnet34", "efficientnet-b4", "mit-b2"), "unetplusplus": ("resnet34", "efficientnet-b5")}
NOT_MEASURED, MEASURED_ON = "not measured", "Speed measured on "
HEADER = ("architecture", "option", "trainable parameters", "parameters", "GFLOP", "images/s")


@dataclass(frozen=True)
class Row:
    """An architecture with the options that make this variant of it."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def cells(self) -> tuple[str, str]:
        """The first two cells of the row: name with a link to its section, options."""
        return f"[{self.name}](#{self.name})", _settings(dict(self.options))


@dataclass(frozen=True)
class Cost:
    """What a variant holds and needs: parameters, operations for one image, images/s as the page shows them."""

    trainable: int
    parameters: int
    operations: int
    speed: str = NOT_MEASURED

    @property
    def counts(self) -> tuple[str, str, str]:
        """The cells of the row between its options and its speed."""
        return f"{self.trainable:,}", f"{self.parameters:,}", f"{self.operations / 1e9:.1f}"

    @classmethod
    def of_cells(cls, trainable: str, parameters: str, gigas: str, speed: str) -> Cost:
        """Return what a row of the page says."""
        return cls(int(trainable.replace(",", "")), int(parameters.replace(",", "")), round(float(gigas) * 1e9), speed)


def rows() -> list[Row]:
    """Return the principal variants of all architectures in the registry."""
    found = []
    for name, module in architectures.REGISTRY.items():
        variants = typing.get_args(typing.get_type_hints(module.build).get("variant"))
        settings = [("variant", choice) for choice in variants]
        settings += [("encoder", choice) for choice in ENCODERS.get(name, ())]
        found += [Row(name, (setting,)) for setting in settings] or [Row(name)]
    return found


def build(row: Row) -> keras.Model:
    """Return the model of a row, with fresh weights."""
    return architectures.build(row.name, INPUTS, CLASSES, SIZE, **dict(row.options))


def cost(row: Row, seconds: float = 0.0) -> Cost:
    """Build the model of `row` and count; with `seconds`, measure its speed for about so long."""
    keras.utils.clear_session()
    model = build(row)
    function = predicting(model, BATCH)
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    speed = spread(speeds(model, function, seconds)) if seconds else NOT_MEASURED
    return Cost(trainable, model.count_params(), operations(function.graph) // BATCH, speed)


def predicting(model: keras.Model, batch: int) -> Any:
    """Return the graph of a prediction, with all shapes known: a concrete function of a dict of (batch, H, W, C)."""
    signature = {tensor.name: tf.TensorSpec((batch, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs}
    return tf.function(lambda inputs: model(inputs, training=False)).get_concrete_function(signature)


def speeds(model: keras.Model, function: Any, seconds: float) -> list[float]:
    """Return images/s of each prediction during `seconds`, three at least, after a first one that is left out."""
    rng = np.random.default_rng(0)
    inputs = {tensor.name: rng.random((BATCH, *tensor.shape[1:]), np.float32) for tensor in model.inputs}
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < 4 or time.perf_counter() - started < seconds:
        began = time.perf_counter()
        outputs = function({name: tf.constant(array) for name, array in inputs.items()})
        keras.tree.map_structure(lambda tensor: tensor.numpy(), outputs)
        found.append(BATCH / (time.perf_counter() - began))
    return found[1:]


# Operations


def operations(graph: Any) -> int:
    """Return the operations of all convolutions and matrix products in a TensorFlow graph, an addition each counted.

    A product with a kernel that reaches over the map's edge counts as if it were inside. Activations, normalisations,
    pooling, resizing and sums are left out.

    Raises:
        ValueError: The graph calls other graphs, has a product that is not known here, or one of unknown shape.
    """
    total = 0
    for operation in graph.get_operations():
        if operation.type in _PRODUCTS:
            total += 2 * _PRODUCTS[operation.type](operation)
        elif re.search("Conv|MatMul|Einsum|Call|While|If$|Case$", operation.type):
            raise ValueError(f"{operation.name}: operations of {operation.type} can't be counted")
    return total


def _count(tensor: Any) -> int:
    count = tensor.shape.num_elements()
    if count is None:
        raise ValueError(f"{tensor.name}: the shape {tensor.shape} is not known")
    return int(count)


def _matrix_product(operation: Any) -> int:
    transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return _count(operation.outputs[0]) * int(operation.inputs[0].shape[-2 if transposed else -1])


def _convolution(operation: Any) -> int:
    return _count(operation.outputs[0]) * math.prod(operation.inputs[1].shape[:3])


def _depthwise(operation: Any) -> int:
    return _count(operation.outputs[0]) * math.prod(operation.inputs[1].shape[:2])


def _transposed_convolution(operation: Any) -> int:
    return _count(operation.inputs[2]) * math.prod(operation.inputs[1].shape[:3])


def _einsum(operation: Any) -> int:
    """Every combination of the indices is one product."""
    terms = operation.get_attr("equation").decode().partition("->")[0].split(",")
    sides: dict[str, int] = {}
    for term, tensor in zip(terms, operation.inputs, strict=True):
        if len(term) != len(tensor.shape):
            raise ValueError(f"{operation.name}: the indices {term} of {tensor.shape} can't be counted")
        _count(tensor)
        sides |= zip(term, tensor.shape, strict=True)
    return math.prod(sides.values())


# Operation of TensorFlow → how many products it computes.
_PRODUCTS: dict[str, Callable[[Any], int]] = {
    "MatMul": _matrix_product,
    "BatchMatMulV2": _matrix_product,
    "Einsum": _einsum,
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _transposed_convolution,
}


# The page


def page(costs: Mapping[Row, Cost], measured_on: str) -> str:
    """Return the page with an overview, the cheapest first, and a section for each architecture."""
    cheapest_first = sorted(costs, key=lambda row: float(costs[row].counts[2]))
    overview = table(HEADER, [[*row.cells, *costs[row].counts, costs[row].speed] for row in cheapest_first])
    sections = [_section(name, module) for name, module in architectures.REGISTRY.items()]
    return f"""# The zoo

Every architecture, the one that computes least first; the names lead to graph, paper and recipes. All numbers are for
one modality of {INPUTS["optical"]} bands, {CLASSES} classes and images of {SIZE}×{SIZE} pixels.

{overview}

- *option*: what `build` takes beside its defaults, in a recipe under `architecture.options`. Encoders come in more
  sizes than are listed here.
- *trainable parameters* is what PyTorch counts, *parameters* what Keras counts: with the moving means and variances of
  batch normalisations.
- *GFLOP*: 10⁹ operations for the prediction of one image, in convolutions and matrix products, a multiplication and an
  addition counted as two, in the graph as it runs here: SegFormer's decoder takes fewer than in its usual form, which
  gives the same. Training an image takes about three times as many.
- *images/s*: prediction in float32 in batches of {BATCH}, from arrays to arrays, median (lowest–highest).

{measured_on}

`python -m benchmarks.zoo` writes this page: its texts are the docstrings of the modules and the headers of the recipes.

{"".join(sections)}{_encoders()}"""


def _section(name: str, module: ModuleType) -> str:
    file = f"{module.__name__.replace('.', '/')}.py"
    options = architectures.options_of(name)
    settings = f"Options and their defaults: `{_settings(options)}`. " if options else ""
    recipes = [recipe for recipe in map(load_recipe, recipe_names()) if recipe.architecture.name == name]
    listed = []
    for recipe in recipes:
        title, fields = recipe_header(FOLDER / f"{recipe.name}.yaml")
        link = f"[{recipe.name}](../recipes/{recipe.name}.yaml)"
        listed.append([link, title, _settings(recipe.architecture.options), fields.get("Reported", "–")])
    trained = table(["recipe", "what it is", "options", "reported"], listed) if listed else "No recipe trains it yet."
    return (
        f"## {name}\n\n{inspect.cleandoc(module.__doc__ or '')}\n\n"
        f"{settings}The sides of a patch are multiples of {module.stride(**options)} pixels by default. "
        f"Code: [{file}](../{file}).\n\n{trained}\n\n"
    )


def _encoders() -> str:
    """Return the section on the encoders of classification networks, from the modules that `encoders` calls."""
    modules = [
        module
        for module in vars(encoders).values()
        if isinstance(module, ModuleType)
        and hasattr(module, "encode")
        and module not in architectures.REGISTRY.values()
    ]
    names = ", ".join(f"`{name}`" for name in typing.get_args(encoders.Encoder))
    texts = "\n\n".join(
        f"### {title.removesuffix('.')}\n{rest}"
        for title, _, rest in (inspect.cleandoc(module.__doc__ or "").partition("\n") for module in modules)
    )
    return f"## Encoders\n\nThe option `encoder` takes: {names}.\n\n{texts}\n"


def _settings(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "–"


def recipe_header(path: Path) -> tuple[str, dict[str, str]]:
    """Return the title of the comment that a recipe opens with, and its fields (`Source`, `Reported`, …) by name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in itertools.takewhile(lambda x: x.startswith("#"), lines)]
    end = comment.index("") if "" in comment else len(comment)
    fields: dict[str, str] = {}
    name = ""
    for line in comment[end + 1 :]:
        if field := re.match(r"([A-Z][a-z ]*): (.*)", line):
            name, fields[field[1]] = field[1], field[2]
        elif name:
            fields[name] += f" {line}"
    return " ".join(comment[:end]), fields


def read(text: str) -> tuple[dict[Row, Cost], str]:
    """Return what the overview of a page says of the rows that there are, and the page's line on the machine."""
    known = {row.cells: row for row in rows()}
    found = {}
    for line in text.splitlines():
        cells = line.strip("| ").split(" | ")
        if len(cells) == len(HEADER) and (row := known.get((cells[0], cells[1]))):
            found[row] = Cost.of_cells(*cells[2:])
    measured_on = re.search(f"^{MEASURED_ON}.*$", text, re.MULTILINE)
    return found, measured_on[0] if measured_on else f"{MEASURED_ON}no machine yet."


def with_speeds_of(text: str, costs: Mapping[Row, Cost]) -> str:
    """Return the page of `costs` with the speeds of the page `text`, where the model is still the one measured."""
    former, measured_on = read(text)
    same = {row: former[row].speed for row in costs if row in former and former[row].counts == costs[row].counts}
    return page({row: replace(own, speed=same.get(row, NOT_MEASURED)) for row, own in costs.items()}, measured_on)


def main(arguments: list[str]) -> None:
    """Measure and write the page, or check it."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="write nothing; fail if the page differs, speeds aside")
    how.add_argument("--keep-speeds", action="store_true", help="write the page with the speeds that it has")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="predict with each model for so long (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.seconds < math.inf:
        parser.error("--seconds takes a number above 0")
    timed = not (options.check or options.keep_speeds)
    measured_on = f"{MEASURED_ON}{machine()}"
    costs = {row: cost(row, options.seconds if timed else 0.0) for row in progress(rows(), "variants", unit="variant")}
    former = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    text = page(costs, measured_on) if timed else with_speeds_of(former, costs)
    if options.check:
        changes = list(difflib.unified_diff(former.splitlines(), text.splitlines(), str(PAGE), "the code", n=0))
        if changes:
            raise UserError(
                "docs/zoo.md is not what the code says:\n"
                + "\n".join(changes)
                + "\nWrite it anew: python -m benchmarks.zoo --keep-speeds, or without it to measure as well."
            )
        print(f"{PAGE.name} is what the code says: {len(costs)} variants")
        return
    with replacing(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}: {len(costs)} variants")


if __name__ == "__main__":
    console.run(main)
