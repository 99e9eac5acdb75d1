"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fsdino
from fsdino.csrc import flags

HERE = Path(__file__).resolve().parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O0"
TABLE = ("test_correlation.py", "test_center_pivot.py", "test_fused.py", "test_squeeze.py")


def runtimes() -> list[str]:
    """What Python must have loaded before the extension; libstdc++ for exceptions to be caught."""
    compiler = flags.compiler()
    if compiler is None or sys.platform != "linux":
        return []
    found = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    return found if all(os.path.isabs(path) for path in found) else []


@pytest.mark.slow
def test_the_case_table_is_clean(tmp_path: Path) -> None:
    """No read or write out of bounds and no undefined behaviour, forward and backward."""
    preloaded = runtimes()
    if not preloaded:
        pytest.skip("needs gcc and its sanitizers")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(fsdino.__file__).parent.parent), *sys.path]),
        "FSDINO_CACHE": str(tmp_path),
        "FSDINO_CXXFLAGS": FLAGS,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "CI": "1",  # a skip, as where the build is not found, fails
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=HERE.parent.parent,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    run("fsdino", "build")
    table = [str(HERE / name) for name in TABLE]
    # Uncaptured, so that reports of the sanitizers are seen; the compiler of torch.compile is
    # somebody else's code.
    output = run(
        "pytest", "-s", "-q", "-p", "no:cacheprovider", "-k", "cpp and not compile", *table
    )
    assert " passed" in output
    assert "runtime error:" not in output
    assert "AddressSanitizer" not in output
