"""Time the blocks alone, `center_pivot_block4d`."""

from __future__ import annotations


def parts(workload: str, weights: str) -> tuple[str, ...]:
    """Once in each backend's own memory layout, once contiguous for all."""
    if workload == "HR":
        return ()
    if workload == "tiny":
        return ("blocks",) if weights == "ce" else ()
    return ("blocks",) if weights == "foreground" else ("blocks", "blocks-contiguous")


def test_center_pivot_block4d(measure, case, implementation):
    """`blocks` reads a correlation as the implementation's own `correlation4d` lays it out."""
    measure(case, implementation)
