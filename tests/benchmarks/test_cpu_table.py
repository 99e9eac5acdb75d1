"""The tables on the C++ kernels, from records by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cpu_table
import pytest


def comparison(workload: str, part: str, threads: int, **medians: float) -> dict[str, Any]:
    timings = [
        {
            "name": name,
            "median": median,
            "share_of_peak": 0.5,
            "memory": 2**20 * (9 - n),
            "rounds": 9,
        }
        for n, (name, median) in enumerate(medians.items())
    ]
    return {
        "workload": workload, "part": part, "foreground": None, "threads": threads,
        "timings": timings,
    }  # fmt: skip


def record(*results: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "pytest benchmarks",
        "results": list(results),
        "machine": {"processor": "A", "cores": 2, "instruction_set": "AMX"},
        "environment": {"processor": "A, 2 threads"},
    }


FOUND = record(
    comparison("W12", "chain", 1, eager=3.0, compiled=1.5, cpp=1.0, reference=4.0),
    comparison("W12", "chain", 2, eager=1.0, compiled=0.5, cpp=0.75, reference=4.0),
    comparison("HR", "fused-block", 2, eager=3.0, compiled=2.0, cpp=1.0, reference=4.0),
    comparison("tiny", "blocks", 1, eager=3e-5, compiled=5e-5, cpp=2e-5, reference=9e-5),
)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(cpu_table, "RESULTS", tmp_path)
    monkeypatch.setattr(cpu_table, "DOCUMENT", tmp_path / "numbers.md")
    return tmp_path


def test_the_tables(results: Path) -> None:
    """By hand: times 3.0 / 1.0 and so on; what was not measured has no line."""
    (results / "cpu.json").write_text(json.dumps(FOUND))
    (results / "cpu-hr.json").write_text(json.dumps(FOUND))
    _, caption, speed, remark, where, memory, goals, _ = cpu_table.block().split("\n\n")
    assert caption.startswith("**float32**: A (AMX), 2 cores, medians of 9 rounds")
    head, *lines = speed.splitlines()
    assert head.endswith("| compiled | `cpp` | times eager | times compiled | share of the peak |")
    assert lines == [
        "|---|---|---|---|---|---|---|---|",
        "| W12, all, signed weights | 1 | 3.000 s | 1.500 s | 1.000 s | 3.00 | 1.50 | 50 % |",
        "| | 2 | 1.000 s | 0.500 s | 0.750 s | 1.33 | 0.67 | 50 % |",
    ]
    assert where.startswith("Memory (`pytest benchmarks`")
    assert memory.splitlines()[-1] == (
        "| HR, first block, the correlation never held | 9 MiB | 8 MiB | 7 MiB |"
    )
    assert goals.splitlines()[0] == "| goal, and what was reached | float32 |"
    assert "| W12, all, signed weights: times as fast as eager | 2.3: 1.33, missed |" in goals
    assert "| T12, all, signed weights: times as fast as eager | – |" in goals
    assert "| HR, first block: eager memory over ours | 8: 1.29, missed |" in goals
    assert "In 3 of 4 comparisons of this record `cpp` is the fastest" in remark
    assert "slower than the fastest in: W12 chain, 2 threads (1.50 times)." in remark
    assert "it takes\n20 to 20 µs, eager code 30 to 30 µs" in remark


def test_other_types_follow(results: Path) -> None:
    """Without a share of the peak, which is one of float32."""
    for name in ("cpu.json", "cpu-bfloat16.json"):
        (results / name).write_text(json.dumps(FOUND))
    first, second = cpu_table.block().split("**bfloat16**")
    assert "share of the peak" in first and "share of the peak" not in second
    assert "| | 2 | 1.000 s | 0.500 s | 0.750 s | 1.33 | 0.67 |\n" in second


def test_the_document_is_written(results: Path) -> None:
    """What stood there goes, what stands around stays; a picture is shown if there is one."""
    (results / "cpu.json").write_text(json.dumps(FOUND))
    (results / cpu_table.PICTURE).write_text("<svg/>")
    old = f"before\n{cpu_table.BEGIN}\nold\n{cpu_table.END}\nafter\n"
    cpu_table.DOCUMENT.write_text(old)
    cpu_table.main()
    text = cpu_table.DOCUMENT.read_text()
    assert text == f"before\n{cpu_table.block()}\nafter\n" and "](cpu-kernels.svg)" in text
