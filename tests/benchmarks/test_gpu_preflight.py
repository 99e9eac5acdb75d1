"""What a machine has and lacks: each thing that is missing is found and has a remedy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_preflight
import pytest
import torch

from fsdino.ops import backends, native


def test_this_machine() -> None:
    """Everything is here, but for a GPU."""
    found = gpu_preflight.host()
    assert found.keys() == {"C compiler", "Python.h", "NumPy", "Pillow"}
    assert found["NumPy"]["ok"] and found["Pillow"]["said"].count(".") >= 2
    assert gpu_preflight.machine("cpu").keys() == {"device", "cores", "triton"}
    for finding in (gpu_preflight.extension("cpu"), gpu_preflight.compute_mode({"device": "cpu"})):
        assert finding["ok"] is None and "GPU" in finding["said"]
    assert gpu_preflight.gpu({"device": "cpu"})["ok"] is None


def test_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CC is taken; one that fails, that is not there, or that says nothing more is told."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = gpu_preflight.c_compiler()
    assert found["ok"] is False and "neither gcc nor clang" in found["said"]
    assert "install gcc" in gpu_preflight.line(found)
    program = tmp_path / "gcc"
    program.write_text("#!/bin/sh\necho 'no stdlib.h' >&2\nexit 1\n")
    program.chmod(0o755)
    found = gpu_preflight.c_compiler()
    assert found["ok"] is False and found["said"] == f"{program}: no stdlib.h"
    program.write_text("#!/bin/sh\nexit 0\n")
    assert gpu_preflight.c_compiler() == {"ok": True, "said": str(program)}
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert gpu_preflight.c_compiler()["ok"] is False


def test_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without its headers gets the package's name."""
    paths = {"include": str(tmp_path)}
    monkeypatch.setattr(gpu_preflight.sysconfig, "get_paths", lambda scheme: paths)
    found = gpu_preflight.python_headers()
    assert found["ok"] is False and f"{gpu_preflight.PYTHON}-dev" in found["remedy"]
    (tmp_path / "Python.h").touch()
    assert gpu_preflight.python_headers()["ok"]


def test_packages() -> None:
    found = gpu_preflight.package("no_such_module", "no-such-module")
    assert found["ok"] is False and "pip install no-such-module" in found["remedy"]


def test_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value for each field; None where the program is missing or answers otherwise."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_preflight.nvidia_smi("GPU-1") is None
    program = tmp_path / "nvidia-smi"
    values = "NVIDIA H200, 570.1, Default, 345 MHz, 1980 MHz, 3201 MHz, 3201 MHz, 700.00 W, 31"
    program.write_text(f"#!/bin/sh\ntest $1 = --id=GPU-1 && echo '{values}'\n")
    program.chmod(0o755)
    found = gpu_preflight.nvidia_smi("GPU-1")
    assert found is not None and found["clocks.max.sm"] == "1980 MHz"
    assert gpu_preflight.nvidia_smi("GPU-2") is None
    said = gpu_preflight.gpu({"device": "NVIDIA H200", "nvidia_smi": found})["said"]
    assert said == (
        "NVIDIA H200, driver 570.1, clocks 345 MHz of 1980 MHz, memory 3201 MHz of 3201 MHz, "
        "limit 700.00 W, 31 °C"
    )
    assert "nvidia-smi is missing" in gpu_preflight.gpu({"device": "NVIDIA H200"})["said"]
    lost = gpu_preflight.gpu({"device": "cuda", "failed": "Traceback\nRuntimeError: no device"})
    assert lost["ok"] is False and lost["said"] == "RuntimeError: no device"


@pytest.mark.parametrize(
    ("mode", "ok", "alone"),
    [("Default", True, None), ("Exclusive_Process", None, True), ("Prohibited", False, None)],
)
def test_compute_modes(mode: str, ok: bool | None, alone: bool | None) -> None:
    facts = {"device": "NVIDIA H200", "nvidia_smi": {"compute_mode": mode}}
    found = gpu_preflight.compute_mode(facts)
    assert (found["ok"], found.get("alone")) == (ok, alone)
    assert ("remedy" in found) == (mode != "Default")
    assert gpu_preflight.compute_mode({"device": "NVIDIA H200"})["ok"] is None


def test_the_first_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right result, a wrong one, and a GPU that Triton does not run on."""
    gpu_probe = pytest.importorskip("gpu_probe")
    assert gpu_preflight.launch("cpu")["ok"] is None  # not in the interpreter
    monkeypatch.setattr(backends, "why_not", lambda *call: None)
    asm = {"ptx": ".version 8.7\n.target sm_90a\n.address_size 64\n"}

    class Kernel:
        factor = 1.0

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def run(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, side: int) -> Any:
                out.copy_(self.factor * (a.float() @ b.float()))
                return SimpleNamespace(asm=asm)

            return run

    kernel = Kernel()
    monkeypatch.setattr(gpu_probe, "product_kernel", kernel)
    assert gpu_preflight.launch("cpu") == {"ok": True, "said": "compiled for sm_90a, right"}
    kernel.factor = 2.0
    found = gpu_preflight.launch("cpu")
    assert found["wrong"] and found["said"] == "compiled for sm_90a, WRONG result"
    assert gpu_preflight.code_of(None) == "interpreted"


def test_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its architectures, and whose code ran by the name of the kernel."""
    built = SimpleNamespace(build_info={"cuda_archs": ["8.0", "9.0a"]})
    monkeypatch.setattr(native, "why_not_cuda", lambda *call: None)
    monkeypatch.setattr(native, "extension", lambda: built)
    names = ["Memcpy", "void fsdino::cuda::correlation_hopper_kernel<c10::BFloat16>"]

    def launched(run: Any) -> Any:
        monkeypatch.setattr(gpu_preflight.ops, "correlation4d", on_reference)
        return run(), names

    correlation4d = gpu_preflight.ops.correlation4d

    def on_reference(*tensors: torch.Tensor, backend: str) -> torch.Tensor:
        return correlation4d(*tensors, backend="reference")

    monkeypatch.setattr(gpu_preflight, "launched", launched)
    said = gpu_preflight.extension("cpu")
    assert said == {"ok": True, "said": "built for 8.0 9.0a, runs the code of sm_90a, right"}
    assert gpu_preflight.picked_code(["correlation_kernel<float, 16>"]).endswith("architecture")
    assert "did not name" in gpu_preflight.picked_code([])
