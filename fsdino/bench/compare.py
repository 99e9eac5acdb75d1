"""Time the 4D ops: every backend that runs here beside the eager formulation, once checked."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fsdino import ops
from fsdino import processes as sharing
from fsdino.bench import baseline, exactness, memory, workloads
from fsdino.bench.baseline import COMPILED, EAGER
from fsdino.bench.cases import TOLERANCE
from fsdino.bench.workloads import STRIDE, Inputs, Workload, check_part
from fsdino.errors import FsdinoError, UsageError, one_line
from fsdino.ops import backends
from fsdino.progress import Progress

_CHAIN = ("correlation4d", "center_pivot_block4d")
_OPS = {
    "chain": ("squeeze4d",),
    "correlation": ("correlation4d",),
    "blocks": _CHAIN,
    "blocks-contiguous": _CHAIN,
    "fused-block": ("correlation_center_pivot4d",),
    "fused-chain": ("correlation_center_pivot4d", "center_pivot_block4d"),
}

_SGEMM = "sgemm"
_SGEMM_ROUNDS = 5
_SGEMM_SIDE = {"cpu": 1536, "cuda": 8192}

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Timing:
    """One implementation of one part of a workload.

    Attributes:
        name: a backend, "eager", or "compiled": torch.compile of that.
        error: largest error among the checked results, as a share of what is allowed.
        seconds: of each round; empty where the check failed.
        memory: peak bytes beyond inputs and results; None where that was not measured.
    """

    name: str
    error: float
    seconds: tuple[float, ...]
    memory: int | None = None

    @property
    def passed(self) -> bool:
        """Whether the results were right."""
        return self.error <= 1

    @property
    def median(self) -> float | None:
        """Median seconds; None where the check failed."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass(frozen=True)
