"""What the kernels compile to for GPUs that need not be there."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fsdino

pytest.importorskip("triton")

KEYS = {
    "kernel", "arch", "tile", "registers", "stack", "shared", "mma", "async_copies", "warps",
}  # fmt: skip
KERNELS = {
    "correlation_kernel", "correlation_gradient_kernel", "distance_sums_kernel", "gradient_kernel",
    "gradient_sums_kernel", "lengths_kernel", "mend_edges_kernel", "normalise_kernel",
    "normalise_mean_kernel", "statistics_kernel",
    "unit_gradient_kernel", "unit_kernel", "walk_kernel", "weight_gradient_kernel",
}  # fmt: skip
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
MMA = {"sm_80": "HMMA", "sm_90": "GMMA", "sm_100": "UTCHMMA"}
MULTIPLIES = {
    "correlation_kernel", "correlation_gradient_kernel", "walk_kernel", "weight_gradient_kernel",
}  # fmt: skip


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that compiles: without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = [str(Path(fsdino.__file__).parent.parent), *filter(None, sys.path)]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def inspected(*arguments: str) -> list[dict]:
    """Rows of `python -m fsdino.kernels.inspect --json`."""
    run = python("-m", "fsdino.kernels.inspect", "--json", *arguments)
    assert run.stdout, run.stderr
    rows: list[dict] = json.loads(run.stdout)
    return rows


@pytest.mark.slow
def test_every_kernel_keeps_to_its_registers_and_its_tensor_cores() -> None:
    """No spills, shared memory within the GPU's, tensor cores for half precision."""
    wanted = list(itertools.product(("80", "90", "100"), ("bfloat16", "float16", "float32")))
    with ThreadPoolExecutor(2) as pool:
        tables = pool.map(lambda pair: inspected("--arch", pair[0], "--dtype", pair[1]), wanted)
    for (arch, dtype), rows in zip(wanted, tables, strict=True):
        assert {row["kernel"] for row in rows} == KERNELS
        for row in rows:
            assert row.keys() == KEYS and row["arch"] == f"sm_{arch}"
            assert row["stack"] == 0, row
            assert row["shared"] <= SHARED[row["arch"]], row
            if row["kernel"] in MULTIPLIES and dtype != "float32":
                assert MMA[row["arch"]] in row["mma"] or "HMMA" in row["mma"], row
                assert row["async_copies"] > 0, row


def test_one_workload_is_read() -> None:
    """Of a tiny chain, the multiplying kernels are found on tensor cores."""
    rows = inspected("--arch", "80", "--dtype", "float16", "--workload", "W4", "--only", "walk")
    assert {row["kernel"] for row in rows} == {"walk_kernel"}
    for row in rows:
        assert row.keys() == KEYS
        assert row["stack"] == 0 and row["mma"] == "HMMA" and 0 < row["registers"] <= 255


ONE_TOKEN = """
import torch
from fsdino.kernels import inspect
from fsdino.bench.workloads import Workload

one = Workload("one", 1, 1, grid=1, channels=1, block_channels=(4, 4), backward=True)
for launch in inspect.launches(one, torch.float16, 80):
    print(inspect.compile_launch(launch, 80).kernel)
"""


@pytest.mark.slow
def test_sizes_of_one_compile() -> None:
    """Triton compiles a size of 1 into the kernel, where it is no tensor any more."""
    run = python("-c", ONE_TOKEN)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) == KERNELS
