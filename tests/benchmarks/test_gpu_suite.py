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

import gpu_behaviours
import gpu_checks
import gpu_preflight
import gpu_suite
import gpu_table
import gpu_timing
import pytest
from gpu_suite import FIRST, SECONDS, Suite
from workers import NOT_BEGUN, OUT_OF_TIME, Job, Outcome

from fsdino.bench import cases
from inline_workers import Inline

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("one token", "empty batch")


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
    monkeypatch.setattr(gpu_suite, "ROWS", gpu_suite.ROWS[3:5])
    monkeypatch.setattr(gpu_suite, "PROFILED", gpu_suite.PROFILED[:1])
    one = suite(tmp_path, SECONDS)
    assert one.run()
    found = content(tmp_path)
    assert {"command", "machine", "seconds", "environment", "source"} <= found.keys()
    assert found["parts"].keys() == SECONDS.keys() - {"headline", "large"}
    correctness = found["parts"]["correctness"]
    assert correctness["passed"] == len(NAMES) * 3 * 5 + 3 and not correctness["failed"]
    assert correctness["largest"]["correlation4d"].keys() == {"float32", "float16", "bfloat16"}
    rows = found["parts"]["timing"]["rows"]
    assert [row["workload"] for row in rows] == ["W12x8", "T12x8", "W12x8", "T12x8", "HR"]
    lengths = [len(found["parts"][part]["rows"]) for part in ("memory", "scaling")]
    assert lengths == [2 + 4, 2 + 2]
    assert all(row["floor"] > 0 for row in rows)
    text = gpu_table.table(found)
    assert "33 cases right, 0 checks failed" in text and "of floor" in text
    assert "C compiler: " in text and "compute mode: needs a GPU" in text


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
    monkeypatch.setattr(gpu_suite, "ROWS", (gpu_suite.ROWS[2], gpu_suite.ROWS[5]))
    monkeypatch.setattr(gpu_checks, "check_case", wrong)
    one = suite(tmp_path, ("correctness", "timing"))
    assert not one.run()
    parts = content(tmp_path)["parts"]
    failed = {entry["check"] for entry in parts["correctness"]["failed"]}
    assert "correlation4d / empty batch / float16" in failed and len(failed) == 2 + 5
    rows = parts["timing"]["rows"]
    assert ["failed" in row for row in rows] == [True, False]  # W6, W12
    text = gpu_table.table(content(tmp_path))
    assert "RuntimeError('no luck')" in text and "7 checks failed" in text


@pytest.mark.usefixtures("inline")
def test_the_order_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_gpu: str) -> None:
    """Two rows, the checks, what has to be compiled for the other rows, and these rows."""
    row = {"implementations": {}, "workload": "W12x8", "dtype": "bfloat16"}
    for name in ("warm", "warm_compiled", "chain_row"):
        monkeypatch.setattr(gpu_timing, name, fake(name, dict(row)))
    monkeypatch.setattr(gpu_checks, "check_case", fake("check_case", RIGHT))
    monkeypatch.setattr(gpu_checks, "check_chain", fake("check_chain", RIGHT))
    monkeypatch.setattr(gpu_behaviours, "check_behaviour", fake("behaviour", RIGHT))
    parts = ("headline", "correctness", "timing")
    one = suite(tmp_path, parts, device=fake_gpu, names=cases_of_the_table())
    assert one.run()
    called = [name for name, _ in Inline.calls]
    compiled = sum(compiles for *_, compiles in gpu_suite.ROWS)
    assert called.count("warm_compiled") == 2 * compiled
    assert called.count("warm") == len(gpu_suite.ROWS) + 1
    assert called.count("chain_row") == len(gpu_suite.ROWS) + 2
    assert called.count("check_case") == len(cases.CASES) * 3 * 5
    assert called[1:4] == ["chain_row", "chain_row", "behaviour"]
    last = len(called) - 1 - called[::-1].index("check_case")
    assert last < called.index("warm_compiled") < called.index("chain_row", 3)
    timed = [arguments for name, arguments in Inline.calls if name == "chain_row"]
    assert [(a[0].name, a[0].backward, a[1], a[-1]) for a in timed[:2]] == [
        ("W12x8", False, "bfloat16", 0), ("T12x8", True, "bfloat16", 0),
    ]  # fmt: skip
    assert timed[0][0].grid == 37
    assert {a[-1] for a in timed[2:]} == {0, gpu_suite.COMPILE_SECONDS}
    assert one.machine["device"] == "Fake" and one.machine["capability"] == "9.0"


