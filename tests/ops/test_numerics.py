"""What every backend keeps: the same bits, NaN and infinity, lazy views, K shots without copies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import cases
from allocations import peak_of_shots
from cases import Case
from fsdino import ops
from fsdino.apps import memory
from fsdino.ops import backends

CASE = Case("several tiles", batch=2, query=(9, 7), support=(6, 5), out=12, groups=3)
OPS = {
    "correlation4d": ("query", "support", "support_weight"),
    "center_pivot_conv4d": ("x", "weight_query", "weight_support", "bias"),
    "center_pivot_block4d": (
        "x", "weight_query", "weight_support", "bias", "norm_weight", "norm_bias",
    ),
    "correlation_center_pivot4d": (
        "query", "support", "support_weight", "weight_query", "weight_support", "bias",
    ),
}  # fmt: skip
SETTINGS = {
    "correlation4d": {},
    "center_pivot_conv4d": {"support_stride": 2},
    "center_pivot_block4d": {"support_stride": 2, "num_groups": 3},
    "correlation_center_pivot4d": {"support_stride": 2},
}

each_op = pytest.mark.parametrize("op", OPS)
each_backend = pytest.mark.parametrize("backend", backends.names())


def inputs(op: str) -> dict[str, Tensor]:
    query, support, weight = cases.features(CASE, torch.float32)
    assert weight is not None
    everything = {"query": query, "support": support, "support_weight": weight}
    everything |= {"x": cases.volume(CASE, torch.float32)}
    everything |= {k: v for k, v in cases.parameters(CASE, torch.float32).items() if v is not None}
    return {name: everything[name] for name in OPS[op]}


def call(op: str, arguments: dict[str, Tensor], backend: str) -> Tensor:
    result: Tensor = getattr(ops, op)(*arguments.values(), backend=backend, **SETTINGS[op])
    return result


def results(op: str, backend: str) -> list[Tensor]:
    """The output, and the gradient to every input."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs(op).items()}
    y = call(op, leaves, backend)
    cotangent = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), cotangent)]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_op
@each_backend
def test_same_bits_from_run_to_run(backend: str, op: str, threads: Callable[[int], None]) -> None:
    """Twice the same call gives the same bits, forward and backward, with two threads."""
    torch.set_deterministic_debug_mode("default")
    threads(2)
    for first, second in zip(results(op, backend), results(op, backend), strict=True):
        assert torch.equal(first, second)


@each_op
@each_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nan_and_infinity_travel_as_in_the_reference(backend: str, op: str, value: float) -> None:
    """One bad value in the data spoils exactly what it spoils in the definition."""
    arguments = inputs(op)
    data = next(iter(arguments.values()))
    data.view(-1)[data.numel() // 3] = value
    actual, expected = call(op, arguments, backend), call(op, arguments, "reference")
    assert not expected.isfinite().all()
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.isinf(), expected.isinf())
    sound = expected.isfinite()
    torch.testing.assert_close(actual[sound], expected[sound], rtol=1e-4, atol=1e-5)


@each_op
@each_backend
def test_lazy_and_strided_views(backend: str, op: str) -> None:
    """Views that negate lazily, skip elements or overlap give what their copies give."""

    def negated(t: Tensor) -> Tensor:
        view = torch.complex(torch.zeros_like(t), -t).conj().imag
        assert view.is_neg()
        return view

    def strided(t: Tensor) -> Tensor:
        return torch.stack([t, t + 1], dim=-1)[..., 0]

    plain = inputs(op)
    expected = call(op, plain, backend)
    for view in (negated, strided):
        actual = call(op, {name: view(tensor) for name, tensor in plain.items()}, backend)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    name, data = next(iter(plain.items()))
    shared = data[:1].expand_as(data)
    actual = call(op, {**plain, name: shared}, backend)
    expected = call(op, {**plain, name: shared.contiguous()}, backend)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux")
@pytest.mark.parametrize("innermost", ["tokens", "channels"])
@pytest.mark.parametrize("backend", [name for name in backends.names() if name != "reference"])
def test_shots_of_one_query_are_not_copied(backend: str, innermost: str) -> None:
    """The reference copies; a kernel reads the expanded query where it is, or copies it once."""
    peak = memory.in_new_process(peak_of_shots, backend, innermost)
    assert peak is None or peak < 64 * 2**20


def test_a_result_that_cannot_be_addressed_is_refused() -> None:
    """Expanded inputs can ask for more than 2^63 bytes: an error that names them, at once."""
    huge = torch.zeros(1, 1, 1, 1, 1).expand(1, 1, 1, 2**16, 2**16)
    with pytest.raises(ValueError, match="query and support ask for a result of"):
        ops.correlation4d(huge, huge)
    weight = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="query, support and weight_query ask for a result of"):
        ops.correlation_center_pivot4d(huge, huge, None, weight, weight)
    volume = torch.zeros(1, 1, 1, 1, 1, 1).expand(1, 1, *(2**15,) * 4)
    norm = torch.zeros(1)
    with pytest.raises(ValueError, match="center_pivot_conv4d: x and weight_query ask for"):
        ops.center_pivot_conv4d(volume, weight, weight)
    with pytest.raises(ValueError, match="center_pivot_block4d: x and weight_query ask for"):
        ops.center_pivot_block4d(volume, weight, weight, None, norm, norm, num_groups=1)
