"""Drawn few-shot episodes: two-part objects among look-alikes, seeded and fast, any size.

A class is two textured parts and their arrangement; nothing else is constant. Eight palettes are
shared by all classes, distractors and clutter and drawn per instance; a class merely wears its
favourite one more often, and distractors borrow the target's. Of the 24 classes of a fold, six
(three pairs of twins) differ from another class by the arrangement alone.

What a picture of a class shows besides it comes from two places only: the class's own fold
(distractors are other classes of that fold, some clutter wears its textures), and a neutral pool
of shapes and textures that no class uses. A model trained without a fold has therefore seen none
of its shapes and textures.

The generator is frozen: results name `VERSION` and `fingerprint()`, and any change of a picture
needs a new version. Randomness comes from Philox streams keyed by integers, drawn before any
pixel is touched, so one key gives one scene at every image size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw

from fsdino.data.episodes import Episode, EpisodeKey, Image, Mask, Provenance, Sample
from fsdino.data.sampling import check_numbers
from fsdino.data.shapes import NEUTRAL_SHAPES, SHAPES, Points, Shape
from fsdino.data.textures import NEUTRAL_TEXTURES, TEXTURES, Floats, Texture
from fsdino.errors import UsageError

VERSION = "1"
FOLDS = 4
CLASSES_PER_FOLD = 24
CLASSES = FOLDS * CLASSES_PER_FOLD
MIN_IMAGE_SIZE = 32

Split: TypeAlias = Literal["train", "val", "base_val"]

_SPLITS: tuple[str, ...] = get_args(Split)


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

# --------------------------------------------------------------------------------------------
# Classes


@dataclass(frozen=True)
class Part:
    """A shape filled with a texture."""

    shape: Shape
    texture: Texture


@dataclass(frozen=True)
class Arrangement:
    """Where the second part sits.

    Attributes:
        name: unique among `ARRANGEMENTS`.
        direction: degrees clockwise from "right" towards which the second part touches the first;
            None puts one inside the other.
        scales: size of the first and of the second part.
        turn: rotation of the second part in degrees, clockwise.
        overlap: how deep the parts' extents overlap, in object units.
        behind: whether the second part is drawn beneath the first.
    """

    name: str
    direction: float | None
    scales: tuple[float, float] = (1.0, 0.9)
    turn: float = 0.0
    overlap: float = 0.22
    behind: bool = False


ARRANGEMENTS = (
    Arrangement("right of", 0.0),
    Arrangement("above", 270.0),
    Arrangement("left of", 180.0),
    Arrangement("below", 90.0),
    Arrangement("inside", None, scales=(1.45, 0.72)),
    Arrangement("around", None, scales=(0.72, 1.45), behind=True),
    Arrangement("slanted on", 315.0, scales=(1.05, 0.85), turn=45.0, overlap=0.5),
    Arrangement("tucked under", 135.0, scales=(0.9, 1.1), turn=-60.0, overlap=0.7, behind=True),
)

# Arrangements of a pair of twins: a quarter or a half turn apart, instances turn by less.
_TWIN_ARRANGEMENTS = ((0, 2), (1, 3), (3, 0))


@dataclass(frozen=True)
class ObjectClass:
    """A class: two parts, their arrangement, and the class that differs by arrangement only."""

    class_id: int
    fold: int
    first: Part
    second: Part
    arrangement: Arrangement
    twin: int | None

    @property
    def name(self) -> str:
        """A readable, unique name."""
        return (
            f"{self.second.texture.name} {self.second.shape.name} {self.arrangement.name} "
            f"{self.first.texture.name} {self.first.shape.name}"
        )

    @property
    def textures(self) -> tuple[Texture, Texture]:
        """Textures of the first and the second part."""
        return self.first.texture, self.second.texture


@dataclass(frozen=True, eq=False)
class Fold:
    """What scenes are made of, the neutral pool aside: 24 classes and the textures they wear."""

    classes: tuple[ObjectClass, ...]
    textures: tuple[Texture, ...]

    def twin(self, kind: ObjectClass) -> ObjectClass | None:
        """The class that differs from another one by arrangement only."""
        return next((other for other in self.classes if other.class_id == kind.twin), None)

    def rivals(self, kind: ObjectClass) -> tuple[list[ObjectClass], list[ObjectClass]]:
        """The other classes, and those of them that share a part's texture; the twin in neither."""
        out = (kind.class_id, kind.twin)
        others = [other for other in self.classes if other.class_id not in out]
        return others, [o for o in others if set(o.textures) & set(kind.textures)]


