"""Right and fast on a GPU: `PYTHONPATH=. python benchmarks/gpu_suite.py --out DIR`.

Runs from a bare checkout; nothing needs to be installed but PyTorch and Triton. Parts, what tells
most first:

preflight    what the machine has to have, and one launch; what is missing, with its remedy
ceilings     what large products and copies reach on this GPU
headline     W12x8 and T12x8 in bfloat16: backends and eager; also as CUDA graphs; beside the floor
             that `benchmarks/roofline.py` computes from the ceilings
correctness  every op on the whole table of cases in every dtype, and how they behave in PyTorch
sanitizer    compute-sanitizer over every op, where it is installed
timing       the standard workloads, also with torch.compile of the eager code
stages       seconds by op and by kernel
memory       peak bytes beyond inputs and results
scaling      grids 19 and 37
large        what takes eager code long: HR's time and memory, grids 74 and 148

`--backend cuda,triton` checks the first backend and times both, taking turns. What a backend lacks
of a chain runs on what `auto` takes.

The work is done in other processes, so that a part that fails, hangs or loses the GPU is recorded
and the others continue. What ran out of time, or lacks something that the preflight names, is
recorded as not run. DIR/gpu.json is written after every step. The exit status is 1 if a result was
wrong, or if a check ended in an error instead of one.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu_behaviours
import gpu_checks
import gpu_preflight
import gpu_timing
import roofline
import torch
from gpu_preflight import last_line
from gpu_table import summary, table
from record import command
from workers import OUT_OF_TIME, Job, Outcome, Worker, run_all

from fsdino import contract
from fsdino import processes as sharing
from fsdino.bench import cases
from fsdino.bench.record import write_record
from fsdino.bench.workloads import WORKLOADS, Workload

HERE = Path(__file__).resolve().parent
# Seconds of the default budget that each part may take; what one leaves, the next may use.
SECONDS = {
    "preflight": 20,
    "ceilings": 15,
    "headline": 75,
    "correctness": 130,
    "sanitizer": 25,
    "timing": 110,
    "stages": 25,
    "memory": 20,
    "scaling": 20,
    "large": 60,
}
BUDGET = sum(SECONDS.values())
# They tell most, and on a machine whose caches are cold they wait for imports and compilers: these
# may use all of the budget, and the others share what is left.
FIRST = ("preflight", "ceilings", "headline")
HEADLINE = (("W12x8", "bfloat16"), ("T12x8", "bfloat16"))
# Most telling first. With torch.compile where it says so, whose first run takes long.
ROWS = (
    ("W12x8", "bfloat16", True),
    ("T12x8", "bfloat16", True),
    ("W6", "bfloat16", True),
    ("W12x8", "float16", True),
    ("T12x8", "float16", True),
    ("W12", "bfloat16", False),
    ("T12", "bfloat16", False),
    ("T6", "bfloat16", False),
    ("W4", "bfloat16", False),
    ("W6", "float16", False),
    ("W12", "float16", False),
)
OPS = (*contract.OPS, *contract.COMPOSED)
PROFILED = (("W12x8", "bfloat16"), ("T12x8", "bfloat16"), ("W6", "bfloat16"))
MEMORY = (("W12x8", "chain"), ("T12x8", "chain"))
GRIDS = (19, 37)
LARGE_ROW = ("HR", "bfloat16")
LARGE_MEMORY = ("fused-block", "fused-gradients", "fused-chain", "chain")
LARGE_GRIDS = (74, 148)
TOOLS = ("memcheck", "racecheck")
PROBES = {  # what is launched first, and the backend that does not run without
    "Triton": (gpu_preflight.launch, "triton"),
    "CUDA extension": (gpu_preflight.extension, "cuda"),
}
COMPILE_SECONDS = 30  # for one layout, in the timing; the caches are full by then
ROW_SECONDS = 120  # after which a step is given up
GRACE_SECONDS = 20  # for the last step, beyond the budget
TURNS_SECONDS = 3.0  # of the measuring in one row
SAVE_SECONDS = 3.0  # between two writes while many short checks end


@dataclass
class Suite:
    """What is asked for, what is known so far, and until when.

    Attributes:
        out: folder of the JSON file.
        device: "cuda" or "cpu"; on a CPU the workloads are tiny, to try the suite itself.
        backends: what is measured; the first is checked.
        parts: of `SECONDS`.
        budget: seconds for all of them.
        processes: that check and compile side by side.
        names: of the cases to check.
        missing: why backends cannot be measured here, found by the preflight.
        began: by time.monotonic().
        since: when the parts that share what is left of the budget began.
    """

    out: Path
    device: str
    backends: Sequence[str]
    parts: Sequence[str]
    budget: float
    processes: int
    names: Sequence[str]
    machine: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    since: float = 0.0
    saved: float = 0.0

    @property
    def backend(self) -> str:
        """What is checked."""
        return self.backends[0]

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def turns(self) -> float:
        """Seconds of the measuring in one row."""
        return TURNS_SECONDS if self.on_gpu else 0.01

    @property
    def usable(self) -> list[str]:
        """The backends that can be measured here."""
        return [name for name in self.backends if name not in self.missing]

    @property
    def end(self) -> float:
        """By time.monotonic(), when all has to have ended."""
        return self.began + self.budget

    def deadline(self, part: str) -> float:
        """By time.monotonic(), when a part has to have ended."""
        if part in FIRST:
            return self.end
        chosen = [name for name in SECONDS if name in self.parts and name not in FIRST]
        before = sum(SECONDS[name] for name in chosen[: chosen.index(part) + 1])
        whole = sum(SECONDS[name] for name in chosen)
        since = max(self.since, self.began)
        return since + (self.end - since) * before / whole

    def left(self, part: str) -> float:
        return self.deadline(part) - time.monotonic()

    def workload(self, name: str) -> Workload:
        return self.sized(WORKLOADS[name])

    def kind(self, dtype: str) -> str:
        """A CPU takes float32 instead: on tiny sizes the signs of half precision are chance."""
        return dtype if self.on_gpu else "float32"

    def sized(self, workload: Workload) -> Workload:
        """A workload as it is, or so small that a CPU runs it at once."""
        if self.on_gpu:
            return workload
        return replace(workload, batch=1, layers=2, grid=5, channels=16, block_channels=(8, 8))

    def has(self, op: str) -> bool:
        """Whether the backend that is checked has an op."""
        return gpu_checks.has(self.backend, op, self.device)

    def save(self, every: float = 0.0) -> None:
        """Write what is known, unless that was done less than `every` seconds ago."""
        if time.monotonic() - self.saved < every:
            return
        self.saved = time.monotonic()
        write_record(
            self.out / "gpu.json",
            command(),
            machine=self.machine,
            seconds=round(time.monotonic() - self.began, 1),
            parts=self.found,
        )

    def run(self) -> bool:
        """All parts; whether every result was right."""
        self.save()
        worker = Worker(threads=min(4, self.processes))
        self.preflight(worker)
        if "ceilings" in self.parts:
            self.step(worker, "ceilings", gpu_timing.ceilings, self.device, self.turns)
        if "headline" in self.parts:
            self.headline(worker)
        worker.close()  # the checks below want the memory
        self.since = time.monotonic()
        self.side_by_side()
        for part in ("timing", "stages", "memory", "scaling", "large"):
            if part in self.parts:
                getattr(self, part)(worker)
        worker.close()
        self.save()
        return self.right()

    def right(self) -> bool:
        """Whether nothing that ran was wrong."""
        correctness = self.found.get("correctness", {})
        checks = [
            *self.found.get("preflight", {}).values(), *self.found.get("sanitizer", {}).values(),
        ]  # fmt: skip
        rows = [row for part in self.found.values() for row in part.get("rows", [])]
        return (
            not correctness.get("failed")
            and not any(check.get("passed") is False or check.get("wrong") for check in checks)
            and not any(self.is_wrong(row) for row in rows)
        )

    def is_wrong(self, row: dict[str, Any]) -> bool:
        """Whether a result of ours in a row of times or bytes was off by more than is allowed."""
        results = row.get("implementations", {}) | row.get("peaks", {})
        return any(
            result.get("error", 0.0) > 1 or math.isnan(result.get("error", 0.0))
            for name, result in results.items()
            if name.partition(",")[0] in self.backends
        )

    def step(
        self, worker: Worker, part: str, function: Callable[..., Any], *args: Any, into: str = ""
    ) -> Any:
        """One call whose result becomes the part, or one of the rows of `into`, which is the part
        unless it says otherwise; None where it failed or was not run."""
        label = f"{part}: {' '.join(str(getattr(arg, 'name', arg)) for arg in args[:3])}"
        outcome = OUT_OF_TIME
        if part != "ceilings" and not self.usable:
            outcome = replace(OUT_OF_TIME, error="; ".join(self.missing.values()))
        elif self.left(part) > 0:
            left = self.end + GRACE_SECONDS - time.monotonic()
            outcome = worker.call(function, *args, timeout=min(ROW_SECONDS, left))
        say(f"{label}: {last_line(outcome.error or 'done')} ({outcome.seconds:.1f} s)")
        why = "not_run" if outcome.late else "failed"
        row = outcome.value or {"asked": label, why: outcome.error}
        row["took"] = round(outcome.seconds, 1)
        if part == "ceilings":
            self.found[part] = row
        else:
            self.found.setdefault(into or part, {"rows": []})["rows"].append(row)
        self.save()
        return outcome.value

    def preflight(self, worker: Worker) -> None:
        """What the machine is, what is missing on it, and which backends cannot run without."""
        asked = worker.call(gpu_preflight.machine, self.device, timeout=ROW_SECONDS)
        self.machine = asked.value or {"device": self.device, "failed": asked.error}
        if "preflight" not in self.parts:
            return
        self.found["preflight"] = found = {}

        def note(name: str, finding: dict[str, Any]) -> None:
            found[name] = finding
            say(f"preflight: {name}: {gpu_preflight.line(finding)}")
            self.save()

        for name, finding in gpu_preflight.host().items():
            note(name, finding)
        note("GPU", gpu_preflight.gpu(self.machine))
        note("compute mode", gpu_preflight.compute_mode(self.machine))
        if found["compute mode"].get("alone"):
            self.processes = 1
        for name, (probe, backend) in PROBES.items():
            outcome = worker.call(probe, self.device, timeout=ROW_SECONDS)
            failed = gpu_preflight.finding(False, last_line(outcome.error or ""))
            note(name, outcome.value or failed)
            if not found[name]["ok"] and not found[name].get("wrong") and backend in self.backends:
                self.missing[backend] = f"{name}: {gpu_preflight.line(found[name])}"

    def headline(self, worker: Worker) -> None:
        """The rows that matter most, without torch.compile."""
        for name, dtype in HEADLINE:
            self.chain_row(worker, "headline", name, dtype, 0)

    # Side by side: compiling takes most of the time.

    def side_by_side(self) -> None:
        """The checks, and whatever else has to be compiled, in many processes."""
        jobs = []
        if "sanitizer" in self.parts:
            self.found["sanitizer"] = {}
            where = (self.device, self.backend, self.deadline("sanitizer"))
            jobs += [Job(("sanitizer", tool), sanitize, (tool, *where)) for tool in TOOLS]
        if "correctness" in self.parts:
            self.found["correctness"] = {
                "passed": 0, "failed": [], "not_run": {}, "largest": {}, "behaviour": {},
                "lacking": [op for op in OPS if not self.has(op)],
            }  # fmt: skip
            jobs += self._checks()
        if self.backend in self.missing:
            why = replace(OUT_OF_TIME, error=self.missing[self.backend])
            for job in jobs:
                self._done(job, why)
            jobs = []
        if "timing" in self.parts and self.on_gpu:
            jobs += self._warming()
        checked = [part for part in ("correctness", "sanitizer") if part in self.parts]
        deadline = max(map(self.deadline, checked)) if checked else self._half_of("timing")
        run_all(jobs, self.processes, deadline, self._done)
        self.save()
        for name in checked:
            say(f"{name}: {summary(name, self.found[name])}")

    def _half_of(self, part: str) -> float:
        return (self.since + self.deadline(part)) / 2 if part in self.parts else self.end

    def _warming(self) -> list[Job]:
        compiled = [
            Job(("warm", name, dtype, layout), gpu_timing.warm_compiled,
                (self.workload(name), dtype, self.device, layout))
            for name, dtype, compiles in ROWS
            for layout in gpu_timing.LAYOUTS
            if compiles and "triton" not in self.missing
        ]  # fmt: skip
        ours = [
            Job(("warm", name, dtype, backend), gpu_timing.warm,
                (self.workload(name), dtype, self.device, backend))
            for name, dtype, _ in (*ROWS, (*LARGE_ROW, False))
            for backend in self.usable
        ]  # fmt: skip
        return compiled + ours

    def _checks(self) -> list[Job]:
        where = (self.device, self.backend)
        dtypes = gpu_checks.DTYPES
        if not self.on_gpu and self.backend == "triton":
            dtypes = ("float32", "float16")  # the interpreter's
        behaviours = [
            Job(("behaviour", name), gpu_behaviours.check_behaviour, (name, *where))
            for name in gpu_behaviours.BEHAVIOURS
        ]
        table = [
            Job((op, name, dtype), gpu_checks.check_case, (op, name, dtype, *where))
            for name in (case.name for case in cases.CASES if case.name in self.names)
            for dtype in dtypes
            for op in gpu_checks.OPS
            if self.has(op)
        ]
        chains = [
            Job(("squeeze4d", chain.name, dtype), gpu_checks.check_chain,
                (chain.name, dtype, *where))
            for chain in cases.CHAINS
            if chain.name in self.names and self.has("squeeze4d")
            for dtype in dtypes
        ]  # fmt: skip
        return behaviours + table + chains

    def _done(self, job: Job, outcome: Outcome) -> None:
        """Note what came of a job that ran beside others."""
        kind, *rest = job.key
        label = " / ".join(job.key)
        if kind == "warm":
            took = outcome.error or round(outcome.seconds, 1)
            self.found.setdefault("warming", {})[label] = took
        elif kind == "sanitizer":
            unknown = {"passed": None, "said": f"not run: {last_line(outcome.error or '')}"}
            self.found["sanitizer"][rest[0]] = outcome.value or unknown
        elif outcome.late:
            self.found["correctness"]["not_run"][label] = outcome.error
        else:
            result = outcome.value or {"passed": False, "failed": outcome.error}
            self._count(label, kind, rest, result)
        self.save(every=SAVE_SECONDS)

    def _count(self, label: str, op: str, rest: Sequence[str], result: dict[str, Any]) -> None:
        """Note one check."""
        found = self.found["correctness"]
        if op == "behaviour":
            found["behaviour"][rest[0]] = result.get("said") or last_line(result["failed"])
        if not result["passed"]:
            found["failed"].append({"check": label, **result})
        elif op != "behaviour":
            found["passed"] += 1
            largest = found["largest"].setdefault(op, {})
            largest[rest[1]] = max(largest.get(rest[1], 0.0), result["error"])

    # One after the other: nothing else runs on the GPU.

    def timing(self, worker: Worker) -> None:
        """Rows of the chain, some with torch.compile."""
        for name, dtype, compiles in ROWS:
            self.chain_row(worker, "timing", name, dtype, COMPILE_SECONDS if compiles else 0)

    def chain_row(
        self, worker: Worker, part: str, name: str, asked: str, compile_seconds: float
    ) -> None:
        """A row of the chain among those of the timing, with its floor beside its times."""
        workload, dtype = self.workload(name), self.kind(asked)
        without = self.missing.get("triton")
        seconds = compile_seconds if self.on_gpu and not without else 0
        where = (self.device, self.usable, self.turns, seconds)
        row = self.step(worker, part, gpu_timing.chain_row, workload, dtype, *where, into="timing")
        if row is None:
            return
        if compile_seconds and without:
            row["implementations"]["compiled"] = {"not_run": without}
        ceilings = self.found.get("ceilings", {})
        if "flop_per_second" in ceilings:
            gpu, kind = roofline.measured_gpu(ceilings), getattr(torch, dtype)
            row["floor"] = roofline.floor_seconds(workload, kind, gpu)
            if kind == torch.bfloat16 and (bound := roofline.bound_seconds(workload.name)):
                row["bound"] = bound
        self.save()

    def stages(self, worker: Worker) -> None:
        """By op, then by kernel."""
        first, dtype = PROFILED[0][0], self.kind(PROFILED[0][1])
        self.step(
            worker, "stages", gpu_timing.stages_row,
            self.workload(first), dtype, self.device, self.usable, self.turns,
        )  # fmt: skip
        for name, dtype in PROFILED:
            self.step(
                worker, "stages", gpu_timing.kernels_row,
                self.workload(name), self.kind(dtype), self.device, *self.usable[:1], "tokens",
            )  # fmt: skip

    def memory(self, worker: Worker) -> None:
        """Peaks of the chain."""
        for name, what in MEMORY:
            self._peaks(worker, "memory", name, what)

    def scaling(self, worker: Worker) -> None:
        """The chain on small grids."""
        for grid in GRIDS:
            self._grid(worker, "scaling", grid)

    def large(self, worker: Worker) -> None:
        """Rows of the timing, the memory and the scaling whose eager part takes long."""
        self.chain_row(worker, "large", *LARGE_ROW, 0)
        for what in LARGE_MEMORY:
            self._peaks(worker, "large", LARGE_ROW[0], what)
        for grid in LARGE_GRIDS:
            self._grid(worker, "large", grid)

    def _peaks(self, worker: Worker, part: str, name: str, what: str) -> None:
        self.step(
            worker, part, gpu_timing.memory_row,
            self.workload(name), self.kind("bfloat16"), what, self.device, self.usable,
            into="memory",
        )  # fmt: skip

    def _grid(self, worker: Worker, part: str, grid: int) -> None:
        workload = self.sized(Workload(f"grid {grid}", batch=1, layers=12, grid=grid))
        self.step(
            worker, part, gpu_timing.scaling_row,
            workload, self.kind("bfloat16"), self.device, self.usable, self.turns,
            into="scaling",
        )  # fmt: skip


SANITIZED = (
    "import sys; sys.path[:0] = {paths!r}\n"
    "import gpu_checks; print('calls:', gpu_checks.run_ops({device!r}, {backend!r}))"
)


def sanitize(tool: str, device: str, backend: str, deadline: float) -> dict[str, Any]:
    """compute-sanitizer over every op: whether it found nothing, or why it did not run.

    Args:
        tool: of `TOOLS`.
        device: "cuda"; on a CPU it is left out.
        backend: whose kernels run.
        deadline: by time.monotonic(), before which it is stopped.
    """
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if program is None or device == "cpu":
        missing = "compute-sanitizer is not there" if program is None else "needs a GPU"
        return {"passed": None, "said": f"not run: {missing}"}
    code = SANITIZED.format(
        paths=[str(HERE.parent), str(HERE)],
        device=device, backend=backend,
    )  # fmt: skip
    # Every tensor in an allocation of its own, so that reading past its end is noticed.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.Popen(
        [program, "--tool", tool, sys.executable, "-c", code],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = run.communicate(timeout=max(1.0, deadline - time.monotonic() - 5))
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # the program under it, too
        run.communicate()
        return {"passed": None, "said": "not run: it took too long"}
    return read_sanitizer(output)


def read_sanitizer(output: str) -> dict[str, Any]:
    """What compute-sanitizer's output says; None where it did not get to the end."""
    summaries = [line.strip("= ") for line in output.splitlines() if "SUMMARY:" in line]
    said = {"said": "; ".join(summaries), "output": output[-3000:]}
    if not summaries or "calls:" not in output:
        return {"passed": None, **said, "said": "not run: it did not get to the end"}
    clean = all(": 0 errors" in line or ": 0 hazards" in line for line in summaries)
    return {"passed": clean, **said}


