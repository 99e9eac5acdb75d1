"""Calls past the dispatcher: what they skip, what they never skip, and that nothing is stale."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from fsdino import ops
from fsdino.bench import cases
from fsdino.bench.cases import CALLS, Case, Chain
from fsdino.errors import BackendError
from fsdino.ops import backends, calls, correlation, reference, squeeze

CASE = Case(
    "small", batch=2, layers=2, channels=3, query=(2, 3), support=(3, 2), out=4, groups=2,
    weight="soft", stride=2,
)  # fmt: skip
FEATURES = torch.randn(1, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))

each_call = pytest.mark.parametrize("call", CALLS)
each_backend = pytest.mark.parametrize("backend", backends.names())


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts without a signature."""
    monkeypatch.setattr(calls, "_checked", {})


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by each call of `correlation4d` that does not pass the dispatcher."""
    seen: list[str] = []
    kernel = correlation._OP.kernel
    function = kernel.function

    def spy(*arguments: Any) -> Any:
        seen.append("straight")
        return function(*arguments)

    monkeypatch.setattr(kernel, "function", spy)
    return seen


@contextmanager
def through_the_dispatcher() -> Iterator[None]:
    """Inside it, every call is checked, and passes the dispatcher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "unobserved", lambda: False)
        yield


def inputs(call: str, *, requires_grad: bool = False) -> list[Tensor | None]:
    found = cases.inputs(call, CASE, torch.float32).values()
    return [t if t is None else t.clone().requires_grad_(requires_grad) for t in found]


def run(call: str, tensors: list[Tensor | None], backend: str = "reference") -> Tensor:
    op, _ = CALLS[call]
    result: Tensor = getattr(ops, op)(*tensors, **cases.settings(call, CASE), backend=backend)
    return result


def counted(function: Callable[[], Any]) -> int:
    """Functions, in Python and in C, that Python calls."""
    events = []
    sys.setprofile(lambda _, event, __: events.append(event))
    try:
        function()
    finally:
        sys.setprofile(None)
    return sum(event in {"call", "c_call"} for event in events) - 1  # the last one is setprofile


