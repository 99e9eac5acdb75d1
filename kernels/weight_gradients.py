"""Gradients to the convolutions' weights: one product over all positions for each tap.

What a tap reads at a position, [positions, Ci], transposed, times the gradient there, [positions,
Co]. A program does this for several taps: it works out once where its positions lie and what the
taps reach from there, and loads the gradient once. Shares of the positions are summed apart, and
then in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import architecture, blocks, index_type, options, precision
from fsdino.kernels.walk import Grid, inside_of, positions, reached, row_index, tap_of


@triton.jit
def _taps_inside(  # type: ignore[no-untyped-def]
    row: tl.tensor,
    rows: tl.tensor,
    column: tl.tensor,
    columns: tl.tensor,
    KERNEL: tl.constexpr,
    WORD: tl.constexpr,
):
    """Bit t of a word: whether tap t of a kernel around a place lies inside of a grid."""
    BACK: tl.constexpr = KERNEL // 2
    ALL: tl.constexpr = (1 << KERNEL * KERNEL) - 1
    FIRST_OF_ROWS: tl.constexpr = ALL // ((1 << KERNEL) - 1)
    first, last = tl.maximum(BACK - row, 0), tl.minimum(rows - row + BACK, KERNEL)
    one = tl.zeros_like(row).to(WORD) + 1
    of_rows = (one << (last * KERNEL).to(WORD)) - (one << (first * KERNEL).to(WORD))
    of_columns = reached(column, columns, -BACK, KERNEL, 1, WORD)
    return of_rows & (of_columns * FIRST_OF_ROWS)


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
    first_query_row: tl.tensor,
    CI: tl.constexpr,
    CO: tl.constexpr,
    STRIDE: tl.constexpr,
    KERNEL_QUERY: tl.constexpr,
    KERNEL_SUPPORT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,  # of positions
    OFFSET: tl.constexpr,  # of elements, from those of a tile's first position
    WORD: tl.constexpr,  # with a bit for each tap, or None
    TAPS: tl.constexpr,  # of one program
    BLOCK_CI: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """A few taps' matrices of gradients, a block of each, from one share of the positions."""
    CO_BLOCKS: tl.constexpr = (CO + BLOCK_CO - 1) // BLOCK_CO
    CI_BLOCKS: tl.constexpr = (CI + BLOCK_CI - 1) // BLOCK_CI
    query_taps: tl.constexpr = KERNEL_QUERY * KERNEL_QUERY
    support_back: tl.constexpr = -(KERNEL_SUPPORT // 2)
    program = tl.program_id(0)
    split = tl.program_id(1)
    first_slot = program // (CO_BLOCKS * CI_BLOCKS) * TAPS
    o_co = (program % CO_BLOCKS) * BLOCK_CO + tl.arange(0, BLOCK_CO)
    o_ci = (program // CO_BLOCKS % CI_BLOCKS) * BLOCK_CI + tl.arange(0, BLOCK_CI)
    m_co = tl.full((BLOCK_CO,), 1, tl.int1) if CO % BLOCK_CO == 0 else o_co < CO
    m_ci = tl.full((BLOCK_CI,), 1, tl.int1) if CI % BLOCK_CI == 0 else o_ci < CI

    sums = ()
    for _slot in tl.static_range(TAPS):
        sums += (tl.zeros((BLOCK_CI, BLOCK_CO), tl.float32),)  # type: ignore[assignment]
    first_tile = split * tiles_in_split
    for tile in range(first_tile, tl.minimum(first_tile + tiles_in_split, tiles_in_all)):
        batch = (tile // row_tiles).to(tl.int64)
        first = (tile % row_tiles).to(INDEX) * BLOCK_ROWS
        o_row = first + tl.arange(0, BLOCK_ROWS)
        m_row = o_row < rows
        (
            first_row, first_column, first_kept_row, first_kept_column,
            query_row, query_column, kept_row, kept_column,
        ) = positions(first, query_columns, grad_rows, grad_columns, BLOCK_ROWS)  # fmt: skip
        source_query_row = query_row.to(tl.int32) + first_query_row
        source_row, source_column = kept_row * STRIDE, kept_column * STRIDE
        further = (query_row - first_row) * query_columns + (query_column - first_column)
        o_source = further.to(OFFSET) * (source_rows * source_columns)
        down, right = kept_row - first_kept_row, kept_column - first_kept_column
        o_source = (o_source + (down * source_columns + right) * STRIDE) * CI
        base = (first_row + first_query_row).to(tl.int64) * query_columns + first_column
        base = base * source_rows + first_kept_row * STRIDE
        base = base * source_columns + first_kept_column * STRIDE
        p_tile = p_source + (batch * source_batch + base) * CI

        if WORD is not None:
            over_query = _taps_inside(
                source_query_row, source_query_rows, query_column, query_columns, KERNEL_QUERY, WORD
            )
            over_support = _taps_inside(
                source_row, source_rows, source_column, source_columns, KERNEL_SUPPORT, WORD
            )
            bits = over_query | (over_support << query_taps)
            bits = tl.where(m_row, bits, 0) >> (first_tap + first_slot)

        p_rows = p_grad + (batch * grad_batch + first) * CO
        o_grad = (tl.arange(0, BLOCK_ROWS) * CO)[:, None] + o_co[None, :]
        b_grad = tl.load(p_rows + o_grad, mask=m_row[:, None] & m_co[None, :], other=0.0)
        added = ()
        for index in tl.static_range(TAPS):
            over_query, _, _, row_shift, column_shift, _ = tap_of(
                first_tap + first_slot + index, query_taps, KERNEL_SUPPORT,
                support_back, support_back, 0, 0, 1, KERNEL_QUERY, KERNEL_SUPPORT, 1,
            )  # fmt: skip
            if WORD is not None:
                inside = (bits >> index) & 1 != 0
            else:
                inside = m_row & inside_of(
                    source_query_row + tl.where(over_query, row_shift, 0),
                    query_column + tl.where(over_query, column_shift, 0),
                    source_row + tl.where(over_query, 0, row_shift),
                    source_column + tl.where(over_query, 0, column_shift),
                    source_query_rows, query_columns, source_rows, source_columns,
                )  # fmt: skip
            shift = row_shift * tl.where(over_query, query_columns, source_columns) + column_shift
            shift = shift.to(tl.int64) * tl.where(over_query, source_rows * source_columns, 1)
            b_source = tl.load(
                p_tile + shift * CI + (o_source[None, :] + o_ci[:, None]),
                mask=inside[None, :] & m_ci[:, None],
                other=0.0,
            )  # [BLOCK_CI, BLOCK_ROWS]
            product = tl.dot(b_source, b_grad, sums[index], input_precision=PRECISION)
            added += (product,)  # type: ignore[assignment]
        sums = added
    for index in tl.static_range(TAPS):
        slot = first_slot + index
        o_slot = (split.to(tl.int64) * taps + slot) * (CI * CO)
        mask = (m_ci & (slot < taps))[:, None] & m_co[None, :]
        tl.store(p_partial + o_slot + o_ci[:, None] * CO + o_co[None, :], sums[index], mask=mask)


@triton.jit
def weight_sums_kernel(
    p_partial: tl.tensor,  # [splits, taps, CI, CO]
    p_query: tl.tensor,  # [CO, CI, QUERY_TAPS], or None
    p_support: tl.tensor,  # [CO, CI, SUPPORT_TAPS], or None
    splits: tl.tensor,
    first_tap: tl.tensor,
    taps: tl.tensor,
    CI: tl.constexpr,
    CO: tl.constexpr,
    QUERY_TAPS: tl.constexpr,
    SUPPORT_TAPS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The shares of some elements of both kernels' gradients, added."""
    o_element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    elements = taps * (CI * CO)
    m_element = o_element < elements
    total = tl.zeros((BLOCK_SPLITS, BLOCK), tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        o_split = start + tl.arange(0, BLOCK_SPLITS)
        p_split = p_partial + (o_split.to(tl.int64) * elements)[:, None] + o_element[None, :]
        mask = (o_split < splits)[:, None] & m_element[None, :]
        total += tl.load(p_split, mask=mask, other=0.0)
    of_element = tl.sum(total, 0)
    slot = first_tap + o_element // (CI * CO)
    o_kernel = o_element % CO * CI + o_element // CO % CI
    if p_query is not None:
        mask = m_element & (slot < QUERY_TAPS)
        value = of_element.to(p_query.dtype.element_ty)
        tl.store(p_query + o_kernel * QUERY_TAPS + slot, value, mask=mask)
    if p_support is not None:
        slot -= QUERY_TAPS
        value = of_element.to(p_support.dtype.element_ty)
        tl.store(p_support + o_kernel * SUPPORT_TAPS + slot, value, mask=m_element & (slot >= 0))


def weight_gradients(
    source: Tensor, grad: Tensor, grid: Grid, needs: tuple[bool, bool], dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to weight_query and weight_support, [Co, Ci, k, k], where needed.

    The positions are split into shares, each summed by one program, and the shares are added in a
    fixed order.
    """
    over_query, over_support = grid.kernel_query**2, grid.kernel_support**2
    first_tap = 0 if needs[0] else over_query
    taps = (over_query if needs[0] else 0) + (over_support if needs[1] else 0)
    batch, inner, source_query_rows, query_columns, source_rows, source_columns = source.shape
    outer, query_rows, _, *kept = grad.shape[1:]
    of_query, of_support = (
        grad.new_empty(outer, inner, size, size, dtype=dtype) if need else None
        for need, size in zip(needs, (grid.kernel_query, grid.kernel_support), strict=True)
    )
    if taps == 0:
        return None, None
    tile = tiles.weight_gradient(inner, outer, source.dtype, architecture(source))
    rows = query_rows * query_columns * kept[0] * kept[1]
    row_tiles = blocks(rows, tile.depth)
    shared = tiles.weight_gradient_taps(tile, taps)
    cells = blocks(inner, tile.rows) * blocks(outer, tile.columns)
    programs = blocks(taps, shared) * cells
    steps = batch * row_tiles
    share = blocks(steps, tiles.weight_splits(tile, programs, steps))
    splits = blocks(steps, share) if steps else 0
    # Elements of the source from a tile's first position to its last.
    span = blocks(tile.depth, max(1, kept[0] * kept[1])) + 1
    offsets = span * source_rows * source_columns * inner
    partial = grad.new_empty(splits, taps, inner, outer, dtype=torch.float32)
    if splits:
        weight_gradient_kernel[(programs, splits)](
            source, grad, partial, source.stride(0) // inner, grad.stride(0) // outer,
            rows, row_tiles, steps, share, first_tap, taps, *kept,
            source_query_rows, query_columns, source_rows, source_columns, grid.first_query_row,
            CI=inner, CO=outer, STRIDE=grid.stride,
            KERNEL_QUERY=grid.kernel_query, KERNEL_SUPPORT=grid.kernel_support,
            PRECISION=precision(source), INDEX=row_index(rows, grad.shape[2:], tile.depth),
            OFFSET=index_type(offsets), TAPS=shared,
            WORD=_word(over_query + over_support),
            BLOCK_CI=tile.rows, BLOCK_CO=tile.columns, BLOCK_ROWS=tile.depth,
            **options(tile),
        )  # fmt: skip
    tile = tiles.weight_sums()
    weight_sums_kernel[(blocks(taps * inner * outer, tile.columns),)](
        partial, of_query, of_support, splits, first_tap, taps,
        CI=inner, CO=outer, QUERY_TAPS=over_query, SUPPORT_TAPS=over_support,
        BLOCK_SPLITS=tile.rows, BLOCK=tile.columns, **options(tile),
    )  # fmt: skip
    return of_query, of_support


def _word(taps: int) -> tl.dtype | None:
    """Of so many bits; one is to spare, of the sign."""
    return tl.int32 if taps < 32 else tl.int64 if taps < 64 else None
