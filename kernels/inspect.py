"""What the kernels compile to, without a GPU: `python -m fsdino.kernels.inspect`.

The backend's functions run on tensors without memory, over the standard workloads, and their
launches are recorded instead of made. Each is compiled for each architecture, and its cubin is read
with the `cuobjdump` that ships inside Triton.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fsdino.bench import workloads as standard
from fsdino.bench.workloads import Workload
from fsdino.kernels import center_pivot, correlation, fused, layout, tiles

ARCHITECTURES = (80, 90, 100)
WORKLOADS = ("W4", "W6", "W12", "W12x8", "HR", "T12")
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # a program's, at most
_TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8",
}  # fmt: skip
_MMA = re.compile(r"\b(HMMA|HGMMA|UTCHMMA)\b")
_ASYNC_COPY = re.compile(r"\b(LDGSTS|UTMALDG|UBLKCP)\b")


@dataclass(frozen=True)
class Launch:
    """One kernel as a call would compile it.

    Attributes:
        kernel: the Triton function.
        signature: type of each argument.
        constants: what is compiled in: constexprs, None, and integers that are 1.
        divisible: positions of the arguments that 16 divides.
        options: of the compiler: warps, pipeline stages.
    """

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, int | bool], ...]

    @property
    def tile(self) -> str:
        """Its block sizes, and what else distinguishes it."""
        shown = [f"{k}={v}" for k, v in self.constants if k.isupper() and k != "INDEX"]
        return " ".join([self.dtype, *shown])

    @property
    def dtype(self) -> str:
        """Of the first argument, which is the data."""
        return self.signature[0][1].lstrip("*")

    @property
    def key(self) -> tuple[Any, ...]:
        """Launches alike in this differ at most in which integers are round."""
        upper = tuple((k, str(v)) for k, v in self.constants if k.isupper())
        pointers = tuple(kind for _, kind in self.signature if kind.startswith("*"))
        return (self.kernel.__name__, upper, pointers, self.options)


@dataclass(frozen=True)
class Row:
    """What one kernel compiled to.

    Attributes:
        kernel: its name.
        arch: compute capability, as in sm_80.
        tile: data type, block sizes and what else is compiled in.
        registers: of a thread.
        stack: bytes of a thread, which spilled.
        shared: bytes of a program.
        mma: tensor-core instructions by name, or "".
        async_copies: instructions that copy to shared memory in the background.
        warps: of a program.
    """

    kernel: str
    arch: str
    tile: str
    registers: int
    stack: int
    shared: int
    mma: str
    async_copies: int
    warps: int

    @property
    def half_dot(self) -> bool:
        """Whether it multiplies float16 or bfloat16 matrices, and so wants tensor cores."""
        return "PRECISION=" in self.tile and not self.tile.startswith("fp32")

    def problems(self) -> list[str]:
        """Why this must not be shipped."""
        found = []
        if self.stack:
            found.append(f"{self.stack} bytes of stack")
        if self.shared > SHARED_BYTES[int(self.arch.removeprefix("sm_"))]:
            found.append(f"{self.shared} bytes of shared memory")
        if self.half_dot and not self.mma:
            found.append("no tensor-core instruction")
        return found


def launches(workload: Workload, dtype: torch.dtype, architecture: int) -> list[Launch]:
    """Every launch of a workload: the chain, the fused first block, and where it says backward
    their gradients, those to the features included."""
    recorded: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        recorded.append(_launch(kernel, args, settings))

    token = layout.planned.set(architecture)
    try:
        with mock.patch.object(triton.runtime.jit.JITFunction, "run", record):
            _run(workload, dtype)
    finally:
        layout.planned.reset(token)
    return list({launch.key: launch for launch in recorded}.values())


def compile_launch(launch: Launch, architecture: int) -> Row:
    """Compile a launch for an architecture and read what came out."""
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(index,): [["tt.divisibility", 16]] for index in launch.divisible},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=dict(launch.options)
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage, sass = _cuobjdump("-res-usage", cubin), _cuobjdump("-sass", cubin)
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    mma = sorted(set(_MMA.findall(sass)))
    return Row(
        kernel=launch.kernel.__name__, arch=f"sm_{architecture}", tile=launch.tile,
        registers=registers, stack=stack, shared=compiled.metadata.shared, mma=" ".join(mma),
        async_copies=len(_ASYNC_COPY.findall(sass)), warps=dict(launch.options)["num_warps"],
    )  # fmt: skip


def rows(
    workloads: Iterable[str],
    dtypes: Iterable[torch.dtype],
    architectures: Iterable[int],
    only: str = "",
) -> Iterator[Row]:
    """Compile every kernel that the workloads launch and whose name begins with `only`."""
    for architecture in architectures:
        seen: dict[tuple[Any, ...], Launch] = {}
        for dtype in dtypes:
            for name in workloads:
                for launch in launches(standard.WORKLOADS[name], dtype, architecture):
                    seen.setdefault(launch.key, launch)
        for launch in seen.values():
            if launch.kernel.__name__.startswith(only):
                yield compile_launch(launch, architecture)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where a kernel spills, or lacks tensor cores or shared memory."""
    parser = argparse.ArgumentParser(prog="python -m fsdino.kernels.inspect", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--workload", nargs="+", default=WORKLOADS, choices=standard.WORKLOADS)
    parser.add_argument("--only", default="", help="kernels whose name begins with this")
    parser.add_argument("--json", action="store_true", help="a list of rows instead of a table")
    given = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET=1 compiles nothing: unset it")
    dtypes = [getattr(torch, name) for name in given.dtype]
    found = rows(given.workload, dtypes, given.arch, given.only)
    collected = _json(found) if given.json else _table(found)
    return 1 if any(row.problems() for row in collected) else 0


def _json(found: Iterable[Row]) -> list[Row]:
    collected = list(found)
    json.dump([asdict(row) for row in collected], sys.stdout, indent=1)
    sys.stdout.write("\n")
    return collected


def _table(found: Iterable[Row]) -> list[Row]:
    """Print each row as soon as it is known."""
    line = "{:28} {:6} {:>5} {:>5} {:>7} {:8} {:>5} {:>5}  {}"
    heads = ("kernel", "arch", "regs", "stack", "shared", "mma", "async", "warps", "tile")
    sys.stdout.write(line.format(*heads) + "\n")
    collected = []
    for row in found:
        collected.append(row)
        cells = (
            row.kernel, row.arch, row.registers, row.stack, row.shared, row.mma or "-",
            row.async_copies, row.warps, "; ".join([row.tile, *row.problems()]),
        )  # fmt: skip
        sys.stdout.write(line.format(*cells) + "\n")
        sys.stdout.flush()
    return collected


def _launch(kernel: Any, args: tuple[Any, ...], settings: dict[str, Any]) -> Launch:
    """How Triton specialises a call: None, 1 and constexprs are compiled in, 16 is noted."""
    settings = dict(settings)
    names = layout.options(tiles.Tile(0, 0, 0, 0, 0))
    options = tuple((name, settings.pop(name)) for name in names)
    given = dict(zip(kernel.arg_names, args, strict=False)) | settings
    signature, constants, divisible = [], [], []
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, given[parameter.name]
        if parameter.is_constexpr or value is None:
            kind = "constexpr"
        elif isinstance(value, Tensor):
            kind = "*" + _TYPES[value.dtype]
            divisible.append(index)
        elif isinstance(value, float):
            kind = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            kind = "constexpr"
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                divisible.append(index)
        signature.append((name, kind))
        if kind == "constexpr":
            constants.append((name, value))
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), options)