@pytest.mark.usefixtures("inline")
def test_what_the_preflight_misses_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Triton launches nothing, what needs it is not run, with the reason; the rest is."""
    for name in ("ROWS", "PROFILED", "LARGE_MEMORY"):
        monkeypatch.setattr(gpu_suite, name, getattr(gpu_suite, name)[:1])
    one = suite(tmp_path, SECONDS, backends=["triton"])
    assert one.run()
    found = content(tmp_path)["parts"]
    why = one.missing["triton"]
    assert why.startswith("Triton: it runs on NVIDIA GPUs")
    assert "flop_per_second" in found["ceilings"]
    correctness = found["correctness"]
    assert set(correctness["not_run"].values()) == {why} and not correctness["failed"]
    rows = [
        row for part in ("timing", "stages", "memory", "scaling") for row in found[part]["rows"]
    ]
    assert rows and {row["not_run"] for row in rows} == {why}
    assert {result["passed"] for result in found["sanitizer"].values()} == {None}
    one = suite(tmp_path, SECONDS, backends=["triton", "reference"])
    assert one.run()
    rows = content(tmp_path)["parts"]["timing"]["rows"]
    assert all("reference, tokens" in row["implementations"] for row in rows)
    assert not any("triton, tokens" in row["implementations"] for row in rows)
    assert content(tmp_path)["parts"]["correctness"]["passed"] == 0


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("found", ["launch", "row", "peak", "sanitizer"])
def test_only_wrong_results_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Of the first launch, of rows, or found by the sanitizer; not those of the yardsticks."""
    one = suite(tmp_path, ("preflight",))
    assert one.run()
    wrong = {"error": float("nan"), "seconds": 1.0}
    if found == "launch":
        monkeypatch.setitem(
            gpu_suite.PROBES, "Triton",
            (fake("launch", gpu_preflight.verdict(False, "compiled for sm_90a")), "triton"),
        )  # fmt: skip
        assert not one.run() and not one.missing
    elif found == "sanitizer":
        one.found["sanitizer"] = {"memcheck": {"passed": None, "said": "not run"}}
        assert one.right()
        one.found["sanitizer"] = {"memcheck": {"passed": False, "said": "10 errors"}}
    else:
        key = "implementations" if found == "row" else "peaks"
        one.found["timing"] = {"rows": [{key: {"eager, tokens": wrong}}, {"not_run": "late"}]}
        assert one.right()
        one.found["timing"]["rows"][0][key] = {"reference, tokens": wrong}
    assert not one.right()


@pytest.mark.usefixtures("inline")
def test_a_gpu_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an exclusive compute mode the checks take turns."""
    exclusive = gpu_preflight.compute_mode(
        {"device": "Fake", "nvidia_smi": {"compute_mode": "Exclusive_Process"}}
    )
    monkeypatch.setattr(gpu_preflight, "compute_mode", lambda facts: exclusive)
    one = suite(tmp_path, ("preflight",))
    assert one.run() and one.processes == 1


@pytest.mark.usefixtures("inline")
def test_a_backend_with_one_op(tmp_path: Path, correlates_only: str) -> None:
    """It is checked on that one; the chains of its rows go on with others."""
    one = suite(tmp_path, ("correctness", "stages"), backends=[correlates_only, "reference"])
    assert one.run()
    found = content(tmp_path)["parts"]
    correctness = found["correctness"]
    assert correctness["passed"] == 3 * len(NAMES) and not correctness["failed"]
    assert correctness["largest"].keys() == {"correlation4d"}
    assert "the backend has no center_pivot_conv4d" in gpu_table.table(content(tmp_path))
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
    """Which is recorded, as is what was cut off, and neither counts as a failure."""
    one = suite(tmp_path, ("timing", "memory"), budget=1e-9)
    one.run()
    rows = content(tmp_path)["parts"]["memory"]["rows"]
    assert [row["not_run"] for row in rows] == [NOT_BEGUN] * len(gpu_suite.MEMORY)
    assert "memory: W12x8 float32 chain: not run: not begun" in gpu_table.table(content(tmp_path))
    one.found["correctness"] = {"not_run": {}, "failed": [], "passed": 0, "lacking": []}
    late = Outcome(None, "no result after 7 s", 7.0, late=True)
    for name, outcome in (("plain", OUT_OF_TIME), ("square", late)):
        one._done(Job(("correlation4d", name, "float32"), print), outcome)
    assert one.found["correctness"]["not_run"] == {
        "correlation4d / plain / float32": NOT_BEGUN,
        "correlation4d / square / float32": "no result after 7 s",
    }
    assert one.right()
    one._done(Job(("correlation4d", "plain", "float16"), print), Outcome(None, "died", 0.1))
    assert not one.right()


class Hangs(Inline):
    """A worker whose rows take longer than they may."""

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Outcome:
        if function.__name__ == "chain_row":
            return Outcome(None, f"no result after {timeout:.0f} s", timeout, late=True)
        return super().call(function, *arguments, timeout=timeout)


@pytest.mark.usefixtures("inline")
def test_rows_that_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were not run, for want of time."""
    monkeypatch.setattr(gpu_suite, "Worker", Hangs)
    assert suite(tmp_path, ("headline",), budget=500.0).run()
    rows = content(tmp_path)["parts"]["timing"]["rows"]
    assert [row.get("not_run") for row in rows] == ["no result after 120 s"] * 2


