"""What the Triton kernels compile to, without a GPU.

The backend's functions run on tensors without memory, over the standard workloads, and their
launches are recorded instead of made. Each is compiled for each architecture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fsdino.bench.compiled import Row, read_code
from fsdino.bench.workloads import GROUPS, KERNEL, NORM_EPS, STRIDE, WORKLOADS, Workload
from fsdino.kernels import center_pivot, correlation, fused, layout, tiles

ARCHITECTURES = (80, 90, 100)
CHAINS = ("W4", "W6", "W12", "W12x8", "HR", "T12")  # which together launch every kernel
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # a program's, at most
_TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8",
}  # fmt: skip


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
        """Its block sizes and warps, and what else distinguishes it."""
        shown = [f"{k}={v}" for k, v in self.constants if k.isupper() and k != "INDEX"]
        return " ".join([self.dtype, *shown, f"WARPS={dict(self.options)['num_warps']}"])

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
        [code] = read_code(cubin).values()
    shared = compiled.metadata.shared
    return Row(
        kernel=launch.kernel.__name__,
        variant=launch.tile,
        arch=f"sm_{architecture}",
        registers=code.registers,
        stack=code.stack,
        spilled=code.stack,  # Triton's programs have nothing else on the stack
        shared=shared,
        mma=code.mma,
        async_copies=code.async_copies,
        problems=_problems(launch, architecture, code.stack, shared, code.mma),
    )


def rows(
    names: Iterable[str],
    dtypes: Iterable[torch.dtype],
    architectures: Iterable[int],
    only: str = "",
) -> Iterator[Row]:
    """Compile every kernel that workloads launch and whose name begins with `only`.

    Args:
        names: of standard workloads.
        dtypes: floating types of the inputs.
        architectures: compute capabilities, as in 80.
        only: beginning of the kernels' names.
    """
    for architecture in architectures:
        seen: dict[tuple[Any, ...], Launch] = {}
        for dtype in dtypes:
            for name in names:
                for launch in launches(WORKLOADS[name], dtype, architecture):
                    seen.setdefault(launch.key, launch)
        for launch in seen.values():
            if launch.kernel.__name__.startswith(only):
                yield compile_launch(launch, architecture)


def _problems(
    launch: Launch, architecture: int, stack: int, shared: int, mma: str
) -> tuple[str, ...]:
    """Spills, too much shared memory, or no tensor cores for a product in half precision."""
    found = []
    if stack:
        found.append(f"{stack} bytes of stack")
    if shared > SHARED_BYTES[architecture]:
        found.append(f"{shared} bytes of shared memory")
    if "PRECISION=" in launch.tile and launch.dtype != "fp32" and not mma:
        found.append("no tensor-core instruction")
    return tuple(found)


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
        taps = (channels, x.shape[1], KERNEL, KERNEL)
        weights = (empty(*taps, **options), empty(*taps, **options))
        vector = empty(channels, **options)
        if index == 0:
            _run_fused(features, (*weights, vector), workload.backward)
        last = index == len(workload.block_channels) - 1
        settings: Any = (
            GROUPS,
            NORM_EPS,
            STRIDE,
            last,
            workload.backward,
        )
        saved: Any
        y, *saved = center_pivot.center_pivot_block4d(x, *weights, *(vector,) * 3, *settings)
        if workload.backward:
            saved += [STRIDE, last, [index > 0, *(True,) * 5]]
            center_pivot.center_pivot_block4d_backward(
                torch.empty_like(y), x, *weights, vector, vector, *saved
            )
        x = y


def _run_fused(features: Any, weights: Any, backward: bool) -> None:
    settings: Any = (*features, *weights, STRIDE, 1e-5)
    y = fused.correlation_center_pivot4d(*settings)
    if backward:
        settings = (*features, *weights[:2], STRIDE, 1e-5, [True] * 6)
        fused.correlation_center_pivot4d_backward(y, *settings)
