"""What every test runs under: poisoned memory, a fair number of threads, no unexpected skip."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

# Read by cuBLAS when it starts; without it deterministic mode warns at every product on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Read when torch is imported: on a busy machine, threads that spin while they wait slow each other
# down by more than an order of magnitude.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Read when NumPy and SciPy are imported, here and in new processes: their own library for products
# knows no other way to wait than to spin. PyTorch, and so the kernels, keep their threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch

pytest_plugins = ["command_line"]

EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores this process may use: the affinity mask, and a container's quota where one is set."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if CGROUP_LIMIT.is_file():
        quota, period = CGROUP_LIMIT.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of backends where those cannot run in this process, or lack the op.

    On the CPU `triton` needs its interpreter, which has to be chosen before Triton is imported, and
    `cuda` the emulator: the tests in tests/kernels/test_backend.py and tests/cuda/test_emulated.py
    start new processes that have them, and run these.
    """
    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = [item for item in items if runs(item)]


def runs(item: pytest.Item) -> bool:
    """Whether an item names no backend, or one that can run it here: built, if need be."""
    parameters = getattr(item, "callspec", None) and item.callspec.params
    if not parameters or parameters.get("backend", "auto") == "auto":
        return True
    from fsdino.bench.cases import CALLS
    from fsdino.ops import backends, native

    backend, dtype = parameters["backend"], parameters.get("dtype", torch.float32)
    op, _ = CALLS.get(parameters.get("op", parameters.get("call")), ("correlation4d", {}))
    if backend == "cpp":
        return op in native.FUNCTIONS
    return backends.why_not(backend, op, torch.device("cpu"), dtype) is None


@pytest.fixture(autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Skip what runs on `cpp` where it is not built: asked for by name, it would be built now."""
    if "backend" not in request.fixturenames or request.getfixturevalue("backend") != "cpp":
        return
    from fsdino.ops import native

    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")


@pytest.fixture(scope="module")
def one_thread() -> Generator[None]:
    """Threads gain nothing on tiny models, and wait for each other when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Generator[None]:
    """Fill memory that PyTorch hands out uninitialised (NaN, or the largest integer).

    A kernel that reads what it never wrote, or leaves part of its output unwritten, then fails
    every time. The filling also reaches `at::empty` in C++, and comes only with PyTorch's
    deterministic mode: a test that compares bits from run to run, or times something, calls
    `torch.set_deterministic_debug_mode("default")` first. The mode is put back after each test.
    (`torch.use_deterministic_algorithms` would do the same, and configure torch.compile as well.)
    """
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    yield
    torch.set_deterministic_debug_mode(mode)


def unexpected_skip(nodeid: str, longrepr: object) -> str | None:
    """Why a skip must not happen in CI, or None where tests/expected_skips.txt lists it."""
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    entry = f"{nodeid.partition('[')[0]} | {reason.removeprefix('Skipped: ')}"
    lines = EXPECTED_SKIPS.read_text(encoding="utf-8").splitlines()
    if entry in lines:
        return None
    return f"unexpected skip; if it is right, add this line to tests/expected_skips.txt:\n{entry}"


def fail_unexpected_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI, a skip that nobody committed is a failure: of the test, or of the file."""
    if os.environ.get("CI") and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        message = unexpected_skip(report.nodeid, report.longrepr)
        if message is not None:
            report.outcome = "failed"
            report.longrepr = message


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_unexpected_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_unexpected_skip(report)
    return report
