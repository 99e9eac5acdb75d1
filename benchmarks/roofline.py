"""What the standard workloads must cost on a GPU: `python benchmarks/roofline.py`.

Two models. The floor counts what no implementation can avoid: every multiply-add of the definition
once, and every tensor that has to pass through memory once (features, what the blocks hand on
before their normalisation, the result; not the correlation, which can be consumed where it is
made). It is the larger of operations over peak and bytes over bandwidth. The launches count what
the Triton kernels do, one after the other: each reads and writes its own tensors once, the
correlation and the light passes included; they overlap nothing, so their sum is an upper estimate
of a perfect run of them. Light passes count no operations.

Peaks are those of dense products as the vendor publishes them: NVIDIA A100 Tensor Core GPU
datasheet (80 GB, SXM); NVIDIA H100 Tensor Core GPU datasheet (SXM); NVIDIA H200 Tensor Core GPU
datasheet (SXM); NVIDIA Blackwell Architecture Technical Brief (HGX B200). Where a datasheet gives
rates with sparsity, half of that. What a GPU reaches is less: `--ceilings` takes rates measured on
it, and `--measured` the file of `benchmarks/gpu_suite.py`, which holds both ceilings and times.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fsdino.bench.workloads import GROUPS, KERNEL, STRIDE, WORKLOADS, Workload
from fsdino.files import read_json
from fsdino.kernels import tiles

TAPS = 2 * KERNEL**2


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do.

    Attributes:
        name: as in tables.
        architecture: compute capability, 90 for 9.0.
        multiprocessors: how many.
        half: FLOP/s of dense float16 and bfloat16 products.
        tf32: FLOP/s of dense TF32 products.
        single: FLOP/s in float32.
        bandwidth: bytes a second, to and from its memory.
    """

    name: str
    architecture: int
    multiprocessors: int
    half: float
    tf32: float
    single: float
    bandwidth: float

    def peak(self, dtype: torch.dtype, *, tf32: bool = False) -> float:
        """FLOP/s of products of a data type."""
        if dtype in tiles.HALF:
            return self.half
        return self.tf32 if tf32 else self.single


GPUS = (
    Gpu("A100", 80, 108, 312e12, 156e12, 19.5e12, 2.039e12),
    Gpu("H100", 90, 132, 989.5e12, 494.5e12, 67e12, 3.35e12),
    Gpu("H200", 90, 132, 989.5e12, 494.5e12, 67e12, 4.8e12),
    Gpu("B200", 100, 148, 2250e12, 1100e12, 80e12, 8e12),
)


@dataclass(frozen=True)
class Cost:
    """One launch, or what a stage needs at least.

    Attributes:
        kernel: its name.
        stage: "correlation", "block 1" and so on, or "... backward".
        flop: operations of the definition, 2 for each multiply-add of a product.
        bytes: read and written, each tensor once.
        executed: operations with the padding of tiles.
        programs: how many run.
    """

    kernel: str
    stage: str
    flop: float
    bytes: float
    executed: float = 0.0
    programs: int = 0

    def seconds(self, gpu: Gpu, dtype: torch.dtype) -> float:
        """The larger of operations over peak and bytes over bandwidth."""
        return max(self.flop / gpu.peak(dtype), self.bytes / gpu.bandwidth)

    def waves(self, gpu: Gpu) -> float:
        """Rounds of programs, one on each multiprocessor; several fit side by side."""
        return self.programs / gpu.multiprocessors


@dataclass(frozen=True)
class Block:
    """Sizes of one block: channels in and out, support side in and out, and positions."""

    index: int
    inner: int
    outer: int
    side: int
    kept: int
    tokens: int
    batch: int

    @property
    def source(self) -> int:
        """Elements of its input."""
        return self.batch * self.inner * self.tokens * self.side**2

    @property
    def raw(self) -> int:
        """Elements of its convolution."""
        return self.batch * self.outer * self.tokens * self.kept**2

    @property
    def flop(self) -> float:
        """Of the convolution."""
        return 2.0 * self.raw * self.inner * TAPS


def blocks(workload: Workload) -> list[Block]:
    """The blocks of a workload."""
    found, inner, side = [], workload.layers, workload.grid
    for index, outer in enumerate(workload.block_channels, start=1):
        kept = math.ceil(side / STRIDE)
        sizes = (inner, outer, side, kept, workload.grid**2, workload.batch)
        found.append(Block(index, *sizes))
        inner, side = outer, kept
    return found


