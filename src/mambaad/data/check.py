"""What is wrong with a data set, found before a training run finds it.

Every file is decoded once, in threads. A problem is an ``error`` when training would fail or learn
from nothing, and a ``warning`` when it would run but the result or its figures would suffer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mambaad.data.cache import Progress, map_in_threads, worker_count
from mambaad.data.catalogue import published
from mambaad.data.catalogue_check import compare
from mambaad.data.images import PictureInfo, describe_picture, left_out_note, load_mask
from mambaad.data.layouts import LAYOUTS, find_categories, list_masks, list_pictures, read_dataset
from mambaad.data.samples import Dataset, Sample, path_inside
from mambaad.errors import ImageError

Severity = Literal["error", "warning"]
FIRST_CASES = 3
"""How many cases of a problem are shown."""

FEW_PICTURES = 20
"""Good pictures of a category below which its result is likely to be poor."""

KINDS: dict[str, str] = {
    "unreadable_training_picture": (
        "training pictures cannot be read; remove them or save them again"
    ),
    "no_training_pictures": (
        "categories have no good pictures to train on; add some, or leave these categories out"
    ),
    "few_training_pictures": (
        f"categories have fewer than {FEW_PICTURES} good pictures to train on; add more"
    ),
    "unreadable_test_picture": "test pictures cannot be read; testing will stop at the first",
    "unreadable_mask": "masks cannot be read; testing will stop at the first",
    "train_in_test": "pictures are in training and in the test, so the test's figures are too good",
    "duplicate": "training pictures are there more than once",
    "no_good_test_pictures": (
        "categories have defective pictures but no good ones to test against: no figures for them"
    ),
    "missing_mask": (
        "defective pictures have no mask; their categories get no figures of pixels at all"
    ),
    "unused_mask": "masks belong to no picture; a mask must have the name of a defective one",
    "mask_size": "masks are not of their picture's size, so they may not lie over the defect",
    "empty_mask": "masks of defective pictures mark nothing",
    "vanishing_mask": (
        "masks mark so little that nothing is left of it at the size of training; choose a "
        "larger image_size"
    ),
    "lossy_mask": (
        "masks are JPEG files, whose noise counts as defect (every value above 0 does); save "
        "them as PNG"
    ),
    "dark_16_bit": (
        "16-bit pictures use less than a sixteenth of their range (a 12-bit camera?) and "
        "become almost black in 8 bits; multiply them up to 65535"
    ),
    "ignored_picture": (
        "pictures are read neither as good nor as defective ones, because of where they lie"
    ),
}
"""Message of every kind of problem, which reads on from a count; in the order they are listed."""

ERRORS = frozenset({"unreadable_training_picture", "no_training_pictures"})
"""The kinds with which training fails; the others are warnings."""


@dataclass(frozen=True)
class Problem:
    """One kind of trouble: a key of ``KINDS``, how bad it is, and the first of its cases."""

    kind: str
    severity: Severity
    count: int
    message: str
    cases: tuple[str, ...]
    """At most ``FIRST_CASES``: mostly paths inside the data set."""


@dataclass(frozen=True)
class CategoryCounts:
    """How many pictures a category has."""

    category: str
    train_good: int
    test_good: int
    defects: Mapping[str, int]
    """Defective pictures by the defect's name."""

    masks: int
    """How many of the defective pictures have a mask."""


