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


def normalise(raw: Tensor, normalisation: Normalisation, out: Tensor) -> None:
    """relu(group norm) of a dense volume into another, which may be the same; or its mean over the
    support into [B, C, Hq, Wq]."""
    batch, channels, query_rows, query_columns, *kept = raw.shape
    tile = tiles.elementwise(channels)
    given = normalisation.tensors
    group = channels // given[0].shape[1]
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
