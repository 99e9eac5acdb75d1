"""The table of a comparison."""

from __future__ import annotations

from fsdino.bench.compare import Comparison, Timing
from fsdino.bench.table import table


def test_the_table_says_it_to_people():
    """Units by hand; no number beside a failed check; memory where it was measured."""
    timings = (
        Timing("eager", 0.1, (2.0,), memory=3_000_000),
        Timing("fast", 0.1, (0.0005,)),
        Timing("wrong", 2.0, ()),
    )
    why = {"gpu": "it needs a GPU"}
    found = Comparison("W6", "float32", "cpu", timings, why, flop=8e9, peak=16e9, threads=2)
    headers, rows = table(found)
    assert headers == ["", "median ms", "× eager", "GFLOP/s", "% of sgemm", "peak MB"]
    assert rows == [
        ["eager", "2000.0", "1.00", "4.0", "25", "3"],
        ["fast", "0.5000", "4000.00", "16000.0", "100000", "–"],
        ["wrong", "check failed", "–", "–", "–", "–"],
        ["gpu: it needs a GPU", "–", "–", "–", "–", "–"],
    ]
    assert found.title == "W6, float32, cpu, 2 threads, weights ±1, chain"
