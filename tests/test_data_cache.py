from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mambaad.data import cache
from mambaad.data.cache import PictureStore, StoreMode, cache_folder, fingerprint, map_in_threads
from mambaad.data.images import load_picture
from mambaad.data.samples import Dataset, Sample
from mambaad.errors import DatasetError, ImageError

SIZE = (8, 6)
MODES: tuple[StoreMode, ...] = ("pictures", "disk", "none")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    found = [tmp_path / f"{i}.png" for i in range(5)]
    for path in found:
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that were decoded, as it goes on."""
    names: list[str] = []

    def counted(path: Path, size: tuple[int, int]) -> object:
        names.append(path.name)
        return load_picture(path, size)

    monkeypatch.setattr(cache, "load_picture", counted)
    return names


def store_of(paths: list[Path], mode: StoreMode, size: tuple[int, int] = SIZE) -> PictureStore:
    return PictureStore(paths, size, mode, folder=paths[0].parent / "cache", workers=3)


@pytest.mark.parametrize("mode", MODES)
def test_a_store_gives_what_load_picture_gives(paths: list[Path], mode: StoreMode) -> None:
    store = store_of(paths, mode)
    found = store[[4, 0, 4]]
    expected = np.stack([load_picture(paths[i], SIZE) for i in (4, 0, 4)])
    assert found.dtype == np.uint8
    assert len(store) == 5
    np.testing.assert_array_equal(found, expected)
    found[:] = 0  # the caller's own
    np.testing.assert_array_equal(store[np.array([4, 0, 4])], expected)


@pytest.mark.parametrize("mode", ["pictures", "disk"])
def test_the_second_epoch_decodes_nothing(
    paths: list[Path], mode: StoreMode, decoded: list[str]
) -> None:
    store = store_of(paths, mode)
    for _ in range(3):
        store[[1, 0]]
        store[[2, 3, 4, 4]]
    assert sorted(decoded) == [f"{i}.png" for i in range(5)]
    assert store.missing == 0


def test_none_keeps_nothing(paths: list[Path], decoded: list[str]) -> None:
    store = store_of(paths, "none")
    store.fill()
    assert (decoded, store.missing) == ([], 5)
    store[[1, 1]]
    store[[1]]
    assert decoded == ["1.png"] * 3
    assert store[[]].shape == (0, *SIZE, 3)


@pytest.mark.parametrize("mode", ["pictures", "disk"])
def test_fill_decodes_what_is_missing_and_tells(
    paths: list[Path], mode: StoreMode, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_CHUNK", 2)
    store = store_of(paths, mode)
    store[[3]]
    told: list[tuple[int, int]] = []
    store.fill(lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(decoded) == 5
    store.fill(lambda done, total: told.append((done, total)))
    assert len(told) == 4


def test_disk_is_found_again(paths: list[Path], decoded: list[str]) -> None:
    first = store_of(paths, "disk")
    first.fill()
    again = store_of(paths, "disk")
    assert again.missing == 0
    np.testing.assert_array_equal(again[range(5)], first[range(5)])
    assert len(decoded) == 5


def test_disk_continues_a_build_that_was_stopped(paths: list[Path], decoded: list[str]) -> None:
    whole = paths[2].read_bytes()
    stamp = paths[2].stat().st_mtime_ns
    paths[2].write_bytes(b"\0" * len(whole))
    os.utime(paths[2], ns=(stamp, stamp))
    store_of(paths, "disk")[[0, 1]]
    with pytest.raises(ImageError):
        store_of(paths, "disk").fill()
    paths[2].write_bytes(whole)
    os.utime(paths[2], ns=(stamp, stamp))
    decoded.clear()
    again = store_of(paths, "disk")
    assert again.missing == 3
    again.fill()
    assert sorted(decoded) == ["2.png", "3.png", "4.png"]
    np.testing.assert_array_equal(again[[2]][0], load_picture(paths[2], SIZE))


def test_disk_does_not_mix_data(paths: list[Path], decoded: list[str]) -> None:
    store_of(paths, "disk").fill()
    assert store_of(paths, "disk", (6, 8)).missing == 5
    assert store_of(paths[::-1], "disk").missing == 5
    os.utime(paths[0], ns=(1, 1))
    assert store_of(paths, "disk").missing == 5
    assert len(decoded) == 5


def test_disk_is_shared_between_two_builders(paths: list[Path], decoded: list[str]) -> None:
    one, two = store_of(paths, "disk"), store_of(paths, "disk")
    one[[0, 1, 2]]
    two.fill()
    assert one.missing == 0
    np.testing.assert_array_equal(one[range(5)], two[range(5)])
    assert len(decoded) == 5


def test_two_builders_at_once_divide_the_work(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_CHUNK", 1)
    many = [paths[0].with_name(f"copy{i}.png") for i in range(60)]
    for path in many:
        shutil.copy(paths[0], path)
    decoded: list[Path] = []

    def slow(path: Path, size: tuple[int, int]) -> np.ndarray:
        decoded.append(path)
        time.sleep(0.002)
        return load_picture(path, size)

    monkeypatch.setattr(cache, "load_picture", slow)
    folder = paths[0].parent / "cache"
    stores = [PictureStore(many, SIZE, "disk", folder=folder, workers=1) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(PictureStore.fill, stores))
    assert set(decoded) == set(many)
    assert len(decoded) < 90
    for store in stores:
        assert store.missing == 0
        assert (store[range(60)] == load_picture(paths[0], SIZE)).all()


def test_parts_of_a_set_share_its_file(paths: list[Path], decoded: list[str]) -> None:
    folder = paths[0].parent / "cache"

    def part(*chosen: int, among: list[Path] = paths) -> PictureStore:
        names = [paths[i] for i in chosen]
        return PictureStore(names, SIZE, "disk", folder=folder, among=among)

    first = part(4, 1, 2)
    first.fill()
    second = part(2, 3, 4, among=[*paths[::-1], paths[0]])  # in another order, one twice
    assert (first.missing, second.missing) == (0, 1)
    np.testing.assert_array_equal(second[[0, 1, 2]][[0, 2]], first[[2, 0]])
    second.fill()
    assert sorted(decoded) == ["1.png", "2.png", "3.png", "4.png"]
    expected = np.stack([load_picture(paths[i], SIZE) for i in (2, 3, 4)])
    np.testing.assert_array_equal(second[[0, 1, 2]], expected)
    np.testing.assert_array_equal(second.windows([1], [(2, 1)], (3, 4))[0], expected[1, 2:5, 1:5])
    assert len(list(folder.iterdir())) == 1
    with pytest.raises(ValueError, match=r"paths must be in among, which has no .*4\.png"):
        part(0, 4, among=paths[:4])


def test_an_interrupt_gives_up_what_has_not_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.001)

    def interrupt(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_in_threads(work, range(500), workers=2, progress=interrupt)
    assert len(begun) < 250


def test_threads_share_a_store(paths: list[Path]) -> None:
    store = store_of(paths, "disk")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: store[range(5)], range(16)))
    expected = np.stack([load_picture(path, SIZE) for path in paths])
    assert all((pictures == expected).all() for pictures in found)


@pytest.mark.parametrize("mode", MODES)
def test_an_unreadable_picture_is_named_with_advice(paths: list[Path], mode: StoreMode) -> None:
    paths[1].write_bytes(b"")
    store = store_of(paths, mode)
    advice = r"1\.png: the file is empty\. Remove it, or run 'mambaad check DATA' to list every"
    with pytest.raises(ImageError, match=advice):
        store[[0, 1]]
    assert store[[0]].shape == (1, *SIZE, 3)


def test_missing_pictures_and_unwritable_folders(paths: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        PictureStore([Path("nowhere.png")], SIZE, "disk", folder=paths[0].parent)
    with pytest.raises(DatasetError, match="cannot write the cache of pictures"):
        PictureStore(paths, SIZE, "disk", folder=paths[0] / "sub")


def test_a_full_disk_is_said_before_the_work(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(paths[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * 8 * 6 * 3 - 1))
    with pytest.raises(DatasetError, match="set XDG_CACHE_HOME to a larger disk"):
        store_of(paths, "disk")
    assert list((paths[0].parent / "cache").iterdir()) == []


def test_only_what_is_missing_needs_room(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, each = shutil.disk_usage(paths[0]), 8 * 6 * 3
    store_of(paths, "disk")[[0, 1, 2]]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * each))
    assert store_of(paths, "disk").missing == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * each - 1))
    with pytest.raises(DatasetError, match=r"needs 0\.0 GB in .*cache"):
        store_of(paths, "disk")


def test_a_cache_that_was_deleted_meanwhile(paths: list[Path]) -> None:
    store = store_of(paths, "disk")
    shutil.rmtree(paths[0].parent / "cache")
    with pytest.raises(DatasetError, match="no such file or directory"):
        store.fill()


def test_wrong_arguments(paths: list[Path]) -> None:
    store = store_of(paths, "pictures")
    with pytest.raises(IndexError, match=r"0\.\.4, got 0\.\.5"):
        store[[0, 5]]
    with pytest.raises(IndexError, match=r"got -1\.\.-1"):
        store[[-1]]
    with pytest.raises(ValueError, match=r"shape \(n,\), got \(1, 2\)"):
        store[np.array([[0, 1]])]
    with pytest.raises(ValueError, match="size must be"):
        PictureStore(paths, (0, 8))
    with pytest.raises(ValueError, match="mode must be"):
        PictureStore(paths, SIZE, "features")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_a_store_of_nothing(tmp_path: Path, mode: StoreMode) -> None:
    store = PictureStore([], SIZE, mode, folder=tmp_path)
    store.fill()
    assert store[[]].shape == (0, *SIZE, 3)


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mambaad"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "mambaad"


def test_map_in_threads_keeps_the_order_and_the_first_error() -> None:
    assert map_in_threads(lambda x: x * x, range(2050), workers=4) == [x * x for x in range(2050)]
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda x: 1 // x, [1, 0, 2], workers=2)


def dataset(root: Path) -> Dataset:
    good = Sample(root / "good/a.png", "part", "train")
    bad = Sample(root / "bad/b.png", "part", "test", "bad", root / "masks/b.png")
    for sample in (good, bad):
        for path in filter(None, (sample.image, sample.mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"12345")
    return Dataset(root, "folder", (good, bad))


def test_a_fingerprint_is_of_the_data_not_of_its_place(tmp_path: Path) -> None:
    one, two = dataset(tmp_path / "one"), dataset(tmp_path / "two")
    os.utime(two.samples[0].image, ns=(1, 1))
    assert fingerprint(one) == fingerprint(two)
    assert len(fingerprint(one)) == 64
    outside = Dataset(tmp_path / "on", "folder", one.samples)
    assert fingerprint(outside) != fingerprint(one)


def test_a_fingerprint_changes_with_sizes_names_and_labels(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    good, bad = data.samples
    relabelled = Sample(bad.image, "part", "test", "worse", bad.mask)
    unmasked = Sample(bad.image, "part", "test", "bad")
    prints = {
        fingerprint(Dataset(tmp_path, "folder", samples))
        for samples in [(good, bad), (good,), (good, relabelled), (good, unmasked)]
    }
    bad.image.write_bytes(b"123456")
    prints.add(fingerprint(data))
    assert len(prints) == 5
    good.image.unlink()
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        fingerprint(data)
