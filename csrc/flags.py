"""Sources and compiler flags of the extension, for setup.py and for `fsdino build` alike.

setup.py runs this file by its path, before fsdino is installed: it imports nothing of fsdino.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent

# The two libraries of a build: the Python module, and the kernels, which a process without Python
# can load. They are linked apart, and lie in one folder.
MODULE = "_C"
KERNELS = "libfsdino_ops"

# No -march: the kernels choose their instructions at run time. No -std: PyTorch's helper sets it.
COMPILE = ("-O3", "-DNDEBUG")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter")
OPENMP = "-fopenmp"  # at::parallel_for is compiled into the extension and needs it
# Links what is used alone: PyTorch's helper also names libtorch_python, which needs Python.
LINK = "-Wl,-dead_strip_dylibs" if sys.platform == "darwin" else "-Wl,--as-needed"

# Of nvcc. PyTorch's helper adds -std and the architectures.
CUDA_COMPILE = ("-O3", "-DNDEBUG")
CUDA_WARNINGS = ("-Xcompiler", "-Wall,-Wno-unused-parameter")
OLDEST_ARCHITECTURE = (8, 0)
# PyTorch's names of GPUs in TORCH_CUDA_ARCH_LIST, from the oldest on.
_NAMED = {
    "Ampere": ("8.0", "8.6+PTX"), "Ada": ("8.9+PTX",), "Hopper": ("9.0+PTX",),
    "Blackwell": ("10.0", "10.3", "12.0", "12.1+PTX"),
}  # fmt: skip
_ARCHITECTURE = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")

_COMPILED = {".cpp", ".h", ".inc", ".cu", ".py"}
BYTES_PER_JOB = 2 << 30  # what one compiler takes for a source that includes PyTorch's headers


class Cuda(NamedTuple):
    """What csrc/cuda is compiled with.

    Attributes:
        home: the CUDA toolkit's folder.
        architectures: as TORCH_CUDA_ARCH_LIST has them, by comma: "9.0,10.0+PTX".
    """

    home: str
    architectures: str

    def defines(self) -> list[str]:
        """What the extension says about itself."""
        return [f"-DFSDINO_CUDA={self.architectures}"]

    def environment(self) -> dict[str, str]:
        """What PyTorch's helper reads."""
        return {
            "CUDA_HOME": self.home,
            "TORCH_CUDA_ARCH_LIST": self.architectures.replace(",", ";"),
        }


def sources(cuda: bool = False) -> dict[str, list[Path]]:
    """What is compiled for each library, in the order of loading; with `cuda` also for GPUs."""
    kernels = [FOLDER / "ops.cpp", *FOLDER.glob("cpu/*.cpp")]
    if cuda:
        kernels += [*FOLDER.glob("cuda/*.cpp"), *FOLDER.glob("cuda/*.cu")]
    return {KERNELS: sorted(kernels), MODULE: [FOLDER / "python.cpp"]}


def steps(cuda: bool = False) -> int:
    """Calls of compilers and linkers in a build."""
    return sum(len(compiled) + 1 for compiled in sources(cuda).values())


