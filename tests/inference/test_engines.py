"""An exported model predicts what Keras predicts, and one that does not is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

import architectures
import training.precision
from console import UserError
from data.tiles import TWO_CLASSES
from data.windows import Window
from inference import engines
from inference.confidence import Combination, Way
from inference.engines import TOLERANCES, Engine, OpenVino, choose_engines, compare
from inference.predictor import Predictor
from inference.sliding import ArraySource

pytest.importorskip("openvino")
PATCH = 32
INPUTS = {"optical": 3, "dem": 2}
VIT: dict[str, Any] = {"width": 8, "mlp": 16, "depth": 2, "heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "glavitu": VIT | {"steps": 2},
    "resunet": {"fusion_width": 4, "width": 4, "steps": 2},
    "segformer": {"width": 8, "decoder_width": 8},
    "setr": VIT | {"fusion_width": 4, "decoder_width": 8},
    "transunet": {"width": 4, "steps": 2, "vit_width": 8, "mlp": 16, "depth": 2, "heads": 2},
    "unet": {"width": 4, "steps": 2},
    "unetplusplus": {"encoder": "resnet18"},
}
Batch = dict[str, NDArray[np.float32]]


def run(folder: Path, name: str = "unet", seed: int = 0, **options: Any) -> Predictor:
    """Return a run with weights that leave no layer without effect, stored in `folder`."""
    keras.utils.set_random_seed(seed)
    model = architectures.build(name, INPUTS, 2, PATCH, **(MODELS[name] | options))
    for weight in model.weights:
        weight.assign(weight + keras.random.uniform(weight.shape, -0.03, 0.03))
    weights = folder / f"{name}.weights.h5"
    model.save_weights(weights)
    described = {"weights": str(weights), "precision": "float32"}
    return Predictor(name, model, dict(INPUTS), TWO_CLASSES, None, PATCH, described=described)


def patches(count: int = 2, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return {name: rng.random((count, PATCH, PATCH, bands), np.float32) for name, bands in INPUTS.items()}


def whole(side: int = PATCH) -> ArraySource:
    rng = np.random.default_rng(1)
    return ArraySource({name: rng.random((side, side, bands), np.float32) for name, bands in INPUTS.items()})


class Put(Combination):
    """One run as it is, without tiles or a scene that it would be held against."""

    def __init__(self, *members: Predictor) -> None:
        self._members, self._shared, self.patch_size = list(members), [0] * len(members), PATCH


def chosen(member: Predictor, engine: Engine, way: Way | None = None, side: int = PATCH) -> Predictor:
    (found,) = choose_engines([member], Put(member), [whole(side)], engine, way=way or Way(), overlap=0, batch=2)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_predicts_the_same_when_exported_also_where_an_input_is_absent(
    name: str, tmp_path: Path
) -> None:
    member = run(tmp_path, name)
    batch = patches()
    if name in ("glavitu", "resunet", "setr", "transunet"):
        batch["dem"][1] = np.nan
    exported = OpenVino(member, "float32")
    expected = member(batch)
    assert expected.std() > 1e-4
    np.testing.assert_allclose(exported(batch), expected, atol=1e-4)
    swapped = {name: x[::-1] for name, x in batch.items()}
    np.testing.assert_allclose(exported(swapped), expected[::-1], atol=1e-4)
    if name == "unet":  # another number of windows is laid out anew
        one = {name: x[:1] for name, x in batch.items()}
        np.testing.assert_allclose(exported(one), expected[:1], atol=1e-4)


def test_an_export_is_kept_beside_the_weights_and_made_again_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = engines._write

    def counted(model: keras.Model, folder: Path) -> Path:
        written.append(folder)
        return write(model, folder)

    monkeypatch.setattr(engines, "_write", counted)
    member = run(tmp_path)
    first = OpenVino(member, "float32")(patches())
    assert [path.name for path in (tmp_path / "unet.openvino").iterdir()] and len(written) == 1
    np.testing.assert_array_equal(OpenVino(member, "float32")(patches()), first)
    assert len(written) == 1
    other = run(tmp_path, seed=1)
    assert np.abs(OpenVino(other, "float32")(patches()) - first).max() > 1e-3
    assert len(written) == 2 and len(list((tmp_path / "unet.openvino").iterdir())) == 1


def test_where_weights_lie_in_a_folder_without_permission_the_export_is_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    member = run(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    np.testing.assert_allclose(OpenVino(member, "float32")(patches()), member(patches()), atol=1e-4)
    assert not (tmp_path / "unet.openvino").exists()


def test_nothing_is_reported_over_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = pytest.importorskip("openvino_telemetry")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(telemetry.Telemetry, "_SingletonMetaClass__single_instance", None)
    asked = []
    init = telemetry.Telemetry.init

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        asked.append(self)

    monkeypatch.setattr(telemetry.Telemetry, "init", watched)
    OpenVino(run(tmp_path), "float32")
    assert asked and not any(one.consent for one in asked)
    import os

    assert "CI" not in os.environ


def test_the_engine_that_was_asked_for_predicts_after_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = run(tmp_path)
    assert chosen(member, Engine("keras")).engine_name == "keras"
    assert not capsys.readouterr().out
    exported = chosen(member, Engine("openvino", "float32"))
    assert exported.engine_name == "openvino float32"
    assert "unet: OpenVINO in float32; on 1 windows probabilities differ by" in capsys.readouterr().out
    np.testing.assert_allclose(exported(patches()), member(patches()), atol=1e-4)
    assert (exported(patches()) != member(patches())).any()  # another engine, not Keras by another name
    assert engines.use(member, exported.engine_name).engine is exported.engine
    assert engines.use(member, "keras").engine is None


def test_an_export_that_is_wrong_is_left_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    member = run(tmp_path)
    right = OpenVino.__call__
    for wrong in (
        lambda self, batch: right(self, batch)[..., ::-1],
        lambda self, batch: right(self, batch) * np.float32(np.nan),
    ):
        monkeypatch.setattr(OpenVino, "__call__", wrong)
        found = chosen(member, Engine("openvino", "float32"))
        assert found.engine is None
        assert "warning: unet is not predicted by OpenVINO in float32" in capsys.readouterr().err
        np.testing.assert_array_equal(found(patches()), member(patches()))


def test_an_export_that_fails_is_left_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operation\nand a long story")

    monkeypatch.setattr(engines, "_write", fail)
    assert chosen(run(tmp_path), Engine("openvino", "float32")).engine is None
    assert "unet is predicted by Keras: OpenVINO does not take it (no such operation)" in capsys.readouterr().err
    assert not list((tmp_path / "unet.openvino").iterdir())


def test_by_itself_it_exports_where_there_is_much_to_predict_and_no_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "FEW_PIXELS", 8 * PATCH**2)
    monkeypatch.setattr(OpenVino, "speed", lambda *_: 2.0)
    member = run(tmp_path)
    assert chosen(member, Engine()).engine_name == "keras"
    assert chosen(member, Engine(), side=3 * PATCH).engine_name.startswith("openvino ")
    assert chosen(member, Engine(), Way(tta=("flip-h", "flip-v", "rot180")), side=2 * PATCH).engine is not None
    assert chosen(member, Engine(), Way(mc=2), side=3 * PATCH).engine is None
    assert chosen(member, Engine(precision="float16"), side=3 * PATCH).engine is None
    with pytest.raises(UserError, match="--mc leaves dropout on"):
        chosen(member, Engine("openvino"), Way(mc=2))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")  # whose exports are of another kind
    assert chosen(member, Engine(), side=3 * PATCH).engine is None


def test_by_itself_it_is_the_faster_one_as_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "FEW_PIXELS", 0)
    member = run(tmp_path)
    for slow, fast, expected in ((member, OpenVino, "openvino float32"), (OpenVino, member, "keras")):
        taken = {id(slow): 3.0, id(fast): 1.0}

        def seconds(call: Any, _: Any, taken: dict[int, float] = taken) -> float:
            return taken.get(id(call), taken.get(id(type(call)), 0.0))

        monkeypatch.setattr(engines, "_seconds", seconds)
        for _ in range(2):  # the second time nothing is measured
            assert chosen(member, Engine(precision="float32")).engine_name == expected
            monkeypatch.setattr(engines, "_seconds", None)
        (kept,) = tmp_path.rglob("speed-float32.json")
        kept.unlink()
    assert "Keras, as OpenVINO in float32 is slower here (0.33 times its speed)" in capsys.readouterr().out
    assert chosen(member, Engine("openvino", "float32")).engine_name == "openvino float32"


@pytest.mark.parametrize(("bfloat16", "speed"), [(False, 2.0), (True, 2.0), (True, 0.6)])
def test_the_precision_is_the_fastest_of_the_processor_unless_one_is_asked_for(
    bfloat16: bool, speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "computes_in_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(training.precision, "bfloat16_speed", lambda: speed)
    first = ["bfloat16"] if bfloat16 and speed > 1 else []
    assert Engine("openvino").candidates(1, False) == [*first, "float32"]
    assert Engine("openvino", "float32").candidates(1, False) == ["float32"]
    if bfloat16:
        assert Engine("openvino", "bfloat16").candidates(1, False) == ["bfloat16"]
    else:
        with pytest.raises(UserError, match="does not compute in it"):
            Engine("openvino", "bfloat16")
    with pytest.raises(UserError, match="float16 is for Keras"):
        Engine("openvino", "float16")
    with pytest.raises(UserError, match="--engine fast: there are auto, keras, openvino"):
        Engine("fast")
    assert Engine("keras").of_keras == Engine("openvino").of_keras == Engine().of_keras == "float32"
    assert Engine("keras", "bfloat16").of_keras == Engine(precision="bfloat16").of_keras == "bfloat16"


def test_what_is_not_right_in_bfloat16_is_tried_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "computes_in_bfloat16", lambda: True)
    monkeypatch.setattr(training.precision, "bfloat16_speed", lambda: 2.0)
    monkeypatch.setitem(TOLERANCES, "bfloat16", replace(TOLERANCES["bfloat16"], mean=0.0, labels=2.0))
    assert chosen(run(tmp_path), Engine("openvino")).engine_name == "openvino float32"
    assert "not predicted by OpenVINO in bfloat16" in capsys.readouterr().err


def test_a_difference_counts_probabilities_and_labels() -> None:
    expected = np.array([[0.6, 0.4], [0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], np.float32)
    other = expected.copy()
    other[0] = 0.4, 0.6
    found = compare(other, expected)
    assert found.largest == pytest.approx(0.2) and found.mean == pytest.approx(0.05) and found.labels == 0.75
    assert str(found) == "probabilities differ by 0.2 at most and 0.05 on average, 75.00% of the labels agree"
    assert compare(other[:, 1:], expected[:, 1:]).labels == 0.75  # a sigmoid's
    other[1, 0] = np.nan
    assert compare(other, expected).largest == np.inf
    assert not TOLERANCES["bfloat16"].allows(compare(other, expected))


def test_what_was_not_seen_at_all_is_left_to_keras(tmp_path: Path) -> None:
    class Unseen(ArraySource):
        def read(self, window: Window) -> tuple[Mapping[str, NDArray[np.float32]], NDArray[np.bool_]]:
            cut, seen = super().read(window)
            return cut, np.zeros_like(seen)

    member = run(tmp_path)
    source = Unseen(whole().inputs)
    assert choose_engines(
        [member], Put(member), [source], Engine("openvino", "float32"), way=Way(), overlap=0, batch=2
    ) == [member]
