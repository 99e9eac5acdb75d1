"""Progress: rate and time left, readable without a terminal."""

from __future__ import annotations

import logging

import pytest

from fsdino import progress
from fsdino.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time as the test sets it."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_without_a_terminal(clock, caplog):
    """Every ten seconds and at the end, with the rate since the start and the time left."""
    caplog.set_level(logging.INFO, "fsdino")
    with Progress("segment", 100) as counted:
        for second in range(1, 26):
            clock[0] = float(second)
            counted.advance(4)
    assert caplog.messages == [
        "segment: 40/100 images, 4.0 images/s, 15 s left",
        "segment: 80/100 images, 4.0 images/s, 5 s left",
        "segment: 100/100 images, 4.0 images/s",
    ]


def test_a_resumed_run_counts_its_own_speed(clock, caplog):
    """What an earlier run did is in the count but not in the rate."""
    caplog.set_level(logging.INFO, "fsdino")
    with Progress("train", 1000, done=900, unit="steps") as counted:
        clock[0] = 20.0
        counted.advance(10, note="loss 0.5")
    assert caplog.messages == ["train: 910/1000 steps, 2.0 s each, 3 min 0 s left, loss 0.5"]


def test_work_that_says_how_far_it_is(clock, caplog):
    """Nothing is shown before its first number; a lower one begins the next stage."""
    caplog.set_level(logging.INFO, "fsdino")
    with Progress("read masks", unit="masks", live=False) as counted:
        clock[0] = 4.0
        counted.report(40, 400)
        assert not caplog.messages
        for second, done in ((10, 100), (12, 120), (21, 210), (40, 400)):
            clock[0] = float(second)
            counted.report(done, 400)
        clock[0] = 45.0
        counted.report(1, 2)
        clock[0] = 50.0
        counted.report(2, 2, "the end")
        counted.report(2, 2)
    assert caplog.messages == [
        "read masks: 100/400 masks, 10.0 masks/s, 30 s left",
        "read masks: 210/400 masks, 10.0 masks/s, 19 s left",
        "read masks: 400/400 masks, 10.0 masks/s",
        "read masks: 2/2 masks, 2.5 s each, the end",
    ]


def test_a_total_that_nobody_knows(clock, caplog):
    """A download whose size the server does not tell."""
    caplog.set_level(logging.INFO, "fsdino")
    with Progress("a.bin", done=3.2, unit="MB") as counted:
        clock[0] = 10.0
        counted.advance(20.5)
    assert caplog.messages == ["a.bin: 24 MB, 2.0 MB/s"]


def test_one_display_within_another(monkeypatch, capsys, caplog):
    """The terminal has one live line; what goes on within writes plain ones."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    caplog.set_level(logging.INFO, "fsdino")
    with Progress("outer", 1) as outer:
        with Progress("inner", 2) as inner:
            inner.advance(2)
        outer.advance()
    with Progress("next", 1) as following:
        following.advance()
    err = capsys.readouterr().err
    assert "outer" in err and "next" in err and "inner" not in err
    assert [message.partition(",")[0] for message in caplog.messages] == ["inner: 2/2 images"]


def test_a_terminal_gets_a_live_line(monkeypatch, capsys):
    """One bar instead of lines; brackets in names are not markup."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Progress("a [bold] name", 2) as counted:
        counted.advance(2, note="[x]")
    err = capsys.readouterr().err
    assert "a [bold] name" in err
    assert "2/2" in err
    assert "[x]" in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")],
)
def test_durations(seconds: float, text: str):
    """Two units at most."""
    assert duration(seconds) == text
