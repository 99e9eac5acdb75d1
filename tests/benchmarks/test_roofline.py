"""The cost model: by hand, and against what the kernels launch."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import roofline
import torch

from fsdino.bench.workloads import WORKLOADS, Workload
from fsdino.kernels import tiles

ROOT = Path(__file__).resolve().parents[2]
BF16 = torch.bfloat16
H200 = roofline.GPUS[2]
MEASURED = roofline.given_gpu(790, 4.3)
ONE = Workload("one", batch=1, layers=2, grid=4, channels=8, block_channels=(4,))
TWO = Workload("two", 1, 2, grid=4, channels=8, block_channels=(4, 8), backward=True)


def test_the_published_floor() -> None:
    """W12x8 is 424 GFLOP and takes 0.54 ms at 790 TFLOP/s; its traffic is about 1.1 GB."""
    costs = roofline.floor(WORKLOADS["W12x8"], BF16)
    assert sum(cost.flop for cost in costs) / 1e9 == pytest.approx(424.5, abs=0.5)
    assert sum(cost.bytes for cost in costs) / 1e9 == pytest.approx(1.1, abs=0.05)
    milliseconds = 1e3 * roofline.floor_seconds(WORKLOADS["W12x8"], BF16, MEASURED)
    assert milliseconds == pytest.approx(0.54, abs=0.005)


def test_the_floor_of_one_block() -> None:
    """By hand. Features 2 * 2 * 8 * 16 values, raw 4 * 16 * 4, mean 4 * 16; 2 bytes each."""
    correlation, block, mean = roofline.floor(ONE, BF16)
    assert correlation.flop == 2 * 2 * 16 * 16 * 8
    assert block.flop == 2 * (4 * 16 * 4) * 2 * 18
    assert (correlation.bytes, block.bytes, mean.bytes) == (2 * 512, 2 * 256, 2 * (256 + 64))
    slow = roofline.Gpu("slow", 90, 1, 1e3, 1e3, 1e3, 1e9)
    assert roofline.floor_seconds(ONE, BF16, slow) == pytest.approx((8192 + 18432) / 1e3)
    narrow = roofline.Gpu("narrow", 90, 1, 1e9, 1e9, 1e9, 10.0)
    assert roofline.floor_seconds(ONE, BF16, narrow) == pytest.approx(2176 / 10)


def test_the_floor_going_back() -> None:
    """By hand: each volume and each gradient once, the features and the correlation without."""
    backward = {cost.stage: cost for cost in roofline.floor(TWO, BF16) if "back" in cost.stage}
    x1, raw1, raw2, given = 2 * 16 * 16, 4 * 16 * 4, 8 * 16 * 1, 8 * 16
    assert backward["block 1 backward"].bytes == 2 * (x1 + raw1 + raw1)
    assert backward["block 2 backward"].bytes == 2 * (raw1 + raw2 + raw1 + given)
    assert backward["block 2 backward"].flop == 2 * (2 * raw2 * 4 * 18)


def test_launches_add_up() -> None:
    """Products are counted once, whatever the tiles; padding only adds to what is executed."""
    for name in ("W6", "T12x8", "HR"):
        workload = WORKLOADS[name]
        costs = roofline.launches(workload, BF16, 90)
        flop = sum(workload.flop().values())
        if workload.backward:
            flop += sum(workload.backward_flop().values())
        # Going back, taps that reach beyond the grid's edge are not walked.
        assert sum(cost.flop for cost in costs) == pytest.approx(flop, rel=0.02)
        assert all(cost.executed >= cost.flop for cost in costs)
        least = roofline.floor_seconds(workload, BF16, H200)
        assert sum(cost.seconds(H200, BF16) for cost in costs) > least


def test_the_transpose_walks_every_tap_once() -> None:
    """On an even side: as many operations as the convolution itself."""
    block = roofline.blocks(TWO)[1]
    wide = roofline.Block(2, 4, 8, side=8, kept=4, tokens=16, batch=1)
    costs = roofline._transposed(wide, BF16, 90)
    walks = [cost for cost in costs if cost.kernel == "walk_kernel"]
    assert [cost.flop for cost in walks] == [wide.flop]
    assert (block.inner, block.outer, block.side, block.kept) == (4, 8, 2, 1)


def test_one_launch_by_hand() -> None:
    """W12's correlation on Hopper: programs, waves, bytes, padding."""
    [cost] = [
        cost
        for cost in roofline.launches(WORKLOADS["W12"], BF16, 90)
        if cost.kernel == "correlation_kernel"
    ]
    tile = tiles.correlation(BF16, 90)
    across = -(-1369 // tile.rows), -(-1369 // tile.columns)
    assert cost.programs == across[0] * across[1] * 3  # four of twelve layers in each
    assert cost.waves(H200) == cost.programs / 132
    assert cost.bytes == 2 * (2 * 12 * 768 * 1369 + 12 * 1369**2) + 8 * 12 * 1369


def test_peaks_by_data_type() -> None:
    """Half precision on tensor cores; float32 without, but where TF32 is allowed."""
    a100 = roofline.GPUS[0]
    assert (a100.peak(BF16), a100.peak(torch.float16)) == (312e12, 312e12)
    assert a100.peak(torch.float32) == 19.5e12
    assert a100.peak(torch.float32, tf32=True) == 156e12


RECORDED = """
import math
from unittest import mock
import torch, triton
from fsdino.bench import inspect_triton
from fsdino.kernels import layout
from fsdino.bench.workloads import WORKLOADS

grids = []
def record(kernel, *args, grid, warmup, **settings):
    grids.append((kernel.__name__, math.prod(grid)))
layout.planned.set(90)
for name in {names!r}:
    grids.clear()
    with mock.patch.object(inspect_triton, "_run_fused", lambda *args: None):
        with mock.patch.object(triton.runtime.jit.JITFunction, "run", record):
            inspect_triton._run(WORKLOADS[name], torch.bfloat16)
    print(grids)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_programs_are_those_that_the_kernels_launch() -> None:
    """Kernel by kernel; gradients to the features, which the model leaves out, set aside."""
    names = ("W6", "T12x8")
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-c", RECORDED.format(names=names)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    to_features = {"unit_kernel", "unit_gradient_kernel", "correlation_gradient_kernel"}
    for name, line in zip(names, run.stdout.splitlines(), strict=True):
        launched = [tuple(pair) for pair in json.loads(line.translate(TO_JSON))]
        # `correlation4d_backward` computes the lengths once more.
        lengths = [pair for pair in launched if pair[0] == "lengths_kernel"][:2]
        others = [p for p in launched if p[0] not in to_features | {"lengths_kernel"}]
        model = [
            (cost.kernel, cost.programs)
            for cost in roofline.launches(WORKLOADS[name], BF16, 90)
            if cost.programs
        ]
        assert sorted(lengths + others) == sorted(model)


TO_JSON = str.maketrans({"(": "[", ")": "]", "'": '"'})


def record(tmp_path: Path) -> Path:
    """A file of the GPU suite with one row."""
    result = {"error": 0.5, "seconds": 1.08e-3}
    implementations = {"triton, tokens": result, "triton, contiguous": {"failed": "x"}}
    row = {"workload": "W12x8", "dtype": "bfloat16", "implementations": implementations}
    flops = {"bfloat16": 790e12, "float16": 780e12, "float32": 50e12, "tf32": 400e12}
    ceilings = {
        "flop_per_second": flops, "bytes_per_second": 4.3e12, "architecture": 90,
        "multiprocessors": 132,
    }  # fmt: skip
    path = tmp_path / "gpu.json"
    rows = [row, {"asked": "timing: T4", "failed": "killed"}]
    rows[1] |= {"workload": "T4", "dtype": "bfloat16"}
    path.write_text(json.dumps({"parts": {"timing": {"rows": rows}, "ceilings": ceilings}}))
    return path


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every workload and GPU; with a measured file its time and its share of the floor."""
    roofline.main(["--ceilings", "790", "4.3"])
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines.keys() == {"workload", *WORKLOADS}
    assert lines["workload"][3:] == ["A100", "H100", "H200", "B200", "measured"]
    assert lines["W12x8"][-1] == "0.538"
    roofline.main(["--measured", str(record(tmp_path)), "--launches", "W6", "--on", "A100"])
    text = capsys.readouterr().out
    [line] = [line.split() for line in text.splitlines() if line.startswith("W12x8")]
    assert line[-2:] == ["1.080", "0.50"]
    assert "W6 on A100" in text and "normalise_mean_kernel" in text
