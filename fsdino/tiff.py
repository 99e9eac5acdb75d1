"""TIFF files whose samples Pillow does not read as what they are: signed, 32 bits, planes, floats.

Pillow loads these with bytes in the wrong order, inverted, as noise, or not at all, depending on
compression and byte order. tifffile reads them. Decided here is which files these are, and that
reading them is bounded.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tifffile import TiffPage

_PHOTOMETRIC, _ORIENTATION, _DNG = 262, 274, 50706
_UNCOMPRESSED, _DEFLATE, _PACKBITS = 1, (8, 32946), 32773
# These and LZW, LZMA and Zstandard leave bytes as they were.
_LOSSLESS = (_UNCOMPRESSED, *_DEFLATE, 5, _PACKBITS, 34925, 50000)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK, _YCBCR = 0, 1, 2, 5, 6
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3}
_KINDS = {"u": "", "i": "signed ", "f": "float "}

# Those with an enumeration, and MetaMorph's.
_WALKED, _MOST_VALUES = (
    (254, 255, 259, 262, 266, 274, 284, 296, 317, 338, 339, *range(33628, 33632)),
    2**16,
)

_REMEDY = "save it as gray or RGB with 8 or 16 bits"
_SIMPLER = "save it uncompressed, or with deflate and no float predictor"
_PREVIEW = "its first image is a preview, as in cameras' raw files; export it as JPEG or TIFF"


class TiffError(Exception):
    """The file cannot be read as it declares itself; the message is what it is, and a remedy."""


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with these four bytes or more is a TIFF file."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def first_page(file: BinaryIO) -> TiffPage | None:
    """The image that `read` has to read; None for what Pillow reads right, or finds damaged.

    Raises:
        TiffError: neither can read it.
        Exception: nearly any, where the file is damaged.
    """
    file.seek(0)
    head = file.read(10)
    if not is_tiff(head):
        return None
    if _most_values(file, head) > _MOST_VALUES:
        raise TiffError(f"a tag has more than {_MOST_VALUES} values; export it again")
    import tifffile

    # Users need not read what it finds odd; what fails is raised.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    try:  # in three of its variants, it would read further pages
        page = tifffile.TiffFile(
            file, name="image", offset=0, is_lsm=False, is_ndpi=False, is_scanimage=False
        ).pages.first
    except Exception:
        return None
    if head[8:] == b"CR" or _DNG in page.tags or page.subfiletype & 1:
        raise TiffError(_PREVIEW)
    known = head[:4] != b"MM\0+"  # Pillow takes big-endian BigTIFF for TIFF
    if 0 in page.shaped or (known and _is_pillows(page)):
        return None
    _check_kind(page)
    return page


def _most_values(file: BinaryIO, head: bytes) -> int:
    """The length of the longest tag that tifffile reads value by value, which can take minutes."""
    order, big = "<" if head[:1] == b"I" else ">", b"+" in head[2:4]
    try:
        (place,) = struct.unpack_from(order + "IQ"[big], head + file.read(6), 8 if big else 4)
        file.seek(place)
        (entries,) = struct.unpack(order + "HQ"[big], file.read(8 if big else 2))
        length = min(entries, 4096) * (20 if big else 12)
        directory = struct.iter_unpack(order + ("HHQ8x" if big else "HHI4x"), file.read(length))
        return max((count for tag, _, count in directory if tag in _WALKED), default=0)
    except (struct.error, OSError, OverflowError):  # tifffile cannot read it either
        return 0


def _is_pillows(page: TiffPage) -> bool:
    """Whether Pillow reads it correctly, or reports that it cannot."""
    samples, bits = page.samplesperpixel, page.bitspersample
    lossless = page.compression in _LOSSLESS
    planar = page.planarconfig == 2 and samples > 1
    if page.photometric == _YCBCR and page.compression == _UNCOMPRESSED:
        if page.subsampling != (1, 1) or planar:
            raise TiffError("its colours are subsampled YCbCr, uncompressed; save it as RGB")
        return True
    if page.sampleformat != 1:
        return False
    if page.compression == _PACKBITS and page.predictor != 1:
        return False  # it takes the differences for values
    if np.max(bits) <= 8:
        gray = page.photometric == _BLACK_IS_ZERO
        if gray and tuple(map(int, page.extrasamples)) == (0,) and bits == 8 and lossless:
            return False  # Pillow before version 13
        odd = gray or page.extrasamples
        return not (planar and odd and bits == 8 and lossless)
    common = (page.photometric, samples) in ((_BLACK_IS_ZERO, 1), (_RGB, 3), (_RGB, 4), (_CMYK, 4))
    return bits == 16 and common and lossless and not planar


def _check_kind(page: TiffPage) -> None:
    """Refuse samples that are not a picture, or that tifffile cannot decode."""
    samples, bits, photometric = page.samplesperpixel, page.bitspersample, page.photometric
    kind = "" if page.dtype is None else page.dtype.kind
    text = f"{bits}-bit {_KINDS.get(kind, '')}samples"
    if kind not in _KINDS or bits not in (8, 16, 32, 64):
        raise TiffError(f"its samples ({text}, or mixed ones) cannot be read; {_REMEDY}")
    if not isinstance(page.tags.valueof(_PHOTOMETRIC), int):  # tifffile then takes 0
        photometric = -1
    extra = [int(meaning) for meaning in page.extrasamples]
    colors = _COLORS.get(photometric)
    if colors is None or samples not in (colors, colors + 1) or 1 in extra:
        text += f", {samples} a pixel, with photometric interpretation {photometric} and extra"
        raise TiffError(f"{text} samples {extra} cannot be read; {_REMEDY}")
    if photometric == _WHITE_IS_ZERO and (kind != "u" or bits > 16 or samples > 1):
        raise TiffError(f"{text} in which 0 is white cannot be read; save it with 0 as black")
    name = getattr(page.compression, "name", "unknown")
    text = f"its compression {page.compression} ({name}) and predictor {page.predictor}"
    if page.compression not in _LOSSLESS or page.predictor not in (1, 2, 3) or page.fillorder != 1:
        raise TiffError(f"{text} and fill order {page.fillorder} cannot be read; {_SIMPLER}")
    # Without imagecodecs, tifffile has no decoder for the others, or one that takes any memory.
    built_in = page.compression in (_UNCOMPRESSED, *_DEFLATE) and page.predictor != 3
    if not built_in and importlib.util.find_spec("imagecodecs") is None:
        raise TiffError(f"{text} need another library (pip install imagecodecs); or {_SIMPLER}")


def _part(page: TiffPage) -> tuple[int, int]:
    """(rows, columns) of a tile or strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return page.rowsperstrip, page.imagewidth


