"""Group normalisation, ReLU and the mean over the support: light passes over a raw volume."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import blocks, index_type, options
from fsdino.kernels.statistics import Normalisation, factors


@triton.jit
def normalise_kernel(
    p_raw: tl.tensor,  # [B, rows, C]
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_out: tl.tensor,  # [B, rows, C]
    rows: tl.tensor,
    row_tiles: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """relu(group norm) of a block of positions and channels."""
    tile = tl.program_id(0)
    batch = (tile // row_tiles).to(tl.int64)
    o_row = (tile % row_tiles).to(INDEX) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    mask = (o_row < rows)[:, None] & m_c[None, :]
    offset = ((batch * rows + o_row) * C)[:, None] + o_c[None, :]
    mean, low, factor, shift = factors(
        p_mean, p_low, p_rstd, p_weight, p_bias, batch, o_c, m_c, C, GROUP
    )
    raw = tl.load(p_raw + offset, mask=mask, other=0.0).to(tl.float32)
    y = (raw - mean[None, :] - low[None, :]) * factor[None, :] + shift[None, :]
    y = tl.where(y <= 0, 0.0, y)
    tl.store(p_out + offset, y.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def normalise_mean_kernel(
    p_raw: tl.tensor,  # [B, tokens, kept, C]
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_out: tl.tensor,  # [B, C, tokens]
    tokens: tl.tensor,
    kept: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Mean over the support of relu(group norm), for one query token."""
    token = tl.program_id(0)
    batch = (token // tokens).to(tl.int64)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    mean, low, factor, shift = factors(
        p_mean, p_low, p_rstd, p_weight, p_bias, batch, o_c, m_c, C, GROUP
    )
    p_token = p_raw + token.to(tl.int64) * kept * C
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, kept, BLOCK_ROWS):
        o_row = start + tl.arange(0, BLOCK_ROWS)
        m_row = o_row < kept
        mask = m_row[:, None] & m_c[None, :]
        offset = (o_row * C)[:, None] + o_c[None, :]
        raw = tl.load(p_token + offset, mask=mask, other=0.0).to(tl.float32)
        y = (raw - mean[None, :] - low[None, :]) * factor[None, :] + shift[None, :]
        total += tl.sum(tl.where((y <= 0) | (~m_row)[:, None], 0.0, y), 0)
    mean = (total / kept).to(p_out.dtype.element_ty)
    tl.store(p_out + (batch * C + o_c) * tokens + token % tokens, mean, mask=m_c)


