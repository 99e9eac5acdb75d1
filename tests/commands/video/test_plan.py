"""Which frames are taken, and how many there will be."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from fsdino.clips import Clip, ClipInfo, Damage, Frame, Moment
from fsdino.commands.video.plan import Plan
from fsdino.errors import UsageError


class Blank(Clip):
    """Thirty frames at ten a second, whose pixels nobody asks for."""

    path = Path("blank")
    info = ClipInfo((4, 4), 10.0, 30, 3.0, Fraction(1, 10), False)

    def frames(self, damage: Damage | None = None) -> Iterator[Frame]:
        for k in range(30):
            yield Frame(k, Fraction(k, 10), f"{k}.png", lambda: pytest.fail("read"))


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({}, range(30)),
        ({"every": 7}, range(0, 30, 7)),
        ({"begin": "0.95"}, range(10, 30)),
        ({"begin": "10f", "end": "0:02"}, range(10, 20)),
        ({"begin": "5f", "every": 4}, range(8, 30, 4)),
        ({"every": 4, "end": "9f", "most": 9}, (0, 4, 8)),
        ({"begin": "5f", "most": 3}, (5, 6, 7)),
        ({"begin": "0:05"}, ()),
    ],
)
def test_which_frames_and_how_many(plan, expected) -> None:
    """The number that progress shows is the number of frames that come."""
    moments = {k: Moment.parse(plan[k]) for k in ("begin", "end") if k in plan}
    made = Plan(**{**plan, **moments})
    found = [frame.index for frame in made.chosen(Blank().frames())]
    assert found == [*expected]
    assert made.total(Blank()) == len(found)


def test_numbers_out_of_range() -> None:
    for wrong in ({"memory": -1}, {"every": 0}, {"most": 0}):
        with pytest.raises(UsageError, match="memory must be at least 0, every and most"):
            Plan(**wrong)
