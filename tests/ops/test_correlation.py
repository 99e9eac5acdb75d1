"""correlation4d: what it computes, its gradients, its errors, and how it compiles."""

from __future__ import annotations

import pytest
import torch

from fsdino import ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import DTYPES, TOLERANCE, Case
from fsdino.ops import backends


def usable(backend: str, dtype: torch.dtype, op: str = "correlation4d") -> bool:
    return backends.why_not(backend, op, torch.device("cpu"), dtype) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.distinct("correlation4d"), ids=lambda c: c.name)
@pytest.mark.parametrize("backend", backends.names())
def test_equals_the_formulation(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Every backend computes the definition, over the whole table."""
    if not usable(backend, dtype):
        pytest.skip(f"{backend} does not run {dtype} here")
    query, support, weight = cases.features(case, dtype)
    actual = ops.correlation4d(query, support, weight, backend=backend)
    assert actual.dtype == dtype
    expected = formulation.correlation4d(query, support, weight)
    exactness.assert_close(actual, expected, TOLERANCE[dtype].forward)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.distinct("correlation4d"), ids=lambda c: c.name)
@pytest.mark.parametrize("backend", backends.names())
def test_gradients_equal_the_formulation(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Gradients to query, support and weight match autograd through the formulation."""
    if not usable(backend, dtype):
        pytest.skip(f"{backend} does not run {dtype} here")
    inputs = [t for t in cases.features(case, dtype) if t is not None]
    inputs = [t.detach().requires_grad_() for t in inputs]
    twins = [t.detach().double().requires_grad_() for t in inputs]
    expected = formulation.correlation4d(twins[0], twins[1], twins[2] if len(twins) > 2 else None)
    # Rounding decides about elements at the rectification's corner: they get no gradient.
    cosine = formulation.correlation4d(twins[0], twins[1], None).detach()
    negative = formulation.correlation4d(-twins[0], twins[1], None).detach()
    decided = torch.maximum(cosine, negative) > 10 * TOLERANCE[dtype].forward
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    grad = grad * decided
    actual = ops.correlation4d(*inputs, backend=backend)
    for name, a, e in zip(
        ("query", "support", "support_weight"),
        torch.autograd.grad(actual, inputs, grad),
        torch.autograd.grad(expected, twins, grad.double()),
        strict=False,
    ):
        assert a.dtype == dtype
        exactness.assert_close(a, e, TOLERANCE[dtype].gradients, f"gradient to {name}")


@pytest.mark.parametrize("backend", backends.names())
def test_gradcheck(backend: str) -> None:
    """Analytic gradients match finite differences in float64."""
    if not usable(backend, torch.float64):
        pytest.skip(f"{backend} does not run torch.float64 here")
    case = Case("small", batch=1, layers=2, channels=3, query=(2, 2), support=(2, 3), weight="soft")
    inputs = tuple(t.requires_grad_() for t in cases.features(case, torch.float64) if t is not None)
    assert torch.autograd.gradcheck(lambda *a: ops.correlation4d(*a, backend=backend), inputs)


@pytest.mark.parametrize("backend", backends.names())
def test_gradients_only_where_asked(backend: str) -> None:
    """Frozen features cost no gradient; the weight's gradient comes alone."""
    query, support, weight = cases.features(Case("frozen", weight="binary"), torch.float32)
    assert weight is not None
    weight.requires_grad_()
    ops.correlation4d(query, support, weight, backend=backend).sum().backward()
    assert query.grad is None and support.grad is None
    expected = formulation.correlation4d(query, support, None).sum((1, 2, 3))
    exactness.assert_close(weight.grad, expected, 1e-5)  # also where the weight is 0


@pytest.mark.parametrize("backend", backends.names())
def test_zero_weight_silences_nan(backend: str) -> None:
    """Where the weight is exactly 0 the result is exactly 0, and its NaN reaches no gradient."""
    query, support, weight = cases.features(Case("nan", weight="binary"), torch.float32)
    assert weight is not None and (weight == 0).any()
    masked = (weight == 0)[:, None, None].expand_as(support)
    support = support.masked_fill(masked, torch.nan).requires_grad_()
    query.requires_grad_()
    corr = ops.correlation4d(query, support, weight, backend=backend)
    assert torch.isfinite(corr).all()
    assert (corr.movedim((4, 5), (1, 2))[weight == 0] == 0).all()
    corr.sum().backward()
    assert torch.isfinite(query.grad).all() and torch.isfinite(support.grad).all()
    assert (support.grad[masked] == 0).all()


@pytest.mark.parametrize("backend", backends.names())
def test_zero_vectors_have_no_direction(backend: str) -> None:
    """A zero feature correlates with nothing, and its gradient is finite, as eps promises."""
    query, support, weight = cases.features(Case("zero vector"), torch.float32)
    query[0, 0, :, 0, 0] = 0
    query.requires_grad_()
    corr = ops.correlation4d(query, support, weight, backend=backend)
    assert (corr[0, 0, 0, 0] == 0).all()
    corr.sum().backward()
    assert torch.isfinite(query.grad).all()


def test_binary_mask_is_hsnets_mask_then_normalise() -> None:
    """With a binary mask the weight equals HSNet's way: mask the features, then normalise."""
    query, support, weight = cases.features(Case("hsnet", weight="binary"), torch.float64)
    assert weight is not None
    hsnet = formulation.correlation4d(query, support * weight[:, None, None], None)
    exactness.assert_close(ops.correlation4d(query, support, weight), hsnet, 1e-12)


def test_signed_weight_is_foreground_minus_background() -> None:
    """Contrastive enhancement needs one volume: weight 2m - 1 equals two volumes' difference."""
    query, support, mask = cases.features(Case("contrast", weight="binary"), torch.float64)
    assert mask is not None
    fore, back = (formulation.correlation4d(query, support, m) for m in (mask, 1 - mask))
    exactness.assert_close(ops.correlation4d(query, support, 2 * mask - 1), fore - back, 1e-12)


@pytest.mark.parametrize("backend", backends.names())
def test_opcheck(backend: str) -> None:
    """Schema, fake kernels, autograd registration and AOT dispatch agree with the kernel."""
    query, support, weight = cases.features(Case("opcheck"), torch.float32)
    inputs = (query.requires_grad_(), support.requires_grad_(), weight, 1e-5, backend)
    torch.library.opcheck(torch.ops.fsdino.correlation4d, inputs)
    grad = torch.randn(2, 3, 5, 4, 6, 5)
    tensors = (query.detach(), support.detach(), weight)
    for needs in ([True] * 3, [False, True, False]):
        backward = (grad, *tensors, 1e-5, needs, backend)
        torch.library.opcheck(torch.ops.fsdino.correlation4d_backward, backward)


def test_autocast_casts_like_a_convolution() -> None:
    """Inside autocast the inputs are cast and the result has the autocast dtype; float64 stays."""
    query, support, weight = cases.features(Case("autocast"), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = ops.correlation4d(query, support, weight)
        kept = ops.correlation4d(query.double(), support.double())
    assert actual.dtype == torch.bfloat16 and kept.dtype == torch.float64
    rounded = [t.bfloat16() for t in (query, support, weight)]
    exactness.assert_close(
        actual, formulation.correlation4d(*rounded), TOLERANCE[torch.bfloat16].forward
    )


def test_export_with_a_dynamic_batch() -> None:
    """torch.export traces the op with a symbolic batch."""

    class Correlate(torch.nn.Module):
        def forward(self, query: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
            return ops.correlation4d(query, support)

    query, support, _ = cases.features(Case("export"), torch.float32)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(
        Correlate(), (query, support), dynamic_shapes=({0: batch}, {0: batch})
    )
    query, support, _ = cases.features(Case("export", batch=5), torch.float32)
    expected = formulation.correlation4d(query, support, None)
    exactness.assert_close(exported.module()(query, support), expected, 1e-6)


GOOD = torch.zeros(2, 3, 4, 5, 5)
BAD = {
    "query rank": ((GOOD[0], GOOD, None), ValueError, r"query must be \[B, L, C, H, W\]"),
    "support rank": ((GOOD, GOOD[None], None), ValueError, r"support must be \[B, L, C, H, W\]"),
    "layers": ((GOOD, GOOD[:, :2], None), ValueError, r"support must start with query's"),
    "weight size": ((GOOD, GOOD, torch.zeros(2, 4, 5)), ValueError, r"support_weight must be"),
    "empty grid": ((GOOD[..., :0], GOOD, None), ValueError, "only the batch of query may be empty"),
    "mixed dtype": ((GOOD, GOOD.double(), None), TypeError, r"support is torch.float64"),
    "integer": ((GOOD.long(), GOOD, None), TypeError, "query must be float32"),
    "no tensor": ((GOOD, [1.0], None), TypeError, "support must be a tensor, got list"),
    "devices": ((GOOD, GOOD.to("meta"), None), ValueError, "support is on meta"),
}


@pytest.mark.parametrize("arguments, error, message", BAD.values(), ids=list(BAD))
def test_mistakes_are_named(arguments: tuple, error: type[Exception], message: str) -> None:
    """A wrong argument is refused before any kernel starts, by its name."""
    with pytest.raises(error, match=message):
        ops.correlation4d(*arguments)


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_eps_must_be_positive(eps: float) -> None:
    """eps guards against division by zero; without it a zero vector gives NaN."""
    with pytest.raises(ValueError, match="eps must be greater than 0"):
        ops.correlation4d(GOOD, GOOD, eps=eps)