@triton.jit
def _step(  # type: ignore[no-untyped-def]
    step: tl.tensor,
    batch: tl.tensor,
    p_grad: tl.tensor,
    p_raw: tl.tensor,
    mean: tl.tensor,
    low: tl.tensor,
    factor: tl.tensor,
    shift: tl.tensor,
    tokens: tl.tensor,
    positions: tl.tensor,
    o_c: tl.tensor,
    C: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Of a few positions of one token, which is the whole sample unless REDUCED: their distances
    from the group's mean, the gradient behind the ReLU, the first element, offsets from there, and
    which there are."""
    if REDUCED:
        steps = tl.cdiv(positions, BLOCK_ROWS)
        token, start = step // steps, step % steps * BLOCK_ROWS
    else:
        token, start = 0, step * BLOCK_ROWS
    m_c = o_c < C
    mask = (tl.arange(0, BLOCK_ROWS) < positions - start)[:, None] & m_c[None, :]
    first = ((batch * tokens + token) * positions + start) * C
    offset = (tl.arange(0, BLOCK_ROWS) * C)[:, None] + o_c[None, :]
    raw = tl.load(p_raw + first + offset, mask=mask, other=0.0).to(tl.float32)
    distance = raw - mean[None, :] - low[None, :]
    if REDUCED:
        p_token = p_grad + batch * tokens * C + token
        grad = tl.load(p_token + o_c.to(tl.int64) * tokens, mask=m_c, other=0.0).to(tl.float32)
        grad = (grad / positions)[None, :]
    else:
        grad = tl.load(p_grad + first + offset, mask=mask, other=0.0).to(tl.float32)
    stopped = distance * factor[None, :] + shift[None, :] <= 0
    return distance, tl.where(stopped | (~mask), 0.0, grad), first, offset, mask


@triton.jit
def gradient_sums_kernel(
    p_grad: tl.tensor,  # [B, tokens, positions, C], or [B, C, tokens] if REDUCED
    p_raw: tl.tensor,  # [B, tokens, positions, C]
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_sums: tl.tensor,  # [B, shares, 3, C]
    p_merged: tl.tensor,  # [G]: samples that `merge_kernel` is through with
    tokens: tl.tensor,
    positions: tl.tensor,
    shares: tl.tensor,
    share: tl.tensor,  # steps of a program
    C: tl.constexpr,
    GROUP: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """A share's sums of the gradient behind the ReLU times the distance from the group's mean, of
    that gradient, and of the distance."""
    program = tl.program_id(0)
    batch, first = (program // shares).to(tl.int64), program % shares * share
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    mean, low, factor, shift = factors(
        p_mean, p_low, p_rstd, p_weight, p_bias, batch, o_c, m_c, C, GROUP
    )
    along = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    plain = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    distances = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    steps = tokens * tl.cdiv(positions, BLOCK_ROWS)
    for step in range(first, tl.minimum(first + share, steps)):
        distance, grad, _, _, mask = _step(
            step, batch, p_grad, p_raw, mean, low, factor, shift, tokens, positions, o_c,
            C, REDUCED, BLOCK_ROWS,
        )  # fmt: skip
        along += grad * distance
        plain += grad
        distances += tl.where(mask, distance, 0.0)
    p_share = p_sums + program.to(tl.int64) * (3 * C) + o_c
    tl.store(p_share, tl.sum(along, 0), mask=m_c)
    tl.store(p_share + C, tl.sum(plain, 0), mask=m_c)
    tl.store(p_share + 2 * C, tl.sum(distances, 0), mask=m_c)
    if program == 0:
        tl.store(p_merged + o_c // GROUP, 0, mask=m_c)


@triton.jit
def _three_sums(  # type: ignore[no-untyped-def]
    p_parts: tl.tensor,
    parts: tl.tensor,
    o_c: tl.tensor,
    m_c: tl.tensor,
    C: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """[parts, 3, C] -> three sums of some channels, in float64, also of what was just written."""
    first = tl.zeros((BLOCK_PARTS, BLOCK_C), tl.float64)
    second = tl.zeros((BLOCK_PARTS, BLOCK_C), tl.float64)
    third = tl.zeros((BLOCK_PARTS, BLOCK_C), tl.float64)
    for start in range(0, parts, BLOCK_PARTS):
        o_part = start + tl.arange(0, BLOCK_PARTS)
        mask = (o_part < parts)[:, None] & m_c[None, :]
        p_part = p_parts + (o_part.to(tl.int64) * (3 * C))[:, None] + o_c[None, :]
        first += tl.load(p_part, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float64)
        part = tl.load(p_part + C, mask=mask, other=0.0, cache_modifier=".cg")
        second += part.to(tl.float64)
        part = tl.load(p_part + 2 * C, mask=mask, other=0.0, cache_modifier=".cg")
        third += part.to(tl.float64)
    return tl.sum(first, 0), tl.sum(second, 0), tl.sum(third, 0)


@triton.jit(do_not_specialize=["rows"])
def merge_kernel(
    p_sums: tl.tensor,  # [B, shares, 3, C]
    p_rstd: tl.tensor,  # [B, G]
    p_weight: tl.tensor,
    p_merged: tl.tensor,  # [G], 0
    p_means: tl.tensor,  # [B, 2, G]: of scaled gradient times normalised value, of scaled gradient
    p_samples: tl.tensor,  # [B, 3, C]: what follows, of each sample
    p_norm_weight: tl.tensor,  # [C], gradients
    p_norm_bias: tl.tensor,
    p_bias: tl.tensor,
    batches: tl.tensor,
    rows: tl.tensor,
    shares: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SHARES: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """The shares' sums of one sample and group, merged; and by the group's last program, the
    gradients to the three vectors.

    Sums are tiny, and what cancels in them should leave 0: they are in float64.
    """
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_channel = tl.arange(0, BLOCK_C)
    m_c = o_channel < GROUP
    o_c = group * GROUP + o_channel
    along_of, plain_of, distance_of = _three_sums(
        p_sums + batch * shares * (3 * C), shares, o_c, m_c, C, BLOCK_SHARES, BLOCK_C
    )
    rstd = tl.load(p_rstd + batch * (C // GROUP) + group).to(tl.float64)
    along_of *= rstd
    # Of the group the distances are 0 on average: the saved mean is a little off.
    normalised_of = (distance_of - tl.sum(distance_of, 0) / GROUP) * rstd
    # An infinite scale times gradients that the ReLU stopped is NaN.
    weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float64)
    weight = tl.where(tl.abs(weight) == float("inf"), float("nan"), weight)
    scaled_of = weight * plain_of
    size = rows.to(tl.float64) * GROUP
    along_mean, mean = tl.sum(weight * along_of, 0) / size, tl.sum(scaled_of, 0) / size
    p_group = p_means + batch * (2 * (C // GROUP)) + group
    tl.store(p_group, along_mean.to(tl.float32))
    tl.store(p_group + C // GROUP, mean.to(tl.float32))
    # From the sums, since the raw volume's gradient is rounded, each element by itself.
    of_bias = (scaled_of - rows.to(tl.float64) * mean - normalised_of * along_mean) * rstd
    p_sample = p_samples + batch * (3 * C) + o_c
    tl.store(p_sample, along_of, mask=m_c)
    tl.store(p_sample + C, plain_of, mask=m_c)
    tl.store(p_sample + 2 * C, of_bias, mask=m_c)
    tl.debug_barrier()
    if tl.atomic_add(p_merged + group, 1, sem="acq_rel") == batches - 1:
        along_of, plain_of, of_bias = _three_sums(
            p_samples, batches, o_c, m_c, C, BLOCK_SHARES, BLOCK_C
        )
        dtype = p_bias.dtype.element_ty
        tl.store(p_norm_weight + o_c, along_of.to(dtype), mask=m_c)
        tl.store(p_norm_bias + o_c, plain_of.to(dtype), mask=m_c)
        tl.store(p_bias + o_c, of_bias.to(dtype), mask=m_c)


@triton.jit
def gradient_kernel(
    p_grad: tl.tensor,  # as above
    p_raw: tl.tensor,
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_means: tl.tensor,  # [B, 2, G], as `merge_kernel` leaves them
    p_out: tl.tensor,  # [B, tokens, positions, C]
    tokens: tl.tensor,
    positions: tl.tensor,
    shares: tl.tensor,
    share: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Gradient to a share of the raw volume."""
    program = tl.program_id(0)
    batch, first = (program // shares).to(tl.int64), program % shares * share
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    mean, low, factor, shift = factors(
        p_mean, p_low, p_rstd, p_weight, p_bias, batch, o_c, m_c, C, GROUP
    )
    rstd = tl.load(p_rstd + batch * (C // GROUP) + o_c // GROUP, mask=m_c, other=0.0)
    p_group = p_means + batch * (2 * (C // GROUP)) + o_c // GROUP
    along = tl.load(p_group, mask=m_c, other=0.0) * rstd
    plain = tl.load(p_group + C // GROUP, mask=m_c, other=0.0)
    weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    steps = tokens * tl.cdiv(positions, BLOCK_ROWS)
    for step in range(first, tl.minimum(first + share, steps)):
        distance, grad, start, offset, mask = _step(
            step, batch, p_grad, p_raw, mean, low, factor, shift, tokens, positions, o_c,
            C, REDUCED, BLOCK_ROWS,
        )  # fmt: skip
        out = grad * weight[None, :] - plain[None, :] - distance * along[None, :]
        out = (out * rstd[None, :]).to(p_out.dtype.element_ty)
        tl.store(p_out + start + offset, out, mask=mask)


def normalise(raw: Tensor, normalisation: Normalisation, out: Tensor) -> None:
    """relu(group norm) of a dense volume into another, which may be the same; or its mean over the
    support into [B, C, Hq, Wq]."""
    batch, channels, query_rows, query_columns, *kept = raw.shape
    tile = tiles.elementwise(channels)
    given = normalisation.tensors
    group = channels // given[2].shape[1]
    tokens, positions = query_rows * query_columns, kept[0] * kept[1]
    if batch == 0:
        return
    if out.ndim == 4:
        block = tiles.power_of_2(positions, 16, tile.rows)
        normalise_mean_kernel[(batch * tokens, blocks(channels, tile.columns))](
            raw, *given, out, tokens, positions,
            C=channels, GROUP=group, BLOCK_ROWS=block, BLOCK_C=tile.columns,
            **options(replace(tile, warps=2)),
        )  # fmt: skip
        return
    rows = tokens * positions
    row_tiles = blocks(rows, tile.rows)
    normalise_kernel[(batch * row_tiles, blocks(channels, tile.columns))](
        raw, *given, out, rows, row_tiles,
        C=channels, GROUP=group, INDEX=index_type(rows),
        BLOCK_ROWS=tile.rows, BLOCK_C=tile.columns, **options(tile),
    )  # fmt: skip


class Backward:
    """The gradient through mean, ReLU and normalisation, in two passes over the raw volume.

    The first sums, for each sample and channel, the gradient behind the ReLU, and that times the
    distance from the group's mean; the second computes the raw volume's gradient from their means.

    Args:
        grad: [B, C, Hq, Wq, hs, ws] dense, channels innermost, or [B, C, Hq, Wq] contiguous.
        raw: [B, C, Hq, Wq, hs, ws], dense, channels innermost.
        mean, rstd: [2, B, G] and [B, G], from `statistics`.
        weight, bias: [C].

    Attributes:
        norm_weight, norm_bias: gradients to the scale and to the shift, [C].
        bias: gradient to what was added to the raw volume's channels, [C].
    """

    def __init__(
        self, grad: Tensor, raw: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
    ) -> None:
        batch, channels, query_rows, query_columns, *kept = raw.shape
        groups = rstd.shape[1]
        tokens, positions = query_rows * query_columns, kept[0] * kept[1]
        rows = tokens * positions
        reduced = grad.ndim == 4
        if not reduced:
            tokens, positions = 1, rows
        self.tile = tiles.gradient(channels, positions)
        steps = tokens * blocks(positions, self.tile.rows)
        share = tiles.gradient_share(batch * steps)
        shares = blocks(steps, share)
        self.grid = (batch * shares, blocks(channels, self.tile.columns))
        self.inputs = (grad, raw, *mean, rstd, weight, bias)
        self.sizes = (tokens, positions, shares, share)
        self.constants = {"C": channels, "GROUP": channels // groups, "REDUCED": reduced}
        vectors = [weight.new_empty(channels) for _ in range(3)]
        self.norm_weight, self.norm_bias, self.bias = vectors
        if batch == 0:
            for vector in vectors:
                vector.zero_()
            return
        sums = rstd.new_empty(batch, shares, 3, channels)
        merged = rstd.new_empty(groups, dtype=torch.int32)
        self._launch(gradient_sums_kernel, sums, merged)
        self.means = rstd.new_empty(batch, 2, groups)
        samples = rstd.new_empty(batch, 3, channels, dtype=torch.float64)
        tile = tiles.merged(channels // groups)
        merge_kernel[(batch, groups)](
            sums, rstd, weight, merged, self.means, samples, *vectors, batch, rows, shares,
            C=channels, GROUP=channels // groups,
            BLOCK_SHARES=tile.rows, BLOCK_C=tile.columns, **options(tile),
        )  # fmt: skip

    def volume(self, out: Tensor) -> None:
        """Gradient to the raw volume, into one like it."""
        if len(out):
            self._launch(gradient_kernel, self.means, out)

    def _launch(self, kernel: triton.JITFunction, *outputs: Tensor) -> None:
        kernel[self.grid](
            *self.inputs, *outputs, *self.sizes, **self.constants,
            BLOCK_ROWS=self.tile.rows, BLOCK_C=self.tile.columns, **options(self.tile),
        )  # fmt: skip
