"""What a machine needs before a GPU is measured on it, found out in seconds.

Triton compiles a small C program when it first launches a kernel: without a C compiler, or without
Python's headers, none of its kernels runs. Each finding says what is there, and what is missing
together with its remedy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsdino import ops
from fsdino import processes as sharing
from fsdino.bench import cases, exactness
from fsdino.bench.cases import Case
from fsdino.ops import backends, native

# "ok": True, False where something is missing or wrong, None where it is not known or not needed;
# "said"; and where something is missing "remedy".
Finding = dict[str, Any]

SMI_FIELDS = (
    "name", "driver_version", "compute_mode", "clocks.sm", "clocks.max.sm", "clocks.mem",
    "clocks.max.mem", "power.limit", "temperature.gpu",
)  # fmt: skip
SIDE = 32  # of the matrices that the small kernel multiplies
HEADERS = "Python.h"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


def finding(ok: bool | None, said: str, remedy: str = "") -> Finding:
    return {"ok": ok, "said": said} | ({"remedy": remedy} if remedy else {})


def verdict(right: bool, said: str) -> Finding:
    """Of something that ran; "wrong" where its result was."""
    if right:
        return finding(True, f"{said}, right")
    return finding(False, f"{said}, WRONG result") | {"wrong": True}


def line(found: Finding) -> str:
    """A finding in one line."""
    remedy = f" ({found['remedy']})" if "remedy" in found else ""
    return found["said"] + remedy


def host() -> dict[str, Finding]:
    """What needs no GPU."""
    return {
        "C compiler": c_compiler(),
        HEADERS: python_headers(),
        "NumPy": package("numpy", "numpy"),
        "Pillow": package("PIL", "pillow"),
    }


def c_compiler() -> Finding:
    """The one that Triton would take, and whether it makes a shared library."""
    remedy = "install gcc and libc6-dev, or let CC name a C compiler: Triton needs one to launch"
    name = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if name is None:
        return finding(False, "neither gcc nor clang is on the path, and CC is not set", remedy)
    with tempfile.TemporaryDirectory() as folder:
        command = [name, "-x", "c", "-", "-shared", "-fPIC", "-o", f"{folder}/probe.so"]
        try:
            run = subprocess.run(
                command, input="#include <stdlib.h>\n", capture_output=True, text=True,
                check=False, timeout=60,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as problem:
            return finding(False, f"{name}: {problem}", remedy)
    if run.returncode:
        return finding(False, f"{name}: {last_line(run.stderr)}", remedy)
    return finding(True, name)


def python_headers() -> Finding:
    """Python.h, where Triton looks for it."""
    # What Debian calls posix_local names a folder that does not hold the headers.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    path = Path(sysconfig.get_paths(scheme=scheme)["include"]) / HEADERS
    if path.is_file():
        return finding(True, str(path))
    remedy = f"install {PYTHON}-dev, or a Python that has its headers: Triton needs them to launch"
    return finding(False, f"{path} is missing", remedy)


def package(module: str, name: str) -> Finding:
    """A package's version, if it can be imported; no part of the suite needs these."""
    try:
        importlib.import_module(module)
    except ImportError as problem:
        remedy = f"pip install {name}: fsdino needs it for images, this suite does not"
        return finding(False, str(problem), remedy)
    return finding(True, importlib.metadata.version(name))


def machine(device: str) -> dict[str, Any]:
    """The GPU, its driver and what runs on it."""
    facts: dict[str, Any] = {"device": device, "cores": sharing.cores()}
    has_triton = importlib.util.find_spec("triton") is not None
    facts["triton"] = importlib.metadata.version("triton") if has_triton else None
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
        "nvidia_smi": nvidia_smi(f"GPU-{properties.uuid}"),
    }


def nvidia_smi(uuid: str) -> dict[str, str] | None:
    """`SMI_FIELDS` of a GPU; None where nvidia-smi is missing or says nothing."""
    query = [
        "nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(SMI_FIELDS)}",
        "--format=csv,noheader",
    ]  # fmt: skip
    try:
        run = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in run.stdout.strip().split(",")]
    return dict(zip(SMI_FIELDS, values, strict=True)) if len(values) == len(SMI_FIELDS) else None


