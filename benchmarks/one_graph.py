"""One OpenVINO graph for any number of classes and photographs, beside graphs of fixed numbers.

`fsdino` compiles an exported graph once for each number of classes and photographs. Here one graph
is compiled for all of them, and runs sequences of queries whose numbers change; each run is
compared with the graph of its own number. A sequence has a process of its own, since it may end
the process. `benchmarks/exported.py` calls `measure`; the process is

    python benchmarks/one_graph.py DIR THREADS '[[1, 1], [1, 1], [1, 2]]'

for the classes of each run and the photographs of each class. It prints the largest difference of
each run's probabilities.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, CalledProcessError, run
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from photo_pairs import HELD_OUT, load_pairs

from fsdino import processes as sharing
from fsdino.export import runtimes
from fsdino.export.segmenter import ExportedSegmenter

WRONG = 1e-2  # differences of probabilities above this are not rounding
LARGE = 0.05  # share of a photograph that an object covers which needs no close-up

Numbers = tuple[int, int]  # of classes, and of photographs of each
SEQUENCES: dict[str, list[Numbers]] = {
    "44 × 1": [(1, 1)] * 44,
    "1, 1, 2": [(1, 1), (1, 1), (1, 2)],
    "12 × 1, 2, 2, 1, 1": [*[(1, 1)] * 12, (1, 2), (1, 2), (1, 1), (1, 1)],
    "1, 2, 2, 3": [(1, 1), (1, 2), (1, 2), (1, 3)],
    "8 × (1, 5)": [(1, 1), (1, 5)] * 8,
    "12 × 5, 1, 4, 5": [*[(1, 5)] * 12, (1, 1), (1, 4), (1, 5)],
    "1, 1, 1 of 2 classes, 1 of 3 classes": [(1, 1), (1, 1), (2, 1), (3, 1)],
}


def measure(folder: Path, threads: int) -> list[dict[str, Any]]:
    """Which run of each sequence is the first that is wrong.

    Args:
        folder: of an ONNX export of a training-free model.
        threads: of OpenVINO.

    Returns:
        For each sequence the number (from 1) of the first run that ends the process, or whose
        probabilities differ by more than `WRONG`, or None; the signal that ended the process, or
        None; and the largest finite difference.
    """
    return [
        {"photographs": name, **summary(*child(folder, threads, sequence))}
        for name, sequence in SEQUENCES.items()
    ]


def child(folder: Path, threads: int, sequence: Sequence[Numbers]) -> tuple[list[float], int]:
    """The differences of a sequence in a process of its own, and the status that it ends with."""
    command = [sys.executable, __file__, str(folder), str(threads), json.dumps(sequence)]
    done = run(command, stdout=PIPE, text=True, check=False)
    if done.returncode > 0:  # an error of this program; a signal is what is looked for
        raise CalledProcessError(done.returncode, command)
    return [*map(float, done.stdout.split())], done.returncode


def summary(differences: Sequence[float], status: int) -> dict[str, Any]:
    """What `measure` says of a sequence."""
    wrong = [place for place, value in enumerate(differences, 1) if not value <= WRONG]
    if status:
        wrong.append(len(differences) + 1)
    largest = max(filter(math.isfinite, differences), default=None)
    return {
        "first_wrong": wrong[0] if wrong else None,
        "signal": -status or None,
        "largest": None if largest is None else float(f"{largest:.2g}"),
    }


class Both:
    """The graphs that fsdino runs, and beside its queries the one for all numbers."""

    def __init__(self, folder: Path) -> None:
        import openvino  # of an extra

        self._graphs = runtimes.Graphs(folder, "openvino")
        self.exported = self._graphs.exported
        self.support = self._graphs.support
        core = openvino.Core()
        model = core.read_model(folder / self.exported.graphs["query"].file)
        options = {**runtimes.OPENVINO_OPTIONS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._one = core.compile_model(model, "CPU", options)

    def query(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What fsdino's graph gives; prints how far the other one is from it."""
        expected = self._graphs.query(inputs)
        found = self._one({name: np.ascontiguousarray(array) for name, array in inputs.items()})
        print(np.abs(found["probability"] - expected["probability"]).max(), flush=True)
        return expected


def main(folder: str, threads: str, sequence: str) -> None:
    """Run a sequence."""
    pairs = load_pairs(HELD_OUT)
    shown = [pair.supports[0] for pair in pairs if pair.supports[0].mask.mean() >= LARGE]
    with sharing.threads(int(threads)):
        segmenter = ExportedSegmenter.of(Both(Path(folder)))
        for place, (classes, shots) in enumerate(json.loads(sequence)):
            supports = {}
            for k in range(classes):
                of_class = shown[k * shots : (k + 1) * shots]
                images, masks = [s.image for s in of_class], [s.mask for s in of_class]
                supports[f"{k}"] = segmenter.encode_support(images, masks, warn=False)
            segmenter.segment(pairs[place % len(pairs)].query.image, supports)


if __name__ == "__main__":
    main(*sys.argv[1:])
