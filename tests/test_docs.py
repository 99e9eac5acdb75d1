"""The documents: every path, command, option, name and link in them is one that exists."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = "https://github.com/fsdino/fsdino/blob/main/"
DOCUMENTS = sorted(
    file.relative_to(ROOT).as_posix()
    for folder in (".", "csrc", "docs", "tests/photographs", "tests/photographs/held_out")
    for file in (ROOT / folder).glob("*.md")
)
FOLDERS = ("fsdino", "kernels", "csrc", "benchmarks", "tests", "docs", ".ci")
# Options of other programs: pip, pytest, torchrun, mypy and LabelMe.
FOREIGN = {
    "--no-build-isolation", "--benchmark-only", "--nnodes", "--nproc-per-node", "--output",
    "--strict",
}  # fmt: skip


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code(document: str) -> list[str]:
    """What stands in backticks, and the lines of fenced blocks, joined where they go on."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text(document), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    rest = re.sub(r"^ *```.*?^ *```$", "", text(document), flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", rest)
    return [" ".join(part.split()) for part in (*lines, *inline)]


def braces(word: str) -> Iterator[str]:
    """`a{b,c}` as `ab` and `ac`."""
    parts = [part.split(",") for part in re.split(r"[{}]", word)]
    return map("".join, itertools.product(*parts)) if "{" in word else iter([word])


def headings(file: Path) -> set[str]:
    """The anchors that a page's headings get on GitHub."""
    found = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    """Relative ones, and absolute ones to the project itself; anchors are headings."""
    found = re.findall(r"\]\(([^)\s]+)\)", text(document))
    found += re.findall(r"^\[[^\]]+\]: (\S+)$", text(document), re.MULTILINE)
    for link in found:
        if link.startswith(OURS):
            file, anchor = ROOT / link.removeprefix(OURS).partition("#")[0], link.partition("#")[2]
        elif re.match(r"\w+:", link):
            continue
        else:
            path, _, anchor = link.partition("#")
            file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), link
        assert not anchor or anchor in headings(file), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document):
    """Files and folders of the project, from its root or from the document's folder."""
    for part in code(document):
        for word in re.findall(r"(?<![\w/.{}~:-])[\w.][\w./{},*-]*/[\w./{},*-]*", part):
            for path in braces(word.rstrip(".,")):
                first = path.partition("/")[0]
                if first not in FOLDERS or re.search("NAME|FILE|DIR", path):
                    continue
                path = re.sub("^fsdino/(csrc|kernels)", r"\1", path)  # where they are installed
                assert any(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_of_the_package_exist(document):
    """`fsdino.x.y`: modules, and what is in them."""
    for part in code(document):
        for name in re.findall(r"(?<![\w./@:-])fsdino(?:\.\w+)+", part):
            if re.search(r"\.(json|jsonl|yaml|safetensors)$", name):
                continue
            found, rest = importlib.import_module("fsdino"), name.split(".")[1:]
            for attribute in rest:
                if not hasattr(found, attribute):
                    found = importlib.import_module(f"{found.__name__}.{attribute}")
                else:
                    found = getattr(found, attribute)


@functools.cache
def shown(*command: str) -> str:
    """The help of a command of fsdino."""
    finished = subprocess.run(
        [sys.executable, "-m", "fsdino", *command, "--help"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert finished.returncode == 0, f"{' '.join(command)}: {finished.stderr}"
    return finished.stdout


def options(words: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*(?:\.[a-z-]+)*", words))


@functools.cache
def commands() -> tuple[str, ...]:
    return tuple(re.search(r"\{([\w,-]+)\}", shown()).group(1).split(","))


@functools.cache
def scripts() -> str:
    """The scripts that take options of their own."""
    files = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "fsdino" / "bench").glob("*.py")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def calls(document: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Calls of fsdino: the command's words, and the rest of the line."""
    for part in code(document):
        for rest in re.findall(r"(?:^|&& |-m )fsdino ((?:(?!&&).)*)", part.partition(" # ")[0]):
            words = rest.split()
            if words and words[0] in commands():
                yield tuple(words[: 2 if words[0] == "data" else 1]), rest
            else:
                assert not words or words[0].startswith(("-", "...")), part


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_have_their_options(document):
    """A call of fsdino as it stands, and options that are named alone."""
    everywhere = options("".join(shown(name) for name in commands()) + shown()) | FOREIGN
    everywhere |= options(shown("data", "check") + shown("data", "prepare")) | options(scripts())
    for command, rest in calls(document):
        known = shown(command[0]) if command == ("data", "--help") else shown(*command)
        assert options(rest) <= options(known) | {"--help"}, " ".join(command)
    for part in code(document) if document != "CHANGELOG.md" else ():  # which names former ones
        assert options(part) <= everywhere, part


@pytest.mark.parametrize("document", DOCUMENTS)
def test_recipes_and_scripts_exist(document):
    """`fsdino train RECIPE`, `python FILE` and `python -m MODULE`."""
    recipes = {file.stem for file in (ROOT / "fsdino" / "recipes").rglob("*.yaml")}
    for command, rest in calls(document):
        if command[0] in ("train", "distill"):
            name = rest.split()[1:2]
            assert not name or name[0][0] in "-.R" or name[0] in recipes, rest
    for part in code(document):
        for script in re.findall(r"\bpython (\S+\.py)", part):
            assert (ROOT / script).is_file(), part
            own = options(part.partition(script)[2])
            assert own <= options((ROOT / script).read_text(encoding="utf-8")), part
        for module in re.findall(r"\bpython -m ([\w.]+)", part):
            assert importlib.util.find_spec(module) is not None, part
