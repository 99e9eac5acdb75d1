"""One-page HTML reports: one file, pictures inside, no scripts, light and dark, any screen.

A click on a picture enlarges it, another one puts it back; so does the space bar.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from fsdino.files import write_text

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2230; --soft: #5c6675;
  --line: #dfe3e9; --main: #0b7a75; --other: #c9772b; --track: #e9ecf1; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --ink: #e7eaf0;
  --soft: #9aa5b5; --line: #2d3440; --main: #3cbfb4; --other: #e69a55; --track: #2a313d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 1.4rem; margin: 52px 0 6px; }
h3 { font-size: 1.1rem; margin: 36px 0 6px; }
p { margin: 6px 0 14px; max-width: 46rem; }
.lede, .small, figcaption, th { color: var(--soft); }
.lede { font-size: 1.08rem; }
.small { font-size: .86rem; margin: 10px 0 0; max-width: none; overflow-wrap: anywhere; }
.tiles { display: grid; gap: 14px; margin: 26px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 14px 18px; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.25; color: var(--main);
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .92rem; }
.card { padding: 16px 18px 18px; margin: 14px 0; }
.card h4 { font-size: 1rem; font-weight: 600; margin: 0 0 10px; }
.row { display: grid; gap: 12px; grid-template-columns: repeat(var(--columns), 1fr); }
figure { margin: 0; min-width: 0; }
img { max-width: 100%; max-height: 240px; width: auto; height: auto; display: block;
  border-radius: 8px; cursor: zoom-in; }
.zoom { display: block; }
.zoom input { position: absolute; opacity: 0; width: 1px; height: 1px; margin: 0; }
.zoom input:focus-visible + img { outline: 3px solid var(--main); }
.zoom input:checked + img { position: fixed; inset: 0; z-index: 1; width: 100vw; height: 100vh;
  height: 100dvh; max-width: none; max-height: none; padding: 2vmin; object-fit: contain;
  background: rgba(0, 0, 0, .88); border-radius: 0; cursor: zoom-out; }
.several { display: grid; gap: 4px; grid-template-columns: repeat(3, 1fr); aspect-ratio: 1;
  align-content: center; }
.several img { border-radius: 5px; }
figcaption { font-size: .86rem; margin-top: 6px; line-height: 1.35; }
figcaption b { color: var(--ink); font-variant-numeric: tabular-nums; white-space: nowrap; }
.chip { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em;
  vertical-align: -.05em; }
.legend span { display: inline-block; margin-right: 1.3em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th { text-align: left; font-weight: 500; font-size: .86rem; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.facts td:last-child { overflow-wrap: anywhere; }
.bar { min-width: 90px; height: 9px; border-radius: 5px; background: var(--track); }
.bar i { display: block; height: 100%; border-radius: 5px; background: var(--main); }
.bar.other i { background: var(--other); }
.chart { width: 100%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 13px; }
.chart .grid { stroke: var(--line); }
.chart .main { fill: var(--main); }
.chart .other { fill: var(--other); }
pre { background: var(--track); border-radius: 8px; padding: 12px 14px; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .9rem; margin: 8px 0 14px; }
.note { border-left: 4px solid var(--other); padding: 10px 16px; background: var(--card);
  border-radius: 0 8px 8px 0; margin: 22px 0 0; max-width: none; }
@media (max-width: 700px) { .row { grid-template-columns: repeat(var(--narrow), 1fr); gap: 8px; }
  main { padding: 24px 12px 40px; } h1 { font-size: 1.6rem; } .card { padding: 12px; }
  table { font-size: .84rem; } th, td { padding: 6px 8px 6px 0; }
  .wide { display: none; } .chart text { font-size: 30px; } }
"""


def text(value: object) -> str:
    """A value as HTML text."""
    return html.escape(str(value))


