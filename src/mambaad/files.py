"""Writing files so that a reader never sees half of one: a temporary name, then a rename."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mambaad.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no such locks; there nobody is kept out
    fcntl = None  # type: ignore[assignment]


_numbers = itertools.count()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; if the block ends well, it takes its place.

    The file keeps its suffix, so that libraries that look at it write the right format. If the
    block raises, the temporary file is removed and ``path`` stays as it was.

    Raises:
        ConfigError: If a file is where the folder of ``path`` should be.
    """
    make_folder(path.parent)
    # of long names only the start: a system's names end at some 255 bytes
    temporary = path.with_name(f".{path.stem[:32]}.{os.getpid()}-{next(_numbers)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, where they are not there yet.

    Raises:
        ConfigError: If one of them is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        check_writable(folder)  # says which of them it is
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder; it is made, and removed if left empty.

    The system takes the lock back when a process ends, however it ends.

    Raises:
        ConfigError: If another process is in it.
    """
    is_new = not folder.exists()
    make_folder(folder)
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            _lock(handle, folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"another process is training in {folder}: wait for it, or name another folder"
        ) from error
    except OSError:  # a file system without locks
        return


def check_writable(folder: Path) -> None:
    """Whether a folder can be written to or made, before any work is done for it.

    Raises:
        ConfigError: If not.
    """
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    if not place.is_dir():
        raise ConfigError(f"{place} is a file; the results need a folder: name another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"nothing can be written to {place}; name another place with --out")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, all or nothing; of file names what is not UTF-8 is escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file, all or nothing. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
