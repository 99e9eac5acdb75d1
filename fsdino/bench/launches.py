"""What Triton launches, counted and timed without a GPU.

Triton's own `JITFunction.run` binds the arguments, specialises and looks the variant up; a driver
that launches nothing stands in for NVIDIA's. So the launches of a call, their variants and the time
that Python takes for them are those of a machine with a GPU, and only the results are missing.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fsdino.bench.workloads import GROUPS, NORM_EPS, STRIDE, Inputs
from fsdino.kernels import backend, layout

EPS = 1e-5
SHARED_BYTES = 227 * 1024  # of a program; what a kernel needs is bench/inspect.py's affair
_COMPILED = 1000  # added to a device's number where kernels are compiled: Triton caches by it


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        kernel: name of the Triton function.
        variant: what it is specialised to; launches of one kernel with the same share their code.
        grid: programs in each dimension.
    """

    kernel: str
    variant: object
    grid: tuple[int, int, int]


class Driver:
    """What Triton asks of a driver, for a GPU that is not there.

    Args:
        architecture: compute capability, as in 90.
        launches: gets every launch.
        compiles: whether kernels are compiled to machine code; else they are only looked up.
    """

    def __init__(self, architecture: int, launches: list[Launch], *, compiles: bool) -> None:
        self.architecture = architecture
        self.device = architecture + (_COMPILED if compiles else 0)
        self.launches = launches
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        """The architecture that kernels are compiled for."""
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        """A number that no GPU has."""
        return self.device

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        """What a program may use."""
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Module, function, registers, spills and most threads."""
        return (1, 1, 0, 0, 1024)

    def unload_module(self, *module: object) -> None:
        """Nothing was loaded."""

    def launcher_cls(self, source: Any, metadata: Any) -> _Launcher:
        """The launcher of a compiled kernel."""
        return _Launcher(source.name, metadata)


@dataclass(frozen=True)
class _Launcher:
    """Notes a launch with the driver of that moment: Triton keeps launchers for later calls."""

    name: str
    variant: object

    def __call__(self, x: int, y: int, z: int, *_: object) -> None:
        driver.active.launches.append(Launch(self.name, self.variant, (x, y, z)))


@dataclass(frozen=True)
class _Uncompiled:
    """A variant of a kernel that was looked up and not compiled."""

    run: _Launcher
    function: None = None
    packed_metadata: None = None

    @property
    def asm(self) -> dict[str, str]:
        """Its code: none."""
        return {"ptx": ""}

    def launch_metadata(self, *_: object) -> None:
        """Nothing asks for it."""


def _look_up(kernel: Any, key: object, *_: object, **__: object) -> _Uncompiled:
    """Stands in for what compiles a kernel, whose signature differs between releases of Triton."""
    found = _Uncompiled(_Launcher(kernel.__name__, key))
    kernel.device_caches[driver.active.get_current_device()][0][key] = found
    return found


@contextlib.contextmanager
def recorded(architecture: int, *, compiles: bool = False) -> Iterator[list[Launch]]:
    """Note what is launched inside the `with` block, in place of launching it.

    Args:
        architecture: of the GPU that is not there, as in 90.
        compiles: whether kernels are compiled, which takes a second each.
    """
    launches: list[Launch] = []
    fake = Driver(architecture, launches, compiles=compiles)

    before = driver._active
    token = layout.planned.set(architecture)
    with contextlib.ExitStack() as stack:
        if not compiles:
            stack.enter_context(mock.patch.object(JITFunction, "_do_compile", _look_up))
        driver.set_active(fake)
        try:
            yield launches
        finally:
            driver._active = before
            layout.planned.reset(token)


def forward(inputs: Inputs) -> Tensor:
    """The chain of a workload by the backend's own function, without gradients."""
    columns = zip(*(block for block, _ in _blocks(inputs)), strict=True)
    features = (inputs.query, inputs.support, inputs.support_weight)
    strides = [STRIDE] * len(inputs.blocks)
    return backend.squeeze4d(  # type: ignore[no-any-return]
        *features, *map(list, columns), strides, GROUPS, NORM_EPS, EPS
    )


def train(inputs: Inputs) -> None:
    """The same, and the gradient to every parameter; the features are frozen."""
    x, calls = _correlation(inputs), []
    for block, last in _blocks(inputs):
        y, *saved = backend.center_pivot_block4d(x, *block, GROUPS, NORM_EPS, STRIDE, last, True)
        calls.append((x, block, saved, last))
        x = y
    grad = torch.empty_like(x)
    while calls:
        source, block, saved, last = calls.pop()
        needed = [bool(calls), *(True,) * 5]
        grad, *_ = backend.center_pivot_block4d_backward(
            grad, source, *block[:2], *block[3:], *saved, STRIDE, last, needed
        )


def _correlation(inputs: Inputs) -> Tensor:
    features = (inputs.query, inputs.support, inputs.support_weight)
    return backend.correlation4d(*features, EPS)  # type: ignore[no-any-return]


def _blocks(inputs: Inputs) -> list[tuple[tuple[Tensor, ...], bool]]:
    """Detached tensors of each block, and whether it is the last."""
    count = len(inputs.blocks)
    return [
        (tuple(tensor.detach() for tensor in block.tensors()), index == count - 1)
        for index, block in enumerate(inputs.blocks)
    ]


def python_seconds(run: Callable[[], object], calls: int = 50) -> float:
    """Median seconds of a call whose launches do nothing, once its variants are known.

    They are this thread's own: what waits for a processor on a busy machine does not count.
    """
    times = []
    for _ in range(calls):
        began = time.thread_time()
        run()
        times.append(time.thread_time() - began)
    return statistics.median(times)
