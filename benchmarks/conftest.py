"""Time the 4D ops on the CPU: `pytest benchmarks --benchmark-only`.

`fsdino.bench.compare` does the measuring: all implementations of a case take turns in one process,
and none is timed whose results are wrong. Here its seconds are handed to pytest-benchmark, one test
for each implementation; the tables at the end also show ratio, speed and memory.
"""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fsdino.bench import plot
from fsdino.bench.baseline import COMPILED, EAGER
from fsdino.bench.compare import Bench, Comparison
from fsdino.bench.record import write_comparisons
from fsdino.bench.table import print_comparison
from fsdino.bench.workloads import TINY, WORKLOADS
from fsdino.devices import DTYPES, find_dtype
from fsdino.environment import devices
from fsdino.errors import FsdinoError
from fsdino.ops import backends

SUITE = {"tiny": TINY, **WORKLOADS}
TINY_ROUNDS = 200  # for each round of the others
WEIGHTS = {"ce": None, "foreground": 0.2}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fsdino", "timing the 4D ops")
    group.addoption(
        "--workloads",
        type=lambda text: text.split(","),
        default=["tiny", "W4", "W6", "W12", "T12", "HR"],
        help="by comma, of tiny and the standard workloads; default: tiny,W4,W6,W12,T12,HR",
    )
    group.addoption(
        "--backends",
        type=lambda text: text.split(","),
        default=(),
        help="only these, by comma, or auto; default: all that can run here",
    )
    group.addoption(
        "--threads",
        type=lambda text: [int(count) for count in text.split(",")],
        default=sorted({1, min(2, torch.get_num_threads())}),
        help="thread counts, by comma, the last one for memory; default: 1,2 where there are two",
    )
    group.addoption(
        "--rounds", type=int, default=5, help="of every implementation, 1 of HR; default: 5"
    )
    group.addoption(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time torch.compile of the eager formulation, too; default: yes",
    )
    group.addoption("--dtype", choices=DTYPES, default="float32", help="default: float32")
    group.addoption("--record", type=Path, help="JSON file to write, as in benchmarks/results/")
    group.addoption(
        "--plot",
        type=Path,
        help="picture to write, .svg or .png: also time the chain of W12 on grids of 19, 37 and 74 "
        "tokens a side, in float32 and bfloat16",
    )


@dataclass(frozen=True)
class Case:
    """What one comparison measures."""

    workload: str
    weights: str
    part: str
    threads: int


@dataclass
class Suite:
    """The comparisons of this session, each made when its first test asks for it."""

    config: pytest.Config
    done: dict[Case, Comparison] = field(default_factory=dict)
    plotted: list[Comparison] = field(default_factory=list)

    def comparison(self, case: Case) -> Comparison:
        if case not in self.done:
            rounds, last = self.config.getoption("--rounds"), self.config.getoption("--threads")[-1]
            dtype = find_dtype(self.config.getoption("--dtype"))
            rounds = {"tiny": TINY_ROUNDS * rounds, "HR": 1}.get(case.workload, rounds)
            self.done[case] = _bench(case.workload, case.weights, dtype).compare(
                case.part,
                threads=case.threads,
                rounds=rounds,
                only=self.config.getoption("--backends"),
                compiled=self.config.getoption("--compile"),
                measure_memory=case.threads == last and case.workload != "tiny",
            )
        return self.done[case]


@functools.lru_cache(maxsize=1)
def _bench(workload: str, weights: str, dtype: torch.dtype) -> Bench:
    """The cases of a workload follow each other: they share inputs and expected results."""
    return Bench(
        SUITE[workload], device=torch.device("cpu"), dtype=dtype, foreground=WEIGHTS[weights]
    )


_elapsed = 0.0


def clock() -> float:
    """The timer that pytest-benchmark reads: it advances by the seconds that were measured."""
    return _elapsed


def _advance(seconds: float) -> None:
    global _elapsed  # noqa: PLW0603
    _elapsed += seconds


_KEY = pytest.StashKey[Suite]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = Suite(config)
    unknown = set(config.getoption("--workloads")) - SUITE.keys()
    if unknown:
        raise pytest.UsageError(f"--workloads: choose from {', '.join(SUITE)}, not {min(unknown)}")
    names = (*backends.names(), "auto")
    unknown = set(config.getoption("--backends")) - {*names}
    if unknown:
        raise pytest.UsageError(f"--backends: choose from {', '.join(names)}, not {min(unknown)}")
    if config.getoption("--plot") is not None:
        try:
            plot.check_file(config.getoption("--plot"))
        except FsdinoError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cases of a file: its `parts` names those of a workload with one kind of weights."""
    if "case" not in metafunc.fixturenames:
        return
    threads = metafunc.config.getoption("--threads")
    cases = [
        Case(workload, weights, part, count)
        for workload in metafunc.config.getoption("--workloads")
        for weights in WEIGHTS
        for part in metafunc.module.parts(workload, weights)
        for count in (threads[-1:] if workload == "HR" else threads)
    ]
    ids = [f"{c.workload}-{c.weights}-{c.part}-{c.threads}" for c in cases]
    # The implementations of a case follow each other.
    first = (EAGER, COMPILED) if metafunc.config.getoption("--compile") else (EAGER,)
    named = metafunc.config.getoption("--backends") or backends.names()
    implementations = (*first, *(name for name in named if name != EAGER))
    both = [(case, name) for case in cases for name in implementations]
    names = [f"{i}-{name}" for i in ids for name in implementations]
    metafunc.parametrize(("case", "implementation"), both, ids=names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "measure" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=clock))


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Case, str], None]:
    """Report one implementation's share of a comparison."""

    def report(case: Case, implementation: str) -> None:
        comparison = request.config.stash[_KEY].comparison(case)
        if implementation in comparison.missing:
            pytest.skip(comparison.missing[implementation])
        [timing] = [t for t in comparison.timings if t.name == implementation]
        assert timing.passed, f"wrong by {timing.error:.2g} times the allowed, so not timed"
        [row] = [r for r in comparison.to_dict()["timings"] if r["name"] == implementation]
        keys = ("ratio", "gflops", "share_of_peak", "memory", "error")
        benchmark.extra_info.update({key: row[key] for key in keys})
        benchmark.group = comparison.title
        seconds = iter(timing.seconds)
        benchmark.pedantic(lambda: _advance(next(seconds)), rounds=len(timing.seconds))

    return report


def pytest_terminal_summary(config: pytest.Config) -> None:
    suite = config.stash[_KEY]
    for comparison in (*suite.done.values(), *suite.plotted):
        print_comparison(comparison)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config, suite = session.config, session.config.stash[_KEY]
    path, picture = config.getoption("--record"), config.getoption("--plot")
    if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        return
    if picture is not None:
        points = plot.measure(
            WORKLOADS["W12"],
            device=torch.device("cpu"),
            rounds=config.getoption("--rounds"),
            threads=config.getoption("--threads")[-1],
        )
        plot.draw(points, picture, devices()["cpu"])
        suite.plotted.extend(points.values())
    if path is not None:
        command = shlex.join(["pytest", *config.invocation_params.args])
        write_comparisons(path, command, [*suite.done.values(), *suite.plotted])
