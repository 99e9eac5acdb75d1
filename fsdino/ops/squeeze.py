"""squeeze4d: argument checks, the composition, and schema and fake of what fuses it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fsdino.ops import arguments, backends, calls, derivatives, schemas
from fsdino.ops.center_pivot import center_pivot_block4d, kept
from fsdino.ops.correlation import correlation4d

_NAME = "squeeze4d"
_FIELDS = "(weight_query, weight_support, bias, norm_weight, norm_bias, support_stride)"

# weight_query, weight_support, bias, norm_weight, norm_bias, support_stride
Block = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, int]

_Given = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]

schemas.define(_NAME)


def squeeze4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    blocks: Sequence[Block],
    *,
    num_groups: int = 4,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """The correlation through one block after another, the last one's mean over the support.

    `correlation4d`, then `center_pivot_block4d` for each block: HSNet's squeezing (Min, Kang, Cho,
    ICCV 2021). These two run wherever a derivative is asked for, and on a backend that has no
    function of its own for the whole chain.

    Args:
        query: [B, L, C, Hq, Wq].
        support: [B, L, C, Hs, Ws].
        support_weight: [B, Hs, Ws] or None (1 everywhere).
        blocks: one or more of (weight_query [Co, Ci, kq, kq], weight_support [Co, Ci, ks, ks],
            bias [Co] or None, norm_weight [Co], norm_bias [Co], support_stride). Ci is L, and from
            the second block on the Co of the block before.
        num_groups: of every block; divides each Co.
        norm_eps: added to each variance; greater than 0.
        eps: added to the features' lengths; greater than 0.
        backend: "auto", or the name of the backend that must run it.

    Returns:
        [B, Co, Hq, Wq] with the last block's Co, of query's dtype.

    Raises:
        TypeError, ValueError, BackendError: as `correlation4d` and `center_pivot_block4d`, with the
            block in the message; and if `blocks` is empty or holds anything else.

    Example:
        >>> import torch
        >>> from fsdino import ops
        >>> features, weight = torch.rand(1, 2, 16, 4, 4), torch.rand(8, 2, 3, 3)
        >>> block = (weight, weight, None, torch.ones(8), torch.zeros(8), 2)
        >>> ops.squeeze4d(features, features, None, [block]).shape
        torch.Size([1, 8, 4, 4])
    """
    *columns, strides = _columns(blocks)
    direct, tensors, settings = calls.checked(
        _NAME,
        _check,
        (query, support, support_weight, *itertools.chain(*columns)),
        (*strides, num_groups, norm_eps, eps),
    )
    count = len(blocks)
    columns = [[*tensors[i : i + count]] for i in range(3, len(tensors), count)]
    listed = (*tensors[:3], *columns, [*settings[:count]], *settings[count:])
    name = backends.select(_NAME, tensors[0], backend)
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if recorded or not backends.fuses(name, _NAME, tensors[0].device, tensors[0].dtype):
        return _composition(*listed, backend)
    run = _forward.function if direct else _forward.overload
    return run(*listed, name)  # type: ignore[no-any-return]


def _columns(blocks: Sequence[Block]) -> list[list[Any]]:
    """The first values of all blocks, their second ones, and so on."""
    if not isinstance(blocks, list | tuple):
        raise TypeError(
            f"{_NAME}: blocks must be a list or tuple of {_FIELDS}, got {type(blocks).__name__}"
        )
    if not blocks:
        raise ValueError(f"{_NAME}: blocks must hold at least one {_FIELDS}, got none")
    for index, block in enumerate(blocks):
        where = f"{_NAME}: blocks[{index}]"
        if not isinstance(block, list | tuple):
            raise TypeError(f"{where} must be {_FIELDS}, got {type(block).__name__}")
        if len(block) != 6:
            raise ValueError(f"{where} must be {_FIELDS}, got {len(block)} values")
    return [list(column) for column in zip(*blocks, strict=True)]


def _check(query: Tensor, support: Tensor, support_weight: Tensor | None, *others: Any) -> Any:
    """The columns of the blocks follow the features, then num_groups, norm_eps and eps."""
    *flat, num_groups, norm_eps, eps = others
    blocks = [flat[index :: len(flat) // 6] for index in range(len(flat) // 6)]
    query, support, support_weight = arguments.check_tensors(  # type: ignore[assignment]
        _NAME, query=query, support=support, support_weight=support_weight
    )
    arguments.check_features(_NAME, query, support, support_weight)
    eps = arguments.check_eps(_NAME, "eps", eps, query.dtype)
    norm_eps = arguments.check_eps(_NAME, "norm_eps", norm_eps, query.dtype)
    checked = _check_blocks(query, support, blocks, num_groups)
    *columns, strides = zip(*checked, strict=True)
    tensors = (query, support, support_weight, *itertools.chain(*columns))
    return tensors, (*strides, num_groups, norm_eps, eps)


def _check_blocks(
    query: Tensor, support: Tensor, blocks: Sequence[Sequence[Any]], num_groups: int
) -> list[Block]:
    """Every mistake in the blocks is named; returns them as checked."""
    batch, channels, _, *shape = query.shape
    hs, ws = support.shape[3:]
    size = (batch, channels, *shape, hs, ws)
    arguments.check_result(_NAME, "query and support", size)
    checked = []
    for index, block in enumerate(blocks):
        where = f"{_NAME}: blocks[{index}]"
        weight_query, weight_support, bias, norm_weight, norm_bias, stride = block
        given = arguments.check_tensors(
            where,
            query=query,
            weight_query=weight_query,
            weight_support=weight_support,
            bias=bias,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
        )
        _, weight_query, weight_support, bias, norm_weight, norm_bias = cast(_Given, given)
        arguments.check_weights(where, channels, weight_query, weight_support, bias)
        channels = weight_query.shape[0]
        arguments.check_vector(where, "norm_weight", norm_weight, channels)
        arguments.check_vector(where, "norm_bias", norm_bias, channels)
        arguments.check_groups(where, num_groups, channels)
        stride = arguments.check_stride(where, stride)
        hs, ws = kept(hs, stride), kept(ws, stride)
        size = (batch, channels, *shape, hs, ws)
        arguments.check_result(where, "query, support and weight_query", size)
        checked.append((weight_query, weight_support, bias, norm_weight, norm_bias, stride))
    return checked


def _compose(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    blocks: Sequence[Block],
    num_groups: int,
    norm_eps: float,
    eps: float,
    backend: str,
) -> Tensor:
    """By the ops that it is made of; no volume is held longer than the next block needs it."""
    x = correlation4d(query, support, support_weight, eps=eps, backend=backend)
    last = len(blocks) - 1
    for index, block in enumerate(blocks):
        weight_query, weight_support, bias, norm_weight, norm_bias, stride = block
        x = center_pivot_block4d(
            x,
            weight_query,
            weight_support,
            bias,
            norm_weight,
            norm_bias,
            num_groups=num_groups,
            norm_eps=norm_eps,
            support_stride=stride,
            reduce_support=index == last,
            backend=backend,
        )
    return x


@calls.implements(_NAME)
def _forward(query: Tensor, support: Tensor, *args: Any) -> Tensor:
    support_weight, *columns, strides, num_groups, norm_eps, eps, backend = args
    settings = (_within(strides, support), num_groups, norm_eps, eps)
    return backends.run(backend, _NAME, query, support, support_weight, *columns, *settings)


def _within(strides: Sequence[int], support: Tensor) -> list[int]:
    """Strides that keep what `strides` keep, none of them beyond the grid that it is left."""
    found, (hs, ws) = [], support.shape[3:]
    for stride in strides:
        found.append(min(stride, max(hs, ws)))
        hs, ws = kept(hs, stride), kept(ws, stride)
    return found


@torch.library.register_fake("fsdino::squeeze4d")
def _fake(query: Tensor, *args: Any) -> Tensor:
    _, _, weights_query, *_ = args
    batch, _, _, hq, wq = query.shape
    return query.new_empty(batch, weights_query[-1].shape[0], hq, wq)


def _composition(
    query: Tensor, support: Tensor, support_weight: Tensor | None, *args: Any
) -> Tensor:
    """What the op's own arguments mean."""
    *columns, num_groups, norm_eps, eps, backend = args
    blocks = list(zip(*columns, strict=True))
    settings = (num_groups, norm_eps, eps, backend)
    return _compose(query, support, support_weight, blocks, *settings)


derivatives.register_composition(_NAME, _composition)
