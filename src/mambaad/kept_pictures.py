"""Pictures of the old products, kept for the day when a new one is added: ``mambaad remember``.

What would be forgotten is replayed (``mambaad.extend``): pictures of the old products are learned
from beside the new ones. Where they come from, in this order:

    the data set       that the run was trained on, or ``--old-data`` if it has moved
    RUN/replay/        some prepared pictures of each product, PNG, and two lists of them

The encoder is frozen and lies in the run, so a prepared picture gives its features to the bit. It
takes 3 bytes a pixel before PNG's compression, where ResNet-18's features take 14 in 16 bits: 50
pictures of 256 x 256 take at most 10 MB a product, mostly half of that. So pictures are kept.

Only pictures of products that the run knows are old ones, and all of these must have some.

The lists are data sets of the layout ``csv``: ``samples.csv`` of pictures that the run learned
from, ``held_out.csv`` of those that its thresholds come from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np
from PIL import Image

from mambaad.calibrate import load_calibration
from mambaad.checkpoint import load_config, load_provenance
from mambaad.config import Config
from mambaad.data import Dataset, Sample, fingerprint, load_picture, read_dataset
from mambaad.data.cache import Progress
from mambaad.data.contamination import contaminate
from mambaad.errors import CheckpointError, ConfigError, DatasetError, ImageError
from mambaad.files import make_folder, replacing, write_text
from mambaad.splits import split_holdout

FOLDER, LIST, HELD_OUT, RENAMED = "replay", "samples.csv", "held_out.csv", "renamed"

COUNT = 50
"""Pictures of each product that are kept where nothing else is said."""

SHOWN = 5
"""Products that a line names."""

Where = Literal["data set", "kept pictures"]

_COLUMNS = ("image_path", "label_index", "split", "mask_path", "category", "defect", "group")

_log = logging.getLogger(__name__)


class _Lacking(DatasetError):
    """A data set has no pictures to learn from of some product."""


@dataclass(frozen=True)
class OldPictures:
    """What there is of a run's products."""

    learned: tuple[Sample, ...]
    """Good pictures that the run learned from."""

    held_out: tuple[Sample, ...]
    """Good pictures that it did not learn from, for thresholds; may be empty."""

    test: tuple[Sample, ...]
    """Test pictures; none where only kept pictures are left."""

    where: Where
    """Where they were found."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The products, sorted."""
        return tuple(sorted({s.category for s in self.learned}))


@dataclass(frozen=True)
class _Known:
    """The products of a run, as far as it says."""

    run: Path

    named: frozenset[str]
    """All that its record or else its settings name; empty if they name none."""

    learned: frozenset[str]
    """Those that must not be lost. A product that had test pictures only is not one of them: every
    training sets a threshold of each that it learned."""

    fingerprint: str | None
    """Of the data set that it was trained on."""

    @classmethod
    def of(cls, run: Path, config: Config) -> _Known:
        """What ``run`` knows; ``config`` are its settings."""
        record, calibration = load_provenance(run), load_calibration(run)
        named = frozenset(record.get("categories") or config.data.categories)
        judged = frozenset(calibration.categories if calibration else ())
        learned = (named & judged or named) if named else judged
        return cls(run, named, learned, record.get("data_fingerprint"))


def find_pictures(run: Path, old_data: Path | None = None) -> OldPictures:
    """The pictures of a run's products: of its data set, else those that it keeps.

    What is there of other products is left out, and a line is logged.

    Args:
        run: The run folder.
        old_data: Where the data set is now; None: where it was.

    Raises:
        CheckpointError: If the folder is not a run, or nothing is left of its pictures.
        ConfigError: If it is the run of a study that learned from defective pictures.
        DatasetError: If ``old_data`` cannot be read, or a product has no pictures there.
    """
    config = load_config(run)
    if config.data.contamination:
        raise ConfigError(
            f"{run} learned from defective pictures (data.contamination = "
            f"{config.data.contamination}): it is a study, and cannot be extended"
        )
    known, kept = _Known.of(run, config), run / FOLDER / LIST
    if old_data is not None:
        return _of_data_set(known, config.override({"data.root": str(old_data.absolute())}))
    if config.data.root:
        try:
            return _of_data_set(known, config)
        except (DatasetError, ImageError) as error:
            if not kept.is_file() and isinstance(error, _Lacking):
                raise
            if not kept.is_file():
                raise CheckpointError(
                    f"the old products would be forgotten: their pictures cannot be read in "
                    f"{config.data.root}, and {run} keeps none. Give their folder with --old-data"
                ) from None
    if not kept.is_file():
        raise CheckpointError(
            f"the old products would be forgotten: {run} knows no data set and keeps no pictures. "
            "Give their folder with --old-data"
        )
    own = _own(known, read_dataset(kept, "csv"), kept)
    aside = [s for s in _listed(run / FOLDER / HELD_OUT) if s.category in own.categories]
    return OldPictures(own.samples, tuple(aside), (), "kept pictures")


