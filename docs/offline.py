"""What a page would load from other hosts: scripts, styles, pictures, fonts. Ours load nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
# Attributes that a browser follows by itself; a link (`<a href>`) waits for a click.
LOADED = {"src", "srcset", "poster", "data", "xlink:href"}
LOADED_BY = {"link": {"href"}, "image": {"href"}, "use": {"href"}}
STYLE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])([^'\")]+)")


class _Loads(HTMLParser):
    """Collects the addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Attributes of a tag, and the styles in it."""
        for name, value in attrs:
            if value and (name in LOADED or name in LOADED_BY.get(tag, ())):
                self.found.append(value.strip())
            elif value and name == "style":
                self.found += STYLE.findall(value)

    def handle_data(self, data: str) -> None:
        """Text of `<style>`, and any other."""
        self.found += STYLE.findall(data) if self.lasttag == "style" else []


def foreign(text: str, suffix: str) -> list[str]:
    """Addresses on other hosts that a file loads.

    Args:
        text: of the file.
        suffix: ".html", ".svg" or ".css".
    """
    if suffix == ".css":
        found = STYLE.findall(text)
    else:
        page = _Loads()
        page.feed(text)
        found = page.found
    return [address for address in found if ELSEWHERE.match(address)]


def foreign_in(folder: Path) -> Iterator[str]:
    """A line for each such address in a built site."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".html", ".svg", ".css"):
            for address in foreign(file.read_text(encoding="utf-8"), file.suffix):
                yield f"{file.relative_to(folder)} loads {address}"
