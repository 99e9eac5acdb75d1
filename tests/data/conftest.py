"""Shared by the tests of data sets."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared goes into an empty cache, outside of the data set."""
    monkeypatch.setenv("FSDINO_CACHE", str(tmp_path_factory.mktemp("cache")))
