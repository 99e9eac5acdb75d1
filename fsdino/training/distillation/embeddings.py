"""The teacher's embeddings on disk, and their computation."""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsdino.errors import DataError, FsdinoError
from fsdino.images import Pixels
from fsdino.training.distillation.architecture import Architecture
from fsdino.training.distillation.corpus import ImageFile
from fsdino.training.distillation.inventory import Inventory
from fsdino.training.distillation.teacher import Teacher
from fsdino.training.interrupt import Interrupt
from fsdino.training.reading import read_ahead
from fsdino.training.store import Store, size

logger = logging.getLogger("fsdino.training")


class EmbeddingCache(Store):
    """Embeddings, float16 [C, h, w], found by the SHA-256 of their image files' contents.

    Args:
        folder: for any number of teachers.
        teacher: fingerprint of the one whose embeddings these are.
        dtype: in which it computes.

    Raises:
        FsdinoError: the folder cannot be created.
    """

    def __init__(self, folder: Path, teacher: str, dtype: str) -> None:
        super().__init__(
            folder,
            f"{teacher}-{dtype}",
            torch.float16,
            [""],
            "choose another folder for the cache, or compute embeddings on the fly",
        )

    def get(self, content: str, shape: tuple[int, int, int] | None = None) -> Tensor | None:
        """An embedding; None where it is not there, or damaged: see `Store.read`.

        Args:
            content: SHA-256 of the image file's content.
            shape: that it must have, where that is known.
        """
        found = self.read(content, None if shape is None else {"": shape})
        return None if found is None else found[""]

    def add(self, content: str, name: str, embedding: Tensor) -> None:
        """Add an embedding; see `Store.write`."""
        self.write(content, name, {"": embedding})

    def announce(self, files: Sequence[ImageFile], most_bytes: int) -> None:
        """Say how much space the embeddings of images take, before any work.

        Args:
            files: the images.
            most_bytes: of one embedding.

        Raises:
            FsdinoError: so much is not free.
        """
        names = self.names()
        there = sum(file.name in names for file in files)
        if not self.fits("teacher's embeddings", len(files), there, most_bytes):
            needed, free = (len(files) - there) * most_bytes, shutil.disk_usage(self.folder).free
            raise FsdinoError(
                f"the embeddings may take {size(needed)}, {size(free)} are free in {self.folder}: "
                "free some space, choose another cache or a lower percent, or compute embeddings "
                "on the fly (--no-use-cache)"
            )


@dataclass(frozen=True)
class _Reading:
    file: ImageFile
    content: str = ""
    scaled: Pixels | None = None  # only where the embedding is missing
    error: str = ""


class _Readings(Dataset[list[_Reading]]):
    """Batches of images, read, and scaled for the teacher where their embedding is not known."""

    def __init__(
        self,
        files: Sequence[ImageFile],
        known: EmbeddingCache,
        architecture: Architecture,
        batch_size: int,
    ) -> None:
        self.files, self.known, self.architecture = files, known, architecture
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.files) / self.batch_size)

    def __getitem__(self, index: int) -> list[_Reading]:
        first = index * self.batch_size
        return [self._read(file) for file in self.files[first : first + self.batch_size]]

    def _read(self, file: ImageFile) -> _Reading:
        try:
            raw = file.read()
            content = content_hash(raw)
            if content in self.known:
                return _Reading(file, content)
            return _Reading(file, content, self.architecture.scale(file.decode(raw)))
        except FsdinoError as error:
            return _Reading(file, error=str(error))


def fill(
    cache: EmbeddingCache,
    teacher: Teacher,
    files: Sequence[ImageFile],
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 4,
    workers: int = 0,
    report: Callable[[int], None] | None = None,
) -> Inventory:
    """Compute the embeddings that a cache does not have yet.

    Args:
        cache: gets them.
        teacher: computes them.
        files: the images; those that cannot be read are named and left out.
        dtype: in which the teacher computes.
        batch_size: images in a pass of the teacher.
        workers: processes that read images.
        report: called with the number of images that were just finished.

    Raises:
        KeyboardInterrupt: asked to stop; what is computed is kept.
        FsdinoError: the disk is full or cannot be written; what was written before is kept.
    """
    inventory = Inventory()
    batches = _Readings(files, cache, teacher.architecture, batch_size)
    with Interrupt() as interrupt:
        for readings in read_ahead(batches, workers, range(len(batches))):
            _embed(cache, teacher, readings, inventory, dtype)
            if report is not None:
                report(len(readings))
            if interrupt.asked:
                cache.flush()
                raise KeyboardInterrupt
    cache.flush()
    return inventory


def _embed(
    cache: EmbeddingCache,
    teacher: Teacher,
    readings: Iterable[_Reading],
    inventory: Inventory,
    dtype: torch.dtype,
) -> None:
    missing: dict[str, tuple[str, Pixels]] = {}
    for reading in readings:
        if reading.error:
            logger.warning("left out: %s", reading.error)
            inventory.unreadable[reading.file.name] = reading.error
            continue
        inventory.contents[reading.file.name] = reading.content
        if reading.scaled is not None and reading.content not in cache:
            missing[reading.content] = (reading.file.name, reading.scaled)
    if missing:
        embedded = teacher([scaled for _, scaled in missing.values()], dtype)
        for (content, (name, _)), embedding in zip(missing.items(), embedded, strict=True):
            if not embedding.isfinite().all():
                raise DataError(f"{name}: the teacher's embedding is not finite; use float32")
            cache.add(content, name, embedding)


def content_hash(content: bytes) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
