"""From a graph in Python to one of plain tensor operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from fsdino import ops
from fsdino.export import lowering
from fsdino.export.folder import Slot
from fsdino.export.graphs import CLASSES, HEIGHT, SHOTS, VIEWS, WIDTH, QueryGraph
from fsdino.export.kernels import check, decompositions

if TYPE_CHECKING:
    from fsdino.export.graphs import SupportGraph

# Largest lengths: of images, what Pillow reads on one side; of the others, beyond any use.
_DIMS = {
    CLASSES: Dim(CLASSES, min=1, max=1024),
    SHOTS: Dim(SHOTS, min=1, max=64),
    VIEWS: Dim(VIEWS, min=1, max=64),
    HEIGHT: Dim(HEIGHT, min=1, max=65535),
    WIDTH: Dim(WIDTH, min=1, max=65535),
}
# No length is that of another dim, or one that PyTorch would take for a constant.
_LENGTHS = {CLASSES: 2, SHOTS: 3, VIEWS: 4, HEIGHT: 150, WIDTH: 170}

# Operations that stay whole: their parts would take several times the memory.
_WHOLE = (torch.ops.aten.scaled_dot_product_attention.default,)


def trace(graph: SupportGraph | QueryGraph, kernels: str) -> ExportedProgram:
    """A graph as torch.export has it, with operations that every runtime has.

    Args:
        graph: in eval mode, on the CPU, in float32.
        kernels: "plain" leaves matrix products and convolutions in place of the 4D ops, "fsdino"
            the kernels of csrc/.

    Raises:
        BackendError: the kernels are not built.
    """
    own = kernels == "fsdino"
    table: dict[Any, Any] = dict(torch.export.default_decompositions())
    table |= decompositions() if own else lowering.plain()
    table |= lowering.shared()
    for overload in _WHOLE:
        table.pop(overload, None)
    arguments = tuple(_example(slot) for slot in graph.inputs)
    dims: tuple[Any, ...] = tuple(_dynamic(slot) for slot in graph.inputs)
    if isinstance(graph, QueryGraph):  # whose supports are one argument of several
        dims = (dims[0], dims[1:])
    with torch.no_grad(), ops.use_backend("cpp" if own else "reference"):
        program: ExportedProgram = torch.export.export(graph, arguments, dynamic_shapes=dims)
        program = program.run_decompositions(table)
    check(program)
    return program


def _example(slot: Slot) -> Tensor:
    """Some value for an input."""
    shape = [length if isinstance(length, int) else _LENGTHS[length] for length in slot.dims]
    if slot.name == "sizes":
        return torch.tensor([[_LENGTHS[HEIGHT], _LENGTHS[WIDTH]]]).repeat(shape[0], 1)
    if slot.dtype == "uint8":
        return torch.ones(shape, dtype=torch.uint8)
    return torch.ones(shape)


def _dynamic(slot: Slot) -> dict[int, Any]:
    names: Sequence[str | int] = slot.dims
    return {place: _DIMS[name] for place, name in enumerate(names) if isinstance(name, str)}
