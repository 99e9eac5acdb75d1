"""The 4D ops in operations that every runtime has, for little memory.

Volumes are planes over the support, [B, Hq, Wq, C, Hs, Ws], which convolutions over the support
read as they are. Only what a convolution over the query reads is put in another order, and that has
the support positions that the stride keeps. The ops' own order is a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def correlation4d(query: Tensor, support: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`fsdino.ops.correlation4d`: [B, L, Hq, Wq, Hs, Ws]."""
    return _as_volume(_correlation(query, support, weight, eps))


def center_pivot_block4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_groups: int,
    norm_eps: float,
    support_stride: int,
    reduce_support: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fsdino.ops.center_pivot_block4d`, without what a backward pass would need."""
    y = _block(
        x.permute(0, 2, 3, 1, 4, 5),
        weight_query,
        weight_support,
        bias,
        norm_weight,
        norm_bias,
        num_groups,
        norm_eps,
        support_stride,
    )
    nothing = y.new_empty(0)
    found = _reduced(y) if reduce_support else _as_volume(y)
    return found, nothing, nothing, nothing


def squeeze4d(query: Tensor, support: Tensor, weight: Tensor | None, *rest: Any) -> Tensor:
    """`fsdino.ops.squeeze4d`, one sample after another: [B, Co, Hq, Wq]."""
    *blocks, num_groups, norm_eps, eps = rest
    *parameters, strides = blocks
    flat = [tensor for kind in parameters for tensor in kind]
    count = len(strides)

    def goes_on(number: Tensor, found: Tensor, *_: Tensor) -> Tensor:
        return number < found.shape[0]

    def advance(
        number: Tensor, found: Tensor, asked: Tensor, shown: Tensor, share: Tensor, *flat: Tensor
    ) -> tuple[Tensor, Tensor]:
        here = number[None]
        query, support, weight = (t.index_select(0, here) for t in (asked, shown, share))
        planes = _correlation(query, support, weight, eps)
        for index, stride in enumerate(strides):
            wq, ws, bias, norm_weight, norm_bias = flat[index::count]
            planes = _block(
                planes, wq, ws, bias, norm_weight, norm_bias, num_groups, norm_eps, stride
            )
        own = torch.arange(found.shape[0])[:, None, None, None] == number
        return number + 1, torch.where(own, _reduced(planes), found).contiguous()

    if weight is None:
        weight = support.new_ones(support.shape[0], *support.shape[3:])
    start = torch.zeros((), dtype=torch.int64)
    empty = query.new_zeros(query.shape[0], parameters[0][-1].shape[0], *query.shape[3:])
    # Not `scan`, which AOTInductor cannot compile where the length is a product (classes x shots).
    loop = torch.ops.higher_order.while_loop
    found: Tensor = loop(goes_on, advance, (start, empty), (query, support, weight, *flat))[1]
    return found


def _correlation(query: Tensor, support: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Layer by layer, so that of all layers together there is only the result.

    Args:
        query: [B, L, C, Hq, Wq].
        support: [B, L, C, Hs, Ws], finite.
        weight: [B, Hs, Ws] or None.
        eps: added to the tokens' lengths.

    Returns:
        Planes [B, Hq, Wq, L, Hs, Ws].
    """
    layers = []
    for layer in range(query.shape[1]):
        asked, shown = (_unit(tokens[:, layer], eps) for tokens in (query, support))
        volume = (asked.mT @ shown).relu()  # [B, N, M]
        layers.append(volume if weight is None else volume * weight.flatten(1)[:, None])
    stacked: Tensor = torch.stack(layers, 2).unflatten(3, support.shape[3:])
    planes: Tensor = stacked.unflatten(1, query.shape[3:])
    return planes


def _block(
    planes: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_groups: int,
    norm_eps: float,
    stride: int,
) -> Tensor:
    """Center-pivot 4D convolution, group normalisation and ReLU, of planes and to planes."""
    batch, hq, wq = planes.shape[:3]
    pad_query, pad_support = weight_query.shape[-1] // 2, weight_support.shape[-1] // 2
    kept = planes[..., ::stride, ::stride]
    hs, ws = kept.shape[4:]
    over_query = F.conv2d(
        kept.permute(0, 4, 5, 3, 1, 2).flatten(0, 2), weight_query, bias, padding=pad_query
    )  # [B * hs * ws, Co, Hq, Wq]
    over_support = F.conv2d(
        planes.flatten(0, 2), weight_support, stride=stride, padding=pad_support
    )  # [B * Hq * Wq, Co, hs, ws]
    moved = over_query.unflatten(0, (batch, hs, ws)).permute(0, 4, 5, 3, 1, 2)
    y: Tensor = over_support.unflatten(0, (batch, hq, wq)) + moved
    scale, shift = _normalising(y, norm_weight, norm_bias, num_groups, norm_eps)
    return (y * scale + shift).relu()


def _normalising(
    y: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """What group normalisation of planes multiplies by and adds: each [B, 1, 1, C, 1, 1]."""
    dims = (1, 2, 4, 5, 6)
    grouped = y.unflatten(3, (groups, -1))  # [B, Hq, Wq, G, C / G, hs, ws]
    mean = grouped.mean(dims, keepdim=True)
    variance = (grouped - mean).square().mean(dims, keepdim=True)
    shape: Sequence[int] = (1, 1, 1, groups, -1, 1, 1)
    scale = (variance + eps).rsqrt() * weight.view(shape)
    shift = bias.view(shape) - mean * scale
    return scale.flatten(3, 4), shift.flatten(3, 4)


def _unit(tokens: Tensor, eps: float) -> Tensor:
    """Tokens over their length plus eps: [B, C, h, w] -> [B, C, h * w]."""
    flat = tokens.flatten(2)
    length: Tensor = flat.norm(dim=1, keepdim=True)
    return flat / (length + eps)


def _reduced(planes: Tensor) -> Tensor:
    """The mean over the support: [B, C, Hq, Wq]."""
    mean: Tensor = planes.mean((4, 5))
    reduced: Tensor = mean.permute(0, 3, 1, 2)
    return reduced


def _as_volume(planes: Tensor) -> Tensor:
    """[B, Hq, Wq, C, Hs, Ws] -> [B, C, Hq, Wq, Hs, Ws]."""
    return planes.permute(0, 3, 1, 2, 4, 5)
