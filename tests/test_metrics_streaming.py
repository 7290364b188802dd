"""Pixel metrics from bins: against the exact ones, on hard maps, in shards and in any order."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mambaad.metrics import bins as bins_module
from mambaad.metrics import streaming
from mambaad.metrics.streaming import PixelBins
from mambaad.metrics.summary import SUMMARY_FIELDS, PixelSummary, summarise

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


def drawn(seed: int, count: int = 24, side: int = 64) -> tuple[Maps, Masks]:
    """Noise that is 1.5 higher in a rectangle in two pictures of three."""
    draw = np.random.default_rng(seed)
    maps = draw.standard_normal((count, side, side)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    for n in range(count):
        if n % 3:
            y, x = draw.integers(0, side - side // 4, 2)
            masks[n, y : y + side // 4, x : x + 5 + n % 9] = True
    maps[masks] += np.float32(1.5)
    return maps, masks


def differences(found: PixelSummary, expected: PixelSummary) -> dict[str, float]:
    """How far each metric is off; 0 where both are undefined, for the same reason."""
    assert found.reasons == expected.reasons
    return {
        name: 0.0
        if math.isnan(getattr(expected, name))
        else abs(getattr(found, name) - getattr(expected, name))
        for name in SUMMARY_FIELDS
    }


def streamed(maps: Maps, masks: Masks, step: int, **options: float) -> PixelSummary:
    """The metrics after updates with ``step`` pictures each."""
    pixels = PixelBins(**options)
    for start in range(0, len(maps), step):
        pixels.update(maps[start : start + step], masks[start : start + step])
    return pixels.summary()


SHAPES = {
    "as drawn": lambda m: m,
    "heavy tails": lambda m: np.sign(m) * np.exp(4 * np.abs(m)),
    "log-normal": lambda m: np.exp(3 * m),
    "narrow, far from 0": lambda m: 0.3 + 1e-4 * np.tanh(m),
    "only a few float32 apart": lambda m: 1000 + 1e-3 * m,
    "negative": lambda m: -np.exp(m),
    "ties": lambda m: np.round(m, 1),
    "mostly 0": lambda m: np.maximum(m - 1, 0),
}


@pytest.mark.parametrize("outlier", [None, 1e30, -1e30])
@pytest.mark.parametrize("shape", SHAPES)
def test_within_1e_4_of_exact(
    monkeypatch: pytest.MonkeyPatch, shape: str, outlier: float | None
) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 6 * 64 * 64)  # four chunks
    maps, masks = drawn(0)
    maps = SHAPES[shape](maps).astype(np.float32)
    if outlier is not None:
        maps[0, 3, 5] = outlier
    level = float(np.quantile(maps, 0.97))
    found = streamed(maps, masks, 2, threshold=level)
    expected = summarise(maps, masks, threshold=level)
    assert found.method == "streaming"
    assert found.pixels == maps.size
    assert max(differences(found, expected).values()) <= 1e-4
    assert found.pixel_SegF1 == expected.pixel_SegF1


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Maps, Masks, int]:
    """Up to five small pictures of any finite scores, or of few distinct ones."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(2, 6)))
    kind = draw(st.sampled_from(["any", "ties", "ulps", "shift"]))
    if kind == "any":
        elements = st.floats(width=32, allow_nan=False, allow_infinity=False)
        maps = draw(hnp.arrays(np.float32, shape, elements=elements))
    else:
        whole = draw(hnp.arrays(np.int32, shape, elements=st.integers(-9, 9)))
        if kind == "ulps":  # neighbouring float32
            maps = (whole + np.float32(0.3).view(np.int32)).astype(np.int32).view(np.float32)
        else:
            maps = (whole * 1e-6 + 0.3 if kind == "shift" else whole).astype(np.float32)
    masks = draw(hnp.arrays(np.bool_, shape))
    assume(masks.any() and not masks.all())
    return maps, masks, draw(st.integers(1, 5))


@settings(deadline=None, max_examples=60)
@given(pictures())
def test_few_pixels_are_exact(case: tuple[Maps, Masks, int]) -> None:
    maps, masks, step = case
    found, expected = streamed(maps, masks, step), summarise(maps, masks)
    assert max(differences(found, expected).values()) <= 1e-9


@settings(deadline=None, max_examples=6)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.2, 6.0),
    st.floats(-1e4, 1e4),
    st.integers(3, 24),
    st.booleans(),
)
def test_any_spread_and_offset(
    seed: int, tail: float, offset: float, step: int, ordered: bool
) -> None:
    maps, masks = drawn(seed)
    maps = (offset + np.exp(tail * maps)).astype(np.float32)
    if ordered:  # every chunk is above all that came before: the hardest order
        order = np.argsort(maps.max(axis=(1, 2)))
        maps, masks = maps[order], masks[order]
    pixels = PixelBins()
    for start in range(0, len(maps), step):
        pixels.update(maps[start : start + step], masks[start : start + step])
        pixels.totals()  # counts what waits: each update is a chunk
    differ = differences(pixels.summary(), summarise(maps, masks))
    assert max(differ.values()) <= 1e-4, differ


