"""The shared table: shapes × dtypes × tolerances that every backend of every op is held to."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Chain(NamedTuple):
    """Cases one behind another for `squeeze4d`: the first one's features, and the block of each.

    The layers of a later case are the `out` of the one before, and `groups` is the first one's.
    """

    name: str
    cases: tuple[Case, ...]


CHAINS = (
    Chain("one block", (Case("first"),)),
    Chain("two blocks", (Case("first", stride=1), Case("last", layers=8, out=12, stride=3))),
    Chain(
        "three blocks",
        (
            Case("first", batch=1, query=(9, 11), support=(13, 10), layers=4, out=4),
            Case("second", layers=4, out=12, kernel_query=5),
            Case("last", layers=12, out=20, kernel_support=1),
        ),
    ),
    Chain(
        "the standard blocks",
        (
            Case("first", batch=1, query=(7, 7), support=(9, 9), layers=6, out=16),
            Case("second", layers=16, out=64),
            Case("last", layers=64, out=128),
        ),
    ),
    Chain(
        "no bias",
        (Case("first", bias=False), Case("second", layers=8), Case("last", layers=8, bias=False)),
    ),
    Chain(
        "soft weight, stride 3",
        (Case("first", weight="soft", support=(8, 11), stride=3), Case("last", layers=8, stride=1)),
    ),
    Chain("binary weight", (Case("first", weight="binary"), Case("last", layers=8, out=16))),
    Chain("no weight", (Case("first", weight="none"), Case("last", layers=8))),
    Chain("all weights zero", (Case("first", weight="empty"), Case("last", layers=8, out=4))),
    Chain(
        "expanded query",
        (Case("first", batch=5, layout="expanded", weight="soft"), Case("last", layers=8)),
    ),
    Chain("transposed", (Case("first", layout="transposed"), Case("last", layers=8))),
    Chain(
        "stride beyond the grid",
        (Case("first", query=(1, 6), support=(3, 2), stride=4), Case("last", layers=8, stride=9)),
    ),
    Chain("one group", (Case("first", groups=1, out=5), Case("last", layers=5, out=7))),
    Chain("empty batch", (Case("first", batch=0), Case("last", layers=8))),
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


def distinct(call: str) -> tuple[Case, ...]:
    """The cases that differ for one of `CALLS`: a stride means nothing to a correlation.

    Of cases with the same tensors, as they lie in memory, and the same numbers, the first.
    """
    found: dict[tuple[object, ...], Case] = {}
    for case in CASES:
        tensors = [
            None if t is None else (t.shape, t.stride(), t.contiguous().numpy().tobytes())
            for t in inputs(call, case, torch.float32).values()
        ]
        found.setdefault((*tensors, *settings(call, case).values()), case)
    return tuple(found.values())


def chain_inputs(chain: Chain, dtype: torch.dtype) -> tuple[Any, ...]:
    """query, support, support_weight and blocks of `squeeze4d`."""
    blocks = [
        (*parameters(case, dtype, seed).values(), case.stride)
        for seed, case in enumerate(chain.cases, start=2)
    ]
    return *features(chain.cases[0], dtype), blocks


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
