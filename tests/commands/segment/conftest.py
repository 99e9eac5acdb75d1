"""Shared by the tests of `fsdino segment`: a tiny model, a support of it, and queries."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fsdino.models.fsdino import FSDINO
from fsdino.models.supports import Support
from tiny_models import box_mask, picture, tiny_model


@pytest.fixture(scope="module")
def model() -> FSDINO:
    return tiny_model()


@pytest.fixture(scope="module")
def support(model: FSDINO) -> Support:
    return model.encode_support([picture(60, 80, 9)], [box_mask(60, 80)])


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """A folder of eleven pictures of different sizes: more than one batch."""
    source = tmp_path / "queries"
    source.mkdir()
    for i in range(11):
        Image.fromarray(picture(40 + i, 70 - 2 * i, i)).save(source / f"{i:02d}.png")
    return source
