"""A second, nearer view of an annotated image."""

from __future__ import annotations

import numpy as np
import torch

from fsdino.models.views import closer


def test_a_closer_view_is_a_mirrored_crop_around_the_object() -> None:
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    mask = np.zeros((10, 20), bool)
    mask[2:4, 4:6] = True  # its middle: row 2.5, column 4.5
    view = closer(image, mask, 0.5)
    assert view is not None
    assert np.array_equal(view.image, image[0:5, 0:10][:, ::-1])
    assert np.array_equal(view.mask, mask[0:5, 0:10][:, ::-1])
    assert (view.left, view.right) == (0.0, 0.5)
    # Five tokens of two columns each; the first one shows the crop's right end.
    expected = torch.tensor([[0.45, 0.35, 0.25, 0.15, 0.05]]).expand(2, 5)
    torch.testing.assert_close(view.places((2, 5)), expected)


def test_a_view_that_would_miss_the_object_is_none() -> None:
    """Two halves at both ends, with nothing in the middle."""
    mask = np.zeros((10, 40), bool)
    mask[:, :3] = mask[:, -3:] = True
    assert closer(np.zeros((10, 40, 3), np.uint8), mask, 0.5) is None


def test_the_smallest_image_has_a_view_of_itself() -> None:
    view = closer(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), bool), 0.6)
    assert view is not None and view.mask.all()
