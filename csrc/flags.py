"""Sources and compiler flags of the extension, for setup.py and for `fsdino build` alike.

setup.py runs this file by its path, before fsdino is installed: it imports nothing of fsdino.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

# No -march: the kernels choose their instructions at run time. No -std: PyTorch's helper sets it.
COMPILE = ("-O3", "-DNDEBUG")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter")
OPENMP = "-fopenmp"  # at::parallel_for is compiled into the extension and needs it

BYTES_PER_JOB = 2 << 30  # what one compiler takes for a source that includes PyTorch's headers


def sources() -> list[Path]:
    """What is compiled."""
    return sorted(FOLDER.rglob("*.cpp"))


def source_hash() -> str:
    """Changes with everything that is compiled, headers and flags included."""
    digest = hashlib.sha256()
    for path in sorted(p for p in FOLDER.rglob("*") if p.suffix in {".cpp", ".h", ".py"}):
        digest.update(f"{path.relative_to(FOLDER).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def defines(torch_version: str) -> list[str]:
    """What the extension says about itself: the sources and the PyTorch that it was built from."""
    return [f"-DFSDINO_SOURCES={source_hash()}", f"-DFSDINO_TORCH={torch_version}"]


def extra() -> list[str]:
    """Flags from FSDINO_CXXFLAGS, for the compiler and the linker; meant for sanitizers."""
    return os.environ.get("FSDINO_CXXFLAGS", "").split()


def compiler() -> str | None:
    """Path of the C++ compiler that PyTorch's helper calls; None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


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
