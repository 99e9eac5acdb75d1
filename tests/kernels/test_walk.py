"""The walk's words of bits, for kernels that fill fields of every width, and where its rows lie."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from formulated import assert_formulated
from fsdino.bench.cases import Case

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

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


PLACES = """
import torch, triton
import triton.language as tl
from fsdino.kernels.walk import position, positions

@triton.jit
def places_kernel(p_out, first, width, rows, columns, COUNT: tl.constexpr):
    _, _, _, _, a, b, c, d = positions(first, width, rows, columns, COUNT)
    o = tl.arange(0, COUNT)
    tl.store(p_out + o, a)
    tl.store(p_out + COUNT + o, b)
    tl.store(p_out + 2 * COUNT + o, c)
    tl.store(p_out + 3 * COUNT + o, d)

for width, rows, columns in [
    (37, 19, 19), (1, 1, 1), (3, 2, 700), (5, 1_000_003, 1), (41, 47, 55),
]:
    every = width * rows * columns
    for first in (0, 1, 255, 256, every - 1, every, 2 * every - 3, 5 * every + 7, 10_000_019):
        found = torch.empty(4, 256, dtype=torch.int32)
        places_kernel[(1,)](found, first, width, rows, columns, COUNT=256)
        row = first + torch.arange(256)
        expected = [
            row // every, row // (rows * columns) % width, row // columns % rows, row % columns,
        ]
        right = torch.stack(expected).int()
        assert torch.equal(found, right), (width, rows, columns, first, found)
print("right")
"""


@needs_triton
def test_where_rows_lie() -> None:
    """Only the first row of a block is divided; the others are found by small quotients.

    All sizes in one process, since PyTorch's import takes longer than they do.
    """
    run = subprocess.run(
        [sys.executable, "-c", PLACES],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == "right\n"
