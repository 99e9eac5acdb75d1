"""The parts of torch.cuda that the GPU tools call, played on the CPU.

The tools take the device "cpu:0" for a GPU, since it is not called "cpu".
"""

from __future__ import annotations

TURN_MS = 8.0  # between any two events
CACHE_BYTES = 1000
FAKE_GPU = "cpu:0"


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return TURN_MS


class Stream:
    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None: ...


class Graph:
    """Replays nothing: what was captured stays as it is."""

    replays = 0

    def replay(self) -> None:
        Graph.replays += 1

    def pool(self) -> tuple[int, int]:
        return (0, 1)
