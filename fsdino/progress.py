"""Progress on stderr: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as LiveProgress
    from rich.progress import TaskID

logger = logging.getLogger("fsdino.progress")

LINE_EVERY = 10.0  # seconds between plain lines

# What long work calls with (done, total).
Report = Callable[[int, int], None]


class Progress:
    """Counts work that takes a while; a context manager.

    Within another one that has the terminal, it writes lines.

    Args:
        title: what is being done.
        total: how many units there are; None if `report` will say so, or nobody knows.
        done: units that an earlier, interrupted run finished.
        unit: what is counted, in the plural.
        live: take the terminal where there is one; otherwise write lines there, too, as the
            library does for what it was not asked to show.
    """

    _shown: Progress | None = None  # the one that has the terminal

    def __init__(
        self,
        title: str,
        total: float | None = None,
        *,
        done: float = 0,
        unit: str = "images",
        live: bool = True,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.first = self.done = done
        self._wanted = live
        self._live: LiveProgress | None = None
        self._task: TaskID

    def __enter__(self) -> Progress:
        self._began = self._said = time.monotonic()
        if self.total is not None:
            self._show()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            Progress._shown = None

    def advance(self, count: float = 1, note: str = "") -> None:
        """Count finished units; `note` is the newest thing worth knowing about them."""
        self.done += count
        self._show()
        if self._live is not None:
            self._live.update(
                self._task,
                total=self.total,
                completed=self.done,
                rate=self._rate_text(),
                note=note,
            )
            return
        now = time.monotonic()
        ended = self.total is not None and self.done > self.total - 1e-6
        if now - self._said >= LINE_EVERY or ended:
            self._said = now
            logger.info("%s: %s", self.title, ", ".join(filter(None, [*self._parts(), note])))

    def report(self, done: float, total: float | None, note: str = "") -> None:
        """Count up to `done` of `total` units: what work calls that knows its own numbers.

        A number below the one before begins the next stage of the work.
        """
        if done < self.done:
            self.first = self.done = 0
            self._began = time.monotonic()
        self.total = total
        if done > self.done:
            self.advance(done - self.done, note)
        else:
            self._show()

    def _show(self) -> None:
        """Take the terminal, if there is one and nothing else has it."""
        if self._live is not None or not self._wanted or Progress._shown is not None:
            return
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            self._wanted = False
            return
        Progress._shown = self
        self._live = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}", markup=False),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._task = self._live.add_task(self.title, total=self.total, rate="", note="")
        self._live.update(self._task, completed=self.done)
        self._live.start()

    def _parts(self) -> list[str]:
        """Like "40/100 images", "4.0 images/s", "15 s left"."""
        count = f"{self.done:.0f}" if self.total is None else f"{self.done:.0f}/{self.total:.0f}"
        parts = [f"{count} {self.unit}", self._rate_text()]
        if self.total is not None and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / self._rate())} left")
        return parts

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
