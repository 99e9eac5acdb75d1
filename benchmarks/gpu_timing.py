"""Seconds and bytes of the 4D chain on a device, never beside a wrong result.

Implementations of one row take turns; each turn is a few calls between two events, over random
inputs that rotate through more memory than the L2 cache holds. Medians are compared. The features
come in two memory layouts: "contiguous", [B, L, C, h, w] as written, and "tokens", as an encoder
leaves them, with the channels innermost.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gpu_behaviours
import gpu_checks
import torch
from torch import Tensor

from fsdino import ops
from fsdino.bench import baseline, exactness, workloads
from fsdino.bench.baseline import COMPILED, EAGER
from fsdino.bench.workloads import STRIDE, Block, Inputs, Workload
from fsdino.errors import BackendError
from fsdino.ops import eager

LAYOUTS = ("contiguous", "tokens")
CACHE_TIMES = 2  # as much memory as the L2 cache holds is read before inputs come again
MOST_SETS = 6
TURN_SECONDS = 0.005  # at least, of the calls in one turn
MOST_CALLS, FEWEST_ROUNDS, MOST_ROUNDS = 20, 5, 200
CEILING, TINY_CEILING = (8192, 2**30), (256, 2**22)  # side of the products, bytes of the copy
LARGE = 2**31  # elements of a volume, beyond which its slices are checked

Chain = Callable[[Inputs], Tensor]
Step = Callable[[int], object]


def ceilings(device: str, seconds: float) -> dict[str, Any]:
    """FLOP/s of a large product in each data type, and bytes a second of a large copy."""
    on_gpu = device != "cpu"
    side, count = CEILING if on_gpu else TINY_CEILING
    steps: dict[str, Step] = {}
    for name in ("bfloat16", "float16", "float32"):
        factors = torch.randn(2, side, side, device=device).to(getattr(torch, name))
        steps[name] = lambda _, factors=factors: torch.mm(*factors)
    source, target = (torch.randn(count // 4, device=device) for _ in range(2))
    steps["copy"] = lambda _: target.copy_(source)
    times = take_turns(steps, seconds, device)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        times |= take_turns({"tf32": steps["float32"]}, seconds / 4, device)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    copy = times.pop("copy")["seconds"]
    major, minor = torch.cuda.get_device_capability(device) if on_gpu else (0, 0)
    processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
    return {
        "flop_per_second": {name: 2.0 * side**3 / t["seconds"] for name, t in times.items()},
        "bytes_per_second": 2.0 * source.nbytes / copy,
        "architecture": 10 * major + minor,
        "multiprocessors": processors,
    }


def chain_row(
    workload: Workload,
    dtype_name: str,
    device: str,
    backends: Sequence[str],
    seconds: float,
    compile_seconds: float,
) -> dict[str, Any]:
    """The whole chain: eager, compiled and backends, in both layouts, called and replayed.

    Args:
        workload: which.
        dtype_name: of all tensors.
        device: where.
        backends: beside the eager formulation.
        seconds: for the timing.
        compile_seconds: for torch.compile of the eager formulation in one layout; 0 leaves it out.
    """
    torch._dynamo.reset()
    dtype = getattr(torch, dtype_name)
    inputs = workloads.make_inputs(workload, device=device, dtype=dtype)
    chains: dict[str, Chain] = {EAGER: baseline.chain} | {name: _ours(name) for name in backends}
    if compile_seconds:
        chains[COMPILED] = _compiled()
    found: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    with torch.set_grad_enabled(workload.backward):
        exact = exactness.expected("chain", inputs)
        by_eager = exactness.step(lambda: baseline.chain(inputs), inputs)
        allowed = exactness.bounds(by_eager, exact, dtype, chained=True)
        for layout in LAYOUTS:
            sets = _rotation(lay_out(inputs, layout), device)
            for name, chain in chains.items():
                label = f"{name}, {layout}"
                call = functools.partial(_call, chain)
                with _noted(found, label):
                    with limit(compile_seconds if name == COMPILED else math.inf):
                        results = call(sets[0])
                    found[label]["error"] = _error(name, results, exact, allowed, dtype)
                    if found[label]["error"] <= 1:
                        steps[label] = lambda i, call=call, sets=sets: call(sets[i % len(sets)])
                if label in steps and device != "cpu":
                    graph = f"{label}, graph"
                    with _noted(found, graph):
                        steps[graph], replayed = _replay(call, sets)
                        found[graph]["error"] = _error(name, replayed, exact, allowed, dtype)
                        if found[graph]["error"] > 1:
                            del steps[graph]
        for label, timing in take_turns(steps, seconds, device).items():
            found[label] |= timing
    return {"workload": workload.name, "dtype": dtype_name, "implementations": found}


def stages_row(
    workload: Workload, dtype_name: str, device: str, backends: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Forward seconds of the correlation and of each block, by op, each on its own inputs."""
    dtype = getattr(torch, dtype_name)
    inputs = lay_out(workloads.make_inputs(workload, device=device, dtype=dtype), "tokens")
    features = (inputs.query, inputs.support, inputs.support_weight)
    chains: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
        EAGER: (eager.correlation4d, eager.center_pivot_block4d),
    }
    for name in backends:
        chains[name] = (functools.partial(ops.correlation4d, backend=name), _block4d(name, device))
    steps: dict[str, Step] = {}
    with torch.no_grad():
        for name, (correlation4d, block4d) in chains.items():
            steps[f"{name}, correlation"] = lambda _, op=correlation4d: op(*features)
            if name != EAGER and not gpu_checks.has(name, gpu_checks.BLOCK, device):
                continue
            x = correlation4d(*features)
            for index, block in enumerate(inputs.blocks, start=1):
                last = index == len(inputs.blocks)
                run = functools.partial(
                    block4d, x, *block.tensors(), support_stride=STRIDE, reduce_support=last
                )
                steps[f"{name}, block {index}"] = lambda _, run=run: run()
                x = run()
        times = take_turns(steps, seconds, device)
    return {"workload": workload.name, "dtype": dtype_name, "stages": times}


