"""Textures of the drawn set."""

from __future__ import annotations

import numpy as np

from fsdino.data.procedural.textures import NEUTRAL_TEXTURES, TEXTURES


def test_textures_stay_in_range_and_single_precision() -> None:
    """Blends outside 0..1 leave the palette; double precision halves the speed."""
    axis = np.linspace(-45, 45, 128, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    for texture in (t for pool in (*TEXTURES, NEUTRAL_TEXTURES) for t in pool):
        blend = texture(u, v)
        assert blend.dtype == np.float32 and blend.shape == u.shape
        assert blend.min() >= 0 and blend.max() <= 1