def _run(workload: Workload, dtype: torch.dtype) -> None:
    """The backend's functions over a workload, on tensors without memory."""
    empty: Callable[..., Tensor] = torch.empty
    options: dict[str, Any] = {"device": "meta", "dtype": dtype}
    grid = (workload.grid, workload.grid)
    shape = (workload.batch, workload.layers)
    # Tokens as an encoder leaves them: channels innermost.
    query = empty(*shape, *grid, workload.channels, **options).permute(0, 1, 4, 2, 3)
    weight = empty(workload.batch, *grid, **options)
    features = (query, torch.empty_like(query), weight)
    x = correlation.correlation4d(*features, 1e-5)
    if workload.backward:
        correlation.correlation4d_backward(x, *features, 1e-5, [True] * 3)
    for index, channels in enumerate(workload.block_channels):
        taps = (channels, x.shape[1], standard.KERNEL, standard.KERNEL)
        weights = (empty(*taps, **options), empty(*taps, **options))
        vector = empty(channels, **options)
        if index == 0:
            _run_fused(features, (*weights, vector), workload.backward)
        last = index == len(workload.block_channels) - 1
        settings: Any = (
            standard.GROUPS,
            standard.NORM_EPS,
            standard.STRIDE,
            last,
            workload.backward,
        )
        saved: Any
        y, *saved = center_pivot.center_pivot_block4d(x, *weights, *(vector,) * 3, *settings)
        if workload.backward:
            saved += [standard.STRIDE, last, [index > 0, *(True,) * 5]]
            center_pivot.center_pivot_block4d_backward(
                torch.empty_like(y), x, *weights, vector, vector, *saved
            )
        x = y


def _run_fused(features: Any, weights: Any, backward: bool) -> None:
    settings: Any = (*features, *weights, standard.STRIDE, 1e-5)
    y = fused.correlation_center_pivot4d(*settings)
    if backward:
        settings = (*features, *weights[:2], standard.STRIDE, 1e-5, [True] * 6)
        fused.correlation_center_pivot4d_backward(y, *settings)


def _cuobjdump(option: str, cubin: Path) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
