"""What every backend keeps: the same bits, statistics of flat groups, NaN and infinity in the data,
lazy views, K shots without copies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from allocations import peak_of_shots
from fsdino import contract, ops
from fsdino.bench import cases, exactness, formulation, memory
from fsdino.bench.cases import DTYPES, TOLERANCE, Case
from fsdino.ops import backends, eager

CASE = Case("several tiles", batch=2, query=(9, 7), support=(6, 5), out=12, groups=3)

each_op = pytest.mark.parametrize("op", contract.OPS)
each_backend = pytest.mark.parametrize("backend", backends.names())
# PyTorch's own operators normalise with a mean that is rounded, and copy every shot.
KERNELS = [name for name in backends.names() if name not in ("reference", "eager")]
each_kernel = pytest.mark.parametrize("backend", KERNELS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_kind = pytest.mark.parametrize("reduce_support", [False, True], ids=["map", "reduced"])
# Bias and noise of a convolution whose values all lie close together.
each_flatness = pytest.mark.parametrize(
    "flat", [(4.0, 1e-3), (4.0, 2e-2), (1000.0, 1e-3)], ids=lambda pair: f"{pair[0]:g}+-{pair[1]:g}"
)


def inputs(op: str) -> dict[str, Tensor]:
    found = cases.inputs(op, CASE, torch.float32).items()
    return {name: tensor for name, tensor in found if tensor is not None}


def call(op: str, arguments: dict[str, Tensor], backend: str) -> Tensor:
    settings = cases.settings(op, CASE)
    result: Tensor = getattr(ops, op)(*arguments.values(), backend=backend, **settings)
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


def flat_inputs(dtype: torch.dtype, bias: float, noise: float) -> list[Tensor]:
    """Of a block whose convolution is noise on a bias, far from the ReLU's corner."""
    parameters = cases.parameters(CASE, dtype)
    for name in ("weight_query", "weight_support"):
        parameters[name] = parameters[name] * noise
    parameters["bias"] = torch.full((CASE.out,), bias, dtype=dtype)
    parameters["norm_bias"] = torch.tensor([6.0, -6.0], dtype=dtype).repeat(CASE.out // 2)
    # On average not 0: where rounding takes the noise away, it takes the mean's part of it, too.
    return [cases.volume(CASE, dtype) + 1, *parameters.values()]


def skip_unless_usable(backend: str, dtype: torch.dtype) -> None:
    if backends.why_not(backend, "center_pivot_block4d", torch.device("cpu"), dtype) is not None:
        pytest.skip(f"{backend} does not run {dtype} here")


@each_kind
@each_flatness
@each_dtype
@each_kernel
@pytest.mark.parametrize("groups", [3, 12])
def test_flat_groups(
    backend: str, dtype: torch.dtype, flat: tuple[float, float], reduce_support: bool, groups: int
) -> None:
    """A spread that is tiny beside the mean costs at most twice what it costs PyTorch's own code:
    values and all six gradients."""
    skip_unless_usable(backend, dtype)
    settings = {"num_groups": groups, "support_stride": 2, "reduce_support": reduce_support}
    inputs = flat_inputs(dtype, *flat)
    ours, theirs, exact = ([t.clone().requires_grad_() for t in inputs] for _ in range(3))
    exact = [t.detach().double().requires_grad_() for t in exact]
    expected = formulation.center_pivot_block4d(*exact, **settings)
    results = (
        ops.center_pivot_block4d(*ours, backend=backend, **settings),
        eager.center_pivot_block4d(*theirs, **settings),
    )
    exactness.assert_no_worse(*results, expected, TOLERANCE[dtype].forward)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    grads = (
        torch.autograd.grad(results[0], ours, grad),
        torch.autograd.grad(results[1], theirs, grad),
        torch.autograd.grad(expected, exact, grad.double()),
    )
    for name, a, b, e in zip(cases.tensors_of("center_pivot_block4d"), *grads, strict=True):
        if name == "bias" and groups == CASE.out:
            continue  # normalised away: see below
        exactness.assert_no_worse(a, b, e, TOLERANCE[dtype].gradients, f"gradient to {name}")


@each_kind
@each_flatness
@each_dtype
@each_kernel
def test_statistics_are_of_what_is_stored(
    backend: str, dtype: torch.dtype, flat: tuple[float, float], reduce_support: bool
) -> None:
    """The rounded volume, normalised in float64, is the result, and what is normalised away has no
    gradient."""
    skip_unless_usable(backend, dtype)
    inputs = [t.requires_grad_() for t in flat_inputs(dtype, *flat)]
    y, raw, mean, rstd = torch.ops.fsdino.center_pivot_block4d(
        *inputs, CASE.out, 1e-5, 2, reduce_support, True, backend
    )
    wide = raw.detach().double().flatten(2)
    centred = wide - wide[:, :, :1]  # exact, where the mean of all would be rounded
    centred = centred - centred.mean(2, keepdim=True)
    inverse = (centred.square().mean(2, keepdim=True) + 1e-5).rsqrt()
    scale, shift = (t.detach().double()[:, None] for t in inputs[4:])
    expected = (centred * inverse * scale + shift).relu().reshape(raw.shape)
    if reduce_support:
        expected = expected.mean((4, 5))
    exactness.assert_close(y, expected, TOLERANCE[dtype].forward)
    mean = mean.double().view(-1, *rstd.shape).sum(0)  # of its parts
    exactness.assert_close(mean, wide.mean(2), 1e-6, "mean")
    exactness.assert_close(rstd, inverse[..., 0], 1e-5, "inverse deviation")
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert torch.autograd.grad(y, inputs[3], grad)[0].abs().max() < 1e-6


@each_dtype
@each_kernel
def test_constant_groups_become_the_shift(backend: str, dtype: torch.dtype) -> None:
    """Exactly, whatever the constant: a mean that is off by a rounding would show."""
    skip_unless_usable(backend, dtype)
    x, *parameters = flat_inputs(dtype, 0.0, 0.0)
    for constant in (4.1, 1000.7, -3e4):
        parameters[2] = torch.full((CASE.out,), constant, dtype=dtype).requires_grad_()
        for settings in ({"num_groups": 3}, {"num_groups": 12, "reduce_support": True}):
            y = ops.center_pivot_block4d(x, *parameters, backend=backend, **settings)
            shift = parameters[4].relu().view(-1, *(1,) * (y.ndim - 2))
            assert torch.equal(y, shift.expand_as(y))


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


@each_dtype
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_gradients_of_tokens_in_one_direction(backend: str, dtype: torch.dtype) -> None:
    """The part along the token is subtracted: sums of products must not be rounded before that."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(1, 2, 96, 1, 1, generator=generator)
    query, support = (
        (direction + 0.03 * torch.randn(1, 2, 96, 5, 6, generator=generator)).to(dtype)
        for _ in range(2)
    )
    inputs = [t.requires_grad_() for t in (query, support)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    actual = ops.correlation4d(*inputs, backend=backend)
    expected = formulation.correlation4d(*exact)
    grad = torch.ones_like(expected)
    found = torch.autograd.grad(actual, inputs, grad.to(dtype))
    wanted = torch.autograd.grad(expected, exact, grad)
    bound = TOLERANCE[dtype].gradients
    for name, a, b in zip(("query", "support"), found, wanted, strict=True):
        exactness.assert_close(a, b, bound, f"gradient to {name}")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux")
@pytest.mark.parametrize("innermost", ["tokens", "channels"])
@each_kernel
def test_shots_of_one_query_are_not_copied(backend: str, innermost: str) -> None:
    """PyTorch's own operators copy; a kernel reads the query where it is, or copies it once."""
    peak = memory.in_new_process(peak_of_shots, backend, innermost)
    assert peak is None or peak < 64 * 2**20


def test_a_result_that_cannot_be_addressed_is_refused() -> None:
    """Expanded inputs can ask for more than 2^63 bytes: an error that names them, at once."""
    huge = torch.zeros(1, 1, 1, 1, 1).expand(1, 1, 1, 2**16, 2**16)
    with pytest.raises(ValueError, match="query and support give a result of"):
        ops.correlation4d(huge, huge)
    weight = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="query, support and weight_query give a result of"):
        ops.correlation_center_pivot4d(huge, huge, None, weight, weight)
    volume = torch.zeros(1, 1, 1, 1, 1, 1).expand(1, 1, *(2**15,) * 4)
    norm = torch.zeros(1)
    with pytest.raises(ValueError, match="center_pivot_conv4d: x and weight_query give"):
        ops.center_pivot_conv4d(volume, weight, weight)
    with pytest.raises(ValueError, match="center_pivot_block4d: x and weight_query give"):
        ops.center_pivot_block4d(volume, weight, weight, None, norm, norm, num_groups=1)
