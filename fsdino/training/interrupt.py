"""Ctrl-C and a cluster's SIGTERM: a step is finished first, so that what is saved is whole."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger("fsdino.training")


_GRACE = 25  # seconds; torchrun kills after 30


def leave_to_trainer(worker: int) -> None:
    """Both signals reach a loader's workers, too, but the step that is finished may need them.

    A worker ends with its loader, at a second SIGTERM, or some time after the first one.

    Args:
        worker: its number; this is a `worker_init_fn`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _outlive)


def _outlive(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(_GRACE)  # whose signal ends the process


class Interrupt:
    """Takes note of SIGINT and SIGTERM inside a `with`; a second SIGINT interrupts at once.

    In another thread than the main one, where Python delivers no signals, it does nothing.

    Attributes:
        asked: whether to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked meanwhile, by a validation, say
            return
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            logger.info("stopping after this step; Ctrl-C again stops at once")
        self.asked = True
