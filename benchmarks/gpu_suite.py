"""Right and fast on a GPU: `PYTHONPATH=. python benchmarks/gpu_suite.py --out DIR`.

Runs from a bare checkout; nothing needs to be installed but PyTorch and Triton. Parts:

ceilings     what large products and copies reach on this GPU
correctness  every op on the whole table of cases in every dtype, and how they behave in PyTorch
sanitizer    compute-sanitizer over every op, where it is there
timing       the standard workloads: backends, eager, torch.compile of the eager code; also as
             CUDA graphs; beside the floor that `benchmarks/roofline.py` computes from the ceilings
stages       seconds by op and by kernel
memory       peak bytes beyond inputs and results
scaling      grids from 19 to 148

`--backend cuda,triton` checks the first backend and times both, taking turns. What a backend lacks
of a chain runs on what `auto` takes.

The work is done in other processes, so that a part that fails, hangs or loses the GPU is recorded
and the others continue. DIR/gpu.json is written after every step. The exit status is 1 if a result
was wrong.
"""

from __future__ import annotations

import argparse
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

import gpu_checks
import gpu_timing
import roofline
import torch
from record import command
from workers import NOT_BEGUN, Job, Outcome, Worker, run_all

from fsdino import processes as sharing
from fsdino.bench import cases
from fsdino.bench.record import write_record
from fsdino.bench.workloads import WORKLOADS, Workload

