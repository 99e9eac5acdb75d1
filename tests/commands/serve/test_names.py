"""Names of uploads never lead out of an archive, nor over each other."""

from __future__ import annotations

import pytest

from fsdino.commands.serve.names import Names, harmless


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat.jpg", "cat.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat.jpg", "cat.jpg"),
        ("a\0b\n.png", "ab.png"),
        ("..", "image"),
        ("", "image"),
        ("<img src=x>.png", "img src=x.png"),
        ("Ærø 1.png", "Ærø 1.png"),
    ],
)
def test_harmless(name, expected):
    assert harmless(name) == expected


def test_long_names_are_cut():
    assert len(harmless("a" * 5000 + ".png")) < 120 and harmless("a" * 5000 + ".png")[-4:] == ".png"


def test_no_two_files_share_a_stem():
    """Also where a file system ignores case, and where only the ending differs."""
    names = Names()
    taken = [names.take(name) for name in ("a.png", "A.png", "a.jpg", "b/a.png", "a-2.png")]
    assert taken[0] == ("a.png", "a")
    stems = [stem.casefold() for _, stem in taken]
    assert len({*stems}) == 5
    assert all(name.startswith(stem) for name, stem in taken)
