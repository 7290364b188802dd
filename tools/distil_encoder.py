"""Train the built-in encoder: make a small network's feature maps those of ResNet-18.

    python tools/distil_encoder.py --teacher resnet18.safetensors --out runs/builtin \
        --pictures FOLDER LICENCE --pictures FOLDER LICENCE --synthetic 200 --skimage

``distil_pictures`` gathers the pictures, ``distil_augment`` changes them, ``distil_network`` is
what learns. AdamW, warm-up and cosine to zero by the clock, so that --minutes holds whatever the
machine (setting up counts too); the mean of the weights over time (EMA) is what is kept. For the
last part of the training the batch norms stay as they are, so that the network learns as it will
run. bf16 on a GPU, float32 elsewhere.

A line every --every steps; every --save-minutes the package's file, a JSON beside it and a
checkpoint, each all or nothing. Quality is that of the file, read back, on pictures held out:
cosine, relative error |z - t| / |t|, and the share of the teacher's variance not explained.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from distil_augment import Augment, Draw, drawn_pool
from distil_network import Average, Student, rate, stage_loss
from distil_pictures import gather
from safetensors.torch import save_file
from torch import Tensor, nn

from mambaad.config import IMAGENET_MEAN, IMAGENET_STD
from mambaad.devices import pick_device
from mambaad.errors import MambaADError, TrainingError
from mambaad.files import replacing, write_json
from mambaad.model.builtin import FILE, BuiltinNetwork, load_builtin, save_builtin
from mambaad.model.encoder import build_encoder, load_pretrained, read_state_dict
from mambaad.model.fold import inference_copy

TEACHER = "resnet18"
FROZEN_NORMS = 0.75
"""Share of the training after which the batch norms stay as they are."""

MEASURES = ("cosine", "relative_error", "unexplained")
EVALUATED = 256
"""Held-out tiles looked at, at most, of each source."""

Network = Callable[[Tensor], list[Tensor]]


class Distillation:
    """A training in progress.

    Args:
        args: The command line.
        device: Where.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(args.seed)
        self.sources = gather(
            args.pictures,
            side=args.side,
            synthetic=args.synthetic,
            skimage=args.skimage,
            workers=args.workers,
        )
        draw = Draw(device, args.seed)
        tiles = [source.tiles.to(device) for source in self.sources]
        pool = [drawn_pool(torch.cat(tiles), args.drawn, draw)] if args.drawn else []
        self.augment = Augment([*tiles, *pool], draw)
        exact = build_encoder(TEACHER)
        load_pretrained(exact, TEACHER, args.teacher)
        self.exact = exact.to(device)
        self.teacher: Network = inference_copy(self.exact, self.dtype)
        self.student = Student().to(device)
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        colours = (IMAGENET_MEAN, IMAGENET_STD)
        self.mean, self.std = (torch.tensor(c, device=device).view(3, 1, 1) for c in colours)
        means, self.deviations = self._statistics()
        self.student.start_near(means, self.deviations)
        if args.start is not None:
            self.student.load_state_dict(read_state_dict(args.start))
        self.average = Average(self.student, args.ema)
        self.run: Network = self.student
        if args.compile:
            self.run, self.teacher = torch.compile(self.student), torch.compile(self.teacher)
        self.optimizer = self._make_optimizer()

    def _make_optimizer(self) -> torch.optim.AdamW:
        named = list(self.student.parameters())
        groups = [
            {"params": [p for p in named if p.ndim > 1], "weight_decay": self.args.weight_decay},
            {"params": [p for p in named if p.ndim == 1], "weight_decay": 0.0},
        ]
        fused = self.device.type == "cuda"
        return torch.optim.AdamW(groups, lr=self.args.rate, betas=(0.9, 0.98), fused=fused)

    def images(self) -> Tensor:
        """A batch of augmented pictures, normalised, channels last."""
        x = self.augment.batch(self.args.batch, self.args.crop)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def taught(self, images: Tensor) -> list[Tensor]:
        """The teacher's maps."""
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, self._mixed):
            return self.teacher(images)

    @property
    def _mixed(self) -> bool:
        return self.dtype != torch.float32

    def _statistics(self) -> tuple[list[Tensor], list[Tensor]]:
        """Means and deviations of the teacher's channels over eight batches, by stage."""
        seen: list[list[Tensor]] = [[], [], []]
        for _ in range(8):
            for maps, kept in zip(self.taught(self.images()), seen, strict=True):
                flat = maps.float().transpose(0, 1).flatten(1)
                kept.append(torch.stack([flat.mean(1), flat.square().mean(1)]))
        moments = [torch.stack(kept).mean(0) for kept in seen]
        variances = [(square - mean.square()).clamp_min(0) for mean, square in moments]
        # a channel that hardly ever answers must not count for more than it is worth
        least = [0.01 * v.mean() for v in variances]
        deviations = [v.clamp_min(m).sqrt() for v, m in zip(variances, least, strict=True)]
        return [mean for mean, _ in moments], deviations

    def step(self, progress: float) -> Tensor:
        """One step; the losses by stage, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate * rate(progress)
        if progress >= FROZEN_NORMS and self.student.training:
            self.student.eval()
        images = self.images()
        wanted = self.taught(images)
        with torch.autocast(self.device.type, self.dtype, self._mixed):
            found = self.run(images)
        losses = torch.stack(list(map(stage_loss, found, wanted, self.deviations)))
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimizer.step()
        self.average.follow(self.student)
        return losses.detach()

    def save(self, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
        """Write checkpoint, package file and JSON; measure the file as it is read back."""
        state = {k: v.contiguous() for k, v in self.average.network.state_dict().items()}
        with replacing(folder / "checkpoint.safetensors") as temporary:
            save_file(state, temporary)
        path = folder / FILE.name
        size = save_builtin(self.average.network.folded(), path)
        shipped = BuiltinNetwork().eval()
        load_builtin(shipped, path)
        shipped.to(self.device)
        quality = {s.name: self.quality(shipped, s.held_out) for s in self.sources}
        about = {**about, "bytes": size, "held_out": quality}
        write_json(path.with_suffix(".json"), about)
        return about

    @torch.no_grad()
    def quality(self, network: nn.Module, tiles: Tensor) -> dict[str, list[float]]:
        """Cosine, relative error and unexplained share by stage, on whole pictures.

        Args:
            network: Compared with the teacher in float32.
            tiles: uint8, (N, 3, side, side); the first ``EVALUATED`` are looked at.
        """
        measures = [StageQuality() for _ in self.deviations]
        for part in tiles[:EVALUATED].split(32):
            x = (part.to(self.device).float() / 255 - self.mean) / self.std
            for measure, z, t in zip(measures, network(x), self.exact(x), strict=True):
                measure.add(z, t)
        found = [measure.result() for measure in measures]
        return {name: [round(values[name], 4) for values in found] for name in MEASURES}


class StageQuality:
    """How near one stage's maps come to the teacher's, summed over batches in float64."""

    def __init__(self) -> None:
        self._angles = self._error = self._power = 0.0
        self._pixels = 0
        self._sums: Tensor | None = None

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Args: found, wanted (B, C, h, w)."""
        found, wanted = found.double(), wanted.double()
        angles = F.cosine_similarity(found, wanted, dim=1)
        self._angles += float(angles.sum())
        self._pixels += angles.numel()
        self._error += float((found - wanted).square().sum())
        self._power += float(wanted.square().sum())
        sums = wanted.sum((0, 2, 3))
        self._sums = sums if self._sums is None else self._sums + sums

    def result(self) -> dict[str, float]:
        """``MEASURES`` by name. Unexplained: of the variance of each channel around its mean."""
        centre = 0.0 if self._sums is None else float(self._sums.square().sum()) / self._pixels
        values = (
            self._angles / self._pixels,
            (self._error / self._power) ** 0.5,
            self._error / (self._power - centre),
        )
        return dict(zip(MEASURES, values, strict=True))


