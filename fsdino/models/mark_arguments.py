"""Boxes, points and scribbles as users pass them, checked and told apart by image."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from fsdino import images as pixels
from fsdino.errors import DataError, UsageError, shown
from fsdino.images import AnyArray, ImageLike, Pixels
from fsdino.masks import MaskLike

BoxesLike: TypeAlias = Sequence[Any] | AnyArray
PointsLike: TypeAlias = Sequence[Any] | AnyArray
LabelsLike: TypeAlias = Sequence[Any] | AnyArray
Box: TypeAlias = tuple[float, float, float, float]

KINDS = "masks, boxes, points or scribbles"
UNKNOWN, OBJECT, BACKGROUND = 0, 1, 2  # values of a scribble


@dataclass(frozen=True, eq=False)
class Marks:
    """What is marked in one image of H x W pixels: boxes, points or a scribble.

    Attributes:
        name: of the image, for errors.
        argument: "boxes", "points" or "scribbles": where the marks came from.
        boxes: (x0, y0, x1, y1) each, in pixels; x1 and y1 lie just outside.
        points: (x, y) each, in pixels.
        labels: of each point, whether it is on the object.
        scribble: uint8 [H, W], 0 unknown, 1 object, 2 background.
    """

    name: str
    argument: str
    boxes: tuple[Box, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[bool, ...] = ()
    scribble: Pixels | None = None


@dataclass(frozen=True, eq=False)
class Given:
    """What is given for one image, before the image's size is known: one kind.

    Attributes:
        name: of the image, for errors.
        argument: "masks", "boxes", "points" or "scribbles".
        value: the entry of that argument.
        labels: of points; None makes all of them positive.
    """

    name: str
    argument: str
    value: Any
    labels: Any = None


def given(
    count: int,
    *,
    many: bool,
    masks: Sequence[MaskLike | None] | None = None,
    boxes: BoxesLike | None = None,
    points: PointsLike | None = None,
    labels: LabelsLike | None = None,
    scribbles: ImageLike | Sequence[ImageLike | None] | None = None,
) -> list[Given]:
    """Which kind each image has, of arguments that are for one image or list one entry for each.

    Args:
        count: K, the number of images.
        many: whether they were passed as a list.
        masks: one for each image, or None.
        boxes, points, labels, scribbles: as in `Segmenter.encode_support`.

    Raises:
        UsageError: an argument has not K entries, or an image not exactly one kind.
    """
    if masks is not None and len(masks) != count:
        raise UsageError(
            f"{count} support images but {len(masks)} masks: pass one mask per image, None where "
            "it is marked otherwise"
        )
    entries = {
        "masks": [None] * count if masks is None else [*masks],
        "boxes": _entries("boxes", boxes, count, many, flat=1),
        "points": _entries("points", points, count, many, flat=1),
        "scribbles": _entries("scribbles", scribbles, count, many),
    }
    sides = _entries("labels", labels, count, many, flat=1)
    found = []
    for k in range(count):
        name = f"image {k + 1}"
        kinds = [kind for kind, values in entries.items() if values[k] is not None]
        if not kinds:
            raise UsageError(f"{name} has no mask and no mark: pass one of {KINDS} for it")
        if len(kinds) > 1:
            raise UsageError(
                f"{name} has {' and '.join(kinds)}: pass one kind for each image, None in the "
                "other lists"
            )
        if sides[k] is not None and kinds != ["points"]:
            raise UsageError(f"{name} has labels but no points: labels belong to points")
        found.append(Given(name, kinds[0], entries[kinds[0]][k], sides[k]))
    return found


def read_marks(entry: Given, size: tuple[int, int]) -> Marks:
    """The marks of an image of this size (H, W).

    Raises:
        UsageError: invalid numbers, marks outside of the image, no mark on the object, labels of
            another number than points, a scribble of another size.
        DataError: a scribble that cannot be read, has other values or nothing on the object.
    """
    label = f"{entry.argument} of {entry.name}"
    if entry.argument == "boxes":
        boxes = _rows(entry.value, 4, label, "a box is (x0, y0, x1, y1) in pixels")
        for box in boxes.tolist():
            _check_box(box, size, label)
        return Marks(entry.name, "boxes", boxes=tuple(map(tuple, boxes.tolist())))
    if entry.argument == "points":
        points = _rows(entry.value, 2, label, "a point is (x, y) in pixels")
        for x, y in points.tolist():
            if not (0 <= x < size[1] and 0 <= y < size[0]):
                raise UsageError(
                    f"{label}: ({x:g}, {y:g}) is outside of the image, which has {size[1]} × "
                    f"{size[0]} pixels; x counts from the left and y from the top, from 0"
                )
        labels = _labels(entry.labels, len(points), entry.name)
        found = tuple(map(tuple, points.tolist()))
        return Marks(entry.name, "points", points=found, labels=labels)
    return Marks(entry.name, "scribbles", scribble=_scribble(entry.value, size, label))


def window(box: Box) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centres a box holds."""
    x0, y0, x1, y1 = (math.ceil(edge - 0.5) for edge in box)
    return slice(y0, y1), slice(x0, x1)


