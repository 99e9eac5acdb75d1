"""Scenes of the drawn set: fold-clean, and hard where they should be."""

from __future__ import annotations

import numpy as np
import pytest

from fsdino.data.procedural import scenes
from fsdino.data.procedural.canvas import Canvas
from fsdino.data.procedural.classes import FOLD_CLASSES, OBJECT_CLASSES
from fsdino.data.procedural.scenes import Scene, draw_scene
from fsdino.data.procedural.textures import NEUTRAL_TEXTURES, TEXTURES


def philox(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def scene(rng: np.random.Generator, class_id: int) -> Scene:
    """Draw a scene of one of the set's classes."""
    kind = OBJECT_CLASSES[class_id]
    return draw_scene(rng, kind, FOLD_CLASSES[kind.fold])


@pytest.mark.parametrize("class_id", [0, 21, 30, 55, 71, 72, 95])
def test_a_scene_wears_only_its_folds_and_neutral_textures(class_id: int) -> None:
    """Clutter and distractors must not show a held-out texture to training either."""
    fold = OBJECT_CLASSES[class_id].fold
    allowed = {t.name for t in (*TEXTURES[fold], *NEUTRAL_TEXTURES)}
    worn = set()
    for key in range(12):
        layers = scene(philox(key), class_id).layers
        worn |= {layer.texture.name for layer in layers}
        target = [layer.texture for layer in layers if layer.label in (1, 2)]
        assert set(target) == set(OBJECT_CLASSES[class_id].textures)
    assert worn <= allowed and len(worn) > 6


@pytest.mark.parametrize("class_id", [0, 5, 95])
def test_distractors_are_other_classes_of_the_fold_and_often_the_twin(class_id: int) -> None:
    """A target alone in its picture could be found without looking at the support."""
    kind = OBJECT_CLASSES[class_id]
    fold = FOLD_CLASSES[kind.fold]
    drawn = [
        [other.class_id for other in scenes._distractors(philox(9, key), kind, fold)]
        for key in range(200)
    ]
    assert {len(chosen) for chosen in drawn} == {1, 2, 3}
    for chosen in drawn:
        assert class_id not in chosen and len(set(chosen)) == len(chosen)
        assert {OBJECT_CLASSES[other].fold for other in chosen} == {kind.fold}
    with_twin = np.mean([kind.twin in chosen for chosen in drawn])
    assert with_twin == 0 if kind.twin is None else 0.35 < with_twin < 0.65
    others = [c for chosen in drawn for c in chosen if c != kind.twin]
    sharing = np.mean([bool(set(OBJECT_CLASSES[c].textures) & set(kind.textures)) for c in others])
    assert sharing > 0.5


def test_distractors_are_in_the_picture_and_outside_the_mask() -> None:
    """Painting everything but the distractors must change pixels, none of them in the mask."""
    for key in range(6):
        picture = scene(philox(key), 40)
        textured = [layer for layer in picture.layers if layer.texture in TEXTURES[1]]
        shown = [layer for layer in textured if layer.label == 3 and layer.shadow > 0.3]
        assert len(shown) in (2, 4, 6)
        canvas = Canvas(64)
        for layer in picture.layers:
            canvas.paint(layer)
        without = Canvas(64)
        for layer in picture.layers:
            if not any(layer is distractor for distractor in shown):
                without.paint(layer)
        changed = (canvas.planes != without.planes).any(axis=0)[:64, :64]
        assert changed.mean() > 0.02
        assert (canvas.visible <= without.visible).all()


def test_colour_does_not_name_the_class() -> None:
    """Instances of a class must come in several palettes, and twins in the same ones."""
    for kind in OBJECT_CLASSES[:24]:
        rng = philox(kind.class_id)
        palettes = [scenes._palette_of(rng, kind) for _ in range(600)]
        counts = np.bincount(palettes, minlength=8)
        assert counts.min() > 15  # each is expected 37.5 times
        assert counts.max() < 400  # the favourite is expected 337.5 times
        if kind.twin is not None:
            rng = philox(kind.class_id)
            twin = OBJECT_CLASSES[kind.twin]
            assert [scenes._palette_of(rng, twin) for _ in range(600)] == palettes
