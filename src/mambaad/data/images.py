"""Pictures and masks: decoding, conversion to 8-bit RGB, resizing.

What the published pipeline does (MambaAD's configuration, through torchvision on PIL pictures):
convert to RGB, resize with PIL's antialiased bilinear filter, scale to 0..1, normalise with
ImageNet's mean and standard deviation. Scaling and normalising are left to the model's side, so a
picture is uint8 here. Three things are decided on top of that, for pictures that the benchmarks do
not have:

* The EXIF orientation is applied: a mask is drawn on the picture as it is displayed.
* 16 bits become 8 by their full range (65535 becomes 255): the upper byte is kept, grey or colour.
* Floating-point pictures are taken only when they lie in 0..1, because their range is not written
  in the file.

Alpha is dropped, not blended. Of a file with several pictures the first is read. Every function
may be called from several threads at once; PIL decodes and resizes without the interpreter's lock.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mambaad.errors import ImageError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings, in lower case, of the files that are taken for pictures."""

OTHER_SUFFIXES = frozenset(
    {".gif", ".ppm", ".pgm", ".pbm", ".heic", ".avif", ".jp2", ".dcm", ".exr", ".raw", ".cr2"}
    | {".nef", ".dng"}
)
"""Endings of pictures that are left out of a folder; a user is told of them."""

MAX_PIXELS = 500_000_000
"""Larger pictures are refused: they are damaged headers or decompression bombs."""

# PIL warns from 89 million pixels on, which line-scan cameras reach. The limit is a global of PIL
# and no thread-safe way exists to raise it for one call, so it is raised here, never lowered.
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)

# PIL finds its readers at the first file that needs them, and a second thread in that moment is
# told that its TIFF is no picture
Image.init()

# PIL reads an opened file when its pixels are first asked for, and one picture may be asked for
# by two threads
_opening = threading.Lock()


@dataclass(frozen=True)
class PictureInfo:
    """What a picture's file holds, before any conversion."""

    mode: str
    """PIL's name, such as ``RGB``, ``L`` (grey), ``P`` (palette) or ``I;16`` (16-bit grey)."""

    height: int
    """Pixels, as displayed."""

    width: int
    """Pixels, as displayed."""

    peak: int
    """Largest value of any channel after conversion to 8 bits."""


def load_picture(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a picture as 8-bit RGB.

    Args:
        path: File of any format that PIL reads.
        size: Height and width to resize to; None keeps the picture's own.

    Returns:
        uint8, (H, W, 3), writable.

    Raises:
        ImageError: If the file is missing, damaged, too large or of a kind whose range of values
            is unknown.
        ValueError: If ``size`` is not two positive numbers.
    """
    return np.array(_resized(_to_rgb(_decode(path), path), size))


def left_out_note(folders: Iterable[Path], without: Collection[str] = ()) -> str | None:
    """One line on the files with ``OTHER_SUFFIXES`` in folders and in the folders in them.

    Args:
        folders: Where to look. Hidden files and folders are passed over.
        without: Names, in lower case, of folders in them that are passed over too.

    Returns:
        None if there is no such file.
    """
    found: Counter[str] = Counter()
    seen: set[str] = set()
    for folder in folders:
        for place, inner, files in os.walk(folder, followlinks=True):
            real = os.path.realpath(place)
            fresh, visible = real not in seen, [n for n in inner if not n.startswith(".")]
            inner[:] = [n for n in visible if fresh and n.lower() not in without]
            found.update(Path(n).suffix.lower() for n in files if fresh and not n.startswith("."))
            seen.add(real)
    others = sorted(OTHER_SUFFIXES & set(found))
    if not others:
        return None
    count = sum(found[ending] for ending in others)
    files_are = "1 file with another ending" if count == 1 else f"{count} files with other endings"
    return f"{files_are} ({', '.join(others)}) {'is' if count == 1 else 'are'} left out"


def describe_picture(path: Path) -> PictureInfo:
    """Decode a picture wholly, as :func:`load_picture` does, and say what it is.

    Raises:
        ImageError: If :func:`load_picture` could not read it.
    """
    picture = _decode(path)
    mode = picture.mode
    rgb = _to_rgb(picture, path)
    peak = max(high for _, high in _extrema(rgb))
    return PictureInfo(mode, rgb.height, rgb.width, peak)


def load_mask(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read the mask of a defect: every value above 0 is defective.

    It is resized as published: the binary mask as 0 and 255, bilinear and antialiased, and then
    cut at one half.

    Args:
        path: File of any format that PIL reads; colours are turned to grey first. Or a folder of
            such files (MVTec LOCO AD): what any of them marks.
        size: Height and width to resize to; None keeps the mask's own.

    Returns:
        bool, (H, W).

    Raises:
        ImageError: If a file cannot be read or, in a folder, is not of the others' size; or if a
            folder has none.
        ValueError: If ``size`` is not two positive numbers.
    """
    marked = _marked_in(path) if path.is_dir() else _marked(path)
    if size is None:
        return marked
    resized = np.asarray(_resized(Image.fromarray(marked.astype(np.uint8) * 255), size))
    return resized > 127  # value / 255 > 0.5, in whole numbers


def _marked_in(folder: Path) -> NDArray[np.bool_]:
    """The union of the masks in a folder."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise ImageError(f"cannot read {folder}: it is a folder without masks")
    whole = _marked(files[0])
    for file in files[1:]:
        marked = _marked(file)
        if marked.shape != whole.shape:
            height, width = whole.shape
            raise ImageError(
                f"the mask {file} is {marked.shape[0]} x {marked.shape[1]} pixels but "
                f"{files[0].name} beside it is {height} x {width} (height x width); draw both on "
                "the picture itself"
            )
        whole |= marked
    return whole


def _marked(path: Path) -> NDArray[np.bool_]:
    """What one file marks."""
    mask = _decode(path)
    # "L" clips 16-bit and floating-point values in ways of its own
    deep = mask.mode == "F" or mask.mode.startswith("I")
    grey = mask if deep or mask.mode == "L" else _converted(mask, "L", path)
    marked: NDArray[np.bool_] = np.asarray(grey) > 0
    return marked


def picture_from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert a picture in memory to 8-bit RGB.

    Args:
        array: (H, W), (H, W, 1), (H, W, 3) in the order R, G, B, or (H, W, 4) with alpha, which
            is dropped. uint8 in 0..255; uint16 in 0..65535; floating point in 0..1; or bool.

    Returns:
        uint8, (H, W, 3). It may share memory with ``array``.

    Raises:
        ValueError: If the shape, the type or the range is another one.
    """
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"array must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}"
        )
    levels = _eight_bits(array)[:, :, :3]
    return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels


