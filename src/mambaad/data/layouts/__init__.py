"""How a data set lies on disk: one reader per layout, each makes a list of ``Sample``.

======================  ==========================================================================
``csv``, ``keys``       A user's own list of pictures, and a user's own folders: ``table``, ``keys``
``visa``                VisA's original tree: ``visa``
``real-iad``            Real-IAD with all views, and with one (``real-iad-single``): ``real_iad``
``coco-ad-0`` to ``3``  The splits of COCO-AD: ``meta``
``mvtec-3d``            MVTec 3D-AD (and ``mvtec-3d-strict``), LOCO AD (``mvtec-loco``) and AD 2
                        (``mvtec-ad-2``): ``mvtec_family``
``bmad``                BMAD's own tree: ``bmad``
``mvtec``               MVTec AD, BTAD, MPDD, Uni-Medical and what is laid out so: ``mvtec``
``meta``                Whatever ADer's ``meta.json`` lists: ``meta``
``folder``              A user's pictures, sorted into folders: ``folder``
======================  ==========================================================================

``auto`` takes the first one, in that order, that the root shows; ``Dataset.layout`` says which.
Where a set may be read in two ways, the published one is taken and ``Dataset.notes`` says so.
``tree`` has the rules that hold for every tree of folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mambaad.data.layouts.base import TEST_EVERY, Layout, Reader
from mambaad.data.layouts.bmad import BMAD, read_bmad
from mambaad.data.layouts.folder import FOLDER, read_folder
from mambaad.data.layouts.keys import KEYS, read_keys
from mambaad.data.layouts.listed import parsed_once
from mambaad.data.layouts.meta import COCO_AD, META_JSON, read_meta
from mambaad.data.layouts.mvtec import MVTEC, read_mvtec
from mambaad.data.layouts.mvtec_family import (
    MVTEC_3D,
    MVTEC_3D_STRICT,
    MVTEC_AD_2,
    MVTEC_LOCO,
    read_3d,
    read_ad2,
    read_loco,
)
from mambaad.data.layouts.real_iad import REAL_IAD, REAL_IAD_SINGLE, read_real_iad
from mambaad.data.layouts.table import CSV, read_csv
from mambaad.data.layouts.tree import (
    GOOD_NAMES,
    GOOD_PLACE,
    MASK_NAMES,
    list_pictures,
    what_is_in,
)
from mambaad.data.layouts.visa import VISA, read_visa
from mambaad.data.samples import RESERVED_NAMES, Dataset, Sample
from mambaad.errors import ConfigError, DatasetError

__all__ = [
    "GOOD_NAMES",
    "LAYOUTS",
    "MASK_NAMES",
    "READERS",
    "TEST_EVERY",
    "Layout",
    "Reader",
    "find_categories",
    "list_masks",
    "list_pictures",
    "read_3d",
    "read_ad2",
    "read_bmad",
    "read_csv",
    "read_dataset",
    "read_folder",
    "read_keys",
    "read_loco",
    "read_meta",
    "read_mvtec",
    "read_real_iad",
    "read_visa",
]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        CSV,
        KEYS,
        VISA,
        REAL_IAD,
        REAL_IAD_SINGLE,
        *COCO_AD,
        MVTEC_3D,
        MVTEC_3D_STRICT,
        MVTEC_LOCO,
        MVTEC_AD_2,
        BMAD,
        MVTEC,
        META_JSON,
        FOLDER,
    )
}
"""Every layout that can be named; ``auto`` tries them in this order."""

READERS: dict[str, Reader] = {name: layout.read for name, layout in LAYOUTS.items()}
"""The reader of each layout."""

LIST_ENDINGS = {".csv": CSV.name, ".json": META_JSON.name, ".toml": KEYS.name}
"""The layout of a data set that is given as a file."""

EXPECTED = (
    f"expected {GOOD_PLACE} with one folder per defect, or <category>/train/good with "
    "<category>/test/<defect> (MVTec AD); 'mambaad datasets' has the other layouts"
)


def read_dataset(root: Path | str, layout: str = "auto", categories: Sequence[str] = ()) -> Dataset:
    """Read the folder of a data set, or its list.

    Args:
        root: The folder; or a file that lists the pictures: ``*.csv``, ``*.json`` (ADer's) or
            ``*.toml`` (anomalib's folder keys).
        layout: A name from ``LAYOUTS``, or ``auto``: the first that the folder shows.
        categories: Categories to read; empty means all.

    Returns:
        The pictures, sorted by category, split, defect and file name.

    Raises:
        ConfigError: If there is no such layout.
        DatasetError: If the folder is not laid out so, lacks a named category, or a category has
            one of ``RESERVED_NAMES``.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {['auto', *LAYOUTS]}, got {layout!r}")
    root = Path(root).expanduser()
    with parsed_once():
        found = _detect(root, layout)
        samples = _samples(root, LAYOUTS[found], categories)
        notes = LAYOUTS[found].notes(root)
    return Dataset(root.parent if root.is_file() else root, found, tuple(samples), tuple(notes))


def _samples(root: Path, layout: Layout, categories: Sequence[str]) -> list[Sample]:
    """The pictures of the named categories, or of all."""
    known = sorted(layout.find(root))
    unknown = sorted(set(categories) - set(known))
    if unknown:
        raise DatasetError(f"no category {unknown} in {root}; it has {known}")
    for name in categories or known:
        if name in RESERVED_NAMES:
            raise DatasetError(
                f"{root} has a category named {name!r}, which results call "
                f"{RESERVED_NAMES[name]}: rename its folder, or give it another category name"
            )
    samples = layout.read(root, categories)
    if not samples:
        folder = root.parent if root.is_file() else root
        raise DatasetError(f"no pictures in {root}: {what_is_in(folder)}; {EXPECTED}")
    return samples


def _detect(root: Path, layout: str) -> str:
    """The name of the root's layout."""
    if root.is_file():
        listed = LIST_ENDINGS.get(root.suffix.lower())
        if listed is None or layout not in ("auto", listed):
            raise DatasetError(
                f"no data set at {root}: it is a file, not a folder, and no list of pictures "
                f"({', '.join(f'*{ending}' for ending in LIST_ENDINGS)})"
            )
        return listed
    if not root.is_dir():
        raise DatasetError(f"no data set at {root}: it does not exist")
    candidates = list(LAYOUTS) if layout == "auto" else [layout]
    found = next((name for name in candidates if LAYOUTS[name].find(root)), None)
    if found is not None:
        return found
    if layout == "auto":
        raise DatasetError(f"{root} is no data set: {what_is_in(root)}; {EXPECTED}")
    expected = "; ".join(LAYOUTS[layout].tree)
    raise DatasetError(
        f"{root} is no data set of the layout {layout!r}: {what_is_in(root)}; expected {expected}"
    )


def list_masks(dataset: Dataset) -> list[Path]:
    """Every mask in the folders of the data set's categories, used or not.

    Where a list says what belongs to the set, those that it names.
    """
    layout = LAYOUTS[dataset.layout]
    if layout.masks is None:
        return sorted({s.mask for s in dataset if s.mask is not None})
    known = layout.find(dataset.root)
    return [mask for category in dataset.categories for mask in layout.masks(known[category])]


def find_categories(root: Path, layout: str) -> dict[str, Path]:
    """Name and folder of each category that a layout sees in ``root``, also of empty ones.

    Args:
        root: The folder of a data set, or its list.
        layout: A name from ``LAYOUTS``.
    """
    return LAYOUTS[layout].find(root)
