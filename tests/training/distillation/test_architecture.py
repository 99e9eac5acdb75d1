"""Shapes and sizes are those of Segment Anything's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide

from fsdino.training.distillation.architecture import ARCHITECTURES, Architecture
from fsdino.training.distillation.teacher import build_encoder
from tiny_models import picture


@pytest.mark.parametrize("size", [(333, 500), (1500, 2250), (768, 1024), (1025, 1023)], ids=str)
def test_official_sizes_equal_segment_anything(size) -> None:
    """At 1024 pixels, too, where rounding meets other numbers."""
    official = ARCHITECTURES["vit_h"]
    image = picture(*size)
    assert np.array_equal(official.scale(image), ResizeLongestSide(1024).apply_image(image))


@pytest.mark.parametrize(
    "size, grid, extent",
    [
        ((1024, 1024), (64, 64), (64, 64)),
        ((1500, 2250), (43, 64), (42.6875, 64)),  # 683 rows: the last cell is more than half image
        ((333, 500), (43, 64), (42.625, 64)),  # 682 rows
        ((500, 496), (64, 64), (64, 63.5)),  # 1016 columns: the last centre lies on the edge
        ((500, 495), (64, 63), (64, 63.375)),  # 1014 columns: the centre is outside
        ((1, 3000), (1, 64), (0.0625, 64)),  # less than a row of pixels, but never nothing
    ],
    ids=str,
)
def test_padding_is_cut_off(size, grid, extent) -> None:
    """Cells whose centre is padding are not in the target; computed by hand for 1024 and 16."""
    official = ARCHITECTURES["vit_h"]
    assert official.grid(size) == grid
    assert official.extent(size) == extent


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_official_architectures_are_read_off_their_weights(name: str) -> None:
    """Names, shapes and windows of segment_anything's registry, without allocating them."""
    with torch.device("meta"):
        official = sam_model_registry[name]().image_encoder
        ours = build_encoder(ARCHITECTURES[name])
    state = official.state_dict()
    assert Architecture.of(state) == ARCHITECTURES[name]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    for block, expected in zip(ours.blocks, official.blocks, strict=True):
        assert block.window_size == expected.window_size
        assert block.attn.num_heads == expected.attn.num_heads
        assert block.norm1.eps == expected.norm1.eps
