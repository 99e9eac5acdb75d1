"""The checks of the GPU suite, on the CPU: right results pass, and each kind of wrong one fails."""

from __future__ import annotations

import itertools
from typing import Any

import gpu_checks
import pytest
import torch
from torch import Tensor

from changed_backend import add_backend
from fsdino.ops import reference

CPU = "cpu"


@pytest.mark.parametrize("dtype", gpu_checks.DTYPES)
@pytest.mark.parametrize("op", gpu_checks.OPS)
def test_right_results_pass(op: str, dtype: str) -> None:
    """Every op in every data type: shapes, layouts, an empty batch."""
    for name in ("odd channels", "empty batch", "expanded query", "group per channel"):
        found = gpu_checks.check_case(op, name, dtype, CPU, "reference")
        assert found["passed"] and found["error"] <= 1 and found["same_bits"], found


@pytest.mark.parametrize("dtype", gpu_checks.DTYPES)
def test_chains(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a backend has for a whole chain is checked; one element off fails."""

    def bumped(*arguments: Any) -> Tensor:
        result = reference.squeeze4d(*arguments)
        result.view(-1)[0] += 5
        return result

    backend = add_backend(monkeypatch, squeeze4d=bumped)
    for name in ("three blocks", "expanded query", "empty batch"):
        right = gpu_checks.check_chain(name, dtype, CPU, "reference")
        assert right["passed"] and right["error"] <= 1 and right["same_bits"], right
    assert not gpu_checks.check_chain("three blocks", dtype, CPU, backend)["passed"]


@pytest.mark.parametrize("op", gpu_checks.OPS)
def test_wrong_results_fail(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One element off, or a gradient a little too large."""
    function = op.partition(",")[0]

    def bumped(*arguments: Any) -> Any:
        result = getattr(reference, function)(*arguments)
        first = result if isinstance(result, Tensor) else result[0]
        first.view(-1)[0] += 0.1
        return result

    def scaled(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(g * 1.01 for g in getattr(reference, function + "_backward")(*arguments))

    for changes in ({function: bumped}, {function + "_backward": scaled}):
        backend = add_backend(monkeypatch, **changes)
        found = gpu_checks.check_case(op, "odd channels", "float32", CPU, backend)
        assert not found["passed"] and found["error"] > 1, found
        forward = function in changes
        assert (found["worst"] == "output") == forward, found


def test_slices_and_calls_of_a_backend_with_one_op(correlates_only: str) -> None:
    """The convolution of the slices is another's; the sanitizer sees the op that is there."""
    assert gpu_checks.check_rows(5, 3, 8, CPU, correlates_only) <= 1
    assert gpu_checks.run_ops(CPU, correlates_only) == 2


def test_what_a_backend_has(correlates_only: str) -> None:
    """By op, by call, by the parts of a composed op; "auto" has them all."""
    one = correlates_only
    assert gpu_checks.has(one, "correlation4d", CPU)
    for op in (gpu_checks.BLOCK, gpu_checks.REDUCED, "squeeze4d"):
        assert not gpu_checks.has(one, op, CPU) and gpu_checks.instead(one, op, CPU) == "auto"
        assert gpu_checks.has("auto", op, CPU) and gpu_checks.has("triton", op, "cuda")
    assert not gpu_checks.has("cuda", "squeeze4d", "cuda")
    assert gpu_checks.has("cuda", "correlation4d", "cuda")


def test_memory_that_is_never_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds NaN."""

    def half_written(*arguments: Any) -> Tensor:
        right = reference.correlation4d(*arguments)
        out = torch.empty_like(right)
        out[:, :, 1:] = right[:, :, 1:]
        return out

    backend = add_backend(monkeypatch, correlation4d=half_written)
    torch.set_deterministic_debug_mode("default")
    found = gpu_checks.check_case("correlation4d", "plain", "float32", CPU, backend)
    assert found["error"] == float("inf") and not found["passed"]


def test_bits_that_change_and_foreign_dtypes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right each time, but not the same; and a gradient in another data type."""
    runs = itertools.count()

    def drifting(*arguments: Any) -> Tensor:
        return reference.correlation4d(*arguments) * (1 + 1e-7 * next(runs))

    backend = add_backend(monkeypatch, correlation4d=drifting)
    found = gpu_checks.check_case("correlation4d", "plain", "float32", CPU, backend)
    assert found["error"] <= 1 and not found["same_bits"] and not found["passed"]


def test_slices_of_large_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """First, middle and last query row; a last row that is wrong is found."""
    sizes = (5, 3, 8, CPU)
    assert gpu_checks.check_rows(*sizes, "reference") <= 1

    def cut(*arguments: Any) -> Tensor:
        y = reference.center_pivot_conv4d(*arguments)
        if y.shape[2] == sizes[0]:
            y[:, :, -1] *= 1.1
        return y

    backend = add_backend(monkeypatch, center_pivot_conv4d=cut)
    assert gpu_checks.check_rows(*sizes, backend) > 1


def test_every_op_runs_under_the_sanitizer() -> None:
    """Five ops on two cases, and a chain."""
    assert gpu_checks.run_ops(CPU, "reference") == 11
