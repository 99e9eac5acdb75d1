"""center_pivot_conv4d and center_pivot_block4d: schema, argument checks, fake and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsdino.ops import arguments, backends, calls, derivatives, reference, schemas
from fsdino.ops.correlation import asked_for

_CONV = "center_pivot_conv4d"
_BLOCK = "center_pivot_block4d"

schemas.define(_CONV)
schemas.define(_BLOCK)


def center_pivot_conv4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None = None,
    *,
    support_stride: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Center-pivot 4D convolution: a 2D convolution over each pair of dims, added.

    A k x k x k x k kernel whose only non-zero taps lie on the two planes through its centre
    (HSNet; Min, Kang, Cho, ICCV 2021). Odd kernels, zero padding k // 2, query stride 1; the
    support positions 0, s, 2s, ... are kept.

    Args:
        x: [B, Ci, Hq, Wq, Hs, Ws].
        weight_query: [Co, Ci, kq, kq], over the query dims at each kept support position.
        weight_support: [Co, Ci, ks, ks], over the support dims, strided, at each query position.
        bias: [Co], the sum of the two biases of HSNet's layer.
        support_stride: s, at least 1; beyond the grid it keeps only position 0.
        backend: "auto", or the name of the backend that must run it.

    Returns:
        [B, Co, Hq, Wq, ceil(Hs / s), ceil(Ws / s)], of x's dtype.

    Raises:
        TypeError: not a dense tensor, dtypes that differ or are not floating, a stride that is not
            an integer.
        ValueError: shapes, kernels or devices that do not fit; the message names the argument.
        BackendError: the backend that `backend` names cannot run this call.

    Example:
        >>> import torch
        >>> from fsdino import ops
        >>> x, weight = torch.rand(1, 2, 5, 5, 6, 6), torch.rand(8, 2, 3, 3)
        >>> ops.center_pivot_conv4d(x, weight, weight, support_stride=2).shape
        torch.Size([1, 8, 5, 5, 3, 3])
    """
    tensors = (x, weight_query, weight_support, bias)
    return _CONV_OP(tensors, (support_stride,), backend)  # type: ignore[no-any-return]


def _check_conv(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
) -> Any:
    x, weight_query, weight_support, bias = arguments.check_tensors(  # type: ignore[assignment]
        _CONV, x=x, weight_query=weight_query, weight_support=weight_support, bias=bias
    )
    arguments.check_volume(_CONV, x)
    arguments.check_weights(_CONV, x.shape[1], weight_query, weight_support, bias)
    support_stride = arguments.check_stride(_CONV, support_stride)
    arguments.check_result(
        _CONV, "x and weight_query", _shape(x, weight_query.shape[0], support_stride)
    )
    return (x, weight_query, weight_support, bias), (support_stride,)


def center_pivot_block4d(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    num_groups: int = 4,
    norm_eps: float = 1e-5,
    support_stride: int = 1,
    reduce_support: bool = False,
    backend: str = "auto",
) -> Tensor:
    """`relu(group_norm(center_pivot_conv4d(...)))`, HSNet's squeezing block.

    Args:
        x: [B, Ci, Hq, Wq, Hs, Ws].
        weight_query: [Co, Ci, kq, kq].
        weight_support: [Co, Ci, ks, ks].
        bias: [Co] or None.
        norm_weight: [Co], the group normalisation's scale.
        norm_bias: [Co], its shift.
        num_groups: divides Co.
        norm_eps: added to the variance; greater than 0.
        support_stride: at least 1.
        reduce_support: return the mean over the support dims.
        backend: "auto", or the name of the backend that must run it.

    Returns:
        [B, Co, Hq, Wq, ceil(Hs / s), ceil(Ws / s)], or [B, Co, Hq, Wq] with `reduce_support`.

    Raises:
        TypeError, ValueError, BackendError: as `center_pivot_conv4d`.

    Example:
        >>> import torch
        >>> from fsdino import ops
        >>> x, weight, ones = torch.rand(1, 2, 5, 5, 6, 6), torch.rand(8, 2, 3, 3), torch.ones(8)
        >>> ops.center_pivot_block4d(x, weight, weight, None, ones, ones, reduce_support=True).shape
        torch.Size([1, 8, 5, 5])
    """
    tensors = (x, weight_query, weight_support, bias, norm_weight, norm_bias)
    y, *_ = _BLOCK_OP(tensors, (num_groups, norm_eps, support_stride, reduce_support), backend)
    return y  # type: ignore[no-any-return]


def _check_block(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_groups: int,
    norm_eps: float,
    support_stride: int,
    reduce_support: bool,
) -> Any:
    tensors = arguments.check_tensors(
        _BLOCK,
        x=x,
        weight_query=weight_query,
        weight_support=weight_support,
        bias=bias,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
    )
    x, weight_query, weight_support, bias, norm_weight, norm_bias = tensors  # type: ignore[assignment]
    arguments.check_volume(_BLOCK, x)
    arguments.check_weights(_BLOCK, x.shape[1], weight_query, weight_support, bias)
    arguments.check_vector(_BLOCK, "norm_weight", norm_weight, weight_query.shape[0])
    arguments.check_vector(_BLOCK, "norm_bias", norm_bias, weight_query.shape[0])
    support_stride = arguments.check_stride(_BLOCK, support_stride)
    arguments.check_result(
        _BLOCK, "x and weight_query", _shape(x, weight_query.shape[0], support_stride)
    )
    norm_eps = arguments.check_eps(_BLOCK, "norm_eps", norm_eps, x.dtype)
    arguments.check_groups(_BLOCK, num_groups, weight_query.shape[0])
    arguments.check_flag(_BLOCK, "reduce_support", reduce_support)
    return tensors, (num_groups, norm_eps, support_stride, reduce_support)


