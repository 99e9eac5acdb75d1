"""What one kernel compiled to: read from machine code, the same for Triton's and CUDA's."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsdino.bench.executed import Instructions

_FUNCTION = re.compile(r"Function : (\w+)")
_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_MMA = re.compile(r"\b(HMMA|HGMMA|UTCHMMA)\b")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,6}\*/", re.MULTILINE)
_ASYNC_COPY = re.compile(r"\b(?:LDGSTS|UTMALDG|UBLKCP)\b")


@dataclass(frozen=True)
class Code:
    """One function of a cubin.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread.
        shared: bytes of a block that are known when it is compiled.
        mma: tensor-core instructions by name, or "".
        async_copies: instructions that copy to shared memory in the background.
        size: bytes of machine code.
        instructions: in order.
    """

    registers: int
    stack: int
    shared: int
    mma: str
    async_copies: int
    size: int
    instructions: Instructions


@dataclass(frozen=True)
class Row:
    """One kernel for one architecture, in the report.

    Attributes:
        kernel: its name.
        variant: what is compiled in: data type, sizes of tiles, template arguments.
        arch: as in sm_80 or sm_90a.
        registers: of a thread.
        stack: bytes of a thread.
        spilled: bytes of registers that a thread writes to memory.
        shared: bytes of a block: all of Triton's, and of CUDA's those that are known when it is
            compiled.
        mma: tensor-core instructions by name, or "".
        async_copies: instructions that copy to shared memory in the background.
        divisions: of integers, in a loop that multiplies on tensor cores.
        narrow_loads: of 2 bytes a lane from memory, in such a loop.
        problems: why it must not be shipped.
    """

    kernel: str
    variant: str
    arch: str
    registers: int
    stack: int
    spilled: int
    shared: int
    mma: str
    async_copies: int
    divisions: int
    narrow_loads: int
    problems: Sequence[str] = ()


def read_code(cubin: Path, *folders: Path) -> dict[str, Code]:
    """The functions of a cubin by their (mangled) names.

    Args:
        cubin: file to read.
        folders: where `cuobjdump` may be; Triton's own comes last.

    Raises:
        RuntimeError: there is no `cuobjdump`.
    """
    tool = _cuobjdump(folders)
    usage, code = (_output(tool, option, str(cubin)) for option in ("-res-usage", "-sass"))
    functions = dict(zip(*[iter(_FUNCTION.split(code)[1:])] * 2, strict=True))
    found = {}
    for name, registers, stack, shared in _USAGE.findall(usage):
        text = functions[name]
        found[name] = Code(
            registers=int(registers),
            stack=int(stack),
            shared=int(shared),
            mma=" ".join(sorted(set(_MMA.findall(text)))),
            async_copies=len(_ASYNC_COPY.findall(text)),
            size=16 * len(_INSTRUCTION.findall(text)),
            instructions=Instructions.read(text),
        )
    return found


def _cuobjdump(folders: Sequence[Path]) -> str:
    places = [*folders]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = shutil.which("cuobjdump", path=os.pathsep.join(map(str, places)))
    if found is None:
        raise RuntimeError("cuobjdump is neither in the CUDA toolkit nor inside Triton")
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