def gpu(facts: dict[str, Any]) -> Finding:
    """Name, driver and clocks, from what `machine` found."""
    if "failed" in facts:
        remedy = "see what nvidia-smi says; nothing else will run"
        return finding(False, last_line(facts["failed"] or ""), remedy)
    if facts["device"] == "cpu":
        return finding(None, "needs a GPU")
    smi = facts.get("nvidia_smi")
    if smi is None:
        return finding(None, f"{facts['device']}; nvidia-smi is missing: the clocks are not known")
    said = (
        "{name}, driver {driver_version}, clocks {clocks.sm} of {clocks.max.sm}, "
        "memory {clocks.mem} of {clocks.max.mem}, limit {power.limit}, {temperature.gpu} °C"
    )
    for field, value in smi.items():
        said = said.replace(f"{{{field}}}", value)
    return finding(True, said)


def compute_mode(facts: dict[str, Any]) -> Finding:
    """Whether several processes may use the GPU, from what `machine` found."""
    if facts["device"] == "cpu":
        return finding(None, "needs a GPU")
    smi = facts.get("nvidia_smi")
    if smi is None:
        return finding(None, "nvidia-smi is missing: it is not known")
    mode, remedy = smi["compute_mode"], "sudo nvidia-smi -c 0"
    if mode == "Prohibited":
        return finding(False, "Prohibited: no process may use the GPU", remedy)
    if mode.startswith("Exclusive"):
        said = f"{mode}: one process at a time, so the checks do not run side by side"
        return finding(None, said, remedy) | {"alone": True}
    return finding(True, mode)


def launch(device: str) -> Finding:
    """One launch of one small Triton kernel, its result checked, and the code that was made."""
    if importlib.util.find_spec("triton") is None:
        return finding(False, "Triton is not installed", "pip install triton")
    reason = backends.why_not("triton", "correlation4d", torch.device(device), torch.float32)
    if reason is not None:
        return finding(None, reason)
    import gpu_probe

    a, b = (
        torch.randint(-4, 5, (SIDE, SIDE), generator=torch.Generator().manual_seed(seed)).half()
        for seed in range(2)
    )
    out = torch.full((SIDE, SIDE), torch.nan, device=device)
    compiled = gpu_probe.product_kernel[(1,)](a.to(device), b.to(device), out, SIDE)
    # Sums of 32 products of integers up to 16 are exact.
    right = torch.equal(out.cpu(), a.float() @ b.float())
    return verdict(right, code_of(compiled))


def code_of(compiled: Any) -> str:
    """The architecture that a launch compiled for; the interpreter compiles nothing."""
    if compiled is None:
        return "interpreted"
    target = re.search(r"^\.target (\w+)", compiled.asm["ptx"], re.MULTILINE)
    return f"compiled for {target[1]}" if target else "compiled for nothing known"


def extension(device: str) -> Finding:
    """Whether the CUDA extension runs here, and which architecture's code the driver picked."""
    gpu = torch.device(device)
    reason = native.why_not_cuda("correlation4d", gpu, torch.bfloat16)  # never builds
    if reason is not None:
        return finding(None, reason)
    built = native.extension()
    assert built is not None
    case = Case("probe", channels=64)
    features = [t for t in cases.features(case, torch.bfloat16) if t is not None]
    expected = ops.correlation4d(*(t.double() for t in features), backend="reference")
    moved = [t.to(gpu) for t in features]
    found, kernels = launched(lambda: ops.correlation4d(*moved, backend="cuda").cpu())
    allowed = [cases.TOLERANCE[torch.bfloat16].forward]
    right = exactness.error([found], [expected], allowed) <= 1
    picked = picked_code(kernels)
    archs = " ".join(built.build_info["cuda_archs"])
    return verdict(right, f"built for {archs}, runs {picked}")


def launched(run: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """What a call returns, and the names of the kernels that it launched on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        result = run()
        torch.cuda.synchronize()
    return result, [event.name for event in profile.events()]


def picked_code(kernels: list[str]) -> str:
    """Which correlation ran, by the names of the kernels that the profiler saw."""
    if any("correlation_hopper_kernel" in name for name in kernels):
        return "the code of sm_90a"
    if any("correlation_kernel" in name for name in kernels):
        return "the code for every architecture"
    return "code that the profiler did not name"


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
