"""The chain as Triton fuses it: seams between chunks, statistics of many tiles, NaN and Inf."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fsdino import ops
from fsdino.bench import cases, exactness, formulation
from fsdino.bench.cases import Case, Chain
from fsdino.kernels import tiles
from fsdino.kernels.tiles import Tile
from fsdino.ops import backends

CHAIN = Chain(
    "chunks",
    (
        Case("first", batch=2, query=(5, 3), support=(4, 5), layers=3, out=8),
        Case("second", layers=8, out=24, stride=1, kernel_support=1),
        Case("last", layers=24, out=8),
    ),
)
BAD = ("query", "support_weight", "weight_query", "bias", "norm_weight", "norm_bias")


@pytest.fixture(autouse=True)
def interpreted(backend: str) -> None:
    """On a CPU Triton needs its interpreter."""
    if backends.why_not(backend, "squeeze4d", torch.device("cpu"), torch.float32):
        pytest.skip("needs Triton's interpreter")


@pytest.mark.parametrize("backend", ["triton"])
def test_chunks_and_small_tiles(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two query rows at a time, tiles of 16 positions: not twice the error of the eager code."""
    monkeypatch.setattr(tiles, "chunk", lambda *_: (1, 2))
    monkeypatch.setattr(tiles, "walk", lambda *_, **__: Tile(16, 16, 16, 1, 1))
    *features, blocks = cases.chain_inputs(CHAIN, torch.float32)
    found = ops.squeeze4d(*features, blocks, backend=backend)
    exact = formulation.squeeze4d(*features, blocks)
    by_eager = ops.squeeze4d(*features, blocks, backend="eager")
    allowed = exactness.CHAIN_FACTOR * exactness.norm_error(by_eager, exact)
    exactness.assert_close(found, exact, max(allowed, 1e-6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("backend", ["triton"])
def test_not_finite(name: str, value: float, backend: str) -> None:
    """They reach what they reach in the definition, from the features and from the first block."""
    chain = Chain("two", CHAIN.cases[:2])
    query, support, weight, blocks = cases.chain_inputs(chain, torch.float32)
    first: dict[str, Any] = dict(
        zip(("weight_query", "weight_support", "bias", "norm_weight", "norm_bias"), blocks[0][:5],
            strict=True)
    )  # fmt: skip
    spoilt = first | {"query": query, "support_weight": weight}
    spoilt[name].view(-1)[1] = value
    with torch.no_grad():
        found = ops.squeeze4d(query, support, weight, blocks, backend=backend)
        wide = [
            [one.double() if isinstance(one, torch.Tensor) else one for one in block]
            for block in blocks
        ]
        features = (query.double(), support.double(), weight.double())
        expected = ops.squeeze4d(*features, wide, backend="reference")
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
    finite = expected.isfinite()
    exactness.assert_close(found[finite], expected[finite], 1e-4)
