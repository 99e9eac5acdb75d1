"""Argument checks of the four ops: every mistake is worded before any kernel starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Inside `torch.autocast`, cast the floating inputs as a convolution would (float64 stays)."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.dtype in _FLOATS and t.dtype != torch.float64 else t
        for t in tensors
    )


def check_tensors(op: str, **tensors: Tensor | None) -> None:
    """All tensors: floating, and of the first one's dtype and device.

    Raises:
        TypeError: an argument is no tensor, not floating, or of another dtype.
        ValueError: an argument is on another device.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"{op}: {name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}"
            )
        if tensor.dtype != first.dtype:  # type: ignore[union-attr]
            raise TypeError(
                f"{op}: {name} is {tensor.dtype} but {first_name} is {first.dtype}: "  # type: ignore[union-attr]
                f"convert one of them"
            )
        if tensor.device != first.device:  # type: ignore[union-attr]
            raise ValueError(
                f"{op}: {name} is on {tensor.device} but {first_name} is on {first.device}: "  # type: ignore[union-attr]
                f"move one of them"
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


def check_stride(op: str, support_stride: int) -> None:
    """An integer of at least 1.

    Raises:
        TypeError: no integer.
        ValueError: below 1.
    """
    if isinstance(support_stride, bool) or not isinstance(support_stride, int | torch.SymInt):
        raise TypeError(f"{op}: support_stride must be an int, got {type(support_stride).__name__}")
    if support_stride < 1:
        raise ValueError(f"{op}: support_stride must be at least 1, got {support_stride}")


def check_result(op: str, names: str, shape: Sequence[int]) -> None:
    """The result can be addressed: at most 2^63 - 1 bytes, 8 for each element.

    Args:
        op: for the message.
        names: the arguments whose sizes decide.
        shape: of the result.

    Raises:
        ValueError: it is larger.
    """
    if all(isinstance(size, int) for size in shape) and math.prod(shape) >= 2**60:
        raise ValueError(
            f"{op}: {names} ask for a result of {list(shape)}, more than can be addressed: "
            f"use smaller grids or batches"
        )


def check_eps(op: str, name: str, eps: float) -> None:
    """A positive number.

    Raises:
        ValueError: zero, negative or NaN.
    """
    if not eps > 0:
        raise ValueError(f"{op}: {name} must be greater than 0, got {eps}")


def _check_filled(op: str, name: str, tensor: Tensor) -> None:
    if any(size == 0 for size in tensor.shape[1:]):
        raise ValueError(f"{op}: only the batch of {name} may be empty, got {list(tensor.shape)}")
