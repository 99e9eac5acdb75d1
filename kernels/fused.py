"""correlation_center_pivot4d: a chunk of the correlation at a time.

A chunk is some samples, or where one is too large some of its query rows: those whose output is
computed, and on either side those that the convolution over the query dims reads besides. Its
correlation is computed, convolved and forgotten; going back it is computed again. So the extra
memory is bounded as `tiles.chunk` says.

Signatures and results are those of `fsdino/ops/reference.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdino.kernels import tiles, walk
from fsdino.kernels.center_pivot import bias_gradient
from fsdino.kernels.correlation import Cosines, Preparation, Tokens, both, one
from fsdino.kernels.layout import are_tokens, blocks, dense, empty_volume, volume
from fsdino.kernels.matrices import Matrices, matrices
from fsdino.kernels.weight_gradients import weight_gradients


@dataclass(frozen=True)
class Chunk:
    """Query rows first..last - 1 of some samples, and with those that the convolution reads,
    low..high - 1."""

    samples: slice
    first: int
    last: int
    low: int
    high: int

    def written(self, volume: Tensor) -> Tensor:
        """The output's part, or that of the correlation's gradient."""
        return volume[self.samples, :, self.first : self.last]

    def read(self, volume: Tensor) -> Tensor:
        """The part of the output's gradient that is read for the correlation's."""
        return volume[self.samples, :, self.low : self.high]


class Features:
    """What the correlation is computed from, and in which chunks.

    Tokens are measured once, but for those of a query that must be copied in several chunks.

    Args:
        query, support, weight, eps: as `correlation4d` takes them.
        kernel_query: of the convolution that follows.
        room: bytes that a chunk may take in any case.
    """

    def __init__(
        self,
        query: Tensor,
        support: Tensor,
        weight: Tensor | None,
        eps: float,
        kernel_query: int,
        room: int = 0,
    ) -> None:
        self.query, self.support = query, support
        self.weight, self.eps = weight, eps
        self.chunks = [*_chunks(query, support.shape[3:].numel(), kernel_query, room)]
        self.of_query: Tokens | None = None
        self.of_support: Tokens

    @property
    def of_a_sample(self) -> list[Chunk]:
        """The chunks of one sample's rows."""
        return [chunk for chunk in self.chunks if chunk.samples == self.chunks[0].samples]

    def prepare(self, more: Preparation | None = None) -> Features:
        """Measure the tokens; the same launch does what else is to be done."""
        if are_tokens(self.query) or len(self.chunks) == 1:
            self.of_query, self.of_support = both(self.query, self.support, self.eps, more)
        else:
            self.of_support = one(self.support, self.eps, more)
        return self

    def cosines(self, samples: slice, first: int, last: int) -> Cosines:
        """Those of query rows first..last - 1 of some samples."""
        if self.of_query is None:
            query = one(self.query[samples, :, :, first:last], self.eps)
        else:
            columns = self.query.shape[4]
            query = self.of_query.of(samples).part(first * columns, last * columns)
        weight = None if self.weight is None else self.weight[samples]
        return Cosines(query, self.of_support.of(samples), weight, self.eps)

    def empty(self, samples: slice, first: int, last: int) -> Tensor:
        """An uninitialised correlation."""
        part = self.query[samples, :, :, first:last]
        return empty_volume(part, (*part.shape[:2], *part.shape[3:], *self.support.shape[3:]))

    def correlation(self, samples: slice, first: int, last: int) -> Tensor:
        """The correlation of query rows first..last - 1 of some samples."""
        out = self.empty(samples, first, last)
        self.cosines(samples, first, last).forward(out)
        return out


def _chunks(query: Tensor, support_tokens: int, kernel_query: int, room: int) -> Iterator[Chunk]:
    """All samples and query rows, in order."""
    batch, layers, _, rows, columns = query.shape
    halo = kernel_query // 2
    row_bytes = layers * columns * support_tokens * query.element_size()
    samples, step = tiles.chunk(batch, rows, halo, row_bytes, room)
    for sample in range(0, batch, samples):
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield Chunk(
                slice(sample, sample + samples), first, last,
                max(0, first - halo), min(rows, last + halo),
            )  # fmt: skip


def correlation_center_pivot4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
    eps: float,
) -> Tensor:
    """[B, L, C, Hq, Wq] and [B, L, C, Hs, Ws] -> [B, Co, Hq, Wq, hs, ws]."""
    kept = [blocks(size, support_stride) for size in support.shape[3:]]
    shape = (query.shape[0], weight_query.shape[0], *query.shape[3:], *kept)
    y = empty_volume(query, shape)
    kernel = weight_query.shape[-1]
    features = Features(query, support, support_weight, eps, kernel).prepare()
    weights = matrices(weight_query, weight_support)
    bias = dense(bias)
    for chunk in features.chunks:
        grid = walk.Grid.of(weight_query, weight_support, support_stride, chunk.first - chunk.low)
        corr = features.correlation(chunk.samples, chunk.low, chunk.high)
        walk.forward(corr, weights.values, bias, chunk.written(y), grid)
        del corr
    return y


def correlation_center_pivot4d_backward(
    grad: Tensor,
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    support_stride: int,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients to query, support, support_weight, weight_query, weight_support and bias."""
    grad = volume(grad)
    kernel = weight_query.shape[-1]
    features = Features(query, support, support_weight, eps, kernel).prepare()
    totals: list[Tensor | None] = [None] * 6
    if needs[0]:
        totals[0] = query.new_empty(query.shape)
    if needs[1]:
        totals[1] = support.new_zeros(support.shape, dtype=torch.float32)
    if needs[2] and support_weight is not None:
        totals[2] = support_weight.new_zeros(support_weight.shape, dtype=torch.float32)
    transposed = matrices(weight_query, weight_support, transposed=True)
    for chunk in features.chunks:
        grid = walk.Grid.of(weight_query, weight_support, support_stride, chunk.first - chunk.low)
        if any(needs[:3]):
            parts = _to_features(grad, features, transposed, grid, chunk, needs)
            for total, part in zip(totals, parts, strict=False):
                if total is not None and part is not None:
                    own = total[chunk.samples]
                    if total is totals[0]:
                        own = own[:, :, :, chunk.first : chunk.last]
                        own.copy_(part.view(own.shape))
                    else:
                        own.add_(part.view(own.shape))
        if needs[3] or needs[4]:
            corr = features.correlation(chunk.samples, chunk.low, chunk.high)
            of_weights = weight_gradients(
                corr, chunk.written(grad), grid, (needs[3], needs[4]), torch.float32
            )
            _add(totals, of_weights, 3)
            del corr
    if needs[5]:
        totals[5] = bias_gradient(grad)
    return tuple(
        grad.new_empty(0) if total is None else total.to(grad.dtype).contiguous()
        for total in totals
    )


def _to_features(
    grad: Tensor,
    features: Features,
    transposed: Matrices,
    grid: walk.Grid,
    chunk: Chunk,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients to the chunk's query rows, and its share of those to support and weight."""
    written = (chunk.samples, chunk.first, chunk.last)
    corr_grad = features.empty(*written)
    walk.transposed(chunk.read(grad), transposed, corr_grad, grid)
    return features.cosines(*written).backward(corr_grad, needs[:3])


def _add(totals: list[Tensor | None], parts: Sequence[Tensor | None], first: int) -> None:
    """Sum the chunks' gradients in float32, in order."""
    for index, part in enumerate(parts, start=first):
        if part is not None:
            total = totals[index]
            totals[index] = part.float() if total is None else total.add_(part)
