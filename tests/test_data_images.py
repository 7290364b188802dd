from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from mambaad.data import images, list_pictures
from mambaad.data.images import (
    OTHER_SUFFIXES,
    PICTURE_SUFFIXES,
    describe_picture,
    left_out_note,
    load_mask,
    load_picture,
    picture_from_array,
    picture_from_image,
    resize_picture,
)
from mambaad.errors import ImageError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = np.ascontiguousarray(RGB[:, :, 0])
GREY_RGB = np.dstack([GREY] * 3)
ALPHA = Image.fromarray(np.full((5, 7), 40, np.uint8))


def with_alpha(values: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(values)
    picture.putalpha(ALPHA)
    return picture


def palette() -> Image.Image:
    picture = Image.fromarray((GREY % 4).astype(np.uint8))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    return picture


PALETTE_RGB = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], np.uint8)[
    GREY % 4
]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".webp"])
def test_lossless_rgb_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RGB).save(path, lossless=True)
    found = load_picture(path)
    np.testing.assert_array_equal(found, RGB)
    assert found.dtype == np.uint8
    assert found.flags.writeable


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        pytest.param(Image.fromarray(GREY), GREY_RGB, id="grey"),
        pytest.param(with_alpha(GREY), GREY_RGB, id="grey with alpha"),
        pytest.param(with_alpha(RGB), RGB, id="alpha is dropped, not blended"),
        pytest.param(palette(), PALETTE_RGB, id="palette"),
        pytest.param(
            Image.fromarray(GREY > 99), np.where(GREY_RGB > 99, 255, 0).astype(np.uint8), id="1 bit"
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_modes_become_rgb(
    tmp_path: Path, picture: Image.Image, expected: NDArray[np.uint8], suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    picture.save(path)
    np.testing.assert_array_equal(load_picture(path), expected)


@pytest.mark.parametrize("transparency", [b"\x00\xff\x80\x40", 2])
def test_transparent_palette_keeps_its_colours(tmp_path: Path, transparency: object) -> None:
    path = tmp_path / "a.png"
    palette().save(path, transparency=transparency)
    np.testing.assert_array_equal(load_picture(path), PALETTE_RGB)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_near(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16), (200, 100, 50)).convert(mode).save(path, quality=95)
    assert describe_picture(path).mode == mode
    expected = (124, 124, 124) if mode == "L" else (200, 100, 50)  # .299 R + .587 G + .114 B
    assert np.abs(load_picture(path).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_use_the_whole_range(tmp_path: Path, suffix: str, order: str) -> None:
    path = tmp_path / f"a{suffix}"
    values = np.array([[0, 255, 256, 32768, 65279, 65535]], np.uint16)
    data = values.astype(order).tobytes()
    Image.frombytes("I;16B" if order == ">u2" else "I;16", (6, 1), data).save(path)
    assert load_picture(path)[0].tolist() == [[v] * 3 for v in (0, 0, 1, 128, 254, 255)]


def test_wide_integers_must_fit_in_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(path)
    assert load_picture(path)[0].tolist() == [[0] * 3, [255] * 3]
    Image.fromarray(np.array([[-1, 70000]], np.int32)).save(path)
    with pytest.raises(ImageError, match=r"a\.tif: its values are -1\.\.70000; integers must lie"):
        load_picture(path)


def test_floats_must_lie_in_0_to_1(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(path)
    assert load_picture(path)[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    Image.fromarray(np.array([[0.0, 4000.0]], np.float32)).save(path)
    with pytest.raises(ImageError, match=r"a\.tif: floating-point .* 0\.\.1, got 0\.\.4000"):
        load_picture(path)


def test_orientation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed after a quarter turn clockwise
    Image.fromarray(RGB).save(path, exif=exif)
    np.testing.assert_array_equal(load_picture(path), np.rot90(RGB, -1))
    info = describe_picture(path)
    assert (info.height, info.width) == (7, 5)


def test_pil_pictures_are_converted_as_files_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    for number, image in enumerate((Image.fromarray(RGB), with_alpha(RGB), palette(), deep)):
        path = tmp_path / f"{number}.png"
        image.save(path, exif=exif)
        expected = load_picture(path)
        with Image.open(path) as opened:
            for _ in range(2):  # it is not turned itself
                np.testing.assert_array_equal(picture_from_image(opened), expected)
        # one in memory has no orientation
        np.testing.assert_array_equal(np.rot90(picture_from_image(image), -1), expected)
    picture_from_image(image)[:] = 0
    np.testing.assert_array_equal(np.asarray(image), GREY.astype(np.uint16) * 257)


def test_pil_pictures_that_cannot_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match=r"the PIL picture: floating-point .*, got 0\.\.4000"):
        picture_from_image(Image.fromarray(np.array([[0.0, 4000.0]], np.float32)))
    with pytest.raises(ImageError, match="the PIL picture: it has no pixels"):
        picture_from_image(Image.new("RGB", (0, 4)))
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    with Image.open(path) as closed:
        pass
    with pytest.raises(ImageError, match=rf"cannot read {path}: ."):
        picture_from_image(closed)
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    with pytest.raises(ImageError, match="it has 35 pixels, more than 34"):
        picture_from_image(Image.fromarray(RGB))


def test_a_pil_picture_may_be_asked_for_by_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (200, 300, 3), np.uint8)).save(path)
    expected = load_picture(path)
    for _ in range(5):
        with Image.open(path) as opened, ThreadPoolExecutor(8) as pool:
            for found in pool.map(picture_from_image, [opened] * 16):
                np.testing.assert_array_equal(found, expected)


def test_files_and_arrays_are_resized_alike_by_pil(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    source = np.random.default_rng(1).integers(0, 256, (90, 61, 3), dtype=np.uint8)
    Image.fromarray(source).save(path)
    expected = np.array(Image.fromarray(source).resize((64, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load_picture(path, (32, 64)), expected)
    np.testing.assert_array_equal(resize_picture(source, (32, 64)), expected)


def test_halving_averages_with_the_triangle_filter(tmp_path: Path) -> None:
    # antialiased bilinear at scale 2: weights 3 3 1 over 7 at the edge, for the first of two
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 0, 224, 0]], np.uint8)).save(path)
    assert load_picture(path, (1, 2))[0, 0].tolist() == [32] * 3


