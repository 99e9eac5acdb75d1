"""What csrc/cuda compiles to, without a GPU: `python -m fsdino.csrc.inspect`.

nvcc compiles each file for each architecture; registers and spills are read from the assembler's
report, tensor-core instructions and background copies from the machine code.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fsdino.csrc import flags

ARCHITECTURES = ("80", "90a")
PORTABLE = "100"  # compiled to PTX only
MULTIPLIES = ("fused", "correlation", "walk", "weight_gradient")
# Those that sm_90a alone has; elsewhere they are empty and never started.
HOPPER_KERNELS = {
    "correlation_hopper_kernel", "fused_hopper_kernel", "fused_weight_hopper_kernel",
}  # fmt: skip
# ptxas says as mere information that it makes products of sm_90a wait for each other.
_COMPLAINT = re.compile(r"warning|performance loss", re.IGNORECASE)
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores")
_REGISTERS = re.compile(r"Used (\d+) registers")
_FUNCTION = re.compile(r"Function : (\w+)")
_MMA = re.compile(r"\b(HMMA|HGMMA)\b")
_ASYNC_COPY = re.compile(r"\b(?:LDGSTS|UTMALDG)\b")


@dataclass(frozen=True)
class Row:
    """What one kernel compiled to.

    Attributes:
        kernel: its name with its template arguments.
        arch: as in sm_90a.
        registers: of a thread.
        stack: bytes of a thread.
        spilled: bytes of registers that a thread writes to memory.
        mma: tensor-core instructions by name, or "".
        async_copies: instructions that copy to shared memory in the background.
    """

    kernel: str
    arch: str
    registers: int
    stack: int
    spilled: int
    mma: str
    async_copies: int

    @property
    def hopper(self) -> bool:
        """Whether sm_90a alone has it."""
        return self.kernel.split("<")[0] in HOPPER_KERNELS

    @property
    def standard(self) -> bool:
        """Whether standard workloads run it in half precision, features in pieces of 16 bytes."""
        whole_pieces = (
            self.hopper or self.kernel.endswith("16>") or not self.kernel.startswith("fused")
        )
        return "float" not in self.kernel and whole_pieces

    def problems(self) -> list[str]:
        """Why this must not be shipped."""
        found = []
        if self.spilled and self.standard:
            found.append(f"{self.spilled} bytes spilled")
        if self.kernel.startswith(MULTIPLIES) and not self.mma:
            found.append("no tensor-core instruction")
        elif self.hopper and "HGMMA" not in self.mma:
            found.append("no HGMMA")
        return found


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
    """Every kernel of the files whose name begins with `only`."""
    for source in sorted(flags.FOLDER.glob(f"cuda/{only}*.cu")):
        for architecture in architectures:
            with tempfile.TemporaryDirectory() as folder:
                cubin = Path(folder, "kernels.cubin")
                said = compile_file(toolkit, source, architecture, cubin)
                code = _run(_cuobjdump(toolkit), "-sass", str(cubin))
            for row in _read(said, code, f"sm_{architecture}"):
                if architecture == "90a" or not row.hopper:
                    yield row


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where a kernel of the standard workloads spills or lacks tensor cores."""
    parser = argparse.ArgumentParser(prog="python -m fsdino.csrc.inspect", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, help="as in 80 or 90a")
    parser.add_argument("--only", default="", help="files whose name begins with this")
    parser.add_argument("--json", action="store_true", help="a list of rows instead of a table")
    given = parser.parse_args(arguments)
    toolkit = flags.cuda(torch.version.cuda, [flags.OLDEST_ARCHITECTURE])
    if isinstance(toolkit, str):
        parser.error(toolkit)
    found = list(rows(toolkit, given.arch, given.only))
    if given.json:
        sys.stdout.write(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    else:
        _print_table(found)
    return 1 if any(row.problems() for row in found) else 0


def _read(said: str, code: str, arch: str) -> Iterator[Row]:
    """Rows from the assembler's report and the machine code."""
    functions = dict(zip(*[iter(_FUNCTION.split(code)[1:])] * 2, strict=True))
    parts = _ENTRY.split(said)[1:]
    for name, report in zip(parts[::2], parts[1::2], strict=True):
        stack = _STACK.search(report)
        registers = _REGISTERS.search(report)
        assert stack is not None and registers is not None, report
        text = functions[name]
        yield Row(
            kernel=_readable(_run("c++filt", name)), arch=arch,
            registers=int(registers[1]), stack=int(stack[1]), spilled=int(stack[2]),
            mma=" ".join(sorted(set(_MMA.findall(text)))),
            async_copies=len(_ASYNC_COPY.findall(text)),
        )  # fmt: skip


def _readable(name: str) -> str:
    """`walk_kernel<float, 16, 4>` of a demangled name."""
    found = re.search(r"(\w+)(<.*?>)?\(", re.sub(r"\(anonymous namespace\)|<unnamed>", "", name))
    short = f"{found[1]}{found[2] or ''}" if found else name.strip()
    return re.sub(r"\(int\)|\w+::", "", short)


def _cuobjdump(toolkit: flags.Cuda) -> str:
    """The toolkit's, or the one that ships inside Triton."""
    folders = [Path(toolkit.home, "bin")]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))
    if found is None:
        raise RuntimeError("cuobjdump is neither in the CUDA toolkit nor inside Triton")
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _print_table(found: Iterable[Row]) -> None:
    line = "{:52} {:6} {:>5} {:>5} {:>7} {:5} {:>5}  {}\n"
    heads = ("kernel", "arch", "regs", "stack", "spilled", "mma", "async", "")
    sys.stdout.write(line.format(*heads))
    for row in found:
        cells = (
            row.kernel, row.arch, row.registers, row.stack, row.spilled, row.mma or "-",
            row.async_copies, "; ".join(row.problems()),
        )  # fmt: skip
        sys.stdout.write(line.format(*cells))


if __name__ == "__main__":
    sys.exit(main())
