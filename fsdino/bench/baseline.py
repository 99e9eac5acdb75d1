"""The baseline of a workload: the eager formulation over the whole chain, and its last steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.bench.workloads import GROUPS, NORM_EPS, Inputs, run_blocks
from fsdino.ops import eager


def norm_relu(y: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """What a block does after its convolution: for `correlation_center_pivot4d`, which stops there.

    In place where autograd is off: the output of the first block is what memory is short of.

    Args:
        y: [B, Co, ...]; overwritten where autograd is off.
        norm_weight: [Co].
        norm_bias: [Co].
    """
    if y.requires_grad:
        return F.group_norm(y, GROUPS, norm_weight, norm_bias, NORM_EPS).relu()
    grouped = y.unflatten(1, (GROUPS, -1))  # [B, G, Co / G, ...]
    wide = grouped if y.dtype == torch.float64 else grouped.float()
    variance, mean = torch.var_mean(wide, [*range(2, y.dim() + 1)], correction=0, keepdim=True)
    shape = (GROUPS, -1, *[1] * (y.dim() - 2))
    scale = norm_weight.view(shape) * (variance + NORM_EPS).rsqrt()
    shift = norm_bias.view(shape) - mean * scale
    torch.addcmul(shift, grouped, scale, out=grouped)
    return y.relu_()


def chain(inputs: Inputs) -> Tensor:
    """A whole workload, eagerly: correlation and three blocks -> [B, Co, Hq, Wq]."""
    x = eager.correlation4d(inputs.query, inputs.support, inputs.support_weight)
    return run_blocks(x, inputs.blocks, eager.center_pivot_block4d)