def test_time_that_is_left_passes_on(tmp_path: Path) -> None:
    """By hand: the first parts may take all; the others share what these left, by their seconds."""
    one = suite(tmp_path, ("ceilings", "timing", "memory"), budget=110.0)
    assert [one.deadline(part) for part in FIRST] == [pytest.approx(one.began + 110)] * 3
    one.since = one.began + 50
    share = SECONDS["timing"] / (SECONDS["timing"] + SECONDS["memory"])
    assert one.deadline("timing") - one.began == pytest.approx(50 + 60 * share)
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
    assert found == {"passed": None, "said": "not run: it took too long"}


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
        "workload": "W6", "dtype": "float16", "floor": 1e-4, "bound": 2e-4,
        "implementations": {
            "eager, tokens": {"error": 0.1, "seconds": 4e-3},
            "compiled, tokens": {"not_run": "no result after 30 s"},
            "triton, tokens": {"error": 0.2, "seconds": 2e-4},
            "triton, contiguous": {"error": 3.0},
            "cuda, tokens": {"error": 0.2, "seconds": 4e-4},
        },
    }  # fmt: skip
    lines = gpu_table._timing_lines(row)
    assert lines[0] == "W6 float16, floor 0.100 ms, bound 0.200 ms"
    assert "20.00x eager" in lines[3] and "0.50 of floor" in lines[3]
    assert "x triton" not in lines[3] and "0.50x triton" in lines[5]
    assert (
        "not run: no result after 30 s" in lines[2] and "wrong, error 3 of the allowed" in lines[4]
    )
    peaks = {"eager": {"failed": "out of memory"}, "triton": {"bytes": 2_000_000}}
    [line] = gpu_table._memory_lines({"workload": "HR", "part": "chain", "peaks": peaks})
    assert line == "HR chain, peak: eager out of memory, triton 2 MB"
    found = {"triton": {"error": 0.5, "seconds": 0.5}, "eager": {"failed": "out of memory"}}
    [line] = gpu_table._scaling_lines({"grid": 148, "flop": 1e12, "implementations": found})
    assert line == "grid 148: triton 500.000 ms, 2.0 TFLOP/s; eager out of memory"
    kernels = [{"kernel": "walk", "seconds": 1e-3}, {"kernel": "walk", "seconds": 2e-3}]
    lines = gpu_table._stage_lines({"workload": "W6", "dtype": "float16", "kernels": kernels})
    assert lines[1].split() == ["walk", "2", "x", "3.0000", "ms"]


def test_mistakes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown parts; no GPU."""
    monkeypatch.setattr(gpu_suite.torch.cuda, "is_available", lambda: False)
    for arguments, said in (
        (["--parts", "timing,speed"], "choose from preflight, ceilings, headline"),
        ([], "PyTorch finds no GPU"),
    ):
        with pytest.raises(SystemExit):
            gpu_suite.main(["--out", str(tmp_path), *arguments])
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measured", "parts"),
    [("reference", list(SECONDS)), ("triton", ["preflight", "memory"])],
    ids=["reference", "triton"],
)
def test_the_documented_command(tmp_path: Path, measured: str, parts: list[str]) -> None:
    """The suite in its own processes, on tiny sizes; a little of it in the interpreter."""
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
    assert found.keys() == set(parts) - {"headline", "large"}
    rows = {part: found[part]["rows"] for part in found if "rows" in found[part]}
    assert all(rows.values())
    assert not [row for several in rows.values() for row in several if "failed" in row]
    for row in rows.get("timing", []):
        assert all("seconds" in result for result in row["implementations"].values())
    if measured == "reference":
        assert not found["correctness"]["failed"] and not found["correctness"]["not_run"]
        said = found["correctness"]["behaviour"]
        assert said["torch.compile"] == said["opcheck"] == "passed"
    for row in rows["memory"]:
        assert all(peak["error"] <= 1 for peak in row["peaks"].values())
