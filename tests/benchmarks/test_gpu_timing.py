"""What is timed: only right results, in turns, over rotating inputs; the GPU's part is played."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gpu_behaviours
import gpu_checks
import gpu_timing
import pytest
import torch
from torch import Tensor

from fake_gpu import CACHE_BYTES, TURN_MS, Graph
from fsdino.bench import workloads
from fsdino.bench.workloads import Workload

MINI = Workload("mini", batch=1, layers=2, grid=5, channels=16, block_channels=(8, 8))
BACK = replace(MINI, backward=True)
F32 = "float32"
BOTH = {"eager, contiguous", "eager, tokens", "reference, contiguous", "reference, tokens"}


def ones(inputs: Any) -> Tensor:
    return torch.ones(1, 8, 5, 5)


@pytest.mark.parametrize("workload", [MINI, BACK], ids=["forward", "backward"])
def test_a_row_of_the_chain(workload: Workload) -> None:
    """Both implementations in both layouts, checked and timed."""
    row = gpu_timing.chain_row(workload, F32, "cpu", ["reference"], 0.01, 0)
    assert (row["workload"], row["dtype"]) == ("mini", F32)
    assert row["implementations"].keys() == BOTH
    for result in row["implementations"].values():
        assert result["error"] <= 1 and 0 < result["low"] <= result["seconds"] <= result["high"]


def test_a_row_on_a_gpu(fake_gpu: str) -> None:
    """Each also as CUDA graphs, one for each set of inputs; the compiled code beside it."""
    row = gpu_timing.chain_row(BACK, F32, fake_gpu, ["reference"], 0.01, 0)
    assert row["implementations"].keys() == BOTH | {f"{name}, graph" for name in BOTH}
    for result in row["implementations"].values():
        assert result["seconds"] == pytest.approx(TURN_MS / 1e3 / result["calls"])
        assert result["calls"] == math.ceil(0.005 / (TURN_MS / 1e3))
    assert Graph.replays > 4


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what fails; the others are."""
    monkeypatch.setattr(gpu_timing, "_ours", lambda backend: ones)
    found = gpu_timing.chain_row(MINI, F32, "cpu", ["reference"], 0.01, 0)["implementations"]
    assert found["reference, tokens"].keys() == {"error"} and "seconds" in found["eager, tokens"]

    def broken(inputs: Any) -> Tensor:
        raise torch.OutOfMemoryError("much text")

    monkeypatch.setattr(gpu_timing, "_ours", lambda backend: broken)
    found = gpu_timing.chain_row(MINI, F32, "cpu", ["reference"], 0.01, 0)["implementations"]
    assert found["reference, tokens"] == {"failed": "out of memory"}
    assert "seconds" in found["eager, tokens"]


def test_rows_of_a_backend_with_one_op(correlates_only: str) -> None:
    """Its chain goes on with others' blocks; by op it is timed for what it has."""
    where = ("cpu", [correlates_only, "reference"])
    chain = gpu_timing.chain_row(MINI, F32, *where, 0.01, 0)["implementations"]
    assert all("seconds" in result for result in chain.values()) and len(chain) == 6
    stages = gpu_timing.stages_row(MINI, F32, *where, 0.01)["stages"]
    assert [name for name in stages if correlates_only in name] == [
        f"{correlates_only}, correlation"
    ]
    assert "reference, block 2" in stages
    peaks = gpu_timing.memory_row(MINI, F32, "fused-block", *where)["peaks"]
    assert "it has no correlation_center_pivot4d" in peaks[correlates_only]["not_run"]
    gpu_timing.warm(replace(MINI, grid=38, layers=1, channels=8), F32, "cpu", correlates_only)
    kernels = gpu_timing.kernels_row(MINI, F32, "cpu", correlates_only, "tokens")
    assert kernels["kernels"]


def test_a_graph_that_replays_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, fake_gpu: str
) -> None:
    """Its results are checked as well."""

    def capture(step: Callable[[], list[Tensor]], pool: Any = None) -> Any:
        return Graph(), [torch.zeros_like(t) for t in step()]

    monkeypatch.setattr(gpu_behaviours, "capture", capture)
    found = gpu_timing.chain_row(MINI, F32, fake_gpu, ["reference"], 0.01, 0)["implementations"]
    assert found["reference, tokens, graph"].keys() == {"error"}
    assert "seconds" in found["reference, tokens"]


