"""The bottleneck adapter: early encoder tokens to the distribution of SAM's image embedding."""

from __future__ import annotations

from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SelfAttentionBlock(nn.Module):
    """Pre-norm self-attention and feed-forward over the tokens of a map [B, C, h, w]."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape."""
        tokens = x.flatten(2).transpose(1, 2)  # [B, h*w, C]
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """Encoder tokens [B, C, h, w] -> SAM-like image embedding [B, width, h, w].

    1x1 and 3x3 convolutions at `width`, a bottleneck with two self-attention blocks at `inner`
    channels (feed-forward 4 * inner), and back (FS-DINO, arXiv 2504.15669). LayerNorm2d and GELU
    are this package's choice: no batch statistics, since episodes come one or two at a time.
    """

    def __init__(self, channels: int, width: int = 256, inner: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, width, 1), LayerNorm2d(width), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), LayerNorm2d(width), nn.GELU(),
            nn.Conv2d(width, inner, 1),
        )  # fmt: skip
        self.blocks = nn.Sequential(
            *(SelfAttentionBlock(inner, heads, hidden=4 * inner) for _ in range(2))
        )
        self.expand = nn.Conv2d(inner, width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, width, h, w]."""
        return self.expand(self.blocks(self.reduce(tokens)))  # type: ignore[no-any-return]
