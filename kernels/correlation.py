"""correlation4d: cosines of all layers on tensor cores, written side by side.

The features are multiplied as they are; the reciprocal lengths come from a light pass and scale the
product, which costs no rounding. Tiles of support positions whose weights are all 0 multiply
nothing. Going back, the cosines are computed again.

Signatures and results are those of `fsdino/ops/reference.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdino.kernels import tiles
from fsdino.kernels.layout import (
    architecture,
    blocks,
    empty_volume,
    index_type,
    options,
    precision,
    tokens,
    volume,
)
from fsdino.kernels.matrices import MOST, Copies, copy_matrix

ZEROS = 1024  # counters that one program sets to 0


@triton.jit
def tokens_kernel(
    p_query: tl.tensor,  # [B, L, C, N], strided
    p_support: tl.tensor,  # [B, L, C, M], strided; its B may be another
    p_query_copy: tl.tensor,  # [B, L, N, C] unless None: the channels lie side by side already
    p_support_copy: tl.tensor,  # [B, L, M, C], as well
    p_query_inverse: tl.tensor,  # [B, L, N]
    p_support_inverse: tl.tensor,  # [B, L, M]
    p_arrivals: tl.tensor,  # [arrivals] unless None
    p_0: tl.tensor,  # as `matrices_kernel` takes them
    p_1: tl.tensor,
    p_2: tl.tensor,
    p_3: tl.tensor,
    p_4: tl.tensor,
    p_5: tl.tensor,
    p_6: tl.tensor,
    p_7: tl.tensor,
    p_matrices: tl.tensor,
    query_batch: tl.tensor,
    query_layer: tl.tensor,
    query_channel: tl.tensor,
    query_token: tl.tensor,
    support_batch: tl.tensor,
    support_layer: tl.tensor,
    support_channel: tl.tensor,
    support_token: tl.tensor,
    query_planes: tl.tensor,  # B * L
    support_planes: tl.tensor,
    L: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    M: tl.tensor,
    arrivals: tl.tensor,
    eps: tl.tensor,
    SIZES: tl.constexpr,  # as `matrices_kernel` takes them
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ARRIVALS: tl.constexpr,
    BLOCK_MATRICES: tl.constexpr,
) -> None:
    """1 / (length + eps) of every token of both sides, and copies of them.

    What else a chain of ops needs first is done by further programs: counters become 0, and the
    weights of its convolutions are put in order.
    """
    program = tl.program_id(0)
    query_programs = query_planes * tl.cdiv(N, BLOCK_N)
    support_programs = support_planes * tl.cdiv(M, BLOCK_N)
    if p_arrivals is not None:
        block = program - query_programs - support_programs
        if block >= 0:
            o_arrivals = block * BLOCK_ARRIVALS + tl.arange(0, BLOCK_ARRIVALS)
            tl.store(p_arrivals + o_arrivals, 0, mask=o_arrivals < arrivals)
            weights = (p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7)
            block -= tl.cdiv(arrivals, BLOCK_ARRIVALS)
            for index in tl.static_range(len(SIZES)):
                copy_matrix(
                    weights[index], p_matrices, p_matrices, block, tl.constexpr(SIZES[index]),
                    False, False, BLOCK_MATRICES,
                )  # fmt: skip
            return
    of_query = program < query_programs
    program = tl.where(of_query, program, program - query_programs)
    count = tl.where(of_query, N, M)
    plane = (program // tl.cdiv(count, BLOCK_N)).to(tl.int64)
    batch, layer = plane // L, plane % L
    o_n = program % tl.cdiv(count, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < count
    p_n = tl.where(
        of_query,
        p_query + batch * query_batch + layer * query_layer,
        p_support + batch * support_batch + layer * support_layer,
    ) + o_n.to(tl.int64) * tl.where(of_query, query_token, support_token)
    channel = tl.where(of_query, query_channel, support_channel)
    if p_query_copy is not None:
        p_copy = tl.where(of_query, p_query_copy, p_support_copy)
        p_copy_n = p_copy + plane * count * C + o_n.to(tl.int64) * C
    squares = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, C, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        mask = m_n[:, None] & (o_c < C)[None, :]
        p_c = p_n[:, None] + (o_c.to(tl.int64) * channel)[None, :]
        b_tokens = tl.load(p_c, mask=mask, other=0.0)
        if p_query_copy is not None:
            tl.store(p_copy_n[:, None] + o_c[None, :], b_tokens, mask=mask)
        b_tokens = b_tokens.to(tl.float32)
        squares += b_tokens * b_tokens
    length = tl.sqrt_rn(tl.sum(squares, 1))
    p_inverse = tl.where(of_query, p_query_inverse, p_support_inverse) + plane * count
    tl.store(p_inverse + o_n, 1.0 / (length + eps), mask=m_n)


@triton.jit
def _cosine(  # type: ignore[no-untyped-def]
    p_query: tl.tensor,  # the first token of the block, of one layer
    p_support: tl.tensor,
    o_query: tl.tensor,  # [BLOCK_QUERY], elements from there
    o_support: tl.tensor,  # [BLOCK_SUPPORT]
    p_query_inverse: tl.tensor,  # [BLOCK_QUERY]
    p_support_inverse: tl.tensor,  # [BLOCK_SUPPORT]
    m_query: tl.tensor,
    m_support: tl.tensor,
    C: tl.tensor,
    steps: tl.tensor,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Cosines of a block of query and a block of support tokens, before the ReLU."""
    acc = tl.zeros((m_query.shape[0], m_support.shape[0]), tl.float32)
    o_c = tl.arange(0, BLOCK_C)
    for step in range(0, steps):
        start = step * BLOCK_C
        m_c = tl.full((BLOCK_C,), 1, tl.int1) if WHOLE else o_c < C - start
        b_query = tl.load(
            p_query + start + (o_query[:, None] + o_c[None, :]),
            mask=m_query[:, None] & m_c[None, :],
            other=0.0,
        )  # [BLOCK_QUERY, BLOCK_C]
        b_support = tl.load(
            p_support + start + (o_support[None, :] + o_c[:, None]),
            mask=m_c[:, None] & m_support[None, :],
            other=0.0,
        )  # [BLOCK_C, BLOCK_SUPPORT]
        acc = tl.dot(b_query, b_support, acc, input_precision=PRECISION)
    query_inverse = tl.load(p_query_inverse, mask=m_query, other=0.0)
    support_inverse = tl.load(p_support_inverse, mask=m_support, other=0.0)
    return acc * query_inverse[:, None] * support_inverse[None, :]


