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


def trace(graph: SupportGraph | QueryGraph) -> ExportedProgram:
    """A graph as torch.export has it, with operations of PyTorch's and of this package's.

    Args:
        graph: in eval mode, on the CPU, in float32.
    """
    arguments = tuple(_example(slot) for slot in graph.inputs)
    dims: tuple[Any, ...] = tuple(_dynamic(slot) for slot in graph.inputs)
    if isinstance(graph, QueryGraph):  # whose supports are one argument of several
        dims = (dims[0], dims[1:])
    with torch.no_grad(), ops.use_backend("reference"):
        return torch.export.export(graph, arguments, dynamic_shapes=dims)


def lower(program: ExportedProgram, kernels: str) -> ExportedProgram:
    """The same with what every runtime has.

    Args:
        program: of `trace`.
        kernels: "plain" leaves matrix products and convolutions in place of the 4D ops, "fsdino"
            the kernels of csrc/.
    """
    table: dict[Any, Any] = dict(torch.export.default_decompositions())
    if kernels == "fsdino":
        from fsdino.export.kernels import own

        table |= own()
    else:
        table |= lowering.plain()
    table |= lowering.shared()
    with torch.no_grad():
        lowered: ExportedProgram = program.run_decompositions(table)
        return lowered


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
