"""The layouts of MVTec's other sets: 3D-AD, LOCO AD and AD 2.

``mvtec-3d``, MVTec 3D-AD (Bergmann et al., VISAPP 2022), of which only the colour pictures are
read; published figures of multi-class methods train on ``train`` and ``validation``::

    root/<category>/{train,validation,test}/<good or defect>/rgb/NNN.png
    root/<category>/test/<defect>/gt/NNN.png

``mvtec-3d-strict``, the same without ``validation``, as the set's own protocol has it.

``mvtec-loco``, MVTec LOCO AD (Bergmann et al., IJCV 2022). A picture has a folder of masks, one
for each defect in it; together they are its mask::

    root/<category>/{train,validation,test}/good/NNN.png
    root/<category>/test/{logical_anomalies,structural_anomalies}/NNN.png
    root/<category>/ground_truth/<the same>/NNN/000.png

``mvtec-ad-2``, MVTec AD 2 (Heckler-Kram et al., arXiv 2503.21622). Only the public test has
labels::

    root/<category>/{train,validation}/good/NAME.png
    root/<category>/test_public/{good,bad}/NAME.png
    root/<category>/test_public/ground_truth/bad/NAME_mask.png
    root/<category>/test_private/NAME.png, root/<category>/test_private_mixed/NAME.png
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mambaad.data.layouts.base import Layout, chosen, in_order
from mambaad.data.layouts.mvtec import categories_if
from mambaad.data.layouts.tree import (
    all_subfolders,
    by_key,
    defect_samples,
    files_in,
    good_folders,
    good_samples,
    key_of,
    list_pictures,
    mask_folder_in,
    masks_in,
    pictures_in,
    subfolders,
)
from mambaad.data.samples import Sample

AD2_SPLITS = ("train", "test_public")


def read_3d(
    root: Path, categories: Sequence[str] = (), *, train: Sequence[str] = ("train", "validation")
) -> list[Sample]:
    """Read the colour pictures of MVTec 3D-AD; the module's docstring has the layout.

    Args:
        root: The folder of the set, or of one category.
        categories: Categories to read; empty means all.
        train: The splits whose good pictures are for training.
    """
    samples: list[Sample] = []
    for category, folder in chosen(_find_3d(root), categories):
        goods = [good / "rgb" for split in train for good in good_folders(folder / split)]
        tests = [good / "rgb" for good in good_folders(folder / "test")]
        samples += good_samples(category, goods, tests)
        for defect in subfolders(folder / "test"):
            masks = by_key(list_pictures(defect / "gt"), defect / "gt")
            samples += [
                Sample(path, category, "test", defect.name, masks.get(key_of(path, defect / "rgb")))
                for path in list_pictures(defect / "rgb")
            ]
    return in_order(samples)


def read_loco(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read MVTec LOCO AD; the module's docstring has the layout.

    The mask of a picture is its only one, or the folder of several.
    """
    samples: list[Sample] = []
    for category, folder in chosen(_find_loco(root), categories):
        samples += good_samples(
            category, good_folders(folder / "train"), good_folders(folder / "test")
        )
        for defect in subfolders(folder / "test"):
            truth = folder / "ground_truth" / defect.name
            for path in list_pictures(defect):
                masks = list_pictures(truth / path.stem)
                whole = masks[0] if len(masks) == 1 else truth / path.stem if masks else None
                samples.append(Sample(path, category, "test", defect.name, whole))
    return in_order(samples)


def read_ad2(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read MVTec AD 2 with its public test; the module's docstring has the layout.

    Raises:
        DatasetError: If a mask is ambiguous.
    """
    samples: list[Sample] = []
    for category, folder in chosen(_find_ad2(root), categories):
        test = folder / "test_public"
        samples += good_samples(category, good_folders(folder / "train"), good_folders(test))
        samples += defect_samples(category, subfolders(test), mask_folder_in(test))
    return in_order(samples)


def _find_3d(root: Path) -> dict[str, Path]:
    def shows(folder: Path) -> bool:
        kinds = [k for split in ("train", "test") for k in all_subfolders(folder / split)]
        return any((kind / "rgb").is_dir() for kind in kinds)

    return categories_if(root, shows)


def _find_loco(root: Path) -> dict[str, Path]:
    def shows(folder: Path) -> bool:
        # a folder of masks has the name of a picture, not of a folder of pictures
        return any(
            any(path.stem == masks.name for path in files_in(folder / "test" / kind.name))
            for kind in all_subfolders(folder / "ground_truth")
            for masks in all_subfolders(kind)[:1]
        )

    return categories_if(root, shows)


def _find_ad2(root: Path) -> dict[str, Path]:
    return categories_if(root, lambda folder: (folder / "test_public").is_dir(), AD2_SPLITS)


def _masks_3d(folder: Path) -> list[Path]:
    return [m for kind in all_subfolders(folder / "test") for m in list_pictures(kind / "gt")]


def _masks_ad2(folder: Path) -> list[Path]:
    return masks_in(folder / "test_public")


def _notes_3d(root: Path) -> list[str]:
    return _validation(
        _find_3d(root),
        "train too, as in published figures; the layout mvtec-3d-strict leaves them out",
        "rgb",
    )


def _notes_3d_strict(root: Path) -> list[str]:
    return _validation(_find_3d(root), "are left out", "rgb")


def _notes_loco(root: Path) -> list[str]:
    return _validation(_find_loco(root), "are left out")


def _notes_ad2(root: Path) -> list[str]:
    notes = _validation(_find_ad2(root), "are left out")
    return [*notes, "the test is test_public; the private tests have no labels"]


def _validation(categories: dict[str, Path], what: str, inside: str = "") -> list[str]:
    """What is done with the pictures of ``validation``, if there are any."""
    goods = [good for f in categories.values() for good in good_folders(f / "validation")]
    count = len(pictures_in(good / inside for good in goods))
    return [f"{count} good pictures of validation/ {what}"] if count else []


MVTEC_3D = Layout(
    name="mvtec-3d",
    tree=(
        "<category>/{train,validation,test}/good/rgb/NNN.png",
        "<category>/test/<defect>/rgb/NNN.png",
        "<category>/test/<defect>/gt/NNN.png",
    ),
    find=_find_3d,
    read=read_3d,
    notes=_notes_3d,
    masks=_masks_3d,
    left_alone=frozenset({"xyz", "gt", "calibration"}),
)
MVTEC_3D_STRICT = replace(
    MVTEC_3D,
    name="mvtec-3d-strict",
    read=partial(read_3d, train=("train",)),
    notes=_notes_3d_strict,
    left_alone=MVTEC_3D.left_alone | {"validation"},
)
MVTEC_LOCO = Layout(
    name="mvtec-loco",
    tree=(
        "<category>/{train,validation,test}/good/NNN.png",
        "<category>/test/{logical_anomalies,structural_anomalies}/NNN.png",
        "<category>/ground_truth/{logical_anomalies,structural_anomalies}/NNN/000.png",
    ),
    find=_find_loco,
    read=read_loco,
    notes=_notes_loco,
    masks=masks_in,
    left_alone=frozenset({"validation"}),
)
MVTEC_AD_2 = Layout(
    name="mvtec-ad-2",
    tree=(
        "<category>/{train,validation}/good/NAME.png",
        "<category>/test_public/{good,bad}/NAME.png",
        "<category>/test_public/ground_truth/bad/NAME_mask.png",
    ),
    find=_find_ad2,
    read=read_ad2,
    notes=_notes_ad2,
    masks=_masks_ad2,
    left_alone=frozenset({"validation", "test_private", "test_private_mixed"}),
)
