"""What the Triton kernels execute on the standard workloads, counted from their machine code.

`python -m fsdino.bench.counted --workload W12x8 --arch 90` prints every launch, without a GPU.
Nothing here is a time: `Count.bound` is what a launch takes at least, under the assumptions that
are written below. `--record FILE` writes the budgets that a test holds the kernels to.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from fsdino.bench.compiled import Code
from fsdino.bench.executed import store_sectors
from fsdino.bench.inspect_triton import ARCHITECTURES, Launch, chain, compiled, recorded
from fsdino.bench.record import write_record
from fsdino.bench.workloads import WORKLOADS, Workload
from fsdino.devices import find_dtype
from fsdino.kernels.statistics import BUNCH as _BUNCH

NAMES = ("W6", "W12", "W12x8", "T12x8", "HR")

# An H200: products in half precision and bytes from its memory as other kernels reach them; bytes
# from its L2 cache and the clock are assumed.
ASSUMED = {
    "flop_a_second": 790e12,
    "memory_bytes_a_second": 4.3e12,
    "l2_bytes_a_second": 7e12,
    "schedulers": 132 * 4,
    "clock": 1.75e9,
}

BUNCH: int = _BUNCH.value

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Count:
    """One launch.

    Attributes:
        kernel: its name.
        variant: what is compiled in.
        programs: how many run.
        warps: of one of them.
        instructions: that a warp of a program issues.
        flop: of the definition, 2 for each multiply-add; 0 where nothing is multiplied.
        executed: with the padding of tiles and what is masked.
        memory: bytes, each tensor once.
        l2: bytes that pass through the L2 cache, as if there were none before it: copies to shared
            memory, but for the padding of tiles, and stores; at least `memory`.
        resident: programs that fit on a multiprocessor at a time.
        code: bytes of its machine code.
        sectors: bytes of the 32-byte sectors that a store of a warp touches, over the bytes that it
            stores; 0 for kernels that store little.
    """

    kernel: str
    variant: str
    programs: int
    warps: int
    instructions: float
    flop: float
    executed: float
    memory: float
    l2: float
    resident: int
    code: int
    sectors: float = 0.0

    @property
    def all_instructions(self) -> float:
        """Of the whole launch."""
        return self.programs * self.warps * self.instructions

    @property
    def bound(self) -> float:
        """Seconds: the longest of multiplying, moving bytes and issuing instructions."""
        return max(
            self.executed / ASSUMED["flop_a_second"],
            self.memory / ASSUMED["memory_bytes_a_second"],
            self.l2 / ASSUMED["l2_bytes_a_second"],
            self.all_instructions / (ASSUMED["schedulers"] * ASSUMED["clock"]),
        )


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _correlation_trips(v: Values) -> list[float]:
    layers = v["LAYERS"]
    steps = v["L"] / (layers * _blocks(v["L"], layers)) * _blocks(v["C"], v["BLOCK_C"])
    return [steps] if layers == 1 else [layers, steps]


def _matrices_trips(v: Values) -> list[float]:
    if v["p_arrivals"] is None:
        return []
    return [_blocks(v["arrivals"], v["BLOCK"]) / v["programs"]]


def _walk_steps(v: Values) -> float:
    """Steps of a program; going back the mean over the classes, which have as many programs."""
    kernel_query, kernel = v["KERNEL_QUERY"], v["KERNEL_SUPPORT"]
    taps = float(kernel_query**2 + kernel**2)
    if v["DIRECTION"] == -1:
        taps /= min(v["STRIDE"], v["out_rows"]) * min(v["STRIDE"], v["out_columns"])
    return taps * _blocks(v["CI"], v["BLOCK_CI"])


def _walk_trips(v: Values) -> list[float]:
    """Those of the taps, and with statistics of two passes over the bunches of a sample."""
    passes = [_blocks(_blocks(v["tiles_of_sample"], BUNCH), BUNCH)] * 2 if v["GROUPS"] else []
    return [_walk_steps(v), *passes]


def _walk_arrivals(v: Values) -> list[float]:
    """Share of the programs that merge a bunch of tiles, and that merge the bunches of a sample."""
    if not v["GROUPS"]:
        return []
    tiles = v["tiles_of_sample"]
    arriving = tiles * _blocks(v["CO"], v["BLOCK_CO"])
    return [_blocks(tiles, BUNCH) / arriving, 1 / arriving]


# Trips of each loop of a kernel in the order of the source, by what it was called with.
TRIPS: dict[str, Callable[[Values], list[float]]] = {
    "tokens_kernel": lambda v: [_blocks(v["C"], v["BLOCK_C"])],
    "matrices_kernel": _matrices_trips,
    "correlation_kernel": _correlation_trips,
    "walk_kernel": _walk_trips,
    "mend_edges_kernel": lambda v: [_blocks(v["flags"], v["BLOCK"]), 0, 0],  # weights are finite
    "weight_gradient_kernel": lambda v: [v["tiles_in_all"] / _splits(v)],
    "weight_sums_kernel": lambda v: [_blocks(v["splits"], v["BLOCK_SPLITS"])],
    "gradient_sums_kernel": lambda v: [v["share"]],
    "gradient_kernel": lambda v: [v["share"]],
    "merge_kernel": lambda v: [
        _blocks(v["shares"], v["BLOCK_SHARES"]),
        _blocks(v["batches"], v["BLOCK_SHARES"]),
    ],
    "normalise_mean_kernel": lambda v: [_blocks(v["kept"], v["BLOCK_ROWS"])],
}

# And what share of its programs goes on behind each atomic instruction.
ARRIVALS: dict[str, Callable[[Values], list[float]]] = {
    "walk_kernel": _walk_arrivals,
    "merge_kernel": lambda v: [1 / v["batches"]],
}


def _splits(v: Values) -> int:
    return _blocks(v["tiles_in_all"], v["tiles_in_split"])


def _correlation_flop(v: Values) -> tuple[float, float]:
    batch, layers = v["p_query"].shape[:2]
    padded = _blocks(v["C"], v["BLOCK_C"]) * v["BLOCK_C"] * v["BLOCK_QUERY"] * v["BLOCK_SUPPORT"]
    tiles = v["programs"] / _blocks(layers, v["LAYERS"]) * layers
    return 2.0 * batch * layers * v["N"] * v["M"] * v["C"], 2.0 * tiles * padded


def _walk_flop(v: Values) -> tuple[float, float]:
    out = v["p_out"]
    taps = v["KERNEL_QUERY"] ** 2 + v["KERNEL_SUPPORT"] ** 2
    if v["DIRECTION"] == 1:
        useful = 2.0 * out.numel() * v["CI"] * taps
    else:
        useful = 2.0 * v["p_source"].numel() * v["CO"] * taps
    step = v["BLOCK_ROWS"] * v["BLOCK_CO"] * v["BLOCK_CI"]
    return useful, 2.0 * v["programs"] * step * _walk_steps(v)


def _weight_flop(v: Values) -> tuple[float, float]:
    grad = v["p_grad"]
    step = v["BLOCK_ROWS"] * v["BLOCK_CO"] * v["BLOCK_CI"]
    executed = 2.0 * v["programs"] / _splits(v) * v["tiles_in_all"] * step
    return 2.0 * grad.numel() * v["CI"] * v["taps"], executed * v["TAPS"]


FLOP: dict[str, Callable[[Values], tuple[float, float]]] = {
    "correlation_kernel": _correlation_flop,
    "walk_kernel": _walk_flop,
    "weight_gradient_kernel": _weight_flop,
}


def _item(v: Values) -> int:
    return int(v["p_out"].element_size())


def _walk_stores(v: Values) -> tuple[int, int]:
    apart = v["STRIDE"] if v["DIRECTION"] == -1 else 1  # positions of a class
    return min(v["BLOCK_CO"], v["CO"]) * _item(v), apart * v["CO"] * _item(v)


# Bytes that a kernel stores side by side, and from where they begin to where the next ones do.
# Triton lets the lanes of a warp store in the order of memory.
STORES: dict[str, Callable[[Values], tuple[int, int]]] = {
    "correlation_kernel": lambda v: (v.get("LAYERS", 1) * _item(v), v["L"] * _item(v)),
    "walk_kernel": _walk_stores,
    "weight_gradient_kernel": lambda v: (4 * min(v["BLOCK_CO"], v["CO"]), 4 * v["CO"]),
    "normalise_kernel": lambda v: (v["C"] * _item(v), v["C"] * _item(v)),
    "normalise_mean_kernel": lambda v: (_item(v), v["tokens"] * _item(v)),
    "gradient_kernel": lambda v: (v["C"] * _item(v), v["C"] * _item(v)),
}


def counts(workload: Workload, dtype: torch.dtype, architecture: int) -> Iterator[Count]:
    """Every launch of a workload's chain, in order; going back, without the features' gradients."""
    for launch in recorded(lambda: chain(workload, dtype), architecture).kernels:
        yield count(launch, architecture)


_compiled: dict[tuple[Any, ...], tuple[Code, int]] = {}


def count(launch: Launch, architecture: int) -> Count:
    """One launch, compiled and counted.

    Raises:
        ValueError: the machine code has other loops than the source.
    """
    key = (launch.key, architecture)
    if key not in _compiled:
        _compiled[key] = compiled(launch, architecture)
    code, shared = _compiled[key]
    name, values = launch.kernel.__name__, launch.arguments
    trips = TRIPS[name](values) if name in TRIPS else []
    arrivals = ARRIVALS[name](values) if name in ARRIVALS else []
    copying = 1.0
    if len(code.instructions.loops) == len(trips) - 1:
        # The first is unrolled. Its last copies are those of steps that there are not, and copy
        # nothing.
        ahead = int(dict(launch.options)["num_stages"]) - 1
        copying, trips = trips[0] / (trips[0] + ahead), trips[1:]
    try:
        done = code.instructions.executed(trips, arrivals)
    except ValueError as error:
        raise ValueError(f"{name}, {launch.tile}, sm_{architecture}: {error}") from None
    warps = int(dict(launch.options)["num_warps"])
    programs = values["programs"]
    flop, executed = FLOP[name](values) if name in FLOP else (0.0, 0.0)
    memory = sum(_bytes(value) for value in values.values() if isinstance(value, Tensor))
    if name == "mend_edges_kernel":  # ends at once
        memory = 0
    width = code.instructions.widest_store()
    sectors = store_sectors(width, *STORES[name](values)) if name in STORES else 0.0
    moved = (copying * done.copied + done.stored) * warps * programs
    return Count(
        kernel=name,
        variant=launch.tile,
        programs=programs,
        warps=warps,
        instructions=done.instructions,
        flop=flop,
        executed=executed,
        memory=memory,
        l2=max(memory, moved * flop / executed) if executed else memory,
        resident=resident(code.registers, shared, warps, architecture),
        code=code.size,
        sectors=sectors,
    )


def resident(registers: int, shared: int, warps: int, architecture: int) -> int:
    """Programs that fit on a multiprocessor by registers, shared memory and warps."""
    of_memory = {80: 164, 90: 228, 100: 228}[architecture] * 1024
    by_registers = 65536 // (_blocks(registers, 8) * 8 * 32 * warps)
    return min(by_registers, of_memory // (shared + 1024), 64 // warps, 32)


def _bytes(tensor: Tensor) -> int:
    """That lie in memory: an expanded dimension counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()


