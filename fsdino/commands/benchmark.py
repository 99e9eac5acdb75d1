"""`fsdino benchmark`: its options."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fsdino.commands.options import Device, Dtype, File, Flag, Json, Number, check_range
from fsdino.devices import check_device, check_dtype, find_device, find_dtype
from fsdino.errors import UsageError

if TYPE_CHECKING:
    from fsdino.bench.compare import Comparison
    from fsdino.bench.workloads import Workload


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time the 4D ops on standard workloads: every backend compared with the eager baseline.

    Results are checked against float64 first; backends take turns in one process, and medians
    are compared. W4, W6 and W12 have 4, 6 and 12 layers, W12x8 a batch of 8, HR a 74 x 74 grid;
    T... are the same with a backward pass. GFLOP/s count the operations of the eager formulation;
    sgemm is a large matrix product, timed in the same turns.
    """

    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("W6",)
    """Which workloads."""
    parts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("chain",)
    """Of chain, correlation, blocks, blocks-contiguous, fused-block and fused-chain."""
    backends: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")
    ] = ()
    """Only these backends, or auto: what a call takes that names none; default: all that can run
    here."""
    threads: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")
    ] = ()
    """CPU threads; several are timed one after the other. Default: as PyTorch chooses."""
    foreground: Number = None
    """Share of support tokens of weight 1, the rest 0; default: weights +1 and -1."""
    memory: Flag = False
    """Also measure peak memory on the CPU, each backend in a separate process."""
    device: Device = "auto"
    dtype: Dtype = "float32"
    """Floating type of all inputs; on a CPU the baseline runs float16 by way of float32."""
    rounds: int = 5
    """Rounds in which every backend runs once."""
    compile: Flag = False
    """Also time torch.compile of the eager baseline, compiled before for each thread count."""
    record: File = None
    """JSON file to write: command, versions, machine, and all results with their medians."""
    plot: File = None
    """Picture to write (.svg or .png): also time the chain of the first workload on grids of 19, 37
    and 74 tokens a side, in float32 and bfloat16: eager, compiled, and the first of the backends or
    the one that auto takes. 74 needs several GB. Needs the extra fsdino[plot]."""
    as_json: Json = False
    """Print the results as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        check_dtype(self.dtype)
        check_device(self.device)
        check_range("--foreground", self.foreground, 0, 1)
        check_range("--rounds", self.rounds, 1)
        for count in self.threads:
            check_range("--threads", count, 1)
        from fsdino.bench.plot import check_file
        from fsdino.bench.workloads import check_part, find_workloads

        for part in self.parts:
            check_part(part)
        workloads = find_workloads(self.workloads)
        if self.record is not None and self.record.is_dir():
            raise UsageError(f"--record {self.record}: a file is needed, this is a folder")
        if self.plot is not None:
            check_file(self.plot)
        comparisons = self._compare(workloads)
        if self.plot is not None:
            comparisons += self._draw(workloads[0], self.plot)
        self._report(comparisons)
        return 0

    def _compare(self, workloads: list[Workload]) -> list[Comparison]:
        """What was asked for, each as a table once it is measured."""
        from fsdino.bench.compare import Bench
        from fsdino.bench.table import print_comparison

        device, dtype = find_device(self.device), find_dtype(self.dtype)
        comparisons = []
        for workload in workloads:
            bench = Bench(workload, device=device, dtype=dtype, foreground=self.foreground)
            for part, threads in itertools.product(self.parts, self.threads or (None,)):
                comparison = bench.compare(
                    part,
                    threads=threads,
                    rounds=self.rounds,
                    only=self.backends,
                    compiled=self.compile,
                    measure_memory=self.memory,
                )
                comparisons.append(comparison)
                if not self.as_json:
                    print_comparison(comparison)
        return comparisons

    def _draw(self, workload: Workload, file: Path) -> list[Comparison]:
        """The picture, from measurements of its own, which are returned."""
        from fsdino.bench import plot
        from fsdino.bench.table import print_comparison
        from fsdino.environment import devices

        device = find_device(self.device)
        points = plot.measure(
            workload,
            device=device,
            rounds=self.rounds,
            threads=self.threads[-1] if self.threads else None,
            foreground=self.foreground,
            backend=self.backends[0] if self.backends else "auto",
        )
        name = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
        plot.draw(points, file, devices()[name])
        for comparison in () if self.as_json else points.values():
            print_comparison(comparison)
        return [*points.values()]

    def _report(self, comparisons: list[Comparison]) -> None:
        """The record, JSON on stdout, and an error where results were wrong."""
        from fsdino.bench.compare import check_passed
        from fsdino.bench.record import write_comparisons
        from fsdino.environment import environment

        if self.record is not None:
            write_comparisons(self.record, shlex.join(["fsdino", *sys.argv[1:]]), comparisons)
        if self.as_json:
            rows = [comparison.to_dict() for comparison in comparisons]
            print(json.dumps({"environment": environment(), "workloads": rows}))
        check_passed(comparisons)
