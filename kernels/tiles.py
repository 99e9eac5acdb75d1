"""Block sizes, warps and pipeline stages: a pure function of shape, dtype and architecture.

Nothing is timed at run time. What the standard workloads select is compiled ahead of time for
three architectures and listed by `python -m fsdino.bench.inspect triton`;
`benchmarks/tune_tiles.py` times others on a GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

from fsdino.contract import CHUNK_BYTES, CHUNK_SHARE

HALF = (torch.float16, torch.bfloat16)
MULTIPROCESSORS = 132  # what work is split for where it must be split: H100 and H200
INTERPRETER = 0  # in place of an architecture: an operation there costs the same at any size


@dataclass(frozen=True)
class Tile:
    """One program's share of a matrix product [rows, depth] x [depth, columns], and how it runs.

    Attributes:
        rows: of the output that a program computes.
        columns: of the output that a program computes.
        depth: of the product in one step of its loop.
        warps: of 32 threads.
        stages: steps whose loads are in flight at a time.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def power_of_2(size: int, least: int, most: int) -> int:
    """The smallest power of 2 from `size` on, between two powers of 2."""
    return min(most, max(least, 1 << (size - 1).bit_length()))


@functools.cache
def correlation(dtype: torch.dtype, architecture: int) -> Tile:
    """Query rows, support columns and feature channels of one step.

    Args:
        dtype: of the features.
        architecture: compute capability, 80 for 8.0, or INTERPRETER.
    """
    if architecture == INTERPRETER:
        return Tile(64, 64, 64, 1, 1)
    if dtype not in HALF:
        return Tile(64, 64, 16, 4, 2)
    depth = 64 if architecture >= 90 else 32
    wide = 90 <= architecture < 100 and dtype == torch.bfloat16  # elsewhere 128 columns spill
    return Tile(128, 128 if wide else 64, depth, 8, 3)


@functools.cache
def correlation_gradient(dtype: torch.dtype, architecture: int) -> Tile:
    """The same for the gradient, whose epilogue needs more registers."""
    tile = correlation(dtype, architecture)
    warps = 8 if dtype not in HALF and 80 <= architecture < 90 else tile.warps
    return replace(tile, columns=min(tile.columns, 64), warps=warps)


def correlation_layers(
    layers: int, channels: int, weighted: bool, dtype: torch.dtype, architecture: int
) -> int:
    """Layers that one program computes, and writes side by side: channels are innermost.

    As many as the registers hold; a store of a warp touches as many sectors of the L2 cache for
    four layers as for one. In float32 multiplying takes so long that stores do not matter.

    Args:
        layers: all of them.
        channels: of the features.
        weighted: whether the support has weights; without them Triton's code takes more registers.
        dtype: of the features.
        architecture: compute capability, 80 for 8.0, or INTERPRETER.
    """
    if dtype not in HALF:
        return 1
    tile = correlation(dtype, architecture)
    fits = tile.columns < 128 or (weighted and channels % tile.depth == 0)
    if layers > 4 and layers % 4 == 0 and fits:
        return 4
    return power_of_2(layers, 1, 2)


@functools.cache
def walk(
    inner: int, outer: int, dtype: torch.dtype, architecture: int, *, normalises: bool = False
) -> Tile:
    """Positions, channels out and channels in of one step of the convolution.

    Args:
        inner: channels of the volume that is read.
        outer: channels of the volume that is written.
        dtype: of both.
        architecture: compute capability, 80 for 8.0, or INTERPRETER.
        normalises: whether what is read is normalised, which takes registers.
    """
    if architecture == INTERPRETER:
        return Tile(512, power_of_2(outer, 16, 64), power_of_2(inner, 16, 64), 1, 1)
    if dtype not in HALF:
        columns = power_of_2(outer, 16, 64)
        depth = power_of_2(inner, 16, 32)
        if normalises:  # where steps are not shorter, or warps not more, registers do not suffice
            if architecture >= 100 and columns > 32:
                return Tile(64, columns, depth, 8, 2)
            return Tile(64, columns, 16, 4, 2)
        return Tile(64, columns, depth, 4, 2)
    columns, depth = power_of_2(outer, 16, 128), power_of_2(inner, 16, 64)
    warps = 8 if columns > 64 else 4
    if 90 <= architecture < 100 and not (normalises and columns > 64):
        # Longer tiles: the weights are read half as often.
        return Tile(256, columns, depth, 2 * warps, 3)
    if columns == 16 and architecture < 90:
        return Tile(256, columns, min(depth, 32), 2 * warps, 2)
    return Tile(128, columns, depth, warps, 3 if architecture >= 90 else 2)


