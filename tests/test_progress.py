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


def test_a_terminal_gets_a_live_line(monkeypatch, capsys):
    """One bar instead of lines; names with brackets are no markup."""
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
