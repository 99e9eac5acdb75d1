"""4D correlation mining: from query and support features to a prior over the query."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from fsdino import ops
from fsdino.ops.squeeze import Block


class CenterPivotConv4d(nn.Module):
    """Center-pivot 4D convolution as a layer.

    Its parameters have the names and shapes of HSNet's `CenterPivotConv4d` (Min, Kang, Cho, ICCV
    2021), whose weights load as they are: `conv1.*` acts on the query dims, `conv2.*` on the
    support dims, each with its bias.

    Args:
        in_channels: Ci.
        out_channels: Co.
        kernel_size: odd side of both kernels.
        support_stride: stride over the support dims.

    Shape:
        [B, Ci, Hq, Wq, Hs, Ws] -> [B, Co, Hq, Wq, ceil(Hs / stride), ceil(Ws / stride)].

    Example:
        >>> import torch, fsdino
        >>> layer = fsdino.CenterPivotConv4d(2, 8, kernel_size=3, support_stride=2)
        >>> layer(torch.rand(1, 2, 5, 5, 6, 6)).shape
        torch.Size([1, 8, 5, 5, 3, 3])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, support_stride: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.conv2 = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.support_stride = support_stride

    @property
    def bias(self) -> Tensor:
        """The sum of both convolutions' biases, [Co]."""
        return self.conv1.bias + self.conv2.bias  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, on the backend that is selected."""
        return ops.center_pivot_conv4d(
            x, self.conv1.weight, self.conv2.weight, self.bias, support_stride=self.support_stride
        )

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"support_stride={self.support_stride}"


class CenterPivotBlock4d(nn.Module):
    """Center-pivot 4D convolution, GroupNorm and ReLU; optionally the mean over the support."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        support_stride: int = 2,
        num_groups: int = 4,
        reduce_support: bool = False,
    ) -> None:
        super().__init__()
        self.conv = CenterPivotConv4d(in_channels, out_channels, kernel_size, support_stride)
        self.norm = nn.GroupNorm(num_groups, out_channels)
        self.reduce_support = reduce_support

    def forward(self, x: Tensor) -> Tensor:
        """[B, Ci, Hq, Wq, Hs, Ws] -> [B, Co, Hq, Wq, hs, ws], or [B, Co, Hq, Wq] when reduced."""
        weight_query, weight_support, bias, norm_weight, norm_bias, stride = self.arguments()
        return ops.center_pivot_block4d(
            x,
            weight_query,
            weight_support,
            bias,
            norm_weight,
            norm_bias,
            num_groups=self.norm.num_groups,
            norm_eps=self.norm.eps,
            support_stride=stride,
            reduce_support=self.reduce_support,
        )

    def arguments(self) -> Block:
        """The block as `ops.squeeze4d` takes it."""
        return (
            self.conv.conv1.weight,
            self.conv.conv2.weight,
            self.conv.bias,
            self.norm.weight,
            self.norm.bias,
            self.conv.support_stride,
        )


class CorrelationPrior(nn.Module):
    """Correlate every query token with every support token and squeeze the support away.

    The 4D branch of FS-DINO's prompt generator (arXiv 2504.15669), with HSNet's center-pivot
    blocks. With `contrastive` the support weight is 2m - 1, so that one volume holds foreground
    minus background correlation; otherwise it is the mask m.

    Args:
        layers: L, encoder layers that are correlated.
        channels: output channels of the blocks; the last is the prior's.
        support_stride: of each block.
        contrastive: use the background, too.
        widths: see `correlate`.
    """

    def __init__(
        self,
        layers: int,
        channels: Sequence[int] = (16, 64, 128),
        support_stride: int = 2,
        contrastive: bool = True,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        sides = (layers, *channels)
        self.blocks = nn.Sequential(
            *(
                CenterPivotBlock4d(
                    sides[i],
                    sides[i + 1],
                    support_stride=support_stride,
                    reduce_support=i == len(channels) - 1,
                )
                for i in range(len(channels))
            )
        )
        self.contrastive = contrastive
        self.widths = None if widths is None else tuple(widths)

    def forward(self, query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
        """Prior over the query from one shot: [B, channels[-1], Hq, Wq].

        Args:
            query: [B, L, C, Hq, Wq].
            support: [B, L, C, Hs, Ws].
            mask: [B, Hs, Ws] share of foreground of each support token, in [0, 1].
        """
        weight = (2 * mask - 1 if self.contrastive else mask).to(query.dtype)
        if _padded(self.widths, query):
            correlation = correlate(query, support, weight, self.widths)
            return self.blocks(correlation)  # type: ignore[no-any-return]
        blocks = cast("list[CenterPivotBlock4d]", [*self.blocks])
        norm = blocks[0].norm
        return ops.squeeze4d(
            query,
            support,
            weight,
            [block.arguments() for block in blocks],
            num_groups=norm.num_groups,
            norm_eps=norm.eps,
        )


def correlate(
    query: Tensor, support: Tensor, weight: Tensor, widths: Sequence[int] | None = None
) -> Tensor:
    """`ops.correlation4d` that leaves out the zeros which narrower layers are padded with.

    Args:
        query, support, weight, widths: see `correlations`.

    Returns:
        [B, L, Hq, Wq, Hs, Ws], in the memory order that the op leaves it in.
    """
    parts = correlations(query, support, weight, widths)
    if len(parts) == 1:
        return parts[0]
    strides = parts[0].stride()
    order = [0, 1, *sorted(range(2, 6), key=lambda dim: -strides[dim])]
    joined = torch.cat([part.permute(order) for part in parts], dim=1)
    return joined.permute([order.index(dim) for dim in range(6)])


def correlations(
    query: Tensor, support: Tensor, weight: Tensor, widths: Sequence[int] | None = None
) -> list[Tensor]:
    """`correlate` in parts of neighbouring layers of one width, which share a call.

    The zeros that narrower layers are padded with change no cosine, but cost as much as other
    channels.

    Args:
        query: [B, L, C, Hq, Wq].
        support: [B, L, C, Hs, Ws].
        weight: [B, Hs, Ws] of the support's tokens.
        widths: channels of each layer that are not padding; None where none is.

    Returns:
        Parts [B, l, Hq, Wq, Hs, Ws] whose l add up to L, in the memory order of the op.
    """
    if not _padded(widths, query):
        return [ops.correlation4d(query, support, weight)]
    parts, first = [], 0
    for width, layers in groupby(widths):
        last = first + len(list(layers))
        asked, shown = query[:, first:last, :width], support[:, first:last, :width]
        parts.append(ops.correlation4d(asked, shown, weight))
        first = last
    return parts


def _padded(widths: Sequence[int] | None, query: Tensor) -> TypeGuard[Sequence[int]]:
    """Whether layers are padded with zeros: narrower than query [B, L, C, h, w] is."""
    return widths is not None and set(widths) != {query.shape[2]}
