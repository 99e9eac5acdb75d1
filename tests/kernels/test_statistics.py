"""Statistics of groups: merged tile by tile and bunch by bunch, whoever comes last."""

from __future__ import annotations

import pytest
import torch

from fsdino.kernels import tiles
from fsdino.kernels.tiles import Tile
from fsdino.ops import backends

# Samples, query rows, channels out, groups; tiles have 16 columns.
SHAPES = {
    "two passes over bunches": (1, 15, 16, 4),
    "two programs a tile": (2, 1, 32, 4),
    "channels are parts": (1, 1, 12, 2),
    "groups wider than a tile": (1, 1, 64, 2),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", ["triton"])
def test_many_bunches(
    shape: tuple[int, int, int, int], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """70 tiles of 16 positions, or 1050, far from zero: a mean of two floats, and the deviation."""
    if backends.why_not(backend, "center_pivot_block4d", torch.device("cpu"), torch.float32):
        pytest.skip("needs Triton's interpreter")
    from fsdino.kernels import center_pivot

    samples, rows, outer, groups = shape
    monkeypatch.setattr(tiles, "walk", lambda *_, **__: Tile(16, 16, 16, 1, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 1, rows, 10, 16, 7, generator=generator) * 0.1
    x[..., 4:, :] += 0.3  # means of tiles differ
    weight = torch.zeros(outer, 1, 1, 1)
    offsets = 100 + torch.arange(outer, dtype=torch.float32)
    slopes = torch.ones(outer, 1, 1, 1)
    _, raw, mean, rstd = center_pivot.center_pivot_block4d(
        x, weight, slopes, offsets, torch.ones(outer), torch.zeros(outer), groups, 1e-5, 1, False,
        True,
    )  # fmt: skip
    assert raw[0, 0].numel() == 16 * 70 * rows
    of_groups = raw.double().reshape(samples, groups, -1)
    variance = of_groups.var(2, unbiased=False)
    assert ((mean.double().sum(0) - of_groups.mean(2)).abs() < 1e-6 * variance.sqrt()).all()
    torch.testing.assert_close(rstd.double(), (variance + 1e-5).rsqrt(), rtol=1e-6, atol=0)
