"""An op of a backend beside the formulation in float64."""

from __future__ import annotations

import torch

from fsdino import ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import Case


def assert_formulated(
    op: str, case: Case, backend: str, bound: float, **settings: int | bool
) -> None:
    """In float32, its values are within `bound`, and all its gradients within 1e-5."""
    tensors = cases.inputs(op, case, torch.float32).values()
    inputs = [t.detach().requires_grad_() for t in tensors if t is not None]
    twins = [t.detach().double().requires_grad_() for t in inputs]
    settings["support_stride"] = case.stride
    expected = getattr(formulation, op)(*twins, **settings)
    actual = getattr(ops, op)(*inputs, **settings, backend=backend)
    exactness.assert_close(actual, expected, bound)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    for a, e in zip(
        torch.autograd.grad(actual, inputs, grad),
        torch.autograd.grad(expected, twins, grad.double()),
        strict=True,
    ):
        exactness.assert_close(a, e, 1e-5)
