"""What the kernels of Triton and CUDA compile to for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fsdino
from fsdino.bench import inspect_cuda
from fsdino.bench.compiled import Row
from fsdino.csrc import flags

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

KERNELS = {
    "correlation_kernel", "correlation_gradient_kernel", "gradient_kernel",
    "gradient_sums_kernel", "matrices_kernel", "mend_edges_kernel", "merge_kernel",
    "normalise_kernel", "normalise_mean_kernel", "tokens_kernel", "unit_gradient_kernel",
    "unit_kernel", "walk_kernel", "weight_gradient_kernel", "weight_sums_kernel",
}  # fmt: skip
OF_SUMS = {"merge_kernel", "weight_sums_kernel"}  # which are in float32 whatever the data
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
MMA = {"sm_80": "HMMA", "sm_90": "GMMA", "sm_100": "UTCHMMA"}
PIPELINED = "correlation"  # CUDA kernels whose operands come in the background
MULTIPLIES = {
    "correlation_kernel", "correlation_gradient_kernel", "walk_kernel", "weight_gradient_kernel",
}  # fmt: skip


# Beside the products of a kernel in half precision: most integer divisions, and most loads of 2
# bytes. By the kernel's name and what its variant has.
SLOW = {
    # The sample and the first position of a block of rows, which a warp finds once a step.
    ("weight_gradient_kernel", ""): (4, 0),
    # How many taps of a row reach a class of positions is known to the launch alone.
    ("walk_kernel", "DIRECTION=-1"): (1, 1),
    # On sm_80 the way out of the loop is a call, which looks like that of a division.
    ("walk_kernel", "SOURCE_GROUPS=4"): (1, 0),
    # 256 weights a step for as many threads: one each. Unrolled, there are 18 steps.
    ("walk_kernel", "BLOCK_CO=16 BLOCK_CI=16 WARPS=8"): (0, 18),
}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that compiles: without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = [str(Path(fsdino.__file__).parent.parent), *filter(None, sys.path)]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def inspected(backend: str, *arguments: str) -> list[Row]:
    """Rows of `python -m fsdino.bench.inspect BACKEND --json`."""
    run = python("-m", "fsdino.bench.inspect", backend, "--json", *arguments)
    assert run.stdout, run.stderr
    return [Row(**row) for row in json.loads(run.stdout)]


@pytest.mark.slow
@needs_triton
def test_every_triton_kernel_keeps_to_its_registers_and_its_tensor_cores() -> None:
    """No spills, shared memory within the GPU's, tensor cores for half precision, and beside their
    products neither integer divisions nor loads of 2 bytes.

    float16 differs from bfloat16 in conversions alone, so that each architecture has one of them;
    and float32, which uses no tensor cores, is as sm_90 has it on what comes after.
    """
    dtypes = {
        "80": ("float16", "float32"),
        "90": ("bfloat16", "float32"),
        "100": ("bfloat16",),
    }

    def compiled(arch: str) -> list[Row]:
        return inspected("triton", "--arch", arch, "--dtype", *dtypes[arch])

    with ThreadPoolExecutor(2) as pool:
        rows = [row for table in pool.map(compiled, dtypes) for row in table]
    found = {(row.arch, row.variant.split()[0], row.kernel) for row in rows}
    assert found == {
        (f"sm_{arch}", SHORT[dtype], kernel)
        for arch, given in dtypes.items()
        for dtype in given
        for kernel in KERNELS - OF_SUMS
    } | {(f"sm_{arch}", "fp32", kernel) for arch in dtypes for kernel in OF_SUMS}
    for row in rows:
        assert not row.problems, row
        assert row.stack == row.spilled == 0, row
        assert row.shared <= SHARED[row.arch], row
        if row.kernel in MULTIPLIES and not row.variant.startswith("fp32"):
            assert MMA[row.arch] in row.mma or "HMMA" in row.mma, row
            assert row.async_copies > 0, row
            assert row.divisions <= allowed(row, 0) and row.narrow_loads <= allowed(row, 1), row


def allowed(row: Row, which: int) -> int:
    """How many divisions (0) or narrow loads (1) a kernel may have beside its products."""
    reasons = (
        most[which]
        for (name, words), most in SLOW.items()
        if name == row.kernel and words in row.variant
    )
    return max(reasons, default=0)


@needs_triton
def test_one_workload_is_read() -> None:
    """Of a tiny chain, the multiplying kernels are found on tensor cores."""
    options = ("--arch", "80", "--dtype", "float16", "--workload", "W4", "--only", "walk")
    rows = inspected("triton", *options)
    assert {row.kernel for row in rows} == {"walk_kernel"}
    for row in rows:
        assert row.stack == 0 and row.mma == "HMMA" and 0 < row.registers <= 255
        assert row.variant.startswith("fp16 ") and " WARPS=" in row.variant


ONE_TOKEN = """
import torch
from fsdino.bench import inspect_triton
from fsdino.bench.workloads import Workload

