"""Seconds of a workload's chain by grid side and floating type, measured and drawn.

PyTorch and matplotlib are imported by what measures and draws, so that a mistake is said before.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from fsdino.bench.workloads import Workload
from fsdino.errors import FsdinoError, UsageError

if TYPE_CHECKING:
    import torch

    from fsdino.bench.compare import Comparison

SIDES = (19, 37, 74)
DTYPES = {"float32": "-", "bfloat16": "--"}  # with the styles of their lines
SUFFIXES = (".svg", ".png")

Points = dict[tuple[str, int], "Comparison"]  # by floating type and grid side

_COLORS = {"eager": "#6b7280", "compiled": "#b85400"}
_OURS = "#1f5fbf"
_GAP = 0.055  # between labels, as a share of the height


def check_file(path: Path) -> None:
    """Refuse a file that cannot be drawn, before anything is timed.

    Raises:
        UsageError: its suffix is not one of `SUFFIXES`, or it is a folder.
        FsdinoError: matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}: the name must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise UsageError(f"--plot {path}: a file is needed, this is a folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise FsdinoError('--plot needs matplotlib: pip install "fsdino[plot]"')


def measure(
    workload: Workload,
    *,
    device: torch.device,
    rounds: int,
    threads: int | None = None,
    foreground: float | None = None,
    backend: str = "auto",
) -> Points:
    """Compare the eager formulation, torch.compile of it and a backend on every grid and type.

    Args:
        workload: whose chain; its grid is replaced by each of `SIDES`.
        device: where.
        rounds: in which every implementation runs once.
        threads: of PyTorch on the CPU; None leaves them as they are.
        foreground: as in `fsdino.bench.compare.Bench`.
        backend: "auto", or the name of the one that is drawn beside the baseline.
    """
    from fsdino.bench.compare import Bench
    from fsdino.devices import find_dtype
    from fsdino.ops import backends

    points: Points = {}
    for name in DTYPES:
        for side in SIDES:
            sized = replace(workload, name=f"{workload.name} at grid {side}", grid=side)
            bench = Bench(sized, device=device, dtype=find_dtype(name), foreground=foreground)
            ours = backends.select("correlation4d", bench.inputs.query, backend)
            points[name, side] = bench.compare(
                threads=threads, rounds=rounds, only=[ours], compiled=True
            )
    return points


def draw(points: Points, path: Path, processor: str) -> None:
    """Write the picture: log-log, a line for each implementation and floating type, labelled.

    Args:
        points: as `measure` returns them; what failed its check has no point.
        path: a file with one of `SUFFIXES`; its folder is made.
        processor: name of the processor or GPU, for the title.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    first = next(iter(points.values()))
    named = dict.fromkeys(timing.name for point in points.values() for timing in point.timings)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fsdino", "font.size": 10}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        labels: list[tuple[float, str, str]] = []
        for name in named:
            color = _COLORS.get(name, _OURS)
            for dtype, style in DTYPES.items():
                line = _line(points, name, dtype)
                if not line:
                    continue
                sides, medians = zip(*line, strict=True)
                axes.plot(sides, medians, style, color=color, marker="o", markersize=4)
                labels.append((medians[-1], f"{name}, {dtype}", color))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(SIDES, [f"{side} × {side}" for side in SIDES])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.margins(y=0.12)
        axes.set_xlim(SIDES[0] * 0.93, SIDES[-1] * 1.9)
        axes.set_xlabel("tokens of query and support")
        axes.set_ylabel("seconds, median")
        axes.grid(axis="y", color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
        low, high = (math.log10(limit) for limit in axes.get_ylim())
        at = _spread([(math.log10(y) - low) / (high - low) for y, _, _ in labels])
        for (seconds, label, color), height in zip(labels, at, strict=True):
            level = 10 ** (low + height * (high - low))
            axes.plot([SIDES[-1] * 1.02, SIDES[-1] * 1.1], [seconds, level], color=color, lw=0.7)
            axes.text(SIDES[-1] * 1.12, level, label, color=color, va="center")
        workload = first.workload.partition(" at grid ")[0]
        threads = first.title.split(", ")[3]
        where = processor if first.device != "cpu" else f"{processor}, {threads}"
        axes.set_title(f"{workload}, correlation and all blocks\n{where}", loc="left", fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def _line(points: Points, name: str, dtype: str) -> list[tuple[int, float]]:
    """Grid sides and median seconds of one implementation."""
    return [
        (side, timing.median)
        for (of, side), point in sorted(points.items(), key=lambda item: item[0][1])
        for timing in point.timings
        if of == dtype and timing.name == name and timing.median is not None
    ]


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights of labels, in the order given: `_GAP` apart, and as near to their lines as can be."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    groups: list[list[float]] = []  # of labels that touch: what each, less its gaps, asks for
    for place, index in enumerate(order):
        groups.append([heights[index] - place * _GAP])
        while len(groups) > 1 and fmean(groups[-1]) < fmean(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    levels = [fmean(group) for group in groups for _ in group]
    placed = {index: levels[place] + place * _GAP for place, index in enumerate(order)}
    return [placed[index] for index in range(len(heights))]
