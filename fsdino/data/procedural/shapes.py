"""Shapes of the procedural set, and which fold has which.

A shape is a closed outline, float64 [N, 2], y downwards, in any unit, which `Shape.outline`
normalises. Each family serves two folds with parameters far apart; no fold repeats a family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Points: TypeAlias = npt.NDArray[np.floating[Any]]  # float64
Params: TypeAlias = tuple[float, ...]


def _polar(radius: Callable[[Points], Points], points: int = 48) -> Points:
    angle = np.arange(points) * (2 * math.pi / points)
    r = radius(angle)
    return np.stack([r * np.sin(angle), -r * np.cos(angle)], axis=1)


def _superellipse(power: float, aspect: float) -> Points:
    angle = np.arange(48) * (2 * math.pi / 48)
    cosine, sine = np.cos(angle), np.sin(angle)
    x = np.sign(cosine) * np.abs(cosine) ** (2 / power) * aspect
    return np.stack([x, np.sign(sine) * np.abs(sine) ** (2 / power)], axis=1)


def _polygon(sides: float) -> Points:
    return _polar(np.ones_like, int(sides))


def _star(tips: float, inner: float) -> Points:
    return _polar(lambda a: np.where(np.arange(len(a)) % 2 == 0, 1.0, inner), 2 * int(tips))


def _gear(teeth: float, depth: float) -> Points:
    steps = 8 * int(teeth)
    return _polar(lambda a: np.where(np.arange(len(a)) % 8 < 4, 1.0, 1 - depth), steps)


def _flower(petals: float, depth: float) -> Points:
    return _polar(lambda a: 1 + depth * np.cos(petals * a), 64)


def _drop(sharpness: float, belly: float) -> Points:
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    width = np.sin(angle) * np.sin(angle / 2) ** sharpness
    return np.stack([belly * width, -np.cos(angle)], axis=1)


def _crescent(offset: float, inner: float) -> Points:
    """A disc without a second disc of radius `inner` whose centre lies `offset` to the right."""
    x = (1 + offset * offset - inner * inner) / (2 * offset)
    start, inner_start = math.acos(x), math.acos((x - offset) / inner)
    outer = np.linspace(start, 2 * math.pi - start, 32)
    back = np.linspace(2 * math.pi - inner_start, inner_start, 24)
    xs = np.concatenate([np.cos(outer), offset + inner * np.cos(back)])
    return np.stack([xs, np.concatenate([np.sin(outer), inner * np.sin(back)])], axis=1)


def _arc(span: float, thickness: float) -> Points:
    """A ring segment of `span` degrees, open at the bottom."""
    half = math.radians(span / 2)
    angle = np.linspace(-half, half, 28)
    angles = np.concatenate([angle, angle[::-1]])
    radii = np.repeat([1.0, 1 - thickness], 28)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _lens(aspect: float, point: float) -> Points:
    x = np.linspace(-1, 1, 24)
    y = aspect * (1 - np.abs(x) ** point)
    return np.concatenate([np.stack([x, -y], axis=1), np.stack([x[::-1], y[::-1]], axis=1)[1:-1]])


def _corners(*numbers: float) -> Points:
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def _arrow(head: float, shaft: float) -> Points:
    h, s = 1 - head, shaft
    return _corners(0, -1, 1, -h, s, -h, s, 1, -s, 1, -s, -h, -1, -h)


def _cross(arm: float, length: float) -> Points:
    a, b = arm, length
    return _corners(
        -a, -1, a, -1, a, -a, b, -a, b, a, a, a, a, 1, -a, 1, -a, a, -b, a, -b, -a, -a, -a
    )


def _ell(width: float, foot: float) -> Points:
    right = width + foot
    return _corners(0, -1, width, -1, width, 1 - width, right, 1 - width, right, 1, 0, 1)


def _tee(width: float, bar: float) -> Points:
    b, w, inner = bar, width / 2, width - 1
    return _corners(-b, -1, b, -1, b, inner, w, inner, w, 1, -w, 1, -w, inner, -b, inner)


def _trapezoid(top: float, lean: float) -> Points:
    return _corners(lean - top, -0.8, lean + top, -0.8, 1, 0.8, -1, 0.8)


def _hourglass(waist: float, width: float) -> Points:
    return _corners(-width, -1, width, -1, waist, 0, width, 1, -width, 1, -waist, 0)


def _zed(width: float, lean: float) -> Points:
    w = width
    return _corners(
        -1, -1, lean, -1, lean, -w / 2, 1, -w / 2, 1, 1, -lean, 1, -lean, w / 2, -1, w / 2
    )


@dataclass(frozen=True)
class Shape:
    """An outline: a family and its parameters."""

    name: str
    family: Callable[..., Points] = field(repr=False)
    params: Params

    @lru_cache(maxsize=256)  # noqa: B019 - a few shapes at a time
    def outline(self) -> Points:
        """Return float64 [N, 2] around the centroid, of area 2.2 unless that is too long."""
        points = self.family(*self.params)
        following = np.roll(points, -1, axis=0)
        cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
        area = cross.sum() / 2
        centroid = ((points + following) * cross[:, None]).sum(axis=0) / (6 * area)
        centred = points - centroid
        longest = float(np.sqrt((centred**2).sum(axis=1)).max())
        scaled: Points = centred * min(math.sqrt(2.2 / abs(float(area))), 1.35 / longest)
        return scaled


SHAPES: tuple[tuple[Shape, ...], ...] = (
    (
        Shape("cushion", _superellipse, (3.5, 1.0)),
        Shape("pentagon", _polygon, (5,)),
        Shape("crescent", _crescent, (0.6, 0.75)),
        Shape("arrow", _arrow, (0.95, 0.45)),
        Shape("plus", _cross, (0.36, 1.0)),
        Shape("drop", _drop, (1.3, 1.0)),
        Shape("flower", _flower, (5, 0.18)),
        Shape("hourglass", _hourglass, (0.28, 0.85)),
    ),
    (
        Shape("star", _star, (5, 0.52)),
        Shape("gear", _gear, (8, 0.22)),
        Shape("ell", _ell, (0.8, 0.8)),
        Shape("tee", _tee, (0.75, 1.0)),
        Shape("arch", _arc, (210, 0.55)),
        Shape("trapezoid", _trapezoid, (0.5, 0.0)),
        Shape("zed", _zed, (0.45, 0.15)),
        Shape("lens", _lens, (0.55, 2.0)),
    ),
    (
        Shape("egg", _superellipse, (2.0, 0.62)),
        Shape("burst", _star, (9, 0.66)),
        Shape("moon", _crescent, (0.95, 0.8)),
        Shape("boot", _ell, (0.6, 1.3)),
        Shape("dagger", _cross, (0.30, 0.65)),
        Shape("horseshoe", _arc, (290, 0.48)),
        Shape("trefoil", _flower, (3, 0.26)),
        Shape("ramp", _trapezoid, (0.35, 0.65)),
    ),
    (
        Shape("hexagon", _polygon, (6,)),
        Shape("cog", _gear, (5, 0.34)),
        Shape("lance", _arrow, (0.65, 0.62)),
        Shape("anvil", _tee, (1.0, 0.8)),
        Shape("turnip", _drop, (0.6, 1.25)),
        Shape("bolt", _zed, (0.9, 0.45)),
        Shape("diabolo", _hourglass, (0.5, 1.0)),
        Shape("leaf", _lens, (0.42, 1.3)),
    ),
)

NEUTRAL_SHAPES = (
    Shape("disc", _superellipse, (2.0, 1.0)),
    Shape("square", _superellipse, (12.0, 1.0)),
    Shape("bar", _superellipse, (8.0, 3.2)),
    Shape("wedge", _polygon, (3,)),
    Shape("pebble", _superellipse, (2.6, 1.5)),
)
