"""Processes that hang, die or lose the GPU take nothing else with them."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import workers
from workers import NOT_BEGUN, Job, Outcome, Worker, run_all


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.close()


def test_values_and_errors(worker: Worker) -> None:
    """A result, and the traceback of what failed; the process goes on."""
    process = worker.call(os.getpid, timeout=60).value
    assert worker.call(operator.add, 2, 3, timeout=60).value == 5
    failed = worker.call(operator.truediv, 1, 0, timeout=60)
    assert failed.value is None and "ZeroDivisionError" in str(failed.error) and not failed.late
    assert worker.call(os.getpid, timeout=60).value == process


def test_what_hangs_is_killed_and_what_dies_is_replaced(worker: Worker) -> None:
    """The next call has a new process."""
    process = worker.call(os.getpid, timeout=60).value
    late = worker.call(time.sleep, 1000, timeout=0.2)
    assert late.error == "no result after 0 s" and late.late
    second = worker.call(os.getpid, timeout=60).value
    dead = worker.call(os._exit, 3, timeout=60)
    assert "died" in str(dead.error) and not dead.late
    third = worker.call(os.getpid, timeout=60).value
    assert len({process, second, third}) == 3


@pytest.mark.slow
def test_jobs_end_in_any_process_and_late_ones_do_not_begin() -> None:
    """Every job is reported once, also those for which no time was left."""
    found: dict[Any, Outcome] = {}

    def done(job: Job, outcome: Outcome) -> None:
        assert job.key not in found
        found[job.key] = outcome

    jobs = [Job(number, operator.neg, (number,)) for number in range(5)]
    run_all(jobs, 2, time.monotonic() + 60, done)
    assert {key: outcome.value for key, outcome in found.items()} == {n: -n for n in range(5)}
    found.clear()
    run_all(jobs, 2, time.monotonic(), done)
    assert [outcome.error for outcome in found.values()] == [NOT_BEGUN] * 5
    assert all(outcome.late for outcome in found.values())


def test_a_lost_gpu_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access every further call would fail: the process says so and stops."""

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert workers._gpu_is_sound()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert not workers._gpu_is_sound()
    answers: list[Any] = []

    class Connection:
        def recv(self) -> Any:
            return operator.add, (1, 2)

        def send(self, answer: Any) -> None:
            answers.append(answer)

    workers._serve(Connection(), threads=torch.get_num_threads())  # type: ignore[arg-type]
    assert answers == [(3, None, False)]
