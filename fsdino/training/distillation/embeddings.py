"""The teacher's embeddings on disk: computed once, verified when read, shared between runs."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.errors import DataError, FsdinoError, first_line
from fsdino.files import make_folder, read_json, remove_leftovers, write_json
from fsdino.images import Pixels
from fsdino.models.checkpoints import tensors_sha256, write_tensors
from fsdino.training.distillation.architecture import Architecture
from fsdino.training.distillation.corpus import ImageFile
from fsdino.training.distillation.inventory import Inventory
from fsdino.training.distillation.teacher import Teacher
from fsdino.training.interrupt import Interrupt, leave_to_trainer
from fsdino.training.run import own_generator

logger = logging.getLogger("fsdino.training")

FORMAT = "fsdino-embeddings-2"
SHARD_IMAGES = 64  # what a kill may cost, and a damaged shard


class EmbeddingCache:
    """Embeddings in half precision, found by the SHA-256 of their image files' contents.

    ```
    FOLDER/TEACHER-DTYPE/shards/ID.safetensors   up to 64 tensors [C, h, w], named by content
    FOLDER/TEACHER-DTYPE/index/ID.json           their images' names, and a hash of each tensor
    ```

    A shard counts once its index is there: both are written whole or not at all, the index last.
    The hashes cover teacher and dtype, too, so that files of another cache are not taken for this
    one's. Several processes and runs may read and add at the same time.

    Args:
        folder: for any number of teachers.
        teacher: fingerprint of the one whose embeddings these are.
        dtype: in which it computes.

    Raises:
        FsdinoError: the folder cannot be created.
    """

    def __init__(self, folder: Path, teacher: str, dtype: str) -> None:
        self._kind = f"{teacher}-{dtype}"
        self.folder = folder / self._kind
        for part in ("shards", "index"):
            make_folder(
                self.folder / part,
                "choose another folder for the cache, or compute embeddings on the fly",
            )
            remove_leftovers(self.folder / part)
        self._waiting: dict[str, tuple[str, Tensor]] = {}
        self._shards: dict[str, dict[str, dict[str, str]]] = {}
        self._shard_of: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Find what others have added or dropped."""
        paths = sorted((self.folder / "index").glob("[0-9a-f]*.json"))
        self._shards = {path.stem: _read_index(path) for path in paths}
        self._shard_of = {
            content: name for name, images in self._shards.items() for content in images
        }

    def __contains__(self, content: object) -> bool:
        return content in self._shard_of or content in self._waiting

    def __len__(self) -> int:
        return len(self._shard_of)

    def names(self) -> set[str]:
        """Names of the images that it holds, as they were when they were added."""
        return {row["name"] for images in self._shards.values() for row in images.values()}

    def get(self, content: str, shape: tuple[int, int, int] | None = None) -> Tensor | None:
        """An embedding, float16 [C, h, w]; None where it is not there, or damaged.

        Damage is logged with the shard's name, unless another process has mended it meanwhile.

        Args:
            content: SHA-256 of the image file's content.
            shape: that it must have, where that is known.
        """
        if content not in self._shard_of:
            self.refresh()
        tried = None
        while (entry := self._entry(content)) is not None:
            try:
                return self._read(content, shape)
            except (SafetensorError, OSError, ValueError) as error:
                if entry == tried:
                    path, reason = self._path(entry[0]), first_line(error)
                    logger.warning("embeddings %s are damaged (%s)", path, reason)
                    return None
            tried = entry
            self.refresh()
        return None

    def _entry(self, content: str) -> tuple[str, str] | None:
        """Shard and hash of an embedding, as far as this process knows."""
        shard = self._shard_of.get(content)
        return None if shard is None else (shard, self._shards[shard][content]["sha256"])

    def _read(self, content: str, shape: tuple[int, int, int] | None) -> Tensor:
        shard = self._shard_of[content]
        with safe_open(self._path(shard), framework="pt") as file:
            tensor: Tensor = file.get_tensor(content)
        if self._hash(content, tensor) != self._shards[shard][content]["sha256"]:
            raise ValueError("its content is not what was written")
        if tensor.dtype != torch.float16 or tensor.ndim != 3 or not tensor.isfinite().all():
            raise ValueError("it is not a finite float16 tensor [C, h, w]")
        if shape is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"its shape is {list(tensor.shape)}, and not {list(shape)}")
        return tensor

    def _hash(self, content: str, tensor: Tensor) -> str:
        return tensors_sha256({content: tensor}, self._kind)

    def drop_shard_of(self, content: str) -> set[str]:
        """Give up the shard that holds an embedding, if any; returns what was in it."""
        shard = self._shard_of.get(content)
        if shard is None:
            return set()
        (self.folder / "index" / f"{shard}.json").unlink(missing_ok=True)
        self._path(shard).unlink(missing_ok=True)
        contents = set(self._shards[shard])
        self.refresh()
        return contents

    def add(self, content: str, name: str, embedding: Tensor) -> None:
        """Add an embedding; every 64 make a shard.

        Raises:
            FsdinoError: the disk is full or cannot be written; whole shards are kept.
        """
        self._waiting[content] = (name, embedding.to("cpu", torch.float16).contiguous())
        if len(self._waiting) >= SHARD_IMAGES:
            self.flush()

    def flush(self) -> None:
        """Write what waits for its shard to become full.

        Raises:
            FsdinoError: the disk is full or cannot be written; whole shards are kept.
        """
        if not self._waiting:
            return
        waiting = dict(sorted(self._waiting.items()))
        shard = hashlib.sha256("".join(waiting).encode()).hexdigest()[:16]
        images = {
            content: {"name": name, "sha256": self._hash(content, tensor)}
            for content, (name, tensor) in waiting.items()
        }
        tensors = {content: tensor for content, (_, tensor) in waiting.items()}
        write_tensors(self._path(shard), tensors, {"format": FORMAT})
        index = {"format": FORMAT, "images": images}
        write_json(self.folder / "index" / f"{shard}.json", index)
        self._waiting.clear()
        self._shards[shard] = images
        self._shard_of |= dict.fromkeys(images, shard)

    def announce(self, files: Sequence[ImageFile], most_bytes: int) -> None:
        """Say how much space the embeddings of images take, before any work.

        Args:
            files: the images.
            most_bytes: of one embedding.

        Raises:
            FsdinoError: so much is not free.
        """
        there = self.names()
        missing = sum(file.name not in there for file in files)
        free = shutil.disk_usage(self.folder).free
        logger.info(
            "teacher's embeddings of %s images: at most %s in %s; %s are there, at most %s to "
            "write, %s free",
            f"{len(files):,}", _size(len(files) * most_bytes), self.folder,
            f"{len(files) - missing:,}", _size(missing * most_bytes), _size(free),
        )  # fmt: skip
        if missing * most_bytes > free:
            raise FsdinoError(
                f"the embeddings may take {_size(missing * most_bytes)}, {_size(free)} are free "
                f"in {self.folder}: free some space, choose another cache or a lower percent, or "
                "compute embeddings on the fly (--no-cache)"
            )

    def _path(self, shard: str) -> Path:
        return self.folder / "shards" / f"{shard}.safetensors"