def picture_from_image(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a PIL picture to 8-bit RGB as :func:`load_picture` does a file.

    Args:
        image: Of any mode. Its EXIF orientation is applied. It is decoded if it was only opened,
            and else stays as it is.

    Returns:
        uint8, (H, W, 3), writable.

    Raises:
        ImageError: If it cannot be decoded (its file is closed, say), is too large, has no pixels,
            or is of a kind whose range of values is unknown.
    """
    name = Path(getattr(image, "filename", "") or "the PIL picture")
    _check_pixels(image, name)
    try:
        with _opening:
            upright = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # as in _decode
        raise ImageError(f"cannot read {name}: {_cause(error, name)}") from error
    return np.array(_to_rgb(upright, name))


def resize_picture(array: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a picture as :func:`load_picture` does.

    Args:
        array: uint8, (H, W, 3).
        size: Height and width to resize to.

    Returns:
        uint8, (size[0], size[1], 3), writable.

    Raises:
        ValueError: If ``array`` is not uint8 of that shape, or ``size`` not two positive numbers.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"array must be uint8 of shape (H, W, 3), got {array.dtype} of {array.shape}"
        )
    return np.array(_resized(Image.fromarray(np.ascontiguousarray(array)), size))


def _eight_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ValueError(f"array must be uint8, uint16, bool or floating point, got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN is refused too
        raise ValueError(f"floating-point pictures must lie in 0..1, got {low:g}..{high:g}")
    return np.floor(array.astype(np.float64) * 255.0 + 0.5).astype(np.uint8)


def _decode(path: Path) -> Image.Image:
    """The picture, wholly decoded and turned as it is displayed, in its own mode."""
    try:
        with Image.open(path) as picture:
            _check_pixels(picture, path)
            ImageOps.exif_transpose(picture, in_place=True)
            return picture
    except (ImageError, MemoryError):
        raise
    # PIL's readers raise almost any exception on a damaged file: KeyError, struct.error, ...
    except Exception as error:
        raise ImageError(f"cannot read {path}: {_cause(error, path)}") from error


def _check_pixels(picture: Image.Image, path: Path) -> None:
    pixels = picture.width * picture.height
    if pixels == 0:
        raise ImageError(f"cannot read {path}: it has no pixels")
    if pixels > MAX_PIXELS:
        raise ImageError(f"cannot read {path}: it has {pixels:,} pixels, more than {MAX_PIXELS:,}")


def _cause(error: Exception, path: Path) -> str:
    """One line, without the path, which PIL and the system put in their messages."""
    if isinstance(error, UnidentifiedImageError):
        empty = path.is_file() and path.stat().st_size == 0
        return "the file is empty" if empty else "it is not a picture, or its beginning is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _to_rgb(picture: Image.Image, path: Path) -> Image.Image:
    mode = picture.mode
    if mode == "RGB":
        return picture
    if mode == "F" or mode.startswith("I"):
        values = np.asarray(picture)
        if mode == "I":  # 32-bit: 16-bit files of older PIL versions, and signed ones
            low, high = int(values.min()), int(values.max())
            if low < 0 or high > 65535:
                raise ImageError(
                    f"cannot read {path}: its values are {low}..{high}; integers must lie in "
                    "0..65535"
                )
            values = values.astype(np.uint16)
        try:
            return Image.fromarray(np.ascontiguousarray(picture_from_array(values)))
        except ValueError as error:
            raise ImageError(f"cannot read {path}: {error}") from error
    if "transparency" in picture.info:
        # straight to RGB warns about transparency; over RGBA the colours are the same
        picture = _converted(picture, "RGBA", path)
    return _converted(picture, "RGB", path)


def _converted(picture: Image.Image, mode: str, path: Path) -> Image.Image:
    try:
        return picture.convert(mode)
    except ValueError as error:
        raise ImageError(
            f"cannot read {path}: colours of kind {picture.mode!r} cannot be turned into {mode}; "
            "save it as RGB or grey"
        ) from error


def _resized(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    if size is None:
        return picture
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size must be (height, width), both positive, got {size}")
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _extrema(picture: Image.Image) -> tuple[tuple[int, int], ...]:
    bands = (band.getextrema() for band in picture.split())
    return tuple((int(low), int(high)) for low, high in bands)  # type: ignore[arg-type]
