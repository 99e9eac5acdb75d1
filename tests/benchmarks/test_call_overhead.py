"""What a call costs beyond its kernel: the record, and that both sides compute the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import call_overhead
import pytest
import torch

from fsdino import contract
from fsdino.ops import backends

needs_cpp = pytest.mark.skipif(
    backends.why_not("cpp", "correlation4d", torch.device("cpu"), torch.float32) is not None,
    reason="the C++ kernels are not built",
)


@needs_cpp
@pytest.mark.parametrize("name", contract.OPS)
def test_both_sides_compute_the_same(name: str) -> None:
    """The public op, its kernel, and the function of autograd over the kernels."""
    op = call_overhead.make_ops()[name]
    public, kernel = op.without_gradients()
    assert torch.equal(public(), kernel()[0])
    trained, bare, _ = op.with_gradients()
    for ours, expected in zip(trained(), bare(), strict=True):
        assert torch.equal(ours, expected)


@needs_cpp
def test_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row for each op, in microseconds."""
    out = tmp_path / "overhead.json"
    monkeypatch.setattr(sys, "argv", ["call_overhead.py", "--repeats", "20", "--out", str(out)])
    threads = torch.get_num_threads()
    try:
        call_overhead.main()
    finally:
        torch.set_num_threads(threads)
    results = json.loads(out.read_text())["results"]
    assert [row.pop("op") for row in results] == list(contract.OPS)
    assert all(1 < value < 1e6 for row in results for value in row.values())
