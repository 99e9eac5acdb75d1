"""What the site needs beyond Sphinx: links into the repository, the help of every command, and a
check that no page loads anything from another host."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from offline import foreign_in
from sphinx.errors import ExtensionError

from fsdino import cli

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/fsdino/fsdino"
PLACE = "<!-- help of every command -->"
COLUMNS = "88"


def on_github(source: str) -> str:
    """Markdown whose relative links out of docs/ lead to the repository."""

    def address(found: re.Match[str]) -> str:
        path = found[1].partition("#")[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{found[1]})"

    return re.sub(r"\]\(\.\./([^)\s]+)\)", address, source)


def shown(*arguments: str) -> str:
    """What `fsdino ... --help` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), mock.patch.dict(os.environ, COLUMNS=COLUMNS):
        code = cli.main([*arguments, "--help"])
    if code:
        raise ExtensionError(f"fsdino {' '.join(arguments)} --help ended with {code}")
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines())


def names(text: str) -> list[str]:
    """The commands that a help offers."""
    found = re.search(r"\{([\w,-]+)\}", text)
    return found[1].split(",") if found else []


def help_of_all() -> str:
    """A section for each command, in Markdown."""
    sections = [f"```text\n{shown()}\n```"]
    for name in names(shown()):
        text = shown(name)
        sections.append(f"## fsdino {name}\n\n```text\n{text}\n```")
        if name == "data":
            for part in names(text):
                sections.append(f"### fsdino {name} {part}\n\n```text\n{shown(name, part)}\n```")
    return "\n\n".join(sections)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Before a page is parsed."""
    source[0] = on_github(source[0])
    if PLACE in source[0]:
        source[0] = source[0].replace(PLACE, help_of_all())


def check(app: Sphinx, exception: Exception | None) -> None:
    """After the site is built."""
    if exception is None and (found := [*foreign_in(Path(app.outdir))]):
        raise ExtensionError("\n".join(found))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", read)
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
