"""Floors by hand, and the table with the bounds on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import roofline
import torch

from fsdino.bench.workloads import WORKLOADS, Workload

BF16 = torch.bfloat16
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


def test_the_bound_is_on_record() -> None:
    """Of the kernels as they are, and more than the floor; None for what was not counted."""
    for name in ("W6", "W12", "W12x8", "T12x8", "HR"):
        bound = roofline.bound_seconds(name)
        assert bound is not None
        assert bound > roofline.floor_seconds(WORKLOADS[name], BF16, MEASURED)
    assert roofline.bound_seconds("W4") is None


def test_peaks_by_data_type() -> None:
    """Half precision on tensor cores; float32 without, but where TF32 is allowed."""
    a100 = roofline.GPUS[0]
    assert (a100.peak(BF16), a100.peak(torch.float16)) == (312e12, 312e12)
    assert a100.peak(torch.float32) == 19.5e12
    assert a100.peak(torch.float32, tf32=True) == 156e12


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
    assert lines["workload"][3:] == ["A100", "H100", "H200", "B200", "measured", "bound"]
    bound = roofline.bound_seconds("W12x8")
    assert bound is not None
    assert lines["W12x8"][-2:] == ["0.538", f"{1e3 * bound:.3f}"] and lines["W4"][-1] == "-"
    roofline.main(["--measured", str(record(tmp_path))])
    text = capsys.readouterr().out
    [line] = [line.split() for line in text.splitlines() if line.startswith("W12x8")]
    assert line[-2:] == ["1.080", "0.50"]
