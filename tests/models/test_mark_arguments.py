"""What users pass as boxes, points and scribbles: which image has which, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.errors import DataError, UsageError
from fsdino.models.mark_arguments import Marks, given, read_marks

SIZE = (40, 60)  # (H, W)


def read(count: int = 1, many: bool = False, **arguments: Any) -> list[Marks]:
    return [read_marks(entry, SIZE) for entry in given(count, many=many, **arguments)]


def scribble(*values: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    drawn = np.zeros(size, np.uint8)
    drawn[5, 5 : 5 + len(values)] = values
    return drawn


@pytest.mark.parametrize(
    "value", [(1, 2, 30, 40), [1, 2, 30, 40], np.array([1, 2, 30, 40]), [(1, 2, 30, 40)]]
)
def test_one_box_as_people_write_it(value: Any) -> None:
    """Of one image, a box or a list of it; in a list of one image, either."""
    for many in (False, True):
        [marks] = read(many=many, boxes=value)
        assert marks.boxes == ((1, 2, 30, 40),)


def test_several_boxes_of_one_image() -> None:
    [marks] = read(boxes=[(1, 2, 3, 4), (5, 6, 7, 8)])
    assert marks.boxes == ((1, 2, 3, 4), (5, 6, 7, 8))


def test_each_image_has_the_kind_that_its_lists_name() -> None:
    """Lists of one entry an image, None where another kind is given."""
    drawn = scribble(1, 2)
    entries = given(
        4,
        many=True,
        masks=[None, "mask.png", None, None],
        boxes=[[(1, 2, 3, 4), (5, 6, 7, 8)], None, None, None],
        points=[None, None, [(3, 4), (5.5, 6)], None],
        labels=[None, None, [0, 1], None],
        scribbles=[None, None, None, drawn],
    )
    assert [entry.argument for entry in entries] == ["boxes", "masks", "points", "scribbles"]
    assert [entry.name for entry in entries] == ["image 1", "image 2", "image 3", "image 4"]
    assert entries[1].value == "mask.png"
    assert read_marks(entries[0], SIZE).boxes == ((1, 2, 3, 4), (5, 6, 7, 8))
    points = read_marks(entries[2], SIZE)
    assert (points.points, points.labels) == (((3, 4), (5.5, 6)), (False, True))
    assert np.array_equal(read_marks(entries[3], SIZE).scribble, drawn)


def test_points_are_positive_unless_labels_say_otherwise() -> None:
    assert read(points=[(3, 4), (5, 6)])[0].labels == (True, True)
    assert read(points=(3, 4))[0].points == ((3, 4),)
    assert read(points=np.array([[3, 4]]), labels=np.array([1]))[0].labels == (True,)
    two = read(2, many=True, points=[(3, 4), (5, 6)])
    assert [marks.points for marks in two] == [((3, 4),), ((5, 6),)]


@pytest.mark.parametrize("kind", ["path", "PIL", "palette", "array", "gray RGB", "list"])
def test_kinds_of_scribbles(kind: str, tmp_path: Path) -> None:
    drawn = scribble(1, 1, 2)
    image = Image.fromarray(drawn)
    palette = image.convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "s.png")
    values: dict[str, Any] = {
        "path": tmp_path / "s.png",
        "PIL": image,
        "palette": palette,
        "array": drawn.astype(np.int64),
        "gray RGB": np.repeat(drawn[:, :, None], 3, 2),
        "list": [drawn],
    }
    [marks] = read(scribbles=values[kind])
    assert marks.scribble is not None and marks.scribble.dtype == np.uint8
    assert np.array_equal(marks.scribble, drawn)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "image 1 has no mask and no mark"),
        ({"masks": ["m.png"], "boxes": (1, 2, 3, 4)}, "image 1 has masks and boxes"),
        ({"points": [(1, 2)], "boxes": (1, 2, 3, 4)}, "image 1 has boxes and points"),
        ({"boxes": (1, 2, 3, 4), "labels": [1]}, "image 1 has labels but no points"),
        ({"boxes": (1, 2, 61, 4)}, r"boxes of image 1: \(1, 2, 61, 4\) reaches out of the image, "
         "which has 60 × 40 pixels"),
        ({"boxes": (-1, 2, 5, 4)}, "reaches out of the image"),
        ({"boxes": [(1, 2, 5, 4), (1, 2, 5, 41)]}, r"\(1, 2, 5, 41\) reaches out"),
        ({"boxes": (5, 2, 5, 4)}, r"boxes of image 1: \(5, 2, 5, 4\) is empty"),
        ({"boxes": (5, 9, 8, 4)}, "is empty"),
        ({"boxes": (5.1, 2, 5.4, 4)}, "holds no pixel's centre"),
        ({"boxes": (1, 2, 3)}, r"boxes of image 1: \(1, 2, 3\) is not valid; a box is"),
        ({"boxes": []}, "is not valid; a box is"),
        ({"boxes": ("a", 2, 3, 4)}, "is not valid; a box is"),
        ({"boxes": (1, 2, float("nan"), 4)}, "holds NaN or infinity"),
        ({"boxes": (1, 2, float("inf"), 4)}, "holds NaN or infinity"),
        ({"points": [(60, 4)]}, r"points of image 1: \(60, 4\) is outside of the image"),
        ({"points": [(4, 40)]}, r"\(4, 40\) is outside of the image, which has 60 × 40"),
        ({"points": [(4, -0.5)]}, "is outside of the image"),
        ({"points": []}, "is not valid; a point is"),
        ({"points": [(1, 2, 3)]}, "is not valid; a point is"),
        ({"points": [(1, 2)], "labels": [1, 0]}, "labels of image 1: 2 for 1 points"),
        ({"points": [(1, 2)], "labels": [2]}, "must be 1 .on the object. or 0"),
        ({"points": [(1, 2)], "labels": [0]}, "labels of image 1: no point is on the object"),
        ({"scribbles": scribble(1, size=(60, 40))}, "scribbles of image 1: 40 × 60 pixels, but"),
    ],
)  # fmt: skip
def test_mistakes_name_image_and_argument(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(**arguments)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2, 2], "scribbles of image 1: nothing is marked as object"),
        ([1, 255], "scribbles of image 1: it has the values 0, 1, 255; a scribble has"),
    ],
)
def test_scribbles_with_other_content(values: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(scribbles=scribble(*values))
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[3, 3, 0] = 1
    with pytest.raises(DataError, match="has colours"):
        read(scribbles=colours)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"masks": ["m.png"]}, "2 support images but 1 masks"),
        ({"boxes": [(1, 2, 3, 4)]}, "boxes has 1 entries for 2 images"),
        ({"boxes": (1, 2, 3, 4)}, "boxes has 4 entries for 2 images"),
        ({"points": [[(1, 2)], [(1, 2)]], "labels": [1]}, "labels has 1 entries for 2 images"),
        ({"boxes": [(1, 2, 3, 4), None]}, "image 2 has no mask and no mark"),
        ({"scribbles": scribble(1)}, "scribbles has 1 entries for 2 images"),
        ({"boxes": [(1, 2, 3, 4), (1, 2, 99, 4)]}, "boxes of image 2: "),
    ],
)
def test_lists_that_do_not_fit_the_images(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(2, many=True, **arguments)
