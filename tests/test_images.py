"""Pixels in and out: every format that a picture or a mask comes in, and files written whole."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photo_pairs
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage

from fsdino import image_files, images, overlay
from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.images import read_image, read_mask
from pictures import Array, disc, one_line, picture

PHOTOGRAPHS = Path(__file__).with_name("photographs")


def png(
    width: int, height: int, depth: int, color: int, rows: list[bytes], *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG file, written after its specification and not by Pillow."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


# What turns the stored pixels upright, by EXIF orientation (TIFF 6.0, tag 274).
UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_twelve_megapixel_jpeg_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    """A phone's photograph arrives as it is displayed, at its full size."""
    stored = picture(3000, 4000)
    file = saved(
        Image.fromarray(stored),
        tmp_path / "photo.jpg",
        quality=90,
        exif=with_orientation(orientation),
    )
    result = read_image(file)
    upright = UPRIGHT[orientation](stored)
    assert result.shape == upright.shape
    assert result.dtype == np.uint8
    # Away from edges JPEG is off by a few levels.
    difference = np.abs(result[50::100, 50::100].astype(int) - upright[50::100, 50::100])
    assert difference.max() <= 6


@pytest.mark.parametrize("orientation", [3, 6])
def test_pil_image_is_turned_like_its_file(tmp_path: Path, orientation: int) -> None:
    """Image.open(path) and path are the same picture; an image once turned is not turned again."""
    image = Image.fromarray(picture(30, 40))
    file = saved(image, tmp_path / "photo.png", exif=with_orientation(orientation))
    with Image.open(file) as opened:
        assert np.array_equal(read_image(opened), read_image(file))
    assert np.array_equal(read_image(file), UPRIGHT[orientation](picture(30, 40)))
    assert np.array_equal(read_image(read_image(file)), read_image(file))


def test_damaged_exif_does_not_cost_the_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A photograph with broken metadata is read as it is stored."""
    pixels = picture(30, 40)
    rows = [row.tobytes() for row in pixels]
    file = tmp_path / "photo.png"
    file.write_bytes(png(40, 30, 8, 2, rows, (b"eXIf", b"no TIFF header")))
    assert np.array_equal(read_image(file), pixels)
    assert "EXIF data cannot be read" in caplog.text
    caplog.clear()
    file.write_bytes(png(40, 30, 8, 2, rows))
    assert np.array_equal(read_image(file), pixels)
    assert not caplog.text


def test_sixteen_bit_grayscale_png(tmp_path: Path) -> None:
    """16 bits are scaled by 1/257 and rounded, whatever the brightest pixel of the file is."""
    values = [0, 1, 128, 129, 257, 4096, 32768, 65535]
    expected = [0, 0, 0, 1, 1, 16, 128, 255]  # value / 257, rounded
    file = tmp_path / "depth.png"
    file.write_bytes(png(8, 1, 16, 0, [struct.pack(">8H", *values)]))
    assert read_image(file)[0].tolist() == [[v] * 3 for v in expected]
    dark = tmp_path / "dark.png"
    dark.write_bytes(png(2, 1, 16, 0, [struct.pack(">2H", 100, 200)]))
    assert read_image(dark)[0].tolist() == [[0] * 3, [1] * 3]


def test_sixteen_bit_color_pgm_and_tiff(tmp_path: Path) -> None:
    """The other 16-bit files: RGB PNG, PGM and a big-endian TIFF."""
    levels = np.arange(0, 256, 17, dtype=np.uint16)
    wide = (levels * 257).astype(">u2")
    color = tmp_path / "color.png"
    color.write_bytes(png(16, 1, 16, 2, [np.repeat(wide, 3).tobytes()]))
    gray = tmp_path / "gray.pgm"
    gray.write_bytes(b"P5\n16 1\n65535\n" + wide.tobytes())
    tiff = saved(Image.fromarray(wide.astype(np.uint16)[None]), tmp_path / "gray.tif")
    for file in (color, gray, tiff):
        assert read_image(file)[0].tolist() == [[v] * 3 for v in levels], file.name


def test_palette_png_with_transparency_lies_over_white(tmp_path: Path) -> None:
    """The transparent index becomes white, the others their colours."""
    file = tmp_path / "icon.png"
    palette = bytes([10, 20, 30, 200, 100, 0, 5, 5, 5])
    file.write_bytes(
        png(3, 1, 8, 3, [bytes([0, 1, 2])], (b"PLTE", palette), (b"tRNS", bytes([255, 255, 0])))
    )
    assert read_image(file)[0].tolist() == [[10, 20, 30], [200, 100, 0], [255, 255, 255]]


def test_rgba_and_gray_alpha_lie_over_white(tmp_path: Path) -> None:
    """alpha * colour + (1 - alpha) * white, for files, PIL images and arrays."""
    rgba = np.array([[[0, 0, 0, 51], [200, 100, 0, 255], [9, 9, 9, 0]]], np.uint8)
    expected = [[204, 204, 204], [200, 100, 0], [255, 255, 255]]
    file = saved(Image.fromarray(rgba), tmp_path / "cutout.png")
    for source in (file, Image.fromarray(rgba), rgba, torch.from_numpy(rgba).permute(2, 0, 1)):
        assert read_image(source)[0].tolist() == expected
    gray = np.array([[[0, 51], [80, 255]]], np.uint8)
    merged = Image.merge("LA", [Image.fromarray(gray[:, :, channel]) for channel in (0, 1)])
    assert read_image(merged)[0].tolist() == [[204] * 3, [80] * 3]
    assert read_image(gray)[0].tolist() == [[204] * 3, [80] * 3]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    """A print-ready JPEG (Adobe stores it inverted): R = 255 (1 - C)(1 - K), and so on."""
    inks = np.zeros((64, 128, 4), np.uint8)
    inks[:, :64], inks[:, 64:] = (0, 255, 255, 0), (0, 0, 0, 128)  # red | half black
    file = saved(
        Image.frombytes("CMYK", (128, 64), inks.tobytes()), tmp_path / "print.jpg", quality=95
    )
    result = read_image(file).astype(int)
    assert np.abs(result[:, 8:56] - (255, 0, 0)).max() <= 8
    assert np.abs(result[:, 72:120] - (127, 127, 127)).max() <= 8


def test_grayscale_jpeg_and_black_and_white_png(tmp_path: Path) -> None:
    """One channel becomes three equal ones; 1-bit files are black and white."""
    gray = saved(Image.fromarray(picture(60, 80)[:, :, 0]), tmp_path / "gray.jpg", quality=95)
    result = read_image(gray)
    assert result.shape == (60, 80, 3)
    assert (result[:, :, 0] == result[:, :, 1]).all()
    assert np.abs(result[20:, 20:, 0].astype(int) - picture(60, 80)[20:, 20:, 0]).max() <= 4
    bits = saved(Image.fromarray(disc(60, 80)), tmp_path / "bits.png")
    assert np.array_equal(
        read_image(bits), np.repeat(disc(60, 80)[:, :, None] * np.uint8(255), 3, 2)
    )


def test_the_content_of_a_file_is_read_like_the_file(tmp_path: Path) -> None:
    """Bytes of an archive's member: turned upright, repeated from gray; errors have the name."""
    path = saved(Image.fromarray(picture(6, 9)), tmp_path / "turned.png", exif=with_orientation(6))
    assert np.array_equal(images.read_image_bytes(path.read_bytes()), read_image(path))
    with pytest.raises(DataError, match=r"shard\.tar/1\.png: corrupt or truncated"):
        images.read_image_bytes(path.read_bytes()[:-30], "shard.tar/1.png")