@triton.jit
def _weighted(values: tl.tensor, weight: tl.tensor):  # type: ignore[no-untyped-def]
    """Values times the support's weights; exactly 0 where the weight is."""
    weighted = values.to(tl.float32) * weight.to(tl.float32)
    return tl.where(weight == 0, 0.0, weighted).to(values.dtype)


@triton.jit
def _rectified(cosine: tl.tensor):  # type: ignore[no-untyped-def]
    """ReLU that lets NaN pass."""
    return tl.where(cosine <= 0, 0.0, cosine)


@triton.jit
def _correlation(  # type: ignore[no-untyped-def]
    p_query: tl.tensor,
    p_support: tl.tensor,
    o_query: tl.tensor,
    o_support: tl.tensor,
    p_query_inverse: tl.tensor,
    p_support_inverse: tl.tensor,
    query_layer: tl.tensor,
    support_layer: tl.tensor,
    query_inverse_layer: tl.tensor,
    support_inverse_layer: tl.tensor,
    m_query: tl.tensor,
    m_support: tl.tensor,
    layer: tl.tensor,
    C: tl.tensor,
    steps: tl.tensor,
    L: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The op's result for one layer, without weight, given pointers into the first one's tokens."""
    steps = tl.where(layer < L, steps, 0)  # a layer too many: nothing is multiplied or written
    layer = tl.minimum(layer, L - 1)
    cosine = _cosine(
        p_query + layer * query_layer, p_support + layer * support_layer, o_query, o_support,
        p_query_inverse + layer * query_inverse_layer,
        p_support_inverse + layer * support_inverse_layer,
        m_query, m_support, C, steps, PRECISION, WHOLE, BLOCK_C,
    )  # fmt: skip
    return _rectified(cosine).to(DTYPE)


@triton.jit
def _packed(values: tl.tensor):  # type: ignore[no-untyped-def]
    """Pairs of neighbouring columns in half precision, [R, C] -> [R, C // 2] in 32 bits.

    A value of 16 bits by itself would take a register.
    """
    bits = values.to(tl.uint16, bitcast=True)
    low, high = tl.split(tl.reshape(bits, (values.shape[0], values.shape[1] // 2, 2)))
    return low.to(tl.uint32) | (high.to(tl.uint32) << 16)


@triton.jit
def _unpacked(words: tl.tensor, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """What `_packed` was given."""
    bits = tl.join((words & 0xFFFF).to(tl.uint16), (words >> 16).to(tl.uint16))
    return tl.reshape(bits, (words.shape[0], 2 * words.shape[1])).to(dtype, bitcast=True)


@triton.jit
def correlation_kernel(
    p_query: tl.tensor,  # [B, L, C, N], strided, the channels side by side
    p_support: tl.tensor,  # [B, L, C, M], as well
    p_query_inverse: tl.tensor,  # [B, L, N], batch and layer strided
    p_support_inverse: tl.tensor,  # [B, L, M], as well
    p_weight: tl.tensor,  # [B, M] unless not HAS_WEIGHT
    p_out: tl.tensor,  # [B, N, M, L]
    query_batch: tl.tensor,
    query_layer: tl.tensor,
    query_token: tl.tensor,
    query_inverse_batch: tl.tensor,
    query_inverse_layer: tl.tensor,
    support_batch: tl.tensor,
    support_layer: tl.tensor,
    support_token: tl.tensor,
    support_inverse_batch: tl.tensor,
    support_inverse_layer: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    M: tl.tensor,
    L: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,  # whether BLOCK_C divides C
    INDEX: tl.constexpr,  # of the output's elements, from a tile's first one on
    OFFSET: tl.constexpr,  # of the features' elements, from a tile's first one on
    LAYERS: tl.constexpr,  # of one program: 1; in half precision also 2 or 4
    BLOCK_QUERY: tl.constexpr,
    BLOCK_SUPPORT: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """The op, for a block of query tokens, a block of support tokens and some layers."""
    LAYER_BLOCKS: tl.constexpr = (L + LAYERS - 1) // LAYERS
    support_blocks = tl.cdiv(M, BLOCK_SUPPORT)
    query_blocks = tl.cdiv(N, BLOCK_QUERY)
    program = tl.program_id(0)
    # Made 64 bits wide without a sign, which would take a register for each.
    layer = (program % LAYER_BLOCKS * LAYERS).to(tl.uint32).to(tl.int64)
    program = program // LAYER_BLOCKS
    first_support = (program % support_blocks * BLOCK_SUPPORT).to(tl.uint32).to(tl.int64)
    program = program // support_blocks
    first_query = (program % query_blocks * BLOCK_QUERY).to(tl.uint32).to(tl.int64)
    batch = (program // query_blocks).to(tl.uint32).to(tl.int64)
    query, support = tl.arange(0, BLOCK_QUERY), tl.arange(0, BLOCK_SUPPORT)
    m_query = query < N - first_query.to(tl.int32)
    m_support = support < M - first_support.to(tl.int32)

    steps = tl.cdiv(C, BLOCK_C)
    if HAS_WEIGHT:
        p_weight += batch * M + first_support
        weight = tl.load(p_weight + support, mask=m_support, other=0.0)
        steps = tl.where(tl.max((weight != 0).to(tl.int32), 0) > 0, steps, 0)
    p_query += batch * query_batch + first_query * query_token
    p_support += batch * support_batch + first_support * support_token
    o_query, o_support = query.to(OFFSET) * query_token, support.to(OFFSET) * support_token
    p_query_inverse += batch * query_inverse_batch + first_query + query
    p_support_inverse += batch * support_inverse_batch + first_support + support
    p_out += ((batch * N + first_query) * M + first_support) * L + layer
    DTYPE: tl.constexpr = p_out.dtype.element_ty
    if LAYERS == 1:
        out = _correlation(
            p_query, p_support, o_query, o_support, p_query_inverse, p_support_inverse,
            query_layer, support_layer, query_inverse_layer, support_inverse_layer,
            m_query, m_support, layer, C, steps,
            L, PRECISION, WHOLE, BLOCK_C, DTYPE,
        )  # fmt: skip
    else:
        # A loop, since the compiler would put unrolled layers' scaling off to the end, and keep
        # their sums in 32 bits until then. Each begins as a value of its own: Triton would take
        # equal ones for constant.
        first = tl.zeros((BLOCK_QUERY, BLOCK_SUPPORT // 2), tl.uint32)
        second = tl.zeros((BLOCK_QUERY, BLOCK_SUPPORT // 2), tl.uint32)
        third = tl.zeros((BLOCK_QUERY, BLOCK_SUPPORT // 2), tl.uint32)
        fourth = tl.zeros((BLOCK_QUERY, BLOCK_SUPPORT // 2), tl.uint32)
        for index in range(LAYERS):
            found = _correlation(
                p_query, p_support, o_query, o_support, p_query_inverse, p_support_inverse,
                query_layer, support_layer, query_inverse_layer, support_inverse_layer,
                m_query, m_support, layer + index, C, steps,
                L, PRECISION, WHOLE, BLOCK_C, DTYPE,
            )  # fmt: skip
            first, second, third, fourth = second, third, fourth, _packed(found)
        out = tl.join(_unpacked(third, DTYPE), _unpacked(fourth, DTYPE))
        if LAYERS == 4:
            earlier = tl.join(_unpacked(first, DTYPE), _unpacked(second, DTYPE))
            out = tl.permute(tl.join(earlier, out), (0, 1, 3, 2))
            out = tl.reshape(out, (BLOCK_QUERY, BLOCK_SUPPORT, 4))
    # From the tile's first element on, 32 bits mostly reach: 64 cost twice the registers.
    o_out = (query.to(INDEX)[:, None] * M + support[None, :]) * L
    mask = m_query[:, None] & m_support[None, :]
    if HAS_WEIGHT:
        # Applied to rounded cosines, which changes nothing where it is 0, 1 or -1. Read again:
        # kept, it would take a register for every column.
        weight = tl.load(p_weight + support, mask=m_support, other=0.0, volatile=True)
    if LAYERS == 1:
        if HAS_WEIGHT:
            out = _weighted(out, weight[None, :])
        tl.store(p_out + o_out, out, mask=mask)
    else:
        if HAS_WEIGHT:
            out = _weighted(out, weight[None, :, None])
        o_layer = tl.arange(0, LAYERS)
        tl.store(
            p_out + o_out[:, :, None] + o_layer[None, None, :],
            out,
            mask=mask[:, :, None] & (layer + o_layer < L)[None, None, :],
        )


@triton.jit
def correlation_gradient_kernel(
    p_query: tl.tensor,
    p_support: tl.tensor,
    p_query_inverse: tl.tensor,
    p_support_inverse: tl.tensor,
    p_weight: tl.tensor,
    p_grad: tl.tensor,  # [B, N, M, L], the batch strided
    p_cosine_grad: tl.tensor,  # [B, L, N, M] unless not FEATURES
    p_partial: tl.tensor,  # [B, L, query blocks, M] unless not WEIGHT
    query_batch: tl.tensor,
    query_layer: tl.tensor,
    query_token: tl.tensor,
    query_inverse_batch: tl.tensor,
    query_inverse_layer: tl.tensor,
    support_batch: tl.tensor,
    support_layer: tl.tensor,
    support_token: tl.tensor,
    support_inverse_batch: tl.tensor,
    support_inverse_layer: tl.tensor,
    grad_batch: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    M: tl.tensor,
    L: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    FEATURES: tl.constexpr,
    WEIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_SUPPORT: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Gradient to the cosines, and the weight's, summed over a block of query tokens."""
    support_blocks = tl.cdiv(M, BLOCK_SUPPORT)
    program = tl.program_id(0)
    layer = (program % L).to(tl.int64)
    program = program // L
    first_support = program % support_blocks * BLOCK_SUPPORT
    program = program // support_blocks
    query_blocks = tl.cdiv(N, BLOCK_QUERY)
    query_block = program % query_blocks
    first_query = query_block * BLOCK_QUERY
    batch = (program // query_blocks).to(tl.int64)
    query, support = tl.arange(0, BLOCK_QUERY), tl.arange(0, BLOCK_SUPPORT)
    o_query, o_support = first_query + query, first_support + support
    m_query, m_support = o_query < N, o_support < M
    mask = m_query[:, None] & m_support[None, :]

    steps = tl.cdiv(C, BLOCK_C)
    weight = tl.full((BLOCK_SUPPORT,), 1.0, tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(p_weight + batch * M + o_support, mask=m_support, other=0.0)
        weight = weight.to(tl.float32)
        if not WEIGHT:
            steps = tl.where(tl.max((weight != 0).to(tl.int32), 0) > 0, steps, 0)
    p_query += batch * query_batch + layer * query_layer
    p_support += batch * support_batch + layer * support_layer
    p_query_inverse += batch * query_inverse_batch + layer * query_inverse_layer
    p_support_inverse += batch * support_inverse_batch + layer * support_inverse_layer
    cosine = _cosine(
        p_query + first_query.to(tl.int64) * query_token,
        p_support + first_support.to(tl.int64) * support_token,
        query.to(OFFSET) * query_token, support.to(OFFSET) * support_token,
        p_query_inverse + o_query, p_support_inverse + o_support,
        m_query, m_support, C, steps, PRECISION, WHOLE, BLOCK_C,
    )  # fmt: skip
    o_grad = (o_query.to(tl.int64)[:, None] * M + o_support[None, :]) * L + layer
    grad = tl.load(p_grad + batch * grad_batch + o_grad, mask=mask, other=0.0).to(tl.float32)
    plane = batch * L + layer
    if WEIGHT:
        along = tl.sum(tl.where(mask, grad * _rectified(cosine), 0.0), 0)
        o_partial = (plane * query_blocks + query_block) * M + o_support
        tl.store(p_partial + o_partial, along, mask=m_support)
    if FEATURES:
        grad = tl.where(cosine <= 0, 0.0, grad)
        out = _weighted(grad, weight[None, :]).to(p_cosine_grad.dtype.element_ty)
        o_out = (plane * N + o_query)[:, None] * M + o_support[None, :]
        tl.store(p_cosine_grad + o_out, out, mask=mask)


@triton.jit
def unit_kernel(
    p_tokens: tl.tensor,  # [B, L, C, N], strided
    p_inverse: tl.tensor,  # [B, L, N], batch and layer strided
    p_weight: tl.tensor,  # [B, N] unless not HAS_WEIGHT
    p_out: tl.tensor,  # [B, L, N, C]
    batch_stride: tl.tensor,
    layer_stride: tl.tensor,
    channel_stride: tl.tensor,
    token_stride: tl.tensor,
    inverse_batch: tl.tensor,
    inverse_layer: tl.tensor,
    L: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Tokens over their length, 0 where the weight is 0: what is multiplied going back."""
    plane = tl.program_id(0).to(tl.int64)
    batch, layer = plane // L, plane % L
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_n = o_n < N
    mask = m_n[:, None] & (o_c < C)[None, :]
    p_n = p_tokens + batch * batch_stride + layer * layer_stride
    p_n += o_n.to(tl.int64) * token_stride
    p_c = p_n[:, None] + (o_c.to(tl.int64) * channel_stride)[None, :]
    b_tokens = tl.load(p_c, mask=mask, other=0.0).to(tl.float32)
    p_inverse += batch * inverse_batch + layer * inverse_layer
    inverse = tl.load(p_inverse + o_n, mask=m_n, other=0.0)
    out = b_tokens * inverse[:, None]
    if HAS_WEIGHT:
        weight = tl.load(p_weight + batch * N + o_n, mask=m_n, other=0.0).to(tl.float32)
        out = tl.where((weight == 0)[:, None], 0.0, out)
    o_out = ((plane * N + o_n) * C)[:, None] + o_c[None, :]
    tl.store(p_out + o_out, out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def unit_gradient_kernel(
    p_grad: tl.tensor,  # [B, L, N, C], to the unit vectors
    p_tokens: tl.tensor,  # [B, L, C, N], strided
    p_weight: tl.tensor,  # [B, N] unless not HAS_WEIGHT
    p_out: tl.tensor,  # [B, L, C, N]
    batch_stride: tl.tensor,
    layer_stride: tl.tensor,
    channel_stride: tl.tensor,
    token_stride: tl.tensor,
    L: tl.tensor,
    C: tl.tensor,
    N: tl.tensor,
    eps: tl.tensor,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Gradient to tokens; the length's gradient at a zero vector is 0, as in PyTorch."""
    plane = tl.program_id(0).to(tl.int64)
    batch, layer = plane // L, plane % L
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    p_n = p_tokens + batch * batch_stride + layer * layer_stride
    p_n += o_n.to(tl.int64) * token_stride
    p_grad_n = p_grad + (plane * N + o_n) * C
    squares = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, C, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        mask = m_n[:, None] & (o_c < C)[None, :]
        p_c = p_n[:, None] + (o_c.to(tl.int64) * channel_stride)[None, :]
        b_tokens = tl.load(p_c, mask=mask, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad_n[:, None] + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
        squares += b_tokens * b_tokens
        products += b_tokens * b_grad
    length = tl.sqrt_rn(tl.sum(squares, 1))
    scale = tl.where(length == 0, 1.0, length * (length + eps))
    along = tl.where(length == 0, 0.0, tl.sum(products, 1) / scale)
    for start in range(0, C, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        mask = m_n[:, None] & (o_c < C)[None, :]
        p_c = p_n[:, None] + (o_c.to(tl.int64) * channel_stride)[None, :]
        b_tokens = tl.load(p_c, mask=mask, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad_n[:, None] + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
        out = (b_grad - b_tokens * along[:, None]) / (length + eps)[:, None]
        if HAS_WEIGHT:
            weight = tl.load(p_weight + batch * N + o_n, mask=m_n, other=0.0).to(tl.float32)
            out = tl.where((weight == 0)[:, None], 0.0, out)
        o_out = (plane * C + o_c)[None, :] * N + o_n[:, None]
        tl.store(p_out + o_out, out.to(p_out.dtype.element_ty), mask=mask)


def correlation4d(
    query: Tensor, support: Tensor, support_weight: Tensor | None, eps: float
) -> Tensor:
    """[B, L, C, Hq, Wq] and [B, L, C, Hs, Ws] -> [B, L, Hq, Wq, Hs, Ws], layers innermost."""
    out = empty_volume(query, (*query.shape[:2], *query.shape[3:], *support.shape[3:]))
    Cosines(*both(query, support, eps), support_weight, eps).forward(out)
    return out


def correlation4d_backward(
    grad: Tensor,
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients to query, support and support_weight; empty where `needs` says nobody asks."""
    cosines = Cosines(*both(query, support, eps), support_weight, eps)
    inputs = (query, support, support_weight)
    return tuple(
        grad.new_empty(0) if one is None or given is None else one.to(given.dtype).view(given.shape)
        for one, given in zip(cosines.backward(volume(grad), needs), inputs, strict=True)
    )


@dataclass(frozen=True)
class Tokens:
    """The feature vectors of images, and the reciprocals of their lengths.

    Attributes:
        values: [B, L, C, N], strided, the channels side by side.
        inverse: 1 / (length + eps), [B, L, N] in float32, batch and layer strided; one for all
            shots of an image.
    """

    values: Tensor
    inverse: Tensor

    def of(self, samples: slice) -> Tokens:
        """Those of some samples, as views."""
        return Tokens(self.values[samples], self.inverse[samples])

    def part(self, first: int, last: int) -> Tokens:
        """Tokens first..last - 1, as views."""
        return Tokens(self.values[..., first:last], self.inverse[..., first:last])


@dataclass(frozen=True)
class Preparation:
    """What a chain of ops needs first: counters that are 0, and its weights in order.

    Attributes:
        arrivals: contiguous int32, to be filled with 0.
        copies: of the weights.
    """

    arrivals: Tensor
    copies: Copies


def both(
    query: Tensor, support: Tensor, eps: float, preparation: Preparation | None = None
) -> tuple[Tokens, Tokens]:
    """The tokens of query and support, which one launch measures and, where they must be, copies.

    Args:
        query: [B, L, C, Hq, Wq].
        support: [B, L, C, Hs, Ws]; its B may be another.
        eps: added to the lengths.
        preparation: what the same launch does besides.
    """
    sides = _Side.of(query), _Side.of(support)
    if (sides[0].copy is None) == (sides[1].copy is None):
        _prepare(*sides, eps, preparation)
    else:  # each is compiled for its own way through memory
        _prepare(sides[0], None, eps, preparation)
        _prepare(sides[1], None, eps, None)
    return sides[0].tokens(query.shape[0]), sides[1].tokens(support.shape[0])


def one(features: Tensor, eps: float, preparation: Preparation | None = None) -> Tokens:
    """The tokens of one side, [B, L, C, h, w]; `preparation` as `both` takes it."""
    side = _Side.of(features)
    _prepare(side, None, eps, preparation)
    return side.tokens(features.shape[0])


@dataclass(frozen=True)
class _Side:
    """What becomes the tokens of some images; B is 1 for shots of one image.

    Attributes:
        source: [B, L, C, N], strided.
        copy: the same with the channels side by side, to be filled, unless they are in `source`.
        inverse: [B, L, N], to be filled.
    """

    source: Tensor
    copy: Tensor | None
    inverse: Tensor

    @classmethod
    def of(cls, features: Tensor) -> _Side:
        """From [B, L, C, h, w]."""
        source = tokens(features[:1] if features.stride(0) == 0 else features)
        batch, layers, channels, count = source.shape
        copy = None
        if source.stride(2) != 1 and channels > 1:
            copy = source.new_empty(batch, layers, count, channels).transpose(2, 3)
        return cls(source, copy, source.new_empty(batch, layers, count, dtype=torch.float32))

    def tokens(self, batch: int) -> Tokens:
        """Of all shots."""
        values = self.source if self.copy is None else self.copy
        return Tokens(values.expand(batch, -1, -1, -1), self.inverse.expand(batch, -1, -1))


def _prepare(
    query: _Side, support: _Side | None, eps: float, preparation: Preparation | None
) -> None:
    """Fill the inverse lengths and the copies of one or two sides, and what else is to be done."""
    sides = (query, support or query)
    layers, channels = query.source.shape[1:3]
    tile = tiles.tokens(channels)
    counts = [side.source.shape[3] for side in sides]
    planes = [query.source.shape[0] * layers, support.source.shape[0] * layers if support else 0]
    programs = sum(p * blocks(n, tile.rows) for p, n in zip(planes, counts, strict=True))
    arrivals, zeros = None, 0
    sizes: tuple[tuple[int, ...], ...] = ()
    weights: list[Tensor | None] = [None] * (MOST + 1)
    if preparation is not None:
        arrivals, copies = preparation.arrivals, preparation.copies
        zeros, sizes = arrivals.numel(), copies.sizes
        weights = [*copies.weights, copies.values]
        programs += blocks(zeros, ZEROS) + copies.programs
    if programs:
        tokens_kernel[(programs,)](
            *(side.source for side in sides), *(side.copy for side in sides),
            *(side.inverse for side in sides), arrivals, *weights,
            *(stride for side in sides for stride in side.source.stride()),
            *planes, layers, channels, *counts, zeros, eps,
            SIZES=sizes, BLOCK_N=tile.rows, BLOCK_C=tile.columns, BLOCK_ARRIVALS=ZEROS,
            BLOCK_MATRICES=tiles.matrices().rows, **options(tile),
        )  # fmt: skip


class Cosines:
    """The tokens of a query and a support, and what their kernels share.

    Args:
        query: N tokens.
        support: M tokens.
        weight: [B, Hs, Ws] or None.
        eps: added to the lengths.
    """

    def __init__(self, query: Tokens, support: Tokens, weight: Tensor | None, eps: float) -> None:
        self.query, self.support, self.eps = query, support, eps
        self.weight = None if weight is None else weight.resolve_neg().flatten(1).contiguous()
        self.batch, self.layers, self.channels, self.query_tokens = query.values.shape
        self.support_tokens = support.values.shape[3]

    def forward(self, out: Tensor) -> None:
        """The weighted correlation, into a dense volume [B, L, Hq, Wq, Hs, Ws]."""
        tile = tiles.correlation(out.dtype, architecture(out))
        weighted = self.weight is not None
        layers = tiles.correlation_layers(
            self.layers, self.channels, weighted, out.dtype, architecture(out)
        )
        if self.batch:
            correlation_kernel[self._grid(tile, blocks(self.layers, layers))](
                *self._tensors(), out, *self._strides(), *self._sizes(),
                L=self.layers, HAS_WEIGHT=weighted, LAYERS=layers,
                INDEX=index_type(tile.rows * self.support_tokens * self.layers),
                **self._settings(tile),
            )  # fmt: skip

    def backward(self, grad: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Gradients to query and support, [B, L, C, N] and [B, L, C, M] in their dtype, and to the
        weight, [B, M] in float32, where needed.

        Args:
            grad: [B, L, Hq, Wq, Hs, Ws] as `layout.volume` leaves it.
            needs: one for each.
        """
        features, weight = needs[0] or needs[1], needs[2] and self.weight is not None
        planes = (self.batch, self.layers)
        tile = tiles.correlation_gradient(grad.dtype, architecture(grad))
        query_blocks = blocks(self.query_tokens, tile.rows)
        cosine_grad = partial = None
        if features:
            cosine_grad = grad.new_empty(*planes, self.query_tokens, self.support_tokens)
        if weight:
            partial = self.query.inverse.new_empty(*planes, query_blocks, self.support_tokens)
        if self.batch and (features or weight):
            correlation_gradient_kernel[self._grid(tile, self.layers)](
                *self._tensors(), grad, cosine_grad, partial,
                *self._strides(), grad.stride(0), *self._sizes(),
                L=self.layers, HAS_WEIGHT=self.weight is not None,
                FEATURES=features, WEIGHT=weight, **self._settings(tile),
            )  # fmt: skip
        return (
            self._to_query(cosine_grad) if needs[0] and cosine_grad is not None else None,
            self._to_support(cosine_grad) if needs[1] and cosine_grad is not None else None,
            None if partial is None else partial.sum((1, 2)),
        )

    def _to_query(self, cosine_grad: Tensor) -> Tensor:
        unit = _unit(self.support, self.weight)
        grad = torch.matmul(cosine_grad, unit)  # [B, L, N, C]
        return _unit_gradient(grad, self.query.values, None, self.eps)

    def _to_support(self, cosine_grad: Tensor) -> Tensor:
        unit = _unit(self.query, None)
        grad = torch.matmul(cosine_grad.transpose(2, 3), unit)  # [B, L, M, C]
        return _unit_gradient(grad, self.support.values, self.weight, self.eps)

    def _grid(self, tile: tiles.Tile, layer_blocks: int) -> tuple[int]:
        query_blocks = blocks(self.query_tokens, tile.rows)
        support_blocks = blocks(self.support_tokens, tile.columns)
        return (self.batch * query_blocks * support_blocks * layer_blocks,)

    def _tensors(self) -> tuple[Tensor | None, ...]:
        query, support = self.query, self.support
        return (query.values, support.values, query.inverse, support.inverse, self.weight)

    def _strides(self) -> tuple[int, ...]:
        """Of batch, layer and token, and of the inverse lengths' batch and layer."""
        return tuple(
            stride
            for side in (self.query, self.support)
            for stride in (
                *side.values.stride()[:2], side.values.stride(3), *side.inverse.stride()[:2],
            )
        )  # fmt: skip

    def _sizes(self) -> tuple[int, ...]:
        return (self.channels, self.query_tokens, self.support_tokens)

    def _settings(self, tile: tiles.Tile) -> dict[str, Any]:
        most = max(
            tile.rows * self.query.values.stride(3),
            tile.columns * self.support.values.stride(3),
        )
        return {
            "PRECISION": precision(self.query.values),
            "WHOLE": self.channels % tile.depth == 0,
            "OFFSET": index_type(most),
            "BLOCK_QUERY": tile.rows,
            "BLOCK_SUPPORT": tile.columns,
            "BLOCK_C": tile.depth,
            **options(tile),
        }


def _unit(side: Tokens, weight: Tensor | None) -> Tensor:
    """Tokens over their lengths, [B, L, N, C]; 0 where the weight is."""
    values, inverse = side.values, side.inverse
    batch, layers, channels, count = values.shape
    unit = values.new_empty(batch, layers, count, channels)
    if batch:
        tile = tiles.tokens(channels)
        grid = (batch * layers, blocks(count, tile.rows), blocks(channels, tile.columns))
        unit_kernel[grid](
            values, inverse, weight, unit, *values.stride(), *inverse.stride()[:2],
            layers, channels, count, HAS_WEIGHT=weight is not None,
            BLOCK_N=tile.rows, BLOCK_C=tile.columns, **options(tile),
        )  # fmt: skip
    return unit


def _unit_gradient(grad: Tensor, values: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """From the gradient to unit vectors [B, L, N, C] that to the tokens, [B, L, C, N]."""
    batch, layers, channels, count = values.shape
    out = values.new_empty(values.shape)
    if batch:
        tile = tiles.tokens(channels)
        unit_gradient_kernel[(batch * layers, blocks(count, tile.rows))](
            grad, values, weight, out, *values.stride(), layers, channels, count, eps,
            HAS_WEIGHT=weight is not None,
            BLOCK_N=tile.rows, BLOCK_C=tile.columns, **options(tile),
        )  # fmt: skip
    return out
