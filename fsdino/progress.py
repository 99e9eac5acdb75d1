"""Progress on stderr: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as LiveProgress

logger = logging.getLogger("fsdino.progress")

LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts work that takes a while; a context manager.

    Args:
        title: what is being done.
        total: how many units there are.
        done: units that an earlier, interrupted run finished.
        unit: what is counted, in the plural.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, unit: str = "images") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.first = self.done = done
        self._live: LiveProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Progress:
        self._began = self._said = time.monotonic()
        console = Console(stderr=True)
        if console.is_terminal:
            self._live = LiveProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self._task = self._live.add_task(
                self.title, total=self.total, completed=self.done, rate="", note=""
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished units; `note` is the newest thing worth knowing about them."""
        self.done += count
        if self._live is not None:
            self._live.update(self._task, advance=count, rate=self._rate_text(), note=note)
            return
        now = time.monotonic()
        if now - self._said >= LINE_EVERY or self.done == self.total:
            self._said = now
            parts = [f"{self.done}/{self.total} {self.unit}", self._rate_text()]
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / self._rate())} left")
            logger.info("%s: %s", self.title, ", ".join([*parts, *filter(None, [note])]))

    def _rate(self) -> float:
        elapsed = max(time.monotonic() - self._began, 1e-6)
        return max(self.done - self.first, 1e-6) / elapsed

    def _rate_text(self) -> str:
        rate = self._rate()
        return f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def duration(seconds: float) -> str:
    """Like "42 s", "3 min 20 s" or "5 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
