"""Leave one product out, add it with ``mambaad extend``, and say what that costs and keeps.

    python benchmarks/extend.py DATA --encoder-weights FILE --out runs/extend > extend.csv

For every product of DATA (or those of ``--left-out``) a network is trained on the others, tested on
them and on the product that it has not seen, extended by that product and tested on all. Beside
it: one network trained on all together, with ``--alone`` one on each product alone (one-for-one
against one-for-all), and with ``--grow`` one on the first two, three, ... products. Each is
``mambaad train``, ``extend`` and ``test`` as a user starts them, timed by the wall clock with
everything they do; what is done already in ``--out`` is not done again.

One CSV row for each network and category, metrics in percent, ``mean`` last. After an empty line,
one row for each product left out: seconds, and mAD of the old products and of the new one before,
after, and when trained together. With ``--gpus N`` N go on at once, each on a GPU of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

from end_to_end import call, percent
from machine import ABOUT, about, use_device

from mambaad.data import read_dataset
from mambaad.metrics.report import FIELDS

HEADER = ("network", "product", "products", "epochs", "train_s", "test_s", "category")
SUMMARY = (
    *("left_out", "base_s", "extend_s", "joint_s", "old_before", "old_after", "old_joint"),
    *("new_before", "new_after", "new_joint", "new_alone"),
)
TIMES = "seconds.json"


@dataclass(frozen=True)
class Result:
    """A network, tested."""

    network: str
    product: str
    """The one left out, added, or alone; empty for several together."""

    products: int
    epochs: int
    seconds: Mapping[str, float]
    """By verb."""

    categories: Mapping[str, Mapping[str, Any]]
    """Metrics by category, 0 to 1, the mean last."""

    def mean(self, names: Sequence[str]) -> float | None:
        """Mean mAD of some products; None if one has none."""
        values = [self.categories[name]["mAD"] for name in names]
        return None if None in values else sum(values) / len(values)


class Bench:
    """Runs the verbs, each once."""

    def __init__(self, args: argparse.Namespace, gpus: Queue[str | None]) -> None:
        self.args, self.gpus = args, gpus

    def trained(self, network: str, product: str, products: Sequence[str], gpu: str | None) -> Path:
        """A network of some products; its folder."""
        args = self.args
        folder: Path = args.out / "-".join(filter(None, (network, product)))
        verb = ["train", str(args.data), "--encoder", args.encoder, "--seed", str(args.seed)]
        verb += [word for name in products for word in ("--category", name)]
        verb += [word for setting in args.set for word in ("--set", setting)]
        verb += ["--epochs", str(args.epochs)]
        if args.encoder_weights is not None:
            verb += ["--encoder-weights", str(args.encoder_weights)]
        self._do("train", verb, folder, gpu)
        return folder

    def extended(self, base: Path, product: str, gpu: str | None) -> Path:
        """A network extended by a product; its folder."""
        args = self.args
        folder: Path = args.out / f"extended-{product}"
        verb = ["extend", str(base), str(args.data), "--category", product, "--replay", args.replay]
        verb += [word for setting in args.extend_set for word in ("--set", setting)]
        if args.extend_epochs is not None:
            verb += ["--epochs", str(args.extend_epochs)]
        self._do("extend", verb, folder, gpu)
        return folder

    def tested(
        self, folder: Path, product: str, gpu: str | None, *, name: str, unseen: bool = False
    ) -> Result:
        """The metrics of a network on its own products, or on one that it has not seen."""
        out = folder / "unseen" if unseen else folder
        if not (out / "evaluation.json").is_file():
            verb = ["test", str(folder), "--out", str(out)]
            verb += [str(self.args.data), "--category", product] if unseen else []
            self._time("test", verb, out, gpu)
        evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        settings = (folder / "config.toml").read_text(encoding="utf-8").splitlines()
        epochs = next(line.split("=")[1] for line in settings if line.startswith("epochs ="))
        trained = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
        return Result(
            *(name, product, len(trained["categories"]), int(epochs)),
            seconds={**_seconds(folder), **_seconds(out)},
            categories={**evaluation["categories"], "mean": evaluation["mean"]},
        )

    def _do(self, name: str, verb: list[str], folder: Path, gpu: str | None) -> None:
        """Train or extend, unless that is done; go on with what was interrupted."""
        if (folder / "state.safetensors").is_file():
            verb = [name, "--resume"]
        elif (folder / "model.safetensors").is_file():
            return
        self._time(name, [*verb, "--out", str(folder)], folder, gpu)

    def _time(self, name: str, verb: list[str], folder: Path, gpu: str | None) -> None:
        environment = dict(os.environ)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        took = call([*verb, "--device", self.args.device], environment)
        before = _seconds(folder)
        text = json.dumps({**before, name: before.get(name, 0.0) + took})
        (folder / TIMES).write_text(text, encoding="utf-8")

    def on_a_gpu(self, work: Callable[[str | None], list[Result]]) -> list[Result]:
        """Do some work on the next free GPU."""
        gpu = self.gpus.get()
        try:
            return work(gpu)
        finally:
            self.gpus.put(gpu)

    def together(
        self, network: str, product: str, products: Sequence[str], gpu: str | None
    ) -> list[Result]:
        """Train on some products from the start, and test."""
        folder = self.trained(network, product, products, gpu)
        return [self.tested(folder, product, gpu, name=network)]

    def left_out(self, product: str, products: Sequence[str], gpu: str | None) -> list[Result]:
        """Train without a product, test, add it, test."""
        others = [name for name in products if name != product]
        base = self.trained("without", product, others, gpu)
        before = self.tested(base, product, gpu, name="without")
        unseen = self.tested(base, product, gpu, name="unseen", unseen=True)
        after = self.tested(self.extended(base, product, gpu), product, gpu, name="extended")
        return [before, unseen, after]


def _seconds(folder: Path) -> dict[str, float]:
    """What the verbs took that wrote to a folder."""
    path = folder / TIMES
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def run_all(bench: Bench, products: Sequence[str]) -> Iterator[list[Result]]:
    """All networks, in order; after a failure no other begins."""
    args = bench.args
    works = [partial(bench.together, "joint", "", products)]
    works += [partial(bench.left_out, name, products) for name in args.left_out or products]
    if args.alone:
        works += [partial(bench.together, "alone", name, [name]) for name in products]
    if args.grow:
        counts = range(2, len(products))
        works += [partial(bench.together, f"first{k}", "", products[:k]) for k in counts]
    with ThreadPoolExecutor(args.gpus) as pool:
        waiting = [pool.submit(bench.on_a_gpu, work) for work in works]
        try:
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def rows(result: Result) -> Iterator[list[str]]:
    """One for each category."""
    made = result.seconds.get("train", result.seconds.get("extend", 0.0))
    times = [f"{made:.1f}", f"{result.seconds.get('test', 0.0):.1f}"]
    for category, metrics in result.categories.items():
        about_it = [result.network, result.product, str(result.products), str(result.epochs)]
        yield [*about_it, *times, category, *(percent(metrics[name]) for name in FIELDS)]


def summary(results: Sequence[Result], product: str) -> list[str]:
    """The row of a product left out."""
    found = {(r.network, r.product): r for r in results}
    joint, base = found["joint", ""], found["without", product]
    unseen, after = found["unseen", product], found["extended", product]
    alone = found.get(("alone", product))
    others = [name for name in base.categories if name != "mean"]
    times = [base.seconds["train"], after.seconds["extend"], joint.seconds["train"]]
    scores = [
        *(r.mean(others) for r in (base, after, joint)),
        *(r.mean([product]) for r in (unseen, after, joint)),
        None if alone is None else alone.mean([product]),
    ]
    return [product, *(f"{t:.1f}" for t in times), *(percent(s) for s in scores)]


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--encoder-weights", type=Path, help="default: downloaded")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--set", action="append", default=[], help="as of mambaad train")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--left-out", nargs="+", help="products; default: each")
    parser.add_argument("--replay", default="all", help="as of mambaad extend")
    parser.add_argument("--extend-epochs", type=int, help="default: mambaad extend's")
    parser.add_argument("--extend-set", action="append", default=[], help="its --set")
    parser.add_argument("--alone", action="store_true", help="also each product alone")
    parser.add_argument("--grow", action="store_true", help="also the first 2, 3, ... products")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--gpus", type=int, default=1, help="networks at once, each on a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/extend"), help="run folders")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is left to do, print the rows."""
    args = options(arguments)
    device = use_device(args.device)
    products = read_dataset(args.data).categories
    unknown = sorted(set(args.left_out or ()) - set(products))
    if unknown or len(products) < 2:
        sys.exit(f"no product {unknown} to leave out in {args.data}: it has {list(products)}")
    gpus: Queue[str | None] = Queue()
    for number in range(args.gpus):
        gpus.put(str(number) if device.type == "cuda" else None)
    machine = about(device)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*HEADER, *FIELDS, *ABOUT])
    results: list[Result] = []
    for found in run_all(Bench(args, gpus), products):
        results += found
        writer.writerows([*row, *machine] for result in found for row in rows(result))
        sys.stdout.flush()
    writer.writerow([])
    writer.writerow(SUMMARY)
    writer.writerows(summary(results, name) for name in args.left_out or products)


if __name__ == "__main__":
    main()
