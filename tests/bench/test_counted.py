"""What the Triton kernels execute: by hand, and within the budgets on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fsdino.bench.workloads import WORKLOADS

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

RECORD = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gpu-counts.json"
SLACK = 1.01  # compilers differ in a few instructions


def test_the_bound_of_one_launch() -> None:
    """The longest of its four parts."""
    from fsdino.bench.counted import Count

    def bound(**sizes: float) -> float:
        given = {"instructions": 0.0, "executed": 0.0, "memory": 0.0, "l2": 0.0, **sizes}
        return Count("k", "", programs=10, warps=4, flop=0.0, resident=1, code=0, **given).bound  # type: ignore[arg-type]

    assert bound(executed=790e12, l2=1.0) == 1
    assert bound(memory=4.3e12, l2=4.3e12) == 1
    assert bound(l2=7e12, executed=1e12) == 1
    assert bound(instructions=132 * 4 * 1.75e9 / 40) == 1


def test_programs_on_a_multiprocessor() -> None:
    """By registers, shared memory, warps."""
    from fsdino.bench.counted import resident

    assert resident(registers=255, shared=0, warps=8, architecture=90) == 1
    assert resident(registers=32, shared=0, warps=4, architecture=90) == 16
    assert resident(registers=32, shared=100 * 1024, warps=4, architecture=90) == 2
    assert resident(registers=32, shared=100 * 1024, warps=4, architecture=80) == 1


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_steps_of_the_walk(kind: str) -> None:
    """18 taps, or 18 of the four classes together, times parts of the channels."""
    from fsdino.bench.counted import TRIPS

    values = {
        "KERNEL_QUERY": 3, "KERNEL_SUPPORT": 3, "STRIDE": 2, "CI": 64, "BLOCK_CI": 32,
        "out_rows": 19, "out_columns": 19, "DIRECTION": 1 if kind == "forward" else -1,
    }  # fmt: skip
    assert TRIPS["walk_kernel"](values) == [36 if kind == "forward" else 9]


@pytest.mark.parametrize(
    "layers, written, dtype, expected",
    [
        (12, 2, torch.bfloat16, 24 / 4),  # all sectors, for 4 bytes of each 24
        (12, 4, torch.bfloat16, 24 / 8),
        (24, 4, torch.bfloat16, 32 / 8),  # a sector, for 8 bytes of each 48
        (2, 2, torch.float16, 1),
        (12, 1, torch.float32, 32 / 4),
    ],
)
def test_sectors_of_a_store(layers: int, written: int, dtype: torch.dtype, expected: float) -> None:
    """By hand."""
    from fsdino.bench.counted import _sectors

    values = {"p_out": torch.empty(0, dtype=dtype), "LAYERS": written, "L": layers}
    assert _sectors(values) == expected


def test_an_expanded_tensor_is_read_once() -> None:
    """Shots of one query lie in memory once."""
    from fsdino.bench.counted import _bytes

    assert _bytes(torch.empty(1, 6, dtype=torch.float16).expand(5, 6)) == 12


@pytest.mark.parametrize("name", ["W6", "W12", "T12x8", "HR"])
def test_products_add_up(name: str) -> None:
    """To those of the definition, whatever the tiles; padding only adds to what is executed."""
    from fsdino.bench.counted import FLOP
    from fsdino.bench.inspect_triton import chain, recorded

    workload = WORKLOADS[name]
    flop = sum(workload.flop().values())
    if workload.backward:
        flop += sum(workload.backward_flop().values())
    launched = recorded(lambda: chain(workload, torch.bfloat16), 90).kernels
    counted = [
        FLOP[launch.kernel.__name__](launch.arguments)
        for launch in launched
        if launch.kernel.__name__ in FLOP
    ]
    assert sum(useful for useful, _ in counted) == pytest.approx(flop)
    assert all(executed >= useful for useful, executed in counted)


def outermost(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def innermost(*shape: int) -> Tensor:
    batch, layers, channels, *grid = shape
    return outermost(batch, layers, *grid, channels).permute(0, 1, 4, 2, 3)


def preparation(features: Tensor) -> Any:
    """The one launch that prepares query and support alike; PyTorch copies nothing beside it."""
    from fsdino.bench.inspect_triton import recorded
    from fsdino.kernels import correlation

    found = recorded(lambda: correlation.both(features, torch.empty_like(features), 1e-5), 90)
    assert found.others == []
    [launch] = found.kernels
    return launch


@pytest.mark.parametrize("memory, passes", [(innermost, 1), (outermost, 2)])
def test_bytes_of_a_preparation(memory: Callable[..., Tensor], passes: int) -> None:
    """Features of W12x8 are read once, and written once where their channels are outermost."""
    from fsdino.bench.counted import _bytes

    sizes = WORKLOADS["W12x8"]
    features = memory(sizes.batch, sizes.layers, sizes.channels, sizes.grid, sizes.grid)
    given = preparation(features).arguments.values()
    inverse = 4 * features.numel() // sizes.channels
    touched = sum(_bytes(value) for value in given if isinstance(value, Tensor))
    assert touched == 2 * (passes * features.nbytes + inverse)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [innermost, outermost])
def test_wide_loads_and_stores(memory: Callable[..., Tensor], monkeypatch: Any) -> None:
    """16 bytes at a time, where a plane has a multiple of 16 tokens; else every channel's tokens
    begin anywhere, and a warp reads 32 of them side by side."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from fsdino.bench.inspect_triton import compiled

    for side, load in ((16, "LDG.E.128"), (37, "LDG.E.U16")):
        code, _ = compiled(preparation(memory(2, 3, 768, side, side)), 90)
        [loop] = code.instructions.loops
        body = code.instructions.words[loop.first : loop.last + 1]
        used = {word.split()[0] for word in body if word.startswith(("LDG", "STG"))}
        assert used == ({"LDG.E.128"} if memory is innermost else {load, "STG.E.128"})


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_budgets(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No launch of a standard workload executes or moves more than what is on record."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from fsdino.bench import counted

    record = json.loads(RECORD.read_text(encoding="utf-8"))["counts"][f"sm_{architecture}"]
    assert set(record) == set(counted.NAMES)
    for name, rows in record.items():
        found = counted.counts(counted.WORKLOADS[name], torch.bfloat16, architecture)
        for row, budget in zip(map(counted.budget, found), rows, strict=True):
            assert row["kernel"] == budget["kernel"], (name, row, budget)
            for what in ("instructions", "l2", "microseconds"):
                assert row[what] <= SLACK * budget[what], (name, row, budget)
