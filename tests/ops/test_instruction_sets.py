"""The C++ kernels on every instruction set that this processor has, not only on its best."""

from __future__ import annotations

import json
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
# The switches are read when the kernels are loaded, and PyTorch is imported before that: its import
# takes far longer, and so each child of one process loads them.
PROBE = """
import json, os, sys
from fsdino.ops import measured
for switches in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ.update(switches)
        print(measured.instruction_set(), flush=True)
        os._exit(0)
    os.wait()
"""


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


def instruction_sets(*switches: dict[str, str]) -> list[str]:
    """Those in use with each group of switches."""
    done = in_new_process(["-c", PROBE, json.dumps(switches)])
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_switches() -> None:
    """Each lowers the set to what it names, as far as the processor goes.

    By name an Intel processor also takes pairs of bfloat16, which are slower there than float32.
    """
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    ranks = ["DEFAULT", "AVX2", "AVX512", "AVX512_BF16", "AMX"]
    allows = ("DEFAULT", "AVX512_CORE_AMX", "avx512_core_amx_fp16")
    best, *found = instruction_sets(
        {}, *SWITCHES.values(), *({"ONEDNN_MAX_CPU_ISA": name} for name in allows)
    )
    if best not in ranks:
        pytest.skip("not an x86 processor")
    assert found[len(SWITCHES) :] == [best] * len(allows)
    for name, lower in zip(SWITCHES, found, strict=False):
        expected = min(name, best, key=ranks.index)
        assert lower == expected or (name, best, lower) == ("AVX512_BF16", "AVX512", "AVX512_BF16")


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_the_case_table(name: str) -> None:
    """The table holds on every lower instruction set."""
    if native.extension() is None:
        pytest.skip("cpp is not built: run `fsdino build`")
    if instruction_sets(SWITCHES[name]) != [name]:
        pytest.skip("the processor has no such instruction set")
    if measured.instruction_set() == name:
        pytest.skip("the default test run is on this instruction set")
    # Within AVX-512 only bfloat16 has other kernels.
    chosen = "cpp and not compile" + (" and bfloat16" if name.startswith("AVX512") else "")
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    done = in_new_process([*options, *(str(HERE / file) for file in TABLE)], **SWITCHES[name])
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