def kept(size: int, stride: int) -> int:
    """Support positions that a stride keeps: 0, s, 2s, ..."""
    return (size + stride - 1) // stride


def within(stride: int, support: Tensor) -> int:
    """A stride that keeps what `stride` keeps of a grid [..., Hs, Ws], and is not beyond it.

    No kernel then multiplies by a stride that nothing but position 0 is left of.
    """
    return min(stride, max(support.shape[-2:]))


def _shape(x: Tensor, channels: int, stride: int) -> tuple[int, ...]:
    batch, _, hq, wq, hs, ws = x.shape
    return (batch, channels, hq, wq, kept(hs, stride), kept(ws, stride))


@calls.implements(_CONV)
def _conv_forward(x: Tensor, *args: Any) -> Tensor:
    *tensors, support_stride, backend = args
    return backends.run(backend, _CONV, x, *tensors, within(support_stride, x))


@calls.implements(_CONV + "_backward")
def _conv_backward_kernel(grad: Tensor, x: Tensor, *args: Any) -> Any:
    *tensors, support_stride, needs, backend = args
    stride = within(support_stride, x)
    return backends.run(backend, _CONV + "_backward", grad, x, *tensors, stride, needs)


@torch.library.register_fake("fsdino::center_pivot_conv4d")
def _conv_fake(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
    backend: str,
) -> Tensor:
    return backends.empty_volume(backend, x, _shape(x, weight_query.shape[0], support_stride))


@torch.library.register_fake("fsdino::center_pivot_conv4d_backward")
def _conv_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    support_stride: int,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    bias = weight_query[:, 0, 0, 0]
    inputs = (backends.empty_volume(backend, x, x.shape), weight_query, weight_support, bias)
    return asked_for(grad, inputs, needs)


def _conv_gradients(
    grad: Tensor, saved: Sequence[Any], settings: Sequence[Any], needs: list[bool], backend: str
) -> Any:
    *tensors, _ = saved  # the gradients do not depend on the bias
    return _conv_backward_kernel(grad, *tensors, *settings, needs, backend)


def _conv_formulation(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    support_stride: int,
) -> Tensor:
    stride = within(support_stride, x)
    return reference.center_pivot_conv4d(x, weight_query, weight_support, bias, stride)


@calls.implements(_BLOCK)
def _block_forward(x: Tensor, *args: Any) -> Any:
    *rest, support_stride, reduce_support, save, backend = args
    settings = (within(support_stride, x), reduce_support, save)
    return backends.run(backend, _BLOCK, x, *rest, *settings)


@calls.implements(_BLOCK + "_backward")
def _block_backward_kernel(grad: Tensor, x: Tensor, *args: Any) -> Any:
    *tensors, support_stride, reduce_support, needs, backend = args
    settings = (within(support_stride, x), reduce_support, needs)
    return backends.run(backend, _BLOCK + "_backward", grad, x, *tensors, *settings)


@torch.library.register_fake("fsdino::center_pivot_block4d")
def _block_fake(
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_groups: int,
    norm_eps: float,
    support_stride: int,
    reduce_support: bool,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    raw = _conv_fake(x, weight_query, weight_support, bias, support_stride, backend)
    y = x.new_empty(raw.shape[:4]) if reduce_support else torch.empty_like(raw)
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    sizes = (x.shape[0], num_groups)
    shapes = (backends.mean_shape(backend, *sizes), sizes) if save else ((0,), (0,))
    mean, rstd = (x.new_empty(shape, dtype=statistics) for shape in shapes)
    return y, raw if save else x.new_empty(0), mean, rstd


@torch.library.register_fake("fsdino::center_pivot_block4d_backward")
def _block_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight_query: Tensor,
    weight_support: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    raw: Tensor,
    mean: Tensor,
    rstd: Tensor,
    support_stride: int,
    reduce_support: bool,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    volume = backends.empty_volume(backend, x, x.shape)
    inputs = (volume, weight_query, weight_support, norm_bias, norm_weight, norm_bias)
    return asked_for(grad, inputs, needs)


def _block_gradients(
    grad: Tensor, saved: Sequence[Any], settings: Sequence[Any], needs: list[bool], backend: str
) -> Any:
    x, weight_query, weight_support, _, *rest = saved  # the statistics hold the bias
    _, _, support_stride, reduce_support, _ = settings
    return _block_backward_kernel(
        grad, x, weight_query, weight_support, *rest, support_stride, reduce_support, needs, backend
    )


def _block_formulation(x: Tensor, *args: Any) -> Tensor:
    *rest, support_stride, reduce_support, _ = args
    settings = (within(support_stride, x), reduce_support, False)
    return reference.center_pivot_block4d(*(x, *rest, *settings))[0]


_CONV_DERIVATIVES = derivatives.Derivatives(_CONV, 4, _conv_gradients, _conv_formulation)
_CONV_OP = calls.Op(
    _CONV, _check_conv, _conv_forward, derivatives.register(_CONV_DERIVATIVES, _conv_forward)
)
_BLOCK_DERIVATIVES = derivatives.Derivatives(
    _BLOCK, 6, _block_gradients, _block_formulation, statistics=3
)
_BLOCK_OP = calls.Op(
    _BLOCK,
    _check_block,
    _block_forward,
    derivatives.register(_BLOCK_DERIVATIVES, _block_forward),
    saves=True,
)
