"""What is said to be missing for Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mambaad import triton_support
from mambaad.triton_support import missing_for_triton


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton_support, "find_spec", lambda _: object())
    monkeypatch.setattr(triton_support, "_version", lambda: "3.10.1+git")
    monkeypatch.setattr(triton_support.shutil, "which", lambda _: "/usr/bin/cc")
    missing_for_triton.cache_clear()
    yield
    missing_for_triton.cache_clear()


def test_all_there() -> None:
    assert missing_for_triton() is None


@pytest.mark.parametrize(("version", "old"), [("3.3.1", True), ("2.9.0", True), ("3.4.0", False)])
def test_an_old_triton_whose_compiler_fails(
    version: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_support, "_version", lambda: version)
    expected = f"it needs Triton 3.4 or newer, got {version} (torch 2.8 comes with 3.4)"
    assert missing_for_triton() == (expected if old else None)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "find_spec", lambda _: None)
    assert missing_for_triton() == "Triton is not installed (pip install triton)"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support.shutil, "which", lambda _: None)
    assert "needs a C compiler" in str(missing_for_triton())
