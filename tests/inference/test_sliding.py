"""Blending covers every pixel with the stated weights, whatever the size, the batch and the neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.windows import Window, starts
from inference.sliding import ArraySource, Kernel, blend, blend_all, blend_rows, kernel, pieces, sample, whole

Floats = NDArray[np.float32]
SIZES = [(1, 1), (5, 7), (16, 16), (17, 16), (9, 40), (33, 47), (64, 20)]
PATCH = 16
SHARES = np.array([0.3, 0.7], np.float32)


def image(height: int, width: int, channels: int = 2, seed: int = 0) -> dict[str, Floats]:
    """Random values for one modality."""
    values = np.random.default_rng(seed).random((height, width, channels))
    return {"optical": values.astype(np.float32)}


def identity(batch: dict[str, Floats]) -> Floats:
    """A model that returns its input."""
    return batch["optical"]


KERNELS: tuple[Kernel, ...] = ("gaussian", "cosine")


def positional(batch: dict[str, Floats]) -> Floats:
    """A model whose answer depends on where in the window a pixel lies, as that of a real network does."""
    patch = batch["optical"].shape[1]
    return batch["optical"] * np.arange(1, patch * patch + 1, dtype=np.float32).reshape(1, patch, patch, 1)


def test_kernel_is_the_stated_one() -> None:
    axis = np.linspace(-1, 1, 9)
    expected = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / 2)
    np.testing.assert_allclose(kernel(9), expected, rtol=1e-6)
    assert kernel(1).shape == (1, 1)


def test_a_cosine_fades_out_at_the_edges_and_its_shifts_by_half_a_window_add_up_to_one() -> None:
    weights = kernel(8, "cosine")
    assert weights.min() > 0 and weights[0, 0] < 0.01 * weights[4, 4]
    np.testing.assert_allclose(weights[:4, :4] + weights[4:, :4] + weights[:4, 4:] + weights[4:, 4:], 1, rtol=1e-6)


def test_windows_are_blended_by_the_kernel_that_was_asked_for() -> None:
    """Of two windows that say 0 and 1, where they meet."""
    numbers = iter([np.zeros((1, PATCH, PATCH, 1), np.float32), np.ones((1, PATCH, PATCH, 1), np.float32)] * 2)
    width = PATCH + PATCH // 2
    by = {
        shape: blend(
            lambda _: next(numbers), image(PATCH, width), patch=PATCH, num_outputs=1, stride=PATCH, batch=1, shape=shape
        )
        for shape in KERNELS
    }
    both = slice(PATCH // 2, PATCH)
    for shape, blended in by.items():
        weights = kernel(PATCH, shape)[0]
        first, second = weights[both], weights[: PATCH - PATCH // 2]
        np.testing.assert_allclose(blended[3, both, 0], second / (first + second), rtol=1e-5)
    assert by["cosine"][0, PATCH // 2, 0] < by["gaussian"][0, PATCH // 2, 0]


@pytest.mark.parametrize("shape", KERNELS)
@pytest.mark.parametrize("size", SIZES)
def test_a_constant_stays_constant(size: tuple[int, int], shape: Kernel) -> None:
    def constant(batch: dict[str, Floats]) -> Floats:
        return np.tile(SHARES, (*batch["optical"].shape[:3], 1))

    blended = blend(constant, image(*size), patch=PATCH, num_outputs=2, batch=3, shape=shape)
    assert blended.dtype == np.float32
    assert blended.shape == (*size, 2)
    np.testing.assert_allclose(blended, np.tile(SHARES, (*size, 1)), rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_an_absent_modality_is_absent_from_every_window(size: tuple[int, int]) -> None:
    """Also where a window reaches beyond the array."""
    seen: list[Floats] = []

    def noting(batch: dict[str, Floats]) -> Floats:
        seen.extend(batch["sar"])
        return batch["optical"]

    there, absent = image(*size), image(*size)
    there["sar"], absent["sar"] = np.ones((*size, 1), np.float32), np.full((*size, 1), np.nan, np.float32)
    one, other = blend_all(noting, [there, absent], patch=PATCH, num_outputs=2, batch=1)
    assert not np.isnan(seen[: len(seen) // 2]).any() and np.isnan(seen[len(seen) // 2 :]).all()
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [None, 5, PATCH])
def test_the_identity_reproduces_its_input(size: tuple[int, int], stride: int | None) -> None:
    inputs = image(*size)
    blended = blend(identity, inputs, patch=PATCH, num_outputs=2, stride=stride, batch=4)
    np.testing.assert_allclose(blended, inputs["optical"], rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [PATCH, 7])
def test_equals_a_slow_reference(size: tuple[int, int], patch: int) -> None:
    inputs = image(*size)["optical"]
    height, width = size
    padded = np.zeros((max(height, patch), max(width, patch), 2))
    padded[:height, :width] = inputs
    axis = np.linspace(-1, 1, patch)
    total, weight = np.zeros_like(padded), np.zeros(padded.shape[:2])
    for top in starts(height, patch, patch // 2):
        for left in starts(width, patch, patch // 2):
            window = padded[None, top : top + patch, left : left + patch]
            answer = positional({"optical": window.astype(np.float32)})[0]
            for i in range(patch):
                for j in range(patch):
                    factor = np.exp(-(axis[i] ** 2 + axis[j] ** 2) / 2)
                    total[top + i, left + j] += answer[i, j] * factor
                    weight[top + i, left + j] += factor
    expected = (total / weight[..., None])[:height, :width]
    blended = blend(positional, {"optical": inputs}, patch=patch, num_outputs=2, batch=5)
    np.testing.assert_allclose(blended, expected, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_batches_are_of_one_size_and_do_not_change_the_result(batch: int) -> None:
    sizes = set()

    def model(batch: dict[str, Floats]) -> Floats:
        sizes.add(batch["optical"].shape)
        return positional(batch)

    blended = blend(model, image(33, 47), patch=PATCH, num_outputs=2, batch=batch)
    assert sizes == {(batch, PATCH, PATCH, 2)}
    np.testing.assert_array_equal(blended, blend(positional, image(33, 47), patch=PATCH, num_outputs=2, batch=2))


def test_many_arrays_share_batches_and_come_out_in_order_as_if_alone() -> None:
    calls = 0

    def model(batch: dict[str, Floats]) -> Floats:
        nonlocal calls
        calls += 1
        return positional(batch)

    arrays = [image(*size, seed=seed) for seed, size in enumerate(SIZES)]
    together = list(blend_all(model, arrays, patch=PATCH, num_outputs=2, batch=4))
    windows = sum(len(starts(h, PATCH, 8)) * len(starts(w, PATCH, 8)) for h, w in SIZES)
    assert calls == -(-windows // 4)
    for array, blended in zip(arrays, together, strict=True):
        np.testing.assert_array_equal(blended, blend(positional, array, patch=PATCH, num_outputs=2))


def test_arrays_are_read_only_as_they_are_needed() -> None:
    read = []

    def arrays() -> Iterator[dict[str, Floats]]:
        for seed in range(10):
            read.append(seed)
            yield image(PATCH, PATCH, seed=seed)

    stream = blend_all(identity, arrays(), patch=PATCH, num_outputs=2, batch=2)
    next(stream)
    assert read == [0, 1]


def test_away_from_the_edges_the_result_moves_with_the_grid() -> None:
    whole = image(64, 48)
    stride = PATCH // 2
    cut = {"optical": whole["optical"][stride:]}
    blended = blend(positional, whole, patch=PATCH, num_outputs=2)
    moved = blend(positional, cut, patch=PATCH, num_outputs=2)
    np.testing.assert_allclose(moved[PATCH:], blended[PATCH + stride :], rtol=1e-5)


def test_modalities_of_a_window_come_from_the_same_place() -> None:
    optical, dem = image(33, 20)["optical"], image(33, 20, channels=1, seed=1)["optical"]

    def difference(batch: dict[str, Floats]) -> Floats:
        assert list(batch) == ["optical", "dem"]
        return batch["optical"] - batch["dem"]

    blended = blend(difference, {"optical": optical, "dem": dem}, patch=PATCH, num_outputs=2)
    np.testing.assert_allclose(blended, optical - dem, atol=1e-6)


def test_a_vector_goes_with_every_window_of_its_array() -> None:
    def model(batch: dict[str, Floats]) -> Floats:
        assert batch["location"].shape == (4, 3)
        return np.broadcast_to(batch["location"][:, None, None], (4, PATCH, PATCH, 3))

    locations = [*np.eye(3, dtype=np.float32)[[0, 2]]]
    arrays = [{**image(20, 30), "location": location} for location in locations]
    for location, blended in zip(locations, blend_all(model, arrays, patch=PATCH, num_outputs=3, batch=4), strict=True):
        np.testing.assert_allclose(blended, np.tile(location, (20, 30, 1)), rtol=1e-6)


def test_padding_is_zero_and_behind() -> None:
    seen: list[Floats] = []

    def model(batch: dict[str, Floats]) -> Floats:
        seen.append(batch["optical"].copy())
        return batch["optical"]

    inputs = image(5, 7)
    blend(model, inputs, patch=PATCH, num_outputs=2, batch=2)
    np.testing.assert_array_equal(seen[0][0, :5, :7], inputs["optical"])
    assert not seen[0][0, 5:].any() and not seen[0][0, :, 7:].any() and not seen[0][1].any()


@pytest.mark.parametrize(("height", "width"), [(50, 37), (16, 16), (9, 40), (33, 1), (100, 16)])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_pieces_are_blended_as_the_whole_is(height: int, width: int, rows: int, batch: int) -> None:
    patch, stride = 16, 5
    array = np.random.default_rng(0).random((height, width, 2), dtype=np.float32)
    source = ArraySource({"optical": array})

    def predict(batched: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        # Depends on the place in the window: another set of windows gives another mean.
        return batched["optical"] * np.linspace(0, 1, patch, dtype=np.float32)[:, None, None]

    expected = blend(predict, source.inputs, patch=patch, num_outputs=2, stride=stride, batch=batch)
    divided = pieces(source, patch, stride, rows)
    assert [piece.top for piece in divided[1:]] == [piece.bottom for piece in divided[:-1]]
    found = list(blend_rows(predict, divided, patch=patch, num_outputs=2, stride=stride, batch=batch))
    assert [one.top for one in found] == [0, *np.cumsum([len(one.probs) for one in found])[:-1]]
    np.testing.assert_array_equal(np.concatenate([one.probs for one in found]), expected)
    assert np.concatenate([one.seen for one in found]).all()


def test_what_was_seen_is_passed_on_and_memory_is_a_strip() -> None:
    seen = np.random.default_rng(0).random((400, 30)) > 0.5

    class Seen:
        height, width = seen.shape

        def read(self, window: Window) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
            cut = seen[window.slices]
            return {"optical": cut[..., None].astype(np.float32)}, cut

    largest = 0
    rows = []
    parts = [whole(Seen(), 16, 8)]
    for one in blend_rows(lambda x: x["optical"], parts, patch=16, num_outputs=1, stride=8, batch=4):
        largest = max(largest, len(one.probs))
        rows.append(one)
    np.testing.assert_array_equal(np.concatenate([one.seen for one in rows]), seen)
    np.testing.assert_allclose(np.concatenate([one.probs for one in rows])[..., 0], seen, atol=1e-6)
    assert largest <= 16


@dataclass(frozen=True)
class Holed(ArraySource):
    """An array of which only `there` `(H, W)` was seen: windows in holes are NaN, as those of scenes are."""

    there: NDArray[np.bool_]

    def read(self, window: Window) -> tuple[Mapping[str, Floats], NDArray[np.bool_]]:
        cut, _ = super().read(window)
        seen = self.there[window.slices]
        return {name: array if seen.any() else np.full_like(array, np.nan) for name, array in cut.items()}, seen


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
@pytest.mark.parametrize("stride", [5, 8, PATCH])
def test_windows_in_which_nothing_was_seen_are_not_predicted(batch: int, stride: int) -> None:
    """They reach no pixel that was seen, and no other window is moved by them."""
    inputs = image(70, 90)
    there = np.zeros((70, 90), bool)
    there[3:20, 40:60] = there[50:, 70:75] = there[66, 2] = True
    calls: list[Floats] = []

    def model(patches: dict[str, Floats]) -> Floats:
        calls.append(patches["optical"])
        return positional(patches)

    options: Any = {"patch": PATCH, "num_outputs": 2, "stride": stride}
    holed = list(blend_rows(model, [whole(Holed(inputs, there), PATCH, stride)], batch=batch, **options))
    seen = np.concatenate([rows.seen for rows in holed])
    probs = np.concatenate([rows.probs for rows in holed])
    np.testing.assert_array_equal(seen, there)
    assert np.isfinite(calls).all() and np.isfinite(probs).all()
    np.testing.assert_array_equal(probs[there], blend(positional, inputs, batch=batch, **options)[there])
    tops, lefts = starts(70, PATCH, stride), starts(90, PATCH, stride)
    windows = sum(there[top : top + PATCH, left : left + PATCH].any() for top in tops for left in lefts)
    assert sum(int(patch.any()) for patches in calls for patch in patches) == windows


def test_a_source_in_which_nothing_was_seen_is_not_predicted() -> None:
    source = Holed(image(40, 40), np.zeros((40, 40), bool))

    def model(patches: dict[str, Floats]) -> Floats:
        raise AssertionError("called")

    for outputs, share in ((1, 0.5), (4, 0.25)):
        rows = list(blend_rows(model, [whole(source, PATCH, 8)], patch=PATCH, num_outputs=outputs, stride=8, batch=2))
        probs = np.concatenate([one.probs for one in rows])
        np.testing.assert_allclose(probs, np.full((40, 40, outputs), share), rtol=1e-6)
        assert not any(one.seen.any() for one in rows)


def test_memory_is_a_few_rows_of_windows_also_where_little_was_seen() -> None:
    there = np.zeros((4000, 30), bool)
    there[3, 3] = there[3990, 3] = True
    source = Holed(image(4000, 30), there)
    rows = list(blend_rows(identity, [whole(source, PATCH, 8)], patch=PATCH, num_outputs=2, stride=8, batch=4))
    assert max(len(one.probs) for one in rows) <= 6 * PATCH
    np.testing.assert_array_equal(np.concatenate([one.seen for one in rows]), there)


def test_a_sample_is_of_the_windows_that_were_seen_most() -> None:
    inputs = image(10 * PATCH, 3 * PATCH)
    there = np.zeros((10 * PATCH, 3 * PATCH), bool)
    found = sample([Holed(inputs, there)], PATCH, 2)
    assert found is None
    there[7 * PATCH + 1, 2 * PATCH] = True  # one pixel, in a window that is not among those that are looked at first
    found = sample([Holed(inputs, there)], PATCH, 2)
    assert found is not None
    np.testing.assert_array_equal(found["optical"], inputs["optical"][None, 7 * PATCH : 8 * PATCH, -PATCH:])
    there[:PATCH, :PATCH] = there[-PATCH:, -PATCH:] = True
    found = sample([Holed(inputs, there)], PATCH, 2)
    assert found is not None
    expected = [inputs["optical"][:PATCH, :PATCH], inputs["optical"][-PATCH:, -PATCH:]]
    np.testing.assert_array_equal(found["optical"], expected)
    small = sample([ArraySource(image(5, 7))], PATCH, 2)
    assert small is not None and small["optical"].shape[:3] == (1, PATCH, PATCH)
    assert not small["optical"][0, 5:].any()