def least(function: Callable[[], Any]) -> int:
    """The fewest of several runs: the first one imports and looks up, and some collect garbage."""
    return min(counted(function) for _ in range(4))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that takes no time: all of its results exist."""
    implementation = ModuleType("idle")
    results: dict[str, Any] = {}

    def function(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name not in results:
                results[name] = getattr(reference, name)(*arguments)
            return results[name]

        return call

    for name in (op + suffix for op, _ in CALLS.values() for suffix in ("", "_backward")):
        setattr(implementation, name, function(name))
    monkeypatch.setitem(sys.modules, "idle", implementation)
    monkeypatch.setattr(backends, "_registry", dict(backends._registry))
    backends.register(backends.Backend("idle", -100, "idle", lambda *_: None))
    return "idle"


@each_call
def test_a_known_signature_costs_few_calls(call: str, idle: str) -> None:
    """A regression test of the overhead, in calls of functions instead of microseconds."""
    tensors, op = inputs(call), partial(getattr(ops, CALLS[call][0]), **cases.settings(call, CASE))
    first = counted(lambda: op(*tensors, backend=idle))
    again = least(lambda: op(*tensors, backend=idle))
    assert again <= 38 + 2 * len(tensors)
    assert first > again + 50


@each_call
def test_a_known_signature_costs_few_calls_with_gradients(call: str, idle: str) -> None:
    """Forward, and backward beyond what PyTorch calls for the gradients of a sum."""
    tensors = [t for t in inputs(call, requires_grad=True) if t is not None]
    op = partial(getattr(ops, CALLS[call][0]), **cases.settings(call, CASE), backend=idle)
    result = op(*tensors)
    forward = least(lambda: op(*tensors))
    ones = torch.ones_like(result)
    backward = least(lambda: torch.autograd.grad(result, tensors, ones, retain_graph=True))
    total = sum(t.sum() for t in tensors) * ones
    engine = least(lambda: torch.autograd.grad(total, tensors, ones, retain_graph=True))
    # PyTorch 2.11 makes more calls of its own for each tensor.
    each = 2 if TorchVersion(torch.__version__) >= "2.14" else 8
    assert forward <= 42 + each * len(tensors)
    assert backward - engine <= 36 + 3 * len(tensors)


@each_call
@each_backend
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_both_ways_are_the_same(mode: Any, backend: str, call: str) -> None:
    """The same bits, gradients and strides, and the same in-place changes are allowed afterwards.

    Past the dispatcher a result may also be a tensor of its own where it was a view of one that
    nobody else has, which allows more.
    """
    op, _ = CALLS[call]
    if backends.why_not(backend, op, torch.device("cpu"), torch.float32) is not None:
        pytest.skip(f"{backend} does not run here")

    def outcome(requires_grad: bool) -> tuple[list[Tensor], list[Any], list[bool]]:
        tensors = inputs(call, requires_grad=requires_grad)
        with mode():
            result = run(call, tensors, backend)
        values = [result.detach().clone()]
        if result.requires_grad:
            asked = [t for t in tensors if t is not None]
            ones = torch.ones_like(result)
            values += torch.autograd.grad(result, asked, ones, retain_graph=True)
        facts = [result.requires_grad, result.is_leaf, result.is_inference()]
        allowed = [not result._is_view()]
        for factor in (2, torch.ones((), requires_grad=True)):
            try:
                result.mul_(factor)
                allowed.append(True)
            except RuntimeError:
                allowed.append(False)
        return values, [*facts, *(value.stride() for value in values)], allowed

    for requires_grad in (False, True):
        outcome(requires_grad)  # so that the signature is known
        values, facts, allowed = outcome(requires_grad)
        with through_the_dispatcher():
            expected, expected_facts, expected_allowed = outcome(requires_grad)
        assert len(values) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))
        assert facts == expected_facts
        assert allowed == expected_allowed or (backend == "eager" and all(allowed))


class Seen(TorchDispatchMode):
    """Names of the ops that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    """Names of the functions that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


NAME = "fsdino.correlation4d.default"


@pytest.mark.parametrize("mode", [Seen, SeenFunctions])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_modes_see_the_ops(requires_grad: bool, mode: Any, straight: list[str]) -> None:
    """Also those of calls that were made before, and of the backward pass."""
    query = FEATURES.clone().requires_grad_(requires_grad)
    result = ops.correlation4d(query, FEATURES)
    assert len(straight) == 1
    with mode() as seen:
        ops.correlation4d(query, FEATURES)
    assert NAME in seen.names and len(straight) == 1
    if requires_grad and mode is Seen:
        with mode() as seen:
            result.sum().backward()
        assert "fsdino.correlation4d_backward.default" in seen.names


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_profiler_sees_the_ops(requires_grad: bool, straight: list[str]) -> None:
    """By their names, forward and backward."""
    query = FEATURES.clone().requires_grad_(requires_grad)
    ops.correlation4d(query, FEATURES)
    with torch.profiler.profile() as profile:
        result = ops.correlation4d(query, FEATURES)
        if requires_grad:
            result.sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "fsdino::correlation4d" in names and len(straight) == 1
    assert ("fsdino::correlation4d_backward" in names) == requires_grad


def test_traces_hold_the_ops() -> None:
    """Graphs of a function that has been called before, by each tracer that PyTorch has."""

    def twice(query: Tensor) -> Tensor:
        return 2 * ops.correlation4d(query, FEATURES, backend="reference")

    expected = twice(FEATURES)
    assert len(calls._checked) == 1
    for tracer in (
        make_fx(twice),
        make_fx(twice, tracing_mode="fake", _allow_non_fake_inputs=True),
        make_fx(twice, pre_dispatch=True),
        make_fx(torch.func.functionalize(twice)),
    ):
        assert NAME in tracer(FEATURES).code
    with pytest.warns((FutureWarning, DeprecationWarning), match=r"torch\.jit\.trace"):
        scripted = torch.jit.trace(twice, FEATURES.clone(), check_trace=False)
    assert "fsdino::correlation4d" in str(scripted.graph)

    class Twice(torch.nn.Module):
        def forward(self, query: Tensor) -> Tensor:
            return twice(query)

    for strict in (False, True):
        exported = torch.export.export(Twice(), (FEATURES,), strict=strict)
        assert NAME in exported.graph_module.code
    torch._dynamo.reset()
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(compiled(FEATURES), expected)
    assert torch.equal(twice(FEATURES), expected)


def test_fake_tensors_stay_fake(straight: list[str]) -> None:
    """Inside of their mode and outside of it."""
    ops.correlation4d(FEATURES, FEATURES)
    mode = FakeTensorMode()
    fake = mode.from_tensor(FEATURES)
    with mode:
        assert type(ops.correlation4d(fake, fake)) is type(fake)
    assert type(ops.correlation4d(fake, fake)) is type(fake)
    assert len(straight) == 1


def test_transforms_pass_the_dispatcher(straight: list[str]) -> None:
    """`vmap`, `jvp` and `grad` give what they give without a call before."""

    def function(query: Tensor) -> Tensor:
        return ops.correlation4d(query, FEATURES, backend="reference")

    def transforms() -> list[Tensor]:
        return [
            torch.vmap(function)(torch.stack([FEATURES, -FEATURES])),
            *torch.func.jvp(function, (FEATURES,), (FEATURES.flip(0),)),
            torch.func.grad(lambda q: function(q).sum())(FEATURES),
        ]

    expected = transforms()
    calls_before = len(straight)
    function(FEATURES)
    function(FEATURES[None][0])
    assert len(straight) == calls_before + 2
    for found, known in zip(transforms(), expected, strict=True):
        assert torch.equal(found, known)
    calls_before = len(straight)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(FEATURES, FEATURES.flip(0))
        tangent = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
    assert torch.equal(tangent, expected[2]) and len(straight) == calls_before


class Wrapped(torch.Tensor):
    """A subclass that sees functions."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensors_that_are_not_ordinary(straight: list[str]) -> None:
    """A subclass, a lazy negation, a zero without memory, and a wrapper for functionalization."""
    expected = ops.correlation4d(FEATURES, -FEATURES)
    assert len(straight) == 1
    assert isinstance(ops.correlation4d(FEATURES.as_subclass(Wrapped), FEATURES), Wrapped)
    assert NAME in Wrapped.seen
    negative = torch._neg_view(FEATURES)
    assert torch.equal(ops.correlation4d(FEATURES, negative), expected)
    zero = torch._efficientzerotensor(FEATURES.shape)
    assert not ops.correlation4d(FEATURES, zero).any()
    functional = torch._to_functional_tensor(FEATURES)
    assert torch._is_functional_tensor(ops.correlation4d(functional, functional))
    meta = FEATURES.to("meta")
    assert ops.correlation4d(meta, meta).is_meta
    assert len(straight) == 1
    parameter = torch.nn.Parameter(FEATURES)
    assert ops.correlation4d(parameter, FEATURES).requires_grad
    assert len(straight) == 2


