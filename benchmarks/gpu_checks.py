"""Right or wrong on a device: the shared table of cases, and how the ops behave in PyTorch.

Each op is held against a formulation in float64 that shares no code with it
(`fsdino/bench/formulation.py`, on the CPU), outputs and every gradient. An error is a share of what
the contract allows: above 1 is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsdino import contract, ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import CALLS, CASES, CHAINS, Case
from fsdino.ops import backends, eager

Tensors = list[Tensor | None]
OPS = tuple(CALLS)
BLOCK = "center_pivot_block4d"
REDUCED = "center_pivot_block4d, reduced"
CHAINED = (BLOCK, "correlation_center_pivot4d")  # of several ops: their errors add up
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Problem:
    """One op on one case.

    Attributes:
        inputs: by name, in the op's order; None where the case has none.
        ours: the op, given these and a backend.
        eager: PyTorch's formulation of it.
        exact: the independent one, in float64.
        chained: whether it may err twice as much as the eager one.
    """

    inputs: dict[str, Tensor | None]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    chained: bool


def problem(call: str, case: Case, dtype: torch.dtype) -> Problem:
    """A call of `OPS` on a case, its inputs on the CPU."""
    op, _ = CALLS[call]
    settings = cases.settings(call, case)
    ours, by_eager, exact = (
        functools.partial(getattr(module, op), **settings) for module in (ops, eager, formulation)
    )
    return Problem(cases.inputs(call, case, dtype), ours, by_eager, exact, op in CHAINED)


def has(backend: str, op: str, device: str) -> bool:
    """Whether a backend has an op and its parts; whether they can run here is another matter.

    Nothing is asked of the device: no backend for GPUs runs float64.
    """
    if backend == "auto":
        return True
    op, _ = CALLS.get(op, (op, {}))
    parts = contract.PARTS.get(op, (op,))
    reasons = [
        backends.why_not(backend, part, torch.device(device), torch.float64) for part in parts
    ]
    return not any(reason is not None and reason.startswith("it has no ") for reason in reasons)


def instead(backend: str, op: str, device: str) -> str:
    """The backend, or "auto" for an op that it lacks, where a check needs others beside its own."""
    return backend if has(backend, op, device) else "auto"


def check_case(op: str, name: str, dtype_name: str, device: str, backend: str) -> dict[str, Any]:
    """One op on one case of the table: its largest error, and whether the bits repeat.

    What PyTorch hands out uninitialised holds NaN while the checked results are computed.
    """
    [case] = [case for case in CASES if case.name == name]
    dtype = getattr(torch, dtype_name)
    given = problem(op, case, dtype)
    ours = functools.partial(given.ours, backend=backend)
    exact, cotangent, doubt = _exact(given, op, case, dtype)
    on_device = _move(list(given.inputs.values()), device)
    with no_tf32():
        torch.set_deterministic_debug_mode("warn")
        try:
            results = _results(ours, on_device, cotangent)
        finally:
            torch.set_deterministic_debug_mode("default")
        eager = _results(given.eager, on_device, cotangent) if case.batch else results
        again = [_results(ours, on_device, cotangent) for _ in range(2)]
    names = ["output", *(f"gradient to {k}" for k, t in given.inputs.items() if t is not None)]
    wrong = [str(y.dtype) for y in results if y.dtype != dtype]
    on_cpu = [[y.cpu() for y in tensors] for tensors in (results, eager)]
    shares = _shares(*on_cpu, exact, doubt, dtype, chained=given.chained)
    worst = max(range(len(shares)), key=shares.__getitem__)
    same_bits = all(_same(a, b) for a, b in zip(*again, strict=True))
    return {
        "passed": shares[worst] <= 1 and same_bits and not wrong,
        "error": shares[worst],
        "worst": names[worst],
        "same_bits": same_bits,
        "wrong_dtypes": wrong,
    }


def check_chain(name: str, dtype_name: str, device: str, backend: str) -> dict[str, Any]:
    """`squeeze4d` without gradients on one of `cases.CHAINS`, as `check_case` checks the others."""
    [chain] = [chain for chain in CHAINS if chain.name == name]
    dtype, groups = getattr(torch, dtype_name), chain.cases[0].groups
    *features, blocks = cases.chain_inputs(chain, dtype)
    exact = formulation.squeeze4d(*features, blocks, num_groups=groups)
    on_device = [*_move(features, device), [(*_move(b[:-1], device), b[-1]) for b in blocks]]
    ours = functools.partial(ops.squeeze4d, *on_device, num_groups=groups, backend=backend)
    with no_tf32(), torch.no_grad():
        torch.set_deterministic_debug_mode("warn")
        try:
            y = ours()
        finally:
            torch.set_deterministic_debug_mode("default")
        by_eager = eager.squeeze4d(*on_device, num_groups=groups) if len(exact) else y
        first, second = ours(), ours()
    allowed = exactness.bounds([by_eager.cpu()], [exact], dtype, chained=True)
    error = exactness.error([y.cpu()], [exact], allowed)
    wrong = [str(y.dtype)] if y.dtype != dtype else []
    same_bits = torch.equal(first, second)
    return {
        "passed": error <= 1 and same_bits and not wrong,
        "error": error,
        "worst": "output",
        "same_bits": same_bits,
        "wrong_dtypes": wrong,
    }


def run_ops(device: str, backend: str) -> int:
    """Every op that a backend has once on two cases, forward and backward, unchecked.

    Returns:
        How many calls that were.
    """
    done = 0
    for name in ("odd channels", "kernels 7 and 5"):
        [case] = [case for case in CASES if case.name == name]
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        for op in (op for op in OPS if has(backend, op, device)):
            given = problem(op, case, dtype)
            inputs = _move(list(given.inputs.values()), device)
            ours = functools.partial(given.ours, backend=backend)
            _results(ours, inputs, torch.ones_like(_forward(ours, inputs)))
            done += 1
    return done


def _exact(
    given: Problem, op: str, case: Case, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor, list[float]]:
    """Results in float64, the gradient to start from, and how far each may be off besides.

    Rounding decides the sign of what lies near the ReLU's corner. A gradient that starts from
    such an element is left out; behind the mean that cannot be done, and what those elements could
    change is doubt.
    """
    inputs = [None if t is None else t.detach().double() for t in given.inputs.values()]
    expected = _forward(given.exact, inputs)
    shape = expected.shape
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    corner = 10 * cases.TOLERANCE[dtype].forward
    if op == BLOCK:
        cotangent = cotangent * (expected > corner)
    elif op == "correlation4d":
        query, support = inputs[:2]
        both = [_forward(given.exact, [sign * query, support, None]) for sign in (1, -1)]
        cotangent = cotangent * (torch.maximum(*both) > corner)
    exact = _results(given.exact, inputs, cotangent)
    doubt = [0.0] * len(exact)
    if op == REDUCED:
        margin = torch.finfo(dtype).eps
        moved = [
            _results(given.exact, [*inputs[:-1], inputs[-1] + sign * margin], cotangent)
            for sign in (1, -1)
        ]
        doubt = [float((a - b).norm()) for a, b in zip(*moved, strict=True)]
        doubt[0] = 0.0
    if op in {BLOCK, REDUCED} and case.groups == case.out and case.bias:
        exact[4] = torch.zeros_like(exact[4])  # the bias is normalised away
    return exact, cotangent, doubt


def _shares(
    results: Sequence[Tensor],
    eager: Sequence[Tensor],
    exact: Sequence[Tensor],
    doubt: Sequence[float],
    dtype: torch.dtype,
    *,
    chained: bool,
) -> list[float]:
    """Error of each result as a share of what is allowed."""
    allowed = exactness.bounds(eager, exact, dtype, chained=chained)
    shares = []
    for y, e, bound, more in zip(results, exact, allowed, doubt, strict=True):
        scale = float(e.norm()) or 1.0
        shares.append(exactness.error([y], [e], [bound + more / scale]))
    return shares


def _forward(function: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> Tensor:
    with torch.no_grad():
        return function(*inputs)


def _results(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], cotangent: Tensor
) -> list[Tensor]:
    """The output, and the gradient to every input."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    given = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, given, cotangent.to(y))]


