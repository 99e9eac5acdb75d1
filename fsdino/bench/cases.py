"""The shared table: shapes × dtypes × tolerances that every backend of every op is held to."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fsdino import contract, ops


@dataclass(frozen=True)
class Case:
    """One problem for the ops; `weight` is none, binary, signed, soft or empty (all zero)."""

    name: str
    batch: int = 2
    layers: int = 3
    channels: int = 16
    query: tuple[int, int] = (5, 4)
    support: tuple[int, int] = (6, 5)
    out: int = 8
    kernel_query: int = 3
    kernel_support: int = 3
    stride: int = 2
    groups: int = 4
    weight: str = "signed"
    layout: str = "contiguous"  # or: expanded, transposed
    bias: bool = True


CASES = (
    Case("plain"),
    Case("square", query=(7, 7), support=(7, 7)),
    Case("several tiles", batch=1, query=(11, 13), support=(9, 11)),
    Case("one token", batch=1, query=(1, 1), support=(1, 1), stride=1),
    Case("one support token", support=(1, 1)),
    Case("one row", query=(1, 6), support=(5, 1), stride=3),
    Case("kernels 1", kernel_query=1, kernel_support=1, stride=1),
    Case("kernels 5 and 1", kernel_query=5, kernel_support=1, stride=1),
    Case("kernels 1 and 7", kernel_query=1, kernel_support=7, stride=2),
    Case("kernels 7 and 5", kernel_query=7, kernel_support=5, stride=3),
    Case("stride 1", stride=1),
    Case("stride 3", support=(7, 8), stride=3),
    Case("stride 4", support=(5, 9), stride=4),
    Case("stride beyond the grid", support=(3, 2), stride=4),
    Case("one layer", layers=1, channels=5),
    Case("many layers", batch=1, layers=20, channels=3, query=(3, 3), support=(3, 4)),
    Case("odd channels", layers=2, channels=13, out=12, groups=3),
    Case("one group", groups=1),
    Case("group per channel", groups=8),
    Case("no weight", weight="none"),
    Case("binary weight", weight="binary"),
    Case("soft weight", weight="soft"),
    Case("all weights zero", weight="empty"),
    Case("no bias", bias=False),
    Case("empty batch", batch=0),
    Case("expanded query", batch=3, layout="expanded"),
    Case("transposed", layout="transposed"),
)


class Tolerance(NamedTuple):
    """Largest ||out - ref|| / ||ref|| of one op; ref is computed in float64 on the same inputs.

    Attributes:
        forward: of an output.
        gradients: of the gradient to any input.
    """

    forward: float
    gradients: float


TOLERANCE = {
    torch.float64: Tolerance(1e-12, 1e-10),
    torch.float32: Tolerance(1e-6, 1e-5),
    torch.float16: Tolerance(6e-4, 5e-3),
    torch.bfloat16: Tolerance(4e-3, 2e-2),
}
DTYPES = tuple(TOLERANCE)

# The calls that are checked: of each op, and again with a flag that changes what it computes.
CALLS: dict[str, tuple[str, dict[str, bool]]] = {op: (op, {}) for op in contract.OPS} | {
    "center_pivot_block4d, reduced": ("center_pivot_block4d", {"reduce_support": True})
}


def inputs(call: str, case: Case, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """A case's tensors for one of `CALLS`, by name and in the op's order."""
    query, support, support_weight = features(case, dtype)
    every = {"query": query, "support": support, "support_weight": support_weight}
    every |= {"x": volume(case, dtype), **parameters(case, dtype)}
    op, _ = CALLS[call]
    return {name: every[name] for name in tensors_of(op)}


def settings(call: str, case: Case) -> dict[str, int]:
    """A case's numbers, and the flags, for one of `CALLS`, by keyword."""
    op, flags = CALLS[call]
    every = {"support_stride": case.stride, "num_groups": case.groups}
    return {name: every[name] for name in settings_of(op) if name in every} | flags


def tensors_of(op: str) -> tuple[str, ...]:
    """Names of an op's tensors, in its order."""
    return _parameters(op, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def settings_of(op: str) -> tuple[str, ...]:
    """Names of what an op takes besides tensors, by keyword alone."""
    return _parameters(op, inspect.Parameter.KEYWORD_ONLY)


def _parameters(op: str, kind: object) -> tuple[str, ...]:
    found = inspect.signature(getattr(ops, op)).parameters
    return tuple(name for name, parameter in found.items() if parameter.kind is kind)


def features(case: Case, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    """query, support and support_weight of a case."""
    generator = torch.Generator().manual_seed(seed)

    def make(size: tuple[int, int]) -> Tensor:
        shape = (case.batch, case.layers, case.channels, *size)
        if case.layout == "transposed":
            return torch.randn(shape[::-1], generator=generator).to(dtype).permute(4, 3, 2, 1, 0)
        return torch.randn(shape, generator=generator).to(dtype)

    query, support = make(case.query), make(case.support)
    if case.layout == "expanded":  # K shots of one query
        query = query[:1].expand(query.shape)
    return query, support, _weight(case, generator, dtype)


def _weight(case: Case, generator: torch.Generator, dtype: torch.dtype) -> Tensor | None:
    uniform = torch.rand(case.batch, *case.support, generator=generator)
    kinds = {
        "none": None,
        "binary": (uniform > 0.6).to(dtype),
        "signed": torch.where(uniform > 0.6, 1.0, -1.0).to(dtype),
        "soft": torch.where(uniform > 0.3, uniform * 2 - 1, 0.0).to(dtype),
        "empty": torch.zeros_like(uniform, dtype=dtype),
    }
    return kinds[case.weight]


def volume(case: Case, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """x of a case: [B, Ci, Hq, Wq, Hs, Ws]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.layers, *case.query, *case.support)
    if case.layout == "transposed":
        return torch.randn(shape[::-1], generator=generator).to(dtype).permute(5, 4, 3, 2, 1, 0)
    x = torch.randn(shape, generator=generator).to(dtype)
    return x[:1].expand(shape) if case.layout == "expanded" else x


def parameters(case: Case, dtype: torch.dtype, seed: int = 2) -> dict[str, Tensor | None]:
    """weight_query, weight_support, bias, norm_weight and norm_bias of a case."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    kq, ks = case.kernel_query, case.kernel_support
    return {
        "weight_query": make(case.out, case.layers, kq, kq) / (case.layers * kq * kq) ** 0.5,
        "weight_support": make(case.out, case.layers, ks, ks) / (case.layers * ks * ks) ** 0.5,
        "bias": make(case.out) if case.bias else None,
        "norm_weight": make(case.out),
        "norm_bias": make(case.out),
    }
