"""Resizing between images and a model's tensors, there and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fsdino.errors import UsageError
from fsdino.images import Flags, Pixels


def to_tensor(image: Pixels, size: tuple[int, int]) -> Tensor:
    """Resize an image to a model's input, bilinear with antialiasing.

    Args:
        image: uint8 [H, W, 3].
        size: (h, w) of the result; the aspect ratio follows it.

    Returns:
        float32 [3, h, w] in [0, 1], on the CPU.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    _check_target(size)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise UsageError(
            f"to_tensor: {image.dtype} {list(image.shape)} is not uint8 [H, W, 3]; read it with "
            "read_image"
        )
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    # One channel at a time: as floats a large photograph takes gigabytes.
    planes = [
        interpolate(
            pixels[None, None, :, :, channel].float(),
            size,
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        for channel in range(3)
    ]
    return torch.cat(planes, dim=1)[0].div_(255).clamp_(0, 1)


def mask_to_tensor(mask: Flags, size: tuple[int, int]) -> Tensor:
    """The share of each cell that a mask covers, exact for any ratio of sizes.

    Args:
        mask: bool [H, W].
        size: (h, w) of the result.

    Returns:
        float32 [h, w] in [0, 1], on the CPU; its mean is the mask's.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    _check_target(size)
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise UsageError(
            f"mask_to_tensor: {mask.dtype} {list(mask.shape)} is not bool [H, W]; read it with "
            "read_mask"
        )
    rows, columns = (_overlap(cells, n) for cells, n in zip(size, mask.shape, strict=True))
    flags = torch.from_numpy(np.require(mask, requirements=["C", "W"])).to(torch.float32)
    return (rows @ flags @ columns.T).clamp_(0, 1)


def _overlap(cells: int, pixels: int) -> Tensor:
    """float32 [cells, pixels]: the share of each cell that each pixel of the same line fills."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * (pixels / cells)
    pixel = torch.arange(pixels, dtype=torch.float64)
    end = torch.minimum(edges[1:, None], pixel + 1)
    start = torch.maximum(edges[:-1, None], pixel)
    return ((end - start).clamp_(min=0) * (cells / pixels)).float()


def resize_back(map: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a model's output maps to the image that they are about.

    Bilinear, pixel centres at half integers, and antialiased where `size` is the smaller one.
    Differentiable.

    Args:
        map: floating [N, h, w] on any device.
        size: (H, W) of the image.

    Returns:
        [N, H, W] on the same device; float32, or float64 if the map is.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    _check_target(size)
    if not map.is_floating_point() or map.ndim != 3:
        raise UsageError(f"resize_back: {map.dtype} {list(map.shape)} is not floating [N, h, w]")
    map = map if map.dtype == torch.float64 else map.float()
    antialias = size[0] < map.shape[1] or size[1] < map.shape[2]
    return interpolate(map[None], size, mode="bilinear", antialias=antialias, align_corners=False)[
        0
    ]


def _check_target(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"size {tuple(size)}: pass (height, width), each at least 1")
