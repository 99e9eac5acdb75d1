"""What the Triton kernels executed before: products by hand, and a record to compare with."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import gpu_counts_before
import pytest
import torch

RESULTS = Path(gpu_counts_before.__file__).parent / "results"


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_classes_of_the_transpose_add_up() -> None:
    """By hand, of 4 x 5 outputs with 2 channels, from 3: 18 taps each, in four launches."""
    from fsdino.bench import counted

    tables = SimpleNamespace(
        TRIPS={}, ARRIVALS={}, STORES={}, FLOP=dict(counted.FLOP), _blocks=counted._blocks
    )
    gpu_counts_before.describe_kernels(tables)
    useful = executed = 0.0
    for taps in (10, 2, 2, 4):
        values = {
            "p_source": torch.empty(1, 2, 4, 5, device="meta"), "p_out": None, "DIRECTION": -1,
            "CI": 2, "CO": 3, "BLOCK_CI": 16, "BLOCK_CO": 16, "BLOCK_ROWS": 64, "programs": 1,
            "taps": taps,
        }  # fmt: skip
        assert tables.TRIPS["walk_kernel"](values) == [taps]
        found = tables.FLOP["walk_kernel"](values)
        useful, executed = useful + found[0], executed + found[1]
    assert useful == 2 * 4 * 5 * 2 * 3 * 18
    assert executed == 2 * 64 * 16 * 16 * 18


def test_the_record_compares() -> None:
    """The same GPUs, workloads, data type and assumptions as today's, of the named commit."""
    before, today = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("gpu-counts-before.json", "gpu-counts.json")
    )
    for field in ("dtype", "assumed"):
        assert before[field] == today[field], field
    assert [(arch, *of) for arch, of in before["counts"].items()] == [
        (arch, *of) for arch, of in today["counts"].items()
    ]
    assert f"--detach runs/kernels-before {before['kernels'][:7]}\n" in gpu_counts_before.__doc__