def test_torch_compile_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that takes too long, and swallows the first interruption, is given up."""

    def compiled() -> Callable[..., Tensor]:
        def chain(inputs: Any) -> Tensor:
            end = time.monotonic() + 30
            for _ in range(2):
                try:
                    while time.monotonic() < end:
                        pass
                except TimeoutError:
                    swallowed.append(1)
            raise RuntimeError("wrapped")

        return chain

    swallowed: list[int] = []
    monkeypatch.setattr(gpu_timing, "_compiled", compiled)
    found = gpu_timing.chain_row(MINI, F32, "cpu", ["reference"], 0.01, 0.1)["implementations"]
    assert found["compiled, tokens"] == {"not_run": "no result after 0 s"}
    assert swallowed and "seconds" in found["reference, tokens"]


@pytest.mark.slow
def test_the_compiled_formulation() -> None:
    """torch.compile of the eager code gives its results, forward and backward."""
    found = gpu_timing.chain_row(BACK, F32, "cpu", ["reference"], 0.01, 300)["implementations"]
    assert all("seconds" in found[f"compiled, {layout}"] for layout in gpu_timing.LAYOUTS)


def test_layouts() -> None:
    """The same values; "tokens" has the channels innermost, as an encoder's output has."""
    inputs = workloads.make_inputs(MINI)
    tokens = gpu_timing.lay_out(inputs, "tokens")
    assert torch.equal(tokens.query, inputs.query) and inputs.query.is_contiguous()
    assert tokens.support.permute(0, 1, 3, 4, 2).is_contiguous()


def test_rotation(fake_gpu: str) -> None:
    """By hand: as many inputs as make twice the cache, between 2 and 6, all different."""
    size = 2 * 2 * 16 * 25 * 4
    assert size > CACHE_BYTES
    sets = gpu_timing._rotation(workloads.make_inputs(MINI), fake_gpu)
    assert len(sets) == 2 and not torch.equal(sets[0].query, sets[1].query)
    small = replace(MINI, layers=1, channels=1, grid=3)  # 72 bytes: 2000 / 72 is more than 6
    assert len(gpu_timing._rotation(workloads.make_inputs(small), fake_gpu)) == 6


def test_turns() -> None:
    """The steps alternate, calls rotate through the inputs, and the median is taken."""
    log: list[tuple[str, int]] = []
    steps = {name: lambda i, name=name: log.append((name, i)) for name in "ab"}
    found = gpu_timing.take_turns(steps, 0, "cpu")
    assert found["a"]["rounds"] == gpu_timing.FEWEST_ROUNDS
    calls = gpu_timing.MOST_CALLS
    assert found["a"]["calls"] == calls
    rounds = log[4 : 4 + 4 * calls]
    assert [name for name, _ in rounds] == (["a"] * calls + ["b"] * calls) * 2
    assert [i for name, i in rounds if name == "b"] == list(range(2 * calls))
    assert gpu_timing.take_turns({}, 1, "cpu") == {}
    assert gpu_timing._summary([4.0, 1.0, 3.0, 2.0, 9.0, 5.0], 1) == {
        "seconds": 3.5, "low": 2.0, "high": 5.0, "rounds": 6, "calls": 1,
    }  # fmt: skip


def test_peak_memory(fake_gpu: str) -> None:
    """By hand: 1000 at most, 100 before, and 40 that are kept, counted once."""
    kept = torch.zeros(10)
    assert gpu_timing.peak_bytes(lambda: [kept, kept[:5]], fake_gpu) == 1000 - 100 - 40


