"""What every recorded result says about where its numbers come from."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fsdino import processes as sharing
from fsdino.bench.compare import Comparison
from fsdino.environment import devices, environment
from fsdino.files import write_json
from fsdino.ops import measured

ROOT = Path(__file__).resolve().parents[2]


def write_record(path: Path, command: str, *, packages: Sequence[str] = (), **facts: Any) -> None:
    """Write facts as JSON, with the command, the versions, the machine and the commit.

    Args:
        path: of the file.
        command: that measured them.
        packages: that were measured beside PyTorch, whose versions are recorded as well.
        facts: by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, make_record(command, packages=packages, **facts))


def make_record(command: str, *, packages: Sequence[str] = (), **facts: Any) -> dict[str, Any]:
    """Facts with the command, the versions, the machine and the commit; see `write_record`."""
    versions = {package: metadata.version(package) for package in packages}
    found = {**environment(), **versions}
    return {"command": command, **facts, "environment": found, "source": source()}


def write_comparisons(path: Path, command: str, comparisons: Sequence[Comparison]) -> None:
    """Write comparisons with their medians, and what kind of processor they were timed on."""
    results = [_summary(comparison) for comparison in comparisons]
    write_record(path, command, results=results, machine=machine())


def machine() -> dict[str, Any]:
    """The processor's name, how many of its cores are to be used, and its instruction set."""
    return {
        "processor": devices()["cpu"],
        "cores": sharing.cores(),
        "instruction_set": measured.instruction_set(),
    }


def source() -> dict[str, Any]:
    """The commit, and whether files other than records differ from it; None outside a checkout."""
    try:
        if not (ROOT / ".git").exists():
            raise FileNotFoundError(ROOT / ".git")
        commit = _git("rev-parse", "HEAD")
        changed = bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": changed}


def _summary(comparison: Comparison) -> dict[str, Any]:
    """A comparison for the record: the seconds of all rounds as their number and range."""
    summary = comparison.to_dict()
    for row in summary["timings"]:
        seconds = row.pop("seconds")
        row |= {
            "rounds": len(seconds),
            "fastest": min(seconds, default=None),
            "slowest": max(seconds, default=None),
        }
    return summary


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()
