"""Signals wait for the end of a step; the second Ctrl-C does not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from fsdino.training.interrupt import Interrupt, leave_to_trainer


def test_the_first_waits_and_the_second_does_not() -> None:
    """And the handlers of before are put back."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_cluster_may_ask_more_than_once() -> None:
    """torchrun sends SIGTERM after a Ctrl-C: the checkpoint must still be written."""
    with Interrupt() as interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interrupt.asked


def test_workers_finish_what_the_trainer_needs() -> None:
    """Both signals go to a whole group of processes; only the trainer takes note."""
    with Interrupt() as interrupt:
        leave_to_trainer(0)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert not interrupt.asked
            # A worker that hangs is gone before torchrun loses its patience; a second one ends it.
            assert 20 <= signal.alarm(0) < 30
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        finally:
            signal.alarm(0)


def test_forked_workers_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """They have the trainer's handler where nobody gave them one; the user is told once."""
    with caplog.at_level("INFO", logger="fsdino.training"), Interrupt() as interrupt:
        interrupt._process += 1
        interrupt._note(signal.SIGINT, None)
        interrupt._note(signal.SIGINT, None)
    assert not interrupt.asked and not caplog.text


def test_other_threads_have_no_signals() -> None:
    """A trainer in a thread still trains."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with Interrupt() as interrupt:
                assert not interrupt.asked
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