def kernels_row(
    workload: Workload, dtype_name: str, device: str, backend: str, layout: str
) -> dict[str, Any]:
    """What runs on the device in one step of the chain, in order, with median seconds.

    Where runs differ in what they launch, the seconds of each name in all, over the runs.
    """
    dtype, repeats = getattr(torch, dtype_name), 5
    inputs = lay_out(workloads.make_inputs(workload, device=device, dtype=dtype), layout)
    kind = torch.profiler.ProfilerActivity.CPU
    if device != "cpu":
        kind = torch.profiler.ProfilerActivity.CUDA
    wanted = getattr(torch.autograd.DeviceType, kind.name)
    with torch.set_grad_enabled(workload.backward):
        step = functools.partial(_call, _ours(backend), inputs)
        step()
        _wait(device)
        with torch.profiler.profile(activities=[kind]) as profile:
            for _ in range(repeats):
                step()
            _wait(device)
    events = [event for event in profile.events() if event.device_type == wanted]
    events.sort(key=lambda event: event.time_range.start)
    length, rest = divmod(len(events), repeats)
    runs = [events[i * length : (i + 1) * length] for i in range(repeats)]
    names = [event.name for event in runs[0]]
    rows = []
    if rest == 0 and all([event.name for event in run] == names for run in runs):
        for position, name in enumerate(names):
            times = [run[position].time_range.elapsed_us() / 1e6 for run in runs]
            rows.append({"kernel": name[:120], "seconds": statistics.median(times)})
    else:
        totals: dict[str, float] = {}
        for event in events:
            used = event.time_range.elapsed_us() / 1e6 / repeats
            totals[event.name[:120]] = totals.get(event.name[:120], 0.0) + used
        rows = [{"kernel": name, "seconds": used} for name, used in totals.items()]
    return {
        "workload": workload.name,
        "dtype": dtype_name,
        "layout": layout,
        "in_order": len(rows) == len(names),
        "seconds": sum(row["seconds"] for row in rows),
        "kernels": rows,
    }