def _of_data_set(known: _Known, config: Config) -> OldPictures:
    data = config.data
    try:
        found = read_dataset(data.root, data.layout, data.categories)
    except DatasetError:
        if not data.categories:
            raise
        found = read_dataset(data.root, data.layout)  # one of them is not there: say what is
    own = _own(known, found, Path(data.root))
    fingerprint(own)  # raises if a file is gone
    mixed, _ = contaminate(own, data.contamination, config.train.seed)
    learned, held_out = split_holdout(mixed, config)
    test = own.select(split="test").samples
    aside = [*held_out, *_listed(known.run / HELD_OUT)]  # of a run that was extended itself
    return OldPictures(tuple(learned), tuple(aside), test, "data set")


def _own(known: _Known, found: Dataset, place: Path) -> Dataset:
    """The pictures of the run's products, by its names of them.

    The one product of a run may be named by its folder, and that renamed: it is known by all else.

    Raises:
        DatasetError: If a product has no picture to learn from.
    """
    if len(known.learned) == len(found.categories) == 1 and known.learned != {*found.categories}:
        (name,) = known.learned
        renamed = replace(found, samples=tuple(replace(s, category=name) for s in found))
        found = renamed if fingerprint(renamed) == known.fingerprint else found
    there = found.select(split="train").categories
    lost = known.learned - set(there)
    if lost:
        hint = ""
        if len(known.learned) == len(there) == 1:
            hint = f", or rename that of {there[0]} if this is the same product"
        raise _Lacking(
            f"{_some(lost)} would be forgotten: {known.run} knows {_some(known.learned)}, and "
            f"{place} has good training pictures of {_some(there) or 'nothing'}; give the folder "
            f"with all of them as --old-data{hint}"
        )
    strangers = set(found.categories) - known.named if known.named else set()
    if not strangers:
        return found
    _log.warning(
        "%s of %s left out of the old pictures: %s knows only %s",
        _some(strangers), place, known.run, _some(known.named),
    )  # fmt: skip
    return found.select(categories=sorted(known.named & set(found.categories)))


def _some(names: Iterable[str]) -> str:
    """The first few of some names, sorted."""
    first = sorted(names)
    more = f" and {len(first) - SHOWN} more" if len(first) > SHOWN else ""
    return ", ".join(first[:SHOWN]) + more


def _listed(path: Path) -> tuple[Sample, ...]:
    """The pictures of a list; none if there is no such file."""
    return read_dataset(path, "csv").samples if path.is_file() else ()


def draw(samples: Sequence[Sample], count: int | None, seed: int) -> list[Sample]:
    """Some pictures of each category, drawn with a seed, in the order that they came in.

    Args:
        samples: Pictures of any categories.
        count: At most so many of a category; None: all.
        seed: Whole number, at least 0. More pictures of the same seed include the fewer.
    """
    if count is None:
        return list(samples)
    drawn: set[Sample] = set()
    for category in sorted({s.category for s in samples}):
        own = [s for s in samples if s.category == category]
        order = np.random.default_rng([seed, crc32(category.encode())]).permutation(len(own))
        drawn |= {own[i] for i in order[:count].tolist()}
    return [s for s in samples if s in drawn]


