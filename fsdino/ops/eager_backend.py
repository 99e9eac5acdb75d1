"""Backend `eager`: the formulation in `fsdino/ops/eager.py`, with the gradients of its parts.

For float32 and float64. What the contract asks for beyond the formulation is added here: zeros
where a support weight silences NaN, volumes in one memory order, empty batches. The gradients are
those of PyTorch's own operators, called one by one: a backend runs below autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdino.ops import eager

DTYPES = (torch.float32, torch.float64)
OPS = (
    "correlation4d",
    "center_pivot_conv4d",
    "center_pivot_block4d",
    "correlation_center_pivot4d",
)


def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why it cannot run such a call; None if it can."""
    if op not in OPS:
        return f"it has no {op}"
    if dtype not in DTYPES:
        return (
            f"it runs float32 and float64, not {dtype}: it rounds intermediate results to the "
            "inputs' dtype, which in half precision is beyond the bounds of the ops"
        )
    return None


def correlation4d(
    query: Tensor, support: Tensor, support_weight: Tensor | None, eps: float
) -> Tensor:
    """As the reference's."""
    correlation = eager.correlation4d(query, support, support_weight, eps=eps)
    if support_weight is None:
        return correlation
    return correlation.masked_fill_(support_weight[:, None, None, None] == 0, 0)


def correlation4d_backward(
    grad: Tensor,
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference's."""
    of_query, of_support, of_weight = [], [], []
    weight = None if support_weight is None else support_weight.flatten(1)[:, None]  # [B, 1, M]
    rows = (grad.flatten(4).flatten(2, 3), query.flatten(3), support.flatten(3))
    for g, q, s in zip(*(tensor.unbind(1) for tensor in rows), strict=True):
        unit_query, unit_support = _unit(q, eps), _unit(s, eps)  # [B, C, N], [B, C, M]
        cosine = torch.bmm(unit_query.transpose(1, 2), unit_support)
        if weight is not None and needs[2]:
            of_weight.append((g * cosine.clamp(min=0)).sum(1))  # [B, M]
        g = g.masked_fill(cosine <= 0, 0)
        if weight is not None:
            silent = weight == 0
            g = (g * weight).masked_fill_(silent, 0)
            unit_support = unit_support.masked_fill_(silent, 0)  # NaN there must not spread
        if needs[0]:
            of_query.append(_unit_backward(torch.bmm(unit_support, g.transpose(1, 2)), q, eps))
        if needs[1]:
            to_support = _unit_backward(torch.bmm(unit_query, g), s, eps)
            of_support.append(
                to_support if weight is None else to_support.masked_fill_(weight == 0, 0)
            )
    return (
        torch.stack(of_query, 1).view(query.shape) if of_query else _nothing(grad),
        torch.stack(of_support, 1).view(support.shape) if of_support else _nothing(grad),
        sum(of_weight[1:], of_weight[0]).view(support_weight.shape)
        if of_weight and support_weight is not None
        else _nothing(grad),
    )


def center_pivot_conv4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
) -> Tensor:
    """As the reference's."""
    y = eager.center_pivot_conv4d(
        x, weight_query, weight_support, bias, support_stride=support_stride
    )
    return y.contiguous()


def center_pivot_conv4d_backward(
    grad: Tensor,
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    support_stride: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference's."""
    batch, channels, hq, wq, hs, ws = x.shape
    pruned = x[..., ::support_stride, ::support_stride]
    kept = pruned.shape[-2:]
    grad_x, to_query, grad_bias = _conv2d_backward(
        grad.permute(0, 4, 5, 1, 2, 3).flatten(0, 2),  # [B*hs*ws, Co, Hq, Wq]
        pruned.permute(0, 4, 5, 1, 2, 3).flatten(0, 2),
        weight_query,
        1,
        (needs[0], needs[1], needs[3]),
    )
    over_support, to_support, _ = _conv2d_backward(
        grad.permute(0, 2, 3, 1, 4, 5).flatten(0, 2),  # [B*Hq*Wq, Co, hs, ws]
        x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2),
        weight_support,
        support_stride,
        (needs[0], needs[2], False),
    )
    if needs[0]:
        over_query = grad_x.view(batch, *kept, channels, hq, wq).permute(0, 3, 4, 5, 1, 2)
        grad_x = over_support.view(batch, hq, wq, channels, hs, ws).permute(0, 3, 1, 2, 4, 5)
        grad_x = grad_x.clone(memory_format=torch.contiguous_format)
        grad_x[..., ::support_stride, ::support_stride] += over_query
    return grad_x, to_query, to_support, grad_bias


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
    """As the reference's."""
    raw = center_pivot_conv4d(x, weight_query, weight_support, bias, support_stride)
    # PyTorch 2.11 reads these vectors as if they were contiguous.
    vectors = (norm_weight.contiguous(), norm_bias.contiguous())
    y, mean, rstd = torch.native_group_norm(raw, *vectors, *_sizes(raw), num_groups, norm_eps)
    y = y.relu_()
    if reduce_support:
        y = y.mean((4, 5))
    return (y, raw, mean, rstd) if save else (y, _nothing(y), _nothing(y), _nothing(y))


