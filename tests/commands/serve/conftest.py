"""Shared by the tests of `fsdino serve`: the default model, and a visit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdino.commands.serve.actions import Actions
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.sessions import Session

MODEL = "fsdino-photo"


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(MODEL)


@pytest.fixture(scope="session")
def actions(engine: Engine) -> Actions:
    return Actions(engine)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    found = Session(tmp_path / "visit", 5)
    yield found
    found.close()
