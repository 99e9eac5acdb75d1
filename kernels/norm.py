"""Group normalisation, ReLU and the mean over the support: light passes over a raw volume.

The statistics come from the convolution, as mean and sum of squared deviations of each of its
tiles and channels; they are merged here in a fixed order (Chan, Golub and LeVeque 1979). A mean is
a sum of two floats: where all values lie close to it, what the first loses is not small beside the
deviations.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import blocks, index_type, options


@triton.jit
def statistics_kernel(
    p_partial: tl.tensor,  # [B, tiles, 3, PARTS]
    p_mean: tl.tensor,  # [B, G]
    p_low: tl.tensor,  # [B, G]
    p_rstd: tl.tensor,  # [B, G]
    rows: tl.tensor,
    row_tiles: tl.tensor,
    size: tl.tensor,  # values in a group
    eps: tl.tensor,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,  # parts of a group
    TILE_ROWS: tl.constexpr,
    MERGED: tl.constexpr,  # channels of a part
    BLOCK: tl.constexpr,
) -> None:
    """Mean, in two parts, and reciprocal standard deviation of one sample's group, from its
    tiles'."""
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_batch = p_partial + batch * row_tiles * (3 * PARTS) + group * GROUP
    first = tl.load(p_batch)  # Means are summed as distances from the first.
    entries = row_tiles * GROUP
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        m_entry = entry < entries
        tile = (entry // GROUP).to(tl.int64)
        count = (tl.minimum(rows - tile * TILE_ROWS, TILE_ROWS) * MERGED).to(tl.float32)
        p_entry = p_batch + tile * (3 * PARTS) + entry % GROUP
        b_mean = tl.load(p_entry, mask=m_entry, other=0.0)
        b_low = tl.load(p_entry + PARTS, mask=m_entry, other=0.0)
        total += tl.where(m_entry, (b_mean - first + b_low) * count, 0.0)
    offset = tl.sum(total, 0) / size
    deviations = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        m_entry = entry < entries
        tile = (entry // GROUP).to(tl.int64)
        count = (tl.minimum(rows - tile * TILE_ROWS, TILE_ROWS) * MERGED).to(tl.float32)
        p_entry = p_batch + tile * (3 * PARTS) + entry % GROUP
        b_mean = tl.load(p_entry, mask=m_entry, other=0.0)
        b_low = tl.load(p_entry + PARTS, mask=m_entry, other=0.0)
        b_squares = tl.load(p_entry + 2 * PARTS, mask=m_entry, other=0.0)
        distance = (b_mean - first - offset) + b_low
        deviations += tl.where(m_entry, b_squares + count * distance * distance, 0.0)
    variance = tl.sum(deviations, 0) / size
    o_group = batch * (PARTS // GROUP) + group
    mean = first + offset
    of_offset = mean - first
    tl.store(p_mean + o_group, mean)
    tl.store(p_low + o_group, (first - (mean - of_offset)) + (offset - of_offset))
    tl.store(p_rstd + o_group, 1.0 / tl.sqrt_rn(variance + eps))


@triton.jit
def _normalised(  # type: ignore[no-untyped-def]
    p_raw: tl.tensor,
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    offset: tl.tensor,
    mask: tl.tensor,
    batch: tl.tensor,
    o_c: tl.tensor,
    m_c: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Raw values less their group's mean, over its standard deviation; and the latter's inverse."""
    o_group = batch * (C // GROUP) + o_c // GROUP
    mean = tl.load(p_mean + o_group, mask=m_c, other=0.0)
    rstd = tl.load(p_rstd + o_group, mask=m_c, other=0.0)
    raw = tl.load(p_raw + offset, mask=mask, other=0.0).to(tl.float32)
    low = tl.load(p_low + o_group, mask=m_c, other=0.0)
    return (raw - mean[None, :] - low[None, :]) * rstd[None, :], rstd


@triton.jit
def _affine(  # type: ignore[no-untyped-def]
    normalised: tl.tensor, p_weight: tl.tensor, p_bias: tl.tensor, o_c: tl.tensor, m_c: tl.tensor
):
    """The normalisation's scale and shift applied, and the scale."""
    weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    return normalised * weight[None, :] + bias[None, :], weight


@triton.jit
def _factors(  # type: ignore[no-untyped-def]
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
    mean, low, factor, shift = _factors(
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
    mean, low, factor, shift = _factors(
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
def distance_sums_kernel(
    p_raw: tl.tensor,  # [B, rows, C]
    p_mean: tl.tensor,
    p_sums: tl.tensor,  # [B, tiles, C]
    rows: tl.tensor,
    row_tiles: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """A block's sums of the raw values less their group's mean, which was rounded."""
    tile = tl.program_id(0)
    batch = (tile // row_tiles).to(tl.int64)
    o_row = (tile % row_tiles).to(INDEX) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    mask = (o_row < rows)[:, None] & m_c[None, :]
    offset = ((batch * rows + o_row) * C)[:, None] + o_c[None, :]
    mean = tl.load(p_mean + batch * (C // GROUP) + o_c // GROUP, mask=m_c, other=0.0)
    raw = tl.load(p_raw + offset, mask=mask, other=0.0).to(tl.float32)
    distance = tl.where(mask, raw - mean[None, :], 0.0)
    tl.store(p_sums + tile.to(tl.int64) * C + o_c, tl.sum(distance, 0), mask=m_c)


@triton.jit
def _rectified_gradient(  # type: ignore[no-untyped-def]
    p_grad: tl.tensor,
    p_raw: tl.tensor,
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    rows: tl.tensor,
    kept: tl.tensor,
    batch: tl.tensor,
    o_row: tl.tensor,
    o_c: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """The gradient behind the ReLU, the normalised values, scale and inverse deviation."""
    m_c = o_c < C
    mask = (o_row < rows)[:, None] & m_c[None, :]
    offset = ((batch * rows + o_row) * C)[:, None] + o_c[None, :]
    normalised, rstd = _normalised(
        p_raw, p_mean, p_low, p_rstd, offset, mask, batch, o_c, m_c, C, GROUP
    )
    y, weight = _affine(normalised, p_weight, p_bias, o_c, m_c)
    if REDUCED:
        tokens = rows // kept
        o_grad = (o_row // kept)[:, None] + ((batch * C + o_c) * tokens)[None, :]
        grad = tl.load(p_grad + o_grad, mask=mask, other=0.0).to(tl.float32) / kept
    else:
        grad = tl.load(p_grad + offset, mask=mask, other=0.0).to(tl.float32)
    grad = tl.where((y <= 0) | (~mask), 0.0, grad)
    return grad, tl.where(mask, normalised, 0.0), weight, rstd, offset, mask


@triton.jit
def gradient_sums_kernel(
    p_grad: tl.tensor,  # [B, rows, C], or [B, C, tokens] if REDUCED
    p_raw: tl.tensor,  # [B, rows, C]
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_sums: tl.tensor,  # [B, tiles, 2, C]
    rows: tl.tensor,
    row_tiles: tl.tensor,
    kept: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    REDUCED: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """A block's sums of the gradient behind the ReLU, and of that times the values."""
    tile = tl.program_id(0)
    batch = (tile // row_tiles).to(tl.int64)
    o_row = (tile % row_tiles).to(INDEX) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad, normalised, _, _, _, _ = _rectified_gradient(
        p_grad, p_raw, p_mean, p_low, p_rstd, p_weight, p_bias,
        rows, kept, batch, o_row, o_c, C, GROUP, REDUCED,
    )  # fmt: skip
    p_tile = p_sums + tile.to(tl.int64) * (2 * C) + o_c
    tl.store(p_tile, tl.sum(grad * normalised, 0), mask=o_c < C)
    tl.store(p_tile + C, tl.sum(grad, 0), mask=o_c < C)


@triton.jit
def gradient_kernel(
    p_grad: tl.tensor,  # as above
    p_raw: tl.tensor,
    p_mean: tl.tensor,
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_means: tl.tensor,  # [B, 2, G]: of scaled gradient times normalised value, of scaled gradient
    p_out: tl.tensor,  # [B, rows, C]
    rows: tl.tensor,
    row_tiles: tl.tensor,
    kept: tl.tensor,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    REDUCED: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Gradient to the raw volume."""
    tile = tl.program_id(0)
    batch = (tile // row_tiles).to(tl.int64)
    o_row = (tile % row_tiles).to(INDEX) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad, normalised, weight, rstd, offset, mask = _rectified_gradient(
        p_grad, p_raw, p_mean, p_low, p_rstd, p_weight, p_bias,
        rows, kept, batch, o_row, o_c, C, GROUP, REDUCED,
    )  # fmt: skip
    p_group = p_means + batch * (2 * (C // GROUP)) + o_c // GROUP
    along = tl.load(p_group, mask=o_c < C, other=0.0)
    mean = tl.load(p_group + C // GROUP, mask=o_c < C, other=0.0)
    out = grad * weight[None, :] - mean[None, :] - normalised * along[None, :]
    out = (out * rstd[None, :]).to(p_out.dtype.element_ty)
    tl.store(p_out + offset, out, mask=mask)


def statistics(
    partial: Tensor, channels: int, rows: int, tile_rows: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, what it lost when it was rounded, and reciprocal standard deviation, [B, G] each, from
    what `walk.forward` returns of a convolution with so many channels."""
    batch, row_tiles, _, parts = partial.shape
    mean, low, rstd = (partial.new_empty(batch, groups) for _ in range(3))
    if batch:
        tile = tiles.statistics()
        size = float(rows * (channels // groups))
        statistics_kernel[(batch, groups)](
            partial, mean, low, rstd, rows, row_tiles, size, eps,
            PARTS=parts, GROUP=parts // groups, TILE_ROWS=tile_rows, MERGED=channels // parts,
            BLOCK=tile.rows, **options(tile),
        )  # fmt: skip
    return mean, low, rstd


def normalise(
    raw: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
) -> None:
    """relu(group norm) of a dense volume into another, which may be the same; or its mean over the
    support into [B, C, Hq, Wq]. The statistics are `statistics`' own."""
    batch, channels, query_rows, query_columns, *kept = raw.shape
    tile = tiles.elementwise(channels)
    group = channels // statistics[0].shape[1]
    tokens, positions = query_rows * query_columns, kept[0] * kept[1]
    if batch == 0:
        return
    if out.ndim == 4:
        block = tiles.power_of_2(positions, 16, tile.rows)
        normalise_mean_kernel[(batch * tokens, blocks(channels, tile.columns))](
            raw, *statistics, weight, bias, out, tokens, positions,
            C=channels, GROUP=group, BLOCK_ROWS=block, BLOCK_C=tile.columns,
            **options(replace(tile, warps=2)),
        )  # fmt: skip
        return
    rows = tokens * positions
    row_tiles = blocks(rows, tile.rows)
    normalise_kernel[(batch * row_tiles, blocks(channels, tile.columns))](
        raw, *statistics, weight, bias, out, rows, row_tiles,
        C=channels, GROUP=group, INDEX=index_type(rows),
        BLOCK_ROWS=tile.rows, BLOCK_C=tile.columns, **options(tile),
    )  # fmt: skip


class Backward:
    """The gradient through mean, ReLU and normalisation, in three passes over the raw volume.

    The first finds what the groups' means lost when they were rounded. The second sums, for each
    sample and channel, the gradient behind the ReLU, and that times the normalised value; the third
    computes the raw volume's gradient from their means.

    Args:
        grad: [B, C, Hq, Wq, hs, ws] as `layout.volume` leaves it and dense over the batch, or
            [B, C, Hq, Wq] contiguous.
        raw: [B, C, Hq, Wq, hs, ws], dense, channels innermost.
        mean, rstd: [B, G].
        weight, bias: [C].
    """

    def __init__(
        self, grad: Tensor, raw: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
    ) -> None:
        batch, channels, query_rows, query_columns, *kept = raw.shape
        self.raw, self.rstd = raw, rstd
        self.groups = mean.shape[1]
        self.positions = kept[0] * kept[1]
        self.rows = query_rows * query_columns * self.positions
        self.tile = tiles.elementwise(channels)
        self.row_tiles = blocks(self.rows, self.tile.rows)
        self.reduced = grad.ndim == 4
        size = self.rows * (channels // self.groups)
        distances = mean.new_empty(batch, self.row_tiles, channels)
        self._launch(distance_sums_kernel, raw, mean, distances, self.rows, self.row_tiles)
        # Sums are tiny, and what cancels in them should leave 0: they are in float64.
        of_channels = self._sum_tiles(distances)  # [B, G, C / G]
        low = of_channels.sum(2) / size  # [B, G]
        self.normalised = (of_channels - self.rows * low[:, :, None]) * rstd[:, :, None]

        self.inputs = (grad, raw, mean, low.float(), rstd, weight, bias)
        sums = mean.new_empty(batch, self.row_tiles, 2, channels)
        self._launch_back(gradient_sums_kernel, sums)
        self.along, self.plain = self._sum_tiles(sums).unbind(1)  # [B, G, C / G]
        # An infinite scale times gradients that the ReLU stopped is NaN.
        scale = weight.double().masked_fill(weight.isinf(), torch.nan).view(self.groups, -1)
        self.scaled = scale * self.plain
        means = torch.stack(((scale * self.along).sum(2), self.scaled.sum(2)), 1)
        self.means = means / size  # [B, 2, G]

    def norm_weight(self) -> Tensor:
        """Gradient to the scale, [C], in float64."""
        return self.along.sum(0).flatten()

    def norm_bias(self) -> Tensor:
        """Gradient to the shift, [C], in float64."""
        return self.plain.sum(0).flatten()

    def bias(self) -> Tensor:
        """Gradient to what was added to the raw volume's channels, [C], in float64.

        From the sums, since the raw volume's gradient is rounded, each element by itself.
        """
        along, mean = self.means[..., None].unbind(1)
        total = (self.scaled - self.rows * mean - self.normalised * along) * self.rstd[:, :, None]
        return total.sum(0).flatten()

    def volume(self, out: Tensor) -> None:
        """Gradient to the raw volume, into one like it."""
        self._launch_back(gradient_kernel, self.means.float(), out)

    def _sum_tiles(self, parts: Tensor) -> Tensor:
        """[B, tiles, ..., C] -> [B, ..., G, C / G] in float64."""
        sums: Tensor = parts.sum(1, dtype=torch.float64).unflatten(-1, (self.groups, -1))
        return sums

    def _launch(
        self, kernel: triton.JITFunction, *arguments: Tensor | int, **settings: bool
    ) -> None:
        batch, channels = self.raw.shape[:2]
        if batch == 0:
            return
        kernel[(batch * self.row_tiles, blocks(channels, self.tile.columns))](
            *arguments, C=channels, GROUP=channels // self.groups, **settings,
            INDEX=index_type(self.rows),
            BLOCK_ROWS=self.tile.rows, BLOCK_C=self.tile.columns, **options(self.tile),
        )  # fmt: skip

    def _launch_back(self, kernel: triton.JITFunction, *outputs: Tensor) -> None:
        sizes = (self.rows, self.row_tiles, self.positions)
        self._launch(kernel, *self.inputs, *outputs, *sizes, REDUCED=self.reduced)
