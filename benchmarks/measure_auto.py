"""Which backend `auto` should take: `python benchmarks/measure_auto.py`.

Times every backend that can run an op, in turns, without and with gradients to the weights, for
each op, floating type, thread count and size. The record has one entry for each architecture, of
which this call replaces that of the machine that it runs on. From the whole record follows the
table that `auto` reads, fsdino/ops/measured.json: a backend is in it for a class of sizes if it is
faster than the first in order by more than 3 %, and in no measurement of the class slower by more
than 3 %. Results are checked first; `--table-only` writes the table from the record as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import command
from torch import Tensor

from fsdino import ops
from fsdino import processes as sharing
from fsdino.bench import baseline, exactness, workloads
from fsdino.bench.compare import take_turns
from fsdino.bench.record import machine, make_record
from fsdino.bench.workloads import STRIDE, TINY, WORKLOADS, Inputs, Workload
from fsdino.devices import DTYPES
from fsdino.errors import FsdinoError
from fsdino.files import write_json, write_text
from fsdino.ops import backends, eager, measured

RECORD = Path(__file__).resolve().parent / "results" / "auto.json"
GAIN = 0.03
LEAST_ROUNDS = 9
RECTIFIED = ("center_pivot_block4d", "squeeze4d")
LEAST_SECONDS = 0.002  # of one turn: shorter calls are repeated in it
SUITE = {"tiny": TINY} | {name: w for name, w in WORKLOADS.items() if not w.backward}


@dataclass(frozen=True)
class Problem:
    """One op on one part of a workload.

    Attributes:
        op: its name.
        size: elements of its first tensor.
        prepare: (module, inputs, keywords for the backend) -> the call; what precedes it is run.
    """

    op: str
    size: int
    prepare: Callable[[Any, Inputs, dict[str, str]], Callable[[], Tensor]]


def problems(workload: Workload) -> Iterator[Problem]:
    """All ops on a workload: those of features, and those of the volume before each block."""
    tokens = workload.grid**2
    features = workload.batch * workload.layers * workload.channels * tokens
    for op, prepare in (
        ("correlation4d", _correlation),
        ("correlation_center_pivot4d", _fused),
        ("squeeze4d", _squeeze),
    ):
        yield Problem(op, features, prepare)
    channels, side = workload.layers, workload.grid
    for index, outer in enumerate(workload.block_channels):
        size = workload.batch * channels * tokens * side**2
        for op, number in (("center_pivot_conv4d", 3), ("center_pivot_block4d", 5)):
            prepare = functools.partial(_volume_op, op, number, index)
            yield Problem(op, size, prepare)
        channels, side = outer, -(-side // STRIDE)


def _correlation(module: Any, inputs: Inputs, how: dict[str, str]) -> Callable[[], Tensor]:
    return functools.partial(module.correlation4d, *baseline.features(inputs), **how)


def _fused(module: Any, inputs: Inputs, how: dict[str, str]) -> Callable[[], Tensor]:
    tensors = (*baseline.features(inputs), *inputs.blocks[0].tensors()[:3])
    run = module.correlation_center_pivot4d
    return functools.partial(run, *tensors, support_stride=STRIDE, **how)


def _squeeze(module: Any, inputs: Inputs, how: dict[str, str]) -> Callable[[], Tensor]:
    blocks = [(*block.tensors(), STRIDE) for block in inputs.blocks]
    return functools.partial(module.squeeze4d, *baseline.features(inputs), blocks, **how)


def _volume_op(
    op: str, number: int, index: int, module: Any, inputs: Inputs, how: dict[str, str]
) -> Callable[[], Tensor]:
    """A block, or its convolution, on the volume that the same backend leaves before it."""
    with torch.no_grad():
        x = _correlation(module, inputs, how)()
        for block in inputs.blocks[:index]:
            x = module.center_pivot_block4d(x, *block.tensors(), support_stride=STRIDE, **how)
    tensors = inputs.blocks[index].tensors()[:number]
    return functools.partial(getattr(module, op), x, *tensors, support_stride=STRIDE, **how)


def measure(
    workload: Workload, dtype_name: str, threads: int, rounds: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Median seconds of every backend on every op of a workload, the first in order first.

    Raises:
        FsdinoError: a backend's results are wrong.
    """
    dtype = getattr(torch, dtype_name)
    for problem in problems(workload):
        for backward in (False, True):
            if backward and problem.op == "correlation4d":
                continue  # features are frozen
            sized = dataclasses.replace(workload, backward=backward)
            inputs = workloads.make_inputs(sized, device=device, dtype=dtype)
            with sharing.threads(threads), torch.set_grad_enabled(backward):
                seconds = _time(problem, inputs, dtype, rounds, device)
            yield {
                "op": problem.op, "dtype": dtype_name, "workload": workload.name,
                "grid": workload.grid, "size": problem.size, "threads": threads,
                "backward": backward, "rounds": rounds, "median": seconds,
            }  # fmt: skip


