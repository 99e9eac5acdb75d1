"""A dry run of the GPU suite: all of its code and Triton's launcher, on tiny sizes, without a GPU.

Nothing is computed, and so results are not compared. Any other error would cost minutes of a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_suite
import gpu_timing
import pytest
from gpu_suite import SECONDS, Suite

from fake_gpu import Graph
from fsdino.bench import baseline, exactness
from fsdino.kernels import backend

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.usefixtures("inline"),
]
# Of checks whose results nothing computed.
COMPARISONS = ("AssertionError", "'passed': False")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, fake_gpu: str) -> str:
    """A GPU on which Triton launches, on sizes as tiny as a CPU's; no result of a row is wrong."""
    sized = Suite.sized

    def tiny(suite: Suite, workload: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Suite, "on_gpu", False)
            return sized(suite, workload)

    monkeypatch.setattr(Suite, "sized", tiny)
    monkeypatch.setattr(Suite, "turns", 0.01)
    monkeypatch.setattr(backend, "_why_not_interpreted", lambda dtype: None)
    monkeypatch.setattr(exactness, "error", lambda *results: 0.5)
    kernels_row = gpu_timing.kernels_row

    def profiled(workload: Any, dtype: str, _: str, *what: str) -> Any:
        return kernels_row(workload, dtype, "cpu", *what)  # the profiler wants a true GPU

    monkeypatch.setattr(gpu_timing, "kernels_row", profiled)
    monkeypatch.setattr(gpu_timing, "CEILING", gpu_timing.TINY_CEILING)
    monkeypatch.setattr(gpu_timing, "_compiled", lambda: baseline.chain)
    return fake_gpu


def dry_run(out: Path, device: str, *names: str) -> dict[str, Any]:
    """The parts of a record of the whole suite."""
    one = Suite(out, device, ["triton"], list(SECONDS), 1000.0, 1, names)
    one.run()
    assert not one.missing
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())["parts"]
    return found


def errors(found: dict[str, Any]) -> Iterator[str]:
    """What failed for another reason than a result."""
    for check in found["correctness"]["failed"]:
        said = check.get("failed", "'passed': False")
        if not any(words in said for words in COMPARISONS):
            yield f"{check['check']}: {said}"
    for part in found.values():
        for row in part.get("rows", []):
            if "asked" in row:
                yield str(row)
            for name, result in (row.get("implementations", {}) | row.get("peaks", {})).items():
                if "error" not in result:
                    yield f"{name}: {result}"


def test_every_part(tmp_path: Path, machine: str) -> None:
    """Each launch is bound and specialised; what was timed is ours, called and replayed."""
    from fsdino.bench import launches

    with launches.recorded(90) as seen:
        found = dry_run(tmp_path, machine, "plain", "three blocks")
    assert list(errors(found)) == []
    assert not found["correctness"]["not_run"]
    kernels = {launch.kernel for launch in seen}
    assert {"product_kernel", "correlation_kernel", "walk_kernel"} <= kernels
    rows = found["timing"]["rows"]
    assert len(rows) == len(gpu_suite.HEADLINE) + len(gpu_suite.ROWS) + 1
    for row in rows:
        assert "seconds" in row["implementations"]["triton, tokens, graph"]
    assert Graph.replays > 0


@pytest.mark.slow
def test_every_part_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    """The same with machine code for sm_90, of fewer rows."""
    from fsdino.bench import launches

    monkeypatch.setattr(gpu_suite, "ROWS", gpu_suite.ROWS[:1])
    monkeypatch.setattr(gpu_checks, "DTYPES", ("bfloat16",))
    with launches.recorded(90, compiles=True) as seen:
        found = dry_run(tmp_path, machine, "plain", "three blocks")
    assert list(errors(found)) == []
    assert len(seen) > 100
    assert "compiled for sm_90a" in found["preflight"]["Triton"]["said"]
