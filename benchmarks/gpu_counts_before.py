"""What the Triton kernels of an earlier commit execute, by today's counter.

    git worktree add --detach runs/kernels-before 36957f0
    PYTHONPATH=. python benchmarks/gpu_counts_before.py runs/kernels-before --arch 80 90 100

The commit is the last one before the kernels were rewritten to execute fewer instructions.
Workloads, compiler and assumptions are today's, so that only the kernels differ from
`python -m fsdino.bench.counted`, whose options it takes: `--arch`, `--workload`, `--dtype` and
`--record`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import record

import fsdino


def take_kernels(folder: Path) -> None:
    """Make `fsdino.kernels` that of another checkout; everything else stays this one's.

    That one had no function for the chain, so that its parts are called one by one, and no bunches.
    """
    spec = PathFinder.find_spec("fsdino.kernels", [str(folder)])
    assert spec is not None and spec.loader is not None
    found = sys.modules["fsdino.kernels"] = fsdino.kernels = module_from_spec(spec)
    spec.loader.exec_module(found)
    assert [*found.__path__] == [str(folder / "kernels")]
    from fsdino.kernels import center_pivot, correlation

    def squeeze4d(query: Any, support: Any, weight: Any, *others: Any) -> None:
        *columns, groups, norm_eps, eps = others
        x = correlation.correlation4d(query, support, weight, eps)
        for index, (*tensors, stride) in enumerate(zip(*columns, strict=True), start=1):
            settings = (groups, norm_eps, stride, index == len(columns[0]), False)
            x, *_ = center_pivot.center_pivot_block4d(x, *tensors, *settings)

    lacking = {
        "squeeze": {"squeeze4d": squeeze4d},
        "statistics": {"BUNCH": SimpleNamespace(value=1)},
    }
    for name, attributes in lacking.items():
        module = sys.modules[f"fsdino.kernels.{name}"] = ModuleType(name)
        vars(module).update(attributes)
        setattr(found, name, module)


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

    def correlation_trips(v: Any) -> list[float]:
        layers = v.get("LAYERS", 1)
        useful = v["L"] / (layers * counted._blocks(v["L"], layers))
        return [useful * counted._blocks(v["C"], v["BLOCK_C"])] * layers

    weight_flop = counted.FLOP["weight_gradient_kernel"]
    counted.TRIPS["walk_kernel"] = lambda v: [steps(v)]
    counted.TRIPS["correlation_kernel"] = correlation_trips
    counted.TRIPS["mend_edges_kernel"] = lambda v: [0]  # weights are finite
    counted.TRIPS["lengths_kernel"] = lambda v: [counted._blocks(v["C"], v["BLOCK_C"])]
    counted.TRIPS["statistics_kernel"] = lambda v: (
        [counted._blocks(v["row_tiles"] * v["GROUP"], v["BLOCK"])] * 2
    )
    for kernel in ("gradient_sums_kernel", "gradient_kernel"):  # had no loop
        counted.TRIPS.pop(kernel, None)
    counted.ARRIVALS.clear()
    counted.STORES.clear()
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
