"""Textures of the procedural set, and which fold wears which.

A texture is a function of object coordinates (u, v) to a blend in [0, 1] between two colours.
Frequencies are cycles per object unit; a part is about 1.6 units across. Each family serves two
folds with parameters far apart; no fold repeats a family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating[Any]]  # float32 all the way
Params: TypeAlias = tuple[float, ...]


def _turned(u: Floats, v: Floats, degrees: float) -> tuple[Floats, Floats]:
    """Return coordinates in axes turned by `degrees`."""
    cosine = np.float32(math.cos(math.radians(degrees)))
    sine = np.float32(math.sin(math.radians(degrees)))
    return cosine * u + sine * v, cosine * v - sine * u


def _fraction(x: Floats) -> Floats:
    return x - np.floor(x)


def _triangle(x: Floats) -> Floats:
    """Triangle wave of period 1: 1 at integers, 0 halfway between them."""
    return np.abs(2 * _fraction(x) - 1)


def _edge(x: Floats, softness: float) -> Floats:
    """0 below zero, 1 above it, linear over `softness`."""
    ramp: Floats = np.clip(x * np.float32(1 / softness) + np.float32(0.5), 0, 1)
    return ramp


def _stripes(u: Floats, v: Floats, frequency: float, angle: float, duty: float) -> Floats:
    x, _ = _turned(u, v, angle)
    return _edge(_triangle(frequency * x) - (1 - duty), 0.35)


def _waves(u: Floats, v: Floats, frequency: float, angle: float, swing: float) -> Floats:
    x, y = _turned(u, v, angle)
    bent = x + swing * np.sin(np.float32(2 * math.pi * 1.2) * y)
    return _edge(_triangle(frequency * bent) - 0.5, 0.35)


def _zigzag(u: Floats, v: Floats, frequency: float, angle: float, swing: float) -> Floats:
    x, y = _turned(u, v, angle)
    return _edge(_triangle(frequency * (x + swing * _triangle(frequency * 0.75 * y))) - 0.5, 0.35)


def _checks(u: Floats, v: Floats, frequency: float, angle: float) -> Floats:
    x, y = _turned(u, v, angle)
    product = (_triangle(frequency * x) - 0.5) * (_triangle(frequency * y) - 0.5)
    return _edge(product, 0.10)


def _dots(u: Floats, v: Floats, frequency: float, angle: float, radius: float) -> Floats:
    x, y = _turned(u, v, angle)
    across = _fraction(frequency * x) - np.float32(0.5)
    down = _fraction(frequency * y) - np.float32(0.5)
    return _edge(radius * radius - across * across - down * down, 0.10)


def _honeycomb(u: Floats, v: Floats, frequency: float, angle: float, radius: float) -> Floats:
    x, y = _turned(u, v, angle)
    row = frequency * 1.155 * y
    index = np.floor(row)
    across = _fraction(frequency * x + 0.5 * index) - np.float32(0.5)
    down = (row - index - np.float32(0.5)) * np.float32(0.866)
    return _edge(radius * radius - across * across - down * down, 0.10)


def _rings(u: Floats, v: Floats, frequency: float, duty: float) -> Floats:
    return _edge(_triangle(frequency * np.sqrt(u * u + v * v)) - (1 - duty), 0.35)


def _spokes(u: Floats, v: Floats, arms: float, twist: float) -> Floats:
    turn = np.arctan2(v, u) * np.float32(arms / (2 * math.pi))
    return _edge(_triangle(turn + twist * np.sqrt(u * u + v * v)) - 0.5, 0.30)


def _grid(u: Floats, v: Floats, frequency: float, angle: float, width: float) -> Floats:
    x, y = _turned(u, v, angle)
    lines = np.maximum(_triangle(frequency * x), _triangle(frequency * y))
    return _edge(lines - (1 - width), 0.25)


def _bricks(u: Floats, v: Floats, frequency: float, angle: float, length: float) -> Floats:
    x, y = _turned(u, v, angle)
    row = frequency * y
    joint = _triangle(frequency / length * x + 0.5 * np.floor(row))
    mortar = np.maximum(_triangle(row) - 0.68, (joint - 1) * length + 0.32)
    return _edge(mortar, 0.25)


def _crosses(u: Floats, v: Floats, frequency: float, angle: float, width: float) -> Floats:
    x, y = _turned(u, v, angle)
    across = np.abs(_fraction(frequency * x) - np.float32(0.5))
    down = np.abs(_fraction(frequency * y) - np.float32(0.5))
    arms = width - np.minimum(across, down)
    return _edge(np.minimum(arms, 0.40 - np.maximum(across, down)), 0.12)


def _triangles(u: Floats, v: Floats, frequency: float, angle: float, slant: float) -> Floats:
    x, y = _turned(u, v, angle)
    height = _fraction(frequency * y)
    return _edge(_triangle(frequency * x + slant * height) - height, 0.25)


def _scales(u: Floats, v: Floats, frequency: float, angle: float, rim: float) -> Floats:
    x, y = _turned(u, v, angle)
    row = frequency * 1.6 * y
    index = np.floor(row)
    across = _fraction(frequency * x + 0.5 * index) - np.float32(0.5)
    down = row - index
    arc = np.sqrt(across * across * 4 + down * down)
    scale: Floats = np.clip(_fraction(arc) * rim, 0, 1)
    return scale


def _plaid(u: Floats, v: Floats, frequency: float, angle: float, ratio: float) -> Floats:
    x, y = _turned(u, v, angle)
    warp = _edge(_triangle(frequency * x) - 0.5, 0.3)
    weft = _edge(_triangle(frequency * ratio * y) - 0.5, 0.3)
    return np.float32(0.5) * (warp + weft)


@cache
def _lattice() -> Floats:
    """Return 64 x 64 uniform numbers, flat: the same for everybody, forever."""
    return np.random.Generator(np.random.Philox(20240501)).random(64 * 64, dtype=np.float32)


def _noise(u: Floats, v: Floats) -> Floats:
    """Value noise in [0, 1] with one lattice point per unit."""
    column, row = np.floor(u), np.floor(v)
    across, down = u - column, v - row
    across *= across * (3 - 2 * across)
    down *= down * (3 - 2 * down)
    left, top = column.astype(np.int32) & 63, row.astype(np.int32) & 63
    right, bottom = (left + 1) & 63, ((top + 1) & 63) << 6
    top <<= 6
    table = _lattice()
    upper = table.take(top + left)
    upper += across * (table.take(top + right) - upper)
    lower = table.take(bottom + left)
    lower += across * (table.take(bottom + right) - lower)
    upper += down * (lower - upper)
    return upper


def _blotches(u: Floats, v: Floats, frequency: float, stretch: float) -> Floats:
    return _edge(_noise(frequency * u, frequency * stretch * v) - 0.5, 0.12)


def _cells(u: Floats, v: Floats, frequency: float, wall: float) -> Floats:
    """Cell walls: where the two nearest points of a jittered lattice are equally near."""
    x, y = frequency * u, frequency * v
    column, row = np.floor(x), np.floor(y)
    left, top = column.astype(np.int32), row.astype(np.int32)
    across, down = x - column, y - row
    nearest = np.full_like(u, 9.0)
    second = np.full_like(u, 9.0)
    table = _lattice()
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            index = (((top + i) & 63) << 6) + ((left + j) & 63)
            dx = table.take(index) + (np.float32(j) - across)
            dy = table.take(4095 - index) + (np.float32(i) - down)
            distance = dx * dx + dy * dy
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
    return _edge(wall - (np.sqrt(second) - np.sqrt(nearest)), 0.18)


def _clouds(u: Floats, v: Floats, frequency: float) -> Floats:
    coarse = _noise(frequency * u, frequency * v)
    return np.float32(0.75) * coarse + np.float32(0.25) * _noise(
        3 * frequency * u + 17, 3 * frequency * v + 5
    )


def _grain(u: Floats, v: Floats, frequency: float, stretch: float) -> Floats:
    return _noise(frequency * u, frequency * stretch * v)


def _wash(u: Floats, v: Floats, slope: float) -> Floats:
    return np.clip(np.float32(0.5) + slope * (u + np.float32(0.3) * v), 0, 1)


def _marble(u: Floats, v: Floats, frequency: float, swirl: float) -> Floats:
    return _triangle(frequency * u + swirl * _noise(1.4 * frequency * u, 1.4 * frequency * v))


@dataclass(frozen=True)
class Texture:
    """A pattern: a family and its parameters. `centred` ones grow from the part's middle."""

    name: str
    family: Callable[..., Floats] = field(repr=False)
    params: Params = ()
    centred: bool = False

    def __call__(self, u: Floats, v: Floats) -> Floats:
        """Return the blend in [0, 1] at coordinates u, v, float32 of one shape."""
        return self.family(u, v, *self.params)


