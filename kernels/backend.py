"""Backend `triton`: its eight functions, imported at the first call, and why it cannot run one."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST = (8, 0)

Function = TypeVar("Function", bound=Callable[..., object])


def _while_tracing(function: Function) -> Function:
    """Let torch.compile run a function while it traces, and keep the answer.

    As torch.compiler.assume_constant_result, which would import the compiler with this module.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why Triton cannot run such a call; None if it can. Never imports Triton."""
    if dtype not in DTYPES:
        return f"it runs float32, float16 and bfloat16, not {dtype}"
    if device.type == "cpu":
        return _why_not_interpreted(dtype)
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device.type}"
    return _why_not_on(device.index)


@_while_tracing
def _why_not_interpreted(dtype: torch.dtype) -> str | None:
    if not _interpreted():
        return (
            "it runs on NVIDIA GPUs; on the CPU only in Triton's interpreter, for tests: "
            "set TRITON_INTERPRET=1 before Triton is imported"
        )
    if dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly"
    return _missing()


@_while_tracing
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


def _kernel(module: str, name: str) -> Callable[..., Any]:
    """A function of one of the kernels' modules, imported at the first call."""

    def call(tensor: torch.Tensor, *arguments: Any) -> Any:
        function = getattr(importlib.import_module(f"fsdino.kernels.{module}"), name)
        with torch.cuda.device_of(tensor):
            return function(tensor, *arguments)

    return call


correlation4d = _kernel("correlation", "correlation4d")
correlation4d_backward = _kernel("correlation", "correlation4d_backward")
center_pivot_conv4d = _kernel("center_pivot", "center_pivot_conv4d")
center_pivot_conv4d_backward = _kernel("center_pivot", "center_pivot_conv4d_backward")
center_pivot_block4d = _kernel("center_pivot", "center_pivot_block4d")
center_pivot_block4d_backward = _kernel("center_pivot", "center_pivot_block4d_backward")
correlation_center_pivot4d = _kernel("fused", "correlation_center_pivot4d")
correlation_center_pivot4d_backward = _kernel("fused", "correlation_center_pivot4d_backward")
