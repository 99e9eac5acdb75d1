"""Memory, and time, of `correlation_center_pivot4d`, where the correlation is large."""

from __future__ import annotations


def parts(workload: str, weights: str) -> tuple[str, ...]:
    """W12 is there to see what the saved memory costs in time."""
    return ("fused-block",) if weights == "ce" and workload in {"tiny", "W12", "HR"} else ()


def test_correlation_center_pivot4d(measure, case, implementation):
    """Norm and ReLU on both sides: in place after the op, inside of the eager block."""
    measure(case, implementation)
