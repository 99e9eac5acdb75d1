"""What the Triton kernels of an earlier commit execute, by today's counter.

    git worktree add --detach runs/kernels-before 36957f0
    PYTHONPATH=. python benchmarks/gpu_counts_before.py runs/kernels-before --arch 80 90 100

The commit is the last one before the kernels were rewritten to execute fewer instructions.
Workloads, compiler and assumptions are today's, so that only the kernels differ from
`python -m fsdino.bench.counted`, whose options it takes: `--arch`, `--workload`, `--dtype` and
`--record`.
"""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import record

import fsdino


def take_kernels(folder: Path) -> None:
    """Make `fsdino.kernels` that of another checkout; everything else stays this one's."""
    fsdino.__path__.insert(0, str(folder))
    found = importlib.import_module("fsdino.kernels")
    fsdino.__path__.remove(str(folder))
    assert [*found.__path__] == [str(folder / "kernels")]


def describe_kernels(counted: Any) -> None:
    """Tell the counter how often the loops of those kernels run, and what they multiply.

    A launch of the walk had its number of taps as an argument, since each class of positions had a
    launch of its own; a program of the weights' gradients had one tap.
    """

    def steps(v: Any) -> float:
        return float(v["taps"] * counted._blocks(v["CI"], v["BLOCK_CI"]))

    def walk_flop(v: Any) -> tuple[float, float]:
        wide = (
            v["p_source"].numel() * v["CO"]
            if v["DIRECTION"] == -1
            else v["p_out"].numel() * v["CI"]
        )
        block = v["BLOCK_ROWS"] * v["BLOCK_CO"] * v["BLOCK_CI"]
        return 2.0 * wide * v["taps"], 2.0 * v["programs"] * block * steps(v)

    weight_flop = counted.FLOP["weight_gradient_kernel"]
    counted.TRIPS["walk_kernel"] = lambda v: [steps(v)]
    counted.TRIPS["mend_edges_kernel"] = lambda v: [0]  # weights are finite
    counted.FLOP["walk_kernel"] = walk_flop
    counted.FLOP["weight_gradient_kernel"] = lambda v: weight_flop({**v, "TAPS": 1})


def main() -> None:
    """Count, with the options of `fsdino.bench.counted`."""
    if len(sys.argv) < 2 or not Path(sys.argv[1], "kernels").is_dir():
        sys.exit("usage: gpu_counts_before.py CHECKOUT [OPTIONS]; CHECKOUT has the folder kernels/")
    folder = Path(sys.argv[1]).resolve()
    take_kernels(folder)
    from fsdino.bench import counted

    describe_kernels(counted)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    create = shlex.join(["git", "worktree", "add", "--detach", sys.argv[1], commit[:7]])
    write = counted.write_record

    def write_record(path: Path, _: str, **facts: Any) -> None:
        write(path, f"{create} && PYTHONPATH=. {record.command()}", kernels=commit, **facts)

    counted.write_record = write_record
    counted.main(sys.argv[2:])


if __name__ == "__main__":
    main()
