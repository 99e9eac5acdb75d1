"""The taps' matrices: the weights of convolutions in the order in which the walk reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import blocks, options

MOST = 8  # weights that one launch takes
ALIGNED = 16  # elements: what the walk loads at a time


@triton.jit
def _copy(  # type: ignore[no-untyped-def]
    p_weight: tl.tensor,
    p_out: tl.tensor,
    p_finite: tl.tensor,
    program: tl.tensor,
    SIZE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CHECKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of elements of one convolution's matrices, if it is this program's turn."""
    OUTER: tl.constexpr = SIZE[0]
    INNER: tl.constexpr = SIZE[1]
    ELEMENTS: tl.constexpr = OUTER * INNER * SIZE[2]
    FIRST: tl.constexpr = SIZE[3]
    ROWS: tl.constexpr = OUTER if TRANSPOSED else INNER
    COLUMNS: tl.constexpr = INNER if TRANSPOSED else OUTER
    o_out = (program - FIRST) * BLOCK + tl.arange(0, BLOCK)
    if (program >= FIRST) & (program < FIRST + (ELEMENTS + BLOCK - 1) // BLOCK):
        mask = o_out < ELEMENTS
        column, row, tap = o_out % COLUMNS, o_out // COLUMNS % ROWS, o_out // (ROWS * COLUMNS)
        o_weight = row * INNER + column if TRANSPOSED else column * INNER + row
        values = tl.load(p_weight + o_weight * SIZE[2] + tap, mask=mask, other=0.0)
        tl.store(p_out + SIZE[4] + o_out, values, mask=mask)
        if CHECKED:
            distance = values.to(tl.float32) - values.to(tl.float32)
            tl.store(p_finite + program, tl.min((distance == 0).to(tl.int32), 0).to(tl.uint8))


@triton.jit
def matrices_kernel(
    p_0: tl.tensor,  # weights [OUTER, INNER, TAPS], as many as SIZES; the others are None
    p_1: tl.tensor,
    p_2: tl.tensor,
    p_3: tl.tensor,
    p_4: tl.tensor,
    p_5: tl.tensor,
    p_6: tl.tensor,
    p_7: tl.tensor,
    p_out: tl.tensor,  # all matrices, one behind the other
    p_finite: tl.tensor,  # [programs] unless not CHECKED
    SIZES: tl.constexpr,  # of each weight: OUTER, INNER, TAPS, first program, elements before
    TRANSPOSED: tl.constexpr,
    CHECKED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The weights of several convolutions, each element once; [TAPS, INNER, OUTER], or
    [TAPS, OUTER, INNER] if TRANSPOSED. And of each block whether all its elements are finite."""
    program = tl.program_id(0)
    weights = (p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7)
    for index in tl.static_range(len(SIZES)):
        _copy(weights[index], p_out, p_finite, program, SIZES[index], TRANSPOSED, CHECKED, BLOCK)


@dataclass(frozen=True)
class Matrices:
    """Of one convolution.

    Attributes:
        values: [kq*kq + ks*ks, Ci, Co], or [..., Co, Ci] for going back.
        finite: whether all weights of a block are, a byte for each; None where nobody asked.
    """

    values: Tensor
    finite: Tensor | None


def matrices(
    convolutions: Sequence[tuple[Tensor, Tensor]], *, transposed: bool = False
) -> list[Matrices]:
    """Those of several convolutions, by one launch for each four.

    Args:
        convolutions: weight_query [Co, Ci, kq, kq] and weight_support [Co, Ci, ks, ks] of each.
        transposed: for going back; whether the weights are finite is only told then.
    """
    most = MOST // 2
    if len(convolutions) > most:
        rest = matrices(convolutions[most:], transposed=transposed)
        return matrices(convolutions[:most], transposed=transposed) + rest
    tile = tiles.matrices()
    weights, sizes, ends = [], [], []
    programs = elements = 0
    for convolution in convolutions:
        for weight in convolution:
            outer, inner, *kernel = weight.shape
            taps = kernel[0] * kernel[1]
            weights.append(weight.resolve_neg().contiguous())
            sizes.append((outer, inner, taps, programs, elements))
            programs += blocks(weight.numel(), tile.rows)
            elements += weight.numel()
        ends.append((programs, elements))
        elements = blocks(elements, ALIGNED) * ALIGNED
    like = weights[0]
    values = like.new_empty(elements)
    finite = like.new_empty(programs, dtype=torch.uint8) if transposed else None
    given = [*weights, *[None] * (MOST - len(weights))]
    matrices_kernel[(programs,)](
        *given, values, finite, SIZES=tuple(sizes), TRANSPOSED=transposed, CHECKED=transposed,
        BLOCK=tile.rows, **options(tile),
    )  # fmt: skip
    found, first_program, first = [], 0, 0
    for (query, _), (programs, elements) in zip(convolutions, ends, strict=True):
        outer, inner = query.shape[:2]
        shape = (outer, inner) if transposed else (inner, outer)
        flags = None if finite is None else finite[first_program:programs]
        found.append(Matrices(values[first:elements].view(-1, *shape), flags))
        first_program, first = programs, blocks(elements, ALIGNED) * ALIGNED
    return found
