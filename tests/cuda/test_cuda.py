"""Backend `cuda`: where it runs and why not, and what it is built with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fsdino import contract, ops
from fsdino.commands import info
from fsdino.csrc import flags
from fsdino.errors import BackendError
from fsdino.ops import backends, build, measured, native
from tiny_models import episode, tiny_model

GPU = torch.device("cuda", 0)
FEATURES = torch.ones(1, 1, 4, 2, 2)


@pytest.mark.parametrize(
    "device, dtype, words",
    [
        ("cpu", torch.float32, "runs on NVIDIA GPUs, not on cpu"),
        ("cuda", torch.float64, "not torch.float64"),
    ],
)
def test_calls_that_it_never_runs(device: str, dtype: torch.dtype, words: str) -> None:
    """Other devices and dtypes are refused with their values, built or not."""
    assert words in native.why_not_cuda("correlation4d", torch.device(device), dtype)


@pytest.mark.parametrize(
    "capability, driver, architectures, words",
    [
        ((7, 5), 13000, ["8.0"], "needs compute capability 8.0 (sm_80), this GPU has 7.5"),
        ((8, 0), 13000, ["8.0"], None),
        ((8, 6), 13000, ["8.0"], None),
        ((9, 0), 13000, ["8.0"], "built for 8.0, this GPU has 9.0: run `fsdino build --force`"),
        ((9, 0), 13000, ["8.0+PTX"], None),
        ((9, 0), 12090, ["8.0+PTX"], "the driver supports CUDA up to 12.9"),
        ((9, 0), 12090, ["9.0"], None),
        ((9, 0), 13000, ["8.0", "9.0a"], None),
        ((10, 0), 13000, ["9.0a"], "built for 9.0a, this GPU has 10.0"),
        ((8, 0), 13000, ["8.6+PTX"], "built for 8.6+PTX, this GPU has 8.0"),
    ],
)
def test_binary_and_gpu(capability, driver, architectures, words) -> None:
    """Machine code runs within a major version, PTX on what is newer if the driver knows it."""
    reason = native.why_not_run_on(capability, driver, 13000, architectures)
    assert reason is None if words is None else words in reason


def test_auto_takes_triton_until_something_is_measured(monkeypatch) -> None:
    """`cuda` comes behind `triton`; a measurement changes that for its size class alone."""
    assert backends.names().index("triton") < backends.names().index("cuda")
    on_gpu = torch.empty(3, 5, device="meta")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    table = {("correlation4d", torch.float32, "sm_90"): [(8, 16, "cuda")]}
    monkeypatch.setattr(measured, "MEASURED", table)
    assert measured.fastest("correlation4d", on_gpu) is None
    monkeypatch.setattr(torch.Tensor, "device", GPU)
    assert measured.fastest("correlation4d", on_gpu) == "cuda"
    assert measured.fastest("center_pivot_conv4d", on_gpu) is None
    assert measured.fastest("correlation4d", on_gpu.half()) is None
    assert measured.fastest("correlation4d", torch.Tensor()) is None


LACKING = [op for op in contract.OPS | contract.COMPOSED if op != "correlation4d"]


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU can run `cuda`, and that has no Triton; the CPU plays the GPU."""
    monkeypatch.setattr(native, "_why_not_on", lambda index: None)
    cuda = dataclasses.replace(
        backends._registry["cuda"],
        module="fsdino.ops.reference",
        why_not=lambda op, device, dtype: native.why_not_cuda(op, GPU, dtype),
    )
    registry = {"cuda": cuda, "reference": backends._registry["reference"]}
    monkeypatch.setattr(backends, "_registry", registry)


@pytest.mark.usefixtures("on_a_gpu")
def test_the_one_op_that_it_has() -> None:
    """`auto` takes it for the correlation, and something else for the rest."""
    assert backends.select("correlation4d", FEATURES) == "cuda"
    assert backends.select("correlation4d", FEATURES, "cuda") == "cuda"
    for op in LACKING:
        assert backends.select(op, FEATURES) == "reference"


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("op", LACKING)
def test_an_op_that_it_lacks(op: str) -> None:
    """By name it is refused, with the op and what to use instead."""
    part = contract.PARTS.get(op, (op,))[-1]
    words = rf"backend 'cuda' cannot run {op} here: it has no {part}: use triton, which"
    with pytest.raises(BackendError, match=words):
        backends.select(op, FEATURES, "cuda")
    with ops.use_backend("cuda"), pytest.raises(BackendError, match=words):
        backends.select(op, FEATURES)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_model_on_it() -> None:
    """A whole model is refused in the same words: it needs the convolutions."""
    words = "cannot run squeeze4d here: it has no center_pivot_block4d: use triton"
    with torch.no_grad(), ops.use_backend("cuda"), pytest.raises(BackendError, match=words):
        tiny_model()(*episode(1, 1))


