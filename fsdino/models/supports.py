"""Supports: what a model keeps of annotated images, on disk and in a forward pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsdino.errors import CheckpointError, UsageError
from fsdino.models.checkpoints import write_tensors

_FORMAT = "fsdino-support-1"


@dataclass(frozen=True)
class Shot:
    """One annotated image as tokens: correlation [B, L, C, h, w] and mask [B, h, w] in [0, 1]."""

    correlation: Tensor
    mask: Tensor


@dataclass(frozen=True)
class SupportFeatures:
    """K shots as a forward pass takes them.

    Attributes:
        foreground: [B, C] prototype, averaged over shots.
        background: [B, C] likewise.
        shots: one per annotated image; their grids may differ.
    """

    foreground: Tensor
    background: Tensor
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Support:
    """K annotated images of one class, encoded once by one model.

    Made by `Segmenter.encode_support`; only the model that made it accepts it.

    Attributes:
        foreground: [K, C] masked means of the last tokens.
        background: [K, C] the same for the rest of each image.
        correlation: K tensors [L, C, h, w].
        masks: K tensors [h, w], share of foreground per token.
        image_sizes: (height, width) of the K images, in pixels.
        model_fingerprint: of the model that made it.
    """

    foreground: Tensor
    background: Tensor
    correlation: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    image_sizes: tuple[tuple[int, int], ...]
    model_fingerprint: str

    @property
    def shots(self) -> int:
        """K, the number of annotated images."""
        return len(self.masks)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Support:
        """The same support on another device, for a model whose weights have another dtype."""
        return replace(
            self,
            foreground=self.foreground.to(device),
            background=self.background.to(device),
            correlation=tuple(t.to(device, dtype) for t in self.correlation),
            masks=tuple(t.to(device) for t in self.masks),
        )

    def features(self, batch: int) -> SupportFeatures:
        """For `batch` queries; expanded, not copied."""
        return SupportFeatures(
            self.foreground.mean(0, keepdim=True).expand(batch, -1),
            self.background.mean(0, keepdim=True).expand(batch, -1),
            [
                Shot(c.expand(batch, *c.shape), m.expand(batch, *m.shape))
                for c, m in zip(self.correlation, self.masks, strict=True)
            ],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            FsdinoError: the folder is missing, not writable or full.
        """
        tensors = {"foreground": self.foreground, "background": self.background}
        for k in range(self.shots):
            tensors[f"correlation.{k}"] = self.correlation[k]
            tensors[f"masks.{k}"] = self.masks[k]
        metadata = {
            "format": _FORMAT,
            "model_fingerprint": self.model_fingerprint,
            "image_sizes": " ".join(f"{height}x{width}" for height, width in self.image_sizes),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Support:
        """Read what `save` wrote.

        Raises:
            UsageError: there is no such file.
            CheckpointError: the file is damaged or no support.
        """
        if not Path(path).is_file():
            raise UsageError(f"support {path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise CheckpointError(
                        f"support {path} was not written by Support.save: encode the support again"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sizes = [size.split("x") for size in metadata["image_sizes"].split()]
            return cls(
                tensors["foreground"],
                tensors["background"],
                tuple(tensors[f"correlation.{k}"] for k in range(len(sizes))),
                tuple(tensors[f"masks.{k}"] for k in range(len(sizes))),
                tuple((int(height), int(width)) for height, width in sizes),
                metadata["model_fingerprint"],
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"support {path} is damaged ({error}): encode the support again"
            ) from error


def token_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks [B, H, W] to the token grid [B, h, w]: the area mean of each token.

    Scaled so that the best covered token counts as foreground entirely: else an object smaller
    than a token would be background by 2m - 1. Empty masks stay empty.
    """
    mean = F.adaptive_avg_pool2d(mask.float()[:, None], grid)[:, 0]
    return mean / mean.amax((1, 2), keepdim=True).clamp_min(1e-6)
