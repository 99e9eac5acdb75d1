"""Time whole workloads: correlation and all blocks, also with a backward pass."""

from __future__ import annotations


def parts(workload: str, weights: str) -> tuple[str, ...]:
    """HR with one kind of weights: it takes minutes."""
    if workload == "tiny" or (workload == "HR" and weights != "ce"):
        return ()
    return ("chain",)


def test_chain(measure, case, implementation):
    """Contrastive weights of +1 and -1, and 20 % foreground, where the rest may be skipped."""
    measure(case, implementation)
