"""A known use of memory, where another process finds it by name."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fsdino.apps import memory

MEGABYTE = 2**20


def peaks(requests: list[tuple[int, int]]) -> list[int | None]:
    """Measured peaks of calls that take megabytes, free them, and take others that they return."""

    def run(beside: int, kept: int) -> list[Tensor]:
        torch.ones(beside * MEGABYTE, dtype=torch.uint8)
        return [torch.ones(kept * MEGABYTE, dtype=torch.uint8)]

    before = torch.ones(300 * MEGABYTE, dtype=torch.uint8)  # an earlier, higher peak
    del before
    return [memory.peak_bytes(partial(run, *request)) for request in requests]
