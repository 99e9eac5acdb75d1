"""Features of a frozen encoder: each distinct image once, and if wanted once for all epochs."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsdino import files
from fsdino.errors import first_line
from fsdino.models.checkpoints import tensors_sha256, write_tensors
from fsdino.models.encoders import GUIDE, Features
from fsdino.models.segmenter import Segmenter

logger = logging.getLogger("fsdino.training")

FORMAT = "fsdino-features-3"
_PARTS = ("shallow", "last", "correlation", "guide")


class FeatureStore:
    """Features on disk, one file an image; what is damaged is computed again.

    A file says which image and which key it belongs to, and holds a hash of that and of its
    tensors, which is verified whenever it is read.

    Args:
        folder: created if missing; may be shared by runs and processes.
        key: what decides the features besides the image: encoder, size, dtype.

    Raises:
        FsdinoError: the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        files.make_folder(folder, "pass another --feature-cache")
        for part in ("", *(f"{number:02x}" for number in range(256))):
            files.remove_leftovers(folder / part)

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

    def get(
        self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> Features | None:
        """The features [1, ...] of an image, if they are here and what was written.

        Args:
            name: the image's.
            shapes: of each part.
            dtype: of all of them.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                found = {part: file.get_tensor(part) for part in _PARTS}
            for title, expected in self._metadata(name, found).items():
                if metadata.get(title) != expected:
                    raise ValueError(f"its {title} is not the one that was written")
            for part, tensor in found.items():
                if (tuple(tensor.shape), tensor.dtype) != (shapes[part], dtype):
                    raise ValueError(f"{part} is {tensor.dtype} {list(tensor.shape)}")
                if not tensor.isfinite().all():
                    raise ValueError(f"{part} holds values that are not finite")
            return Features(*(found[part] for part in _PARTS))
        except (SafetensorError, ValueError, OSError) as error:
            logger.warning("%s is damaged (%s): computed again", path, first_line(error))
            return None

    def put(self, name: str, features: Features) -> None:
        """Keep the features [1, ...] of an image; those that are not finite are not worth it.

        Raises:
            FsdinoError: the disk is full or cannot be written.
        """
        tensors = {part: getattr(features, part) for part in _PARTS}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return
        path = self._path(name)
        files.make_folder(path.parent, "pass another --feature-cache")
        write_tensors(path, tensors, self._metadata(name, tensors))

    def _metadata(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """What a file says of itself; the hash covers all of it."""
        said = {"format": FORMAT, "key": self.key, "name": name}
        return {**said, "sha256": tensors_sha256(tensors, json.dumps(said, sort_keys=True))}

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(f"{FORMAT}\n{self.key}\n{name}".encode()).hexdigest()[:32]
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
        encoder = self.model.encoder
        plain = (1, encoder.channels, *encoder.grid(image.shape[-2], image.shape[-1]))
        correlation = (1, len(encoder.correlation_layers), *plain[1:])
        guide = (1, 3, GUIDE * plain[2], GUIDE * plain[3])
        shapes = {"shallow": plain, "last": plain, "correlation": correlation, "guide": guide}
        found = self.store.get(f"{name} {tuple(image.shape[-2:])}", shapes, self.dtype)
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
