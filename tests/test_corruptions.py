"""Corruptions of pictures: what each does, and that a mask goes where its defect goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from mambaad.corruptions import KINDS, MOVING, Corruption, corruptions
from mambaad.errors import ConfigError

CLEAN = Corruption("none", 0.0)


@pytest.fixture
def picture() -> np.ndarray:
    rough = np.random.default_rng(0).random((48, 64, 3))
    smooth = ndimage.gaussian_filter(rough, (3, 3, 0))
    return (40 + 170 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_every_kind_is_repeatable_and_gets_stronger(kind: str, picture: np.ndarray) -> None:
    before = picture.copy()
    changes = []
    for strength in KINDS[kind].strengths:
        corruption = Corruption(kind, strength)
        found = corruption.picture(picture, 7)
        assert found.shape == picture.shape
        assert found.dtype == np.uint8
        assert np.array_equal(found, corruption.picture(picture, 7))
        changes.append(difference(found, picture))
    assert np.array_equal(picture, before)
    pair = 2 if kind in ("brightness", "contrast") else 1  # down and up at each strength
    assert all(0 < a < b for a, b in zip(changes, changes[pair:], strict=False))


def test_brightness_and_contrast(picture: np.ndarray) -> None:
    darker = Corruption("brightness", -0.2).picture(picture, 0)
    assert np.array_equal(darker, np.rint(picture * np.float32(0.8)).astype(np.uint8))
    bright = Corruption("brightness", 0.4).picture(picture, 0)
    assert bright.max() == 255  # clipped, not wrapped
    flat = Corruption("contrast", -0.4).picture(picture, 0)
    assert flat.mean() == pytest.approx(picture.mean(), abs=0.3)
    assert flat.std() == pytest.approx(0.6 * picture.std(), rel=0.01)


def test_noise_has_the_deviation_and_one_pattern_for_all_strengths() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    weak, strong = (Corruption("noise", s).picture(grey, 3) - 128.0 for s in (4.0, 16.0))
    assert weak.std() == pytest.approx(4, rel=0.02)
    assert strong.std() == pytest.approx(16, rel=0.02)
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.99
    other = Corruption("noise", 4.0).picture(grey, 4) - 128.0
    assert abs(np.corrcoef(weak.ravel(), other.ravel())[0, 1]) < 0.01


def test_blur_keeps_the_mean_and_an_edge_at_its_place() -> None:
    edge = np.zeros((32, 32, 3), np.uint8)
    edge[:, 16:] = 200
    blurred = Corruption("blur", 2.0).picture(edge, 0).astype(float)
    assert blurred.mean() == pytest.approx(100, abs=0.5)
    assert (np.diff(blurred[5, :, 0]) >= 0).all()
    assert blurred[5, 15, 0] + blurred[5, 16, 0] == pytest.approx(200, abs=1)


@given(st.integers(0, 2**32 - 1))
def test_a_shift_moves_whole_pixels_and_mirrors_the_border(seed: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    found = Corruption("shift", 0.1).picture(picture, seed)  # 2 rows and 4 columns
    around = np.pad(picture, ((2, 2), (4, 4), (0, 0)), mode="symmetric")
    places = [around[y : y + 20, x : x + 40] for y in (0, 4) for x in (0, 8)]
    assert sum(np.array_equal(found, place) for place in places) == 1


def test_directions_depend_on_the_seed(picture: np.ndarray) -> None:
    for kind, count in (("shift", 4), ("rotation", 2)):
        corruption = Corruption(kind, 0.1 if kind == "shift" else 10.0)
        found = {corruption.picture(picture, seed).tobytes() for seed in range(40)}
        assert len(found) == count


def test_a_rotation_turns_about_the_middle_by_its_degrees() -> None:
    picture = np.zeros((65, 65, 3), np.uint8)
    picture[31:34, 60:] = 255  # right of the middle
    picture[32, 32] = 255
    found = Corruption("rotation", 10.0).picture(picture, 0)[:, :, 0]
    assert found[32, 32] > 200
    y, x = ndimage.center_of_mass(np.where(np.indices(found.shape)[1] > 45, found, 0))
    angle = np.degrees(np.arctan2(y - 32, x - 32))
    assert abs(angle) == pytest.approx(10, abs=0.7)


@pytest.mark.parametrize("corruption", corruptions(MOVING)[1:], ids=lambda c: c.name)
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_the_mask_goes_with_the_defect(corruption: Corruption, seed: int) -> None:
    mask = np.zeros((60, 80), bool)
    mask[5:20, 50:78] = True
    picture = np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * np.uint8(255)
    moved = corruption.mask(mask, seed)
    assert moved.dtype == bool
    assert np.array_equal(moved, corruption.picture(picture, seed)[:, :, 0] > 127)
    assert moved.any()
    assert not np.array_equal(moved, mask)


def test_other_kinds_leave_the_mask(picture: np.ndarray) -> None:
    mask = np.zeros((48, 64), bool)
    mask[3, 4] = True
    for corruption in corruptions():
        if corruption.kind not in MOVING:
            assert np.array_equal(corruption.mask(mask, 1), mask)
    assert np.array_equal(CLEAN.picture(picture, 5), picture)


def test_the_list_begins_with_none_and_takes_names() -> None:
    everything = corruptions()
    assert everything[0] == CLEAN
    assert {c.kind for c in everything} == set(KINDS)
    assert corruptions(["jpeg"]) == [CLEAN, *(Corruption("jpeg", s) for s in (75, 50, 25))]
    assert [c.name for c in corruptions(["shift"])] == ["none", "shift 2%", "shift 5%", "shift 10%"]
    with pytest.raises(ConfigError, match=r"one of \['none', .*'jpeg'\], got \['fog'\]"):
        corruptions(["blur", "fog"])