def combine(fold: int, start: int, textures: Sequence[Texture], shapes: Sequence[Shape]) -> Fold:
    """Return a fold of 21 pairs of textures, and a twin for three of them.

    Args:
        fold: its number, on which the combinations depend.
        start: id of the first class.
        textures, shapes: 8 of each.
    """
    pairs = [(i, (i + step) % 8, step) for step in (1, 2, 3) for i in range(8)][:21]
    originals = {7 * i: (start + 21 + i, *_TWIN_ARRANGEMENTS[i]) for i in range(3)}
    classes, twins = [], []
    for number, (i, j, step) in enumerate(pairs):
        one, other = (3 * i + 2 * step) % 8, (3 * i + 2 * step + 1 + (j + fold) % 7) % 8
        parts = Part(shapes[one], textures[i]), Part(shapes[other], textures[j])
        twin_id, mine, theirs = originals.get(number, (None, (number + i) % 8, 0))
        classes.append(ObjectClass(start + number, fold, *parts, ARRANGEMENTS[mine], twin_id))
        if twin_id is not None:
            arrangement = ARRANGEMENTS[theirs]
            twins.append(ObjectClass(twin_id, fold, *parts, arrangement, start + number))
    return Fold((*classes, *twins), tuple(textures))


_FOLDS = tuple(
    combine(fold, fold * CLASSES_PER_FOLD, TEXTURES[fold], SHAPES[fold]) for fold in range(FOLDS)
)
OBJECT_CLASSES: tuple[ObjectClass, ...] = tuple(kind for fold in _FOLDS for kind in fold.classes)


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


# --------------------------------------------------------------------------------------------
# Scenes: everything random is drawn here, in coordinates of the unit square.

_OTHER = 3  # label of every layer that is not a part of the target
_VISIBLE_AREA = (0.05, 0.36)
_VISIBLE_SHARE = 0.60
_VISIBLE_PART = 0.45


@dataclass(frozen=True, eq=False)
class _Layer:
    """One textured outline of a scene; `label` is 1 or 2 for the target's parts, else 3."""

    outline: Points
    to_texture: Points
    texture: Texture
    colours: Floats
    shade: tuple[float, float]
    label: int
    shadow: float


@dataclass(frozen=True, eq=False)
class _Scene:
    """Layers from back to front, light and sensor noise."""

    layers: tuple[_Layer, ...]
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
) -> _Layer:
    """Pose a piece, and draw its colours, its texture's phase and its shading."""
    phase, shade = rng.random(2), 0.5 * rng.random(2) - 0.25
    shift = 0.25 * (2 * phase - 1) if piece.texture.centred else 40 * phase
    to_texture = piece.to_texture @ np.linalg.inv(matrix)
    to_texture[:2] += shift[:, None] * to_texture[2]
    return _Layer(
        outline=_projected(piece.outline, matrix),
        to_texture=to_texture,
        texture=piece.texture,
        colours=_colours(rng, palette),
        shade=(float(shade[0]), float(shade[1])),
        label=label,
        shadow=shadow,
    )


_EVERYWHERE = np.array([[-0.1, -0.1], [1.1, -0.1], [1.1, 1.1], [-0.1, 1.1]])


def _background(rng: np.random.Generator, fold: Fold, palettes: Sequence[int]) -> Iterator[_Layer]:
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


def _occluder(rng: np.random.Generator, centre: Points, fraction: float, palette: int) -> _Layer:
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
) -> list[_Layer]:
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