@pytest.mark.parametrize("part", ["chain", "fused-block", "fused-chain", "fused-gradients"])
def test_memory_rows(part: str, fake_gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right results are measured, wrong ones are not."""
    row = gpu_timing.memory_row(MINI, F32, part, fake_gpu, ["reference"])
    assert row["peaks"].keys() == {"eager", "reference"}
    assert all(peak["error"] <= 1 and peak["bytes"] < 900 for peak in row["peaks"].values())
    step = gpu_timing._memory_step

    def wrong(part: str, name: str, inputs: Any) -> Callable[[], list[Tensor]]:
        right = step(part, name, inputs)
        return (lambda: [t * 2 for t in right()]) if name == "reference" else right

    monkeypatch.setattr(gpu_timing, "_memory_step", wrong)
    row = gpu_timing.memory_row(MINI, F32, part, fake_gpu, ["reference"])
    assert "bytes" in row["peaks"]["eager"] and "bytes" not in row["peaks"]["reference"]


@pytest.mark.parametrize("large", [2**31, 10])
def test_scaling(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole results are checked, or slices where the whole would not fit."""
    monkeypatch.setattr(gpu_timing, "LARGE", large)
    monkeypatch.setattr(gpu_checks, "check_rows", lambda *sizes: 0.25)
    row = gpu_timing.scaling_row(MINI, F32, "cpu", ["reference", "auto"], 0.01)
    found = row["implementations"]
    assert found.keys() == {"reference", "auto", "eager"}
    assert all("seconds" in f for f in found.values())
    assert all((found[name]["error"] == 0.25) == (large == 10) for name in ("reference", "auto"))
    assert row["flop"] == sum(MINI.flop().values())


def test_wrong_slices_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wrong results."""
    monkeypatch.setattr(gpu_timing, "LARGE", 10)
    monkeypatch.setattr(gpu_checks, "check_rows", lambda *sizes: 3.0)
    found = gpu_timing.scaling_row(MINI, F32, "cpu", ["reference"], 0.01)["implementations"]
    assert found["reference"] == {"error": 3.0} and "seconds" in found["eager"]


def test_stages_and_kernels() -> None:
    """Seconds of each op, and of what the profiler saw."""
    stages = gpu_timing.stages_row(MINI, F32, "cpu", ["reference", "auto"], 0.01)["stages"]
    names, whose = ("correlation", "block 1", "block 2"), ("eager", "reference", "auto")
    assert stages.keys() == {f"{who}, {name}" for who in whose for name in names}
    row = gpu_timing.kernels_row(MINI, F32, "cpu", "reference", "tokens")
    counted = [k["kernel"] for k in row["kernels"]].count("fsdino::squeeze4d")
    assert row["in_order"] and counted == 1 and row["seconds"] > 0


def test_kernels_that_differ_from_run_to_run_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: five runs launch a six times and b four times, 10 microseconds each."""
    events = [
        SimpleNamespace(
            name="ab"[i in {1, 3, 4, 8}],
            device_type=torch.autograd.DeviceType.CPU,
            time_range=SimpleNamespace(start=i, elapsed_us=lambda: 10.0),
        )
        for i in range(10)
    ]

    class Profile:
        def __init__(self, activities: list[Any]) -> None: ...

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *_: object) -> None: ...

        def events(self) -> list[Any]:
            return events

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    row = gpu_timing.kernels_row(MINI, F32, "cpu", "reference", "tokens")
    seconds = {k["kernel"]: k["seconds"] for k in row["kernels"]}
    assert seconds == {"a": pytest.approx(12e-6), "b": pytest.approx(8e-6)}


def test_ceilings(fake_gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, on a GPU whose turns take 8 ms; TF32 is switched back."""
    monkeypatch.setattr(torch, "randn", lambda *shape, device: torch.empty(2, 2, 2))
    monkeypatch.setattr(torch, "mm", lambda *factors: None)
    found = gpu_timing.ceilings(fake_gpu, 0.01)
    assert found["flop_per_second"].keys() == {"bfloat16", "float16", "float32", "tf32"}
    assert found["flop_per_second"]["bfloat16"] == pytest.approx(2 * 8192**3 / 8e-3)
    assert found["bytes_per_second"] == pytest.approx(2 * 32 / 8e-3)
    assert (found["architecture"], found["multiprocessors"]) == (90, 132)
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


def test_warming_runs_what_will_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain in both layouts, and where it is measured the fused op."""
    ran: list[str] = []
    monkeypatch.setattr(gpu_timing, "_call", lambda chain, inputs: ran.append("chain"))
    monkeypatch.setattr(gpu_timing, "_memory_step", lambda part, *_: lambda: ran.append(part))
    gpu_timing.warm(MINI, F32, "cpu", "reference")
    assert ran == ["chain", "chain"]
    gpu_timing.warm(replace(MINI, grid=38, channels=1), F32, "cpu", "reference")
    assert ran[2:] == ["chain", "chain", "fused-block", "fused-gradients"]
