"""Pictures in memory and in a file, and what the file looks like."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mambaad.data.kept import InMemory, OnDisk, file_name
from mambaad.errors import DatasetError, ImageError

SHAPE = (5000, 2, 3, 3)
"""More pictures than validity bytes go on a page."""


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE[1:], dtype=np.uint8)


@pytest.fixture
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> InMemory | OnDisk:
    if request.param == "memory":
        return InMemory(SHAPE)
    return OnDisk(tmp_path / "new" / "file.bin", SHAPE, np.arange(SHAPE[0]))


@pytest.mark.parametrize("kept", ["memory", "disk"], indirect=True)
def test_a_picture_is_kept_from_its_commit_on(kept: InMemory | OnDisk) -> None:
    wanted = np.array([4999, 0, 7])
    for index in (0, 4999):
        kept.put(index, picture(index))
    assert kept.absent(wanted).tolist() == [4999, 0, 7]
    kept.commit([4999, 0])
    assert kept.absent(wanted).tolist() == [7]
    found = kept.take(np.array([4999, 0, 4999]))
    np.testing.assert_array_equal(found, np.stack([picture(i) for i in (4999, 0, 4999)]))
    np.testing.assert_array_equal(kept.picture(0), picture(0))
    found[:] = 0  # a copy
    np.testing.assert_array_equal(kept.picture(4999), picture(4999))


def test_the_file_is_validity_bytes_then_pictures(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    kept = OnDisk(path, SHAPE, np.array([4998, 3]))
    kept.put(0, picture(1))
    kept.commit([0])
    kept.put(1, picture(2))
    raw = np.fromfile(path, np.uint8)
    header, each = 2 * 4096, 2 * 3 * 3
    assert raw.size == header + SHAPE[0] * each
    assert np.flatnonzero(raw[:header]).tolist() == [4998]
    start = header + 4998 * each
    np.testing.assert_array_equal(raw[start : start + each], picture(1).ravel())
    start = header + 3 * each
    np.testing.assert_array_equal(raw[start : start + each], picture(2).ravel())


def test_a_file_that_was_cut_off_while_it_was_made_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"")
    kept = OnDisk(path, SHAPE, np.arange(2))
    assert kept.absent(np.arange(2)).tolist() == [0, 1]
    assert path.stat().st_size == 2 * 4096 + SHAPE[0] * 18


def test_an_error_of_the_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    kept = OnDisk(path, SHAPE, np.arange(3))
    path.unlink()
    for call in (lambda: kept.put(0, picture(0)), lambda: kept.commit([0])):
        with pytest.raises(DatasetError, match=r"file\.bin: no such file .*another disk"):
            call()


def test_the_name_follows_paths_sizes_times_and_the_target(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"12")
        os.utime(path, ns=(5, 5))
    first = file_name(paths, (2, 3))
    assert first == file_name([path.absolute() for path in paths], (2, 3))
    names = {first, file_name(paths, (3, 2)), file_name(paths[::-1], (2, 3))}
    os.utime(paths[1], ns=(5, 6))
    names.add(file_name(paths, (2, 3)))
    os.utime(paths[1], ns=(5, 5))
    assert file_name(paths, (2, 3)) == first
    paths[1].write_bytes(b"123")
    os.utime(paths[1], ns=(5, 5))
    names.add(file_name(paths, (2, 3)))
    assert len(names) == 5
    paths[0].unlink()
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        file_name(paths, (2, 3))