HERE = Path(__file__).resolve().parent
# Seconds of the default budget by which each part has ended; what one leaves, the next may use.
SECONDS = {
    "ceilings": 15,
    "correctness": 140,
    "sanitizer": 25,
    "timing": 200,
    "stages": 30,
    "memory": 40,
    "scaling": 50,
}
BUDGET = sum(SECONDS.values())
# Most telling first. With torch.compile where it says so, whose first run takes long.
ROWS = (
    ("W12x8", "bfloat16", True),
    ("T12x8", "bfloat16", True),
    ("W6", "bfloat16", True),
    ("HR", "bfloat16", False),
    ("W12x8", "float16", True),
    ("T12x8", "float16", True),
    ("W12", "bfloat16", False),
    ("T12", "bfloat16", False),
    ("T6", "bfloat16", False),
    ("W4", "bfloat16", False),
    ("W6", "float16", False),
    ("W12", "float16", False),
)
PROFILED = (("W12x8", "bfloat16"), ("T12x8", "bfloat16"), ("W6", "bfloat16"))
MEMORY = (
    ("HR", "fused-block"),
    ("HR", "fused-gradients"),
    ("HR", "fused-chain"),
    ("HR", "chain"),
    ("W12x8", "chain"),
    ("T12x8", "chain"),
)
GRIDS = (19, 37, 74, 148)
TOOLS = ("memcheck", "racecheck")
BESIDE = ("eager", "compiled", "triton")  # what the table sets other times beside
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
    began: float = field(default_factory=time.monotonic)
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

    def deadline(self, part: str) -> float:
        """By time.monotonic(), when a part has to have ended."""
        chosen = [name for name in SECONDS if name in self.parts]
        before = sum(SECONDS[name] for name in chosen[: chosen.index(part) + 1])
        whole = sum(SECONDS[name] for name in chosen)
        return self.began + self.budget * before / whole

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
        outcome = worker.call(describe, self.device, timeout=ROW_SECONDS)
        self.machine = outcome.value or {"failed": outcome.error}
        if "ceilings" in self.parts:
            self.step(worker, "ceilings", gpu_timing.ceilings, self.device, self.turns)
        worker.close()  # the checks below want the memory
        self.side_by_side()
        for part, work in (
            ("timing", self.timing),
            ("stages", self.stages),
            ("memory", self.memory),
            ("scaling", self.scaling),
        ):
            if part in self.parts:
                self.found[part] = {"rows": []}
                work(worker)
        worker.close()
        self.save()
        return self.right()

    def right(self) -> bool:
        """Whether nothing that ran was wrong."""
        correctness = self.found.get("correctness", {})
        sanitizer = self.found.get("sanitizer", {})
        return not correctness.get("failed") and not any(
            result.get("passed") is False for result in sanitizer.values()
        )

    def step(self, worker: Worker, part: str, function: Callable[..., Any], *args: Any) -> Any:
        """One call whose result becomes the part, or one of its rows; None where it failed."""
        label = f"{part}: {' '.join(str(getattr(arg, 'name', arg)) for arg in args[:3])}"
        if self.left(part) <= 0:
            outcome = Outcome(None, NOT_BEGUN, 0.0)
        else:
            left = self.began + self.budget + GRACE_SECONDS - time.monotonic()
            timeout = min(ROW_SECONDS, left)
            outcome = worker.call(function, *args, timeout=timeout)
        say(f"{label}: {last_line(outcome.error or 'done')} ({outcome.seconds:.1f} s)")
        row = outcome.value or {"asked": label, "failed": outcome.error}
        row["took"] = round(outcome.seconds, 1)
        if part == "ceilings":
            self.found[part] = row
        else:
            self.found[part]["rows"].append(row)
        self.save()
        return outcome.value

    # Side by side: compiling takes most of the time.

    def side_by_side(self) -> None:
        """The checks, and whatever else has to be compiled, in many processes."""
        jobs = []
        if "timing" in self.parts and self.on_gpu:
            jobs += self._warming()
        if "sanitizer" in self.parts:
            self.found["sanitizer"] = {}
            where = (self.device, self.backend, self.deadline("sanitizer"))
            jobs += [Job(("sanitizer", tool), sanitize, (tool, *where)) for tool in TOOLS]
        if "correctness" in self.parts:
            self.found["correctness"] = {
                "passed": 0, "failed": [], "not_run": [], "largest": {}, "behaviour": {},
            }  # fmt: skip
            jobs += self._checks()
        if not jobs:
            return
        checked = [part for part in ("correctness", "sanitizer") if part in self.parts]
        deadline = (self.began + self.deadline("timing")) / 2 if not checked else 0.0
        deadline = max([deadline, *map(self.deadline, checked)])
        run_all(jobs, self.processes, deadline, self._done)
        self.save()
        for name in ("correctness", "sanitizer"):
            if name in self.found:
                say(f"{name}: {summary(name, self.found[name])}")

    def _warming(self) -> list[Job]:
        compiled = [
            Job(("warm", name, dtype, layout), gpu_timing.warm_compiled,
                (self.workload(name), dtype, self.device, layout))
            for name, dtype, compiles in ROWS
            for layout in gpu_timing.LAYOUTS
            if compiles
        ]  # fmt: skip
        ours = [
            Job(("warm", name, dtype, backend), gpu_timing.warm,
                (self.workload(name), dtype, self.device, backend))
            for name, dtype, _ in ROWS
            for backend in self.backends
        ]  # fmt: skip
        return compiled + ours

    def _checks(self) -> list[Job]:
        where = (self.device, self.backend)
        dtypes = gpu_checks.DTYPES
        if not self.on_gpu and self.backend == "triton":
            dtypes = ("float32", "float16")  # the interpreter's
        behaviours = [
            Job(("behaviour", name), gpu_checks.check_behaviour, (name, *where))
            for name in gpu_checks.BEHAVIOURS
        ]
        table = [
            Job((op, name, dtype), gpu_checks.check_case, (op, name, dtype, *where))
            for name in (case.name for case in cases.CASES if case.name in self.names)
            for dtype in dtypes
            for op in gpu_checks.OPS if self.has(op)
        ]  # fmt: skip
        chains = [
            Job(("squeeze4d", chain.name, dtype), gpu_checks.check_chain,
                (chain.name, dtype, *where))
            for chain in cases.CHAINS if chain.name in self.names and self.has("squeeze4d")
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
        elif outcome.error == NOT_BEGUN and kind != "sanitizer":
            self.found["correctness"]["not_run"].append(label)
        elif kind == "sanitizer":
            unknown = {"passed": None, "said": outcome.error}
            self.found["sanitizer"][rest[0]] = outcome.value or unknown
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
        """Rows of the chain, with the floor of each beside its times."""
        for name, asked, compiles in ROWS:
            workload, dtype = self.workload(name), self.kind(asked)
            seconds = COMPILE_SECONDS if compiles and self.on_gpu else 0
            where = (self.device, self.backends, self.turns, seconds)
            row = self.step(worker, "timing", gpu_timing.chain_row, workload, dtype, *where)
            ceilings = self.found.get("ceilings", {})
            if row is not None and "flop_per_second" in ceilings:
                gpu = roofline.measured_gpu(ceilings)
                kind = getattr(torch, dtype)
                row["floor"] = roofline.floor_seconds(workload, kind, gpu)
                architecture = gpu.architecture
                launches = roofline.launches(workload, kind, architecture)
                row["launches_floor"] = sum(cost.seconds(gpu, kind) for cost in launches)
                self.save()

    def stages(self, worker: Worker) -> None:
        """By op, then by kernel."""
        first, dtype = PROFILED[0][0], self.kind(PROFILED[0][1])
        self.step(
            worker, "stages", gpu_timing.stages_row,
            self.workload(first), dtype, self.device, self.backends, self.turns,
        )  # fmt: skip
        for name, dtype in PROFILED:
            self.step(
                worker, "stages", gpu_timing.kernels_row,
                self.workload(name), self.kind(dtype), self.device, self.backend, "tokens",
            )  # fmt: skip

    def memory(self, worker: Worker) -> None:
        """Peaks, the fused op's first."""
        for name, part in MEMORY:
            self.step(
                worker, "memory", gpu_timing.memory_row,
                self.workload(name), self.kind("bfloat16"), part, self.device, self.backends,
            )  # fmt: skip

    def scaling(self, worker: Worker) -> None:
        """The chain on larger and larger grids."""
        for grid in GRIDS:
            workload = Workload(f"grid {grid}", batch=1, layers=12, grid=grid)
            self.step(
                worker, "scaling", gpu_timing.scaling_row,
                self.sized(workload), self.kind("bfloat16"), self.device, self.backends, self.turns,
            )  # fmt: skip


def describe(device: str) -> dict[str, Any]:
    """The GPU, its driver and what runs on it."""
    facts: dict[str, Any] = {"device": device, "cores": sharing.cores()}
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    if device == "cpu":
        return facts
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
    }


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


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
        return {"passed": None, "said": f"skipped: {missing}"}
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
        return {"passed": None, "said": "skipped: it took too long"}
    return read_sanitizer(output)


