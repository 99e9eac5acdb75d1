"""Whether an implementation's results are right: float64, and the bounds of every op."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino import ops
from fsdino.bench import workloads
from fsdino.bench.cases import TOLERANCE
from fsdino.bench.workloads import GROUPS, KERNEL, NORM_EPS, STRIDE, Block, Inputs

CHAIN_FACTOR = 2.0  # times the error of the eager formulation, for the whole chain
EAGER_FACTOR = 100.0  # times one op's bound, for the eager formulation itself
ELEMENT_FACTOR = 30.0  # times the norm's bound, relative to the largest element

_SLAB = 2**26  # elements of the correlation that are held at once in float64


def step(run: Callable[[], Tensor], inputs: Inputs) -> list[Tensor]:
    """One run: its output and, where autograd followed it, the gradient of each parameter."""
    output = run()
    if not output.requires_grad:
        return [output]
    parameters = [tensor for block in inputs.blocks for tensor in block.tensors()]
    # Another value everywhere, at the cost of one pass over the smallest tensor; small enough that
    # a channel's sum over all positions is a float16.
    largest = min(1.0, 2**13 * output.shape[1] / output.numel())
    values = torch.linspace(-largest, largest, output.numel(), device=output.device)
    cotangent = values.to(output).view(output.shape)
    gradients = torch.autograd.grad(output, parameters, cotangent, allow_unused=True)
    return [output.detach(), *(gradient for gradient in gradients if gradient is not None)]


def expected(part: str, inputs: Inputs) -> list[Tensor]:
    """What "correlation", "fused-block" or "chain" gives by the reference in float64."""
    exact = to_double(inputs)
    if part == "correlation":
        features = (exact.query, exact.support, exact.support_weight)
        return [ops.correlation4d(*features, backend="reference")]
    if part == "fused-block":
        return step(lambda: _first_block(exact), exact)

    def chain() -> Tensor:
        with ops.use_backend("reference"):
            x = _first_block(exact)
            return workloads.run_blocks(x, exact.blocks[1:], ops.center_pivot_block4d)

    return step(chain, exact)


def _first_block(inputs: Inputs) -> Tensor:
    """A few query rows at a time, with the rows beside them: HR's correlation would take 3 GB."""
    block, support = inputs.blocks[0], inputs.support
    *_, rows, columns = inputs.query.shape
    row = inputs.query.shape[:2].numel() * columns * support.shape[3:].numel()
    count, halo, slabs = max(1, _SLAB // row), KERNEL // 2, []
    for start in range(0, rows, count):
        stop, first = min(start + count, rows), max(start - halo, 0)
        raw = ops.correlation_center_pivot4d(
            inputs.query[:, :, :, first : stop + halo],
            support,
            inputs.support_weight,
            *block.tensors()[:3],
            support_stride=STRIDE,
            backend="reference",
        )
        slabs.append(raw[:, :, start - first : stop - first])
    raw = torch.cat(slabs, dim=2)
    return F.group_norm(raw, GROUPS, block.norm_weight, block.norm_bias, NORM_EPS).relu()


def bounds(
    eager: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype, *, chained: bool
) -> list[float]:
    """Largest norm error allowed for each result: one op's, or if larger twice that of `eager`.

    Where ops are not `chained`, one op's.
    """
    least = _one_op(exact, dtype)
    if not chained:
        return least
    return [_chained(y, e, bound) for y, e, bound in zip(eager, exact, least, strict=True)]


def yardstick_error(eager: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> float:
    """Error of the eager formulation as a share of what it may be: much more than the others."""
    results = zip(eager, exact, _one_op(exact, dtype), strict=True)
    return max(norm_error(y, e) / (EAGER_FACTOR * bound) for y, e, bound in results)


def error(results: Sequence[Tensor], exact: Sequence[Tensor], allowed: Sequence[float]) -> float:
    """Largest error, of the norm or of one element, as a share of what is allowed."""
    return max(
        max(norm_error(y, e) / bound, element_error(y, e) / (ELEMENT_FACTOR * bound))
        for y, e, bound in zip(results, exact, allowed, strict=True)
    )


def norm_error(y: Tensor, exact: Tensor) -> float:
    """||y - exact|| / ||exact||, absolute where exact is 0.

    Infinite where the shapes differ, or where the error is not finite.
    """
    if y.shape != exact.shape:
        return float("inf")
    y, exact = y.detach().double(), exact.detach().double()
    difference = (y - exact).norm() / (exact.norm() if exact.any() else 1)
    return float(difference) if torch.isfinite(difference) else float("inf")


def element_error(y: Tensor, exact: Tensor) -> float:
    """Largest |y - exact| as a share of the largest |exact|; otherwise as `norm_error`."""
    if y.shape != exact.shape:
        return float("inf")
    if not exact.numel():
        return 0.0
    y, exact = y.detach().double(), exact.detach().double()
    difference = (y - exact).abs().max() / (exact.abs().max() if exact.any() else 1)
    return float(difference) if torch.isfinite(difference) else float("inf")


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "output") -> None:
    """Raise where an error is larger than it may be.

    Args:
        actual: result to check.
        expected: result in float64.
        tolerance: largest error of the norm; that of one element is `ELEMENT_FACTOR` times this.
        what: name of the result in the message.

    Raises:
        AssertionError: shapes differ, or an error is too large.
    """
    _assert_norm(actual, expected, tolerance, what)
    worst = element_error(actual, expected)
    if not worst <= ELEMENT_FACTOR * tolerance:
        raise AssertionError(f"{what}: worst element off by {worst:.2e} of the largest")


def assert_no_worse(
    actual: Tensor, eager: Tensor, expected: Tensor, tolerance: float, what: str = "output"
) -> None:
    """Raise where the norm's error is larger than that of chained ops may be.

    Args:
        actual: result to check.
        eager: result of the eager formulation; twice its error is allowed.
        expected: result in float64.
        tolerance: error that is allowed in any case.
        what: name of the result in the message.

    Raises:
        AssertionError: shapes differ, or the error is too large.
    """
    _assert_norm(actual, expected, _chained(eager, expected, tolerance), what)


def _assert_norm(actual: Tensor, expected: Tensor, allowed: float, what: str) -> None:
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: {actual.shape} instead of {expected.shape}")
    error = norm_error(actual, expected)
    if not error <= allowed:
        raise AssertionError(f"{what}: relative error {error:.2e} > {allowed:.1e}")


def _chained(eager: Tensor, exact: Tensor, least: float) -> float:
    """Largest norm error of a result of chained ops; an eager result that overflowed allows none.

    The sign before a ReLU flips near 0 for every implementation.
    """
    error = norm_error(eager, exact)
    return max(CHAIN_FACTOR * error, least) if math.isfinite(error) else least


def _one_op(exact: Sequence[Tensor], dtype: torch.dtype) -> list[float]:
    """An output's bound, then those of its gradients."""
    forward, gradients = TOLERANCE[dtype]
    return [forward, *[gradients] * (len(exact) - 1)]


def to_double(inputs: Inputs) -> Inputs:
    """The same inputs in float64."""

    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    return Inputs(
        double(inputs.query),
        double(inputs.support),
        double(inputs.support_weight),
        tuple(Block(*map(double, block.tensors())) for block in inputs.blocks),
    )