def test_a_file_as_it_is_stored(tmp_path: Path) -> None:
    """Benchmarks' annotations follow the stored rows, and palette indices are their values."""
    path = saved(Image.fromarray(picture(6, 9)), tmp_path / "turned.png", exif=with_orientation(6))
    assert np.array_equal(np.asarray(images.decode_file(path)), picture(6, 9))
    assert read_image(path).shape == (9, 6, 3)
    labels = Image.fromarray(np.array([[0, 3], [7, 255]], np.uint8))
    labels.putpalette([50] * 768)
    found = images.decode_file(saved(labels, tmp_path / "labels.png"))
    assert found.mode == "P" and np.asarray(found).tolist() == [[0, 3], [7, 255]]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as error:
        images.decode_file(path, "mask")
    one_line(error, "mask", "turned.png", "corrupt or truncated")
    with pytest.raises(UsageError, match="no such file"):
        images.decode_file(tmp_path / "nothing.png")


@pytest.mark.parametrize("suffix", ["bmp", "gif", "ppm", "tif", "webp"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    """What the list of suffixes promises can be read, without loss where the format has none."""
    gray = picture(40, 50)[:, :, :1].repeat(3, axis=2)
    options = {"lossless": True} if suffix == "webp" else {}
    file = saved(Image.fromarray(gray), tmp_path / f"picture.{suffix}", **options)
    assert f".{suffix}" in image_files.IMAGE_SUFFIXES
    assert np.array_equal(read_image(file), gray)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    """A GIF with several frames is its first one, and a later one is not mixed in."""
    frames = [Image.new("RGB", (8, 6), color) for color in ((255, 0, 0), (0, 0, 255))]
    file = saved(frames[0], tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (read_image(file) == (255, 0, 0)).all()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 700), (700, 1), (3, 5)])
def test_any_size_and_aspect_ratio(tmp_path: Path, height: int, width: int) -> None:
    """Nothing is too small or too narrow to be read and made a tensor."""
    pixels = picture(height, width)
    file = saved(Image.fromarray(pixels), tmp_path / "thin.png")
    assert np.array_equal(read_image(file), pixels)
    assert images.to_tensor(pixels, (28, 14)).shape == (3, 28, 14)


