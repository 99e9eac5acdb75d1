"""center_pivot_conv4d and center_pivot_block4d: results, gradients, errors, compilation."""

from __future__ import annotations

import pytest
import torch

from fsdino import ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import DTYPES, TOLERANCE, Case
from fsdino.ops import backends, eager

CONVOLUTIONS = cases.distinct("center_pivot_conv4d")
BLOCKS = cases.distinct("center_pivot_block4d")


def skip_unless_usable(backend: str, dtype: torch.dtype, op: str = "center_pivot_conv4d") -> None:
    if backends.why_not(backend, op, torch.device("cpu"), dtype) is not None:
        pytest.skip(f"{backend} does not run {dtype} here")


def conv_inputs(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
    return cases.inputs("center_pivot_conv4d", case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: c.name)
@pytest.mark.parametrize("backend", backends.names())
def test_conv_equals_the_formulation(case: Case, dtype: torch.dtype, backend: str) -> None:
    """The convolution is the 4D kernel with its two planes, tap by tap, over the whole table."""
    skip_unless_usable(backend, dtype)
    inputs = conv_inputs(case, dtype)
    actual = ops.center_pivot_conv4d(*inputs.values(), support_stride=case.stride, backend=backend)
    assert actual.dtype == dtype
    expected = formulation.center_pivot_conv4d(*inputs.values(), support_stride=case.stride)
    exactness.assert_close(actual, expected, TOLERANCE[dtype].forward)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: c.name)
