"""squeeze4d: correlation and blocks as one op, and the function that a backend may have for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from counting import bytes_beyond_results
from fsdino import contract, ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import CHAINS, DTYPES, Case, Chain
from fsdino.errors import BackendError
from fsdino.models.hypercorrelation import CorrelationPrior
from fsdino.ops import backends, eager, native, reference
from tiny_models import randomise

CPU = torch.device("cpu")
SMALL = Chain(
    "small",
    (
        Case("first", batch=1, layers=2, channels=3, query=(2, 3), support=(5, 4), out=4, groups=2),
        Case("last", layers=4, out=2, bias=False, stride=1),
    ),
)
STANDARD = next(chain for chain in CHAINS if chain.name == "the standard blocks")

each_chain = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
# By another name, since tests of a `backend` are left out where it is not registered.
each_kind = pytest.mark.parametrize("name", ["reference", "fusing"])
each_backend = pytest.mark.parametrize("backend", backends.names())


def skip_unless_usable(backend: str, dtype: torch.dtype) -> None:
    if backends.why_not(backend, "squeeze4d", CPU, dtype) is not None:
        pytest.skip(f"{backend} does not run {dtype} here")


def flat(chain: Chain, dtype: torch.dtype) -> list[Tensor | None]:
    """query, support, support_weight, then five tensors of each block."""
    *features, blocks = cases.chain_inputs(chain, dtype)
    return [*features, *(tensor for block in blocks for tensor in block[:5])]


def settings(chain: Chain) -> dict[str, int]:
    return {"num_groups": chain.cases[0].groups}


def on(chain: Chain, module: Any = ops, **more: Any) -> Callable[..., Tensor]:
    """`squeeze4d` of a module as a function of what `flat` lists."""

    def call(*tensors: Tensor | None) -> Tensor:
        blocks = [
            (*tensors[3 + 5 * i : 8 + 5 * i], case.stride) for i, case in enumerate(chain.cases)
        ]
        result: Tensor = module.squeeze4d(*tensors[:3], blocks, **settings(chain), **more)
        return result

    return call


def as_listed(chain: Chain, tensors: list[Tensor | None], backend: str) -> tuple[Any, ...]:
    """The arguments of `torch.ops.fsdino.squeeze4d`."""
    columns = [tensors[3 + i :: 5] for i in range(5)]
    strides = [case.stride for case in chain.cases]
    return *tensors[:3], *columns, strides, chain.cases[0].groups, 1e-5, 1e-5, backend


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_chain
@each_backend
def test_errs_less_than_twice_the_eager_code(
    chain: Chain, dtype: torch.dtype, backend: str
) -> None:
    """The values of the chain in float64, by a backend's own function where it has one."""
    skip_unless_usable(backend, dtype)
    inputs = flat(chain, dtype)
    actual = on(chain, backend=backend)(*inputs)
    assert (actual.dtype, actual.is_contiguous()) == (dtype, True)
    expected = on(chain, formulation)(*inputs)
    # F.group_norm refuses empty batches
    by_eager = on(chain, eager)(*inputs) if chain.cases[0].batch else actual
    exactness.assert_no_worse(actual, by_eager, expected, cases.TOLERANCE[dtype].forward)


@each_chain
@each_backend
def test_gradients_equal_the_formulation(chain: Chain, backend: str) -> None:
    """To the features, the weight and every parameter, in float64."""
    skip_unless_usable(backend, torch.float64)
    leaves = [None if t is None else t.detach().requires_grad_() for t in flat(chain, torch.double)]
    given = [t for t in leaves if t is not None]
    expected, actual = on(chain, formulation)(*leaves), on(chain, backend=backend)(*leaves)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).double()
    for a, e in zip(
        torch.autograd.grad(actual, given, grad),
        torch.autograd.grad(expected, given, grad),
        strict=True,
    ):
        assert (a - e).norm() <= 1e-9 * (1 + e.norm())  # some are normalised away


