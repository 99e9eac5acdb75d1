"""The GPU suite's processes, played in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from workers import Job, Outcome


class Inline:
    """A worker that runs everything here and now."""

    calls: list[tuple[str, tuple[Any, ...]]] = []  # noqa: RUF012

    def __init__(self, threads: int = 1) -> None: ...

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Outcome:
        assert timeout > 0
        Inline.calls.append((function.__name__, arguments))
        try:
            return Outcome(function(*arguments), None, 0.1)
        except Exception as error:
            return Outcome(None, f"Traceback\n{error!r}", 0.1)

    def close(self) -> None: ...


def run_inline(
    jobs: Iterable[Job], count: int, deadline: float, done: Callable[[Job, Outcome], None]
) -> None:
    for job in jobs:
        done(job, Inline().call(job.function, *job.arguments, timeout=1.0))
