"""The errors a user meets: each message is one line that names the thing and the remedy."""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Iterable


class FsdinoError(Exception):
    """Base of every error fsdino raises on purpose. The command line exits with `exit_code`.

    Example:
        >>> import fsdino
        >>> try:
        ...     fsdino.load("no-such-model")
        ... except fsdino.FsdinoError as error:
        ...     print(type(error).__name__, error.exit_code)
        UsageError 2
    """

    exit_code = 1


class UsageError(FsdinoError, ValueError):
    """An invalid argument: a missing path, no support, an unknown model.

    Example:
        >>> import fsdino
        >>> fsdino.load("no-such-model")
        Traceback (most recent call last):
        fsdino.errors.UsageError: unknown model 'no-such-model': ...
    """

    exit_code = 2


class DataError(FsdinoError):
    """Content that cannot be used: a truncated image, a mask without foreground.

    Example:
        >>> import fsdino
        >>> coins = fsdino.samples()["coins"]
        >>> empty = coins.mask.point(lambda value: 0)
        >>> fsdino.load().encode_support(coins.image, empty)
        Traceback (most recent call last):
        fsdino.errors.DataError: ...
    """


class CheckpointError(FsdinoError):
    """Weights that are corrupt, incomplete or belong to another model.

    Example:
        >>> from pathlib import Path
        >>> import fsdino
        >>> Path("damaged").mkdir()
        >>> Path("damaged/config.json").write_text("{") and fsdino.load("damaged")
        Traceback (most recent call last):
        fsdino.errors.CheckpointError: ...
    """


class BackendError(FsdinoError, RuntimeError):
    """A backend asked for by name that cannot run the call here.

    Example:
        >>> import torch
        >>> from fsdino import ops
        >>> ops.correlation4d(torch.rand(1, 1, 4, 2, 2), torch.rand(1, 1, 4, 2, 2), backend="cuda")
        Traceback (most recent call last):
        fsdino.errors.BackendError: ...
    """


class SupportWarning(UserWarning):
    """A support that hardly finds itself, so that little can be expected of it elsewhere."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, NumPy's, or PyTorch's on any device."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return cpu or isinstance(error, MemoryError)


# ------------------------------------------------------------------ what messages show, on one line

_MOST_NAMES = 100
_MOST_TEXT, _MOST_PATH, _MOST_VALUE = 200, 4096, 80  # characters
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _MOST_VALUE - 10


def one_line(text: object) -> str:
    """A text or an error's message with its lines put together."""
    return " ".join(str(text).split())


def first_line(error: BaseException) -> str:
    """The part of an error that messages quote: its first line, or its type if it has no message.

    For errors of the system this is only the reason; the caller names the file.
    """
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror)
    return printable((str(error).splitlines() or [type(error).__name__])[0])


def printable(text: str, most: int = _MOST_TEXT) -> str:
    """Text of any origin, cut where it is long; quoted where it holds what cannot be printed."""
    text = text if len(text) <= most else f"{text[:most]}..."
    return text if text and text.isprintable() else repr(text)


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as it is; quoted where it holds what cannot be printed."""
    return printable(os.fsdecode(path), _MOST_PATH)


def shown(value: object) -> str:
    """A value of any origin, type and size in a few words: text in quotation marks."""
    try:
        text = one_line(_SHORT.repr(value))
    except (RecursionError, ValueError):  # nested; thousands of digits
        text = f"a value of type {type(value).__name__}"
    return printable(text, _MOST_VALUE)


def counted(number: int, thing: str) -> str:
    """A number of things: "1 file", "3 files"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """Names in order: the first hundred, and how many more."""
    ordered = sorted(names)
    more = len(ordered) - _MOST_NAMES
    shown_names = ", ".join(printable(name) for name in ordered[:_MOST_NAMES])
    return shown_names + (f" and {more:,} more" if more > 0 else "")