def _time(
    problem: Problem, inputs: Inputs, dtype: torch.dtype, rounds: int, device: torch.device
) -> dict[str, float]:
    names = [n for n in backends.names() if backends.why_not(n, problem.op, device, dtype) is None]
    runs = {name: problem.prepare(ops, inputs, {"backend": name}) for name in names}
    exact = exactness.to_double(inputs)
    expected = exactness.step(problem.prepare(ops, exact, {"backend": "reference"}), exact)
    by_eager = exactness.step(problem.prepare(eager, inputs, {}), inputs)
    # The volumes before later blocks are each backend's own, so that errors add up as in a chain.
    allowed = exactness.bounds(by_eager, expected, dtype, chained=problem.op != "correlation4d")
    # Gradients behind a ReLU, whose sign may flip, are checked element by element in tests/ops.
    count = 1 if problem.op in RECTIFIED else len(allowed)
    steps: dict[str, Callable[[], object]] = {}
    for name, run in runs.items():
        found = exactness.step(run, inputs)
        error = exactness.error(found[:count], expected[:count], allowed[:count])
        if not error <= 1:
            raise FsdinoError(f"{name} on {problem.op}, {dtype}: error {error:.2g} of the allowed")
        steps[name] = functools.partial(exactness.step, run, inputs)
    once = take_turns(steps, 1, device, f"try {problem.op}")
    calls = max(1, math.ceil(LEAST_SECONDS / min(min(times) for times in once.values())))

    def turn(step: Callable[[], object]) -> None:
        for _ in range(calls):
            step()

    turns = {name: functools.partial(turn, step) for name, step in steps.items()}
    times = take_turns(turns, rounds, device, f"time {problem.op}")
    return {name: statistics.median(of) / calls for name, of in times.items()}


def table(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of fsdino/ops/measured.json that follow from a record."""
    classes: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for architecture, of in sorted(record.items()):
        for row in of["results"]:
            bits = measured.size_class(row["size"])
            key = (row["op"], row["dtype"], architecture, bits)
            classes.setdefault(key, []).append(row["median"])
    entries = []
    for (op, dtype, architecture, bits), rows in classes.items():
        backend = fastest(rows)
        if backend is not None:
            entries.append({
                "op": op, "dtype": dtype, "architecture": architecture, "size_class": bits,
                "backend": backend,
            })  # fmt: skip
    return entries


def fastest(rows: Sequence[dict[str, float]]) -> str | None:
    """The backend that all measurements of a class speak for; None where the first is as good.

    Args:
        rows: median seconds by backend, the first in order first.
    """
    first = next(iter(rows[0]))
    shared = set.intersection(*(set(row) for row in rows))
    ratios = {name: [row[name] / row[first] for row in rows] for name in sorted(shared)}
    means = {
        name: statistics.geometric_mean(of)
        for name, of in ratios.items()
        if max(of) <= 1 + GAIN and statistics.geometric_mean(of) < 1 - GAIN
    }
    return min(means, key=means.__getitem__, default=None)


def write_table(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """An entry a line."""
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    write_text(path, f"[\n{lines}\n]\n" if entries else "[]\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", default=["tiny", "W4", "W12"], choices=SUITE)
    parser.add_argument(
        "--grids", nargs="+", type=int, default=[10, 19, 37],
        help="sides of the workloads' grids, in tokens; tiny keeps its own",
    )  # fmt: skip
    parser.add_argument("--dtype", nargs="+", default=[*DTYPES], choices=DTYPES)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, sharing.cores()}))
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--table", type=Path, default=measured.FILE)
    parser.add_argument("--table-only", action="store_true", help="from the record as it is")
    given = parser.parse_args(arguments)
    if given.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be at least {LEAST_ROUNDS}, got {given.rounds}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU")
    reason = backends.why_not("cpp", "correlation4d", torch.device("cpu"), torch.float32)
    if given.device == "cpu" and reason is not None and not given.table_only:
        parser.error(f"the backend cpp is missing: {reason}")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, record, write the table."""
    given = parse(arguments)
    record = json.loads(given.record.read_text()) if given.record.is_file() else {}
    if not given.table_only:
        device = torch.device(given.device)
        name = measured.architecture(device)
        assert name is not None
        rows = []
        for dtype in given.dtype:
            for workload in _sized(given.workloads, given.grids):
                for threads in given.threads if given.device == "cpu" else given.threads[:1]:
                    for row in measure(workload, dtype, threads, given.rounds, device):
                        print(_line(row), flush=True)
                        rows.append(row)
                    record[name] = make_record(command(), machine=machine(), results=rows)
                    given.record.parent.mkdir(parents=True, exist_ok=True)
                    write_json(given.record, record)
    entries = table(record)
    write_table(given.table, entries)
    print(f"{given.table}: {len(entries)} classes of sizes where another backend is faster")


def _sized(names: Sequence[str], grids: Sequence[int]) -> Iterator[Workload]:
    for name in names:
        for grid in [SUITE[name].grid] if name == "tiny" else grids:
            yield dataclasses.replace(SUITE[name], grid=grid)


def _line(row: dict[str, Any]) -> str:
    what = f"{row['op']}{', backward' if row['backward'] else ''}"
    where = f"{row['dtype']}, {row['workload']} at {row['grid']}, {row['threads']} threads"
    times = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in row["median"].items())
    return f"{what}, {where}: {times}"


if __name__ == "__main__":
    main()
