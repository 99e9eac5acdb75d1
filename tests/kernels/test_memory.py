"""What the ops take from a GPU's memory, counted on tensors without any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from counting import bytes_beyond_results, eager_first_block, hr_first_block
from fsdino.bench.workloads import STRIDE, WORKLOADS
from fsdino.ops import eager

triton = pytest.importorskip("triton")

from fsdino.kernels import correlation, fused, layout, squeeze, tiles  # noqa: E402


@pytest.fixture(autouse=True)
def planned() -> Iterator[None]:
    """Block sizes of an H100."""
    token = layout.planned.set(90)
    yield
    layout.planned.reset(token)


def extra_bytes(call: Callable[[], Any]) -> int:
    """Most memory beyond what the call leaves behind, with kernels that do nothing."""
    with mock.patch.object(triton.runtime.jit.JITFunction, "run", lambda *args, **settings: None):
        return bytes_beyond_results(call)


@pytest.mark.parametrize("memory", ["contiguous", "tokens"])
def test_beyond_inputs_and_output(memory: str) -> None:
    """HR's first block takes a tenth of what the eager formulation does, also going back.

    A gradient to the features costs one more chunk, and their copies and gradients.
    """
    query, support, weight, *parameters = block = hr_first_block(memory)
    arguments = (*block, STRIDE, 1e-5)
    before = bytes_beyond_results(lambda: eager_first_block(*block))
    assert extra_bytes(lambda: fused.correlation_center_pivot4d(*arguments)) <= before / 10
    outer, side = parameters[0].shape[0], -(-query.shape[4] // STRIDE)
    grad = layout.empty_volume(query, (1, outer, *query.shape[3:], side, side))
    backward = (grad, query, support, weight, *parameters[:2], STRIDE, 1e-5)

    def back(*needs: bool) -> int:
        return extra_bytes(lambda: fused.correlation_center_pivot4d_backward(*backward, needs))

    assert back(False, False, False, True, True, True) <= before / 10
    features = 2 * query.numel() * query.element_size()
    assert (
        back(True, True, True, True, True, True) <= before / 10 + tiles.CHUNK_BYTES + 2 * features
    )


@pytest.mark.parametrize("memory", ["contiguous", "tokens"])
def test_the_chain(memory: str) -> None:
    """HR's three blocks: two raw volumes at a time, less than a quarter of the eager code's."""
    query, support, weight, *_ = hr_first_block(memory)
    blocks, inner = [], query.shape[1]
    for outer in WORKLOADS["HR"].block_channels:
        kernel, vector = query.new_empty(outer, inner, 3, 3), query.new_empty(outer)
        blocks.append((kernel, kernel, vector, vector, vector, STRIDE))
        inner = outer
    columns: Any = [[*column] for column in zip(*blocks, strict=True)]
    before = bytes_beyond_results(lambda: eager.squeeze4d(query, support, weight, blocks))
    ours = extra_bytes(lambda: squeeze.squeeze4d(query, support, weight, *columns, 4, 1e-5, 1e-5))
    raw = 2 * 74**2 * (16 * 37**2 + 64 * 19**2)
    copies = 2 * query.numel() * query.element_size() if memory == "contiguous" else 0
    assert ours <= min(before / 4, 1.02 * raw) + copies


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
