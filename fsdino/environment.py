"""Versions and machine, as every recorded result names them; and the cache.

PyTorch is imported by what asks it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from fsdino.errors import one_line
from fsdino.version import __version__


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    import torch

    return {
        "fsdino": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {torch.get_num_threads()} threads",
        **{f"GPU {name}": text for name, text in devices().items() if name != "cpu"},
    }


def devices() -> dict[str, str]:
    """What tensors can be put on, with a readable name each."""
    import torch

    found = {"cpu": _processor()}
    for index in range(torch.cuda.device_count()):
        capability = "".join(map(str, torch.cuda.get_device_capability(index)))
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)} (sm_{capability})"
    return found


def cache() -> Path:
    """What is built once and kept: FSDINO_CACHE, or fsdino/ in the user's cache folder."""
    if folder := os.environ.get("FSDINO_CACHE"):
        return Path(os.path.expanduser(folder))
    return own_cache()


def own_cache() -> Path:
    """The user's own, even if FSDINO_CACHE is set: fsdino/ in the user's cache folder."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "fsdino")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return one_line(value)
    return platform.processor() or platform.machine()
