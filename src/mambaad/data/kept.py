"""Where decoded pictures are kept: in memory, or in a file that processes and runs share.

The file is named by a hash of every picture's absolute path, size and modification time and of the
target size, so other data never meets an old file. It is one validity byte per picture, filled up
to whole pages, then the pictures::

    v_0 v_1 ... v_{n-1} 0 ... 0 | picture 0 | picture 1 | ...

A picture's byte is set only after the picture has reached the disk, so a build that was stopped at
any point is continued. Two processes may build the same file: they write the same bytes to the
same places, and each sees what the other has finished. Room is taken picture by picture (the file
is sparse). Reading is by memory map; writing is not, since a full disk would end the process there
instead of raising.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambaad.errors import DatasetError, ImageError

_FORMAT = 1  # part of the file's name: raise it when decoding or the file's form changes
_PAGE = 4096


class InMemory:
    """Pictures in an array of this process."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Make room for pictures, uint8 of ``shape``, (n, H, W, 3)."""
        self._pictures: NDArray[np.uint8] = np.empty(shape, np.uint8)
        self._valid: NDArray[np.uint8] = np.zeros(shape[0], np.uint8)

    def absent(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of the indices whose pictures are not kept yet."""
        absent: NDArray[np.intp] = indices[self._valid[indices] == 0]
        return absent

    def take(self, indices: NDArray[np.intp]) -> NDArray[np.uint8]:
        """A copy of pictures that are kept, (n, H, W, 3)."""
        # quicker than indexing, which does not copy a picture in one piece
        return np.take(self._pictures, indices, axis=0)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """One picture that is kept, (H, W, 3), not copied."""
        picture: NDArray[np.uint8] = self._pictures[index]
        return picture

    def put(self, index: int, picture: NDArray[np.uint8]) -> None:
        """Write a picture; it counts as kept after ``commit``."""
        self._pictures[index] = picture

    def commit(self, indices: list[int]) -> None:
        """Pictures that have been put are kept from now on."""
        self._valid[indices] = 1


class OnDisk:
    """Some of a file's pictures, by an index of their own. Several threads may use it at once."""

    def __init__(self, path: Path, shape: tuple[int, ...], rows: NDArray[np.intp]) -> None:
        """Open the file, or make it.

        Args:
            path: The file.
            shape: Of all its pictures, (N, H, W, 3).
            rows: Where in the file each picture is, (n,), in 0..N-1.

        Raises:
            DatasetError: If the file cannot be made, or what is absent has no room.
        """
        self._path, self._rows = path, rows
        self._bytes_each = int(np.prod(shape[1:]))
        self._header = -(-shape[0] // _PAGE) * _PAGE
        total = self._header + shape[0] * self._bytes_each
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # said before an empty file is left behind
                self._check_space(len(rows))
            # growing to a length that follows from the name loses nothing when two do it at once
            with path.open("ab") as file:
                if file.tell() < total:
                    file.truncate(total)
        except OSError as error:
            raise _disk_error(path, error) from error
        self._valid: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._pictures: NDArray[np.uint8] = np.zeros((0, *shape[1:]), np.uint8)
        if shape[0]:
            self._valid = np.asarray(np.memmap(path, mode="r", shape=shape[:1]))
            self._pictures = np.asarray(
                np.memmap(path, np.uint8, mode="r", offset=self._header, shape=shape)
            )
        self._check_space(len(self.absent(np.arange(len(rows)))))

    def absent(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of the indices whose pictures no process has kept yet."""
        absent: NDArray[np.intp] = indices[self._valid[self._rows[indices]] == 0]
        return absent

    def take(self, indices: NDArray[np.intp]) -> NDArray[np.uint8]:
        """A copy of pictures that are kept, (n, H, W, 3)."""
        return np.take(self._pictures, self._rows[indices], axis=0)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """One picture that is kept, (H, W, 3), read only, not copied."""
        picture: NDArray[np.uint8] = self._pictures[self._rows[index]]
        return picture

    def put(self, index: int, picture: NDArray[np.uint8]) -> None:
        """Write a picture; it counts as kept after ``commit``.

        Raises:
            DatasetError: If the disk is full, or the file was deleted.
        """
        try:
            with self._path.open("r+b") as file:
                file.seek(self._header + int(self._rows[index]) * self._bytes_each)
                file.write(picture.tobytes())
        except OSError as error:
            raise _disk_error(self._path, error) from error

    def commit(self, indices: list[int]) -> None:
        """Wait until pictures that have been put are on the disk; then they are kept.

        Raises:
            DatasetError: If the disk is full, or the file was deleted.
        """
        try:
            with self._path.open("r+b") as file:
                os.fsync(file.fileno())
                for row in self._rows[indices].tolist():
                    file.seek(row)
                    file.write(b"\1")
        except OSError as error:
            raise _disk_error(self._path, error) from error

    def _check_space(self, pictures: int) -> None:
        needed = pictures * self._bytes_each
        folder = self._path.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DatasetError(
                f"the cache of pictures needs {needed / 1e9:.1f} GB in {folder}, where "
                f"{free / 1e9:.1f} GB are free; set XDG_CACHE_HOME to a larger disk, or "
                "cache = 'none'"
            )


def file_name(paths: Sequence[Path], size: tuple[int, int]) -> str:
    """The name of the file for pictures, resized to ``size`` (height, width).

    It looks at every picture's file, once.

    Raises:
        ImageError: If a picture does not exist.
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, *size]).encode())
    for path in paths:
        found = look_at(path)
        row = [str(path.absolute()), found.st_size, found.st_mtime_ns]
        digest.update(json.dumps(row).encode() + b"\n")
    return f"pictures-{digest.hexdigest()[:32]}.bin"


def look_at(path: Path) -> os.stat_result:
    """Size and times of a picture's file.

    Raises:
        ImageError: If there is none.
    """
    try:
        return path.stat()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error


def _disk_error(path: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"cannot write the cache of pictures {path}: {(error.strerror or str(error)).lower()}; "
        "set XDG_CACHE_HOME to another disk, or cache = 'none'"
    )
