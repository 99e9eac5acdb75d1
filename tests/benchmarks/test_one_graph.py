"""What benchmarks/one_graph.py says of a sequence of runs."""

from __future__ import annotations

from typing import Any

import one_graph
import pytest


@pytest.mark.parametrize(
    ("differences", "status", "expected"),
    [
        ([1e-6, 3e-3], 0, (None, None, 3e-3)),
        ([1e-6, 0.5, 1e-6, 0.9], 0, (2, None, 0.9)),
        ([1e-6, float("nan")], 0, (2, None, 1e-6)),
        ([1e-6, 1e-6], -11, (3, 11, 1e-6)),
        ([0.5], -6, (1, 6, 0.5)),
        ([], -11, (1, 11, None)),
    ],
    ids=["right", "wrong", "not a number", "ended", "wrong, then ended", "ended at once"],
)
def test_the_first_wrong_run(
    differences: list[float], status: int, expected: tuple[Any, ...]
) -> None:
    found = one_graph.summary(differences, status)
    assert (found["first_wrong"], found["signal"], found["largest"]) == expected
