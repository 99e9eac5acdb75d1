"""How near the student is to the teacher, on either's grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.models.encoders.pyramid import to_grid


def on_teachers_grid(student: Tensor, extents: Tensor, side: int) -> Tensor:
    """Read the student's maps at the centres of the teacher's cells, bilinear.

    The student saw the whole image stretched over its map; the teacher saw it in the upper left
    corner of a square, where it covers `extents` cells, rarely whole numbers.

    Args:
        student: [B, C, h, w].
        extents: [B, 2], height and width of each image in cells of the teacher.
        side: S, cells along the teacher's square.

    Returns:
        float32 [B, C, S, S]; beyond an image's extents, its border repeated.
    """
    centres = torch.arange(side, device=student.device) + 0.5
    rows, columns = (2 * centres / extents[:, axis, None] - 1 for axis in (0, 1))  # [B, S] each
    points = torch.stack(
        [columns[:, None].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)], dim=-1
    )
    return F.grid_sample(
        student.float(), points.float(), padding_mode="border", align_corners=False
    )


def stack_targets(targets: Sequence[Tensor], side: int) -> tuple[Tensor, Tensor]:
    """Embeddings [C, h, w] of several sizes as one [B, C, S, S], and where they are.

    Returns:
        The embeddings, 0 outside; and bool [B, S, S].
    """
    stacked = targets[0].new_zeros(len(targets), len(targets[0]), side, side)
    inside = torch.zeros(len(targets), side, side, dtype=torch.bool)
    for index, target in enumerate(targets):
        height, width = target.shape[1:]
        stacked[index, :, :height, :width] = target
        inside[index, :height, :width] = True
    return stacked, inside


def on_students_grid(targets: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Bring embeddings [C, h, w] of several sizes to one grid: float32 [B, C, *grid].

    Each covers one image to half a cell, as the student's map does exactly. Means over areas where
    the grid is coarser, bilinear where it is finer.
    """
    return torch.cat([to_grid(target[None].float(), grid) for target in targets])


def agreement(student: Tensor, target: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error and mean cosine of each image, over the cells that are in it.

    Args:
        student, target: [B, C, h, w].
        inside: bool [B, h, w].

    Returns:
        Two tensors [B].
    """
    target = target.float()
    cells = inside.sum((1, 2))
    error = (student - target).square().mean(1)
    cosine = F.cosine_similarity(student, target, dim=1)
    mse, cosine = ((x * inside).sum((1, 2)) / cells for x in (error, cosine))
    return mse, cosine