@pytest.mark.parametrize("call", ["correlation4d", "center_pivot_block4d"])
def test_compiled_autograd_takes_calls_that_were_not_compiled(call: str) -> None:
    """Its backward pass through a call that was recorded directly gives the same gradients."""
    tensors = inputs(call, requires_grad=True)
    leaves = [t for t in tensors if t is not None]
    expected = torch.autograd.grad(run(call, tensors).sum(), leaves)
    torch._dynamo.reset()
    loss = run(call, tensors).sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss.backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert leaf.grad is not None and torch.allclose(leaf.grad, gradient, atol=1e-6)


def test_a_gradient_that_is_not_ordinary() -> None:
    """Of a backward pass under vmap, and of a sum: they pass the dispatcher, with equal results."""
    query = FEATURES.clone().requires_grad_()
    result = ops.correlation4d(query, FEATURES)
    grads = torch.stack([torch.ones_like(result), torch.full_like(result, 2)])
    [batched] = torch.autograd.grad(result, query, grads, is_grads_batched=True, retain_graph=True)
    [one] = torch.autograd.grad(result, query, grads[0])
    assert torch.allclose(batched[0], one) and torch.allclose(batched[1], 2 * one)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inside_of_another_op(requires_grad: bool) -> None:
    """Below autograd nothing is recorded, whatever the inputs."""
    found = []
    library = torch.library.Library("fsdino_test", "DEF")
    try:
        library.define("outer(Tensor query) -> Tensor")

        def outer(query: Tensor) -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                found.append(ops.correlation4d(query, FEATURES).requires_grad)
            return query.clone()

        library.impl("outer", outer, "CompositeExplicitAutograd")
        query = FEATURES.clone().requires_grad_(requires_grad)
        torch.ops.fsdino_test.outer(query)
        torch.ops.fsdino_test.outer(query)
    finally:
        library._destroy()
    assert found == [False, False]


