"""Reports: one file that needs nothing else, whatever the texts are."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from fsdino.commands.demo import report
from fsdino.errors import UsageError
from tiny_models import picture

VOID = {"meta", "img", "line", "rect"}


class Outline(HTMLParser):
    """Checks that tags are balanced; collects tags with attributes, and the text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def some_page() -> str:
    images = [Image.fromarray(picture(20, 30, seed)) for seed in range(3)]
    figures = [
        report.figure(images[:1], 'a "quoted" <alt>', "one"),
        report.figure(images, "several", Markup("caption <b>bold</b>")),
    ]
    return report.page(
        "A <title> & more",
        "First paragraph.",
        [
            report.tiles({"meaning <1>": "42 %"}),
            report.card("Card & title", figures),
            report.table(["a", "b"], [["x", "1"], ["y", "2"]], numbers=(1,)),
            report.legend({"name & co": "rgb(1, 2, 3)"}),
            report.pairs_chart([0.5, 1.0], [0.0, 0.25], "a chart"),
            report.bar(0.5),
        ],
    )


def test_a_page_is_whole_and_self_contained():
    """Balanced tags, no script, no address to fetch from, every picture with alt text and size."""
    document = some_page()
    outline = Outline(document)
    assert document.startswith("<!doctype html>")
    assert "A <title> & more" in outline.text
    assert "http" not in document
    assert not any(tag in {"script", "link", "iframe"} for tag, _ in outline.tags)
    pictures = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert [p["alt"] for p in pictures] == [
        'a "quoted" <alt>',
        "several, 1 of 3",
        "several, 2 of 3",
        "several, 3 of 3",
    ]
    assert all((p["width"], p["height"]) == ("30", "20") for p in pictures)


def test_it_suits_phones_and_dark_rooms():
    """The viewport is set, and colours follow the reader's choice."""
    document = some_page()
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in document
    assert "@media (prefers-color-scheme: dark)" in document


def test_a_click_enlarges_a_picture():
    """Without a script: each picture is the label of a box, whose tick fills the window with it."""
    document = some_page()
    outline = Outline(document)
    boxes = [attributes for tag, attributes in outline.tags if tag == "input"]
    assert [box["type"] for box in boxes] == ["checkbox"] * 4
    assert all("Enlarge: " in str(box["aria-label"]) for box in boxes)
    assert len(re.findall(r'<label class="zoom"><input [^>]*/><img [^>]*></label>', document)) == 4
    [rule] = re.findall(r"\.zoom input:checked \+ img \{(.*?)\}", document, re.DOTALL)
    assert "position: fixed" in rule and "width: 100vw" in rule


def test_nothing_is_wider_than_a_phone():
    """Pictures shrink, commands wrap, long words in lists of facts break, bars are left out."""
    document = report.page("t", "l", [
        report.command("fsdino segment --out x"),
        report.table([], [["key", "x" * 300]]),
        report.table(["a", "b"], [["x", report.bar(0.5)]], wide=(1,)),
    ])  # fmt: skip
    styles = dict(re.findall(r"^([^\s{@][^{]*?) \{(.*?)\}", document, re.DOTALL | re.MULTILINE))
    assert "max-width: 100%" in styles["img"]
    assert "white-space: pre-wrap" in styles["pre"] and "anywhere" in styles["pre"]
    assert "overflow-wrap: anywhere" in styles[".facts td:last-child"]
    assert '<table class="facts">' in document
    [narrow] = re.findall(r"@media \(max-width: 700px\) \{.*", document, re.DOTALL)
    assert ".wide { display: none; }" in narrow
    assert document.count('class="wide"') == 2


def test_pictures_survive():
    """What is embedded is the picture, but for JPEG's rounding."""
    smooth = np.linspace(0, 255, 40 * 50).reshape(40, 50).astype(np.uint8)
    original = np.stack([smooth, smooth.T.reshape(40, 50), 255 - smooth], axis=2)
    tag = report.image(Image.fromarray(original), "x")
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', tag)
    found = np.array(Image.open(io.BytesIO(base64.b64decode(data[1]))))
    assert found.shape == original.shape
    assert np.abs(found[..., 0].astype(int) - original[..., 0]).mean() < 8


@pytest.mark.parametrize(("share", "width"), [(0.5, "50.0"), (1.7, "100.0"), (-1, "0.0")])
def test_bars_stay_in_their_track(share: float, width: str):
    """Shares outside of [0, 1] are cut."""
    assert f"width:{width}%" in report.bar(share)


def test_chart_bars_are_as_high_as_their_values():
    """0.5 is half as high as 1, both stand on the same line, and each item has two bars."""
    outline = Outline(report.pairs_chart([0.5, 1.0], [0.0, 0.25], "label"))
    bars = [attributes for tag, attributes in outline.tags if tag == "rect"]
    heights = [float(bar["height"]) for bar in bars]
    feet = {round(float(bar["y"]) + float(bar["height"]), 1) for bar in bars}
    assert heights == [heights[1] / 2, heights[1], 0.0, heights[1] / 4]
    assert len(feet) == 1
    assert [bar["class"] for bar in bars] == ["main", "main", "other", "other"]


def test_number_columns_are_marked():
    """Headers and cells of the same column."""
    outline = Outline(report.table(["a", "b"], [["x", "1"]], numbers=(1,)))
    marked = [(tag, attributes.get("class")) for tag, attributes in outline.tags]
    assert ("th", None) in marked
    assert ("th", "number") in marked
    assert ("td", "number") in marked
    both = report.table(["a", "b"], [["x", "1"]], numbers=(1,), wide=(1,))
    assert '<td class="number wide">1</td>' in both
    assert "thead" not in report.table([], [["x", "1"]])


def test_writing_to_a_missing_folder_is_a_usage_error(tmp_path):
    """And a page that was there before stays whole."""
    report.write(tmp_path / "page.html", "<p>ü</p>")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "<p>ü</p>"
    with pytest.raises(UsageError, match="no such folder"):
        report.write(tmp_path / "gone" / "page.html", "")
