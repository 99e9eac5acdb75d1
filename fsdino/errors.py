"""The errors a user meets: each message is one line that names the thing and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterable


class FsdinoError(Exception):
    """Base of every error fsdino raises on purpose. The command line exits with `exit_code`."""

    exit_code = 1


class UsageError(FsdinoError, ValueError):
    """An argument that cannot be meant: a missing path, no support, an unknown model."""

    exit_code = 2


class DataError(FsdinoError):
    """Content that cannot be used: a truncated image, a mask without foreground."""


class CheckpointError(FsdinoError):
    """Weights that are corrupt, incomplete or belong to another model."""


class BackendError(FsdinoError, RuntimeError):
    """A backend asked for by name that cannot run the call here."""


class SupportWarning(UserWarning):
    """A support that hardly finds itself, so that little can be expected of it elsewhere."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, NumPy's, or PyTorch's on any device."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return cpu or isinstance(error, MemoryError)


def first_line(error: Exception) -> str:
    """What a one-line message can quote of an error: a line without control characters."""
    return printable((str(error).splitlines() or [type(error).__name__])[0])


def printable(text: str) -> str:
    """Text of any origin in a message: on one line, without control characters, not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:200])
    return shown if len(text) <= 200 else f"{shown}..."


def listed(names: Iterable[str]) -> str:
    """Names in a message: the first hundred, and how many more."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 100:,} more" if len(ordered) > 100 else ""
    return ", ".join(printable(name) for name in ordered[:100]) + more
