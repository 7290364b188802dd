"""Where a tiling comes from, what is saved, and that files which are not ours do no harm."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import forget_tilings
from hypothesis import given
from hypothesis import strategies as st

from mambaad.errors import ConfigError
from mambaad.scan import tuning
from mambaad.scan.tuning import H200, SHIPPED, GpuClass, Size, Tiling, find, rule, save

STAGES = ((64, 1024), (256, 512), (1024, 256), (4096, 128))
SIZE = Size(16, 8, 4096, 128)
OTHER = Tiling(32, 2, 2, 4, 2)
SMALL = GpuClass(8, 9, 24)


@given(
    st.builds(
        Size, st.integers(1, 256), st.integers(1, 16), st.integers(1, 70_000), st.integers(1, 2048)
    ),
    st.integers(1, 300),
)
def test_every_size_can_be_cut_up(size: Size, multiprocessors: int) -> None:
    assert rule(size, multiprocessors).fits(size.length)


def test_the_rule_on_an_h200() -> None:
    """Batch 16: the longest paths, of the fewest channels, are cut into segments."""
    cut = {batch: [rule(Size(batch, 8, *s), 132) for s in STAGES] for batch in (1, 16, 64)}
    assert [t.segments for t in cut[1]] == [1, 8, 16, 32]
    assert [t.segments for t in cut[16]] == [1, 1, 1, 4]
    assert [t.segments for t in cut[64]] == [1, 1, 1, 1]
    assert cut[16][3] == Tiling(64, 4, 2, 4)


def test_the_rule_follows_the_number_of_multiprocessors() -> None:
    size = Size(1, 8, 4096, 128)  # 32 warps
    found = {n: rule(size, n).segments for n in (1, 14, 28, 58, 108, 132, 148)}
    assert found == {1: 1, 14: 8, 28: 8, 58: 16, 108: 32, 132: 32, 148: 32}


def test_what_is_shipped_fits_and_is_found(gpus: list[GpuClass]) -> None:
    assert set(SHIPPED[H200]) == {Size(b, 8, *stage) for b in (1, 16, 64) for stage in STAGES}
    for size, tiling in SHIPPED[H200].items():
        assert tiling.fits(size.length)
        assert find(size) == (tiling, "shipped")
    assert find(Size(2, 8, 64, 1024)) == (rule(Size(2, 8, 64, 1024), 132), "rule")
    forget_tilings()
    gpus[:] = [SMALL]
    assert find(SIZE) == (rule(SIZE, 24), "rule")
    assert find(SIZE).tiling != SHIPPED[H200][SIZE]


def test_what_is_saved_is_found_by_the_next_process(gpus: list[GpuClass], tmp_path: Path) -> None:
    before = find(SIZE)
    file = save({SIZE: OTHER}, {SIZE: {"ms": 1.5}})
    assert file == tmp_path / "mambaad" / "scan.json"
    assert find(SIZE) == before  # and by this one not: both passes of a step must agree
    forget_tilings()
    assert find(SIZE) == (OTHER, "saved")
    save({Size(1, 1, 64, 32): Tiling(16, 4, 2, 1)}, {})
    forget_tilings()
    assert find(SIZE).tiling == OTHER  # others are kept
    (rows,) = json.loads(file.read_text()).values()
    assert rows["16x8x4096x128"] == {
        "tiling": dataclasses.asdict(OTHER),
        "ms": 1.5,
    }
    assert [p.name for p in file.parent.iterdir()] == ["scan.json"]
    gpus[:] = [SMALL]
    forget_tilings()
    assert find(SIZE).source == "rule"


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("where", "what", "other"),
    [
        (tuning.torch, "__version__", "9.9"),
        (tuning.metadata, "version", lambda _: "9.9"),
        (tuning, "kernel_hash", lambda: "0" * 12),
    ],
    ids=["torch", "triton", "kernels"],
)
def test_other_versions_find_nothing(
    where: Any, what: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({SIZE: OTHER}, {})
    monkeypatch.setattr(where, what, other)
    assert find(SIZE).source == "shipped"


def test_the_hash_is_of_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {file.name for file in Path(tuning.__file__).parent.glob("cuda*.py")}
    assert {"cuda.py", "cuda_forward.py", "cuda_backward.py", "cuda_common.py"} <= names
    monkeypatch.setattr(tuning, "__file__", str(tmp_path / "tuning.py"))
    found = set()
    for text in ("a", "b"):
        (tmp_path / "cuda_forward.py").write_text(text)
        tuning.kernel_hash.cache_clear()
        found.add(tuning.kernel_hash())
    tuning.kernel_hash.cache_clear()
    assert len(found) == 2


def test_different_gpus_take_the_rule_for_the_smallest(gpus: list[GpuClass]) -> None:
    save({SIZE: OTHER}, {})
    gpus.append(SMALL)
    forget_tilings()
    assert tuning.gpu_class() is None
    assert find(SIZE) == (rule(SIZE, 24), "rule")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    "row",
    [
        {"tiling": {"chunk": 48, "unroll": 4, "inner": 2, "segments": 1}},
        {"tiling": {"chunk": 16, "unroll": 32, "inner": 2, "segments": 1}},
        {"tiling": {"chunk": 16, "unroll": 4, "inner": 2, "segments": 1000}},
        {"tiling": {"chunk": 16, "unroll": 4, "inner": 2, "segments": 0}},
        {"tiling": {"chunk": 16, "unroll": 4, "inner": 2, "segments": 1, "warps": 32}},
        {"tiling": {"chunk": 16.0, "unroll": 4, "inner": 2, "segments": 1}},
        {"tiling": {"chunk": 16}},
        {},
        None,
    ],
    ids=str,
)
def test_rows_that_do_not_fit_are_left_out(row: object, caplog: pytest.LogCaptureFixture) -> None:
    file = save({SIZE: OTHER, Size(2, 8, 64, 32): Tiling(16, 2, 2, 1)}, {})
    content = json.loads(file.read_text())
    content[tuning.environment()][str(SIZE)] = row
    file.write_text(json.dumps(content))
    forget_tilings()
    assert find(SIZE) == (SHIPPED[H200][SIZE], "shipped")
    assert find(Size(2, 8, 64, 32)).source == "saved"
    (record,) = caplog.records
    assert "no valid tiling for ['16x8x4096x128']; run mambaad tune" in record.getMessage()


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("text", ["{", "[]", '{"x": 1}', "\udcff"])
def test_files_that_are_not_ours_are_left_out(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mambaad" / "scan.json"
    file.parent.mkdir()
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert find(SIZE).source == "shipped"
    assert len(caplog.records) == 1
    assert str(file) in caplog.text


@pytest.mark.usefixtures("gpus")
def test_only_what_fits_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must fit their size, got 64/4/2 2x1 for 1x1x64x32"):
        save({Size(1, 1, 64, 32): Tiling(64, 4, 2, 2)}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("gpus")
def test_forced_ends_with_its_block() -> None:
    with tuning.forced(OTHER):
        assert tuning.current(SIZE) == OTHER
    assert tuning.current(SIZE) == SHIPPED[H200][SIZE]


def test_names() -> None:
    assert (str(H200), str(SIZE), str(OTHER)) == ("sm90x132", "16x8x4096x128", "32/2/2 4x2")
    assert str(Tiling(16, 4, 2, 1, 1, 12)) == "16/4/2 1x1 12 warps"


def test_short_states_are_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, gpus: list[GpuClass]
) -> None:
    """And then have shorter chunks, longer ones where there are four times as many states."""
    before = tuning.environment()
    monkeypatch.setenv(tuning.STATES_VARIABLE, "bfloat16")
    tuning.short_states.cache_clear()
    try:
        sizes = [Size(64, 8, *rest) for rest in ((64, 1024), (1024, 256), (4096, 128))]
        assert [rule(size, H200.multiprocessors).chunk for size in sizes] == [16, 16, 32]
        assert tuning.environment() == f"{before}, bfloat16 states"
        assert gpus == [H200]
        forget_tilings()
        assert find(SIZE) == (tuning.SHIPPED_SHORT[H200][SIZE], "shipped")
        monkeypatch.setenv(tuning.STATES_VARIABLE, "short")
        tuning.short_states.cache_clear()
        with pytest.raises(ConfigError, match=r"must be float32 or bfloat16, got 'short'$"):
            tuning.short_states()
    finally:
        tuning.short_states.cache_clear()
        forget_tilings()
