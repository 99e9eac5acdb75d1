"""TIFF files whose samples Pillow does not read as what they are: signed, 32 bits, planes, floats.

Pillow loads these with bytes in the wrong order, inverted, as noise, or not at all, depending on
compression and byte order. Here the samples are read as the file declares them (TIFF 6.0; BigTIFF;
Adobe's technical note 3 for predictors). Pillow still decompresses: it is given a file of the same
strips or tiles that declares gray bytes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_COUNTS = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 284, 317, 322, 323, 324
_TILE_COUNTS, _EXTRA, _FORMAT, _SUBSAMPLING = 325, 338, 339, 530
_KIND, _DNG = 254, 50706
_NEEDED = frozenset(
    {
        _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS,
        _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_COUNTS, _PLANAR, _PREDICTOR, _TILE_WIDTH,
        _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _FORMAT, _SUBSAMPLING, _KIND, _DNG,
    }
)  # fmt: skip

_UNCOMPRESSED, _PACKBITS = 1, 32773
# None, LZW, deflate (two numbers), PackBits, LZMA, Zstandard: what leaves bytes as they were.
_LOSSLESS = frozenset({_UNCOMPRESSED, 5, 8, 32946, _PACKBITS, 34925, 50000})
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
# Codes of integer field types, as `struct` has them, by the file's number.
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}

_REMEDY = "save it as gray or RGB with 8 or 16 bits"
_PREVIEW = "its first image is a preview, as in cameras' raw files; export it as JPEG or TIFF"


class TiffError(Exception):
    """The file cannot be read as it declares itself; the message is what it is, and a remedy."""


@dataclass(frozen=True)
class Layout:
    """What a file says of its first image, as far as reading it needs.

    Attributes:
        tags: values by tag.
        dtype: of a sample, in the file's byte order.
        samples: numbers of a pixel.
    """

    tags: dict[int, tuple[int, ...]]
    dtype: np.dtype[Any]
    samples: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.tags[_HEIGHT][0], self.tags[_WIDTH][0]

    @property
    def allocated(self) -> tuple[int, int]:
        """(H, W) of the tiles side by side: what reading takes memory for."""
        height, width = self.size
        block = self.one(_TILE_WIDTH, width) if _TILE_OFFSETS in self.tags else width
        return height, -(-width // max(block, 1)) * block

    @property
    def orientation(self) -> int | None:
        """The number that EXIF uses, too; 1 for upright, None where nothing is said."""
        return self.tags.get(_ORIENTATION, (None,))[0]

    def one(self, tag: int, default: int) -> int:
        """A tag's first value."""
        return self.tags.get(tag, (default,))[0]


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with these four bytes or more is a TIFF file."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def layout(file: BinaryIO) -> Layout | None:
    """What has to be read here, by `read`; None for what Pillow reads right, or finds damaged.

    Raises:
        TiffError: neither can read it.
    """
    try:
        tags, order = _tags(file)
    except (struct.error, KeyError, IndexError):
        return None
    if _DNG in tags or tags.get(_KIND, (0,))[0] & 1:
        raise TiffError(_PREVIEW)
    if not all(
        tags.get(tag, (default,))[0] for tag, default in ((_WIDTH, 0), (_HEIGHT, 0), (_SAMPLES, 1))
    ):
        return None
    photometric = tags.get(_PHOTOMETRIC, (-1,))[0]
    samples = tags.get(_SAMPLES, (1,))[0]
    bits = set(tags.get(_BITS, (1,))[:samples])
    formats = set(tags.get(_FORMAT, (_UNSIGNED,))[:samples])
    planar = tags.get(_PLANAR, (1,))[0] == 2 and samples > 1
    file.seek(0)
    known = file.read(4) != b"MM\0+"  # Pillow takes big-endian BigTIFF for TIFF
    if known and _is_pillows(tags, photometric, bits, formats, planar):
        return None
    kinds = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}
    count, kind = min(bits), kinds.get(min(formats), "")
    extra = tags.get(_EXTRA, ())
    colors = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3}.get(photometric, -1)
    name = {"i": "signed ", "f": "float "}.get(kind, "")
    text = f"{count}-bit {name}samples"
    if len(bits) > 1 or len(formats) > 1 or not kind or count not in (8, 16, 32, 64)[kind == "f" :]:
        raise TiffError(f"its samples ({text}, or mixed ones) cannot be read; {_REMEDY}")
    if colors < 0 or samples > 4 or samples not in (colors, colors + 1) or 1 in extra:
        raise TiffError(
            f"{text}, {samples} a pixel, with photometric interpretation {photometric} and extra "
            f"samples {list(extra)} cannot be read; {_REMEDY}"
        )
    if photometric == _WHITE_IS_ZERO and (kind != "u" or count > 16 or samples > 1):
        raise TiffError(f"{text} in which 0 is white cannot be read; save it with 0 as black")
    if tags.get(_COMPRESSION, (1,))[0] not in _LOSSLESS or tags.get(_FILL_ORDER, (1,))[0] != 1:
        raise TiffError(
            f"{text} with compression {tags.get(_COMPRESSION, (1,))[0]} and fill order "
            f"{tags.get(_FILL_ORDER, (1,))[0]} cannot be read; save it with LZW or deflate"
        )
    return Layout(tags, np.dtype(f"{order}{kind}{count // 8}"), samples)


