"""Time whole workloads: correlation and all blocks, also with a backward pass."""

from __future__ import annotations


def parts(workload: str, weights: str) -> tuple[str, ...]:
    """HR's correlation is for the fused op."""
    return () if workload in {"tiny", "HR"} else ("chain",)


def test_chain(measure, case, implementation):
    """Contrastive weights of +1 and -1, and 20 % foreground, where the rest may be skipped."""
    measure(case, implementation)
