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
from record import write_record

from fsdino import processes as sharing
from fsdino.bench.baseline import COMPILED, EAGER
from fsdino.bench.compare import Bench, Comparison
from fsdino.bench.table import print_comparison
from fsdino.bench.workloads import TINY, WORKLOADS
from fsdino.devices import DTYPES, find_dtype
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

    def comparison(self, case: Case) -> Comparison:
        if case not in self.done:
            rounds, last = self.config.getoption("--rounds"), self.config.getoption("--threads")[-1]
            dtype = find_dtype(self.config.getoption("--dtype"))
            rounds = {"tiny": TINY_ROUNDS * rounds, "HR": 1}.get(case.workload, rounds)
            self.done[case] = _bench(case.workload, case.weights, dtype).compare(
                case.part,
                threads=case.threads,
                rounds=rounds,
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
    implementations = (*first, *(name for name in backends.names() if name != EAGER))
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
    for comparison in config.stash[_KEY].done.values():
        print_comparison(comparison)


def _summary(comparison: Comparison) -> dict[str, Any]:
    """A comparison for the record: the seconds of all rounds as their number and range."""
    summary = comparison.to_dict()
    for row in summary["timings"]:
        seconds = row.pop("seconds")
        row |= {
            "rounds": len(seconds),
            "fastest": min(seconds, default=None),
            "slowest": max(seconds, default=None),
        }
    return summary


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path, done = session.config.getoption("--record"), session.config.stash[_KEY].done
    if path is None or exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        return
    write_record(
        path,
        shlex.join(["pytest", *session.config.invocation_params.args]),
        results=[_summary(comparison) for comparison in done.values()],
        machine={
            "cores": sharing.cores(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
    )
