"""Time other block sizes on the GPU that is here: `python benchmarks/tune_tiles.py --out FILE`.

For each product of the standard workloads it starts from what `kernels/tiles.py` chooses, tries
what differs in one size, in warps or in stages, goes to the fastest, and on from there until
nothing gains or the time is up. A candidate whose result is wrong is not timed. FILE lists what was
faster, as a guide for changes of `kernels/tiles.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu_timing
import torch
from torch import Tensor
from workers import Job, Outcome, Worker, run_all

from fsdino import ops
from fsdino import processes as sharing
from fsdino.bench import exactness
from fsdino.bench.cases import TOLERANCE
from fsdino.bench.workloads import KERNEL, STRIDE, WORKLOADS, Workload
from fsdino.files import write_json
from fsdino.kernels import tiles
from fsdino.kernels.tiles import Tile

BATCH, CHECKED_BATCH = 8, 2  # timed volumes are larger than the L2 cache, checked ones need not
GAIN = 0.02  # less is noise
MOST_PROCESSES = 8  # that check: each holds volumes in float32
SECONDS_EACH = 0.15  # of timing, for a candidate
LARGEST, MOST_STAGES = 256, 5


@dataclass(frozen=True)
class Target:
    """A product whose tile is looked for.

    Attributes:
        kind: "correlation", "forward", "transposed" or "weights".
        workload: where it occurs.
        inner, outer, side: channels in and out and support side of the block; 0 in "correlation".
        dtype: name of its data type.
    """

    kind: str
    workload: Workload
    inner: int
    outer: int
    side: int
    dtype: str

    @property
    def choice(self) -> tuple[Any, ...]:
        """The function of `kernels/tiles.py` that chooses, and its arguments but the last."""
        dtype = getattr(torch, self.dtype)
        return {
            "correlation": ("correlation", dtype),
            "forward": ("walk", self.inner, self.outer, dtype),
            "transposed": ("walk", self.outer, self.inner, dtype),
            "weights": ("weight_gradient", self.inner, self.outer, dtype),
        }[self.kind]

    def default(self, architecture: int) -> Tile:
        """What is chosen now."""
        name, *arguments = self.choice
        tile: Tile = getattr(tiles, name)(*arguments, architecture)
        return tile


def targets(workloads: Sequence[Workload], dtype: str) -> list[Target]:
    """Each product of the workloads once, the same in several from the first."""
    found: dict[tuple[Any, ...], Target] = {}
    for workload in workloads:
        inner, side = workload.layers, workload.grid
        kinds = [Target("correlation", workload, 0, 0, 0, dtype)]
        for index, outer in enumerate(workload.block_channels):
            # The features are frozen: the first block's input takes no gradient.
            wanted = ("forward", "weights") if index == 0 else ("forward", "transposed", "weights")
            kinds += [Target(kind, workload, inner, outer, side, dtype) for kind in wanted]
            inner, side = outer, math.ceil(side / STRIDE)
        for target in kinds:
            found.setdefault(target.choice, target)
    return list(found.values())


def neighbours(tile: Tile) -> list[Tile]:
    """Tiles that differ in one size by a factor of 2, in warps by 2, or by one stage."""
    found = []
    for name in ("rows", "columns", "depth", "warps"):
        size = getattr(tile, name)
        found += [replace(tile, **{name: new}) for new in (size // 2, size * 2) if new <= LARGEST]
    found += [replace(tile, stages=tile.stages + step) for step in (-1, 1)]
    return [new for new in found if can_run(new) and new.stages <= MOST_STAGES]


def can_run(tile: Tile) -> bool:
    """Whether the sizes are powers of 2 that tensor cores and Triton take."""
    sizes = (tile.rows, tile.columns, tile.depth)
    return (
        all(size >= 16 and size & (size - 1) == 0 for size in sizes)
        and tile.warps in {1, 2, 4, 8, 16}
        and tile.stages >= 1
    )


# Tiles by the function that chooses and its arguments.
Table = dict[tuple[Any, ...], Tile]
Times = dict[Target, dict[Tile, float]]
Measure = Callable[[list[tuple[Target, Tile]]], dict[tuple[Target, Tile], float]]


def search(starts: dict[Target, Tile], measure: Measure, time_is_up: Callable[[], bool]) -> Times:
    """Seconds of every tile that was tried, infinite where it failed; all targets side by side.

    Args:
        starts: the tile to begin with.
        measure: seconds of some tiles.
        time_is_up: asked before each round.
    """
    times: Times = {target: {} for target in starts}
    best: dict[Target, float] = dict.fromkeys(starts, math.inf)
    pending = list(starts.items())
    while pending and not time_is_up():
        for (target, tile), seconds in measure(pending).items():
            times[target][tile] = seconds
        pending = []
        for target, tried in times.items():
            fastest = min(tried, key=lambda tile, tried=tried: tried[tile], default=None)
            if fastest is not None and tried[fastest] < (1 - GAIN) * best[target]:
                best[target] = tried[fastest]
                pending += [(target, new) for new in neighbours(fastest) if new not in tried]
    return times


def faster(times: Times, starts: dict[Target, Tile], architecture: int) -> Table:
    """The tiles that gain something."""
    found: Table = {}
    for target, tried in times.items():
        fastest = min(tried, key=lambda tile, tried=tried: tried[tile], default=None)
        if fastest is None or starts[target] not in tried:
            continue
        if tried[fastest] < (1 - GAIN) * tried[starts[target]]:
            found[(*target.choice, architecture)] = fastest
    return found


def check(target: Target, tile: Tile, device: str, backend: str) -> float:
    """Error of a product with a tile, as a share of what is allowed."""
    small = replace(target, workload=replace(target.workload, batch=CHECKED_BATCH))
    tolerance = TOLERANCE[getattr(torch, target.dtype)]
    backward = target.kind in {"transposed", "weights"}
    bound = tolerance.gradients if backward else tolerance.forward
    found = run(small, tile, device, backend)
    allowed = [bound] * len(found)
    return exactness.error(found, expected(small, device), allowed)


def seconds_of(
    target: Target, candidates: Sequence[Tile], device: str, backend: str
) -> dict[Tile, float]:
    """Median seconds of a product with each tile, in turns."""
    steps: dict[str, gpu_timing.Step] = {
        str(index): functools.partial(_run_at, target, tile, device, backend)
        for index, tile in enumerate(candidates)
    }
    times = gpu_timing.take_turns(steps, SECONDS_EACH * len(candidates), device)
    return {tile: times[str(index)]["seconds"] for index, tile in enumerate(candidates)}


def _run_at(target: Target, tile: Tile, device: str, backend: str, _: int) -> object:
    return run(target, tile, device, backend)


def run(target: Target, tile: Tile | None, device: str, backend: str) -> list[Tensor]:
    """A product, with a tile in place of the chosen one."""
    tensors = inputs(target, device)
    with taking(target, tile, architecture_of(device)):
        if target.kind == "correlation":
            return [ops.correlation4d(*tensors, backend=backend)]
        x, *weights, grad = tensors
        if target.kind == "forward":
            return [ops.center_pivot_conv4d(x, *weights, support_stride=STRIDE, backend=backend)]
        of_weights = target.kind == "weights"
        needs = [not of_weights, of_weights, of_weights, False]
        results = torch.ops.fsdino.center_pivot_conv4d_backward(
            grad, x, *weights, STRIDE, needs, backend
        )
        return [result for result, need in zip(results, needs, strict=True) if need]


@contextlib.contextmanager
def taking(target: Target, tile: Tile | None, architecture: int) -> Iterator[None]:
    """Let `kernels/tiles.py` choose a tile for a product, and for nothing else; None leaves it."""
    name, *arguments = target.choice
    chosen: Callable[..., Tile] = getattr(tiles, name)

    def choose(*asked: Any, **more: bool) -> Tile:
        if tile is None or asked != (*arguments, architecture) or any(more.values()):
            return chosen(*asked, **more)
        return tile

    with mock.patch.object(tiles, name, choose):
        yield


@functools.lru_cache(maxsize=1)
def expected(target: Target, device: str) -> list[Tensor]:
    """A product by the reference, which computes in float32."""
    return [result.double() for result in run(target, None, device, "reference")]


@functools.lru_cache(maxsize=2)
def inputs(target: Target, device: str) -> tuple[Tensor, ...]:
    """Random features, or a volume, weights and the gradient of the result."""
    torch.manual_seed(0)
    workload, dtype = target.workload, getattr(torch, target.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def volume(channels: int, side: int) -> Tensor:
        shape = (workload.batch, *(workload.grid,) * 2, side, side, channels)
        return normal(*shape).permute(0, 5, 1, 2, 3, 4)

    if target.kind == "correlation":
        shape = (workload.batch, workload.layers, workload.grid, workload.grid, workload.channels)
        features = [normal(*shape).permute(0, 1, 4, 2, 3) for _ in range(2)]
        return (*features, normal(workload.batch, workload.grid, workload.grid))
    scale = (2 * target.inner * KERNEL**2) ** -0.5
    kernel = (target.outer, target.inner, KERNEL, KERNEL)
    weights = [normal(*kernel) * scale for _ in range(2)]
    kept = math.ceil(target.side / STRIDE)
    return (volume(target.inner, target.side), *weights, volume(target.outer, kept))


def architecture_of(device: str) -> int:
    """As `kernels/layout.py` says it to `kernels/tiles.py`."""
    if device == "cpu":
        return tiles.INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@dataclass
class Tuner:
    """Checks candidates side by side, then times the right ones one after the other."""

    device: str
    backend: str
    processes: int
    deadline: float
    worker: Worker

    def measure(self, wanted: list[tuple[Target, Tile]]) -> dict[tuple[Target, Tile], float]:
        """Seconds, infinite where a tile does not compile, is wrong or was not tried in time."""
        where = (self.device, self.backend)
        times = dict.fromkeys(wanted, math.inf)
        right: dict[Target, list[Tile]] = {}

        def done(job: Job, outcome: Outcome) -> None:
            target, tile = job.arguments[:2]
            if outcome.error is None and outcome.value <= 1:
                right.setdefault(target, []).append(tile)

        jobs = [Job(index, check, (*pair, *where)) for index, pair in enumerate(wanted)]
        run_all(jobs, self.processes, self.deadline, done)
        for target, candidates in right.items():
            left = self.deadline - time.monotonic()
            outcome = self.worker.call(seconds_of, target, candidates, *where, timeout=left)
            for tile, seconds in (outcome.value or {}).items():
                times[target, tile] = seconds
        return times


def write_table(path: Path, found: Table, architecture: int) -> None:
    """Write tiles for GPUs of one architecture."""
    entries = [
        {
            "function": name,
            "arguments": [*channels, str(dtype).removeprefix("torch.")],
            **asdict(tile),
        }
        for (name, *channels, dtype, _), tile in found.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"architecture": architecture, "tiles": entries})


def report(times: Times, starts: dict[Target, Tile]) -> str:
    """What was chosen, what is fastest, and by how much."""
    lines = []
    for target, tried in times.items():
        name = " ".join(str(part).removeprefix("torch.") for part in target.choice)
        working = {tile: seconds for tile, seconds in tried.items() if math.isfinite(seconds)}
        before = working.get(starts[target])
        if before is None:
            lines.append(f"{name}: the chosen tile was not timed")
            continue
        fastest = min(working, key=lambda tile, working=working: working[tile])
        after = working[fastest]
        lines.append(
            f"{name}: {1e3 * before:.4f} ms, fastest of {len(working)} {1e3 * after:.4f} ms "
            f"({before / after:.2f}x) with {fastest}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--workloads", nargs="+", default=["T12x8", "T6", "T4"], choices=WORKLOADS)
    parser.add_argument("--budget", type=float, default=300, help="seconds")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--processes", type=int, help="that compile and check side by side")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print, write."""
    given = parse(arguments)
    workloads = [replace(WORKLOADS[name], batch=BATCH) for name in given.workloads]
    architecture = architecture_of(given.device)
    starts = {
        target: target.default(architecture)
        for dtype in given.dtype
        for target in targets(workloads, dtype)
    }
    processes = given.processes or min(MOST_PROCESSES, sharing.cores())
    deadline = time.monotonic() + given.budget
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)
        worker = Worker()
        tuner = Tuner(given.device, "triton", processes, deadline, worker)
        times = search(starts, tuner.measure, lambda: time.monotonic() > deadline)
        worker.close()
    print(report(times, starts))
    found = faster(times, starts, architecture)
    write_table(given.out, found, architecture)
    print(f"{given.out}: {len(found)} of {len(starts)} gain more than {GAIN:.0%}")


if __name__ == "__main__":
    main()