def _well_visible(layers: Sequence[_Layer]) -> bool:
    """Whether enough of the target, and of each of its parts, is in the picture and uncovered."""
    seen = _count([(layer.outline, layer.label) for layer in layers], 64)[1:3]
    alone = [(layer.outline / 2 + 0.25, layer.label) for layer in layers if layer.label < _OTHER]
    whole = _count(alone, 128)[1:3]
    low, high = _VISIBLE_AREA
    return bool(
        low <= seen.sum() / 64**2 <= high
        and seen.sum() >= _VISIBLE_SHARE * whole.sum()
        and (seen >= _VISIBLE_PART * whole).all()
    )


def _scene(rng: np.random.Generator, kind: ObjectClass, fold: Fold) -> _Scene:
    """Draw scenes of a class until its object is well visible, at a resolution of its own."""
    while True:
        palettes = (int(rng.random() * len(_PALETTES)), _palette_of(rng, kind))
        front = _foreground(rng, kind, fold, palettes)
        if _well_visible(front):
            break
    gain, slope, noise = 0.86 + 0.2 * rng.random(), 0.5 * rng.random(2) - 0.25, rng.random()
    tint = gain * (1 + 0.05 * (2 * rng.random(3) - 1))
    return _Scene(
        layers=(*_background(rng, fold, palettes), *front),
        gain=(float(tint[0]), float(tint[1]), float(tint[2])),
        slope=(float(slope[0]), float(slope[1])),
        noise=1 + 3.5 * noise,
    )


# --------------------------------------------------------------------------------------------
# Pixels

_SUPERSAMPLING = 4


class _Canvas:
    """A square picture being painted back to front: colours, and the target's visibility."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.offset = (max(1, round(0.010 * size)), max(1, round(0.014 * size)))
        rows, columns = size + self.offset[1], size + self.offset[0]
        self.planes = np.zeros((3, rows, columns), dtype=np.float32)
        self.visible = np.zeros((rows, columns), dtype=np.float32)
        self.ticks = (np.arange(size) + 0.5) / size

    def paint(self, layer: _Layer) -> None:
        """Paint one layer and the shadow it throws."""
        low = np.clip(np.floor(layer.outline.min(axis=0) * self.size), 0, self.size).astype(int)
        high = np.clip(np.ceil(layer.outline.max(axis=0) * self.size), 0, self.size).astype(int)
        (left, top), (right, bottom) = low.tolist(), high.tolist()
        if right <= left or bottom <= top:
            return
        cover = self._cover(layer.outline, left, top, right, bottom)
        if layer.shadow:
            right_by, down_by = self.offset
            below = np.s_[top + down_by : bottom + down_by, left + right_by : right + right_by]
            self.planes[(slice(None), *below)] *= 1 - layer.shadow * cover
        here = np.s_[top:bottom, left:right]
        blend = layer.texture(*self._coordinates(layer.to_texture, left, top, right, bottom))
        base, difference = layer.colours[0], layer.colours[1] - layer.colours[0]
        colour = base[:, None, None] + difference[:, None, None] * blend
        colour *= self._light(layer, left, top, right, bottom)
        region = self.planes[(slice(None), *here)]
        colour -= region
        colour *= cover
        region += colour
        shown = self.visible[here]
        shown *= 1 - cover
        if layer.label < _OTHER:
            shown += cover

    def finish(self, scene: _Scene, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Light the scene, add noise, and return the image and the target's visible mask."""
        size = self.size
        slope = np.multiply.outer(scene.slope, self.ticks - 0.5).astype(np.float32)
        light = 1 + slope[0] + slope[1][:, None]
        gain = np.array(scene.gain, dtype=np.float32)[:, None, None]
        planes = self.planes[:, :size, :size] * light * gain
        planes += np.float32(scene.noise) * rng.standard_normal((size, size), dtype=np.float32)
        planes += np.float32(0.5)
        np.clip(planes, 0, 255, out=planes)
        image = np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0))
        return image, self.visible[:size, :size] >= np.float32(0.5)

    def _cover(self, outline: Points, left: int, top: int, right: int, bottom: int) -> Floats:
        """Return how much of each pixel of the window the outline covers, 0..1."""
        side = _SUPERSAMPLING
        board = Pillow.new("L", ((right - left) * side, (bottom - top) * side))
        points = (outline * self.size - np.array([left, top])) * side - 0.5
        ImageDraw.Draw(board).polygon(points.ravel().tolist(), fill=255)
        return np.asarray(board.reduce(side), dtype=np.float32) * np.float32(1 / 255)

    def _coordinates(
        self, matrix: Points, left: int, top: int, right: int, bottom: int
    ) -> tuple[Floats, Floats]:
        """Return texture coordinates u, v at the window's pixel centres."""
        across = np.multiply.outer(matrix[:, 0], self.ticks[left:right]).astype(np.float32)
        down = np.multiply.outer(matrix[:, 1], self.ticks[top:bottom]) + matrix[:, 2:]
        sums = across[:, None, :] + down.astype(np.float32)[:, :, None]
        np.reciprocal(sums[2], out=sums[2])
        sums[:2] *= sums[2]
        return sums[0], sums[1]

    def _light(self, layer: _Layer, left: int, top: int, right: int, bottom: int) -> Floats:
        """Return a brightness that falls off linearly across the layer's extent."""
        low, high = layer.outline.min(axis=0), layer.outline.max(axis=0)
        middle, extent = (low + high) / 2, high - low
        across = layer.shade[0] * (self.ticks[left:right] - middle[0]) / extent[0]
        down = layer.shade[1] * (self.ticks[top:bottom] - middle[1]) / extent[1]
        light: Floats = (1 + across.astype(np.float32)) + down.astype(np.float32)[:, None]
        return light


