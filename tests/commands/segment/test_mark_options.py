"""Marks on the command line belong to the --support before them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import error_line
from fsdino import cli
from fsdino.commands.segment.command import Segment
from fsdino.commands.segment.mark_options import ImageMarks, by_owner, owned
from fsdino.errors import UsageError

SUPPORT = ["--support", "a.png"]


def marks(*words: str) -> list[ImageMarks | None]:
    command = cli.parse(["segment", *words])
    assert isinstance(command, Segment)
    return by_owner(
        "--support",
        len(command.support),
        command.box,
        command.point,
        command.not_point,
        command.scribble,
    )


def test_marks_follow_the_support_that_they_stand_behind(tmp_path: Path) -> None:
    """In any order with other options, with = or without, and repeated."""
    file = tmp_path / "s:1.png"
    file.touch()
    words = [
        *("--support", "a.png", "--box", "1,2,3,4", "--box=5,6,7.5,8", "--support=b.png", "m.png"),
        *("--support", "c.png", "--out", "x", "--point", "1,2", "--not-point=-3,4"),
        *("--point", "5,6", "--support", "d.png", "--scribble", str(file)),
    ]
    assert marks(*words) == [
        ImageMarks(boxes=((1, 2, 3, 4), (5, 6, 7.5, 8))),
        None,
        ImageMarks(points=((1, 2), (5, 6), (-3, 4)), labels=(1, 1, 0)),
        ImageMarks(scribble=file),
    ]


def test_a_mark_belongs_to_the_nearest_owner() -> None:
    """Each kind of owner is counted apart."""
    words = ["--at", "0:03", "--support", "a.png", "--box", "1,2,3,4", "--at", "5", "--box=5,6,7,8"]
    assert [word for word in owned(words) if "--box" in word] == [
        "--box=--support.0:1,2,3,4",
        "--box=--at.1:5,6,7,8",
    ]
    assert owned(["--support", "a.png", "--box"]) == ["--support", "a.png", "--box"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--box", "1,2,3,4", *SUPPORT], "--box 1,2,3,4 stands before any --support"),
        ([*SUPPORT, "--box", "1,2,3"], "--box '1,2,3': pass X0,Y0,X1,Y1 in pixels"),
        ([*SUPPORT, "--box", "1,2,3,nan"], "pass X0,Y0,X1,Y1 in pixels"),
        ([*SUPPORT, "--point", "1;2"], "--point '1;2': pass X,Y in pixels"),
        ([*SUPPORT, "--not-point", "1,2"], "--not-point alone marks no object"),
        ([*SUPPORT, "--box", "1,2,3,4", "--point", "1,2"], "--box and --point for one image"),
        ([*SUPPORT, "--scribble", "gone.png"], "--scribble gone.png: no such file"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        marks(*words)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--box", "1,2,3,4", *SUPPORT], "stands before any --support"),
        ([*SUPPORT, "mask.png", "--box", "1,2,3,4"], "a.png has a mask, mask.png, and marks"),
        ([*SUPPORT, "--box", "1,2,99,4"], "boxes of image 1 .a.png.: .1, 2, 99, 4. reaches out"),
    ],
)
def test_the_command_refuses_them(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["segment", "--model", "model", "--check-support", *words]) == 2
    assert re.search(message, error_line(capsys))


@pytest.mark.usefixtures("workplace")
def test_a_marked_photograph_is_segmented(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["segment", "--model", "model", *SUPPORT, "--box", "10,10,50,40", "--query", "b.png"]
    assert cli.main([*call, "--out", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["support"]["foreground"]
    assert np.asarray(Image.open("out/masks/b.png")).shape == (50, 60)
