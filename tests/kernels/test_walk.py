"""The walk's words of bits: kernels whose rows and columns fill fields of every width, and none."""

from __future__ import annotations

import pytest
import torch

from fsdino import ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import Case

CASES = (
    Case(
        "8 bits", batch=1, query=(5, 9), support=(9, 4), kernel_query=7, kernel_support=5, stride=3
    ),
    Case("16 bits", batch=1, query=(10, 3), support=(4, 11), kernel_query=3, kernel_support=15),
    Case("no bits", batch=1, query=(3, 10), support=(7, 3), kernel_query=17, kernel_support=1),
    Case("idle programs", batch=2, query=(2, 3), support=(5, 3), stride=4),
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["triton"])
def test_taps_at_the_edges(case: Case, backend: str) -> None:
    """Values and all gradients are those of the formulation."""
    tensors = cases.inputs("center_pivot_conv4d", case, torch.float32).values()
    inputs = [t.detach().requires_grad_() for t in tensors if t is not None]
    twins = [t.detach().double().requires_grad_() for t in inputs]
    expected = formulation.center_pivot_conv4d(*twins, support_stride=case.stride)
    actual = ops.center_pivot_conv4d(*inputs, support_stride=case.stride, backend=backend)
    exactness.assert_close(actual, expected, 1e-6)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    for a, e in zip(
        torch.autograd.grad(actual, inputs, grad),
        torch.autograd.grad(expected, twins, grad.double()),
        strict=True,
    ):
        exactness.assert_close(a, e, 1e-5)