one = Workload("one", 1, 1, grid=1, channels=1, block_channels=(4, 4), backward=True)
for launch in inspect_triton.launches(one, torch.float16, 80):
    print(inspect_triton.compile_launch(launch, 80).kernel)
"""


@pytest.mark.slow
@needs_triton
def test_sizes_of_one_compile() -> None:
    """Triton compiles a size of 1 into the kernel, where it is no tensor any more."""
    run = python("-c", ONE_TOKEN)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) == KERNELS


ONE_WIDE_BLOCK = """
import torch
from fsdino.bench import inspect_triton
from fsdino.bench.workloads import Workload

wide = Workload("wide", 1, 12, grid=9, channels=16, block_channels=(128,), backward=True)
for launch in inspect_triton.launches(wide, torch.bfloat16, 86):
    if launch.kernel.__name__ == "weight_gradient_kernel":
        print(inspect_triton.compiled(launch, 86)[1])
"""


@pytest.mark.slow
@needs_triton
def test_few_channels_into_many_fit_a_small_gpu() -> None:
    """The weights' gradient of a block from few channels to 128; sm_86 and sm_89 have 99 KB."""
    run = python("-c", ONE_WIDE_BLOCK)
    assert run.returncode == 0, run.stderr
    sizes = [int(size) for size in run.stdout.split()]
    assert sizes and max(sizes) <= 99 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("architecture", inspect_cuda.ARCHITECTURES)
def test_what_the_cuda_kernels_compile_to(architecture: str) -> None:
    """No warning, no spills in half precision, tensor cores and background copies.

    The kernels of sm_90a have its warpgroup products and bulk copies, and exist there alone.
    """
    if flags.nvcc() is None:
        pytest.skip("needs nvcc")
    found = inspected("cuda", "--arch", architecture)
    assert {row.kernel for row in found} >= {"correlation_kernel", "correlation_gradient_kernel"}
    for row in found:
        assert not row.problems, row
        hopper = row.kernel in inspect_cuda.HOPPER_KERNELS
        in_pieces = row.variant.endswith(" 16>") and row.kernel.startswith(PIPELINED)
        if inspect_cuda.is_half(row.variant) and (in_pieces or hopper):
            assert row.async_copies > 0, row
    names = {row.kernel for row in found} & inspect_cuda.HOPPER_KERNELS
    assert names == (inspect_cuda.HOPPER_KERNELS if architecture == "90a" else set())


def test_what_must_not_be_shipped() -> None:
    """Spills in half precision, and products of another kind than the kernel is written for."""

    def problems(kernel: str, variant: str, mma: str, spilled: int = 0) -> list[str]:
        return [*inspect_cuda.problems(kernel, variant, mma, spilled)]

    assert problems("correlation_kernel", "<Half, 16>", "HMMA") == []
    assert problems("correlation_kernel", "<Half, 16>", "HMMA", 8) == ["8 bytes spilled"]
    assert problems("correlation_kernel", "<float, 16>", "HMMA", 8) == []
    assert problems("correlation_kernel", "<float, 16>", "") == ["no tensor-core instruction"]
    assert problems("correlation_hopper_kernel", "<Half>", "HGMMA") == []
    assert problems("correlation_hopper_kernel", "<Half>", "HMMA") == ["no HGMMA"]


@pytest.mark.slow
def test_the_newest_architecture_takes_ptx(tmp_path: Path) -> None:
    """Every file compiles to PTX for what comes after the architectures that are tuned for."""
    toolkit = flags.cuda(torch.version.cuda, [flags.OLDEST_ARCHITECTURE])
    if isinstance(toolkit, str):
        pytest.skip("needs nvcc")
    for source in sorted(flags.FOLDER.glob("cuda/*.cu")):
        target = tmp_path / f"{source.stem}.ptx"
        inspect_cuda.compile_file(toolkit, source, inspect_cuda.PORTABLE, target, ptx=True)
        assert ".entry" in target.read_text()
