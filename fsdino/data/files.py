"""Episodes over files: a data set on disk reads samples, a plan chooses them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image as Pillow

from fsdino.data.episodes import Episode, EpisodeKey, Image, Mask, Provenance, Sample
from fsdino.data.lists import Lists
from fsdino.environment import cache
from fsdino.errors import DataError, UsageError
from fsdino.images import decode_file

logger = logging.getLogger("fsdino.data")

# Called with (done, total) during long work.
Report = Callable[[int, int], None]

# Images with fewer pixels of a class are left out of derived lists: a rule common since PFENet.
MIN_PIXELS = 2 * 32 * 32

_LOG_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Part:
    """A part of a data set, and its origin.

    Attributes:
        path: relative to the root.
        archive: the official archive or page that it comes from.
        needed: whether the data set cannot be used without it.
        found: whether it exists.
        note: its purpose, or its replacement.
    """

    path: str
    archive: str
    needed: bool
    found: bool
    note: str = ""


@dataclass(frozen=True)
class Found:
    """The result of reading an image with its mask.

    Attributes:
        masked: whether the image has a mask.
        classes: ids of the classes in the mask; None if they were not read.
    """

    masked: bool = True
    classes: frozenset[int] | None = None


@dataclass(frozen=True)
class Places:
    """Possible places of a data set below the root that the user names.

    Attributes:
        inside: folders to search, after the root itself.
        marker: glob pattern of a file in the data set's folder.
        archive: the official archive or page that it comes from.
    """

    inside: tuple[str, ...]
    marker: str
    archive: str

    def find(self, root: Path) -> Path | None:
        """Return the folder that has the marker, or None."""
        for place in ("", *self.inside):
            if next((root / place).glob(self.marker), None) is not None:
                return root / place
        return None

    def tried(self) -> str:
        """The places that were searched, for an error."""
        return ", ".join((Path(place) / self.marker).as_posix() for place in ("", *self.inside))


class Source(Protocol):
    """A data set on disk. Small and picklable: workers get a copy each."""

    @property
    def dataset(self) -> str:
        """Its name in `fsdino.data.names.DATASETS`."""
        ...

    @property
    def root(self) -> Path:
        """The folder that names are relative to."""
        ...

    @property
    def places(self) -> Places:
        """Its possible places below the root that the user names."""
        ...

    @property
    def folds(self) -> int:
        """Number of folds; 0 if there are none."""
        ...

    @property
    def class_names(self) -> Mapping[int, str]:
        """A name for each class id."""
        ...

    def classes(self, fold: int | None, split: str) -> tuple[int, ...]:
        """Ids of a split's classes, in ascending order."""
        ...

    def lists(self, fold: int | None, split: str) -> Lists:
        """The images of a split."""
        ...

    def hsnet(
        self, lists: Lists, classes: Sequence[int], shots: int, episodes: int | None
    ) -> tuple[EpisodeKey, ...]:
        """The episodes of protocol hsnet; None is the protocol's own number."""
        ...

    def mask_source(self, split: str) -> str:
        """Origin of a split's masks: "published" or "rasterised"."""
        ...

    def make_masks(self, names: Sequence[str]) -> None:
        """Make the missing masks of these images."""
        ...

    def prepare(self, folder: Path | None, report: Report) -> dict[str, Path]:
        """Make all masks and lists that can be made, into a folder (None: the cache).

        Returns the paths of everything that now exists, by title.
        """
        ...

    def read(self, name: str, class_id: int, *, query: bool) -> Sample:
        """Read one image and one class's mask; DataError if it cannot be used."""
        ...

    def unprepared(self) -> str | None:
        """Long work that counting images requires, in words; None if there is none."""
        ...

    def parts(self) -> list[Part]:
        """The required parts, and whether they exist."""
        ...

    def pairs(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Every annotated image by name, with a function that checks it or raises DataError."""
        ...

    def described(self) -> dict[str, Any]:
        """How it is read, in words: plain data by title; empty if there is only one layout."""
        ...

    def problems(self) -> list[str]:
        """Problems of files with the annotations of many images; reads these files."""
        ...


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


@dataclass(frozen=True, eq=False)
class FileEpisodes:
    """Episodes of a data set on disk; implements `fsdino.data.episodes.Episodes`.

    Nothing is read before an episode is asked for.
    """

    source: Source
    keys: Sequence[EpisodeKey]
    classes: tuple[int, ...]
    fold: int | None
    shots: int
    seed: int
    provenance: Provenance

    @property
    def class_names(self) -> Mapping[int, str]:
        """A readable name for each of `classes`."""
        names = self.source.class_names
        return {class_id: names[class_id] for class_id in self.classes}

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.keys)

    def __getitem__(self, index: int) -> Episode:
        """Read episode `index`.

        Raises:
            IndexError: outside 0..len - 1.
            DataError: a file is missing or cannot be used; the message names it.
        """
        key = self.key(index)
        query = self.source.read(key.query, key.class_id, query=True)
        supports = tuple(self.source.read(name, key.class_id, query=False) for name in key.supports)
        name = self.source.class_names[key.class_id]
        return Episode(query, supports, key.class_id, name, index)

    def key(self, index: int) -> EpisodeKey:
        """Return the key of episode `index`; IndexError outside 0..len - 1."""
        if not 0 <= index < len(self.keys):
            raise IndexError(f"episode {index} of {len(self.keys)}")
        return self.keys[index]


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
