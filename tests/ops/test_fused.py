"""correlation_center_pivot4d: the convolution of the correlation as one op."""

from __future__ import annotations

import pytest
import torch

from fsdino import ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import DTYPES, Case
from fsdino.ops import backends, eager

OP = "correlation_center_pivot4d"


def skip_unless_usable(backend: str, dtype: torch.dtype) -> None:
    if backends.why_not(backend, OP, torch.device("cpu"), dtype) is not None:
        pytest.skip(f"{backend} does not run {dtype} here")


def inputs_of(case: Case, dtype: torch.dtype) -> list[torch.Tensor | None]:
    return list(cases.inputs(OP, case, dtype).values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.distinct(OP), ids=lambda c: c.name)
@pytest.mark.parametrize("backend", backends.names())
def test_errs_less_than_twice_the_eager_code(case: Case, dtype: torch.dtype, backend: str) -> None:
    """The fused op is the composition, at most twice as far off as PyTorch's formulation."""
    skip_unless_usable(backend, dtype)
    inputs = inputs_of(case, dtype)
    actual = ops.correlation_center_pivot4d(*inputs, support_stride=case.stride, backend=backend)
    assert actual.dtype == dtype
    expected = formulation.correlation_center_pivot4d(*inputs, support_stride=case.stride)
    by_eager = eager.correlation_center_pivot4d(*inputs, support_stride=case.stride)
    exactness.assert_no_worse(actual, by_eager, expected, torch.finfo(dtype).eps)


@pytest.mark.parametrize("case", cases.distinct(OP), ids=lambda c: c.name)
@pytest.mark.parametrize("backend", backends.names())
def test_gradients_equal_the_formulation(case: Case, backend: str) -> None:
    """All six gradients match autograd through the formulation, in float64."""
    skip_unless_usable(backend, torch.float64)
    inputs = [
        None if t is None else t.detach().requires_grad_() for t in inputs_of(case, torch.float64)
    ]
    given = [t for t in inputs if t is not None]
    expected = formulation.correlation_center_pivot4d(*inputs, support_stride=case.stride)
    actual = ops.correlation_center_pivot4d(*inputs, support_stride=case.stride, backend=backend)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).double()
    for a, e in zip(
        torch.autograd.grad(actual, given, grad),
        torch.autograd.grad(expected, given, grad),
        strict=True,
    ):
        exactness.assert_close(a, e, 1e-10)


@pytest.mark.parametrize("backend", backends.names())
def test_gradcheck(backend: str) -> None:
    """Analytic gradients match finite differences in float64."""
    skip_unless_usable(backend, torch.float64)
    case = Case("small", batch=1, layers=2, channels=2, query=(2, 2), support=(3, 2), out=2)
    inputs = tuple(t.requires_grad_() for t in inputs_of(case, torch.float64))
    assert torch.autograd.gradcheck(
        lambda *a: ops.correlation_center_pivot4d(*a, support_stride=2, backend=backend), inputs
    )


@pytest.mark.parametrize("backend", backends.names())
def test_opcheck(backend: str) -> None:
    """Schema, fake kernels, autograd registration and AOT dispatch agree with the kernel."""
    inputs = [t.requires_grad_() for t in inputs_of(Case("opcheck"), torch.float32)]
    torch.library.opcheck(torch.ops.fsdino.correlation_center_pivot4d, (*inputs, 2, 1e-5, backend))
    fixed = [t.detach() for t in inputs[:-1]]
    grad = torch.randn(2, 8, 5, 4, 3, 3)
    for needs in ([True] * 6, [False, False, False, True, True, True]):
        torch.library.opcheck(
            torch.ops.fsdino.correlation_center_pivot4d_backward,
            (grad, *fixed, 2, 1e-5, needs, backend),
        )


def test_mistakes_are_named() -> None:
    """Its arguments are those of the two ops, and so are its errors."""
    features, weight = torch.zeros(1, 3, 4, 5, 5), torch.zeros(8, 3, 3, 3)
    with pytest.raises(ValueError, match="weight_query must have Ci = 3"):
        ops.correlation_center_pivot4d(features, features, None, weight[:, :2], weight)
    with pytest.raises(ValueError, match="support_weight must be"):
        ops.correlation_center_pivot4d(features, features, features[0, 0], weight, weight)
    with pytest.raises(ValueError, match="support_stride must be at least 1"):
        ops.correlation_center_pivot4d(features, features, None, weight, weight, support_stride=0)