def _entries(argument: str, value: Any, count: int, many: bool, flat: int = 0) -> list[Any]:
    """One entry for each image.

    Args:
        argument: its name.
        value: what was passed; None has no entries.
        count: number of images.
        many: whether the images are a list, so that the value is a list of entries.
        flat: dimensions of a value that is one entry for an only image, in a list or not.
    """
    if value is None:
        return [None] * count
    if not many and not (argument == "scribbles" and isinstance(value, list | tuple)):
        return [value]
    if count == 1 and flat and _depth(value) == flat:
        return [value]
    if isinstance(value, np.ndarray) and value.ndim > (1 if flat else 2):
        value = [*value]
    if not isinstance(value, list | tuple):
        value = [value]
    if len(value) != count:
        raise UsageError(
            f"{argument} has {len(value)} entries for {count} images: pass a list with one entry "
            "for each image, None where it has another kind"
        )
    return list(value)


def _depth(value: Any) -> int:
    """How deep lists of numbers lie in each other: 0 a number, 1 a list of them."""
    if isinstance(value, np.ndarray):
        return value.ndim
    if isinstance(value, list | tuple):
        return 1 + max((_depth(part) for part in value), default=0)
    return 1 if value is None else 0  # of an image that has another kind


def _rows(value: Any, width: int, label: str, meaning: str) -> AnyArray:
    """float64 [n, width] of one row or several.

    Raises:
        UsageError: other shapes, no row, values that are not finite numbers.
    """
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.ndim == 1 and array.size == width:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise UsageError(f"{label}: {shown(value)} is not valid; {meaning}, several are a list")
    if not np.isfinite(array).all():
        raise UsageError(f"{label}: {shown(value)} holds NaN or infinity; {meaning}")
    return array


def _check_box(box: Sequence[float], size: tuple[int, int], label: str) -> None:
    x0, y0, x1, y1 = box
    shape = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if x0 < 0 or y0 < 0 or x1 > size[1] or y1 > size[0]:
        raise UsageError(
            f"{label}: {shape} reaches out of the image, which has {size[1]} × {size[0]} pixels; "
            "cut it at the image's border"
        )
    if x1 <= x0 or y1 <= y0:
        raise UsageError(
            f"{label}: {shape} is empty; x1 must be larger than x0, and y1 larger than y0"
        )
    if not all(span.stop > span.start for span in window((x0, y0, x1, y1))):
        raise UsageError(f"{label}: {shape} holds no pixel's centre; make it larger")


def _labels(value: Any, count: int, name: str) -> tuple[bool, ...]:
    """Which points are on the object."""
    label = f"labels of {name}"
    if value is None:
        return (True,) * count
    labels = list(np.ravel(np.asarray(value, object)))
    if len(labels) != count:
        raise UsageError(f"{label}: {len(labels)} for {count} points; pass 1 or 0 for each point")
    if not all(part in (0, 1) for part in labels):
        raise UsageError(f"{label}: {shown(value)} must be 1 (on the object) or 0 (not on it)")
    if not any(labels):
        raise UsageError(f"{label}: no point is on the object; add one with label 1")
    return tuple(bool(part) for part in labels)


def _scribble(value: ImageLike, size: tuple[int, int], label: str) -> Pixels:
    """uint8 [H, W] of a scribble."""
    label = pixels.label_of(value, label) if isinstance(value, str | os.PathLike) else label
    meaning = "a scribble has the values 0 unknown, 1 object, 2 background"
    source = pixels.load(value, label)
    if isinstance(source, Image.Image):
        source = np.asarray(source)
    if source.ndim == 3 and (source == source[:, :, :1]).all():
        source = source[:, :, 0]
    if source.ndim != 2:
        raise DataError(f"{label}: it has colours; {meaning}")
    if source.shape != size:
        raise UsageError(
            f"{label}: {source.shape[1]} × {source.shape[0]} pixels, but its image has {size[1]} "
            f"× {size[0]}; draw it on the image itself, at full size"
        )
    present = np.unique(source)
    if not np.isin(present, (UNKNOWN, OBJECT, BACKGROUND)).all():
        values = ", ".join(f"{part:g}" for part in present[:8].astype(float))
        raise DataError(f"{label}: it has the values {values}; {meaning}")
    if OBJECT not in present:
        raise DataError(f"{label}: nothing is marked as object; {meaning}")
    return source.astype(np.uint8)
