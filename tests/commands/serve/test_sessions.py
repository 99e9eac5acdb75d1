"""Visitors do not meet each other, and leave nothing behind."""

from __future__ import annotations

import pytest
from PIL import Image

from fsdino.commands.serve import sessions as module
from fsdino.commands.serve.sessions import Sessions
from fsdino.errors import UsageError


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def sessions(tmp_path, clock):
    found = Sessions(tmp_path, 5)
    yield found
    found.close()
    assert not [*tmp_path.iterdir()]


def test_each_has_their_own(sessions):
    a, b = sessions.get("a"), sessions.get("b")
    assert sessions.get("a") is a and a is not b and a.folder != b.folder
    key = a.pictures.add(Image.new("RGB", (8, 8)))
    assert sessions.picture(key) and b.pictures.get(key) is None
    assert sessions.by_key(a.key) is a and sessions.by_key("a") is None
    assert sessions.run("anything") is None


def test_a_page_that_was_left(sessions, clock):
    """It is kept for minutes, since a phone may sleep; then its files go."""
    a = sessions.get("a")
    (a.folder / "file").touch()
    sessions.leave("a")
    clock[0] = 200
    assert sessions.get("a") is a  # back again
    clock[0] = 5000
    sessions.sweep()
    assert len(sessions) == 1
    sessions.leave("a")
    sessions.leave("nobody")
    clock[0] = 5301
    sessions.sweep()
    assert len(sessions) == 0 and not a.folder.exists()
    assert sessions.get("a") is not a


def test_a_page_that_is_forgotten(sessions, clock):
    a = sessions.get("a")
    clock[0] = 7 * 3600
    sessions.sweep()
    assert not a.folder.exists()


def test_too_many_visitors(sessions, monkeypatch):
    """The next one waits; those who are here stay."""
    monkeypatch.setattr(module, "MOST", 2)
    a = sessions.get("a")
    sessions.get("b")
    with pytest.raises(UsageError, match="2 people use this page now"):
        sessions.get("c")
    assert sessions.get("a") is a


def test_a_new_run_takes_the_place_of_the_last(sessions):
    from fsdino.commands.serve.results import Run

    session = sessions.get("a")
    session.run = first = Run(session.new_folder(None), 1)
    second = session.new_folder(first)
    assert first.stopped.is_set() and not first.folder.exists() and second.exists()


def test_pictures_are_bounded(sessions, monkeypatch):
    from fsdino.commands.serve import pictures

    monkeypatch.setattr(pictures, "_MOST", 3)
    kept = sessions.get("a").pictures
    keys = [kept.add(Image.new("RGB", (8, 8))) for _ in range(5)]
    assert [kept.get(key) is not None for key in keys] == [False, False, True, True, True]
