"""Versions and machine, as results record them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsdino.environment import cache, devices


@pytest.mark.parametrize("text", ["model name\t: Fast  Chip 9\nmodel name\t: other", ""])
def test_the_processor_always_has_a_name(monkeypatch, text):
    """Linux says it in a file, other systems elsewhere."""
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    name = devices()["cpu"]
    assert name == "Fast Chip 9" if text else name


def test_the_cache_has_a_place(monkeypatch):
    """FSDINO_CACHE, else the user's cache folder."""
    monkeypatch.setenv("FSDINO_CACHE", "/a")
    assert cache() == Path("/a")
    monkeypatch.delenv("FSDINO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache() == Path("/b/fsdino")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache() == Path("/c/.cache/fsdino")
