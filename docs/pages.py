"""The code in a page of the documentation, as it stands there, for what runs or repeats it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^( *)```([a-z]+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: "python", "sh", "text", ...
        code: its lines, without the indentation of the fence.
        line: number of its first line in the page.
    """

    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a Markdown page, from the top."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent, language, code = match.groups()
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        found.append(Block(language, code, text.count("\n", 0, match.start(3)) + 1))
    return found
