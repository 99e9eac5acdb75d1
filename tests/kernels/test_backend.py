"""Backend `triton`: where it runs and why not, and the shared table in Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fsdino
from fsdino.errors import BackendError
from fsdino.kernels import backend
from fsdino.ops import backends

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FEATURES = torch.zeros(1, 1, 4, 3, 3)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def new_process(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Python with other environment variables; None takes one away."""
    path = [str(Path(fsdino.__file__).parent.parent), *filter(None, sys.path)]
    everything = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={name: value for name, value in everything.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )


F32, F16 = "torch.float32", "torch.float16"
CORRELATION = {
    F32: (
        "plain", "one token", "one row", "one layer", "many layers", "no weight", "soft weight",
        "all weights zero", "empty batch", "expanded query", "transposed",
    ),
    F16: ("plain", "many layers", "soft weight", "transposed"),
}  # fmt: skip
CONVOLUTION = {
    F32: (
        "plain", "one row", "kernels 5 and 1", "stride beyond the grid", "odd channels", "no bias",
        "empty batch", "transposed",
    ),
    F16: ("plain", "odd channels"),
}  # fmt: skip
BLOCK = {F32: ("one row", "odd channels", "group per channel", "empty batch")}
CHAIN = {F32: ("two blocks", "no bias", "expanded query", "empty batch"), F16: ("three blocks",)}
FUSED = {F32: ("plain", "one row", "odd channels", "empty batch"), F16: ("plain", "odd channels")}


def each(file: str, test: str, table: dict[str, tuple[str, ...]], *more: str) -> list[str]:
    """Ids of a shared test over some of its cases and dtypes."""
    name = f"tests/ops/{file}.py::{test}"
    return [
        f"{name}[{'-'.join(['triton', case, dtype, *more])}]"
        for dtype, names in table.items()
        for case in names
    ]


def alone(file: str, *tests: str) -> list[str]:
    """Ids of shared tests whose only parameter is the backend."""
    return [f"tests/ops/{file}.py::{test}[triton]" for test in tests]


def memory_order(*calls: str) -> list[str]:
    """Ids of the test of how volumes lie in memory."""
    return [f"tests/test_contract.py::test_memory_order[{call}-triton]" for call in calls]