@functools.cache
def weight_gradient(inner: int, outer: int, dtype: torch.dtype, architecture: int) -> Tile:
    """Channels in, channels out and positions of one step of the weights' gradient."""
    rows, columns = power_of_2(inner, 16, 64), power_of_2(outer, 16, 64)
    if architecture == INTERPRETER:
        return Tile(rows, columns, 512, 1, 1)
    long = rows == 16 and columns == 64  # with 8 warps a program has the registers for 18 taps
    if dtype not in HALF:
        return Tile(rows, columns, 16, 8 if long else 4, 2)
    columns = power_of_2(outer, 16, 128)
    size = rows * columns
    if long:  # twice as long again, more than 64 columns would not fit into 99 KB
        return Tile(rows, columns, 128 if columns == 64 else 64, 8, 2)
    warps = 1 if size <= 512 else 2 if size <= 1024 else 4 if size <= 4096 else 8
    return Tile(rows, columns, 32 if warps == 1 else 64, warps, 2)


def weight_gradient_taps(tile: Tile, taps: int) -> int:
    """Taps whose sums a program of `weight_gradient` keeps, in 144 registers of a thread."""
    registers = max(1, tile.rows * tile.columns // (32 * tile.warps))
    programs = -(-taps // max(1, 144 // registers))
    return -(-taps // programs)


def weight_splits(tile: Tile, programs: int, steps: int) -> int:
    """Shares into which the positions are split: enough programs to fill a GPU.

    Args:
        tile: of one program.
        programs: of one share.
        steps: of the loop over all positions.
    """
    resident = max(1, min(6, 8 // tile.warps))  # on a multiprocessor; registers leave few more
    return max(1, min(steps, resident * MULTIPROCESSORS // programs))


def weight_sums() -> Tile:
    """Shares, and elements of the weights' gradient, that one step adds."""
    return Tile(64, 32, 0, 4, 1)


@functools.cache
def elementwise(channels: int) -> Tile:
    """Positions and channels of one program of a pass that multiplies nothing."""
    columns = power_of_2(channels, 16, 128)
    return Tile(4096 // columns, columns, 0, 4, 1)


@functools.cache
def gradient(channels: int, positions: int) -> Tile:
    """Positions of a token, or of the whole volume, and channels of one step of the gradient
    through the normalisation."""
    columns = power_of_2(channels, 16, 128)
    return Tile(power_of_2(positions, 1, 2048 // columns), columns, 0, 4, 1)


def gradient_share(steps: int) -> int:
    """Steps of one program, of all: few of them still fill a GPU."""
    return max(1, min(8, steps // (4 * MULTIPROCESSORS)))


@functools.cache
def merged(channels: int) -> Tile:
    """Shares of the positions, and channels of a group, that one step merges."""
    columns = power_of_2(channels, 1, 2**20)
    return Tile(max(1, 1024 // columns), columns, 0, 4, 1)


def chunk(batch: int, rows: int, halo: int, row_bytes: int, room: int = 0) -> tuple[int, int]:
    """Samples and query rows of the output that the fused ops compute at a time.

    The correlation that these need takes `CHUNK_BYTES`, a part in `CHUNK_SHARE` of the whole or
    `room`, whichever is most, or one row and its halo.

    Args:
        batch: samples in all.
        rows: of a sample.
        halo: rows of the correlation that the convolution reads on either side.
        row_bytes: of the correlation of one query row of a sample.
        room: bytes that the call needs later, when the correlation is gone.
    """
    most = max(CHUNK_BYTES, batch * rows * row_bytes // CHUNK_SHARE, room)
    if rows * row_bytes <= most:
        return max(1, min(batch, most // max(1, rows * row_bytes))), rows
    fitting = max(1, most // row_bytes - 2 * halo)
    chunks = -(-rows // fitting)
    return 1, -(-rows // chunks)


@functools.cache
def tokens(channels: int) -> Tile:
    """Tokens and channels of one step of the light passes over features."""
    return Tile(32, power_of_2(channels, 16, 64), 0, 4, 1)


@functools.cache
def mending() -> Tile:
    """Elements that a program mends at a time, and programs at most: mostly they end at once."""
    return Tile(256, 256, 0, 4, 1)


@functools.cache
def matrices() -> Tile:
    """Elements of the weights that a program puts in order."""
    return Tile(1024, 1, 0, 4, 1)
