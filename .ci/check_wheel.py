"""Fail unless a wheel holds every file of fsdino/, kernels/ and csrc/, and no top-level name more.

Its licences are LICENSE and NOTICE.

Usage: python3 .ci/check_wheel.py WHEEL
"""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED_AS = {"fsdino": "fsdino", "kernels": "fsdino/kernels", "csrc": "fsdino/csrc"}


def expected_files() -> set[str]:
    """The names that the checkout's files have in a wheel."""
    return {
        f"{target}/{file.relative_to(ROOT / source).as_posix()}"
        for source, target in INSTALLED_AS.items()
        for file in (ROOT / source).rglob("*")
        if file.is_file() and file.suffix not in {".pyc", ".so"}
    }


def main(wheel: str) -> None:
    """Compare the wheel's listing with the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        present = set(archive.namelist())
    problems = [f"missing: {name}" for name in sorted(expected_files() - present)]
    for text in ("LICENSE", "NOTICE"):
        if not any(name.endswith(f".dist-info/licenses/{text}") for name in present):
            problems.append(f"missing: {text} among the licences")
    for name in sorted({name.partition("/")[0] for name in present}):
        if name != "fsdino" and not name.endswith(".dist-info"):
            problems.append(f"must not be installed at the top level: {name}")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(present)} files, nothing missing, no foreign top-level name")


if __name__ == "__main__":
    main(sys.argv[1])
