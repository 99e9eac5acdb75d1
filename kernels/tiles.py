"""Block sizes, warps and pipeline stages: a pure function of shape, dtype and architecture.

Nothing is timed at run time. What the standard workloads select is compiled ahead of time for
three architectures and listed by `python -m fsdino.bench.inspect triton`.
`benchmarks/tune_tiles.py` times others on a GPU and writes a table; where FSDINO_TILES names its
file when this module is imported, what stands there is taken on GPUs of that architecture.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ParamSpec

import torch

from fsdino.contract import CHUNK_BYTES
from fsdino.errors import UsageError

logger = logging.getLogger("fsdino.kernels")
P = ParamSpec("P")

HALF = (torch.float16, torch.bfloat16)
MULTIPROCESSORS = 132  # what work is split for where it must be split: H100 and H200
SMALL = 2048  # elements of a program's output, below which many programs run side by side
INTERPRETER = 0  # in place of an architecture: an operation there costs the same at any size
TUNED = ("correlation", "walk", "weight_gradient")  # the functions that a table may speak for


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


# What is chosen for a call of a function below, by its name and arguments: tuned tiles.
Table = dict[tuple[Any, ...], Tile]
table: Table = {}


def read_table(path: str | os.PathLike[str]) -> Table:
    """Tiles from a file that `write_table` wrote.

    Raises:
        UsageError: the file is missing or no such table.
    """
    try:
        content = json.loads(Path(path).read_text())
        architecture, found = int(content["architecture"]), {}
        for entry in content["tiles"]:
            *channels, dtype = entry["arguments"]
            key = (entry["function"], *map(int, channels), getattr(torch, dtype), architecture)
            sizes = {field.name: int(entry[field.name]) for field in fields(Tile)}
            found[key] = Tile(**sizes)
        wrong = [key for key, tile in found.items() if not can_run(key[0], tile)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"FSDINO_TILES: {path} is no table of benchmarks/tune_tiles.py ({error!r}): "
            f"write it anew, or unset the variable"
        ) from error
    if wrong:
        raise UsageError(f"FSDINO_TILES: {path} holds sizes that cannot run, for {wrong[0][0]}")
    return found


def write_table(path: str | os.PathLike[str], found: Table, architecture: int) -> None:
    """Write tiles for GPUs of one architecture, as FSDINO_TILES reads them."""
    entries = [
        {
            "function": name,
            "arguments": [*channels, str(dtype).removeprefix("torch.")],
            **asdict(tile),
        }
        for (name, *channels, dtype, _), tile in found.items()
    ]
    content = {"architecture": architecture, "tiles": entries}
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def can_run(name: str, tile: Tile) -> bool:
    """Whether the sizes are powers of 2 that tensor cores and Triton take."""
    sizes = (tile.rows, tile.columns, tile.depth)
    return (
        name in TUNED
        and all(size >= 16 and size & (size - 1) == 0 for size in sizes)
        and tile.warps in {1, 2, 4, 8, 16}
        and 1 <= tile.stages <= 8
    )


def _tuned(function: Callable[P, Tile]) -> Callable[P, Tile]:
    """Take what the table says of a call with positional arguments, and else ask the function."""

    @functools.wraps(function)
    def choose(*arguments: P.args, **named: P.kwargs) -> Tile:
        if not table or named:
            return function(*arguments, **named)
        _note_foreign(arguments[-1])
        return table.get((function.__name__, *arguments)) or function(*arguments, **named)

    return choose


@functools.cache
def _note_foreign(architecture: object) -> None:
    known = {key[-1] for key in table}
    if architecture not in known:
        logger.warning(
            "FSDINO_TILES is for sm_%s and is not used on sm_%s",
            "/".join(map(str, sorted(known))),
            architecture,
        )


def power_of_2(size: int, least: int, most: int) -> int:
    """The smallest power of 2 from `size` on, between two powers of 2."""
    return min(most, max(least, 1 << (size - 1).bit_length()))


@_tuned
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
    return Tile(128, 64, 64 if architecture >= 90 else 32, 8, 3)


def correlation_layers(layers: int, dtype: torch.dtype, architecture: int) -> int:
    """Layers that one program computes, and writes side by side: channels are innermost.

    As many as the registers hold: on sm_100 four spill, and so they do where the last may be one
    too many.
    """
    four = dtype in HALF and architecture < 100 and layers % 4 == 0
    return power_of_2(layers, 1, 4 if four else 2)


@_tuned
def walk(inner: int, outer: int, dtype: torch.dtype, architecture: int) -> Tile:
    """Positions, channels out and channels in of one step of the convolution.

    Args:
        inner: channels of the volume that is read.
        outer: channels of the volume that is written.
        dtype: of both.
        architecture: compute capability, 80 for 8.0, or INTERPRETER.
    """
    if architecture == INTERPRETER:
        return Tile(512, power_of_2(outer, 16, 64), power_of_2(inner, 16, 64), 1, 1)
    if dtype not in HALF:
        columns = power_of_2(outer, 16, 64)
        warps = 8 if architecture >= 100 and columns > 32 else 4
        return Tile(64, columns, power_of_2(inner, 16, 32), warps, 2)
    columns, depth = power_of_2(outer, 16, 128), power_of_2(inner, 16, 64)
    if architecture >= 100:  # there, 64 values a thread and their statistics spill
        return Tile(64 if columns > 64 else 128, columns, depth, 8 if columns > 32 else 4, 3)
    return Tile(128, columns, depth, 8 if columns > 64 else 4, 3 if architecture >= 90 else 2)


@_tuned
def weight_gradient(inner: int, outer: int, dtype: torch.dtype, architecture: int) -> Tile:
    """Channels in, channels out and positions of one step of the weights' gradient."""
    rows, columns = power_of_2(inner, 16, 64), power_of_2(outer, 16, 64)
    if architecture == INTERPRETER:
        return Tile(rows, columns, 512, 1, 1)
    if dtype not in HALF:
        return Tile(rows, columns, 16, 4, 2)
    return Tile(rows, columns, 64, 2 if rows * columns < SMALL else 4, 3)


