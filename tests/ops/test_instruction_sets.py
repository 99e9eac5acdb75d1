"""The C++ kernels on every instruction set that this processor has, not only on its best."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fsdino
from fsdino.ops import native

HERE = Path(__file__).resolve().parent
TABLE = (
    "test_correlation.py", "test_center_pivot.py", "test_fused.py", "test_numerics.py",
    "test_nonfinite.py",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_the_case_table(capability: str) -> None:
    """The table holds where PyTorch's own switch lowers the instruction set."""
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(fsdino.__file__).parent.parent), *sys.path]),
        "ATEN_CPU_CAPABILITY": capability,
        "CI": "1",  # a skip, as where the build is not found, fails
    }
    probe = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", probe], check=True, capture_output=True, text=True, env=environment
    )
    if done.stdout.strip() == torch.backends.cpu.get_cpu_capability():
        pytest.skip("the default test run is on this instruction set")
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpp and not compile"]
    done = subprocess.run(
        [sys.executable, *command, *(str(HERE / name) for name in TABLE)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
