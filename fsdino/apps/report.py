"""One-page HTML reports: one file, pictures inside, no scripts, light and dark, any screen."""

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
h2 { font-size: 1.3rem; margin: 48px 0 6px; }
p { margin: 6px 0 14px; max-width: 46rem; }
.lede, .soft, figcaption, th { color: var(--soft); }
.lede { font-size: 1.08rem; }
.tiles { display: grid; gap: 14px; margin: 26px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 14px 18px; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.25; color: var(--main);
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .92rem; }
.card { padding: 16px 18px 18px; margin: 14px 0; }
.card h3 { font-size: 1rem; font-weight: 600; margin: 0 0 10px; }
.row { display: grid; gap: 12px; grid-template-columns: repeat(var(--columns), 1fr); }
figure { margin: 0; min-width: 0; }
figure img, .several img { width: 100%; display: block; border-radius: 8px; }
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
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { min-width: 90px; height: 9px; border-radius: 5px; background: var(--track); }
.bar i { display: block; height: 100%; border-radius: 5px; background: var(--main); }
.bar.other i { background: var(--other); }
.chart { width: 100%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart .grid { stroke: var(--line); }
.chart .main { fill: var(--main); }
.chart .other { fill: var(--other); }
pre { background: var(--track); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font-size: .9rem; margin: 8px 0 14px; }
.note { border-left: 4px solid var(--other); padding: 10px 16px; background: var(--card);
  border-radius: 0 8px 8px 0; margin: 22px 0 0; max-width: none; }
@media (max-width: 700px) { .row { grid-template-columns: repeat(var(--narrow), 1fr); gap: 8px; }
  main { padding-top: 24px; } h1 { font-size: 1.6rem; } }
"""


def text(value: object) -> str:
    """A value as HTML text."""
    return html.escape(str(value))


def image(picture: Image.Image, alt: str) -> str:
    """An <img> that carries its picture, as JPEG."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=90, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = picture.size
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{text(alt)}" width="{width}" '
        f'height="{height}" style="height:auto">'
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


def card(title: str, figures: Sequence[str]) -> str:
    """A titled row of figures; two rows on narrow screens."""
    columns = len(figures)
    style = f"--columns:{columns};--narrow:{min(-(-columns // 2), 3)}"
    row = f'<div class="row" style="{style}">{"".join(figures)}</div>'
    return f'<section class="card"><h3>{text(title)}</h3>{row}</section>'


def tiles(numbers: Mapping[str, str]) -> str:
    """Large numbers by what they mean (both plain text)."""
    items = (
        f'<div class="tile"><b>{text(number)}</b><span>{text(meaning)}</span></div>'
        for meaning, number in numbers.items()
    )
    return f'<div class="tiles">{"".join(items)}</div>'


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    """A table of HTML cells; the columns in `numbers` are aligned to the right.

    Without headers it is a plain list of facts.
    """

    def cells(tag: str, values: Sequence[str]) -> str:
        kinds = (' class="number"' if index in numbers else "" for index in range(len(values)))
        return "".join(
            f"<{tag}{kind}>{value}</{tag}>" for kind, value in zip(kinds, values, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', headers)}</tr></thead>" if headers else ""
    return f'<div class="card scroll"><table>{head}<tbody>{body}</tbody></table></div>'


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
    width, height, left, bottom = 1000, 210, 34, 22
    step = (width - left) / max(len(main), 1)
    parts = []
    for tick in (0, 0.5, 1):
        y = 8 + (1 - tick) * (height - bottom - 8)
        parts.append(f'<line class="grid" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for kind, values, shift in (("main", main, 0.12), ("other", other, 0.52)):
        for index, value in enumerate(values):
            tall = value * (height - bottom - 8)
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
