"""The code in README.md and docs/: as it stands there, page by page, it runs.

tests/test_docs.py checks names and options of all of it; tests/test_tutorial.py runs the tutorial.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest

import fsdino
from fsdino import cli
from fsdino.models import zoo
from fsdino.video_writer import VideoWriter

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
# Run elsewhere: the first two of the README by .ci/run, the tutorial by tests/test_tutorial.py, the
# program for Ray by tests/export/test_many_machines.py.
ELSEWHERE = {
    ("README.md", "pip install . && fsdino demo --out demo"),
    ("README.md", 'pip install -e ".[test]" && pytest'),
    ("docs/many-machines.md", '"""Segment a folder of photographs'),
}
# Blocks that cannot run here, by their first line, and what their page says about it.
MISSING = {
    ("docs/usage.md", "# Needs a network, or the weights: see below."): "downloads the weights",
    ("docs/usage.md", "from fsdino.models import zoo"): "Needs dinov2_vitb14_pretrain.pth",
    ("docs/pascal5i.md", "fsdino data check pascal5i --root VOC2012"): "need `VOC2012/`",
    ("docs/pascal5i.md", "fsdino evaluate MODEL --data pascal5i"): "need `VOC2012/`",
    ("docs/evaluation.md", "fsdino evaluate MODEL --data pascal5i"): "need `VOC2012/`",
    ("docs/evaluation.md", "fsdino evaluate best_model.pt"): "Needs `best_model.pt`",
    ("docs/training.md", 'pip install "fsdino[train]"'): "need `sa-1b/`",
    ("docs/distillation.md", 'pip install "fsdino[train]"'): "need `sa-1b/`",
    (
        "docs/numbers.md",
        "python benchmarks/photographs.py",
    ): "not part of this repository",
}
MOST_MISSING = 10
SERVER = "serve"  # ends only when it is told to: tests/commands/serve run it
EXPORTING = {"export", "--runtime"}  # takes half a minute: tests/export and tests/commands do it
# So that a command shows that it works within seconds; a recipe's own numbers take longer.
BRIEF = {
    "train": {"--steps": "1", "--images-per-step": "2", "--shots": "1", "--image-sizes": "128"},
    "evaluate": {"--episodes": "2", "--workers": "0"},
}


def code(page: str) -> list[pages.Block]:
    """The blocks of a page that somebody would type."""
    return [b for b in pages.blocks(ROOT / page) if b.language in ("python", "sh")]


def listed(page: str, block: pages.Block, entries: Any) -> list[tuple[str, str]]:
    """The entries that are about a block."""
    return [entry for entry in entries if entry[0] == page and block.code.startswith(entry[1])]


def lines(block: pages.Block) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def test_few_blocks_need_what_is_not_here():
    """Their page says so; the other ones run."""
    found = []
    for page in PAGES:
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        for block in code(page):
            for entry in listed(page, block, MISSING):
                assert MISSING[entry] in text, entry
                found.append(entry)
    assert sorted(found) == sorted(MISSING)
    assert len(found) <= MOST_MISSING


def missing_names(block: pages.Block, known: dict[str, Any]) -> list[str]:
    """Names that a Python block takes from modules which do not have them."""
    tree, wrong = ast.parse(block.code), []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "imports", "exec"), known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = known.get(node.value.id)
            if inspect.ismodule(module) and not hasattr(module, node.attr):
                wrong.append(f"{node.value.id}.{node.attr}")
    return wrong


def test_names_in_blocks_that_do_not_run():
    """Their options are checked by tests/test_docs.py."""
    checked = 0
    for page in PAGES:
        for block in code(page):
            if block.language == "python" and listed(page, block, MISSING):
                assert not missing_names(block, {"fsdino": fsdino})
                checked += 1
    assert checked
    assert missing_names(pages.Block("python", "fsdino.laod()", 1), {"fsdino": fsdino})


def brief(words: list[str]) -> list[str]:
    """A command with its amounts replaced by small ones."""
    if "--help" in words or "--compare" in words:
        return words
    for option, value in BRIEF.get(words[0], {}).items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def run_shell(block: pages.Block) -> None:
    """Its calls of fsdino, in this process; pip's are checked for extras that exist."""
    for words in lines(block):
        while re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        if words[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
                assert set(extra.split(",")) <= EXTRAS.keys()
            continue
        assert words[0] == "fsdino", f"neither runs nor stands in MISSING: {' '.join(words)}"
        if (words[1] == SERVER and "--help" not in words) or EXPORTING.intersection(words):
            continue
        assert cli.main(brief(words[1:])) == 0, " ".join(words)


@pytest.fixture(scope="module")
def loaded() -> Any:
    """`fsdino.load`, which reads each model once, and lets it see smaller images."""
    load, kept = fsdino.load, dict[Any, Any]()

    def small(name: str = "fsdino-photo", **options: Any) -> Any:
        key = (str(name), *options.items())
        if key not in kept:
            model = kept[key] = load(name, **options)
            if model.config.image_size > 256:
                model.config = replace(model.config, image_size=256)
        return kept[key]

    return small


@pytest.fixture
def reader(tmp_path, monkeypatch, loaded) -> Path:
    """A folder with what the pages' names stand for: two kinds of object, in four photographs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fsdino, "load", loaded)
    monkeypatch.setattr(zoo, "load", loaded)
    samples = fsdino.samples()
    kinds = {"cup": ("espresso-cup", "teacup"), "mill": ("post-mill", "log-mill")}
    for top in ("labelled", "held_out"):
        for kind, names in kinds.items():
            folder = Path(top, kind)
            folder.mkdir(parents=True)
            for name in names:
                samples[name].image.save(folder / f"{name}.jpg")
                samples[name].mask.save(folder / f"{name}_mask.png")
    for name, image, mask in (
        ("espresso-cup", "cat.jpg", "cat_mask.png"),
        ("espresso-cup", "a.jpg", "a.png"),
        ("post-mill", "b.jpg", "b.png"),
    ):
        samples[name].image.save(image)
        samples[name].mask.save(mask)
    with VideoWriter("clip.mp4", (208, 320), Fraction(1, 25)) as video:
        for number in range(3):
            video.write(np.asarray(samples["teacup"].image), Fraction(number, 25))
    Path("photos").mkdir()
    samples["teacup"].image.save("photos/1.jpg")
    samples["log-mill"].image.save("photos/2.jpg")
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != "docs/tutorial.md" and code(page)]
)
@pytest.mark.filterwarnings("ignore::fsdino.errors.SupportWarning")
def test_the_code_of_a_page_runs(page, reader, one_thread):
    """From the top, in one folder; a block may use the names and files of those above it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in code(page):
        if listed(page, block, MISSING) or listed(page, block, ELSEWHERE):
            continue
        if block.language == "sh":
            run_shell(block)
        else:
            exec(compile("\n" * (block.line - 1) + block.code, str(ROOT / page), "exec"), names)
