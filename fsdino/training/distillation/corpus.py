"""Images without labels, where they lie: folders, lists of files, tar shards as SA-1B has them."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsdino.errors import DataError, UsageError, first_line, shown_path
from fsdino.files import open_regular, read_bytes
from fsdino.image_files import IMAGE_SUFFIXES, MOST_BYTES, why_not_image
from fsdino.images import Pixels, read_image_bytes
from fsdino.training.distillation.shards import members

logger = logging.getLogger("fsdino.training")

LIST_SUFFIXES = frozenset({".list", ".lst", ".txt"})
_SHARD = ".tar"
_MOST_LIST = 2**31  # bytes of a list: some 20 million paths
_MOST_PATH = 4096  # bytes of a line
# What lies beside images by the million is not opened to see that it is none.
_BESIDE = frozenset({".csv", ".htm", ".html", ".json", ".jsonl", ".md", ".txt", ".xml", ".yaml"})


@dataclass(frozen=True)
class ImageFile:
    """An image file on disk, or inside of a tar shard.

    Attributes:
        key: its path below the folder, list or shard that it was found in. Decides on percentages
            and held-out shares, so that they hold wherever the images lie.
        path: the file, or the shard.
        offset, size: where its content lies in the shard, in bytes; -1 for a file of its own.
    """

    key: str
    path: Path
    offset: int = -1
    size: int = -1

    @property
    def name(self) -> str:
        """How errors and records call it."""
        return str(self.path) if self.offset < 0 else f"{self.path}/{self.key}"

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            DataError: it is missing, cannot be read or ends early.
        """
        try:
            if self.offset < 0:
                return read_bytes(self.path, MOST_BYTES)
            if self.size > MOST_BYTES:
                raise ValueError(f"it has {self.size:,} bytes, at most {MOST_BYTES:,} can be right")
            with open_regular(self.path) as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{shown_path(self.name)}: cannot be read ({first_line(error)})"
            ) from error
        if self.size > len(content):
            raise DataError(f"{self.name}: the shard ends before the image does; fetch it again")
        return content

    def decode(self, content: bytes) -> Pixels:
        """Content as uint8 [H, W, 3].

        Raises:
            DataError: it is not an image, or damaged.
        """
        return read_image_bytes(content, shown_path(self.name))


@dataclass(frozen=True)
class Corpus:
    """The images of a training run.

    Attributes:
        training, held_out: images to learn from, and to measure on.
        unreadable: what could not even be listed, with the reason.
    """

    training: tuple[ImageFile, ...]
    held_out: tuple[ImageFile, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.training) + len(self.held_out)


def find_images(
    sources: Sequence[Path], *, percent: float = 100.0, held_out: float = 0.01
) -> Corpus:
    """Find images, and divide them.

    Two hashes of an image's key decide, independently of each other and of every other image:
    whether it is among `percent`, and whether it is held out. A smaller percentage is a part of a
    larger one, and what is held out stays held out. Where no image's hash is in the held-out share,
    the one nearest to it is taken.

    Args:
        sources: folders (searched for images and .tar shards, subfolders included), .tar shards,
            lists (.txt, .lst, .list: one path on a line, relative to the list), image files. Files
            in folders are images by their suffix or by their content, members of shards by their
            suffix.
        percent: how much of them, greater than 0, to 100.
        held_out: share of those that is held out, between 0 and 1.

    Raises:
        UsageError: a missing source, one of another kind, numbers out of range, fewer than two
            images.
    """
    if not 0 < percent <= 100:
        raise UsageError(f"percent must be greater than 0 and at most 100, got {percent:g}")
    if not 0 < held_out < 1:
        raise UsageError(f"held_out must lie between 0 and 1, got {held_out:g}")
    unreadable: dict[str, str] = {}
    found = [file for source in sources for file in _images_of(Path(source), unreadable)]
    chosen = sorted(
        (file for file in found if stable_hash("percent", file.key) < percent / 100),
        key=lambda file: (file.key, str(file.path)),
    )
    if len(chosen) < 2:
        bad = f"; {', '.join(f'{n}: {reason}' for n, reason in unreadable.items())}"
        raise UsageError(
            f"{len(chosen)} of {len(found)} images in {', '.join(map(str, sources)) or 'nothing'} "
            f"are in {percent:g} %: at least two are needed, one to learn from and one held out"
            + (bad if unreadable else "")
        )
    nearest = min(_held_out(file) for file in chosen)
    limit = max(held_out, math.nextafter(nearest, 1))
    training = tuple(file for file in chosen if _held_out(file) >= limit)
    if not training:
        raise UsageError(f"all {len(chosen)} images are held out: lower held_out ({held_out:g})")
    measured = tuple(file for file in chosen if _held_out(file) < limit)
    logger.info(
        "%s images found; %g %% are %s, of which %s are held out",
        f"{len(found):,}", percent, f"{len(chosen):,}", f"{len(measured):,}",
    )  # fmt: skip
    return Corpus(training, measured, unreadable)


