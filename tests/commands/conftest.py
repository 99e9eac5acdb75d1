"""Shared by the tests of the commands."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def tiny(one_thread: None) -> None:
    """All of them run on tiny models."""