def weight_splits(tile: Tile, programs: int, steps: int) -> int:
    """Shares into which the positions are split: enough programs to fill a GPU.

    Args:
        tile: of one program.
        programs: of one share.
        steps: of the loop over all positions.
    """
    resident = 16 if tile.rows * tile.columns < SMALL else 4  # on one multiprocessor
    return max(1, min(steps, resident * MULTIPROCESSORS // programs))


def elementwise(channels: int) -> Tile:
    """Positions and channels of one program of a pass that multiplies nothing."""
    columns = power_of_2(channels, 16, 128)
    return Tile(4096 // columns, columns, 0, 4, 1)


def fused_rows(rows: int, halo: int, row_bytes: int) -> int:
    """Query rows of the output that the fused op computes at a time.

    Args:
        rows: all of them.
        halo: rows of the correlation that the convolution reads on either side.
        row_bytes: of the correlation of one query row.
    """
    return max(1, min(rows, CHUNK_BYTES // row_bytes - 2 * halo))


def tokens(channels: int) -> Tile:
    """Tokens and channels of one step of the light passes over features."""
    return Tile(32, power_of_2(channels, 16, 64), 0, 4, 1)


def mending() -> Tile:
    """Elements that a program mends at a time, and programs at most: mostly they end at once."""
    return Tile(256, 256, 0, 4, 1)


def statistics() -> Tile:
    """Entries that one program merges in a step; few programs do, so that each has many threads."""
    return Tile(4096, 1, 0, 16, 1)


if os.environ.get("FSDINO_TILES"):
    table.update(read_table(os.environ["FSDINO_TILES"]))
