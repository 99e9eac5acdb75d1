"""What the Triton kernels compile to, without a GPU.

The backend's functions run on tensors without memory, over the standard workloads, and their
launches are recorded instead of made. Each is compiled for each architecture.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fsdino.bench.compiled import Code, Row, read_code
from fsdino.bench.workloads import GROUPS, KERNEL, NORM_EPS, STRIDE, WORKLOADS, Workload
from fsdino.kernels import center_pivot, correlation, fused, layout, squeeze, tiles

ARCHITECTURES = (80, 90, 100)
CHAINS = ("W4", "W6", "W12", "W12x8", "HR", "T12")  # which together launch every kernel
_KILOBYTES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
SHARED_BYTES = {gpu: 1024 * size for gpu, size in _KILOBYTES.items()}  # a program's, at most
_FREE = {"detach", "_unsafe_view", "_reshape_alias", "resolve_neg"}  # nothing is computed
_TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8",
    torch.float64: "fp64", torch.int32: "i32",
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
        arguments: what it was called with, by name; its grid's size as "programs".
    """

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, int | bool], ...]
    arguments: Mapping[str, Any]

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
    return recorded(lambda: _everything(workload, dtype), architecture).kernels


@dataclass
class Recorded:
    """What a call starts.

    Attributes:
        kernels: ours, in order.
        others: PyTorch's, by name.
    """

    kernels: list[Launch]
    others: list[str]


class _OfPyTorch(TorchDispatchMode):
    """Notes the names of operations that compute something."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or "empty" in name or name in _FREE):
            self.names.append(name)
        return result


def recorded(call: Callable[[], None], architecture: int) -> Recorded:
    """The launches of a call on tensors without memory, as on a GPU of an architecture."""
    found = Recorded([], [])

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        found.kernels.append(_launch(kernel, args, settings, math.prod(grid)))

    token = layout.planned.set(architecture)
    try:
        patched = mock.patch.object(triton.runtime.jit.JITFunction, "run", record)
        with patched, _OfPyTorch(found.others):
            call()
    finally:
        layout.planned.reset(token)
    return found


def compiled(launch: Launch, architecture: int) -> tuple[Code, int]:
    """Compile a launch for an architecture: its machine code, and bytes of shared memory."""
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(index,): [["tt.divisibility", 16]] for index in launch.divisible},
    )
    kernel = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=dict(launch.options)
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        [code] = read_code(cubin).values()
    return code, kernel.metadata.shared


def compile_launch(launch: Launch, architecture: int) -> Row:
    """Compile a launch for an architecture and read what came out."""
    code, shared = compiled(launch, architecture)
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
        divisions=code.instructions.divisions(),
        narrow_loads=code.instructions.narrow_loads(),
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


def _launch(kernel: Any, args: tuple[Any, ...], settings: dict[str, Any], programs: int) -> Launch:
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
    arguments = {**given, "programs": programs}
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), options, arguments)


def chain(workload: Workload, dtype: torch.dtype) -> None:
    """The backend's functions over a workload, on tensors without memory: the chain as one op, or
    where it says backward the correlation, the blocks and the gradients of the blocks."""
    if not workload.backward:
        columns = zip(*(weights for weights, _ in _blocks(workload, dtype)), strict=True)
        strides = [STRIDE] * len(workload.block_channels)
        features = _features(workload, dtype)
        of_blocks: Any = (*map(list, columns), strides, GROUPS, NORM_EPS, 1e-5)
        squeeze.squeeze4d(*features, *of_blocks)
        return
    x = correlation.correlation4d(*_features(workload, dtype), 1e-5)
    done: list[tuple[Any, ...]] = []
    for weights, last in _blocks(workload, dtype):
        settings: Any = (GROUPS, NORM_EPS, STRIDE, last, workload.backward)
        y, *saved = center_pivot.center_pivot_block4d(x, *weights, *settings)
        done.append((y, x, weights, saved, last))
        x = y
    for index, (y, x, weights, saved, last) in reversed([*enumerate(done)]):
        vectors: Any = (*weights[3:], *saved, STRIDE, last, [index > 0, *(True,) * 5])
        grad = torch.empty_like(y)
        center_pivot.center_pivot_block4d_backward(grad, x, *weights[:2], *vectors)


def _everything(workload: Workload, dtype: torch.dtype) -> None:
    """The chain, the fused first block, features that are copied, and where it says backward
    gradients to the features."""
    chain(workload, dtype)
    features = _features(workload, dtype)
    correlation.one(features[0].contiguous(), 1e-5)
    weights, _ = next(_blocks(workload, dtype))
    settings: Any = (*features, *weights[:3], STRIDE, 1e-5)
    y = fused.correlation_center_pivot4d(*settings)
    if workload.backward:
        corr = correlation.correlation4d(*features, 1e-5)
        correlation.correlation4d_backward(corr, *features, 1e-5, [True] * 3)
        settings = (*features, *weights[:2], STRIDE, 1e-5, [True] * 6)
        fused.correlation_center_pivot4d_backward(y, *settings)


def _features(workload: Workload, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query and support, their channels innermost as an encoder leaves them, and the weight."""
    options: dict[str, Any] = {"device": "meta", "dtype": dtype}
    grid = (workload.grid, workload.grid)
    shape = (workload.batch, workload.layers, *grid, workload.channels)
    query = torch.empty(*shape, **options).permute(0, 1, 4, 2, 3)
    return query, torch.empty_like(query), torch.empty(workload.batch, *grid, **options)


def _blocks(workload: Workload, dtype: torch.dtype) -> Iterator[tuple[Any, bool]]:
    """Weights of each block, and whether it is the last."""
    inner, count = workload.layers, len(workload.block_channels)
    for number, outer in enumerate(workload.block_channels, start=1):
        taps = torch.empty(outer, inner, KERNEL, KERNEL, device="meta", dtype=dtype)
        vector = torch.empty(outer, device="meta", dtype=dtype)
        yield (taps, torch.empty_like(taps), *(vector,) * 3), number == count
        inner = outer
