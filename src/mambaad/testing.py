"""What is done to a finished run: ``mambaad test`` and ``mambaad calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from mambaad.calibrate import QUANTILE, Calibration, calibrate, load_calibration, save_calibration
from mambaad.checkpoint import load_model, provenance
from mambaad.data import PictureStore, fingerprint, read_dataset
from mambaad.data.cache import Progress
from mambaad.devices import pick_device
from mambaad.errors import ConfigError, DatasetError
from mambaad.evaluate import Evaluation, evaluate, save_evaluation
from mambaad.inference import score_pictures
from mambaad.metrics import Protocol
from mambaad.report import write_report


def run_test(
    run: Path,
    data: Path | None = None,
    *,
    protocol: str = "exact",
    pro_limit: float = 0.3,
    categories: Sequence[str] = (),
    layout: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Evaluation, list[Path]]:
    """Evaluate a run on test pictures.

    Args:
        run: The run folder.
        data: The data set; None is the run's own.
        protocol: ``exact`` or ``ader``.
        pro_limit: Largest false positive rate of AUPRO, in (0, 1].
        categories: Categories to test; empty means those of the run, or all of another data set.
        layout: Layout of the data set; None is the run's setting.
        out: Folder of the results; None is the run folder.
        device: See ``pick_device``.
        progress: Called with the number of pictures done and in all.

    Returns:
        The evaluation, and the files written; the report is the last.

    Raises:
        MambaADError: ConfigError, CheckpointError or DatasetError.
    """
    if protocol not in get_args(Protocol):
        raise ConfigError(f"protocol must be one of {list(get_args(Protocol))}, got {protocol!r}")
    if not 0 < pro_limit <= 1:
        raise ConfigError(f"pro_limit must be in (0, 1], got {pro_limit}")
    config, model = load_model(run)
    target = pick_device(device)
    if data is None and not config.data.root:
        raise ConfigError(f"{run} knows no data set; give one: mambaad test {run} DATA")
    own = data is None
    chosen = tuple(categories) or (config.data.categories if own else ())
    kind = layout or (config.data.layout if own else "auto")
    dataset = read_dataset(data or config.data.root, kind, chosen)
    evaluation = evaluate(
        model.to(target),
        dataset,
        config.data.image_size,
        device=target,
        protocol=cast(Protocol, protocol),
        pro_limit=pro_limit,
        calibration=load_calibration(run),
        progress=progress,
        precision=config.train.precision,
    )
    about = provenance(
        config, target, data=str(dataset.root), data_fingerprint=fingerprint(dataset)
    )
    files = save_evaluation(out or run, evaluation, about)
    files.append(write_report(run, evaluation, name=dataset.root.name, folder=out or run))
    return evaluation, files


def calibrate_run(
    run: Path,
    data: Path,
    *,
    quantile: float = QUANTILE,
    layout: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Calibration:
    """Set a run's thresholds anew, on good pictures that it should not have been trained on.

    Args:
        run: The run folder; its ``calibration.json`` is replaced.
        data: A data set; its good training pictures are used.
        quantile: Share of their scores at or below the threshold, in (0, 1].
        layout: Layout of the data set.
        device: See ``pick_device``.
        progress: Called with the number of pictures done and in all.

    Raises:
        MambaADError: ConfigError, CheckpointError or DatasetError.
    """
    if not 0 < quantile <= 1:
        raise ConfigError(f"quantile must be in (0, 1], got {quantile}")
    config, model = load_model(run)
    target = pick_device(device)
    samples = read_dataset(data, layout).select(split="train").samples
    if not samples:
        raise DatasetError(f"no good pictures in {data} to set thresholds on")
    store = PictureStore([s.image for s in samples], config.data.image_size, "none")
    scores = score_pictures(
        model.to(target), store, target, progress=progress, precision=config.train.precision
    )
    names = [s.category for s in samples]
    calibration = calibrate(scores, names, "good pictures given afterwards", quantile)
    save_calibration(run, calibration)
    return calibration
