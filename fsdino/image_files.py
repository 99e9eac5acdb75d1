"""Image files: which ones can be read, those of a folder, and opening them within limits."""

from __future__ import annotations

import contextlib
import importlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from fsdino import files, tiff
from fsdino.errors import UsageError, first_line, shown_path

# Files that count as images by their name alone. Others are looked into: see `scan_folder`.
IMAGE_SUFFIXES = frozenset(
    {
        ".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm",
        ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip

# An image file may have this many bytes: more than any camera writes, and bounded.
MOST_BYTES = 2**31

# Tried first, since Pillow loads a decoder when it is first asked for.
_COMMON = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
# Pillow knows these, too. They stay closed: EPS and WMF are drawings that other programs or the
# system interpret; MPEG, BUFR, GRIB and HDF5 are only recognised; IPTC opens any format inside of
# itself; FITS inflates without a limit; IMT has hardly a header to be recognised by.
_CLOSED = frozenset({"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC", "FITS", "IMT"})

_HEIC_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
_NO_HEIC = "HEIC, which needs another library (pip install pillow-heif)"
_NO_AVIF = "AVIF, which this Pillow cannot read (pip install --upgrade pillow)"
_NO_JXL = "JPEG XL, which cannot be read; convert it to JPEG or PNG"
_RAW = "a camera's raw file, of which only a preview could be read; export it as JPEG or TIFF"
_RAW_SUFFIXES = frozenset(
    {
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos",
        ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf",
        ".srw", ".x3f",
    }
)  # fmt: skip
# What files of other kinds begin with, for the reason.
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"\x00\x00\x01\xba", "a video"),
    (b"\x00\x00\x01\xb3", "a video"),
    (b"FLV", "a video"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"PK\x03\x04", "an archive"),
    (b"\x1f\x8b", "an archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\xff\x0a", _NO_JXL),
    (b"\x00\x00\x00\x0cJXL ", _NO_JXL),
)
_TIFF = "a TIFF file with pixels of a kind that cannot be read"
_HEAD = 512  # bytes that the reason is found from
_PREFIX = 16  # bytes that a plugin of Pillow is asked with


@dataclass(frozen=True)
class Listing:
    """The content of a folder.

    Attributes:
        images: the image files, sorted by their path below the folder.
        left_out: the other files, by path below the folder ("a/b.mp4"), with a short reason such as
            "a video".
    """

    images: list[Path]
    left_out: dict[str, str] = field(default_factory=dict)

    def summary(self, most: int = 3) -> str:
        """One line, as in "6 of 10 files left out: a.mp4 (a video), … and 3 more".

        Args:
            most: maximum number of named files.
        """
        named = [f"{shown_path(n)} ({reason})" for n, reason in list(self.left_out.items())[:most]]
        count = len(self.left_out)
        more = f" and {count - len(named)} more" if count > len(named) else ""
        return f"{count} of {count + len(self.images)} files left out: {', '.join(named)}{more}"


def scan_folder(folder: str | os.PathLike[str], *, recursive: bool = False) -> Listing:
    """The image files of a folder, and its other files with reasons.

    A file with one of `IMAGE_SUFFIXES`, in any case, is an image; others are opened, and are images
    where Pillow recognises their content (drawings, documents and cameras' raw files aside). Only
    regular files, or links to some, are opened. Hidden files and folders are ignored.

    Args:
        folder: the folder.
        recursive: search its subfolders as well, each once, even if several links lead to it.

    Raises:
        UsageError: the folder does not exist or cannot be read.
    """
    root = Path(folder)
    try:
        seen = {_identity(root.stat())}
        entries = _entries(root)
    except FileNotFoundError as error:
        raise UsageError(f"{root}: no such folder; check the path") from error
    except NotADirectoryError as error:
        raise UsageError(f"{root}: this is a file; pass the folder that it is in") from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{shown_path(root)}: cannot be read ({first_line(error)}); check the path and its "
            "permissions"
        ) from error
    images: list[Path] = []
    left_out: dict[str, str] = {}
    for path in _files(root, entries, seen, left_out) if recursive else _flat(entries):
        reason = why_not_image(path)
        if reason is None:
            images.append(path)
        else:
            left_out[path.relative_to(root).as_posix()] = reason
    images.sort(key=lambda path: path.relative_to(root).parts)
    return Listing(images, dict(sorted(left_out.items())))


