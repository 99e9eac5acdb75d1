"""An exported model on disk: its graphs, and export.json, which describes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsdino import files
from fsdino.errors import CheckpointError, UsageError

FORMAT = "fsdino-export-1"
DESCRIPTION = "export.json"
FORMATS = ("onnx", "pt2", "aoti")
KERNELS = ("plain", "fsdino")
OUTPUTS = ("image", "model")
RUNTIMES = ("onnx", "openvino")  # of the format onnx
WEIGHTS = "weights.data"  # of both ONNX graphs of a large model
LIBRARY = "libfsdino_ops.so"  # the kernels of csrc/
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}
_AGAIN = "export the model again with `fsdino export`"
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Slot:
    """A tensor of a graph.

    Attributes:
        name: of the input or output.
        dtype: "uint8", "int64" or "float32".
        dims: a name where any length fits, or the length.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]


@dataclass(frozen=True)
class GraphFile:
    """One of the two graphs.

    Attributes:
        file: its name in the folder.
        inputs, outputs: in their order.
    """

    file: str
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]


@dataclass(frozen=True)
class Exported:
    """What export.json says.

    Attributes:
        format: "onnx", "pt2" or "aoti".
        kernels: "plain" or "fsdino".
        model: name or folder that was exported.
        fingerprint: of the model; supports of another one are refused.
        licence: of the weights; "not recorded" where it is not known.
        threshold: probability from which a pixel belongs to a mask.
        size: height and width in pixels that images are resized to.
        fits: whether supports hold what the training-free matcher fits, and images have places.
        output: "image" or "model": whose size the probabilities have.
        graphs: "support" and "query".
        hashes: SHA-256 of each file of the folder, by name.
        versions: of the packages that wrote it.
    """

    format: str
    kernels: str
    model: str
    fingerprint: str
    licence: str
    threshold: float
    size: tuple[int, int]
    fits: bool
    output: str
    graphs: Mapping[str, GraphFile]
    hashes: Mapping[str, str]
    versions: Mapping[str, str]

    def metadata(self, graph: str) -> dict[str, str]:
        """What a graph's own file says of it, as text by key."""
        return {
            "fsdino.format": FORMAT,
            "fsdino.graph": graph,
            "fsdino.fingerprint": self.fingerprint,
            "fsdino.licence": self.licence,
            "fsdino.threshold": repr(self.threshold),
            "fsdino.size": "x".join(map(str, self.size)),
            "fsdino.output": self.output,
            "fsdino.inputs": " ".join(slot.name for slot in self.graphs[graph].inputs),
            "fsdino.outputs": " ".join(slot.name for slot in self.graphs[graph].outputs),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        graphs = {
            name: {
                "file": graph.file,
                "inputs": [_described(slot) for slot in graph.inputs],
                "outputs": [_described(slot) for slot in graph.outputs],
            }
            for name, graph in self.graphs.items()
        }
        return {
            "format": FORMAT,
            "kind": self.format,
            "kernels": self.kernels,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "licence": self.licence,
            "threshold": self.threshold,
            "size": [*self.size],
            "fits": self.fits,
            "output": self.output,
            "graphs": graphs,
            "sha256": dict(self.hashes),
            "versions": dict(self.versions),
        }

    @classmethod
    def read(cls, folder: Path) -> Exported:
        """Read a folder's description, and check that its files are there and unchanged.

        Raises:
            UsageError: it is not a folder that `fsdino export` has written.
            CheckpointError: it is damaged: a file is missing or was changed.
        """
        path = folder / DESCRIPTION
        if not path.is_file():
            raise UsageError(
                f"{folder} is not an exported model (it has no {DESCRIPTION}): make one with "
                "`fsdino export`"
            )
        content = files.read_object(path, _AGAIN)
        try:
            found = cls._of(content)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not describe an exported model of this version: {_AGAIN}"
            ) from error
        for name, expected in found.hashes.items():
            file = folder / name
            if not file.is_file():
                raise CheckpointError(f"{file} is missing: copy the whole folder, or {_AGAIN}")
            if files.sha256(file) != expected:
                raise CheckpointError(f"{file} is not as it was written: {_AGAIN}")
        return found

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> Exported:
        """From plain data.

        Raises:
            KeyError, TypeError, ValueError: it is of another form.
        """
        if content["format"] != FORMAT or content["kind"] not in FORMATS:
            raise ValueError
        hashes = {str(name): str(value) for name, value in content["sha256"].items()}
        graphs = {
            name: GraphFile(row["file"], _slots(row["inputs"]), _slots(row["outputs"]))
            for name, row in content["graphs"].items()
        }
        plain = all(Path(name).name == name and _HASH.fullmatch(h) for name, h in hashes.items())
        if set(graphs) != {"support", "query"} or not plain:
            raise ValueError
        if not {graph.file for graph in graphs.values()} <= hashes.keys():
            raise ValueError
        height, width = map(int, content["size"])
        return cls(
            content["kind"],
            str(content["kernels"]),
            str(content["model"]),
            str(content["fingerprint"]),
            str(content["licence"]),
            float(content["threshold"]),
            (height, width),
            bool(content["fits"]),
            str(content["output"]),
            graphs,
            hashes,
            {str(name): str(value) for name, value in content["versions"].items()},
        )


def _described(slot: Slot) -> dict[str, Any]:
    return {"name": slot.name, "dtype": slot.dtype, "dims": [*slot.dims]}


def _slots(rows: Sequence[Mapping[str, Any]]) -> tuple[Slot, ...]:
    return tuple(
        Slot(
            str(row["name"]),
            str(row["dtype"]),
            tuple(dim if isinstance(dim, int) else str(dim) for dim in row["dims"]),
        )
        for row in rows
    )
