"""Tokens of query and support, and the lengths that one launch measures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

in_the_interpreter = pytest.mark.parametrize("backend", ["triton"])

EPS = 1e-3
SIDES = {  # batch, grid
    "one batch": ((2, (5, 4)), (2, (6, 7))),
    "two batches": ((1, (3, 3)), (4, (2, 9))),
    "empty": ((0, (3, 3)), (0, (2, 2))),
    "one is empty": ((0, (3, 3)), (2, (2, 2))),
    "one token": ((1, (1, 1)), (1, (1, 1))),
}


def side(batch: int, grid: tuple[int, int], *, channels: int = 70) -> Tensor:
    generator = torch.Generator().manual_seed(sum(grid) + batch)
    return torch.randn(batch, 2, channels, *grid, generator=generator)


def inverse(features: Tensor) -> Tensor:
    return 1 / (features.double().square().sum(2).sqrt() + EPS).flatten(2)


@in_the_interpreter
@pytest.mark.parametrize("arrivals", [None, 0, 1, 1024, 2500])
@pytest.mark.parametrize("sizes", SIDES.values(), ids=list(SIDES))
def test_one_launch_measures_both(sizes: tuple, arrivals: int | None, backend: str) -> None:
    """Lengths of each side with its own batch and grid; counters around them become 0."""
    from fsdino.kernels import correlation

    query, support = (side(*size) for size in sizes)
    counters = None if arrivals is None else torch.full((arrivals,), 7, dtype=torch.int32)
    for given, found in zip(
        (query, support), correlation.both(query, support, EPS, counters), strict=True
    ):
        assert torch.equal(found.values, given.flatten(3))
        torch.testing.assert_close(found.inverse.double(), inverse(given), rtol=1e-6, atol=0)
    assert counters is None or (counters == 0).all()


@in_the_interpreter
def test_shots_of_one_image_are_measured_once(backend: str) -> None:
    """An expanded batch has the lengths of its only image."""
    from fsdino.kernels import correlation

    query, support = side(1, (3, 4)), side(3, (2, 2))
    shots, _ = correlation.both(query.expand(3, -1, -1, -1, -1), support, EPS)
    assert shots.inverse.shape == (3, 2, 12)
    assert shots.values.stride(0) == shots.inverse.stride(0) == 0
    torch.testing.assert_close(shots.inverse[:1].double(), inverse(query), rtol=1e-6, atol=0)


@in_the_interpreter
def test_a_part_is_a_view(backend: str) -> None:
    """Some rows of the query need no further launch."""
    from fsdino.kernels import correlation

    query = side(2, (5, 4))
    whole, _ = correlation.both(query, query, EPS)
    part = whole.part(8, 16)
    assert torch.equal(part.values, query[:, :, :, 2:4].flatten(3))
    torch.testing.assert_close(
        part.inverse.double(), inverse(query[:, :, :, 2:4]), rtol=1e-6, atol=0
    )
    assert part.values.untyped_storage().data_ptr() == whole.values.untyped_storage().data_ptr()