class Comparison:
    """All implementations of one part of a workload, timed in turns in one process.

    Attributes:
        workload: its name.
        dtype, device: of the inputs.
        timings: the eager formulation first.
        missing: why other backends cannot run it here, by name.
        part: one of `PARTS`.
        foreground: share of support tokens of weight 1, the rest 0; None for weights +1 and -1.
        threads: of PyTorch on the CPU.
        flop: operations of the eager formulation, 2 per multiply-add; an implementation may need
            fewer, where weights are 0.
        peak: FLOP/s of the fastest of some large products, timed in the same turns: float32 on a
            CPU, the inputs' dtype on a GPU.
    """

    workload: str
    dtype: str
    device: str
    timings: tuple[Timing, ...]
    missing: dict[str, str]
    part: str = "chain"
    foreground: float | None = None
    threads: int = 1
    flop: float = 0.0
    peak: float = float("inf")

    @property
    def title(self) -> str:
        """What was compared, in words."""
        share = self.foreground
        weights = "weights ±1" if share is None else f"{100 * share:.0f} % foreground"
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.workload}, {self.dtype}, {self.device}, {threads}, {weights}, {self.part}"

    def ratio(self, timing: Timing) -> float | None:
        """How many times faster than the eager formulation, by medians."""
        first = self.timings[0].median
        if first is None or timing.median is None:
            return None
        return first / timing.median

    def speed(self, timing: Timing) -> float | None:
        """Median FLOP/s, by the eager formulation's count."""
        return None if timing.median is None else self.flop / timing.median

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; nothing but the error where a check failed."""
        rows = []
        for timing in self.timings:
            speed = self.speed(timing)
            row = {
                **asdict(timing),
                "passed": timing.passed,
                "median": timing.median,
                "ratio": self.ratio(timing),
                "gflops": None if speed is None else speed / 1e9,
                "share_of_peak": None if speed is None else speed / self.peak,
            }
            rows.append(row)
        return {**asdict(self), "timings": rows}


def check_passed(comparisons: Sequence[Comparison]) -> None:
    """Refuse wrong results.

    Raises:
        FsdinoError: an implementation's results were wrong; all such are named.
    """
    wrong = [
        f"{timing.name} on {comparison.workload} (error {timing.error:.2g} times the allowed)"
        for comparison in comparisons
        for timing in comparison.timings
        if not timing.passed
    ]
    if wrong:
        raise FsdinoError(f"wrong results, so not timed: {', '.join(wrong)}; please report this")


def compare(
    workload: Workload,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    rounds: int = 5,
    only: Sequence[str] = (),
) -> Comparison:
    """The whole chain of one workload, as `Bench` compares it."""
    return Bench(workload, device=device, dtype=dtype).compare(rounds=rounds, only=only)


class Bench:
    """One workload with its inputs, and what its parts must give, computed once.

    Args:
        workload: what to run.
        device: where.
        dtype: floating type of the inputs, also of the weights.
        foreground: share of support tokens of weight 1, the rest 0; None for weights +1 and -1.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        foreground: float | None = None,
    ) -> None:
        self.workload, self.device, self.dtype = workload, device, dtype
        self.foreground = foreground
        self.inputs = workloads.make_inputs(
            workload, device=device, dtype=dtype, foreground=foreground
        )
        self._expected: dict[str, list[Tensor]] = {}

    def compare(
        self,
        part: str = "chain",
        *,
        threads: int | None = None,
        rounds: int = 5,
        only: Sequence[str] = (),
        compiled: bool = False,
        measure_memory: bool = False,
    ) -> Comparison:
        """Check, then time one part on every backend that can run it.

        Args:
            part: one of `PARTS`.
            threads: of PyTorch on the CPU; None leaves them as they are.
            rounds: in which every implementation runs once.
            only: these backends, or "auto"; all where empty.
            compiled: also torch.compile of the eager formulation, compiled before it is timed.
            measure_memory: also run each in a process of its own (on a CPU, on Linux).

        Raises:
            UsageError: no backend or part has that name, or a number is below 1.
            BackendError: a backend in `only` cannot run here.
        """
        for name, value in (("rounds", rounds), ("threads", threads)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        check_part(part)
        missing = self._missing(part, only)
        others = (name for name in only or backends.names() if name not in (EAGER, *missing))
        names = [EAGER, *others]
        with sharing.threads(threads), torch.set_grad_enabled(self.workload.backward):
            runs = {name: _make_run(name, part, self.inputs) for name in names}
            if compiled:
                run, reason = self._compile(part)
                if reason is None:
                    runs = {EAGER: runs.pop(EAGER), COMPILED: run, **runs}
                else:
                    missing[COMPILED] = reason
            errors = self._check(part, runs)
            right = {name: run for name, run in runs.items() if errors[name] <= 1}
            seconds, peak = self._time(part, right, rounds)
            count = torch.get_num_threads()
        del runs, right  # the memory they hold is needed for the next
        peaks = self._measure_memory(part, [*seconds] if measure_memory else [], count)
        return Comparison(
            self.workload.name,
            str(self.dtype).removeprefix("torch."),
            str(self.device),
            tuple(Timing(n, errors[n], seconds.get(n, ()), peaks.get(n)) for n in errors),
            missing,
            part,
            self.foreground,
            count,
            _flop(self.workload, part),
            peak,
        )

    def _missing(self, part: str, only: Sequence[str]) -> dict[str, str]:
        """Why backends cannot run a part, by name; those in `only` are built, or raise."""
        missing = {}
        for op in _OPS[part]:
            for name in only:
                if name != EAGER:
                    backends.select(op, self.inputs.query, name)
            for name in () if only else backends.names():
                if name == EAGER:  # the baseline, which is timed in every dtype
                    continue
                reason = backends.why_not(name, op, self.device, self.dtype)
                if reason is not None:
                    missing[name] = reason
        return missing

    def _compile(self, part: str) -> tuple[Run, str | None]:
        """A part compiled, and the reason why that failed; None where it did not."""
        with Progress(f"compile {self.workload.name}", 1, unit="programs") as progress:
            run = _make_run(COMPILED, part, self.inputs)
            reason = None
            try:
                exactness.step(run, self.inputs)
            except RuntimeError as problem:  # no compiler, or code that it refuses
                reason = f"torch.compile failed: {one_line(str(problem))}"
            progress.advance()
        return run, reason

    def _check(self, part: str, runs: dict[str, Run]) -> dict[str, float]:
        """Each implementation's error as a share of what it may be, against float64.

        GroupNorm takes a wrong scale out again, so the chain's correlation is held to a bound of
        its own.
        """
        with Progress(f"check {self.workload.name}", len(runs) + 1, unit="results") as progress:
            expected = self._expect(part)
            progress.advance()
            inputs, errors = self.inputs, {}
            by_eager = exactness.step(runs[EAGER], inputs)
            allowed = exactness.bounds(
                by_eager, expected, self.dtype, chained=part != "correlation"
            )
            errors[EAGER] = exactness.yardstick_error(by_eager, expected, self.dtype)
            del by_eager
            progress.advance()
            for name, run in runs.items():
                if name == EAGER:
                    continue
                results = exactness.step(run, inputs)
                progress.advance()
                if name == COMPILED:
                    errors[name] = exactness.yardstick_error(results, expected, self.dtype)
                    continue
                errors[name] = exactness.error(results, expected, allowed)
                del results
                if part == "chain":
                    correlation = [_make_run(name, "correlation", inputs)()]
                    bound = [TOLERANCE[self.dtype].forward]
                    own = exactness.error(correlation, self._expect("correlation"), bound)
                    errors[name] = max(errors[name], own)
        return errors

    def _expect(self, part: str) -> list[Tensor]:
        """The part's results in float64; those of the chain for all parts that end like it."""
        ends = part if part in {"correlation", "fused-block"} else "chain"
        if ends not in self._expected:
            self._expected[ends] = exactness.expected(ends, self.inputs)
        return self._expected[ends]

    def _time(
        self, part: str, runs: dict[str, Run], rounds: int
    ) -> tuple[dict[str, tuple[float, ...]], float]:
        """Seconds of every round by name, and the FLOP/s of a large product."""
        side = _SGEMM_SIDE[self.device.type]
        dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        factors = torch.rand(2, side, side, device=self.device, dtype=dtype)
        steps: dict[str, Callable[[], object]] = {
            name: functools.partial(exactness.step, run, self.inputs) for name, run in runs.items()
        }
        steps[_SGEMM] = lambda: torch.mm(*factors)
        steps[_SGEMM]()
        seconds = take_turns(steps, rounds, self.device, f"time {self.workload.name}")
        return seconds, 2.0 * side**3 / min(seconds.pop(_SGEMM))

    def _measure_memory(
        self, part: str, names: Sequence[str], threads: int
    ) -> dict[str, int | None]:
        """Peak bytes by name."""
        peaks: dict[str, int | None] = {}
        if self.device.type != "cpu" or not names:
            return peaks
        title = f"memory of {self.workload.name}"
        with Progress(title, len(names), unit="processes") as progress:
            for name in names:
                request = (self.workload, self.dtype, self.foreground, name, part, threads)
                peaks[name] = memory.in_new_process(_peak_bytes, *request)
                progress.advance()
        return peaks


def take_turns(
    steps: dict[str, Callable[[], object]], rounds: int, device: torch.device, title: str
) -> dict[str, tuple[float, ...]]:
    """Seconds of every round by name; what slows the machine for a while slows all of them.

    The steps have been run before. The large product takes part in the first rounds only.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with Progress(title, rounds, unit="rounds") as progress:
        for index in range(rounds):
            for name, step in steps.items():
                if name == _SGEMM and index >= _SGEMM_ROUNDS:
                    continue
                seconds[name].append(timed(step, device))
            progress.advance()
    return {name: tuple(times) for name, times in seconds.items()}


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step that starts on an idle device, until the device is done."""
    _wait(device)
    began = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _make_run(name: str, part: str, inputs: Inputs) -> Run:
    """A call of one part by one implementation; what the part starts from is made here."""
    if name in (EAGER, COMPILED):
        return baseline.make_run(part, inputs, compiled=name == COMPILED)
    features = baseline.features(inputs)
    correlation4d = functools.partial(ops.correlation4d, *features, backend=name)
    block4d = functools.partial(ops.center_pivot_block4d, backend=name)
    if part == "correlation":
        return correlation4d
    if part in {"blocks", "blocks-contiguous"}:
        x = correlation4d()
        x = x if part == "blocks" else x.contiguous()
        return lambda: workloads.run_blocks(x, inputs.blocks, block4d)
    if part == "chain":
        blocks = [(*block.tensors(), STRIDE) for block in inputs.blocks]
        return functools.partial(ops.squeeze4d, *features, blocks, backend=name)

    def first_block() -> Tensor:
        first = inputs.blocks[0]
        convolution = first.tensors()[:3]
        raw = ops.correlation_center_pivot4d(
            *features, *convolution, support_stride=STRIDE, backend=name
        )
        return baseline.norm_relu(raw, first.norm_weight, first.norm_bias)

    if part == "fused-block":
        return first_block
    return lambda: workloads.run_blocks(first_block(), inputs.blocks[1:], block4d)


def _flop(workload: Workload, part: str) -> float:
    """Operations of the eager formulation of a part, forward and where asked for backward."""
    counts = workload.flop()
    if workload.backward:
        backward = workload.backward_flop()
        counts = {name: count + backward[name] for name, count in counts.items()}
    if part.startswith("blocks"):
        counts.pop("correlation")
    elif part == "correlation":
        return counts["correlation"]
    elif part == "fused-block":
        return counts["correlation"] + counts["block 1"]
    return sum(counts.values())


def _peak_bytes(
    workload: Workload,
    dtype: torch.dtype,
    foreground: float | None,
    name: str,
    part: str,
    threads: int,
) -> int | None:
    """Peak memory of one step, in a process of its own; a small workload loads the libraries."""
    small = replace(workload, batch=1, grid=min(workload.grid, 5))
    for size in (small, workload):
        inputs = workloads.make_inputs(size, dtype=dtype, foreground=foreground)
        with sharing.threads(threads), torch.set_grad_enabled(workload.backward):
            run = _make_run(name, part, inputs)
            if name == COMPILED:
                exactness.step(run, inputs)
            peak = memory.peak_bytes(functools.partial(exactness.step, run, inputs))
    return peak
