"""The suite: what fails is recorded and the rest goes on, within the budget, in one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_suite
import gpu_timing
import pytest
from gpu_suite import SECONDS, Suite
from workers import NOT_BEGUN, Job, Outcome

from fsdino.bench import cases

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("one token", "empty batch")


class Inline:
    """A worker that runs everything here and now."""

    calls: list[tuple[str, tuple[Any, ...]]] = []  # noqa: RUF012

    def __init__(self, threads: int = 1) -> None: ...

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Outcome:
        assert timeout > 0
        Inline.calls.append((function.__name__, arguments))
        try:
            return Outcome(function(*arguments), None, 0.1)
        except Exception as error:
            return Outcome(None, f"Traceback\n{error!r}", 0.1)

    def close(self) -> None: ...


def run_inline(
    jobs: Iterable[Job], count: int, deadline: float, done: Callable[[Job, Outcome], None]
) -> None:
    for job in jobs:
        done(job, Inline().call(job.function, *job.arguments, timeout=1.0))


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    Inline.calls = []
    monkeypatch.setattr(gpu_suite, "Worker", Inline)
    monkeypatch.setattr(gpu_suite, "run_all", run_inline)
    for name in ("torch.compile", "opcheck"):  # they take seconds, and have tests of their own
        monkeypatch.delitem(gpu_checks.BEHAVIOURS, name)


def suite(tmp_path: Path, parts: Iterable[str], device: str = "cpu", **changes: Any) -> Suite:
    settings = {
        "budget": 100.0,
        "processes": 2,
        "names": NAMES,
        "backends": ["reference"],
        **changes,
    }
    return Suite(tmp_path, device, parts=list(parts), **settings)


def content(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    return found


@pytest.mark.usefixtures("inline")
def test_parts_end_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks, rows with their floor, and where it all comes from."""
    monkeypatch.setattr(gpu_suite, "ROWS", gpu_suite.ROWS[:2])
    monkeypatch.setattr(gpu_suite, "PROFILED", gpu_suite.PROFILED[:1])
    parts = ("ceilings", "correctness", "sanitizer", "timing", "stages", "memory", "scaling")
    one = suite(tmp_path, parts)
    assert one.run()
    found = content(tmp_path)
    assert {"command", "machine", "seconds", "environment", "source"} <= found.keys()
    assert found["parts"].keys() == set(parts)
    correctness = found["parts"]["correctness"]
    assert correctness["passed"] == len(NAMES) * 3 * 5 + 3 and not correctness["failed"]
    assert correctness["largest"]["correlation4d"].keys() == {"float32", "float16", "bfloat16"}
    rows = found["parts"]["timing"]["rows"]
    assert [row["workload"] for row in rows] == [name for name, *_ in gpu_suite.ROWS]
    assert all(row["floor"] > 0 and row["launches_floor"] > 0 for row in rows)
    text = gpu_suite.table(found)
    assert "33 cases right, 0 checks failed" in text and "of floor" in text


