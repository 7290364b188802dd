"""What is done to a finished run: ``mambaad test`` and ``mambaad calibrate``."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mambaad.calibrate import (
    QUANTILE,
    Calibration,
    Source,
    calibrate,
    highest_note,
    kept_beside,
    load_calibration,
    save_calibration,
    thresholds_for,
    with_kept,
)
from mambaad.checkpoint import load_config, load_model, load_provenance, provenance
from mambaad.checks import check_choice, check_range
from mambaad.config import Config
from mambaad.data import Dataset, PictureStore, Sample, fingerprint, read_dataset
from mambaad.data.cache import Progress
from mambaad.devices import pick_device
from mambaad.errors import ConfigError, DatasetError
from mambaad.evaluate import Evaluation, MetricsChoice, evaluate
from mambaad.files import make_folder
from mambaad.inference import score_pictures, scoring_precision
from mambaad.kept_pictures import untested_line
from mambaad.metrics import Protocol
from mambaad.report import write_report
from mambaad.results import save_evaluation
from mambaad.splits import leave_learned_out, own_list, read_pictures, results_folder, run_dataset

_log = logging.getLogger(__name__)


def run_test(
    run: Path,
    data: Path | None = None,
    *,
    protocol: str = "exact",
    metrics: str = "auto",
    pro_limit: float = 0.3,
    categories: Sequence[str] = (),
    layout: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> tuple[Evaluation, list[Path]]:
    """Evaluate a run on test pictures.

    Args:
        run: The run folder.
        data: The data set; None is the run's own.
        protocol: ``exact`` or ``ader``.
        metrics: How pixel metrics are computed: ``exact``, ``streaming`` in constant memory, or
            ``auto``, which streams large categories.
        pro_limit: Largest false positive rate of AUPRO, in (0, 1].
        categories: Categories to test; empty means those of the run, or all of another data set.
        layout: Layout of the data set; None is the run's setting.
        out: Folder of the results; None: as ``mambaad.splits.results_folder`` says.
        device: See ``pick_device``.
        precision: See ``scoring_precision``. Thresholds set in another are told in the log.
        progress: Called with the number of pictures done and in all.

    Returns:
        The evaluation, and the files written; the report is the last.

    Raises:
        MambaADError: ConfigError, CheckpointError or DatasetError.
    """
    check_choice("protocol", protocol, Protocol)
    check_range("pro_limit", pro_limit, 0, 1, low_open=True)
    config, model = load_model(run)
    target = pick_device(device)
    used = scoring_precision(precision, config.train.precision, target)
    dataset = run_dataset("test", run, config, data, categories, layout)
    if data is None and not categories:
        _tell_untested(run, dataset)
    folder = _results_folder(run, config, data, dataset, out)
    evaluation = evaluate(
        model.to(target),
        leave_learned_out(run, config, dataset),
        config.data.image_size,
        device=target,
        protocol=cast(Protocol, protocol),
        metrics=cast(MetricsChoice, metrics),
        pro_limit=pro_limit,
        calibration=_thresholds(run, used, dataset),
        progress=progress,
        precision=used,
        tiling=config.data.tiling,
    )
    about = provenance(config, target, precision=used, data=str(dataset.root))
    return evaluation, _save(run, evaluation, dataset, about, folder)


def _results_folder(
    run: Path, config: Config, data: Path | None, dataset: Dataset, out: Path | None
) -> Path:
    """The folder of the results, made now; what the report will need is refused now, too."""
    load_provenance(run)
    folder = results_folder(run, config, data, dataset, out)
    make_folder(folder)
    return folder


def _save(
    run: Path, evaluation: Evaluation, dataset: Dataset, about: dict[str, Any], folder: Path
) -> list[Path]:
    """Write the figures and what they belong to, then the report, which comes last."""
    about = {**about, "data_fingerprint": fingerprint(dataset)}
    files = save_evaluation(folder, evaluation, about)
    return [*files, write_report(run, evaluation, name=dataset.root.name, folder=folder)]


def _tell_untested(run: Path, dataset: Dataset) -> None:
    """A line is logged if the run knows products that its own data set has no test pictures of."""
    calibration = load_calibration(run)
    known = (
        load_provenance(run).get("categories", ())
        if calibration is None
        else calibration.categories
    )
    tested = dataset.select(split="test").categories
    untested = sorted(set(known) - set(tested))
    if tested and untested:
        _log.warning("%s", untested_line(untested, run))


def _thresholds(run: Path, precision: str, dataset: Dataset) -> Calibration | None:
    """The run's; a line is logged if there are none, or a tested category has none of its own."""
    calibration = thresholds_for(run, precision)
    if calibration is None:
        _log.warning("no thresholds in %s: 'mambaad calibrate %s DATA' makes them", run, run)
    tested = dataset.select(split="test").categories
    known = tested if calibration is None else calibration.categories
    unknown = [name for name in tested if name not in known]
    if calibration is not None and unknown:
        _log.warning(
            "the run does not know the categories %s: judged with its overall threshold, %.4f",
            ", ".join(unknown),
            calibration.overall.threshold,
        )
    return calibration