@pytest.mark.usefixtures("on_a_gpu")
def test_info_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """For each op that it lacks; elsewhere than on a GPU the reason is the device."""
    info._print_backends("", info.choices(GPU, torch.float32))
    said = capsys.readouterr().out
    for op in LACKING:
        part = contract.PARTS.get(op, (op,))[-1]
        assert f"cuda: no {op}, it has no {part}: use triton" in said
    assert "correlation4d" not in said.partition("cuda: no")[2]
    for op in contract.OPS:
        reason = native.why_not_cuda(op, torch.device("cpu"), torch.float32)
        assert reason == "it runs on NVIDIA GPUs, not on cpu"


def fake_nvcc(folder: Path, release: str) -> None:
    (folder / "bin").mkdir()
    script = folder / "bin" / "nvcc"
    script.write_text(
        "#!/bin/sh\n"
        f'test "$1" = --version && echo "Cuda compilation tools, release {release}, V{release}"\n'
        f"test \"$1\" = --dryrun && echo '#$ TOP={folder}/bin/..' >&2\nexit 0\n"
    )
    script.chmod(0o755)


def test_what_cuda_is_built_with(monkeypatch, tmp_path) -> None:
    """The toolkit of PyTorch's CUDA, where it truly is; the GPUs' architectures, or the listed.

    A Hopper GPU takes 9.0a: 9.0 lacks its own instructions.
    """
    fake_nvcc(tmp_path, "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    found = flags.cuda("13.2", [(9, 0), (8, 0), (9, 0)])
    assert found == flags.Cuda(str(tmp_path), "8.0,9.0a")
    assert found.environment() == {
        "CUDA_HOME": str(tmp_path),
        "TORCH_CUDA_ARCH_LIST": "8.0;9.0a",
    }
    later = flags.cuda("13.2", [(9, 0), (10, 0)])
    assert later == flags.Cuda(str(tmp_path), "9.0a,10.0+PTX")
    for listed, meant in {
        "8.0;9.0a": "8.0,9.0a",
        "8.0 9.0": "8.0,9.0a",
        "9.0+PTX": "9.0a,8.0+PTX",
        "7.5 8.0 8.6 9.0 10.0 12.0+PTX": "8.0,8.6,9.0a,10.0,12.0+PTX",
        "Hopper": "9.0a,8.0+PTX",
        "native": "8.9",
    }.items():
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
        assert flags.cuda("13.2", [(8, 9)]) == flags.Cuda(str(tmp_path), meant)


def test_why_cuda_is_left_out(monkeypatch, tmp_path) -> None:
    """Each thing that is missing is named; the CPU's kernels are built all the same."""
    fake_nvcc(tmp_path, "12.4")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert flags.cuda(None, [(9, 0)]) == "PyTorch is built without CUDA"
    for gpus in ([], [(7, 5)]):
        assert "no GPU of sm_80 or newer: set TORCH_CUDA_ARCH_LIST" in flags.cuda("13.2", gpus)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "sm_90")
    assert "has 'sm_90': write architectures as in 8.0" in flags.cuda("13.2", [(9, 0)])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    assert "no GPU of sm_80 or newer" in flags.cuda("13.2", [(9, 0)])
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    assert flags.cuda("13.2", [(9, 0)]).endswith("nvcc is of CUDA 12, PyTorch of CUDA 13.2")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert "nvcc is not found" in flags.cuda("13.2", [(9, 0)])


def test_the_build_follows(monkeypatch) -> None:
    """CUDA's sources and options come with a toolkit, and only with one."""
    alone = build._options("c++", None, Path("place"))
    both = build._options("c++", flags.Cuda("/cuda", "8.0"), Path("place"))
    assert not any(library["with_cuda"] for library in alone)
    assert all(library["with_cuda"] for library in both)
    compiled, with_cuda = (
        [{Path(path).name for path in library["sources"]} for library in libraries]
        for libraries in (alone, both)
    )
    added = {"correlation.cu", "correlation_op.cpp", "device.cu", "tensors.cpp"}
    assert not added & compiled[0]
    assert with_cuda == [compiled[0] | added, compiled[1]]
    assert all("-DFSDINO_CUDA=8.0" in library["extra_cflags"] for library in both)
