from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from mambaad.config import Cache
from mambaad.data import memory
from mambaad.data.memory import (
    ResolvedCache,
    available_memory,
    choose_cache,
    choose_place,
    open_pictures,
)
from mambaad.errors import DatasetError, ImageError


@pytest.mark.parametrize(
    ("pictures", "features", "expected"),
    [
        (10, 25, "features"),
        (10, 26, "pictures"),
        (50, 26, "pictures"),
        (51, 26, "disk"),
        (51, 25, "features"),
    ],
)
def test_auto_takes_the_first_that_fits(pictures: int, features: int, expected: str) -> None:
    assert choose_cache("auto", pictures, features, 100) == expected


@pytest.mark.parametrize("requested", ["features", "pictures", "disk", "none"])
def test_a_request_is_taken_as_it_is(requested: Cache) -> None:
    assert choose_cache(requested, 10**12, 10**12, 1) == requested


@pytest.mark.parametrize(
    ("requested", "pictures", "features", "expected"),
    [
        ("auto", 10, 400, ("features", True)),
        ("auto", 400, 401, ("pictures", True)),
        ("auto", 401, 401, ("disk", False)),
        ("auto", 401, 9000, ("disk", False)),
        ("features", 10, 400, ("features", True)),
        ("features", 10, 401, ("features", False)),
        ("pictures", 400, 10, ("pictures", True)),
        ("pictures", 401, 10, ("pictures", False)),
        ("disk", 10, 10, ("disk", False)),
        ("none", 10, 10, ("none", False)),
    ],
)
def test_a_gpu_keeps_what_fits(
    requested: Cache, pictures: int, features: int, expected: tuple[str, bool]
) -> None:
    assert choose_place(requested, pictures, features, 100, 1000) == expected


def test_where_the_host_computes_the_host_keeps() -> None:
    assert choose_place("auto", 10, 25, 100, None) == ("features", False)
    assert choose_place("pictures", 10, 10, 100, None) == ("pictures", False)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two pictures' files of 100 bytes, with a cache folder of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    found = [tmp_path / name for name in ("a.png", "b.png")]
    for path in found:
        path.write_bytes(bytes(100))
    return found


def cache_files(paths: list[Path]) -> list[Path]:
    return list((paths[0].parent / "home").rglob("*.bin"))


@pytest.mark.parametrize(
    ("requested", "cache", "limit", "files"),
    [
        ("auto", "pictures", 200, 1),
        ("auto", "pictures", 201, 0),
        ("auto", "features", 200, 1),
        ("auto", "disk", 201, 1),
        ("pictures", "pictures", 200, 0),
        ("none", "none", 200, 0),
        ("disk", "disk", 201, 1),
    ],
)
def test_auto_keeps_large_sets_for_later_runs(
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    requested: Cache,
    cache: ResolvedCache,
    limit: int,
    files: int,
) -> None:
    monkeypatch.setattr(memory, "DISK_FROM", limit)
    store = open_pictures(paths[:1] * 2, (4, 4), requested, (cache, False), 10**9, among=paths)
    assert len(store) == store.missing == 2
    assert len(cache_files(paths)) == files


def test_what_is_on_a_gpu_is_kept_by_the_host_too_if_it_fits(paths: list[Path]) -> None:
    Image.new("RGB", (4, 4)).save(paths[0])
    for free, missing in ((2 * 48, 0), (2 * 48 - 1, 1)):
        store = open_pictures(paths[:1], (4, 4), "auto", ("pictures", True), free)
        store.fill()
        assert store.missing == missing
    assert cache_files(paths) == []


def test_auto_does_without_a_disk_that_is_full(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(paths[0])
    monkeypatch.setattr(memory, "DISK_FROM", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    open_pictures(paths, (4, 4), "auto", ("pictures", False), 10**9)
    with pytest.raises(DatasetError, match="larger disk"):
        open_pictures(paths, (4, 4), "disk", ("disk", False), 10**9)
    with pytest.raises(DatasetError, match="larger disk"):
        open_pictures(paths, (4, 4), "auto", ("disk", False), 10**9)
    assert cache_files(paths) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    paths[1].unlink()
    with pytest.raises(ImageError, match=r"b\.png: no such file"):
        open_pictures(paths, (4, 4), "auto", ("pictures", False), 10**9)


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal:  9000 kB\nMemFree:  1 kB\nMemAvailable:    5000 kB\n"


def test_meminfo(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO)
    assert available_memory(tmp_path) == 5000 * 1024


def test_cgroup_2_limit_of_any_parent_counts_without_droppable_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/pod/box\n",
        sys__fs__cgroup__pod__box__memory_dot_max="max\n",
        sys__fs__cgroup__pod__box__memory_dot_current="700000\n",
        sys__fs__cgroup__pod__memory_dot_max="1000000\n",
        sys__fs__cgroup__pod__memory_dot_current="800000\n",
        sys__fs__cgroup__pod__memory_dot_stat="anon 1\ninactive_file 300000\n",
    )
    assert available_memory(tmp_path) == 1_000_000 - 800_000 + 300_000


def test_cgroup_1_limit_counts_only_when_it_is_lower(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="8:cpu:/x\n4:memory:/x\n0::/\n",
        sys__fs__cgroup__memory__x__memory_dot_limit_in_bytes="2000000\n",
        sys__fs__cgroup__memory__x__memory_dot_usage_in_bytes="1900000\n",
        sys__fs__cgroup__memory__x__memory_dot_stat="total_inactive_file 50000\n",
    )
    assert available_memory(tmp_path) == 150_000
    write(tmp_path, sys__fs__cgroup__memory__x__memory_dot_limit_in_bytes="9223372036854771712\n")
    assert available_memory(tmp_path) == 5000 * 1024


def test_an_exhausted_limit_leaves_nothing(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/\n",
        sys__fs__cgroup__memory_dot_max="100\n",
        sys__fs__cgroup__memory_dot_current="200\n",
    )
    assert available_memory(tmp_path) == 0


def test_without_proc_the_system_is_asked(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > 2**20


def test_this_machine_has_some() -> None:
    assert 2**20 < available_memory() < 2**50
