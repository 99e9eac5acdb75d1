"""Time `correlation4d` alone."""

from __future__ import annotations


def parts(workload: str, weights: str) -> tuple[str, ...]:
    """The features are frozen: it has no backward pass."""
    if workload == "tiny":
        return ("correlation",) if weights == "ce" else ()
    return ("correlation",) if workload.startswith("W") else ()


def test_correlation4d(measure, case, implementation):
    """At tiny, the time of a call is overhead."""
    measure(case, implementation)
