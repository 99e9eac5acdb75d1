"""What records of this folder's programs say besides what `fsdino.bench.record` writes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command() -> str:
    """The call of this program with its options, from the repository's root."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def drawn_set(part: str) -> dict[str, str]:
    """A part of the drawn set, and the fingerprint of all of it.

    Args:
        part: fold, split and seed, as in "fold3/val/0".
    """
    from fsdino.data import procedural  # which needs more than the GPU benchmarks may ask for

    return {
        "data": f"procedural-v{procedural.VERSION}/{part}",
        "data_fingerprint": procedural.fingerprint(),
    }
