"""Pixel metrics by sorting in bands, on CPU tensors, against those of numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mambaad import metrics
from mambaad.device_metrics import (
    _BUCKETS,
    _at_or_under,
    _buckets,
    _Pixels,
    _room,
    _running_sum,
    pixel_metrics,
)
from mambaad.metrics import Protocol, score

CPU = torch.device("cpu")
Maps = NDArray[Any]
Masks = NDArray[np.bool_]


def example(count: int = 4, side: int = 24) -> tuple[NDArray[np.float32], Masks]:
    """Maps with ties, of both signs, and two regions in every second picture."""
    draw = np.random.default_rng(5)
    maps = np.round(draw.standard_normal((count, side, side)), 2).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[::2, 2:7, 3:9] = masks[::2, 15:17, 12:20] = True
    return maps + 0.5 * masks, masks


def assert_same(found: Mapping[str, float | str], expected: Mapping[str, float | str]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        same = value if isinstance(value, str) else pytest.approx(value, abs=1e-12)
        assert found[name] == same, name


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Maps, Masks]:
    """Tiny pictures: many ties, equal zeros of both signs, any masks, also empty and full ones."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    elements = draw(
        st.sampled_from(
            [
                st.sampled_from([-1.0, -0.0, 0.0, 1.0]),
                st.integers(-10, 10).map(float),
                st.floats(-4, 4, width=16),
                st.floats(-(2.0**100), 2.0**100, width=32),
                st.just(0.25),
            ]
        )
    )
    maps = draw(hnp.arrays(kind, shape, elements=elements))
    return maps, draw(hnp.arrays(np.bool_, shape))


@settings(deadline=None, max_examples=200)
@given(
    pictures(),
    st.sampled_from(["exact", "ader"]),
    st.sampled_from([0.01, 0.05, 0.3, 0.5, 1.0]),
    st.sampled_from([1, 2, 7, 20, 1000]),
)
def test_equal_to_numpy(
    case: tuple[Maps, Masks], protocol: Protocol, limit: float, room: int
) -> None:
    maps, masks = case
    with np.errstate(over="ignore", invalid="ignore"):
        expected = metrics.pixel_metrics(maps, masks, protocol, limit)
        found = pixel_metrics(maps, masks, protocol, limit, device=CPU, room=room)
    assert_same(found, expected)


@pytest.mark.parametrize("protocol", ["exact", "ader"])
@pytest.mark.parametrize("room", [None, 500, 100])
def test_bands_change_nothing(protocol: Protocol, room: int | None) -> None:
    maps, masks = example()
    found = pixel_metrics(maps, masks, protocol, 0.3, device=CPU, room=room)
    assert_same(found, metrics.pixel_metrics(maps, masks, protocol, 0.3))
    assert all(isinstance(value, float) for value in found.values())


def test_long_sums_of_weights() -> None:
    draw = np.random.default_rng(0)
    maps = draw.random((3, 64, 64), dtype=np.float32)
    masks = draw.random(maps.shape) < 0.6  # more anomalous pixels than a row of the sum holds
    found = pixel_metrics(maps, masks, "exact", 0.3, device=CPU)
    assert_same(found, metrics.pixel_metrics(maps, masks, "exact", 0.3))


@pytest.mark.parametrize("protocol", ["exact", "ader"])
def test_score_takes_it_and_leaves_the_rest_as_it_was(protocol: Protocol) -> None:
    maps, masks = example()
    here = partial(pixel_metrics, device=CPU, room=300)
    found = score(maps, masks, protocol=protocol, pro_limit=0.1, pixels=here)
    expected = score(maps, masks, protocol=protocol, pro_limit=0.1)
    for name in metrics.FIELDS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    missing = score(maps, [*masks[:3], None], labels=[1, 0, 1, 0], protocol=protocol, pixels=here)
    assert math.isnan(missing.pixel_AP)
    assert missing.reasons["pixel_AP"] == "no masks for 1 of 4 pictures"
    broken = maps.copy()
    broken[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="picture 1 holds NaN"):
        score(broken, masks, pixels=here)


