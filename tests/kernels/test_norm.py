"""Sums of the backward pass over more steps, shares and samples than a program takes at once."""

from __future__ import annotations

import pytest

from formulated import assert_formulated
from fsdino.bench.cases import Case
from fsdino.kernels import tiles
from fsdino.kernels.tiles import Tile


@pytest.mark.parametrize("backend", ["triton"])
def test_sums_of_many_shares(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny blocks stand in for large volumes: all gradients are those of the formulation."""
    monkeypatch.setattr(tiles, "gradient", lambda *sizes: Tile(8, 16, 0, 1, 1))
    monkeypatch.setattr(tiles, "gradient_share", lambda steps: 3)
    monkeypatch.setattr(tiles, "merged", lambda channels: Tile(2, 4, 0, 1, 1))
    monkeypatch.setattr(tiles, "weight_sums", lambda: Tile(2, 256, 0, 1, 1))
    monkeypatch.setattr(tiles, "weight_gradient", lambda *sizes: Tile(16, 16, 16, 1, 1))
    case = Case("shares", batch=3, layers=3, query=(3, 3), support=(4, 5), out=20, groups=5)
    settings = {"num_groups": case.groups}
    for reduced in (False, True):
        settings["reduce_support"] = reduced
        assert_formulated("center_pivot_block4d", case, backend, 1e-6, **settings)
