"""The walk over the taps: one implicit GEMM for both convolutions, their transpose, their weights.

A row of the product is a position (query row, query column, support row, support column) of the
volume that is written. Each tap moves it to a position of the volume that is read, whose channels
lie side by side and are multiplied with the tap's matrix. Taps over the query dims come first, then
those over the support dims. Going back, a stride of s leaves s * s classes of support positions,
by their remainders; each is walked by itself, over the taps that reach it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import architecture, blocks, index_type, options, precision


@triton.jit
def _position(row: tl.tensor, width: tl.tensor, rows: tl.tensor, columns: tl.tensor):  # type: ignore[no-untyped-def]
    """Query row, query column, support row and support column of a row of the product."""
    support_column = row % columns
    row = row // columns
    support_row = row % rows
    row = row // rows
    return row // width, row % width, support_row, support_column


@triton.jit
def _inside(  # type: ignore[no-untyped-def]
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
def _tap(  # type: ignore[no-untyped-def]
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
    """How a tap moves the source's query row and column, support row and column; and its matrix."""
    over_query = tap < query_taps
    support_tap = tl.maximum(tap - query_taps, 0)
    tap_row, tap_column = support_tap // tap_columns, support_tap % tap_columns
    row_shift = DIRECTION * (tap // KERNEL_QUERY - KERNEL_QUERY // 2)
    column_shift = DIRECTION * (tap % KERNEL_QUERY - KERNEL_QUERY // 2)
    query_row_shift = tl.where(over_query, row_shift, 0)
    query_column_shift = tl.where(over_query, column_shift, 0)
    row_shift = tl.where(over_query, 0, first_row_shift + DIRECTION * tap_row)
    column_shift = tl.where(over_query, 0, first_column_shift + DIRECTION * tap_column)
    matrix = (first_tap_row + tap_step * tap_row) * KERNEL_SUPPORT
    matrix += first_tap_column + tap_step * tap_column
    matrix = tl.where(over_query, tap, KERNEL_QUERY * KERNEL_QUERY + matrix)
    return query_row_shift, query_column_shift, row_shift, column_shift, matrix


@triton.jit(
    do_not_specialize=[
        "query_taps", "taps", "tap_columns", "first_row_shift", "first_column_shift",
        "first_tap_row", "first_tap_column", "tap_step", "first_query_row",
        "row_offset", "column_offset",
    ]
)  # fmt: skip
def walk_kernel(
    p_source: tl.tensor,  # [B, Q, Wq, Hs, Ws, CI], the batch strided
    p_weight: tl.tensor,  # [kq*kq + ks*ks, CI, CO]
    p_bias: tl.tensor,  # [CO], unless not HAS_BIAS
    p_out: tl.tensor,  # [B, ..., CO], the batch strided
    p_partial: tl.tensor,  # [B, tiles, 3, CO], unless not STATISTICS
    source_batch: tl.tensor,  # positions from one sample to the next
    out_batch: tl.tensor,
    rows: tl.tensor,  # of the product, in a sample
    row_tiles: tl.tensor,  # blocks of BLOCK_ROWS in a sample
    walked_rows: tl.tensor,  # support rows and columns among the product's rows
    walked_columns: tl.tensor,
    source_query_rows: tl.tensor,
    query_columns: tl.tensor,
    source_rows: tl.tensor,
    source_columns: tl.tensor,
    out_rows: tl.tensor,
    out_columns: tl.tensor,
    source_step: tl.tensor,  # from one support row or column walked to the next, in the source
    out_step: tl.tensor,  # and in the output
    row_offset: tl.tensor,  # the first one in the output
    column_offset: tl.tensor,
    first_query_row: tl.tensor,  # query row of the source above which the output's first lies
    query_taps: tl.tensor,  # kq*kq or 0
    taps: tl.tensor,  # these and the taps over the support dims
    tap_columns: tl.tensor,  # taps of one row over the support dims
    first_row_shift: tl.tensor,  # the first support tap's move
    first_column_shift: tl.tensor,
    first_tap_row: tl.tensor,  # its place in the kernel
    first_tap_column: tl.tensor,
    tap_step: tl.tensor,  # from one tap to the next in the kernel
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL_QUERY: tl.constexpr,
    KERNEL_SUPPORT: tl.constexpr,
    DIRECTION: tl.constexpr,  # 1: the convolution, -1: its transpose
    HAS_BIAS: tl.constexpr,
    STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
) -> None:
    """A block of positions and channels of the convolution, or of its transpose."""
    CO_BLOCKS: tl.constexpr = (CO + BLOCK_CO - 1) // BLOCK_CO
    CI_BLOCKS: tl.constexpr = (CI + BLOCK_CI - 1) // BLOCK_CI
    program = tl.program_id(0)
    co_block = program % CO_BLOCKS
    tile = program // CO_BLOCKS
    batch = (tile // row_tiles).to(tl.int64)
    first = (tile % row_tiles).to(INDEX) * BLOCK_ROWS
    o_row = first + tl.arange(0, BLOCK_ROWS)
    o_co = co_block * BLOCK_CO + tl.arange(0, BLOCK_CO)
    o_ci = tl.arange(0, BLOCK_CI)
    m_row, m_co = o_row < rows, o_co < CO

    query_row, query_column, walked_row, walked_column = _position(
        o_row, query_columns, walked_rows, walked_columns
    )
    query_row = query_row.to(tl.int32)
    source_query_row = query_row + first_query_row
    source_row, source_column = walked_row * source_step, walked_column * source_step
    o_source = source_query_row.to(tl.int64) * query_columns + query_column
    o_source = (o_source * source_rows + source_row) * source_columns + source_column
    p_row = p_source + (batch * source_batch + o_source) * CI  # [BLOCK_ROWS]

    acc = tl.zeros((BLOCK_ROWS, BLOCK_CO), tl.float32)
    for step in range(0, taps * CI_BLOCKS):
        tap = step // CI_BLOCKS
        ci = (step % CI_BLOCKS) * BLOCK_CI + o_ci
        query_row_shift, query_column_shift, row_shift, column_shift, matrix = _tap(
            tap, query_taps, tap_columns, first_row_shift, first_column_shift, first_tap_row,
            first_tap_column, tap_step, KERNEL_QUERY, KERNEL_SUPPORT, DIRECTION,
        )  # fmt: skip
        inside = m_row & _inside(
            source_query_row + query_row_shift,
            query_column + query_column_shift,
            source_row + row_shift,
            source_column + column_shift,
            source_query_rows,
            query_columns,
            source_rows,
            source_columns,
        )
        shift = query_row_shift.to(tl.int64) * query_columns + query_column_shift
        shift = (shift * source_rows + row_shift) * source_columns + column_shift
        b_source = tl.load(
            p_row[:, None] + shift * CI + ci[None, :],
            mask=inside[:, None] & (ci < CI)[None, :],
            other=0.0,
        )  # [BLOCK_ROWS, BLOCK_CI]
        b_weight = tl.load(
            p_weight + (matrix * CI + ci[:, None]) * CO + o_co[None, :],
            mask=(ci < CI)[:, None] & m_co[None, :],
            other=0.0,
        )  # [BLOCK_CI, BLOCK_CO]
        acc = tl.dot(b_source, b_weight, acc, input_precision=PRECISION)

    if HAS_BIAS:
        acc += tl.load(p_bias + o_co, mask=m_co, other=0.0).to(tl.float32)[None, :]
    out = acc.to(p_out.dtype.element_ty)
    if STATISTICS:
        # Of what is stored. The mean has two parts: rounded, it would not be small beside the
        # deviations of values that all lie close to it.
        values = out.to(tl.float32)
        count = tl.minimum(rows - first, BLOCK_ROWS).to(tl.float32)
        mean = tl.sum(tl.where(m_row[:, None], values, 0.0), 0) / count
        centred = tl.where(m_row[:, None], values - mean[None, :], 0.0)
        low = tl.sum(centred, 0) / count
        centred = tl.where(m_row[:, None], centred - low[None, :], 0.0)
        p_tile = p_partial + tile.to(tl.int64) * (3 * CO) + o_co
        tl.store(p_tile, mean, mask=m_co)
        tl.store(p_tile + CO, low, mask=m_co)
        tl.store(p_tile + 2 * CO, tl.sum(centred * centred, 0), mask=m_co)
    o_out = query_row.to(tl.int64) * query_columns + query_column
    o_out = o_out * out_rows + row_offset + walked_row * out_step
    o_out = o_out * out_columns + column_offset + walked_column * out_step
    tl.store(
        p_out + ((batch * out_batch + o_out) * CO)[:, None] + o_co[None, :],
        out,
        mask=m_row[:, None] & m_co[None, :],
    )


@triton.jit(
    do_not_specialize=[
        "query_taps", "taps", "tap_columns", "first_row_shift", "first_column_shift",
        "first_tap_row", "first_tap_column", "tap_step", "first_query_row",
        "row_offset", "column_offset",
    ]
)  # fmt: skip
def mend_edges_kernel(
    p_source: tl.tensor,  # as above
    p_weight: tl.tensor,
    p_out: tl.tensor,
    p_finite: tl.tensor,  # whether all weights are
    elements: tl.tensor,  # all that the walk computed
    source_batch: tl.tensor,
    out_batch: tl.tensor,
    rows: tl.tensor,
    walked_rows: tl.tensor,
    walked_columns: tl.tensor,
    source_query_rows: tl.tensor,
    query_columns: tl.tensor,
    source_rows: tl.tensor,
    source_columns: tl.tensor,
    out_rows: tl.tensor,
    out_columns: tl.tensor,
    source_step: tl.tensor,
    out_step: tl.tensor,
    row_offset: tl.tensor,
    column_offset: tl.tensor,
    first_query_row: tl.tensor,
    query_taps: tl.tensor,
    taps: tl.tensor,
    tap_columns: tl.tensor,
    first_row_shift: tl.tensor,
    first_column_shift: tl.tensor,
    first_tap_row: tl.tensor,
    first_tap_column: tl.tensor,
    tap_step: tl.tensor,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL_QUERY: tl.constexpr,
    KERNEL_SUPPORT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The transpose once more, without what lies outside of the source.

    Outside there is no output whose gradient could reach anything. As a 0 it reaches nothing
    either, unless it meets a weight that is not finite: then this writes what came out not finite.
    By itself, since the walk has no registers to spare.
    """
    if tl.load(p_finite) != 0:
        return
    for block in range(tl.program_id(0), tl.cdiv(elements, BLOCK), tl.num_programs(0)):
        o_all = tl.arange(0, BLOCK).to(tl.int64) + block * BLOCK
        m_all = o_all < elements
        co, batch, row = o_all % CO, o_all // CO // rows, o_all // CO % rows
        query_row, query_column, walked_row, walked_column = _position(
            row, query_columns, walked_rows, walked_columns
        )
        o_out = query_row * query_columns + query_column
        o_out = o_out * out_rows + row_offset + walked_row * out_step
        o_out = o_out * out_columns + column_offset + walked_column * out_step
        p_place = p_out + (batch * out_batch + o_out) * CO + co
        before = tl.load(p_place, mask=m_all, other=0.0).to(tl.float32)

        query_row += first_query_row
        source_row, source_column = walked_row * source_step, walked_column * source_step
        acc = tl.zeros((BLOCK,), tl.float32)
        for step in range(0, taps * CI):
            query_row_shift, query_column_shift, row_shift, column_shift, matrix = _tap(
                step // CI, query_taps, tap_columns, first_row_shift, first_column_shift,
                first_tap_row, first_tap_column, tap_step, KERNEL_QUERY, KERNEL_SUPPORT, -1,
            )  # fmt: skip
            inside = m_all & _inside(
                query_row + query_row_shift, query_column + query_column_shift,
                source_row + row_shift, source_column + column_shift,
                source_query_rows, query_columns, source_rows, source_columns,
            )  # fmt: skip
            o_source = (query_row + query_row_shift) * query_columns
            o_source += query_column + query_column_shift
            o_source = o_source * source_rows + source_row + row_shift
            o_source = o_source * source_columns + source_column + column_shift
            p_value = p_source + (batch * source_batch + o_source) * CI + step % CI
            value = tl.load(p_value, mask=inside, other=0.0).to(tl.float32)
            p_factor = p_weight + (matrix * CI + step % CI) * CO + co
            weight = tl.load(p_factor, mask=inside, other=0.0).to(tl.float32)
            acc += value * weight
        broken = m_all & (before - before != 0)
        tl.store(p_place, acc.to(p_out.dtype.element_ty), mask=broken)


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
        query_row, query_column, source_row, source_column = _position(
            o_row, query_columns, grad_rows, grad_columns
        )
        query_row = query_row.to(tl.int32) + first_query_row + query_row_shift
        query_column += query_column_shift
        source_row = source_row * stride + row_shift
        source_column = source_column * stride + column_shift
        inside = m_row & _inside(
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


def matrices(weight_query: Tensor, weight_support: Tensor, *, transposed: bool = False) -> Tensor:
    """One matrix for each tap: [kq*kq + ks*ks, Ci, Co], or [..., Co, Ci] for going back."""
    order = (2, 0, 1) if transposed else (2, 1, 0)
    both = [weight.flatten(2).permute(order) for weight in (weight_query, weight_support)]
    return torch.cat(both).contiguous()


def forward(
    source: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out: Tensor,
    grid: Grid,
    *,
    statistics: bool = False,
) -> Tensor | None:
    """The convolution of `source` into `out`, both as `layout.volume` leaves them.

    Where `statistics` asks for them, returns each tile's mean, what this lost when it was rounded,
    and sum of squared deviations, [B, tiles, 3, Co]; tiles are `tile_rows` positions long.
    """
    pad = grid.kernel_support // 2
    taps = (grid.kernel_support, grid.kernel_support)
    return _walk(
        source, weights, bias, out, grid, statistics,
        walked=(out.shape[4], out.shape[5]), steps=(grid.stride, 1), offset=(0, 0),
        taps=taps, shift=(-pad, -pad), tap=(0, 0), over_query=True, direction=1,
    )  # fmt: skip


def transposed(source: Tensor, weights: Tensor, out: Tensor, grid: Grid) -> None:
    """The convolution's transpose: the gradient `source` of its output into that of its input."""
    finite = weights.isfinite().all().view(torch.uint8)
    stride, size, pad = grid.stride, grid.kernel_support, grid.kernel_support // 2
    for row in range(min(stride, out.shape[4])):
        for column in range(min(stride, out.shape[5])):
            classes = (row, column)
            first = [(remainder + pad) % stride for remainder in classes]
            _walk(
                source, weights, None, out, grid, False,
                walked=tuple(blocks(out.shape[4 + i] - classes[i], stride) for i in (0, 1)),
                steps=(1, stride), offset=classes,
                taps=tuple(len(range(tap, size, stride)) for tap in first),
                shift=tuple((classes[i] + pad - first[i]) // stride for i in (0, 1)),
                tap=tuple(first), over_query=classes == (0, 0), direction=-1, finite=finite,
            )  # fmt: skip


def tile_rows(inner: int, outer: int, like: Tensor) -> int:
    """Positions of one tile of `forward`'s statistics."""
    return tiles.walk(inner, outer, like.dtype, architecture(like)).rows


def _walk(
    source: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out: Tensor,
    grid: Grid,
    statistics: bool,
    *,
    walked: tuple[int, ...],
    steps: tuple[int, int],
    offset: tuple[int, int],
    taps: tuple[int, ...],
    shift: tuple[int, ...],
    tap: tuple[int, ...],
    over_query: bool,
    direction: int,
    finite: Tensor | None = None,
) -> Tensor | None:
    """Launch `walk_kernel`; with `finite`, whether all weights are, `mend_edges_kernel`, too."""
    batch, inner, source_query_rows, query_columns, source_rows, source_columns = source.shape
    outer, query_rows = out.shape[1:3]
    tile = tiles.walk(inner, outer, source.dtype, architecture(source))
    rows = query_rows * query_columns * walked[0] * walked[1]
    row_tiles = blocks(rows, tile.rows)
    partial = None
    if statistics:
        partial = out.new_empty(batch, row_tiles, 3, outer, dtype=torch.float32)
    query_taps = grid.kernel_query**2 if over_query else 0
    if batch == 0:
        return partial
    batches = (source.stride(0) // inner, out.stride(0) // outer)
    sizes = (*walked, source_query_rows, query_columns, source_rows, source_columns, *out.shape[4:])
    moves = (
        *steps, *offset, grid.first_query_row, query_taps, query_taps + taps[0] * taps[1],
        max(1, taps[1]), *shift, *tap, 1 if direction == 1 else grid.stride,
    )  # fmt: skip
    kernels = {"KERNEL_QUERY": grid.kernel_query, "KERNEL_SUPPORT": grid.kernel_support}
    walk_kernel[(batch * row_tiles * blocks(outer, tile.columns),)](
        source, weights, bias, out, partial, *batches, rows, row_tiles, *sizes, *moves,
        CI=inner, CO=outer, **kernels, DIRECTION=direction,
        HAS_BIAS=bias is not None, STATISTICS=statistics,
        PRECISION=precision(source), INDEX=index_type(rows),
        BLOCK_ROWS=tile.rows, BLOCK_CO=tile.columns, BLOCK_CI=tile.depth,
        **options(tile),
    )  # fmt: skip
    if finite is not None:
        tile = tiles.mending()
        elements = batch * rows * outer
        mend_edges_kernel[(min(blocks(elements, tile.rows), tile.columns),)](
            source, weights, out, finite, elements, *batches, rows, *sizes, *moves,
            CI=inner, CO=outer, **kernels, BLOCK=tile.rows, **options(tile),
        )  # fmt: skip
    return partial


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
