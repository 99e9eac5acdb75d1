"""Classes of the drawn set: new in every part in each fold, and twins."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from fsdino.data.procedural.classes import CLASSES, OBJECT_CLASSES
from fsdino.data.procedural.shapes import NEUTRAL_SHAPES, SHAPES
from fsdino.data.procedural.textures import NEUTRAL_TEXTURES, TEXTURES


def test_folds_share_no_texture_and_no_shape() -> None:
    """A held-out class must be new in every part, by name, by parameters and by appearance."""
    textures = [texture for pool in (*TEXTURES, NEUTRAL_TEXTURES) for texture in pool]
    shapes = [shape for pool in (*SHAPES, NEUTRAL_SHAPES) for shape in pool]
    for pool in (textures, shapes):
        assert len({item.name for item in pool}) == len(pool)
        assert len({(item.family.__name__, item.params) for item in pool}) == len(pool)
    axis = np.linspace(-1, 1, 64, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    for one, other in combinations([texture(u, v) for texture in textures], 2):
        assert np.abs(one - other).mean() > 0.05
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    towards = np.stack([np.cos(angle), np.sin(angle)])
    for here, there in combinations([(s.outline() @ towards).max(axis=0) for s in shapes], 2):
        assert np.abs(here - there).max() > 0.02


def test_a_quarter_of_the_classes_differ_by_arrangement_only() -> None:
    """Only where the parts lie tells twins apart, so that spatial correspondence can matter."""
    paired = 0
    for kind in OBJECT_CLASSES:
        same_parts = [
            other
            for other in OBJECT_CLASSES
            if other is not kind and (other.first, other.second) == (kind.first, kind.second)
        ]
        assert [other.class_id for other in same_parts] == [kind.twin] * len(same_parts)
        if kind.twin is None:
            continue
        paired += 1
        twin = OBJECT_CLASSES[kind.twin]
        assert twin.twin == kind.class_id and twin.fold == kind.fold
        mine, theirs = kind.arrangement, twin.arrangement
        assert mine.direction is not None and theirs.direction is not None
        assert abs((mine.direction - theirs.direction + 180) % 360 - 180) >= 90
        assert (mine.scales, mine.turn, mine.behind) == (theirs.scales, theirs.turn, theirs.behind)
    assert paired == CLASSES // 4


def test_classes_without_a_twin_differ_in_their_textures() -> None:
    """Two classes with equal texture pairs and no twin entry would be accidental twins."""
    for kind, other in combinations(OBJECT_CLASSES, 2):
        if kind.twin != other.class_id:
            assert set(kind.textures) != set(other.textures)
        assert kind.name != other.name
