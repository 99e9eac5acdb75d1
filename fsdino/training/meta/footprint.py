"""How much memory an episode takes while it is trained on, and how many fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

_MEMINFO = Path("/proc/meminfo")
USED = 0.8  # share of the free memory that is planned with
BACKWARD = 2  # a backward pass holds gradients beside the activations


def activation_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass for the backward one.

    Args:
        forward: gives the loss.
        parameters: whose memory is not counted.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(kept.values())


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(value.split()[0])
    return None


def episodes_that_fit(each: int, free: int | None, most: int, sharing: int = 1) -> int:
    """How many episodes a batch can have, 1 to `most`.

    Args:
        each: activation bytes of one.
        free: bytes of memory; None takes `most`.
        most: the whole step's.
        sharing: processes that share the memory.
    """
    if free is None:
        return most
    return max(1, min(most, int(USED * free / sharing) // (BACKWARD * max(each, 1))))
