"""The ops once more, in float64 and slowly: sums over taps, sharing no code with the package.

Expected values of tests and of the checks on a GPU come from here, so nothing that is checked may
be imported. Names and arguments are those of `fsdino.ops`; autograd gives the expected gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def correlation4d(
    query: Tensor, support: Tensor, support_weight: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Cosines of query and support tokens, rectified: [B, L, Hq, Wq, Hs, Ws]."""
    query, support = query.double(), support.double()
    unit_query = query / ((query**2).sum(2, keepdim=True).sqrt() + eps)
    unit_support = support / ((support**2).sum(2, keepdim=True).sqrt() + eps)
    cosine = torch.einsum("blcij,blckm->blijkm", unit_query, unit_support)
    corr = torch.where(cosine > 0, cosine, torch.zeros_like(cosine))
    if support_weight is None:
        return corr
    return corr * support_weight.double()[:, None, None, None]


def center_pivot_conv4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None = None,
    *,
    support_stride: int = 1,
) -> Tensor:
    """The full 4D kernel, zero but for its two planes, tap by tap: [B, Co, Hq, Wq, hs, ws]."""
    x, weight_query, weight_support = x.double(), weight_query.double(), weight_support.double()
    batch, _, hq, wq, hs, ws = x.shape
    stride = support_stride
    rows, columns = range(0, hs, stride), range(0, ws, stride)
    y = x.new_zeros(batch, weight_query.shape[0], hq, wq, len(rows), len(columns))
    taps: dict[tuple[int, int, int, int], Tensor] = {}
    for weight, plane in ((weight_query, "query"), (weight_support, "support")):
        half = weight.shape[-1] // 2
        for i in range(-half, half + 1):
            for j in range(-half, half + 1):
                tap = (i, j, 0, 0) if plane == "query" else (0, 0, i, j)
                kernel = weight[:, :, i + half, j + half]
                taps[tap] = taps[tap] + kernel if tap in taps else kernel
    parts = []
    for (a, b, c, d), kernel in taps.items():
        shifted = _shift(_shift(_shift(_shift(x, 2, a), 3, b), 4, c), 5, d)
        parts.append(torch.einsum("oc,bcijkm->boijkm", kernel, shifted[..., ::stride, ::stride]))
    y = y + torch.stack(parts).sum(0)
    return y if bias is None else y + bias.double()[:, None, None, None, None]


def center_pivot_block4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    num_groups: int = 4,
    norm_eps: float = 1e-5,
    support_stride: int = 1,
    reduce_support: bool = False,
) -> Tensor:
    """Convolution, normalisation by groups, ReLU; [B, Co, Hq, Wq] with `reduce_support`."""
    y = center_pivot_conv4d(x, weight_query, weight_support, bias, support_stride=support_stride)
    channels = y.shape[1]
    size = channels // num_groups
    normed = []
    for group in range(num_groups):
        part = y[:, group * size : (group + 1) * size]
        mean = part.mean((1, 2, 3, 4, 5), keepdim=True)
        variance = ((part - mean) ** 2).mean((1, 2, 3, 4, 5), keepdim=True)
        normed.append((part - mean) / (variance + norm_eps).sqrt())
    shape = (1, channels, 1, 1, 1, 1)
    y = torch.cat(normed, 1) * norm_weight.double().view(shape) + norm_bias.double().view(shape)
    y = torch.where(y > 0, y, torch.zeros_like(y))
    return y.mean((4, 5)) if reduce_support else y


def correlation_center_pivot4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None = None,
    *,
    support_stride: int = 1,
    eps: float = 1e-5,
) -> Tensor:
    """The convolution of the correlation: [B, Co, Hq, Wq, hs, ws]."""
    x = correlation4d(query, support, support_weight, eps=eps)
    return center_pivot_conv4d(x, weight_query, weight_support, bias, support_stride=support_stride)


def squeeze4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    blocks: Sequence[tuple[Any, ...]],
    *,
    num_groups: int = 4,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
) -> Tensor:
    """Correlation and blocks, the mean of what the last one leaves: [B, Co, Hq, Wq]."""
    x = correlation4d(query, support, support_weight, eps=eps)
    for *parameters, stride in blocks:
        x = center_pivot_block4d(
            x, *parameters, num_groups=num_groups, norm_eps=norm_eps, support_stride=stride
        )
    return x.mean((4, 5))


def _shift(x: Tensor, dim: int, offset: int) -> Tensor:
    """out[i] = x[i + offset], zero outside."""
    if offset == 0:
        return x
    size = x.shape[dim]
    index = torch.arange(size) + offset
    inside = (index >= 0) & (index < size)
    shape = [1] * x.ndim
    shape[dim] = size
    return x.index_select(dim, index.clamp(0, size - 1)) * inside.double().view(shape)
