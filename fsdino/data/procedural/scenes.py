"""Scenes of the procedural set: everything random is drawn here, on the unit square.

No pixel is touched, so that one stream of random numbers gives one scene at every image size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw

from fsdino.data.procedural.classes import CLASSES, Fold, ObjectClass
from fsdino.data.procedural.shapes import NEUTRAL_SHAPES, Points
from fsdino.data.procedural.textures import NEUTRAL_TEXTURES, Floats, Texture

OTHER = 3  # label of every layer that is not a part of the target
_VISIBLE_AREA = (0.05, 0.36)
_VISIBLE_SHARE = 0.60
_VISIBLE_PART = 0.45

_PALETTES = (
    ("1d3557", "457b9d", "a8dadc", "f1faee", "e63946"),
    ("264653", "2a9d8f", "e9c46a", "f4a261", "e76f51"),
    ("0b3d2e", "3a7d44", "9dc08b", "f3e9c9", "b5651d"),
    ("3d1e4f", "7b4b94", "c8a2c8", "f6e7f2", "e0a82e"),
    ("202030", "5c6b8a", "b8c4d6", "f5f1e6", "d95d39"),
    ("3b2417", "8a5a3b", "d9b382", "f7ecd8", "5b8a8a"),
    ("0d4f63", "1f8a9e", "7fd1c7", "f9f3d2", "f28482"),
    ("4a1526", "a63d57", "f2a3a0", "fbe8d3", "4f7c4a"),
)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A part in object coordinates: its outline [N, 2] and the map [3, 3] to texture space."""

    outline: Points
    to_texture: Points
    texture: Texture


@dataclass(frozen=True, eq=False)
class _Object:
    """A class's geometry around the origin: pieces from back to front, and its area."""

    pieces: tuple[_Piece, _Piece]
    areas: tuple[float, float]


def _placed(points: Points, scale: float, degrees: float, offset: Points) -> Points:
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    turned: Points = points @ np.array([[cosine, sine], [-sine, cosine]]) * scale + offset
    return turned


def _texture_map(degrees: float, offset: Points) -> Points:
    """Return the map [3, 3] that undoes a part's turn and offset, but not its scale."""
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = -turn @ offset
    return matrix


@lru_cache(maxsize=4 * CLASSES)
def _object(kind: ObjectClass) -> _Object:
    """Return the geometry of a class, centred on its bounding box."""
    plan = kind.arrangement
    origin = np.zeros(2)
    first = _placed(kind.first.shape.outline(), plan.scales[0], 0.0, origin)
    second = _placed(kind.second.shape.outline(), plan.scales[1], plan.turn, origin)
    offset = origin
    if plan.direction is not None:
        angle = math.radians(plan.direction)
        towards = np.array([math.cos(angle), math.sin(angle)])
        reach = float((first @ towards).max() - (second @ towards).min())
        offset = towards * (reach - plan.overlap)
    both = np.concatenate([first, second + offset])
    middle = (both.min(axis=0) + both.max(axis=0)) / 2
    pieces = [
        _Piece(first - middle, _texture_map(0.0, -middle), kind.first.texture),
        _Piece(
            second + offset - middle, _texture_map(plan.turn, offset - middle), kind.second.texture
        ),
    ]
    if plan.behind:
        pieces.reverse()
    counts = _count(
        [(piece.outline / 6 + 0.5, label) for label, piece in enumerate(pieces, 1)], 384
    )
    unit = (6 / 384) ** 2
    return _Object((pieces[0], pieces[1]), (counts[1] * unit, counts[2] * unit))


def _count(outlines: Sequence[tuple[Points, int]], side: int) -> npt.NDArray[np.int64]:
    """Return the pixels of labels 0..3 when outlines on the unit square are painted in order."""
    board = Pillow.new("L", (side, side))
    draw = ImageDraw.Draw(board)
    for outline, label in outlines:
        draw.polygon((outline * side).ravel().tolist(), fill=label)
    return np.bincount(np.asarray(board).ravel(), minlength=4)


