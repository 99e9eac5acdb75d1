"""4D correlation and the center pivot: `python docs/draw_correlation.py` writes correlation.svg.

The volume is computed: two small maps of tokens, each a direction in the plane, and the cosine of
every pair, cut at 0 and weighted by the support's mask. tests/test_drawings.py compares it with
`fsdino.ops.correlation4d`, and the taps with those of `fsdino.ops.center_pivot_conv4d`.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

from drawing import EDGE, INK, QUERY, SOFT, STEP, SUPPORT, TITLE, sheet, text

FILE = Path(__file__).resolve().parent / "correlation.svg"
SIZE = (960, 636)
MARK, EMPTY = "#b85400", "#ffffff"
# Directions of the tokens in degrees: an object of about 30, on a background of about 120.
QUERY_TOKENS = ((118, 112, 125, 120), (121, 28, 36, 117), (115, 33, 24, 40), (122, 119, 31, 124))
SUPPORT_TOKENS = ((116, 123, 119, 121), (30, 35, 118, 114), (26, 32, 37, 120), (117, 29, 122, 118))
SUPPORT_MASK = ((0, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (0, 1, 0, 0))
ASKED = (2, 1)  # the query token whose map is drawn large
N = len(QUERY_TOKENS)
K = 3  # side of the kernel
WORDS = (
    "Each arrow is a token's direction in the encoder's space: here of 2 dimensions, in DINOv2-B "
    "of 768.",
    "The value of a pair is the cosine of the two directions, 0 where that is negative, times the",
    "support's mask. So a query token of the object lights up the object in the support.",
)
FULL = (
    "3 × 3 × 3 × 3 = 81 taps.",
    "Most join a shift in the query",
    "with one in the support.",
)
PIVOT = (
    "17 taps: those that shift only the query",
    "(blue and orange, a 2D convolution over it)",
    "or only the support (green and orange, a",
    "2D convolution over it). The results are",
    "added; the middle belongs to both.",
)


def correlation() -> dict[tuple[int, int, int, int], float]:
    """The value of each pair: rows and columns of the query, then of the support."""
    return {
        (i, j, k, m): SUPPORT_MASK[k][m]
        * max(math.cos(math.radians(QUERY_TOKENS[i][j] - SUPPORT_TOKENS[k][m])), 0)
        for i, j, k, m in product(range(N), repeat=4)
    }


def taps() -> dict[tuple[int, int, int, int], str]:
    """The taps of a center-pivot kernel that are not 0, and the 2D kernel that each belongs to."""
    middle = K // 2
    found = {}
    for i, j, k, m in product(range(K), repeat=4):
        over_query, over_support = (k, m) == (middle, middle), (i, j) == (middle, middle)
        if over_query or over_support:
            both = over_query and over_support
            found[i, j, k, m] = "both" if both else "query" if over_query else "support"
    return found


def cell(x: float, y: float, side: float, fill: str, edge: str = EDGE, width: float = 0.8) -> str:
    """A token."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="{fill}" '
        f'stroke="{edge}" stroke-width="{width:g}"/>'
    )


def shade(value: float) -> str:
    """White for 0, a dark green for 1."""
    low, high = (255, 255, 255), (11, 89, 54)
    return "#" + "".join(
        f"{round(a + (b - a) * value):02x}" for a, b in zip(low, high, strict=True)
    )


def tokens(x: int, y: int, directions: tuple[tuple[int, ...], ...], colour: str) -> list[str]:
    """A map of tokens: each an arrow in its cell."""
    side, drawn = 34, []
    for i, row in enumerate(directions):
        for j, degrees in enumerate(row):
            left, top = x + side * j, y + side * i
            drawn.append(cell(left, top, side, EMPTY))
            dx, dy = (11 * f(math.radians(degrees)) for f in (math.cos, math.sin))
            cx, cy = left + side / 2, top + side / 2
            drawn.append(
                f'<line x1="{cx - dx:.1f}" y1="{cy + dy:.1f}" x2="{cx + dx:.1f}" '
                f'y2="{cy - dy:.1f}" stroke="{colour}" stroke-width="2"/>'
                f'<circle cx="{cx + dx:.1f}" cy="{cy - dy:.1f}" r="3" fill="{colour}"/>'
            )
    return drawn