FLOATS = {"x": torch.zeros(1, 2, 2, 2, 2, 2), "k": torch.zeros(4, 2, 3, 3), "v": torch.zeros(4)}


def block(**changes: Any) -> Tensor:
    given: dict[str, Any] = {
        "x": FLOATS["x"], "weight_query": FLOATS["k"], "weight_support": FLOATS["k"],
        "bias": FLOATS["v"], "norm_weight": FLOATS["v"], "norm_bias": FLOATS["v"],
        "num_groups": 1, "norm_eps": 1e-5, "support_stride": 1, "reduce_support": True,
    }  # fmt: skip
    return ops.center_pivot_block4d(**(given | changes), backend="reference")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"support_stride": True}, TypeError, "support_stride must be an int, got bool"),
        ({"support_stride": 1.0}, TypeError, "support_stride must be an int, got float"),
        ({"support_stride": [1]}, TypeError, "support_stride must be an int, got list"),
        ({"support_stride": 0}, ValueError, "support_stride must be at least 1, got 0"),
        ({"num_groups": True}, TypeError, "num_groups must be an int, got bool"),
        ({"num_groups": 3}, ValueError, "num_groups must divide Co = 4, got 3"),
        ({"reduce_support": 1}, TypeError, "reduce_support must be a bool, got int"),
        ({"norm_eps": "1e-5"}, TypeError, "norm_eps must be a float, got str"),
        ({"norm_eps": float("nan")}, ValueError, "norm_eps must be greater than 0 and finite"),
        ({"bias": FLOATS["v"][1:]}, ValueError, r"bias must be \[Co\] = \[4\], got \[3\]"),
        ({"bias": FLOATS["v"].double()}, TypeError, "bias is torch.float64 but x is"),
        ({"bias": FLOATS["v"].to("meta")}, ValueError, "bias is on meta but x is on cpu"),
        ({"bias": FLOATS["v"].to_sparse()}, TypeError, "bias must be a dense tensor"),
        ({"norm_bias": None}, TypeError, "norm_bias must be a tensor, got NoneType"),
        ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
        ({"x": [0.0]}, TypeError, "x must be a tensor, got list"),
    ],
)
def test_mistakes_are_named_each_time(changes: Any, error: Any, message: str) -> None:
    """After calls of the same shapes, and of values that Python holds for equal."""
    for _ in range(2):
        block()
        with pytest.raises(error, match=message):
            block(**changes)


def test_equal_settings_of_other_types_are_others() -> None:
    """A length of 1 as an integer is a length of 1.0, and both are remembered."""
    expected = ops.correlation4d(FEATURES, FEATURES, eps=1.0, backend="reference")
    for _ in range(2):
        found = ops.correlation4d(FEATURES, FEATURES, eps=1, backend="reference")
        assert torch.equal(found, expected)
    assert len(calls._checked) == 2


