"""Resizing between images and a model's tensors, there and back.

Masks are resized by one of two rules. `nearest_mask` takes single pixels, as the published
evaluations do when they bring masks to the size of the model's input; batches of episodes use it.
`area_share`, and `area_shares` for a batch, measure how much of each cell is covered, so that small
objects are not lost; the masks of tokens use it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

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


def nearest_mask(mask: Flags, size: tuple[int, int]) -> Tensor:
    """The mask's value at one pixel of each cell, by HSNet's rule (Min, Kang, Cho, ICCV 2021).

    `torch.nn.functional.interpolate(mode="nearest")`, as `data/dataset.py` of HSNet's code has it.

    Args:
        mask: bool [H, W].
        size: (h, w) of the result.

    Returns:
        float32 [h, w], 0 or 1, on the CPU.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    return interpolate(_flags(mask, size, "nearest_mask")[None, None], size, mode="nearest")[0, 0]


def area_share(mask: Flags, size: tuple[int, int]) -> Tensor:
    """The share of each cell that a mask covers, exact for any ratio of sizes.

    Args:
        mask: bool [H, W].
        size: (h, w) of the result.

    Returns:
        float32 [h, w] in [0, 1], on the CPU; its mean is the mask's.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    flags = _flags(mask, size, "area_share")
    rows, columns = (_overlap(cells, n) for cells, n in zip(size, mask.shape, strict=True))
    return (rows @ flags @ columns.T).clamp_(0, 1)


def area_shares(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of each cell that the masks of a batch cover.

    Exact where the masks' sides are multiples of the result's, as those of a model's input are;
    between others, windows of whole pixels overlap.

    Args:
        masks: [B, H, W] in [0, 1].
        size: (h, w) of the result.

    Returns:
        float32 [B, h, w] in [0, 1].
    """
    return adaptive_avg_pool2d(masks.float()[:, None], size)[:, 0]


def _flags(mask: Flags, size: tuple[int, int], name: str) -> Tensor:
    """float32 [H, W] of a mask that can be resized.

    Raises:
        UsageError: it or the size cannot; names the function that was called.
    """
    _check_target(size)
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise UsageError(
            f"{name}: {mask.dtype} {list(mask.shape)} is not bool [H, W]; read it with read_mask"
        )
    return torch.from_numpy(np.require(mask, requirements=["C", "W"])).to(torch.float32)


def _overlap(cells: int, pixels: int) -> Tensor:
    """float32 [cells, pixels]: the share of each cell that each pixel of the same line fills."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * (pixels / cells)
    pixel = torch.arange(pixels, dtype=torch.float64)
    end = torch.minimum(edges[1:, None], pixel + 1)
    start = torch.maximum(edges[:-1, None], pixel)
    return ((end - start).clamp_(min=0) * (cells / pixels)).float()


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a model's output maps to the images that they are about.

    Bilinear, pixel centres at half integers, and antialiased where `size` is the smaller one.
    Differentiable.

    Args:
        logits: floating [B, V, h, w] on any device.
        size: (H, W) of the images.

    Returns:
        [B, V, H, W] on the same device; float32, or float64 if the logits are.

    Raises:
        UsageError: another type or shape, or a size below 1.
    """
    _check_target(size)
    if not logits.is_floating_point() or logits.ndim != 4:
        raise UsageError(
            f"resize_logits: {logits.dtype} {list(logits.shape)} is not floating [B, V, h, w]"
        )
    exact = logits if logits.dtype == torch.float64 else logits.float()
    antialias = size[0] < logits.shape[2] or size[1] < logits.shape[3]
    return interpolate(exact, size, mode="bilinear", antialias=antialias, align_corners=False)


def _check_target(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"size {tuple(size)}: pass (height, width), each at least 1")
