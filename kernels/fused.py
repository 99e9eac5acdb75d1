"""correlation_center_pivot4d: a chunk of the correlation's query rows at a time.

A chunk is the query rows whose output is computed, and on either side the rows that the convolution
over the query dims reads besides. Its correlation is computed, convolved and forgotten; going back
it is computed again. So the extra memory stays within `CHUNK_BYTES`, or a few rows.

Signatures and results are those of `fsdino/ops/reference.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdino.kernels import tiles, walk
from fsdino.kernels.center_pivot import bias_gradient
from fsdino.kernels.correlation import Cosines, Tokens
from fsdino.kernels.layout import blocks, empty_volume, volume
from fsdino.kernels.weight_gradients import weight_gradients


@dataclass(frozen=True)
class Chunk:
    """Query rows first..last - 1, and with those that the convolution reads, low..high - 1."""

    first: int
    last: int
    low: int
    high: int

    @property
    def rows(self) -> slice:
        """Of the output, and of the correlation's gradient."""
        return slice(self.first, self.last)

    @property
    def read(self) -> slice:
        """Of the correlation, and of the output's gradient."""
        return slice(self.low, self.high)


class Features:
    """What the correlation is computed from; the support's tokens are prepared once.

    Args:
        query, support, weight, eps: as `correlation4d` takes them.
    """

    def __init__(self, query: Tensor, support: Tensor, weight: Tensor | None, eps: float) -> None:
        self.query, self.support = query, Tokens.of(support, eps)
        self.support_grid = support.shape[3:]
        self.weight, self.eps = weight, eps

    def cosines(self, rows: slice) -> Cosines:
        """Those of some query rows."""
        query = Tokens.of(self.query[:, :, :, rows], self.eps)
        return Cosines(query, self.support, self.weight, self.eps)

    def empty(self, rows: slice) -> Tensor:
        """An uninitialised correlation of some query rows."""
        part = self.query[:, :, :, rows]
        return empty_volume(part, (*part.shape[:2], *part.shape[3:], *self.support_grid))

    def correlation(self, rows: slice) -> Tensor:
        """The correlation of some query rows."""
        out = self.empty(rows)
        self.cosines(rows).forward(out)
        return out

    def chunks(self, kernel_query: int) -> Iterator[Chunk]:
        """All query rows, in order."""
        batch, layers, _, rows, columns = self.query.shape
        halo = kernel_query // 2
        values = max(1, batch) * layers * columns * self.support_grid.numel()
        step = tiles.fused_rows(rows, halo, values * self.query.element_size())
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield Chunk(first, last, max(0, first - halo), min(rows, last + halo))


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
    features = Features(query, support, support_weight, eps)
    weights = walk.matrices(weight_query, weight_support)
    bias = None if bias is None else bias.resolve_neg().contiguous()
    for chunk in features.chunks(weight_query.shape[-1]):
        grid = walk.Grid.of(weight_query, weight_support, support_stride, chunk.first - chunk.low)
        walk.forward(features.correlation(chunk.read), weights, bias, y[:, :, chunk.rows], grid)
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
    features = Features(query, support, support_weight, eps)
    totals: list[Tensor | None] = [None] * 6
    if needs[0]:
        totals[0] = query.new_empty(query.shape)
    transposed = walk.matrices(weight_query, weight_support, transposed=True)
    for chunk in features.chunks(weight_query.shape[-1]):
        grid = walk.Grid.of(weight_query, weight_support, support_stride, chunk.first - chunk.low)
        if any(needs[:3]):
            of_query, *others = _to_features(grad, features, transposed, grid, chunk, needs)
            if totals[0] is not None and of_query is not None:
                rows = totals[0][:, :, :, chunk.rows]
                rows.copy_(of_query.view(rows.shape))
            _add(totals, others, 1)
        if needs[3] or needs[4]:
            corr, part = features.correlation(chunk.read), grad[:, :, chunk.rows]
            of_weights = weight_gradients(corr, part, grid, (needs[3], needs[4]), torch.float32)
            _add(totals, of_weights, 3)
            del corr
    if needs[5]:
        totals[5] = bias_gradient(grad)
    if totals[1] is not None:
        totals[1] = totals[1].view(support.shape)
    if totals[2] is not None and support_weight is not None:
        totals[2] = totals[2].view(support_weight.shape)
    return tuple(
        grad.new_empty(0) if total is None else total.to(grad.dtype).contiguous()
        for total in totals
    )


def _to_features(
    grad: Tensor,
    features: Features,
    transposed: Tensor,
    grid: walk.Grid,
    chunk: Chunk,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients to the chunk's query rows, and its share of those to support and weight."""
    corr_grad = features.empty(chunk.rows)
    walk.transposed(grad[:, :, chunk.read], transposed, corr_grad, grid)
    return features.cosines(chunk.rows).backward(corr_grad, needs[:3])


def _add(totals: list[Tensor | None], parts: Sequence[Tensor | None], first: int) -> None:
    """Sum the chunks' gradients in float32, in order."""
    for index, part in enumerate(parts, start=first):
        if part is not None:
            total = totals[index]
            totals[index] = part.float() if total is None else total.add_(part)
