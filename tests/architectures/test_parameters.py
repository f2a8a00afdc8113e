"""The exact number of parameters of every published architecture."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

import architectures

INPUTS_2023 = {"optical": 6, "dem": 2, "sar": 2}
INPUTS_2025 = {"optical": 6, "dem": 2}


class Row(NamedTuple):
    """One published architecture for patches of 384×384 pixels."""

    name: str
    inputs: dict[str, int]
    options: dict[str, Any]
    parameters: int  # Keras counts moving statistics
    trainable: int  # what PyTorch counts
    num_classes: int = 2


TABLE = {
    "glavitu": Row("glavitu", INPUTS_2023, {}, 10_054_084, 10_046_276),
    "resunet": Row("resunet", INPUTS_2023, {}, 32_608_386, 32_593_922),
    "transunet": Row("transunet", INPUTS_2023, {}, 8_918_530, 8_911_234),
    "setr": Row("setr", INPUTS_2023, {}, 101_743_362, 101_740_546),
    "glavitu 2025": Row("glavitu", INPUTS_2025, {"variant": "2025"}, 10_032_068, 10_024_516),
    "glavitu 2025, regions": Row(
        "glavitu", INPUTS_2025, {"variant": "2025", "location_size": 12}, 10_037_572, 10_029_764
    ),
    # The Himalaya project's own code, and segmentation_models_pytorch 0.6.
    "resunet himalaya": Row("resunet", {"optical": 18}, {"variant": "himalaya"}, 32_499_137, 32_481_601, 1),
    "unet resnet18": Row("unet", {"optical": 5}, {"encoder": "resnet18"}, 14_346_500, 14_334_916, 4),
    "unet resnet34": Row("unet", {"optical": 5}, {"encoder": "resnet34"}, 24_462_084, 24_443_076, 4),
    "unet resnet50": Row("unet", {"optical": 3}, {"encoder": "resnet50"}, 32_576_209, 32_521_105, 1),
    "unet resnet101": Row("unet", {"optical": 3}, {"encoder": "resnet101"}, 51_620_561, 51_513_233, 1),
    "unetplusplus": Row("unetplusplus", {"optical": 5}, {}, 26_105_681, 26_084_881, 1),
    # transformers 5.
    "segformer b0": Row("segformer", {"optical": 6}, {}, 3_719_874, 3_719_362),
    "segformer b1": Row("segformer", {"optical": 6}, {"variant": "b1"}, 13_687_682, 13_687_170),
    "segformer b2": Row("segformer", {"optical": 6}, {"variant": "b2"}, 27_359_106, 27_357_570),
    "segformer b4": Row("segformer", {"optical": 18}, {"variant": "b4"}, 64_042_369, 64_040_833, 1),
    # The plain U-Net is ours: widths 32 to 512, as its module says.
    "unet": Row("unet", {"optical": 5}, {}, 7_769_604, 7_763_716, 4),
}


# Parameters of GlaViTU 2025 without deep supervision, and the trainable ones, by the size of the location.
FOR_INFERENCE = {0: (10_031_938, 10_024_386), 12: (10_037_442, 10_029_634)}


def test_the_table_has_every_architecture() -> None:
    assert {row.name for row in TABLE.values()} == set(architectures.REGISTRY)


@pytest.mark.usefixtures("zero_start")
@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_parameters_are_exact(row: Row) -> None:
    model = architectures.build(row.name, row.inputs, row.num_classes, patch_size=384, **row.options)
    trainable = sum(int(np.prod(variable.shape)) for variable in model.trainable_weights)
    assert (model.count_params(), trainable) == (row.parameters, row.trainable)
    if row.name == "glavitu" and "variant" in row.options:  # published for inference, too: without this head
        bare = keras.Model(model.input, {"output": model.output["output"]})
        counts = bare.count_params(), sum(int(np.prod(variable.shape)) for variable in bare.trainable_weights)
        assert counts == FOR_INFERENCE[row.options.get("location_size", 0)]
    keras.utils.clear_session()