def draw_volume() -> list[str]:
    """From two maps of tokens to the volume."""
    values, side = correlation(), 34
    drawn = [text(24, 40, "4D correlation", size=TITLE, more=' font-weight="bold"')]
    drawn.append(text(24, 76, "query tokens", colour=QUERY))
    drawn += tokens(24, 86, QUERY_TOKENS, QUERY)
    drawn.append(cell(24 + side * ASKED[1], 86 + side * ASKED[0], side, "none", MARK, 3))
    drawn.append(text(200, 76, "support tokens, mask", colour=SUPPORT))
    for k, m in product(range(N), repeat=2):
        if SUPPORT_MASK[k][m]:
            drawn.append(cell(200 + side * m, 86 + side * k, side, "#dcefe4"))
    drawn += [
        part.replace(f'fill="{EMPTY}"', 'fill="none"')
        for part in tokens(200, 86, SUPPORT_TOKENS, SUPPORT)
    ]
    drawn.append(text(376, 76, "of one query token"))
    for k, m in product(range(N), repeat=2):
        drawn.append(cell(376 + side * m, 86 + side * k, side, shade(values[(*ASKED, k, m)])))
    drawn.append(cell(376, 86, side * N, "none", MARK, 3))
    drawn.append(text(552, 76, "of all: [Hq, Wq, Hs, Ws], one small map a query token"))
    for i, j in product(range(N), repeat=2):
        left, top, small = 552 + 44 * j, 86 + 44 * i, 10
        for k, m in product(range(N), repeat=2):
            fill = shade(values[i, j, k, m])
            drawn.append(cell(left + small * m, top + small * k, small, fill, width=0.4))
        edge, width = (MARK, 2.5) if (i, j) == ASKED else (QUERY, 1)
        drawn.append(cell(left, top, small * N, "none", edge, width))
    for number, line in enumerate(WORDS):
        drawn.append(text(24, 300 + STEP * number, line, colour=SOFT))
    return drawn


def draw_kernel(x: int, y: int, title: str, lines: tuple[str, ...], *, pivot: bool) -> list[str]:
    """The taps of a kernel as a map of maps, as the volume is drawn."""
    fills = {"query": QUERY, "support": SUPPORT, "both": MARK}
    kept, small = taps(), 16
    drawn = [text(x, y, title, more=' font-weight="bold"')]
    for i, j in product(range(K), repeat=2):
        left, top = x + 56 * j, y + 14 + 56 * i
        for k, m in product(range(K), repeat=2):
            kind = kept.get((i, j, k, m))
            fill = EMPTY if kind is None else fills[kind]
            fill = fill if pivot else "#c3cad6"
            drawn.append(cell(left + small * m, top + small * k, small, fill, width=0.6))
        drawn.append(cell(left, top, small * K, "none", INK, 1))
    for number, line in enumerate(lines):
        drawn.append(text(x + 184, y + 34 + STEP * number, line, colour=SOFT))
    return drawn


def draw() -> str:
    """The whole file."""
    parts = draw_volume()
    parts.append(text(24, 404, "Center-pivot convolution", size=TITLE, more=' font-weight="bold"'))
    parts += draw_kernel(24, 440, "A full 4D kernel", FULL, pivot=False)
    parts += draw_kernel(440, 440, "Its center pivot", PIVOT, pivot=True)
    return sheet(SIZE, "4D correlation of two images, and the taps of center-pivot kernels", parts)


def main() -> None:
    """Write the file."""
    FILE.write_text(draw(), encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