def floor(workload: Workload, dtype: torch.dtype) -> list[Cost]:
    """What the stages need at least; see above. Its sum is taken before the larger of the two."""
    size, chain = dtype.itemsize, blocks(workload)
    last = chain[-1]
    features = 2 * workload.batch * workload.layers * workload.channels * workload.grid**2
    counts = workload.flop()
    costs = [Cost("", "correlation", counts["correlation"], size * features)]
    for block in chain:
        read = 0 if block.index == 1 else block.source
        costs.append(Cost("", f"block {block.index}", block.flop, size * (read + block.raw)))
    reduced = last.batch * last.outer * last.tokens
    costs.append(Cost("", "mean", 0.0, size * (last.raw + reduced)))
    if workload.backward:
        # The correlation is read; of what was handed on and its gradient, each once.
        backward = workload.backward_flop()
        for block in chain:
            gradient = 0 if block.index == 1 else block.source
            given = reduced if block is last else block.raw
            moved = size * (block.source + block.raw + gradient + given)
            stage = f"block {block.index}"
            costs.append(Cost("", f"{stage} backward", backward[stage], moved))
    return costs


def floor_seconds(workload: Workload, dtype: torch.dtype, gpu: Gpu) -> float:
    """Seconds below which no implementation gets."""
    costs = floor(workload, dtype)
    whole = Cost("", "", sum(c.flop for c in costs), sum(c.bytes for c in costs))
    return whole.seconds(gpu, dtype)


def launches(workload: Workload, dtype: torch.dtype, architecture: int) -> list[Cost]:
    """What the Triton kernels do, launch by launch."""
    costs = list(_correlation(workload, dtype, architecture))
    chain = blocks(workload)
    for block in chain:
        costs += _forward(block, dtype, architecture, last=block is chain[-1])
    if workload.backward:
        for block in reversed(chain):
            costs += _backward(block, dtype, architecture, last=block is chain[-1])
    return costs


def _correlation(workload: Workload, dtype: torch.dtype, architecture: int) -> Iterator[Cost]:
    planes, tokens = workload.batch * workload.layers, workload.grid**2
    features, size = planes * workload.channels * tokens, dtype.itemsize
    stage, pass_tile = "correlation", tiles.tokens(workload.channels)
    programs = planes * math.ceil(tokens / pass_tile.rows)
    for _ in ("query", "support"):
        moved = features * size + 4 * planes * tokens
        yield Cost("lengths_kernel", stage, 0.0, moved, programs=programs)
    tile = tiles.correlation(dtype, architecture)
    layers = tiles.correlation_layers(workload.layers, dtype, architecture)
    cells = math.ceil(tokens / tile.rows) * math.ceil(tokens / tile.columns)
    depth = tile.depth * math.ceil(workload.channels / tile.depth)
    yield Cost(
        "correlation_kernel",
        stage,
        workload.flop()[stage],
        size * (2 * features + planes * tokens**2) + 8 * planes * tokens,
        executed=2.0 * planes * cells * tile.rows * tile.columns * depth,
        programs=workload.batch * cells * math.ceil(workload.layers / layers),
    )


def _walk(
    stage: str, inner: int, outer: int, rows: int, batch: int, taps: int, moved: float,
    dtype: torch.dtype, architecture: int,
) -> Cost:  # fmt: skip
    """A launch of the walk: `rows` positions of each sample, `taps` taps."""
    tile = tiles.walk(inner, outer, dtype, architecture)
    programs = batch * math.ceil(rows / tile.rows) * math.ceil(outer / tile.columns)
    depth = taps * tile.depth * math.ceil(inner / tile.depth)
    return Cost(
        "walk_kernel",
        stage,
        2.0 * batch * rows * outer * inner * taps,
        moved,
        executed=2.0 * programs * tile.rows * tile.columns * depth,
        programs=programs,
    )