def test_sixteen_bits_are_resized_after_conversion(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    values = np.random.default_rng(2).integers(0, 65536, (9, 9), dtype=np.uint16)
    Image.fromarray(values).save(path)
    expected = resize_picture(load_picture(path), (4, 5))
    np.testing.assert_array_equal(load_picture(path, (4, 5)), expected)
    assert expected.shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("kept", "cause"),
    [(0, "the file is empty"), (5, "its beginning is damaged"), (6000, "truncated")],
)
def test_a_damaged_file_is_named_with_its_cause(tmp_path: Path, kept: int, cause: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    for load in (load_picture, load_mask, describe_picture):
        with pytest.raises(ImageError, match=cause) as caught:
            load(path)
        message = str(caught.value)
        assert message.startswith(f"cannot read {path}: ")
        assert message.count(str(path)) == 1
        assert "\n" not in message


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"x\.png: no such file or directory"):
        load_picture(tmp_path / "x.png")
    with pytest.raises(ImageError, match=f"cannot read {tmp_path}: "):
        load_picture(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL about damaged metadata
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_no_damage_escapes_as_another_exception(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RGB).save(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(4)
    for _ in range(100):
        broken = data[: rng.integers(1, data.size + 1)].copy()
        broken[rng.integers(0, broken.size, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(broken.tobytes())
        with suppress(ImageError):
            assert load_picture(path, (8, 8)).shape == (8, 8, 3)


def test_large_pictures_raise_no_warning_and_bombs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (9500, 9500)).save(path)  # 90 million pixels: PIL's own limit is 89
    assert not load_mask(path).any()
    monkeypatch.setattr(images, "MAX_PIXELS", 90_249_999)
    with pytest.raises(ImageError, match=r"it has 90,250,000 pixels, more than 90,249,999"):
        load_picture(path)


def test_unknown_colours_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(picture: Image.Image, mode: str) -> Image.Image:
        raise ValueError(f"conversion from {picture.mode} to {mode} not supported")

    path = tmp_path / "a.tif"
    Image.new("LAB", (4, 4)).save(path)
    monkeypatch.setattr(Image.Image, "convert", convert)  # as in versions that do not know LAB
    with pytest.raises(ImageError, match="colours of kind 'LAB' cannot be turned into RGB"):
        load_picture(path)


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_sizes_are_positive(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both positive"):
        resize_picture(RGB, size)


MASK = np.array([[0, 0, 1, 255], [0, 7, 0, 0]], np.uint8)


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (lambda: Image.fromarray(MASK), ".png"),
        (lambda: Image.fromarray(MASK > 0), ".png"),
        (lambda: Image.fromarray(np.repeat(MASK[:, :, None], 3, 2)), ".bmp"),
        (lambda: Image.fromarray(MASK.astype(np.uint16) * 257), ".png"),
        (lambda: Image.fromarray(MASK.astype(np.uint16)), ".tif"),
        (lambda: Image.fromarray(MASK.astype(np.float32) / 512), ".tif"),
        (lambda: Image.fromarray(MASK.astype(np.int32) * 300), ".tif"),
    ],
)
def test_every_value_above_zero_is_defect(
    tmp_path: Path, make: Callable[[], Image.Image], suffix: str
) -> None:
    path = tmp_path / f"m{suffix}"
    make().save(path)
    found = load_mask(path)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, MASK > 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # halves [0 0 | 1 1]: 255 * (3 3 1)/7 gives 36 and 219
        ([[0, 0, 1, 1]], [[False, True]]),
        # 255 * 3/7 = 109 for the first and 255 * 1/7 = 36 for the second
        ([[1, 0, 0, 0]], [[False, False]]),
        # 255 * 4/7 = 146 for the first, 255 * 3/7 = 109 for the second
        ([[0, 9, 9, 0]], [[True, True]]),
    ],
)
def test_masks_are_cut_at_one_half_after_resizing(
    tmp_path: Path, values: list[list[int]], expected: list[list[bool]]
) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(np.array(values, np.uint8)).save(path)
    assert load_mask(path, (1, 2)).tolist() == expected


