"""Derivatives beyond the gradient: second, forward, under torch.func, and activation checkpointing.

Expected values are PyTorch's own derivatives of the formulation, in float64, or differences of
gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from fsdino import ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import CALLS, TOLERANCE, Case
from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.models.hypercorrelation import CenterPivotBlock4d, CenterPivotConv4d, CorrelationPrior
from fsdino.ops import backends
from tiny_models import episode, randomise, tiny_config, tiny_model

CASE = Case(
    "small", batch=2, layers=2, channels=3, query=(2, 3), support=(3, 2), out=4, groups=2,
    weight="soft", stride=2,
)  # fmt: skip


def callables(call: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """An op, to be called with a backend, and its formulation."""
    op, _ = CALLS[call]
    settings = cases.settings(call, CASE)
    return partial(getattr(ops, op), **settings), partial(getattr(formulation, op), **settings)


# Each call with its inputs, the op and its formulation.
OPS = {call: (cases.tensors_of(CALLS[call][0]), *callables(call)) for call in CALLS}

each_op = pytest.mark.parametrize("op", OPS)
each_backend = pytest.mark.parametrize("backend", backends.names())


def skip_unless_usable(backend: str, dtype: torch.dtype) -> None:
    if backends.why_not(backend, "correlation4d", torch.device("cpu"), dtype) is not None:
        pytest.skip(f"{backend} does not run {dtype} here")


def inputs(op: str, dtype: torch.dtype) -> list[Tensor]:
    found = cases.inputs(op, CASE, dtype)
    if "support_weight" in found:
        weight = found["support_weight"]
        assert weight is not None and (weight == 0).any() and (weight != 0).any()
    return [t for t in found.values() if t is not None]


def on(op: str, backend: str) -> Callable[..., Tensor]:
    return lambda *a: OPS[op][1](*a, backend=backend)


def directions(tensors: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(t.shape, generator=generator).to(t.dtype) for t in tensors]


def second(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Gradients of a product of all gradients with fixed directions."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    loss = function(*leaves).double().square().sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    product = sum((g * d).double().sum() for g, d in zip(first, directions(leaves), strict=True))
    return list(torch.autograd.grad(product, leaves))


def tolerance(op: str, dtype: torch.dtype) -> float:
    """Of one op's gradients; the second derivatives pass the op twice."""
    return 2 * TOLERANCE[dtype].gradients


@each_op
@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_second_derivatives_equal_the_formulation(
    dtype: torch.dtype, backend: str, op: str
) -> None:
    """Double backward, to every input, also where a weight of the correlation is 0."""
    skip_unless_usable(backend, dtype)
    tensors = inputs(op, dtype)
    expected = second(OPS[op][2], [t.double() for t in tensors])
    assert all(e.abs().max() > 0 for e in expected)
    names = OPS[op][0]
    for name, a, e in zip(names, second(on(op, backend), tensors), expected, strict=True):
        assert a.dtype == dtype
        exactness.assert_close(a, e, tolerance(op, dtype), f"second derivative to {name}")


@each_op
@each_backend
def test_gradgradcheck(backend: str, op: str) -> None:
    """Second derivatives are the differences of the gradients that the backend's kernels give."""
    skip_unless_usable(backend, torch.float64)
    leaves = [t.requires_grad_() for t in inputs(op, torch.float64)]
    assert torch.autograd.gradgradcheck(on(op, backend), tuple(leaves), fast_mode=True)


@each_op
@each_backend
def test_a_gradient_that_can_be_differentiated_is_the_gradient(backend: str, op: str) -> None:
    """`create_graph` changes no value, also beside a frozen input."""
    skip_unless_usable(backend, torch.float32)
    tensors = inputs(op, torch.float32)
    leaves = [t.requires_grad_(index != 1) for index, t in enumerate(tensors)]
    asked = [t for t in leaves if t.requires_grad]
    result = on(op, backend)(*leaves)
    cotangent = directions([result])[0].requires_grad_()
    plain = torch.autograd.grad(result, asked, cotangent, retain_graph=True)
    recorded = torch.autograd.grad(result, asked, cotangent, create_graph=True)
    for a, e in zip(recorded, plain, strict=True):
        assert a.requires_grad
        exactness.assert_close(a.detach(), e, tolerance(op, torch.float32))


@each_op
@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_second_derivatives_in_half_precision(dtype: torch.dtype, backend: str, op: str) -> None:
    """They are computed in float32 and rounded once for each order."""
    skip_unless_usable(backend, dtype)
    tensors = inputs(op, dtype)
    expected = second(OPS[op][2], [t.double() for t in tensors])
    for a, e in zip(second(on(op, backend), tensors), expected, strict=True):
        assert a.dtype == dtype
        exactness.assert_close(a, e, 2 * TOLERANCE[dtype].gradients)


