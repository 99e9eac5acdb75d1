"""The baseline of every workload: the eager formulation as it stands, and torch.compile of it.

In float16 on a CPU both convert to float32 and back: the convolutions that PyTorch has for float16
there are slower than that, most of them by far.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.bench.workloads import GROUPS, NORM_EPS, STRIDE, Block, Inputs, run_blocks
from fsdino.ops import eager

EAGER, COMPILED = "eager", "compiled"

# A part of a workload: of the features, or of a correlation alone, and of the blocks.
Part = Callable[[tuple[Tensor, ...], tuple[Block, ...]], Tensor]


def features(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Query, support and weight, in the order in which the ops take them."""
    return inputs.query, inputs.support, inputs.support_weight


def chain(inputs: Inputs) -> Tensor:
    """A whole workload, eagerly: correlation and three blocks -> [B, Co, Hq, Wq]."""
    x = eager.correlation4d(*features(inputs))
    return run_blocks(x, inputs.blocks, eager.center_pivot_block4d)


def make_run(part: str, inputs: Inputs, *, compiled: bool = False) -> Callable[[], Tensor]:
    """A call of one part; what the part starts from is computed here.

    Args:
        part: one of `fsdino.bench.workloads.PARTS`.
        inputs: of the workload.
        compiled: by torch.compile, which compiles in the first call.
    """
    given: tuple[Tensor, ...] = features(inputs)
    if part.startswith("blocks"):
        given = (eager.correlation4d(*given).contiguous(),)
    run = compile_part(part) if compiled else functools.partial(_run, part)
    return lambda: run(given, inputs.blocks)


def compile_part(part: str) -> Part:
    """torch.compile of a part, for the shapes of its first call and the current thread count.

    Inductor writes the number of threads into its C++, so that another one needs another call of
    this function. What was compiled before is forgotten, so that nothing counts towards
    torch.compile's limit of variants.
    """
    torch._dynamo.reset()

    def of_tensors(given: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> Tensor:
        blocks = tuple(Block(*parameters[i : i + 5]) for i in range(0, len(parameters), 5))
        return _run(part, given, blocks)

    options: dict[str, str | int | bool | Callable[..., object]] = {
        "cpp.threads": torch.get_num_threads()
    }
    compiled = torch.compile(of_tensors, dynamic=False, options=options)

    def run(given: tuple[Tensor, ...], blocks: tuple[Block, ...]) -> Tensor:
        parameters = tuple(tensor for block in blocks for tensor in block.tensors())
        return compiled(given, parameters)

    return run


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


def _run(part: str, given: tuple[Tensor, ...], blocks: tuple[Block, ...]) -> Tensor:
    function = _PARTS[part]
    if given[0].dtype != torch.float16 or not given[0].is_cpu:
        return function(given, blocks)
    wide = [Block(*(tensor.float() for tensor in block.tensors())) for block in blocks]
    return function(tuple(tensor.float() for tensor in given), tuple(wide)).half()


def _chain(given: tuple[Tensor, ...], blocks: tuple[Block, ...]) -> Tensor:
    query, support, support_weight = given
    return chain(Inputs(query, support, support_weight, blocks))


def _correlation(given: tuple[Tensor, ...], blocks: tuple[Block, ...]) -> Tensor:
    return eager.correlation4d(*given)


def _blocks(given: tuple[Tensor, ...], blocks: tuple[Block, ...]) -> Tensor:
    return run_blocks(given[0], blocks, eager.center_pivot_block4d)


def _first_block(given: tuple[Tensor, ...], blocks: tuple[Block, ...]) -> Tensor:
    x = eager.correlation4d(*given)
    return eager.center_pivot_block4d(x, *blocks[0].tensors(), support_stride=STRIDE)


def _first_and_others(given: tuple[Tensor, ...], blocks: tuple[Block, ...]) -> Tensor:
    """As the chain, but for the correlation: it is freed after the first block."""
    return run_blocks(_first_block(given, blocks), blocks[1:], eager.center_pivot_block4d)


_PARTS: dict[str, Part] = {
    "chain": _chain,
    "correlation": _correlation,
    "blocks": _blocks,
    "blocks-contiguous": _blocks,
    "fused-block": _first_block,
    "fused-chain": _first_and_others,
}
