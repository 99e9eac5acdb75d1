"""The ops in plain PyTorch: the definition that every backend is checked against.

Half-precision inputs are computed in float32 and rounded once at the end; float64 stays float64.
Letters in shape comments: B batch, L layers, C channels, N = Hq*Wq query and M = Hs*Ws support
positions, hs x ws the support positions that a stride keeps, G groups.

Sources: HSNet (Min, Kang, Cho: Hypercorrelation Squeeze for Few-Shot Segmentation, ICCV 2021) for
the correlation and the center-pivot 4D convolution; Wu and He 2018 for group normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight


def correlation4d(
    query: Tensor, support: Tensor, support_weight: Tensor | None, eps: float
) -> Tensor:
    """relu(cosine of every query and support token) * support_weight: [B, L, Hq, Wq, Hs, Ws]."""
    cosine = _unit(query, eps).transpose(2, 3) @ _unit(support, eps)  # [B, L, N, M]
    correlation = cosine.relu()
    if support_weight is not None:
        weight = _wide(support_weight).flatten(1)[:, None, None]  # [B, 1, 1, M]
        correlation = (correlation * weight).masked_fill(weight == 0, 0)
    batch, layers = query.shape[:2]
    shape = (batch, layers, *query.shape[-2:], *support.shape[-2:])
    return correlation.reshape(shape).to(query.dtype)


def correlation4d_backward(
    grad: Tensor,
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to query, support and support_weight; empty where not needed."""
    unit_query, unit_support = _unit(query, eps), _unit(support, eps)  # [B, L, C, N], [B, L, C, M]
    grad_out = _wide(grad).flatten(4).flatten(2, 3)  # [B, L, N, M]
    cosine = unit_query.transpose(2, 3) @ unit_support
    grad_query, grad_support, grad_weight = _nothing(grad, 3)
    if support_weight is not None and needs[2]:
        grad_weight = (grad_out * cosine.relu()).sum((1, 2))  # [B, M]
        grad_weight = grad_weight.reshape(support_weight.shape).to(support_weight.dtype)

    grad_cosine = grad_out.masked_fill(cosine <= 0, 0)
    if support_weight is not None:
        weight = _wide(support_weight).flatten(1)[:, None, None]  # [B, 1, 1, M]
        grad_cosine = (grad_cosine * weight).masked_fill(weight == 0, 0)
        unit_support = unit_support.masked_fill(weight == 0, 0)  # NaN there must not spread
    if needs[0]:
        grad_query = _unit_backward(unit_support @ grad_cosine.transpose(2, 3), query, eps)
    if needs[1]:
        grad_support = _unit_backward(unit_query @ grad_cosine, support, eps)
        if support_weight is not None:
            grad_support = grad_support.masked_fill(support_weight[:, None, None] == 0, 0)
    return grad_query, grad_support, grad_weight


def center_pivot_conv4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
) -> Tensor:
    """Sum of a 2D convolution over the query dims and one over the support dims."""
    wide = _wide(x)
    over_query = F.conv2d(
        _query_planes(wide, support_stride),
        _wide(weight_query),
        padding=weight_query.shape[-1] // 2,
    )  # [B*hs*ws, Co, Hq, Wq]
    over_support = F.conv2d(
        _support_planes(wide),
        _wide(weight_support),
        stride=support_stride,
        padding=weight_support.shape[-1] // 2,
    )  # [B*Hq*Wq, Co, hs, ws]
    batch, _, hq, wq = x.shape[:4]
    out_channels, (hs, ws) = weight_query.shape[0], over_support.shape[-2:]
    y = over_query.reshape(batch, hs, ws, out_channels, hq, wq).permute(0, 3, 4, 5, 1, 2)
    y = y + over_support.reshape(batch, hq, wq, out_channels, hs, ws).permute(0, 3, 1, 2, 4, 5)
    if bias is not None:
        y = y + _wide(bias)[:, None, None, None, None]
    return y.to(x.dtype).contiguous()