def source_hash() -> str:
    """Changes with everything that is compiled, headers and flags included."""
    digest = hashlib.sha256()
    for path in sorted(p for p in FOLDER.rglob("*") if p.suffix in _COMPILED):
        digest.update(f"{path.relative_to(FOLDER).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def functions(*, cuda: bool = False) -> frozenset[str]:
    """Functions of the extension on the CPU, or on GPUs: the list in ops.inc.

    None where the sources are missing, as in an application that bundles Python files alone.
    """
    path = FOLDER / "ops.inc"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    kind = "FSDINO_OP" if cuda else "FSDINO(?:_CPU)?_OP"
    return frozenset(re.findall(rf"^{kind}\((\w+),", text, re.MULTILINE))


def defines(torch_version: str) -> list[str]:
    """What the extension says about itself: the sources and the PyTorch that it was built from."""
    return [f"-DFSDINO_SOURCES={source_hash()}", f"-DFSDINO_TORCH={torch_version}"]


def extra() -> list[str]:
    """Flags from FSDINO_CXXFLAGS, for the compiler and the linker; meant for sanitizers."""
    return os.environ.get("FSDINO_CXXFLAGS", "").split()


def compiler() -> str | None:
    """Path of the C++ compiler that PyTorch's helper calls; None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


def nvcc() -> str | None:
    """Path of nvcc: in CUDA_HOME, on PATH, or where it is usually installed; None without one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=os.path.join(home, "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def cuda(torch_cuda: str | None, gpus: Sequence[tuple[int, int]]) -> Cuda | str:
    """What to compile csrc/cuda with, or the reason why it is left out. Runs nvcc.

    Without TORCH_CUDA_ARCH_LIST, for the GPUs that are there; where there are none, a compilation
    of minutes would be for nothing.

    Args:
        torch_cuda: `torch.version.cuda`.
        gpus: compute capability of each.
    """
    if torch_cuda is None:
        return "PyTorch is built without CUDA"
    architectures = _architectures(gpus)
    if isinstance(architectures, str):
        return architectures
    if not architectures:
        return "no GPU of sm_80 or newer: set TORCH_CUDA_ARCH_LIST to build for one elsewhere"
    compiler = nvcc()
    if compiler is None:
        return f"nvcc is not found: install the CUDA toolkit {torch_cuda}, or set CUDA_HOME"
    # A wrapper script on PATH tells nothing about the folder: nvcc itself does.
    release = re.search(r"release (\d+)", _answer(compiler, "--version"))
    top = re.search(r"^#\$ TOP=(.+)$", _answer(compiler, "--dryrun", "none.cu"), re.MULTILINE)
    if release is None or top is None:
        return f"{compiler} does not answer as nvcc does"
    if release[1] != torch_cuda.split(".")[0]:
        return f"{compiler} is of CUDA {release[1]}, PyTorch of CUDA {torch_cuda}"
    return Cuda(os.path.realpath(top[1]), ",".join(architectures))


def _answer(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout + done.stderr


def _architectures(gpus: Sequence[tuple[int, int]]) -> list[str] | str:
    """Those of TORCH_CUDA_ARCH_LIST, or of the GPUs, the newest also for what comes later.

    Older ones than the kernels run on are left out. Hopper's own instructions are in 9.0a, not in
    9.0, and are of no use to what comes later: for that, 8.0 is.
    """
    own = [f"{major}.{minor}" for major, minor in sorted(set(gpus))]
    listed = re.findall(r"[^;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    newest = [name if name == "9.0" else f"{name}+PTX" for name in own[-1:]]
    found = []
    for word in listed or own[:-1] + newest:
        for name in own if word == "native" else _NAMED.get(word, (word,)):
            parsed = _ARCHITECTURE.fullmatch(name)
            if parsed is None:
                return f"TORCH_CUDA_ARCH_LIST has {word!r}: write architectures as in 8.0;9.0+PTX"
            if (int(parsed[1]), int(parsed[2])) < OLDEST_ARCHITECTURE:
                continue
            if name.startswith("9.0") and not parsed[3]:
                found += ["9.0a", "8.0+PTX"] if parsed[4] else ["9.0a"]
            else:
                found.append(name)
    return list(dict.fromkeys(found))


def openmp(compiler: str) -> list[str]:
    """`OPENMP` where the compiler has it; Apple's has not."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "openmp.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [compiler, OPENMP, str(source), "-o", str(Path(folder, "openmp"))]
        has = subprocess.run(command, check=False, capture_output=True).returncode == 0
    return [OPENMP] if has else []


def jobs() -> int:
    """Compilers to run at once: one for each core, as far as memory goes."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, _memory() // BYTES_PER_JOB))


def _memory() -> int:
    """Bytes that this process may use: of the machine, and of its container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if sys.platform == "linux":
        limits += [
            1024 * int(line.split()[1])
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable:")
        ]
        limit = Path("/sys/fs/cgroup/memory.max")
        if limit.is_file() and limit.read_text().strip() != "max":
            limits.append(int(limit.read_text()))
    return min(limits)
