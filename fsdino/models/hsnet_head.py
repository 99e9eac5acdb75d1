"""A baseline that learns from the same frozen features as FS-DINO: HSNet's head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.models.config import ModelConfig
from fsdino.models.encoders import Encoder, Features
from fsdino.models.hypercorrelation import CenterPivotBlock4d, correlate
from fsdino.models.segmenter import Segmenter
from fsdino.models.shots import Shot, SupportFeatures

LEVELS = 3


class HSNetHead(Segmenter):
    """Hypercorrelation squeeze over an encoder's blocks (after Min, Kang, Cho, ICCV 2021).

    The correlation layers, from early to late, form up to three levels. Each level's correlation
    of the query with the masked support is squeezed by center-pivot 4D blocks; from the last level
    to the first, the later one is added and mixed by another block. The mean over the support goes
    through a 2D decoder. Unlike in HSNet all levels have one resolution, so none is upsampled on
    the way. K shots: squeezed correlations are averaged, one pass.

    Args:
        config: `correlation_layers`, `correlation_channels` and `correlation_stride` are read.
        encoder: reads the images; models may share one.
    """

    def __init__(self, config: ModelConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        layers = len(self.encoder.correlation_layers)
        size = -(-layers // min(LEVELS, layers))
        self.levels = [list(range(layers))[i : i + size] for i in range(0, layers, size)]
        channels, width = config.correlation_channels, config.correlation_channels[-1]
        self.squeeze = nn.ModuleList(
            _squeeze((len(level), *channels), config.correlation_stride) for level in self.levels
        )
        self.mix = nn.ModuleList(
            CenterPivotBlock4d(width, width, support_stride=1) for _ in self.levels[1:]
        )
        half = max(width // 2, 1)
        self.before = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, half), nn.ReLU())
        self.after = nn.Sequential(_conv(half, half), nn.ReLU(), _conv(half, 1))
        self.set_trainable()

    def decode(self, query: Features, support: SupportFeatures) -> tuple[Tensor, None]:
        """Logits of the queries' masks: [B, 1, 2h, 2w]."""
        maps = self.before(support.each(query, self._squeezed).mean(0))
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
        return self.after(maps), None

    def _squeezed(self, query: Features, shot: Shot) -> Tensor:
        """What one shot says about every query token: [B, C, h, w]."""
        (asked,), (shown,), (mask,) = query.correlation, shot.correlation, shot.masks
        volume = correlate(asked, shown, mask.to(asked.dtype), self.encoder.layer_widths)
        mixed: Tensor | None = None
        for index in reversed(range(len(self.levels))):
            squeezed = self.squeeze[index](volume[:, self.levels[index]])
            mixed = squeezed if mixed is None else self.mix[index](squeezed + mixed)
        assert mixed is not None
        return mixed.mean((4, 5))


def _squeeze(channels: Sequence[int], stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(CenterPivotBlock4d(i, o, support_stride=stride) for i, o in pairwise(channels))
    )


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
