"""correlation_center_pivot4d: schema, argument checks, fake and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsdino.ops import arguments, backends, calls, derivatives, schemas
from fsdino.ops.center_pivot import kept, within
from fsdino.ops.correlation import asked_for

_NAME = "correlation_center_pivot4d"

schemas.define(_NAME)


def correlation_center_pivot4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None = None,
    *,
    support_stride: int = 1,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """`center_pivot_conv4d(correlation4d(...))` for when the correlation is too large to hold.

    The `reference` backend defines the result and does hold it; kernels need not.

    Args:
        query: [B, L, C, Hq, Wq].
        support: [B, L, C, Hs, Ws].
        support_weight: [B, Hs, Ws] or None (1 everywhere).
        weight_query: [Co, L, kq, kq].
        weight_support: [Co, L, ks, ks].
        bias: [Co] or None.
        support_stride: at least 1.
        eps: added to the features' lengths; greater than 0.
        backend: "auto", or the name of the backend that must run it.

    Returns:
        [B, Co, Hq, Wq, ceil(Hs / s), ceil(Ws / s)], of query's dtype.

    Raises:
        TypeError, ValueError, BackendError: as `correlation4d` and `center_pivot_conv4d`.

    Example:
        >>> import torch
        >>> from fsdino import ops
        >>> features, weight = torch.rand(1, 2, 16, 4, 4), torch.rand(8, 2, 3, 3)
        >>> ops.correlation_center_pivot4d(features, features, None, weight, weight).shape
        torch.Size([1, 8, 4, 4, 4, 4])
    """
    tensors = (query, support, support_weight, weight_query, weight_support, bias)
    return _OP(tensors, (support_stride, eps), backend)  # type: ignore[no-any-return]


def _check(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
    eps: float,
) -> Any:
    tensors = arguments.check_tensors(
        _NAME,
        query=query,
        support=support,
        support_weight=support_weight,
        weight_query=weight_query,
        weight_support=weight_support,
        bias=bias,
    )
    query, support, support_weight, weight_query, weight_support, bias = tensors  # type: ignore[assignment]
    arguments.check_features(_NAME, query, support, support_weight)
    arguments.check_weights(_NAME, query.shape[1], weight_query, weight_support, bias)
    support_stride = arguments.check_stride(_NAME, support_stride)
    eps = arguments.check_eps(_NAME, "eps", eps, query.dtype)
    shape = _shape(query, support, weight_query.shape[0], support_stride)
    arguments.check_result(_NAME, "query, support and weight_query", shape)
    return tensors, (support_stride, eps)


def _shape(query: Tensor, support: Tensor, channels: int, stride: int) -> tuple[int, ...]:
    hs, ws = (kept(size, stride) for size in support.shape[3:])
    return (query.shape[0], channels, *query.shape[3:], hs, ws)


@calls.implements(_NAME)
def _forward(query: Tensor, support: Tensor, *args: Any) -> Tensor:
    *tensors, support_stride, eps, backend = args
    stride = within(support_stride, support)
    return backends.run(backend, _NAME, query, support, *tensors, stride, eps)


@calls.implements(_NAME + "_backward")
def _backward_kernel(grad: Tensor, query: Tensor, support: Tensor, *args: Any) -> Any:
    *tensors, support_stride, eps, needs, backend = args
    settings = (within(support_stride, support), eps, needs)
    return backends.run(backend, _NAME + "_backward", grad, query, support, *tensors, *settings)


@torch.library.register_fake("fsdino::correlation_center_pivot4d")
def _fake(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
    eps: float,
    backend: str,
) -> Tensor:
    shape = _shape(query, support, weight_query.shape[0], support_stride)
    return backends.empty_volume(backend, query, shape)


@torch.library.register_fake("fsdino::correlation_center_pivot4d_backward")
def _backward_fake(
    grad: Tensor,
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    weight_query: Tensor,
    weight_support: Tensor,
    support_stride: int,
    eps: float,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    bias = weight_query[:, 0, 0, 0]
    inputs = (query, support, support_weight, weight_query, weight_support, bias)
    return asked_for(grad, inputs, needs)


def _gradients(
    grad: Tensor, saved: Sequence[Any], settings: Sequence[Any], needs: list[bool], backend: str
) -> Any:
    *tensors, _ = saved  # the gradients do not depend on the bias
    return _backward_kernel(grad, *tensors, *settings, needs, backend)


def _formulation(query: Tensor, support: Tensor, *args: Any) -> Tensor:
    *tensors, support_stride, eps = args
    settings = (within(support_stride, support), eps)
    return derivatives.correlation_center_pivot4d(*(query, support, *tensors, *settings))


_DERIVATIVES = derivatives.Derivatives(_NAME, 6, _gradients, _formulation)
_OP = calls.Op(_NAME, _check, _forward, derivatives.register(_DERIVATIVES, _forward))