def shard(seed: int) -> dict[str, NDArray[np.generic]]:
    """What one process counts."""
    maps, masks = drawn(seed)
    pixels = PixelBins(threshold=2.0)
    pixels.update(maps * np.float32(1 + seed), masks)
    return pixels.to_arrays()


def test_shards_of_other_processes_are_merged() -> None:
    seeds = range(3)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        others = pool.map(shard, seeds[1:])
        shards = [shard(0), *others]
    merged = PixelBins(threshold=2.0)
    for arrays in shards:
        merged.merge(PixelBins.from_arrays(arrays))
    data = [drawn(seed) for seed in seeds]
    maps = np.concatenate([m * np.float32(1 + s) for s, (m, _) in zip(seeds, data, strict=True)])
    masks = np.concatenate([masks for _, masks in data])
    expected = summarise(maps, masks, threshold=2.0)
    found = merged.summary()
    assert found.pixels == maps.size
    assert max(differences(found, expected).values()) <= 1e-4
    assert found.pixel_SegF1 == expected.pixel_SegF1


def test_merging_keeps_every_count_and_the_other() -> None:
    one, two = PixelBins(), PixelBins()
    one.update(*drawn(1))
    two.update(*drawn(2))
    totals = one.totals() + two.totals()
    before = two.summary()
    one.merge(two)
    assert one.totals().tolist() == totals.tolist()
    assert two.summary() == before


def test_pixels_of_several_thresholds_have_one_f1() -> None:
    parts = [(*drawn(1), 1.0), (*drawn(2), 2.5)]
    together = PixelBins()
    above = []
    for maps, masks, threshold in parts:
        part = PixelBins(threshold=threshold)
        part.update(maps, masks)
        together.merge(PixelBins.from_arrays(part.to_arrays()))
        above.append(maps > threshold)
    found = PixelBins.from_arrays(together.to_arrays()).summary()
    truth = np.concatenate([masks for _, masks, _ in parts])
    called = np.concatenate(above)
    assert found.pixel_SegF1 == 2 * (called & truth).sum() / (called.sum() + truth.sum())
    assert found.threshold is None
    assert "pixel_SegF1" not in found.reasons
    bare = PixelBins()
    bare.update(*drawn(3))
    together.merge(bare)
    assert together.summary().reasons["pixel_SegF1"] == "no threshold"


def test_other_thresholds_are_not_merged() -> None:
    with pytest.raises(ValueError, match=r"threshold 1\.0, got None"):
        PixelBins(threshold=1.0).merge(PixelBins())


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = drawn(3)
    results = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(bins_module.numba, "get_num_threads", lambda t=threads: t)
        results.append(streamed(maps, masks, 24))
    assert results[0] == results[1] == results[2]


def test_what_is_given_may_be_overwritten() -> None:
    maps, masks = drawn(4)
    pixels = PixelBins()
    buffer, truth = np.empty_like(maps[:2]), np.empty_like(masks[:2])
    for start in range(0, len(maps), 2):
        buffer[:], truth[:] = maps[start : start + 2], masks[start : start + 2]
        pixels.update(buffer, truth)
    buffer[:] = np.nan
    assert max(differences(pixels.summary(), summarise(maps, masks)).values()) <= 1e-4


def test_pictures_of_several_sizes() -> None:
    (small, small_masks), (large, large_masks) = drawn(5), drawn(6, 6, 80)
    pixels = PixelBins()
    for start in range(0, 6, 2):
        pixels.update(small[start : start + 2], small_masks[start : start + 2])
        pixels.update(large[start : start + 2], large_masks[start : start + 2])
    apart = PixelBins()
    apart.update(small[:6], small_masks[:6])
    apart.update(large, large_masks)
    assert pixels.totals().tolist() == apart.totals().tolist()
    assert pixels.summary().pixel_AUROC == pytest.approx(apart.summary().pixel_AUROC, abs=1e-6)


def test_one_class_has_reasons() -> None:
    pixels = PixelBins()
    assert "no pictures" in pixels.summary().reasons["pixel_AP"]
    maps = np.zeros((2, 4, 4), np.float32)
    pixels.update(maps, np.zeros(maps.shape, np.bool_))
    found = pixels.summary()
    assert math.isnan(found.pixel_AUROC)
    assert found.reasons == summarise(maps, np.zeros(maps.shape, np.bool_)).reasons
    pixels.update(maps, np.ones(maps.shape, np.bool_))
    assert pixels.summary().pixel_AUROC == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    maps = np.zeros((2, 2, 2))
    maps[1, 0, 0] = bad
    with pytest.raises(ValueError, match="maps must be finite; picture 1 holds"):
        PixelBins().update(maps, np.zeros(maps.shape, np.bool_))


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"masks must have the maps' shape \(1, 2, 2\)"):
        PixelBins().update(np.zeros((1, 2, 2)), np.zeros((1, 2, 3), np.bool_))
    with pytest.raises(ValueError, match="limit of AUPRO"):
        PixelBins().summary(pro_limit=0.0)