def image(picture: Image.Image, alt: str) -> str:
    """An <img> that carries its picture, as JPEG, and is enlarged by a click."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=90, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = picture.size
    return (
        f'<label class="zoom"><input type="checkbox" aria-label="Enlarge: {text(alt)}"/>'
        f'<img src="data:image/jpeg;base64,{data}" alt="{text(alt)}" width="{width}" '
        f'height="{height}"></label>'
    )


def figure(pictures: Sequence[Image.Image], alt: str, caption: str) -> str:
    """One picture with its caption (HTML), or several small ones in its place."""
    tags = "".join(
        image(picture, alt if len(pictures) == 1 else f"{alt}, {number} of {len(pictures)}")
        for number, picture in enumerate(pictures, start=1)
    )
    if len(pictures) > 1:
        tags = f'<div class="several">{tags}</div>'
    return f"<figure>{tags}<figcaption>{caption}</figcaption></figure>"


def card(title: str, figures: Sequence[str], *, note: str = "") -> str:
    """A titled row of figures, in pairs on narrow screens, with a note (plain text) below."""
    columns = len(figures)
    style = f"--columns:{columns};--narrow:{min(columns, 2)}"
    row = f'<div class="row" style="{style}">{"".join(figures)}</div>'
    below = f'<p class="small">{text(note)}</p>' if note else ""
    return f'<section class="card"><h4>{text(title)}</h4>{row}{below}</section>'


def tiles(numbers: Mapping[str, str]) -> str:
    """Large numbers by what they mean (both plain text)."""
    items = (
        f'<div class="tile"><b>{text(number)}</b><span>{text(meaning)}</span></div>'
        for meaning, number in numbers.items()
    )
    return f'<div class="tiles">{"".join(items)}</div>'


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    wide: Sequence[int] = (),
) -> str:
    """A table of HTML cells; the columns in `numbers` are aligned to the right.

    Those in `wide` are left out on narrow screens. Without headers it is a plain list of facts.
    """

    def kind(index: int) -> str:
        names = [name for name, of in (("number", numbers), ("wide", wide)) if index in of]
        return f' class="{" ".join(names)}"' if names else ""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}{kind(i)}>{value}</{tag}>" for i, value in enumerate(values))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', headers)}</tr></thead>" if headers else ""
    opening = "<table>" if headers else '<table class="facts">'
    return f'<div class="card scroll">{opening}{head}<tbody>{body}</tbody></table></div>'


def command(line: str) -> str:
    """A command line (plain text) to copy; it wraps on narrow screens."""
    return f"<pre>{text(line)}</pre>"


def bar(share: float, *, other: bool = False) -> str:
    """A bar filled to a share in [0, 1], in the main or the other colour."""
    width = 100 * min(max(share, 0), 1)
    kind = "bar other" if other else "bar"
    return f'<div class="{kind}"><i style="width:{width:.1f}%"></i></div>'


def legend(colours: Mapping[str, str]) -> str:
    """Names beside their CSS colours."""
    items = (
        f'<span><i class="chip" style="background:{text(colour)}"></i>{text(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<p class="legend">{"".join(items)}</p>'


def pairs_chart(main: Sequence[float], other: Sequence[float], label: str) -> str:
    """Two values in [0, 1] per item, as bars side by side in the items' order."""
    width, height, left, top, bottom = 1000, 240, 52, 24, 34
    step = (width - left) / max(len(main), 1)
    parts = []
    for tick in (0, 0.5, 1):
        y = top + (1 - tick) * (height - bottom - top)
        parts.append(f'<line class="grid" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for kind, values, shift in (("main", main, 0.12), ("other", other, 0.52)):
        for index, value in enumerate(values):
            tall = value * (height - bottom - top)
            parts.append(
                f'<rect class="{kind}" x="{left + (index + shift) * step:.1f}" '
                f'y="{height - bottom - tall:.1f}" width="{0.38 * step:.1f}" height="{tall:.1f}"/>'
            )
    for index in range(0, len(main), max(len(main) // 8, 1)):
        x = left + (index + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{index}</text>')
    return (
        f'<section class="card"><svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{text(label)}">{"".join(parts)}</svg></section>'
    )


def page(title: str, lede: str, body: Sequence[str]) -> str:
    """A whole document from its title, its first paragraph (plain text) and HTML parts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{text(title)}</h1>\n<p class="lede">{text(lede)}</p>\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def write(path: Path, document: str) -> None:
    """Write a document, whole or not at all.

    Raises:
        FsdinoError: it cannot be written.
    """
    write_text(path, document)