@pytest.mark.parametrize(("fill", "only"), [(False, "normal"), (True, "anomalous")])
def test_one_class_is_undefined(fill: bool, only: str) -> None:
    maps, masks = np.zeros((2, 3, 3), np.float32), np.full((2, 3, 3), fill)
    found = pixel_metrics(maps, masks, "exact", 0.3, device=CPU)
    assert found == dict.fromkeys(found, f"one class only: every pixel is {only}")
    assert len(found) == 6


def test_perfect_maps() -> None:
    masks = example()[1]
    found = pixel_metrics(masks.astype(np.float32), masks, "exact", 0.3, device=CPU, room=100)
    assert list(found.values()) == [1.0, 1.0, 1.0, pytest.approx(1.0), 1.0, pytest.approx(1.0)]


def test_float64_maps_are_ranked_in_float64() -> None:
    maps = 1.0 + np.array([[[0.0, 1e-12]], [[2e-12, 3e-12]]])
    masks = np.array([[[False, False]], [[True, True]]])
    assert pixel_metrics(maps, masks, "exact", 0.3, device=CPU)["pixel_AUROC"] == 1.0


def test_inputs_may_be_read_only_views_and_are_left_as_they_were() -> None:
    maps, masks = example()
    expected = pixel_metrics(maps, masks, "exact", 0.3, device=CPU)
    before = maps.copy(), masks.copy()
    maps.setflags(write=False)
    found = pixel_metrics(maps[::-1], masks[::-1], "exact", 0.3, device=CPU, room=400)
    assert_same(found, expected)
    assert np.array_equal(maps, before[0])
    assert np.array_equal(masks, before[1])


def test_a_repeated_run_gives_the_same_bits() -> None:
    maps, masks = example()
    first, second = (pixel_metrics(maps, masks, "exact", 0.3, device=CPU, room=99) for _ in "ab")
    assert first == second


def test_bands_fit_and_cover_every_pixel_once() -> None:
    maps, masks = example()
    weights = np.arange(np.count_nonzero(masks), dtype=np.float64)
    pixels = _Pixels(maps, masks, weights, CPU, room=300)
    bands = pixels.bands()
    assert len(bands) > 5
    assert [low for low, _ in bands[:-1]] == [high for _, high in bands[1:]]
    assert (bands[0][1], bands[-1][0]) == (_BUCKETS, 0)
    parts = [pixels.band(*band) for band in bands]
    assert max(len(positives) + len(negatives) for positives, _, negatives in parts) <= 300
    order = np.argsort(np.concatenate([w for _, w, _ in parts]))
    assert np.concatenate([p for p, _, _ in parts])[order].tolist() == maps[masks].tolist()
    negatives = np.concatenate([n for _, _, n in parts])
    assert np.array_equal(np.sort(negatives), np.sort(maps[~masks]))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_buckets_ascend_with_scores(kind: type[np.floating[Any]]) -> None:
    tiny, huge = np.finfo(kind).smallest_subnormal, np.finfo(kind).max
    scores = np.array([-huge, -3, -1.5, -tiny, -0.0, 0.0, tiny, 1e-3, 1, 1.5, huge], kind)
    found = _buckets(torch.from_numpy(scores)).tolist()
    assert found == sorted(found)
    assert found[4] == found[5]
    assert len(set(found)) == len(found) - 2  # the zeros, and the smallest number after them
    assert 0 <= found[0] <= found[-1] < _BUCKETS


def test_rounded_thresholds_are_exceeded_by_the_same_scores() -> None:
    exact = np.linspace(0.0, 1.0, 21)
    found = _at_or_under(exact, np.dtype(np.float32), CPU).numpy()
    assert found.dtype == np.float32
    assert (found <= exact).all()
    assert (np.nextafter(found, np.float32(2)) > exact).all()
    assert (exact.astype(np.float32) > exact).any()  # rounding to the nearest would go wrong


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000, 1024 * 1024 + 3])
def test_running_sum(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    found = _running_sum(torch.from_numpy(values)).numpy()
    assert np.allclose(found, np.cumsum(values), rtol=1e-12, atol=0)


def test_room_counts_what_the_allocator_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (256 * 100, 1 << 40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 256 * 7)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 256 * 5)
    assert _room(torch.device("cuda")) == 102
