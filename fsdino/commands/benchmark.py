"""`fsdino benchmark`: its options."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from fsdino.commands.options import Dtype, Flag, Json, Number, check_range
from fsdino.devices import check_device, check_dtype, find_device, find_dtype


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
    """Only these backends; default: all that can run here."""
    threads: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")
    ] = ()
    """CPU threads; several are timed one after the other. Default: as PyTorch chooses."""
    foreground: Number = None
    """Share of support tokens of weight 1, the rest 0; default: weights +1 and -1."""
    memory: Flag = False
    """Also measure peak memory on the CPU, each backend in a separate process."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU if there is one."""
    dtype: Dtype = "float32"
    """Floating type of all inputs."""
    rounds: int = 5
    """Rounds in which every backend runs once."""
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
        from fsdino.bench.workloads import check_part, find_workloads

        for part in self.parts:
            check_part(part)
        workloads = find_workloads(self.workloads)
        from fsdino.bench import compare
        from fsdino.bench.table import print_comparison
        from fsdino.environment import environment

        device, dtype = find_device(self.device), find_dtype(self.dtype)
        comparisons = []
        for workload in workloads:
            bench = compare.Bench(workload, device=device, dtype=dtype, foreground=self.foreground)
            for part, threads in itertools.product(self.parts, self.threads or (None,)):
                comparison = bench.compare(
                    part,
                    threads=threads,
                    rounds=self.rounds,
                    only=self.backends,
                    measure_memory=self.memory,
                )
                comparisons.append(comparison)
                if not self.as_json:
                    print_comparison(comparison)
        if self.as_json:
            rows = [comparison.to_dict() for comparison in comparisons]
            print(json.dumps({"environment": environment(), "workloads": rows}))
        compare.check_passed(comparisons)
        return 0
