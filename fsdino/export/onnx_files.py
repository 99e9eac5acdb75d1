"""Graphs as ONNX files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch.export import ExportedProgram

if TYPE_CHECKING:
    from fsdino.export.graphs import QueryGraph, SupportGraph

OPSET = 20
_BESIDE = 2**26  # bytes of weights from which they lie in a file of their own
_SMALL = 2**10  # bytes of a tensor that stays in the graph in any case
_ALIGNED = 4096  # bytes, so that runtimes can map a file


class Weights:
    """A file beside the graphs, which hold the same encoder.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, int] = {}
        self._end = 0

    def move(self, model: onnx_ir.Model) -> None:
        """Move a graph's larger tensors to the file; what it holds already is written once."""
        values = [v for v in model.graph.initializers.values() if v.const_value is not None]
        if sum(v.const_value.nbytes for v in values if v.const_value is not None) < _BESIDE:
            return
        with self.path.open("ab") as file:
            for value in values:
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _SMALL:
                    continue
                content = tensor.tobytes()
                key = hashlib.sha256(content).digest()
                if key not in self._places:
                    file.write(b"\0" * (-self._end % _ALIGNED))
                    self._places[key] = file.tell()
                    file.write(content)
                    self._end = file.tell()
                value.const_value = onnx_ir.ExternalTensor(
                    self.path.name,
                    self._places[key],
                    len(content),
                    tensor.dtype,
                    shape=onnx_ir.Shape(tensor.shape.numpy()),
                    name=tensor.name or value.name or "",
                    base_dir=self.path.parent,
                )


def write(
    program: ExportedProgram,
    graph: SupportGraph | QueryGraph,
    path: Path,
    weights: Weights,
    metadata: Mapping[str, str],
) -> None:
    """Write a graph, with the names of its slots and of their dims.

    Args:
        program: of `tracing.trace`, with plain operations only.
        graph: that it was traced from.
        path: of the file.
        weights: takes the weights of large models.
        metadata: for the file.
    """
    with torch.no_grad():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=[slot.name for slot in graph.inputs],
            output_names=[slot.name for slot in graph.outputs],
            verbose=False,
        )
    assert exported is not None
    model = exported.model
    _name_dims(model, graph)
    model.metadata_props.update(metadata)
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.all_nodes():  # where in Python each came from, and on which machine
        node.metadata_props.clear()
    RemoveUnusedNodesPass()(model)
    weights.move(model)
    onnx_ir.save(model, path)


def _name_dims(model: Any, graph: SupportGraph | QueryGraph) -> None:
    """Name the dims of inputs and outputs; those within the graph are left out."""
    for values, slots in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value, slot in zip(values, slots, strict=True):
            value.shape = onnx_ir.Shape(slot.dims)
    ends = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in ends:
                value.shape = None
