"""The C++ kernels on every instruction set that this processor has, not only on its best."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fsdino
from fsdino.ops import measured, native

HERE = Path(__file__).resolve().parent
TABLE = (
    "test_correlation.py", "test_center_pivot.py", "test_fused.py", "test_squeeze.py",
    "test_numerics.py", "test_nonfinite.py",
)  # fmt: skip
# By the switches that PyTorch and the library behind its products have.
SWITCHES = {
    "AVX512_BF16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "DEFAULT": {"ATEN_CPU_CAPABILITY": "default"},
}
PROBE = "from fsdino.ops import measured; print(measured.instruction_set())"


def in_new_process(arguments: list[str], **switches: str) -> subprocess.CompletedProcess[str]:
    """Python with these switches and no others."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in {*SWITCHES["AVX512"], *SWITCHES["AVX2"]}
    }
    environment = {
        **inherited,
        "PYTHONPATH": os.pathsep.join([str(Path(fsdino.__file__).parent.parent), *sys.path]),
        "CI": "1",  # a skip, as where the build is not found, fails
        **switches,
    }
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE.parent.parent,
    )


def test_the_switches() -> None:
    """Each lowers the set to what it names, as far as the processor goes.

    By name an Intel processor also takes pairs of bfloat16, which are slower there than float32.
    """
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    ranks = ["DEFAULT", "AVX2", "AVX512", "AVX512_BF16", "AMX"]
    best = in_new_process(["-c", PROBE]).stdout.strip()
    if best not in ranks:
        pytest.skip("not an x86 processor")
    for name, switches in SWITCHES.items():
        found = in_new_process(["-c", PROBE], **switches).stdout.strip()
        lower = min(name, best, key=ranks.index)
        assert found == lower or (name, best, found) == ("AVX512_BF16", "AVX512", "AVX512_BF16")
    for allows in ("DEFAULT", "AVX512_CORE_AMX", "avx512_core_amx_fp16"):
        assert in_new_process(["-c", PROBE], ONEDNN_MAX_CPU_ISA=allows).stdout.strip() == best


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_the_case_table(name: str) -> None:
    """The table holds on every lower instruction set."""
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    if in_new_process(["-c", PROBE], **SWITCHES[name]).stdout.strip() != name:
        pytest.skip("the processor has no such instruction set")
    if measured.instruction_set() == name:
        pytest.skip("the default test run is on this instruction set")
    # Within AVX-512 only bfloat16 has other kernels.
    chosen = "cpp and not compile" + (" and bfloat16" if name.startswith("AVX512") else "")
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    done = in_new_process([*options, *(str(HERE / file) for file in TABLE)], **SWITCHES[name])
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
