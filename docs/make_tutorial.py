"""The tutorial's notebook and pictures: `python docs/make_tutorial.py` writes them from its page.

docs/tutorial.md is the only text. Its Python and shell blocks become the cells of
docs/tutorial.ipynb, without outputs; its pictures are those that the code in it saves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pages import blocks

PAGE = Path(__file__).resolve().parent / "tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
PICTURE = re.compile(r"^!\[[^\]]*\]\(([^)]+)\)\n?", re.MULTILINE)
SITE = "https://github.com/fsdino/fsdino/blob/main/docs/"
# Of the page, about the notebook itself.
ABOUT = re.compile(
    r" The same steps are in a notebook, \S+ A test runs all of this page\.", re.DOTALL
)


def pictures() -> list[str]:
    """The names of the page's pictures."""
    return PICTURE.findall(PAGE.read_text(encoding="utf-8"))


def cell(kind: str, text: str, number: int) -> dict[str, Any]:
    """A cell of a notebook, without outputs."""
    lines = text.strip("\n").splitlines(keepends=True)
    made: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        made |= {"execution_count": None, "outputs": []}
    return made | {"source": lines}


def markdown(text: str) -> str:
    """Text between two blocks, with absolute links; the pictures are shown by the cells."""
    text = ABOUT.sub("", PICTURE.sub("", text))
    return re.sub(r"\]\((\w[\w-]*\.md)", rf"]({SITE}\1", text).strip("\n")


def code(text: str) -> str:
    """A Python block: what it saves as a picture of the page, the cell shows instead."""
    lines = []
    for line in text.splitlines():
        found = re.fullmatch(r'(\S+)\.save\("(tutorial-.*)"\)', line)
        lines.append(f"display({found[1]})" if found else line)
    return "\n".join(lines)


def notebook() -> str:
    """The content of the notebook's file."""
    rest, cells = PAGE.read_text(encoding="utf-8"), []
    for block in blocks(PAGE):
        if block.language not in ("python", "sh"):
            continue
        before, _, rest = rest.partition(f"```{block.language}\n{block.code}```")
        if words := markdown(before):
            cells.append(cell("markdown", words, len(cells)))
        text = f"%%bash\n{block.code}" if block.language == "sh" else code(block.code)
        cells.append(cell("code", text, len(cells)))
    cells.append(cell("markdown", markdown(rest), len(cells)))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write notebook and pictures."""
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in blocks(PAGE):
            if block.language == "python":
                exec(compile(block.code, str(PAGE), "exec"), names)
        for name in pictures():
            shutil.copy(name, PAGE.with_name(name))
    print(NOTEBOOK, *pictures(), sep=os.linesep)


if __name__ == "__main__":
    main()
