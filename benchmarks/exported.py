"""Exported models beside PyTorch: `python benchmarks/exported.py --out DIR`.

Exports models into a folder and measures them on the held-out pairs of tests/photographs, on a CPU:
milliseconds for a query (medians; all rows take turns in each round), mean IoU, and how far the
probabilities are from those of PyTorch in float32. The rows are PyTorch in float32 and bfloat16,
onnxruntime in float32 and in int8 (static quantisation of the encoder's convolutions and products,
calibrated on the other pairs, which share no picture with those that are measured), OpenVINO in
float32 and with its own bfloat16, and in float32 the programs of torch.export and the packages of
AOTInductor, each with matrix products and with the C++ kernels. Then one OpenVINO graph for all
numbers of photographs (`one_graph.py`), and the peak memory of a process that answers one query
with DINOv2-B at 518 pixels in onnxruntime. Prints tables and writes a JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import one_graph
import onnx
import torch
import torch._inductor
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from photo_pairs import FOLDER, HELD_OUT, Pair, load_pairs

import fsdino
from fsdino import files, resizing
from fsdino import processes as sharing
from fsdino.bench.record import machine, write_record
from fsdino.errors import FsdinoError
from fsdino.export import runtimes
from fsdino.export.folder import DESCRIPTION, LIBRARY, Exported
from fsdino.export.segmenter import ExportedSegmenter
from fsdino.export.write import export_model
from fsdino.models import zoo
from fsdino.models.segmenter import Segmenter
from fsdino.tables import print_table

PHOTO, SIZE = "fsdino-photo", 448
LARGE = fsdino.ModelConfig(encoder="vit_base_patch14_dinov2", image_size=518)
SHOTS = (1, 5)
QUANTISED = ["Conv", "MatMul", "Gemm"]
TORCH32, TORCH16 = "PyTorch, float32", "PyTorch, bfloat16"
ONNX32, ONNX8 = "onnxruntime, float32", "onnxruntime, int8"
OPENVINO32, OPENVINO16 = "OpenVINO, float32", "OpenVINO, bfloat16"
PROGRAMS = {"pt2": "torch.export", "aoti": "AOTInductor"}
WITH = {"plain": "matrix products", "fsdino": "C++ kernels"}
PACKAGES = ("onnx", "onnxruntime", "openvino")

Row = dict[str, Any]
Ask = Callable[[Pair], npt.NDArray[np.float32]]


# ---------------------------------------------------------------------------------- the models


def export(model: Segmenter, folder: Path, size: int, name: str, **options: str) -> None:
    """Export a model; an export that is there is taken."""
    if not (folder / DESCRIPTION).exists():
        export_model(model, folder, size=(size, size), name=name, **options)


def at_size(model: Segmenter, size: int) -> Segmenter:
    """A PyTorch model whose images have the size of the export, whatever their aspect ratio."""
    model._prepare = lambda array: resizing.to_tensor(array, (size, size))  # type: ignore[method-assign]
    return model


class Programs:
    """The graphs of an export for PyTorch, run in this process.

    Args:
        folder: of `fsdino export --format pt2` or `--format aoti`.
    """

    def __init__(self, folder: Path) -> None:
        self.exported = Exported.read(folder)
        if self.exported.kernels == "fsdino":
            torch.ops.load_library(folder / LIBRARY)
        self._programs: dict[str, Callable[..., Sequence[torch.Tensor]]] = {}
        for name, graph in self.exported.graphs.items():
            path = str(folder / graph.file)
            self._programs[name] = (
                torch._inductor.aoti_load_package(path)
                if self.exported.format == "aoti"
                else torch.export.load(path).module()
            )

    def support(self, inputs: runtimes.Arrays) -> dict[str, npt.NDArray[Any]]:
        """The tensors of a support."""
        return self._run("support", inputs)

    def query(self, inputs: runtimes.Arrays) -> dict[str, npt.NDArray[Any]]:
        """`probability` and `score` of the classes."""
        return self._run("query", inputs)

    def _run(self, name: str, inputs: runtimes.Arrays) -> dict[str, npt.NDArray[Any]]:
        graph = self.exported.graphs[name]
        with torch.inference_mode():
            given = [np.ascontiguousarray(inputs[slot.name]) for slot in graph.inputs]
            found = self._programs[name](*map(torch.from_numpy, given))
        return {slot.name: t.numpy() for slot, t in zip(graph.outputs, found, strict=True)}


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Inputs of a graph for the photographs of some pairs."""

    def __init__(self, inputs: Sequence[dict[str, npt.NDArray[Any]]]) -> None:
        self._rest = iter(inputs)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next inputs; None after the last."""
        return next(self._rest, None)


def quantise(folder: Path, target: Path, pairs: Sequence[Pair]) -> None:
    """An export with 8-bit weights and activations in its encoder, calibrated on pairs."""
    graphs = runtimes.Graphs(folder, "onnx")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    shown = [inputs_of_support(pair) for pair in pairs]
    supports = [graphs.support(inputs) for inputs in shown]
    asked = [slot.name for slot in graphs.exported.graphs["query"].inputs[1:]]
    queries = [
        {"image": pair.query.image, **{name: support[name][None] for name in asked}}
        for pair, support in zip(pairs, supports, strict=True)
    ]
    for key, inputs in (("support", shown), ("query", queries)):
        file = graphs.exported.graphs[key].file
        quantize_static(
            folder / file,
            target / file,
            Calibration(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTISED,
            nodes_to_quantize=encoder_nodes(folder / file),
        )
        keep_metadata(folder / file, target / file)
    content = json.loads((target / DESCRIPTION).read_text())
    content["sha256"] = {file: files.sha256(target / file) for file in content["sha256"]}
    files.write_json(target / DESCRIPTION, content)


def encoder_nodes(path: Path) -> list[str]:
    """Names of the nodes that take weights of the file itself, and no tensor of a support."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in QUANTISED and any(name in weights for name in node.input[1:2])
    ]