def render_sample(
    class_id: int, key: Sequence[int], image_size: int = 112, name: str | None = None
) -> Sample:
    """Draw one scene with an object of a class.

    Args:
        class_id: 0..95; `OBJECT_CLASSES[class_id]` describes it.
        key: non-negative integers; the same key gives the same scene at every size.
        image_size: side in pixels, at least 32.
        name: the sample's name; default: one made of the arguments.

    Returns:
        A square sample; its mask is the visible part of the object.

    Raises:
        UsageError: an unknown class, a negative number in the key, a size below 32.
    """
    if not 0 <= class_id < CLASSES:
        raise UsageError(f"class_id {class_id}: choose one of 0..{CLASSES - 1}")
    if min(key, default=0) < 0:
        raise UsageError(f"key {tuple(key)}: use integers of at least 0")
    check_size(image_size)
    if name is None:
        name = f"procedural-v{VERSION}/class{class_id}/{'-'.join(map(str, key))}@{image_size}"
    kind = OBJECT_CLASSES[class_id]
    entropy = np.random.SeedSequence([int(VERSION), class_id, *key])
    rng = np.random.Generator(np.random.Philox(entropy))
    image, mask = render(rng, kind, _FOLDS[kind.fold], image_size)
    return Sample(image=image, mask=mask, name=name, class_id=class_id)


def render(
    rng: np.random.Generator, kind: ObjectClass, fold: Fold, image_size: int
) -> tuple[Image, Mask]:
    """Draw one scene with an object of one of a fold's classes: an image and the visible mask."""
    scene = _scene(rng, kind, fold)
    canvas = _Canvas(image_size)
    for layer in scene.layers:
        canvas.paint(layer)
    return canvas.finish(scene, rng)


