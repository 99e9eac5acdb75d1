"""Features of a frozen encoder: each distinct image once, and if wanted once for all epochs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fsdino.models.checkpoints import tensors_sha256
from fsdino.models.encoders import GUIDE, Features
from fsdino.models.segmenter import Segmenter
from fsdino.training.store import Store

logger = logging.getLogger("fsdino.training")


class FeatureStore(Store):
    """Features, found by a hash of the image's pixels; what is damaged is computed again.

    Args:
        folder: may be shared by runs and processes.
        key: what decides the features besides the image: encoder, normalisation, dtype.
        dtype: of the features.
        levels: how many `Features.correlation` has.

    Raises:
        FsdinoError: the folder cannot be created.
    """

    def __init__(self, folder: Path, key: str, dtype: torch.dtype, levels: int = 1) -> None:
        kind = f"features-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        super().__init__(folder, kind, dtype, parts(levels), "pass another --feature-cache")

    def announce(self, images: int, features: Features) -> None:
        """Say how much space features take; a warning where so much is not free.

        Args:
            images: of how many.
            features: of one.
        """
        each = sum(tensor.nbytes for tensor in features.tensors())
        if not self.fits("features", images, min(len(self), images), each):
            logger.warning("the features may fill the disk: choose another --feature-cache")

    def get(self, content: str, shapes: Mapping[str, tuple[int, ...]]) -> Features | None:
        """The features [1, ...] of an image, if they are here and what was written.

        Args:
            content: the image's hash.
            shapes: of each part.
        """
        found = self.read(content, shapes)
        if found is None:
            self.drop_shard_of(content)
            return None
        return Features.of([found[part] for part in self.parts])

    def put(self, content: str, name: str, features: Features) -> None:
        """Keep the features [1, ...] of an image; those that are not finite are not worth it.

        Raises:
            FsdinoError: the disk is full or cannot be written.
        """
        tensors = dict(zip(self.parts, features.tensors(), strict=True))
        if all(tensor.isfinite().all() for tensor in tensors.values()):
            self.write(content, name, tensors)


def parts(levels: int) -> tuple[str, ...]:
    """Names of `Features.tensors`; that of the only level has no number."""
    correlation = [f"correlation.{i}" if levels > 1 else "correlation" for i in range(levels)]
    return ("shallow", "last", *correlation, "guide")


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
        encoder = self.model.encoder
        size = (image.shape[-2], image.shape[-1])
        plain = (1, encoder.channels, *encoder.grid(*size))
        correlation = [
            (1, *level, *grid)
            for level, grid in zip(encoder.levels, encoder.level_grids(*size), strict=True)
        ]
        guide = (1, 3, GUIDE * plain[2], GUIDE * plain[3])
        shapes = dict(zip(self.store.parts, (plain, plain, *correlation, guide), strict=True))
        content = tensors_sha256({"pixels": image})
        found = self.store.get(content, shapes)
        if found is not None:
            return found.to(image.device)
        features = self._encode(image[None]).contiguous()  # as those that are read
        self.store.put(content, name, features)
        return features

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Features:
        kind = images.device.type
        with torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32):
            features = self.model.encode(images)
        return features if self.dtype == torch.float32 else features.to(self.dtype)