def stable_hash(purpose: str, key: str) -> float:
    """A number in [0, 1) that only depends on both texts, and is even over keys."""
    digest = hashlib.sha256(f"{purpose}/{key}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _held_out(file: ImageFile) -> float:
    return stable_hash("held out", file.key)


def _images_of(source: Path, unreadable: dict[str, str]) -> Iterator[ImageFile]:
    """The images of one source; shards that cannot be read are noted."""
    suffix = source.suffix.lower()
    if source.is_dir():
        for path in _walk(source):
            yield from _file_or_shard(path, path.relative_to(source).as_posix(), unreadable)
    elif not source.exists():
        raise UsageError(f"images {source}: no such file or folder; check the path")
    elif not source.is_file():
        raise UsageError(f"images {source}: not a regular file; pass a folder or files")
    elif suffix in LIST_SUFFIXES:
        yield from _listed(source, unreadable)
    elif suffix == _SHARD or why_not_image(source) is None:
        yield from _file_or_shard(source, source.name, unreadable)
    else:
        raise UsageError(
            f"images {source}: pass a folder, a {_SHARD} shard, an image, or a list of paths "
            f"({', '.join(sorted(LIST_SUFFIXES))})"
        )


def _walk(folder: Path) -> Iterator[Path]:
    """Images and shards below a folder; hidden ones are ignored, other files are counted."""
    left_out: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or suffix in _BESIDE:
                continue
            path = Path(place, name)
            reason = None
            if suffix != _SHARD and suffix not in IMAGE_SUFFIXES:
                reason = why_not_image(path)
            if reason is None:
                yield path
            else:
                left_out[str(path)] = reason
    if left_out:
        path_, reason_ = next(iter(left_out.items()))
        logger.info(
            "%s: %d files are left out, such as %s (%s)",
            folder, len(left_out), shown_path(path_), reason_,
        )  # fmt: skip


def _listed(source: Path, unreadable: dict[str, str]) -> Iterator[ImageFile]:
    """The files that a list names; lines that cannot be a path are noted."""
    try:
        with open_regular(source) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_LIST:
                raise ValueError(f"it has {size:,} bytes, at most {_MOST_LIST:,} can be right")
            for number, line in enumerate(iter(lambda: file.readline(_MOST_PATH), b""), start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if len(line) == _MOST_PATH and not line.endswith(b"\n"):
                    raise ValueError(f"line {number} is too long for a path")
                if "\0" in text:
                    unreadable[f"{source}, line {number}"] = "it holds a NUL, which no path has"
                elif text:
                    key = Path(text).as_posix()
                    yield from _file_or_shard(source.parent / text, key, unreadable)
    except (OSError, ValueError) as error:
        raise UsageError(f"images {source}: the list cannot be read ({error})") from error


def _file_or_shard(path: Path, key: str, unreadable: dict[str, str]) -> Iterator[ImageFile]:
    if path.suffix.lower() == _SHARD:
        yield from _members(path, unreadable)
    else:
        yield ImageFile(key, path)


def _members(shard: Path, unreadable: dict[str, str]) -> Iterator[ImageFile]:
    """The images of a tar shard, without unpacking: their places in it."""
    try:
        with open_regular(shard) as archive:
            for member in members(archive):
                key = posixpath.normpath(member.name)
                suffix = posixpath.splitext(key)[1].lower()
                if suffix not in IMAGE_SUFFIXES or posixpath.basename(key).startswith("."):
                    continue
                if member.sparse:
                    unreadable[f"{shard}/{key}"] = "stored as a sparse file; pack it as a plain one"
                else:
                    yield ImageFile(key, shard, member.offset, member.size)
    except (OSError, ValueError) as error:
        reason = f"not a whole tar file ({first_line(error)}); images before the damage are used"
        logger.warning("%s: %s", shard, reason)
        unreadable[str(shard)] = reason
