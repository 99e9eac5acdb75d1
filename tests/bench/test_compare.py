"""The benchmark: no time beside a wrong result, and fair turns."""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fsdino import contract, ops
from fsdino.bench import baseline, compare, workloads
from fsdino.bench.compare import Bench, Comparison, Timing
from fsdino.bench.workloads import PARTS, WORKLOADS, Workload
from fsdino.devices import DTYPES, find_dtype
from fsdino.errors import BackendError, UsageError
from fsdino.ops import backends, reference
from fsdino.ops.backends import Backend

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
MINI = Workload("mini", batch=1, layers=2, grid=7, channels=16, block_channels=(8, 16))
MINI_BACKWARD = Workload("mini-t", 1, 2, grid=7, channels=16, block_channels=(8, 16), backward=True)


@pytest.fixture(autouse=True)
def small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of the machine is of no interest here."""
    monkeypatch.setitem(compare._SGEMM_SIDE, "cpu", 64)


def here() -> list[str]:
    """Backends beside the baseline that can run here: the extension may not be built."""
    names = [name for name in backends.names() if name != "eager"]
    return [n for n in names if backends.why_not(n, "correlation4d", CPU, torch.float32) is None]


def add_backend(monkeypatch: pytest.MonkeyPatch, name: str, why: str | None = None, **changes: Any):
    """A backend like the reference, except for some functions."""
    module = types.ModuleType(f"backend_{name}")
    for function in contract.FUNCTIONS:
        setattr(module, function, changes.get(function, getattr(reference, function)))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    backend = Backend(name, -1, module.__name__, lambda op, device, dtype: why)
    monkeypatch.setitem(backends._registry, name, backend)


@pytest.mark.parametrize("workload", [MINI, MINI_BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", [*map(find_dtype, DTYPES)], ids=str)
def test_correct_backends_are_timed(workload: Workload, dtype: torch.dtype):
    """Eager comes first, every implementation is timed as often, ratios are against eager."""
    found = compare.compare(workload, device=CPU, dtype=dtype, rounds=3)
    assert [timing.name for timing in found.timings] == ["eager", *here()]
    assert all(timing.passed and len(timing.seconds) == 3 for timing in found.timings)
    assert found.ratio(found.timings[0]) == 1


def slightly_off(*args: Any) -> torch.Tensor:
    return reference.correlation4d(*args) * 1.00001


def one_element_off(*args: Any) -> torch.Tensor:
    y, *rest = reference.center_pivot_block4d(*args)
    y = y.clone()
    y.view(-1)[0] += 1e-3 * y.abs().max()
    return y, *rest


def not_a_number(*args: Any) -> torch.Tensor:
    y, *rest = reference.center_pivot_block4d(*args)
    return torch.full_like(y, float("nan")), *rest


def wrong_gradient(*args: Any) -> tuple[torch.Tensor, ...]:
    first, *rest = reference.center_pivot_block4d_backward(*args)
    return first, *(1.001 * grad for grad in rest)


@pytest.mark.parametrize(
    ("workload", "changes"),
    [
        (MINI, {"correlation4d": slightly_off}),
        (MINI, {"center_pivot_block4d": one_element_off}),
        (MINI, {"center_pivot_block4d": not_a_number}),
        (MINI_BACKWARD, {"center_pivot_block4d_backward": wrong_gradient}),
    ],
    ids=["correlation", "one element", "NaN", "gradient"],
)
def test_wrong_results_are_not_timed(monkeypatch, workload, changes):
    """A backend that fails its check has an error above 1 and no seconds; others go on."""
    add_backend(monkeypatch, "wrong", **changes)
    found = compare.compare(workload, device=CPU, rounds=2)
    by_name = {timing.name: timing for timing in found.timings}
    assert by_name["wrong"].error > 1
    assert (by_name["wrong"].seconds, by_name["wrong"].median) == ((), None)
    assert found.ratio(by_name["wrong"]) is None
    assert by_name["reference"].passed
    assert by_name["reference"].median is not None


def test_a_wrong_baseline_is_not_timed(monkeypatch):
    """The yardstick itself is checked too."""
    monkeypatch.setattr(baseline, "chain", lambda inputs: torch.ones(1, 16, 7, 7))
    found = compare.compare(MINI, device=CPU, rounds=1)
    assert found.timings[0].seconds == ()
    assert all(found.ratio(timing) is None for timing in found.timings)


def test_implementations_take_turns():
    """What slows the machine down for a while slows all of them down."""
    order: list[str] = []
    steps = {name: partial(order.append, name) for name in "ab"}
    seconds = compare.take_turns(steps, 3, CPU, "time")
    assert order == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_the_large_product_takes_part_in_the_first_rounds():
    """A thousand rounds of a tiny workload do not wait for a thousand of them."""
    seconds = compare.take_turns({"a": int, "sgemm": int}, 7, CPU, "time")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 7, "sgemm": 5}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("workload", [MINI, MINI_BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("foreground", [None, 0.2])
def test_every_part_is_checked_and_timed(part, workload, foreground):
    """Right results pass, with either kind of weights; speed is work over time."""
    found = Bench(workload, device=CPU, foreground=foreground).compare(part, rounds=2)
    assert (found.part, found.foreground) == (part, foreground)
    assert all(timing.passed and len(timing.seconds) == 2 for timing in found.timings)
    reference = found.timings[-1]
    assert found.speed(reference) == found.flop / statistics.median(reference.seconds)
    assert 0 < found.peak < float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norm_after_the_fused_op_is_exact_enough_in_half_precision(dtype):
    """It is applied in place, to a rounded convolution."""
    found = Bench(MINI, device=CPU, dtype=dtype).compare("fused-block", rounds=1)
    assert all(timing.passed for timing in found.timings)


@pytest.mark.parametrize(
    ("part", "function"),
    [
        ("correlation", "correlation4d"),
        ("blocks", "center_pivot_block4d"),
        ("blocks-contiguous", "center_pivot_block4d"),
        ("fused-block", "correlation_center_pivot4d"),
        ("fused-chain", "correlation_center_pivot4d"),
    ],
)
def test_every_part_runs_its_own_op(monkeypatch, part, function):
    """An op that returns zeros fails the parts that use it."""

    def zeros(*args: Any) -> Any:
        result = getattr(reference, function)(*args)
        return result * 0 if isinstance(result, torch.Tensor) else (result[0] * 0, *result[1:])

    add_backend(monkeypatch, "zeros", **{function: zeros})
    found = Bench(MINI, device=CPU).compare(part, rounds=1)
    errors = {timing.name: timing.error > 1 for timing in found.timings}
    assert errors == {"eager": False, **dict.fromkeys(here(), False), "zeros": True}


def test_blocks_get_the_memory_layout_of_their_backend(monkeypatch):
    """A backend may lay its correlation out as its blocks like it; once more, all contiguous."""
    layouts: list[bool] = []

    def query_innermost(*args: Any) -> torch.Tensor:
        y = reference.correlation4d(*args)
        return y.permute(0, 1, 4, 5, 2, 3).contiguous().permute(0, 1, 4, 5, 2, 3)

    def block(x: torch.Tensor, *args: Any) -> Any:
        if x.shape[1] == MINI.layers:
            layouts.append(x.is_contiguous())
        return reference.center_pivot_block4d(x, *args)

    changes = {"correlation4d": query_innermost, "center_pivot_block4d": block}
    add_backend(monkeypatch, "other", **changes)
    bench = Bench(MINI, device=CPU)
    for part, contiguous in (("blocks", False), ("blocks-contiguous", True)):
        layouts.clear()
        bench.compare(part, rounds=1, only=["other"])
        assert set(layouts) == {contiguous}


def test_operations_of_the_parts():
    """W12's published counts; backward, features frozen, each block's again, twice with its input.

    Forward 34.5 + 3.4 + 5.0 + 10.1 GFLOP; backward 3.4 + 2 x 5.0 + 2 x 10.1.
    """
    w12, t12 = WORKLOADS["W12"], WORKLOADS["T12"]
    gflop = {part: compare._flop(w12, part) / 1e9 for part in PARTS}
    expected = {
        "chain": 34.5 + 18.5,
        "correlation": 34.5,
        "blocks": 18.5,
        "blocks-contiguous": 18.5,
        "fused-block": 34.5 + 3.4,
        "fused-chain": 34.5 + 18.5,
    }
    assert gflop == pytest.approx(expected, abs=0.15)  # they are published with one decimal
    backward = (compare._flop(t12, "chain") - compare._flop(w12, "chain")) / 1e9
    assert backward == pytest.approx(33.6, abs=0.2)


@pytest.mark.parametrize("part", ["chain", "correlation"])
def test_threads_come_back(monkeypatch, part):
    """The requested number while it runs, the caller's afterwards, also after an error."""
    seen: list[int] = []

    def correlation4d(*args: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return reference.correlation4d(*args)

    add_backend(monkeypatch, "other", correlation4d=correlation4d)
    before = torch.get_num_threads()
    found = Bench(MINI, device=CPU).compare(part, threads=before + 1, rounds=1)
    assert set(seen) == {before + 1} == {found.threads}
    assert torch.get_num_threads() == before
    add_backend(monkeypatch, "broken", correlation4d=lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Bench(MINI, device=CPU).compare(part, threads=before + 1, rounds=1)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux")
def test_memory_of_a_workload():
    """By hand: eager stacks two volumes, so that beside its result there is as much once more."""
    wide = Workload("wide", batch=1, layers=2, grid=41, channels=2, block_channels=(4,))
    size = 2 * 41**4 * 4  # 22.6 MB
    bench = Bench(wide, device=CPU)
    found = bench.compare("correlation", rounds=1, only=["reference"], measure_memory=True)
    by_eager, reference = (timing.memory for timing in found.timings)
    assert by_eager == pytest.approx(size, rel=0.1)
    assert reference > 0
    assert found.to_dict()["timings"][0]["memory"] == by_eager


def test_memory_of_wrong_results_is_not_measured(monkeypatch):
    """As their time."""
    monkeypatch.setattr(baseline, "chain", lambda inputs: torch.ones(1, 16, 7, 7))
    monkeypatch.setattr(compare.memory, "in_new_process", lambda *args: 123)
    found = Bench(MINI, device=CPU).compare(rounds=1, measure_memory=True)
    assert [timing.memory for timing in found.timings][:2] == [None, 123]
    [row] = [row for row in found.to_dict()["timings"] if row["name"] == "eager"]
    numbers = ("seconds", "median", "ratio", "gflops", "share_of_peak", "memory")
    assert all(not row[key] for key in numbers)


def test_backends_that_cannot_run_say_why(monkeypatch):
    """They are listed with their reason, and an error when asked for by name."""
    add_backend(monkeypatch, "gpu", why="it needs a GPU")
    found = compare.compare(MINI, device=CPU, rounds=1)
    assert found.missing["gpu"] == "it needs a GPU"
    assert "gpu" not in {timing.name for timing in found.timings}
    with pytest.raises(BackendError, match="'gpu' cannot run squeeze4d here: it needs a GPU"):
        compare.compare(MINI, device=CPU, only=["gpu"])


def test_only_the_asked_backends_run(monkeypatch):
    """And the baseline, which they are compared with."""
    add_backend(monkeypatch, "other")
    found = compare.compare(MINI, device=CPU, rounds=1, only=["other"])
    assert [timing.name for timing in found.timings] == ["eager", "other"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backward", "counts"), [(False, (1, 2)), (True, (2,))], ids=["forward", "backward"]
)
def test_the_compiled_baseline(backward, counts):
    """Checked like the eager one, compiled for each thread count, and timed in the same turns."""
    workload = dataclasses.replace(MINI, block_channels=(8,), backward=backward)
    bench = Bench(workload, device=CPU, dtype=torch.bfloat16)
    for threads in counts:
        found = bench.compare(threads=threads, rounds=2, only=["reference"], compiled=True)
        names = {timing.name: len(timing.seconds) for timing in found.timings}
        assert names == {"eager": 2, "compiled": 2, "reference": 2} and found.threads == threads
        errors = [timing.error for timing in found.timings[:2]]
        assert min(errors) > 0 and max(errors) < 1


def test_the_compiled_baseline_runs_in_the_threads_of_the_comparison(monkeypatch):
    """Inductor writes their number into its code; nothing compiled for another number is left."""
    given: list[Any] = []
    resets: list[None] = []

    def spy(function, *, dynamic, options: dict[str, Any]):
        given.append((dynamic, options))
        return function

    monkeypatch.setattr(torch, "compile", spy)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(None))
    for threads in (1, 3):
        Bench(MINI, device=CPU).compare(threads=threads, rounds=1, only=["eager"], compiled=True)
    assert given == [(False, {"cpp.threads": 1}), (False, {"cpp.threads": 3})]
    assert len(resets) == 2


def test_a_compiled_baseline_that_is_wrong_is_not_timed(monkeypatch):
    """By the yardstick's own check."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *a: function(*a) * 1.1)
    found = Bench(MINI, device=CPU).compare(rounds=1, only=["eager"], compiled=True)
    assert [(timing.name, timing.passed) for timing in found.timings] == [
        ("eager", True), ("compiled", False),
    ]  # fmt: skip


def test_without_a_compiler_the_column_says_why(monkeypatch):
    """On one line, and everything else is timed."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("Failed to find\nC++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    found = Bench(MINI, device=CPU).compare(rounds=1, only=["reference"], compiled=True)
    assert [timing.name for timing in found.timings] == ["eager", "reference"]
    assert found.missing == {"compiled": "torch.compile failed: Failed to find C++ compiler"}


def test_auto_can_be_timed():
    """What a call takes that names no backend, beside the others."""
    found = compare.compare(MINI, device=CPU, rounds=1, only=["auto", "reference"])
    assert [timing.name for timing in found.timings] == ["eager", "auto", "reference"]
    assert all(timing.passed for timing in found.timings)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "correlation"])
