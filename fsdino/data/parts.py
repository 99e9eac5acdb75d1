"""Sets of objects' parts: a sample is one object, and image and mask are cropped to its box.

Such a sample is named IMAGE#OBJECT, so that episodes and results tell objects of an image apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.data.coco_masks import outline, plain
from fsdino.data.episodes import Image, Mask
from fsdino.data.source import MasksIncluded
from fsdino.errors import shown

_SEPARATOR = "#"


class PartsOfObjects(MasksIncluded):
    """What a `Source` answers whose samples are objects of an image."""

    root: Path

    def file(self, name: str) -> Path:
        """The image that a sample is an object of."""
        return self.root / split_name(name)[0]


def object_name(image: str, number: int) -> str:
    """The name of an object's sample.

    Args:
        image: name of the image, without "#".
        number: the object's in its image.
    """
    return f"{image}{_SEPARATOR}{number}"


def split_name(name: str) -> tuple[str, int | None]:
    """The image and the object's number of a sample's name; None if it names an image alone."""
    image, separator, number = name.partition(_SEPARATOR)
    return image, int(number) if separator else None


def without_separator(name: str) -> str:
    """Return the name of an image.

    Raises:
        ValueError: it holds "#", which separates an image from its object.
    """
    if _SEPARATOR in name:
        raise ValueError(f"the name {shown(name)} holds {_SEPARATOR!r}")
    return name


def whole_numbers(values: Sequence[Any], name: str) -> list[int]:
    """Numbers without their fractions, as Python's `int` truncates them.

    Args:
        values: whole numbers, floats, or texts of whole numbers.
        name: what they are, for the error.

    Raises:
        ValueError: another value; a reason of one line.
    """
    found = []
    for value in values:
        usable = type(value) is int or (type(value) is float and math.isfinite(value))
        if not usable and not (type(value) is str and len(value) < 10 and value.isdecimal()):
            raise ValueError(f"{name} has the value {shown(value)}")
        found.append(int(value))
    return found


def outlines(segmentations: Sequence[Any], size: tuple[int, int]) -> list[Callable[[], Mask]]:
    """Check the segmentations of a part; functions that draw them, bool [H, W].

    Args:
        segmentations: polygons or run lengths, as COCO writes them, or as they are pickled.
        size: (H, W) of the whole image.

    Raises:
        ValueError: a segmentation is damaged; a reason of one line.
    """
    return [outline(plain(one), size) for one in segmentations]


def window(box: Sequence[int], size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a box, as NumPy cuts them: what lies outside is left out.

    Args:
        box: x0, y0, x1, y1 in pixels; x1 and y1 are outside.
        size: (H, W) of the whole image.

    Raises:
        ValueError: nothing is left; a reason of one line.
    """
    x0, y0, x1, y1 = box
    cut = slice(y0, y1), slice(x0, x1)
    if not all(range(side)[part] for side, part in zip(size, cut, strict=True)):
        raise ValueError(
            f"the box {x0}, {y0}, {x1}, {y1} of its object covers nothing of the image of "
            f"{size[1]} × {size[0]}"
        )
    return cut


def cropped(image: Image, segmentations: Sequence[Any], box: Sequence[int]) -> tuple[Image, Mask]:
    """An object's image uint8 [h, w, 3], and the union of its part's segmentations bool [h, w].

    Args:
        image: the whole image, uint8 [H, W, 3].
        segmentations: of the part, in the whole image; see `outlines`.
        box: of the object; see `window`.

    Raises:
        ValueError: a segmentation is damaged, or the box is outside; a reason of one line.
        UsageError: polygons, and pycocotools is not installed.
    """
    size = image.shape[:2]
    drawn, cut = outlines(segmentations, size), window(box, size)
    mask: Mask = np.zeros(size, np.bool_)
    for draw in drawn:
        mask |= draw()
    return image[cut].copy(), mask[cut].copy()
