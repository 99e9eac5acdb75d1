"""A GPU played on the CPU, for the tools that measure one."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace
from typing import Any

import gpu_behaviours
import gpu_suite
import pytest
import torch

from fake_gpu import CACHE_BYTES, FAKE_GPU, Event, Graph, Stream
from fsdino.ops import backends
from inline_workers import Inline, run_inline


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a device that the tools take for a GPU."""

    @contextlib.contextmanager
    def graph(_: Graph, pool: Any = None) -> Any:
        assert pool in {None, (0, 1)}
        yield

    facts = SimpleNamespace(
        name="Fake", major=9, minor=0, multi_processor_count=132, total_memory=1,
        L2_cache_size=CACHE_BYTES, uuid="fake",
    )  # fmt: skip
    fakes = {
        "Event": Event, "Stream": Stream, "CUDAGraph": Graph, "graph": graph,
        "stream": lambda stream: contextlib.nullcontext(), "current_stream": Stream,
        "synchronize": lambda device=None: None, "empty_cache": lambda: None,
        "get_device_properties": lambda device: facts,
        "get_device_capability": lambda device: (9, 0),
        "device_count": lambda: 1, "_sleep": lambda cycles: None,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 100,
        "max_memory_allocated": lambda device: 1000,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    Graph.replays = 0
    return FAKE_GPU


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    Inline.calls = []
    monkeypatch.setattr(gpu_suite, "Worker", Inline)
    monkeypatch.setattr(gpu_suite, "run_all", run_inline)
    for name in ("torch.compile", "opcheck"):  # they take seconds, and have tests of their own
        monkeypatch.delitem(gpu_behaviours.BEHAVIOURS, name)


@pytest.fixture
def correlates_only(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a backend that has one op, as `cuda` has: the reference's correlation."""

    def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if op == "correlation4d" else f"it has no {op}: use another"

    known = backends._registry["reference"]
    one = dataclasses.replace(known, name="one", priority=-1, why_not=why_not)
    monkeypatch.setitem(backends._registry, "one", one)
    return "one"
