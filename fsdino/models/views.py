"""Further views of an annotated image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LEAST = 0.05  # of the object that a crop must hold


@dataclass(frozen=True)
class View:
    """A mirrored crop of an image.

    Attributes:
        image: uint8 [h, w, 3].
        mask: bool [h, w].
        left, right: the crop's columns, as shares of the image's width.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    left: float
    right: float

    def places(self, grid: tuple[int, int]) -> Tensor:
        """Horizontal positions of the crop's tokens in the image, in [0, 1): [h, w]."""
        height, width = grid
        across = 1 - (torch.arange(width) + 0.5) / width  # mirrored
        return (self.left + across * (self.right - self.left)).expand(height, width)


def closer(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], share: float) -> View | None:
    """A mirrored close-up: a crop around the middle of the object.

    Args:
        image: uint8 [H, W, 3].
        mask: bool [H, W], not empty.
        share: of both sides, in (0, 1].

    Returns:
        The view; None where it would hold less than 5 % of the object.
    """
    height, width = (max(int(side * share), 1) for side in mask.shape)
    rows, columns = np.nonzero(mask)
    top = _start(rows.mean(), height, mask.shape[0])
    left = _start(columns.mean(), width, mask.shape[1])
    window = np.s_[top : top + height, left : left + width]
    if mask[window].sum() < _LEAST * mask.sum():
        return None
    return View(
        np.ascontiguousarray(image[window][:, ::-1]),
        np.ascontiguousarray(mask[window][:, ::-1]),
        left / mask.shape[1],
        (left + width) / mask.shape[1],
    )


def _start(middle: float, length: int, whole: int) -> int:
    """Start of a window of a length around a middle, moved so that it stays inside."""
    return int(np.clip(middle - length / 2, 0, whole - length))
