"""Running a trained network over pictures, batch by batch. Shared by calibration, evaluation and
prediction, so that a picture is prepared and scored in one way only.

    score of a picture = maximum of its anomaly map, or another of ``mambaad.scores``
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambaad.blend import Blend
from mambaad.config import IMAGENET_MEAN, IMAGENET_STD
from mambaad.data.cache import Progress, Store
from mambaad.data.tensors import normalise
from mambaad.devices import autocast, exact_float32, resolve_precision
from mambaad.model import onednn
from mambaad.model.fold import inference_copy
from mambaad.model.mambaad import MambaAD
from mambaad.model.warmup import warm_up
from mambaad.pipeline import ahead
from mambaad.replay import Function, Replay
from mambaad.scores import device_scores, score_top_of
from mambaad.tiling import Tiling

LARGE = 512 * 512
"""Pixels of a picture above which a GPU gets half as many at once. A batch has no more pixels than
the largest one of such pictures, or a single picture."""

IN_FLIGHT = 2
"""Batches that are on their way through the GPU while the next one is prepared."""

_log = logging.getLogger(__name__)

Pictures = NDArray[np.uint8]
Maps = NDArray[np.float32]
Scores = NDArray[np.float32]


class Method(Protocol):
    """What scoring needs of a method: pictures in, anomaly maps out."""

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Args: images (B, 3, H, W), normalised. Returns: float32, (B, H, W)."""
        ...


class Normaliser:
    """``normalise`` as x · scale + shift: one kernel on a GPU instead of five.

    In float32 the result differs from that of ``normalise`` by rounding, at most 8e-7 (on a GPU it
    is the nearer of the two to float64); in bf16 it is the same for each of the 256 values.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Args: device of the pictures; dtype of the result, float32 or a narrower one."""
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (IMAGENET_MEAN, IMAGENET_STD))
        self._scale = (1 / (255 * std)).view(3, 1, 1).to(device, torch.float32)
        self._shift = (-mean / std).view(3, 1, 1).to(device, torch.float32)
        self._dtype = dtype

    def __call__(self, pictures: Tensor) -> Tensor:
        """Args: pictures uint8 (B, H, W, 3). Returns: (B, 3, H, W), channels last in memory."""
        x = pictures.permute(0, 3, 1, 2)
        y = torch.empty_like(x, dtype=self._dtype)
        return torch.addcmul(self._shift, x, self._scale, out=y)


