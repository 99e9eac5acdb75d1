"""What the standard workloads must cost on a GPU: `python benchmarks/roofline.py`.

The floor counts what no implementation can avoid: every multiply-add of the definition once, and
every tensor that has to pass through memory once (features, what the blocks hand on before their
normalisation, the result; not the correlation, which can be consumed where it is made). It is the
larger of operations over peak and bytes over bandwidth. The bound, in bfloat16, is that of the
Triton kernels as they are: what their launches execute and move, one after the other, on an H200 by
the assumptions of fsdino/bench/counted.py, from its record. Neither is a time.

Peaks are those of dense products as the vendor publishes them: NVIDIA A100 Tensor Core GPU
datasheet (80 GB, SXM); NVIDIA H100 Tensor Core GPU datasheet (SXM); NVIDIA H200 Tensor Core GPU
datasheet (SXM); NVIDIA Blackwell Architecture Technical Brief (HGX B200). Where a datasheet gives
rates with sparsity, half of that. What a GPU reaches is less: `--ceilings` takes rates measured on
it, and `--measured` the file of `benchmarks/gpu_suite.py`, which holds both ceilings and times.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fsdino.bench.workloads import KERNEL, STRIDE, WORKLOADS, Workload
from fsdino.files import read_json
from fsdino.kernels import tiles

TAPS = 2 * KERNEL**2
COUNTS = Path(__file__).resolve().parent / "results" / "gpu-counts.json"


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
    """What a stage needs at least.

    Attributes:
        stage: "correlation", "block 1" and so on, or "... backward".
        flop: operations of the definition, 2 for each multiply-add of a product.
        bytes: read and written, each tensor once.
    """

    stage: str
    flop: float
    bytes: float

    def seconds(self, gpu: Gpu, dtype: torch.dtype) -> float:
        """The larger of operations over peak and bytes over bandwidth."""
        return max(self.flop / gpu.peak(dtype), self.bytes / gpu.bandwidth)


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
    costs = [Cost("correlation", counts["correlation"], size * features)]
    for block in chain:
        read = 0 if block.index == 1 else block.source
        costs.append(Cost(f"block {block.index}", block.flop, size * (read + block.raw)))
    reduced = last.batch * last.outer * last.tokens
    costs.append(Cost("mean", 0.0, size * (last.raw + reduced)))
    if workload.backward:
        # The correlation is read; of what was handed on and its gradient, each once.
        backward = workload.backward_flop()
        for block in chain:
            gradient = 0 if block.index == 1 else block.source
            given = reduced if block is last else block.raw
            moved = size * (block.source + block.raw + gradient + given)
            stage = f"block {block.index}"
            costs.append(Cost(f"{stage} backward", backward[stage], moved))
    return costs


def floor_seconds(workload: Workload, dtype: torch.dtype, gpu: Gpu) -> float:
    """Seconds below which no implementation gets."""
    costs = floor(workload, dtype)
    whole = Cost("", sum(c.flop for c in costs), sum(c.bytes for c in costs))
    return whole.seconds(gpu, dtype)


def bound_seconds(workload: str) -> float | None:
    """Of the Triton kernels on an H200, in bfloat16; None for a workload that is not on record."""
    launches = read_json(COUNTS)["counts"]["sm_90"].get(workload)
    return None if launches is None else 1e-6 * sum(row["microseconds"] for row in launches)


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
    heads = [gpu.name for gpu in gpus] + ["bound"] + (["ms", "of floor"] if times else [])
    lines = [f"{'workload':9}{'GFLOP':>9}{'GB':>7}" + "".join(f"{h:>10}" for h in heads)]
    for name, workload in WORKLOADS.items():
        costs = floor(workload, dtype)
        flop, moved = sum(c.flop for c in costs) / 1e9, sum(c.bytes for c in costs) / 1e9
        seconds = [floor_seconds(workload, dtype, gpu) for gpu in gpus]
        line = f"{name:9}{flop:9.1f}{moved:7.2f}" + "".join(f"{1e3 * s:10.3f}" for s in seconds)
        bound = bound_seconds(name) if dtype == torch.bfloat16 else None
        line += f"{'-':>10}" if bound is None else f"{1e3 * bound:10.3f}"
        if name in times:
            line += f"{1e3 * times[name]:10.3f}{seconds[-1] / times[name]:10.2f}"
        lines.append(line)
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
    """Print the floors, the bounds, and where they are given measured times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--ceilings", type=float, nargs=2, metavar=("TFLOPS", "TBPS"), help="measured rates"
    )
    source.add_argument("--measured", type=Path, help="JSON file of benchmarks/gpu_suite.py")
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


if __name__ == "__main__":
    main()
