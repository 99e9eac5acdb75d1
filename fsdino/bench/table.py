"""A comparison of backends for people: its table, and that on stdout."""

from __future__ import annotations

from fsdino.bench.compare import Comparison
from fsdino.tables import print_table


def print_comparison(comparison: Comparison) -> None:
    """A table on stdout: time, ratio, speed and, where it was measured, memory."""
    peak = f"; sgemm {comparison.peak / 1e9:.1f} GFLOP/s"
    print_table(*table(comparison), comparison.title + peak)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds >= 1e-3 else f"{1000 * seconds:.4f}"


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """A comparison for people: headers, and a row for each implementation."""
    headers = ["", "median ms", "× eager", "GFLOP/s", "% of sgemm"]
    measured = any(timing.memory is not None for timing in comparison.timings)
    if measured:
        headers.append("peak MB")
    rows = []
    for timing in comparison.timings:
        ratio, speed, median = comparison.ratio(timing), comparison.speed(timing), timing.median
        row = [timing.name, "check failed" if median is None else _milliseconds(median)]
        row.append("–" if ratio is None else f"{ratio:.2f}")
        row.append("–" if speed is None else f"{speed / 1e9:.1f}")
        row.append("–" if speed is None else f"{100 * speed / comparison.peak:.0f}")
        if measured:
            row.append("–" if timing.memory is None else f"{timing.memory / 1e6:.0f}")
        rows.append(row)
    empty = ["–"] * (len(headers) - 1)
    rows += [[f"{name}: {reason}", *empty] for name, reason in comparison.missing.items()]
    return headers, rows