def test_the_baseline_of_float16_is_that_of_float32(part, monkeypatch):
    """Converted there and back, since PyTorch's own convolutions in float16 are slower on a CPU."""
    inputs = workloads.make_inputs(MINI, dtype=torch.float16)
    wide = workloads.make_inputs(MINI, dtype=torch.float16)
    wide = dataclasses.replace(
        wide,
        **{name: getattr(wide, name).float() for name in ("query", "support", "support_weight")},
        blocks=tuple(workloads.Block(*(t.float() for t in b.tensors())) for b in wide.blocks),
    )
    seen = []
    conv2d = torch.nn.functional.conv2d
    monkeypatch.setattr(
        "torch.nn.functional.conv2d",
        lambda x, *a, **k: (seen.append(x.dtype), conv2d(x, *a, **k))[1],
    )
    found = baseline.make_run(part, inputs)()
    assert set(seen) == {torch.float32} and found.dtype == torch.float16
    if not part.startswith("blocks"):  # whose correlation is made in float16 before
        assert torch.equal(found, baseline.make_run(part, wide)().half())


def test_the_baseline_is_no_second_column():
    """The backend `eager` and the baseline are one, asked for by name or not, in every dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        found = compare.compare(MINI, device=CPU, dtype=dtype, rounds=1, only=["eager"])
        assert [timing.name for timing in found.timings] == ["eager"]
        found = compare.compare(MINI, device=CPU, dtype=dtype, rounds=1)
        assert [timing.name for timing in found.timings].count("eager") == 1
        assert "eager" not in found.missing


def test_the_forced_backend_comes_back():
    """Timing a backend leaves the caller's choice as it was."""
    with ops.use_backend("reference"):
        compare.compare(MINI, device=CPU, rounds=1)
        assert backends.select("correlation4d", torch.zeros(1)) == "reference"


