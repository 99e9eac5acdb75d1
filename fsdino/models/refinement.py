"""Masks that follow the edges of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CLIP = 0.5  # of scores: clearer tokens move no edge further
_HALF = 2  # half side of the windows, in half tokens
_EVEN = 1e-4  # variance of colour, of [0, 1], below which a window counts as even


@torch.no_grad()
def refine(score: Tensor, guide: Tensor) -> Tensor:
    """Scores of tokens, brought to a finer grid along the edges of the image.

    In each window of two and a half tokens, the score is fitted as a linear function of the colour
    (guided filter: He, Sun, Tang, PAMI 2013; coefficients on a coarser grid than the result: He,
    Sun, arXiv 1505.00996).

    Args:
        score: [B, 1, h, w], positive inside; clipped to [-0.5, 0.5].
        guide: [B, 3, H, W], the images at the size of the result.

    Returns:
        [B, 1, H, W] in float32.
    """
    with torch.autocast(score.device.type, enabled=False):
        guide = guide.float()
        size = (2 * score.shape[-2], 2 * score.shape[-1])
        colour = F.adaptive_avg_pool2d(guide, size)  # [B, 3, n, m]
        target = _resize(score.float().clamp(-_CLIP, _CLIP), size)
        products = (colour[:, :, None] * colour[:, None]).flatten(1, 2)
        means = _windows(torch.cat([colour, target, products, colour * target], 1))
        colour_mean, target_mean, products, mixed = means.split([3, 1, 9, 3], 1)
        outer = (colour_mean[:, :, None] * colour_mean[:, None]).flatten(1, 2)
        covariance = (products - outer).unflatten(1, (3, 3)).permute(0, 3, 4, 1, 2)
        covariance = covariance + _EVEN * torch.eye(3, device=score.device)
        shared = (mixed - colour_mean * target_mean).permute(0, 2, 3, 1)
        slope = torch.linalg.solve(covariance, shared).permute(0, 3, 1, 2)
        offset = target_mean - (slope * colour_mean).sum(1, keepdim=True)
        line = _resize(_windows(torch.cat([slope, offset], 1)), (guide.shape[-2], guide.shape[-1]))
        return (line[:, :3] * guide).sum(1, keepdim=True) + line[:, 3:]


def _windows(maps: Tensor) -> Tensor:
    """Means over the windows around each place, with the rim repeated outside."""
    padded = F.pad(maps, (_HALF,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * _HALF + 1, stride=1)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
