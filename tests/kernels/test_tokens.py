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
@pytest.mark.parametrize("arrivals", [None, 1, 1024, 2500])
@pytest.mark.parametrize("sizes", SIDES.values(), ids=list(SIDES))
def test_one_launch_measures_both(sizes: tuple, arrivals: int | None, backend: str) -> None:
    """Lengths of each side with its own batch and grid; counters become 0, and weights matrices."""
    from fsdino.kernels import correlation
    from fsdino.kernels.matrices import Copies

    query, support = (side(*size) for size in sizes)
    counters = torch.full((arrivals or 0,), 7, dtype=torch.int32)
    weights = [torch.randn(5, 2, 3, 3), torch.randn(5, 2, 1, 1), torch.randn(40, 5, 5, 5)]
    copies = Copies([(weights[0], weights[1]), (weights[2], weights[2])])
    more = None if arrivals is None else correlation.Preparation(counters, copies)
    for given, found in zip(
        (query, support), correlation.both(query, support, EPS, more), strict=True
    ):
        assert torch.equal(found.values, given.flatten(3))
        torch.testing.assert_close(found.inverse.double(), inverse(given), rtol=1e-6, atol=0)
    if arrivals is not None:
        assert (counters == 0).all()
        for matrices, pair in zip(copies.matrices(), (weights[:2], weights[2:] * 2), strict=True):
            taps = [weight.flatten(2).permute(2, 1, 0) for weight in pair]
            assert torch.equal(matrices.values, torch.cat(taps))


@in_the_interpreter
def test_matrices_of_one_convolution(backend: str) -> None:
    """Going back they are transposed, and it is told where an element is not finite."""
    from fsdino.kernels.matrices import matrices

    weights = (torch.randn(20, 30, 3, 3), torch.randn(20, 30, 1, 1))
    back = matrices(*weights, transposed=True)
    taps = [weight.flatten(2).permute(2, 0, 1) for weight in weights]
    assert torch.equal(back.values, torch.cat(taps))
    assert back.finite is not None and back.finite.all()
    for bad in (float("inf"), float("-inf"), float("nan")):
        weights[0][-1, -1, 0, 0] = bad
        back = matrices(*weights, transposed=True)
        assert back.finite is not None and (back.finite == 0).sum() == 1


def outermost(x: Tensor) -> Tensor:
    return x.contiguous()


def innermost(x: Tensor) -> Tensor:
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def sliced(x: Tensor) -> Tensor:
    """Rows that do not follow each other."""
    return torch.nn.functional.pad(x, (1, 2, 0, 1))[..., :-1, 1:-2]


LAYOUTS = {
    "outermost": outermost,
    "innermost": innermost,
    "sliced, outermost": sliced,
    "sliced, innermost": lambda x: sliced(innermost(x)),
    "reversed": lambda x: x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
    "every second channel": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "negated": lambda x: torch.complex(-x, -x).conj().imag,
    "one image": lambda x: x[:1].expand_as(x),
    "one image, innermost": lambda x: innermost(x)[:1].expand_as(x),
    "one token": lambda x: x[..., :1, :1].expand_as(x),
    "one channel": lambda x: x[:, :, :1].expand_as(x),
}


@in_the_interpreter
@pytest.mark.parametrize("of_support", LAYOUTS)
@pytest.mark.parametrize("of_query", ["outermost", "innermost"])
def test_any_memory_order(of_query: str, of_support: str, backend: str) -> None:
    """The channels lie side by side afterwards, whatever the strides before; the values stay."""
    from fsdino.kernels import correlation

    query, support = LAYOUTS[of_query](side(2, (5, 4))), LAYOUTS[of_support](side(2, (6, 7)))
    for given, found in zip((query, support), correlation.both(query, support, EPS), strict=True):
        assert torch.equal(found.values, given.flatten(3))
        assert found.values.stride(2) == 1
        torch.testing.assert_close(found.inverse.double(), inverse(given), rtol=1e-6, atol=0)


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
