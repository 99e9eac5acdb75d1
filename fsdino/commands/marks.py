"""Marks on a command line: `--box`, `--point` and `--not-point` belong to what is before them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from fsdino.errors import UsageError, shown

# Options, and how many numbers each has.
OPTIONS = {"--box": 4, "--point": 2, "--not-point": 2}

_FOLDED = re.compile(r"(--box|--point|--not-point)=(.*)", re.DOTALL)
_PREFIX = "mark:"  # so that a parser of options takes it for a value


@dataclass(frozen=True)
class ImageMarks:
    """What is marked in one image, as `encode_support` takes it.

    Attributes:
        boxes: (x0, y0, x1, y1) each, in pixels.
        points: (x, y) each, in pixels.
        labels: of each point: 1 on the object, 0 beside it.
    """

    boxes: tuple[tuple[float, ...], ...] = ()
    points: tuple[tuple[float, ...], ...] = ()
    labels: tuple[int, ...] = ()


def fold(arguments: Sequence[str], owners: Collection[str]) -> list[str]:
    """Arguments in which each mark is a value of the example before it.

    Args:
        arguments: of a command, as they were given.
        owners: options that examples are given with, such as "--support".

    Raises:
        UsageError: a mark before any example, or without its numbers.
    """
    found: list[str] = []
    place: int | None = None  # after the values of the last example
    in_values = after_mark = False
    words = iter(arguments)
    for word in words:
        name, has_value, value = word.partition("=")
        if name in OPTIONS:
            if not has_value:
                value = next(words, "")
            if place is None:
                raise UsageError(
                    f"{name} {value} marks nothing: pass it after the {' or '.join(owners)} that "
                    "it belongs to"
                )
            found.insert(place, f"{_PREFIX}{name}={value}")
            place += 1
            in_values, after_mark = False, True
            continue
        if after_mark and place is not None and not word.startswith("-"):
            found.insert(0, word)  # no value of the example, from which nothing sets it off now
            place += 1
            continue
        after_mark = False
        found.append(word)
        if word in owners:
            place, in_values = len(found), True
        elif word.startswith("--"):
            in_values = False
        elif in_values:
            place = len(found)
    return found


def is_mark(value: str) -> bool:
    """Whether a value is one that `fold` has made."""
    return value.startswith(_PREFIX)


def read(values: Sequence[str]) -> ImageMarks:
    """The marks of one image.

    Raises:
        UsageError: other than the numbers that a mark has, boxes together with points.
    """
    boxes, points, labels = [], [], []
    for option, numbers in map(_numbers, values):
        if option == "--box":
            boxes.append(numbers)
        else:
            points.append(numbers)
            labels.append(int(option == "--point"))
    if boxes and points:
        raise UsageError("an image has either --box or --point and --not-point: pass one kind")
    return ImageMarks(tuple(boxes), tuple(points), tuple(labels))


def split(values: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The values that are not marks, each with the marks that follow it."""
    follow: list[str] = []
    last: str | None = None
    for value in values:
        if is_mark(value):
            follow.append(value)
            continue
        if last is not None:
            yield last, follow
        last, follow = value, []
    if last is not None:
        yield last, follow


def _numbers(value: str) -> tuple[str, tuple[float, ...]]:
    """The option and the numbers of a mark."""
    match = _FOLDED.fullmatch(value.removeprefix(_PREFIX))
    assert match is not None
    option, text = match[1], match[2]
    try:
        numbers = tuple(map(float, text.split(",")))
        if len(numbers) != OPTIONS[option]:
            raise ValueError
    except ValueError:
        wanted = "x0,y0,x1,y1" if option == "--box" else "x,y"
        raise UsageError(f"{option} {shown(text)}: write {wanted} in pixels") from None
    return option, numbers
