"""Marks on a command line: which example they belong to, and their numbers."""

from __future__ import annotations

import pytest

from fsdino.commands.marks import ImageMarks, fold, is_mark, read, split
from fsdino.errors import UsageError


def folded(line: str) -> list[tuple[str, ImageMarks]]:
    """The values of a line's examples, each with its marks."""
    values = fold(line.split(), ("--at", "--support"))
    return [(value, read(marks)) for value, marks in split(values)]


def test_marks_belong_to_the_example_before_them() -> None:
    """Wherever other options stand; a value before the last one has none."""
    found = dict(
        folded(
            "--at a b --out o --box 1,2,3,4 --box=5,6,7,8 --support c --point 9,8 --not-point 7,6"
        )
    )
    assert found["b"] == ImageMarks(boxes=((1, 2, 3, 4), (5, 6, 7, 8)))
    assert found["c"] == ImageMarks(points=((9, 8), (7, 6)), labels=(1, 0))
    assert found["a"] == found["--out"] == found["o"] == ImageMarks()


def test_the_other_arguments_stay() -> None:
    """Also a positional one after a mark, which would be taken for a value of the example."""
    assert fold(["clip", "--at", "0:03", "--memory", "2"], ("--at",)) == [
        "clip", "--at", "0:03", "--memory", "2",
    ]  # fmt: skip
    found = fold(["--at", "0:03", "--box", "-1,2,3,4", "clip", "--out", "o"], ("--at",))
    assert found[:3] == ["clip", "--at", "0:03"] and found[4:] == ["--out", "o"]
    assert is_mark(found[3]) and read([found[3]]).boxes == ((-1, 2, 3, 4),)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "--box 1,2,3,4 --at a",
            "--box 1,2,3,4 marks nothing: pass it after the --at or",
        ),
        ("--at a --box 1,2,3", "--box '1,2,3': write x0,y0,x1,y1 in pixels"),
        ("--at a --point 1,x", "--point '1,x': write x,y in pixels"),
        ("--at a --not-point", "--not-point '': write x,y in pixels"),
        ("--at a --box 1,2,3,4 --point 1,2", "either --box or --point"),
    ],
)
def test_bad_marks(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        folded(line)
