"""Tests of the ops never compile: a backend that is not built is skipped."""

from __future__ import annotations

import pytest
import torch

from fsdino.ops import backends, native


@pytest.fixture(autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Skip what runs on `cpp` where it is not built: asked for by name, it would be built now."""
    if "backend" not in request.fixturenames or request.getfixturevalue("backend") != "cpp":
        return
    if backends.why_not("cpp", "correlation4d", torch.device("cpu"), torch.float32) is not None:
        pytest.skip("cpp is not built: run `fsdino build`")
    assert native.extension() is not None