PIXELS = picture(9, 7)
PIL_MODES = ["1", "L", "La", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"]


@pytest.mark.parametrize("mode", [*PIL_MODES, "LAB", "HSV", "I", "F", "I;16", "I;16L", "I;16B"])
def test_every_mode_of_pillow(mode: str) -> None:
    """No mode is one that nobody thought of: black and clear pixels come as [H, W, 3]."""
    result = read_image(Image.new(mode, (5, 4)))
    assert (result.dtype, result.shape) == (np.uint8, (4, 5, 3))
    assert read_mask(Image.new(mode, (5, 4)), (4, 5), allow_empty=True).shape == (4, 5)


EQUAL_SOURCES: dict[str, Any] = {
    "PIL": Image.fromarray(PIXELS),
    "array": PIXELS,
    "array, not contiguous": np.flip(np.ascontiguousarray(PIXELS[:, ::-1]), axis=1),
    "array [C, H, W]": PIXELS.transpose(2, 0, 1),
    "float64 array": PIXELS / 255,
    "float32 array": (PIXELS / 255).astype(np.float32),
    "uint16 array": PIXELS.astype(np.uint16) * 257,
    "int64 array": PIXELS.astype(np.int64),
    "int32 array of 16 bits": PIXELS.astype(np.int32) * 257,
    "tensor [C, H, W]": torch.from_numpy(PIXELS).permute(2, 0, 1),
    "tensor [H, W, C]": torch.from_numpy(PIXELS),
    "float tensor": (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
    "float64 tensor": torch.from_numpy(PIXELS / 255),
    "uint16 tensor": torch.from_numpy(PIXELS.astype(np.uint16) * 257),
}


@pytest.mark.parametrize("name", EQUAL_SOURCES)
def test_one_picture_in_every_type(name: str) -> None:
    """All types and layouts that a picture can come in give the same pixels."""
    result = read_image(EQUAL_SOURCES[name])
    assert result.dtype == np.uint8
    assert np.array_equal(result, PIXELS)
    assert result.flags["C_CONTIGUOUS"] and result.flags["WRITEABLE"]
    assert not np.shares_memory(result, PIXELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors(dtype: torch.dtype) -> None:
    """They are within what their own precision allows (bfloat16 keeps 8 bits)."""
    tensor = (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).to(dtype)
    assert np.abs(read_image(tensor).astype(int) - PIXELS).max() <= 1


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (1, 5, 6)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_grayscale_layouts(shape: tuple[int, ...], kind: Callable[[Array], Any]) -> None:
    """[H, W], [H, W, 1] and [1, H, W] are one gray picture, and one mask."""
    gray = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
    assert np.array_equal(read_image(kind(gray.reshape(shape))), np.stack([gray] * 3, axis=2))
    flags = gray > 100
    assert np.array_equal(read_mask(kind(flags.reshape(shape)), (5, 6)), flags)


def test_bool_arrays_are_black_and_white() -> None:
    """A bool picture is 0 and 255, and not 0 and 1."""
    flags = disc(20, 30)
    assert np.array_equal(read_image(flags)[:, :, 0], flags * np.uint8(255))


BAD_ARRAYS: dict[str, tuple[Any, type[FsdinoError], str]] = {
    "NaN": (np.array([[0.5, np.nan]]), DataError, "NaN"),
    "infinity": (torch.tensor([[0.5, torch.inf]]), DataError, "infinity"),
    "0..255 floats": (PIXELS.astype(np.float32), DataError, "scale them to [0, 1]"),
    "-1..1 floats": (PIXELS / 127.5 - 1, DataError, "scale them to [0, 1]"),
    "negative": (PIXELS.astype(np.int64) - 5, DataError, "scale them"),
    "more than 16 bits": (PIXELS.astype(np.int64) * 70000, DataError, "scale them"),
    "complex": (PIXELS.astype(np.complex64), UsageError, "complex64"),
    "text": (np.array([["a"]]), UsageError, "uint8"),
    "a batch": (torch.zeros(1, 3, 5, 5), UsageError, "[1, 3, 5, 5]"),
    "a line": (np.zeros(5, np.uint8), UsageError, "[5]"),
    "five channels": (np.zeros((9, 9, 5), np.uint8), UsageError, "[9, 9, 5]"),
    "no pixels": (np.zeros((0, 7, 3), np.uint8), DataError, "no pixels"),
    "no pixels in gray": (np.zeros((7, 0), np.uint8), DataError, "no pixels"),
    "no pixels in a tensor": (torch.zeros(3, 0, 7), DataError, "no pixels"),
    "no pixels in PIL": (Image.new("RGB", (0, 7)), DataError, "no pixels"),
    "a list": ([[1, 2], [3, 4]], UsageError, "list"),
    "None": (None, UsageError, "NoneType"),
    "bytes": (b"photo.jpg", UsageError, "bytes"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_image(name: str) -> None:
    """Each gets one line that names the argument, what is wrong and what to do."""
    source, kind, part = BAD_ARRAYS[name]
    with pytest.raises(kind) as error:
        read_image(source, "query 3")
    one_line(error, "query 3", part)


def test_floats_a_rounding_outside_of_the_range() -> None:
    """What bicubic resampling and rounding leave outside [0, 1] is cut, not refused."""
    assert read_image(np.array([[-0.0004, 1.0004]]))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    """Wherever the download stopped, no half picture is taken for a whole one."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    data = saved(noise, tmp_path / f"whole.{suffix}").read_bytes()
    file = tmp_path / f"part.{suffix}"
    for length in (1, 10, *range(30, len(data) * 9 // 10, len(data) // 20)):
        file.write_bytes(data[:length])
        with warnings.catch_warnings(), pytest.raises(DataError) as error:
            warnings.simplefilter("ignore")  # Pillow's own, about what it could repair
            read_image(file)
        one_line(error, str(file))


def test_truncated_twelve_megapixel_jpeg(tmp_path: Path) -> None:
    """At a photograph's real size, too; the message says what happened."""
    file = saved(Image.fromarray(picture(3000, 4000)), tmp_path / "photo.jpg", quality=90)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError) as error:
        read_image(file, "query 1")
    one_line(error, "query 1", str(file), "truncated", "export it again")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp", "ppm"])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    """Overwritten bytes give pixels or one DataError, and no decoder's own exception."""
    data = saved(Image.fromarray(picture(24, 32)), tmp_path / f"whole.{suffix}").read_bytes()
    file = tmp_path / f"damaged.{suffix}"
    rng = np.random.default_rng(1)
    outcomes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about what it could repair
        for _ in range(150):
            damaged = bytearray(data)
            for place in (rng.integers(0, 60), *rng.integers(0, len(data), 3)):
                damaged[place] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                outcomes.add(read_image(file).dtype.name)
            except DataError as error:
                assert "\n" not in str(error)
                outcomes.add("DataError")
    assert "DataError" in outcomes


def test_files_that_are_no_images(tmp_path: Path) -> None:
    """Garbage, nothing, text, a zip and PostScript under an image's name."""
    with zipfile.ZipFile(tmp_path / "archive.png", "w") as archive:
        archive.writestr("photo.txt", "no photo")
    (tmp_path / "garbage.jpg").write_bytes(np.random.default_rng(2).bytes(5000))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("<html>404</html>")
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError) as error:
            read_image(file)
        one_line(error, file.name, "convert it to JPEG or PNG")


def test_decompression_bomb(tmp_path: Path) -> None:
    """A few bytes that claim 3.6 gigapixels are refused before any memory is taken."""
    file = tmp_path / "bomb.png"
    file.write_bytes(png(60_000, 60_000, 8, 2, [b"\0"]))
    for read in (read_image, read_mask):
        with pytest.raises(DataError) as error:
            read(file)
        one_line(error, str(file), "3600000000 pixels", "178956970", "PIL.Image.MAX_IMAGE_PIXELS")


@pytest.mark.parametrize(
    "kind, head", [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")]
)
def test_bombs_in_what_is_not_pixels(tmp_path: Path, kind: bytes, head: bytes) -> None:
    """Texts and profiles that inflate to 200 MB are one error, before the memory is taken."""
    file = tmp_path / "bomb.png"
    body = head + zlib.compress(bytes(200_000_000), 1)
    file.write_bytes(png(4, 4, 8, 2, [bytes(12)] * 4, (kind, body)))
    with pytest.raises(DataError) as error:
        read_image(file)
    one_line(error, "bomb.png", "corrupt")


def test_large_images_below_the_limit_do_not_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between half of Pillow's limit and the limit, Pillow warns; a user of ours reads on."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    file = saved(Image.fromarray(picture(40, 45)), tmp_path / "large.png")  # 1800 pixels
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert read_image(file).shape == (40, 45, 3)
    assert not shown
    larger = saved(Image.fromarray(picture(50, 45)), tmp_path / "larger.png")  # 2250 pixels
    with pytest.raises(DataError, match="2250 pixels"):
        read_image(larger)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    """A missing file, a folder, a file used as a folder: exit code 2, and the path is named."""
    (tmp_path / "file").write_text("")
    cases = {
        tmp_path / "none.png": "no such file",
        tmp_path: "this is a folder",
        tmp_path / "file" / "photo.png": "no such file",
        Path("nul\0byte.png"): "nul\\x00byte.png",
        tmp_path / ("x" * 300): "cannot be opened",
    }
    for path, part in cases.items():
        for read in (read_image, read_mask):
            with pytest.raises(UsageError) as error:
                read(path, name="query 2")
            one_line(error, "query 2", part)
            assert error.value.exit_code == 2
    with pytest.raises(UsageError, match="no such file"):
        read_image("")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the permission to read, the message says so (root may read all: simulated)."""

    def refuse(path: object, *args: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(UsageError) as error:
        read_image(tmp_path / "private.png")
    one_line(error, "private.png", "permission")


def test_odd_file_names(tmp_path: Path) -> None:
    """Spaces, accents, no suffix, a wrong suffix; a line break in a name stays on one line."""
    pixels = picture(4, 5)
    for name in ("two words.png", "Überfoto.png", "plain", "really-png.jpg"):
        file = saved(Image.fromarray(pixels), tmp_path / name, format="PNG")
        assert np.array_equal(read_image(str(file)), pixels)
    with pytest.raises(UsageError) as error:
        read_image(tmp_path / "a\nb.png")
    one_line(error, "no such file")


FLAGS = disc(60, 80)
BYTES = FLAGS.astype(np.uint8)
GRAY = BYTES * np.uint8(255)
RED = np.stack([GRAY, 0 * GRAY, 0 * GRAY], axis=2)


def paletted(indices: Array, *colors: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette([value for color in colors for value in color])
    return image


EQUAL_MASKS: dict[str, Any] = {
    "bool": FLAGS,
    "0 and 1": BYTES,
    "0 and 255": GRAY,
    "0 and 7": BYTES * np.uint8(7),
    "int64": FLAGS.astype(np.int64),
    "large instance number": FLAGS.astype(np.int64) * 1_000_001,
    "uint16": FLAGS.astype(np.uint16) * 65535,
    "float": FLAGS.astype(np.float64),
    "float 0 and 255": FLAGS.astype(np.float32) * 255,
    "bool tensor": torch.from_numpy(FLAGS),
    "float tensor [1, H, W]": torch.from_numpy(FLAGS)[None].float(),
    "bfloat16 tensor": torch.from_numpy(FLAGS).bfloat16(),
    "PIL 1": Image.fromarray(FLAGS),
    "PIL L": Image.fromarray(GRAY),
    "PIL L, 0 and 1": Image.fromarray(BYTES),
    "PIL I;16": Image.fromarray(FLAGS.astype(np.uint16) * 65535),
    "PIL I": Image.fromarray(FLAGS.astype(np.int32) * 3),
    "PIL F": Image.fromarray(FLAGS.astype(np.float32)),
    "PIL RGB": Image.fromarray(GRAY).convert("RGB"),
    "red on black": RED,
    "dark red on black": Image.fromarray(RED // 255 * 64),
    "mixed colour on black": np.where(FLAGS[:, :, None], np.uint8([20, 200, 90]), np.uint8(0)),
    "alpha channel": np.dstack([0 * RED + 90, GRAY]),
    "constant alpha": np.dstack([RED, 0 * GRAY + 255]),
    "gray and alpha": Image.merge("LA", [Image.fromarray(0 * GRAY), Image.fromarray(GRAY)]),
    "VOC palette, one class": paletted(BYTES * 2, (0, 0, 0), (128, 0, 0), (0, 128, 0)),
    "palette that begins with the object": paletted(1 - BYTES, (255, 0, 0), (0, 0, 0)),
    "palette of white and black": paletted(1 - BYTES, (255, 255, 255), (0, 0, 0)),
    "palette without black": paletted(BYTES, (90, 90, 200), (200, 90, 90)),
    "palette with a clear background": paletted(1 - BYTES, (9, 9, 9), (9, 9, 9)),
    "palette of one colour twice": paletted(BYTES, (0, 0, 0), (0, 0, 0)),
}
EQUAL_MASKS["palette with a clear background"].info["transparency"] = 1


@pytest.mark.parametrize("name", EQUAL_MASKS)
def test_one_mask_in_every_type(name: str) -> None:
    """All ways to say "these pixels" give the same mask."""
    result = read_mask(EQUAL_MASKS[name], (60, 80))
    assert result.dtype == np.bool_
    assert np.array_equal(result, FLAGS)


@pytest.mark.parametrize("name", [name for name in EQUAL_MASKS if "PIL" in name or "pal" in name])
def test_masks_as_files(tmp_path: Path, name: str) -> None:
    """A mask is the same from a PNG file (a TIFF for floats and 32 bits)."""
    mask = EQUAL_MASKS[name]
    suffix = "tif" if mask.mode in ("F", "I") else "png"
    assert np.array_equal(read_mask(saved(mask, tmp_path / f"mask.{suffix}"), (60, 80)), FLAGS)


def test_the_mask_is_a_copy() -> None:
    """Painting on after reading does not change what was read."""
    mask = FLAGS.copy()
    result = read_mask(mask)
    mask[:] = False
    assert np.array_equal(result, FLAGS)


@pytest.mark.parametrize("quality", [50, 75, 90, 100])
@pytest.mark.parametrize("color", [(255, 255, 255), (230, 20, 30)])
def test_masks_saved_as_jpeg(tmp_path: Path, quality: int, color: tuple[int, int, int]) -> None:
    """JPEG blurs the two values; the outline moves by less than a pixel."""
    flags = disc(600, 800)
    painted = np.where(flags[:, :, None], np.uint8(color), np.uint8(0))
    file = saved(Image.fromarray(painted), tmp_path / "mask.jpg", quality=quality)
    wrong = read_mask(file, (600, 800)) != flags
    border = ndimage.binary_dilation(flags) & ~ndimage.binary_erosion(flags)
    assert not (wrong & ~border).any()


def test_twelve_megapixel_jpeg_mask(tmp_path: Path) -> None:
    """A mask of a photograph's size, saved as gray JPEG."""
    flags = disc(3000, 4000)
    file = saved(Image.fromarray(flags), tmp_path / "mask.png")
    gray = saved(Image.open(file).convert("L"), tmp_path / "mask.jpg", quality=85)
    assert (read_mask(gray, (3000, 4000)) != flags).mean() < 1e-4


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_antialiased_masks(factor: int) -> None:
    """A soft brush leaves gray edges: they are cut where half of the pixel is covered."""
    fine = disc(300 * factor, 400 * factor)
    cover = fine.reshape(300, factor, 400, factor).mean(axis=(1, 3))
    soft = np.rint(cover * 255).astype(np.uint8)
    expected = soft >= 128
    assert np.array_equal(read_mask(soft), expected)
    assert np.array_equal(read_mask(Image.fromarray(soft)), expected)
    assert np.array_equal(read_mask(soft.astype(np.uint16) * 257), expected)
    assert np.array_equal(read_mask(cover.astype(np.float32)), np.rint(cover * 255) >= 128)
    red = np.dstack([soft, 0 * soft, 0 * soft])
    assert np.array_equal(read_mask(red), expected)
    assert np.array_equal(read_mask(np.dstack([red, soft])), expected)


def labels(*values: int) -> Array:
    """uint8 [60, 80]: vertical bands of equal width."""
    return np.repeat(np.array(values, np.uint8), 80 // len(values))[None].repeat(60, axis=0)


RAMP = np.linspace(0, 1, 80, dtype=np.float32)[None].repeat(60, axis=0)
BAD_MASKS: dict[str, tuple[Any, type[FsdinoError], tuple[str, ...]]] = {
    "three labels": (labels(0, 1, 2, 0), DataError, ("values 0, 1, 2:", "mask == 2")),
    "VOC labels": (labels(0, 1, 15, 255), DataError, ("values 0, 1, 15, 255", "mask ==")),
    "VOC, one class and border": (labels(0, 7, 255, 0), DataError, ("0, 7, 255", "mask ==")),
    "instance numbers": (
        labels(0, 1, 2, 0) * np.int64(700_001),
        DataError,
        ("values 0, 700001, 1400002:", "mask == 1400002"),
    ),
    "no zero": (labels(1, 2), DataError, ("values 1, 2", "0 and one other")),
    "many labels": (labels(*range(16)), DataError, ("0, 1, 2, 3, 4, 5, 6, 7, …",)),
    "signed": (FLAGS.astype(np.int64) - 1, DataError, ("values -1, 0",)),
    "palette labels": (
        paletted(labels(0, 1, 2, 0), (0, 0, 0), (128, 0, 0), (0, 128, 0)),
        DataError,
        ("values 0, 1, 2:",),
    ),
    "two colours": (
        np.stack([labels(0, 255, 0, 0), labels(0, 0, 255, 0), labels(0, 0, 0, 0)], axis=2),
        DataError,
        ("several colours",),
    ),
    "coloured background": (
        np.where(FLAGS[:, :, None], np.uint8([255, 0, 0]), np.uint8(255)),
        DataError,
        ("several colours",),
    ),
    "a photograph": (Image.fromarray(picture(60, 80)), DataError, ("mask",)),
    "a gray ramp": ((RAMP * 255).astype(np.uint8), DataError, ("80 values", "mask >=")),
    "probabilities": (RAMP, DataError, ("80 values from 0 to 1", "mask >= 0.5")),
    "NaN": (np.where(FLAGS, np.nan, 0.0), DataError, ("NaN",)),
    "NaN beside 0 and 1": (np.where(RAMP > 0.9, np.nan, FLAGS), DataError, ("NaN",)),
    "empty": (0 * GRAY, DataError, ("no foreground", "white (255)")),
    "empty bool": (np.zeros((60, 80), bool), DataError, ("no foreground",)),
    "float colours": (np.zeros((60, 80, 3)), UsageError, ("pass [H, W]",)),
    "stack of masks": (torch.zeros(4, 60, 80), UsageError, ("pass [H, W]",)),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_masks_that_are_none(name: str) -> None:
    """Unexpected values are listed with the way to select one; nothing is guessed."""
    mask, kind, parts = BAD_MASKS[name]
    with pytest.raises(kind) as error:
        read_mask(mask, (60, 80), "mask 2")
    one_line(error, "mask 2", *parts)


SHAPES = ("disc", "dots", "star", "whole")


def drawn(shape: str, side: int, factor: int = 1) -> Image.Image:
    """A black and white picture of `side * factor` pixels; the shape's size is that of `side`."""
    image = Image.new("L", (side * factor, side * factor))
    draw, full = ImageDraw.Draw(image), side * factor
    if shape == "disc":
        draw.ellipse([full * part for part in (0.3, 0.2, 0.8, 0.7)], fill=255)
    if shape == "whole":
        draw.rectangle((2, 2, full - 3, full - 3), fill=255)
    if shape == "dots":  # 5 x 5 pixels each
        for k in range(9):
            x, y = (int(full * (0.15 + 0.3 * part)) for part in divmod(k, 3))
            draw.rectangle((x, y, x + 5 * factor - 1, y + 5 * factor - 1), fill=255)
    if shape == "star":
        angles = np.arange(18) * math.pi / 9
        radii = full * np.tile([0.45, 0.15], 9)
        x, y = full / 2 + radii * np.cos(angles), full / 2 + radii * np.sin(angles)
        draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    return image


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [48, 100, 224, 640])
def test_soft_edges_of_every_length(shape: str, side: int) -> None:
    """FSS-1000's own rule, one half of white, for what a person calls a mask: antialiased, blurred
    by a pixel or two, compressed, enlarged; with stray pixels. Small images and thin shapes have
    much edge for their area, and are masks all the same."""
    plain = drawn(shape, side)
    large = [plain.resize((side * k, side * k), Image.Resampling.BILINEAR) for k in (2, 4, 8)]
    stray, dark = np.array(plain), np.array(plain)
    places = np.random.default_rng(side).integers(0, side, (2, 12))
    stray[places[0], places[1]] = np.arange(20, 260, 20)
    dark[places[0], places[1]] = np.arange(1, 13)
    soft = [
        *(drawn(shape, side, k).resize((side, side), Image.Resampling.BOX) for k in (2, 3, 8)),
        plain.filter(ImageFilter.GaussianBlur(1)),
        *(through_jpeg(plain, quality) for quality in (50, 75, 90, 95)),
        *(image for image in large if image.width <= 900),
        Image.fromarray(stray),
        Image.fromarray(dark),
    ]
    for number, mask in enumerate(soft):
        expected = np.asarray(mask) >= 128
        assert np.array_equal(read_mask(mask), expected), number
        assert np.array_equal(read_mask(np.asarray(mask) / np.float32(255)), expected), number
        assert np.array_equal(read_mask(np.asarray(mask).astype(np.uint16) * 257), expected), number


def test_soft_edges_of_more_than_two_per_cent() -> None:
    """The two that FSS-1000 had refused: 2.08 and 2.26 % of 224 x 224 pixels are gray."""
    for radius, share in ((1.0, 0.0208), (1.1, 0.0226)):
        mask = drawn("disc", 224).filter(ImageFilter.GaussianBlur(radius))
        values = np.array(mask)
        gray = (values > 32) & (values < 223)
        missing = round(share * values.size) - int(gray.sum())
        # Soften more of the outline until the share is met.
        ring = np.flatnonzero((values > 4) & (values <= 32))[: max(missing, 0)]
        values.ravel()[ring] += 36
        assert abs(((values > 32) & (values < 223)).mean() - share) < 1e-3
        assert np.array_equal(read_mask(values), values >= 128)


def trimap(shape: str, side: int, width: int) -> Array:
    """0, 255, and 128 in a band around the outline."""
    flags = np.asarray(drawn(shape, side)) > 0
    outer = ndimage.binary_dilation(flags, iterations=(width + 1) // 2)
    inner = ndimage.binary_erosion(flags, iterations=width // 2)
    return np.where(inner, 255, np.where(outer, 128, 0)).astype(np.uint8)


def labelled(side: int, *values: int) -> Array:
    """uint8 [side, side]: rectangles side by side on 0, one for each value."""
    result = np.zeros((side, side), np.uint8)
    for place, value in enumerate(values):
        x = side // 8 + place * side // 5
        result[side // 4 : side // 2, x : x + side // 6] = value
    return result


def no_masks(side: int) -> dict[str, Array]:
    y, x = np.mgrid[:side, :side]
    radius = np.hypot(y - side / 2, x - side / 2)
    bordered = labelled(side, 7)
    inside = bordered > 0
    border = ndimage.binary_dilation(inside, iterations=2)
    bordered[border & ~ndimage.binary_erosion(inside, iterations=2)] = 255
    rng = np.random.default_rng(side)
    return {
        "VOC with a border": bordered,
        "labels 1, 2": labelled(side, 1, 2),
        "labels 100, 200": labelled(side, 100, 200),
        "labels 60, 128, 255": labelled(side, 60, 128, 255),
        "labels 12, 40, 255": labelled(side, 12, 40, 255),
        "a ramp": (x * (255 / side)).astype(np.uint8),
        "a depth map": (255 * np.clip(1 - radius / (0.5 * side), 0, 1)).astype(np.uint8),
        "probabilities": (255 / (1 + np.exp((radius - 0.3 * side) / (0.05 * side)))).astype(
            np.uint8
        ),
        "noise": rng.integers(0, 256, (side, side), dtype=np.uint8),
    }


@pytest.mark.parametrize("side", [100, 224, 640])
def test_gray_that_is_no_edge(side: int) -> None:
    """Trimaps, labels, depth, probabilities, noise: at any size, however small a share is gray."""
    for shape in SHAPES[:3]:
        for width in (5, 8, 15):
            values = trimap(shape, side, width)
            if (values == 255).any():  # otherwise they are two values
                with pytest.raises(DataError, match=r"mask == 255|wide"):
                    read_mask(values)
    wide = np.zeros((4 * side, 4 * side), np.uint8)
    wide[:side, :side] = trimap("disc", side, 6)
    assert ((wide > 32) & (wide < 223)).mean() < 0.02
    for values in (wide, np.asarray(through_jpeg(Image.fromarray(wide), 95))):
        with pytest.raises(DataError):
            read_mask(values)
    for name, values in no_masks(side).items():
        with pytest.raises(DataError):
            read_mask(values)
            raise AssertionError(name)


@pytest.mark.parametrize("file", ["astronaut.jpg", "coins.png"])
def test_a_photograph_in_place_of_its_mask(file: str) -> None:
    """As it is, brighter, and with more contrast, in gray."""
    gray = Image.open(PHOTOGRAPHS / file).convert("L")
    for changed in (gray, gray.point(lambda v: min(2 * v, 255)), ImageOps.autocontrast(gray, 5)):
        with pytest.raises(DataError, match="black and white but for edges"):
            read_mask(changed)


WIDE_LABELS = labels(0, 3, 255, 0).astype(np.uint16)
WIDE_LABELS[WIDE_LABELS == 255] = 65535
HINTS: dict[str, tuple[Array, str]] = {
    "an ignored border": (labels(0, 12, 255, 0), "`mask == 12`; 255 usually marks"),
    "two objects and a border": (labels(0, 1, 15, 255), "`mask == 15`; 255 usually marks"),
    "16 bits": (WIDE_LABELS, "`mask == 3`; 65535 usually marks"),
    "no background": (labels(12, 255), "`mask == 12`; 255 usually marks"),
    "below zero": (labels(0, 1, 0, 1).astype(np.int64) - 1, "`mask != 0`"),
    "ignored below zero": (labels(0, 1, 2, 0).astype(np.int64) - 1, "`mask == 1`; -1 usually"),
    "a trimap": (labels(0, 128, 255, 0), "`mask == 255`"),
    "labels": (labels(0, 1, 2, 3), "values 0, 1, 2, 3: a mask has two, 0 and one other; select"),
    "many": (labels(*range(40)), "or `mask == value` for one label"),
}


@pytest.mark.parametrize("name", HINTS)
def test_the_hint_names_an_object(name: str) -> None:
    """Never the background, never what is ignored; and what it says works."""
    mask, part = HINTS[name]
    with pytest.raises(DataError) as error:
        read_mask(mask)
    one_line(error, part)
    expression = str(error.value).rpartition("example `")[2].partition("`")[0]
    if "write `" in str(error.value):
        expression = str(error.value).rpartition("write `")[2].partition("`")[0]
    if part.startswith("`"):
        assert read_mask(eval(expression, {"mask": mask})).any()


def test_selecting_a_label_as_the_message_says() -> None:
    """The remedy in the message works: `mask == value` is a mask."""
    mask = labels(0, 1, 15, 255)
    assert np.array_equal(read_mask(mask == 15), np.repeat([0, 0, 1, 0], 20)[None].repeat(60, 0))


def test_empty_masks_where_they_are_an_answer() -> None:
    """A frame that the object has left has an empty mask, if the caller allows it."""
    assert not read_mask(0 * GRAY, (60, 80), allow_empty=True).any()


def test_full_masks() -> None:
    """An object that fills the image is no error, whatever its one value is."""
    for full in (np.ones((6, 8), bool), np.full((6, 8), 255, np.uint8), np.full((6, 8), 3)):
        assert read_mask(full).all()
    assert read_mask(Image.new("RGB", (8, 6), (255, 0, 0))).all()


def test_mask_of_another_size(tmp_path: Path) -> None:
    """Both sizes are named, as width × height; a usage error."""
    file = saved(Image.fromarray(GRAY), tmp_path / "mask.png")
    with pytest.raises(UsageError) as error:
        read_mask(file, (50, 70))
    one_line(error, str(file), "80 × 60 pixels", "70 × 50", "full size")


def test_masks_of_turned_photographs(tmp_path: Path) -> None:
    """Painted as displayed, a mask fits; a copy of the photograph's EXIF turns it with it; one
    painted on the stored pixels is refused with the reason."""
    stored = disc(30, 40)
    upright = np.rot90(stored, -1)
    exif = with_orientation(6)
    photo = read_image(saved(Image.fromarray(picture(30, 40)), tmp_path / "p.jpg", exif=exif))
    size = (photo.shape[0], photo.shape[1])
    displayed = saved(Image.fromarray(np.ascontiguousarray(upright)), tmp_path / "displayed.png")
    assert np.array_equal(read_mask(displayed, size), upright)
    copied = saved(Image.fromarray(stored), tmp_path / "copied.png", exif=exif)
    assert np.array_equal(read_mask(copied, size), upright)
    raw = saved(Image.fromarray(stored), tmp_path / "raw.png")
    with pytest.raises(UsageError) as error:
        read_mask(raw, size)
    one_line(error, "raw.png", "one of them is turned")


def turned_pair(folder: Path, orientation: int, side: tuple[int, int]) -> tuple[Path, Path, Array]:
    """A photograph with an EXIF orientation, a mask painted on its stored pixels, and that mask."""
    flags = disc(*side)
    photo = saved(
        Image.fromarray(picture(*side)), folder / "p.jpg", exif=with_orientation(orientation)
    )
    return photo, saved(Image.fromarray(flags), folder / "m.png"), flags


@pytest.mark.parametrize(
    "orientation, side",
    [(2, (30, 40)), (3, (30, 40)), (4, (30, 40))]
    + [(orientation, (32, 32)) for orientation in range(2, 9)],
)
def test_a_mask_that_may_be_turned_is_warned_of(
    tmp_path: Path, orientation: int, side: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Where turning keeps the size, nothing decides which way up a mask is: said once a folder,
    with the three ways to say it, each of which is silent and right."""
    photo, mask, flags = turned_pair(tmp_path, orientation, side)
    pixels = read_image(photo)
    size = (pixels.shape[0], pixels.shape[1])
    upright = UPRIGHT[orientation](flags)
    for _ in range(2):
        assert np.array_equal(read_mask(mask, size, image=photo), flags)
    assert len(caplog.records) == 1
    for part in ("m.png", f"orientation of its photograph is {orientation}", "as displayed"):
        assert part in caplog.text
    caplog.clear()
    # The mask's own orientation decides, 1 included; and arrays are what they are.
    other = Image.fromarray(flags)
    own = saved(other, tmp_path / "own.png", exif=with_orientation(orientation))
    assert np.array_equal(read_mask(own, size, image=photo), upright)
    plain = saved(other, tmp_path / "plain.tif", exif=with_orientation(1))
    assert np.array_equal(read_mask(plain, size, image=photo), flags)
    assert np.array_equal(read_mask(flags, size, image=pixels), flags)
    assert not caplog.records
    # A mask without a file has the same question.
    images._warned.clear()
    with Image.open(photo) as opened:
        assert np.array_equal(read_mask(flags, size, image=opened), flags)
    assert "which keeps the size" in caplog.text


def test_masks_that_are_not_in_doubt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Upright photographs, damaged EXIF data, and masks that turning leaves as they are."""
    photo, mask, flags = turned_pair(tmp_path, 1, (30, 40))
    assert np.array_equal(read_mask(mask, (30, 40), image=photo), flags)
    photo, mask, flags = turned_pair(tmp_path, 6, (30, 40))
    assert read_mask(UPRIGHT[6](flags).copy(), (40, 30), image=photo).any()
    with pytest.raises(UsageError, match="write the image's EXIF orientation into the mask's file"):
        read_mask(mask, (40, 30), image=photo)
    photo, mask, _ = turned_pair(tmp_path, 3, (30, 40))
    even = np.zeros((30, 40), bool)
    even[10:20, 10:30] = True
    assert np.array_equal(read_mask(even, (30, 40), image=photo), even)
    (tmp_path / "bad.png").write_bytes(
        png(40, 30, 8, 2, [bytes(120)] * 30, (b"eXIf", b"no TIFF header"))
    )
    assert read_mask(mask, (30, 40), image=tmp_path / "bad.png").any()
    assert not caplog.records


@pytest.mark.parametrize("size", [(14, 28), (56, 56), (97, 131), (200, 150), (60, 80)])
def test_to_tensor_resamples_like_pillow(size: tuple[int, int]) -> None:
    """Bilinear with antialiasing as Pillow defines it, without its rounding to 8 bits."""
    pixels = picture(60, 80)
    result = images.to_tensor(pixels, size)
    assert result.dtype == torch.float32
    assert result.shape == (3, *size)
    for channel in range(3):
        plane = Image.fromarray(pixels[:, :, channel].astype(np.float32))
        expected = np.array(plane.resize(size[::-1], Image.Resampling.BILINEAR)) / 255
        np.testing.assert_allclose(result[channel].numpy(), expected, atol=2e-6)


def test_to_tensor_takes_read_only_arrays() -> None:
    """A read-only array is no reason for PyTorch's warning, and is left alone."""
    pixels = picture(6, 8)
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = images.to_tensor(pixels, (6, 8))
    assert np.array_equal(np.rint(result.permute(1, 2, 0).numpy() * 255), pixels)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (13, 3), (25, 31), (12, 16), (1, 1)])
def test_mask_to_tensor_is_the_covered_share(size: tuple[int, int]) -> None:
    """Exact for any ratio: both grids are refined to a common one, and counted there."""
    mask = disc(12, 16)
    rows, columns = math.lcm(12, size[0]), math.lcm(16, size[1])
    fine = np.kron(mask, np.ones((rows // 12, columns // 16)))
    expected = fine.reshape(size[0], rows // size[0], size[1], columns // size[1]).mean((1, 3))
    result = images.mask_to_tensor(mask, size)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)
    assert result.min() >= 0 and result.max() <= 1


def test_resize_back_keeps_a_slope() -> None:
    """Pixel centres are at half integers: a linear map stays that line at every size."""
    centers = (torch.arange(20) + 0.5) / 20
    slope = centers[None, :, None].expand(2, 20, 10).contiguous()
    for height in (20, 33, 400):
        result = images.resize_back(slope, (height, 50))
        assert result.shape == (2, height, 50)
        expected = (torch.arange(height) + 0.5) / height
        inner = (expected > 0.2) & (expected < 0.8)
        torch.testing.assert_close(result[:, inner], expected[inner, None].expand(2, -1, 50))


def test_resize_back_to_a_smaller_image_averages() -> None:
    """Every input pixel counts in an image smaller than the map: a fine grid becomes gray."""
    grid = (torch.arange(64) % 4 == 0).float().expand(1, 64, 64)
    inner = images.resize_back(grid, (8, 8))[:, :, 1:-1]  # at the border the filter is cut off
    torch.testing.assert_close(inner, torch.full((1, 8, 6), 0.25))


def test_resize_back_types_and_gradients() -> None:
    """Half precision comes back as float32, double stays, and training can go through."""
    assert images.resize_back(torch.zeros(1, 4, 4, dtype=torch.bfloat16), (9, 9)).dtype == (
        torch.float32
    )
    logits = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: images.resize_back(x, (7, 3)), logits)


@pytest.mark.parametrize("size", [(37, 53), (480, 640), (3000, 4000)])
def test_there_and_back(size: tuple[int, int]) -> None:
    """A mask that goes to the model's grid and back lies where it was."""
    mask = disc(*size)
    there = images.mask_to_tensor(mask, (56, 56))
    back = images.resize_back(there[None], size)[0].numpy() >= 0.5
    assert (mask & back).sum() / (mask | back).sum() > 0.95


def test_resizing_refuses_what_it_cannot_mean() -> None:
    """Wrong types, layouts and sizes are usage errors with the argument's own words."""
    pixels, mask = picture(6, 8), disc(6, 8)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: images.to_tensor(pixels.transpose(2, 0, 1), (4, 4)), "[3, 6, 8]"),
        (lambda: images.to_tensor(pixels / 255, (4, 4)), "float64"),
        (lambda: images.to_tensor(pixels, (0, 4)), "at least 1"),
        (lambda: images.mask_to_tensor(pixels[:, :, 0], (4, 4)), "uint8"),
        (lambda: images.mask_to_tensor(mask, (4, -1)), "at least 1"),
        (lambda: images.resize_back(torch.zeros(4, 4), (8, 8)), "[4, 4]"),
        (lambda: images.resize_back(torch.zeros(1, 4, 4).long(), (8, 8)), "int64"),
    ]
    for call, part in calls:
        with pytest.raises(UsageError) as error:
            call()
        one_line(error, part)


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    "array, modes, stored",
    [
        (FLAGS, {"L"}, GRAY),
        (GRAY, {"L"}, GRAY),
        (GRAY.astype(np.uint16) * 200, {"I;16", "I"}, GRAY.astype(np.uint16) * 200),
        (picture(9, 7), {"RGB"}, picture(9, 7)),
        (picture(9, 7)[:, ::-1], {"RGB"}, picture(9, 7)[:, ::-1]),
        (np.dstack([RED, GRAY]), {"RGBA"}, np.dstack([RED, GRAY])),
    ],
)
def test_write_png(tmp_path: Path, array: Array, modes: set[str], stored: Array) -> None:
    """What is written is what Pillow reads; a bool mask is 0 and 255, and nothing else is left."""
    images.write_png(tmp_path / "out.png", array)
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG"
        assert image.mode in modes
        assert np.array_equal(np.array(image), stored)
    assert entries(tmp_path) == ["out.png"]


def test_write_png_takes_an_overlay(tmp_path: Path) -> None:
    """A PIL image is written as it is, under any suffix as PNG."""
    drawn = overlay.overlay(picture(60, 80), FLAGS)
    images.write_png(str(tmp_path / "overlay"), drawn)
    with Image.open(tmp_path / "overlay") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.array(image), np.array(drawn))


@pytest.mark.parametrize(
    "array", [FLAGS.astype(float), picture(4, 5)[:, :, :2], np.zeros((0, 4), np.uint8), RED > 0]
)
def test_write_png_refuses_other_arrays(tmp_path: Path, array: Array) -> None:
    """Types that PNG has no meaning for are named before any file appears."""
    with pytest.raises(UsageError, match=r"is no PNG image"):
        images.write_png(tmp_path / "out.png", array)
    assert entries(tmp_path) == []


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "name, mode, most",
    [("a.jpg", "RGB", 9), ("a.png", "RGBA", 9), ("g.png", "L", 6), ("mask.png", "RGB", 17)],
)
def test_memory_that_a_large_file_takes(tmp_path: Path, name: str, mode: str, most: int) -> None:
    """Bytes a pixel at 36 megapixels, the result included; copies of the whole took twice that."""
    image = Image.new(mode, (6000, 6000))
    image.paste("white", (1000, 1000, 4000, 5000))
    file = saved(image, tmp_path / name, compress_level=1)
    run = run_python(
        "import sys, resource\n"
        "from fsdino.images import read_image, read_mask\n"
        "read = read_mask if 'mask' in sys.argv[1].split('/')[-1] else read_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read(sys.argv[2]); before = peak(); read(sys.argv[1]); print((peak() - before) * 1024)",
        str(file),
        str(PHOTOGRAPHS / "coins_mask.png"),
    )
    assert int(run.stdout) / 36e6 < most, run.stderr


def test_importing_images_does_not_import_torch() -> None:
    """The command line's help reads this module's names; torch alone would take seconds."""
    run = run_python("import sys, fsdino.images; print('torch' in sys.modules)")
    assert run.stdout == "False\n", run.stderr


def test_paths_and_arrays_without_torch() -> None:
    """Reading files and arrays needs no torch either."""
    run = run_python(
        "import sys\n"
        "from fsdino.images import read_image, read_mask\n"
        "print(read_image(sys.argv[1]).shape, read_mask(sys.argv[2]).sum())\n"
        "print('torch' in sys.modules)",
        str(PHOTOGRAPHS / "coins.png"),
        str(PHOTOGRAPHS / "coins_mask.png"),
    )
    with Image.open(PHOTOGRAPHS / "coins_mask.png") as mask:
        foreground = mask.histogram()[255]
    assert run.stdout == f"(303, 384, 3) {foreground}\nFalse\n", run.stderr


def test_photographs_read_as_they_are() -> None:
    """Every photograph has a mask of its size, a licence in the README, and is small."""
    readme = (PHOTOGRAPHS / "README.md").read_text(encoding="utf-8")
    photographs = [
        file for file in image_files.list_images(PHOTOGRAPHS) if not file.stem.endswith("_mask")
    ]
    assert len(photographs) >= 4
    for file in photographs:
        pixels = read_image(file)
        mask = read_mask(file.with_name(f"{file.stem}_mask.png"), pixels.shape[:2])
        assert 0.01 < mask.mean() < 0.5
        assert f"`{file.name}`" in readme and f"`{file.stem}_mask.png`" in readme
        assert file.stat().st_size < 150_000


def test_the_coins_are_all_there() -> None:
    """24 coins, told apart by the mask, each brighter than the cloth around it."""
    pixels = read_image(PHOTOGRAPHS / "coins.png")[:, :, 0]
    mask = read_mask(PHOTOGRAPHS / "coins_mask.png", (303, 384))
    coins, count = ndimage.label(mask)
    assert count == 24
    for coin in range(1, 25):
        inside = coins == coin
        ring = ndimage.binary_dilation(inside, iterations=6) & ~ndimage.binary_dilation(
            mask, iterations=2
        )
        assert pixels[inside].mean() > pixels[ring].mean() + 20


def test_pairs_of_photographs() -> None:
    """Each pair has a support and a query that show the object, and shares no pixel between them
    unless it says that the query is mirrored."""
    pairs = photo_pairs.load_pairs()
    assert len({pair.name for pair in pairs}) == len(pairs) >= 2
    for pair in pairs:
        for part in (*pair.supports, pair.query):
            assert part.image.shape[:2] == part.mask.shape
            assert 0.01 < part.mask.mean() < 0.5
    for entry in json.loads((PHOTOGRAPHS / "pairs.json").read_text())["pairs"]:
        query = entry["query"]
        for support in entry["supports"]:
            if support["image"] == query["image"] and not query.get("mirror", False):
                left, top, right, bottom = support["box"]
                x0, y0, x1, y1 = query["box"]
                assert right <= x0 or x1 <= left or bottom <= y0 or y1 <= top


def test_held_out_photographs() -> None:
    """Each is listed with its licence and masks; masks are 0 and 255, of its size, and show
    objects of 0.3 to 70 % of the picture; none is one that settings may be chosen by."""
    folder = photo_pairs.HELD_OUT
    readme = (folder / "README.md").read_text(encoding="utf-8")
    shows = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))["shows"]
    photographs = sorted(folder.glob("*.jpg"))
    assert [file.name for file in photographs] == sorted(shows) and len(photographs) >= 10
    chosen_by = {file.read_bytes() for file in PHOTOGRAPHS.iterdir() if file.is_file()}
    masks = set(folder.glob("*.png"))
    for file in photographs:
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{file.name}` |"))
        assert re.search(r"CC0|public[ -]domain|as for `coast.jpg`", row, re.IGNORECASE)
        assert file.read_bytes() not in chosen_by
        pixels = read_image(file)
        assert max(pixels.shape[:2]) <= 640
        for mask_file in sorted(masks):
            if mask_file.stem.rpartition("_")[0] != file.stem:
                continue
            masks.remove(mask_file)
            assert f"`{mask_file.name}`" in readme
            assert mask_file.stem.rpartition("_")[2] in shows[file.name]
            with Image.open(mask_file) as mask:
                assert mask.mode == "L" and mask.size == pixels.shape[1::-1]
                counts = np.array(mask.histogram())
            assert counts[1:255].sum() == 0
            assert 0.003 < counts[255] / counts.sum() < 0.7
    assert not masks
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_500_000


def test_pairs_of_held_out_photographs() -> None:
    """At least eight pairs of six classes, each of two photographs that show the class; every
    class has photographs without it, to ask for what is not there."""
    folder = photo_pairs.HELD_OUT
    content = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    entries, shows = content["pairs"], content["shows"]
    pairs = photo_pairs.load_pairs(folder)
    assert len({pair.name for pair in pairs}) == len(pairs) == len(entries) >= 8
    classes = {entry["class"] for entry in entries}
    assert len(classes) >= 6
    for entry, pair in zip(entries, pairs, strict=True):
        parts = [*entry["supports"], entry["query"]]
        assert len({part["image"] for part in parts}) == len(parts)
        for part, photograph in zip(parts, [*pair.supports, pair.query], strict=True):
            assert part["mask"] == f"{Path(part['image']).stem}_{entry['class']}.png"
            assert entry["class"] in shows[part["image"]]
            assert photograph.image.shape[:2] == photograph.mask.shape
    for name in classes:
        assert sum(name not in shown for shown in shows.values()) >= 10


def test_photographs_survive_their_way_in_and_out(tmp_path: Path) -> None:
    """Read, written as PNG and read again, a photograph and its mask are the same."""
    pixels = read_image(PHOTOGRAPHS / "astronaut.jpg")
    mask = read_mask(PHOTOGRAPHS / "astronaut_mask.png")
    images.write_png(tmp_path / "image.png", pixels)
    images.write_png(tmp_path / "mask.png", mask)
    assert np.array_equal(read_image(tmp_path / "image.png"), pixels)
    assert np.array_equal(read_mask(tmp_path / "mask.png", (512, 512)), mask)
    assert io.BytesIO((tmp_path / "mask.png").read_bytes()).read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 4).to_sparse(),
        torch.zeros(3, 4, 4, device="meta"),
        torch.zeros(4, 4, dtype=torch.complex64),
        torch.zeros(4, 4, dtype=torch.complex64).conj(),
    ],
    ids=["sparse", "meta", "complex", "conjugate"],
)
def test_tensors_that_are_no_images_are_named(tensor: torch.Tensor) -> None:
    """Such tensors have no array, and PyTorch's words for it name no argument."""
    for read, name in ((read_image, "query"), (read_mask, "support 1")):
        with pytest.raises(UsageError, match=rf"^{name}: a tensor of torch\..* pass a dense one"):
            read(tensor, name=name)


def test_tensors_of_kinds_that_numpy_lacks() -> None:
    """Their values are 0 and 1 like any others."""
    half = torch.tensor([[0.0, 1.0]])
    for tensor in (half.to(torch.float8_e4m3fn), half.bfloat16(), torch._neg_view(-half)):
        assert read_image(tensor)[..., 0].tolist() == [[0, 255]]
        assert read_mask(tensor).tolist() == [[False, True]]