def allocated(page: TiffPage) -> tuple[int, int]:
    """(H, W) of the tiles side by side: what reading takes memory for."""
    (height, width), (rows, columns) = page.shaped[2:4], _part(page)
    return -(-height // rows) * rows, -(-width // columns) * columns


def orientation(page: TiffPage) -> int | None:
    """The EXIF orientation, 1 for upright; None if the file has none."""
    value = page.tags.valueof(_ORIENTATION)
    return int(value) if isinstance(value, int) else None


def read(page: TiffPage) -> npt.NDArray[Any]:
    """The samples of an image [H, W] or [H, W, 2 to 4] as they are stored.

    The file has to be open still.
    Where 0 is white they are inverted; samples that mean neither colour nor alpha are left out.

    Raises:
        Exception: nearly any, where the file is damaged.
    """
    _check_parts(page)
    array = np.moveaxis(page.asarray(squeeze=False, maxworkers=1)[:, 0], 0, 2)
    array = array.reshape(*array.shape[:2], -1)  # planes or samples
    if page.photometric == _WHITE_IS_ZERO:
        array = np.iinfo(array.dtype).max - array
    if page.samplesperpixel in (2, 4) and 2 not in (page.extrasamples or (2,)):
        array = array[:, :, :-1]
    return array[:, :, 0] if array.shape[2] == 1 else array


def _check_parts(page: TiffPage) -> None:
    """Refuse what tifffile would fill with zeros, or take more memory for than the image has."""
    file, counts, (rows, columns) = page.parent.filehandle, page.databytecounts, _part(page)
    planes, depth, height, width, samples = page.shaped
    parts = planes * math.ceil(height / rows) * math.ceil(width / columns)
    whole = len(page.dataoffsets) == len(counts) == parts and min(counts) > 0
    if not whole or sum(counts) > file.size or not depth == page.tiledepth == 1:
        raise ValueError("strips or tiles are missing or overlap")
    if page.compression in _DEFLATE:  # tifffile inflates without a bound
        most = rows * columns * samples * int(page.bitspersample) // 8
        for offset, count in zip(page.dataoffsets, counts, strict=True):
            file.seek(offset)
            inflater = zlib.decompressobj()
            inflater.decompress(file.read(count), most + 1)
            if not inflater.eof:
                raise ValueError(f"a strip or tile is cut off, or has more than {most} bytes")