def center_pivot_block4d_backward(
    grad: Tensor,
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    raw: Tensor,
    mean: Tensor,
    rstd: Tensor,
    support_stride: int,
    reduce_support: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the reference's."""
    groups, shape = mean.shape[1], (-1, 1, 1, 1, 1)
    if reduce_support:
        hs, ws = raw.shape[-2:]
        grad = (grad / (hs * ws))[..., None, None].expand(raw.shape)
    by_group = raw.flatten(1).unflatten(1, (groups, -1))
    y = ((by_group - mean[..., None]) * rstd[..., None]).view(raw.shape)
    y = y.mul_(norm_weight.view(shape)).add_(norm_bias.view(shape))
    grad = grad.masked_fill(y <= 0, 0)
    of_conv = any(needs[:4])
    grad_raw, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_group_norm_backward(
        grad, raw, mean, rstd, norm_weight.contiguous(), *_sizes(raw), groups,
        (of_conv, needs[4], needs[5]),
    )  # fmt: skip
    grads = (_nothing(grad), _nothing(grad), _nothing(grad), _nothing(grad))
    if of_conv:
        weights = (weight_query, weight_support)
        grads = center_pivot_conv4d_backward(grad_raw, x, *weights, support_stride, needs[:4])
    return (
        *grads,
        grad_norm_weight if needs[4] else _nothing(grad),
        grad_norm_bias if needs[5] else _nothing(grad),
    )


def correlation_center_pivot4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
    eps: float,
) -> Tensor:
    """As the reference's; the correlation is held."""
    x = correlation4d(query, support, support_weight, eps)
    return center_pivot_conv4d(x, weight_query, weight_support, bias, support_stride)


def correlation_center_pivot4d_backward(
    grad: Tensor,
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    support_stride: int,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the reference's."""
    features = (query, support, support_weight)
    x, of_features = correlation4d(*features, eps), any(needs[:3])
    grad_x, grad_wq, grad_ws, grad_bias = center_pivot_conv4d_backward(
        grad, x, weight_query, weight_support, support_stride, (of_features, *needs[3:])
    )
    grads = (_nothing(grad), _nothing(grad), _nothing(grad))
    if of_features:
        grads = correlation4d_backward(grad_x, *features, eps, needs[:3])
    return (*grads, grad_wq, grad_ws, grad_bias)


def _nothing(like: Tensor) -> Tensor:
    """In place of a gradient that is not needed."""
    return like.new_empty(0)


def _sizes(raw: Tensor) -> tuple[int, int, int]:
    """Batch, channels, and positions of each, as group normalisation asks for them."""
    return raw.shape[0], raw.shape[1], raw.shape[2:].numel()


def _unit(tokens: Tensor, eps: float) -> Tensor:
    """Tokens [B, C, N] over their length plus eps."""
    length: Tensor = tokens.norm(dim=1, keepdim=True)
    return tokens / (length + eps)


def _unit_backward(grad: Tensor, tokens: Tensor, eps: float) -> Tensor:
    """Gradient through `_unit`; that of the length is 0 at a zero vector."""
    length: Tensor = tokens.norm(dim=1, keepdim=True)
    along = (grad * tokens).sum(1, keepdim=True) / (length * (length + eps))
    return (grad - tokens * along.masked_fill(length == 0, 0)) / (length + eps)


def _conv2d_backward(
    grad: Tensor, planes: Tensor, weight: Tensor, stride: int, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a 2D convolution to planes, weight and bias; empty where not needed."""
    found = torch.ops.aten.convolution_backward(
        grad, planes, weight, [weight.shape[0]], [stride] * 2, [weight.shape[-1] // 2] * 2,
        [1, 1], False, [0, 0], 1, needs,
    )  # fmt: skip
    to_planes, to_weight, to_bias = found
    return (
        to_planes if needs[0] else _nothing(grad),
        to_weight if needs[1] else _nothing(grad),
        to_bias if needs[2] else _nothing(grad),
    )
