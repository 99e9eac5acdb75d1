"""Uses of memory to be measured, where another process finds them by name."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fsdino import ops
from fsdino.bench import memory

MEGABYTE = 2**20


def peaks(requests: list[tuple[int, int]]) -> list[int | None]:
    """Measured peaks of calls that take megabytes, free them, and take others that they return."""

    def run(beside: int, kept: int) -> list[Tensor]:
        torch.ones(beside * MEGABYTE, dtype=torch.uint8)
        return [torch.ones(kept * MEGABYTE, dtype=torch.uint8)]

    before = torch.ones(300 * MEGABYTE, dtype=torch.uint8)  # an earlier, higher peak
    del before
    return [memory.peak_bytes(partial(run, *request)) for request in requests]


def peak_of_shots(backend: str, innermost: str) -> int | None:
    """Peak memory of 256 shots of one query of 1 MB, whose copies would take 256 MB.

    Args:
        backend: which.
        innermost: dims of the features that lie side by side in memory, "tokens" or "channels".
    """
    query = torch.randn(1, 1, 16384, 4, 4)
    if innermost == "channels":
        query = query.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    query = query.expand(256, -1, -1, -1, -1)
    support = torch.randn(256, 1, 16384, 1, 1)
    ops.correlation4d(query[:1], support[:1], backend=backend)
    return memory.peak_bytes(lambda: [ops.correlation4d(query, support, backend=backend)])