TEXTURES: tuple[tuple[Texture, ...], ...] = (
    (
        Texture("pinstriped", _stripes, (2.6, 0.0, 0.45)),
        Texture("checked", _checks, (1.3, 0.0)),
        Texture("dotted", _dots, (2.1, 0.0, 0.30)),
        Texture("ringed", _rings, (2.2, 0.5), centred=True),
        Texture("cellular", _cells, (1.9, 0.16)),
        Texture("zigzagged", _zigzag, (1.9, 0.0, 0.45)),
        Texture("bricked", _bricks, (2.2, 0.0, 2.0)),
        Texture("crossed", _crosses, (1.7, 0.0, 0.13)),
    ),
    (
        Texture("wavy", _waves, (2.2, 0.0, 0.18)),
        Texture("gridded", _grid, (2.0, 0.0, 0.30)),
        Texture("honeycombed", _honeycomb, (2.2, 0.0, 0.38)),
        Texture("spoked", _spokes, (9.0, 0.0), centred=True),
        Texture("blotched", _blotches, (3.0, 1.0)),
        Texture("scaly", _scales, (1.6, 0.0, 1.2)),
        Texture("toothed", _triangles, (1.7, 0.0, 0.0)),
        Texture("plaid", _plaid, (1.9, 0.0, 1.0)),
    ),
    (
        Texture("banded", _stripes, (1.5, 60.0, 0.50)),
        Texture("spotted", _honeycomb, (1.4, 30.0, 0.28)),
        Texture("rippled", _rings, (3.2, 0.4), centred=True),
        Texture("streaked", _blotches, (2.2, 2.6)),
        Texture("jagged", _zigzag, (1.5, 90.0, 0.75)),
        Texture("meshed", _grid, (2.4, 45.0, 0.42)),
        Texture("starred", _crosses, (2.0, 45.0, 0.20)),
        Texture("sailed", _triangles, (1.4, 90.0, 0.5)),
    ),
    (
        Texture("billowed", _waves, (1.6, 75.0, 0.32)),
        Texture("harlequin", _checks, (1.0, 45.0)),
        Texture("beaded", _dots, (1.6, 45.0, 0.38)),
        Texture("whirled", _spokes, (5.0, 0.9), centred=True),
        Texture("cracked", _cells, (1.3, 0.30)),
        Texture("tiled", _bricks, (1.7, 90.0, 1.4)),
        Texture("feathered", _scales, (1.2, 180.0, 0.95)),
        Texture("tartan", _plaid, (1.4, 30.0, 2.0)),
    ),
)

NEUTRAL_TEXTURES = (
    Texture("cloudy", _clouds, (1.1,)),
    Texture("misty", _clouds, (2.0,)),
    Texture("grained", _grain, (0.7, 5.0)),
    Texture("speckled", _grain, (5.5, 1.0)),
    Texture("washed", _wash, (0.35,), centred=True),
    Texture("marbled", _marble, (0.9, 1.8)),
)