@dataclass(frozen=True)
class CheckResult:
    """What :func:`check_dataset` found."""

    root: Path
    layout: str
    categories: tuple[CategoryCounts, ...]
    smallest: tuple[int, int] | None
    """Height and width of the picture with the fewest pixels; None if none can be read."""

    largest: tuple[int, int] | None
    """Height and width of the picture with the most pixels."""

    modes: Mapping[str, int]
    """How many pictures there are of each of PIL's modes: ``RGB``, ``L`` (grey), ``I;16``..."""

    problems: tuple[Problem, ...]
    """In the order of ``KINDS``: errors first."""

    notes: tuple[str, ...]
    """What is no problem but good to know, one line each."""

    expected: str = ""
    """Name of the published set that it was compared with; empty for none."""

    differences: tuple[str, ...] = ()
    """What differs from that set, one line each."""

    compared: tuple[str, ...] = ()
    """Its categories whose numbers of pictures are known and were compared; ``in all`` for all."""

    agreement: str = ""
    """What agrees with that set and what could not be compared; empty if something differs."""

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings are allowed."""
        return all(problem.severity != "error" for problem in self.problems)

    def to_mapping(self) -> dict[str, Any]:
        """Everything as JSON can hold it, with ``ok``."""
        plain = asdict(self) | {"root": self.root.as_posix(), "ok": self.ok}
        mapping: dict[str, Any] = json.loads(json.dumps(plain))  # makes lists of the tuples
        return mapping


@dataclass(frozen=True)
class _Finding:
    """What one thread found out about one sample."""

    sample: Sample
    digest: str = ""
    info: PictureInfo | None = None
    unreadable: str = ""
    mask_unreadable: str = ""
    mask_size: tuple[int, int] | None = None
    mask_empty: bool = False
    mask_vanishes: bool = False


def check_dataset(
    root: Path | str,
    layout: str = "auto",
    categories: Sequence[str] = (),
    *,
    image_size: tuple[int, int] = (256, 256),
    expect: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckResult:
    """Read a data set as training would, decode every file and say what is wrong.

    Args:
        root: The folder of the data set.
        layout: As for :func:`read_dataset`.
        categories: Categories to check; empty means all.
        image_size: Height and width that pictures will be resized to.
        expect: Name of the published set that this should be, whole or in the named categories.
        workers: Threads; None: one per processor.
        progress: Called after each sample.

    Raises:
        ConfigError: If there is no such layout or published set.
        DatasetError: If the folder cannot be read as a data set at all.
    """
    known = None if expect is None else published(expect)
    layout = known.layout if known is not None and layout == "auto" else layout
    dataset = read_dataset(root, layout, categories)
    folders = _category_folders(dataset)
    names = sorted(set(categories or folders or dataset.categories))
    findings = map_in_threads(
        lambda sample: _look_at(sample, image_size),
        dataset.samples,
        workers=workers or worker_count(),
        progress=progress,
    )
    counts = tuple(_count(name, dataset) for name in names)
    cases = {
        **_check_pictures(findings, counts, dataset.root),
        **_check_masks(findings, counts, dataset.root),
        **_check_duplicates(findings, dataset.root),
        **_check_leftovers(dataset, [folders[c] for c in categories if folders]),
    }
    compared = None if known is None else compare(dataset, known, categories)
    infos = [f.info for f in findings if f.info is not None]
    sizes = sorted(((i.height, i.width) for i in infos), key=lambda s: (s[0] * s[1], s))
    return CheckResult(
        root=dataset.root,
        layout=dataset.layout,
        categories=counts,
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        modes=dict(sorted(Counter(i.mode for i in infos).items())),
        problems=tuple(_problem(kind, cases[kind]) for kind in KINDS if cases.get(kind)),
        notes=(*dataset.notes, *_notes(dataset, infos, counts, image_size, folders)),
        expected=expect or "",
        differences=() if compared is None else compared.differences,
        compared=() if compared is None else compared.compared,
        agreement="" if compared is None else compared.agreement,
    )


def _category_folders(dataset: Dataset) -> dict[str, Path]:
    """The categories' folders, also of empty ones; none where a list says what belongs to it."""
    if LAYOUTS[dataset.layout].is_listed:
        return {}
    return find_categories(dataset.root, dataset.layout)


def _look_at(sample: Sample, image_size: tuple[int, int]) -> _Finding:
    try:
        info = describe_picture(sample.image)
        digest = hashlib.sha1(sample.image.read_bytes(), usedforsecurity=False).hexdigest()
    except (ImageError, OSError) as error:
        return _Finding(sample, unreadable=str(error))
    if sample.mask is None:
        return _Finding(sample, digest, info)
    try:
        mask = load_mask(sample.mask)
        resized = load_mask(sample.mask, image_size)
    except ImageError as error:
        return _Finding(sample, digest, info, mask_unreadable=str(error))
    return _Finding(
        sample,
        digest,
        info,
        mask_size=(mask.shape[0], mask.shape[1]),
        mask_empty=not mask.any(),
        mask_vanishes=bool(mask.any() and not resized.any()),
    )


def _count(category: str, dataset: Dataset) -> CategoryCounts:
    samples = [s for s in dataset if s.category == category]
    good = Counter(s.split for s in samples if not s.is_anomalous)
    defects = Counter(s.defect for s in samples if s.is_anomalous)
    masks = sum(s.mask is not None for s in samples)
    return CategoryCounts(
        category, good["train"], good["test"], dict(sorted(defects.items())), masks
    )


def _problem(kind: str, cases: Sequence[str]) -> Problem:
    severity: Severity = "error" if kind in ERRORS else "warning"
    return Problem(kind, severity, len(cases), KINDS[kind], tuple(cases[:FIRST_CASES]))


def _check_pictures(
    findings: Sequence[_Finding], counts: Sequence[CategoryCounts], root: Path
) -> dict[str, list[str]]:
    unreadable = [(f.sample.split, _short(f.unreadable, root)) for f in findings if f.unreadable]
    dark = [f for f in findings if f.info and f.info.mode.startswith("I") and f.info.peak < 16]
    return {
        "unreadable_training_picture": [line for split, line in unreadable if split == "train"],
        "unreadable_test_picture": [line for split, line in unreadable if split == "test"],
        "no_training_pictures": [c.category for c in counts if c.train_good == 0],
        "few_training_pictures": [
            f"{c.category}: {c.train_good}" for c in counts if 0 < c.train_good < FEW_PICTURES
        ],
        "no_good_test_pictures": [c.category for c in counts if c.defects and c.test_good == 0],
        "dark_16_bit": [path_inside(f.sample.image, root) for f in dark],
    }


