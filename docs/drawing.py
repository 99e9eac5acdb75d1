"""What the drawings of the documentation share: colours, type, boxes, the sheet of paper."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
TITLE, TEXT, STEP = 17, 14, 19  # sizes of type, and from one line to the next
INK, SOFT, PAPER, PANEL, EDGE = "#1b2230", "#566072", "#ffffff", "#f3f6fb", "#8a94a6"
SUPPORT, QUERY = "#16794a", "#1f5fbf"


def text(
    x: float, y: float, words: str, *, size: int = TEXT, colour: str = INK, more: str = ""
) -> str:
    """A line of text; y is its baseline."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{more}>{escape(words)}</text>'
    )


def rectangle(place: tuple[int, int, int, int], fill: str, *, dashed: bool = False) -> str:
    """A box with round corners."""
    left, top, right, bottom = place
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" rx="6" '
        f'fill="{fill}" stroke="{EDGE}" stroke-width="1.4"{dash}/>'
    )


def sheet(size: tuple[int, int], label: str, parts: Iterable[str]) -> str:
    """A whole SVG file: parts on white paper, which also stands out on a dark page.

    Args:
        size: width and height.
        label: for those who do not see it.
        parts: elements, from the back to the front.
    """
    width, height = size
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="{FONT}" role="img" '
        f'aria-label="{escape(label, quote=False)}">'
    )
    paper = f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>'
    return "\n".join([head, paper, *parts, "</svg>", ""])
