"""What is done to a finished run: ``mambaad test`` and ``mambaad calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mambaad.calibrate import (
    QUANTILE,
    Calibration,
    Source,
    calibrate,
    save_calibration,
    thresholds_for,
)
from mambaad.checkpoint import load_model, provenance
from mambaad.checks import check_choice, check_range
from mambaad.config import Config
from mambaad.data import Dataset, PictureStore, fingerprint, read_dataset
from mambaad.data.cache import Progress
from mambaad.devices import pick_device
from mambaad.errors import ConfigError, DatasetError
from mambaad.evaluate import Evaluation, MetricsChoice, evaluate
from mambaad.inference import score_pictures, scoring_precision
from mambaad.metrics import Protocol
from mambaad.report import write_report
from mambaad.results import save_evaluation
from mambaad.splits import leave_learned_out


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
        out: Folder of the results; None is the run folder.
        device: See ``pick_device``.
        precision: See ``scoring_precision``. If the run's thresholds were set in another, a line
            is logged.
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
    dataset = _read(run, config, data, categories, layout)
    evaluation = evaluate(
        model.to(target),
        leave_learned_out(run, config, dataset),
        config.data.image_size,
        device=target,
        protocol=cast(Protocol, protocol),
        metrics=cast(MetricsChoice, metrics),
        pro_limit=pro_limit,
        calibration=thresholds_for(run, used),
        progress=progress,
        precision=used,
        tiling=config.data.tiling,
    )
    about = {"precision": used, "data": str(dataset.root), "data_fingerprint": fingerprint(dataset)}
    files = save_evaluation(out or run, evaluation, provenance(config, target, **about))
    files.append(write_report(run, evaluation, name=dataset.root.name, folder=out or run))
    return evaluation, files


def _read(
    run: Path, config: Config, data: Path | None, categories: Sequence[str], layout: str | None
) -> Dataset:
    own = data is None
    if own and not config.data.root:
        raise ConfigError(f"{run} knows no data set; give one: mambaad test {run} DATA")
    chosen = tuple(categories) or (config.data.categories if own else ())
    kind = layout or (config.data.layout if own else "auto")
    return read_dataset(data or config.data.root, kind, chosen)


def calibrate_run(
    run: Path,
    data: Path,
    *,
    quantile: float = QUANTILE,
    layout: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Set a run's thresholds anew, on good pictures that it should not have been trained on.

    Args:
        run: The run folder; its ``calibration.json`` is replaced.
        data: A data set; its good training pictures are used.
        quantile: Share of their scores at or below the threshold, in (0, 1].
        layout: Layout of the data set.
        device: See ``pick_device``.
        precision: See ``scoring_precision``; the file says which.
        progress: Called with the number of pictures done and in all.

    Raises:
        MambaADError: ConfigError, CheckpointError or DatasetError.
    """
    if not 0 < quantile <= 1:
        raise ConfigError(f"quantile must be in (0, 1], got {quantile}")
    config, model = load_model(run)
    target = pick_device(device)
    used = scoring_precision(precision, config.train.precision, target)
    samples = read_dataset(data, layout).select(split="train").samples
    if not samples:
        raise DatasetError(f"no good pictures in {data} to set thresholds on")
    store = PictureStore([s.image for s in samples], config.data.image_size, "none")
    scores = score_pictures(
        model.to(target),
        store,
        target,
        progress=progress,
        precision=used,
        tiling=config.data.tiling,
    )
    names = [s.category for s in samples]
    source: Source = "good pictures given afterwards"
    calibration = calibrate(scores, names, source, quantile, precision=used)
    save_calibration(run, calibration)
    return calibration