@given(arrays(np.uint8, (11, 9), elements=st.sampled_from([0, 0, 0, 3, 255])))
def test_masks_are_resized_as_published(
    tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.uint8]
) -> None:
    path = tmp_path_factory.mktemp("m") / "m.png"
    Image.fromarray(values).save(path)
    published = Image.fromarray(((values > 0) * 255).astype(np.uint8)).resize(
        (6, 4), Image.Resampling.BILINEAR
    )
    expected = np.array(published) / 255 > 0.5
    np.testing.assert_array_equal(load_mask(path, (4, 6)), expected)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (GREY, GREY_RGB),
        (GREY[:, :, None], GREY_RGB),
        (np.dstack([RGB, GREY]), RGB),
        (RGB.astype(np.uint16) * 256, RGB),
        (RGB.astype(">u2") * 257, RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (GREY > 99, np.where(GREY_RGB > 99, 255, 0)),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
    ],
)
def test_pictures_in_memory(array: NDArray[Any], expected: NDArray[np.uint8]) -> None:
    found = picture_from_array(array)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"got \(3, 8, 8\)"),
        (np.zeros(4, np.uint8), r"got \(4,\)"),
        (np.zeros((0, 4), np.uint8), r"got \(0, 4, 1\)"),
        (np.zeros((2, 2), np.int64), "got int64"),
        (np.full((2, 2), 1.5), r"must lie in 0\.\.1, got 1\.5\.\.1\.5"),
        (np.array([[0.5, np.nan]]), r"must lie in 0\.\.1"),
    ],
)
def test_arrays_that_are_no_pictures(array: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        picture_from_array(array)


def test_resize_picture_checks_its_array() -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\), got float64 of \(4, 4, 3\)"):
        resize_picture(np.zeros((4, 4, 3)), (2, 2))  # type: ignore[arg-type]


def test_a_file_is_described(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(path)
    info = describe_picture(path)
    assert info.mode in ("I;16", "I")
    assert (info.height, info.width, info.peak) == (1, 2, 15)


def test_threads_read_the_same(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        Image.fromarray(np.roll(RGB, i, axis=1)).save(path)
    alone = [load_picture(path, (4, 4)) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda path: load_picture(path, (4, 4)), paths * 10))
    np.testing.assert_array_equal(np.stack(together), np.stack(alone * 10))


def test_a_folder_of_masks_counts_together(tmp_path: Path) -> None:
    for name, row in (("000.png", 0), ("001.png", 2)):
        values = np.zeros((4, 6), np.uint8)
        values[row] = 1
        Image.fromarray(values).save(tmp_path / name)
    (tmp_path / "note.txt").touch()
    marked = load_mask(tmp_path)
    assert marked.sum(axis=1).tolist() == [6, 0, 6, 0]
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "002.png")
    with pytest.raises(
        ImageError, match=r"002\.png is 5 x 5 pixels but 000\.png beside it is 4 x 6"
    ):
        load_mask(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="a folder without masks"):
        load_mask(tmp_path / "empty")


def test_other_pictures_in_folders_are_counted_once(tmp_path: Path) -> None:
    for name in ("a/x.gif", "a/b/y.GIF", "a/b/z.nef", "a/xyz/z.exr", "c/x.json", "c/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "again").symlink_to(tmp_path / "a")
    folders = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "c"]
    note = "3 files with other endings (.gif, .nef) are left out"
    assert left_out_note(folders, {"xyz"}) == note
    assert left_out_note([tmp_path / "a" / "xyz"]) == (
        "1 file with another ending (.exr) is left out"
    )
    assert left_out_note([tmp_path / "c"]) is None
    assert not OTHER_SUFFIXES & PICTURE_SUFFIXES


def test_jfif_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (9, 9, 9)).save(tmp_path / "x.jfif")
    assert list_pictures(tmp_path) == [tmp_path / "x.jfif"]
    assert load_picture(tmp_path / "x.jfif").shape == (3, 4, 3)
