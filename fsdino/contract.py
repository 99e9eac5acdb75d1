"""The backend contract: the functions of a backend, and the memory order of its volumes.

A backend is a module with the functions in `FUNCTIONS`, with the signatures and results of
`fsdino/ops/reference.py`; it may also have those in `OPTIONAL`. `csrc/ops.inc` is the same list in
C++.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

# Each op with the name of its file: fsdino/ops/FILE.py, kernels/FILE.py, csrc/cpu/FILE.cpp, ...
OPS = {
    "correlation4d": "correlation",
    "center_pivot_conv4d": "center_pivot",
    "center_pivot_block4d": "center_pivot",
    "correlation_center_pivot4d": "fused",
}
FUNCTIONS = tuple(op + suffix for op in OPS for suffix in ("", "_backward"))

# Ops that are a composition of those above, also with the name of their file, and their parts. A
# backend that has the parts runs it. Its module may have a function that fuses them, without a
# `_backward`: where a derivative is asked for, the composition runs.
COMPOSED = {"squeeze4d": "squeeze"}
PARTS = {"squeeze4d": ("correlation4d", "center_pivot_block4d")}
OPTIONAL = tuple(COMPOSED)

# Memory orders of a volume: its dims [B, C, Hq, Wq, Hs, Ws], outermost first.
AS_WRITTEN = (0, 1, 2, 3, 4, 5)
QUERY_INNERMOST = (0, 1, 4, 5, 2, 3)
CHANNELS_INNERMOST = (0, 2, 3, 4, 5, 1)

# The chunk of the correlation, or of its gradient, that the fused ops hold on a GPU: so many bytes,
# or a part of the whole, whichever is more. Larger chunks compute fewer rows twice.
CHUNK_BYTES = 80 * 2**20
CHUNK_SHARE = 12

Function = TypeVar("Function", bound=Callable[..., object])


def empty_volume(like: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """An uninitialised volume in a memory order.

    Args:
        like: has its dtype and device.
        shape: B, C, Hq, Wq, Hs, Ws.
        order: one of the memory orders above.
    """
    return as_volume(like.new_empty([shape[dim] for dim in order]), order)


def as_volume(memory: Tensor, order: Sequence[int]) -> Tensor:
    """A view [B, C, Hq, Wq, Hs, Ws] of a tensor whose dims are in a memory order."""
    return memory.permute([order.index(dim) for dim in range(len(order))])


def while_tracing(function: Function) -> Function:
    """Let torch.compile run a function while it traces, and keep its result.

    The same as torch.compiler.assume_constant_result, without importing the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
