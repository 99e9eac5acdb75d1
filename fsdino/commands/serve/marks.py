"""What a visitor draws on a photograph: read, checked, and turned into a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from PIL import Image, ImageDraw

from fsdino.errors import UsageError
from fsdino.images import Flags, Pixels

if TYPE_CHECKING:
    from fsdino.models.segmenter import Segmenter

Tool = Literal["paint", "box", "click"]
TOOLS: tuple[Tool, ...] = ("paint", "box", "click")
OBJECT, REST = 1, 2  # of strokes and points, as in scribbles; painted alone, the rest erases

_MOST_STROKES, _MOST_PLACES, _MOST_POINTS = 1000, 50_000, 200
_DRAWN_SIDE = 2048  # pixels of a side on which strokes are drawn at most
_DAMAGED = "the marks cannot be read; reload the page"


@dataclass(frozen=True)
class Stroke:
    """A line of a brush.

    Attributes:
        kind: OBJECT or REST.
        width: in pixels of the photograph.
        places: (x, y) in pixels of the photograph.
    """

    kind: int
    width: float
    places: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Marks:
    """The marks on one photograph.

    Attributes:
        tool: which of them count.
        strokes: for the tool "paint".
        grow: whether the strokes are hints, from which the object is found; else they are the mask.
        box: for the tool "box": (x0, y0, x1, y1), x1 and y1 exclusive.
        points: for the tool "click": (x, y, OBJECT or REST).
    """

    tool: Tool
    strokes: tuple[Stroke, ...] = ()
    grow: bool = False
    box: tuple[int, int, int, int] | None = None
    points: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def read(cls, data: Any, size: tuple[int, int]) -> Marks:
        """Read what the page sends.

        Args:
            data: plain data from a browser, of any content.
            size: (H, W) of the photograph. Places beside it count as its border.

        Raises:
            UsageError: it is not what the page sends, or too much.
        """
        if not isinstance(data, Mapping) or data.get("tool") not in TOOLS:
            raise UsageError(_DAMAGED)
        height, width = size
        strokes = tuple(_stroke(part, size) for part in _rows(data, "strokes", _MOST_STROKES))
        if sum(len(stroke.places) for stroke in strokes) > _MOST_PLACES:
            raise UsageError("too many strokes: clear some of them")
        points = []
        for row in _rows(data, "points", _MOST_POINTS):
            x, y, kind = _numbers(row, 3)
            points.append((_inside(x, width), _inside(y, height), _kind(kind)))
        box = None
        if data.get("box") is not None:
            x0, y0, x1, y1 = _numbers(data["box"], 4)
            left, right = sorted((min(max(x0, 0), width), min(max(x1, 0), width)))
            top, bottom = sorted((min(max(y0, 0), height), min(max(y1, 0), height)))
            box = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
        tool = cast("Tool", data["tool"])
        return cls(tool, strokes, data.get("grow") is True, box, tuple(points))

    @property
    def needs_model(self) -> bool:
        """Whether a model has to find the object from the marks."""
        return self.tool != "paint" or self.grow

    def problem(self) -> str | None:
        """What is still missing for a mask, as an instruction; None where nothing is."""
        if self.tool == "paint":
            kinds = {stroke.kind for stroke in self.strokes}
            return None if OBJECT in kinds else "Paint over the object."
        if self.tool == "click":
            kinds = {kind for _, _, kind in self.points}
            return None if OBJECT in kinds else "Click on the object."
        if self.box is None:
            return "Drag a box around the object, or click two opposite corners."
        x0, y0, x1, y1 = self.box
        return None if min(x1 - x0, y1 - y0) > 1 else "This box is empty: mark two other corners."

    def mask(self, photograph: Pixels, model: Segmenter | None) -> Flags:
        """The mask that the marks become, bool [H, W].

        Args:
            photograph: uint8 [H, W, 3].
            model: needed where `needs_model`.

        Raises:
            UsageError: marks are missing; see `problem`.
            DataError: the model finds nothing at these marks.
        """
        problem = self.problem()
        if problem is not None:
            raise UsageError(problem)
        size = (photograph.shape[0], photograph.shape[1])
        if not self.needs_model:
            painted: Flags = drawn(self.strokes, size) == OBJECT
            return painted
        assert model is not None
        if self.tool == "box":
            return model.mark(photograph, boxes=self.box)
        if self.tool == "click":
            labels = [int(kind == OBJECT) for _, _, kind in self.points]
            return model.mark(photograph, points=[p[:2] for p in self.points], labels=labels)
        return model.mark(photograph, scribbles=drawn(self.strokes, size))


def drawn(strokes: tuple[Stroke, ...], size: tuple[int, int]) -> Pixels:
    """Strokes as pixels, the later over the earlier: uint8 [H, W] of 0, OBJECT and REST."""
    scale = min(_DRAWN_SIDE / max(size), 1.0)
    height, width = (max(round(side * scale), 1) for side in size)
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for stroke in strokes:
        thick = max(stroke.width * scale, 1.0)
        # Pillow counts from the middle of a pixel, and takes both borders of a disc into it.
        places = [(x * width / size[1] - 0.5, y * height / size[0] - 0.5) for x, y in stroke.places]
        draw.line(places, fill=stroke.kind, width=round(thick))
        for place in places:  # round ends and joints
            draw.circle(place, max(thick - 1, 0) / 2, fill=stroke.kind)
    if scale < 1:
        canvas = canvas.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(canvas)


def _stroke(data: Any, size: tuple[int, int]) -> Stroke:
    if not isinstance(data, Mapping):
        raise UsageError(_DAMAGED)
    [width] = _numbers([data.get("width")], 1)
    rows = _rows(data, "places", _MOST_PLACES)
    if not rows or not 0 < width <= 2 * max(size):
        raise UsageError(_DAMAGED)
    places = []
    for row in rows:
        x, y = _numbers(row, 2)
        places.append((min(max(x, 0.0), size[1]), min(max(y, 0.0), size[0])))
    return Stroke(_kind(data.get("kind")), width, tuple(places))


def _rows(data: Mapping[str, Any], key: str, most: int) -> list[Any]:
    rows = data.get(key, [])
    if not isinstance(rows, list):
        raise UsageError(_DAMAGED)
    if len(rows) > most:
        raise UsageError(f"too many {key}, {len(rows)}: at most {most} count; clear some of them")
    return rows


def _numbers(row: Any, count: int) -> list[float]:
    numbers = row if isinstance(row, list) else []
    if len(numbers) != count or not all(type(n) in (int, float) for n in numbers):
        raise UsageError(_DAMAGED)
    if not all(math.isfinite(n) and abs(n) < 1e9 for n in numbers):
        raise UsageError(_DAMAGED)
    return [float(n) for n in numbers]


def _inside(value: float, side: int) -> int:
    return min(max(math.floor(value), 0), side - 1)


def _kind(value: Any) -> int:
    if value not in (OBJECT, REST):
        raise UsageError(_DAMAGED)
    return int(value)
