"""Running a network over pictures in batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mambaad.data import PictureStore
from mambaad.data.tensors import normalise, to_tensor
from mambaad.errors import ConfigError, ImageError
from mambaad.inference import (
    Normaliser,
    Scorer,
    batch_size_for,
    batches,
    score_pictures,
    scoring_precision,
)
from mambaad.model import MambaAD, build, onednn

CPU = torch.device("cpu")


class Red:
    """Anomaly = the normalised red channel."""

    def anomaly_maps(self, images: Tensor) -> Tensor:
        return images[:, 0]


@pytest.fixture
def store(tiny_data: Path) -> PictureStore:
    return PictureStore(sorted((tiny_data / "metal" / "train").rglob("*.png")), (32, 48))


@pytest.fixture(scope="module")
def small() -> MambaAD:
    torch.manual_seed(0)
    return build(SMALL).eval()


def random_pictures(count: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def test_batches_go_through_all_pictures_in_order(store: PictureStore) -> None:
    calls: list[tuple[int, int]] = []
    scorer = Scorer(Red(), CPU)
    parts = list(batches(scorer, store, batch_size=4, progress=lambda d, n: calls.append((d, n))))
    assert [p[0].tolist() for p in parts] == [[0, 1, 2, 3], [4, 5]]
    assert calls == [(4, 6), (6, 6)]
    maps, scores = scorer(store[np.arange(6)])
    assert np.array_equal(np.concatenate([p[1] for p in parts]), maps)
    assert np.array_equal(np.concatenate([p[2] for p in parts]), scores)
    assert scores.tolist() == [m.max() for m in maps]
    assert score_pictures(Red(), store, CPU, indices=[3, 0]) == scores[[3, 0]].tolist()


def test_chosen_pictures_only(store: PictureStore) -> None:
    scorer = Scorer(Red(), CPU)
    ((indices, maps, scores),) = batches(scorer, store, indices=[5, 1])
    expected = scorer(store[[5, 1]])
    assert indices.tolist() == [5, 1]
    assert np.array_equal(maps, expected[0])
    assert np.array_equal(scores, expected[1])


def test_no_pictures_are_no_batches(store: PictureStore) -> None:
    assert list(batches(Scorer(Red(), CPU), store, indices=[])) == []
    assert score_pictures(Red(), store, CPU, indices=[]) == []


def test_a_batch_is_scored_when_it_is_asked_for(store: PictureStore) -> None:
    scored: list[int] = []

    class Noting(Red):
        def anomaly_maps(self, images: Tensor) -> Tensor:
            scored.append(len(images))
            return super().anomaly_maps(images)

    before = threading.active_count()
    running = batches(Scorer(Noting(), CPU), store, batch_size=2)
    assert scored == []
    next(running)
    assert scored == [2]
    running.close()
    assert scored == [2]
    assert threading.active_count() == before


def test_an_unreadable_picture_ends_it(store: PictureStore, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    broken = PictureStore([*store.paths[:3], tmp_path / "x.png"], (32, 48), "none")
    before = threading.active_count()
    running = batches(Scorer(Red(), CPU), broken, batch_size=2)
    assert next(running)[0].tolist() == [0, 1]
    with pytest.raises(ImageError, match=r"x\.png"):
        next(running)
    assert threading.active_count() == before


def test_the_result_is_the_methods_own(small: MambaAD) -> None:
    """An array, a tensor of pictures, normalised images: whatever comes in. To the bit that of the
    copy which is run on a CPU where one is, and that is the method's but for rounding."""
    pictures = random_pictures(3)
    copied = onednn.cpu_copy(small) if onednn.runs(small) else small
    with torch.no_grad():
        own = small.anomaly_maps(to_tensor(pictures, CPU))
        expected = copied.anomaly_maps(to_tensor(pictures, CPU))
    torch.testing.assert_close(expected, own, rtol=1e-5, atol=1e-6)
    scorer = Scorer(small, CPU)
    assert scorer.precision == "float32"
    tensor = torch.from_numpy(pictures)
    for maps, scores in (scorer(pictures), scorer(tensor)):
        assert np.array_equal(maps, expected.numpy())
        assert np.array_equal(scores, expected.amax((1, 2)).numpy())
    for images in (tensor, normalise(tensor)):
        maps_, scores_ = scorer.on_device(images)
        assert torch.equal(maps_, expected)
        assert torch.equal(scores_, expected.amax((1, 2)))
        assert not maps_.requires_grad
        assert not maps_.is_inference()


def test_a_stream_keeps_the_order_and_the_sizes() -> None:
    sent = [random_pictures(n, (32, 32 * n)) for n in (2, 1, 3)]
    taken = []

    def sending() -> Iterator[np.ndarray]:
        for pictures in sent:
            taken.append(len(pictures))
            yield pictures

    scorer = Scorer(Red(), CPU)
    for pictures, (maps, scores) in zip(sent, scorer.stream(sending()), strict=True):
        assert np.array_equal(maps, to_tensor(pictures, CPU)[:, 0].numpy())
        assert np.array_equal(scores, maps.max((1, 2)))
    assert taken == [2, 1, 3]


