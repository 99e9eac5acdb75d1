"""A made video with known truth: objects cut from the photographs that ship, over another one.

They move, turn and change their size, two are of one kind, they pass behind each other, and one
leaves the picture before the end. The background is panned and the light changes. A frame follows
from its number, so that the sequence is the same anywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import fsdino

WIDTH, HEIGHT, FRAMES = 854, 480, 64
BACKGROUND = "log-mill"

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Object:
    """A cut-out and its way, with t from 0 to 1 over the sequence.

    Attributes:
        sample: of `fsdino.samples()`.
        height: of the cut-out in pixels, at scale 1.
        start, end: centre at both ends, in pixels.
        sway: pixels up and down, two times.
        scale: at both ends.
        turn: degrees to both sides, two times.
    """

    sample: str
    height: int
    start: tuple[float, float]
    end: tuple[float, float]
    sway: float
    scale: tuple[float, float]
    turn: float

    @cached_property
    def cut(self) -> tuple[Image.Image, Image.Image]:
        """The object's box of the photograph, and its mask."""
        sample = fsdino.samples()[self.sample]
        box = sample.mask.getbbox()
        assert box is not None
        return sample.image.crop(box), sample.mask.crop(box)

    def draw(self, frame: Pixels, labels: Pixels, t: float, label: int) -> None:
        """Put it over a frame [H, W, 3] and its labels [H, W]."""
        phase = math.sin(4 * math.pi * t)
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * t
        angle = self.turn * math.sin(4 * math.pi * t + 1)
        height = max(round(self.height * scale), 2)
        parts = []
        for part in self.cut:
            width = max(round(part.width * height / part.height), 2)
            small = part.resize((width, height), Image.Resampling.BICUBIC)
            parts.append(np.asarray(small.rotate(angle, Image.Resampling.BICUBIC, expand=True)))
        pixels, inside = parts[0], parts[1] >= 128
        x = self.start[0] + (self.end[0] - self.start[0]) * t - inside.shape[1] / 2
        y = self.start[1] + (self.end[1] - self.start[1]) * t + self.sway * phase
        left, top = round(x), round(y - inside.shape[0] / 2)
        rows = slice(max(top, 0), min(top + inside.shape[0], HEIGHT))
        columns = slice(max(left, 0), min(left + inside.shape[1], WIDTH))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        own = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        frame[rows, columns][inside[own]] = pixels[own][inside[own]]
        labels[rows, columns][inside[own]] = label


# The later ones are in front.
OBJECTS = (
    Object("astronaut", 230, (180, 250), (720, 230), 25, (1.0, 0.75), 8),
    Object("teacup", 120, (650, 330), (120, 300), 40, (0.9, 1.4), 25),
    Object("espresso-cup", 120, (420, 120), (960, 400), 30, (1.1, 1.3), 35),
)


@dataclass(frozen=True)
class MadeVideo:
    """A sequence as `fsdino.evaluation.video` takes it.

    Attributes:
        shown: how many of `OBJECTS` are in it, from the first one on.
        count: number of frames.
    """

    shown: int = len(OBJECTS)
    count: int = FRAMES
    name: str = "made"
    palette: bytes = b""

    @property
    def frames(self) -> Sequence[Path]:
        return [Path(f"{index:05d}.png") for index in range(self.count)]

    @property
    def objects(self) -> tuple[int, ...]:
        return tuple(range(1, self.shown + 1))

    def __len__(self) -> int:
        return self.count

    def frame(self, index: int) -> Pixels:
        return self._made(index)[0]

    def annotation(self, index: int) -> Pixels:
        return self._made(index)[1]

    def _made(self, index: int) -> tuple[Pixels, Pixels]:
        return _made(self.shown, index)


@functools.cache
def _background() -> Image.Image:
    """Larger than a frame, for the pan."""
    return fsdino.samples()[BACKGROUND].image.resize((1000, 750), Image.Resampling.BICUBIC)


@functools.lru_cache(2)
def _made(shown: int, index: int) -> tuple[Pixels, Pixels]:
    """A frame of that many objects, and its labels."""
    t = index / (FRAMES - 1)
    left, top = round(146 * t), round(135 + 100 * math.sin(2 * math.pi * t))
    frame = np.array(_background().crop((left, top, left + WIDTH, top + HEIGHT)))
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, thing in enumerate(OBJECTS[:shown], 1):
        thing.draw(frame, labels, t, label)
    light = 0.85 + 0.2 * math.cos(3 * math.pi * t)
    return np.clip(frame * light, 0, 255).astype(np.uint8), labels
