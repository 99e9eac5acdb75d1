"""Argument checks of the ops: mistakes are reported before any kernel starts."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)
_OPTIONAL = ("support_weight", "bias")
_LARGEST_STRIDE = 2**31 - 1
# Normal numbers of the type that an op computes in.
_RANGE = {
    dtype: (info.tiny, info.max)
    for dtype in _FLOATS
    for info in [torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)]
}


def check_tensors(op: str, **tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """All tensors: dense, floating, and of the first one's dtype and device.

    Args:
        op: for the messages.
        tensors: of a call by name, in its order; those in `_OPTIONAL` may be None.

    Returns:
        The tensors; inside `torch.autocast` cast as for a convolution, except for float64.

    Raises:
        TypeError: an argument is not a dense tensor, not floating, or of another dtype.
        ValueError: an argument is on another device.
    """
    for name, tensor in tensors.items():
        if type(tensor) not in _PLAIN and (tensor is not None or name not in _OPTIONAL):
            _check_type(op, name, tensor)
        if tensor is not None and (tensor.layout is not torch.strided or tensor.is_nested):
            raise TypeError(_not_dense(op, name, tensor))
    given = tuple(tensors.values())
    device: torch.device = given[0].device  # type: ignore[union-attr]
    # Tensors on meta are never cast: autocast has no such device.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        given = _autocast(given, torch.get_autocast_dtype(device.type))
    dtype: torch.dtype = given[0].dtype  # type: ignore[union-attr]
    for name, tensor in zip(tensors, given, strict=True):
        if tensor is not None and (
            tensor.dtype is not dtype or dtype not in _FLOATS or tensor.device != device
        ):
            _refuse(op, name, tensor, next(iter(tensors)), dtype, device)
    return given


def _check_type(op: str, name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if torch.nn.parameter.is_lazy(tensor):
        raise TypeError(f"{op}: {name} is not initialised: run its module once, or give its shape")


def _not_dense(op: str, name: str, tensor: Tensor) -> str:
    if tensor.is_nested:
        return f"{op}: {name} must be a dense tensor, got a nested one: pad or unbind it"
    return f"{op}: {name} must be a dense tensor, got {tensor.layout}: call to_dense() on it"


def _autocast(tensors: tuple[Tensor | None, ...], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    return tuple(
        t.to(dtype) if t is not None and t.dtype in _FLOATS and t.dtype != torch.float64 else t
        for t in tensors
    )


def _refuse(
    op: str, name: str, tensor: Tensor, first: str, dtype: torch.dtype, device: torch.device
) -> NoReturn:
    if tensor.dtype not in _FLOATS:
        raise TypeError(
            f"{op}: {name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}"
        )
    if tensor.dtype != dtype:
        raise TypeError(
            f"{op}: {name} is {tensor.dtype} but {first} is {dtype}: convert one of them"
        )
    raise ValueError(
        f"{op}: {name} is on {tensor.device} but {first} is on {device}: move one of them"
    )


def check_features(op: str, query: Tensor, support: Tensor, weight: Tensor | None) -> None:
    """query [B, L, C, Hq, Wq], support [B, L, C, Hs, Ws], support_weight [B, Hs, Ws].

    Raises:
        ValueError: a rank or size that does not fit; names the argument and what it should be.
    """
    for name, tensor in (("query", query), ("support", support)):
        if tensor.ndim != 5:
            raise ValueError(f"{op}: {name} must be [B, L, C, H, W], got {list(tensor.shape)}")
        _check_filled(op, name, tensor)
    if support.shape[:3] != query.shape[:3]:
        raise ValueError(
            f"{op}: support must start with query's [B, L, C] = {list(query.shape[:3])}, "
            f"got {list(support.shape[:3])}"
        )
    expected = (support.shape[0], *support.shape[3:])
    if weight is not None and tuple(weight.shape) != expected:
        raise ValueError(
            f"{op}: support_weight must be [B, Hs, Ws] = {list(expected)}, got {list(weight.shape)}"
        )


def check_volume(op: str, x: Tensor) -> None:
    """x [B, Ci, Hq, Wq, Hs, Ws], nothing but the batch empty.

    Raises:
        ValueError: another rank, or an empty dimension.
    """
    if x.ndim != 6:
        raise ValueError(f"{op}: x must be [B, Ci, Hq, Wq, Hs, Ws], got {list(x.shape)}")
    _check_filled(op, "x", x)


def check_weights(
    op: str, channels: int, weight_query: Tensor, weight_support: Tensor, bias: Tensor | None
) -> None:
    """weight_query [Co, Ci, kq, kq] and weight_support [Co, Ci, ks, ks], kq and ks odd; bias [Co].

    Raises:
        ValueError: a rank, size or even kernel that does not fit.
    """
    for name, weight in (("weight_query", weight_query), ("weight_support", weight_support)):
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
            raise ValueError(
                f"{op}: {name} must be [Co, Ci, k, k] with odd k, got {list(weight.shape)}"
            )
        if weight.shape[1] != channels:
            raise ValueError(
                f"{op}: {name} must have Ci = {channels} input channels, got {weight.shape[1]}"
            )
    out_channels = weight_query.shape[0]
    if out_channels == 0:
        raise ValueError(
            f"{op}: weight_query must have at least one output channel, "
            f"got {list(weight_query.shape)}"
        )
    if weight_support.shape[0] != out_channels:
        raise ValueError(
            f"{op}: weight_support must have weight_query's Co = {out_channels} output channels, "
            f"got {weight_support.shape[0]}"
        )
    check_vector(op, "bias", bias, out_channels)


def check_vector(op: str, name: str, vector: Tensor | None, channels: int) -> None:
    """A vector with one value per output channel.

    Raises:
        ValueError: another shape.
    """
    if vector is not None and tuple(vector.shape) != (channels,):
        raise ValueError(f"{op}: {name} must be [Co] = [{channels}], got {list(vector.shape)}")


def check_stride(op: str, support_stride: int) -> int:
    """An integer of at least 1.

    Returns:
        The stride, at most the largest one that all kernels support. Larger ones have the same
        effect: of any grid that fits into memory they keep only position 0.

    Raises:
        TypeError: not an integer.
        ValueError: below 1.
    """
    _check_int(op, "support_stride", support_stride)
    if support_stride < 1:
        raise ValueError(f"{op}: support_stride must be at least 1, got {support_stride}")
    if support_stride > _LARGEST_STRIDE:
        return _LARGEST_STRIDE
    return support_stride


def check_groups(op: str, num_groups: int, channels: int) -> None:
    """An integer that divides the output channels.

    Raises:
        TypeError: not an integer.
        ValueError: it does not divide them.
    """
    _check_int(op, "num_groups", num_groups)
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"{op}: num_groups must divide Co = {channels}, got {num_groups}")


def check_flag(op: str, name: str, flag: bool) -> None:
    """True or False.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(flag, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {type(flag).__name__}")


def _check_int(op: str, name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")


def check_result(op: str, names: str, shape: Sequence[int]) -> None:
    """The result can be addressed: at most 2^63 - 1 bytes, at 8 bytes an element.

    Args:
        op: for the message.
        names: the arguments whose sizes decide.
        shape: of the result.

    Raises:
        ValueError: it is larger.
    """
    if all(isinstance(size, int) for size in shape) and math.prod(shape) >= 2**60:
        raise ValueError(
            f"{op}: {names} give a result of {list(shape)}, which is too large to address: "
            f"use smaller grids or batches"
        )


def check_eps(op: str, name: str, eps: Any, dtype: torch.dtype) -> float:
    """A positive number that does not round to 0 or infinity where the op computes with it.

    Args:
        op: for the message.
        name: of the argument.
        eps: its value.
        dtype: of the tensors; halves are computed in float32.

    Returns:
        It as a float.

    Raises:
        TypeError: not a real number.
        ValueError: zero, negative, NaN or infinite, or out of range.
    """
    smallest, largest = _RANGE[dtype]
    if type(eps) is float and smallest <= eps <= largest:
        return eps
    kind = type(eps)
    if kind is bool or not issubclass(kind, torch.SymFloat | numbers.Real):
        raise TypeError(f"{op}: {name} must be a float, got {kind.__name__}")
    if not 0 < eps < math.inf:
        raise ValueError(f"{op}: {name} must be greater than 0 and finite, got {eps}")
    if not smallest <= eps <= largest:
        raise ValueError(
            f"{op}: {name} must be from {smallest:.2g} to {largest:.2g} for {dtype}, got {eps}"
        )
    return float(eps)


def _check_filled(op: str, name: str, tensor: Tensor) -> None:
    if 0 in tensor.shape[1:]:
        raise ValueError(f"{op}: only the batch of {name} may be empty, got {list(tensor.shape)}")