@pytest.mark.usefixtures("inline")
def test_what_fails_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that raises, a check that is wrong: each is named, and the status says so."""
    chain_row, check_case = gpu_timing.chain_row, gpu_checks.check_case

    def fails_for_w6(workload: Any, *arguments: Any) -> Any:
        if workload.name == "W6":
            raise RuntimeError("no luck")
        return chain_row(workload, *arguments)

    def wrong(op: str, name: str, dtype: str, *where: str) -> Any:
        if op == "correlation4d" and dtype == "float16":
            return {"passed": False, "error": 7.0, "worst": "output"}
        if name == "one token" and dtype == "float32":
            raise ValueError("broken")
        return check_case(op, name, dtype, *where)

    monkeypatch.setattr(gpu_timing, "chain_row", fails_for_w6)
    monkeypatch.setattr(gpu_suite, "ROWS", gpu_suite.ROWS[2:4])
    monkeypatch.setattr(gpu_checks, "check_case", wrong)
    one = suite(tmp_path, ("correctness", "timing"))
    assert not one.run()
    parts = content(tmp_path)["parts"]
    failed = {entry["check"] for entry in parts["correctness"]["failed"]}
    assert "correlation4d / empty batch / float16" in failed and len(failed) == 2 + 5
    rows = parts["timing"]["rows"]
    assert ["failed" in row for row in rows] == [True, False]  # W6, HR
    text = gpu_suite.table(content(tmp_path))
    assert "RuntimeError('no luck')" in text and "7 checks failed" in text


@pytest.mark.usefixtures("inline")
def test_on_a_gpu_everything_is_compiled_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_gpu: str
) -> None:
    """Each timed row is warmed, before the checks; torch.compile where its row wants it."""
    row = {"implementations": {}, "workload": "W12x8", "dtype": "bfloat16"}
    for name in ("warm", "warm_compiled", "chain_row"):
        monkeypatch.setattr(gpu_timing, name, fake(name, dict(row)))
    monkeypatch.setattr(gpu_checks, "check_case", fake("check_case", RIGHT))
    monkeypatch.setattr(gpu_checks, "check_chain", fake("check_chain", RIGHT))
    monkeypatch.setattr(gpu_checks, "check_behaviour", fake("behaviour", RIGHT))
    one = suite(tmp_path, ("correctness", "timing"), device=fake_gpu, names=cases_of_the_table())
    assert one.run()
    called = [name for name, _ in Inline.calls]
    compiled = sum(compiles for *_, compiles in gpu_suite.ROWS)
    assert called.count("warm_compiled") == 2 * compiled
    assert called.count("warm") == called.count("chain_row") == len(gpu_suite.ROWS)
    assert called.count("check_case") == len(cases.CASES) * 3 * 5
    assert called.index("warm") < called.index("check_case") < called.index("chain_row")
    timed = [arguments for name, arguments in Inline.calls if name == "chain_row"]
    assert timed[0][0].grid == 37 and timed[0][1] == "bfloat16"
    assert {a[-1] for a in timed} == {0, gpu_suite.COMPILE_SECONDS}
    assert one.machine["device"] == "Fake" and one.machine["capability"] == "9.0"


@pytest.mark.usefixtures("inline")
def test_a_backend_with_one_op(tmp_path: Path, correlates_only: str) -> None:
    """It is checked on that one; the chains of its rows go on with others."""
    one = suite(tmp_path, ("correctness", "stages"), backends=[correlates_only, "reference"])
    assert one.run()
    found = content(tmp_path)["parts"]
    correctness = found["correctness"]
    assert correctness["passed"] == 3 * len(NAMES) and not correctness["failed"]
    assert correctness["largest"].keys() == {"correlation4d"}
    assert not any(row.get("failed") for row in found["stages"]["rows"])


RIGHT = {"passed": True, "error": 0.5, "said": "passed"}


def cases_of_the_table() -> list[str]:
    return [case.name for case in cases.CASES]


def fake(name: str, result: Any) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        return dict(result)

    function.__name__ = name
    return function


@pytest.mark.usefixtures("inline")
def test_without_time_nothing_begins(tmp_path: Path) -> None:
    """Which is recorded, and does not count as a failure."""
    one = suite(tmp_path, ("timing", "memory"), budget=1e-9)
    one.run()
    rows = content(tmp_path)["parts"]["memory"]["rows"]
    assert [row["failed"] for row in rows] == [NOT_BEGUN] * len(gpu_suite.MEMORY)
    one.found["correctness"] = {"not_run": [], "failed": []}
    one._done(Job(("correlation4d", "plain", "float32"), print), Outcome(None, NOT_BEGUN, 0))
    assert one.found["correctness"]["not_run"] == ["correlation4d / plain / float32"]
    assert one.right()


def test_time_that_is_left_passes_on(tmp_path: Path) -> None:
    """By hand: a part's end counts what the parts before it may take, scaled to the budget."""
    one = suite(tmp_path, ("ceilings", "memory"), budget=110.0)
    share = SECONDS["ceilings"] / (SECONDS["ceilings"] + SECONDS["memory"])
    assert one.deadline("ceilings") - one.began == pytest.approx(110 * share)
    assert one.deadline("memory") - one.began == pytest.approx(110)
    assert gpu_suite.BUDGET + gpu_suite.GRACE_SECONDS < 9 * 60


CLEAN = "calls: 10\n========= ERROR SUMMARY: 0 errors\n"
RACES = "calls: 10\n========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)\n"


@pytest.mark.parametrize(
    ("output", "passed"),
    [
        (CLEAN, True),
        (CLEAN.replace("0 errors", "10 errors"), False),
        (RACES.format(0, 0), True),
        (RACES.format(2, 2), False),
        ("========= Error: Device not supported\n", None),
        (CLEAN.replace("calls: 10\n", ""), None),
        ("", None),
    ],
)
def test_the_sanitizers_words(output: str, passed: bool | None) -> None:
    """Clean, faults, and a tool that could not work here."""
    assert gpu_suite.read_sanitizer(output)["passed"] is passed


