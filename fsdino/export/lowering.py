"""What stands in exported graphs for operations that other runtimes lack or compute differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fsdino.export import plain4d, resampling

STEPS = 256  # of conjugate gradients; 25 to 60 are usual
_ENOUGH = 1e-14  # of the sides' squared length, at which a residual is small enough
_TINY = 1e-30


def plain() -> dict[Any, Callable[..., Any]]:
    """The 4D ops as matrix products and convolutions, by their overloads."""
    ops = torch.ops.fsdino
    found: dict[Any, Callable[..., Any]] = {
        ops.correlation4d.default: plain4d.correlation4d,
        ops.center_pivot_block4d.default: plain4d.center_pivot_block4d,
        ops.squeeze4d.default: plain4d.squeeze4d,
    }
    return {overload: _without_backend(function) for overload, function in found.items()}


def _without_backend(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        *rest, _ = arguments
        return function(*rest)

    return run


def shared() -> dict[Any, Callable[..., Any]]:
    """Resizing, linear systems and what they need, by their overloads."""
    aten = torch.ops.aten
    return {
        aten.linalg_solve.default: _solve,
        aten._linalg_solve_ex.default: lambda a, b, **_: (_solve(a, b),) * 4,
        aten.eye.default: _identity,
        aten.upsample_bilinear2d.vec: _bilinear,
        aten._upsample_bilinear2d_aa.vec: _bilinear,
        aten.upsample_bicubic2d.vec: _bicubic,
        aten._upsample_bicubic2d_aa.vec: _bicubic_antialiased,
        aten.sort.stable: _sorted,
        aten.adaptive_avg_pool2d.default: _pooled,
        aten._adaptive_avg_pool2d.default: _pooled,
    }


def conjugate_gradients(
    product: Callable[..., Tensor], sides: Tensor, *parts: Tensor, steps: int = STEPS
) -> Tensor:
    """Solve symmetric positive definite systems by products with them alone, in a loop.

    It ends when the residuals are as small as float32 resolves, and after `steps` at the latest.

    Args:
        product: of the systems with [..., D, R]; called with these and `parts`.
        sides: [..., D, R], of R systems beside each other.
        parts: tensors that `product` needs.
        steps: at most.
    """
    size = sides.square().sum(-2, keepdim=True)

    def goes_on(step: Tensor, *rest: Tensor) -> Tensor:
        left, enough = rest[3], rest[4]
        return (step < steps) & (left > enough).any()

    def advance(
        step: Tensor, found: Tensor, residual: Tensor, direction: Tensor, left: Tensor,
        _: Tensor, *parts: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        along = product(direction, *parts)
        curve = (direction * along).sum(-2, keepdim=True)
        length = torch.where(curve > 0, left / curve.clamp_min(_TINY), 0)
        residual = residual - length * along
        rest = residual.square().sum(-2, keepdim=True)
        turn = torch.where(left > 0, rest / left.clamp_min(_TINY), 0)
        return step + 1, found + length * direction, residual, residual + turn * direction, rest

    step = torch.zeros((), dtype=torch.int64)
    first = (step, torch.zeros_like(sides), sides.clone(), sides.clone(), size)
    loop = torch.ops.higher_order.while_loop
    found: Tensor = loop(goes_on, advance, first, (size * _ENOUGH, *parts))[1]
    return found


def _solve(
    systems: Tensor, sides: Tensor, *, left: bool = True, check_errors: bool = True
) -> Tensor:
    """Solutions of symmetric positive definite systems [..., D, D] for [..., D] or [..., D, R]."""
    flat = sides.ndim == systems.ndim - 1
    right = sides[..., None] if flat else sides
    if systems.shape[-1] <= 4:
        found = _eliminate(systems, right)
    else:
        found = conjugate_gradients(_times, right, systems)
    return found[..., 0] if flat else found


def _identity(count: int, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """PyTorch's own counts large ones in uint16, which `arange` does not have."""
    places = torch.arange(count)
    return (places[:, None] == places).to(dtype or torch.float32)


def _times(x: Tensor, systems: Tensor) -> Tensor:
    return systems @ x


def _eliminate(systems: Tensor, sides: Tensor) -> Tensor:
    """Small systems by elimination, whose order is safe where they are positive definite."""
    count = systems.shape[-1]
    rows = [torch.cat([systems[..., n, :], sides[..., n, :]], -1) for n in range(count)]
    for n in range(count):
        rows[n] = rows[n] / rows[n][..., n : n + 1]
        for m in range(count):
            if m != n:
                rows[m] = rows[m] - rows[m][..., n : n + 1] * rows[n]
    return torch.stack([row[..., count:] for row in rows], -2)


def _bilinear(
    maps: Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Tensor:
    wanted = _target(maps, size, scales)
    lines = []
    for cells, pixels in zip(wanted, maps.shape[-2:], strict=True):
        if align_corners:
            lines.append(resampling.aligned(cells, pixels))
        else:
            length = torch.full((1,), pixels)  # PyTorch 2.11 loses constants made here
            lines.append(resampling.bilinear(cells, pixels, length)[0])
    return resampling.resize(maps, *lines)


def _bicubic(
    maps: Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Tensor:
    wanted = _target(maps, size, scales)
    sides = [*zip(wanted, maps.shape[-2:], strict=True)]
    steps = [1 / s for s in scales] if scales else [pixels / cells for cells, pixels in sides]
    lines = [resampling.bicubic(*side, step) for side, step in zip(sides, steps, strict=True)]
    return resampling.resize(maps, *lines)


def _bicubic_antialiased(
    maps: Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Tensor:
    sides = zip(_target(maps, size, scales), maps.shape[-2:], strict=True)
    lines = [resampling.bicubic_antialiased(*side) for side in sides]
    return resampling.resize(maps, *lines)


def _sorted(
    values: Tensor, *, stable: bool, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """What ONNX has for it; equal values may change places."""
    return torch.topk(values, values.shape[dim], dim, largest=descending)


def _pooled(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.clone()
    sides = zip(size, maps.shape[-2:], strict=True)
    return resampling.resize(maps, *(resampling.windows(*side) for side in sides))


def _target(
    maps: Tensor, size: Sequence[int] | None, scales: Sequence[float] | None
) -> tuple[int, ...]:
    if size is not None:
        return tuple(size)
    assert scales is not None
    return tuple(int(side * scale) for side, scale in zip(maps.shape[-2:], scales, strict=True))
