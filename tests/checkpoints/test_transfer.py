"""What a model takes from another of its architecture, and what it must not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import architectures
import checkpoints
from architectures import REGISTRY, options_of
from architectures.torch_layers import layer_name
from checkpoints import Meaning
from console import UserError

Mini = Callable[..., keras.Model]

INPUTS = {"optical": 3, "dem": 2, "sar": 2}
SMALL = {"fusion_width": 4, "vit_width": 4, "decoder_width": 4, "mlp": 4, "depth": 1, "heads": 2, "steps": 1}


def small(
    name: str, inputs: dict[str, int] | None = None, num_classes: int = 2, patch_size: int = 32, **options: Any
) -> keras.Model:
    unused = {"fusion_width"} if options.get("fusion") == "concatenate" else set()
    known = set(options_of(name)) - unused
    options = {key: value for key, value in ({"width": 4} | SMALL).items() if key in known} | options
    return architectures.build(name, inputs or INPUTS, num_classes, patch_size, **options)


def seeded(model: keras.Model, seed: int = 1) -> keras.Model:
    """Give every variable random values of a size that leaves the probabilities off 0 and 1."""
    rng = np.random.default_rng(seed)
    shapes = [weight.shape for weight in model.get_weights()]
    model.set_weights(
        [
            rng.normal(0, 0.5 / np.sqrt(np.prod(shape[:-1])), shape) if len(shape) > 1 else rng.uniform(0.5, 1, shape)
            for shape in shapes
        ]
    )
    return model


def assert_equal(one: Any, other: Any) -> None:
    """Compare the weights of two models or layers, or two lists of arrays."""
    lists = [item if isinstance(item, list) else item.get_weights() for item in (one, other)]
    assert lists[0]
    for a, b in zip(*lists, strict=True):
        np.testing.assert_array_equal(a, b)


def first_kernel(model: keras.Model, branch: int = 0) -> np.ndarray:
    return np.asarray(model.get_layer("fusion").branches[branch].convolution_1.kernel)


def names(differences: Iterable[Any]) -> set[str]:
    return {difference.name for difference in differences}


def both(layer: str) -> set[str]:
    return {f"{layer}/kernel", f"{layer}/bias"}


def patches(inputs: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=(1, 32, 32, count)).astype("float32") for key, count in inputs.items()}


def predict(model: keras.Model, x: dict[str, np.ndarray]) -> np.ndarray:
    return keras.ops.convert_to_numpy(model({key: x[key] for key in model.input}, training=False)["output"])


# The same network


@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("resunet", {}, ["resunet/dense"]),
        ("resunet", {"variant": "himalaya", "fusion": "concatenate"}, ["final_conv"]),
        ("setr", {}, ["setr/conv2d_4"]),
        ("transunet", {}, ["output"]),
        ("glavitu", {}, ["output", "deepsupervision"]),
        ("unet", {"fusion": "branches"}, ["segmentation_head.0"]),
        ("unetplusplus", {"encoder": "resnet18", "fusion": "concatenate"}, ["segmentation_head.0"]),
        ("segformer", {"decoder_width": 4, "fusion": "concatenate"}, ["decode_head.classifier"]),
    ],
)
def test_of_every_architecture_all_weights_are_named_and_inputs_and_heads_known(
    name: str, options: dict[str, Any], heads: list[str]
) -> None:
    model = small(name, **options)
    here, there = Meaning(classes=("background", "ice")), Meaning(classes=("background", "water"))
    done = checkpoints.transfer(model, model, here, there)
    expected = set().union(*map(both, heads))
    assert names(done.left) == names(done.unused) == expected and not done.adapted
    assert len(set(done.taken)) == len(model.weights) - len(expected)
    assert done.channels == {"optical": (0, 1, 2), "dem": (0, 1), "sar": (0, 1)}


def test_every_architecture_is_held_against_its_names() -> None:
    known = {"resunet", "setr", "transunet", "glavitu", "unet", "unetplusplus", "segformer"}
    assert set(REGISTRY) == known, "add the new one to the test above"


def test_an_equal_network_takes_all_and_predicts_the_same(mini: Mini) -> None:
    source, model = seeded(mini({"dem": 2}, vit=True)), mini({"dem": 2}, vit=True)
    done = checkpoints.transfer(model, source)
    assert not done.left and not done.adapted and not done.unused
    assert_equal(model, source)
    np.testing.assert_array_equal(predict(model, patches({"dem": 2})), predict(source, patches({"dem": 2})))


# Other modalities, bands, regions


def test_the_order_of_modalities_does_not_matter(mini: Mini) -> None:
    """`dem` and `sar` have two channels each: matched by place, the prediction would be another."""
    source, model = seeded(mini(INPUTS)), mini({"sar": 2, "optical": 3, "dem": 2})
    checkpoints.transfer(model, source)
    x = patches(INPUTS)
    np.testing.assert_allclose(predict(model, x), predict(source, x), atol=1e-6)
    swapped = {**x, "dem": x["sar"], "sar": x["dem"]}
    assert np.abs(predict(model, swapped) - predict(source, x)).max() > 1e-3


def test_a_modality_that_the_source_lacks_starts_afresh_and_the_others_are_taken_by_name(mini: Mini) -> None:
    source = seeded(mini(INPUTS, gated=True))
    model = mini({"sar": 2, "thermal": 1, "optical": 3}, gated=True)
    ours, theirs = model.get_layer("fusion"), source.get_layer("fusion")
    before = ours.branches[1].get_weights()
    done = checkpoints.transfer(model, source)
    for members in ("branches", "squeezes", "excitations"):
        for here, there in ((0, 2), (2, 0)):
            assert_equal(getattr(ours, members)[here], getattr(theirs, members)[there])
    assert_equal(ours.branches[1], before)
    assert_equal(model.get_layer("output"), source.get_layer("output"))
    assert len(done.left) == len(done.unused) == 12 + 4
    assert all("/thermal/" in name for name in names(done.left))
    assert all("/dem/" in name for name in names(done.unused))
    assert done.channels == {"sar": (0, 1), "thermal": (None,), "optical": (0, 1, 2)}


def test_bands_are_taken_by_name(mini: Mini) -> None:
    source, model = seeded(mini(INPUTS)), mini({**INPUTS, "optical": 4})
    before, stored = first_kernel(model).copy(), first_kernel(source)
    here, there = (
        Meaning({"optical": bands}) for bands in (("swir", "blue", "green", "nir"), ("green", "nir", "swir"))
    )
    done = checkpoints.transfer(model, source, here, there)
    expected = np.stack([stored[:, :, 2], before[:, :, 1], stored[:, :, 0], stored[:, :, 1]], axis=2)
    np.testing.assert_array_equal(first_kernel(model), expected)
    assert done.channels["optical"] == (2, None, 0, 1)
    assert names(done.adapted) == {"fusion/branches/optical/convolution_1/kernel"} and done.adapted[0].partial
    assert "swir, green, nir by name, blue initial" in str(done)


def test_bands_in_another_order_are_put_in_order(mini: Mini) -> None:
    source, model = seeded(mini({"dem": 2})), mini({"dem": 2})
    here, there = Meaning({"dem": ("slope", "elevation")}), Meaning({"dem": ("elevation", "slope")})
    done = checkpoints.transfer(model, source, here, there)
    assert not done.left and not done.adapted[0].partial
    x = patches({"dem": 2})
    turned = {**x, "dem": x["dem"][..., ::-1]}
    np.testing.assert_allclose(predict(model, turned), predict(source, x), atol=1e-6)


@pytest.mark.parametrize(
    ("here", "there", "count", "why"),
    [
        ((), (), 4, "4 and 3 channels of optical whose names are not known"),
        (("a", "b", "c", "d"), (), 4, "4 and 3 channels of optical whose"),
        (("a", "b", "c"), ("green", "nir", "swir"), 3, "no channel of optical in common: a, b, c here, green, nir"),
    ],
)
def test_bands_that_are_not_known_to_be_the_same_are_left(
    mini: Mini, here: tuple[str, ...], there: tuple[str, ...], count: int, why: str
) -> None:
    source, model = mini({"optical": 3}), mini({"optical": count})
    before = first_kernel(model).copy()
    done = checkpoints.transfer(
        model, source, *(Meaning({"optical": bands} if bands else {}) for bands in (here, there))
    )
    assert names(done.left) == both("fusion/branches/optical/convolution_1") and why in str(done)
    np.testing.assert_array_equal(first_kernel(model), before)
    assert done.channels["optical"] == (None,) * count


def test_regions_are_taken_by_name_alone(mini: Mini) -> None:
    """As many regions, one of them another: by place, NZ would get the weights of HMA."""
    source, model = (seeded(mini({"dem": 2}, location_size=3), seed) for seed in (1, 2))
    stored, before = (one.get_layer("location_encoding").linear_1.get_weights()[0] for one in (source, model))
    unnamed = checkpoints.transfer(model, source)
    assert names(unnamed.left) == both("location_encoding/linear_1")
    done = checkpoints.transfer(
        model,
        source,
        Meaning({"location": ("HMA", "NZ", "unknown")}),
        Meaning({"location": ("ALP", "HMA", "unknown")}),
    )
    kernel = np.asarray(model.get_layer("location_encoding").linear_1.kernel)
    np.testing.assert_array_equal(kernel, np.stack([stored[1], before[1], stored[2]]))
    assert done.channels["location"] == (1, None, 2)


def test_concatenated_inputs_are_taken_by_modality_and_by_band() -> None:
    concatenated = functools.partial(small, "unet", fusion="concatenate")
    source, model = seeded(concatenated({"optical": 3, "dem": 2})), concatenated({"sar": 1, "dem": 2, "optical": 3}, 3)
    here, there = Meaning({"dem": ["slope", "elevation"]}), Meaning({"dem": ["elevation", "slope"]})
    first = "encoder.blocks.0.conv1.0"
    before = model.get_layer(layer_name(first)).get_weights()[0]
    done = checkpoints.transfer(model, source, here, there)
    ours, theirs = (one.get_layer(layer_name(first)).get_weights()[0] for one in (model, source))
    np.testing.assert_array_equal(ours[:, :, 1:], theirs[:, :, [4, 3, 0, 1, 2]])
    np.testing.assert_array_equal(ours[:, :, 0], before[:, :, 0])
    assert done.channels == {"sar": (None,), "dem": (1, 0), "optical": (0, 1, 2)}
    assert names(done.left) == both("segmentation_head.0")
    assert f"{first}/kernel 3×3×6×4 from 3×3×5×4: slope, elevation, 1, 2, 3 by name, 1 initial" in str(done)

    # A fused map is no input, and a deeper encoder is another.
    done = checkpoints.transfer(small("unet", {"optical": 3, "dem": 2}, fusion="branches"), source)
    assert "reads the inputs here and the other their fusion" in str(done)
    done = checkpoints.transfer(concatenated({"optical": 5}, steps=2), source)
    assert names(done.left) >= {f"{first}/kernel"} and "encoder is made of other layers in the source" in str(done)
    assert set(done.taken) == both("segmentation_head.0")


# Other outputs, patches, options


def test_with_other_classes_only_the_head_is_left(mini: Mini) -> None:
    source, model = seeded(mini(INPUTS)), mini(INPUTS, 4)
    done = checkpoints.transfer(model, source)
    assert names(done.left) == both("output") and not done.adapted
    assert "output/kernel 4×4 from 4×2: 4 outputs here, 2 in the source" in str(done)
    assert_equal(model.get_layer("fusion"), source.get_layer("fusion"))


def resized(table: np.ndarray, side: int) -> np.ndarray:
    """Interpolate (h, h, C) linearly between the centres of cells, along one axis, then along the other."""
    old = len(table)
    at = (np.arange(side) + 0.5) * old / side - 0.5
    for axis in (0, 1):
        table = np.apply_along_axis(lambda values: np.interp(at, np.arange(old), values), axis, table)
    return table


@pytest.mark.parametrize(("stored", "wanted"), [(32, 80), (64, 48)])
def test_positions_of_another_patch_size_are_interpolated(mini: Mini, stored: int, wanted: int) -> None:
    source, model = (mini({"dem": 2}, patch_size=side, vit=True) for side in (stored, wanted))
    done = checkpoints.transfer(model, source)
    assert not done.left and names(done.adapted) == {"vit/position_embedding/positions"}
    there, here = stored // 16, wanted // 16
    assert f"resampled from {there}×{there} to {here}×{here} tokens" in str(done)
    table, positions = (np.asarray(one.get_layer("vit").layers[2].positions) for one in (source, model))
    expected = resized(table.reshape(there, there, -1), here)
    np.testing.assert_allclose(positions.reshape(here, here, -1), expected, atol=1e-6)


def test_a_part_that_is_made_of_other_layers_is_left_whole(mini: Mini) -> None:
    """In a deeper decoder, a block of the same name and shape can stand elsewhere."""
    done = checkpoints.transfer(mini({"dem": 2}, vit=True, depth=2), mini({"dem": 2}, vit=True))
    assert names(done.left) and all(name.startswith("vit/") for name in names(done.left))
    assert not any(name.startswith("vit/") for name in done.taken) and "vit is made of other layers" in str(done)


def test_no_bias_is_taken_without_its_kernel(mini: Mini) -> None:
    model = mini({"dem": 2}, width=8)
    before = model.get_weights()
    done = checkpoints.transfer(model, mini({"dem": 2}))
    assert not done.taken and not done.adapted
    first = "fusion/branches/dem/convolution_1/kernel 3×3×2×8 from 3×3×2×4"
    assert f"fusion/branches/dem (12 weights, such as {first}): another shape" in str(done)
    assert_equal(model, before)


def test_the_report_counts_every_weight_once(mini: Mini) -> None:
    model, source = mini({"sar": 2, "optical": 4}, 3, 48, vit=True), mini(INPUTS, vit=True)
    done = checkpoints.transfer(model, source)
    listed = [*done.taken, *(one.name for one in (*done.adapted, *done.left))]
    assert len(listed) == len(set(listed)) == len(model.weights)
    assert len(done.taken) + len(done.adapted) + len(done.unused) == len(source.weights)
    text = str(done)
    assert text.startswith(f"{len(done.taken)} of {len(listed)} weights taken, 1 adapted, {len(done.left)} left")
    assert "output/kernel 4×3 from 4×2: 3 outputs here" in text
    assert "fusion/branches/dem (12 weights): nothing of that name here" in text


# Files without a record


def test_a_keras2_file_tells_how_its_model_was_built(
    tmp_path: Path, write_keras2: Callable[[keras.Model, Path], Path]
) -> None:
    built = {"variant": "2025", "location_size": 3, "deep_supervision": False}
    path = write_keras2(small("glavitu", {"a": 6, "b": 1}, 3, 48, **built), tmp_path / "a.weights.h5")
    options = {key: value for key, value in {**SMALL, "width": 4}.items() if key in options_of("glavitu")}
    blueprint = checkpoints.blueprint_of("glavitu", options, path, num_classes=2, patch_size=32)
    assert (blueprint.kind, blueprint.channels) == ("keras2", (6, 1))
    assert (blueprint.num_classes, blueprint.patch_size, blueprint.options) == (3, 48, options | built)


def test_a_keras3_file_tells_how_its_model_was_built(tmp_path: Path, mini: Mini) -> None:
    mini({"a": 5}, 4, 64, vit=True).save_weights(tmp_path / "a.weights.h5")
    blueprint = checkpoints.blueprint_of("mini", {"vit": True}, tmp_path / "a.weights.h5", 2, 32)
    assert (blueprint.kind, blueprint.channels) == ("keras3", (5,))
    assert (blueprint.num_classes, blueprint.patch_size) == (4, 64)
    assert blueprint.options == {"vit": True, "location_size": 0}


def test_a_file_without_fusion_is_refused(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(UserError, match="does not begin with a fusion of modalities"):
        checkpoints.blueprint_of("glavitu", {}, tmp_path / "a.weights.h5")
