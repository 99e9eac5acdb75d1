"""Features of a frozen encoder: each distinct image once, and if wanted once for all epochs."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fsdino.errors import FsdinoError
from fsdino.models.checkpoints import write_tensors
from fsdino.models.encoder import Features
from fsdino.models.segmenter import Segmenter

logger = logging.getLogger("fsdino.training")

_PARTS = ("shallow", "last", "correlation")


class FeatureStore:
    """Features on disk, one file an image; what is damaged is computed again.

    Args:
        folder: created if missing; may be shared by runs and processes.
        key: what decides the features besides the image: encoder, size, dtype.

    Raises:
        FsdinoError: the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FsdinoError(f"cannot create {folder}: {error.strerror}") from error

    def announce(self, images: int, features: Features) -> None:
        """Say how much disk so many images like this one take.

        Args:
            images: how many there will be.
            features: of one.
        """
        needed = images * sum(getattr(features, part).nbytes for part in _PARTS)
        free = shutil.disk_usage(self.folder).free
        level = logging.WARNING if needed > free else logging.INFO
        logger.log(
            level, "features of %d images take up to %.1f GB in %s, where %.1f GB are free",
            images, needed / 1e9, self.folder, free / 1e9,
        )  # fmt: skip

    def get(self, name: str) -> Features | None:
        """The features [1, ...] of an image, if they are here."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            found = load_file(path)
            return Features(*(found[part] for part in _PARTS))
        except (SafetensorError, KeyError, OSError) as error:
            logger.warning("%s is damaged (%s): computed again", path, error)
            return None

    def put(self, name: str, features: Features) -> None:
        """Keep the features [1, ...] of an image.

        Raises:
            FsdinoError: the disk is full or cannot be written.
        """
        path = self._path(name)
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, {part: getattr(features, part) for part in _PARTS}, {"name": name})

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(f"{self.key}\n{name}".encode()).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}.safetensors"


class FrozenEncoder:
    """Encodes without a graph, under autocast, every distinct image of a batch once.

    Args:
        model: whose encoder is frozen.
        dtype: of the encoder, under autocast where it is not float32.
        out: of the features that are returned.
        store: keeps features; images are then encoded one by one, so that their bits do not depend
            on which of them were there already.
    """

    def __init__(
        self,
        model: Segmenter,
        dtype: torch.dtype,
        out: torch.dtype,
        store: FeatureStore | None = None,
    ) -> None:
        self.model, self.dtype, self.out, self.store = model, dtype, out, store

    def __call__(self, images: Tensor, names: Sequence[str]) -> Features:
        """Features of images [N, 3, H, W], of which those of one name are the same."""
        rows: dict[str, int] = {}
        for row, name in enumerate(names):
            rows.setdefault(name, row)
        places = {name: place for place, name in enumerate(rows)}
        if self.store is None:
            distinct = images if len(rows) == len(names) else images[list(rows.values())]
            features = self._encode(distinct)
        else:
            features = Features.cat(self._kept(name, images[row]) for name, row in rows.items())
        if len(rows) < len(names):
            features = features[torch.tensor([places[n] for n in names], device=images.device)]
        return features.to(self.out)

    def _kept(self, name: str, image: Tensor) -> Features:
        assert self.store is not None
        found = self.store.get(f"{name} {tuple(image.shape[-2:])}")
        if found is not None:
            return found.to(image.device)
        features = self._encode(image[None])
        self.store.put(f"{name} {tuple(image.shape[-2:])}", features)
        return features

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Features:
        kind = images.device.type
        with torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32):
            features = self.model.encode(images)
        return features if self.dtype == torch.float32 else features.to(self.dtype)