@dataclass(frozen=True, eq=False)
class Layer:
    """One textured outline of a scene; `label` is 1 or 2 for the target's parts, else 3."""

    outline: Points
    to_texture: Points
    texture: Texture
    colours: Floats
    shade: tuple[float, float]
    label: int
    shadow: float


@dataclass(frozen=True, eq=False)
class Scene:
    """Layers from back to front, light and sensor noise."""

    layers: tuple[Layer, ...]
    gain: tuple[float, float, float]
    slope: tuple[float, float]
    noise: float


@cache
def _colour_pairs() -> tuple[Floats, ...]:
    """Return for each palette its ordered pairs of contrasting colours, [P, 2, 3] in 0..255."""
    result = []
    for palette in _PALETTES:
        colours = np.array([list(bytes.fromhex(code)) for code in palette], dtype=np.float32)
        luma = colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        first, second = np.nonzero(np.abs(luma[:, None] - luma[None, :]) > 65)
        result.append(np.stack([colours[first], colours[second]], axis=1))
    return tuple(result)


def _colours(rng: np.random.Generator, palette: int) -> Floats:
    """Draw two contrasting colours [2, 3] of a palette, with a small turn of hue and gain."""
    pairs = _colour_pairs()[palette]
    pick, hue, gain = rng.random(3)
    angle = math.radians(24 * (2 * hue - 1))
    cosine, sine = math.cos(angle), math.sin(angle)
    third, root = (1 - cosine) / 3, sine / math.sqrt(3)
    wheel = np.array(
        [
            [cosine + third, third - root, third + root],
            [third + root, cosine + third, third - root],
            [third - root, third + root, cosine + third],
        ],
        dtype=np.float32,
    )
    pair: Floats = pairs[int(pick * len(pairs))] @ wheel * np.float32(0.85 + 0.25 * gain)
    return pair


def _palette_of(rng: np.random.Generator, kind: ObjectClass) -> int:
    """Draw an instance's palette: the class's favourite in half of the cases, else any.

    Eight to sixteen classes share each favourite, and twins do: colour hints, it decides nothing.
    """
    favoured, other = rng.random(2).tolist()
    twin = kind.class_id if kind.twin is None else kind.twin
    favourite = (5 * min(kind.class_id, twin)) % len(_PALETTES)
    return favourite if favoured < 0.5 else int(other * len(_PALETTES))


def _pose(rng: np.random.Generator, area: float, fraction: float, centre: Points) -> Points:
    """Draw the map [3, 3] from object coordinates to the unit square.

    The object turns by up to 28 degrees, is squeezed and sheared mildly, seen in a weak
    perspective, and covers about `fraction` of the square.
    """
    turn, squeeze, shear, *tilt = (2 * rng.random(5) - 1).tolist()
    angle = math.radians(28 * turn)
    cosine, sine = math.cos(angle), math.sin(angle)
    aspect = math.exp(0.14 * squeeze)
    scale = math.sqrt(fraction / area)
    turned = np.array([[cosine, -sine], [sine, cosine]])
    affine = scale * turned @ np.array([[aspect, 0.15 * shear], [0.0, 1 / aspect]])
    vanish = 0.05 * np.array(tilt)
    matrix = np.empty((3, 3))
    matrix[:2, :2] = affine + np.outer(centre, vanish)
    matrix[:2, 2] = centre
    matrix[2, :2] = vanish
    matrix[2, 2] = 1
    return matrix


def _projected(points: Points, matrix: Points) -> Points:
    mapped = points @ matrix[:2, :2].T + matrix[:2, 2]
    result: Points = mapped / (points @ matrix[2, :2] + matrix[2, 2])[:, None]
    return result


