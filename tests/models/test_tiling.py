"""Large images in tiles: every pixel covered, enough overlap, and a blend without seams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsdino.models.tiling import blend, tile_boxes


@pytest.mark.parametrize("image", [(10, 10), (11, 23), (25, 10), (64, 33), (10, 11)])
@pytest.mark.parametrize("tile", [(10, 10), (7, 4), (1, 3)])
def test_tiles_cover_the_image_and_overlap(image: tuple[int, int], tile: tuple[int, int]) -> None:
    """Tiles of full size inside the image; neighbours share at least half of a side."""
    boxes = tile_boxes(image, tile)
    covered = np.zeros(image, dtype=int)
    for box in boxes:
        height, width = box.rows.stop - box.rows.start, box.columns.stop - box.columns.start
        assert (height, width) == (min(tile[0], image[0]), min(tile[1], image[1]))
        covered[box.rows, box.columns] += 1
    assert covered.min() >= 1
    for axis, side in enumerate(tile):
        spans = [(box.rows, box.columns)[axis] for box in boxes]
        starts = sorted({span.start for span in spans})
        largest_step = max(np.diff(starts), default=0)
        assert largest_step <= max(side // 2, 1)
        assert max(span.stop for span in spans) == image[axis]


@pytest.mark.parametrize("tile", [(20, 30), (10, 12), (400, 400)])
def test_an_image_within_a_tile_is_one_tile(tile: tuple[int, int]) -> None:
    """Nothing is cut, and nothing enlarged, where the image is not larger than the supports."""
    (box,) = tile_boxes((10, 12), tile)
    assert (box.rows, box.columns) == (slice(0, 10), slice(0, 12))


def test_only_the_longer_side_is_cut() -> None:
    """A panorama is cut along its length alone."""
    boxes = tile_boxes((8, 40), (10, 10))
    assert {(box.rows.start, box.rows.stop) for box in boxes} == {(0, 8)}
    assert [box.columns.start for box in boxes] == [0, 5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize("size", [(30, 21), (1, 1), (9, 50)])
def test_blending_a_picture_cut_in_tiles_gives_the_picture(size: tuple[int, int]) -> None:
    """Weights add up to 1 everywhere, borders and corners included."""
    picture = torch.rand(3, *size)
    boxes = tile_boxes(size, (8, 10))
    maps = [picture[:, box.rows, box.columns] for box in boxes]
    torch.testing.assert_close(blend(maps, boxes, size), picture)


def test_blend_trusts_the_middle_of_a_tile() -> None:
    """Two tiles of four pixels that share two: weights 1/8, 3/8, 3/8, 1/8 of a triangle."""
    boxes = tile_boxes((1, 6), (1, 4))
    assert [box.columns.start for box in boxes] == [0, 2]
    maps = [torch.zeros(1, 1, 4), torch.ones(1, 1, 4)]
    # Pixel 2 is third in the first tile (3/8) and first in the second (1/8); pixel 3 the reverse.
    expected = torch.tensor([[[0.0, 0.0, 0.25, 0.75, 1.0, 1.0]]])
    torch.testing.assert_close(blend(maps, boxes, (1, 6)), expected)
