"""What the ops take from a GPU's memory, counted on tensors without any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsdino.ops import baseline
from fsdino.ops.baseline import STRIDE, WORKLOADS

triton = pytest.importorskip("triton")

from fsdino.kernels import correlation, fused, layout, tiles  # noqa: E402


@pytest.fixture(autouse=True)
def planned() -> Iterator[None]:
    """Block sizes of an H100."""
    token = layout.planned.set(90)
    yield
    layout.planned.reset(token)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside the `with` block take at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(t.untyped_storage()) for t in self._tensors((args, kwargs))}
        for tensor in self._tensors(results):
            storage = StorageWeakRef(tensor.untyped_storage())
            if storage not in given:
                self.alive[storage] = tensor.untyped_storage().nbytes()
        self.alive = {s: size for s, size in self.alive.items() if not s.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return results

    @staticmethod
    def _tensors(tree: Any) -> list[torch.Tensor]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def extra_bytes(call: Callable[[], Any]) -> int:
    """Most memory beyond what the call leaves behind, on tensors without any."""
    with (
        mock.patch.object(triton.runtime.jit.JITFunction, "run", lambda *args, **settings: None),
        Peak() as peak,
    ):
        results = call()
    kept = {StorageWeakRef(t.untyped_storage()): t for t in Peak._tensors(results)}
    return peak.peak - sum(t.untyped_storage().nbytes() for t in kept.values())


def hr(memory: str) -> tuple[torch.Tensor, ...]:
    """HR's first block: query, support, weight, both kernels and bias, without memory."""
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


@pytest.mark.parametrize("memory", ["contiguous", "tokens"])
def test_beyond_inputs_and_output(memory: str) -> None:
    """HR's first block takes a tenth of what the eager formulation does, also going back.

    A gradient to the features costs one more chunk, and their copies and gradients.
    """
    query, support, weight, *parameters = hr(memory)

    def eager() -> torch.Tensor:
        x = baseline.correlation4d(query, support, weight)
        return baseline.center_pivot_conv4d(x, *parameters, support_stride=STRIDE)

    arguments = (query, support, weight, *parameters, STRIDE, 1e-5)
    before = extra_bytes(eager)
    assert extra_bytes(lambda: fused.correlation_center_pivot4d(*arguments)) <= before / 10
    outer, side = parameters[0].shape[0], -(-query.shape[4] // STRIDE)
    grad = layout.empty_volume(query, (1, outer, *query.shape[3:], side, side))
    backward = (grad, query, support, weight, *parameters[:2], STRIDE, 1e-5)

    def back(*needs: bool) -> int:
        return extra_bytes(lambda: fused.correlation_center_pivot4d_backward(*backward, needs))

    assert back(False, False, False, True, True, True) <= before / 10
    features = 2 * query.numel() * query.element_size()
    assert (
        back(True, True, True, True, True, True) <= before / 10 + tiles.FUSED_BYTES + 2 * features
    )


@pytest.mark.parametrize("innermost", ["tokens", "channels"])
def test_shots_of_one_query_are_not_copied(innermost: str) -> None:
    """256 shots of one query of 1 MB: it is read where it is, or copied once."""
    query = torch.empty(1, 1, 16384, 4, 4, device="meta")
    if innermost == "channels":
        query = query.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    shots = query.expand(256, -1, -1, -1, -1)
    support = torch.empty(256, 1, 16384, 1, 1, device="meta")
    extra = extra_bytes(lambda: correlation.correlation4d(shots, support, None, 1e-5))
    assert extra < 3 * query.numel() * query.element_size()