def why_not_image(path: Path) -> str | None:
    """Why a file is not an image, in a few words; None if it is one, by suffix or content."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            return None
        if suffix in _RAW_SUFFIXES:
            return _RAW
        file = files.open_regular(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    with file:
        try:
            if tiff.first_page(file) is None:
                open_image(file)
        except Image.DecompressionBombError:
            return None  # reading it reports that
        except (UnidentifiedImageError, tiff.TiffError) as error:
            return str(error)
        except Exception:  # a damaged header
            return "not an image"
    return None


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image file of any readable format; pixels are not read yet.

    Raises:
        UnidentifiedImageError: an unknown format; the message is a short reason.
        Exception: nearly any; the header is damaged.
    """
    file.seek(0)
    head = file.read(_HEAD)
    Image.preinit()
    image = _opened(file, head, _COMMON)
    if image is None:
        if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
            _register_heic()
        Image.init()
        image = _opened(file, head, [f for f in Image.ID if f not in _CLOSED and f not in _COMMON])
    if image is None:
        raise UnidentifiedImageError(_reason(head))
    check_pixels((image.height, image.width))
    return image


def _opened(file: BinaryIO, head: bytes, formats: Iterable[str]) -> Image.Image | None:
    """The image in the first of these formats that takes the file; None if none does.

    `PIL.Image.open` does the same, and warns: from half of its limit on, where an image is still
    fine, and of formats whose decoders are missing, which the reason names. Filters of warnings
    belong to the whole process, so that a thread cannot silence them for itself.
    """
    for name in formats:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[name]
        try:
            # A text instead of an answer says that the decoder is missing.
            accepted = True if accept is None else accept(head[:_PREFIX])
            if accepted and not isinstance(accepted, str):
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # the plugins' way to refuse
            continue
    return None


@contextlib.contextmanager
def pixel_limit(most: int) -> Iterator[None]:
    """Read images of up to `most` pixels inside the block.

    Args:
        most: maximum number of pixels; the default is twice `PIL.Image.MAX_IMAGE_PIXELS`,
            179 million.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = -(-most // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def check_pixels(size: tuple[int, int]) -> None:
    """Refuse what Pillow refuses: images of more than twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Args:
        size: (H, W).

    Raises:
        DecompressionBombError: with Pillow's message.
    """
    most, pixels = Image.MAX_IMAGE_PIXELS, size[0] * size[1]
    if most is not None and pixels > 2 * most:
        raise Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of {2 * most} pixels"
        )


def _register_heic() -> None:
    """Let Pillow read HEIC if the library for it is installed; later calls do nothing."""
    if "HEIF" not in Image.OPEN:
        with contextlib.suppress(ImportError):
            importlib.import_module("pillow_heif").register_heif_opener()


def _reason(head: bytes) -> str:
    """The kind of a file that is not a readable image, by its first bytes."""
    if not head:
        return "empty"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return _NO_AVIF
        if brand == b"crx ":
            return _RAW
        return _NO_HEIC if brand in _HEIC_BRANDS else "a video"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "a video"
    if tiff.is_tiff(head):
        return _TIFF
    for start, reason in _STARTS:
        if head.startswith(start):
            return reason
    with contextlib.suppress(UnicodeDecodeError):
        text = head.decode("utf-8", "ignore" if len(head) == _HEAD else "strict").lstrip()
        if text.isprintable() or all(c.isprintable() or c in "\r\n\t\f" for c in text):
            return "a drawing (SVG)" if "<svg" in text else "text"
    return "not an image"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """A folder's entries by name, without hidden ones."""
    with os.scandir(folder) as found:
        return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)


def _flat(entries: list[os.DirEntry[str]]) -> Iterator[Path]:
    for entry in entries:
        if not _is_folder(entry):
            yield Path(entry.path)


def _files(
    root: Path,
    entries: list[os.DirEntry[str]],
    seen: set[tuple[int, int]],
    left_out: dict[str, str],
) -> Iterator[Path]:
    """All files below a folder. Linked folders come last, so that their files are listed under the
    path without a link, if there is one."""
    folders = [entries]
    linked: list[os.DirEntry[str]] = []
    while folders or linked:
        entries = folders.pop() if folders else _subfolder(root, linked.pop(), seen, left_out)
        for entry in entries:
            if not _is_folder(entry):
                yield Path(entry.path)
            elif entry.is_symlink():
                linked.append(entry)
            else:
                folders.append(_subfolder(root, entry, seen, left_out))


def _subfolder(
    root: Path,
    entry: os.DirEntry[str],
    seen: set[tuple[int, int]],
    left_out: dict[str, str],
) -> list[os.DirEntry[str]]:
    """A subfolder's entries; none if it was searched before or is unreadable, which is noted."""
    try:
        identity = _identity(os.stat(entry.path))
        if identity in seen:
            return []
        seen.add(identity)
        return _entries(Path(entry.path))
    except OSError as error:
        name = Path(entry.path).relative_to(root).as_posix()
        left_out[f"{name}/"] = f"cannot be read: {error.strerror}"
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