def keep_metadata(source: Path, target: Path) -> None:
    """Copy the metadata, which quantisation leaves out."""
    model = onnx.load(target)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(source, load_external_data=False).metadata_props)
    onnx.save(model, target)


def inputs_of_support(pair: Pair) -> dict[str, npt.NDArray[Any]]:
    """The graph's inputs for a pair's first photograph."""
    shot = pair.supports[0]
    return {
        "image": shot.image[None],
        "mask": shot.mask[None].astype(np.uint8),
        "sizes": np.array([shot.mask.shape], np.int64),
        "places": np.array([[0, 0, 1]], np.float32),
    }


# --------------------------------------------------------------------------------- what is measured


def asks(
    model: Segmenter, folder: Path, quantised: Path, programs: Mapping[str, Path]
) -> Iterator[tuple[str, Ask]]:
    """A function for each row, which gives the probabilities [H, W] of a pair's query.

    Args:
        model: that was exported.
        folder: of its ONNX export.
        quantised: of the one in int8.
        programs: folders of those for PyTorch, by the names of their rows.
    """
    yield TORCH32, ask_segmenter(model)
    half = fsdino.load(PHOTO, dtype="bfloat16")
    yield TORCH16, ask_segmenter(at_size(half, SIZE))
    yield ONNX32, ask_segmenter(ExportedSegmenter(folder, "onnx"))
    yield ONNX8, ask_segmenter(ExportedSegmenter(quantised, "onnx"))
    yield OPENVINO32, ask_segmenter(ExportedSegmenter(folder, "openvino"))
    with openvino_bfloat16():
        yield OPENVINO16, ask_segmenter(ExportedSegmenter(folder, "openvino"))
    for name, place in programs.items():
        yield name, ask_segmenter(ExportedSegmenter.of(Programs(place)))


def ask_segmenter(segmenter: Any) -> Ask:
    """Ask a segmenter; the support of a pair is encoded once."""
    known: dict[str, Any] = {}

    def ask(pair: Pair) -> npt.NDArray[np.float32]:
        if pair.name not in known:
            shots = [(shot.image, shot.mask) for shot in pair.supports]
            images, masks = ([*column] for column in zip(*shots, strict=True))
            known[pair.name] = segmenter.encode_support(images, masks)
        found: npt.NDArray[np.float32] = segmenter.segment(
            pair.query.image, known[pair.name]
        ).probabilities[0]
        return found

    return ask


def measure(
    rows: Sequence[tuple[str, Ask]], pairs: Sequence[Pair], rounds: int, threshold: float
) -> list[Row]:
    """Time, IoU and difference of each row."""
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    failed = []
    for name, ask in rows:
        try:
            found[name] = [ask(pair) for pair in pairs]
        except FsdinoError as error:
            failed.append({"row": name, "error": str(error)})
    able = [(name, ask) for name, ask in rows if name in found]
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for pair in pairs:
            for name, ask in able:
                began = time.perf_counter()
                ask(pair)
                seconds[name].append(time.perf_counter() - began)
    exact = found[TORCH32]
    measured = [
        {
            "row": name,
            "milliseconds": round(1000 * statistics.median(seconds[name]), 2),
            "iou": round(100 * mean_iou(maps, pairs, threshold), 2),
            "differences": differences(maps, exact, threshold),
        }
        for name, maps in found.items()
    ]
    return [*measured, *failed]


def differences(
    maps: Sequence[npt.NDArray[np.float32]],
    exact: Sequence[npt.NDArray[np.float32]],
    threshold: float,
) -> Row:
    """How far probabilities are from those of PyTorch in float32, over pairs.

    `flipped` counts pixels on the other side of the threshold, but for those within 1e-3 of it.
    """
    largest = [float(np.abs(a - b).max()) for a, b in zip(maps, exact, strict=True)]
    flipped = sum(
        int((((a >= threshold) != (b >= threshold)) & (np.abs(b - threshold) > 1e-3)).sum())
        for a, b in zip(maps, exact, strict=True)
    )
    return {
        "largest": float(f"{max(largest):.2g}"),
        "median": float(f"{statistics.median(largest):.2g}"),
        "above_1e-4": sum(value > 1e-4 for value in largest),
        "flipped": flipped,
    }


