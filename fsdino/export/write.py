"""`export_model`: a model as graphs for other runtimes."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch.export import ExportedProgram

from fsdino import files
from fsdino.errors import UsageError, listed, shown
from fsdino.export import manual
from fsdino.export.folder import (
    DESCRIPTION,
    FORMATS,
    KERNELS,
    LIBRARY,
    OUTPUTS,
    SUFFIXES,
    WEIGHTS,
    Exported,
    GraphFile,
)
from fsdino.export.graphs import QueryGraph, SupportGraph
from fsdino.export.kernels import portable_options
from fsdino.export.tracing import trace
from fsdino.models.hsnet import HSNet
from fsdino.models.registry import list_models
from fsdino.models.segmenter import Segmenter
from fsdino.ops import native
from fsdino.progress import Report
from fsdino.version import __version__

Graph = SupportGraph | QueryGraph

_MOST = 4096  # pixels of a side
_STRIDE = 16  # of HSNet's sides: with others its levels do not fit together
# Files of any export, which one in another format replaces.
_OURS = ("support.onnx", "query.onnx", WEIGHTS, "support.pt2", "query.pt2", LIBRARY)


def export_model(
    model: Segmenter,
    out: str | os.PathLike[str],
    *,
    format: str = "onnx",
    kernels: str = "plain",
    size: tuple[int, int] | None = None,
    output: str = "image",
    name: str | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Exported:
    """Write a model as two graphs, `support` and `query`, that need neither Python nor fsdino.

    Args:
        model: on the CPU, in float32.
        out: folder for the graphs, export.json and a README; created if missing.
        format: "onnx", "pt2" (`torch.export`) or "aoti" (compiled by AOTInductor).
        kernels: what the 4D ops become: "plain" matrix products and convolutions, or the kernels
            of "fsdino", which a process loads as a library; not for ONNX.
        size: height and width in pixels that images are resized to; None takes the model's
            `image_size` for both.
        output: whether probabilities have the "image"'s size, or that of the "model"'s own maps.
        name: what export.json calls the model; None names its encoder.
        overwrite: replace an export that is in the folder.
        report: called with (finished, all) steps.

    Returns:
        What export.json says.

    Raises:
        UsageError: an invalid argument; a package of the extra `export` is missing; this PyTorch
            cannot compile packages; the folder holds something else.
        FsdinoError: the folder cannot be written.
    """
    size = size or (model.config.image_size, model.config.image_size)
    folder = Path(out)
    check_arguments(format, kernels, output, folder, overwrite=overwrite)
    _check_model(model, size)
    files.make_folder(folder, "export the model elsewhere")
    model.eval()
    graphs: dict[str, Graph] = {
        "support": SupportGraph(model, size),
        "query": QueryGraph(model, size, whole=output == "image"),
    }
    suffix = SUFFIXES[format]
    found = Exported(
        format,
        kernels,
        name or model.config.encoder,
        model.fingerprint(),
        _licence(model, name),
        model.config.threshold,
        size,
        model.fits,
        output,
        {
            key: GraphFile(key + suffix, tuple(graph.inputs), tuple(graph.outputs))
            for key, graph in graphs.items()
        },
        {},
        _versions(format),
    )
    with tempfile.TemporaryDirectory(prefix=".fsdino-", dir=folder) as hidden:
        place = Path(hidden)
        try:
            write = _writer(found, place)
            for done, (key, graph) in enumerate(graphs.items()):
                program = trace(graph, kernels)
                if report is not None:
                    report(2 * done + 1, 2 * len(graphs))
                write(program, graph, key)
                if report is not None:
                    report(2 * done + 2, 2 * len(graphs))
            written = sorted(path.name for path in place.iterdir())
            hashes = {file: files.sha256(place / file) for file in written}
            found = dataclasses.replace(found, hashes=hashes)
            manual.write(found, place)
            files.write_json(place / DESCRIPTION, found.to_dict())
            _take_over(folder, place)
        except OSError as error:
            raise files.write_error(error, folder) from error
    return found


def check_arguments(
    format: str, kernels: str, output: str, folder: Path, *, overwrite: bool
) -> None:
    """Refuse what `export_model` would refuse before it has a model.

    Raises:
        UsageError: an unknown or impossible choice, a missing package, a PyTorch that cannot
            compile packages, a folder that holds something else.
    """
    for argument, value, known in (
        ("format", format, FORMATS), ("kernels", kernels, KERNELS), ("output", output, OUTPUTS),
    ):  # fmt: skip
        if value not in known:
            raise UsageError(f"{argument} must be one of {listed(known)}, got {shown(value)}")
    if format == "onnx" and kernels == "fsdino":
        raise UsageError(
            "kernels fsdino are for the formats pt2 and aoti, since runtimes of ONNX files cannot "
            "load them: use kernels plain"
        )
    if format == "onnx":
        for package in ("onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise UsageError(
                    f"ONNX files need the extra export ({package} is missing): "
                    "pip install 'fsdino[export]'"
                )
    if format == "aoti":
        portable_options()
    _check_folder(folder, overwrite=overwrite)


def _check_model(model: Segmenter, size: tuple[int, int]) -> None:
    """Refuse a model that is not on the CPU in float32, and a size that it cannot take."""
    first = next(model.parameters())
    if first.dtype != torch.float32 or first.device.type != "cpu":
        raise UsageError(
            f"the model is in {str(first.dtype).removeprefix('torch.')} on {first.device.type}: "
            "export it in float32 on the CPU"
        )
    unit = _STRIDE if isinstance(model, HSNet) else model.patch_size
    for side in size:
        if not unit <= side <= _MOST or side % unit:
            raise UsageError(
                f"size must be multiples of {unit} pixels, from {unit} to {_MOST}, for this "
                f"model, got {size[0]} x {size[1]}"
            )


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse to mix an export with other files, or to replace one unasked."""
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if not names:
        return
    if DESCRIPTION not in names:
        raise UsageError(f"{folder} holds other files: export into a new or empty folder")
    if not overwrite:
        raise UsageError(
            f"{folder} holds an exported model: pass another folder, or overwrite to replace it"
        )


