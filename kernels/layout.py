"""How tensors lie in memory, and where kernels run.

Volumes [B, C, Hq, Wq, Hs, Ws] are dense with the channels innermost, [B][Hq][Wq][Hs][Ws][C], but
for the stride of the batch: any number of positions, and 0 where one volume serves all of it.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from typing import overload

import torch
import triton.language as tl
from torch import Tensor

from fsdino import contract
from fsdino.contract import CHANNELS_INNERMOST, as_volume
from fsdino.kernels import tiles
from fsdino.kernels.tiles import Tile

# In place of a GPU's architecture where the tensors are on none.
planned = ContextVar("planned", default=tiles.INTERPRETER)

empty_volume = partial(contract.empty_volume, order=CHANNELS_INNERMOST)


def volume(x: Tensor) -> Tensor:
    """`x` itself where it lies as kernels want it, else a copy; a volume shared by the batch is
    copied once."""
    x = x.resolve_neg()
    if x.numel() == 0:
        return x
    if x.stride(0) == 0 and x.shape[0] > 1:
        return volume(x[:1]).expand(x.shape)
    memory = x.permute(CHANNELS_INNERMOST)
    whole_positions = x.shape[0] == 1 or x.stride(0) % x.shape[1] == 0
    if memory[0].is_contiguous() and whole_positions:
        return x
    return as_volume(memory.contiguous(), CHANNELS_INNERMOST)


def tokens(features: Tensor) -> Tensor:
    """[B, L, C, h, w] -> [B, L, C, h*w], strided.

    A view where rows of the grid follow each other; else a copy, with the channels side by side.
    """
    return features.resolve_neg().movedim(2, 4).flatten(2, 3).transpose(2, 3)


def are_tokens(features: Tensor) -> bool:
    """Whether [B, L, C, h, w] are read where they are: a grid that flattens, of vectors."""
    rows, columns = features.stride()[3:]
    flattens = features.shape[3] == 1 or rows == features.shape[4] * columns
    return features.stride(2) == 1 and flattens and not features.is_neg()


@overload
def dense(vector: Tensor) -> Tensor: ...
@overload
def dense(vector: Tensor | None) -> Tensor | None: ...
def dense(vector: Tensor | None) -> Tensor | None:
    """A vector whose elements lie side by side, or None."""
    return None if vector is None else vector.resolve_neg().contiguous()


def architecture(tensor: Tensor) -> int:
    """Compute capability as in 80 for 8.0; on the CPU the interpreter runs."""
    if tensor.device.type != "cuda":
        return planned.get()
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def precision(tensor: Tensor) -> str:
    """Of products in float32: TF32 only where PyTorch's own switch allows it."""
    if tensor.device.type != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def blocks(size: int, block: int) -> int:
    """Blocks that cover `size`."""
    return -(-size // block)


def options(tile: Tile) -> dict[str, int | bool]:
    """How a kernel is compiled for a tile.

    Fused multiply-adds are asked for by name: from Triton 3.10 on they are not the default.
    """
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def index_type(largest: int) -> tl.dtype:
    """Of offsets up to `largest`, with a block's overhang to spare."""
    return tl.int64 if largest >= 2**30 else tl.int32
