"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from mambaad.errors import ConfigError
from mambaad.files import alone_in, check_writable, replacing, write_json, write_text


def test_replacing_puts_the_new_file_in_place(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x.txt"
    write_text(target, "one")
    write_text(target, "zwölf")
    assert target.read_text("utf-8") == "zwölf"
    assert [p.name for p in target.parent.iterdir()] == ["x.txt"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    write_text(target, "old")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_the_longest_names_are_written(tmp_path: Path) -> None:
    names = ["a" * 251 + ".txt", "a" * 250 + "b.txt", "ü" * 125 + ".txt"]
    for name in names:
        write_text(tmp_path / name, name)
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {
        name: name for name in names
    }


def test_two_files_at_once_do_not_meet(tmp_path: Path) -> None:
    names = [f"{'a' * 99}{number}.txt" for number in range(2)]
    with replacing(tmp_path / names[0]) as one, replacing(tmp_path / names[1]) as two:
        one.write_text("0", encoding="utf-8")
        two.write_text("1", encoding="utf-8")
    assert [(tmp_path / name).read_text("utf-8") for name in names] == ["0", "1"]


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with replacing(tmp_path / "x.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.name != "x.png"
        temporary.write_bytes(b"")


def test_of_a_name_what_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", os.fsdecode(b"Gr\xf6\xdfe.jpg"))
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == r"Gr\udcf6\udcdfe.jpg"


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("deep", ["x.txt", "more/x.txt"])
def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path, deep: str) -> None:
    file = tmp_path / "out"
    file.write_text("kept")
    with pytest.raises(ConfigError) as caught:
        write_text(file / deep, "new")
    assert str(caught.value).startswith(f"{file} is a file; the results need a folder")
    assert file.read_text() == "kept"


def test_a_folder_that_cannot_be_written_is_said_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file; the results need a folder"):
        check_writable(tmp_path / "file" / "b")
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write all
    with pytest.raises(ConfigError, match=r"nothing can be written to .*; name another place"):
        check_writable(tmp_path / "a" / "b")


def test_only_one_is_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with alone_in(folder):
        with (
            pytest.raises(ConfigError, match="another process is training in"),
            alone_in(folder),
        ):
            pytest.fail("two are in it")
        (folder / "x.txt").write_text("kept", encoding="utf-8")
    with alone_in(folder):  # it is free again, and what lies there stays
        assert [p.name for p in folder.iterdir()] == ["x.txt"]


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone_in(tmp_path), alone_in(tmp_path):
        assert tmp_path.is_dir()