def center_pivot_conv4d_backward(
    grad: Tensor,
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    support_stride: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, weight_query, weight_support, bias; empty where not needed."""
    wide, wide_grad = _wide(x), _wide(grad)
    batch, channels, hq, wq, hs, ws = x.shape
    grad_query = _query_planes(wide_grad, 1)  # [B*hs*ws, Co, Hq, Wq]
    grad_support = _support_planes(wide_grad)  # [B*Hq*Wq, Co, hs, ws]
    pad_query, pad_support = weight_query.shape[-1] // 2, weight_support.shape[-1] // 2
    grad_x, grad_wq, grad_ws, grad_bias = _nothing(grad, 4)
    if needs[0]:
        over_support = conv2d_input(
            (batch * hq * wq, channels, hs, ws),
            _wide(weight_support),
            grad_support,
            stride=support_stride,
            padding=pad_support,
        )
        planes = over_support.reshape(batch, hq, wq, channels, hs, ws).permute(0, 3, 1, 2, 4, 5)
        wide_grad_x = planes.clone(memory_format=torch.contiguous_format)
        over_query = conv2d_input(
            (grad_query.shape[0], channels, hq, wq),
            _wide(weight_query),
            grad_query,
            padding=pad_query,
        ).reshape(batch, *grad.shape[-2:], channels, hq, wq)
        kept = wide_grad_x[..., ::support_stride, ::support_stride]
        kept += over_query.permute(0, 3, 4, 5, 1, 2)
        grad_x = wide_grad_x.to(x.dtype)
    if needs[1]:
        planes = _query_planes(wide, support_stride)
        grad_wq = conv2d_weight(planes, weight_query.shape, grad_query, padding=pad_query)
    if needs[2]:
        grad_ws = conv2d_weight(
            _support_planes(wide),
            weight_support.shape,
            grad_support,
            stride=support_stride,
            padding=pad_support,
        )
    if needs[3]:
        grad_bias = wide_grad.sum((0, 2, 3, 4, 5))
    dtype = weight_query.dtype
    weights = (grad_wq.to(dtype).contiguous(), grad_ws.to(dtype).contiguous())
    return grad_x, *weights, grad_bias.to(dtype)


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
    """relu(group_norm(conv)), with `reduce_support` its mean over the support dims.

    Returns y and, if `save`, what the backward pass needs: the convolution's output and, per
    sample and group, mean and reciprocal standard deviation [B, G]; else three empty tensors. A
    backend may save a mean as a sum (`mean_parts`): the backward pass is always its own.
    """
    raw = center_pivot_conv4d(x, weight_query, weight_support, bias, support_stride)
    grouped = _by_group(_wide(raw), num_groups)
    mean = grouped.mean(2)
    variance = (grouped - mean[:, :, None]).square().mean(2)
    rstd = (variance + norm_eps).rsqrt()
    y = _affine(_normalise(raw, mean, rstd), norm_weight, norm_bias).relu()
    if reduce_support:
        y = y.mean((4, 5))
    y = y.to(x.dtype)
    if not save:
        return y, raw.new_empty(0), mean.new_empty(0), rstd.new_empty(0)
    return y, raw, mean, rstd


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
    """Gradients to x, weight_query, weight_support, bias, norm_weight and norm_bias."""
    grad_y = _wide(grad)
    if reduce_support:
        hs, ws = raw.shape[-2:]
        grad_y = (grad_y / (hs * ws))[..., None, None].expand(raw.shape)
    normalised = _normalise(raw, mean, rstd)
    grad_y = grad_y.masked_fill(_affine(normalised, norm_weight, norm_bias) <= 0, 0)
    dims, dtype = (0, 2, 3, 4, 5), norm_weight.dtype
    grad_x, grad_wq, grad_ws, grad_bias, grad_norm_weight, grad_norm_bias = _nothing(grad, 6)
    if needs[4]:
        grad_norm_weight = (grad_y * normalised).sum(dims).to(dtype)
    if needs[5]:
        grad_norm_bias = grad_y.sum(dims).to(dtype)
    if any(needs[:4]):
        groups = mean.shape[1]
        scaled = _by_group(grad_y * _wide(norm_weight)[:, None, None, None, None], groups)
        flat = _by_group(normalised, groups)
        centred = (
            scaled - scaled.mean(2, keepdim=True) - flat * (scaled * flat).mean(2, keepdim=True)
        )
        grad_raw = (centred * rstd[:, :, None]).reshape(raw.shape)
        wide = (_wide(x), _wide(weight_query), _wide(weight_support))
        grad_x, *rest = center_pivot_conv4d_backward(grad_raw, *wide, support_stride, needs[:4])
        grad_x = grad_x.to(x.dtype)
        grad_wq, grad_ws, grad_bias = (g.to(weight_query.dtype) for g in rest)
    return grad_x, grad_wq, grad_ws, grad_bias, grad_norm_weight, grad_norm_bias


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
    """The convolution of the correlation; other backends never hold the correlation."""
    x = correlation4d(_wide(query), _wide(support), support_weight, eps)
    weights = (_wide(weight_query), _wide(weight_support), None if bias is None else _wide(bias))
    return center_pivot_conv4d(x, *weights, support_stride).to(query.dtype)


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
    """Gradients to query, support, support_weight, weight_query, weight_support and bias."""
    features = (_wide(query), _wide(support), support_weight)
    weights = (_wide(weight_query), _wide(weight_support))
    x = correlation4d(*features, eps)
    conv_needs = (any(needs[:3]), *needs[3:])
    grad_x, *grad_conv = center_pivot_conv4d_backward(
        _wide(grad), x, *weights, support_stride, conv_needs
    )
    grad_wq, grad_ws, grad_bias = (g.to(weight_query.dtype) for g in grad_conv)
    grad_query, grad_support, grad_weight = _nothing(grad, 3)
    if conv_needs[0]:
        grads = correlation4d_backward(grad_x, *features, eps, needs[:3])
        grad_query, grad_support = grads[0].to(query.dtype), grads[1].to(support.dtype)
        grad_weight = grads[2]
    return grad_query, grad_support, grad_weight, grad_wq, grad_ws, grad_bias


def squeeze4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weights_query: Sequence[Tensor],
    weights_support: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm_weights: Sequence[Tensor],
    norm_biases: Sequence[Tensor],
    support_strides: Sequence[int],
    num_groups: int,
    norm_eps: float,
    eps: float,
) -> Tensor:
    """The correlation through one block after the other, the last reduced: [B, Co, Hq, Wq].

    Each op rounds its result, as it does when it is called alone.
    """
    x = correlation4d(query, support, support_weight, eps)
    last = len(support_strides) - 1
    for index, stride in enumerate(support_strides):
        x, *_ = center_pivot_block4d(
            x,
            weights_query[index],
            weights_support[index],
            biases[index],
            norm_weights[index],
            norm_biases[index],
            num_groups,
            norm_eps,
            stride,
            reduce_support=index == last,
            save=False,
        )
    return x


def _nothing(like: Tensor, count: int) -> tuple[Tensor, ...]:
    """Empty tensors in place of gradients that are not needed."""
    return tuple(like.new_empty(0) for _ in range(count))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _unit(tokens: Tensor, eps: float) -> Tensor:
    """Tokens over their length plus eps: [B, L, C, h, w] -> [B, L, C, h*w]."""
    flat = _wide(tokens).flatten(3)
    norm: Tensor = flat.norm(dim=2, keepdim=True)
    return flat / (norm + eps)


def _unit_backward(grad: Tensor, tokens: Tensor, eps: float) -> Tensor:
    """Gradient through `_unit`; the length's gradient at a zero vector is 0, as in PyTorch."""
    flat = _wide(tokens).flatten(3)  # [B, L, C, N]
    norm = flat.norm(dim=2, keepdim=True)
    along = (grad * flat).sum(2, keepdim=True) / (norm * (norm + eps))
    grad = (grad - flat * along.masked_fill(norm == 0, 0)) / (norm + eps)
    return grad.reshape(tokens.shape).to(tokens.dtype)


def _query_planes(x: Tensor, stride: int) -> Tensor:
    """[B, C, Hq, Wq, Hs, Ws] -> [B*hs*ws, C, Hq, Wq]: the query plane at each kept position."""
    kept = x[..., ::stride, ::stride]
    return kept.permute(0, 4, 5, 1, 2, 3).flatten(0, 2)


def _support_planes(x: Tensor) -> Tensor:
    """[B, C, Hq, Wq, Hs, Ws] -> [B*Hq*Wq, C, Hs, Ws]: the support plane at each query position."""
    return x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[B, C, ...] -> [B, G, C/G * ...]."""
    grouped: Tensor = x.flatten(1).unflatten(1, (groups, -1))
    return grouped


def _normalise(raw: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    grouped = _by_group(_wide(raw), mean.shape[1])
    return ((grouped - mean[:, :, None]) * rstd[:, :, None]).reshape(raw.shape)


def _affine(normalised: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (-1, 1, 1, 1, 1)
    return normalised * _wide(weight).view(shape) + _wide(bias).view(shape)