def test_the_sanitizer_runs_and_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name gets the ops to run; one that hangs is killed with its children."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\necho \"$4 $1 $2\"\nprintf '{CLEAN}'\n")
    program.chmod(0o755)
    found = gpu_suite.sanitize("memcheck", "cuda", "triton", time.monotonic() + 60)
    assert found["passed"] and found["output"].startswith("-c --tool memcheck")
    program.write_text("#!/bin/sh\nsleep 1000\n")
    found = gpu_suite.sanitize("memcheck", "cuda", "triton", time.monotonic())
    assert found == {"passed": None, "said": "skipped: it took too long"}


@pytest.mark.slow
def test_what_the_sanitizer_is_given_runs() -> None:
    """The code finds its modules from anywhere; without the backend it says why."""
    folders = [str(ROOT), str(ROOT / "benchmarks")]
    code = gpu_suite.SANITIZED.format(paths=folders, device="cpu", backend="triton")
    environment = {
        k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "TRITON_INTERPRET"}
    }
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert "backend 'triton' cannot run correlation4d here" in run.stderr


def test_rows_for_people() -> None:
    """Ratios by hand, in the same layout; wrong, failed and missing results in words."""
    row = {
        "workload": "W6", "dtype": "float16", "floor": 1e-4, "launches_floor": 2e-4,
        "implementations": {
            "eager, tokens": {"error": 0.1, "seconds": 4e-3},
            "compiled, tokens": {"failed": "TimeoutError: no result after 30 s"},
            "triton, tokens": {"error": 0.2, "seconds": 2e-4},
            "triton, contiguous": {"error": 3.0},
            "cuda, tokens": {"error": 0.2, "seconds": 4e-4},
        },
    }  # fmt: skip
    lines = gpu_suite._timing_lines(row)
    assert lines[0] == "W6 float16, floor 0.100 ms, as launched 0.200 ms"
    assert "20.00x eager" in lines[3] and "0.50 of floor" in lines[3]
    assert "x triton" not in lines[3] and "0.50x triton" in lines[5]
    assert "no result after 30 s" in lines[2] and "wrong, error 3 of the allowed" in lines[4]
    peaks = {"eager": {"failed": "out of memory"}, "triton": {"bytes": 2_000_000}}
    [line] = gpu_suite._memory_lines({"workload": "HR", "part": "chain", "peaks": peaks})
    assert line == "HR chain, peak: eager out of memory, triton 2 MB"
    found = {"triton": {"error": 0.5, "seconds": 0.5}, "eager": {"failed": "out of memory"}}
    [line] = gpu_suite._scaling_lines({"grid": 148, "flop": 1e12, "implementations": found})
    assert line == "grid 148: triton 500.000 ms, 2.0 TFLOP/s; eager out of memory"
    kernels = [{"kernel": "walk", "seconds": 1e-3}, {"kernel": "walk", "seconds": 2e-3}]
    lines = gpu_suite._stage_lines({"workload": "W6", "dtype": "float16", "kernels": kernels})
    assert lines[1].split() == ["walk", "2", "x", "3.0000", "ms"]


def test_mistakes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown parts; no GPU."""
    monkeypatch.setattr(gpu_suite.torch.cuda, "is_available", lambda: False)
    for arguments, said in (
        (["--parts", "timing,speed"], "choose from ceilings, correctness"),
        ([], "PyTorch finds no GPU"),
    ):
        with pytest.raises(SystemExit):
            gpu_suite.main(["--out", str(tmp_path), *arguments])
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measured", "parts"),
    [("reference", list(SECONDS)), ("triton", ["correctness", "memory"])],
    ids=["reference", "triton"],
)
def test_the_documented_command(tmp_path: Path, measured: str, parts: list[str]) -> None:
    """The suite in its own processes, on tiny sizes; Triton in its interpreter, which is slow."""
    command = [
        sys.executable, "benchmarks/gpu_suite.py", "--out", str(tmp_path), "--device", "cpu",
        "--backend", measured, "--processes", "2", "--cases", "odd channels",
        "--parts", ",".join(parts),
    ]  # fmt: skip
    interpreted = {"TRITON_INTERPRET": "1"} if measured == "triton" else {}
    environment = {**os.environ, "PYTHONPATH": ".", **interpreted}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = content(tmp_path)["parts"]
    assert found.keys() == set(parts)
    assert not found["correctness"]["failed"] and not found["correctness"]["not_run"]
    rows = {part: found[part]["rows"] for part in found if "rows" in found[part]}
    assert all(rows.values())
    assert not [row for several in rows.values() for row in several if "failed" in row]
    for row in rows.get("timing", []):
        assert all("seconds" in result for result in row["implementations"].values())
    for row in rows["memory"]:
        assert all(peak["error"] <= 1 for peak in row["peaks"].values())
