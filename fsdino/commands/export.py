"""`fsdino export`: its options and its table."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fsdino.commands.options import Json, Out, Overwrite, Weights, check_folder, check_model
from fsdino.errors import UsageError, shown
from fsdino.export.folder import FORMATS, KERNELS, OUTPUTS
from fsdino.models.names import DEFAULT as DEFAULT_MODEL
from fsdino.progress import Progress
from fsdino.tables import print_table

if TYPE_CHECKING:
    from fsdino.export.folder import Exported

_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model as graphs that run without Python: ONNX, torch.export or AOTInductor.

    fsdino export fsdino-photo --size 448 --out photo-onnx

    The folder holds two graphs, `support` (marked images to the tensors of a support) and `query`
    (an image and supports to probabilities): a new class needs no new export. Its README says how
    to run them, with examples in Python, C++ and JavaScript. `fsdino segment --runtime` runs them,
    too. All images are resized to one size, whatever their aspect ratio.
    """

    model: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")
    ] = DEFAULT_MODEL
    """Name (see `fsdino models`), folder or hub id of a model, or a checkpoint of HSNet's."""
    format: Annotated[
        str, tyro.conf.arg(metavar="|".join(FORMATS), help_behavior_hint="(default: onnx)")
    ] = FORMATS[0]
    """onnx, for onnxruntime, OpenVINO and others; pt2, for torch.export.load; aoti, compiled by
    AOTInductor, for C++ with PyTorch's library."""
    kernels: Annotated[
        str, tyro.conf.arg(metavar="|".join(KERNELS), help_behavior_hint="(default: plain)")
    ] = KERNELS[0]
    """What computes the 4D operations: plain matrix products and convolutions, or fsdino's C++
    kernels, which pt2 and aoti load as a library that lies in the folder."""
    size: Annotated[str | None, tyro.conf.arg(metavar="SIDE|HxW", help_behavior_hint="")] = None
    """Pixels that images are resized to; default: the model's own size."""
    output: Annotated[
        str, tyro.conf.arg(metavar="|".join(OUTPUTS), help_behavior_hint="(default: image)")
    ] = OUTPUTS[0]
    """Whose size the probabilities have: the image's, or that of the model's own maps."""
    weights: Weights = None
    out: Out = None
    overwrite: Overwrite = False
    as_json: Json = False
    """Print what export.json says as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        size = None if self.size is None else parse_size(self.size)
        if self.out is None:
            raise UsageError("no --out given: pass --out with a folder for the graphs")
        check_folder(self.out)
        check_model(self.model, self.weights)
        from fsdino.export.write import check_arguments, export_model
        from fsdino.models import zoo

        check_arguments(self.format, self.kernels, self.output, self.out, overwrite=self.overwrite)
        model = zoo.load(self.model, weights=self.weights)
        with Progress("export", unit="steps") as progress:
            found = export_model(
                model,
                self.out,
                format=self.format,
                kernels=self.kernels,
                size=size,
                output=self.output,
                name=self.model,
                overwrite=self.overwrite,
                report=progress.report,
            )
        if self.as_json:
            print(json.dumps(found.to_dict()))
        else:
            _print_export(found, self.out)
        return 0


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "448" or "480x640".

    Raises:
        UsageError: it is neither.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"--size must be pixels, such as 448 or 480x640, got {shown(text)}")
    return int(match[1]), int(match[2] or match[1])


def _print_export(found: Exported, folder: Path) -> None:
    rows = [
        [name, file, f"{(folder / file).stat().st_size / 1e6:,.1f} MB"]
        for name, file in (
            *((name, graph.file) for name, graph in found.graphs.items()),
            *(("", file) for file in found.hashes if file not in _graph_files(found)),
        )
    ]
    print_table(["graph", "file", "size"], rows, numbers=False)
    height, width = found.size
    print(f"{folder}: {found.model} at {height} x {width} pixels; README.md says how to run it")


def _graph_files(found: Exported) -> set[str]:
    return {graph.file for graph in found.graphs.values()}
