"""Gradients to the convolutions' weights: one product over all positions for each tap.

What a tap reads at a position, [positions, Ci], transposed, times the gradient there, [positions,
Co]. Shares of the positions are summed apart, and then in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import architecture, blocks, index_type, options, precision
from fsdino.kernels.walk import Grid, inside_of, position


@triton.jit(do_not_specialize=["first_query_row"])
def weight_gradient_kernel(
    p_source: tl.tensor,  # [B, Q, Wq, Hs, Ws, CI], the batch strided
    p_grad: tl.tensor,  # [B, rows, CO], the batch strided
    p_partial: tl.tensor,  # [splits, taps, CI, CO]
    source_batch: tl.tensor,  # positions from one sample to the next
    grad_batch: tl.tensor,
    rows: tl.tensor,
    row_tiles: tl.tensor,
    tiles_in_all: tl.tensor,
    tiles_in_split: tl.tensor,
    first_tap: tl.tensor,
    taps: tl.tensor,
    grad_rows: tl.tensor,
    grad_columns: tl.tensor,
    source_query_rows: tl.tensor,
    query_columns: tl.tensor,
    source_rows: tl.tensor,
    source_columns: tl.tensor,
    stride: tl.tensor,
    first_query_row: tl.tensor,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL_QUERY: tl.constexpr,
    KERNEL_SUPPORT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """One tap's matrix of gradients, a block of it, from one share of the positions."""
    CO_BLOCKS: tl.constexpr = (CO + BLOCK_CO - 1) // BLOCK_CO
    CI_BLOCKS: tl.constexpr = (CI + BLOCK_CI - 1) // BLOCK_CI
    program = tl.program_id(0)
    split = tl.program_id(1)
    slot = program // (CO_BLOCKS * CI_BLOCKS)
    o_co = (program % CO_BLOCKS) * BLOCK_CO + tl.arange(0, BLOCK_CO)
    o_ci = (program // CO_BLOCKS % CI_BLOCKS) * BLOCK_CI + tl.arange(0, BLOCK_CI)
    m_co, m_ci = o_co < CO, o_ci < CI

    tap = first_tap + slot
    over_query = tap < KERNEL_QUERY * KERNEL_QUERY
    support_tap = tl.maximum(tap - KERNEL_QUERY * KERNEL_QUERY, 0)
    query_row_shift = tl.where(over_query, tap // KERNEL_QUERY - KERNEL_QUERY // 2, 0)
    query_column_shift = tl.where(over_query, tap % KERNEL_QUERY - KERNEL_QUERY // 2, 0)
    row_shift = tl.where(over_query, 0, support_tap // KERNEL_SUPPORT - KERNEL_SUPPORT // 2)
    column_shift = tl.where(over_query, 0, support_tap % KERNEL_SUPPORT - KERNEL_SUPPORT // 2)

    acc = tl.zeros((BLOCK_CI, BLOCK_CO), tl.float32)
    first_tile = split * tiles_in_split
    for tile in range(first_tile, tl.minimum(first_tile + tiles_in_split, tiles_in_all)):
        batch = (tile // row_tiles).to(tl.int64)
        o_row = (tile % row_tiles).to(INDEX) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        m_row = o_row < rows
        query_row, query_column, source_row, source_column = position(
            o_row, query_columns, grad_rows, grad_columns
        )
        query_row = query_row.to(tl.int32) + first_query_row + query_row_shift
        query_column += query_column_shift
        source_row = source_row * stride + row_shift
        source_column = source_column * stride + column_shift
        inside = m_row & inside_of(
            query_row,
            query_column,
            source_row,
            source_column,
            source_query_rows,
            query_columns,
            source_rows,
            source_columns,
        )
        o_source = query_row.to(tl.int64) * query_columns + query_column
        o_source = (o_source * source_rows + source_row) * source_columns + source_column
        b_source = tl.load(
            p_source + ((batch * source_batch + o_source) * CI)[:, None] + o_ci[None, :],
            mask=inside[:, None] & m_ci[None, :],
            other=0.0,
        )  # [BLOCK_ROWS, BLOCK_CI]
        b_grad = tl.load(
            p_grad + ((batch * grad_batch + o_row) * CO)[:, None] + o_co[None, :],
            mask=m_row[:, None] & m_co[None, :],
            other=0.0,
        )  # [BLOCK_ROWS, BLOCK_CO]
        acc = tl.dot(tl.trans(b_source), b_grad, acc, input_precision=PRECISION)
    o_partial = ((split.to(tl.int64) * taps + slot) * CI + o_ci)[:, None] * CO + o_co[None, :]
    tl.store(p_partial + o_partial, acc, mask=m_ci[:, None] & m_co[None, :])


def weight_gradients(
    source: Tensor, grad: Tensor, grid: Grid, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to weight_query and weight_support, [Co, Ci, k, k] in float32, where needed.

    The positions are split into shares, each summed by one program, and the shares are added in a
    fixed order.
    """
    over_query, over_support = grid.kernel_query**2, grid.kernel_support**2
    first_tap = 0 if needs[0] else over_query
    taps = (over_query if needs[0] else 0) + (over_support if needs[1] else 0)
    batch, inner, source_query_rows, query_columns, source_rows, source_columns = source.shape
    outer, query_rows, _, *kept = grad.shape[1:]
    if taps == 0:
        return None, None
    tile = tiles.weight_gradient(inner, outer, source.dtype, architecture(source))
    rows = query_rows * query_columns * kept[0] * kept[1]
    row_tiles = blocks(rows, tile.depth)
    programs = taps * blocks(inner, tile.rows) * blocks(outer, tile.columns)
    steps = batch * row_tiles
    share = blocks(steps, tiles.weight_splits(tile, programs, steps))
    splits = blocks(steps, share) if steps else 0
    partial = grad.new_empty(splits, taps, inner, outer, dtype=torch.float32)
    if splits:
        weight_gradient_kernel[(programs, splits)](
            source, grad, partial, source.stride(0) // inner, grad.stride(0) // outer,
            rows, row_tiles, steps, share, first_tap, taps, *kept,
            source_query_rows, query_columns, source_rows, source_columns,
            grid.stride, grid.first_query_row,
            CI=inner, CO=outer,
            KERNEL_QUERY=grid.kernel_query, KERNEL_SUPPORT=grid.kernel_support,
            PRECISION=precision(source), INDEX=index_type(rows),
            BLOCK_CI=tile.rows, BLOCK_CO=tile.columns, BLOCK_ROWS=tile.depth,
            **options(tile),
        )  # fmt: skip
    total = partial.sum(0)  # [taps, Ci, Co]
    of_query, of_support = total.split(
        (over_query if needs[0] else 0, over_support if needs[1] else 0)
    )
    return (
        _as_kernel(of_query, grid.kernel_query) if needs[0] else None,
        _as_kernel(of_support, grid.kernel_support) if needs[1] else None,
    )


def _as_kernel(matrix: Tensor, size: int) -> Tensor:
    """[k*k, Ci, Co] -> [Co, Ci, k, k]."""
    kernel: Tensor = matrix.permute(2, 1, 0).unflatten(2, (size, size))
    return kernel