def _is_pillows(
    tags: dict[int, tuple[int, ...]],
    photometric: int,
    bits: set[int],
    formats: set[int],
    planar: bool,
) -> bool:
    """Whether Pillow reads it right, or says that it cannot."""
    compression = tags.get(_COMPRESSION, (1,))[0]
    if photometric == _YCBCR and compression == _UNCOMPRESSED:
        if tags.get(_SUBSAMPLING, (2, 2)) != (1, 1) or planar:
            raise TiffError("its colours are subsampled YCbCr, uncompressed; save it as RGB")
        return True
    if formats != {_UNSIGNED}:
        return False
    if compression == _PACKBITS and tags.get(_PREDICTOR, (1,))[0] != 1:
        return False  # it takes the differences for values
    if max(bits) <= 8:
        odd = photometric == _BLACK_IS_ZERO or _EXTRA in tags
        return not (planar and odd and bits == {8} and compression in _LOSSLESS)
    samples = tags.get(_SAMPLES, (1,))[0]
    common = (photometric, samples) in ((_BLACK_IS_ZERO, 1), (_RGB, 3), (_RGB, 4), (_CMYK, 4))
    return bits == {16} and common and not planar and compression in _LOSSLESS


def read(file: BinaryIO, layout: Layout) -> npt.NDArray[Any]:
    """The samples of a file's first image, [H, W] or [H, W, 2 to 4], as they are stored.

    Where 0 is white they are inverted; samples that mean neither colour nor alpha are left out.

    Raises:
        Exception: nearly any, where the file is damaged.
    """
    file.seek(0)
    content = file.read()
    planes = layout.samples if layout.one(_PLANAR, 1) == 2 else 1
    array = np.concatenate([_plane(content, layout, k, planes) for k in range(planes)], axis=2)
    if layout.one(_PHOTOMETRIC, -1) == _WHITE_IS_ZERO:
        array = np.iinfo(array.dtype).max - array
    if layout.samples in (2, 4) and 2 not in layout.tags.get(_EXTRA, (2,)):
        array = array[:, :, :-1]
    return array[:, :, 0] if array.shape[2] == 1 else array


