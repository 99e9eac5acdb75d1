"""The steps of CONTRIBUTING.md for an op and for a backend, followed literally."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from new_op import NEW_BACKEND, NEW_OP, Edits

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("fsdino", "kernels", "csrc", "docs", "tests", "benchmarks", "pyproject.toml")
LARGE = shutil.ignore_patterns("photographs", "weights", "results", "__pycache__", "*.so")
# Tests that go over all ops and backends.
ALL = [f"tests/ops/test_{of}.py" for of in ("arguments", "derivatives", "nonfinite", "numerics")]


def files_of(title: str, name: str) -> tuple[set[str], set[str]]:
    """The files in the steps of a section, with `name` for `NAME`: always needed, and sometimes.

    Such a file is followed by a colon and by what goes into it.
    """
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    always, _, sometimes = section.partition("only needed where they apply")
    assert sometimes, title
    found = (re.findall(r"`([\w.]+/[\w/.]+)`:", part) for part in (always, sometimes))
    first, second = ({path.replace("NAME", name) for path in paths} for paths in found)
    return first, second


@pytest.mark.parametrize(
    "title, name, edits",
    [("Adding an op", "channel_gain", NEW_OP), ("Adding a backend", "mirror", NEW_BACKEND)],
    ids=["op", "backend"],
)
def test_the_steps_name_the_files(title: str, name: str, edits: Edits) -> None:
    """Every file that is changed is named, and every file that is always needed is changed."""
    always, sometimes = files_of(title, name)
    assert always <= edits.keys() <= always | sometimes


def write(tree: Path, edits: Edits) -> None:
    """Put each text where it belongs."""
    for file, changes in edits.items():
        path = tree / file
        for before, text in changes:
            assert path.exists() == (before is not None), file
            old = path.read_text() if path.exists() else ""
            at = old.index(before) if before else len(old)
            path.write_text(old[:at] + text + old[at:])


def test_nothing_else_is_needed(tmp_path: Path) -> None:
    """In a copy with these files, the new op runs on every backend that has it, and the new backend
    runs every op: the tests of all ops and backends pass."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=LARGE)
        else:
            shutil.copy(ROOT / name, tmp_path)
    write(tmp_path, NEW_OP)
    write(tmp_path, NEW_BACKEND)
    own = "channel_gain or (mirror and test_contract)"
    files = ["tests/test_contract.py", "tests/ops/test_channel_gain.py", *ALL]
    path = [str(tmp_path), *(word for word in sys.path if word and Path(word) != ROOT)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", own, *files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
    found = re.search(r"(\d+) passed", run.stdout.splitlines()[-1])
    assert found is not None and int(found[1]) > 100, run.stdout