@dataclass(frozen=True)
class _Reading:
    file: ImageFile
    content: str = ""
    scaled: Pixels | None = None  # only where the embedding is missing
    error: str = ""


class _Readings(Dataset[_Reading]):
    """Images, read, and scaled for the teacher where their embedding is not known."""

    def __init__(
        self, files: Sequence[ImageFile], known: EmbeddingCache, architecture: Architecture
    ) -> None:
        self.files, self.known, self.architecture = files, known, architecture

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Reading:
        file = self.files[index]
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
    loader: Iterable[list[_Reading]] = DataLoader(
        _Readings(files, cache, teacher.architecture),
        batch_size=batch_size,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=leave_to_trainer,
        generator=own_generator(),
    )
    with Interrupt() as interrupt:
        for readings in loader:
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


def _read_index(path: Path) -> dict[str, dict[str, str]]:
    """The images of a shard by content; none where the index is damaged or was just dropped."""
    try:
        data = read_json(path)
        if data["format"] != FORMAT:
            raise ValueError("written by another version")
        images = {
            content: {"name": row["name"], "sha256": row["sha256"]}
            for content, row in data["images"].items()
        }
        if not all(isinstance(text, str) for row in images.values() for text in row.values()):
            raise ValueError("its rows are not text")
        return images
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("index %s cannot be used (%s): its shard is computed again", path, error)
        return {}


def _size(count: float) -> str:
    for unit, value in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= value:
            return f"{count / value:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
