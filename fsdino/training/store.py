"""Outputs of encoders on disk: computed once, verified when read, shared by runs and processes.

Stage 1 keeps SAM's embeddings, stage 2 the features of its frozen encoder. In shards rather than a
file for each image: the embeddings of 1 % of SA-1B take 230 GB.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsdino.errors import first_line
from fsdino.files import make_folder, read_json, remove_leftovers, write_json
from fsdino.models.checkpoints import tensors_sha256, write_tensors

logger = logging.getLogger("fsdino.training")

FORMAT = "fsdino-embeddings-2"  # as when only stage 1 had a store
SHARD_IMAGES = 64  # what a kill may cost, and a damaged shard
SHARD_BYTES = 2**28  # a larger shard is written with fewer images
_INDEX = re.compile(r"([0-9a-f]+)\.json")

Shape = tuple[int, ...]


class Store:
    """Tensors of images in shards that are only ever added, found by a key.

    ```
    FOLDER/KIND/shards/ID.safetensors   tensors of up to 64 images, named KEY or KEY.PART
    FOLDER/KIND/index/ID.json           their images' names, and a hash of each image's tensors
    ```

    A shard counts once its index is there: both are written whole or not at all, the index last.
    The hashes cover the kind, too, so that files of another store are not taken for this one's.
    Several processes and runs may read and write at the same time.

    Args:
        folder: for any number of kinds.
        kind: what decides the tensors beside the image, as a folder's name: encoder and dtype.
        dtype: of all tensors.
        parts: names of an image's tensors; "" is that of a single one.
        remedy: what an error says to do where the folder cannot be created.

    Raises:
        FsdinoError: the folder cannot be created.
    """

    def __init__(
        self, folder: Path, kind: str, dtype: torch.dtype, parts: Sequence[str], remedy: str
    ) -> None:
        self.kind, self.dtype, self.parts = kind, dtype, parts
        self.folder = folder / kind
        for part in ("shards", "index"):
            make_folder(self.folder / part, remedy)
            remove_leftovers(self.folder / part)
        self._waiting: dict[str, tuple[str, dict[str, Tensor]]] = {}
        self._shards: dict[str, dict[str, dict[str, str]]] = {}
        self._stamps: dict[str, tuple[int, int, int]] = {}  # of the indices that were read
        self._shard_of: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Find what others have added or dropped."""
        stamps: dict[str, tuple[int, int, int]] = {}
        with os.scandir(self.folder / "index") as entries:
            for entry in entries:
                match = _INDEX.fullmatch(entry.name)
                if match is not None:
                    with contextlib.suppress(FileNotFoundError):  # dropped by another process
                        status = entry.stat()
                        stamps[match[1]] = (status.st_ino, status.st_mtime_ns, status.st_size)
        if stamps == self._stamps:
            return
        self._shards = {
            shard: self._shards[shard]
            if self._stamps.get(shard) == stamps[shard]
            else _read_index(self.folder / "index" / f"{shard}.json")
            for shard in sorted(stamps)
        }
        self._stamps = stamps
        self._shard_of = {key: shard for shard, images in self._shards.items() for key in images}

    def __contains__(self, key: object) -> bool:
        return key in self._shard_of or key in self._waiting

    def __len__(self) -> int:
        return len(self._shard_of)

    def names(self) -> set[str]:
        """Names of the images whose tensors it holds, as they were when these were written."""
        return {row["name"] for images in self._shards.values() for row in images.values()}

    def read(self, key: str, shapes: Mapping[str, Shape] | None = None) -> dict[str, Tensor] | None:
        """An image's tensors by part; None where they are not there, or damaged.

        Damage is logged with the shard's name, unless another process has repaired it meanwhile.

        Args:
            key: the image's.
            shapes: that the parts must have, where those are known.
        """
        if key in self._waiting:
            return dict(self._waiting[key][1])
        if key not in self._shard_of:
            self.refresh()
        tried = None
        while (entry := self._entry(key)) is not None:
            try:
                return self._verified(key, shapes)
            except (SafetensorError, OSError, ValueError) as error:
                if entry == tried:
                    path, reason = self._path(entry[0]), first_line(error)
                    logger.warning("%s is damaged (%s)", path, reason)
                    return None
            tried = entry
            self.refresh()
        return None

    def write(self, key: str, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep an image's tensors; they go to disk when a shard is full.

        Args:
            key: the image's.
            name: how people call it.
            tensors: by part.

        Raises:
            FsdinoError: the disk is full or cannot be written; whole shards are kept.
        """
        kept = {part: tensors[part].detach().to("cpu", self.dtype) for part in self.parts}
        self._waiting[key] = (name, {part: tensor.contiguous() for part, tensor in kept.items()})
        held = sum(t.nbytes for _, parts in self._waiting.values() for t in parts.values())
        if len(self._waiting) >= SHARD_IMAGES or held >= SHARD_BYTES:
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
        images: dict[str, dict[str, str]] = {}
        tensors: dict[str, Tensor] = {}
        for key, (name, parts) in waiting.items():
            own = {self._name(key, part): tensor for part, tensor in parts.items()}
            images[key] = {"name": name, "sha256": self._hash(own)}
            tensors |= own
        write_tensors(self._path(shard), tensors, {"format": FORMAT})
        index = {"format": FORMAT, "images": images}
        write_json(self.folder / "index" / f"{shard}.json", index)
        self._waiting.clear()
        self._shards[shard] = images
        self._shard_of |= dict.fromkeys(images, shard)

    def drop_shard_of(self, key: str) -> set[str]:
        """Give up the shard that holds an image's tensors, if any; returns the keys in it."""
        shard = self._shard_of.get(key)
        if shard is None:
            return set()
        (self.folder / "index" / f"{shard}.json").unlink(missing_ok=True)
        self._path(shard).unlink(missing_ok=True)
        keys = set(self._shards[shard])
        self.refresh()
        return keys

    def fits(self, title: str, images: int, there: int, each: int) -> bool:
        """Say how much space the tensors of images take, before any work.

        Args:
            title: what they are.
            images: how many.
            there: of how many they are here already.
            each: bytes of one image's, at most.

        Returns:
            Whether so much is free.
        """
        missing = (images - there) * each
        free = shutil.disk_usage(self.folder).free
        logger.info(
            "%s of %s images: at most %s in %s; %s are there, at most %s to write, %s free",
            title, f"{images:,}", size(images * each), self.folder, f"{there:,}", size(missing),
            size(free),
        )  # fmt: skip
        return missing <= free

    def _entry(self, key: str) -> tuple[str, str] | None:
        """Shard and hash of an image's tensors, as far as this process knows."""
        shard = self._shard_of.get(key)
        return None if shard is None else (shard, self._shards[shard][key]["sha256"])

    def _verified(self, key: str, shapes: Mapping[str, Shape] | None) -> dict[str, Tensor]:
        shard = self._shard_of[key]
        with safe_open(self._path(shard), framework="pt") as file:
            if file.metadata() != {"format": FORMAT}:
                raise ValueError("its format is not the one that was written")
            tensors: dict[str, Tensor] = {
                part: file.get_tensor(self._name(key, part)) for part in self.parts
            }
        own = {self._name(key, part): tensor for part, tensor in tensors.items()}
        if self._hash(own) != self._shards[shard][key]["sha256"]:
            raise ValueError("its content is not what was written")
        for part, tensor in tensors.items():
            if tensor.dtype != self.dtype:
                raise ValueError(f"its type is {tensor.dtype}, and not {self.dtype}")
            if shapes is not None and tuple(tensor.shape) != shapes[part]:
                raise ValueError(f"its shape is {list(tensor.shape)}, and not {list(shapes[part])}")
            if not tensor.isfinite().all():
                raise ValueError("its values are not finite")
        return tensors

    def _hash(self, tensors: Mapping[str, Tensor]) -> str:
        return tensors_sha256(tensors, self.kind)

    def _name(self, key: str, part: str) -> str:
        return f"{key}.{part}" if part else key

    def _path(self, shard: str) -> Path:
        return self.folder / "shards" / f"{shard}.safetensors"


def size(count: float) -> str:
    """Bytes for people."""
    for unit, value in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= value:
            return f"{count / value:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _read_index(path: Path) -> dict[str, dict[str, str]]:
    """The images of a shard by key; none where the index is damaged or was just dropped."""
    try:
        data = read_json(path)
        if data["format"] != FORMAT:
            raise ValueError("written by another version")
        images = {
            key: {"name": row["name"], "sha256": row["sha256"]}
            for key, row in data["images"].items()
        }
        if not all(isinstance(text, str) for row in images.values() for text in row.values()):
            raise ValueError("its rows are not text")
        return images
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("index %s cannot be used (%s): its shard is computed again", path, error)
        return {}