def _forward(block: Block, dtype: torch.dtype, architecture: int, *, last: bool) -> Iterator[Cost]:
    stage, size = f"block {block.index}", dtype.itemsize
    rows = block.tokens * block.kept**2
    tile = tiles.walk(block.inner, block.outer, dtype, architecture)
    partial = 4 * 3 * GROUPS * block.batch * math.ceil(rows / tile.rows)
    weights = size * TAPS * block.inner * block.outer
    moved = size * (block.source + block.raw) + weights + partial
    pair = (block.inner, block.outer)
    yield _walk(stage, *pair, rows, block.batch, TAPS, moved, dtype, architecture)
    yield Cost("statistics_kernel", stage, 0.0, 2 * partial, programs=GROUPS * block.batch)
    if last:
        reduced = block.raw // block.kept**2
        columns = math.ceil(block.outer / tiles.elementwise(block.outer).columns)
        programs = block.batch * block.tokens * columns
        yield Cost(
            "normalise_mean_kernel", stage, 0.0, size * (block.raw + reduced), programs=programs
        )
    else:
        yield Cost("normalise_kernel", stage, 0.0, 2 * size * block.raw, programs=_programs(block))


def _backward(block: Block, dtype: torch.dtype, architecture: int, *, last: bool) -> Iterator[Cost]:
    stage, size = f"block {block.index} backward", dtype.itemsize
    given = block.raw // block.kept**2 if last else block.raw
    programs = _programs(block)
    sums = 4 * 2 * block.outer * programs
    distances = size * block.raw + sums  # written and read: half as many as the other sums
    yield Cost("distance_sums_kernel", stage, 0.0, distances, programs=programs)
    both = size * (given + block.raw)
    yield Cost("gradient_sums_kernel", stage, 0.0, both + 2 * sums, programs=programs)
    yield Cost("gradient_kernel", stage, 0.0, both + size * block.raw, programs=programs)
    if block.index > 1:
        yield from _transposed(block, dtype, architecture)
    tile = tiles.weight_gradient(block.inner, block.outer, dtype, architecture)
    cells = TAPS * math.ceil(block.inner / tile.rows) * math.ceil(block.outer / tile.columns)
    steps = block.batch * math.ceil(block.tokens * block.kept**2 / tile.depth)
    splits = tiles.weight_splits(tile, cells, steps)
    partial = 4 * splits * TAPS * block.inner * block.outer
    yield Cost(
        "weight_gradient_kernel",
        stage,
        block.flop,
        size * (block.source + block.raw) + 2 * partial,
        executed=2.0 * cells * tile.rows * tile.columns * steps * tile.depth,
        programs=cells * splits,
    )