def remember(
    run: Path,
    *,
    count: int = COUNT,
    old_data: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Path, int, int]:
    """Keep some prepared pictures of every product in ``RUN/replay``; earlier ones are replaced.

    Args:
        run: The run folder.
        count: At most so many of a product, and of its held-out pictures as many again; 1 or more.
        old_data: Where the run's data set is now; None: where it was.
        progress: Called with the number of pictures done and in all.

    Returns:
        The folder, the number of pictures in it, and their bytes.

    Raises:
        ConfigError: If ``count`` is less than 1.
        MambaADError: See ``find_pictures``; ImageError if a picture cannot be read.
    """
    if count < 1:
        raise ConfigError(f"the number of pictures to keep must be at least 1, got {count}")
    config, found = load_config(run), find_pictures(run, old_data)
    if found.where == "kept pictures":
        raise CheckpointError(
            f"{run} keeps its pictures already, and their data set is gone, or some product of "
            "it; give --old-data if it has moved"
        )
    parts = [draw(s, count, config.train.seed) for s in (found.learned, found.held_out)]
    folder, fresh = run / FOLDER, run / f".{FOLDER}.{os.getpid()}"
    total = sum(map(len, parts))
    try:
        for part, name in zip(parts, (LIST, HELD_OUT), strict=True):
            if part:
                before = 0 if name == LIST else len(parts[0])
                write_list(fresh / name, _prepared(part, fresh, config, before, total, progress))
        _put_in_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder, total, sum(file.stat().st_size for file in folder.glob("*.png"))


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename a folder to another's name; the other is back there if that fails, else removed."""
    aside = fresh.with_name(f"{fresh.name}.old")
    try:
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)
        fresh.replace(folder)
    except BaseException:  # Ctrl-C too
        if aside.exists() and not folder.exists():
            aside.replace(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _prepared(
    samples: Sequence[Sample],
    folder: Path,
    config: Config,
    before: int,
    total: int,
    progress: Progress | None,
) -> list[Sample]:
    """The pictures as the network takes them, written as PNG files; ``before`` are there."""
    found = []
    for number, sample in enumerate(samples, before + 1):
        path = folder / f"{number:06}.png"
        with replacing(path) as temporary:
            Image.fromarray(load_picture(sample.image, config.data.image_size)).save(temporary)
        found.append(replace(sample, image=path))
        if progress is not None:
            progress(number, total)
    return found


def untested_line(products: Iterable[str], run: Path) -> str:
    """What to tell a user of products that a run knows and has no test pictures of."""
    return (
        f"no test pictures of {', '.join(products)}: 'mambaad test {run}' leaves them out; "
        f"test them with 'mambaad test {run} DATA', DATA being a data set that has some"
    )


def copy_kept(pictures: OldPictures, folder: Path) -> OldPictures:
    """The same with kept pictures copied to another run's folder, which then needs no other."""
    folder.mkdir(parents=True, exist_ok=True)

    def copied(samples: Iterable[Sample]) -> tuple[Sample, ...]:
        return tuple(replace(s, image=Path(shutil.copy2(s.image, folder))) for s in samples)

    return replace(pictures, learned=copied(pictures.learned), held_out=copied(pictures.held_out))


def write_list(path: Path, samples: Iterable[Sample]) -> None:
    """Write pictures as a data set of the layout ``csv``, all or nothing.

    Files beside the list, or in folders there, are named relative to it, others by whole paths. The
    list is UTF-8, so a file with bytes in its path that are not gets a link in ``renamed/`` beside
    the list, which is named instead.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for s in samples:
        image, mask = (_name(file, path.parent) for file in (s.image, s.mask))
        label = int(s.is_anomalous)
        writer.writerow([image, label, s.split, mask, s.category, s.defect, s.group])
    write_text(path, text.getvalue())


def _name(file: Path | None, folder: Path) -> str:
    if file is None:
        return ""
    whole, base = file.absolute(), folder.absolute()
    name = (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        return _linked(whole, base).relative_to(base).as_posix()
    return name


def _linked(file: Path, folder: Path) -> Path:
    """A link to a file by a name of its own, the same each time, that any list can hold."""
    digest = hashlib.sha1(os.fsencode(file), usedforsecurity=False).hexdigest()
    link = folder / RENAMED / f"{digest}{file.suffix}"
    make_folder(link.parent)
    if not link.is_symlink():
        link.symlink_to(file)
    return link
