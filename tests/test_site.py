"""The documentation as a site: it loads nothing from elsewhere, and lists every public name."""

from __future__ import annotations

import re
from pathlib import Path

import offline
import pytest

import fsdino
from fsdino import ops

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize(
    "text, suffix, found",
    [
        ('<script src="https://cdn.example/x.js"></script>', ".html", ["https://cdn.example/x.js"]),
        ('<link rel="stylesheet" href="//fonts.example/a">', ".html", ["//fonts.example/a"]),
        ("<style>@import 'http://a.example/b.css';</style>", ".html", ["http://a.example/b.css"]),
        ('<p style="background: url(https://a.example/b)">', ".html", ["https://a.example/b"]),
        ('<image href="https://a.example/b.png"/>', ".svg", ["https://a.example/b.png"]),
        ("a { src: url('https://a.example/f.woff') }", ".css", ["https://a.example/f.woff"]),
        ('<img src="a.png"><a href="https://a.example/">a</a>', ".html", []),
        ("<p>url(https://a.example/)</p>", ".html", []),
        ("a { src: url(data:image/png;base64,AA) }", ".css", []),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(text, suffix, found):
    """Scripts, styles, pictures and fonts, but no link that waits for a click."""
    assert offline.foreign(text, suffix) == found


def test_a_built_site_is_searched(tmp_path):
    """In all of its folders; the build fails on each line of this."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.html").write_text('<img src="https://a.example/b.png">')
    (tmp_path / "b.html").write_text('<img src="b.png">')
    assert list(offline.foreign_in(tmp_path)) == ["deep/a.html loads https://a.example/b.png"]


@pytest.mark.parametrize("page, module", [("reference.md", fsdino), ("reference-ops.md", ops)])
def test_the_reference_has_every_public_name(page, module):
    """A new name that nobody would find."""
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("reference.md", page))
    text += (DOCS / "reference-ops.md").read_text(encoding="utf-8")
    for name in module.__all__:
        assert re.search(rf"{module.__name__}\.{name}\b", text), name


def test_every_page_is_in_the_site():
    """Named in the table of contents: others can only be found by search."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.DOTALL | re.MULTILINE)
    listed = {line for block in blocks for line in block.splitlines() if line[:1].isalnum()}
    assert listed == {file.stem for file in DOCS.glob("*.md")} - {"index"}