def read_sanitizer(output: str) -> dict[str, Any]:
    """What compute-sanitizer's output says; None where it did not get to the end."""
    summaries = [line.strip("= ") for line in output.splitlines() if "SUMMARY:" in line]
    said = {"said": "; ".join(summaries), "output": output[-3000:]}
    if not summaries or "calls:" not in output:
        return {"passed": None, **said, "said": "skipped: it did not get to the end"}
    clean = all(": 0 errors" in line or ": 0 hazards" in line for line in summaries)
    return {"passed": clean, **said}


def say(line: str) -> None:
    print(line, flush=True)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def summary(part: str, found: dict[str, Any]) -> str:
    """One line about the checks."""
    if part == "sanitizer":
        return ", ".join(f"{tool}: {last_line(result['said'])}" for tool, result in found.items())
    failed = [entry["check"] for entry in found["failed"]]
    line = f"{found['passed']} cases right, {len(failed)} checks failed"
    line += f", {len(found['not_run'])} not run" if found["not_run"] else ""
    return line + "".join(f"\n  {check}" for check in failed[:20])


def table(record: dict[str, Any]) -> str:
    """What was measured, for people."""
    parts = record["parts"]
    lines = [" ".join(f"{k}={v}" for k, v in record["machine"].items())]
    ceilings = parts.get("ceilings", {})
    if "flop_per_second" in ceilings:
        rates = ", ".join(f"{k} {v / 1e12:.0f}" for k, v in ceilings["flop_per_second"].items())
        lines.append(f"TFLOP/s: {rates}; TB/s: {ceilings['bytes_per_second'] / 1e12:.2f}")
    for name in ("correctness", "sanitizer"):
        if name in parts:
            lines.append(f"{name}: {summary(name, parts[name])}")
    for name, behaviour in parts.get("correctness", {}).get("behaviour", {}).items():
        lines.append(f"  {name}: {behaviour}")
    for name, rows_of in (
        ("timing", _timing_lines),
        ("stages", _stage_lines),
        ("memory", _memory_lines),
        ("scaling", _scaling_lines),
    ):
        for row in parts.get(name, {}).get("rows", []):
            if row.get("failed"):
                lines.append(f"{row['asked']}: {last_line(row['failed'])}")
            else:
                lines += rows_of(row)
    return "\n".join(lines)


