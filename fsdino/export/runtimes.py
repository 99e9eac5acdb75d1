"""Exported graphs in onnxruntime or OpenVINO, on the CPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fsdino.errors import CheckpointError, DataError, UsageError, listed, one_line, printable, shown
from fsdino.export.folder import RUNTIMES, Exported, GraphFile

_AGAIN = "export the model again with `fsdino export`"
# Characters of a runtime's own message. onnxruntime puts a file, a line and a signature of its
# source before the reason.
_MOST_REASON = 600
# Types of slots, as each runtime calls them.
_ONNX_TYPES = {"uint8": "tensor(uint8)", "int64": "tensor(int64)", "float32": "tensor(float)"}
_OPENVINO_TYPES = {"uint8": "u8", "int64": "i64", "float32": "f32"}

_OPENVINO_GRAPHS = 8  # that are kept compiled, of each file
OPENVINO_OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",  # unasked, it is bfloat16 where the processor has that
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,  # processes beside each other would share a core
}

Arrays = Mapping[str, npt.NDArray[Any]]
Ends = list[tuple[str, str, tuple[str | int, ...]]]  # names, types and dims


@dataclass(frozen=True)
class _Opened:
    """A graph in a runtime.

    Attributes:
        inputs, outputs: as the file has them; a dim of any length is a name, or -1.
        metadata: the file's own.
        run: takes the inputs, and gives the outputs in their order.
    """

    inputs: Ends
    outputs: Ends
    metadata: Mapping[str, str]
    run: Callable[[dict[str, npt.NDArray[Any]]], Sequence[npt.NDArray[Any]]]


class Graphs:
    """The two graphs of an exported folder, ready to run on the CPU.

    They compute in float32 with as many threads as PyTorch has when they are opened.

    Args:
        folder: of `fsdino export --format onnx`.
        runtime: "onnx" (onnxruntime) or "openvino".

    Attributes:
        exported: what the folder says of itself.

    Raises:
        UsageError: there is no such runtime, its package is missing, or it does not know the
            files' operations; it is not an exported folder, or one of another format.
        CheckpointError: the folder is damaged, or its graphs are not what it says.
    """

    def __init__(self, folder: str | os.PathLike[str], runtime: str = "onnx") -> None:
        if runtime not in RUNTIMES:
            raise UsageError(f"unknown runtime {shown(runtime)}: choose {', '.join(RUNTIMES)}")
        place = Path(folder)
        self.exported = Exported.read(place)
        if self.exported.format != "onnx":
            raise UsageError(
                f"{place} holds graphs in the format {self.exported.format}, which the runtime "
                f"{runtime} does not read: export the model with --format onnx"
            )
        start = _onnxruntime if runtime == "onnx" else _openvino
        self._runtime, self._open = start()
        self._opened = {
            name: self._graph(place / graph.file, name, graph, -1 if runtime != "onnx" else None)
            for name, graph in self.exported.graphs.items()
        }

    def support(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The tensors of a support, by the names of the graph `support`.

        Args:
            inputs: of annotated images; see `fsdino.export.graphs.SupportGraph`.

        Raises:
            DataError: the runtime cannot run it, for want of memory for one.
        """
        return self._run("support", inputs)

    def query(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """`probability` and `score` of N classes in an image.

        Args:
            inputs: the image, and tensors of supports with a dim of classes before the others; see
                `fsdino.export.graphs.QueryGraph`.

        Raises:
            DataError: the runtime cannot run it, for want of memory for one.
        """
        return self._run("query", inputs)

    def _run(self, name: str, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        graph = self.exported.graphs[name]
        given = {slot.name: np.ascontiguousarray(inputs[slot.name]) for slot in graph.inputs}
        try:
            found = self._opened[name].run(given)
        except Exception as error:  # each runtime has classes of its own
            height, width = given["image"].shape[-3:-1]
            raise DataError(
                f"{self._runtime} cannot run {graph.file} on {height} x {width} pixels "
                f"({_reason(error)}): use smaller images or fewer classes"
            ) from error
        return {slot.name: array for slot, array in zip(graph.outputs, found, strict=True)}

    def _graph(self, path: Path, name: str, graph: GraphFile, any_length: int | None) -> _Opened:
        """Open a graph, and compare it with its description.

        Args:
            path: of the file.
            name: "support" or "query".
            graph: its description.
            any_length: what the runtime calls a dim of any length; None where it knows their names.
        """
        try:
            opened = self._open(path)
        except Exception as error:  # each runtime has classes of its own
            raise UsageError(
                f"{self._runtime} cannot read {path} ({_reason(error)}): update {self._runtime}, "
                f"or {_AGAIN}"
            ) from error
        if opened.metadata != self.exported.metadata(name):
            different = set(opened.metadata.items()) ^ set(self.exported.metadata(name).items())
            raise CheckpointError(
                f"{path} and export.json disagree in {listed({key for key, _ in different})}: "
                f"{_AGAIN}"
            )
        types = _ONNX_TYPES if any_length is None else _OPENVINO_TYPES
        for kind, slots, ends in (
            ("inputs", graph.inputs, opened.inputs), ("outputs", graph.outputs, opened.outputs),
        ):  # fmt: skip
            expected = [
                (
                    slot.name,
                    types[slot.dtype],
                    tuple(
                        any_length if isinstance(dim, str) and any_length is not None else dim
                        for dim in slot.dims
                    ),
                )
                for slot in slots
            ]
            if ends != expected:
                pairs = [*zip(ends, expected, strict=False)]
                wrong = next((f"{_shown(a)}, not {_shown(b)}" for a, b in pairs if a != b), None)
                wrong = wrong or f"{len(ends)}, not {len(expected)}"
                raise CheckpointError(
                    f"{path} has other {kind} than export.json says ({wrong}): {_AGAIN}"
                )
        return opened


def _onnxruntime() -> tuple[str, Callable[[Path], _Opened]]:
    """onnxruntime, and what opens a file in it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            "the runtime onnx needs onnxruntime, of the extra export: pip install 'fsdino[export]'"
        ) from error

    def open_graph(path: Path) -> _Opened:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors alone, which are raised as well
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def ends(values: Sequence[Any]) -> Ends:
            return [(value.name, value.type, tuple(value.shape)) for value in values]

        return _Opened(
            ends(session.get_inputs()),
            ends(session.get_outputs()),
            session.get_modelmeta().custom_metadata_map,
            lambda given: session.run(None, given),
        )

    return "onnxruntime", open_graph


def _openvino() -> tuple[str, Callable[[Path], _Opened]]:
    """OpenVINO, and what opens a file in it."""
    try:
        import openvino
    except ImportError as error:
        raise UsageError(
            "the runtime openvino needs OpenVINO, an extra: pip install 'fsdino[openvino]'"
        ) from error
    core = openvino.Core()
    options = {**OPENVINO_OPTIONS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}

    def open_graph(path: Path) -> _Opened:
        model = core.read_model(path)
        info = model.get_rt_info()  # has no `get`
        metadata = info["framework"] if "framework" in info else {}  # noqa: SIM401

        def ends(values: Sequence[Any]) -> Ends:
            return [
                (
                    value.any_name,
                    value.element_type.get_type_name(),
                    tuple(
                        -1 if dim.is_dynamic else dim.get_length() for dim in value.partial_shape
                    ),
                )
                for value in values
            ]

        # For each number of classes, shots and views a graph of its own. One graph for all of them
        # gives wrong maps, or ends the process, in a run with more views than in all runs before,
        # from the third run on (OpenVINO 2026.4.1, `benchmarks/one_graph.py`); images of changing
        # sizes are not affected.
        @functools.lru_cache(maxsize=_OPENVINO_GRAPHS)
        def compiled(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Any:
            sized = core.read_model(path)
            sized.reshape({name: [*shape] for name, shape in shapes})
            return core.compile_model(sized, "CPU", options)

        def run(given: dict[str, npt.NDArray[Any]]) -> Sequence[npt.NDArray[Any]]:
            shapes = tuple((name, _sized(name, array.shape)) for name, array in given.items())
            graph = compiled(shapes)
            found = graph(given)
            return [np.array(found[place]) for place in range(len(graph.outputs))]

        described = {str(key): _text(value) for key, value in metadata.items()}
        return _Opened(ends(model.inputs), ends(model.outputs), described, run)

    return "OpenVINO", open_graph


def _sized(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an input in which images and their masks may have any height and width."""
    if name not in ("image", "mask"):
        return shape
    sides = slice(-3, -1) if name == "image" else slice(-2, None)
    free = [*shape]
    free[sides] = [-1, -1]
    return tuple(free)


def _text(value: Any) -> str:
    """A value of OpenVINO's, which wraps some."""
    return str(getattr(value, "value", value))


def _shown(end: tuple[str, str, tuple[str | int, ...]]) -> str:
    name, dtype, dims = end
    return f"{printable(name)} {dtype} {[*dims]}"


def _reason(error: Exception) -> str:
    """A runtime's own words, on one line."""
    return printable(one_line(error) or type(error).__name__, _MOST_REASON)