@pytest.mark.parametrize("backend", backends.names())
def test_conv_gradients_equal_the_formulation(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Gradients to x, both weights and the bias match autograd through the formulation."""
    skip_unless_usable(backend, dtype)
    inputs = {k: v for k, v in conv_inputs(case, dtype).items() if v is not None}
    inputs = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    twins = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    expected = formulation.center_pivot_conv4d(*twins.values(), support_stride=case.stride)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    actual = ops.center_pivot_conv4d(*inputs.values(), support_stride=case.stride, backend=backend)
    for name, a, e in zip(
        inputs,
        torch.autograd.grad(actual, list(inputs.values()), grad),
        torch.autograd.grad(expected, list(twins.values()), grad.double()),
        strict=True,
    ):
        assert a.dtype == dtype
        exactness.assert_close(a, e, TOLERANCE[dtype].gradients, f"gradient to {name}")


@pytest.mark.parametrize("reduce_support", [False, True], ids=["map", "reduced"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", BLOCKS, ids=lambda c: c.name)
@pytest.mark.parametrize("backend", backends.names())
def test_block_equals_the_formulation(
    case: Case, dtype: torch.dtype, backend: str, reduce_support: bool
) -> None:
    """Convolution, group normalisation, ReLU and mean: values and all six gradients.

    At most twice as far off as PyTorch's own formulation in that dtype, or within one op's
    tolerance. The gradient of elements within rounding of the ReLU's corner is not compared.
    """
    skip_unless_usable(backend, dtype, "center_pivot_block4d")
    parameters = {k: v for k, v in cases.parameters(case, dtype).items() if v is not None}
    inputs = {"x": cases.volume(case, dtype), **parameters}
    inputs = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    twins = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}

    def ordered(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor | None]:
        names = ("x", "weight_query", "weight_support", "bias", "norm_weight", "norm_bias")
        return [tensors.get(name) for name in names]

    settings = {
        "num_groups": case.groups,
        "support_stride": case.stride,
        "reduce_support": reduce_support,
    }
    expected = formulation.center_pivot_block4d(*ordered(twins), **settings)
    actual = ops.center_pivot_block4d(*ordered(inputs), **settings, backend=backend)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    if not reduce_support:
        grad = grad * (expected.detach() > 1e-4)
    assert actual.shape == expected.shape
    if not case.batch:
        assert all(
            g.shape == t.shape
            for g, t in zip(
                torch.autograd.grad(actual, list(inputs.values()), grad),
                inputs.values(),
                strict=True,
            )
        )
        return
    by_eager = eager.center_pivot_block4d(*ordered(inputs), **settings)
    exactness.assert_no_worse(actual, by_eager, expected, TOLERANCE[dtype].forward)
    leaves = list(inputs.values())
    for name, a, b, e in zip(
        inputs,
        torch.autograd.grad(actual, leaves, grad),
        torch.autograd.grad(by_eager, leaves, grad),
        torch.autograd.grad(expected, list(twins.values()), grad.double()),
        strict=True,
    ):
        if name == "bias" and case.groups == case.out:
            e = torch.zeros_like(e)  # normalised away; float64 leaves rounding
        exactness.assert_no_worse(a, b, e, TOLERANCE[dtype].gradients, f"gradient to {name}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in BLOCKS if c.batch], ids=lambda c: c.name)
@pytest.mark.parametrize("backend", backends.names())
def test_block_in_half_precision_errs_less_than_twice_the_eager_code(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    """Half precision may cost what it costs PyTorch's own formulation, at most twice."""
    skip_unless_usable(backend, dtype, "center_pivot_block4d")
    x, parameters = cases.volume(case, dtype), cases.parameters(case, dtype)
    settings = {"num_groups": case.groups, "support_stride": case.stride}
    expected = formulation.center_pivot_block4d(x, *parameters.values(), **settings)
    ours = ops.center_pivot_block4d(x, *parameters.values(), backend=backend, **settings)
    by_eager = eager.center_pivot_block4d(x, *parameters.values(), **settings)
    exactness.assert_no_worse(ours, by_eager, expected, torch.finfo(dtype).eps)


@pytest.mark.parametrize("reduce_support", [False, True], ids=["map", "reduced"])
@pytest.mark.parametrize("backend", backends.names())
def test_block_of_many_channels_far_from_zero(backend: str, reduce_support: bool) -> None:
    """Moments survive a bias of a hundred deviations, and no count of channels is too large."""
    skip_unless_usable(backend, torch.float32, "center_pivot_block4d")
    case = Case("wide", batch=2, layers=2, query=(3, 2), support=(3, 4), out=514, groups=2)
    parameters = cases.parameters(case, torch.float32)
    parameters["bias"] = parameters["bias"] + 100 * cases.volume(case, torch.float32).std()
    inputs = [cases.volume(case, torch.float32), *parameters.values()]
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    twins = [tensor.detach().double().requires_grad_() for tensor in inputs]
    settings = {"num_groups": 2, "support_stride": 2, "reduce_support": reduce_support}
    expected = formulation.center_pivot_block4d(*twins, **settings)
    actual = ops.center_pivot_block4d(*leaves, backend=backend, **settings)
    by_eager = eager.center_pivot_block4d(*leaves, **settings)
    exactness.assert_no_worse(actual, by_eager, expected, TOLERANCE[torch.float32].forward)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    if not reduce_support:
        grad = grad * (expected.detach() > 1e-4)
    exactness.assert_no_worse(
        torch.autograd.grad(actual, leaves[0], grad)[0],
        torch.autograd.grad(by_eager, leaves[0], grad)[0],
        torch.autograd.grad(expected, twins[0], grad.double())[0],
        TOLERANCE[torch.float32].gradients,
    )


@pytest.mark.parametrize("backend", backends.names())
def test_gradcheck(backend: str) -> None:
    """Analytic gradients match finite differences in float64."""
    skip_unless_usable(backend, torch.float64)
    case = Case("small", batch=2, layers=2, query=(2, 3), support=(3, 2), out=4, groups=2)
    x = cases.volume(case, torch.float64).requires_grad_()
    parameters = [p.requires_grad_() for p in cases.parameters(case, torch.float64).values()]
    for reduce_support in (False, True):
        assert torch.autograd.gradcheck(
            lambda *a, r=reduce_support: ops.center_pivot_block4d(
                *a, num_groups=2, support_stride=2, reduce_support=r, backend=backend
            ),
            (x, *parameters),
        )


@pytest.mark.parametrize("backend", backends.names())
def test_opcheck(backend: str) -> None:
    """Schema, fake kernels, autograd registration and AOT dispatch agree with the kernels."""
    case = Case("opcheck")
    x = cases.volume(case, torch.float32).requires_grad_()
    weights = [p.requires_grad_() for p in cases.parameters(case, torch.float32).values()]
    fixed = [p.detach() for p in weights]
    torch.library.opcheck(torch.ops.fsdino.center_pivot_conv4d, (x, *weights[:3], 2, backend))
    for save, reduce_support in ((True, False), (True, True), (False, True)):
        inputs = (x, *weights) if save else (x.detach(), *fixed)
        settings = (4, 1e-5, 2, reduce_support, save, backend)
        torch.library.opcheck(torch.ops.fsdino.center_pivot_block4d, (*inputs, *settings))
    grad = torch.randn(2, 8, 5, 4, 3, 3)
    raw, rstd = torch.randn_like(grad), torch.rand(2, 4)
    mean = torch.randn(backends.mean_shape(backend, 2, 4))
    for needs in ([True] * 6, [False, True, False, True, False, True]):
        torch.library.opcheck(
            torch.ops.fsdino.center_pivot_conv4d_backward,
            (grad, x.detach(), *fixed[:2], 2, needs[:4], backend),
        )
        saved = (x.detach(), *fixed[:2], *fixed[3:], raw, mean, rstd)
        torch.library.opcheck(
            torch.ops.fsdino.center_pivot_block4d_backward,
            (grad, *saved, 2, False, needs, backend),
        )


@pytest.mark.parametrize("backend", backends.names())
def test_compiles_as_one_graph(backend: str) -> None:
    """The chain compiles with fullgraph=True, gradients included, and gives the same numbers."""
    query, support, weight = cases.features(Case("compile"), torch.float32)
    parameters = [
        p.requires_grad_() for p in cases.parameters(Case("compile"), torch.float32).values()
    ]

    def chain(*parameters: torch.Tensor) -> torch.Tensor:
        corr = ops.correlation4d(query, support, weight, backend=backend)
        return ops.center_pivot_block4d(
            corr, *parameters, support_stride=2, reduce_support=True, backend=backend
        )

    eager = chain(*parameters)
    compiled = torch.compile(chain, fullgraph=True)(*parameters)
    exactness.assert_close(compiled, eager, 1e-6)
    for a, e in zip(
        torch.autograd.grad(compiled.sum(), parameters),
        torch.autograd.grad(eager.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def test_block_saves_nothing_without_gradients() -> None:
    """Inference keeps no intermediate result for a backward pass that never comes."""
    case = Case("inference")
    x, parameters = cases.volume(case, torch.float32), cases.parameters(case, torch.float32)
    settings = (4, 1e-5, 2, False)
    _, raw, mean, rstd = torch.ops.fsdino.center_pivot_block4d(
        x, *parameters.values(), *settings, False, "reference"
    )
    assert raw.numel() == mean.numel() == rstd.numel() == 0
    parameters["bias"].requires_grad_()
    y, *_ = torch.ops.fsdino.center_pivot_block4d(
        x, *parameters.values(), *settings, False, "reference"
    )
    with pytest.raises(RuntimeError, match="save=False"):
        y.sum().backward()


def test_autocast() -> None:
    """Inside autocast volume and weights are cast, as for a 2D convolution."""
    inputs = conv_inputs(Case("autocast"), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = ops.center_pivot_conv4d(*inputs.values(), support_stride=2)
    assert actual.dtype == torch.bfloat16
    rounded = [t.bfloat16() for t in inputs.values()]
    expected = formulation.center_pivot_conv4d(*rounded, support_stride=2)
    exactness.assert_close(actual, expected, TOLERANCE[torch.bfloat16].forward)


X = torch.zeros(1, 3, 4, 4, 4, 4)
W = torch.zeros(8, 3, 3, 3)
BAD = {
    "rank": ((X[0], W, W), {}, ValueError, r"x must be \[B, Ci, Hq, Wq, Hs, Ws\]"),
    "empty": ((X[:, :, :0], W, W), {}, ValueError, "only the batch of x may be empty"),
    "even kernel": ((X, W[..., :2, :2], W), {}, ValueError, "weight_query must be .* odd k"),
    "oblong kernel": ((X, W, W[..., :1]), {}, ValueError, "weight_support must be .* odd k"),
    "in channels": ((X, W[:, :2], W), {}, ValueError, "weight_query must have Ci = 3"),
    "out channels": ((X, W, W[:4]), {}, ValueError, "weight_support must have weight_query's Co"),
    "bias": ((X, W, W, torch.zeros(3)), {}, ValueError, r"bias must be \[Co\] = \[8\]"),
    "stride": ((X, W, W), {"support_stride": 0}, ValueError, "support_stride must be at least 1"),
    "no integer": ((X, W, W), {"support_stride": 1.5}, TypeError, "support_stride must be an int"),
    "dtype": ((X, W.half(), W), {}, TypeError, "weight_query is torch.float16 but x is"),
    "device": ((X, W, W.to("meta")), {}, ValueError, "weight_support is on meta but x is on cpu"),
}


@pytest.mark.parametrize("arguments, settings, error, message", BAD.values(), ids=list(BAD))
def test_mistakes_are_named(
    arguments: tuple, settings: dict, error: type[Exception], message: str
) -> None:
    """A wrong argument is refused before any kernel starts, by its name."""
    with pytest.raises(error, match=message):
        ops.center_pivot_conv4d(*arguments, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_groups": 3}, "num_groups must divide Co = 8, got 3"),
        ({"num_groups": 0}, "num_groups must divide Co = 8, got 0"),
        ({"norm_eps": 0.0}, "norm_eps must be greater than 0"),
    ],
)
def test_mistakes_in_the_block_are_named(settings: dict, message: str) -> None:
    """The block's own arguments are checked, too."""
    vector = torch.zeros(8)
    with pytest.raises(ValueError, match=message):
        ops.center_pivot_block4d(X, W, W, vector, vector, vector, **settings)
    with pytest.raises(ValueError, match=r"norm_weight must be \[Co\] = \[8\]"):
        ops.center_pivot_block4d(X, W, W, vector, vector[:4], vector)
