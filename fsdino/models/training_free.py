"""Masks from an encoder's features alone, without any trained part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino import ops
from fsdino.models.encoders import Features
from fsdino.models.prompts import cosine_map
from fsdino.models.supports import Shot, SupportFeatures


def prototype_score(query: Features, support: SupportFeatures) -> Tensor:
    """Cosine to the foreground prototype minus cosine to the background's: [B, 1, h, w].

    As in PANet (Wang et al., ICCV 2019); in [-2, 2].
    """
    foreground = cosine_map(query.last, support.foreground)
    return foreground - cosine_map(query.last, support.background)


def correspondence_score(query: Features, support: SupportFeatures) -> Tensor:
    """Where do a query token's best matches lie in the support? [B, 1, h, w].

    The mean of three scores: the prototypes', the best foreground match minus the best background
    match, and the votes of mutual nearest neighbours, spread over a 3x3 neighbourhood. Averaged
    over shots; the correlation is averaged over the correlation layers.
    """
    matches = [_match(query, shot) for shot in support.shots]
    return (prototype_score(query, support) + 2 * torch.stack(matches).mean(0)) / 3


def _match(query: Features, shot: Shot) -> Tensor:
    side = torch.where(shot.mask >= 0.5, 1.0, -1.0)  # [B, Hs, Ws]
    volume = ops.correlation4d(query.correlation, shot.correlation, side.to(query.last.dtype))
    volume = volume.float().mean(1).flatten(1, 2).flatten(2)  # [B, N, M]: sign tells the side
    contrast = volume.amax(2).clamp_min(0) + volume.amin(2).clamp_max(0)  # [B, N]

    similarity = volume.abs()
    to_support, to_query = similarity.argmax(2), similarity.argmax(1)  # [B, N], [B, M]
    tokens = torch.arange(volume.shape[1], device=volume.device)
    mutual = to_query.gather(1, to_support) == tokens
    votes = side.flatten(1).gather(1, to_support) * mutual  # [B, N] in {-1, 0, 1}

    grid = query.last.shape[-2:]
    votes = F.avg_pool2d(votes.unflatten(1, grid)[:, None], 3, stride=1, padding=1)
    score: Tensor = (contrast.unflatten(1, grid)[:, None] + votes) / 2  # [B, 1, h, w]
    return score
