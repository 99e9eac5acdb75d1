"""What is installed, which devices there are, and which backend would run each op and why."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

import torch

from fsdino.environment import devices, environment
from fsdino.models import zoo
from fsdino.ops import backends, native

PACKAGES = (
    "torch", "torchvision", "timm", "triton", "segment-anything", "numpy", "pillow", "safetensors",
    "huggingface-hub", "xformers",
)  # fmt: skip

RUNS, COULD_RUN = "runs", "could run"


def packages() -> dict[str, str | None]:
    """Installed versions; None where a package is missing."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def choices(device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, str]]:
    """For each op, every backend in the order in which `auto` asks.

    The first that can is the one that `RUNS`; the others `COULD_RUN`, or say why not.
    """
    table: dict[str, dict[str, str]] = {}
    for op in backends.OPS:
        row = table[op] = {}
        for name in backends.names():
            reason = backends.why_not(name, op, device, dtype)
            row[name] = reason or (COULD_RUN if RUNS in row.values() else RUNS)
    return table


def describe_native() -> dict[str, Any]:
    """The extension behind backend `cpp`, if any, and why others that were found are not used."""
    extension = native.extension()
    return {
        "extension": None if extension is None else extension.to_dict(),
        "problems": list(native.problems()),
    }


def describe_model(name: str) -> dict[str, Any]:
    """Configuration and parameters of a model, by the name that `fsdino.load` takes.

    Raises:
        UsageError: there is no such model.
        CheckpointError: its files are damaged or of another kind.
    """
    model = zoo.load(name)
    return {
        "name": name,
        "fingerprint": model.fingerprint(),
        "config": model.config.to_dict(),
        "parameters": {
            part: {"trained": trained, "frozen": frozen}
            for part, (trained, frozen) in zoo.parameter_table(model).items()
        },
    }


def collect(model: str | None = None) -> dict[str, Any]:
    """Everything above, as plain data for JSON."""
    cpp = describe_native()
    report: dict[str, Any] = {
        "environment": environment(),
        "packages": packages(),
        "devices": devices(),
        "backends": {
            name: {
                str(dtype).removeprefix("torch."): choices(torch.device(name), dtype)
                for dtype in (torch.float32, torch.float16, torch.bfloat16)
            }
            for name in devices()
        },
        "cpp": cpp,
        "forced_backend": os.environ.get("FSDINO_BACKEND"),
        "models": list(zoo.names()),
    }
    if model is not None:
        report["model"] = describe_model(model)
    return report
