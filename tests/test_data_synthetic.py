"""The procedural benchmark: the same bytes every time, exact masks, a safe writer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mambaad.data.layouts import read_mvtec
from mambaad.data.synthetic import (
    CATEGORIES,
    VISIBLE,
    Picture,
    defects_of,
    render,
    synthesize,
)
from mambaad.errors import ConfigError, DatasetError

KINDS = [(category, defect) for category in CATEGORIES for defect in defects_of(category)]


def difference(a: Picture, b: Picture) -> NDArray[np.int16]:
    """Largest change of a channel, (h, w)."""
    change: NDArray[np.int16] = np.abs(a.image.astype(np.int16) - b.image.astype(np.int16)).max(2)
    return change


def test_six_products_with_at_least_four_defects_each() -> None:
    assert CATEGORIES == ("biscuit", "blister", "board", "fabric", "metal", "wood")
    assert all(len(defects_of(category)) >= 4 for category in CATEGORIES)
    assert defects_of("board") == tuple(sorted(defects_of("board")))


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_picture_is_a_function_of_its_key(category: str) -> None:
    defect = defects_of(category)[0]
    first = render(category, size=64, seed=3, split="test", number=5, defect=defect)
    render(category, size=64, seed=3, split="train", number=0)
    again = render(category, size=64, seed=3, split="test", number=5, defect=defect)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()


def test_a_picture_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from mambaad.data.synthetic import render; "
        "p = render('wood', size=32, seed=1, split='test', number=7, defect='stain'); "
        "print(hashlib.sha256(p.image.tobytes() + p.mask.tobytes()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = render("wood", size=32, seed=1, split="test", number=7, defect="stain")
    digest = hashlib.sha256(here.image.tobytes() + here.mask.tobytes()).hexdigest()
    assert there.stdout.strip() == digest


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_part_of_the_key_counts(category: str) -> None:
    base = render(category, size=64, seed=0, split="train", number=0)
    others = [
        render(category, size=64, seed=1, split="train", number=0),
        render(category, size=64, seed=0, split="test", number=0),
        render(category, size=64, seed=0, split="train", number=1),
    ]
    assert base.image.shape == (64, 64, 3)
    assert base.image.dtype == np.uint8
    assert base.defect == "good"
    assert not base.mask.any()
    for other in others:
        assert np.mean(difference(base, other) > 8) > 0.1  # another product, not only other noise


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_the_mask_is_what_the_defect_changed(category: str, defect: str, size: int) -> None:
    good = render(category, size=size, seed=0, split="test", number=size)
    bad = render(category, size=size, seed=0, split="test", number=size, defect=defect)
    change = difference(good, bad)
    assert bad.defect == defect
    assert not change[~bad.mask].any()  # byte for byte
    # what closing and filling added is the minority
    assert np.mean(change[bad.mask] >= VISIBLE) > 0.6
    assert 3e-4 <= bad.mask.mean() <= 0.3
    rows, columns = np.nonzero(bad.mask)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 3


def test_defects_go_from_faint_to_plain_and_from_small_to_large() -> None:
    contrasts, areas = [], []
    for k, (category, defect) in enumerate(KINDS):
        good = render(category, size=64, seed=2, split="test", number=k)
        bad = render(category, size=64, seed=2, split="test", number=k, defect=defect)
        contrasts.append(difference(good, bad)[bad.mask].mean())
        areas.append(bad.mask.mean())
    assert min(contrasts) < 12 < 60 < max(contrasts)
    assert min(areas) < 0.002 < 0.04 < max(areas)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**63),
    number=st.integers(0, 2**31),
    size=st.integers(32, 90),
)
def test_any_key_renders(kind: tuple[str, str], seed: int, number: int, size: int) -> None:
    category, defect = kind
    picture = render(category, size=size, seed=seed, split="test", number=number, defect=defect)
    assert picture.image.shape == (size, size, 3)
    assert picture.mask.shape == (size, size)
    assert 0 < picture.mask.sum() < 0.35 * size**2
    assert 20 < picture.image.mean() < 235


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_scene_does_not_depend_on_the_size(category: str) -> None:
    small = render(category, size=64, seed=0, split="train", number=0).image
    large = render(category, size=192, seed=0, split="train", number=0).image
    shrunk = large.reshape(64, 3, 64, 3, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 5


def test_the_mean_picture_is_a_poor_detector() -> None:
    """Otherwise the benchmark would tell nothing: chance is 0.5, perfect 1."""
    results = []
    for category in CATEGORIES:
        train = [render(category, size=64, seed=0, split="train", number=k).image for k in range(8)]
        mean = np.mean(train, axis=0)
        kinds = defects_of(category)
        good, bad = [], []
        for k in range(10):
            a = render(category, size=64, seed=0, split="test", number=2 * k)
            b = render(
                category,
                size=64,
                seed=0,
                split="test",
                number=2 * k + 1,
                defect=kinds[k % len(kinds)],
            )
            good.append(np.abs(a.image - mean).max())
            bad.append(np.abs(b.image - mean).max())
        results.append(np.mean(np.asarray(good)[:, None] < np.asarray(bad)[None, :]))
    assert np.mean(results) < 0.85


def read(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder).as_posix()): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_layout_on_disk(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    target = tmp_path / "new" / "set"
    synthesize(
        target,
        size=32,
        train=2,
        good=1,
        defective=6,
        categories=("wood",),
        progress=lambda done, total: seen.append((done, total)),
    )
    files = read(target)
    assert sorted(files) == sorted(
        [
            "wood/train/good/000.png",
            "wood/train/good/001.png",
            "wood/test/good/000.png",
            *(f"wood/test/{d}/000.png" for d in defects_of("wood")),
            *(f"wood/ground_truth/{d}/000_mask.png" for d in defects_of("wood")),
            "wood/test/crack/001.png",  # six defective pictures, five kinds
            "wood/ground_truth/crack/001_mask.png",
        ]
    )
    assert seen == [(k, 9) for k in range(1, 10)]
    samples = read_mvtec(target)
    assert len(samples) == 9
    assert sum(sample.mask is not None for sample in samples) == 6
    assert [p.name for p in target.parent.iterdir()] == ["set"]
    with Image.open(target / "wood/ground_truth/crack/000_mask.png") as mask:
        values = np.asarray(mask)
    assert values.shape == (32, 32)
    assert set(np.unique(values)) == {0, 255}


def test_files_do_not_depend_on_how_many_are_asked_for(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    synthesize(few, size=32, seed=4, train=1, good=1, defective=2, categories=("metal",))
    synthesize(many, size=32, seed=4, train=2, good=3, defective=7, categories=("wood", "metal"))
    small, large = read(few), read(many)
    assert small.items() <= large.items()
    assert len({hashlib.sha256(v).digest() for k, v in large.items() if "/good/" in k}) == 10


def test_an_empty_folder_may_be_filled_and_a_full_one_not(tmp_path: Path) -> None:
    target = tmp_path / "set"
    target.mkdir()
    synthesize(target, size=32, train=1, good=1, defective=1, categories=("wood",))
    before = read(target)
    with pytest.raises(DatasetError, match="is not empty"):
        synthesize(target, size=32, train=2, good=1, defective=1, categories=("wood",))
    assert read(target) == before
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(DatasetError, match="is not empty"):
        synthesize(tmp_path / "file", size=32, train=1, good=1, defective=1)


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(
            tmp_path / "set", size=32, train=4, good=1, defective=1, categories=("wood",),
            progress=interrupt,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"cannot write the pictures to .*set"):
        synthesize(tmp_path / "file" / "set", size=32, train=1, good=1, defective=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": ("wood", "glass")}, "unknown category 'glass'"),
        ({"categories": ()}, "categories must be different names"),
        ({"categories": "wood"}, "categories must be different names"),
        ({"categories": ("wood", "wood")}, "categories must be different names"),
        ({"size": 31}, "size must be a whole number of at least 32, got 31"),
        ({"train": 0}, "train must be a whole number of at least 1, got 0"),
        ({"good": 0}, "good must be"),
        ({"defective": 0}, "defective must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_synthesize_refuses(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        synthesize(tmp_path / "set", **change)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "glass"}, "unknown category 'glass'; the built-in ones are"),
        ({"size": 16}, "size must be a whole number of at least 32, got 16"),
        ({"size": 64.0}, "size must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"number": -1}, "number must be"),
        ({"split": "valid"}, "split must be 'train' or 'test', got 'valid'"),
        ({"defect": "rust"}, "wood has the defects .*; got 'rust'"),
    ],
)
def test_render_refuses(change: dict[str, object], message: str) -> None:
    key: dict[str, object] = {"category": "wood", "size": 32, "seed": 0, "split": "test"}
    with pytest.raises(ConfigError, match=message):
        render(**{**key, "number": 0, **change})  # type: ignore[arg-type]
