"""Peak memory of a call on the CPU: the resident set of a process that does nothing else."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from fsdino.errors import FsdinoError

T = TypeVar("T")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak resident set size to the current one


def in_new_process(function: Callable[..., T], *args: object) -> T:
    """`function(*args)` in a fresh Python: an importable function, arguments that can be pickled.

    Raises:
        FsdinoError: the process was killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise FsdinoError(
                "the process that measures memory was killed, probably for lack of memory: "
                "choose a smaller workload, or do not measure memory"
            ) from error


def peak_bytes(run: Callable[[], Sequence[Tensor]]) -> int | None:
    """Most memory in use during one call, beyond what was in use before and the call's results.

    PyTorch takes CPU memory from malloc and gives it back, so that the kernel's peak resident set
    of this process tells. Run it once on something small before, so that libraries are loaded.

    Returns:
        Bytes, at least 0; None where the system does not tell (other than Linux, or hardened).
    """
    gc.collect()
    _return_free_memory()
    try:
        _CLEAR.write_text(_RESET_PEAK)
        before = _status("VmRSS")
    except OSError:
        return None
    results = run()
    peak = _status("VmHWM")
    kept = sum(result.untyped_storage().nbytes() for result in results)
    return max(peak - before - kept, 0)


def _status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise OSError(f"{_STATUS} has no line {field}")


def _return_free_memory() -> None:
    """What malloc keeps of freed memory would be used again without showing up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library's
    if trim is not None:
        trim(0)
