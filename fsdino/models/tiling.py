"""Large images in overlapping tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A tile's rows and columns in its image."""

    rows: slice
    columns: slice


def tile_boxes(image: tuple[int, int], tile: tuple[int, int], overlap: float = 0.5) -> list[Box]:
    """Boxes of size `tile` (height, width) that cover an image with at least `overlap`.

    A side of the image that is not longer than the tile's gets one tile, of the image's length.
    """
    rows, columns = (_spans(i, t, overlap) for i, t in zip(image, tile, strict=True))
    return [Box(r, c) for r in rows for c in columns]


def blend(maps: Sequence[Tensor], boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """Average overlapping maps [N, h, w], weighted down towards their borders: [N, *size]."""
    total = maps[0].new_zeros((maps[0].shape[0], *size))
    weights = maps[0].new_zeros(size)
    for tile, box in zip(maps, boxes, strict=True):
        rows, columns = (_ramp(n, tile) for n in tile.shape[1:])
        weight = rows[:, None] * columns
        total[:, box.rows, box.columns] += tile * weight
        weights[box.rows, box.columns] += weight
    return total / weights


def _spans(length: int, tile: int, overlap: float) -> list[slice]:
    if length <= tile:
        return [slice(0, length)]
    step = max(int(tile * (1 - overlap)), 1)
    count = -(-(length - tile) // step) + 1
    starts = torch.linspace(0, length - tile, count).round().long().tolist()
    return [slice(start, start + tile) for start in starts]


def _ramp(length: int, like: Tensor) -> Tensor:
    """Triangle over a tile's side: highest in the middle, above 0 at the border."""
    positions = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(positions, length - positions) / length