def budget(row: Count) -> dict[str, Any]:
    """What a launch may cost, for the record."""
    return {
        "kernel": row.kernel,
        "variant": row.variant,
        "instructions": round(row.all_instructions),
        "l2": round(row.l2),
        "microseconds": round(1e6 * row.bound, 2),
    }


def table(found: Iterable[Count]) -> str:
    """A line for each launch, and their sums."""
    line = "{:24}{:>9}{:>6}{:>8}{:>9}{:>8}{:>7}{:>8}{:>8}{:>9}{:>8}{:>6}{:>7}{:>8}  {}"
    heads = (
        "kernel", "programs", "warps", "instr.", "M instr.", "/kFLOP", "useful", "MB", "L2 MB",
        "FLOP/L2", "sectors", "fit", "code", "bound", "variant",
    )  # fmt: skip
    lines, bound, instructions = [line.format(*heads)], 0.0, 0.0
    for row in found:
        bound += row.bound
        instructions += row.all_instructions
        cells = (
            row.kernel, row.programs, row.warps, f"{row.instructions:.0f}",
            f"{row.all_instructions / 1e6:.2f}",
            f"{1e3 * row.all_instructions / row.flop:.2f}" if row.flop else "",
            f"{row.flop / row.executed:.2f}" if row.executed else "",
            f"{row.memory / 1e6:.0f}", f"{row.l2 / 1e6:.0f}",
            f"{row.executed / row.l2:.0f}" if row.executed else "",
            f"{row.sectors:.2f}" if row.sectors else "", row.resident, row.code,
            f"{1e3 * row.bound:.3f}", row.variant,
        )  # fmt: skip
        lines.append(line.format(*cells))
    lines.append(f"{instructions / 1e6:.1f} M warp instructions, bound {1e3 * bound:.3f} ms")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the counts, or write them."""
    parser = argparse.ArgumentParser(
        prog="python -m fsdino.bench.counted", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--workload", nargs="+", default=NAMES, choices=WORKLOADS)
    parser.add_argument("--arch", nargs="+", type=int, default=[90], choices=ARCHITECTURES)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--record", type=Path, help="JSON file to write, as in benchmarks/results/")
    given = parser.parse_args(arguments)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for architecture in given.arch:
        for name in given.workload:
            found = list(counts(WORKLOADS[name], find_dtype(given.dtype), architecture))
            sys.stdout.write(f"{name} on sm_{architecture}, {given.dtype}\n{table(found)}\n\n")
            sys.stdout.flush()
            rows.setdefault(f"sm_{architecture}", {})[name] = [budget(row) for row in found]
    if given.record:
        words = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", "-m", "fsdino.bench.counted", *words])
        write_record(
            given.record, command, dtype=given.dtype, triton=triton.__version__, assumed=ASSUMED,
            counts=rows,
        )  # fmt: skip


if __name__ == "__main__":
    main()