def _layer(
    rng: np.random.Generator, piece: _Piece, matrix: Points, palette: int, label: int, shadow: float
) -> Layer:
    """Pose a piece, and draw its colours, its texture's phase and its shading."""
    phase, shade = rng.random(2), 0.5 * rng.random(2) - 0.25
    shift = 0.25 * (2 * phase - 1) if piece.texture.centred else 40 * phase
    to_texture = piece.to_texture @ np.linalg.inv(matrix)
    to_texture[:2] += shift[:, None] * to_texture[2]
    return Layer(
        outline=_projected(piece.outline, matrix),
        to_texture=to_texture,
        texture=piece.texture,
        colours=_colours(rng, palette),
        shade=(float(shade[0]), float(shade[1])),
        label=label,
        shadow=shadow,
    )


_EVERYWHERE = np.array([[-0.1, -0.1], [1.1, -0.1], [1.1, 1.1], [-0.1, 1.1]])


def _background(rng: np.random.Generator, fold: Fold, palettes: Sequence[int]) -> Iterator[Layer]:
    """Draw a textured ground, a large patch of another one, and small clutter.

    The ground is neutral; a quarter of the clutter wears textures of the fold's own pool.
    """
    ground, patch = (rng.random(2) * len(NEUTRAL_TEXTURES)).astype(int).tolist()
    flat = np.eye(3)
    piece = _Piece(_EVERYWHERE, flat, NEUTRAL_TEXTURES[ground])
    everywhere = _layer(rng, piece, _pose(rng, 4.4, 0.16, rng.random(2)), palettes[0], 3, 0.0)
    yield replace(everywhere, outline=_EVERYWHERE)
    shape = NEUTRAL_SHAPES[int(rng.random() * len(NEUTRAL_SHAPES))]
    piece = _Piece(2.2 * shape.outline(), flat, NEUTRAL_TEXTURES[patch])
    yield _layer(rng, piece, _pose(rng, 4.4, 0.16, rng.random(2)), palettes[0], 3, 0.0)
    for _ in range(2 + int(4 * rng.random())):
        shape_draw, wears, texture_draw, size, colour = rng.random(5).tolist()
        pool = fold.textures if wears < 1 / 4 else NEUTRAL_TEXTURES
        piece = _Piece(
            NEUTRAL_SHAPES[int(shape_draw * len(NEUTRAL_SHAPES))].outline(),
            flat,
            pool[int(texture_draw * len(pool))],
        )
        matrix = _pose(rng, 2.2, 0.012 + 0.05 * size, 1.1 * rng.random(2) - 0.05)
        yield _layer(rng, piece, matrix, palettes[int(colour * len(palettes))], 3, 0.25)


def _distractors(rng: np.random.Generator, kind: ObjectClass, fold: Fold) -> list[ObjectClass]:
    """Draw one to three distinct other classes of the fold.

    The first is the twin in half of the scenes of a class that has one. Of the rest, 40 % are
    drawn among the classes that share a part's texture.
    """
    amount, twin_draw = rng.random(2).tolist()
    number = 1 + int(amount > 0.50) + int(amount > 0.88)
    twin = fold.twin(kind)
    chosen = [twin] if twin is not None and twin_draw < 0.5 else []
    everyone, sharing = fold.rivals(kind)
    while len(chosen) < number:
        alike, which = rng.random(2).tolist()
        pool = sharing if alike < 0.4 else everyone
        candidate = pool[int(which * len(pool))]
        if candidate not in chosen:
            chosen.append(candidate)
    return chosen


def _centres(rng: np.random.Generator, number: int) -> list[Points]:
    """Draw centres that keep some distance: each is the loneliest of five candidates."""
    centres: list[Points] = [0.2 + 0.6 * rng.random(2)]
    while len(centres) < number:
        candidates = 0.16 + 0.68 * rng.random((5, 2))
        gaps = ((candidates[:, None] - np.array(centres)[None]) ** 2).sum(axis=2).min(axis=1)
        centres.append(candidates[int(gaps.argmax())])
    return centres


