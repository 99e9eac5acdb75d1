"""The walk's words of bits: kernels whose rows and columns fill fields of every width, and none."""

from __future__ import annotations

import pytest

from formulated import assert_formulated
from fsdino.bench.cases import Case

CASES = (
    Case(
        "8 bits", batch=1, query=(5, 9), support=(9, 4), kernel_query=7, kernel_support=5, stride=3
    ),
    Case("16 bits", batch=1, query=(10, 3), support=(4, 11), kernel_query=3, kernel_support=15),
    Case("no bits", batch=1, query=(3, 10), support=(7, 3), kernel_query=17, kernel_support=1),
    Case("idle programs", batch=2, query=(2, 3), support=(5, 3), stride=4),
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["triton"])
def test_taps_at_the_edges(case: Case, backend: str) -> None:
    """Values and all gradients are those of the formulation."""
    assert_formulated("center_pivot_conv4d", case, backend, 1e-6)