def train(task: Distillation, out: Path, began: float) -> None:
    """Take steps until the time or the steps are over; save now and then, and at the end.

    Args:
        task: What is trained.
        out: Folder of the files.
        began: ``time.monotonic`` when the program began; its minutes count from there.

    Raises:
        TrainingError: If the loss is not finite; the last files stay.
    """
    args = task.args
    entered = time.monotonic()
    end = began + 60 * args.minutes
    saved_at, step, progress = entered, 0, 0.0
    shown = torch.zeros(3, device=task.device)
    shown_at, since = entered, 0
    while progress < 1:
        shown += task.step(progress)
        step, since = step + 1, since + 1
        now = time.monotonic()
        passed = step / args.steps if args.steps else (now - entered) / max(1e-9, end - entered)
        progress = min(1.0, passed)
        if step % args.every == 0 or progress >= 1:
            losses = [loss / since for loss in shown.tolist()]
            now = time.monotonic()  # reading the losses waited for the device
            say(step, progress, losses, since * args.batch / (now - shown_at), now - began)
            shown.zero_()
            shown_at, since = now, 0
            if now - saved_at > 60 * args.save_minutes or progress >= 1:
                about = describe(task, step, losses, now - began, finished=progress >= 1)
                say_quality(task.save(out, about))
                saved_at = shown_at = time.monotonic()