def test_mistakes_are_named():
    """Unknown backends and parts, no rounds, no threads."""
    with pytest.raises(UsageError, match="unknown backend 'fast'"):
        compare.compare(MINI, device=CPU, only=["fast"])
    with pytest.raises(UsageError, match="rounds must be at least 1, got 0"):
        compare.compare(MINI, device=CPU, rounds=0)
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        Bench(MINI, device=CPU).compare(threads=0)
    with pytest.raises(UsageError, match="unknown part 'half': choose from chain, correlation"):
        Bench(MINI, device=CPU).compare("half")


def test_medians_and_ratios():
    """By hand: medians 4 and 2, so twice as fast; an outlier changes nothing."""
    slow, fast = Timing("eager", 0.1, (4.0, 3.0, 90.0)), Timing("fast", 0.5, (2.0, 1.0, 3.0))
    found = Comparison("W6", "float32", "cpu", (slow, fast), {}, flop=8e9, peak=16e9)
    assert (slow.median, fast.median, found.ratio(fast)) == (4.0, 2.0, 2.0)
    rows = found.to_dict()["timings"]
    keys = ("name", "ratio", "passed", "gflops", "share_of_peak")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("eager", 1.0, True, 2.0, 0.125),
        ("fast", 2.0, True, 4.0, 0.25),
    ]


def test_the_documented_command(tmp_path):
    """`pytest benchmarks --benchmark-only` runs, and records every row and what it depends on."""
    record = tmp_path / "record.json"
    options = ["--workloads", "tiny", "--threads", "1", "--rounds", "1", "--no-compile"]
    options += ["--record", str(record)]
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(record.read_text())
    assert len(found["results"]) == 3  # correlation, block, fused
    assert "tiny, float32, cpu, 1 thread, weights ±1, correlation" in run.stdout
    for row in found["results"]:
        timed = {timing["name"]: timing["rounds"] for timing in row["timings"]}
        assert timed.keys() == {"eager", *backends.names()} - row["missing"].keys()
    assert shlex.split(found["command"])[:2] == ["pytest", "benchmarks"]
    assert {"torch", "processor"} <= found["environment"].keys()
    assert {"commit", "changed"} == found["source"].keys()
    assert {"processor", "cores", "instruction_set"} == found["machine"].keys()
