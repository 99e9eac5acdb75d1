"""Right or wrong on a device: the shared table of cases.

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


def problem(call: str, case: Case, dtype: torch.dtype) -> Problem:
    """A call of `OPS` on a case, its inputs on the CPU."""
    op, _ = CALLS[call]
    settings = cases.settings(call, case)
    ours, by_eager, exact = (
        functools.partial(getattr(module, op), **settings) for module in (ops, eager, formulation)
    )
    return Problem(cases.inputs(call, case, dtype), ours, by_eager, exact, op in CHAINED)


def check_case(op: str, name: str, dtype_name: str, device: str, backend: str) -> dict[str, Any]:
    """One op on one case of the table: its largest error, and whether the bits repeat.

    What PyTorch hands out uninitialised holds NaN while the checked results are computed.
    """
    [case] = [case for case in CASES if case.name == name]
    dtype = getattr(torch, dtype_name)
    given = problem(op, case, dtype)
    ours = functools.partial(given.ours, backend=backend)
    exact, cotangent, doubt = _exact(given, op, case, dtype)
    on_device = move(list(given.inputs.values()), device)
    with no_tf32():
        torch.set_deterministic_debug_mode("warn")
        try:
            found = results(ours, on_device, cotangent)
        finally:
            torch.set_deterministic_debug_mode("default")
        eager = results(given.eager, on_device, cotangent) if case.batch else found
        again = [results(ours, on_device, cotangent) for _ in range(2)]
    names = ["output", *(f"gradient to {k}" for k, t in given.inputs.items() if t is not None)]
    wrong = [str(y.dtype) for y in found if y.dtype != dtype]
    on_cpu = [[y.cpu() for y in tensors] for tensors in (found, eager)]
    shares = _shares(*on_cpu, exact, doubt, dtype, chained=given.chained)
    worst = max(range(len(shares)), key=shares.__getitem__)
    same_bits = all(same(a, b) for a, b in zip(*again, strict=True))
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
    on_device = [*move(features, device), [(*move(b[:-1], device), b[-1]) for b in blocks]]
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
    """Every op that a backend has on two cases, forward and backward, and a chain; unchecked.

    Returns:
        How many calls that were.
    """
    done, dtype = 0, torch.float32 if device == "cpu" else torch.bfloat16
    for name in ("odd channels", "kernels 7 and 5"):
        [case] = [case for case in CASES if case.name == name]
        for op in OPS:
            if not has(backend, op, device):
                continue
            given = problem(op, case, dtype)
            inputs = move(list(given.inputs.values()), device)
            ours = functools.partial(given.ours, backend=backend)
            results(ours, inputs, torch.ones_like(_forward(ours, inputs)))
            done += 1
    if has(backend, "squeeze4d", device):
        *features, blocks = cases.chain_inputs(CHAINS[2], dtype)
        blocks = [(*move(block[:-1], device), block[-1]) for block in blocks]
        with torch.no_grad():
            ops.squeeze4d(*move(features, device), blocks, backend=backend)
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
    exact = results(given.exact, inputs, cotangent)
    doubt = [0.0] * len(exact)
    if op == REDUCED:
        margin = torch.finfo(dtype).eps
        moved = [
            results(given.exact, [*inputs[:-1], inputs[-1] + sign * margin], cotangent)
            for sign in (1, -1)
        ]
        doubt = [float((a - b).norm()) for a, b in zip(*moved, strict=True)]
        doubt[0] = 0.0
    if op in {BLOCK, REDUCED} and case.groups == case.out and case.bias:
        exact[4] = torch.zeros_like(exact[4])  # the bias is normalised away
    return exact, cotangent, doubt


def _shares(
    found: Sequence[Tensor],
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
    for y, e, bound, more in zip(found, exact, allowed, doubt, strict=True):
        scale = float(e.norm()) or 1.0
        shares.append(exactness.error([y], [e], [bound + more / scale]))
    return shares


def _forward(function: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> Tensor:
    with torch.no_grad():
        return function(*inputs)


def results(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], cotangent: Tensor
) -> list[Tensor]:
    """The output, and the gradient to every input."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    given = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, given, cotangent.to(y))]


def move(inputs: Sequence[Tensor | None], device: str) -> list[Tensor | None]:
    """The same memory layouts on a device; what is expanded there is expanded here."""
    moved: list[Tensor | None] = []
    for tensor in inputs:
        if tensor is not None and tensor.stride(0) == 0 and tensor.shape[0] > 1:
            moved.append(tensor[:1].to(device).expand(tensor.shape))
        else:
            moved.append(None if tensor is None else tensor.to(device))
    return moved


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())


def no_tf32() -> Any:
    """cuDNN's convolutions, which the eager formulation calls, are to be float32 here."""
    return torch.backends.cudnn.flags(
        enabled=None, benchmark=None, deterministic=None, allow_tf32=False
    )


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
