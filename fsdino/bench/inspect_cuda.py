"""What csrc/cuda compiles to, without a GPU.

nvcc compiles each file for each architecture; spills are read from the assembler's report.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from fsdino.bench.compiled import Code, Row, read_code
from fsdino.csrc import flags

ARCHITECTURES = ("80", "90a")
PORTABLE = "100"  # compiled to PTX only
MULTIPLIES = "correlation"
# Those that sm_90a alone has; elsewhere they are empty and never started.
HOPPER_KERNELS = {"correlation_hopper_kernel"}
# ptxas says as mere information that it makes products of sm_90a wait for each other.
_COMPLAINT = re.compile(r"warning|performance loss", re.IGNORECASE)
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLED = re.compile(r"(\d+) bytes spill stores")


def compile_file(
    toolkit: flags.Cuda, source: Path, architecture: str, output: Path, *, ptx: bool = False
) -> str:
    """Compile one file for one architecture, to a cubin or to PTX; the compiler's report.

    Raises:
        RuntimeError: it cannot be compiled, or not without a warning.
    """
    include = [f"-I{Path(torch.__file__).parent / 'include'}"]
    command = [
        f"{toolkit.home}/bin/nvcc", "-std=c++20", *flags.CUDA_COMPILE, *flags.CUDA_WARNINGS,
        *include, f"-arch=compute_{architecture}" if ptx else f"-arch=sm_{architecture}",
        "-ptx" if ptx else "-cubin", *([] if ptx else ["-Xptxas", "-v"]),
        str(source), "-o", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != 0 or _COMPLAINT.search(said):
        raise RuntimeError(f"{' '.join(command)}\n{said}")
    return said


def rows(toolkit: flags.Cuda, architectures: Iterable[str], only: str = "") -> Iterator[Row]:
    """Every kernel of the files whose name begins with `only`.

    Args:
        toolkit: of CUDA, as `flags.cuda` finds it.
        architectures: as in 80 or 90a.
        only: beginning of the files' names.
    """
    for source in sorted(flags.FOLDER.glob(f"cuda/{only}*.cu")):
        for architecture in architectures:
            with tempfile.TemporaryDirectory() as folder:
                cubin = Path(folder, "kernels.cubin")
                said = compile_file(toolkit, source, architecture, cubin)
                found = read_code(cubin, Path(toolkit.home, "bin"))
            for name, spilled in _spills(said):
                if architecture == "90a" or _readable(name)[0] not in HOPPER_KERNELS:
                    yield _row(name, f"sm_{architecture}", found[name], spilled)


def is_half(variant: str) -> bool:
    """Whether it is of half precision, which must not spill."""
    return "float" not in variant


def problems(kernel: str, variant: str, mma: str, spilled: int) -> tuple[str, ...]:
    """Spills in half precision, and products of another kind than it is written for."""
    found = []
    if spilled and is_half(variant):
        found.append(f"{spilled} bytes spilled")
    if kernel.startswith(MULTIPLIES) and not mma:
        found.append("no tensor-core instruction")
    elif kernel in HOPPER_KERNELS and "HGMMA" not in mma:
        found.append("no HGMMA")
    return tuple(found)


def _row(name: str, arch: str, code: Code, spilled: int) -> Row:
    kernel, variant = _readable(name)
    return Row(
        kernel=kernel,
        variant=variant,
        arch=arch,
        registers=code.registers,
        stack=code.stack,
        spilled=spilled,
        shared=code.shared,
        mma=code.mma,
        async_copies=code.async_copies,
        divisions=code.instructions.divisions(),
        narrow_loads=code.instructions.narrow_loads(),
        problems=problems(kernel, variant, code.mma, spilled),
    )


def _spills(said: str) -> Iterator[tuple[str, int]]:
    """Mangled names and bytes spilled, from the assembler's report."""
    parts = _ENTRY.split(said)[1:]
    for name, report in zip(parts[::2], parts[1::2], strict=True):
        spilled = _SPILLED.search(report)
        assert spilled is not None, report
        yield name, int(spilled[1])


@functools.cache
def _readable(name: str) -> tuple[str, str]:
    """`correlation_kernel` and `<float, 16>` of a mangled name."""
    run = subprocess.run(["c++filt", name], check=True, capture_output=True, text=True)
    plain = re.sub(r"\(anonymous namespace\)|<unnamed>", "", run.stdout)
    found = re.search(r"(\w+)(<.*?>)?\(", plain)
    if found is None:
        return plain.strip(), ""
    return found[1], re.sub(r"\(int\)|\w+::", "", found[2] or "")
