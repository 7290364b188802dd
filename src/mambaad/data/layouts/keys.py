"""A user's own folders, named by the keys of anomalib's ``Folder`` data in a file ``folder.toml``.

The file lies in the root, or is given as the data set. One category, or a table for each::

    name = "bolt"                            # the root's name if left out
    normal_dir = "good"                      # a folder, or a list of folders
    abnormal_dir = ["crack", "dent"]         # each one names its defect
    normal_test_dir = "good_test"            # left out: every fifth of normal_dir, if there are
                                             # defects
    mask_dir = "masks"                       # one for all, or a list: one for each abnormal_dir
    extensions = [".png"]                    # left out: all kinds of pictures

    [nut]                                    # the same keys, for a category of that name
    normal_dir = "nut/ok"

Folders are relative to ``root`` (a key too), which is relative to the file. Masks are paired with
pictures by name, unlike in anomalib, which pairs them by their order.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambaad.data.layouts.base import Layout, chosen, in_order, name_of, split_good
from mambaad.data.layouts.listed import once
from mambaad.data.layouts.tree import defect_samples, good_samples, pictures_in
from mambaad.data.samples import Sample
from mambaad.errors import DatasetError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same module under its older name
    import tomli as tomllib

KEYS_FILE = "folder.toml"
KNOWN = ("name", "root", "normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir", "extensions")


@dataclass(frozen=True)
class _Category:
    """The folders of one category."""

    normal: tuple[Path, ...]
    abnormal: tuple[Path, ...]
    normal_test: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    """One for each of ``abnormal``."""

    endings: frozenset[str]
    """In lower case; empty means all."""


def read_keys(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read the folders that ``folder.toml`` names; the module's docstring has its keys.

    Raises:
        DatasetError: If the file cannot be read, a key is unknown or a folder does not exist, or
            a mask is ambiguous.
    """
    source = _source(root)
    tables = _tables(source)
    samples: list[Sample] = []
    for category, _ in chosen({name: source.parent for name in tables}, categories):
        keys = _parse(tables[category], source)
        bad = [
            sample
            for folder, masks in zip(keys.abnormal, keys.masks, strict=True)
            for sample in defect_samples(category, [folder], masks)
        ]
        if keys.normal_test:
            good = good_samples(category, keys.normal, keys.normal_test)
        else:
            good = split_good(category, pictures_in(keys.normal), has_defects=bool(bad))
        samples += [
            s for s in good + bad if not keys.endings or s.image.suffix.lower() in keys.endings
        ]
    return in_order(samples)


@once
def _tables(source: Path) -> dict[str, dict[str, Any]]:
    """The keys of each category."""
    try:
        content = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(f"cannot read {source}: {error}") from error
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    own = {name: value for name, value in content.items() if name not in tables}
    if own and tables:
        raise DatasetError(
            f"{source} must hold the keys of one category, or a table for each; it has both "
            f"{sorted(own)} and the tables {sorted(tables)}"
        )
    if own:
        return {str(own.get("name", name_of(source.parent))): own}
    return {str(table.get("name", name)): table for name, table in tables.items()}


def _parse(keys: Mapping[str, Any], source: Path) -> _Category:
    unknown = sorted(set(keys) - set(KNOWN))
    if unknown:
        raise DatasetError(f"unknown key {unknown} in {source}; known: {list(KNOWN)}")
    base = source.parent / str(keys.get("root", ""))
    normal, abnormal, test, masks = (
        tuple(base / name for name in _texts(keys, key, source))
        for key in ("normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir")
    )
    if not normal and not abnormal:
        raise DatasetError(f"{source} must name a normal_dir")
    lost = [folder for folder in (*normal, *abnormal, *test, *masks) if not folder.is_dir()]
    if lost:
        raise DatasetError(f"{source} names the folder {lost[0]}, which does not exist")
    if isinstance(keys.get("mask_dir"), list) and len(masks) != len(abnormal):
        raise DatasetError(
            f"{source} must give one mask_dir, or as many as the {len(abnormal)} of abnormal_dir; "
            f"got {len(masks)}"
        )
    each: tuple[Path | None, ...] = masks if len(masks) == len(abnormal) else ()
    endings = frozenset(text.lower() for text in _texts(keys, "extensions", source))
    return _Category(
        normal, abnormal, test, each or (masks[0] if masks else None,) * len(abnormal), endings
    )


def _texts(keys: Mapping[str, Any], key: str, source: Path) -> list[str]:
    value = keys.get(key, [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{key} in {source} must be a text or a list of texts, got {value!r}")
    return texts


def _source(root: Path) -> Path:
    return root if root.is_file() else root / KEYS_FILE


def _find(root: Path) -> dict[str, Path]:
    source = _source(root)
    return {name: source.parent for name in _tables(source)} if source.is_file() else {}


KEYS = Layout(
    name="keys",
    tree=("folder.toml: normal_dir, abnormal_dir, normal_test_dir, mask_dir, extensions",),
    find=_find,
    read=read_keys,
)