def test_autocast_casts_in_every_call() -> None:
    """On, off, and on again; only calls outside of it are remembered."""
    for _ in range(2):
        assert ops.correlation4d(FEATURES, FEATURES, backend="reference").dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = ops.correlation4d(FEATURES, FEATURES, backend="reference")
        assert found.dtype == torch.bfloat16
        halves = FEATURES.bfloat16()
        assert torch.equal(found, ops.correlation4d(halves, halves, backend="reference"))
    assert {key[4] for key in calls._checked} == {torch.float32, torch.bfloat16}


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str | None]]:
    """The first choice of `auto`; it doubles correlations, where "reason" is None."""
    implementation = ModuleType("moody")
    implementation.correlation4d = lambda *a: 2 * reference.correlation4d(*a)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moody", implementation)
    monkeypatch.setattr(backends, "_registry", {"reference": backends._registry["reference"]})
    state: dict[str, str | None] = {"reason": None}
    backends.register(backends.Backend("moody", 100, "moody", lambda *_: state["reason"]))
    yield state


def test_the_backend_is_chosen_in_every_call(moody: dict[str, str | None]) -> None:
    """A backend that comes, goes, or is forced is taken at once, by calls that were made before."""
    expected = ops.correlation4d(FEATURES, FEATURES, backend="reference")

    def factor(**backend: str) -> float:
        found = ops.correlation4d(FEATURES, FEATURES, **backend)
        return float(found.sum() / expected.sum())

    for _ in range(2):
        assert factor() == 2
        with ops.use_backend("reference"):
            assert factor() == 1
            assert factor(backend="moody") == 2
        moody["reason"] = "it is gone"
        assert factor() == 1
        with pytest.raises(BackendError, match="'moody' cannot run correlation4d here: it is gone"):
            factor(backend="moody")
        moody["reason"] = None
    assert len(calls._checked) == 1


def test_few_signatures_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that sees ever new shapes does not grow."""
    monkeypatch.setattr(calls, "LARGEST", 4)
    for side in range(1, 12):
        query = torch.ones(1, 1, 2, side, 1)
        assert ops.correlation4d(query, query, backend="reference").shape == (
            1,
            1,
            side,
            1,
            side,
            1,
        )
        assert 1 <= len(calls._checked) <= 4


def test_threads_share_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once, while signatures are dropped all the time, each on a backend of its own."""
    monkeypatch.setattr(calls, "LARGEST", 2)
    start = threading.Barrier(4)

    def work(number: int) -> bool:
        start.wait()
        right = True
        for round_ in range(60):
            side = 1 + (number + round_) % 5
            query = torch.full((1, 1, 4, side, 1), 2.0)
            context = ops.use_backend("reference") if number % 2 else nullcontext()
            with context:
                found = ops.correlation4d(query, query)
            right &= found.shape == (1, 1, side, 1, side, 1) and bool((found > 0.99).all())
            with pytest.raises(ValueError, match="support_weight must be"):
                ops.correlation4d(query, query, torch.ones(1, side + 1, 1))
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_squeeze4d_is_checked_once_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of its blocks: another stride, shape or type is another one; a mistake is none."""
    checked: list[tuple[Any, ...]] = []
    check = squeeze._check
    monkeypatch.setattr(squeeze, "_check", lambda *args: (checked.append(args), check(*args))[1])
    case = Case("small", batch=1, layers=2, channels=3, query=(2, 3), support=(3, 2), out=4)

    def call(stride: Any, dtype: torch.dtype = torch.float32, out: int = 4) -> Tensor:
        chain = Chain("one", (replace(case, out=out),))
        *features, [block] = cases.chain_inputs(chain, dtype)
        return ops.squeeze4d(*features, [(*block[:5], stride)], backend="reference")

    first, again = call(2), call(2)
    assert torch.equal(first, again) and len(checked) == 1
    others = (call(1), call(2, torch.float64), call(2, out=8))
    assert len(checked) == 4 and all(other.numel() for other in others)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"blocks\[0\]: support_stride must be an int"):
            call(2.5)
    assert len(checked) == 6
