"""What the kernels of a backend compile to, without a GPU: `python -m fsdino.bench.inspect`.

`triton` or `cuda` chooses the backend; the report is the same for both. Registers, shared memory,
tensor-core instructions, background copies, and in loops that multiply integer divisions ("div")
and loads of 2 bytes ("ld16") are read from the machine code. The exit status is 1 where a kernel
must not be shipped; the last column says why.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import torch

from fsdino.bench.compiled import Row
from fsdino.bench.workloads import WORKLOADS
from fsdino.devices import DTYPES, find_dtype


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where a kernel has a problem."""
    given, parser = _parse(arguments)
    found = _triton(given, parser) if given.backend == "triton" else _cuda(given, parser)
    collected = _json(found) if given.json else _table(found)
    return 1 if any(row.problems for row in collected) else 0


def _parse(arguments: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(prog="python -m fsdino.bench.inspect", description=__doc__)
    backends = parser.add_subparsers(dest="backend", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--arch", nargs="+", help="compute capabilities, as in 80 or 90a")
    shared.add_argument("--json", action="store_true", help="a list of rows instead of a table")
    triton = backends.add_parser("triton", parents=[shared], help="kernels/")
    triton.add_argument("--only", default="", help="kernels whose name begins with this")
    triton.add_argument("--dtype", nargs="+", default=["bfloat16", "float16"], choices=DTYPES)
    triton.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, help="what launches the kernels"
    )
    cuda = backends.add_parser("cuda", parents=[shared], help="csrc/cuda/")
    cuda.add_argument("--only", default="", help="files whose name begins with this")
    return parser.parse_args(arguments), parser


def _triton(given: argparse.Namespace, parser: argparse.ArgumentParser) -> Iterator[Row]:
    try:
        import triton

        from fsdino.bench import inspect_triton
    except ImportError as error:
        parser.error(f"{error}: install Triton")
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET=1 compiles nothing: unset it")
    names = given.workload or inspect_triton.CHAINS
    dtypes = [find_dtype(name) for name in given.dtype]
    architectures = [int(name) for name in given.arch or inspect_triton.ARCHITECTURES]
    return inspect_triton.rows(names, dtypes, architectures, given.only)


def _cuda(given: argparse.Namespace, parser: argparse.ArgumentParser) -> Iterator[Row]:
    from fsdino.bench import inspect_cuda
    from fsdino.csrc import flags

    toolkit = flags.cuda(torch.version.cuda, [flags.OLDEST_ARCHITECTURE])
    if isinstance(toolkit, str):
        parser.error(toolkit)
    return inspect_cuda.rows(toolkit, given.arch or inspect_cuda.ARCHITECTURES, given.only)


def _json(found: Iterable[Row]) -> list[Row]:
    collected = list(found)
    json.dump([asdict(row) for row in collected], sys.stdout, indent=1)
    sys.stdout.write("\n")
    return collected


def _table(found: Iterable[Row]) -> list[Row]:
    """Print each row as soon as it is known."""
    line = "{:28} {:6} {:>5} {:>5} {:>7} {:>7} {:8} {:>5} {:>4} {:>4}  {}"
    heads = (
        "kernel", "arch", "regs", "stack", "spilled", "shared", "mma", "async", "div", "ld16",
        "variant",
    )  # fmt: skip
    sys.stdout.write(line.format(*heads) + "\n")
    collected = []
    for row in found:
        collected.append(row)
        cells = (
            row.kernel, row.arch, row.registers, row.stack, row.spilled, row.shared, row.mma or "-",
            row.async_copies, row.divisions, row.narrow_loads,
            "; ".join([row.variant, *row.problems]),
        )  # fmt: skip
        sys.stdout.write(line.format(*cells).rstrip() + "\n")
        sys.stdout.flush()
    return collected


if __name__ == "__main__":
    sys.exit(main())