def _move(inputs: Sequence[Tensor | None], device: str) -> list[Tensor | None]:
    """The same memory layouts on a device; what is expanded there is expanded here."""
    moved: list[Tensor | None] = []
    for tensor in inputs:
        if tensor is not None and tensor.stride(0) == 0 and tensor.shape[0] > 1:
            moved.append(tensor[:1].to(device).expand(tensor.shape))
        else:
            moved.append(None if tensor is None else tensor.to(device))
    return moved


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())


def no_tf32() -> Any:
    """cuDNN's convolutions, which the eager formulation calls, are to be float32 here."""
    return torch.backends.cudnn.flags(
        enabled=None, benchmark=None, deterministic=None, allow_tf32=False
    )


CHECKED = Case("behaviour", weight="binary")


def _chain_inputs(device: str, dtype: torch.dtype, case: Case = CHECKED) -> list[Tensor]:
    """query, support, weight and the parameters of one block; the latter want gradients."""
    features = _move(cases.features(case, dtype), device)
    parameters = _move(list(cases.parameters(case, dtype).values()), device)
    given = [t for t in parameters if t is not None]
    return [*(t for t in features if t is not None), *(t.requires_grad_() for t in given)]


def _chain(backend: str, *tensors: Tensor) -> Tensor:
    corr = ops.correlation4d(*tensors[:3], backend=backend)
    follows = instead(backend, BLOCK, corr.device.type)
    return ops.center_pivot_block4d(
        corr, *tensors[3:], support_stride=2, reduce_support=True, backend=follows
    )