@each_backend
def test_third_derivatives(backend: str) -> None:
    """No order is the last."""
    skip_unless_usable(backend, torch.float32)
    tensors = inputs("center_pivot_block4d", torch.float32)

    def third(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        value = function(x, *others).square().sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.square().sum()
        return torch.autograd.grad(value, x)[0]

    actual = third(on("center_pivot_block4d", backend), *tensors)
    expected = third(OPS["center_pivot_block4d"][2], *(t.double() for t in tensors))
    exactness.assert_close(actual, expected, 1e-4)


@each_backend
def test_one_tensor_as_query_and_support(backend: str) -> None:
    """Each argument has its own gradient, where both are one tensor or one is made of the other."""
    skip_unless_usable(backend, torch.float32)
    features = inputs("correlation4d", torch.float32)[0]
    for made_of in (lambda q: q, lambda q: q.flip(2).sin()):
        actual = second(
            lambda q, m=made_of: ops.correlation4d(q, m(q), backend=backend), [features]
        )
        expected = second(
            lambda q, m=made_of: formulation.correlation4d(q, m(q), None), [features.double()]
        )
        exactness.assert_close(actual[0], expected[0], tolerance("", torch.float32))


@each_backend
@pytest.mark.parametrize("op", ["correlation4d", "correlation_center_pivot4d"])
def test_zero_vectors_and_silenced_nan_spoil_no_second_derivative(backend: str, op: str) -> None:
    """As for the gradient: of a zero vector 0, and NaN behind a weight of 0 reaches nothing."""
    skip_unless_usable(backend, torch.float32)
    query, support, weight, *others = inputs(op, torch.float32)
    silent = (weight == 0)[:, None, None].expand_as(support)
    sound = [query, support.masked_fill(silent, 0), weight, *others]
    sound[0][0, 0, :, 0, 0] = 0

    def without_weight(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, s, *more: function(q, s, weight.to(q.dtype), *more)

    run = without_weight(on(op, backend))
    actual = second(run, [query, support.masked_fill(silent, torch.nan), *others])
    assert all(a.isfinite().all() for a in actual)
    assert (actual[0][0, 0, :, 0, 0] == 0).all() or op != "correlation4d"
    assert (actual[1][silent] == 0).all()
    # Without the zero vector and with silenced features that are not NaN, the formulation.
    sound[0][0, 0, :, 0, 0] = 1
    plain = without_weight(OPS[op][2])
    expected = second(plain, [t.double() for t in (sound[0], support, *others)])
    spoilt = support.masked_fill(silent, torch.nan)
    for a, e in zip(second(run, [sound[0], spoilt, *others]), expected, strict=True):
        exactness.assert_close(a, e, tolerance(op, torch.float32))


@each_op
@each_backend
def test_forward_mode(backend: str, op: str) -> None:
    """`torch.func.jvp`, and dual tensors with and without a gradient besides."""
    skip_unless_usable(backend, torch.float32)
    tensors = inputs(op, torch.float32)
    tangents = directions(tensors)
    wide = tuple(t.double() for t in tensors), tuple(t.double() for t in tangents)
    value, expected = torch.func.jvp(OPS[op][2], *wide)
    assert expected.abs().max() > 0
    result, tangent = torch.func.jvp(on(op, backend), tuple(tensors), tuple(tangents))
    exactness.assert_close(result, value, 1e-5)
    exactness.assert_close(tangent, expected, tolerance(op, torch.float32))
    for recorded in (False, True):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t.clone().requires_grad_(recorded), v)
                for t, v in zip(tensors, tangents, strict=True)
            ]
            both = forward_ad.unpack_dual(on(op, backend)(*duals))
        exactness.assert_close(both.primal.detach(), value, 1e-5)
        exactness.assert_close(both.tangent.detach(), expected, tolerance(op, torch.float32))


@each_op
@each_backend
def test_a_gradient_passes_tangents_on(backend: str, op: str) -> None:
    """A dual tensor that reaches the op from behind, as the gradient of its result."""
    skip_unless_usable(backend, torch.float32)
    first, *others = inputs(op, torch.float32)

    def tangent(function: Callable[..., Tensor], first: Tensor, *others: Tensor) -> Tensor:
        leaf = first.detach().requires_grad_()
        result = function(leaf, *others)
        with forward_ad.dual_level():
            ones = torch.ones_like(result)
            grad = forward_ad.make_dual(ones, ones.cumsum(-1))
            (found,) = torch.autograd.grad(result, leaf, grad)
            return forward_ad.unpack_dual(found).tangent

    actual = tangent(on(op, backend), first, *others)
    expected = tangent(OPS[op][2], first.double(), *(t.double() for t in others))
    exactness.assert_close(actual, expected, tolerance(op, torch.float32))


def compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jacrev": lambda f, x: torch.func.jacrev(lambda x: f(x[:1]))(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(lambda x: f(x[:1]))(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x[:1]))(x),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x.sin()])),
    "vmap of nothing": lambda f, x: torch.func.vmap(f)(x.new_zeros(0, *x.shape)),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(f))(torch.stack([x, x.sin()])),
    "grad of vmap": lambda f, x: torch.func.grad(
        lambda x: torch.func.vmap(f)(torch.stack([x, x.sin()])).sum()
    )(x),
    "batched gradients": lambda f, x: torch.autograd.functional.jacobian(
        lambda x: torch.stack([f(x), 2 * f(x)]), x, vectorize=True
    ),
    "hessian of autograd": lambda f, x: torch.autograd.functional.hvp(f, x, x.sin())[1],
    "compiled grad": lambda f, x: compiled(torch.func.grad(f))(x),
    "compiled jvp": lambda f, x: compiled(lambda x: torch.func.jvp(f, (x,), (x.sin(),))[1])(x),
}  # fmt: skip


@each_backend
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", ["correlation4d", "center_pivot_block4d, reduced"])
def test_transforms(op: str, transform: str, backend: str) -> None:
    """Everything that torch.func and torch.autograd.functional make of an op."""
    skip_unless_usable(backend, torch.float32)
    first, *others = inputs(op, torch.float32)
    if op == "correlation4d":  # the loss sees the first sample alone, too
        others[1] = others[1][:1].expand_as(others[1])

    def loss(function: Callable[..., Tensor], *fixed: Tensor) -> Callable[[Tensor], Tensor]:
        def of(x: Tensor) -> Tensor:
            more = [t[: len(x)] if t.shape[:1] == first.shape[:1] else t for t in fixed]
            return function(x, *more).square().sum()

        return of

    actual = TRANSFORMS[transform](loss(on(op, backend), *others), first)
    wide = loss(OPS[op][2], *(t.double() for t in others))
    plain = transform.removeprefix("compiled ")
    if plain in ("grad", "jvp"):
        expected = torch.func.grad(wide)(first.double())
        if plain == "jvp":
            expected = (expected * first.double().sin()).sum()
    else:
        expected = TRANSFORMS[transform](wide, first.double())
    exactness.assert_close(actual, expected, 5 * tolerance(op, torch.float32))


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_inside_autocast(dtype: torch.dtype, backend: str) -> None:
    """Second derivatives are computed outside of autocast, as the kernels are."""
    skip_unless_usable(backend, dtype)
    tensors = inputs("center_pivot_conv4d", torch.float32)
    rounded = [t.to(dtype).double() for t in tensors]
    expected = second(OPS["center_pivot_conv4d"][2], rounded)
    with torch.autocast("cpu", dtype):
        actual = second(on("center_pivot_conv4d", backend), tensors)
    for a, e in zip(actual, expected, strict=True):
        exactness.assert_close(a, e, 2 * TOLERANCE[dtype].gradients)


@each_op
def test_the_backward_op_is_not_differentiated_in_silence(op: str) -> None:
    """Called by itself, with a graph or a tangent, it names what to call."""
    name, _ = CALLS[op]
    backward = getattr(torch.ops.fsdino, name + "_backward").default
    tensors = [
        torch.ones(1, requires_grad=True) if str(a.type) == "Tensor" else None
        for a in backward._schema.arguments
    ]
    settings = {"SymInt": 1, "int": 1, "float": 1e-5, "bool": False, "str": "reference"}
    arguments: list[Any] = [
        [True] * 6 if "bool" in str(a.type) and a.name == "needs"
        else tensor if "Tensor" in str(a.type)
        else settings[str(a.type)]
        for a, tensor in zip(backward._schema.arguments, tensors, strict=True)
    ]  # fmt: skip
    with pytest.raises(NotImplementedError, match=rf"differentiate fsdino.ops.{name} twice"):
        backward(*arguments)
    with forward_ad.dual_level(), torch.no_grad():
        ones = torch.ones(1)
        arguments[0] = forward_ad.make_dual(ones, ones)
        with pytest.raises(NotImplementedError, match="create_graph=True"):
            backward(*arguments)


class Modules:
    """Modules of the package in float64, and a call that passes the ops."""

    @staticmethod
    def convolution() -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
        return CenterPivotConv4d(2, 3, support_stride=2), (cases.volume(CASE, torch.float64),)

    @staticmethod
    def block() -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
        module = CenterPivotBlock4d(2, 4, num_groups=2)
        return module, (cases.volume(CASE, torch.float64),)

    @staticmethod
    def prior() -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
        query, support, weight = cases.features(CASE, torch.float64)
        assert weight is not None
        return CorrelationPrior(2, (4, 8)), (query, support, weight.abs())

    @staticmethod
    def hsnet() -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config: ModelConfig = tiny_config(variant="hsnet_head")
            return zoo.assemble(config), tuple(t.double() for t in episode(1, 1))

    @staticmethod
    def fsdino() -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
        return tiny_model(), tuple(t.double() for t in episode(1, 1))


