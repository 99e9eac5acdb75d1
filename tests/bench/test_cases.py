"""The table of cases: what it covers, and that the documented tolerances are its own."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from fsdino.bench import cases
from fsdino.bench.cases import CASES, TOLERANCE

CONTRIBUTING = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


def test_documented_tolerances_are_those_that_are_applied() -> None:
    """CONTRIBUTING's table has a row for each data type, with both numbers."""
    row = re.compile(r"^\| (float\w+|bfloat16)\b[^|]*\| (\d+e-\d+)[^|]*\| (\d+e-\d+)[^|]*\|$", re.M)
    found = {
        getattr(torch, dtype): (float(forward), float(gradients))
        for dtype, forward, gradients in row.findall(CONTRIBUTING.read_text(encoding="utf-8"))
    }
    assert found == TOLERANCE


def test_cases_have_what_backends_get_wrong() -> None:
    """Odd sizes, strides beyond the grid, views, empty batches, each kind of weights."""
    assert len({case.name for case in CASES}) == len(CASES)
    assert any(case.batch == 0 for case in CASES)
    assert any(case.stride > max(case.support) for case in CASES)
    assert {case.layout for case in CASES} == {"contiguous", "expanded", "transposed"}
    assert {case.weight for case in CASES} == {"none", "binary", "signed", "soft", "empty"}
    for case in CASES:
        query, support, weight = cases.features(case, torch.float32)
        assert query.shape == (case.batch, case.layers, case.channels, *case.query)
        assert support.shape == (case.batch, case.layers, case.channels, *case.support)
        assert (weight is None) == (case.weight == "none")
        assert cases.volume(case, torch.float32).shape[2:] == (*case.query, *case.support)
        assert case.query == (1, 1) or query.is_contiguous() == (case.layout == "contiguous")


def test_cases_that_differ() -> None:
    """No kernel or stride changes a correlation, and no support weight a convolution."""
    names = {case.name for case in CASES}
    of_correlation = {"stride 1", "no bias", "one group", "group per channel"}
    of_correlation |= {name for name in names if name.startswith("kernels")}
    assert names - {c.name for c in cases.distinct("correlation4d")} == of_correlation
    weights = {"no weight", "binary weight", "soft weight", "all weights zero"}
    assert names - {c.name for c in cases.distinct("center_pivot_block4d")} == weights
    groups = {"one group", "group per channel"}
    assert names - {c.name for c in cases.distinct("center_pivot_conv4d")} == weights | groups
    assert names - {c.name for c in cases.distinct("correlation_center_pivot4d")} == groups