def _step(chain: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    y = chain(*tensors)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(tensors[3:]))]


def _require_equal(found: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    for a, e in zip(found, expected, strict=True):
        if not _same(a, e):
            off = float((a.double() - e.double()).abs().max())
            raise AssertionError(f"{what}: off by {off:.2e}")


def check_stream(device: str, backend: str) -> str:
    """On a stream of its own the ops give the same bits, without a synchronisation before."""
    if device == "cpu":
        return "skipped: needs a GPU"
    tensors = _chain_inputs(device, torch.float32)
    chain = functools.partial(_chain, backend)
    expected = _step(chain, tensors)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # the inputs are late: who does not wait for them is wrong
        late = [(t.detach() * 1).requires_grad_(t.requires_grad) for t in tensors]
        found = _step(chain, late)
    side.synchronize()
    _require_equal(found, expected, "another stream")
    return "passed"


def check_other_device(device: str, backend: str) -> str:
    """Tensors on a GPU that is not the current one."""
    if device == "cpu" or torch.cuda.device_count() < 2:
        return "skipped: needs two GPUs"
    chain = functools.partial(_chain, backend)
    expected = _step(chain, _chain_inputs("cuda:0", torch.float32))
    found = _step(chain, _chain_inputs("cuda:1", torch.float32))
    assert torch.cuda.current_device() == 0
    _require_equal([t.to("cuda:0") for t in found], expected, "another device")
    return "passed"


def check_compiled(device: str, backend: str) -> str:
    """torch.compile takes the chain as one graph, gradients included."""
    tensors = _chain_inputs(device, torch.float32)
    chain = functools.partial(_chain, backend)
    compiler = "aot_eager" if device == "cpu" else "inductor"
    compiled = torch.compile(chain, fullgraph=True, backend=compiler)
    for found, expected in zip(_step(compiled, tensors), _step(chain, tensors), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    return "passed"


def check_graph(device: str, backend: str) -> str:
    """A CUDA graph of forward and backward, replayed on new values, equals the eager call."""
    if device == "cpu":
        return "skipped: needs a GPU"
    chain = functools.partial(_chain, backend)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = _chain_inputs(device, dtype)
        graph, outputs = capture(lambda tensors=tensors: _step(chain, tensors))
        with torch.no_grad():
            for tensor in tensors:
                tensor.mul_(0.75)
        graph.replay()
        replayed = [t.clone() for t in outputs]
        _require_equal(replayed, _step(chain, tensors), f"graph in {dtype}")
    return "passed"


def capture(
    step: Callable[[], list[Tensor]], pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A CUDA graph of a step, and the tensors that its replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = step()
    return graph, outputs


def check_autocast(device: str, backend: str) -> str:
    """Inside autocast the ops run in its dtype, and give what rounded inputs give."""
    tensors = _chain_inputs(device, torch.float32)
    dtype = torch.bfloat16 if device != "cpu" or backend == "reference" else torch.float16
    with torch.no_grad():
        with torch.autocast(torch.device(device).type, dtype):
            found = _chain(backend, *tensors)
        expected = _chain(backend, *(t.to(dtype) for t in tensors))
    assert found.dtype == dtype, found.dtype
    _require_equal([found], [expected], "autocast")
    return "passed"


def check_nan(device: str, backend: str) -> str:
    """NaN and infinity spoil what they spoil in the definition; a zero weight silences them."""
    query, support, weight, *parameters = _chain_inputs(device, torch.float32)
    for value in (torch.nan, torch.inf):
        bad = query.clone()
        bad.view(-1)[bad.numel() // 3] = value
        found = ops.correlation4d(bad, support, weight, backend=backend)
        expected = ops.correlation4d(bad, support, weight, backend="reference")
        _require_equal([found.isnan()], [expected.isnan()], f"{value} in the correlation")
        if not has(backend, "center_pivot_conv4d", device):
            continue
        found = ops.center_pivot_conv4d(found, *parameters[:3], backend=backend)
        expected = ops.center_pivot_conv4d(expected, *parameters[:3], backend="reference")
        _require_equal([found.isnan()], [expected.isnan()], f"{value} in the convolution")
    masked = (weight == 0)[:, None, None].expand_as(support)
    assert masked.any()
    silenced = support.masked_fill(masked, torch.nan).requires_grad_()
    corr = ops.correlation4d(query, silenced, weight, backend=backend)
    corr.sum().backward()
    assert torch.isfinite(corr).all() and torch.isfinite(silenced.grad).all()
    assert (silenced.grad[masked] == 0).all()
    return "passed"


def check_views(device: str, backend: str) -> str:
    """Views that negate lazily or skip elements give what their copies give."""
    query, support, weight, *_ = (t.detach() for t in _chain_inputs(device, torch.float32))
    expected = ops.correlation4d(query, support, weight, backend=backend)
    negated = torch.complex(torch.zeros_like(query), -query).conj().imag
    assert negated.is_neg()
    strided = torch.stack([query, query + 1], dim=-1)[..., 0]
    for view in (negated, strided):
        found = ops.correlation4d(view, support, weight, backend=backend)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    return "passed"


def check_opcheck(device: str, backend: str) -> str:
    """Schema, fake kernels and autograd registration agree with the kernels."""
    query, support, weight, *parameters = _chain_inputs(device, torch.float32)
    torch.library.opcheck(torch.ops.fsdino.correlation4d, (query, support, weight, 1e-5, backend))
    corr = ops.correlation4d(query, support, weight, backend=backend)
    block = (corr, *parameters, 4, 1e-5, 2, False, True, backend)
    fused = (query, support, weight, *parameters[:3], 2, 1e-5, backend)
    for op, arguments in ((BLOCK, block), ("correlation_center_pivot4d", fused)):
        if has(backend, op, device):
            torch.library.opcheck(getattr(torch.ops.fsdino, op), arguments)
    return "passed"


def check_tf32(device: str, backend: str) -> str:
    """In float32, products are TF32 where PyTorch's own switch says so, and only there."""
    if device == "cpu":
        return "skipped: needs a GPU"
    query, support, _ = _move(cases.features(Case("wide", channels=256), torch.float32), device)
    exact = ops.correlation4d(query.double(), support.double(), backend="reference")
    before, errors = torch.backends.cuda.matmul.fp32_precision, {}
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = precision
            found = ops.correlation4d(query, support, backend=backend)
            errors[precision] = exactness.norm_error(found, exact)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert errors["ieee"] <= 1e-6 < errors["tf32"] < 2e-3, errors
    return f"passed: {errors['ieee']:.1e} and {errors['tf32']:.1e}"


BEHAVIOURS: dict[str, Callable[[str, str], str]] = {
    "stream": check_stream,
    "other device": check_other_device,
    "torch.compile": check_compiled,
    "CUDA graph": check_graph,
    "autocast": check_autocast,
    "NaN": check_nan,
    "views": check_views,
    "opcheck": check_opcheck,
    "TF32": check_tf32,
}


def check_behaviour(name: str, device: str, backend: str) -> dict[str, Any]:
    """One of `BEHAVIOURS`: "passed", or why it was skipped; raises where it fails."""
    return {"passed": True, "said": BEHAVIOURS[name](device, backend)}


def check_rows(grid: int, layers: int, channels: int, device: str, backend: str) -> float:
    """Volumes of more than 2^31 elements, in bfloat16: some query rows against float64.

    Returns:
        The largest error of correlation and convolution as a share of what is allowed.
    """
    shape, dtype = (1, layers, channels, grid, grid), torch.bfloat16
    query, support = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    weights = [torch.randn(16, layers, 3, 3, device=device, dtype=dtype) / 12 for _ in range(2)]
    corr = ops.correlation4d(query, support, backend=backend)
    follows = instead(backend, "center_pivot_conv4d", device)
    y = ops.center_pivot_conv4d(corr, *weights, support_stride=2, backend=follows)
    bound, worst = [cases.TOLERANCE[dtype].forward], 0.0
    for row in sorted({0, grid // 2, grid - 1}):
        part = query[:, :, :, row : row + 1].double()
        exact = ops.correlation4d(part, support.double(), backend="reference")
        worst = max(worst, exactness.error([corr[:, :, row : row + 1]], [exact], bound))
        first = max(row - 1, 0)
        source = corr[:, :, first : row + 2].double()
        exact = ops.center_pivot_conv4d(
            source, *(w.double() for w in weights), support_stride=2, backend="reference"
        )
        found, near = y[:, :, row : row + 1], row - first
        worst = max(worst, exactness.error([found], [exact[:, :, near : near + 1]], bound))
    return worst