def memory_row(
    workload: Workload, dtype_name: str, part: str, device: str, backends: Sequence[str]
) -> dict[str, Any]:
    """Peak bytes beyond inputs and results of one step.

    Args:
        workload: which.
        dtype_name: of all tensors.
        part: "chain"; "fused-block" and "fused-chain", the first block's correlation never held;
            "fused-gradients", the first convolution and all its gradients, features included.
        device: where.
        backends: beside the eager formulation.
    """
    dtype = getattr(torch, dtype_name)
    inputs = lay_out(workloads.make_inputs(workload, device=device, dtype=dtype), "tokens")
    found: dict[str, dict[str, Any]] = {}
    with torch.set_grad_enabled(workload.backward or part == "fused-gradients"):
        exact = _exact_of(part, inputs)
        allowed: list[float] = []
        for name in (EAGER, *backends):
            step = _memory_step(part, name, inputs)
            with _noted(found, name):
                results = step()
                allowed = allowed or exactness.bounds(results, exact, dtype, chained=True)
                found[name]["error"] = _error(name, results, exact, allowed, dtype)
                del results
                if found[name]["error"] <= 1:
                    found[name]["bytes"] = peak_bytes(step, device)
    return {"workload": workload.name, "dtype": dtype_name, "part": part, "peaks": found}


def scaling_row(
    workload: Workload, dtype_name: str, device: str, backends: Sequence[str], seconds: float
) -> dict[str, Any]:
    """The chain on one grid, called; eager beside it where it fits.

    Where a volume has more elements than 32 bits count, float64 of the whole would not fit: some
    query rows of each op are checked instead.
    """
    dtype = getattr(torch, dtype_name)
    found: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    large = workload.layers * workload.grid**4 >= LARGE
    shares: dict[str, float] = {}
    if large:
        sizes = (workload.grid, workload.layers, workload.channels)
        for name in backends:
            with _noted(found, name):
                shares[name] = gpu_checks.check_rows(*sizes, device, name)
            _forget(device)
    inputs = lay_out(workloads.make_inputs(workload, device=device, dtype=dtype), "tokens")
    chains = {name: _ours(name) for name in backends if not found.get(name)}
    allowed: list[float] = []
    with torch.no_grad():
        exact = None if large else exactness.expected("chain", inputs)
        _forget(device)
        for name, chain in (chains | {EAGER: baseline.chain}).items():
            with _noted(found, name):
                results = _call(chain, inputs)
                if exact is None:
                    finite = bool(torch.isfinite(results[0]).all())
                    found[name]["error"] = shares.get(name, 0.0) if finite else float("inf")
                else:
                    if not allowed:
                        by_eager = _call(baseline.chain, inputs)
                        allowed = exactness.bounds(by_eager, exact, dtype, chained=True)
                        del by_eager
                    found[name]["error"] = _error(name, results, exact, allowed, dtype)
                if found[name]["error"] <= 1:
                    steps[name] = lambda _, chain=chain: _call(chain, inputs)
        for name, timing in take_turns(steps, seconds, device).items():
            found[name] |= timing
    flop = sum(workload.flop().values())
    return {"grid": workload.grid, "dtype": dtype_name, "flop": flop, "implementations": found}


def warm(workload: Workload, dtype_name: str, device: str, backend: str) -> None:
    """Compile what a workload's chain and its fused first block launch, in both layouts."""
    inputs = workloads.make_inputs(workload, device=device, dtype=getattr(torch, dtype_name))
    with torch.set_grad_enabled(workload.backward):
        for layout in LAYOUTS:
            _call(_ours(backend), lay_out(inputs, layout))
    tokens = lay_out(inputs, "tokens")
    fused = gpu_checks.has(backend, "correlation_center_pivot4d", device)
    if fused and workload.grid > 37:  # where the fused op is measured
        for part in ("fused-block", "fused-gradients"):
            with torch.set_grad_enabled(part == "fused-gradients"):
                _memory_step(part, backend, tokens)()
    _wait(device)


def warm_compiled(workload: Workload, dtype_name: str, device: str, layout: str) -> None:
    """Fill torch.compile's caches with the eager formulation of a workload."""
    inputs = workloads.make_inputs(workload, device=device, dtype=getattr(torch, dtype_name))
    with torch.set_grad_enabled(workload.backward):
        _call(_compiled(), lay_out(inputs, layout))
    _wait(device)


def lay_out(inputs: Inputs, layout: str) -> Inputs:
    """Inputs with their features in one of `LAYOUTS`."""
    if layout == "contiguous":
        return inputs

    def tokens(features: Tensor) -> Tensor:
        return features.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)

    return replace(inputs, query=tokens(inputs.query), support=tokens(inputs.support))


