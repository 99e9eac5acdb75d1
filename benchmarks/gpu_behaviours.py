"""How the ops behave in PyTorch on a device: streams, graphs, compilation, strides, NaN."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from gpu_checks import DTYPES, OPS, has, instead, move, problem, results, same
from gpu_preflight import launched, picked_code
from torch import Tensor

from fsdino import ops
from fsdino.bench import cases, exactness
from fsdino.bench.cases import CALLS, CHAINS, Case
from fsdino.ops import backends, native

CHECKED = Case("behaviour", weight="binary")
NOT_A_NUMBER = Case("NaN tokens", layers=2, query=(6, 4), out=6, groups=3, weight="soft")
# Several tiles of 128 and more tokens, pairs of layers and one left over, tiles that are silent.
HOPPER = (
    Case("wide", layers=4, channels=64, query=(13, 12), support=(20, 17), weight="none"),
    Case("odd", layers=3, channels=200, query=(13, 12), support=(17, 19), weight="soft"),
    Case("shared", batch=3, channels=16, query=(9, 15), layout="expanded", weight="binary"),
    Case("silent", layers=1, channels=8, support=(16, 17), weight="empty"),
)


def usable(
    device: str, backend: str, dtypes: Sequence[torch.dtype] = ()
) -> Iterator[tuple[str, torch.dtype]]:
    """Calls and data types that a backend can run on a device."""
    for call in OPS:
        for dtype in dtypes or [getattr(torch, name) for name in DTYPES]:
            if backends.why_not(backend, CALLS[call][0], torch.device(device), dtype) is None:
                yield call, dtype


def _chain_inputs(device: str, dtype: torch.dtype, case: Case = CHECKED) -> list[Tensor]:
    """query, support, weight and the parameters of one block; the latter want gradients."""
    features = move(cases.features(case, dtype), device)
    parameters = move(list(cases.parameters(case, dtype).values()), device)
    given = [t for t in parameters if t is not None]
    return [*(t for t in features if t is not None), *(t.requires_grad_() for t in given)]


def _chain(backend: str, *tensors: Tensor) -> Tensor:
    corr = ops.correlation4d(*tensors[:3], backend=backend)
    then = instead(backend, "center_pivot_block4d", corr.device.type)
    return ops.center_pivot_block4d(
        corr, *tensors[3:], support_stride=2, reduce_support=True, backend=then
    )


def _step(chain: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    y = chain(*tensors)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(tensors[3:]))]


def _require_equal(found: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    for a, e in zip(found, expected, strict=True):
        if not same(a, e):
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
        _require_replay(lambda tensors=tensors: _step(chain, tensors), tensors, f"graph in {dtype}")
    return "passed"


def check_chain_graph(device: str, backend: str) -> str:
    """The same of `squeeze4d` without gradients: three blocks, every input and weight changed."""
    if device == "cpu":
        return "skipped: needs a GPU"
    if not has(backend, "squeeze4d", device):
        return f"skipped: {backend} has no squeeze4d"
    [chain] = [chain for chain in CHAINS if chain.name == "three blocks"]
    for dtype in (torch.float32, torch.bfloat16):
        *features, blocks = cases.chain_inputs(chain, dtype)
        features = move(features, device)
        blocks = [(*move(block[:-1], device), block[-1]) for block in blocks]
        tensors = [*features, *(t for block in blocks for t in block[:-1])]

        def step(features: Any = features, blocks: Any = blocks) -> list[Tensor]:
            return [ops.squeeze4d(*features, blocks, backend=backend)]

        with torch.no_grad():
            _require_replay(step, [t for t in tensors if t is not None], f"graph in {dtype}")
    return "passed"


def _require_replay(step: Callable[[], list[Tensor]], tensors: Sequence[Tensor], what: str) -> None:
    """A graph of a step gives what the step gives, after the tensors that it reads were changed."""
    graph, outputs = capture(step)
    with torch.no_grad():
        for tensor in tensors:
            tensor.mul_(0.75)
    graph.replay()
    replayed = [t.clone() for t in outputs]
    _require_equal(replayed, step(), what)


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


def check_nan_tokens(device: str, backend: str) -> str:
    """A token of NaN spoils the outputs and gradients that it spoils in float64, in every dtype."""
    ran = 0
    for call, dtype in usable(device, backend):
        given = problem(call, NOT_A_NUMBER, dtype)
        for name in ("query", "support", "x"):
            if name not in given.inputs:
                continue
            inputs = {k: t if t is None else t.clone() for k, t in given.inputs.items()}
            at = (-1, 0, slice(None), 2, 1) if name != "x" else (-1, 0, 2, 1, 1, 2)
            inputs[name][at] = torch.nan
            wide = [None if t is None else t.double() for t in inputs.values()]
            with torch.no_grad():
                shape = given.exact(*wide).shape
            cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)
            settings = cases.settings(call, NOT_A_NUMBER)
            op = getattr(ops, CALLS[call][0])
            exact = functools.partial(op, backend="reference", **settings)
            ours = functools.partial(op, backend=backend, **settings)
            expected = results(exact, wide, cotangent)
            found = results(ours, move(list(inputs.values()), device), cotangent.to(device))
            what = f"a token of NaN in the {name} of {call}, {dtype}"
            nan = [[t.isnan().cpu() for t in tensors] for tensors in (found, expected)]
            assert nan[1][0].any() and not nan[1][0].all()
            _require_equal(*nan, what)
            ran += 1
    return f"passed: {ran}"


def check_permuted(device: str, backend: str) -> str:
    """Every dimension may be the innermost in memory, of inputs and of incoming gradients."""
    ran = 0
    for call, dtype in usable(device, backend, (torch.float32,)):
        given = problem(call, CHECKED, dtype)
        ours = functools.partial(given.ours, backend=backend)
        inputs = move(list(given.inputs.values()), device)
        with torch.no_grad():
            cotangent = torch.randn_like(ours(*inputs).contiguous())
        expected = results(ours, inputs, cotangent)
        for innermost in range(max(t.dim() for t in inputs if t is not None)):
            moved = [t if t is None else permuted(t, innermost) for t in inputs]
            found = results(ours, moved, permuted(cotangent, innermost))
            for a, e in zip(found, expected, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
            ran += 1
    return f"passed: {ran}"


def permuted(tensor: Tensor, innermost: int) -> Tensor:
    """The same values, in memory with the other dimensions reversed and a chosen one innermost."""
    last = innermost % tensor.dim()
    order = [*(dim for dim in reversed(range(tensor.dim())) if dim != last), last]
    return tensor.permute(order).contiguous().permute([order.index(d) for d in range(len(order))])


def check_hopper(device: str, backend: str) -> str:
    """The CUDA correlation for sm_90a and that for every architecture, on the same features.

    The driver picks the former where it can; a channel of zeros, which changes no cosine, leaves
    rows that the copy engine cannot take, and so the latter.
    """
    if device == "cpu":
        return "skipped: needs a GPU"
    reason = native.why_not_cuda("correlation4d", torch.device(device), torch.bfloat16)
    if reason is not None:
        return f"skipped: {reason}"
    for dtype in (torch.float16, torch.bfloat16):
        for case in HOPPER:
            features = cases.features(case, dtype)
            wide = [None if t is None else t.double() for t in features]
            exact = ops.correlation4d(*wide, backend="reference")
            query, support, weight = move(features, device)
            padded = [torch.nn.functional.pad(t, (0, 0, 0, 0, 0, 1)) for t in (query, support)]
            codes, outputs = [], []
            for pair in ((query, support), padded):
                run = functools.partial(ops.correlation4d, *pair, weight, backend="cuda")
                corr, kernels = launched(run)
                codes.append(picked_code(kernels))
                outputs.append(corr.cpu())
            if codes[0] == codes[1]:
                return f"skipped: both ran {codes[0]}"
            allowed = [cases.TOLERANCE[dtype].forward]
            for corr, code in zip(outputs, codes, strict=True):
                error = exactness.error([corr], [exact], allowed)
                assert error <= 1, f"{code}, {case.name}, {dtype}: {error:.3g} of the allowed"
            between = exactness.error([outputs[0]], [outputs[1].double()], allowed)
            assert between <= 2, f"{case.name}, {dtype}: the two codes differ by {between:.3g}"
    return f"passed: {codes[0]} and {codes[1]}"


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
    if has(backend, "center_pivot_block4d", device):
        corr = ops.correlation4d(query, support, weight, backend=backend)
        settings = (4, 1e-5, 2, False, True, backend)
        torch.library.opcheck(torch.ops.fsdino.center_pivot_block4d, (corr, *parameters, *settings))
    if has(backend, "correlation_center_pivot4d", device):
        torch.library.opcheck(
            torch.ops.fsdino.correlation_center_pivot4d,
            (query, support, weight, *parameters[:3], 2, 1e-5, backend),
        )
    return "passed"


def check_tf32(device: str, backend: str) -> str:
    """In float32, products are TF32 where PyTorch's own switch says so, and only there."""
    if device == "cpu":
        return "skipped: needs a GPU"
    query, support, _ = move(cases.features(Case("wide", channels=256), torch.float32), device)
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
    "CUDA graph of squeeze4d": check_chain_graph,
    "autocast": check_autocast,
    "NaN": check_nan,
    "NaN tokens": check_nan_tokens,
    "permuted strides": check_permuted,
    "views": check_views,
    "opcheck": check_opcheck,
    "TF32": check_tf32,
    "code of sm_90a": check_hopper,
}


def check_behaviour(name: str, device: str, backend: str) -> dict[str, Any]:
    """One of `BEHAVIOURS`: "passed", or why it was skipped; raises where it fails."""
    return {"passed": True, "said": BEHAVIOURS[name](device, backend)}
