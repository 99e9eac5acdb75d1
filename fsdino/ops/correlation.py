"""correlation4d: schema, argument checks, fake and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsdino.ops import arguments, backends, calls, derivatives, schemas

_NAME = "correlation4d"

schemas.define(_NAME)


def correlation4d(
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None = None,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Rectified cosine of every query token with every support token, weighted by the support.

    `relu(<q / (|q| + eps), s / (|s| + eps)>) * support_weight`, per layer. Where support_weight is
    exactly 0 the result is exactly 0, also for NaN features. With a binary mask as the weight this
    is HSNet's hypercorrelation (Min, Kang, Cho, ICCV 2021); a soft mask weights, where HSNet's
    mask-then-normalise would cancel it. A signed weight, 2m - 1, gives foreground minus background
    correlation in one volume.

    Args:
        query: [B, L, C, Hq, Wq] features of L layers.
        support: [B, L, C, Hs, Ws].
        support_weight: [B, Hs, Ws], any real numbers; None means 1 everywhere.
        eps: added to the lengths; greater than 0.
        backend: "auto", or the name of the backend that must run it.

    Returns:
        [B, L, Hq, Wq, Hs, Ws], of query's dtype. float32, float64, float16 and bfloat16 inputs,
        all of one dtype; inside `torch.autocast` they are cast as for a convolution.

    Raises:
        TypeError: not a dense tensor, dtypes that differ or are not floating, eps not a number.
        ValueError: shapes or devices that do not fit, eps out of range; the message names the
            argument.
        BackendError: the backend that `backend` names cannot run this call.

    Example:
        >>> import torch
        >>> from fsdino import ops
        >>> tokens = torch.eye(2).reshape(1, 1, 2, 1, 2)  # two tokens with nothing in common
        >>> ops.correlation4d(tokens, tokens, eps=1e-9).reshape(2, 2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    return _OP((query, support, support_weight), (eps,), backend)  # type: ignore[no-any-return]


def _check(query: Tensor, support: Tensor, support_weight: Tensor | None, eps: float) -> Any:
    query, support, support_weight = arguments.check_tensors(  # type: ignore[assignment]
        _NAME, query=query, support=support, support_weight=support_weight
    )
    arguments.check_features(_NAME, query, support, support_weight)
    eps = arguments.check_eps(_NAME, "eps", eps, query.dtype)
    arguments.check_result(_NAME, "query and support", _shape(query, support))
    return (query, support, support_weight), (eps,)


def _shape(query: Tensor, support: Tensor) -> tuple[int, ...]:
    return (*query.shape[:2], *query.shape[3:], *support.shape[3:])


@calls.implements(_NAME)
def _forward(
    query: Tensor, support: Tensor, support_weight: Tensor | None, eps: float, backend: str
) -> Tensor:
    return backends.run(backend, _NAME, query, support, support_weight, eps)


@calls.implements(_NAME + "_backward")
def _backward_kernel(grad: Tensor, *args: Any) -> Any:
    *rest, backend = args
    return backends.run(backend, _NAME + "_backward", grad, *rest)


@torch.library.register_fake("fsdino::correlation4d")
def _fake(
    query: Tensor, support: Tensor, support_weight: Tensor | None, eps: float, backend: str
) -> Tensor:
    return backends.empty_volume(backend, query, _shape(query, support))


@torch.library.register_fake("fsdino::correlation4d_backward")
def _backward_fake(
    grad: Tensor,
    query: Tensor,
    support: Tensor,
    support_weight: Tensor | None,
    eps: float,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (query, support, support_weight)
    return asked_for(grad, inputs, needs)  # type: ignore[return-value]


def asked_for(
    grad: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Fake gradients: one like each input whose gradient is needed, else an empty tensor.

    Volumes keep their memory order, other gradients are contiguous.
    """
    return tuple(
        (torch.empty_like(t) if t.ndim == 6 else t.new_empty(t.shape))
        if t is not None and need
        else grad.new_empty(0)
        for t, need in zip(inputs, needs, strict=True)
    )


def _gradients(
    grad: Tensor, saved: Sequence[Any], settings: Sequence[Any], needs: list[bool], backend: str
) -> Any:
    return _backward_kernel(grad, *saved, *settings, needs, backend)


_DERIVATIVES = derivatives.Derivatives(_NAME, 3, _gradients, derivatives.correlation4d)
_OP = calls.Op(_NAME, _check, _forward, derivatives.register(_DERIVATIVES, _forward))
