"""The plot by grid side: what it shows, where its labels are, and mistakes before anything runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from fsdino.bench import compare, plot
from fsdino.bench.compare import Comparison, Timing
from fsdino.bench.workloads import Workload
from fsdino.errors import FsdinoError, UsageError

MINI = Workload("mini", batch=1, layers=2, grid=7, channels=16, block_channels=(8,))


def points() -> plot.Points:
    """By hand: eager 1, 2 and 3 s in float32, half of that in bfloat16; wrong results at 74."""
    found: plot.Points = {}
    for dtype, factor in (("float32", 1.0), ("bfloat16", 0.5)):
        for seconds, side in enumerate(plot.SIDES, start=1):
            slow = Timing("eager", 0.1, (factor * seconds,))
            fast = (
                Timing("cpp", 0.1, (factor * seconds / 4,)) if side < 74 else Timing("cpp", 9, ())
            )
            found[dtype, side] = Comparison(
                f"W12 at grid {side}", dtype, "cpu", (slow, fast), {}, threads=2
            )
    return found


def test_the_lines_are_the_medians() -> None:
    """What failed its check has no point, and no line says otherwise."""
    assert plot._line(points(), "eager", "bfloat16") == [(19, 0.5), (37, 1.0), (74, 1.5)]
    assert plot._line(points(), "cpp", "float32") == [(19, 0.25), (37, 0.5)]


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_the_picture(suffix: str, tmp_path: Path) -> None:
    """Every line has its name beside it, and the title says where the times come from."""
    path = tmp_path / "new" / f"times{suffix}"
    plot.draw(points(), path, "A processor")
    if suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG")
        return
    texts = re.findall(r">([^<>]+)</text>", path.read_text(encoding="utf-8"))
    labels = {f"{name}, {dtype}" for name in ("eager", "cpp") for dtype in plot.DTYPES}
    ticks = {"19 × 19", "37 × 37", "74 × 74"}
    assert labels | ticks | {"W12, correlation and all blocks", "A processor, 2 threads"} <= {
        *texts
    }
    again = tmp_path / "again.svg"
    plot.draw(points(), again, "A processor")
    assert again.read_bytes() == path.read_bytes()


def test_labels_do_not_touch() -> None:
    """By hand: three close ones around their middle, those far away in their places."""
    gap = plot._GAP
    found = plot._spread([0.9, 0.50, 0.52, 0.51, 0.1])
    assert found == pytest.approx([0.9, 0.51 - gap, 0.51 + gap, 0.51, 0.1])


def test_every_grid_and_type_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager, compiled and the backend that was asked for, in as many rounds as were asked for."""
    monkeypatch.setattr(plot, "SIDES", (2, 3))
    monkeypatch.setitem(compare._SGEMM_SIDE, "cpu", 64)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    found = plot.measure(
        MINI, device=torch.device("cpu"), rounds=2, threads=1, foreground=0.5, backend="reference"
    )
    assert [*found] == [(d, side) for d in ("float32", "bfloat16") for side in (2, 3)]
    for (dtype, side), comparison in found.items():
        assert comparison.title.startswith(f"mini at grid {side}, {dtype}, cpu, 1 thread, 50 %")
        rounds = {timing.name: len(timing.seconds) for timing in comparison.timings}
        assert rounds == {"eager": 2, "compiled": 2, "reference": 2}


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An unknown suffix, a folder, and a missing library with what to install."""
    with pytest.raises(UsageError, match=r"--plot a\.pdf: the name must end in \.svg or \.png"):
        plot.check_file(Path("a.pdf"))
    folder = tmp_path / "a.svg"
    folder.mkdir()
    with pytest.raises(UsageError, match="this is a folder"):
        plot.check_file(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FsdinoError, match=r'needs matplotlib: pip install "fsdino\[plot\]"'):
        plot.check_file(Path("a.svg"))
