"""TIFF files: every kind of sample is read as the file declares it, or refused by name.

The files are written here after the specification (TIFF 6.0; Adobe's technical note 3 for the
float predictor), and by no library.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fsdino import images
from fsdino.errors import DataError
from fsdino.image_files import scan_folder
from fsdino.images import read_image
from fsdino.masks import read_mask

Array = npt.NDArray[Any]

HEIGHT, WIDTH = 21, 34
GRAY = (np.add.outer(np.arange(HEIGHT) * 11, np.arange(WIDTH) * 5) % 256).astype(np.uint8)
RGB = np.stack([GRAY, 255 - GRAY, GRAY[::-1]], axis=2)
DISC = np.add.outer((np.arange(HEIGHT) - 9) ** 2, (np.arange(WIDTH) - 20) ** 2) < 50


def tiff(
    array: Array,
    *,
    order: str = "<",
    photometric: int | None = None,
    planar: bool = False,
    deflate: bool = False,
    packbits: bool = False,
    predictor: int = 1,
    rows: int = 8,
    tile: tuple[int, int] | None = None,
    big: bool = False,
    extra: list[tuple[int, list[int]]] | None = None,
) -> bytes:
    """A TIFF file of an array [H, W] or [H, W, n], in strips of `rows` or in tiles.

    Args:
        array: samples of any type.
        order: "<" or ">".
        photometric: 0 for white at 0, 1 for black at 0, 2 for RGB; None takes 1 or 2.
        planar: one plane after the other.
        deflate: compressed (8), otherwise not (1).
        packbits: in the form of PackBits (32773), literal bytes only.
        predictor: 1 for none, 2 for differences, 3 for differences of floats' bytes.
        big: BigTIFF.
        extra: further fields, or other values for these: (tag, values).
    """
    array = array if array.ndim == 3 else array[:, :, None]
    height, width, samples = array.shape
    array = array.astype(array.dtype.newbyteorder(order))
    parts = []
    for plane in np.split(array, samples, axis=2) if planar else [array]:
        for y in range(0, height, tile[0] if tile else rows):
            for x in range(0, width, tile[1] if tile else width):
                part = plane[
                    y : y + (tile[0] if tile else rows), x : x + (tile[1] if tile else width)
                ]
                if tile:
                    missing = [(0, tile[k] - part.shape[k]) for k in range(2)]
                    part = np.pad(part, [*missing, (0, 0)])
                content = predicted(part, predictor)
                if packbits:
                    pieces = [content[k : k + 128] for k in range(0, len(content), 128)]
                    content = b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)
                parts.append(zlib.compress(content) if deflate else content)
    head = 16 if big else 8
    offsets = [head + sum(map(len, parts[:k])) for k in range(len(parts))]
    kinds = {"u": 1, "i": 2, "f": 3, "c": 6}
    fields: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [array.dtype.itemsize * 8] * samples,
        259: [32773 if packbits else 8 if deflate else 1],
        262: [(2 if samples >= 3 else 1) if photometric is None else photometric],
        277: [samples],
        284: [2 if planar else 1],
        317: [predictor],
        339: [kinds[array.dtype.kind]] * samples,
        **(
            {322: [tile[1]], 323: [tile[0]], 324: offsets, 325: [len(p) for p in parts]}
            if tile
            else {273: offsets, 278: [rows], 279: [len(p) for p in parts]}
        ),
        **dict(extra or []),
    }
    start = offsets[-1] + len(parts[-1])
    entry, inline = ("HHQ", 8) if big else ("HHI", 4)
    size = struct.calcsize("=" + entry) + inline
    place = start + (8 if big else 2) + size * len(fields) + inline
    entries, arrays = b"", b""
    for tag, values in sorted(fields.items()):
        code, kind = ("I", 4) if tag in (273, 279, 324, 325) else ("H", 3)
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        entries += struct.pack(order + entry, tag, kind, len(values))
        if len(packed) <= inline:
            entries += packed.ljust(inline, b"\0")
        else:
            entries += struct.pack(order + "IQ"[big], place + len(arrays))
            arrays += packed
    directory = struct.pack(order + "HQ"[big], len(fields)) + entries + bytes(inline)
    letters = b"II" if order == "<" else b"MM"
    if big:
        header = letters + struct.pack(f"{order}HHHQ", 43, 8, 0, start)
    else:
        header = letters + struct.pack(f"{order}HI", 42, start)
    return header + b"".join(parts) + directory + arrays


def predicted(part: Array, predictor: int) -> bytes:
    """A strip's or tile's bytes, with differences to the pixel on the left where asked for."""
    height, _, samples = part.shape
    if predictor == 1:
        return part.tobytes()
    if predictor == 2:
        whole = part.view(f"{part.dtype.byteorder}u{part.dtype.itemsize}")
        differences = whole.copy()
        differences[:, 1:] -= whole[:, :-1]
        return differences.tobytes()
    swapped = part.astype(part.dtype.newbyteorder(">")).reshape(height, -1)
    numbers = swapped.view(np.uint8).reshape(height, -1, part.dtype.itemsize)
    flat = numbers.transpose(0, 2, 1).reshape(height, -1)
    result = flat.copy()
    result[:, samples:] -= flat[:, :-samples]
    return result.tobytes()


def written(path: Path, *arguments: Any, **options: Any) -> Path:
    path.write_bytes(tiff(*arguments, **options))
    return path


TYPES = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one strip": {"rows": HEIGHT},
    "deflate": {"deflate": True},
    "tiles": {"tile": (16, 16)},
    "tiles, differences": {"tile": (16, 16), "deflate": True, "predictor": 2},
    "differences": {"deflate": True, "predictor": 2},
    "BigTIFF": {"big": True},
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_read_like_its_array(tmp_path: Path, order: str, layout: str) -> None:
    """All integer types, small values and large ones, gray and in colours: as a picture."""
    for name in TYPES:
        dtype = np.dtype(name)
        pictures = [GRAY // 2 if name == "int8" else GRAY]
        if dtype.itemsize > 1:
            pictures.append(GRAY.astype(np.int64) * (100 if name == "int16" else 257))
        for values in pictures:
            array = values.astype(dtype)
            path = written(tmp_path / "a.tif", array, order=order, **LAYOUTS[layout])
            found, expected = read_image(path), read_image(array)
            assert np.array_equal(found, expected), name
            assert found.std() > 20 or name == "uint16", name
        color = (RGB // 2 if name == "int8" else RGB).astype(dtype)
        if name == "uint16":
            color *= 257
        for planar in (False, True):
            options = {**LAYOUTS[layout], "planar": planar, "order": order}
            path = written(tmp_path / "a.tif", color, **options)
            assert np.array_equal(read_image(path), RGB // 2 if name == "int8" else RGB), name


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_floats(tmp_path: Path, order: str, layout: str) -> None:
    """16, 32 and 64 bits in [0, 1], gray, and in colours as planes; others as in arrays."""
    options = LAYOUTS[layout]
    for name in ("float16", "float32", "float64"):
        gray, color = ((x / 255).astype(name) for x in (GRAY, RGB))
        path = written(tmp_path / "a.tif", gray, order=order, **options)
        assert np.array_equal(read_image(path), np.repeat(GRAY[:, :, None], 3, axis=2)), name
        for planar in (False, True):
            path = written(tmp_path / "a.tif", color, order=order, planar=planar, **options)
            assert np.array_equal(read_image(path), RGB), name
    wrong = written(tmp_path / "a.tif", GRAY.astype(np.float32), order=order, **options)
    with pytest.raises(DataError, match=r"float values from 0 to 255; scale them to \[0, 1\]"):
        read_image(wrong)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_float_predictor(tmp_path: Path, order: str, tile: tuple[int, int] | None) -> None:
    """Bytes of floats, sorted by place, and their differences."""
    pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    options: dict[str, Any] = {"order": order, "tile": tile, "deflate": True, "predictor": 3}
    for name in ("float16", "float32", "float64"):
        for planar in (False, True):
            color = (RGB / 255).astype(name)
            path = written(tmp_path / "a.tif", color, planar=planar, **options)
            assert np.array_equal(read_image(path), RGB), name


@pytest.mark.parametrize("compression", ["5 (LZW)", "32773 (PACKBITS)", "34925 (LZMA)", "50000"])
def test_what_needs_imagecodecs(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, other compressions than deflate and the float predictor are refused by name."""
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    number = int(compression.split(maxsplit=1)[0])
    wide = GRAY.astype(np.int32)
    path = written(tmp_path / "a.tif", wide, extra=[(259, [number])])
    with pytest.raises(DataError, match="with deflate") as error:
        read_image(path)
    assert f"compression {compression}" in str(error.value)
    assert "pip install imagecodecs" in str(error.value) and "\n" not in str(error.value)
    path = written(tmp_path / "a.tif", GRAY / 255, deflate=True, predictor=3)
    with pytest.raises(DataError, match=r"predictor 3 need another library \(pip install"):
        read_image(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_zero_as_white(tmp_path: Path, order: str, deflate: bool) -> None:
    """Photometric interpretation 0: the largest number is black."""
    for name, scale in (("uint8", 1), ("uint16", 257)):
        array = GRAY.astype(name) * np.dtype(name).type(scale)
        inverted = np.iinfo(name).max - array
        options: dict[str, Any] = {"photometric": 0, "order": order, "deflate": deflate}
        path = written(tmp_path / "a.tif", inverted, **options)
        assert np.array_equal(read_image(path)[:, :, 0], GRAY), name
        mask = np.where(DISC, 0, np.iinfo(name).max).astype(name)
        path = written(tmp_path / "m.tif", mask, **options)
        assert np.array_equal(read_mask(path), DISC), name


@pytest.mark.parametrize("name", [*TYPES, "float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_masks(tmp_path: Path, name: str, order: str, deflate: bool) -> None:
    """0 and 1, 0 and 100, in every type; a signed -1 is named and not taken for 255."""
    for value in (1, 100):
        array = (DISC * value).astype(name)
        path = written(tmp_path / "m.tif", array, order=order, deflate=deflate)
        assert np.array_equal(read_mask(path, (HEIGHT, WIDTH)), DISC)
    if name.startswith("int"):
        array = DISC.astype(name) - np.dtype(name).type(1)
        path = written(tmp_path / "m.tif", array, order=order, deflate=deflate)
        with pytest.raises(DataError, match="values -1, 0"):
            read_mask(path)


@pytest.mark.parametrize("name", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
def test_alpha(tmp_path: Path, name: str, planar: bool, deflate: bool) -> None:
    """A fourth or second sample is alpha over white if it says so, and otherwise left out."""
    scale = np.iinfo(name).max // 255
    alpha = np.where(DISC, 255, 0).astype(np.uint8)
    for colors in (RGB, GRAY[:, :, None]):
        array = np.dstack([colors, alpha]).astype(name) * np.dtype(name).type(scale)
        options: dict[str, Any] = {"planar": planar, "deflate": deflate}
        path = written(tmp_path / "a.tif", array, **options, extra=[(338, [2])])
        shown = np.broadcast_to(colors, RGB.shape)
        assert np.array_equal(read_image(path), np.where(DISC[:, :, None], shown, 255))
        assert np.array_equal(read_mask(path), DISC)
        path = written(tmp_path / "a.tif", array, **options, extra=[(338, [0])])
        assert np.array_equal(read_image(path), shown)


@pytest.mark.parametrize("name", ["uint8", "uint16"])
def test_differences_in_packbits(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow takes the differences for values: read by another library, or refused."""
    array = GRAY.astype(name) * np.dtype(name).type(257 if name == "uint16" else 1)
    path = written(tmp_path / "a.tif", array, packbits=True, predictor=2)
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"32773 \(PACKBITS\)"):
        patch.setitem(sys.modules, "imagecodecs", None)
        read_image(path)
    pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    assert np.array_equal(read_image(path)[:, :, 0], GRAY)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned(tmp_path: Path, orientation: int) -> None:
    """The orientation is that of 8-bit files, which Pillow turns."""
    turned = [(274, [orientation])]
    wide = written(tmp_path / "a.tif", GRAY.astype(np.int32), extra=turned)
    plain = written(tmp_path / "b.tif", GRAY, extra=turned)
    assert np.array_equal(read_image(wide), read_image(plain))


def test_the_first_of_several_pages(tmp_path: Path) -> None:
    """Later pages are not mixed in."""
    pages = [Image.fromarray(GRAY.astype(np.int32)), Image.fromarray(0 * GRAY.astype(np.int32))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(read_image(tmp_path / "a.tif")[:, :, 0], GRAY)


REFUSED: dict[str, tuple[bytes, str]] = {
    "12 bits": (tiff(GRAY, extra=[(258, [12])]), "12-bit samples"),
    "24 bits": (tiff(GRAY, extra=[(258, [24])]), "24-bit samples"),
    "complex": (tiff(GRAY.astype(np.complex64)), "64-bit samples"),
    "signed, 0 as white": (tiff(GRAY.astype(np.int16), photometric=0), "0 is white"),
    "floats, 0 as white": (tiff(GRAY.astype(np.float32), photometric=0), "0 is white"),
    "16-bit palette": (tiff(GRAY.astype(np.uint16), photometric=3), "interpretation 3"),
    "16-bit CMYK planes": (
        tiff(np.dstack([RGB, GRAY]).astype(np.uint16), photometric=5, planar=True),
        "interpretation 5",
    ),
    "premultiplied planes": (
        tiff(np.dstack([RGB, GRAY]), planar=True, extra=[(338, [1])]),
        r"extra samples \[1\]",
    ),
    "five samples": (tiff(np.dstack([RGB, RGB[:, :, :2]]).astype(np.uint16)), "5 a pixel"),
    "mixed bits": (tiff(RGB.astype(np.uint16), extra=[(258, [16, 16, 8])]), "mixed"),
    "no interpretation": (tiff(GRAY.astype(np.uint16), extra=[(262, [])]), "interpretation -1"),
    "bits the other way round": (tiff(GRAY.astype(np.int16), extra=[(266, [2])]), "fill order 2"),
    "JPEG of 16 bits": (tiff(GRAY.astype(np.uint16), extra=[(259, [7])]), "compression 7"),
    "subsampled": (tiff(RGB, photometric=6, extra=[(530, [2, 2])]), "subsampled"),
    "a raw file's preview": (tiff(RGB, extra=[(254, [1])]), "preview"),
    "DNG": (tiff(RGB, extra=[(50706, [1])]), "preview"),
    "large": (tiff(GRAY.astype(np.int64) << 40), "scale them"),
    "negative": (tiff(GRAY.astype(np.int32) - 5), "values from -5"),
    "negative, 8 bits": (tiff(GRAY.view(np.int8)), "values from -128"),
    "an unknown predictor": (tiff(GRAY.astype(np.int16), extra=[(317, [7])]), "predictor 7"),
    "very many extra samples": (
        tiff(GRAY.astype(np.int16), extra=[(338, [0] * 70000)]),
        "more than 65536 values",
    ),
    "very many, BigTIFF": (
        tiff(GRAY.astype(np.int16), order=">", big=True, extra=[(33628, [0] * 70000)]),
        "more than 65536 values",
    ),
    "volume": (tiff(GRAY.astype(np.int16), extra=[(32997, [3])]), "strips or tiles"),
    "one strip of three": (
        tiff(GRAY.astype(np.int16), extra=[(273, [8]), (279, [WIDTH * 16])]),
        "strips or tiles are missing",
    ),
    "an empty strip": (
        tiff(GRAY.astype(np.int16), rows=11, extra=[(279, [WIDTH * 22, 0])]),
        "strips or tiles are missing",
    ),
    "NaN": (tiff(np.where(DISC, np.nan, 0.5)), "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(tmp_path: Path, name: str) -> None:
    """What cannot be read right is one line that says what it is and what to do."""
    content, part = REFUSED[name]
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(DataError, match=part) as error:
        read_image(path)
    assert "a.tif" in str(error.value) and "\n" not in str(error.value)


def test_damage_is_one_error(tmp_path: Path) -> None:
    """Overwritten and missing bytes give pixels or one DataError, and no more memory than that."""
    rng = np.random.default_rng(0)
    path, outcomes = tmp_path / "a.tif", set()
    wide = RGB.astype(np.float32) / 255
    for options in ({"planar": True}, {"tile": (16, 16), "deflate": True, "predictor": 2}):
        content = tiff(wide, **options)  # type: ignore[arg-type]
        directory = struct.unpack("<I", content[4:8])[0]
        for _ in range(150):
            damaged = bytearray(content)
            for place in (rng.integers(4, 8), *rng.integers(directory, len(content), 3)):
                if rng.random() < 0.7:
                    damaged[place] = rng.integers(256)
            path.write_bytes(damaged[: rng.integers(8, 2 * len(content))])
            try:
                outcomes.add(read_image(path).dtype.name)
            except DataError as error:
                assert "\n" not in str(error)
                outcomes.add("DataError")
    assert outcomes == {"uint8", "DataError"}


def test_a_bomb(tmp_path: Path) -> None:
    """A size that nothing stands behind is refused before memory is taken."""
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(GRAY.astype(np.int32), extra=[(256, [60000]), (257, [60000])]))
    with pytest.raises(DataError, match="3600000000 pixels"):
        read_image(path)
    wide = [(322, [60000]), (323, [60000]), (257, [60000])]
    path.write_bytes(tiff(GRAY.astype(np.int32), tile=(16, 16), extra=wide))
    with pytest.raises(DataError, match="3600000000 pixels"):
        read_image(path)


@pytest.mark.parametrize("tile", [None, (32, 48)])
def test_a_compressed_bomb(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    """What a strip or tile inflates to beyond its pixels takes no memory."""
    wide, bomb = GRAY.astype(np.int32), zlib.compress(bytes(2**26))
    options: dict[str, Any] = {"rows": HEIGHT, "tile": tile, "deflate": True}
    end = len(tiff(wide, **options))
    part = [(324, [end]), (325, [len(bomb)])] if tile else [(273, [end]), (279, [len(bomb)])]
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(wide, **options, extra=part) + bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="cut off, or has more than"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_quiet_and_only_where_needed(tmp_path: Path) -> None:
    """Other files do not load the library for TIFF, and what it logs is not printed."""
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    extra = [(273, [8]), (279, [WIDTH * 16])]
    written(tmp_path / "a.tif", GRAY.astype(np.int16), extra=extra)
    code = f"""
import os, sys
from fsdino.errors import DataError
from fsdino.images import read_image
os.chdir({str(tmp_path)!r})
read_image("a.png")
assert "tifffile" not in sys.modules
try:
    read_image("a.tif")
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "strips or tiles" in done.stdout and done.stderr == ""


def test_values_as_they_are_stored(tmp_path: Path) -> None:
    """Benchmarks' labels in 32 bits come as numbers, and a folder knows such files by content."""
    path = written(tmp_path / "labels", (DISC * 7).astype(np.uint32), order=">")
    assert np.array_equal(np.asarray(images.decode_file(path)), DISC * 7)
    assert scan_folder(tmp_path).images == [path]
