"""What every record under benchmarks/results/ says about where its numbers come from."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from fsdino.environment import environment
from fsdino.files import write_json

ROOT = Path(__file__).resolve().parent.parent


def write_record(path: Path, command: str, **facts: Any) -> None:
    """Write facts as JSON, with the command, the versions, the machine and the commit."""
    record = {"command": command, **facts, "environment": environment(), "source": source()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


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


def source() -> dict[str, Any]:
    """The commit, and whether files other than records differ from it; None without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": changed}


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()
