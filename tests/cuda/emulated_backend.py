"""A pytest plugin: the backend `cuda` on the CPU, its kernels in the emulator.

EMULATED_CUDA names the library that tests/cuda/test_emulated.py has built, EMULATED_ARCHITECTURE
the GPU whose code and shared memory it has.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType

import torch

from fsdino import contract
from fsdino.ops import backends, native

LIBRARY = os.environ["EMULATED_CUDA"]
HOPPER = os.environ["EMULATED_ARCHITECTURE"] == "sm_90a"
SHARED_BYTES = {False: 163 << 10, True: 227 << 10}  # of a block of an A100, of an H100


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulated", LIBRARY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if op not in native.CUDA_FUNCTIONS:
        return f"it has no {op}"
    if device.type != "cpu" or dtype not in native.CUDA_DTYPES:
        return "the emulator runs float32, float16 and bfloat16 on the CPU"
    return None


_emulated = _load()
_emulated.set_hopper(HOPPER)
_emulated.set_shared_limit(SHARED_BYTES[HOPPER])
functions = ModuleType("emulated_functions")
for _name in native.CUDA_FUNCTIONS:
    setattr(functions, _name, getattr(torch.ops.fsdino_emulated, _name))
sys.modules[functions.__name__] = functions
# Behind the others: only tests that name it run on it.
backends.register(
    backends.Backend("cuda", -1, functions.__name__, _why_not, contract.CHANNELS_INNERMOST)
)