def _check_masks(
    findings: Sequence[_Finding], counts: Sequence[CategoryCounts], root: Path
) -> dict[str, list[str]]:
    with_masks = {c.category for c in counts if c.masks}
    missing = [
        path_inside(f.sample.image, root)
        for f in findings
        if f.sample.is_anomalous and f.sample.mask is None and f.sample.category in with_masks
    ]
    cases = defaultdict(list, {"missing_mask": missing})
    for finding in findings:
        mask, info = finding.sample.mask, finding.info
        if mask is None or info is None:
            continue
        if finding.mask_unreadable:
            cases["unreadable_mask"].append(_short(finding.mask_unreadable, root))
            continue
        found = {
            "mask_size": finding.mask_size != (info.height, info.width),
            "empty_mask": finding.mask_empty,
            "vanishing_mask": finding.mask_vanishes,
            "lossy_mask": mask.suffix.lower() in (".jpg", ".jpeg", ".jfif"),
        }
        for kind in (kind for kind, is_so in found.items() if is_so):
            cases[kind].append(path_inside(mask, root))
    return cases


def _check_duplicates(findings: Sequence[_Finding], root: Path) -> dict[str, list[str]]:
    same: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"train": [], "test": []})
    for finding in findings:
        if finding.digest:
            same[finding.digest][finding.sample.split].append(
                path_inside(finding.sample.image, root)
            )
    groups = [(group["train"], group["test"]) for group in same.values()]
    return {
        "train_in_test": [f"{t} = {train[0]}" for train, test in groups if train for t in test],
        "duplicate": [f"{again} = {train[0]}" for train, _ in groups for again in train[1:]],
    }


def _check_leftovers(dataset: Dataset, folders: Sequence[Path]) -> dict[str, list[str]]:
    """Files that look like part of the data set and that nothing reads; no folders means all."""
    if LAYOUTS[dataset.layout].is_listed:  # what a list does not name was left out on purpose
        return {}
    root, masks = dataset.root, list_masks(dataset)
    used = {path for s in dataset if s.mask is not None for path in _files_of(s.mask)}
    known = used | {s.image for s in dataset} | set(masks)
    left_alone = LAYOUTS[dataset.layout].left_alone
    found = [
        path
        for folder in folders or [dataset.root]
        for path in list_pictures(folder)
        if not left_alone & {part.lower() for part in path.relative_to(root).parts[:-1]}
    ]
    return {
        "unused_mask": [path_inside(p, root) for p in masks if p not in used and _marks(p)],
        "ignored_picture": [path_inside(p, root) for p in found if p not in known],
    }


def _notes(
    dataset: Dataset,
    infos: Sequence[PictureInfo],
    counts: Sequence[CategoryCounts],
    image_size: tuple[int, int],
    folders: Mapping[str, Path],
) -> Iterable[str]:
    places = [folders[c.category] for c in counts if folders]
    left_out = left_out_note(places, LAYOUTS[dataset.layout].left_alone)
    if left_out is not None:
        yield left_out
    grey = sum(i.mode in ("1", "L", "LA", "F") or i.mode.startswith("I") for i in infos)
    if grey:
        yield f"{grey} of {len(infos)} pictures are grey; they are used as three equal channels"
    deep = sum(i.mode.startswith("I") for i in infos)
    if deep:
        yield f"{deep} of {len(infos)} pictures have 16 bits; 0..65535 becomes 0..255"
    alpha = sum(i.mode in ("LA", "PA", "RGBA") for i in infos)
    if alpha:
        yield f"{alpha} of {len(infos)} pictures have an alpha channel, which is dropped"
    sizes = len({(i.height, i.width) for i in infos})
    height, width = image_size
    if sizes > 1:
        yield f"pictures have {sizes} different sizes; all become {height} x {width}"
    small = sum(i.height < height or i.width < width for i in infos)
    if small:
        yield f"{small} of {len(infos)} pictures are smaller than {height} x {width}: enlarged"
    only_good = [c.category for c in counts if not c.defects]
    if only_good:
        yield f"no defective pictures in {only_good}: training works, testing says nothing there"
    if dataset.layout == "folder" and all(s.image.parent == dataset.root for s in dataset):
        yield f"there is no good/ folder: all {len(dataset)} pictures are taken as good ones"


def _marks(path: Path) -> bool:
    """Whether a mask marks anything; black ones of good pictures are common and harmless."""
    try:
        return bool(load_mask(path).any())
    except ImageError:
        return True


def _files_of(mask: Path) -> list[Path]:
    """The files of a mask, which may be a folder of several."""
    return list_pictures(mask) if mask.is_dir() else [mask]


def _short(message: str, root: Path) -> str:
    """``cannot read ROOT/x.png: why`` as ``x.png: why``."""
    return message.removeprefix("cannot read ").replace(f"{root}/", "", 1)
