"""The meta-visual prompt generator: supports turned into SAM's two kinds of prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fsdino.models.config import ModelConfig


def cosine_map(tokens: Tensor, prototype: Tensor) -> Tensor:
    """Cosine of tokens [B, C, h, w] with a prototype [B, C]: [B, 1, h, w] in [-1, 1]."""
    unit = F.normalize(prototype.float(), dim=1)
    return torch.einsum("bchw,bc->bhw", F.normalize(tokens.float(), dim=1), unit)[:, None]


class VisualPrompt(nn.Module):
    """Semantic-aware visual prompt: the prototype [B, C] as sparse tokens [B, T, width].

    A bottleneck MLP that takes the place of SAM's point tokens (FS-DINO, arXiv 2504.15669).
    """

    def __init__(self, channels: int, width: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, tokens * width)
        )
        self.tokens = tokens

    def forward(self, prototype: Tensor) -> Tensor:
        """[B, C] -> [B, T, width]."""
        return self.mlp(prototype).unflatten(1, (self.tokens, -1))  # type: ignore[no-any-return]


class DensePrompt(nn.Module):
    """Fuse the dense maps [B, maps, h, w] to SAM's mask prompt [B, width, h, w].

    A small convolutional head where there is a 4D prior, a single 1x1 convolution otherwise.
    """

    def __init__(self, maps: int, width: int, with_prior: bool) -> None:
        super().__init__()
        if with_prior:
            self.fuse: nn.Module = nn.Sequential(
                nn.Conv2d(maps, width // 2, 3, padding=1), LayerNorm2d(width // 2), nn.GELU(),
                nn.Conv2d(width // 2, width, 1),
            )  # fmt: skip
        else:
            self.fuse = nn.Conv2d(maps, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, maps, h, w] -> [B, width, h, w]."""
        return self.fuse(maps)  # type: ignore[no-any-return]


def dense_maps(config: ModelConfig) -> int:
    """How many dense maps a configuration fuses."""
    prior = config.correlation_channels[-1] if config.uses_correlation else 0
    return int(config.cosine_prompt) + int(config.score_prompt) + prior
