"""Files of data sets: what a folder holds, images and labels as they are stored, and cache keys."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from fsdino.data.episodes import Image, Mask, Sample
from fsdino.environment import cache
from fsdino.errors import DataError, UsageError
from fsdino.images import decode_file


def visible(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with a suffix, sorted by name; none if the folder does not exist.

    Hidden ones are not data: macOS, editors and killed writes leave them everywhere.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_visible(entry, suffix)]
    return [folder / name for name in sorted(names)]


def any_visible(folder: Path, suffix: str) -> bool:
    """Whether `visible` finds a file; a folder of 80,000 is not read to its end."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_is_visible(entry, suffix) for entry in entries)


def _is_visible(entry: os.DirEntry[str], suffix: str) -> bool:
    name = entry.name
    return name.endswith(suffix) and not name.startswith(".") and entry.is_file()


def read_rgb(path: Path) -> Image:
    """Read an image as uint8 [H, W, 3], as it is stored.

    Raises:
        DataError: missing, corrupt or truncated; the message names the file.
    """
    return np.array(decode_data(path, "image").convert("RGB"))


def read_gray(path: Path, size: tuple[int, int]) -> Image:
    """Read a mask's brightness, uint8 [H, W].

    Raises:
        DataError: missing, corrupt, or not of its image's size; the message names the file.
    """
    return _sized(np.array(decode_data(path, "mask").convert("L")), path, size)


def read_labels(path: Path, size: tuple[int, int] | None = None) -> Image:
    """Read class labels from a palette or gray file, uint8 [H, W].

    Args:
        path: the file.
        size: (H, W) of the image that it belongs to.

    Raises:
        DataError: missing, corrupt, in colours, or of another size; the message names the file.
    """
    return label_values(decode_data(path, "mask"), path, size)


def label_values(image: Pillow.Image, path: Path, size: tuple[int, int] | None = None) -> Image:
    """Class labels of a decoded file, uint8 [H, W]; arguments and errors as of `read_labels`."""
    values = np.array(image)
    if values.ndim == 3 and image.mode == "RGB" and (values == values[:, :, :1]).all():
        values = values[:, :, 0]
    if values.ndim != 2 or values.dtype.kind not in "bui" or values.max() > 255:
        raise DataError(
            f"{path}: a {image.mode} image has no class labels; export it again as palette or gray"
        )
    return _sized(values.astype(np.uint8), path, size)


def labelled(
    path: Path, labels: Image, label: int, image: Image, name: str, class_id: int, *, ignored: bool
) -> Sample:
    """Mark one label of an annotation.

    Args:
        path: the annotation's, for errors.
        labels: uint8 [H, W].
        label: the class's value in it.
        image: uint8 [H, W, 3].
        name, class_id: the sample's.
        ignored: whether 255 is left out of the score; otherwise it is background.

    Raises:
        DataError: no pixel has the label.
    """
    mask: Mask = labels == label
    if not mask.any():
        raise DataError(
            f"{path}: no pixel of class {class_id} (value {label}), which a split list "
            "names; get matching masks and lists"
        )
    ignore: Mask | None = labels == 255 if ignored else None
    return Sample(image, mask, name, class_id, ignore)


def file_state(file: Path, archive: str) -> tuple[Path, int, int]:
    """A file, its size and its time of change, by which what was read of it is kept.

    Args:
        file: that must exist.
        archive: where it comes from, for the error.

    Raises:
        UsageError: it does not exist.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise UsageError(f"{file}: no such file; get {archive}") from error
    return file, status.st_size, status.st_mtime_ns


def file_key(files: Sequence[Path]) -> str:
    """Return a short key of files by name, size and modification time."""
    digest = hashlib.sha256()
    for file in files:
        status = os.stat(file)
        numbers = f" {status.st_size} {status.st_mtime_ns}\n"
        digest.update(os.fsencode(file.name) + numbers.encode())  # names of any bytes
    return digest.hexdigest()[:16]


def content_key(file: Path, blocks: int = 64, size: int = 4096) -> str:
    """Return a short key of a large file's content, from blocks spread over it."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        length = stream.seek(0, os.SEEK_END)
        digest.update(str(length).encode())
        for block in range(blocks):
            stream.seek(length * block // blocks)
            digest.update(stream.read(size))
        stream.seek(max(length - size, 0))
        digest.update(stream.read(size))
    return digest.hexdigest()[:16]


def prepared(dataset: str, key: str) -> Path:
    """Return the folder in the cache for masks and lists made from a data set."""
    return cache() / "data" / f"{dataset}-{key}"


def decode_data(path: Path, title: str, *, upright: bool = False) -> Pillow.Image:
    """Decode an image as it is stored, or upright as its EXIF data say.

    Raises:
        DataError: missing, corrupt or truncated; the message names the file.
    """
    try:
        return decode_file(path, title, upright=upright)
    except UsageError as error:  # a list named it, and not the user
        raise DataError(f"{error}, or run `fsdino data check`") from error


def _sized(values: Image, path: Path, size: tuple[int, int] | None) -> Image:
    if size is not None and values.shape != size:
        (height, width), (own_height, own_width) = size, values.shape
        raise DataError(
            f"{path}: the mask is {own_width} × {own_height}, its image {width} × {height}; get "
            "both from one source"
        )
    return values
