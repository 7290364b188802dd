"""Where prepared pictures are kept between epochs.

A ``PictureStore`` decodes and resizes each picture once. It holds H·W·3 bytes per picture, 196 608
at 256 x 256: in memory (``pictures``), in a file (``disk``), or not at all (``none``).

The file is named by a hash of every picture's absolute path, size and modification time and of the
target size, so other data never meets an old file. It is one validity byte per picture, filled up
to whole pages, then the pictures::

    v_0 v_1 ... v_{n-1} 0 ... 0 | picture 0 | picture 1 | ...

A picture's byte is set only after the picture has reached the disk, so a build that was stopped at
any point is continued. Two processes may build the same file: they write the same bytes to the
same places, and each sees what the other has finished. Reading is by memory map; writing is not,
since a full disk would end the process there instead of raising.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mambaad.data.images import load_picture
from mambaad.data.samples import Dataset
from mambaad.errors import DatasetError, ImageError

StoreMode = Literal["pictures", "disk", "none"]
Progress = Callable[[int, int], None]
"""Called with the number done so far and the number in all."""

_FORMAT = 1  # part of the file's name: raise it when decoding or the file's form changes
_PAGE = 4096
_CHUNK = 64  # pictures between two waits for the disk
_PORTION = 1024  # items handed to the threads at once

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class PictureStore:
    """Pictures as uint8 arrays by index, each decoded at most once.

    Reading from several threads at once is safe.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        mode: StoreMode = "pictures",
        *,
        folder: Path | None = None,
        workers: int | None = None,
    ) -> None:
        """Make an empty store, or open what is left on disk of an earlier one.

        Args:
            paths: The pictures' files.
            size: Height and width that every picture is resized to.
            mode: Where decoded pictures are kept.
            folder: Where ``disk`` puts its file; None: :func:`cache_folder`.
            workers: Threads that decode; None: one per processor.

        Raises:
            ImageError: If ``disk`` and a picture does not exist.
            DatasetError: If the file on disk cannot be made.
            ValueError: If ``size`` is not two positive numbers.
        """
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (height, width), both positive, got {size}")
        self.paths = tuple(paths)
        self.size = size
        self.workers = workers or worker_count()
        shape = (len(self.paths), *size, 3)
        self._kept: _InMemory | _OnDisk | None = None
        if mode == "pictures":
            self._kept = _InMemory(shape)
        elif mode == "disk":
            name = f"pictures-{_key(self.paths, size)[:32]}.bin"
            self._kept = _OnDisk((folder or cache_folder()) / name, shape)
        elif mode != "none":
            raise ValueError(f"mode must be 'pictures', 'disk' or 'none', got {mode!r}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def missing(self) -> int:
        """How many pictures have not been decoded yet; all of them, always, for ``none``."""
        return len(self) if self._kept is None else int(np.count_nonzero(self._kept.valid == 0))

    def fill(self, progress: Progress | None = None) -> None:
        """Decode every picture that is missing. Does nothing for ``none``.

        Args:
            progress: Called in this thread after each picture.

        Raises:
            ImageError: At the first picture that cannot be read.
            DatasetError: If the disk is full.
        """
        if self._kept is not None:
            self._keep(self._kept, np.flatnonzero(self._kept.valid == 0).tolist(), progress)

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Pictures by index, in the order asked for.

        Args:
            indices: (n,), whole numbers in 0..len-1; may repeat.

        Returns:
            uint8, (n, H, W, 3), the caller's own.

        Raises:
            ImageError: If a picture cannot be read.
            DatasetError: If the disk is full.
            IndexError: If there is no such picture.
        """
        wanted = np.asarray(indices, dtype=np.intp)
        if wanted.ndim != 1:
            raise ValueError(f"indices must have shape (n,), got {wanted.shape}")
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(
                f"indices must lie in 0..{len(self) - 1}, got {wanted.min()}..{wanted.max()}"
            )
        if self._kept is None:
            pictures = map_in_threads(self._load, wanted.tolist(), workers=self.workers)
            return np.stack(pictures) if pictures else np.empty((0, *self.size, 3), np.uint8)
        absent = np.unique(wanted[self._kept.valid[wanted] == 0])
        self._keep(self._kept, absent.tolist())
        return self._kept.pictures[wanted]

    def _keep(
        self, kept: _InMemory | _OnDisk, indices: list[int], progress: Progress | None = None
    ) -> None:
        for start in range(0, len(indices), _CHUNK):
            chunk = indices[start : start + _CHUNK]

            def report(done: int, _: int, start: int = start) -> None:
                if progress is not None:
                    progress(start + done, len(indices))

            map_in_threads(
                lambda i: kept.put(i, self._load(i)), chunk, workers=self.workers, progress=report
            )
            kept.commit(chunk)

    def _load(self, index: int) -> NDArray[np.uint8]:
        try:
            return load_picture(self.paths[index], self.size)
        except ImageError as error:
            raise ImageError(
                f"{error}. Remove it, or run 'mambaad check DATA' to list every such file"
            ) from error


class _InMemory:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.pictures: NDArray[np.uint8] = np.empty(shape, np.uint8)
        self.valid: NDArray[np.uint8] = np.zeros(shape[0], np.uint8)

    def put(self, index: int, picture: NDArray[np.uint8]) -> None:
        self.pictures[index] = picture

    def commit(self, indices: list[int]) -> None:
        self.valid[indices] = 1


class _OnDisk:
    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path = path
        self._bytes_each = int(np.prod(shape[1:]))
        self._header = -(-shape[0] // _PAGE) * _PAGE
        total = self._header + shape[0] * self._bytes_each
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # growing to a length that follows from the name loses nothing when two do it at once
            with path.open("ab") as file:
                if file.tell() < total:
                    _check_space(path.parent, total)
                    file.truncate(total)
        except OSError as error:
            raise _disk_error(path, error) from error
        self.valid: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.pictures: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        if shape[0]:
            self.valid = np.asarray(np.memmap(path, mode="r", shape=shape[:1]))
            self.pictures = np.asarray(
                np.memmap(path, np.uint8, mode="r", offset=self._header, shape=shape)
            )

    def put(self, index: int, picture: NDArray[np.uint8]) -> None:
        try:
            with self._path.open("r+b") as file:
                file.seek(self._header + index * self._bytes_each)
                file.write(picture.tobytes())
        except OSError as error:
            raise _disk_error(self._path, error) from error

    def commit(self, indices: list[int]) -> None:
        try:
            with self._path.open("r+b") as file:
                os.fsync(file.fileno())
                for index in indices:
                    file.seek(index)
                    file.write(b"\1")
        except OSError as error:
            raise _disk_error(self._path, error) from error


def cache_folder() -> Path:
    """``mambaad`` in the user's cache folder: ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mambaad"


def fingerprint(dataset: Dataset) -> str:
    """A name for the data: changes when a file is added, removed, renamed, relabelled or resized.

    Returns:
        SHA-256 in hexadecimal over each sample's path inside the root, file size, category, split
        and defect, and its mask's path and file size. Modification times and the place of the
        root do not enter, nor do the pixels: equal sizes under equal names pass for equal.

    Raises:
        ImageError: If a file has disappeared.
    """
    digest = hashlib.sha256()
    for sample in dataset:
        files = [
            None if path is None else (_inside(path, dataset.root), _stat(path).st_size)
            for path in (sample.image, sample.mask)
        ]
        row = [*files, sample.category, sample.split, sample.defect]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def worker_count() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    workers: int,
    progress: Progress | None = None,
) -> list[_Result]:
    """``[function(item) for item in items]`` on several threads.

    The threads live for one call only, so the caller may fork. The first exception, in the order
    of the items, is raised and the items not yet begun are given up.
    """
    if not items:
        return []
    results: list[_Result] = []
    with ThreadPoolExecutor(min(workers, len(items)), "mambaad-data") as pool:
        # in portions: a set may have 150 000 pictures, and each item waiting takes a kilobyte
        for start in range(0, len(items), _PORTION):
            for result in pool.map(function, items[start : start + _PORTION]):
                results.append(result)
                if progress is not None:
                    progress(len(results), len(items))
    return results


def _key(paths: Sequence[Path], size: tuple[int, int]) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, *size]).encode())
    for path in paths:
        found = _stat(path)
        row = [str(path.absolute()), found.st_size, found.st_mtime_ns]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error


def _inside(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DatasetError(
            f"the cache of pictures needs {needed / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free; set XDG_CACHE_HOME to a larger disk, or cache = 'none'"
        )


def _disk_error(path: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"cannot write the cache of pictures {path}: {(error.strerror or str(error)).lower()}; "
        "set XDG_CACHE_HOME to another disk, or cache = 'none'"
    )
