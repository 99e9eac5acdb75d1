"""Which backend was measured to be the fastest, where it is not the first that can run a call.

The table is `fsdino/ops/measured.json`, which `benchmarks/measure_auto.py` writes together with the
record of what it measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fsdino.contract import while_tracing
from fsdino.ops import native

FILE = Path(__file__).with_suffix(".json")

# (op, floating type, architecture) -> (least elements, more than it has, backend), one after the
# other. The architecture of a GPU is as in "sm_90", that of a CPU its instruction set.
Table = dict[tuple[str, torch.dtype, str], list[tuple[int, int, str]]]

_instruction_set = ""  # not known yet


def read(entries: Iterable[dict[str, Any]]) -> Table:
    """The table from the entries of its file; neighbouring classes of one backend are one range."""
    found: Table = {}
    for entry in sorted(entries, key=lambda entry: int(entry["size_class"])):
        key = (entry["op"], getattr(torch, entry["dtype"]), entry["architecture"])
        ranges, backend = found.setdefault(key, []), entry["backend"]
        least, end = 1 << (entry["size_class"] - 1), 1 << entry["size_class"]
        if ranges and ranges[-1][1:] == (least, backend):
            least = ranges.pop()[0]
        ranges.append((least, end, backend))
    return found


MEASURED = read(json.loads(FILE.read_text(encoding="utf-8")))


def size_class(count: int) -> int:
    """Bits of a number of elements; one backend is taken to be the fastest for a whole class."""
    return count.bit_length()


@while_tracing
def instruction_set() -> str:
    """The one that the C++ kernels use: "AMX", "AVX512_BF16", "AVX512", "AVX2", "DEFAULT", ...

    Without them it is PyTorch's word, which knows no finer one than "AVX512".
    """
    global _instruction_set  # noqa: PLW0603
    if not _instruction_set:
        extension = native.extension()
        if extension is None:
            _instruction_set = torch.backends.cpu.get_cpu_capability()
        else:
            _instruction_set = extension.build_info["instruction_set"]
    return _instruction_set


def architecture(device: torch.device) -> str | None:
    """As the table names it; None for what is neither a CPU nor an NVIDIA GPU."""
    if device.type == "cpu":
        return instruction_set()
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return None


def fastest(op: str, tensor: torch.Tensor) -> str | None:
    """The backend that was measured to be the fastest for such a call; None where none was."""
    if not MEASURED:
        return None
    name = instruction_set() if tensor.is_cpu else architecture(tensor.device)
    if name is None:
        return None
    ranges = MEASURED.get((op, tensor.dtype, name))
    if ranges is None:
        return None
    count = tensor.numel()
    for least, end, backend in ranges:
        # By comparisons: torch.compile then guards on the range of a size, not on the size.
        if least <= count < end:
            return backend
    return None