def _transposed(block: Block, dtype: torch.dtype, architecture: int) -> Iterator[Cost]:
    """The gradient to the input: all classes of support positions in one launch.

    Every class has the programs of the first one, which has most positions; those beyond its own
    end at once.
    """
    stage, size = f"block {block.index} backward", dtype.itemsize
    classes = []
    for place in itertools.product(range(min(STRIDE, block.side)), repeat=2):
        walked = math.prod(math.ceil((block.side - first) / STRIDE) for first in place)
        taps = math.prod(
            len(range((first + KERNEL // 2) % STRIDE, KERNEL, STRIDE)) for first in place
        )
        taps += KERNEL**2 if place == (0, 0) else 0
        rows, pair = block.tokens * walked, (block.outer, block.inner)
        classes.append(_walk(stage, *pair, rows, block.batch, taps, 0.0, dtype, architecture))
    yield Cost(
        "walk_kernel",
        stage,
        sum(cost.flop for cost in classes),
        size * (block.raw + block.source),
        executed=sum(cost.executed for cost in classes),
        programs=len(classes) * classes[0].programs,
    )
    mending = tiles.mending()
    of_class = min(math.ceil(block.source / (len(classes) * mending.rows)), mending.columns)
    yield Cost("mend_edges_kernel", stage, 0.0, 0.0, programs=len(classes) * of_class)


def _programs(block: Block) -> int:
    tile = tiles.elementwise(block.outer)
    row_tiles = block.batch * math.ceil(block.tokens * block.kept**2 / tile.rows)
    return row_tiles * math.ceil(block.outer / tile.columns)


def measured_gpu(ceilings: dict[str, Any]) -> Gpu:
    """A GPU by the rates that `benchmarks/gpu_suite.py` measured on it."""
    flops = ceilings["flop_per_second"]
    half, single = flops.get("bfloat16", 0.0), flops.get("float32", 0.0)
    return Gpu(
        "measured",
        ceilings["architecture"],
        ceilings["multiprocessors"],
        half,
        flops.get("tf32", single),
        single,
        ceilings["bytes_per_second"],
    )


def given_gpu(tera_flops: float, tera_bytes: float) -> Gpu:
    """A Hopper GPU by its measured rates, for every data type."""
    flops = tera_flops * 1e12
    return Gpu("measured", 90, 132, flops, flops, flops, tera_bytes * 1e12)


def floors_table(
    gpus: tuple[Gpu, ...], dtype: torch.dtype, times: dict[str, float] | None = None
) -> str:
    """Milliseconds of every standard workload; with times, what share of the last GPU's floor."""
    times = times or {}
    heads = [gpu.name for gpu in gpus] + (["ms", "of floor"] if times else [])
    lines = [f"{'workload':9}{'GFLOP':>9}{'GB':>7}" + "".join(f"{h:>10}" for h in heads)]
    for name, workload in WORKLOADS.items():
        costs = floor(workload, dtype)
        flop, moved = sum(c.flop for c in costs) / 1e9, sum(c.bytes for c in costs) / 1e9
        seconds = [floor_seconds(workload, dtype, gpu) for gpu in gpus]
        line = f"{name:9}{flop:9.1f}{moved:7.2f}" + "".join(f"{1e3 * s:10.3f}" for s in seconds)
        if name in times:
            line += f"{1e3 * times[name]:10.3f}{seconds[-1] / times[name]:10.2f}"
        lines.append(line)
    return "\n".join(lines)


def launches_table(workload: Workload, dtype: torch.dtype, gpu: Gpu) -> str:
    """Each launch of a workload on one GPU."""
    line = "{:24}{:18}{:>9}{:>9}{:>8}{:>10}{:>8}{:>9}"
    heads = ("kernel", "stage", "GFLOP", "executed", "MB", "programs", "waves", "ms")
    lines, total = [line.format(*heads)], 0.0
    for cost in launches(workload, dtype, gpu.architecture):
        seconds = cost.seconds(gpu, dtype)
        total += seconds
        cells = (
            cost.kernel, cost.stage, f"{cost.flop / 1e9:.1f}", f"{cost.executed / 1e9:.1f}",
            f"{cost.bytes / 1e6:.0f}", cost.programs, f"{cost.waves(gpu):.1f}",
            f"{1e3 * seconds:.3f}",
        )  # fmt: skip
        lines.append(line.format(*cells))
    lines.append(f"{'sum':86}{1e3 * total:9.3f}")
    return "\n".join(lines)


def times_of(record: dict[str, Any], dtype: str) -> dict[str, float]:
    """The fastest seconds of the Triton chain by workload, from a file of the GPU suite."""
    times: dict[str, float] = {}
    for row in record["parts"]["timing"]["rows"]:
        for name, result in row.get("implementations", {}).items():
            ours = name.startswith("triton") and row["dtype"] == dtype and result.get("seconds")
            if ours:
                times[row["workload"]] = min(
                    times.get(row["workload"], math.inf), result["seconds"]
                )
    return times


def main(arguments: list[str] | None = None) -> None:
    """Print the floors, and where asked for the launches of one workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--ceilings", type=float, nargs=2, metavar=("TFLOPS", "TBPS"), help="measured rates"
    )
    source.add_argument("--measured", type=Path, help="JSON file of benchmarks/gpu_suite.py")
    parser.add_argument("--launches", choices=WORKLOADS, help="also each launch of this workload")
    parser.add_argument("--on", default="", help="GPU of --launches; default: the last column's")
    given = parser.parse_args(arguments)
    dtype, gpus, times = getattr(torch, given.dtype), GPUS, {}
    if given.ceilings:
        gpus = (*GPUS, given_gpu(*given.ceilings))
    if given.measured:
        record = read_json(given.measured)
        gpus = (*GPUS, measured_gpu(record["parts"]["ceilings"]))
        times = times_of(record, given.dtype)
    print(f"Floors in ms, {given.dtype}")
    print(floors_table(gpus, dtype, times))
    if given.launches:
        [gpu] = [gpu for gpu in gpus if gpu.name == (given.on or gpus[-1].name)]
        print(f"\n{given.launches} on {gpu.name}")
        print(launches_table(WORKLOADS[given.launches], dtype, gpu))


if __name__ == "__main__":
    main()
