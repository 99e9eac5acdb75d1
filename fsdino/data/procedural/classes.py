"""Classes of the procedural set: two textured parts and their arrangement, and folds of 24."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fsdino.data.procedural.shapes import SHAPES, Shape
from fsdino.data.procedural.textures import TEXTURES, Texture

VERSION = "1"  # of the generator: any change of a picture needs a new one
FOLDS = 4
CLASSES_PER_FOLD = 24
CLASSES = FOLDS * CLASSES_PER_FOLD


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


FOLD_CLASSES = tuple(
    combine(fold, fold * CLASSES_PER_FOLD, TEXTURES[fold], SHAPES[fold]) for fold in range(FOLDS)
)
OBJECT_CLASSES: tuple[ObjectClass, ...] = tuple(
    kind for fold in FOLD_CLASSES for kind in fold.classes
)
