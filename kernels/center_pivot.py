"""center_pivot_conv4d and center_pivot_block4d on the walk and the normalisation's passes.

Signatures and results are those of `fsdino/ops/reference.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdino.contract import CHANNELS_INNERMOST, as_volume
from fsdino.kernels import norm, walk
from fsdino.kernels.layout import blocks, dense, empty_volume, volume
from fsdino.kernels.matrices import matrices
from fsdino.kernels.statistics import Normalisation
from fsdino.kernels.weight_gradients import weight_gradients


def center_pivot_conv4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
) -> Tensor:
    """[B, Ci, Hq, Wq, Hs, Ws] -> [B, Co, Hq, Wq, hs, ws]."""
    y = _output(x, weight_query.shape[0], support_stride)
    grid = walk.Grid.of(weight_query, weight_support, support_stride)
    weights = matrices(weight_query, weight_support)
    walk.forward(volume(x), weights.values, dense(bias), y, grid)
    return y


def center_pivot_conv4d_backward(
    grad: Tensor,
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    support_stride: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients to x, weight_query, weight_support, bias; empty where nobody asks."""
    grad = volume(grad)
    grid = walk.Grid.of(weight_query, weight_support, support_stride)
    grads = [grad.new_empty(0) for _ in range(4)]
    if needs[0]:
        grads[0] = empty_volume(grad, x.shape)
        weights = matrices(weight_query, weight_support, transposed=True)
        walk.transposed(grad, weights, grads[0], grid)
    of_weights = weight_gradients(volume(x), grad, grid, (needs[1], needs[2]), grad.dtype)
    for index, of_weight in enumerate(of_weights, start=1):
        if of_weight is not None:
            grads[index] = of_weight
    if needs[3]:
        grads[3] = bias_gradient(grad).to(grad.dtype)
    return tuple(grads)


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
) -> tuple[Tensor, ...]:
    """relu(group_norm(conv)), and for the backward pass the raw volume, mean [2, B, G] (the sum of
    two floats) and rstd [B, G]."""
    raw = _output(x, weight_query.shape[0], support_stride)
    grid = walk.Grid.of(weight_query, weight_support, support_stride)
    statistics = walk.empty_statistics(raw, x.shape[1], num_groups, norm_eps)
    weights = matrices(weight_query, weight_support, arrivals=statistics.arrived)
    walk.forward(volume(x), weights.values, dense(bias), raw, grid, statistics=statistics)
    if reduce_support:
        y = raw.new_empty(raw.shape[:4])
    else:
        y = empty_volume(raw, raw.shape) if save else raw
    normalisation = Normalisation(statistics, dense(norm_weight), dense(norm_bias))
    norm.normalise(raw, normalisation, y)
    saved = (statistics.mean, statistics.rstd)
    if save:
        return y, raw, *saved
    return y, raw.new_empty(0), *(one.new_empty(0) for one in saved)


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
) -> tuple[Tensor, ...]:
    """Gradients to x, weight_query, weight_support, bias, norm_weight and norm_bias."""
    grad = grad.resolve_neg().contiguous() if reduce_support else _shared_by_none(grad)
    raw = _shared_by_none(raw)
    statistics = (mean.contiguous(), rstd.contiguous())
    passes = norm.Backward(grad, raw, *statistics, dense(norm_weight), dense(norm_bias))
    grads = [grad.new_empty(0) for _ in range(6)]
    if any(needs[:3]):
        grad_raw = empty_volume(raw, raw.shape)
        passes.volume(grad_raw)
        weights = (weight_query, weight_support)
        of_conv = (*needs[:3], False)
        grads[:4] = center_pivot_conv4d_backward(grad_raw, x, *weights, support_stride, of_conv)
    vectors = (passes.bias, passes.norm_weight, passes.norm_bias)
    for index, vector in enumerate(vectors, start=3):
        if needs[index]:
            grads[index] = vector
    return tuple(grads)


def bias_gradient(grad: Tensor) -> Tensor:
    """The sum over batch and positions, [Co], in float32."""
    return grad.sum((0, 2, 3, 4, 5), dtype=torch.float32)


def _output(x: Tensor, channels: int, stride: int) -> Tensor:
    batch, _, query_rows, query_columns, *support = x.shape
    kept = [blocks(size, stride) for size in support]
    return empty_volume(x, (batch, channels, query_rows, query_columns, *kept))


def _shared_by_none(x: Tensor) -> Tensor:
    """Dense, channels innermost, also where the batch is an expansion."""
    memory = x.resolve_neg().permute(CHANNELS_INNERMOST).contiguous()
    return as_volume(memory, CHANNELS_INNERMOST)
