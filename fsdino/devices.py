"""Devices and floating types, by the names that `fsdino.load` and the command line take.

PyTorch is imported only where it is needed, so that a wrong name is reported before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fsdino.errors import UsageError, shown

if TYPE_CHECKING:
    import torch

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)

DTYPES = ("float32", "float16", "bfloat16")


def check_dtype(name: object) -> None:
    """Refuse what is not the name of a floating type.

    Raises:
        UsageError: it is not in `DTYPES`.
    """
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {shown(str(name))}: choose {', '.join(DTYPES)}")


def check_device(name: str) -> None:
    """Refuse what is not the name of a device; whether there is one here is not asked.

    Raises:
        UsageError: it is not auto, cpu, cuda or cuda:N.
    """
    if not _DEVICE.fullmatch(name):
        raise UsageError(f"unknown device {shown(name)}: choose auto, cpu, cuda or cuda:N")


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """PyTorch's floating type of a name; one of PyTorch's own is taken as it is.

    Raises:
        UsageError: there is no such type, or it is not a floating type.
    """
    import torch

    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    check_dtype(dtype)
    return getattr(torch, str(dtype))  # type: ignore[no-any-return]


def find_device(device: str | torch.device) -> torch.device:
    """PyTorch's device of a name; "auto" is a GPU where there is one; PyTorch's own is taken as is.

    Raises:
        UsageError: there is no such device here, or the package does not run there.
    """
    import torch

    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"unknown device {shown(str(device))}: choose auto, cpu, cuda or cuda:N"
        ) from error
    if found.type not in {"cpu", "cuda"}:
        raise UsageError(f"device {device!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"no device {device!r} here ({count} GPUs found): choose cpu or auto")
    return found
