"""NaN and infinity in every input: they reach what they reach in the definition, and nothing else.

Memory that nobody wrote holds NaN here (tests/conftest.py): an element left unwritten shows.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fsdino import ops
from fsdino.bench import cases, exactness
from fsdino.bench.cases import CALLS, DTYPES, Case
from fsdino.ops import backends

# Two tiles of a GPU kernel, channels that its bulk copies take, and support weights of 0.
CASE = Case(
    "non-finite", batch=2, layers=2, query=(6, 4), support=(6, 5), out=6, groups=3, weight="soft"
)
WEIGHTS = ("weight_query", "weight_support")
# ||out - ref|| / ||ref|| of what stays finite; loose, since signs before a ReLU may flip.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}

each_backend = pytest.mark.parametrize("backend", backends.names())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def skip_unless_usable(backend: str, dtype: torch.dtype) -> None:
    if backends.why_not(backend, "correlation4d", torch.device("cpu"), dtype) is not None:
        pytest.skip(f"{backend} does not run {dtype} here")


def inputs(call: str, dtype: torch.dtype) -> dict[str, Tensor]:
    found = cases.inputs(call, CASE, dtype).items()
    tensors = {name: tensor for name, tensor in found if tensor is not None}
    assert "support_weight" not in tensors or (tensors["support_weight"] == 0).any()
    return tensors


def results(call: str, arguments: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """The output, and the gradient to every input."""
    op, _ = CALLS[call]
    leaves = [tensor.clone().requires_grad_() for tensor in arguments.values()]
    y = getattr(ops, op)(*leaves, backend=backend, **cases.settings(call, CASE))
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    grads = torch.autograd.grad(y, leaves, cotangent)
    return {"output": y.detach()} | dict(zip(arguments, grads, strict=True))


def assert_spoilt_alike(call: str, arguments: dict[str, Tensor], backend: str, name: str) -> None:
    """NaN, infinities and finite values lie where the definition has them in float64.

    Except that PyTorch's own convolution decides by dtype and size whether its padding, 0, is
    multiplied by the weights: the backends `reference` and `eager` may leave these products out.
    And PyTorch's own group normalisation multiplies the mean by the scale before it subtracts it:
    with an infinite scale, `eager` may give other values that are not finite, and more of them.
    """
    wide = {key: tensor.double() for key, tensor in arguments.items()}
    actual = results(call, arguments, backend)
    for key, expected in results(call, wide, "reference").items():
        what = f"{key}, where {name} is spoilt"
        found = actual[key].double()
        exempt = torch.zeros_like(expected, dtype=torch.bool)
        if backend in ("reference", "eager") and name in WEIGHTS and key == "output":
            exempt = expected.isnan() & ~found.isnan()
        if backend == "eager" and name == "norm_weight":
            exempt = ~found.isfinite()
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(found) | exempt, kind(expected) | exempt), what
        sound = expected.isfinite() & ~exempt
        if sound.any():
            exactness.assert_close(
                found[sound], expected[sound], CLOSE[arguments[name].dtype], what
            )


def at(tensor: Tensor, index: int, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[index] = value
    return tensor


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@each_dtype
@pytest.mark.parametrize("call", CALLS)
@each_backend
def test_every_input(backend: str, call: str, dtype: torch.dtype, value: float) -> None:
    """One bad value in any input spoils what it spoils in the definition: output, gradients."""
    skip_unless_usable(backend, dtype)
    for name in inputs(call, dtype):
        arguments = inputs(call, dtype)
        arguments[name] = at(arguments[name], arguments[name].numel() // 3, value)
        assert_spoilt_alike(call, arguments, backend, name)


@each_dtype
@pytest.mark.parametrize("call", [call for call in CALLS if call != "correlation4d"])
@each_backend
def test_corners(backend: str, call: str, dtype: torch.dtype) -> None:
    """In a corner of the grid, or of a kernel, the fewest taps meet a bad value."""
    skip_unless_usable(backend, dtype)
    for name in inputs(call, dtype):
        if name in ("bias", "norm_weight", "norm_bias"):
            continue
        arguments = inputs(call, dtype)
        arguments[name] = at(arguments[name], -1, torch.nan)
        assert_spoilt_alike(call, arguments, backend, name)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("call", ["correlation_center_pivot4d"])
@each_backend
def test_a_silent_support_meets_bad_weights(backend: str, call: str, value: float) -> None:
    """Support weights of 0 make zeros of the correlation, which the convolution multiplies."""
    for name in WEIGHTS:
        arguments = inputs(call, torch.float32)
        arguments["support_weight"] = torch.zeros_like(arguments["support_weight"])
        arguments[name] = at(arguments[name], arguments[name].numel() // 3, value)
        assert_spoilt_alike(call, arguments, backend, name)


@each_dtype
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@each_backend
def test_a_query_token_spoils_its_row(backend: str, value: float, dtype: torch.dtype) -> None:
    """Its correlation is NaN with every support token that counts, 0 with the others; no other
    token's is touched."""
    skip_unless_usable(backend, dtype)
    query, support, weight = inputs("correlation4d", dtype).values()
    plain = ops.correlation4d(query, support, weight, backend=backend)
    query[1, 0, 3, 2, 1] = value
    spoilt = ops.correlation4d(query, support, weight, backend=backend)
    silent = weight[1] == 0
    assert spoilt[1, 0, 2, 1][~silent].isnan().all()
    assert (spoilt[1, 0, 2, 1][silent] == 0).all()
    spoilt[1, 0, 2, 1] = plain[1, 0, 2, 1]
    assert torch.equal(spoilt, plain)