def take_turns(steps: dict[str, Step], seconds: float, device: str) -> dict[str, dict[str, Any]]:
    """Median seconds of a call of each step, and the 20th and 80th percentile of the turns."""
    calls = {}
    for name, step in steps.items():
        _turn(step, 0, 1, device)
        once = _turn(step, 1, 1, device)
        calls[name] = min(MOST_CALLS, max(1, math.ceil(TURN_SECONDS / max(once, 1e-9))))
    turns: dict[str, list[float]] = {name: [] for name in steps}
    began = time.monotonic()
    for index in range(MOST_ROUNDS if steps else 0):
        for name, step in steps.items():
            turns[name].append(_turn(step, index, calls[name], device))
        if time.monotonic() - began > seconds and index + 1 >= FEWEST_ROUNDS:
            break
    return {name: _summary(times, calls[name]) for name, times in turns.items()}


def peak_bytes(step: Callable[[], Sequence[Tensor]], device: str) -> int | None:
    """Most memory that PyTorch allocates during a step, beyond before and its results."""
    if device == "cpu":
        return None
    _forget(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    results = step()
    _wait(device)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in results}
    return torch.cuda.max_memory_allocated(device) - before - sum(storages.values())


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this process's main thread after so many seconds."""
    if math.isinf(seconds):
        yield
        return

    late = False

    def stop(*_: object) -> None:
        nonlocal late
        late = True
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    # Again every second: what is interrupted may swallow the exception, or wrap it.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    except Exception as interrupted:
        if late:
            raise TimeoutError(f"no result after {seconds:.0f} s") from interrupted
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _noted(found: dict[str, dict[str, Any]], name: str) -> Iterator[None]:
    """An entry for an implementation; what it cannot do, or not in time, is written there."""
    found[name] = {}
    try:
        yield
    except torch.OutOfMemoryError:
        found[name] = {"failed": "out of memory"}
    except (TimeoutError, BackendError) as reason:
        found[name] = {"not_run": str(reason)}
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        found[name] = {"failed": f"{type(problem).__name__}: {lines[0]}"}


def _ours(backend: str) -> Chain:
    """The chain; after a correlation of a backend that has no blocks, they run on others."""

    def chain(inputs: Inputs) -> Tensor:
        features = (inputs.query, inputs.support, inputs.support_weight)
        blocks = [(*block.tensors(), STRIDE) for block in inputs.blocks]
        device = inputs.query.device.type
        if gpu_checks.has(backend, "squeeze4d", device):
            return ops.squeeze4d(*features, blocks, backend=backend)
        corr = ops.correlation4d(*features, backend=backend)
        return workloads.run_blocks(corr, inputs.blocks, _block4d(backend, device))

    return chain


def _block4d(backend: str, device: str) -> Callable[..., Tensor]:
    runs = gpu_checks.instead(backend, gpu_checks.BLOCK, device)
    return functools.partial(ops.center_pivot_block4d, backend=runs)


def _compiled() -> Chain:
    """torch.compile of the eager formulation."""
    from torch._inductor import config

    config.autotune_local_cache = False  # what a busy machine found fastest is not kept

    compiled = baseline.compile_part("chain")
    return lambda inputs: compiled(baseline.features(inputs), inputs.blocks)


def _call(chain: Chain, inputs: Inputs) -> list[Tensor]:
    return exactness.step(lambda: chain(inputs), inputs)


def _replay(
    call: Callable[[Inputs], list[Tensor]], sets: Sequence[Inputs]
) -> tuple[Step, list[Tensor]]:
    """A step that replays CUDA graphs of the sets in turn, and what the first one's gives."""
    first, results = gpu_behaviours.capture(lambda: call(sets[0]))
    graphs = [first]
    for inputs in sets[1:]:
        graph, _ = gpu_behaviours.capture(lambda inputs=inputs: call(inputs), pool=first.pool())
        graphs.append(graph)
    first.replay()
    return (lambda i: graphs[i % len(graphs)].replay()), [t.clone() for t in results]


