"""What the kernel of sm_90a compiles to: small, and without divisions where it multiplies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fsdino.bench import inspect_cuda
from fsdino.bench.compiled import read_code
from fsdino.csrc import flags

MOST_BYTES = 64 << 10
# Of integers: by an estimate of the reciprocal in floating point, or by absolute values first.
DIVISION = re.compile(r"I2F|F2I|MUFU\.RCP|IABS")


@pytest.mark.slow
def test_the_kernel_of_hopper_is_small(tmp_path: Path) -> None:
    """At most 64 KB of code, no integer division in a loop around matrix instructions, and a rolled
    loop that writes."""
    toolkit = flags.cuda(torch.version.cuda, [flags.OLDEST_ARCHITECTURE])
    if isinstance(toolkit, str):
        pytest.skip("needs nvcc")
    cubin = tmp_path / "correlation.cubin"
    source = flags.FOLDER / "cuda" / "correlation.cu"
    inspect_cuda.compile_file(toolkit, source, "90a", cubin)
    [kernel] = inspect_cuda.HOPPER_KERNELS
    codes = read_code(cubin, Path(toolkit.home, "bin"))
    found = [code for name, code in codes.items() if kernel in name]
    assert len(found) == 2  # both halves
    for code in found:
        assert code.size <= MOST_BYTES
        words = code.instructions.words
        loops = [words[loop.first : loop.last + 1] for loop in code.instructions.loops]
        multiplying = [loop for loop in loops if any(word.startswith("HGMMA") for word in loop)]
        assert multiplying
        for loop in multiplying:
            assert not [word for word in loop if DIVISION.match(word)]
        writing = [loop for loop in loops if any(word.startswith("STG") for word in loop)]
        assert min(map(len, writing)) < 100