def run_interpreted(*arguments: str) -> int:
    """Run tests in a process with the interpreter; how many passed."""
    options = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "patched_once")
    run = new_process(*options, *arguments, TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
    summary = run.stdout.strip().splitlines()[-1]
    assert "skipped" not in summary
    found = re.search(r"(\d+) passed", summary)
    assert found is not None, summary
    return int(found[1])


def test_importing_fsdino_does_not_import_triton() -> None:
    """Nor does asking which backend would run a call: Triton costs a second, and may be missing."""
    code = (
        "import sys, torch; before = 'triton' in sys.modules\n"
        "import fsdino.ops; from fsdino.ops import backends\n"
        "backends.select('correlation4d', torch.zeros(1))\n"
        "print(before or 'triton' not in sys.modules)"
    )
    run = new_process("-c", code)
    assert run.stdout.strip() == "True", run.stderr


def test_reasons() -> None:
    """Each call that it cannot run gets the reason, and by name an error that says it."""
    for dtype in (torch.float64, torch.int32):
        reason = backend.why_not("correlation4d", CPU, dtype)
        assert reason == f"it runs float32, float16 and bfloat16, not {dtype}"
    assert backend.why_not("correlation4d", torch.device("meta"), torch.float32) == (
        "it runs on NVIDIA GPUs, not on meta"
    )
    with pytest.raises(BackendError, match=r"float32, float16 and bfloat16, not torch.float64"):
        backends.select("correlation4d", FEATURES.double(), "triton")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter was chosen")
def test_without_the_interpreter_the_cpu_is_refused() -> None:
    """On the CPU it is for tests alone: `auto` takes another, and the reason says how to."""
    assert "set TRITON_INTERPRET=1" in (backend.why_not("correlation4d", CPU, torch.float32) or "")
    assert backends.select("correlation4d", FEATURES) != "triton"


@pytest.mark.parametrize(
    "capability, is_available, reason",
    [
        ((7, 5), True, "needs compute capability 8.0 .* has 7.5"),
        ((8, 0), True, None),
        ((8, 0), False, "PyTorch finds none"),
    ],
)
def test_reasons_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    is_available: bool,
    reason: str | None,
) -> None:
    """GPUs before sm_80 are refused by their number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(backend, "_interpreted", lambda: False)
    monkeypatch.setattr(backend, "_missing", lambda: None)
    found = backend.why_not("correlation4d", torch.device("cuda", 0), torch.bfloat16)
    if reason is None:
        assert found is None
    else:
        assert found is not None and re.search(reason, found)


@needs_triton
def test_the_interpreter_refuses_bfloat16() -> None:
    """Its product of bfloat16 matrices is wrong, and silently so."""
    code = (
        "import torch; from fsdino.kernels import backend\n"
        "print(backend.why_not('correlation4d', torch.device('cpu'), torch.float16))\n"
        "print(backend.why_not('correlation4d', torch.device('cpu'), torch.bfloat16))"
    )
    run = new_process("-c", code, TRITON_INTERPRET="1")
    assert run.stdout.splitlines() == ["None", "Triton's interpreter multiplies bfloat16 wrongly"]


def correlation_ids() -> list[str]:
    file = "test_correlation"
    return [
        *each(file, "test_equals_the_formulation", CORRELATION),
        *each(file, "test_gradients_equal_the_formulation", CORRELATION),
        *alone(
            file, "test_gradients_only_where_asked", "test_zero_weight_silences_nan",
            "test_zero_vectors_have_no_direction",
        ),
        *memory_order("correlation4d"),
    ]  # fmt: skip


def convolution_ids() -> list[str]:
    file, block = "test_center_pivot", "test_block_equals_the_formulation"
    half = "test_block_in_half_precision_errs_less_than_twice_the_eager_code"
    return [
        *each(file, "test_conv_equals_the_formulation", CONVOLUTION),
        *each(file, "test_conv_gradients_equal_the_formulation", CONVOLUTION),
        *each(file, block, BLOCK, "map"),
        *each(file, block, BLOCK, "reduced"),
        *each(file, half, {F16: ("one row",)}),
        *memory_order("center_pivot_conv4d", "center_pivot_block4d"),
    ]


def fused_ids() -> list[str]:
    ids = each("test_fused", "test_errs_less_than_twice_the_eager_code", FUSED)
    chunks = "tests/kernels/test_fused.py::test_chunks[triton-narrow halo-0]"
    return [*ids, chunks, *memory_order("correlation_center_pivot4d")]


def numerics_ids() -> list[str]:
    stored, constant = "test_statistics_are_of_what_is_stored", "test_constant_groups"
    return [
        f"tests/ops/test_numerics.py::{stored}[triton-{F16}-4+-0.02-map]",
        f"tests/ops/test_numerics.py::{stored}[triton-{F32}-1000+-0.001-reduced]",
        f"tests/ops/test_numerics.py::{constant}_become_the_shift[triton-{F32}]",
        f"tests/ops/test_nonfinite.py::test_a_query_token_spoils_its_row[triton-nan-{F16}]",
        "tests/kernels/test_statistics.py::test_many_bunches[triton-channels are parts]",
    ]


def chain_ids() -> list[str]:
    return [
        *each("test_squeeze", "test_errs_less_than_twice_the_eager_code", CHAIN),
        "tests/kernels/test_squeeze.py::test_chunks_and_small_tiles[triton]",
    ]


def chosen_ids() -> list[str]:
    """What the default run takes of the shared tests."""
    groups = (correlation_ids, convolution_ids, fused_ids, chain_ids, numerics_ids)
    return [case for group in groups for case in group()]


@needs_triton
def test_chosen_cases_in_the_interpreter() -> None:
    """Of every op values and gradients in both dtypes, in one process: NaN, zero vectors, frozen
    features, strides, channels, chunks, flat groups, memory."""
    ids = chosen_ids()
    assert run_interpreted(*ids, "tests/kernels/test_tokens.py") > len(ids)


@needs_triton
@pytest.mark.slow
def test_the_rest_of_the_table_in_the_interpreter() -> None:
    """Every shared test that names the backend and that the tests above leave, but for those in
    float64 alone.

    In float16 two shapes go through each test: tiles, grids, offsets and masks are the same in
    float32, where errors are told from rounding more sharply, and only conversions differ. Of the
    pairs of a dtype and a value that is not finite, one goes through all inputs. The block's
    gradients take the convolution's kernels, and the mean behind it changes the last pass alone.
    """
    names = ("correlation", "center_pivot", "fused", "squeeze", "numerics", "nonfinite")
    files = [f"tests/ops/test_{name}.py" for name in names]
    files += [
        f"tests/kernels/test_{name}.py"
        for name in ("fused", "norm", "walk", "statistics", "squeeze")
    ]
    files.append("tests/models/test_hsnet.py")  # HSNet's own answers
    float64_alone = "gradcheck or ((test_fused or test_squeeze) and gradients)"
    elsewhere = "not_copied"  # in test_memory.py, without the arithmetic
    some_pairs = "test_every_input and not float32-inf"
    shapes = "equal or less_than_twice"
    half = f"float16 and ({shapes}) and not (plain or odd)"
    by_blocks = "conv_gradients or reduced or (test_every_input and conv4d)"
    left_out = f"({float64_alone}) or {elsewhere} or ({some_pairs}) or ({half}) or {by_blocks}"
    which = ["-k", f"triton and not ({left_out})"]
    for case in chosen_ids():
        which += ["--deselect", case]
    with ThreadPoolExecutor(2) as pool:  # the second and fourth file take longest
        counts = pool.map(lambda part: run_interpreted(*part, *which), (files[::2], files[1::2]))
    assert sum(counts) > 150
