"""The eager formulation to beat.

What people write today, as HSNet's public code does (Min, Kang, Cho, ICCV 2021): per layer
normalise, bmm, clamp, then stack; permute, Conv2d twice and add; GroupNorm; ReLU. It is kept
honestly fast: native dtype, in place where autograd is off, no copy the formulation does not need.
It shares no code with `fsdino/ops/reference.py`, which tests hold against it. Each function has the
signature of the public op without `backend`; `fsdino/ops/eager_backend.py` makes a backend of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def correlation4d(
    query: Tensor, support: Tensor, support_weight: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Eager `fsdino.ops.correlation4d`: [B, L, Hq, Wq, Hs, Ws]."""
    batch, _, _, *query_size = query.shape
    support_size = support.shape[3:]
    volumes = []
    for q, s in zip(query.flatten(3).unbind(1), support.flatten(3).unbind(1), strict=True):
        q = q / (q.norm(dim=1, keepdim=True) + eps)  # [B, C, N]
        s = s / (s.norm(dim=1, keepdim=True) + eps)
        volume = torch.bmm(q.transpose(1, 2), s)
        volume = volume.clamp(min=0) if volume.requires_grad else volume.clamp_(min=0)
        volumes.append(volume.view(batch, *query_size, *support_size))
    correlation = torch.stack(volumes, dim=1)
    if support_weight is None:
        return correlation
    weight = support_weight[:, None, None, None]
    return correlation * weight if correlation.requires_grad else correlation.mul_(weight)


def center_pivot_conv4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None = None,
    *,
    support_stride: int = 1,
) -> Tensor:
    """Eager `fsdino.ops.center_pivot_conv4d`: [B, Co, Hq, Wq, hs, ws]."""
    batch, _, hq, wq, _, _ = x.shape
    out_channels = weight_query.shape[0]
    pruned = x[..., ::support_stride, ::support_stride]
    kept = pruned.shape[-2:]
    planes = pruned.permute(0, 4, 5, 1, 2, 3).contiguous().flatten(0, 2)
    over_query = F.conv2d(planes, weight_query, bias, padding=weight_query.shape[-1] // 2)
    planes = x.permute(0, 2, 3, 1, 4, 5).contiguous().flatten(0, 2)
    over_support = F.conv2d(
        planes, weight_support, stride=support_stride, padding=weight_support.shape[-1] // 2
    )
    y_query = over_query.view(batch, *kept, out_channels, hq, wq).permute(0, 3, 4, 5, 1, 2)
    y_support = over_support.view(batch, hq, wq, out_channels, *kept).permute(0, 3, 1, 2, 4, 5)
    return y_query + y_support


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
    """Eager `fsdino.ops.center_pivot_block4d`."""
    y = center_pivot_conv4d(x, weight_query, weight_support, bias, support_stride=support_stride)
    y = F.group_norm(y, num_groups, norm_weight, norm_bias, norm_eps)
    y = y.relu() if y.requires_grad else y.relu_()
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
    """Eager `fsdino.ops.correlation_center_pivot4d`, which holds the correlation."""
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
    """Eager `fsdino.ops.squeeze4d`."""
    x = correlation4d(query, support, support_weight, eps=eps)
    for index, (*parameters, stride) in enumerate(blocks):
        x = center_pivot_block4d(
            x,
            *parameters,
            num_groups=num_groups,
            norm_eps=norm_eps,
            support_stride=stride,
            reduce_support=index == len(blocks) - 1,
        )
    return x