def _rotation(inputs: Inputs, device: str) -> list[Inputs]:
    """The inputs, and others of the same layout, so many that they do not stay in the cache."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device != "cpu" else 0
    size = inputs.query.nbytes + inputs.support.nbytes
    count = min(MOST_SETS, max(2, math.ceil(CACHE_TIMES * cache / size)))
    return [inputs] + [
        replace(
            inputs, query=torch.randn_like(inputs.query), support=torch.randn_like(inputs.support)
        )
        for _ in range(count - 1)
    ]


def _error(
    name: str,
    results: Sequence[Tensor],
    exact: Sequence[Tensor],
    allowed: Sequence[float],
    dtype: torch.dtype,
) -> float:
    """As a share of what is allowed; the eager formulation and its compilation may err more."""
    if name in {EAGER, COMPILED}:
        return exactness.yardstick_error(results, exact, dtype)
    return exactness.error(results, exact, allowed)


def _memory_step(part: str, name: str, inputs: Inputs) -> Callable[[], list[Tensor]]:
    chain = baseline.chain if name == EAGER else _ours(name)
    if part == "chain":
        return lambda: _call(chain, inputs)
    if part == "fused-block":
        return lambda: _call(lambda given: _first_block(name, given), inputs)
    if part == "fused-chain":
        block4d: Callable[..., Tensor] = eager.center_pivot_block4d
        if name != EAGER:
            block4d = functools.partial(ops.center_pivot_block4d, backend=name)
        return lambda: _call(
            lambda given: workloads.run_blocks(
                _first_block(name, given), given.blocks[1:], block4d
            ),
            inputs,
        )
    return lambda: _fused_gradients(name, inputs)


def _first_block(name: str, inputs: Inputs) -> Tensor:
    """Correlation, convolution, norm and ReLU."""
    block = inputs.blocks[0]
    features = (inputs.query, inputs.support, inputs.support_weight)
    if name == EAGER:
        corr = eager.correlation4d(*features)
        return eager.center_pivot_block4d(corr, *block.tensors(), support_stride=STRIDE)
    raw = ops.correlation_center_pivot4d(
        *features, *block.tensors()[:3], support_stride=STRIDE, backend=name
    )
    return baseline.norm_relu(raw, block.norm_weight, block.norm_bias)


def _fused_gradients(name: str, inputs: Inputs) -> list[Tensor]:
    """The first convolution of the correlation, and its gradient to all six inputs."""
    tensors = (inputs.query, inputs.support, inputs.support_weight, *inputs.blocks[0].tensors()[:3])
    leaves = [t.detach().requires_grad_() for t in tensors]
    if name == EAGER:
        corr = eager.correlation4d(*leaves[:3])
        y = eager.center_pivot_conv4d(corr, *leaves[3:], support_stride=STRIDE)
        del corr
    else:
        y = ops.correlation_center_pivot4d(*leaves, support_stride=STRIDE, backend=name)
    gradients = torch.autograd.grad(y, leaves, torch.ones_like(y))
    return [y.detach(), *gradients]


def _exact_of(part: str, inputs: Inputs) -> list[Tensor]:
    """What a part gives in float64; gradients to the features eagerly in float32, which fits."""
    if part != "fused-gradients":
        ends = "fused-block" if part == "fused-block" else "chain"
        return exactness.expected(ends, inputs)

    def wide(block: Block) -> Block:
        return Block(*(tensor.float() for tensor in block.tensors()))

    features = (inputs.query, inputs.support, inputs.support_weight)
    exact = Inputs(*(t.float() for t in features), tuple(wide(b) for b in inputs.blocks))
    with gpu_checks.no_tf32():
        return [result.double() for result in _fused_gradients(EAGER, exact)]


def _turn(step: Step, index: int, calls: int, device: str) -> float:
    """Seconds of a call."""
    first = index * calls
    if device == "cpu":
        began = time.perf_counter()
        for i in range(calls):
            step(first + i)
        return (time.perf_counter() - began) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for i in range(calls):
        step(first + i)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def _summary(times: Sequence[float], calls: int) -> dict[str, Any]:
    ordered = sorted(times)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.2, 0.8))
    return {
        "seconds": statistics.median(ordered),
        "low": low,
        "high": high,
        "rounds": len(ordered),
        "calls": calls,
    }


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _forget(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
