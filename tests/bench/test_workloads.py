"""The workloads are what tables and documents call them."""

from __future__ import annotations

from dataclasses import replace

from fsdino.bench.workloads import WORKLOADS


def test_flop_counts() -> None:
    """W12's published counts: 34.5 GFLOP of correlation, 3.4 + 5.0 + 10.1 of convolutions."""
    flop = {name: round(count / 1e9, 1) for name, count in WORKLOADS["W12"].flop().items()}
    assert flop == {"correlation": 34.5, "block 1": 3.4, "block 2": 5.0, "block 3": 10.1}


def test_standard_workloads() -> None:
    """The names that benchmarks and documents use."""
    assert set(WORKLOADS) == {"W4", "W6", "W12", "W12x8", "HR", "T4", "T6", "T12", "T12x8"}
    assert WORKLOADS["HR"].grid == 74 and WORKLOADS["W12x8"].batch == 8
    assert WORKLOADS["T12"] == replace(WORKLOADS["W12"], name="T12", backward=True)