def _timing_lines(row: dict[str, Any]) -> list[str]:
    """Each implementation's ms, times the same layout's eager and compiled calls, and the floor."""
    floor, everything = row.get("floor"), row["implementations"]
    head = f"{row['workload']} {row['dtype']}"
    if floor is not None:
        head += f", floor {1e3 * floor:.3f} ms, as launched {1e3 * row['launches_floor']:.3f} ms"
    lines = [head]
    for name, result in everything.items():
        if "seconds" not in result:
            said = result.get("failed") or f"wrong, error {result['error']:.3g} of the allowed"
            lines.append(f"  {name:32} {said}")
            continue
        seconds = result["seconds"]
        line = f"  {name:32}{1e3 * seconds:10.4f} ms  error {result['error']:.2f}"
        own, _, layout = name.partition(", ")
        for other in BESIDE:
            beside = everything.get(f"{other}, {layout}", {}).get("seconds")
            if beside and other != own:
                line += f"  {beside / seconds:6.2f}x {other}"
        lines.append(line + (f"  {floor / seconds:5.2f} of floor" if floor else ""))
    return lines


def _stage_lines(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['workload']} {row['dtype']} by {'op' if 'stages' in row else 'kernel'}"]
    for name, result in row.get("stages", {}).items():
        lines.append(f"  {name:32}{1e3 * result['seconds']:10.4f} ms")
    totals: dict[str, tuple[float, int]] = {}
    for launch in row.get("kernels", []):
        used, count = totals.get(launch["kernel"], (0.0, 0))
        totals[launch["kernel"]] = (used + launch["seconds"], count + 1)
    for name, (used, count) in sorted(totals.items(), key=lambda item: -item[1][0])[:12]:
        lines.append(f"  {name[:60]:60}{count:4} x{1e3 * used:10.4f} ms")
    return lines


def _memory_lines(row: dict[str, Any]) -> list[str]:
    cells = []
    for name, result in row["peaks"].items():
        peak = result.get("bytes")
        cells.append(f"{name} {result.get('failed') or (f'{peak / 1e6:.0f} MB' if peak else '–')}")
    return [f"{row['workload']} {row['part']}, peak: {', '.join(cells)}"]


def _scaling_lines(row: dict[str, Any]) -> list[str]:
    cells = []
    for name, result in row["implementations"].items():
        seconds = result.get("seconds")
        said = result.get("failed") or f"wrong, error {result.get('error')}"
        if seconds:
            said = f"{1e3 * seconds:.3f} ms, {row['flop'] / seconds / 1e12:.1f} TFLOP/s"
        cells.append(f"{name} {said}")
    return [f"grid {row['grid']}: {'; '.join(cells)}"]


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
    """Run the suite, print its table; 1 where a result was wrong."""
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