def say(step: int, progress: float, losses: list[float], speed: float, seconds: float) -> None:
    """Print how it goes.

    Raises:
        TrainingError: If a loss is not finite.
    """
    shown = " ".join(f"{loss:.4f}" for loss in losses)
    print(
        f"{seconds:6.0f} s  step {step}  {100 * progress:5.1f} %  rate x{rate(progress):.3f}  "
        f"{speed:.0f} pictures/s  loss {sum(losses):.4f} = {shown}",
        flush=True,
    )
    if not all(map(math.isfinite, losses)):
        raise TrainingError(f"the loss is not finite at step {step}: try a smaller --rate")


def say_quality(about: dict[str, Any]) -> None:
    """Print the measures of every source."""
    for name, measures in about["held_out"].items():
        parts = [f"{m} " + " ".join(f"{v:.4f}" for v in measures[m]) for m in MEASURES]
        print(f"    held out, {name}: {'; '.join(parts)}", flush=True)


def describe(
    task: Distillation, step: int, losses: list[float], seconds: float, *, finished: bool
) -> dict[str, Any]:
    """What is written beside the weights: teacher, pictures, licences, settings, losses."""
    args, device = task.args, task.device
    left_out = ("pictures", "out", "teacher", "start", "teacher_note", "device", "workers")
    on_gpu = device.type == "cuda"
    return {
        "what": "weights of mambaad's built-in encoder, distilled from a teacher's feature maps",
        "finished": finished,
        "teacher": {
            "network": f"{TEACHER}, stages 1 to 3",
            "weights": args.teacher_note,
            "sha256": hashlib.sha256(args.teacher.read_bytes()).hexdigest(),
        },
        "pictures": [
            *(source.to_mapping() for source in task.sources),
            {"name": "clouds and leaves, tools/distil_augment.py", "tiles": args.drawn},
        ],
        "settings": {k: v for k, v in sorted(vars(args).items()) if k not in left_out},
        "continued": args.start is not None,
        "steps": step,
        "crops_seen": step * args.batch,
        "minutes": round(seconds / 60, 2),
        "losses": [round(loss, 5) for loss in losses],
        "machine": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "torch": torch.__version__,
    }


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="ResNet-18's weights, safetensors or torch")
    add("--teacher-note", default="torchvision's IMAGENET1K_V1, BSD-3-Clause", help="for the JSON")
    add("--pictures", nargs=2, action="append", default=[], metavar=("FOLDER", "LICENCE"))
    add("--synthetic", type=int, default=0, help="drawn pictures of each of six categories")
    add("--skimage", action="store_true", help="scikit-image's free pictures, if installed")
    add("--drawn", type=int, default=4096, help="clouds and leaves")
    add("--out", type=Path, required=True, help="folder of weights, JSON and checkpoint")
    add("--start", type=Path, help="checkpoint to continue from, with a new schedule")
    add("--minutes", type=float, default=7.0, help="in all, setting up included")
    add("--steps", type=int, default=0, help="so many steps instead")
    add("--batch", type=int, default=256)
    add("--crop", type=int, default=192, help="side of what the networks see, of 16's multiples")
    add("--side", type=int, default=256, help="side of the pictures that crops are taken from")
    add("--rate", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.01)
    add("--ema", type=float, default=0.999)
    add("--every", type=int, default=100, help="steps between lines")
    add("--save-minutes", type=float, default=1.0)
    add("--compile", action="store_true", help="torch.compile both networks")
    add("--workers", type=int, help="processes that draw pictures")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(arguments)
    args.pictures = [(Path(folder), licence) for folder, licence in args.pictures]
    if args.crop % 16 or args.batch < 2:
        parser.error("--crop must be a multiple of 16, and --batch at least 2")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Set up, train, save."""
    began = time.monotonic()
    args = options(arguments)
    try:
        device = pick_device(args.device)
        torch.backends.cudnn.benchmark = device.type == "cuda"  # all batches have one shape
        task = Distillation(args, device)
        for source in task.sources:
            print(*source.to_mapping().values(), sep="; ")
        print(f"set up in {time.monotonic() - began:.0f} s on {device}", flush=True)
        train(task, args.out, began)
    except MambaADError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {args.out / FILE.name} and the JSON beside it")


if __name__ == "__main__":
    main()