def _plane(content: bytes, layout: Layout, plane: int, planes: int) -> npt.NDArray[Any]:
    """The samples [H, W, n] of one of several planes, or of all that are stored side by side."""
    tags, (height, width) = layout.tags, layout.size
    samples, item = layout.samples // planes, layout.dtype.itemsize
    pixel = samples * item  # bytes
    tiled = _TILE_OFFSETS in tags
    offsets, counts = (
        (tags[_TILE_OFFSETS], tags[_TILE_COUNTS])
        if tiled
        else (tags[_STRIP_OFFSETS], tags[_STRIP_COUNTS])
    )
    rows = tags[_TILE_HEIGHT][0] if tiled else min(layout.one(_STRIP_ROWS, height), height)
    block = tags[_TILE_WIDTH][0] if tiled else width
    across, down = -(-width // block), -(-height // rows)
    part = slice(plane * across * down, (plane + 1) * across * down)
    if len(offsets) != len(counts) or len(offsets[part]) != across * down:
        raise ValueError(f"{len(offsets)} parts where {planes * across * down} belong")
    bytes_across = across * block * pixel
    fields: dict[int, Sequence[int]] = {
        _WIDTH: [bytes_across], _HEIGHT: [height], _BITS: [8], _PHOTOMETRIC: [_BLACK_IS_ZERO],
        _COMPRESSION: [layout.one(_COMPRESSION, 1)], _SAMPLES: [1],
    }  # fmt: skip
    if tiled:
        fields |= {_TILE_WIDTH: [block * pixel], _TILE_HEIGHT: [rows]}
        fields |= {_TILE_OFFSETS: offsets[part], _TILE_COUNTS: counts[part]}
    else:
        fields |= {_STRIP_ROWS: [rows], _STRIP_OFFSETS: offsets[part], _STRIP_COUNTS: counts[part]}
    with TiffImagePlugin.TiffImageFile(io.BytesIO(_with_fields(content, fields))) as image:
        raw = np.asarray(image)
    blocks = raw.reshape(height, across, block * pixel)
    predictor = layout.one(_PREDICTOR, 1)
    if predictor not in (1, 2, 3) or (predictor == 3 and layout.dtype.kind != "f"):
        raise ValueError(f"predictor {predictor}")
    if predictor == 3:
        values = _undo_float_predictor(blocks, samples, layout.dtype)
    else:
        values = (
            np.ascontiguousarray(blocks).view(layout.dtype).reshape(height, across, block, samples)
        )
        values = values.astype(layout.dtype.newbyteorder("="))
        if predictor == 2:
            whole = values.view(f"u{item}")  # floats, too, are subtracted as integers
            values = np.cumsum(whole, axis=2, dtype=whole.dtype).view(values.dtype)
    return values.reshape(height, across * block, samples)[:, :width]


def _undo_float_predictor(
    blocks: npt.NDArray[np.uint8], samples: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Bytes are differences, and sorted by their place in the number, the highest first."""
    height, across, length = blocks.shape
    differences = blocks.reshape(height, across, length // samples, samples)
    whole = np.cumsum(differences, axis=2, dtype=np.uint8)
    by_place = whole.reshape(height, across, dtype.itemsize, -1)
    numbers = np.ascontiguousarray(by_place.swapaxes(2, 3)).view(dtype.newbyteorder(">"))
    return numbers.astype(dtype.newbyteorder("=")).reshape(height, across, -1, samples)


def _tags(file: BinaryIO) -> tuple[dict[int, tuple[int, ...]], str]:
    """The first directory's integer fields, and the byte order as "<" or ">"."""
    end = file.seek(0, io.SEEK_END)

    def unpack(place: int, code: str, count: int = 1) -> tuple[int, ...]:
        form = f"{order}{count}{code}"
        if place + struct.calcsize(form) > end:  # before memory is taken
            raise IndexError(place)
        file.seek(place)
        return struct.unpack(form, file.read(struct.calcsize(form)))

    file.seek(0)
    head = file.read(10)
    if head[8:] == b"CR":
        raise TiffError(_PREVIEW)
    order = "<" if head[:1] == b"I" else ">"
    big = b"+" in head
    number, offset, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    place = unpack(8 if big else 4, offset)[0]
    entries = unpack(place, number)[0]
    place += struct.calcsize(f"={number}")
    tags = {}
    for start in range(place, place + min(entries, 4096) * entry, entry):
        tag, kind = unpack(start, "H", 2)
        if tag in _NEEDED and kind in _INTEGERS:
            count = unpack(start + 4, offset)[0]
            inline = start + 4 + struct.calcsize(f"={offset}")
            code = _INTEGERS[kind]
            fits = count * struct.calcsize(f"={code}") <= struct.calcsize(f"={offset}")
            tags[tag] = unpack(inline if fits else unpack(inline, offset)[0], code, count)
    return {tag: values for tag, values in tags.items() if values}, order


def _with_fields(content: bytes, fields: dict[int, Sequence[int]]) -> bytes:
    """A file of the same bytes but for its header, with another directory at its end."""
    # All are written as 32-bit integers, which hold more than a file may have bytes.
    start = len(content) + len(content) % 2
    place = start + 2 + 12 * len(fields) + 4
    entries, arrays = b"", b""
    for tag, values in sorted(fields.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) == 1:
            entries += struct.pack("<HHI", tag, 4, 1) + packed
        else:
            entries += struct.pack("<HHII", tag, 4, len(values), place + len(arrays))
            arrays += packed
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    padding = bytes(len(content) % 2)
    return struct.pack("<2sHI", b"II", 42, start) + content[8:] + padding + directory + arrays