def mean_iou(
    maps: Sequence[npt.NDArray[np.float32]], pairs: Sequence[Pair], threshold: float
) -> float:
    """Mean over pairs of the IoU of their queries' masks."""
    ious = []
    for probability, pair in zip(maps, pairs, strict=True):
        scored = True if pair.query.ignored is None else ~pair.query.ignored
        mask, truth = (probability >= threshold) & scored, pair.query.mask & scored
        ious.append((mask & truth).sum() / max((mask | truth).sum(), 1))
    return float(np.mean(ious))


MEMORY = """
import sys
import numpy as np, onnxruntime, json
folder, shots = sys.argv[1], int(sys.argv[2])
described = json.load(open(folder + "/export.json"))["graphs"]["query"]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(folder + "/" + described["file"], options)
lengths = {"classes": 1, "shots": shots, "views": shots, "height": 600, "width": 800}
draw = np.random.default_rng(0)
given = {}
for slot in described["inputs"]:
    shape = [lengths.get(dim, dim) for dim in slot["dims"]]
    given[slot["name"]] = (
        draw.integers(0, 256, shape, np.uint8) if slot["dtype"] == "uint8"
        else draw.random(shape, np.float32)
    )
session.run(None, given)
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(line.split()[1]) * 1024 / 1e9)
"""


def peak_memory(folder: Path, shots: int) -> float:
    """Peak of a process that runs one query of 600 x 800 pixels, in GB."""
    command = [sys.executable, "-c", MEMORY, str(folder), str(shots)]
    return round(float(subprocess.check_output(command, text=True)), 2)


# ------------------------------------------------------------------------------------------ the run


@contextlib.contextmanager
def openvino_bfloat16() -> Iterator[None]:
    """Within, OpenVINO computes as it would unasked on processors that have bfloat16."""
    hint = runtimes.OPENVINO_OPTIONS["INFERENCE_PRECISION_HINT"]
    runtimes.OPENVINO_OPTIONS["INFERENCE_PRECISION_HINT"] = "bf16"
    try:
        yield
    finally:
        runtimes.OPENVINO_OPTIONS["INFERENCE_PRECISION_HINT"] = hint


def sizes(folder: Path) -> dict[str, float]:
    """MB of an export's graphs and weights."""
    names = Exported.read(folder).hashes
    return {name: round((folder / name).stat().st_size / 1e6, 2) for name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Export what is missing, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the exports")
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/exported.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(arguments)
    model = at_size(fsdino.load(PHOTO), SIZE)
    folder, quantised = options.out / "photo", options.out / "photo-int8"
    export(model, folder, SIZE, PHOTO)
    quantise(folder, quantised, load_pairs(FOLDER))
    programs = {}
    for (format, program), (kernels, name) in product(PROGRAMS.items(), WITH.items()):
        place = programs[f"{program}, {name}"] = options.out / f"photo-{format}-{kernels}"
        export(model, place, SIZE, PHOTO, format=format, kernels=kernels)
    pairs, results = load_pairs(HELD_OUT), {}
    for threads in options.threads:
        with sharing.threads(threads):
            rows = measure([*asks(model, folder, quantised, programs)], pairs, options.rounds,
                           model.config.threshold)  # fmt: skip
        results[str(threads)] = rows
        print(f"{PHOTO} at {SIZE} pixels, {len(pairs)} held-out pairs, threads: {threads}")
        print_table(
            ["", "ms a query", "mean IoU", "largest difference"],
            [[row["row"], f"{row['milliseconds']:.1f}", f"{row['iou']:.2f}",
              f"{row['differences']['largest']:.1e}"] if "iou" in row
             else [row["row"], "fails", "", ""] for row in rows],
        )  # fmt: skip
    threads = max(options.threads)
    sequences = one_graph.measure(folder, threads)
    print(f"One OpenVINO graph for all numbers of photographs, threads: {threads}")
    print_table(
        ["photographs in each run", "first wrong run", "signal", "largest difference"],
        [[str(value) for value in row.values()] for row in sequences],
    )
    large = options.out / "dinov2-b"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        export(zoo.assemble(LARGE), large, LARGE.image_size, "dinov2-b, full")
    memory = {str(shots): peak_memory(large, shots) for shots in SHOTS}
    for shots, peak in memory.items():
        print(f"DINOv2-B full at 518 pixels in onnxruntime, shots: {shots}, peak {peak:.2f} GB")
    write_record(
        options.record,
        "python benchmarks/exported.py --out DIR",
        packages=PACKAGES,
        model=PHOTO,
        size=SIZE,
        pairs=len(pairs),
        rounds=options.rounds,
        results=results,
        one_graph={"threads": threads, "sequences": sequences},
        megabytes={"float32": sizes(folder), "int8": sizes(quantised)},
        memory={"model": dataclasses.asdict(LARGE)["encoder"], "gigabytes": memory},
        machine=machine(),
    )


if __name__ == "__main__":
    main()
