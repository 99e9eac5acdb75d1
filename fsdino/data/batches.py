"""How episodes become a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch

from fsdino.data.episodes import Episode, Image, Mask, Sample
from fsdino.errors import UsageError
from fsdino.resizing import nearest_mask, to_tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B episodes of K shots, at one image size.

    Attributes:
        support_images: float32 [B, K, 3, H, W] in [0, 1].
        support_masks: float32 [B, K, H, W], 0 or 1.
        query_images: float32 [B, 3, H, W] in [0, 1].
        query_masks: float32 [B, H, W], 0 or 1.
        query_ignore: bool [B, H, W], True for pixels of the query without an annotation.
        class_ids: int64 [B].
        indices: int64 [B], the episodes' own indices.
    """

    support_images: torch.Tensor
    support_masks: torch.Tensor
    query_images: torch.Tensor
    query_masks: torch.Tensor
    query_ignore: torch.Tensor
    class_ids: torch.Tensor
    indices: torch.Tensor

    def __len__(self) -> int:
        """Return the number of episodes, B."""
        return int(self.class_ids.shape[0])

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; `torch.utils.data.DataLoader` calls this."""
        return Batch(**{name: tensor.pin_memory() for name, tensor in vars(self).items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`."""
        moved: dict[str, Any] = {
            name: tensor.to(device, non_blocking=non_blocking)
            for name, tensor in vars(self).items()
        }
        return Batch(**moved)


def collate(
    episodes: Sequence[Episode], size: int | tuple[int, int], *, rounded: bool = False
) -> Batch:
    """Stretch episodes to one size and stack them.

    Images are resized bilinearly with antialiasing (`resizing.to_tensor`), masks as HSNet's
    evaluation does (`resizing.nearest_mask`). Samples of different sizes and aspect ratios may
    share a batch.

    Args:
        episodes: B >= 1 episodes, all with the same number of supports.
        size: (height, width) in pixels, or the side of a square.
        rounded: resize images by PIL, as torchvision's `Resize` before `ToTensor` does, which
            rounds them to 8 bits; otherwise they stay as exact as float32 is.

    Raises:
        UsageError: no episode, a size below 1, or episodes that differ in K.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise UsageError(f"size {size}: both sides must be at least 1 pixel")
    if not episodes:
        raise UsageError("cannot collate an empty list of episodes")
    shots = sorted({episode.shots for episode in episodes})
    if len(shots) > 1:
        raise UsageError(
            f"episodes of {shots} shots cannot share a batch; batch equal shots together"
        )
    target = (height, width)
    queries = [episode.query for episode in episodes]
    supports = [sample for episode in episodes for sample in episode.supports]
    by_shot = (len(episodes), shots[0])
    return Batch(
        support_images=_images(supports, target, rounded).unflatten(0, by_shot),
        support_masks=_masks([s.mask for s in supports], target).unflatten(0, by_shot),
        query_images=_images(queries, target, rounded),
        query_masks=_masks([query.mask for query in queries], target),
        query_ignore=_masks([_ignore(query) for query in queries], target) > 0,
        class_ids=torch.tensor([episode.class_id for episode in episodes]),
        indices=torch.tensor([episode.index for episode in episodes]),
    )


def _images(samples: Sequence[Sample], size: tuple[int, int], rounded: bool) -> torch.Tensor:
    """Return the samples' images, float32 [N, 3, H, W] in [0, 1]."""
    return torch.stack(
        [to_tensor(_rounded(s.image, size) if rounded else s.image, size) for s in samples]
    )


def _rounded(image: Image, size: tuple[int, int]) -> Image:
    """Return an image that PIL has resized, uint8 [h, w, 3]."""
    resized = PIL.Image.fromarray(image).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
    return np.array(resized)


def _masks(masks: Sequence[Mask], size: tuple[int, int]) -> torch.Tensor:
    """Return masks, float32 [N, H, W], 0 or 1."""
    return torch.stack([nearest_mask(mask, size) for mask in masks])


def _ignore(sample: Sample) -> Mask:
    return np.zeros_like(sample.mask) if sample.ignore is None else sample.ignore
