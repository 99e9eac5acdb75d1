"""The benchmark: no time beside a wrong result, and fair turns."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from fsdino import ops
from fsdino.apps import benchmark
from fsdino.apps.benchmark import Comparison, Timing
from fsdino.errors import BackendError, UsageError
from fsdino.ops import backends, baseline, reference
from fsdino.ops.backends import Backend
from fsdino.ops.baseline import Workload

CPU = torch.device("cpu")
MINI = Workload("mini", batch=1, layers=2, grid=7, channels=16, block_channels=(8, 16))
MINI_BACKWARD = Workload("mini-t", 1, 2, grid=7, channels=16, block_channels=(8, 16), backward=True)


def add_backend(monkeypatch: pytest.MonkeyPatch, name: str, why: str | None = None, **changes: Any):
    """A backend like the reference, except for some functions."""
    module = types.ModuleType(f"backend_{name}")
    for function in backends.FUNCTIONS:
        setattr(module, function, changes.get(function, getattr(reference, function)))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    backend = Backend(name, -1, module.__name__, lambda op, device, dtype: why)
    monkeypatch.setitem(backends._registry, name, backend)


@pytest.mark.parametrize("workload", [MINI, MINI_BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", benchmark.FORWARD_BOUND, ids=str)
def test_correct_backends_are_timed(workload: Workload, dtype: torch.dtype):
    """Eager comes first, every implementation is timed as often, ratios are against eager."""
    found = benchmark.compare(workload, device=CPU, dtype=dtype, repeats=3)
    assert [timing.name for timing in found.timings] == ["eager", *backends.names()]
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
    found = benchmark.compare(workload, device=CPU, repeats=2)
    by_name = {timing.name: timing for timing in found.timings}
    assert by_name["wrong"].error > 1
    assert (by_name["wrong"].seconds, by_name["wrong"].median) == ((), None)
    assert found.ratio(by_name["wrong"]) is None
    assert by_name["reference"].passed
    assert by_name["reference"].median is not None


def test_a_wrong_baseline_is_not_timed(monkeypatch):
    """The yardstick itself is checked too."""
    monkeypatch.setattr(baseline, "chain", lambda inputs: torch.ones(1, 16, 7, 7))
    found = benchmark.compare(MINI, device=CPU, repeats=1)
    assert found.timings[0].seconds == ()
    assert all(found.ratio(timing) is None for timing in found.timings)


def test_implementations_take_turns():
    """What slows the machine down for a while slows all of them down."""
    order: list[str] = []

    def run(name: str) -> Any:
        return lambda: order.append(name) or torch.zeros(1)

    inputs = baseline.make_inputs(MINI)
    seconds = benchmark._time(MINI, inputs, {"a": run("a"), "b": run("b")}, repeats=3)
    assert order == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_backends_that_cannot_run_say_why(monkeypatch):
    """They are listed with their reason, and an error when asked for by name."""
    add_backend(monkeypatch, "gpu", why="it needs a GPU")
    found = benchmark.compare(MINI, device=CPU, repeats=1)
    assert found.missing == {"gpu": "it needs a GPU"}
    with pytest.raises(BackendError, match="'gpu' cannot run mini here: it needs a GPU"):
        benchmark.compare(MINI, device=CPU, only=["gpu"])


def test_only_the_asked_backends_run(monkeypatch):
    """And the baseline, which they are compared with."""
    add_backend(monkeypatch, "other")
    found = benchmark.compare(MINI, device=CPU, repeats=1, only=["other"])
    assert [timing.name for timing in found.timings] == ["eager", "other"]


def test_the_forced_backend_comes_back():
    """Timing a backend leaves the caller's choice as it was."""
    with ops.use_backend("reference"):
        benchmark.compare(MINI, device=CPU, repeats=1)
        assert backends.select("correlation4d", torch.zeros(1)) == "reference"


def test_mistakes_are_named():
    """Unknown workloads and backends, and no repeats."""
    with pytest.raises(UsageError, match="unknown workload 'W5': choose from W4, W6"):
        benchmark.find_workloads(["W6", "W5"])
    with pytest.raises(UsageError, match="no workload given"):
        benchmark.find_workloads([])
    with pytest.raises(UsageError, match="unknown backend 'fast'"):
        benchmark.compare(MINI, device=CPU, only=["fast"])
    with pytest.raises(UsageError, match="repeats must be at least 1, got 0"):
        benchmark.compare(MINI, device=CPU, repeats=0)


def test_medians_and_ratios():
    """By hand: medians 4 and 2, so twice as fast; an outlier changes nothing."""
    eager, fast = Timing("eager", 0.1, (4.0, 3.0, 90.0)), Timing("fast", 0.5, (2.0, 1.0, 3.0))
    found = Comparison("W6", "float32", "cpu", (eager, fast), {})
    assert (eager.median, fast.median, found.ratio(fast)) == (4.0, 2.0, 2.0)
    rows = found.to_dict()["timings"]
    assert [(row["name"], row["ratio"], row["passed"]) for row in rows] == [
        ("eager", 1.0, True),
        ("fast", 2.0, True),
    ]


def test_errors_are_measured_by_the_contract():
    """By hand: norm error, absolute for a zero reference, and 30 times that for one element."""
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert benchmark._norm_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)
    zero = torch.zeros(2, dtype=torch.float64)
    assert benchmark._norm_error(torch.tensor([0.0, 0.25]), zero) == pytest.approx(0.25)
    # The element is off by 0.5 / 4 of the largest: 0.125 / (30 * 0.01), less than the norm's 10.
    assert benchmark._error(torch.tensor([3.0, 4.5]), exact, 0.01) == pytest.approx(10)
    many = torch.ones(10000, dtype=torch.float64)
    spike = many.clone()
    spike[0] += 0.6  # norm error 0.006 of 0.01 allowed, but 0.6 of 0.3 for the element
    assert benchmark._error(spike, many, 0.01) == pytest.approx(2)
    assert benchmark._error(torch.ones(3), exact, 0.01) == float("inf")
