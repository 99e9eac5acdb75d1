"""Memory that tensors of a call take, counted; on the device "meta" they take none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsdino.bench.workloads import STRIDE, WORKLOADS
from fsdino.ops import eager


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside the `with` block take at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(t.untyped_storage()) for t in tensors_in((args, kwargs))}
        for tensor in tensors_in(results):
            storage = StorageWeakRef(tensor.untyped_storage())
            if storage not in given:
                self.alive[storage] = tensor.untyped_storage().nbytes()
        self.alive = {s: size for s, size in self.alive.items() if not s.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return results


def tensors_in(tree: Any) -> list[Tensor]:
    """Those in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def bytes_beyond_results(call: Callable[[], Any]) -> int:
    """Most bytes that a call takes at a time, beyond what it leaves behind."""
    with Peak() as peak:
        results = call()
    kept = {StorageWeakRef(t.untyped_storage()): t for t in tensors_in(results)}
    return peak.peak - sum(t.untyped_storage().nbytes() for t in kept.values())


def hr_first_block(memory: str) -> tuple[Tensor, ...]:
    """Query, support, weight, both kernels and bias of the workload HR, without data.

    Args:
        memory: dims of the features that lie side by side, "contiguous" or "tokens".
    """
    options: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    work = WORKLOADS["HR"]
    features = [
        torch.empty(work.batch, work.layers, work.channels, work.grid, work.grid, **options)
        for _ in range(2)
    ]
    if memory == "tokens":
        features = [f.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for f in features]
    weight = torch.empty(work.batch, work.grid, work.grid, **options)
    kernels = [torch.empty(work.block_channels[0], work.layers, 3, 3, **options) for _ in range(2)]
    return *features, weight, *kernels, torch.empty(work.block_channels[0], **options)


def eager_first_block(
    query: Tensor, support: Tensor, weight: Tensor, *parameters: Tensor
) -> Tensor:
    """The formulation that ours are measured by."""
    return eager.correlation_center_pivot4d(
        query, support, weight, *parameters, support_stride=STRIDE
    )