def say(line: str) -> None:
    print(line, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(dict.fromkeys(case.name for case in (*cases.CASES, *cases.CHAINS)))
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=list(SECONDS),
        help=f"by comma, of {','.join(SECONDS)}; default: all",
    )  # fmt: skip
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--backend", type=lambda text: text.split(","), default=["triton"],
        help="by comma: what is timed; the first is checked",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, help="side by side; default: one for each core")
    parser.add_argument("--cases", nargs="+", default=names, choices=names, metavar="CASE")
    given = parser.parse_args(arguments)
    unknown = set(given.parts) - SECONDS.keys()
    if unknown:
        parser.error(f"--parts: choose from {', '.join(SECONDS)}, not {min(unknown)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; --device cpu tries the suite itself on tiny sizes")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite, print its table; 1 where a result was wrong or a check had none."""
    given = parse(arguments)
    # Read by the processes that do the work. cuBLAS asks for its own in deterministic mode.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            os.environ.setdefault(name, str(Path(cache) / name.lower()))
        suite = Suite(
            given.out, given.device, given.backend, given.parts, given.budget,
            given.processes or sharing.cores(), given.cases,
        )  # fmt: skip
        right = suite.run()
        record = {"machine": suite.machine, "parts": suite.found}
        say(table(record))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
