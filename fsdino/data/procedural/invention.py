"""Drawn episodes of classes that exist once: every episode invents its own fold.

A few-shot model that sees 72 classes learns these 72. Here textures and shapes of the base folds
are turned, stretched and blended into new ones, from which an episode's target, distractors and
clutter are put together by the same rules as the procedural set's own classes. Nothing of the
held-out fold is used. The families of its textures and shapes do occur in base folds with other
parameters (see `fsdino.data.procedural.textures`), so what is invented can come near to it by
chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from fsdino.data.episodes import NO_CLASS, Episode, Sample
from fsdino.data.procedural.canvas import render
from fsdino.data.procedural.classes import CLASSES_PER_FOLD, FOLDS, VERSION, Fold, combine
from fsdino.data.procedural.shapes import SHAPES, Points, Shape
from fsdino.data.procedural.textures import TEXTURES, Floats, Texture
from fsdino.data.sampling import check_image_size, check_numbers, random_stream
from fsdino.errors import UsageError

_POOL = 8  # textures and shapes of a fold
_BLENDED = 0.6  # share of the textures that are made of two
_MORPHED = 0.6  # likewise of the shapes
_SCALE, _STRETCH, _SHEAR = 0.35, 0.25, 0.2  # the first two are logarithms
_OUTLINE = 64  # points
_LEAST_FILLED = 0.25  # of the bounding box; a thinner outline has no inside to speak of

_BLENDS: tuple[Callable[[Floats, Floats], Floats], ...] = (
    np.maximum,
    np.minimum,
    lambda a, b: np.abs(a - b),
    lambda a, b: np.float32(0.5) * (a + b),
)


@dataclass(frozen=True, eq=False)
class _Worn:
    """One texture under a linear map, or the blend of two."""

    parts: tuple[tuple[Texture, Points], ...]
    blend: Callable[[Floats, Floats], Floats]

    def __call__(self, u: Floats, v: Floats) -> Floats:
        """Return the blend in [0, 1] at coordinates u, v, float32 of one shape."""
        made = []
        for texture, matrix in self.parts:
            (a, b), (c, d) = matrix.astype(np.float32)
            made.append(texture(a * u + b * v, c * u + d * v))
        return made[0] if len(made) == 1 else self.blend(made[0], made[1])


def _linear(rng: np.random.Generator) -> Points:
    """Draw a map [2, 2]: any turn, then scale, stretch and shear."""
    turn, scale, stretch, shear = (2 * rng.random(4) - 1).tolist()
    cosine, sine = math.cos(math.pi * turn), math.sin(math.pi * turn)
    squeeze = math.exp(_STRETCH * stretch)
    matrix = np.array([[squeeze, _SHEAR * shear], [0.0, 1 / squeeze]])
    mapped: Points = math.exp(_SCALE * scale) * matrix @ np.array([[cosine, -sine], [sine, cosine]])
    return mapped


def _texture(rng: np.random.Generator, known: Sequence[Texture]) -> Texture:
    """Invent a texture from one or two others."""
    count = 2 if rng.random() < _BLENDED else 1
    chosen = [known[i] for i in rng.choice(len(known), count, replace=False)]
    worn = _Worn(
        tuple((texture, _linear(rng)) for texture in chosen),
        _BLENDS[int(rng.integers(len(_BLENDS)))],
    )
    return Texture("invented", worn, centred=any(texture.centred for texture in chosen))


@cache
def _resampled(shape: Shape) -> Points:
    """Return `_OUTLINE` points at equal distances along an outline, clockwise from the top."""
    points = shape.outline()
    x, y = points[:, 0], points[:, 1]
    if float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) < 0:
        points = points[::-1]
    points = np.roll(points, -int(points[:, 1].argmin()), axis=0)
    closed = np.concatenate([points, points[:1]])
    steps = np.sqrt((np.diff(closed, axis=0) ** 2).sum(axis=1))
    along = np.concatenate([[0.0], np.cumsum(steps)])
    places = np.linspace(0, along[-1], _OUTLINE, endpoint=False)
    return np.stack([np.interp(places, along, closed[:, i]) for i in (0, 1)], axis=1)


def _shape(rng: np.random.Generator, known: Sequence[Shape]) -> Shape:
    """Invent a shape: one outline, or a place on the way from one to another, under a map."""
    while True:
        one, other = (known[i] for i in rng.choice(len(known), 2, replace=False))
        way = float(rng.random()) if rng.random() < _MORPHED else 0.0
        outline = (1 - way) * _resampled(one) + way * _resampled(other)
        mapped: Points = outline @ _linear(rng).T
        if _filled(mapped) > _LEAST_FILLED:
            break
    return Shape("invented", lambda: mapped, ())


def _filled(points: Points) -> float:
    """Return which share of its bounding box an outline encloses."""
    x, y = points[:, 0], points[:, 1]
    area = float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2
    return area / float(np.prod(np.ptp(points, axis=0)))


def invented_fold(held_out: int, key: Sequence[int]) -> Fold:
    """Invent a fold of 24 classes from the textures and shapes of the three base folds.

    Args:
        held_out: 0..3, the fold that nothing is taken from.
        key: non-negative integers; the same key gives the same fold.
    """
    rng = _stream(held_out, *key)
    base = [fold for fold in range(FOLDS) if fold != held_out]
    textures = [texture for fold in base for texture in TEXTURES[fold]]
    shapes = [shape for fold in base for shape in SHAPES[fold]]
    return combine(
        int(rng.integers(FOLDS)),
        0,
        [_texture(rng, textures) for _ in range(_POOL)],
        [_shape(rng, shapes) for _ in range(_POOL)],
    )


class InventedEpisodes:
    """Drawn episodes, each of a class that no other episode has.

    Args:
        held_out: 0..3, the fold that nothing is taken from.
        shots: supports per episode, at least 1.
        seed: at least 0.
        image_size: side of the square images in pixels, at least 32.

    Raises:
        UsageError: an argument outside its range.
    """

    def __init__(self, held_out: int, shots: int, seed: int, image_size: int) -> None:
        if not 0 <= held_out < FOLDS:
            raise UsageError(f"held_out {held_out}: choose one of 0..{FOLDS - 1}")
        check_numbers("train", shots, seed, None)
        check_image_size(image_size)
        self.held_out, self.shots, self.seed = held_out, shots, seed
        self.image_size = image_size

    def __getitem__(self, index: int) -> Episode:
        """Draw episode `index`, any number of at least 0; its class is `NO_CLASS`."""
        fold = invented_fold(self.held_out, (self.seed, index))
        rng = _stream(self.held_out, self.seed, index, 0)
        kind = fold.classes[int(rng.integers(CLASSES_PER_FOLD))]
        samples = []
        for role in range(1 + self.shots):
            rng = _stream(self.held_out, self.seed, index, 1 + role)
            image, mask = render(rng, kind, fold, self.image_size)
            name = f"invented-v{VERSION}/without{self.held_out}/{self.seed}/{index}/{role}"
            samples.append(Sample(image, mask, f"{name}@{self.image_size}", NO_CLASS))
        return Episode(samples[0], tuple(samples[1:]), NO_CLASS, "invented", index)


def _stream(held_out: int, *key: int) -> np.random.Generator:
    return random_stream(int(VERSION), FOLDS, held_out, *key)
