"""`--box`, `--point`, `--not-point` and `--scribble`, which belong to the option before them.

A parser of options forgets in which order different ones stand. So `owned` writes into each mark
whose it is, before the command line is parsed, and `by_owner` reads that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import tyro

from fsdino.errors import UsageError, shown

OWNERS = ("--support", "--at")
_BOX, _POINT, _NOT_POINT, _SCRIBBLE = MARKS = ("--box", "--point", "--not-point", "--scribble")

BoxOption = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(metavar="X0,Y0,X1,Y1", help_behavior_hint=""),
]
PointOption = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(metavar="X,Y", help_behavior_hint=""),
]
ScribbleOption = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(metavar="FILE", help_behavior_hint=""),
]


@dataclass(frozen=True)
class ImageMarks:
    """What marks the object in one image, instead of a mask: one kind.

    Attributes:
        boxes: (x0, y0, x1, y1) each.
        points: (x, y) each.
        labels: 1 or 0 of each point.
        scribble: a file.
    """

    boxes: tuple[tuple[float, ...], ...] = ()
    points: tuple[tuple[float, ...], ...] = ()
    labels: tuple[int, ...] = ()
    scribble: Path | None = None

    def digest_parts(self) -> list[bytes | Path]:
        """What tells marks apart: numbers, and the file's content."""
        numbers = repr((self.boxes, self.points, self.labels)).encode()
        return [numbers, *([] if self.scribble is None else [self.scribble])]


class Arguments(TypedDict):
    """Of `Segmenter.encode_support`."""

    boxes: list[Any]
    points: list[Any]
    labels: list[Any]
    scribbles: list[Path | None]


def arguments(marks: Sequence[ImageMarks | None]) -> Arguments:
    """What `encode_support` takes for these images; None for those with a mask."""
    given = [ImageMarks() if mark is None else mark for mark in marks]
    return {
        "boxes": [mark.boxes or None for mark in given],
        "points": [mark.points or None for mark in given],
        "labels": [mark.labels or None for mark in given],
        "scribbles": [mark.scribble for mark in given],
    }


def owned(given: Sequence[str]) -> list[str]:
    """A command line in which each mark names the option before it: `--box=--support.0:1,2,3,4`."""
    counts = dict.fromkeys(OWNERS, -1)
    owner, found = "", []
    words = iter(given)
    for word in words:
        name, equals, value = word.partition("=")
        if name in OWNERS:
            counts[name] += 1
            owner = f"{name}.{counts[name]}"
        if name not in MARKS:
            found.append(word)
            continue
        if not equals:
            value = next(words, "")
            if not value:  # said by the parser
                found.append(word)
                continue
        found.append(f"{name}={owner}:{value}")
    return found


def by_owner(
    owner: str,
    count: int,
    box: Sequence[str],
    point: Sequence[str],
    not_point: Sequence[str],
    scribble: Sequence[str],
) -> list[ImageMarks | None]:
    """The marks of each of the `count` values of an owner.

    Raises:
        UsageError: a mark before any owner, numbers that are not, several kinds for one image, no
            point on the object, a missing scribble.
    """
    given = [
        (option, *_owner(option, value))
        for option, values in zip(MARKS, (box, point, not_point, scribble), strict=True)
        for value in values
    ]
    return [
        _marks([(option, value) for option, whose, value in given if whose == f"{owner}.{k}"])
        for k in range(count)
    ]


def _owner(option: str, value: str) -> tuple[str, str]:
    owner, _, value = value.partition(":")
    if not owner:
        raise UsageError(
            f"{option} {value} stands before any --support: pass --support IMAGE first, and then "
            "what marks the object in it"
        )
    return owner, value


def _marks(given: Sequence[tuple[str, str]]) -> ImageMarks | None:
    if not given:
        return None
    kinds = [option for option in MARKS if any(name == option for name, _ in given)]
    if len({option.replace("not-", "") for option in kinds}) > 1:
        raise UsageError(f"{' and '.join(kinds)} for one image: pass one kind of mark")
    if kinds == [_NOT_POINT]:
        raise UsageError("--not-point alone marks no object: add --point X,Y on it")
    if _SCRIBBLE in kinds:
        if len(given) > 1:
            raise UsageError("--scribble is given twice for one image: pass one file")
        file = Path(given[0][1])
        if not file.is_file():
            raise UsageError(f"--scribble {file}: no such file; check the path")
        return ImageMarks(scribble=file)
    if _BOX in kinds:
        return ImageMarks(boxes=tuple(_numbers(option, value, 4) for option, value in given))
    return ImageMarks(
        points=tuple(_numbers(option, value, 2) for option, value in given),
        labels=tuple(int(option == _POINT) for option, _ in given),
    )


def _numbers(option: str, value: str, count: int) -> tuple[float, ...]:
    form = "X0,Y0,X1,Y1" if count == 4 else "X,Y"
    found = tuple(_each(value))
    if len(found) != count or not all(map(math.isfinite, found)):
        raise UsageError(f"{option} {shown(value)}: pass {form} in pixels, such as "
                         f"{'10,20,200,220' if count == 4 else '105,120'}")  # fmt: skip
    return found


def _each(value: str) -> Iterator[float]:
    for part in value.split(","):
        try:
            yield float(part)
        except ValueError:
            yield math.nan
