"""The workloads are what tables and documents call them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fsdino.bench.workloads import WORKLOADS, find_workloads
from fsdino.errors import UsageError


def test_flop_counts() -> None:
    """W12's published counts: 34.5 GFLOP of correlation, 3.4 + 5.0 + 10.1 of convolutions."""
    flop = {name: round(count / 1e9, 1) for name, count in WORKLOADS["W12"].flop().items()}
    assert flop == {"correlation": 34.5, "block 1": 3.4, "block 2": 5.0, "block 3": 10.1}


def test_standard_workloads() -> None:
    """The names that benchmarks and documents use."""
    assert set(WORKLOADS) == {"W4", "W6", "W12", "W12x8", "HR", "T4", "T6", "T12", "T12x8"}
    assert WORKLOADS["HR"].grid == 74 and WORKLOADS["W12x8"].batch == 8
    assert WORKLOADS["T12"] == replace(WORKLOADS["W12"], name="T12", backward=True)


def test_unknown_workloads_are_named() -> None:
    """With those that there are."""
    assert find_workloads(["T4", "W6"]) == [WORKLOADS["T4"], WORKLOADS["W6"]]
    with pytest.raises(UsageError, match="unknown workload 'W5': choose from W4, W6"):
        find_workloads(["W6", "W5"])
    with pytest.raises(UsageError, match="no workload given"):
        find_workloads([])
