"""Time the 4D ops: every backend that runs here beside the eager baseline, once checked."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fsdino import ops
from fsdino.apps.progress import Progress
from fsdino.errors import BackendError, UsageError
from fsdino.ops import backends, baseline
from fsdino.ops.baseline import WORKLOADS, Block, Inputs, Workload

EAGER = "eager"
_OPS = ("correlation4d", "center_pivot_block4d")  # what a workload calls

# Largest ||y - y64|| / ||y64|| of one op; y64 is the reference in float64 on the same inputs.
FORWARD_BOUND = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}
GRADIENT_BOUND = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
CHAIN_FACTOR = 2.0  # times the error of the eager formulation, for the whole chain
EAGER_FACTOR = 100.0  # times one op's bound, for the eager formulation itself
ELEMENT_FACTOR = 30.0  # times the norm's bound, relative to the largest element


@dataclass(frozen=True)
class Timing:
    """One implementation of one workload.

    Attributes:
        name: a backend, or "eager".
        error: largest error among the checked results, as a share of what is allowed.
        seconds: of each repeat; empty where the check failed.
    """

    name: str
    error: float
    seconds: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether the results were right."""
        return self.error <= 1

    @property
    def median(self) -> float | None:
        """Median seconds; None where the check failed."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass(frozen=True)
class Comparison:
    """All implementations on one workload, timed in turns in one process.

    Attributes:
        workload: its name.
        dtype, device: of the inputs.
        timings: the eager baseline first.
        missing: why other backends cannot run it here, by name.
    """

    workload: str
    dtype: str
    device: str
    timings: tuple[Timing, ...]
    missing: dict[str, str]

    def ratio(self, timing: Timing) -> float | None:
        """How many times faster than the eager baseline, by medians."""
        eager = self.timings[0].median
        if eager is None or timing.median is None:
            return None
        return eager / timing.median

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = [
            {**asdict(t), "median": t.median, "ratio": self.ratio(t), "passed": t.passed}
            for t in self.timings
        ]
        return {**asdict(self), "timings": rows}


def find_workloads(names: Sequence[str]) -> list[Workload]:
    """Standard workloads by name.

    Raises:
        UsageError: there is no workload of that name.
    """
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown or not names:
        raise UsageError(
            f"unknown workload {unknown[0]!r}: choose from {', '.join(WORKLOADS)}"
            if unknown
            else f"no workload given: choose from {', '.join(WORKLOADS)}"
        )
    return [WORKLOADS[name] for name in names]


def compare(
    workload: Workload,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    repeats: int = 5,
    only: Sequence[str] = (),
) -> Comparison:
    """Check, then time one workload on every backend that can run it.

    Args:
        workload: what to run.
        device: where.
        dtype: floating type of the inputs, also of the weights.
        repeats: of each implementation; they take turns.
        only: these backends; all where empty.

    Raises:
        UsageError: no backend has that name, or `repeats` is below 1.
        BackendError: a backend in `only` cannot run here.
    """
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    reasons = {name: _why_not(name, device, dtype) for name in only or backends.names()}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    if only and missing:
        name, reason = next(iter(missing.items()))
        raise BackendError(f"backend {name!r} cannot run {workload.name} here: {reason}")
    inputs = baseline.make_inputs(workload, device=device, dtype=dtype)
    runs: dict[str, Callable[[], Tensor]] = {EAGER: lambda: baseline.chain(inputs)}
    for name in reasons:
        if name not in missing:
            runs[name] = _with_backend(name, inputs)
    with torch.set_grad_enabled(workload.backward):
        errors = _check(workload, inputs, runs)
        right = {name: run for name, run in runs.items() if errors[name] <= 1}
        seconds = _time(workload, inputs, right, repeats)
    timings = tuple(Timing(name, errors[name], tuple(seconds.get(name, ()))) for name in runs)
    return Comparison(
        workload.name, str(dtype).removeprefix("torch."), str(device), timings, missing
    )


def _why_not(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    reasons = (backends.why_not(name, op, device, dtype) for op in _OPS)
    return next((reason for reason in reasons if reason is not None), None)


def _with_backend(name: str, inputs: Inputs) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with ops.use_backend(name):
            x = ops.correlation4d(inputs.query, inputs.support, inputs.support_weight)
            return baseline.run_blocks(x, inputs.blocks, ops.center_pivot_block4d)

    return run


def _step(workload: Workload, inputs: Inputs, run: Callable[[], Tensor]) -> list[Tensor]:
    """One run: the output and, with a backward pass, the gradient of every parameter."""
    output = run()
    if not workload.backward:
        return [output]
    parameters = [tensor for block in inputs.blocks for tensor in block.tensors()]
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(output.shape, generator=generator).to(output)
    return [output.detach(), *torch.autograd.grad(output, parameters, cotangent)]


def _check(
    workload: Workload, inputs: Inputs, runs: dict[str, Callable[[], Tensor]]
) -> dict[str, float]:
    """Each implementation's error as a share of what it may be, against float64.

    The correlation is held to its own bound; the chain may err twice as much as the eager
    formulation does, or as much as one op may. Eager, the yardstick, gets a coarse check.
    """
    dtype = inputs.query.dtype
    exact = _to_double(inputs)
    with ops.use_backend("reference"):
        arguments = (exact.query, exact.support, exact.support_weight)
        correlation = ops.correlation4d(*arguments)
    errors = {}
    for name in runs:
        if name != EAGER:
            own = _correlation(name, inputs)
            errors[name] = _error(own, correlation, FORWARD_BOUND[dtype])
    del correlation
    wanted = _step(workload, exact, _with_backend("reference", exact))
    forward, gradient = FORWARD_BOUND[dtype], GRADIENT_BOUND[dtype]
    least = [forward, *[gradient] * (len(wanted) - 1)]
    eager = _step(workload, inputs, runs[EAGER])
    norms = [_norm_error(y, exact_y) for y, exact_y in zip(eager, wanted, strict=True)]
    errors[EAGER] = max(n / (EAGER_FACTOR * b) for n, b in zip(norms, least, strict=True))
    allowed = [max(CHAIN_FACTOR * n, b) for n, b in zip(norms, least, strict=True)]
    for name, run in runs.items():
        if name != EAGER:
            results = zip(_step(workload, inputs, run), wanted, allowed, strict=True)
            errors[name] = max(errors[name], *(_error(y, e, bound) for y, e, bound in results))
    return errors


def _correlation(name: str, inputs: Inputs) -> Tensor:
    with ops.use_backend(name):
        return ops.correlation4d(inputs.query, inputs.support, inputs.support_weight)


def _norm_error(y: Tensor, exact: Tensor) -> float:
    """||y - exact|| / ||exact||, absolute where exact is 0; infinite where y is not finite."""
    difference = (y.double() - exact).norm() / (exact.norm() if exact.any() else 1)
    return float(difference) if torch.isfinite(difference) else float("inf")


def _error(y: Tensor, exact: Tensor, bound: float) -> float:
    """The larger of the norm's and the worst element's error, over what is allowed."""
    if y.shape != exact.shape:
        return float("inf")
    largest = exact.abs().max() if exact.any() else 1
    element = float((y.double() - exact).abs().max() / largest)
    return max(_norm_error(y, exact) / bound, element / (ELEMENT_FACTOR * bound))


def _to_double(inputs: Inputs) -> Inputs:
    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    return Inputs(
        double(inputs.query),
        double(inputs.support),
        double(inputs.support_weight),
        tuple(Block(*map(double, block.tensors())) for block in inputs.blocks),
    )


def _time(
    workload: Workload, inputs: Inputs, runs: dict[str, Callable[[], Tensor]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every repeat; implementations take turns. The check has warmed them up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with Progress(f"time {workload.name}", repeats, unit="rounds") as progress:
        for _ in range(repeats):
            for name, run in runs.items():
                _wait(inputs)
                began = time.perf_counter()
                _step(workload, inputs, run)
                _wait(inputs)
                seconds[name].append(time.perf_counter() - began)
            progress.advance()
    return seconds


def _wait(inputs: Inputs) -> None:
    if inputs.query.is_cuda:
        torch.cuda.synchronize(inputs.query.device)
