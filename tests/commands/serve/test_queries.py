"""Photographs that are dropped: the first ones count, and of the others is said why not."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdino.commands.serve.queries import Queries


@pytest.fixture
def queries(tmp_path: Path) -> Queries:
    (tmp_path / "visit").mkdir()
    return Queries(tmp_path / "visit", 5)


def image(path: Path, value: int = 0) -> tuple[Path, str]:
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path, path.name


def test_ten_thousand_files(queries, tmp_path):
    """The first five are taken; the others are counted, a few named, and nothing of them stays."""
    one = image(tmp_path / "a.png")[0]
    added = queries.add([(one, f"{n}.png") for n in range(10_000)])
    assert [query.name for query in queries] == [f"{n}.png" for n in range(5)]
    assert added.count == 5 and len(added.left_out) == 9_995
    said = added.summary()
    assert said.startswith(
        "9,995 of 10,000 files left out: 5.png (at most 5 are searched at a time)"
    )
    assert "9,990 more" in said and len(said) < 500
    assert len([*(tmp_path / "visit").iterdir()]) == 5


def test_what_is_no_image_is_left_out(queries, tmp_path):
    """By its content, whatever its name promises."""
    with zipfile.ZipFile(tmp_path / "archive.png", "w") as archive:
        archive.writestr("a.txt", "a")
    (tmp_path / "drawing.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "empty.png").touch()
    names = ("archive.png", "drawing.jpg", "empty.png", "gone.png")
    added = queries.add([*((tmp_path / n, n) for n in names), image(tmp_path / "good.png")])
    reasons = dict(added.left_out)
    assert "an archive" in reasons["archive.png"] and "SVG" in reasons["drawing.jpg"]
    assert "empty" in reasons["empty.png"] and "gone" in reasons["gone.png"]
    assert [query.name for query in queries] == ["good.png"]
    assert len([*(tmp_path / "visit").iterdir()]) == 1


def test_names_differ_and_uploads_stay(queries, tmp_path):
    """The same upload may be another visitor's, too: it is not taken away."""
    file = image(tmp_path / "a.png")
    queries.add([file, file])
    assert [query.name for query in queries] == ["a.png", "a-2.png"]
    assert file[0].exists()
    queries.clear()
    assert not queries and file[0].exists() and not [*(tmp_path / "visit").iterdir()]


def test_shipped_ones_are_not_removed(queries, tmp_path):
    file, _ = image(tmp_path / "shipped.png")
    assert queries.add_shipped(file).count == 1 and queries.add_shipped(file).count == 0
    queries.clear()
    assert file.exists()