def calibrate_run(
    run: Path,
    data: Path,
    *,
    category: str | None = None,
    quantile: float = QUANTILE,
    layout: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Set a run's thresholds anew, on good pictures that it should not have been trained on.

    Only the products in ``data`` get new thresholds; the others keep theirs. Lines are logged
    where a user may be surprised, above all if the run has learned from these very pictures.

    Args:
        run: The run folder; its ``calibration.json`` is written.
        data: A data set; its good training pictures are used.
        category: The run's product that the pictures are of; ``data`` must then be one category.
            None: as ``data`` names them; a run of one product takes a single category as its own.
        quantile: Share of their scores at or below the threshold, in (0, 1]; see ``calibrate``.
        layout: Layout of the data set.
        device: See ``pick_device``.
        precision: See ``scoring_precision``; the file says which.
        progress: Called with the number of pictures done and in all.

    Raises:
        MambaADError: ConfigError, CheckpointError or DatasetError; a ConfigError also if ``data``
            has a category that the run does not know, or thresholds that stay were set in another
            precision.
    """
    if not 0 < quantile <= 1:
        raise ConfigError(f"quantile must be in (0, 1], got {quantile}")
    config = own_list(run, load_config(run))
    target = pick_device(device)
    used = scoring_precision(precision, config.train.precision, target)
    samples = read_dataset(data, layout).select(split="train").samples
    if not samples:
        raise DatasetError(f"no good pictures in {data} to set thresholds on")
    record = load_provenance(run)
    products = record.get("categories") or list(config.data.categories)
    names = _products_of(samples, f"{data}", run, products, category)
    kept = kept_beside(load_calibration(run), set(names), used, products)
    source = _source(samples, data, config, record.get("data_fingerprint"))
    _, model = load_model(run)  # late: a mistake above is told at once
    scores = score_pictures(
        model.to(target),
        PictureStore([s.image for s in samples], config.data.image_size, "none"),
        target,
        progress=progress,
        precision=used,
        tiling=config.data.tiling,
    )
    found = calibrate(scores, names, source, quantile, precision=used)
    if (note := highest_note(found)) is not None:
        _log.warning("%s", note)
    calibration = with_kept(found, kept)
    save_calibration(run, calibration)
    return calibration


def _products_of(
    samples: Sequence[Sample], data: str, run: Path, products: Sequence[str], category: str | None
) -> list[str]:
    """The product of each picture, by the run's names; ``products`` is empty if it has none."""
    found = sorted({s.category for s in samples})
    if category is not None:
        if products and category not in products:
            raise ConfigError(f"{run} has no product {category!r}; it has {sorted(products)}")
        if len(found) > 1:
            raise ConfigError(
                f"--category says which product all pictures are of, but {data} has several: "
                f"{found}; give the folder of one"
            )
        return [category] * len(samples)
    unknown = [name for name in found if name not in products] if products else []
    if unknown and len(found) == len(products) == 1:
        _log.warning("the pictures of %r are taken as the run's product %r", found[0], products[0])
        return list(products) * len(samples)
    if unknown:
        raise ConfigError(
            f"{data} has {unknown}, and {run} knows only {sorted(products)}: give pictures of one "
            "product, and its name with --category NAME"
        )
    return [s.category for s in samples]


def _source(samples: Sequence[Sample], data: Path, config: Config, recorded: str | None) -> Source:
    """Which pictures these are to the run; logs a line if it has learned from some."""
    learned, held_out = _training_pictures(data, config, recorded)
    seen = _count_among(samples, learned)
    if seen:
        _log.warning(
            "the run has learned from %d of these %d pictures and scores them lower than new ones: "
            "the thresholds come out too low; give good pictures that it has not seen",
            seen,
            len(samples),
        )
        if seen == len(samples):
            return "training pictures"
        return "good pictures, some of them training pictures"
    if _count_among(samples, held_out) == len(samples):
        return "held-out training pictures"
    return "good pictures given afterwards"


def _training_pictures(
    data: Path, config: Config, recorded: str | None
) -> tuple[list[Sample], list[Sample]]:
    """The pictures that the run learned from and its held-out ones, as far as they can be found.

    They are looked for where the data set was, and in ``data``, which may be the data set moved. If
    the data set was changed since, nobody knows which were held out: all count as learned from.
    """
    learned: list[Sample] = []
    for root in (config.data.root, str(data)):
        if not root:
            continue
        try:
            chosen, held_out, about = read_pictures(config.override({"data.root": root}))
        except (DatasetError, OSError):
            continue  # not there any more, or another data set
        if about["data_fingerprint"] == recorded:
            return chosen, held_out
        if root == config.data.root:
            learned = [*chosen, *held_out]
    return learned, []


def _count_among(samples: Sequence[Sample], others: Sequence[Sample]) -> int:
    """How many pictures are among others: the same file, or one of the same name and bytes."""
    files = {s.image.resolve() for s in others}
    named: dict[str, list[Path]] = {}
    for other in others:
        named.setdefault(other.image.name, []).append(other.image)
    return sum(
        s.image.resolve() in files
        or any(filecmp.cmp(s.image, path, shallow=False) for path in named.get(s.image.name, ()))
        for s in samples
    )
