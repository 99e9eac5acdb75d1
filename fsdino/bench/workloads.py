"""The standard workloads: sizes of the 4D chain, their inputs, and the order of their blocks.

PyTorch is imported by what makes inputs, so that a wrong name is said before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fsdino.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# What is timed, by its name.
PARTS = {
    "chain": "correlation and all blocks",
    "correlation": "correlation alone",
    "blocks": "all blocks alone, each implementation on a correlation of its own",
    "blocks-contiguous": "all blocks alone, on a contiguous correlation",
    "fused-block": "first block, its correlation never held",
    "fused-chain": "correlation and all blocks, the correlation never held",
}

KERNEL, STRIDE, GROUPS, NORM_EPS = 3, 2, 4, 1e-5


@dataclass(frozen=True)
class Workload:
    """One standard size of the 4D chain.

    Attributes:
        name: as in tables.
        batch: B.
        layers: L.
        grid: side of the query and support grids, in tokens.
        channels: C of the features.
        block_channels: output channels of the three blocks.
        backward: forward and backward, features frozen.
    """

    name: str
    batch: int
    layers: int
    grid: int = 37
    channels: int = 768
    block_channels: tuple[int, ...] = (16, 64, 128)
    backward: bool = False

    def flop(self) -> dict[str, float]:
        """Forward operations, 2 per multiply-add, of the correlation and of each block."""
        tokens = self.grid**2
        counts = {"correlation": 2.0 * self.batch * self.layers * tokens**2 * self.channels}
        inner, side = self.layers, self.grid
        for index, outer in enumerate(self.block_channels, start=1):
            side = -(-side // STRIDE)
            taps = 2 * KERNEL**2
            counts[f"block {index}"] = 2.0 * self.batch * tokens * side**2 * outer * inner * taps
            inner = outer
        return counts

    def backward_flop(self) -> dict[str, float]:
        """As `flop`, of the backward pass: each block's weights and, but for the first, its input.

        The features are frozen, so the correlation and the first block's input take no gradient.
        """
        counts = self.flop()
        return {
            name: (0.0 if name == "correlation" else 1.0 if name == "block 1" else 2.0) * count
            for name, count in counts.items()
        }


_FORWARD = (
    Workload("W4", batch=1, layers=4),
    Workload("W6", batch=1, layers=6),
    Workload("W12", batch=1, layers=12),
    Workload("W12x8", batch=8, layers=12),
    Workload("HR", batch=1, layers=12, grid=74),
)
WORKLOADS: dict[str, Workload] = {w.name: w for w in _FORWARD} | {
    w.name.replace("W", "T"): replace(w, name=w.name.replace("W", "T"), backward=True)
    for w in _FORWARD
    if w.name != "HR"
}
# So small that the time of a call is what it costs to get to the arithmetic and back.
TINY = Workload("tiny", batch=1, layers=2, grid=4, channels=8, block_channels=(8,))


def check_part(name: str) -> None:
    """Refuse what is not a part of a workload that can be timed alone.

    Raises:
        UsageError: it is not in `PARTS`.
    """
    if name not in PARTS:
        raise UsageError(f"unknown part {name!r}: choose from {', '.join(PARTS)}")


def find_workloads(names: Sequence[str]) -> list[Workload]:
    """Standard workloads by name.

    Raises:
        UsageError: there is no workload of that name.
    """
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown or not names:
        raise UsageError(
            f"unknown workload {unknown[0]!r}: choose from {', '.join(WORKLOADS)}"
            if unknown
            else f"no workload given: choose from {', '.join(WORKLOADS)}"
        )
    return [WORKLOADS[name] for name in names]


@dataclass(frozen=True)
class Block:
    """Parameters of one block: weights [Co, Ci, 3, 3], vectors [Co]."""

    weight_query: Tensor
    weight_support: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """In the order in which the ops take them."""
        return (
            self.weight_query, self.weight_support, self.bias, self.norm_weight, self.norm_bias,
        )  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What one run of a workload consumes: [B, L, C, h, w] twice, [B, h, w], and the blocks."""

    query: Tensor
    support: Tensor
    support_weight: Tensor
    blocks: tuple[Block, ...]


def make_inputs(
    workload: Workload,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    foreground: float | None = None,
    seed: int = 0,
) -> Inputs:
    """Random inputs of a workload.

    Args:
        workload: which.
        device: where.
        dtype: floating type of all tensors; None is float32.
        foreground: share of support tokens of weight 1, the rest 0; None takes the signed weights
            of contrastive enhancement, +1 for 20 % of the tokens and -1 for the rest.
        seed: of the values.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    side = workload.grid
    features = (workload.batch, workload.layers, workload.channels, side, side)
    share = 0.2 if foreground is None else foreground
    object_tokens = torch.rand(workload.batch, side, side, generator=generator) < share
    weight = torch.where(object_tokens, 1.0, -1.0 if foreground is None else 0.0)
    blocks, inner = [], workload.layers
    for outer in workload.block_channels:
        scale = (2 * inner * KERNEL**2) ** -0.5
        kernel = (outer, inner, KERNEL, KERNEL)
        blocks.append(
            Block(
                weight_query=normal(*kernel) * scale,
                weight_support=normal(*kernel) * scale,
                bias=normal(outer) * 0.1,
                norm_weight=1 + normal(outer) * 0.1,
                norm_bias=normal(outer) * 0.1,
            )
        )
        inner = outer
    if workload.backward:
        for block in blocks:
            for tensor in block.tensors():
                tensor.requires_grad_()
    return Inputs(normal(*features), normal(*features), weight.to(device, dtype), tuple(blocks))


def run_blocks(x: Tensor, blocks: tuple[Block, ...], block4d: Callable[..., Tensor]) -> Tensor:
    """Pass a correlation, or the first block's output, through the blocks that follow.

    The last one takes the mean over the support; without any the mean is all that is left to do.
    """
    if not blocks:
        return x.mean((4, 5))
    for index, block in enumerate(blocks):
        last = index == len(blocks) - 1
        x = block4d(x, *block.tensors(), support_stride=STRIDE, reduce_support=last)
    return x