def test_maps_stay_on_the_device_if_not_wanted(
    store: PictureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, pictures = Scorer(Red(), CPU), store[np.arange(6)]
    ((maps, scores),) = scorer.stream([pictures], maps=False)
    assert maps.shape == (6, 0, 48)
    assert np.array_equal(scores, scorer(pictures)[1])
    came: list[np.ndarray] = []

    class Spy(Scorer):
        def stream(self, *arguments: Any, **options: Any) -> Any:
            for maps, scores in super().stream(*arguments, **options):
                came.append(maps)
                yield maps, scores

    monkeypatch.setattr("mambaad.inference.Scorer", Spy)
    assert score_pictures(Red(), store, CPU) == scores.tolist()
    assert sum(maps.size for maps in came) == 0
    assert sum(map(len, came)) == 6


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_downloaded(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    """With streams and page-locked memory that are none, for there is no GPU."""
    pinned: list[tuple[int, ...]] = []
    make = torch.empty

    def empty(shape: Any, *, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            pinned.append(tuple(shape))
        return make(shape, **options)

    scorer, pictures = Scorer(Red(), CPU), random_pictures(3)
    lane = SimpleNamespace(wait_stream=lambda _: None)
    scorer._upload = scorer._work = scorer._download = lane  # type: ignore[assignment]
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: lane)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch, "empty", empty)
    running = scorer._start(torch.from_numpy(pictures), slice(None if wanted else 0))
    maps, scores = running.result()
    expected = scorer(pictures)
    assert pinned == [(3, 32, 32, 3), (3, 32 if wanted else 0, 32), (3,)]
    assert np.array_equal(maps, expected[0] if wanted else expected[0][:, :0])
    assert np.array_equal(scores, expected[1])


def test_a_new_scorer_sees_changed_weights(small: MambaAD) -> None:
    model = build(SMALL).eval()
    before = Scorer(model, CPU)(random_pictures(1))[1]
    model.load_state_dict(small.state_dict())
    maps, scores = Scorer(model, CPU)(random_pictures(1))
    assert scores != before
    assert np.array_equal(maps, Scorer(small, CPU)(random_pictures(1))[0])


def test_other_methods_are_run_as_they_are() -> None:
    class Factor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def anomaly_maps(self, images: Tensor) -> Tensor:
            return images[:, 0] * self.factor

    method = Factor()
    scorer, pictures = Scorer(method, CPU), random_pictures(1)
    before = scorer(pictures)[0]
    method.load_state_dict({"factor": torch.tensor([2.0])})
    assert np.array_equal(scorer(pictures)[0], 2 * before)


def test_kernels_are_compiled_once_for_every_size(
    small: MambaAD, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    def spy(*arguments: object, training: bool, tell: object) -> None:
        assert callable(tell)
        calls.append((*arguments, training))

    monkeypatch.setattr("mambaad.inference.warm_up", spy)
    scorer = Scorer(small, CPU, precision="bf16")
    for count, size in ((1, (32, 32)), (2, (32, 32)), (1, (32, 64)), (2, (32, 32))):
        scorer(random_pictures(count, size))
    expected = [(1, (32, 32)), (2, (32, 32)), (1, (32, 64))]
    assert calls == [(small, *sizes, CPU, "bf16", False) for sizes in expected]
    Scorer(Red(), CPU)(random_pictures(1))
    assert len(calls) == 3


def test_bf16_is_near_float32(small: MambaAD) -> None:
    pictures = random_pictures(2)
    exact = Scorer(small, CPU)(pictures)[0]
    rough = Scorer(small, CPU, precision="bf16")(pictures)[0]
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.02 * exact.max()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision must be auto, float32 or bf16, got 'half'"):
        Scorer(Red(), CPU, precision="half")


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 32, 32, 3),
        torch.zeros(1, 3, 32, 32, dtype=torch.int64),
    ],
    ids=str,
)
def test_other_shapes_and_types_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \(B, H, W, 3\)"):
        Scorer(Red(), CPU).on_device(images)


def test_batch_sizes() -> None:
    gpu = torch.device("cuda")
    assert batch_size_for(CPU, (256, 256)) == 8
    assert [batch_size_for(gpu, (s, s)) for s in (256, 512, 544)] == [64, 64, 32]


def every_value() -> Tensor:
    """All 256 values in all three channels, uint8 (1, 16, 16, 3)."""
    return torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)


def test_normalising_at_once_gives_the_same_values() -> None:
    pictures = every_value()
    expected = normalise(pictures)
    with torch.autocast("cpu", torch.bfloat16):  # as in use; it must not narrow the sum
        wide = Normaliser(CPU, torch.float32)(pictures)
        narrow = Normaliser(CPU, torch.bfloat16)(pictures)
    torch.testing.assert_close(wide, expected, rtol=0, atol=5e-7)
    assert torch.equal(narrow, expected.bfloat16())
    assert wide.shape == expected.shape
    assert narrow.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalising_at_once_is_one_operation(dtype: torch.dtype) -> None:
    """Views aside, which compute nothing."""
    seen: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if not func.is_view:
                seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    at_once, pictures = Normaliser(CPU, dtype), every_value()
    with Recorder():
        at_once(pictures)
    assert [name for name in seen if not name.startswith(("empty", "new_empty"))] == ["addcmul"]


@pytest.mark.parametrize(
    ("asked", "trained", "device", "expected"),
    [
        (None, "bf16", "cpu", "float32"),
        (None, "bf16", "cuda", "bf16"),
        (None, "float32", "cuda", "float32"),
        ("auto", "bf16", "cpu", "float32"),
        ("bf16", "float32", "cpu", "bf16"),
        ("float32", "bf16", "cuda", "float32"),
    ],
)
def test_what_a_run_is_scored_in(
    asked: str | None, trained: str, device: str, expected: str
) -> None:
    assert scoring_precision(asked, trained, torch.device(device)) == expected


def test_auto_asks_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for has_bf16, expected in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, h=has_bf16, **__: h)
        assert scoring_precision("auto", "float32", gpu) == expected
        assert scoring_precision(None, "auto", gpu) == expected
