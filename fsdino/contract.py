"""The contract of a backend: which functions it has, and how its volumes lie in memory.

A backend is a module with the functions in `FUNCTIONS`, whose signatures and results are those of
`fsdino/ops/reference.py`. In C++ the same list is `csrc/ops.inc`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

# Each op, and the file that has it everywhere: fsdino/ops/FILE.py, kernels/FILE.py and so on.
OPS = {
    "correlation4d": "correlation",
    "center_pivot_conv4d": "center_pivot",
    "center_pivot_block4d": "center_pivot",
    "correlation_center_pivot4d": "fused",
}
FUNCTIONS = tuple(op + suffix for op in OPS for suffix in ("", "_backward"))

# Memory orders of a volume: its dims [B, C, Hq, Wq, Hs, Ws], outermost first.
AS_WRITTEN = (0, 1, 2, 3, 4, 5)
QUERY_INNERMOST = (0, 1, 4, 5, 2, 3)
CHANNELS_INNERMOST = (0, 2, 3, 4, 5, 1)

# Of the correlation, or of its gradient, that the fused op holds at a time on a GPU; `kChunkBytes`
# in csrc/cuda.
CHUNK_BYTES = 80 * 2**20

Function = TypeVar("Function", bound=Callable[..., object])


def empty_volume(like: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """An uninitialised volume of a shape [B, C, Hq, Wq, Hs, Ws], in a memory order."""
    return as_volume(like.new_empty([shape[dim] for dim in order]), order)


def as_volume(memory: Tensor, order: Sequence[int]) -> Tensor:
    """The volume [B, C, Hq, Wq, Hs, Ws] whose dims a tensor has in a memory order; a view."""
    return memory.permute([order.index(dim) for dim in range(len(order))])


def while_tracing(function: Function) -> Function:
    """Let torch.compile run a function while it traces, and keep the answer.

    As torch.compiler.assume_constant_result, which would import the compiler with this module.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
