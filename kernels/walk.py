"""The walk over the taps: one implicit GEMM for both convolutions, and one for their transpose.

A row of the product is a position (query row, query column, support row, support column) of the
volume that is written. Each tap moves it to a position of the volume that is read, whose channels
lie side by side and are multiplied with the tap's matrix. Taps over the query dims come first, then
those over the support dims. Going back, a stride of s leaves s * s classes of support positions,
by their remainders; each is walked by itself, over the taps that reach it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import architecture, blocks, index_type, options, precision
from fsdino.kernels.matrices import Matrices
from fsdino.kernels.statistics import Normalisation, Statistics, factors, gather

NEAR = 2**20  # see `_quotient`


@triton.jit
def position(row: tl.tensor, width: tl.tensor, rows: tl.tensor, columns: tl.tensor):  # type: ignore[no-untyped-def]
    """Query row, query column, support row and support column of a row of the product."""
    support_column = row % columns
    row = row // columns
    support_row = row % rows
    row = row // rows
    return row // width, row % width, support_row, support_column


@triton.jit
def _quotient(value: tl.tensor, divisor: tl.tensor):  # type: ignore[no-untyped-def]
    """value // divisor, both below `NEAR`, at a fifth of the instructions of a division.

    (value + 1/2) / divisor is at least 1 / (2 divisor) away from any integer. A product with the
    reciprocal, which the hardware rounds to 2 units, is off by less than value / divisor / 2^21.
    """
    # A divisor of 1 is compiled in as a plain number.
    return ((value + 0.5) * (1.0 / (divisor + 0.0))).to(tl.int32)


@triton.jit
def positions(  # type: ignore[no-untyped-def]
    first: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    COUNT: tl.constexpr,
):
    """`position` of row `first`, and of COUNT rows from there on. Where the index of rows has 32
    bits, sizes are below `NEAR`, and only the first row is divided."""
    first_row, first_column, first_support_row, first_support_column = position(
        first, width, rows, columns
    )
    steps = tl.arange(0, COUNT)
    if first.dtype == tl.int64:
        row, column, support_row, support_column = position(first + steps, width, rows, columns)
    else:
        support_column = first_support_column + steps
        carry = _quotient(support_column, columns)
        support_column -= carry * columns
        support_row = first_support_row + carry
        carry = _quotient(support_row, rows)
        support_row -= carry * rows
        column = first_column + carry
        carry = _quotient(column, width)
        column -= carry * width
        row = first_row + carry
    return (
        first_row, first_column, first_support_row, first_support_column,
        row, column, support_row, support_column,
    )  # fmt: skip


@triton.jit
def inside_of(  # type: ignore[no-untyped-def]
    query_row: tl.tensor,
    query_column: tl.tensor,
    support_row: tl.tensor,
    support_column: tl.tensor,
    query_rows: tl.tensor,
    query_columns: tl.tensor,
    support_rows: tl.tensor,
    support_columns: tl.tensor,
):
    """Whether a position lies in the volume."""
    in_query = (query_row >= 0) & (query_row < query_rows)
    in_query &= (query_column >= 0) & (query_column < query_columns)
    in_support = (support_row >= 0) & (support_row < support_rows)
    in_support &= (support_column >= 0) & (support_column < support_columns)
    return in_query & in_support


@triton.jit
def tap_of(  # type: ignore[no-untyped-def]
    tap: tl.tensor,
    query_taps: tl.tensor,
    tap_columns: tl.tensor,
    first_row_shift: tl.tensor,
    first_column_shift: tl.tensor,
    first_tap_row: tl.tensor,
    first_tap_column: tl.tensor,
    tap_step: tl.tensor,
    KERNEL_QUERY: tl.constexpr,
    KERNEL_SUPPORT: tl.constexpr,
    DIRECTION: tl.constexpr,
):
    """Whether a tap is one over the query dims, its row and column among those over the same dims,
    how these move the source's row and column, and its matrix."""
    over_query = tap < query_taps
    support_tap = tl.maximum(tap - query_taps, 0)
    row = tl.where(over_query, tap // KERNEL_QUERY, support_tap // tap_columns)
    column = tl.where(over_query, tap % KERNEL_QUERY, support_tap % tap_columns)
    back = -DIRECTION * (KERNEL_QUERY // 2)
    row_shift = DIRECTION * row + tl.where(over_query, back, first_row_shift)
    column_shift = DIRECTION * column + tl.where(over_query, back, first_column_shift)
    matrix = (first_tap_row + tap_step * row) * KERNEL_SUPPORT
    matrix += first_tap_column + tap_step * column
    matrix = tl.where(over_query, tap, KERNEL_QUERY * KERNEL_QUERY + matrix)
    return over_query, row, column, row_shift, column_shift, matrix


@triton.jit
def reached(  # type: ignore[no-untyped-def]
    place: tl.tensor,
    size: tl.tensor,
    first_shift: tl.tensor,
    taps: tl.tensor,
    DIRECTION: tl.constexpr,
    WORD: tl.constexpr,
):
    """Bit t of a word: whether tap t of `taps` moves a place inside of 0, ..., size - 1. Where
    the direction is 1 the place itself lies there, and so some tap always does."""
    place += first_shift
    if DIRECTION == 1:
        first, last = tl.maximum(-place, 0), tl.minimum(size - place, taps)
    else:
        first, last = place - size + 1, place + 1
        last = tl.maximum(tl.minimum(last, taps), 0)
        first = tl.minimum(tl.maximum(first, 0), last)
    first, last = first.to(WORD), last.to(WORD)
    one = tl.zeros_like(last) + 1
    return (one << last) - (one << first)


@triton.jit
def _total(values: tl.tensor):  # type: ignore[no-untyped-def]
    """[rows, parts, channels of a part] -> [parts]."""
    ROWS: tl.constexpr = values.shape[0]
    PARTS: tl.constexpr = values.shape[1]
    MERGED: tl.constexpr = values.shape[2]
    return tl.sum(tl.reshape(tl.permute(values, (1, 0, 2)), (PARTS, ROWS * MERGED)), 1)


@triton.jit
def _normalised(  # type: ignore[no-untyped-def]
    raw: tl.tensor,  # [rows, channels]
    inside: tl.tensor,  # [rows]
    mean: tl.tensor,  # [channels], and as `factors` returns them: 0 where there is no channel
    low: tl.tensor,
    factor: tl.tensor,
    shift: tl.tensor,
):
    """relu(group norm) of raw values in their type, 0 in rows that are not inside."""
    y = raw.to(tl.float32) - mean[None, :]
    if raw.dtype == tl.float32:  # else far below what the values lost when they were rounded
        y -= low[None, :]
    y = y * factor[None, :] + shift[None, :]
    # A minimum takes one instruction, where a selection of half-precision values takes three. Of
    # NaN and a number it is the number: of y and NaN it is y, of NaN and 0 it is 0.
    most = tl.where(inside, float("nan"), 0.0)
    y = tl.minimum(y, most[:, None])
    return tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL).to(raw.dtype)


@triton.jit
def _class(  # type: ignore[no-untyped-def]
    number: tl.tensor,
    support_rows: tl.tensor,
    support_columns: tl.tensor,
    STRIDE: tl.constexpr,
    KERNEL_QUERY: tl.constexpr,
    KERNEL_SUPPORT: tl.constexpr,
):
    """Of one class of the transpose's support positions: its first row and column, how many rows
    and columns there are, and what `tap_of` takes of the taps that reach it, their number first.
    """
    PAD: tl.constexpr = KERNEL_SUPPORT // 2
    classes = tl.minimum(support_columns, STRIDE)
    row, column = number // classes, number % classes
    first_tap_row, first_tap_column = (row + PAD) % STRIDE, (column + PAD) % STRIDE
    tap_rows = tl.maximum(KERNEL_SUPPORT - first_tap_row + STRIDE - 1, 0) // STRIDE
    tap_columns = tl.maximum(KERNEL_SUPPORT - first_tap_column + STRIDE - 1, 0) // STRIDE
    query_taps = tl.where(number == 0, KERNEL_QUERY * KERNEL_QUERY, 0)
    return (
        row, column, tl.cdiv(support_rows - row, STRIDE), tl.cdiv(support_columns - column, STRIDE),
        query_taps + tap_rows * tap_columns, query_taps, tap_rows, tl.maximum(tap_columns, 1),
        (row + PAD - first_tap_row) // STRIDE, (column + PAD - first_tap_column) // STRIDE,
        first_tap_row, first_tap_column,
    )  # fmt: skip


@triton.jit(do_not_specialize=["query_rows", "first_query_row", "tiles_of_sample", "first_tile"])
def walk_kernel(
    p_source: tl.tensor,  # [B, Q, Wq, Hs, Ws, CI], the batch strided
    p_weight: tl.tensor,  # [kq*kq + ks*ks, CI, CO]
    p_bias: tl.tensor,  # [CO], unless not HAS_BIAS
    p_mean: tl.tensor,  # what normalises the source, [B, SOURCE_GROUPS] unless that is 0
    p_low: tl.tensor,
    p_rstd: tl.tensor,
    p_scale: tl.tensor,  # [CI]
    p_shift: tl.tensor,
    p_out: tl.tensor,  # [B, query_rows, ..., out_columns, CO], the batch strided
    p_out_mean: tl.tensor,  # what `gather` takes, unless GROUPS is 0
    p_out_low: tl.tensor,
    p_out_rstd: tl.tensor,
    p_entries: tl.tensor,
    p_arrived: tl.tensor,
    norm_eps: tl.tensor,
    tiles_of_sample: tl.tensor,
    first_tile: tl.tensor,  # of the sample's, where its rows come in several launches
    batches: tl.tensor,
    source_batch: tl.tensor,  # positions from one sample to the next
    out_batch: tl.tensor,
    row_tiles: tl.tensor,  # blocks of BLOCK_ROWS in a sample, of the class that has most
    source_query_rows: tl.tensor,
    source_rows: tl.tensor,
    source_columns: tl.tensor,
    query_rows: tl.tensor,
    query_columns: tl.tensor,
    out_rows: tl.tensor,
    out_columns: tl.tensor,
    first_query_row: tl.tensor,  # query row of the source above which the output's first lies
    CI: tl.constexpr,
    CO: tl.constexpr,
    STRIDE: tl.constexpr,
    KERNEL_QUERY: tl.constexpr,
    KERNEL_SUPPORT: tl.constexpr,
    DIRECTION: tl.constexpr,  # 1: the convolution, -1: its transpose
    HAS_BIAS: tl.constexpr,
    SOURCE_GROUPS: tl.constexpr,  # of the source's channels, which it normalises and rectifies
    GROUPS: tl.constexpr,  # of the output's channels, whose statistics it finds; or 0
    MERGED: tl.constexpr,  # channels that have one entry of the statistics
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,  # of the product's rows
    OFFSET: tl.constexpr,  # of elements, from those of a tile's first row
    FIELD: tl.constexpr,  # bits that hold one for each row, or column, of a kernel; 0: too many
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
) -> None:
    """A block of positions and channels of the convolution, or of a class of its transpose."""
    CO_BLOCKS: tl.constexpr = (CO + BLOCK_CO - 1) // BLOCK_CO
    CI_BLOCKS: tl.constexpr = (CI + BLOCK_CI - 1) // BLOCK_CI
    # From one support row or column walked to the next.
    SOURCE_STEP: tl.constexpr = STRIDE if DIRECTION == 1 else 1
    OUT_STEP: tl.constexpr = 1 if DIRECTION == 1 else STRIDE
    TAP_STEP: tl.constexpr = OUT_STEP  # and from one tap to the next, in the kernel
    program = tl.program_id(0)
    co_block = program % CO_BLOCKS
    program = program // CO_BLOCKS
    if DIRECTION == 1:
        row_offset, column_offset, walked_rows, walked_columns = 0, 0, out_rows, out_columns
        query_taps: tl.constexpr = KERNEL_QUERY * KERNEL_QUERY
        taps: tl.constexpr = query_taps + KERNEL_SUPPORT * KERNEL_SUPPORT
        tap_rows: tl.constexpr = KERNEL_SUPPORT
        tap_columns: tl.constexpr = KERNEL_SUPPORT
        first_row_shift: tl.constexpr = -(KERNEL_SUPPORT // 2)
        first_column_shift: tl.constexpr = first_row_shift
        first_tap_row: tl.constexpr = 0
        first_tap_column: tl.constexpr = 0
    else:
        (
            row_offset, column_offset, walked_rows, walked_columns, taps, query_taps, tap_rows,
            tap_columns, first_row_shift, first_column_shift, first_tap_row, first_tap_column,
        ) = _class(
            program // (batches * row_tiles), out_rows, out_columns, STRIDE, KERNEL_QUERY,
            KERNEL_SUPPORT,
        )  # fmt: skip
    tile = program % (batches * row_tiles)
    batch = (tile // row_tiles).to(tl.int64)
    first = (tile % row_tiles).to(INDEX) * BLOCK_ROWS
    rows = query_rows.to(INDEX) * query_columns * walked_rows * walked_columns
    if first >= rows:
        return
    o_row = first + tl.arange(0, BLOCK_ROWS)
    o_co = co_block * BLOCK_CO + tl.arange(0, BLOCK_CO)
    o_ci = tl.arange(0, BLOCK_CI)
    m_row = o_row < rows
    m_co = tl.full((BLOCK_CO,), 1, tl.int1) if CO % BLOCK_CO == 0 else o_co < CO

    # Offsets are counted from a tile's first row, so that few bits suffice.
    (
        first_row, first_column, first_walked_row, first_walked_column,
        query_row, query_column, walked_row, walked_column,
    ) = positions(first, query_columns, walked_rows, walked_columns, BLOCK_ROWS)  # fmt: skip
    source_query_row = query_row.to(tl.int32) + first_query_row
    source_row, source_column = walked_row * SOURCE_STEP, walked_column * SOURCE_STEP
    further = ((query_row - first_row) * query_columns + (query_column - first_column)).to(OFFSET)
    down, right = walked_row - first_walked_row, walked_column - first_walked_column
    o_source = further * (source_rows * source_columns)
    o_source = (o_source + (down * source_columns + right) * SOURCE_STEP) * CI
    base = (first_row + first_query_row).to(tl.int64) * query_columns + first_column
    base = base * source_rows + first_walked_row * SOURCE_STEP
    base = base * source_columns + first_walked_column * SOURCE_STEP
    p_tile = p_source + (batch * source_batch + base) * CI

    # Four fields of a word: which rows and columns of taps over the query dims, and of those over
    # the support dims, stay inside of the source.
    WORD: tl.constexpr = tl.int32 if FIELD * 4 <= 32 else tl.int64
    back: tl.constexpr = -DIRECTION * (KERNEL_QUERY // 2)
    word = reached(source_query_row, source_query_rows, back, KERNEL_QUERY, DIRECTION, WORD)
    word |= reached(query_column, query_columns, back, KERNEL_QUERY, DIRECTION, WORD) << FIELD
    field = reached(source_row, source_rows, first_row_shift, tap_rows, DIRECTION, WORD)
    word |= field << 2 * FIELD
    field = reached(source_column, source_columns, first_column_shift, tap_columns, DIRECTION, WORD)
    word |= field << 3 * FIELD
    word = tl.where(m_row, word, 0)

    if SOURCE_GROUPS > 0 and CI_BLOCKS == 1:
        mean, low, scale, added = factors(
            p_mean, p_low, p_rstd, p_scale, p_shift, batch, o_ci, o_ci < CI, CI, CI // SOURCE_GROUPS
        )
    acc = tl.zeros((BLOCK_ROWS, BLOCK_CO), tl.float32)
    for step in range(0, taps * CI_BLOCKS):
        ci = (step % CI_BLOCKS) * BLOCK_CI + o_ci
        m_ci = tl.full((BLOCK_CI,), 1, tl.int1) if CI % BLOCK_CI == 0 else ci < CI
        over_query, row, column, row_shift, column_shift, matrix = tap_of(
            step // CI_BLOCKS, query_taps, tap_columns, first_row_shift, first_column_shift,
            first_tap_row, first_tap_column, TAP_STEP, KERNEL_QUERY, KERNEL_SUPPORT, DIRECTION,
        )  # fmt: skip
        if FIELD > 0:
            row += tl.where(over_query, 0, 2 * FIELD)
            column += tl.where(over_query, FIELD, 3 * FIELD)
            inside = (word >> row) & (word >> column) & 1 != 0
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
            p_tile + shift * CI + (o_source[:, None] + ci[None, :]),
            mask=inside[:, None] & m_ci[None, :],
            other=0.0,
        )  # [BLOCK_ROWS, BLOCK_CI]
        if SOURCE_GROUPS > 0:
            if CI_BLOCKS > 1:
                mean, low, scale, added = factors(
                    p_mean, p_low, p_rstd, p_scale, p_shift, batch, ci, m_ci, CI,
                    CI // SOURCE_GROUPS,
                )  # fmt: skip
            b_source = _normalised(b_source, inside, mean, low, scale, added)
        b_weight = tl.load(
            p_weight + matrix * (CI * CO) + (ci[:, None] * CO + o_co[None, :]),
            mask=m_ci[:, None] & m_co[None, :],
            other=0.0,
        )  # [BLOCK_CI, BLOCK_CO]
        acc = tl.dot(b_source, b_weight, acc, input_precision=PRECISION)

    if HAS_BIAS:
        acc += tl.load(p_bias + o_co, mask=m_co, other=0.0).to(tl.float32)[None, :]
    out = acc.to(p_out.dtype.element_ty)
    if DIRECTION == 1:  # all positions of the output, one after the other
        base = first.to(tl.int64)
        o_out = tl.arange(0, BLOCK_ROWS)
    else:
        o_out = further * (out_rows * out_columns) + (down * out_columns + right) * OUT_STEP
        base = first_row.to(tl.int64) * query_columns + first_column
        base = base * out_rows + row_offset + first_walked_row * OUT_STEP
        base = base * out_columns + column_offset + first_walked_column * OUT_STEP
    tl.store(
        p_out + (batch * out_batch + base) * CO + ((o_out * CO)[:, None] + o_co[None, :]),
        out,
        mask=m_row[:, None] & m_co[None, :],
    )
    if GROUPS > 0:
        # Of what is stored. The mean has two parts: rounded, it would not be small beside the
        # deviations of values that all lie close to it.
        BLOCK_PARTS: tl.constexpr = BLOCK_CO // MERGED
        values = tl.where(m_row[:, None], out.to(tl.float32), 0.0)
        values = tl.reshape(values, (BLOCK_ROWS, BLOCK_PARTS, MERGED))
        count = (tl.minimum(rows - first, BLOCK_ROWS) * MERGED).to(tl.float32)
        of_tile = _total(values) / count
        centred = tl.where(m_row[:, None, None], values - of_tile[None, :, None], 0.0)
        lost = _total(centred) / count
        squares = _total(centred * centred) - count * lost * lost
        gather(
            p_entries, p_arrived, p_out_mean, p_out_low, p_out_rstd, norm_eps,
            batch, first_tile + tile % row_tiles, tiles_of_sample, co_block * BLOCK_PARTS,
            count, of_tile, lost, squares, GROUPS, CO // MERGED, CO_BLOCKS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["query_rows", "first_query_row"])
def mend_edges_kernel(
    p_source: tl.tensor,  # as above
    p_weight: tl.tensor,
    p_out: tl.tensor,
    p_finite: tl.tensor,  # [flags], whether all weights are
    flags: tl.tensor,
    batches: tl.tensor,
    source_batch: tl.tensor,
    out_batch: tl.tensor,
    source_query_rows: tl.tensor,
    source_rows: tl.tensor,
    source_columns: tl.tensor,
    query_rows: tl.tensor,
    query_columns: tl.tensor,
    out_rows: tl.tensor,
    out_columns: tl.tensor,
    first_query_row: tl.tensor,
    CI: tl.constexpr,
    CO: tl.constexpr,
    STRIDE: tl.constexpr,
    KERNEL_QUERY: tl.constexpr,
    KERNEL_SUPPORT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A class of the transpose once more, without what lies outside of the source.

    Outside there is no output whose gradient could reach anything. As a 0 it reaches nothing
    either, unless it meets a weight that is not finite: then this writes what came out not finite.
    By itself, since the walk has no registers to spare.
    """
    finite = tl.zeros((BLOCK,), tl.uint8) + 1
    for start in range(0, flags, BLOCK):
        o_flag = start + tl.arange(0, BLOCK)
        finite &= tl.load(p_finite + o_flag, mask=o_flag < flags, other=1)
    if tl.min(finite, 0) != 0:
        return
    (
        row_offset, column_offset, walked_rows, walked_columns, taps, query_taps, _,
        tap_columns, first_row_shift, first_column_shift, first_tap_row, first_tap_column,
    ) = _class(
        tl.program_id(0), out_rows, out_columns, STRIDE, KERNEL_QUERY, KERNEL_SUPPORT
    )  # fmt: skip
    rows = query_rows.to(tl.int64) * query_columns * walked_rows * walked_columns
    elements = batches * rows * CO
    for block in range(tl.program_id(1), tl.cdiv(elements, BLOCK), tl.num_programs(1)):
        o_all = tl.arange(0, BLOCK).to(tl.int64) + block * BLOCK
        m_all = o_all < elements
        co, batch, row = o_all % CO, o_all // CO // rows, o_all // CO % rows
        query_row, query_column, source_row, source_column = position(
            row, query_columns, walked_rows, walked_columns
        )
        o_out = query_row * query_columns + query_column
        o_out = o_out * out_rows + row_offset + source_row * STRIDE
        o_out = o_out * out_columns + column_offset + source_column * STRIDE
        p_place = p_out + (batch * out_batch + o_out) * CO + co
        before = tl.load(p_place, mask=m_all, other=0.0).to(tl.float32)

        query_row += first_query_row
        acc = tl.zeros((BLOCK,), tl.float32)
        for step in range(0, taps * CI):
            over_query, _, _, row_shift, column_shift, matrix = tap_of(
                step // CI, query_taps, tap_columns, first_row_shift, first_column_shift,
                first_tap_row, first_tap_column, STRIDE, KERNEL_QUERY, KERNEL_SUPPORT, -1,
            )  # fmt: skip
            from_row = query_row + tl.where(over_query, row_shift, 0)
            from_column = query_column + tl.where(over_query, column_shift, 0)
            support_row = source_row + tl.where(over_query, 0, row_shift)
            support_column = source_column + tl.where(over_query, 0, column_shift)
            inside = m_all & inside_of(
                from_row, from_column, support_row, support_column,
                source_query_rows, query_columns, source_rows, source_columns,
            )  # fmt: skip
            o_source = (from_row * query_columns + from_column) * source_rows + support_row
            o_source = o_source * source_columns + support_column
            p_value = p_source + (batch * source_batch + o_source) * CI + step % CI
            value = tl.load(p_value, mask=inside, other=0.0).to(tl.float32)
            p_factor = p_weight + (matrix * CI + step % CI) * CO + co
            weight = tl.load(p_factor, mask=inside, other=0.0).to(tl.float32)
            acc += value * weight
        broken = m_all & (before - before != 0)
        tl.store(p_place, acc.to(p_out.dtype.element_ty), mask=broken)


@dataclass(frozen=True)
class Grid:
    """Sizes of a convolution: kernels, stride, and the query row of the source where it starts."""

    kernel_query: int
    kernel_support: int
    stride: int
    first_query_row: int = 0

    @classmethod
    def of(
        cls, weight_query: Tensor, weight_support: Tensor, stride: int, first_query_row: int = 0
    ) -> Grid:
        """From the weights [Co, Ci, k, k]."""
        return cls(weight_query.shape[-1], weight_support.shape[-1], stride, first_query_row)


def forward(
    source: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out: Tensor,
    grid: Grid,
    *,
    normalisation: Normalisation | None = None,
    statistics: Statistics | None = None,
    first_tile: int = 0,
) -> None:
    """The convolution of `source` into `out`, both as `layout.volume` leaves them.

    Args:
        source: [B, Ci, Q, Wq, Hs, Ws].
        weights: the taps' matrices, [kq*kq + ks*ks, Ci, Co].
        bias: [Co] or None.
        out: [B, Co, Hq, Wq, hs, ws].
        grid: of the convolution.
        normalisation: what is applied to the source where it is read.
        statistics: of the output, as `empty_statistics` returns them; complete when all tiles of
            a sample are.
        first_tile: of a sample's, where `out` is some of its query rows.
    """
    _walk(
        source, weights, bias, out, grid, normalisation, statistics, first_tile, direction=1
    )  # fmt: skip


def empty_statistics(
    out: Tensor,
    inner: int,
    groups: int,
    eps: float,
    tiles: int | None = None,
    arrived: Tensor | None = None,
) -> Statistics:
    """For the convolution of `inner` channels into `out`, [B, Co, Hq, Wq, hs, ws].

    Args:
        out: the volume, whole.
        inner: channels of the source.
        groups: of Co.
        eps: added to each variance.
        tiles: of a sample, if it is computed in several launches.
        arrived: as `Statistics.empty` takes it.
    """
    outer = out.shape[1]
    if tiles is None:
        tiles = row_tiles(out.shape[2:], inner, outer, out)
    parts = outer // _merged(inner, outer, groups, out)
    return Statistics.empty(out, groups, parts, tiles, eps, arrived)


def row_tiles(
    positions: Sequence[int], inner: int, outer: int, like: Tensor, *, normalises: bool = False
) -> int:
    """Tiles of a sample, or of some of its query rows: [Hq, Wq, hs, ws] of the output."""
    tile = tiles.walk(inner, outer, like.dtype, architecture(like), normalises=normalises)
    return blocks(math.prod(positions), tile.rows)


def _merged(inner: int, outer: int, groups: int, like: Tensor) -> int:
    """Channels that have one entry of the statistics: a group, or one where a group's channels are
    no power of 2 or too many for a tile."""
    tile = tiles.walk(inner, outer, like.dtype, architecture(like))
    group = outer // groups
    return group if group <= tile.columns and group & (group - 1) == 0 else 1


def transposed(source: Tensor, weights: Matrices, out: Tensor, grid: Grid) -> None:
    """The convolution's transpose: the gradient `source` of its output into that of its input."""
    assert weights.finite is not None
    _walk(source, weights.values, None, out, grid, None, None, 0, direction=-1)
    if out.numel() == 0:
        return
    tile, classes = tiles.mending(), _classes(out, grid)
    batches, sizes, constants = _sizes(source, out, grid)
    programs = min(blocks(out.numel(), classes * tile.rows), tile.columns)
    mend_edges_kernel[(classes, programs)](
        source, weights.values, out, weights.finite, len(weights.finite), *batches, *sizes,
        **constants, BLOCK=tile.rows, **options(tile),
    )  # fmt: skip


def _classes(out: Tensor, grid: Grid) -> int:
    """Of support positions of `out` that the transpose walks over one by one."""
    return min(grid.stride, out.shape[4]) * min(grid.stride, out.shape[5])


def _walk(
    source: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out: Tensor,
    grid: Grid,
    normalisation: Normalisation | None,
    statistics: Statistics | None,
    first_tile: int,
    *,
    direction: int,
) -> None:
    """Launch `walk_kernel`, for all classes of the transpose at once."""
    inner, outer = source.shape[1], out.shape[1]
    normalises = normalisation is not None
    tile = tiles.walk(inner, outer, source.dtype, architecture(source), normalises=normalises)
    if source.shape[0] == 0:
        return
    # Support positions walked over: of the class that has most, and of that with the fewest.
    step = 1 if direction == 1 else grid.stride
    most = blocks(out.shape[4], step) * blocks(out.shape[5], step)
    fewest = max(1, out.shape[4] // step) * max(1, out.shape[5] // step)
    rows = out.shape[2:4].numel() * most
    count = blocks(rows, tile.rows)
    # Query positions of a tile, and elements from its first one's to its last one's.
    span = blocks(tile.rows, fewest) + 1
    offsets = span * max(source.shape[4:].numel() * inner, out.shape[4:].numel() * outer)
    classes = 1 if direction == 1 else _classes(out, grid)
    batches, sizes, constants = _sizes(source, out, grid)
    source_groups = groups = 0
    of_source: tuple[Tensor | None, ...] = (None,) * 5
    of_out: tuple[Tensor | float | None, ...] = (None,) * 7
    merged = 1
    if normalisation is not None:
        of_source = normalisation.tensors
        source_groups = normalisation.statistics.rstd.shape[1]
    if statistics is not None:
        groups = statistics.rstd.shape[1]
        merged = outer // statistics.entries.shape[3]
        of_out = (
            *statistics.mean.unbind(), statistics.rstd, statistics.entries, statistics.arrived,
            statistics.eps, statistics.tiles,
        )  # fmt: skip
    walk_kernel[(classes * source.shape[0] * count * blocks(outer, tile.columns),)](
        source, weights, bias, *of_source, out, *of_out, first_tile, *batches, count, *sizes,
        **constants, DIRECTION=direction, HAS_BIAS=bias is not None,
        SOURCE_GROUPS=source_groups, GROUPS=groups, MERGED=merged,
        PRECISION=precision(source), INDEX=row_index(rows, out.shape[2:], tile.rows),
        OFFSET=index_type(offsets),
        FIELD=field_bits(max(grid.kernel_query, grid.kernel_support)),
        BLOCK_ROWS=tile.rows, BLOCK_CO=tile.columns, BLOCK_CI=tile.depth,
        **options(tile),
    )  # fmt: skip


def row_index(rows: int, grid: Sequence[int], block: int) -> tl.dtype:
    """Of the product's rows, in blocks, each a position of a grid: 32 bits where `positions` may
    divide by its sides as `_quotient` does."""
    return index_type(rows) if max(grid) + block < NEAR else tl.int64


def field_bits(kernel: int) -> int:
    """`walk_kernel`'s FIELD for kernels of this size; four fields fill a word of 32 or 64 bits."""
    return next((bits for bits in (8, 16) if kernel < bits), 0)


def _sizes(
    source: Tensor, out: Tensor, grid: Grid
) -> tuple[tuple[int, int, int], tuple[int, ...], dict[str, int]]:
    """What both kernels take: the batch and its strides, other sizes, and constants."""
    inner, outer = source.shape[1], out.shape[1]
    batches = (source.shape[0], source.stride(0) // inner, out.stride(0) // outer)
    sizes = (source.shape[2], *source.shape[4:], *out.shape[2:], grid.first_query_row)
    constants = {
        "CI": inner, "CO": outer, "STRIDE": grid.stride,
        "KERNEL_QUERY": grid.kernel_query, "KERNEL_SUPPORT": grid.kernel_support,
    }  # fmt: skip
    return batches, sizes, constants
