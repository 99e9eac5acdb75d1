"""Backend `triton`: its functions, imported at first use, and why it cannot run a call."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fsdino import contract
from fsdino.contract import while_tracing

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST = (8, 0)
_FILES = contract.OPS | contract.COMPOSED
OPS = frozenset(
    op for op, file in _FILES.items() if Path(__file__).with_name(f"{file}.py").is_file()
)


def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why Triton cannot run such a call; None if it can. Never imports Triton."""
    if op not in OPS:
        return f"it has no {op}"
    if dtype not in DTYPES:
        return f"it runs float32, float16 and bfloat16, not {dtype}"
    if device.type == "cpu":
        return _why_not_interpreted(dtype)
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device.type}"
    return _why_not_on(device.index)


@while_tracing
def _why_not_interpreted(dtype: torch.dtype) -> str | None:
    if not _interpreted():
        return (
            "it runs on NVIDIA GPUs; on the CPU only in Triton's interpreter, for tests: "
            "set TRITON_INTERPRET=1 before Triton is imported"
        )
    if dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly"
    return _missing()


@while_tracing
def _why_not_on(index: int | None) -> str | None:
    if _interpreted():
        return "TRITON_INTERPRET=1: the interpreter runs CPU tensors"
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "it runs on NVIDIA GPUs, and PyTorch finds none"
    major, minor = torch.cuda.get_device_capability(index)
    if (major, minor) < OLDEST:
        return f"it needs compute capability 8.0 (sm_80), this GPU has {major}.{minor}"
    return _missing()


@functools.cache
def _missing() -> str | None:
    return None if importlib.util.find_spec("triton") else "Triton is not installed"


def _interpreted() -> bool:
    """Whether kernels run in the interpreter; Triton decides this when it is imported."""
    language = sys.modules.get("triton.language")
    if language is None or not hasattr(language, "sum"):
        return os.environ.get("TRITON_INTERPRET") == "1"
    return type(language.sum).__name__ == "InterpretedFunction"


def __getattr__(name: str) -> Callable[..., Any]:
    """A function of the contract, from the file that has its op; looked up once."""
    if name not in contract.FUNCTIONS and name not in OPS.intersection(contract.OPTIONAL):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = _FILES[name.removesuffix("_backward")]
    function = getattr(importlib.import_module(f"fsdino.kernels.{file}"), name)

    @functools.wraps(function)
    def call(tensor: torch.Tensor, *arguments: Any) -> Any:
        with torch.cuda.device_of(tensor):
            return function(tensor, *arguments)

    globals()[name] = call
    return call
