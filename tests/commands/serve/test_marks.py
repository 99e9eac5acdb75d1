"""What is drawn on a photograph becomes the mask that a person would expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fsdino.commands.serve.marks import Marks, drawn
from fsdino.errors import UsageError

SIZE = (80, 100)  # (H, W)


def stroke(*places: list[float], kind: int = 1, width: float = 20) -> dict[str, Any]:
    return {"kind": kind, "width": width, "places": [*places]}


def read(tool: str = "paint", **data: Any) -> Marks:
    return Marks.read({"tool": tool, **data}, SIZE)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return np.hypot(columns - x, rows - y) <= radius


def same(mask: np.ndarray, expected: np.ndarray) -> float:
    return (mask & expected).sum() / (mask | expected).sum()


def test_paint_is_the_mask():
    """A dot is a disc of the brush's width; erasing takes away again; no model is asked."""
    image = np.zeros((*SIZE, 3), np.uint8)
    marks = read(strokes=[stroke([40, 30])])
    assert not marks.needs_model
    assert same(marks.mask(image, None), disc(40, 30, 10)) > 0.95
    erased = read(strokes=[stroke([40, 30]), stroke([46, 30], kind=2, width=12)])
    assert same(erased.mask(image, None), disc(40, 30, 10) & ~disc(46, 30, 6)) > 0.9


def test_a_line_is_as_wide_as_the_brush():
    canvas = drawn(read(strokes=[stroke([20, 40], [80, 40], width=10)]).strokes, SIZE)
    assert canvas[40, 20:80].all() and 9 <= (canvas[:, 50] == 1).sum() <= 12


def test_large_photographs_are_drawn_small():
    """8,000 pixels wide, the mask has the photograph's own size, and the places are right."""
    marks = Marks.read(
        {"tool": "paint", "strokes": [stroke([4000, 1000], width=800)]}, (2000, 8000)
    )
    canvas = drawn(marks.strokes, (2000, 8000))
    assert canvas.shape == (2000, 8000)
    rows, columns = np.nonzero(canvas)
    assert abs(rows.mean() - 1000) < 5 and abs(columns.mean() - 4000) < 5
    assert canvas.sum() == pytest.approx(np.pi * 400**2, rel=0.03)


class Model:
    """Records how it is asked."""

    def mark(self, image: np.ndarray, **marks: Any) -> np.ndarray:
        self.marks = marks
        return np.ones(image.shape[:2], bool)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"tool": "box", "box": [70.2, 60, 10.5, -4]}, {"boxes": (10, 0, 71, 60)}),
        (
            {"tool": "click", "points": [[10.7, 20.2, 1], [200, 79.9, 2]]},
            {"points": [(10, 20), (99, 79)], "labels": [1, 0]},
        ),
    ],
)
def test_the_model_finds_the_object(data, expected):
    """Corners in any order; places beside the photograph are its border."""
    model = Model()
    marks = Marks.read(data, SIZE)
    assert marks.needs_model and marks.mask(np.zeros((*SIZE, 3), np.uint8), model).all()
    assert model.marks == expected


def test_strokes_as_hints():
    model = Model()
    marks = read(grow=True, strokes=[stroke([20, 20]), stroke([80, 60], kind=2)])
    marks.mask(np.zeros((*SIZE, 3), np.uint8), model)
    scribbles = model.marks["scribbles"]
    assert scribbles[20, 20] == 1 and scribbles[60, 80] == 2 and scribbles[70, 10] == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"tool": "paint"}, "Paint over"),
        ({"tool": "paint", "strokes": [stroke([1, 1], kind=2)]}, "Paint over"),
        ({"tool": "click", "points": [[1, 1, 2]]}, "Click on the object"),
        ({"tool": "box"}, "two opposite corners"),
        ({"tool": "box", "box": [5, 5, 5, 50]}, "empty"),
    ],
)
def test_what_is_missing_is_said(data, words):
    """A click on nothing is an instruction, and no mask."""
    marks = Marks.read(data, SIZE)
    assert words in marks.problem()
    with pytest.raises(UsageError, match=words):
        marks.mask(np.zeros((*SIZE, 3), np.uint8), None)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"tool": "laser"},
        {"tool": "paint", "strokes": "all"},
        {"tool": "paint", "strokes": [stroke([1, 1])] * 1001},
        {"tool": "paint", "strokes": [stroke(*[[1, 1]] * 40_000)] * 2},
        {"tool": "paint", "strokes": [stroke([1, float("nan")])]},
        {"tool": "paint", "strokes": [stroke([1, 1], width=1e8)]},
        {"tool": "paint", "strokes": [stroke([1, 1], kind=3)]},
        {"tool": "paint", "strokes": [stroke()]},
        {"tool": "click", "points": [[1, 1]]},
        {"tool": "click", "points": [[1, True, 1]]},
        {"tool": "click", "points": [[1, 1, 1]] * 201},
        {"tool": "box", "box": [1, 2, 3]},
        {"tool": "box", "box": [1, 2, 1e300, 4]},
    ],
)
def test_damaged_data_are_refused(data):
    """A browser may send anything."""
    with pytest.raises(UsageError):
        Marks.read(data, SIZE)