class Scorer:
    """A method on a device, ready to score. Safe to use from several threads.

    On CUDA, calls are replayed CUDA graphs (``mambaad.replay``). In float32 they see later changes
    of the method's weights if those are made in place. In bf16 a network is copied with its weights
    in bf16 (``mambaad.model.fold``), and MambaAD on a CPU for quicker kernels
    (``mambaad.model.onednn``), so make a new Scorer once it has been trained further.
    """

    def __init__(
        self,
        method: Method,
        device: torch.device,
        *,
        precision: str = "auto",
        graph: bool = True,
        tiling: Tiling | None = None,
    ) -> None:
        """Take over a method.

        Args:
            method: On ``device`` and in evaluation mode.
            device: Where it is.
            precision: ``auto``, ``float32`` or ``bf16``; see ``mambaad.devices``.
            graph: Whether calls on CUDA become graphs.
            tiling: How pictures are cut into what the method gets; None: they are not. With it,
                every picture must be of its size; maps and scores are of whole pictures.

        Raises:
            ConfigError: If ``precision`` is none of the three.
        """
        self.device = device
        self.precision = resolve_precision(precision, device)
        self._method = method
        self._top = score_top_of(method)
        # tiles have no score: a picture's is that of its blended map
        self._run: Function = self._scored(self._maps_of) if tiling is None else self._maps_of
        self._sizes: set[tuple[int, int, int]] = set()
        self._normalise: Callable[[Tensor], Tensor] = normalise
        if device.type == "cuda":
            dtype = torch.float32
            if self.precision == "bf16" and isinstance(method, nn.Module):
                self._method = inference_copy(method, torch.bfloat16)
                if isinstance(method, MambaAD) and not method.encoder.rescale:
                    dtype = torch.bfloat16  # its first convolution would round them all the same
            self._normalise = Normaliser(device, dtype)
            if graph:
                self._run = Replay(self._run, device)
            self._upload, self._work, self._download = (torch.cuda.Stream(device) for _ in range(3))
        elif self.precision == "float32" and onednn.runs(method):
            self._method = onednn.cpu_copy(method)
        if tiling is not None:
            blend = Blend(self._run, tiling, device, batch_size_for(device, tiling.tile))
            self._run = self._scored(blend) if self._top else blend

    def __call__(self, pictures: Pictures | Tensor) -> tuple[Maps, Scores]:
        """Score one batch.

        Args:
            pictures: As prepared, uint8 (B, H, W, 3), an array or a tensor on any device.

        Returns:
            Anomaly maps (B, H, W) and scores (B,).

        Raises:
            ValueError: If it is of another shape or type.
        """
        if isinstance(pictures, Tensor):
            maps, scores = self.on_device(pictures)
            return maps.cpu().numpy(), scores.cpu().numpy()
        with closing(self.stream([pictures])) as results:
            return next(results)

    def on_device(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score one batch without a copy to the host; on CUDA, without waiting for the result.

        Args:
            images: uint8 (B, H, W, 3) as prepared, or floating point (B, 3, H, W), normalised.

        Returns:
            Anomaly maps (B, H, W) and scores (B,), float32, on the scorer's device.

        Raises:
            ValueError: If it is of another shape or type.
        """
        _check(images)
        maps, scores = self._run(images.to(self.device))
        return maps, scores

    def stream(
        self, batches: Iterable[Pictures], *, maps: bool = True
    ) -> Generator[tuple[Maps, Scores], None, None]:
        """Score batches, one after the other.

        On CUDA the next batches are taken while earlier ones are uploaded, scored and downloaded,
        each on a stream of its own; so a result comes up to ``IN_FLIGHT`` batches late.

        Args:
            batches: uint8 (B, H, W, 3) each, as prepared.
            maps: Whether they are wanted; else they stay on the device, and come as (B, 0, W).

        Yields:
            Anomaly maps (B, H, W) and scores (B,) of each batch.

        Raises:
            ValueError: If a batch is of another shape or type.
        """
        rows = slice(None if maps else 0)
        if self.device.type != "cuda":
            for pictures in batches:
                found, scores = self.on_device(torch.from_numpy(pictures))
                yield found[:, rows].numpy(), scores.numpy()
            return
        running: deque[_Running] = deque()
        try:
            for pictures in batches:
                running.append(self._start(torch.from_numpy(pictures), rows))
                if len(running) > IN_FLIGHT:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:  # closed early: what the GPU still reads must not be given away
            while running:
                running.popleft().result()

    def _start(self, images: Tensor, rows: slice) -> _Running:
        _check(images)
        pinned = torch.empty(images.shape, dtype=images.dtype, pin_memory=True).copy_(images)
        with torch.cuda.stream(self._upload):
            uploaded = pinned.to(self.device, non_blocking=True)
        caller = torch.cuda.current_stream(self.device)  # it may be at work on the weights yet
        with torch.cuda.stream(self._work):
            self._work.wait_stream(caller)
            self._work.wait_stream(self._upload)
            found, scored = self._run(uploaded)
        with torch.cuda.stream(self._download):
            self._download.wait_stream(self._work)
            maps, scores = (
                torch.empty(r.shape, dtype=r.dtype, pin_memory=True).copy_(r, non_blocking=True)
                for r in (found[:, rows], scored)
            )
            done = torch.cuda.Event()
            done.record()
        return _Running(maps, scores, done, (uploaded, found, scored))

    def _maps_of(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), autocast(self.precision, self.device), exact_float32(self.device):
            inputs = self._normalise(images) if images.dtype == torch.uint8 else images
            self._compile_kernels(inputs)
            return (self._method.anomaly_maps(inputs),)

    def _scored(self, function: Function) -> Function:
        def run(images: Tensor) -> tuple[Tensor, ...]:
            maps = function(images)[0]
            return maps, device_scores(maps, self._top)

        return run

    def _compile_kernels(self, inputs: Tensor) -> None:
        """At the first batch of a size, before its graph is captured; replays never come here."""
        batch, _, height, width = inputs.shape
        if isinstance(self._method, MambaAD) and (batch, height, width) not in self._sizes:
            self._sizes.add((batch, height, width))
            size, precision = (height, width), self.precision
            warm_up(
                self._method, batch, size, self.device, precision, training=False, tell=_log.info
            )


@dataclass(frozen=True)
class _Running:
    """A batch on its way through the GPU. Every batch has its own buffers; torch recycles them."""

    maps: Tensor
    scores: Tensor
    done: torch.cuda.Event
    read: tuple[Tensor, ...]
    """What other streams than the one that made it still read, kept until they have."""

    def result(self) -> tuple[Maps, Scores]:
        self.done.synchronize()
        return self.maps.numpy(), self.scores.numpy()


def scoring_precision(asked: str | None, trained: str, device: torch.device) -> str:
    """``float32`` or ``bf16``: what a run is scored in.

    Args:
        asked: ``auto``, ``float32`` or ``bf16``; None: as it was trained on a CUDA device, float32
            on others, where bf16 is no faster.
        trained: The run's ``train.precision``.
        device: Where it is scored.

    Raises:
        ConfigError: If it is none of the three.
    """
    own = trained if device.type == "cuda" else "float32"
    return resolve_precision(own if asked is None else asked, device)


def batch_size_for(device: torch.device, size: tuple[int, int]) -> int:
    """How many pictures of this height and width to score at once, at least 1."""
    pixels = size[0] * size[1]
    if device.type != "cuda":
        return max(1, min(8, 8 * LARGE // pixels))
    return max(1, min(32 if pixels > LARGE else 64, 64 * LARGE // pixels))


def score_pictures(
    method: Method,
    store: Store,
    device: torch.device,
    *,
    indices: Sequence[int] | None = None,
    progress: Progress | None = None,
    precision: str = "auto",
    tiling: Tiling | None = None,
) -> list[float]:
    """The scores of all pictures of a store, or of some.

    Args:
        method: On ``device`` and in evaluation mode; as it is now, see ``Scorer``.
        store: The pictures.
        device: Where the method is.
        indices: Which pictures; None: all.
        progress: Called with the number of pictures done and in all.
        precision: ``auto``, ``float32`` or ``bf16``.
        tiling: How pictures are cut into tiles; None: they are not.

    Raises:
        ImageError: At the first picture that cannot be read.
    """
    scorer = Scorer(method, device, precision=precision, tiling=tiling)
    parts = batches(scorer, store, indices=indices, progress=progress, maps=False)
    return [score for _, _, scores in parts for score in scores.tolist()]


def batches(
    scorer: Scorer,
    store: Store,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    maps: bool = True,
) -> Generator[tuple[NDArray[np.intp], Maps, Scores], None, None]:
    """Go through a store; yield indices, anomaly maps and scores of each batch.

    The next pictures are read while a batch is scored.

    Args:
        scorer: What scores them. One does for any number of stores: on CUDA it captures graphs.
        store: The pictures.
        indices: Which pictures; None: all.
        batch_size: Pictures at once; None: chosen by device and picture size.
        progress: Called with the number of pictures done and in all.
        maps: Whether they are wanted; see ``Scorer.stream``.

    Raises:
        ImageError: At the first picture that cannot be read.
    """
    chosen = np.arange(len(store)) if indices is None else np.asarray(indices, dtype=np.intp)
    step = batch_size or batch_size_for(scorer.device, store.size)
    parts = [chosen[start : start + step] for start in range(0, len(chosen), step)]
    done = 0
    # the store has threads of its own; one here keeps them a batch ahead
    with (
        closing(ahead(lambda part: store[part], parts, workers=1, limit=2)) as read,
        closing(scorer.stream(read, maps=maps)) as results,
    ):
        for part, (found, scores) in zip(parts, results, strict=True):
            yield part, found, scores
            done += len(part)
            if progress is not None:
                progress(done, len(chosen))


def _check(images: Tensor) -> None:
    if images.dtype == torch.uint8:
        if images.dim() != 4 or images.shape[3] != 3:
            raise ValueError(f"pictures must be uint8 (B, H, W, 3), got {tuple(images.shape)}")
    elif images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            "images must be uint8 (B, H, W, 3) or floating point (B, 3, H, W), got "
            f"{images.dtype} {tuple(images.shape)}"
        )
