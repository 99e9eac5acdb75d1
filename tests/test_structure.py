"""The house: folders import only from floors below, no files import each other in a circle, and a
file has one subject."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fsdino"

# From the door down. A name is a folder of the package or a file of its top level; those of one
# floor are neighbours, which import nothing from each other.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("training",),
    ("evaluation",),
    ("export",),
    ("models",),
    ("bench",),
    ("ops", "data"),
    ("kernels", "csrc", "sample_photographs"),
    ("contract", "overlay"),
    ("resizing",),
    ("masks", "clips", "video_writer"),
    ("images",),
    ("image_files",),
    ("tiff",),
    ("progress", "tables"),
    ("processes", "devices"),
    ("environment",),
    ("locks", "yaml_files"),
    ("files",),
    ("errors", "version"),
)
MOST_LINES = 500
# Longer, and why.
LONG = {
    "kernels": "Triton kernels",
    "benchmarks/gpu_suite.py": "GPU benchmarks",
    "benchmarks/gpu_timing.py": "GPU benchmarks",
}
SOURCES = (".py", ".cpp", ".h", ".inc", ".cu", ".cuh")


def python_files() -> list[Path]:
    """Every module of package, tests and benchmarks."""
    folders = ("fsdino", "kernels", "csrc", "tests", "benchmarks", "docs")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """As other files import it: tests and benchmarks have their folders on the path."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("kernels", "csrc"):
        parts.insert(0, "fsdino")
    elif parts[0] in ("tests", "benchmarks"):
        parts = parts if parts[-1].startswith(("test_", "conftest")) else parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path) -> Iterator[str]:
    """What a file imports anywhere in it, functions and type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def imports() -> dict[Path, set[Path]]:
    """The files that each file imports."""
    files = {module_name(path): path for path in python_files()}
    found: dict[Path, set[Path]] = {}
    for path in files.values():
        found[path] = set()
        for name in imported_names(path):
            imported = files.get(name) or files.get(name.rpartition(".")[0])
            if imported is not None:
                found[path].add(imported)
    return found


def floor_of(path: Path) -> tuple[int, str] | None:
    """The floor of a file of the package, counted from the top, and its name there."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = parts[0] if parts[0] in ("kernels", "csrc") else parts[1]
    for number, names in enumerate(FLOORS):
        if name in names:
            return number, name
    return None


def in_package(path: Path) -> bool:
    """Whether a file is installed with fsdino; the lazy names of `fsdino` itself stand apart."""
    parts = path.relative_to(ROOT).parts
    return parts[0] in ("fsdino", "kernels", "csrc") and parts != ("fsdino", "__init__.py")


def test_every_module_has_a_floor() -> None:
    homeless = [str(path) for path in python_files() if in_package(path) and not floor_of(path)]
    assert not homeless, "give a place in FLOORS to " + ", ".join(homeless)
    names = {path.stem for path in PACKAGE.glob("*.py")} | {"kernels", "csrc"}
    names |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {name for floor in FLOORS for name in floor} == names - {"__init__"}


def test_contributing_names_every_floor() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| floor | holds |") : text.index("`tests/` mirrors")]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [Path(name).stem for cell in cells for name in re.findall("`([^`]+)`", cell)]
    floors = [name for floor in FLOORS for name in floor if name != "__main__"]
    assert sorted(named) == sorted(floors)


def test_nothing_imports_upward() -> None:
    wrong = []
    for path, imported in imports().items():
        for other in imported:
            if not in_package(path) or not in_package(other):
                continue
            here, there = floor_of(path), floor_of(other)
            assert here is not None and there is not None
            if here[1] != there[1] and here[0] >= there[0]:
                wrong.append(f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}")
    assert not wrong, "\n".join(wrong)


def test_the_package_imports_neither_its_door_nor_tests_nor_benchmarks() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
        for path, imported in imports().items()
        if in_package(path)
        for other in imported
        if not in_package(other)
    ]
    assert not wrong, "\n".join(wrong)


def test_benchmarks_import_neither_tests_nor_commands() -> None:
    upper = (ROOT / "tests", PACKAGE / "commands", PACKAGE / "cli.py")
    wrong = [
        f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
        for path, imported in imports().items()
        if path.is_relative_to(ROOT / "benchmarks")
        for other in imported
        if any(other.is_relative_to(place) for place in upper)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = imports()
    done: set[Path] = set()

    def circle(path: Path, above: list[Path]) -> list[Path]:
        if path in above:
            return [*above[above.index(path) :], path]
        if path in done:
            return []
        for other in sorted(graph[path]):
            found = circle(other, [*above, path])
            if found:
                return found
        done.add(path)
        return []

    # `fsdino` names everything, and loads none of it before it is asked for.
    graph[PACKAGE / "__init__.py"] = set()
    for path in graph:
        found = circle(path, [])
        assert not found, " → ".join(str(part.relative_to(ROOT)) for part in found)


def test_only_the_command_line_changes_the_filters_of_warnings() -> None:
    """They belong to the process: changed in a thread, they are lost or restored out of order."""
    changes = {"catch_warnings", "simplefilter", "filterwarnings", "resetwarnings"}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "cli.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute | ast.Name)
        and (name := getattr(node, "attr", None) or getattr(node, "id", None)) in changes
    ]
    assert not wrong, "\n".join(wrong)


def code_files() -> list[Path]:
    folders = ("fsdino", "kernels", "csrc", "benchmarks", "docs")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return sorted(path for path in [*found, ROOT / "setup.py"] if path.suffix in SOURCES)


def test_a_file_has_one_subject() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in code_files()}
    long = [path for path, lines in lengths.items() if lines > MOST_LINES]
    exempt = [ROOT / name for name in LONG]
    wrong = [
        f"{path.relative_to(ROOT)}: {lengths[path]} lines"
        for path in long
        if not any(path.is_relative_to(place) for place in exempt)
    ]
    assert not wrong, "two subjects: find the seam\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", LONG)
def test_exemptions_are_needed(name: str) -> None:
    place = ROOT / name
    paths = [place] if place.is_file() else [p for p in code_files() if p.is_relative_to(place)]
    assert any(len(path.read_text("utf-8").splitlines()) > MOST_LINES for path in paths)