def _take_over(folder: Path, place: Path) -> None:
    """Move an export from its hidden folder; the description goes first and comes last."""
    (folder / DESCRIPTION).unlink(missing_ok=True)
    for name in (*_OURS, manual.README):
        (folder / name).unlink(missing_ok=True)
    examples = folder / manual.EXAMPLES
    examples.mkdir(exist_ok=True)
    for name in manual.ALL_EXAMPLES:
        (examples / name).unlink(missing_ok=True)
    written = [path for path in place.rglob("*") if path.is_file()]
    for path in sorted(written, key=lambda path: path.name == DESCRIPTION):
        path.replace(folder / path.relative_to(place))


def _writer(found: Exported, place: Path) -> Callable[[ExportedProgram, Graph, str], None]:
    """What writes a lowered graph to a folder, in the format that is asked for."""
    if found.format == "onnx":
        from fsdino.export import onnx_files

        weights = onnx_files.Weights(place / WEIGHTS)

        def write_onnx(program: ExportedProgram, graph: Graph, key: str) -> None:
            path = place / found.graphs[key].file
            onnx_files.write(program, graph, path, weights, found.metadata(key))

        return write_onnx
    if found.kernels == "fsdino":
        library = native.library()
        shutil.copyfile(library, place / LIBRARY)

    def write_program(program: ExportedProgram, _: Graph, key: str) -> None:
        path = str(place / found.graphs[key].file)
        described = found.metadata(key)
        if found.format == "pt2":
            torch.export.save(program, path, extra_files=described)
        else:
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=path,
                inductor_configs={**portable_options(), "aot_inductor.metadata": described},
            )

    return write_program


def _licence(model: Segmenter, name: str | None) -> str:
    """Of the weights, as far as it is known."""
    for info in list_models():
        if info.name == name:
            return info.licence
    weights = model.config.encoder_weights
    return "not recorded" if weights is None else weights.licence


def _versions(format: str) -> dict[str, str]:
    packages = ["torch", *(("onnx", "onnxscript") if format == "onnx" else ())]
    found = {package: metadata.version(package) for package in packages}
    return {"fsdino": __version__, "python": platform.python_version(), **found}
