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
    """One published architecture for patches of 384×384 pixels and two classes."""

    name: str
    inputs: dict[str, int]
    options: dict[str, Any]
    parameters: int  # Keras counts moving statistics
    trainable: int  # what PyTorch counts


TABLE = {
    "glavitu": Row("glavitu", INPUTS_2023, {}, 10_054_084, 10_046_276),
    "resunet": Row("resunet", INPUTS_2023, {}, 32_608_386, 32_593_922),
    "transunet": Row("transunet", INPUTS_2023, {}, 8_918_530, 8_911_234),
    "setr": Row("setr", INPUTS_2023, {}, 101_743_362, 101_740_546),
    "glavitu 2025": Row("glavitu", INPUTS_2025, {"variant": "2025"}, 10_032_068, 10_024_516),
    "glavitu 2025, for inference": Row(
        "glavitu", INPUTS_2025, {"variant": "2025", "deep_supervision": False}, 10_031_938, 10_024_386
    ),
    "glavitu 2025, regions": Row(
        "glavitu", INPUTS_2025, {"variant": "2025", "location_size": 12}, 10_037_572, 10_029_764
    ),
    "glavitu 2025, regions, for inference": Row(
        "glavitu",
        INPUTS_2025,
        {"variant": "2025", "location_size": 12, "deep_supervision": False},
        10_037_442,
        10_029_634,
    ),
}


def test_the_table_has_every_architecture() -> None:
    assert {row.name for row in TABLE.values()} == set(architectures.REGISTRY)


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_parameters_are_exact(row: Row) -> None:
    model = architectures.build(row.name, row.inputs, num_classes=2, patch_size=384, **row.options)
    trainable = sum(int(np.prod(variable.shape)) for variable in model.trainable_weights)
    assert (model.count_params(), trainable) == (row.parameters, row.trainable)
    keras.utils.clear_session()
