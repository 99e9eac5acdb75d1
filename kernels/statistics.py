"""Mean and deviation of each group of channels, merged by the programs that compute the channels.

Each tile of the convolution leaves how many values it has, their mean, and their sum of squared
deviations. The last tile of a bunch that arrives merges the bunch's, the last bunch of a sample
the sample's, in a fixed order whoever that is (Chan, Golub and LeVeque 1979). A mean is a sum of
two floats: where all values lie close to it, what the first loses is not small beside the
deviations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels.layout import blocks

BUNCH = tl.constexpr(32)  # tiles that one program merges


@triton.jit
def factors(  # type: ignore[no-untyped-def]
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    batch: tl.tensor,
    o_c: tl.tensor,
    m_c: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Of each channel its group's mean in two parts, a factor and a shift: normalised, scaled and
    shifted, a raw value is (raw - mean - low) * factor + shift."""
    o_group = batch * (C // GROUP) + o_c // GROUP
    mean = tl.load(p_mean + o_group, mask=m_c, other=0.0)
    factor = tl.load(p_rstd + o_group, mask=m_c, other=0.0)
    factor *= tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    shift = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    return mean, tl.load(p_low + o_group, mask=m_c, other=0.0), factor, shift


@triton.jit
def _arrive(p_arrived: tl.tensor, expected: tl.tensor):  # type: ignore[no-untyped-def]
    """1 for the last of the programs that are expected, whose stores it then sees; else 0."""
    tl.debug_barrier()
    before = tl.atomic_add(p_arrived, 1, sem="acq_rel")
    return tl.where(before == expected - 1, 1, 0)


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    p_entries: tl.tensor,
    entries: tl.tensor,
    ENTRY: tl.constexpr,  # from one entry to the next
    PART: tl.constexpr,  # from one part to the next
    FIELD: tl.constexpr,  # from counts to means, from there to what these lost, to the squares
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Count, mean in two parts, and squared deviations of all entries of each part."""
    o_part = tl.arange(0, BLOCK_PARTS)
    m_part = o_part < PARTS
    p_part = p_entries + o_part * PART
    # Means are summed as distances from the first.
    first = tl.load(p_part + FIELD, mask=m_part, other=0.0, cache_modifier=".cg")
    size = tl.zeros((BLOCK_PARTS,), tl.float32)
    total = tl.zeros((BLOCK_PARTS,), tl.float32)
    for start in range(0, entries, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        mask = (entry < entries)[:, None] & m_part[None, :]
        p_entry = p_part[None, :] + (entry * ENTRY)[:, None]
        count = tl.load(p_entry, mask=mask, other=0.0, cache_modifier=".cg")
        mean = tl.load(p_entry + FIELD, mask=mask, other=0.0, cache_modifier=".cg")
        low = tl.load(p_entry + 2 * FIELD, mask=mask, other=0.0, cache_modifier=".cg")
        size += tl.sum(count, 0)
        total += tl.sum(tl.where(mask, (mean - first[None, :] + low) * count, 0.0), 0)
    offset = total / tl.maximum(size, 1.0)  # a part that there is not has none
    squares = tl.zeros((BLOCK_PARTS,), tl.float32)
    for start in range(0, entries, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        mask = (entry < entries)[:, None] & m_part[None, :]
        p_entry = p_part[None, :] + (entry * ENTRY)[:, None]
        count = tl.load(p_entry, mask=mask, other=0.0, cache_modifier=".cg")
        mean = tl.load(p_entry + FIELD, mask=mask, other=0.0, cache_modifier=".cg")
        low = tl.load(p_entry + 2 * FIELD, mask=mask, other=0.0, cache_modifier=".cg")
        square = tl.load(p_entry + 3 * FIELD, mask=mask, other=0.0, cache_modifier=".cg")
        distance = (mean - first[None, :] - offset[None, :]) + low
        squares += tl.sum(tl.where(mask, square + count * distance * distance, 0.0), 0)
    mean = first + offset
    of_offset = mean - first
    return size, mean, (first - (mean - of_offset)) + (offset - of_offset), squares


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    p_entry: tl.tensor,
    o_part: tl.tensor,
    m_part: tl.tensor,
    count: tl.tensor,
    mean: tl.tensor,
    low: tl.tensor,
    squares: tl.tensor,
    PARTS: tl.constexpr,
):
    """An entry: four fields of parts."""
    p_part = p_entry + o_part
    tl.store(p_part, count, mask=m_part)
    tl.store(p_part + PARTS, mean, mask=m_part)
    tl.store(p_part + 2 * PARTS, low, mask=m_part)
    tl.store(p_part + 3 * PARTS, squares, mask=m_part)


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    batch: tl.tensor,
    count: tl.tensor,
    mean: tl.tensor,
    low: tl.tensor,
    squares: tl.tensor,
    eps: tl.tensor,
    GROUPS: tl.constexpr,
):
    """The results of a sample."""
    group = tl.arange(0, mean.shape[0])
    m_group = group < GROUPS
    o_group = batch * GROUPS + group
    tl.store(p_mean + o_group, mean, mask=m_group)
    tl.store(p_low + o_group, low, mask=m_group)
    tl.store(
        p_rstd + o_group, 1.0 / tl.sqrt_rn(squares / tl.maximum(count, 1.0) + eps), mask=m_group
    )


@triton.jit
def gather(  # type: ignore[no-untyped-def]
    p_entries: tl.tensor,  # [B, tiles, then bunches, then one, 4, PARTS]
    p_arrived: tl.tensor,  # [B, bunches + 1], 0 before the first arrives
    p_mean: tl.tensor,  # [B, GROUPS]
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    eps: tl.tensor,
    batch: tl.tensor,
    tile: tl.tensor,  # of the sample
    tiles: tl.tensor,  # of a sample
    part: tl.tensor,  # the first one of this program's
    count: tl.tensor,
    mean: tl.tensor,  # [parts of this program]
    low: tl.tensor,
    squares: tl.tensor,
    GROUPS: tl.constexpr,
    PARTS: tl.constexpr,
    SHARES: tl.constexpr,  # programs that have parts of one tile
):
    """Leave a tile's entry; whoever is last merges what it completes."""
    BLOCK_PARTS: tl.constexpr = triton.next_power_of_2(PARTS)
    bunches = tl.cdiv(tiles, BUNCH)
    p_sample = p_entries + batch * (tiles + bunches + 1) * (4 * PARTS)
    o_part = part + tl.arange(0, mean.shape[0])
    counts = tl.zeros_like(mean) + count
    p_tile = p_sample + tile.to(tl.int64) * (4 * PARTS)
    _store(p_tile, o_part, o_part < PARTS, counts, mean, low, squares, PARTS)
    bunch = tile // BUNCH
    p_sample_arrived = p_arrived + batch * (bunches + 1)
    in_bunch = tl.minimum(tiles - bunch * BUNCH, BUNCH)
    for _ in range(0, _arrive(p_sample_arrived + bunch, in_bunch * SHARES)):
        p_bunches = p_sample + tiles * (4 * PARTS)
        all_parts = tl.arange(0, BLOCK_PARTS)
        m_parts = all_parts < PARTS
        size, of_all, lost, deviations = _merge(
            p_sample + bunch * BUNCH * (4 * PARTS), in_bunch,
            4 * PARTS, 1, PARTS, PARTS, BUNCH, BLOCK_PARTS,
        )  # fmt: skip
        p_bunch = p_bunches + bunch * (4 * PARTS)
        _store(p_bunch, all_parts, m_parts, size, of_all, lost, deviations, PARTS)
        for _ in range(0, _arrive(p_sample_arrived + bunches, bunches)):
            all_size, all_mean, all_low, all_squares = _merge(
                p_bunches, bunches, 4 * PARTS, 1, PARTS, PARTS, BUNCH, BLOCK_PARTS
            )
            GROUP: tl.constexpr = PARTS // GROUPS
            if GROUP == 1:
                _finish(
                    p_mean, p_low, p_rstd, batch, all_size, all_mean, all_low, all_squares, eps,
                    GROUPS,
                )  # fmt: skip
            else:
                p_all = p_bunches + bunches * (4 * PARTS)
                _store(p_all, all_parts, m_parts, all_size, all_mean, all_low, all_squares, PARTS)
                tl.debug_barrier()
                group_size, group_mean, group_low, group_squares = _merge(
                    p_all, GROUP, 1, GROUP, PARTS, GROUPS, triton.next_power_of_2(GROUP),
                    triton.next_power_of_2(GROUPS),
                )  # fmt: skip
                _finish(
                    p_mean, p_low, p_rstd, batch, group_size, group_mean, group_low,
                    group_squares, eps, GROUPS,
                )  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """Of each sample's groups, and what it takes to find them; rows may come in several launches.

    Attributes:
        mean: and what it lost when it was rounded, [2, B, G] in float32.
        rstd: 1 / standard deviation, [B, G].
        entries: of tiles, then of bunches, then of the sample, [B, entries, 4, parts]; a part is a
            group, or a channel.
        arrived: how many tiles of a bunch, and last how many bunches, [B, bunches + 1].
        tiles: of a sample.
        eps: added to the variance.
    """

    mean: Tensor
    rstd: Tensor
    entries: Tensor
    arrived: Tensor
    tiles: int
    eps: float

    @classmethod
    def empty(
        cls, like: Tensor, groups: int, parts: int, tiles: int, eps: float,
        arrived: Tensor | None = None,
    ) -> Statistics:  # fmt: skip
        """Uninitialised; `arrived` must be 0 before the first tile arrives.

        Args:
            like: has the batch and the device.
            groups: of channels.
            parts: of which each tile has an entry.
            tiles: of a sample.
            eps: added to the variance.
            arrived: contiguous int32, `counters` for each sample; made if it is None.
        """
        batch, bunches = like.shape[0], blocks(tiles, BUNCH.value)
        if arrived is None:
            arrived = like.new_empty(batch * counters(tiles), dtype=torch.int32)
        mean = like.new_empty(2, batch, groups, dtype=torch.float32)
        entries = mean.new_empty(batch, tiles + bunches + 1, 4, parts)
        return cls(mean, mean.new_empty(batch, groups), entries, arrived, tiles, eps)

    def samples(self, chosen: slice) -> Statistics:
        """Those of some samples."""
        return replace(
            self,
            mean=self.mean[:, chosen],
            rstd=self.rstd[chosen],
            entries=self.entries[chosen],
            arrived=self.arrived.view(self.rstd.shape[0], -1)[chosen],
        )


@dataclass(frozen=True)
class Normalisation:
    """relu(group norm) of a raw volume: statistics, and scale and shift [C]."""

    statistics: Statistics
    scale: Tensor
    shift: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """As kernels take them: mean, what it lost, rstd, scale, shift."""
        return (*self.statistics.mean.unbind(), self.statistics.rstd, self.scale, self.shift)


def counters(tiles: int) -> int:
    """Of arrivals in one sample with so many tiles."""
    return blocks(tiles, BUNCH.value) + 1
