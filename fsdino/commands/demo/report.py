"""One-page HTML reports: one file, pictures inside, no scripts, light and dark, any screen.

A click on a picture enlarges it, another one puts it back; so does the space bar. Parts are made by
the templates in templates/, which escape every text that is not markup of theirs.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fsdino.files import write_text


def image(picture: Image.Image, alt: str) -> Markup:
    """An <img> that carries its picture, as JPEG, and is enlarged by a click."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=90, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return _part("image", data, alt, *picture.size)


def figure(pictures: Sequence[Image.Image], alt: str, caption: str) -> Markup:
    """One picture with its caption, or several small ones in its place."""
    images = [
        image(picture, alt if len(pictures) == 1 else f"{alt}, {number} of {len(pictures)}")
        for number, picture in enumerate(pictures, start=1)
    ]
    return _part("figure", images, caption)


def card(title: str, figures: Sequence[Markup], *, note: str = "") -> Markup:
    """A titled row of figures, in pairs on narrow screens, with a note below."""
    return _part("card", title, figures, note)


def tiles(numbers: Mapping[str, str]) -> Markup:
    """Large numbers by what they mean."""
    return _part("tiles", numbers)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    wide: Sequence[int] = (),
) -> Markup:
    """A table; the columns in `numbers` are aligned to the right.

    Those in `wide` are left out on narrow screens. Without headers it is a plain list of facts.
    """
    return _part("table", headers, rows, numbers, wide)


def command(line: str) -> Markup:
    """A command line to copy; it wraps on narrow screens."""
    return _part("command", line)


def bar(share: float, *, other: bool = False) -> Markup:
    """A bar filled to a share in [0, 1], in the main or the other colour."""
    return _part("bar", f"{100 * min(max(share, 0), 1):.1f}", other)


def legend(colours: Mapping[str, str]) -> Markup:
    """Names beside their CSS colours."""
    return _part("legend", colours)


def pairs_chart(main: Sequence[float], other: Sequence[float], label: str) -> Markup:
    """Two values in [0, 1] per item, as bars side by side in the items' order."""
    width, height, left, top, bottom = 1000, 240, 52, 24, 34
    step, tall = (width - left) / max(len(main), 1), height - bottom - top
    levels = [(tick, top + (1 - tick) * tall) for tick in (0, 0.5, 1)]
    ticks = [
        {"left": left, "y": f"{y:.1f}", "base": f"{y + 4:.1f}", "text": f"{tick:g}"}
        for tick, y in levels
    ]
    bars = [
        {
            "kind": kind,
            "x": f"{left + (index + shift) * step:.1f}",
            "y": f"{height - bottom - value * tall:.1f}",
            "width": f"{0.38 * step:.1f}",
            "height": f"{value * tall:.1f}",
        }
        for kind, values, shift in (("main", main, 0.12), ("other", other, 0.52))
        for index, value in enumerate(values)
    ]
    numbers = [
        {"x": f"{left + (index + 0.5) * step:.1f}", "text": index}
        for index in range(0, len(main), max(len(main) // 8, 1))
    ]
    return _part("pairs_chart", width, height, ticks, bars, numbers, label)


def page(title: str, lede: str, body: Sequence[Markup]) -> str:
    """A whole document from its title, its first paragraph and its parts."""
    return render("page.html.j2", title=title, lede=lede, body=body)


def render(template: str, **values: object) -> str:
    """A template of this folder with some values; texts are escaped, and markup is not."""
    return _environment().get_template(template).render(values)


def _part(name: str, *values: object) -> Markup:
    """A macro of parts.html.j2."""
    module = _environment().get_template("parts.html.j2").module
    return getattr(module, name)(*values)  # type: ignore[no-any-return]


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write(path: Path, document: str) -> None:
    """Write a document, whole or not at all.

    Raises:
        FsdinoError: it cannot be written.
    """
    write_text(path, document)