def _occluder(rng: np.random.Generator, centre: Points, fraction: float, palette: int) -> Layer:
    """Draw a neutral piece over the rim of an object that covers `fraction` of the square."""
    angle, shape, texture = rng.random(3).tolist()
    angle *= 2 * math.pi
    reach = 0.6 * math.sqrt(fraction)
    piece = _Piece(
        NEUTRAL_SHAPES[int(shape * len(NEUTRAL_SHAPES))].outline(),
        np.eye(3),
        NEUTRAL_TEXTURES[int(texture * len(NEUTRAL_TEXTURES))],
    )
    middle = centre + reach * np.array([math.cos(angle), math.sin(angle)])
    return _layer(rng, piece, _pose(rng, 2.2, 0.18 * fraction, middle), palette, 3, 0.35)


def _foreground(
    rng: np.random.Generator, kind: ObjectClass, fold: Fold, palettes: Sequence[int]
) -> list[Layer]:
    """Draw the target and its distractors in random depth order, then occluders.

    All objects follow one law of size, place, colour and occlusion; only `_well_visible` treats
    the target apart. A distractor borrows the target's palette (`palettes[1]`) half of the time.
    """
    kinds = [kind, *_distractors(rng, kind, fold)]
    centres = _centres(rng, len(kinds))
    crowd = (1.05, 1.0, 0.8)[len(kinds) - 2]
    layers, occluders = [], []
    for index, place in enumerate(rng.permutation(len(kinds)).tolist()):
        size, same, hides, depth = rng.random(4).tolist()
        fraction = crowd * 0.13 * 2.3**size
        geometry = _object(kinds[index])
        alike = index == 0 or same < 0.5
        palette = palettes[1] if alike else _palette_of(rng, kinds[index])
        matrix = _pose(rng, sum(geometry.areas), fraction, centres[place])
        labels = (1, 2) if index == 0 else (3, 3)
        parts = [
            _layer(rng, piece, matrix, palette, label, 0.35)
            for piece, label in zip(geometry.pieces, labels, strict=True)
        ]
        layers.append((depth, parts))
        if hides < 0.3:
            occluders.append(_occluder(rng, centres[place], fraction, palettes[0]))
    layers.sort(key=lambda entry: entry[0])
    return [layer for _, parts in layers for layer in parts] + occluders


def _well_visible(layers: Sequence[Layer]) -> bool:
    """Whether enough of the target, and of each of its parts, is in the picture and uncovered."""
    seen = _count([(layer.outline, layer.label) for layer in layers], 64)[1:3]
    alone = [(layer.outline / 2 + 0.25, layer.label) for layer in layers if layer.label < OTHER]
    whole = _count(alone, 128)[1:3]
    low, high = _VISIBLE_AREA
    return bool(
        low <= seen.sum() / 64**2 <= high
        and seen.sum() >= _VISIBLE_SHARE * whole.sum()
        and (seen >= _VISIBLE_PART * whole).all()
    )


def draw_scene(rng: np.random.Generator, kind: ObjectClass, fold: Fold) -> Scene:
    """Draw scenes of a class until its object is well visible, at a resolution of its own."""
    while True:
        palettes = (int(rng.random() * len(_PALETTES)), _palette_of(rng, kind))
        front = _foreground(rng, kind, fold, palettes)
        if _well_visible(front):
            break
    gain, slope, noise = 0.86 + 0.2 * rng.random(), 0.5 * rng.random(2) - 0.25, rng.random()
    tint = gain * (1 + 0.05 * (2 * rng.random(3) - 1))
    return Scene(
        layers=(*_background(rng, fold, palettes), *front),
        gain=(float(tint[0]), float(tint[1]), float(tint[2])),
        slope=(float(slope[0]), float(slope[1])),
        noise=1 + 3.5 * noise,
    )
