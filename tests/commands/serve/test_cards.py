"""The page's HTML: nothing from visitors or files becomes a tag."""

from __future__ import annotations

from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

from fsdino.clips import ClipInfo
from fsdino.commands.serve import cards
from fsdino.commands.serve.examples import Class
from fsdino.commands.serve.films import MOST_FRAMES, FilmRun
from fsdino.commands.serve.queries import Added, Queries, Query
from fsdino.commands.serve.results import Result, Run
from tiny_models import box_mask, picture, tiny_model

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"


class Tags(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.text += "".join(value or "" for _, value in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def run(*results: Result, failed: dict[str, str] | None = None) -> Run:
    return Run(Path("nowhere"), 5, 0.5, [*results], failed or {})


def test_hostile_names_are_text(tmp_path):
    """Names of classes, photographs and videos, reasons, and errors."""
    support = tiny_model().encode_support([picture(50, 60)], [box_mask(50, 60)])
    result = Result((HOSTILE, "a"), Path("a"), (HOSTILE, "b"), (0.5, 0.01), (True, False))
    queries = Queries(tmp_path, 5)
    queries.append(Query(HOSTILE, "a", Path("a"), own=False))
    film = FilmRun(tmp_path, 3)
    film.summary = {"frames": 3, "shown_in": {HOSTILE: 2}, "damaged": 1, "damage": HOSTILE}
    pages = [
        cards.classes({HOSTILE: Class(support)}, "key"),
        cards.queries(queries, Added(0, [(HOSTILE, HOSTILE)])),
        cards.results(run(result, failed={HOSTILE: HOSTILE}), 0.5),
        cards.clip(ClipInfo((9, 9), 25.0, 3, 1.0, Fraction(1, 25), False), HOSTILE),
        cards.film(film, 1.0),
        cards.hint(HOSTILE),
    ]
    for page in pages:
        found = Tags(page)
        assert "script" not in found.tags and "onerror" not in found.attributes
        assert "alert(1)" in found.text


def test_results_say_what_was_found():
    result = Result(("a.png", "a"), Path("a"), ("cup", "mill"), (0.93, 0.02), (True, False))
    html = cards.results(run(result, failed={"b.png": "corrupt"}), 0.7)
    text = " ".join(Tags(html).text.split())
    assert "found, score 0.93" in text and "not found, score 0.02" in text
    assert "b.png" in text and "corrupt" in text and "threshold=0.7" in html
    assert "Found something in 1 of 1 photograph (2.0 s)." in cards.status(run(result), 2.0)
    some = cards.status(run(result, failed={"b.png": "corrupt"}), 2.0)
    assert "in 1 of 1 photograph; 1 could not be read (2.0 s)." in some
    assert "Stopped after 1 of 5." in cards.status(run(result), 2.0)
    assert cards.download(run(), 0.5) == "" and cards.download(None, 0.5) == ""


def test_a_long_video_is_said_to_be_cut():
    info = ClipInfo((9, 9), 25.0, MOST_FRAMES + 1, 99.0, Fraction(1, 25), False)
    assert f"Only the first {MOST_FRAMES:,} frames" in cards.clip(info, "a.mp4")
    assert "Only" not in cards.clip(ClipInfo((9, 9), 25.0, 20, 1.0, Fraction(1, 25), False), "a")
