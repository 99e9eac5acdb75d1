"""Episodes as a batch of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsdino.data.batches import collate
from fsdino.data.episodes import Sample
from fsdino.errors import UsageError
from plain_episodes import episode, sample


def test_collate_stacks_samples_of_any_size_into_documented_shapes() -> None:
    """Real data sets mix sizes and aspect ratios in one batch."""
    episodes = [
        episode(sample(9, 20), sample(33, 12), query=sample(7, 50), index=4),
        episode(sample(64, 48), sample(16, 16), query=sample(100, 30), index=9),
    ]
    batch = collate(episodes, (16, 24))
    assert batch.support_images.shape == (2, 2, 3, 16, 24)
    assert batch.support_masks.shape == (2, 2, 16, 24)
    assert batch.query_images.shape == (2, 3, 16, 24)
    assert batch.query_masks.shape == batch.query_ignore.shape == (2, 16, 24)
    floats = (batch.support_images, batch.support_masks, batch.query_images, batch.query_masks)
    assert all(tensor.dtype == torch.float32 for tensor in floats)
    assert batch.query_ignore.dtype == torch.bool
    assert batch.class_ids.tolist() == [3, 3] and batch.class_ids.dtype == torch.int64
    assert batch.indices.tolist() == [4, 9] and batch.indices.dtype == torch.int64
    assert len(batch) == 2


def test_collate_keeps_supports_in_order_and_scales_to_unit_range() -> None:
    """A swap of supports between episodes would pair images with foreign masks."""
    first = episode(sample(value=0), sample(value=51))
    second = episode(sample(value=102), sample(value=255))
    images = collate([first, second], 8).support_images
    assert torch.allclose(images.mean(dim=(2, 3, 4)), torch.tensor([[0.0, 0.2], [0.4, 1.0]]))


def test_collate_picks_mask_pixels_as_interpolate_nearest_does() -> None:
    """Nearest in PyTorch takes source pixel floor(i * source / target); PIL's takes another."""
    height, width, size = 7, 11, 4
    mask = np.random.default_rng(0).random((height, width)) < 0.5
    query = Sample(np.zeros((height, width, 3), np.uint8), mask, "random", 3, ignore=~mask)
    batch = collate([episode(sample(), query=query)], size)
    rows = [i * height // size for i in range(size)]
    columns = [i * width // size for i in range(size)]
    expected = mask[np.ix_(rows, columns)]
    assert np.array_equal(batch.query_masks[0].numpy(), expected.astype(np.float32))
    assert np.array_equal(batch.query_ignore[0].numpy(), ~expected)


def test_collate_averages_when_it_shrinks_an_image() -> None:
    """Without antialiasing a fine checkerboard would turn black or white, not grey."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    query = Sample(np.stack([board] * 3, axis=2), np.ones((64, 64), np.bool_), "board", 3)
    shrunk = collate([episode(sample(), query=query)], 8).query_images
    assert torch.allclose(shrunk, torch.full_like(shrunk, 0.5), atol=0.01)


def test_collate_rounds_to_bytes_where_it_is_asked_to() -> None:
    """A column of 0 and 255 averages to 127.5: 128 in bytes, as PIL rounds, and exact otherwise."""
    halves = np.repeat(np.array([0, 255], np.uint8)[:, None, None], 3, axis=2)  # [2, 1, 3]
    query = Sample(halves, np.ones((2, 1), np.bool_), "halves", 3)
    for rounded, expected in ((True, 128 / 255), (False, 0.5)):
        batch = collate([episode(sample(), query=query)], 1, rounded=rounded)
        assert batch.query_images.flatten().tolist() == pytest.approx([expected] * 3, abs=1e-6)


def test_collate_leaves_read_only_images_alone() -> None:
    """Caches hand out read-only arrays; collate must neither fail on them nor write to them."""
    query = sample(value=77)
    query.image.flags.writeable = False
    query.mask.flags.writeable = False
    batch = collate([episode(sample(), query=query)], 8)
    batch.query_images.zero_()
    assert (query.image == 77).all()


def test_batch_moves_every_tensor() -> None:
    """A tensor that stays behind on another device fails far from here."""
    moved = collate([episode(sample())], 8).to("meta")
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}


def test_collate_refuses_what_cannot_be_a_batch() -> None:
    """Episodes of unequal shots would be cut or padded silently."""
    with pytest.raises(UsageError, match=r"\[1, 2\] shots"):
        collate([episode(sample()), episode(sample(), sample())], 8)
    with pytest.raises(UsageError, match="empty"):
        collate([], 8)
    with pytest.raises(UsageError, match="size"):
        collate([episode(sample())], (8, 0))
