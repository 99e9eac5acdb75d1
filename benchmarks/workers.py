"""Processes that run functions: one that hangs or dies is replaced, and takes nothing along."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from fsdino import processes as sharing

STOP_SECONDS = 10  # for a process to end by itself
NOT_BEGUN = "not begun: no time was left"


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes:
        value: what the function returned; None where it failed.
        error: its traceback, or what happened to its process; None where it returned.
        seconds: until then.
        late: whether it had no time, or not enough: it says nothing about the function.
    """

    value: Any
    error: str | None
    seconds: float
    late: bool = False


OUT_OF_TIME = Outcome(None, NOT_BEGUN, 0.0, late=True)


@dataclass(frozen=True)
class Job:
    """A call to be made: an importable function, and arguments that can be pickled."""

    key: Hashable
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


class Worker:
    """A fresh Python that runs one function after the other.

    Args:
        threads: of PyTorch in that process.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._process: Any = None
        self._connection: Connection | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Outcome:
        """`function(*arguments)`; after `timeout` seconds its process is killed."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._connection is not None
        began = time.monotonic()
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(max(timeout, 0.0)):
                self._kill()
                late = f"no result after {timeout:.0f} s"
                return Outcome(None, late, time.monotonic() - began, late=True)
            value, error, sound = self._connection.recv()
        except (EOFError, OSError) as gone:
            self._kill()
            return Outcome(None, f"its process died: {gone!r}", time.monotonic() - began)
        if not sound:
            self._kill()
        return Outcome(value, error, time.monotonic() - began)

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(STOP_SECONDS)
            self._kill()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._threads), daemon=True)
        self._process.start()
        theirs.close()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process = None


def run_all(
    jobs: Iterable[Job], count: int, deadline: float, done: Callable[[Job, Outcome], None]
) -> None:
    """Run jobs in so many processes, in their order, and report each as it ends.

    Args:
        jobs: what to run.
        count: of processes.
        deadline: by time.monotonic(); a job that has not begun or ended by then is reported so.
        done: called for every job, one at a time.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    lock = threading.Lock()

    def serve() -> None:
        worker = Worker()
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                break
            left = deadline - time.monotonic()
            outcome = OUT_OF_TIME
            if left > 0:
                outcome = worker.call(job.function, *job.arguments, timeout=left)
            with lock:
                done(job, outcome)
        worker.close()

    threads = [threading.Thread(target=serve) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(connection: Connection, threads: int) -> None:
    """The process: answer until the other end closes, or the GPU cannot be used any more."""
    with sharing.threads(threads):
        _answer(connection)


def _answer(connection: Connection) -> None:
    sound = True
    while sound:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        value = error = None
        try:
            value = function(*arguments)
        except Exception:
            error = traceback.format_exc()
        sound = _gpu_is_sound()
        connection.send((value, error, sound))


def _gpu_is_sound() -> bool:
    """Whether the process can go on: an illegal access ends all further use of the GPU."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
