"""The C++ kernels in exported graphs, which then run without fsdino and without Python.

Graphs of `torch.export` hold the ops of the namespace `fsdino`, which are written in Python. The
decompositions here replace them by those of `fsdino_cpp`, which one library registers:
`fsdino.ops.native.library()`. A process that runs the graph loads that library first: with
`torch.ops.load_library` in Python, with `dlopen` in C++ (`fsdino/export/examples/aoti.cpp`).

What another machine needs:

* A program that `torch.export.save` has written holds no machine code, and runs wherever a library
  of the kernels for the same PyTorch is.
* The library is compiled for the architecture alone: its kernels choose the instructions when they
  run. It goes with the very PyTorch that it was built with.
* A package of AOTInductor holds machine code. By default that is for the processor it was compiled
  on (-march=native, the widest vectors), and for as many threads as PyTorch had. With
  `portable_options()` it runs on every x86-64 processor with AVX2, or every processor of another
  architecture, with the threads of the process that loads it. It needs the same PyTorch, too.

Example:
    >>> import torch
    >>> from fsdino import ops
    >>> from fsdino.export import kernels
    >>> class Correlate(torch.nn.Module):
    ...     def forward(self, query, support):
    ...         return ops.correlation4d(query, support)
    >>> features = torch.rand(1, 2, 16, 4, 4)
    >>> with torch.no_grad(), ops.use_backend("cpp"):
    ...     program = torch.export.export(Correlate(), (features, features))
    >>> program = program.run_decompositions(kernels.decompositions())
    >>> kernels.check(program)
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fsdino import contract
from fsdino.errors import FsdinoError, UsageError, listed
from fsdino.ops import calls, native

# Namespaces of ops that every PyTorch has, and that of the library.
_KNOWN = frozenset({"aten", "prims", "fsdino_cpp"})
_OPS = (*contract.OPS, *contract.COMPOSED)

Decompositions = dict[torch._ops.OpOverload, Callable[..., Any]]


def decompositions() -> Decompositions:
    """What replaces the ops `fsdino::` by `fsdino_cpp::`, with the arguments of the backend `cpp`.

    For `ExportedProgram.run_decompositions`, alone or with PyTorch's own table. The program must
    have been exported within `fsdino.ops.use_backend("cpp")`. Gradients are not in it.

    Returns:
        The op -> the function in its place, for the forward pass of each op.

    Raises:
        BackendError: the kernels are not built.
        UsageError: raised while decomposing, if the program names another backend.
    """
    native.library()
    _register_fakes()
    return {calls.KERNELS[op].overload: _decomposition(op) for op in _OPS}


def _decomposition(op: str) -> Callable[..., Any]:
    """What the op's own implementation calls, as a function to trace."""
    kernel = calls.KERNELS[op]
    saves = "save" in {argument.name for argument in kernel.overload._schema.arguments}

    def decomposed(*arguments: Any) -> Any:
        *rest, backend = arguments
        if backend != "cpp":
            raise UsageError(
                f"the exported program runs {op} on the backend {backend!r}: export it within "
                'fsdino.ops.use_backend("cpp")'
            )
        if saves:  # its last one: whether a backward pass follows
            rest[-1] = False
        return kernel.function(*rest, backend)

    return decomposed


@functools.cache
def _register_fakes() -> None:
    """Shapes and memory orders of the ops `fsdino_cpp::`: those of `fsdino::` on `cpp`."""
    for op in _OPS:
        torch.library.register_fake(f"fsdino_cpp::{op}", _fake(op))


def _fake(op: str) -> Callable[..., Any]:
    overload = calls.KERNELS[op].overload

    def fake(*arguments: Any) -> Any:
        return overload(*arguments, "cpp")

    return fake


def check(program: ExportedProgram) -> None:
    """Raise an error unless a program holds nothing but PyTorch's ops and the C++ kernels.

    Raises:
        FsdinoError: other ops, which the message names.
    """
    names = {
        str(node.target)
        for graph in program.graph_module.modules()
        if isinstance(graph, GraphModule)
        for node in graph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _KNOWN
    }
    if names:
        raise FsdinoError(
            f"the exported program needs Python for {listed(names)}: run its run_decompositions("
            "fsdino.export.kernels.decompositions()), and leave out ops of other packages"
        )


def portable_options() -> dict[str, Any]:
    """Options of AOTInductor for machine code that is not of this machine's processor.

    For `inductor_configs` of `torch._inductor.aoti_compile_and_package`. On x86-64 the code is for
    x86-64-v3, that is AVX2 and FMA; elsewhere for what every processor of the architecture has,
    without vectors. The ops of `fsdino_cpp` are not in that code and lose nothing.

    Raises:
        UsageError: this PyTorch always compiles for the processor that it runs on.
    """
    from torch._inductor import config

    if not hasattr(config.cpp, "march"):
        raise UsageError(
            f"torch {torch.__version__} compiles packages for this machine's processor only: "
            "update PyTorch to 2.13 or newer"
        )
    x86 = platform.machine() in {"x86_64", "AMD64"}
    return {
        "cpp.march": "x86-64-v3" if x86 else "",
        "cpp.simdlen": 256 if x86 else 1,
        "cpp.dynamic_threads": True,
    }
