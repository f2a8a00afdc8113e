"""An exported model predicts what Keras predicts, and one that does not is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

import architectures
from console import UserError
from data.tiles import TWO_CLASSES
from inference import engines
from inference.confidence import Combination, Way
from inference.engines import TOLERANCES, Engine, OpenVino, choose_engines, compare
from inference.predictor import Predictor
from inference.sliding import ArraySource

pytest.importorskip("openvino")
Batch = dict[str, NDArray[np.float32]]

MODELS: dict[str, dict[str, Any]] = {
    "glavitu": {"layers": 1, "heads": 2, "projection": 16, "fusion_width": 4, "width": 4},
    "resunet": {"fusion_width": 4, "width": 4, "steps": 2},
    "setr": {"layers": 1, "heads": 2, "projection": 16, "fusion_width": 4},
    "transunet": {"layers": 1, "heads": 2, "projection": 16, "fusion_width": 4, "width": 4},
    "segformer": {"variant": "b0"},
    "unet": {"encoder": "resnet18"},
    "unetplusplus": {"width": 4, "steps": 2},
}
