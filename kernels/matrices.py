"""The taps' matrices: the weights of convolutions in the order in which the walk reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import blocks, dense, options

MOST = 8  # weights that one launch takes
ALIGNED = 16  # elements: what the walk loads at a time


@triton.jit
def copy_matrix(  # type: ignore[no-untyped-def]
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
    p_arrivals: tl.tensor,  # [arrivals], which become 0, unless None
    arrivals: tl.tensor,
    SIZES: tl.constexpr,  # of each weight: OUTER, INNER, TAPS, first program, elements before
    TRANSPOSED: tl.constexpr,
    CHECKED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The weights of several convolutions in order, [TAPS, INNER, OUTER] each, or
    [TAPS, OUTER, INNER] if TRANSPOSED; and whether all elements of each block are finite."""
    program = tl.program_id(0)
    weights = (p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7)
    for index in tl.static_range(len(SIZES)):
        # Triton 3.6 does not take an element of a constant tuple for a constant.
        copy_matrix(
            weights[index], p_out, p_finite, program, tl.constexpr(SIZES[index]),
            TRANSPOSED, CHECKED, BLOCK,
        )  # fmt: skip
    if p_arrivals is not None:
        for start in range(program * BLOCK, arrivals, tl.num_programs(0) * BLOCK):
            o_arrivals = start + tl.arange(0, BLOCK)
            tl.store(p_arrivals + o_arrivals, 0, mask=o_arrivals < arrivals)


@dataclass(frozen=True)
class Matrices:
    """Of one convolution.

    Attributes:
        values: [kq*kq + ks*ks, Ci, Co], or [..., Co, Ci] for going back.
        finite: whether all weights of a block are, a byte for each; None where nobody asked.
    """

    values: Tensor
    finite: Tensor | None


class Copies:
    """The work of one launch that puts the weights of up to four convolutions in order.

    Attributes:
        weights: MOST tensors [Co, Ci, k, k], the last ones None.
        values: all matrices, to be filled.
        finite: [programs], to be filled; None unless they are transposed.
        sizes: as `matrices_kernel` takes them.
        programs: that the launch needs.
    """

    def __init__(
        self, convolutions: Sequence[tuple[Tensor, Tensor]], *, transposed: bool = False
    ) -> None:
        self.transposed = transposed
        rows = tiles.matrices().rows
        given, sizes = [], []
        self._parts: list[tuple[slice, slice, tuple[int, ...]]] = []
        programs = elements = 0
        for convolution in convolutions:
            first_program, first = programs, elements
            for weight in convolution:
                outer, inner, height, width = weight.shape
                given.append(dense(weight))
                sizes.append((outer, inner, height * width, programs, elements))
                programs += blocks(weight.numel(), rows)
                elements += weight.numel()
            shape = (-1, outer, inner) if transposed else (-1, inner, outer)
            own = (slice(first_program, programs), slice(first, elements), shape)
            self._parts.append(own)
            elements = blocks(elements, ALIGNED) * ALIGNED
        self.values = given[0].new_empty(elements)
        self.finite = given[0].new_empty(programs, dtype=torch.uint8) if transposed else None
        self.weights = [*given, *[None] * (MOST - len(given))]
        self.sizes, self.programs = tuple(sizes), programs

    def launch(self, arrivals: Tensor | None = None) -> Copies:
        """Copy, by a launch for this alone; it also fills contiguous int32 with 0."""
        tile = tiles.matrices()
        matrices_kernel[(self.programs,)](
            *self.weights, self.values, self.finite, arrivals,
            0 if arrivals is None else arrivals.numel(),
            SIZES=self.sizes, TRANSPOSED=self.transposed, CHECKED=self.transposed,
            BLOCK=tile.rows, **options(tile),
        )  # fmt: skip
        return self

    def matrices(self) -> list[Matrices]:
        """Of each convolution, complete once the copies are."""
        return [
            Matrices(
                self.values[elements].view(shape),
                None if self.finite is None else self.finite[programs],
            )
            for programs, elements, shape in self._parts
        ]


def matrices(
    weight_query: Tensor,
    weight_support: Tensor,
    *,
    transposed: bool = False,
    arrivals: Tensor | None = None,
) -> Matrices:
    """Those of one convolution.

    Args:
        weight_query: [Co, Ci, kq, kq].
        weight_support: [Co, Ci, ks, ks].
        transposed: for going back; whether the weights are finite is only told then.
        arrivals: contiguous int32, which become 0.
    """
    copies = Copies([(weight_query, weight_support)], transposed=transposed)
    return copies.launch(arrivals).matrices()[0]