@each_backend
def test_gradcheck(backend: str) -> None:
    """Analytic gradients match finite differences in float64, also of the gradients."""
    skip_unless_usable(backend, torch.float64)
    inputs = [t if t is None else t.requires_grad_() for t in flat(SMALL, torch.float64)]
    assert torch.autograd.gradcheck(on(SMALL, backend=backend), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(on(SMALL, backend=backend), inputs, fast_mode=True)


@each_backend
def test_the_composition_and_the_two_ops_give_the_same_bits(backend: str) -> None:
    """So that models and recorded numbers do not depend on which of them is called."""
    torch.set_deterministic_debug_mode("default")
    *features, blocks = cases.chain_inputs(STANDARD, torch.float32)
    blocks[0][0].requires_grad_()  # the composition, whatever the backend has
    x = ops.correlation4d(*features, backend=backend)
    for index, (*tensors, stride) in enumerate(blocks):
        x = ops.center_pivot_block4d(
            x, *tensors, support_stride=stride, reduce_support=index == 2, backend=backend
        )
    assert torch.equal(ops.squeeze4d(*features, blocks, backend=backend), x)


def test_a_volume_is_held_no_longer_than_it_is_needed() -> None:
    """The correlation, and the first block's output, are gone when the last block runs."""
    case = Case("wide", batch=1, layers=32, query=(8, 8), support=(8, 8), out=4)
    chain = Chain("wide", (case, Case("last", layers=4, out=256, stride=1)))
    inputs = [t if t is None else t.to("meta") for t in flat(chain, torch.float32)]
    correlation, last = 4 * 32 * 8**4, 4 * 256 * 8**2 * 4**2
    assert last == 2 * correlation
    x = torch.empty(1, 4, 8, 8, 4, 4, device="meta")
    alone = bytes_beyond_results(
        lambda: ops.center_pivot_block4d(x, *inputs[8:], reduce_support=True)
    )
    assert bytes_beyond_results(lambda: on(chain)(*inputs)) < alone + correlation


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A backend `fusing` with a function of its own; what that was called with."""
    calls: list[tuple[Any, ...]] = []

    def squeeze4d(*args: Any) -> Tensor:
        calls.append(args)
        return reference.squeeze4d(*args)

    module = ModuleType("fusing")
    for name in contract.FUNCTIONS:
        setattr(module, name, getattr(reference, name))
    module.squeeze4d = squeeze4d  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fusing", module)
    backend = backends.Backend("fusing", 100, "fusing", lambda op, device, dtype: None)
    monkeypatch.setitem(backends._registry, "fusing", backend)
    return calls


@pytest.mark.parametrize("how", ["auto", "fusing", "use_backend"])
@each_chain
def test_a_function_of_the_backend_is_used(
    chain: Chain, how: str, fusing: list[tuple[Any, ...]]
) -> None:
    """Where nothing needs a gradient, once, and with what `reference.squeeze4d` takes."""
    inputs = flat(chain, torch.float32)
    with ops.use_backend("fusing" if how == "use_backend" else "auto"):
        actual = on(chain, backend="auto" if how == "use_backend" else how)(*inputs)
    [args] = fusing
    first = chain.cases[0]
    assert args[0] is inputs[0] and args[3] == inputs[3::5] and args[5] == inputs[5::5]
    assert args[9:] == (first.groups, 1e-5, 1e-5)
    side, kept = max(first.support), args[8]
    assert kept[0] == min(first.stride, side) and len(kept) == len(chain.cases)
    assert torch.equal(actual, on(chain, backend="reference")(*inputs))


def test_it_is_used_without_gradients_only(fusing: list[tuple[Any, ...]]) -> None:
    """Trained blocks on frozen features, a trained encoder: the composition. Under no_grad: not."""
    inputs = flat(SMALL, torch.float32)
    for trained in ([3], [0], [9], range(3, 8)):
        leaves = [t if t is None else t.clone() for t in inputs]
        for index in trained:
            leaves[index].requires_grad_()  # type: ignore[union-attr]
        y = on(SMALL)(*leaves)
        assert y.requires_grad and not fusing
        y.square().sum().backward()
        assert all(leaves[index].grad.abs().sum() > 0 for index in trained)  # type: ignore[union-attr]
        with torch.no_grad():
            assert not on(SMALL)(*leaves).requires_grad
        with torch.inference_mode():
            on(SMALL)(*leaves)
        assert len(fusing) == 2
        fusing.clear()


def test_other_calls_of_a_fusing_backend(
    fusing: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its predicate refuses is composed, or refused if the parts cannot run either."""
    inputs = flat(SMALL, torch.float32)

    def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        return f"it has no {op}" if op in lacks else None

    backend = backends.Backend("fusing", 100, "fusing", why_not)
    monkeypatch.setitem(backends._registry, "fusing", backend)
    lacks = {"squeeze4d"}
    expected = on(SMALL, backend="reference")(*inputs)
    assert torch.equal(on(SMALL, backend="fusing")(*inputs), expected) and not fusing
    lacks = {"squeeze4d", "center_pivot_block4d"}
    with pytest.raises(
        BackendError, match="cannot run squeeze4d here: it has no center_pivot_block4d"
    ):
        on(SMALL, backend="fusing")(*inputs)
    torch.testing.assert_close(on(SMALL)(*inputs), expected)
    assert not fusing


@each_kind
def test_opcheck(name: str, fusing: object) -> None:
    """Schema, fake kernel, autograd registration and AOT dispatch of the fused op."""
    inputs = flat(STANDARD, torch.float32)
    torch.library.opcheck(torch.ops.fsdino.squeeze4d, as_listed(STANDARD, inputs, name))
    trained = [t if t is None or i < 3 else t.requires_grad_() for i, t in enumerate(inputs)]
    torch.library.opcheck(torch.ops.fsdino.squeeze4d, as_listed(STANDARD, trained, name))


def dual(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        y = function(torch.autograd.forward_ad.make_dual(x, x.sin()))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    assert tangent is not None
    return tangent


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.sin(),))[1],
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x.sin()])),
    "vmap of nothing": lambda f, x: torch.func.vmap(f)(x.new_zeros(0, *x.shape)),
    "vmap of jvp": lambda f, x: torch.func.vmap(lambda t: torch.func.jvp(f, (x,), (t,))[1])(
        torch.stack([x, x.sin()])
    ),
    "vmap of grad": lambda f, x: torch.func.vmap(
        torch.func.grad(lambda x: f(x).square().sum())
    )(torch.stack([x, x.sin()])),
    "grad of vmap": lambda f, x: torch.func.grad(
        lambda x: torch.func.vmap(f)(torch.stack([x, x.sin()])).square().sum()
    )(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).square().sum())(x),
    "dual": dual,
}  # fmt: skip


