"""A backend that is the reference but for some functions: wrong ones, that checks have to find."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fsdino import contract
from fsdino.ops import backends, reference


def add_backend(
    monkeypatch: pytest.MonkeyPatch, name: str = "other", **changes: Callable[..., Any]
) -> str:
    """Register it for this test."""
    functions = {name: getattr(reference, name) for name in contract.FUNCTIONS} | changes
    known = backends._registry["reference"]
    changed = dataclasses.replace(known, name=name, module=f"changed_{name}", priority=-1)
    monkeypatch.setitem(backends._registry, name, changed)
    monkeypatch.setitem(sys.modules, f"changed_{name}", SimpleNamespace(**functions))
    return name
