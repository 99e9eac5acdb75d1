"""Attention over images of different sizes packed into one sequence, without padding.

`torch.nn.attention.varlen` or xformers run it on CUDA devices; where neither is usable, `packed`
returns None and the encoder runs image by image.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor

# (query, key, value [N, heads, D], tokens per image) -> [N, heads, D]
PackedAttention = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]


def packed(device: torch.device, dtype: torch.dtype, head_dim: int) -> PackedAttention | None:
    """The attention that takes packed sequences on this device and dtype, if there is one."""
    if device.type != "cuda" or head_dim % 8:
        return None
    half = dtype in (torch.float16, torch.bfloat16)
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    if half and modern and _has("torch.nn.attention.varlen"):
        return _torch_varlen
    if _has("xformers"):
        return _xformers
    return None


def packable(layer: object) -> bool:
    """Whether `attend` runs all of a layer: timm's `Attention` itself, and not a gated one."""
    return type(layer) is Attention and getattr(layer, "gate", None) is None


def attend(layer: Any, x: Tensor, lengths: Sequence[int], attention: PackedAttention) -> Tensor:
    """Run a timm `Attention` layer on packed tokens [N, C], each image attending to itself."""
    tokens = x.shape[0]
    qkv = layer.qkv(x).reshape(tokens, 3, layer.num_heads, -1)
    query, key, value = qkv.unbind(1)  # [N, heads, D]
    # Autocast leaves the norms' results in float32.
    query, key = layer.q_norm(query).to(value.dtype), layer.k_norm(key).to(value.dtype)
    out = attention(query, key, value, lengths)
    return layer.proj(layer.norm(out.reshape(tokens, -1)))  # type: ignore[no-any-return]


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor((0, *lengths), device=query.device).cumsum(0).to(torch.int32)
    longest = max(lengths)
    return varlen_attn(query, key, value, ends, ends, longest, longest)  # type: ignore[return-value]


def _xformers(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    bias = BlockDiagonalMask.from_seqlens(list(lengths))
    out = memory_efficient_attention(query[None], key[None], value[None], attn_bias=bias)
    return out[0]  # type: ignore[no-any-return]
