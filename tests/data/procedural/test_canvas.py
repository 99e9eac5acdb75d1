"""Pictures of the drawn set: one scene at every size, with an object to be seen."""

from __future__ import annotations

import numpy as np
import pytest

from fsdino.data.procedural.classes import CLASSES
from fsdino.data.procedural.episodes import render_sample


@pytest.mark.parametrize("size", [32, 33, 57, 112, 225])
def test_any_size_shows_the_same_scene(size: int) -> None:
    """A model trained at one size is asked at another; the masks must describe one scene."""
    for class_id in (3, 77):
        sample = render_sample(class_id, (8,), size)
        assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
        assert sample.mask.shape == (size, size) and sample.mask.dtype == np.bool_
        reference = render_sample(class_id, (8,), 448)
        centres = ((np.arange(size) + 0.5) / size * 448).astype(int)
        expected = reference.mask[np.ix_(centres, centres)]
        iou = (expected & sample.mask).sum() / (expected | sample.mask).sum()
        assert iou > 0.85  # at 32 pixels every second pixel of an object is a rim pixel
        colours = reference.image[np.ix_(centres, centres)].mean(axis=(0, 1))
        assert np.abs(colours - sample.image.mean(axis=(0, 1))).max() < 6


def test_objects_are_visible_but_never_most_of_the_picture() -> None:
    """Empty masks make episodes without an answer, huge ones make any answer right."""
    for class_id in range(CLASSES):
        share = render_sample(class_id, (1, 2), 40).mask.mean()
        assert 0.03 < share < 0.42
