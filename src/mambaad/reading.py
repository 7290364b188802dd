"""Reading pictures ahead of a network that scores them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mambaad.data import load_picture, picture_from_array, picture_from_image, resize_picture
from mambaad.data.cache import worker_count
from mambaad.errors import ImageError
from mambaad.pipeline import ahead

_Source = TypeVar("_Source")
_Result = TypeVar("_Result")

HELD_BYTES = 256 * 2**20
"""About how much of pictures at their own size is read ahead, and about how much is in a batch."""


@dataclass(frozen=True)
class Read:
    """A picture that is ready for the network."""

    path: Path | None
    """Its file; None for a picture in memory."""

    size: tuple[int, int]
    """Its own height and width."""

    prepared: NDArray[np.uint8]
    """(H, W, 3) at the network's size."""

    picture: NDArray[np.uint8] | None
    """At its own size, if it is still needed."""

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self.prepared.nbytes + (0 if self.picture is None else self.picture.nbytes)


class Reader:
    """Reads and resizes pictures, in several threads at once, and notes how large they are."""

    def __init__(self, size: tuple[int, int], *, keep: bool) -> None:
        """Args: size (height, width) for the network; keep: whether they are needed as they are."""
        self._size = size
        self._keep = keep
        self._largest = 0

    def __call__(self, source: Path | str | NDArray[Any] | Image.Image) -> Read:
        """Raises ImageError if a file cannot be read, ValueError if an array is no picture."""
        path = Path(source) if isinstance(source, (str, Path)) else None
        picture = _picture(source)
        self._largest = max(self._largest, picture.nbytes)
        return Read(
            path=path,
            size=(picture.shape[0], picture.shape[1]),
            prepared=resize_picture(picture, self._size),
            picture=picture if self._keep else None,
        )

    def or_error(self, path: Path) -> Read | ImageError:
        """The same for a file; an error is given back."""
        try:
            return self(path)
        except ImageError as error:
            return error

    def ahead(
        self, read: Callable[[_Source], _Result], sources: Iterable[_Source], batch_size: int
    ) -> Generator[_Result, None, None]:
        """Read in threads, two batches ahead (at least a picture a thread), fewer of large ones."""
        workers = worker_count()

        def limit() -> int:
            if not self._largest:  # the first ones may be of any size
                return workers
            return max(2, min(max(2 * batch_size, workers + 1), HELD_BYTES // self._largest))

        return ahead(read, sources, workers=workers, limit=limit)


def _picture(source: Path | str | NDArray[Any] | Image.Image) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return picture_from_array(source)
    if isinstance(source, Image.Image):
        return picture_from_image(source)
    if not isinstance(source, (str, Path)):
        raise TypeError(
            "a picture must be a file's path, a NumPy array or a PIL picture, several a list of "
            f"these; got {type(source).__name__}"
        )
    try:
        return load_picture(Path(source))
    except ImageError as error:
        if Path(source).is_dir():
            raise ImageError(
                f"cannot read {source}: it is a folder; its pictures are scored by "
                "mambaad.predict.predict_files, or by the command mambaad predict"
            ) from error
        raise


def groups(items: Iterable[Read | ImageError], most: int) -> Iterator[list[Read | ImageError]]:
    """Batches of at most ``most`` pictures, fewer of large ones, with the errors between them."""
    group: list[Read | ImageError] = []
    count = held = 0
    for item in items:
        group.append(item)
        if isinstance(item, Read):
            count, held = count + 1, held + item.held
        if count == most or held > HELD_BYTES:
            yield group
            group, count, held = [], 0, 0
    if group:
        yield group