MODULES = ("convolution", "block", "prior", "hsnet", "fsdino")
each_module = pytest.mark.parametrize("name", MODULES)


def module_named(name: str) -> tuple[torch.nn.Module, list[Tensor], tuple[Tensor, ...]]:
    """A module with weights of order 1, those of them that are trained, and inputs."""
    module, arguments = getattr(Modules, name)()
    randomise(module, 0)
    module = module.double().eval()
    return module, [p for p in module.parameters() if p.requires_grad], arguments


@each_module
@each_backend
def test_second_derivatives_of_modules(backend: str, name: str) -> None:
    """A Hessian times a direction is the difference of two gradients."""
    skip_unless_usable(backend, torch.float64)
    module, weights, arguments = module_named(name)
    direction = directions(weights)

    def gradient(create_graph: bool = False) -> tuple[Tensor, ...]:
        loss = module(*arguments).square().mean()
        return torch.autograd.grad(loss, weights, create_graph=create_graph, allow_unused=True)

    def difference(step: float) -> list[Tensor]:
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, d in zip(weights, direction, strict=True):
                    weight.add_(d, alpha=sign * step)
            sides.append(gradient())
            with torch.no_grad():
                for weight, d in zip(weights, direction, strict=True):
                    weight.sub_(d, alpha=sign * step)
        return [(a - b) / (2 * step) for a, b in zip(*sides, strict=True) if a is not None]

    with ops.use_backend(backend):
        first = gradient(create_graph=True)
        product = sum((g * d).sum() for g, d in zip(first, direction, strict=True) if g is not None)
        actual = torch.autograd.grad(product, weights, allow_unused=True)
        expected = difference(1e-6)
    found = [a for a, g in zip(actual, first, strict=True) if g is not None]
    actual_all = torch.cat([a.flatten() for a in found if a is not None])
    expected_all = torch.cat([e.flatten() for a, e in zip(found, expected, strict=True)
                              if a is not None])  # fmt: skip
    assert expected_all.abs().max() > 0
    assert exactness.norm_error(actual_all, expected_all) < 1e-4


@each_module
@each_backend
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_activation_checkpointing_of_modules(reentrant: bool, backend: str, name: str) -> None:
    """What is computed again in the backward pass gives the same gradients."""
    skip_unless_usable(backend, torch.float64)
    module, weights, arguments = module_named(name)
    arguments = (arguments[0].requires_grad_(), *arguments[1:])  # a reentrant one needs it

    def gradients(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        for weight in weights:
            weight.grad = None
        call(*arguments).square().mean().backward()
        return tuple(w.grad for w in weights if w.grad is not None)

    with ops.use_backend(backend):
        expected = gradients(module)
        actual = gradients(lambda *a: checkpoint(module, *a, use_reentrant=reentrant))
    assert len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@each_op
@each_backend
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_activation_checkpointing(reentrant: bool, backend: str, op: str) -> None:
    """Every op in a checkpoint, and what follows it in another."""
    skip_unless_usable(backend, torch.float32)
    leaves = [t.requires_grad_() for t in inputs(op, torch.float32)]
    expected = torch.autograd.grad(on(op, backend)(*leaves).square().sum(), leaves)
    result = checkpoint(on(op, backend), *leaves, use_reentrant=reentrant)
    checkpoint(torch.square, result, use_reentrant=reentrant).sum().backward()
    for leaf, e in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, e)


@each_op
@each_backend
def test_saved_tensors_are_unpacked_once(backend: str, op: str) -> None:
    """Hooks that put saved tensors elsewhere are asked for each of them once, and are enough."""
    skip_unless_usable(backend, torch.float32)
    leaves = [t.requires_grad_() for t in inputs(op, torch.float32)]
    expected = torch.autograd.grad(on(op, backend)(*leaves).sum(), leaves)
    unpacked: list[int] = []
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor.detach().clone())
        return len(packed) - 1

    def unpack(index: int) -> Tensor:
        unpacked.append(index)
        return packed[index]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = on(op, backend)(*leaves)
    found = torch.autograd.grad(result.sum(), leaves)
    assert sorted(unpacked) == list(range(len(packed)))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)
    with torch.autograd.graph.save_on_cpu():
        result = on(op, backend)(*leaves)
    for a, e in zip(torch.autograd.grad(result.sum(), leaves), expected, strict=True):
        torch.testing.assert_close(a, e)
