"""Resizing as two matrix products, for graphs whose images have any size.

The weights are computed in the graph from the sizes, and are those of PyTorch's `interpolate`. No
runtime's own Resize is trusted with it: OpenVINO ignores antialiasing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positions(count: int) -> Tensor:
    """int64 [count]: 0, 1, ..."""
    return torch.arange(count, dtype=torch.int64)


def bilinear(cells: int, pixels: int, length: Tensor) -> Tensor:
    """Weights of bilinear resizing, antialiased where it reduces: [B, cells, pixels].

    Args:
        cells: of the result.
        pixels: of the lines that are resized.
        length: int64 [B], how many of a line's first pixels are those of the image.
    """
    cell, pixel = positions(cells).float()[:, None], positions(pixels)
    scale = length.float()[:, None, None] / cells
    # PyTorch's own steps, in float32: at the far end of a large image their rounding shows.
    distance = ((pixel.float() - scale * (cell + 0.5)) + 0.5) * (1 / scale.clamp_min(1))
    weights = (1 - distance.abs()).clamp_min(0) * (pixel < length[:, None, None])
    return weights / weights.sum(2, keepdim=True)


def aligned(cells: int, pixels: int) -> Tensor:
    """Weights of bilinear resizing with aligned corners: [cells, pixels]."""
    cell, pixel = positions(cells).float(), positions(pixels).float()
    # PyTorch's own steps, in float32: to HSNet, a token with any weight at all is the object's.
    step = pixel[-1] / cell[-1].clamp_min(1)
    source = torch.minimum(cell * step, pixel[-1])
    weights: Tensor = (1 - (pixel - source[:, None]).abs()).clamp_min(0)
    return weights


def areas(cells: int, pixels: int, length: Tensor) -> Tensor:
    """Weights of means over areas, pixels cut where a border crosses them: [B, cells, pixels].

    Args:
        cells, pixels, length: see `bilinear`.
    """
    cell, pixel = positions(cells)[:, None], positions(pixels)
    whole = length[:, None, None]
    end = torch.minimum((cell + 1) * whole, (pixel + 1) * cells)
    start = torch.maximum(cell * whole, pixel * cells)
    return (end - start).clamp_min(0).float() / whole.float()


def windows(cells: int, pixels: int) -> Tensor:
    """Weights of `adaptive_avg_pool2d`, whose windows are whole pixels: [cells, pixels]."""
    cell, pixel = positions(cells)[:, None], positions(pixels)
    start, end = cell * pixels // cells, -(-(cell + 1) * pixels // cells)
    inside = ((pixel >= start) & (pixel < end)).float()
    return inside / inside.sum(1, keepdim=True)


def nearest(cells: int, pixels: int, length: Tensor) -> Tensor:
    """Weights that take one pixel for each cell: [B, cells, pixels].

    Args:
        cells, pixels, length: see `bilinear`.
    """
    # Not a constant: OpenVINO would multiply by its reciprocal, and round to the pixel before.
    count = length.clamp(cells, cells)
    step = (length.float() / count.float())[:, None]
    place = (positions(cells).float() * step).floor().long()
    place = torch.minimum(place, length[:, None] - 1)
    return (positions(pixels) == place[..., None]).float()


def bicubic(cells: int, pixels: int, scale: float) -> Tensor:
    """Weights of bicubic resizing without antialiasing: [cells, pixels].

    Args:
        cells, pixels: see `bilinear`.
        scale: pixels for each cell, which need not be their quotient.
    """
    source = (positions(cells).float() + 0.5) * scale - 0.5
    first = source.floor()
    found = torch.zeros(cells, pixels)
    for tap in range(-1, 3):
        place = (first + tap).clamp(0, pixels - 1).long()
        weight = _cubic((source - first - tap).abs(), -0.75)
        found = found + weight[:, None] * (positions(pixels) == place[:, None])
    return found


def bicubic_antialiased(cells: int, pixels: int) -> Tensor:
    """Weights of bicubic resizing with antialiasing: [cells, pixels]."""
    step = pixels / cells
    centre = (positions(cells).float()[:, None] + 0.5) * step
    distance = (positions(pixels).float() + 0.5 - centre).abs() / max(step, 1.0)
    weights = _cubic(distance, -0.5)
    return weights / weights.sum(1, keepdim=True)


def _cubic(distance: Tensor, sharpness: float) -> Tensor:
    """Keys' cubic kernel, with the parameter that PyTorch has without and with antialiasing."""
    near = ((sharpness + 2) * distance - (sharpness + 3)) * distance * distance + 1
    far = sharpness * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0))


def resize(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps [..., H, W] by weights [..., h, H] and [..., w, W]: [..., h, w]."""
    found: Tensor = (rows @ maps) @ columns.mT
    return found


def image(pixels: Tensor, size: tuple[int, int], sizes: Tensor) -> Tensor:
    """Images to a model's input: see `fsdino.resizing.to_tensor`.

    Args:
        pixels: uint8 [B, H, W, 3].
        size: (h, w) of the result.
        sizes: int64 [B, 2], height and width of each image, which lies at the top left.

    Returns:
        float32 [B, 3, h, w] in [0, 1].
    """
    rows = bilinear(size[0], pixels.shape[1], sizes[:, 0])
    columns = bilinear(size[1], pixels.shape[2], sizes[:, 1])
    lines = rows @ pixels.float().flatten(2)  # [B, h, W * 3]
    maps = lines.unflatten(2, (pixels.shape[2], 3)).permute(0, 3, 1, 2)  # [B, 3, h, W]
    found: Tensor = ((maps @ columns[:, None].mT) / 255).clamp(0, 1)
    return found


def logits(maps: Tensor, height: int, width: int) -> Tensor:
    """A model's maps to the size of an image: see `fsdino.resizing.resize_logits`.

    Args:
        maps: [B, h, w].
        height, width: of the result.
    """
    own = torch.tensor([maps.shape[1]]), torch.tensor([maps.shape[2]])
    rows = bilinear(height, maps.shape[1], own[0])
    columns = bilinear(width, maps.shape[2], own[1])
    return resize(maps, rows, columns)