def check_size(image_size: int) -> None:
    """Refuse images that are too small to draw.

    Raises:
        UsageError: names the least side.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UsageError(f"image_size {image_size}: use at least {MIN_IMAGE_SIZE} pixels")


class ProceduralEpisodes:
    """Drawn episodes of one fold; implements `fsdino.data.episodes.Episodes`.

    Classes take turns: every 24 (val) or 72 (otherwise) consecutive episodes ask for each class
    once, in a drawn order. The query and the first k supports of episode i are the same for every
    number of shots K >= k, so that shots can be compared on equal queries.

    Args:
        fold: 0..3, the fold that is held out: classes 24 * fold .. 24 * fold + 23.
        split: "train" draws the classes of the other three folds; "base_val" draws the same
            classes from a stream of its own, to validate without a look at the held-out fold;
            "val" draws the held-out classes.
        shots: supports per episode, at least 1.
        seed: at least 0.
        episodes: how many there are, at least 1.
        image_size: side of the square images in pixels, at least 32.

    Raises:
        UsageError: an argument outside its range.
    """

    def __init__(
        self,
        fold: int,
        split: Split,
        shots: int = 1,
        seed: int = 0,
        episodes: int = 1000,
        image_size: int = 112,
    ) -> None:
        if not 0 <= fold < FOLDS:
            raise UsageError(f"fold {fold}: choose one of 0..{FOLDS - 1}")
        check_numbers(split, shots, seed, episodes)
        check_size(image_size)
        self.fold = fold
        self.split: Split = split
        self.shots = shots
        self.seed = seed
        self.image_size = image_size
        self.classes: tuple[int, ...] = tuple(
            kind.class_id for kind in OBJECT_CLASSES if (kind.fold == fold) == (split == "val")
        )
        self.class_names: Mapping[int, str] = {c: OBJECT_CLASSES[c].name for c in self.classes}
        self._episodes = episodes
        self._key = (fold, _SPLITS.index(split), seed)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return self._episodes

    def __getitem__(self, index: int) -> Episode:
        """Draw episode `index`; IndexError outside 0..len - 1."""
        if not 0 <= index < self._episodes:
            raise IndexError(f"episode {index} of {self._episodes}")
        class_id = self._class_of(index)
        query, *supports = (
            render_sample(
                class_id, (*self._key, index, role), self.image_size, self._name(index, role)
            )
            for role in range(1 + self.shots)
        )
        return Episode(query, tuple(supports), class_id, self.class_names[class_id], index)

    def key(self, index: int) -> EpisodeKey:
        """Return what episode `index` is made of; IndexError outside 0..len - 1."""
        if not 0 <= index < self._episodes:
            raise IndexError(f"episode {index} of {self._episodes}")
        query, *supports = (self._name(index, role) for role in range(1 + self.shots))
        return EpisodeKey(self._class_of(index), query, tuple(supports))

    @property
    def provenance(self) -> Provenance:
        """The generator's fingerprint stands for the lists, which it does not need."""
        return Provenance(
            dataset="procedural",
            fold=self.fold,
            split=self.split,
            sampling="seeded",
            lists="generated",
            lists_hash=fingerprint(),
            mask_source="generated",
        )

    def _class_of(self, index: int) -> int:
        """Return the class of an episode: the classes' order is drawn anew for each round."""
        turn, place = divmod(index, len(self.classes))
        entropy = np.random.SeedSequence([int(VERSION), CLASSES, *self._key, turn])
        order = np.random.Generator(np.random.Philox(entropy)).permutation(len(self.classes))
        return self.classes[int(order[place])]

    def _name(self, index: int, role: int) -> str:
        title = "query" if role == 0 else f"support{role}"
        return (
            f"procedural-v{VERSION}/fold{self.fold}/{self.split}/{self.seed}/{index}/"
            f"{title}@{self.image_size}"
        )


@cache
def fingerprint() -> str:
    """Return a SHA-256 over an image and mask of every twelfth class, at 112 pixels.

    Images and masks are averaged over 28 x 28 pixels and rounded to 16 levels before hashing:
    another processor's last bit of a sine changes nothing, another scene does.
    """
    digest = hashlib.sha256(VERSION.encode())
    for sample in _fingerprinted():
        mask = sample.mask[..., None] * np.float64(255)
        stack = np.concatenate([sample.image.astype(np.float64), mask], axis=2)
        means = stack.reshape(4, 28, 4, 28, 4).mean(axis=(1, 3))
        digest.update((means // 16).astype(np.uint8).tobytes())
    return digest.hexdigest()


def exact_fingerprint() -> str:
    """Return a SHA-256 over the same pictures bit for bit; it may differ between platforms."""
    digest = hashlib.sha256(VERSION.encode())
    for sample in _fingerprinted():
        digest.update(sample.image.tobytes())
        digest.update(sample.mask.tobytes())
    return digest.hexdigest()


def _fingerprinted() -> Iterator[Sample]:
    return (render_sample(class_id, (0,), 112) for class_id in range(0, CLASSES, 12))