@pytest.mark.parametrize("index", [0, 1, 3, 8], ids=["query", "support", "first", "last"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@each_kind
def test_transforms(name: str, transform: str, index: int, fusing: object) -> None:
    """Of the features, and of a weight in the lists: as of the formulation in float64."""
    inputs = flat(SMALL, torch.float64)

    def of(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: function(*inputs[:index], x, *inputs[index + 1 :])

    x = inputs[index]
    assert x is not None
    actual = TRANSFORMS[transform](of(on(SMALL, backend=name)), x)
    exactness.assert_close(actual, TRANSFORMS[transform](of(on(SMALL, formulation)), x), 1e-9)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", ["auto", "reference", "fusing"])
def test_compiled(name: str, trained: bool, fusing: list[tuple[Any, ...]]) -> None:
    """In one graph; the backend's own function where nothing needs a gradient."""
    torch.compiler.reset()
    inputs = flat(SMALL, torch.float32)
    inputs[3].requires_grad_(trained)  # type: ignore[union-attr]
    run = on(SMALL, backend=name)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    actual = compiled(*inputs)
    assert bool(fusing) == (not trained and name != "reference")
    expected = run(*inputs)
    torch.testing.assert_close(actual, expected)
    if trained:
        found, wanted = (
            torch.autograd.grad(y.square().sum(), inputs[3]) for y in (actual, expected)
        )
        torch.testing.assert_close(found, wanted)


@each_kind
def test_an_exported_graph_keeps_its_gradients(name: str, fusing: object) -> None:
    """Exported without gradients, it is trained all the same."""

    class Squeeze(torch.nn.Module):
        def forward(self, *tensors: Tensor | None) -> Tensor:
            return on(SMALL, backend=name)(*tensors)

    inputs = flat(SMALL, torch.float32)
    with torch.no_grad():
        program = torch.export.export(Squeeze(), tuple(inputs)).module()
    torch.testing.assert_close(program(*inputs), on(SMALL)(*inputs))
    leaves = [None if t is None else t.clone().requires_grad_() for t in inputs]
    given = [t for t in leaves if t is not None]
    found, expected = (
        torch.autograd.grad(run(*leaves).square().sum(), given) for run in (program, on(SMALL))
    )
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)


@each_kind
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_inside_autocast(name: str, trained: bool, fusing: object) -> None:
    """The same as on inputs that were rounded before, and gradients in float32."""
    inputs = flat(SMALL, torch.float32)
    inputs[3].requires_grad_(trained)  # type: ignore[union-attr]
    rounded = [None if t is None else t.bfloat16() for t in inputs]
    expected = on(SMALL, backend="reference")(*rounded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = on(SMALL, backend=name)(*inputs)
        # A graph that was exported calls it like this, with other dtypes than autocast's.
        listed = torch.ops.fsdino.squeeze4d(*as_listed(SMALL, inputs, name))
    assert actual.dtype == torch.bfloat16 and torch.equal(actual, expected)
    assert listed.dtype == torch.float32
    torch.testing.assert_close(listed, on(SMALL, backend=name)(*inputs))
    if trained:
        [grad] = torch.autograd.grad(actual.float().sum(), inputs[3])
        assert grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["auto", *backends.names()])
def test_meta(backend: str) -> None:
    """Shape and dtype without memory, on every backend."""
    inputs = [None if t is None else t.to("meta") for t in flat(STANDARD, torch.bfloat16)]
    y = on(STANDARD, backend=backend)(*inputs)
    assert (y.device.type, y.shape, y.dtype) == ("meta", (1, 128, 7, 7), torch.bfloat16)


def test_the_extension_is_called_once_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in csrc/ops.inc is enough: with what the reference takes, its lists as lists."""
    calls: list[tuple[Any, ...]] = []

    def kernel(name: str) -> Callable[..., Tensor]:
        return lambda *args: calls.append((name, *args)) or reference.squeeze4d(*args)  # type: ignore[func-returns-value]

    monkeypatch.setattr(native, "squeeze4d", None, raising=False)  # forgotten after the test
    del native.squeeze4d  # type: ignore[attr-defined]
    monkeypatch.setattr(native, "_kernel", kernel)
    monkeypatch.setattr(native, "_missing", lambda: None)
    monkeypatch.setattr(native, "FUNCTIONS", native.FUNCTIONS | {"squeeze4d"})
    inputs = flat(SMALL, torch.float32)
    actual = on(SMALL, backend="cpp")(*inputs)
    [(name, *args)] = calls
    assert name == "squeeze4d"
    assert [type(a) for a in args[3:]] == [list] * 6 + [int, float, float]
    assert args[5] == [inputs[5], None] and args[8] == [2, 1]
    assert torch.equal(actual, on(SMALL, backend="reference")(*inputs))


def test_without_it_the_extension_has_no_such_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that is optional is not promised."""
    monkeypatch.delitem(vars(native), "squeeze4d", raising=False)
    monkeypatch.setattr(native, "FUNCTIONS", native.FUNCTIONS - {"squeeze4d"})
    assert not hasattr(native, "squeeze4d")
    assert native.why_not("squeeze4d", CPU, torch.float32) == "it has no squeeze4d"


def test_the_prior_calls_it(fusing: list[tuple[Any, ...]]) -> None:
    """With its own parameters; where layers are padded, its modules run one after the other."""
    generator = torch.Generator().manual_seed(1)
    prior = CorrelationPrior(3, (4, 8))
    randomise(prior, seed=0)
    query = torch.randn(2, 3, 6, 3, 4, generator=generator)
    support = torch.randn(2, 3, 6, 5, 3, generator=generator)
    mask = torch.rand(2, 5, 3, generator=generator)
    with torch.no_grad():
        found = prior(query, support, mask)
        assert len(fusing) == 1
        expected = prior.blocks(ops.correlation4d(query, support, 2 * mask - 1))
        assert torch.equal(found, expected)
        query[:, 2, 4:] = support[:, 2, 4:] = 0
        prior.widths = (6, 6, 4)
        padded = prior(query, support, mask)
        assert len(fusing) == 1
        expected = prior.blocks(ops.correlation4d(query, support, 2 * mask - 1))
        torch.testing.assert_close(padded, expected)


def blocks_with(**changes: Any) -> list[Any]:
    """Two blocks of SMALL, with changes in the second."""
    *_, blocks = cases.chain_inputs(SMALL, torch.float32)
    names = ("weight_query", "weight_support", "bias", "norm_weight", "norm_bias", "support_stride")
    second = dict(zip(names, blocks[1], strict=True)) | changes
    return [blocks[0], tuple(second.values())]


FIELDS = r"\(weight_query, weight_support, bias, norm_weight, norm_bias, support_stride\)"
MISTAKES: dict[str, tuple[type[Exception], Callable[[], Any], str]] = {
    "none": (TypeError, lambda: None, rf"blocks must be a list or tuple of {FIELDS}, got NoneType"),
    "tensor": (TypeError, lambda: torch.zeros(2), "blocks must be a list or tuple of .* Tensor"),
    "empty": (ValueError, list, rf"blocks must hold at least one {FIELDS}, got none"),
    "five": (
        ValueError,
        lambda: [blocks_with()[0], blocks_with()[1][:5]],
        rf"blocks\[1\] must be {FIELDS}, got 5 values",
    ),
    "one block": (TypeError, lambda: blocks_with()[0], r"blocks\[0\] must be \(.*, got Tensor"),
    "a list as weight": (
        TypeError,
        lambda: blocks_with(weight_query=[1.0]),
        r"blocks\[1\]: weight_query must be a tensor, got list",
    ),
    "no norm": (
        TypeError,
        lambda: blocks_with(norm_weight=None),
        r"blocks\[1\]: norm_weight must be a tensor, got NoneType",
    ),
    "dtype": (
        TypeError,
        lambda: blocks_with(norm_bias=torch.zeros(2).double()),
        r"blocks\[1\]: norm_bias is torch.float64 but query is torch.float32: convert one",
    ),
    "device": (
        ValueError,
        lambda: blocks_with(bias=torch.zeros(2, device="meta")),
        r"blocks\[1\]: bias is on meta but query is on cpu: move one",
    ),
    "channels": (
        ValueError,
        lambda: blocks_with(weight_query=torch.zeros(2, 3, 3, 3)),
        r"blocks\[1\]: weight_query must have Ci = 4 input channels, got 3",
    ),
    "even": (
        ValueError,
        lambda: blocks_with(weight_support=torch.zeros(2, 4, 2, 2)),
        r"blocks\[1\]: weight_support must be \[Co, Ci, k, k\] with odd k",
    ),
    "bias": (
        ValueError,
        lambda: blocks_with(bias=torch.zeros(3)),
        r"blocks\[1\]: bias must be \[Co\] = \[2\], got \[3\]",
    ),
    "norm": (
        ValueError,
        lambda: blocks_with(norm_bias=torch.zeros(4)),
        r"blocks\[1\]: norm_bias must be \[Co\] = \[2\], got \[4\]",
    ),
    "groups": (
        ValueError,
        lambda: [
            blocks_with()[0],
            (*(torch.zeros(3, 4, 3, 3) for _ in "qs"), None, *(torch.zeros(3) for _ in "wb"), 1),
        ],
        r"blocks\[1\]: num_groups must divide Co = 3, got 2",
    ),
    "stride": (
        ValueError,
        lambda: blocks_with(support_stride=0),
        r"blocks\[1\]: support_stride must be at least 1, got 0",
    ),
    "half a stride": (
        TypeError,
        lambda: blocks_with(support_stride=1.5),
        r"blocks\[1\]: support_stride must be an int, got float",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_blocks_are_named(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything runs, with the block's place and the argument."""
    monkeypatch.setattr(backends, "run", lambda *_: pytest.fail("something ran"))
    error, blocks, words = MISTAKES[mistake]
    features = cases.chain_inputs(SMALL, torch.float32)[:3]
    with pytest.raises(error, match=f"^squeeze4d: {words}"):
        ops.squeeze4d(*features, blocks(), num_groups=2)


def test_other_mistakes_are_named() -> None:
    """Those of the features and of the settings, as of the other ops."""
    query, support, weight, blocks = cases.chain_inputs(SMALL, torch.float32)
    with pytest.raises(ValueError, match=r"^squeeze4d: support_weight must be"):
        ops.squeeze4d(query, support, weight[:, 1:], blocks)
    with pytest.raises(TypeError, match=r"^squeeze4d: support is torch.float64 but query"):
        ops.squeeze4d(query, support.double(), weight, blocks)
    with pytest.raises(ValueError, match=r"blocks\[0\]: weight_query must have Ci = 1 input"):
        ops.squeeze4d(query[:, :1], support[:, :1], weight, blocks)
    for name in ("eps", "norm_eps"):
        with pytest.raises(ValueError, match=f"^squeeze4d: {name} must be greater than 0"):
            ops.squeeze4d(query, support, weight, blocks, num_groups=2, **{name: 0.0})
    with pytest.raises(TypeError, match=r"^squeeze4d: blocks\[0\]: num_groups must be an int"):
        ops.squeeze4d(query, support, weight, blocks, num_groups=2.0)
    with pytest.raises(TypeError, match=r"^squeeze4d: backend must be a string"):
        ops.squeeze4d(query, support, weight, blocks, num_groups=2, backend=None)
    huge = torch.zeros(1, 2, 1, 1, 1).expand(1, 2, 1, 2**16, 2**16)
    with pytest.raises(ValueError, match=r"^squeeze4d: query and support give a result of"):
        ops.squeeze4d(huge, huge, None, blocks, num_groups=2)
