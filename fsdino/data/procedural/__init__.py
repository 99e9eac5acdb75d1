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

from fsdino.data.procedural.classes import (
    CLASSES,
    CLASSES_PER_FOLD,
    FOLDS,
    OBJECT_CLASSES,
    VERSION,
    ObjectClass,
)
from fsdino.data.procedural.episodes import (
    ProceduralEpisodes,
    Split,
    exact_fingerprint,
    fingerprint,
    render_sample,
)

__all__ = [
    "CLASSES",
    "CLASSES_PER_FOLD",
    "FOLDS",
    "OBJECT_CLASSES",
    "VERSION",
    "ObjectClass",
    "ProceduralEpisodes",
    "Split",
    "exact_fingerprint",
    "fingerprint",
    "render_sample",
]
