"""Time and memory of a model, in a process of its own: `python benchmarks/photo_latency.py MODEL`.

Prints one JSON object. Either a 640 x 480 array to its mask, the support encoded before, or a
folder of such pictures through `fsdino segment`. The number of threads is also the number of cores
that the process may use.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

import fsdino
from fsdino import processes as sharing
from fsdino.errors import FsdinoError

# Without AVX-512, which not every processor has.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
WIDTH, HEIGHT = 640, 480
PICTURES = Path(__file__).resolve().parent.parent / "tests" / "photographs"
STATUS = Path("/proc/self/status")


def measure(model: str, threads: int, *, repeats: int = 20, files: int | None = None) -> Any:
    """What this file prints, of a new process that does nothing else.

    Args:
        model: name or folder.
        threads: of PyTorch, and cores.
        repeats: how often the array is segmented.
        files: pictures in the folder; None measures the array.

    Raises:
        FsdinoError: the process failed; with the last line that it wrote.
    """
    command = [sys.executable, __file__, model, "--threads", str(threads)]
    command += ["--repeats", str(repeats)] if files is None else ["--files", str(files)]
    # Threads wait as they do where nobody chose how: a benchmark beside others may have chosen. A
    # folder is segmented by a command, which chooses.
    inherited = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    if files is not None:
        inherited["OMP_WAIT_POLICY"] = "PASSIVE"
    run = subprocess.run(
        command,
        check=False,
        env={**inherited, **AVX2, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise FsdinoError(f"{model} could not be timed with {threads} threads: {last}")
    return json.loads(run.stdout)


def picture(name: str) -> Image.Image:
    """One of the repository's photographs at 640 x 480."""
    return Image.open(PICTURES / name).convert("RGB").resize((WIDTH, HEIGHT))


def time_array(model: str, repeats: int) -> dict[str, Any]:
    """Seconds from an array to its mask: the median after a first, uncounted call."""
    segmenter = fsdino.load(model)
    mask = Image.open(PICTURES / "coffee_mask.png").resize(
        (WIDTH, HEIGHT), Image.Resampling.NEAREST
    )
    support = segmenter.encode_support(picture("coffee.jpg"), np.asarray(mask) == 255)
    query = np.asarray(picture("astronaut.jpg"))
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        _ = segmenter.segment(query, support).mask
        seconds.append(time.perf_counter() - began)
    return {
        "milliseconds": round(1000 * statistics.median(seconds[1:]), 1),
        "slowest_milliseconds": round(1000 * max(seconds[1:]), 1),
        "repeats": repeats,
    }


def time_folder(model: str, files: int) -> dict[str, Any]:
    """Seconds of `fsdino segment` over a folder of JPEG files, the model's loading included.

    The command runs in this process, which has paid for the imports that every command needs.
    """
    names = [file.name for file in sorted(PICTURES.glob("*.jpg"))]
    with tempfile.TemporaryDirectory() as folder:
        queries = Path(folder, "queries")
        queries.mkdir()
        for index in range(files):
            picture(names[index % len(names)]).save(queries / f"{index:04d}.jpg", quality=90)
        support = [str(PICTURES / "coffee.jpg"), str(PICTURES / "coffee_mask.png")]
        began = time.perf_counter()
        segment(
            *("--support", *support, "--query", str(queries)),
            *("--out", str(Path(folder, "found")), "--model", model, "--device", "cpu"),
        )
        seconds = time.perf_counter() - began
    return {"files": files, "seconds": round(seconds, 2)}


def segment(*arguments: str) -> None:
    """`python -m fsdino segment` in this process, without its tables."""
    words = ["fsdino", "segment", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(sys, "argv", words):
        try:
            runpy.run_module("fsdino", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise


def peak_megabytes() -> float | None:
    """The largest resident set of this process; None where the system does not tell."""
    if not STATUS.is_file():
        return None
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
    return round(1024 * int(line.split()[1]) / 1e6, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--files", type=int, help="segment a folder of this many pictures instead")
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    with sharing.threads(options.threads):
        if options.files is None:
            row = time_array(options.model, options.repeats)
        else:
            row = time_folder(options.model, options.files)
    print(json.dumps({"threads": options.threads, **row, "peak_megabytes": peak_megabytes()}))


if __name__ == "__main__":
    main()
