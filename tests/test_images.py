"""Pixels in and out: every format that a picture or a mask comes in, and files written whole."""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsdino import image_files, images, overlay, resizing
from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.images import read_image
from fsdino.masks import read_mask
from pictures import (
    FLAGS,
    GRAY,
    PHOTOGRAPHS,
    RED,
    UPRIGHT,
    Array,
    disc,
    one_line,
    picture,
    png,
    run_python,
    saved,
    with_orientation,
)


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_data_that_cannot_be_written_again(tmp_path: Path, suffix: str) -> None:
    """Pillow writes EXIF data again when it turns an image; reading one needs no such thing."""
    entries = struct.pack("<HHHII", 2, 274, 3, 1, 6)  # orientation 6
    entries += struct.pack("<HHIII", 315, 10, 1, 38, 0)  # an artist that is a fraction
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries + struct.pack("<ii", 1, 2)
    pixels = picture(40, 60)
    file = saved(Image.fromarray(pixels), tmp_path / f"a.{suffix}", exif=exif, quality=95)
    with Image.open(file) as image:
        upright = read_image(image)
        assert "exif" in image.info
        assert np.array_equal(upright, UPRIGHT[6](np.array(image.convert("RGB"))))
    assert np.array_equal(read_image(file), upright)


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
    assert resizing.to_tensor(pixels, (28, 14)).shape == (3, 28, 14)


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
    "bytes": (b"photo.jpg", DataError, "no image in a format that can be read"),
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
    (tmp_path / "video.jpg").write_bytes(b"\0\0\0\x20ftypisom" + bytes(500))
    remedies = {
        "archive": "an archive; extract the images in it",
        "empty": "empty; copy or export it again",
        "video": "a video; export a frame of it, or see `fsdino video`",
    }
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError) as error:
            read_image(file)
        one_line(error, file.name, remedies.get(file.stem, "; convert it to JPEG or PNG"))


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
    with pytest.raises(UsageError, match=r"cannot be a PNG image"):
        images.write_png(tmp_path / "out.png", array)
    assert entries(tmp_path) == []


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
        "from fsdino.images import read_image\n"
        "from fsdino.masks import read_mask\n"
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
        "from fsdino.images import read_image\n"
        "from fsdino.masks import read_mask\n"
        "print(read_image(sys.argv[1]).shape, read_mask(sys.argv[2]).sum())\n"
        "print('torch' in sys.modules)",
        str(PHOTOGRAPHS / "coins.png"),
        str(PHOTOGRAPHS / "coins_mask.png"),
    )
    with Image.open(PHOTOGRAPHS / "coins_mask.png") as mask:
        foreground = mask.histogram()[255]
    assert run.stdout == f"(303, 384, 3) {foreground}\nFalse\n", run.stderr


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


def test_bytes_and_open_files() -> None:
    """As files are read, from where an open file stands."""
    content = io.BytesIO()
    Image.fromarray(picture(4, 5)).save(content, "PNG")
    assert np.array_equal(images.read_image(content.getvalue()), picture(4, 5))
    content.seek(0)
    assert np.array_equal(images.read_image(content), picture(4, 5))
    with pytest.raises(DataError, match="no image in a format that can be read"):
        images.read_image(content)  # read to its end
    with pytest.raises(UsageError, match="open as text"):
        images.read_image(io.StringIO("text"))
    content.close()
    with pytest.raises(UsageError, match="open it again"):
        images.read_image(content)
