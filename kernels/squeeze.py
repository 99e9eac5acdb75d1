"""squeeze4d: correlation and blocks, and no volume is written twice.

Each convolution writes its raw result and finds the statistics of its groups; what reads it next
normalises it. The correlation is computed and convolved a chunk at a time, as in `fused.py`.

Signature and result are those of `fsdino/ops/reference.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsdino.kernels import layout, norm, walk
from fsdino.kernels.correlation import Preparation
from fsdino.kernels.fused import Features
from fsdino.kernels.layout import dense, empty_volume
from fsdino.kernels.matrices import MOST, Copies
from fsdino.kernels.statistics import Normalisation, Statistics, counters


def squeeze4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weights_query: Sequence[Tensor],
    weights_support: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm_weights: Sequence[Tensor],
    norm_biases: Sequence[Tensor],
    support_strides: Sequence[int],
    num_groups: int,
    norm_eps: float,
    eps: float,
) -> Tensor:
    """[B, L, C, Hq, Wq] and [B, L, C, Hs, Ws] -> [B, Co, Hq, Wq] with the last block's Co."""
    batch = query.shape[0]
    out = query.new_empty(batch, weights_query[-1].shape[0], *query.shape[3:])
    if batch == 0:
        return out
    convolutions = [*zip(weights_query, weights_support, strict=True)]
    copies, *others = (
        Copies(convolutions[first : first + MOST // 2])
        for first in range(0, len(convolutions), MOST // 2)
    )
    taps = copies.matrices()
    for further in others:
        taps += further.launch().matrices()
    blocks = [
        _Block(one.values, dense(bias), dense(scale), dense(shift), walk.Grid.of(*sizes))
        for one, bias, scale, shift, *sizes in zip(
            taps, biases, norm_weights, norm_biases, weights_query, weights_support,
            support_strides, strict=True,
        )
    ]  # fmt: skip
    volumes = _shapes(query, support, blocks)
    # A chunk of the correlation may be as large as what lies beside the first volume later.
    room = max((math.prod(volume) for volume in volumes[1:2]), default=0) * query.element_size()
    features = Features(query, support, support_weight, eps, weights_query[0].shape[-1], room)
    tiles = _tiles(features, blocks, volumes)
    arrived = query.new_empty(batch * sum(map(counters, tiles)), dtype=torch.int32)
    features.prepare(Preparation(arrived, copies))

    raw = query.new_empty(0)
    normalisation = None
    for block, shape, count in zip(blocks, volumes, tiles, strict=True):
        source = raw
        raw = empty_volume(query, shape)
        own, arrived = arrived.tensor_split([batch * counters(count)])
        inner = block.values.shape[1]
        statistics = walk.empty_statistics(raw, inner, num_groups, norm_eps, count, own)
        if normalisation is None:
            _correlate(features, block, raw, statistics)
        else:
            walk.forward(
                source, block.values, block.bias, raw, block.grid,
                normalisation=normalisation, statistics=statistics,
            )  # fmt: skip
        normalisation = Normalisation(statistics, block.scale, block.shift)
    assert normalisation is not None
    norm.normalise(raw, normalisation, out)
    return out


@dataclass(frozen=True)
class _Block:
    """A block's matrices [taps, Ci, Co], vectors [Co] and sizes."""

    values: Tensor
    bias: Tensor | None
    scale: Tensor
    shift: Tensor
    grid: walk.Grid


def _shapes(query: Tensor, support: Tensor, blocks: Sequence[_Block]) -> list[tuple[int, ...]]:
    """[B, Co, Hq, Wq, hs, ws] of each block."""
    rows, columns = support.shape[3:]
    shapes = []
    for block in blocks:
        rows, columns = (layout.blocks(size, block.grid.stride) for size in (rows, columns))
        shapes.append((query.shape[0], block.values.shape[2], *query.shape[3:], rows, columns))
    return shapes


def _tiles(
    features: Features, blocks: Sequence[_Block], volumes: Sequence[tuple[int, ...]]
) -> list[int]:
    """Tiles of a sample, of each block; the first block's come in chunks of rows."""
    found: list[int] = []
    for block, (_, outer, rows, *others) in zip(blocks, volumes, strict=True):
        later = bool(found)
        parts = [rows] if later else [chunk.last - chunk.first for chunk in features.of_a_sample]
        counts = [
            walk.row_tiles(
                (part, *others), block.values.shape[1], outer, features.query, normalises=later
            )
            for part in parts
        ]
        found.append(sum(counts))
    return found


def _correlate(features: Features, block: _Block, out: Tensor, statistics: Statistics) -> None:
    """The first block's raw volume, chunk by chunk."""
    first_tile = 0
    for chunk in features.chunks:
        if chunk.first == 0:
            first_tile = 0
        corr = features.correlation(chunk.samples, chunk.low, chunk.high)
        part = chunk.written(out)
        walk.forward(
            corr, block.values, block.bias, part,
            replace(block.grid, first_query_row=chunk.first - chunk.low),
            statistics=statistics.samples(chunk.samples), first_tile=first_tile,
        )  # fmt: skip
        first_tile += walk.row_tiles(part.shape[2:], corr.shape[1], part.shape[1], part)
        del corr
